//! Who is there, and who is writing: what is told of it, and what a client asks to be told.
//!
//! All of it is soft: nothing of it has a seq, of everything only the last value counts, and what gets lost is said again.
//! The one thing that lasts is what a user has *decided*: not to be seen.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    archive::Several,
    error::Error,
    event::Encryption,
    frame::Object,
    id::{ConversationId, Millis, UserId},
    limit::PRESENCE_WATCHES_MAX,
    time::Timestamp,
};

/// How a user is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Status {
    /// Nobody of theirs is connected, or they do not want to be seen.
    #[default]
    Offline,
    /// Connected, but on no device at hand.
    Away,
    /// Connected and at hand.
    Online,
}

/// What others see of a user. What may not be seen looks like the default: offline, and nobody can tell since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Shown {
    /// How they are shown.
    pub status: Status,
    /// Of who is offline: when they were last seen, where that is known.
    pub last_seen: Option<Millis>,
}

/// A user at whom a client looks, and the conversation that gives it the right to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Watch {
    /// At whom.
    pub user: UserId,
    /// Both are members of it.
    pub conversation: ConversationId,
}

/// What a connection has said about its user: whether they are at hand there, and at whom they look. Always said as a
/// whole, so that the last word is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Attention {
    /// Nobody is at hand.
    pub away: bool,
    /// In the order of the users; none for nobody.
    #[rkyv(with = rkyv::with::Map<Several>)]
    pub watches: Option<Arc<[Watch]>>,
}

/// A user to be watched, as a client writes it.
#[derive(Debug, Deserialize)]
pub(crate) struct WatchArgs {
    user: UserId,
    conversation: Option<ConversationId>,
}

impl Status {
    /// As clients see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Away => "away",
            Self::Online => "online",
        }
    }
}

impl Shown {
    /// Adds the fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        object.text("status", self.status.name());
        if let Some(at) = self.last_seen {
            object.display("last_seen", Timestamp(at));
        }
    }
}

impl Watch {
    /// `caller` looks at `user`, by right of `conversation`; without one, of the direct conversation of the two.
    #[must_use]
    pub fn new(caller: &UserId, user: UserId, conversation: Option<ConversationId>) -> Self {
        let conversation = conversation.unwrap_or_else(|| ConversationId::direct(caller, &user, Encryption::None));
        Self { user, conversation }
    }

    /// What a client asks to watch: each user once, in their order.
    pub(crate) fn decode(caller: &UserId, args: Vec<WatchArgs>) -> Result<Arc<[Self]>, Error> {
        if args.len() > PRESENCE_WATCHES_MAX {
            let detail = format!("{} users; at most {PRESENCE_WATCHES_MAX} are watched at once", args.len());
            return Err(Error::invalid("users", detail));
        }
        let mut watches: Vec<Self> =
            args.into_iter().map(|watch| Self::new(caller, watch.user, watch.conversation)).collect();
        if watches.iter().any(|watch| watch.user == *caller) {
            return Err(Error::invalid("users", "nobody has to watch themselves: `presence.get` tells"));
        }
        watches.sort_unstable();
        if watches.windows(2).any(|pair| pair[0].user == pair[1].user) {
            return Err(Error::invalid("users", "a user stands there twice"));
        }
        Ok(watches.into())
    }
}

impl Attention {
    /// Whether the connection looks at `user`.
    #[must_use]
    pub fn watches(&self, user: &UserId) -> bool {
        let watches = self.watches.as_deref().unwrap_or_default();
        watches.binary_search_by(|watch| watch.user.cmp(user)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn args(name: &str) -> WatchArgs {
        WatchArgs { user: user(name), conversation: None }
    }

    #[test]
    fn a_list_of_watches_is_bounded_sorted_and_about_others() {
        let ada = user("ada");
        let watches = Watch::decode(&ada, vec![args("eve"), args("bob")]).unwrap();
        assert_eq!(watches.iter().map(|watch| watch.user.as_str()).collect::<Vec<_>>(), ["bob", "eve"]);
        let direct = ConversationId::direct(&user("bob"), &ada, Encryption::None);
        assert_eq!(watches[0].conversation, direct, "without a conversation it is the one of the two");
        let attention = Attention { away: false, watches: Some(watches) };
        assert!(attention.watches(&user("eve")) && !attention.watches(&ada));
        assert!(!Attention::default().watches(&ada));
        for refused in [
            vec![args("ada")],
            vec![args("bob"), args("bob")],
            (0..=PRESENCE_WATCHES_MAX).map(|n| args(&format!("u{n}"))).collect(),
        ] {
            assert_eq!(Watch::decode(&ada, refused).unwrap_err().field.as_deref(), Some("users"));
        }
        assert!(Watch::decode(&ada, Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn nobody_can_tell_what_may_not_be_seen_from_what_is_not_there() {
        let shown = |shown: Shown| {
            let mut out = Vec::new();
            let mut object = Object::begin(&mut out);
            shown.write_json(&mut object);
            object.end();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(Shown::default()), r#"{"status":"offline"}"#);
        let seen = Shown { last_seen: Some(1), ..Shown::default() };
        assert_eq!(shown(seen), r#"{"status":"offline","last_seen":"1970-01-01T00:00:00.001Z"}"#);
        assert_eq!(shown(Shown { status: Status::Away, last_seen: None }), r#"{"status":"away"}"#);
    }
}
