//! How far the clock of a gateway is from ours, as its questions show: each says until when it is worth an answer, by the gateway's
//! clock. Without this a node whose clock is ten seconds ahead would take every question for too late.

use chappe_schema::{id::Millis, limit::COMMAND_DEADLINE_MS};

/// For how long the quickest question counts; then others must have shown the same.
const WINDOW_MS: Millis = 5_000;

/// Of one gateway. A question is on its way for a while, so the quickest of the last seconds is nearest to the truth.
#[derive(Debug)]
pub(super) struct Skew {
    /// Our time less the gateway's, with the shortest way there was: in this window and the one before, and in this window.
    lowest: i64,
    next: i64,
    since: Millis,
}

impl Skew {
    /// A first question was asked at `theirs`, and is here at `ours`; `passed` is a clock that only goes forward.
    pub(super) fn begin(passed: Millis, ours: Millis, theirs: Millis) -> Self {
        let difference = ours.cast_signed() - theirs.cast_signed();
        Self { lowest: difference, next: difference, since: passed }
    }

    /// Another one. Returns what is to be added to the gateway's times.
    pub(super) fn see(&mut self, passed: Millis, ours: Millis, theirs: Millis) -> i64 {
        let difference = ours.cast_signed() - theirs.cast_signed();
        // No question is on its way for so long: its gateway would have given it up. A clock has jumped.
        if difference > self.lowest + COMMAND_DEADLINE_MS.cast_signed() {
            *self = Self { lowest: difference, next: difference, since: passed };
        }
        if passed.saturating_sub(self.since) >= WINDOW_MS {
            (self.lowest, self.next, self.since) = (self.next, difference, passed);
        }
        self.next = self.next.min(difference);
        self.lowest = self.lowest.min(difference);
        self.lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Millis = 3_600_000;
    const T: Millis = 1_700_000_000_000;

    #[test]
    fn the_quickest_question_shows_it() {
        let mut skew = Skew::begin(0, T + 40, T);
        assert_eq!(skew.see(10, T + 10 + 3, T + 10), 3);
        assert_eq!(skew.see(20, T + 20 + 5_000, T + 20), 3, "that one was held up");
        // Slowly one of the two drifts away.
        assert_eq!(skew.see(WINDOW_MS, T + WINDOW_MS + 20, T + WINDOW_MS), 3);
        assert_eq!(skew.see(2 * WINDOW_MS, T + 2 * WINDOW_MS + 20, T + 2 * WINDOW_MS), 20);
    }

    #[test]
    fn a_clock_that_jumps_is_followed_at_once() {
        let mut skew = Skew::begin(0, T, T);
        assert_eq!(skew.see(1, T + HOUR, T).unsigned_abs(), HOUR, "ours went ahead");
        assert_eq!(skew.see(2, T, T), 0, "and back");
        assert_eq!(skew.see(3, T, T + HOUR), -HOUR.cast_signed(), "theirs did");
        assert_eq!(skew.see(4, T + 1, T), 1);
    }
}
