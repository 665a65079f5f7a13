//! push-service as a process of its own, in release mode, with a MariaDB and a Redis of its own.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use proto::push::v1::{
    BatchSendMessagesRequest, Message, SendMessageRequest, TemplateContent, batch_send_result,
    push_service_client::PushServiceClient, send_message_request::Content,
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement};
use service_kit::{settings::DatabaseUrl, storage};
use tempfile::TempDir;
use test_support::{MariaDb, Process, Redis, Tokens, eventually, free_port};
use tokio::{task::JoinSet, time::sleep};
use tonic::{Request, metadata::MetadataValue, transport::Channel};

use super::{LONGEST, wechat::WeChat};
use crate::{
    load::{CONNECTIONS, connect},
    world::KEY_SHA256,
};

/// The official account that everything is sent by: [`Tokens`] knows it.
const APP_ID: &str = "wx0000000000000002";
/// Messages of one call.
pub(super) const BATCH: u64 = 1_000;
/// Rather like one in production than the small one of the tests.
const SERVER_SIZE: [&str; 2] = [
    "--innodb-buffer-pool-size=2G",
    "--innodb-log-file-size=512M",
];
/// What /proc counts processor time in.
const TICK: Duration = Duration::from_millis(10);
const START: Duration = Duration::from_secs(60);
/// Between two looks at whether all is done.
const LOOK: Duration = Duration::from_millis(50);

/// What push-service stands on. Each service has a database of its own.
pub(super) struct Servers {
    pub(super) wechat: WeChat,
    maria_db: MariaDb,
    wechat_addr: SocketAddr,
    tokens_addr: SocketAddr,
    _tasks: JoinSet<()>,
}

/// A running push-service.
pub(super) struct Service {
    pub(super) redis: Redis,
    pub(super) database: DatabaseConnection,
    pub(super) channels: Vec<Channel>,
    process: Process,
    program: PathBuf,
    settings: Vec<(&'static str, String)>,
    grpc: SocketAddr,
    _folder: TempDir,
}

impl Servers {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let wechat = WeChat::default();
        let wechat_addr = wechat.serve().await?;
        let tokens = Tokens::new(&format!("http://{wechat_addr}"));
        let mut tasks = JoinSet::new();
        Ok(Self {
            wechat,
            maria_db: MariaDb::start_with(&SERVER_SIZE).await,
            wechat_addr,
            tokens_addr: tokens.serve(&mut tasks).await,
            _tasks: tasks,
        })
    }

    /// Starts a push-service on an empty database. `app` is what the catalog says of its app besides the usual.
    pub(super) async fn service(&self, app: &str) -> anyhow::Result<Service> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("wxhub.toml");
        let catalog = format!(
            "[[apps]]\napp_id = \"{APP_ID}\"\nname = \"news\"\nkind = \"official_account\"\nsecret = \"unused\"\n{app}\n\
             [[callers]]\nname = \"bench\"\nkey_sha256 = \"{KEY_SHA256}\"\napps = [\"*\"]\nscopes = [\"push.send\", \"push.read\"]\n"
        );
        fs::write(&path, catalog)?;
        let redis = Redis::start().await;
        let database = self.maria_db.create_database().await;
        let url = DatabaseUrl::new(database.url());
        // push-service is built beside this program: see `scripts/bench`.
        let program = env::current_exe()?.with_file_name("push-service");
        ensure!(program.exists(), "{} is not built", program.display());
        let addr = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let grpc = addr();
        let settings = [
            ("WXHUB_CONFIG", path.display().to_string()),
            ("WXHUB_GRPC_ADDR", grpc.to_string()),
            ("WXHUB_HTTP_ADDR", addr().to_string()),
            ("WXHUB_OPS_ADDR", addr().to_string()),
            ("WXHUB_REDIS_URL", redis.url()),
            ("WXHUB_DATABASE_URL", database.url().to_owned()),
            (
                "WXHUB_WECHAT_API_URL",
                format!("http://{}", self.wechat_addr),
            ),
            ("WXHUB_TOKEN_URL", format!("http://{}", self.tokens_addr)),
            ("WXHUB_AUTH_URL", format!("http://{}", self.tokens_addr)),
            ("WXHUB_CALLER_KEY", "unused".to_owned()),
        ];
        let migrated = process(&program, "migrate", &settings).wait(START).await;
        ensure!(migrated.success(), "migrate: {migrated}");
        let running = process(&program, "serve", &settings);
        let channels = channels(grpc).await;
        let service = Service {
            redis,
            database: storage::database(&url).await?,
            channels,
            process: running,
            program,
            settings: settings.into(),
            grpc,
            _folder: folder,
        };
        self.warm(&service, 0).await?;
        service.settled().await?;
        Ok(service)
    }

    /// Runs a service again that was stopped.
    pub(super) async fn resume(&self, service: &mut Service, number: u64) -> anyhow::Result<()> {
        service.process = process(&service.program, "serve", &service.settings);
        service.channels = channels(service.grpc).await;
        self.warm(service, number).await
    }

    /// Its first message, number `number`, finds everything as all others will: connections, the token, the caches.
    async fn warm(&self, service: &Service, number: u64) -> anyhow::Result<()> {
        let first = eventually("push-service is ready", START, async || {
            service.send(0, template(number)).await
        })
        .await;
        self.wechat.arrival(&first.message_id).await?;
        Ok(())
    }

    /// Processor time that MariaDB took so far.
    pub(super) fn database_time(&self) -> anyhow::Result<Duration> {
        processor_time(self.maria_db.id())
    }
}

