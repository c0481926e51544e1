//! What a process knows of a cluster in which it takes no part itself: the newest map, who leads, who votes. A node falls back
//! on it while Raft tells it nothing; a gateway has nothing else.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use chappe_schema::id::NodeUid;
use parking_lot::Mutex;

use super::{board::Board, bootstrap::Group, transport::Transport, wire::Status};

pub(super) struct View {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) board: Arc<Board>,
    pub(super) rumour: Mutex<Rumour>,
    /// Of whom a newer map is being asked.
    pub(super) asked: Mutex<BTreeSet<NodeUid>>,
    /// The group whose map this is.
    group: Mutex<Option<Group>>,
    /// A later founding of the cluster, in which this process has no part.
    pub(super) superseded: OnceLock<Group>,
}

/// Who leads and who votes, as others said.
#[derive(Clone, Debug, Default)]
pub(super) struct Rumour {
    pub(super) term: u64,
    pub(super) leader: Option<NodeUid>,
    pub(super) voters: Vec<NodeUid>,
}

impl View {
    pub(super) fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            board: Arc::default(),
            rumour: Mutex::default(),
            asked: Mutex::default(),
            group: Mutex::default(),
            superseded: OnceLock::new(),
        }
    }

    pub(super) fn group(&self) -> Option<Group> {
        *self.group.lock()
    }

    /// From now on it is this group's. What was said of another does not count any more.
    pub(super) fn enter(&self, group: Group) {
        *self.group.lock() = Some(group);
        *self.rumour.lock() = Rumour::default();
    }

    /// Remembers what a node said of the cluster.
    pub(super) fn hear(&self, status: &Status) {
        let mut rumour = self.rumour.lock();
        if status.term < rumour.term || status.group.is_none() || status.group != self.group() {
            return;
        }
        if status.leader.is_some() || status.term > rumour.term {
            rumour.leader = status.leader;
        }
        rumour.term = status.term;
        if !status.voters.is_empty() {
            rumour.voters.clone_from(&status.voters);
        }
    }

    /// The one that was thought to lead does not.
    pub(super) fn doubt(&self, leader: NodeUid, other: Option<NodeUid>) {
        let mut rumour = self.rumour.lock();
        if rumour.leader == Some(leader) {
            rumour.leader = other;
        }
    }
}
