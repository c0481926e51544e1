//! What counts of unread messages need beside two numbers: which messages were deleted, and which mention whom.
//!
//! `unread = head.n − read.n` is right as long as nothing is deleted, and tells no mentions. So a conversation remembers,
//! for messages that somebody may not have read yet, the ordinals of deleted ones (as runs) and the mentions. What every
//! member concerned has read is forgotten. Both lists are bounded; at the brim the oldest go, and for whoever has read
//! less than what went, counts are lower bounds and say so ("99+"): they are never wrong.

use std::sync::Arc;

use chappe_schema::{
    id::UserId,
    inbox::Counts,
    limit::{MARKED_MENTIONS_MAX, MARKED_RUNS_MAX, SMALL_MEMBERS_MAX},
    mention::{Mentioned, Mentions},
    stored::{Corrupt, StoredMarks, StoredMention, StoredMentions},
};

use super::members::Members;

/// The marks of one conversation; nothing in most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(Option<Box<Lists>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    /// Ordinals of deleted messages: runs from first to last, ascending and apart.
    deleted: Vec<(u64, u64)>,
    /// Deletions at or below were forgotten.
    deleted_floor: u64,
    /// Messages that mention somebody, ascending; each is not deleted.
    mentions: Vec<(u64, Arc<Mentions>)>,
    /// Mentions at or below were forgotten.
    mentions_floor: u64,
}

impl Marks {
    /// The message `n` mentions these from now on.
    pub fn mention(&mut self, n: u64, mentioned: &Mentioned) {
        if self.0.is_none() && mentioned.is_none() {
            return;
        }
        let lists = self.0.get_or_insert_default();
        let place = lists.mentions.partition_point(|(at, _)| *at < n);
        let is_there = lists.mentions.get(place).is_some_and(|(at, _)| *at == n);
        match mentioned {
            Some(mentions) if is_there => lists.mentions[place].1 = Arc::clone(mentions),
            // What was forgotten stays so, or there would be holes in what is remembered.
            Some(mentions) if n > lists.mentions_floor => lists.mentions.insert(place, (n, Arc::clone(mentions))),
            None if is_there => drop(lists.mentions.remove(place)),
            _ => {}
        }
    }

    /// The message `n` is deleted.
    pub fn delete(&mut self, n: u64) {
        self.mention(n, &None);
        let lists = self.0.get_or_insert_default();
        if n <= lists.deleted_floor {
            return;
        }
        let runs = &mut lists.deleted;
        let place = runs.partition_point(|(_, last)| *last < n);
        if runs.get(place).is_some_and(|(first, _)| *first <= n) {
            return;
        }
        let joins_before = place > 0 && runs[place - 1].1 + 1 == n;
        let joins_after = runs.get(place).is_some_and(|(first, _)| n + 1 == *first);
        match (joins_before, joins_after) {
            (true, true) => runs[place - 1].1 = runs.remove(place).1,
            (true, false) => runs[place - 1].1 = n,
            (false, true) => runs[place].0 = n,
            (false, false) => runs.insert(place, (n, n)),
        }
    }

    /// The messages up to `n` are removed.
    pub fn purge(&mut self, n: u64) {
        if n == 0 {
            return;
        }
        let lists = self.0.get_or_insert_default();
        lists.mentions.retain(|(at, _)| *at > n);
        // One run for all of them, and those that go on from there: it is known again of all which are deleted.
        let after = lists.deleted.partition_point(|(first, _)| *first <= n + 1);
        let last = lists.deleted.drain(..after).map(|(_, last)| last).max().unwrap_or(0).max(n);
        lists.deleted.insert(0, (1, last));
        if lists.deleted_floor <= n {
            lists.deleted_floor = 0;
        }
        if lists.mentions_floor <= n {
            lists.mentions_floor = 0;
        }
    }

