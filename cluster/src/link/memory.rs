//! The link inside one process: typed values by function call, nothing encoded.

use std::sync::Arc;

use chappe_schema::{
    id::{GatewayId, Generation},
    wire::ToNode,
};

use super::{GatewayPort, NodePort};

/// A gateway's way to the one node of a standalone server.
pub struct MemoryLink {
    gateway: GatewayId,
    node: Arc<dyn NodePort>,
}

impl MemoryLink {
    /// Joins the two ends.
    pub fn join(id: GatewayId, node: Arc<dyn NodePort>, gateway: Arc<dyn GatewayPort>) -> Self {
        node.attach(id, gateway);
        Self { gateway: id, node }
    }

    /// Sends to the owner of the entity that the message is for.
    pub fn send(&self, message: ToNode) {
        self.node.receive(self.gateway, message);
    }

    /// Identity of the history behind the link.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.node.generation()
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.node.detach(self.gateway);
    }
}
