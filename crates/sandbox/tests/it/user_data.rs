//! What a mini program's server learns of its user: signed and encrypted data, phone numbers, and whether the
//! `session_key` still holds.

use axum::http::{Method, StatusCode};
use sandbox::UserDataKind;
use serde_json::{Value, json};
use wechat::{AppId, SessionKey, crypto};

use crate::world::{NEWS, SHOP, SHOP_SECRET, World, errcode, text};

const SOMEBODY: &str = "oabcdefghijklmnopqrstuvwxyz1";

/// Logs the default user in: who it is, and the server's `session_key`.
async fn log_in(world: &World) -> (String, SessionKey) {
    let login = world.state.login(SHOP, None).unwrap();
    let session = world.exchange(SHOP, SHOP_SECRET, &login.js_code).await;
    (
        login.open_id,
        SessionKey::new(text(&session["session_key"])),
    )
}

#[tokio::test]
async fn user_info_is_signed_and_encrypted_under_the_current_key() {
    let world = World::start().await;
    world
        .state
        .user_data(SHOP, None, UserDataKind::UserInfo)
        .unwrap_err();
    let (open_id, key) = log_in(&world).await;
    let data = world
        .state
        .user_data(SHOP, None, UserDataKind::UserInfo)
        .unwrap();
    assert_eq!(data.open_id, open_id);
    let raw_data = data.raw_data.unwrap();
    assert_eq!(
        data.signature.unwrap(),
        crypto::user_data_signature(&raw_data, &key)
    );
    let app = AppId::try_from(SHOP).unwrap();
    let clear = crypto::decrypt_user_data(&key, &data.encrypted_data, &data.iv, &app).unwrap();
    let raw: Value = serde_json::from_str(&raw_data).unwrap();
    assert_eq!(clear["nickName"], raw["nickName"]);
    assert_eq!(clear["openId"], json!(open_id));
    assert!(raw.get("openId").is_none() && raw.get("watermark").is_none());
    assert!(clear["watermark"]["timestamp"].as_u64().unwrap() > 1_700_000_000);

    // Another wx.login replaces the key before the server hears of it.
    world.state.login(SHOP, None).unwrap();
    let data = world
        .state
        .user_data(SHOP, None, UserDataKind::UserInfo)
        .unwrap();
    let late = crypto::decrypt_user_data(&key, &data.encrypted_data, &data.iv, &app);
    assert_eq!(late.unwrap_err(), crypto::DataError::SessionKeyOutOfDate);
}

#[tokio::test]
async fn a_phone_number_comes_encrypted_or_by_code() {
    let world = World::start().await;
    let (_, key) = log_in(&world).await;
    let body = json!({"app_id": SHOP, "kind": "phone_number"});
    let (status, data) = world.control(Method::POST, "user-data", &body).await;
    assert_eq!(
        (status, &data["raw_data"], &data["signature"]),
        (StatusCode::OK, &Value::Null, &Value::Null)
    );
    let app = AppId::try_from(SHOP).unwrap();
    let (sealed, iv) = (text(&data["encrypted_data"]), text(&data["iv"]));
    let clear = crypto::decrypt_user_data(&key, &sealed, &iv, &app).unwrap();

    let token = world.token(SHOP).await;
    let path = format!("/wxa/business/getuserphonenumber?access_token={token}");
    let (_, pressed) = world
        .control(Method::POST, "phone-code", &json!({"app_id": SHOP}))
        .await;
    let answer = world
        .post(
            &path,
            &json!({"code": pressed["code"], "openid": pressed["open_id"]}),
        )
        .await;
    assert_eq!(answer["phone_info"]["phoneNumber"], clear["phoneNumber"]);
    assert_eq!(answer["phone_info"]["countryCode"], "86");
    assert_eq!(answer["phone_info"]["watermark"]["appid"], SHOP);
}

#[tokio::test]
async fn a_phone_code_is_its_apps_and_its_users_once_for_five_minutes() {
    let mut config = sandbox::Config::dev("http://127.0.0.1:1");
    let mut other = config.accounts[0].clone();
    other.app_id = "wx0000000000000003".to_owned();
    other.original_id = "gh_000000000003".to_owned();
    config.accounts.push(other);
    let world = World::with(config).await;
    let token = world.token(SHOP).await;
    let ask = async |token: &str, body: Value| {
        let path = format!("/wxa/business/getuserphonenumber?access_token={token}");
        errcode(&world.post(&path, &body).await)
    };
    let press = |app_id: &str| world.state.phone_code(app_id, None).unwrap().code;

    let foreign = press("wx0000000000000003");
    assert_eq!(ask(&token, json!({"code": foreign})).await, 40013);
    let code = press(SHOP);
    assert_eq!(ask(&token, json!({"code": code})).await, 0);
    assert_eq!(ask(&token, json!({"code": code})).await, 40029);
    assert_eq!(ask(&token, json!({"code": "forged"})).await, 40029);
    assert_eq!(ask(&token, json!({})).await, 41008);
    let code = press(SHOP);
    assert_eq!(
        ask(&token, json!({"code": code, "openid": SOMEBODY})).await,
        40003
    );
    let code = press(SHOP);
    world.pass(300);
    assert_eq!(ask(&token, json!({"code": code})).await, 40029);
    let official = world.token(NEWS).await;
    assert_eq!(ask(&official, json!({"code": press(SHOP)})).await, 48001);
    // The code of wx.login is not the button's.
    let js_code = world.state.login(SHOP, None).unwrap().js_code;
    assert_eq!(ask(&token, json!({"code": js_code})).await, 40029);
}

#[tokio::test]
async fn a_session_key_is_checked_and_reset() {
    let world = World::start().await;
    let token = world.token(SHOP).await;
    let (open_id, key) = log_in(&world).await;
    let ask = async |path: &str, open_id: &str, key: &SessionKey, sig_method: &str| {
        let signature = crypto::session_signature(key, "");
        let query = format!(
            "access_token={token}&openid={open_id}&signature={signature}&sig_method={sig_method}"
        );
        world.get(&format!("/wxa/{path}?{query}")).await
    };
    let check = async |open_id: &str, key: &SessionKey| {
        errcode(&ask("checksession", open_id, key, "hmac_sha256").await)
    };
    assert_eq!(check(&open_id, &key).await, 0);
    assert_eq!(check(&open_id, &SessionKey::new("other")).await, 87009);
    assert_eq!(check(SOMEBODY, &key).await, 40003);
    assert_eq!(check("", &key).await, 41009);
    assert_eq!(
        errcode(&ask("checksession", &open_id, &key, "md5").await),
        87008
    );
    world.state.user(SHOP, Some(SOMEBODY), None).unwrap();
    assert_eq!(check(SOMEBODY, &key).await, 87007);

    let reset = ask("resetusersessionkey", &open_id, &key, "hmac_sha256").await;
    assert_eq!(reset["openid"], json!(open_id));
    assert_eq!(check(&open_id, &key).await, 87009);
    let fresh = SessionKey::new(text(&reset["session_key"]));
    assert_eq!(check(&open_id, &fresh).await, 0);
    let again = ask("resetusersessionkey", &open_id, &key, "hmac_sha256").await;
    assert_eq!(errcode(&again), 87009);
}
