//! One schedule: replicas, what befalls them, and what their readers see.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use service_kit::{Catalog, CatalogHandle, Clock, catalog::Needs, ops::Readiness};
use token_service::{
    Broker, Error,
    credential::{Key, Kind, slot::Held, store::Store},
    random::Random,
    refresh, report, sync,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use wechat::ErrCode;

use crate::{
    judge::Counts,
    process::{Process, Whim},
    store::Line,
    wechat::OVERLAP,
    world::{Fences, World},
};

/// How wrong a clock may be, either way.
const SKEW: Duration = Duration::from_secs(2);

/// What came of a schedule.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What happened, when that is written down.
    pub(crate) happened: Vec<String>,
    /// How often.
    pub(crate) counts: Counts,
    /// The first promise that was broken.
    pub(crate) broken: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.happened.join("\n"))
    }
}

/// Runs the schedule of `seed`, and writes down what happens if there are to be `notes`.
pub(crate) fn run(seed: u64, fences: Fences, notes: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, fences, notes));
        let mut schedule = Schedule::new(Arc::clone(&world));
        schedule.faults().await;
        schedule.calm().await;
        let mut judge = world.judge();
        Outcome {
            happened: std::mem::take(&mut judge.happened),
            counts: std::mem::take(&mut judge.counts),
            broken: judge.broken.take(),
        }
    })
}

struct Schedule {
    world: Arc<World>,
    catalog: CatalogHandle,
    keys: Vec<Key>,
    replicas: Vec<Replica>,
}

struct Replica {
    process: Arc<Process>,
    broker: Broker,
    /// Dropped when it crashes, wherever it is.
    tasks: JoinSet<()>,
    /// When it is started again.
    restart: Option<Instant>,
}

fn catalog(world: &World) -> Catalog {
    let app = &world.app;
    let mode = if world.classic { "classic" } else { "stable" };
    let text = format!(
        "[[apps]]\napp_id = \"{app}\"\nname = \"news\"\nkind = \"official_account\"\n\
         secret = \"dev-secret-news\"\ntoken_mode = \"{mode}\"\n"
    );
    let needs = Needs {
        app_secrets: true,
        callbacks: false,
    };
    Catalog::parse(&text, needs, |_| None).unwrap()
}

impl Schedule {
    fn new(world: Arc<World>) -> Self {
        let mut schedule = Self {
            catalog: CatalogHandle::fixed(catalog(&world)),
            keys: world.keys(),
            replicas: Vec::new(),
            world,
        };
        for replica in 0..2 + usize::from(schedule.world.dice.chance(0.5)) {
            let started = schedule.start_replica(replica);
            schedule.replicas.push(started);
        }
        schedule
    }

    fn start_replica(&self, replica: usize) -> Replica {
        let world = &self.world;
        let skew = if world.faults.skew {
            world.judge().count("skewed clock");
            Duration::from_millis(world.dice.below(4_001))
        } else {
            SKEW
        };
        let clock = Clock::tokio(world.clock.now() - SKEW + skew);
        let process = Process::new(replica, Arc::clone(world), clock.clone());
        let process = Arc::new(process);
        let line = Line {
            process: Arc::clone(&process),
        };
        let (broker, fresh) = Broker::new(
            self.catalog.clone(),
            Store::Simulated(Arc::new(line)),
            Arc::clone(&process) as Arc<_>,
            clock,
            Random::seeded(world.dice.below(u64::MAX)),
        );
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(refresh::run(broker.clone(), fresh, stop.clone()).map(|_| ()));
        tasks.spawn(sync::run(broker.clone(), Readiness::default(), stop).map(|_| ()));
        Replica {
            process,
            broker,
            tasks,
            restart: None,
        }
    }

    /// The time of trouble.
    async fn faults(&mut self) {
        let world = Arc::clone(&self.world);
        let (dice, faults) = (&world.dice, world.faults);
        let end = Instant::now() + Duration::from_secs(15 + dice.below(45));
        while Instant::now() < end {
            sleep(Duration::from_millis(20 + dice.below(980))).await;
            if faults.empties && dice.chance(0.01) {
                world.empty_store();
            }
            if faults.suspends && dice.chance(0.02) {
                let span = Duration::from_secs(1 + dice.below(*dice.pick(&[30, 600, 10_000])));
                self.suspend(span);
            }
            let outage = (faults.cuts && dice.chance(0.01)).then(|| dice.span());
            for at in 0..self.replicas.len() {
                let replica = &mut self.replicas[at];
                if let Some(span) = outage {
                    replica.process.cut_off(span);
                }
                if replica.process.crashed.is_cancelled() {
                    self.revive(at);
                    continue;
                }
                replica.read(&self.keys);
            }
        }
    }

