//! Epochs: how every session of a user, or of an app, ends at once.
//!
//! A revocation is a number, larger than any given before, that its user or app gets. A login notes the largest number
//! that was given before it began, and the session opened by it is over once its user or its app has a larger one:
//! what was opened before a revocation ends, what comes after lives, and neither depends on anybody's clock.
//!
//! Each replica holds the numbers in memory. It learns new ones when Redis publishes them, and by a look every
//! [`POLL`] in case it did not hear; nobody's session is accepted on what is older than [`FRESH`], so that a replica
//! that just started, woke up or was cut off looks first. What Redis has lost, by an older snapshot or a failover, the
//! replicas put back.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use service_kit::{Clock, clock::millis};
use tokio::{
    sync::{Mutex, Notify},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wechat::AppId;

use super::{Session, store::Store};
use crate::{error::Error, memory::ExpiringMap, user::UserId};

/// A revocation holds on every replica within this.
const FRESH: Duration = Duration::from_secs(1);
/// Between two looks: one more than is needed may fail or be late.
const POLL: Duration = Duration::from_millis(450);
/// Numbers that are read at once.
pub(super) const PAGE: usize = 10_000;

/// When a login began, in terms of revocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub(super) u64);

/// Whose sessions a revocation ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    User(UserId),
    App(AppId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user_id) => write!(f, "user:{user_id}"),
            Self::App(app_id) => write!(f, "app:{app_id}"),
        }
    }
}

/// A text that names no subject.
#[derive(Debug)]
pub(super) struct UnknownSubject;

impl FromStr for Subject {
    type Err = UnknownSubject;

    fn from_str(text: &str) -> Result<Self, UnknownSubject> {
        match text.split_once(':') {
            Some(("user", id)) => id.parse().map(Self::User).map_err(|_| UnknownSubject),
            Some(("app", id)) => id.parse().map(Self::App).map_err(|_| UnknownSubject),
            _ => Err(UnknownSubject),
        }
    }
}

/// Numbers from some number on, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) revocations: Vec<(Subject, u64)>,
    /// The largest number that was given; in the last page, and unknown to a store that lost everything.
    pub(super) latest: Option<u64>,
    /// Where the next page begins.
    pub(super) next: Option<u64>,
}

/// The epochs as this replica knows them; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Epochs {
    store: Store,
    clock: Clock,
    kept: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    known: RwLock<Known>,
    /// When the latest look that succeeded began, in milliseconds of the clock's elapsed time and one; 0 before the first.
    looked: AtomicU64,
    /// Held while looking, with when the latest look that failed ended.
    looking: Mutex<Option<Duration>>,
}

#[derive(Debug, Default)]
struct Known {
    users: ExpiringMap<u64, UserId>,
    apps: ExpiringMap<u64, AppId>,
    /// The largest number of all.
    latest: u64,
    /// Up to where every number was read, and whose it was.
    read: u64,
    read_last: Option<Subject>,
}

impl Epochs {
    /// Epochs that are kept as long as any session lives that they may end.
    pub(super) fn new(store: Store, clock: Clock, longest: Duration) -> Self {
        Self {
            store,
            clock,
            // Replicas' clocks differ.
            kept: longest + Duration::from_secs(3_600),
            shared: Arc::default(),
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        let known = self.shared.known.read();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        let known = self.shared.known.write();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch of a login that begins now.
    pub(super) async fn current(&self) -> Result<Epoch, Error> {
        let latest = self.known().latest;
        Ok(Epoch(match self.store.latest().await? {
            Some(stored) if stored >= latest => stored,
            // A store that was emptied or set back gives numbers that are larger than all before.
            _ => self.advance(None).await?,
        }))
    }

    /// Ends every session that the subject has by now: at once here, within [`FRESH`] on the other replicas.
    pub(super) async fn revoke(&self, subject: Subject) -> Result<(), Error> {
        self.advance(Some(subject)).await.map(drop)
    }

    async fn advance(&self, subject: Option<Subject>) -> Result<u64, Error> {
        let latest = self.known().latest;
        let number = self
            .store
            .advance(latest, subject.as_ref(), self.kept, self.now())
            .await?;
        let known = &mut *self.known_mut();
        known.latest = known.latest.max(number);
        if let Some(subject) = subject {
            self.note(known, subject, number);
        }
        Ok(number)
    }

    /// Whether the session was revoked, as far as is known here: after [`Epochs::refresh`], for sure.
    pub(super) fn ended(&self, session: &Session) -> bool {
        let (known, now) = (self.known(), self.now());
        let user = known.users.get(&session.user_id, now);
        let app = known.apps.get(&session.app_id, now);
        let mut numbers = user.into_iter().chain(app).map(|entry| entry.value);
        numbers.any(|number| number > session.epoch.0)
    }

    /// Looks what was revoked, unless that was done within [`FRESH`]. Those who come at once share one look, and its
    /// failure.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        if self.is_fresh() {
            return Ok(());
        }
        let asked = self.clock.elapsed();
        let mut failed = self.shared.looking.lock().await;
        if self.is_fresh() {
            return Ok(());
        }
        if failed.is_some_and(|ended| ended >= asked) {
            return Err(Error::RevocationsUnknown);
        }
        self.look(&mut failed).await
    }

