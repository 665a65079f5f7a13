//! What goes on in every replica for as long as broadcasts do: looking at them, making their messages, ending them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use sea_orm::DbErr;
use service_kit::{ops::Readiness, storage};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{Broadcast, Broadcasts, State, lane};
use crate::{
    database,
    message::{self, Message},
    metrics,
};

/// How often the table is looked at while there is something to look after, and otherwise.
const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
/// Messages of one broadcast that wait in the queue: more than are sent until the next look, few enough that they are
/// soon taken back.
const AHEAD: i64 = 10_000;

/// Those that need looking after.
type Active = Arc<[Broadcast]>;

impl Broadcasts {
    /// Looks after broadcasts until the token is cancelled.
    pub(crate) async fn run(
        self,
        readiness: Readiness,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        if !readiness.started(&stop).await {
            return Ok(());
        }
        // Apart, so that work that takes long hides from nobody that a broadcast was paused.
        let (sender, receiver) = watch::channel(Active::default());
        let running = Box::pin(async { tokio::join!(self.look(sender), self.work(receiver)) });
        // What is cut off here is a transaction at most.
        stop.run_until_cancelled(running).await;
        Ok(())
    }

    async fn look(&self, active: watch::Sender<Active>) {
        let mut next = Instant::now();
        loop {
            let rung = tokio::select! {
                () = self.doorbell.broadcasts_rung() => true,
                () = sleep_until(next) => false,
            };
            let found = self.store.active().await;
            let pause = match found {
                Ok(found) => {
                    self.take_note(&found);
                    if rung {
                        // Messages may wait for what is known now.
                        self.doorbell.ring_here();
                    }
                    let pause = if found.is_empty() { IDLE } else { BUSY };
                    active.send_replace(found.into());
                    pause
                }
                Err(error) => {
                    warn!("broadcasts wait, for the database does not answer: {error}");
                    BUSY
                }
            };
            next = Instant::now() + pause;
        }
    }

    fn take_note(&self, found: &[Broadcast]) {
        tell(found);
        let now = self.clock.elapsed();
        let mut seen = self.seen();
        seen.at = Some(now);
        seen.paused.clear();
        let mut paces = std::mem::take(&mut seen.paces);
        for broadcast in found {
            seen.note(broadcast);
            if broadcast.state == State::Running {
                let id = &broadcast.broadcast_id;
                let mut pace = paces.remove(id).unwrap_or_default();
                pace.note(now, broadcast.ended());
                seen.paces.insert(id.clone(), pace);
            }
        }
    }

    async fn work(&self, mut active: watch::Receiver<Active>) {
        let mut unfinished: Vec<Broadcast> = Vec::new();
        while active.changed().await.is_ok() {
            let mut busy = active.borrow_and_update().to_vec();
            for broadcast in &mut busy {
                broadcast.catch_up(&unfinished);
            }
            // A chunk of each in turn.
            loop {
                let mut more = Vec::new();
                for mut broadcast in busy {
                    match self.work_on(&mut broadcast).await {
                        Ok(true) => more.push(broadcast),
                        Ok(false) => {}
                        Err(error) if storage::is_deadlock(&error) => more.push(broadcast),
                        Err(error) => warn!(
                            broadcast.id = broadcast.broadcast_id,
                            "it waits, for the database failed: {error}"
                        ),
                    }
                }
                // One that takes minutes keeps nobody from those that came since, or have room again.
                if more.is_empty() || active.has_changed().unwrap_or(true) {
                    unfinished = more;
                    break;
                }
                busy = more;
            }
        }
    }

    /// Does a part of what a broadcast needs; returns whether there is more to do at once.
    async fn work_on(&self, broadcast: &mut Broadcast) -> Result<bool, DbErr> {
        match broadcast.state {
            State::Running if broadcast.waiting() == 0 => {
                self.end(broadcast, State::Finished).await
            }
            State::Running => self.expand(broadcast).await,
            State::Cancelling => {
                let more = self.store.cancel_messages(broadcast).await?
                    | self.store.clear(&broadcast.broadcast_id).await?;
                if !more && broadcast.waiting() == 0 {
                    return self.end(broadcast, State::Cancelled).await;
                }
                Ok(more)
            }
            State::Draft | State::Paused | State::Cancelled | State::Finished => Ok(false),
        }
    }

    async fn end(&self, broadcast: &Broadcast, to: State) -> Result<bool, DbErr> {
        let id = &broadcast.broadcast_id;
        if self.store.end(id, broadcast.state, to).await? {
            info!(
                broadcast.id = id,
                recipients = broadcast.recipients,
                "{}",
                to.name()
            );
        }
        Ok(false)
    }

    /// Makes the messages of the recipients that come next.
    async fn expand(&self, broadcast: &mut Broadcast) -> Result<bool, DbErr> {
        if broadcast.expanded == broadcast.recipients || broadcast.queued() >= AHEAD {
            return Ok(false);
        }
        let open_ids = self.store.next(broadcast).await?;
        let messages: Vec<_> = open_ids
            .into_iter()
            .map(|open_id| self.message(broadcast, open_id))
            .collect();
        if !self.store.expand(broadcast, &messages).await? {
            // Another replica is at it, or it does not run any more.
            return Ok(false);
        }
        debug!(
            broadcast.id = broadcast.broadcast_id,
            messages = messages.len(),
            "queued"
        );
        self.doorbell.ring_apart(&self.tasks);
        broadcast.expanded += i64::try_from(messages.len()).unwrap_or(i64::MAX);
        if let Some(last) = messages.last() {
            broadcast.expanded_to.clone_from(&last.open_id);
        }
        Ok(true)
    }

