//! A replica's line to the store: every step may be stalled before and after, or lost on its way there or back.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use secrecy::ExposeSecret as _;
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
use wechat::ErrCode;

use crate::{process::Process, world::Fences};

/// How long a step waits for a store that is away.
const TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) process: Arc<Process>,
}

impl Line {
    async fn ask<T>(
        &self,
        key: &Key,
        step: impl FnOnce(&Store) -> Option<Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        self.process.pass(key.kind).await;
        self.connected().await?;
        let answer = step(&self.process.world.store()).unwrap()?;
        self.process.pass(key.kind).await;
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

    fn record(key: &Key, store: &Store) -> Record {
        let record = store.load(key).now_or_never().unwrap().unwrap();
        record.unwrap_or_default()
    }

    fn judge(&self, key: &Key, store: &Store) {
        let world = &self.process.world;
        if let Some(credential) = Self::record(key, store).credential {
            world.judge().stored(key.kind, &credential, &world.wechat());
        }
    }

    fn happens(&self, name: &'static str, what: std::fmt::Arguments<'_>) {
        self.process.happens(name, what);
    }
}

impl Simulated for Line {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, Error>> {
        Box::pin(async move {
            let record = self
                .ask(key, |store| store.load(key).now_or_never())
                .await?;
            let known = |record: &Record| record.version() > 0 || record.begun.is_some();
            if record.as_ref().is_some_and(known) {
                let mut judge = self.process.world.judge();
                judge.knows(self.process.replica, key.kind);
            }
            Ok(record)
        })
    }

