//! Encrypted data, phone numbers, and the session_keys that they hang on.

use axum::{Json, Router, routing::get};
use proto::auth::v1::{
    CheckSessionKeyRequest, DecryptUserDataRequest, GetPhoneNumberRequest, GetPhoneNumberResponse,
    ResetSessionKeyRequest,
};
use reqwest::Method;
use sandbox::{UserData, UserDataKind};
use serde_json::{Value, json};
use test_support::listener;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{CATALOG, KEY, NEWS_KEY, SHOP, Setup, World, error};

const CHECK: &str = "/wxa/checksession";
const USER: &str = "oUSERUSERUSERUSERUSERUSERUSE";
const OTHER: &str = "oOTHEROTHEROTHEROTHEROTHEROT";

with_either_store!(
    user_info_and_phone_numbers_are_opened,
    a_reset_session_key_is_kept,
    a_session_key_that_is_gone_asks_for_a_new_login,
);

impl World {
    /// Somebody logs in; answers the session.
    async fn logged_in(&self, open_id: &str) -> String {
        self.login(&self.js_code(Some(open_id))).await
    }

    /// The mini program asks WeChat for its user's data.
    fn data(&self, open_id: &str, kind: UserDataKind) -> UserData {
        self.wechat.user_data(SHOP, Some(open_id), kind).unwrap()
    }

    /// And hands it on.
    async fn post_user_data(&self, session: &str, body: &Value) -> (u16, Value) {
        let answer = self.post_as(session, "/user-data", body.to_string()).await;
        if answer.status() == 200 {
            assert_eq!(answer.headers()["cache-control"], "no-store");
            return (200, answer.json().await.unwrap());
        }
        error(answer).await
    }

    async fn refused(&self, session: &str, body: &Value) -> (u16, String) {
        let (status, body) = self.post_user_data(session, body).await;
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    }

    fn checks(&self) -> u64 {
        self.wechat.calls(None).total(CHECK)
    }
}

fn signed(data: &UserData) -> Value {
    json!({
        "encrypted_data": data.encrypted_data,
        "iv": data.iv,
        "raw_data": data.raw_data,
        "signature": data.signature,
    })
}

fn unsigned(data: &UserData) -> Value {
    json!({ "encrypted_data": data.encrypted_data, "iv": data.iv })
}

