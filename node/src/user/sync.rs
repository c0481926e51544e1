//! What has changed since a device looked last.
//!
//! Every change of a user's inbox has a number: the epoch of the owner who made it and that owner's count
//! ([`Change`]). A conversation keeps its last one; a device's cursor is the highest that it has been told. What has
//! changed since is everything above the cursor, each conversation once, as it stands now.
//!
//! **Why cursors stay right though almost nothing is written.** Numbers live in memory and are flushed when the user is
//! unloaded; heads of conversations are not written for their members at all. So an owner can be lost with numbers that
//! devices have seen, and conversations can move on while nobody holds the user. Three rules make up for it:
//!
//! 1. *A later owner's numbers are above all earlier ones'*, since its epoch is. Whatever a later owner finds new, it
//!    numbers above every cursor that was ever handed out.
//! 2. *What is not in the user's log is compared after a load.* Each conversation's owner is asked where it stands
//!    (head, what the user has read); where that exceeds the row that was flushed, the conversation gets a new number. An
//!    owner that was lost before it flushed leaves old rows, so that what devices have seen is told once more: each
//!    conversation at most once, as it stands. Until all have answered a sync says `settling`: it may know too little, never
//!    something wrong, and what it did not know yet will have a number above the cursor that it gave.
//! 3. *What is in the user's log carries its number there.* Joinings, leavings and preferences are events; the number
//!    stands in the event, so that a recovery finds the same number that devices were told, or were not told.
//!
//! While a user is not loaded their shard notes which conversations move on (see `shard/resting.rs`); then only those are
//! asked. That note is memory of one owner: after a restart or a change of owner all are asked.
//!
//! **The floor.** Members' conversations are remembered for ever, left ones up to [`LEFT_KEPT_MAX`]; the change of the last
//! one that was forgotten is the floor, and a cursor below it is answered `reset`: that device must list the inbox anew.

use std::collections::BTreeSet;

use chappe_schema::{
    id::{Change, ConversationId, Generation, Millis},
    inbox::{Cursor, Lag, Reset},
    limit::LEFT_KEPT_MAX,
};

use super::{inbox::Pick, state::User};

/// A page of what has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the order of their changes.
    pub items: Vec<Changed>,
    /// What comes later is above this.
    pub upto: Change,
    /// Whether there is more above.
    pub more: bool,
}

/// One conversation that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The user is a member.
    Row(Pick),
    /// The user was one.
    Left(ConversationId, Change),
}

impl User {
    /// The last change.
    #[must_use]
    pub fn newest(&self) -> Change {
        self.index.newest()
    }

    /// How far a device is behind that knows the inbox up to `cursor`. `latest` is the last number that was handed out.
    #[must_use]
    pub fn lag(&self, cursor: Option<Cursor>, generation: Generation, latest: Change) -> Lag {
        match cursor {
            None => Lag::Reset(Reset::New),
            Some(cursor) if cursor.generation != generation => Lag::Reset(Reset::Generation),
            Some(cursor) if cursor.change > latest => Lag::Reset(Reset::Ahead),
            Some(cursor) if cursor.change < self.left_floor => Lag::Reset(Reset::TooOld),
            Some(cursor) if cursor.change >= self.newest() && self.is_verified() => Lag::Current,
            Some(_) => Lag::Behind,
        }
    }

    /// What has changed since `since`.
    #[must_use]
    pub fn changes(&self, since: Change, limit: usize, now: Millis) -> Changes {
        // Above every conversation at that change.
        let start = std::ops::Bound::Excluded((since, ConversationId(uuid::Uuid::max())));
        let above = |tree: &BTreeSet<(Change, ConversationId)>| -> Vec<(Change, ConversationId)> {
            tree.range((start, std::ops::Bound::Unbounded)).take(limit + 1).copied().collect()
        };
        let mut found = above(&self.index.changed);
        found.append(&mut above(&self.index.left));
        found.sort_unstable();
        // Several at one change are told together: a cursor cannot stand between them. Only those that nobody has noted a
        // change of share one, and no cursor lies below it.
        let more = found.len() > limit;
        found.truncate(limit);
        let upto = found.last().map_or(since, |(change, _)| *change);
        let item = |(change, id): &(Change, ConversationId)| match self.joined(id) {
            Some(known) => Changed::Row(known.pick(*id, now)),
            None => Changed::Left(*id, *change),
        };
        Changes { items: found.iter().map(item).collect(), upto, more }
    }

    /// Forgets the conversations that were left first, when there are too many.
    pub(super) fn forget_left(&mut self) {
        while self.index.left.len() > LEFT_KEPT_MAX
            && let Some((change, id)) = self.index.left.pop_first()
        {
            self.left_floor = self.left_floor.max(change);
            self.conversations.remove(&id);
        }
    }
}
