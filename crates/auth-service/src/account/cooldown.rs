//! Guessing is slowed down: a name whose password was wrong [`FAILURES`] times within [`WINDOW`] is refused for
//! [`COOLDOWN`], on every replica and whether or not there is such an account.
//!
//! An attempt counts before its password is looked at, so that guesses made at once do not get past the limit together.
//!
//! | key | holds | ends |
//! |---|---|---|
//! | `wxhub:auth:v1:{<digest of the name>}:attempts` | a sorted set: `open:` or `failed:` and an id, by time | 2 minutes after the last |
//! | `wxhub:auth:v1:{<digest of the name>}:cooldown` | nothing | when the name is admitted again |

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use redis::{Script, aio::ConnectionManager};
use service_kit::{Clock, clock::millis};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::AccountName;
use crate::{error::Error, memory::ExpiringMap};

/// So many failures …
pub const FAILURES: usize = 3;
/// … within this time …
pub const WINDOW: Duration = Duration::from_secs(2 * 60);
/// … and the name is refused for this long.
pub const COOLDOWN: Duration = Duration::from_secs(5 * 60);
/// While so many attempts are not settled yet that their failure would cool the name down, the next one waits.
const UNSETTLED: Duration = Duration::from_secs(1);

/// Counts an attempt; answers 0, or the milliseconds for which the name is refused.
static BEGIN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local left = redis.call('PTTL', KEYS[2])
if left > 0 then return left end
local id, now, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return tonumber(ARGV[5]) end
redis.call('ZADD', KEYS[1], now, 'open:' .. id)
redis.call('PEXPIRE', KEYS[1], window)
return 0
",
    )
});

/// Settles an attempt as failed; answers whether it was one too many.
static FAIL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local id, now, window = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREM', KEYS[1], 'open:' .. id)
redis.call('ZADD', KEYS[1], now, 'failed:' .. id)
redis.call('PEXPIRE', KEYS[1], window)
local failed = 0
for _, attempt in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - window), '+inf')) do
  if string.sub(attempt, 1, 7) == 'failed:' then failed = failed + 1 end
end
if failed < tonumber(ARGV[4]) then return 0 end
redis.call('SET', KEYS[2], '', 'PX', ARGV[5])
redis.call('DEL', KEYS[1])
return 1
",
    )
});

/// Which names are refused for now; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Cooldown {
    store: Store,
    clock: Clock,
}

#[derive(Clone)]
enum Store {
    Redis(ConnectionManager),
    Memory(Arc<Mutex<ExpiringMap<Guesses>>>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis(_) => "Redis",
            Self::Memory(_) => "Memory",
        })
    }
}

/// What was tried with one name.
#[derive(Debug, Clone)]
enum Guesses {
    Counted(Vec<Guess>),
    Cooling { until: u64 },
}

#[derive(Debug, Clone)]
struct Guess {
    id: String,
    at: u64,
    failed: bool,
}

fn lock(memory: &Mutex<ExpiringMap<Guesses>>) -> MutexGuard<'_, ExpiringMap<Guesses>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An attempt that counts until it is settled.
#[derive(Debug)]
pub(super) struct Attempt {
    name: String,
    id: String,
}

impl Attempt {
    fn attempts_key(&self) -> String {
        format!("wxhub:auth:v1:{{{}}}:attempts", self.name)
    }

    fn cooldown_key(&self) -> String {
        format!("wxhub:auth:v1:{{{}}}:cooldown", self.name)
    }
}

impl Cooldown {
    /// Kept in Redis, shared by all replicas, or in memory without it.
    pub(super) fn new(redis: Option<ConnectionManager>, clock: Clock) -> Self {
        let store = redis.map_or_else(|| Store::Memory(Arc::default()), Store::Redis);
        Self { store, clock }
    }

    /// Begins an attempt to sign in under a name, or answers how long it is refused.
    pub(super) async fn begin(
        &self,
        name: &AccountName,
    ) -> Result<Result<Attempt, Duration>, Error> {
        let attempt = Attempt {
            name: BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(name.as_str())),
            id: Uuid::now_v7().simple().to_string(),
        };
        let now = self.clock.unix_millis();
        let refused: u64 = match &self.store {
            Store::Redis(redis) => {
                BEGIN
                    .key(attempt.attempts_key())
                    .key(attempt.cooldown_key())
                    .arg(&attempt.id)
                    .arg(now)
                    .arg(millis(WINDOW))
                    .arg(FAILURES)
                    .arg(millis(UNSETTLED))
                    .invoke_async(&mut redis.clone())
                    .await?
            }
            Store::Memory(memory) => begin(&mut lock(memory), &attempt, now),
        };
        Ok(match refused {
            0 => Ok(attempt),
            refused => Err(Duration::from_millis(refused)),
        })
    }

    /// The password was wrong. Answers whether the name is refused from now on.
    pub(super) async fn failed(&self, attempt: &Attempt) -> Result<bool, Error> {
        let now = self.clock.unix_millis();
        match &self.store {
            Store::Redis(redis) => Ok(FAIL
                .key(attempt.attempts_key())
                .key(attempt.cooldown_key())
                .arg(&attempt.id)
                .arg(now)
                .arg(millis(WINDOW))
                .arg(FAILURES)
                .arg(millis(COOLDOWN))
                .invoke_async(&mut redis.clone())
                .await?),
            Store::Memory(memory) => Ok(fail(&mut lock(memory), attempt, now)),
        }
    }

    /// The password was right, or could not be looked at: the attempt counts no longer. Failures before it do.
    pub(super) async fn withdraw(&self, attempt: &Attempt) -> Result<(), Error> {
        match &self.store {
            Store::Redis(redis) => {
                let () = redis::cmd("ZREM")
                    .arg(attempt.attempts_key())
                    .arg(format!("open:{}", attempt.id))
                    .query_async(&mut redis.clone())
                    .await?;
            }
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                if let Some(entry) = lock(memory).get_mut(&attempt.name, now)
                    && let Guesses::Counted(guesses) = &mut entry.value
                {
                    guesses.retain(|guess| guess.id != attempt.id);
                }
            }
        }
        Ok(())
    }
}

