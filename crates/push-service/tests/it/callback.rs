//! The callback: who is believed, and what goes back.

use reqwest::StatusCode;
use sandbox::{Deliver, PassiveReply};
use serde_json::{Value, json};
use wechat::{
    AppId,
    crypto::{MessageCrypt, signature, verify_signature},
};

use crate::world::{Backend, KEY, NEWS, Running, SHOP, TOKEN, World, on_both};

const COMPATIBLE: &str = "wx0000000000000004";
const TIMESTAMP: &str = "1714037059";
const NONCE: &str = "486452656";

/// What came back.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    content_type: String,
    body: String,
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let content_type = response.headers().get("content-type");
    Answer {
        status: response.status(),
        content_type: content_type
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default(),
        body: response.text().await.unwrap(),
    }
}

async fn post(
    app: &Running,
    name: &str,
    query: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    let url = app.url(&format!("/callback/{name}"));
    answer(app.http.post(url).query(query).body(body)).await
}

fn crypt(app_id: &str) -> MessageCrypt {
    MessageCrypt::new(&KEY.parse().unwrap(), &AppId::try_from(app_id).unwrap())
}

fn text(json: bool, content: &str, msg_id: u32) -> String {
    if json {
        json!({"ToUserName": "gh_1", "FromUserName": "oUser", "CreateTime": 1, "MsgType": "text", "Content": content, "MsgId": msg_id}).to_string()
    } else {
        format!(
            "<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[oUser]]></FromUserName>\
                 <CreateTime>1</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[{content}]]></Content><MsgId>{msg_id}</MsgId></xml>"
        )
    }
}

/// The envelope of a cipher text, with the plain fields beside it in compatible mode.
fn envelope(json: bool, encrypt: &str, plain: Option<&str>) -> String {
    if json {
        let mut fields: Value = plain.map_or_else(
            || json!({"ToUserName": "gh_1"}),
            |plain| serde_json::from_str(plain).unwrap(),
        );
        fields["Encrypt"] = encrypt.into();
        fields.to_string()
    } else {
        let plain = plain.unwrap_or("<xml><ToUserName>gh_1</ToUserName></xml>");
        plain.replace(
            "</xml>",
            &format!("<Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>"),
        )
    }
}

fn plain_query(signature: &str) -> Vec<(&'static str, &str)> {
    vec![
        ("signature", signature),
        ("timestamp", TIMESTAMP),
        ("nonce", NONCE),
        ("openid", "oUser"),
    ]
}

fn safe_query<'a>(signature: &'a str, msg_signature: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut query = plain_query(signature);
    query.extend([("encrypt_type", "aes"), ("msg_signature", msg_signature)]);
    query
}

/// Reads a text element or field of a reply.
fn field(json: bool, body: &str, name: &str) -> String {
    if json {
        let fields: Value = serde_json::from_str(body).unwrap();
        return fields[name]
            .as_str()
            .map_or_else(|| fields[name].to_string(), str::to_owned);
    }
    let (_, rest) = body.split_once(&format!("<{name}>")).unwrap();
    let (text, _) = rest.split_once(&format!("</{name}>")).unwrap();
    text.trim_start_matches("<![CDATA[")
        .trim_end_matches("]]>")
        .to_owned()
}

fn assert_reply(json: bool, body: &str, content: &str) {
    assert!(!body.starts_with("<?xml"), "{body}");
    assert_eq!(field(json, body, "ToUserName"), "oUser");
    assert_eq!(field(json, body, "FromUserName"), "gh_1");
    assert_eq!(field(json, body, "MsgType"), "text");
    assert_eq!(field(json, body, "Content"), content);
}

const TYPES: [(bool, &str); 2] = [
    (false, "text/xml; charset=utf-8"),
    (true, "application/json; charset=utf-8"),
];

