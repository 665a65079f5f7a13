//! A table full of messages that are finished.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sea_orm::{ConnectionTrait as _, Statement, Value};
use tokio::time::sleep;

use super::{
    LONGEST,
    wechat::FIRST_MSGID,
    world::{BATCH, Servers, Service, batches, template},
};
use crate::stats::{Goal, count, median, print};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: usize = 5;
/// Batches in one round.
const BATCHES: u64 = 10;
/// Rows that are added by one statement.
const CHUNK: u64 = 500_000;
/// When the rows are from: not yet old enough to be removed.
const SPAN_MILLIS: u64 = 20 * 3_600_000;

/// So many pages that are not on disk are none to speak of.
const FEW_PAGES: i64 = 1_000;
/// Between two looks at how many there are.
const LOOK: Duration = Duration::from_millis(200);

/// What a round costs, each message.
struct Round {
    wall: f64,
    service: f64,
    database: f64,
}

/// Messages of a service whose table is full beside those of one whose table is not.
pub(super) async fn run(finished: u64) -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let empty = servers.service("").await?;
    let full = servers.service("").await?;
    let started = Instant::now();
    let mut filled = 0;
    while filled < finished {
        let rows = CHUNK.min(finished - filled);
        fill(&full, filled, rows, finished).await?;
        filled += rows;
    }
    let size = "SELECT CAST((data_length + index_length) / 1e6 AS SIGNED) FROM information_schema.tables \
                WHERE table_schema = DATABASE() AND table_name = 'message'";
    full.database
        .execute_unprepared("ANALYZE TABLE message PERSISTENT FOR COLUMNS () INDEXES ()")
        .await?;
    written(&full).await?;
    #[expect(clippy::cast_precision_loss, reason = "a size in MB")]
    let size = full.number(size).await? as f64;
    print(
        &format!("{finished} finished messages: put there within"),
        started.elapsed().as_secs_f64(),
        "s",
        None,
    );
    print("The same: on disk", size, "MB", None);
    let (mut wall, mut service, mut database) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=ROUNDS {
        let first = 1 + u64::try_from(turn)? * BATCHES * BATCH;
        let (full, empty) = if turn % 2 == 0 {
            let full = round(&servers, &full, first).await?;
            (full, round(&servers, &empty, first).await?)
        } else {
            let empty = round(&servers, &empty, first).await?;
            (round(&servers, &full, first).await?, empty)
        };
        if turn > 0 {
            wall.push(full.wall / empty.wall);
            service.push(full.service / empty.service);
            database.push(full.database / empty.database);
        }
    }
    let line = |figure: &str, values, goal| {
        let what = format!("A message among them, {figure}, of one in an empty table");
        print(&what, median(values), "x", goal);
    };
    line("time", wall, Some(Goal::AtMost(1.1)));
    line("push-service's processor time", service, None);
    line(
        "MariaDB's processor time",
        database,
        Some(Goal::AtMost(1.1)),
    );
    Ok(())
}

/// Waits until what was put there is on disk: else its writing would be measured as well.
async fn written(service: &Service) -> anyhow::Result<()> {
    let database = &service.database;
    let pages = "SET GLOBAL innodb_max_dirty_pages_pct = ";
    database.execute_unprepared(&format!("{pages}0")).await?;
    let started = Instant::now();
    let dirty = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
                 WHERE variable_name = 'Innodb_buffer_pool_pages_dirty'";
    while service.number(dirty).await? > FEW_PAGES {
        ensure!(started.elapsed() < LONGEST, "pages are not written");
        sleep(LOOK).await;
    }
    database.execute_unprepared(&format!("{pages}90")).await?;
    Ok(())
}

/// From acceptance to the outcome in the table.
async fn round(servers: &Servers, service: &Service, first: u64) -> anyhow::Result<Round> {
    let calls = batches(first, BATCHES, template);
    let messages = count(usize::try_from(BATCHES * BATCH)?);
    let (before, database_before) = (service.time()?, servers.database_time()?);
    let started = Instant::now();
    service.accept(calls).await?;
    service.settled().await?;
    let each = |seconds: f64| seconds / messages;
    Ok(Round {
        wall: each(started.elapsed().as_secs_f64()),
        service: each((service.time()? - before).as_secs_f64()),
        database: each((servers.database_time()? - database_before).as_secs_f64()),
    })
}

/// Adds rows like that of the first message, SENT in the last hours, in the order of their ids.
async fn fill(service: &Service, from: u64, rows: u64, of: u64) -> anyhow::Result<()> {
    let first =
        "SELECT app_id, caller, content, lane FROM message WHERE request_id = 'order-000000000000'";
    let first = service.one(first).await?;
    let mut values: Vec<Value> = Vec::new();
    for column in 0..4 {
        values.push(first.try_get_by_index::<String>(column)?.into());
    }
    let (from, to) = (from + 1, from + rows);
    let sql = format!(
        "INSERT INTO message (message_id, app_id, open_id, caller, request_id, content, lane, state, attempts, \
             possible_duplicate, errcode, errmsg, wechat_msg_id, create_time, sent_time) \
         SELECT CONCAT(INSERT(LPAD(LOWER(HEX(millis)), 12, '0'), 9, 0, '-'), '-7000-8000-', LPAD(LOWER(HEX(seq)), 12, '0')), \
             ?, CONCAT('p', LPAD(seq, 27, '0')), ?, CONCAT('past-', LPAD(seq, 12, '0')), ?, ?, 4, 1, 0, 0, '', \
             {FIRST_MSGID} - {of} + seq, FROM_UNIXTIME(millis / 1000), FROM_UNIXTIME(millis / 1000) \
         FROM (SELECT seq, FLOOR(UNIX_TIMESTAMP() * 1000 - {SPAN_MILLIS} + seq * {SPAN_MILLIS} / {of}) AS millis \
             FROM seq_{from}_to_{to}) AS past"
    );
    let fill = Statement::from_sql_and_values(service.database.get_database_backend(), sql, values);
    service.database.execute_raw(fill).await?;
    Ok(())
}
