//! One credential in this replica's memory: what readers see, and what they ask of its refresher.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use service_kit::Clock;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    Credential, Failure, Key, OVERLAP, Policy,
    ledger::Ledger,
    store::{History, Record},
};
use crate::error::Error;

/// A caller waits no longer for a refresh; token-client itself waits 5 s.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// A credential as this replica holds it.
#[derive(Debug)]
pub struct Held {
    /// What it is.
    pub credential: Credential,
    /// When one more refresh verifies that it is WeChat's newest.
    pub(crate) verify: Option<SystemTime>,
    /// When it expires by the clock that does not jump.
    expires: Duration,
}

impl Held {
    fn new(credential: Credential, verify: Option<SystemTime>, clock: &Clock) -> Self {
        let left = credential.times.expire.duration_since(clock.now());
        Self {
            credential,
            verify,
            expires: clock.elapsed() + left.unwrap_or_default(),
        }
    }

    fn doubted(&self, verify: Option<SystemTime>) -> Self {
        Self {
            credential: self.credential.clone(),
            verify,
            expires: self.expires,
        }
    }

    /// When it is replaced.
    pub(crate) fn refresh_time(&self) -> SystemTime {
        let refresh = self.credential.times.refresh;
        self.verify.map_or(refresh, |verify| verify.min(refresh))
    }

    /// Until when a copy handed out at `now` may be used. A classic token dies five minutes after its successor, which
    /// comes at its refresh time or, when that failed, at any time from now on.
    pub(crate) fn use_until(&self, now: SystemTime) -> SystemTime {
        let expire = self.credential.times.expire;
        match self.credential.policy {
            Policy::Classic => (self.refresh_time().max(now) + OVERLAP).min(expire),
            Policy::Stable | Policy::Ticket => expire,
        }
    }

    /// Until when the one before may be taken for good. It dies five minutes after this one was asked for, which was up to 30 s
    /// before its floor.
    fn predecessor_until(&self) -> SystemTime {
        self.credential.times.floor + OVERLAP
    }

    /// Whether it may be served: it is expired when either clock says so.
    pub(crate) fn is_valid(&self, clock: &Clock) -> bool {
        clock.now() < self.credential.times.expire && clock.elapsed() < self.expires
    }
}

/// Everything known of one credential.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) held: Option<Arc<Held>>,
    /// When whatever was asked for before is to be verified. The store knows it, too, unless it was emptied.
    pub(crate) verify: Option<SystemTime>,
    pub(crate) failure: Option<Arc<Failure>>,
    pub(crate) ledger: Ledger,
    /// Versions and digests of the last texts, newest last.
    history: Arc<History>,
    /// The last wish that was attended to.
    attended: u64,
    /// Why it was not fulfilled, if it was not.
    outcome: Option<Error>,
}

impl State {
    /// The version held; 0 for none.
    pub(crate) fn version(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.credential.version)
    }

    /// Doubts what is held, unless it was asked for later; tells whether that is news.
    fn doubt(&mut self, verify: Option<SystemTime>) -> bool {
        let asked = self.held.as_ref().map(|held| held.credential.times.asked());
        self.verify = self.verify.max(verify).filter(|at| Some(*at) > asked);
        let held = self.held.as_ref();
        let Some(held) = held.filter(|held| held.verify != self.verify) else {
            return false;
        };
        self.held = Some(Arc::new(held.doubted(self.verify)));
        true
    }
}

/// What callers want of the refresher; wishes that come together become one.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// The version that somebody wants replaced.
    pub(crate) replace: Option<u64>,
    /// By an operator, whatever failed before.
    pub(crate) operator: bool,
    /// Make WeChat end the current one.
    pub(crate) force: bool,
    /// The first caller's span: the refresh belongs to its trace.
    pub(crate) span: Option<Span>,
    /// Its number, the last of those that became one.
    pub(crate) number: u64,
}

#[derive(Debug, Default)]
struct Wishes {
    last: u64,
    waiting: Option<Wish>,
}

/// One credential in memory.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Key,
    state: watch::Sender<State>,
    wishes: Mutex<Wishes>,
    wished: Notify,
    /// Cancelled when the app leaves the catalog.
    pub(crate) gone: CancellationToken,
    /// Bumped at each new value, for those who watch many.
    rotations: watch::Sender<u64>,
    clock: Clock,
}

