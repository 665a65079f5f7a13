//! How fast an app sends: `send_rate` messages a second, all replicas together.
//!
//! A bucket in Redis fills by Redis's own clock, so that replicas whose clocks differ share it all the same. While Redis
//! is away each process goes by a bucket of its own: the rate then holds for each replica.
//!
//! | key | holds | ends |
//! |---|---|---|
//! | `wxhub:push:v1:{<app_id>}:rate` | a hash: `level`, in millionths of a message, and `time`, in Unix microseconds, at which it held that much | 10 s after the last take: a bucket that old is full, like one that is not there |

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{RedisResult, Script, aio::ConnectionManager};
use service_kit::{Clock, clock::millis};
use tracing::warn;
use wechat::AppId;

/// What a message takes out of a bucket: its level counts millionths, so that a microsecond adds a whole number.
const MESSAGE: u64 = 1_000_000;
/// An answer that takes Redis longer is not waited for: messages do.
const PATIENCE: Duration = Duration::from_millis(100);
/// After Redis did not answer it is not asked for this long.
const AWAY: Duration = Duration::from_secs(1);
/// How long a bucket is kept that nobody takes from: longer than any takes to fill.
const KEPT: Duration = Duration::from_secs(10);

/// [`Bucket::take`], by Redis's clock.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local rate, full, reserve, batch = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local urgent, rest, message = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local stored = redis.call('HMGET', KEYS[1], 'level', 'time')
local level = full
if stored[1] and stored[2] then
  local passed = math.max(0, now - tonumber(stored[2]))
  level = math.min(full, tonumber(stored[1]) + passed * rate)
end
local count = math.min(urgent, math.floor(level / message))
level = level - count * message
local floor = 0
if count == urgent then
  local more = math.min(rest, math.floor(math.max(0, level - reserve) / message))
  level = level - more * message
  count = count + more
  floor = reserve
end
local wait = 0
local missing = urgent + rest - count
if missing > 0 then
  wait = math.ceil((floor + math.min(missing * message, batch) - level) / rate)
end
redis.call('HSET', KEYS[1], 'level', string.format('%.0f', level), 'time', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return {count, wait}
",
    )
});

/// Adds to a bucket that is there: one that is not is full. What is too much runs over at the next take.
static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'level', ARGV[1])
",
    )
});

/// How many messages somebody would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Want {
    /// Those that go first.
    pub(crate) urgent: u32,
    /// Those that leave half of the burst to the urgent ones of the next moment.
    pub(crate) rest: u32,
}

/// How many messages may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// At most as many as were wanted, the urgent ones first.
    pub(crate) count: u32,
    /// How long until it is worth while to ask for the others; zero where there are none.
    pub(crate) wait: Duration,
}

/// The apps' rates; clones share them.
#[derive(Clone)]
pub(crate) struct Rate {
    shared: Option<Shared>,
    own: Arc<Mutex<HashMap<AppId, Bucket>>>,
    clock: Clock,
}

#[derive(Clone)]
struct Shared {
    connection: ConnectionManager,
    /// Redis is not asked before this elapsed time in milliseconds; 0 while it answers.
    away_until: Arc<AtomicU64>,
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rate")
            .field("redis", &self.shared.is_some())
            .finish_non_exhaustive()
    }
}

impl Rate {
    /// Rates of all replicas together, or without Redis of this process.
    pub(crate) fn new(redis: Option<ConnectionManager>, clock: Clock) -> Self {
        Self {
            shared: redis.map(|connection| Shared {
                connection,
                away_until: Arc::default(),
            }),
            own: Arc::default(),
            clock,
        }
    }

    /// Takes as many messages as there are, up to what is wanted: in any time no more than `per_second` for each second
    /// of it and a burst of a tenth of that, or one. Redis is waited for no longer than a tenth of a second.
    pub(crate) async fn take(&self, app: &AppId, per_second: u32, want: Want) -> Taken {
        if want.urgent == 0 && want.rest == 0 {
            return Taken {
                count: 0,
                wait: Duration::ZERO,
            };
        }
        let pace = Pace::of(per_second);
        let asked = self.ask(|connection| pace.take(connection, app, want));
        if let Some((count, wait)) = asked.await {
            return Taken {
                count,
                wait: Duration::from_micros(wait),
            };
        }
        let now = micros(self.clock.elapsed());
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = own.entry(app.clone()).or_insert(Bucket {
            level: pace.full,
            time: now,
        });
        bucket.take(&pace, want, now)
    }

