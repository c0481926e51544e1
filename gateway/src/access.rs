//! What this gateway knows of users' log-outs and bans.
//!
//! The user's owner is the authority. It judges every connection itself, and tells which are over. For HTTP, where each
//! request comes by itself, the gateway remembers the owner's answer: for [`ACCESS_STALE_MS_MAX`] since it asked, and a
//! change is pushed to every gateway as soon as it is committed. So a request with a token that counts for nothing any
//! more is refused at once, and after that time at the latest should a push be lost.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    access::Access,
    error::{Code, Error},
    id::UserId,
    limit::{ACCESS_CACHE_MAX, ACCESS_STALE_MS_MAX},
    wire::{Actor, AskedAccess},
};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    auth::count_refusal,
    gateway::Gateway,
    route::{Pending, lanes::Ask},
};

/// The memory.
pub(crate) struct Known([Mutex<Shard>; SHARDS]);

/// Many, so that requests on different cores seldom meet.
const SHARDS: usize = 16;

#[derive(Default)]
struct Shard {
    users: HashMap<UserId, Entry, FixedState>,
    /// The same users, in the order in which they are looked at again, each with when it had been asked for last.
    order: VecDeque<(UserId, u64)>,
}

struct Entry {
    access: Arc<Access>,
    /// In milliseconds of the gateway's clock.
    asked: u64,
}

impl Known {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn shard(&self, user: &UserId) -> &Mutex<Shard> {
        use std::hash::BuildHasher;
        // The map takes the other bits of the same hash.
        &self.0[(FixedState::default().hash_one(user) >> 32) as usize % SHARDS]
    }

    /// What stands against a user, if that was asked for not too long ago.
    pub(crate) fn get(&self, user: &UserId, now: u64) -> Option<Arc<Access>> {
        let shard = self.shard(user).lock();
        let entry = shard.users.get(user).filter(|entry| now < entry.asked + ACCESS_STALE_MS_MAX)?;
        Some(Arc::clone(&entry.access))
    }

    /// Remembers what the owner says to a question that was asked at `asked`, or said by itself.
    pub(crate) fn learn(&self, user: &UserId, access: Arc<Access>, asked: u64) {
        let mut shard = self.shard(user).lock();
        match shard.users.get_mut(user) {
            // Older news, heard late.
            Some(entry) if access.version < entry.access.version => return,
            Some(entry) => *entry = Entry { access, asked: asked.max(entry.asked) },
            None => {
                shard.users.insert(user.clone(), Entry { access, asked });
                shard.order.push_back((user.clone(), asked));
            }
        }
        shard.forget(asked);
    }

    /// Users that are remembered, those included whose time is over.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().users.len()).sum()
    }
}

impl Shard {
    /// Lets go of what is too old or too much.
    fn forget(&mut self, now: u64) {
        while let Some((_, asked)) = self.order.front() {
            let is_crowded = self.users.len() > ACCESS_CACHE_MAX / SHARDS;
            if now < asked + ACCESS_STALE_MS_MAX && !is_crowded {
                return;
            }
            let Some((user, _)) = self.order.pop_front() else { return };
            match self.users.get(&user) {
                Some(entry) if !is_crowded && now < entry.asked + ACCESS_STALE_MS_MAX => {
                    self.order.push_back((user, entry.asked));
                }
                _ => drop(self.users.remove(&user)),
            }
        }
    }
}

impl Gateway {
    /// Whether somebody may still speak for a user: from memory, or by asking the user's owner.
    ///
    /// # Errors
    /// `auth.banned`, `auth.logged_out`; `unavailable` and the like when nobody can tell: nobody gets in then.
    pub(crate) async fn check_access(&self, actor: &Actor) -> Result<(), Error> {
        let asked = self.clock.elapsed_ms();
        let access = match self.known.get(&actor.user, asked) {
            Some(access) => access,
            None => {
                let (answer, access) = oneshot::channel();
                let user = actor.user.clone();
                let pending = Pending::Access(user.clone(), asked, answer);
                let partition = user.partition();
                let make = |correlation| Ask::Access(Arc::new(AskedAccess { correlation, user }));
                let time = (self.clock.seconds(), self.clock.now_ms());
                let at_once = self.route.ask(partition, pending, time, &*self.link, make);
                self.receive_at_once(at_once);
                // Every question is answered, by the sweep if by nobody else.
                access.await.unwrap_or_else(|_| Err(Error::new(Code::GoingAway)))?
            }
        };
        access.check(actor.device.as_ref(), &actor.by, self.clock.now_ms()).inspect_err(count)
    }
}

