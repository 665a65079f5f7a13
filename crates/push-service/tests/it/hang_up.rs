//! Callers that hang up: what they asked for is stored and sent, or not stored.

use std::{
    collections::HashMap,
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use proto::push::v1::{BatchSendMessagesRequest, GetMessageRequest, SendMessageRequest};
use rand::RngExt as _;
use reqwest::StatusCode;
use service_kit::settings::DatabaseUrl;
use test_support::{FaultProxy, eventually};
use tonic::{Code, Status};

use crate::world::{Backend, Client, NEWS, Running, SHOP, World, form_template, template};
use crate::{form::put, stand_in::session};

/// What is stored is attempted within this, once all is well again.
const RECOVERED: Duration = Duration::from_secs(10);
/// More steps than an acceptance has, the making of a connection included.
const STEPS: usize = 100;
/// The longest that a caller waits who hangs up at any moment, and that the database is away.
const LONGEST: Duration = Duration::from_millis(50);
/// Longer than an acceptance waits for the database.
const HANGS: Duration = Duration::from_secs(6);
/// Callers at once.
const CALLERS: usize = 20;
/// Messages of one batch.
const BATCH: usize = 3;

/// What a caller calls.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// SendMessage.
    Send,
    /// SendMessage, to an account.
    SendToAccount,
    /// SendMessage, with a form_id of the pool.
    SendForm,
    /// BatchSendMessages, to open_ids and to an account.
    Batch,
}

const CALLS: [Call; 4] = [Call::Send, Call::SendToAccount, Call::SendForm, Call::Batch];

impl Call {
    /// How many messages it asks for.
    fn messages(self) -> usize {
        match self {
            Self::Send | Self::SendToAccount | Self::SendForm => 1,
            Self::Batch => BATCH,
        }
    }
}

/// How Redis is all along.
#[derive(Debug, Clone, Copy)]
enum Redis {
    Up,
    Down,
    /// It takes connections and never answers.
    Hangs,
}

/// What becomes of the database after the caller hung up.
#[derive(Debug, Clone, Copy)]
enum Database {
    /// It answers, late.
    GoesOn,
    /// It is gone, and with it what it was asked.
    Fails,
}

/// A replica whose way to the database can be held at each step, and another one that sends.
struct Test {
    world: World,
    line: FaultProxy,
    front: Running,
    other: Running,
    user: String,
    shopper: String,
    /// How many form_ids were collected.
    forms: AtomicUsize,
}

impl Test {
    /// The other replica reaches the database whatever happens.
    async fn start(redis: Redis) -> Self {
        Self::with(redis, false).await
    }

    /// Both replicas lose the database when one does.
    async fn start_all_on_one_line(redis: Redis) -> Self {
        Self::with(redis, true).await
    }

    async fn with(redis: Redis, one_line: bool) -> Self {
        let mut world = World::start(Backend::Servers).await;
        let database = world.config.database.expose().to_owned();
        let line = FaultProxy::start(&database).await;
        let held = DatabaseUrl::new(line.url(&database));
        let direct = std::mem::replace(&mut world.config.database, held);
        let front = world.app().await;
        if !one_line {
            world.config.database = direct.clone();
        }
        let other = world.app().await;
        world.config.database = direct;
        let (user, shopper) = (world.user(NEWS), world.user(SHOP));
        world.auth.bind(NEWS, "reader", &user);
        let server = world.redis.as_ref().unwrap();
        match redis {
            Redis::Up => {}
            Redis::Down => server.kill(),
            Redis::Hangs => server.pause(),
        }
        Self {
            world,
            line,
            front,
            other,
            user,
            shopper,
            forms: AtomicUsize::new(0),
        }
    }

    /// Another form_id for the pool.
    async fn collect_form(&self) {
        let form = self.world.sandbox.form(SHOP, Some(&self.shopper)).unwrap();
        let body = format!("{{\"form_id\":\"{}\"}}", form.form_id);
        let session = session(SHOP, &self.shopper);
        eventually("the pool takes it", RECOVERED, async || {
            put(&self.other, Some(&session), &body).await.0 == StatusCode::NO_CONTENT
        })
        .await;
        self.forms.fetch_add(1, Ordering::SeqCst);
    }

