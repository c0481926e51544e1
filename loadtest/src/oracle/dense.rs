//! Rule 5: seqs are dense. A hole in a final read is a loss if anybody saw what stood there, else a hole in the log;
//! a hole on a connection is a skipped event if anybody saw it, else again a hole in the log. Where the reader was no member
//! for a time, only what was done meanwhile to messages that they had seen must be there.

use super::{Oracle, Rule, ledger::Slot};
use crate::history::{Conversation, User};

/// Consecutive seqs that somebody should have been shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hole {
    pub(super) user: User,
    pub(super) conversation: Conversation,
    pub(super) from: u64,
    pub(super) upto: u64,
    /// The rule that is broken if the missing event exists.
    pub(super) otherwise: Rule,
}

impl Oracle {
    /// Decides about holes, when everything that anybody saw is known.
    pub(super) fn decide_holes(&mut self, holes: &[Hole]) {
        for hole in holes {
            let (user, place) = (self.names.user(hole.user), self.names.conversation(hole.conversation));
            let log = self.ledger.known_log(hole.conversation);
            let view = self.views.get(hole.user, hole.conversation);
            for seq in hole.from..=hole.upto {
                if let Some(view) = view.filter(|view| view.was_away(seq)) {
                    let target = log.and_then(|log| log.at(seq).target());
                    if !target.is_some_and(|target| view.has_seen(target)) {
                        continue;
                    }
                }
                match log.map_or(Slot::Empty, |log| log.at(seq)) {
                    Slot::Empty => {
                        self.findings
                            .report(Rule::Dense, || format!("nothing stands at seq {seq} of {place} ({user} looked)"));
                        // One word for a whole stretch of nothing is enough.
                        break;
                    }
                    _ => self
                        .findings
                        .report(hole.otherwise, || format!("{user} missed seq {seq} of {place}, which exists")),
                }
            }
        }
    }
}
