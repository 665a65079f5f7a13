//! What push-service counts and times. Labels come from closed sets only: apps are those of the catalog, by name, and
//! WeChat's return codes those that it is known to answer a send with.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use wechat::Error;

const ACCEPTED: &str = "wxhub_push_messages_accepted_total";
const ATTEMPTS: &str = "wxhub_push_attempts_total";
const ATTEMPT_SECONDS: &str = "wxhub_push_attempt_duration_seconds";
const QUEUED_SECONDS: &str = "wxhub_push_accepted_to_sent_seconds";
const GIVEN_UP: &str = "wxhub_push_messages_given_up_total";
const LOST: &str = "wxhub_push_attempts_lost_total";
const WAITING: &str = "wxhub_push_queue_messages";
const OLDEST_SECONDS: &str = "wxhub_push_queue_oldest_seconds";
const RATE_WAIT_SECONDS: &str = "wxhub_push_rate_wait_seconds";
const PAUSES: &str = "wxhub_push_pauses_total";
const PAUSE_SECONDS: &str = "wxhub_push_pause_seconds";
const BROADCASTS: &str = "wxhub_push_broadcasts";
const BROADCAST_RECIPIENTS: &str = "wxhub_push_broadcast_recipients";
const CALLBACKS: &str = "wxhub_push_callbacks_total";
const RECEIPTS: &str = "wxhub_push_receipts_total";
const PRUNED: &str = "wxhub_push_pruned_rows_total";

/// Says what each metric is, once, at start.
pub(crate) fn describe() {
    describe_counter!(ACCEPTED, Unit::Count, "Messages accepted, by kind");
    describe_counter!(
        ATTEMPTS,
        Unit::Count,
        "Attempts to send, by app, kind, outcome and WeChat's return code"
    );
    describe_histogram!(
        ATTEMPT_SECONDS,
        Unit::Seconds,
        "Time of an attempt, a repeat with a new token included"
    );
    describe_histogram!(
        QUEUED_SECONDS,
        Unit::Seconds,
        "Time from acceptance, or from schedule_time, until WeChat accepted the message"
    );
    describe_counter!(
        GIVEN_UP,
        Unit::Count,
        "Messages that were due and ended without another attempt, by app and state"
    );
    describe_counter!(
        LOST,
        Unit::Count,
        "Attempts whose worker died before it wrote their outcome"
    );
    describe_gauge!(
        WAITING,
        Unit::Count,
        "Messages that wait in the database, counted up to a limit, by app, kind, priority and state"
    );
    describe_gauge!(
        OLDEST_SECONDS,
        Unit::Seconds,
        "For how long the longest due message has been due, by app, kind and priority"
    );
    describe_histogram!(
        RATE_WAIT_SECONDS,
        Unit::Seconds,
        "Waits for an app's send_rate"
    );
    describe_counter!(
        PAUSES,
        Unit::Count,
        "Pauses begun, by what messages wait for"
    );
    describe_gauge!(
        PAUSE_SECONDS,
        Unit::Seconds,
        "How long messages are still held back on this replica, by app and kind"
    );
    describe_gauge!(BROADCASTS, Unit::Count, "Broadcasts under way, by state");
    describe_gauge!(
        BROADCAST_RECIPIENTS,
        Unit::Count,
        "Recipients of broadcasts under way who are not told yet, with a message in the queue or none so far"
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

/// What came of a call to WeChat, as a label.
pub(crate) fn errcode<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "0",
        Err(Error::Api(error)) => known(error.errcode.0).unwrap_or("other"),
        Err(Error::NotSent { .. }) => "unreachable",
        Err(Error::Timeout { .. }) => "timeout",
        Err(Error::Interrupted { .. }) => "interrupted",
        Err(Error::Garbage { .. }) => "garbage",
        Err(_) => "other",
    }
}

macro_rules! known {
    ($($code:literal)*) => {
        /// A return code that WeChat is known to answer a send with.
        fn known(code: i64) -> Option<&'static str> {
            match code {
                $($code => Some(stringify!($code)),)*
                _ => None,
            }
        }
    };
}

