//! One service's life: it listens, becomes ready, and on shutdown drains within a deadline.

mod cut;
mod http;

use std::{error::Error as StdError, io, net::SocketAddr, pin::Pin, time::Duration};

use axum::Router;
use futures_util::StreamExt as _;
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{ServerTlsConfig, server::TcpIncoming};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceBuilder;
use tracing::{error, info, warn};

use self::cut::Cut;
use crate::{
    caller::{CallerLayer, Rules},
    catalog::CatalogHandle,
    grpc::{self, Routes},
    http::harden,
    ops::{self, Phase, Readiness},
    settings::Listen,
    telemetry,
};

/// Requests in flight when shutdown begins may take this long to end.
const SERVERS_DRAIN: Duration = Duration::from_secs(15);
/// And background work after them this long.
const WORKERS_DRAIN: Duration = Duration::from_secs(5);
/// A gRPC client that is silent is asked this often whether it is there, and given as long to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Clients connect anew after this long, and so find replicas that were added.
const CONNECTION_AGE: Duration = Duration::from_secs(1800);

type BoxError = Box<dyn StdError + Send + Sync>;
/// A part that ended: its name, and how.
type Ended = (&'static str, Result<(), BoxError>);
type Tasks = JoinSet<Ended>;
type Start = Box<dyn FnOnce(CancellationToken) -> Task + Send>;
type Task = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A service's three open ports.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// HTTP.
    pub http: TcpListener,
    /// `/livez`, `/readyz`, `/metrics`.
    pub ops: TcpListener,
}

impl Listeners {
    /// Opens the ports; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`] with the address that is taken or not ours.
    pub async fn bind(listen: Listen) -> Result<Self, BindError> {
        Ok(Self {
            grpc: bind(listen.grpc).await?,
            http: bind(listen.http).await?,
            ops: bind(listen.ops).await?,
        })
    }

    /// Where they are open.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn addrs(&self) -> io::Result<Listen> {
        Ok(Listen {
            grpc: self.grpc.local_addr()?,
            http: self.http.local_addr()?,
            ops: self.ops.local_addr()?,
        })
    }
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| BindError { addr, source })
}

/// Why a service ended without having been asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part that runs as long as the service ended early.
    #[error("{part} of {service} failed")]
    Failed {
        /// The service.
        service: &'static str,
        /// Which part.
        part: &'static str,
        /// Why.
        source: BoxError,
    },
    /// Reflection does not take the file descriptors, or a port's address cannot be told.
    #[error("{service} cannot be assembled")]
    Assembly {
        /// The service.
        service: &'static str,
        /// Why.
        source: BoxError,
    },
}

