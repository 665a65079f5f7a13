//! Replicas of token-service, their Redis and a WeChat, on free ports, gone with the test.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::token::v1::{
    AccessToken, GetAccessTokenRequest, GetTicketRequest, ReportInvalidAccessTokenRequest, Ticket,
    TicketType, token_service_client::TokenServiceClient,
};
use secrecy::SecretString;
use service_kit::{
    Sealer,
    client::{Peer, PeerChannel},
    run::Listeners,
    settings::Listen,
    telemetry,
};
use tempfile::TempDir;
use test_support::{Redis, Sandbox, eventually, listener};
use token_service::{App, Config};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Endpoint};

/// The mini program, in stable mode.
pub(crate) const SHOP: &str = "wx0000000000000001";
/// The official account, in classic mode.
pub(crate) const NEWS: &str = "wx0000000000000002";
/// The key of the caller who may do everything with every app.
pub(crate) const KEY: &str = "dev-key";
/// The key of a caller who may read tokens of `news` only.
pub(crate) const NEWS_KEY: &str = "news-key";
/// Long enough for anything that happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The usual apps and callers.
pub(crate) const CATALOG: &str = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret = "dev-secret-shop"

[[apps]]
app_id = "wx0000000000000002"
name = "news"
kind = "official_account"
secret = "dev-secret-news"
token_mode = "classic"
jssdk = { hosts = ["h5.example.com"] }

[[callers]]
name = "dev"
key_sha256 = "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e"
apps = ["*"]
scopes = ["token.read", "admin"]

[[callers]]
name = "news-team"
key_sha256 = "657f3269b4efb646e054a74f0ec910afc8aac8fc517d39d9e5f0aa56f2bf920e"
apps = ["news"]
scopes = ["token.read"]
"#;

/// The path of each mode's call.
pub(crate) fn endpoint(app: &str) -> &'static str {
    if app == SHOP {
        "/cgi-bin/stable_token"
    } else {
        "/cgi-bin/token"
    }
}

pub(crate) struct World {
    pub(crate) wechat: Sandbox,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) redis: Option<Redis>,
    folder: TempDir,
    sealer: Sealer,
    stop: CancellationToken,
    running: JoinSet<()>,
}

pub(crate) struct Replica {
    pub(crate) addrs: Listen,
}

impl World {
    /// One replica on memory.
    pub(crate) async fn embedded() -> Self {
        Self::start(None, sandbox::Config::dev("http://127.0.0.1:9"), 1).await
    }

    /// `replicas` of one Redis.
    pub(crate) async fn on_redis(replicas: usize) -> Self {
        let config = sandbox::Config::dev("http://127.0.0.1:9");
        Self::start(Some(Redis::start().await), config, replicas).await
    }

    pub(crate) async fn start(
        redis: Option<Redis>,
        wechat: sandbox::Config,
        replicas: usize,
    ) -> Self {
        telemetry::install_tls_provider();
        let mut world = Self {
            wechat: Sandbox::with_config(wechat).await,
            replicas: Vec::new(),
            redis,
            folder: tempfile::tempdir().unwrap(),
            sealer: Sealer::ephemeral(),
            stop: CancellationToken::new(),
            running: JoinSet::new(),
        };
        world.write_catalog(CATALOG);
        for _ in 0..replicas {
            world.add_replica().await;
        }
        world
    }

    pub(crate) async fn add_replica(&mut self) {
        let listeners = Listeners {
            grpc: listener().await,
            http: listener().await,
            ops: listener().await,
        };
        let addrs = listeners.addrs().unwrap();
        let config = Config {
            listen: addrs,
            catalog: self.catalog_path(),
            redis_url: self
                .redis
                .as_ref()
                .map(|redis| SecretString::from(redis.url())),
            sealer: self.sealer.clone(),
            wechat_api_url: self.wechat.url().parse().unwrap(),
            tls: None,
        };
        let app = App::build(config, listeners).await.unwrap();
        assert_eq!(app.addrs().grpc, addrs.grpc);
        let stop = self.stop.clone();
        self.running
            .spawn(async move { app.run(stop).await.unwrap() });
        self.replicas.push(Replica { addrs });
        self.ready(self.replicas.len() - 1).await;
    }

    /// Replicas that are added from now on have another master key.
    pub(crate) fn lose_master_key(&mut self) {
        self.sealer = Sealer::ephemeral();
    }

    async fn ready(&self, replica: usize) {
        let ops = self.replicas[replica].addrs.ops;
        eventually("the replica is ready", PATIENCE, async || {
            let answer = get(ops, "/readyz").await;
            answer
                .starts_with("HTTP/1.0 200")
                .then_some(())
                .ok_or(answer)
        })
        .await;
    }

    pub(crate) fn write_catalog(&self, text: &str) {
        // As a whole: the service may read it at any moment.
        let next = self.folder.path().join("next.toml");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.catalog_path()).unwrap();
    }

    fn catalog_path(&self) -> PathBuf {
        Path::new(self.folder.path()).join("wxhub.toml")
    }

    /// How to reach a replica.
    pub(crate) fn peer(&self, replica: usize, key: &str) -> Peer {
        let endpoint = format!("http://{}", self.replicas[replica].addrs.grpc);
        Peer::new(vec![Endpoint::try_from(endpoint).unwrap()], key.into())
    }

    pub(crate) fn caller(&self, replica: usize, key: &str) -> Caller {
        Caller(TokenServiceClient::new(self.peer(replica, key).channel()))
    }

    /// The caller who may do everything, at the first replica.
    pub(crate) fn dev(&self) -> Caller {
        self.caller(0, KEY)
    }

    /// Calls for access_tokens of `app` that reached WeChat.
    pub(crate) fn upstream(&self, app: &str) -> u64 {
        self.wechat.calls(Some(app)).total(endpoint(app))
    }

    /// Stops every replica and waits for them to end.
    pub(crate) async fn shut_down(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A caller's client.
#[derive(Clone)]
pub(crate) struct Caller(pub(crate) TokenServiceClient<PeerChannel>);

impl Caller {
    pub(crate) async fn token(&self, app: &str) -> Result<AccessToken, Status> {
        let request = GetAccessTokenRequest {
            app_id: app.to_owned(),
        };
        let answer = self.0.clone().get_access_token(request).await?;
        Ok(answer.into_inner().access_token.unwrap())
    }

    pub(crate) async fn ticket(&self, app: &str, kind: TicketType) -> Result<Ticket, Status> {
        let request = GetTicketRequest {
            app_id: app.to_owned(),
            r#type: kind.into(),
        };
        let answer = self.0.clone().get_ticket(request).await?;
        Ok(answer.into_inner().ticket.unwrap())
    }

    pub(crate) async fn report(&self, app: &str, version: u64) -> Result<AccessToken, Status> {
        let request = ReportInvalidAccessTokenRequest {
            app_id: app.to_owned(),
            version,
            errcode: 40001,
        };
        let answer = self.0.clone().report_invalid_access_token(request).await?;
        Ok(answer.into_inner().access_token.unwrap())
    }
}

/// The answer to a GET, head and body.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
