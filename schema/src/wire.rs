//! What gateways and nodes say to each other over a link. On the memory link these values travel as they are; only
//! a link between machines encodes them.

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use std::sync::Arc;

use crate::{
    access::{Access, By},
    archive::{Inline, SeveralShared},
    command::Command,
    error::Error,
    event::Event,
    id::{CommandId, ConnectionSlot, ConversationId, DeviceId, Epoch, Millis, Partition, Seq, SessionId, UserId},
    inbox::{Counts, Cursor, Flags, Lag},
    presence::{Attention, Shown},
    receipt::Receipts,
    reply::Reply,
};

/// Pairs an answer with its question, within one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Correlation(pub u64);

/// Who asks. Nodes trust gateways: they have checked the token or the key.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Actor {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: Option<DeviceId>,
    /// By what right.
    pub by: By,
}

/// The queue in which one gateway's questions to one partition travel, in order. When one of them must be asked again
/// (its partition has moved, a link broke), all of the queue is, in order, under the next attempt: what still arrives of
/// an earlier attempt counts for nothing, so that no later question overtakes an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Lane {
    /// Where the questions go.
    pub partition: Partition,
    /// How often the queue was sent before; per gateway and partition it only grows.
    pub attempt: u32,
}

/// Who owns a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Owner {
    /// One life of a node.
    pub session: SessionId,
    /// Since which change of owner; of two that claim a partition the later one is right.
    pub epoch: Epoch,
}

/// From a gateway to a node. Messages of one lane stay in order.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToNode {
    /// A client's command. Answered once; or its lane is (see [`ToGateway::Moved`]).
    Command(Lane, #[rkyv(with = Inline)] Arc<Asked>),
    /// A connection of `user` exists: register it and answer with the inbox's heads, in one step. Said again with a newer
    /// token, it stays the same connection.
    Connect(Lane, #[rkyv(with = Inline)] Arc<Connecting>),
    /// What stands against a user?
    AskAccess(Lane, #[rkyv(with = Inline)] Arc<AskedAccess>),
    /// A connection of `user` is gone. Not answered.
    Disconnect {
        /// Whose.
        user: UserId,
        /// Which.
        connection: ConnectionSlot,
    },
    /// What a connection says of its user, all of it; in place of what it said before. Not answered.
    Attend {
        /// Whose.
        user: UserId,
        /// Which.
        connection: ConnectionSlot,
        /// What.
        attention: Attention,
    },
    /// The gateway has (or no longer has) listeners of a large conversation. Not answered.
    Interest {
        /// Which.
        conversation: ConversationId,
        /// Whether it has any.
        listening: bool,
    },
}

impl ToNode {
    /// Where it goes.
    #[must_use]
    pub fn partition(&self) -> Partition {
        match self {
            ToNode::Command(lane, _) | ToNode::Connect(lane, _) | ToNode::AskAccess(lane, _) => lane.partition,
            ToNode::Disconnect { user, .. } | ToNode::Attend { user, .. } => user.partition(),
            ToNode::Interest { conversation, .. } => conversation.partition(),
        }
    }
}

impl ToNode {
    /// The lane of what wants an answer.
    #[must_use]
    pub const fn lane(&self) -> Option<Lane> {
        match self {
            ToNode::Command(lane, _) | ToNode::Connect(lane, _) | ToNode::AskAccess(lane, _) => Some(*lane),
            ToNode::Disconnect { .. } | ToNode::Attend { .. } | ToNode::Interest { .. } => None,
        }
    }
}

/// A command on its way.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Asked {
    /// For the answer.
    pub correlation: Correlation,
    /// Who asks.
    pub actor: Actor,
    /// The command's id: the client's, else the gateway's.
    pub id: CommandId,
    /// What.
    pub command: Command,
    /// Dropped when it has not been looked at by then.
    pub deadline: Millis,
}

/// A question about a user.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct AskedAccess {
    /// For the answer.
    pub correlation: Correlation,
    /// Whom it is about.
    pub user: UserId,
}

/// A new connection.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Connecting {
    /// For the answer.
    pub correlation: Correlation,
    /// Who connects.
    pub actor: Actor,
    /// Where events for this connection go.
    pub connection: ConnectionSlot,
    /// The conversations in which the client holds a position, and up to where it says that it has them; 0 where that is of another
    /// history.
    pub positions: Vec<(ConversationId, Seq)>,
    /// Up to where it knows the inbox.
    pub cursor: Option<Cursor>,
    /// It is registered already, with another owner, or with this one before the way broke: it has been told of things that
    /// are not known here.
    pub again: bool,
}

