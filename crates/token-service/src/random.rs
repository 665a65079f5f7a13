//! Randomness as an input: one seed replays a run.

use std::sync::{Arc, Mutex, PoisonError};

use rand::{RngExt as _, SeedableRng as _, distr::Alphanumeric, rngs::StdRng};

/// Characters of a JS-SDK nonce: 95 bits.
const NONCE: usize = 16;

/// Random numbers; clones share one generator.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// A generator that nobody can foresee.
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_rng(&mut rand::rng()))))
    }

    /// A generator that gives the same numbers each time: for tests.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A number from 0 to below 1.
    pub(crate) fn fraction(&self) -> f64 {
        self.with(|rng| rng.random())
    }

    /// The `nonceStr` of a signature.
    pub(crate) fn nonce(&self) -> String {
        self.with(|rng| {
            let characters = rng.sample_iter(Alphanumeric);
            characters.take(NONCE).map(char::from).collect()
        })
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
