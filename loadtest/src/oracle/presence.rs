//! Rule 13: five seconds after the last change, everybody who was ever told of somebody's presence or typing has it
//! right. Typing ends by itself, so after the quiet the truth about it is always "off".

use hashbrown::HashMap;

use super::{Oracle, Rule};
use crate::history::{Conversation, User};

const QUIET_US: u64 = 5_000_000;

#[derive(Debug, Default)]
pub(super) struct Presences {
    truth: HashMap<(User, Option<Conversation>), (u64, bool)>,
    seen: HashMap<(User, User, Option<Conversation>), (u64, bool)>,
}

impl Presences {
    pub(super) fn changed(&mut self, at: u64, user: User, conversation: Option<Conversation>, on: bool) {
        self.truth.insert((user, conversation), (at, on));
    }

    pub(super) fn seen(&mut self, at: u64, observer: User, user: User, conversation: Option<Conversation>, on: bool) {
        self.seen.insert((observer, user, conversation), (at, on));
    }
}

impl Oracle {
    pub(super) fn finish_presence(&mut self) {
        let end = self.findings.at;
        for ((observer, user, conversation), (_, seen)) in &self.presence.seen {
            let Some((changed_at, on)) = self.presence.truth.get(&(*user, *conversation)) else { continue };
            let truth = *on && conversation.is_none();
            if end.saturating_sub(*changed_at) >= QUIET_US && *seen != truth {
                let (seer, name) = (self.names.user(*observer), self.names.user(*user));
                let what = if conversation.is_some() { "typing" } else { "online" };
                self.findings.report(Rule::Presence, || format!("{seer} still thinks that {name} {what} is {seen}"));
            }
        }
    }
}
