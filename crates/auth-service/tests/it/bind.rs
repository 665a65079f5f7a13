//! An account signs in, shows a QR code, and whoever scans it is bound to it: on a desktop and a phone, over HTTP.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::auth::v1::{
    Account, Binding, CreateAccountRequest, CreateBindLinkRequest, DeleteAccountRequest,
    DeleteBindingRequest, GetAccountRequest, GetBindingRequest, SetAccountPasswordRequest,
};
use redis::AsyncCommands as _;
use reqwest::{
    Method, RequestBuilder, Response, Url,
    header::{ACCEPT_LANGUAGE, LOCATION, ORIGIN, RETRY_AFTER},
};
use sandbox::Authorize;
use sea_orm::ConnectionTrait as _;
use secrecy::SecretString;
use serde_json::Value;
use service_kit::storage;
use test_support::eventually;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    browser::{Browser, set_cookies},
    world::{KEY, NEWS, NEWS_KEY, PATIENCE, SHOP, Setup, World, error},
};

const PASSWORD: &str = "correct horse";
const EXCHANGE: &str = "/sns/oauth2/access_token";
/// Two people.
const WANG: &str = "oWANGWANGWANGWANGWANGWANGWAN";
const LI: &str = "oLILILILILILILILILILILILILIL";

with_either_store!(
    whoever_scans_the_code_is_bound,
    an_account_unbinds_and_is_bound_again,
    a_phone_undoes_its_own_binding_only,
    a_look_at_the_link_does_not_use_it_up,
    a_used_link_binds_nobody_after_an_unbinding,
    of_a_hundred_phones_one_is_bound,
    the_same_callback_from_a_hundred_requests_binds_once,
    a_bound_account_and_a_bound_user_must_unbind_first,
    who_declines_can_scan_again,
    a_snapshot_page_binds_nobody,
    a_state_of_another_browser_binds_nobody,
    a_new_password_ends_sign_ins_and_links,
    a_deleted_account_takes_its_bindings_along,
    a_page_of_another_site_signs_nobody_in,
    the_account_cookie_is_no_session,
    three_failures_cool_a_name_down,
    a_teams_own_user_is_bound_by_a_link,
    accounts_are_made_and_looked_up_over_grpc,
    accounts_are_for_callers_of_all_apps,
    a_link_of_an_account_over_grpc_ends_with_its_password,
    a_name_that_is_bound_becomes_no_account,
);

/// An account's desktop.
struct Desktop(Browser);

impl World {
    async fn account(&self, name: &str) {
        let request = CreateAccountRequest {
            account: name.to_owned(),
            password: PASSWORD.to_owned(),
        };
        self.caller(KEY).0.create_account(request).await.unwrap();
    }

    /// A new account of this name, signed in.
    async fn desktop(&self, name: &str) -> Desktop {
        self.account(name).await;
        let browser = self.browser();
        let answer = sign_in(&browser, name, PASSWORD).await;
        assert_eq!(see_other(&answer), "/bind");
        Desktop(browser)
    }

    async fn binding(&self, app_id: &str, account: &str) -> Result<Binding, Status> {
        let request = GetBindingRequest {
            app_id: app_id.to_owned(),
            account: account.to_owned(),
        };
        let answer = self.caller(KEY).0.get_binding(request).await?;
        Ok(answer.into_inner().binding.unwrap())
    }

    async fn is_bound(&self, account: &str) -> bool {
        match self.binding("news", account).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                assert_eq!(reason(&status), "BINDING_NOT_FOUND");
                false
            }
        }
    }

    /// WeChat asks its user; answers where it sends the phone.
    fn consent(&self, link: &Url, open_id: &str, change: impl FnOnce(&mut Authorize)) -> String {
        let mut authorize = Authorize {
            url: link.to_string(),
            open_id: Some(open_id.to_owned()),
            ..Authorize::default()
        };
        change(&mut authorize);
        let authorized = self.wechat.authorize(&authorize).unwrap();
        authorized.callback_url.unwrap()
    }

    /// Somebody scans the code and agrees; answers their phone and what it comes back with.
    async fn scan(&self, link: &str, open_id: &str) -> (Browser, String) {
        let phone = self.browser();
        let wechat = open_link(&phone, link).await;
        let callback = self.consent(&wechat, open_id, |_| ());
        (phone, callback)
    }

    async fn bind(&self, link: &str, open_id: &str) -> Response {
        let (phone, callback) = self.scan(link, open_id).await;
        phone.open(&callback).await
    }

    fn exchanges_of_codes(&self) -> u64 {
        self.wechat.calls(None).total(EXCHANGE)
    }
}

impl Desktop {
    /// The text of the QR code.
    async fn link(&self) -> String {
        let answer = self.0.open("/bind_qcode").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], 1000);
        body["data"].as_str().unwrap().to_owned()
    }

    async fn page(&self) -> String {
        let answer = self.0.open("/bind?lang=en").await;
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    }

    async fn post(&self, path: &str) -> Response {
        submit(&self.0, path, &[]).await
    }
}

/// Submits a form of a page of the service itself.
async fn submit(browser: &Browser, path: &str, fields: &[(&str, &str)]) -> Response {
    browser.send(form(browser, path, fields)).await
}

fn form(browser: &Browser, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    browser
        .request(Method::POST, path)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body)
}

async fn sign_in(browser: &Browser, name: &str, password: &str) -> Response {
    let fields = [("account", name), ("password", password)];
    submit(browser, "/account/login", &fields).await
}

fn see_other(answer: &Response) -> &str {
    assert_eq!(answer.status(), 303, "{answer:?}");
    answer.headers()[LOCATION].to_str().unwrap()
}

/// A phone opens the link, and is sent to WeChat.
async fn open_link(phone: &Browser, link: &str) -> Url {
    let answer = phone.open(link).await;
    let url: Url = see_other(&answer).parse().unwrap();
    assert_eq!(url.path(), "/connect/oauth2/authorize");
    url
}

async fn text(answer: Response, status: u16) -> String {
    let found = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    text
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().reason.clone()
}

fn parameter(url: &str, name: &str) -> String {
    let url: Url = url.parse().unwrap();
    let mut pairs = url.query_pairs();
    pairs.find(|(key, _)| key == name).unwrap().1.into_owned()
}