    fn claim<'a>(
        &'a self,
        key: &'a Key,
        claimant: Claimant,
    ) -> BoxFuture<'a, Result<Claim, Error>> {
        Box::pin(async move {
            let world = &self.process.world;
            // Without one a token in stable mode is refreshed all the same.
            self.process.leases.lock().unwrap().remove(&key.kind);
            let claim = self.ask(key, |store| {
                let before = Self::record(key, store);
                let unknown = before.version() == 0 && before.begun.is_none();
                let claim = store.claim(key, claimant).now_or_never();
                match &claim {
                    Some(Ok(Claim::Granted(lease))) => {
                        let mut judge = world.judge();
                        judge.granted(key.kind, *lease, unknown);
                        judge.note(format_args!(
                            "replica {} is granted {lease:?} of the {}",
                            self.process.replica,
                            key.kind.as_str()
                        ));
                    }
                    Some(Ok(Claim::Busy(_))) => world.judge().count("busy lease"),
                    Some(Ok(Claim::Newer)) => world.judge().count("nothing to refresh"),
                    Some(Err(_)) | None => {}
                }
                claim
            });
            let claim = claim.await?;
            if let Claim::Granted(lease) = &claim {
                let mut leases = self.process.leases.lock().unwrap();
                leases.insert(key.kind, (*lease, None));
            }
            Ok(claim)
        })
    }

    fn begin<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        spend: Spend,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Begin, Error>> {
        Box::pin(async move {
            let world = &self.process.world;
            let begun = self.ask(key, move |store| {
                let begun = store.begin(key, lease, spend, now).now_or_never();
                match &begun {
                    Some(Ok(Begin::Granted(ledger))) => {
                        world.judge().entered(key.kind, lease, *ledger);
                    }
                    Some(Ok(Begin::Lost)) => {
                        self.happens("lost lease", format_args!("has lost its lease"));
                    }
                    Some(Ok(Begin::Spent)) => {
                        self.happens("spent budget", format_args!("finds the day's calls spent"));
                    }
                    Some(Ok(Begin::NotForced(_))) => {
                        self.happens("spent force", format_args!("may not force"));
                    }
                    Some(Err(_)) | None => {}
                }
                begun
            });
            let begun = begun.await?;
            if let Begin::Granted(ledger) = &begun {
                let mut leases = self.process.leases.lock().unwrap();
                leases.insert(key.kind, (lease, Some(*ledger)));
            }
            Ok(begun)
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a Key,
        mut lease: Lease,
        fresh: &'a Fresh,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Written, Error>> {
        let write = self.ask(key, move |store| {
            let world = &self.process.world;
            let mut written = world.written.lock().unwrap();
            let highest = written.entry(key.kind).or_default();
            let before = Self::record(key, store);
            if world.fences == Fences::Ignored {
                lease.fence = lease.fence.max(*highest).max(before.version());
            }
            let written = store.write(key, lease, fresh, now).now_or_never();
            let name = match &written {
                Some(Ok(Written::Superseded)) => "superseded",
                Some(Ok(Written::Stored(version))) if *version == before.version() => "unchanged",
                Some(Ok(Written::Stored(_))) => "stored",
                Some(Err(_)) | None => "not stored",
            };
            if let Some(Ok(Written::Stored(_))) = &written {
                *highest = lease.fence;
                let text = fresh.secret.expose_secret();
                world.judge().written(key.kind, lease, text);
                if before.verify.is_some() && Self::record(key, store).verify.is_none() {
                    world.judge().count("verified");
                }
            }
            let fence = lease.fence;
            self.happens(name, format_args!("writes under {fence}: {written:?}"));
            self.judge(key, store);
            written
        });
        Box::pin(async move {
            // Late writers are rare: the proof that they are noticed asks for more of them.
            if self.process.world.fences == Fences::Ignored {
                self.process.tarry(key.kind).await;
            }
            write.await
        })
    }

    fn fail<'a>(
        &'a self,
        key: &'a Key,
        lease: Lease,
        failure: &'a Failure,
        ambiguous: bool,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.happens("failure", format_args!("fails: {}", failure.cause));
        Box::pin(self.ask(key, move |store| {
            let failed = store.fail(key, lease, failure, ambiguous).now_or_never();
            let refusal = failure.cause.refusal();
            if refusal.is_some_and(|refusal| refusal.errcode == ErrCode::DAILY_QUOTA) {
                let ledger = Self::record(key, store).ledger;
                let world = &self.process.world;
                world.judge().exhausted(key.kind, ledger.on(failure.at));
            }
            failed
        }))
    }

    fn release<'a>(&'a self, key: &'a Key, lease: Lease) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(key, move |store| {
            self.process.world.judge().count("given back");
            store.release(key, lease).now_or_never()
        }))
    }

    fn restore<'a>(
        &'a self,
        key: &'a Key,
        held: &'a Credential,
        verify: Option<SystemTime>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(key, move |store| {
            let name = match Self::record(key, store).version() {
                stored if stored < held.version => "put back",
                stored if stored == held.version => "doubt put back",
                _ => "put back in vain",
            };
            self.happens(
                name,
                format_args!(
                    "puts version {} of the {} back",
                    held.version,
                    key.kind.as_str()
                ),
            );
            let restored = store.restore(key, held, verify).now_or_never();
            self.judge(key, store);
            restored
        }))
    }

    fn enter<'a>(&'a self, key: &'a Key, ledger: Ledger) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(key, move |store| {
            self.happens("ledger put back", format_args!("puts {ledger:?} back"));
            store.enter(key, ledger).now_or_never()
        }))
    }

    fn probe<'a>(&'a self, key: &'a Key, now: SystemTime) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.ask(key, move |store| store.probe(key, now).now_or_never()))
    }

    fn follow<'a>(
        &'a self,
        stop: &'a CancellationToken,
        mut on_event: Box<dyn FnMut(Event) + Send + 'a>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let world = &self.process.world;
            let mut cuts = self.process.cut.subscribe();
            let mut deaf = self.process.deaf.subscribe();
            while !stop.is_cancelled() {
                self.process.deafness().await;
                cuts.mark_unchanged();
                deaf.mark_unchanged();
                let fault = async {
                    tokio::select! {
                        biased;
                        _ = cuts.changed() => {}
                        _ = deaf.changed() => {}
                    }
                    sleep(Duration::from_millis(1)).await;
                };
                let (store, lost) = world.connect();
                tokio::select! {
                    biased;
                    () = store.follow(stop, &mut on_event) => {}
                    () = lost.cancelled() => {}
                    () = fault => {}
                }
            }
        })
    }
}
