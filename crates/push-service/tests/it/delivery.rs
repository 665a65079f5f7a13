//! What is accepted arrives, and WeChat's answer decides about the rest.

use std::time::Duration;

use proto::push::v1::{
    self as pb, MessageState, customer_content::Message as Customer, send_message_request::Content,
};
use sandbox::{Deliver, Fault, MessageKind};
use serde_json::{Value, json};
use test_support::eventually;
use tonic::Code;

use crate::world::{
    Backend, NEWS, SHOP, SOON, World, customer, form_template, is_sent, on_both, subscribe,
    template,
};

const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";
const SUBSCRIBE_SEND: &str = "/cgi-bin/message/subscribe/send";
const CUSTOM_SEND: &str = "/cgi-bin/message/custom/send";

/// Opens the window for customer-service messages: the user writes first.
async fn write_to(world: &World, app_id: &str, open_id: &str) {
    let deliver = Deliver {
        app_id: app_id.to_owned(),
        open_id: Some(open_id.to_owned()),
        content: Some("在吗".to_owned()),
        ..Deliver::default()
    };
    let delivery = world.sandbox.deliver(deliver).await.unwrap();
    assert_eq!(delivery.problem, None);
}

/// Messages of every msgtype that the app has, each with what WeChat is to get besides the user.
fn customer_messages(app_id: &str, media_id: &str) -> Vec<(Customer, Value)> {
    let media = || pb::CustomerMedia {
        media_id: media_id.to_owned(),
    };
    let article = || pb::CustomerArticle {
        title: "新品".to_owned(),
        description: "\"试试\" <看>".to_owned(),
        url: "https://example.com/?a=1&b=2".to_owned(),
        picture_url: "https://example.com/p.png".to_owned(),
    };
    let text = "您好 <a href=\"https://example.com/?a=1&b=2\">点😀</a>\n第二行";
    let both = [
        (
            Customer::Text(pb::CustomerText {
                content: text.to_owned(),
            }),
            json!({"msgtype": "text", "text": {"content": text}}),
        ),
        (
            Customer::Image(media()),
            json!({"msgtype": "image", "image": {"media_id": media_id}}),
        ),
        (
            Customer::MiniProgramPage(pb::CustomerMiniProgramPage {
                title: "订单".to_owned(),
                app_id: SHOP.to_owned(),
                page_path: "pages/order?id=1&from=客服".to_owned(),
                thumb_media_id: media_id.to_owned(),
            }),
            json!({"msgtype": "miniprogrampage", "miniprogrampage": {
                "title": "订单", "appid": SHOP, "pagepath": "pages/order?id=1&from=客服", "thumb_media_id": media_id
            }}),
        ),
    ];
    let own = if app_id == SHOP {
        vec![
            (
                Customer::MiniProgramPage(pb::CustomerMiniProgramPage {
                    title: "订单".to_owned(),
                    app_id: String::new(),
                    page_path: "pages/order".to_owned(),
                    thumb_media_id: media_id.to_owned(),
                }),
                json!({"msgtype": "miniprogrampage", "miniprogrampage": {
                    "title": "订单", "appid": SHOP, "pagepath": "pages/order", "thumb_media_id": media_id
                }}),
            ),
            (
                Customer::Link(article()),
                json!({"msgtype": "link", "link": {
                    "title": "新品", "description": "\"试试\" <看>", "url": "https://example.com/?a=1&b=2",
                    "thumb_url": "https://example.com/p.png"
                }}),
            ),
        ]
    } else {
        vec![
            (
                Customer::Voice(media()),
                json!({"msgtype": "voice", "voice": {"media_id": media_id}}),
            ),
            (
                Customer::Video(pb::CustomerVideo {
                    media_id: media_id.to_owned(),
                    thumb_media_id: media_id.to_owned(),
                    title: "开箱".to_owned(),
                    description: String::new(),
                }),
                json!({"msgtype": "video", "video": {
                    "media_id": media_id, "thumb_media_id": media_id, "title": "开箱"
                }}),
            ),
            (
                Customer::Music(pb::CustomerMusic {
                    title: "茉莉花".to_owned(),
                    description: "民歌".to_owned(),
                    url: "https://example.com/m.mp3".to_owned(),
                    hq_url: "https://example.com/hq.mp3".to_owned(),
                    thumb_media_id: media_id.to_owned(),
                }),
                json!({"msgtype": "music", "music": {
                    "title": "茉莉花", "description": "民歌", "musicurl": "https://example.com/m.mp3",
                    "hqmusicurl": "https://example.com/hq.mp3", "thumb_media_id": media_id
                }}),
            ),
            (
                Customer::News(article()),
                json!({"msgtype": "news", "news": {"articles": [{
                    "title": "新品", "description": "\"试试\" <看>", "url": "https://example.com/?a=1&b=2",
                    "picurl": "https://example.com/p.png"
                }]}}),
            ),
            (
                Customer::MpNews(media()),
                json!({"msgtype": "mpnews", "mpnews": {"media_id": media_id}}),
            ),
            (
                Customer::MpNewsArticle(pb::CustomerPublishedArticle {
                    article_id: "article-1".to_owned(),
                }),
                json!({"msgtype": "mpnewsarticle", "mpnewsarticle": {"article_id": "article-1"}}),
            ),
            (
                Customer::Menu(pb::CustomerMenu {
                    head_content: "满意吗".to_owned(),
                    items: [("101", "满意"), ("102", "不满意")]
                        .map(|(id, content)| pb::customer_menu::Item {
                            id: id.to_owned(),
                            content: content.to_owned(),
                        })
                        .into(),
                    tail_content: "谢谢".to_owned(),
                }),
                json!({"msgtype": "msgmenu", "msgmenu": {
                    "head_content": "满意吗",
                    "list": [{"id": "101", "content": "满意"}, {"id": "102", "content": "不满意"}],
                    "tail_content": "谢谢"
                }}),
            ),
            (
                Customer::Card(pb::CustomerCard {
                    card_id: "card-1".to_owned(),
                }),
                json!({"msgtype": "wxcard", "wxcard": {"card_id": "card-1"}}),
            ),
        ]
    };
    both.into_iter().chain(own).collect()
}

