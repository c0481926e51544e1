//! Rule 9: receipts only rise, nobody reads what did not reach them, and nobody is ahead of the conversation.

use hashbrown::HashMap;

use super::{Oracle, Rule};
use crate::history::{Conversation, Mark, User};

#[derive(Debug, Default)]
pub(super) struct Receipts {
    marks: HashMap<(User, User, Conversation), Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    delivered: u64,
    read: u64,
}

impl Oracle {
    pub(super) fn receipt(&mut self, observer: User, user: User, conversation: Conversation, mark: Mark, upto: u64) {
        let marks = self.receipts.marks.entry((observer, user, conversation)).or_default();
        let before = match mark {
            // Reading implies having received: a delivered mark below the read one is as wrong as a falling one.
            Mark::Delivered => marks.delivered.max(marks.read),
            Mark::Read => marks.read,
        };
        match mark {
            Mark::Delivered => marks.delivered = before.max(upto),
            Mark::Read => marks.read = before.max(upto),
        }
        let sent = self.ledger.log(conversation).started;
        if upto < before || upto > sent {
            let (seer, name, place) =
                (self.names.user(observer), self.names.user(user), self.names.conversation(conversation));
            self.findings.report(Rule::Receipts, || {
                format!("{seer} saw {name}'s {mark:?} mark of {place} at {upto}; it was {before}, and {sent} messages were sent")
            });
        }
    }
}
