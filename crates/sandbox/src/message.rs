//! Messages to users: what an interface accepts, and the inbox that they end up in.

mod customer;
mod template;
mod typing;
mod value;
mod window;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub(crate) use self::{
    typing::{TypingState, type_to},
    window::{Trigger, Windows},
};
use crate::{
    account::{Account, Accounts},
    bounded::BoundedMap,
    callback::Target,
    clock::Moment,
    config::{Format, Kind},
    endpoint::Endpoint,
    error::ApiError,
};

/// How long a `client_msg_id` is recognised.
const CLIENT_MSG_ID_LIFE: Duration = Duration::from_secs(600);
/// `client_msg_id`s that an account remembers.
const CLIENT_MSG_IDS: usize = 100_000;
/// Messages that the inbox holds.
pub(crate) const INBOX: usize = 100_000;

/// A message as a user sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// The account that sent it.
    pub app_id: String,
    /// The user who got it.
    pub open_id: String,
    /// The interface by which it came.
    pub kind: MessageKind,
    /// What the user reads.
    pub content: String,
    /// WeChat's id of it, where the interface gives one.
    pub msgid: Option<String>,
    /// Unix seconds, by this WeChat's clock.
    pub time: u64,
    /// The message as the account sent it.
    pub message: Value,
}

/// The interface by which a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// 模板消息 of an official account.
    Template,
    /// 订阅消息 of a mini program.
    Subscribe,
    /// 模板消息 of a mini program, paid for with a `form_id`.
    FormTemplate,
    /// 客服消息.
    Customer,
    /// 被动回复: the answer of the account's callback.
    Reply,
}

impl MessageKind {
    /// Whether WeChat tells later what became of a message.
    pub(crate) const fn has_receipt(self) -> bool {
        matches!(self, Self::Template | Self::Subscribe)
    }
}

/// The event that tells what became of a message.
pub(crate) struct Receipt {
    pub(crate) target: Target,
    pub(crate) open_id: String,
    pub(crate) msg_id: i64,
    /// The event's fields.
    pub(crate) fields: Map<String, Value>,
}

impl Receipt {
    /// The one that follows a message; none where the account has no callback, or the interface sends none.
    pub(crate) fn of(
        account: &Account,
        message: &Message,
        msg_id: i64,
        blocked: bool,
    ) -> Option<Self> {
        let target = Target::of(&account.config)?;
        let fields = match message.kind {
            MessageKind::Template => json!({
                "Event": "TEMPLATESENDJOBFINISH",
                "MsgID": msg_id,
                "Status": if blocked { "failed:user block" } else { "success" },
            }),
            MessageKind::Subscribe => {
                let (code, status) = if blocked {
                    ("43101", "user refuse to accept the msg")
                } else {
                    ("0", "success")
                };
                let list = json!({
                    "TemplateId": message.message.get("template_id"),
                    "MsgID": msg_id.to_string(),
                    "ErrorCode": code,
                    "ErrorStatus": status,
                });
                let event = "subscribe_msg_sent_event";
                match target.format() {
                    Format::Xml => {
                        json!({"Event": event, "SubscribeMsgSentEvent": {"List": list}})
                    }
                    Format::Json => json!({"Event": event, "List": list}),
                }
            }
            _ => return None,
        };
        Some(Self {
            target,
            open_id: message.open_id.clone(),
            msg_id,
            fields: fields.as_object().cloned()?,
        })
    }
}

/// What a send answers, and whom it reached.
pub(crate) struct Sent {
    pub(crate) msg_id: Option<i64>,
    /// `None` when the message had been delivered before, under the same `client_msg_id`.
    pub(crate) message: Option<Message>,
}

/// Gives out message ids, which exceed what a JavaScript number can hold.
#[derive(Debug)]
pub(crate) struct MsgIds(i64);

impl MsgIds {
    pub(crate) fn starting(now: Moment) -> Self {
        Self(
            3_700_000_000_000_000_000
                + i64::try_from(now.as_micros() % 1_000_000_000_000_000).unwrap_or_default(),
        )
    }

    pub(crate) const fn next(&mut self) -> i64 {
        self.0 += 1;
        self.0
    }
}

/// The messages sent with a `client_msg_id` of late.
pub(crate) struct ClientMsgIds(BoundedMap<(i64, Moment)>);

impl Default for ClientMsgIds {
    fn default() -> Self {
        Self(BoundedMap::new(CLIENT_MSG_IDS))
    }
}

impl ClientMsgIds {
    fn key(open_id: &str, id: &str) -> String {
        format!("{open_id} {id}")
    }

    fn delivered(&self, open_id: &str, id: &str, now: Moment) -> Option<i64> {
        let (msg_id, at) = self.0.get(&Self::key(open_id, id))?;
        (now < *at + CLIENT_MSG_ID_LIFE).then_some(*msg_id)
    }

    fn remember(&mut self, open_id: &str, id: &str, msg_id: i64, now: Moment) {
        self.0.insert(Self::key(open_id, id), (msg_id, now));
    }
}

/// Sends what `body` asks of one of the four message interfaces, in the name of `app_id`.
pub(crate) fn send(
    endpoint: Endpoint,
    accounts: &mut Accounts,
    app_id: &str,
    body: Value,
    msg_ids: &mut MsgIds,
    now: Moment,
) -> Result<Sent, ApiError> {
    if let Some(linked) = body.pointer("/miniprogram/appid")
        && !linked
            .as_str()
            .and_then(|app_id| accounts.get(app_id))
            .is_some_and(|account| account.config.kind == Kind::MiniProgram)
    {
        return Err(ApiError::INVALID_APPID);
    }
    let account = accounts
        .get_mut(app_id)
        .ok_or(ApiError::INVALID_CREDENTIAL)?;
    match endpoint {
        Endpoint::TemplateSend => template::send(account, body, msg_ids, now),
        Endpoint::SubscribeSend => template::send_subscribe(account, body, msg_ids, now),
        Endpoint::FormTemplateSend => template::send_form(account, body, msg_ids, now),
        _ => customer::send(account, body, now),
    }
}

impl Sent {
    fn new(
        account: &Account,
        open_id: &str,
        kind: MessageKind,
        content: String,
        message: Value,
        msg_id: Option<i64>,
        now: Moment,
    ) -> Self {
        let message = Message {
            app_id: account.config.app_id.clone(),
            open_id: open_id.to_owned(),
            kind,
            content,
            msgid: msg_id.map(|id| id.to_string()),
            time: now.as_secs(),
            message,
        };
        Self {
            msg_id,
            message: Some(message),
        }
    }
}