/// The same with one digit of its base64 another: `at` the start nothing is left of the JSON, further on it stays JSON.
fn changed(mut body: Value, at: usize) -> Value {
    let text = body["encrypted_data"].as_str().unwrap();
    let other = if text[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    let text = format!("{}{other}{}", &text[..at], &text[at + 1..]);
    body["encrypted_data"] = json!(text);
    body
}

async fn user_info_and_phone_numbers_are_opened(world: World) {
    let session = world.logged_in(USER).await;
    let info = world.data(USER, UserDataKind::UserInfo);
    for body in [signed(&info), unsigned(&info)] {
        let (status, data) = world.post_user_data(&session, &body).await;
        assert_eq!(status, 200, "{data}");
        assert_eq!(data["openId"], USER);
        assert!(!data["nickName"].as_str().unwrap().is_empty());
        assert_eq!(data["watermark"]["appid"], SHOP);
    }
    let phone = world.data(USER, UserDataKind::PhoneNumber);
    // What is null is not sent.
    let (status, data) = world.post_user_data(&session, &signed(&phone)).await;
    assert_eq!(status, 200, "{data}");
    assert!(!data["purePhoneNumber"].as_str().unwrap().is_empty());

    let mut dev = world.caller(KEY);
    let request = DecryptUserDataRequest {
        session_token: session,
        encrypted_data: info.encrypted_data,
        iv: info.iv,
        raw_data: info.raw_data.unwrap(),
        signature: info.signature.unwrap(),
    };
    let answer = dev.0.decrypt_user_data(request).await.unwrap();
    let data: Value = serde_json::from_str(&answer.into_inner().json).unwrap();
    assert_eq!(data["openId"], USER);
    // Nobody had to ask WeChat.
    assert_eq!(world.checks(), 0);
}

#[tokio::test]
async fn a_client_that_keeps_cookies_shows_its_session_by_one() {
    let world = World::embedded().await;
    let browser = world.browser();
    let code = json!({ "code": world.js_code(Some(USER)), "appId": SHOP });
    let login = browser.request(Method::POST, "/auth/authorize");
    let login = login.body(code.to_string());
    assert_eq!(browser.send(login).await.status(), 200);
    let data = signed(&world.data(USER, UserDataKind::UserInfo));
    let request = browser.request(Method::POST, "/user-data");
    let answer = browser.send(request.body(data.to_string())).await;
    assert_eq!(answer.status(), 200);
    let data: Value = answer.json().await.unwrap();
    assert_eq!(data["openId"], USER);
}

#[tokio::test]
async fn the_query_says_which_of_several_cookies_is_meant() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    let body = signed(&world.data(USER, UserDataKind::UserInfo)).to_string();
    let browser = world.browser();
    for app in ["shop", "news"] {
        browser.plant(&format!("wxhub_session_{app}"), &session);
    }
    let post = async |path| {
        let request = browser.request(Method::POST, path);
        browser.send(request.body(body.clone())).await
    };
    let (status, told) = error(post("/user-data").await).await;
    assert_eq!((status, &told["code"]), (400, &json!("INVALID_ARGUMENT")));
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("news, shop"), "{message}");
    // What is in an app's cookie counts for that app alone.
    let (status, told) = error(post("/user-data?app=news").await).await;
    assert_eq!((status, &told["code"]), (401, &json!("SESSION_INVALID")));
    let opened = post("/user-data?app=shop").await;
    assert_eq!(opened.status(), 200);
    let data: Value = opened.json().await.unwrap();
    assert_eq!(data["openId"], USER);
}

#[tokio::test]
async fn what_transport_does_to_base64_is_undone() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    let mut data = world.data(USER, UserDataKind::UserInfo);
    while !(data.encrypted_data.contains('+') && data.iv.contains('+')) {
        data = world.data(USER, UserDataKind::UserInfo);
    }
    data.encrypted_data = data.encrypted_data.replace('+', " ");
    data.iv = data.iv.replace('+', " ");
    data.encrypted_data.insert_str(76, "\r\n");
    let (status, body) = world.post_user_data(&session, &signed(&data)).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn an_outdated_session_key_asks_for_a_new_login() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    // The device calls wx.login, which replaces the key, but no code of it reaches us.
    world.js_code(Some(USER));
    let data = world.data(USER, UserDataKind::UserInfo);
    for body in [signed(&data), unsigned(&data), signed(&data)] {
        let told = world.refused(&session, &body).await;
        assert_eq!(told, (401, "SESSION_KEY_OUTDATED".to_owned()));
    }
    // Whatever arrives, WeChat is asked about one key once.
    assert_eq!(world.checks(), 1);

    let session = world.logged_in(USER).await;
    let data = world.data(USER, UserDataKind::UserInfo);
    let (status, _) = world.post_user_data(&session, &signed(&data)).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn changed_data_is_told_apart_from_an_outdated_key() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    let data = world.data(USER, UserDataKind::UserInfo);
    let invalid = (400, "DATA_INVALID".to_owned());

    // The signature shows that the key is right, and what the data should be.
    for at in [0, 60] {
        let told = world.refused(&session, &changed(signed(&data), at)).await;
        assert_eq!(told, invalid, "{at}");
    }
    // That it decrypts shows so, too.
    for (field, text) in [
        ("raw_data", "{}"),
        ("signature", "75e81ceda165f4ffa64f4068af58c64b"),
    ] {
        let mut body = signed(&data);
        body[field] = json!(text);
        assert_eq!(world.refused(&session, &body).await, invalid, "{field}");
    }
    assert_eq!(world.checks(), 0);
    // Here WeChat alone can tell.
    for _ in 0..3 {
        let told = world.refused(&session, &changed(unsigned(&data), 0)).await;
        assert_eq!(told, invalid);
    }
    assert_eq!(world.checks(), 1);
}

