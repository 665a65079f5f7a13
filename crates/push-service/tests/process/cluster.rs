//! Three processes of push-service, their stores, and the services around them, gone with the test.

use std::{net::SocketAddr, sync::Mutex, time::Duration};

use axum::Router;
use proto::push::v1::{GetMessageRequest, push_service_client::PushServiceClient};
use sandbox::{Deliver, Fault};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbErr, QueryResult, Statement};
use service_kit::{
    client::{Peer, PeerChannel},
    settings::DatabaseUrl,
    storage,
};
use tempfile::TempDir;
use test_support::{
    Database, FaultProxy, MariaDb, Process, Redis, Sandbox, Tokens, eventually, free_port, listener,
};
use tokio::task::JoinSet;
use tonic::{Code, transport::Endpoint};

/// The development world's mini program and official account.
pub(crate) const SHOP: &str = "wx0000000000000001";
pub(crate) const NEWS: &str = "wx0000000000000002";
pub(crate) const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";
pub(crate) const CUSTOM_SEND: &str = "/cgi-bin/message/custom/send";
/// Long enough for anything that happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long WeChat takes for a message.
const LATENCY_MS: u64 = 50;
const REPLICAS: usize = 3;
const BINARY: &str = env!("CARGO_BIN_EXE_push-service");
/// The apps, and the one caller, whose key is dev-key. The send_rate holds nothing back: Redis is asked, that is all.
const CATALOG: &str = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret = "unused"
on_ambiguous = "at_least_once"

[[apps]]
app_id = "wx0000000000000002"
name = "news"
kind = "official_account"
secret = "unused"
on_ambiguous = "at_least_once"
send_rate = 5000

[[callers]]
name = "dev"
key_sha256 = "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e"
apps = ["*"]
scopes = ["push.send", "push.read"]
"#;

pub(crate) type Rpc = PushServiceClient<PeerChannel>;

