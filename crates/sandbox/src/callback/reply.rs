//! 被动回复: what an account answers to a push, judged as strictly as WeChat does.

use std::collections::BTreeSet;

use quick_xml::{Reader, escape::resolve_predefined_entity, events::Event};
use secrecy::ExposeSecret;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use wechat::crypto;

use super::{Push, Target};
use crate::config::{Format, Kind, Mode};

/// Replies nest no deeper than `xml/Articles/item/Title`.
const MAX_DEPTH: usize = 8;
/// The types of reply that exist.
const MSG_TYPES: [&str; 7] = ["text", "image", "voice", "video", "music", "news", TRANSFER];
/// The one reply that mini programs have.
const TRANSFER: &str = "transfer_customer_service";

/// What came back over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What an accepted answer means to the user.
#[derive(Debug, Clone)]
pub enum PassiveReply {
    /// `success`: received, nothing to say. Written `"success"`.
    Success,
    /// A message to the user. Written as an object.
    Message(Reply),
}

impl Serialize for PassiveReply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Success => serializer.serialize_str("success"),
            Self::Message(reply) => reply.serialize(serializer),
        }
    }
}

/// A passive reply, decrypted.
#[derive(Debug, Clone, Serialize)]
pub struct Reply {
    /// `text`, `news`, `transfer_customer_service`, …
    pub msg_type: String,
    /// The text of a text reply.
    pub content: Option<String>,
    /// Whether it came encrypted.
    pub encrypted: bool,
    /// All of it, under WeChat's names.
    pub fields: Value,
}

/// What the answer to `push` means: nothing (an empty body), or a reply.
///
/// # Errors
/// Says what makes the user read that the account's service is out of order.
pub(super) fn judge(
    answer: &Answer,
    target: &Target,
    push: &Push,
) -> Result<Option<PassiveReply>, String> {
    if !answer.is_success() {
        return Err(format!("answered HTTP {}", answer.status));
    }
    match answer.body.as_str() {
        "" => return Ok(None),
        "success" => return Ok(Some(PassiveReply::Success)),
        _ => {}
    }
    let format = target.callback.format;
    if format == Format::Xml && answer.content_type.to_ascii_lowercase().contains("json") {
        return Err(format!(
            "Content-Type {} where XML is due",
            answer.content_type
        ));
    }
    let outer = Document::parse(format, &answer.body)?;
    let (document, encrypted) = if outer.fields.contains_key("Encrypt") {
        (decrypt(&outer, format, target)?, true)
    } else if target.callback.mode == Mode::Safe {
        return Err("a plain reply in safe mode".to_owned());
    } else {
        (outer, false)
    };
    let reply = document.reply(format, target, push, encrypted)?;
    Ok(Some(PassiveReply::Message(reply)))
}

fn decrypt(outer: &Document, format: Format, target: &Target) -> Result<Document, String> {
    if target.callback.mode == Mode::Plain {
        return Err("an encrypted reply in plain mode".to_owned());
    }
    let encrypt = outer.text("Encrypt")?;
    let timestamp = outer.integer("TimeStamp", format)?;
    let nonce = outer.text("Nonce")?;
    let token = target.callback.token.expose_secret();
    if !crypto::verify_signature(
        outer.text("MsgSignature")?,
        &[token, &timestamp, nonce, encrypt],
    ) {
        return Err("MsgSignature does not match".to_owned());
    }
    let crypt = target.crypt().ok_or("the account has no EncodingAESKey")?;
    let plain = crypt
        .decrypt(encrypt)
        .map_err(|error| format!("Encrypt cannot be decrypted: {error}"))?;
    Document::parse(format, &plain)
}

/// The fields of a reply, and which of its texts were not in CDATA.
#[derive(Debug)]
struct Document {
    fields: Map<String, Value>,
    bare: BTreeSet<String>,
}

impl Document {
    fn parse(format: Format, text: &str) -> Result<Self, String> {
        match format {
            Format::Xml => Self::parse_xml(text),
            Format::Json => match serde_json::from_str(text) {
                Ok(Value::Object(fields)) => Ok(Self {
                    fields,
                    bare: BTreeSet::new(),
                }),
                _ => Err("the answer is neither success nor a JSON object".to_owned()),
            },
        }
    }

