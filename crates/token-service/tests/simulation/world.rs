//! What the replicas of one schedule share.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use service_kit::Clock;
use token_service::credential::{Key, Kind, ledger::Ledger, store::Store};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wechat::AppId;

use crate::{judge::Judge, wechat::WeChat};

/// The true time at the start of most schedules: an afternoon in Beijing.
const START: Duration = Duration::from_secs(1_800_000_000);
/// Beijing's time is ahead of UTC by this.
const BEIJING: Duration = Duration::from_secs(8 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Whether the store refuses writers whose lease somebody else has had since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fences {
    Checked,
    /// Broken on purpose: the simulation has to notice.
    Ignored,
}

/// Which faults a schedule has: a mix of few tells more than all of them at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) crashes: bool,
    pub(crate) stalls: bool,
    /// The machines of all replicas sleep: time goes on, and their timers do not.
    pub(crate) suspends: bool,
    pub(crate) cuts: bool,
    /// Events do not come.
    pub(crate) deafness: bool,
    pub(crate) empties: bool,
    pub(crate) skew: bool,
    /// Requests and answers that are late, and answers that are lost.
    pub(crate) network: bool,
    /// The day's calls are nearly used up, as WeChat counts or as the ledger does.
    pub(crate) scarcity: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dice: Dice,
    judge: Mutex<Judge>,
    wechat: Mutex<WeChat>,
    store: Mutex<(Store, CancellationToken)>,
    pub(crate) app: AppId,
    pub(crate) classic: bool,
    pub(crate) tickets: bool,
    pub(crate) faults: Faults,
    pub(crate) fences: Fences,
    /// The highest fence that wrote, for [`Fences::Ignored`].
    pub(crate) written: Mutex<HashMap<Kind, u64>>,
    /// The true time.
    pub(crate) clock: Clock,
    suspended: Notify,
    /// No more faults.
    pub(crate) calm: CancellationToken,
    /// Requests on their way: they outlive their senders.
    pub(crate) wire: TaskTracker,
}

impl World {
    pub(crate) fn new(seed: u64, fences: Fences, notes: bool) -> Self {
        let dice = Dice(Mutex::new(StdRng::seed_from_u64(seed)));
        let often = || dice.chance(0.5);
        let faults = Faults {
            crashes: often(),
            stalls: often(),
            suspends: dice.chance(0.3),
            cuts: often(),
            deafness: dice.chance(0.3),
            empties: often(),
            skew: often(),
            network: often(),
            scarcity: dice.chance(0.2),
        };
        let classic = dice.chance(0.7);
        let tickets = dice.chance(0.4);
        let life = Duration::from_secs(*dice.pick(&[20, 60, 900, 7_200]));
        let quota = (faults.scarcity && dice.chance(0.7)).then(|| 1 + dice.number(8));
        let start = if dice.chance(0.2) {
            let day = (START + BEIJING).div_duration_f64(DAY).ceil();
            DAY.mul_f64(day) - BEIJING - Duration::from_secs(dice.below(120))
        } else {
            START
        };
        let clock = Clock::tokio(UNIX_EPOCH + start);
        let mut judge = Judge::new(clock.clone(), notes);
        judge.note(format_args!(
            "classic: {classic}, tickets: {tickets}, a life of {life:?}, a quota of {quota:?}, {faults:?}"
        ));
        judge.scarce = faults.scarcity;
        let world = Self {
            dice,
            judge: Mutex::new(judge),
            wechat: Mutex::new(WeChat::new(life, quota)),
            store: Mutex::new((Store::in_memory(clock.clone()), CancellationToken::new())),
            app: "wx0000000000000002".parse().unwrap(),
            classic,
            tickets,
            faults,
            fences,
            written: Mutex::default(),
            clock,
            suspended: Notify::new(),
            calm: CancellationToken::new(),
            wire: TaskTracker::new(),
        };
        if faults.scarcity {
            world.use_up();
        }
        world
    }

