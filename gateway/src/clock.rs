//! The time, once exactly and once roughly.
//!
//! What a node or a client compares (deadlines, stamps) is read from the system's clock. What only has to be right to
//! a second (who was heard when) is read from a number that the sweep moves once a second, so that millions of looks
//! at it cost a load each.

#[cfg(feature = "simulation")]
use std::sync::{Arc, atomic::AtomicU64};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use chappe_schema::id::Millis;

/// The gateway's clock.
pub(crate) struct Clock {
    time: Time,
    seconds: AtomicU32,
    /// Seconds by which a test has turned it forwards.
    turned: AtomicU32,
}

/// Where it takes the time from.
enum Time {
    /// The system, and how long it has been since then.
    System(Instant),
    /// Whoever drives the gateway by hand.
    #[cfg(feature = "simulation")]
    Given { now: Arc<AtomicU64>, began: Millis },
}

impl Clock {
    /// A clock that begins at second 1: 0 is free to mean "never".
    pub(crate) fn new() -> Self {
        Self::of(Time::System(Instant::now()))
    }

    /// A clock that shows what `now` holds, in milliseconds since the Unix epoch.
    #[cfg(feature = "simulation")]
    pub(crate) fn given(now: Arc<AtomicU64>) -> Self {
        let began = now.load(Ordering::Relaxed);
        Self::of(Time::Given { now, began })
    }

    fn of(time: Time) -> Self {
        Self { time, seconds: AtomicU32::new(1), turned: AtomicU32::new(0) }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> Millis {
        let ms = match &self.time {
            Time::System(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            #[cfg(feature = "simulation")]
            Time::Given { now, .. } => now.load(Ordering::Relaxed),
        };
        ms + u64::from(self.turned.load(Ordering::Relaxed)) * 1000
    }

    /// Whole seconds since the gateway started, as of the last sweep.
    pub(crate) fn seconds(&self) -> u32 {
        self.seconds.load(Ordering::Relaxed)
    }

    /// Milliseconds since the gateway started, exactly. Never goes back.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        let ms = match &self.time {
            Time::System(began) => began.elapsed().as_millis() as u64,
            #[cfg(feature = "simulation")]
            Time::Given { now, began } => now.load(Ordering::Relaxed).saturating_sub(*began),
        };
        ms + u64::from(self.turned.load(Ordering::Relaxed)) * 1000
    }

    /// Moves the seconds on; the sweep does.
    pub(crate) fn tick(&self) -> u32 {
        let seconds = (self.elapsed_ms() / 1000) as u32 + 1;
        self.seconds.store(seconds, Ordering::Relaxed);
        seconds
    }

    /// Turns the clock forwards: tests do not wait for heartbeats.
    #[cfg(test)]
    pub(crate) fn turn(&self, seconds: u32) {
        self.turned.fetch_add(seconds, Ordering::Relaxed);
    }
}