    /// Gives back what was taken for messages that were not sent.
    pub(crate) async fn give_back(&self, app: &AppId, count: u32) {
        if count == 0 {
            return;
        }
        let level = u64::from(count) * MESSAGE;
        let given = self.ask(|mut connection| async move {
            GIVE_BACK
                .key(key(app))
                .arg(level)
                .invoke_async::<i64>(&mut connection)
                .await
        });
        if given.await.is_none() {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bucket) = own.get_mut(app) {
                bucket.level += level;
            }
        }
    }

    /// What Redis answers; none without it or while it is away. When a while has passed since it was, one task alone
    /// looks whether it still is.
    async fn ask<T, F>(&self, command: impl FnOnce(ConnectionManager) -> F) -> Option<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let shared = self.shared.as_ref()?;
        let now = millis(self.clock.elapsed());
        let until = now + millis(AWAY);
        let away_until = shared.away_until.load(Ordering::Relaxed);
        if away_until != 0 {
            let first = |away_until| (away_until <= now).then_some(until);
            shared
                .away_until
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, first)
                .ok()?;
        }
        let answer = tokio::time::timeout(PATIENCE, command(shared.connection.clone())).await;
        let problem = match answer {
            Ok(Ok(answer)) => {
                if away_until != 0 {
                    shared.away_until.store(0, Ordering::Relaxed);
                }
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        if away_until == 0 {
            warn!("send_rate holds for each replica by itself, for Redis is away: {problem}");
        }
        shared.away_until.store(until, Ordering::Relaxed);
        None
    }
}

/// What a rate means for a bucket, in millionths of a message.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// What a microsecond adds.
    rate: u64,
    /// What a bucket holds.
    full: u64,
    /// What is left to the urgent.
    reserve: u64,
    /// Whoever wants more than there is waits for so much, lest every message makes a call of its own.
    batch: u64,
}

impl Pace {
    fn of(per_second: u32) -> Self {
        let rate = u64::from(per_second.max(1));
        let burst = u64::from(burst(per_second));
        Self {
            rate,
            full: burst * MESSAGE,
            reserve: burst / 2 * MESSAGE,
            batch: (burst / 4).max(1) * MESSAGE,
        }
    }

    async fn take(
        self,
        mut connection: ConnectionManager,
        app: &AppId,
        want: Want,
    ) -> RedisResult<(u32, u64)> {
        TAKE.key(key(app))
            .arg(self.rate)
            .arg(self.full)
            .arg(self.reserve)
            .arg(self.batch)
            .arg(want.urgent)
            .arg(want.rest)
            .arg(MESSAGE)
            .arg(millis(KEPT))
            .invoke_async(&mut connection)
            .await
    }
}

/// The bucket of one app in this process.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In millionths of a message.
    level: u64,
    /// Elapsed time at which it held that much, in microseconds.
    time: u64,
}

impl Bucket {
    fn take(&mut self, pace: &Pace, want: Want, now: u64) -> Taken {
        let passed = now.saturating_sub(self.time);
        let level = self.level.saturating_add(passed.saturating_mul(pace.rate));
        let mut level = level.min(pace.full);
        let whole = |level: u64| u32::try_from(level / MESSAGE).unwrap_or(u32::MAX);
        let mut count = want.urgent.min(whole(level));
        level -= u64::from(count) * MESSAGE;
        let mut floor = 0;
        if count == want.urgent {
            let more = want.rest.min(whole(level.saturating_sub(pace.reserve)));
            level -= u64::from(more) * MESSAGE;
            count = count.saturating_add(more);
            floor = pace.reserve;
        }
        *self = Self { level, time: now };
        let missing = u64::from(want.urgent) + u64::from(want.rest) - u64::from(count);
        let wait = match missing {
            0 => 0,
            _ => {
                let enough = floor + (missing * MESSAGE).min(pace.batch);
                enough.saturating_sub(level).div_ceil(pace.rate)
            }
        };
        Taken {
            count,
            wait: Duration::from_micros(wait),
        }
    }
}

/// The most that is sent at once.
pub(crate) fn burst(per_second: u32) -> u32 {
    (per_second / 10).max(1)
}

