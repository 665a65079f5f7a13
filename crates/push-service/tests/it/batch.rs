//! Many messages in one call and one transaction.

use proto::push::v1::{
    BatchSendMessagesRequest, BatchSendResult, FieldViolation, Message, MessageState,
    SendMessageRequest, batch_send_result::Result as Outcome,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    form::put,
    stand_in::session,
    world::{Backend, NEWS, Running, SHOP, World, form_template, on_both, template},
};

async fn batch(
    app: &Running,
    app_id: &str,
    messages: Vec<SendMessageRequest>,
) -> Result<Vec<Outcome>, Status> {
    let request = BatchSendMessagesRequest {
        app_id: app_id.to_owned(),
        messages,
    };
    let answer = app.client().batch_send_messages(request).await?;
    let results = answer.into_inner().results;
    Ok(results
        .into_iter()
        .map(|BatchSendResult { result }| result.unwrap())
        .collect())
}

fn stored(outcome: &Outcome) -> &Message {
    match outcome {
        Outcome::Message(message) => message,
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

fn refused(outcome: &Outcome) -> (&str, &[FieldViolation]) {
    match outcome {
        Outcome::Error(error) => (&error.reason, &error.field_violations),
        Outcome::Message(message) => panic!("{message:?}"),
    }
}

fn with_id(request: SendMessageRequest, request_id: &str) -> SendMessageRequest {
    SendMessageRequest {
        request_id: request_id.to_owned(),
        ..request
    }
}

on_both! {
    async fn a_thousand_messages_are_stored_at_once_and_sent(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let messages = (0..1_000).map(|n| with_id(template(&open_id), &n.to_string())).collect();
        let results = batch(&app, "news", messages).await.unwrap();
        assert_eq!(results.len(), 1_000);
        let last = stored(&results[999]);
        assert_eq!(last.request_id, "999");
        app.until_state(&last.message_id, MessageState::Sent).await;
        app.stop().await;
    }

    async fn a_bad_message_fails_alone_and_in_its_place(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let (open_id, other) = (world.user(NEWS), world.user(NEWS));
        let elsewhere = SendMessageRequest {
            app_id: "shop".to_owned(),
            ..template(&open_id)
        };
        let results = batch(
            &app,
            NEWS,
            vec![
                template(""),
                with_id(template(&open_id), "one"),
                elsewhere,
                with_id(template(&open_id), "one"),
                with_id(template(&other), "one"),
                SendMessageRequest::default(),
            ],
        )
        .await
        .unwrap();
        let field = |outcome| {
            let (reason, fields) = refused(outcome);
            assert_eq!(reason, "INVALID_ARGUMENT");
            fields[0].field.as_str()
        };
        assert_eq!(field(&results[0]), "open_id");
        assert_eq!(field(&results[2]), "app_id");
        assert_eq!(stored(&results[3]).message_id, stored(&results[1]).message_id);
        assert_eq!(field(&results[4]), "request_id");
        assert_eq!(field(&results[5]), "open_id");

        // The same again, with one more.
        let again = vec![with_id(template(&open_id), "one"), with_id(template(&open_id), "two")];
        let again = batch(&app, "news", again).await.unwrap();
        assert_eq!(stored(&again[0]).message_id, stored(&results[1]).message_id);
        app.until_state(&stored(&again[1]).message_id, MessageState::Sent).await;
        assert_eq!(world.inbox(&open_id).len(), 2);
        app.stop().await;
    }

    async fn each_message_of_a_batch_takes_a_form_of_its_own(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(SHOP);
        for _ in 0..2 {
            let form = world.sandbox.form(SHOP, Some(&open_id)).unwrap();
            let body = format!("{{\"form_id\":\"{}\"}}", form.form_id);
            put(&app, Some(&session(SHOP, &open_id)), &body).await;
        }
        let results = batch(&app, "shop", vec![form_template(&open_id, ""); 3]).await.unwrap();
        for outcome in &results[..2] {
            let message_id = &stored(outcome).message_id;
            app.until_state(message_id, MessageState::Sent).await;
        }
        assert_eq!(refused(&results[2]).0, "FORM_ID_MISSING");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_batch_has_one_to_a_thousand_messages() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for count in [0, 1_001] {
        let refused = batch(&app, "news", vec![template("o1"); count]).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let fields = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields[0].field, "messages");
    }
    app.stop().await;
}

#[tokio::test]
async fn batches_that_share_request_ids_store_each_once() {
    let mut world = World::start(Backend::Servers).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let requests: Vec<_> = (0..100)
        .map(|n| with_id(template(&open_id), &n.to_string()))
        .collect();
    let backwards: Vec<_> = requests.iter().rev().cloned().collect();
    let (one, other) = tokio::join!(
        batch(&app, "news", requests),
        batch(&app, "news", backwards)
    );
    let ids = |outcomes: &[Outcome]| -> Vec<_> {
        outcomes
            .iter()
            .map(|outcome| stored(outcome).message_id.clone())
            .collect()
    };
    let mut other = ids(&other.unwrap());
    other.reverse();
    assert_eq!(ids(&one.unwrap()), other);
    app.stop().await;
}
