//! The inbox: where each conversation stands, and their order by last activity.
//!
//! Heads come from the conversations' owners, with every commit while the user is loaded and by asking after a load;
//! nothing is written for them. A change is numbered by the owner's epoch and a counter, so that it never goes back,
//! whoever owns the user; it is flushed with the head when the user is unloaded.

use chappe_schema::{
    id::{Change, ConversationId, Millis},
    reply::InboxView,
    stored::StoredInbox,
    wire::{Head, Heads},
};

use super::state::{Membership, User};

/// What a conversation's owner says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadKnown {
    /// Which.
    pub conversation: ConversationId,
    /// Where it stands; `None` when its owner cannot tell at the moment.
    pub head: Option<Head>,
    /// Messages that the user has read there, as far as its log tells.
    pub read_n: u64,
    /// When it last changed.
    pub last_at: Millis,
    /// Whether later heads will not come by themselves.
    pub large: bool,
}

impl User {
    /// The store's inbox rows, read with the user.
    pub fn restore_inbox(&mut self, rows: impl IntoIterator<Item = (ConversationId, StoredInbox)>) {
        for (conversation, row) in rows {
            if let Some(known) = self.conversations.get_mut(&conversation) {
                self.by_change.remove(&known.inbox.last_change());
                // A snapshot may be newer than the row.
                known.inbox = known.inbox.highest(&row);
                if known.joined && known.inbox.last_change() != Change::default() {
                    self.by_change.insert(known.inbox.last_change(), conversation);
                }
            }
        }
    }

    /// Every conversation of the user must be asked for its head: the user was just loaded.
    pub fn distrust(&mut self) {
        self.unverified = self.conversations.iter().filter(|(_, known)| known.joined).map(|(id, _)| *id).collect();
    }

    /// The heads of large conversations must be asked for before an answer that shows them.
    pub fn distrust_large(&mut self) {
        let large = self.conversations.iter().filter(|(_, known)| known.joined && known.large);
        self.unverified.extend(large.map(|(id, _)| *id));
    }

    /// Conversations whose head must be asked for.
    pub fn unverified(&self) -> impl Iterator<Item = ConversationId> {
        self.unverified.iter().copied()
    }

