//! Heads of conversations, and pages of the list that they order.
//!
//! Heads come from the conversations' owners, with every commit while the user is loaded and by asking after a load;
//! nothing is written for them but the registers that are flushed when the user is unloaded. What a page shows of each
//! conversation (title, counts, the last message) is asked of its owner when the page is: for the visible window only,
//! and right by construction, since the one who counts is the one who owns the messages.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeBounds},
};

use chappe_schema::{
    event::ConversationKind,
    id::{Change, ConversationId, Millis},
    inbox::{Filter, Flags, Place, Section},
    limit::{HEADS_ASKED_MAX, INBOX_LOOKS_MAX},
    stored::StoredInbox,
    wire::Head,
};

use super::state::{Knowledge, Membership, User};

/// What a conversation's owner says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HeadKnown {
    /// Which.
    pub conversation: ConversationId,
    /// Where it stands; `None` when its owner cannot tell at the moment.
    pub head: Option<Head>,
    /// Messages that the user has read there, as far as its owner knows.
    pub read_n: u64,
    /// When its last message was stamped.
    pub message_at: Millis,
    /// Whether later heads will not come by themselves.
    pub large: bool,
}

/// A conversation has moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// To here.
    pub head: Head,
    /// When its last message was stamped; 0 if none has come.
    pub message_at: Millis,
    /// The user has read so many messages, at least; 0 if that is not news.
    pub read_n: u64,
}

/// A page of the list, as far as the user knows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// What it shows.
    pub picks: Vec<Pick>,
    /// Where the next one begins.
    pub next: Option<Place>,
}

/// A conversation on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Which.
    pub conversation: ConversationId,
    /// Direct or group.
    pub kind: ConversationKind,
    /// Its last change.
    pub change: Change,
    /// When something was last said there, or the user joined.
    pub active_at: Millis,
    /// What the user has set.
    pub flags: Flags,
}

/// Conversations that are put in order for one page: that many cost less than a walk.
const FEW_MAX: usize = 512;

/// Below every place of the usual list.
const USUAL: Place = Place { section: Section::Usual, at: 0, conversation: ConversationId(uuid::Uuid::nil()) };

impl User {
    /// The store's inbox rows, read with the user.
    pub fn restore_inbox(&mut self, rows: impl IntoIterator<Item = (ConversationId, StoredInbox)>) {
        for (conversation, row) in rows {
            // A snapshot may be newer than the row.
            self.change(conversation, |known| known.inbox = known.inbox.highest(&row));
        }
    }

    // === where conversations stand

    /// The user was just loaded: conversations must be asked where they stand. All of them, or those that have moved on
    /// since the user was here, which is known if somebody has watched. What a first screen shows is asked first.
    pub fn distrust(&mut self, moved: Option<&[ConversationId]>) {
        self.questions.clear();
        self.open_questions = 0;
        self.asked = 0;
        for known in self.conversations.values_mut() {
            known.knowledge = Knowledge::Known;
        }
        let listed = self.index.listed.iter().rev().map(|place| place.conversation);
        let doubtful: Vec<ConversationId> = match moved {
            None => listed.collect(),
            Some(moved) => {
                let moved: BTreeSet<&ConversationId> = moved.iter().collect();
                let is_large = |id: &ConversationId| self.conversations.get(id).is_some_and(|known| known.large);
                listed.filter(|id| moved.contains(id) || is_large(id)).collect()
            }
        };
        doubtful.into_iter().for_each(|conversation| self.question(conversation));
    }

    /// The heads of large conversations do not come by themselves: they are asked for again.
    pub fn distrust_large(&mut self) {
        let large: Vec<ConversationId> = self.index.large.iter().copied().collect();
        large.into_iter().for_each(|conversation| self.question(conversation));
    }

    /// Whether the user has conversations whose heads do not come by themselves.
    #[must_use]
    pub fn has_large(&self) -> bool {
        !self.index.large.is_empty()
    }

    /// The conversation must be asked where it stands.
    pub fn question(&mut self, conversation: ConversationId) {
        if let Some(known) = self.conversations.get_mut(&conversation)
            && known.joined
            && !known.knowledge.is_open()
        {
            known.knowledge = Knowledge::Waiting;
            self.open_questions += 1;
            self.questions.push_back(conversation);
        }
    }

