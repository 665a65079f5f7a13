//! H5 pages sign their users in with WeChat.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use auth_service::{App, BuildError};
use proto::auth::v1::{GetUserRequest, RevokeUserSessionsRequest};
use reqwest::{
    Method, Response, Url,
    header::{ACCEPT_LANGUAGE, HOST},
};
use sandbox::Authorize;
use serde_json::{Value, json};
use service_kit::{run::Listeners, settings::DatabaseUrl};
use test_support::Redis;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    browser::{Browser, location, set_cookies},
    world::{self, KEY, NEWS, NEWS_KEY, Setup, World},
};

const PAGE: &str = "https://h5.example.com/orders?id=7&tag=a%26b#/detail?x=1";
const EXCHANGE: &str = "/sns/oauth2/access_token";
const USER_INFO: &str = "/sns/userinfo";
const BYPASSES: &str = include_str!("../data/redirect_bypasses.txt");

with_either_store!(
    a_page_signs_its_user_in_by_url_alone,
    who_is_signed_in_comes_straight_back,
    a_nickname_is_asked_for_once,
    the_same_callback_from_a_hundred_requests_makes_one_session,
    one_code_with_a_hundred_states_makes_one_session,
    one_state_with_a_hundred_codes_makes_one_session,
    a_callback_in_another_browser_is_refused,
    several_tabs_sign_in_at_once,
    a_sign_in_gives_a_fresh_token_and_ends_the_session_before,
    a_ticket_is_exchanged_once_for_its_own_host_by_callers_of_its_app,
    one_ticket_from_fifty_requests_makes_one_session,
);

/// `/start` for a page.
fn start(page: &str, scope: &str) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("return_to", page)
        .append_pair("scope", scope)
        .finish();
    format!("/oauth/news/start?{query}")
}

/// A browser opens `/start`, and is sent to WeChat.
async fn begin(browser: &Browser, page: &str, scope: &str) -> Url {
    let url = location(&browser.open(&start(page, scope)).await);
    assert_eq!(url.path(), "/connect/oauth2/authorize");
    url
}

/// What WeChat does with the link: where it sends the browser.
fn authorize(world: &World, url: &Url, change: impl FnOnce(&mut Authorize)) -> String {
    let mut authorize = Authorize {
        url: url.to_string(),
        ..Authorize::default()
    };
    change(&mut authorize);
    let authorized = world.wechat.authorize(&authorize).unwrap();
    authorized.callback_url.unwrap()
}

/// From the page to WeChat, and back.
async fn round_trip(
    world: &World,
    browser: &Browser,
    scope: &str,
    change: impl FnOnce(&mut Authorize),
) -> Url {
    let callback = authorize(world, &begin(browser, PAGE, scope).await, change);
    location(&browser.open(&callback).await)
}

/// What nobody else may learn of a sign-in: state, cookie, code, ticket, session token and openid.
pub(crate) async fn secrets_of_a_sign_in(world: &World) -> Vec<String> {
    let browser = world.browser();
    let wechat = begin(&browser, PAGE, "snsapi_userinfo").await;
    let (_, cookie) = browser.cookies().pop_first().unwrap();
    let callback = authorize(world, &wechat, |_| {});
    let back = location(&browser.open(&callback).await);
    let code = parameter(&callback.parse().unwrap(), "code");
    let open_id = me(&browser).await["open_id"].as_str().unwrap().to_owned();
    vec![
        parameter(&wechat, "state").unwrap(),
        cookie,
        code.unwrap(),
        ticket(&back),
        browser.cookies()["wxhub_session_news"].clone(),
        open_id,
    ]
}

/// Signs a browser in to `news`.
pub(crate) async fn sign_in(world: &World, browser: &Browser) -> Url {
    let url = round_trip(world, browser, "snsapi_base", |_| {}).await;
    assert!(parameter(&url, "wxhub_ticket").is_some(), "{url}");
    url
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    let mut found = url.query_pairs().filter(|(key, _)| key == name);
    let (value, none) = (found.next(), found.next());
    assert_eq!(none, None, "{name} comes twice");
    value.map(|(_, value)| value.into_owned())
}

fn ticket(url: &Url) -> String {
    parameter(url, "wxhub_ticket").unwrap()
}

