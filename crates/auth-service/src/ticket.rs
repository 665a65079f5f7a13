//! Tickets: random texts that stand for something for a while, such as WeChat's `state` or a bind link.
//!
//! The key `wxhub:auth:v1:{<SHA-256 of the ticket>}:<kind>` holds what it stands for, sealed: whoever reads Redis learns
//! neither ticket nor content.

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::Rng as _;
use redis::{AsyncCommands as _, Script, aio::ConnectionManager};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use service_kit::{Clock, Sealer, clock::millis, seal::OpenError};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::{error::Error, memory::ExpiringMap};

/// What tickets are for. One of another kind is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Part of the key in Redis.
    pub(crate) name: &'static str,
    /// How long a ticket stands for something.
    pub(crate) life: Duration,
}

/// 64 hexadecimal digits, which fit into a URL and into WeChat's `state` as they are. It never prints.
#[derive(Clone)]
pub(crate) struct Ticket(SecretString);

impl Ticket {
    /// Its length.
    pub(crate) const LEN: usize = 64;

    fn random() -> Self {
        let mut bytes = [0u8; Self::LEN / 2];
        rand::rng().fill_bytes(&mut bytes);
        Self(SecretString::from(hex::encode(bytes)))
    }

    /// The text itself, for whoever it is made for.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket([redacted])")
    }
}

/// Puts another content in place of what is there, and lets it live as long as it would have.
static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('SET', KEYS[1], ARGV[1], 'XX', 'KEEPTTL') then return 1 end
return 0
",
    )
});

/// Every ticket that is out; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Tickets {
    store: Store,
    sealer: Sealer,
    clock: Clock,
}

#[derive(Clone)]
enum Store {
    Redis(ConnectionManager),
    Memory(Arc<Mutex<ExpiringMap<String>>>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis(_) => "Redis",
            Self::Memory(_) => "Memory",
        })
    }
}

fn lock(memory: &Mutex<ExpiringMap<String>>) -> MutexGuard<'_, ExpiringMap<String>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tickets {
    /// Tickets in Redis, shared by all replicas, or in memory without it.
    pub(crate) fn new(redis: Option<ConnectionManager>, sealer: Sealer, clock: Clock) -> Self {
        let store = redis.map_or_else(|| Store::Memory(Arc::default()), Store::Redis);
        Self {
            store,
            sealer,
            clock,
        }
    }

    /// Makes a ticket that stands for `content`.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn put(&self, kind: &Kind, content: &impl Serialize) -> Result<Ticket, Error> {
        let ticket = Ticket::random();
        let key = key(kind, ticket.expose());
        let sealed = self.seal(&key, content)?;
        match &self.store {
            Store::Redis(redis) => {
                let () = redis
                    .clone()
                    .pset_ex(&key, sealed, millis(kind.life))
                    .await?;
            }
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                lock(memory).insert(key, sealed, now + millis(kind.life), now);
            }
        }
        Ok(ticket)
    }

    /// What a ticket stands for, if it does; it goes on doing so.
    ///
    /// # Errors
    /// When Redis does not answer, or holds what cannot be read.
    pub(crate) async fn look<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        ticket: &str,
    ) -> Result<Option<T>, Error> {
        if ticket.len() != Ticket::LEN {
            return Ok(None);
        }
        let key = key(kind, ticket);
        let sealed: Option<String> = match &self.store {
            Store::Redis(redis) => redis.clone().get(&key).await?,
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                let mut memory = lock(memory);
                let entry = memory.get_mut(&key, now);
                entry.map(|entry| entry.value.clone())
            }
        };
        sealed.map_or(Ok(None), |sealed| self.open(&key, &sealed))
    }

    /// What a ticket stands for, for the last time: of those who take it at once, one gets it.
    ///
    /// # Errors
    /// When Redis does not answer, or holds what cannot be read.
    pub(crate) async fn take<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        ticket: &str,
    ) -> Result<Option<T>, Error> {
        if ticket.len() != Ticket::LEN {
            return Ok(None);
        }
        let key = key(kind, ticket);
        let sealed: Option<String> = match &self.store {
            Store::Redis(redis) => redis.clone().get_del(&key).await?,
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                let mut memory = lock(memory);
                let found = memory.get_mut(&key, now).map(|entry| entry.value.clone());
                memory.remove(&key);
                found
            }
        };
        sealed.map_or(Ok(None), |sealed| self.open(&key, &sealed))
    }

    /// Makes a ticket stand for something else from now on, for the rest of its life. Answers whether it lives.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn replace(
        &self,
        kind: &Kind,
        ticket: &str,
        content: &impl Serialize,
    ) -> Result<bool, Error> {
        let key = key(kind, ticket);
        let sealed = self.seal(&key, content)?;
        match &self.store {
            Store::Redis(redis) => Ok(REPLACE
                .key(&key)
                .arg(sealed)
                .invoke_async(&mut redis.clone())
                .await?),
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                let mut memory = lock(memory);
                let entry = memory.get_mut(&key, now);
                let lives = entry.is_some();
                if let Some(entry) = entry {
                    entry.value = sealed;
                }
                Ok(lives)
            }
        }
    }

    fn seal(&self, key: &str, content: &impl Serialize) -> Result<String, Error> {
        let json = serde_json::to_vec(content).map_err(|_| Error::Stored("ticket"))?;
        Ok(self.sealer.seal(key, &json))
    }

    /// None when the key that sealed it is gone: whoever shows the ticket begins anew.
    fn open<T: DeserializeOwned>(&self, key: &str, sealed: &str) -> Result<Option<T>, Error> {
        let json = match self.sealer.open(key, sealed) {
            Ok(json) => json,
            Err(OpenError::UnknownKey) => {
                warn!("WXHUB_MASTER_KEY does not hold the key that sealed a ticket");
                return Ok(None);
            }
            Err(OpenError::Malformed | OpenError::Forged) => return Err(Error::Stored("ticket")),
        };
        let content = serde_json::from_slice(&json).map_err(|_| Error::Stored("ticket"))?;
        Ok(Some(content))
    }
}

