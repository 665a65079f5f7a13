#![doc = include_str!("../README.md")]

mod account;
mod broadcast;
mod callback;
mod config;
mod database;
mod delivery;
mod doorbell;
mod error;
mod form;
mod grpc;
mod http;
mod message;
mod metrics;
mod migration;
mod prune;
mod rate;
mod receipt;
mod rule;
#[cfg(test)]
mod testing;
mod typing;

use std::{convert::Infallible, sync::Arc};

use proto::{
    auth::v1::auth_service_client::AuthServiceClient,
    push::v1::push_service_server::PushServiceServer,
};
use sea_orm::DbErr;
use service_kit::{
    CatalogHandle, Clock, Problems, Settings,
    catalog::{self, Needs},
    cli::Service,
    grpc::Routes,
    ops::Readiness,
    run::{self, Listeners, Server, Workers},
    settings::{DatabaseUrl, Listen, Ports},
    storage, telemetry,
};
use token_client::TokenClient;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wechat::{Client, ClientOptions};

use self::{
    account::Accounts,
    broadcast::Broadcasts,
    callback::{Callbacks, seen::Seen},
    database::Database,
    delivery::{Delivery, Depths, POLL, Queue, UPSTREAM_DEADLINE},
    doorbell::Doorbell,
    http::Http,
    message::Messages,
    prune::Pruning,
    rate::Rate,
    receipt::Receipts,
    typing::Typing,
};
pub use self::{
    config::{Config, PORTS},
    migration::Migrator,
};

