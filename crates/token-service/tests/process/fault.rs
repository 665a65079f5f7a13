//! `kill -9` of whoever refreshes, at any moment of a refresh.
//!
//! The tests kill a few times; `scripts/fault-token` does it 50 times and waits until all doubts are settled.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use redis::AsyncCommands as _;
use sandbox::Fault;
use service_kit::Clock;
use test_support::eventually;
use token_client::TokenClient;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Status;
use tonic_types::StatusExt as _;
use wechat::ErrCode;

use crate::{
    cluster::{Cluster, PATIENCE, Replica, force, report, token},
    reader::{OVERLAP, REACH, Seen, read},
    steps::{Step, Steps, What},
};

/// Kills of one run of the tests, one at each moment; `WXHUB_FAULT_KILLS` asks for others.
const KILLS: usize = 5;
/// Another replica has taken over by then.
const TAKEOVER: Duration = Duration::from_secs(6);
/// A refresh that is due begins this long after its token was made old.
const AHEAD: Duration = Duration::from_millis(500);
/// What is to be seen between steps of a refresh is slowed down to this.
const SLOW: Duration = Duration::from_millis(30);
/// A refresh that is not to come by itself.
const FAR: Duration = Duration::from_secs(3_600);
/// What a process sent before it died has arrived by then.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
/// Verifying refreshes come 60 s after a takeover, 30 s after a refused write.
const SETTLED: Duration = Duration::from_secs(100);

/// Where in a refresh its replica is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    BeforeLease,
    Leased,
    Calling,
    Answered,
    Stored,
}

/// Why there is a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Its time has come: all replicas go for the lease.
    Due,
    /// The token was reset at WeChat, and a caller reports it.
    Reported,
    /// An operator forces it.
    Forced,
}

/// What becomes of a write that a replica sent before it died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Lost,
    Arrives,
    /// After another replica took over: Redis must refuse it.
    ArrivesLate,
}

/// One kill, all of it drawn from the seed.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Each app's token is refreshed once.
    app: usize,
    moment: Moment,
    cause: Cause,
    /// Whom callers ask, and who is killed where nobody is known to be the refresher.
    replica: usize,
    /// How far into the moment: 0 to 1.
    share: f64,
    /// How long WeChat takes, in seconds.
    delay: f64,
    write: Write,
}

impl Plan {
    fn draw(seed: u64, kills: usize) -> Vec<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut moments: Vec<_> = [
            Moment::BeforeLease,
            Moment::Leased,
            Moment::Calling,
            Moment::Answered,
            Moment::Stored,
        ]
        .into_iter()
        .cycle()
        .take(kills)
        .collect();
        moments.shuffle(&mut rng);
        let causes = [Cause::Due, Cause::Due, Cause::Reported, Cause::Forced];
        let plans = moments.into_iter().enumerate().map(|(app, moment)| Self {
            app,
            moment,
            cause: causes[rng.random_range(0..causes.len())],
            replica: rng.random_range(0..3),
            share: rng.random(),
            // Shorter than the lease, or so long that the dead one's call comes after the takeover.
            delay: if rng.random() {
                rng.random_range(0.3..3.0)
            } else {
                rng.random_range(6.0..8.0)
            },
            write: [Write::Lost, Write::Arrives, Write::ArrivesLate][rng.random_range(0..3)],
        });
        plans.collect()
    }

    /// Whether it is a kill before the write, and that is to happen to it.
    fn loses(&self, write: Write) -> bool {
        self.moment == Moment::Answered && self.write == write
    }
}

/// How a kill went.
struct Killed {
    plan: Plan,
    struck: Struck,
    outcome: Outcome,
}

/// Who was killed.
struct Struck {
    replica: usize,
    /// So long into the moment.
    after: Duration,
    died: Instant,
    /// From its next start to its first answer.
    back: Duration,
}

/// What callers were told who wanted another token.
enum Answer {
    Refreshed,
    /// No forced refresh is allowed now.
    Refused,
}

enum Outcome {
    /// This replica stored a value so long after the kill.
    TakenOver(usize, Duration),
    /// What the dead one had sent was stored.
    OwnWrite,
    /// The operator was told to wait: no more forced refresh is allowed now.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakenOver(replica, after) => {
                write!(
                    f,
                    "replica {replica} took over after {:.2} s",
                    after.as_secs_f64()
                )
            }
            Self::OwnWrite => f.write_str("its own write stood"),
            Self::Refused => f.write_str("the operator was told to wait"),
        }
    }
}

