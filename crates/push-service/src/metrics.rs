//! What push-service counts and times. Labels come from closed sets only.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const ACCEPTED: &str = "wxhub_push_messages_accepted_total";
const ATTEMPTS: &str = "wxhub_push_attempts_total";
const ATTEMPT_SECONDS: &str = "wxhub_push_attempt_duration_seconds";
const QUEUED_SECONDS: &str = "wxhub_push_accepted_to_sent_seconds";
const CALLBACKS: &str = "wxhub_push_callbacks_total";
const RECEIPTS: &str = "wxhub_push_receipts_total";
const PRUNED: &str = "wxhub_push_pruned_rows_total";

/// Says what each metric is, once, at start.
pub(crate) fn describe() {
    describe_counter!(ACCEPTED, Unit::Count, "Messages accepted, by kind");
    describe_counter!(
        ATTEMPTS,
        Unit::Count,
        "Attempts to send, by kind and outcome"
    );
    describe_histogram!(
        ATTEMPT_SECONDS,
        Unit::Seconds,
        "Time of an attempt, a repeat with a new token included"
    );
    describe_histogram!(
        QUEUED_SECONDS,
        Unit::Seconds,
        "Time from acceptance until WeChat accepted the message"
    );
    describe_counter!(
        CALLBACKS,
        Unit::Count,
        "Pushes received at the callback, by outcome"
    );
    describe_counter!(
        RECEIPTS,
        Unit::Count,
        "What WeChat told of messages that it had accepted, by result"
    );
    describe_counter!(
        PRUNED,
        Unit::Count,
        "Rows removed because of their age, by table"
    );
}

pub(crate) fn accepted(kind: &'static str) {
    counter!(ACCEPTED, "kind" => kind).increment(1);
}

pub(crate) fn attempt(kind: &'static str, outcome: &'static str, took: Duration) {
    counter!(ATTEMPTS, "kind" => kind, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT_SECONDS, "kind" => kind).record(took.as_secs_f64());
}

pub(crate) fn sent(kind: &'static str, since_accepted: Duration) {
    histogram!(QUEUED_SECONDS, "kind" => kind).record(since_accepted.as_secs_f64());
}

pub(crate) fn callback(outcome: &'static str) {
    counter!(CALLBACKS, "outcome" => outcome).increment(1);
}

/// Receipts that moved a message on, `delivered` or `failed`, and those that were `kept` since they found no SENT message.
pub(crate) fn receipts(result: &'static str, count: u64) {
    counter!(RECEIPTS, "result" => result).increment(count);
}

pub(crate) fn pruned(table: &'static str, rows: u64) {
    counter!(PRUNED, "table" => table).increment(rows);
}
