//! The buckets of one process, over `governor`: a 64-bit number per key, moved by compare-and-swap.
//!
//! A key is held as a hash with a secret seed, so that a check copies no text and a bucket has one size, whatever users
//! are called. Two keys that met in a hash (one pair in 30 million tables of a million keys) would share a bucket.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    ops::Deref,
    sync::atomic::{AtomicUsize, Ordering},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{
        InMemoryState, NotKeyed, StateStore,
        keyed::{DashMapStateStore, ShrinkableKeyedStateStore},
    },
};
use metrics::{Counter, Gauge};

use super::{Config, DECISIONS_TOTAL, Decision, KEYS, Key, Limiter, Rate, Scope, Swept, Verdict};

/// The label `backend` of this backend's metrics.
const BACKEND: &str = "local";

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MS: u64 = 1_000_000;

/// The limiter of one process. `C` is its clock, which tests own.
pub struct Local<C: Clock = DefaultClock> {
    scopes: [Scoped<C>; Scope::ALL.len()],
    /// Seeds the hash of keys. SipHash: users who could choose their ids could otherwise aim at another's bucket.
    seed: RandomState,
    exempt_loopback: bool,
}

/// One scope's buckets and handles of metrics.
struct Scoped<C: Clock> {
    /// `None`: unlimited.
    rule: Option<Rule<C>>,
    allowed: Counter,
    refused: Counter,
    exempt: Counter,
    keys: Gauge,
}

struct Rule<C: Clock> {
    buckets: RateLimiter<u64, Buckets, C, StateInformationMiddleware>,
    burst: NonZeroU32,
    /// What one of the budget takes to flow in.
    interval_ns: u64,
}

/// A bounded table of buckets.
struct Buckets {
    own: DashMapStateStore<u64, foldhash::fast::RandomState>,
    /// Entries of `own`, and those about to be: counting the table itself would lock each of its parts.
    held: AtomicUsize,
    keys_max: usize,
    /// The bucket of all who come when the table is full.
    shared: InMemoryState,
}

// === impl Local ===

impl Local {
    /// A limiter with full budgets. Install the metrics recorder first: handles are taken here, once.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self::with_clock(config, &DefaultClock::default())
    }
}

impl<C: Clock + Clone> Local<C> {
    /// A limiter that lives by `clock`.
    #[must_use]
    pub fn with_clock(config: &Config, clock: &C) -> Self {
        Self {
            scopes: Scope::ALL.map(|scope| Scoped::new(scope, config.rate(scope), config.keys_max, clock)),
            seed: RandomState::new(),
            exempt_loopback: config.exempt_loopback,
        }
    }
}

impl<C: Clock> Local<C> {
    fn decide(&self, scope: Scope, key: Key<'_>, cost: u32) -> Decision {
        let scoped = &self.scopes[scope as usize];
        let (Some(rule), Some(cost)) = (&scoped.rule, NonZeroU32::new(cost)) else {
            scoped.exempt.increment(1);
            return Decision::UNLIMITED;
        };
        if self.exempt_loopback && key.is_loopback() {
            scoped.exempt.increment(1);
            return Decision::UNLIMITED;
        }
        let decision = rule.spend(self.seed.hash_one(key.grouped()), cost);
        if decision.allowed { &scoped.allowed } else { &scoped.refused }.increment(1);
        decision
    }
}

impl<C> Limiter for Local<C>
where
    C: Clock + Send + Sync,
{
    fn check(&self, scope: Scope, key: Key<'_>, cost: u32) -> Verdict {
        Verdict::Ready(self.decide(scope, key, cost))
    }

    fn sweep(&self) -> Swept {
        let mut swept = Swept::default();
        for scoped in &self.scopes {
            let Some(rule) = &scoped.rule else { continue };
            let before = rule.buckets.len();
            rule.buckets.retain_recent();
            rule.buckets.shrink_to_fit();
            let kept = rule.buckets.len();
            scoped.keys.set(kept as f64);
            swept.dropped += before.saturating_sub(kept);
            swept.kept += kept;
        }
        swept
    }
}

// === impl Scoped ===

impl<C: Clock + Clone> Scoped<C> {
    fn new(scope: Scope, rate: Rate, keys_max: usize, clock: &C) -> Self {
        let decisions = |decision: &'static str| metrics::counter!(DECISIONS_TOTAL, "scope" => scope.as_str(), "backend" => BACKEND, "decision" => decision);
        Self {
            rule: Rule::new(rate, keys_max, clock),
            allowed: decisions("allowed"),
            refused: decisions("refused"),
            exempt: decisions("exempt"),
            keys: metrics::gauge!(KEYS, "scope" => scope.as_str(), "backend" => BACKEND),
        }
    }
}

