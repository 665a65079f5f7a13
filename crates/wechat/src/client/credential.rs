//! Tokens and tickets of an app.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Call, Client, answer, json_body};
use crate::{AccessToken, AppId, AppSecret, Error, Ticket};

/// A credential with its remaining life as WeChat states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued<T> {
    /// The credential.
    pub value: T,
    /// Counted from WeChat's answer; 7200 s at most as of now.
    pub expires_in: Duration,
}

/// What a ticket signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketType {
    /// Pages that use the JS-SDK.
    Jsapi,
    /// Cards and coupons.
    WxCard,
}

impl TicketType {
    /// The `type` parameter of `/cgi-bin/ticket/getticket`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsapi => "jsapi",
            Self::WxCard => "wx_card",
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(deserialize_with = "answer::filled")]
    access_token: String,
    #[serde(deserialize_with = "answer::seconds")]
    expires_in: Duration,
}

impl From<TokenAnswer> for Issued<AccessToken> {
    fn from(answer: TokenAnswer) -> Self {
        Self {
            value: AccessToken::new(answer.access_token),
            expires_in: answer.expires_in,
        }
    }
}

#[derive(Deserialize)]
struct TicketAnswer {
    #[serde(deserialize_with = "answer::filled")]
    ticket: String,
    #[serde(deserialize_with = "answer::seconds")]
    expires_in: Duration,
}

#[derive(Deserialize)]
struct IpListAnswer {
    ip_list: Vec<String>,
}

impl Client {
    /// Issues a new classic `access_token`; the one before dies within five minutes (获取 Access
    /// token, GET `/cgi-bin/token`).
    ///
    /// # Errors
    /// [`Error`]; 40001 here means a wrong secret.
    pub async fn access_token(
        &self,
        app: &AppId,
        secret: &AppSecret,
    ) -> Result<Issued<AccessToken>, Error> {
        self.call::<TokenAnswer>(Call {
            endpoint: "/cgi-bin/token",
            app: Some(app),
            query: &[
                ("grant_type", "client_credential"),
                ("appid", app.as_str()),
                ("secret", secret.expose()),
            ],
            body: None,
            secrets: &[secret.expose()],
        })
        .await
        .map(Into::into)
    }

    /// The current stable `access_token`, or a new one that ends it with `force_refresh` (20 a day,
    /// 30 s apart) (获取稳定版接口调用凭据 getStableAccessToken).
    ///
    /// # Errors
    /// [`Error`]; 40001 here means a wrong secret.
    pub async fn stable_access_token(
        &self,
        app: &AppId,
        secret: &AppSecret,
        force_refresh: bool,
    ) -> Result<Issued<AccessToken>, Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            grant_type: &'static str,
            appid: &'a AppId,
            secret: &'a str,
            force_refresh: bool,
        }
        let endpoint = "/cgi-bin/stable_token";
        let body = Body {
            grant_type: "client_credential",
            appid: app,
            secret: secret.expose(),
            force_refresh,
        };
        self.call::<TokenAnswer>(Call {
            endpoint,
            app: Some(app),
            query: &[],
            body: Some(json_body(endpoint, &body)?),
            secrets: &[secret.expose()],
        })
        .await
        .map(Into::into)
    }

    /// Issues a ticket (获取sdk临时票据 getTicket).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ticket(
        &self,
        token: &AccessToken,
        kind: TicketType,
    ) -> Result<Issued<Ticket>, Error> {
        let answer: TicketAnswer = self
            .get(
                "/cgi-bin/ticket/getticket",
                token,
                &[("type", kind.as_str())],
            )
            .await?;
        Ok(Issued {
            value: Ticket::new(answer.ticket),
            expires_in: answer.expires_in,
        })
    }

    /// WeChat's own API addresses, some of them CIDR blocks: the cheapest proof that a token is
    /// alive (获取微信API服务器IP).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn api_domain_ip(&self, token: &AccessToken) -> Result<Vec<String>, Error> {
        let answer: IpListAnswer = self.get("/cgi-bin/get_api_domain_ip", token, &[]).await?;
        Ok(answer.ip_list)
    }
}
