//! Where sessions are kept: Redis, or memory in embedded mode.

mod memory;
mod record;
mod redis;

use std::time::Duration;

use ::redis::{Client, aio::ConnectionManager};
use tokio_util::sync::CancellationToken;

use self::{memory::MemoryStore, redis::RedisStore};
use super::{
    Session, SessionId,
    epoch::{Page, Subject},
};
use crate::{error::Error, user::UserId};

/// Sessions of one user that are kept: the oldest ends when there is one more.
pub(super) const SESSIONS_MAX: usize = 1_000;

/// Where sessions are kept; clones share it.
#[derive(Debug, Clone)]
pub(super) enum Store {
    Redis(RedisStore),
    Memory(MemoryStore),
}

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lives {
    /// A session, from its last use.
    pub(super) idle: Duration,
    /// A session, from its start; and what is kept beside sessions, from its last change.
    pub(super) longest: Duration,
}

/// One of a user's sessions in the user's index: whether it lives is not said there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Indexed {
    pub(super) created: u64,
    pub(super) id: SessionId,
}

impl Store {
    pub(super) fn redis(connection: ConnectionManager, client: Client) -> Self {
        Self::Redis(RedisStore::new(connection, client))
    }

    pub(super) fn memory() -> Self {
        Self::Memory(MemoryStore::default())
    }

    /// Puts a new session in place and into its user's index.
    pub(super) async fn insert(
        &self,
        id: &SessionId,
        session: &Session,
        lives: Lives,
    ) -> Result<(), Error> {
        match self {
            Self::Redis(store) => store.insert(id, session, lives).await,
            Self::Memory(store) => {
                store.insert(id, session, lives);
                Ok(())
            }
        }
    }

    /// The session, if there is one, which then lives on for `idle`.
    pub(super) async fn touch(
        &self,
        id: &SessionId,
        idle: Duration,
        now: u64,
    ) -> Result<Option<Session>, Error> {
        match self {
            Self::Redis(store) => store.touch(id, idle).await,
            Self::Memory(store) => Ok(store.touch(id, idle, now)),
        }
    }

    /// Sessions and how long they live unless they are used, without using them.
    pub(super) async fn peek(
        &self,
        ids: &[SessionId],
        now: u64,
    ) -> Result<Vec<Option<(Session, Duration)>>, Error> {
        match self {
            Self::Redis(store) => store.peek(ids).await,
            Self::Memory(store) => Ok(store.peek(ids, now)),
        }
    }

    /// Ends sessions of a user.
    pub(super) async fn remove(&self, user_id: UserId, ids: &[SessionId]) -> Result<(), Error> {
        match self {
            Self::Redis(store) => store.remove(user_id, ids).await,
            Self::Memory(store) => {
                store.remove(user_id, ids);
                Ok(())
            }
        }
    }

    /// A user's sessions, the latest first, and some that are over.
    pub(super) async fn index(&self, user_id: UserId, now: u64) -> Result<Vec<Indexed>, Error> {
        match self {
            Self::Redis(store) => store.index(user_id).await,
            Self::Memory(store) => Ok(store.index(user_id, now)),
        }
    }

    /// The largest number of a revocation.
    pub(super) async fn latest(&self) -> Result<Option<u64>, Error> {
        match self {
            Self::Redis(store) => store.latest().await,
            Self::Memory(store) => Ok(store.latest()),
        }
    }

    /// Gives a number that is larger than `held` and than any given before, to the subject if there is one.
    pub(super) async fn advance(
        &self,
        held: u64,
        subject: Option<&Subject>,
        kept: Duration,
        now: u64,
    ) -> Result<u64, Error> {
        match self {
            Self::Redis(store) => store.advance(held, subject, kept).await,
            Self::Memory(store) => Ok(store.advance(held, subject, kept, now)),
        }
    }

    /// The numbers from `from` on.
    pub(super) async fn epochs(&self, from: u64) -> Result<Page, Error> {
        match self {
            Self::Redis(store) => store.epochs(from).await,
            Self::Memory(store) => Ok(store.epochs(from)),
        }
    }

    /// Puts back numbers that were lost.
    pub(super) async fn restore(
        &self,
        revocations: &[(Subject, u64)],
        latest: u64,
        kept: Duration,
    ) -> Result<(), Error> {
        match self {
            Self::Redis(store) => store.restore(revocations, latest, kept).await,
            Self::Memory(store) => {
                store.restore(revocations, latest);
                Ok(())
            }
        }
    }

    /// Calls `on_change` when numbers were given elsewhere, as soon as that is known, or may have been; until `stop` is
    /// cancelled.
    pub(super) async fn follow(&self, stop: &CancellationToken, on_change: impl Fn() + Send) {
        match self {
            Self::Redis(store) => store.follow(stop, on_change).await,
            // There is no elsewhere.
            Self::Memory(_) => stop.cancelled().await,
        }
    }

    /// Puts a sealed session_key in place of the one before.
    pub(super) async fn put_session_key(
        &self,
        user: &str,
        sealed: &str,
        longest: Duration,
        now: u64,
    ) -> Result<(), Error> {
        match self {
            Self::Redis(store) => store.put_session_key(user, sealed, longest).await,
            Self::Memory(store) => {
                store.put_session_key(user, sealed, longest, now);
                Ok(())
            }
        }
    }

    /// Puts a sealed session_key in place of `expected`, if that is what is there. Answers whether it was.
    pub(super) async fn swap_session_key(
        &self,
        user: &str,
        expected: &str,
        sealed: &str,
        longest: Duration,
        now: u64,
    ) -> Result<bool, Error> {
        match self {
            Self::Redis(store) => {
                let swap = store.swap_session_key(user, expected, sealed, longest);
                swap.await
            }
            Self::Memory(store) => Ok(store.swap_session_key(user, expected, sealed, longest, now)),
        }
    }

    /// The sealed session_key.
    pub(super) async fn session_key(&self, user: &str, now: u64) -> Result<Option<String>, Error> {
        match self {
            Self::Redis(store) => store.session_key(user).await,
            Self::Memory(store) => Ok(store.session_key(user, now)),
        }
    }

    /// Forgets a session_key.
    pub(super) async fn remove_session_key(&self, user: &str) -> Result<(), Error> {
        match self {
            Self::Redis(store) => store.remove_session_key(user).await,
            Self::Memory(store) => {
                store.remove_session_key(user);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
