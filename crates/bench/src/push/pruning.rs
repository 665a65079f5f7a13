//! What callers notice while old messages are removed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::ensure;
use sea_orm::{ConnectionTrait as _, Statement};

use super::world::{Servers, Service, send, template};
use crate::{
    load::paced,
    stats::{Goal, median, print},
};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: u32 = 5;
/// Single messages a second, and how many in one half of a round.
const RATE: u32 = 500;
const SINGLE: u32 = 2_500;
/// Old messages at the start of a round: more than are removed within the measured half of it.
const OLD: u64 = 40_000;
/// Older than messages are kept.
const AGE_DAYS: u32 = 40;
/// Between two looks at whether all is gone.
const LOOK: Duration = Duration::from_millis(200);

/// SendMessage while messages are removed beside SendMessage while there are none to remove.
pub(super) async fn run() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let mut service = servers.service("").await?;
    let number = AtomicU64::new(1);
    let next = || number.fetch_add(1, Ordering::Relaxed);
    let (mut ratios, mut removed) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // It begins to remove old messages when it starts.
        service.stop().await?;
        fill(&service, round).await?;
        let before = old(&service).await?;
        servers.resume(&mut service, next()).await?;
        let pruning = sends(&service, next).await?;
        let after = old(&service).await?;
        ensure!(
            after > 0,
            "all was removed before the measurement was at its end"
        );
        while old(&service).await? > 0 {
            tokio::time::sleep(LOOK).await;
        }
        service.settled().await?;
        let quiet = sends(&service, next).await?;
        service.settled().await?;
        if round > 0 {
            ratios.push(pruning / quiet);
            let each = f64::from(SINGLE) / f64::from(RATE);
            removed.push(f64::from(u32::try_from(before - after)?) / each);
        }
    }
    print(
        "SendMessage, 500 a second, while old messages go: p99, of without",
        median(ratios),
        "x",
        Some(Goal::AtMost(1.5)),
    );
    print(
        "Old messages removed a second meanwhile",
        median(removed),
        "",
        None,
    );
    Ok(())
}

async fn sends(service: &Service, next: impl Fn() -> u64) -> anyhow::Result<f64> {
    let sent = paced(RATE, SINGLE, |turn| {
        let channel = service.channel(turn);
        let request = template(next());
        async move { send(channel?, request).await.map(drop) }
    });
    sent.await
}

async fn old(service: &Service) -> anyhow::Result<i64> {
    let old = "SELECT COUNT(*) FROM message WHERE request_id LIKE 'old-%'";
    service.number(old).await
}

/// Adds messages like the first one, SENT long ago.
async fn fill(service: &Service, round: u32) -> anyhow::Result<()> {
    let (from, to) = (1, OLD);
    let sql = format!(
        "INSERT INTO message (message_id, app_id, open_id, caller, request_id, content, lane, state, attempts, \
             possible_duplicate, errcode, errmsg, wechat_msg_id, create_time, sent_time) \
         SELECT CONCAT(INSERT(LPAD(LOWER(HEX(millis)), 12, '0'), 9, 0, '-'), '-7000-8000-', LPAD(LOWER(HEX(seq)), 12, '0')), \
             app_id, CONCAT('p', LPAD(seq, 27, '0')), caller, CONCAT('old-{round}-', seq), content, lane, 4, 1, 0, 0, '', \
             CONCAT('old-{round}-', seq), FROM_UNIXTIME(millis / 1000), FROM_UNIXTIME(millis / 1000) \
         FROM (SELECT seq, FLOOR(UNIX_TIMESTAMP() * 1000 - {AGE_DAYS} * 86400000 + seq) AS millis FROM seq_{from}_to_{to}) AS past, \
             (SELECT app_id, caller, content, lane FROM message WHERE request_id = 'order-000000000000') AS first"
    );
    let fill = Statement::from_string(service.database.get_database_backend(), sql);
    service.database.execute_raw(fill).await?;
    Ok(())
}
