//! Start, settings, catalog changes and the door to the operator.

use proto::push::v1::MessageState;
use service_kit::{Settings, cli::Service as _};
use test_support::eventually;
use tonic::Code;

use crate::world::{Backend, NEWS, SOON, World, template};

#[test]
fn every_missing_setting_is_named_with_an_example() {
    let text = push_service::PushService::configure(&Settings::default())
        .unwrap_err()
        .to_string();
    for example in [
        "WXHUB_CONFIG=/etc/wxhub/wxhub.toml",
        "WXHUB_REDIS_URL=redis://",
        "WXHUB_DATABASE_URL=mysql://",
        "WXHUB_TOKEN_URL=http://",
        "WXHUB_AUTH_URL=http://",
    ] {
        assert!(text.contains(example), "{example} is not in:\n{text}");
    }
    let embedded = Settings {
        embedded: Some("1".to_owned()),
        ..Settings::default()
    };
    let text = push_service::PushService::configure(&embedded)
        .unwrap_err()
        .to_string();
    assert!(
        !text.contains("WXHUB_REDIS_URL") && text.contains("WXHUB_AUTH_URL"),
        "{text}"
    );
}

#[tokio::test]
async fn it_is_ready_and_counts_what_it_does() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    eventually("it is ready", SOON, async || app.readiness().await == 200).await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    let metrics = app
        .http
        .get(format!("http://{}/metrics", app.addrs.ops))
        .send()
        .await
        .unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("wxhub_push_messages_accepted_total{kind=\"template\"}"),
        "{metrics}"
    );
    assert!(
        metrics.contains("wxhub_push_attempts_total{kind=\"template\",outcome=\"sent\"}"),
        "{metrics}"
    );
    app.stop().await;
}

#[tokio::test]
async fn an_app_that_leaves_the_catalog_is_not_found_any_more() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    let path = world.folder().join("wxhub.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let renamed = text
        .replace("name = \"news\"", "name = \"gone\"")
        .replace(NEWS, "wx0000000000000099");
    std::fs::write(&path, renamed).unwrap();
    eventually("the app is gone", SOON, async || {
        app.send(template("o1"))
            .await
            .is_err_and(|status| status.code() == Code::NotFound)
    })
    .await;
    let request = proto::push::v1::GetMessageRequest {
        message_id: accepted.message_id,
    };
    assert_eq!(
        app.client().get_message(request).await.unwrap_err().code(),
        Code::NotFound
    );
    app.stop().await;
}
