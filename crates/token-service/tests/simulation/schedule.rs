//! One schedule: replicas, what befalls them, and what their readers see.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use service_kit::{Catalog, CatalogHandle, Clock, catalog::Needs, ops::Readiness};
use token_service::{
    Broker, Error,
    credential::{Key, slot::Held, store::Store},
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
    process::{Process, Whim},
    store::Line,
    wechat::OVERLAP,
    world::{Fences, World},
};

/// The true time at the start of every schedule.
const START: Duration = Duration::from_secs(1_800_000_000);

/// What came of a schedule.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) happened: Vec<String>,
    /// The first promise that was broken.
    pub(crate) broken: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.happened.join("\n"))
    }
}

/// Runs the schedule of `seed`.
pub(crate) fn run(seed: u64, fences: Fences) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, fences));
        let mut schedule = Schedule::new(Arc::clone(&world));
        schedule.faults().await;
        schedule.calm().await;
        let mut judge = world.judge();
        Outcome {
            happened: std::mem::take(&mut judge.happened),
            broken: judge.broken.take(),
        }
    })
}

struct Schedule {
    world: Arc<World>,
    start: Instant,
    key: Key,
    replicas: Vec<Replica>,
}

struct Replica {
    process: Arc<Process>,
    broker: Broker,
    clock: Clock,
    /// Dropped when it crashes, wherever it is.
    tasks: JoinSet<()>,
    /// When it is started again.
    restart: Option<Instant>,
}

fn catalog(classic: bool) -> Catalog {
    let mode = if classic { "classic" } else { "stable" };
    let text = format!(
        "[[apps]]\napp_id = \"wx0000000000000002\"\nname = \"news\"\nkind = \"official_account\"\n\
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
            start: Instant::now(),
            key: Key::access_token(&"wx0000000000000002".parse().unwrap()),
            replicas: Vec::new(),
            world,
        };
        for replica in 0..2 + usize::from(schedule.world.dice.chance(0.5)) {
            let started = schedule.start_replica(replica);
            schedule.replicas.push(started);
        }
        schedule
    }

    /// The true time.
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + START + self.start.elapsed()
    }

    fn start_replica(&self, replica: usize) -> Replica {
        let world = &self.world;
        let process = Arc::new(Process::new(replica, Arc::clone(world)));
        let skew = if world.faults.skew {
            world.dice.below(4_001)
        } else {
            2_000
        };
        let ahead = Duration::from_millis(skew);
        let clock = Clock::tokio(self.now() - Duration::from_secs(2) + ahead);
        let line = Line {
            process: Arc::clone(&process),
            clock: Clock::tokio(self.now()),
        };
        let (broker, fresh) = Broker::new(
            CatalogHandle::fixed(catalog(world.classic)),
            Store::Simulated(Arc::new(line)),
            Arc::clone(&process) as Arc<_>,
            clock.clone(),
            Random::seeded(world.dice.below(u64::MAX)),
        );
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        tasks.spawn(refresh::run(broker.clone(), fresh, stop.clone()).map(|_| ()));
        tasks.spawn(sync::run(broker.clone(), Readiness::default(), stop).map(|_| ()));
        Replica {
            process,
            broker,
            clock,
            tasks,
            restart: None,
        }
    }

    /// The time of trouble.
    async fn faults(&mut self) {
        let end = Instant::now() + Duration::from_secs(15 + self.world.dice.below(45));
        while Instant::now() < end {
            sleep(Duration::from_millis(20 + self.world.dice.below(980))).await;
            let faults = self.world.faults;
            if faults.empties && self.world.dice.chance(0.01) {
                self.world.empty_store();
            }
            let outage =
                (faults.cuts && self.world.dice.chance(0.01)).then(|| self.world.dice.span());
            for at in 0..self.replicas.len() {
                let replica = &mut self.replicas[at];
                if let Some(span) = outage {
                    replica.process.cut_off(span);
                }
                if replica.process.crashed.is_cancelled() {
                    self.revive(at);
                    continue;
                }
                replica.read(&self.key);
            }
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
                replica.read(&self.key);
            }
            sleep(Duration::from_secs(10)).await;
        }
        self.agree().await;
    }

    /// Every replica serves what is stored.
    async fn agree(&self) {
        let record = self
            .world
            .store()
            .load(&self.key)
            .await
            .unwrap()
            .unwrap_or_default();
        let soon = self.now() + Duration::from_secs(10);
        let Some(stored) = record
            .credential
            .filter(|stored| stored.times.expire > soon)
        else {
            return;
        };
        for replica in &self.replicas {
            let held = replica.broker.get(&self.key).now_or_never();
            let version = held
                .and_then(Result::ok)
                .map(|held| held.credential.version);
            if version != Some(stored.version) {
                let at = replica.process.replica;
                self.world.judge().breaks(format_args!(
                    "replica {at} has {version:?}, stored is {}",
                    stored.version
                ));
            }
        }
    }
}

impl Replica {
    /// One reader's request.
    fn read(&mut self, key: &Key) {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.unwrap();
        }
        if self.process.is_frozen() || self.process.crashed.is_cancelled() {
            return;
        }
        let reader = Reader {
            process: Arc::clone(&self.process),
            broker: self.broker.clone(),
            clock: self.clock.clone(),
            key: key.clone(),
            whim: self.process.whim(),
        };
        self.tasks.spawn(reader.run());
    }
}

struct Reader {
    process: Arc<Process>,
    broker: Broker,
    clock: Clock,
    key: Key,
    whim: Option<Whim>,
}

impl Reader {
    async fn run(self) {
        let world = &self.process.world;
        let Some(held) = self.judged(self.broker.get(&self.key).await) else {
            return;
        };
        let version = held.credential.version;
        let text = held.credential.secret.expose_secret();
        let works = world
            .wechat()
            .token(text)
            .is_some_and(|token| token.works(Instant::now()));
        let whim = if works { self.whim } else { Some(Whim::Report) };
        let answer = match whim {
            None => return,
            Some(Whim::Report) => {
                let code = ErrCode::INVALID_CREDENTIAL;
                report::report(&self.broker, &self.key, version, code).await
            }
            Some(Whim::Refresh { force }) => report::refresh(&self.broker, &self.key, force).await,
        };
        self.judged(answer);
    }

    /// What a caller is given.
    fn judged(&self, answer: Result<Arc<Held>, Error>) -> Option<Arc<Held>> {
        let world = &self.process.world;
        let held = answer.ok().filter(|_| !self.process.is_frozen())?;
        if held.credential.times.expire <= self.clock.now() {
            world.judge().breaks("an expired value was served");
        }
        let text = held.credential.secret.expose_secret();
        world
            .judge()
            .served(self.process.replica, text, &world.wechat());
        Some(held)
    }
}
