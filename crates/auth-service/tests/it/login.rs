//! Codes become sessions, each once.

use std::collections::BTreeSet;

use proto::auth::v1::GetUserRequest;
use sea_orm::{ConnectionTrait as _, Statement};
use serde_json::{Value, json};
use service_kit::storage;
use test_support::listener;
use tokio::{io::AsyncWriteExt as _, task::JoinSet};
use tonic::Code;

use crate::{
    oauth::sign_in,
    world::{CODE_TO_SESSION, KEY, NEWS, NEWS_KEY, SHOP, Setup, World, error},
};

with_either_store!(
    a_device_logs_in_is_known_and_logs_out,
    a_login_takes_the_place_of_the_session_that_comes_with_it,
    a_caller_logs_a_user_in_verifies_and_revokes,
    one_code_from_a_hundred_requests_makes_one_session,
    parallel_first_logins_make_one_user,
    openids_that_differ_in_case_are_two_users,
    what_a_later_login_does_not_say_stays,
);

async fn a_device_logs_in_is_known_and_logs_out(world: World) {
    let answer = world.post_login(&world.js_code(None)).await;
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let token = answer.headers()["authorization"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(token.len(), 43);

    for authorization in [token.clone(), format!("Bearer {token}")] {
        let answer = world.me(&authorization).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let me: Value = answer.json().await.unwrap();
        assert_eq!(me["app_id"], SHOP);
        assert_eq!(me["nickname"], "");
        assert!(me["open_id"].as_str().unwrap().starts_with('o'));
        assert!(me["expire_time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(me["user_id"].as_str().unwrap().len(), 36);
    }

    for _ in 0..2 {
        assert_eq!(world.logout(&token).await.status(), 204);
    }
    let (status, body) = error(world.me(&token).await).await;
    assert_eq!(
        (status, body["code"].as_str()),
        (401, Some("SESSION_INVALID"))
    );
}

async fn a_login_takes_the_place_of_the_session_that_comes_with_it(world: World) {
    let login = async |authorization: &str| {
        let body = json!({ "js_code": world.js_code(None) }).to_string();
        let answer = world.post_as(authorization, "/login", body).await;
        assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap());
        answer.headers()["authorization"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    let first = world.login(&world.js_code(None)).await;
    let second = login(&format!("Bearer {first}")).await;
    assert_eq!(world.me(&first).await.status(), 401);
    assert_eq!(world.me(&second).await.status(), 200);

    // Another app's session stays, and what is none does no harm.
    let browser = world.browser();
    sign_in(&world, &browser).await;
    let news = browser.cookies()["wxhub_session_news"].clone();
    for other in [&news, &first, "", &"x".repeat(1_000)] {
        let another = login(other).await;
        assert_eq!(world.me(&another).await.status(), 200);
    }
    assert_eq!(world.me(&news).await.status(), 200);
    assert_eq!(world.me(&second).await.status(), 200);
}

async fn a_caller_logs_a_user_in_verifies_and_revokes(world: World) {
    let mut dev = world.caller(KEY);
    // By name, by app_id, and not at all, since there is one mini program.
    for app in ["shop", SHOP, ""] {
        let code = world.js_code(None);
        let session = dev.login(app, &code, " 小明\u{7} ").await.unwrap();
        let user = session.user.unwrap();
        assert_eq!(
            (user.app_id.as_str(), user.nickname.as_str()),
            (SHOP, "小明")
        );
        assert!(!user.union_id.is_empty());
        assert!(user.create_time.is_some() && user.last_login_time.is_some());

        let verified = dev.verify(&session.session_token).await.unwrap();
        let known = verified.user.unwrap();
        assert_eq!(verified.app_id, SHOP);
        assert!(verified.expire_time.unwrap().seconds >= session.expire_time.unwrap().seconds);
        assert_eq!(
            (&known.user_id, &known.open_id, &known.union_id),
            (&user.user_id, &user.open_id, &user.union_id)
        );

        let by_id = GetUserRequest {
            user_id: user.user_id.clone(),
            ..Default::default()
        };
        let by_open_id = GetUserRequest {
            app_id: "shop".to_owned(),
            open_id: user.open_id.clone(),
            ..Default::default()
        };
        assert_eq!(dev.user(by_id).await.unwrap(), user);
        assert_eq!(dev.user(by_open_id).await.unwrap(), user);

        for _ in 0..2 {
            dev.revoke(&session.session_token).await.unwrap();
        }
        let status = dev.verify(&session.session_token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
}

async fn one_code_from_a_hundred_requests_makes_one_session(world: World) {
    let world = std::sync::Arc::new(world);
    let code = world.js_code(None);
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (world, code) = (world.clone(), code.clone());
        requests.spawn(async move { world.login(&code).await });
    }
    let tokens: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(world.exchanges(), 1);
    let token = tokens.first().unwrap();
    assert_eq!(world.me(token).await.status(), 200);
}

async fn parallel_first_logins_make_one_user(world: World) {
    let world = std::sync::Arc::new(world);
    let mut logins = JoinSet::new();
    for _ in 0..50 {
        let (code, mut dev) = (world.js_code(None), world.caller(KEY));
        logins.spawn(async move { dev.login("shop", &code, "").await.unwrap() });
    }
    let sessions = logins.join_all().await;
    let tokens: BTreeSet<_> = sessions
        .iter()
        .map(|session| &session.session_token)
        .collect();
    assert_eq!(tokens.len(), 50);
    let users: BTreeSet<_> = sessions
        .iter()
        .map(|session| &session.user.as_ref().unwrap().user_id)
        .collect();
    assert_eq!(users.len(), 1);
    assert_eq!(rows(&world).await, 1);
}

async fn openids_that_differ_in_case_are_two_users(world: World) {
    let mut dev = world.caller(KEY);
    let open_ids = [
        "oAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "oaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    let mut users = BTreeSet::new();
    for open_id in open_ids {
        let code = world.js_code(Some(open_id));
        let user = dev.login("shop", &code, "").await.unwrap().user.unwrap();
        assert_eq!(user.open_id, open_id);
        users.insert(user.user_id);
    }
    assert_eq!(users.len(), 2);
    for open_id in open_ids {
        let request = GetUserRequest {
            app_id: "shop".to_owned(),
            open_id: open_id.to_owned(),
            ..Default::default()
        };
        assert_eq!(dev.user(request).await.unwrap().open_id, open_id);
    }
}

async fn what_a_later_login_does_not_say_stays(world: World) {
    let mut dev = world.caller(KEY);
    let mut login = async |nickname: &str| {
        let code = world.js_code(None);
        dev.login("shop", &code, nickname)
            .await
            .unwrap()
            .user
            .unwrap()
    };
    let first = login("小明").await;
    let second = login("").await;
    assert_eq!(second.nickname, "小明");
    assert_eq!(second.create_time, first.create_time);
    let (before, after) = (
        first.last_login_time.unwrap(),
        second.last_login_time.unwrap(),
    );
    assert!((before.seconds, before.nanos) < (after.seconds, after.nanos));
    assert_eq!(login("🙂").await.nickname, "🙂");
}

#[tokio::test]
async fn a_login_goes_on_when_the_client_hangs_up() {
    // A WeChat that answers once, and only when the client is gone.
    let listener = listener().await;
    let world = World::start(Setup {
        wechat: Some(listener.local_addr().unwrap()),
        ..Setup::default()
    })
    .await;
    let mut connection = tokio::select! {
        answer = world.post_login("code") => unreachable!("{answer:?}"),
        accepted = listener.accept() => accepted.unwrap().0,
    };
    let json =
        r#"{"openid":"oAAAAAAAAAAAAAAAAAAAAAAAAAAA","session_key":"c2Vzc2lvbiBrZXkgb2YgMTY="}"#;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", json.len());
    let answer = [head.as_bytes(), json.as_bytes()].concat();
    let (token, written) = tokio::join!(world.login("code"), connection.write_all(&answer));
    written.unwrap();
    assert_eq!(world.me(&token).await.status(), 200);
}

#[tokio::test]
async fn a_code_that_comes_again_later_is_refused_by_wechat() {
    let world = World::with_servers().await;
    let code = world.js_code(None);
    world.login(&code).await;
    forget_logins(&world).await;
    let (status, body) = error(world.post_login(&code).await).await;
    assert_eq!(status, 401);
    assert_eq!(
        (&body["code"], &body["errcode"]),
        (&json!("JS_CODE_INVALID"), &json!(40163))
    );
}

#[tokio::test]
async fn wechats_answer_is_read_as_text_plain_and_with_a_byte_order_mark() {
    let world = World::embedded().await;
    for (text_plain, bom) in [(true, false), (false, true), (true, true)] {
        world.fault(|fault| {
            fault.text_plain = text_plain;
            fault.bom = bom;
        });
        world.login(&world.js_code(None)).await;
    }
    assert_eq!(world.wechat.calls(None).count(CODE_TO_SESSION, "ok"), 3);
}

#[tokio::test]
async fn a_user_of_an_app_outside_the_callers_list_is_not_there() {
    let world = World::embedded().await;
    let session = world
        .caller(KEY)
        .login("shop", &world.js_code(None), "")
        .await
        .unwrap();
    let user = session.user.unwrap();
    let mut news_team = world.caller(NEWS_KEY);
    let by_id = GetUserRequest {
        user_id: user.user_id,
        ..Default::default()
    };
    let by_open_id = GetUserRequest {
        app_id: "shop".to_owned(),
        open_id: user.open_id.clone(),
        ..Default::default()
    };
    let of_another_app = GetUserRequest {
        app_id: NEWS.to_owned(),
        ..by_open_id.clone()
    };
    for request in [by_id, by_open_id, of_another_app] {
        let status = news_team.user(request).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    let status = news_team.login("shop", "code", "").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

async fn rows(world: &World) -> i64 {
    let database = storage::database(&world.database).await.unwrap();
    let count =
        Statement::from_string(database.get_database_backend(), "SELECT COUNT(*) FROM user");
    let row = database.query_one_raw(count).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

/// What happens by itself after 15 seconds.
async fn forget_logins(world: &World) {
    let client = redis::Client::open(world.redis.as_ref().unwrap().url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:login")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(keys.len(), 1);
    let () = redis::cmd("DEL")
        .arg(keys)
        .query_async(&mut redis)
        .await
        .unwrap();
}
