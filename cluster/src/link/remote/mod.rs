//! The links between machines: what `schema::wire` has, as rkyv's bytes, in the frames of [`quic`](super::quic).
//!
//! Three kinds of ways, and whoever has something to say dials. [`control`]: Raft's questions, proposals, maps, on Raft's own
//! runtime and at an address of its own, so that a flood of messages holds up no heartbeat. [`door`]: what gateways and other
//! nodes say to a node. [`gateway`]: a gateway's ways to all nodes of the map.
//!
//! Frames of one partition share a lane and stay in order. A frame that cannot be read ends its connection: whoever sent it
//! is not what this program takes it for. What a broken way costs is for [`GatewayPort::lost`](super::GatewayPort::lost) and
//! [`PeerPort::back`](door::PeerPort::back) to mend.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use chappe_schema::{
    id::{NodeUid, Partition},
    limit::LINK_FRAME_BYTES_MAX,
    wire::{ToGateway, Turn},
};
use parking_lot::Mutex;

use super::quic::{Connection, Endpoint, LANES, Role, Way};
use crate::ownership::Map;

pub mod control;
pub mod door;
pub mod gateway;
mod skew;

/// From a gateway to a node: one [`ToNode`](chappe_schema::wire::ToNode).
const TO_NODE: u16 = 1;

/// From a node to a gateway: a [`Turn`].
const TO_GATEWAY: u16 = 2;

/// From a node to another: the nodes' own.
const BETWEEN: u16 = 3;

/// A question of the control plane.
const QUESTION: u16 = 4;

/// The lane in which all that is about a partition travels.
const fn lane(partition: Partition) -> u8 {
    (partition.0 % LANES as u16) as u8
}

/// A process's ways to the nodes that the map shows.
pub struct Ways {
    endpoint: Arc<Endpoint>,
    ways: Mutex<BTreeMap<NodeUid, (SocketAddr, Way)>>,
}

impl Ways {
    /// None yet.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, ways: Mutex::default() }
    }

    /// Ways to all nodes with a session, but to this process itself; none to others.
    pub fn follow(&self, map: &Map, me: Option<NodeUid>) {
        let nodes: BTreeMap<NodeUid, SocketAddr> = map
            .sessions()
            .map(|(_, session)| (session.node, session.addr))
            .filter(|(uid, _)| Some(*uid) != me)
            .collect();
        let mut ways = self.ways.lock();
        let gone: Vec<_> = ways.extract_if(.., |uid, _| !nodes.contains_key(uid)).collect();
        for (uid, addr) in nodes {
            match ways.get_mut(&uid) {
                Some((known, _)) if *known == addr => {}
                Some((known, way)) => {
                    *known = addr;
                    way.move_to(addr);
                }
                None => drop(ways.insert(uid, (addr, self.endpoint.way(Some(uid.0), addr)))),
            }
        }
        drop(ways);
        // What closes may call back.
        drop(gone);
    }

    /// Sends to a node what `bytes` makes, if there is a way; false where that certainly does not arrive.
    pub fn send(&self, to: NodeUid, partition: Partition, kind: Kind, bytes: impl FnOnce() -> Option<Bytes>) -> bool {
        let connection = self.ways.lock().get(&to).and_then(|(_, way)| way.connection());
        let Some(connection) = connection.filter(|connection| is_of_node(connection)) else { return false };
        bytes().is_some_and(|bytes| connection.send(lane(partition), kind.0, bytes))
    }

    /// Says goodbye on all of them.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

/// Whether a node is at the other end: a gateway's certificate covers any number, but only as a gateway.
fn is_of_node(connection: &Connection) -> bool {
    connection.peer().role == Role::Node
}

/// Between the word that a connection is there and its use as a way.
const SETTLES: Duration = Duration::from_millis(50);

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u16);

impl Kind {
    /// From a node to another.
    pub const BETWEEN: Self = Self(BETWEEN);
    const TO_NODE: Self = Self(TO_NODE);
}

/// Sends what one turn has for a gateway, in as many frames as it takes.
fn send_turn(connection: &Arc<Connection>, lane: u8, turn: Turn) {
    let bytes = match chappe_schema::archive::to_bytes(&turn) {
        Ok(bytes) if bytes.len() <= LINK_FRAME_BYTES_MAX => {
            connection.send(lane, TO_GATEWAY, bytes);
            return;
        }
        Ok(bytes) => bytes.len(),
        Err(_) => usize::MAX,
    };
    let Turn { from, mut batch } = turn;
    if batch.len() > 1 {
        let rest = batch.split_off(batch.len() / 2);
        send_turn(connection, lane, Turn { from, batch });
        return send_turn(connection, lane, Turn { from, batch: rest });
    }
    tracing::error!(event = "answer_too_large", bytes, "no answer of a node is that large");
    if let Some(ToGateway::Reply(correlation, _)) = batch.pop() {
        let error = chappe_schema::error::Code::Internal.into();
        send_turn(connection, lane, Turn { from, batch: vec![ToGateway::Reply(correlation, Err(error))] });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
