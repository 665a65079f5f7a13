//! Keeps this replica's memory and the store alike: by the store's events, and by a look every five seconds.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use service_kit::ops::Readiness;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    broker::Broker,
    credential::{
        Key, Policy,
        ledger::Ledger,
        store::{self, Event, VERIFY_AFTER},
    },
    metrics,
    refresh::SPREAD,
};

/// How often everything is looked at, in case events are lost.
const POLL: Duration = Duration::from_secs(5);
/// Events that are taken together: after a burst, one look at each of them.
const BATCH: usize = 1_000;
/// Looks under way at once.
const PARALLEL: usize = 64;

/// Loads what is stored, tells `readiness` when that was tried, and follows every change until `stop` is cancelled.
///
/// # Errors
/// None: a store that is away is asked again.
pub async fn run(
    broker: Broker,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let (tell, mut events) = mpsc::unbounded_channel();
    let follow = broker.store().follow(&stop, move |event| {
        let _ = tell.send(event);
    });
    let (sync, missed) = (Sync::new(&broker), Notify::new());
    // Beside the looks at everything, which take their time where there are many apps.
    let hear = async {
        let mut heard = Vec::new();
        while let Some(1..) = stop
            .run_until_cancelled(events.recv_many(&mut heard, BATCH))
            .await
        {
            let mut changed = Vec::new();
            for event in heard.drain(..) {
                match event {
                    Event::Changed(key) => changed.push(key),
                    Event::Missed => missed.notify_one(),
                }
            }
            changed.sort();
            changed.dedup();
            sync.look_at(changed).await;
        }
    };
    let keep = async {
        sync.look_at(broker.keys()).await;
        readiness.set_ready();
        measure(&broker);
        let mut poll = tokio::time::interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut catalog = broker.catalog().changes();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = poll.tick() => {
                    sync.look_at(broker.keys()).await;
                    measure(&broker);
                }
                () = missed.notified() => sync.look_at(broker.keys()).await,
                Ok(()) = catalog.changed() => broker.forget_removed_apps(),
            }
        }
    };
    tokio::join!(follow, hear, keep);
    Ok(())
}

/// Tells the metrics how every credential is.
fn measure(broker: &Broker) {
    let catalog = broker.catalog().current();
    let now = broker.clock().now();
    for key in broker.keys() {
        if let Some(slot) = broker.existing(&key)
            && let Some(app) = catalog.app(key.app.as_str())
        {
            metrics::state(&app.name, key.kind, &slot.state(), now);
        }
    }
}

struct Sync<'a> {
    broker: &'a Broker,
    /// So that an outage is told once.
    store_away: AtomicBool,
}

impl<'a> Sync<'a> {
    fn new(broker: &'a Broker) -> Self {
        Self {
            broker,
            store_away: AtomicBool::new(false),
        }
    }

    async fn look_at(&self, keys: Vec<Key>) {
        let broker = self.broker;
        let looks = stream::iter(keys).map(|key| async move { reconcile(broker, &key).await });
        let mut looks = std::pin::pin!(looks.buffer_unordered(PARALLEL));
        while let Some(outcome) = looks.next().await {
            match outcome {
                Ok(()) => self.store_away.store(false, Ordering::Relaxed),
                Err(error @ store::Error::Unreadable { .. }) => error!("{error}"),
                // The others would wait as long in vain.
                Err(error @ store::Error::Redis(_)) => {
                    if !self.store_away.swap(true, Ordering::Relaxed) {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "the store is away: memory serves on");
                    }
                    return;
                }
            }
        }
    }
}

/// Takes over what is newer in the store, and puts back what it has lost.
async fn reconcile(broker: &Broker, key: &Key) -> Result<(), store::Error> {
    let record = broker.load(key).await?;
    // An app that left the catalog meanwhile gets no slot back.
    if broker.app(&key.app).is_err() {
        return Ok(());
    }
    let slot = match &record {
        Some(_) => broker.slot(key),
        None => match broker.existing(key) {
            Some(slot) => slot,
            None => return Ok(()),
        },
    };
    let now = broker.clock().now();
    let stored = record
        .as_ref()
        .map(|record| (record.version(), record.doubt(now)));
    let ledger = record
        .as_ref()
        .map_or_else(Ledger::default, |record| record.ledger);
    if let Some(record) = record {
        slot.absorb(record);
    }
    if let Some(held) = slot.valid()
        && Some((held.credential.version, held.verify)) > stored
    {
        let credential = &held.credential;
        let lost = stored.is_none_or(|(version, _)| version < credential.version);
        let verify = if lost && credential.policy == Policy::Classic {
            // Calls that were under way are lost with the leases that they were made under.
            let spread = SPREAD.mul_f64(broker.random().fraction());
            held.verify.max(Some(now + VERIFY_AFTER + spread))
        } else {
            held.verify
        };
        broker.store().restore(key, credential, verify).await?;
    }
    let known = slot.state().ledger;
    if known != ledger {
        broker.store().enter(key, known).await?;
    }
    Ok(())
}
