//! The broker in simulated time, over a WeChat of this file's own.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use secrecy::ExposeSecret as _;
use service_kit::{Catalog, CatalogHandle, Clock, catalog::Needs, ops::Readiness};
use token_service::{
    Broker, Error,
    credential::{Key, Kind, ledger::Ledger, slot::Held, store::Store},
    random::Random,
    refresh, report, sync,
    upstream::Upstream,
};
use tokio::{
    task::JoinSet,
    time::{Instant, advance},
};
use tokio_util::sync::CancellationToken;
use wechat::{AccessToken, ApiError, AppId, AppSecret, ErrCode, Issued, Ticket, TicketType};

use crate::world::{CATALOG, NEWS, SHOP};

/// What WeChat does, and what was asked of it.
#[derive(Debug, Clone, Default)]
struct FakeWeChat(Arc<Mutex<Fake>>);

#[derive(Debug, Default)]
struct Fake {
    classic: Vec<String>,
    /// The current stable token and how many there were.
    stable: u32,
    stable_calls: u32,
    forced_calls: u32,
    tickets: u32,
    ticket_calls: u32,
    /// Refuse the token of the next ticket calls.
    refuse_tickets: u32,
    down: bool,
    hangs: bool,
    /// Says that the day's quota is used up.
    quota_gone: bool,
    /// Calls while it was down or hung, or refused them for their number.
    failed_calls: u32,
    /// When it was called.
    called: Vec<Instant>,
}

const LIFE: Duration = Duration::from_secs(7_200);

impl FakeWeChat {
    fn lock(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }

    async fn pass(&self, endpoint: &'static str) -> Result<(), wechat::Error> {
        let (down, hangs, quota_gone) = {
            let mut fake = self.lock();
            fake.called.push(Instant::now());
            fake.failed_calls += u32::from(fake.down || fake.hangs || fake.quota_gone);
            (fake.down, fake.hangs, fake.quota_gone)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        if down {
            return Err(wechat::Error::Timeout { endpoint });
        }
        if quota_gone {
            return Err(refused(endpoint, ErrCode::DAILY_QUOTA));
        }
        Ok(())
    }
}

fn refused(endpoint: &'static str, errcode: ErrCode) -> wechat::Error {
    wechat::Error::Api(ApiError {
        endpoint,
        errcode,
        errmsg: "refused".to_owned(),
        rid: None,
    })
}

fn issued<T>(value: T) -> Issued<T> {
    Issued {
        value,
        expires_in: LIFE,
    }
}

impl Upstream for FakeWeChat {
    fn access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, wechat::Error>> {
        Box::pin(async move {
            self.pass("/cgi-bin/token").await?;
            let mut fake = self.lock();
            let token = format!("classic {}", fake.classic.len());
            fake.classic.push(token.clone());
            Ok(issued(AccessToken::new(token)))
        })
    }

    fn stable_access_token<'a>(
        &'a self,
        _: &'a AppId,
        _: &'a AppSecret,
        force: bool,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, wechat::Error>> {
        Box::pin(async move {
            self.pass("/cgi-bin/stable_token").await?;
            let mut fake = self.lock();
            fake.stable_calls += 1;
            fake.forced_calls += u32::from(force);
            fake.stable += u32::from(force);
            Ok(issued(AccessToken::new(format!("stable {}", fake.stable))))
        })
    }

    fn ticket<'a>(
        &'a self,
        _: &'a AccessToken,
        _: TicketType,
    ) -> BoxFuture<'a, Result<Issued<Ticket>, wechat::Error>> {
        Box::pin(async move {
            self.pass("/cgi-bin/ticket/getticket").await?;
            let mut fake = self.lock();
            fake.ticket_calls += 1;
            if fake.refuse_tickets > 0 {
                fake.refuse_tickets -= 1;
                let endpoint = "/cgi-bin/ticket/getticket";
                return Err(refused(endpoint, ErrCode::INVALID_CREDENTIAL));
            }
            fake.tickets += 1;
            Ok(issued(Ticket::new(format!("ticket {}", fake.tickets))))
        })
    }
}

