//! Logging in and out, and who is signed in.

use std::sync::Arc;

use axum::{
    Json as JsonBody, Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use service_kit::{App, AppKind, Catalog, http};

use super::NO_STORE;
use crate::{
    Auth,
    error::Error,
    login::{Attempt, JsCode},
    session::Token,
    user::Nickname,
};

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/login", post(login))
        .route("/me", get(me))
        .route("/logout", post(logout))
}

#[derive(Deserialize)]
struct Login {
    js_code: Option<String>,
    app_id: Option<String>,
    nickname: Option<String>,
}

/// `POST /login`: 204 with the session token in `Authorization`.
async fn login(
    State(auth): State<Auth>,
    headers: HeaderMap,
    http::Json(request): http::Json<Login>,
) -> Result<Response, http::Error> {
    let login = async {
        let js_code = JsCode::parse(request.js_code.as_deref().unwrap_or_default())?;
        let nickname = Nickname::parse(request.nickname.as_deref().unwrap_or_default())?;
        let app_id = request.app_id.as_deref().unwrap_or_default();
        let attempt = Attempt {
            app: app_to_log_in_to(&auth.catalog.current(), app_id)?,
            js_code,
            nickname,
            client: text(&headers, header::USER_AGENT).to_owned(),
        };
        auth.logins.login(attempt).await
    };
    let signed_in = login.await.map_err(|error| auth.status(&error))?;
    let token = HeaderValue::from_str(signed_in.token.expose());
    let mut token = token.map_err(|_| auth.status(&Error::Stored("session token")))?;
    token.set_sensitive(true);
    let headers = [
        (header::AUTHORIZATION, token),
        (header::CACHE_CONTROL, NO_STORE),
    ];
    Ok((StatusCode::NO_CONTENT, headers).into_response())
}

/// The app that is named, or the only mini program there is.
fn app_to_log_in_to(catalog: &Catalog, id_or_name: &str) -> Result<Arc<App>, Error> {
    if !id_or_name.is_empty() {
        return catalog.app(id_or_name).cloned().ok_or(Error::AppUnknown);
    }
    let mut declared = catalog
        .apps()
        .iter()
        .filter(|app| app.kind == AppKind::MiniProgram);
    match (declared.next(), declared.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        _ => Err(Error::field(
            "app_id",
            "is missing, and there is not exactly one mini program",
        )),
    }
}

#[derive(Serialize)]
struct Me {
    user_id: String,
    app_id: String,
    open_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    union_id: Option<String>,
    nickname: String,
    expire_time: String,
}

/// `GET /me`: who the session's user is.
async fn me(State(auth): State<Auth>, headers: HeaderMap) -> Result<Response, http::Error> {
    let me = async {
        let token = session_token(&headers)?;
        let (session, expires) = auth.sessions.verify(&token, |_| true).await?;
        if auth
            .catalog
            .current()
            .app(session.app_id.as_str())
            .is_none()
        {
            return Err(Error::SessionInvalid);
        }
        let user = auth.users.get(session.user_id).await?;
        let user = user.ok_or(Error::SessionInvalid)?;
        Ok(Me {
            user_id: user.user_id.to_string(),
            app_id: user.app_id.into(),
            open_id: user.open_id.into(),
            union_id: user.union_id.map(String::from),
            nickname: user.nickname.unwrap_or_default(),
            expire_time: DateTime::<Utc>::from(expires)
                .to_rfc3339_opts(SecondsFormat::Millis, true),
        })
    };
    let me = me.await.map_err(|error| auth.status(&error))?;
    Ok(([(header::CACHE_CONTROL, NO_STORE)], JsonBody(me)).into_response())
}

/// `POST /logout`: ends the session; one that ended before is no error.
async fn logout(State(auth): State<Auth>, headers: HeaderMap) -> Result<StatusCode, http::Error> {
    let logout = async {
        let token = session_token(&headers)?;
        auth.sessions.revoke(&token, |_| true).await
    };
    logout.await.map_err(|error| auth.status(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The token of an `Authorization` header, with or without `Bearer`.
pub(super) fn session_token(headers: &HeaderMap) -> Result<Token, Error> {
    // Whatever is wrong with it, it is no session.
    let token = http::bearer(headers).ok_or(Error::SessionInvalid)?;
    Token::parse(token).map_err(|_| Error::SessionInvalid)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    let value = headers.get(name).map(HeaderValue::to_str);
    value.and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_token_is_read_with_and_without_bearer() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            session_token(&headers).map(|token| token.expose().to_owned())
        };
        for value in ["abc", "Bearer abc", "bearer  abc "] {
            assert_eq!(token(value).unwrap(), "abc");
        }
        let long = "x".repeat(Token::MAX + 1);
        for value in ["", " ", &long] {
            assert!(matches!(token(value), Err(Error::SessionInvalid)));
        }
        assert!(session_token(&HeaderMap::new()).is_err());
    }
}
