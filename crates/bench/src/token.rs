//! token-service and token-client.

use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use sandbox::Fault;
use service_kit::Clock;
use test_support::Redis;
use token_client::TokenClient;
use tokio::{task::JoinSet, time::timeout};
use tonic::Status;
use wechat::AppId;

use crate::{
    load::{self, CONNECTIONS, Goals, LONGEST, connect, processor_time},
    stats::{Goal, count, median, print},
    world::{STABLE_TOKEN, World, app_id, get},
};

/// What [`app_id`] makes of 0, so that no call pays for it.
const FIRST_APP: &str = "wx0000000000000000";
/// Reads from memory and from Redis take turns so often; an odd number.
const ROUNDS: usize = 7;
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

/// GetAccessToken beside an empty RPC.
async fn rpc() -> anyhow::Result<()> {
    let world = World::start(1, None).await?;
    let call = |channel| async { get(channel, FIRST_APP.to_owned()).await.map(drop) };
    let goals = Goals {
        throughput: 0.9,
        p99: Some(1.5),
    };
    load::beside_empty("GetAccessToken", world.grpc, call, &goals).await
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
        Some(Goal::AtMost(200.0)),
    );
    print(
        "A GET from Redis on loopback: p50, of token_client.access_token()'s",
        median(ratios),
        "x",
        Some(Goal::AtLeast(100.0)),
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
        callers.spawn(async move { get(channel, app_id(0)).await.map(|token| token.version) });
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
        Some(Goal::AtMost(1.0)),
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
                refresh_times.push(get(channel.clone(), app_id(app)).await?.refresh_time);
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
        Some(Goal::AtMost(72.0)),
    );
    print(
        "1,000 apps, each refreshed in time: share of one core",
        count(APPS) * cost / period * 100.0,
        "%",
        Some(Goal::AtMost(1.0)),
    );
    Ok(())
}
