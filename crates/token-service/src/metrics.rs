//! What token-service counts.

use std::time::SystemTime;

use service_kit::clock::since_epoch;

use crate::credential::{Key, Kind};

/// Reads by credential and by where the answer came from: `memory`, or `waited` for a refresh.
const READS: &str = "wxhub_token_reads_total";
/// Ended refreshes by app, credential and outcome.
const REFRESHES: &str = "wxhub_token_refreshes_total";
/// Reports of dead tokens by app and outcome.
const REPORTS: &str = "wxhub_token_reports_total";
/// Alarms: a share of a day's budget is used up, by app, credential, quota and percent.
const QUOTA_ALARMS: &str = "wxhub_token_quota_alarms_total";
/// When the current value expires, in Unix seconds, by app and credential.
const EXPIRY: &str = "wxhub_token_expire_timestamp_seconds";

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
        EXPIRY,
        metrics::Unit::Seconds,
        "When the current value expires"
    );
}

/// Where a read was answered from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Read {
    Memory,
    Waited,
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
    let source = match source {
        Read::Memory => "memory",
        Read::Waited => "waited",
    };
    metrics::counter!(READS, "credential" => kind.as_str(), "source" => source).increment(1);
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

pub(crate) fn reported(key: &Key, outcome: Report) {
    let outcome = match outcome {
        Report::Replaced => "replaced",
        Report::AlreadyReplaced => "already_replaced",
        Report::Refused => "refused",
    };
    metrics::counter!(REPORTS, "app" => key.app.to_string(), "outcome" => outcome).increment(1);
}

pub(crate) fn expires(app: &str, kind: Kind, expire: SystemTime) {
    metrics::gauge!(EXPIRY, "app" => app.to_owned(), "credential" => kind.as_str())
        .set(since_epoch(expire).as_secs_f64());
}
