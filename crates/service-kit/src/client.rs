//! Calls to the other services: a caller's key, a deadline and the trace context on each, balanced over every endpoint
//! that is up.

mod endpoint;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt as _};

use self::endpoint::Endpoints;
use crate::{
    grpc,
    status::{self, reason},
    trace,
};

/// A call that sets no deadline of its own ends after this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach another service.
#[derive(Clone)]
pub struct Peer {
    endpoints: Vec<Endpoint>,
    authorization: HeaderValue,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uris: Vec<_> = self.endpoints.iter().map(Endpoint::uri).collect();
        f.debug_struct("Peer").field("endpoints", &uris).finish()
    }
}

impl Peer {
    /// Endpoints of one service, and the key that it knows us by: visible ASCII, or the service will know nobody. A
    /// host name that stands for several addresses is as many endpoints.
    #[expect(clippy::needless_pass_by_value, reason = "the key is handed over")]
    pub fn new(endpoints: Vec<Endpoint>, key: SecretString) -> Self {
        let mut authorization = format!("Bearer {}", key.expose_secret())
            .parse()
            .unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        authorization.set_sensitive(true);
        Self {
            endpoints: endpoints.into_iter().map(endpoint::tune).collect(),
            authorization,
        }
    }

    /// A channel to whichever endpoints are up, now and later; its connections close with its last clone. Call it
    /// within a tokio runtime.
    pub fn channel(&self) -> PeerChannel {
        let stop = CancellationToken::new();
        PeerChannel {
            endpoints: endpoint::follow(&self.endpoints, &stop),
            next: Arc::default(),
            authorization: self.authorization.clone(),
            _stop: Arc::new(stop.drop_guard()),
        }
    }
}

/// A channel to another service; clones share it. Calls take the endpoints in turn.
#[derive(Debug, Clone)]
pub struct PeerChannel {
    endpoints: watch::Receiver<Endpoints>,
    next: Arc<AtomicUsize>,
    authorization: HeaderValue,
    _stop: Arc<DropGuard>,
}

impl PeerChannel {
    /// An endpoint that is up. Only before the first look at each is over does it wait.
    async fn endpoint(&mut self) -> Result<Channel, Status> {
        let down = || {
            let message = "no endpoint of the service answers";
            status::error(Code::Unavailable, reason::PEER_UNAVAILABLE, message)
                .retry_after(Duration::from_secs(1))
                .build()
        };
        let settled = self.endpoints.wait_for(Endpoints::is_settled).await;
        let endpoints = settled.map_err(|_| down())?;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        endpoints.nth(turn).cloned().ok_or_else(down)
    }
}

impl Service<Request<Body>> for PeerChannel {
    type Response = Response<Body>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, tower::BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        trace::inject(headers);
        let deadline = grpc::timeout(headers).unwrap_or_else(|| {
            let millis = format!("{}m", CALL_TIMEOUT.as_millis());
            headers.extend(millis.parse().map(|value| (grpc::TIMEOUT, value)));
            CALL_TIMEOUT
        });
        let mut channel = self.clone();
        // Started here it ends before tonic's own, which would say CANCELLED.
        let limit = tokio::time::sleep(deadline);
        Box::pin(async move {
            let answer = async {
                let endpoint = channel.endpoint().await?;
                endpoint.oneshot(request).await.map_err(Into::into)
            };
            tokio::select! {
                biased;
                answer = answer => answer,
                () = limit => Err(grpc::late(deadline).into()),
            }
        })
    }
}
