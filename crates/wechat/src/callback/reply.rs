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
    /// The body that answers `to`, in its format, from its receiver to its sender. `now_unix` is in
    /// seconds.
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

/// The envelope of an encrypted reply; `signature` is that of token, `timestamp`, `nonce` and
/// `encrypt`.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(format: Format) -> Inbound {
        let body = match format {
            Format::Xml => {
                "<xml><ToUserName>gh_1</ToUserName><FromUserName>oUser</FromUserName>\
                 <CreateTime>1</CreateTime><MsgType>text</MsgType></xml>"
            }
            Format::Json => {
                r#"{"ToUserName":"gh_1","FromUserName":"oUser","CreateTime":1,"MsgType":"text"}"#
            }
        };
        Inbound::parse(body.as_bytes()).unwrap()
    }

    fn text(content: &str) -> Reply {
        Reply::Text {
            content: content.to_owned(),
        }
    }

    #[test]
    fn xml_swaps_the_names_and_wraps_texts_but_not_numbers() {
        assert_eq!(
            text("你好 <b>&").render(&push(Format::Xml), 1_348_831_860),
            "<xml><ToUserName><![CDATA[oUser]]></ToUserName><FromUserName><![CDATA[gh_1]]></FromUserName>\
             <CreateTime>1348831860</CreateTime><MsgType><![CDATA[text]]></MsgType>\
             <Content><![CDATA[你好 <b>&]]></Content></xml>"
        );
    }

    #[test]
    fn json_swaps_the_names_too() {
        assert_eq!(
            text("你好 <b>&\"").render(&push(Format::Json), 5),
            r#"{"ToUserName":"oUser","FromUserName":"gh_1","CreateTime":5,"MsgType":"text","Content":"你好 <b>&\""}"#
        );
    }

    #[test]
    fn success_is_the_bare_word_in_both_formats() {
        assert_eq!(Reply::Success.render(&push(Format::Xml), 1), "success");
        assert_eq!(Reply::Success.render(&push(Format::Json), 1), "success");
    }

    #[test]
    fn the_end_of_a_cdata_section_is_split() {
        let rendered = text("a]]>b]]]>").render(&push(Format::Xml), 1);
        assert!(
            rendered.contains("<Content><![CDATA[a]]]]><![CDATA[>b]]]]]><![CDATA[>]]></Content>"),
            "{rendered}"
        );
        assert_eq!(
            Inbound::parse(rendered.as_bytes())
                .unwrap()
                .content
                .as_deref(),
            Some("a]]>b]]]>")
        );
    }

    #[test]
    fn encrypted_replies_carry_the_timestamp_bare() {
        assert_eq!(
            render_encrypted(Format::Xml, "E+/=", "5f", 1_714_112_445, "n"),
            "<xml><Encrypt><![CDATA[E+/=]]></Encrypt><MsgSignature><![CDATA[5f]]></MsgSignature>\
             <TimeStamp>1714112445</TimeStamp><Nonce><![CDATA[n]]></Nonce></xml>"
        );
        assert_eq!(
            render_encrypted(Format::Json, "E+/=", "5f", 1_714_112_445, "n"),
            r#"{"Encrypt":"E+/=","MsgSignature":"5f","TimeStamp":1714112445,"Nonce":"n"}"#
        );
    }

    proptest! {
        #[test]
        fn any_text_reads_back(content in any::<String>(), ends in "[\\[\\]<>!CDAT&;\u{0}\r\n]*") {
            for content in [content, ends] {
                let writable: String = content.chars().filter(|&c| is_xml(c)).collect();
                for (format, expected) in [(Format::Xml, &writable), (Format::Json, &content)] {
                    let rendered = text(&content).render(&push(format), 9);
                    let read = Inbound::parse(rendered.as_bytes()).unwrap();
                    prop_assert_eq!(read.content.as_ref(), Some(expected));
                    prop_assert_eq!((read.format, read.create_time), (format, 9));
                    prop_assert_eq!((read.to_user_name.as_str(), read.from_user_name.as_str()), ("oUser", "gh_1"));
                }
            }
        }
    }
}
