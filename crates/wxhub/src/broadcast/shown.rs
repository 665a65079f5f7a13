//! Broadcasts, as people and programs read them.

use std::time::SystemTime;

use proto::push::v1::Broadcast;
use serde_json::{Value, json};

use crate::{
    push::{a_second, grouped},
    table::{aligned, from, rfc_3339, to_the_second},
};

/// The state's name, without the enum's prefix.
pub(super) fn state(broadcast: &Broadcast) -> &'static str {
    let name = broadcast.state().as_str_name();
    name.strip_prefix("BROADCAST_STATE_").unwrap_or(name)
}

pub(super) fn object(broadcast: &Broadcast) -> Value {
    json!({
        "broadcast_id": broadcast.broadcast_id,
        "app_id": broadcast.app_id,
        "caller": broadcast.caller,
        "request_id": broadcast.request_id,
        "state": state(broadcast),
        "recipients": broadcast.recipients,
        "waiting": broadcast.waiting,
        "sent": broadcast.sent,
        "delivered": broadcast.delivered,
        "failed": broadcast.failed,
        "cancelled": broadcast.cancelled,
        "expired": broadcast.expired,
        "rate": broadcast.rate,
        "estimated_finish_time": rfc_3339(broadcast.estimated_finish_time),
        "create_time": rfc_3339(broadcast.create_time),
        "start_time": rfc_3339(broadcast.start_time),
        "end_time": rfc_3339(broadcast.end_time),
        "expire_time": rfc_3339(broadcast.expire_time),
    })
}

pub(super) fn table(broadcasts: &[Broadcast]) -> String {
    let head = [
        "BROADCAST_ID",
        "STATE",
        "RECIPIENTS",
        "WAITING",
        "SENT",
        "DELIVERED",
        "FAILED",
        "CANCELLED",
        "EXPIRED",
        "CREATED",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(broadcasts.iter().map(|broadcast| {
        vec![
            broadcast.broadcast_id.clone(),
            state(broadcast).to_owned(),
            broadcast.recipients.to_string(),
            broadcast.waiting.to_string(),
            broadcast.sent.to_string(),
            broadcast.delivered.to_string(),
            broadcast.failed.to_string(),
            broadcast.cancelled.to_string(),
            broadcast.expired.to_string(),
            to_the_second(broadcast.create_time),
        ]
    }));
    aligned(&rows)
}

/// A line for each thing there is to tell.
pub(super) fn details(broadcast: &Broadcast, now: SystemTime) -> String {
    let row = |name: &str, value: String| Some(vec![name.to_owned(), value]);
    let count = |name: &str, count: i64| (count > 0).then(|| row(name, count.to_string()))?;
    let time = |name: &str, time| Option::and(time, row(name, to_the_second(time)));
    let rows = [
        row("broadcast_id", broadcast.broadcast_id.clone()),
        row("app_id", broadcast.app_id.clone()),
        row("caller", broadcast.caller.clone()),
        (!broadcast.request_id.is_empty())
            .then(|| row("request_id", broadcast.request_id.clone()))
            .flatten(),
        row("state", state(broadcast).to_owned()),
        row("recipients", broadcast.recipients.to_string()),
        count("waiting", broadcast.waiting),
        count("sent", broadcast.sent),
        count("delivered", broadcast.delivered),
        count("failed", broadcast.failed),
        count("cancelled", broadcast.cancelled),
        count("expired", broadcast.expired),
        (broadcast.rate > 0.0)
            .then(|| row("rate", a_second(broadcast.rate)))
            .flatten(),
        broadcast
            .estimated_finish_time
            .and_then(|end| row("finishes", from(now, Some(end)))),
        time("created", broadcast.create_time),
        time("started", broadcast.start_time),
        time("ended", broadcast.end_time),
        time("expires", broadcast.expire_time),
    ];
    aligned(&rows.into_iter().flatten().collect::<Vec<_>>())
}

/// How many have come to their end.
pub(super) fn ended(broadcast: &Broadcast) -> u64 {
    at_least_none(broadcast.recipients - broadcast.waiting)
}

fn at_least_none(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// How far it is, in a line.
pub(super) fn progress(broadcast: &Broadcast, now: SystemTime) -> String {
    let mut parts = vec![format!(
        "{}: {} of {}",
        state(broadcast),
        grouped(ended(broadcast)),
        grouped(at_least_none(broadcast.recipients))
    )];
    for (name, count) in [
        ("failed", broadcast.failed),
        ("cancelled", broadcast.cancelled),
        ("expired", broadcast.expired),
    ] {
        if count > 0 {
            parts.push(format!("{} {name}", grouped(at_least_none(count))));
        }
    }
    if broadcast.rate > 0.0 {
        parts.push(a_second(broadcast.rate));
    }
    if let Some(end) = broadcast.estimated_finish_time {
        parts.push(format!("done {}", from(now, Some(end))));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Timestamp;
    use proto::push::v1::BroadcastState;

    use super::*;

    fn running() -> Broadcast {
        Broadcast {
            broadcast_id: "b1".to_owned(),
            app_id: "wx1".to_owned(),
            caller: "crm".to_owned(),
            state: BroadcastState::Running.into(),
            recipients: 1_000,
            waiting: 600,
            sent: 390,
            failed: 10,
            rate: 40.4,
            estimated_finish_time: Some(Timestamp {
                seconds: 15,
                nanos: 0,
            }),
            create_time: Some(Timestamp {
                seconds: 1_795_000_000,
                nanos: 5,
            }),
            ..Broadcast::default()
        }
    }

    #[test]
    fn a_broadcast_is_shown_by_what_there_is_to_tell() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(
            details(&running(), now),
            "\
broadcast_id  b1
app_id        wx1
caller        crm
state         RUNNING
recipients    1000
waiting       600
sent          390
failed        10
rate          40/s
finishes      in 15s
created       2026-11-18T11:06:40Z"
        );
        assert!(table(&[running()]).ends_with("2026-11-18T11:06:40Z"));
    }

    #[test]
    fn progress_is_a_line() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3);
        assert_eq!(
            progress(&running(), now),
            "RUNNING: 400 of 1,000, 10 failed, 40/s, done in 12s"
        );
    }
}