    fn parse_xml(text: &str) -> Result<Self, String> {
        let not_xml = || "the answer is neither success nor the XML of a reply".to_owned();
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        let mut open: Vec<Element> = Vec::new();
        let mut root = None;
        let mut bare = BTreeSet::new();
        loop {
            match reader.read_event().map_err(|_| not_xml())? {
                Event::Start(start) if open.len() < MAX_DEPTH && root.is_none() => {
                    open.push(Element {
                        name: start.name().as_ref().to_owned(),
                        ..Element::default()
                    });
                }
                Event::End(_) => {
                    let element = open.pop().ok_or_else(not_xml)?;
                    if element.is_bare() {
                        bare.insert(element.name.clone());
                    }
                    match open.last_mut() {
                        Some(parent) => parent.add(element),
                        None if element.name == "xml" => root = Some(element.children),
                        None => return Err(not_xml()),
                    }
                }
                Event::CData(text) => {
                    let element = open.last_mut().ok_or_else(not_xml)?;
                    element.text.push_str(&text);
                    element.cdata = true;
                }
                Event::Text(text) => match open.last_mut() {
                    Some(element) => element.text.push_str(&text),
                    None if text.trim().is_empty() => {}
                    None => return Err(not_xml()),
                },
                Event::GeneralRef(reference) => {
                    let element = open.last_mut().ok_or_else(not_xml)?;
                    match reference.resolve_char_ref().map_err(|_| not_xml())? {
                        Some(c) => element.text.push(c),
                        None => element
                            .text
                            .push_str(resolve_predefined_entity(&reference).ok_or_else(not_xml)?),
                    }
                }
                Event::Decl(_) => return Err("the reply has an XML declaration".to_owned()),
                Event::Eof => break,
                _ => return Err(not_xml()),
            }
        }
        let fields = root.filter(|_| open.is_empty()).ok_or_else(not_xml)?;
        Ok(Self { fields, bare })
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        let text = self
            .fields
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| format!("{name} is missing"))?;
        if self.bare.contains(name) {
            return Err(format!("{name} is not in CDATA"));
        }
        Ok(text)
    }

    /// An integer: bare digits in XML, a number in JSON.
    fn integer(&self, name: &str, format: Format) -> Result<String, String> {
        let text = match (format, self.fields.get(name)) {
            (Format::Xml, Some(Value::String(text))) => text.clone(),
            (Format::Json, Some(Value::Number(number))) => number.to_string(),
            _ => String::new(),
        };
        if text.parse::<u64>().is_ok() {
            Ok(text)
        } else {
            Err(format!("{name} is no integer"))
        }
    }

    fn reply(
        self,
        format: Format,
        target: &Target,
        push: &Push,
        encrypted: bool,
    ) -> Result<Reply, String> {
        if self.text("ToUserName")? != push.from {
            return Err("ToUserName is not the user who wrote".to_owned());
        }
        if self.text("FromUserName")? != target.original_id {
            return Err("FromUserName is not the account".to_owned());
        }
        self.integer("CreateTime", format)?;
        let msg_type = self.text("MsgType")?.to_owned();
        if !MSG_TYPES.contains(&msg_type.as_str()) {
            return Err(format!("MsgType {msg_type} is no type of reply"));
        }
        if target.kind == Kind::MiniProgram && msg_type != TRANSFER {
            return Err("mini programs have no passive reply: answer success and send a customer-service message".to_owned());
        }
        let content = if msg_type == "text" {
            Some(self.text("Content")?.to_owned())
        } else {
            None
        };
        if let Some(part) = part_of(&msg_type)
            && !self.fields.get(part).is_some_and(Value::is_object)
        {
            return Err(format!("{part} is missing"));
        }
        Ok(Reply {
            msg_type,
            content,
            encrypted,
            fields: Value::Object(self.fields),
        })
    }
}

/// The element that a reply of this type cannot do without.
fn part_of(msg_type: &str) -> Option<&'static str> {
    match msg_type {
        "image" => Some("Image"),
        "voice" => Some("Voice"),
        "video" => Some("Video"),
        "music" => Some("Music"),
        "news" => Some("Articles"),
        _ => None,
    }
}

#[derive(Default)]
struct Element {
    name: String,
    children: Map<String, Value>,
    text: String,
    cdata: bool,
}

impl Element {
    /// A text outside CDATA, as an integer may be but a text may not.
    fn is_bare(&self) -> bool {
        self.children.is_empty() && !self.cdata && !self.text.is_empty()
    }

