//! Credentials in Redis: keys of one hash tag for each, and scripts that touch no others.
//!
//! `wxhub:token:v1:{<app_id>}:<kind>` is a hash, what [`Record`] says and what the scripts need to know; it lives for two days
//! from the last step of a refresh, longer than any credential and than the day its counters count.
//! `wxhub:token:v1:{<app_id>}:<kind>:lease` holds the fence of who may refresh it, for as long as the lease.
//! `wxhub:token:v1:{<app_id>}:<kind>:probe` exists for as long as no other probe is allowed.
//! The channel `wxhub:token:v1:changed` tells `<app_id>:<kind>` of each change.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use redis::{Client, RedisResult, Script, ScriptInvocation, aio::ConnectionManager};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    Sealer,
    clock::{millis, since_epoch},
    storage::REDIS_TIMEOUT,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Begin, Claim, Claimant, Error, Event, Fresh, HISTORY, LEASE, Lease, PROBES_APART, Record,
    SUPERSEDED_AFTER, Spend, Written,
};
use crate::credential::{
    Credential, Failure, Key, Kind, Policy, Times, digest,
    ledger::{FORCE_APART, Ledger, beijing_day, reset},
};

const CHANNEL: &str = "wxhub:token:v1:changed";
/// How long a record lives from its last change.
const RECORD_TTL: Duration = Duration::from_secs(2 * 24 * 3600);
/// Between two attempts to hear events again.
const RECONNECT: Duration = Duration::from_millis(500);

/// Opens the ledger's page of a day: an empty one when that day is newer. Pages are not turned back, for clocks differ.
macro_rules! with_ledger {
    ($script:literal) => {
        concat!(
            r"
local function open(day)
  if tonumber(day) > tonumber(redis.call('HGET', KEYS[1], 'day') or '0') then
    redis.call('HSET', KEYS[1], 'day', day, 'calls', 0, 'forced', 0, 'rejected', 0, 'exhausted', 0)
  end
end
",
            $script
        )
    };
}

/// Takes the lease. Numbers of up to 2^53 survive Lua's doubles: versions are Unix milliseconds. ARGV: version to be replaced,
/// now, length of the lease, lifetime, floor of what is to be replaced or empty.
const CLAIM: &str = r"
local stored = redis.call('HMGET', KEYS[1], 'version', 'expire', 'floor', 'granted')
for index = 1, 4 do stored[index] = tonumber(stored[index] or '0') end
local version, expire, floor, granted = unpack(stored)
local replaces, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local later = ARGV[5] ~= '' and floor > tonumber(ARGV[5])
if now < expire and (version > replaces or (version == replaces and later)) then return {'newer'} end
local fence = string.format('%.0f', math.max(granted, version, replaces, now) + 1)
if not redis.call('SET', KEYS[2], fence, 'NX', 'PX', ARGV[3]) then
  return {'busy', tostring(redis.call('PTTL', KEYS[2]))}
end
redis.call('HSET', KEYS[1], 'granted', fence)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local doubted = redis.call('HEXISTS', KEYS[1], 'begun') == 1 or version < replaces
return {'granted', fence, doubted and '1' or '0'}
";

/// Enters a call to WeChat in the ledger and marks it as begun. ARGV: fence, now, day, calls allowed, forced ones allowed or -1,
/// milliseconds between two of those.
const BEGIN: &str = with_ledger!(
    r"
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'lost'} end
open(ARGV[3])
local page = redis.call('HMGET', KEYS[1], 'calls', 'forced', 'exhausted')
local calls, forced, limit = tonumber(page[1]), tonumber(page[2]), tonumber(ARGV[5])
if page[3] == '1' or calls >= tonumber(ARGV[4]) then return {'spent'} end
if limit >= 0 then
  if forced >= limit then return {'not forced'} end
  local next = tonumber(redis.call('HGET', KEYS[1], 'forced_at') or '0') + tonumber(ARGV[6])
  if tonumber(ARGV[2]) < next then return {'not forced', string.format('%.0f', next)} end
  redis.call('HSET', KEYS[1], 'forced_at', ARGV[2], 'forced', forced + 1)
end
redis.call('HSET', KEYS[1], 'calls', calls + 1, 'begun', ARGV[1])
redis.call('HSETNX', KEYS[1], 'begun_at', ARGV[2])
local granted = redis.call('HMGET', KEYS[1], 'day', 'calls', 'forced', 'rejected')
table.insert(granted, 1, 'granted')
return granted
"
);

