//! Sends. Success means that WeChat accepted the message, with or without an id for it; delivery,
//! where WeChat reports it at all, comes as a callback.

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{Client, answer};
use crate::{
    AccessToken, CustomerMessage, Error, FormTemplateMessage, MsgId, SubscribeMessage,
    TemplateMessage, Typing,
};

#[derive(Deserialize)]
struct SendAnswer {
    msgid: Option<Box<RawValue>>,
}

impl Client {
    /// Sends a template message of a service account (发送模板消息 sendTemplateMessage).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_template(
        &self,
        token: &AccessToken,
        message: &TemplateMessage,
    ) -> Result<Option<MsgId>, Error> {
        self.send("/cgi-bin/message/template/send", token, message)
            .await
    }

    /// Sends a subscribe message of a mini program (发送订阅消息 sendMessage).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_subscribe(
        &self,
        token: &AccessToken,
        message: &SubscribeMessage,
    ) -> Result<Option<MsgId>, Error> {
        self.send("/cgi-bin/message/subscribe/send", token, message)
            .await
    }

    /// Sends a template message of a mini program against a `form_id` (小程序模板消息).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_form_template(
        &self,
        token: &AccessToken,
        message: &FormTemplateMessage,
    ) -> Result<Option<MsgId>, Error> {
        self.send("/cgi-bin/message/wxopen/template/send", token, message)
            .await
    }

    /// Sends a customer-service message (发送客服消息 sendCustomMessage).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_customer(
        &self,
        token: &AccessToken,
        message: &CustomerMessage,
    ) -> Result<Option<MsgId>, Error> {
        self.send("/cgi-bin/message/custom/send", token, message)
            .await
    }

    /// Shows the user of an official account that an answer is being typed, or takes that back (客服输入状态).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_typing(&self, token: &AccessToken, typing: &Typing) -> Result<(), Error> {
        self.typing("/cgi-bin/message/custom/typing", token, typing)
            .await
    }

    /// The same for the user of a mini program, whose interface has a path of its own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send_mini_program_typing(
        &self,
        token: &AccessToken,
        typing: &Typing,
    ) -> Result<(), Error> {
        self.typing("/cgi-bin/message/custom/business/typing", token, typing)
            .await
    }

    async fn typing(
        &self,
        endpoint: &'static str,
        token: &AccessToken,
        typing: &Typing,
    ) -> Result<(), Error> {
        self.post::<IgnoredAny>(endpoint, token, typing).await?;
        Ok(())
    }

    async fn send(
        &self,
        endpoint: &'static str,
        token: &AccessToken,
        message: &impl Serialize,
    ) -> Result<Option<MsgId>, Error> {
        let answer: SendAnswer = self.post(endpoint, token, message).await?;
        Ok(answer
            .msgid
            .as_deref()
            .and_then(answer::scalar)
            .and_then(|id| MsgId::try_from(id).ok()))
    }
}
