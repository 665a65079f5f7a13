//! The authorize page, as the phone of whoever opens it shows it.

use axum::{
    Form, Router,
    extract::{self, RawQuery},
    http::{
        HeaderMap, StatusCode,
        header::{
            ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE,
            LOCATION, SET_COOKIE,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use quick_xml::escape::escape;
use serde::Deserialize;
use url::Url;

use super::{AUTHORIZE, Link, LinkError, Scope, consent};
use crate::{account::Account, calls::Call, persona, state::State};

/// Names the person whose phone this browser plays, by unionid; the phone's page sets it too.
const USER_COOKIE: &str = "wechat_sandbox_user";
/// People to choose from, the latest.
const CHOICE: usize = 20;
/// Without form-action: browsers hold it against the redirect that answers the form.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
    base-uri 'none'";

pub(crate) fn routes() -> Router<State> {
    Router::new().route(AUTHORIZE, get(open).post(decide))
}

#[derive(Debug, Clone, Copy)]
enum Language {
    Chinese,
    English,
}

impl Language {
    fn of(headers: &HeaderMap) -> Self {
        let wanted = headers
            .get(ACCEPT_LANGUAGE)
            .and_then(|value| value.to_str().ok());
        if wanted.is_some_and(|wanted| wanted.trim_start().to_ascii_lowercase().starts_with("zh")) {
            Self::Chinese
        } else {
            Self::English
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::Chinese => "zh-CN",
            Self::English => "en",
        }
    }

    const fn pick(self, chinese: &'static str, english: &'static str) -> &'static str {
        match self {
            Self::Chinese => chinese,
            Self::English => english,
        }
    }
}

/// Somebody opens a link.
async fn open(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let language = Language::of(&headers);
    let link = match checked(&state, query.as_deref()) {
        Ok(link) => link,
        Err(error) => return error_page(&state, query.as_deref(), error, language),
    };
    let now = state.0.clock.now();
    let mut world = state.world();
    let Some(account) = world.accounts.get_mut(&link.app_id) else {
        drop(world);
        return error_page(&state, query.as_deref(), LinkError::AppId, language);
    };
    let user = match person(&headers) {
        Some(union_id) => account.open_id_of(union_id),
        None => account.default_open_id(),
    };
    let consents = account.user(&user).is_some_and(|user| user.consents);
    let silent = link.scope == Scope::Base || (consents && !link.force_popup);
    let snapshot = link.force_snapshot && !silent;
    let response = if silent || snapshot {
        consent(account, &link, &user, snapshot, now)
            .map(|(_, url)| redirect(&url, StatusCode::FOUND))
    } else {
        Some(question(account, &user, language))
    };
    drop(world);
    let outcome = if silent || snapshot { "ok" } else { "asked" };
    record(&state, Some(link.app_id), outcome.to_owned());
    response.unwrap_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

#[derive(Deserialize)]
struct Decision {
    user: String,
    decision: Answer,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Allow,
    Refuse,
}

/// Somebody pressed one of the page's buttons.
async fn decide(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    Form(Decision { user, decision }): Form<Decision>,
) -> Response {
    let language = Language::of(&headers);
    let link = match checked(&state, query.as_deref()) {
        Ok(link) => link,
        Err(error) => return error_page(&state, query.as_deref(), error, language),
    };
    let now = state.0.clock.now();
    let mut world = state.world();
    let (url, outcome) = match decision {
        Answer::Refuse => (world.refuse(&link), "refused"),
        Answer::Allow => {
            let allowed = world
                .accounts
                .get_mut(&link.app_id)
                .filter(|account| account.user(&user).is_some())
                .and_then(|account| consent(account, &link, &user, false, now));
            let Some((_, url)) = allowed else {
                return StatusCode::BAD_REQUEST.into_response();
            };
            (Some(url), "ok")
        }
    };
    let union_id = world
        .accounts
        .get(&link.app_id)
        .and_then(|account| account.user(&user))
        .map(|user| user.union_id.clone());
    drop(world);
    record(&state, Some(link.app_id), outcome.to_owned());
    let Some(url) = url else {
        let text = language.pick(
            "页面已关闭：真实的微信会回到上一页。",
            "This page is closed: the real WeChat goes back to the one before.",
        );
        return page(text, &format!("<p>{text}</p>"), language);
    };
    let mut response = redirect(&url, StatusCode::SEE_OTHER);
    let cookie = union_id.map(|id| format!("{USER_COOKIE}={id}; Path=/; SameSite=Lax"));
    if let Some(cookie) = cookie.and_then(|cookie| cookie.parse().ok()) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

fn checked(state: &State, query: Option<&str>) -> Result<Link, LinkError> {
    let link = Link::parse(query.unwrap_or_default())?;
    link.check(&state.world().accounts)?;
    Ok(link)
}

/// The person that the browser plays.
fn person(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == USER_COOKIE)
        .map(|(_, union_id)| union_id)
        .filter(|union_id| crate::account::is_open_id(union_id))
}

fn record(state: &State, app_id: Option<String>, outcome: String) {
    state.world().calls.record(Call {
        time: state.0.clock.now().as_secs(),
        app_id,
        endpoint: AUTHORIZE,
        outcome,
        rid: None,
    });
}

fn redirect(url: &Url, status: StatusCode) -> Response {
    (
        status,
        [(LOCATION, url.as_str()), (CACHE_CONTROL, "no-store")],
    )
        .into_response()
}

/// What `snsapi_userinfo` asks, and who answers.
fn question(account: &Account, user: &str, language: Language) -> Response {
    let mut people: Vec<_> = account.users().collect();
    let latest = people.len().saturating_sub(CHOICE);
    people.drain(..latest);
    if let Some(chosen) = account.user(user)
        && !people.iter().any(|(open_id, _)| *open_id == user)
    {
        people.push((user, chosen));
    }
    let options: String = people
        .into_iter()
        .map(|(open_id, person)| {
            let selected = if open_id == user { " selected" } else { "" };
            let short: String = open_id.chars().take(6).collect();
            format!(
                "<option value=\"{open_id}\"{selected}>{} · {short}…</option>",
                escape(persona::nickname(&person.union_id))
            )
        })
        .collect();
    let body = format!(
        r#"<p class="account">{account}</p>
<h1>{asks}</h1>
<p class="asked">{what}</p>
<form method="post">
<label>{as_user}<select name="user" id="user">{options}</select></label>
<button class="main" name="decision" value="allow" id="allow">{allow}</button>
<button name="decision" value="refuse" id="refuse">{refuse}</button>
</form>"#,
        account = escape(&account.config.original_id),
        asks = language.pick("申请获取以下信息", "This account asks for"),
        what = language.pick("你的昵称和头像", "your nickname and picture"),
        as_user = language.pick("微信用户", "WeChat user"),
        allow = language.pick("允许", "Allow"),
        refuse = language.pick("拒绝", "Refuse"),
    );
    page(
        language.pick("微信登录", "Log in with WeChat"),
        &body,
        language,
    )
}

fn error_page(
    state: &State,
    query: Option<&str>,
    error: LinkError,
    language: Language,
) -> Response {
    let app_id = Link::parse(query.unwrap_or_default())
        .ok()
        .map(|link| link.app_id)
        .filter(|app_id| state.world().accounts.contains_key(app_id));
    let code = error.code().map(|code| code.to_string());
    record(
        state,
        app_id,
        code.clone().unwrap_or_else(|| "refused link".to_owned()),
    );
    let text = language.pick(error.chinese(), error.english());
    let code = code.map_or_else(String::new, |code| {
        format!(
            "<p class=\"asked\">{} {code}</p>",
            language.pick("错误码", "Error")
        )
    });
    let body = format!("<h1>Oops! Something went wrong:(</h1><p>{text}</p>{code}");
    page(text, &body, language)
}

/// As with WeChat, errors too are HTTP 200.
fn page(title: &str, body: &str, language: Language) -> Response {
    let fragment = language.pick(
        "该链接无法访问：缺少 #wechat_redirect",
        "This link cannot be opened: it lacks #wechat_redirect",
    );
    let html = include_str!("page.html")
        .replace("{{language}}", language.tag())
        .replace("{{title}}", title)
        .replace("{{fragment}}", fragment)
        .replace("{{body}}", body);
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (CACHE_CONTROL, "no-store"),
        ],
        html,
    )
        .into_response()
}
