//! Who owns what: the state that Raft replicates, and the map that everybody reads.
//!
//! All of it is pure: the same commands in the same order make the same state on every voter. In reading order:
//!
//! - [`command`]: what can be asked of the state
//! - [`apply`]: what it makes of a command, and why it refuses one
//! - [`map`]: what is read of it: the owner of a partition, sessions, plans, what is still to be fenced
//! - [`delta`]: how a reader's map follows, change by change
//! - [`bytes`]: how commands and maps are stored and sent
//!
//! Three things hold, whatever is proposed. **I1**: a partition's epoch grows at every change of its owner. **I2**: its
//! owner changes only when the old session has expired, or when the live owner itself commits a planned move that it
//! has sealed; nobody can bypass that. **I3**: an expired session stays listed as unfenced until its fence is confirmed, and
//! every new owner fences all that are listed before it reads a log.

use std::fmt;

use chappe_schema::id::Epoch;
use serde::{Deserialize, Serialize};

pub mod apply;
pub mod bytes;
pub mod command;
pub mod delta;
pub mod map;

pub use apply::{Applied, Ownership, Refused};
pub use command::{Assignment, Command, Founding, Move, NewSession, Versions};
pub use delta::{Delta, Recent, Update};
pub use map::{Ended, Map, Plan, Row, Session};

/// A cluster's name for itself, made once, when it is founded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u128);

/// How often the cluster was founded anew (`--force-new-cluster`, a restore). It stands at the head of every session's
/// id and every epoch, so those of a later founding are above all earlier ones.
pub type ClusterGeneration = u16;

/// A plan's number; its proposer takes [`Map::next_plan`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(transparent)]
pub struct PlanId(pub u64);

/// Bits of a session id or epoch that hold the index of an entry of Raft's log.
const INDEX_BITS: u32 = 48;

/// The session id or epoch that the entry at `index` gives out.
#[must_use]
pub const fn number(generation: ClusterGeneration, index: u64) -> Epoch {
    // At a million entries a second it takes nine years to get there.
    debug_assert!(index < 1 << INDEX_BITS);
    (generation as u64) << INDEX_BITS | index
}

/// The founding under which a session id or epoch was given out.
#[must_use]
pub const fn generation_of(number: Epoch) -> ClusterGeneration {
    (number >> INDEX_BITS) as ClusterGeneration
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests;
