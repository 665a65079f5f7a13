//! Every credential of every app in this replica's memory, and how to get one.
//!
//! A read is answered from memory and never waits while a valid value exists. What is missing is asked of the
//! credential's refresher, of which there is one: concurrent misses become one call.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use service_kit::{App, CatalogHandle, Clock};
use tokio::sync::{mpsc, watch};
use tracing::Span;
use wechat::AppId;

use crate::{
    credential::{
        Failure, Key, Kind,
        ledger::{Budget, Use},
        slot::{Held, Slot, Wish},
        store::{self, Record, Store},
    },
    error::Error,
    metrics,
    random::Random,
    refresh,
    upstream::Upstream,
};

/// Shared by all RPCs and workers; clones are the same.
#[derive(Debug, Clone)]
pub struct Broker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    catalog: CatalogHandle,
    store: Store,
    upstream: Arc<dyn Upstream>,
    clock: Clock,
    random: Random,
    slots: RwLock<HashMap<Key, Arc<Slot>>>,
    /// Slots that wait for their refresher.
    fresh: mpsc::UnboundedSender<Arc<Slot>>,
    rotations: watch::Sender<u64>,
}

/// The slots whose refreshers are to be started: see [`crate::refresh::run`].
#[derive(Debug)]
pub struct Fresh(pub(crate) mpsc::UnboundedReceiver<Arc<Slot>>);

impl Broker {
    /// Nothing is loaded, and nothing refreshed, before [`crate::refresh::run`] and [`crate::sync::run`] run.
    pub fn new(
        catalog: CatalogHandle,
        store: Store,
        upstream: Arc<dyn Upstream>,
        clock: Clock,
        random: Random,
    ) -> (Self, Fresh) {
        let (fresh, slots) = mpsc::unbounded_channel();
        let shared = Shared {
            catalog,
            store,
            upstream,
            clock,
            random,
            slots: RwLock::default(),
            fresh,
            rotations: watch::Sender::default(),
        };
        (Self(Arc::new(shared)), Fresh(slots))
    }

    pub(crate) fn catalog(&self) -> &CatalogHandle {
        &self.0.catalog
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// What is stored of a credential: nothing, when it cannot be read and is expired anyway. While it lives, others may be able
    /// to read it, and go on refreshing it.
    pub(crate) async fn load(&self, key: &Key) -> Result<Option<Record>, store::Error> {
        let now = self.0.clock.now();
        match self.0.store.load(key).await {
            Err(store::Error::Unreadable {
                expire: Some(expire),
                ..
            }) if expire <= now => Ok(None),
            loaded => loaded,
        }
    }

    pub(crate) fn upstream(&self) -> &dyn Upstream {
        &*self.0.upstream
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn random(&self) -> &Random {
        &self.0.random
    }

    /// Wakes at each new value of any credential.
    pub(crate) fn rotations(&self) -> watch::Receiver<u64> {
        self.0.rotations.subscribe()
    }

    /// The app's entry in `wxhub.toml` as it is now.
    pub(crate) fn app(&self, app: &AppId) -> Result<Arc<App>, Error> {
        let found = self.0.catalog.current().app(app.as_str()).cloned();
        found.ok_or_else(|| Error::AppGone { app: app.clone() })
    }

    /// The credential's current value: from memory, or fetched when there is none.
    ///
    /// # Errors
    /// [`Error`] when there is no valid value and none can be got now.
    pub async fn get(&self, key: &Key) -> Result<Arc<Held>, Error> {
        let slot = self.slot(key);
        if let Some(held) = slot.valid() {
            metrics::read(key.kind, metrics::Read::Memory);
            return Ok(held);
        }
        metrics::read(key.kind, metrics::Read::Waited);
        self.backing_off(&slot)?;
        slot.ask(wish(), |_| true).await
    }

    /// Has a missing value fetched, without waiting for it.
    pub(crate) fn prefetch(&self, key: &Key) {
        let slot = self.slot(key);
        if slot.valid().is_none() && self.backing_off(&slot).is_ok() {
            slot.wish(wish());
        }
    }

    /// Why nothing is asked of WeChat now: the last failure, while it is too fresh to try again.
    pub(crate) fn backing_off(&self, slot: &Slot) -> Result<(), Error> {
        let failure = slot.state().failure;
        match failure.filter(|failure| self.0.clock.now() < failure.retry_at) {
            Some(failure) if self.still_counts(&slot.key, &failure) => Err(Error::Failed {
                app: slot.key.app.clone(),
                failure,
            }),
            _ => Ok(()),
        }
    }

    /// Why the ledger allows no call for `purpose` now, if it does not.
    pub(crate) fn within_budget(&self, slot: &Slot, purpose: Use) -> Result<(), Error> {
        let Some(until) = self.spent_until(slot, purpose) else {
            return Ok(());
        };
        let retry_after = until.duration_since(self.0.clock.now()).unwrap_or_default();
        Err(Error::QuotaSpent {
            app: slot.key.app.clone(),
            retry_after,
        })
    }

    /// When the ledger allows the next call for `purpose`, unless that is now.
    pub(crate) fn spent_until(&self, slot: &Slot, purpose: Use) -> Option<SystemTime> {
        let app = self.app(&slot.key.app).ok()?;
        let budget = Budget::of(refresh::policy(&app, slot.key.kind));
        let ledger = slot.state().ledger;
        ledger.spent_until(budget, purpose, self.0.clock.now())
    }

    /// Whether a failure was made with the settings that the app has now.
    pub(crate) fn still_counts(&self, key: &Key, failure: &Failure) -> bool {
        self.app(&key.app)
            .is_ok_and(|app| refresh::settings(&app) == failure.settings)
    }

    /// The slot of a credential, made at its first use.
    pub(crate) fn slot(&self, key: &Key) -> Arc<Slot> {
        if let Some(slot) = self.existing(key) {
            return slot;
        }
        let mut slots = self.0.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(key.clone()).or_insert_with(|| {
            let slot = Slot::new(key.clone(), self.0.clock.clone(), self.0.rotations.clone());
            let slot = Arc::new(slot);
            // The receiver is gone only when the service ends.
            let _ = self.0.fresh.send(Arc::clone(&slot));
            slot
        });
        Arc::clone(slot)
    }

    /// The slot of a credential that was used before.
    pub(crate) fn existing(&self, key: &Key) -> Option<Arc<Slot>> {
        let slots = self.0.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(key).cloned()
    }

    /// Every credential that the catalog's apps can have.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let catalog = self.0.catalog.current();
        let keys = catalog.apps().iter().flat_map(|app| {
            Kind::ALL.map(|kind| Key {
                app: app.app_id.clone(),
                kind,
            })
        });
        keys.collect()
    }

    /// Drops the credentials of apps that left the catalog.
    pub(crate) fn forget_removed_apps(&self) {
        let catalog = self.0.catalog.current();
        let mut slots = self.0.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|key, slot| {
            let kept = catalog.app(key.app.as_str()).is_some();
            if !kept {
                slot.gone.cancel();
            }
            kept
        });
    }
}

/// A wish of whoever calls now.
pub(crate) fn wish() -> Wish {
    Wish {
        span: Some(Span::current()),
        ..Wish::default()
    }
}
