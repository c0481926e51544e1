//! Which commands are known already, so that the same id never has two effects.
//!
//! Memory holds the ids of the log's tail: everything above the last durable id block in full, and for the blocks of
//! the last minutes a 32-bit print of each id. A first attempt is recognised as new without a read: an id's time is at
//! most [`ID_AHEAD_MS_MAX`] ahead of its event's stamp and stamps never fall along a log, so an id that is later than that
//! before the oldest thing remembered cannot have been committed earlier.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    event::Event,
    id::{CommandId, Millis, Seq, UserId},
    limit::ID_AHEAD_MS_MAX,
    stored::{Corrupt, StoredId, StoredIdBlock, StoredIdPrints, command_id, id_print},
};
use hashbrown::{HashMap, hash_map::Entry};

use crate::{pace::id_block_events, store::PRINT_BLOCKS_MAX};

/// What is remembered of a command that made an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The event.
    pub seq: Seq,
    /// Its `n`.
    pub n: u64,
    /// Its stamp.
    pub created_at: Millis,
    /// The hash of the command.
    pub hash: u64,
}

/// What memory can say of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// It made this event.
    Known(Known),
    /// It made none.
    New,
    /// The durable blocks whose last event was stamped at or after this must be asked.
    Ask(Millis),
}

/// The ids of a conversation's tail.
#[derive(Debug, Default)]
pub struct Ids {
    /// Everything above `block_end`.
    tail: HashMap<(CommandId, UserId), Known, foldhash::fast::FixedState>,
    /// The same ids in order of seq, which is dense from `block_end + 1`.
    order: VecDeque<(CommandId, UserId)>,
    /// The seq up to which ids stand in durable blocks.
    block_end: Seq,
    /// The stamp of event `block_end`.
    block_at: Millis,
    /// Prints of the ids in the latest durable blocks, and how many ids there have each.
    prints: HashMap<u32, u32, foldhash::fast::FixedState>,
    /// Those blocks, oldest first: the stamp of the event before the block, and the block's prints.
    recent: VecDeque<(Millis, Box<[u32]>)>,
}

fn print(id: CommandId, sender: &UserId) -> u32 {
    id_print(id.0.as_bytes(), sender.as_str())
}

/// Stamps of the blocks whose prints are kept: an id that could stand in an older one is refused as too far in the past
/// of its clock, or asked for.
#[must_use]
pub const fn prints_since(now: Millis) -> Millis {
    now.saturating_sub(ID_AHEAD_MS_MAX + 60_000)
}

impl Ids {
    /// The ids of a log that was recovered from a snapshot.
    ///
    /// # Errors
    /// When the stored ids are not the events after `block_end`.
    pub fn recovered(stored: &[StoredId], block_end: Seq, block_at: Millis) -> Result<Self, Corrupt> {
        let mut ids = Self { block_end, block_at, ..Self::default() };
        for one in stored {
            let sender = UserId::stored(&one.sender).map_err(|_| Corrupt::Content("a stored text is no user id"))?;
            if one.seq != ids.end() + 1 {
                return Err(Corrupt::Content("the ids of a snapshot have a hole"));
            }
            let known = Known { seq: one.seq, n: one.n, created_at: one.created_at, hash: one.hash };
            ids.insert(command_id(&one.id)?, sender, known);
        }
        Ok(ids)
    }

    /// Prints of the youngest durable blocks were found in the store: those that end where the durable blocks do, as far
    /// back as none is missing.
    pub fn recall(&mut self, blocks: &[(Seq, StoredIdPrints)]) {
        let mut end = self.block_end;
        let known = blocks.iter().rev().skip_while(|(last, _)| *last > self.block_end).take_while(|(last, prints)| {
            let fits = *last == end && !prints.is_empty();
            end = end.saturating_sub(prints.len() as Seq);
            fits
        });
        let known: Vec<&StoredIdPrints> = known.map(|(_, prints)| prints).collect();
        let Some(oldest) = known.last() else { return };
        // Nothing stands before the first block of a log; else no later than this block began.
        let is_first = known.iter().map(|prints| prints.len() as Seq).sum::<Seq>() == self.block_end;
        let mut before = if is_first { 0 } else { oldest.first_at };
        for block in known.into_iter().rev() {
            self.keep_prints(before, block.iter().collect());
            before = block.last_at;
        }
    }

