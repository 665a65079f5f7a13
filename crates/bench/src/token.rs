//! token-service and token-client.

use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};
use sandbox::Fault;
use service_kit::Clock;
use test_support::Redis;
use token_client::TokenClient;
use tokio::{task::JoinSet, time::timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use wechat::AppId;

use crate::{
    empty,
    stats::{Goal, median, percentile, print},
    world::{STABLE_TOKEN, World, app_id, get},
};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: usize = 7;
/// Connections of a load, and calls that are under way at once on each.
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 8;
/// Calls of one worker in one round.
const CALLS: usize = 200;
/// No load takes longer.
const LONGEST: Duration = Duration::from_secs(60);
/// Reads from memory that are timed as one: a clock costs as much as a read.
const BATCH: u32 = 100;
const BATCHES: usize = 2_000;
/// Reads from Redis in one round.
const REDIS_GETS: usize = 2_000;
/// Who comes at once to a cold cache, over how many connections: HTTP/2 servers end a connection on which thousands of
/// small frames wait unread (h2's `too_many_data_frames`).
const CALLERS: usize = 10_000;
const CALLERS_CONNECTIONS: usize = 100;
/// WeChat is so slow with a cold cache that all of them come in time.
const SLOW_MS: u64 = 2_000;
/// Apps whose refresh is measured, and refreshes at once.
const APPS: usize = 1_000;
const REFRESHES: usize = 16;

/// Measures everything, and prints it.
pub(crate) async fn run() -> anyhow::Result<()> {
    rpc().await.context("GetAccessToken")?;
    memory().await.context("token_client.access_token()")?;
    cold().await.context("a cold cache")?;
    refresh().await.context("refreshing")
}

/// How a round of one side went.
struct Round {
    per_second: f64,
    p99: f64,
}

/// GetAccessToken beside an empty RPC.
async fn rpc() -> anyhow::Result<()> {
    let world = World::start(1, None).await?;
    let tokens = connect(world.grpc, CONNECTIONS).await?;
    let empties = connect(empty::serve().await?, CONNECTIONS).await?;
    let token = |channel| async { get(channel, 0).await.map(drop) };
    // Warm connections, a warm cache.
    load(&tokens, token).await?;
    load(&empties, empty::call).await?;
    let (mut throughput, mut p99) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Neither is always the first.
        let (ours, empty) = if round % 2 == 0 {
            let ours = load(&tokens, token).await?;
            (ours, load(&empties, empty::call).await?)
        } else {
            let empty = load(&empties, empty::call).await?;
            (load(&tokens, token).await?, empty)
        };
        throughput.push(ours.per_second / empty.per_second);
        p99.push(ours.p99 / empty.p99);
    }
    print(
        "GetAccessToken: throughput, of an empty RPC's",
        median(throughput),
        "x",
        &Goal::AtLeast(0.9),
    );
    print(
        "GetAccessToken: p99, of an empty RPC's",
        median(p99),
        "x",
        &Goal::AtMost(1.5),
    );
    Ok(())
}

async fn connect(addr: SocketAddr, connections: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Endpoint::try_from(format!("http://{addr}"))?.tcp_nodelay(true);
    let channels = (0..connections).map(|_| {
        let endpoint = endpoint.clone();
        // Its connection is made now: no round pays for it.
        async move { endpoint.connect().await }
    });
    Ok(try_join_all(channels).await?)
}

/// Keeps every connection busy until all calls are made.
async fn load<F>(
    channels: &[Channel],
    call: impl Fn(Channel) -> F + Copy + Send + 'static,
) -> anyhow::Result<Round>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let mut workers = JoinSet::new();
    let started = Instant::now();
    for channel in channels {
        for _ in 0..IN_FLIGHT {
            let channel = channel.clone();
            workers.spawn(async move {
                let mut seconds = Vec::with_capacity(CALLS);
                for _ in 0..CALLS {
                    let started = Instant::now();
                    call(channel.clone()).await?;
                    seconds.push(started.elapsed().as_secs_f64());
                }
                Ok::<_, Status>(seconds)
            });
        }
    }
    let outcomes = timeout(LONGEST, workers.join_all())
        .await
        .context("the load did not end in time")?;
    let took = started.elapsed().as_secs_f64();
    let seconds: Result<Vec<_>, _> = outcomes.into_iter().collect();
    let seconds = seconds?.concat();
    Ok(Round {
        per_second: count(seconds.len()) / took,
        p99: percentile(seconds, 0.99),
    })
}

