//! What it takes to accept messages, beside the INSERTs that this cannot do without.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use futures_util::future::try_join_all;
use proto::push::v1::SendMessageRequest;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement, Value};
use service_kit::{Clock, clock::since_epoch};

use super::world::{BATCH, Servers, Service, batches as calls, send, template};
use crate::{
    load::{CONNECTIONS, paced},
    stats::{Goal, count, median, print},
};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: usize = 5;
/// Batches in one round.
const BATCHES: u64 = 20;
/// Single messages a second, and how many in one round: short rounds, and many, for a disk that is slow now and then
/// spoils those in which it is.
const RATE: u32 = 500;
const SINGLE: u32 = 1_000;
const SINGLE_ROUNDS: usize = 15;
/// What is to be stored is not due before this many seconds: nothing is sent meanwhile.
const LATER: u64 = 86_400;

/// The columns that acceptance fills.
const COLUMNS: &str = "message_id, app_id, open_id, account, caller, request_id, content, form_id, state, attempts, \
                       possible_duplicate, errcode, errmsg, create_time, schedule_time, expire_time, \
                       next_attempt_time, lane, broadcast_id, trace_parent";
const ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// Batches of a thousand, beside INSERTs of a thousand rows each; both for tomorrow.
pub(super) async fn batches() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    let bare = Bare::of(&service).await?;
    let number = AtomicU64::new(1);
    let next = |messages| number.fetch_add(messages, Ordering::Relaxed);
    let (mut per_second, mut ratios) = (Vec::new(), Vec::new());
    let (mut service_times, mut database_times) = (Vec::new(), Vec::new());
    let messages = count(usize::try_from(BATCHES * BATCH)?);
    for round in 0..=ROUNDS {
        let batches = calls(next(BATCHES * BATCH), BATCHES, later);
        let inserts: Vec<_> = (0..BATCHES)
            .map(|_| bare.insert(next(BATCH), BATCH))
            .collect();
        let (before, database_before) = (service.time()?, servers.database_time()?);
        let started = Instant::now();
        service.accept(batches).await?;
        let ours = messages / started.elapsed().as_secs_f64();
        let (spent, database_spent) = (
            service.time()? - before,
            servers.database_time()? - database_before,
        );
        let started = Instant::now();
        in_turn(&service.database, inserts).await?;
        let theirs = messages / started.elapsed().as_secs_f64();
        // The first one warmed everything up.
        if round > 0 {
            per_second.push(ours);
            ratios.push(ours / theirs);
            service_times.push(spent.as_secs_f64() / messages * 1e6);
            database_times.push(database_spent.as_secs_f64() / messages * 1e6);
        }
    }
    print(
        "BatchSendMessages, 1,000 a call: messages a second",
        median(per_second),
        "",
        Some(Goal::AtLeast(10_000.0)),
    );
    print(
        "The same, of bare multi-row INSERTs of the same rows",
        median(ratios),
        "x",
        None,
    );
    print(
        "The same: processor time of push-service, each",
        median(service_times),
        "us",
        None,
    );
    print(
        "The same: processor time of MariaDB, each",
        median(database_times),
        "us",
        None,
    );
    Ok(())
}

