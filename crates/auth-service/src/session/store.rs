//! Where sessions are kept: Redis, or memory in embedded mode.
//!
//! | key | holds | ends |
//! |---|---|---|
//! | `wxhub:auth:v1:{<digest of the token>}:session` | a hash; a field that is absent is empty | when the session does |
//! | `wxhub:auth:v1:{<app_id>:<digest of the openid>}:session_key` | the sealed session_key | with the longest session |

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{AsyncCommands as _, Script, aio::ConnectionManager};
use service_kit::clock::millis;
use wechat::AppId;

use super::{ABSOLUTE, IDLE, Session};
use crate::{error::Error, memory::ExpiringMap};

/// Reads a session and sets how long it lives from now, in one step. Answers the milliseconds left, then the fields.
static TOUCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local session = redis.call('HMGET', KEYS[1], 'user', 'app', 'open', 'union', 'created', 'client')
if not session[5] then return false end
local now, idle, absolute = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local left = math.min(idle, tonumber(session[5]) + absolute - now)
if left <= 0 then
  redis.call('DEL', KEYS[1])
  return false
end
redis.call('PEXPIRE', KEYS[1], left)
table.insert(session, 1, left)
return session
",
    )
});

/// Puts a sealed session_key in place of the one that is expected there. Answers whether it was.
static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
",
    )
});

/// The fields of a session as [`TOUCH`] answers them.
type Touched = (
    u64,
    String,
    String,
    String,
    Option<String>,
    u64,
    Option<String>,
);

/// Where sessions are kept; clones share it.
#[derive(Clone)]
pub(super) enum Store {
    Redis(ConnectionManager),
    Memory(Arc<Mutex<Memory>>),
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    sessions: ExpiringMap<Session>,
    session_keys: ExpiringMap<String>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis(_) => "Redis",
            Self::Memory(_) => "Memory",
        })
    }
}

fn session_at(digest: &str) -> String {
    format!("wxhub:auth:v1:{{{digest}}}:session")
}

fn session_key_at(user: &str) -> String {
    format!("wxhub:auth:v1:{{{user}}}:session_key")
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(super) fn redis(connection: ConnectionManager) -> Self {
        Self::Redis(connection)
    }

    pub(super) fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Puts a new session in place, to live [`IDLE`] from its creation.
    pub(super) async fn insert(&self, digest: &str, session: &Session) -> Result<(), Error> {
        match self {
            Self::Redis(redis) => {
                let key = session_at(digest);
                let mut fields = vec![
                    ("user", session.user_id.to_string()),
                    ("app", session.app_id.to_string()),
                    ("open", session.open_id.to_string()),
                    ("created", session.created.to_string()),
                    ("client", session.client.clone()),
                ];
                fields.extend(
                    session
                        .union_id
                        .as_ref()
                        .map(|id| ("union", id.to_string())),
                );
                let () = redis::pipe()
                    .atomic()
                    .hset_multiple(&key, &fields)
                    .ignore()
                    .pexpire(&key, ttl(IDLE))
                    .ignore()
                    .query_async(&mut redis.clone())
                    .await?;
            }
            Self::Memory(memory) => {
                let (created, end) = (session.created, session.created + millis(IDLE));
                lock(memory)
                    .sessions
                    .insert(digest.to_owned(), session.clone(), end, created);
            }
        }
        Ok(())
    }

    /// The session, if it lives, and how long it will live unless it is used again.
    pub(super) async fn touch(
        &self,
        digest: &str,
        now: u64,
    ) -> Result<Option<(Session, Duration)>, Error> {
        match self {
            Self::Redis(redis) => {
                let touched: Option<Touched> = TOUCH
                    .key(session_at(digest))
                    .arg(now)
                    .arg(millis(IDLE))
                    .arg(millis(ABSOLUTE))
                    .invoke_async(&mut redis.clone())
                    .await?;
                touched.map(read).transpose()
            }
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                let Some(entry) = memory.sessions.get_mut(digest, now) else {
                    return Ok(None);
                };
                let end = entry.value.created + millis(ABSOLUTE);
                entry.end = end.min(now + millis(IDLE));
                let left = Duration::from_millis(entry.end.saturating_sub(now));
                Ok((!left.is_zero()).then(|| (entry.value.clone(), left)))
            }
        }
    }

    /// The app of a session, without using it.
    pub(super) async fn app_of(&self, digest: &str, now: u64) -> Result<Option<AppId>, Error> {
        match self {
            Self::Redis(redis) => {
                let app: Option<String> = redis.clone().hget(session_at(digest), "app").await?;
                let app = app.map(AppId::try_from).transpose();
                app.map_err(|_| Error::Stored("session"))
            }
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                let entry = memory.sessions.get_mut(digest, now);
                Ok(entry.map(|entry| entry.value.app_id.clone()))
            }
        }
    }

    /// Ends a session.
    pub(super) async fn remove(&self, digest: &str) -> Result<(), Error> {
        match self {
            Self::Redis(redis) => {
                let () = redis.clone().del(session_at(digest)).await?;
            }
            Self::Memory(memory) => {
                lock(memory).sessions.remove(digest);
            }
        }
        Ok(())
    }

    /// Puts a sealed session_key in place of the one before.
    pub(super) async fn put_session_key(
        &self,
        user: &str,
        sealed: &str,
        now: u64,
    ) -> Result<(), Error> {
        match self {
            Self::Redis(redis) => {
                let () = redis
                    .clone()
                    .pset_ex(session_key_at(user), sealed, millis(ABSOLUTE))
                    .await?;
            }
            Self::Memory(memory) => {
                let (key, value) = (user.to_owned(), sealed.to_owned());
                lock(memory)
                    .session_keys
                    .insert(key, value, now + millis(ABSOLUTE), now);
            }
        }
        Ok(())
    }

    /// Puts a sealed session_key in place of `expected`, if that is what is there. Answers whether it was.
    pub(super) async fn swap_session_key(
        &self,
        user: &str,
        expected: &str,
        sealed: &str,
        now: u64,
    ) -> Result<bool, Error> {
        match self {
            Self::Redis(redis) => Ok(SWAP
                .key(session_key_at(user))
                .arg(expected)
                .arg(sealed)
                .arg(millis(ABSOLUTE))
                .invoke_async(&mut redis.clone())
                .await?),
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                let entry = memory.session_keys.get_mut(user, now);
                let Some(entry) = entry.filter(|entry| entry.value == expected) else {
                    return Ok(false);
                };
                sealed.clone_into(&mut entry.value);
                entry.end = now + millis(ABSOLUTE);
                Ok(true)
            }
        }
    }

    /// The sealed session_key.
    pub(super) async fn session_key(&self, user: &str, now: u64) -> Result<Option<String>, Error> {
        match self {
            Self::Redis(redis) => Ok(redis.clone().get(session_key_at(user)).await?),
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                let entry = memory.session_keys.get_mut(user, now);
                Ok(entry.map(|entry| entry.value.clone()))
            }
        }
    }
}

