//! Messages by filter: listed, and queued again.

use std::{fmt::Write as _, time::Duration};

use proto::push::v1::{
    ListMessagesRequest, Message, MessageFilter, MessageState, RetryMessagesRequest,
    SendMessageRequest,
};
use sandbox::Fault;
use service_kit::Clock;
use test_support::eventually;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::world::{Backend, NEWS, Running, SHOP, World, on_both, template};

/// 2026-11-20 00:00:00 UTC.
const START: i64 = 1_795_132_800;
const CONTENT: &str = r#"{"kind":"template","template_id":"TEMPLATE_ORDER_PAID","url":null,"mini_program":null,"data":{"thing1":"x","amount2":"¥1","time3":"2026-11-21 10:00"}}"#;

/// A row as it lies in the table.
struct Row {
    app_id: &'static str,
    state: MessageState,
    errcode: i64,
    /// Unix seconds at which it was accepted.
    time: i64,
}

/// Writes rows for one user, as if they had been accepted at their times.
async fn store(world: &World, open_id: &str, rows: &[Row]) {
    for rows in rows.chunks(1_000) {
        let mut sql = "INSERT INTO message (message_id, app_id, open_id, caller, content, state, attempts, possible_duplicate, errcode, errmsg, create_time, lane) VALUES ".to_owned();
        for (number, row) in rows.iter().enumerate() {
            let time = chrono::DateTime::from_timestamp(row.time, 0).unwrap();
            let time = match world.redis {
                Some(_) => time.format("%Y-%m-%d %H:%M:%S"),
                None => time.format("%Y-%m-%dT%H:%M:%S+00:00"),
            };
            let millis = u64::try_from(row.time).unwrap() * 1_000;
            let id = uuid::Builder::from_unix_timestamp_millis(millis, &rand::random());
            write!(
                sql,
                "{} ('{}', '{}', '{open_id}', 'dev', '{CONTENT}', {}, 1, 0, {}, '', '{time}', '0/{}/template/dev')",
                if number == 0 { "" } else { "," },
                id.into_uuid(),
                row.app_id,
                row.state as i32,
                row.errcode,
                row.app_id,
            )
            .unwrap();
        }
        world.query(&sql).await;
    }
}

fn of_news() -> MessageFilter {
    MessageFilter {
        app_id: "news".to_owned(),
        ..MessageFilter::default()
    }
}

fn failed() -> MessageFilter {
    MessageFilter {
        states: vec![MessageState::Failed.into()],
        ..of_news()
    }
}

/// Every page, and how many there were.
async fn list(app: &Running, filter: MessageFilter, page_size: i32) -> (Vec<Message>, usize) {
    let mut request = ListMessagesRequest {
        filter: Some(filter),
        page_size,
        ..ListMessagesRequest::default()
    };
    let (mut messages, mut pages) = (Vec::new(), 0);
    loop {
        let page = app.client().list_messages(request.clone()).await;
        let page = page.unwrap().into_inner();
        pages += 1;
        messages.extend(page.messages);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (messages, pages);
        }
    }
}