// === impl Rule ===

impl<C: Clock + Clone> Rule<C> {
    fn new(rate: Rate, keys_max: usize, clock: &C) -> Option<Self> {
        let per_second = NonZeroU32::new(rate.per_second)?;
        let burst = NonZeroU32::new(rate.burst).unwrap_or(per_second);
        let buckets = Buckets {
            own: DashMapStateStore::with_hasher(foldhash::fast::RandomState::default()),
            held: AtomicUsize::new(0),
            keys_max,
            shared: InMemoryState::default(),
        };
        Some(Self {
            buckets: RateLimiter::new(Quota::per_second(per_second).allow_burst(burst), buckets, clock.clone()),
            burst,
            interval_ns: (NANOS_PER_SECOND / u64::from(per_second.get())).max(1),
        })
    }
}

impl<C: Clock> Rule<C> {
    fn spend(&self, key: u64, cost: NonZeroU32) -> Decision {
        let cost = cost.min(self.burst);
        match self.buckets.check_key_n(&key, cost) {
            Ok(Ok(state)) => self.decision(true, state.remaining_burst_capacity(), 0),
            Ok(Err(until)) => {
                let wait_ns = until.wait_time_from(self.buckets.clock().now()).as_nanos();
                let wait_ns = u64::try_from(wait_ns).unwrap_or(u64::MAX);
                let missing = u32::try_from(wait_ns.div_ceil(self.interval_ns)).unwrap_or(u32::MAX);
                // At least a millisecond, even when the moment came between the two looks at the clock.
                let retry_after_ms = wait_ns.div_ceil(NANOS_PER_MS).max(1);
                self.decision(false, cost.get().saturating_sub(missing.max(1)), retry_after_ms)
            }
            // Only a cost above the burst is out of reach, and none is.
            Err(_) => self.decision(false, 0, u64::MAX),
        }
    }

    fn decision(&self, allowed: bool, remaining: u32, retry_after_ms: u64) -> Decision {
        let limit = self.burst.get();
        let missing = u64::from(limit.saturating_sub(remaining));
        let reset_after_ms = missing.saturating_mul(self.interval_ns).div_ceil(NANOS_PER_MS);
        Decision { allowed, limit, remaining, reset_after_ms, retry_after_ms }
    }
}

// === impl Buckets ===

impl Buckets {
    /// A bucket for a key that was not in the table a moment ago, if there is room. Another thread may have brought the
    /// same key meanwhile.
    fn settle(&self, key: u64) -> Option<impl Deref<Target = InMemoryState>> {
        if !self.reserve() {
            return None;
        }
        let mut is_new = false;
        let bucket = self.own.entry(key).or_insert_with(|| {
            is_new = true;
            InMemoryState::default()
        });
        if !is_new {
            self.release(1);
        }
        Some(bucket)
    }

    /// Takes a place in the table, if there is one.
    fn reserve(&self) -> bool {
        let one_more = |held: usize| (held < self.keys_max).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn release(&self, places: usize) {
        self.held.fetch_sub(places, Ordering::Relaxed);
    }
}

impl StateStore for Buckets {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, spend: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if let Some(bucket) = self.own.get(key) {
            return bucket.measure_and_replace(&NotKeyed::NonKey, spend);
        }
        match self.settle(*key) {
            Some(bucket) => bucket.measure_and_replace(&NotKeyed::NonKey, spend),
            None => self.shared.measure_and_replace(&NotKeyed::NonKey, spend),
        }
    }
}

impl ShrinkableKeyedStateStore<u64> for Buckets {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut dropped = 0;
        self.own.retain(|_, bucket| {
            // Spends nothing: the look itself is the refusal.
            let full_at = bucket.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>);
            let keep = full_at.is_err_and(|full_at| full_at.is_some_and(|full_at| full_at > drop_below));
            dropped += usize::from(!keep);
            keep
        });
        self.release(dropped);
    }

    /// Gives memory back once a flood is over, but not at every ebb: growing again is paid for by checks.
    fn shrink_to_fit(&self) {
        const SPARE: usize = 4;
        const SMALL: usize = 16 * 1024;
        if self.own.capacity() > SMALL.max(SPARE * self.len()) {
            self.own.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