    fn keep_prints(&mut self, before: Millis, prints: Box<[u32]>) {
        for print in &prints {
            *self.prints.entry(*print).or_insert(0) += 1;
        }
        self.recent.push_back((before, prints));
    }

    /// The seq up to which ids are remembered or durable.
    #[must_use]
    pub fn end(&self) -> Seq {
        self.block_end + self.order.len() as u64
    }

    /// The last seq in a durable block, and its stamp.
    #[must_use]
    pub const fn durable(&self) -> (Seq, Millis) {
        (self.block_end, self.block_at)
    }

    /// The next event's id.
    pub fn remember(&mut self, event: &Event) {
        let known = Known { seq: event.seq, n: event.n, created_at: event.created_at, hash: event.hash };
        self.insert(event.id, event.sender.clone(), known);
    }

    fn insert(&mut self, id: CommandId, sender: UserId, known: Known) {
        self.tail.insert((id, sender.clone()), known);
        self.order.push_back((id, sender));
    }

    /// What memory can say of `id`.
    #[must_use]
    pub fn look_up(&self, sender: &UserId, id: CommandId) -> Memory {
        if let Some(known) = self.tail.get(&(id, sender.clone())) {
            return Memory::Known(*known);
        }
        if self.block_end == 0 {
            return Memory::New;
        }
        // An id without a time can stand anywhere.
        let earliest = id.time().map_or(0, |time| time.saturating_sub(ID_AHEAD_MS_MAX));
        if earliest > self.block_at {
            return Memory::New;
        }
        let remembered_since = self.recent.front().map_or(self.block_at, |(before, _)| *before);
        if earliest > remembered_since && !self.prints.contains_key(&print(id, sender)) {
            return Memory::New;
        }
        Memory::Ask(earliest)
    }

    /// A whole block of committed ids that is not durable yet.
    #[must_use]
    pub fn block_due(&self, committed: Seq) -> Option<(Seq, Arc<StoredIdBlock>)> {
        let end = self.block_end + id_block_events();
        (committed >= end).then(|| (end, Arc::new(StoredIdBlock { ids: self.stored(id_block_events() as usize) })))
    }

