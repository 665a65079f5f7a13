//! A message or event, as it is written to the account's server.

use serde_json::{Map, Value, json};

use crate::config::{Format, Mode};

/// What a user, or WeChat in a user's name, tells the account.
#[derive(Debug)]
pub(crate) struct Push {
    /// The user's openid.
    pub(crate) from: String,
    /// Unix seconds.
    pub(crate) create_time: u64,
    pub(crate) msg_type: String,
    /// Messages have one, events do not.
    pub(crate) msg_id: Option<i64>,
    /// Everything besides the common fields, under WeChat's names.
    pub(crate) fields: Map<String, Value>,
}

impl Push {
    /// The readable message.
    pub(crate) fn render(&self, format: Format, original_id: &str) -> String {
        match format {
            Format::Xml => xml(&self.all_fields(original_id)),
            Format::Json => {
                Value::Object(self.all_fields(original_id).into_iter().collect()).to_string()
            }
        }
    }

    /// The request body: the message, the message beside its cipher text, or the cipher text alone.
    pub(crate) fn body(
        &self,
        format: Format,
        mode: Mode,
        original_id: &str,
        sealed: Option<&str>,
    ) -> String {
        let mut fields = match mode {
            Mode::Plain | Mode::Compatible => self.all_fields(original_id),
            Mode::Safe => vec![("ToUserName".to_owned(), json!(original_id))],
        };
        if let Some(sealed) = sealed {
            fields.push(("Encrypt".to_owned(), json!(sealed)));
        }
        match format {
            Format::Xml => xml(&fields),
            Format::Json => Value::Object(fields.into_iter().collect()).to_string(),
        }
    }

    fn all_fields(&self, original_id: &str) -> Vec<(String, Value)> {
        let mut fields = vec![
            ("ToUserName".to_owned(), json!(original_id)),
            ("FromUserName".to_owned(), json!(self.from)),
            ("CreateTime".to_owned(), json!(self.create_time)),
            ("MsgType".to_owned(), json!(self.msg_type)),
        ];
        fields.extend(self.fields.clone());
        if let Some(msg_id) = self.msg_id {
            fields.push(("MsgId".to_owned(), json!(msg_id)));
        }
        fields
    }
}

fn xml(fields: &[(String, Value)]) -> String {
    let mut text = String::from("<xml>");
    for (name, value) in fields {
        element(&mut text, name, value);
    }
    text.push_str("</xml>");
    text
}

/// Numbers bare, texts in CDATA, objects nested, and an array as its name repeated.
fn element(text: &mut String, name: &str, value: &Value) {
    if let Value::Array(items) = value {
        for item in items {
            element(text, name, item);
        }
        return;
    }
    text.push_str(&format!("<{name}>"));
    match value {
        Value::Object(children) => {
            for (name, value) in children {
                element(text, name, value);
            }
        }
        Value::String(content) => {
            let content = content
                .replace(is_unwritable, "")
                .replace("]]>", "]]]]><![CDATA[>");
            text.push_str(&format!("<![CDATA[{content}]]>"));
        }
        other => text.push_str(&other.to_string()),
    }
    text.push_str(&format!("</{name}>"));
}

/// Control characters that XML has no way to write.
fn is_unwritable(c: char) -> bool {
    c < ' ' && !matches!(c, '\t' | '\n' | '\r') || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// Whether `name` can be the name of an XML element.
pub(crate) fn is_field_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push() -> Push {
        let fields = json!({"Content": "a\u{8}]]>b", "ScanCodeInfo": {"ScanType": "qrcode"}, "PicList": [{"n": 1}, {"n": 2}]});
        Push {
            from: "oUser".to_owned(),
            create_time: 1,
            msg_type: "text".to_owned(),
            msg_id: Some(3_717_005_636_572_528_642),
            fields: fields.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn xml_has_bare_numbers_and_texts_in_cdata() {
        let xml = push().render(Format::Xml, "gh_1");
        for part in [
            "<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[oUser]]></FromUserName>",
            "<CreateTime>1</CreateTime><MsgType><![CDATA[text]]></MsgType>",
            "<Content><![CDATA[a]]]]><![CDATA[>b]]></Content>",
            "<ScanCodeInfo><ScanType><![CDATA[qrcode]]></ScanType></ScanCodeInfo>",
            "<PicList><n>1</n></PicList><PicList><n>2</n></PicList>",
            "<MsgId>3717005636572528642</MsgId></xml>",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
    }

    #[test]
    fn modes_differ_in_what_can_be_read() {
        let body = |mode| {
            push().body(
                Format::Xml,
                mode,
                "gh_1",
                (mode != Mode::Plain).then_some("c2VhbGVk"),
            )
        };
        let has = |body: &str| (body.contains("<Content>"), body.contains("<Encrypt>"));
        assert_eq!(has(&body(Mode::Plain)), (true, false));
        assert_eq!(has(&body(Mode::Compatible)), (true, true));
        assert_eq!(has(&body(Mode::Safe)), (false, true));
    }
}
