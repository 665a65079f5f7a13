//! Which lanes have something to do: found from lane to lane in the index, so that it costs the same however many
//! messages wait in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sea_orm::{
    ActiveEnum as _, ConnectionTrait as _, DbErr, Order,
    sea_query::{Asterisk, Expr, ExprTrait as _, Query, SelectStatement, UnionType},
};
use service_kit::storage::within_deadline;

use super::queue::{AHEAD, DUE, SOONEST};
use crate::{
    database::{Database, padded},
    message::{
        State,
        entity::{Column, Entity},
    },
};

/// The most steps of one statement.
const TOGETHER: usize = 64;
/// What stands for no lane: comes before the first one.
const NONE: &str = "";

/// Looks for lanes in which messages wait.
///
/// The step from one lane to the next is a look at one entry of the index; a statement takes the steps from all lanes
/// that were there at the last survey. Where it arrives at others, the next goes on from those.
#[derive(Debug)]
pub(super) struct Surveyor {
    database: Database,
    /// The lanes at the last survey.
    lanes: BTreeSet<String>,
}

/// Which lanes have something to do.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Lanes in which messages are due, and for how long the oldest has been.
    pub(super) due: Vec<(String, Duration)>,
    /// How long until the first message of another lane falls due, if that is within [`AHEAD`].
    pub(super) upcoming: Option<Duration>,
    /// Workers died while they sent.
    pub(super) lost: bool,
    /// How long until that may be so again, if that is within [`AHEAD`].
    pub(super) lost_in: Option<Duration>,
}

impl Surveyor {
    pub(super) fn new(database: Database) -> Self {
        Self {
            database,
            lanes: BTreeSet::new(),
        }
    }

    /// Tells which lanes have something to do; with `lost`, also whether workers died while they sent.
    pub(super) async fn survey(&mut self, lost: bool) -> Result<Survey, DbErr> {
        let mut survey = Survey::default();
        let (found, lease) = self.look(lost).await?;
        if let Some(micros) = lease {
            let apart = Duration::from_micros(micros.unsigned_abs());
            survey.lost = micros <= 0;
            survey.lost_in = (micros > 0 && apart <= AHEAD).then_some(apart);
        }
        for (lane, micros) in found {
            let apart = Duration::from_micros(micros.unsigned_abs());
            if micros <= 0 {
                survey.due.push((lane, apart));
            } else if apart <= AHEAD {
                soonest(&mut survey.upcoming, apart);
            }
        }
        Ok(survey)
    }

    /// Every lane in which messages wait, and how many microseconds it is until the first of them falls due.
    pub(super) async fn lanes(&mut self) -> Result<BTreeMap<String, i64>, DbErr> {
        Ok(self.look(false).await?.0)
    }

    /// Those lanes, and with `lost` how many microseconds it is until the first lease ends of what is on the wire.
    async fn look(&mut self, lost: bool) -> Result<(BTreeMap<String, i64>, Option<i64>), DbErr> {
        let mut found = BTreeMap::new();
        let mut lease = None;
        let mut from: Vec<String> = self.lanes.iter().cloned().collect();
        from.push(NONE.to_owned());
        let mut sending = lost.then(|| self.sending());
        while !from.is_empty() {
            for from in from.chunks(TOGETHER) {
                let steps = padded(from).map(|lane| self.next_after(lane));
                for (lane, micros) in self.ask(steps.chain(sending.take())).await? {
                    if lane == NONE {
                        lease = micros;
                    } else {
                        found.insert(lane, micros.unwrap_or_default());
                    }
                }
            }
            let arrived = found.keys().cloned();
            from = arrived
                .filter(|lane| self.lanes.insert(lane.clone()))
                .collect();
        }
        self.lanes.retain(|lane| found.contains_key(lane));
        Ok((found, lease))
    }

    /// The first lane after this one, and when the first of its messages falls due.
    fn next_after(&self, lane: &str) -> SelectStatement {
        Query::select()
            .column(Column::Lane)
            .expr_as(self.database.micros_until(DUE), "micros")
            .from(Entity)
            .and_where(Expr::col(Column::State).eq(State::Queued.to_value()))
            .and_where(Expr::col(Column::Lane).gt(lane))
            .order_by(Column::Lane, Order::Asc)
            .order_by(Column::NextAttemptTime, Order::Asc)
            .limit(1)
            .to_owned()
    }

    /// When the first lease of those ends that are on the wire.
    fn sending(&self) -> SelectStatement {
        Query::select()
            .expr_as(Expr::value(NONE), "lane")
            .expr_as(self.database.micros_until(SOONEST), "micros")
            .from(Entity)
            .and_where(Expr::col(Column::State).eq(State::Sending.to_value()))
            .to_owned()
    }

    async fn ask(
        &self,
        steps: impl Iterator<Item = SelectStatement>,
    ) -> Result<Vec<(String, Option<i64>)>, DbErr> {
        // SQLite takes a limit in a part of a union only inside of another select.
        let mut steps = steps.map(|step| {
            let mut part = Query::select();
            part.column(Asterisk).from_subquery(step, "step");
            part
        });
        let Some(mut query) = steps.next() else {
            return Ok(Vec::new());
        };
        query.unions(steps.map(|step| (UnionType::All, step)));
        let rows = within_deadline(self.database.connection.query_all(&query)).await?;
        let rows = rows.iter();
        rows.map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)))
            .collect()
    }
}

