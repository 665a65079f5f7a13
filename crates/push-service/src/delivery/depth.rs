//! How much waits, for how long, and what holds it back: for whoever operates the service, counted at leisure.
//!
//! Every replica tells the same of the queue, and each its own pauses.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use sea_orm::{
    ActiveEnum as _, ConnectionTrait as _, DbErr, ExprTrait as _, Order,
    sea_query::{Asterisk, Expr, Query, SelectStatement, UnionType},
};
use service_kit::{CatalogHandle, Clock, ops::Readiness, storage::within_deadline};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Pauses, Queue, survey::Surveyor};
use crate::{
    message::{
        Lane, State,
        entity::{Column, Entity},
    },
    metrics,
};

/// How often it is counted, about.
const PAUSE: Duration = Duration::from_secs(15);
/// For so many times as long as the count took, at least, it is not repeated.
const LEISURE: u32 = 50;
/// A lane's messages are counted up to here: more than a broadcast puts into the queue at once.
const MOST: u32 = 20_000;
/// Lanes of one statement.
const TOGETHER: usize = 16;
/// What is an app's that the catalog does not know.
const UNKNOWN: &str = "unknown";
/// What concerns every app, or every kind.
const ANY: &str = "any";

/// Tells how deep the queue is.
#[derive(Debug)]
pub(crate) struct Depths {
    pub(crate) queue: Queue,
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) catalog: CatalogHandle,
    pub(crate) clock: Clock,
    pub(crate) readiness: Readiness,
}

/// What waits in a lane.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Depth {
    /// Messages that are due, and those that fall due later or are being sent; up to [`MOST`] of each.
    due: u32,
    later: u32,
    /// For how long the first has been due.
    oldest: Duration,
}

/// What was told before, and is told to be over once it is.
#[derive(Debug, Default)]
struct Told {
    queues: BTreeSet<metrics::Queue>,
    pauses: BTreeSet<(String, &'static str)>,
}

impl Depths {
    /// Tells until the token is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        if !self.readiness.started(&stop).await {
            return Ok(());
        }
        let mut told = Told::default();
        let mut surveyor = Surveyor::new(self.queue.database.clone());
        let telling = async {
            loop {
                let started = self.clock.elapsed();
                self.tell_pauses(&mut told);
                match self.queue.depths(&mut surveyor).await {
                    Ok(depths) => self.tell(depths, &mut told),
                    Err(error) => debug!("the queue's depth is not known: {error}"),
                }
                let took = self.clock.elapsed().saturating_sub(started);
                tokio::time::sleep(PAUSE.max(took * LEISURE)).await;
            }
        };
        stop.run_until_cancelled(telling).await.unwrap_or(Ok(()))
    }

    fn tell(&self, depths: BTreeMap<String, Depth>, told: &mut Told) {
        let mut queues: BTreeMap<metrics::Queue, Depth> = BTreeMap::new();
        for queue in &told.queues {
            queues.insert(queue.clone(), Depth::default());
        }
        for (lane, depth) in depths {
            let Some(lane) = Lane::parse(&lane) else {
                continue;
            };
            let queue = metrics::Queue {
                app: self.name(&lane.app_id),
                priority: lane.priority.name(),
                kind: lane.kind,
            };
            let sum = queues.entry(queue).or_default();
            sum.due = sum.due.saturating_add(depth.due);
            sum.later = sum.later.saturating_add(depth.later);
            sum.oldest = sum.oldest.max(depth.oldest);
        }
        for (queue, depth) in &queues {
            metrics::waiting(queue, depth.due, depth.later, depth.oldest);
        }
        told.queues = queues.into_keys().collect();
    }

    fn tell_pauses(&self, told: &mut Told) {
        let mut pauses: BTreeMap<_, _> = told
            .pauses
            .iter()
            .map(|pause| (pause.clone(), Duration::ZERO))
            .collect();
        for (app_id, kind, left) in self.pauses.all(self.clock.elapsed()) {
            let app = app_id.map_or_else(|| ANY.to_owned(), |app_id| self.name(&app_id));
            pauses.insert((app, kind.unwrap_or(ANY)), left);
        }
        for ((app, kind), left) in &pauses {
            metrics::pause(app, kind, *left);
        }
        told.pauses = pauses.into_keys().collect();
    }

    fn name(&self, app_id: &str) -> String {
        name(&self.catalog, app_id)
    }
}

