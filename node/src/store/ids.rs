//! How every store looks for an id among its durable blocks: a compact row of prints tells which block to read.

use std::ops::RangeInclusive;

use chappe_schema::{
    id::{CommandId, Millis, Seq, UserId},
    stored::{StoredId, StoredIdBlock, StoredIdPrints, id_print},
};

/// Most blocks whose prints a recovery brings, and that memory keeps: with more events than these in six minutes the
/// ids of the oldest are asked of the store again.
pub const PRINT_BLOCKS_MAX: usize = 1024;

/// The prints that a recovery brings, in the making: of the blocks that ended at a time or later, and of the one before
/// them, which tells when they began.
pub(super) struct Recent {
    since: Millis,
    newest_first: Vec<(Seq, StoredIdPrints)>,
}

impl Recent {
    pub(super) const fn new(since: Millis) -> Self {
        Self { since, newest_first: Vec::new() }
    }

    /// Takes the next older row; `false` when no more are wanted.
    pub(super) fn take(&mut self, end: Seq, prints: StoredIdPrints) -> bool {
        let is_last = prints.last_at < self.since || self.newest_first.len() + 1 == PRINT_BLOCKS_MAX;
        self.newest_first.push((end, prints));
        !is_last
    }

    /// They, in order of seq.
    pub(super) fn finish(mut self) -> Vec<(Seq, StoredIdPrints)> {
        self.newest_first.reverse();
        self.newest_first
    }
}

/// [`Recent`] of `rows` that come newest first.
///
/// # Errors
/// Those of `rows`.
pub(super) fn recent<E>(
    rows: impl IntoIterator<Item = Result<(Seq, StoredIdPrints), E>>,
    since: Millis,
) -> Result<Vec<(Seq, StoredIdPrints)>, E> {
    let mut recent = Recent::new(since);
    for row in rows {
        let (end, prints) = row?;
        if !recent.take(end, prints) {
            break;
        }
    }
    Ok(recent.finish())
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub(super) sender: &'a UserId,
    pub(super) id: CommandId,
    /// There are no blocks at or below.
    pub(super) above: Seq,
    pub(super) not_before: Millis,
}

/// A way down the prints of a log's blocks, newest first: which blocks have to be read.
pub(super) struct Descent {
    /// Nothing that ends above was missed.
    upto: Seq,
}

/// The next blocks to be read, in this order, each newest first, until one says to stop.
pub(super) struct Stop {
    /// Those without prints that end above the one with prints.
    pub(super) without: RangeInclusive<Seq>,
    /// The one with prints, if it can hold the id.
    pub(super) with: Option<Seq>,
    /// Whether nothing below can hold it.
    pub(super) is_last: bool,
}

impl Descent {
    pub(super) const fn new() -> Self {
        Self { upto: Seq::MAX }
    }

    /// Down to the prints of the block that ends there.
    pub(super) fn to(&mut self, wanted: &Wanted<'_>, end: Seq, prints: &StoredIdPrints) -> Stop {
        let without = end + 1..=self.upto;
        let is_last = prints.last_at < wanted.not_before;
        let with = (!is_last && prints.contains(wanted.print())).then_some(end);
        self.upto = end.saturating_sub(prints.len() as Seq);
        Stop { without, with, is_last }
    }

    /// Below all prints.
    pub(super) fn rest(self, wanted: &Wanted<'_>) -> RangeInclusive<Seq> {
        wanted.above + 1..=self.upto
    }
}

/// What a block says.
pub(super) enum Look {
    /// The id.
    Found(StoredId),
    /// Neither it nor any block below holds the id: times never fall along a log.
    Older,
    /// The id is not here.
    Absent,
}