async fn whoever_scans_the_code_is_bound(world: World) {
    // Nobody is signed in, and nothing is shown.
    let stranger = world.browser();
    let answer = stranger.open("/bind?app=news&lang=en").await;
    assert_eq!(see_other(&answer), "/login?app=news&lang=en");
    for path in ["/bind_qcode", "/bind/qr.svg", "/bind/status"] {
        let (status, body) = error(stranger.open(path).await).await;
        assert_eq!(
            (status, &body["code"]),
            (401, &Value::from("ACCOUNT_SIGNED_OUT"))
        );
    }

    let desktop = world.desktop("王小明").await;
    let page = desktop.page().await;
    assert!(
        page.contains("王小明") && page.contains("/bind/qr.svg"),
        "{page}"
    );
    let svg = desktop.0.open("/bind/qr.svg").await;
    assert_eq!(svg.headers()["content-type"], "image/svg+xml");
    assert!(svg.text().await.unwrap().contains("<path"));
    let link = desktop.link().await;
    assert_eq!(desktop.link().await, link, "one code at a time");
    assert!(page.contains(&link.replace('&', "&amp;")), "{page}");

    // The link tells the phone nothing of the account, neither in its text nor on the way to WeChat.
    let phone = world.browser();
    let answer = phone.open(&link).await;
    let wechat: Url = see_other(&answer).parse().unwrap();
    assert_eq!(parameter(wechat.as_str(), "scope"), "snsapi_userinfo");
    assert_eq!(parameter(wechat.as_str(), "forcePopup"), "true");
    assert!(!wechat.as_str().contains("%E7%8E%8B"), "{wechat}");
    let state = parameter(wechat.as_str(), "state");
    assert!(state.len() == 64 && !link.contains(&state));
    assert!(!answer.text().await.unwrap().contains("王小明"));
    assert!(!world.is_bound("王小明").await);

    let callback = world.consent(&wechat, WANG, |_| ());
    let answer = phone.open(&callback).await;
    let page = text(answer, 200).await;
    assert!(
        page.contains("绑定成功") && page.contains("王小明"),
        "{page}"
    );
    assert!(page.contains("撤销") && page.contains(&state), "{page}");

    let binding = world.binding("news", "王小明").await.unwrap();
    assert_eq!(
        (binding.app_id.as_str(), binding.open_id.as_str()),
        (NEWS, WANG)
    );
    assert!(!binding.nickname.is_empty());
    let page = desktop.page().await;
    let nickname = escaped(&binding.nickname);
    assert!(
        page.contains("WeChat is bound") && page.contains(&nickname),
        "{page}"
    );
    let (status, body) = error(desktop.0.open("/bind_qcode").await).await;
    assert_eq!(
        (status, &body["code"]),
        (409, &Value::from("ACCOUNT_BOUND"))
    );
    assert!(
        !text(world.browser().open(&link).await, 410)
            .await
            .contains("王小明")
    );
}

/// As askama writes it.
fn escaped(text: &str) -> String {
    text.replace('&', "&#38;")
        .replace('<', "&#60;")
        .replace('>', "&#62;")
        .replace('\'', "&#39;")
}

async fn an_account_unbinds_and_is_bound_again(world: World) {
    let desktop = world.desktop("wang").await;
    for open_id in [WANG, LI, WANG] {
        assert_eq!(
            world.bind(&desktop.link().await, open_id).await.status(),
            200
        );
        assert_eq!(
            world.binding("news", "wang").await.unwrap().open_id,
            open_id
        );
        assert_eq!(see_other(&desktop.post("/bind/unbind").await), "/bind");
        assert!(!world.is_bound("wang").await);
    }
    // Twice does no harm.
    assert_eq!(see_other(&desktop.post("/bind/unbind").await), "/bind");
}

async fn a_phone_undoes_its_own_binding_only(world: World) {
    let desktop = world.desktop("wang").await;
    let (phone, callback) = world.scan(&desktop.link().await, WANG).await;
    text(phone.open(&callback).await, 200).await;
    let state = parameter(&callback, "state");
    let undo = [("state", state.as_str())];

    // Another browser that knows the state, with a cookie of its own or none.
    let thief = world.browser();
    assert_eq!(submit(&thief, "/bind/undo", &undo).await.status(), 410);
    thief.plant("wxhub_phone", &"0".repeat(64));
    assert_eq!(submit(&thief, "/bind/undo", &undo).await.status(), 410);
    // A page of another site, in the phone's browser.
    let forged = form(&phone, "/bind/undo", &undo).header(ORIGIN, "https://evil.example");
    assert_eq!(phone.send(forged).await.status(), 403);
    assert!(world.is_bound("wang").await);

    let page = text(submit(&phone, "/bind/undo", &undo).await, 200).await;
    assert!(page.contains("已撤销"), "{page}");
    assert!(!world.is_bound("wang").await);

    // What is undone is undone: a later binding of the account stays.
    assert_eq!(world.bind(&desktop.link().await, LI).await.status(), 200);
    text(submit(&phone, "/bind/undo", &undo).await, 200).await;
    assert!(world.is_bound("wang").await);
}

async fn a_look_at_the_link_does_not_use_it_up(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    for _ in 0..5 {
        // As a chat program does for its preview, and a phone whose user goes back.
        open_link(&world.browser(), &link).await;
    }
    assert_eq!(desktop.link().await, link);
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
}

async fn a_used_link_binds_nobody_after_an_unbinding(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let (late, callback) = world.scan(&link, LI).await;
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
    desktop.post("/bind/unbind").await;
    text(late.open(&callback).await, 409).await;
    assert_eq!(world.browser().open(&link).await.status(), 410);
    assert!(!world.is_bound("wang").await);
    assert_ne!(desktop.link().await, link);
}

