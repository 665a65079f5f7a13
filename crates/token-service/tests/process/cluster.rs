//! Three processes of token-service, their Redis and a WeChat, gone with the test.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use proto::token::v1::{
    AccessToken, GetAccessTokenRequest, RefreshAccessTokenRequest, ReportInvalidAccessTokenRequest,
    token_service_client::TokenServiceClient,
};
use redis::aio::MultiplexedConnection;
use service_kit::{
    Clock,
    client::{Peer, PeerChannel},
};
use tempfile::TempDir;
use test_support::{FaultProxy, Process, Redis, Sandbox, eventually, free_port};
use tonic::{Status, transport::Endpoint};

/// Long enough for anything that happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const REPLICAS: usize = 3;
const KEY: &str = "dev-key";
/// printf %s dev-key | sha256sum
const KEY_SHA256: &str = "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e";
/// Of zeros: what it seals is gone with the test.
const MASTER_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// What its entry in the store and its channel are called: see `credential::store::redis`.
const CHANGED: &str = "wxhub:token:v1:changed";

pub(crate) type Rpc = TokenServiceClient<PeerChannel>;

pub(crate) struct Cluster {
    pub(crate) apps: Vec<App>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) wechat: Sandbox,
    pub(crate) redis: Redis,
    _folder: TempDir,
}

/// An app of `wxhub.toml`, which is an account at WeChat.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) id: String,
    pub(crate) classic: bool,
}

impl App {
    /// Even ones are in classic mode, odd ones in stable mode.
    fn number(number: usize) -> Self {
        Self {
            id: format!("wx{number:016}"),
            classic: number.is_multiple_of(2),
        }
    }

    /// Where its tokens come from.
    pub(crate) fn endpoint(&self) -> &'static str {
        if self.classic {
            "/cgi-bin/token"
        } else {
            "/cgi-bin/stable_token"
        }
    }

    pub(crate) fn mode(&self) -> &'static str {
        if self.classic { "classic" } else { "stable" }
    }

    /// Its access_token in Redis.
    pub(crate) fn record(&self) -> String {
        format!("wxhub:token:v1:{{{}}}:access_token", self.id)
    }
}

impl Cluster {
    /// `apps` apps, half of them in classic mode; every replica serves a token of each.
    pub(crate) async fn start(apps: usize) -> Self {
        service_kit::telemetry::install_tls_provider();
        let apps: Vec<_> = (0..apps).map(App::number).collect();
        let wechat = Sandbox::with_config(accounts(&apps)).await;
        let redis = Redis::start().await;
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("wxhub.toml");
        std::fs::write(&catalog, toml(&apps)).unwrap();

        let mut cluster = Self {
            apps,
            replicas: Vec::new(),
            wechat,
            redis,
            _folder: folder,
        };
        let mut redis = cluster.connect().await;
        for index in 0..REPLICAS {
            // A user of its own tells in Redis who does what.
            let () = redis::cmd("ACL")
                .arg("SETUSER")
                .arg(user(index))
                .arg(&["on", "nopass", "~*", "&*", "+@all"])
                .query_async(&mut redis)
                .await
                .unwrap();
            let replica = Replica::new(
                index,
                &cluster.wechat,
                &cluster.redis,
                catalog.to_str().unwrap(),
            );
            cluster.replicas.push(replica.await);
        }
        for replica in &cluster.replicas {
            replica.start(&cluster.apps[0]).await;
        }
        cluster.fill().await;
        cluster
    }

    /// Has a first token fetched for every app, here and there, and waits until every replica has it.
    async fn fill(&self) {
        for (number, app) in self.apps.iter().enumerate() {
            let fetched = self.replicas[number % REPLICAS].token(app).await.unwrap();
            for replica in &self.replicas {
                let token = replica.token(app).await.unwrap();
                assert_eq!(token.version, fetched.version);
            }
        }
    }

    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.redis.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// All replicas, as the company's programs reach them.
    pub(crate) fn peer(&self) -> Peer {
        let endpoints = self.replicas.iter().map(Replica::endpoint).collect();
        Peer::new(endpoints, KEY.into())
    }

    /// Makes the app's token as old as if it were to be refreshed `ahead` from now, and so old that an operator or a report
    /// may replace it. Returns once every replica knows, or has another already.
    pub(crate) async fn age(&self, app: &App, ahead: Duration) {
        let mut rpcs: Vec<_> = self.replicas.iter().map(Replica::rpc).collect();
        let version = token(&mut rpcs[0], app).await.unwrap().version;
        let now = Clock::System.unix_millis();
        let refresh = now + u64::try_from(ahead.as_millis()).unwrap();
        let mut redis = self.connect().await;
        let () = redis::pipe()
            .hset_multiple(app.record(), &[("refresh", refresh), ("floor", now)])
            .publish(CHANGED, format!("{}:access_token", app.id))
            .query_async(&mut redis)
            .await
            .unwrap();
        for rpc in &mut rpcs {
            eventually("the replica knows", PATIENCE, async || {
                let token = token(rpc, app).await.unwrap();
                let time = token.refresh_time.unwrap();
                let millis = time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000;
                u64::try_from(millis).unwrap() == refresh || token.version > version
            })
            .await;
        }
    }

    /// Calls for the app's tokens that WeChat carried out.
    pub(crate) fn calls(&self, app: &App) -> u64 {
        self.wechat.calls(Some(&app.id)).count(app.endpoint(), "ok")
    }

    /// What every replica wrote to its log at level WARN and above.
    pub(crate) fn log(&self) -> String {
        let log = self.replicas.iter().map(Replica::log);
        log.collect::<Vec<_>>().join("\n")
    }
}

