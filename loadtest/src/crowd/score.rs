//! What a crowd counts while it works.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The longest latency told apart, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;

/// Counters that all members share.
#[derive(Debug)]
pub(crate) struct Score {
    pub(crate) began: Instant,
    /// Connections that became ready, ever, and those that are.
    pub(crate) ready: AtomicUsize,
    pub(crate) up: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) acks: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) deliveries: AtomicU64,
    /// Conversations of which members said how far they have got, and words of others' that they heard.
    pub(crate) receipts: AtomicU64,
    pub(crate) receipts_heard: AtomicU64,
    /// Reactions that members sent.
    pub(crate) reactions: AtomicU64,
    /// The longest that an acknowledgement took, since somebody asked last.
    pub(crate) longest_us: AtomicU64,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) chores: AtomicUsize,
    /// Latencies are noted of what was meant to be sent from the one time on and before the other, however late it arrives.
    pub(crate) window_us: (AtomicU64, AtomicU64),
    /// Connections that storms broke.
    pub(crate) stormed: AtomicU64,
    pub(crate) ack_us: Mutex<Histogram<u64>>,
    pub(crate) delivery_us: Mutex<Histogram<u64>>,
    /// From a storm until those whose connections it broke were back.
    pub(crate) return_us: Mutex<Histogram<u64>>,
    /// Refusals that were repeated, by their code.
    pub(crate) delayed: Mutex<BTreeMap<String, u64>>,
    /// The first few failures in words.
    pub(crate) complaints: Mutex<Vec<String>>,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half are below.
    pub p50: f64,
    /// Nine in ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1000 are below.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Score {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            ready: AtomicUsize::new(0),
            up: AtomicU64::new(0),
            reactions: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            receipts: AtomicU64::new(0),
            receipts_heard: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            chores: AtomicUsize::new(0),
            window_us: (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)),
            stormed: AtomicU64::new(0),
            ack_us: Mutex::new(histogram()),
            delivery_us: Mutex::new(histogram()),
            return_us: Mutex::new(histogram()),
            delayed: Mutex::default(),
            complaints: Mutex::new(Vec::new()),
        }
    }

    /// Microseconds since the crowd came together.
    pub(crate) fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// What is meant to be sent from now on is measured.
    pub(crate) fn begin_window(&self) {
        self.window_us.1.store(u64::MAX, Relaxed);
        self.window_us.0.store(self.now_us(), Relaxed);
    }

    /// What is meant to be sent from now on is not.
    pub(crate) fn end_window(&self) {
        self.window_us.1.store(self.now_us(), Relaxed);
    }

    fn is_measured(&self, began_us: u64) -> bool {
        (self.window_us.0.load(Relaxed)..self.window_us.1.load(Relaxed)).contains(&began_us)
    }

    /// A message is acknowledged. Whether its sender listened all the time is for the sender to say.
    pub(crate) fn note_ack(&self, began_us: u64, listened: bool) {
        self.acks.fetch_add(1, Relaxed);
        let took = self.now_us().saturating_sub(began_us);
        self.longest_us.fetch_max(took, Relaxed);
        if listened && self.is_measured(began_us) {
            self.ack_us.lock().saturating_record(took);
        }
    }

    pub(crate) fn note_delivery(&self, began_us: u64) {
        if self.is_measured(began_us) {
            self.delivery_us.lock().saturating_record(self.now_us().saturating_sub(began_us));
        }
    }

    /// Somebody is back whose connection a storm broke at this time.
    pub(crate) fn note_return(&self, broken_us: u64) {
        self.return_us.lock().saturating_record(self.now_us().saturating_sub(broken_us));
    }

    pub(crate) fn complain(&self, why: impl FnOnce() -> String) {
        self.failures.fetch_add(1, Relaxed);
        let mut complaints = self.complaints.lock();
        if complaints.len() < 5 {
            complaints.push(why());
        }
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_US_MAX, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("the bounds are constants: {error}"),
    }
}

impl Latency {
    /// Reads a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// What a histogram has counted: microseconds, and how often. Several can be added up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted(Vec<(u64, u64)>);

impl Counted {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        Self(histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect())
    }

    /// Both together.
    pub(crate) fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }

    pub(crate) fn histogram(&self) -> Histogram<u64> {
        let mut histogram = histogram();
        for (value, count) in &self.0 {
            histogram.saturating_record_n(*value, *count);
        }
        histogram
    }
}

/// A latency curve for a plot: (quantile, milliseconds).
pub(crate) fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let nines = (0..=60).map(|step| 1.0 - 10f64.powf(-f64::from(step) / 12.0));
    nines.map(|quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1e3)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_are_those_of_one() {
        let (mut one, mut other, mut both) = (histogram(), histogram(), histogram());
        for value in 1..2_000u64 {
            let half = if value % 3 == 0 { &mut one } else { &mut other };
            half.saturating_record(value * 977);
            both.saturating_record(value * 977);
        }
        let sum = Counted::of(&one).and(Counted::of(&other)).histogram();
        assert_eq!(curve(&sum), curve(&both));
        assert_eq!(sum.len(), both.len());
    }
}
