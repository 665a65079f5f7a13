//! Broadcasts: one content for many users.
//!
//! Recipients are added to a draft. Once it runs, every replica's [`keeper`] turns them into messages, a few thousand
//! ahead of what is sent; from there on each is a message as any other, in a lane of its own behind everything that
//! callers send by themselves. Whatever counts is in the broadcast's row and changes in the transaction of what it
//! counts, so that a replica may die at any point: another one goes on with no recipient lost or served twice.
//!
//! The messages' rows hold no content: a million copies of it would be most of what a broadcast writes. It lies in the
//! broadcast's row, never changes, and is kept in memory ([`Broadcasts::fill`]).

#[expect(unreachable_pub, reason = "sea-orm derives public items")]
mod entity;
mod keeper;
mod pace;
#[expect(unreachable_pub, reason = "sea-orm derives public items")]
mod recipient;
mod store;
mod tally;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use service_kit::{Caller, CatalogHandle, Clock, storage};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;
use wechat::{AppId, OpenId};

pub(crate) use self::{
    entity::{Model as Broadcast, State},
    store::Store,
    tally::Tally,
};
use self::{
    pace::Pace,
    store::{Added, CHUNK},
};
use crate::{
    database,
    doorbell::Doorbell,
    error::Error,
    message::{Content, Lane, Message, Sender},
};

/// Whatever was seen of the table longer ago than this tells nothing of a broadcast that was not seen.
const FRESH: Duration = Duration::from_secs(3);
/// How many broadcasts' contents are kept in memory: a few megabytes at most.
const CONTENTS: usize = 128;
/// How often a part of recipients is added again that another upload of them was in the way of.
const TRIES: usize = 16;

/// A broadcast to be created, its fields checked.
#[derive(Debug, Clone)]
pub(crate) struct NewBroadcast {
    pub(crate) request_id: Option<String>,
    pub(crate) content: Content,
    /// Not after.
    pub(crate) expire_time: Option<DateTime<Utc>>,
}

/// Creates, steers and finds broadcasts; clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Broadcasts {
    store: Store,
    doorbell: Doorbell,
    catalog: CatalogHandle,
    clock: Clock,
    seen: Arc<Mutex<Seen>>,
    /// Rings that nobody waits for, not even shutdown: the other replicas poll.
    tasks: TaskTracker,
}

/// What this process knows of the table.
#[derive(Debug, Default)]
struct Seen {
    /// Elapsed time of the latest look.
    at: Option<Duration>,
    /// Those whose messages wait.
    paused: HashSet<String>,
    paces: HashMap<String, Pace>,
    contents: HashMap<String, Arc<str>>,
}