impl Service {
    /// Stops it. What waits, waits.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        self.process.terminate();
        let ended = self.process.wait(START).await;
        ensure!(ended.success(), "push-service: {ended}");
        Ok(())
    }

    /// Sends one message over one of the connections.
    pub(super) async fn send(
        &self,
        connection: usize,
        request: SendMessageRequest,
    ) -> anyhow::Result<Message> {
        send(self.channel(connection)?, request).await
    }

    pub(super) fn channel(&self, connection: usize) -> anyhow::Result<Channel> {
        let channel = self.channels.get(connection % self.channels.len());
        channel.cloned().context("a connection")
    }

    /// Has these batches accepted, as many at once as there are connections.
    pub(super) async fn accept(
        &self,
        batches: Vec<BatchSendMessagesRequest>,
    ) -> anyhow::Result<()> {
        let callers = self.channels.len();
        let mut shares: Vec<Vec<_>> = (0..callers).map(|_| Vec::new()).collect();
        for (turn, share) in batches.into_iter().zip((0..callers).cycle()) {
            if let Some(share) = shares.get_mut(share) {
                share.push(turn);
            }
        }
        let shares = self.channels.iter().zip(shares);
        try_join_all(shares.map(|(channel, batches)| async move {
            for batch in batches {
                let mut client = PushServiceClient::new(channel.clone());
                let answer = client.batch_send_messages(authorized(batch)).await?;
                let results = answer.into_inner().results;
                let accepted = results.iter().filter(|result| {
                    matches!(result.result, Some(batch_send_result::Result::Message(_)))
                });
                ensure!(accepted.count() == results.len(), "a message was refused");
            }
            Ok(())
        }))
        .await?;
        Ok(())
    }

    /// Returns once no message waits or is being sent, except for those that are not due for long.
    pub(super) async fn settled(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let waits = "SELECT COUNT(*) FROM message WHERE state IN (2, 3) \
                     AND COALESCE(schedule_time, create_time) < UTC_TIMESTAMP() + INTERVAL 1 HOUR";
        while self.number(waits).await? > 0 {
            ensure!(started.elapsed() < LONGEST, "messages wait for too long");
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// The one number that a query finds.
    pub(super) async fn number(&self, query: &str) -> anyhow::Result<i64> {
        Ok(self.one(query).await?.try_get_by_index(0)?)
    }

    /// The first column of what a query finds.
    pub(super) async fn texts(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let statement = Statement::from_string(self.database.get_database_backend(), query);
        let rows = self.database.query_all_raw(statement).await?;
        let texts = rows.iter().map(|row| Ok(row.try_get_by_index(0)?));
        texts.collect()
    }

    /// The one row that a query finds.
    pub(super) async fn one(&self, query: &str) -> anyhow::Result<sea_orm::QueryResult> {
        let statement = Statement::from_string(self.database.get_database_backend(), query);
        let row = self.database.query_one_raw(statement).await?;
        row.context("a row")
    }

    /// Processor time that it took so far.
    pub(super) fn time(&self) -> anyhow::Result<Duration> {
        processor_time(self.process.id())
    }

    /// What it holds in memory, in MB.
    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kilobytes.context("VmRSS")?.parse::<f64>()? / 1_024.0)
    }
}

fn process(program: &Path, verb: &'static str, settings: &[(&'static str, String)]) -> Process {
    let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
    Process::start(program, [verb], settings)
}

async fn channels(grpc: SocketAddr) -> Vec<Channel> {
    eventually("push-service listens", START, async || {
        connect(grpc, CONNECTIONS).await
    })
    .await
}

/// A request of the caller who may do everything.
pub(super) fn authorized<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = MetadataValue::from_static("Bearer dev-key");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// Sends one message.
pub(super) async fn send(channel: Channel, request: SendMessageRequest) -> anyhow::Result<Message> {
    let mut client = PushServiceClient::new(channel);
    let answer = client.send_message(authorized(request)).await?;
    answer.into_inner().message.context("a message")
}

/// Message number `number` of its service, to a user of its own.
pub(super) fn template(number: u64) -> SendMessageRequest {
    let data = [
        ("thing1", "一杯咖啡"),
        ("amount2", "¥12.50"),
        ("time3", "2026-11-21 10:00"),
    ];
    let data = data.map(|(key, value)| (key.to_owned(), value.to_owned()));
    SendMessageRequest {
        app_id: "news".to_owned(),
        open_id: format!("o{number:027}"),
        request_id: format!("order-{number:012}"),
        content: Some(Content::Template(TemplateContent {
            template_id: "TEMPLATE_ORDER_PAID".to_owned(),
            url: format!("https://example.com/orders/{number}"),
            mini_program: None,
            data: data.into(),
        })),
        ..SendMessageRequest::default()
    }
}

/// `batches` calls of [`BATCH`] messages each, the first of which has number `first`.
pub(super) fn batches(
    first: u64,
    batches: u64,
    template: impl Fn(u64) -> SendMessageRequest,
) -> Vec<BatchSendMessagesRequest> {
    let starts = (0..batches).map(|batch| first + batch * BATCH);
    let batches = starts.map(|start| BatchSendMessagesRequest {
        app_id: "news".to_owned(),
        messages: (start..start + BATCH).map(&template).collect(),
    });
    batches.collect()
}

/// User and system time of a process.
fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    let stat = stat.context("processor time is read from /proc, which Linux has")?;
    // The name before the last parenthesis may hold anything; then user and system time are the 12th and 13th.
    let (_, stat) = stat.rsplit_once(')').context("a name")?;
    let ticks = stat.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<u32>, _> = ticks.map(str::parse).collect();
    Ok(TICK * ticks?.iter().sum())
}