    pub(super) fn message(&self, broadcast: &Broadcast, open_id: String) -> Message {
        Message {
            message_id: Uuid::now_v7().to_string(),
            app_id: broadcast.app_id.clone(),
            open_id,
            account: None,
            caller: broadcast.caller.clone(),
            request_id: None,
            content: String::new(),
            form_id: None,
            state: message::State::Queued,
            attempts: 0,
            possible_duplicate: false,
            errcode: 0,
            errmsg: String::new(),
            wechat_msg_id: None,
            create_time: database::moment(&self.clock),
            schedule_time: None,
            expire_time: broadcast.expire_time,
            sent_time: None,
            ambiguous_time: None,
            next_attempt_time: None,
            lane: lane(broadcast),
            broadcast_id: Some(broadcast.broadcast_id.clone()),
            delivered_time: None,
            failed_attempts: None,
            claim_id: None,
            trace_parent: None,
        }
    }
}

impl Broadcast {
    /// A look at the table that a chunk was under way beside has seen none of it, and would begin before it again.
    fn catch_up(&mut self, unfinished: &[Self]) {
        let known = unfinished
            .iter()
            .find(|known| known.broadcast_id == self.broadcast_id);
        if let Some(known) = known
            && known.expanded > self.expanded
        {
            self.expanded = known.expanded;
            self.expanded_to.clone_from(&known.expanded_to);
        }
    }
}

/// Tells the operator how many there are, and how many of their recipients wait.
fn tell(found: &[Broadcast]) {
    for (label, state) in [
        ("running", State::Running),
        ("paused", State::Paused),
        ("cancelling", State::Cancelling),
    ] {
        let count = found.iter().filter(|broadcast| broadcast.state == state);
        metrics::broadcasts(label, u32::try_from(count.count()).unwrap_or(u32::MAX));
    }
    let sum = |count: fn(&Broadcast) -> i64| {
        let sum: i64 = found.iter().map(count).sum();
        u32::try_from(sum.max(0)).unwrap_or(u32::MAX)
    };
    metrics::broadcast_recipients("queued", sum(Broadcast::queued));
    let to_queue = sum(|broadcast| broadcast.recipients - broadcast.expanded);
    metrics::broadcast_recipients("to_queue", to_queue);
}

#[cfg(test)]
mod tests {
    use test_support::eventually;
    use tokio_util::task::TaskTracker;

    use super::{
        super::{
            store::CHUNK,
            tests::{broadcasts, draft},
        },
        *,
    };

    #[tokio::test]
    async fn a_broadcast_that_starts_does_not_wait_until_a_large_one_is_cleared_away() {
        let (_folder, broadcasts) = broadcasts().await;
        let store = &broadcasts.store;
        let started = async |chunks: usize| {
            let id = draft(&broadcasts).await.broadcast_id;
            for chunk in 0..chunks {
                let users: Vec<_> = (0..CHUNK).map(|user| format!("o{chunk}-{user}")).collect();
                let users: Vec<_> = users.iter().map(String::as_str).collect();
                store.add(&id, &users).await.unwrap();
            }
            let moved = store.advance(&id, &[State::Draft], State::Running).await;
            assert!(moved.unwrap());
            id
        };
        let find = async |id: &str| store.find(id).await.unwrap().unwrap();
        let large = started(40).await;
        let cancelled = store.advance(&large, &[State::Running], State::Cancelling);
        assert!(cancelled.await.unwrap());
        let (sender, receiver) = watch::channel(Active::default());
        let working = TaskTracker::new().spawn({
            let broadcasts = broadcasts.clone();
            async move { broadcasts.work(receiver).await }
        });
        sender.send_replace(store.active().await.unwrap().into());
        let small = started(1).await;
        sender.send_replace(store.active().await.unwrap().into());
        eventually("it is begun", Duration::from_secs(60), async || {
            find(&small).await.expanded > 0
        })
        .await;
        assert_eq!(find(&large).await.state, State::Cancelling);
        drop(sender);
        working.await.unwrap();
    }

    #[tokio::test]
    async fn a_look_from_before_a_chunk_does_not_set_it_back() {
        let (_folder, broadcasts) = broadcasts().await;
        let seen = draft(&broadcasts).await;
        let later = Broadcast {
            expanded: 1000,
            expanded_to: "oReader".to_owned(),
            ..seen.clone()
        };
        let caught_up = |known: &Broadcast| {
            let mut seen = seen.clone();
            seen.catch_up(std::slice::from_ref(known));
            (seen.expanded, seen.expanded_to)
        };
        assert_eq!(caught_up(&later), (1000, "oReader".to_owned()));
        let other = Broadcast {
            broadcast_id: Uuid::now_v7().to_string(),
            ..later
        };
        assert_eq!(caught_up(&other), (0, String::new()));
    }
}