    /// The block that ends at `end` is durable: its ids may leave memory, but for their prints.
    pub fn block_durable(&mut self, end: Seq, now: Millis) {
        if end != self.block_end + id_block_events() || self.order.len() < id_block_events() as usize {
            return;
        }
        let before = self.block_at;
        let mut prints = Vec::with_capacity(id_block_events() as usize);
        for (id, sender) in self.order.drain(..id_block_events() as usize) {
            prints.push(print(id, &sender));
            if let Some(known) = self.tail.remove(&(id, sender)) {
                self.block_at = known.created_at;
            }
        }
        self.block_end = end;
        self.keep_prints(before, prints.into_boxed_slice());
        let since = prints_since(now);
        while self.recent.len() > PRINT_BLOCKS_MAX || self.recent.get(1).is_some_and(|(before, _)| *before < since) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        for one in self.recent.pop_front().iter().flat_map(|(_, prints)| prints) {
            // Another block may hold an id with the same print.
            if let Entry::Occupied(mut entry) = self.prints.entry(*one) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// The ids of the first `count` events above the last durable block.
    #[must_use]
    pub fn stored(&self, count: usize) -> Vec<StoredId> {
        let stored = |key: &(CommandId, UserId)| {
            let known = self.tail.get(key)?;
            Some(StoredId {
                sender: key.1.as_str().to_owned(),
                id: key.0.0.as_bytes().to_vec(),
                seq: known.seq,
                hash: known.hash,
                n: known.n,
                created_at: known.created_at,
            })
        };
        self.order.iter().take(count).filter_map(stored).collect()
    }

    /// Heap bytes, roughly.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.tail.allocation_size()
            + self.order.capacity() * size_of::<(CommandId, UserId)>()
            + self.prints.allocation_size()
            + self.recent.len() * (id_block_events() as usize * 4 + 24)
    }
}

impl From<&StoredId> for Known {
    fn from(stored: &StoredId) -> Self {
        Self { seq: stored.seq, n: stored.n, created_at: stored.created_at, hash: stored.hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::event::Fact;

    fn ada() -> UserId {
        UserId::new("ada").unwrap()
    }

    /// A UUIDv7 of this time; `salt` tells two of one time apart.
    fn id_at(time: Millis, salt: u64) -> CommandId {
        let bytes = (u128::from(time) << 80 | u128::from(salt) & 0xffff_ffff_ffff).to_be_bytes();
        let random: [u8; 10] = bytes[6..].try_into().unwrap();
        CommandId(uuid::Builder::from_unix_timestamp_millis(time, &random).into_uuid())
    }

    fn event(seq: Seq, at: Millis) -> Event {
        let fact = Fact::MessageDeleted { previous: 0, target_n: 0 };
        Event {
            seq,
            n: seq,
            sender: ada(),
            device: None,
            id: id_at(at, seq),
            target: 0,
            created_at: at,
            hash: seq,
            fact,
        }
    }

    fn filled(count: u64, at: impl Fn(u64) -> Millis) -> Ids {
        let mut ids = Ids::default();
        for seq in 1..=count {
            ids.remember(&event(seq, at(seq)));
        }
        ids
    }

    const T: Millis = 1_700_000_000_000;

    #[test]
    fn the_tail_is_known_and_the_rest_of_a_young_log_is_new() {
        let ids = filled(10, |seq| T + seq);
        assert!(matches!(ids.look_up(&ada(), id_at(T + 4, 4)), Memory::Known(Known { seq: 4, .. })));
        assert_eq!(ids.look_up(&ada(), id_at(T + 4, 5)), Memory::New);
        assert_eq!(ids.look_up(&UserId::new("bob").unwrap(), id_at(T + 4, 4)), Memory::New);
        assert_eq!(ids.block_due(10), None);
    }

    #[test]
    fn a_durable_block_leaves_prints_behind() {
        let mut ids = filled(300, |seq| T + seq);
        assert_eq!(ids.block_due(255), None);
        let (end, block) = ids.block_due(256).unwrap();
        assert_eq!((end, block.ids.len(), block.ids[255].seq), (256, 256, 256));
        ids.block_durable(end, T + 300);
        assert_eq!(ids.durable(), (256, T + 256));
        assert_eq!(ids.end(), 300);
        // Known to stand in the block: the block must be asked.
        assert_eq!(ids.look_up(&ada(), id_at(T + 4, 4)), Memory::Ask(T + 4 - ID_AHEAD_MS_MAX));
        // Made in the same minute, but its print is not there.
        assert_eq!(ids.look_up(&ada(), id_at(T + 4, 999)), Memory::New);
        assert!(matches!(ids.look_up(&ada(), id_at(T + 280, 280)), Memory::Known(_)));
    }

    #[test]
    fn after_recovery_only_late_ids_are_new_without_a_read() {
        let mut ids = filled(300, |seq| T + seq);
        let (end, _) = ids.block_due(300).unwrap();
        ids.block_durable(end, T + 300);
        let (block_end, block_at) = ids.durable();
        let recovered = Ids::recovered(&ids.stored(usize::MAX), block_end, block_at).unwrap();
        assert_eq!(recovered.end(), 300);
        assert!(matches!(recovered.look_up(&ada(), id_at(T + 4, 999)), Memory::Ask(_)));
        assert_eq!(recovered.look_up(&ada(), id_at(T + 257 + ID_AHEAD_MS_MAX, 9)), Memory::New);
        assert!(matches!(recovered.look_up(&ada(), id_at(T + 300, 300)), Memory::Known(_)));
        assert!(Ids::recovered(&ids.stored(usize::MAX), block_end - 1, 0).is_err());
    }

    #[test]
    fn prints_are_forgotten_in_time() {
        let minutes = |n: u64| n * 60_000;
        let mut ids = filled(256 * 40, |seq| T + minutes(seq / 256));
        let mut now = T;
        while let Some((end, _)) = ids.block_due(ids.end()) {
            now += 60_000;
            ids.block_durable(end, now);
        }
        assert!(ids.recent.len() <= 9, "{} blocks are remembered", ids.recent.len());
        assert_eq!(ids.prints.len(), ids.recent.len() * 256);
    }

    /// The ids of a log of so many blocks, one a minute, as a crash leaves them: the snapshot's, and what the store has.
    fn crashed(blocks: u64) -> (Ids, Vec<(Seq, StoredIdPrints)>, Millis) {
        let minutes = |n: u64| n * 60_000;
        let mut ids = filled(256 * blocks + 9, |seq| T + minutes((seq - 1) / 256));
        let now = T + minutes(blocks);
        let mut stored = Vec::new();
        while let Some((end, block)) = ids.block_due(ids.end()) {
            stored.push((end, StoredIdPrints::of(&block)));
            ids.block_durable(end, now);
        }
        let (end, at) = ids.durable();
        (Ids::recovered(&ids.stored(usize::MAX), end, at).unwrap(), stored, now)
    }

    #[test]
    fn what_the_store_has_of_prints_spares_reads_after_a_restart() {
        let (mut ids, stored, now) = crashed(20);
        assert!(matches!(ids.look_up(&ada(), id_at(now, 999)), Memory::Ask(_)));
        let young: Vec<_> =
            stored.iter().filter(|(_, prints)| prints.last_at + 60_000 >= prints_since(now)).cloned().collect();
        ids.recall(&young);
        assert_eq!(ids.recent.len(), young.len());
        assert_eq!(ids.look_up(&ada(), id_at(now, 999)), Memory::New);
        // Two minutes ago, which stands in a block.
        let known = id_at(T + 18 * 60_000, 18 * 256 + 7);
        assert!(matches!(ids.look_up(&ada(), known), Memory::Ask(_)));
        assert!(matches!(ids.look_up(&ada(), id_at(T, 5)), Memory::Ask(_)));
        // A block that is missing among them hides those before it, one that is above is not believed.
        for missing in 0..young.len() {
            let (mut ids, _, _) = crashed(20);
            let mut some = young.clone();
            some.remove(missing);
            some.push((256 * 21, stored[0].1.clone()));
            ids.recall(&some);
            assert_eq!(ids.recent.len(), young.len() - 1 - missing);
        }
    }

    #[test]
    fn a_young_log_knows_after_a_restart_that_nothing_stands_before_it() {
        let (mut ids, stored, now) = crashed(2);
        ids.recall(&stored);
        assert_eq!(ids.look_up(&ada(), id_at(now - ID_AHEAD_MS_MAX, 999)), Memory::New);
    }

    #[test]
    fn a_print_that_two_blocks_share_outlives_the_first() {
        let mut ids = Ids::default();
        ids.keep_prints(0, Box::new([7, 7, 8]));
        ids.keep_prints(1, Box::new([7, 9]));
        ids.forget_oldest();
        assert_eq!((ids.prints.len(), ids.prints.get(&7)), (2, Some(&1)));
        ids.forget_oldest();
        assert!(ids.prints.is_empty());
    }
}