    /// Whether every head is known.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.unverified.is_empty()
    }

    /// A head was asked for and is known now. When all are, they are taken in the order of their last activity;
    /// `change` hands out the next change number for each that is news.
    pub fn verify(&mut self, known: HeadKnown, mut change: impl FnMut() -> Change) {
        self.unverified.remove(&known.conversation);
        if known.head.is_some() {
            self.unknown.remove(&known.conversation);
        } else {
            self.unknown.insert(known.conversation);
        }
        self.answers.push(known);
        if !self.unverified.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut self.answers);
        answers.sort_by_key(|known| known.last_at);
        for known in answers {
            if let Some(membership) = self.conversations.get_mut(&known.conversation) {
                membership.large = known.large;
                membership.inbox.read_n = membership.inbox.read_n.max(known.read_n);
            }
            if let Some(head) = known.head {
                self.raise(known.conversation, head, &mut change);
            }
        }
    }

    /// The conversation's later heads will not come by themselves.
    pub fn grown_large(&mut self, conversation: ConversationId) {
        if let Some(known) = self.conversations.get_mut(&conversation) {
            known.large = true;
        }
    }

    /// A conversation has moved on. Numbers only grow, so late news changes nothing.
    pub fn raise(&mut self, conversation: ConversationId, head: Head, change: impl FnOnce() -> Change) {
        let Some(known) = self.conversations.get_mut(&conversation).filter(|known| known.joined) else { return };
        if head.seq <= known.inbox.last_seq {
            return;
        }
        self.by_change.remove(&known.inbox.last_change());
        known.inbox.last_seq = head.seq;
        known.inbox.last_n = known.inbox.last_n.max(head.n);
        let change = change();
        known.inbox.set_change(change);
        known.dirty = true;
        self.by_change.insert(change, conversation);
    }

    /// The user has read messages up to `n`: by sending one, they have read up to their own.
    pub fn read_upto(&mut self, conversation: ConversationId, n: u64) {
        if let Some(known) = self.conversations.get_mut(&conversation)
            && n > known.inbox.read_n
        {
            known.inbox.read_n = n;
            known.dirty = true;
        }
    }

    /// The heads that a new connection needs: of what it holds positions in, and of the most active others.
    #[must_use]
    pub fn heads(&self, positions: &[ConversationId], others_max: usize) -> Heads {
        let head = |id: &ConversationId| {
            self.joined(id).map(|known| Head { seq: known.inbox.last_seq, n: known.inbox.last_n })
        };
        let asked = positions.iter().map(|id| (*id, head(id))).collect();
        let unknown = positions.iter().filter(|id| self.unknown.contains(*id)).copied().collect();
        let newest = self.by_change.values().rev().filter(|id| !positions.contains(id));
        let others = newest.take(others_max).filter_map(|id| head(id).map(|head| (*id, head))).collect();
        Heads { positions: asked, unknown, others }
    }

    /// A page of the inbox below the change `cursor`, and where the next one begins.
    #[must_use]
    pub fn page(&self, cursor: Option<Change>, limit: usize) -> (Vec<InboxView>, Option<Change>) {
        const END: Change = Change { epoch: u64::MAX, count: u64::MAX };
        let mut below = self.by_change.range(..cursor.unwrap_or(END)).rev();
        let view = |id: &ConversationId| {
            let known = self.joined(id)?;
            Some(InboxView {
                id: *id,
                kind: known.kind,
                head: known.inbox.last_seq,
                n: known.inbox.last_n,
                unread: known.inbox.last_n.saturating_sub(known.inbox.read_n),
                change: known.inbox.last_change(),
            })
        };
        let items: Vec<InboxView> = below.by_ref().filter_map(|(_, id)| view(id)).take(limit).collect();
        let next = if below.next().is_some() { items.last().map(|item| item.change) } else { None };
        (items, next)
    }

    fn joined(&self, id: &ConversationId) -> Option<&Membership> {
        self.conversations.get(id).filter(|known| known.joined)
    }

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::{
        event::{ConversationKind, Fact},
        id::UserId,
    };

    fn conversation(n: u64) -> ConversationId {
        ConversationId(uuid::Uuid::from_u128(n.into()))
    }

    /// A change of the first owner.
    fn nth(count: u64) -> Change {
        Change { epoch: 1, count }
    }

    /// A user with conversations 1 to `count`, their heads verified in this order.
    fn user(count: u64) -> User {
        let mut user = User::new(UserId::new("ada").unwrap());
        for n in 1..=count {
            let fact = Fact::UserJoined { conversation: conversation(n), kind: ConversationKind::Group, at: 1 };
            let event = user.hear(&fact, 0).unwrap();
            user.apply(&event);
            let known = HeadKnown {
                conversation: conversation(n),
                head: Some(Head { seq: 1, n: 0 }),
                read_n: 0,
                last_at: 0,
                large: n == 3,
            };
            user.verify(known, || nth(n));
        }
        user
    }

    fn order(user: &User) -> Vec<u128> {
        user.page(None, 100).0.iter().map(|item| item.id.0.as_u128()).collect()
    }

    #[test]
    fn the_last_active_stands_first() {
        let mut user = user(4);
        assert_eq!(order(&user), [4, 3, 2, 1]);
        user.raise(conversation(2), Head { seq: 5, n: 3 }, || nth(9));
        assert_eq!(order(&user), [2, 4, 3, 1]);
        user.raise(conversation(1), Head { seq: 1, n: 0 }, || unreachable!("old news takes no number"));
        let item = &user.page(None, 1).0[0];
        assert_eq!((item.head, item.n, item.unread), (5, 3, 3));
        user.read_upto(conversation(2), 2);
        assert_eq!(user.page(None, 1).0[0].unread, 1);
    }

    /// A later owner counts from the beginning, and what it changes stands first all the same, here and after a load.
    #[test]
    fn the_order_is_kept_from_owner_to_owner() {
        let mut user = user(3);
        user.raise(conversation(1), Head { seq: 7, n: 3 }, || Change { epoch: 2 << 48, count: 1 });
        assert_eq!(order(&user), [1, 3, 2]);
        let rows = user.flush();
        let mut again = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
        assert_eq!(order(&again), [1, 3, 2]);
        let mut early = rows.clone();
        (90..).zip(&mut early).for_each(|(count, (_, row))| row.set_change(nth(count)));
        again.restore_inbox(early);
        again.restore_inbox(rows);
        assert_eq!(order(&again)[0], 1);
        let (first, cursor) = again.page(None, 1);
        assert_eq!(cursor, Some(first[0].change));
        assert_eq!(again.page(cursor.unwrap().to_string().parse().ok(), 9).0.len(), 2);
    }

    #[test]
    fn pages_follow_the_cursor_to_the_end() {
        let user = user(5);
        let (first, cursor) = user.page(None, 2);
        let (second, next) = user.page(cursor, 2);
        let (third, end) = user.page(next, 2);
        assert_eq!((first.len(), second.len(), third.len(), end), (2, 2, 1, None));
        assert_eq!(user.page(Some(first[1].change), 5).0.len(), 3);
    }

    #[test]
    fn a_connection_gets_the_heads_it_asks_for_and_the_newest_others() {
        let mut user = user(4);
        let left = user.hear(&Fact::UserLeft { conversation: conversation(2), at: 9 }, 0).unwrap();
        user.apply(&left);
        let heads = user.heads(&[conversation(1), conversation(2), conversation(77)], 1);
        assert_eq!(heads.positions[0], (conversation(1), Some(Head { seq: 1, n: 0 })));
        assert_eq!((heads.positions[1].1, heads.positions[2].1), (None, None));
        assert_eq!(heads.others, [(conversation(4), Head { seq: 1, n: 0 })]);
        user.raise(conversation(2), Head { seq: 10, n: 1 }, || unreachable!("who left hears nothing"));
    }

    #[test]
    fn after_a_load_the_order_is_that_of_the_last_activity() {
        let mut user = user(3);
        user.distrust();
        let mut next = 10;
        for (n, last_at) in [(3, 50), (1, 70), (2, 60)] {
            let known = HeadKnown {
                conversation: conversation(n),
                head: Some(Head { seq: 9, n: 5 }),
                read_n: 4,
                last_at,
                large: false,
            };
            user.verify(known, || Change::next(1, &mut next));
        }
        assert_eq!(order(&user), [1, 2, 3]);
        assert_eq!(user.page(None, 1).0[0].unread, 1);
        user.distrust();
        for n in 1..=3 {
            user.verify(
                HeadKnown { conversation: conversation(n), head: None, read_n: 0, last_at: 0, large: false },
                || unreachable!(),
            );
        }
        assert_eq!(user.heads(&[conversation(2)], 0).unknown, [conversation(2)]);
    }

    #[test]
    fn what_changed_is_flushed_once() {
        let mut user = user(2);
        assert_eq!(user.flush().len(), 2);
        user.raise(conversation(1), Head { seq: 2, n: 1 }, || nth(10));
        let rows = user.flush();
        assert_eq!((rows.len(), rows[0].1.last_seq, rows[0].1.change), (1, 2, 10));
        assert!(user.flush().is_empty());
    }

    #[test]
    fn large_conversations_are_asked_again() {
        let mut user = user(4);
        assert!(user.is_verified());
        user.distrust_large();
        assert_eq!(user.unverified().collect::<Vec<_>>(), [conversation(3)]);
        user.distrust();
        assert_eq!(user.unverified().count(), 4);
    }
}