struct Test {
    cluster: Arc<Cluster>,
    steps: Steps,
    seen: Arc<Seen>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_a_killed_refresher_is_replaced_and_no_reader_notices() {
    let number = |variable| Some(std::env::var(variable).ok()?.parse().expect("a number"));
    let kills = number("WXHUB_FAULT_KILLS");
    let seed = number("WXHUB_FAULT_SEED").unwrap_or_else(|| Clock::System.unix_millis());
    println!("WXHUB_FAULT_SEED={seed} replays this");
    let plans = Plan::draw(
        seed,
        kills.map_or(KILLS, |kills| usize::try_from(kills).unwrap()),
    );

    let cluster = Arc::new(Cluster::start(plans.len() + 1).await);
    let mut tasks = JoinSet::new();
    let test = Test {
        steps: Steps::follow(&cluster, &mut tasks).await,
        seen: read(&cluster, &mut tasks),
        cluster,
    };
    let mut killed = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        let done = test.kill(plan).await;
        println!("{}", test.line(number + 1, &done));
        killed.push(done);
    }
    test.converge(kills.is_some()).await;
    let broken = test.judge(&killed);
    assert!(
        broken.is_empty(),
        "{}\n{}",
        broken.join("\n"),
        test.cluster.log()
    );
}

impl Test {
    async fn kill(&self, plan: Plan) -> Killed {
        let cluster = &self.cluster;
        let account = &cluster.apps[plan.app];
        let current = token(&mut cluster.replicas[plan.replica].rpc(), account).await;
        let version = current.unwrap().version;
        let (begun, calls) = (Instant::now(), cluster.calls(account));
        let due = plan.cause == Cause::Due;
        cluster.age(account, if due { AHEAD } else { FAR }).await;
        self.prepare(plan);
        let callers = timeout(PATIENCE, self.call(plan, version));
        let (answer, struck) = tokio::join!(callers, self.strike(plan, begun, calls));
        let outcome = match answer.expect("callers are answered") {
            Answer::Refused => Outcome::Refused,
            Answer::Refreshed => self.outcome(plan, begun, &struck).await,
        };
        Killed {
            plan,
            struck,
            outcome,
        }
    }

    /// Waits for the moment, kills, and starts the replica again.
    async fn strike(&self, plan: Plan, begun: Instant, calls: u64) -> Struck {
        let cluster = &self.cluster;
        let (replica, moment) = match plan.moment {
            Moment::BeforeLease => (plan.replica, AHEAD),
            Moment::Leased => (self.reach(plan, begun, What::is_leased).await, 3 * SLOW),
            Moment::Calling => {
                let replica = self.reach(plan, begun, What::is_begun).await;
                (replica, Duration::from_secs_f64(plan.delay.min(3.0)))
            }
            Moment::Answered => {
                let replica = self.reach(plan, begun, What::is_begun).await;
                self.hold_the_write(plan, replica, calls).await;
                (replica, SLOW)
            }
            Moment::Stored => (self.reach(plan, begun, What::is_stored).await, 2 * SLOW),
        };
        let after = moment.mul_f64(plan.share);
        sleep(after).await;
        let victim = &cluster.replicas[replica];
        victim.kill();
        let died = Instant::now();
        cluster.wechat.clear_faults();
        if plan.moment == Moment::BeforeLease || plan.loses(Write::Lost) {
            victim.line.cut().await;
        }
        let late = plan.loses(Write::ArrivesLate);
        for (other, line) in cluster.replicas.iter().map(|one| &one.line).enumerate() {
            if !(late && other == replica) {
                line.heal().await;
            }
        }
        if late {
            // Its write waits in the network, and so must it, until another one's is stored; unless no other one comes, for
            // a stable app is not forced twice within 30 s.
            let forced_once = plan.cause == Cause::Forced && !cluster.apps[plan.app].classic;
            if !forced_once {
                self.stored(plan, begun).await;
            }
            victim.line.heal().await;
        }

        let before = self.steps.all().len();
        let back = victim.start(&cluster.apps[cluster.apps.len() - 1]).await;
        let steps = self.steps.all();
        let claims = steps.iter().skip(before).filter(|step| {
            // What is due anyway does not count: this app's refresh, and verifying ones of those before.
            step.replica == Some(replica) && step.what.is_leased() && step.app > plan.app
        });
        assert_eq!(
            claims.count(),
            0,
            "a start refreshes nothing that is good (R13)"
        );
        Struck {
            replica,
            after,
            died,
            back,
        }
    }

    async fn outcome(&self, plan: Plan, begun: Instant, struck: &Struck) -> Outcome {
        let stored = self.stored(plan, begun).await;
        if stored.replica == Some(struck.replica) && stored.at <= struck.died + ON_ITS_WAY {
            return Outcome::OwnWrite;
        }
        let after = stored.at.saturating_duration_since(struck.died);
        Outcome::TakenOver(stored.replica.expect("a replica"), after)
    }

