//! Conversations that were put away though they were active lately, and where their members live: when what was on its way
//! there is lost, they are read again to say where they stand.

use std::collections::VecDeque;

use chappe_schema::{
    id::{ConversationId, Millis, Partition},
    limit::RECENT_CONVERSATIONS_MAX,
};
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Recent {
    conversations: HashMap<ConversationId, Put, foldhash::fast::FixedState>,
    /// In the order in which they were put away; some have come back, or were put away once more.
    order: VecDeque<(Millis, ConversationId)>,
}

struct Put {
    /// When it was put away.
    at: Millis,
    /// Where its members live, each once.
    members: SmallVec<[Partition; 8]>,
}

impl Recent {
    /// A conversation is put away. At the brim the one that was put away first is forgotten: its members hear of what they
    /// missed with its next event.
    pub(super) fn put(&mut self, now: Millis, conversation: ConversationId, members: impl Iterator<Item = Partition>) {
        let mut members: SmallVec<[Partition; 8]> = members.collect();
        members.sort_unstable();
        members.dedup();
        self.conversations.insert(conversation, Put { at: now, members });
        self.order.push_back((now, conversation));
        while self.order.len() > RECENT_CONVERSATIONS_MAX {
            self.forget_first();
        }
    }

    /// It is in memory again, or somebody else's.
    pub(super) fn forget(&mut self, conversation: ConversationId) {
        self.conversations.remove(&conversation);
    }

    /// Somebody else owns what lives there.
    pub(super) fn forget_all(&mut self, of: impl Fn(Partition) -> bool) {
        self.conversations.retain(|conversation, _| !of(conversation.partition()));
    }

    /// Those that were put away before then have been quiet for long.
    pub(super) fn forget_before(&mut self, then: Millis) {
        while self.order.front().is_some_and(|(at, _)| *at < then) {
            self.forget_first();
        }
    }

    /// Those with members in such partitions, in order.
    pub(super) fn with_members_in(&self, partitions: &HashSet<Partition>) -> Vec<ConversationId> {
        let has = |put: &Put| put.members.iter().any(|partition| partitions.contains(partition));
        let mut found: Vec<_> = self.conversations.iter().filter(|(_, put)| has(put)).map(|(id, _)| *id).collect();
        found.sort_unstable();
        found
    }

    /// Those of a partition, in order.
    pub(super) fn of(&self, partition: Partition) -> Vec<ConversationId> {
        let mut found: Vec<_> = self.conversations.keys().copied().filter(|id| id.partition() == partition).collect();
        found.sort_unstable();
        found
    }

    fn forget_first(&mut self) {
        if let Some((at, conversation)) = self.order.pop_front()
            && self.conversations.get(&conversation).is_some_and(|put| put.at == at)
        {
            self.conversations.remove(&conversation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn conversation(number: u128) -> ConversationId {
        ConversationId(Uuid::from_u128(number))
    }

    fn of(recent: &Recent, partition: u16) -> Vec<ConversationId> {
        recent.with_members_in(&HashSet::from([Partition(partition)]))
    }

    #[test]
    fn those_are_found_whose_members_live_there() {
        let mut recent = Recent::default();
        recent.put(10, conversation(2), [Partition(3), Partition(1), Partition(3)].into_iter());
        recent.put(20, conversation(1), [Partition(3)].into_iter());
        assert_eq!(of(&recent, 3), [conversation(1), conversation(2)]);
        assert_eq!(of(&recent, 1), [conversation(2)]);
        assert_eq!(of(&recent, 2), []);
        recent.forget(conversation(2));
        assert_eq!(of(&recent, 3), [conversation(1)]);
        assert_eq!(recent.of(conversation(1).partition()), [conversation(1)]);
        recent.forget_all(|partition| partition == conversation(1).partition());
        assert!(recent.of(conversation(1).partition()).is_empty());
        assert_eq!(of(&recent, 3), []);
    }

    #[test]
    fn they_are_forgotten_after_a_while_counted_from_the_last_time() {
        let mut recent = Recent::default();
        recent.put(10, conversation(1), [Partition(3)].into_iter());
        recent.put(20, conversation(2), [Partition(3)].into_iter());
        recent.put(30, conversation(1), [Partition(3)].into_iter());
        recent.forget_before(20);
        assert_eq!(of(&recent, 3), [conversation(1), conversation(2)]);
        recent.forget_before(30);
        assert_eq!(of(&recent, 3), [conversation(1)]);
        recent.forget_before(31);
        assert_eq!((of(&recent, 3), recent.order.len()), (Vec::new(), 0));
    }

    #[test]
    fn they_are_bounded() {
        let mut recent = Recent::default();
        for number in 0..=RECENT_CONVERSATIONS_MAX as u128 {
            recent.put(number as Millis, conversation(number), std::iter::once(Partition(3)));
        }
        assert_eq!(
            (recent.conversations.len(), recent.order.len()),
            (RECENT_CONVERSATIONS_MAX, RECENT_CONVERSATIONS_MAX)
        );
        assert!(!of(&recent, 3).contains(&conversation(0)));
    }
}