    fn add(&mut self, child: Self) {
        let value = if child.children.is_empty() {
            Value::String(child.text)
        } else {
            Value::Object(child.children)
        };
        match self.children.get_mut(&child.name) {
            None => {
                self.children.insert(child.name, value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn target(mode: Mode) -> Target {
        let mut account = Config::dev("http://127.0.0.1:1").accounts.remove(1);
        account.callback.as_mut().unwrap().mode = mode;
        Target::of(&account).unwrap()
    }

    fn push() -> Push {
        Push {
            from: "oUser".to_owned(),
            create_time: 1,
            msg_type: "text".to_owned(),
            msg_id: Some(1),
            fields: Map::new(),
        }
    }

    fn judge_body(
        mode: Mode,
        content_type: &str,
        body: &str,
    ) -> Result<Option<PassiveReply>, String> {
        let answer = Answer {
            status: 200,
            content_type: content_type.to_owned(),
            body: body.to_owned(),
        };
        judge(&answer, &target(mode), &push())
    }

    const GOOD: &str = "<xml><ToUserName><![CDATA[oUser]]></ToUserName><FromUserName><![CDATA[gh_000000000002]]></FromUserName>\
        <CreateTime>1</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[hi]]></Content></xml>";

    #[test]
    fn a_good_reply_is_the_users_message() {
        let Ok(Some(PassiveReply::Message(reply))) = judge_body(Mode::Plain, "text/xml", GOOD)
        else {
            panic!()
        };
        assert_eq!(
            (reply.content.as_deref(), reply.encrypted),
            (Some("hi"), false)
        );
    }

    #[test]
    fn nothing_and_success_need_no_message() {
        assert!(matches!(judge_body(Mode::Safe, "", ""), Ok(None)));
        assert!(matches!(
            judge_body(Mode::Safe, "text/plain", "success"),
            Ok(Some(PassiveReply::Success))
        ));
    }

    #[test]
    fn what_wechat_does_not_take_is_a_problem() {
        for (mode, content_type, body, problem) in [
            (
                Mode::Plain,
                "application/json",
                GOOD.to_owned(),
                "Content-Type",
            ),
            (
                Mode::Plain,
                "text/xml",
                format!("<?xml version=\"1.0\"?>{GOOD}"),
                "declaration",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace("oUser", "gh_000000000002"),
                "ToUserName",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace("gh_000000000002", "oUser"),
                "FromUserName",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace("<![CDATA[hi]]>", "hi"),
                "CDATA",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace("<![CDATA[hi]]>", ""),
                "Content",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace(">1<", ">now<"),
                "CreateTime",
            ),
            (
                Mode::Plain,
                "text/xml",
                GOOD.replace("[text]", "[song]"),
                "MsgType",
            ),
            (
                Mode::Plain,
                "text/html",
                "<html>oops</html>".to_owned(),
                "XML",
            ),
            (Mode::Plain, "text/plain", "success\n".to_owned(), "XML"),
            (Mode::Safe, "text/xml", GOOD.to_owned(), "safe mode"),
        ] {
            let error = judge_body(mode, content_type, &body).unwrap_err();
            assert!(error.contains(problem), "{problem}: {error}");
        }
    }

    #[test]
    fn an_encrypted_reply_is_opened_when_its_signature_matches() {
        let target = target(Mode::Safe);
        let encrypt = target.crypt().unwrap().encrypt(GOOD);
        let signature = crypto::signature(&["devcallbacktoken", "7", "n", &encrypt]);
        let body = |signature: &str| {
            format!(
                "<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt><MsgSignature><![CDATA[{signature}]]></MsgSignature>\
                 <TimeStamp>7</TimeStamp><Nonce><![CDATA[n]]></Nonce></xml>"
            )
        };
        let Ok(Some(PassiveReply::Message(reply))) =
            judge_body(Mode::Safe, "text/xml", &body(&signature))
        else {
            panic!()
        };
        assert_eq!(
            (reply.content.as_deref(), reply.encrypted),
            (Some("hi"), true)
        );
        assert!(
            judge_body(Mode::Safe, "text/xml", &body("0"))
                .unwrap_err()
                .contains("MsgSignature")
        );
        assert!(
            judge_body(Mode::Plain, "text/xml", &body(&signature))
                .unwrap_err()
                .contains("plain mode")
        );
    }

    #[test]
    fn a_mini_program_may_only_hand_over() {
        let account = Config::dev("http://127.0.0.1:1").accounts.remove(0);
        let target = Target::of(&account).unwrap();
        let answer = |msg_type: &str| {
            let reply = json!({"ToUserName": "oUser", "FromUserName": "gh_000000000001", "CreateTime": 1, "MsgType": msg_type, "Content": "x"});
            let encrypt = target.crypt().unwrap().encrypt(&reply.to_string());
            let signature = crypto::signature(&["devcallbacktoken", "7", "n", &encrypt]);
            let body = json!({"Encrypt": encrypt, "MsgSignature": signature, "TimeStamp": 7, "Nonce": "n"}).to_string();
            judge(
                &Answer {
                    status: 200,
                    content_type: "application/json".to_owned(),
                    body,
                },
                &target,
                &push(),
            )
        };
        assert!(matches!(
            answer(TRANSFER),
            Ok(Some(PassiveReply::Message(_)))
        ));
        assert!(answer("text").unwrap_err().contains("no passive reply"));
    }
}
