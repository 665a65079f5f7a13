//! The bind pages: the one with the QR code, and those on the phone that scans it.

use std::{convert::Infallible, mem, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{Stream, stream};
use rand::Rng as _;
use serde_json::json;
use service_kit::{App, AppKind, http};
use tracing::warn;
use wechat::AppId;

use super::{
    NO_STORE,
    account::signed_in,
    browser,
    form::{Params, see_other},
    problem,
};
use crate::{
    Auth,
    account::{self, AccountName, SignedIn},
    binding::{self, Binding, Failure, Outcome, Progress, link_url, qr_code},
    error::Error,
    followers::Place,
    page::{self, Language},
};

/// The cookie of a phone that is under way to be bound.
const PHONE: &str = "wxhub_phone";
/// As long as a phone may take to be bound and undo it.
const PHONE_LIFE: Duration = binding::STATE_LIFE.saturating_add(binding::UNDO);
/// Digits of the cookie's value.
const PHONE_LEN: usize = 64;
/// Bytes of the longest code that WeChat is asked about.
const CODE_MAX: usize = 512;
/// What WeChat's apps send in place of a code when the user declines.
const DECLINED: &str = "authdeny";
/// A link that is shown has this long to go at least.
const LEFT: Duration = Duration::from_secs(60);
/// How often a link is looked at for whoever follows it …
const POLL: Duration = Duration::from_secs(1);
/// … and every so many looks the account, too, which may be bound by another link, or signed in no more.
const POLLS_PER_ACCOUNT: u32 = 5;
/// A comment keeps proxies from closing a connection on which nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/bind", get(bind_page))
        .route("/bind_qcode", get(link))
        .route("/bind/qr.svg", get(qr))
        .route("/bind/status", get(status))
        .route("/bind/follow.js", get(script))
        .route("/bind/unbind", post(unbind))
        .route("/bind/scan", get(scan))
        .route("/callback", get(callback))
        .route("/bind/undo", post(undo))
}

/// Who asks, and about which official account.
struct Asked<'h> {
    ticket: &'h str,
    signed_in: SignedIn,
    app: Arc<App>,
}

impl Asked<'_> {
    fn account(&self) -> &AccountName {
        &self.signed_in.account
    }

    fn app_id(&self) -> &AppId {
        &self.app.app_id
    }
}

async fn asked<'h>(
    auth: &Auth,
    headers: &'h HeaderMap,
    params: &Params,
) -> Result<Asked<'h>, Error> {
    let (ticket, signed_in) = signed_in(auth, headers).await?;
    let app = official_account(auth, params.get("app"))?;
    Ok(Asked {
        ticket,
        signed_in,
        app,
    })
}

/// The official account of this app_id or name, by default the first that has `oauth`.
fn official_account(auth: &Auth, id_or_name: Option<&str>) -> Result<Arc<App>, Error> {
    let catalog = auth.catalog.current();
    let mut apps = catalog.apps().iter();
    let app = match id_or_name {
        Some(id_or_name) => catalog.app(id_or_name),
        None => apps.find(|app| !app.oauth_return_hosts.is_empty()),
    };
    app.filter(|app| app.kind == AppKind::OfficialAccount)
        .cloned()
        .ok_or(Error::AppUnknown)
}

#[derive(Template)]
#[template(path = "bind.html")]
struct BindPage<'a> {
    language: Language,
    account: &'a str,
    app: &'a str,
    lang: &'a str,
    here: String,
    qr: String,
    link: String,
    scanned: bool,
}

#[derive(Template)]
#[template(path = "bound.html")]
struct BoundPage<'a> {
    language: Language,
    account: &'a str,
    nickname: &'a str,
    time: String,
    app: &'a str,
    lang: &'a str,
}

/// `GET /bind`: the QR code, or who is bound. Whoever is not signed in goes to `/login`.
async fn bind_page(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let params = Params::of_query(query.as_deref());
    let language = params.language(&headers);
    let page = async {
        let asked = asked(&auth, &headers, &params).await?;
        let (account, app) = (
            asked.account().as_str(),
            params.get("app").unwrap_or_default(),
        );
        let lang = params.get("lang").unwrap_or_default();
        if let Some(binding) = auth.bindings.get(asked.app_id(), asked.account()).await? {
            let time = DateTime::<Utc>::from(binding.create_time);
            let page = BoundPage {
                language,
                account,
                nickname: &binding.nickname,
                time: time.to_rfc3339_opts(SecondsFormat::Secs, true),
                app,
                lang,
            };
            return Ok(page::respond(StatusCode::OK, &page));
        }
        let (link, progress) = current_link(&auth, &asked).await?;
        let page = BindPage {
            language,
            account,
            app,
            lang,
            here: params.page("/bind"),
            qr: params.page("/bind/qr.svg"),
            link: link_url(auth.public_url()?, &link).into(),
            scanned: progress == Progress::Scanned,
        };
        Ok(page::respond(StatusCode::OK, &page))
    };
    match page.await {
        Ok(page) => page,
        Err(Error::Account(account::Refusal::SignedOut)) => see_other(&params.page("/login"), []),
        Err(error) => problem::respond(&auth, &error, language),
    }
}

