//! Everything that may happen.

use super::store::View;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Raft decides.
    Raft(Decision),
    /// This session does something.
    Act(u8, Act),
    /// Something arrives at this replica, or from it; only where replicas are spelt out.
    Network(u8, Parcel),
}

/// What Raft decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The owner is expired, this session becomes owner.
    Expire(u8),
    /// This session, which owns nothing here, is expired.
    Lose(u8),
    /// A move to this session is planned.
    Plan(u8),
    /// The move that stands is aborted.
    Abort,
    /// The move with this number is committed.
    Commit(u8),
    /// This session is taken off `unfenced`.
    Mark(u8),
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It streams the entity to the receiver of the move while it serves.
    Stream,
    /// It seals, and sends the delta; it proposes the commit once the receiver has confirmed that.
    Seal,
    /// It proposes the commit and goes on.
    Propose,
    /// It has seen that the move is aborted, and goes on.
    Resume,
    /// It opens the entity from what it was sent under the move with this number: the delta, or what was streamed.
    Open(u8, bool),
    /// It fences whom it must, reads the log, and recovers the entity from what it sees.
    Recover(View),
    /// It fences whom it must.
    Fence,
    /// It gives this command the next slot. Unless flights wait for each other, its row is sent with this watermark.
    Issue(u8, u8),
    /// It sends its rows up to this slot, with this watermark.
    Send(u8, u8),
    /// It acknowledges up to this slot what is durable, after a clean fence read that began after it was.
    Commit(u8),
    /// It reads its fence, which is clean, too early, and takes that to cover what was sent.
    Clear,
    /// It writes a snapshot.
    Snapshot,
    /// It drops the entity from memory: an eviction, or a panic.
    Drop,
    /// It begins a read of its fence, which covers what is durable up to this slot.
    ReadFence(u8),
}

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parcel {
    /// The row with this bit.
    Row(u8),
    /// The fence of this session.
    Fence(u8),
    /// The answer to this session's read of its fence.
    FenceAnswer(u8),
    /// The answer to this session's read of the log. With the second one it recovers the entity, above this snapshot.
    LogAnswer(u8, Option<u8>),
}

impl Step {
    /// Its kind, as a number.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Raft(decision) => match decision {
                Decision::Expire(_) => 0,
                Decision::Lose(_) => 1,
                Decision::Plan(_) => 2,
                Decision::Abort => 3,
                Decision::Commit(_) => 4,
                Decision::Mark(_) => 5,
            },
            Self::Act(_, act) => match act {
                Act::Drop => 6,
                Act::Stream => 7,
                Act::Seal => 8,
                Act::Propose => 9,
                Act::Resume => 10,
                Act::Open(..) => 11,
                Act::Recover(_) => 12,
                Act::Fence => 13,
                Act::Issue(..) => 14,
                Act::Send(..) => 15,
                Act::Commit(_) => 16,
                Act::Clear => 17,
                Act::Snapshot => 18,
                Act::ReadFence(_) => 19,
            },
            Self::Network(_, parcel) => match parcel {
                Parcel::Row(_) => 20,
                Parcel::Fence(_) => 21,
                Parcel::FenceAnswer(_) => 22,
                Parcel::LogAnswer(..) => 23,
            },
        }
    }

    /// How much more often than another a kind happens on a random walk: owners live long enough to do something.
    pub fn weight(kind: u8) -> u32 {
        if kind <= 6 { 1 } else { 6 }
    }
}
