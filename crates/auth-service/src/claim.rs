//! Who does what can be done only once, such as exchanging a code at WeChat: the first to come, on whichever replica.
//!
//! The key `wxhub:auth:v1:{<SHA-256 of what it is>}:<kind>` holds one of
//! - `work:<sealed>`: what is to be done, laid down beforehand, or by a holder who could not finish;
//! - `held:<owner>` while its owner does it (15 s at most);
//! - `answer:<sealed>` once there is an outcome, for those who come with the same.

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use redis::{AsyncCommands as _, Script, aio::ConnectionManager};
use serde::{Serialize, de::DeserializeOwned};
use service_kit::{Clock, Sealer, clock::millis, seal::OpenError};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tracing::warn;
use uuid::Uuid;

use crate::{error::Error, memory::ExpiringMap};

/// A holder that did not finish within this long is gone: more than WeChat's and the stores' deadlines together.
const HELD: Duration = Duration::from_secs(15);
/// An outcome is given again for this long.
pub(crate) const ANSWER_KEPT: Duration = Duration::from_secs(15);
/// Whoever finds it held waits this long for the outcome.
const WAIT: Duration = Duration::from_secs(3);
/// How often they look, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

const WORK: &str = "work:";
const ANSWER: &str = "answer:";

/// Takes the work that lies there, or what is free where that may be taken; answers what was there.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local found = redis.call('GET', KEYS[1])
local free = not found and ARGV[3] == '1'
if free or (found and string.sub(found, 1, 5) == 'work:') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return found
",
    )
});

/// Puts an outcome in place of the claim, unless somebody else holds it by now.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
",
    )
});

/// What whoever comes finds: `W` is the work that lay there, `A` the outcome.
#[derive(Debug)]
pub(crate) enum Claim<W, A> {
    /// It is ours to do.
    Won(W),
    /// Somebody else does it.
    Held,
    /// It was done.
    Answered(A),
}

/// What can be done once, as one of those who come claims it.
pub(crate) struct Once {
    kind: &'static str,
    digest: String,
    /// What this one's claim holds, and no other's.
    held: String,
}

impl Once {
    /// `kind` and `parts` say what it is; none but the last part may hold a line break.
    pub(crate) fn new(kind: &'static str, parts: &[&str]) -> Self {
        let digest = Sha256::digest(parts.join("\n"));
        Self {
            kind,
            digest: BASE64_URL_SAFE_NO_PAD.encode(digest),
            held: format!("held:{}", Uuid::now_v7().simple()),
        }
    }

    fn key(&self) -> String {
        format!("wxhub:auth:v1:{{{}}}:{}", self.digest, self.kind)
    }

    /// What work and outcomes are sealed for.
    fn context(&self) -> String {
        format!("{}:{}", self.kind, self.digest)
    }
}

/// Every claim; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
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

impl Claims {
    /// Claims in Redis, or in memory without it.
    pub(crate) fn new(redis: Option<ConnectionManager>, sealer: Sealer, clock: Clock) -> Self {
        let store = redis.map_or_else(|| Store::Memory(Arc::default()), Store::Redis);
        Self {
            store,
            sealer,
            clock,
        }
    }