async fn of_a_hundred_phones_one_is_bound(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let mut scanned = Vec::new();
    for n in 0..100 {
        let open_id = format!("oPHONE{n:022}");
        scanned.push((world.scan(&link, &open_id).await, open_id));
    }
    let mut callbacks = JoinSet::new();
    for ((phone, callback), open_id) in scanned {
        callbacks.spawn(async move {
            let status = phone.open(&callback).await.status().as_u16();
            (status, open_id)
        });
    }
    let mut answers = callbacks.join_all().await;
    answers.sort();
    let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    assert!(
        statuses[1..].iter().all(|status| *status == 409),
        "{statuses:?}"
    );
    let binding = world.binding("news", "wang").await.unwrap();
    assert_eq!(binding.open_id, answers[0].1);
}

async fn the_same_callback_from_a_hundred_requests_binds_once(world: World) {
    let desktop = world.desktop("wang").await;
    let (phone, callback) = world.scan(&desktop.link().await, WANG).await;
    let phone = Arc::new(phone);
    let before = world.exchanges_of_codes();
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (phone, callback) = (Arc::clone(&phone), callback.clone());
        requests.spawn(async move { text(phone.open(&callback).await, 200).await });
    }
    let pages: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(pages.len(), 1, "all are told the same");
    assert_eq!(world.exchanges_of_codes(), before + 1);
    let account = get_account(&world, KEY, "wang").await.unwrap();
    assert_eq!(account.bindings.len(), 1);
}

async fn a_bound_account_and_a_bound_user_must_unbind_first(world: World) {
    let wang = world.desktop("wang").await;
    // Two links of the account: one of its desktop, one of a team.
    let mine = wang.link().await;
    let theirs = bind_link(&world, "news", "wang").await.unwrap();
    let (late, callback) = world.scan(&theirs, LI).await;
    assert_eq!(world.bind(&mine, WANG).await.status(), 200);
    let page = text(late.open(&callback).await, 409).await;
    assert!(
        page.contains("账号已绑定") && !page.contains("wang"),
        "{page}"
    );
    let refused = bind_link(&world, "news", "wang").await.unwrap_err();
    assert_eq!(reason(&refused), "ACCOUNT_BOUND");
    assert_eq!(world.binding("news", "wang").await.unwrap().open_id, WANG);

    // The same person for another account; the link stays good for somebody else.
    let li = world.desktop("li").await;
    let link = li.link().await;
    let page = text(world.bind(&link, WANG).await, 409).await;
    assert!(
        page.contains("已经绑定了另一个账号") && !page.contains("wang"),
        "{page}"
    );
    assert!(!world.is_bound("li").await);
    assert_eq!(world.bind(&link, LI).await.status(), 200);

    // In another official account it is another matter.
    let club = world.browser();
    sign_in(&club, "wang", PASSWORD).await;
    let answer = club.open("/bind_qcode?app=club").await;
    assert_eq!(answer.status(), 200);
    // A mini program has no such pages.
    for app in ["shop", SHOP, "nothing"] {
        let answer = club.open(&format!("/bind_qcode?app={app}")).await;
        let (status, body) = error(answer).await;
        assert_eq!(
            (status, &body["code"]),
            (404, &Value::from("APP_NOT_FOUND"))
        );
    }
}

async fn who_declines_can_scan_again(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let phone = world.browser();
    let wechat = open_link(&phone, &link).await;
    assert!(desktop.page().await.contains("Scanned"));
    let callback = world.consent(&wechat, WANG, |authorize| authorize.refuse = true);
    let page = text(phone.open(&callback).await, 200).await;
    assert!(
        page.contains("二维码仍然有效") && !page.contains("wang"),
        "{page}"
    );
    assert!(desktop.page().await.contains("Scan the code"));
    // The state is used up; a code that is put to it later finds nothing to do.
    let page = text(phone.open(&format!("{callback}&code=x")).await, 200).await;
    assert!(page.contains("二维码仍然有效"), "{page}");

    // What WeChat's own browser sends at times.
    let wechat = open_link(&phone, &link).await;
    let state = parameter(wechat.as_str(), "state");
    let answer = phone
        .open(&format!("/callback?code=authdeny&state={state}"))
        .await;
    assert!(text(answer, 200).await.contains("未绑定"));

    assert_eq!(desktop.link().await, link);
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
}

async fn a_snapshot_page_binds_nobody(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let phone = world.browser();
    let wechat = open_link(&phone, &link).await;
    let callback = world.consent(&wechat, WANG, |authorize| authorize.snapshot = true);
    let page = text(phone.open(&callback).await, 403).await;
    assert!(page.contains("快照页"), "{page}");
    assert!(!world.is_bound("wang").await);
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
}

/// The seed of this service took the MD5 of the account's name for `state`: whoever knew a name could be bound to it, or
/// have somebody else bound.
async fn a_state_of_another_browser_binds_nobody(world: World) {
    let victim = world.desktop("victim").await;
    let attacker = world.desktop("attacker").await;

    // A made-up state, such as that of the seed.
    let phone = world.browser();
    open_link(&phone, &victim.link().await).await;
    for state in ["", "ffc290fe8a2ff2de0d3c3b4d3c7f0cb9", &"0".repeat(64)] {
        let before = world.exchanges_of_codes();
        let answer = phone.open(&format!("/callback?code=x&state={state}")).await;
        assert_eq!(answer.status(), 410);
        assert_eq!(world.exchanges_of_codes(), before, "WeChat is not asked");
    }

    // The attacker opens their own link, agrees, and has the victim's phone open the callback: the victim's phone has
    // no cookie, or one of its own.
    let (_, callback) = world.scan(&attacker.link().await, LI).await;
    assert_eq!(world.browser().open(&callback).await.status(), 410);
    assert_eq!(phone.open(&callback).await.status(), 410);

    // The attacker opens their own link and has the victim agree to it: the code is the victim's, the state the
    // attacker's, and the browser in which it ends the victim's.
    let theirs = world.browser();
    let wechat = open_link(&theirs, &attacker.link().await).await;
    let callback = world.consent(&wechat, WANG, |_| ());
    assert_eq!(phone.open(&callback).await.status(), 410);
    assert!(!world.is_bound("attacker").await);

    // The attacker puts their own code to the victim's state.
    let wechat = open_link(&phone, &victim.link().await).await;
    let state = parameter(wechat.as_str(), "state");
    let code = parameter(&world.scan(&attacker.link().await, LI).await.1, "code");
    let forged = format!("/callback?code={code}&state={state}");
    assert_eq!(theirs.open(&forged).await.status(), 410);
    assert!(!world.is_bound("victim").await);

    // None of it kept the victim from being bound, and the state was used once.
    let callback = world.consent(&wechat, WANG, |_| ());
    text(phone.open(&callback).await, 200).await;
    assert_eq!(world.binding("news", "victim").await.unwrap().open_id, WANG);
    victim.post("/bind/unbind").await;
    let other = world.scan(&attacker.link().await, LI).await.1;
    let replayed = format!("/callback?code={}&state={state}", parameter(&other, "code"));
    phone.open(&replayed).await;
    assert!(!world.is_bound("victim").await);
}