/// Why push-service could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `wxhub.toml` cannot be read or is wrong.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The database's URL is malformed, or its file cannot be opened or migrated.
    #[error("the database cannot be opened")]
    Database(#[from] DbErr),
    /// The Redis URL is malformed.
    #[error("Redis cannot be used")]
    Redis(#[from] redis::RedisError),
    /// The client of WeChat's API cannot be made.
    #[error("no client of WeChat's API")]
    WeChat(#[from] wechat::BuildError),
    /// A port's address cannot be told.
    #[error("a port has no address")]
    Listener(#[from] std::io::Error),
}

/// push-service, ready to run.
#[derive(Debug)]
pub struct App {
    server: Server,
    addrs: Listen,
}

impl App {
    /// Assembles the service on open ports. SQLite is migrated here; a MySQL database is waited for until somebody
    /// migrated it.
    ///
    /// # Errors
    /// [`BuildError`]. Redis, MySQL and the other services may be away.
    pub async fn build(config: Config, listeners: Listeners) -> Result<Self, BuildError> {
        telemetry::install_tls_provider();
        metrics::describe();
        let addrs = listeners.addrs()?;
        let (catalog, reloader) = CatalogHandle::load(config.catalog, PushService::NEEDS)?;
        let clock = Clock::System;
        let database = Database {
            connection: storage::database(&config.database).await?,
            clock: clock.clone(),
        };
        if config.database.is_sqlite() {
            storage::migrate::<Migrator>(&database.connection).await?;
        }
        let doorbell = Doorbell::new(config.redis.as_ref())?;
        let seen = match &config.redis {
            Some(url) => Seen::Redis(storage::redis(url)?),
            None => Seen::memory(clock.clone()),
        };
        let wechat = Client::new(ClientOptions {
            timeout: UPSTREAM_DEADLINE,
            ..ClientOptions::new(config.wechat_api)
        })?;
        let readiness = Readiness::default();
        let store = message::store::Store {
            database: database.clone(),
        };
        let forms = form::Store {
            database: database.clone(),
        };
        let auth = AuthServiceClient::new(config.auth_service.channel());
        let accounts = Accounts { auth: auth.clone() };
        let receipt_store = receipt::store::Store {
            database: database.clone(),
        };
        let (receipts, recorder) = Receipts::new(receipt_store.clone());
        let pruning = Pruning {
            database: database.clone(),
            receipts: receipt_store,
            forms: forms.clone(),
            broadcasts: broadcast::Store {
                database: database.clone(),
            },
            max_age: config.message_max_age,
            readiness: readiness.clone(),
        };
        let tasks = TaskTracker::new();
        let messages = Messages {
            store,
            forms: forms.clone(),
            accounts: accounts.clone(),
            doorbell: doorbell.clone(),
            catalog: catalog.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
        };
        let tokens = TokenClient::new(&config.token_service);
        let typing = Typing {
            wechat: wechat.clone(),
            tokens: tokens.clone(),
            clock: clock.clone(),
        };
        let broadcasts = Broadcasts::new(
            broadcast::Store {
                database: database.clone(),
            },
            doorbell.clone(),
            catalog.clone(),
            clock.clone(),
        );
        let queue = Queue {
            database: database.clone(),
        };
        let depths = Depths {
            queue: queue.clone(),
            pauses: Arc::default(),
            catalog: catalog.clone(),
            clock: clock.clone(),
            readiness: readiness.clone(),
        };
        let delivery = Delivery {
            broadcasts: broadcasts.clone(),
            queue,
            pauses: Arc::clone(&depths.pauses),
            window: Arc::default(),
            rate: Rate::new(
                config.redis.as_ref().map(storage::redis).transpose()?,
                clock.clone(),
            ),
            clock: clock.clone(),
            catalog: catalog.clone(),
            wechat,
            tokens: tokens.clone(),
            doorbell: doorbell.clone(),
            poll: POLL,
            readiness: readiness.clone(),
            receipts: receipts.clone(),
        };

        let mut workers = Workers::default();
        workers.add("catalog", |stop| async move {
            reloader.run(stop).await;
            Ok::<_, Infallible>(())
        });
        workers.add("migrations", {
            let readiness = readiness.clone();
            |stop| async move {
                storage::await_migrations::<Migrator>(&database.connection, &readiness, &stop)
                    .await;
                stop.cancelled().await;
                Ok::<_, Infallible>(())
            }
        });
        workers.add("tokens", |stop| tokens.watch(stop));
        workers.add("doorbell", |stop| doorbell.run(stop));
        workers.add("depths", |stop| depths.run(stop));
        workers.add("pruning", |stop| pruning.run(stop));
        workers.add("receipts", |stop| recorder.run(stop));
        workers.add("delivery", |stop| delivery.run(stop));
        workers.add("broadcasts", {
            let (broadcasts, readiness) = (broadcasts.clone(), readiness.clone());
            |stop| broadcasts.run(readiness, stop)
        });
        workers.add("acceptance", |stop| async move {
            stop.cancelled().await;
            tasks.close();
            tasks.wait().await;
            Ok::<_, Infallible>(())
        });

        let http = Http {
            catalog: catalog.clone(),
            callbacks: Callbacks {
                seen,
                receipts,
                clock,
            },
            forms,
            auth,
        };
        let rpc = grpc::Service {
            messages,
            broadcasts,
            readiness: readiness.clone(),
            typing,
            accounts,
            catalog: catalog.clone(),
        };
        let server = Server {
            name: PushService::NAME,
            listeners,
            routes: Routes::new(PushServiceServer::new(rpc)),
            grpc_names: grpc::NAMES,
            descriptors: proto::FILE_DESCRIPTOR_SET,
            rules: grpc::RULES,
            catalog,
            tls: config.tls,
            http: http::router(http),
            readiness,
            workers,
        };
        Ok(Self { server, addrs })
    }

    /// Where it listens.
    pub fn addrs(&self) -> Listen {
        self.addrs
    }

    /// Serves until `shutdown` is cancelled, then drains: what was accepted is stored, what is on the wire is ended.
    ///
    /// # Errors
    /// When a port or a worker fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), run::Error> {
        self.server.run(shutdown).await
    }
}

/// Brings the database's tables up to date.
///
/// # Errors
/// When the database does not answer or refuses.
pub async fn migrate(database: &DatabaseUrl) -> Result<(), DbErr> {
    storage::migrate::<Migrator>(&storage::database(database).await?).await
}

/// The binary's verbs.
#[derive(Debug, Clone, Copy)]
pub struct PushService;

impl Service for PushService {
    const NAME: &'static str = "push-service";
    const ABOUT: &'static str = "What is said: messages to WeChat users out, WeChat's callback in";
    const PORTS: Ports = PORTS;
    const NEEDS: Needs = Needs {
        app_secrets: false,
        callbacks: true,
    };
    type Config = Config;

    fn configure(settings: &Settings) -> Result<Config, Problems> {
        Config::from_settings(settings)
    }

    async fn migrate(settings: Settings) -> anyhow::Result<()> {
        let mut problems = Problems::default();
        let url = settings.database(&mut problems, "push");
        Ok(migrate(&problems.or(url)?).await?)
    }

    async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listeners = Listeners::bind(config.listen).await?;
        Ok(App::build(config, listeners).await?.run(shutdown).await?)
    }
}