    /// Lays down work to be claimed within `life`.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn lay(
        &self,
        once: &Once,
        work: &impl Serialize,
        life: Duration,
    ) -> Result<(), Error> {
        let work = format!("{WORK}{}", self.seal(once, work)?);
        match &self.store {
            Store::Redis(redis) => {
                let mut redis = redis.clone();
                let () = redis.pset_ex(once.key(), work, millis(life)).await?;
            }
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                lock(memory).insert(once.key(), work, now + millis(life), now);
            }
        }
        Ok(())
    }

    /// Claims it: what is free, and what lies there. Where it is held, the outcome is waited for.
    ///
    /// # Errors
    /// When Redis does not answer, or holds what cannot be read.
    pub(crate) async fn claim<W: DeserializeOwned, A: DeserializeOwned>(
        &self,
        once: &Once,
    ) -> Result<Claim<Option<W>, A>, Error> {
        let found = self.take_or_wait(once, true).await?;
        Ok(found.map_or(Claim::Won(None), |found| match found {
            Claim::Won(work) => Claim::Won(Some(work)),
            Claim::Held => Claim::Held,
            Claim::Answered(answer) => Claim::Answered(answer),
        }))
    }

    /// Claims what lies there, if anything does. Where it is held, the outcome is waited for.
    ///
    /// # Errors
    /// When Redis does not answer, or holds what cannot be read.
    pub(crate) async fn claim_laid<W: DeserializeOwned, A: DeserializeOwned>(
        &self,
        once: &Once,
    ) -> Result<Option<Claim<W, A>>, Error> {
        self.take_or_wait(once, false).await
    }

    /// Claims what only one may have; whether it is ours. It stays so for 15 seconds.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn is_first(&self, once: &Once) -> Result<bool, Error> {
        Ok(self.take(once, true).await?.is_none())
    }

    /// Leaves the outcome of a claim that was won.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn answer(
        &self,
        once: &Once,
        answer: &impl Serialize,
        kept: Duration,
    ) -> Result<(), Error> {
        let sealed = self.seal(once, answer)?;
        self.settle(once, format!("{ANSWER}{sealed}"), kept).await
    }

    /// Lays what was won down again, for the next one who comes.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(crate) async fn hand_over(
        &self,
        once: &Once,
        work: &impl Serialize,
        kept: Duration,
    ) -> Result<(), Error> {
        let sealed = self.seal(once, work)?;
        self.settle(once, format!("{WORK}{sealed}"), kept).await
    }

    async fn take_or_wait<W: DeserializeOwned, A: DeserializeOwned>(
        &self,
        once: &Once,
        free: bool,
    ) -> Result<Option<Claim<W, A>>, Error> {
        let deadline = Instant::now() + WAIT;
        let (mut pause, longest) = LOOK;
        loop {
            let Some(found) = self.take(once, free).await? else {
                return Ok(None);
            };
            if let Some(sealed) = found.strip_prefix(WORK) {
                return Ok(self.unseal(once, sealed)?.map(Claim::Won));
            } else if let Some(sealed) = found.strip_prefix(ANSWER) {
                return Ok(self.unseal(once, sealed)?.map(Claim::Answered));
            } else if Instant::now() + pause > deadline {
                return Ok(Some(Claim::Held));
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    async fn take(&self, once: &Once, free: bool) -> Result<Option<String>, Error> {
        match &self.store {
            Store::Redis(redis) => Ok(TAKE
                .key(once.key())
                .arg(&once.held)
                .arg(millis(HELD))
                .arg(u8::from(free))
                .invoke_async(&mut redis.clone())
                .await?),
            Store::Memory(memory) => {
                let (key, now) = (once.key(), self.clock.unix_millis());
                let mut memory = lock(memory);
                let found = memory.get_mut(&key, now);
                let found = found.map(|entry| entry.value.clone());
                if found
                    .as_deref()
                    .map_or(free, |found| found.starts_with(WORK))
                {
                    memory.insert(key, once.held.clone(), now + millis(HELD), now);
                }
                Ok(found)
            }
        }
    }

    async fn settle(&self, once: &Once, outcome: String, kept: Duration) -> Result<(), Error> {
        match &self.store {
            Store::Redis(redis) => {
                let () = SETTLE
                    .key(once.key())
                    .arg(&once.held)
                    .arg(outcome)
                    .arg(millis(kept))
                    .invoke_async(&mut redis.clone())
                    .await?;
            }
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                if let Some(entry) = lock(memory).get_mut(&once.key(), now)
                    && entry.value == once.held
                {
                    entry.value = outcome;
                    entry.end = now + millis(kept);
                }
            }
        }
        Ok(())
    }

    fn seal(&self, once: &Once, content: &impl Serialize) -> Result<String, Error> {
        let json = serde_json::to_vec(content).map_err(|_| Error::Stored("claim"))?;
        Ok(self.sealer.seal(&once.context(), &json))
    }

    /// None when the key that sealed it is gone: as if nothing had lain there. A code whose outcome cannot be read is
    /// exchanged again, which WeChat refuses, so that the user begins anew.
    fn unseal<T: DeserializeOwned>(&self, once: &Once, sealed: &str) -> Result<Option<T>, Error> {
        let json = match self.sealer.open(&once.context(), sealed) {
            Ok(json) => json,
            Err(OpenError::UnknownKey) => {
                warn!("WXHUB_MASTER_KEY does not hold the key that sealed a claim");
                return Ok(None);
            }
            Err(OpenError::Malformed | OpenError::Forged) => return Err(Error::Stored("claim")),
        };
        let content = serde_json::from_slice(&json).map_err(|_| Error::Stored("claim"))?;
        Ok(Some(content))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use service_kit::storage;
    use test_support::Redis;

    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn once() -> Once {
        Once::new("login", &["wx1", "code"])
    }

    /// Each outcome as a text.
    async fn claim(claims: &Claims, once: &Once) -> String {
        match claims.claim::<String, String>(once).await.unwrap() {
            Claim::Won(None) => "free".to_owned(),
            Claim::Won(Some(work)) => format!("work {work}"),
            Claim::Held => "held".to_owned(),
            Claim::Answered(answer) => format!("answer {answer}"),
        }
    }

    async fn is_held(claims: &Claims, once: &Once) -> bool {
        let found = claims.take(once, true).await.unwrap();
        found.is_some_and(|found| found.starts_with("held:"))
    }

    /// What both twins do.
    async fn conforms(claims: Claims) {
        let (one, other) = (once(), once());
        assert_eq!(claim(&claims, &one).await, "free");
        for once in [&one, &other] {
            assert!(is_held(&claims, once).await);
        }
        // Another code, the same one of another app, and the same of another kind, are free.
        for (kind, parts) in [
            ("login", ["wx1", "edoc"]),
            ("login", ["wx2", "code"]),
            ("oauth", ["wx1", "code"]),
        ] {
            let once = Once::new(kind, &parts);
            assert!(claims.is_first(&once).await.unwrap());
            assert!(!claims.is_first(&once).await.unwrap());
        }

        // What one hands over the other takes up, and from then on it is the other's.
        claims.hand_over(&one, &"half done", LIFE).await.unwrap();
        assert_eq!(claim(&claims, &other).await, "work half done");
        claims.answer(&one, &"late", ANSWER_KEPT).await.unwrap();
        assert!(is_held(&claims, &one).await);

        claims.answer(&other, &"done", ANSWER_KEPT).await.unwrap();
        for once in [&one, &other] {
            assert_eq!(claim(&claims, once).await, "answer done");
        }

        let laid = Once::new("oauth", &["state"]);
        let nothing = claims.claim_laid::<String, String>(&laid).await.unwrap();
        assert!(nothing.is_none());
        claims.lay(&laid, &"begun", LIFE).await.unwrap();
        let found = claims.claim_laid::<String, String>(&laid).await.unwrap();
        assert!(matches!(found, Some(Claim::Won(work)) if work == "begun"));
        assert!(is_held(&claims, &laid).await);
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(Claims::new(None, Sealer::ephemeral(), Clock::System)).await;
    }

    #[tokio::test]
    async fn redis_conforms_and_holds_nothing_readable() {
        let redis = Redis::start().await;
        let mut connection = storage::redis(&SecretString::from(redis.url())).unwrap();
        let claims = Claims::new(Some(connection.clone()), Sealer::ephemeral(), Clock::System);
        conforms(claims.clone()).await;

        let once = Once::new("login", &["wx1", "another"]);
        claims.lay(&once, &"readable", LIFE).await.unwrap();
        let found: String = connection.get(once.key()).await.unwrap();
        assert!(found.starts_with(WORK) && !found.contains("readable"));
        let left: u64 = connection.pttl(once.key()).await.unwrap();
        assert!(left <= millis(LIFE));
    }

    #[tokio::test]
    async fn what_was_sealed_by_a_key_that_is_gone_counts_as_none() {
        let claims = Claims::new(None, Sealer::ephemeral(), Clock::System);
        let rotated = Claims {
            sealer: Sealer::ephemeral(),
            ..claims.clone()
        };
        let (one, other) = (once(), once());
        claims.lay(&one, &"work", LIFE).await.unwrap();
        assert_eq!(claim(&rotated, &other).await, "free");
        assert!(is_held(&claims, &one).await, "and whoever came has it now");

        let laid = Once::new("oauth", &["state"]);
        claims.lay(&laid, &"begun", LIFE).await.unwrap();
        let nothing = rotated.claim_laid::<String, String>(&laid).await.unwrap();
        assert!(nothing.is_none());

        let done = Once::new("login", &["wx1", "done"]);
        claim(&claims, &done).await;
        claims.answer(&done, &"done", ANSWER_KEPT).await.unwrap();
        assert_eq!(claim(&rotated, &done).await, "free");
        assert_eq!(claim(&claims, &done).await, "answer done");
    }

    #[tokio::test(start_paused = true)]
    async fn claims_and_answers_end_and_are_waited_for() {
        let clock = Clock::tokio(std::time::UNIX_EPOCH);
        let claims = Claims::new(None, Sealer::ephemeral(), clock);
        let (one, other) = (once(), once());
        claim(&claims, &one).await;
        assert_eq!(claim(&claims, &other).await, "held");
        tokio::time::advance(HELD).await;
        assert_eq!(claim(&claims, &other).await, "free");
        let (answered, found) = tokio::join!(
            claims.answer(&other, &"done", ANSWER_KEPT),
            claim(&claims, &one)
        );
        answered.unwrap();
        assert_eq!(found, "answer done");
        tokio::time::advance(ANSWER_KEPT).await;
        assert_eq!(claim(&claims, &one).await, "free");
    }
}