async fn a_new_password_ends_sign_ins_and_links(world: World) {
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let (phone, callback) = world.scan(&link, WANG).await;
    let request = SetAccountPasswordRequest {
        account: "wang".to_owned(),
        password: "battery staple".to_owned(),
    };
    let answer = world.caller(KEY).0.set_account_password(request).await;
    let account = answer.unwrap().into_inner().account.unwrap();
    assert!(timestamp(account.password_time) > timestamp(account.create_time));

    assert_eq!(see_other(&desktop.0.open("/bind").await), "/login");
    assert_eq!(world.browser().open(&link).await.status(), 410);
    text(phone.open(&callback).await, 410).await;
    assert!(!world.is_bound("wang").await);
    assert_eq!(sign_in(&desktop.0, "wang", PASSWORD).await.status(), 401);
    let answer = sign_in(&desktop.0, "wang", "battery staple").await;
    assert_eq!(see_other(&answer), "/bind");

    // Signing out ends it for whoever copied the cookie, too.
    let copy = world.browser();
    for (name, value) in desktop.0.cookies() {
        copy.plant(&name, &value);
    }
    assert_eq!(copy.open("/bind").await.status(), 200);
    assert_eq!(see_other(&desktop.post("/account/logout").await), "/login");
    assert!(!desktop.0.cookies().contains_key("wxhub_account"));
    assert_eq!(see_other(&copy.open("/bind").await), "/login");
}

fn timestamp(time: Option<prost_types::Timestamp>) -> (i64, i32) {
    let time = time.unwrap();
    (time.seconds, time.nanos)
}

async fn a_deleted_account_takes_its_bindings_along(world: World) {
    let desktop = world.desktop("wang").await;
    assert_eq!(world.bind(&desktop.link().await, WANG).await.status(), 200);
    let delete = async |key: &str, name: &str| {
        let account = name.to_owned();
        let request = DeleteAccountRequest { account };
        world.caller(key).0.delete_account(request).await.unwrap();
    };
    delete(KEY, "wang").await;
    assert!(!world.is_bound("wang").await);
    assert_eq!(see_other(&desktop.0.open("/bind").await), "/login");
    let unknown = get_account(&world, KEY, "wang").await.unwrap_err();
    assert_eq!(reason(&unknown), "ACCOUNT_NOT_FOUND");
    delete(KEY, "wang").await;

    // Its name is free, and what was signed in before is not signed in to the new one.
    let again = world.desktop("wang").await;
    assert_eq!(see_other(&desktop.0.open("/bind").await), "/login");
    assert_eq!(world.bind(&again.link().await, WANG).await.status(), 200);
}

async fn a_page_of_another_site_signs_nobody_in(world: World) {
    world.account("attacker").await;
    let fields = [("account", "attacker"), ("password", PASSWORD)];
    let victim = world.browser();
    let headers = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "https://h5.example.com"),
        ("sec-fetch-site", "cross-site"),
    ];
    for (name, value) in headers {
        let forged = form(&victim, "/account/login", &fields).header(name, value);
        let answer = victim.send(forged).await;
        assert!(set_cookies(&answer).is_empty());
        text(answer, 403).await;
    }
    assert_eq!(see_other(&victim.open("/bind").await), "/login");

    // Nor does it sign anybody out, or unbind them.
    let desktop = world.desktop("wang").await;
    assert_eq!(world.bind(&desktop.link().await, WANG).await.status(), 200);
    for path in ["/account/logout", "/bind/unbind"] {
        let forged = form(&desktop.0, path, &[]).header("origin", "https://evil.example");
        assert_eq!(desktop.0.send(forged).await.status(), 403);
    }
    assert!(world.is_bound("wang").await);
    assert_eq!(desktop.0.open("/bind").await.status(), 200);
    // A link is a link, and changes nothing here.
    for path in [
        "/account/login",
        "/account/logout",
        "/bind/unbind",
        "/bind/undo",
    ] {
        assert_eq!(desktop.0.open(path).await.status(), 405);
    }
}

async fn the_account_cookie_is_no_session(world: World) {
    let desktop = world.desktop("wang").await;
    let cookies = desktop.0.cookies();
    let (name, ticket) = cookies.iter().next().unwrap();
    assert_eq!((cookies.len(), name.as_str()), (1, "wxhub_account"));
    let refused = world.caller(KEY).verify(ticket).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    for browser in [&desktop.0, &world.browser()] {
        assert_eq!(browser.open("/me").await.status(), 401);
    }
    assert_eq!(world.me(ticket).await.status(), 401);
    // And a session signs in to no account.
    let thief = world.browser();
    thief.plant("wxhub_account", &world.login(&world.js_code(None)).await);
    assert_eq!(see_other(&thief.open("/bind").await), "/login");

    // Signing in again gives another, and ends the one before.
    sign_in(&desktop.0, "wang", PASSWORD).await;
    let answer = desktop.0.open("/bind").await;
    assert_eq!(answer.status(), 200);
    thief.plant("wxhub_account", ticket);
    assert_eq!(see_other(&thief.open("/bind").await), "/login");
}

