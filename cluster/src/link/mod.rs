//! How two of our processes talk: `memory` within one process, to one node that owns everything or to those of a map; `remote`
//! between machines, over `quic`, behind the same traits.
//!
//! Messages of one lane stay in order; a message is delivered at most once, and a way that breaks says so to its gateway
//! ([`GatewayPort::lost`]). Whoever receives must not block: it puts the message where its own tasks find it.

use std::sync::Arc;

use chappe_schema::{
    id::{GatewayId, Generation, Partition, SessionId},
    wire::{Owner, ToGateway, ToNode},
};

pub mod memory;
pub mod quic;
pub mod remote;

/// A gateway's ways to all nodes.
pub trait Links: Send + Sync + 'static {
    /// Who owns a partition, as far as is known here.
    fn owner(&self, partition: Partition) -> Option<Owner>;

    /// Sends to one life of a node. What it answers at once is given back; what certainly does not arrive is answered as an owner
    /// would that has none of it ([`ToGateway::Moved`]); what may or may not have arrived when a way broke is said
    /// ([`GatewayPort::lost`]). A later message that can be sent again must not overtake either.
    fn send(&self, to: SessionId, message: ToNode) -> Vec<ToGateway>;

    /// Sends what wants no answer to whoever owns the partition; without an owner it is lost, as its next owner starts
    /// from nothing.
    fn tell(&self, partition: Partition, message: ToNode) {
        if let Some(owner) = self.owner(partition) {
            drop(self.send(owner.session, message));
        }
    }

    /// Identity of the history behind the links.
    fn generation(&self) -> Generation;
}

/// The node's end of a link.
pub trait NodePort: Send + Sync + 'static {
    /// A gateway is there; what is for it goes to `gateway`.
    fn attach(&self, id: GatewayId, gateway: Arc<dyn GatewayPort>);

    /// A gateway is gone, and all its connections with it.
    fn detach(&self, id: GatewayId);

    /// A message from a gateway. What is answered at once is given back: the gateway holds a lock while it sends, so
    /// that nobody comes between, and must not be called back within.
    fn receive(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway>;

    /// Identity of the history that the node serves.
    fn generation(&self) -> Generation;
}

/// The gateway's end of its links.
pub trait GatewayPort: Send + Sync + 'static {
    /// What one turn of a shard has for this gateway, in order. `from` is the session that it lives: a gateway heeds of a
    /// user's events only what comes from the session that has registered the connection, so that nothing late of a former
    /// owner comes between.
    fn receive(&self, from: SessionId, batch: Vec<ToGateway>);

    /// These partitions have other owners than before. Never said where there is one node.
    fn assigned(&self, _owners: &[(Partition, Owner)]) {}

    /// The way to a node is broken; nobody knows what of it arrived. Never said within one process.
    fn lost(&self, _session: SessionId) {}
}