fn accounts(apps: &[App]) -> sandbox::Config {
    let accounts = apps.iter().map(|App { id, .. }| {
        format!(
            "[[accounts]]\napp_id = \"{id}\"\nsecret = \"secret\"\nkind = \"official_account\"\noriginal_id = \"gh_{id}\"\n"
        )
    });
    sandbox::Config::from_toml(&accounts.collect::<String>()).unwrap()
}

/// Where the apps and the one caller, who may do everything, are declared.
fn toml(apps: &[App]) -> String {
    let mut toml = format!(
        "[[callers]]\nname = \"dev\"\nkey_sha256 = \"{KEY_SHA256}\"\napps = [\"*\"]\nscopes = [\"token.read\", \"admin\"]\n"
    );
    for (number, app) in apps.iter().enumerate() {
        write!(
            toml,
            "[[apps]]\napp_id = \"{}\"\nname = \"app-{number}\"\nkind = \"official_account\"\nsecret = \"secret\"\ntoken_mode = \"{}\"\n",
            app.id,
            app.mode(),
        )
        .unwrap();
    }
    toml
}

pub(crate) fn user(replica: usize) -> String {
    format!("replica-{replica}")
}

/// The replica whose user in Redis this is.
pub(crate) fn replica_of(user: &str) -> Option<usize> {
    user.strip_prefix("replica-")?.parse().ok()
}

pub(crate) struct Replica {
    grpc: SocketAddr,
    /// Its way to Redis.
    pub(crate) line: FaultProxy,
    settings: Vec<(&'static str, String)>,
    process: Mutex<Option<Process>>,
    /// Grows with every start and every kill: even while it is down.
    life: AtomicU64,
    log: Mutex<Vec<String>>,
}

impl Replica {
    async fn new(index: usize, wechat: &Sandbox, redis: &Redis, catalog: &str) -> Self {
        let line = FaultProxy::start(&redis.url()).await;
        let [grpc, http, ops] = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let settings = vec![
            ("WXHUB_CONFIG", catalog.to_owned()),
            ("WXHUB_GRPC_ADDR", grpc.to_string()),
            ("WXHUB_HTTP_ADDR", http.to_string()),
            ("WXHUB_OPS_ADDR", ops.to_string()),
            ("WXHUB_MASTER_KEY", MASTER_KEY.to_owned()),
            ("WXHUB_WECHAT_API_URL", wechat.url().to_owned()),
            (
                "WXHUB_REDIS_URL",
                format!("redis://{}:any@{}", user(index), line.address()),
            ),
            ("RUST_LOG", "warn".to_owned()),
        ];
        Self {
            grpc,
            line,
            settings,
            process: Mutex::default(),
            life: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// Starts the process. Returns how long it took from there to its first answer, a token of `app`.
    pub(crate) async fn start(&self, app: &App) -> Duration {
        let settings = self.settings.iter();
        let begun = Instant::now();
        let process = Process::start(
            env!("CARGO_BIN_EXE_token-service"),
            [],
            settings.map(|(name, value)| (*name, value.as_str())),
        );
        *self.process.lock().unwrap() = Some(process);
        let deadline = begun + PATIENCE;
        while self.token(app).await.is_err() {
            assert!(Instant::now() < deadline, "no answer:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let took = begun.elapsed();
        self.life.fetch_add(1, Ordering::SeqCst);
        took
    }

    /// `kill -9`.
    pub(crate) fn kill(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
        if let Some(process) = self.process.lock().unwrap().take() {
            process.kill();
            self.log.lock().unwrap().extend(process.stderr());
        }
    }

    /// The number of its life, if it lives.
    pub(crate) fn alive(&self) -> Option<u64> {
        let life = self.life.load(Ordering::SeqCst);
        (!life.is_multiple_of(2)).then_some(life)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::try_from(format!("http://{}", self.grpc)).unwrap()
    }

    /// Its own port, not balanced.
    pub(crate) fn rpc(&self) -> Rpc {
        let peer = Peer::new(vec![self.endpoint()], KEY.into());
        TokenServiceClient::new(peer.channel())
    }

    async fn token(&self, app: &App) -> Result<AccessToken, Status> {
        token(&mut self.rpc(), app).await
    }

    fn log(&self) -> String {
        let mut log = self.log.lock().unwrap().clone();
        if let Some(process) = &*self.process.lock().unwrap() {
            log.extend(process.stderr());
        }
        log.join("\n")
    }
}

pub(crate) async fn token(rpc: &mut Rpc, app: &App) -> Result<AccessToken, Status> {
    let request = GetAccessTokenRequest {
        app_id: app.id.clone(),
    };
    let answer = rpc.get_access_token(request).await?;
    Ok(answer.into_inner().access_token.unwrap())
}

pub(crate) async fn report(rpc: &mut Rpc, app: &App, version: u64) -> Result<AccessToken, Status> {
    let request = ReportInvalidAccessTokenRequest {
        app_id: app.id.clone(),
        version,
        errcode: 40001,
    };
    let answer = rpc.report_invalid_access_token(request).await?;
    Ok(answer.into_inner().access_token.unwrap())
}

pub(crate) async fn force(rpc: &mut Rpc, app: &App) -> Result<AccessToken, Status> {
    let request = RefreshAccessTokenRequest {
        app_id: app.id.clone(),
        force: true,
    };
    let answer = rpc.refresh_access_token(request).await?;
    Ok(answer.into_inner().access_token.unwrap())
}