async fn three_failures_cool_a_name_down(world: World) {
    world.account("wang").await;
    world.account("li").await;
    let browser = world.browser();
    let mut pages = BTreeSet::new();
    for _ in 0..3 {
        for name in ["wang", "nobody"] {
            let answer = sign_in(&browser, name, "wrong horse").await;
            assert!(set_cookies(&answer).is_empty());
            pages.insert(text(answer, 401).await.replace(name, "…"));
        }
    }
    assert_eq!(
        pages.len(),
        1,
        "a known name and an unknown one look the same"
    );
    let mut pages = BTreeSet::new();
    for (name, password) in [("wang", PASSWORD), ("nobody", PASSWORD)] {
        let answer = sign_in(&browser, name, password).await;
        assert!(set_cookies(&answer).is_empty());
        let left: u64 = answer.headers()[RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((200..=300).contains(&left), "{left}");
        let page = text(answer, 429).await;
        assert!(page.contains("分"), "{page}");
        pages.insert(page.split(name).count());
    }
    assert_eq!(pages.len(), 1);
    assert_eq!(see_other(&sign_in(&browser, "li", PASSWORD).await), "/bind");
    // What can be no name is wrong as well, and costs nothing.
    for name in ["", &"x".repeat(65), "a\u{0}b"] {
        assert_eq!(sign_in(&browser, name, PASSWORD).await.status(), 401);
    }
}

async fn bind_link(world: &World, app_id: &str, account: &str) -> Result<String, Status> {
    let request = CreateBindLinkRequest {
        app_id: app_id.to_owned(),
        account: account.to_owned(),
    };
    let answer = world.caller(KEY).0.create_bind_link(request).await?;
    Ok(answer.into_inner().bind_link.unwrap().url)
}

async fn a_teams_own_user_is_bound_by_a_link(world: World) {
    let request = CreateBindLinkRequest {
        app_id: "news".to_owned(),
        account: "crm:4711".to_owned(),
    };
    let answer = world.caller(KEY).0.create_bind_link(request.clone()).await;
    let link = answer.unwrap().into_inner().bind_link.unwrap();
    assert!(link.qr_svg.contains("<svg ") && link.expire_time.is_some());
    assert!(!link.url.contains("4711"));
    assert!(!world.is_bound("crm:4711").await);
    let page = text(world.bind(&link.url, WANG).await, 200).await;
    assert!(page.contains("crm:4711"), "{page}");
    let binding = world.binding(NEWS, "crm:4711").await.unwrap();
    assert_eq!(
        (binding.account.as_str(), binding.open_id.as_str()),
        ("crm:4711", WANG)
    );
    // It is no account that could sign in.
    let answer = sign_in(&world.browser(), "crm:4711", "").await;
    assert_eq!(answer.status(), 401);

    // Another team's apps are none of this one's business.
    let mut news_team = world.caller(NEWS_KEY);
    let foreign = CreateBindLinkRequest {
        app_id: "club".to_owned(),
        ..request
    };
    let refused = news_team.0.create_bind_link(foreign).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::NotFound, "APP_NOT_FOUND")
    );
    let foreign = GetBindingRequest {
        app_id: "club".to_owned(),
        account: "crm:4711".to_owned(),
    };
    let refused = news_team.0.get_binding(foreign).await.unwrap_err();
    assert_eq!(reason(&refused), "APP_NOT_FOUND");

    for (app_id, account) in [("shop", "x"), ("news", ""), ("news", " x"), ("", "x")] {
        let refused = bind_link(&world, app_id, account).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{app_id} {account}");
    }
    for _ in 0..2 {
        let request = DeleteBindingRequest {
            app_id: "news".to_owned(),
            account: "crm:4711".to_owned(),
        };
        world.caller(KEY).0.delete_binding(request).await.unwrap();
    }
    assert!(!world.is_bound("crm:4711").await);
}

async fn get_account(world: &World, key: &str, name: &str) -> Result<Account, Status> {
    let request = GetAccountRequest {
        account: name.to_owned(),
    };
    let answer = world.caller(key).0.get_account(request).await?;
    Ok(answer.into_inner().account.unwrap())
}

async fn accounts_are_made_and_looked_up_over_grpc(world: World) {
    // é as one character and as two is the same name, and the same password.
    let create = async |account: &str, password: &str| {
        let request = CreateAccountRequest {
            account: account.to_owned(),
            password: password.to_owned(),
        };
        let answer = world.caller(KEY).0.create_account(request).await?;
        Ok::<_, Status>(answer.into_inner().account.unwrap())
    };
    let account = create("ren\u{e9}", "caf\u{e9} au lait").await.unwrap();
    assert_eq!(
        (account.account.as_str(), account.bindings.len()),
        ("ren\u{e9}", 0)
    );
    assert_eq!(account.create_time, account.password_time);
    let taken = create("rene\u{301}", PASSWORD).await.unwrap_err();
    assert_eq!(
        (taken.code(), reason(&taken).as_str()),
        (Code::AlreadyExists, "ACCOUNT_EXISTS")
    );
    let answer = sign_in(&world.browser(), "rene\u{301}", "cafe\u{301} au lait").await;
    assert_eq!(see_other(&answer), "/bind");
    // Case counts.
    assert!(create("Ren\u{e9}", PASSWORD).await.is_ok());

    for (account, password) in [
        ("", PASSWORD),
        ("x\n", PASSWORD),
        ("x", "short"),
        ("x", &"x".repeat(129)),
    ] {
        let refused = create(account, password).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(password.is_empty() || !refused.message().contains(password));
    }
    let unknown = SetAccountPasswordRequest {
        account: "nobody".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let refused = world.caller(KEY).0.set_account_password(unknown).await;
    assert_eq!(reason(&refused.unwrap_err()), "ACCOUNT_NOT_FOUND");

    // A caller sees the bindings of its own apps.
    let link = bind_link(&world, "news", "ren\u{e9}").await.unwrap();
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
    for (key, app_ids) in [
        (KEY, vec![NEWS]),
        (NEWS_KEY, vec![NEWS]),
        (crate::world::SHOP_KEY, vec![]),
    ] {
        let account = get_account(&world, key, "ren\u{e9}").await.unwrap();
        let found: Vec<_> = account
            .bindings
            .iter()
            .map(|binding| binding.app_id.as_str())
            .collect();
        assert_eq!(found, app_ids);
    }
}

async fn set_password(world: &World, key: &str, name: &str) -> Result<Account, Status> {
    let request = SetAccountPasswordRequest {
        account: name.to_owned(),
        password: "battery staple".to_owned(),
    };
    let answer = world.caller(key).0.set_account_password(request).await?;
    Ok(answer.into_inner().account.unwrap())
}

/// An account stands above apps: a team with one of them could take it, or end what others made of it.
async fn accounts_are_for_callers_of_all_apps(world: World) {
    let desktop = world.desktop("wang").await;
    assert_eq!(world.bind(&desktop.link().await, WANG).await.status(), 200);
    let mut news_team = world.caller(NEWS_KEY);
    let create = CreateAccountRequest {
        account: "li".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let delete = DeleteAccountRequest {
        account: "wang".to_owned(),
    };
    for refused in [
        news_team.0.create_account(create).await.unwrap_err(),
        set_password(&world, NEWS_KEY, "wang").await.unwrap_err(),
        set_password(&world, NEWS_KEY, "nobody").await.unwrap_err(),
        news_team.0.delete_account(delete).await.unwrap_err(),
    ] {
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::PermissionDenied, "ALL_APPS_REQUIRED")
        );
        assert!(refused.message().contains("CreateBindLink"), "{refused}");
    }
    let unknown = get_account(&world, KEY, "li").await.unwrap_err();
    assert_eq!(reason(&unknown), "ACCOUNT_NOT_FOUND");
    assert!(world.is_bound("wang").await);
    assert_eq!(desktop.0.open("/bind").await.status(), 200);
    let answer = sign_in(&world.browser(), "wang", PASSWORD).await;
    assert_eq!(see_other(&answer), "/bind");
}