fn read(touched: Touched) -> Result<(Session, Duration), Error> {
    let (left, user, app, open, union, created, client) = touched;
    let unreadable = || Error::Stored("session");
    let session = Session {
        user_id: user.parse().map_err(|_| unreadable())?,
        app_id: app.try_into().map_err(|_| unreadable())?,
        open_id: open.try_into().map_err(|_| unreadable())?,
        union_id: match union {
            Some(union) => Some(union.try_into().map_err(|_| unreadable())?),
            None => None,
        },
        created,
        client: client.unwrap_or_default(),
    };
    Ok((session, Duration::from_millis(left)))
}

/// A time to live as Redis takes it.
fn ttl(duration: Duration) -> i64 {
    i64::try_from(millis(duration)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use service_kit::{Clock, storage};
    use test_support::Redis;

    use super::*;

    const DAY: u64 = 24 * 3_600_000;

    fn session(union_id: Option<&str>) -> Session {
        Session {
            user_id: "0192f0c1-2345-7000-8000-000000000001".parse().unwrap(),
            app_id: "wx0000000000000001".parse().unwrap(),
            open_id: "oABC".parse().unwrap(),
            union_id: union_id.map(|id| id.parse().unwrap()),
            created: Clock::System.unix_millis(),
            client: "crm".to_owned(),
        }
    }

    /// What both twins do. Time passes by telling the store a later one.
    async fn keeps_sessions(store: Store) {
        for (name, union_id) in [("one", None), ("two", Some("u1"))] {
            let session = session(union_id);
            let created = session.created;
            assert!(store.touch(name, created).await.unwrap().is_none());
            store.insert(name, &session).await.unwrap();
            assert!(store.touch("other", created).await.unwrap().is_none());

            // Used, it lives seven days from then; but never past its thirtieth.
            for (age, left) in [(0, 7 * DAY), (6 * DAY, 7 * DAY), (12 * DAY, 7 * DAY)] {
                let touched = store.touch(name, created + age).await.unwrap();
                assert_eq!(
                    touched,
                    Some((session.clone(), Duration::from_millis(left)))
                );
            }
            let touched = store.touch(name, created + 18 * DAY).await.unwrap();
            assert!(touched.is_some());
            let touched = store.touch(name, created + 24 * DAY).await.unwrap();
            assert_eq!(touched.unwrap().1, Duration::from_millis(6 * DAY));
            let last = created + 30 * DAY - 1;
            let touched = store.touch(name, last).await.unwrap();
            assert_eq!(touched.unwrap().1, Duration::from_millis(1));
            assert!(store.touch(name, last + 1).await.unwrap().is_none());
        }
    }

    async fn ends_sessions(store: Store) {
        let session = session(None);
        store.insert("one", &session).await.unwrap();
        let app = store.app_of("one", session.created).await.unwrap();
        assert_eq!(app, Some(session.app_id.clone()));
        for _ in 0..2 {
            store.remove("one").await.unwrap();
            assert!(store.touch("one", session.created).await.unwrap().is_none());
            let app = store.app_of("one", session.created).await.unwrap();
            assert_eq!(app, None);
        }
    }

    async fn keeps_the_latest_session_key(store: Store) {
        let now = Clock::System.unix_millis();
        assert_eq!(store.session_key("wx1:a", now).await.unwrap(), None);
        for sealed in ["first", "second"] {
            store.put_session_key("wx1:a", sealed, now).await.unwrap();
        }
        let kept = store.session_key("wx1:a", now).await.unwrap();
        assert_eq!(kept.as_deref(), Some("second"));
        assert_eq!(store.session_key("wx1:b", now).await.unwrap(), None);

        for (user, expected, swaps) in [
            ("wx1:a", "first", false),
            ("wx1:b", "", false),
            ("wx1:a", "second", true),
        ] {
            let swapped = store.swap_session_key(user, expected, "third", now).await;
            assert_eq!(swapped.unwrap(), swaps, "{user} {expected}");
        }
        let kept = store.session_key("wx1:a", now).await.unwrap();
        assert_eq!(kept.as_deref(), Some("third"));
        assert_eq!(store.session_key("wx1:b", now).await.unwrap(), None);
    }

    async fn conforms(store: impl Fn() -> Store) {
        keeps_sessions(store()).await;
        ends_sessions(store()).await;
        keeps_the_latest_session_key(store()).await;
    }

    fn connect(redis: &Redis) -> ConnectionManager {
        storage::redis(&SecretString::from(redis.url())).unwrap()
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(Store::memory).await;
    }

    #[tokio::test]
    async fn redis_conforms() {
        let redis = Redis::start().await;
        let connection = connect(&redis);
        conforms(|| Store::redis(connection.clone())).await;
    }

    #[tokio::test]
    async fn redis_is_told_when_to_forget() {
        let redis = Redis::start().await;
        let mut connection = connect(&redis);
        let store = Store::redis(connection.clone());
        let session = session(None);
        let left = async |key: String, mut connection: ConnectionManager| {
            let left: i64 = connection.pttl(key).await.unwrap();
            u64::try_from(left).unwrap()
        };
        let near = |left: u64, expected: u64| left <= expected && left + 60_000 > expected;

        store.insert("one", &session).await.unwrap();
        assert!(near(
            left(session_at("one"), connection.clone()).await,
            7 * DAY
        ));
        let late = session.created + 29 * DAY;
        store.touch("one", late).await.unwrap();
        assert!(near(left(session_at("one"), connection.clone()).await, DAY));
        store.put_session_key("u", "sealed", late).await.unwrap();
        assert!(near(
            left(session_key_at("u"), connection.clone()).await,
            30 * DAY
        ));

        store
            .touch("one", session.created + 30 * DAY)
            .await
            .unwrap();
        let exists: bool = connection.exists(session_at("one")).await.unwrap();
        assert!(!exists);
    }

    #[tokio::test]
    async fn a_session_is_small() {
        let redis = Redis::start().await;
        let mut connection = connect(&redis);
        let store = Store::redis(connection.clone());
        let session = session(Some("oGZUI0egBJY1zhBYw2KhdUfwVJJE"));
        let digest = super::super::digest("token");
        store.insert(&digest, &session).await.unwrap();
        let bytes: u64 = redis::cmd("MEMORY")
            .arg("USAGE")
            .arg(session_at(&digest))
            .query_async(&mut connection)
            .await
            .unwrap();
        assert!(bytes < 450, "{bytes} bytes");
    }
}
