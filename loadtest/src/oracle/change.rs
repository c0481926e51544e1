//! Rule 10: edits and deletions converge, and what was deleted stays dead.

use hashbrown::{HashMap, HashSet};
use uuid::Uuid;

use super::{Oracle, Rule, ledger::Slot};
use crate::history::{Conversation, Shown};

#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Commands that were begun, by their id.
    begun: HashMap<Uuid, (Conversation, u64, Option<u64>)>,
    /// Bodies that somebody gave to a message.
    made: HashSet<(Conversation, u64, u64)>,
    /// Messages that somebody began to edit.
    edits: HashSet<(Conversation, u64)>,
    /// Messages that somebody began to delete.
    deletions: HashSet<(Conversation, u64)>,
    /// Messages of which a body was withheld.
    withheld: HashSet<(Conversation, u64)>,
    /// The latest change of each message, by its place in the log; a deletion beats everything.
    current: HashMap<(Conversation, u64), (u64, Shown)>,
}

impl Changes {
    pub(super) fn was_made(&self, conversation: Conversation, target: u64, hash: u64) -> bool {
        !self.made.is_empty() && self.made.contains(&(conversation, target, hash))
    }

    pub(super) fn was_begun_deletion(&self, conversation: Conversation, target: u64) -> bool {
        self.deletions.contains(&(conversation, target))
    }

    pub(super) fn was_begun(&self, conversation: Conversation, target: u64) -> bool {
        self.was_begun_deletion(conversation, target) || self.edits.contains(&(conversation, target))
    }

    /// Somebody was shown no body of this message: it must have been deleted, or removed.
    pub(super) fn note_withheld(&mut self, conversation: Conversation, target: u64) {
        self.withheld.insert((conversation, target));
    }

    /// A slot has been fixed.
    pub(super) fn note(&mut self, conversation: Conversation, seq: u64, slot: Slot) {
        let (target, shown) = match slot {
            Slot::Edit { target, hash } => (target, Shown::Body(hash)),
            Slot::Delete { target } => (target, Shown::Tombstone),
            _ => return,
        };
        let current = self.current.entry((conversation, u64::from(target))).or_insert((seq, shown));
        if shown == Shown::Tombstone || (seq > current.0 && current.1 != Shown::Tombstone) {
            *current = (seq, shown);
        }
    }
}

impl Oracle {
    pub(super) fn change_started(&mut self, conversation: Conversation, target: u64, id: Uuid, hash: Option<u64>) {
        self.changes.begun.insert(id, (conversation, target, hash));
        match hash {
            Some(hash) => {
                self.changes.made.insert((conversation, target, hash));
                self.changes.edits.insert((conversation, target));
            }
            None => _ = self.changes.deletions.insert((conversation, target)),
        }
    }

    pub(super) fn change_acked(&mut self, id: Uuid, seq: u64) {
        let Some(&(conversation, target, hash)) = self.changes.begun.get(&id) else { return };
        let target = target as u32;
        self.place_fact(conversation, seq, hash.map_or(Slot::Delete { target }, |hash| Slot::Edit { target, hash }));
    }

    /// A list of messages showed one; in a quiet system it must be what the log says.
    pub(super) fn shown(&mut self, conversation: Conversation, seq: u64, shown: Shown, last: bool) {
        let Some(log) = self.ledger.known_log(conversation) else { return };
        let Slot::Message(index) = log.at(seq) else { return };
        let original = self.ledger.send(index).hash;
        let current = self.changes.current.get(&(conversation, seq)).map_or(Shown::Body(original), |(_, shown)| *shown);
        if last && shown != current {
            let place = self.names.conversation(conversation);
            self.findings.report(Rule::Changes, || {
                format!("seq {seq} of {place} is shown as {shown:?}, and the log says {current:?}")
            });
        } else if let Shown::Body(hash) = shown
            && hash != original
            && !self.changes.was_made(conversation, seq, hash)
        {
            let place = self.names.conversation(conversation);
            self.findings
                .report(Rule::NoPhantom, || format!("seq {seq} of {place} is shown with a body that nobody wrote"));
        }
    }

    /// No edit stands above a deletion of the same message, and of no other message that is not removed a body was withheld.
    pub(super) fn finish_changes(&mut self) {
        for &(conversation, target) in &self.changes.withheld {
            // Only who has read a log to its end knows that there is no deletion.
            let is_known = self.ledger.known_log(conversation).is_some_and(|log| log.finally_read);
            let current = self.changes.current.get(&(conversation, target));
            // An edit stands above the floor for a time when its message does not.
            let is_removed = target <= self.reads.removed_upto(conversation);
            if is_known && !is_removed && !matches!(current, Some((_, Shown::Tombstone))) {
                let place = self.names.conversation(conversation);
                self.findings.report(Rule::Changes, || {
                    format!("a body of {target} in {place} is withheld, and the log has neither deleted nor removed it")
                });
            }
        }
        let mut dead = HashSet::new();
        for (conversation, log) in self.ledger.logs() {
            dead.clear();
            for (seq, slot) in (1u64..).zip(log.slots()) {
                match *slot {
                    Slot::Delete { target } => _ = dead.insert(target),
                    Slot::Edit { target, .. } if dead.contains(&target) => {
                        let place = self.names.conversation(conversation);
                        self.findings
                            .report(Rule::Changes, || format!("seq {seq} of {place} edits {target}, which is deleted"));
                    }
                    _ => {}
                }
            }
        }
    }
}
