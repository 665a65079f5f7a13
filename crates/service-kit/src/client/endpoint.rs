//! Which endpoints are up: each is watched by gRPC's health protocol, so that one that is killed, drains or comes back is
//! known at once (as gRFC A17 has it).

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::service_fn;

/// A connection that is not made by then is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is probed this often, so that a dead peer is noticed before the next call.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// An endpoint that is down is tried again after this long, doubled each time up to [`SLOWEST`].
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// See [`FIRST_RETRY`].
const SLOWEST: Duration = Duration::from_secs(1);
/// Host names are looked up this often: replicas come and go.
const LOOK_UP: Duration = Duration::from_secs(5);
/// A service that does not know the health protocol is asked again after this long.
const UNKNOWN_HEALTH: Duration = Duration::from_secs(30);

/// The endpoints of one service that are up.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    up: HashMap<SocketAddr, Channel>,
    /// Looked at no time yet: whether they are up is not known.
    unknown: usize,
}

impl Endpoints {
    /// Whether a call may be decided: one is up, or all are known to be down.
    pub(super) fn is_settled(&self) -> bool {
        self.unknown == 0 || !self.up.is_empty()
    }

    /// The endpoint whose turn it is.
    pub(super) fn nth(&self, turn: usize) -> Option<&Channel> {
        self.up.values().nth(turn.checked_rem(self.up.len())?)
    }
}

/// Gives an endpoint the deadlines that all have.
pub(super) fn tune(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(CONNECT_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// Follows `endpoints` until `stop` is cancelled.
pub(super) fn follow(
    endpoints: &[Endpoint],
    stop: &CancellationToken,
) -> watch::Receiver<Endpoints> {
    let (state, follower) = watch::channel(Endpoints {
        up: HashMap::new(),
        unknown: endpoints.len(),
    });
    for endpoint in endpoints {
        let follow = follow_name(endpoint.clone(), state.clone());
        let stop = stop.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with the channel's last clone"
        )]
        tokio::spawn(async move { stop.run_until_cancelled(follow).await });
    }
    follower
}

/// Watches every address that the endpoint's host name stands for.
async fn follow_name(endpoint: Endpoint, state: watch::Sender<Endpoints>) {
    let mut watches = JoinSet::new();
    let mut watched: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut first = true;
    loop {
        // While names cannot be looked up, the addresses known last are as good as any.
        let found = look_up(endpoint.uri())
            .await
            .unwrap_or_else(|_| watched.keys().copied().collect());
        watched.retain(|addr, watch| {
            let stays = found.contains(addr);
            if !stays {
                watch.abort();
                state.send_modify(|endpoints| {
                    endpoints.up.remove(addr);
                });
            }
            stays
        });
        let new: Vec<_> = found
            .into_iter()
            .filter(|addr| !watched.contains_key(addr))
            .collect();
        // From here on each address is unknown by itself.
        if first {
            state.send_modify(|endpoints| endpoints.unknown = endpoints.unknown + new.len() - 1);
        } else {
            state.send_modify(|endpoints| endpoints.unknown += new.len());
        }
        first = false;
        for addr in new {
            let watch = Watch {
                endpoint: endpoint.clone(),
                addr,
                state: state.clone(),
                unknown: true,
            };
            watched.insert(addr, watches.spawn(watch.run()));
        }
        tokio::time::sleep(LOOK_UP).await;
    }
}

async fn look_up(uri: &Uri) -> io::Result<Vec<SocketAddr>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let looked_up = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port)));
    Ok(looked_up.await.map_err(io::Error::from)??.collect())
}

/// The watch of one address.
struct Watch {
    endpoint: Endpoint,
    addr: SocketAddr,
    state: watch::Sender<Endpoints>,
    /// Counted as unknown.
    unknown: bool,
}

impl Watch {
    async fn run(mut self) {
        let mut pause = FIRST_RETRY;
        loop {
            let connected = self.watch().await;
            self.tell(None);
            pause = if connected {
                FIRST_RETRY
            } else {
                (pause * 2).min(SLOWEST)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the endpoint's health until its connection ends; whether there was one.
    async fn watch(&mut self) -> bool {
        let addr = self.addr;
        // The name stays for TLS and `:authority`; only the address is ours to choose.
        let channel =
            self.endpoint
                .connect_with_connector_lazy(service_fn(move |_: Uri| async move {
                    let stream = TcpStream::connect(addr).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }));
        let request = HealthCheckRequest::default();
        let mut health = match HealthClient::new(channel.clone()).watch(request).await {
            Ok(health) => health.into_inner(),
            Err(status) => return self.without_health(&status, channel).await,
        };
        while let Ok(Some(answer)) = health.message().await {
            let serving = answer.status() == ServingStatus::Serving;
            self.tell(serving.then(|| channel.clone()));
        }
        true
    }

    /// A service that does not know the health protocol counts as up.
    async fn without_health(&mut self, status: &Status, channel: Channel) -> bool {
        let answered = matches!(status.code(), Code::Unimplemented | Code::NotFound);
        if answered {
            self.tell(Some(channel));
            tokio::time::sleep(UNKNOWN_HEALTH).await;
        }
        answered
    }

    fn tell(&mut self, up: Option<Channel>) {
        let was_unknown = std::mem::take(&mut self.unknown);
        self.state.send_modify(|endpoints| {
            endpoints.unknown -= usize::from(was_unknown);
            match up {
                Some(channel) => endpoints.up.insert(self.addr, channel),
                None => endpoints.up.remove(&self.addr),
            };
        });
    }
}

impl Drop for Watch {
    /// Its address left the name: it counts for nothing any more.
    fn drop(&mut self) {
        self.tell(None);
    }
}