/// Stores a value. ARGV: fence, now, highest version held, digest, sealed text, policy, refresh, expire, floor, when to verify
/// or 0, when to verify what supersedes it or 0, lifetime, digests kept, channel, message, day, whether reported, when the
/// writer would have verified the one before or 0, when it was asked for.
const WRITE: &str = with_ledger!(
    r"
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
-- Versions outlive a store that was emptied, other than what was written last.
if tonumber(ARGV[1]) < math.max(version, tonumber(redis.call('HGET', KEYS[1], 'written') or '0')) then
  if tonumber(ARGV[11]) > tonumber(redis.call('HGET', KEYS[1], 'verify') or '0') then
    redis.call('HSET', KEYS[1], 'verify', ARGV[11])
    redis.call('PUBLISH', ARGV[14], ARGV[15])
  end
  return 'superseded'
end
if redis.call('HGET', KEYS[1], 'digest') ~= ARGV[4] then
  version = math.max(version, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])) + 1
  local kept = {}
  for entry in string.gmatch(redis.call('HGET', KEYS[1], 'history') or '', '%S+') do kept[#kept + 1] = entry end
  kept[#kept + 1] = string.format('%.0f', version) .. ':' .. ARGV[4]
  while #kept > tonumber(ARGV[13]) do table.remove(kept, 1) end
  redis.call('HSET', KEYS[1], 'history', table.concat(kept, ' '))
  if ARGV[17] == '1' then
    open(ARGV[16])
    redis.call('HINCRBY', KEYS[1], 'rejected', 1)
  end
end
version = string.format('%.0f', version)
redis.call('HSET', KEYS[1], 'written', ARGV[1], 'version', version, 'digest', ARGV[4], 'secret', ARGV[5], 'policy', ARGV[6],
  'refresh', ARGV[7], 'expire', ARGV[8], 'floor', ARGV[9])
redis.call('HDEL', KEYS[1], 'failure')
-- What cast doubt on the one before may yet befall this one.
local verify = tonumber(ARGV[10])
local doubt = math.max(tonumber(redis.call('HGET', KEYS[1], 'verify') or '0'), tonumber(ARGV[18]))
if doubt > tonumber(ARGV[19]) then verify = math.max(verify, doubt) end
if verify > 0 then
  redis.call('HSET', KEYS[1], 'verify', string.format('%.0f', verify))
else
  redis.call('HDEL', KEYS[1], 'verify')
end
local begun = redis.call('HGET', KEYS[1], 'begun')
if begun and tonumber(begun) <= tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], 'begun', 'begun_at') end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[12])
redis.call('PUBLISH', ARGV[14], ARGV[15])
return version
"
);

