//! The watch stream, which keeps memory fresh.

use std::time::Duration;

use proto::token::v1::{WatchAccessTokensRequest, token_service_client::TokenServiceClient};
use rand::RngExt as _;
use service_kit::client::PeerChannel;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{cache::Cache, error::Error};

/// The first pause after the stream broke; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Takes over every rotation; opens the stream again whenever it ends.
pub(crate) async fn follow(
    mut rpc: TokenServiceClient<PeerChannel>,
    cache: &Cache,
    stop: &CancellationToken,
) {
    let mut pause = MIN_PAUSE;
    loop {
        let Some(ended) = stop.run_until_cancelled(stream(&mut rpc, cache)).await else {
            return;
        };
        match ended {
            Ended { fed: true, .. } => pause = MIN_PAUSE,
            Ended { fed: false, .. } => pause = (pause * 2).min(MAX_PAUSE),
        }
        match ended.error {
            None => debug!("token-service ended the watch; following again"),
            Some(error) => warn!(error = %error, "no news of tokens: the watch is opened again"),
        }
        // Many programs lose one token-service at the same moment.
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        if stop
            .run_until_cancelled(tokio::time::sleep(jittered))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// How a stream ended, and whether it told anything before.
struct Ended {
    fed: bool,
    error: Option<Error>,
}

async fn stream(rpc: &mut TokenServiceClient<PeerChannel>, cache: &Cache) -> Ended {
    let mut fed = false;
    let request = WatchAccessTokensRequest::default();
    let mut tokens = match rpc.watch_access_tokens(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            return Ended {
                fed,
                error: Some(status.into()),
            };
        }
    };
    loop {
        let error = match tokens.message().await {
            Ok(Some(token)) => match cache.put(token.access_token) {
                Ok(_) => {
                    fed = true;
                    continue;
                }
                Err(error) => Some(error),
            },
            Ok(None) => None,
            Err(status) => Some(status.into()),
        };
        return Ended { fed, error };
    }
}
