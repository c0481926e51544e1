//! Seeded chance. A fault that was found once must be findable again: print the [`Dice`]'s seed, and set
//! `CHAPPE_TEST_SEED` to it.

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// The variable that sets the seed.
pub const SEED: &str = "CHAPPE_TEST_SEED";

/// A source of chance with a seed.
#[derive(Debug, Clone)]
pub struct Dice {
    seed: u64,
    rng: StdRng,
}

impl Dice {
    /// Seeded by the environment, else by chance.
    pub fn new() -> Self {
        Self::of(number(SEED).unwrap_or_else(rand::random))
    }

    /// With this seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, rng: StdRng::seed_from_u64(seed) }
    }

    /// Another source, with a seed drawn from this one: what it is used for does not disturb ours.
    pub fn fork(&mut self) -> Self {
        Self::of(self.rng.random())
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.rng.random_range(0..end.max(1))
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability.clamp(0.0, 1.0))
    }

    /// A time up to `most`.
    pub fn within(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// One of several; the first if there is no other.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        among.choose(&mut self.rng).unwrap_or(&among[0])
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SEED}={}", self.seed)
    }
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.trim().parse().ok()
}
