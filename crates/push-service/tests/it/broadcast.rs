//! Broadcasts: one content for many users, on any number of replicas.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use proto::push::v1::{
    AddBroadcastRecipientsRequest, AddBroadcastRecipientsResponse, Broadcast, BroadcastState,
    CancelBroadcastRequest, CreateBroadcastRequest, GetBroadcastRequest, ListBroadcastsRequest,
    MessageState, PauseBroadcastRequest, ResumeBroadcastRequest, RetryMessageRequest,
    StartBroadcastRequest, WatchBroadcastRequest, create_broadcast_request::Content,
    send_message_request,
};
use sandbox::Fault;
use service_kit::{Clock, settings::DatabaseUrl};
use test_support::{FaultProxy, eventually};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{
    AFTER_LEASE, Backend, Client, NEWS, Running, SHOP, World, customer, on_both, subscribe,
    template,
};

const TEMPLATE_SEND: &str = "/cgi-bin/message/template/send";
/// A broadcast of thousands on a busy machine.
const LONG: Duration = Duration::from_secs(90);

fn news(request_id: &str) -> CreateBroadcastRequest {
    let Some(send_message_request::Content::Template(template)) = template("").content else {
        panic!("no template");
    };
    CreateBroadcastRequest {
        app_id: "news".to_owned(),
        request_id: request_id.to_owned(),
        content: Some(Content::Template(template)),
        expire_time: None,
    }
}

fn parts(
    broadcast_id: &str,
    open_ids: &[String],
    size: usize,
) -> Vec<AddBroadcastRecipientsRequest> {
    let parts = open_ids.chunks(size).enumerate();
    let part = |(place, open_ids): (usize, &[String])| AddBroadcastRecipientsRequest {
        // Later parts need not say it again.
        broadcast_id: if place == 0 {
            broadcast_id.to_owned()
        } else {
            String::new()
        },
        open_ids: open_ids.to_vec(),
    };
    parts.map(part).collect()
}

/// What an operator does to broadcasts, through one replica.
struct Desk(Client);

impl Desk {
    fn at(app: &Running) -> Self {
        Self(app.client())
    }

