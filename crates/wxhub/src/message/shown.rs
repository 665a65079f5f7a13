//! Messages, as people and programs read them.

use std::time::SystemTime;

use proto::push::v1::{FailedAttempt, Message};
use serde_json::{Value, json};

use crate::table::{aligned, from, rfc_3339, to_the_second};

/// The state's name, without the enum's prefix.
pub(crate) fn state(message: &Message) -> &'static str {
    let name = message.state().as_str_name();
    name.strip_prefix("MESSAGE_STATE_").unwrap_or(name)
}

/// Where it is and what it waits for, in one line.
pub(crate) fn standing(message: &Message, now: SystemTime) -> String {
    let mut line = format!("{} is {}", message.message_id, state(message));
    if message.next_attempt_time.is_some() {
        line += &format!(", due {}", from(now, message.next_attempt_time));
    }
    if message.attempts > 0 {
        line += &format!(", tried {} times", message.attempts);
    }
    if !message.errmsg.is_empty() {
        line += &format!(": {} {}", message.errcode, plain(&message.errmsg));
    }
    line
}

/// A line for each message.
pub(crate) fn table(messages: &[Message]) -> String {
    let head = [
        "MESSAGE_ID",
        "STATE",
        "ATTEMPTS",
        "ACCEPTED",
        "SENT",
        "OPEN_ID",
        "ERRCODE",
        "ERRMSG",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(messages.iter().map(|message| {
        vec![
            message.message_id.clone(),
            state(message).to_owned(),
            message.attempts.to_string(),
            to_the_second(message.create_time),
            to_the_second(message.sent_time),
            message.open_id.clone(),
            message.errcode.to_string(),
            plain(&message.errmsg),
        ]
    }));
    aligned(&rows)
}

/// A text on one line: WeChat worded it, or a caller did.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
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
    let text =
        |name: &str, value: &str| (!value.is_empty()).then(|| vec![name.to_owned(), plain(value)]);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::push::v1::MessageState;

    use super::*;

    #[test]
    fn a_message_is_shown_with_its_attempts_and_keeps_to_its_lines() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let time = |seconds| Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into());
        let message = Message {
            message_id: "0197".to_owned(),
            app_id: "wx2".to_owned(),
            open_id: "oA".to_owned(),
            state: MessageState::Queued.into(),
            attempts: 2,
            errcode: 43108,
            errmsg: "busy\n\u{1b}[2J".to_owned(),
            create_time: time(999_000),
            next_attempt_time: time(1_000_061),
            failed_attempts: vec![FailedAttempt {
                time: time(999_001),
                errcode: 0,
                errmsg: "timed out".to_owned(),
                outcome_unknown: true,
            }],
            ..Message::default()
        };
        assert_eq!(
            details(&message),
            "\
message_id    0197
app_id        wx2
open_id       oA
state         QUEUED
attempts      2
errcode       43108
errmsg        busy  [2J
accepted      1970-01-12T13:30:00Z
next attempt  1970-01-12T13:47:41Z
not accepted  1970-01-12T13:30:01Z  0  timed out (outcome unknown)"
        );
        assert_eq!(
            standing(&message, now),
            "0197 is QUEUED, due in 1m01s, tried 2 times: 43108 busy  [2J"
        );
        assert_eq!(
            table(std::slice::from_ref(&message)),
            "\
MESSAGE_ID  STATE   ATTEMPTS  ACCEPTED              SENT  OPEN_ID  ERRCODE  ERRMSG
0197        QUEUED  2         1970-01-12T13:30:00Z  -     oA       43108    busy  [2J"
        );
    }
}