impl Wanted<'_> {
    /// The id, if it stands in a block. `prints` come newest first; `blocks` calls back with the blocks that end in a range of
    /// seqs, newest first, until it is told to stop. Blocks without prints are read.
    ///
    /// # Errors
    /// Those of `prints` and `blocks`.
    pub(super) fn find<E>(
        &self,
        prints: impl IntoIterator<Item = Result<(Seq, StoredIdPrints), E>>,
        mut blocks: impl FnMut(RangeInclusive<Seq>, &mut dyn FnMut(StoredIdBlock) -> bool) -> Result<(), E>,
    ) -> Result<Option<StoredId>, E> {
        let mut read = |range: RangeInclusive<Seq>| {
            let mut look = Look::Absent;
            if !range.is_empty() {
                blocks(range, &mut |block| {
                    look = self.look(block);
                    matches!(look, Look::Absent)
                })?;
            }
            Ok(look)
        };
        let mut descent = Descent::new();
        for row in prints {
            let (end, prints) = row?;
            let stop = descent.to(self, end, &prints);
            for range in std::iter::once(stop.without).chain(stop.with.map(|end| end..=end)) {
                match read(range)? {
                    Look::Found(id) => return Ok(Some(id)),
                    Look::Older => return Ok(None),
                    Look::Absent => {}
                }
            }
            if stop.is_last {
                return Ok(None);
            }
        }
        Ok(if let Look::Found(id) = read(descent.rest(self))? { Some(id) } else { None })
    }

    /// Looks for it in a block.
    pub(super) fn look(&self, block: StoredIdBlock) -> Look {
        if block.ids.last().is_none_or(|last| last.created_at < self.not_before) {
            return Look::Older;
        }
        block.ids.into_iter().rev().find(|known| self.is(known)).map_or(Look::Absent, Look::Found)
    }

    fn print(&self) -> u32 {
        id_print(self.id.0.as_bytes(), self.sender.as_str())
    }

    fn is(&self, known: &StoredId) -> bool {
        known.id == self.id.0.as_bytes() && known.sender == self.sender.as_str()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap, convert::Infallible};

    use uuid::Uuid;

    use super::*;

    /// Ten blocks of four ids; event `n` at `10 n`.
    fn blocks() -> BTreeMap<Seq, StoredIdBlock> {
        let id = |seq: Seq| StoredId {
            sender: "ada".to_owned(),
            id: Uuid::from_u128(u128::from(seq)).as_bytes().to_vec(),
            seq,
            created_at: seq * 10,
            ..StoredId::default()
        };
        (1..=10).map(|n| (n * 4, StoredIdBlock { ids: (n * 4 - 3..=n * 4).map(id).collect() })).collect()
    }

    /// What is found, and how many blocks were read for it, where these blocks have no prints.
    fn find(id: u128, not_before: Millis, printless: &[Seq]) -> (Option<Seq>, usize) {
        let all = blocks();
        let sender = UserId::new("ada").unwrap();
        let wanted = Wanted { sender: &sender, id: CommandId(Uuid::from_u128(id)), above: 0, not_before };
        let prints = all.iter().rev().filter(|(end, _)| !printless.contains(end));
        let read = Cell::new(0);
        let found = wanted.find(
            prints.map(|(end, block)| Ok::<_, Infallible>((*end, StoredIdPrints::of(block)))),
            |range, take| {
                for (_, block) in all.range(range).rev() {
                    read.set(read.get() + 1);
                    if !take(block.clone()) {
                        break;
                    }
                }
                Ok(())
            },
        );
        let Ok(found) = found;
        (found.map(|found| found.seq), read.get())
    }

    #[test]
    fn only_a_block_with_the_print_is_read() {
        assert_eq!(find(7, 0, &[]), (Some(7), 1));
        assert_eq!(find(40, 0, &[]), (Some(40), 1));
        assert_eq!(find(41, 0, &[]), (None, 0));
        assert_eq!(find(7, 80, &[]), (Some(7), 1));
        assert_eq!(find(7, 81, &[]), (None, 0));
    }

    #[test]
    fn blocks_without_prints_are_found_wherever_they_stand() {
        for printless in [vec![40], vec![4], vec![8, 12], vec![4, 40, 20], (1..=10).map(|n| n * 4).collect()] {
            for id in 1..=40 {
                assert_eq!(find(id.into(), 0, &printless).0, Some(id), "{printless:?}");
                assert_eq!(find(id.into(), (id + 4) * 10, &printless).0, None, "{printless:?}");
            }
            assert_eq!(find(99, 0, &printless), (None, printless.len()));
        }
    }

    #[test]
    fn a_recovery_brings_the_young_and_the_one_before_them() {
        let rows = || {
            let all = blocks();
            all.into_iter().rev().map(|(end, block)| Ok::<_, Infallible>((end, StoredIdPrints::of(&block))))
        };
        let ends = |since| {
            let Ok(recent) = recent(rows(), since);
            recent.iter().map(|(end, _)| *end).collect::<Vec<_>>()
        };
        assert_eq!(ends(321), [32, 36, 40]);
        assert_eq!(ends(320), [28, 32, 36, 40]);
        assert_eq!(ends(1000), [40]);
        assert_eq!(ends(0).len(), 10);
    }
}
