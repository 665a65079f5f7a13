//! auth-service.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use auth_service::{
    session::{MAX_AGE, Sessions},
    user::User,
};
use proto::auth::v1::{LoginRequest, VerifySessionRequest, auth_service_client::AuthServiceClient};
use sea_orm::{ConnectionTrait as _, Statement};
use service_kit::{Clock, Sealer, Settings, run::Listeners, settings::DatabaseUrl, storage};
use tempfile::TempDir;
use test_support::{MariaDb, Redis, eventually, listener};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    load::{self, CONNECTIONS, Goals, connect, paced},
    stats::{Goal, count, median, print},
    world::{KEY_SHA256, MASTER_KEY},
};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: usize = 7;
/// Sessions that are verified in turn.
const SESSIONS: usize = 256;
/// Logins under way at once where as many as possible are wanted, and in one round of it.
const LOGINS_AT_ONCE: usize = 64;
const LOGINS: usize = 6_000;
/// Logins a second where latency is measured, and for how long in one round.
const RATE: u32 = 1_000;
const PACED: u32 = 3_000;
/// Sessions that are weighed, each of a user of its own, and how many are opened at once.
const WEIGHED: u64 = 1_000_000;
const OPENED_AT_ONCE: u64 = 512;
/// No load takes longer.
const LONGEST: Duration = Duration::from_secs(300);
const START: Duration = Duration::from_secs(60);
/// What a phone says of itself.
const CLIENT: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
                      Mobile/15E148 MicroMessenger/8.0.54(0x18003622) NetType/WIFI Language/zh_CN";

/// Measures everything, and prints it.
pub(crate) async fn run() -> anyhow::Result<()> {
    let world = World::start().await?;
    verify(&world).await.context("VerifySession")?;
    login(&world).await.context("Login")?;
    weigh().await.context("sessions in Redis")
}

/// auth-service on Redis and MariaDB, before a WeChat that knows every code.
struct World {
    grpc: SocketAddr,
    database: DatabaseUrl,
    /// Numbers the codes: none comes twice.
    codes: Arc<AtomicU64>,
    // In the order in which they go.
    _stop: DropGuard,
    _redis: Redis,
    _server: MariaDb,
    _folder: TempDir,
}

impl World {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("wxhub.toml");
        let catalog = format!(
            "[[apps]]\napp_id = \"wx1\"\nname = \"shop\"\nkind = \"mini_program\"\nsecret = \"secret\"\n\
             [[callers]]\nname = \"bench\"\nkey_sha256 = \"{KEY_SHA256}\"\napps = [\"*\"]\nscopes = [\"auth.verify\"]\n"
        );
        fs::write(&path, catalog)?;
        let redis = Redis::start().await;
        let server = MariaDb::start().await;
        let database = server.create_database().await;
        let settings = Settings {
            config: Some(path.display().to_string()),
            wechat_api_url: Some(format!("http://{}", wechat().await?)),
            redis_url: Some(redis.url().into()),
            database_url: Some(database.url().into()),
            token_url: Some("http://127.0.0.1:9".to_owned()),
            caller_key: Some("key".into()),
            master_key: Some(MASTER_KEY.into()),
            ..Settings::default()
        };
        let database = DatabaseUrl::new(database.url());
        auth_service::migrate(&database).await?;
        let listeners = Listeners {
            grpc: listener().await,
            http: listener().await,
            ops: listener().await,
        };
        let grpc = listeners.addrs()?.grpc;
        let config = auth_service::Config::from_settings(&settings)?;
        let service = auth_service::App::build(config, listeners).await?;
        let stop = CancellationToken::new();
        TaskTracker::new().spawn(service.run(stop.clone()));
        let world = Self {
            grpc,
            database,
            codes: Arc::default(),
            _stop: stop.drop_guard(),
            _redis: redis,
            _server: server,
            _folder: folder,
        };
        let channels = eventually("auth-service listens", START, async || {
            connect(world.grpc, 1).await
        })
        .await;
        let channel = channels.first().context("a connection")?;
        eventually("auth-service is ready", START, async || {
            sign_in(channel.clone(), world.codes.fetch_add(1, Ordering::Relaxed)).await
        })
        .await;
        Ok(world)
    }
}

/// A WeChat that costs next to nothing: each code is of another user.
async fn wechat() -> anyhow::Result<SocketAddr> {
    let listener = listener().await;
    let addr = listener.local_addr()?;
    let tasks = TaskTracker::new();
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            connections.spawn(answer(connection));
        }
    });
    Ok(addr)
}

async fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut request = Vec::new();
    while connection.read_buf(&mut request).await? > 0 {
        let text = String::from_utf8_lossy(&request);
        if !text.ends_with("\r\n\r\n") {
            continue;
        }
        let code = text.split_once("js_code=").map_or("", |(_, rest)| rest);
        let code = code.split(['&', ' ']).next().unwrap_or_default();
        let body = format!(
            "{{\"openid\":\"o{code:0>27}\",\"unionid\":\"u{code:0>27}\",\"session_key\":\"c2Vzc2lvbl9rZXlfXzE2Yg==\"}}"
        );
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(answer.as_bytes()).await?;
        request.clear();
    }
    Ok(())
}

fn authorized<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = MetadataValue::from_static("Bearer dev-key");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// Logs user number `code` in; answers the session.
async fn sign_in(channel: Channel, code: u64) -> Result<String, Status> {
    let request = authorized(LoginRequest {
        js_code: code.to_string(),
        ..LoginRequest::default()
    });
    let answer = AuthServiceClient::new(channel).login(request).await?;
    let session = answer.into_inner().session;
    let session = session.ok_or_else(|| Status::internal("no session"))?;
    Ok(session.session_token)
}