/// Messages one by one that are sent at once, beside as many committed INSERTs.
pub(super) async fn single() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let service = servers.service("").await?;
    let bare = Bare::of(&service).await?;
    let number = AtomicU64::new(1);
    let next = || number.fetch_add(1, Ordering::Relaxed);
    let (mut at_once, mut tomorrow) = (Vec::new(), Vec::new());
    for round in 0..=SINGLE_ROUNDS {
        let sent = paced(RATE, SINGLE, |turn| {
            let channel = service.channel(turn);
            let request = template(next());
            async move { send(channel?, request).await.map(drop) }
        });
        let sent = sent.await?;
        service.settled().await?;
        let stored = paced(RATE, SINGLE, |turn| {
            let channel = service.channel(turn);
            let request = later(next());
            async move { send(channel?, request).await.map(drop) }
        });
        let stored = stored.await?;
        let inserted = paced(RATE, SINGLE, |_| {
            let database = service.database.clone();
            let insert = bare.insert(next(), 1);
            async move {
                database.execute_raw(insert).await?;
                Ok(())
            }
        });
        let inserted = inserted.await?;
        if round > 0 {
            at_once.push(sent / inserted);
            tomorrow.push(stored / inserted);
        }
    }
    print(
        "SendMessage, 500 a second, sent at once: p99, of a committed INSERT's",
        median(at_once),
        "x",
        Some(Goal::AtMost(2.0)),
    );
    print(
        "SendMessage, 500 a second, for tomorrow: p99, of a committed INSERT's",
        median(tomorrow),
        "x",
        Some(Goal::AtMost(2.0)),
    );
    Ok(())
}

/// A message that is not due while anything is measured.
fn later(number: u64) -> SendMessageRequest {
    let mut request = template(number);
    let time = since_epoch(Clock::System.now()).as_secs() + LATER;
    request.schedule_time = Some(prost_types::Timestamp {
        seconds: i64::try_from(time).unwrap_or(i64::MAX),
        nanos: 0,
    });
    request
}

/// Executes statements, as many at once as a load has connections.
async fn in_turn(database: &DatabaseConnection, statements: Vec<Statement>) -> anyhow::Result<()> {
    let mut shares: Vec<Vec<_>> = (0..CONNECTIONS).map(|_| Vec::new()).collect();
    for (statement, share) in statements.into_iter().zip((0..CONNECTIONS).cycle()) {
        if let Some(share) = shares.get_mut(share) {
            share.push(statement);
        }
    }
    try_join_all(shares.into_iter().map(|share| async move {
        for statement in share {
            database.execute_raw(statement).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(())
}

/// Rows as acceptance stores them.
struct Bare {
    database: DatabaseConnection,
    content: String,
    lane: String,
    trace_parent: Option<String>,
}

impl Bare {
    /// As this service stored its first message.
    async fn of(service: &Service) -> anyhow::Result<Self> {
        let first = "SELECT content, lane, trace_parent FROM message LIMIT 1";
        let row = service.one(first).await?;
        Ok(Self {
            database: service.database.clone(),
            content: row.try_get_by_index(0)?,
            lane: row.try_get_by_index(1)?,
            trace_parent: row.try_get_by_index(2)?,
        })
    }

    /// One statement for `rows` rows.
    fn insert(&self, first: u64, rows: u64) -> Statement {
        let now = Clock::System.now();
        let millis = since_epoch(now).as_millis();
        let now = chrono::DateTime::<chrono::Utc>::from(now);
        let due = now + chrono::TimeDelta::seconds(LATER.cast_signed());
        let mut sql = format!("INSERT INTO message ({COLUMNS}) VALUES {ROW}");
        for _ in 1..rows {
            sql.push(',');
            sql.push_str(ROW);
        }
        let values = (first..first + rows).flat_map(|number| -> [Value; 20] {
            [
                uuid(millis, number).into(),
                "wx0000000000000002".into(),
                format!("o{number:027}").into(),
                None::<String>.into(),
                "bench".into(),
                format!("order-{number:012}").into(),
                self.content.clone().into(),
                None::<String>.into(),
                2_i8.into(),
                0_u32.into(),
                false.into(),
                0_i64.into(),
                "".into(),
                now.into(),
                due.into(),
                None::<chrono::DateTime<chrono::Utc>>.into(),
                due.into(),
                self.lane.clone().into(),
                None::<String>.into(),
                self.trace_parent.clone().into(),
            ]
        });
        Statement::from_sql_and_values(self.database.get_database_backend(), sql, values)
    }
}

/// As a UUIDv7 of this millisecond.
fn uuid(millis: u128, number: u64) -> String {
    let (high, low) = (millis >> 16, millis & 0xffff);
    format!("{high:08x}-{low:04x}-7000-8000-{number:012x}")
}
