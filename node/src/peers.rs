//! A node's ways to the other nodes of its cluster.

use std::sync::{Arc, OnceLock, Weak};

use chappe_cluster::{
    control::{self, ControlPlane},
    link::remote::{Kind, Ways, door::PeerPort},
};
use chappe_schema::id::{NodeUid, SessionId};

use crate::node::{Between, Node, Peers};

/// See the module's documentation.
pub struct Neighbours {
    ways: Ways,
    plane: Arc<dyn ControlPlane>,
    /// Weak: the node holds this.
    node: OnceLock<Weak<Node>>,
}

impl Neighbours {
    /// Ways to all nodes of the map, for as long as this lives. To be called within a runtime.
    pub fn follow(ways: Ways, plane: Arc<dyn ControlPlane>) -> Arc<Self> {
        let neighbours = Arc::new(Self { ways, plane, node: OnceLock::new() });
        let watch = |watcher| neighbours.plane.watch(watcher);
        control::follow(&neighbours, watch, |neighbours, map| {
            neighbours.ways.follow(map, Some(neighbours.plane.node()))
        });
        neighbours
    }

    /// The node whose neighbours they are.
    pub fn are_of(&self, node: &Arc<Node>) {
        drop(self.node.set(Arc::downgrade(node)));
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.node.get()?.upgrade()
    }
}

impl Peers for Neighbours {
    fn send(&self, to: SessionId, word: Between) {
        let Some(node) = self.plane.map().session(to).map(|session| session.node) else { return };
        // What does not fit is lost, as anything may be: a planned move is given up, and heads are said again.
        self.ways.send(node, word.speaker(), Kind::BETWEEN, || word.to_bytes().ok());
    }
}

impl PeerPort for Neighbours {
    fn hear(&self, bytes: &[u8]) -> bool {
        let Ok(word) = Between::from_bytes(bytes) else { return false };
        if let Some(node) = self.node() {
            node.hear(word);
        }
        true
    }

    fn back(&self, node: NodeUid) {
        if let (Some(own), Some(session)) = (self.node(), self.plane.map().session_of(node)) {
            own.peer_lost(session);
        }
    }
}
