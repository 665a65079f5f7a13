//! What the replicas of one schedule share.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use token_service::credential::store::Store;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{judge::Judge, wechat::WeChat};

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
    pub(crate) cuts: bool,
    pub(crate) empties: bool,
    pub(crate) skew: bool,
    /// Requests and answers that are late, and answers that are lost.
    pub(crate) network: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dice: Dice,
    judge: Mutex<Judge>,
    wechat: Mutex<WeChat>,
    store: Mutex<(Store, CancellationToken)>,
    pub(crate) classic: bool,
    pub(crate) faults: Faults,
    pub(crate) fences: Fences,
    /// The highest fence that wrote, for [`Fences::Ignored`].
    pub(crate) written: Mutex<u64>,
    /// No more faults.
    pub(crate) calm: CancellationToken,
    /// Requests on their way: they outlive their senders.
    pub(crate) wire: TaskTracker,
}

impl World {
    pub(crate) fn new(seed: u64, fences: Fences) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut often = || rng.random_bool(0.6);
        let faults = Faults {
            crashes: often(),
            stalls: often(),
            cuts: often(),
            empties: often(),
            skew: often(),
            network: often(),
        };
        let classic = rng.random_bool(0.7);
        let life = [60, 900, 7_200][rng.random_range(0..3)];
        let mut judge = Judge::new(Instant::now());
        judge.note(format_args!(
            "classic: {classic}, a life of {life} s, {faults:?}"
        ));
        Self {
            dice: Dice(Mutex::new(rng)),
            judge: Mutex::new(judge),
            wechat: Mutex::new(WeChat::new(Duration::from_secs(life))),
            store: Mutex::new((Store::in_memory(), CancellationToken::new())),
            classic,
            faults,
            fences,
            written: Mutex::default(),
            calm: CancellationToken::new(),
            wire: TaskTracker::new(),
        }
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
        *self.written.lock().unwrap() = 0;
        let anew = (Store::in_memory(), CancellationToken::new());
        let (_, lost) = std::mem::replace(&mut *self.store.lock().unwrap(), anew);
        lost.cancel();
    }

    /// Sleeps, but not longer than faults last.
    pub(crate) async fn sleep_until(&self, until: Instant) {
        let sleep = tokio::time::sleep_until(until);
        self.calm.run_until_cancelled(sleep).await;
    }
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

    /// A duration: of tens of milliseconds, some seconds, or most of a minute.
    pub(crate) fn span(&self) -> Duration {
        let most = [100, 2_000, 9_000, 40_000][usize::try_from(self.below(4)).unwrap()];
        Duration::from_millis(self.below(most))
    }
}