#[tokio::test]
async fn data_of_another_user_is_invalid() {
    let world = World::embedded().await;
    world.logged_in(OTHER).await;
    let session = world.logged_in(USER).await;
    for kind in [UserDataKind::UserInfo, UserDataKind::PhoneNumber] {
        let told = world
            .refused(&session, &unsigned(&world.data(OTHER, kind)))
            .await;
        assert_eq!(told, (400, "DATA_INVALID".to_owned()));
    }
}

#[tokio::test]
async fn data_that_was_fetched_before_the_login_is_to_be_fetched_again() {
    let world = World::embedded().await;
    world.logged_in(USER).await;
    let data = world.data(USER, UserDataKind::UserInfo);
    let session = world.logged_in(USER).await;
    let (status, body) = world.post_user_data(&session, &signed(&data)).await;
    assert_eq!((status, &body["code"]), (400, &json!("DATA_INVALID")));
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("before the latest login"), "{message}");
}

#[tokio::test]
async fn while_wechat_cannot_be_asked_the_user_logs_in_again() {
    for away in [true, false] {
        let world = World::embedded().await;
        let session = world.logged_in(USER).await;
        let data = world.data(USER, UserDataKind::UserInfo);
        world.tokens.set_away(away);
        if !away {
            let fault = json!({ "endpoint": CHECK, "errcode": -1 });
            let fault = serde_json::from_value(fault).unwrap();
            world.wechat.add_fault(fault).unwrap();
        }
        let told = world.refused(&session, &changed(unsigned(&data), 0)).await;
        assert_eq!(told, (401, "SESSION_KEY_OUTDATED".to_owned()));
    }
}

#[tokio::test]
async fn data_of_the_future_is_invalid() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    world
        .wechat
        .advance_clock(std::time::Duration::from_secs(45));
    let data = world.data(USER, UserDataKind::UserInfo);
    let (status, _) = world.post_user_data(&session, &signed(&data)).await;
    assert_eq!(status, 200);
    world
        .wechat
        .advance_clock(std::time::Duration::from_secs(60));
    let data = world.data(USER, UserDataKind::UserInfo);
    let told = world.refused(&session, &signed(&data)).await;
    assert_eq!(told, (400, "DATA_INVALID".to_owned()));
}

/// WeChat's own example, which is of 2016: it decrypts, and is too old.
#[tokio::test]
async fn old_data_is_expired_and_data_of_another_app_invalid() {
    const EXAMPLE: &str = "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZMQmRzooG2xrDcvSnxIMXFufNstNGTyaGS9uT5geRa0W4oTOb1WT7fJlAC+oNPdbB+3hVbJSRgv+4lGOETKUQz6OYStslQ142dNCuabNPGBzlooOmB231qMM85d2/fV6ChevvXvQP8Hkue1poOFtnEtpyxVLW1zAo6/1Xx1COxFvrc2d7UL/lmHInNlxuacJXwu0fjpXfz/YqYzBIBzD6WUfTIF9GRHpOn/Hz7saL8xz+W//FRAUid1OksQaQx4CMs8LOddcQhULW4ucetDf96JcR3g0gfRK4PC7E/r7Z6xNrXd2UIeorGj5Ef7b1pJAYB6Y5anaHqZ9J6nKEBvB4DnNLIVWSgARns/8wR2SiRS7MNACwTyrGvt9ts8p12PKFdlqYTopNHR1Vf7XjfhQlVsAJdNiKdYmYVoKlaRv85IfVunYzO0IKXsyl7JCUjCpoG20f0a04COwfneQAGGwd5oa+T8yO5hzuyDb/XcxxmK01EpqOyuxINew==";
    let exchanged = || async {
        Json(json!({
            "openid": "oGZUI0egBJY1zhBYw2KhdUfwVJJE",
            "session_key": "tiihtNczf5v6AKRyjwEUhQ==",
        }))
    };
    let listener = listener().await;
    let wechat = listener.local_addr().unwrap();
    let router = Router::new().route("/sns/jscode2session", get(exchanged));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await });

    let body = json!({ "encrypted_data": EXAMPLE, "iv": "r7BXXKkLb8qrSNn05n0qiA==" });
    for (app_id, told) in [
        ("wx4f4bc4dec97d474b", "DATA_EXPIRED"),
        (SHOP, "DATA_INVALID"),
    ] {
        let world = World::start(Setup {
            catalog: Some(CATALOG.replace(SHOP, app_id)),
            wechat: Some(wechat),
            ..Setup::default()
        })
        .await;
        let session = world.login("code").await;
        assert_eq!(world.refused(&session, &body).await, (400, told.to_owned()));
    }
}

