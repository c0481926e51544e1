//! Who is a member, in which role, and which part of the log each may see.
//!
//! The list is kept in runs, so that joining costs the same in a conversation of a hundred thousand as in one of ten. Up to
//! [`SNAPSHOT_MEMBERS_MAX`](chappe_schema::limit::SNAPSHOT_MEMBERS_MAX) members stand in the conversation's snapshot; beyond,
//! for good, each has a row of their own. A row says up to which event it reflects, because it may be younger than the
//! snapshot that it is read with: events up to there, applied again, change nothing of its member.

use std::collections::{BTreeMap, BTreeSet};

use chappe_schema::{
    event::{Event, Fact, HistoryAccess, Role},
    id::{Seq, UserId},
    limit::STAYS_MAX,
    receipt::Watermarks,
    stored::{Corrupt, StoredMember},
};

use crate::pace::snapshot_members_max;

/// Members in one run: a new one moves at most so many others.
const RUN_MAX: usize = 256;

/// A present or past member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// As what; of a past member, the last role.
    pub role: Role,
    /// Was removed by somebody else, and does not come back by themselves.
    pub barred: bool,
    /// The event by which they joined, 0 if they are no member now.
    pub joined: Seq,
    /// Messages read, at least: up to their own last one, and what was written before they joined counts as read.
    pub read_n: u64,
    /// How far they have got as others see it: what they themselves said, and nothing that follows from joining or writing.
    pub marks: Watermarks,
    /// Earlier stays: joined and left, both included. Rare, so it costs one word when empty.
    pub past: Option<Box<Vec<(Seq, Seq)>>>,
}

/// All members that a conversation has had, by user id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Ascending, none of them empty.
    runs: Vec<Vec<Member>>,
    present: u32,
    known: u32,
    /// Bytes of names.
    names: usize,
    /// Bytes of earlier stays.
    stays: usize,
    /// What is to be known of members' rows, where each has one.
    rows: Option<Box<Rows>>,
}

/// How members' rows stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rows {
    /// Members who are not as their rows say.
    stale: BTreeSet<UserId>,
    /// Up to which event members are as they are already, where that is above the snapshot; while a log is read again.
    ahead: BTreeMap<UserId, Seq>,
    /// The same of everybody.
    all_ahead: Seq,
}

/// Where a member stands, or would: the run, and the place in it.
type Place = (usize, usize);

