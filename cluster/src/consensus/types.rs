//! What Raft is told about us.

use std::io::Cursor;

use serde::{Deserialize, Serialize};

use super::voters::Seat;
use crate::{control::Answer, ownership::Command};

openraft::declare_raft_types!(
    /// Commands go in, answers come out.
    pub(super) Types:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = Seat,
        SnapshotData = Cursor<Vec<u8>>,
);

/// What an entry returned to whoever proposed it; an entry of Raft's own returns nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Response(pub(super) Option<Answer>);

pub(super) type Raft = openraft::Raft<Types>;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Membership = openraft::Membership<u64, Seat>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, Seat>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, Seat>;
pub(super) type Snapshot = openraft::Snapshot<Types>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type Metrics = openraft::RaftMetrics<u64, Seat>;

/// A log id of a leader's term.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, 0), index)
}
