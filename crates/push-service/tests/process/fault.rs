//! Everything that can go away goes away while messages go out: what was accepted is delivered, once.
//!
//! The tests do each of it for some seconds; `scripts/fault-push` does it for 50,000 messages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sandbox::Fault;
use service_kit::Clock;
use test_support::eventually;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    cluster::{CUSTOM_SEND, Cluster, PATIENCE, TEMPLATE_SEND},
    load::{Load, Pace},
    progress::{Deliveries, InFlight},
    tally::Tally,
};

/// What a killed replica held goes on within this.
const TAKEOVER: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// Backoff never makes all that is left wait longer than this.
const STANDSTILL: Duration = Duration::from_secs(300);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(100);
/// What was sent before a process died has arrived in the database by then.
const ON_ITS_WAY: Duration = Duration::from_millis(50);

/// How much of it: `WXHUB_FAULT_MESSAGES` asks for the whole proof.
struct Form {
    messages: Option<usize>,
}

impl Form {
    fn of_the_environment() -> Self {
        let messages = std::env::var("WXHUB_FAULT_MESSAGES").ok();
        Self {
            messages: messages.map(|messages| messages.parse().expect("a number")),
        }
    }

    /// The short form's value, or the whole proof's.
    fn pick<T>(&self, short: T, whole: T) -> T {
        if self.messages.is_some() {
            whole
        } else {
            short
        }
    }

    /// Messages that come at a rate of 150 a second for some `seconds`, or those of the whole proof.
    fn pace(&self, seconds: usize) -> Pace {
        let rate = 150;
        Pace {
            messages: self.messages.unwrap_or(rate * seconds),
            rate: self.pick(Some(rate), None),
            backlog: 1_000,
        }
    }
}

/// One run.
struct Run {
    name: &'static str,
    cluster: Arc<Cluster>,
    pace: Pace,
    deliveries: Arc<Deliveries>,
    tasks: JoinSet<()>,
}

impl Run {
    async fn start(name: &'static str, pace: Pace) -> Self {
        let cluster = Arc::new(Cluster::start().await);
        let deliveries = Arc::new(Deliveries::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&deliveries).watch(Arc::clone(&cluster)));
        Self {
            name,
            cluster,
            pace,
            deliveries,
            tasks,
        }
    }

    /// Has all messages accepted while `fault` happens, again and again until they are, and waits until none is left to be
    /// sent. `fault` returns when it ended, with that moment.
    async fn under(&self, mut fault: impl AsyncFnMut() -> Instant) -> Outcome {
        let load = Load::prepare(&self.cluster, self.pace).await;
        let begun = Instant::now();
        let all_accepted = AtomicBool::new(false);
        let load = async {
            let accepted = load.run().await;
            all_accepted.store(true, Ordering::SeqCst);
            (accepted, begun.elapsed())
        };
        let faults = async {
            let mut ended = Vec::new();
            eventually("messages go out", PATIENCE, async || {
                self.cluster.taken() > 0
            })
            .await;
            while !all_accepted.load(Ordering::SeqCst) {
                ended.push(fault().await);
            }
            ended
        };
        let ((accepted, took), ended) = tokio::join!(load, faults);
        self.drain().await;
        println!(
            "{}: {} messages, all accepted after {:.1} s, all ended after {:.1} s",
            self.name,
            self.pace.messages,
            took.as_secs_f64(),
            begun.elapsed().as_secs_f64(),
        );
        let tally = Tally::count(&self.cluster, self.pace.messages, accepted).await;
        println!("{}: {tally}", self.name);
        Outcome { tally, ended }
    }

    /// Waits until every message ended.
    async fn drain(&self) {
        let mut taken = (0, Instant::now());
        let left = "SELECT COUNT(*) AS n FROM message WHERE state IN (2, 3)";
        loop {
            let rows = self.cluster.query(left).await.unwrap();
            let left: i64 = rows[0].try_get("", "n").unwrap();
            if left == 0 {
                return;
            }
            let now = self.cluster.taken();
            if now > taken.0 {
                taken = (now, Instant::now());
            }
            assert!(
                taken.1.elapsed() < STANDSTILL,
                "{left} messages wait, and WeChat got none for {STANDSTILL:?}\n{}",
                self.cluster.log()
            );
            sleep(LOOK).await;
        }
    }

    /// Prints how deliveries stood still, and how long after each end of a fault the next message reached WeChat.
    fn recovery(&self, outcome: &Outcome) {
        let next = outcome.ended.iter();
        let next = next.filter_map(|ended| self.deliveries.next_after(*ended));
        println!(
            "{}: {} faults; nothing reached WeChat for at most {:.1} s; the next message after the end of one, at the latest {:.2} s after it",
            self.name,
            outcome.ended.len(),
            self.deliveries.longest_pause().as_secs_f64(),
            next.max().unwrap_or_default().as_secs_f64()
        );
    }

    /// Nothing is lost, and nothing comes twice unless nobody can know better.
    fn judge(&self, tally: &Tally, ambiguous: bool) {
        let messages = self.pace.messages;
        assert_eq!(
            (tally.accepted, tally.sent, tally.delivered),
            (messages, messages, messages),
            "{:#?}\n{}",
            tally.lost,
            self.cluster.log()
        );
        assert!(tally.lost.is_empty(), "lost: {:#?}", tally.lost);
        let unambiguous = &tally.unambiguous;
        assert!(unambiguous.is_empty(), "came twice: {unambiguous:#?}");
        if !ambiguous {
            assert_eq!(tally.possible, 0, "no outcome was unknown");
        }
    }
}