async fn a_link_of_an_account_over_grpc_ends_with_its_password(world: World) {
    world.account("wang").await;
    let link = bind_link(&world, "news", "wang").await.unwrap();
    let (phone, callback) = world.scan(&link, WANG).await;
    set_password(&world, KEY, "wang").await.unwrap();
    assert_eq!(world.browser().open(&link).await.status(), 410);
    text(phone.open(&callback).await, 410).await;
    assert!(!world.is_bound("wang").await);

    let link = bind_link(&world, "news", "wang").await.unwrap();
    let account = "wang".to_owned();
    let request = DeleteAccountRequest { account };
    world.caller(KEY).0.delete_account(request).await.unwrap();
    assert_eq!(world.browser().open(&link).await.status(), 410);
}

async fn a_name_that_is_bound_becomes_no_account(world: World) {
    let create = async || {
        let request = CreateAccountRequest {
            account: "crm:4711".to_owned(),
            password: PASSWORD.to_owned(),
        };
        world.caller(KEY).0.create_account(request).await
    };
    let link = bind_link(&world, "news", "crm:4711").await.unwrap();
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
    let refused = create().await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::AlreadyExists, "ACCOUNT_BOUND")
    );
    let unknown = get_account(&world, KEY, "crm:4711").await.unwrap_err();
    assert_eq!(reason(&unknown), "ACCOUNT_NOT_FOUND");

    let request = DeleteBindingRequest {
        app_id: "news".to_owned(),
        account: "crm:4711".to_owned(),
    };
    world.caller(KEY).0.delete_binding(request).await.unwrap();
    // What a team's link of before would bind is somebody else now.
    let link = bind_link(&world, "news", "crm:4711").await.unwrap();
    let (phone, callback) = world.scan(&link, WANG).await;
    create().await.unwrap();
    assert_eq!(world.browser().open(&link).await.status(), 410);
    text(phone.open(&callback).await, 410).await;
    assert!(!world.is_bound("crm:4711").await);
}

#[tokio::test]
async fn a_wechat_that_takes_long_is_a_page_within_ten_seconds() {
    let world = World::embedded().await;
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let (phone, callback) = world.scan(&link, WANG).await;
    // Each call is within its own five seconds.
    for endpoint in [EXCHANGE, "/sns/userinfo"] {
        let slow = serde_json::json!({ "endpoint": endpoint, "delay_ms": 4_000 });
        let slow = serde_json::from_value(slow).unwrap();
        world.wechat.add_fault(slow).unwrap();
    }
    let page = text(phone.open(&callback).await, 502).await;
    assert!(page.contains("重新扫描二维码"), "{page}");
    assert!(!world.is_bound("wang").await);
    assert_eq!(world.bind(&link, WANG).await.status(), 200);
}

#[tokio::test]
async fn a_binding_whose_answer_was_lost_is_one() {
    let world = World::with_servers().await;
    let desktop = world.desktop("wang").await;
    let (phone, callback) = world.scan(&desktop.link().await, WANG).await;
    // The row is there four seconds later, and auth-service waits for three.
    let database = storage::database(&world.database).await.unwrap();
    let slow = "CREATE TRIGGER slow AFTER INSERT ON binding FOR EACH ROW DO SLEEP(4)";
    database.execute_unprepared(slow).await.unwrap();
    let page = text(phone.open(&callback).await, 200).await;
    assert!(page.contains("绑定成功"), "{page}");
    assert!(world.is_bound("wang").await);
    assert!(desktop.page().await.contains("WeChat is bound"));
}

