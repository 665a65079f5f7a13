//! What an app says to a user, in the shape that WeChat takes.
//!
//! Bodies are raw UTF-8: WeChat refuses `\uXXXX` escapes or shows them to the user.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::OpenId;

/// A template's variables: `{"thing1": "…"}`, sent as `{"thing1": {"value": "…"}}`.
pub type TemplateData = BTreeMap<String, String>;

/// A template message of a service account (发送模板消息 sendTemplateMessage).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateMessage {
    /// A follower of the account.
    #[serde(rename = "touser")]
    pub to_user: OpenId,
    /// The account's id of the template.
    pub template_id: String,
    /// Where a tap leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A linked mini program to open; wins over `url`.
    #[serde(rename = "miniprogram", skip_serializing_if = "Option::is_none")]
    pub mini_program: Option<MiniProgramLink>,
    /// The same user and id are delivered once within ten minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<String>,
    /// The template's variables.
    #[serde(serialize_with = "values")]
    pub data: TemplateData,
}

/// A page of a mini program that is linked to the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MiniProgramLink {
    /// The mini program's app id.
    #[serde(rename = "appid")]
    pub app_id: String,
    /// The page, with its query.
    #[serde(rename = "pagepath")]
    pub page_path: String,
}

/// A subscribe message of a mini program (发送订阅消息 sendMessage).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubscribeMessage {
    /// A user of the mini program who subscribed to the template.
    #[serde(rename = "touser")]
    pub to_user: OpenId,
    /// The private template's id (`priTmplId`).
    pub template_id: String,
    /// The page that a tap opens; without it a tap does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// The edition of the mini program to open; WeChat's default is the released one.
    #[serde(rename = "miniprogram_state", skip_serializing_if = "Option::is_none")]
    pub state: Option<MiniProgramState>,
    /// `zh_CN` (WeChat's default), `en_US`, `zh_HK` or `zh_TW`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    /// The template's variables: every key of the template, each within its type's limit.
    #[serde(serialize_with = "values")]
    pub data: TemplateData,
}

/// An edition of a mini program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MiniProgramState {
    /// The developer's own.
    Developer,
    /// The one given to testers.
    Trial,
    /// The released one.
    Formal,
}

/// A template message of a mini program, paid for with a `form_id` (小程序模板消息; WeChat withdrew it on
/// 2020-01-10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FormTemplateMessage {
    /// The user who submitted the form.
    #[serde(rename = "touser")]
    pub to_user: OpenId,
    /// The mini program's id of the template.
    pub template_id: String,
    /// The page that a tap opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// From a form (good for one message) or a payment's `prepay_id` (three), for seven days.
    pub form_id: String,
    /// The variable shown large, for example `keyword1.DATA`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emphasis_keyword: Option<String>,
    /// The template's variables.
    #[serde(serialize_with = "values")]
    pub data: TemplateData,
}

fn values<S: Serializer>(data: &TemplateData, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Value<'a> {
        value: &'a str,
    }
    serializer.collect_map(data.iter().map(|(key, value)| (key, Value { value })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_id() -> OpenId {
        OpenId::try_from("oUser").unwrap()
    }

    fn data(pairs: &[(&str, &str)]) -> TemplateData {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn template_messages_wrap_each_value() {
        let message = TemplateMessage {
            to_user: open_id(),
            template_id: "T1".to_owned(),
            url: Some("https://e.com/?a=1&b=2".to_owned()),
            mini_program: Some(MiniProgramLink {
                app_id: "wx1".to_owned(),
                page_path: "index?foo=bar".to_owned(),
            }),
            client_msg_id: Some("m1".to_owned()),
            data: data(&[("thing1", "张三"), ("amount2", "¥39.8")]),
        };
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"touser":"oUser","template_id":"T1","url":"https://e.com/?a=1&b=2","miniprogram":{"appid":"wx1","pagepath":"index?foo=bar"},"client_msg_id":"m1","data":{"amount2":{"value":"¥39.8"},"thing1":{"value":"张三"}}}"#
        );
    }

    #[test]
    fn absent_options_are_left_out() {
        let subscribe = SubscribeMessage {
            to_user: open_id(),
            template_id: "T1".to_owned(),
            page: None,
            state: Some(MiniProgramState::Trial),
            lang: None,
            data: data(&[]),
        };
        assert_eq!(
            serde_json::to_string(&subscribe).unwrap(),
            r#"{"touser":"oUser","template_id":"T1","miniprogram_state":"trial","data":{}}"#
        );
        let form = FormTemplateMessage {
            to_user: open_id(),
            template_id: "T1".to_owned(),
            page: None,
            form_id: "F1".to_owned(),
            emphasis_keyword: Some("keyword1.DATA".to_owned()),
            data: data(&[("keyword1", "339208499")]),
        };
        assert_eq!(
            serde_json::to_string(&form).unwrap(),
            r#"{"touser":"oUser","template_id":"T1","form_id":"F1","emphasis_keyword":"keyword1.DATA","data":{"keyword1":{"value":"339208499"}}}"#
        );
    }
}