/// Work in the background that lives as long as the service.
#[derive(Default)]
pub struct Workers(Vec<(&'static str, Start)>);

impl Workers {
    /// Adds a worker, started by [`Server::run`]. It returns soon after the token is cancelled; if it fails before,
    /// the service ends.
    pub fn add<F, E>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let start = move |stop| -> Task {
            let work = work(stop);
            Box::pin(async move { work.await.map_err(Into::into) })
        };
        self.0.push((name, Box::new(start)));
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// A service, ready to run.
#[derive(Debug)]
pub struct Server {
    /// Its name, in logs and errors.
    pub name: &'static str,
    /// Its ports.
    pub listeners: Listeners,
    /// Its RPCs.
    pub routes: Routes,
    /// Its gRPC services' full names (`wxhub.token.v1.TokenService`), for health.
    pub grpc_names: &'static [&'static str],
    /// Their file descriptors, for reflection.
    pub descriptors: &'static [u8],
    /// Who may call what.
    pub rules: Rules,
    /// The callers.
    pub catalog: CatalogHandle,
    /// TLS on the gRPC port.
    pub tls: Option<ServerTlsConfig>,
    /// Its HTTP routes, before [`harden`].
    pub http: Router,
    /// Told by the service when it is ready.
    pub readiness: Readiness,
    /// Its background work.
    pub workers: Workers,
}

impl Server {
    /// Serves until `shutdown` is cancelled, then drains.
    ///
    /// # Errors
    /// When a port or a worker fails; everything else is stopped first.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let name = self.name;
        let assembly = |source: BoxError| Error::Assembly {
            service: name,
            source,
        };
        let addrs = self
            .listeners
            .addrs()
            .map_err(|error| assembly(error.into()))?;
        // Servers end first, with `stop`: what is in flight may need the workers, which end with `rest`.
        let (stop, rest) = (CancellationToken::new(), CancellationToken::new());
        // What goes on after that is cut off.
        let force = CancellationToken::new();
        let mut servers = Tasks::new();
        let mut workers = Tasks::new();

        let (health, health_service) = tonic_health::server::health_reporter();
        // Left to itself it says at first that all is well.
        tell_health(&health, self.grpc_names, ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(self.descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| assembly(error.into()))?;
        let trace = grpc::TraceLayer::new(self.descriptors);
        let trace = trace.map_err(|error| assembly(error.into()))?;
        let mut server = transport();
        if let Some(tls) = self.tls {
            server = server
                .tls_config(tls)
                .map_err(|error| assembly(error.into()))?;
        }
        let cut = force.clone();
        let connections = TcpIncoming::from(self.listeners.grpc)
            .with_nodelay(Some(true))
            .map(move |accepted| accepted.map(|stream| Cut::new(stream, cut.clone())));
        let grpc = server
            .layer(
                ServiceBuilder::new()
                    .layer(trace)
                    .layer(CallerLayer::new(self.catalog, self.rules)),
            )
            .serve_with_incoming_shutdown(
                self.routes.beside(health_service).beside(reflection),
                connections,
                stop.clone().cancelled_owned(),
            );
        servers.spawn(async move { ("gRPC", grpc.await.map_err(Into::into)) });
        let http = http::serve(self.listeners.http, harden(self.http), stop.clone());
        servers.spawn(async move {
            http.await;
            ("HTTP", Ok(()))
        });
        let report = report_health(health, self.grpc_names, self.readiness.clone());
        servers.spawn(async move {
            report.await;
            ("health", Ok(()))
        });
        workers.spawn(keep_up_metrics(rest.clone()));
        for (worker, start) in self.workers.0 {
            let work = start(rest.clone());
            workers.spawn(async move { (worker, work.await) });
        }
        // The operator's port goes on to the end, to tell that the service drains.
        let mut operator = JoinSet::new();
        let ops = ops::router(self.readiness.clone());
        operator.spawn(http::serve(
            self.listeners.ops,
            ops,
            CancellationToken::new(),
        ));

        info!(service = name, grpc = %addrs.grpc, http = %addrs.http, ops = %addrs.ops, "listening");
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = servers.join_next() => ended,
            ended = workers.join_next() => ended,
        };
        let failure = early.map(|ended| failure(name, ended));

        info!(service = name, "draining");
        self.readiness.set_draining();
        stop.cancel();
        if timeout(SERVERS_DRAIN, drain(&mut servers)).await.is_err() {
            warn!(
                service = name,
                "requests that did not end in time are cut off"
            );
            force.cancel();
            servers.shutdown().await;
        }
        rest.cancel();
        if timeout(WORKERS_DRAIN, drain(&mut workers)).await.is_err() {
            warn!(
                service = name,
                "background work that did not end in time is cut off"
            );
            workers.shutdown().await;
        }
        operator.shutdown().await;
        info!(service = name, "stopped");
        failure.map_or(Ok(()), Err)
    }
}

/// HTTP/2 as every gRPC port speaks it.
pub fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_connection_age(CONNECTION_AGE)
}

async fn drain(tasks: &mut Tasks) {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok((_, Ok(()))) => {}
            Ok((part, Err(error))) => error!(part, error, "failed while draining"),
            Err(error) => error!(%error, "panicked while draining"),
        }
    }
}

fn failure(service: &'static str, ended: Result<Ended, JoinError>) -> Error {
    let (part, source) = match ended {
        Ok((part, Err(source))) => (part, source),
        Ok((part, Ok(()))) => (part, "it ended by itself".into()),
        Err(panic) => ("a task", panic.into()),
    };
    Error::Failed {
        service,
        part,
        source,
    }
}

/// Tells gRPC health what `/readyz` tells, until the service drains.
async fn report_health(
    mut health: HealthReporter,
    names: &'static [&'static str],
    readiness: Readiness,
) {
    let mut phase = readiness.watch();
    loop {
        let now = *phase.borrow_and_update();
        let status = match now {
            Phase::Ready => ServingStatus::Serving,
            Phase::Starting | Phase::Draining => ServingStatus::NotServing,
        };
        tell_health(&health, names, status).await;
        if now == Phase::Draining || phase.changed().await.is_err() {
            break;
        }
    }
    // Ends the streams of whoever watches: they would hold the shutdown up.
    for name in whole_and(names) {
        health.clear_service_status(name).await;
    }
}

/// Tells the health of all services, and of the server as a whole.
async fn tell_health(
    health: &HealthReporter,
    names: &'static [&'static str],
    status: ServingStatus,
) {
    for name in whole_and(names) {
        health.set_service_status(name, status).await;
    }
}

fn whole_and(names: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
    names.iter().copied().chain([""])
}

async fn keep_up_metrics(stop: CancellationToken) -> Ended {
    let mut tick = tokio::time::interval(ops::UPKEEP);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        telemetry::metrics_handle().run_upkeep();
    }
    ("metrics", Ok(()))
}

/// Cancelled by the first SIGINT, SIGTERM or SIGHUP (a terminal that closes); the second ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
#[cfg(unix)]
pub fn shutdown_on_signal() -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};

    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate, mut hangup) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    let cancel = shutdown.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        };
        next().await;
        cancel.cancel();
        next().await;
        std::process::exit(130);
    });
    Ok(shutdown)
}
