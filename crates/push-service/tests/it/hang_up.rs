//! Callers that hang up: what they asked for is stored and sent, or not stored.

use std::{collections::HashMap, future::Future, time::Duration};

use futures_util::future::join_all;
use proto::push::v1::{BatchSendMessagesRequest, GetMessageRequest, SendMessageRequest};
use rand::RngExt as _;
use service_kit::settings::DatabaseUrl;
use test_support::{FaultProxy, eventually};
use tonic::{Code, Status};

use crate::world::{Backend, Client, NEWS, Running, World, template};

/// What is stored is attempted within this, once all is well again.
const RECOVERED: Duration = Duration::from_secs(10);
/// More steps than an acceptance has, the making of a connection included.
const STEPS: usize = 100;
/// The longest that a caller waits who hangs up at any moment.
const LONGEST: Duration = Duration::from_millis(50);
/// Messages of one batch.
const BATCH: usize = 3;

/// What a caller calls.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// SendMessage.
    Send,
    /// SendMessage, to an account.
    SendToAccount,
    /// BatchSendMessages.
    Batch,
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
}

impl Test {
    async fn start() -> Self {
        let mut world = World::start(Backend::Servers).await;
        let other = world.app().await;
        let database = world.config.database.expose().to_owned();
        let line = FaultProxy::start(&database).await;
        world.config.database = DatabaseUrl::new(line.url(&database));
        let front = world.app().await;
        world.config.database = DatabaseUrl::new(database);
        let user = world.user(NEWS);
        world.auth.bind(NEWS, "reader", &user);
        Self {
            world,
            line,
            front,
            other,
            user,
        }
    }

    fn request(&self, call: Call, request_id: String) -> SendMessageRequest {
        let message = template(&self.user);
        let account = matches!(call, Call::SendToAccount);
        SendMessageRequest {
            request_id,
            open_id: if account {
                String::new()
            } else {
                message.open_id
            },
            account: if account {
                "reader".to_owned()
            } else {
                String::new()
            },
            ..message
        }
    }

    async fn call(&self, client: &mut Client, call: Call, name: &str) -> Result<(), Status> {
        match call {
            Call::Send | Call::SendToAccount => {
                let request = self.request(call, name.to_owned());
                client.send_message(request).await.map(|_| ())
            }
            Call::Batch => {
                let ids = (0..BATCH).map(|number| format!("{name}/{number}"));
                let messages = ids.map(|id| self.request(call, id));
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

    /// Every request_id is not stored, or stored with all of its batch, sent in time, and once.
    async fn judge(&self) -> usize {
        let rows = eventually("what is stored is sent", RECOVERED, async || {
            let sql = "SELECT request_id, message_id, state, attempts, errmsg FROM message";
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
        for message in self.world.inbox(&self.user) {
            let id = message.message["client_msg_id"].as_str().unwrap();
            *got.entry(id.to_owned()).or_default() += 1;
        }
        let mut batches: HashMap<String, usize> = HashMap::new();
        for row in &rows {
            let message_id: String = row.try_get("", "message_id").unwrap();
            assert_eq!(got.get(&message_id), Some(&1), "{message_id}");
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

async fn hangs_up_everywhere(redis: bool) {
    let test = Test::start().await;
    if !redis {
        test.world.redis.as_ref().unwrap().kill();
    }
    let mut asked = 0;
    for call in [Call::Send, Call::SendToAccount, Call::Batch] {
        for database in [Database::GoesOn, Database::Fails] {
            let name = format!("{call:?}/{database:?}");
            let steps = test.hang_up_at_every_step(call, database, &name).await;
            // A look for the request_id, and a transaction.
            assert!(steps >= 4, "{name}: {steps}");
            asked += (steps + 1)
                * if matches!(call, Call::Batch) {
                    BATCH
                } else {
                    1
                };
        }
    }
    let stored = test.judge().await;
    assert!((1..asked).contains(&stored), "{stored} of {asked}");
    test.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_step_gets_all_or_nothing() {
    hangs_up_everywhere(true).await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_at_any_step_gets_all_or_nothing_without_redis() {
    hangs_up_everywhere(false).await;
}

#[tokio::test]
async fn callers_that_hang_up_at_any_moment_get_all_or_nothing() {
    let test = Test::start().await;
    let calls = [Call::Send, Call::SendToAccount, Call::Batch];
    for round in 0..10 {
        let callers = (0..20).map(|number| {
            let call = calls[number % calls.len()];
            let name = format!("{call:?}/{round}-{number}");
            let patience = LONGEST.mul_f64(rand::random());
            let mut client = test.front.client();
            let test = &test;
            async move {
                hear(&mut client).await;
                let call = test.call(&mut client, call, &name);
                unless(call, tokio::time::sleep(patience)).await
            }
        });
        let breaks = async {
            // Every other time, the database fails in the middle of it.
            if round % 2 == 1 {
                test.line.stall_after(rand::rng().random_range(0..200));
                unless(tokio::time::sleep(LONGEST), test.line.stalled()).await;
                test.line.cut().await;
                test.line.heal().await;
            }
        };
        tokio::join!(join_all(callers), breaks);
    }
    assert!(test.judge().await > 0);
    test.stop().await;
}