impl Slot {
    pub(crate) fn new(key: Key, clock: Clock, rotations: watch::Sender<u64>) -> Self {
        Self {
            key,
            state: watch::Sender::default(),
            wishes: Mutex::default(),
            wished: Notify::new(),
            gone: CancellationToken::new(),
            rotations,
            clock,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The current value, unless it is expired.
    pub(crate) fn valid(&self) -> Option<Arc<Held>> {
        let state = self.state.borrow();
        state
            .held
            .as_ref()
            .filter(|held| held.is_valid(&self.clock))
            .map(Arc::clone)
    }

    /// Whether the text with this digest works now: the current one does, and the one before as long as WeChat takes both.
    pub(crate) fn honours(&self, digest: &str) -> bool {
        let state = self.state.borrow();
        let held = state.held.as_ref();
        let Some(held) = held.filter(|held| held.is_valid(&self.clock)) else {
            return false;
        };
        let current = held.credential.version;
        let of = |entry: Option<&(u64, String)>| entry.is_some_and(|(_, known)| known == digest);
        let mut known = state.history.iter().rev();
        of(known.find(|(version, _)| *version == current))
            || (self.clock.now() < held.predecessor_until() && of(known.next()))
    }

    /// Hands a wish to the refresher and waits until `fulfilled` finds what it is for, or until the refresher says no.
    pub(crate) async fn ask(
        &self,
        wish: Wish,
        fulfilled: impl Fn(&Arc<Held>) -> bool,
    ) -> Result<Arc<Held>, Error> {
        let mut changes = self.changes();
        let number = self.wish(wish);
        let answer = async {
            loop {
                {
                    let state = changes.borrow_and_update();
                    let valid = state
                        .held
                        .as_ref()
                        .filter(|held| held.is_valid(&self.clock));
                    if let Some(held) = valid.filter(|held| fulfilled(held)) {
                        return Ok(Arc::clone(held));
                    }
                    if state.attended >= number {
                        match (&state.outcome, valid) {
                            (Some(error), _) => return Err(error.clone()),
                            (None, Some(held)) => return Ok(Arc::clone(held)),
                            // It expired on arrival.
                            (None, None) => return Err(self.too_slow()),
                        }
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return Err(self.app_gone()) },
                    () = self.gone.cancelled() => return Err(self.app_gone()),
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .unwrap_or_else(|_| Err(self.too_slow()))
    }

    /// Hands a wish to the refresher, and returns its number.
    pub(crate) fn wish(&self, new: Wish) -> u64 {
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        wishes.last += 1;
        let number = wishes.last;
        let merged = wishes.waiting.get_or_insert_default();
        merged.replace = merged.replace.max(new.replace);
        merged.operator |= new.operator;
        merged.force |= new.force;
        merged.span = merged.span.take().or(new.span);
        merged.number = number;
        drop(wishes);
        self.wished.notify_one();
        number
    }

    /// The next wish.
    pub(crate) async fn wished(&self) -> Wish {
        loop {
            let wish = self
                .wishes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .waiting
                .take();
            if let Some(wish) = wish {
                return wish;
            }
            self.wished.notified().await;
        }
    }

    /// Takes over what the store says, unless memory holds something newer.
    pub(crate) fn absorb(&self, record: Record) {
        let verify = record.doubt(self.clock.now());
        let Record {
            credential,
            failure,
            ledger,
            history,
            ..
        } = record;
        let mut rotated = false;
        self.state.send_if_modified(|state| {
            let ledger = state.ledger.merge(ledger);
            let newer = credential.filter(|new| match &state.held {
                None => true,
                Some(held) => {
                    let old = &held.credential;
                    let changed = new.times != old.times;
                    new.version > old.version || (new.version == old.version && changed)
                }
            });
            if let Some(credential) = newer {
                state.held = Some(Arc::new(Held::new(credential, None, &self.clock)));
                rotated = true;
            }
            rotated |= state.doubt(verify);
            let failure_changed = failure.as_ref() != state.failure.as_deref();
            let modified = rotated || failure_changed || state.ledger != ledger;
            let newest = |history: &History| history.last().map(|(version, _)| *version);
            if newest(&history) > newest(&state.history) {
                state.history = Arc::new(history);
            }
            if failure_changed {
                state.failure = failure.map(Arc::new);
            }
            state.ledger = ledger;
            modified
        });
        if rotated {
            self.rotations.send_modify(|count| *count += 1);
        }
    }

    /// Holds a value that could not be stored; `verify` says when it is to be verified.
    pub(crate) fn hold(&self, credential: Credential, verify: Option<SystemTime>) {
        let State {
            ledger, history, ..
        } = self.state();
        let mut history = Arc::unwrap_or_clone(history);
        history.push((credential.version, credential.digest()));
        self.absorb(Record {
            credential: Some(credential),
            verify,
            ledger,
            history,
            ..Record::default()
        });
    }

    /// Enters a call that the store does not know of.
    pub(crate) fn enter_call(&self, now: SystemTime) {
        self.state.send_modify(|state| {
            state.ledger = state.ledger.on(now);
            state.ledger.calls += 1;
        });
    }

    /// Remembers a failure, which might not be stored; `verify` says when what it may have done is to be verified.
    pub(crate) fn note(&self, failure: Failure, verify: Option<SystemTime>) {
        self.state.send_modify(|state| {
            state.doubt(verify);
            if failure.cause.is_exhaustion() {
                state.ledger = Ledger {
                    exhausted: true,
                    ..state.ledger.on(failure.at)
                };
            }
            state.failure = Some(Arc::new(failure));
        });
    }

    /// Tells those whose wishes became this one how it went.
    pub(crate) fn conclude(&self, number: u64, result: Result<(), Error>) {
        self.state.send_modify(|state| {
            state.attended = number;
            state.outcome = result.err();
        });
    }

    pub(crate) fn too_slow(&self) -> Error {
        Error::TooSlow {
            app: self.key.app.clone(),
        }
    }

    pub(crate) fn app_gone(&self) -> Error {
        Error::AppGone {
            app: self.key.app.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::credential::digest;

    fn held(policy: Policy, verify: Option<SystemTime>) -> Held {
        let credential = Credential {
            secret: "s3cr3t".into(),
            version: 1,
            policy,
            times: policy.plan(UNIX_EPOCH, Duration::from_secs(7200), 0.5),
        };
        Held::new(credential, verify, &Clock::System)
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_is_honoured_while_wechat_takes_it_and_no_longer() {
        let clock = Clock::tokio(UNIX_EPOCH);
        let key = Key::access_token(&"wx0000000000000001".parse().unwrap());
        let slot = Slot::new(key, clock.clone(), watch::Sender::default());
        let store = |secrets: &[&str]| {
            let credentials = (1..).zip(secrets).map(|(version, secret)| Credential {
                secret: (*secret).into(),
                version,
                policy: Policy::Classic,
                times: Policy::Classic.plan(clock.now(), Duration::from_secs(7200), 0.5),
            });
            let history = credentials.clone();
            slot.absorb(Record {
                credential: credentials.last(),
                history: history.map(|one| (one.version, one.digest())).collect(),
                ..Record::default()
            });
        };
        let honoured = |secret: &str| slot.honours(&digest(&secret.into()));
        assert!(!honoured("first"));
        store(&["first"]);
        assert!(honoured("first") && !honoured("second"));
        store(&["first", "second"]);
        assert!(honoured("first") && honoured("second"));
        tokio::time::advance(Duration::from_secs(269)).await;
        assert!(honoured("first"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!honoured("first") && honoured("second"));
        // Two at once leave no overlap to the first of all; what is held but not stored counts.
        store(&["first", "second", "third"]);
        assert!(!honoured("first") && honoured("second") && honoured("third"));
        let fourth = Credential {
            secret: "fourth".into(),
            version: 4,
            policy: Policy::Classic,
            times: Policy::Classic.plan(clock.now(), Duration::from_secs(7200), 0.5),
        };
        slot.hold(fourth, None);
        assert!(!honoured("second") && honoured("third") && honoured("fourth"));
        tokio::time::advance(Duration::from_secs(7200)).await;
        assert!(!honoured("fourth"), "expired");
    }

    #[tokio::test(start_paused = true)]
    async fn r15_a_doubt_stays_until_something_is_asked_for_that_it_does_not_reach() {
        let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(1_000));
        let key = Key::access_token(&"wx0000000000000001".parse().unwrap());
        let slot = Slot::new(key, clock.clone(), watch::Sender::default());
        let start = clock.now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let absorb = |version, asked, verify| {
            slot.absorb(Record {
                credential: Some(Credential {
                    secret: "s3cr3t".into(),
                    version,
                    policy: Policy::Classic,
                    times: Policy::Classic.plan(after(asked), Duration::from_secs(7200), 0.5),
                }),
                verify,
                ..Record::default()
            });
            let held = slot.state().held.unwrap();
            assert_eq!(held.verify, slot.state().verify);
            held.verify
        };
        assert_eq!(absorb(1, 0, None), None);
        assert_eq!(absorb(1, 0, Some(after(60))), Some(after(60)));
        assert_eq!(absorb(1, 0, None), Some(after(60)), "the store lost it");
        assert_eq!(absorb(2, 59, None), Some(after(60)));
        assert_eq!(absorb(3, 60, None), None);
        // Before anything is held.
        let empty = Slot::new(slot.key.clone(), clock, watch::Sender::default());
        empty.absorb(Record {
            verify: Some(after(60)),
            ..Record::default()
        });
        assert_eq!(empty.state().verify, Some(after(60)));
    }

    #[test]
    fn r12_a_copy_of_a_classic_token_is_good_until_its_successor_ends_it() {
        let overlap = Duration::from_secs(240);
        let token = held(Policy::Classic, None);
        let times = token.credential.times;
        assert_eq!(token.use_until(UNIX_EPOCH), times.refresh + overlap);
        // The refresh failed for a minute: a successor may come any moment, and then overlaps.
        let late = times.refresh + Duration::from_secs(60);
        assert_eq!(token.use_until(late), late + overlap);
        assert_eq!(token.use_until(times.expire), times.expire);
        // A verifying refresh comes sooner.
        let verify = UNIX_EPOCH + Duration::from_secs(60);
        let doubted = held(Policy::Classic, Some(verify));
        assert_eq!(doubted.use_until(UNIX_EPOCH), verify + overlap);
        let stable = held(Policy::Stable, None);
        assert_eq!(stable.use_until(UNIX_EPOCH), stable.credential.times.expire);
    }
}
