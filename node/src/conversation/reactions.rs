//! Reacting to a message, and taking that back.
//!
//! Counts stand in the message's overlay, users in rows of their own, so that judging one reaction costs the same whether
//! ten users reacted before or ten thousand: it takes the overlay and the caller's own rows, and only where the overlay
//! does not say already that there are none.

use std::collections::VecDeque;

use chappe_schema::{
    error::{Code, Error},
    event::{Encryption, Event, Fact},
    id::{Seq, UserId},
    limit::{REACTION_KEYS_MAX, REACTION_KEYS_PER_USER_MAX},
    reaction::ReactionKey,
    stored::{StoredOverlay, StoredReaction},
};

use super::{
    decide::{Case, Verdict},
    state::{Conversation, Target},
};

/// Users whose reactions to a message are kept at hand after a command of theirs: enough for who has second thoughts.
const REACTORS_MAX: usize = 64;

/// Users whose reactions to a message are known in full.
#[derive(Debug, Default)]
pub struct Reactors(VecDeque<Reactor>);

#[derive(Debug)]
struct Reactor {
    target: Seq,
    user: UserId,
    keys: Vec<ReactionKey>,
}

impl Reactors {
    fn of(&self, target: Seq, user: &UserId) -> Option<&[ReactionKey]> {
        self.0.iter().find(|one| one.target == target && one.user == *user).map(|one| one.keys.as_slice())
    }

    fn learn(&mut self, target: Seq, user: UserId, keys: Vec<ReactionKey>) {
        self.0.retain(|one| one.target != target || one.user != user);
        if self.0.len() >= REACTORS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Reactor { target, user, keys });
    }

    /// Takes the next event about a message.
    pub(super) fn apply(&mut self, event: &Event) {
        let Some(one) = self.0.iter_mut().find(|one| one.target == event.target && one.user == event.sender) else {
            return;
        };
        match &event.fact {
            Fact::ReactionAdded { key } if !one.keys.contains(key) => one.keys.push(key.clone()),
            Fact::ReactionRemoved { key } => one.keys.retain(|known| known != key),
            _ => {}
        }
    }

    /// Heap bytes, roughly.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Reactor>() + self.0.iter().map(|one| one.keys.len() * 48).sum::<usize>()
    }
}

impl Conversation {
    /// The store was asked for a user's reactions to a message with these keys: here are its rows.
    pub fn remember_reactions(&mut self, target: Seq, user: &UserId, mut rows: Vec<(ReactionKey, StoredReaction)>) {
        let Some(hot) = &mut self.hot else { return };
        for event in hot.overlays.events(target).filter(|event| event.sender == *user) {
            if let Some((key, row)) = StoredReaction::of(event) {
                match rows.iter_mut().find(|(known, _)| known == key) {
                    Some((_, known)) if known.seq >= row.seq => {}
                    Some((_, known)) => *known = row,
                    None => rows.push((key.clone(), row)),
                }
            }
        }
        let keys = rows.into_iter().filter(|(_, row)| !row.removed).map(|(key, _)| key).collect();
        hot.reactors.learn(target, user.clone(), keys);
    }
}

impl Case<'_> {
    pub(super) fn react(&self, seq: Seq, key: &ReactionKey, adds: bool) -> Result<Verdict, Error> {
        self.state.member(&self.actor.user)?;
        // In an encrypted conversation a reaction is a message that its members read: nobody else learns the key.
        if self.state.encryption != Encryption::None {
            return Err(Code::EncryptionRequired.into());
        }
        let overlay = match self.target(seq) {
            None => return Ok(Verdict::NeedTarget(seq)),
            Some(Target::Missing) => return Err(Code::MessageNotFound.into()),
            Some(Target::Message(_, overlay)) => overlay,
        };
        if overlay.deleted != 0 {
            return if adds { Err(Code::MessageDeleted.into()) } else { Ok(self.unchanged()) };
        }
        let is_known = overlay.reactions.iter().any(|one| one.key == key.as_str());
        if !is_known && !adds {
            return Ok(self.unchanged());
        }
        let Some(own) = self.own_reactions(seq, overlay) else {
            let keys = overlay.reactions.iter().filter_map(|one| ReactionKey::new(&one.key).ok()).collect();
            return Ok(Verdict::NeedReactions(seq, keys));
        };
        if own.contains(key) == adds {
            return Ok(self.unchanged());
        }
        if !adds {
            return Ok(self.change(seq, Fact::ReactionRemoved { key: key.clone() }));
        }
        if own.len() >= REACTION_KEYS_PER_USER_MAX {
            let detail = format!("at most {REACTION_KEYS_PER_USER_MAX} of one user; take one back first");
            return Err(Error::new(Code::ReactionLimit).with_detail(detail));
        }
        if !is_known && overlay.reactions.len() >= REACTION_KEYS_MAX {
            let detail = format!("at most {REACTION_KEYS_MAX}; those that are there can be given by others too");
            return Err(Error::new(Code::ReactionLimit).with_detail(detail));
        }
        Ok(self.change(seq, Fact::ReactionAdded { key: key.clone() }))
    }

    /// The caller's reactions to a message; `None` when the store must be asked.
    fn own_reactions(&self, seq: Seq, overlay: &StoredOverlay) -> Option<&[ReactionKey]> {
        if overlay.reactions.is_empty() {
            return Some(&[]);
        }
        self.state.hot.as_ref()?.reactors.of(seq, &self.actor.user)
    }
}