on_both! {
    async fn a_plain_push_is_believed_by_its_signature_alone(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let good = signature(&[TOKEN, TIMESTAMP, NONCE]);
        for (json, content_type) in TYPES {
            let push = text(json, "a ]]> b", 1 + u32::from(json));
            let replied = post(&app, "plain", &plain_query(&good), push.clone()).await;
            assert_eq!((replied.status, replied.content_type.as_str()), (StatusCode::OK, content_type));
            if json {
                assert_reply(json, &replied.body, "收到：a ]]> b");
            } else {
                assert!(replied.body.contains("<![CDATA[收到：a "), "{}", replied.body);
            }
            let forged = post(&app, "plain", &plain_query("0000"), push).await;
            assert_eq!(forged.status, StatusCode::FORBIDDEN);
            assert!(forged.body.contains("SIGNATURE_INVALID"), "{}", forged.body);
        }
        app.stop().await;
    }

    async fn an_encrypted_push_is_believed_by_msg_signature_alone(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let plain_signature = signature(&[TOKEN, TIMESTAMP, NONCE]);
        for (name, app_id, compatible) in [("news", NEWS, false), ("compatible", COMPATIBLE, true)] {
            for (json, content_type) in TYPES {
                let push = text(json, "你好", 1 + u32::from(json));
                let encrypt = crypt(app_id).encrypt(&push);
                let body = envelope(json, &encrypt, compatible.then_some(&push));
                let good = signature(&[TOKEN, TIMESTAMP, NONCE, &encrypt]);

                let replied = post(&app, name, &safe_query(&plain_signature, &good), body.clone()).await;
                assert_eq!((replied.status, replied.content_type.as_str()), (StatusCode::OK, content_type));
                let sealed = field(json, &replied.body, "Encrypt");
                let (timestamp, nonce) = (field(json, &replied.body, "TimeStamp"), field(json, &replied.body, "Nonce"));
                let reply_signature = field(json, &replied.body, "MsgSignature");
                assert!(verify_signature(&reply_signature, &[TOKEN, &timestamp, &nonce, &sealed]));
                assert_reply(json, &crypt(app_id).decrypt(&sealed).unwrap(), "收到：你好");

                for forged in [
                    safe_query(&plain_signature, "0000"),
                    safe_query(&plain_signature, &plain_signature),
                    plain_query(&plain_signature),
                    Vec::new(),
                ] {
                    let refused = post(&app, name, &forged, body.clone()).await;
                    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{forged:?}");
                }
            }
        }
        app.stop().await;
    }

    async fn a_repeated_push_gets_the_reply_of_the_first(backend: Backend) {
        let mut world = World::start(backend).await;
        let (app, replica) = (world.app().await, world.app().await);
        let signature = signature(&[TOKEN, TIMESTAMP, NONCE]);
        let push = text(false, "once", 7);
        let first = post(&app, "plain", &plain_query(&signature), push.clone()).await;
        // A second later a fresh reply would carry another CreateTime; a repeat of other text shows it at once.
        let repeat = push.replace("once", "twice");
        assert_eq!(post(&app, "plain", &plain_query(&signature), repeat.clone()).await, first);
        if world.redis.is_some() {
            assert_eq!(post(&replica, "plain", &plain_query(&signature), repeat.clone()).await, first);
        }
        let other = post(&app, "plain", &plain_query(&signature), repeat.replace("<MsgId>7", "<MsgId>8")).await;
        assert_reply(false, &other.body, "收到：twice");
        app.stop().await;
        replica.stop().await;
    }
}

#[tokio::test]
async fn what_the_sandbox_delivers_is_answered_as_wechat_wants_it() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for app_id in [NEWS, SHOP] {
        let verified = world.sandbox.verify(app_id).await.unwrap();
        assert_eq!((verified.bare, verified.problem), (true, None));
    }
    let deliver = |app_id: &str| Deliver {
        app_id: app_id.to_owned(),
        content: Some("你好".to_owned()),
        ..Deliver::default()
    };
    let delivery = world.sandbox.deliver(deliver(NEWS)).await.unwrap();
    assert_eq!((delivery.attempts, delivery.problem), (1, None));
    let Some(PassiveReply::Message(reply)) = delivery.reply else {
        panic!("no reply: {}", delivery.raw_body);
    };
    assert_eq!(reply.content.as_deref(), Some("收到：你好"));

    let delivery = world.sandbox.deliver(deliver(SHOP)).await.unwrap();
    assert_eq!(
        (delivery.raw_body.as_str(), delivery.problem),
        ("success", None)
    );
    let event = Deliver {
        app_id: NEWS.to_owned(),
        event: Some("subscribe".to_owned()),
        ..Deliver::default()
    };
    let delivery = world.sandbox.deliver(event).await.unwrap();
    assert_eq!(
        (delivery.raw_body.as_str(), delivery.problem),
        ("success", None)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_plain_push_to_a_safe_app_is_refused_and_to_a_compatible_one_taken() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let signature = signature(&[TOKEN, TIMESTAMP, NONCE]);
    let push = text(false, "hi", 1);
    let refused = post(&app, "news", &plain_query(&signature), push.clone()).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let taken = post(&app, "compatible", &plain_query(&signature), push).await;
    assert_reply(false, &taken.body, "收到：hi");
    app.stop().await;
}

