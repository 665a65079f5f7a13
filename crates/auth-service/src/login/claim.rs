//! Who exchanges a code: the first to come, on whichever replica.
//!
//! The key `wxhub:auth:v1:{<SHA-256 of app and code>}:login` holds one of
//! - `held:<owner>` while its owner exchanges the code (15 s at most);
//! - `answer:<sealed>` once there is an outcome, for those who come with the same code;
//! - `exchanged:<sealed>` when WeChat gave its answer but a store failed: whoever comes next goes on from there.

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use redis::{Script, aio::ConnectionManager};
use serde::{Serialize, de::DeserializeOwned};
use service_kit::{Clock, Sealer, clock::millis};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use wechat::AppId;

use super::{Answer, Exchanged};
use crate::{error::Error, memory::ExpiringMap};

/// A holder that did not finish within this long is gone: more than WeChat's and the stores' deadlines together.
const HELD: Duration = Duration::from_secs(15);
/// An outcome is given again for this long.
pub(super) const ANSWER_KEPT: Duration = Duration::from_secs(15);
/// What was exchanged waits for a store for as long as the code itself would have lived.
const EXCHANGED_KEPT: Duration = Duration::from_secs(300);

const ANSWER: &str = "answer:";
const EXCHANGED: &str = "exchanged:";

/// Takes what is free or handed over; answers what was there.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local found = redis.call('GET', KEYS[1])
if not found or string.sub(found, 1, 10) == 'exchanged:' then
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

/// What a login found.
pub(super) enum Claim {
    /// The code is ours to exchange, or was exchanged already and is ours to go on with.
    Won { exchanged: Option<Exchanged> },
    /// Somebody else exchanges it.
    Held,
    /// It was exchanged.
    Answered(Answer),
}

/// A code as one login claims it.
pub(super) struct Code {
    digest: String,
    /// What this login's claim holds, and no other's.
    held: String,
}

impl Code {
    fn key(&self) -> String {
        format!("wxhub:auth:v1:{{{}}}:login", self.digest)
    }

    /// What its outcomes are sealed for.
    fn context(&self) -> String {
        format!("login:{}", self.digest)
    }
}

