//! One test's world: a WeChat, the services around push-service, its stores, and any number of replicas of it.

use std::{path::PathBuf, time::Duration};

use proto::{
    auth::v1::auth_service_server::AuthServiceServer,
    push::v1::{
        self as pb, GetMessageRequest, Message, MessageState, SendMessageRequest,
        push_service_client::PushServiceClient, send_message_request::Content,
    },
    token::v1::token_service_server::TokenServiceServer,
};
use push_service::{App, Config};
use sea_orm::{ConnectionTrait as _, Statement};
use service_kit::{
    client::Peer,
    run::Listeners,
    settings::{DatabaseUrl, Listen},
    storage,
};
use tempfile::TempDir;
use test_support::{MariaDb, Redis, Sandbox, Tokens, eventually, listener};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Server},
};

use crate::stand_in::Auth;

pub(crate) const SHOP: &str = "wx0000000000000001";
pub(crate) const NEWS: &str = "wx0000000000000002";
pub(crate) const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
pub(crate) const TOKEN: &str = "devcallbacktoken";
/// What waits longer than this for something that comes within a second or two has failed.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// Long enough for a lease of a dead worker to end.
pub(crate) const AFTER_LEASE: Duration = Duration::from_secs(30);

/// Where push-service keeps its state.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Backend {
    /// SQLite and memory.
    Embedded,
    /// MariaDB and Redis.
    Servers,
}

pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) tokens: Tokens,
    pub(crate) auth: Auth,
    pub(crate) config: Config,
    pub(crate) redis: Option<Redis>,
    first: Option<Listeners>,
    /// Where token- and auth-service's stand-ins are.
    pub(crate) services: String,
    folder: TempDir,
    _services: DropGuard,
}

/// The catalog of every test; `on_ambiguous` is what the apps do about unknown outcomes.
fn catalog(on_ambiguous: &str) -> String {
    let app = |app_id: &str, name: &str, kind: &str, mode: &str| {
        format!(
            "[[apps]]\napp_id = \"{app_id}\"\nname = \"{name}\"\nkind = \"{kind}\"\nsecret = \"unused\"\non_ambiguous = \"{on_ambiguous}\"\n\
             callback = {{ token = [\"{TOKEN}\", \"previoustoken\"], encoding_aes_key = \"{KEY}\", mode = \"{mode}\" }}\n\
             verify_files = {{ \"MP_verify_{name}.txt\" = \"text-of-{name}\" }}\n\n"
        )
    };
    let vector = |app_id: &str, name: &str, token: &str, key: &str| {
        format!(
            "[[apps]]\napp_id = \"{app_id}\"\nname = \"{name}\"\nkind = \"official_account\"\nsecret = \"unused\"\n\
             callback = {{ token = \"{token}\", encoding_aes_key = \"{key}\", mode = \"safe\" }}\n\n"
        )
    };
    let mut text = [
        app(SHOP, "shop", "mini_program", "safe"),
        app(NEWS, "news", "official_account", "safe"),
        app("wx0000000000000003", "plain", "official_account", "plain"),
        app(
            "wx0000000000000004",
            "compatible",
            "official_account",
            "compatible",
        ),
        vector("wxba5fad812f8e6fb9", "guide", "AAAAA", &"A".repeat(43)),
        vector(
            "wx5823bf96d3bd56c7",
            "sample",
            "QDG6eK",
            "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C",
        ),
    ]
    .concat();
    text.push_str("[[apps]]\napp_id = \"wx0000000000000009\"\nname = \"silent\"\nkind = \"official_account\"\nsecret = \"unused\"\n\n");
    for (name, hash, apps) in [
        (
            "dev",
            "7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e",
            "*",
        ),
        (
            "other",
            "580843d03d2216ff1a275d0991bad66e4d1af871171d929e9de604b7959f9bca",
            "shop",
        ),
    ] {
        text.push_str(&format!(
            "[[callers]]\nname = \"{name}\"\nkey_sha256 = \"{hash}\"\napps = [\"{apps}\"]\nscopes = [\"push.send\", \"push.read\"]\n\n"
        ));
    }
    text
}

fn anywhere() -> Listen {
    let addr = "127.0.0.1:0".parse().unwrap();
    Listen {
        grpc: addr,
        http: addr,
        ops: addr,
    }
}

fn peer(url: &str, key: &str) -> Peer {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    Peer::new(vec![endpoint], key.to_owned().into())
}

/// A client of one replica, ready or not.
pub(crate) type Client = PushServiceClient<InterceptedService<Channel, Key>>;

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

