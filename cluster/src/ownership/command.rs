//! What can be asked of the replicated state.

use std::net::SocketAddr;

use chappe_schema::id::{Epoch, NodeUid, Partition, SessionId};
use serde::{Deserialize, Serialize};

use super::{ClusterGeneration, ClusterId, PlanId};

/// One entry of Raft's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Begins a cluster: the first command of every log, and nothing is applied before it.
    Found(Founding),
    /// A node begins a life. A live session of the same node expires in the same step.
    RegisterSession(NewSession),
    /// Ends a session and gives its partitions to others, in one step: one entry per failover.
    ExpireAndAssign {
        /// Whose time is over. None: only partitions that nobody alive owns are given out.
        session: Option<SessionId>,
        /// The last minute of activity that the session is known to have begun.
        minute: Option<u64>,
        /// Who goes on. What does not fit any more is refused one by one.
        assignments: Vec<Assignment>,
    },
    /// Prepares moves. The owners stay what they are.
    PlanMoves {
        /// [`super::Map::next_plan`]; a number that was used is refused, so a repeated proposal has no second effect.
        plan: PlanId,
        /// All of them, or none.
        moves: Vec<Move>,
    },
    /// Hands over. Proposed by the giver after it has sealed the partitions and the receiver has confirmed the last delta.
    CommitMoves {
        /// Under which plan.
        plan: PlanId,
        /// The giver, who proposes.
        from: SessionId,
        /// Which of the plan's partitions. What does not fit any more is refused one by one.
        partitions: Vec<Partition>,
    },
    /// Gives moves up; the giver goes on.
    AbortMoves {
        /// Under which plan.
        plan: PlanId,
        /// Which of the plan's partitions. Those that are not in it (any more) are passed over.
        partitions: Vec<Partition>,
    },
    /// Takes or gives back the one drain slot: the session that holds it is emptied by planned moves.
    SetDrain {
        /// Whose.
        session: SessionId,
        /// Whether it wants the slot.
        slot: bool,
    },
    /// Doubles the partitions, once or more often; the parts of a partition inherit owner and epoch.
    SplitPartitions {
        /// A larger power of two.
        count: u32,
    },
    /// The fence of an expired session is durable at the store's quorum.
    MarkFenced {
        /// Whose.
        session: SessionId,
    },
    /// A node leaves for good: what it is called never takes part again. It owns nothing any more. First the leader is told (`released` is
    /// not set), and sees that the node votes no more; then it says so.
    RetireNode {
        /// Which.
        node: NodeUid,
        /// Whether nothing depends on it any more, and its process may end.
        released: bool,
    },
    /// Raises the version that all agree to speak. It never falls.
    SetClusterVersion {
        /// One that every live session knows.
        version: u16,
    },
}

/// How a cluster begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Its name, for ever.
    pub cluster: ClusterId,
    /// 1, and one more at each founding after a loss.
    pub generation: ClusterGeneration,
    /// A power of two.
    pub partitions: u32,
    /// The version that all agree to speak at first.
    pub version: u16,
}

/// A node's life, as it introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSession {
    /// Whose life.
    pub node: NodeUid,
    /// Where it can be reached.
    pub addr: SocketAddr,
    /// What fails together with it; empty where nobody said.
    pub zone: String,
    /// Its number among the nodes. Lower ones become voters first.
    pub ordinal: u32,
    /// Its share of the partitions, relative to the others'. 0: none.
    pub weight: u16,
    /// What it can speak.
    pub versions: Versions,
}

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// A partition for a new owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which.
    pub partition: Partition,
    /// Its epoch as the proposer knows it; 0 if nobody ever owned it.
    pub expect: Epoch,
    /// The new owner.
    pub to: SessionId,
}

/// A partition that is to change hands between two live sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Which.
    pub partition: Partition,
    /// Its epoch as the proposer knows it.
    pub expect: Epoch,
    /// Its owner.
    pub from: SessionId,
    /// The receiver.
    pub to: SessionId,
}
