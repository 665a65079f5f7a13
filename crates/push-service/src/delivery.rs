//! Delivery: takes up what is due, sends it, and writes down what became of it.
//!
//! Three writes keep a message from being lost or told twice by our fault: a claim (a lease of
//! [`LEASE`](crate::message::store::LEASE)), SENDING before it goes on the wire, and the outcome under the claim. A
//! worker that dies before SENDING leaves a message that simply falls due again; one that dies after it leaves an
//! attempt whose outcome is unknown.

mod batch;
mod policy;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use sea_orm::DbErr;
use service_kit::{
    App, CatalogHandle, Clock,
    ops::{Phase, Readiness},
};
use token_client::TokenClient;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span, warn};
use wechat::{AppId, Client};

use self::{
    batch::Batch,
    policy::{Attempt, Circumstances},
};
use crate::{
    doorbell::Doorbell,
    message::{Content, Message, resume_trace, store::Store},
};

/// WeChat answers within this, or the attempt's outcome is unknown.
pub(crate) const UPSTREAM_DEADLINE: Duration = Duration::from_secs(3);
/// Messages on the wire at once.
const CONCURRENCY: usize = 64;
/// A backlog is worked on whenever so many of them are done.
const ROOM: u32 = 16;
/// How often due messages are looked for when no doorbell rings.
pub(crate) const POLL: Duration = Duration::from_secs(1);
/// After the database was away, what seems lost may have a living worker that is about to write its outcome: that one
/// goes first.
const SETTLE: Duration = Duration::from_secs(2);

/// What a claim leaves to do.
struct Left {
    /// More may be due than was claimed.
    more: bool,
    /// When the next one falls due, if that is soon.
    upcoming: Option<Instant>,
}

/// Sends messages.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) catalog: CatalogHandle,
    pub(crate) wechat: Client,
    pub(crate) tokens: TokenClient,
    pub(crate) doorbell: Doorbell,
    /// [`POLL`].
    pub(crate) poll: Duration,
    pub(crate) readiness: Readiness,
}

impl Delivery {
    /// Delivers until the token is cancelled, then ends what is on the wire and puts back what is not.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        // Before the migrations are applied there is no table to look at.
        let mut phase = self.readiness.watch();
        let ready = phase.wait_for(|phase| *phase != Phase::Starting);
        if !matches!(stop.run_until_cancelled(ready).await, Some(Ok(_))) {
            return Ok(());
        }
        let this = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONCURRENCY));
        let mut batches = JoinSet::new();
        let mut poll = tokio::time::interval(this.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // More may be due than there was room for.
        let mut backlog = false;
        // When the next message falls due, where that is before the next poll.
        let mut upcoming = None;
        // Elapsed time since which the database answers.
        let mut answers_since = None;
        loop {
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = batches.join_next() => {
                    report_panic(ended);
                    continue;
                }
                _ = poll.tick() => true,
                () = this.doorbell.rung() => false,
                () = sleep_until(upcoming.unwrap_or_else(Instant::now)), if upcoming.is_some() => false,
                // Enough at once that claims stay worth their statements.
                Ok(_) = slots.acquire_many(ROOM), if backlog => false,
            };
            let now = this.clock.elapsed();
            let settled = answers_since.is_some_and(|since| since + SETTLE <= now);
            let taken_up = async {
                if polled && settled {
                    this.recover().await?;
                }
                this.take_up(&slots, &mut batches, &stop).await
            };
            match stop.run_until_cancelled(taken_up).await {
                None => break,
                Some(Ok(left)) => {
                    backlog = left.more;
                    upcoming = left.upcoming;
                    answers_since.get_or_insert(now);
                }
                Some(Err(error)) => {
                    answers_since = None;
                    upcoming = None;
                    warn!("messages wait, for the database does not answer: {error}");
                }
            }
        }
        while let Some(ended) = batches.join_next().await {
            report_panic(ended);
        }
        Ok(())
    }

    /// Claims what is due, no more than can start now, and starts it.
    async fn take_up(
        self: &Arc<Self>,
        slots: &Arc<Semaphore>,
        batches: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<Left, DbErr> {
        let free = slots.available_permits();
        if free == 0 {
            return Ok(Left {
                more: true,
                upcoming: None,
            });
        }
        let claim = self.store.claim(free as u64).await?;
        let left = Left {
            more: claim.messages.len() == free,
            upcoming: claim.upcoming.map(|wait| Instant::now() + wait),
        };
        let mut by_app: BTreeMap<AppId, Vec<Message>> = BTreeMap::new();
        let mut broken = Vec::new();
        for message in claim.messages {
            match AppId::try_from(message.app_id.as_str()) {
                Ok(app_id) => by_app.entry(app_id).or_default().push(message),
                Err(error) => broken.push((message, error.to_string())),
            }
        }
        for (app_id, messages) in by_app {
            let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
            // This task alone takes slots, so those counted above are there.
            let Ok(slots) = Arc::clone(slots).try_acquire_many_owned(count) else {
                continue;
            };
            let span = info_span!("deliver", app.id = %app_id, messages = messages.len());
            if let Some(first) = messages.first() {
                resume_trace(&span, first);
            }
            let batch = Batch {
                delivery: Arc::clone(self),
                app_id,
                claim_id: claim.id.clone(),
                stop: stop.clone(),
                since: claim.since,
            };
            batches.spawn(batch.run(messages, slots).instrument(span));
        }
        for (message, why) in broken {
            let outcome = policy::broken(&message, why);
            self.store
                .write_back(&message.message_id, &claim.id, &outcome)
                .await?;
        }
        Ok(left)
    }

    /// Takes up what other workers left SENDING when they died.
    async fn recover(&self) -> Result<(), DbErr> {
        for message in self.store.lost().await? {
            let Some(claim_id) = message.claim_id.clone() else {
                continue;
            };
            let outcome = match Content::from_json(&message.content) {
                Ok(content) => {
                    let circumstances = self.circumstances(&message.app_id);
                    policy::after(
                        &message,
                        &content,
                        message.attempts,
                        &Attempt::Lost,
                        circumstances,
                    )
                }
                Err(error) => policy::broken(
                    &message,
                    format!("the stored content cannot be read: {error}"),
                ),
            };
            warn!(
                message.id = message.message_id,
                "its worker was lost while it sent"
            );
            self.store
                .write_back(&message.message_id, &claim_id, &outcome)
                .await?;
        }
        Ok(())
    }

    fn app(&self, app_id: &str) -> Option<Arc<App>> {
        self.catalog.current().app(app_id).cloned()
    }

    fn circumstances(&self, app_id: &str) -> Circumstances {
        Circumstances {
            on_ambiguous: self
                .app(app_id)
                .map(|app| app.on_ambiguous)
                .unwrap_or_default(),
            now: self.clock.now(),
            jitter: rand::random(),
        }
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // The lease brings its messages back.
        warn!("a delivery ended early: {error}");
    }
}

