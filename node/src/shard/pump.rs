//! The pump: what is durable, or was decided, is let out only after a read of the session's fence that started
//! afterwards came back clean.

use std::collections::VecDeque;

use crate::{
    planted::{Bug, is},
    store::Confirmation,
};

/// Everything that waits for a fence read, in the order in which it was issued.
#[derive(Debug)]
pub(super) struct Pump<T> {
    waiting: VecDeque<(u64, T)>,
    issued: u64,
    /// The ticket that the running read covers: those up to it were issued before it started.
    reading: Option<u64>,
}

impl<T> Default for Pump<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), issued: 0, reading: None }
    }
}

impl<T> Pump<T> {
    /// `item` waits for a read that starts from now on.
    pub(super) fn issue(&mut self, item: T) {
        self.issued += 1;
        self.waiting.push_back((self.issued, item));
    }

    /// These wait no longer.
    pub(super) fn forget(&mut self, is_over: impl Fn(&T) -> bool) {
        self.waiting.retain(|(_, item)| !is_over(item));
    }

    /// Whether a read should be started now; the caller starts it at once. `anyway`: also when nothing waits for it.
    pub(super) fn start(&mut self, anyway: bool) -> bool {
        if self.reading.is_some() || (self.waiting.is_empty() && !anyway) {
            return false;
        }
        self.reading = Some(self.issued);
        true
    }

    /// The running read has ended: what it covered, if it was clean.
    pub(super) fn finish(&mut self, confirmation: Confirmation) -> Vec<T> {
        let Some(covered) = self.reading.take() else { return Vec::new() };
        if confirmation != Confirmation::Clean {
            return Vec::new();
        }
        let covered = if is(Bug::TicketEarly) { self.issued } else { covered };
        let count = self.waiting.partition_point(|(ticket, _)| *ticket <= covered);
        self.waiting.drain(..count).map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_covers_only_what_was_issued_before_it_started() {
        let mut pump = Pump::default();
        assert!(!pump.start(false), "nothing waits");
        pump.issue('a');
        pump.issue('b');
        assert!(pump.start(false));
        pump.issue('c');
        assert!(!pump.start(false), "one read at a time");
        assert_eq!(pump.finish(Confirmation::Clean), ['a', 'b']);
        assert!(pump.start(false));
        assert_eq!(pump.finish(Confirmation::Unknown), [' '; 0]);
        assert!(pump.start(false), "an unknown fence is read again");
        assert_eq!(pump.finish(Confirmation::Clean), ['c']);
        assert_eq!(pump.finish(Confirmation::Clean), [' '; 0]);
    }

    #[test]
    fn nothing_leaves_a_fenced_session() {
        let mut pump = Pump::default();
        pump.issue(1);
        pump.start(false);
        assert!(pump.finish(Confirmation::Fenced).is_empty());
    }
}
