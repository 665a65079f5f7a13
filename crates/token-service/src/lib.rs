#![doc = include_str!("../README.md")]

pub mod broker;
pub mod config;
pub mod credential;
pub mod error;
mod grpc;
mod http;
pub mod jsapi;
mod metrics;
mod probe;
pub mod random;
pub mod refresh;
pub mod report;
pub mod sync;
pub mod upstream;
pub mod watch;

use std::{io, sync::Arc, time::Duration};

use proto::token::v1::token_service_server::{SERVICE_NAME, TokenServiceServer};
use secrecy::ExposeSecret as _;
use service_kit::{
    CatalogHandle, Clock, Problems, Settings,
    catalog::{self, Needs},
    cli,
    grpc::Routes,
    ops::Readiness,
    run::{self, Listeners, Server, Workers},
    settings::{Listen, Ports},
    storage,
};
use tokio_util::sync::CancellationToken;

pub use self::{broker::Broker, config::Config, error::Error};
use self::{credential::store::Store, probe::Prober, random::Random};

/// The service's name.
const NAME: &str = "token-service";
/// The secrets that it resolves.
const NEEDS: Needs = Needs {
    app_secrets: true,
    callbacks: false,
};
/// A call to WeChat ends within this, so that it ends within its lease.
const WECHAT_TIMEOUT: Duration = Duration::from_millis(3_500);

/// The service, listening but not yet serving.
#[derive(Debug)]
pub struct App {
    server: Server,
    addrs: Listen,
}

/// Why the service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `wxhub.toml` cannot be read or is wrong.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The Redis URL is malformed.
    #[error("the Redis URL cannot be used")]
    Redis(#[from] redis::RedisError),
    /// No client of WeChat can be made.
    #[error("no client of WeChat can be made")]
    WeChat(#[from] wechat::BuildError),
    /// The ports do not tell their addresses.
    #[error("the ports do not tell their addresses")]
    Listeners(#[source] io::Error),
}

impl App {
    /// Assembles the service. Redis and WeChat may be away.
    ///
    /// # Errors
    /// When `wxhub.toml` or a URL is wrong.
    #[expect(clippy::unused_async, reason = "built like every other service")]
    pub async fn build(config: Config, listeners: Listeners) -> Result<Self, BuildError> {
        let addrs = listeners.addrs().map_err(BuildError::Listeners)?;
        let (catalog, reloader) = CatalogHandle::load(config.catalog, NEEDS)?;
        let store = match &config.redis_url {
            None => Store::in_memory(Clock::System),
            Some(url) => Store::in_redis(
                storage::redis(url)?,
                redis::Client::open(url.expose_secret())?,
                config.sealer,
            ),
        };
        let mut wechat = wechat::ClientOptions::new(config.wechat_api_url);
        wechat.timeout = WECHAT_TIMEOUT;
        let wechat = Arc::new(wechat::Client::new(wechat)?);

        metrics::describe();
        let (broker, fresh) = Broker::new(
            catalog.clone(),
            store,
            Arc::clone(&wechat) as Arc<dyn upstream::Upstream>,
            Clock::System,
            Random::from_os(),
        );
        let readiness = Readiness::default();
        let mut workers = Workers::default();
        workers.add("wxhub.toml", |stop| async move {
            reloader.run(stop).await;
            Ok::<_, std::convert::Infallible>(())
        });
        workers.add("refreshing", {
            let broker = broker.clone();
            |stop| refresh::run(broker, fresh, stop)
        });
        workers.add("synchronising", {
            let (broker, readiness) = (broker.clone(), readiness.clone());
            |stop| sync::run(broker, readiness, stop)
        });
        let prober = Prober::new(broker.clone(), wechat);
        let http = http::router(broker.clone(), prober);
        let rpcs = grpc::Rpcs::new(broker, readiness.clone());
        let server = Server {
            name: NAME,
            listeners,
            routes: Routes::new(TokenServiceServer::new(rpcs)),
            grpc_names: &[SERVICE_NAME],
            descriptors: proto::FILE_DESCRIPTOR_SET,
            rules: grpc::RULES,
            catalog,
            tls: config.tls,
            http,
            readiness,
            workers,
        };
        Ok(Self { server, addrs })
    }

    /// Where it listens.
    pub fn addrs(&self) -> Listen {
        self.addrs
    }

    /// Serves until `shutdown` is cancelled, then drains.
    ///
    /// # Errors
    /// When a port or a worker fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), run::Error> {
        self.server.run(shutdown).await
    }
}

/// The `token-service` binary.
#[derive(Debug)]
pub struct TokenService;

impl cli::Service for TokenService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str =
        "The sole owner and refresher of WeChat's access tokens and tickets";
    const PORTS: Ports = config::PORTS;
    const NEEDS: Needs = NEEDS;
    type Config = Config;

    fn configure(settings: &Settings) -> Result<Config, Problems> {
        Config::from_settings(settings)
    }

    async fn migrate(_: Settings) -> anyhow::Result<()> {
        // It has no database.
        Ok(())
    }

    async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listeners = Listeners::bind(config.listen).await?;
        App::build(config, listeners).await?.run(shutdown).await?;
        Ok(())
    }
}