    fn request(&self, call: Call, number: usize, request_id: String) -> SendMessageRequest {
        let message = match call {
            Call::SendForm => form_template(&self.shopper, ""),
            Call::Send | Call::SendToAccount | Call::Batch => template(&self.user),
        };
        let to_account = match call {
            Call::SendToAccount => true,
            Call::Batch => number > 0,
            Call::Send | Call::SendForm => false,
        };
        let (open_id, account) = if to_account {
            (String::new(), "reader".to_owned())
        } else {
            (message.open_id, String::new())
        };
        SendMessageRequest {
            request_id,
            open_id,
            account,
            ..message
        }
    }

    async fn call(&self, client: &mut Client, call: Call, name: &str) -> Result<(), Status> {
        match call {
            Call::Send | Call::SendToAccount | Call::SendForm => {
                let request = self.request(call, 0, name.to_owned());
                client.send_message(request).await.map(|_| ())
            }
            Call::Batch => {
                let messages =
                    (0..BATCH).map(|number| self.request(call, number, format!("{name}/{number}")));
                let request = BatchSendMessagesRequest {
                    app_id: "news".to_owned(),
                    messages: messages.collect(),
                };
                client.batch_send_messages(request).await.map(|_| ())
            }
        }
    }

    /// Hangs up at every step that the call takes with the database. Returns how many there are.
    async fn hang_up_at_every_step(&self, call: Call, database: Database, name: &str) -> usize {
        for step in 0..STEPS {
            let mut client = self.front.client();
            // The connection stands before anything is held.
            hear(&mut client).await;
            if matches!(call, Call::SendForm) {
                self.collect_form().await;
            }
            self.line.stall_after(step);
            let name = format!("{name}/{step}");
            let ended = unless(self.call(&mut client, call, &name), self.line.stalled());
            let ended = ended.await;
            // What is answered after the hang-up was read after it.
            hear(&mut client).await;
            if matches!(database, Database::Fails) {
                self.line.cut().await;
            }
            self.line.heal().await;
            if ended.is_some() {
                return step;
            }
        }
        panic!("a call takes more than {STEPS} steps");
    }

    /// Every request_id is not stored, or stored with all of its batch, sent in time, and once. Returns how many are stored.
    async fn judge(&self) -> usize {
        let rows = eventually("what is stored is sent", RECOVERED, async || {
            let sql =
                "SELECT request_id, message_id, form_id, state, attempts, errmsg FROM message";
            let rows = self.world.query(sql).await;
            let waiting = rows.iter().find(|row| {
                let state: i8 = row.try_get("", "state").unwrap();
                ![4, 5].contains(&state)
            });
            match waiting {
                None => Ok(rows),
                Some(row) => Err(format!(
                    "{} of {}: {} attempts, {}",
                    row.try_get::<String>("", "request_id").unwrap(),
                    rows.len(),
                    row.try_get::<u32>("", "attempts").unwrap(),
                    row.try_get::<String>("", "errmsg").unwrap()
                )),
            }
        })
        .await;
        let mut got: HashMap<String, usize> = HashMap::new();
        for message in self.world.sandbox.inbox(None, None) {
            // Each is told by what is its own.
            let id = ["client_msg_id", "form_id"].map(|name| message.message[name].as_str());
            let id = id.into_iter().flatten().next().unwrap();
            *got.entry(id.to_owned()).or_default() += 1;
        }
        let mut batches: HashMap<String, usize> = HashMap::new();
        let mut forms = 0;
        for row in &rows {
            let message_id: String = row.try_get("", "message_id").unwrap();
            let form_id: Option<String> = row.try_get("", "form_id").unwrap();
            forms += usize::from(form_id.is_some());
            let id = form_id.unwrap_or(message_id);
            assert_eq!(got.get(&id), Some(&1), "{id}");
            let request_id: String = row.try_get("", "request_id").unwrap();
            if let Some((batch, _)) = request_id
                .rsplit_once('/')
                .filter(|(batch, _)| batch.starts_with("Batch"))
            {
                *batches.entry(batch.to_owned()).or_default() += 1;
            }
        }
        assert_eq!(got.len(), rows.len());
        for (batch, stored) in batches {
            assert_eq!(stored, BATCH, "{batch} is stored in part");
        }
        let left = self
            .world
            .query("SELECT form_id FROM form WHERE used = FALSE")
            .await
            .len();
        let collected = self.forms.load(Ordering::SeqCst);
        assert_eq!(left + forms, collected, "a form_id is lost");
        rows.len()
    }

