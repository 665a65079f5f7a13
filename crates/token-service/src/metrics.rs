//! What token-service counts.

use std::{sync::LazyLock, time::SystemTime};

use metrics::Counter;
use service_kit::telemetry;

use crate::credential::{Kind, slot::State};

/// Reads by credential and by where the answer came from: `memory`, or `waited` for a refresh.
const READS: &str = "wxhub_token_reads_total";
/// Ended refreshes by app, credential and outcome.
const REFRESHES: &str = "wxhub_token_refreshes_total";
/// Reports of dead tokens by app and outcome.
const REPORTS: &str = "wxhub_token_reports_total";
/// Alarms: a share of a day's budget is used up, by app, credential, quota and percent.
const QUOTA_ALARMS: &str = "wxhub_token_quota_alarms_total";
/// How long ago the current value was stored first, by app and credential.
const AGE: &str = "wxhub_token_age_seconds";
/// How long the current value lives on, by app and credential; 0 when it is expired.
const EXPIRES_IN: &str = "wxhub_token_expires_in_seconds";
/// Calls to WeChat on this Beijing day, of all replicas, by app and credential.
const CALLS_TODAY: &str = "wxhub_token_upstream_calls_today";
/// Those of them that were forced.
const FORCED_TODAY: &str = "wxhub_token_forced_refreshes_today";
/// Tokens that died before their time on this Beijing day: somebody else refreshes the app (R14).
const FOREIGN_TODAY: &str = "wxhub_token_foreign_refreshes_today";

/// Names the metrics.
pub(crate) fn describe() {
    metrics::describe_counter!(READS, "Reads of credentials by source");
    metrics::describe_counter!(REFRESHES, "Refreshes of credentials by outcome");
    metrics::describe_counter!(REPORTS, "Reports of dead access tokens by outcome");
    metrics::describe_counter!(
        QUOTA_ALARMS,
        "Shares of a day's budget of calls to WeChat that were reached"
    );
    metrics::describe_gauge!(
        AGE,
        metrics::Unit::Seconds,
        "How long ago the current value was stored"
    );
    metrics::describe_gauge!(
        EXPIRES_IN,
        metrics::Unit::Seconds,
        "How long the current value lives on"
    );
    metrics::describe_gauge!(CALLS_TODAY, "Calls to WeChat on this day in Beijing");
    metrics::describe_gauge!(
        FORCED_TODAY,
        "Forced refreshes of stable tokens on this day in Beijing"
    );
    metrics::describe_gauge!(
        FOREIGN_TODAY,
        "Tokens that died before their time on this day in Beijing: somebody else refreshes the app"
    );
}

/// Where a read was answered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Memory,
    Waited,
}

impl Read {
    const ALL: [Self; 2] = [Self::Memory, Self::Waited];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Waited => "waited",
        }
    }
}

/// How a refresh ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refresh {
    Stored,
    Unchanged,
    Superseded,
    Failed,
    NotStored,
}

/// What a report led to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Report {
    Replaced,
    AlreadyReplaced,
    Refused,
}

pub(crate) fn read(kind: Kind, source: Read) {
    /// To look a counter up by its labels costs as much as a read.
    static COUNTERS: LazyLock<Vec<(Kind, Read, Counter)>> = LazyLock::new(|| {
        // What is looked up before there is a recorder counts for nothing, for ever.
        telemetry::metrics_handle();
        let pairs = Kind::ALL
            .into_iter()
            .flat_map(|kind| Read::ALL.map(|source| (kind, source)));
        let counter = |(kind, source): (Kind, Read)| {
            let counter = metrics::counter!(READS, "credential" => kind.as_str(), "source" => source.as_str());
            (kind, source, counter)
        };
        pairs.map(counter).collect()
    });
    let mut counters = COUNTERS.iter();
    if let Some((_, _, counter)) = counters.find(|known| (known.0, known.1) == (kind, source)) {
        counter.increment(1);
    }
}

pub(crate) fn refreshed(app: &str, kind: Kind, outcome: Refresh) {
    let outcome = match outcome {
        Refresh::Stored => "stored",
        Refresh::Unchanged => "unchanged",
        Refresh::Superseded => "superseded",
        Refresh::Failed => "failed",
        Refresh::NotStored => "not_stored",
    };
    metrics::counter!(REFRESHES, "app" => app.to_owned(), "credential" => kind.as_str(), "outcome" => outcome)
        .increment(1);
}

pub(crate) fn quota_alarm(app: &str, kind: Kind, quota: &'static str, percent: u32) {
    metrics::counter!(QUOTA_ALARMS, "app" => app.to_owned(), "credential" => kind.as_str(), "quota" => quota, "percent" => percent.to_string())
        .increment(1);
}

pub(crate) fn reported(app: &str, outcome: Report) {
    let outcome = match outcome {
        Report::Replaced => "replaced",
        Report::AlreadyReplaced => "already_replaced",
        Report::Refused => "refused",
    };
    metrics::counter!(REPORTS, "app" => app.to_owned(), "outcome" => outcome).increment(1);
}

/// How a credential is at `now`.
pub(crate) fn state(app: &str, kind: Kind, state: &State, now: SystemTime) {
    let gauge = |name: &'static str| metrics::gauge!(name, "app" => app.to_owned(), "credential" => kind.as_str());
    if let Some(held) = &state.held {
        let left = held.credential.times.expire.duration_since(now);
        gauge(AGE).set(held.credential.age(now).as_secs_f64());
        gauge(EXPIRES_IN).set(left.unwrap_or_default().as_secs_f64());
    }
    let ledger = state.ledger.on(now);
    gauge(CALLS_TODAY).set(ledger.calls);
    gauge(FORCED_TODAY).set(ledger.forced);
    gauge(FOREIGN_TODAY).set(ledger.rejected);
}
