//! Rule 1: nothing is lost. What was acknowledged, or seen by anybody, is in every final read.

use super::{Oracle, Rule, ledger::Slot};

impl Oracle {
    /// Final reads that end before the log does. Holes inside a read are decided in `dense.rs`.
    pub(super) fn finish_loss(&mut self) {
        for read in &self.reads.last {
            let Some(log) = self.ledger.known_log(read.conversation) else { continue };
            let end = self.views.visible_upto(read.user, read.conversation).min(log.slots().len() as u64);
            for seq in read.head + 1..=end {
                if !matches!(log.at(seq), Slot::Empty | Slot::Purged(_)) {
                    let (user, place) = (self.names.user(read.user), self.names.conversation(read.conversation));
                    let head = read.head;
                    self.findings.report(Rule::NoLoss, || {
                        format!("seq {seq} of {place} was acknowledged or seen, and {user}'s final read ends at {head}")
                    });
                }
            }
        }
        self.findings.stats.acked_unread =
            self.ledger.logs().filter(|(_, log)| !log.finally_read).map(|(_, log)| log.acked).sum();
    }
}
