//! One durable fact in the log of a conversation or of a user.

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    access::{Ban, LogOut},
    body::Body,
    id::{Change, CommandId, ConversationId, DeviceId, Millis, Seq, UserId},
    inbox::Preference,
    mention::Mentioned,
    reaction::ReactionKey,
};

/// An event: its place in the log, where it came from, and the fact. Immutable once committed, but for the
/// erasure of bodies.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Event {
    /// Dense position in the entity's log, from 1.
    pub seq: Seq,
    /// Messages in the log up to and including this event: unread = head.n − read.n.
    pub n: u64,
    /// Who caused it.
    pub sender: UserId,
    /// On which device, if the token or `connect` named one.
    pub device: Option<DeviceId>,
    /// The command that made it; one command makes exactly one event.
    pub id: CommandId,
    /// The event it is about (the message edited, deleted or reacted to), 0 for none.
    pub target: Seq,
    /// The owner's clock, never falling along the log.
    pub created_at: Millis,
    /// xxh3 of the command's content: tells a replay from another request under the same id. Outlives erasure.
    pub hash: u64,
    /// What happened.
    pub fact: Fact,
}

/// What happened. The variants below the line stand in users' logs, the others in conversations'.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Fact {
    /// A message.
    MessageNew {
        /// Its content.
        body: Body,
        /// Whom it mentions.
        mentions: Mentioned,
    },
    /// `target` has another body from now on.
    MessageUpdated {
        /// The new content.
        body: Body,
        /// The edit before this one, 0 for the first: the chain of edits.
        previous: Seq,
        /// Whom it mentions from now on, whoever it did before.
        mentions: Mentioned,
        /// `n` of the target, so that counts can be told without looking at it; 0 in events of before there were
        /// mentions, which then change none.
        target_n: u64,
    },
    /// `target` has no body from now on.
    MessageDeleted {
        /// The last edit before, 0 for none.
        previous: Seq,
        /// `n` of the target: it counts as unread no longer. 0 in events of before there were mentions: their targets
        /// are counted like any message.
        target_n: u64,
    },
    /// The sender reacts to `target` with a key with which they did not before.
    ReactionAdded {
        /// With what.
        key: ReactionKey,
    },
    /// The sender takes a reaction to `target` back.
    ReactionRemoved {
        /// Which.
        key: ReactionKey,
    },
    /// The first event of every conversation.
    ConversationCreated {
        /// What it is.
        kind: ConversationKind,
        /// Fixed for ever.
        encryption: Encryption,
        /// The first settings.
        settings: Settings,
        /// The first members.
        members: Vec<(UserId, Role)>,
    },
    /// The settings from now on, whole.
    ConversationUpdated {
        /// All settings, changed or not.
        settings: Settings,
    },
    /// The last event of a deleted conversation.
    ConversationDeleted,
    /// A user became a member.
    MemberJoined {
        /// Who.
        user: UserId,
        /// As what.
        role: Role,
    },
    /// A user is no longer a member, by their own wish or not.
    MemberLeft {
        /// Who.
        user: UserId,
    },
    /// A member has another role.
    MemberRole {
        /// Who.
        user: UserId,
        /// The new role.
        role: Role,
    },
    /// Everything at or below `floor` is removed: it was kept as long as it was to be. Nobody did it: the sender is
    /// [`UserId::nobody`].
    HistoryPurged {
        /// The last event that is removed.
        floor: Seq,
        /// Messages up to it.
        floor_n: u64,
        /// No message above it was stamped before.
        oldest_at: Millis,
    },
    // ---- facts of a user's own log
    /// The user became a member of a conversation by its event `at`.
    UserJoined {
        /// Where.
        conversation: ConversationId,
        /// What it is.
        kind: ConversationKind,
        /// The seq in the conversation's log; makes repeated deliveries idempotent.
        at: Seq,
        /// The change of the inbox that this was; the earliest of all where nobody noted it.
        change: Change,
    },
    /// The user ceased to be a member of a conversation by its event `at`.
    UserLeft {
        /// Where.
        conversation: ConversationId,
        /// The seq in the conversation's log.
        at: Seq,
        /// As of a joining.
        change: Change,
    },
    /// The user has set these, all of them, for a conversation.
    UserPreference {
        /// Which.
        conversation: ConversationId,
        /// What holds from now on.
        preference: Preference,
        /// The change of the inbox that this was.
        change: Change,
    },
    /// Change numbers up to `upto` may be handed out.
    ChangesReserved {
        /// The last number of the block.
        upto: u64,
    },
    /// The user was logged out, on all devices or on some.
    UserLoggedOut(LogOut),
    /// The user was banned, or the ban is another from now on.
    UserBanned(Ban),
    /// How the user is seen from now on, when none of their clients says anything.
    UserPresence {
        /// Others are not to see whether they are there.
        invisible: bool,
        /// When they were seen last; 0 if nobody remembers.
        seen: Millis,
    },
    /// The user is not banned any more.
    UserUnbanned {
        /// The API key that asked for it.
        by: String,
    },
    /// What others may see of how far the user has read, from now on.
    UserReceipts {
        /// Nothing, unless a read says otherwise.
        private: bool,
    },
}

/// What a conversation is; fixed at its creation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ConversationKind {
    /// Two users, one conversation per pair; cannot be left.
    Direct = 1,
    /// A named set of members who all write.
    Group = 2,
    /// Few write, many read: a post of its admins for whoever is a member.
    Channel = 3,
}

