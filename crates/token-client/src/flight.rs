//! Concurrent misses become one call.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use wechat::AppId;

use crate::{cache::CachedToken, error::Error};

type Outcome = Result<Arc<CachedToken>, Error>;
type Flight = BoxFuture<'static, Outcome>;

/// The fetches under way. They live as long as somebody waits for them.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<AppId, WeakShared<Flight>>>);

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl Flights {
    /// Waits for the app's fetch under way, or begins one.
    pub(crate) async fn join<F>(&self, app: &AppId, fetch: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let flight = self.flight(app, fetch);
        flight.await
    }

    fn flight<F>(&self, app: &AppId, fetch: impl FnOnce() -> F) -> Shared<Flight>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = flights.entry(app.clone());
        if let Entry::Occupied(under_way) = &entry
            && let Some(flight) = under_way.get().upgrade()
            // One that has landed belongs to those who boarded it.
            && flight.peek().is_none()
        {
            return flight;
        }
        let flight = fetch().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            entry.insert_entry(weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn those_who_come_during_a_fetch_share_it_and_later_ones_do_not() {
        let flights = Flights::default();
        let app: AppId = "wx0000000000000001".parse().unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let fetches = Arc::new(AtomicU32::new(0));
        let fetch = || {
            let (gate, fetches) = (Arc::clone(&gate), Arc::clone(&fetches));
            async move {
                fetches.fetch_add(1, Ordering::SeqCst);
                let _open = gate.acquire().await;
                Err(Error::Malformed("anything"))
            }
        };
        // The first leaves before the answer comes; that takes the fetch from nobody else.
        let mut first = Box::pin(flights.join(&app, fetch));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(flights.join(&app, fetch));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        gate.add_permits(1);
        assert!(second.await.is_err());
        assert_eq!(fetches.load(Ordering::SeqCst), 1);

        assert!(flights.join(&app, fetch).await.is_err());
        assert_eq!(fetches.load(Ordering::SeqCst), 2);

        // All left: the next begins anew.
        let gone = flights.join(&app, std::future::pending);
        assert!(gone.now_or_never().is_none());
        assert!(flights.join(&app, fetch).await.is_err());
        assert_eq!(fetches.load(Ordering::SeqCst), 3);
    }
}
