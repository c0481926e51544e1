//! Rule 10, of reactions: each is there once or not at all, the dead have none, and everybody is shown the same counts,
//! which are those of the log.

use hashbrown::{HashMap, HashSet};

use super::{Oracle, Rule, ledger::Slot};
use crate::history::{self, Conversation, Counts, User};

#[derive(Debug, Default)]
pub(super) struct Reactions {
    /// What somebody asked for: who, which message, with what, on or off.
    begun: HashSet<(Conversation, u64, User, u32, bool)>,
    /// What was shown of messages in a quiet system.
    shown: Vec<(Conversation, u64, User, Counts)>,
}

impl Oracle {
    pub(super) fn react_started(&mut self, conversation: Conversation, target: u64, user: User, key: u32, on: bool) {
        self.reactions.begun.insert((conversation, target, user, key, on));
    }

    /// A reaction was asked for by whose it is.
    pub(super) fn genuine_reaction(&mut self, conversation: Conversation, target: u64, user: User, key: u32, on: bool) {
        if !self.reactions.begun.contains(&(conversation, target, user, key, on)) {
            let (name, place) = (self.names.user(user), self.names.conversation(conversation));
            self.findings.report(Rule::NoPhantom, || format!("{name} never reacted to {target} in {place} like that"));
        }
    }

    pub(super) fn counted(&mut self, user: User, conversation: Conversation, seq: u64, counts: Counts, last: bool) {
        if last {
            self.reactions.shown.push((conversation, seq, user, counts));
        }
    }

    /// The log's reactions make sense, and add up to what was shown.
    pub(super) fn finish_reactions(&mut self) {
        let mut there: HashMap<(Conversation, u64), HashSet<(User, u32)>> = HashMap::new();
        for (conversation, log) in self.ledger.logs() {
            let mut dead = HashSet::new();
            for (seq, slot) in (1u64..).zip(log.slots()) {
                match *slot {
                    Slot::Delete { target } => {
                        dead.insert(target);
                        there.remove(&(conversation, u64::from(target)));
                    }
                    Slot::React { target, user, key, on } => {
                        let of_message = there.entry((conversation, u64::from(target))).or_default();
                        let reaction = (user, key);
                        let is_news = if on { of_message.insert(reaction) } else { of_message.remove(&reaction) };
                        if !is_news || dead.contains(&target) {
                            let (name, place) = (self.names.user(user), self.names.conversation(conversation));
                            let what = if on { "reacts" } else { "takes a reaction back" };
                            self.findings.report(Rule::Changes, || {
                                format!("seq {seq} of {place}: {name} {what}, to {target}, which cannot be")
                            });
                        }
                    }
                    _ => {}
                }
            }
        }
        for (conversation, seq, user, shown) in std::mem::take(&mut self.reactions.shown) {
            // Only who has read a log to its end knows what it adds up to.
            if !self.ledger.known_log(conversation).is_some_and(|log| log.finally_read) {
                continue;
            }
            let known = there.get(&(conversation, seq));
            let mut counts: HashMap<u32, u64> = HashMap::new();
            known
                .iter()
                .flat_map(|reactions| reactions.iter())
                .for_each(|(_, key)| *counts.entry(*key).or_default() += 1);
            let own = known.iter().flat_map(|reactions| reactions.iter()).filter(|(whose, _)| *whose == user);
            let expected = history::counts(counts, own.map(|(_, key)| *key));
            if shown != expected {
                let (name, place) = (self.names.user(user), self.names.conversation(conversation));
                self.findings.report(Rule::Changes, || {
                    format!("{name} is shown other reactions to {seq} of {place} than the log adds up to")
                });
            }
        }
    }
}
