//! Sessions in Redis.
//!
//! | key | holds | ends |
//! |---|---|---|
//! | `wxhub:auth:v1:{<session_id>}:session` | a session, as [`record`] writes it | when it is not used for `idle` |
//! | `wxhub:auth:v1:{<user_id>}:sessions` | the user's session_ids by creation, some of them over | with the longest session |
//! | `wxhub:auth:v1:{<app_id>:<digest of the openid>}:session_key` | the sealed session_key | with the longest session |
//! | `wxhub:auth:v1:{epochs}:numbers` | who was revoked, by number; the member `latest` has the largest one | with the longest session that one of them may end |
//!
//! The channel `wxhub:auth:v1:epochs` tells of each revocation. A session is read and lives on by one native command: no
//! script is as cheap.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::StreamExt as _;
use redis::{AsyncCommands as _, Client, Expiry, RedisResult, Script, aio::ConnectionManager};
use service_kit::{clock::millis, storage::REDIS_TIMEOUT};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Indexed, Lives, SESSIONS_MAX, Session, SessionId, record};
use crate::{
    error::Error,
    session::epoch::{PAGE, Page, Subject},
    user::UserId,
};

const EPOCHS: &str = "wxhub:auth:v1:{epochs}:numbers";
const CHANNEL: &str = "wxhub:auth:v1:epochs";
/// The member of [`EPOCHS`] that is no subject: subjects have a colon.
const LATEST: &str = "latest";
/// Between two attempts to hear of revocations again.
const RECONNECT: Duration = Duration::from_millis(500);

