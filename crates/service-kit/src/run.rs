//! One service's life: it listens, becomes ready, and on shutdown drains within a deadline.

use std::{error::Error as StdError, io, net::SocketAddr, pin::Pin, time::Duration};

use axum::Router;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::ServerTlsConfig};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceBuilder;
use tracing::{error, info, warn};

use crate::{
    caller::{CallerLayer, Rules},
    catalog::CatalogHandle,
    grpc, http,
    ops::{self, Phase, Readiness},
    settings::Listen,
    telemetry,
};

/// What is in flight when shutdown begins may take this long to end.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// No RPC takes longer, whatever deadline its caller set.
const RPC_TIMEOUT: Duration = Duration::from_secs(30);

type BoxError = Box<dyn StdError + Send + Sync>;
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
    /// Its gRPC services.
    pub routes: Routes,
    /// Their full names (`wxhub.token.v1.TokenService`), for health.
    pub grpc_names: &'static [&'static str],
    /// Their file descriptors, for reflection.
    pub descriptors: &'static [u8],
    /// Who may call what.
    pub rules: Rules,
    /// The callers.
    pub catalog: CatalogHandle,
    /// TLS on the gRPC port.
    pub tls: Option<ServerTlsConfig>,
    /// Its HTTP routes, before [`http::harden`].
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
        // Servers and workers end with `stop`; the operator's port goes on to tell that the service drains.
        let stop = CancellationToken::new();
        let mut tasks: JoinSet<(&'static str, Result<(), BoxError>)> = JoinSet::new();

        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(self.descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| assembly(error.into()))?;
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = self.tls {
            server = server
                .tls_config(tls)
                .map_err(|error| assembly(error.into()))?;
        }
        let grpc = server
            .timeout(RPC_TIMEOUT)
            .layer(
                ServiceBuilder::new()
                    .layer(grpc::TraceLayer)
                    .layer(CallerLayer::new(self.catalog, self.rules)),
            )
            .add_routes(self.routes)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(self.listeners.grpc),
                stop.clone().cancelled_owned(),
            );
        tasks.spawn(async move { ("gRPC", grpc.await.map_err(Into::into)) });

        let http = axum::serve(self.listeners.http, http::harden(self.http))
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        tasks.spawn(async move { ("HTTP", http.await.map_err(Into::into)) });
        tasks.spawn(report_health(
            health,
            self.grpc_names,
            self.readiness.clone(),
            stop.clone(),
        ));
        tasks.spawn(keep_up_metrics(stop.clone()));
        for (worker, start) in self.workers.0 {
            let work = start(stop.clone());
            tasks.spawn(async move { (worker, work.await) });
        }
        let mut operator = JoinSet::new();
        operator.spawn(
            axum::serve(self.listeners.ops, ops::router(self.readiness.clone())).into_future(),
        );

        info!(service = name, grpc = %addrs.grpc, http = %addrs.http, ops = %addrs.ops, "listening");
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = tasks.join_next() => ended,
        };
        let failure = early.map(|ended| failure(name, ended));

        info!(service = name, "draining");
        self.readiness.set_draining();
        stop.cancel();
        if tokio::time::timeout(DRAIN_TIMEOUT, drain(&mut tasks))
            .await
            .is_err()
        {
            warn!(
                service = name,
                timeout_s = DRAIN_TIMEOUT.as_secs(),
                "what did not drain in time is cut off"
            );
            tasks.shutdown().await;
        }
        operator.shutdown().await;
        info!(service = name, "stopped");
        failure.map_or(Ok(()), Err)
    }
}

async fn drain(tasks: &mut JoinSet<(&'static str, Result<(), BoxError>)>) {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok((_, Ok(()))) => {}
            Ok((part, Err(error))) => error!(part, error, "failed while draining"),
            Err(error) => error!(%error, "panicked while draining"),
        }
    }
}

fn failure(
    service: &'static str,
    ended: Result<(&'static str, Result<(), BoxError>), tokio::task::JoinError>,
) -> Error {
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

/// Tells gRPC health what `/readyz` tells.
async fn report_health(
    health: HealthReporter,
    names: &'static [&'static str],
    readiness: Readiness,
    stop: CancellationToken,
) -> (&'static str, Result<(), BoxError>) {
    let mut phase = readiness.watch();
    loop {
        let now = *phase.borrow_and_update();
        let status = if now == Phase::Ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in names.iter().copied().chain([""]) {
            health.set_service_status(name, status).await;
        }
        if now == Phase::Draining {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = phase.changed() => {}
        }
    }
    ("health", Ok(()))
}

async fn keep_up_metrics(stop: CancellationToken) -> (&'static str, Result<(), BoxError>) {
    let mut tick = tokio::time::interval(ops::UPKEEP);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        telemetry::metrics_handle().run_upkeep();
    }
    ("metrics", Ok(()))
}

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
#[cfg(unix)]
pub fn shutdown_on_signal() -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};

    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let cancel = shutdown.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    tokio::spawn(async move {
        let mut next =
            async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        next().await;
        cancel.cancel();
        next().await;
        std::process::exit(130);
    });
    Ok(shutdown)
}
