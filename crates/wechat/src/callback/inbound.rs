//! A message or event from a user or from WeChat itself.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Format, ParseError, fields};

/// A message or event (接收普通消息, 接收事件推送).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The account's original id, `gh_…`.
    pub to_user_name: String,
    /// The user's openid; of authorisation changes a platform user, the person being in
    /// `fields.OpenID`.
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
    /// [`ParseError`] when the body is too large, malformed, nested too deep, declares entities or
    /// lacks a field that every push has.
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
            msg_id: text("MsgId")
                .or_else(|| text("MsgID"))
                .filter(|id| !id.is_empty()),
            event: text("Event").map(|event| event.to_ascii_lowercase()),
            event_key: text("EventKey"),
            content: text("Content"),
            format,
            fields,
        })
    }

    /// The same for every delivery of one push and different for any other push to the same
    /// account: 64 hex digits.
    ///
    /// Messages are told apart by sender and `MsgId`, which alone collides between users; events by
    /// sender, time, name, key and whatever ids they carry, since one second may see several.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn xml(fields: &str) -> Inbound {
        let common = "<ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[oUser]]></FromUserName>";
        Inbound::parse(format!("<xml>{common}{fields}</xml>").as_bytes()).unwrap()
    }

    #[test]
    fn a_text_message_is_read_from_xml() {
        let inbound = xml(
            "<CreateTime>1348831860</CreateTime><MsgType><![CDATA[Text]]></MsgType>\
             <Content><![CDATA[this is a <test> & more]]></Content><MsgId>1234567890123456789</MsgId>",
        );
        assert_eq!(inbound.format, Format::Xml);
        assert_eq!(
            (
                inbound.to_user_name.as_str(),
                inbound.from_user_name.as_str()
            ),
            ("gh_1", "oUser")
        );
        assert_eq!(
            (inbound.create_time, inbound.msg_type.as_str()),
            (1_348_831_860, "text")
        );
        assert_eq!(inbound.content.as_deref(), Some("this is a <test> & more"));
        assert_eq!(inbound.msg_id.as_deref(), Some("1234567890123456789"));
        assert_eq!((&inbound.event, &inbound.event_key), (&None, &None));
        assert_eq!(inbound.fields["MsgType"], "Text");
    }

    #[test]
    fn the_json_twin_reads_the_same() {
        let body = r#"{"ToUserName":"gh_1","FromUserName":"oUser","CreateTime":"1348831860","MsgType":"text",
            "Content":"hi","MsgId":123456789012345678901234567890}"#;
        let inbound = Inbound::parse(body.as_bytes()).unwrap();
        assert_eq!(inbound.format, Format::Json);
        assert_eq!(inbound.create_time, 1_348_831_860);
        assert_eq!(inbound.content.as_deref(), Some("hi"));
        assert_eq!(
            inbound.msg_id.as_deref(),
            Some("123456789012345678901234567890")
        );
    }

    #[test]
    fn a_message_id_may_hold_letters() {
        let inbound = xml("<CreateTime>1</CreateTime><MsgType>text</MsgType><MsgId>6a_b-7</MsgId>");
        assert_eq!(inbound.msg_id.as_deref(), Some("6a_b-7"));
        let empty = xml("<CreateTime>1</CreateTime><MsgType>text</MsgType><MsgId></MsgId>");
        assert_eq!(empty.msg_id, None);
    }

    #[test]
    fn event_names_are_lower_case_and_kept_as_sent() {
        let inbound = xml(
            "<CreateTime>1</CreateTime><MsgType>Event</MsgType><Event>TEMPLATESENDJOBFINISH</Event>\
             <MsgID>200163836</MsgID><Status>success</Status>",
        );
        assert_eq!(
            (inbound.msg_type.as_str(), inbound.event.as_deref()),
            ("event", Some("templatesendjobfinish"))
        );
        assert_eq!(inbound.fields["Event"], "TEMPLATESENDJOBFINISH");
        assert_eq!(inbound.msg_id.as_deref(), Some("200163836"));
    }

    #[test]
    fn nested_lists_are_kept() {
        let one = "<List><TemplateId>T1</TemplateId><PopupScene>0</PopupScene></List>";
        let event = |list: &str| {
            xml(&format!(
                "<CreateTime>1</CreateTime><MsgType>event</MsgType><Event>subscribe_msg_popup_event</Event>\
                 <SubscribeMsgPopupEvent>\n {list} \n</SubscribeMsgPopupEvent>"
            ))
        };
        let entry = json!({"TemplateId": "T1", "PopupScene": "0"});
        assert_eq!(event(one).fields["SubscribeMsgPopupEvent"]["List"], entry);
        assert_eq!(
            event(&one.repeat(2)).fields["SubscribeMsgPopupEvent"]["List"],
            json!([entry, entry])
        );
    }

    #[test]
    fn what_every_push_has_is_required() {
        for (body, field) in [
            ("<xml><a/></xml>", "ToUserName"),
            (r#"{"ToUserName":"gh_1"}"#, "FromUserName"),
            (
                r#"{"ToUserName":"gh_1","FromUserName":"o","CreateTime":"now"}"#,
                "CreateTime",
            ),
            (
                r#"{"ToUserName":"gh_1","FromUserName":"o","CreateTime":1,"MsgType":["text"]}"#,
                "MsgType",
            ),
        ] {
            assert_eq!(
                Inbound::parse(body.as_bytes()),
                Err(ParseError::Field(field)),
                "{body}"
            );
        }
    }

    #[test]
    fn a_retried_push_has_the_key_of_the_first() {
        let message = "<CreateTime>1</CreateTime><MsgType>text</MsgType><MsgId>7</MsgId>";
        let key = xml(message).dedup_key();
        assert_eq!(key.len(), 64);
        assert_eq!(xml(message).dedup_key(), key);
        let twin = r#"{"ToUserName":"gh_1","FromUserName":"oUser","CreateTime":1,"MsgType":"text","MsgId":7}"#;
        assert_eq!(Inbound::parse(twin.as_bytes()).unwrap().dedup_key(), key);
    }

    #[test]
    fn different_pushes_have_different_keys() {
        let push = |from: &str, time: i64, rest: serde_json::Value| {
            let mut fields = json!({"ToUserName": "gh_1", "FromUserName": from, "CreateTime": time, "MsgType": "event"});
            fields
                .as_object_mut()
                .unwrap()
                .extend(rest.as_object().unwrap().clone());
            Inbound::parse(fields.to_string().as_bytes())
                .unwrap()
                .dedup_key()
        };
        let sent = |id: i64| json!({"Event": "subscribe_msg_sent_event", "List": {"TemplateId": "T", "MsgID": id}});
        let keys = [
            push("o1", 1, json!({"MsgType": "text", "MsgId": 7})),
            push("o2", 1, json!({"MsgType": "text", "MsgId": 7})),
            push("o1", 1, json!({"MsgType": "text", "MsgId": 8})),
            push("o1", 1, json!({"Event": "CLICK", "EventKey": "a"})),
            push("o1", 1, json!({"Event": "CLICK", "EventKey": "b"})),
            push("o1", 2, json!({"Event": "CLICK", "EventKey": "a"})),
            push("o1", 1, json!({"Event": "VIEW", "EventKey": "a"})),
            push(
                "o1",
                1,
                json!({"Event": "TEMPLATESENDJOBFINISH", "MsgID": 1}),
            ),
            push(
                "o1",
                1,
                json!({"Event": "TEMPLATESENDJOBFINISH", "MsgID": 2}),
            ),
            push(
                "o1",
                1,
                json!({"Event": "user_authorization_revoke", "OpenID": "p1"}),
            ),
            push(
                "o1",
                1,
                json!({"Event": "user_authorization_revoke", "OpenID": "p2"}),
            ),
            push("o1", 1, sent(1)),
            push("o1", 1, sent(2)),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in any::<Vec<u8>>(), text in "(<[a-z]{1,2}>|</[a-z]{1,2}>|&[a-z#0-9]*;?|<!\\[CDATA\\[|\\]\\]>|[{}\":,0-9]|.)*") {
            for body in [bytes.as_slice(), text.as_bytes()] {
                let _ = Inbound::parse(body);
                let _ = super::super::Envelope::parse(body);
            }
        }
    }
}