#[tokio::test]
async fn the_token_before_the_last_is_still_believed_and_answered_with() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let encrypt = crypt(NEWS).encrypt(&text(false, "hi", 1));
    let msg_signature = signature(&["previoustoken", TIMESTAMP, NONCE, &encrypt]);
    let replied = post(
        &app,
        "news",
        &safe_query("", &msg_signature),
        envelope(false, &encrypt, None),
    )
    .await;
    let sealed = field(false, &replied.body, "Encrypt");
    let timestamp = field(false, &replied.body, "TimeStamp");
    let parts = ["previoustoken", &timestamp, NONCE, &sealed];
    assert!(verify_signature(
        &field(false, &replied.body, "MsgSignature"),
        &parts
    ));
    app.stop().await;
}

#[tokio::test]
async fn a_push_that_was_made_for_another_app_is_refused() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let encrypt = crypt(SHOP).encrypt(&text(false, "hi", 1));
    let msg_signature = signature(&[TOKEN, TIMESTAMP, NONCE, &encrypt]);
    let refused = post(
        &app,
        "news",
        &safe_query("", &msg_signature),
        envelope(false, &encrypt, None),
    )
    .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(
        refused.body.contains("DECRYPTION_FAILED"),
        "{}",
        refused.body
    );
    app.stop().await;
}

#[tokio::test]
async fn only_a_signed_echostr_is_echoed_and_then_bare() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let good = signature(&[TOKEN, TIMESTAMP, NONCE]);
    let echo = "<b>4375120948345356249</b>";
    let get = |name: &str, signature: &str| {
        let query = [
            ("signature", signature),
            ("timestamp", TIMESTAMP),
            ("nonce", NONCE),
            ("echostr", echo),
        ];
        answer(
            app.http
                .get(app.url(&format!("/callback/{name}")))
                .query(&query),
        )
    };
    for name in ["news", NEWS, "plain"] {
        let echoed = get(name, &good).await;
        assert_eq!(
            (echoed.status, echoed.body.as_str()),
            (StatusCode::OK, echo)
        );
        assert_eq!(echoed.content_type, "text/plain; charset=utf-8");
    }
    assert_eq!(get("news", "0000").await.status, StatusCode::FORBIDDEN);
    let bare = answer(app.http.get(app.url("/callback/news?echostr=1"))).await;
    assert_eq!(bare.status, StatusCode::FORBIDDEN);
    // An app that nobody knows, and one without a callback.
    for name in ["nobody", "silent"] {
        assert_eq!(get(name, &good).await.status, StatusCode::NOT_FOUND);
    }
    app.stop().await;
}

