#![doc = include_str!("../README.md")]

pub mod account;
pub mod binding;
mod claim;
pub mod config;
mod cookie;
pub mod error;
mod followers;
mod grpc;
mod http;
pub mod login;
mod memory;
mod metrics;
pub mod migration;
mod oauth;
mod page;
pub mod session;
mod ticket;
pub mod user;
pub mod user_data;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use proto::auth::v1::auth_service_server::{AuthServiceServer, SERVICE_NAME};
use sea_orm::DbErr;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use service_kit::{
    AppKind, CatalogHandle, Clock, Problems, Settings,
    catalog::{self, Needs},
    cli,
    grpc::Routes,
    ops::Readiness,
    run::{self, Listeners, Server, Workers},
    settings::{Listen, Ports},
    storage,
};
use token_client::TokenClient;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;
use url::Url;
use wechat::AppId;

use self::{
    account::Accounts,
    binding::{BindFlow, Bindings},
    claim::Claims,
    cookie::Cookies,
    followers::Followers,
    login::Logins,
    migration::Migrator,
    oauth::OAuth,
    session::{Sessions, Token},
    ticket::Tickets,
    user::Users,
    user_data::{Encrypted, UserData},
};
pub use self::{config::Config, error::Error, migration::migrate};

/// The service's name.
const NAME: &str = "auth-service";
/// The secrets that it resolves.
const NEEDS: Needs = Needs {
    app_secrets: true,
    callbacks: false,
};

/// The service, listening but not yet serving.
#[derive(Debug)]
pub struct App {
    server: Server,
    addrs: Listen,
    auth: Auth,
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
    /// The database's URL is malformed, or the SQLite file cannot be opened or migrated.
    #[error("the database cannot be used")]
    Database(#[from] DbErr),
    /// An app has `oauth`, and the service does not know its own URL.
    #[error(
        "WXHUB_PUBLIC_URL is not set: app {app} has oauth, which needs this service's URL as a browser sees it\n    for example: WXHUB_PUBLIC_URL=https://auth.example.com"
    )]
    PublicUrl {
        /// The app's name.
        app: String,
    },
    /// No client of WeChat can be made.
    #[error("no client of WeChat can be made")]
    WeChat(#[from] wechat::BuildError),
    /// The ports do not tell their addresses.
    #[error("the ports do not tell their addresses")]
    Listeners(#[source] io::Error),
}

/// What RPCs and routes work with; clones share it.
#[derive(Debug, Clone)]
struct Auth {
    catalog: CatalogHandle,
    logins: Logins,
    oauth: OAuth,
    sessions: Sessions,
    users: Users,
    user_data: UserData,
    accounts: Accounts,
    bindings: Bindings,
    binds: BindFlow,
    /// Places for those who follow a bind link.
    followers: Followers,
    cookies: Cookies,
    tokens: TokenClient,
    /// WeChat's OAuth pages.
    open_url: Url,
    /// This service as a browser sees it.
    public_url: Option<Url>,
    clock: Clock,
}

impl Auth {
    /// Whether browsers see it without HTTPS: it runs on a machine that develops.
    fn is_plain_http(&self) -> bool {
        let url = self.public_url.as_ref();
        url.is_some_and(|url| url.scheme() == "http")
    }

    /// Tells a failure to whoever asked.
    fn status(&self, error: &Error) -> Status {
        error::to_status(error, self.clock.now())
    }

    /// This service as a browser sees it, which every link to it needs.
    fn public_url(&self) -> Result<&Url, Error> {
        self.public_url.as_ref().ok_or(Error::PublicUrlMissing)
    }

    /// Opens what WeChat encrypted for the user of a session with a mini program that `open_to` admits.
    async fn open_user_data(
        &self,
        token: &Token,
        open_to: impl FnOnce(&AppId) -> bool,
        encrypted: &Encrypted<'_>,
    ) -> Result<Value, Error> {
        let (session, _) = self.sessions.verify(token, open_to).await?;
        let catalog = self.catalog.current();
        let app = catalog
            .app(session.app_id.as_str())
            .ok_or(Error::SessionInvalid)?;
        if app.kind != AppKind::MiniProgram {
            let problem = format!(
                "is of a session with {}, which is no mini program",
                app.name
            );
            return Err(Error::field("session_token", problem));
        }
        self.user_data.decrypt(app, &session, encrypted).await
    }
}

/// Where a browser on this machine finds the service.
fn local_url(http: SocketAddr) -> Option<Url> {
    let host = if http.ip().is_unspecified() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        http.ip()
    };
    Url::parse(&format!("http://{}", SocketAddr::new(host, http.port()))).ok()
}

