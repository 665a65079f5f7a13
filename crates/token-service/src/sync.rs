//! Keeps this replica's memory and the store alike: by the store's events, and by a look every five seconds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use service_kit::ops::Readiness;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    broker::Broker,
    credential::{
        Key,
        store::{self, Event},
    },
};

/// How often everything is looked at, in case events are lost.
const POLL: Duration = Duration::from_secs(5);
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
    let keep = async {
        look_at(&broker, broker.keys()).await;
        readiness.set_ready();
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut catalog = broker.catalog().changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = poll.tick() => look_at(&broker, broker.keys()).await,
                Some(event) = events.recv() => match event {
                    Event::Changed(key) => look_at(&broker, vec![key]).await,
                    Event::Missed => look_at(&broker, broker.keys()).await,
                },
                Ok(()) = catalog.changed() => broker.forget_removed_apps(),
            }
        }
    };
    tokio::join!(follow, keep);
    Ok(())
}

async fn look_at(broker: &Broker, keys: Vec<Key>) {
    let looks = stream::iter(keys).map(|key| async move {
        let outcome = reconcile(broker, &key).await;
        (key, outcome)
    });
    let failed: Option<(Key, store::Error)> = looks
        .buffer_unordered(PARALLEL)
        .filter_map(|(key, outcome)| async move { outcome.err().map(|error| (key, error)) })
        .fold(None, |first, failed| async move { first.or(Some(failed)) })
        .await;
    if let Some((key, error)) = failed {
        warn!(key = %key, error = %error, "the store could not be looked at: memory serves on");
    }
}

/// Takes over what is newer in the store, and puts back what it has lost.
async fn reconcile(broker: &Broker, key: &Key) -> Result<(), store::Error> {
    let record = broker.store().load(key).await?;
    let Some(record) = record else {
        return match broker.existing(key).and_then(|slot| slot.valid()) {
            Some(held) => broker.store().restore(key, &held.credential).await,
            None => Ok(()),
        };
    };
    // An app that left the catalog meanwhile gets no slot back.
    if broker.app(&key.app).is_err() {
        return Ok(());
    }
    let slot = broker.slot(key);
    let stored = record.version();
    slot.absorb(record);
    match slot.valid().map(|held| Arc::clone(&held)) {
        Some(held) if held.credential.version > stored => {
            broker.store().restore(key, &held.credential).await
        }
        _ => Ok(()),
    }
}