    /// Makes the moment long enough to be hit.
    fn prepare(&self, plan: Plan) {
        let Cluster {
            replicas,
            wechat,
            apps,
            ..
        } = &*self.cluster;
        let app = &apps[plan.app];
        if plan.cause == Cause::Reported {
            wechat.invalidate(&app.id).unwrap();
        }
        let delay = match plan.moment {
            Moment::BeforeLease => return replicas[plan.replica].line.stall(),
            Moment::Leased | Moment::Stored => {
                for replica in replicas {
                    replica.line.delay(SLOW);
                }
                return;
            }
            Moment::Calling => Duration::from_secs_f64(plan.delay),
            Moment::Answered => 5 * SLOW,
        };
        let slow = Fault {
            app_id: Some(app.id.clone()),
            delay_ms: Some(delay.as_millis().try_into().unwrap()),
            ..Fault::at(app.endpoint())
        };
        wechat.add_fault(slow).unwrap();
    }

    /// Callers who want another token than `version`, and do not give up when the replica dies that they asked.
    async fn call(&self, plan: Plan, version: u64) -> Answer {
        let cluster = &self.cluster;
        let app = &cluster.apps[plan.app];
        let asked = &mut cluster.replicas[plan.replica].rpc();
        match plan.cause {
            Cause::Due => {}
            Cause::Reported => {
                let client = TokenClient::new(&cluster.peer());
                if report(asked, app, version).await.is_err() {
                    let id = app.id.parse().unwrap();
                    while client
                        .report(&id, version, ErrCode::INVALID_CREDENTIAL)
                        .await
                        .is_err()
                    {
                        sleep(SLOW).await;
                    }
                }
            }
            Cause::Forced => {
                let mut answer = force(asked, app).await;
                let mut others = cluster.replicas.iter().cycle().skip(plan.replica + 1);
                while let Err(status) = &answer {
                    match reason(status).as_str() {
                        "FORCED_REFRESH_SPENT" => return Answer::Refused,
                        // The dead one had stored it.
                        "REFRESH_TOO_SOON" => break,
                        _ => sleep(SLOW).await,
                    }
                    answer = force(&mut others.next().unwrap().rpc(), app).await;
                }
            }
        }
        Answer::Refreshed
    }

    /// Waits until the app's refresh is that far, and tells who does it.
    async fn reach(&self, plan: Plan, begun: Instant, what: fn(&What) -> bool) -> usize {
        let wanted = |step: &Step| step.app == plan.app && step.at > begun && what(&step.what);
        let step = self.steps.first(PATIENCE, wanted).await;
        let step = step.unwrap_or_else(|| panic!("{plan:?} did not begin"));
        step.replica.expect("a replica")
    }

    async fn stored(&self, plan: Plan, begun: Instant) -> Step {
        let wanted = |step: &Step| step.app == plan.app && step.at > begun && step.what.is_stored();
        let step = self.steps.first(PATIENCE, wanted).await;
        step.unwrap_or_else(|| panic!("{plan:?} was never stored"))
    }

    /// Keeps what the replica is going to write from Redis, and waits until WeChat has answered, after `calls` before.
    async fn hold_the_write(&self, plan: Plan, replica: usize, calls: u64) {
        let app = &self.cluster.apps[plan.app];
        sleep(SLOW).await;
        self.cluster.replicas[replica].line.stall();
        let answered = async {
            while self.cluster.calls(app) == calls {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, answered).await.expect("WeChat answers");
    }
}

impl Test {
    /// Waits until every replica serves what is stored; and, once all doubts are `settled`, what WeChat issued last.
    async fn converge(&self, settled: bool) {
        let Cluster {
            apps,
            replicas,
            wechat,
            ..
        } = &*self.cluster;
        let patience = if settled { SETTLED } else { PATIENCE };
        let mut redis = self.cluster.connect().await;
        eventually("every replica serves the newest", patience, async || {
            let mut rpcs: Vec<_> = replicas.iter().map(Replica::rpc).collect();
            for app in apps {
                let stored: u64 = redis.hget(app.record(), "version").await.unwrap();
                for rpc in &mut rpcs {
                    let token = token(rpc, app).await.map_err(|status| status.to_string())?;
                    let standing = wechat.standing(&app.id, &token.token).unwrap();
                    if token.version != stored || (settled && standing.superseded_for.is_some()) {
                        return Err(format!(
                            "{} ({}): {} is served, {stored} stored, {standing:?}",
                            app.id,
                            app.mode(),
                            token.version
                        ));
                    }
                }
            }
            Ok(())
        })
        .await;
    }