/// A client that shows this caller's key.
pub(crate) fn client(url: &str, key: &str) -> Client {
    let channel = Endpoint::from_shared(url.to_owned())
        .unwrap()
        .timeout(SOON)
        .connect_lazy();
    let key = Key(format!("Bearer {key}").parse().unwrap());
    PushServiceClient::with_interceptor(channel, key)
}

impl World {
    pub(crate) async fn start(backend: Backend) -> Self {
        Self::with(backend, "at_least_once").await
    }

    pub(crate) async fn with(backend: Backend, on_ambiguous: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wxhub.toml");
        std::fs::write(&path, catalog(on_ambiguous)).unwrap();
        let first = Listeners::bind(anywhere()).await.unwrap();
        let http = first.addrs().unwrap().http;
        let sandbox = Sandbox::start(&format!("http://{http}")).await;

        let services = CancellationToken::new();
        service_kit::telemetry::install_tls_provider();
        let tokens = Tokens::new(sandbox.url());
        let auth = Auth::default();
        let listener = listener().await;
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(TokenServiceServer::new(tokens.clone()))
            .add_service(AuthServiceServer::new(auth.clone()))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                services.clone().cancelled_owned(),
            );
        TaskTracker::new().spawn(server);

        let (database, redis) = match backend {
            Backend::Embedded => {
                let file = folder.path().join("push.sqlite");
                (
                    DatabaseUrl::new(format!("sqlite://{}", file.display())),
                    None,
                )
            }
            Backend::Servers => {
                let database = DatabaseUrl::new(MariaDb::database().await.url());
                push_service::migrate(&database).await.unwrap();
                (database, Some(Redis::start().await))
            }
        };
        let config = Config {
            listen: anywhere(),
            catalog: PathBuf::from(&path),
            redis: redis.as_ref().map(|redis| redis.url().into()),
            database,
            wechat_api: sandbox.url().parse().unwrap(),
            token_service: peer(&url, "unused"),
            auth_service: peer(&url, "unused"),
            message_max_age: Duration::from_secs(30 * 24 * 3_600),
            tls: None,
        };
        Self {
            sandbox,
            tokens,
            auth,
            config,
            redis,
            first: Some(first),
            services: url,
            folder,
            _services: services.drop_guard(),
        }
    }

    /// Starts a replica; the sandbox calls back to the first.
    pub(crate) async fn app(&mut self) -> Running {
        let listeners = match self.first.take() {
            Some(first) => first,
            None => Listeners::bind(anywhere()).await.unwrap(),
        };
        Running::start(self.config.clone(), listeners).await
    }

    /// A new user of the app.
    pub(crate) fn user(&self, app_id: &str) -> String {
        self.sandbox.user(app_id, None, Some(true)).unwrap().open_id
    }

    /// What the user reads, newest last.
    pub(crate) fn inbox(&self, open_id: &str) -> Vec<sandbox::Message> {
        self.sandbox.inbox(None, Some(open_id))
    }

    /// Asks the database itself.
    pub(crate) async fn query(&self, sql: &str) -> Vec<sea_orm::QueryResult> {
        let database = storage::database(&self.config.database).await.unwrap();
        let statement = Statement::from_string(database.get_database_backend(), sql);
        database.query_all_raw(statement).await.unwrap()
    }

    /// The file that the catalog is read from.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// A replica of push-service.
pub(crate) struct Running {
    pub(crate) addrs: Listen,
    pub(crate) http: reqwest::Client,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), service_kit::run::Error>>,
}

impl Running {
    pub(crate) async fn start(config: Config, listeners: Listeners) -> Self {
        let app = App::build(config, listeners).await.unwrap();
        let addrs = app.addrs();
        let shutdown = CancellationToken::new();
        let task = TaskTracker::new().spawn(app.run(shutdown.clone()));
        Self {
            addrs,
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(SOON)
                .build()
                .unwrap(),
            shutdown,
            task,
        }
    }