    fn is_fresh(&self) -> bool {
        let looked = self.shared.looked.load(Ordering::Acquire);
        looked > 0 && millis(self.clock.elapsed()) + 1 < looked + millis(FRESH)
    }

    async fn look(&self, failed: &mut Option<Duration>) -> Result<(), Error> {
        let began = millis(self.clock.elapsed());
        match self.read_and_restore().await {
            Ok(()) => {
                self.shared.looked.store(began + 1, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                *failed = Some(self.clock.elapsed());
                Err(error)
            }
        }
    }

    async fn read_and_restore(&self) -> Result<(), Error> {
        let (from, last) = {
            let known = self.known();
            (known.read, known.read_last.clone())
        };
        if self.read(from, last).await? {
            return Ok(());
        }
        let (revocations, latest) = {
            let (known, now) = (self.known(), self.now());
            let users = known.users.iter(now);
            let users = users.map(|(id, entry)| (Subject::User(*id), entry.value));
            let apps = known.apps.iter(now);
            let apps = apps.map(|(id, entry)| (Subject::App(id.clone()), entry.value));
            (users.chain(apps).collect::<Vec<_>>(), known.latest)
        };
        // One that has none has forgotten them in good time.
        if !revocations.is_empty() {
            warn!("the store has lost revocations: they are put back");
        }
        self.store.restore(&revocations, latest, self.kept).await?;
        // Others' may be among what is smaller than what was read.
        self.read(0, None).await.map(drop)
    }

    /// Takes over what the store has, from a number on. Answers whether nothing of what was read before is missing.
    async fn read(&self, from: u64, mut last: Option<Subject>) -> Result<bool, Error> {
        let (mut from, highest) = (from, self.known().latest);
        loop {
            let page = self.store.epochs(from).await?;
            if let Some(subject) = &last
                && page.revocations.iter().any(|(found, _)| found == subject)
            {
                last = None;
            }
            let known = &mut *self.known_mut();
            for (subject, number) in page.revocations {
                if number > known.read {
                    known.read = number;
                    known.read_last = Some(subject.clone());
                }
                known.latest = known.latest.max(number);
                self.note(known, subject, number);
            }
            if let Some(next) = page.next {
                from = next;
                continue;
            }
            let latest = page.latest.unwrap_or_default();
            known.latest = known.latest.max(latest);
            return Ok(latest >= highest && last.is_none());
        }
    }

    fn note(&self, known: &mut Known, subject: Subject, number: u64) {
        let now = self.now();
        // Numbers are as large as Unix milliseconds.
        let end = number.saturating_add(millis(self.kept));
        match subject {
            Subject::User(id) => known.users.raise(id, number, end, now),
            Subject::App(id) => known.apps.raise(id, number, end, now),
        }
    }

    fn now(&self) -> u64 {
        self.clock.unix_millis()
    }

    /// Follows what other replicas revoke, until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let bell = Notify::new();
        let follow = self.store.follow(&stop, || bell.notify_one());
        let poll = stop.run_until_cancelled(self.poll(&bell));
        tokio::join!(follow, poll);
    }

    async fn poll(&self, bell: &Notify) {
        let mut told = false;
        loop {
            let mut failed = self.shared.looking.lock().await;
            let looked = self.look(&mut failed).await;
            drop(failed);
            match looked {
                Ok(()) => told = false,
                // Once an outage is enough.
                Err(error) if !told => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "revocations cannot be read: no session is accepted");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = bell.notified() => {}
                () = sleep(POLL) => {}
            }
        }
    }
}
