//! The way of the operator's verbs to push-service, and what those verbs have in common.

mod content;
mod progress;
mod when;

use std::time::Duration;

use proto::push::v1::push_service_client::PushServiceClient;
use service_kit::{Problems, Settings, client::PeerChannel};
use tonic::Status;

pub(crate) use self::{
    content::{Content, ContentArgs},
    progress::{Progress, a_second, counted, counter, grouped, note},
    when::When,
};
use crate::{
    operator::{Access, REACHING},
    token::Refused,
};

/// How to reach push-service, by the names that the services use.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// push-service's gRPC; several endpoints, separated by commas, are balanced
    #[arg(
        long,
        env = "WXHUB_PUSH_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:50053",
        global = true,
        help_heading = REACHING
    )]
    push_url: String,
    #[command(flatten)]
    access: Access,
}

impl Connection {
    pub(crate) fn open(self) -> Result<PushServiceClient<PeerChannel>, Problems> {
        let settings = Settings {
            push_url: Some(self.push_url),
            ..self.access.into()
        };
        let mut problems = Problems::default();
        let peer = settings.push_service(&mut problems);
        Ok(PushServiceClient::new(problems.or(peer)?.channel()))
    }
}

/// What push-service answered in place of what was asked for.
pub(crate) fn refused(status: Status) -> Refused {
    Refused::by("push-service", status)
}

/// With a service that goes away amid many calls: the same call is made again, and not for ever.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    tries: u32,
}

impl Patience {
    /// How often a call is made again in a row, and the pause before it.
    const TRIES: u32 = 30;
    const PAUSE: Duration = Duration::from_secs(1);

    /// Waits until the call may be made again; the first time it tells why.
    ///
    /// # Errors
    /// The refusal, when it is for good or there were too many.
    pub(crate) async fn wait(
        &mut self,
        refused: Refused,
        tell: impl FnOnce(&str),
    ) -> Result<(), Refused> {
        if !refused.is_temporary() || self.tries >= Self::TRIES {
            return Err(refused);
        }
        if self.tries == 0 {
            tell(&format!("{refused}; trying again"));
        }
        self.tries += 1;
        tokio::time::sleep(Self::PAUSE).await;
        Ok(())
    }

    /// A call was answered.
    pub(crate) fn renew(&mut self) {
        self.tries = 0;
    }
}