/// VerifySession beside an empty RPC.
async fn verify(world: &World) -> anyhow::Result<()> {
    let channels = connect(world.grpc, CONNECTIONS).await?;
    let mut tokens = Vec::new();
    for channel in channels.iter().cycle().take(SESSIONS) {
        let code = world.codes.fetch_add(1, Ordering::Relaxed);
        tokens.push(sign_in(channel.clone(), code).await?);
    }
    // Calls are plain functions of a channel.
    let tokens: &'static [String] = tokens.leak();
    let next: &'static AtomicU64 = Box::leak(Box::default());
    let verify = move |channel| async move {
        let turn = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or_default();
        let token = tokens.get(turn % SESSIONS).cloned().unwrap_or_default();
        let request = authorized(VerifySessionRequest {
            session_token: token,
        });
        let mut client = AuthServiceClient::new(channel);
        client.verify_session(request).await.map(drop)
    };
    let goals = Goals {
        throughput: 0.5,
        p99: Some(2.0),
    };
    let what = "VerifySession, Redis included";
    load::beside_empty(what, world.grpc, verify, &goals).await
}

/// Logins of new users: as many as there may be, then beside the INSERT of each.
async fn login(world: &World) -> anyhow::Result<()> {
    let channels = connect(world.grpc, CONNECTIONS).await?;
    let mut per_second = Vec::new();
    for _ in 0..=ROUNDS {
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for channel in channels.iter().cycle().take(LOGINS_AT_ONCE) {
            let (channel, codes) = (channel.clone(), Arc::clone(&world.codes));
            workers.spawn(async move {
                for _ in 0..LOGINS / LOGINS_AT_ONCE {
                    sign_in(channel.clone(), codes.fetch_add(1, Ordering::Relaxed)).await?;
                }
                Ok::<_, Status>(())
            });
        }
        let outcomes = timeout(LONGEST, workers.join_all())
            .await
            .context("the load did not end in time")?;
        outcomes.into_iter().collect::<Result<(), _>>()?;
        let logins = LOGINS / LOGINS_AT_ONCE * LOGINS_AT_ONCE;
        per_second.push(count(logins) / started.elapsed().as_secs_f64());
    }
    // The first one warmed everything up.
    per_second.remove(0);
    print(
        "Login: a second, with WeChat, Redis and MariaDB beside it",
        median(per_second),
        "",
        Some(Goal::AtLeast(2_000.0)),
    );

    let database = storage::database(&world.database).await?;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let logins = paced(RATE, PACED, |turn| {
            let channel = channels.get(turn % CONNECTIONS).cloned();
            let code = world.codes.fetch_add(1, Ordering::Relaxed);
            async move {
                let channel = channel.context("a connection")?;
                sign_in(channel, code).await?;
                Ok(())
            }
        });
        let logins = logins.await?;
        let inserts = paced(RATE, PACED, |_| {
            let database = database.clone();
            let number = world.codes.fetch_add(1, Ordering::Relaxed);
            async move {
                let row = Statement::from_sql_and_values(
                    database.get_database_backend(),
                    "INSERT INTO `user` VALUES (?, 'wx1', ?, ?, NULL, NOW(6), NOW(6), NOW(6))",
                    [
                        user_id(number).into(),
                        format!("o{number:027}").into(),
                        format!("u{number:027}").into(),
                    ],
                );
                database.execute_raw(row).await?;
                Ok(())
            }
        });
        ratios.push(logins / inserts.await?);
    }
    print(
        "Login, 1,000 a second: p99, of its INSERT's",
        median(ratios),
        "x",
        Some(Goal::AtMost(3.0)),
    );
    Ok(())
}

fn user_id(number: u64) -> String {
    format!("0192f0c1-2345-7000-8000-{number:012x}")
}

/// What a million sessions take in Redis.
async fn weigh() -> anyhow::Result<()> {
    let server = Redis::start().await;
    let redis = storage::redis(&server.url().into())?;
    let client = redis::Client::open(server.url())?;
    let mut info = client.get_multiplexed_async_connection().await?;
    let sessions = Sessions::in_redis(redis, client, MAX_AGE, Sealer::ephemeral(), Clock::System);
    let epoch = sessions.epoch().await?;
    let before = used_memory(&mut info).await?;
    let mut workers = JoinSet::new();
    for worker in 0..OPENED_AT_ONCE {
        let sessions = sessions.clone();
        workers.spawn(async move {
            for number in (worker..WEIGHED).step_by(usize::try_from(OPENED_AT_ONCE)?) {
                let user = User {
                    user_id: user_id(number).parse()?,
                    app_id: "wx0000000000000001".parse()?,
                    open_id: format!("o{number:027}").parse()?,
                    union_id: Some(format!("u{number:027}").parse()?),
                    nickname: None,
                    create_time: SystemTime::UNIX_EPOCH,
                    last_login_time: SystemTime::UNIX_EPOCH,
                };
                sessions.open(epoch, &user, CLIENT).await?;
            }
            anyhow::Ok(())
        });
    }
    let outcomes = timeout(LONGEST, workers.join_all())
        .await
        .context("the sessions were not opened in time")?;
    outcomes.into_iter().collect::<Result<(), _>>()?;
    let bytes = used_memory(&mut info).await? - before;
    print(
        "1,000,000 sessions of as many users in Redis, indexes included: each",
        bytes / 1e6,
        "B",
        Some(Goal::AtMost(700.0)),
    );
    Ok(())
}

async fn used_memory(redis: &mut redis::aio::MultiplexedConnection) -> anyhow::Result<f64> {
    let info: redis::InfoDict = redis::cmd("INFO").arg("memory").query_async(redis).await?;
    info.get("used_memory").context("INFO has used_memory")
}
