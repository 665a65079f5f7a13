//! Pruning: rows that nobody asks for any more go, a few at a time.
//!
//! Old messages are walked through in the order of their ids, which is that of time, and each row is looked at once: what
//! is finished goes, what still waits stays behind until the next walk. Every replica prunes; where two meet, the one
//! that comes second finds the rows gone and leaves the rest to the first.

use std::{convert::Infallible, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait as _, DbErr, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use service_kit::{
    ops::Readiness,
    storage::{self, within_deadline},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    broadcast,
    database::{self, Database, padded},
    form,
    message::{
        State,
        entity::{Column, Entity},
        first_id,
    },
    metrics,
    receipt::store::Store as Receipts,
};

/// How long a finished message is kept where `WXHUB_MESSAGE_MAX_AGE` does not say otherwise.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// In which rows grow old.
const TABLES: [&str; 4] = ["message", "receipt", "form", "broadcast"];
/// How long it is, about, from one table to the next: statements of a service that idles are counted.
const PAUSE: Duration = Duration::from_secs(15);
/// Rows of one statement.
const TOGETHER: u64 = 128;
/// For so many times as long as a statement took, nothing is pruned after it: what is sent and accepted goes first.
const LEISURE: u32 = 9;
/// How often messages are looked at again that were not finished when they grew old.
const AGAIN: Duration = Duration::from_secs(3_600);
/// What nobody tries again and nobody waits for.
const FINISHED: [State; 5] = [
    State::Sent,
    State::Delivered,
    State::Failed,
    State::Cancelled,
    State::Expired,
];

/// Removes old rows.
#[derive(Debug, Clone)]
pub(crate) struct Pruning {
    pub(crate) database: Database,
    pub(crate) receipts: Receipts,
    pub(crate) forms: form::Store,
    pub(crate) broadcasts: broadcast::Store,
    /// How long finished messages are kept.
    pub(crate) max_age: Duration,
    pub(crate) readiness: Readiness,
}

/// How far the messages have been looked at.
#[derive(Debug, Default)]
struct Walk {
    /// The last id; empty at the start.
    at: String,
    /// Elapsed time at which it began.
    since: Duration,
}

/// A message old enough to be looked at.
#[derive(Debug, FromQueryResult)]
struct Old {
    message_id: String,
    state: State,
    schedule_time: Option<DateTime<Utc>>,
    sent_time: Option<DateTime<Utc>>,
}

impl Pruning {
    /// Prunes until the token is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        if !self.readiness.started(&stop).await {
            return Ok(());
        }
        let mut walk = Walk::default();
        for table in TABLES.into_iter().cycle() {
            match stop.run_until_cancelled(self.prune(table, &mut walk)).await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) if storage::is_deadlock(&error) => {
                    debug!(table, "another one goes first: {error}");
                }
                Some(Err(error)) => warn!(table, "old rows stay for now: {error}"),
            }
            // Replicas that started together do not stay together.
            let pause = PAUSE.mul_f64(0.5 + rand::random::<f64>());
            let pause = tokio::time::sleep(pause);
            if stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Prunes a table a part at a time, until a part was the last.
    async fn prune(&self, table: &'static str, walk: &mut Walk) -> Result<(), DbErr> {
        loop {
            let started = self.database.clock.elapsed();
            let Pruned { rows, more } = match table {
                "message" => self.messages(walk).await?,
                "receipt" => self.receipts.prune(TOGETHER).await?,
                "form" => self.forms.prune(TOGETHER).await?,
                _ => self.broadcasts.prune(self.before(), TOGETHER).await?,
            };
            metrics::pruned(table, rows);
            if !more {
                return Ok(());
            }
            let took = self.database.clock.elapsed().saturating_sub(started);
            debug!(table, rows, took_ms = took.as_millis(), "pruned");
            tokio::time::sleep(took * LEISURE).await;
        }
    }

    /// What came to its end before then is old.
    fn before(&self) -> DateTime<Utc> {
        let age = TimeDelta::from_std(self.max_age).unwrap_or(TimeDelta::MAX);
        let now = database::moment(&self.database.clock);
        now.checked_sub_signed(age).unwrap_or_default()
    }

    async fn messages(&self, walk: &mut Walk) -> Result<Pruned, DbErr> {
        let now = self.database.clock.elapsed();
        if walk.since + AGAIN <= now {
            *walk = Walk {
                at: String::new(),
                since: now,
            };
        }
        let before = self.before();
        let query = Entity::find()
            .select_only()
            .columns([
                Column::MessageId,
                Column::State,
                Column::ScheduleTime,
                Column::SentTime,
            ])
            .filter(Column::MessageId.gt(walk.at.as_str()))
            .filter(Column::MessageId.lt(first_id(before)))
            .order_by_asc(Column::MessageId)
            .limit(TOGETHER)
            .into_model::<Old>()
            .all(&self.database.connection);
        let old = within_deadline(query).await?;
        let Some(last) = old.last().map(|old| old.message_id.clone()) else {
            return Ok(Pruned::default());
        };
        let full = old.len() as u64 == TOGETHER;
        let finished = |old: &Old| {
            let late = old.sent_time.max(old.schedule_time);
            FINISHED.contains(&old.state) && late.is_none_or(|late| late < before)
        };
        let finished = old.into_iter().filter(finished).map(|old| old.message_id);
        let finished: Vec<_> = finished.collect();
        let mut rows = 0;
        if !finished.is_empty() {
            let delete = Entity::delete_many()
                .filter(Column::MessageId.is_in(padded(&finished)))
                // One that failed may have been queued again by hand.
                .filter(Column::State.is_in(FINISHED))
                .exec(&self.database.connection);
            rows = within_deadline(delete).await?.rows_affected;
        }
        walk.at = last;
        let alone = rows == finished.len() as u64;
        Ok(Pruned {
            rows,
            more: full && alone,
        })
    }
}

