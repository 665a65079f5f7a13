//! Who called what, and how it ended: what a test counts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bounded::BoundedList;

/// Calls that the log holds.
const LOG: usize = 1_000;
/// Different (app, endpoint, outcome) that are counted.
const COUNTERS: usize = 10_000;

/// One call of the WeChat side.
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    /// Unix seconds, by this WeChat's clock.
    pub time: u64,
    /// The account in whose name it was made, where that could be told.
    pub app_id: Option<String>,
    /// The path.
    pub endpoint: &'static str,
    /// `ok`, an error code, `http 502` or `reset`.
    pub outcome: String,
    /// The id at the end of an error's text.
    pub rid: Option<String>,
}

/// How often each endpoint was called, by outcome, and the latest calls.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Calls {
    /// Endpoint → outcome → calls since the start.
    pub counts: BTreeMap<String, BTreeMap<String, u64>>,
    /// The last thousand, newest last.
    pub log: Vec<Call>,
}

impl Calls {
    /// Calls of `endpoint` that ended in `outcome`.
    pub fn count(&self, endpoint: &str, outcome: &str) -> u64 {
        self.counts
            .get(endpoint)
            .and_then(|outcomes| outcomes.get(outcome))
            .copied()
            .unwrap_or_default()
    }

    /// Calls of `endpoint`, however they ended.
    pub fn total(&self, endpoint: &str) -> u64 {
        self.counts
            .get(endpoint)
            .map(|outcomes| outcomes.values().sum())
            .unwrap_or_default()
    }
}

pub(crate) struct CallLog {
    counters: BTreeMap<(Option<String>, &'static str, String), u64>,
    log: BoundedList<Call>,
}

impl Default for CallLog {
    fn default() -> Self {
        Self {
            counters: BTreeMap::new(),
            log: BoundedList::new(LOG),
        }
    }
}

impl CallLog {
    pub(crate) fn record(&mut self, call: Call) {
        let key = (call.app_id.clone(), call.endpoint, call.outcome.clone());
        if self.counters.len() < COUNTERS || self.counters.contains_key(&key) {
            *self.counters.entry(key).or_default() += 1;
        }
        self.log.push(call);
    }

    /// What was recorded, of one account or of all.
    pub(crate) fn of(&self, app_id: Option<&str>) -> Calls {
        let wanted = |call: Option<&str>| app_id.is_none() || call == app_id;
        let mut calls = Calls::default();
        for ((app_id, endpoint, outcome), count) in &self.counters {
            if wanted(app_id.as_deref()) {
                let outcomes = calls.counts.entry((*endpoint).to_owned()).or_default();
                *outcomes.entry(outcome.clone()).or_default() += count;
            }
        }
        calls.log = self
            .log
            .iter()
            .filter(|call| wanted(call.app_id.as_deref()))
            .cloned()
            .collect();
        calls
    }
}