async fn a_session_key_that_is_gone_asks_for_a_new_login(world: World) {
    let mut dev = world.caller(KEY);
    let request = || ResetSessionKeyRequest {
        app_id: "shop".to_owned(),
        open_id: USER.to_owned(),
    };
    let check = || CheckSessionKeyRequest {
        app_id: "shop".to_owned(),
        open_id: USER.to_owned(),
    };
    // Nobody logged in.
    let status = dev.0.reset_session_key(request()).await.unwrap_err();
    assert_eq!(reason(&status), "SESSION_KEY_OUTDATED");
    let answer = dev.0.check_session_key(check()).await.unwrap();
    assert!(!answer.into_inner().valid);
    assert_eq!(world.checks(), 0);

    world.logged_in(USER).await;
    let answer = dev.0.check_session_key(check()).await.unwrap();
    assert!(answer.into_inner().valid);
    // Replaced behind our back.
    world.js_code(Some(USER));
    let answer = dev.0.check_session_key(check()).await.unwrap();
    assert!(!answer.into_inner().valid);
    let status = dev.0.reset_session_key(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "SESSION_KEY_OUTDATED");
}

async fn a_reset_session_key_is_kept(world: World) {
    let session = world.logged_in(USER).await;
    let before = world.data(USER, UserDataKind::UserInfo);
    let mut dev = world.caller(KEY);
    let request = ResetSessionKeyRequest {
        app_id: SHOP.to_owned(),
        open_id: USER.to_owned(),
    };
    dev.0.reset_session_key(request).await.unwrap();
    let told = world.refused(&session, &signed(&before)).await;
    assert_eq!(told, (400, "DATA_INVALID".to_owned()));
    let after = world.data(USER, UserDataKind::UserInfo);
    let (status, _) = world.post_user_data(&session, &signed(&after)).await;
    assert_eq!(status, 200);
}

impl World {
    async fn phone_number(
        &self,
        code: &str,
        open_id: &str,
    ) -> Result<GetPhoneNumberResponse, Status> {
        let request = GetPhoneNumberRequest {
            app_id: "shop".to_owned(),
            code: code.to_owned(),
            open_id: open_id.to_owned(),
        };
        let mut dev = self.caller(KEY);
        Ok(dev.0.get_phone_number(request).await?.into_inner())
    }