impl Members {
    /// How many members there are now.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.present as usize
    }

    /// Whether nobody is a member now.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// How many there are and were.
    #[must_use]
    pub const fn known(&self) -> usize {
        self.known as usize
    }

    /// The members of now, by user id.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.all().filter(|member| member.joined != 0)
    }

    /// A member of now.
    #[must_use]
    pub fn get(&self, user: &UserId) -> Option<&Member> {
        self.ever_known(user).filter(|member| member.joined != 0)
    }

    /// A member of now, to be changed.
    pub fn get_mut(&mut self, user: &UserId) -> Option<&mut Member> {
        self.ever_known_mut(user).filter(|member| member.joined != 0)
    }

    /// A member of now or before.
    #[must_use]
    pub fn ever_known(&self, user: &UserId) -> Option<&Member> {
        self.find(user).ok().map(|(run, place)| &self.runs[run][place])
    }

    /// A member of now or before, to be changed.
    pub fn ever_known_mut(&mut self, user: &UserId) -> Option<&mut Member> {
        self.find(user).ok().map(|(run, place)| &mut self.runs[run][place])
    }

    /// The members of now and before, by user id.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.runs.iter().flatten()
    }

    /// Whether `user` is or was a member.
    #[must_use]
    pub fn ever(&self, user: &UserId) -> bool {
        self.find(user).is_ok()
    }

    /// The members of now whose id is above `after`, by user id.
    pub fn present_after<'a>(&'a self, after: Option<&UserId>) -> impl Iterator<Item = &'a Member> {
        let (run, place) = after.map_or((0, 0), |after| match self.find(after) {
            Ok((run, place)) => (run, place + 1),
            Err(place) => place,
        });
        let first = self.runs.get(run).map_or(&[][..], |run| &run[place..]);
        let others = self.runs.get(run + 1..).unwrap_or_default();
        first.iter().chain(others.iter().flatten()).filter(|member| member.joined != 0)
    }

    /// How many owners there are now.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.present().filter(|member| member.role == Role::Owner).count()
    }

    fn find(&self, user: &UserId) -> Result<Place, Place> {
        // The last run that begins at or below them; else the first.
        let run = self.runs.partition_point(|run| run[0].user <= *user).saturating_sub(1);
        let Some(members) = self.runs.get(run) else { return Err((0, 0)) };
        let place = members.binary_search_by(|member| member.user.cmp(user));
        place.map(|place| (run, place)).map_err(|place| (run, place))
    }

    fn insert(&mut self, (mut run, mut place): Place, member: Member) {
        self.known += 1;
        self.present += u32::from(member.joined != 0);
        self.names += (16 + member.user.as_str().len()).next_multiple_of(16);
        self.stays += member.stay_bytes();
        if self.runs.get(run).is_some_and(|members| members.len() >= RUN_MAX) {
            // Whoever comes last begins a run of their own: names in ascending order leave full ones behind.
            let is_last = run + 1 == self.runs.len() && place == RUN_MAX;
            let at = if is_last { RUN_MAX } else { RUN_MAX / 2 };
            let upper = self.runs[run].split_off(at);
            self.runs.insert(run + 1, upper);
            if place >= at {
                (run, place) = (run + 1, place - at);
            }
        }
        match self.runs.get_mut(run) {
            Some(members) => members.insert(place, member),
            None => self.runs.push(vec![member]),
        }
    }

    /// `user` is a member from event `seq` on. Total: a member who joins again only changes the role.
    pub fn join(&mut self, user: &UserId, role: Role, seq: Seq, n: u64) {
        if self.reflects(user, seq) {
            return;
        }
        match self.find(user) {
            Ok((run, place)) => {
                let member = &mut self.runs[run][place];
                (member.role, member.barred) = (role, false);
                if member.joined == 0 {
                    member.joined = seq;
                    member.read_n = n;
                    self.present += 1;
                }
            }
            Err(place) => {
                let (user, marks) = (user.clone(), Watermarks::default());
                self.insert(place, Member { user, role, barred: false, joined: seq, read_n: n, marks, past: None });
            }
        }
        self.outdate(user);
    }

    /// `user` is no member after event `seq`, which they still see; `barred` if somebody else wanted that. Total: who is no
    /// member stays none.
    pub fn leave(&mut self, user: &UserId, seq: Seq, barred: bool) {
        if self.reflects(user, seq) {
            return;
        }
        let Ok((run, place)) = self.find(user) else { return };
        let member = &mut self.runs[run][place];
        if member.joined != 0 {
            self.stays -= member.stay_bytes();
            let past = member.past.get_or_insert_default();
            if past.len() >= STAYS_MAX {
                past.remove(0);
            }
            past.push((member.joined, seq));
            (member.joined, member.barred) = (0, barred);
            self.stays += member.stay_bytes();
            self.present -= 1;
            self.outdate(user);
        }
    }

    /// `user` has read messages up to `n`, by writing the last of them.
    pub fn read(&mut self, user: &UserId, n: u64) {
        if let Some(member) = self.ever_known_mut(user).filter(|member| member.read_n < n) {
            member.read_n = n;
            self.outdate(user);
        }
    }

    /// `user` has another role, by event `seq`.
    pub fn set_role(&mut self, user: &UserId, role: Role, seq: Seq) {
        if !self.reflects(user, seq)
            && let Some(member) = self.ever_known_mut(user)
        {
            member.role = role;
            self.outdate(user);
        }
    }

    /// Heap bytes, roughly; without looking at everybody.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        // Runs that were split are not full. A few names are shared with their users; of very many hardly any is.
        let (room, names) = match &self.runs[..] {
            [] => (0, 0),
            [run] => (run.capacity(), 0),
            _ => (self.known() * 4 / 3, self.names),
        };
        let rows = self.rows.as_ref().map_or(0, |rows| size_of::<Rows>() + rows.stale.len() * 2 * size_of::<UserId>());
        self.runs.capacity() * size_of::<Vec<Member>>() + room * size_of::<Member>() + names + self.stays + rows
    }

    /// Gives back what growth has reserved.
    pub fn shrink(&mut self) {
        self.runs.iter_mut().for_each(Vec::shrink_to_fit);
        self.runs.shrink_to_fit();
    }

    // === at rest

    /// Whether each member has a row of their own.
    #[must_use]
    pub const fn are_apart(&self) -> bool {
        self.rows.is_some()
    }

    /// Before a snapshot: where there are too many to stand in it, each gets a row of their own from now on.
    pub fn part(&mut self) {
        if self.rows.is_none() && self.known() > snapshot_members_max() {
            let stale = self.all().map(|member| member.user.clone()).collect();
            self.rows = Some(Box::new(Rows { stale, ..Rows::default() }));
        }
    }

    /// The rows of those who are not as theirs say, as everybody stands after event `as_of`.
    pub fn take_stale(&mut self, as_of: Seq) -> Vec<StoredMember> {
        let stale = self.rows.as_mut().map(|rows| std::mem::take(&mut rows.stale)).unwrap_or_default();
        let row = |user: &UserId| Some(StoredMember { as_of, ..self.ever_known(user)?.to_stored() });
        stale.iter().filter_map(row).collect()
    }

    /// Events up to `seq` are reflected in everybody: what a log tells of them again changes nothing.
    pub fn are_as_of(&mut self, seq: Seq) {
        self.rows.get_or_insert_default().all_ahead = seq;
    }

    /// The log was read up to its end.
    pub fn caught_up(&mut self) {
        if let Some(rows) = &mut self.rows {
            (rows.ahead, rows.all_ahead) = (BTreeMap::new(), 0);
        }
    }

    fn reflects(&self, user: &UserId, seq: Seq) -> bool {
        self.rows.as_ref().is_some_and(|rows| {
            seq <= rows.all_ahead || (!rows.ahead.is_empty() && rows.ahead.get(user).is_some_and(|ahead| seq <= *ahead))
        })
    }

    fn outdate(&mut self, user: &UserId) {
        if let Some(rows) = &mut self.rows
            && !rows.stale.contains(user)
        {
            rows.stale.insert(user.clone());
        }
    }

    /// The members as a snapshot holds them: nobody, where each has a row of their own.
    pub(super) fn to_stored(&self) -> Vec<StoredMember> {
        let inside = if self.are_apart() { &[] } else { &self.runs[..] };
        inside.iter().flatten().map(Member::to_stored).collect()
    }

    /// The members of a snapshot.
    pub(super) fn from_stored(stored: Vec<StoredMember>) -> Result<Self, Corrupt> {
        let mut members = Self::default();
        for one in stored {
            let member = Member::from_stored(one)?;
            if members.runs.last().and_then(|run| run.last()).is_some_and(|last| last.user >= member.user) {
                return Err(Corrupt::Content("members are out of order"));
            }
            let run = members.runs.len().saturating_sub(1);
            let place = members.runs.last().map_or(0, Vec::len);
            members.insert((run, place), member);
        }
        Ok(members)
    }

    /// The members of rows, all of them, in order, beside a snapshot at `seq`.
    ///
    /// # Errors
    /// When they are out of order, or make no sense.
    pub fn from_rows(rows: Vec<StoredMember>, seq: Seq) -> Result<Self, Corrupt> {
        let mut ahead = BTreeMap::new();
        for row in rows.iter().filter(|row| row.as_of > seq) {
            ahead.insert(row.user_and_role()?.0, row.as_of);
        }
        let members = Self::from_stored(rows)?;
        Ok(Self { rows: Some(Box::new(Rows { ahead, ..Rows::default() })), ..members })
    }
}