    /// Asks these before all others.
    pub fn ask_first(&mut self, conversations: &[ConversationId]) {
        for conversation in conversations.iter().rev() {
            if self.conversations.get(conversation).is_some_and(|known| known.knowledge == Knowledge::Waiting) {
                self.questions.push_front(*conversation);
            }
        }
    }

    /// Conversations whose owners are to be asked now; not too many at once.
    pub fn next_questions(&mut self) -> Vec<ConversationId> {
        let mut next = Vec::new();
        while self.asked < HEADS_ASKED_MAX
            && let Some(conversation) = self.questions.pop_front()
        {
            if let Some(known) = self.conversations.get_mut(&conversation)
                && known.knowledge == Knowledge::Waiting
            {
                known.knowledge = Knowledge::Asked;
                self.asked += 1;
                next.push(conversation);
            }
        }
        next
    }

    /// Asks everything again whose answer is overdue: whoever was asked may be gone.
    pub fn ask_again(&mut self) {
        for (conversation, known) in &mut self.conversations {
            if known.knowledge == Knowledge::Asked {
                known.knowledge = Knowledge::Waiting;
                self.questions.push_back(*conversation);
            }
        }
        self.asked = 0;
    }

    /// The conversations that were not asked, or have not answered.
    #[must_use]
    pub fn unverified(&self) -> Vec<ConversationId> {
        let open = self.conversations.iter().filter(|(_, known)| known.joined && known.knowledge.is_open());
        open.map(|(id, _)| *id).collect()
    }

    /// How many conversations were not asked, or have not answered.
    #[must_use]
    pub const fn open_questions(&self) -> usize {
        self.open_questions
    }

