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
    Credential, Failure, Key,
    store::{Calls, Record},
};
use crate::error::Error;

/// A caller waits no longer for a refresh; token-client itself waits 5 s.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// A credential as this replica holds it.
#[derive(Debug)]
pub struct Held {
    /// What it is.
    pub credential: Credential,
    /// When it expires by the clock that does not jump.
    expires: Duration,
}

impl Held {
    fn new(credential: Credential, clock: &Clock) -> Self {
        let left = credential.times.expire.duration_since(clock.now());
        Self {
            credential,
            expires: clock.elapsed() + left.unwrap_or_default(),
        }
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
    /// When one more refresh verifies it.
    pub(crate) verify: Option<SystemTime>,
    pub(crate) failure: Option<Arc<Failure>>,
    pub(crate) calls: Calls,
    /// How many refreshes, and refusals to make one, ended.
    ended: u64,
    /// How the last one did; none is well.
    outcome: Option<Error>,
}

impl State {
    /// The version held; 0 for none.
    pub(crate) fn version(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.credential.version)
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
}

/// One credential in memory.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Key,
    state: watch::Sender<State>,
    wish: Mutex<Option<Wish>>,
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
            wish: Mutex::default(),
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

    /// Hands a wish to the refresher and waits until `fulfilled` finds what it is for, or until the refresher says no.
    pub(crate) async fn ask(
        &self,
        wish: Wish,
        fulfilled: impl Fn(&Arc<Held>) -> bool,
    ) -> Result<Arc<Held>, Error> {
        let mut changes = self.changes();
        let before = changes.borrow_and_update().ended;
        self.wish(wish);
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
                    if state.ended > before {
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

    /// Hands a wish to the refresher.
    pub(crate) fn wish(&self, new: Wish) {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        let merged = wish.get_or_insert_default();
        merged.replace = merged.replace.max(new.replace);
        merged.operator |= new.operator;
        merged.force |= new.force;
        merged.span = merged.span.take().or(new.span);
        drop(wish);
        self.wished.notify_one();
    }

    /// The next wish.
    pub(crate) async fn wished(&self) -> Wish {
        loop {
            let wish = self
                .wish
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(wish) = wish {
                return wish;
            }
            self.wished.notified().await;
        }
    }

    /// Takes over what the store says, unless memory holds something newer.
    pub(crate) fn absorb(&self, record: Record) {
        let Record {
            credential,
            verify,
            failure,
            calls,
            ..
        } = record;
        let mut rotated = false;
        self.state.send_if_modified(|state| {
            let news = credential.filter(|new| match &state.held {
                None => true,
                Some(held) => {
                    let held = &held.credential;
                    new.version > held.version
                        || (new.version == held.version && new.times != held.times)
                }
            });
            let failed = failure.as_ref().is_some_and(|failure| {
                state
                    .failure
                    .as_ref()
                    .is_none_or(|known| known.at < failure.at)
            });
            let recovered = failure.is_none() && state.failure.is_some();
            let modified = news.is_some()
                || failed
                || recovered
                || state.verify != verify
                || state.calls != calls;
            if failed {
                state.failure = failure.map(Arc::new);
                state.ended += 1;
                state.outcome = state.failure.as_ref().map(|failure| Error::Failed {
                    app: self.key.app.clone(),
                    failure: Arc::clone(failure),
                });
            }
            if recovered {
                state.failure = None;
            }
            if let Some(credential) = news {
                rotated = true;
                state.held = Some(Arc::new(Held::new(credential, &self.clock)));
                state.ended += 1;
                state.outcome = None;
            }
            state.verify = verify;
            state.calls = calls;
            modified
        });
        if rotated {
            self.rotations.send_modify(|count| *count += 1);
        }
    }

    /// Holds a value that could not be stored.
    pub(crate) fn hold(&self, credential: Credential) {
        let calls = self.state.borrow().calls;
        self.absorb(Record {
            credential: Some(credential),
            calls,
            ..Record::default()
        });
    }

    /// Remembers a failure that could not be stored.
    pub(crate) fn note(&self, failure: Failure) {
        self.state
            .send_modify(|state| state.failure = Some(Arc::new(failure)));
    }

    /// Tells everybody who asked how it went.
    pub(crate) fn conclude(&self, result: Result<(), Error>) {
        self.state.send_modify(|state| {
            state.ended += 1;
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