    pub(crate) fn client_with(&self, key: &str) -> Client {
        client(&format!("http://{}", self.addrs.grpc), key)
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with("dev-key")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addrs.http)
    }

    /// What Prometheus is told.
    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.addrs.ops);
        let answer = self.http.get(url).send().await.unwrap();
        answer.text().await.unwrap()
    }

    pub(crate) async fn send(&self, request: SendMessageRequest) -> Result<Message, Status> {
        let response = self.client().send_message(request).await?;
        Ok(response.into_inner().message.unwrap())
    }

    pub(crate) async fn get(&self, message_id: &str) -> Message {
        self.try_get(message_id).await.unwrap()
    }

    pub(crate) async fn try_get(&self, message_id: &str) -> Result<Message, Status> {
        let request = GetMessageRequest {
            message_id: message_id.to_owned(),
        };
        let response = self.client().get_message(request).await?;
        Ok(response.into_inner().message.unwrap())
    }

    /// The message once it is as wanted.
    pub(crate) async fn until(
        &self,
        message_id: &str,
        wanted: impl Fn(&Message) -> bool,
    ) -> Message {
        self.until_within(SOON, message_id, wanted).await
    }

    pub(crate) async fn until_within(
        &self,
        timeout: Duration,
        message_id: &str,
        wanted: impl Fn(&Message) -> bool,
    ) -> Message {
        eventually("the message is as wanted", timeout, async || {
            let message = self.get(message_id).await;
            if wanted(&message) {
                Ok(message)
            } else {
                Err(format!("{message:?}"))
            }
        })
        .await
    }

    /// A message that is SENT may be DELIVERED a moment later.
    pub(crate) async fn until_state(&self, message_id: &str, state: MessageState) -> Message {
        self.until(message_id, |message| {
            message.state() == state || (state == MessageState::Sent && is_sent(message))
        })
        .await
    }

    /// Asks for `/readyz`.
    pub(crate) async fn readiness(&self) -> u16 {
        let url = format!("http://{}/readyz", self.addrs.ops);
        self.http.get(url).send().await.unwrap().status().as_u16()
    }

    /// Shuts down as SIGTERM does.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends at once, whatever it is doing.
    pub(crate) async fn kill(self) {
        self.task.abort();
        // It ends with the abort.
        let _ = self.task.await;
    }
}

/// Whether WeChat accepted it, and perhaps told more since.
pub(crate) fn is_sent(message: &Message) -> bool {
    matches!(
        message.state(),
        MessageState::Sent | MessageState::Delivered
    )
}

fn data(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn request(app: &str, open_id: &str, content: Content) -> SendMessageRequest {
    SendMessageRequest {
        app_id: app.to_owned(),
        open_id: open_id.to_owned(),
        content: Some(content),
        ..SendMessageRequest::default()
    }
}

pub(crate) fn template(open_id: &str) -> SendMessageRequest {
    let template = pb::TemplateContent {
        template_id: "TEMPLATE_ORDER_PAID".to_owned(),
        url: "https://example.com/orders/1?a=1&b=2".to_owned(),
        mini_program: None,
        data: data(&[
            ("thing1", "一杯咖啡"),
            ("amount2", "¥12.50"),
            ("time3", "2026-11-21 10:00"),
        ]),
    };
    request("news", open_id, Content::Template(template))
}

pub(crate) fn subscribe(open_id: &str) -> SendMessageRequest {
    let subscribe = pb::SubscribeContent {
        template_id: "SUBSCRIBE_ORDER_SHIPPED".to_owned(),
        page: "pages/order?id=1".to_owned(),
        data: data(&[
            ("thing1", "一杯咖啡"),
            ("amount2", "¥12.50"),
            ("time3", "2026-11-21 10:00"),
        ]),
        mini_program_state: "trial".to_owned(),
        lang: "zh_CN".to_owned(),
    };
    request("shop", open_id, Content::Subscribe(subscribe))
}

pub(crate) fn form_template(open_id: &str, form_id: &str) -> SendMessageRequest {
    let form_template = pb::FormTemplateContent {
        template_id: "FORM_ORDER_PAID".to_owned(),
        page: "pages/order?id=1".to_owned(),
        form_id: form_id.to_owned(),
        data: data(&[
            ("keyword1", "一杯咖啡"),
            ("keyword2", "12.50"),
            ("keyword3", "10:00"),
        ]),
        emphasis_keyword: "keyword1".to_owned(),
    };
    request("shop", open_id, Content::FormTemplate(form_template))
}

pub(crate) fn customer(app: &str, open_id: &str, content: &str) -> SendMessageRequest {
    let customer = pb::CustomerContent {
        kf_account: String::new(),
        message: Some(pb::customer_content::Message::Text(pb::CustomerText {
            content: content.to_owned(),
        })),
    };
    request(app, open_id, Content::Customer(customer))
}

/// One test on SQLite and memory, and on MariaDB and Redis.
macro_rules! on_both {
    ($($(#[$meta:meta])* async fn $name:ident($backend:ident: Backend) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn run($backend: Backend) $body

            $(#[$meta])*
            #[tokio::test]
            async fn embedded() {
                run(Backend::Embedded).await;
            }

            $(#[$meta])*
            #[tokio::test]
            async fn servers() {
                run(Backend::Servers).await;
            }
        }
    )*};
}
pub(crate) use on_both;
