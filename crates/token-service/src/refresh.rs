//! Refreshing: one task for each credential, one lease for each refresh, one call to WeChat for any number of callers.
//!
//! The task is the single flight within this replica, the lease the one across replicas. A call that began is never
//! given up because its callers left.

mod attempt;
mod jump;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::zeroize::Zeroizing;
use service_kit::{App, catalog::TokenMode};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span, warn};

use self::{
    attempt::{Attempt, Goal},
    jump::Moment,
};
use crate::{
    broker::{Broker, Fresh},
    credential::{
        Kind, Policy,
        ledger::{FORCE_APART, Use},
        slot::{Slot, State, Wish},
    },
    error::Error,
};

/// The longest sleep: timers stand still while the machine is suspended, and wall clocks jump.
const NAP: Duration = Duration::from_secs(10);
/// After a refresh that could not even begin, the next that nobody asks for waits this long, give or take half.
const PAUSE: Duration = Duration::from_secs(1);

/// Refreshes that are due all at once, because a clock jumped or the store was emptied, are spread over this long.
pub(crate) const SPREAD: Duration = Duration::from_secs(10);

/// Runs the refresher of every slot until `stop` is cancelled.
///
/// # Errors
/// None: a refresher that panics ends the service.
///
/// # Panics
/// When a refresher did.
pub async fn run(
    broker: Broker,
    mut fresh: Fresh,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut refreshers = JoinSet::new();
    loop {
        tokio::select! {
            // One order everywhere here, so that the seed of a simulation replays.
            biased;
            () = stop.cancelled() => break,
            Some(slot) = fresh.0.recv() => {
                refreshers.spawn(Refresher::new(broker.clone(), slot).run(stop.clone()));
            }
            Some(ended) = refreshers.join_next() => propagate(ended),
        }
    }
    while let Some(ended) = refreshers.join_next().await {
        propagate(ended);
    }
    Ok(())
}