async fn me(browser: &Browser) -> Value {
    let answer = browser.open("/me").await;
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

async fn a_page_signs_its_user_in_by_url_alone(world: World) {
    let browser = world.browser();
    let answer = browser.open(&start(PAGE, "snsapi_base")).await;
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
    let (name, _, attributes) = set_cookies(&answer).pop().unwrap();
    assert!(name.starts_with("wxhub_oauth_"));
    assert_eq!(attributes, "HttpOnly; SameSite=Lax; Path=/; Max-Age=600");
    let wechat = location(&answer);
    assert_eq!(parameter(&wechat, "appid").as_deref(), Some(NEWS));
    assert_eq!(parameter(&wechat, "state").unwrap().len(), 64);
    assert_eq!(wechat.fragment(), Some("wechat_redirect"));

    let callback = authorize(&world, &wechat, |_| {});
    let answer = browser.open(&callback).await;
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let session = set_cookies(&answer)
        .into_iter()
        .find(|(name, ..)| name == "wxhub_session_news");
    let (_, token, attributes) = session.unwrap();
    assert_eq!(token.len(), 43);
    assert_eq!(
        attributes,
        "HttpOnly; SameSite=Lax; Path=/; Max-Age=2592000"
    );

    let back = location(&answer);
    let ticket = ticket(&back);
    let expected =
        format!("https://h5.example.com/orders?id=7&tag=a%26b&wxhub_ticket={ticket}#/detail?x=1");
    assert_eq!(back.as_str(), expected);

    let known = me(&browser).await;
    assert_eq!(
        (&known["app_id"], &known["nickname"]),
        (&json!(NEWS), &json!(""))
    );
    let session = world
        .caller(NEWS_KEY)
        .exchange(&ticket, "h5.example.com")
        .await
        .unwrap();
    // The team's own session, not the browser's.
    assert_ne!(session.session_token, token);
    assert_eq!(known["user_id"], session.user.unwrap().user_id);
    let mut team = world.caller(NEWS_KEY);
    assert!(team.verify(&session.session_token).await.is_ok());
    assert!(team.verify(&token).await.is_ok());
}

async fn who_is_signed_in_comes_straight_back(world: World) {
    let browser = world.browser();
    let first = sign_in(&world, &browser).await;
    let token = browser.cookies()["wxhub_session_news"].clone();
    let again = location(&browser.open(&start(PAGE, "snsapi_base")).await);
    assert_ne!(ticket(&first), ticket(&again));
    assert_eq!(again.host_str(), Some("h5.example.com"));
    assert_eq!(browser.cookies()["wxhub_session_news"], token);
    let mut dev = world.caller(KEY);
    for url in [first, again] {
        dev.exchange(&ticket(&url), "h5.example.com").await.unwrap();
    }
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);

    // Not when the session is over, nor with another app's.
    dev.revoke(&token).await.unwrap();
    begin(&browser, PAGE, "snsapi_base").await;
    let shop = world.login(&world.js_code(None)).await;
    browser.plant("wxhub_session_news", &shop);
    begin(&browser, PAGE, "snsapi_base").await;
}

async fn a_nickname_is_asked_for_once(world: World) {
    let browser = world.browser();
    sign_in(&world, &browser).await;
    assert_eq!(me(&browser).await["nickname"], "");
    assert_eq!(me(&browser).await.get("union_id"), None);
    let url = round_trip(&world, &browser, "snsapi_userinfo", |_| {}).await;
    let known = me(&browser).await;
    assert_ne!(known["nickname"], "");
    assert!(known["union_id"].is_string());
    let user = world
        .caller(KEY)
        .exchange(&ticket(&url), "h5.example.com")
        .await
        .unwrap()
        .user
        .unwrap();
    assert_eq!(
        (json!(user.nickname), json!(user.user_id)),
        (known["nickname"].clone(), known["user_id"].clone())
    );
    for scope in ["snsapi_userinfo", "snsapi_base"] {
        let back = location(&browser.open(&start(PAGE, scope)).await);
        assert_eq!(back.host_str(), Some("h5.example.com"));
    }
    assert_eq!(world.wechat.calls(None).total(USER_INFO), 1);
}

