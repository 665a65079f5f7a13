//! From acceptance to WeChat and back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use service_kit::Clock;
use tokio::time::sleep;

use super::{
    LONGEST,
    world::{BATCH, Servers, batches, template},
};
use crate::stats::{Goal, count, median, percentile, print};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(20);
/// Messages that are sent one at a time, and what lies between two of them.
const ONE_BY_ONE: u64 = 200;
const APART: Duration = Duration::from_millis(100);
/// How many messages with a schedule_time, over how long, and how far ahead the first is.
const SCHEDULED: u64 = 5_000;
const OVER: Duration = Duration::from_secs(10);
const AHEAD: Duration = Duration::from_secs(4);
/// How long what an idle service asks for is counted.
const IDLE: Duration = Duration::from_secs(20);

/// Many messages, as fast as it goes.
pub(super) async fn end_to_end(messages: u64) -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    let calls = batches(1, messages.div_ceil(BATCH), template);
    let messages = calls.len() * usize::try_from(BATCH)?;
    let (before, database_before) = (service.time()?, servers.database_time()?);
    let known = servers.wechat.distinct();
    let started = Instant::now();
    let accepted = async {
        service.accept(calls).await?;
        anyhow::Ok(started.elapsed())
    };
    let memory = async {
        let mut memory = Vec::new();
        for share in [messages / 4, messages] {
            while servers.wechat.distinct() - known < share {
                ensure!(started.elapsed() < LONGEST, "messages do not come");
                sleep(LOOK).await;
            }
            memory.push(service.memory()?);
        }
        Ok(memory)
    };
    let (accepted, memory) = tokio::try_join!(accepted, memory)?;
    service.settled().await?;
    let took = started.elapsed().as_secs_f64();
    let sent = "SELECT COUNT(*) FROM message WHERE state = 4";
    ensure!(
        usize::try_from(service.number(sent).await?)? == messages + 1,
        "a message is not SENT"
    );
    let messages = count(messages);
    let each = |time: Duration| time.as_secs_f64() / messages * 1e6;
    print(
        "From acceptance to the outcome in the table: messages a second",
        messages / took,
        "",
        Some(Goal::AtLeast(3_000.0)),
    );
    print(
        "The same: seconds until all were accepted",
        accepted.as_secs_f64(),
        "s",
        None,
    );
    print(
        "The same: messages that WeChat got more than once",
        count(servers.wechat.repeated()),
        "",
        Some(Goal::AtMost(0.0)),
    );
    let service_time = each(service.time()? - before);
    let database_time = each(servers.database_time()? - database_before);
    print(
        "The same: processor time of push-service, each",
        service_time,
        "us",
        None,
    );
    print(
        "The same: processor time of MariaDB, each",
        database_time,
        "us",
        None,
    );
    let [quarter, end] = memory.as_slice() else {
        anyhow::bail!("memory was not looked at twice");
    };
    print("Memory after a quarter of them", *quarter, "MB", None);
    print(
        "Memory at the end, of that",
        end / quarter,
        "x",
        Some(Goal::AtMost(1.1)),
    );
    Ok(())
}

/// From the call until WeChat has the message, with nothing else to do.
pub(super) async fn latency() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    let mut millis = Vec::new();
    for number in 1..=ONE_BY_ONE {
        sleep(APART).await;
        let called = Instant::now();
        let message = service.send(0, template(number)).await?;
        let arrived = servers.wechat.arrival(&message.message_id).await?;
        millis.push((arrived - called).as_secs_f64() * 1e3);
    }
    print(
        "From SendMessage to WeChat, one at a time: p50",
        median(millis.clone()),
        "ms",
        Some(Goal::AtMost(20.0)),
    );
    print("The same: p99", percentile(millis, 0.99), "ms", None);
    Ok(())
}

/// Messages that fall due one after the other.
pub(super) async fn scheduled() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    // The two clocks, read at once.
    let (zero, now) = (Instant::now(), Clock::System.now());
    let mut due = Vec::new();
    for number in 0..SCHEDULED {
        let share = u32::try_from(number)?;
        let after = AHEAD + OVER * share / u32::try_from(SCHEDULED)?;
        due.push(after);
    }
    let schedule = |number: u64| {
        let mut request = template(number);
        let place = usize::try_from(number - 1).unwrap_or_default();
        let time = due.get(place).map(|after| now + *after);
        request.schedule_time = time.map(Into::into);
        request
    };
    service
        .accept(batches(1, SCHEDULED / BATCH, schedule))
        .await?;
    let first = due.first().context("a message")?;
    ensure!(
        zero.elapsed() < *first,
        "some fell due before all were accepted"
    );
    let query = "SELECT message_id FROM message WHERE request_id <> 'order-000000000000' ORDER BY request_id";
    let ids = service.texts(query).await?;
    ensure!(ids.len() == due.len(), "not all are in the table");
    let mut late = Vec::new();
    for (message_id, after) in ids.iter().zip(&due) {
        let arrived = servers.wechat.arrival(message_id).await? - zero;
        ensure!(arrived >= *after, "a message came before its time");
        late.push((arrived - *after).as_secs_f64());
    }
    print(
        "5,000 messages that fall due within 10 s: p99 after their time",
        percentile(late, 0.99),
        "s",
        Some(Goal::AtMost(1.0)),
    );
    Ok(())
}

/// What the service asks MariaDB and Redis when there is nothing to do.
pub(super) async fn idle() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    let client = redis::Client::open(service.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    // What the last message left to do is over.
    sleep(AHEAD).await;
    let statements = async || {
        let questions = "SHOW GLOBAL STATUS LIKE 'Questions'";
        let text: String = service.one(questions).await?.try_get_by_index(1)?;
        anyhow::Ok(text.parse::<f64>()?)
    };
    let (before, commands_before) = (statements().await?, commands(&mut redis).await?);
    let started = Instant::now();
    sleep(IDLE).await;
    let (after, commands_after) = (statements().await?, commands(&mut redis).await?);
    let seconds = started.elapsed().as_secs_f64();
    // One of the statements and one of the commands is this program's own.
    print(
        "With nothing to do: SQL statements a second",
        (after - before - 1.0) / seconds,
        "",
        Some(Goal::AtMost(2.0)),
    );
    print(
        "With nothing to do: Redis commands a second",
        (commands_after - commands_before - 1.0) / seconds,
        "",
        Some(Goal::AtMost(2.0)),
    );
    Ok(())
}

async fn commands(redis: &mut redis::aio::MultiplexedConnection) -> anyhow::Result<f64> {
    let info: String = redis::cmd("INFO").arg("stats").query_async(redis).await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(line.context("commands")?.trim().parse()?)
}
