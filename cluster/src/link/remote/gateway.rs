//! A gateway's ways to the nodes of its cluster.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use chappe_schema::{
    archive,
    id::{Generation, NodeUid, Partition, SessionId},
    wire::{Owner, ToGateway, ToNode, Turn},
};
use parking_lot::Mutex;

use super::{Kind, SETTLES, TO_GATEWAY, Ways, is_of_node};
use crate::{
    control::{self, Watcher},
    link::{
        GatewayPort, Links,
        quic::{Answer, Connection, Endpoint, Handler, Hello, Settings, identity::Identity},
    },
    ownership::Map,
};

/// See the module's documentation.
pub struct RemoteLinks {
    ways: Ways,
    port: Arc<dyn GatewayPort>,
    map: Arc<Mutex<Map>>,
    generation: Generation,
}

/// An address from which ways to nodes can begin.
pub struct Start {
    endpoint: Arc<Endpoint>,
    end: Arc<End>,
}

/// The gateway's end: what nodes say.
#[derive(Default)]
struct End {
    port: OnceLock<Arc<dyn GatewayPort>>,
    map: Arc<Mutex<Map>>,
}

impl Start {
    /// Takes an address. To be called within the gateway's runtime.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn at(address: SocketAddr, identity: Identity, hello: Hello) -> io::Result<Self> {
        let end = Arc::new(End::default());
        let endpoint =
            Endpoint::bind(address, identity, hello, Settings::default(), Arc::new(Shared(Arc::clone(&end))))?;
        Ok(Self { endpoint: Arc::new(endpoint), end })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// The ways from here to the nodes of the map that `watch` brings, and to those that come. To be called within the
    /// gateway's runtime.
    pub fn join(
        self,
        port: Arc<dyn GatewayPort>,
        generation: Generation,
        watch: impl FnOnce(Watcher),
    ) -> Arc<RemoteLinks> {
        let Self { endpoint, end } = self;
        drop(end.port.set(Arc::clone(&port)));
        let links = Arc::new(RemoteLinks { ways: Ways::new(endpoint), port, map: Arc::clone(&end.map), generation });
        control::follow(&links, watch, RemoteLinks::follow);
        links
    }
}

impl RemoteLinks {
    /// The map as it is now.
    fn follow(&self, map: &Map) {
        let changed: Vec<(Partition, Owner)> = {
            let mut known = self.map.lock();
            let before = std::mem::replace(&mut *known, map.clone());
            map.newly_owned(&before)
        };
        self.ways.follow(map, None);
        if !changed.is_empty() {
            self.port.assigned(&changed);
        }
    }

    /// Says goodbye to the nodes.
    pub async fn close(&self) {
        self.ways.close().await;
    }

    fn try_send(&self, to: SessionId, message: &ToNode) -> bool {
        let Some(node) = self.map.lock().session(to).map(|session| session.node) else { return false };
        // No client can make one that does not fit.
        self.ways.send(node, message.partition(), Kind::TO_NODE, || archive::to_bytes(message).ok())
    }
}

impl Links for RemoteLinks {
    fn owner(&self, partition: Partition) -> Option<Owner> {
        self.map.lock().named_owner(partition)
    }

    /// What certainly does not arrive is answered as an owner would that has none of it: the lane is asked again, all of it and in
    /// order, after a pause. Whatever has no lane is said again when the way is there.
    fn send(&self, to: SessionId, message: ToNode) -> Vec<ToGateway> {
        if self.try_send(to, &message) {
            return Vec::new();
        }
        message.lane().map(|lane| ToGateway::Moved { lane, owner: None }).into_iter().collect()
    }

    fn tell(&self, partition: Partition, message: ToNode) {
        if let Some(owner) = self.owner(partition) {
            self.try_send(owner.session, &message);
        }
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}

impl End {
    /// The way to a node has broken, or is there again: nobody knows what of it arrived.
    fn lost(&self, node: NodeUid) {
        let map = self.map.lock().clone();
        let Some(port) = self.port.get() else { return };
        for (session, _) in map.sessions().filter(|(_, session)| session.node == node) {
            port.lost(session);
        }
    }
}

/// Whether it is a way that this gateway has dialled: nobody else has anything to say to it.
fn is_a_way(connection: &Connection) -> bool {
    connection.dialled() && is_of_node(connection)
}

/// Shared by its endpoint and by what is said a little later.
struct Shared(Arc<End>);

impl Handler for Shared {
    fn connected(&self, connection: &Arc<Connection>) {
        if !is_a_way(connection) {
            return connection.close();
        }
        // What could not be sent and has no lane is said again, once it can be.
        let (end, node) = (Arc::clone(&self.0), NodeUid(connection.peer().uid));
        tokio::spawn(async move {
            tokio::time::sleep(SETTLES).await;
            end.lost(node);
        });
    }

    fn frame(&self, from: &Arc<Connection>, _: u8, kind: u16, frame: Bytes) {
        match archive::from_bytes::<Turn>(&frame) {
            Ok(turn) if kind == TO_GATEWAY && is_a_way(from) => {
                if let Some(port) = self.0.port.get() {
                    port.receive(turn.from, turn.batch);
                }
            }
            _ => from.close(),
        }
    }

    fn ask(&self, _: &Arc<Connection>, _: u16, _: Bytes) -> Answer {
        Box::pin(std::future::ready(None))
    }

    fn datagram(&self, _: &Arc<Connection>, _: u16, _: Bytes) {}

    fn lost(&self, connection: &Arc<Connection>) {
        if is_a_way(connection) {
            self.0.lost(NodeUid(connection.peer().uid));
        }
    }
}
