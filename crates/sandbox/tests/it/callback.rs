//! Pushes to an account's server, and what is made of its answers.

use std::time::Instant;

use axum::Router;
use sandbox::{Config, Deliver, Format, Mode, PassiveReply};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use wechat::{
    AppId,
    callback::{Envelope, Inbound, Reply, render_encrypted},
    crypto,
};

use crate::world::{Answered, Callback, Got, NEWS, SHOP, World};

const TOKEN: &str = "devcallbacktoken";
const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

fn crypt(app_id: &str) -> crypto::MessageCrypt {
    crypto::MessageCrypt::new(&KEY.parse().unwrap(), &AppId::try_from(app_id).unwrap())
}

async fn world(callback: &Callback, mode: Mode) -> World {
    let mut config = Config::dev(&callback.url);
    for account in &mut config.accounts {
        account.callback.as_mut().unwrap().mode = mode;
    }
    World::with(config).await
}

fn says(app_id: &str, content: &str) -> Deliver {
    Deliver {
        app_id: app_id.to_owned(),
        content: Some(content.to_owned()),
        ..Deliver::default()
    }
}

fn cut<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    text.split_once(before)
        .unwrap()
        .1
        .split_once(after)
        .unwrap()
        .0
}

fn text_reply(got: &Got) -> String {
    let user = &got.query["openid"];
    format!(
        "<xml><ToUserName><![CDATA[{user}]]></ToUserName><FromUserName><![CDATA[gh_000000000002]]></FromUserName>\
         <CreateTime>1</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[welcome]]></Content></xml>"
    )
}

/// Opens a safe push, and seals a reply to it.
fn sealed_reply(got: &Got, _: usize) -> Answered {
    let encrypt = crypt(NEWS).encrypt(&text_reply(got));
    let signature = crypto::signature(&[TOKEN, "1", "n", &encrypt]);
    let body = format!(
        "<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt><MsgSignature><![CDATA[{signature}]]></MsgSignature>\
         <TimeStamp>1</TimeStamp><Nonce><![CDATA[n]]></Nonce></xml>"
    );
    (200, "text/xml", body)
}

#[tokio::test]
async fn a_plain_push_is_signed_xml_and_its_reply_reaches_the_user() {
    let callback = Callback::start(|got, _| (200, "text/xml", text_reply(got))).await;
    let world = world(&callback, Mode::Plain).await;
    let delivery = world.state.deliver(says(NEWS, "hi]]> <b>")).await.unwrap();
    let got = &callback.got()[0];
    assert_eq!(
        (got.method.as_str(), got.content_type.as_str()),
        ("POST", "text/xml")
    );
    let query = |name: &str| got.query[name].as_str();
    assert!(crypto::verify_signature(
        query("signature"),
        &[TOKEN, query("timestamp"), query("nonce")]
    ));
    assert_eq!(query("openid"), world.default_user(NEWS));
    assert!(!got.query.contains_key("encrypt_type"));
    assert!(
        got.body
            .contains("<Content><![CDATA[hi]]]]><![CDATA[> <b>]]></Content>"),
        "{}",
        got.body
    );
    assert!(
        got.body
            .contains(&format!("<MsgId>{}</MsgId>", delivery.msg_id.unwrap()))
    );

    assert_eq!(
        (delivery.status, delivery.attempts, delivery.problem),
        (Some(200), 1, None)
    );
    let Some(PassiveReply::Message(reply)) = delivery.reply else {
        unreachable!("no reply")
    };
    assert_eq!(
        (reply.content.as_deref(), reply.encrypted),
        (Some("welcome"), false)
    );
    assert_eq!(world.state.inbox(Some(NEWS), None)[0].content, "welcome");
}

