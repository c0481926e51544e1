//! Rule 7: a read holds what its user wrote, read or received before it began. And the gathering of what reads found,
//! which rules 1 and 5 decide about. What a read is told to be removed, an event must have removed.

use hashbrown::HashMap;

use super::{Oracle, Rule, dense::Hole};
use crate::history::{Conversation, Fact, Read, User};

#[derive(Debug, Default)]
pub(super) struct Reads {
    open: HashMap<Read, Open>,
    holes: Vec<Hole>,
    /// The final reads, ended.
    pub(super) last: Vec<Ended>,
    /// Up to where events have removed the history, and up to where reads were told that it is.
    removed: HashMap<Conversation, (u64, u64)>,
}

#[derive(Debug)]
struct Open {
    user: User,
    conversation: Conversation,
    after: u64,
    next: u64,
    floor: u64,
    last: bool,
}

#[derive(Debug)]
pub(super) struct Ended {
    pub(super) user: User,
    pub(super) conversation: Conversation,
    pub(super) head: u64,
}

impl Reads {
    /// An event has removed everything up to here.
    pub(super) fn removed(&mut self, conversation: Conversation, floor: u64) {
        let removed = self.removed.entry(conversation).or_default();
        removed.0 = removed.0.max(floor);
    }

    /// Up to where events have removed the history.
    pub(super) fn removed_upto(&self, conversation: Conversation) -> u64 {
        self.removed.get(&conversation).map_or(0, |(floor, _)| *floor)
    }
}

impl Oracle {
    /// A read goes on above what is removed: nothing is missed there, by this read or by a connection before it.
    pub(super) fn read_purged(&mut self, read: Read, floor: u64) {
        let Some(open) = self.reads.open.get_mut(&read) else { return };
        let (user, conversation, from) = (open.user, open.conversation, open.next);
        open.next = open.next.max(floor + 1);
        let told = self.reads.removed.entry(conversation).or_default();
        told.1 = told.1.max(floor);
        let view = self.views.of(user, conversation);
        view.settle(from, floor);
    }

    pub(super) fn read_started(&mut self, read: Read, user: User, conversation: Conversation, after: u64, last: bool) {
        self.findings.stats.reads += 1;
        let floor = self.views.of(user, conversation).floor;
        self.reads.open.insert(read, Open { user, conversation, after, next: after + 1, floor, last });
    }

    pub(super) fn read_item(&mut self, read: Read, seq: u64, fact: &Fact) {
        let Some(open) = self.reads.open.get_mut(&read) else { return };
        let (user, conversation, next, last) = (open.user, open.conversation, open.next, open.last);
        if seq >= next {
            open.next = seq + 1;
            if seq > next {
                let otherwise = if last { Rule::NoLoss } else { Rule::Dense };
                self.reads.holes.push(Hole { user, conversation, from: next, upto: seq - 1, otherwise });
            }
        } else {
            let place = self.names.conversation(conversation);
            self.findings.report(Rule::Dense, || format!("a read of {place} gave seq {seq} after {}", next - 1));
        }
        self.sighted(conversation, seq, fact);
        self.moved(user, conversation, seq, fact);
        let view = self.views.of(user, conversation);
        view.see(seq);
        if seq == next && !last {
            // The reading may be broken off behind it, and has been so far all the same. A final one excuses nobody.
            view.settle(seq, seq);
        }
    }

    pub(super) fn read_ended(&mut self, read: Read, head: u64) {
        let Some(open) = self.reads.open.remove(&read) else { return };
        let Open { user, conversation, after, next, floor, last } = open;
        let found = next - 1;
        if found < head {
            let otherwise = if last { Rule::NoLoss } else { Rule::Dense };
            self.reads.holes.push(Hole { user, conversation, from: next, upto: head, otherwise });
        }
        if last {
            self.findings.stats.final_reads += 1;
            self.ledger.log(conversation).finally_read = true;
            self.reads.last.push(Ended { user, conversation, head: found.max(head) });
        } else if head < floor {
            // A final read that ends early is a loss; rule 1 says so.
            let (name, place) = (self.names.user(user), self.names.conversation(conversation));
            self.findings.report(Rule::Reads, || {
                format!("{name} had written, read or received seq {floor} of {place}, then a read ended at {head}")
            });
        }
        let view = self.views.of(user, conversation);
        view.floor = view.floor.max(head);
        // The final read comes to everybody: it does not excuse a client that never repaired a resync.
        if !last {
            view.settle(after + 1, head.max(found));
        }
    }

    pub(super) fn finish_reads(&mut self) {
        for (conversation, (removed, told)) in &self.reads.removed {
            if told > removed {
                let place = self.names.conversation(*conversation);
                self.findings.report(Rule::NoLoss, || {
                    format!("a read was told that {place} is removed up to {told}, and events say {removed}")
                });
            }
        }
        let holes = std::mem::take(&mut self.reads.holes);
        self.decide_holes(&holes);
    }
}
