//! Users who are looked at: by whom, and what was told of them.

use std::collections::VecDeque;

use chappe_schema::{
    id::{ConversationId, Millis, UserId},
    limit::{PRESENCE_EVENTS_S_MAX, PRESENCE_EXPIRES_MS, PRESENCE_PAUSE_MS, PRESENCE_WATCHERS_MAX},
    presence::{Shown, Watch},
};
use hashbrown::HashMap;

/// The watched users of one shard.
#[derive(Debug)]
pub struct Board {
    watched: HashMap<UserId, Watched, foldhash::fast::FixedState>,
    /// Users of whom not everything is told; each stands here once.
    due: VecDeque<UserId>,
    /// Users who will be shown otherwise by then without anything happening. In the order of time, roughly: they all wait
    /// equally long.
    turning: VecDeque<(Millis, UserId)>,
    /// When to look for watches that are over: each watched user stands here once.
    looks: VecDeque<(Millis, UserId)>,
    /// Words that may still be said in this second.
    left: usize,
    watches: usize,
}

/// To be told to these watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Of whom.
    pub user: UserId,
    /// How they are shown.
    pub shown: Shown,
    /// To whom.
    pub watchers: Vec<UserId>,
}

/// What became of a renewed watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It stood already; perhaps its watcher knew less than they thought.
    Renewed(Option<Word>),
    /// It is new: whether the two share the conversation is to be asked.
    New,
}

#[derive(Debug)]
struct Watched {
    watchers: Vec<Watcher>,
    /// How the user stands.
    stands: Shown,
    /// How they are told.
    told: Shown,
    /// Since when.
    told_at: Millis,
    is_due: bool,
    turns: bool,
}

#[derive(Debug)]
struct Watcher {
    user: UserId,
    conversation: ConversationId,
    until: Millis,
    /// What they were told last, as far as anybody knows.
    knows: Option<Shown>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            watched: HashMap::default(),
            due: VecDeque::new(),
            turning: VecDeque::new(),
            looks: VecDeque::new(),
            left: PRESENCE_EVENTS_S_MAX,
            watches: 0,
        }
    }
}

impl Board {
    /// Whether anybody looks at the user.
    #[must_use]
    pub fn is_watched(&self, user: &UserId) -> bool {
        self.watched.contains_key(user)
    }

    /// How a user stands, as far as those who look at them are concerned.
    #[must_use]
    pub fn shown(&self, user: &UserId) -> Option<Shown> {
        self.watched.get(user).map(|watched| watched.stands)
    }

    /// Watches that stand.
    #[must_use]
    pub const fn watches(&self) -> usize {
        self.watches
    }

    /// Users of whom not everything is told.
    #[must_use]
    pub fn due(&self) -> usize {
        self.due.len()
    }

    #[cfg(test)]
    pub(super) fn turning(&self) -> usize {
        self.turning.len()
    }

    /// The user stands like this now; and will stand otherwise at `turns_at`, if nothing happens.
    pub fn stands(&mut self, user: &UserId, shown: Shown, turns_at: Option<Millis>, now: Millis) -> Option<Word> {
        let watched = self.watched.get_mut(user)?;
        watched.stands = shown;
        if let Some(at) = turns_at.filter(|_| !watched.turns) {
            watched.turns = true;
            self.turning.push_back((at, user.clone()));
        }
        self.tell(user, now)
    }

    /// A watch is said again, by somebody who knows this.
    pub fn renew(&mut self, watch: &Watch, watcher: &UserId, knows: Option<Shown>, now: Millis) -> Renewal {
        let known = self.watched.get_mut(&watch.user).and_then(|watched| {
            watched.watchers.iter_mut().find(|known| known.user == *watcher && known.conversation == watch.conversation)
        });
        let Some(known) = known else { return Renewal::New };
        known.until = now + PRESENCE_EXPIRES_MS;
        known.knows = knows;
        Renewal::Renewed(self.tell(&watch.user, now))
    }

    /// A watch by right of a conversation that both are members of. `shown` and `turns_at` are as in [`stands`](Self::stands).
    pub fn watch(
        &mut self,
        watch: &Watch,
        watcher: &UserId,
        knows: Option<Shown>,
        (shown, turns_at): (Shown, Option<Millis>),
        now: Millis,
    ) -> Option<Word> {
        let user = &watch.user;
        let watched = match self.watched.get_mut(user) {
            Some(watched) => watched,
            None => {
                self.looks.push_back((now + PRESENCE_EXPIRES_MS, user.clone()));
                self.watched.entry(user.clone()).or_insert_with(|| Watched {
                    watchers: Vec::new(),
                    stands: shown,
                    told: shown,
                    told_at: 0,
                    is_due: false,
                    turns: false,
                })
            }
        };
        let until = now + PRESENCE_EXPIRES_MS;
        let new = Watcher { user: watcher.clone(), conversation: watch.conversation, until, knows };
        match watched.watchers.iter().position(|known| known.user == *watcher) {
            Some(index) => watched.watchers[index] = new,
            None if watched.watchers.len() >= PRESENCE_WATCHERS_MAX => {
                // Told once; they ask again when they renew it.
                let told = watched.told;
                let may = self.left > 0 && knows != Some(told);
                self.left -= usize::from(may);
                return may.then(|| Word { user: user.clone(), shown: told, watchers: vec![watcher.clone()] });
            }
            None => {
                watched.watchers.push(new);
                self.watches += 1;
            }
        }
        self.stands(user, shown, turns_at, now)
    }

