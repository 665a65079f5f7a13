//! auth-service, its stores and a WeChat, on free ports, gone with the test.

use std::{net::SocketAddr, path::Path, time::Duration};

use auth_service::{App, Config};
use proto::auth::v1::{
    ExchangeTicketRequest, GetUserRequest, LoginRequest, RevokeSessionRequest, Session, User,
    VerifySessionRequest, VerifySessionResponse, auth_service_client::AuthServiceClient,
};
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, HeaderMap},
};
use sandbox::{Fault, Sandbox};
use sea_orm::ConnectionTrait as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use service_kit::{
    Sealer,
    client::Peer,
    run::Listeners,
    settings::{DatabaseUrl, Listen, Upstream},
    storage, telemetry,
};
use test_support::{MariaDb, Redis, Tokens, listener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::browser::Browser;

/// The mini program.
pub(crate) const SHOP: &str = "wx0000000000000001";
/// The official account.
pub(crate) const NEWS: &str = "wx0000000000000002";
/// WeChat's interface for logins.
pub(crate) const CODE_TO_SESSION: &str = "/sns/jscode2session";
/// The key of the caller who may do everything with every app.
pub(crate) const KEY: &str = "dev-key";
/// The key of a caller who may do everything, but with `news` only.
pub(crate) const NEWS_KEY: &str = "news-key";
/// The key of a caller who may do everything, but with `shop` only.
pub(crate) const SHOP_KEY: &str = "shop-key";
/// Long enough for anything that happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The usual apps and callers.
pub(crate) const CATALOG: &str = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret = "dev-secret-shop"
verify_files = { "MP_verify_abc.txt" = "abc" }

[[apps]]
app_id = "wx0000000000000002"
name = "news"
kind = "official_account"
secret = "dev-secret-news"
oauth = { return_hosts = ["h5.example.com", "localhost"] }

[[apps]]
app_id = "wx0000000000000003"
name = "club"
kind = "official_account"
secret = "dev-secret-club"
oauth = { return_hosts = ["club.example.com"] }

[[callers]]
name = "dev"
key_sha256 = "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e"
apps = ["*"]
scopes = ["auth.verify", "auth.read", "auth.write"]

[[callers]]
name = "news-team"
key_sha256 = "657f3269b4efb646e054a74f0ec910afc8aac8fc517d39d9e5f0aa56f2bf920e"
apps = ["news"]
scopes = ["auth.verify", "auth.read", "auth.write"]

[[callers]]
name = "shop-team"
key_sha256 = "44cfdcdd88354fa1412781f5a01a901c9112db33bfa8b165fbec9b618d9cf112"
apps = ["shop"]
scopes = ["auth.verify", "auth.read"]
"#;

/// What a world is made of where it is not embedded, with the usual apps and the sandbox for WeChat.
#[derive(Default)]
pub(crate) struct Setup {
    /// Keeps the sessions.
    pub(crate) redis: Option<Redis>,
    /// Keeps the users.
    pub(crate) database: Option<DatabaseUrl>,
    /// What `wxhub.toml` says.
    pub(crate) catalog: Option<String>,
    /// Where WeChat is.
    pub(crate) wechat: Option<SocketAddr>,
    /// What browsers call the service; its own address where it is not said.
    pub(crate) public_url: Option<Url>,
}

/// Everything that one test talks to.
pub(crate) struct World {
    /// What WeChat does and saw.
    pub(crate) wechat: sandbox::State,
    /// What stands in for token-service.
    pub(crate) tokens: Tokens,
    /// The Redis that sessions are in, if they are.
    pub(crate) redis: Option<Redis>,
    /// Where users are.
    pub(crate) database: DatabaseUrl,
    /// What another replica is started with.
    pub(crate) config: Config,
    addrs: Listen,
    http: reqwest::Client,
    // Aborted when the world goes, before the folder does.
    tasks: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl World {
    /// With Redis and MariaDB.
    pub(crate) async fn with_servers() -> Self {
        let database = MariaDb::database().await;
        let database = DatabaseUrl::new(database.url());
        // As most administrators leave it: the tables must not rely on the database's collation.
        let connection = storage::database(&database).await.unwrap();
        let collation = "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci";
        connection.execute_unprepared(collation).await.unwrap();
        connection.close().await.unwrap();
        auth_service::migrate(&database).await.unwrap();
        Self::start(Setup {
            redis: Some(Redis::start().await),
            database: Some(database),
            ..Setup::default()
        })
        .await
    }

    /// With memory and SQLite.
    pub(crate) async fn embedded() -> Self {
        Self::start(Setup::default()).await
    }

    pub(crate) async fn start(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tasks = JoinSet::new();

        let accounts = sandbox::Config::dev("http://127.0.0.1:9");
        let wechat = Sandbox::build(accounts, listener().await).await.unwrap();
        let (state, wechat_at) = (wechat.state(), wechat.address());
        tasks.spawn(async move { wechat.run(CancellationToken::new()).await.unwrap() });

        let database = setup.database.unwrap_or_else(|| {
            DatabaseUrl::new(format!("sqlite://{}/auth.sqlite", folder.path().display()))
        });
        let path = folder.path().join("wxhub.toml");
        std::fs::write(&path, setup.catalog.as_deref().unwrap_or(CATALOG)).unwrap();
        let redis_url = setup.redis.as_ref().map(Redis::url);
        let tokens = Tokens::new(&format!("http://{wechat_at}"));
        let tokens_at = tokens.serve(&mut tasks).await;
        let mut config = config(
            &path,
            redis_url,
            database.clone(),
            setup.wechat.unwrap_or(wechat_at),
            tokens_at,
        );
        config.public_url = setup.public_url;
        let addrs = serve(config.clone(), &mut tasks).await;
        Self {
            wechat: state,
            tokens,
            redis: setup.redis,
            database,
            config,
            addrs,
            http: http_client(),
            tasks,
            _folder: folder,
        }
    }

    /// Another replica, on the same stores and behind the same URL. Answers where a load balancer finds it.
    pub(crate) async fn replica(&mut self) -> SocketAddr {
        let mut config = self.config.clone();
        let own = format!("http://{}", self.addrs.http).parse().unwrap();
        config.public_url.get_or_insert(own);
        serve(config, &mut self.tasks).await.http
    }

    pub(crate) async fn is_ready(&self) -> bool {
        let url = format!("http://{}/readyz", self.addrs.ops);
        self.http.get(url).send().await.unwrap().status() == 200
    }

    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.addrs.ops);
        let answer = self.http.get(url).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// A user's device gets a code from WeChat.
    pub(crate) fn js_code(&self, open_id: Option<&str>) -> String {
        self.wechat.login(SHOP, open_id).unwrap().js_code
    }

    /// What WeChat answers to the next login.
    pub(crate) fn fault(&self, change: impl FnOnce(&mut Fault)) {
        let mut fault: Fault =
            serde_json::from_value(json!({ "endpoint": CODE_TO_SESSION })).unwrap();
        change(&mut fault);
        self.wechat.add_fault(fault).unwrap();
    }

    /// How often WeChat was asked to exchange a code.
    pub(crate) fn exchanges(&self) -> u64 {
        self.wechat.calls(None).total(CODE_TO_SESSION)
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Response {
        let url = format!("http://{}{path}", self.addrs.http);
        self.http.post(url).body(body).send().await.unwrap()
    }

    pub(crate) async fn post_login(&self, js_code: &str) -> Response {
        let body = json!({ "app_id": "shop", "js_code": js_code });
        self.post("/login", body.to_string()).await
    }

    /// Logs in over HTTP, and expects to succeed.
    pub(crate) async fn login(&self, js_code: &str) -> String {
        let answer = self.post_login(js_code).await;
        assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap());
        answer.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    pub(crate) async fn get(&self, path: &str, authorization: Option<&str>) -> Response {
        let url = format!("http://{}{path}", self.addrs.http);
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        self.http.get(url).headers(headers).send().await.unwrap()
    }

    /// What any service answers.
    pub(crate) async fn fetch(url: &str) -> Response {
        http_client().get(url).send().await.unwrap()
    }

    /// What a device posts with its session.
    pub(crate) async fn post_as(
        &self,
        session: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let url = format!("http://{}{path}", self.addrs.http);
        let request = self.http.post(url).header(AUTHORIZATION, session);
        request.body(body).send().await.unwrap()
    }

    pub(crate) async fn me(&self, token: &str) -> Response {
        self.get("/me", Some(token)).await
    }

    pub(crate) async fn logout(&self, token: &str) -> Response {
        let url = format!("http://{}/logout", self.addrs.http);
        let request = self.http.post(url).header(AUTHORIZATION, token);
        request.send().await.unwrap()
    }

    /// Somebody's browser, with no cookies yet.
    pub(crate) fn browser(&self) -> Browser {
        Browser::new(self.addrs.http)
    }

    /// The service as the caller with this key sees it.
    pub(crate) fn caller(&self, key: &str) -> Grpc {
        Grpc::connect(self.addrs.grpc, key)
    }

    /// A connection to the gRPC port, without a key.
    pub(crate) fn channel(&self) -> Channel {
        channel(self.addrs.grpc)
    }
}

fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"));
    endpoint.unwrap().connect_lazy()
}

/// Shows a caller's key.
#[derive(Clone)]
pub(crate) struct Key(MetadataValue<Ascii>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// auth-service's RPCs, as a team calls them.
#[derive(Clone)]
pub(crate) struct Grpc(pub(crate) AuthServiceClient<InterceptedService<Channel, Key>>);

impl Grpc {
    pub(crate) fn connect(addr: SocketAddr, key: &str) -> Self {
        let authorization = format!("Bearer {key}").parse().unwrap();
        let client = AuthServiceClient::with_interceptor(channel(addr), Key(authorization));
        Self(client)
    }

    pub(crate) async fn login(
        &mut self,
        app_id: &str,
        js_code: &str,
        nickname: &str,
    ) -> Result<Session, Status> {
        let request = LoginRequest {
            app_id: app_id.to_owned(),
            js_code: js_code.to_owned(),
            nickname: nickname.to_owned(),
        };
        let answer = self.0.login(request).await?;
        Ok(answer.into_inner().session.unwrap())
    }

    pub(crate) async fn verify(&mut self, token: &str) -> Result<VerifySessionResponse, Status> {
        let session_token = token.to_owned();
        let request = VerifySessionRequest { session_token };
        Ok(self.0.verify_session(request).await?.into_inner())
    }

    pub(crate) async fn revoke(&mut self, token: &str) -> Result<(), Status> {
        let request = RevokeSessionRequest {
            session_token: token.to_owned(),
            ..RevokeSessionRequest::default()
        };
        self.0.revoke_session(request).await?;
        Ok(())
    }

    pub(crate) async fn exchange(&mut self, ticket: &str, host: &str) -> Result<Session, Status> {
        let request = ExchangeTicketRequest {
            ticket: ticket.to_owned(),
            host: host.to_owned(),
        };
        let answer = self.0.exchange_ticket(request).await?;
        Ok(answer.into_inner().session.unwrap())
    }

    pub(crate) async fn user(&mut self, request: GetUserRequest) -> Result<User, Status> {
        Ok(self.0.get_user(request).await?.into_inner().user.unwrap())
    }
}

/// What a service needs to know.
pub(crate) fn config(
    catalog: &Path,
    redis_url: Option<String>,
    database_url: DatabaseUrl,
    wechat: SocketAddr,
    tokens: SocketAddr,
) -> Config {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let wechat: reqwest::Url = format!("http://{wechat}").parse().unwrap();
    Config {
        listen: Listen {
            grpc: any_port,
            http: any_port,
            ops: any_port,
        },
        catalog: catalog.to_owned(),
        redis_url: redis_url.map(SecretString::from),
        session_max_age: auth_service::session::MAX_AGE,
        database_url,
        sealer: Sealer::ephemeral(),
        upstream: Upstream {
            api: wechat.clone(),
            open: wechat,
        },
        public_url: None,
        token_service: Peer::new(
            vec![Endpoint::from_shared(format!("http://{tokens}")).unwrap()],
            SecretString::from("key"),
        ),
        tls: None,
    }
}

pub(crate) async fn serve(mut config: Config, tasks: &mut JoinSet<()>) -> Listen {
    telemetry::install_tls_provider();
    telemetry::metrics_handle();
    let listeners = Listeners::bind(config.listen).await.unwrap();
    let http = listeners.addrs().unwrap().http;
    let own = || format!("http://{http}").parse().unwrap();
    config.public_url.get_or_insert_with(own);
    let app = App::build(config, listeners).await.unwrap();
    let addrs = app.addrs();
    tasks.spawn(async move { app.run(CancellationToken::new()).await.unwrap() });
    addrs
}

fn http_client() -> reqwest::Client {
    telemetry::install_tls_provider();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// The JSON of an error.
pub(crate) async fn error(answer: Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert!(body["request_id"].is_string(), "{body}");
    (status, body)
}