pub(crate) struct Cluster {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) wechat: Sandbox,
    /// The replicas' way to WeChat.
    pub(crate) line: FaultProxy,
    pub(crate) redis: Redis,
    pub(crate) server: MariaDb,
    pub(crate) database: DatabaseConnection,
    _folder: TempDir,
    _tasks: JoinSet<()>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        service_kit::telemetry::install_tls_provider();
        let mut tasks = JoinSet::new();
        let mut config = sandbox::Config::dev(&answering(&mut tasks).await);
        for account in &mut config.accounts {
            // Nothing is to be received here: users write to the mini program alone.
            account.callback = account.callback.take().filter(|_| account.app_id == SHOP);
        }
        let wechat = Sandbox::with_config(config).await;
        let (line, redis, server) = tokio::join!(
            FaultProxy::start(wechat.url()),
            Redis::start(),
            MariaDb::start()
        );
        let database = server.create_database().await;
        let tokens = Tokens::new(wechat.url()).serve(&mut tasks).await;
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("wxhub.toml");
        std::fs::write(&catalog, CATALOG).unwrap();

        let settings = [
            ("WXHUB_CONFIG", catalog.display().to_string()),
            ("WXHUB_DATABASE_URL", database.url().to_owned()),
            ("WXHUB_REDIS_URL", redis.url()),
            ("WXHUB_WECHAT_API_URL", line.url(wechat.url())),
            ("WXHUB_TOKEN_URL", format!("http://{tokens}")),
            // Nobody asks it here.
            ("WXHUB_AUTH_URL", format!("http://{tokens}")),
            ("WXHUB_CALLER_KEY", "unused".to_owned()),
            ("RUST_LOG", "warn".to_owned()),
        ];
        migrate(&database).await;
        let replicas = (0..REPLICAS).map(|_| Replica::new(&settings)).collect();
        let url = DatabaseUrl::new(database.url().to_owned());
        let cluster = Self {
            replicas,
            wechat,
            line,
            redis,
            server,
            database: storage::database(&url).await.unwrap(),
            _folder: folder,
            _tasks: tasks,
        };
        for replica in &cluster.replicas {
            replica.start();
        }
        for replica in &cluster.replicas {
            replica.answers().await;
        }
        cluster
    }

    /// WeChat takes its time from here on. Faults that are added before come first.
    pub(crate) fn slow_wechat(&self) {
        for endpoint in [TEMPLATE_SEND, CUSTOM_SEND] {
            let slow = Fault {
                delay_ms: Some(LATENCY_MS),
                times: u32::MAX,
                ..Fault::at(endpoint)
            };
            self.wechat.add_fault(slow).unwrap();
        }
    }

    /// All replicas, as the company's programs reach them.
    pub(crate) fn rpc(&self) -> Rpc {
        let endpoints = self.replicas.iter().map(Replica::endpoint).collect();
        PushServiceClient::new(Peer::new(endpoints, "dev-key".into()).channel())
    }

    /// A user of the mini program, who wrote to it and so may be written to five times.
    pub(crate) async fn writer(&self) -> String {
        let open_id = self.wechat.user(SHOP, None, None).unwrap().open_id;
        let deliver = Deliver {
            app_id: SHOP.to_owned(),
            open_id: Some(open_id.clone()),
            content: Some("在吗".to_owned()),
            ..Deliver::default()
        };
        let delivery = self.wechat.deliver(deliver).await.unwrap();
        assert_eq!(delivery.problem, None);
        open_id
    }

    /// Asks the database itself.
    pub(crate) async fn query(&self, sql: impl Into<String>) -> Result<Vec<QueryResult>, DbErr> {
        let backend = self.database.get_database_backend();
        let query = self
            .database
            .query_all_raw(Statement::from_string(backend, sql));
        storage::within_deadline(query).await
    }

    /// Messages that WeChat said it took so far, repeats included.
    pub(crate) fn taken(&self) -> u64 {
        let calls = self.wechat.calls(None);
        calls.count(TEMPLATE_SEND, "ok") + calls.count(CUSTOM_SEND, "ok")
    }

    /// The last that the replicas wrote to their logs at level WARN and above.
    pub(crate) fn log(&self) -> String {
        let logs = self.replicas.iter().map(Replica::log);
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

async fn migrate(database: &Database) {
    let url = ("WXHUB_DATABASE_URL", database.url());
    let migration = Process::start(BINARY, ["migrate"], [url]);
    let status = migration.wait(PATIENCE).await;
    assert!(status.success(), "{}", migration.stderr().join("\n"));
}

/// The URL of a server that takes every push.
async fn answering(tasks: &mut JoinSet<()>) -> String {
    let listener = listener().await;
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(async || "success");
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

pub(crate) struct Replica {
    grpc: SocketAddr,
    settings: Vec<(&'static str, String)>,
    process: Mutex<Option<Process>>,
    log: Mutex<Vec<String>>,
}

impl Replica {
    fn new(settings: &[(&'static str, String)]) -> Self {
        let [grpc, http, ops] = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut settings = settings.to_vec();
        settings.extend([
            ("WXHUB_GRPC_ADDR", grpc.to_string()),
            ("WXHUB_HTTP_ADDR", http.to_string()),
            ("WXHUB_OPS_ADDR", ops.to_string()),
        ]);
        Self {
            grpc,
            settings,
            process: Mutex::default(),
            log: Mutex::default(),
        }
    }

    pub(crate) fn start(&self) {
        let settings = self.settings.iter();
        let settings = settings.map(|(name, value)| (*name, value.as_str()));
        let process = Process::start(BINARY, [], settings);
        *self.process.lock().unwrap() = Some(process);
    }

    async fn answers(&self) {
        let peer = Peer::new(vec![self.endpoint()], "dev-key".into());
        let mut rpc = PushServiceClient::new(peer.channel());
        eventually("the replica answers", PATIENCE, async || {
            let answer = rpc.get_message(GetMessageRequest::default()).await;
            match answer.map_err(|status| status.code()) {
                Err(Code::NotFound) => Ok(()),
                other => Err(format!("{other:?}\n{}", self.log())),
            }
        })
        .await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&self) {
        if let Some(process) = self.process.lock().unwrap().take() {
            process.kill();
            self.log.lock().unwrap().extend(process.stderr());
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::try_from(format!("http://{}", self.grpc)).unwrap()
    }

    fn log(&self) -> String {
        let mut log = self.log.lock().unwrap().clone();
        if let Some(process) = &*self.process.lock().unwrap() {
            log.extend(process.stderr());
        }
        log[log.len().saturating_sub(20)..].join("\n")
    }
}
