//! The typing state on its way to WeChat.

use proto::push::v1::SendTypingRequest;
use sandbox::{Deliver, Fault};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{Backend, NEWS, Running, SHOP, World};

fn typing(app: &str, open_id: &str) -> SendTypingRequest {
    SendTypingRequest {
        app_id: app.to_owned(),
        open_id: open_id.to_owned(),
        ..SendTypingRequest::default()
    }
}

async fn send(app: &Running, request: SendTypingRequest) -> Result<(), Status> {
    app.client().send_typing(request).await.map(drop)
}

/// The user writes to the app.
async fn says(world: &World, app_id: &str, open_id: &str) {
    let says = Deliver {
        app_id: app_id.to_owned(),
        open_id: Some(open_id.to_owned()),
        content: Some("在吗".to_owned()),
        ..Deliver::default()
    };
    world.sandbox.deliver(says).await.unwrap();
}

/// What WeChat was asked at the end of this path, and what it answered.
fn asked(world: &World, path: &str) -> Vec<String> {
    let calls = world.sandbox.calls(None).log.into_iter();
    let calls = calls.filter(|call| call.endpoint.ends_with(path));
    calls.map(|call| call.outcome).collect()
}

#[tokio::test]
async fn it_goes_to_the_interface_of_the_app_and_may_be_repeated() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for (name, app_id, path) in [
        ("news", NEWS, "/custom/typing"),
        ("shop", SHOP, "/custom/business/typing"),
    ] {
        let user = world.user(app_id);
        says(&world, app_id, &user).await;
        send(&app, typing(name, &user)).await.unwrap();
        // It is shown already: that is what was wanted.
        send(&app, typing(name, &user)).await.unwrap();
        let cancel = SendTypingRequest {
            cancel: true,
            ..typing(app_id, &user)
        };
        send(&app, cancel).await.unwrap();
        assert_eq!(asked(&world, path), ["ok", "45081", "ok"]);
    }
}

#[tokio::test]
async fn a_refusal_carries_wechats_words() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let user = world.user(NEWS);
    let refused = send(&app, typing("news", &user)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "WECHAT_REFUSED");
    assert_eq!(info.metadata["errcode"], "45080");
    assert!(!info.metadata["rid"].is_empty());

    says(&world, NEWS, &user).await;
    world
        .sandbox
        .add_fault(Fault {
            reset: true,
            ..Fault::at("/cgi-bin/message/custom/typing")
        })
        .unwrap();
    let refused = send(&app, typing("news", &user)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!(info.reason, "WECHAT_UNAVAILABLE");
    send(&app, typing("news", &user)).await.unwrap();
}

#[tokio::test]
async fn a_dead_token_is_reported_and_the_next_one_used() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let user = world.user(NEWS);
    says(&world, NEWS, &user).await;
    send(&app, typing("news", &user)).await.unwrap();
    world.sandbox.invalidate(NEWS).unwrap();
    let cancel = SendTypingRequest {
        cancel: true,
        ..typing("news", &user)
    };
    send(&app, cancel).await.unwrap();
    assert_eq!(world.tokens.reports(), 1);
    assert_eq!(asked(&world, "/custom/typing"), ["ok", "40001", "ok"]);
}

#[tokio::test]
async fn who_and_whom_are_checked() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let refused = send(&app, typing("news", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields[0].field, "open_id");
    let refused = send(&app, typing("nobodys", "oX")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    // `other` has the mini program alone.
    let mut other = app.client_with("other-key");
    let refused = other.send_typing(typing("news", "oX")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(asked(&world, "/typing").is_empty());
}
