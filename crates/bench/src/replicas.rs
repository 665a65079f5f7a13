//! Three processes of token-service on one Redis: how fast a new token is at every replica and at everybody who watches, and how
//! fast a replica starts.
#![expect(
    clippy::indexing_slicing,
    reason = "by numbers of replicas and apps that are made here"
)]

use std::{
    collections::HashSet,
    env,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use proto::token::v1::{
    RefreshAccessTokenRequest, WatchAccessTokensRequest, WatchAccessTokensResponse,
    token_service_client::TokenServiceClient,
};
use redis::{RedisResult, aio::MultiplexedConnection};
use service_kit::{Clock, clock::since_epoch};
use tempfile::TempDir;
use test_support::{Process, Redis, Sandbox, eventually, free_port};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    stats::{Goal, count, percentile, print},
    world::{KEY_SHA256, MASTER_KEY, app_id, authorized, get},
};

const REPLICAS: usize = 3;
/// Apps whose tokens rotate, in classic mode, where each refresh brings a new one; and those beside them.
const ROTATING: usize = 60;
const APPS: usize = 1_000;
/// Rotations that are measured with events; the other apps' are without.
const BY_EVENTS: usize = 50;
const WATCHERS: usize = 1_000;
/// Watchers that share a connection.
const PER_CONNECTION: usize = 10;
/// Watchers, besides those, that stop to read after their first token.
const SLOW: usize = 30;
/// What of a stream a slow reader's machine takes in before it blocks, in bytes: a handful of tokens.
const SLOW_WINDOW: u32 = 1_024;
/// Between two rotations.
const APART: Duration = Duration::from_millis(100);
/// Before this WeChat is not asked for another token of the same app.
const FLOOR: Duration = Duration::from_secs(31);
const STARTS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);

type Rpc = TokenServiceClient<Channel>;

/// Measures everything, and prints it.
pub(crate) async fn run() -> anyhow::Result<()> {
    let replicas = Replicas::start().await?;
    replicas.fill().await?;
    let filled = Instant::now();
    replicas.starts().await?;
    let slow = replicas.slow_watchers().await?;
    let mut watched = replicas.watch(REPLICAS, 1).await?;

    sleep(FLOOR.saturating_sub(filled.elapsed())).await;
    let rotated = Instant::now();
    replicas.by_events(&mut watched).await?;
    replicas.by_polling(&mut watched).await?;
    drop(watched);

    let mut watched = replicas.watch(WATCHERS, PER_CONNECTION).await?;
    sleep(FLOOR.saturating_sub(rotated.elapsed())).await;
    replicas.to_watchers(&mut watched).await?;
    replicas.to_slow_watchers(slow).await
}

struct Replicas {
    addrs: Vec<SocketAddr>,
    processes: Vec<Mutex<Option<Process>>>,
    settings: Vec<Vec<(&'static str, String)>>,
    wechat: Sandbox,
    redis: Redis,
    _folder: TempDir,
}

impl Replicas {
    async fn start() -> anyhow::Result<Self> {
        let (mut accounts, mut catalog) = (String::new(), String::new());
        writeln!(
            catalog,
            "[[callers]]\nname = \"bench\"\nkey_sha256 = \"{KEY_SHA256}\"\napps = [\"*\"]\nscopes = [\"token.read\", \"admin\"]"
        )?;
        for app in 0..APPS {
            let app_id = app_id(app);
            let mode = if app < ROTATING { "classic" } else { "stable" };
            writeln!(
                accounts,
                "[[accounts]]\napp_id = \"{app_id}\"\nsecret = \"secret\"\nkind = \"mini_program\"\noriginal_id = \"gh_{app}\""
            )?;
            writeln!(
                catalog,
                "[[apps]]\napp_id = \"{app_id}\"\nname = \"app-{app}\"\nkind = \"mini_program\"\nsecret = \"secret\"\ntoken_mode = \"{mode}\""
            )?;
        }
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("wxhub.toml");
        fs::write(&path, catalog)?;
        let wechat = Sandbox::with_config(sandbox::Config::from_toml(&accounts)?).await;
        let redis = Redis::start().await;

        let addr = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let addrs: Vec<_> = (0..REPLICAS).map(|_| addr()).collect();
        let settings = addrs.iter().map(|grpc| {
            vec![
                ("WXHUB_CONFIG", path.display().to_string()),
                ("WXHUB_GRPC_ADDR", grpc.to_string()),
                ("WXHUB_HTTP_ADDR", addr().to_string()),
                ("WXHUB_OPS_ADDR", addr().to_string()),
                ("WXHUB_REDIS_URL", redis.url()),
                ("WXHUB_MASTER_KEY", MASTER_KEY.to_owned()),
                ("WXHUB_WECHAT_API_URL", wechat.url().to_owned()),
            ]
        });
        let settings: Vec<_> = settings.collect();
        let begun = Instant::now();
        let processes: Result<Vec<_>, _> = settings.iter().map(|one| process(one)).collect();
        let replicas = Self {
            addrs,
            processes: processes?.into_iter().map(Some).map(Mutex::new).collect(),
            settings,
            wechat,
            redis,
            _folder: folder,
        };
        for replica in 0..REPLICAS {
            replicas.answers(replica, begun).await?;
        }
        Ok(replicas)
    }

