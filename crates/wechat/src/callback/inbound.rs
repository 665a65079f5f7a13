//! A message or event from a user or from WeChat itself.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Format, ParseError, fields};

/// A message or event (接收普通消息, 接收事件推送).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The account's original id, `gh_…`.
    pub to_user_name: String,
    /// The user's openid; of authorisation changes a platform user, the person being in `fields.OpenID`.
    pub from_user_name: String,
    /// Unix seconds.
    pub create_time: i64,
    /// In lower case: `text`, `image`, `event` …
    pub msg_type: String,
    /// `MsgId` of a message, `MsgID` of an event that reports one.
    pub msg_id: Option<String>,
    /// In lower case, since WeChat mixes cases; as sent in `fields.Event`.
    pub event: Option<String>,
    /// The menu key, scene or URL of an event.
    pub event_key: Option<String>,
    /// The text of a text message.
    pub content: Option<String>,
    /// Everything that was sent, with its own names; what repeats in XML is an array.
    pub fields: Value,
    /// How it was written, and how the reply must be.
    pub format: Format,
}

impl Inbound {
    /// Reads a plain push, or a decrypted one.
    ///
    /// # Errors
    /// [`ParseError`] when the body is too large, malformed, nested too deep, declares entities or lacks a field that
    /// every push has.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let (format, fields) = fields(body)?;
        let text = |name: &str| fields.get(name).and_then(scalar);
        let required = |name: &'static str| text(name).ok_or(ParseError::Field(name));
        Ok(Self {
            to_user_name: required("ToUserName")?,
            from_user_name: required("FromUserName")?,
            create_time: required("CreateTime")?
                .trim()
                .parse()
                .map_err(|_| ParseError::Field("CreateTime"))?,
            msg_type: required("MsgType")?.to_ascii_lowercase(),
            msg_id: text("MsgId").or_else(|| text("MsgID")),
            event: text("Event").map(|event| event.to_ascii_lowercase()),
            event_key: text("EventKey"),
            content: text("Content"),
            format,
            fields,
        })
    }

    /// The same for every delivery of one push and different for any other push to the same account: 64 hex digits.
    ///
    /// Messages are told apart by sender and `MsgId`, which alone collides between users; events by sender, time, name,
    /// key and whatever ids they carry, since one second may see several.
    pub fn dedup_key(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        part(&self.from_user_name);
        match (&self.event, &self.msg_id) {
            (None, Some(msg_id)) => part(msg_id),
            (event, _) => {
                part(&self.create_time.to_string());
                part(event.as_deref().unwrap_or(&self.msg_type));
                part(self.event_key.as_deref().unwrap_or_default());
                ids(&self.fields, &mut part);
            }
        }
        hex::encode(hash.finalize())
    }
}

/// Visits the ids of an event at any depth: of messages, of persons, of checks.
fn ids(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_id = ["msgid", "openid", "trace_id"]
                    .iter()
                    .any(|id| name.eq_ignore_ascii_case(id));
                match scalar(value) {
                    Some(text) if is_id => visit(&text),
                    Some(_) => {}
                    None => ids(value, visit),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| ids(value, visit)),
        _ => {}
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