#[tokio::test]
async fn pages_speak_both_languages_and_load_nothing_from_elsewhere() {
    let world = World::embedded().await;
    let desktop = world.desktop("<wang>").await;
    let link = desktop.link().await;
    let (phone, callback) = world.scan(&link, WANG).await;
    let open = async |browser: &Browser, path: &str, language: &str| {
        let request = browser.request(Method::GET, path);
        browser
            .send(request.header(ACCEPT_LANGUAGE, language))
            .await
    };
    let stranger = world.browser();
    for (browser, path, chinese, english) in [
        (&stranger, "/login", "登录账号", "Sign in"),
        (
            &desktop.0,
            "/bind",
            "请用微信扫描二维码",
            "Scan the code with WeChat",
        ),
        (&phone, callback.as_str(), "绑定成功", "Bound"),
        (&desktop.0, "/bind", "已绑定微信", "WeChat is bound"),
        (
            &stranger,
            "/bind/scan?ticket=x",
            "二维码已失效",
            "This code is over",
        ),
        (
            &desktop.0,
            "/bind?app=shop",
            "没有这个公众号",
            "No such official account",
        ),
    ] {
        for (language, expected, lang) in [
            ("zh-CN,en;q=0.5", chinese, "zh-CN"),
            ("en-GB", english, "en"),
        ] {
            let answer = open(browser, path, language).await;
            let headers = answer.headers().clone();
            let page = answer.text().await.unwrap();
            assert!(page.contains(expected), "{page}");
            assert!(page.contains(&format!("<html lang=\"{lang}\"")), "{page}");
            assert!(!page.contains("<wang>"), "{page}");
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(headers["cache-control"], "no-store");
            // Forms of the page itself carry its origin.
            assert_eq!(headers["referrer-policy"], "same-origin");
            for inline in ["<style", "style=\"", "onclick", "javascript:"] {
                assert!(!page.contains(inline), "{inline} in {page}");
            }
            for (_, rest) in page
                .match_indices("src=\"")
                .map(|(at, found)| page.split_at(at + found.len()))
            {
                assert!(rest.starts_with('/') && !rest.starts_with("//"), "{rest}");
            }
        }
    }
    let script = stranger.open("/bind/follow.js").await;
    assert_eq!(
        script.headers()["content-type"],
        "text/javascript; charset=utf-8"
    );
    let page = open(&stranger, "/login?lang=en&app=news", "zh")
        .await
        .text()
        .await
        .unwrap();
    assert!(
        page.contains("Sign in") && page.contains("value=\"news\""),
        "{page}"
    );
}

#[tokio::test]
async fn with_https_cookies_are_of_this_host_and_encrypted_connections_alone() {
    let public_url = Some("https://auth.example.com".parse().unwrap());
    let world = World::start(Setup {
        public_url,
        ..Setup::default()
    })
    .await;
    world.account("wang").await;
    let browser = world.browser();
    let fields = [("account", "wang"), ("password", PASSWORD)];
    let plain = form(&browser, "/account/login", &fields).header(ORIGIN, "http://auth.example.com");
    assert_eq!(browser.send(plain).await.status(), 403);
    let own = form(&browser, "/account/login", &fields).header(ORIGIN, "https://auth.example.com");
    let account = set_cookies(&browser.send(own).await);
    let link = Desktop(browser).link().await;
    assert!(
        link.starts_with("https://auth.example.com/bind/scan?ticket="),
        "{link}"
    );
    let answer = world.browser().open(&link).await;
    let returned = parameter(see_other(&answer), "redirect_uri");
    assert_eq!(returned, "https://auth.example.com/callback");
    let phone = set_cookies(&answer);
    for (cookies, name, life) in [
        (account, "__Host-wxhub_account", "Max-Age=43200"),
        (phone, "__Host-wxhub_phone", "Max-Age=1200"),
    ] {
        let [(found, value, rest)] = &cookies[..] else {
            panic!("{cookies:?}")
        };
        assert_eq!((found.as_str(), value.len()), (name, 64));
        for attribute in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", life] {
            assert!(rest.contains(attribute), "{attribute} is not in {rest}");
        }
        assert!(!rest.contains("Domain"), "{rest}");
    }
}

/// The events of a browser that follows its link.
struct Events {
    answer: Response,
    text: String,
}

impl Events {
    async fn follow(browser: &Browser) -> Self {
        let answer = browser.open("/bind/status").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        Self {
            answer,
            text: String::new(),
        }
    }

    /// The next status, or nothing at the end.
    async fn next(&mut self) -> Option<Value> {
        let read = async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let event = event.to_owned();
                    self.text = rest.to_owned();
                    if let Some(data) = event.strip_prefix("event: status\ndata: ") {
                        return serde_json::from_str(data).ok();
                    }
                    continue;
                }
                let bytes = self.answer.chunk().await.unwrap()?;
                self.text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }
}