    /// Somebody looks at the user no longer.
    pub fn unwatch(&mut self, user: &UserId, watcher: &UserId) {
        // An entry without watchers goes when its turn comes to be looked at: so it stands in every list at most once.
        self.drop_watchers(user, |known| known.user == *watcher);
    }

    /// The user is no member of the conversation any more: who looked by right of it sees them no longer.
    pub fn part(&mut self, user: &UserId, conversation: ConversationId) -> Option<Word> {
        let watchers = self.drop_watchers(user, |known| known.conversation == conversation);
        (!watchers.is_empty()).then(|| Word { user: user.clone(), shown: Shown::default(), watchers })
    }

    fn drop_watchers(&mut self, user: &UserId, goes: impl Fn(&Watcher) -> bool) -> Vec<UserId> {
        let Some(watched) = self.watched.get_mut(user) else { return Vec::new() };
        let gone: Vec<UserId> =
            watched.watchers.iter().filter(|known| goes(known)).map(|known| known.user.clone()).collect();
        watched.watchers.retain(|known| !goes(known));
        self.watches -= gone.len();
        gone
    }

    /// These users have another owner.
    pub fn forget(&mut self, is_gone: impl Fn(&UserId) -> bool) {
        self.watched.retain(|user, watched| {
            let gone = is_gone(user);
            self.watches -= if gone { watched.watchers.len() } else { 0 };
            !gone
        });
        self.due.retain(|user| !is_gone(user));
        self.turning.retain(|(_, user)| !is_gone(user));
        self.looks.retain(|(_, user)| !is_gone(user));
    }

    /// A second has passed: what was due is told, within the budget. `standing` says how a user stands and when they will
    /// stand otherwise; `None` if nobody can tell at the moment.
    pub fn tick(
        &mut self,
        now: Millis,
        mut standing: impl FnMut(&UserId) -> Option<(Shown, Option<Millis>)>,
    ) -> Vec<Word> {
        self.left = PRESENCE_EVENTS_S_MAX;
        let mut words = Vec::new();
        while let Some((at, _)) = self.turning.front()
            && *at <= now
            && let Some((_, user)) = self.turning.pop_front()
        {
            if let Some(watched) = self.watched.get_mut(&user) {
                watched.turns = false;
                if let Some((shown, turns_at)) = standing(&user) {
                    words.extend(self.stands(&user, shown, turns_at.map(|at| at.max(now + 1)), now));
                }
            }
        }
        for _ in 0..self.due.len() {
            if self.left == 0 {
                break;
            }
            let Some(user) = self.due.pop_front() else { break };
            if let Some(watched) = self.watched.get_mut(&user) {
                watched.is_due = false;
                words.extend(self.tell(&user, now));
            }
        }
        while let Some((at, _)) = self.looks.front()
            && *at <= now
            && let Some((_, user)) = self.looks.pop_front()
        {
            self.drop_watchers(&user, |known| known.until <= now);
            let is_watched = self.watched.get(&user).is_some_and(|watched| !watched.watchers.is_empty());
            if is_watched {
                self.looks.push_back((now + PRESENCE_EXPIRES_MS, user));
            } else {
                // What else stands in the lists is passed over.
                self.watched.remove(&user);
            }
        }
        words
    }

    /// Tells the user's watchers how they stand, unless they were told something just now. What could not be told is due.
    fn tell(&mut self, user: &UserId, now: Millis) -> Option<Word> {
        let watched = self.watched.get_mut(user)?;
        if watched.stands != watched.told && now >= watched.told_at + PRESENCE_PAUSE_MS {
            watched.told = watched.stands;
            watched.told_at = now;
        }
        let told = watched.told;
        let mut missing = watched.watchers.iter_mut().filter(|known| known.until > now && known.knows != Some(told));
        let mut watchers = Vec::new();
        for known in missing.by_ref().take(self.left) {
            known.knows = Some(told);
            watchers.push(known.user.clone());
        }
        let is_due = missing.next().is_some() || watched.stands != told;
        self.left -= watchers.len();
        if is_due && !watched.is_due {
            watched.is_due = true;
            self.due.push_back(user.clone());
        }
        (!watchers.is_empty()).then(|| Word { user: user.clone(), shown: told, watchers })
    }
}
