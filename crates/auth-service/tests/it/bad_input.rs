//! What a bad input gets, and what WeChat's refusals look like.

use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::world::{CATALOG, KEY, NEWS, Setup, World, error};

#[tokio::test]
async fn a_bad_login_request_is_told_what_is_wrong_with_it() {
    let world = World::embedded().await;
    let long_code = "c".repeat(513);
    let long_name = "名".repeat(65);
    let cases = [
        (
            json!({ "app_id": "nothing", "js_code": "c" }),
            404,
            "APP_NOT_FOUND",
            "app",
        ),
        (
            json!({ "app_id": "shop" }),
            400,
            "INVALID_ARGUMENT",
            "js_code is missing",
        ),
        (
            json!({ "app_id": "shop", "js_code": "" }),
            400,
            "INVALID_ARGUMENT",
            "js_code",
        ),
        (
            json!({ "app_id": "shop", "js_code": long_code }),
            400,
            "INVALID_ARGUMENT",
            "js_code",
        ),
        (
            json!({ "js_code": "c", "nickname": long_name }),
            400,
            "INVALID_ARGUMENT",
            "nickname",
        ),
        (
            json!({ "app_id": NEWS, "js_code": "c" }),
            400,
            "INVALID_ARGUMENT",
            "news",
        ),
        (
            json!({ "js_code": 1 }),
            400,
            "INVALID_JSON",
            "line 1 column",
        ),
    ];
    for (request, status, code, message) in cases {
        let (got, body) = error(world.post("/login", request.to_string()).await).await;
        assert_eq!(
            (got, body["code"].as_str()),
            (status, Some(code)),
            "{request}"
        );
        let told = body["message"].as_str().unwrap();
        assert!(told.contains(message), "{told}");
    }
    let (status, body) = error(world.post("/login", "{\"js_code\":\n oops}").await).await;
    assert_eq!((status, body["code"].as_str()), (400, Some("INVALID_JSON")));
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("line 2 column 2"),
        "{body}"
    );
    let (status, _) = error(world.post("/login", vec![b' '; 65 * 1024]).await).await;
    assert_eq!(status, 413);
    assert_eq!(world.exchanges(), 0);
}

#[tokio::test]
async fn without_an_app_id_there_must_be_one_mini_program() {
    let world = World::embedded().await;
    let body = json!({ "js_code": world.js_code(None) }).to_string();
    assert_eq!(world.post("/login", body).await.status(), 204);

    let second =
        "\n[[apps]]\napp_id = \"wx3\"\nname = \"pets\"\nkind = \"mini_program\"\nsecret = \"s\"\n";
    let world = World::start(Setup {
        catalog: Some(format!("{CATALOG}{second}")),
        ..Setup::default()
    })
    .await;
    let (status, body) = error(world.post("/login", "{\"js_code\":\"c\"}").await).await;
    assert_eq!(status, 400);
    assert!(
        body["message"].as_str().unwrap().contains("app_id"),
        "{body}"
    );
    let status = world.caller(KEY).login("", "c", "").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn bad_fields_of_an_rpc_are_named() {
    let world = World::embedded().await;
    let mut dev = world.caller(KEY);
    let mut refused = vec![
        ("js_code", dev.login("shop", "", "").await.unwrap_err()),
        (
            "js_code",
            dev.login("shop", &"c".repeat(513), "").await.unwrap_err(),
        ),
        (
            "nickname",
            dev.login("shop", "c", &"n".repeat(65)).await.unwrap_err(),
        ),
        ("app_id", dev.login("news", "c", "").await.unwrap_err()),
        ("session_token", dev.verify("").await.unwrap_err()),
        ("session_token", dev.revoke("").await.unwrap_err()),
    ];
    for (user_id, app_id, open_id, field) in [
        ("nobody", "", "", "user_id"),
        ("", "", "", "user_id"),
        (
            "0192f0c1-2345-7000-8000-000000000001",
            "shop",
            "",
            "user_id",
        ),
        ("", "shop", "", "open_id"),
        ("", "", "oABC", "app_id"),
    ] {
        let request = proto::auth::v1::GetUserRequest {
            user_id: user_id.to_owned(),
            app_id: app_id.to_owned(),
            open_id: open_id.to_owned(),
        };
        refused.push((field, dev.user(request).await.unwrap_err()));
    }
    for (field, status) in refused {
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[0].field, field);
    }
    let status = dev.login("nothing", "c", "").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    // What is too long to be a session's token is the token of no session.
    let status = dev.verify(&"t".repeat(129)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn each_of_wechats_refusals_has_its_own_answer() {
    let world = World::embedded().await;
    let cases = [
        (40029, 401, "JS_CODE_INVALID", Code::Unauthenticated, None),
        (40163, 401, "JS_CODE_INVALID", Code::Unauthenticated, None),
        (40226, 403, "USER_BLOCKED", Code::PermissionDenied, None),
        (
            45011,
            429,
            "WECHAT_RATE_LIMITED",
            Code::ResourceExhausted,
            Some("60"),
        ),
        (-1, 503, "WECHAT_UNAVAILABLE", Code::Unavailable, Some("1")),
        (
            40125,
            502,
            "WECHAT_CONFIG_INVALID",
            Code::FailedPrecondition,
            None,
        ),
        (
            40013,
            502,
            "WECHAT_CONFIG_INVALID",
            Code::FailedPrecondition,
            None,
        ),
    ];
    for (errcode, http, reason, grpc, retry_after) in cases {
        world.fault(|fault| {
            fault.errcode = Some(errcode);
            fault.times = 2;
        });
        let answer = world.post_login(&world.js_code(None)).await;
        let retry = answer.headers().get("retry-after").cloned();
        assert_eq!(
            retry.as_ref().map(|value| value.to_str().unwrap()),
            retry_after
        );
        let (status, body) = error(answer).await;
        assert_eq!((status, &body["code"]), (http, &json!(reason)), "{body}");
        assert_eq!(body["errcode"], json!(errcode));
        assert!(!body.to_string().contains("dev-secret"), "{body}");

        let status = world
            .caller(KEY)
            .login("shop", &world.js_code(None), "")
            .await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), grpc);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (reason, "wxhub")
        );
        assert_eq!(info.metadata["errcode"], errcode.to_string());
        assert_eq!(details.retry_info().is_some(), retry_after.is_some());
    }
}

#[tokio::test]
async fn a_made_up_code_is_401_with_wechats_errcode() {
    let world = World::embedded().await;
    for _ in 0..3 {
        let (status, body) = error(world.post_login("made-up").await).await;
        assert_eq!((status, &body["errcode"]), (401, &json!(40029)));
    }
    // The answer to the first was given again.
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test]
async fn an_rpc_needs_a_callers_key() {
    let world = World::embedded().await;
    let status = world.caller("wrong").verify("token").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "CALLER_KEY_INVALID");
}

#[tokio::test]
async fn wechats_verification_file_is_the_bare_text() {
    let world = World::embedded().await;
    let answer = world.get("/MP_verify_abc.txt", None).await;
    assert_eq!(answer.status(), 200);
    assert!(
        answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    assert_eq!(answer.text().await.unwrap(), "abc");
    let (status, body) = error(world.get("/MP_verify_xyz.txt", None).await).await;
    assert_eq!((status, &body["code"]), (404, &Value::from("NOT_FOUND")));
}