/// The link that the browser shows for the app, or a new one in its place when it is used or about to end.
async fn current_link(auth: &Auth, asked: &Asked<'_>) -> Result<(String, Progress), Error> {
    if let Some(link) = asked.signed_in.link(asked.app_id()) {
        let (progress, end) = auth.binds.progress(link).await?;
        let lives = end > auth.clock.now() + LEFT;
        if lives && matches!(progress, Progress::Waiting | Progress::Scanned) {
            return Ok((link.to_owned(), progress));
        }
    }
    let epoch = asked.signed_in.epoch.clone();
    let offer = auth
        .binds
        .offer(asked.app_id(), asked.account(), Some(epoch))
        .await?;
    let signed_in = asked.signed_in.clone();
    auth.accounts
        .keep_link(asked.ticket, signed_in, asked.app_id(), &offer.ticket)
        .await?;
    Ok((offer.ticket.expose().to_owned(), Progress::Waiting))
}

/// The text of the QR code of an account that is not bound yet.
async fn link_text(
    auth: &Auth,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<url::Url, Error> {
    let params = Params::of_query(query);
    let asked = asked(auth, headers, &params).await?;
    let public_url = auth.public_url()?;
    let bound = auth.bindings.get(asked.app_id(), asked.account()).await?;
    if bound.is_some() {
        return Err(binding::Refusal::AccountBound.into());
    }
    let (link, _) = current_link(auth, &asked).await?;
    Ok(link_url(public_url, &link))
}

/// `GET /bind_qcode`: `{"code":1000,"data":<the QR code's text>}`.
async fn link(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, http::Error> {
    let link = link_text(&auth, &headers, query.as_deref()).await;
    let link = link.map_err(|error| auth.status(&error))?;
    let body = Json(json!({ "code": 1000, "data": link.as_str() }));
    Ok(([(header::CACHE_CONTROL, NO_STORE)], body).into_response())
}

/// `GET /bind/qr.svg`: the QR code.
async fn qr(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, http::Error> {
    let link = link_text(&auth, &headers, query.as_deref()).await;
    let svg = link.and_then(|link| qr_code(&link));
    let svg = svg.map_err(|error| auth.status(&error))?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("image/svg+xml"),
        ),
        (header::CACHE_CONTROL, NO_STORE),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    Ok((headers, svg).into_response())
}

/// `GET /bind/follow.js`: the bind page's script.
async fn script() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=3600"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, include_str!("../../templates/follow.js"))
}

/// `GET /bind/status`: server-sent events that tell how far the browser's link has come, until it is used or over.
async fn status(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, http::Error> {
    let params = Params::of_query(query.as_deref());
    let follow = async {
        let asked = asked(&auth, &headers, &params).await?;
        let place = auth.followers.admit(asked.account());
        Ok(Follow {
            auth: auth.clone(),
            app_id: asked.app_id().clone(),
            ticket: asked.ticket.to_owned(),
            account: asked.account().clone(),
            link: asked.signed_in.link(asked.app_id()).map(str::to_owned),
            told: None,
            looks: 0,
            warned: false,
            _place: place.ok_or(account::Refusal::Crowded)?,
        })
    };
    let follow: Result<_, Error> = follow.await;
    let follow = follow.map_err(|error| auth.status(&error))?;
    let events = Sse::new(follow.events()).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    // nginx would keep the events until there are many.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    let headers = [(header::CACHE_CONTROL, NO_STORE), unbuffered];
    Ok((headers, events).into_response())
}

/// Somebody who follows a link.
struct Follow {
    auth: Auth,
    app_id: AppId,
    /// Of the account that is signed in.
    ticket: String,
    account: AccountName,
    link: Option<String>,
    told: Option<Progress>,
    looks: u32,
    warned: bool,
    _place: Place,
}

impl Follow {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut follow| async {
            if matches!(
                follow.told,
                Some(Progress::Bound { .. } | Progress::Expired)
            ) {
                return None;
            }
            let progress = follow.next().await;
            let event = Event::default().event("status").data(tell(&progress));
            follow.told = Some(progress);
            Some((Ok(event), follow))
        })
    }

    /// What is to be told next.
    async fn next(&mut self) -> Progress {
        loop {
            if self.looks > 0 {
                tokio::time::sleep(POLL).await;
            }
            let looked = self.look().await;
            self.looks += 1;
            match looked {
                Ok(progress) if self.told.as_ref() != Some(&progress) => return progress,
                Ok(_) => {}
                // The next look may succeed; a link that cannot be looked at any more is over.
                Err(error) if Duration::from_secs(self.looks.into()) < binding::LINK_LIFE => {
                    if !mem::replace(&mut self.warned, true) {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "a bind link cannot be followed");
                    }
                }
                Err(_) => return Progress::Expired,
            }
        }
    }

    async fn look(&self) -> Result<Progress, Error> {
        if self.looks.is_multiple_of(POLLS_PER_ACCOUNT) {
            let signed_in = self.auth.accounts.signed_in(&self.ticket).await?;
            if signed_in.is_none() {
                return Ok(Progress::Expired);
            }
            let binding = self.auth.bindings.get(&self.app_id, &self.account);
            if let Some(Binding { nickname, .. }) = binding.await? {
                return Ok(Progress::Bound { nickname });
            }
        }
        match &self.link {
            Some(link) => Ok(self.auth.binds.progress(link).await?.0),
            None => Ok(Progress::Expired),
        }
    }
}

