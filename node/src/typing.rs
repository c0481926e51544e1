//! Who is writing where: pure books, without a clock.
//!
//! Whoever says that they are writing is, for six seconds, unless they say it again. Others are told of each change, of
//! one writer once a second at most, and again every three seconds while it goes on, so that whoever opens the
//! conversation meanwhile learns of it. Nothing is queued: what could not be told at once is told with the next tick, as
//! it stands then.

use chappe_schema::{
    id::{ConversationId, Millis, UserId},
    limit::{TYPING_MS, TYPING_PAUSE_MS, TYPING_REPEAT_MS, TYPING_USERS_MAX},
};
use hashbrown::HashMap;
use smallvec::SmallVec;

/// Those who write in the conversations of one shard.
#[derive(Debug, Default)]
pub struct Typing {
    conversations: HashMap<ConversationId, SmallVec<[Typist; 1]>, foldhash::fast::FixedState>,
}

#[derive(Debug)]
struct Typist {
    user: UserId,
    /// When they are not writing any more, unless they say so again; 0 if they have stopped.
    until: Millis,
    /// What others were told last.
    told: bool,
    /// And when.
    told_at: Millis,
}

/// What is to be done when somebody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// Tell others.
    Tell,
    /// Others know, or learn of it with the next tick.
    Known,
    /// Too many write already.
    Unseen,
}

impl Typing {
    /// A member is writing.
    pub fn start(&mut self, conversation: ConversationId, user: &UserId, now: Millis) -> Started {
        let typists = self.conversations.entry(conversation).or_default();
        let typist = match typists.iter_mut().position(|typist| typist.user == *user) {
            Some(index) => &mut typists[index],
            None if typists.len() >= TYPING_USERS_MAX => return Started::Unseen,
            None => {
                typists.push(Typist { user: user.clone(), until: 0, told: false, told_at: 0 });
                // Just pushed.
                let last = typists.len() - 1;
                &mut typists[last]
            }
        };
        typist.until = now + TYPING_MS;
        let pause = if typist.told { TYPING_REPEAT_MS } else { TYPING_PAUSE_MS };
        if now < typist.told_at + pause {
            return Started::Known;
        }
        (typist.told, typist.told_at) = (true, now);
        Started::Tell
    }

    /// A member says that they have stopped; whether others are to be told now.
    pub fn stop(&mut self, conversation: ConversationId, user: &UserId, now: Millis) -> bool {
        let Some(typist) = self.typist(conversation, user) else { return false };
        typist.until = 0;
        let tell = typist.told && now >= typist.told_at + TYPING_PAUSE_MS;
        if tell {
            (typist.told, typist.told_at) = (false, now);
        }
        tell
    }

    /// A writer has sent what they wrote, or is no member any more; whether others are to be told, which does not wait.
    pub fn end(&mut self, conversation: ConversationId, user: &UserId, now: Millis) -> bool {
        let Some(typist) = self.typist(conversation, user) else { return false };
        typist.until = 0;
        let was_told = std::mem::replace(&mut typist.told, false);
        if was_told {
            typist.told_at = now;
        }
        was_told
    }

    fn typist(&mut self, conversation: ConversationId, user: &UserId) -> Option<&mut Typist> {
        self.conversations.get_mut(&conversation)?.iter_mut().find(|typist| typist.user == *user)
    }

    /// Conversations that are somebody else's, or gone.
    pub fn forget(&mut self, is_gone: impl Fn(ConversationId) -> bool) {
        self.conversations.retain(|conversation, _| !is_gone(*conversation));
    }

    /// Time has passed: says who is to be told as writing, or as writing no more.
    pub fn tick(&mut self, now: Millis, mut tell: impl FnMut(ConversationId, &UserId, bool)) {
        self.conversations.retain(|conversation, typists| {
            typists.retain(|typist| {
                let is_typing = typist.until > now;
                if is_typing != typist.told && now >= typist.told_at + TYPING_PAUSE_MS {
                    (typist.told, typist.told_at) = (is_typing, now);
                    tell(*conversation, &typist.user, is_typing);
                }
                // Kept through the pause, which would not hold for somebody who is forgotten.
                is_typing || typist.told || now < typist.told_at + TYPING_PAUSE_MS
            });
            !typists.is_empty()
        });
    }