impl App {
    /// Assembles the service. With SQLite it brings the tables up to date; Redis and MySQL may be away.
    ///
    /// # Errors
    /// When `wxhub.toml` or a URL is wrong, or the SQLite file cannot be used.
    pub async fn build(config: Config, listeners: Listeners) -> Result<Self, BuildError> {
        let addrs = listeners.addrs().map_err(BuildError::Listeners)?;
        let (catalog, reloader) = CatalogHandle::load(config.catalog, NEEDS)?;
        let public_url = match config.public_url {
            None if config.database_url.is_sqlite() => local_url(addrs.http),
            url => url,
        };
        let catalog_now = catalog.current();
        let mut with_oauth = catalog_now.apps().iter();
        let with_oauth = with_oauth.find(|app| !app.oauth_return_hosts.is_empty());
        if let (None, Some(app)) = (&public_url, with_oauth) {
            let app = app.name.clone();
            return Err(BuildError::PublicUrl { app });
        }
        let redis = config.redis_url.as_ref().map(storage::redis).transpose()?;
        let database = storage::database(&config.database_url).await?;
        if config.database_url.is_sqlite() {
            storage::migrate::<Migrator>(&database).await?;
        }
        let wechat = wechat::ClientOptions::new(config.upstream.api);
        let wechat = wechat::Client::new(wechat)?;

        let clock = Clock::System;
        let users = Users::new(database.clone());
        let sealer = config.sealer;
        let max_age = config.session_max_age;
        let sessions = match (&redis, &config.redis_url) {
            (Some(redis), Some(url)) => {
                let client = redis::Client::open(url.expose_secret())?;
                Sessions::in_redis(
                    redis.clone(),
                    client,
                    max_age,
                    sealer.clone(),
                    clock.clone(),
                )
            }
            _ => Sessions::in_memory(max_age, sealer.clone(), clock.clone()),
        };
        let under_way = TaskTracker::new();
        let tickets = Tickets::new(redis.clone(), sealer.clone(), clock.clone());
        let tokens = TokenClient::new(&config.token_service);
        let user_data = UserData::new(
            wechat.clone(),
            tokens.clone(),
            sessions.clone(),
            clock.clone(),
            under_way.clone(),
        );
        let accounts = Accounts::new(
            database.clone(),
            redis.clone(),
            tickets.clone(),
            clock.clone(),
            under_way.clone(),
        );
        let bindings = Bindings::new(database.clone(), clock.clone());
        let oauth = OAuth {
            wechat: wechat.clone(),
            open_url: config.upstream.open.clone(),
            public_url: public_url.clone(),
            catalog: catalog.clone(),
            users: users.clone(),
            sessions: sessions.clone(),
            tickets: tickets.clone(),
            claims: Claims::new(redis.clone(), sealer.clone(), clock.clone()),
            clock: clock.clone(),
            tasks: under_way.clone(),
        };
        let binds = BindFlow {
            catalog: catalog.clone(),
            accounts: accounts.clone(),
            bindings: bindings.clone(),
            tickets,
            oauth: oauth.clone(),
            clock: clock.clone(),
            under_way: under_way.clone(),
        };
        let logins = Logins::new(
            wechat,
            users.clone(),
            sessions.clone(),
            redis,
            sealer,
            clock.clone(),
            under_way.clone(),
        );
        let auth = Auth {
            catalog: catalog.clone(),
            logins,
            oauth,
            sessions,
            users,
            user_data,
            accounts,
            bindings,
            binds,
            followers: Followers::default(),
            cookies: Cookies::at(public_url.as_ref()),
            tokens: tokens.clone(),
            open_url: config.upstream.open,
            public_url,
            clock,
        };
        metrics::describe();

        let readiness = Readiness::default();
        let mut workers = Workers::default();
        workers.add("wxhub.toml", |stop| async move {
            reloader.run(stop).await;
            Ok::<_, Error>(())
        });
        let ready = readiness.clone();
        workers.add("migrations", |stop| async move {
            storage::await_migrations::<Migrator>(&database, &ready, &stop).await;
            stop.cancelled().await;
            Ok::<_, Error>(())
        });
        workers.add("tokens", |stop| tokens.watch(stop));
        let revocations = auth.sessions.clone();
        workers.add("revocations", |stop| async move {
            revocations.run(stop).await;
            Ok::<_, Error>(())
        });
        workers.add("logins", |stop| async move {
            stop.cancelled().await;
            under_way.close();
            under_way.wait().await;
            Ok::<_, Error>(())
        });
        let server = Server {
            name: NAME,
            listeners,
            routes: Routes::new(AuthServiceServer::new(grpc::Service::new(auth.clone()))),
            grpc_names: &[SERVICE_NAME],
            descriptors: proto::FILE_DESCRIPTOR_SET,
            rules: grpc::RULES,
            catalog,
            tls: config.tls,
            http: http::router(auth.clone()),
            readiness,
            workers,
        };
        Ok(Self {
            server,
            addrs,
            auth,
        })
    }

    /// Serves the page `/debug`, too, by which a developer tries everything without WeChat. There is no setting for it:
    /// `wxhub dev` alone calls this.
    #[must_use]
    pub fn with_debug_page(mut self) -> Self {
        let debug = http::debug_router(self.auth.clone());
        self.server.http = self.server.http.merge(debug);
        self
    }

    /// Where it listens.
    pub fn addrs(&self) -> Listen {
        self.addrs
    }

    /// Serves until `shutdown` is cancelled, then drains. It is ready once the database's migrations are applied.
    ///
    /// # Errors
    /// When a part fails that must not.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), run::Error> {
        self.server.run(shutdown).await
    }
}

/// The `auth-service` binary.
#[derive(Debug)]
pub struct AuthService;

impl cli::Service for AuthService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = "Who the user is: WeChat logins in, wxhub sessions out";
    const PORTS: Ports = config::PORTS;
    const NEEDS: Needs = NEEDS;
    type Config = Config;

    fn configure(settings: &Settings) -> Result<Config, Problems> {
        Config::from_settings(settings)
    }

    async fn migrate(settings: Settings) -> anyhow::Result<()> {
        let mut problems = Problems::default();
        let url = settings.database(&mut problems, "auth");
        Ok(migrate(&problems.or(url)?).await?)
    }

    async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listeners = Listeners::bind(config.listen).await?;
        let app = App::build(config, listeners).await?;
        Ok(app.run(shutdown).await?)
    }
}