on_both! {
    async fn every_kind_arrives_and_is_sent(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let (follower, shopper) = (world.user(NEWS), world.user(SHOP));
        let form = world.sandbox.form(SHOP, Some(&shopper)).unwrap();
        write_to(&world, NEWS, &follower).await;

        for (request, open_id, kind) in [
            (template(&follower), &follower, MessageKind::Template),
            (subscribe(&shopper), &shopper, MessageKind::Subscribe),
            (form_template(&shopper, &form.form_id), &shopper, MessageKind::FormTemplate),
            (customer("news", &follower, "您好 <a href=\"https://example.com\">&😀</a>"), &follower, MessageKind::Customer),
        ] {
            let accepted = app.send(request).await.unwrap();
            let sent = app.until_state(&accepted.message_id, MessageState::Sent).await;
            assert_eq!((sent.attempts, sent.errcode, sent.possible_duplicate), (1, 0, false));
            assert!(sent.sent_time.is_some() && sent.next_attempt_time.is_none());
            let inbox = world.inbox(open_id);
            let got = inbox.last().unwrap();
            assert_eq!(got.kind, kind);
            assert_eq!(got.msgid.clone().unwrap_or_default(), sent.wechat_msg_id);
        }
        let inbox = world.inbox(&follower);
        assert_eq!(inbox.last().unwrap().content, "您好 <a href=\"https://example.com\">&😀</a>");
        app.stop().await;
    }

    async fn a_customer_service_message_of_every_msgtype_is_shown_as_it_was_given(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let media = [NEWS, SHOP].map(|app_id| world.sandbox.media(app_id).unwrap().media_id);
        for (app_id, media_id) in [NEWS, SHOP].into_iter().zip(&media) {
            for (message, shown) in customer_messages(app_id, media_id) {
                // A user of its own: one who wrote may be written to five times.
                let user = world.user(app_id);
                write_to(&world, app_id, &user).await;
                let mut request = customer(app_id, &user, "");
                if let Some(Content::Customer(customer)) = &mut request.content {
                    customer.message = Some(message);
                }
                let accepted = app.send(request).await.unwrap();
                let ended = app.until(&accepted.message_id, |message| message.sent_time.is_some() || message.errcode != 0).await;
                assert!(is_sent(&ended), "{shown}: {ended:?}");
                let inbox = world.inbox(&user);
                let mut got = inbox.last().unwrap().message.clone();
                assert_eq!(got.as_object_mut().unwrap().remove("touser"), Some(json!(user)));
                assert_eq!(got, shown);
            }
        }
        app.stop().await;
    }

    async fn a_dead_token_is_reported_once_and_the_message_sent_again(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let first = app.send(template(&open_id)).await.unwrap();
        app.until_state(&first.message_id, MessageState::Sent).await;
        assert_eq!(world.tokens.reports(), 0);

        world.sandbox.invalidate(NEWS).unwrap();
        let second = app.send(template(&open_id)).await.unwrap();
        let sent = app.until_state(&second.message_id, MessageState::Sent).await;
        assert_eq!(world.tokens.reports(), 1);
        assert_eq!((sent.attempts, sent.possible_duplicate), (2, false));
        assert_eq!(world.inbox(&open_id).len(), 2);
        app.stop().await;
    }
}

