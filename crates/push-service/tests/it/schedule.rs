//! Messages that wait for their time, run out of it, are taken back, or are tried again by hand.

use std::time::{Duration, SystemTime};

use proto::push::v1::{
    BatchSendMessagesRequest, CancelMessageRequest, Message, MessageState, RetryMessageRequest,
    SendMessageRequest, batch_send_result::Result as Outcome,
};
use sandbox::Fault;
use service_kit::Clock;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{Backend, NEWS, Running, World, on_both, template};

const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";

fn later(seconds: i64) -> Option<prost_types::Timestamp> {
    let mut time = prost_types::Timestamp::from(Clock::System.now());
    time.seconds += seconds;
    Some(time)
}

async fn cancel(app: &Running, message: &Message) -> Result<Message, Status> {
    let message_id = message.message_id.clone();
    let request = CancelMessageRequest { message_id };
    let answer = app.client().cancel_message(request).await?;
    Ok(answer.into_inner().message.unwrap())
}

async fn retry(app: &Running, message: &Message) -> Result<Message, Status> {
    let message_id = message.message_id.clone();
    let request = RetryMessageRequest { message_id };
    let answer = app.client().retry_message(request).await?;
    Ok(answer.into_inner().message.unwrap())
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

on_both! {
    async fn a_scheduled_message_leaves_at_its_time_and_not_before(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let request = SendMessageRequest {
            schedule_time: later(2),
            ..template(&open_id)
        };
        let accepted = app.send(request.clone()).await.unwrap();
        assert_eq!(accepted.state(), MessageState::Scheduled);
        assert_eq!(accepted.next_attempt_time, accepted.schedule_time);
        let sent = app.until_state(&accepted.message_id, MessageState::Sent).await;
        let time = |time: Option<prost_types::Timestamp>| SystemTime::try_from(time.unwrap()).unwrap();
        // MariaDB's clock and ours are one here, but are read at different moments.
        assert!(time(sent.sent_time) + Duration::from_millis(5) >= time(request.schedule_time));
        assert_eq!(world.inbox(&open_id).len(), 1);
        app.stop().await;
    }

    async fn a_message_is_taken_back_until_it_is_on_the_wire(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let scheduled = app
            .send(SendMessageRequest {
                schedule_time: later(3_600),
                ..template(&open_id)
            })
            .await
            .unwrap();
        for _ in 0..2 {
            let cancelled = cancel(&app, &scheduled).await.unwrap();
            assert_eq!(cancelled.state(), MessageState::Cancelled);
            assert_eq!(cancelled.next_attempt_time, None);
        }
        let sent = app.send(template(&open_id)).await.unwrap();
        app.until_state(&sent.message_id, MessageState::Delivered).await;
        let refused = cancel(&app, &sent).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused), "MESSAGE_NOT_CANCELLABLE");
        assert!(refused.message().contains("DELIVERED"), "{refused:?}");
        let unknown = Message {
            message_id: "01a1fd06-a086-74f6-b740-c10657eb05bf".to_owned(),
            ..Message::default()
        };
        assert_eq!(cancel(&app, &unknown).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(world.inbox(&open_id).len(), 1);
        app.stop().await;
    }

    async fn what_is_not_sent_in_time_expires(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        world
            .sandbox
            .add_fault(Fault {
                errcode: Some(45011),
                ..Fault::at(TEMPLATE_SEND)
            })
            .unwrap();
        // WeChat asks for a minute, which the message does not have.
        let request = SendMessageRequest {
            expire_time: later(3),
            ..template(&open_id)
        };
        let accepted = app.send(request).await.unwrap();
        let expired = app.until_state(&accepted.message_id, MessageState::Expired).await;
        assert_eq!((expired.attempts, expired.errcode), (1, 45011));
        assert!(world.inbox(&open_id).is_empty());
        app.stop().await;
    }

    async fn a_repeat_after_its_time_is_over_is_the_first_message(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        let brief = |request_id: &str| SendMessageRequest {
            request_id: request_id.to_owned(),
            expire_time: later(2),
            ..template(&open_id)
        };
        let (repeated, late) = (brief("first"), brief("late"));
        let first = app.send(repeated.clone()).await.unwrap();
        app.until_state(&first.message_id, MessageState::Sent).await;
        tokio::time::sleep(Duration::from_secs(3)).await;

        let again = app.send(repeated.clone()).await.unwrap();
        assert_eq!(again.message_id, first.message_id);
        // One that is new is still refused, with a request_id or without.
        let nameless = SendMessageRequest {
            request_id: String::new(),
            ..late.clone()
        };
        for new in [late.clone(), nameless] {
            let refused = app.send(new).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            let fields = refused.get_details_bad_request().unwrap().field_violations;
            assert_eq!(fields[0].field, "expire_time");
        }

        let request = BatchSendMessagesRequest {
            app_id: "news".to_owned(),
            messages: vec![late, repeated, template(&open_id)],
        };
        let answer = app.client().batch_send_messages(request).await.unwrap().into_inner();
        let results: Vec<_> = answer.results.into_iter().map(|result| result.result.unwrap()).collect();
        let [Outcome::Error(late), Outcome::Message(again), Outcome::Message(new)] = results.as_slice() else {
            panic!("{results:?}");
        };
        assert_eq!(late.reason, "INVALID_ARGUMENT");
        assert_eq!(late.field_violations[0].field, "expire_time");
        assert_eq!(again.message_id, first.message_id);
        assert_ne!(new.message_id, first.message_id);
        app.stop().await;
    }

    async fn a_failed_message_is_tried_again_by_hand(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        world
            .sandbox
            .add_fault(Fault {
                errcode: Some(43004),
                ..Fault::at(TEMPLATE_SEND)
            })
            .unwrap();
        let accepted = app.send(template(&open_id)).await.unwrap();
        app.until_state(&accepted.message_id, MessageState::Failed).await;
        let queued = retry(&app, &accepted).await.unwrap();
        assert_eq!(queued.attempts, 0);
        let sent = app.until_state(&accepted.message_id, MessageState::Sent).await;
        assert_eq!((sent.attempts, sent.possible_duplicate), (1, false));
        assert_eq!(world.inbox(&open_id).len(), 1);
        let refused = retry(&app, &accepted).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused), "MESSAGE_NOT_RETRYABLE");
        app.stop().await;
    }
}

#[tokio::test]
async fn times_that_make_no_sense_are_refused() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for (schedule_time, expire_time, field) in [
        (later(367 * 24 * 3_600), None, "schedule_time"),
        (None, later(-1), "expire_time"),
        (later(60), later(30), "expire_time"),
    ] {
        let request = SendMessageRequest {
            schedule_time,
            expire_time,
            ..template("o1")
        };
        let refused = app.send(request).await.unwrap_err();
        let fields = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields[0].field, field);
    }
    // In the past is at once, and a repeat names the same times.
    let request = SendMessageRequest {
        request_id: "r1".to_owned(),
        schedule_time: later(-60),
        ..template("o1")
    };
    let first = app.send(request.clone()).await.unwrap();
    assert_eq!(first.state(), MessageState::Queued);
    let again = app.send(request.clone()).await.unwrap();
    assert_eq!(again.message_id, first.message_id);
    let other = SendMessageRequest {
        schedule_time: later(60),
        ..request
    };
    assert_eq!(
        app.send(other).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    app.stop().await;
}
