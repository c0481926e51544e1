//! What one user knows of one conversation, over all connections and reads.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use crate::history::{Conversation, User};

#[derive(Debug, Default)]
pub(super) struct Views {
    views: HashMap<(User, Conversation), View>,
}

#[derive(Debug, Default)]
pub(super) struct View {
    /// The highest seq the user wrote, read or received (rule 7).
    pub(super) floor: u64,
    /// Stretches of seqs the user was shown, as few as possible (rule 11).
    pub(super) seen: Vec<(u64, u64)>,
    /// Stretches of seqs the user may be shown (rule 11), `u64::MAX` while the membership lasts.
    pub(super) visible: Vec<(u64, u64)>,
    /// Stretches of seqs between an event by which the user left and the one by which they came back.
    away: Vec<(u64, u64)>,
    /// Stretches that a resync obliges the user's client to read (rule 8).
    pub(super) debts: Vec<(u64, u64)>,
    /// What reads have covered together, by its beginning: it may pay a debt before that is known in full.
    paid: BTreeMap<u64, u64>,
}

impl Views {
    pub(super) fn of(&mut self, user: User, conversation: Conversation) -> &mut View {
        self.views.entry((user, conversation)).or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&(User, Conversation), &View)> {
        self.views.iter()
    }

    pub(super) fn get(&self, user: User, conversation: Conversation) -> Option<&View> {
        self.views.get(&(user, conversation))
    }

    /// The last seq a user may see.
    pub(super) fn visible_upto(&self, user: User, conversation: Conversation) -> u64 {
        let view = self.get(user, conversation);
        view.and_then(|view| view.visible.last()).map_or(u64::MAX, |(_, upto)| *upto)
    }
}

impl View {
    /// The user was shown their own leaving, or their own return, in whatever order.
    pub(super) fn moved(&mut self, seq: u64, has_left: bool) {
        if has_left {
            if self.away.iter().all(|(from, upto)| *from != seq + 1 && !(*from..=*upto).contains(&seq)) {
                self.away.push((seq + 1, u64::MAX));
            }
        } else if let Some(stretch) = self.away.iter_mut().filter(|(from, _)| *from <= seq).max() {
            stretch.1 = stretch.1.min(seq - 1);
        }
    }

    /// Whether the user may be shown what was done to the message at `target` by the event at `seq`, though they were no member
    /// then: the message is theirs to see, and they came back.
    pub(super) fn may_see_of(&self, target: u64, seq: u64) -> bool {
        let mut stays = self.visible.iter();
        stays.any(|(from, upto)| (*from..=*upto).contains(&target)) && stays.any(|(from, _)| *from > seq)
    }

    /// Whether the user was no member when the event at `seq` came.
    pub(super) fn was_away(&self, seq: u64) -> bool {
        self.away.iter().any(|(from, upto)| (*from..=*upto).contains(&seq))
    }

    /// Whether the user was shown what stands at `seq`.
    pub(super) fn has_seen(&self, seq: u64) -> bool {
        self.seen.iter().any(|(from, upto)| (*from..=*upto).contains(&seq))
    }

    pub(super) fn see(&mut self, seq: u64) {
        self.floor = self.floor.max(seq);
        match self.seen.last_mut() {
            Some((from, upto)) if seq >= *from && seq <= *upto => {}
            Some((_, upto)) if seq == *upto + 1 => *upto = seq,
            _ => self.see_apart(seq),
        }
    }

    /// The rare case: the seq does not prolong the latest stretch.
    fn see_apart(&mut self, seq: u64) {
        if self.seen.iter().any(|(from, upto)| (*from..=*upto).contains(&seq)) {
            return;
        }
        self.seen.push((seq, seq));
        if self.seen.len() > 64 {
            self.seen.sort_unstable();
            self.seen.dedup_by(|later, earlier| {
                let joined = later.0 <= earlier.1 + 1;
                if joined {
                    earlier.1 = earlier.1.max(later.1);
                }
                joined
            });
        }
    }

    pub(super) fn owe(&mut self, from: u64, upto: u64) {
        let from = self.unpaid_from(from);
        if from <= upto {
            self.debts.push((from, upto));
        }
    }

    /// The first from there on that no read has covered.
    fn unpaid_from(&self, mut from: u64) -> u64 {
        for (_, upto) in self.paid.range(..=from).rev().take(1) {
            from = from.max(upto + 1);
        }
        from
    }

    /// An event arrived behind all that came before it on its connection.
    pub(super) fn came(&mut self, seq: u64) {
        self.debts.retain_mut(|debt| {
            debt.0 += u64::from(debt.0 == seq);
            debt.0 <= debt.1
        });
    }

    /// A read covered a stretch.
    pub(super) fn settle(&mut self, from: u64, upto: u64) {
        if from > upto {
            return;
        }
        let (mut from, mut upto) = (from, upto);
        while let Some((start, end)) = self.paid.range(..=upto + 1).next_back().map(|(start, end)| (*start, *end))
            && end + 1 >= from
        {
            self.paid.remove(&start);
            (from, upto) = (from.min(start), upto.max(end));
        }
        self.paid.insert(from, upto);
        let debts = std::mem::take(&mut self.debts);
        debts.into_iter().for_each(|(from, upto)| self.owe(from, upto));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading that breaks off has covered what it gave: whatever is owed again afterwards, when an event arrives from behind the gap,
    /// and the rest may come when the client resumes from there.
    #[test]
    fn a_reading_that_broke_off_pays_for_what_it_gave() {
        let mut view = View::default();
        view.owe(30, 56);
        (30..=49).for_each(|seq| view.settle(seq, seq));
        view.owe(30, 56);
        assert_eq!(view.debts.first(), Some(&(50, 56)));
        (50..=55).for_each(|seq| view.came(seq));
        assert_eq!(view.debts.first(), Some(&(56, 56)), "and for nothing else");
        view.came(56);
        assert!(view.debts.is_empty());
    }
}
