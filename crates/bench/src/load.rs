//! Loads of RPCs, and how an RPC compares with an empty one.

use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    empty,
    stats::{Goal, count, median, percentile, print},
};

/// Each ratio is the median of so many rounds; an odd number.
const ROUNDS: usize = 15;
/// Connections of a load, and calls that are under way at once on each.
pub(crate) const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 8;
/// Calls of one worker in one round.
const CALLS: usize = 200;
/// No load takes longer.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// What an RPC has to reach, of an empty one's.
pub(crate) struct Goals {
    pub(crate) throughput: f64,
    /// None: it is only told.
    pub(crate) p99: Option<f64>,
}

/// How a round of one side went.
struct Round {
    per_second: f64,
    p99: f64,
    /// Processor time of a call, of both its ends.
    cost: f64,
}

/// Prints how `call` to the server at `addr` compares with an empty RPC, over as many connections and with as many calls
/// under way.
pub(crate) async fn beside_empty<F>(
    what: &str,
    addr: SocketAddr,
    call: impl Fn(Channel) -> F + Copy + Send + 'static,
    goals: &Goals,
) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let ours = connect(addr, CONNECTIONS).await?;
    let empties = connect(empty::serve().await?, CONNECTIONS).await?;
    // Warm connections, warm caches.
    load(&ours, call).await?;
    load(&empties, empty::call).await?;
    let (mut throughput, mut p99, mut cost) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Neither is always the first.
        let (ours, empty) = if round % 2 == 0 {
            let ours = load(&ours, call).await?;
            (ours, load(&empties, empty::call).await?)
        } else {
            let empty = load(&empties, empty::call).await?;
            (load(&ours, call).await?, empty)
        };
        throughput.push(ours.per_second / empty.per_second);
        p99.push(ours.p99 / empty.p99);
        cost.push(ours.cost / empty.cost);
    }
    let line = |figure: &str, values, goal: Option<Goal>| {
        let what = format!("{what}: {figure}, of an empty RPC's");
        print(&what, median(values), "x", goal);
    };
    line(
        "throughput",
        throughput,
        Some(Goal::AtLeast(goals.throughput)),
    );
    line("p99", p99, goals.p99.map(Goal::AtMost));
    line("processor time of both ends", cost, None);
    Ok(())
}

/// Open connections: no round pays for one.
pub(crate) async fn connect(addr: SocketAddr, connections: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Endpoint::try_from(format!("http://{addr}"))?.tcp_nodelay(true);
    let channels = (0..connections).map(|_| {
        let endpoint = endpoint.clone();
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
    let (started, before) = (Instant::now(), processor_time());
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
    let (took, spent) = (started.elapsed(), processor_time() - before);
    let seconds: Result<Vec<_>, _> = outcomes.into_iter().collect();
    let seconds = seconds?.concat();
    let calls = count(seconds.len());
    Ok(Round {
        per_second: calls / took.as_secs_f64(),
        p99: percentile(seconds, 0.99),
        cost: spent.as_secs_f64() / calls,
    })
}

/// The p99 of calls that are made at a fixed rate a second, however long each takes; it counts from when a call was due.
pub(crate) async fn paced<F>(
    rate: u32,
    turns: u32,
    mut call: impl FnMut(usize) -> F,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let start = tokio::time::Instant::now();
    let mut calls = JoinSet::new();
    for turn in 0..turns {
        let due = start + Duration::from_secs(1) / rate * turn;
        sleep_until(due).await;
        let call = call(usize::try_from(turn)?);
        calls.spawn(async move {
            call.await?;
            anyhow::Ok(due.elapsed().as_secs_f64())
        });
    }
    let outcomes = timeout(LONGEST, calls.join_all())
        .await
        .context("the load did not end in time")?;
    let seconds: anyhow::Result<Vec<_>> = outcomes.into_iter().collect();
    Ok(percentile(seconds?, 0.99))
}

/// The processor time of this whole process.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