struct Outcome {
    tally: Tally,
    /// When each fault ended.
    ended: Vec<Instant>,
}

/// f: what it held goes on in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_replicas_loses_nothing_and_their_work_goes_on() {
    let form = Form::of_the_environment();
    let seed = std::env::var("WXHUB_FAULT_SEED").map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|_| Clock::System.unix_millis());
    println!("kill: WXHUB_FAULT_SEED={seed} replays this");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut run = Run::start("kill", form.pace(5)).await;
    let cluster = Arc::clone(&run.cluster);
    cluster.slow_wechat();
    let in_flight = Arc::new(InFlight::default());
    run.tasks
        .spawn(Arc::clone(&in_flight).watch(Arc::clone(&cluster)));
    let outcome = run
        .under(async || {
            // A second apart, and never in step with leases.
            sleep(SECOND.mul_f64(rng.random_range(0.5..1.5))).await;
            let replica = &cluster.replicas[rng.random_range(0..cluster.replicas.len())];
            replica.kill();
            let died = Instant::now();
            replica.start();
            sleep(ON_ITS_WAY).await;
            in_flight.note(&cluster, died).await.unwrap();
            died
        })
        .await;
    let gone_on = eventually("all in flight went on", PATIENCE, async || {
        in_flight.all_gone_on()
    });
    let gone_on = gone_on.await;
    let longest = gone_on.last().copied().unwrap_or_default();
    println!(
        "kill: {} kills; {} messages in flight at one, by whomever; gone on at the latest {:.2} s after it (at most {} s)",
        outcome.ended.len(),
        gone_on.len(),
        longest.as_secs_f64(),
        TAKEOVER.as_secs()
    );
    run.judge(&outcome.tally, true);
    assert!(longest <= TAKEOVER, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarted_empty_loses_and_doubles_nothing() {
    let form = Form::of_the_environment();
    let run = Run::start("redis", form.pace(6)).await;
    let cluster = &run.cluster;
    cluster.slow_wechat();
    let (up, down) = form.pick((SECOND, SECOND), (10 * SECOND, 5 * SECOND));
    let mut rounds = 0;
    let outcome = run
        .under(async || {
            sleep(up).await;
            rounds += 1;
            // In turn: it is gone and comes back empty, or hangs and goes on.
            if rounds % 2 == 1 {
                cluster.redis.kill();
                sleep(down).await;
                cluster.redis.restart().await;
            } else {
                cluster.redis.pause();
                sleep(down).await;
                cluster.redis.resume();
            }
            Instant::now()
        })
        .await;
    run.recovery(&outcome);
    run.judge(&outcome.tally, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_restarted_loses_and_doubles_nothing() {
    let form = Form::of_the_environment();
    let run = Run::start("database", form.pace(6)).await;
    let cluster = &run.cluster;
    cluster.slow_wechat();
    let (up, down) = form.pick((2 * SECOND, SECOND), (20 * SECOND, 5 * SECOND));
    let outcome = run
        .under(async || {
            sleep(up).await;
            cluster.server.kill();
            sleep(down).await;
            cluster.server.restart().await;
            Instant::now()
        })
        .await;
    run.recovery(&outcome);
    run.judge(&outcome.tally, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wechat_down_loses_nothing() {
    let form = Form::of_the_environment();
    let down = form.pick(6 * SECOND, 120 * SECOND);
    let mut pace = form.pace(5);
    // What is accepted meanwhile waits, and so long it is accepted.
    pace.backlog = usize::MAX;
    pace.rate
        .get_or_insert_with(|| (pace.messages / 100).max(1));
    let run = Run::start("wechat-down", pace).await;
    let cluster = &run.cluster;
    cluster.slow_wechat();
    let outcome = run
        .under(async || {
            sleep(2 * SECOND).await;
            cluster.line.cut().await;
            sleep(down).await;
            cluster.line.heal().await;
            Instant::now()
        })
        .await;
    println!(
        "wechat-down: all that waited was sent {:.1} s after the end",
        outcome.ended[0].elapsed().as_secs_f64()
    );
    run.recovery(&outcome);
    let pause = run.deliveries.longest_pause();
    assert!(pause + SECOND >= down, "WeChat was down: {pause:?}");
    // What was on the wire when it broke may have arrived.
    run.judge(&outcome.tally, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unwell_wechat_loses_nothing() {
    let form = Form::of_the_environment();
    let run = Run::start("wechat-faults", form.pace(5)).await;
    let cluster = &run.cluster;
    for endpoint in [TEMPLATE_SEND, CUSTOM_SEND] {
        // Half of each after the work was done.
        for carried_out in [false, true] {
            let fault = |share| Fault {
                share: Some(share / 2.0),
                times: u32::MAX,
                carried_out,
                ..Fault::at(endpoint)
            };
            for fault in [
                Fault {
                    errcode: Some(-1),
                    ..fault(0.05)
                },
                Fault {
                    reset: true,
                    ..fault(0.02)
                },
                Fault {
                    status: Some(502),
                    body: Some("<html>Bad Gateway</html>".to_owned()),
                    ..fault(0.01)
                },
            ] {
                cluster.wechat.add_fault(fault).unwrap();
            }
        }
    }
    cluster.slow_wechat();
    let outcome = run
        .under(async || {
            sleep(SECOND).await;
            Instant::now()
        })
        .await;
    println!("wechat-faults: {:?}", cluster.wechat.calls(None).counts);
    run.judge(&outcome.tally, true);
}