#[tokio::test]
async fn a_safe_push_hides_the_message_and_so_does_its_reply() {
    let callback = Callback::start(sealed_reply).await;
    let world = world(&callback, Mode::Safe).await;
    let delivery = world
        .state
        .deliver(says(NEWS, "secret words"))
        .await
        .unwrap();
    let got = &callback.got()[0];
    assert!(!got.body.contains("secret words"));
    let encrypt = cut(&got.body, "<Encrypt><![CDATA[", "]]>");
    let query = |name: &str| got.query[name].as_str();
    assert_eq!(query("encrypt_type"), "aes");
    let parts = [TOKEN, query("timestamp"), query("nonce"), encrypt];
    assert!(crypto::verify_signature(query("msg_signature"), &parts));
    assert!(
        crypt(NEWS)
            .decrypt(encrypt)
            .unwrap()
            .contains("secret words")
    );
    let Some(PassiveReply::Message(reply)) = delivery.reply else {
        unreachable!("no reply")
    };
    assert_eq!(
        (reply.content.as_deref(), reply.encrypted),
        (Some("welcome"), true)
    );
}

#[tokio::test]
async fn a_compatible_push_carries_both_and_takes_a_plain_reply() {
    let callback = Callback::start(|got, _| (200, "text/xml", text_reply(got))).await;
    let world = world(&callback, Mode::Compatible).await;
    let delivery = world.state.deliver(says(NEWS, "both")).await.unwrap();
    let body = &callback.got()[0].body;
    assert!(body.contains("<Content><![CDATA[both]]></Content>"));
    assert!(
        crypt(NEWS)
            .decrypt(cut(body, "<Encrypt><![CDATA[", "]]>"))
            .unwrap()
            .contains("both")
    );
    assert!(delivery.problem.is_none());
}

#[tokio::test]
async fn a_mini_program_is_pushed_json() {
    let callback = Callback::obliging().await;
    let mut config = Config::dev(&callback.url);
    let settings = config.accounts[0].callback.as_mut().unwrap();
    (settings.mode, settings.format) = (Mode::Plain, Format::Json);
    let world = World::with(config).await;
    let delivery = world.state.deliver(says(SHOP, "hi")).await.unwrap();
    assert!(matches!(delivery.reply, Some(PassiveReply::Success)));
    let got = &callback.got()[0];
    assert_eq!(got.content_type, "application/json");
    let body: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(
        (&body["MsgType"], &body["Content"], &body["ToUserName"]),
        (&json!("text"), &json!("hi"), &json!("gh_000000000001"))
    );
}

#[tokio::test]
async fn an_event_has_no_msg_id_and_carries_its_fields() {
    let callback = Callback::obliging().await;
    let world = world(&callback, Mode::Plain).await;
    let fields = json!({"EventKey": "qrscene_7", "Ticket": "t"})
        .as_object()
        .unwrap()
        .clone();
    let event = Deliver {
        app_id: NEWS.to_owned(),
        event: Some("subscribe".to_owned()),
        fields,
        ..Deliver::default()
    };
    let delivery = world.state.deliver(event).await.unwrap();
    assert_eq!(delivery.msg_id, None);
    let body = &callback.got()[0].body;
    assert!(body.contains("<MsgType><![CDATA[event]]></MsgType>"));
    assert!(body.contains("<EventKey><![CDATA[qrscene_7]]></EventKey>"));
    assert!(!body.contains("MsgId"));
}

#[tokio::test]
async fn a_push_is_delivered_three_times_in_all_with_one_msg_id() {
    let callback = Callback::start(|_, before| {
        (
            if before < 2 { 502 } else { 200 },
            "text/plain",
            "success".to_owned(),
        )
    })
    .await;
    let world = world(&callback, Mode::Plain).await;
    let delivery = world.state.deliver(says(NEWS, "hi")).await.unwrap();
    assert_eq!(
        (delivery.attempts, delivery.status, delivery.problem),
        (3, Some(200), None)
    );
    let got = callback.got();
    assert!(got.iter().all(|one| one.body == got[0].body));

    let broken = Callback::start(|_, _| (500, "text/html", "<html>oops".to_owned())).await;
    let world = self::world(&broken, Mode::Plain).await;
    let delivery = world.state.deliver(says(NEWS, "hi")).await.unwrap();
    assert_eq!((delivery.attempts, delivery.status), (3, Some(500)));
    assert_eq!(delivery.raw_body, "<html>oops");
    assert!(
        delivery
            .notice
            .unwrap()
            .starts_with("该公众号提供的服务出现故障")
    );
}

