//! `POST /auth/authorize` and `GET /auth/test`: mini programs that keep cookies.

use std::{collections::BTreeSet, sync::Arc};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    browser::{Browser, set_cookies},
    world::{SHOP, World, error},
};

with_either_store!(
    a_client_that_keeps_cookies_logs_in_and_tests_it,
    one_code_from_a_hundred_requests_sets_one_cookie,
);

async fn authorize(browser: &Browser, body: &Value) -> Response {
    let request = browser.request(Method::POST, "/auth/authorize");
    browser.send(request.body(body.to_string())).await
}

async fn a_client_that_keeps_cookies_logs_in_and_tests_it(world: World) {
    let browser = world.browser();
    let (status, body) = error(browser.open("/auth/test").await).await;
    assert_eq!((status, &body["code"]), (401, &json!("SESSION_INVALID")));
    assert!(
        body["message"].as_str().unwrap().contains("cookie"),
        "{body}"
    );

    let request = json!({ "code": world.js_code(None), "appId": SHOP, "nickname": " 小明 " });
    let answer = authorize(&browser, &request).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let (name, token, attributes) = set_cookies(&answer).pop().unwrap();
    assert_eq!(name, "wxhub_session_shop");
    assert_eq!(
        attributes,
        "HttpOnly; SameSite=Lax; Path=/; Max-Age=2592000"
    );
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        (&body["code"], &body["message"]),
        (&json!(0), &json!("auth success."))
    );
    assert_eq!(
        (&body["data"]["app_id"], &body["data"]["nickname"]),
        (&json!(SHOP), &json!("小明"))
    );
    assert!(!body.to_string().contains(&token));

    let tested: Value = browser.open("/auth/test").await.json().await.unwrap();
    assert_eq!(tested["code"], 0);
    assert_eq!(tested["data"]["user_id"], body["data"]["user_id"]);
    let by_header: Value = world.me(&token).await.json().await.unwrap();
    assert_eq!(by_header["user_id"], body["data"]["user_id"]);

    // The next login takes this one's place.
    let request = json!({ "code": world.js_code(None) });
    assert_eq!(authorize(&browser, &request).await.status(), 200);
    assert_ne!(browser.cookies()["wxhub_session_shop"], token);
    assert_eq!(world.me(&token).await.status(), 401);
    assert_eq!(browser.open("/me").await.status(), 200);
    // A header that is wrong is not made good by a cookie.
    let request = browser
        .request(Method::GET, "/me")
        .header("authorization", &token);
    assert_eq!(browser.send(request).await.status(), 401);
}

async fn one_code_from_a_hundred_requests_sets_one_cookie(world: World) {
    let request = json!({ "code": world.js_code(None), "appId": "shop" });
    let world = Arc::new(world);
    let mut requests = JoinSet::new();
    for number in 0..100 {
        let (world, request) = (Arc::clone(&world), request.clone());
        requests.spawn(async move {
            if number % 2 == 0 {
                // The same claim, by the other route.
                return world.login(request["code"].as_str().unwrap()).await;
            }
            let browser = world.browser();
            let answer = authorize(&browser, &request).await;
            assert_eq!(answer.status(), 200);
            browser.cookies()["wxhub_session_shop"].clone()
        });
    }
    let tokens: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test]
async fn what_is_wrong_is_said_and_sets_no_cookie() {
    let world = World::embedded().await;
    let browser = world.browser();
    let code = world.js_code(None);
    for (body, status, told) in [
        (json!({}), 400, "code is missing"),
        (json!({ "code": "" }), 400, "code is missing"),
        (json!({ "code": "x".repeat(513) }), 400, "code must be"),
        (
            json!({ "code": code, "appId": "nobody" }),
            404,
            "no such app",
        ),
        (
            json!({ "code": code, "appId": "news" }),
            400,
            "no mini program",
        ),
        (
            json!({ "code": code, "nickname": "x".repeat(65) }),
            400,
            "nickname",
        ),
    ] {
        let answer = authorize(&browser, &body).await;
        assert!(set_cookies(&answer).is_empty());
        let (answered, body) = error(answer).await;
        assert_eq!(answered, status, "{body}");
        assert!(body["message"].as_str().unwrap().contains(told), "{body}");
    }
    assert_eq!(world.exchanges(), 0);
    for (errcode, status, reason) in [
        (40163, 401, "JS_CODE_INVALID"),
        (40226, 403, "USER_BLOCKED"),
        (45011, 429, "WECHAT_RATE_LIMITED"),
        (-1, 503, "WECHAT_UNAVAILABLE"),
    ] {
        world.fault(|fault| fault.errcode = Some(errcode));
        let request = json!({ "code": world.js_code(None), "appId": "shop" });
        let answer = authorize(&browser, &request).await;
        assert!(set_cookies(&answer).is_empty());
        let (answered, body) = error(answer).await;
        assert_eq!((answered, &body["code"]), (status, &json!(reason)));
    }
}

#[tokio::test]
async fn no_page_of_another_site_signs_its_visitor_in_as_somebody_else() {
    let world = World::embedded().await;
    let browser = world.browser();
    let body = json!({ "code": world.js_code(None), "appId": "shop" }).to_string();
    for (name, value) in [
        ("origin", "https://evil.com"),
        ("origin", "null"),
        ("origin", "https://h5.example.com"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let request = browser.request(Method::POST, "/auth/authorize");
        let answer = browser
            .send(request.header(name, value).body(body.clone()))
            .await;
        assert!(set_cookies(&answer).is_empty());
        let (status, body) = error(answer).await;
        assert_eq!((status, &body["code"]), (403, &json!("ORIGIN_FORBIDDEN")));
    }
    assert_eq!(world.exchanges(), 0);
}