/// A read from token-client's memory beside one from Redis.
async fn memory() -> anyhow::Result<()> {
    let world = World::start(1, None).await?;
    let app: AppId = app_id(0).parse()?;
    let client = TokenClient::new(&world.peer()?);
    let token = client.access_token(&app).await?;

    let server = Redis::start().await;
    let redis = redis::Client::open(server.url())?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    let set = redis::cmd("SET")
        .arg("token")
        .arg(token.token.expose())
        .to_owned();
    let () = set.query_async(&mut redis).await?;

    let (mut nanos, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut reads = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            let started = Instant::now();
            for _ in 0..BATCH {
                std::hint::black_box(client.access_token(std::hint::black_box(&app)).await?);
            }
            reads.push(started.elapsed().as_secs_f64() / f64::from(BATCH));
        }
        let mut gets = Vec::with_capacity(REDIS_GETS);
        for _ in 0..REDIS_GETS {
            let started = Instant::now();
            let value: String = redis::cmd("GET")
                .arg("token")
                .query_async(&mut redis)
                .await?;
            gets.push(started.elapsed().as_secs_f64());
            std::hint::black_box(value);
        }
        let (read, get) = (median(reads), median(gets));
        nanos.push(read * 1e9);
        ratios.push(get / read);
    }
    print(
        "token_client.access_token(): p50",
        median(nanos),
        "ns",
        &Goal::AtMost(200.0),
    );
    print(
        "A GET from Redis on loopback: p50, of token_client.access_token()'s",
        median(ratios),
        "x",
        &Goal::AtLeast(100.0),
    );
    Ok(())
}

/// Callers who all come before there is a token.
async fn cold() -> anyhow::Result<()> {
    let world = World::start(1, None).await?;
    world.wechat.add_fault(Fault {
        delay_ms: Some(SLOW_MS),
        ..Fault::at(STABLE_TOKEN)
    })?;
    let channels = connect(world.grpc, CALLERS_CONNECTIONS).await?;
    let mut callers = JoinSet::new();
    for channel in channels.iter().cycle().take(CALLERS) {
        let channel = channel.clone();
        callers.spawn(async move { get(channel, 0).await.map(|token| token.version) });
    }
    let answers = timeout(LONGEST, callers.join_all())
        .await
        .context("not all callers were answered")?;
    let versions: Result<Vec<_>, _> = answers.into_iter().collect();
    versions?;
    let calls = world.wechat.calls(Some(&app_id(0))).total(STABLE_TOKEN);
    print(
        "10,000 callers of a cold cache: calls to WeChat",
        count(usize::try_from(calls)?),
        "",
        &Goal::AtMost(1.0),
    );
    Ok(())
}

/// What the refreshes of many apps cost, on Redis, by the processor time of this whole process: callers and WeChat are
/// in it, so the truth is less.
async fn refresh() -> anyhow::Result<()> {
    let redis = Redis::start().await;
    let world = World::start(APPS, Some(&redis)).await?;
    let channels = connect(world.grpc, CONNECTIONS).await?;
    let before = processor_time();
    let mut workers = JoinSet::new();
    for (worker, channel) in channels.iter().cycle().take(REFRESHES).enumerate() {
        let channel = channel.clone();
        workers.spawn(async move {
            let mut refresh_times = Vec::new();
            for app in (worker..APPS).step_by(REFRESHES) {
                refresh_times.push(get(channel.clone(), app).await?.refresh_time);
            }
            Ok::<_, Status>(refresh_times)
        });
    }
    let outcomes = timeout(LONGEST, workers.join_all())
        .await
        .context("the refreshes did not end in time")?;
    let cost = (processor_time() - before).as_secs_f64() / count(APPS);
    let refresh_times: Result<Vec<_>, _> = outcomes.into_iter().collect();
    let now = Clock::System.now();
    let periods = refresh_times?.concat().into_iter().flatten().map(|time| {
        let time = SystemTime::try_from(time).unwrap_or(now);
        time.duration_since(now).unwrap_or_default().as_secs_f64()
    });
    let period = median(periods.collect());
    print(
        "A refresh: processor time, callers and WeChat included",
        cost * 1e3,
        "ms",
        &Goal::AtMost(72.0),
    );
    print(
        "1,000 apps, each refreshed in time: share of one core",
        count(APPS) * cost / period * 100.0,
        "%",
        &Goal::AtMost(1.0),
    );
    Ok(())
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a benchmark are small"
)]
fn count(number: usize) -> f64 {
    number as f64
}
