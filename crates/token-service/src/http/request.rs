//! What SDKs send. Their `Content-Type` is not looked at: each writes another, and WeChat itself does not care.

use std::borrow::Cow;

use axum::extract::Request;
use serde::Deserialize;
use url::form_urlencoded;

use super::refusal::Refusal;

/// The query's parameters. There is no malformed query: what cannot be decoded is somebody else's text.
pub(super) struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).collect())
    }

    /// The first parameter of that name, unless it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.as_ref())
            .filter(|value| !value.is_empty())
    }
}

/// A request for a token, of either route. It holds the caller's key: no Debug.
#[derive(Deserialize)]
pub(super) struct TokenRequest {
    grant_type: Option<String>,
    appid: Option<String>,
    secret: Option<String>,
    force_refresh: Option<bool>,
}

/// A request that is complete.
pub(super) struct Asked<'a> {
    /// An app_id, or a name.
    pub(super) app: &'a str,
    /// What should be a caller's key.
    pub(super) secret: &'a str,
    pub(super) force_refresh: bool,
}

impl TokenRequest {
    pub(super) fn from_query(query: &Parameters<'_>) -> Self {
        let text = |name| query.get(name).map(str::to_owned);
        Self {
            grant_type: text("grant_type"),
            appid: text("appid"),
            secret: text("secret"),
            force_refresh: None,
        }
    }

    pub(super) async fn from_body(request: Request) -> Result<Self, Refusal> {
        let body = service_kit::http::body(request, &()).await;
        let body = body.map_err(|_| Refusal::DATA_FORMAT)?;
        match body.trim_ascii_start().first() {
            None => Err(Refusal::EMPTY_POST_DATA),
            // An array would be taken for the fields in their order.
            Some(b'{') => serde_json::from_slice(&body).map_err(|_| Refusal::DATA_FORMAT),
            Some(_) => Err(Refusal::DATA_FORMAT),
        }
    }

    pub(super) fn checked(&self) -> Result<Asked<'_>, Refusal> {
        if self.grant_type.as_deref() != Some("client_credential") {
            return Err(Refusal::INVALID_GRANT_TYPE);
        }
        Ok(Asked {
            app: present(self.appid.as_deref()).ok_or(Refusal::APP_ID_MISSING)?,
            secret: present(self.secret.as_deref()).ok_or(Refusal::APP_SECRET_MISSING)?,
            force_refresh: self.force_refresh.unwrap_or_default(),
        })
    }
}

fn present(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