known! {
    -1
    40001 40003 40007 40008 40013 40014 40033 40036 40037 40097 40164 40165 40243 40251 40252
    41001 41008 41028 41029 41030 42001 42007
    43004 43019 43101 43102 43104 43107 43108 43116 44002 44004
    45002 45008 45009 45011 45015 45028 45047 45168 47001 47003
    48001 48002 48004 48006 48008 50002 50004 50005 50007 61004 70000
    89501 89503 89506 89507
}

pub(crate) fn accepted(kind: &'static str) {
    counter!(ACCEPTED, "kind" => kind).increment(1);
}

/// An attempt came to its end.
pub(crate) fn attempt(
    app: String,
    kind: &'static str,
    outcome: &'static str,
    errcode: &'static str,
    took: Duration,
) {
    counter!(ATTEMPTS, "app" => app, "kind" => kind, "outcome" => outcome, "errcode" => errcode)
        .increment(1);
    histogram!(ATTEMPT_SECONDS, "kind" => kind).record(took.as_secs_f64());
}

pub(crate) fn sent(kind: &'static str, priority: &'static str, since_accepted: Duration) {
    histogram!(QUEUED_SECONDS, "kind" => kind, "priority" => priority)
        .record(since_accepted.as_secs_f64());
}

/// A message that was due ended, `failed` or `expired`, and was not attempted.
pub(crate) fn given_up(app: String, state: &'static str) {
    counter!(GIVEN_UP, "app" => app, "state" => state).increment(1);
}

pub(crate) fn lost(attempts: u64) {
    counter!(LOST).increment(attempts);
}

/// What waits in one app's lanes of one kind and priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Queue {
    pub(crate) app: String,
    pub(crate) kind: String,
    pub(crate) priority: &'static str,
}

/// `due` messages wait to be sent, `later` ones for their time.
pub(crate) fn waiting(queue: &Queue, due: u32, later: u32, oldest: Duration) {
    let labels = || {
        let app = ("app", queue.app.clone());
        let priority = ("priority", queue.priority.to_owned());
        [app, ("kind", queue.kind.clone()), priority]
    };
    for (state, count) in [("due", due), ("later", later)] {
        let [app, kind, priority] = labels();
        let labels = [app, kind, priority, ("state", state.to_owned())];
        gauge!(WAITING, &labels).set(f64::from(count));
    }
    gauge!(OLDEST_SECONDS, &labels()).set(oldest.as_secs_f64());
}

pub(crate) fn rate_wait(app: &str, wait: Duration) {
    histogram!(RATE_WAIT_SECONDS, "app" => app.to_owned()).record(wait.as_secs_f64());
}

/// Messages begin to wait for a `quota`, a `token`, or for WeChat, which is `unreachable`.
pub(crate) fn paused(what_for: &'static str) {
    counter!(PAUSES, "for" => what_for).increment(1);
}

/// How long messages of an app and kind, or of `any`, wait still.
pub(crate) fn pause(app: &str, kind: &'static str, left: Duration) {
    gauge!(PAUSE_SECONDS, "app" => app.to_owned(), "kind" => kind).set(left.as_secs_f64());
}

pub(crate) fn broadcasts(state: &'static str, count: u32) {
    gauge!(BROADCASTS, "state" => state).set(f64::from(count));
}

/// Recipients with a message in the queue, `queued`, or without, `to_queue`.
pub(crate) fn broadcast_recipients(state: &'static str, count: u32) {
    gauge!(BROADCAST_RECIPIENTS, "state" => state).set(f64::from(count));
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

#[cfg(test)]
mod tests {
    use wechat::{ApiError, ErrCode};

    use super::*;

    #[test]
    fn return_codes_that_nobody_knows_are_one_label() {
        let answer = |code| {
            Err::<(), _>(Error::Api(ApiError {
                endpoint: "/cgi-bin/message/template/send",
                errcode: ErrCode(code),
                errmsg: String::new(),
                rid: None,
            }))
        };
        for (code, label) in [(-1, "-1"), (43004, "43004"), (9_001_234, "other")] {
            assert_eq!(errcode(&answer(code)), label);
        }
        assert_eq!(errcode(&Ok(())), "0");
        let endpoint = "/cgi-bin/message/template/send";
        assert_eq!(errcode::<()>(&Err(Error::Timeout { endpoint })), "timeout");
    }
}
