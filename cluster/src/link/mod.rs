//! How two of our processes talk: `memory` in one process. (Between machines: QUIC, behind the same two traits.)
//!
//! Messages for one entity stay in order in both directions; a message is delivered at most once. Whoever receives
//! must not block: it puts the message where its own tasks find it.

use std::sync::Arc;

use chappe_schema::{
    id::{GatewayId, Generation},
    wire::{ToGateway, ToNode},
};

pub mod memory;

/// The node's end of a link.
pub trait NodePort: Send + Sync + 'static {
    /// A gateway is there; what is for it goes to `gateway`.
    fn attach(&self, id: GatewayId, gateway: Arc<dyn GatewayPort>);

    /// A gateway is gone, and all its connections with it.
    fn detach(&self, id: GatewayId);

    /// A message from a gateway.
    fn receive(&self, from: GatewayId, message: ToNode);

    /// Identity of the history that the node serves.
    fn generation(&self) -> Generation;
}

/// The gateway's end of a link.
pub trait GatewayPort: Send + Sync + 'static {
    /// What one turn of a shard has for this gateway, in order.
    fn receive(&self, batch: Vec<ToGateway>);
}
