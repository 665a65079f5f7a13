//! A caller's messages beside the backlog of another.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use sea_orm::{ConnectionTrait as _, Statement, Value};

use super::world::{Servers, Service, send, template};
use crate::{
    load::paced,
    stats::{Goal, count, median, print},
};

/// Each figure is the median of so many rounds; an odd number.
const ROUNDS: usize = 9;
/// Messages a second of the caller who has few, and how many in a round.
const RATE: u32 = 50;
const FEW: u32 = 300;
/// What the app may send a second in the case where its rate, and not the machine, is the limit.
const SEND_RATE: u32 = 500;

/// From SendMessage to WeChat, while `backlog` messages of another caller wait, and while none do.
pub(super) async fn run(backlog: u64) -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let rated = format!("send_rate = {SEND_RATE}");
    let of = format!("Beside a backlog of {backlog}");
    for (what, app) in [
        (format!("{of}, {SEND_RATE} a second"), rated.as_str()),
        (format!("{of}, as fast as it goes"), ""),
    ] {
        let mut quiet = servers.service(app).await?;
        let mut busy = servers.service(app).await?;
        quiet.stop().await?;
        busy.stop().await?;
        fill(&busy, backlog).await?;
        let number = AtomicU64::new(1);
        let (mut alone, mut ratios, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            // One at a time, for they share the machine.
            let (without, _) = measure(&servers, &mut quiet, &number).await?;
            let (with, sent) = measure(&servers, &mut busy, &number).await?;
            if round > 0 {
                alone.push(without * 1e3);
                ratios.push(with / without);
                others.push(sent);
            }
        }
        let left = busy.number("SELECT COUNT(*) FROM message WHERE state = 2");
        anyhow::ensure!(left.await? > 0, "the backlog ended too early");
        print(
            &format!("{what}: SendMessage to WeChat, p99 without it"),
            median(alone),
            "ms",
            None,
        );
        print(
            &format!("{what}: p99, of that"),
            median(ratios),
            "x",
            Some(Goal::AtMost(1.5)),
        );
        print(
            &format!("{what}: of the backlog meanwhile, a second"),
            median(others),
            "",
            None,
        );
    }
    Ok(())
}

/// The p99 from the call to the arrival at WeChat, in seconds, and how many others arrived a second.
async fn measure(
    servers: &Servers,
    service: &mut Service,
    number: &AtomicU64,
) -> anyhow::Result<(f64, f64)> {
    let next = || number.fetch_add(1, Ordering::Relaxed);
    servers.resume(service, next()).await?;
    let (before, started) = (servers.wechat.distinct(), Instant::now());
    let p99 = paced(RATE, FEW, |turn| {
        let (channel, wechat) = (service.channel(turn), servers.wechat.clone());
        let request = template(next());
        async move {
            let message = send(channel?, request).await?;
            wechat.arrival(&message.message_id).await.map(drop)
        }
    });
    let p99 = p99.await?;
    let arrived = servers.wechat.distinct() - before;
    let others = arrived.saturating_sub(usize::try_from(FEW)?);
    let others = count(others) / started.elapsed().as_secs_f64();
    service.stop().await?;
    Ok((p99, others))
}

/// Adds rows like that of the first message, of another caller, that are all due.
async fn fill(service: &Service, rows: u64) -> anyhow::Result<()> {
    let first = "SELECT app_id, content, lane FROM message LIMIT 1";
    let first = service.one(first).await?;
    let mut values: Vec<Value> = Vec::new();
    for column in 0..3 {
        values.push(first.try_get_by_index::<String>(column)?.into());
    }
    let sql = format!(
        "INSERT INTO message (message_id, app_id, open_id, caller, request_id, content, lane, state, attempts, \
             possible_duplicate, errcode, errmsg, create_time, next_attempt_time) \
         SELECT CONCAT(INSERT(LPAD(LOWER(HEX(FLOOR(UNIX_TIMESTAMP() * 1000))), 12, '0'), 9, 0, '-'), '-7000-8000-', LPAD(LOWER(HEX(seq)), 12, '0')), \
             ?, CONCAT('p', LPAD(seq, 27, '0')), 'backlog', CONCAT('backlog-', LPAD(seq, 12, '0')), ?, \
             REPLACE(?, 'bench', 'backlog'), 2, 0, 0, 0, '', UTC_TIMESTAMP(3), UTC_TIMESTAMP(6) \
         FROM seq_1_to_{rows}"
    );
    let fill = Statement::from_sql_and_values(service.database.get_database_backend(), sql, values);
    service.database.execute_raw(fill).await?;
    Ok(())
}