    fn line(&self, number: usize, killed: &Killed) -> String {
        let Killed {
            plan,
            struck,
            outcome,
        } = killed;
        let write = match plan.write {
            _ if plan.moment != Moment::Answered => "",
            Write::Lost => ", its write lost",
            Write::Arrives => ", its write on the way",
            Write::ArrivesLate => ", its write late",
        };
        format!(
            "kill {number:>2}: {:<7} {:<8}  replica {} {:<17} +{:>4} ms{write}: {outcome}; back in {} ms",
            self.cluster.apps[plan.app].mode(),
            format!("{:?}", plan.cause).to_lowercase(),
            struck.replica,
            plan.moment,
            struck.after.as_millis(),
            struck.back.as_millis(),
        )
    }

    /// Prints what was seen, and returns what must not have been.
    fn judge(&self, killed: &[Killed]) -> Vec<String> {
        let (steps, seen) = (self.steps.all(), &self.seen);
        let mut broken = Vec::new();
        let mut must = |holds: bool, what: String| {
            println!("{what}");
            if !holds {
                broken.push(what);
            }
        };

        let mut takeovers: Vec<_> = killed.iter().filter_map(Killed::takeover).collect();
        takeovers.sort_unstable();
        let longest = takeovers.last().copied().unwrap_or_default();
        let median = takeovers
            .get(takeovers.len() / 2)
            .copied()
            .unwrap_or_default();
        must(
            longest <= TAKEOVER,
            format!(
                "kills: {}; takeovers: {}, median {:.2} s, longest {:.2} s (at most {} s)",
                killed.len(),
                takeovers.len(),
                median.as_secs_f64(),
                longest.as_secs_f64(),
                TAKEOVER.as_secs(),
            ),
        );

        let failures = seen.failures.lock().unwrap();
        must(
            failures.is_empty(),
            format!(
                "reads: {}; failed on a living replica or through the balanced client: {} {failures:?}",
                seen.reads.load(Ordering::Relaxed),
                failures.len(),
            ),
        );

        let wasted: Vec<_> = killed.iter().map(|one| self.wasted(&steps, one)).collect();
        let most = wasted.iter().max().copied().unwrap_or_default();
        must(
            most <= 1,
            format!(
                "calls to WeChat whose token was never stored: {}, at most {most} a kill (at most 1)",
                wasted.iter().sum::<u64>(),
            ),
        );

        let set_back = seen.set_back.lock().unwrap();
        let mut grow = BTreeMap::<usize, u64>::new();
        let mut shrunk = 0;
        let versions = steps.iter().filter_map(|step| match step.what {
            What::Stored { version } => Some((step.app, version)),
            _ => None,
        });
        let mut stored = 0;
        for (app, version) in versions {
            stored += 1;
            let before = grow.insert(app, version).unwrap_or_default();
            shrunk += usize::from(version < before);
        }
        must(
            set_back.is_empty() && shrunk == 0,
            format!(
                "versions stored: {stored}, smaller than the one before: {shrunk}; went back before a reader's eyes: {} {set_back:?}",
                set_back.len(),
            ),
        );

        must(
            seen.superseded() <= OVERLAP,
            format!(
                "the longest that a token was served after WeChat had issued another: {:.1} s (at most {} s)",
                seen.superseded().as_secs_f64(),
                OVERLAP.as_secs(),
            ),
        );

        let reported = |app| {
            let reported = |one: &Killed| one.plan.app == app && one.plan.cause == Cause::Reported;
            killed.iter().any(reported)
        };
        let wrong = seen.served_dead(&steps, reported);
        must(
            wrong.is_empty(),
            format!(
                "tokens that died before their successor was stored: {}; served more than {} s beyond that, or dead without reason: {} {wrong:?}",
                seen.dead.lock().unwrap().len(),
                REACH.as_secs(),
                wrong.len(),
            ),
        );

        let mut starts: Vec<_> = killed.iter().map(|one| one.struck.back).collect();
        starts.sort_unstable();
        println!(
            "from a start to the first token served, from Redis and without a call to WeChat: median {} ms, longest {} ms",
            starts[starts.len() / 2].as_millis(),
            starts[starts.len() - 1].as_millis(),
        );
        broken
    }

    /// Calls of the killed one's app whose answers nobody stored.
    fn wasted(&self, steps: &[Step], killed: &Killed) -> u64 {
        let app = killed.plan.app;
        let stored = |step: &&Step| step.app == app && step.what.is_stored();
        let stored = u64::try_from(steps.iter().filter(stored).count()).unwrap();
        // The first token came before the steps were followed.
        self.cluster.calls(&self.cluster.apps[app]) - 1 - stored
    }
}

impl Killed {
    fn takeover(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::TakenOver(_, after) => Some(after),
            Outcome::OwnWrite | Outcome::Refused => None,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BeforeLease => "before its lease",
            Self::Leased => "with its lease",
            Self::Calling => "in its call",
            Self::Answered => "before its write",
            Self::Stored => "after its write",
        })
    }
}

/// The reason that token-service gave, if it was token-service that spoke.
fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}