/// Counts who was logged out or banned and came all the same.
pub(crate) fn count(error: &Error) {
    match error.code {
        Code::AuthLoggedOut => count_refusal("logged_out"),
        Code::AuthBanned => count_refusal("banned"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use chappe_schema::{
        access::{Ban, By, Token},
        wire::Owner,
    };

    use super::*;
    use crate::sweep::tests::World;

    fn user(n: usize) -> UserId {
        UserId::new(&format!("user-{n}")).unwrap()
    }

    fn version(version: u64) -> Arc<Access> {
        Arc::new(Access { version, ..Access::default() })
    }

    #[test]
    fn an_answer_is_believed_for_its_time_since_the_question() {
        let known = Known::new();
        known.learn(&user(1), version(0), 1_000);
        assert!(known.get(&user(1), 1_000 + ACCESS_STALE_MS_MAX - 1).is_some());
        assert!(known.get(&user(1), 1_000 + ACCESS_STALE_MS_MAX).is_none());
        assert!(known.get(&user(2), 1_000).is_none());
    }

    /// Goal: the bound that is promised holds even where a push is lost. Method: a ban that no gateway is told of.
    #[tokio::test]
    async fn a_push_that_was_lost_is_made_good_in_time() {
        let world = World::new();
        let actor = Actor { user: user(1), device: None, by: By::Token(Token::default()) };
        assert_eq!(world.gateway.check_access(&actor).await, Ok(()));
        let name = actor.user.as_str();
        world.node.change_access(name, false, |access| access.set_ban(1, Some(Ban::default())));
        world.pass((ACCESS_STALE_MS_MAX / 1000) as u32 - 1).await;
        assert_eq!(world.gateway.check_access(&actor).await, Ok(()), "nobody has told it");
        world.pass(1).await;
        assert_eq!(world.gateway.check_access(&actor).await.unwrap_err().code, Code::AuthBanned);
        // A push is heard at once.
        world.node.change_access(name, true, |access| access.set_ban(2, None));
        assert_eq!(world.gateway.check_access(&actor).await, Ok(()));
    }

    /// Goal: a ban that a former owner had no time to tell of is heard of from the next one.
    #[tokio::test]
    async fn the_next_owner_ends_what_the_last_one_could_not() {
        let world = World::new();
        let mut ada = world.client("ada", 3600, 64 * 1024).await;
        let mut bob = world.client("bob", 3600, 64 * 1024).await;
        world.node.change_access("ada", false, |access| access.set_ban(1, Some(Ban::default())));
        let owner = Owner { session: 1, epoch: 7 };
        let of = |name: &str| (UserId::new(name).unwrap().partition(), owner);
        world.gateway.assigned(&[of("ada"), of("bob")]);
        assert_eq!(ada.ended().await, ("auth.banned".into(), 4504));
        bob.nothing().await;
    }

    #[test]
    fn older_news_changes_nothing() {
        let known = Known::new();
        known.learn(&user(1), version(5), 1_000);
        known.learn(&user(1), version(4), 2_000);
        assert_eq!(known.get(&user(1), 2_000).unwrap().version, 5);
        // The answer to an older question that was overtaken by a push makes the push no older.
        known.learn(&user(1), version(6), 500);
        assert_eq!(known.get(&user(1), 1_000 + ACCESS_STALE_MS_MAX - 1).unwrap().version, 6);
    }

    #[test]
    fn it_is_bounded_and_what_is_asked_again_stays() {
        let known = Known::new();
        for n in 0..2 * ACCESS_CACHE_MAX {
            known.learn(&user(n), version(0), 1_000 + n as u64 / 1_000);
        }
        assert!(known.len() <= ACCESS_CACHE_MAX, "{}", known.len());
        assert!(known.get(&user(0), 1_200).is_none(), "the longest known goes first");
        assert!(known.get(&user(2 * ACCESS_CACHE_MAX - 1), 1_200).is_some());
        // Whatever is over goes with the next word about anybody of the same shard.
        for n in 0..1_000 {
            known.learn(&user(n), version(0), 1_000_000);
        }
        assert!(known.len() <= 1_000, "{}", known.len());
        // Who is asked for again and again takes one place, and stays.
        for n in 0..3 * ACCESS_STALE_MS_MAX {
            known.learn(&user(7), version(0), 1_000_000 + n);
        }
        assert!(known.get(&user(7), 1_000_000 + 3 * ACCESS_STALE_MS_MAX).is_some());
        let shard = known.shard(&user(7)).lock();
        assert_eq!((shard.users.len(), shard.order.len()), (1, 1));
    }
}