#[tokio::test]
async fn a_callback_that_is_away_is_a_problem_of_the_account() {
    let world = World::with(Config::dev("http://127.0.0.1:1")).await;
    let delivery = world.state.deliver(says(NEWS, "hi")).await.unwrap();
    assert_eq!((delivery.status, delivery.attempts), (None, 3));
    assert_eq!(delivery.problem.as_deref(), Some("could not connect"));
}

#[tokio::test]
async fn what_is_not_answered_within_five_seconds_is_delivered_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let _silent = listener.accept().await.unwrap();
        axum::serve(listener, Router::new().fallback(async || "success"))
            .await
            .unwrap();
    });
    let world = World::with(Config::dev(&url)).await;
    let started = Instant::now();
    let delivery = world.state.deliver(says(NEWS, "hi")).await.unwrap();
    assert_eq!(
        (delivery.attempts, delivery.status, delivery.problem),
        (2, Some(200), None)
    );
    assert!((5..10).contains(&started.elapsed().as_secs()));
}

#[tokio::test]
async fn a_url_is_verified_by_a_bare_echostr() {
    for (wrap, bare) in [("", true), ("\n", false), ("\"", false)] {
        let callback = Callback::start(move |got, _| {
            (
                200,
                "text/plain",
                format!("{wrap}{}{wrap}", got.query["echostr"]),
            )
        })
        .await;
        let world = world(&callback, Mode::Safe).await;
        let verification = world.state.verify(NEWS).await.unwrap();
        assert_eq!(
            (verification.bare, verification.problem.is_none()),
            (bare, bare)
        );
        let got = &callback.got()[0];
        let query = |name: &str| got.query[name].as_str();
        assert_eq!(got.method, "GET");
        assert!(crypto::verify_signature(
            query("signature"),
            &[TOKEN, query("timestamp"), query("nonce")]
        ));
    }
}

/// Answers as a team does that uses `crates/wechat`: opens the push, and greets its sender in kind.
fn greeting(got: &Got, _: usize) -> Answered {
    let envelope = Envelope::parse(got.body.as_bytes()).unwrap();
    let Some(encrypt) = envelope.encrypt else {
        let inbound = Inbound::parse(got.body.as_bytes()).unwrap();
        return (200, "text/xml", greet(&inbound));
    };
    let inbound = Inbound::parse(crypt(NEWS).decrypt(&encrypt).unwrap().as_bytes()).unwrap();
    let encrypt = crypt(NEWS).encrypt(&greet(&inbound));
    let signature = crypto::signature(&[TOKEN, "1", "n", &encrypt]);
    (
        200,
        "text/xml",
        render_encrypted(envelope.format, &encrypt, &signature, 1, "n"),
    )
}

fn greet(inbound: &Inbound) -> String {
    let content = format!("you said: {}", inbound.content.as_deref().unwrap());
    Reply::Text { content }.render(inbound, 1)
}

#[tokio::test]
async fn replies_of_the_wechat_crate_are_accepted_in_every_mode() {
    for mode in [Mode::Plain, Mode::Compatible, Mode::Safe] {
        let callback = Callback::start(greeting).await;
        let world = world(&callback, mode).await;
        let delivery = world
            .state
            .deliver(says(NEWS, "你好 ]]> & <b>\n2"))
            .await
            .unwrap();
        assert_eq!(delivery.problem, None, "{}", delivery.raw_body);
        let Some(PassiveReply::Message(reply)) = delivery.reply else {
            unreachable!("no reply")
        };
        assert_eq!(
            reply.content.as_deref(),
            Some("you said: 你好 ]]> & <b>\n2")
        );
        assert_eq!(reply.encrypted, mode != Mode::Plain);
    }
}
