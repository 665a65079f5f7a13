//! Where credentials are kept, who may refresh one, and how everybody hears of it.
//!
//! A refresh goes through four steps, each of which fails safely when the one before is too long ago: [`Store::claim`] takes
//! the lease with an increasing fence, [`Store::begin`] records that WeChat is about to be called, and [`Store::write`] or
//! [`Store::fail`] ends it. Redis and its twin in memory keep the same rules: one suite of tests runs over both.

mod memory;
mod redis;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::redis::{RedisError, aio::ConnectionManager};
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use service_kit::{Clock, Sealer};
use tokio_util::sync::CancellationToken;

pub use self::memory::MemoryStore;
pub(crate) use self::redis::RedisStore;
use super::{Credential, Failure, Key, Policy, Times, ledger::Ledger};

/// How long a lease lasts. It is never renewed: whoever did not write within it has lost it.
pub const LEASE: Duration = Duration::from_secs(5);
/// A token whose predecessor's holder died within its call is verified by one more refresh after this long: the
/// dead holder's request may have reached WeChat later (R15). Of several such moments the last one counts, and it counts for
/// every later token that was asked for before it.
pub(crate) const VERIFY_AFTER: Duration = Duration::from_secs(60);
/// The same after a late writer was refused.
const SUPERSEDED_AFTER: Duration = Duration::from_secs(30);
/// Between two probes of one credential.
pub const PROBES_APART: Duration = Duration::from_secs(30);
/// Digests that are kept.
const HISTORY: usize = 16;

/// The store of every replica.
#[derive(Debug, Clone)]
pub enum Store {
    /// In this process, for `wxhub dev`.
    Memory(MemoryStore),
    /// Behind the faults of a simulation.
    Simulated(Arc<dyn Simulated>),
    /// In Redis.
    Redis(Arc<RedisStore>),
}

/// The steps of [`Store`] for a simulation that puts faults before another store: each does what its namesake does.
#[expect(missing_docs, reason = "said at the namesakes")]
pub trait Simulated: std::fmt::Debug + Send + Sync {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, Error>>;

    fn claim<'a>(&'a self, key: &'a Key, claimant: Claimant)
    -> BoxFuture<'a, Result<Claim, Error>>;

    fn begin<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        spend: Spend,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Begin, Error>>;

    fn write<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        fresh: &'a Fresh,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Written, Error>>;

    fn fail<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        failure: &'a Failure,
        ambiguous: bool,
    ) -> BoxFuture<'a, Result<(), Error>>;

    fn release<'a>(&'a self, key: &'a Key, lease: Lease) -> BoxFuture<'a, Result<(), Error>>;

    fn restore<'a>(
        &'a self,
        key: &'a Key,
        held: &'a Credential,
        verify: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<(), Error>>;

    fn enter<'a>(&'a self, key: &'a Key, ledger: Ledger) -> BoxFuture<'a, Result<(), Error>>;

    fn probe<'a>(&'a self, key: &'a Key, now: SystemTime) -> BoxFuture<'a, Result<bool, Error>>;

    fn follow<'a>(
        &'a self,
        stop: &'a CancellationToken,
        on_event: Box<dyn FnMut(Event) + Send + 'a>,
    ) -> BoxFuture<'a, ()>;
}

/// What is stored of one credential.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The current one.
    pub credential: Option<Credential>,
    /// When one more refresh verifies that it is WeChat's newest.
    pub verify: Option<SystemTime>,
    /// When a call to WeChat began that did not end yet.
    pub begun: Option<SystemTime>,
    /// Why the last refresh failed.
    pub failure: Option<Failure>,
    /// What it has cost on the Beijing day of the last call.
    pub ledger: Ledger,
    /// Versions and digests of the last texts, newest last.
    pub history: History,
}

/// Versions and digests of texts, newest last.
pub type History = Vec<(u64, String)>;

impl Record {
    /// The version of the current credential; 0 when there is none.
    pub fn version(&self) -> u64 {
        self.credential.as_ref().map_or(0, |held| held.version)
    }

    /// When the current credential is to be verified, as seen at `now`: a call that began and that nobody can be waiting for
    /// any more may end the token sooner or later (R15).
    pub(crate) fn doubt(&self, now: SystemTime) -> Option<SystemTime> {
        let ends = |held: &Credential| held.policy.ends_by_a_lost_call();
        let died = self.begun.filter(|begun| now > *begun + 2 * LEASE);
        let died = died.filter(|_| self.credential.as_ref().is_some_and(ends));
        self.verify.max(died.map(|begun| begun + VERIFY_AFTER))
    }