/// How many were queued, or would be, and in how many calls.
async fn retry(app: &Running, filter: MessageFilter, dry_run: bool) -> (i64, usize) {
    let mut request = RetryMessagesRequest {
        filter: Some(filter),
        dry_run,
        ..RetryMessagesRequest::default()
    };
    let (mut count, mut calls) = (0, 0);
    loop {
        let part = app.client().retry_messages(request.clone()).await;
        let part = part.unwrap().into_inner();
        calls += 1;
        count += part.count;
        request.page_token = part.next_page_token;
        if request.page_token.is_empty() {
            return (count, calls);
        }
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let bad = status.get_details_bad_request().unwrap();
    let fields = bad.field_violations.into_iter();
    fields.map(|violation| violation.field).collect()
}

on_both! {
    async fn thousands_are_listed_page_by_page_the_newest_first(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let rows = (0..12_500).map(|number| Row {
            app_id: if number % 5 == 0 { SHOP } else { NEWS },
            // The failed ones lie beyond what one call looks at.
            state: if number % 100 == 1 && number < 1_000 { MessageState::Failed } else { MessageState::Sent },
            errcode: if number % 200 == 1 { 43004 } else { 0 },
            // Ten share a second.
            time: START + number / 10,
        });
        store(&world, &world.user(NEWS), &rows.collect::<Vec<_>>()).await;

        let (messages, pages) = list(&app, of_news(), 1_000).await;
        assert_eq!((messages.len(), pages), (10_000, 11));
        assert!(messages.windows(2).all(|pair| pair[0].message_id > pair[1].message_id));
        assert!(messages.iter().all(|message| message.app_id == NEWS));

        let (found, pages) = list(&app, failed(), 4).await;
        assert_eq!(found.len(), 10);
        assert!(pages <= 5, "{pages}");
        let with_errcode = MessageFilter { errcode: Some(43004), ..failed() };
        assert_eq!(list(&app, with_errcode, 0).await.0.len(), 5);

        // From the second 100 to the second 199: ten each, of which two are the mini program's.
        let within = MessageFilter {
            start_time: seconds(START + 100),
            end_time: seconds(START + 200),
            ..of_news()
        };
        let (messages, _) = list(&app, within, 1_000).await;
        assert_eq!(messages.len(), 800);
        let times = messages.iter().map(|message| message.create_time.unwrap().seconds);
        assert!(times.clone().min() == Some(START + 100) && times.max() == Some(START + 199));
        let never = MessageFilter { end_time: seconds(START), ..of_news() };
        assert!(list(&app, never, 0).await.0.is_empty());
        let nobody = MessageFilter { open_id: "oNobody".to_owned(), ..of_news() };
        assert!(list(&app, nobody, 0).await.0.is_empty());
    }

    async fn what_failed_is_queued_again_part_by_part(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let user = world.user(NEWS);
        let rows = (0..2_700).map(|number| Row {
            app_id: NEWS,
            state: if number % 9 == 0 { MessageState::Cancelled } else { MessageState::Failed },
            errcode: if number % 2 == 0 { 43004 } else { 45009 },
            time: START + number,
        });
        store(&world, &user, &rows.collect::<Vec<_>>()).await;

        assert_eq!(retry(&app, of_news(), true).await, (2_400, 3));
        let unfollowed = MessageFilter { errcode: Some(43004), ..failed() };
        assert_eq!(retry(&app, unfollowed.clone(), true).await, (1_200, 2));
        assert!(world.inbox(&user).is_empty(), "a dry run sends nothing");

        assert_eq!(retry(&app, unfollowed.clone(), false).await.0, 1_200);
        let states = vec![MessageState::Sent.into(), MessageState::Delivered.into()];
        let sent = MessageFilter { states, ..of_news() };
        eventually("all are sent", Duration::from_secs(60), async || {
            let (sent, _) = list(&app, sent.clone(), 1_000).await;
            if sent.len() == 1_200 { Ok(sent) } else { Err(sent.len()) }
        })
        .await;
        assert_eq!(world.inbox(&user).len(), 1_200);
        assert_eq!(retry(&app, unfollowed, false).await.0, 0);
        assert_eq!(retry(&app, of_news(), true).await.0, 1_200);
    }

    async fn a_retried_message_is_as_if_it_had_never_been_tried(backend: Backend) {
        let mut world = World::with(backend, "at_most_once").await;
        let app = world.app().await;
        let user = world.user(NEWS);
        let fault = |errcode| Fault {
            errcode: Some(errcode),
            ..Fault::at("/cgi-bin/message/template/send")
        };
        world.sandbox.add_fault(fault(43004)).unwrap();
        let accepted = app.send(template(&user)).await.unwrap();
        let gone = app.until_state(&accepted.message_id, MessageState::Failed).await;
        assert_eq!((gone.attempts, gone.errcode), (1, 43004));
        assert_eq!(retry(&app, failed(), false).await, (1, 1));
        let sent = app.until_state(&accepted.message_id, MessageState::Sent).await;
        assert_eq!(sent.attempts, 1);
        assert_eq!(world.inbox(&user).len(), 1);
    }

    async fn derived_states_are_found(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let user = world.user(NEWS);
        let later = Clock::System.now() + Duration::from_secs(3_600);
        let scheduled = SendMessageRequest {
            schedule_time: Some(later.into()),
            ..template(&user)
        };
        let scheduled = app.send(scheduled).await.unwrap();
        let sent = app.send(template(&user)).await.unwrap();
        app.until_state(&sent.message_id, MessageState::Delivered).await;
        for (state, expected) in [
            (MessageState::Scheduled, vec![&scheduled.message_id]),
            (MessageState::Delivered, vec![&sent.message_id]),
            (MessageState::Queued, vec![]),
            (MessageState::Expired, vec![]),
        ] {
            let filter = MessageFilter { states: vec![state.into()], ..of_news() };
            let (found, _) = list(&app, filter, 0).await;
            let found: Vec<_> = found.iter().map(|message| &message.message_id).collect();
            assert_eq!(found, expected, "{state:?}");
        }
        let either = MessageFilter {
            states: vec![MessageState::Delivered.into(), MessageState::Scheduled.into()],
            open_id: user,
            ..of_news()
        };
        assert_eq!(list(&app, either, 1).await.0.len(), 2);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_filter_is_named() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for (filter, wrong) in [
        (
            MessageFilter {
                states: vec![0],
                ..of_news()
            },
            "filter.states",
        ),
        (
            MessageFilter {
                states: vec![99],
                ..of_news()
            },
            "filter.states",
        ),
        (
            MessageFilter {
                broadcast_id: "x".to_owned(),
                ..of_news()
            },
            "filter.broadcast_id",
        ),
        (
            MessageFilter {
                open_id: "a b".to_owned(),
                ..of_news()
            },
            "filter.open_id",
        ),
        (
            MessageFilter {
                start_time: seconds(-1),
                ..of_news()
            },
            "filter.start_time",
        ),
        (
            MessageFilter {
                end_time: seconds(i64::MAX),
                ..of_news()
            },
            "filter.end_time",
        ),
        (
            MessageFilter {
                start_time: seconds(START),
                end_time: seconds(START),
                ..of_news()
            },
            "filter.end_time",
        ),
    ] {
        let request = ListMessagesRequest {
            filter: Some(filter.clone()),
            ..ListMessagesRequest::default()
        };
        let refused = app.client().list_messages(request).await.unwrap_err();
        assert_eq!(fields(&refused), [wrong]);
        let request = RetryMessagesRequest {
            filter: Some(filter),
            ..RetryMessagesRequest::default()
        };
        let refused = app.client().retry_messages(request).await.unwrap_err();
        assert_eq!(fields(&refused), [wrong]);
    }
    for (page_size, page_token, wrong) in [
        (1_001, String::new(), "page_size"),
        (-1, String::new(), "page_size"),
        (0, Uuid::nil().to_string(), "page_token"),
    ] {
        let request = ListMessagesRequest {
            filter: Some(of_news()),
            page_size,
            page_token,
        };
        let refused = app.client().list_messages(request).await.unwrap_err();
        assert_eq!(fields(&refused), [wrong]);
    }
    let of_sent = MessageFilter {
        states: vec![MessageState::Sent.into()],
        ..of_news()
    };
    let request = RetryMessagesRequest {
        filter: Some(of_sent),
        ..RetryMessagesRequest::default()
    };
    let refused = app.client().retry_messages(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["filter.states"]);
}

#[tokio::test]
async fn another_callers_app_is_unknown() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    // `other` has the mini program alone.
    let mut other = app.client_with("other-key");
    let request = ListMessagesRequest {
        filter: Some(of_news()),
        ..ListMessagesRequest::default()
    };
    let refused = other.list_messages(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = RetryMessagesRequest {
        filter: Some(of_news()),
        ..RetryMessagesRequest::default()
    };
    let refused = other.retry_messages(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    // Without a filter no app is meant.
    let refused = other.list_messages(ListMessagesRequest::default()).await;
    assert_eq!(fields(&refused.unwrap_err()), ["filter.app_id"]);
}

#[tokio::test]
async fn a_time_that_is_none_is_refused() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    for wrong in [i64::MAX, i64::MIN, -1] {
        let request = SendMessageRequest {
            schedule_time: seconds(wrong),
            ..template("oReader")
        };
        let refused = app.send(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["schedule_time"]);
    }
}