    fn phone_code(&self) -> String {
        self.wechat.phone_code(SHOP, Some(USER)).unwrap().code
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[tokio::test]
async fn a_phone_number_comes_by_code_once() {
    let world = World::embedded().await;
    let code = world.phone_code();
    let number = world.phone_number(&code, USER).await.unwrap();
    assert!(!number.phone_number.is_empty());
    assert_eq!(number.country_code, "86");

    let foreign = world.phone_code();
    for (code, open_id) in [(code.as_str(), ""), ("made-up", ""), (&foreign, OTHER)] {
        let status = world.phone_number(code, open_id).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(reason(&status), "PHONE_CODE_INVALID");
        let info = status.get_details_error_info().unwrap();
        assert!(info.metadata.contains_key("errcode"));
    }
}

#[tokio::test]
async fn a_dead_token_costs_a_report_and_nothing_else() {
    let world = World::embedded().await;
    world.phone_number(&world.phone_code(), "").await.unwrap();
    world.wechat.invalidate(SHOP).unwrap();
    world.phone_number(&world.phone_code(), "").await.unwrap();
    assert_eq!(world.tokens.reports(), 1);
}

#[tokio::test]
async fn wechats_refusals_and_outages_have_their_own_answers() {
    let world = World::embedded().await;
    for (errcode, code, told) in [
        (-1, Code::Unavailable, "WECHAT_UNAVAILABLE"),
        (45011, Code::Unavailable, "WECHAT_UNAVAILABLE"),
        (45009, Code::ResourceExhausted, "WECHAT_QUOTA_EXHAUSTED"),
        (48001, Code::FailedPrecondition, "WECHAT_CONFIG_INVALID"),
        (40013, Code::InvalidArgument, "PHONE_CODE_INVALID"),
    ] {
        let fault = json!({ "endpoint": "/wxa/business/getuserphonenumber", "errcode": errcode });
        let fault = serde_json::from_value(fault).unwrap();
        world.wechat.add_fault(fault).unwrap();
        let status = world
            .phone_number(&world.phone_code(), "")
            .await
            .unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, told));
    }
    let world = World::embedded().await;
    world.tokens.set_away(true);
    let status = world.phone_number("code", "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "PEER_UNAVAILABLE");
    assert!(status.get_details_retry_info().is_some());
}

#[tokio::test]
async fn wrong_fields_are_named_and_other_apps_closed() {
    let world = World::embedded().await;
    let session = world.logged_in(USER).await;
    let data = world.data(USER, UserDataKind::UserInfo);
    for (field, text) in [
        ("encrypted_data", ""),
        ("encrypted_data", "AAAA"),
        ("encrypted_data", "?"),
        ("iv", ""),
        ("iv", "AAAA"),
        ("signature", ""),
        ("raw_data", ""),
    ] {
        let mut body = signed(&data);
        body[field] = json!(text);
        let (status, body) = world.post_user_data(&session, &body).await;
        assert_eq!((status, &body["code"]), (400, &json!("INVALID_ARGUMENT")));
        let message = body["message"].as_str().unwrap();
        assert!(message.starts_with(field), "{message}");
    }
    let told = world.refused("nothing", &signed(&data)).await;
    assert_eq!(told, (401, "SESSION_INVALID".to_owned()));

    let mut dev = world.caller(KEY);
    for (app, open_id, code) in [
        ("news", USER, Code::InvalidArgument),
        ("shop", "", Code::InvalidArgument),
        ("", USER, Code::InvalidArgument),
        ("nothing", USER, Code::NotFound),
    ] {
        let (app_id, open_id) = (app.to_owned(), open_id.to_owned());
        let check = CheckSessionKeyRequest {
            app_id: app_id.clone(),
            open_id: open_id.clone(),
        };
        let status = dev.0.check_session_key(check).await.unwrap_err();
        assert_eq!(status.code(), code, "{app}");
        let reset = ResetSessionKeyRequest { app_id, open_id };
        let status = dev.0.reset_session_key(reset).await.unwrap_err();
        assert_eq!(status.code(), code, "{app}");
    }
    for code in [String::new(), "c".repeat(513)] {
        let status = world.phone_number(&code, "").await.unwrap_err();
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[0].field, "code");
    }
    let request = DecryptUserDataRequest {
        session_token: session,
        encrypted_data: data.encrypted_data,
        iv: data.iv,
        ..DecryptUserDataRequest::default()
    };
    let mut news_team = world.caller(NEWS_KEY);
    let status = news_team.0.decrypt_user_data(request).await.unwrap_err();
    assert_eq!(reason(&status), "SESSION_INVALID");
}