async fn the_same_callback_from_a_hundred_requests_makes_one_session(world: World) {
    let browser = Arc::new(world.browser());
    let callback = authorize(&world, &begin(&browser, PAGE, "snsapi_base").await, |_| {});
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (browser, callback) = (Arc::clone(&browser), callback.clone());
        requests.spawn(async move { outcome(&browser.open(&callback).await) });
    }
    let outcomes: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
    // The back button, a moment later.
    let again = outcome(&browser.open(&callback).await);
    assert!(outcomes.contains(&again));
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
    me(&browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_finish_what_another_began_once() {
    let mut world = World::with_servers().await;
    let here = world.browser();
    // The same browser, whose requests a load balancer sends elsewhere.
    let there = Browser::new(world.replica().await);
    let callback = authorize(&world, &begin(&here, PAGE, "snsapi_base").await, |_| {});
    for (name, value) in here.cookies() {
        there.plant(&name, &value);
    }
    let (here, there) = (Arc::new(here), Arc::new(there));
    let mut requests = JoinSet::new();
    for number in 0..100 {
        let replica = [&here, &there][number % 2];
        let (browser, callback) = (Arc::clone(replica), callback.clone());
        requests.spawn(async move { outcome(&browser.open(&callback).await) });
    }
    let outcomes: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
    assert_eq!(me(&here).await["user_id"], me(&there).await["user_id"]);
}

/// The session that a callback gave, if it did, and where it led.
fn outcome(answer: &Response) -> (Option<String>, String) {
    let session = set_cookies(answer)
        .into_iter()
        .find(|(name, ..)| name == "wxhub_session_news");
    (session.map(|(_, token, _)| token), location(answer).into())
}

async fn one_code_with_a_hundred_states_makes_one_session(world: World) {
    let mut callbacks = Vec::new();
    let mut code = None;
    for _ in 0..100 {
        // Each its own browser: one that begins so often forgets its first beginnings.
        let browser = Arc::new(world.browser());
        let wechat = begin(&browser, PAGE, "snsapi_base").await;
        let state = parameter(&wechat, "state").unwrap();
        let code = code.get_or_insert_with(|| {
            let callback = authorize(&world, &wechat, |_| {});
            parameter(&callback.parse().unwrap(), "code").unwrap()
        });
        callbacks.push((
            browser,
            format!("/oauth/news/callback?code={code}&state={state}"),
        ));
    }
    let mut requests = JoinSet::new();
    for (browser, callback) in callbacks {
        requests.spawn(async move { outcome(&browser.open(&callback).await) });
    }
    let outcomes = requests.join_all().await;
    let (signed_in, refused): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .partition(|(session, _)| session.is_some());
    assert_eq!((signed_in.len(), refused.len()), (1, 99));
    for (_, back) in refused {
        assert!(back.contains("error=code_invalid"), "{back}");
    }
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
}

async fn one_state_with_a_hundred_codes_makes_one_session(world: World) {
    let browser = Arc::new(world.browser());
    let wechat = begin(&browser, PAGE, "snsapi_base").await;
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (browser, callback) = (Arc::clone(&browser), authorize(&world, &wechat, |_| {}));
        requests.spawn(async move { outcome(&browser.open(&callback).await) });
    }
    let outcomes: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
}

async fn a_callback_in_another_browser_is_refused(world: World) {
    let (browser, other) = (world.browser(), world.browser());
    let callback = authorize(&world, &begin(&browser, PAGE, "snsapi_base").await, |_| {});
    // Neither before nor after, without the cookie, with another's, or with one made up.
    let refused = async || {
        let answer = other.open(&callback).await;
        assert_eq!(answer.status(), 400);
        assert!(answer.headers().get("location").is_none());
        assert!(set_cookies(&answer).is_empty());
    };
    refused().await;
    begin(&other, PAGE, "snsapi_base").await;
    refused().await;
    let (name, _) = browser.cookies().into_iter().next().unwrap();
    for value in ["", "x", &"0".repeat(64)] {
        other.plant(&name, value);
        refused().await;
    }
    let (session, back) = outcome(&browser.open(&callback).await);
    assert!(session.is_some() && back.contains("wxhub_ticket="));
    refused().await;
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 1);
}

/// Browsers carry a fragment over a redirect to a page that has none.
#[tokio::test]
async fn nothing_of_wechats_sticks_to_the_page() {
    let world = World::embedded().await;
    let browser = world.browser();
    let wechat = begin(&browser, "https://h5.example.com/x", "snsapi_base").await;
    assert_eq!(wechat.fragment(), Some("wechat_redirect"));
    let back = location(&browser.open(&authorize(&world, &wechat, |_| {})).await);
    assert_eq!(back.fragment(), Some(""));
}

async fn several_tabs_sign_in_at_once(world: World) {
    let browser = world.browser();
    let mut tabs = Vec::new();
    for page in ["one", "two", "three"] {
        let page = format!("https://h5.example.com/{page}");
        tabs.push((begin(&browser, &page, "snsapi_base").await, page));
    }
    for (wechat, page) in tabs.into_iter().rev() {
        let callback = authorize(&world, &wechat, |_| {});
        let back = location(&browser.open(&callback).await);
        assert!(back.as_str().starts_with(&format!("{page}?wxhub_ticket=")));
    }
    me(&browser).await;
}

