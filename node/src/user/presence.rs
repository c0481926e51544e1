//! How a user is seen by others: what their clients say of it, what they have decided, and what stays when they go.
//!
//! Who does not want to be seen looks exactly like somebody who left at the moment when they decided so: whatever they do
//! meanwhile moves nothing.

use std::sync::Arc;

use chappe_schema::{
    error::Error,
    event::{Event, Fact},
    id::{CommandId, ConversationId, Millis},
    limit::{LAST_SEEN_ROW_MS, PRESENCE_GRACE_MS},
    presence::{Shown, Status},
    stored::StoredPresence,
    wire::Actor,
};

use super::{
    state::{Client, User},
    wish::Wish,
};

/// How a user is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Visibility {
    /// Others are not to see whether they are there.
    invisible: bool,
    /// When others saw them last, but for now; 0 if nobody remembers.
    seen: Millis,
    /// The same, as the log remembers it.
    noted: Millis,
    /// Whether nobody was at hand when the last connection went.
    left_away: bool,
}

impl User {
    /// How others see the user.
    #[must_use]
    pub fn shown(&self, now: Millis) -> Shown {
        let Visibility { invisible, seen, left_away, .. } = self.visibility;
        let offline = Shown { status: Status::Offline, last_seen: (seen != 0).then_some(seen) };
        let there = |away: bool| Shown { status: if away { Status::Away } else { Status::Online }, last_seen: None };
        match self.connections.is_empty() {
            _ if invisible => offline,
            false => there(is_away(&self.connections)),
            true if self.lingers_until().is_some_and(|until| now < until) => there(left_away),
            true => offline,
        }
    }

    /// When the user counts as gone, if none of their clients comes back.
    #[must_use]
    pub fn lingers_until(&self) -> Option<Millis> {
        let Visibility { invisible, seen, .. } = self.visibility;
        (self.connections.is_empty() && !invisible && seen != 0).then(|| seen.saturating_add(PRESENCE_GRACE_MS))
    }

    /// Whether others may not see the user.
    #[must_use]
    pub const fn is_invisible(&self) -> bool {
        self.visibility.invisible
    }

    /// Whether the user may look at other members of a conversation, and they at the user. In large ones nobody sees who
    /// is there: that would be work for each member and change.
    #[must_use]
    pub fn may_be_seen_in(&self, conversation: &ConversationId) -> bool {
        self.joined(conversation).is_some_and(|known| !known.large)
    }

    /// Judges a wish to be seen, or not.
    ///
    /// # Errors
    /// When the id is not acceptable.
    pub fn wish(&self, actor: &Actor, id: CommandId, hash: u64, invisible: bool, now: Millis) -> Result<Wish, Error> {
        let is_there = self.shown(now).status != Status::Offline;
        let seen = if is_there { now } else { self.visibility.seen };
        let fact = (invisible != self.visibility.invisible).then_some(Fact::UserPresence { invisible, seen });
        self.judge_wish(actor, (id, hash), fact, now)
    }

    /// The event by which the log remembers when the user was last seen, if that is worth a row.
    #[must_use]
    pub fn note_seen(&self, now: Millis) -> Option<Arc<Event>> {
        let Visibility { invisible, seen, noted, .. } = self.visibility;
        if seen < noted.saturating_add(LAST_SEEN_ROW_MS) {
            return None;
        }
        let id = CommandId::of_seeing(self.head + 1);
        Some(Arc::new(Event { id, ..self.event(Fact::UserPresence { invisible, seen }, now) }))
    }

    pub(super) fn apply_presence(&mut self, event: &Event) {
        let Fact::UserPresence { invisible, seen } = event.fact else { return };
        let left_away = self.visibility.left_away;
        self.visibility = Visibility { invisible, seen, noted: seen, left_away };
        // Notes of the owner's own are no commands.
        if event.hash != 0 {
            self.remember_command(event);
        }
    }

    /// The user's last connections are about to go.
    pub(super) fn note_parting(&mut self, now: Millis) {
        if !self.visibility.invisible {
            self.visibility.seen = now;
            self.visibility.left_away = is_away(&self.connections);
        }
    }

    pub(super) fn stored_presence(&self) -> Option<StoredPresence> {
        let Visibility { invisible, seen, .. } = self.visibility;
        (invisible || seen != 0).then_some(StoredPresence { invisible, seen })
    }

    pub(super) const fn restore_presence(&mut self, stored: StoredPresence) {
        let StoredPresence { invisible, seen } = stored;
        self.visibility = Visibility { invisible, seen, noted: seen, left_away: false };
    }
}

