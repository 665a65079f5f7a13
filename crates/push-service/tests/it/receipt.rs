//! What WeChat tells of a message after it accepted it.

use proto::push::v1::{Message, MessageState, RetryMessageRequest};
use sandbox::{Deliver, Delivery, Fault};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use service_kit::{settings::DatabaseUrl, storage};
use test_support::FaultProxy;
use wechat::crypto::signature;

use crate::world::{
    Backend, NEWS, Running, SHOP, TOKEN, World, form_template, on_both, subscribe, template,
};

const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";
const PLAIN: &str = "wx0000000000000003";

/// WeChat pushes an event in a user's name.
async fn push(world: &World, app_id: &str, event: &str, fields: Value) -> Delivery {
    let deliver = Deliver {
        app_id: app_id.to_owned(),
        event: Some(event.to_owned()),
        fields: fields.as_object().unwrap().clone(),
        ..Deliver::default()
    };
    world.sandbox.deliver(deliver).await.unwrap()
}

/// A message that is SENT, and of which WeChat tells nothing by itself.
async fn silent(world: &World, app: &Running) -> Message {
    let open_id = world.user(SHOP);
    let form_id = world.sandbox.form(SHOP, Some(&open_id)).unwrap().form_id;
    let accepted = app.send(form_template(&open_id, &form_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await
}

fn entry(msg_id: &str, errcode: &str, status: &str) -> Value {
    json!({"TemplateId": "T", "MsgID": msg_id, "ErrorCode": errcode, "ErrorStatus": status})
}

async fn retry(app: &Running, message_id: &str) {
    let request = RetryMessageRequest {
        message_id: message_id.to_owned(),
    };
    app.client().retry_message(request).await.unwrap();
}

on_both! {
    async fn a_receipt_makes_a_message_delivered(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        for request in [template(&world.user(NEWS)), subscribe(&world.user(SHOP))] {
            let accepted = app.send(request).await.unwrap();
            let delivered = app.until_state(&accepted.message_id, MessageState::Delivered).await;
            assert!(delivered.sent_time.is_some() && delivered.delivered_time.is_some());
            assert_eq!((delivered.attempts, delivered.errcode, delivered.errmsg.as_str()), (1, 0, ""));
        }
        app.stop().await;
    }

    async fn a_user_who_blocks_the_account_makes_a_message_fail(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let (reader, shopper) = (world.user(NEWS), world.user(SHOP));
        world.sandbox.block(NEWS, &reader, true).unwrap();
        world.sandbox.block(SHOP, &shopper, true).unwrap();
        let user_block = "NOT_DELIVERED: failed:user block (the user refuses the account's messages)";
        let refused = "NOT_DELIVERED: user refuse to accept the msg";
        let mut ids = Vec::new();
        for (request, errcode, errmsg) in [
            (template(&reader), 0, user_block),
            (subscribe(&shopper), 43101, refused),
        ] {
            let accepted = app.send(request).await.unwrap();
            let failed = app.until_state(&accepted.message_id, MessageState::Failed).await;
            assert_eq!((failed.errcode, failed.errmsg.as_str()), (errcode, errmsg));
            assert!(failed.sent_time.is_some() && failed.delivered_time.is_none());
            let attempts: Vec<_> = failed.failed_attempts.iter().map(|failed| failed.errmsg.as_str()).collect();
            assert_eq!(attempts, [errmsg]);
            ids.push(failed.message_id);
        }

        world.sandbox.block(NEWS, &reader, false).unwrap();
        world.sandbox.block(SHOP, &shopper, false).unwrap();
        // A new message to WeChat, with a receipt of its own.
        retry(&app, &ids[1]).await;
        app.until_state(&ids[1], MessageState::Delivered).await;
        // WeChat takes it for the first one within ten minutes, and does not tell again what became of that.
        retry(&app, &ids[0]).await;
        let again = app
            .until(&ids[0], |message| message.state() == MessageState::Failed && message.failed_attempts.len() == 2)
            .await;
        assert_eq!((again.attempts, again.errmsg.as_str()), (1, user_block));
        assert_eq!(world.inbox(&reader).len(), 0);
        app.stop().await;
    }

    async fn a_receipt_that_comes_before_the_outcome_is_not_lost(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        // WeChat takes it and tells of it, but its answer is lost: only the repeat learns the message's id.
        world
            .sandbox
            .add_fault(Fault { reset: true, carried_out: true, ..Fault::at(TEMPLATE_SEND) })
            .unwrap();
        let accepted = app.send(template(&open_id)).await.unwrap();
        let delivered = app.until_state(&accepted.message_id, MessageState::Delivered).await;
        assert_eq!((delivered.attempts, delivered.possible_duplicate), (2, false));
        assert_eq!(world.inbox(&open_id).len(), 1);
        app.stop().await;
    }

    async fn one_push_tells_of_many_messages_and_its_repeat_of_none(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let (good, bad) = (silent(&world, &app).await, silent(&world, &app).await);
        let list = json!([entry(&good.wechat_msg_id, "0", "success"), entry(&bad.wechat_msg_id, "43107", "banned")]);
        for list in [
            list.clone(),
            list,
            // States only advance, and what others sent is nobody's here.
            json!([entry(&good.wechat_msg_id, "43107", "banned"), entry(&bad.wechat_msg_id, "0", "success")]),
            entry("123", "0", "success"),
        ] {
            let delivery = push(&world, SHOP, "subscribe_msg_sent_event", json!({"List": list})).await;
            assert_eq!((delivery.raw_body.as_str(), delivery.attempts), ("success", 1));
            assert_eq!(app.get(&good.message_id).await.state(), MessageState::Delivered);
            let bad = app.get(&bad.message_id).await;
            assert_eq!((bad.state(), bad.errcode, bad.errmsg.as_str()), (MessageState::Failed, 43107, "NOT_DELIVERED: banned"));
            assert_eq!(bad.failed_attempts.len(), 1);
        }
        app.stop().await;
    }

    async fn a_receipt_is_its_apps_alone(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let ids = [silent(&world, &app).await.message_id, silent(&world, &app).await.message_id];
        // WeChat numbers each app's messages by themselves.
        let database = storage::database(&world.config.database).await.unwrap();
        for (message_id, app_id) in ids.iter().zip([SHOP, PLAIN]) {
            let update = format!("UPDATE message SET app_id = '{app_id}', wechat_msg_id = '77' WHERE message_id = '{message_id}'");
            database.execute_unprepared(&update).await.unwrap();
        }
        let event = "<xml><ToUserName>gh_3</ToUserName><FromUserName>o1</FromUserName><CreateTime>1</CreateTime>\
            <MsgType><![CDATA[event]]></MsgType><Event><![CDATA[subscribe_msg_sent_event]]></Event><SubscribeMsgSentEvent><List>\
            <TemplateId><![CDATA[T]]></TemplateId><MsgID>77</MsgID><ErrorCode>0</ErrorCode><ErrorStatus><![CDATA[success]]></ErrorStatus>\
            </List></SubscribeMsgSentEvent></xml>";
        let signed = signature(&[TOKEN, "1", "2"]);
        let query = [("signature", signed.as_str()), ("timestamp", "1"), ("nonce", "2")];
        let answer = app.http.post(app.url("/callback/plain")).query(&query).body(event).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "success");
        assert_eq!(app.get(&ids[0]).await.state(), MessageState::Sent);
        assert_eq!(app.get(&ids[1]).await.state(), MessageState::Delivered);
        app.stop().await;
    }
}

#[tokio::test]
async fn while_the_database_is_away_wechat_is_not_told_success() {
    let mut world = World::start(Backend::Servers).await;
    let database = world.config.database.expose().to_owned();
    let proxy = FaultProxy::start(&database).await;
    world.config.database = DatabaseUrl::new(proxy.url(&database));
    let app = world.app().await;
    let message = silent(&world, &app).await;
    let list = json!({"List": entry(&message.wechat_msg_id, "0", "success")});
    proxy.cut().await;
    let delivery = push(&world, SHOP, "subscribe_msg_sent_event", list.clone()).await;
    assert_eq!((delivery.status, delivery.attempts), (Some(503), 3));
    // A database that hangs is no better, and WeChat is answered before it gives up.
    proxy.heal().await;
    assert_eq!(
        app.get(&message.message_id).await.state(),
        MessageState::Sent
    );
    proxy.stall();
    let delivery = push(&world, SHOP, "subscribe_msg_sent_event", list.clone()).await;
    assert_eq!((delivery.status, delivery.attempts), (Some(503), 3));
    proxy.heal().await;
    let delivery = push(&world, SHOP, "subscribe_msg_sent_event", list).await;
    assert_eq!((delivery.status, delivery.attempts), (Some(200), 1));
    let delivered = app.get(&message.message_id).await;
    assert_eq!(delivered.state(), MessageState::Delivered);
    app.stop().await;
}