/// From a node to a gateway. One batch is what one turn of a shard produced.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToGateway {
    /// The answer to a command.
    Reply(Correlation, Result<Reply, Error>),
    /// Nothing of this lane and attempt that was not answered by now will be: the partition is somebody else's, `owner`'s
    /// as far as the node knows. The gateway sends the lane's queue again under the next attempt.
    Moved {
        /// Which.
        lane: Lane,
        /// Its owner; `None` when the node knows none.
        owner: Option<Owner>,
    },
    /// The answer to `Connect`.
    Connected(Correlation, Result<Heads, Error>),
    /// The answer to `AskAccess`.
    Access(Correlation, Result<Arc<Access>, Error>),
    /// This stands against the user from now on. Every gateway hears of it.
    AccessChanged {
        /// Whom.
        user: UserId,
        /// All of it.
        #[rkyv(with = Inline)]
        access: Arc<Access>,
    },
    /// These connections are over: their user was logged out or banned.
    End {
        /// Which.
        connections: Vec<ConnectionSlot>,
        /// What their clients are told.
        error: Error,
    },
    /// Committed events of a small conversation, for these connections.
    Deliver {
        /// Whose events.
        conversation: ConversationId,
        /// In order.
        #[rkyv(with = SeveralShared)]
        events: Arc<[Arc<Event>]>,
        /// To whom.
        connections: Vec<ConnectionSlot>,
    },
    /// Events of a small conversation that these connections will not be sent, because the news of them were lost with an
    /// owner, or between two nodes: their clients are to fetch everything up to `head`.
    Behind {
        /// Which conversation.
        conversation: ConversationId,
        /// Where it stands.
        head: Seq,
        /// Who is to be told.
        connections: Vec<ConnectionSlot>,
    },
    /// Committed events of a large conversation, for whoever listens at this gateway.
    Broadcast {
        /// Whose events.
        conversation: ConversationId,
        /// Whether who came after a message was written may not read what an edit makes of it.
        since_join: bool,
        /// In order.
        #[rkyv(with = SeveralShared)]
        events: Arc<[Arc<Event>]>,
    },
    /// Something has changed in a user's inbox that no event tells; for these connections. It may get lost.
    InboxChanged {
        /// To whom.
        connections: Vec<ConnectionSlot>,
        /// What.
        #[rkyv(with = Inline)]
        changed: Arc<InboxChanged>,
    },
    /// How a user is shown now, for connections that watch them. Of several only the last one counts.
    Presence {
        /// To whom.
        connections: Vec<ConnectionSlot>,
        /// Who.
        user: UserId,
        /// How.
        shown: Shown,
    },
    /// A member is writing, or no longer is: for whoever has the conversation open at this gateway, but not for the member.
    /// It may get lost.
    Typing {
        /// Where.
        conversation: ConversationId,
        /// Who.
        user: UserId,
        /// Which of the two.
        is_typing: bool,
    },
    /// Members of a small conversation have got further; for these connections. It may get lost.
    Receipts {
        /// To whom.
        connections: Vec<ConnectionSlot>,
        /// Who, and how far.
        #[rkyv(with = Inline)]
        receipts: Arc<Receipts>,
    },
    /// Up to where the inboxes of these connections' users are known.
    Cursors(Vec<(ConnectionSlot, Cursor)>),
    /// Every connection of these users stops hearing of the conversation.
    Removed {
        /// Which.
        conversation: ConversationId,
        /// Who was removed, by an event that they have been sent.
        user: UserId,
    },
}

/// What one turn of a shard has for a gateway, on its way between two processes.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Turn {
    /// The session that the shard lives; 0 for what is said in place of one.
    pub from: SessionId,
    /// In order.
    pub batch: Vec<ToGateway>,
}

/// How a conversation is marked and read now, for its user's other devices.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct InboxChanged {
    /// Which.
    pub conversation: ConversationId,
    /// What the user has set.
    pub flags: Flags,
    /// Messages that the user has read and what they have not, if that was news.
    pub read: Option<(u64, Counts)>,
    /// Up to where the inbox is known.
    pub cursor: Cursor,
}

/// What a user entity knows when a connection is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Heads {
    /// Of the conversations asked for; `None` where the user is no member.
    pub positions: Vec<(ConversationId, Option<Head>)>,
    /// Those of them whose head nobody can tell at the moment.
    pub unknown: Vec<ConversationId>,
    /// Those others that stand first in the inbox.
    pub others: Vec<(ConversationId, Head)>,
    /// Of those, where nobody could tell: what was known last.
    pub doubtful: Vec<(ConversationId, Head)>,
    /// Up to where the inbox is known here.
    pub cursor: Cursor,
    /// How far behind the client is.
    pub lag: Lag,
}

/// Where a conversation stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Head {
    /// Last event.
    pub seq: Seq,
    /// Messages up to it.
    pub n: u64,
}