impl Broadcasts {
    pub(crate) fn new(
        store: Store,
        doorbell: Doorbell,
        catalog: CatalogHandle,
        clock: Clock,
    ) -> Self {
        Self {
            store,
            doorbell,
            catalog,
            clock,
            seen: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Stores a draft, or finds the one that the same request_id stored before.
    pub(crate) async fn create(
        &self,
        sender: &Sender,
        new: NewBroadcast,
    ) -> Result<Broadcast, Error> {
        let broadcast = Broadcast {
            broadcast_id: Uuid::now_v7().to_string(),
            app_id: sender.app_id.to_string(),
            caller: sender.caller.clone(),
            request_id: new.request_id.clone(),
            content: new.content.to_json(),
            kind: new.content.kind().to_owned(),
            state: State::Draft,
            expanded_to: String::new(),
            recipients: 0,
            expanded: 0,
            sent: 0,
            delivered: 0,
            failed: 0,
            cancelled: 0,
            expired: 0,
            create_time: database::moment(&self.clock),
            start_time: None,
            end_time: None,
            expire_time: new.expire_time,
        };
        // A repeated request may come after its time: it stores nothing.
        let is_late = new
            .expire_time
            .is_some_and(|at| at <= broadcast.create_time);
        let late = || {
            let problem = (
                "expire_time".to_owned(),
                "must be later than now".to_owned(),
            );
            Error::Invalid(vec![problem])
        };
        let Some(request_id) = &new.request_id else {
            if is_late {
                return Err(late());
            }
            self.store.insert(&broadcast).await?;
            return Ok(broadcast);
        };
        let first = match self.store.by_request(sender, request_id).await? {
            Some(first) => first,
            None if is_late => return Err(late()),
            None if self.store.insert(&broadcast).await? => return Ok(broadcast),
            // Somebody was faster.
            None => {
                let first = self.store.by_request(sender, request_id).await?;
                first.ok_or(Error::Contended)?
            }
        };
        let same = first.expire_time == new.expire_time
            && Content::from_json(&first.content).is_ok_and(|content| content == new.content);
        if same {
            Ok(first)
        } else {
            Err(Error::RequestIdReused)
        }
    }

    /// A broadcast of one of the caller's apps; others are as unknown as those that do not exist.
    pub(crate) async fn get(
        &self,
        caller: &Caller,
        broadcast_id: &str,
    ) -> Result<Broadcast, Error> {
        let broadcast_id = Uuid::try_parse(broadcast_id).map_err(|_| Error::BroadcastNotFound)?;
        let found = self.store.find(&broadcast_id.to_string()).await?;
        let broadcast = found.ok_or(Error::BroadcastNotFound)?;
        match caller.app(&self.catalog.current(), &broadcast.app_id) {
            Ok(_) => Ok(broadcast),
            Err(_) => Err(Error::BroadcastNotFound),
        }
    }

    /// An app's broadcasts, the newest first; those below the given one.
    pub(crate) async fn list(
        &self,
        app_id: &AppId,
        below: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<Broadcast>, Error> {
        let below = below.map(|below| below.to_string());
        Ok(self.store.list(app_id, below.as_deref(), limit).await?)
    }

    /// Adds users to a draft and returns how many were new. Those that were added before a failure stay.
    pub(crate) async fn add(&self, broadcast: &Broadcast, users: &[OpenId]) -> Result<u64, Error> {
        let mut new = 0;
        for chunk in users.chunks(CHUNK) {
            let open_ids: Vec<_> = chunk.iter().map(OpenId::as_str).collect();
            let mut tries = 0;
            new += loop {
                match self.store.add(&broadcast.broadcast_id, &open_ids).await {
                    Ok(Added::New(count)) => break count,
                    Ok(Added::Closed) => return Err(self.unfit(broadcast).await?),
                    Err(error) if storage::is_deadlock(&error) && tries < TRIES => tries += 1,
                    Err(error) => return Err(error.into()),
                }
            };
        }
        Ok(new)
    }

    /// Begins to send a draft. One that was started before is returned as it is.
    pub(crate) async fn start(
        &self,
        caller: &Caller,
        broadcast_id: &str,
    ) -> Result<Broadcast, Error> {
        let broadcast = self.get(caller, broadcast_id).await?;
        if broadcast.state == State::Draft && broadcast.recipients == 0 {
            return Err(Error::BroadcastEmpty);
        }
        let wanted = [State::Running, State::Paused, State::Finished];
        self.advance(caller, broadcast, &[State::Draft], State::Running, &wanted)
            .await
    }

    /// Stops sending what is not on the wire.
    pub(crate) async fn pause(
        &self,
        caller: &Caller,
        broadcast_id: &str,
    ) -> Result<Broadcast, Error> {
        let broadcast = self.get(caller, broadcast_id).await?;
        let to = State::Paused;
        self.advance(caller, broadcast, &[State::Running], to, &[to])
            .await
    }

    /// Goes on with one that is paused.
    pub(crate) async fn resume(
        &self,
        caller: &Caller,
        broadcast_id: &str,
    ) -> Result<Broadcast, Error> {
        let broadcast = self.get(caller, broadcast_id).await?;
        let to = State::Running;
        self.advance(caller, broadcast, &[State::Paused], to, &[to])
            .await
    }

    /// Ends one before it is done. Its messages that wait are taken back soon after.
    pub(crate) async fn cancel(
        &self,
        caller: &Caller,
        broadcast_id: &str,
    ) -> Result<Broadcast, Error> {
        let broadcast = self.get(caller, broadcast_id).await?;
        let from = [State::Draft, State::Running, State::Paused];
        let wanted = [State::Cancelling, State::Cancelled];
        self.advance(caller, broadcast, &from, State::Cancelling, &wanted)
            .await
    }

    /// Moves it on. That it is in one of the states wanted already is no error.
    async fn advance(
        &self,
        caller: &Caller,
        broadcast: Broadcast,
        from: &[State],
        to: State,
        wanted: &[State],
    ) -> Result<Broadcast, Error> {
        let broadcast_id = &broadcast.broadcast_id;
        let mut tries = 0;
        // Its row is every outcome's counter, too.
        let moved = loop {
            match self.store.advance(broadcast_id, from, to).await {
                Err(error) if storage::is_deadlock(&error) && tries < TRIES => tries += 1,
                moved => break moved?,
            }
        };
        if moved {
            info!(
                broadcast.id = broadcast_id,
                by = caller.name,
                "{}",
                to.name()
            );
            self.seen().note(&Broadcast {
                state: to,
                ..broadcast.clone()
            });
            self.doorbell.ring_broadcasts().await;
        }
        let now = self.get(caller, broadcast_id).await?;
        if moved || wanted.contains(&now.state) {
            return Ok(now);
        }
        Err(Error::BroadcastState {
            state: now.state,
            wanted: from.iter().map(|state| state.name()).collect(),
        })
    }

    /// What is wrong with its state.
    async fn unfit(&self, broadcast: &Broadcast) -> Result<Error, Error> {
        let found = self.store.find(&broadcast.broadcast_id).await?;
        Ok(Error::BroadcastState {
            state: found.ok_or(Error::BroadcastNotFound)?.state,
            wanted: vec![State::Draft.name()],
        })
    }

    /// Whether its messages are to wait: it is paused or cancelled, or this process does not know of it yet. In that case
    /// it looks at once, and rings when it knows.
    pub(crate) fn is_paused(&self, broadcast_id: &str) -> bool {
        let seen = self.seen();
        if seen.paused.contains(broadcast_id) {
            return true;
        }
        let fresh = seen.at.is_some_and(|at| at + FRESH > self.clock.elapsed());
        if !fresh {
            self.doorbell.ring_broadcasts_here();
        }
        !fresh
    }

    /// Messages that came to their end in a second, lately; 0 for one that does not run.
    pub(crate) fn rate(&self, broadcast: &Broadcast) -> f64 {
        if broadcast.state != State::Running {
            return 0.0;
        }
        let seen = self.seen();
        let pace = seen.paces.get(&broadcast.broadcast_id);
        pace.map_or(0.0, Pace::rate)
    }

    /// Gives messages of broadcasts what they say: their rows do not hold it. One whose content is not to be had is left
    /// out: its lease ends, and it is taken up again.
    pub(crate) async fn fill(&self, messages: &mut Vec<Message>) -> Result<(), DbErr> {
        let wanted: HashSet<&String> = messages
            .iter()
            .filter(|message| message.content.is_empty())
            .filter_map(|message| message.broadcast_id.as_ref())
            .collect();
        // What is kept in memory may be gone at any time: whatever this call needs is its own.
        let mut contents = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        {
            let seen = self.seen();
            for id in wanted {
                match seen.contents.get(id) {
                    Some(content) => {
                        contents.insert(id.clone(), Arc::clone(content));
                    }
                    None => missing.push(id.clone()),
                }
            }
        }
        if !missing.is_empty() {
            let found = self.store.contents(missing).await?;
            let found = found.into_iter().map(|(id, content)| (id, content.into()));
            let found: Vec<(String, Arc<str>)> = found.collect();
            let mut seen = self.seen();
            if seen.contents.len() + found.len() > CONTENTS {
                seen.contents.clear();
            }
            seen.contents.extend(found.iter().cloned());
            contents.extend(found);
        }
        messages.retain_mut(|message| {
            let Some(id) = &message.broadcast_id else {
                return true;
            };
            if message.content.is_empty() {
                let Some(content) = contents.get(id) else {
                    warn!(
                        message.id = message.message_id,
                        broadcast.id = id,
                        "it waits, for its broadcast was not found"
                    );
                    return false;
                };
                message.content = content.to_string();
            }
            true
        });
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing in it is ever half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Takes note of one broadcast's state.
    fn note(&mut self, broadcast: &Broadcast) {
        let id = &broadcast.broadcast_id;
        match broadcast.state {
            State::Paused | State::Cancelling => {
                self.paused.insert(id.clone());
            }
            _ => {
                self.paused.remove(id);
            }
        }
    }
}

/// Where its messages wait.
fn lane(broadcast: &Broadcast) -> String {
    let Broadcast {
        app_id,
        kind,
        broadcast_id,
        ..
    } = broadcast;
    Lane::of_broadcast(app_id, kind, broadcast_id).to_string()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{message::Customer, testing};

    /// The database goes with the folder.
    pub(super) async fn broadcasts() -> (TempDir, Broadcasts) {
        let folder = tempfile::tempdir().unwrap();
        let database = testing::database(&testing::sqlite(&folder)).await;
        let (catalog, clock) = (testing::catalog(&folder), database.clock.clone());
        let doorbell = Doorbell::new(None).unwrap();
        let broadcasts = Broadcasts::new(Store { database }, doorbell, catalog, clock);
        (folder, broadcasts)
    }

    pub(super) async fn draft(broadcasts: &Broadcasts) -> Broadcast {
        let sender = Sender {
            app_id: AppId::try_from("wx0000000000000002").unwrap(),
            caller: "news".to_owned(),
        };
        let content = Content::Customer(Customer {
            kf_account: None,
            message: wechat::CustomerContent::Text {
                content: "新品上架".to_owned(),
            },
        });
        let new = NewBroadcast {
            request_id: None,
            content,
            expire_time: None,
        };
        broadcasts.create(&sender, new).await.unwrap()
    }

    #[tokio::test]
    async fn messages_of_more_broadcasts_than_are_kept_in_memory_say_what_they_should() {
        let (_folder, broadcasts) = broadcasts().await;
        let mut messages = Vec::new();
        for _ in 0..=CONTENTS {
            let broadcast = draft(&broadcasts).await;
            messages.push(broadcasts.message(&broadcast, "oReader".to_owned()));
        }
        let last = messages.pop().unwrap();
        let mut claimed = vec![messages[0].clone(), last];
        broadcasts.fill(&mut messages).await.unwrap();
        // The last one has no room beside the others.
        broadcasts.fill(&mut claimed).await.unwrap();
        let said = messages.iter().chain(&claimed);
        let silent = said.filter(|message| message.content.is_empty());
        assert_eq!(silent.count(), 0);
        assert_eq!((messages.len(), claimed.len()), (CONTENTS, 2));
    }

    #[tokio::test]
    async fn a_message_whose_content_is_not_found_is_left_to_its_lease() {
        let (_folder, broadcasts) = broadcasts().await;
        let found = draft(&broadcasts).await;
        let gone = Broadcast {
            broadcast_id: Uuid::now_v7().to_string(),
            ..found.clone()
        };
        let mut messages = [&gone, &found]
            .map(|broadcast| broadcasts.message(broadcast, "oReader".to_owned()))
            .to_vec();
        broadcasts.fill(&mut messages).await.unwrap();
        let left: Vec<_> = messages
            .into_iter()
            .map(|message| message.broadcast_id)
            .collect();
        assert_eq!(left, [Some(found.broadcast_id)]);
    }
}
