//! What a callback answers on the same connection (被动回复用户消息).

use std::fmt::Write;

use serde::Serialize;

use super::{Format, Inbound};

/// A passive reply.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Nothing to say: the bare word `success`, which is never encrypted.
    Success,
    /// Text, its line breaks shown.
    Text {
        /// What is shown.
        content: String,
    },
}

impl Reply {
    /// The body that answers `to`, in its format, from its receiver to its sender. `now_unix` is in seconds.
    ///
    /// Characters that XML has no way to write are left out of XML.
    pub fn render(&self, to: &Inbound, now_unix: i64) -> String {
        let content = match self {
            Self::Success => return "success".to_owned(),
            Self::Text { content } => content,
        };
        match to.format {
            Format::Xml => {
                let mut body = Xml::new();
                body.text("ToUserName", &to.from_user_name);
                body.text("FromUserName", &to.to_user_name);
                body.number("CreateTime", now_unix);
                body.text("MsgType", "text");
                body.text("Content", content);
                body.finish()
            }
            Format::Json => json(&TextReply {
                to_user_name: &to.from_user_name,
                from_user_name: &to.to_user_name,
                create_time: now_unix,
                msg_type: "text",
                content,
            }),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TextReply<'a> {
    to_user_name: &'a str,
    from_user_name: &'a str,
    create_time: i64,
    msg_type: &'static str,
    content: &'a str,
}

/// The envelope of an encrypted reply; `signature` is that of token, `timestamp`, `nonce` and `encrypt`.
pub fn render_encrypted(
    format: Format,
    encrypt: &str,
    signature: &str,
    timestamp: i64,
    nonce: &str,
) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Encrypted<'a> {
        encrypt: &'a str,
        msg_signature: &'a str,
        time_stamp: i64,
        nonce: &'a str,
    }
    match format {
        Format::Xml => {
            let mut body = Xml::new();
            body.text("Encrypt", encrypt);
            body.text("MsgSignature", signature);
            body.number("TimeStamp", timestamp);
            body.text("Nonce", nonce);
            body.finish()
        }
        Format::Json => json(&Encrypted {
            encrypt,
            msg_signature: signature,
            time_stamp: timestamp,
            nonce,
        }),
    }
}

fn json(body: &impl Serialize) -> String {
    // Structs of texts and numbers always serialise.
    serde_json::to_string(body).unwrap_or_default()
}

/// Writes the XML that WeChat takes: no declaration, texts in CDATA, numbers bare.
struct Xml(String);

impl Xml {
    fn new() -> Self {
        Self("<xml>".to_owned())
    }

    fn text(&mut self, name: &str, text: &str) {
        let text: String = text.chars().filter(|&c| is_xml(c)).collect();
        // A CDATA section cannot hold its own end: it is cut in two there.
        let text = text.replace("]]>", "]]]]><![CDATA[>");
        self.element(name, format_args!("<![CDATA[{text}]]>"));
    }

    fn number(&mut self, name: &str, number: i64) {
        self.element(name, format_args!("{number}"));
    }

    fn element(&mut self, name: &str, content: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "<{name}>{content}</{name}>");
    }

    fn finish(mut self) -> String {
        self.0.push_str("</xml>");
        self.0
    }
}

/// The `Char` production of XML 1.0.
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