    /// Whether every conversation has been asked.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        self.open_questions == 0
    }

    /// Whether this one has been; one that the user is no member of need not be.
    #[must_use]
    pub fn knows_head(&self, conversation: &ConversationId) -> bool {
        self.conversations.get(conversation).is_none_or(|known| !known.joined || !known.knowledge.is_open())
    }

    /// A conversation's owner has answered. `change` hands out the next change number if that is news.
    pub fn verify(&mut self, answer: HeadKnown, change: impl FnOnce() -> Change) {
        let Some(known) = self.conversations.get_mut(&answer.conversation).filter(|known| known.joined) else { return };
        if known.knowledge.is_open() {
            self.open_questions -= 1;
            self.asked -= usize::from(known.knowledge == Knowledge::Asked);
        }
        known.knowledge = if answer.head.is_some() { Knowledge::Known } else { Knowledge::Unknown };
        let Some(head) = answer.head else { return };
        if known.large != answer.large {
            self.change(answer.conversation, |known| known.large = answer.large);
        }
        self.raise(answer.conversation, Moved { head, message_at: answer.message_at, read_n: answer.read_n }, change);
    }

    /// The conversation's later heads will not come by themselves.
    pub fn grown_large(&mut self, conversation: ConversationId) {
        self.change(conversation, |known| known.large = true);
    }

    /// A conversation has moved on, or the user has read of it. Numbers only grow, so late news changes nothing.
    pub fn raise(&mut self, conversation: ConversationId, moved: Moved, change: impl FnOnce() -> Change) {
        self.change(conversation, |known| {
            if !known.joined {
                return;
            }
            let before = known.inbox;
            let inbox = &mut known.inbox;
            inbox.last_seq = inbox.last_seq.max(moved.head.seq);
            inbox.last_n = inbox.last_n.max(moved.head.n);
            inbox.read_n = inbox.read_n.max(moved.read_n);
            let is_news = inbox.last_seq > before.last_seq || inbox.read_n > before.read_n;
            // Not news by itself: where nobody had noted it, it belongs to a message that is known.
            inbox.message_at = inbox.message_at.max(moved.message_at);
            if is_news {
                inbox.set_change(change());
            }
            known.dirty |= *inbox != before;
        });
    }

    /// The user has read messages up to `n`; whether that was news.
    pub fn read_upto(&mut self, conversation: ConversationId, n: u64, change: impl FnOnce() -> Change) -> bool {
        let mut is_news = false;
        let moved = Moved { head: Head::default(), message_at: 0, read_n: n };
        self.raise(conversation, moved, || {
            is_news = true;
            change()
        });
        is_news
    }

    // === pages

    /// The conversations that stand first in the list, as a new connection is told.
    pub fn first(&self, count: usize) -> impl Iterator<Item = ConversationId> {
        self.index.listed.range(USUAL..).rev().take(count).map(|place| place.conversation)
    }

    /// Where a conversation stands; `None` if the user is no member.
    #[must_use]
    pub fn head(&self, conversation: &ConversationId) -> Option<Head> {
        let known = self.joined(conversation)?;
        Some(Head { seq: known.inbox.last_seq, n: known.inbox.last_n })
    }

    /// Whether the user's log says anything of it; who has left long ago may be forgotten.
    #[must_use]
    pub fn has_heard_of(&self, conversation: &ConversationId) -> bool {
        self.conversations.contains_key(conversation)
    }

    /// Whether the user has marked it as unread.
    #[must_use]
    pub fn is_marked_unread(&self, conversation: &ConversationId) -> bool {
        self.joined(conversation).is_some_and(|known| known.preference().marked_unread)
    }

    /// Whether nobody can tell at the moment where it stands.
    #[must_use]
    pub fn is_unknown(&self, conversation: &ConversationId) -> bool {
        self.joined(conversation).is_some_and(|known| known.knowledge == Knowledge::Unknown)
    }

    /// A page of the list below `below`.
    ///
    /// The list is walked down from there. Where few conversations can pass the filter, they are taken instead and put in
    /// order: so a page looks at no more than [`INBOX_LOOKS_MAX`] conversations, wherever those that it shows lie.
    #[must_use]
    pub fn page(&self, filter: Filter, below: Option<Place>, limit: usize, now: Millis) -> Page {
        let (bottom, top) = if filter.archived {
            (Bound::Unbounded, Bound::Excluded(USUAL))
        } else {
            (Bound::Included(USUAL), Bound::Unbounded)
        };
        // A cursor of another part of the list is a place all the same.
        let top = match (below, top) {
            (Some(below), Bound::Excluded(top)) => Bound::Excluded(below.min(top)),
            (Some(below), _) => Bound::Excluded(below.max(USUAL)),
            (None, top) => top,
        };
        let few = match filter {
            Filter { unread: true, .. } => Some(&self.index.unread),
            Filter { muted: Some(true), .. } => Some(&self.index.muted),
            _ => None,
        };
        if let Some(few) = few.filter(|few| few.len() <= FEW_MAX) {
            let place = |id: &ConversationId| self.joined(id)?.entry(*id)?.joined.map(|joined| joined.place);
            let mut places: Vec<Place> = few.iter().filter_map(place).collect();
            places.retain(|place| (bottom, top).contains(place));
            places.sort_unstable_by(|one, other| other.cmp(one));
            return self.page_of(places.into_iter(), filter, limit, now);
        }
        self.page_of(self.index.listed.range((bottom, top)).rev().copied(), filter, limit, now)
    }

    fn page_of(&self, places: impl Iterator<Item = Place>, filter: Filter, limit: usize, now: Millis) -> Page {
        let mut page = Page::default();
        let mut places = places.peekable();
        let mut looks = 0;
        while page.picks.len() < limit && looks < INBOX_LOOKS_MAX {
            let Some(place) = places.next() else { break };
            looks += 1;
            page.next = Some(place);
            let Some(known) = self.joined(&place.conversation) else { continue };
            let pick = known.pick(place.conversation, now);
            let is_unread = !filter.unread || self.index.unread.contains(&place.conversation);
            if is_unread && filter.muted.is_none_or(|muted| muted == pick.flags.muted) {
                page.picks.push(pick);
            }
        }
        if places.peek().is_none() {
            page.next = None;
        }
        page
    }

    pub(super) fn joined(&self, id: &ConversationId) -> Option<&Membership> {
        self.conversations.get(id).filter(|known| known.joined)
    }

    // === flushing

    /// What must be flushed before the user is unloaded; afterwards nothing is dirty.
    pub fn flush(&mut self) -> Vec<(ConversationId, StoredInbox)> {
        let dirty = self.conversations.iter_mut().filter(|(_, known)| known.dirty);
        dirty
            .map(|(id, known)| {
                known.dirty = false;
                (*id, known.inbox)
            })
            .collect()
    }

    /// Whether something must be.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.conversations.values().any(|known| known.dirty)
    }
}

impl Membership {
    /// The conversation as a page shows it.
    pub(super) fn pick(&self, conversation: ConversationId, now: Millis) -> Pick {
        Pick {
            conversation,
            kind: self.kind,
            change: self.inbox.last_change(),
            active_at: self.active_at(),
            flags: self.preference().flags(self.inbox.last_n, self.inbox.message_at, now),
        }
    }
}
