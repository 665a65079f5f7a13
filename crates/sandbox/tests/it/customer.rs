//! Customer-service messages and the windows in which they may be sent.

use sandbox::{Config, Deliver, MessageKind};
use serde_json::{Value, json};

use crate::world::{Callback, NEWS, SHOP, World, errcode};

fn hello(open_id: &str) -> Value {
    json!({"touser": open_id, "msgtype": "text", "text": {"content": "你好"}})
}

async fn send(world: &World, app_id: &str, body: &Value) -> i64 {
    let token = world.token(app_id).await;
    errcode(
        &world
            .post(
                &format!("/cgi-bin/message/custom/send?access_token={token}"),
                body,
            )
            .await,
    )
}

async fn world() -> (World, Callback) {
    let callback = Callback::obliging().await;
    (World::with(Config::dev(&callback.url)).await, callback)
}

fn says(app_id: &str, content: &str) -> Deliver {
    Deliver {
        app_id: app_id.to_owned(),
        content: Some(content.to_owned()),
        ..Deliver::default()
    }
}

fn does(app_id: &str, event: &str) -> Deliver {
    Deliver {
        app_id: app_id.to_owned(),
        event: Some(event.to_owned()),
        ..Deliver::default()
    }
}

#[tokio::test]
async fn a_users_message_allows_five_answers_within_two_days() {
    let (world, _callback) = world().await;
    let user = world.default_user(NEWS);
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 45015);
    world.state.deliver(says(NEWS, "hi")).await.unwrap();
    for _ in 0..5 {
        assert_eq!(send(&world, NEWS, &hello(&user)).await, 0);
    }
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 45047);
    world.state.deliver(says(NEWS, "hi")).await.unwrap();
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 0);
    world.pass(48 * 3600);
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 45015);
    let inbox = world.state.inbox(Some(NEWS), None);
    assert_eq!(
        (inbox.len(), inbox[0].kind, inbox[0].content.as_str()),
        (6, MessageKind::Customer, "你好")
    );
}

#[tokio::test]
async fn an_event_allows_a_few_answers_within_a_minute() {
    let (world, _callback) = world().await;
    for (app_id, event, allowed) in [(NEWS, "CLICK", 3), (SHOP, "user_enter_tempsession", 2)] {
        let user = world.default_user(app_id);
        world.state.deliver(does(app_id, event)).await.unwrap();
        for _ in 0..allowed {
            assert_eq!(send(&world, app_id, &hello(&user)).await, 0);
        }
        assert_eq!(send(&world, app_id, &hello(&user)).await, 45047);
        world.state.deliver(does(app_id, event)).await.unwrap();
        world.pass(60);
        assert_eq!(send(&world, app_id, &hello(&user)).await, 45015);
    }
}

#[tokio::test]
async fn whoever_unfollowed_cannot_be_written_to() {
    let (world, _callback) = world().await;
    let user = world.default_user(NEWS);
    world.state.deliver(says(NEWS, "hi")).await.unwrap();
    world
        .state
        .deliver(does(NEWS, "unsubscribe"))
        .await
        .unwrap();
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 45015);
    world.state.deliver(does(NEWS, "subscribe")).await.unwrap();
    assert_eq!(send(&world, NEWS, &hello(&user)).await, 0);
}

#[tokio::test]
async fn contents_are_checked() {
    let (world, _callback) = world().await;
    world.state.deliver(says(NEWS, "hi")).await.unwrap();
    world.state.deliver(says(SHOP, "hi")).await.unwrap();
    let (follower, player) = (world.default_user(NEWS), world.default_user(SHOP));
    let media_id = world.state.media(NEWS).unwrap().media_id;
    let text = |content: &str| json!({"touser": follower, "msgtype": "text", "text": {"content": content}});
    for (app_id, body, code) in [
        (NEWS, text(&"x".repeat(2048)), 0),
        (NEWS, text(&"x".repeat(2049)), 45002),
        (NEWS, text(""), 44004),
        (
            NEWS,
            json!({"touser": "nobody", "msgtype": "text", "text": {"content": "a"}}),
            40003,
        ),
        (NEWS, json!({"touser": follower, "msgtype": "song"}), 40008),
        (NEWS, json!({"touser": follower, "msgtype": "text"}), 47001),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "image", "image": {"media_id": "m"}}),
            40007,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "image", "image": {"media_id": media_id}}),
            0,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "video", "video": {"media_id": media_id}}),
            40007,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "music", "music": {"thumb_media_id": media_id}}),
            47001,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "msgmenu", "msgmenu": {"list": [{"id": "1"}]}}),
            47001,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "news", "news": {"articles": [{}, {}]}}),
            45008,
        ),
        (
            NEWS,
            json!({"touser": follower, "msgtype": "link", "link": {"title": "a"}}),
            48008,
        ),
        (
            SHOP,
            json!({"touser": player, "msgtype": "link", "link": {"title": "a"}}),
            0,
        ),
    ] {
        assert_eq!(send(&world, app_id, &body).await, code, "{body}");
    }
}

async fn types(world: &World, app_id: &str, path: &str, body: &Value) -> i64 {
    let token = world.token(app_id).await;
    let path = format!("/cgi-bin/message/custom/{path}?access_token={token}");
    errcode(&world.post(&path, body).await)
}

#[tokio::test]
async fn typing_follows_a_message_and_is_shown_once() {
    let (world, _callback) = world().await;
    for (app_id, path, other) in [
        (NEWS, "typing", "business/typing"),
        (SHOP, "business/typing", "typing"),
    ] {
        let user = world.default_user(app_id);
        let typing = json!({"touser": user, "command": "Typing"});
        let cancel = json!({"touser": user, "command": "CancelTyping"});
        assert_eq!(types(&world, app_id, other, &typing).await, 40200);
        assert_eq!(types(&world, app_id, path, &typing).await, 45080);
        world.state.deliver(says(app_id, "hi")).await.unwrap();
        assert_eq!(types(&world, app_id, path, &typing).await, 0);
        assert_eq!(types(&world, app_id, path, &typing).await, 45081);
        assert_eq!(types(&world, app_id, path, &cancel).await, 0);
        assert_eq!(types(&world, app_id, path, &typing).await, 0);
        assert_eq!(send(&world, app_id, &hello(&user)).await, 0);
        assert_eq!(types(&world, app_id, path, &typing).await, 0);
        let wrong = json!({"touser": user, "command": "Type"});
        assert_eq!(types(&world, app_id, path, &wrong).await, 45072);
        let nobody = json!({"touser": "nobody", "command": "Typing"});
        assert_eq!(types(&world, app_id, path, &nobody).await, 40003);
        world.pass(30);
        assert_eq!(types(&world, app_id, path, &typing).await, 45080);
    }
}
