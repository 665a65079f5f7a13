//! Web OAuth: from a page to WeChat, and back.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
    routing::get,
};
use service_kit::{App, AppKind};
use url::form_urlencoded;
use wechat::OAuthScope;

use super::{browser, form::redirect, problem};
use crate::{
    Auth,
    error::Error,
    metrics,
    oauth::{self, Ask, Callback, Names, Next, Refused, ReturnTo},
    page::Language,
};

/// Bytes of the longest code that is looked at.
const CODE_MAX: usize = 512;
/// What WeChat's apps send in place of a code when the user declines.
const DECLINED: &str = "authdeny";
/// A browser that has begun this often without an end forgets the others.
const UNDER_WAY_MAX: usize = 16;

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/oauth/{app}/start", get(start))
        .route("/oauth/{app}/callback", get(callback))
}

/// `GET /oauth/{app}/start?return_to=…&scope=…`: to WeChat, or straight back.
async fn start(
    State(auth): State<Auth>,
    Path(app): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let ask = ask(&auth, &app, &query, &headers);
    let next = match &ask {
        Ok(ask) => auth.oauth.start(ask).await.map_err(Problem::from),
        Err(problem) => Err(problem.clone()),
    };
    match next {
        Ok(Next::Back(location)) => found(&location, []),
        Ok(Next::WeChat { url, names }) => {
            let cookie = (names.cookie(), names.secret());
            let mut cookies = vec![auth.cookies.set(&cookie.0, cookie.1, Some(oauth::LIFE))];
            let under_way = auth.cookies.starting(&headers, oauth::COOKIE);
            if under_way.len() >= UNDER_WAY_MAX {
                let forgotten = under_way
                    .iter()
                    .filter(|(start, _)| start.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .map(|(start, _)| auth.cookies.clear(&format!("{}{start}", oauth::COOKIE)));
                cookies.extend(forgotten);
            }
            found(url.as_str(), cookies)
        }
        Err(problem) => {
            let app = ask.as_ref().map_or("", |ask| ask.app.name.as_str());
            metrics::oauth(app, problem.outcome());
            problem.page(&query, &headers)
        }
    }
}

fn ask(auth: &Auth, app: &str, query: &str, headers: &HeaderMap) -> Result<Ask, Problem> {
    let app = official_account(auth, app)?;
    let return_to = one(query, "return_to")?.unwrap_or_default();
    let hosts = &app.oauth_return_hosts;
    let return_to = ReturnTo::parse(&return_to, hosts, auth.is_plain_http())?;
    let scope = match one(query, "scope")?.as_deref() {
        None | Some("" | "snsapi_base") => OAuthScope::Base,
        Some("snsapi_userinfo") => OAuthScope::UserInfo,
        Some(_) => return Err(Problem::Scope),
    };
    Ok(Ask {
        session: browser::session_with(auth, headers, &app),
        app,
        return_to,
        scope,
    })
}

fn official_account(auth: &Auth, app: &str) -> Result<Arc<App>, Problem> {
    let catalog = auth.catalog.current();
    let app = catalog.app(app).ok_or(Problem::App)?;
    if app.kind != AppKind::OfficialAccount {
        return Err(Problem::App);
    }
    Ok(Arc::clone(app))
}

/// `GET /oauth/{app}/callback?code=…&state=…`: WeChat sends the browser back.
async fn callback(
    State(auth): State<Auth>,
    Path(app): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let callback = match back(&auth, &app, &query, &headers) {
        Ok(callback) => callback,
        Err(problem) => {
            metrics::oauth("", problem.outcome());
            return problem.page(&query, &headers);
        }
    };
    let (app, names) = (Arc::clone(&callback.app), callback.names.clone());
    match auth.oauth.callback(callback).await {
        Ok(returned) => {
            // The same callback is answered again for a while, and until then it needs its cookie.
            let left = Some(oauth::REPEATED);
            let mut cookies = vec![auth.cookies.set(&names.cookie(), names.secret(), left)];
            let session = returned.session.as_ref();
            cookies.extend(session.map(|token| browser::keep(&auth, &app, token)));
            found(&returned.location, cookies)
        }
        Err(error) => Problem::from(error).page(&query, &headers),
    }
}

fn back(auth: &Auth, app: &str, query: &str, headers: &HeaderMap) -> Result<Callback, Problem> {
    let app = official_account(auth, app)?;
    let state = one(query, "state")?.unwrap_or_default();
    let code = one(query, "code")?.filter(|code| !code.is_empty() && code != DECLINED);
    if code.as_ref().is_some_and(|code| code.len() > CODE_MAX) {
        return Err(Problem::State);
    }
    let names = Names::cookie_of(&state)
        .and_then(|cookie| auth.cookies.get(headers, &cookie))
        .and_then(|secret| Names::parse(&state, secret));
    Ok(Callback {
        names: names.ok_or(Problem::State)?,
        code,
        client: super::text(headers, header::USER_AGENT).to_owned(),
        replaced: browser::session_with(auth, headers, &app),
        app,
    })
}

/// The parameter of this name; what comes twice is read by everybody otherwise.
fn one(query: &str, name: &str) -> Result<Option<String>, Problem> {
    let mut found = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    match (found.next(), found.next()) {
        (found, None) => Ok(found.map(|(_, value)| value.into_owned())),
        _ => Err(Problem::Twice),
    }
}

/// As WeChat's own pages do it.
fn found(location: &str, cookies: impl IntoIterator<Item = HeaderValue>) -> Response {
    redirect(StatusCode::FOUND, location, cookies)
}

/// Why the browser is sent nowhere.
#[derive(Debug, Clone, thiserror::Error)]
enum Problem {
    #[error("no official account of this name is declared in wxhub.toml")]
    App,
    #[error("return_to {0}")]
    ReturnTo(#[from] Refused),
    #[error("scope must be snsapi_base or snsapi_userinfo")]
    Scope,
    #[error("a parameter comes twice")]
    Twice,
    #[error(
        "state: nothing is under way by it in this browser; it is used, or ten minutes old, or another browser's"
    )]
    State,
    #[error("the same callback is being answered: try again")]
    Busy,
    #[error("WXHUB_PUBLIC_URL is not set")]
    PublicUrl,
    #[error("a store does not answer: try again")]
    Away,
    #[error("internal error: see the service's log")]
    Internal,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::OAuthStateInvalid => Self::State,
            Error::LoginInProgress => Self::Busy,
            Error::PublicUrlMissing => Self::PublicUrl,
            Error::Redis(_) | Error::Database(_) | Error::DatabaseTimeout(_) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a store failed a sign-in");
                Self::Away
            }
            _ => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a sign-in failed");
                Self::Internal
            }
        }
    }
}