fn begin(memory: &mut ExpiringMap<Guesses>, attempt: &Attempt, now: u64) -> u64 {
    let mut guesses = match memory.get_mut(&attempt.name, now) {
        None => Vec::new(),
        Some(entry) => match &mut entry.value {
            Guesses::Cooling { until } => return until.saturating_sub(now),
            Guesses::Counted(guesses) => std::mem::take(guesses),
        },
    };
    guesses.retain(|guess| guess.at + millis(WINDOW) > now);
    let full = guesses.len() >= FAILURES;
    if !full {
        guesses.push(Guess {
            id: attempt.id.clone(),
            at: now,
            failed: false,
        });
    }
    let guesses = Guesses::Counted(guesses);
    memory.insert(attempt.name.clone(), guesses, now + millis(WINDOW), now);
    if full { millis(UNSETTLED) } else { 0 }
}

fn fail(memory: &mut ExpiringMap<Guesses>, attempt: &Attempt, now: u64) -> bool {
    let mut guesses = match memory.get_mut(&attempt.name, now) {
        None => Vec::new(),
        Some(entry) => match &mut entry.value {
            Guesses::Cooling { .. } => return true,
            Guesses::Counted(guesses) => std::mem::take(guesses),
        },
    };
    guesses.retain(|guess| guess.id != attempt.id && guess.at + millis(WINDOW) > now);
    guesses.push(Guess {
        id: attempt.id.clone(),
        at: now,
        failed: true,
    });
    let cooling = guesses.iter().filter(|guess| guess.failed).count() >= FAILURES;
    let (guesses, end) = if cooling {
        let until = now + millis(COOLDOWN);
        (Guesses::Cooling { until }, until)
    } else {
        (Guesses::Counted(guesses), now + millis(WINDOW))
    };
    memory.insert(attempt.name.clone(), guesses, end, now);
    cooling
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use redis::AsyncCommands as _;
    use secrecy::SecretString;
    use service_kit::storage;
    use test_support::Redis;

    use super::*;

    fn name(text: &str) -> AccountName {
        text.parse().unwrap()
    }

    async fn begin(cooldown: &Cooldown, who: &str) -> Attempt {
        let begun = cooldown.begin(&name(who)).await.unwrap();
        begun.expect("it is admitted")
    }

    async fn refused(cooldown: &Cooldown, who: &str) -> Duration {
        cooldown.begin(&name(who)).await.unwrap().unwrap_err()
    }

    async fn fail(cooldown: &Cooldown, who: &str) -> bool {
        let attempt = begin(cooldown, who).await;
        cooldown.failed(&attempt).await.unwrap()
    }

    /// What both twins do.
    async fn conforms(cooldown: Cooldown) {
        // Three failures, successes in between or not, and the name cools down; others do not.
        for _ in 0..2 {
            assert!(!fail(&cooldown, "wang").await);
            let right = begin(&cooldown, "wang").await;
            cooldown.withdraw(&right).await.unwrap();
        }
        assert!(fail(&cooldown, "wang").await);
        let left = refused(&cooldown, "wang").await;
        assert!(left <= COOLDOWN && left > COOLDOWN / 2, "{left:?}");
        assert!(!fail(&cooldown, "Wang").await);

        // Guesses at once are no more than guesses one by one.
        let mut open = Vec::new();
        for _ in 0..FAILURES {
            open.push(begin(&cooldown, "li").await);
        }
        assert_eq!(refused(&cooldown, "li").await, UNSETTLED);
        let (right, wrong) = open.split_first().unwrap();
        cooldown.withdraw(right).await.unwrap();
        for attempt in wrong {
            assert!(!cooldown.failed(attempt).await.unwrap());
        }
        assert!(fail(&cooldown, "li").await);
        assert!(refused(&cooldown, "li").await > UNSETTLED);
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(Cooldown::new(None, Clock::System)).await;
    }

    #[tokio::test]
    async fn redis_conforms_and_every_key_ends() {
        let redis = Redis::start().await;
        let mut connection = storage::redis(&SecretString::from(redis.url())).unwrap();
        conforms(Cooldown::new(Some(connection.clone()), Clock::System)).await;
        let keys: Vec<String> = connection.keys("*").await.unwrap();
        assert_eq!(keys.len(), 3, "{keys:?}");
        for key in keys {
            let left: i64 = connection.pttl(&key).await.unwrap();
            assert!(left > 0, "{key} stays for ever");
            assert!(!key.contains("wang") && !key.contains("li}"), "{key}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_cooldowns_end() {
        let clock = Clock::tokio(UNIX_EPOCH + WINDOW);
        let cooldown = Cooldown::new(None, clock);
        for _ in 0..2 {
            assert!(!fail(&cooldown, "wang").await);
        }
        tokio::time::advance(WINDOW).await;
        for _ in 0..2 {
            assert!(!fail(&cooldown, "wang").await);
        }
        assert!(fail(&cooldown, "wang").await);
        tokio::time::advance(COOLDOWN - Duration::from_millis(1)).await;
        let left = refused(&cooldown, "wang").await;
        assert_eq!(left, Duration::from_millis(1));
        tokio::time::advance(left).await;
        begin(&cooldown, "wang").await;
    }
}