/// What one part of the pruning came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) rows: u64,
    /// There may be more to prune at once.
    pub(crate) more: bool,
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, PaginatorTrait as _};
    use service_kit::Clock;

    use super::*;
    use crate::testing::on_both;

    const DAY: TimeDelta = TimeDelta::days(1);

    struct World {
        pruning: Pruning,
        now: DateTime<Utc>,
    }

    impl World {
        fn new(database: Database) -> Self {
            let pruning = Pruning {
                receipts: Receipts {
                    database: database.clone(),
                },
                forms: form::Store {
                    database: database.clone(),
                },
                broadcasts: broadcast::Store {
                    database: database.clone(),
                },
                database,
                max_age: Duration::from_secs(2 * 24 * 3_600),
                readiness: Readiness::default(),
            };
            let now = database::moment(&Clock::System);
            Self { pruning, now }
        }

        async fn execute(&self, sql: &str) {
            let connection = &self.pruning.database.connection;
            connection.execute_unprepared(sql).await.unwrap();
        }

        /// Stores messages of an age; `number` tells those of one age apart.
        async fn store(&self, age: TimeDelta, numbers: std::ops::Range<u32>, state: State) {
            let time = self.now - age;
            let (millis, time) = (first_id(time), time.format("%FT%T%.6f"));
            let state = sea_orm::ActiveEnum::to_value(&state);
            let rows: Vec<_> = numbers
                .map(|number| {
                    let id = format!("{}{number:012x}", &millis[..24]);
                    format!("('{id}', 'wx1', 'o1', 'dev', '', {state}, 0, FALSE, 0, '', '{time}', '0/wx1/any/dev')")
                })
                .collect();
            let columns = "message_id, app_id, open_id, caller, content, state, attempts, possible_duplicate, errcode, errmsg, create_time, lane";
            let rows = rows.join(", ");
            self.execute(&format!("INSERT INTO message ({columns}) VALUES {rows}"))
                .await;
        }

        async fn prune(&self) {
            let mut walk = Walk::default();
            for table in TABLES {
                self.pruning.prune(table, &mut walk).await.unwrap();
            }
        }

        async fn left(&self) -> u64 {
            let connection = &self.pruning.database.connection;
            Entity::find().count(connection).await.unwrap()
        }
    }

    on_both! {
        async fn what_is_finished_and_old_goes_and_nothing_else(database: Database) {
            let world = World::new(database);
            let mut number = 0;
            for state in FINISHED {
                for age in [DAY * 3, DAY] {
                    world.store(age, number..number + 1, state).await;
                    number += 1;
                }
            }
            for state in [State::Queued, State::Sending] {
                world.store(DAY * 3, number..number + 1, state).await;
                number += 1;
            }
            // Told long ago, sent of late.
            world.store(DAY * 3, number..number + 1, State::Sent).await;
            let sent = format!("UPDATE message SET sent_time = '{}' WHERE message_id LIKE '%{number:012x}'", (world.now - DAY).format("%FT%T%.6f"));
            world.execute(&sent).await;
            world.prune().await;
            assert_eq!(world.left().await, 5 + 2 + 1);
        }

        async fn what_waits_is_passed_by_and_goes_when_it_is_finished(database: Database) {
            let world = World::new(database);
            let rows = TOGETHER as u32 * 2;
            world.store(DAY * 4, 0..rows, State::Queued).await;
            world.store(DAY * 3, 0..rows, State::Delivered).await;
            let mut walk = Walk { at: String::new(), since: world.pruning.database.clock.elapsed() };
            world.pruning.prune("message", &mut walk).await.unwrap();
            assert_eq!(world.left().await, u64::from(rows));
            // What grows old from now on is looked at alone.
            world.execute("UPDATE message SET state = 5").await;
            world.store(DAY * 2 + TimeDelta::minutes(1), 0..1, State::Failed).await;
            world.pruning.prune("message", &mut walk).await.unwrap();
            assert_eq!(world.left().await, u64::from(rows));
            walk.since = Duration::ZERO;
            world.pruning.prune("message", &mut walk).await.unwrap();
            assert_eq!(world.left().await, 0);
        }

        async fn replicas_that_meet_do_no_harm(database: Database) {
            let world = World::new(database);
            let rows = TOGETHER as u32 * 4;
            world.store(DAY * 3, 0..rows, State::Sent).await;
            world.store(DAY, 0..10, State::Sent).await;
            let mut walks = [Walk::default(), Walk::default(), Walk::default()];
            let prunes = walks.iter_mut().map(|walk| world.pruning.prune("message", walk));
            for pruned in futures_util::future::join_all(prunes).await {
                pruned.unwrap();
            }
            world.prune().await;
            assert_eq!(world.left().await, 10);
        }

        async fn receipts_find_their_message_at_last_or_go(database: Database) {
            let world = World::new(database);
            let hour = |hours| (world.now - TimeDelta::hours(hours)).format("%FT%T%.6f").to_string();
            world.store(DAY, 0..2, State::Sent).await;
            world.execute("UPDATE message SET wechat_msg_id = '1' WHERE message_id LIKE '%000'").await;
            world.execute("UPDATE message SET wechat_msg_id = '2' WHERE message_id LIKE '%001'").await;
            for (msg_id, time) in [("1", hour(2)), ("2", hour(0)), ("3", hour(2)), ("4", hour(0))] {
                let receipt = format!("INSERT INTO receipt VALUES ('wx1', '{msg_id}', TRUE, 0, '', '{time}')");
                world.execute(&receipt).await;
            }
            world.prune().await;
            let connection = &world.pruning.database.connection;
            let delivered = Entity::find().filter(Column::State.eq(State::Delivered));
            let delivered = delivered.all(connection).await.unwrap();
            assert_eq!(delivered.len(), 1);
            assert_eq!(delivered[0].wechat_msg_id.as_deref(), Some("1"));
            assert_eq!(world.pruning.receipts.kept().await, ["2", "4"]);
        }

        async fn a_broadcast_goes_after_its_messages_and_an_old_draft_is_cancelled(database: Database) {
            let world = World::new(database);
            // Finished and cancelled long ago, finished of late, running, a draft.
            for (number, state, ended) in [(0, 5, Some(3)), (1, 4, Some(3)), (2, 5, Some(1)), (3, 2, None), (4, 1, None)] {
                let id = format!("{}{number:012x}", &first_id(world.now - DAY * 4)[..24]);
                let ended = ended.map_or_else(|| "NULL".to_owned(), |days| format!("'{}'", (world.now - DAY * days).format("%FT%T%.6f")));
                let time = (world.now - DAY * 4).format("%FT%T%.6f");
                world.execute(&format!(
                    "INSERT INTO broadcast (broadcast_id, app_id, caller, content, kind, state, expanded_to, recipients, create_time, end_time)
                     VALUES ('{id}', 'wx1', 'dev', '', 'template', {state}, '', 2, '{time}', {ended})"
                ))
                .await;
                if number == 0 {
                    // Queued again by hand: it still says what the broadcast says.
                    world.store(DAY * 3, 0..1, State::Queued).await;
                    world.execute(&format!("UPDATE message SET broadcast_id = '{id}', lane = '1/wx1/template/{id}'")).await;
                }
            }
            let states = async || {
                let connection = &world.pruning.database.connection;
                let states = sea_orm::Statement::from_string(
                    connection.get_database_backend(),
                    "SELECT state FROM broadcast ORDER BY broadcast_id",
                );
                let rows = connection.query_all_raw(states).await.unwrap();
                rows.iter().map(|row| row.try_get_by_index::<i8>(0).unwrap()).collect::<Vec<_>>()
            };
            world.prune().await;
            assert_eq!(states().await, [5, 5, 2, 101]);
            world.execute("UPDATE message SET state = 6").await;
            world.prune().await;
            assert_eq!(world.left().await, 0);
            assert_eq!(states().await, [5, 2, 101]);
        }

        async fn form_ids_go_when_they_expire(database: Database) {
            let world = World::new(database);
            let rows = TOGETHER * 2 + 7;
            let time = |hours| (world.now + TimeDelta::hours(hours)).format("%FT%T%.6f").to_string();
            let row = |number| format!("('wx{}', 'f{number}', 'o1', '{}')", number % 3, if number < 5 { time(1) } else { time(-1) });
            let values: Vec<_> = (0..rows).map(row).collect();
            world.execute(&format!("INSERT INTO form (app_id, form_id, open_id, expire_time) VALUES {}", values.join(", "))).await;
            world.prune().await;
            let left = world.pruning.database.connection.query_all_raw(sea_orm::Statement::from_string(
                world.pruning.database.connection.get_database_backend(),
                "SELECT form_id FROM form",
            ));
            assert_eq!(left.await.unwrap().len(), 5);
        }
    }
}
