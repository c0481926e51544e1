//! The orders in which a user's conversations are listed. Each is kept with every change, so that a page costs what it
//! shows, however many conversations there are.

use std::collections::BTreeSet;

use chappe_schema::{
    id::{Change, ConversationId},
    inbox::Place,
};

/// Every conversation of a user, in several orders.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// As the list shows them.
    pub(super) listed: BTreeSet<Place>,
    /// Those of them with something unread.
    pub(super) unread: BTreeSet<Place>,
    /// Those of them that were muted, whether that is over or not: an index has no clock.
    pub(super) muted: BTreeSet<Place>,
    /// By their last change. Those that nobody has noted a change of come first, all at the same one.
    pub(super) changed: BTreeSet<(Change, ConversationId)>,
    /// Conversations that the user has left, by that change.
    pub(super) left: BTreeSet<(Change, ConversationId)>,
}

/// How one conversation stands in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The user is a member.
    Joined { place: Place, unread: bool, muted: bool, change: Change },
    /// The user was one.
    Left { conversation: ConversationId, change: Change },
}

impl Index {
    /// Puts a conversation where it stands now, from where it stood before.
    pub(super) fn put(&mut self, before: Option<Entry>, now: Option<Entry>) {
        if before == now {
            return;
        }
        // Most changes of a busy conversation leave most of its places as they are: the trees are touched where they differ.
        let set = |set: &mut BTreeSet<Place>, of: fn(&Entry) -> Option<Place>| {
            let (old, new) = (before.as_ref().and_then(of), now.as_ref().and_then(of));
            if old != new {
                old.map(|old| set.remove(&old));
                new.map(|new| set.insert(new));
            }
        };
        set(&mut self.listed, Entry::listed);
        set(&mut self.unread, Entry::unread);
        set(&mut self.muted, Entry::muted);
        if let Some(entry) = before {
            let (tree, key) = self.by_change(entry);
            tree.remove(&key);
        }
        if let Some(entry) = now {
            let (tree, key) = self.by_change(entry);
            tree.insert(key);
        }
    }

    fn by_change(&mut self, entry: Entry) -> (&mut BTreeSet<(Change, ConversationId)>, (Change, ConversationId)) {
        match entry {
            Entry::Joined { place, change, .. } => (&mut self.changed, (change, place.conversation)),
            Entry::Left { conversation, change } => (&mut self.left, (change, conversation)),
        }
    }

    /// The last change of all.
    pub(super) fn newest(&self) -> Change {
        let last =
            |tree: &BTreeSet<(Change, ConversationId)>| tree.last().map_or(Change::default(), |(change, _)| *change);
        last(&self.changed).max(last(&self.left))
    }

    /// Heap bytes, roughly: a tree of this kind is about three quarters full.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self.listed.len() + self.unread.len() + self.muted.len();
        let changes = self.changed.len() + self.left.len();
        (places + changes) * size_of::<Place>() * 4 / 3
    }
}

impl Entry {
    fn listed(&self) -> Option<Place> {
        match self {
            Self::Joined { place, .. } => Some(*place),
            Self::Left { .. } => None,
        }
    }

    fn unread(&self) -> Option<Place> {
        self.listed().filter(|_| matches!(self, Self::Joined { unread: true, .. }))
    }

    fn muted(&self) -> Option<Place> {
        self.listed().filter(|_| matches!(self, Self::Joined { muted: true, .. }))
    }
}