impl Member {
    fn to_stored(&self) -> StoredMember {
        let mut intervals: Vec<u64> =
            self.past.iter().flat_map(|past| past.iter()).flat_map(|(joined, left)| [*joined, *left]).collect();
        if self.joined != 0 {
            intervals.push(self.joined);
        }
        StoredMember {
            user: self.user.as_str().to_owned(),
            role: self.role as i32,
            intervals,
            read_n: self.read_n,
            delivered_n: self.marks.delivered_n,
            shown_n: self.marks.read_n,
            barred: self.barred,
            as_of: 0,
        }
    }

    fn from_stored(stored: StoredMember) -> Result<Self, Corrupt> {
        let (user, role) = stored.user_and_role()?;
        let (pairs, open) = stored.intervals.as_chunks::<2>();
        let past: Vec<(Seq, Seq)> = pairs.iter().map(|pair| (pair[0], pair[1])).collect();
        Ok(Self {
            user,
            role,
            barred: stored.barred,
            joined: open.first().copied().unwrap_or(0),
            read_n: stored.read_n,
            marks: Watermarks { delivered_n: stored.delivered_n, read_n: stored.shown_n },
            past: (!past.is_empty()).then(|| Box::new(past)),
        })
    }

    fn stay_bytes(&self) -> usize {
        self.past.as_ref().map_or(0, |past| 24 + past.len() * 16)
    }