fn key(kind: &Kind, ticket: &str) -> String {
    let digest = hex::encode(Sha256::digest(ticket));
    format!("wxhub:auth:v1:{{{digest}}}:{}", kind.name)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use service_kit::storage;
    use test_support::Redis;

    use super::*;

    const STATE: Kind = Kind {
        name: "state",
        life: Duration::from_secs(600),
    };
    const LINK: Kind = Kind {
        name: "link",
        life: Duration::from_secs(60),
    };

    /// What both twins do.
    async fn conforms(tickets: Tickets) {
        let ticket = tickets.put(&STATE, &"one").await.unwrap();
        let text = ticket.expose();
        assert_eq!(text.len(), Ticket::LEN);
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let look = async |kind| tickets.look::<String>(kind, text).await.unwrap();
        assert_eq!(look(&LINK).await, None);
        for _ in 0..2 {
            assert_eq!(look(&STATE).await.as_deref(), Some("one"));
        }
        assert!(tickets.replace(&STATE, text, &"two").await.unwrap());
        assert_eq!(look(&STATE).await.as_deref(), Some("two"));

        let takes = (0..100).map(|_| tickets.take::<String>(&STATE, text));
        let taken = join_all(takes).await;
        let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(taken, ["two"]);
        assert_eq!(look(&STATE).await, None);
        assert!(!tickets.replace(&STATE, text, &"three").await.unwrap());
        assert_eq!(look(&STATE).await, None);
        for junk in ["", "x", &"0".repeat(10_000)] {
            assert_eq!(tickets.take::<String>(&STATE, junk).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(Tickets::new(None, Sealer::ephemeral(), Clock::System)).await;
    }

    #[tokio::test]
    async fn redis_conforms_and_holds_nothing_readable() {
        let redis = Redis::start().await;
        let mut connection = storage::redis(&SecretString::from(redis.url())).unwrap();
        let tickets = Tickets::new(Some(connection.clone()), Sealer::ephemeral(), Clock::System);
        conforms(tickets.clone()).await;

        let ticket = tickets.put(&LINK, &"readable").await.unwrap();
        let keys: Vec<String> = connection.keys("*").await.unwrap();
        let [key] = &keys[..] else {
            panic!("{keys:?}");
        };
        assert!(!key.contains(ticket.expose()));
        let held: String = connection.get(key).await.unwrap();
        assert!(!held.contains("readable"));
        let left: u64 = connection.pttl(key).await.unwrap();
        assert!(left <= 60_000);
        tickets.replace(&LINK, ticket.expose(), &"2").await.unwrap();
        let left: i64 = connection.pttl(key).await.unwrap();
        assert!((1..=60_000).contains(&left), "{left}");
    }

    #[tokio::test]
    async fn a_ticket_whose_key_is_gone_is_none() {
        let tickets = Tickets::new(None, Sealer::ephemeral(), Clock::System);
        let ticket = tickets.put(&LINK, &"sealed").await.unwrap();
        let text = ticket.expose();
        let rotated = Tickets {
            sealer: Sealer::ephemeral(),
            ..tickets.clone()
        };
        assert_eq!(rotated.look::<String>(&LINK, text).await.unwrap(), None);
        let found = tickets.look::<String>(&LINK, text).await.unwrap();
        assert_eq!(found.as_deref(), Some("sealed"));
        assert_eq!(rotated.take::<String>(&LINK, text).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_ends() {
        let tickets = Tickets::new(
            None,
            Sealer::ephemeral(),
            Clock::tokio(std::time::UNIX_EPOCH),
        );
        let ticket = tickets.put(&LINK, &1).await.unwrap();
        tokio::time::advance(LINK.life).await;
        let found = tickets.look::<u8>(&LINK, ticket.expose()).await.unwrap();
        assert_eq!(found, None);
    }
}
