//! Logging in and out, and who is signed in.

use std::{sync::Arc, time::SystemTime};

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
use wechat::AppId;

use super::{
    NO_STORE,
    browser::{self, WhichQuery},
    text,
};
use crate::{
    Auth,
    error::Error,
    login::{Attempt, JsCode, SignedIn},
    session::Token,
    user::{Nickname, User},
};

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/login", post(login))
        .route("/auth/authorize", post(authorize))
        .route("/auth/test", get(test))
}

/// Those that pages on the hosts of apps may ask too.
pub(super) fn shared_routes() -> Router<Auth> {
    Router::new()
        .route("/me", get(me).options(browser::preflight))
        .route("/logout", post(logout).options(browser::preflight))
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
        let mut attempt = attempt(&auth, &headers, "js_code", &request)?;
        // Else a mini program that logs in at each launch piles up sessions. What is none is left alone.
        attempt.replaced = http::bearer(&headers).and_then(|token| Token::parse(token).ok());
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

#[derive(Deserialize)]
struct Authorize {
    code: Option<String>,
    #[serde(rename = "appId")]
    app_id: Option<String>,
    nickname: Option<String>,
}

/// What clients that keep cookies get.
#[derive(Serialize)]
struct Authorized {
    code: u8,
    message: &'static str,
    data: Me,
}

/// `POST /auth/authorize`: the session as a cookie.
async fn authorize(
    State(auth): State<Auth>,
    headers: HeaderMap,
    http::Json(request): http::Json<Authorize>,
) -> Result<Response, http::Error> {
    let login = async {
        // Else a page could sign its visitors in as somebody else.
        browser::same_site(&auth, &headers)?;
        let request = Login {
            js_code: request.code,
            app_id: request.app_id,
            nickname: request.nickname,
        };
        let mut attempt = attempt(&auth, &headers, "code", &request)?;
        let app = Arc::clone(&attempt.app);
        attempt.replaced = browser::session_with(&auth, &headers, &app);
        Ok((app, auth.logins.login(attempt).await?))
    };
    let (app, signed_in) = login.await.map_err(|error| auth.status(&error))?;
    let cookie = browser::keep(&auth, &app, &signed_in.token);
    let SignedIn {
        user, expire_time, ..
    } = signed_in;
    let body = Authorized {
        code: 0,
        message: "auth success.",
        data: Me::new(user, expire_time),
    };
    let headers = [
        (header::SET_COOKIE, cookie),
        (header::CACHE_CONTROL, NO_STORE),
    ];
    Ok((headers, JsonBody(body)).into_response())
}

fn attempt(
    auth: &Auth,
    headers: &HeaderMap,
    code: &'static str,
    request: &Login,
) -> Result<Attempt, Error> {
    let js_code = request.js_code.as_deref().unwrap_or_default();
    let nickname = request.nickname.as_deref().unwrap_or_default();
    let app_id = request.app_id.as_deref().unwrap_or_default();
    Ok(Attempt {
        js_code: JsCode::parse(code, js_code)?,
        nickname: Nickname::parse(nickname)?,
        app: app_to_log_in_to(&auth.catalog.current(), app_id)?,
        client: text(headers, header::USER_AGENT).to_owned(),
        replaced: None,
    })
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

/// Whose session it is.
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

impl Me {
    fn new(user: User, expires: SystemTime) -> Self {
        Self {
            user_id: user.user_id.to_string(),
            app_id: user.app_id.into(),
            open_id: user.open_id.into(),
            union_id: user.union_id.map(String::from),
            nickname: user.nickname.unwrap_or_default(),
            expire_time: DateTime::<Utc>::from(expires)
                .to_rfc3339_opts(SecondsFormat::Millis, true),
        }
    }

    async fn of(auth: &Auth, headers: &HeaderMap, which: WhichQuery) -> Result<Self, Error> {
        let shown = browser::shown(auth, headers, which)?;
        let open_to = |app_id: &AppId| shown.may_be_with(app_id, auth);
        let (session, expires) = auth.sessions.verify(&shown.token, open_to).await?;
        let user = auth.users.get(session.user_id).await?;
        Ok(Self::new(user.ok_or(Error::SessionInvalid)?, expires))
    }
}

/// `GET /me`: who the session's user is.
async fn me(
    State(auth): State<Auth>,
    headers: HeaderMap,
    which: WhichQuery,
) -> Result<Response, http::Error> {
    let me = Me::of(&auth, &headers, which)
        .await
        .map_err(|error| auth.status(&error))?;
    Ok(([(header::CACHE_CONTROL, NO_STORE)], JsonBody(me)).into_response())
}

/// `GET /auth/test`: the same, as [`authorize`] tells it.
async fn test(
    State(auth): State<Auth>,
    headers: HeaderMap,
    which: WhichQuery,
) -> Result<Response, http::Error> {
    let me = Me::of(&auth, &headers, which).await;
    let body = Authorized {
        code: 0,
        message: "signed in.",
        data: me.map_err(|error| auth.status(&error))?,
    };
    Ok(([(header::CACHE_CONTROL, NO_STORE)], JsonBody(body)).into_response())
}

/// `POST /logout`: ends the session; one that ended before is no error. A cookie of it goes too.
async fn logout(
    State(auth): State<Auth>,
    headers: HeaderMap,
    which: WhichQuery,
) -> Result<Response, http::Error> {
    let logout = async {
        let shown = browser::shown(&auth, &headers, which)?;
        auth.sessions.revoke(&shown.token, |_| true).await?;
        Ok(shown.cookie)
    };
    let cookie = logout.await.map_err(|error| auth.status(&error))?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(app) = cookie {
        let forgotten = browser::forget(&auth, &app);
        response.headers_mut().insert(header::SET_COOKIE, forgotten);
    }
    Ok(response)
}
