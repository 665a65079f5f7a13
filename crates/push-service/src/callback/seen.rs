//! Pushes that were answered before: WeChat repeats what it believes lost, and the repeat gets the first answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncTypedCommands as _, ExistenceCheck, RedisResult, SetExpiry, SetOptions,
    aio::ConnectionManager,
};
use service_kit::Clock;
use wechat::AppId;

/// How long an answer is kept: WeChat repeats within 15 s.
const ANSWERED: Duration = Duration::from_secs(60);
/// How long a push is its first handler's alone: as long as WeChat waits. One that died with it is handled anew.
const UNDERWAY: Duration = Duration::from_secs(5);
/// The most pushes kept in memory; the oldest go first.
const MEMORY: usize = 4_096;

/// The answers of the last minute, in memory or in Redis.
#[derive(Clone)]
pub(crate) enum Seen {
    Memory(Arc<Mutex<Memory>>, Clock),
    Redis(ConnectionManager),
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory(..) => "Seen::Memory",
            Self::Redis(_) => "Seen::Redis",
        })
    }
}

/// Whether a push came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Push {
    /// It did not: whoever gets this handles it.
    First,
    /// It is being handled.
    Underway,
    /// It was answered with this.
    Answered(String),
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    entries: HashMap<String, Entry>,
    /// Keys by age.
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Entry {
    until: Duration,
    answer: Option<String>,
}

impl Seen {
    /// Nothing was seen yet; for one process alone.
    pub(crate) fn memory(clock: Clock) -> Self {
        Self::Memory(Arc::default(), clock)
    }

    /// Claims a push by its app and its key.
    pub(crate) async fn claim(&self, app: &AppId, key: &str) -> RedisResult<Push> {
        let key = redis_key(app, key);
        match self {
            Self::Memory(memory, clock) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(memory.claim(key, clock.elapsed()))
            }
            Self::Redis(connection) => {
                let mut connection = connection.clone();
                let underway = SetOptions::default()
                    .conditional_set(ExistenceCheck::NX)
                    .with_expiration(expiry(UNDERWAY));
                // An answer begins with `=`, so that an empty one differs from none.
                if connection.set_options(&key, "", underway).await?.is_some() {
                    return Ok(Push::First);
                }
                Ok(match connection.get(&key).await? {
                    None => Push::First,
                    Some(value) => match value.strip_prefix('=') {
                        Some(answer) => Push::Answered(answer.to_owned()),
                        None => Push::Underway,
                    },
                })
            }
        }
    }

    /// Keeps the answer to a claimed push.
    pub(crate) async fn answer(&self, app: &AppId, key: &str, answer: &str) -> RedisResult<()> {
        let key = redis_key(app, key);
        match self {
            Self::Memory(memory, clock) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.answer(key, answer, clock.elapsed());
                Ok(())
            }
            Self::Redis(connection) => {
                let kept = SetOptions::default().with_expiration(expiry(ANSWERED));
                connection
                    .clone()
                    .set_options(&key, format!("={answer}"), kept)
                    .await?;
                Ok(())
            }
        }
    }
}

impl Memory {
    fn claim(&mut self, key: String, now: Duration) -> Push {
        match self.entries.get(&key) {
            Some(entry) if entry.until > now => match &entry.answer {
                Some(answer) => Push::Answered(answer.clone()),
                None => Push::Underway,
            },
            _ => {
                self.insert(key, None, now, UNDERWAY);
                Push::First
            }
        }
    }

    fn answer(&mut self, key: String, answer: &str, now: Duration) {
        self.insert(key, Some(answer.to_owned()), now, ANSWERED);
    }

    fn insert(&mut self, key: String, answer: Option<String>, now: Duration, life: Duration) {
        let entry = Entry {
            until: now + life,
            answer,
        };
        if self.entries.insert(key.clone(), entry).is_none() {
            self.order.push_back(key);
        }
        let over = |entry: &Entry| entry.until <= now;
        while let Some(oldest) = self.order.front()
            && (self.order.len() > MEMORY || self.entries.get(oldest).is_none_or(over))
        {
            self.entries.remove(oldest);
            self.order.pop_front();
        }
    }
}

fn redis_key(app: &AppId, key: &str) -> String {
    format!("wxhub:push:v1:{{{app}}}:seen:{key}")
}

fn expiry(life: Duration) -> SetExpiry {
    SetExpiry::PX(service_kit::clock::millis(life))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use test_support::Redis;

    use super::*;

    fn app(id: &str) -> AppId {
        AppId::try_from(id).unwrap()
    }

    /// What both twins do.
    async fn conforms(seen: Seen) {
        let (shop, news) = (app("wx1"), app("wx2"));
        assert_eq!(seen.claim(&shop, "push").await.unwrap(), Push::First);
        assert_eq!(seen.claim(&shop, "push").await.unwrap(), Push::Underway);
        assert_eq!(seen.claim(&shop, "other").await.unwrap(), Push::First);
        assert_eq!(seen.claim(&news, "push").await.unwrap(), Push::First);
        for answer in ["<xml>=你好</xml>", "success", ""] {
            seen.answer(&shop, "push", answer).await.unwrap();
            let repeat = seen.claim(&shop, "push").await.unwrap();
            assert_eq!(repeat, Push::Answered(answer.to_owned()));
        }
        assert_eq!(seen.claim(&news, "push").await.unwrap(), Push::Underway);
    }

    #[tokio::test]
    async fn memory_tells_repeats() {
        conforms(Seen::memory(Clock::System)).await;
    }

    #[tokio::test]
    async fn redis_tells_repeats_and_forgets() {
        let redis = Redis::start().await;
        let mut connection = service_kit::storage::redis(&redis.url().into()).unwrap();
        conforms(Seen::Redis(connection.clone())).await;
        for key in [
            "wxhub:push:v1:{wx1}:seen:push",
            "wxhub:push:v1:{wx1}:seen:other",
        ] {
            let life: i64 = redis::cmd("PTTL")
                .arg(key)
                .query_async(&mut connection)
                .await
                .unwrap();
            assert!(life > 0 && life <= 60_000, "{key}: {life}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_outlives_wechats_repeats_and_a_handler_that_died_does_not() {
        let seen = Seen::memory(Clock::tokio(UNIX_EPOCH));
        assert_eq!(seen.claim(&app("wx1"), "died").await.unwrap(), Push::First);
        assert_eq!(seen.claim(&app("wx1"), "done").await.unwrap(), Push::First);
        seen.answer(&app("wx1"), "done", "success").await.unwrap();
        tokio::time::advance(Duration::from_secs(16)).await;
        assert_eq!(seen.claim(&app("wx1"), "died").await.unwrap(), Push::First);
        let done = seen.claim(&app("wx1"), "done").await.unwrap();
        assert_eq!(done, Push::Answered("success".to_owned()));
        tokio::time::advance(ANSWERED).await;
        assert_eq!(seen.claim(&app("wx1"), "done").await.unwrap(), Push::First);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let seen = Seen::Memory(Arc::clone(&memory), Clock::System);
        for number in 0..MEMORY + 100 {
            seen.claim(&app("wx1"), &number.to_string()).await.unwrap();
        }
        let memory = memory.lock().unwrap();
        assert_eq!((memory.entries.len(), memory.order.len()), (MEMORY, MEMORY));
    }
}
