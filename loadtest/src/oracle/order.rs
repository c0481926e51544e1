//! Rules 3, 4 and 6: one seq per message, one event per seq, and real time is respected.

use uuid::Uuid;

use super::{
    Oracle, Rule,
    ledger::{Fate, Send, SendIndex, Slot},
};
use crate::history::{Conversation, Fact, User};

impl Oracle {
    pub(super) fn send_started(&mut self, at: u64, user: User, conversation: Conversation, id: Uuid, hash: u64) {
        if self.ledger.find(id).is_some() {
            return;
        }
        self.findings.stats.sends += 1;
        let log = self.ledger.log(conversation);
        log.started += 1;
        log.attempt(at);
        let floor = log.acked_max;
        self.ledger.start(Send { id, user, conversation, hash, floor, seq: 0, fate: Fate::Pending });
    }

    pub(super) fn acked(&mut self, at: u64, id: Uuid, seq: u64) {
        let Some(index) = self.ledger.find(id) else {
            return self.findings.report(Rule::NoPhantom, || format!("an acknowledgement of {id}, which nobody sent"));
        };
        let send = self.ledger.send(index);
        let (user, conversation) = (send.user, send.conversation);
        if send.fate != Fate::Acked {
            let first = std::mem::replace(&mut send.fate, Fate::Acked) == Fate::Pending;
            self.findings.stats.acked += 1;
            let log = self.ledger.log(conversation);
            log.acked += 1;
            if first {
                log.success(at);
            }
        }
        self.place(conversation, seq, index);
        let log = self.ledger.log(conversation);
        log.acked_max = log.acked_max.max(seq);
        let view = self.views.of(user, conversation);
        view.floor = view.floor.max(seq);
    }

    pub(super) fn failed(&mut self, at: u64, id: Uuid) {
        self.ended(at, id, Fate::Failed);
    }

    pub(super) fn forgotten(&mut self, at: u64, id: Uuid) {
        self.ended(at, id, Fate::Unknown);
    }

    fn ended(&mut self, at: u64, id: Uuid, fate: Fate) {
        let Some(index) = self.ledger.find(id) else { return };
        let send = self.ledger.send(index);
        if send.fate == Fate::Pending {
            send.fate = fate;
            let conversation = send.conversation;
            self.ledger.log(conversation).failure(at);
        }
    }

    /// Somebody saw `fact` at `seq`.
    pub(super) fn sighted(&mut self, conversation: Conversation, seq: u64, fact: &Fact) {
        if let Fact::Message { id, hash } = *fact {
            if let Some(index) = self.genuine(conversation, seq, id, hash) {
                self.place(conversation, seq, index);
            }
            return;
        }
        match *fact {
            Fact::React { target, user, key, on } => self.genuine_reaction(conversation, target, user, key, on),
            _ => self.genuine_change(conversation, fact),
        }
        if let Fact::Purged { floor } = *fact {
            self.reads.removed(conversation, floor);
        }
        let Some(slot) = Slot::of(fact) else { return };
        self.place_fact(conversation, seq, slot);
    }

    pub(super) fn place_fact(&mut self, conversation: Conversation, seq: u64, slot: Slot) {
        match self.ledger.log(conversation).propose(seq, slot) {
            Some(Slot::Empty) => self.changes.note(conversation, seq, slot),
            Some(before) if before == slot => {}
            Some(before) => self.conflict(conversation, seq, before, slot),
            None => self.unbelievable(conversation, seq),
        }
    }

    fn place(&mut self, conversation: Conversation, seq: u64, index: SendIndex) {
        let slot = Slot::Message(index);
        match self.ledger.log(conversation).propose(seq, slot) {
            Some(Slot::Empty) => {}
            Some(before) if before == slot => return,
            // Two events at one place: a matter of order, whatever seq the message had before.
            Some(before) => return self.conflict(conversation, seq, before, slot),
            None => return self.unbelievable(conversation, seq),
        }
        let send = self.ledger.send(index);
        let (id, first, floor) = (send.id, send.seq, send.floor);
        if first == 0 {
            send.seq = seq;
            if seq <= floor {
                self.findings.report(Rule::RealTime, || {
                    format!("message {id} has seq {seq}, but {floor} was acknowledged before it was sent")
                });
            }
        } else {
            self.findings.report(Rule::NoDuplicate, || format!("message {id} has seq {first} and seq {seq}"));
        }
    }

    fn conflict(&mut self, conversation: Conversation, seq: u64, before: Slot, now: Slot) {
        let (before, now) = (self.describe(before), self.describe(now));
        let place = self.names.conversation(conversation);
        self.findings
            .report(Rule::TotalOrder, || format!("seq {seq} of {place} is {before} for one and {now} for another"));
    }

    fn unbelievable(&mut self, conversation: Conversation, seq: u64) {
        let place = self.names.conversation(conversation);
        self.findings.report(Rule::Dense, || format!("seq {seq} of {place} is far from everything known there"));
    }

    fn describe(&mut self, slot: Slot) -> String {
        match slot {
            Slot::Empty => "nothing".into(),
            Slot::Message(index) => format!("message {}", self.ledger.send(index).id),
            Slot::Edit { target, .. } => format!("an edit of {target}"),
            Slot::Delete { target } => format!("a deletion of {target}"),
            Slot::React { target, user, on, .. } => {
                let what = if on { "a reaction" } else { "the end of a reaction" };
                format!("{what} of {} to {target}", self.names.user(user))
            }
            Slot::Join(user) => format!("the joining of {}", self.names.user(user)),
            Slot::Leave(user) => format!("the leaving of {}", self.names.user(user)),
            Slot::Purged(floor) => format!("the removal of everything up to {floor}"),
            Slot::Other(mark) => format!("another event ({mark:x})"),
        }
    }
}
