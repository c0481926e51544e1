//! The control plane's ways: Raft's messages, proposals, keepalives and maps, as questions over QUIC.

use std::{
    collections::BTreeMap,
    future::{Future, ready},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use chappe_schema::id::NodeUid;
use parking_lot::Mutex;

use super::{QUESTION, is_of_node};
use crate::{
    consensus::{
        Consensus,
        transport::{Reply, Request, Transport, Unasked},
    },
    link::quic::{Answer, Connection, Endpoint, Handler, Role, Way},
    swim::{Swim, peer::Peer},
};

/// Longest that an answer is waited for. Whoever asks has a deadline of their own, most of them far shorter.
const ANSWER: Duration = Duration::from_secs(10);

/// Where nodes are: what SWIM knows.
pub trait Whereabouts: Send + Sync + 'static {
    /// The address at which a node answers the control plane's questions.
    fn control(&self, node: NodeUid) -> Option<SocketAddr>;

    /// The nodes that can probably be reached, this one left out.
    fn nodes(&self) -> Vec<NodeUid>;
}

/// A process's ways to the nodes' control planes.
pub struct Control {
    endpoint: Arc<Endpoint>,
    whereabouts: Arc<dyn Whereabouts>,
    ways: Mutex<BTreeMap<NodeUid, (SocketAddr, Way)>>,
}

/// What a node answers to others, once it has a plane.
#[derive(Default)]
pub struct Answers(OnceLock<Consensus>);

impl Control {
    /// Ways that are dialled as they are needed.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, whereabouts: Arc<dyn Whereabouts>) -> Self {
        Self { endpoint, whereabouts, ways: Mutex::default() }
    }
}

/// SWIM begins when a process knows who it is; until then it knows nobody.
impl Whereabouts for OnceLock<Swim> {
    fn control(&self, node: NodeUid) -> Option<SocketAddr> {
        self.get()?.find(node.0).map(|peer| peer.link)
    }

    fn nodes(&self) -> Vec<NodeUid> {
        self.get().map(|swim| swim.members().iter().filter_map(Peer::node).collect()).unwrap_or_default()
    }
}

impl Transport for Control {
    fn ask(&self, to: NodeUid, request: Request) -> Pin<Box<dyn Future<Output = Result<Reply, Unasked>> + Send>> {
        let found = self.whereabouts.control(to);
        let mut ways = self.ways.lock();
        match (found, ways.get_mut(&to)) {
            (Some(addr), Some((known, way))) if *known != addr => {
                *known = addr;
                way.move_to(addr);
            }
            (Some(addr), None) => drop(ways.insert(to, (addr, self.endpoint.way(Some(to.0), addr)))),
            _ => {}
        }
        let Some((_, way)) = ways.get(&to) else { return Box::pin(ready(Err(Unasked::Unreachable))) };
        // A gateway that calls itself that node cannot answer for it.
        let Some(connection) = way.connection().filter(|connection| is_of_node(connection)) else {
            return Box::pin(ready(Err(Unasked::Unreachable)));
        };
        drop(ways);
        let asked = connection.ask(QUESTION, request.to_bytes(), ANSWER);
        Box::pin(async move { Reply::from_bytes(asked.await?).map_err(|_| Unasked::Lost) })
    }

    fn peers(&self) -> Vec<NodeUid> {
        self.whereabouts.nodes()
    }
}

impl Answers {
    /// From now on questions are answered.
    pub fn begin(&self, plane: Consensus) {
        drop(self.0.set(plane));
    }
}

impl Handler for Answers {
    fn connected(&self, _: &Arc<Connection>) {}

    fn frame(&self, from: &Arc<Connection>, _: u8, _: u16, _: Bytes) {
        from.close();
    }

    fn ask(&self, from: &Arc<Connection>, kind: u16, question: Bytes) -> Answer {
        let (role, uid) = (from.peer().role, NodeUid(from.peer().uid));
        let (Some(plane), QUESTION, Ok(request)) = (self.0.get().cloned(), kind, Request::from_bytes(question)) else {
            return Box::pin(ready(None));
        };
        if role != Role::Node && !request.only_reads() {
            return Box::pin(ready(None));
        }
        Box::pin(async move { Some(plane.serve(uid, request).await.to_bytes()) })
    }

    fn datagram(&self, _: &Arc<Connection>, _: u16, _: Bytes) {}

    fn lost(&self, _: &Arc<Connection>) {}
}
