//! Refreshing under faults: schedules made of a seed, in simulated time.
//!
//! Replicas share a store in memory and a WeChat in memory. A seed decides when they crash, stall at an await, are
//! suspended, lose the store, how wrong their clocks are, and when a request reaches WeChat: maybe long after its sender
//! died. What must hold all the same is said in [`judge`]. `WXHUB_SIM_SEED=<seed> cargo test -p token-service --test
//! simulation` replays one schedule and prints what happened in it.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests"
)]

mod judge;
mod process;
mod schedule;
mod store;
mod wechat;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use self::{schedule::run, world::Fences};

/// Schedules of one run of the tests; `WXHUB_SIM_SCHEDULES` asks for others.
const SCHEDULES: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// The first seeds that fail, with what happened in them.
fn failing(seeds: u64, fences: Fences) -> Vec<(u64, String)> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut failing = Vec::new();
        while failing.is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            let outcome = run(seed, fences);
            if outcome.broken.is_some() {
                failing.push((seed, outcome.to_string()));
                next.store(seeds, Ordering::Relaxed);
            }
        }
        failing
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let found = workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap());
        found.collect()
    })
}

#[test]
fn r03_r04_r15_schedules_of_faults_keep_every_promise() {
    if let Some(seed) = number("WXHUB_SIM_SEED") {
        let outcome = run(seed, Fences::Checked);
        println!("seed {seed}\n{outcome}");
        assert!(outcome.broken.is_none(), "seed {seed}: {outcome}");
        return;
    }
    let seeds = number("WXHUB_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    if let Some((seed, outcome)) = failing(seeds, Fences::Checked).first() {
        panic!("{outcome}\nreplay it with WXHUB_SIM_SEED={seed}");
    }
}

#[test]
fn r04_a_store_that_takes_old_fences_is_found_out() {
    let found = failing(SCHEDULES, Fences::Ignored);
    assert!(!found.is_empty(), "no schedule noticed it");
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let first = run(seed, Fences::Checked);
        assert_eq!(first.happened, run(seed, Fences::Checked).happened);
    }
}
