//! A replica's line to the store: every step may be stalled before and after, or lost on its way there or back.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use token_service::credential::{
    Credential, Failure, Key,
    ledger::Ledger,
    store::{
        Begin, Claim, Claimant, Error, Event, Fresh, Lease, Record, Simulated, Spend, Store,
        Written,
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{process::Process, world::Fences};

/// How long a step waits for a store that is away.
const TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) process: Arc<Process>,
    /// The store's clock, which leases last by, as Redis's do.
    pub(crate) clock: service_kit::Clock,
}

impl Line {
    async fn ask<T>(
        &self,
        step: impl FnOnce(&Store) -> Option<Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        self.process.pass().await;
        self.connected().await?;
        let answer = step(&self.process.world.store()).unwrap()?;
        self.process.pass().await;
        self.connected().await?;
        Ok(answer)
    }

    async fn connected(&self) -> Result<(), Error> {
        if !self.process.is_cut_off() {
            return Ok(());
        }
        sleep(TIMEOUT).await;
        Err(Error::Redis(
            std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        ))
    }

    fn judge(&self, key: &Key, store: &Store) {
        let world = &self.process.world;
        let record = store.load(key).now_or_never().unwrap().unwrap();
        if let Some(credential) = record.and_then(|record| record.credential) {
            world.judge().stored(&credential, &world.wechat());
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        let replica = self.process.replica;
        self.process
            .world
            .judge()
            .note(format_args!("replica {replica} {what}"));
    }
}

impl Simulated for Line {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, Error>> {
        Box::pin(self.ask(|store| store.load(key).now_or_never()))
    }

    fn claim<'a>(
        &'a self,
        key: &'a Key,
        claimant: Claimant,
    ) -> BoxFuture<'a, Result<Claim, Error>> {
        let claimant = Claimant {
            now: self.clock.now(),
            ..claimant
        };
        Box::pin(async move {
            // Without one a token in stable mode is refreshed all the same.
            *self.process.lease.lock().unwrap() = None;
            let claim = self.ask(|store| {
                let claim = store.claim(key, claimant).now_or_never();
                if let Some(Ok(Claim::Granted(lease))) = &claim {
                    self.note(format_args!("is granted {lease:?}"));
                    self.process.world.judge().granted(*lease);
                }
                claim
            });
            let claim = claim.await?;
            if let Claim::Granted(lease) = &claim {
                *self.process.lease.lock().unwrap() = Some(*lease);
            }
            Ok(claim)
        })
    }

    fn begin<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        spend: Spend,
        _: SystemTime,
    ) -> BoxFuture<'a, Result<Begin, Error>> {
        Box::pin(self.ask(move |store| {
            let begun = store
                .begin(key, lease, spend, self.clock.now())
                .now_or_never();
            if let Some(Ok(Begin::Granted(_))) = &begun {
                self.process.world.judge().entered(lease);
            }
            begun
        }))
    }

    fn write<'a>(
        &'a self,
        key: &'a Key,
        mut lease: Lease,
        fresh: &'a Fresh,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Written, Error>> {
        Box::pin(self.ask(move |store| {
            let world = &self.process.world;
            let mut highest = world.written.lock().unwrap();
            if world.fences == Fences::Ignored {
                let stored = store.load(key).now_or_never().unwrap().ok().flatten();
                let version = stored.map_or(0, |record| record.version());
                lease.fence = lease.fence.max(*highest).max(version);
            }
            let written = store.write(key, lease, fresh, now).now_or_never();
            if let Some(Ok(Written::Stored(_))) = &written {
                *highest = lease.fence;
            }
            self.note(format_args!("writes under {}: {written:?}", lease.fence));
            self.judge(key, store);
            written
        }))
    }

    fn fail<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        failure: &'a Failure,
        ambiguous: bool,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.note(format_args!("fails: {}", failure.cause));
        Box::pin(self.ask(move |store| store.fail(key, lease, failure, ambiguous).now_or_never()))
    }

    fn release<'a>(&'a self, key: &'a Key, lease: Lease) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(move |store| store.release(key, lease).now_or_never()))
    }

    fn restore<'a>(
        &'a self,
        key: &'a Key,
        held: &'a Credential,
        verify: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(move |store| {
            self.note(format_args!("puts version {} back", held.version));
            let restored = store.restore(key, held, verify).now_or_never();
            self.judge(key, store);
            restored
        }))
    }

    fn enter<'a>(&'a self, key: &'a Key, ledger: Ledger) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(move |store| store.enter(key, ledger).now_or_never()))
    }

    fn probe<'a>(&'a self, key: &'a Key, now: SystemTime) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.ask(move |store| store.probe(key, now).now_or_never()))
    }

    fn follow<'a>(
        &'a self,
        stop: &'a CancellationToken,
        mut on_event: Box<dyn FnMut(Event) + Send + 'a>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let world = &self.process.world;
            let mut cuts = self.process.cut.subscribe();
            while !stop.is_cancelled() {
                while self.process.is_cut_off() {
                    let until = *cuts.borrow();
                    world.sleep_until(until).await;
                }
                cuts.mark_unchanged();
                let (store, lost) = world.connect();
                tokio::select! {
                    biased;
                    () = store.follow(stop, &mut on_event) => {}
                    () = lost.cancelled() => {}
                    _ = cuts.changed() => {}
                }
            }
        })
    }
}