async fn a_sign_in_gives_a_fresh_token_and_ends_the_session_before(world: World) {
    let browser = world.browser();
    browser.plant("wxhub_session_news", "planted-by-somebody-else");
    sign_in(&world, &browser).await;
    let first = browser.cookies()["wxhub_session_news"].clone();
    assert_ne!(first, "planted-by-somebody-else");
    round_trip(&world, &browser, "snsapi_userinfo", |_| {}).await;
    let second = browser.cookies()["wxhub_session_news"].clone();
    assert_ne!(first, second);
    let mut dev = world.caller(KEY);
    let status = dev.verify(&first).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    dev.verify(&second).await.unwrap();
}

async fn a_ticket_is_exchanged_once_for_its_own_host_by_callers_of_its_app(world: World) {
    let url = sign_in(&world, &world.browser()).await;
    let ticket = ticket(&url);
    let mut dev = world.caller(KEY);
    for (ticket, host) in [
        (ticket.as_str(), "localhost"),
        (&ticket, "evil.com"),
        (&ticket, "h5.example.com."),
        (&"0".repeat(64), "h5.example.com"),
        ("x", "h5.example.com"),
    ] {
        let status = dev.exchange(ticket, host).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{ticket} {host}");
    }
    for (ticket, host) in [("", "h5.example.com"), (ticket.as_str(), "")] {
        let status = dev.exchange(ticket, host).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let mut shop_team = world.caller(world::SHOP_KEY);
    let status = shop_team.exchange(&ticket, "h5.example.com").await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);

    dev.exchange(&ticket, "H5.example.com").await.unwrap();
    let status = dev.exchange(&ticket, "h5.example.com").await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
}

