//! Rule 12: the longest time a conversation went without a success while somebody tried.

use super::{Oracle, Rule, ledger::Log};

impl Log {
    pub(super) fn attempt(&mut self, at: u64) {
        if self.pending == 0 && !self.dark {
            self.waiting_since = at;
        }
        self.pending += 1;
    }

    pub(super) fn success(&mut self, at: u64) {
        self.window(at);
        self.pending = self.pending.saturating_sub(1);
        self.waiting_since = at;
        self.dark = false;
    }

    /// A failure ends an attempt, and not the window: a service that refuses quickly is not available either.
    pub(super) fn failure(&mut self, at: u64) {
        self.window(at);
        self.pending = self.pending.saturating_sub(1);
        self.dark = true;
    }

    fn window(&mut self, at: u64) {
        self.unavailable_us = self.unavailable_us.max(at.saturating_sub(self.waiting_since));
    }
}

impl Oracle {
    pub(super) fn finish_availability(&mut self) {
        let end = self.findings.at;
        for (conversation, log) in self.ledger.logs() {
            let waiting = if log.pending > 0 { end.saturating_sub(log.waiting_since) } else { 0 };
            let longest = log.unavailable_us.max(waiting);
            self.findings.stats.unavailable_us = self.findings.stats.unavailable_us.max(longest);
            if let Some(max) = self.limits.unavailable_us_max.filter(|max| longest > *max) {
                let place = self.names.conversation(conversation);
                self.findings.report(Rule::Availability, || {
                    format!("{place} was without success for {longest} us, at most {max} are allowed")
                });
            }
        }
    }
}
