//! A node's door: what gateways and other nodes say to it over QUIC.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use chappe_schema::{
    archive,
    error::Code,
    id::{GatewayId, Millis, NodeUid, SessionId},
    limit::COMMAND_DEADLINE_MS,
    wire::{ToGateway, ToNode, Turn},
};
use parking_lot::Mutex;

use super::{BETWEEN, SETTLES, TO_NODE, send_turn, skew::Skew};
use crate::link::{
    GatewayPort, NodePort,
    quic::{Answer, Connection, Handler, Role},
};

/// What other nodes say to a node.
pub trait PeerPort: Send + Sync + 'static {
    /// Another node says something; false when that is nothing that can be read.
    fn hear(&self, bytes: &[u8]) -> bool;

    /// The way to another node is there, and may have been broken before: what was sent meanwhile is lost.
    fn back(&self, node: NodeUid);
}

/// See the module's documentation. It is shut until there is a node behind it: whoever comes earlier waits, is told that nothing
/// lives here, and comes again when it opens.
pub struct Door {
    began: Instant,
    behind: OnceLock<Behind>,
    early: Mutex<Vec<Arc<Connection>>>,
    /// Gateways by their connections.
    gateways: Mutex<HashMap<u64, Known>>,
}

/// The number by which nodes, and its clients, name a gateway.
#[must_use]
pub const fn gateway_id(uid: u64) -> GatewayId {
    GatewayId(uid as u32)
}

/// A gateway that is connected.
struct Known {
    id: GatewayId,
    /// None: it has asked nothing yet.
    skew: Option<Skew>,
}

struct Behind {
    node: Arc<dyn NodePort>,
    peers: Arc<dyn PeerPort>,
}

/// What a gateway's end of a connection is to a node. What a node knew of it ends with the connection.
struct RemoteGateway(Arc<Connection>);

/// The lane of all that shards say.
const TURNS: u8 = 0;

/// Said in place of a session.
const NOBODY: SessionId = 0;

impl Default for Door {
    fn default() -> Self {
        Self { began: Instant::now(), behind: OnceLock::new(), early: Mutex::default(), gateways: Mutex::default() }
    }
}

fn wall_clock() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

impl Door {
    /// There is a node behind it from now on.
    pub fn open(&self, node: Arc<dyn NodePort>, peers: Arc<dyn PeerPort>) {
        let mut early = self.early.lock();
        drop(self.behind.set(Behind { node, peers }));
        for connection in early.drain(..) {
            connection.close();
        }
    }

    /// Whether there is a node behind it; otherwise the connection waits for one.
    fn is_open(&self, connection: &Arc<Connection>) -> bool {
        let mut early = self.early.lock();
        if self.behind.get().is_none() {
            early.retain(|waiting| waiting.is_open());
            early.push(Arc::clone(connection));
            return false;
        }
        true
    }

    fn gateway(&self, connection: &Connection) -> Option<GatewayId> {
        self.gateways.lock().get(&connection.number()).map(|known| known.id)
    }

    /// A question's deadline is by its gateway's clock; it is put into ours.
    fn set_by_our_clock(&self, connection: &Connection, message: &mut ToNode) {
        let ToNode::Command(_, asked) = message else { return };
        // Nobody else has it yet.
        let Some(asked) = Arc::get_mut(asked) else { return };
        let (passed, ours) = (self.began.elapsed().as_millis() as Millis, wall_clock());
        let theirs = asked.deadline.saturating_sub(COMMAND_DEADLINE_MS);
        let mut gateways = self.gateways.lock();
        let Some(known) = gateways.get_mut(&connection.number()) else { return };
        let skew = known.skew.get_or_insert_with(|| Skew::begin(passed, ours, theirs)).see(passed, ours, theirs);
        asked.deadline = asked.deadline.saturating_add_signed(skew);
    }
}

impl Handler for Door {
    fn connected(&self, connection: &Arc<Connection>) {
        if !self.is_open(connection) {
            return;
        }
        let Some(Behind { node, peers }) = self.behind.get() else { return };
        match connection.peer().role {
            Role::Gateway if !connection.dialled() => {
                let id = gateway_id(connection.peer().uid);
                let mut gateways = self.gateways.lock();
                if gateways.values().any(|known| known.id == id) {
                    // Two random numbers that are alike in half their bits: one of the two has to take another.
                    drop(gateways);
                    tracing::error!(
                        event = "gateway_refused",
                        gateway = connection.peer().name,
                        "another has its number"
                    );
                    return connection.close();
                }
                gateways.insert(connection.number(), Known { id, skew: None });
                drop(gateways);
                node.attach(id, Arc::new(RemoteGateway(Arc::clone(connection))));
            }
            Role::Node if connection.dialled() => {
                let (peers, node) = (Arc::clone(peers), NodeUid(connection.peer().uid));
                tokio::spawn(async move {
                    tokio::time::sleep(SETTLES).await;
                    peers.back(node);
                });
            }
            _ => {}
        }
    }

    fn frame(&self, from: &Arc<Connection>, _: u8, kind: u16, frame: Bytes) {
        let Some(Behind { node, peers }) = self.behind.get() else {
            // Not yet: another one owns it by now, or this one will soon.
            if let Ok(message) = archive::from_bytes::<ToNode>(&frame)
                && let Some(lane) = message.lane()
            {
                send_turn(from, TURNS, Turn { from: NOBODY, batch: vec![ToGateway::Moved { lane, owner: None }] });
            }
            return;
        };
        let is_read = match (kind, self.gateway(from)) {
            (TO_NODE, Some(gateway)) => archive::from_bytes::<ToNode>(&frame).is_ok_and(|mut message| {
                self.set_by_our_clock(from, &mut message);
                let asked = message.lane();
                let mut batch = node.receive(gateway, message);
                if let (Some(lane), true) = (asked, batch.iter().any(goes_away)) {
                    // Who leaves gives its partitions to others: clients need not know.
                    batch = vec![ToGateway::Moved { lane, owner: None }];
                }
                if !batch.is_empty() {
                    send_turn(from, TURNS, Turn { from: NOBODY, batch });
                }
                true
            }),
            (BETWEEN, None) if from.peer().role == Role::Node => peers.hear(&frame),
            _ => false,
        };
        if !is_read {
            tracing::warn!(event = "frame_unreadable", peer = from.peer().name, kind, "its connection ends");
            from.close();
        }
    }

    fn ask(&self, _: &Arc<Connection>, _: u16, _: Bytes) -> Answer {
        Box::pin(std::future::ready(None))
    }

    fn datagram(&self, _: &Arc<Connection>, _: u16, _: Bytes) {}

    fn lost(&self, connection: &Arc<Connection>) {
        let gateway = self.gateways.lock().remove(&connection.number());
        if let (Some(Known { id, .. }), Some(Behind { node, .. })) = (gateway, self.behind.get()) {
            node.detach(id);
        }
    }
}

/// Whether a node refuses because it ends.
fn goes_away(answer: &ToGateway) -> bool {
    let error = match answer {
        ToGateway::Reply(_, Err(error)) | ToGateway::Connected(_, Err(error)) | ToGateway::Access(_, Err(error)) => {
            error
        }
        _ => return false,
    };
    error.code == Code::GoingAway
}

impl GatewayPort for RemoteGateway {
    fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        send_turn(&self.0, TURNS, Turn { from, batch });
    }
}