    /// Whether a list is longer than it may be.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let crowded =
            |lists: &Lists| lists.deleted.len() > MARKED_RUNS_MAX || lists.mentions.len() > MARKED_MENTIONS_MAX;
        self.0.as_ref().is_some_and(|lists| crowded(lists))
    }

    /// Forgets what everybody concerned has read, then, where a list is still too long, its oldest quarter: a list at its
    /// brim is not gone through for every message.
    pub fn make_room(&mut self, members: &Members) {
        self.prune(members);
        let Some(lists) = &mut self.0 else { return };
        if lists.deleted.len() > MARKED_RUNS_MAX {
            let gone = lists.deleted.drain(..MARKED_RUNS_MAX / 4).next_back();
            lists.deleted_floor = gone.map_or(lists.deleted_floor, |(_, last)| last);
        }
        if lists.mentions.len() > MARKED_MENTIONS_MAX {
            let gone = lists.mentions.drain(..MARKED_MENTIONS_MAX / 4).next_back();
            lists.mentions_floor = gone.map_or(lists.mentions_floor, |(n, _)| n);
        }
    }

    /// Forgets what everybody concerned has read. Among very many somebody has always read nothing: there the lists are kept
    /// short by their bounds alone, and nobody goes through all members.
    pub fn prune(&mut self, members: &Members) {
        let Some(lists) = self.0.as_mut().filter(|_| members.len() <= SMALL_MEMBERS_MAX) else { return };
        let lowest = members.present().map(|member| member.read_n).min().unwrap_or(u64::MAX);
        let unread = lists.deleted.partition_point(|(_, last)| *last <= lowest);
        lists.deleted.drain(..unread);
        // The read part of a run too: what is kept does not depend on when somebody was last asked to forget.
        if let Some((first, _)) = lists.deleted.first_mut() {
            *first = (*first).max(lowest.saturating_add(1));
        }
        let read = |n: u64, user: &UserId| members.get(user).is_none_or(|member| member.read_n >= n);
        // Whoever joins later has nothing to read of what was written before.
        lists
            .mentions
            .retain(|(n, mentions)| *n > lowest && (mentions.all || !mentions.users.iter().all(|user| read(*n, user))));
        for floor in [&mut lists.deleted_floor, &mut lists.mentions_floor] {
            if *floor <= lowest {
                *floor = 0;
            }
        }
        if **lists == Lists::default() {
            self.0 = None;
        }
    }

    /// What of `n` messages a member has not read who has read `read_n`.
    #[must_use]
    pub fn counts(&self, user: &UserId, read_n: u64, n: u64) -> Counts {
        let Some(lists) = self.0.as_ref().filter(|_| read_n < n) else {
            return Counts { unread: n.saturating_sub(read_n), ..Counts::default() };
        };
        let from = read_n.max(lists.deleted_floor);
        let runs = &lists.deleted[lists.deleted.partition_point(|(_, last)| *last <= from)..];
        let deleted: u64 = runs.iter().map(|(first, last)| last - (*first - 1).max(from)).sum();
        let unread = lists.mentions.partition_point(|(at, _)| *at <= read_n);
        Counts {
            unread: n.saturating_sub(from).saturating_sub(deleted),
            unread_more: read_n < lists.deleted_floor,
            mentions: lists.mentions[unread..].iter().filter(|(_, mentions)| mentions.name(user)).count() as u64,
            mentions_more: read_n < lists.mentions_floor,
        }
    }

    /// Heap bytes, roughly.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |lists| {
            let mentions: usize = lists.mentions.iter().map(|(_, mentions)| mentions.heap_bytes()).sum();
            size_of::<Lists>() + lists.deleted.capacity() * 16 + lists.mentions.capacity() * 16 + mentions
        })
    }

    pub(super) fn to_stored(&self) -> Option<StoredMarks> {
        let lists = self.0.as_ref()?;
        let mark = |(n, mentions): &(u64, Arc<Mentions>)| StoredMention {
            n: *n,
            mentions: StoredMentions::of(&Some(Arc::clone(mentions))),
        };
        Some(StoredMarks {
            deleted: lists.deleted.iter().flat_map(|(first, last)| [*first, *last]).collect(),
            deleted_floor: lists.deleted_floor,
            mentions: lists.mentions.iter().map(mark).collect(),
            mentions_floor: lists.mentions_floor,
        })
    }

    pub(super) fn from_stored(stored: Option<StoredMarks>) -> Result<Self, Corrupt> {
        let Some(stored) = stored else { return Ok(Self::default()) };
        let deleted = stored.deleted.as_chunks::<2>().0.iter().map(|run| (run[0], run[1])).collect();
        let mark = |mark: StoredMention| {
            let mentions = StoredMentions::open(mark.mentions)?;
            mentions.map(|mentions| (mark.n, mentions)).ok_or(Corrupt::Content("a mark mentions nobody"))
        };
        let lists = Lists {
            deleted,
            deleted_floor: stored.deleted_floor,
            mentions: stored.mentions.into_iter().map(mark).collect::<Result<_, _>>()?,
            mentions_floor: stored.mentions_floor,
        };
        let runs_ascend = lists.deleted.iter().all(|(first, last)| 0 < *first && first <= last)
            && lists.deleted.is_sorted_by(|below, above| below.1 < above.0);
        if !runs_ascend || !lists.mentions.is_sorted_by(|below, above| below.0 < above.0) {
            return Err(Corrupt::Content("the marks of a snapshot are out of order"));
        }
        Ok(Self(Some(Box::new(lists))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::event::Role;
    use proptest::prelude::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn mentions(names: &[&str], all: bool) -> Mentioned {
        Mentions { users: names.iter().map(|name| user(name)).collect(), all }.checked().unwrap()
    }

    fn members(read: &[(&str, u64)]) -> Members {
        let mut members = Members::default();
        for (name, read_n) in read {
            members.join(&user(name), Role::Member, 1, *read_n);
        }
        members
    }

    fn unread(marks: &Marks, name: &str, read_n: u64, n: u64) -> (u64, u64) {
        let counts = marks.counts(&user(name), read_n, n);
        assert!(!counts.unread_more && !counts.mentions_more);
        (counts.unread, counts.mentions)
    }

    #[test]
    fn deletions_in_any_order_are_runs() {
        let mut marks = Marks::default();
        for n in [5, 3, 9, 4, 8, 4, 1] {
            marks.delete(n);
        }
        assert_eq!(marks.0.as_ref().unwrap().deleted, [(1, 1), (3, 5), (8, 9)]);
        let counted: Vec<u64> = (0..=10).map(|read_n| unread(&marks, "ada", read_n, 10).0).collect();
        assert_eq!(counted, [4, 4, 3, 3, 3, 3, 2, 1, 1, 1, 0]);
    }

    #[test]
    fn mentions_are_those_of_the_last_edit_and_gone_with_the_message() {
        let mut marks = Marks::default();
        marks.mention(2, &mentions(&["bob"], false));
        marks.mention(4, &mentions(&[], true));
        marks.mention(3, &mentions(&["bob", "eve"], false));
        assert_eq!(
            (unread(&marks, "bob", 0, 5).1, unread(&marks, "eve", 0, 5).1, unread(&marks, "ada", 0, 5).1),
            (3, 2, 1)
        );
        assert_eq!(unread(&marks, "bob", 2, 5), (3, 2));
        marks.mention(2, &mentions(&["eve"], false));
        marks.mention(4, &None);
        assert_eq!((unread(&marks, "bob", 0, 5).1, unread(&marks, "eve", 0, 5).1), (1, 2));
        marks.delete(3);
        assert_eq!((unread(&marks, "bob", 0, 5), unread(&marks, "eve", 0, 5)), ((4, 0), (4, 1)));
    }

    #[test]
    fn what_everybody_concerned_has_read_is_forgotten() {
        let mut marks = Marks::default();
        marks.delete(2);
        marks.delete(7);
        marks.delete(8);
        marks.mention(3, &mentions(&["bob", "nobody"], false));
        marks.mention(4, &mentions(&["eve"], false));
        marks.mention(5, &mentions(&[], true));
        marks.prune(&members(&[("bob", 5), ("eve", 2)]));
        let lists = marks.0.as_ref().unwrap();
        assert_eq!(lists.deleted, [(7, 8)]);
        assert_eq!(lists.mentions.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [4, 5]);
        marks.prune(&members(&[("bob", 7), ("eve", 9)]));
        assert_eq!(marks.0.as_ref().unwrap().deleted, [(8, 8)]);
        marks.prune(&members(&[("bob", 8), ("eve", 9)]));
        assert_eq!(marks, Marks::default());
    }

    /// "99+": who has read less than what was forgotten is told a lower bound, everybody else the truth.
    #[test]
    fn at_the_brim_counts_are_lower_bounds_and_say_so() {
        let (mut marks, members) = (Marks::default(), members(&[("ada", 0)]));
        let count = MARKED_RUNS_MAX.max(MARKED_MENTIONS_MAX) as u64 + 10;
        for n in 1..=count {
            marks.delete(n * 2);
            marks.mention(n * 2 - 1, &mentions(&["ada"], false));
            if marks.is_crowded() {
                marks.make_room(&members);
            }
            let lists = marks.0.as_ref().unwrap();
            assert!(lists.deleted.len() <= MARKED_RUNS_MAX && lists.mentions.len() <= MARKED_MENTIONS_MAX);
        }
        let head = count * 2;
        let counts = marks.counts(&user("ada"), 0, head);
        assert!(counts.unread_more && counts.mentions_more);
        assert!(counts.unread <= count && counts.mentions <= count && counts.unread > 50 && counts.mentions > 50);
        assert_eq!(unread(&marks, "ada", head - 100, head), (50, 50));
        // An edit of what was forgotten is not remembered either.
        marks.mention(1, &mentions(&["ada"], false));
        assert_eq!(marks.counts(&user("ada"), 0, head), counts);
        let stored = marks.to_stored();
        assert_eq!(Marks::from_stored(stored).unwrap(), marks);
        // Once everything is read, nothing is forgotten any more.
        marks.prune(&self::members(&[("ada", head)]));
        assert_eq!(marks, Marks::default());
    }

    #[test]
    fn damaged_marks_are_refused() {
        let marks = |deleted: Vec<u64>| StoredMarks { deleted, ..StoredMarks::default() };
        assert!(Marks::from_stored(Some(marks(vec![1, 2, 4, 4]))).is_ok());
        for deleted in [vec![2, 1], vec![0, 1], vec![3, 4, 1, 2], vec![1, 3, 3, 4]] {
            assert!(Marks::from_stored(Some(marks(deleted))).is_err());
        }
        let nobody = StoredMention { n: 1, mentions: None };
        assert!(Marks::from_stored(Some(StoredMarks { mentions: vec![nobody], ..StoredMarks::default() })).is_err());
    }

    proptest! {
        /// Whatever is deleted and pruned: counts are those of a plain list of what is left.
        #[test]
        fn runs_count_like_a_plain_set(deletions in prop::collection::vec(1..60u64, 0..80), read_n in 0..60u64, lowest in 0..60u64) {
            let mut marks = Marks::default();
            deletions.iter().for_each(|n| marks.delete(*n));
            marks.prune(&members(&[("ada", lowest.min(read_n)), ("bob", read_n)]));
            let left = (read_n + 1..=60).filter(|n| !deletions.contains(n)).count() as u64;
            prop_assert_eq!(unread(&marks, "bob", read_n, 60).0, left);
        }
    }
}