async fn one_ticket_from_fifty_requests_makes_one_session(world: World) {
    let ticket = ticket(&sign_in(&world, &world.browser()).await);
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let (mut dev, ticket) = (world.caller(KEY), ticket.clone());
        requests.spawn(async move { dev.exchange(&ticket, "h5.example.com").await.is_ok() });
    }
    let made = requests.join_all().await.into_iter().filter(|made| *made);
    assert_eq!(made.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_under_way_ends_after_ten_minutes_and_a_ticket_after_one() {
    let world = World::with_servers().await;
    let browser = world.browser();
    let callback = authorize(&world, &begin(&browser, PAGE, "snsapi_base").await, |_| {});
    let url = sign_in(&world, &world.browser()).await;
    let client = redis::Client::open(world.redis.as_ref().unwrap().url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    for (kind, most) in [("oauth", 600_000), ("oauth_ticket", 60_000)] {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg(format!("*:{kind}"))
            .query_async(&mut redis)
            .await
            .unwrap();
        assert!(!keys.is_empty(), "{kind}");
        for key in keys {
            let left: i64 = redis::cmd("PTTL")
                .arg(&key)
                .query_async(&mut redis)
                .await
                .unwrap();
            assert!((1..=most).contains(&left), "{key} {left}");
            // What happens by itself then.
            let () = redis::cmd("DEL")
                .arg(&key)
                .query_async(&mut redis)
                .await
                .unwrap();
        }
    }
    assert_eq!(browser.open(&callback).await.status(), 400);
    let (mut dev, ticket) = (world.caller(KEY), ticket(&url));
    let status = dev.exchange(&ticket, "h5.example.com").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_nothing_readable_of_a_sign_in() {
    let world = World::with_servers().await;
    let secrets = secrets_of_a_sign_in(&world).await;
    let client = redis::Client::open(world.redis.as_ref().unwrap().url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut redis)
        .await
        .unwrap();
    let has = |kind: &str| keys.iter().any(|key| key.ends_with(kind));
    assert!(
        has(":oauth") && has(":oauth_code") && has(":oauth_ticket"),
        "{keys:?}"
    );
    // A session's record names its user: all else is sealed or hashed.
    for key in keys.iter().filter(|key| key.contains(":oauth")) {
        let dump: Vec<u8> = redis::cmd("DUMP")
            .arg(key)
            .query_async(&mut redis)
            .await
            .unwrap();
        let dump = String::from_utf8_lossy(&dump);
        for secret in secrets.iter().map(String::as_str).chain(["h5.example.com"]) {
            assert!(!key.contains(secret) && !dump.contains(secret), "{key}");
        }
    }
}

#[tokio::test]
async fn a_callback_of_another_app_is_refused() {
    let world = World::embedded().await;
    let browser = world.browser();
    let callback = authorize(&world, &begin(&browser, PAGE, "snsapi_base").await, |_| {});
    let answer = browser.open(&callback.replace("/news/", "/club/")).await;
    assert_eq!(answer.status(), 400);
    assert!(set_cookies(&answer).is_empty());
    let (session, _) = outcome(&browser.open(&callback).await);
    assert!(session.is_some());
}

#[tokio::test]
async fn who_is_revoked_gets_nothing_for_a_ticket() {
    let world = World::embedded().await;
    let browser = world.browser();
    let url = sign_in(&world, &browser).await;
    let mut dev = world.caller(KEY);
    let user_id = me(&browser).await["user_id"].as_str().unwrap().to_owned();
    let request = RevokeUserSessionsRequest { user_id };
    dev.0.revoke_user_sessions(request).await.unwrap();
    let status = dev.exchange(&ticket(&url), "h5.example.com").await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(browser.open("/me").await.status(), 401);
}

#[tokio::test]
async fn who_declines_or_is_made_up_is_not_signed_in() {
    let world = World::embedded().await;
    let browser = world.browser();
    let refuse = |authorize: &mut Authorize| authorize.refuse = true;
    let url = round_trip(&world, &browser, "snsapi_userinfo", refuse).await;
    assert_eq!(
        url.as_str(),
        "https://h5.example.com/orders?id=7&tag=a%26b&error=access_denied#/detail?x=1"
    );
    // As WeChat's apps say it.
    let wechat = begin(&browser, PAGE, "snsapi_userinfo").await;
    let state = parameter(&wechat, "state").unwrap();
    let answer = browser
        .open(&format!("/oauth/news/callback?code=authdeny&state={state}"))
        .await;
    let denied = parameter(&location(&answer), "error");
    assert_eq!(denied.as_deref(), Some("access_denied"));

    let snapshot = |authorize: &mut Authorize| authorize.snapshot = true;
    let url = round_trip(&world, &browser, "snsapi_userinfo", snapshot).await;
    assert_eq!(parameter(&url, "error").as_deref(), Some("snapshot_user"));
    assert_eq!(parameter(&url, "wxhub_ticket"), None);
    assert!(!browser.cookies().contains_key("wxhub_session_news"));
    assert_eq!(browser.open("/me").await.status(), 401);
    let metrics = world.metrics().await;
    for outcome in ["started", "access_denied", "snapshot_user"] {
        let line = format!("wxhub_auth_oauth_total{{app=\"news\",outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
}

#[tokio::test]
async fn each_failure_of_wechats_returns_with_its_own_error() {
    let world = World::embedded().await;
    let browser = world.browser();
    for (endpoint, errcode, error) in [
        (EXCHANGE, 40029, "code_invalid"),
        (EXCHANGE, 40163, "code_invalid"),
        (EXCHANGE, 42003, "code_invalid"),
        (EXCHANGE, 40226, "user_blocked"),
        (EXCHANGE, 45011, "rate_limited"),
        (EXCHANGE, -1, "temporarily_unavailable"),
        (EXCHANGE, 40125, "server_error"),
        (USER_INFO, 42001, "code_invalid"),
        (USER_INFO, -1, "temporarily_unavailable"),
    ] {
        world.fault(|fault| {
            fault.endpoint = endpoint.to_owned();
            fault.errcode = Some(errcode);
        });
        let url = round_trip(&world, &browser, "snsapi_userinfo", |_| {}).await;
        assert_eq!(
            parameter(&url, "error").as_deref(),
            Some(error),
            "{errcode}"
        );
        assert_eq!(parameter(&url, "wxhub_ticket"), None);
    }
    assert!(!browser.cookies().contains_key("wxhub_session_news"));
    // WeChat is reached once for each, whatever it says.
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 9);
    sign_in(&world, &browser).await;
}

#[tokio::test]
async fn no_redirect_bypass_is_followed() {
    let world = World::embedded().await;
    let browser = world.browser();
    sign_in(&world, &browser).await;
    let lines = BYPASSES
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let page: String = serde_json::from_str(line).unwrap();
        let answer = browser.open(&start(&page, "snsapi_base")).await;
        assert_eq!(answer.status(), 400, "{page:?}");
        assert_eq!(answer.headers().get("location"), None, "{page:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_trusted_is_answered_with_a_page() {
    let world = World::embedded().await;
    let page = "return_to=https%3A%2F%2Fh5.example.com%2F";
    for (path, status, detail) in [
        ("/oauth/news/start".to_owned(), 400, "return_to is missing"),
        (
            format!("/oauth/nobody/start?{page}"),
            404,
            "no official account",
        ),
        (
            format!("/oauth/shop/start?{page}"),
            404,
            "no official account",
        ),
        (
            format!("/oauth/club/start?{page}"),
            400,
            "does not list: add it",
        ),
        (
            format!("/oauth/news/start?{page}&{page}"),
            400,
            "comes twice",
        ),
        (
            format!("/oauth/news/start?{page}&scope=snsapi_login"),
            400,
            "scope must be",
        ),
        (
            "/oauth/news/start?return_to=https://evil.com/%3Cscript%3E".to_owned(),
            400,
            "percent-encoded",
        ),
        (
            "/oauth/news/start?return_to=https://evil.com/".to_owned(),
            400,
            "evil.com",
        ),
        ("/oauth/news/callback".to_owned(), 400, "state"),
        (
            format!("/oauth/news/callback?state={}&code=x", "0".repeat(64)),
            400,
            "state",
        ),
        (
            format!("/oauth/news/callback?state={}&code=x", "'".repeat(64)),
            400,
            "state",
        ),
        (
            "/oauth/news/callback?state=a&state=b".to_owned(),
            400,
            "comes twice",
        ),
    ] {
        let browser = world.browser();
        for (accepted, heading) in [("zh-CN,zh;q=0.9", "登录"), ("en", "sign")] {
            let request = browser.request(Method::GET, &path);
            let answer = browser
                .send(request.header(ACCEPT_LANGUAGE, accepted))
                .await;
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.headers().get("location"), None);
            let policy = answer.headers()["content-security-policy"]
                .to_str()
                .unwrap();
            assert!(policy.contains("frame-ancestors 'none'"));
            assert!(set_cookies(&answer).is_empty());
            let html = answer.text().await.unwrap();
            assert!(
                html.contains(heading) && html.contains(detail),
                "{path}: {html}"
            );
            assert!(!html.contains("<script"), "{html}");
        }
    }
}

#[tokio::test]
async fn the_way_back_is_built_from_the_public_url_alone() {
    let world = World::start(Setup {
        public_url: Some("https://localhost/auth/".parse().unwrap()),
        ..Setup::default()
    })
    .await;
    let browser = world.browser();
    let mut request = browser.request(Method::GET, &start(PAGE, "snsapi_base"));
    request = request.header(HOST, "evil.com");
    for name in [
        "x-forwarded-host",
        "x-forwarded-proto",
        "forwarded",
        "x-original-url",
    ] {
        request = request.header(name, "host=evil.com");
    }
    let answer = browser.send(request).await;
    let wechat = location(&answer);
    assert_eq!(
        parameter(&wechat, "redirect_uri").as_deref(),
        Some("https://localhost/auth/oauth/news/callback")
    );
    // With HTTPS no other host, and no subdomain, can plant or read the cookies.
    let callback = authorize(&world, &wechat, |_| {}).replace("/auth/oauth", "/oauth");
    let back = browser.open(&callback).await;
    for (name, _, attributes) in set_cookies(&answer).into_iter().chain(set_cookies(&back)) {
        assert!(name.starts_with("__Host-wxhub_"), "{name}");
        for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
            assert!(attributes.contains(attribute), "{name}: {attributes}");
        }
        assert!(!attributes.contains("Domain"));
    }
    me(&browser).await;
    // A cookie without the prefix is anybody's.
    let token = browser.cookies()["__Host-wxhub_session_news"].clone();
    let other = world.browser();
    other.plant("wxhub_session_news", &token);
    assert_eq!(other.open("/me").await.status(), 401);
    // Where there is HTTPS, pages without it are not returned to.
    let answer = browser
        .open(&start("http://localhost:5173/", "snsapi_base"))
        .await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn on_a_machine_that_develops_pages_may_have_any_port() {
    let world = World::embedded().await;
    let browser = world.browser();
    let wechat = begin(&browser, "http://localhost:5173/x", "snsapi_base").await;
    let callback = authorize(&world, &wechat, |_| {});
    let back = location(&browser.open(&callback).await);
    assert!(
        back.as_str()
            .starts_with("http://localhost:5173/x?wxhub_ticket=")
    );
    let mut dev = world.caller(KEY);
    dev.exchange(&ticket(&back), "localhost").await.unwrap();
}

#[tokio::test]
async fn without_its_own_url_a_service_with_oauth_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wxhub.toml");
    std::fs::write(&path, world::CATALOG).unwrap();
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let database = DatabaseUrl::new("mysql://root@127.0.0.1:9/wxhub");
    let config = world::config(&path, None, database, nowhere, nowhere);
    let listeners = Listeners::bind(config.listen).await.unwrap();
    let error = App::build(config, listeners).await.unwrap_err();
    assert!(matches!(&error, BuildError::PublicUrl { app } if app == "news"));
    assert!(error.to_string().contains("WXHUB_PUBLIC_URL"), "{error}");
}

#[tokio::test]
async fn a_browser_that_begins_again_and_again_keeps_few_cookies() {
    let world = World::embedded().await;
    let browser = world.browser();
    for _ in 0..100 {
        begin(&browser, PAGE, "snsapi_base").await;
        assert!(browser.cookies().len() <= 17);
    }
    sign_in(&world, &browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_away_a_sign_in_is_answered_at_once_and_can_be_reloaded() {
    let world = World::with_servers().await;
    let browser = world.browser();
    let callback = authorize(&world, &begin(&browser, PAGE, "snsapi_base").await, |_| {});
    let redis = world.redis.as_ref().unwrap();
    redis.pause();
    for path in [start(PAGE, "snsapi_base"), callback.clone()] {
        let asked = std::time::Instant::now();
        let answer = browser.open(&path).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        assert!(answer.text().await.unwrap().contains("刷新"));
        assert!(asked.elapsed() < Duration::from_secs(30));
    }
    redis.resume();
    assert_eq!(world.wechat.calls(None).total(EXCHANGE), 0);
    test_support::eventually("the reload signs in", world::PATIENCE, async || {
        browser.open(&callback).await.status() == 302
    })
    .await;
    me(&browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_database_away_the_page_is_told() {
    let world = World::start(Setup {
        redis: Some(Redis::start().await),
        database: Some(DatabaseUrl::new("mysql://root@127.0.0.1:9/wxhub")),
        ..Setup::default()
    })
    .await;
    let browser = world.browser();
    let url = round_trip(&world, &browser, "snsapi_base", |_| {}).await;
    let error = parameter(&url, "error");
    assert_eq!(error.as_deref(), Some("temporarily_unavailable"));
    assert!(!browser.cookies().contains_key("wxhub_session_news"));
}

#[tokio::test]
async fn what_comes_back_names_no_secret() {
    let world = World::embedded().await;
    let browser = world.browser();
    let url = round_trip(&world, &browser, "snsapi_userinfo", |_| {}).await;
    let names: BTreeSet<_> = url
        .query_pairs()
        .map(|(name, _)| name.into_owned())
        .collect();
    assert_eq!(
        names,
        ["id", "tag", "wxhub_ticket"].map(str::to_owned).into()
    );
    let open_id = me(&browser).await["open_id"].as_str().unwrap().to_owned();
    let token = browser.cookies()["wxhub_session_news"].clone();
    for secret in [open_id, token, "dev-secret-news".to_owned()] {
        assert!(!url.as_str().contains(&secret));
    }
    let request = GetUserRequest {
        app_id: "news".to_owned(),
        open_id: me(&browser).await["open_id"].as_str().unwrap().to_owned(),
        ..Default::default()
    };
    world.caller(KEY).user(request).await.unwrap();
}

/// The headers of CORS that an answer has.
fn cors(answer: &Response) -> BTreeMap<String, String> {
    let headers = answer.headers().iter();
    headers
        .filter(|(name, _)| name.as_str().starts_with("access-control-allow"))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect()
}

#[tokio::test]
async fn pages_of_return_hosts_alone_read_answers_with_the_browsers_cookies() {
    let world = World::embedded().await;
    let browser = world.browser();
    sign_in(&world, &browser).await;
    let page = "https://h5.example.com";
    let answer = browser.fetch(Method::GET, "/me", page).await;
    assert_eq!(answer.status(), 200);
    let allowed = cors(&answer);
    assert_eq!(allowed["access-control-allow-origin"], page);
    assert_eq!(allowed["access-control-allow-credentials"], "true");
    let vary: Vec<_> = answer.headers().get_all("vary").iter().collect();
    assert!(format!("{vary:?}").contains("origin"), "{vary:?}");

    for path in ["/me", "/logout", "/user-data"] {
        let preflight = async |origin: &str| {
            let request = browser
                .request(Method::OPTIONS, path)
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "content-type");
            cors(&browser.send(request).await)
        };
        let allowed = preflight(page).await;
        assert_eq!(allowed["access-control-allow-origin"], page, "{path}");
        assert!(allowed["access-control-allow-methods"].contains("POST"));
        for origin in [
            "https://evil.com",
            "http://h5.example.com",
            "https://h5.example.com:8443",
            "https://h5.example.com.evil.com",
            "https://evil.h5.example.com",
            "https://H5.example.com",
            "https://h5.example.com/",
            "null",
            "*",
            "",
        ] {
            let allowed = preflight(origin).await;
            assert_eq!(
                allowed.get("access-control-allow-origin"),
                None,
                "{path} {origin}"
            );
        }
    }
    for (path, method) in [
        ("/login", Method::POST),
        ("/auth/authorize", Method::POST),
        ("/auth/test", Method::GET),
        ("/oauth/news/start", Method::GET),
    ] {
        assert!(
            cors(&browser.fetch(method, path, page).await).is_empty(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_page_of_another_site_can_do_nothing_with_the_browsers_cookies() {
    let world = World::embedded().await;
    let browser = world.browser();
    sign_in(&world, &browser).await;
    // The last may ask, but not with this app's session.
    for origin in [
        "https://evil.com",
        "null",
        "http://h5.example.com",
        "https://club.example.com",
    ] {
        for (method, path) in [
            (Method::POST, "/logout"),
            (Method::POST, "/logout?app=news"),
            (Method::GET, "/me"),
            (Method::GET, "/auth/test"),
        ] {
            let (status, body) = world::error(browser.fetch(method, path, origin).await).await;
            assert_eq!(
                (status, &body["code"]),
                (403, &json!("ORIGIN_FORBIDDEN")),
                "{path} {origin}"
            );
        }
        let body = json!({ "encrypted_data": "eA==", "iv": "eA==" }).to_string();
        let request = browser
            .request(Method::POST, "/user-data")
            .header("origin", origin);
        assert_eq!(browser.send(request.body(body)).await.status(), 403);
    }
    let request = browser
        .request(Method::POST, "/logout")
        .header("sec-fetch-site", "cross-site");
    assert_eq!(browser.send(request).await.status(), 403);
    me(&browser).await;

    let answer = browser
        .fetch(Method::POST, "/logout", "https://h5.example.com")
        .await;
    assert_eq!(answer.status(), 204);
    assert_eq!(browser.open("/me").await.status(), 401);
}

#[tokio::test]
async fn a_logout_ends_the_session_and_its_cookie() {
    let world = World::embedded().await;
    let browser = world.browser();
    sign_in(&world, &browser).await;
    let token = browser.cookies()["wxhub_session_news"].clone();
    let answer = browser.send(browser.request(Method::POST, "/logout")).await;
    assert_eq!(answer.status(), 204);
    let (name, value, attributes) = set_cookies(&answer).pop().unwrap();
    assert_eq!((name.as_str(), value.as_str()), ("wxhub_session_news", ""));
    assert!(attributes.contains("Max-Age=0"));
    assert_eq!(world.me(&token).await.status(), 401);
    assert_eq!(browser.open("/logout").await.status(), 405);
    // Who was signed in is asked for again.
    begin(&browser, PAGE, "snsapi_base").await;
}

#[tokio::test]
async fn a_browser_that_is_signed_in_to_several_apps_says_which() {
    let world = World::embedded().await;
    let browser = world.browser();
    sign_in(&world, &browser).await;
    let body = json!({ "code": world.js_code(None), "appId": "shop" }).to_string();
    let request = browser.request(Method::POST, "/auth/authorize").body(body);
    assert_eq!(browser.send(request).await.status(), 200);
    browser.plant("wxhub_session_nobody", "x");
    let (status, body) = world::error(browser.open("/me").await).await;
    assert_eq!(status, 400);
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("news, shop"), "{message}");
    for (app, app_id) in [("news", NEWS), ("shop", world::SHOP), (NEWS, NEWS)] {
        let known: Value = browser
            .open(&format!("/me?app={app}"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(known["app_id"], app_id);
    }
    for (path, status) in [
        ("/me?app=nobody", 404),
        ("/me?app=club", 401),
        ("/me?app=a&app=b", 400),
    ] {
        assert_eq!(browser.open(path).await.status(), status, "{path}");
    }
    let request = browser.request(Method::POST, "/logout?app=shop");
    assert_eq!(browser.send(request).await.status(), 204);
    assert_eq!(me(&browser).await["app_id"], NEWS);
}
