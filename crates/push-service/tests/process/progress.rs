//! How deliveries go on under a fault: when WeChat takes messages, and how long what a killed replica held lies still.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sea_orm::{DbErr, QueryResult};
use tokio::time::sleep;

use crate::cluster::Cluster;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The moments at which WeChat was seen to have taken more.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(Mutex<Vec<Instant>>);

impl Deliveries {
    /// Looks until it is dropped.
    pub(crate) async fn watch(self: Arc<Self>, cluster: Arc<Cluster>) {
        let mut taken = cluster.taken();
        loop {
            sleep(LOOK).await;
            let now = cluster.taken();
            if now > taken {
                self.0.lock().unwrap().push(Instant::now());
            }
            taken = now;
        }
    }

    /// How long after `moment` the next ones were taken.
    pub(crate) fn next_after(&self, moment: Instant) -> Option<Duration> {
        let seen = self.0.lock().unwrap();
        let next = seen.iter().find(|seen| **seen >= moment)?;
        Some(*next - moment)
    }

    /// The longest time between two of them.
    pub(crate) fn longest_pause(&self) -> Duration {
        let seen = self.0.lock().unwrap();
        let pauses = seen.windows(2).map(|pair| pair[1] - pair[0]);
        pauses.max().unwrap_or_default()
    }
}

/// What replicas held when they were killed.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    /// message_id to the claim of the dead one, and when that died.
    held: Mutex<HashMap<String, (String, Instant)>>,
    gone_on: Mutex<Vec<Duration>>,
}

impl InFlight {
    /// Takes note of what is claimed: by the one that died then, or by others, who end it by themselves.
    pub(crate) async fn note(&self, cluster: &Cluster, died: Instant) -> Result<(), DbErr> {
        let claimed = "SELECT message_id, claim_id FROM message WHERE state IN (2, 3) AND claim_id IS NOT NULL";
        for row in cluster.query(claimed).await? {
            let (message_id, claim_id) = (text(&row, "message_id"), text(&row, "claim_id"));
            let mut held = self.held.lock().unwrap();
            held.entry(message_id).or_insert((claim_id, died));
        }
        Ok(())
    }

    /// Looks, until it is dropped, for those that went on: they are somebody else's now, or ended.
    pub(crate) async fn watch(self: Arc<Self>, cluster: Arc<Cluster>) {
        loop {
            sleep(LOOK).await;
            let ids: Vec<_> = self.held.lock().unwrap().keys().cloned().collect();
            if ids.is_empty() {
                continue;
            }
            let query = format!(
                "SELECT message_id, state, claim_id FROM message WHERE message_id IN ('{}')",
                ids.join("','")
            );
            let rows = cluster.query(query).await.unwrap();
            let now = Instant::now();
            let mut held = self.held.lock().unwrap();
            for row in rows {
                let message_id = text(&row, "message_id");
                let Some((dead, died)) = held.get(&message_id) else {
                    continue;
                };
                let waits = [2, 3].contains(&row.try_get::<i8>("", "state").unwrap());
                let claim: Option<String> = row.try_get("", "claim_id").unwrap();
                if !waits || claim.is_some_and(|claim| claim != *dead) {
                    self.gone_on.lock().unwrap().push(now - *died);
                    held.remove(&message_id);
                }
            }
        }
    }

    /// How long each lay still, shortest first; none while some still do.
    pub(crate) fn all_gone_on(&self) -> Option<Vec<Duration>> {
        let held = self.held.lock().unwrap();
        let mut gone_on = self.gone_on.lock().unwrap().clone();
        gone_on.sort();
        held.is_empty().then_some(gone_on)
    }
}

fn text(row: &QueryResult, column: &str) -> String {
    row.try_get("", column).unwrap()
}
