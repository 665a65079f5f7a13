//! Messages, as people and programs read them.

use proto::push::v1::{FailedAttempt, Message};
use serde_json::{Value, json};

use crate::table::{aligned, rfc_3339, to_the_second};

/// The state's name, without the enum's prefix.
pub(crate) fn state(message: &Message) -> &'static str {
    let name = message.state().as_str_name();
    name.strip_prefix("MESSAGE_STATE_").unwrap_or(name)
}

pub(crate) fn object(message: &Message) -> Value {
    let failed = |failed: &FailedAttempt| {
        json!({
            "time": rfc_3339(failed.time),
            "errcode": failed.errcode,
            "errmsg": failed.errmsg,
            "outcome_unknown": failed.outcome_unknown,
        })
    };
    json!({
        "message_id": message.message_id,
        "app_id": message.app_id,
        "open_id": message.open_id,
        "account": message.account,
        "caller": message.caller,
        "request_id": message.request_id,
        "broadcast_id": message.broadcast_id,
        "state": state(message),
        "attempts": message.attempts,
        "possible_duplicate": message.possible_duplicate,
        "errcode": message.errcode,
        "errmsg": message.errmsg,
        "wechat_msg_id": message.wechat_msg_id,
        "create_time": rfc_3339(message.create_time),
        "schedule_time": rfc_3339(message.schedule_time),
        "expire_time": rfc_3339(message.expire_time),
        "next_attempt_time": rfc_3339(message.next_attempt_time),
        "sent_time": rfc_3339(message.sent_time),
        "delivered_time": rfc_3339(message.delivered_time),
        "failed_attempts": message.failed_attempts.iter().map(failed).collect::<Vec<_>>(),
    })
}

/// A line for each thing there is to tell.
pub(crate) fn details(message: &Message) -> String {
    let text = |name: &str, value: &str| {
        // WeChat worded some of it, or a caller did.
        (!value.is_empty()).then(|| vec![name.to_owned(), value.replace(char::is_control, " ")])
    };
    let time = |name: &str, value| text(name, rfc_3339(value).as_deref().unwrap_or_default());
    let number = |name: &str, value: i64| text(name, &value.to_string());
    let mut rows = vec![
        text("message_id", &message.message_id),
        text("app_id", &message.app_id),
        text("open_id", &message.open_id),
        text("account", &message.account),
        text("caller", &message.caller),
        text("request_id", &message.request_id),
        text("broadcast_id", &message.broadcast_id),
        text("state", state(message)),
        number("attempts", message.attempts.into()),
        (message.errcode != 0)
            .then(|| number("errcode", message.errcode))
            .flatten(),
        text("errmsg", &message.errmsg),
        text("wechat_msg_id", &message.wechat_msg_id),
        message
            .possible_duplicate
            .then(|| text("duplicate", "possible: an attempt's outcome stayed unknown"))
            .flatten(),
        time("accepted", message.create_time),
        time("scheduled", message.schedule_time),
        time("expires", message.expire_time),
        time("next attempt", message.next_attempt_time),
        time("sent", message.sent_time),
        time("delivered", message.delivered_time),
    ];
    rows.extend(message.failed_attempts.iter().map(|failed| {
        let unknown = if failed.outcome_unknown {
            " (outcome unknown)"
        } else {
            ""
        };
        let told = format!(
            "{}  {}  {}{unknown}",
            to_the_second(failed.time),
            failed.errcode,
            failed.errmsg
        );
        text("not accepted", &told)
    }));
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    aligned(&rows)
}