    /// Leaves a few calls of the day's budgets.
    fn use_up(&self) {
        let budget = if self.classic { 2_000 } else { 10_000 };
        for key in self.keys() {
            let all = match key.kind {
                Kind::AccessToken => budget,
                Kind::JsapiTicket | Kind::WxCardTicket => 2_000,
            };
            // What the reserve is kept from, or all.
            let limit = *self.dice.pick(&[all - all / 10, all]);
            let ledger = Ledger {
                calls: limit - self.dice.number(6),
                forced: *self.dice.pick(&[0, 14, 19]),
                ..Ledger::default().on(self.clock.now())
            };
            let entered = self.store().enter(&key, ledger).now_or_never();
            entered.unwrap().unwrap();
        }
    }

    /// The credentials that are used.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let kinds = [Kind::AccessToken, Kind::JsapiTicket];
        let used = if self.tickets { 2 } else { 1 };
        let keys = kinds.into_iter().take(used).map(|kind| Key {
            app: self.app.clone(),
            kind,
        });
        keys.collect()
    }

    pub(crate) fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap()
    }

    pub(crate) fn wechat(&self) -> MutexGuard<'_, WeChat> {
        self.wechat.lock().unwrap()
    }

    pub(crate) fn store(&self) -> Store {
        self.connect().0
    }

    /// The store, and what is cancelled when it is emptied.
    pub(crate) fn connect(&self) -> (Store, CancellationToken) {
        self.store.lock().unwrap().clone()
    }

    /// The store restarts without what it kept.
    pub(crate) fn empty_store(&self) {
        self.judge().emptied();
        self.written.lock().unwrap().clear();
        let anew = (
            Store::in_memory(self.clock.clone()),
            CancellationToken::new(),
        );
        let (_, lost) = std::mem::replace(&mut *self.store.lock().unwrap(), anew);
        lost.cancel();
    }

    /// Time goes on that no timer sees.
    pub(crate) fn suspend(&self, span: Duration) {
        self.judge()
            .happens("suspend", format_args!("all sleep for {span:?}"));
        self.clock.suspend(span);
        self.suspended.notify_waiters();
    }

    /// Sleeps, but not longer than faults last.
    pub(crate) async fn sleep_until(&self, until: Instant) {
        let sleep = tokio::time::sleep_until(until);
        self.calm.run_until_cancelled(sleep).await;
    }

    /// How long what is sent is on its way, even while all machines sleep.
    pub(crate) async fn travel(&self, span: Duration) {
        let arrival = self.clock.elapsed() + span;
        loop {
            let suspended = self.suspended.notified();
            let left = arrival.saturating_sub(self.clock.elapsed());
            tokio::select! {
                biased;
                () = sleep(left) => return,
                () = suspended => {}
            }
        }
    }
}

/// The day of Beijing's calendar.
pub(crate) fn beijing_day(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap() + BEIJING;
    since.as_secs() / DAY.as_secs()
}

/// Where chance comes from. Each process has dice of its own: tokio wakes the waiters of one value in any order, which must
/// not change who draws what.
#[derive(Debug)]
pub(crate) struct Dice(Mutex<StdRng>);

impl Dice {
    /// Others that depend on these.
    pub(crate) fn fork(&self) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(self.below(u64::MAX))))
    }

    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.0.lock().unwrap().random_bool(probability)
    }

    /// A number below `end`.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.0.lock().unwrap().random_range(0..end)
    }

    /// The same, of a small kind.
    pub(crate) fn number(&self, end: u32) -> u32 {
        self.0.lock().unwrap().random_range(0..end)
    }

    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let at = self.0.lock().unwrap().random_range(0..of.len());
        &of[at]
    }

    /// A duration: of tens of milliseconds, some seconds, or most of a minute.
    pub(crate) fn span(&self) -> Duration {
        Duration::from_millis(self.below(*self.pick(&[100, 2_000, 9_000, 40_000])))
    }
}
