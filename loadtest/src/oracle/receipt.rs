//! Rule 9: receipts only rise, nobody reads what did not reach them, nobody is ahead of the conversation, and nobody is seen
//! further than they said for others to see. In the end everybody is seen as far as they said.
//!
//! A server keeps receipts in memory for a while: a fault may take some back. So while a fault lasts marks may fall, at its beginning
//! and at its end all may begin lower, and only what was accepted since must stand in the end.

use hashbrown::HashMap;

use super::{Oracle, Rule};
use crate::history::{Connection, Conversation, Mark, User};

/// How long a removed member may still hear of others, in microseconds.
const HEARD_AFTER_LEAVING_US: u64 = 2_000_000;

#[derive(Debug, Default)]
pub(super) struct Receipts {
    seen: HashMap<(Connection, User, Conversation), Seen>,
    /// What users said for others to see, begun and accepted.
    said: HashMap<(User, Conversation), Marks>,
    accepted: HashMap<(User, Conversation), Seen>,
    /// When members left who have not come back.
    left: HashMap<(User, Conversation), u64>,
    /// Beginnings and ends of faults so far.
    faults: u32,
    /// Faults that last.
    lasting: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Marks {
    delivered: u64,
    read: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    marks: Marks,
    /// After so many beginnings and ends of faults.
    faults: u32,
}

impl Receipts {
    pub(super) fn fault(&mut self, begins: bool) {
        self.faults += 1;
        self.lasting = if begins { self.lasting + 1 } else { self.lasting.saturating_sub(1) };
    }

    pub(super) fn joined(&mut self, user: User, conversation: Conversation) {
        self.left.remove(&(user, conversation));
    }

    pub(super) fn left(&mut self, user: User, conversation: Conversation, at: u64) {
        self.left.insert((user, conversation), at);
    }
}

impl Marks {
    /// Below this a mark may not be seen. Reading implies having received: a delivered mark below the read one is as wrong as a
    /// falling one.
    fn of(&self, mark: Mark) -> u64 {
        match mark {
            Mark::Delivered => self.delivered.max(self.read),
            Mark::Read => self.read,
        }
    }

    fn raise(&mut self, delivered: u64, read: u64) {
        self.read = self.read.max(read);
        self.delivered = self.delivered.max(delivered).max(read);
    }
}

impl Oracle {
    /// A user is about to say how far they have got, or has been answered.
    pub(super) fn receipt_said(
        &mut self,
        (user, conversation): (User, Conversation),
        marks: (u64, u64),
        accepted: bool,
    ) {
        let receipts = &mut self.receipts;
        receipts.said.entry((user, conversation)).or_default().raise(marks.0, marks.1);
        if accepted {
            let known = receipts.accepted.entry((user, conversation)).or_default();
            if known.faults < receipts.faults {
                *known = Seen { marks: Marks::default(), faults: receipts.faults };
            }
            known.marks.raise(marks.0, marks.1);
        }
    }

    pub(super) fn receipt(
        &mut self,
        connection: Connection,
        user: User,
        conversation: Conversation,
        mark: Mark,
        upto: u64,
    ) {
        let observer = self.user_of(connection);
        let faults = self.receipts.faults;
        let seen = self.receipts.seen.entry((connection, user, conversation)).or_default();
        if seen.faults < faults {
            *seen = Seen { marks: Marks::default(), faults };
        }
        let marks = &mut seen.marks;
        let mut before = marks.of(mark);
        if upto < before && self.receipts.lasting > 0 {
            // Whoever took over begins with what a row holds; that is one state, in which nothing is read that is not delivered.
            *marks = Marks::default();
            before = 0;
        }
        match mark {
            Mark::Delivered => marks.delivered = before.max(upto),
            Mark::Read => marks.read = before.max(upto),
        }
        let delivered = marks.delivered;
        if upto < before || (mark == Mark::Read && upto > delivered) {
            let (seer, name, place) = self.receipt_names(observer, user, conversation);
            self.findings.report(Rule::Receipts, || {
                format!(
                    "{seer} saw {name}'s {mark:?} mark of {place} at {upto}; it was {before}, and {delivered} delivered"
                )
            });
        }
        self.receipt_is_possible(observer, user, conversation, mark, upto);
        let left = self.receipts.left.get(&(observer, conversation)).copied();
        if left.is_some_and(|left| self.findings.at > left + HEARD_AFTER_LEAVING_US) {
            let (seer, name, place) = self.receipt_names(observer, user, conversation);
            self.findings
                .report(Rule::Membership, || format!("{seer}, who has left {place}, heard of {name}'s {mark:?} mark"));
        }
    }

    /// In a quiet system an observer was shown how far a member has got.
    pub(super) fn receipt_shown(
        &mut self,
        (observer, user, conversation): (User, User, Conversation),
        (delivered, read): (u64, u64),
    ) {
        self.receipt_is_possible(observer, user, conversation, Mark::Delivered, delivered);
        self.receipt_is_possible(observer, user, conversation, Mark::Read, read);
        let accepted = self.receipts.accepted.get(&(user, conversation)).copied().unwrap_or_default();
        let Marks { delivered: got, read: seen } =
            if accepted.faults < self.receipts.faults { Marks::default() } else { accepted.marks };
        if delivered < got || read < seen || read > delivered {
            let (seer, name, place) = self.receipt_names(observer, user, conversation);
            self.findings.report(Rule::Receipts, || {
                format!(
                    "{seer} is shown {name} in {place} at {delivered} delivered and {read} read in the end; \
                     {got} and {seen} were accepted"
                )
            });
        }
    }

    /// Nobody is further than they said, or than there were messages.
    fn receipt_is_possible(&mut self, observer: User, user: User, conversation: Conversation, mark: Mark, upto: u64) {
        let sent = self.ledger.log(conversation).started;
        let said = self.receipts.said.get(&(user, conversation)).copied().unwrap_or_default();
        let said = if mark == Mark::Read { said.read } else { said.delivered };
        if upto > sent || upto > said {
            let (seer, name, place) = self.receipt_names(observer, user, conversation);
            self.findings.report(Rule::Receipts, || {
                format!(
                    "{seer} saw {name}'s {mark:?} mark of {place} at {upto}; {said} was said, and {sent} messages were sent"
                )
            });
        }
    }

    fn receipt_names(&self, observer: User, user: User, conversation: Conversation) -> (String, String, String) {
        (self.names.user(observer), self.names.user(user), self.names.conversation(conversation))
    }
}