#[cfg(test)]
mod tests {
    use service_kit::{cli::Service as _, client::Peer, settings::DatabaseUrl, storage};
    use test_support::eventually;
    use tokio_util::task::TaskTracker;
    use tonic::transport::Endpoint;
    use wechat::{ClientOptions, OpenId};

    use super::*;
    use crate::{
        PushService,
        database::Database,
        form,
        message::{Customer, Messages, NewMessage, Sender},
        migration::Migrator,
    };

    #[tokio::test]
    async fn what_is_accepted_is_taken_up_before_the_next_poll() {
        service_kit::telemetry::install_tls_provider();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wxhub.toml");
        std::fs::write(
            &path,
            "[[apps]]\napp_id = \"wx0000000000000002\"\nname = \"news\"\nkind = \"official_account\"\nsecret = \"unused\"\n",
        )
        .unwrap();
        let (catalog, _) = CatalogHandle::load(path, PushService::NEEDS).unwrap();
        let file = folder.path().join("push.sqlite");
        let url = DatabaseUrl::new(format!("sqlite://{}", file.display()));
        let connection = storage::database(&url).await.unwrap();
        storage::migrate::<Migrator>(&connection).await.unwrap();
        let clock = Clock::System;
        let database = Database {
            connection,
            clock: clock.clone(),
        };
        let store = Store {
            database: database.clone(),
        };
        let doorbell = Doorbell::new(None).unwrap();
        let messages = Messages {
            store: store.clone(),
            forms: form::Store { database },
            doorbell: doorbell.clone(),
            catalog: catalog.clone(),
            clock: clock.clone(),
            tasks: TaskTracker::new(),
        };
        // Nobody is there: a message that was taken up goes back with the reason.
        let nobody = "http://127.0.0.1:9";
        let peer = Peer::new(
            vec![Endpoint::from_static(nobody)],
            "unused".to_owned().into(),
        );
        let delivery = Delivery {
            store: store.clone(),
            clock,
            catalog,
            wechat: Client::new(ClientOptions::new(nobody.parse().unwrap())).unwrap(),
            tokens: TokenClient::new(&peer),
            doorbell,
            poll: Duration::from_secs(3600),
            readiness: Readiness::default(),
        };
        delivery.readiness.set_ready();
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(delivery.run(stop.clone()));
        let sender = Sender {
            app_id: AppId::try_from("wx0000000000000002").unwrap(),
            caller: "dev".to_owned(),
        };
        // The first may have met the poll at the start, the second can not.
        for _ in 0..2 {
            let new = NewMessage {
                open_id: OpenId::try_from("oReader").unwrap(),
                request_id: None,
                content: Content::Customer(Customer {
                    kf_account: None,
                    message: wechat::CustomerContent::Text {
                        content: "在吗".to_owned(),
                    },
                }),
                schedule_time: None,
                expire_time: None,
            };
            let accepted = messages.accept(sender.clone(), new).await.unwrap();
            eventually("it is taken up", Duration::from_secs(60), async || {
                let found = store.find(&accepted.message_id).await.unwrap();
                found.is_some_and(|message| !message.errmsg.is_empty())
            })
            .await;
        }
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}