/// Replicas of one store.
struct Simulation {
    wechat: FakeWeChat,
    clock: Clock,
    store: Store,
    catalog: String,
    replicas: Vec<Broker>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Simulation {
    fn start(replicas: u64) -> Self {
        Self::with_catalog(replicas, CATALOG.to_owned())
    }

    fn with_catalog(replicas: u64, catalog: String) -> Self {
        let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let mut simulation = Self {
            wechat: FakeWeChat::default(),
            store: Store::in_memory(clock.clone()),
            clock,
            catalog,
            replicas: Vec::new(),
            stop: CancellationToken::new(),
            running: JoinSet::new(),
        };
        for seed in 0..replicas {
            simulation.add_replica(seed);
        }
        simulation
    }

    fn add_replica(&mut self, seed: u64) {
        let needs = Needs {
            app_secrets: true,
            callbacks: false,
        };
        let catalog = Catalog::parse(&self.catalog, needs, |_| None).unwrap();
        let (broker, fresh) = Broker::new(
            CatalogHandle::fixed(catalog),
            self.store.clone(),
            Arc::new(self.wechat.clone()),
            self.clock.clone(),
            Random::seeded(seed),
        );
        let refreshing = refresh::run(broker.clone(), fresh, self.stop.clone());
        self.running.spawn(refreshing.map(|_| ()));
        let syncing = sync::run(broker.clone(), Readiness::default(), self.stop.clone());
        self.running.spawn(syncing.map(|_| ()));
        self.replicas.push(broker);
    }

    async fn get(&self, replica: usize, key: &Key) -> Result<Arc<Held>, Error> {
        self.replicas[replica].get(key).await
    }

    async fn report(&self, key: &Key, version: u64) -> Result<Arc<Held>, Error> {
        report::report(&self.replicas[0], key, version, ErrCode::INVALID_CREDENTIAL).await
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }
}

fn token_of(app: &str) -> Key {
    Key::access_token(&app.parse().unwrap())
}

fn text(held: &Held) -> &str {
    held.credential.secret.expose_secret()
}

#[tokio::test(start_paused = true)]
async fn r02_r06_a_day_of_two_replicas_costs_one_call_for_each_life() {
    let simulation = Simulation::start(2);
    let key = token_of(NEWS);
    simulation.get(0, &key).await.unwrap();
    let end = simulation.now() + Duration::from_secs(24 * 3600);
    while simulation.now() < end {
        for replica in 0..2 {
            let asked = tokio::time::Instant::now();
            let held = simulation.get(replica, &key).await.unwrap();
            assert_eq!(asked.elapsed(), Duration::ZERO, "a read never waits");
            // Never more than one behind, and that one only for the moment of a rotation.
            let newest = simulation.wechat.lock().classic.len();
            let expected = format!("classic {}", newest - 1);
            assert!(text(&held) == expected || newest > 1);
            assert!(held.credential.times.expire > simulation.now());
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    // 24 h over lives of 7,195 s less a lead of 540 to 660 s.
    let calls = simulation.wechat.lock().classic.len();
    assert!((13..=15).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn r02_a_stable_token_that_comes_back_the_same_is_asked_for_by_one_replica() {
    let simulation = Simulation::start(3);
    let key = token_of(SHOP);
    let before = simulation.get(0, &key).await.unwrap();
    tokio::time::sleep(LIFE).await;
    for replica in 0..3 {
        let held = simulation.get(replica, &key).await.unwrap();
        assert_eq!(held.credential.version, before.credential.version);
        assert!(held.credential.times.expire > before.credential.times.expire);
    }
    assert_eq!(simulation.wechat.lock().stable_calls, 2);
}

#[tokio::test(start_paused = true)]
async fn r01_r07_any_number_of_reports_of_one_version_causes_one_refresh() {
    for app in [SHOP, NEWS] {
        let simulation = Simulation::start(1);
        let key = token_of(app);
        let before = simulation.get(0, &key).await.unwrap();
        advance(Duration::from_secs(31)).await;
        let version = before.credential.version;
        let reports = (0..100).map(|_| simulation.report(&key, version));
        let after = join_all(reports).await;
        let first = after[0].as_ref().unwrap();
        assert_ne!(text(first), text(&before));
        for held in &after {
            assert_eq!(text(held.as_ref().unwrap()), text(first));
        }
        // A report of the old one, much later, is answered at once.
        advance(Duration::from_secs(31)).await;
        let asked = tokio::time::Instant::now();
        let held = simulation.report(&key, version).await.unwrap();
        assert_eq!(
            (text(&held), asked.elapsed()),
            (text(first), Duration::ZERO)
        );
        let fake = simulation.wechat.lock();
        if app == NEWS {
            assert_eq!(fake.classic.len(), 2);
        } else {
            // Asked for in normal mode first; the same came back, so the second call was forced.
            assert_eq!((fake.stable_calls, fake.forced_calls), (3, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stable_token_that_changed_by_itself_is_not_forced() {
    let simulation = Simulation::start(1);
    let key = token_of(SHOP);
    let before = simulation.get(0, &key).await.unwrap();
    advance(Duration::from_secs(31)).await;
    simulation.wechat.lock().stable += 1;
    let after = simulation
        .report(&key, before.credential.version)
        .await
        .unwrap();
    assert_eq!(text(&after), "stable 1");
    assert_eq!(simulation.wechat.lock().forced_calls, 0);
}

#[tokio::test(start_paused = true)]
async fn r08_forced_refreshes_leave_a_reserve_for_operators() {
    let simulation = Simulation::start(1);
    let key = token_of(SHOP);
    let mut held = simulation.get(0, &key).await.unwrap();
    let mut forced = 0;
    loop {
        advance(Duration::from_secs(31)).await;
        match simulation.report(&key, held.credential.version).await {
            Ok(replaced) => held = replaced,
            Err(Error::ForceSpent { .. }) => break,
            Err(error) => unreachable!("{error}"),
        }
        forced += 1;
    }
    assert_eq!(forced, 15);
    advance(Duration::from_secs(31)).await;
    let by_hand = report::refresh(&simulation.replicas[0], &key, true)
        .await
        .unwrap();
    assert!(by_hand.credential.version > held.credential.version);
    assert_eq!(simulation.wechat.lock().forced_calls, 16);
}

#[tokio::test(start_paused = true)]
async fn r05_while_wechat_is_down_the_current_value_is_served_to_its_end_and_not_beyond() {
    let simulation = Simulation::start(2);
    let key = token_of(NEWS);
    let before = simulation.get(0, &key).await.unwrap();
    simulation.wechat.lock().down = true;
    let expire = before.credential.times.expire;
    while simulation.now() + Duration::from_secs(10) < expire {
        for replica in 0..2 {
            assert_eq!(
                text(&simulation.get(replica, &key).await.unwrap()),
                text(&before)
            );
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    for replica in 0..2 {
        let refused = simulation.get(replica, &key).await.unwrap_err();
        assert!(matches!(refused, Error::Failed { .. }), "{refused}");
    }
    // About ten minutes, a call each 15 to 30 s once the pauses are at their longest.
    let calls = simulation.wechat.lock().failed_calls;
    assert!((15..=70).contains(&calls), "{calls}");

    simulation.wechat.lock().down = false;
    tokio::time::sleep(Duration::from_secs(45)).await;
    for replica in 0..2 {
        assert_ne!(
            text(&simulation.get(replica, &key).await.unwrap()),
            text(&before)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r15_a_call_that_hangs_ends_within_its_lease() {
    let simulation = Simulation::start(1);
    simulation.wechat.lock().hangs = true;
    let asked = tokio::time::Instant::now();
    let refused = simulation.get(0, &token_of(NEWS)).await.unwrap_err();
    assert!(matches!(refused, Error::Failed { .. }), "{refused}");
    assert_eq!(asked.elapsed().as_millis(), 3_500);
}

#[tokio::test(start_paused = true)]
async fn r15_a_call_whose_fate_is_unknown_is_followed_by_a_verifying_refresh() {
    let simulation = Simulation::start(1);
    let key = token_of(NEWS);
    simulation.wechat.lock().down = true;
    simulation.get(0, &key).await.unwrap_err();
    simulation.wechat.lock().down = false;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let unsure = simulation.get(0, &key).await.unwrap();
    tokio::time::sleep(Duration::from_secs(65)).await;
    let verified = simulation.get(0, &key).await.unwrap();
    assert!(verified.credential.version > unsure.credential.version);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(simulation.wechat.lock().classic.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn r10_a_ticket_refused_for_its_token_gets_one_new_token_and_no_more() {
    let simulation = Simulation::start(1);
    let token = token_of(NEWS);
    simulation.get(0, &token).await.unwrap();
    advance(Duration::from_secs(31)).await;
    let ticket = Key {
        app: token.app.clone(),
        kind: Kind::JsapiTicket,
    };
    simulation.wechat.lock().refuse_tickets = 1;
    assert_eq!(text(&simulation.get(0, &ticket).await.unwrap()), "ticket 1");
    assert_eq!(simulation.wechat.lock().classic.len(), 2);

    let card = Key {
        app: token.app.clone(),
        kind: Kind::WxCardTicket,
    };
    advance(Duration::from_secs(31)).await;
    simulation.wechat.lock().refuse_tickets = u32::MAX;
    simulation.get(0, &card).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let fake = simulation.wechat.lock();
    assert_eq!((fake.classic.len(), fake.ticket_calls), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn r10_a_ticket_that_is_due_waits_while_its_token_cannot_be_got() {
    let simulation = Simulation::start(1);
    let ticket = Key {
        kind: Kind::JsapiTicket,
        ..token_of(NEWS)
    };
    simulation.get(0, &ticket).await.unwrap();
    simulation.wechat.lock().down = true;
    // Both are due, and then expired; the ticket's refresher has nothing to ask WeChat for, and nothing to spin about.
    tokio::time::sleep(LIFE).await;
    simulation.get(0, &ticket).await.unwrap_err();
    simulation.wechat.lock().down = false;
    tokio::time::sleep(Duration::from_secs(60)).await;
    simulation.get(0, &ticket).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn r16_many_values_that_expired_during_a_suspend_cost_one_call_each() {
    let simulation = Simulation::start(2);
    let keys = [token_of(NEWS), token_of(SHOP)];
    for key in &keys {
        simulation.get(0, key).await.unwrap();
    }
    simulation.clock.suspend(Duration::from_secs(3 * 3600));
    let reads = (0..200).map(|n| simulation.get(n % 2, &keys[n % 3 % 2]));
    for held in join_all(reads).await {
        assert!(held.unwrap().credential.times.expire > simulation.now());
    }
    let fake = simulation.wechat.lock();
    assert_eq!(fake.classic.len(), 2);
    assert!(fake.stable_calls <= 3, "{}", fake.stable_calls);
}

#[tokio::test(start_paused = true)]
async fn r16_after_a_suspend_the_refreshes_that_are_due_at_once_are_spread() {
    const APPS: usize = 40;
    let apps = (0..APPS).map(|n| {
        format!(
            "[[apps]]\napp_id = \"wx{n:016}\"\nname = \"app-{n}\"\nkind = \"official_account\"\nsecret = \"s\"\n\
             token_mode = \"classic\"\n"
        )
    });
    let simulation = Simulation::with_catalog(2, apps.collect());
    for n in 0..APPS {
        let key = token_of(&format!("wx{n:016}"));
        simulation.get(0, &key).await.unwrap();
    }
    // Everybody's refresh is due.
    simulation.clock.suspend(Duration::from_secs(6_900));
    let resumed = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let fake = simulation.wechat.lock();
    assert_eq!(fake.called.len(), 2 * APPS, "one call each");
    let after: Vec<_> = fake.called[APPS..]
        .iter()
        .map(|called| called.duration_since(resumed).as_secs())
        .collect();
    let most = (0..20).map(|second| after.iter().filter(|at| **at == second).count());
    assert!(most.max().unwrap() <= APPS / 3, "{after:?}");
    assert!(*after.iter().max().unwrap() <= 20, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn r08_after_wechat_said_that_the_quota_is_gone_nobody_calls_before_midnight() {
    let mut simulation = Simulation::start(2);
    let key = token_of(NEWS);
    simulation.wechat.lock().quota_gone = true;
    let refused = simulation.get(0, &key).await.unwrap_err();
    assert!(matches!(refused, Error::Failed { .. }), "{refused}");
    simulation.wechat.lock().quota_gone = false;
    // Neither an operator, nor another replica, nor one that starts, nor time before midnight, which is in eight hours.
    let midnight = simulation.now() + Duration::from_secs(8 * 3600 + 60);
    simulation.add_replica(2);
    while simulation.now() + Duration::from_secs(600) < midnight {
        for broker in &simulation.replicas {
            let left = midnight.duration_since(simulation.now()).unwrap();
            match report::refresh(broker, &key, true).await {
                Err(Error::QuotaSpent { retry_after, .. }) => {
                    assert!(retry_after <= left && retry_after + Duration::from_secs(1) > left);
                }
                other => unreachable!("{other:?}"),
            }
            broker.get(&key).await.unwrap_err();
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(simulation.wechat.lock().called.len(), 1);
    tokio::time::sleep(Duration::from_secs(700)).await;
    simulation.get(1, &key).await.unwrap();
    assert_eq!(simulation.wechat.lock().called.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn r08_the_last_tenth_of_a_day_is_for_refreshes_that_somebody_asked_for() {
    let simulation = Simulation::start(1);
    let key = token_of(NEWS);
    let page = Ledger {
        calls: 1_799,
        ..Ledger::default().on(simulation.now())
    };
    simulation.store.enter(&key, page).await.unwrap();
    let first = simulation.get(0, &key).await.unwrap();
    // Its time comes, and is not its time.
    tokio::time::sleep(LIFE - Duration::from_secs(10)).await;
    assert_eq!(text(&simulation.get(0, &key).await.unwrap()), text(&first));
    let second = simulation
        .report(&key, first.credential.version)
        .await
        .unwrap();
    assert_ne!(text(&second), text(&first));
    let record = simulation.store.load(&key).await.unwrap().unwrap();
    assert_eq!(record.ledger.calls, 1_801);
    // A new day.
    tokio::time::sleep(Duration::from_secs(8 * 3600)).await;
    simulation.get(0, &key).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn r14_tokens_that_die_again_and_again_before_their_time_are_counted() {
    let simulation = Simulation::start(2);
    for app in [NEWS, SHOP] {
        let key = token_of(app);
        for _ in 0..3 {
            let held = simulation.get(0, &key).await.unwrap();
            advance(Duration::from_secs(31)).await;
            // Somebody else refreshed the app.
            let version = held.credential.version;
            simulation.report(&key, version).await.unwrap();
            // Who hears of it late says nothing new.
            simulation.report(&key, version).await.unwrap();
        }
        let record = simulation.store.load(&key).await.unwrap().unwrap();
        assert_eq!(record.ledger.rejected, 3);
    }
}
