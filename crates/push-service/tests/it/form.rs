//! `POST /form`, and messages that take what it stored.

use proto::push::v1::{
    MessageFilter, MessageState, RetryMessageRequest, RetryMessagesRequest, SendMessageRequest,
};
use reqwest::StatusCode;
use serde_json::Value;
use service_kit::Clock;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    stand_in::session,
    world::{Backend, NEWS, Running, SHOP, World, form_template, on_both},
};

pub(crate) async fn put(
    app: &Running,
    authorization: Option<&str>,
    body: &str,
) -> (StatusCode, Value) {
    let mut request = app.http.post(app.url("/form")).body(body.to_owned());
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap_or_default())
}

on_both! {
    async fn a_stored_form_id_is_used_once_the_soonest_to_expire_first(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        let session = session(SHOP, &open_id);
        let mut form_ids = Vec::new();
        for authorization in [session.clone(), format!("bearer  {session}")] {
            let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
            let body = format!("{{\"form_id\":\"{}\"}}", form.form_id);
            for _ in 0..2 {
                assert_eq!(put(&app, Some(&authorization), &body).await.0, StatusCode::NO_CONTENT);
            }
            form_ids.push(form.form_id);
        }
        for form_id in &form_ids {
            let accepted = app.send(form_template(&open_id, "")).await.unwrap();
            app.until_state(&accepted.message_id, MessageState::Sent).await;
            let inbox = world.inbox(&open_id);
            assert_eq!(inbox.last().unwrap().message["form_id"], form_id.as_str());
        }
        let refused = app.send(form_template(&open_id, "")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.get_details_error_info().unwrap().reason, "FORM_ID_MISSING");
        app.stop().await;
    }

    async fn a_form_id_that_comes_again_after_its_use_is_not_used_again(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        let session = session(SHOP, &open_id);
        let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
        let body = format!("{{\"form_id\":\"{}\"}}", form.form_id);
        put(&app, Some(&session), &body).await;
        let accepted = app.send(form_template(&open_id, "")).await.unwrap();
        app.until_state(&accepted.message_id, MessageState::Sent).await;

        assert_eq!(put(&app, Some(&session), &body).await.0, StatusCode::NO_CONTENT);
        let refused = app.send(form_template(&open_id, "")).await.unwrap_err();
        assert_eq!(refused.get_details_error_info().unwrap().reason, "FORM_ID_MISSING");
        app.stop().await;
    }

    async fn a_planned_message_takes_a_form_id_that_is_good_until_then(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        let session = session(SHOP, &open_id);
        let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
        put(&app, Some(&session), &format!("{{\"form_id\":\"{}\"}}", form.form_id)).await;
        let ahead = |hours: i64| {
            let mut time = prost_types::Timestamp::from(Clock::System.now());
            time.seconds += hours * 3_600;
            SendMessageRequest { schedule_time: Some(time), ..form_template(&open_id, "") }
        };
        let refused = app.send(ahead(7 * 24)).await.unwrap_err();
        assert_eq!(refused.get_details_error_info().unwrap().reason, "FORM_ID_MISSING");
        let planned = app.send(ahead(7 * 24 - 1)).await.unwrap();
        assert_eq!(planned.state(), MessageState::Scheduled);
        app.stop().await;
    }

    async fn a_retry_takes_another_form_id_than_the_one_that_was_spent(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        let session = session(SHOP, &open_id);
        // WeChat knows nothing of these.
        let mut failed = Vec::new();
        for form_id in ["forged1", "forged2"] {
            put(&app, Some(&session), &format!("{{\"form_id\":\"{form_id}\"}}")).await;
            let accepted = app.send(form_template(&open_id, "")).await.unwrap();
            let message = app.until_state(&accepted.message_id, MessageState::Failed).await;
            assert_eq!(message.errcode, 41028);
            failed.push(message.message_id);
        }
        let retry = async |message_id: &str| {
            let request = RetryMessageRequest { message_id: message_id.to_owned() };
            app.client().retry_message(request).await
        };
        let retry_all = async || {
            let filter = MessageFilter { app_id: "shop".to_owned(), ..MessageFilter::default() };
            let request = RetryMessagesRequest { filter: Some(filter), ..RetryMessagesRequest::default() };
            app.client().retry_messages(request).await.unwrap().into_inner().count
        };
        let refused = retry(&failed[0]).await.unwrap_err();
        assert_eq!(refused.get_details_error_info().unwrap().reason, "FORM_ID_MISSING");
        assert_eq!(retry_all().await, 0);

        for by_hand in [true, false] {
            let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
            put(&app, Some(&session), &format!("{{\"form_id\":\"{}\"}}", form.form_id)).await;
            let message_id = if by_hand {
                retry(&failed[0]).await.unwrap();
                &failed[0]
            } else {
                assert_eq!(retry_all().await, 1);
                &failed[1]
            };
            app.until_state(message_id, MessageState::Sent).await;
            let inbox = world.inbox(&open_id);
            assert_eq!(inbox.last().unwrap().message["form_id"], form.form_id.as_str());
        }
        app.stop().await;
    }

    async fn messages_at_once_take_different_form_ids(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        let session = session(SHOP, &open_id);
        for _ in 0..4 {
            let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
            put(&app, Some(&session), &format!("{{\"form_id\":\"{}\"}}", form.form_id)).await;
        }
        let sends = (0..4).map(|_| app.send(form_template(&open_id, "")));
        for accepted in futures_util::future::join_all(sends).await {
            app.until_state(&accepted.unwrap().message_id, MessageState::Sent).await;
        }
        assert_eq!(world.inbox(&open_id).len(), 4);
        app.stop().await;
    }
}

#[tokio::test]
async fn what_is_no_form_id_or_no_session_is_refused() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let shopper = session(SHOP, "oShopper");
    let reader = session(NEWS, "oReader");
    let endless = session(SHOP, &"o".repeat(129));
    let long = format!("{{\"form_id\":\"{}\"}}", "x".repeat(129));
    for (authorization, body, status, code) in [
        (
            None,
            "{\"form_id\":\"f\"}",
            StatusCode::UNAUTHORIZED,
            "SESSION_INVALID",
        ),
        (
            Some("nonsense"),
            "{\"form_id\":\"f\"}",
            StatusCode::UNAUTHORIZED,
            "SESSION_INVALID",
        ),
        (
            Some(&*endless),
            "{\"form_id\":\"f\"}",
            StatusCode::UNAUTHORIZED,
            "SESSION_INVALID",
        ),
        (
            Some(&*reader),
            "{\"form_id\":\"f\"}",
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
        ),
        (
            Some(&*shopper),
            "{\"form_id\":\"\"}",
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
        ),
        (
            Some(&*shopper),
            "{\"form_id\":\"f \"}",
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
        ),
        (
            Some(&*shopper),
            &*long,
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
        ),
        (
            Some(&*shopper),
            "{\"form_id\":\"the formId is a mock one\"}",
            StatusCode::BAD_REQUEST,
            "INVALID_ARGUMENT",
        ),
        (
            Some(&*shopper),
            "{\"form_id\":",
            StatusCode::BAD_REQUEST,
            "INVALID_JSON",
        ),
    ] {
        let (got, error) = put(&app, authorization, body).await;
        assert_eq!(
            (got, error["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
    }
    app.stop().await;
}