#[tokio::test]
async fn bad_bodies_get_the_status_that_says_why() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let signature = signature(&[TOKEN, TIMESTAMP, NONCE]);
    let query = plain_query(&signature);
    let entity = "<!DOCTYPE xml [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><xml><MsgType>&a;</MsgType></xml>";
    for (name, body, status, code) in [
        (
            "plain",
            "<xml><ToUserName>".to_owned(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "plain",
            "{\"ToUserName\":".to_owned(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "plain",
            "<xml><ToUserName>gh_1</ToUserName></xml>".to_owned(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "plain",
            String::new(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "plain",
            entity.to_owned(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "news",
            entity.to_owned(),
            StatusCode::BAD_REQUEST,
            "PUSH_MALFORMED",
        ),
        (
            "plain",
            "x".repeat(64 * 1024 + 1),
            StatusCode::PAYLOAD_TOO_LARGE,
            "BODY_TOO_LARGE",
        ),
        (
            "nobody",
            text(false, "hi", 1),
            StatusCode::NOT_FOUND,
            "APP_NOT_FOUND",
        ),
        (
            "silent",
            text(false, "hi", 1),
            StatusCode::NOT_FOUND,
            "CALLBACK_NOT_FOUND",
        ),
    ] {
        let refused = post(&app, name, &query, body).await;
        assert_eq!(refused.status, status, "{}", refused.body);
        let error: Value = serde_json::from_str(&refused.body).unwrap();
        assert_eq!(error["code"], code);
        assert!(error["request_id"].is_string());
    }
    app.stop().await;
}

/// Every published example that is a request to a callback.
#[tokio::test]
async fn the_published_examples_are_answered() {
    let cases = |file: &str| -> Vec<Value> {
        let file: Value = serde_json::from_str(file).unwrap();
        file["cases"].as_array().unwrap().clone()
    };
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let app_of = |token: &str| if token == "AAAAA" { "guide" } else { "sample" };

    let mut verified = 0;
    for case in cases(include_str!("../../../wechat/tests/vectors/signature.json")) {
        let part = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        if case.get("expected_body").is_some() {
            let query =
                ["signature", "timestamp", "nonce", "echostr"].map(|name| (name, part(name)));
            let url = app.url(&format!("/callback/{}", app_of(&part("token"))));
            let echoed = answer(app.http.get(url).query(&query)).await;
            assert_eq!(
                (echoed.status, echoed.body),
                (StatusCode::OK, part("expected_body"))
            );
            verified += 1;
        }
    }
    assert_eq!(verified, 1);

    let mut pushed = 0;
    for case in cases(include_str!("../../../wechat/tests/vectors/msg_crypt.json")) {
        if case["direction"] != "decrypt" {
            continue;
        }
        let part = |name: &str| case[name].as_str().unwrap().to_owned();
        let body = case["body_xml"]
            .as_str()
            .map_or_else(|| case["body"].to_string(), str::to_owned);
        let query = ["timestamp", "nonce", "msg_signature"].map(|name| (name, part(name)));
        let query: Vec<_> = query
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let name = app_of(&part("token"));
        let replied = post(&app, name, &query, body.clone()).await;
        assert_eq!(replied.status, StatusCode::OK, "{}", replied.body);
        if part("msg").contains("<Content>") {
            let key = part("encoding_aes_key").parse().unwrap();
            let crypt = MessageCrypt::new(&key, &AppId::try_from(part("appid")).unwrap());
            let reply = crypt
                .decrypt(&field(false, &replied.body, "Encrypt"))
                .unwrap();
            assert_eq!(field(false, &reply, "Content"), "收到：hello");
        } else {
            assert_eq!(replied.body, "success");
        }
        let forged: Vec<_> = query
            .iter()
            .map(|(name, value)| (*name, if *name == "nonce" { "1" } else { value }))
            .collect();
        assert_eq!(
            post(&app, name, &forged, body).await.status,
            StatusCode::FORBIDDEN
        );
        pushed += 1;
    }
    assert_eq!(pushed, 2);
    app.stop().await;
}

#[tokio::test]
async fn files_by_which_wechat_knows_a_domain_are_served_bare() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let served = answer(app.http.get(app.url("/MP_verify_news.txt"))).await;
    assert_eq!(
        (served.status, served.body.as_str()),
        (StatusCode::OK, "text-of-news")
    );
    let unknown = answer(app.http.get(app.url("/MP_verify_nobody.txt"))).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    app.stop().await;
}

#[tokio::test]
async fn with_redis_away_pushes_are_answered_all_the_same() {
    let mut world = World::start(Backend::Servers).await;
    let app = world.app().await;
    let signature = signature(&[TOKEN, TIMESTAMP, NONCE]);
    let redis = world.redis.as_ref().unwrap();
    redis.pause();
    let stalled = post(
        &app,
        "plain",
        &plain_query(&signature),
        text(false, "stalled", 1),
    )
    .await;
    assert_reply(false, &stalled.body, "收到：stalled");
    redis.resume();
    redis.kill();
    let gone = post(
        &app,
        "plain",
        &plain_query(&signature),
        text(false, "gone", 2),
    )
    .await;
    assert_reply(false, &gone.body, "收到：gone");
    app.stop().await;
}
