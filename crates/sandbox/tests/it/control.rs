//! The control side as HTTP: the same verbs, strict about what it is given.

use axum::http::{Method, StatusCode};
use sandbox::Config;
use serde_json::{Value, json};

use crate::world::{Callback, NEWS, SHOP, SHOP_SECRET, World, errcode, text};

#[tokio::test]
async fn a_user_logs_in_submits_a_form_and_writes() {
    let callback = Callback::obliging().await;
    let world = World::with(Config::dev(&callback.url)).await;
    let (status, login) = world
        .control(Method::POST, "login", &json!({"app_id": SHOP}))
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        errcode(
            &world
                .exchange(SHOP, SHOP_SECRET, &text(&login["js_code"]))
                .await
        ),
        0
    );
    let (status, form) = world
        .control(Method::POST, "form", &json!({"app_id": SHOP}))
        .await;
    assert_eq!(
        (status, &form["open_id"]),
        (StatusCode::OK, &login["open_id"])
    );
    let body = json!({"app_id": NEWS, "content": "hi", "fields": {"bizmsgmenuid": "7"}});
    let (status, delivery) = world.control(Method::POST, "deliver", &body).await;
    assert_eq!(
        (status, &delivery["reply"], &delivery["problem"]),
        (StatusCode::OK, &json!("success"), &Value::Null)
    );
}

#[tokio::test]
async fn pages_of_this_machine_may_read_it_and_no_others() {
    let world = World::start().await;
    for (origin, may) in [
        ("http://127.0.0.1:8081", true),
        ("http://localhost:3000", true),
        ("http://[::1]:8081", true),
        ("https://example.com", false),
        ("http://localhost.example.com", false),
        ("http://10.0.0.1", false),
        ("null", false),
    ] {
        let request = world.http.get(format!("{}/sandbox/accounts", world.url));
        let answer = request.header("origin", origin).send().await.unwrap();
        let allowed = answer.headers().get("access-control-allow-origin");
        assert_eq!(allowed.is_some(), may, "{origin}");
        assert!(allowed.is_none_or(|allowed| allowed == origin));
    }
}

#[tokio::test]
async fn unknown_fields_accounts_and_verbs_are_refused() {
    let world = World::start().await;
    for (verb, body, status, part) in [
        (
            "login",
            json!({"app_id": SHOP, "openid": "o"}),
            StatusCode::BAD_REQUEST,
            "unknown field `openid`",
        ),
        (
            "login",
            json!({"app_id": "wx9"}),
            StatusCode::NOT_FOUND,
            "wx9",
        ),
        (
            "login",
            json!({"app_id": NEWS}),
            StatusCode::BAD_REQUEST,
            "no mini program",
        ),
        (
            "login",
            json!({"app_id": SHOP, "open_id": "short"}),
            StatusCode::BAD_REQUEST,
            "open_id",
        ),
        (
            "deliver",
            json!({"app_id": NEWS, "content": "hi"}),
            StatusCode::BAD_REQUEST,
            "no callback",
        ),
        (
            "deliver",
            json!({"app_id": NEWS}),
            StatusCode::BAD_REQUEST,
            "content",
        ),
        (
            "deliver",
            json!({"app_id": NEWS, "content": "a", "fields": {"<": 1}}),
            StatusCode::BAD_REQUEST,
            "XML element",
        ),
        (
            "faults",
            json!({"endpoint": "*"}),
            StatusCode::BAD_REQUEST,
            "does nothing",
        ),
        (
            "reset-secret",
            json!({"app_id": SHOP, "secret": ""}),
            StatusCode::BAD_REQUEST,
            "secret",
        ),
        ("nothing", json!({}), StatusCode::NOT_FOUND, "no such verb"),
    ] {
        let (answered, answer) = world.control(Method::POST, verb, &body).await;
        assert_eq!(answered, status, "{verb} {body}");
        assert!(
            answer["message"].as_str().unwrap().contains(part),
            "{part}: {answer}"
        );
    }
    let (status, _) = world
        .control(Method::GET, "inbox?openid=o", &Value::Null)
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_inbox_is_filtered_and_emptied() {
    let world = World::start().await;
    let token = world.token(NEWS).await;
    for follower in [
        world.default_user(NEWS),
        world.state.user(NEWS, None, None).unwrap().open_id,
    ] {
        let body = json!({"touser": follower, "template_id": "TEMPLATE_ORDER_PAID", "data": {"thing1": {"value": "茶"}}});
        world
            .post(
                &format!("/cgi-bin/message/template/send?access_token={token}"),
                &body,
            )
            .await;
    }
    let count = async |query: &str| {
        let (_, inbox) = world
            .control(Method::GET, &format!("inbox{query}"), &Value::Null)
            .await;
        inbox["messages"].as_array().unwrap().len()
    };
    assert_eq!(count("").await, 2);
    assert_eq!(
        count(&format!("?open_id={}", world.default_user(NEWS))).await,
        1
    );
    assert_eq!(count(&format!("?app_id={SHOP}")).await, 0);
    assert_eq!(
        world.control(Method::DELETE, "inbox", &Value::Null).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(count("").await, 0);
}

#[tokio::test]
async fn the_clock_moves_for_every_rule() {
    let world = World::start().await;
    let token = world.token(SHOP).await;
    let (_, before) = world
        .control(Method::POST, "clock", &json!({"advance_seconds": 0}))
        .await;
    let (_, after) = world
        .control(Method::POST, "clock", &json!({"advance_seconds": 7200}))
        .await;
    assert!(after["now"].as_u64().unwrap() >= before["now"].as_u64().unwrap() + 7200);
    assert_eq!(world.verdict(&token).await, 42001);
}

#[tokio::test]
async fn calls_are_counted_by_account_endpoint_and_outcome() {
    let world = World::start().await;
    world.token(SHOP).await;
    world.token(SHOP).await;
    world.try_token(SHOP, "wrong").await;
    world.token(NEWS).await;
    let (_, calls) = world
        .control(Method::GET, &format!("calls?app_id={SHOP}"), &Value::Null)
        .await;
    assert_eq!(
        calls["counts"],
        json!({"/cgi-bin/token": {"ok": 2, "40001": 1}})
    );
    assert_eq!(calls["log"].as_array().unwrap().len(), 3);
    assert_eq!(world.state.calls(None).total("/cgi-bin/token"), 4);
}

#[tokio::test]
async fn the_phone_is_one_page_that_loads_nothing_else() {
    let world = World::start().await;
    let response = world.http.get(&world.url).send().await.unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "text/html; charset=utf-8"
    );
    assert!(
        response.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'")
    );
    let page = response.text().await.unwrap();
    assert!(!page.contains("src=\"http") && !page.contains("innerHTML"));
}