    async fn create(&mut self, request: CreateBroadcastRequest) -> Result<Broadcast, Status> {
        let answer = self.0.create_broadcast(request).await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn add(
        &mut self,
        parts: Vec<AddBroadcastRecipientsRequest>,
    ) -> Result<AddBroadcastRecipientsResponse, Status> {
        let parts = tokio_stream::iter(parts);
        Ok(self.0.add_broadcast_recipients(parts).await?.into_inner())
    }

    /// A draft for these users.
    async fn draft(&mut self, open_ids: &[String]) -> String {
        let broadcast_id = self.create(news("")).await.unwrap().broadcast_id;
        let added = self.add(parts(&broadcast_id, open_ids, 500)).await.unwrap();
        assert_eq!(added.broadcast.unwrap().recipients, open_ids.len() as i64);
        broadcast_id
    }

    /// A broadcast to these users that runs.
    async fn running(&mut self, open_ids: &[String]) -> String {
        let broadcast_id = self.draft(open_ids).await;
        let started = self.start(&broadcast_id).await.unwrap();
        assert_eq!(started.state(), BroadcastState::Running);
        broadcast_id
    }

    async fn start(&mut self, broadcast_id: &str) -> Result<Broadcast, Status> {
        let broadcast_id = broadcast_id.to_owned();
        let answer = self
            .0
            .start_broadcast(StartBroadcastRequest { broadcast_id })
            .await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn pause(&mut self, broadcast_id: &str) -> Result<Broadcast, Status> {
        let broadcast_id = broadcast_id.to_owned();
        let answer = self
            .0
            .pause_broadcast(PauseBroadcastRequest { broadcast_id })
            .await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn resume(&mut self, broadcast_id: &str) -> Result<Broadcast, Status> {
        let broadcast_id = broadcast_id.to_owned();
        let answer = self
            .0
            .resume_broadcast(ResumeBroadcastRequest { broadcast_id })
            .await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn cancel(&mut self, broadcast_id: &str) -> Result<Broadcast, Status> {
        let broadcast_id = broadcast_id.to_owned();
        let answer = self
            .0
            .cancel_broadcast(CancelBroadcastRequest { broadcast_id })
            .await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn get(&mut self, broadcast_id: &str) -> Result<Broadcast, Status> {
        let broadcast_id = broadcast_id.to_owned();
        let answer = self
            .0
            .get_broadcast(GetBroadcastRequest { broadcast_id })
            .await?;
        Ok(answer.into_inner().broadcast.unwrap())
    }

    async fn list(&mut self, page_size: i32, page_token: &str) -> (Vec<String>, String) {
        let request = ListBroadcastsRequest {
            app_id: "news".to_owned(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = self.0.list_broadcasts(request).await.unwrap().into_inner();
        let ids = page.broadcasts.into_iter().map(|found| found.broadcast_id);
        (ids.collect(), page.next_page_token)
    }

    /// The broadcast once it is as wanted.
    async fn until(&self, broadcast_id: &str, wanted: impl Fn(&Broadcast) -> bool) -> Broadcast {
        eventually("the broadcast is as wanted", LONG, async || {
            let request = GetBroadcastRequest {
                broadcast_id: broadcast_id.to_owned(),
            };
            let found = self.0.clone().get_broadcast(request).await?.into_inner();
            let found = found.broadcast.unwrap();
            assert_eq!(found.recipients, found.waiting + ended(&found), "{found:?}");
            if wanted(&found) {
                Ok(found)
            } else {
                Err(Status::internal(format!("{found:?}")))
            }
        })
        .await
    }

    async fn until_over(&self, broadcast_id: &str) -> Broadcast {
        self.until(broadcast_id, |found| {
            found.end_time.is_some() && found.waiting == 0
        })
        .await
    }
}

fn ended(broadcast: &Broadcast) -> i64 {
    broadcast.sent
        + broadcast.delivered
        + broadcast.failed
        + broadcast.cancelled
        + broadcast.expired
}

/// How many got it as far as is known: a receipt may have come by now.
fn got(broadcast: &Broadcast) -> i64 {
    broadcast.sent + broadcast.delivered
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

fn users(world: &World, count: usize) -> Vec<String> {
    (0..count).map(|_| world.user(NEWS)).collect()
}

/// How often each user got something.
fn received(world: &World) -> HashMap<String, usize> {
    let mut received = HashMap::new();
    for message in world.sandbox.inbox(Some(NEWS), None) {
        *received.entry(message.open_id).or_default() += 1;
    }
    received
}

/// WeChat takes its time, so that there is a middle to do something in.
fn slow(world: &World) {
    let slow = Fault {
        delay_ms: Some(300),
        times: 1_000_000,
        ..Fault::at(TEMPLATE_SEND)
    };
    world.sandbox.add_fault(slow).unwrap();
}

on_both! {
    async fn a_broadcast_reaches_each_of_its_users_once(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let all = users(&world, 2_500);
        let created = desk.create(news("spring")).await.unwrap();
        assert_eq!((created.state(), created.app_id.as_str()), (BroadcastState::Draft, NEWS));
        assert_eq!((created.caller.as_str(), created.request_id.as_str()), ("dev", "spring"));
        let id = created.broadcast_id;
        assert_eq!(desk.create(news("spring")).await.unwrap().broadcast_id, id);

        // An upload that broke off is made again.
        let added = desk.add(parts(&id, &all[..1_700], 700)).await.unwrap();
        assert_eq!((added.added, added.repeated_count), (1_700, 0));
        let added = desk.add(parts(&id, &all, 700)).await.unwrap();
        assert_eq!((added.added, added.repeated_count), (800, 1_700));
        assert_eq!(added.broadcast.unwrap().waiting, 2_500);

        desk.start(&id).await.unwrap();
        let request = WatchBroadcastRequest { broadcast_id: id.clone() };
        let mut told = desk.0.watch_broadcast(request).await.unwrap().into_inner();
        let (mut last, mut rated) = (Broadcast::default(), false);
        while let Some(next) = told.message().await.unwrap() {
            let next = next.broadcast.unwrap();
            assert!(ended(&next) >= ended(&last), "{next:?} after {last:?}");
            rated |= next.rate > 0.0 && next.estimated_finish_time.is_some();
            last = next;
        }
        assert_eq!((last.state(), got(&last), last.waiting), (BroadcastState::Finished, 2_500, 0));
        assert!(last.start_time.is_some() && last.end_time.is_some() && last.rate == 0.0);
        assert!(rated, "nothing told how fast it goes");
        let received = received(&world);
        assert!(received.len() == 2_500 && received.values().all(|count| *count == 1));

        // To start it again is no error, and sends nothing.
        assert_eq!(desk.start(&id).await.unwrap().state(), BroadcastState::Finished);
        let rows = world
            .query(&format!("SELECT message_id FROM message WHERE broadcast_id = '{id}'"))
            .await;
        assert_eq!(rows.len(), 2_500);
        let message_id: String = rows[0].try_get("", "message_id").unwrap();
        assert_eq!(app.get(&message_id).await.broadcast_id, id);
        assert!(world.query("SELECT 1 FROM broadcast_recipient").await.is_empty());
        app.stop().await;
    }

    async fn uploads_of_one_list_at_a_time_count_each_user_once(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let all: Vec<_> = (0..4_000).map(|number| format!("o{number}")).collect();
        let id = desk.create(news("")).await.unwrap().broadcast_id;
        let uploads = (0..4).map(|shift| {
            let mut mine = all.clone();
            mine.rotate_left(shift * 1_000);
            let (parts, mut desk) = (parts(&id, &mine, 900), Desk::at(&app));
            async move { desk.add(parts).await.unwrap() }
        });
        let added = futures_util::future::join_all(uploads).await;
        assert_eq!(added.iter().map(|added| added.added).sum::<i64>(), 4_000);
        assert_eq!(desk.get(&id).await.unwrap().recipients, 4_000);
        app.stop().await;
    }

    async fn a_paused_broadcast_sends_nothing_until_it_is_resumed(backend: Backend) {
        let mut world = World::start(backend).await;
        let apps = [world.app().await, world.app().await];
        let mut desk = Desk::at(&apps[0]);
        slow(&world);
        let all = users(&world, 3_000);
        let id = desk.running(&all).await;
        desk.until(&id, |found| got(found) > 100).await;
        let paused = desk.pause(&id).await.unwrap();
        assert_eq!((paused.state(), paused.rate), (BroadcastState::Paused, 0.0));
        // What was on the wire is ended; whatever is no part of it goes on.
        let arrived = || world.sandbox.inbox(None, None).len();
        eventually("nothing arrives but what is sent by itself", LONG, async || {
            let before = arrived();
            for app in &apps {
                let own = app.send(template(&all[0])).await.unwrap();
                app.until_state(&own.message_id, MessageState::Sent).await;
            }
            arrived() == before + apps.len()
        })
        .await;
        let still = desk.get(&id).await.unwrap();
        assert!(still.waiting > 0, "{still:?}");
        let again = desk.pause(&id).await.unwrap();
        assert_eq!((again.state(), again.waiting), (still.state(), still.waiting));
        assert_eq!(desk.resume(&id).await.unwrap().state(), BroadcastState::Running);
        let over = desk.until_over(&id).await;
        assert_eq!((over.state(), got(&over)), (BroadcastState::Finished, 3_000));
        for app in apps {
            app.stop().await;
        }
    }

    async fn a_cancelled_broadcast_takes_back_what_waits(backend: Backend) {
        let mut world = World::start(backend).await;
        let doomed = world.app().await;
        let mut desk = Desk::at(&doomed);
        slow(&world);
        // More than wait in the queue at a time.
        let all: Vec<_> = users(&world, 200)
            .into_iter()
            .chain((0..12_000).map(|number| format!("z{number}")))
            .collect();
        let id = desk.running(&all).await;
        desk.until(&id, |found| got(found) > 20).await;
        let cancelled = desk.cancel(&id).await.unwrap();
        assert_eq!(cancelled.state(), BroadcastState::Cancelled);
        // What its replica has no time for any more is done by another.
        doomed.kill().await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let request = WatchBroadcastRequest { broadcast_id: id.clone() };
        let mut told = desk.0.watch_broadcast(request).await.unwrap().into_inner();
        let mut last = Broadcast::default();
        while let Some(next) = told.message().await.unwrap() {
            last = next.broadcast.unwrap();
        }
        assert_eq!((last.state(), last.waiting), (BroadcastState::Cancelled, 0));
        assert!(last.cancelled > 11_000 && ended(&last) == 12_200, "{last:?}");
        let count = |sql: &'static str| {
            let world = &world;
            async move { world.query(sql).await.len() as i64 }
        };
        assert_eq!(count("SELECT 1 FROM message WHERE state IN (2, 3)").await, 0);
        assert_eq!(count("SELECT 1 FROM message WHERE state IN (4, 5)").await, got(&last));
        eventually("its recipients are removed", LONG, async || {
            count("SELECT 1 FROM broadcast_recipient").await == 0
        })
        .await;
        eventually("it is let alone", LONG, async || {
            count("SELECT 1 FROM broadcast WHERE state = 4").await == 1
        })
        .await;
        let again = desk.cancel(&id).await.unwrap();
        assert_eq!((again.state(), again.cancelled), (last.state(), last.cancelled));
        app.stop().await;
    }

    async fn what_is_not_sent_in_time_expires(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let mut request = news("in-time");
        let mut expires = prost_types::Timestamp::from(Clock::System.now());
        expires.seconds += 3;
        request.expire_time = Some(expires);
        let id = desk.create(request.clone()).await.unwrap().broadcast_id;
        desk.add(parts(&id, &users(&world, 50), 50)).await.unwrap();
        world.tokens.set_away(true);
        desk.start(&id).await.unwrap();
        let over = desk.until_over(&id).await;
        assert_eq!((over.state(), over.expired, got(&over)), (BroadcastState::Finished, 50, 0));
        // Whoever asks again learns how it went, and nobody begins another so late.
        assert_eq!(desk.create(request.clone()).await.unwrap().broadcast_id, id);
        for request_id in ["", "too-late"] {
            request.request_id = request_id.to_owned();
            let refused = desk.create(request.clone()).await.unwrap_err();
            let fields = refused.get_details_bad_request().unwrap().field_violations;
            assert_eq!(fields[0].field, "expire_time");
        }
        app.stop().await;
    }

    async fn failures_are_counted_and_may_be_tried_again(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let refusal = Fault { errcode: Some(43004), times: 3, ..Fault::at(TEMPLATE_SEND) };
        world.sandbox.add_fault(refusal).unwrap();
        let id = desk.running(&users(&world, 20)).await;
        let over = desk.until_over(&id).await;
        assert_eq!((over.state(), got(&over), over.failed), (BroadcastState::Finished, 17, 3));
        for row in world.query("SELECT message_id FROM message WHERE state = 6").await {
            let message_id = row.try_get("", "message_id").unwrap();
            app.client().retry_message(RetryMessageRequest { message_id }).await.unwrap();
        }
        let over = desk.until(&id, |found| got(found) == 20 && found.end_time.is_some()).await;
        assert_eq!((over.state(), over.failed), (BroadcastState::Finished, 0));
        app.stop().await;
    }

    async fn replicas_share_a_broadcast_and_one_may_die(backend: Backend) {
        let mut world = World::start(backend).await;
        let (doomed, app) = (world.app().await, world.app().await);
        let mut desk = Desk::at(&app);
        slow(&world);
        let all = users(&world, 2_000);
        let id = desk.running(&all).await;
        desk.until(&id, |found| got(found) > 300).await;
        doomed.kill().await;
        let again = world.app().await;
        let over = desk.until_over(&id).await;
        assert_eq!((over.state(), got(&over)), (BroadcastState::Finished, 2_000));
        // WeChat tells repeats of a template.
        let received = received(&world);
        assert_eq!(received.keys().collect::<BTreeSet<_>>(), all.iter().collect());
        assert!(received.values().all(|count| *count == 1));
        for app in [app, again] {
            app.stop().await;
        }
    }

    async fn a_state_that_does_not_allow_it_is_told(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let draft = desk.create(news("")).await.unwrap().broadcast_id;
        let refused = desk.start(&draft).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "BROADCAST_EMPTY"));
        for refused in [desk.pause(&draft).await, desk.resume(&draft).await] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert_eq!(reason(&refused), "BROADCAST_STATE_WRONG");
            assert!(refused.message().contains("DRAFT"), "{refused:?}");
        }
        let id = desk.running(&users(&world, 1)).await;
        desk.until_over(&id).await;
        let late = desk.add(parts(&id, &["oLate".to_owned()], 1)).await;
        for refused in [late.map(drop), desk.cancel(&id).await.map(drop), desk.pause(&id).await.map(drop)] {
            let refused = refused.unwrap_err();
            assert_eq!(reason(&refused), "BROADCAST_STATE_WRONG");
            assert!(refused.message().contains("FINISHED"), "{refused:?}");
        }
        let cancelled = desk.cancel(&draft).await.unwrap();
        assert_eq!(cancelled.state(), BroadcastState::Cancelled);
        for refused in [desk.start(&draft).await, desk.resume(&draft).await] {
            assert_eq!(reason(&refused.unwrap_err()), "BROADCAST_STATE_WRONG");
        }
        app.stop().await;
    }

    async fn broadcasts_are_listed_from_the_newest(backend: Backend) {
        let mut world = World::start(backend).await;
        let app = world.app().await;
        let mut desk = Desk::at(&app);
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.insert(0, desk.create(news("")).await.unwrap().broadcast_id);
        }
        let (first, token) = desk.list(2, "").await;
        assert_eq!(first, ids[..2]);
        let (rest, token) = desk.list(2, &token).await;
        assert_eq!((rest.as_slice(), token.as_str()), (&ids[2..], ""));
        app.stop().await;
    }
}

#[tokio::test]
async fn a_broadcast_of_another_teams_app_is_unknown() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let mut desk = Desk::at(&app);
    let id = desk.draft(&["oOne".to_owned()]).await;
    // It has the app `shop` alone.
    let mut foreign = Desk(app.client_with("other-key"));
    let watched = foreign.0.watch_broadcast(WatchBroadcastRequest {
        broadcast_id: id.clone(),
    });
    let watched = watched.await.map(drop);
    let unknown = "01a1fd06-a086-74f6-b740-c10657eb05bf";
    for refused in [
        watched,
        foreign.get(&id).await.map(drop),
        foreign.start(&id).await.map(drop),
        foreign.pause(&id).await.map(drop),
        foreign.resume(&id).await.map(drop),
        foreign.cancel(&id).await.map(drop),
        foreign
            .add(parts(&id, &["oTwo".to_owned()], 1))
            .await
            .map(drop),
        desk.get(unknown).await.map(drop),
        desk.get("nothing").await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::NotFound, "BROADCAST_NOT_FOUND")
        );
    }
    assert_eq!(
        foreign.create(news("")).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(desk.get(&id).await.unwrap().recipients, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_malformed_broadcast_is_refused_with_its_fields() {
    let mut world = World::start(Backend::Embedded).await;
    let app = world.app().await;
    let mut desk = Desk::at(&app);
    let fields = |refused: Status| {
        let fields = refused.get_details_bad_request().unwrap().field_violations;
        fields.into_iter().map(|bad| bad.field).collect::<Vec<_>>()
    };
    let Some(send_message_request::Content::Subscribe(subscribe)) = subscribe("").content else {
        panic!("no subscribe message");
    };
    let bad = CreateBroadcastRequest {
        request_id: "spring sale".to_owned(),
        content: None,
        expire_time: Some(prost_types::Timestamp {
            seconds: 253_402_300_799,
            nanos: 0,
        }),
        ..news("")
    };
    assert_eq!(
        fields(desk.create(bad).await.unwrap_err()),
        ["expire_time", "request_id", "content"]
    );
    // An official account has no subscribe messages of this kind.
    let bad = CreateBroadcastRequest {
        content: Some(Content::Subscribe(subscribe)),
        ..news("")
    };
    assert!(!fields(desk.create(bad).await.unwrap_err()).is_empty());
    desk.create(news("one")).await.unwrap();
    let Some(send_message_request::Content::Customer(other)) = customer(SHOP, "", "在吗").content
    else {
        panic!("no text");
    };
    let other = CreateBroadcastRequest {
        content: Some(Content::Customer(other)),
        ..news("one")
    };
    assert_eq!(
        fields(desk.create(other).await.unwrap_err()),
        ["request_id"]
    );

    // A part with somebody who is none adds nobody, those before it do.
    let id = desk.create(news("")).await.unwrap().broadcast_id;
    let open_ids = ["oA", "oB", "oC", "小明"].map(str::to_owned);
    let refused = desk.add(parts(&id, &open_ids, 2)).await.unwrap_err();
    assert!(refused.message().contains("number 4 of"), "{refused:?}");
    assert_eq!(fields(refused), ["open_ids[1]"]);
    assert_eq!(desk.get(&id).await.unwrap().recipients, 2);
    assert_eq!(
        fields(desk.add(Vec::new()).await.unwrap_err()),
        ["broadcast_id"]
    );
    app.stop().await;
}

#[tokio::test]
async fn a_watcher_outlasts_the_database() {
    let mut world = World::start(Backend::Servers).await;
    let proxy = FaultProxy::start(world.config.database.expose()).await;
    world.config.database = DatabaseUrl::new(proxy.url(world.config.database.expose()));
    let app = world.app().await;
    let mut desk = Desk::at(&app);
    slow(&world);
    let id = desk.running(&users(&world, 1_000)).await;
    let request = WatchBroadcastRequest { broadcast_id: id };
    let mut told = desk.0.watch_broadcast(request).await.unwrap().into_inner();
    let mut last = told.message().await.unwrap().unwrap().broadcast.unwrap();
    proxy.cut().await;
    let cut = Instant::now();
    eventually("it was away for long", AFTER_LEASE, async || {
        cut.elapsed() > Duration::from_secs(3)
    })
    .await;
    proxy.heal().await;
    while let Some(next) = told.message().await.unwrap() {
        last = next.broadcast.unwrap();
    }
    assert_eq!(
        (last.state(), got(&last)),
        (BroadcastState::Finished, 1_000)
    );
    app.stop().await;
}
