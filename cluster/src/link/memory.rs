//! The link inside one process: typed values by function call, nothing encoded.

use std::sync::Arc;

use chappe_schema::{
    id::{GatewayId, Generation, Partition, SessionId},
    wire::{Owner, ToGateway, ToNode},
};

use super::{GatewayPort, Links, NodePort};

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
