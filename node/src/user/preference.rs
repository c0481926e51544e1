//! What a user sets for a conversation: pinned, put away, muted, marked as unread. Facts of the user's own log.

use std::sync::Arc;

use chappe_schema::{
    command::check_id_time,
    error::{Code, Error},
    event::{Event, Fact},
    id::{Change, CommandId, ConversationId, Millis},
    inbox::{Flags, Marking, Preference},
    limit::PINNED_MAX,
    wire::Actor,
};

use super::state::User;

/// What is to be done about a marking.
#[derive(Debug)]
pub enum Marked {
    /// Append this event, and answer with these flags once it is committed.
    Append(Arc<Event>, Flags),
    /// Nothing changes; whether the same command did before.
    As(Flags, bool),
}

/// A marking with everything that judging it needs.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Who asks.
    pub actor: &'a Actor,
    /// The command's id.
    pub id: CommandId,
    /// Its hash.
    pub hash: u64,
    /// Of which conversation.
    pub conversation: ConversationId,
    /// What.
    pub marking: Marking,
}

impl User {
    /// Judges a marking. `change` hands out the next change number if there is one.
    ///
    /// # Errors
    /// When the user is no member, has pinned too many, or the id is not acceptable.
    pub fn mark(&self, command: Command<'_>, now: Millis, change: impl FnOnce() -> Change) -> Result<Marked, Error> {
        let Command { actor, id, hash, conversation, marking } = command;
        // Stamps never fall along the log: an owner whose clock is behind refuses no repetition.
        check_id_time(id, now.max(self.last_at))?;
        let known = self.joined(&conversation).ok_or(Error::new(Code::ConversationNotFound))?;
        let (n, message_at) = (known.inbox.last_n, known.inbox.message_at);
        let before = known.preference();
        if self.knows_command(id, hash)? {
            return Ok(Marked::As(before.flags(n, message_at, now), true));
        }
        let is_archived = before.is_archived(n, message_at);
        let mut preference = before;
        preference.archived = is_archived.then_some(n);
        if let Some(pinned) = marking.pinned {
            preference.pinned = pinned;
            // What is ahead of all others is not put away.
            preference.archived = preference.archived.filter(|_| !pinned);
        }
        if let Some(archived) = marking.archived {
            preference.archived = archived.then_some(n);
            preference.pinned &= !archived;
        }
        preference.muted_until = marking.muted_until.unwrap_or(preference.muted_until);
        preference.marked_unread = marking.marked_unread.unwrap_or(preference.marked_unread);
        let same = Preference { archived: None, ..preference } == Preference { archived: None, ..before };
        if same && preference.archived.is_some() == is_archived {
            return Ok(Marked::As(before.flags(n, message_at, now), false));
        }
        if preference.pinned && !before.pinned {
            let pinned = self.conversations.values().filter(|known| known.joined && known.preference().pinned);
            if pinned.count() >= PINNED_MAX {
                let detail = format!("at most {PINNED_MAX} conversations are pinned; unpin one first");
                return Err(Error::new(Code::PinnedLimit).with_detail(detail));
            }
        }
        let fact = Fact::UserPreference { conversation, preference, change: change() };
        let event = Event { device: actor.device.clone(), id, hash, ..self.event(fact, now) };
        Ok(Marked::Append(Arc::new(event), preference.flags(n, message_at, now)))
    }

    /// The event that takes away the mark of an unread conversation, now that it was read; `None` if there is no mark.
    #[must_use]
    pub fn unmark(
        &self,
        conversation: ConversationId,
        now: Millis,
        change: impl FnOnce() -> Change,
    ) -> Option<Arc<Event>> {
        let before = self.joined(&conversation)?.preference();
        if !before.marked_unread {
            return None;
        }
        let preference = Preference { marked_unread: false, ..before };
        let fact = Fact::UserPreference { conversation, preference, change: change() };
        let id = CommandId::of_reading(conversation, self.head + 1);
        Some(Arc::new(Event { id, ..self.event(fact, now) }))
    }

    /// A conversation's flags; `None` if the user is no member.
    #[must_use]
    pub fn flags(&self, conversation: &ConversationId, now: Millis) -> Option<Flags> {
        self.joined(conversation).map(|known| known.pick(*conversation, now).flags)
    }
}
