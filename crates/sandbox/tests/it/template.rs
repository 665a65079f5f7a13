//! Template, subscribe and form_id messages.

use sandbox::{Config, MessageKind};
use serde_json::{Value, json};

use crate::world::{Callback, NEWS, SHOP, World, errcode};

fn paid(open_id: &str) -> Value {
    json!({
        "touser": open_id,
        "template_id": "TEMPLATE_ORDER_PAID",
        "data": {"thing1": {"value": "一壶茶"}, "amount2": {"value": "¥12.50"}, "time3": {"value": "2026-11-21 15:01"}},
    })
}

async fn send(world: &World, kind: &str, app_id: &str, body: &Value) -> Value {
    let token = world.token(app_id).await;
    world
        .post(
            &format!("/cgi-bin/message/{kind}/send?access_token={token}"),
            body,
        )
        .await
}

fn changed(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

#[tokio::test]
async fn a_template_message_reaches_its_follower() {
    let world = World::start().await;
    let user = world.default_user(NEWS);
    let answer = send(&world, "template", NEWS, &paid(&user)).await;
    assert_eq!((errcode(&answer), &answer["errmsg"]), (0, &json!("ok")));
    assert!(answer["msgid"].as_i64().unwrap() > 1 << 53);

    let inbox = world.state.inbox(Some(NEWS), Some(&user));
    assert_eq!(inbox.len(), 1);
    assert_eq!(inbox[0].kind, MessageKind::Template);
    assert_eq!(
        inbox[0].content,
        "thing1: 一壶茶\namount2: ¥12.50\ntime3: 2026-11-21 15:01"
    );
    assert_eq!(inbox[0].msgid, Some(answer["msgid"].to_string()));
    assert_eq!(inbox[0].message, paid(&user));
}

#[tokio::test]
async fn a_template_message_is_refused_as_wechat_refuses_it() {
    let world = World::start().await;
    let user = world.default_user(NEWS);
    let stranger = world.default_user(SHOP);
    let unfollowed = world.state.user(NEWS, None, Some(false)).unwrap().open_id;
    let good = paid(&user);
    for (body, code) in [
        (paid(&stranger), 40003),
        (paid(""), 40003),
        (paid(&unfollowed), 43004),
        (changed(good.clone(), "template_id", json!("OTHER")), 40037),
        (changed(good.clone(), "data", json!("text")), 47001),
        (
            changed(good.clone(), "data", json!({"thing1": {"value": ""}})),
            40250,
        ),
        (
            changed(
                good.clone(),
                "data",
                json!({"time3": {"value": "tomorrow"}}),
            ),
            47003,
        ),
        (
            changed(
                good.clone(),
                "miniprogram",
                json!({"appid": NEWS, "pagepath": "index"}),
            ),
            40013,
        ),
        (
            changed(
                good.clone(),
                "miniprogram",
                json!({"appid": SHOP, "pagepath": "index"}),
            ),
            0,
        ),
    ] {
        assert_eq!(
            errcode(&send(&world, "template", NEWS, &body).await),
            code,
            "{body}"
        );
    }
    assert_eq!(errcode(&send(&world, "template", SHOP, &good).await), 48001);
    assert_eq!(
        errcode(&send(&world, "subscribe", NEWS, &good).await),
        48001
    );
}

#[tokio::test]
async fn a_client_msg_id_is_delivered_once_in_ten_minutes() {
    let world = World::start().await;
    let user = world.default_user(NEWS);
    let other = world.state.user(NEWS, None, None).unwrap().open_id;
    let with_id = |user: &str| changed(paid(user), "client_msg_id", json!("m-1"));
    let first = send(&world, "template", NEWS, &with_id(&user)).await;
    let again = send(&world, "template", NEWS, &with_id(&user)).await;
    assert_eq!(first["msgid"], again["msgid"]);
    send(&world, "template", NEWS, &with_id(&other)).await;
    assert_eq!(world.state.inbox(None, None).len(), 2);
    world.pass(600);
    let later = send(&world, "template", NEWS, &with_id(&user)).await;
    assert_ne!(first["msgid"], later["msgid"]);
    assert_eq!(world.state.inbox(None, Some(&user)).len(), 2);
}

#[tokio::test]
async fn a_subscribe_message_needs_every_value() {
    let world = World::start().await;
    let user = world.default_user(SHOP);
    let good = changed(paid(&user), "template_id", json!("SUBSCRIBE_ORDER_SHIPPED"));
    let answer = send(&world, "subscribe", SHOP, &good).await;
    assert_eq!(errcode(&answer), 0);
    assert_eq!(
        world.state.inbox(None, None)[0].kind,
        MessageKind::Subscribe
    );

    let missing = changed(good.clone(), "data", json!({"thing1": {"value": "a"}}));
    let answer = send(&world, "subscribe", SHOP, &missing).await;
    assert_eq!(errcode(&answer), 47003);
    assert!(
        answer["errmsg"]
            .as_str()
            .unwrap()
            .starts_with("argument invalid! data.amount2.value invalid")
    );
    for (body, code) in [
        (
            changed(good.clone(), "template_id", json!("FORM_ORDER_PAID")),
            40037,
        ),
        (
            changed(good.clone(), "miniprogram_state", json!("beta")),
            47003,
        ),
        (changed(good.clone(), "lang", json!("fr")), 47003),
        (changed(good.clone(), "touser", json!("nobody")), 40003),
    ] {
        assert_eq!(
            errcode(&send(&world, "subscribe", SHOP, &body).await),
            code,
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_form_id_pays_for_one_message_to_its_user() {
    let world = World::start().await;
    let user = world.default_user(SHOP);
    let other = world.state.user(SHOP, None, None).unwrap().open_id;
    let message = |user: &str, form_id: &str| json!({"touser": user, "template_id": "FORM_ORDER_PAID", "form_id": form_id, "data": {"keyword1": {"value": "茶"}}});
    let form_id = world.state.form(SHOP, None).unwrap().form_id;
    for (user, form_id, code) in [
        (&user, "the formId is a mock one", 41028),
        (&other, form_id.as_str(), 41028),
        (&user, form_id.as_str(), 0),
        (&user, form_id.as_str(), 41029),
    ] {
        assert_eq!(
            errcode(&send(&world, "wxopen/template", SHOP, &message(user, form_id)).await),
            code
        );
    }
    let old = world.state.form(SHOP, None).unwrap().form_id;
    world.pass(7 * 86_400);
    assert_eq!(
        errcode(&send(&world, "wxopen/template", SHOP, &message(&user, &old)).await),
        41028
    );
    let inbox = world.state.inbox(Some(SHOP), None);
    assert_eq!(
        (inbox.len(), inbox[0].kind, inbox[0].content.as_str()),
        (1, MessageKind::FormTemplate, "keyword1: 茶")
    );
}

#[tokio::test]
async fn receipts_follow_template_and_subscribe_messages_and_tell_a_block() {
    let callback = Callback::start(|_, _| (200, "text/plain", "success".to_owned())).await;
    let mut config = Config::dev(&callback.url);
    for account in &mut config.accounts {
        account.callback.as_mut().unwrap().mode = sandbox::Mode::Plain;
    }
    let shop = config.accounts[0].callback.as_ref().unwrap();
    assert_eq!(shop.format, sandbox::Format::Json);
    let world = World::with(config).await;
    let order = |user: &str| {
        json!({
            "touser": user,
            "template_id": "SUBSCRIBE_ORDER_SHIPPED",
            "data": {"thing1": {"value": "茶"}, "amount2": {"value": "¥1"}, "time3": {"value": "10:00"}},
        })
    };
    for (blocks, status, code) in [
        (false, "success", "0"),
        (true, "failed:user block", "43101"),
    ] {
        let (reader, shopper) = (world.default_user(NEWS), world.default_user(SHOP));
        world.state.clear_inbox();
        world.state.block(NEWS, &reader, blocks).unwrap();
        world.state.block(SHOP, &shopper, blocks).unwrap();
        let before = callback.got().len();
        assert_eq!(
            errcode(&send(&world, "template", NEWS, &paid(&reader)).await),
            0
        );
        let got = callback.wait_for(before + 1).await;
        let status = format!("<Status><![CDATA[{status}]]></Status>");
        assert!(got[before].body.contains(&status), "{}", got[before].body);
        let answer = send(&world, "subscribe", SHOP, &order(&shopper)).await;
        let got = callback.wait_for(before + 2).await;
        let event: Value = serde_json::from_str(&got[before + 1].body).unwrap();
        assert_eq!(event["Event"], "subscribe_msg_sent_event");
        assert_eq!(event["List"]["MsgID"], answer["msgid"].to_string());
        assert_eq!(event["List"]["ErrorCode"], code);
        let arrived = world.state.inbox(None, None).len();
        assert_eq!(arrived, if blocks { 0 } else { 2 });
    }
}

#[tokio::test]
async fn a_receipt_follows_a_template_message_until_it_is_taken() {
    let callback = Callback::start(|_, before| {
        (
            if before == 0 { 500 } else { 200 },
            "text/plain",
            "success".to_owned(),
        )
    })
    .await;
    let mut config = Config::dev(&callback.url);
    config.accounts[1].callback.as_mut().unwrap().mode = sandbox::Mode::Plain;
    let world = World::with(config).await;
    let user = world.default_user(NEWS);
    let answer = send(&world, "template", NEWS, &paid(&user)).await;
    let got = callback.wait_for(2).await;
    assert_eq!(got[0].body, got[1].body);
    for part in [
        "<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event>",
        &format!("<MsgID>{}</MsgID>", answer["msgid"]),
        "<Status><![CDATA[success]]></Status>",
        &format!("<FromUserName><![CDATA[{user}]]></FromUserName>"),
    ] {
        assert!(got[0].body.contains(part), "{part}: {}", got[0].body);
    }
}