fn status(status: &str) -> Option<Value> {
    Some(serde_json::json!({ "status": status }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_follows_its_code_across_replicas() {
    let mut world = World::with_servers().await;
    let replica = world.replica().await;
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    // The load balancer sends the events to one replica, and the phone to the other.
    let elsewhere = Browser::new(replica);
    for (name, value) in desktop.0.cookies() {
        elsewhere.plant(&name, &value);
    }
    let mut here = Events::follow(&desktop.0).await;
    let mut there = Events::follow(&elsewhere).await;
    assert_eq!(here.next().await, status("waiting"));
    assert_eq!(there.next().await, status("waiting"));

    let phone = Browser::new(replica);
    let wechat = open_link(&phone, &link).await;
    assert_eq!(here.next().await, status("scanned"));
    assert_eq!(there.next().await, status("scanned"));
    let callback = world.consent(&wechat, WANG, |_| ());
    text(phone.open(&callback).await, 200).await;
    let nickname = world.binding("news", "wang").await.unwrap().nickname;
    let bound = serde_json::json!({ "status": "bound", "nickname": nickname });
    assert_eq!(here.next().await, Some(bound.clone()));
    assert_eq!(there.next().await, Some(bound));
    assert_eq!(here.next().await, None, "it ends");
    assert_eq!(there.next().await, None);
}

#[tokio::test]
async fn an_account_follows_its_code_with_eight_pages() {
    let world = World::embedded().await;
    let desktop = world.desktop("wang").await;
    desktop.link().await;
    let mut events = Vec::new();
    for _ in 0..8 {
        events.push(Events::follow(&desktop.0).await);
    }
    let refused = desktop.0.open("/bind/status").await;
    assert_eq!(refused.headers()[RETRY_AFTER], "1");
    let (code, body) = error(refused).await;
    assert_eq!((code, &body["code"]), (503, &Value::from("BUSY")));
    // Others have places of their own, and a page that is closed leaves its.
    let other = world.desktop("li").await;
    Events::follow(&other.0).await;
    events.pop();
    eventually("its place is free", PATIENCE, async || {
        desktop.0.open("/bind/status").await.status() == 200
    })
    .await;
}

#[tokio::test]
async fn who_signs_out_or_gets_another_password_follows_no_more() {
    let world = World::embedded().await;
    let desktop = world.desktop("wang").await;
    desktop.link().await;
    let mut events = Events::follow(&desktop.0).await;
    assert_eq!(events.next().await, status("waiting"));
    desktop.post("/account/logout").await;
    assert_eq!(events.next().await, status("expired"));
    assert_eq!(events.next().await, None);

    sign_in(&desktop.0, "wang", PASSWORD).await;
    desktop.link().await;
    let mut events = Events::follow(&desktop.0).await;
    assert_eq!(events.next().await, status("waiting"));
    set_password(&world, KEY, "wang").await.unwrap();
    assert_eq!(events.next().await, status("expired"));
    assert_eq!(events.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooled_down_name_is_refused_by_every_replica() {
    let mut world = World::with_servers().await;
    let replicas = [world.browser(), Browser::new(world.replica().await)];
    world.account("wang").await;
    // Guesses at once, on both, are three and no more.
    let mut guesses = JoinSet::new();
    for n in 0..20 {
        let browser = Browser::new(replicas[n % 2].address());
        guesses.spawn(async move {
            let answer = sign_in(&browser, "wang", &format!("wrong horse {n}")).await;
            answer.status().as_u16()
        });
    }
    let answers = guesses.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 401).count(), 3);
    assert_eq!(answers.iter().filter(|status| **status == 429).count(), 17);
    for browser in &replicas {
        assert_eq!(sign_in(browser, "wang", PASSWORD).await.status(), 429);
    }
    let mut redis = connection(&world);
    for kind in ["attempts", "cooldown"] {
        let keys: Vec<String> = redis.keys(format!("*:{kind}")).await.unwrap();
        for key in keys {
            assert!(redis.pttl::<_, i64>(&key).await.unwrap() > 0, "{key}");
            redis.del::<_, ()>(key).await.unwrap();
        }
    }
    for browser in &replicas {
        assert_eq!(
            see_other(&sign_in(browser, "wang", PASSWORD).await),
            "/bind"
        );
    }
}

fn connection(world: &World) -> redis::aio::ConnectionManager {
    let url = world.redis.as_ref().unwrap().url();
    storage::redis(&SecretString::from(url)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_over_is_replaced_and_told_as_such() {
    let world = World::with_servers().await;
    let desktop = world.desktop("wang").await;
    let link = desktop.link().await;
    let (phone, callback) = world.scan(&link, WANG).await;
    let mut events = Events::follow(&desktop.0).await;
    assert_eq!(events.next().await, status("scanned"));

    let mut redis = connection(&world);
    let keys: Vec<String> = redis.keys("*:bind_link").await.unwrap();
    let [key] = &keys[..] else { panic!("{keys:?}") };
    let left: i64 = redis.pttl(key).await.unwrap();
    assert!((500_000..=600_000).contains(&left), "{left}");
    redis.del::<_, ()>(key).await.unwrap();

    assert_eq!(events.next().await, status("expired"));
    assert_eq!(events.next().await, None);
    assert_eq!(world.browser().open(&link).await.status(), 410);
    text(phone.open(&callback).await, 410).await;
    assert!(!world.is_bound("wang").await);
    assert_ne!(desktop.link().await, link);
    assert_eq!(world.bind(&desktop.link().await, WANG).await.status(), 200);
    // Every key ends by itself, and none tells who it is about.
    let keys: Vec<String> = redis.keys("*").await.unwrap();
    for key in keys {
        assert!(!key.contains("wang") && !key.contains(WANG), "{key}");
        let left: i64 = redis.pttl(&key).await.unwrap();
        assert!(left != -1 || key.contains("epoch"), "{key} stays for ever");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_away_nothing_hangs_and_nobody_is_bound() {
    let world = World::with_servers().await;
    let desktop = world.desktop("wang").await;
    let (phone, callback) = world.scan(&desktop.link().await, WANG).await;
    let redis = world.redis.as_ref().unwrap();
    redis.pause();
    let began = Instant::now();
    for answer in [
        desktop.0.open("/bind").await,
        phone.open(&callback).await,
        sign_in(&world.browser(), "wang", PASSWORD).await,
    ] {
        assert_eq!(answer.headers()["retry-after"], "1");
        text(answer, 503).await;
    }
    let (code, _) = error(desktop.0.open("/bind_qcode").await).await;
    assert_eq!(code, 503);
    assert!(began.elapsed() < Duration::from_secs(30));
    redis.resume();
    eventually("the phone is bound", PATIENCE, async || {
        phone.open(&callback).await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_takes_as_long_as_a_known_one() {
    let world = World::embedded().await;
    let browser = world.browser();
    let (mut n, mut best) = (0, [f64::MAX; 2]);
    // The best of many: what else the machine does slows some, and speeds up none.
    eventually("both take as long", PATIENCE, async || {
        n += 1;
        // A name of its own each time: none cools down.
        let known = format!("known{n}");
        world.account(&known).await;
        for (best, name) in best.iter_mut().zip([known, format!("nobody{n}")]) {
            let began = Instant::now();
            let answer = sign_in(&browser, &name, "wrong horse").await;
            assert_eq!(answer.status(), 401);
            *best = began.elapsed().as_secs_f64().min(*best);
        }
        let [known, unknown] = best;
        n >= 5 && (0.5..2.0).contains(&(unknown / known))
    })
    .await;
}

/// What a sign-in and a binding hold that no log may: also what came of wrong ones.
pub(crate) async fn secrets_of_a_binding(world: &World) -> Vec<String> {
    let name = "private-account-name";
    let desktop = world.desktop(name).await;
    assert_eq!(sign_in(&desktop.0, name, "wrong horse").await.status(), 401);
    let link = desktop.link().await;
    let (phone, callback) = world.scan(&link, WANG).await;
    let mut secrets = vec![
        name.to_owned(),
        PASSWORD.to_owned(),
        "wrong horse".to_owned(),
        WANG.to_owned(),
        parameter(&link, "ticket"),
        parameter(&callback, "state"),
        parameter(&callback, "code"),
    ];
    secrets.extend(desktop.0.cookies().into_values());
    secrets.extend(phone.cookies().into_values());
    text(phone.open(&callback).await, 200).await;
    text(phone.open(&callback).await, 200).await;
    text(world.browser().open(&callback).await, 410).await;
    secrets.push(world.binding("news", name).await.unwrap().nickname);
    text(world.browser().open(&link).await, 410).await;
    desktop.post("/bind/unbind").await;
    secrets
}
