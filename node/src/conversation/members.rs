//! Who is a member, in which role, and which part of the log each may see.

use chappe_schema::{
    event::{HistoryAccess, Role},
    id::{Seq, UserId},
    stored::{Corrupt, StoredMember},
};

/// A present or past member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// As what; of a past member, the last role.
    pub role: Role,
    /// The event by which they joined, 0 if they are no member now.
    pub joined: Seq,
    /// Messages read, at least: up to their own last one, and what was written before they joined counts as read.
    pub read_n: u64,
    /// Earlier stays: joined and left, both included. Rare, so it costs one word when empty.
    pub past: Option<Box<Vec<(Seq, Seq)>>>,
}

/// All members that a conversation has had, by user id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    all: Vec<Member>,
    present: u32,
}

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

    /// The members of now, by user id.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.all.iter().filter(|member| member.joined != 0)
    }

    /// A member of now.
    #[must_use]
    pub fn get(&self, user: &UserId) -> Option<&Member> {
        self.find(user).ok().map(|index| &self.all[index]).filter(|member| member.joined != 0)
    }

    /// Whether `user` is or was a member.
    #[must_use]
    pub fn ever(&self, user: &UserId) -> bool {
        self.find(user).is_ok()
    }

    /// The members of now whose id is above `after`, by user id.
    pub fn present_after<'a>(&'a self, after: Option<&UserId>) -> impl Iterator<Item = &'a Member> {
        let start = after.map_or(0, |after| match self.find(after) {
            Ok(index) => index + 1,
            Err(index) => index,
        });
        self.all[start..].iter().filter(|member| member.joined != 0)
    }

    /// How many owners there are now.
    #[must_use]
    pub fn owners(&self) -> usize {
        self.present().filter(|member| member.role == Role::Owner).count()
    }

    fn find(&self, user: &UserId) -> Result<usize, usize> {
        self.all.binary_search_by(|member| member.user.cmp(user))
    }

    /// `user` is a member from event `seq` on. Total: a member who joins again only changes the role.
    pub fn join(&mut self, user: &UserId, role: Role, seq: Seq, n: u64) {
        match self.find(user) {
            Ok(index) => {
                let member = &mut self.all[index];
                member.role = role;
                if member.joined == 0 {
                    member.joined = seq;
                    member.read_n = n;
                    self.present += 1;
                }
            }
            Err(index) => {
                self.all.insert(index, Member { user: user.clone(), role, joined: seq, read_n: n, past: None });
                self.present += 1;
            }
        }
    }

    /// `user` is no member after event `seq`, which they still see. Total: who is no member stays none.
    pub fn leave(&mut self, user: &UserId, seq: Seq) {
        if let Ok(index) = self.find(user) {
            let member = &mut self.all[index];
            if member.joined != 0 {
                member.past.get_or_insert_default().push((member.joined, seq));
                member.joined = 0;
                self.present -= 1;
            }
        }
    }

    /// `user` has read messages up to `n`.
    pub fn read(&mut self, user: &UserId, n: u64) {
        if let Ok(index) = self.find(user) {
            let member = &mut self.all[index];
            member.read_n = member.read_n.max(n);
        }
    }

    /// `user` has another role.
    pub fn set_role(&mut self, user: &UserId, role: Role) {
        if let Ok(index) = self.find(user) {
            self.all[index].role = role;
        }
    }

    /// Heap bytes, roughly.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.all.capacity() * size_of::<Member>()
            + self
                .all
                .iter()
                .filter_map(|member| member.past.as_ref())
                .map(|past| 24 + past.capacity() * 16)
                .sum::<usize>()
    }

    /// Gives back what growth has reserved.
    pub fn shrink(&mut self) {
        self.all.shrink_to_fit();
    }

    pub(super) fn to_stored(&self) -> Vec<StoredMember> {
        let stored = |member: &Member| {
            let mut intervals: Vec<u64> =
                member.past.iter().flat_map(|past| past.iter()).flat_map(|(joined, left)| [*joined, *left]).collect();
            if member.joined != 0 {
                intervals.push(member.joined);
            }
            StoredMember {
                user: member.user.as_str().to_owned(),
                role: member.role as i32,
                intervals,
                read_n: member.read_n,
            }
        };
        self.all.iter().map(stored).collect()
    }

    pub(super) fn from_stored(stored: &[StoredMember]) -> Result<Self, Corrupt> {
        let mut members = Self::default();
        for one in stored {
            let (user, role) = one.user_and_role()?;
            let (pairs, open) = one.intervals.as_chunks::<2>();
            let past: Vec<(Seq, Seq)> = pairs.iter().map(|pair| (pair[0], pair[1])).collect();
            let joined = open.first().copied().unwrap_or(0);
            members.present += u32::from(joined != 0);
            members.all.push(Member {
                user,
                role,
                joined,
                read_n: one.read_n,
                past: (!past.is_empty()).then(|| Box::new(past)),
            });
        }
        if !members.all.is_sorted_by(|a, b| a.user < b.user) {
            return Err(Corrupt::Content("the members of a snapshot are out of order"));
        }
        Ok(members)
    }
}

impl Member {
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

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn who_leaves_and_returns_sees_both_stays() {
        let mut members = Members::default();
        members.join(&user("ada"), Role::Owner, 1, 0);
        members.join(&user("bob"), Role::Member, 5, 0);
        members.leave(&user("bob"), 9);
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
        members.leave(&user("eve"), 3);
        members.set_role(&user("eve"), Role::Admin);
        assert_eq!((members.len(), members.get(&user("ada")).unwrap().joined), (1, 1));
    }

    #[test]
    fn members_come_back_from_a_snapshot() {
        let mut members = Members::default();
        for (name, seq) in [("zoe", 1), ("ada", 1), ("bob", 4)] {
            members.join(&user(name), Role::Member, seq, 0);
        }
        members.leave(&user("bob"), 7);
        assert_eq!(Members::from_stored(&members.to_stored()).unwrap(), members);
        let mut disordered = members.to_stored();
        disordered.swap(0, 1);
        assert!(Members::from_stored(&disordered).is_err());
    }

    #[test]
    fn pages_of_members_follow_the_cursor() {
        let mut members = Members::default();
        for name in ["a", "b", "c", "d"] {
            members.join(&user(name), Role::Member, 1, 0);
        }
        members.leave(&user("c"), 2);
        let after = |cursor: Option<&UserId>| -> Vec<String> {
            members.present_after(cursor).map(|m| m.user.to_string()).collect()
        };
        assert_eq!(after(None), ["a", "b", "d"]);
        assert_eq!(after(Some(&user("b"))), ["d"]);
        assert_eq!(after(Some(&user("bb"))), ["d"]);
    }
}
