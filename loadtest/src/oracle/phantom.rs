//! Rule 2: no phantoms. What is seen was sent by somebody, there, with that content; what was refused does not exist.

use uuid::Uuid;

use super::{
    Oracle, Rule,
    ledger::{Fate, SendIndex},
};
use crate::history::{Conversation, Fact};

impl Oracle {
    /// The send that a sighted message comes from, if there is one.
    pub(super) fn genuine(
        &mut self,
        conversation: Conversation,
        seq: u64,
        id: Uuid,
        hash: Option<u64>,
    ) -> Option<SendIndex> {
        let Some(index) = self.ledger.find(id) else {
            let place = self.names.conversation(conversation);
            self.findings.report(Rule::NoPhantom, || format!("message {id} at seq {seq} of {place} was never sent"));
            return None;
        };
        let send = self.ledger.send(index);
        let (home, original) = (send.conversation, send.hash);
        if home != conversation {
            let (here, there) = (self.names.conversation(conversation), self.names.conversation(home));
            self.findings.report(Rule::NoPhantom, || format!("message {id} was sent to {there} and is seen in {here}"));
            return None;
        }
        match hash {
            Some(hash) if hash == original || self.changes.was_made(conversation, seq, hash) => {}
            Some(_) => {
                self.findings
                    .report(Rule::NoPhantom, || format!("message {id} at seq {seq} has a body that nobody wrote"));
            }
            None if self.changes.was_begun_deletion(conversation, seq) => self.changes.note_withheld(conversation, seq),
            None => {
                self.findings
                    .report(Rule::Changes, || format!("message {id} at seq {seq} has no body, and nobody deleted it"));
            }
        }
        Some(index)
    }

    /// An edit or deletion was asked for by somebody.
    pub(super) fn genuine_change(&mut self, conversation: Conversation, fact: &Fact) {
        let (target, known) = match *fact {
            Fact::Edit { target, hash: Some(hash) } => (target, self.changes.was_made(conversation, target, hash)),
            Fact::Edit { target, hash: None } => (target, self.changes.was_begun(conversation, target)),
            Fact::Delete { target } => (target, self.changes.was_begun_deletion(conversation, target)),
            _ => return,
        };
        if let Fact::Edit { target, hash: None } = *fact {
            self.changes.note_withheld(conversation, target);
        }
        if !known {
            let place = self.names.conversation(conversation);
            self.findings.report(Rule::NoPhantom, || format!("a change of {target} in {place} that nobody made"));
        }
    }

    pub(super) fn finish_phantoms(&mut self) {
        for send in self.ledger.sends() {
            match send.fate {
                Fate::Failed => {
                    self.findings.stats.failed += 1;
                    if send.seq != 0 {
                        self.findings.report(Rule::NoPhantom, || {
                            format!("message {} was refused, and stands at seq {}", send.id, send.seq)
                        });
                    }
                }
                Fate::Unknown | Fate::Pending => {
                    self.findings.stats.unknown += 1;
                    self.findings.stats.unknown_found += u64::from(send.seq != 0);
                }
                Fate::Acked => {}
            }
        }
    }
}
