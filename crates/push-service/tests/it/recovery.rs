//! Workers die, stores go away: what was accepted is sent all the same.

use std::time::Duration;

use proto::push::v1::MessageState;
use sandbox::{Deliver, Fault};
use service_kit::settings::DatabaseUrl;
use test_support::{FaultProxy, eventually};
use tonic_types::StatusExt as _;

use crate::world::{AFTER_LEASE, Backend, NEWS, SOON, World, customer, is_sent, on_both, template};

const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";

on_both! {
    async fn what_a_killed_worker_left_is_sent_by_another(backend: Backend) {
        let mut world = World::start(backend).await;
        let doomed = world.app().await;
        let open_id = world.user(NEWS);
        // The call is on the wire when its worker dies, and WeChat never carries it out.
        world
            .sandbox
            .add_fault(Fault { delay_ms: Some(2_500), reset: true, ..Fault::at(TEMPLATE_SEND) })
            .unwrap();
        let accepted = doomed.send(template(&open_id)).await.unwrap();
        doomed.until_state(&accepted.message_id, MessageState::Sending).await;
        doomed.kill().await;

        let app = world.app().await;
        let sent = app
            .until_within(AFTER_LEASE, &accepted.message_id, is_sent)
            .await;
        assert_eq!((sent.attempts, sent.possible_duplicate), (2, false));
        assert_eq!(world.inbox(&open_id).len(), 1);
        app.stop().await;
    }

    async fn what_was_accepted_while_nobody_delivers_is_sent_at_the_next_start(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let open_id = world.user(NEWS);
        world.tokens.set_away(true);
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(app.send(template(&open_id)).await.unwrap().message_id);
        }
        app.kill().await;
        world.tokens.set_away(false);
        let app = world.app().await;
        for id in &ids {
            let sent = app.until_within(AFTER_LEASE, id, is_sent).await;
            assert_eq!((sent.attempts, sent.possible_duplicate), (1, false));
        }
        assert_eq!(world.inbox(&open_id).len(), 10);
        app.stop().await;
    }

    async fn replicas_share_the_queue_and_send_each_message_once(backend: Backend) {
        let mut world = World::start(backend).await;
        let apps = [world.app().await, world.app().await];
        let open_id = world.user(NEWS);
        let sends = (0..100).map(|number| apps[number % 2].send(template(&open_id)));
        for accepted in futures_util::future::join_all(sends).await {
            let sent = apps[0].until_state(&accepted.unwrap().message_id, MessageState::Sent).await;
            assert_eq!(sent.attempts, 1);
        }
        assert_eq!(world.inbox(&open_id).len(), 100);
        for app in apps {
            app.stop().await;
        }
    }
}