    async fn stop(self) {
        self.front.stop().await;
        self.other.stop().await;
    }
}

/// Asks something that needs no database.
async fn hear(client: &mut Client) {
    let answer = client.get_message(GetMessageRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
}

/// What the future comes to, unless `end` comes first: then it is dropped.
async fn unless<F: Future>(future: F, end: impl Future) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        _ = end => None,
    }
}

async fn hangs_up_at_every_step(redis: Redis) {
    let test = Test::start(redis).await;
    let mut asked = 0;
    for call in CALLS {
        for database in [Database::GoesOn, Database::Fails] {
            let name = format!("{call:?}/{database:?}");
            let steps = test.hang_up_at_every_step(call, database, &name).await;
            // A look for the request_id, and a transaction.
            assert!(steps >= 4, "{name}: {steps}");
            asked += (steps + 1) * call.messages();
        }
    }
    let stored = test.judge().await;
    assert!((1..asked).contains(&stored), "{stored} of {asked}");
    test.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_step_gets_all_or_nothing() {
    hangs_up_at_every_step(Redis::Up).await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_step_gets_all_or_nothing_without_redis() {
    hangs_up_at_every_step(Redis::Down).await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_step_gets_all_or_nothing_while_redis_hangs() {
    hangs_up_at_every_step(Redis::Hangs).await;
}

/// Calls of every kind at once, whose callers hang up at any moment.
async fn call_and_hang_up(test: &Test, round: usize) {
    let callers = (0..CALLERS).map(|number| async move {
        let call = CALLS[number % CALLS.len()];
        let name = format!("{call:?}/{round}-{number}");
        let patience = LONGEST.mul_f64(rand::random());
        let mut client = test.front.client();
        hear(&mut client).await;
        let call = test.call(&mut client, call, &name);
        unless(call, tokio::time::sleep(patience)).await
    });
    join_all(callers).await;
}

/// Callers hang up while nobody reaches the database, and before and after: what is stored goes out once it is back.
async fn hang_up_at_any_moment(redis: Redis) {
    let test = Test::start_all_on_one_line(redis).await;
    for round in 0..10 {
        for _ in 0..CALLERS / CALLS.len() {
            test.collect_form().await;
        }
        let breaks = async {
            // Every other time, the database fails in the middle of it.
            if round % 2 == 1 {
                test.line.stall_after(rand::rng().random_range(0..200));
                unless(tokio::time::sleep(LONGEST), test.line.stalled()).await;
                test.line.cut().await;
                tokio::time::sleep(LONGEST.mul_f64(rand::random())).await;
                test.line.heal().await;
            }
        };
        tokio::join!(call_and_hang_up(&test, round), breaks);
    }
    assert!(test.judge().await > 0);
    test.stop().await;
}

#[tokio::test]
async fn callers_that_hang_up_at_any_moment_get_all_or_nothing() {
    hang_up_at_any_moment(Redis::Up).await;
}

#[tokio::test]
async fn callers_that_hang_up_at_any_moment_get_all_or_nothing_without_redis() {
    hang_up_at_any_moment(Redis::Down).await;
}

#[tokio::test]
async fn callers_that_hang_up_at_any_moment_get_all_or_nothing_while_redis_hangs() {
    hang_up_at_any_moment(Redis::Hangs).await;
}

#[tokio::test]
async fn callers_that_hang_up_on_a_database_that_hangs_get_all_or_nothing() {
    let test = Test::start_all_on_one_line(Redis::Up).await;
    for _ in 0..CALLERS / CALLS.len() {
        test.collect_form().await;
    }
    test.line.stall_after(rand::rng().random_range(0..200));
    call_and_hang_up(&test, 0).await;
    tokio::time::sleep(HANGS).await;
    test.line.heal().await;
    test.judge().await;
    test.stop().await;
}