#[tokio::test]
async fn the_message_id_is_what_wechat_tells_repeats_by() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let accepted = app.send(template(&open_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    let inbox = world.inbox(&open_id);
    assert_eq!(inbox[0].message["client_msg_id"], accepted.message_id);
    app.stop().await;
}

#[tokio::test]
async fn a_transient_refusal_is_tried_again_later() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(SHOP);
    world
        .sandbox
        .add_fault(Fault {
            errcode: Some(43108),
            ..Fault::at(SUBSCRIBE_SEND)
        })
        .unwrap();
    let accepted = app.send(subscribe(&open_id)).await.unwrap();
    let waiting = app
        .until(&accepted.message_id, |message| message.errcode == 43108)
        .await;
    assert_eq!(waiting.state(), MessageState::Queued);
    let millis = |time: Option<prost_types::Timestamp>| {
        let time = time.unwrap();
        time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
    };
    assert!(millis(waiting.next_attempt_time) > millis(waiting.create_time) + 900);
    let sent = app
        .until_state(&accepted.message_id, MessageState::Sent)
        .await;
    assert_eq!(
        (sent.attempts, sent.errcode, sent.possible_duplicate),
        (2, 0, false)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_open_id_fails_at_once_with_wechats_reason() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let accepted = app
        .send(template("oNobodyOfThisAccount_0000000"))
        .await
        .unwrap();
    let failed = app
        .until_state(&accepted.message_id, MessageState::Failed)
        .await;
    assert_eq!((failed.errcode, failed.attempts), (40003, 1));
    assert!(failed.errmsg.contains("openid"), "{}", failed.errmsg);
    assert_eq!(failed.next_attempt_time, None);
    app.stop().await;
}

#[tokio::test]
async fn a_spent_quota_waits_for_midnight_in_beijing() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    world
        .sandbox
        .add_fault(Fault {
            errcode: Some(45009),
            ..Fault::at(TEMPLATE_SEND)
        })
        .unwrap();
    let accepted = app.send(template(&open_id)).await.unwrap();
    let waiting = app
        .until(&accepted.message_id, |message| message.errcode == 45009)
        .await;
    assert_eq!(waiting.state(), MessageState::Queued);
    let next = waiting.next_attempt_time.unwrap().seconds;
    let since_midnight = (next + 8 * 3600) % (24 * 3600);
    assert!(since_midnight <= 301, "{since_midnight} s after midnight");
    app.stop().await;
}