/// The claims of all codes; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Claims {
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
    pub(super) fn new(redis: Option<ConnectionManager>, sealer: Sealer, clock: Clock) -> Self {
        let store = redis.map_or_else(|| Store::Memory(Arc::default()), Store::Redis);
        Self {
            store,
            sealer,
            clock,
        }
    }

    /// The code of an app, to be claimed by one login.
    pub(super) fn code(&self, app_id: &AppId, js_code: &str) -> Code {
        let hash = Sha256::new()
            .chain_update(app_id.as_str())
            // No app_id holds one: nothing else hashes to the same.
            .chain_update("\n")
            .chain_update(js_code)
            .finalize();
        Code {
            digest: BASE64_URL_SAFE_NO_PAD.encode(hash),
            held: format!("held:{}", Uuid::now_v7().simple()),
        }
    }

    /// Claims the code, unless it is claimed.
    pub(super) async fn claim(&self, code: &Code) -> Result<Claim, Error> {
        let found = self.take(code).await?;
        Ok(match found {
            None => Claim::Won { exchanged: None },
            Some(found) => {
                if let Some(sealed) = found.strip_prefix(ANSWER) {
                    Claim::Answered(self.unseal(code, sealed)?)
                } else if let Some(sealed) = found.strip_prefix(EXCHANGED) {
                    let exchanged = Some(self.unseal(code, sealed)?);
                    Claim::Won { exchanged }
                } else {
                    Claim::Held
                }
            }
        })
    }

    /// Leaves the outcome of a claim that was won.
    pub(super) async fn answer(
        &self,
        code: &Code,
        answer: &Answer,
        kept: Duration,
    ) -> Result<(), Error> {
        let sealed = self.seal(code, answer)?;
        self.settle(code, format!("{ANSWER}{sealed}"), kept).await
    }

    /// Leaves what WeChat gave to the next one who comes with this code.
    pub(super) async fn hand_over(&self, code: &Code, exchanged: &Exchanged) -> Result<(), Error> {
        let sealed = self.seal(code, exchanged)?;
        self.settle(code, format!("{EXCHANGED}{sealed}"), EXCHANGED_KEPT)
            .await
    }

    async fn take(&self, code: &Code) -> Result<Option<String>, Error> {
        match &self.store {
            Store::Redis(redis) => Ok(TAKE
                .key(code.key())
                .arg(&code.held)
                .arg(millis(HELD))
                .invoke_async(&mut redis.clone())
                .await?),
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                let mut memory = lock(memory);
                let found = memory.get_mut(&code.digest, now);
                let found = found.map(|entry| entry.value.clone());
                if found
                    .as_deref()
                    .is_none_or(|found| found.starts_with(EXCHANGED))
                {
                    let (key, value) = (code.digest.clone(), code.held.clone());
                    memory.insert(key, value, now + millis(HELD), now);
                }
                Ok(found)
            }
        }
    }

    async fn settle(&self, code: &Code, outcome: String, kept: Duration) -> Result<(), Error> {
        match &self.store {
            Store::Redis(redis) => {
                let () = SETTLE
                    .key(code.key())
                    .arg(&code.held)
                    .arg(outcome)
                    .arg(millis(kept))
                    .invoke_async(&mut redis.clone())
                    .await?;
            }
            Store::Memory(memory) => {
                let now = self.clock.unix_millis();
                if let Some(entry) = lock(memory).get_mut(&code.digest, now)
                    && entry.value == code.held
                {
                    entry.value = outcome;
                    entry.end = now + millis(kept);
                }
            }
        }
        Ok(())
    }

    fn seal(&self, code: &Code, outcome: &impl Serialize) -> Result<String, Error> {
        let json = serde_json::to_vec(outcome).map_err(|_| Error::Stored("login"))?;
        Ok(self.sealer.seal(&code.context(), &json))
    }

    fn unseal<T: DeserializeOwned>(&self, code: &Code, sealed: &str) -> Result<T, Error> {
        let json = self.sealer.open(&code.context(), sealed);
        let json = json.map_err(|_| Error::Stored("login"))?;
        serde_json::from_slice(&json).map_err(|_| Error::Stored("login"))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use service_kit::storage;
    use test_support::Redis;

    use super::*;

    fn exchanged() -> Exchanged {
        Exchanged {
            open_id: "oABC".parse().unwrap(),
            union_id: None,
            session_key: "s3cr3t".to_owned(),
        }
    }

    fn unanswered(claim: &Claim) -> bool {
        matches!(claim, Claim::Answered(Answer::Unanswered))
    }

    /// What both twins do.
    async fn conforms(claims: Claims) {
        let app = "wx1".parse().unwrap();
        let (one, other) = (claims.code(&app, "code"), claims.code(&app, "code"));
        let won = claims.claim(&one).await.unwrap();
        assert!(matches!(won, Claim::Won { exchanged: None }));
        for code in [&one, &other] {
            assert!(matches!(claims.claim(code).await.unwrap(), Claim::Held));
        }
        // Another code, and the same one of another app, are free.
        for (app, js_code) in [("wx1", "edoc"), ("wx2", "code")] {
            let code = claims.code(&app.parse().unwrap(), js_code);
            let won = claims.claim(&code).await.unwrap();
            assert!(matches!(won, Claim::Won { .. }));
        }

        // What one hands over the other takes up, and from then on it is the other's.
        claims.hand_over(&one, &exchanged()).await.unwrap();
        let Claim::Won {
            exchanged: Some(found),
        } = claims.claim(&other).await.unwrap()
        else {
            panic!("it was handed over");
        };
        assert_eq!(found.session_key, "s3cr3t");
        let late = claims.answer(&one, &Answer::Unanswered, ANSWER_KEPT).await;
        late.unwrap();
        assert!(matches!(claims.claim(&one).await.unwrap(), Claim::Held));

        let answered = claims.answer(&other, &Answer::Unanswered, ANSWER_KEPT);
        answered.await.unwrap();
        for code in [&one, &other] {
            assert!(unanswered(&claims.claim(code).await.unwrap()));
        }
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

        let code = claims.code(&"wx1".parse().unwrap(), "another");
        claims.claim(&code).await.unwrap();
        claims.hand_over(&code, &exchanged()).await.unwrap();
        let found: String = redis::cmd("GET")
            .arg(code.key())
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(found.starts_with(EXCHANGED) && !found.contains("oABC"));
        let left: u64 = redis::cmd("PTTL")
            .arg(code.key())
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(left <= millis(EXCHANGED_KEPT));
    }

    #[tokio::test(start_paused = true)]
    async fn claims_and_answers_end() {
        let clock = Clock::tokio(std::time::UNIX_EPOCH);
        let claims = Claims::new(None, Sealer::ephemeral(), clock);
        let app = "wx1".parse().unwrap();
        let (one, other) = (claims.code(&app, "code"), claims.code(&app, "code"));
        claims.claim(&one).await.unwrap();
        tokio::time::advance(HELD).await;
        let won = claims.claim(&other).await.unwrap();
        assert!(matches!(won, Claim::Won { .. }));
        let answered = claims.answer(&other, &Answer::Unanswered, ANSWER_KEPT);
        answered.await.unwrap();
        assert!(unanswered(&claims.claim(&one).await.unwrap()));
        tokio::time::advance(ANSWER_KEPT).await;
        let won = claims.claim(&one).await.unwrap();
        assert!(matches!(won, Claim::Won { exchanged: None }));
    }
}
