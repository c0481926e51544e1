//! The links inside one process: typed values by function call, nothing encoded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use chappe_schema::{
    id::{GatewayId, Generation, NodeUid, Partition, SessionId},
    wire::{Owner, ToGateway, ToNode},
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{GatewayPort, Links, NodePort};
use crate::{
    control::{self, Watcher},
    ownership::Map,
};

// === one node that owns everything ===

/// A gateway's way to the one node of a standalone server, which owns everything.
pub struct MemoryLink {
    gateway: GatewayId,
    node: Arc<dyn NodePort>,
}

/// The only owner there is.
const ALONE: Owner = Owner { session: 1, epoch: 1 };

impl MemoryLink {
    /// Joins the two ends.
    pub fn join(id: GatewayId, node: Arc<dyn NodePort>, gateway: Arc<dyn GatewayPort>) -> Self {
        node.attach(id, gateway);
        Self { gateway: id, node }
    }
}

impl Links for MemoryLink {
    fn owner(&self, _: Partition) -> Option<Owner> {
        Some(ALONE)
    }

    fn send(&self, _: SessionId, message: ToNode) -> Vec<ToGateway> {
        self.node.receive(self.gateway, message)
    }

    fn generation(&self) -> Generation {
        self.node.generation()
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.node.detach(self.gateway);
    }
}

// === nodes that own what the map says ===

/// The nodes of a cluster that live in this process: one beside its gateway, or all of them in a test. Clones are the same.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    nodes: BTreeMap<NodeUid, Arc<dyn NodePort>>,
    links: Vec<Weak<MapLinks>>,
}

/// A gateway's ways to these nodes, as a map shows them.
pub struct MapLinks {
    gateway: GatewayId,
    port: Arc<dyn GatewayPort>,
    nodes: Nodes,
    map: Mutex<Map>,
    generation: Generation,
    runtime: Handle,
    /// Sessions of which it is about to be said that they cannot be reached.
    notices: Arc<Mutex<BTreeSet<SessionId>>>,
}

/// Between something that could not be sent and the word of it, which must not be said to a gateway while it sends.
const NOTICE: Duration = Duration::from_millis(20);

impl Nodes {
    /// A node is there.
    pub fn enter(&self, uid: NodeUid, node: &Arc<dyn NodePort>) {
        let links = {
            let mut inside = self.0.lock();
            inside.nodes.insert(uid, Arc::clone(node));
            inside.living_links()
        };
        for link in links {
            node.attach(link.gateway, Arc::clone(&link.port));
        }
    }

    /// A node is gone: whoever waits for its answers is told.
    pub fn leave(&self, uid: NodeUid) {
        let links = {
            let mut inside = self.0.lock();
            inside.nodes.remove(&uid);
            inside.living_links()
        };
        for link in links {
            let map = link.map.lock().clone();
            for (session, _) in map.sessions().filter(|(_, session)| session.node == uid) {
                link.port.lost(session);
            }
        }
    }

    fn find(&self, uid: NodeUid) -> Option<Arc<dyn NodePort>> {
        self.0.lock().nodes.get(&uid).cloned()
    }
}

impl Inside {
    fn living_links(&mut self) -> Vec<Arc<MapLinks>> {
        self.links.retain(|link| link.strong_count() > 0);
        self.links.iter().filter_map(Weak::upgrade).collect()
    }
}

impl MapLinks {
    /// A gateway's ways to the nodes that are there and to those that come, as the map that `watch` brings shows them. To be
    /// called within the gateway's runtime.
    pub fn join(
        nodes: &Nodes,
        id: GatewayId,
        port: Arc<dyn GatewayPort>,
        generation: Generation,
        watch: impl FnOnce(Watcher),
    ) -> Arc<Self> {
        let links = Arc::new(Self {
            gateway: id,
            port,
            nodes: nodes.clone(),
            map: Mutex::default(),
            generation,
            runtime: Handle::current(),
            notices: Arc::default(),
        });
        let there: Vec<_> = {
            let mut inside = nodes.0.lock();
            inside.links.push(Arc::downgrade(&links));
            inside.nodes.values().cloned().collect()
        };
        for node in there {
            node.attach(id, Arc::clone(&links.port));
        }
        control::follow(&links, watch, Self::follow);
        links
    }

    fn way(&self, to: SessionId) -> Option<Arc<dyn NodePort>> {
        let uid = self.map.lock().session(to)?.node;
        self.nodes.find(uid)
    }

    /// The map as it is now.
    fn follow(&self, map: &Map) {
        let changed: Vec<(Partition, Owner)> = {
            let mut known = self.map.lock();
            let before = std::mem::replace(&mut *known, map.clone());
            map.newly_owned(&before)
        };
        if !changed.is_empty() {
            self.port.assigned(&changed);
        }
    }
}

impl Links for MapLinks {
    fn owner(&self, partition: Partition) -> Option<Owner> {
        self.map.lock().named_owner(partition)
    }

    fn send(&self, to: SessionId, message: ToNode) -> Vec<ToGateway> {
        if let Some(node) = self.way(to) {
            return node.receive(self.gateway, message);
        }
        // Said once of all that is sent meanwhile.
        if self.notices.lock().insert(to) {
            let (port, notices) = (Arc::clone(&self.port), Arc::clone(&self.notices));
            self.runtime.spawn(async move {
                tokio::time::sleep(NOTICE).await;
                notices.lock().remove(&to);
                port.lost(to);
            });
        }
        Vec::new()
    }

    fn tell(&self, partition: Partition, message: ToNode) {
        if let Some(node) = self.owner(partition).and_then(|owner| self.way(owner.session)) {
            drop(node.receive(self.gateway, message));
        }
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for MapLinks {
    fn drop(&mut self) {
        let nodes: Vec<_> = self.nodes.0.lock().nodes.values().cloned().collect();
        for node in nodes {
            node.detach(self.gateway);
        }
    }
}