fn propagate(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// How the app's settings bear on its refreshes, as one short text: a failure counts only for the settings it was made with.
pub(crate) fn settings(app: &App) -> String {
    let secret = app.secret.as_ref().map_or("", |secret| secret.expose());
    let text = Zeroizing::new(format!("{:?} {secret}", app.token_mode));
    let mut hash = hex::encode(Sha256::digest(text.as_bytes()));
    hash.truncate(16);
    hash
}

struct Refresher {
    broker: Broker,
    slot: Arc<Slot>,
    /// No forced refresh is left.
    force_spent: Option<ForceSpent>,
    /// Where the clocks stood when it woke last.
    seen: Moment,
    /// A clock jumped: what memory holds may be long replaced.
    stale: bool,
}

/// When reports cost a call again, and when one may be forced.
struct ForceSpent {
    ask_again: SystemTime,
    until: SystemTime,
}

impl Refresher {
    fn new(broker: Broker, slot: Arc<Slot>) -> Self {
        Self {
            seen: Moment::of(broker.clock()),
            broker,
            slot,
            force_spent: None,
            stale: false,
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.slot.changes();
        let mut catalog = self.broker.catalog().changes();
        let mut pause = None;
        loop {
            changes.mark_unchanged();
            let due = self.due(&self.slot.state(), pause);
            let wish = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.slot.gone.cancelled() => return,
                wish = self.slot.wished() => Some(wish),
                () = self.sleep_until(due) => None,
                Ok(()) = changes.changed() => continue,
                Ok(()) = catalog.changed() => continue,
            };
            if self.jumped() && wish.is_none() {
                let spread = SPREAD.mul_f64(self.broker.random().fraction());
                pause = Some(self.broker.clock().now() + spread);
                continue;
            }
            if wish.is_none() && due.is_none_or(|due| self.broker.clock().now() < due) {
                continue;
            }
            pause = None;
            // Shutdown waits for a call that began: its answer would be lost with it.
            let number = wish.as_ref().map(|wish| wish.number);
            let result = self.attend(wish).await;
            if let Err(error) = &result
                && self.broker.backing_off(&self.slot).is_ok()
            {
                let spread = 0.5 + self.broker.random().fraction();
                let base = match error {
                    // The token's, without which there is no ticket: its refresher goes on about it.
                    Error::Failed { .. } => NAP,
                    _ => PAUSE,
                };
                pause = Some(self.broker.clock().now() + base.mul_f64(spread));
            }
            if let Some(number) = number {
                self.slot.conclude(number, result);
            }
        }
    }

    /// Whether a clock jumped since this was asked last (R16).
    fn jumped(&mut self) -> bool {
        let now = Moment::of(self.broker.clock());
        let jumped = std::mem::replace(&mut self.seen, now).is_far_from(&now);
        self.stale |= jumped;
        jumped
    }

    /// Looks at what other replicas stored while this one did not know the time.
    async fn catch_up(&mut self) {
        // A store that is away is found out again by the refresh itself.
        if let Ok(record) = self.broker.load(&self.slot.key).await {
            self.slot.absorb(record.unwrap_or_default());
            self.stale = false;
        }
    }

    /// When the next refresh is due without anybody asking.
    fn due(&self, state: &State, pause: Option<SystemTime>) -> Option<SystemTime> {
        // What nobody ever used waits until somebody does.
        let held = state.held.as_ref()?;
        let (due, floor) = (held.refresh_time(), held.credential.times.floor);
        let failure = state.failure.as_ref();
        let failure = failure.filter(|failure| self.broker.still_counts(&self.slot.key, failure));
        let retry = failure.map(|failure| failure.retry_at);
        let spent = self.broker.spent_until(&self.slot, Use::Ordinary);
        [Some(due), Some(floor), retry, spent, pause]
            .into_iter()
            .flatten()
            .max()
    }

    async fn sleep_until(&self, due: Option<SystemTime>) {
        let left = due.map_or(NAP, |due| {
            due.duration_since(self.broker.clock().now())
                .unwrap_or_default()
        });
        tokio::time::sleep(left.min(NAP)).await;
    }

    /// Does what is wished, or, without a wish, what is due.
    async fn attend(&mut self, wish: Option<Wish>) -> Result<(), Error> {
        if self.stale {
            self.catch_up().await;
            let due = self.due(&self.slot.state(), None);
            if wish.is_none() && due.is_none_or(|due| self.broker.clock().now() < due) {
                return Ok(());
            }
        }
        let state = self.slot.state();
        let version = state.version();
        let goal = match &wish {
            None => Goal::Ahead,
            Some(wish) if wish.force => Goal::Force,
            Some(wish) if wish.operator => Goal::Operator,
            Some(wish) if wish.replace == Some(version) => Goal::Reported,
            Some(_) if self.slot.valid().is_none() => Goal::Missing,
            // Somebody else was faster.
            Some(_) => return Ok(()),
        };
        if !matches!(goal, Goal::Force | Goal::Operator) {
            self.broker.backing_off(&self.slot)?;
        }
        self.broker.within_budget(&self.slot, goal.purpose())?;
        let now = self.broker.clock().now();
        if let (Goal::Reported, Some(spent)) = (goal, &self.force_spent)
            && now < spent.ask_again
        {
            return Err(Error::ForceSpent {
                app: self.slot.key.app.clone(),
                retry_after: spent.until.duration_since(now).unwrap_or_default(),
            });
        }
        let caller = wish.as_ref().and_then(|wish| wish.span.as_ref());
        let span = info_span!(
            parent: caller.and_then(Span::id),
            "refresh",
            app.id = %self.slot.key.app,
            credential = self.slot.key.kind.as_str(),
            goal = ?goal,
        );
        let attempt = Attempt::new(&self.broker, &self.slot, goal);
        let result = attempt.run().instrument(span.clone()).await;
        if let Err(Error::ForceSpent { retry_after, .. }) = &result {
            // The token may change by itself before.
            self.force_spent = Some(ForceSpent {
                ask_again: now + FORCE_APART.min(*retry_after),
                until: now + *retry_after,
            });
        }
        if let Err(error) = &result {
            let _entered = span.enter();
            warn!(app.id = %self.slot.key.app, credential = self.slot.key.kind.as_str(), "not refreshed: {error}");
        }
        result
    }
}

/// How a credential of `app` lives.
pub(crate) fn policy(app: &App, kind: Kind) -> Policy {
    match kind {
        Kind::AccessToken => token_policy(app),
        Kind::JsapiTicket | Kind::WxCardTicket => Policy::Ticket,
    }
}

/// How the access_token of `app` lives.
pub(crate) fn token_policy(app: &App) -> Policy {
    match app.token_mode {
        TokenMode::Classic => Policy::Classic,
        TokenMode::Stable => Policy::Stable,
    }
}