    fn endpoint(&self, replica: usize) -> anyhow::Result<Endpoint> {
        let addr = self.addrs[replica % REPLICAS];
        Ok(Endpoint::try_from(format!("http://{addr}"))?.tcp_nodelay(true))
    }

    async fn channel(&self, replica: usize) -> anyhow::Result<Channel> {
        Ok(self.endpoint(replica)?.connect().await?)
    }

    async fn rpc(&self, replica: usize) -> anyhow::Result<Rpc> {
        Ok(TokenServiceClient::new(self.channel(replica).await?))
    }

    /// Waits until a replica that was started at `begun` serves a token.
    async fn answers(&self, replica: usize, begun: Instant) -> anyhow::Result<()> {
        let answer = async || anyhow::Ok(get(self.channel(replica).await?, app_id(0)).await?);
        while let Err(error) = answer().await {
            ensure!(
                begun.elapsed() < PATIENCE,
                "no answer after a start: {error}"
            );
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn redis(&self) -> anyhow::Result<MultiplexedConnection> {
        let client = redis::Client::open(self.redis.url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// Has every app's first token fetched.
    async fn fill(&self) -> anyhow::Result<()> {
        let channels = try_join_all((0..REPLICAS).map(|replica| self.channel(replica))).await?;
        for (app, channel) in (0..APPS).zip(channels.iter().cycle()) {
            get(channel.clone(), app_id(app)).await?;
        }
        Ok(())
    }

    fn calls(&self) -> u64 {
        let calls = self.wechat.calls(None).counts;
        calls.values().flat_map(|outcomes| outcomes.values()).sum()
    }

    /// From exec to the first token served.
    async fn starts(&self) -> anyhow::Result<()> {
        let before = self.calls();
        let mut took = Vec::new();
        for start in 0..STARTS {
            let replica = start % REPLICAS;
            // Its end is no part of the start.
            drop(lock(&self.processes[replica]).take());
            let begun = Instant::now();
            *lock(&self.processes[replica]) = Some(process(&self.settings[replica])?);
            self.answers(replica, begun).await?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        print(
            "A replica's start to its first token, of 1,000 apps: longest of 10",
            percentile(took, 1.0),
            "ms",
            Some(Goal::AtMost(300.0)),
        );
        print(
            "Calls to WeChat because of those starts",
            count(usize::try_from(self.calls() - before)?),
            "",
            Some(Goal::AtMost(0.0)),
        );
        Ok(())
    }

    /// `watchers` of the rotating apps, spread over the replicas; returns once each has the current tokens.
    async fn watch(&self, watchers: usize, per_connection: usize) -> anyhow::Result<Watch> {
        let (tell, heard) = mpsc::unbounded_channel();
        let mut watch = Watch {
            watchers,
            heard,
            _tasks: JoinSet::new(),
        };
        for connection in 0..watchers / per_connection {
            let rpc = self.rpc(connection).await?;
            for _ in 0..per_connection {
                let mut tokens = follow(rpc.clone()).await?;
                let tell = tell.clone();
                watch._tasks.spawn(async move {
                    while let Ok(Some(token)) = tokens.message().await {
                        let told = Told::of(token);
                        if tell.send(told).is_err() {
                            return;
                        }
                    }
                });
            }
        }
        for _ in 0..watchers * ROTATING {
            watch.next().await?;
        }
        Ok(watch)
    }

    /// Watchers that read their first token, and then nothing.
    async fn slow_watchers(&self) -> anyhow::Result<Vec<Streaming<WatchAccessTokensResponse>>> {
        let mut slow = Vec::new();
        for watcher in 0..SLOW {
            let endpoint = self
                .endpoint(watcher)?
                .initial_stream_window_size(SLOW_WINDOW);
            let mut tokens = follow(TokenServiceClient::new(endpoint.connect().await?)).await?;
            tokens.message().await?;
            slow.push(tokens);
        }
        Ok(slow)
    }

    /// Replaces the tokens of `apps`, one after the other. Returns, for each, how long after the moment when it was stored each
    /// watcher had the new one, in milliseconds.
    async fn rotate(&self, apps: Range<usize>, watch: &mut Watch) -> anyhow::Result<Vec<Vec<f64>>> {
        let mut delays = vec![Vec::new(); apps.len()];
        let mut versions = vec![0; apps.len()];
        let rpcs = try_join_all((0..REPLICAS).map(|replica| self.rpc(replica))).await?;
        for (app, rpc) in apps.clone().zip(rpcs.iter().cycle()) {
            let request = authorized(RefreshAccessTokenRequest {
                app_id: app_id(app),
                force: true,
            });
            let fresh = rpc
                .clone()
                .refresh_access_token(request)
                .await?
                .into_inner();
            let token = fresh.access_token.context("no access_token")?;
            versions[app - apps.start] = token.version;
            sleep(APART).await;
        }
        for _ in 0..watch.watchers * apps.len() {
            let Told { app, version, at } = watch.next().await?;
            let index = app.checked_sub(apps.start).context("another app's token")?;
            ensure!(
                versions[index] == version,
                "another version than the one stored"
            );
            // A version is one more than the millisecond in which it was about to be stored.
            delays[index].push((at - (version - 1) as f64).max(0.0));
        }
        Ok(delays)
    }

    async fn by_events(&self, watch: &mut Watch) -> anyhow::Result<()> {
        let delays = self.rotate(0..BY_EVENTS, watch).await?;
        let everywhere: Vec<_> = delays.into_iter().map(longest).collect();
        print(
            "A new token at all of 3 replicas, from its write: p50 of 50",
            percentile(everywhere.clone(), 0.5),
            "ms",
            Some(Goal::AtMost(100.0)),
        );
        print(
            "A new token at all of 3 replicas, from its write: p99 of 50",
            percentile(everywhere, 0.99),
            "ms",
            Some(Goal::AtMost(100.0)),
        );
        Ok(())
    }

    async fn by_polling(&self, watch: &mut Watch) -> anyhow::Result<()> {
        let mut redis = self.redis().await?;
        let mut rule = redis::cmd("ACL");
        let () = rule
            .arg(&["SETUSER", "default", "-subscribe"])
            .query_async(&mut redis)
            .await?;
        let mut kill = redis::cmd("CLIENT");
        let () = kill
            .arg(&["KILL", "TYPE", "pubsub"])
            .query_async(&mut redis)
            .await?;
        let delays = self.rotate(BY_EVENTS..ROTATING, watch).await?;
        print(
            "The same when events are lost, by polling: longest of 10",
            longest(delays.concat()),
            "ms",
            Some(Goal::AtMost(5_000.0)),
        );
        let mut rule = redis::cmd("ACL");
        let () = rule
            .arg(&["SETUSER", "default", "+subscribe"])
            .query_async(&mut redis)
            .await?;
        eventually("replicas hear of changes again", PATIENCE, async || {
            let mut redis = redis.clone();
            let mut ask = redis::cmd("PUBSUB");
            let ask = ask.arg(&["NUMSUB", "wxhub:token:v1:changed"]);
            let heard: RedisResult<(String, usize)> = ask.query_async(&mut redis).await;
            heard.is_ok_and(|(_, replicas)| replicas == REPLICAS)
        })
        .await;
        Ok(())
    }

    async fn to_watchers(&self, watch: &mut Watch) -> anyhow::Result<()> {
        let delays = self.rotate(0..ROTATING, watch).await?.concat();
        print(
            "1,000 watchers of 3 replicas: p50 from the write to the watcher",
            percentile(delays.clone(), 0.5),
            "ms",
            Some(Goal::AtMost(500.0)),
        );
        print(
            "1,000 watchers of 3 replicas: p99 from the write to the watcher",
            percentile(delays, 0.99),
            "ms",
            Some(Goal::AtMost(500.0)),
        );
        Ok(())
    }

    /// They read on: each gets what was on its way, and then the newest of every app.
    async fn to_slow_watchers(
        &self,
        slow: Vec<Streaming<WatchAccessTokensResponse>>,
    ) -> anyhow::Result<()> {
        let mut newest = vec![0; ROTATING];
        for (app, version) in newest.iter_mut().enumerate() {
            *version = get(self.channel(0).await?, app_id(app)).await?.version;
        }
        let mut most = 0;
        for mut tokens in slow {
            let (mut messages, mut current) = (1, HashSet::new());
            while current.len() < ROTATING {
                let token = timeout(PATIENCE, tokens.message()).await??;
                let Told { app, version, .. } = Told::of(token.context("the stream ended")?);
                messages += 1;
                if newest[app] == version {
                    current.insert(app);
                }
            }
            most = most.max(messages);
        }
        // The 60 that were on their way when it stopped, and the newest of each app. A backlog would be of 180.
        print(
            "Messages to a watcher of 60 apps that slept through 120 rotations, at most",
            count(most),
            "",
            Some(Goal::AtMost(125.0)),
        );
        Ok(())
    }
}

/// What watchers are told.
struct Watch {
    watchers: usize,
    heard: mpsc::UnboundedReceiver<Told>,
    _tasks: JoinSet<()>,
}

struct Told {
    app: usize,
    version: u64,
    /// In Unix milliseconds.
    at: f64,
}

impl Told {
    fn of(response: WatchAccessTokensResponse) -> Self {
        let at = since_epoch(Clock::System.now()).as_secs_f64() * 1e3;
        let token = response.access_token.unwrap_or_default();
        Self {
            app: token
                .app_id
                .trim_start_matches("wx")
                .parse()
                .unwrap_or(usize::MAX),
            version: token.version,
            at,
        }
    }
}

impl Watch {
    async fn next(&mut self) -> anyhow::Result<Told> {
        let told = timeout(PATIENCE, self.heard.recv()).await;
        told.context("a watcher was not told")?
            .context("all watches ended")
    }
}

async fn follow(mut rpc: Rpc) -> Result<Streaming<WatchAccessTokensResponse>, Status> {
    let request = authorized(WatchAccessTokensRequest {
        app_ids: (0..ROTATING).map(app_id).collect(),
    });
    Ok(rpc.watch_access_tokens(request).await?.into_inner())
}

/// token-service is built beside this program: see `scripts/bench`.
fn process(settings: &[(&'static str, String)]) -> anyhow::Result<Process> {
    let program = env::current_exe()?.with_file_name("token-service");
    ensure!(program.exists(), "{} is not built", program.display());
    let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
    Ok(Process::start(program, [], settings))
}

fn longest(delays: Vec<f64>) -> f64 {
    percentile(delays, 1.0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
