//! One suite over both stores.

use std::time::UNIX_EPOCH;

use secrecy::ExposeSecret as _;
use test_support::{Redis, eventually};
use tokio_util::task::TaskTracker;

use super::*;
use crate::credential::{
    Kind,
    failure::{Call, Cause},
    ledger::reset,
};

/// More calls than most tests make.
const CALLS: u32 = 100;
const NOW_MS: u64 = 1_800_000_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(NOW_MS)
}

fn later(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn key() -> Key {
    Key {
        app: "wx0000000000000001".parse().unwrap(),
        kind: Kind::AccessToken,
    }
}

fn fresh(secret: &str, policy: Policy) -> Fresh {
    Fresh {
        secret: secret.into(),
        policy,
        times: policy.plan(now(), Duration::from_secs(7200), 0.0),
        highest: 0,
        doubt: None,
        reported: false,
    }
}

fn failure(attempts: u32) -> Failure {
    let cause = Cause::Refused {
        call: Call::Token,
        errcode: 40125,
        errmsg: "invalid appsecret".to_owned(),
        rid: None,
    };
    let mut failure = Failure::new(cause, "s".to_owned(), None, now(), 0.25);
    failure.attempts = attempts;
    failure
}

/// What every test does with either store.
struct Suite {
    store: Store,
    _redis: Option<Redis>,
}

impl Suite {
    async fn both() -> [Self; 2] {
        let redis = Redis::start().await;
        let url = redis.url();
        let client = ::redis::Client::open(url.as_str()).unwrap();
        let connection = service_kit::storage::redis(&url.into()).unwrap();
        [
            Self {
                store: Store::in_memory(Clock::System),
                _redis: None,
            },
            Self {
                store: Store::in_redis(connection, client, Sealer::ephemeral()),
                _redis: Some(redis),
            },
        ]
    }

    async fn claim(&self, replaces: u64, now: SystemTime) -> Claim {
        let claimant = Claimant {
            replaces,
            floor: None,
            now,
        };
        self.store.claim(&key(), claimant).await.unwrap()
    }

    async fn lease(&self, replaces: u64) -> Lease {
        match self.claim(replaces, now()).await {
            Claim::Granted(lease) => lease,
            refused => unreachable!("{refused:?}"),
        }
    }

    async fn begin(&self, lease: Lease, forced: Option<u32>, now: SystemTime) -> Begin {
        let spend = Spend {
            calls: CALLS,
            forced,
        };
        self.store.begin(&key(), lease, spend, now).await.unwrap()
    }

    async fn granted(&self, lease: Lease) -> Ledger {
        match self.begin(lease, None, now()).await {
            Begin::Granted(ledger) => ledger,
            refused => unreachable!("{refused:?}"),
        }
    }

    async fn write(&self, lease: Lease, secret: &str) -> Written {
        let fresh = fresh(secret, Policy::Classic);
        self.store
            .write(&key(), lease, &fresh, now())
            .await
            .unwrap()
    }

    async fn stored(&self, secret: &str) -> u64 {
        let held = self.record().await.version();
        let lease = self.lease(held).await;
        self.granted(lease).await;
        match self.write(lease, secret).await {
            Written::Stored(version) => version,
            Written::Superseded => unreachable!("nobody else writes"),
        }
    }

    async fn record(&self) -> Record {
        self.store.load(&key()).await.unwrap().unwrap_or_default()
    }

    /// The lease ends while its holder is paused: in Redis by its TTL, which a test does not wait for.
    async fn lease_expires(&self) {
        match &self.store {
            Store::Memory(store) => store.expire_lease(&key()),
            Store::Redis(store) => store.expire_lease(&key()).await,
            Store::Simulated(_) => unreachable!("the suite has no simulation"),
        }
    }
}

#[tokio::test]
async fn a_value_comes_back_as_it_was_stored() {
    for suite in Suite::both().await {
        assert!(suite.store.load(&key()).await.unwrap().is_none());
        let version = suite.stored("token").await;
        assert!(version > NOW_MS);
        let record = suite.record().await;
        let credential = record.credential.unwrap();
        assert_eq!(credential.secret.expose_secret(), "token");
        assert_eq!(credential.version, version);
        assert_eq!(credential.policy, Policy::Classic);
        assert_eq!(credential.times, fresh("", Policy::Classic).times);
        assert!(record.failure.is_none() && record.verify.is_none());
        assert_eq!(record.ledger.on(now()).calls, 1);
        assert_eq!(record.ledger.on(later(86_400)).calls, 0);
    }
}

#[tokio::test]
async fn r01_nothing_is_claimed_when_the_stored_version_is_newer() {
    for suite in Suite::both().await {
        let version = suite.stored("token").await;
        assert!(matches!(
            suite.claim(version - 1, now()).await,
            Claim::Newer
        ));
        assert!(matches!(
            suite.claim(version, now()).await,
            Claim::Granted(_)
        ));
    }
}

#[tokio::test]
async fn r01_a_text_that_was_just_asked_for_again_is_not_asked_for_once_more() {
    for suite in Suite::both().await {
        let version = suite.stored("token").await;
        let held = fresh("", Policy::Classic).times.floor;
        for (floor, newer) in [
            (Some(held - Duration::from_secs(1)), true),
            (Some(held), false),
            (None, false),
        ] {
            let claimant = Claimant {
                replaces: version,
                floor,
                now: now(),
            };
            let claim = suite.store.claim(&key(), claimant).await.unwrap();
            assert_eq!(matches!(claim, Claim::Newer), newer, "{claim:?}");
            suite.lease_expires().await;
        }
    }
}

#[tokio::test]
async fn a_value_that_is_expired_keeps_nobody_from_the_lease() {
    for suite in Suite::both().await {
        let version = suite.stored("token").await;
        let end = fresh("", Policy::Classic).times.expire;
        let before = end - Duration::from_secs(1);
        assert!(matches!(suite.claim(0, before).await, Claim::Newer));
        let Claim::Granted(lease) = suite.claim(0, end).await else {
            unreachable!("nothing lives there")
        };
        assert!(lease.fence > version);
    }
}

#[tokio::test]
async fn one_probe_is_granted_to_all_replicas_together() {
    for suite in Suite::both().await {
        let probe = async || suite.store.probe(&key(), now()).await.unwrap();
        assert!(probe().await);
        assert!(!probe().await);
        let other = Key {
            kind: Kind::JsapiTicket,
            ..key()
        };
        assert!(suite.store.probe(&other, now()).await.unwrap());
    }
    let memory = Store::in_memory(Clock::System);
    for (seconds, granted) in [(0, true), (29, false), (30, true), (59, false)] {
        let probe = memory.probe(&key(), later(seconds)).await.unwrap();
        assert_eq!(probe, granted, "{seconds}");
    }
}

#[tokio::test]
async fn r02_one_holder_at_a_time() {
    for suite in Suite::both().await {
        let lease = suite.lease(0).await;
        match suite.claim(0, now()).await {
            Claim::Busy(left) => assert!(left > Duration::ZERO && left <= LEASE),
            granted => unreachable!("{granted:?}"),
        }
        suite.store.release(&key(), lease).await.unwrap();
        let next = suite.lease(0).await;
        assert!(next.fence > lease.fence);
        assert!(!next.takeover);
    }
}

#[tokio::test]
async fn r03_a_lease_that_is_lost_neither_begins_nor_ends_anything() {
    for suite in Suite::both().await {
        let lost = suite.lease(0).await;
        suite.lease_expires().await;
        let holder = suite.lease(0).await;
        assert_eq!(suite.begin(lost, None, now()).await, Begin::Lost);
        suite.store.release(&key(), lost).await.unwrap();
        suite
            .store
            .fail(&key(), lost, &failure(1), false)
            .await
            .unwrap();
        assert!(suite.record().await.failure.is_none());
        assert!(matches!(suite.claim(0, now()).await, Claim::Busy(_)));
        suite.granted(holder).await;
    }
}

#[tokio::test]
async fn r04_a_late_writer_overwrites_nothing() {
    for suite in Suite::both().await {
        let late = suite.lease(0).await;
        suite.granted(late).await;
        suite.lease_expires().await;
        let version = suite.stored("newer").await;
        assert_eq!(suite.write(late, "older").await, Written::Superseded);
        let record = suite.record().await;
        let credential = record.credential.unwrap();
        assert_eq!(credential.secret.expose_secret(), "newer");
        assert_eq!(credential.version, version);
        // What the late writer fetched may have ended the newer one. That is in doubt anyway, since it died within its call.
        assert_eq!(record.verify, Some(later(60)));
    }
}

#[tokio::test]
async fn r04_what_a_late_writer_may_have_ended_is_refreshed_when_the_floor_allows() {
    for suite in Suite::both().await {
        let late = suite.lease(0).await;
        suite.lease_expires().await;
        suite.stored("newer").await;
        assert_eq!(suite.record().await.verify, None);
        assert_eq!(suite.write(late, "older").await, Written::Superseded);
        assert_eq!(suite.record().await.verify, Some(later(30)));
    }
}

#[tokio::test]
async fn r15_a_takeover_of_a_call_that_began_is_verified_a_minute_later() {
    for suite in Suite::both().await {
        let dead = suite.lease(0).await;
        suite.granted(dead).await;
        suite.lease_expires().await;
        let heir = suite.lease(0).await;
        assert!(heir.takeover);
        suite.granted(heir).await;
        let Written::Stored(version) = suite.write(heir, "token").await else {
            unreachable!("the heir is the newest")
        };
        assert_eq!(suite.record().await.verify, Some(later(60)));
        let next = suite.lease(version).await;
        assert!(!next.takeover);
        // One that comes sooner takes the doubt over: the dead holder's request may be on its way yet.
        suite.granted(next).await;
        let Written::Stored(version) = suite.write(next, "sooner").await else {
            unreachable!("nobody else writes")
        };
        assert_eq!(suite.record().await.verify, Some(later(60)));
        let last = suite.lease(version).await;
        suite.granted(last).await;
        let verified = Fresh {
            times: Policy::Classic.plan(later(60), Duration::from_secs(7200), 0.0),
            ..fresh("verified", Policy::Classic)
        };
        let written = suite.store.write(&key(), last, &verified, later(60)).await;
        assert!(matches!(written, Ok(Written::Stored(_))));
        assert_eq!(suite.record().await.verify, None);
    }
}

#[tokio::test]
async fn r15_a_failure_that_may_have_reached_wechat_stays_in_doubt() {
    for suite in Suite::both().await {
        for (ambiguous, takeover) in [(false, false), (true, true)] {
            let lease = suite.lease(0).await;
            suite.granted(lease).await;
            suite
                .store
                .fail(&key(), lease, &failure(2), ambiguous)
                .await
                .unwrap();
            assert_eq!(suite.record().await.failure, Some(failure(2)));
            let next = suite.lease(0).await;
            assert_eq!(next.takeover, takeover);
            suite.store.release(&key(), next).await.unwrap();
        }
    }
}

#[tokio::test]
async fn r15_a_call_that_began_and_never_ended_is_verified_though_nothing_is_due() {
    for suite in Suite::both().await {
        let version = suite.stored("token").await;
        assert_eq!(suite.record().await.verify, None);
        for died_at in [0, 50] {
            suite.lease_expires().await;
            let dead = suite.lease(version).await;
            suite.begin(dead, None, later(died_at)).await;
            let record = suite.record().await;
            // It may be under way yet. One that died later puts nothing off.
            assert_eq!(record.doubt(later(10)), None);
            assert_eq!(record.doubt(later(11)), Some(later(60)));
        }
    }
}

#[tokio::test]
async fn r15_a_doubt_that_the_store_has_lost_comes_back_with_the_value_or_its_successor() {
    for suite in Suite::both().await {
        let verify = || async { suite.record().await.verify };
        let held = |version, secret: &str| Credential {
            secret: secret.into(),
            version,
            policy: Policy::Classic,
            times: fresh("", Policy::Classic).times,
        };
        let restore = async |version, doubt| {
            let held = held(version, "held");
            suite.store.restore(&key(), &held, doubt).await.unwrap();
        };
        restore(7, None).await;
        assert_eq!(verify().await, None);
        restore(7, Some(later(40))).await;
        assert_eq!(verify().await, Some(later(40)));
        restore(7, Some(later(20))).await;
        restore(6, Some(later(50))).await;
        assert_eq!(verify().await, Some(later(40)), "the last one that counts");
        let write = async |asked, doubt| {
            let lease = suite.lease(suite.record().await.version()).await;
            suite.granted(lease).await;
            let fresh = Fresh {
                times: Policy::Classic.plan(later(asked), Duration::from_secs(7200), 0.0),
                doubt,
                ..fresh("next", Policy::Classic)
            };
            let written = suite.store.write(&key(), lease, &fresh, later(asked)).await;
            assert!(matches!(written, Ok(Written::Stored(_))));
        };
        write(30, Some(later(45))).await;
        assert_eq!(verify().await, Some(later(45)));
        write(45, Some(later(45))).await;
        assert_eq!(verify().await, None);
    }
}

#[tokio::test]
async fn r04_a_late_writer_overwrites_nothing_that_was_put_back() {
    for suite in Suite::both().await {
        let late = suite.lease(0).await;
        suite.granted(late).await;
        let held = Credential {
            secret: "newer".into(),
            version: late.fence + 1,
            policy: Policy::Classic,
            times: fresh("newer", Policy::Classic).times,
        };
        suite.store.restore(&key(), &held, None).await.unwrap();
        assert_eq!(suite.write(late, "older").await, Written::Superseded);
        assert_eq!(suite.record().await.version(), held.version);
    }
}

#[tokio::test]
async fn versions_grow_and_the_same_text_keeps_its_own() {
    for suite in Suite::both().await {
        let first = suite.stored("a").await;
        assert_eq!(suite.stored("a").await, first);
        let second = suite.stored("b").await;
        assert!(second > first);
        let record = suite.record().await;
        let credential = record.credential.as_ref().unwrap();
        assert_eq!(record.version_of(&credential.digest()), Some(second));
        assert_eq!(record.history.len(), 2);
        for index in 0..20 {
            suite.stored(&format!("token {index}")).await;
        }
        assert_eq!(suite.record().await.history.len(), HISTORY);
    }
}

#[tokio::test]
async fn versions_and_fences_grow_beyond_what_a_replica_held_when_the_store_is_emptied() {
    for suite in Suite::both().await {
        let held = NOW_MS * 2;
        let lease = suite.lease(held).await;
        assert!(lease.fence > held);
        let fresh = Fresh {
            highest: held,
            ..fresh("a", Policy::Stable)
        };
        let written = suite
            .store
            .write(&key(), lease, &fresh, now())
            .await
            .unwrap();
        let beyond = |version| version > held && version > lease.fence;
        assert!(matches!(written, Written::Stored(version) if beyond(version)));
    }
}

#[tokio::test]
async fn a_lost_value_is_put_back_and_a_newer_one_stays() {
    for suite in Suite::both().await {
        let held = Credential {
            secret: "held".into(),
            version: 7,
            policy: Policy::Stable,
            times: fresh("", Policy::Stable).times,
        };
        suite.store.restore(&key(), &held, None).await.unwrap();
        let record = suite.record().await;
        assert_eq!(record.version(), 7);
        assert_eq!(record.version_of(&held.digest()), Some(7));
        let version = suite.stored("newer").await;
        suite.store.restore(&key(), &held, None).await.unwrap();
        assert_eq!(suite.record().await.version(), version);
    }
}

#[tokio::test]
async fn r08_forced_refreshes_are_apart_and_counted_by_the_day() {
    for suite in Suite::both().await {
        let force = async |now: SystemTime| {
            suite.lease_expires().await;
            let Claim::Granted(lease) = suite.claim(0, now).await else {
                unreachable!("the lease is over")
            };
            suite.begin(lease, Some(2), now).await
        };
        let counted = |begin: Begin| match begin {
            Begin::Granted(ledger) => (ledger.calls, ledger.forced),
            refused => unreachable!("{refused:?}"),
        };
        assert_eq!(counted(force(now()).await), (1, 1));
        assert_eq!(force(later(1)).await, Begin::NotForced(later(30)));
        assert_eq!(counted(force(later(31)).await), (2, 2));
        let midnight = reset(now());
        assert_eq!(force(later(62)).await, Begin::NotForced(midnight));
        assert_eq!(counted(force(midnight).await), (1, 1));
    }
}

#[tokio::test]
async fn r08_a_day_has_so_many_calls_and_the_next_day_as_many() {
    for suite in Suite::both().await {
        let lease = suite.lease(0).await;
        for call in 1..=CALLS {
            assert_eq!(suite.granted(lease).await.calls, call);
        }
        assert_eq!(suite.begin(lease, None, now()).await, Begin::Spent);
        suite.lease_expires().await;
        let tomorrow = reset(now());
        let Claim::Granted(lease) = suite.claim(0, tomorrow).await else {
            unreachable!("the lease is over")
        };
        let Begin::Granted(ledger) = suite.begin(lease, None, tomorrow).await else {
            unreachable!("a new day")
        };
        assert_eq!(ledger.calls, 1);
    }
}

#[tokio::test]
async fn r08_an_exhausted_quota_is_remembered_to_the_end_of_the_day() {
    for suite in Suite::both().await {
        let lost = suite.lease(0).await;
        suite.granted(lost).await;
        suite.lease_expires().await;
        // Even by whoever heard of it too late.
        let cause = Cause::Refused {
            call: Call::Token,
            errcode: 45009,
            errmsg: String::new(),
            rid: None,
        };
        let failure = Failure::new(cause, "s".to_owned(), None, now(), 0.5);
        suite
            .store
            .fail(&key(), lost, &failure, false)
            .await
            .unwrap();
        assert!(suite.record().await.ledger.exhausted);
        let lease = suite.lease(0).await;
        assert_eq!(suite.begin(lease, None, now()).await, Begin::Spent);
        assert!(!suite.record().await.ledger.on(reset(now())).exhausted);
    }
}

#[tokio::test]
async fn a_lost_ledger_is_put_back_and_an_older_page_is_not() {
    for suite in Suite::both().await {
        let page = Ledger {
            calls: 7,
            forced: 2,
            exhausted: true,
            ..Ledger::default().on(now())
        };
        suite.store.enter(&key(), page).await.unwrap();
        assert_eq!(suite.record().await.ledger, page);
        let older = Ledger {
            day: page.day - 1,
            calls: 50,
            ..Ledger::default()
        };
        suite.store.enter(&key(), older).await.unwrap();
        let more = Ledger {
            rejected: 1,
            forced: 1,
            ..page
        };
        suite.store.enter(&key(), more).await.unwrap();
        let both = Ledger {
            rejected: 1,
            ..page
        };
        assert_eq!(suite.record().await.ledger, both);
    }
}

#[tokio::test]
async fn r14_tokens_that_were_replaced_after_a_report_are_counted() {
    for suite in Suite::both().await {
        for secret in ["a", "b", "b", "c"] {
            let lease = suite.lease(suite.record().await.version()).await;
            suite.granted(lease).await;
            let fresh = Fresh {
                reported: true,
                ..fresh(secret, Policy::Stable)
            };
            suite
                .store
                .write(&key(), lease, &fresh, now())
                .await
                .unwrap();
        }
        assert_eq!(suite.record().await.ledger.rejected, 3);
    }
}

#[tokio::test]
async fn everybody_hears_of_changes_and_failures() {
    for suite in Suite::both().await {
        let (heard, mut events) = tokio::sync::mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let (store, stopped) = (suite.store.clone(), stop.clone());
        tracker.spawn(async move {
            let tell = move |event| {
                let _ = heard.send(event);
            };
            store.follow(&stopped, tell).await;
        });
        let mut next = async || {
            eventually("an event", Duration::from_secs(10), async || {
                events.try_recv()
            })
            .await
        };
        assert_eq!(next().await, Event::Missed);
        suite.stored("a").await;
        assert_eq!(next().await, Event::Changed(key()));
        let version = suite.record().await.version();
        let lease = suite.lease(version).await;
        suite
            .store
            .fail(&key(), lease, &failure(1), false)
            .await
            .unwrap();
        assert_eq!(next().await, Event::Changed(key()));
        stop.cancel();
        tracker.close();
        tracker.wait().await;
    }
}

#[tokio::test]
async fn redis_holds_no_secret_in_clear_and_every_key_ends() {
    let [_, suite] = Suite::both().await;
    suite.stored("s3cr3t").await;
    let lease = suite.lease(suite.record().await.version()).await;
    suite.granted(lease).await;
    let Store::Redis(store) = &suite.store else {
        unreachable!("the second suite is on Redis")
    };
    let dump = store.dump().await;
    assert_eq!(dump.len(), 2);
    for (key, ttl, text) in dump {
        assert!(
            key.starts_with("wxhub:token:v1:{wx0000000000000001}:access_token"),
            "{key}"
        );
        assert!(ttl > 0, "{key}");
        assert!(!text.contains("s3cr3t"), "{text}");
    }
}

#[tokio::test]
async fn a_value_sealed_under_another_key_is_an_error_and_not_nothing() {
    let redis = Redis::start().await;
    let store = || {
        let url = redis.url();
        let client = ::redis::Client::open(url.as_str()).unwrap();
        let connection = service_kit::storage::redis(&url.into()).unwrap();
        Suite {
            store: Store::in_redis(connection, client, Sealer::ephemeral()),
            _redis: None,
        }
    };
    let stored = store().stored("a").await;
    let error = store().store.load(&key()).await.unwrap_err();
    let Error::Unreadable {
        version, expire, ..
    } = error
    else {
        unreachable!("{error}")
    };
    assert_eq!(version, stored);
    assert_eq!(expire, Some(fresh("", Policy::Classic).times.expire));
}