    /// Whether they were a member when event `seq` came.
    #[must_use]
    pub fn was_there(&self, seq: Seq) -> bool {
        let stays = self.past.iter().flat_map(|past| past.iter());
        (self.joined != 0 && self.joined <= seq) || stays.copied().any(|(joined, left)| (joined..=left).contains(&seq))
    }

    /// The parts of the log that a member of now may see, ascending; the last one is open upwards.
    #[must_use]
    pub fn visible(&self, access: HistoryAccess) -> Visible {
        let mut ranges = Vec::new();
        match access {
            HistoryAccess::All => ranges.push((1, Seq::MAX)),
            HistoryAccess::SinceJoin => {
                ranges.extend(self.past.iter().flat_map(|past| past.iter().copied()));
                ranges.push((self.joined, Seq::MAX));
            }
        }
        Visible(ranges)
    }
}

/// Ranges of seqs, both ends included, ascending and apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible(Vec<(Seq, Seq)>);

impl Visible {
    /// Whether the event at `seq` may be seen.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&seq))
    }

    /// Whether the event is shown: what is done to a message to whoever may see the message, also when it was done in their
    /// absence; anything else to whoever was there.
    #[must_use]
    pub fn shows(&self, event: &Event) -> bool {
        self.contains(event.seq) || (event.fact.is_about_message() && self.contains(event.target))
    }

    /// Whether it is shown without its body: what an edit makes of a message from before somebody's time is not theirs to read.
    #[must_use]
    pub fn veils(&self, event: &Event) -> bool {
        matches!(event.fact, Fact::MessageUpdated { .. }) && !self.contains(event.target)
    }

    /// The first visible seq at or above this one.
    #[must_use]
    pub fn next(&self, seq: Seq) -> Seq {
        self.0.iter().find(|(_, high)| *high >= seq).map_or(seq, |(low, _)| seq.max(*low))
    }

    /// Nothing at or below is visible.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.0.first().map_or(0, |(low, _)| low - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn who_leaves_and_returns_sees_both_stays() {
        let mut members = Members::default();
        members.join(&user("ada"), Role::Owner, 1, 0);
        members.join(&user("bob"), Role::Member, 5, 0);
        members.leave(&user("bob"), 9, false);
        assert_eq!((members.len(), members.get(&user("bob"))), (1, None));
        members.join(&user("bob"), Role::Admin, 15, 0);
        let visible = members.get(&user("bob")).unwrap().visible(HistoryAccess::SinceJoin);
        let seen: Vec<Seq> = (1..20).filter(|seq| visible.contains(*seq)).collect();
        assert_eq!(seen, [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]);
        assert_eq!(visible.floor(), 4);
        assert!(members.get(&user("bob")).unwrap().visible(HistoryAccess::All).contains(1));
    }

    #[test]
    fn repeated_facts_change_nothing() {
        let mut members = Members::default();
        members.join(&user("ada"), Role::Owner, 1, 0);
        members.join(&user("ada"), Role::Owner, 2, 0);
        members.leave(&user("eve"), 3, true);
        members.set_role(&user("eve"), Role::Admin, 4);
        assert_eq!((members.len(), members.get(&user("ada")).unwrap().joined), (1, 1));
    }

    #[test]
    fn members_come_back_from_a_snapshot() {
        let mut members = Members::default();
        for (name, seq) in [("zoe", 1), ("ada", 1), ("bob", 4)] {
            members.join(&user(name), Role::Member, seq, 0);
        }
        members.leave(&user("bob"), 7, true);
        assert_eq!(Members::from_stored(members.to_stored()).unwrap(), members);
        let mut disordered = members.to_stored();
        disordered.swap(0, 1);
        assert!(Members::from_stored(disordered).is_err());
    }

    #[test]
    fn pages_of_members_follow_the_cursor() {
        let mut members = Members::default();
        for name in ["a", "b", "c", "d"] {
            members.join(&user(name), Role::Member, 1, 0);
        }
        members.leave(&user("c"), 2, false);
        let after = |cursor: Option<&UserId>| -> Vec<String> {
            members.present_after(cursor).map(|m| m.user.to_string()).collect()
        };
        assert_eq!(after(None), ["a", "b", "d"]);
        assert_eq!(after(Some(&user("b"))), ["d"]);
        assert_eq!(after(Some(&user("bb"))), ["d"]);
    }

    /// A crowd whose ids are not in the order in which they come.
    fn crowd(count: u32) -> impl Iterator<Item = UserId> {
        (0..count).map(|n| user(&format!("{:08x}", n.wrapping_mul(0x9e37_79b9))))
    }

    #[test]
    fn very_many_are_found_and_paged_like_few() {
        let mut members = Members::default();
        for (n, user) in crowd(5_000).enumerate() {
            members.join(&user, Role::Member, n as Seq + 1, 0);
        }
        assert!(members.runs.iter().all(|run| (1..=RUN_MAX).contains(&run.len())));
        assert!(members.all().is_sorted_by(|a, b| a.user < b.user));
        for (n, user) in crowd(5_000).enumerate() {
            assert_eq!(members.get(&user).map(|member| member.joined), Some(n as Seq + 1));
        }
        assert!(!members.ever(&user("nobody")));
        for user in crowd(1_000) {
            members.leave(&user, 9_000, false);
        }
        assert_eq!((members.len(), members.known()), (4_000, 5_000));
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page: Vec<UserId> =
                members.present_after(after.as_ref()).take(77).map(|member| member.user.clone()).collect();
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            paged.extend(page);
        }
        assert_eq!(paged, members.present().map(|member| member.user.clone()).collect::<Vec<_>>());
        // What is told of their size is not far off.
        let room: usize = members.runs.iter().map(|run| run.capacity() * size_of::<Member>()).sum();
        assert!(
            (room / 2..2 * room).contains(&(members.heap_bytes() - members.names - members.stays)),
            "{}",
            members.heap_bytes()
        );
        members.shrink();
    }

    #[test]
    fn names_in_ascending_order_leave_full_runs_behind() {
        let mut members = Members::default();
        for n in 0..2_000 {
            members.join(&user(&format!("{n:06}")), Role::Member, 1, 0);
        }
        assert_eq!(members.runs.len(), 2_000_usize.div_ceil(RUN_MAX));
    }

    /// A log of a few people who come, go, are removed, write and change roles.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Join(u8),
        Leave(u8),
        Bar(u8),
        Write(u8),
        Promote(u8),
    }

    fn apply(members: &mut Members, seq: Seq, deed: Deed) {
        let user = |n: u8| user(&format!("u{n}"));
        match deed {
            Deed::Join(n) => members.join(&user(n), Role::Member, seq, seq),
            Deed::Leave(n) => members.leave(&user(n), seq, false),
            Deed::Bar(n) => members.leave(&user(n), seq, true),
            Deed::Write(n) => members.read(&user(n), seq),
            Deed::Promote(n) => members.set_role(&user(n), Role::Admin, seq),
        }
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = (0..5_u8, 0..12_u8).prop_map(|(what, who)| match what {
            0 => Deed::Join(who),
            1 => Deed::Leave(who),
            2 => Deed::Bar(who),
            3 => Deed::Write(who),
            _ => Deed::Promote(who),
        });
        proptest::collection::vec(deed, 1..120)
    }

    proptest! {
        /// Rows may be younger than the snapshot: those of some later moment were written, each or not, and the snapshot that
        /// should have followed was not.
        #[test]
        fn rows_that_are_ahead_of_their_snapshot_lead_to_the_same_members(
            deeds in deeds(),
            moments in (0..1000_usize, 0..1000_usize),
            written in any::<u64>(),
        ) {
            crate::pace::crowd(true);
            let at = |moment: usize| moment * deeds.len() / 1000;
            let (first, second) = (at(moments.0.min(moments.1)), at(moments.0.max(moments.1)));
            let mut members = Members::default();
            // Enough of them that each has a row.
            (0..8).for_each(|n| members.join(&user(&format!("u{n}")), Role::Member, 1, 0));
            let mut rows: BTreeMap<String, StoredMember> = BTreeMap::new();
            let seq = |index: usize| index as Seq + 2;
            for (index, deed) in deeds.iter().enumerate() {
                if index == first || index == second {
                    members.part();
                    let taken = members.take_stale(seq(index) - 1);
                    let is_durable = |n: usize| index == first || written >> (n % 64) & 1 == 1;
                    let durable = taken.into_iter().enumerate().filter(|(n, _)| is_durable(*n));
                    rows.extend(durable.map(|(_, row)| (row.user.clone(), row)));
                }
                apply(&mut members, seq(index), *deed);
            }
            let mut again = Members::from_rows(rows.into_values().collect(), seq(first) - 1).unwrap();
            for (index, deed) in deeds.iter().enumerate().skip(first) {
                apply(&mut again, seq(index), *deed);
            }
            again.caught_up();
            prop_assert_eq!(again.all().collect::<Vec<_>>(), members.all().collect::<Vec<_>>());
            prop_assert_eq!((again.len(), again.known()), (members.len(), members.known()));
            // Kept in memory while everything else is read again: the same.
            let mut kept = members.clone();
            kept.are_as_of(seq(deeds.len()));
            for (index, deed) in deeds.iter().enumerate().skip(first) {
                apply(&mut kept, seq(index), *deed);
            }
            prop_assert_eq!(kept.all().collect::<Vec<_>>(), members.all().collect::<Vec<_>>());
            crate::pace::crowd(false);
        }
    }

    #[test]
    fn who_comes_and_goes_without_end_is_remembered_within_bounds() {
        let mut members = Members::default();
        for round in 0..10 * STAYS_MAX as Seq {
            members.join(&user("bob"), Role::Member, 2 * round + 1, 0);
            members.leave(&user("bob"), 2 * round + 2, false);
        }
        let past = members.ever_known(&user("bob")).and_then(|bob| bob.past.clone()).unwrap();
        assert_eq!((past.len(), past.last()), (STAYS_MAX, Some(&(20 * STAYS_MAX as Seq - 1, 20 * STAYS_MAX as Seq))));
    }
}
