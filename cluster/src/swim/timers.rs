//! What foca waits for.

use std::collections::BTreeMap;

use chappe_schema::id::Millis;
use foca::Timer;

use super::peer::Peer;

/// Timers in the order in which they are due.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BTreeMap<(Millis, Rank, u64), Timer<Peer>>,
    count: u64,
}

/// Of two that are due together the step of a probe comes before the probe's end, else foca takes the probe for broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Step,
    Other,
}

impl Timers {
    pub(super) fn set(&mut self, due: Millis, timer: Timer<Peer>) {
        let rank = if matches!(timer, Timer::SendIndirectProbe { .. }) { Rank::Step } else { Rank::Other };
        self.count += 1;
        self.waiting.insert((due, rank, self.count), timer);
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Millis> {
        self.waiting.keys().next().map(|(due, ..)| *due)
    }

    /// The next one that is due.
    pub(super) fn next(&mut self, now: Millis) -> Option<Timer<Peer>> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// Everything waits so much longer.
    pub(super) fn postpone(&mut self, by: Millis) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting =
            waiting.into_iter().map(|((due, rank, count), timer)| ((due + by, rank, count), timer)).collect();
    }
}
