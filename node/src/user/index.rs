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
    /// Those with something unread. Without their places: most messages come where something is unread already, and must
    /// not cost a move here too.
    pub(super) unread: BTreeSet<ConversationId>,
    /// Those that were muted, whether that is over or not: an index has no clock.
    pub(super) muted: BTreeSet<ConversationId>,
    /// Those whose heads do not come by themselves.
    pub(super) large: BTreeSet<ConversationId>,
    /// By their last change. Those that nobody has noted a change of come first, all at the same one.
    pub(super) changed: BTreeSet<(Change, ConversationId)>,
    /// Conversations that the user has left, by that change.
    pub(super) left: BTreeSet<(Change, ConversationId)>,
}

/// How one conversation stands in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) conversation: ConversationId,
    pub(super) change: Change,
    /// Nothing, if the user was a member once.
    pub(super) joined: Option<Joined>,
}

/// How a member's conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) place: Place,
    pub(super) unread: bool,
    pub(super) muted: bool,
    pub(super) large: bool,
}

impl Index {
    /// Puts a conversation where it stands now, from where it stood before. This happens for every message and member:
    /// trees are touched only where something differs, and what is new goes in before what is old goes out, since a
    /// tree that is empty for a moment gives its memory back.
    pub(super) fn put(&mut self, before: Option<Entry>, now: Option<Entry>) {
        let (was, is) = (before.and_then(|entry| entry.joined), now.and_then(|entry| entry.joined));
        shift(&mut self.listed, was.map(|joined| joined.place), is.map(|joined| joined.place));
        let id = now.or(before).map(|entry| entry.conversation);
        let flag = |set: &mut BTreeSet<ConversationId>, of: fn(&Joined) -> bool| {
            let place = |joined: Option<Joined>| id.filter(|_| joined.as_ref().is_some_and(of));
            shift(set, place(was), place(is));
        };
        flag(&mut self.unread, |joined| joined.unread);
        flag(&mut self.muted, |joined| joined.muted);
        flag(&mut self.large, |joined| joined.large);
        let key = |entry: Option<Entry>, joined: bool| {
            entry.filter(|entry| entry.joined.is_some() == joined).map(|entry| (entry.change, entry.conversation))
        };
        shift(&mut self.changed, key(before, true), key(now, true));
        shift(&mut self.left, key(before, false), key(now, false));
    }

    /// The last change of all.
    pub(super) fn newest(&self) -> Change {
        let last =
            |tree: &BTreeSet<(Change, ConversationId)>| tree.last().map_or(Change::default(), |(change, _)| *change);
        last(&self.changed).max(last(&self.left))
    }

    /// Heap bytes, roughly: a tree of this kind is about three quarters full.
    pub(super) fn heap_bytes(&self) -> usize {
        let places = self.listed.len() + self.changed.len() + self.left.len();
        let flags = self.unread.len() + self.muted.len() + self.large.len();
        (places * size_of::<Place>() + flags * size_of::<ConversationId>()) * 4 / 3
    }
}

fn shift<T: Ord>(set: &mut BTreeSet<T>, before: Option<T>, now: Option<T>) {
    if before == now {
        return;
    }
    if let Some(now) = now {
        set.insert(now);
    }
    if let Some(before) = before {
        set.remove(&before);
    }
}