fn tell(progress: &Progress) -> String {
    let data = match progress {
        Progress::Waiting => json!({ "status": "waiting" }),
        Progress::Scanned => json!({ "status": "scanned" }),
        Progress::Bound { nickname } => json!({ "status": "bound", "nickname": nickname }),
        Progress::Expired => json!({ "status": "expired" }),
    };
    data.to_string()
}

/// `POST /bind/unbind`: unbinds the account that is signed in, and goes back to `/bind`.
async fn unbind(State(auth): State<Auth>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::of_form(&body);
    let unbind = async {
        browser::same_site(&auth, &headers)?;
        let asked = asked(&auth, &headers, &params).await?;
        auth.bindings.unbind(asked.app_id(), asked.account()).await
    };
    match unbind.await {
        Ok(_) => see_other(&params.page("/bind"), []),
        Err(Error::Account(account::Refusal::SignedOut)) => see_other(&params.page("/login"), []),
        Err(error) => problem::respond(&auth, &error, params.language(&headers)),
    }
}

/// `GET /bind/scan?ticket=…`: a phone opened the link, and goes on to WeChat.
async fn scan(State(auth): State<Auth>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let params = Params::of_query(query.as_deref());
    let language = params.language(&headers);
    let phone = phone(&auth, &headers).map_or_else(random, str::to_owned);
    let open = async {
        let mut redirect_uri = auth.public_url()?.clone();
        redirect_uri.set_path("/callback");
        let link = params.get("ticket").unwrap_or_default();
        auth.binds.open(link, &phone, &redirect_uri).await
    };
    match open.await {
        Ok(Some(wechat)) => {
            let cookie = auth.cookies.set(PHONE, &phone, Some(PHONE_LIFE));
            see_other(wechat.as_str(), [cookie])
        }
        Ok(None) => phone_page(language, &params, &Failure::Expired.into()),
        Err(error) => problem::respond(&auth, &error, language),
    }
}

/// `GET /callback?code=…&state=…`: a phone comes back from WeChat.
async fn callback(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let params = Params::of_query(query.as_deref());
    let language = params.language(&headers);
    let code = params.get("code").filter(|code| *code != DECLINED);
    let state = params.get("state").unwrap_or_default();
    let known = phone(&auth, &headers).filter(|_| code.is_none_or(|code| code.len() <= CODE_MAX));
    let Some(phone) = known else {
        return phone_page(language, &params, &Failure::Expired.into());
    };
    let code = code.map(str::to_owned);
    match auth.binds.finish(state, phone, code).await {
        Ok(outcome) => phone_page(language, &params, &outcome),
        Err(error) => problem::respond(&auth, &error, language),
    }
}

/// `POST /bind/undo`: the phone that was bound takes it back.
async fn undo(State(auth): State<Auth>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::of_form(&body);
    let language = params.language(&headers);
    let undo = async {
        browser::same_site(&auth, &headers)?;
        let Some(phone) = phone(&auth, &headers) else {
            return Ok(false);
        };
        let state = params.get("state").unwrap_or_default();
        auth.binds.undo(state, phone).await
    };
    match undo.await {
        Ok(true) => phone_page(language, &params, &Outcome::Undone),
        Ok(false) => phone_page(language, &params, &Failure::Expired.into()),
        Err(error) => problem::respond(&auth, &error, language),
    }
}

/// The phone's cookie, if it has one of ours.
fn phone<'h>(auth: &Auth, headers: &'h HeaderMap) -> Option<&'h str> {
    let phone = auth.cookies.get(headers, PHONE)?;
    let is_ours = phone.len() == PHONE_LEN && phone.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then_some(phone)
}

