//! Calls to the other services: a caller's key and the trace context on each, balanced over every endpoint.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::trace;

/// A connection that is given up for lost after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A call that sets no deadline of its own ends after this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is probed this often, so that a dead peer is noticed before the next call.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How to reach another service.
#[derive(Clone)]
pub struct Peer {
    endpoints: Vec<Endpoint>,
    authorization: MetadataValue<Ascii>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uris: Vec<_> = self.endpoints.iter().map(Endpoint::uri).collect();
        f.debug_struct("Peer").field("endpoints", &uris).finish()
    }
}

/// A channel that shows the caller's key and carries the trace on.
pub type PeerChannel = InterceptedService<Channel, Outgoing>;

impl Peer {
    /// Endpoints of one service, and the key that it knows us by: visible ASCII, or the service will know nobody.
    #[expect(clippy::needless_pass_by_value, reason = "the key is handed over")]
    pub fn new(endpoints: Vec<Endpoint>, key: SecretString) -> Self {
        let mut authorization = format!("Bearer {}", key.expose_secret())
            .parse()
            .unwrap_or_else(|_| MetadataValue::from_static("Bearer"));
        authorization.set_sensitive(true);
        let endpoints = endpoints
            .into_iter()
            .map(|endpoint| {
                endpoint
                    .connect_timeout(CONNECT_TIMEOUT)
                    .timeout(CALL_TIMEOUT)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_while_idle(true)
                    .tcp_nodelay(true)
            })
            .collect();
        Self {
            endpoints,
            authorization,
        }
    }

    /// A channel that connects when it is first used and again when it must. Call it within a tokio runtime.
    pub fn channel(&self) -> PeerChannel {
        let channel = match self.endpoints.as_slice() {
            [one] => one.connect_lazy(),
            many => Channel::balance_list(many.iter().cloned()),
        };
        let authorization = self.authorization.clone();
        InterceptedService::new(channel, Outgoing { authorization })
    }
}

/// Adds the caller's key and the trace context to each call.
#[derive(Debug, Clone)]
pub struct Outgoing {
    authorization: MetadataValue<Ascii>,
}

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.authorization.clone());
        trace::inject(metadata);
        Ok(request)
    }
}