#[tokio::test]
async fn a_template_of_unknown_outcome_is_repeated_and_told_once() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    // WeChat carries it out, and its answer is lost; then it says that it does not know.
    for fault in [
        Fault {
            reset: true,
            carried_out: true,
            ..Fault::at(TEMPLATE_SEND)
        },
        Fault {
            errcode: Some(-1),
            ..Fault::at(TEMPLATE_SEND)
        },
    ] {
        world.sandbox.add_fault(fault).unwrap();
    }
    let accepted = app.send(template(&open_id)).await.unwrap();
    let sent = app
        .until_state(&accepted.message_id, MessageState::Sent)
        .await;
    assert_eq!((sent.attempts, sent.possible_duplicate), (3, false));
    assert_eq!(world.inbox(&open_id).len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_outcome_is_repeated_where_at_least_once_is_wanted() {
    let mut world = World::with(Backend::Embedded, "at_least_once").await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    write_to(&world, NEWS, &open_id).await;
    world.sandbox.clear_inbox();
    world
        .sandbox
        .add_fault(Fault {
            reset: true,
            carried_out: true,
            ..Fault::at(CUSTOM_SEND)
        })
        .unwrap();
    let accepted = app.send(customer("news", &open_id, "twice")).await.unwrap();
    let sent = app
        .until_state(&accepted.message_id, MessageState::Sent)
        .await;
    assert_eq!((sent.attempts, sent.possible_duplicate), (2, true));
    assert_eq!(world.inbox(&open_id).len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_outcome_ends_where_at_most_once_is_wanted() {
    let mut world = World::with(Backend::Embedded, "at_most_once").await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    write_to(&world, NEWS, &open_id).await;
    for fault in [
        Fault {
            errcode: Some(-1),
            ..Fault::at(CUSTOM_SEND)
        },
        Fault {
            status: Some(502),
            body: Some("<html>Bad Gateway</html>".to_owned()),
            ..Fault::at(CUSTOM_SEND)
        },
    ] {
        world.sandbox.add_fault(fault).unwrap();
        let accepted = app.send(customer("news", &open_id, "once")).await.unwrap();
        let failed = app
            .until_state(&accepted.message_id, MessageState::Failed)
            .await;
        assert!(
            failed.errmsg.starts_with("OUTCOME_UNKNOWN"),
            "{}",
            failed.errmsg
        );
        assert_eq!((failed.attempts, failed.possible_duplicate), (1, false));
    }
    app.stop().await;
}

#[tokio::test]
async fn without_a_token_a_message_waits_and_no_attempt_is_counted() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    world.tokens.set_away(true);
    let accepted = app.send(template(&open_id)).await.unwrap();
    let waiting = app
        .until(&accepted.message_id, |message| !message.errmsg.is_empty())
        .await;
    assert_eq!(
        (waiting.state(), waiting.attempts),
        (MessageState::Queued, 0)
    );
    world.tokens.set_away(false);
    let sent = app
        .until_state(&accepted.message_id, MessageState::Sent)
        .await;
    assert_eq!((sent.attempts, sent.errmsg.as_str()), (1, ""));
    app.stop().await;
}

#[tokio::test]
async fn a_refused_token_that_cannot_be_reported_is_an_attempt() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let first = app.send(template(&open_id)).await.unwrap();
    app.until_state(&first.message_id, MessageState::Sent).await;

    world.tokens.set_away(true);
    world.sandbox.invalidate(NEWS).unwrap();
    let second = app.send(template(&open_id)).await.unwrap();
    let waiting = app
        .until(&second.message_id, |message| message.errcode == 40001)
        .await;
    assert!(waiting.attempts >= 1, "{waiting:?}");
    eventually("the others wait without one", SOON, async || {
        let other = app.send(template(&world.user(NEWS))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        app.get(&other.message_id).await.attempts == 0
    })
    .await;
    world.tokens.set_away(false);
    let sent = app
        .until_state(&second.message_id, MessageState::Sent)
        .await;
    assert_eq!((sent.errcode, sent.possible_duplicate), (0, false));
    assert_eq!(world.inbox(&open_id).len(), 2);
    app.stop().await;
}

#[tokio::test]
async fn while_a_new_token_is_refused_as_well_the_others_wait_without_an_attempt() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    for _ in 0..2 {
        let refused = Fault {
            errcode: Some(40001),
            ..Fault::at(TEMPLATE_SEND)
        };
        world.sandbox.add_fault(refused).unwrap();
    }
    let first = app.send(template(&open_id)).await.unwrap();
    let refused = app
        .until(&first.message_id, |message| message.errcode == 40001)
        .await;
    assert_eq!(
        (refused.state(), refused.attempts),
        (MessageState::Queued, 2)
    );
    // WeChat would take it.
    let second = app.send(template(&open_id)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiting = app.get(&second.message_id).await;
    assert_eq!(
        (waiting.state(), waiting.attempts),
        (MessageState::Queued, 0)
    );
    app.stop().await;
}

#[tokio::test]
async fn a_message_of_another_app_is_not_found() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_within(SOON, &accepted.message_id, |_| true).await;
    for message_id in [
        accepted.message_id.as_str(),
        "01890000-0000-7000-8000-000000000000",
        "no id",
    ] {
        let request = proto::push::v1::GetMessageRequest {
            message_id: message_id.to_owned(),
        };
        let refused = app
            .client_with("other-key")
            .get_message(request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }
    app.stop().await;
}