#[tokio::test]
async fn without_redis_messages_are_accepted_and_leave_at_the_poll() {
    let mut world = World::start(Backend::Servers).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let redis = world.redis.as_ref().unwrap();
    redis.kill();
    let accepted = app.send(template(&open_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    redis.restart().await;
    let accepted = app.send(template(&open_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    app.stop().await;
}

#[tokio::test]
async fn shutdown_ends_what_is_on_the_wire() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let open_id = world.user(NEWS);
    world
        .sandbox
        .add_fault(Fault {
            delay_ms: Some(1_500),
            ..Fault::at(TEMPLATE_SEND)
        })
        .unwrap();
    let accepted = app.send(template(&open_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sending)
        .await;
    app.stop().await;
    let app = world.app().await;
    let message = app.get(&accepted.message_id).await;
    assert!(is_sent(&message) && message.attempts == 1, "{message:?}");
    app.stop().await;
}

#[tokio::test]
async fn shutdown_puts_back_what_is_not_on_the_wire() {
    let mut world = World::start(Backend::Embedded).await;
    world.tokens.silence();
    let app = world.app().await;
    let accepted = app.send(template(&world.user(NEWS))).await.unwrap();
    let due = accepted.next_attempt_time.unwrap();
    app.until(&accepted.message_id, |message| {
        // Claimed.
        message.next_attempt_time.unwrap().seconds > due.seconds + 5
    })
    .await;
    app.stop().await;
    let rows = world
        .query("SELECT state, attempts, errmsg, claim_id FROM message")
        .await;
    let [row] = &rows[..] else {
        panic!("{} rows", rows.len());
    };
    assert_eq!(row.try_get::<u32>("", "attempts").unwrap(), 0);
    assert_eq!(row.try_get::<String>("", "errmsg").unwrap(), "");
    assert_eq!(row.try_get::<Option<String>>("", "claim_id").unwrap(), None);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_given_up() {
    let mut world = World::start(Backend::Embedded).await;
    world.tokens.set_away(true);
    let app = world.app().await;
    for _ in 0..2 {
        app.send(template(&world.user(NEWS))).await.unwrap();
    }
    app.stop().await;
    for spoil in [
        "UPDATE message SET app_id = '' WHERE message_id = (SELECT MIN(message_id) FROM message)",
        "UPDATE message SET content = '{}' WHERE app_id <> ''",
    ] {
        world.query(spoil).await;
    }
    let app = world.app().await;
    eventually("both are given up", SOON, async || {
        let failed = "SELECT 1 FROM message WHERE state = 6 AND attempts = 0 AND claim_id IS NULL";
        world.query(failed).await.len() == 2
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn a_database_that_stops_answering_is_unavailable_until_it_answers() {
    let mut world = World::start(Backend::Servers).await;
    let proxy = FaultProxy::start(world.config.database.expose()).await;
    world.config.database = DatabaseUrl::new(proxy.url(world.config.database.expose()));
    let app = world.app().await;
    let open_id = world.user(NEWS);
    let accepted = app.send(template(&open_id)).await.unwrap();
    app.until_state(&accepted.message_id, MessageState::Sent)
        .await;
    proxy.stall();
    let unanswered = app.try_get(&accepted.message_id).await.unwrap_err();
    let reason = unanswered.get_details_error_info().unwrap().reason;
    assert_eq!(reason, "STORE_UNAVAILABLE");
    proxy.heal().await;
    let again = eventually("it is accepted", SOON, async || {
        app.send(template(&open_id)).await
    })
    .await;
    app.until_state(&again.message_id, MessageState::Sent).await;
    app.stop().await;
}

/// WeChat took the message while the database was away: its worker's outcome wins over the suspicion that it died.
#[tokio::test]
async fn an_outcome_survives_a_database_that_is_away_longer_than_the_lease() {
    let mut world = World::start(Backend::Servers).await;
    let proxy = FaultProxy::start(world.config.database.expose()).await;
    world.config.database = DatabaseUrl::new(proxy.url(world.config.database.expose()));
    let apps = [world.app().await, world.app().await];
    let open_id = world.user(NEWS);
    let deliver = Deliver {
        app_id: NEWS.to_owned(),
        open_id: Some(open_id.clone()),
        content: Some("在吗".to_owned()),
        ..Deliver::default()
    };
    world.sandbox.deliver(deliver).await.unwrap();
    world.sandbox.clear_inbox();
    world
        .sandbox
        .add_fault(Fault {
            delay_ms: Some(1_500),
            ..Fault::at("/cgi-bin/message/custom/send")
        })
        .unwrap();
    let accepted = apps[0]
        .send(customer("news", &open_id, "once"))
        .await
        .unwrap();
    apps[0]
        .until_state(&accepted.message_id, MessageState::Sending)
        .await;
    proxy.cut().await;
    let cut = tokio::time::Instant::now();
    eventually(
        "WeChat took it and the lease is over",
        AFTER_LEASE,
        async || world.inbox(&open_id).len() == 1 && cut.elapsed() > Duration::from_secs(9),
    )
    .await;
    proxy.heal().await;
    let message = eventually("the database answers", AFTER_LEASE, async || {
        apps[0]
            .try_get(&accepted.message_id)
            .await
            .and_then(|message| match message.state() {
                MessageState::Sent => Ok(message),
                state => Err(tonic::Status::internal(state.as_str_name())),
            })
    })
    .await;
    assert_eq!((message.attempts, message.possible_duplicate), (1, false));
    assert_eq!(world.inbox(&open_id).len(), 1);
    for app in apps {
        app.stop().await;
    }
}

#[tokio::test]
async fn connections_take_no_locks_on_gaps() {
    let world = World::start(Backend::Servers).await;
    let rows = world
        .query("SHOW SESSION VARIABLES LIKE 't%isolation'")
        .await;
    let level: String = rows[0].try_get("", "Value").unwrap();
    assert_eq!(level, "READ-COMMITTED");
}