    /// The version that a text had, by its digest.
    pub fn version_of(&self, digest: &str) -> Option<u64> {
        let found = self.history.iter().rev().find(|(_, known)| known == digest);
        found.map(|(version, _)| *version)
    }
}

/// Who asks for a lease, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Claimant {
    /// The version to be replaced, 0 for none: when the stored one is newer and alive, there is nothing to do (R1).
    pub replaces: u64,
    /// Its floor, when it is refreshed only because its time has come: one that is stored with a later floor was asked for
    /// again, and is the same still.
    pub floor: Option<SystemTime>,
    /// The asker's wall time.
    pub now: SystemTime,
}

/// The outcome of asking for a lease.
#[derive(Debug)]
pub enum Claim {
    /// It is ours.
    Granted(Lease),
    /// Somebody else has it for so long.
    Busy(Duration),
    /// What is stored is newer than what is to be replaced.
    Newer,
}

/// The right to refresh one credential once.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Larger than every one before.
    pub fence: u64,
    /// The holder before died within its call to WeChat, or may have: the store has lost what it knew.
    pub takeover: bool,
}

/// What a call to WeChat may be counted against.
#[derive(Debug, Clone, Copy)]
pub struct Spend {
    /// It is refused when the day has seen so many calls.
    pub calls: u32,
    /// It is forced, and refused when the day has seen so many forced ones, or when the last was a moment ago.
    pub forced: Option<u32>,
}

/// The outcome of announcing a call to WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Go ahead: it is entered in this ledger.
    Granted(Ledger),
    /// The lease is lost.
    Lost,
    /// No forced refresh is allowed before.
    NotForced(SystemTime),
    /// No call is allowed before the quota begins anew.
    Spent,
}

/// A credential to be stored.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// The text.
    pub secret: SecretString,
    /// How it lives.
    pub policy: Policy,
    /// When.
    pub times: Times,
    /// The highest version that the writer ever held: what is stored grows beyond it, even when Redis came back empty.
    pub highest: u64,
    /// When the writer would have verified the one before: the store may have lost that.
    pub doubt: Option<SystemTime>,
    /// It was asked for because WeChat refused the one before.
    pub reported: bool,
}

impl Fresh {
    /// When it is to be verified although nobody else doubted the one before: see [`Lease::takeover`].
    pub(crate) fn verify(&self, lease: Lease) -> Option<SystemTime> {
        let doubtful = self.policy.ends_by_a_lost_call() && lease.takeover;
        doubtful.then(|| self.times.asked() + VERIFY_AFTER)
    }
}

/// The outcome of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Stored under this version.
    Stored(u64),
    /// A newer holder has written already: nothing changed.
    Superseded,
}

/// Something happened in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This credential changed, or its refresh failed.
    Changed(Key),
    /// Events may have been missed: look at everything.
    Missed,
}

/// Why the store is of no use now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis does not answer, or not as it should.
    #[error("Redis does not answer")]
    Redis(#[from] RedisError),
    /// What is stored cannot be read, for example because it was sealed under another master key.
    #[error("the stored {key} cannot be read: {problem}")]
    Unreadable {
        /// Which credential.
        key: Key,
        /// Why.
        problem: String,
        /// Its version, 0 when that cannot be read either.
        version: u64,
        /// When it is expired.
        expire: Option<SystemTime>,
    },
}

impl Store {
    /// A store in this process, whose leases last by `clock`.
    pub fn in_memory(clock: Clock) -> Self {
        Self::Memory(MemoryStore::new(clock))
    }

    /// A store in Redis; `client` opens the connection that events come by.
    pub fn in_redis(
        connection: ConnectionManager,
        client: ::redis::Client,
        sealer: Sealer,
    ) -> Self {
        Self::Redis(Arc::new(RedisStore::new(connection, client, sealer)))
    }

    /// What is stored, if anything ever was.
    ///
    /// # Errors
    /// [`Error`] when the store does not answer or the value cannot be read.
    pub async fn load(&self, key: &Key) -> Result<Option<Record>, Error> {
        match self {
            Self::Memory(store) => Ok(store.load(key)),
            Self::Redis(store) => store.load(key).await,
            Self::Simulated(store) => store.load(key).await,
        }
    }

