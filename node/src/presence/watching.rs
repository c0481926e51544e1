//! At whom one user looks, over all their connections.

use std::collections::BTreeMap;

use chappe_schema::{
    id::{ConversationId, Epoch, UserId},
    presence::{Shown, Watch},
};

/// Whom a user watches, and how those are shown.
#[derive(Debug, Default)]
pub struct Watching {
    /// A user who looks at hundreds has a laptop full of windows: a tree is enough.
    users: BTreeMap<UserId, Known>,
    /// Whether the shard has its renewal on a list.
    pub is_listed: bool,
}

#[derive(Debug)]
struct Known {
    conversation: ConversationId,
    shown: Option<Shown>,
    /// That of the owner who said so: what an earlier owner says later is out of date.
    epoch: Epoch,
}

/// What is to be said to the owners of who is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// These are to be told, to somebody who knows that much.
    pub watch: Vec<(Watch, Option<Shown>)>,
    /// These no longer.
    pub unwatch: Vec<UserId>,
}

impl Watching {
    /// Whether nobody is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The user's connections look at these now, each by right of a conversation that the user is a member of.
    pub fn look<'a>(&mut self, wanted: impl Iterator<Item = &'a Watch>) -> Wishes {
        let mut before = std::mem::take(&mut self.users);
        let mut wishes = Wishes::default();
        for watch in wanted {
            if self.users.contains_key(&watch.user) {
                continue;
            }
            let known = match before.remove(&watch.user) {
                Some(known) if known.conversation == watch.conversation => known,
                // By another right they may be shown otherwise.
                _ => {
                    wishes.watch.push((watch.clone(), None));
                    Known { conversation: watch.conversation, shown: None, epoch: 0 }
                }
            };
            self.users.insert(watch.user.clone(), known);
        }
        wishes.unwatch = before.into_keys().collect();
        wishes
    }

    /// How a watched user is shown, as far as it is known; the outer `None` for who is not watched.
    #[must_use]
    pub fn shown(&self, user: &UserId) -> Option<Option<Shown>> {
        self.users.get(user).map(|known| known.shown)
    }

    /// A watched user's owner has said how they are shown; whether that is news.
    pub fn hear(&mut self, user: &UserId, shown: Shown, epoch: Epoch) -> bool {
        match self.users.get_mut(user) {
            Some(known) if epoch >= known.epoch => {
                known.epoch = epoch;
                known.shown.replace(shown) != Some(shown)
            }
            _ => false,
        }
    }

    /// Everybody who is watched, for their owners: it keeps the watches up, and mends what got lost.
    #[must_use]
    pub fn renewal(&self) -> Vec<(Watch, Option<Shown>)> {
        let renewed = |(user, known): (&UserId, &Known)| {
            (Watch { user: user.clone(), conversation: known.conversation }, known.shown)
        };
        self.users.iter().map(renewed).collect()
    }
}
