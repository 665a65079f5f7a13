//! The three interfaces that fill in a template: 模板消息, 订阅消息 and the withdrawn one that costs a form id.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{MessageKind, MsgIds, Sent, value};
use crate::{
    account::Account,
    clock::Moment,
    config::{TemplateConfig, TemplateKind},
    error::ApiError,
};

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    touser: String,
    #[serde(default)]
    template_id: String,
    data: BTreeMap<String, Datum>,
    client_msg_id: Option<String>,
    #[serde(default)]
    form_id: String,
    miniprogram_state: Option<String>,
    lang: Option<String>,
}

#[derive(Deserialize)]
struct Datum {
    value: String,
}

impl Request {
    fn parse(body: &Value) -> Result<Self, ApiError> {
        Self::deserialize(body).map_err(|_| ApiError::DATA_FORMAT)
    }

    fn template<'a>(
        &self,
        account: &'a Account,
        kind: TemplateKind,
    ) -> Result<&'a TemplateConfig, ApiError> {
        let templates = &account.config.templates;
        templates
            .iter()
            .find(|template| template.kind == kind && template.template_id == self.template_id)
            .ok_or(ApiError::INVALID_TEMPLATE_ID)
    }

    /// Every value that the template names and the sender gave follows the rule of its type.
    fn check_values(&self, template: &TemplateConfig) -> Result<(), ApiError> {
        let broken = template.keys.iter().find(|key| {
            self.data
                .get(*key)
                .is_some_and(|datum| !value::is_valid(key, &datum.value))
        });
        broken.map_or(Ok(()), |key| {
            Err(ApiError::invalid_argument(&format!("data.{key}.value")))
        })
    }

    /// What the user reads: the template's own values, in its order; others are dropped.
    fn text(&self, template: &TemplateConfig) -> String {
        let lines = template
            .keys
            .iter()
            .filter_map(|key| Some(format!("{key}: {}", self.data.get(key)?.value)));
        lines.collect::<Vec<_>>().join("\n")
    }
}

pub(super) fn send(
    account: &mut Account,
    body: Value,
    msg_ids: &mut MsgIds,
    now: Moment,
) -> Result<Sent, ApiError> {
    let request = Request::parse(&body)?;
    let user = account
        .user(&request.touser)
        .ok_or(ApiError::INVALID_OPENID)?;
    if !user.follows {
        return Err(ApiError::REQUIRE_SUBSCRIBE);
    }
    let template = request.template(account, TemplateKind::Template)?;
    if request.data.values().any(|datum| datum.value.is_empty()) {
        return Err(ApiError::CONTENT_MALFORMED);
    }
    request.check_values(template)?;
    let text = request.text(template);
    let open_id = &request.touser;
    if let Some(id) = &request.client_msg_id
        && let Some(msg_id) = account.client_msg_ids.delivered(open_id, id, now)
    {
        return Ok(Sent {
            msg_id: Some(msg_id),
            message: None,
        });
    }
    let msg_id = msg_ids.next();
    if let Some(id) = &request.client_msg_id {
        account.client_msg_ids.remember(open_id, id, msg_id, now);
    }
    Ok(Sent::new(
        account,
        open_id,
        MessageKind::Template,
        text,
        body,
        Some(msg_id),
        now,
    ))
}

pub(super) fn send_subscribe(
    account: &Account,
    body: Value,
    msg_ids: &mut MsgIds,
    now: Moment,
) -> Result<Sent, ApiError> {
    let request = Request::parse(&body)?;
    account
        .user(&request.touser)
        .ok_or(ApiError::INVALID_OPENID)?;
    let template = request.template(account, TemplateKind::Subscribe)?;
    let missing = template.keys.iter().find(|key| {
        request
            .data
            .get(*key)
            .is_none_or(|datum| datum.value.is_empty())
    });
    if let Some(key) = missing {
        return Err(ApiError::invalid_argument(&format!("data.{key}.value")));
    }
    request.check_values(template)?;
    if !matches!(
        request.miniprogram_state.as_deref(),
        None | Some("developer" | "trial" | "formal")
    ) {
        return Err(ApiError::invalid_argument("miniprogram_state"));
    }
    if !matches!(
        request.lang.as_deref(),
        None | Some("zh_CN" | "en_US" | "zh_HK" | "zh_TW")
    ) {
        return Err(ApiError::invalid_argument("lang"));
    }
    let text = request.text(template);
    let msg_id = Some(msg_ids.next());
    Ok(Sent::new(
        account,
        &request.touser,
        MessageKind::Subscribe,
        text,
        body,
        msg_id,
        now,
    ))
}

pub(super) fn send_form(
    account: &mut Account,
    body: Value,
    msg_ids: &mut MsgIds,
    now: Moment,
) -> Result<Sent, ApiError> {
    let request = Request::parse(&body)?;
    account
        .user(&request.touser)
        .ok_or(ApiError::INVALID_OPENID)?;
    let text = {
        let template = request.template(account, TemplateKind::Form)?;
        request.check_values(template)?;
        request.text(template)
    };
    account
        .form_ids
        .spend(&request.form_id, &request.touser, now)?;
    let msg_id = Some(msg_ids.next());
    Ok(Sent::new(
        account,
        &request.touser,
        MessageKind::FormTemplate,
        text,
        body,
        msg_id,
        now,
    ))
}