impl Problem {
    fn outcome(&self) -> &'static str {
        match self {
            Self::App | Self::ReturnTo(_) | Self::Scope | Self::Twice => "invalid_request",
            Self::State => "state_invalid",
            Self::Busy => "busy",
            Self::PublicUrl | Self::Internal => "server_error",
            Self::Away => "temporarily_unavailable",
        }
    }

    /// Tells the user; the detail is for whoever made the link.
    fn page(&self, query: &str, headers: &HeaderMap) -> Response {
        let asked = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "lang");
        let language = Language::of(asked.as_ref().map(|(_, lang)| lang.as_ref()), headers);
        let (status, zh, en) = match self {
            Self::App => (
                StatusCode::NOT_FOUND,
                ["无法登录", "链接有误，请联系页面的提供者。"],
                [
                    "Cannot sign in",
                    "The link is wrong. Please tell whoever provides the page.",
                ],
            ),
            Self::ReturnTo(_) | Self::Scope | Self::Twice => (
                StatusCode::BAD_REQUEST,
                ["无法登录", "链接有误，请联系页面的提供者。"],
                [
                    "Cannot sign in",
                    "The link is wrong. Please tell whoever provides the page.",
                ],
            ),
            Self::State => (
                StatusCode::BAD_REQUEST,
                ["登录已失效", "请回到原来的页面，重新登录。"],
                [
                    "This sign-in is over",
                    "Please go back to the page and sign in again.",
                ],
            ),
            Self::Busy | Self::Away => (
                StatusCode::SERVICE_UNAVAILABLE,
                ["请稍候", "暂时无法登录，请稍后刷新本页。"],
                [
                    "One moment",
                    "Signing in does not work right now. Please reload this page in a moment.",
                ],
            ),
            Self::PublicUrl | Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                ["无法登录", "服务出现故障，请稍后再试。"],
                [
                    "Cannot sign in",
                    "Something is wrong on our side. Please try again later.",
                ],
            ),
        };
        let text = match language {
            Language::Chinese => zh,
            Language::English => en,
        };
        problem::page(status, language, text, &self.to_string())
    }
}