/// Gives the next number. ARGV: the largest that is held elsewhere, milliseconds that numbers are kept, subject or
/// empty, channel. Numbers of up to 2^53 survive Lua's doubles, and the database's clock only sets where they begin.
static ADVANCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = tonumber(redis.call('ZSCORE', KEYS[1], 'latest') or '0')
local number = string.format('%.0f', math.max(latest, tonumber(ARGV[1]), now) + 1)
redis.call('ZADD', KEYS[1], number, 'latest')
if ARGV[3] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
  redis.call('ZADD', KEYS[1], number, ARGV[3])
  redis.call('PUBLISH', ARGV[4], ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return number
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

#[derive(Clone)]
pub(in crate::session) struct RedisStore {
    connection: ConnectionManager,
    /// Clones of this are many, and it is large.
    client: Arc<Client>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

pub(super) fn session_at(id: &SessionId) -> String {
    format!("wxhub:auth:v1:{{{id}}}:session")
}

pub(super) fn index_at(user_id: UserId) -> String {
    format!("wxhub:auth:v1:{{{user_id}}}:sessions")
}

pub(super) fn session_key_at(user: &str) -> String {
    format!("wxhub:auth:v1:{{{user}}}:session_key")
}

impl RedisStore {
    pub(super) fn new(connection: ConnectionManager, client: Client) -> Self {
        Self {
            connection,
            client: Arc::new(client),
        }
    }

    pub(super) async fn insert(
        &self,
        id: &SessionId,
        session: &Session,
        lives: Lives,
    ) -> Result<(), Error> {
        let index = index_at(session.user_id);
        let over = session.created.saturating_sub(millis(lives.longest));
        let (count,): (usize,) = redis::pipe()
            .pset_ex(session_at(id), record::write(session), millis(lives.idle))
            .ignore()
            .zadd(&index, id.as_str(), session.created)
            .ignore()
            .zrembyscore(&index, "-inf", over)
            .ignore()
            .pexpire(&index, signed(lives.longest))
            .ignore()
            .zcard(&index)
            .query_async(&mut self.connection.clone())
            .await?;
        let Some(excess) = count.checked_sub(SESSIONS_MAX).filter(|excess| *excess > 0) else {
            return Ok(());
        };
        let excess = isize::try_from(excess).unwrap_or(isize::MAX);
        let oldest: Vec<(String, f64)> = self.connection.clone().zpopmin(&index, excess).await?;
        let oldest = oldest.into_iter().filter_map(|(id, _)| id.parse().ok());
        self.remove(session.user_id, &oldest.collect::<Vec<_>>())
            .await
    }

    pub(super) async fn touch(
        &self,
        id: &SessionId,
        idle: Duration,
    ) -> Result<Option<Session>, Error> {
        let found: Option<String> = self
            .connection
            .clone()
            .get_ex(session_at(id), Expiry::PX(millis(idle)))
            .await?;
        found.as_deref().map(record::read).transpose()
    }

    pub(super) async fn peek(
        &self,
        ids: &[SessionId],
    ) -> Result<Vec<Option<(Session, Duration)>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for id in ids {
            let key = session_at(id);
            pipe.get(&key).pttl(&key);
        }
        let found: Vec<(Option<String>, i64)> = pairs(&pipe, &self.connection).await?;
        let sessions = found.into_iter().map(|(text, left)| {
            // It may have ended in between.
            let (Some(text), Ok(left)) = (text, u64::try_from(left)) else {
                return Ok(None);
            };
            Ok(Some((record::read(&text)?, Duration::from_millis(left))))
        });
        sessions.collect()
    }

    pub(super) async fn remove(&self, user_id: UserId, ids: &[SessionId]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for id in ids {
            pipe.del(session_at(id)).ignore();
        }
        let ids: Vec<_> = ids.iter().map(SessionId::as_str).collect();
        let () = pipe
            .zrem(index_at(user_id), ids)
            .ignore()
            .query_async(&mut self.connection.clone())
            .await?;
        Ok(())
    }

    pub(super) async fn index(&self, user_id: UserId) -> Result<Vec<Indexed>, Error> {
        let found: Vec<(String, f64)> = self
            .connection
            .clone()
            .zrevrange_withscores(index_at(user_id), 0, -1)
            .await?;
        let indexed = found.into_iter().map(|(id, created)| {
            Some(Indexed {
                created: number(created),
                id: id.parse().ok()?,
            })
        });
        let indexed: Option<_> = indexed.collect();
        indexed.ok_or(Error::Stored("index of sessions"))
    }

    pub(super) async fn latest(&self) -> Result<Option<u64>, Error> {
        let latest: Option<f64> = self.connection.clone().zscore(EPOCHS, LATEST).await?;
        Ok(latest.map(number))
    }

    pub(super) async fn advance(
        &self,
        held: u64,
        subject: Option<&Subject>,
        kept: Duration,
    ) -> Result<u64, Error> {
        let subject = subject.map(Subject::to_string).unwrap_or_default();
        let number = ADVANCE
            .key(EPOCHS)
            .arg(held)
            .arg(millis(kept))
            .arg(subject)
            .arg(CHANNEL)
            .invoke_async(&mut self.connection.clone())
            .await?;
        Ok(number)
    }

    pub(super) async fn epochs(&self, from: u64) -> Result<Page, Error> {
        let limit = isize::try_from(PAGE).unwrap_or(isize::MAX);
        let found: Vec<(String, f64)> = self
            .connection
            .clone()
            .zrangebyscore_limit_withscores(EPOCHS, from, "+inf", 0, limit)
            .await?;
        let mut page = Page::default();
        if found.len() == PAGE {
            page.next = found.last().map(|(_, score)| number(*score));
        }
        for (member, score) in found {
            if member == LATEST {
                page.latest = Some(number(score));
            } else if let Ok(subject) = member.parse() {
                page.revocations.push((subject, number(score)));
            }
        }
        Ok(page)
    }

    pub(super) async fn restore(
        &self,
        revocations: &[(Subject, u64)],
        latest: u64,
        kept: Duration,
    ) -> Result<(), Error> {
        let members = revocations
            .iter()
            .map(|(subject, number)| (subject.to_string(), *number));
        let members: Vec<_> = members.chain([(LATEST.to_owned(), latest)]).collect();
        for members in members.chunks(PAGE) {
            let mut add = redis::cmd("ZADD");
            // Others put back as much, or know larger ones.
            add.arg(EPOCHS).arg("GT");
            for (member, number) in members {
                add.arg(number).arg(member);
            }
            let () = add.query_async(&mut self.connection.clone()).await?;
        }
        let () = self
            .connection
            .clone()
            .pexpire(EPOCHS, signed(kept))
            .await?;
        Ok(())
    }

    pub(super) async fn follow(&self, stop: &CancellationToken, on_change: impl Fn()) {
        let mut told = false;
        loop {
            let Some(ended) = stop.run_until_cancelled(self.listen(&on_change)).await else {
                return;
            };
            match ended {
                Ok(()) => told = false,
                // Once an outage is enough.
                Err(error) if !told => {
                    let error = &error as &dyn std::error::Error;
                    warn!(
                        error,
                        "Redis tells no revocations: polling alone brings them"
                    );
                    told = true;
                }
                Err(_) => {}
            }
            if stop.run_until_cancelled(sleep(RECONNECT)).await.is_none() {
                return;
            }
        }
    }

    /// Ends when the connection does.
    async fn listen(&self, on_change: &impl Fn()) -> RedisResult<()> {
        let connect = async {
            let mut changes = self.client.get_async_pubsub().await?;
            changes.subscribe(CHANNEL).await?;
            RedisResult::Ok(changes)
        };
        let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let changes = timeout(REDIS_TIMEOUT, connect).await.map_err(timed_out)??;
        on_change();
        let mut changes = changes.into_on_message();
        while changes.next().await.is_some() {
            on_change();
        }
        Ok(())
    }

    pub(super) async fn put_session_key(
        &self,
        user: &str,
        sealed: &str,
        longest: Duration,
    ) -> Result<(), Error> {
        let () = self
            .connection
            .clone()
            .pset_ex(session_key_at(user), sealed, millis(longest))
            .await?;
        Ok(())
    }

    pub(super) async fn swap_session_key(
        &self,
        user: &str,
        expected: &str,
        sealed: &str,
        longest: Duration,
    ) -> Result<bool, Error> {
        let swapped = SWAP
            .key(session_key_at(user))
            .arg(expected)
            .arg(sealed)
            .arg(millis(longest))
            .invoke_async(&mut self.connection.clone())
            .await?;
        Ok(swapped)
    }

    pub(super) async fn session_key(&self, user: &str) -> Result<Option<String>, Error> {
        Ok(self.connection.clone().get(session_key_at(user)).await?)
    }

    pub(super) async fn remove_session_key(&self, user: &str) -> Result<(), Error> {
        let () = self.connection.clone().del(session_key_at(user)).await?;
        Ok(())
    }
}

/// The answers of a pipeline in which every two belong together.
async fn pairs<A, B>(
    pipe: &redis::Pipeline,
    connection: &ConnectionManager,
) -> RedisResult<Vec<(A, B)>>
where
    A: redis::FromRedisValue,
    B: redis::FromRedisValue,
{
    let answers: Vec<redis::Value> = pipe.query_async(&mut connection.clone()).await?;
    let mut answers = answers.into_iter();
    let mut pairs = Vec::new();
    while let (Some(one), Some(other)) = (answers.next(), answers.next()) {
        pairs.push((
            redis::from_redis_value(one)?,
            redis::from_redis_value(other)?,
        ));
    }
    Ok(pairs)
}

/// A score that is a number of at most 2^53.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "this service wrote it as an integer"
)]
fn number(score: f64) -> u64 {
    score as u64
}

/// A time to live as Redis takes it.
fn signed(duration: Duration) -> i64 {
    i64::try_from(millis(duration)).unwrap_or(i64::MAX)
}