    /// Conversations in which somebody writes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    /// Whether nobody writes anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conversations.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: ConversationId = ConversationId(uuid::Uuid::from_u128(7));
    const T: Millis = 1_700_000_000_000;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn ticked(typing: &mut Typing, now: Millis) -> Vec<(String, bool)> {
        let mut told = Vec::new();
        typing.tick(now, |_, user, is_typing| told.push((user.to_string(), is_typing)));
        told
    }

    #[test]
    fn who_says_nothing_more_stops_by_themselves() {
        let (mut typing, ada) = (Typing::default(), user("ada"));
        assert_eq!(typing.start(HERE, &ada, T), Started::Tell);
        assert_eq!(typing.start(HERE, &ada, T + 500), Started::Known);
        assert_eq!(ticked(&mut typing, T + 500 + TYPING_MS - 1), []);
        assert_eq!(ticked(&mut typing, T + 500 + TYPING_MS), [("ada".into(), false)]);
        assert!(!typing.is_empty(), "the pause holds for whoever begins again");
        assert_eq!(typing.start(HERE, &ada, T + 501 + TYPING_MS), Started::Known);
        assert_eq!(ticked(&mut typing, T + 500 + TYPING_MS + TYPING_PAUSE_MS), [("ada".into(), true)]);
        assert_eq!(ticked(&mut typing, T + 3 * TYPING_MS), [("ada".into(), false)]);
        assert_eq!(ticked(&mut typing, T + 4 * TYPING_MS), []);
        assert!(typing.is_empty(), "nothing stays of it");
    }

    #[test]
    fn who_goes_on_is_told_again_for_those_who_come_later() {
        let (mut typing, ada) = (Typing::default(), user("ada"));
        let mut told = 0;
        for ms in (0..30_000).step_by(100) {
            told += u64::from(typing.start(HERE, &ada, T + ms) == Started::Tell);
        }
        assert_eq!(told, 30_000 / TYPING_REPEAT_MS);
    }

    #[test]
    fn a_message_ends_it_at_once() {
        let (mut typing, ada) = (Typing::default(), user("ada"));
        typing.start(HERE, &ada, T);
        assert!(typing.end(HERE, &ada, T + 1));
        assert!(!typing.end(HERE, &ada, T + 2), "they know");
        assert!(!typing.stop(HERE, &ada, T + 3));
        assert_eq!(ticked(&mut typing, T + 4), []);
        assert!(!typing.end(HERE, &user("bob"), T));
    }

    #[test]
    fn more_than_anybody_reads_are_not_shown() {
        let mut typing = Typing::default();
        for n in 0..TYPING_USERS_MAX {
            assert_eq!(typing.start(HERE, &user(&format!("u{n}")), T), Started::Tell);
        }
        assert_eq!(typing.start(HERE, &user("late"), T), Started::Unseen);
        typing.forget(|conversation| conversation == HERE);
        assert_eq!(typing.len(), 0);
    }

    proptest::proptest! {
        /// Whatever is said: others are told no more often than the pause allows, and after the quiet everybody has it
        /// right, which is that nobody writes.
        #[test]
        fn it_is_bounded_and_ends(steps in proptest::collection::vec((0u8..5, 0u64..1_500), 1..200)) {
            let (mut typing, ada) = (Typing::default(), user("ada"));
            let (mut now, mut shown) = (T, false);
            // What pauses: a message says it at once, and is bounded by itself.
            let mut said: Vec<Millis> = Vec::new();
            for (what, pause) in steps {
                now += pause;
                match what {
                    0 | 1 => if typing.start(HERE, &ada, now) == Started::Tell {
                        said.push(now);
                        shown = true;
                    },
                    2 => if typing.stop(HERE, &ada, now) {
                        said.push(now);
                        shown = false;
                    },
                    3 => if typing.end(HERE, &ada, now) {
                        said.clear();
                        said.push(now);
                        shown = false;
                    },
                    _ => for (_, is_typing) in ticked(&mut typing, now) {
                        said.push(now);
                        shown = is_typing;
                    },
                }
                for pair in said.windows(2) {
                    proptest::prop_assert!(pair[1] - pair[0] >= TYPING_PAUSE_MS);
                }
            }
            for (_, is_typing) in ticked(&mut typing, now + TYPING_MS) {
                shown = is_typing;
            }
            ticked(&mut typing, now + TYPING_MS + TYPING_PAUSE_MS);
            proptest::prop_assert!(!shown && typing.is_empty());
        }
    }
}