pub(super) fn soonest(known: &mut Option<Duration>, other: Duration) {
    *known = Some(known.map_or(other, |known| known.min(other)));
}

#[cfg(test)]
mod tests {
    use sea_orm::EntityTrait as _;

    use super::*;
    use crate::{database, testing::on_both};

    impl Surveyor {
        /// Stores messages of a lane, due so many milliseconds ago.
        async fn store(&self, lane: &str, state: State, ago: &[i64]) {
            let now = database::moment(&self.database.clock);
            let rows: Vec<_> = ago
                .iter()
                .map(|ago| {
                    let id = uuid::Uuid::now_v7();
                    let due = now - chrono::TimeDelta::milliseconds(*ago);
                    let (now, due) = (now.format("%F %T%.6f"), due.format("%F %T%.6f"));
                    let state = state.to_value();
                    format!("('{id}', 'wx1', 'o1', 'dev', '', {state}, 0, FALSE, 0, '', '{now}', '{due}', '{lane}')")
                })
                .collect();
            let columns = "message_id, app_id, open_id, caller, content, state, attempts, possible_duplicate, errcode, errmsg, create_time, next_attempt_time, lane";
            let sql = format!("INSERT INTO message ({columns}) VALUES {}", rows.join(", "));
            let connection = &self.database.connection;
            connection.execute_unprepared(&sql).await.unwrap();
        }

        async fn due(&mut self) -> Vec<String> {
            let due = self.survey(true).await.unwrap().due.into_iter();
            due.map(|(lane, _)| lane).collect()
        }
    }

    on_both! {
        async fn lanes_are_found_as_they_come_and_go(database: Database) {
            let mut surveyor = Surveyor::new(database);
            assert_eq!(surveyor.due().await, Vec::<String>::new());
            for lane in ["b", "d", "d", "f"] {
                surveyor.store(lane, State::Queued, &[1_000, 2_000]).await;
            }
            surveyor.store("e", State::Sent, &[1_000]).await;
            assert_eq!(surveyor.due().await, ["b", "d", "f"]);
            for lane in ["a", "c", "e", "ee", "g"] {
                surveyor.store(lane, State::Queued, &[1_000]).await;
            }
            assert_eq!(surveyor.due().await, ["a", "b", "c", "d", "e", "ee", "f", "g"]);
            let gone = "DELETE FROM message WHERE lane IN ('a', 'd', 'g')";
            surveyor.database.connection.execute_unprepared(gone).await.unwrap();
            assert_eq!(surveyor.due().await, ["b", "c", "e", "ee", "f"]);
            assert_eq!(surveyor.lanes.len(), 5);
            Entity::delete_many().exec(&surveyor.database.connection).await.unwrap();
            assert_eq!(surveyor.due().await, Vec::<String>::new());
            assert!(surveyor.lanes.is_empty());
        }

        async fn more_lanes_than_one_statement_takes_are_all_found(database: Database) {
            let mut surveyor = Surveyor::new(database);
            for lane in 0..TOGETHER * 2 + 3 {
                surveyor.store(&format!("{lane:04}"), State::Queued, &[1_000]).await;
            }
            for _ in 0..2 {
                assert_eq!(surveyor.due().await.len(), TOGETHER * 2 + 3);
            }
        }

        async fn what_is_not_due_yet_is_looked_forward_to(database: Database) {
            let mut surveyor = Surveyor::new(database);
            surveyor.store("later", State::Queued, &[-3_600_000]).await;
            assert_eq!(surveyor.survey(false).await.unwrap().upcoming, None);
            surveyor.store("due", State::Queued, &[60_000, -100]).await;
            let mut survey = Survey::default();
            // On a busy machine one may be due before it is seen.
            for turn in 0..10 {
                surveyor.store(&format!("soon{turn}"), State::Queued, &[-1_200, -3_600_000]).await;
                survey = surveyor.survey(false).await.unwrap();
                if survey.upcoming.is_some() {
                    break;
                }
            }
            let age = survey.due.iter().find_map(|(lane, age)| (lane == "due").then_some(*age));
            assert!(age.is_some_and(|age| age >= Duration::from_secs(60)), "{survey:?}");
            assert!(survey.upcoming.is_some_and(|wait| wait <= Duration::from_millis(1_200)), "{survey:?}");
            assert!(survey.due.iter().all(|(lane, _)| lane != "later"), "{survey:?}");
        }

        async fn what_dead_workers_left_is_seen_when_it_is_looked_for(database: Database) {
            let mut surveyor = Surveyor::new(database);
            surveyor.store("a", State::Sending, &[-60_000]).await;
            let survey = surveyor.survey(true).await.unwrap();
            assert_eq!((survey.lost, survey.lost_in), (false, None));
            surveyor.store("a", State::Sending, &[-1_400]).await;
            let survey = surveyor.survey(true).await.unwrap();
            assert!(survey.lost || survey.lost_in.is_some(), "{survey:?}");
            surveyor.store("b", State::Sending, &[10]).await;
            assert!(surveyor.survey(true).await.unwrap().lost);
            assert!(!surveyor.survey(false).await.unwrap().lost);
        }
    }
}
