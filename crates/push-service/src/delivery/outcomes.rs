//! What became of messages, written for many at a time: while one write runs, the next gathers.

use std::time::Duration;

use sea_orm::DbErr;
use service_kit::Clock;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    GATHER,
    queue::{Ended, Next, Outcome, Queue},
};
use crate::{message::Message, receipt::Receipts};

/// The most outcomes of one statement: longer ones cost more for each.
const TOGETHER: usize = 128;
/// An outcome that cannot be written for this long is left to the lease: the attempt then counts as ambiguous.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// Takes outcomes in.
#[derive(Debug, Clone)]
pub(super) struct Outcomes(mpsc::UnboundedSender<Entry>);

/// Writes them.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Queue,
    receipts: Receipts,
    clock: Clock,
    entries: mpsc::UnboundedReceiver<Entry>,
}

#[derive(Debug)]
struct Entry {
    ended: Ended,
    /// Elapsed time at which it came to be.
    since: Duration,
    /// Its place among the messages on the wire, given back once it is written: no more can gather than were there.
    _slot: Option<OwnedSemaphorePermit>,
}

/// Both ends. The writer ends when what was taken in is written and every [`Outcomes`] is gone.
pub(super) fn outcomes(queue: Queue, receipts: Receipts, clock: Clock) -> (Outcomes, Writer) {
    let (sender, entries) = mpsc::unbounded_channel();
    let writer = Writer {
        queue,
        receipts,
        clock,
        entries,
    };
    (Outcomes(sender), writer)
}

impl Outcomes {
    /// Has an outcome written under its claim.
    pub(super) fn put(
        &self,
        message: &Message,
        claim_id: &str,
        outcome: Outcome,
        since: Duration,
        slot: Option<OwnedSemaphorePermit>,
    ) {
        let ended = Ended {
            message_id: message.message_id.clone(),
            claim_id: claim_id.to_owned(),
            app_id: message.app_id.clone(),
            broadcast_id: message.broadcast_id.clone(),
            outcome,
        };
        let entry = Entry {
            ended,
            since,
            _slot: slot,
        };
        // Without a writer the service is being torn down: the lease brings the message back.
        let _ = self.0.send(entry);
    }
}

impl Writer {
    /// Writes until nobody is left who could put anything in.
    pub(super) async fn run(mut self) {
        let mut entries = Vec::with_capacity(TOGETHER);
        let mut gathered = Instant::now();
        loop {
            if self.entries.len() < TOGETHER {
                sleep_until(gathered).await;
            }
            if self.entries.recv_many(&mut entries, TOGETHER).await == 0 {
                return;
            }
            gathered = Instant::now() + GATHER;
            self.write_stubbornly(&entries).await;
            entries.clear();
        }
    }

    /// Writes, and then looks for receipts that came before.
    async fn write(&self, ended: &[&Ended]) -> Result<(), DbErr> {
        self.queue.write(ended).await?;
        let sent = ended.iter().filter_map(|ended| match &ended.outcome.next {
            Next::Sent { wechat_msg_id, .. } => {
                Some((ended.app_id.as_str(), wechat_msg_id.as_deref()?))
            }
            _ => None,
        });
        self.receipts.take_up(sent).await
    }

    /// Writes, again while the database is away and the attempts would otherwise be in doubt.
    async fn write_stubbornly(&self, entries: &[Entry]) {
        let ended: Vec<&Ended> = entries.iter().map(|entry| &entry.ended).collect();
        let oldest = entries.iter().map(|entry| entry.since).min();
        let until = oldest.unwrap_or_default() + PATIENCE;
        loop {
            match self.write(&ended).await {
                Ok(()) => return,
                Err(error) if self.clock.elapsed() < until => {
                    debug!("outcomes are not written yet: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    let messages = ended.len();
                    return warn!(messages, "outcomes could not be written: {error}");
                }
            }
        }
    }
}
