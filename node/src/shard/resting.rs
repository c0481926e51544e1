//! Users who are not in memory, and what has moved on since they were: when one returns, only those conversations are
//! asked where they stand.
//!
//! Nobody is here whose conversations were not all watched from the moment at which they were put away. So nobody is
//! here after a start, and whoever misses too much, or is pushed out at the brim, is forgotten: then everything is asked.

use std::collections::VecDeque;

use chappe_schema::{
    id::{ConversationId, UserId},
    limit::{MISSED_MAX, RESTING_USERS_MAX},
};
use hashbrown::HashMap;

/// Notes about users who are away.
#[derive(Default)]
pub(super) struct Resting {
    users: HashMap<UserId, Away, foldhash::fast::FixedState>,
    /// Since when, the longest first; some have returned.
    order: VecDeque<(UserId, u64)>,
    /// How often somebody was put away.
    count: u64,
    /// Conversations noted, over all users.
    noted: usize,
}

struct Away {
    since: u64,
    missed: Vec<ConversationId>,
}

/// Conversations noted at once, over all users of a shard: as many as users, 16 bytes each.
const NOTED_MAX: usize = RESTING_USERS_MAX * 8;

impl Resting {
    /// The user is put away. Everything is known of their conversations but of these.
    pub(super) fn rest(&mut self, user: UserId, unknown: Vec<ConversationId>) {
        self.forget(&user);
        if unknown.len() > MISSED_MAX {
            return;
        }
        self.count += 1;
        self.noted += unknown.len();
        self.order.push_back((user.clone(), self.count));
        self.users.insert(user, Away { since: self.count, missed: unknown });
        self.keep_within(RESTING_USERS_MAX, NOTED_MAX);
    }

    /// A conversation of the user has moved on.
    pub(super) fn note(&mut self, user: &UserId, conversation: ConversationId) {
        let Some(away) = self.users.get_mut(user) else { return };
        if away.missed.contains(&conversation) {
            return;
        }
        away.missed.push(conversation);
        self.noted += 1;
        if away.missed.len() > MISSED_MAX {
            self.forget(user);
        }
        self.keep_within(RESTING_USERS_MAX, NOTED_MAX);
    }

    /// The user returns: what has moved on meanwhile, if somebody has watched.
    pub(super) fn wake(&mut self, user: &UserId) -> Option<Vec<ConversationId>> {
        let away = self.users.remove(user)?;
        self.noted -= away.missed.len();
        Some(away.missed)
    }

    /// Nobody watches over the user any more.
    pub(super) fn forget(&mut self, user: &UserId) {
        self.wake(user);
    }

    /// Nobody watches over these users any more.
    pub(super) fn forget_all(&mut self, of: impl Fn(&UserId) -> bool) {
        self.users.retain(|user, _| !of(user));
        self.noted = self.users.values().map(|away| away.missed.len()).sum();
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    fn keep_within(&mut self, users: usize, noted: usize) {
        while (self.users.len() > users || self.noted > noted)
            && let Some((user, since)) = self.order.pop_front()
        {
            if self.users.get(&user).is_some_and(|away| away.since == since) {
                self.forget(&user);
            }
        }
        // Whoever comes and goes leaves places behind in the order.
        if self.order.len() > 2 * users.max(self.users.len()) {
            self.order.retain(|(user, since)| self.users.get(user).is_some_and(|away| away.since == *since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: usize) -> UserId {
        UserId::new(&format!("user-{n}")).unwrap()
    }

    fn conversation(n: usize) -> ConversationId {
        ConversationId(uuid::Uuid::from_u128(n as u128))
    }

    #[test]
    fn who_returns_hears_of_what_they_missed_and_of_nothing_else() {
        let mut resting = Resting::default();
        resting.note(&user(1), conversation(1));
        assert_eq!(resting.wake(&user(1)), None, "nobody has watched");
        resting.rest(user(1), vec![conversation(7)]);
        for n in [2, 3, 2] {
            resting.note(&user(1), conversation(n));
            resting.note(&user(2), conversation(n));
        }
        assert_eq!(resting.wake(&user(1)), Some([7, 2, 3].map(conversation).to_vec()));
        assert_eq!((resting.wake(&user(1)), resting.wake(&user(2)), resting.noted), (None, None, 0));
    }

    #[test]
    fn who_misses_too_much_is_forgotten() {
        let mut resting = Resting::default();
        resting.rest(user(1), Vec::new());
        (0..=MISSED_MAX).for_each(|n| resting.note(&user(1), conversation(n)));
        assert_eq!(resting.wake(&user(1)), None);
        resting.rest(user(2), (0..=MISSED_MAX).map(conversation).collect());
        assert_eq!((resting.wake(&user(2)), resting.noted), (None, 0));
    }

    #[test]
    fn at_the_brim_the_longest_away_goes() {
        let mut resting = Resting::default();
        for n in 0..10 {
            resting.rest(user(n), vec![conversation(n)]);
        }
        // Who has been back since was not away for longest.
        resting.wake(&user(0));
        resting.rest(user(0), Vec::new());
        resting.keep_within(8, 100);
        assert!(!resting.users.contains_key(&user(1)) && !resting.users.contains_key(&user(2)));
        assert_eq!((resting.len(), resting.noted), (8, 7));
        resting.keep_within(8, 3);
        assert_eq!((resting.noted, resting.wake(&user(0))), (3, Some(Vec::new())));
        resting.forget_all(|who| *who != user(9));
        assert_eq!((resting.len(), resting.noted), (1, 1));
        for _ in 0..100 {
            resting.rest(user(3), Vec::new());
            resting.keep_within(8, 100);
        }
        assert!(resting.order.len() <= 17, "{}", resting.order.len());
    }
}