    /// Takes the lease, unless somebody has it or the work is done.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn claim(&self, key: &Key, claimant: Claimant) -> Result<Claim, Error> {
        match self {
            Self::Memory(store) => Ok(store.claim(key, claimant)),
            Self::Redis(store) => store.claim(key, claimant).await,
            Self::Simulated(store) => store.claim(key, claimant).await,
        }
    }

    /// Enters in the ledger that WeChat is called now, right before it is.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn begin(
        &self,
        key: &Key,
        lease: Lease,
        spend: Spend,
        now: SystemTime,
    ) -> Result<Begin, Error> {
        match self {
            Self::Memory(store) => Ok(store.begin(key, lease, spend, now)),
            Self::Redis(store) => store.begin(key, lease, spend, now).await,
            Self::Simulated(store) => store.begin(key, lease, spend, now).await,
        }
    }

    /// Stores what WeChat answered under a version larger than the fence, ends the lease and tells everybody; refused when a
    /// newer holder has written (R4).
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn write(
        &self,
        key: &Key,
        lease: Lease,
        fresh: &Fresh,
        now: SystemTime,
    ) -> Result<Written, Error> {
        match self {
            Self::Memory(store) => Ok(store.write(key, lease, fresh, now)),
            Self::Redis(store) => store.write(key, lease, fresh, now).await,
            Self::Simulated(store) => store.write(key, lease, fresh, now).await,
        }
    }

    /// Records a failure, ends the lease and tells everybody. `ambiguous`: WeChat may have carried the call out. That
    /// WeChat's quota is used up is recorded even when the lease is lost.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn fail(
        &self,
        key: &Key,
        lease: Lease,
        failure: &Failure,
        ambiguous: bool,
    ) -> Result<(), Error> {
        match self {
            Self::Memory(store) => {
                store.fail(key, lease, failure, ambiguous);
                Ok(())
            }
            Self::Redis(store) => store.fail(key, lease, failure, ambiguous).await,
            Self::Simulated(store) => store.fail(key, lease, failure, ambiguous).await,
        }
    }

    /// Gives the lease back, with nothing to tell.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn release(&self, key: &Key, lease: Lease) -> Result<(), Error> {
        match self {
            Self::Memory(store) => {
                store.release(key, lease);
                Ok(())
            }
            Self::Redis(store) => store.release(key, lease).await,
            Self::Simulated(store) => store.release(key, lease).await,
        }
    }

    /// Takes the right to ask WeChat whether the value still works: one replica has it, once in [`PROBES_APART`].
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn probe(&self, key: &Key, now: SystemTime) -> Result<bool, Error> {
        match self {
            Self::Memory(store) => Ok(store.probe(key, now)),
            Self::Redis(store) => store.probe(key).await,
            Self::Simulated(store) => store.probe(key, now).await,
        }
    }

    /// Puts back what this replica holds and the store has lost, be it only that it is to be verified; a newer version there
    /// stays.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn restore(
        &self,
        key: &Key,
        held: &Credential,
        verify: Option<SystemTime>,
    ) -> Result<(), Error> {
        match self {
            Self::Memory(store) => {
                store.restore(key, held, verify);
                Ok(())
            }
            Self::Redis(store) => store.restore(key, held, verify).await,
            Self::Simulated(store) => store.restore(key, held, verify).await,
        }
    }

    /// Puts back what this replica knows of the ledger and the store has lost.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn enter(&self, key: &Key, ledger: Ledger) -> Result<(), Error> {
        match self {
            Self::Memory(store) => {
                store.enter(key, ledger);
                Ok(())
            }
            Self::Redis(store) => store.enter(key, ledger).await,
            Self::Simulated(store) => store.enter(key, ledger).await,
        }
    }

    /// Tells `on_event` what happens, until `stop` is cancelled.
    pub async fn follow(&self, stop: &CancellationToken, on_event: impl FnMut(Event) + Send) {
        match self {
            Self::Memory(store) => store.follow(stop, on_event).await,
            Self::Redis(store) => store.follow(stop, on_event).await,
            Self::Simulated(store) => store.follow(stop, Box::new(on_event)).await,
        }
    }
}

#[cfg(test)]
mod tests;