fn random() -> String {
    let mut bytes = [0u8; PHONE_LEN / 2];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

#[derive(Template)]
#[template(path = "phone.html")]
struct PhonePage<'a> {
    language: Language,
    heading: &'static str,
    advice: &'static str,
    /// The account that the phone's user was bound to, and may be unbound from.
    account: Option<&'a str>,
    /// Of the user; empty where WeChat gave none.
    nickname: &'a str,
    state: &'a str,
    lang: &'a str,
}

/// What a phone is told.
fn phone_page(language: Language, params: &Params, outcome: &Outcome) -> Response {
    let (status, zh, en) = match outcome {
        Outcome::Bound { .. } => (
            StatusCode::OK,
            ["绑定成功", "您的微信已绑定到这个账号。"],
            ["Bound", "Your WeChat is bound to this account."],
        ),
        Outcome::Undone => (
            StatusCode::OK,
            ["已撤销", "您的微信没有绑定到任何账号。"],
            [
                "Undone",
                "Your WeChat is not bound to the account any more.",
            ],
        ),
        Outcome::Declined => (
            StatusCode::OK,
            ["未绑定", "您没有同意授权。二维码仍然有效，可以重新扫描。"],
            [
                "Not bound",
                "You did not agree. The code is still good: scan it again to bind.",
            ],
        ),
        Outcome::Failed(failure) => why(*failure),
    };
    let [heading, advice] = match language {
        Language::Chinese => zh,
        Language::English => en,
    };
    let (account, nickname) = match outcome {
        Outcome::Bound {
            account, nickname, ..
        } => (Some(account.as_str()), nickname.as_str()),
        Outcome::Undone | Outcome::Declined | Outcome::Failed(_) => (None, ""),
    };
    let page = PhonePage {
        language,
        heading,
        advice,
        account,
        nickname,
        state: params.get("state").unwrap_or_default(),
        lang: params.get("lang").unwrap_or_default(),
    };
    page::respond(status, &page)
}

/// Heading and advice, in Chinese and in English.
fn why(failure: Failure) -> (StatusCode, [&'static str; 2], [&'static str; 2]) {
    match failure {
        Failure::Expired => (
            StatusCode::GONE,
            [
                "二维码已失效",
                "二维码已过期、已使用，或不是在这台手机上打开的。请刷新电脑上的页面后重新扫描。",
            ],
            [
                "This code is over",
                "It has expired, was used, or was opened on another phone. Reload the page with the code and scan again.",
            ],
        ),
        Failure::Outrun => (
            StatusCode::CONFLICT,
            ["已被其他手机绑定", "另一台手机先使用了这个二维码。"],
            [
                "Another phone was faster",
                "Another phone used this code first.",
            ],
        ),
        Failure::AccountBound => (
            StatusCode::CONFLICT,
            [
                "账号已绑定",
                "这个账号已经绑定了微信。请先解除绑定，再重新扫描。",
            ],
            [
                "Already bound",
                "The account has a WeChat user already. Unbind it first, then scan again.",
            ],
        ),
        Failure::UserBound => (
            StatusCode::CONFLICT,
            [
                "微信已绑定",
                "您的微信已经绑定了另一个账号。请先在那个账号里解除绑定。",
            ],
            [
                "Already bound",
                "Your WeChat is bound to another account. Unbind it there first.",
            ],
        ),
        Failure::Snapshot => (
            StatusCode::FORBIDDEN,
            [
                "请使用完整服务",
                "当前是快照页，无法确认您的身份。请点击右下角“使用完整服务”，再重新扫描二维码。",
            ],
            [
                "Use the full service",
                "This is a snapshot page, which does not say who you are. Choose “Use full service” and scan the code again.",
            ],
        ),
        Failure::Blocked => (
            StatusCode::FORBIDDEN,
            ["无法绑定", "微信拒绝了这个用户。"],
            ["Cannot bind", "WeChat refuses this user."],
        ),
        Failure::WeChat => (
            StatusCode::BAD_GATEWAY,
            ["请稍候", "微信暂时没有响应，请稍后重新扫描二维码。"],
            [
                "One moment",
                "WeChat does not answer right now. Scan the code again in a moment.",
            ],
        ),
        Failure::UnderWay => (
            StatusCode::SERVICE_UNAVAILABLE,
            ["请稍候", "正在绑定，请稍后刷新本页。"],
            [
                "One moment",
                "You are being bound. Reload this page in a moment.",
            ],
        ),
        Failure::Away => (
            StatusCode::SERVICE_UNAVAILABLE,
            ["未绑定", "服务暂时不可用，请稍后重新扫描二维码。"],
            [
                "Not bound",
                "The service is not available right now. Scan the code again in a moment.",
            ],
        ),
    }
}
