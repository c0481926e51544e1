//! The entities in a shard's memory, found by their id and by their partition.
//!
//! A node has thousands of partitions and may have a million entities, and gives partitions away by the dozen: whoever wants
//! the entities of one must not look at all.

use std::{hash::Hash, ops::Deref};

use chappe_schema::id::Partition;
use hashbrown::{HashMap, HashSet};

use super::Slot;

type Slots<K, S> = HashMap<K, S, foldhash::fast::FixedState>;

/// See the module's documentation. Reading is a map's; only [`Entities::insert`] and [`Entities::remove`] change who is here.
pub(super) struct Entities<K, S> {
    slots: Slots<K, S>,
    /// Who of `slots` is in which partition. Partitions without any have no place.
    by_partition: HashMap<Partition, HashSet<K, foldhash::fast::FixedState>, foldhash::fast::FixedState>,
}

/// What stands for an entity in memory.
pub(super) trait InPartition {
    /// The partition of the entity, which never changes.
    fn partition(&self) -> Partition;
}

impl<C, P, R, S: Deref<Target = Slot<C, P, R>>> InPartition for S {
    fn partition(&self) -> Partition {
        self.partition
    }
}

impl<K, S> Default for Entities<K, S> {
    fn default() -> Self {
        Self { slots: HashMap::default(), by_partition: HashMap::default() }
    }
}

impl<K, S> Deref for Entities<K, S> {
    type Target = Slots<K, S>;

    fn deref(&self) -> &Self::Target {
        &self.slots
    }
}

impl<K: Hash + Eq + Clone, S: InPartition> Entities<K, S> {
    pub(super) fn get_mut(&mut self, id: &K) -> Option<&mut S> {
        self.slots.get_mut(id)
    }

    /// An entity comes into memory; whatever stood for it before is gone.
    pub(super) fn insert(&mut self, id: K, slot: S) {
        self.by_partition.entry(slot.partition()).or_default().insert(id.clone());
        self.slots.insert(id, slot);
    }

    /// An entity leaves memory.
    pub(super) fn remove(&mut self, id: &K) -> Option<S> {
        let slot = self.slots.remove(id)?;
        let partition = slot.partition();
        if let Some(ids) = self.by_partition.get_mut(&partition) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_partition.remove(&partition);
            }
        }
        Some(slot)
    }

    /// The entities of a partition, in no order that means anything.
    pub(super) fn of(&self, partition: Partition) -> impl Iterator<Item = &K> {
        self.by_partition.get(&partition).into_iter().flatten()
    }
}

#[cfg(test)]
impl<K: Hash + Eq + Clone, S: InPartition> Entities<K, S> {
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.slots.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use chappe_schema::id::ConversationId;

    use super::{super::conversations::ConversationSlot, *};

    fn id(n: u128) -> ConversationId {
        ConversationId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn who_comes_and_goes_is_found_by_partition() {
        let mut all: Entities<ConversationId, ConversationSlot> = Entities::default();
        let (here, there) = (Partition(3), Partition(4));
        for (n, partition) in [(1, here), (2, there), (3, here), (1, here)] {
            all.insert(id(n), ConversationSlot::loading(0, (partition, 7)));
        }
        let of = |all: &Entities<_, _>, partition| {
            let mut ids: Vec<ConversationId> = all.of(partition).copied().collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!((of(&all, here), of(&all, there)), (vec![id(1), id(3)], vec![id(2)]));
        assert_eq!(all.len(), 3);
        assert!(all.remove(&id(2)).is_some());
        assert!(all.remove(&id(2)).is_none(), "it has gone");
        assert!(of(&all, there).is_empty());
        assert_eq!(all.by_partition.len(), 1, "nothing is kept of a partition without entities");
        assert!(all.get_mut(&id(3)).is_some());
    }
}