fn key(app: &AppId) -> String {
    format!("wxhub:push:v1:{{{app}}}:rate")
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, UNIX_EPOCH};

    use proptest::{prelude::*, strategy::ValueTree as _};
    use redis::AsyncTypedCommands as _;
    use service_kit::storage;
    use test_support::{Redis, eventually};

    use super::*;

    const NOTHING: Taken = Taken {
        count: 0,
        wait: Duration::ZERO,
    };

    fn app(id: &str) -> AppId {
        AppId::try_from(id).unwrap()
    }

    fn urgent(urgent: u32) -> Want {
        Want { urgent, rest: 0 }
    }

    fn rest(rest: u32) -> Want {
        Want { urgent: 0, rest }
    }

    fn connection(redis: &Redis) -> ConnectionManager {
        storage::redis(&redis.url().into()).unwrap()
    }

    /// What both twins do; the two are replicas of one service.
    async fn conforms(one: Rate, other: Rate) {
        let (shop, news) = (app("wx1"), app("wx2"));
        assert_eq!(one.take(&shop, 1, urgent(0)).await, NOTHING);
        let first = one.take(&shop, 1, urgent(3)).await;
        assert_eq!(first.count, 1);
        assert_eq!(first.wait, Duration::from_secs(1));
        // What comes back in the meantime is taken, too, and counts for both.
        let none = loop {
            let taken = other.take(&shop, 1, urgent(1)).await;
            if taken.count == 0 {
                break taken;
            }
        };
        assert!(!none.wait.is_zero() && none.wait <= first.wait, "{none:?}");
        // Another app's is another's.
        assert_eq!(
            other.take(&news, 1, rest(1)).await,
            Taken {
                count: 1,
                ..NOTHING
            }
        );
        // What was not used serves another replica.
        one.give_back(&shop, 1).await;
        assert_eq!(other.take(&shop, 1, rest(1)).await.count, 1);

        // Half of the burst is for the urgent alone.
        let fast = app("wx3");
        let broadcast = one.take(&fast, 1_000, rest(500)).await;
        assert_eq!(broadcast.count, 50);
        assert_eq!(broadcast.wait, Duration::from_millis(25));
        let both = Want {
            urgent: 40,
            rest: 1_000,
        };
        let mixed = other.take(&fast, 1_000, both).await;
        assert!((40..1_040).contains(&mixed.count), "{mixed:?}");

        // Together they are as fast as told, and no faster.
        let started = Instant::now();
        let (mut sent, busy) = (0, app("wx4"));
        for replica in [&one, &other].into_iter().cycle() {
            let taken = replica.take(&busy, 200, urgent(7)).await;
            sent += taken.count;
            if sent >= 60 {
                break;
            }
            tokio::time::sleep(taken.wait).await;
        }
        let least = Duration::from_millis(u64::from(sent - 20) * 5);
        // The clocks that time is told by differ in how fast they go, if by a hair.
        let took = started.elapsed() + Duration::from_millis(2);
        assert!(took >= least, "{sent} in {took:?}");
    }

    #[tokio::test]
    async fn memory_conforms() {
        let rate = Rate::new(None, Clock::System);
        conforms(rate.clone(), rate).await;
    }

    #[tokio::test]
    async fn redis_conforms_and_every_key_ends() {
        let redis = Redis::start().await;
        let mut connection = connection(&redis);
        let replica = || Rate::new(Some(connection.clone()), Clock::System);
        conforms(replica(), replica()).await;
        let keys = connection.keys("*").await.unwrap();
        assert!(!keys.is_empty());
        for key in keys {
            let left: i64 = redis::cmd("PTTL")
                .arg(&key)
                .query_async(&mut connection)
                .await
                .unwrap();
            assert!((1..=10_000).contains(&left), "{key}: {left}");
        }
    }

    #[tokio::test]
    async fn the_script_and_its_twin_agree() {
        let redis = Redis::start().await;
        let mut connection = connection(&redis);
        let app = app("wx1");
        let mut random = proptest::test_runner::TestRunner::deterministic();
        let cases = (
            1..=100_000_u32,
            0.0..=1.5,
            prop_oneof![Just(0_u32), 0..20_000_u32],
            prop_oneof![Just(0_u32), 0..20_000_u32],
        );
        for _ in 0..500 {
            let (per_second, filled, urgent, rest) = cases.new_tree(&mut random).unwrap().current();
            let pace = Pace::of(per_second);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "any number near it"
            )]
            let level = (pace.full as f64 * filled) as u64;
            let want = Want { urgent, rest };
            // A time to come: nothing is added, whatever Redis's clock says.
            let stored = [("level", level), ("time", 1 << 52)];
            connection.hset_multiple(key(&app), &stored).await.unwrap();
            let (count, wait) = pace.take(connection.clone(), &app, want).await.unwrap();
            let mut bucket = Bucket { level, time: 0 };
            let twin = bucket.take(&pace, want, 0);
            let wait = Duration::from_micros(wait);
            assert_eq!(
                Taken { count, wait },
                twin,
                "{per_second}, {level}, {want:?}"
            );
            let left = connection.hget(key(&app), "level").await.unwrap();
            assert_eq!(left, Some(bucket.level.to_string()));
        }
    }

    #[tokio::test]
    async fn with_redis_away_a_replica_goes_by_itself_and_comes_back() {
        let redis = Redis::start().await;
        let clock = Clock::tokio(UNIX_EPOCH);
        let rate = Rate::new(Some(connection(&redis)), clock.clone());
        let app = app("wx1");
        assert_eq!(rate.take(&app, 1, urgent(1)).await.count, 1);
        redis.pause();
        // Its own bucket is full; Redis is waited for once.
        let away = |rate: &Rate| {
            let shared = rate.shared.as_ref().unwrap();
            shared.away_until.load(Ordering::Relaxed) != 0
        };
        let started = Instant::now();
        assert_eq!(rate.take(&app, 1, urgent(1)).await.count, 1);
        assert!(started.elapsed() >= PATIENCE);
        assert!(away(&rate));
        let started = Instant::now();
        for _ in 0..100 {
            rate.take(&app, 1, urgent(1)).await;
        }
        assert!(started.elapsed() < PATIENCE * 50, "Redis was waited for");
        rate.give_back(&app, 1).await;
        assert_eq!(rate.take(&app, 1, urgent(1)).await.count, 1);
        redis.resume();
        eventually(
            "Redis is asked again",
            Duration::from_secs(15),
            async || {
                clock.suspend(AWAY);
                rate.take(&app, 1, urgent(1)).await;
                !away(&rate)
            },
        )
        .await;
    }

    /// One take: by how much later than the one before, in microseconds, and what is wanted.
    fn takes() -> impl Strategy<Value = Vec<(u64, u32, u32)>> {
        let step = (0..300_000_u64, 0..200_u32, 0..200_u32);
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_a_burst(per_second in 1..=5_000_u32, takes in takes()) {
            let pace = Pace::of(per_second);
            let (rate, burst) = (u64::from(per_second), pace.full / MESSAGE);
            let mut bucket = Bucket { level: pace.full, time: 0 };
            let (mut now, mut sent) = (0, Vec::new());
            for (later, urgent, rest) in takes {
                now += later;
                let taken = bucket.take(&pace, Want { urgent, rest }, now);
                sent.push((now, u64::from(taken.count)));
                // Between any moment before and now.
                let mut within = 0;
                for (since, count) in sent.iter().rev() {
                    within += count;
                    let most = burst * MESSAGE + (now - since) * rate;
                    prop_assert!(within * MESSAGE <= most, "{within} since {since}");
                }
            }
        }

        #[test]
        fn what_is_there_is_granted(per_second in 1..=5_000_u32, takes in takes()) {
            let pace = Pace::of(per_second);
            let mut bucket = Bucket { level: pace.full, time: 0 };
            let mut now = 0;
            for (later, urgent, rest) in takes {
                now += later;
                let want = Want { urgent, rest };
                let before = bucket;
                let taken = bucket.take(&pace, want, now);
                prop_assert!(taken.count <= urgent + rest);
                prop_assert_eq!(taken.wait.is_zero(), taken.count == urgent + rest);
                if taken.count < urgent {
                    prop_assert!(bucket.level < MESSAGE, "urgent ones had to wait");
                } else if taken.count < urgent + rest {
                    prop_assert!(bucket.level < pace.reserve + MESSAGE, "others had to wait");
                }
                // What is taken is what is gone.
                let gained = (now - before.time) * pace.rate;
                let filled = (before.level + gained).min(pace.full);
                prop_assert_eq!(bucket.level + u64::from(taken.count) * MESSAGE, filled);
                // Whoever waits as long as told gets some of what is missing.
                if !taken.wait.is_zero() {
                    let left = Want {
                        urgent: urgent.saturating_sub(taken.count),
                        rest: rest.min(urgent + rest - taken.count),
                    };
                    let mut later = bucket;
                    let then = now + micros(taken.wait);
                    prop_assert!(later.take(&pace, left, then).count > 0);
                }
            }
        }
    }
}