/// An app's name, by which metrics tell it.
pub(super) fn name(catalog: &CatalogHandle, app_id: &str) -> String {
    let catalog = catalog.current();
    let app = catalog.app(app_id);
    app.map_or_else(|| UNKNOWN.to_owned(), |app| app.name.clone())
}

impl Queue {
    /// What waits in each lane. Costs a step of an index for each lane and each message that is counted.
    async fn depths(&self, surveyor: &mut Surveyor) -> Result<BTreeMap<String, Depth>, DbErr> {
        let mut depths: BTreeMap<String, Depth> = BTreeMap::new();
        for (lane, micros) in surveyor.lanes().await? {
            let overdue = u64::try_from(micros.saturating_neg()).unwrap_or_default();
            let depth = Depth {
                oldest: Duration::from_micros(overdue),
                ..Depth::default()
            };
            depths.insert(lane, depth);
        }
        let lanes: Vec<_> = depths.keys().cloned().collect();
        for lanes in lanes.chunks(TOGETHER) {
            let mut counts = lanes
                .iter()
                .flat_map(|lane| [true, false].map(|due| self.count(lane, due)));
            let Some(mut query) = counts.next() else {
                break;
            };
            query.unions(counts.map(|count| (UnionType::All, count)));
            let rows = within_deadline(self.database.connection.query_all(&query)).await?;
            for row in rows {
                let (lane, due, count): (String, i64, i64) = (
                    row.try_get_by_index(0)?,
                    row.try_get_by_index(1)?,
                    row.try_get_by_index(2)?,
                );
                let depth = depths.entry(lane).or_default();
                let place = match due {
                    0 => &mut depth.later,
                    _ => &mut depth.due,
                };
                *place = u32::try_from(count).unwrap_or(MOST);
            }
        }
        Ok(depths)
    }

    /// How many messages of a lane are due, or not yet.
    fn count(&self, lane: &str, due: bool) -> SelectStatement {
        let time = Expr::col(Column::NextAttemptTime);
        let now = self.database.now();
        let counted = Query::select()
            // Short rows: the database makes a table of them.
            .expr_as(Expr::cust("1"), "one")
            .from(Entity)
            .and_where(Expr::col(Column::State).eq(State::Queued.to_value()))
            .and_where(Expr::col(Column::Lane).eq(lane))
            .and_where(if due { time.lte(now) } else { time.gt(now) })
            .order_by(Column::NextAttemptTime, Order::Asc)
            .limit(u64::from(MOST))
            .to_owned();
        Query::select()
            .expr(Expr::value(lane))
            .expr(Expr::cust(if due { "1" } else { "0" }))
            .expr(Expr::col(Asterisk).count())
            .from_subquery(counted, "counted")
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::DatabaseBackend;

    use super::*;
    use crate::{database::Database, testing::on_both};

    on_both! {
        async fn what_waits_is_counted_by_lane(database: Database) {
            let connection = database.connection.clone();
            let queue = Queue { database };
            let mut surveyor = Surveyor::new(queue.database.clone());
            assert_eq!(queue.depths(&mut surveyor).await.unwrap(), BTreeMap::new());
            let backend = connection.get_database_backend();
            let time = |seconds: i64| match backend {
                DatabaseBackend::MySql => format!("UTC_TIMESTAMP(6) + INTERVAL {seconds} SECOND"),
                _ => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{seconds} seconds')"),
            };
            // More lanes than one statement asks for.
            let busy = 0..TOGETHER + 3;
            let mut rows = Vec::new();
            for lane in busy.clone() {
                for (state, seconds) in [(2, -60), (2, -5), (2, 3_600), (3, -60), (5, -60)] {
                    let id = format!("{:036}", rows.len());
                    let time = time(seconds);
                    rows.push(format!("('{id}', 'wx1', 'o1', 'dev', '', {state}, 0, FALSE, 0, '', {time}, {time}, '0/wx1/template/{lane:03}')"));
                }
            }
            let insert = format!(
                "INSERT INTO message (message_id, app_id, open_id, caller, content, state, attempts, possible_duplicate, errcode, errmsg, create_time, next_attempt_time, lane) VALUES {}",
                rows.join(", ")
            );
            connection.execute_unprepared(&insert).await.unwrap();
            let depths = queue.depths(&mut surveyor).await.unwrap();
            assert_eq!(depths.len(), busy.len());
            for (lane, depth) in depths {
                assert_eq!((depth.due, depth.later), (2, 1), "{lane}");
                assert!(depth.oldest >= Duration::from_secs(59), "{depth:?}");
            }
        }
    }
}
