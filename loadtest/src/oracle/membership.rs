//! Rule 11: nobody is shown an event from outside their membership, but what was done meanwhile to messages of it, once they are back. Judged where a conversation's memberships were
//! recorded; there, somebody without one may see nothing.

use hashbrown::HashSet;

use super::{Oracle, Rule};
use crate::history::{Conversation, Fact, User};

impl Oracle {
    pub(super) fn joined(&mut self, user: User, conversation: Conversation, from: u64) {
        let visible = &mut self.views.of(user, conversation).visible;
        if visible.last().is_none_or(|(_, upto)| *upto != u64::MAX) {
            visible.push((from + 1, u64::MAX));
        }
    }

    pub(super) fn left(&mut self, user: User, conversation: Conversation, upto: u64) {
        if let Some(stay) = self.views.of(user, conversation).visible.last_mut() {
            stay.1 = stay.1.min(upto);
        }
    }

    /// `user` was shown `fact`: whether it was about their own membership.
    pub(super) fn moved(&mut self, user: User, conversation: Conversation, seq: u64, fact: &Fact) {
        match *fact {
            Fact::Leave { user: of } if of == user => self.views.of(user, conversation).moved(seq, true),
            Fact::Join { user: of } if of == user => self.views.of(user, conversation).moved(seq, false),
            _ => {}
        }
    }

    pub(super) fn finish_membership(&mut self) {
        let judged: HashSet<Conversation> = self
            .views
            .iter()
            .filter(|(_, view)| !view.visible.is_empty())
            .map(|((_, conversation), _)| *conversation)
            .collect();
        for ((user, conversation), view) in
            self.views.iter().filter(|((_, conversation), _)| judged.contains(conversation))
        {
            let log = self.ledger.known_log(*conversation);
            let is_theirs = |(from, upto): (u64, u64)| {
                inside((from, upto), &view.visible)
                    || (from..=upto).all(|seq| {
                        let target = log.and_then(|log| log.at(seq).target());
                        inside((seq, seq), &view.visible) || target.is_some_and(|target| view.may_see_of(target, seq))
                    })
            };
            for (from, upto) in view.seen.iter().filter(|seen| !is_theirs(**seen)) {
                let (name, place) = (self.names.user(*user), self.names.conversation(*conversation));
                self.findings.report(Rule::Membership, || {
                    format!("{name} was shown {from}..={upto} of {place}, and may see {:?}", view.visible)
                });
            }
        }
    }
}

/// Whether every seq of a stretch lies in one of `visible`, which are in order and may touch.
fn inside((mut from, upto): (u64, u64), visible: &[(u64, u64)]) -> bool {
    for (first, last) in visible {
        if *first <= from && from <= *last {
            if upto <= *last {
                return true;
            }
            from = last + 1;
        }
    }
    false
}
