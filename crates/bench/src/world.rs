//! token-service with any number of apps before a sandboxed WeChat, in this process.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, time::Duration};

use proto::token::v1::{
    AccessToken, GetAccessTokenRequest, ListCredentialsRequest,
    token_service_client::TokenServiceClient,
};
use service_kit::{Settings, client::Peer, run::Listeners};
use tempfile::TempDir;
use test_support::{Redis, Sandbox, eventually, listener};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

const KEY: &str = "dev-key";
/// printf %s dev-key | sha256sum
pub(crate) const KEY_SHA256: &str =
    "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e";
/// Of zeros: what it seals is gone with the run.
pub(crate) const MASTER_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Where a token in stable mode comes from.
pub(crate) const STABLE_TOKEN: &str = "/cgi-bin/stable_token";
const START: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) wechat: Sandbox,
    pub(crate) grpc: SocketAddr,
    _folder: TempDir,
    _stop: DropGuard,
}

/// The app_id of app number `app`.
pub(crate) fn app_id(app: usize) -> String {
    format!("wx{app:016}")
}

impl World {
    /// Apps 0 to `apps`, all in stable mode, none with a token yet.
    pub(crate) async fn start(apps: usize, redis: Option<&Redis>) -> anyhow::Result<Self> {
        let mut catalog = String::new();
        let mut accounts = Vec::new();
        for app in 0..apps {
            let app_id = app_id(app);
            writeln!(
                catalog,
                "[[apps]]\napp_id = \"{app_id}\"\nname = \"app-{app}\"\nkind = \"mini_program\"\nsecret = \"secret\""
            )?;
            accounts.push(sandbox::AccountConfig {
                original_id: format!("gh_{app}"),
                app_id,
                secret: "secret".into(),
                kind: sandbox::Kind::MiniProgram,
                expires_in: 7_200,
                callback: None,
                oauth_domains: Vec::new(),
                templates: Vec::new(),
                quotas: BTreeMap::new(),
            });
        }
        writeln!(
            catalog,
            "[[callers]]\nname = \"bench\"\nkey_sha256 = \"{KEY_SHA256}\"\napps = [\"*\"]\nscopes = [\"token.read\", \"admin\"]"
        )?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("wxhub.toml");
        fs::write(&path, catalog)?;

        let wechat = Sandbox::with_config(sandbox::Config { accounts }).await;
        let settings = Settings {
            config: Some(path.display().to_string()),
            wechat_api_url: Some(wechat.url().to_owned()),
            embedded: Some("1".to_owned()),
            redis_url: redis.map(|redis| redis.url().into()),
            master_key: Some(MASTER_KEY.into()),
            ..Settings::default()
        };
        let listeners = Listeners {
            grpc: listener().await,
            http: listener().await,
            ops: listener().await,
        };
        let grpc = listeners.addrs()?.grpc;
        let config = token_service::Config::from_settings(&settings)?;
        let service = token_service::App::build(config, listeners).await?;
        let stop = CancellationToken::new();
        TaskTracker::new().spawn(service.run(stop.clone()));
        let world = Self {
            wechat,
            grpc,
            _folder: folder,
            _stop: stop.drop_guard(),
        };
        let ready = TokenServiceClient::new(world.peer()?.channel());
        eventually("token-service is ready", START, async || {
            let request = ListCredentialsRequest::default();
            ready.clone().list_credentials(request).await
        })
        .await;
        Ok(world)
    }

    /// How services reach it.
    pub(crate) fn peer(&self) -> anyhow::Result<Peer> {
        let endpoint = Endpoint::try_from(format!("http://{}", self.grpc))?;
        Ok(Peer::new(vec![endpoint], KEY.into()))
    }
}

/// A request of the caller who may do everything.
pub(crate) fn authorized<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = MetadataValue::from_static("Bearer dev-key");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// One read of an app.
pub(crate) async fn get(channel: Channel, app_id: String) -> Result<AccessToken, Status> {
    let request = authorized(GetAccessTokenRequest { app_id });
    let mut client = TokenServiceClient::new(channel);
    let answer = client.get_access_token(request).await?.into_inner();
    answer
        .access_token
        .ok_or_else(|| Status::internal("no access_token"))
}