/// Records a failure. ARGV: fence, failure, whether the call may have been carried out, lifetime, channel, message, the day
/// whose quota is used up or empty.
const FAIL: &str = with_ledger!(
    r"
if ARGV[7] ~= '' then
  open(ARGV[7])
  redis.call('HSET', KEYS[1], 'exhausted', 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
redis.call('HSET', KEYS[1], 'failure', ARGV[2])
if ARGV[3] == '0' then redis.call('HDEL', KEYS[1], 'begun', 'begun_at') end
redis.call('DEL', KEYS[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
"
);

/// Gives the lease back. ARGV: fence.
const RELEASE: &str = r"
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
";

/// Puts a lost value back. ARGV: version, digest, sealed text, policy, refresh, expire, floor, lifetime, channel, message, when
/// to verify or 0.
const RESTORE: &str = r"
local stored, version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0'), tonumber(ARGV[1])
local doubted = tonumber(ARGV[11]) > tonumber(redis.call('HGET', KEYS[1], 'verify') or '0')
if stored > version or (stored == version and not doubted) then return end
if stored < version then
  local history = redis.call('HGET', KEYS[1], 'history') or ''
  redis.call('HSET', KEYS[1], 'version', ARGV[1], 'digest', ARGV[2], 'secret', ARGV[3], 'policy', ARGV[4], 'refresh', ARGV[5],
    'expire', ARGV[6], 'floor', ARGV[7], 'history', history .. ' ' .. ARGV[1] .. ':' .. ARGV[2])
end
if doubted then redis.call('HSET', KEYS[1], 'verify', ARGV[11]) end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PUBLISH', ARGV[9], ARGV[10])
";

/// Puts lost entries of the ledger back. ARGV: day, lifetime, calls, forced, rejected, exhausted.
const ENTER: &str = with_ledger!(
    r"
open(ARGV[1])
if tonumber(redis.call('HGET', KEYS[1], 'day')) > tonumber(ARGV[1]) then return end
for index, field in ipairs({'calls', 'forced', 'rejected', 'exhausted'}) do
  if tonumber(ARGV[index + 2]) > tonumber(redis.call('HGET', KEYS[1], field)) then
    redis.call('HSET', KEYS[1], field, ARGV[index + 2])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"
);

/// Credentials in Redis.
pub struct RedisStore {
    connection: ConnectionManager,
    client: Client,
    sealer: Sealer,
    scripts: Scripts,
}

struct Scripts {
    claim: Script,
    begin: Script,
    write: Script,
    fail: Script,
    release: Script,
    restore: Script,
    enter: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

impl RedisStore {
    pub(super) fn new(connection: ConnectionManager, client: Client, sealer: Sealer) -> Self {
        let scripts = Scripts {
            claim: Script::new(CLAIM),
            begin: Script::new(BEGIN),
            write: Script::new(WRITE),
            fail: Script::new(FAIL),
            release: Script::new(RELEASE),
            restore: Script::new(RESTORE),
            enter: Script::new(ENTER),
        };
        Self {
            connection,
            client,
            sealer,
            scripts,
        }
    }

    pub(super) async fn load(&self, key: &Key) -> Result<Option<Record>, Error> {
        let mut connection = self.connection.clone();
        let fields: HashMap<String, String> = redis::cmd("HGETALL")
            .arg(record_key(key))
            .query_async(&mut connection)
            .await?;
        if fields.is_empty() {
            return Ok(None);
        }
        self.record(key, &fields).map(Some)
    }

    pub(super) async fn claim(
        &self,
        key: &Key,
        Claimant {
            replaces,
            floor,
            now,
        }: Claimant,
    ) -> Result<Claim, Error> {
        let mut call = self.scripts.claim.key(record_key(key));
        call.key(lease_key(key))
            .arg(replaces)
            .arg(unix(now))
            .arg(millis(LEASE))
            .arg(millis(RECORD_TTL))
            .arg(floor.map_or_else(String::new, |floor| unix(floor).to_string()));
        let answer: Vec<String> = self.invoke(&call).await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        match answer.as_slice() {
            ["newer"] => Ok(Claim::Newer),
            ["busy", left] => Ok(Claim::Busy(Duration::from_millis(
                left.parse().unwrap_or_default(),
            ))),
            ["granted", fence, begun] => Ok(Claim::Granted(Lease {
                fence: fence.parse().map_err(|_| unreadable(key, "fence"))?,
                takeover: *begun == "1",
            })),
            _ => Err(unreadable(key, "answer of the claim")),
        }
    }

    pub(super) async fn begin(
        &self,
        key: &Key,
        lease: Lease,
        spend: Spend,
        now: SystemTime,
    ) -> Result<Begin, Error> {
        let mut call = self.scripts.begin.key(record_key(key));
        call.key(lease_key(key))
            .arg(lease.fence)
            .arg(unix(now))
            .arg(beijing_day(now))
            .arg(spend.calls)
            .arg(spend.forced.map_or(-1, i64::from))
            .arg(millis(FORCE_APART));
        let answer: Vec<String> = self.invoke(&call).await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        let number = |text: &str| -> Result<u64, Error> {
            let number = text.parse();
            number.map_err(|_| unreadable(key, "answer of the call's begin"))
        };
        match answer.as_slice() {
            ["granted", day, calls, forced, rejected] => {
                let small = |text| Ok::<_, Error>(number(text)?.try_into().unwrap_or(u32::MAX));
                Ok(Begin::Granted(Ledger {
                    day: number(day)?,
                    calls: small(calls)?,
                    forced: small(forced)?,
                    rejected: small(rejected)?,
                    exhausted: false,
                }))
            }
            ["lost"] => Ok(Begin::Lost),
            ["spent"] => Ok(Begin::Spent),
            ["not forced"] => Ok(Begin::NotForced(reset(now))),
            ["not forced", next] => Ok(Begin::NotForced(at(number(next)?))),
            _ => Err(unreadable(key, "answer of the call's begin")),
        }
    }

    pub(super) async fn write(
        &self,
        key: &Key,
        lease: Lease,
        fresh: &Fresh,
        now: SystemTime,
    ) -> Result<Written, Error> {
        let superseded = fresh.policy.ends_by_a_lost_call();
        let superseded = superseded.then(|| now + SUPERSEDED_AFTER);
        let mut call = self.scripts.write.key(record_key(key));
        call.key(lease_key(key))
            .arg(lease.fence)
            .arg(unix(now))
            .arg(fresh.highest)
            .arg(digest(&fresh.secret))
            .arg(self.seal(key, &fresh.secret))
            .arg(fresh.policy.as_str())
            .arg(unix(fresh.times.refresh))
            .arg(unix(fresh.times.expire))
            .arg(unix(fresh.times.floor))
            .arg(fresh.verify(lease).map_or(0, unix))
            .arg(superseded.map_or(0, unix))
            .arg(millis(RECORD_TTL))
            .arg(HISTORY)
            .arg(CHANNEL)
            .arg(key.to_string())
            .arg(beijing_day(now))
            .arg(u8::from(fresh.reported))
            .arg(fresh.doubt.map_or(0, unix))
            .arg(unix(fresh.times.asked()));
        let answer: String = self.invoke(&call).await?;
        if answer == "superseded" {
            return Ok(Written::Superseded);
        }
        let version = answer.parse().map_err(|_| unreadable(key, "version"))?;
        Ok(Written::Stored(version))
    }

    pub(super) async fn fail(
        &self,
        key: &Key,
        lease: Lease,
        failure: &Failure,
        ambiguous: bool,
    ) -> Result<(), Error> {
        let exhausted = failure
            .cause
            .is_exhaustion()
            .then(|| beijing_day(failure.at).to_string());
        let failure =
            serde_json::to_string(failure).map_err(|error| unreadable(key, &error.to_string()))?;
        let mut call = self.scripts.fail.key(record_key(key));
        call.key(lease_key(key))
            .arg(lease.fence)
            .arg(failure)
            .arg(u8::from(ambiguous || lease.takeover))
            .arg(millis(RECORD_TTL))
            .arg(CHANNEL)
            .arg(key.to_string())
            .arg(exhausted.unwrap_or_default());
        Ok(self.invoke(&call).await?)
    }

    pub(super) async fn release(&self, key: &Key, lease: Lease) -> Result<(), Error> {
        let mut call = self.scripts.release.key(record_key(key));
        call.key(lease_key(key)).arg(lease.fence);
        Ok(self.invoke(&call).await?)
    }

    pub(super) async fn probe(&self, key: &Key) -> Result<bool, Error> {
        let mut connection = self.connection.clone();
        let granted: Option<String> = redis::cmd("SET")
            .arg(probe_key(key))
            .arg(1)
            .arg("NX")
            .arg("PX")
            .arg(millis(PROBES_APART))
            .query_async(&mut connection)
            .await?;
        Ok(granted.is_some())
    }

    pub(super) async fn restore(
        &self,
        key: &Key,
        held: &Credential,
        verify: Option<SystemTime>,
    ) -> Result<(), Error> {
        let mut call = self.scripts.restore.key(record_key(key));
        call.key(lease_key(key))
            .arg(held.version)
            .arg(held.digest())
            .arg(self.seal(key, &held.secret))
            .arg(held.policy.as_str())
            .arg(unix(held.times.refresh))
            .arg(unix(held.times.expire))
            .arg(unix(held.times.floor))
            .arg(millis(RECORD_TTL))
            .arg(CHANNEL)
            .arg(key.to_string())
            .arg(verify.map_or(0, unix));
        Ok(self.invoke(&call).await?)
    }

    pub(super) async fn enter(&self, key: &Key, ledger: Ledger) -> Result<(), Error> {
        let mut call = self.scripts.enter.key(record_key(key));
        call.arg(ledger.day)
            .arg(millis(RECORD_TTL))
            .arg(ledger.calls)
            .arg(ledger.forced)
            .arg(ledger.rejected)
            .arg(u8::from(ledger.exhausted));
        Ok(self.invoke(&call).await?)
    }

    pub(super) async fn follow(
        &self,
        stop: &CancellationToken,
        mut on_event: impl FnMut(Event) + Send,
    ) {
        let mut told = false;
        loop {
            let Some(ended) = stop.run_until_cancelled(self.listen(&mut on_event)).await else {
                return;
            };
            // Once an outage is enough; polling goes on meanwhile.
            match ended {
                Ok(()) => told = false,
                Err(error) if !told => {
                    warn!(error = %error, "Redis tells no changes: polling alone brings them");
                    told = true;
                }
                Err(_) => {}
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(RECONNECT))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Ends when the connection does.
    async fn listen(&self, on_event: &mut (impl FnMut(Event) + Send)) -> RedisResult<()> {
        let connect = async {
            let mut events = self.client.get_async_pubsub().await?;
            events.subscribe(CHANNEL).await?;
            RedisResult::Ok(events)
        };
        let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let events = tokio::time::timeout(REDIS_TIMEOUT, connect)
            .await
            .map_err(timed_out)??;
        on_event(Event::Missed);
        let mut messages = events.into_on_message();
        while let Some(message) = messages.next().await {
            let message: String = message.get_payload()?;
            on_event(parse_key(&message).map_or(Event::Missed, Event::Changed));
        }
        Ok(())
    }

    async fn invoke<T: redis::FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> RedisResult<T> {
        call.invoke_async(&mut self.connection.clone()).await
    }

    fn seal(&self, key: &Key, secret: &SecretString) -> String {
        self.sealer
            .seal(&context(key), secret.expose_secret().as_bytes())
    }

    fn record(&self, key: &Key, fields: &HashMap<String, String>) -> Result<Record, Error> {
        let number = |name: &'static str| -> Result<Option<u64>, Error> {
            let field = fields.get(name).map(|text| text.parse());
            field.transpose().map_err(|_| unreadable(key, name))
        };
        let small = |name| {
            let small = number(name)?.unwrap_or_default().try_into();
            Ok::<u32, Error>(small.unwrap_or(u32::MAX))
        };
        let moment = |name| Ok::<_, Error>(number(name)?.map(at));
        let required = |name| moment(name)?.ok_or_else(|| unreadable(key, name));
        let expire = moment("expire")?;
        let credential = match (fields.get("secret"), number("version")?) {
            (Some(sealed), Some(version)) => {
                let opened = self.sealer.open(&context(key), sealed);
                let secret = opened.map_err(|error| Error::Unreadable {
                    key: key.clone(),
                    problem: error.to_string(),
                    version,
                    expire,
                })?;
                let secret =
                    String::from_utf8(secret).map_err(|_| unreadable(key, "not a text"))?;
                let policy = fields
                    .get("policy")
                    .and_then(|name| Policy::from_name(name));
                Some(Credential {
                    secret: secret.into(),
                    version,
                    policy: policy.ok_or_else(|| unreadable(key, "policy"))?,
                    times: Times {
                        refresh: required("refresh")?,
                        expire: required("expire")?,
                        floor: required("floor")?,
                    },
                })
            }
            _ => None,
        };
        let failure = fields.get("failure").map(|text| serde_json::from_str(text));
        let history = fields.get("history").map_or("", String::as_str);
        let history = history.split_whitespace().filter_map(|entry| {
            let (version, digest) = entry.split_once(':')?;
            Some((version.parse().ok()?, digest.to_owned()))
        });
        Ok(Record {
            credential,
            verify: moment("verify")?,
            begun: moment("begun_at")?,
            failure: failure
                .transpose()
                .map_err(|_| unreadable(key, "failure"))?,
            ledger: Ledger {
                day: number("day")?.unwrap_or_default(),
                calls: small("calls")?,
                forced: small("forced")?,
                rejected: small("rejected")?,
                exhausted: small("exhausted")? > 0,
            },
            history: history.collect(),
        })
    }
}

fn record_key(Key { app, kind }: &Key) -> String {
    format!("wxhub:token:v1:{{{app}}}:{}", kind.as_str())
}

fn lease_key(key: &Key) -> String {
    format!("{}:lease", record_key(key))
}

fn probe_key(key: &Key) -> String {
    format!("{}:probe", record_key(key))
}

/// What a sealed text is bound to.
fn context(key: &Key) -> String {
    format!("token-service {key}")
}

fn parse_key(text: &str) -> Option<Key> {
    let (app, kind) = text.split_once(':')?;
    Some(Key {
        app: app.parse().ok()?,
        kind: Kind::from_name(kind)?,
    })
}

fn unreadable(key: &Key, problem: &str) -> Error {
    Error::Unreadable {
        key: key.clone(),
        problem: problem.to_owned(),
        version: 0,
        expire: None,
    }
}

fn unix(time: SystemTime) -> u64 {
    millis(since_epoch(time))
}

fn at(unix: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix)
}

#[cfg(test)]
impl RedisStore {
    pub(super) async fn expire_lease(&self, key: &Key) {
        use redis::AsyncCommands as _;
        let _: () = self.connection.clone().del(lease_key(key)).await.unwrap();
    }

    /// Every key with its TTL in milliseconds and its content.
    pub(super) async fn dump(&self) -> Vec<(String, i64, String)> {
        use redis::AsyncCommands as _;
        let mut connection = self.connection.clone();
        let keys: Vec<String> = connection.keys("*").await.unwrap();
        let mut dump = Vec::new();
        for key in keys {
            let ttl = connection.pttl(&key).await.unwrap();
            let text = if key.ends_with(":lease") {
                connection.get(&key).await.unwrap()
            } else {
                let fields: HashMap<String, String> = connection.hgetall(&key).await.unwrap();
                format!("{fields:?}")
            };
            dump.push((key, ttl, text));
        }
        dump
    }
}
