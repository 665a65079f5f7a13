//! The twin of Redis within one process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use service_kit::{
    Clock,
    clock::{millis, since_epoch},
};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{
    Begin, Claim, Claimant, Event, Fresh, HISTORY, LEASE, Lease, PROBES_APART, Record,
    SUPERSEDED_AFTER, Spend, Written,
};
use crate::credential::{
    Credential, Failure, Key, digest,
    ledger::{FORCE_APART, Ledger, reset},
};

/// Events that a slow follower may lag behind; beyond that it looks at everything.
const BACKLOG: usize = 1_024;

/// Credentials in memory; clones share them.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    /// Leases last by it, as by Redis's own, and not by that of whoever asks.
    clock: Clock,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Entry {
    record: Record,
    /// The fence that was granted last, and the one that wrote last.
    granted: u64,
    written: u64,
    /// The holder's fence and when its lease ends.
    lease: Option<(u64, Duration)>,
    /// The fence of the last call that began and did not end; the record says when the first one did.
    begun: Option<u64>,
    forced_at: Option<SystemTime>,
    probed_at: Option<SystemTime>,
}

impl MemoryStore {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            entries: Arc::default(),
            events: broadcast::Sender::new(BACKLOG),
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, key: &Key) {
        // Nobody may be listening.
        let _ = self.events.send(Event::Changed(key.clone()));
    }

    pub(super) fn load(&self, key: &Key) -> Option<Record> {
        let entries = self.entries();
        let entry = entries.get(key)?;
        Some(entry.record.clone())
    }

    pub(super) fn claim(&self, key: &Key, claimant: Claimant) -> Claim {
        let Claimant {
            replaces,
            floor,
            now,
        } = claimant;
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_default();
        let stored = entry.record.version();
        let newer = |held: &Credential| {
            let later = floor.is_some_and(|floor| held.times.floor > floor);
            now < held.times.expire && (stored > replaces || (stored == replaces && later))
        };
        if entry.record.credential.as_ref().is_some_and(newer) {
            return Claim::Newer;
        }
        let elapsed = self.clock.elapsed();
        if let Some((_, until)) = entry.lease
            && until > elapsed
        {
            return Claim::Busy(until - elapsed);
        }
        let highest = entry.granted.max(replaces).max(stored);
        let fence = highest.max(millis(since_epoch(now))) + 1;
        entry.granted = fence;
        entry.lease = Some((fence, elapsed + LEASE));
        let takeover = entry.begun.is_some() || stored < replaces;
        Claim::Granted(Lease { fence, takeover })
    }

    pub(super) fn begin(&self, key: &Key, lease: Lease, spend: Spend, now: SystemTime) -> Begin {
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_default();
        let elapsed = self.clock.elapsed();
        if !entry.holds(lease) || entry.lease.is_some_and(|(_, until)| until <= elapsed) {
            return Begin::Lost;
        }
        let mut ledger = entry.record.ledger.on(now);
        if ledger.exhausted || ledger.calls >= spend.calls {
            return Begin::Spent;
        }
        if let Some(limit) = spend.forced {
            if ledger.forced >= limit {
                return Begin::NotForced(reset(now));
            }
            let next = entry.forced_at.map(|last| last + FORCE_APART);
            if let Some(next) = next.filter(|next| now < *next) {
                return Begin::NotForced(next);
            }
            ledger.forced += 1;
            entry.forced_at = Some(now);
        }
        ledger.calls += 1;
        entry.record.ledger = ledger;
        entry.begun = Some(lease.fence);
        entry.record.begun.get_or_insert(now);
        Begin::Granted(ledger)
    }

    pub(super) fn write(&self, key: &Key, lease: Lease, fresh: &Fresh, now: SystemTime) -> Written {
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_default();
        let written = entry.write(lease, fresh, now);
        drop(entries);
        self.tell(key);
        written
    }

    pub(super) fn fail(&self, key: &Key, lease: Lease, failure: &Failure, ambiguous: bool) {
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_default();
        if failure.cause.is_exhaustion() {
            entry.record.ledger = Ledger {
                exhausted: true,
                ..entry.record.ledger.on(failure.at)
            };
        }
        if !entry.holds(lease) {
            return;
        }
        entry.record.failure = Some(failure.clone());
        if !ambiguous && !lease.takeover {
            entry.ends();
        }
        entry.lease = None;
        drop(entries);
        self.tell(key);
    }

    pub(super) fn release(&self, key: &Key, lease: Lease) {
        if let Some(entry) = self.entries().get_mut(key)
            && entry.holds(lease)
        {
            entry.lease = None;
        }
    }

    pub(super) fn probe(&self, key: &Key, now: SystemTime) -> bool {
        let mut entries = self.entries();
        let last = &mut entries.entry(key.clone()).or_default().probed_at;
        let granted = last.is_none_or(|last| now >= last + PROBES_APART);
        if granted {
            *last = Some(now);
        }
        granted
    }

    pub(super) fn restore(&self, key: &Key, held: &Credential, verify: Option<SystemTime>) {
        let mut entries = self.entries();
        let record = &mut entries.entry(key.clone()).or_default().record;
        let stored = record.version();
        if stored > held.version || (stored == held.version && record.verify >= verify) {
            return;
        }
        if stored < held.version {
            record.remember(held.version, held.digest());
            record.credential = Some(held.clone());
        }
        record.verify = record.verify.max(verify);
        drop(entries);
        self.tell(key);
    }

    pub(super) fn enter(&self, key: &Key, ledger: Ledger) {
        let mut entries = self.entries();
        let record = &mut entries.entry(key.clone()).or_default().record;
        record.ledger = record.ledger.merge(ledger);
    }

    pub(super) async fn follow(
        &self,
        stop: &CancellationToken,
        mut on_event: impl FnMut(Event) + Send,
    ) {
        let mut events = self.events.subscribe();
        on_event(Event::Missed);
        while let Some(event) = stop.run_until_cancelled(events.recv()).await {
            match event {
                Ok(event) => on_event(event),
                Err(RecvError::Lagged(_)) => on_event(Event::Missed),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

impl Entry {
    fn holds(&self, lease: Lease) -> bool {
        self.lease.is_some_and(|(fence, _)| fence == lease.fence)
    }

    /// No call that began is on its way any more.
    fn ends(&mut self) {
        self.begun = None;
        self.record.begun = None;
    }

    fn write(&mut self, lease: Lease, fresh: &Fresh, now: SystemTime) -> Written {
        // Versions outlive a store that was emptied, other than what was written last.
        if lease.fence < self.written.max(self.record.version()) {
            if fresh.policy.ends_by_a_lost_call() {
                self.record.verify = self.record.verify.max(Some(now + SUPERSEDED_AFTER));
            }
            return Written::Superseded;
        }
        let digest = digest(&fresh.secret);
        let stored = self.record.version();
        let same = self
            .record
            .credential
            .as_ref()
            .is_some_and(|stored| stored.digest() == digest);
        let version = if same {
            stored
        } else {
            let highest = stored.max(fresh.highest).max(lease.fence);
            let version = highest.max(millis(since_epoch(now))) + 1;
            self.record.remember(version, digest);
            if fresh.reported {
                let ledger = self.record.ledger.on(now);
                self.record.ledger = Ledger {
                    rejected: ledger.rejected + 1,
                    ..ledger
                };
            }
            version
        };
        self.record.credential = Some(Credential {
            secret: fresh.secret.clone(),
            version,
            policy: fresh.policy,
            times: fresh.times,
        });
        // What cast doubt on the one before may yet befall this one.
        let doubt = self.record.verify.max(fresh.doubt);
        let doubt = doubt.filter(|doubt| *doubt > fresh.times.asked());
        self.record.verify = fresh.verify(lease).max(doubt);
        self.record.failure = None;
        self.written = lease.fence;
        if self.begun.is_some_and(|begun| begun <= lease.fence) {
            self.ends();
        }
        if self.holds(lease) {
            self.lease = None;
        }
        Written::Stored(version)
    }
}

impl Record {
    fn remember(&mut self, version: u64, digest: String) {
        self.history.push((version, digest));
        if self.history.len() > HISTORY {
            self.history.remove(0);
        }
    }
}

#[cfg(test)]
impl MemoryStore {
    pub(super) fn expire_lease(&self, key: &Key) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.lease = None;
        }
    }
}