/// Whether nobody is at hand on any of these.
fn is_away(clients: &[Client]) -> bool {
    clients.iter().all(|client| client.attention.away)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::Connection;
    use chappe_schema::{
        access::{By, Token},
        error::Code,
        id::{ConnectionSlot, GatewayId, UserId},
        presence::Attention,
    };

    const T: Millis = 1_700_000_000_000;

    fn actor() -> Actor {
        Actor { user: UserId::new("ada").unwrap(), device: None, by: By::Token(Token::default()) }
    }

    fn connected(user: &mut User, slot: u32, away: bool) {
        let connection = Connection { gateway: GatewayId(1), slot: ConnectionSlot(slot) };
        let attention = Attention { away, watches: None };
        assert!(user.connect(Client { attention, ..Client::new(connection, &actor(), T) }, 9));
    }

    fn gone(user: &mut User, slot: u32, now: Millis) {
        user.forget(now, |known| known.slot == ConnectionSlot(slot));
    }

    fn wish(user: &mut User, invisible: bool, now: Millis) {
        let id = uuid::Builder::from_unix_timestamp_millis(now, &[0; 10]).into_uuid();
        match user.wish(&actor(), CommandId(id), 1 + u64::from(invisible), invisible, now).unwrap() {
            Wish::Append(event) => user.apply(&event),
            Wish::As(_) => panic!("no news"),
        }
    }

    fn status(user: &User, now: Millis) -> (Status, Option<Millis>) {
        let Shown { status, last_seen } = user.shown(now);
        (status, last_seen)
    }

    #[test]
    fn a_user_is_there_while_any_device_is_and_away_when_all_are() {
        let mut user = User::new(actor().user);
        assert_eq!(status(&user, T), (Status::Offline, None), "nobody remembers");
        connected(&mut user, 1, true);
        assert_eq!(status(&user, T), (Status::Away, None));
        connected(&mut user, 2, false);
        assert_eq!(status(&user, T), (Status::Online, None));
        gone(&mut user, 2, T + 5);
        assert_eq!(status(&user, T + 5), (Status::Away, None));
        gone(&mut user, 1, T + 9);
        assert_eq!(status(&user, T + 9 + PRESENCE_GRACE_MS - 1), (Status::Away, None), "they may come back");
        assert_eq!(status(&user, T + 9 + PRESENCE_GRACE_MS), (Status::Offline, Some(T + 9)));
        gone(&mut user, 1, T + 90_000);
        assert_eq!(status(&user, T + 90_000), (Status::Offline, Some(T + 9)), "nobody was there to go");
    }

    #[test]
    fn who_is_invisible_looks_like_somebody_who_left_then() {
        let mut user = User::new(actor().user);
        connected(&mut user, 1, false);
        wish(&mut user, true, T + 100);
        for now in [T + 100, T + 1_000_000] {
            assert_eq!(status(&user, now), (Status::Offline, Some(T + 100)));
        }
        connected(&mut user, 2, false);
        gone(&mut user, 1, T + 2_000_000);
        gone(&mut user, 2, T + 2_000_001);
        assert_eq!(status(&user, T + 2_000_002), (Status::Offline, Some(T + 100)), "nothing moves");
        assert_eq!(user.lingers_until(), None);
        // Restarts do not uncover anybody.
        let restored = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
        assert!(restored.is_invisible());
        assert_eq!(status(&restored, T + 3_000_000), (Status::Offline, Some(T + 100)));
        wish(&mut user, false, T + 4_000_000);
        assert_eq!(status(&user, T + 4_000_000), (Status::Offline, Some(T + 100)));
        connected(&mut user, 3, false);
        assert_eq!(status(&user, T + 4_000_001), (Status::Online, None));
    }

    #[test]
    fn a_wish_said_again_is_known() {
        let mut user = User::new(actor().user);
        let id = CommandId::fresh();
        let now = id.time().unwrap();
        let Wish::Append(event) = user.wish(&actor(), id, 7, true, now).unwrap() else { panic!("no news") };
        user.apply(&event);
        assert!(matches!(user.wish(&actor(), id, 7, true, now), Ok(Wish::As(true))));
        assert_eq!(user.wish(&actor(), id, 8, false, now).unwrap_err().code, Code::IdConflict);
        assert!(matches!(user.wish(&actor(), CommandId::fresh(), 7, true, now), Ok(Wish::As(false))));
    }

    #[test]
    fn the_log_remembers_who_was_seen_once_an_hour() {
        let mut user = User::new(actor().user);
        assert!(user.note_seen(T).is_none(), "there is nothing to remember");
        let mut rows = 0;
        for minute in 0..180 {
            let now = T + minute * 60_000;
            connected(&mut user, 1, false);
            gone(&mut user, 1, now);
            if let Some(event) = user.note_seen(now) {
                user.apply(&event);
                rows += 1;
            }
        }
        assert_eq!(rows, 3);
    }
}