/// Who can read the bodies; fixed at a conversation's creation.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Encryption {
    /// The server.
    #[default]
    None = 0,
    /// The members' devices only (MLS, RFC 9420).
    Mls = 1,
}

/// What a member may do. Later roles include the earlier ones' rights.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Role {
    /// Reads and writes (in a channel: reads and reacts); edits and deletes their own messages.
    #[default]
    Member = 1,
    /// Also writes in a channel, adds and removes members, changes settings, deletes others' messages.
    Admin = 2,
    /// Also appoints admins and owners and deletes the conversation.
    Owner = 3,
}

/// How much of the history before their joining members may read.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum HistoryAccess {
    /// Only what was written while they were members.
    #[default]
    SinceJoin = 0,
    /// Everything.
    All = 1,
}

/// What admins may change about a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Settings {
    /// Shown to people; empty for none.
    pub title: String,
    /// The application's own JSON object; empty bytes for none.
    pub data: Bytes,
    /// What newcomers may read.
    pub history: HistoryAccess,
    /// Members do not see how far the others have got.
    pub receipts_off: bool,
    /// Whoever knows a channel's id becomes a member by themselves.
    pub open: bool,
    /// How long a message is kept, in seconds; 0 for ever.
    pub retention_secs: u32,
}

// === impl Fact ===

impl Fact {
    /// The event's dotted name, as clients see it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MessageNew { .. } => "message.new",
            Self::MessageUpdated { .. } => "message.updated",
            Self::MessageDeleted { .. } => "message.deleted",
            Self::ReactionAdded { .. } => "reaction.added",
            Self::ReactionRemoved { .. } => "reaction.removed",
            Self::ConversationCreated { .. } => "conversation.created",
            Self::ConversationUpdated { .. } => "conversation.updated",
            Self::ConversationDeleted => "conversation.deleted",
            Self::MemberJoined { .. } => "member.joined",
            Self::MemberLeft { .. } => "member.left",
            Self::MemberRole { .. } => "member.role",
            Self::HistoryPurged { .. } => "history.purged",
            Self::UserJoined { .. } => "user.joined",
            Self::UserLeft { .. } => "user.left",
            Self::UserPreference { .. } => "user.preference",
            Self::ChangesReserved { .. } => "user.changes_reserved",
            Self::UserLoggedOut(_) => "user.logged_out",
            Self::UserBanned(_) => "user.banned",
            Self::UserUnbanned { .. } => "user.unbanned",
            Self::UserPresence { .. } => "user.presence",
            Self::UserReceipts { .. } => "user.receipts",
        }
    }

    /// Whether it counts in `n`.
    #[must_use]
    pub const fn is_message(&self) -> bool {
        matches!(self, Self::MessageNew { .. })
    }

    /// Whether it changes what became of the message at `target`.
    #[must_use]
    pub const fn is_about_message(&self) -> bool {
        matches!(
            self,
            Self::MessageUpdated { .. }
                | Self::MessageDeleted { .. }
                | Self::ReactionAdded { .. }
                | Self::ReactionRemoved { .. }
        )
    }

    /// The user whom a change of membership is about.
    #[must_use]
    pub const fn about(&self) -> Option<&UserId> {
        match self {
            Self::MemberJoined { user, .. } | Self::MemberLeft { user } | Self::MemberRole { user, .. } => Some(user),
            _ => None,
        }
    }
}

impl Event {
    /// The event without what it says, for whoever may know of it but not read it (any longer).
    #[must_use]
    pub fn without_body(&self) -> Self {
        let body = Body::erased();
        let fact = match &self.fact {
            Fact::MessageNew { .. } => Fact::MessageNew { body, mentions: None },
            Fact::MessageUpdated { previous, target_n, .. } => {
                Fact::MessageUpdated { body, previous: *previous, mentions: None, target_n: *target_n }
            }
            other => other.clone(),
        };
        Self { fact, ..self.clone() }
    }
}

macro_rules! from_number {
    ($name:ident: $($variant:ident),+) => {
        impl $name {
            /// The value that is stored under this number, if there is one.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                $(if number == Self::$variant as i32 { return Some(Self::$variant); })+
                None
            }

            /// The name that clients see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => from_number!(@name $name $variant),)+ }
            }
        }
    };
    (@name ConversationKind Direct) => { "direct" };
    (@name ConversationKind Group) => { "group" };
    (@name ConversationKind Channel) => { "channel" };
    (@name Encryption None) => { "none" };
    (@name Encryption Mls) => { "mls" };
    (@name Role Member) => { "member" };
    (@name Role Admin) => { "admin" };
    (@name Role Owner) => { "owner" };
    (@name HistoryAccess SinceJoin) => { "since_join" };
    (@name HistoryAccess All) => { "all" };
}
from_number!(ConversationKind: Direct, Group, Channel);
from_number!(Encryption: None, Mls);
from_number!(Role: Member, Admin, Owner);
from_number!(HistoryAccess: SinceJoin, All);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_serde() {
        for role in [Role::Member, Role::Admin, Role::Owner] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
            assert_eq!(Role::from_number(role as i32), Some(role));
        }
        for kind in [ConversationKind::Direct, ConversationKind::Group, ConversationKind::Channel] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for history in [HistoryAccess::SinceJoin, HistoryAccess::All] {
            assert_eq!(serde_json::to_value(history).unwrap(), history.name());
        }
        assert_eq!(Role::from_number(0), None);
    }
}