    /// All machines but the store's and WeChat's sleep.
    fn suspend(&self, span: Duration) {
        self.world.suspend(span);
        for replica in &self.replicas {
            replica.process.clock.suspend(span);
        }
    }

    /// Ends what is left of a crashed replica, and starts another after a while.
    fn revive(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let restart = *replica.restart.get_or_insert_with(|| {
            replica.tasks = JoinSet::new();
            Instant::now() + self.world.dice.span()
        });
        if self.world.calm.is_cancelled() || Instant::now() >= restart {
            let replica = self.replicas[at].process.replica;
            self.world
                .judge()
                .note(format_args!("replica {replica} starts again"));
            self.replicas[at] = self.start_replica(replica);
        }
    }

    /// Faults are over: the replicas agree within a second, and go on to do so.
    async fn calm(&mut self) {
        self.world.judge().note("faults are over");
        self.world.calm.cancel();
        for at in 0..self.replicas.len() {
            if self.replicas[at].process.crashed.is_cancelled() {
                self.revive(at);
            }
        }
        sleep(Duration::from_secs(1)).await;
        self.agree().await;
        // Until a superseded token would be served too long, or is none any more.
        let end = Instant::now() + self.world.wechat().life.min(OVERLAP);
        while Instant::now() < end {
            for replica in &mut self.replicas {
                replica.read(&self.keys);
            }
            sleep(Duration::from_secs(10)).await;
        }
        self.agree().await;
    }

    /// Every replica serves what is stored.
    async fn agree(&self) {
        for key in &self.keys {
            self.agree_on(key).await;
        }
    }

    async fn agree_on(&self, key: &Key) {
        let world = &self.world;
        let record = world.store().load(key).await.unwrap().unwrap_or_default();
        let soon = world.clock.now() + Duration::from_secs(10);
        let Some(stored) = record
            .credential
            .filter(|stored| stored.times.expire > soon)
        else {
            return;
        };
        world.judge().count("agreement");
        for replica in &self.replicas {
            let held = replica.broker.get(key).now_or_never();
            let version = held
                .and_then(Result::ok)
                .map(|held| held.credential.version);
            if version != Some(stored.version) {
                let at = replica.process.replica;
                world.judge().breaks(format_args!(
                    "replica {at} has {version:?} of {key}, stored is {}",
                    stored.version
                ));
            }
        }
    }
}

impl Replica {
    /// One reader's request of each credential.
    fn read(&mut self, keys: &[Key]) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.unwrap();
        }
        if self.process.is_frozen() || self.process.crashed.is_cancelled() {
            return;
        }
        for key in keys {
            let reader = Reader {
                process: Arc::clone(&self.process),
                broker: self.broker.clone(),
                key: key.clone(),
            };
            // What only tokens can be: reported.
            let whim = (key.kind == Kind::AccessToken).then(|| self.process.whim());
            self.tasks.spawn(reader.run(whim.flatten()));
        }
    }
}

struct Reader {
    process: Arc<Process>,
    broker: Broker,
    key: Key,
}

impl Reader {
    async fn run(self, whim: Option<Whim>) {
        let world = &self.process.world;
        let Some(held) = self.judged(self.broker.get(&self.key).await) else {
            return;
        };
        let version = held.credential.version;
        let text = held.credential.secret.expose_secret();
        let now = world.clock.elapsed();
        let works = world.wechat().text(text).is_some_and(|it| it.works(now));
        let whim = if works { whim } else { Some(Whim::Report) };
        let answer = match whim {
            None => return,
            Some(Whim::Report) => {
                let what = if works { "mistaken report" } else { "report" };
                self.process
                    .happens(what, format_args!("hears a {what} of {text}"));
                let code = ErrCode::INVALID_CREDENTIAL;
                report::report(&self.broker, &self.key, version, code).await
            }
            Some(Whim::Refresh { force }) => {
                self.process
                    .happens("operator", format_args!("is to refresh, by force: {force}"));
                report::refresh(&self.broker, &self.key, force).await
            }
        };
        self.judged(answer);
    }

    /// What a caller is given.
    fn judged(&self, answer: Result<Arc<Held>, Error>) -> Option<Arc<Held>> {
        let world = &self.process.world;
        if self.process.is_frozen() {
            return None;
        }
        let held = match answer {
            Ok(held) => held,
            Err(error) => {
                world.judge().count(match error {
                    Error::QuotaSpent { .. } => "refused for the ledger",
                    Error::ForceSpent { .. } => "refused to force",
                    Error::StoreUnavailable => "refused without the store",
                    Error::TooSoon { .. } => "refused below the floor",
                    _ => "refused",
                });
                return None;
            }
        };
        if held.credential.times.expire <= self.process.clock.now() {
            world.judge().breaks("an expired value was served");
        }
        let text = held.credential.secret.expose_secret();
        world
            .judge()
            .served(self.process.replica, text, &world.wechat());
        Some(held)
    }
}
