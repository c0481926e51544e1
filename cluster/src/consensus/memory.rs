//! A transport in one process, for tests and simulations: every message takes a while, may be lost, and passes only where its link is
//! open. What is random comes from one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use chappe_schema::id::NodeUid;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{
    Consensus,
    transport::{Reply, Request, Transport, Unasked},
};

/// All nodes and the links between them. Clones are the same.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// Who can be asked, and in which life.
    nodes: BTreeMap<NodeUid, (u64, Consensus)>,
    /// Who can ask: the life that a port was last made for, until it is detached.
    lives: BTreeMap<NodeUid, u64>,
    ports: u64,
    /// Where nothing passes from the first to the second.
    cut: BTreeSet<(NodeUid, NodeUid)>,
    /// Where what is sent waits.
    held: BTreeSet<(NodeUid, NodeUid)>,
    /// Microseconds that a message takes, from and to.
    delay: (u64, u64),
    /// Messages lost, of a thousand.
    loss: u64,
    random: Random,
}

/// One node's way to the others, for one life.
pub struct Port {
    hub: Hub,
    node: NodeUid,
    life: u64,
}

/// A small generator: the same numbers from the same seed, everywhere (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `below`; 0 if that is 0.
    pub const fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        if below == 0 { 0 } else { z % below }
    }
}

/// While a link is held, how often what waits looks whether it may pass.
const HELD: Duration = Duration::from_millis(5);

impl Hub {
    /// No nodes yet; all links open.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            nodes: BTreeMap::new(),
            lives: BTreeMap::new(),
            ports: 0,
            cut: BTreeSet::new(),
            held: BTreeSet::new(),
            delay: (50, 500),
            loss: 0,
            random: Random::new(seed),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// A way for a node that starts; what it sent in an earlier life does not arrive any more.
    #[must_use]
    pub fn port(&self, node: NodeUid) -> Port {
        let mut inner = self.inner.lock();
        inner.ports += 1;
        let life = inner.ports;
        inner.lives.insert(node, life);
        Port { hub: self.clone(), node, life }
    }

    /// From now on the node can be asked.
    pub fn attach(&self, node: NodeUid, consensus: Consensus) {
        let mut inner = self.inner.lock();
        let life = inner.lives.get(&node).copied().unwrap_or_default();
        inner.nodes.insert(node, (life, consensus));
    }

    /// The node is gone, and all that it has sent with it.
    pub fn detach(&self, node: NodeUid) -> Option<Consensus> {
        let mut inner = self.inner.lock();
        inner.lives.remove(&node);
        inner.nodes.remove(&node).map(|(_, consensus)| consensus)
    }

    /// Nothing passes from `from` to `to` until [`Hub::open`].
    pub fn cut(&self, from: NodeUid, to: NodeUid) {
        self.inner.lock().cut.insert((from, to));
    }

    /// What is sent from `from` to `to` waits until [`Hub::open`].
    pub fn hold(&self, from: NodeUid, to: NodeUid) {
        self.inner.lock().held.insert((from, to));
    }

    /// The link passes again.
    pub fn open(&self, from: NodeUid, to: NodeUid) {
        let mut inner = self.inner.lock();
        inner.cut.remove(&(from, to));
        inner.held.remove(&(from, to));
    }

    /// Every link passes again, and nothing is lost.
    pub fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.cut.clear();
        inner.held.clear();
        inner.loss = 0;
    }

    /// How long messages take, in microseconds, and how many of a thousand are lost.
    pub fn weather(&self, delay: (u64, u64), loss: u64) {
        let mut inner = self.inner.lock();
        inner.delay = delay;
        inner.loss = loss;
    }

    /// A message's way; false if it does not arrive.
    async fn pass(&self, from: NodeUid, to: NodeUid) -> bool {
        let delay = {
            let mut inner = self.inner.lock();
            let (least, most) = inner.delay;
            let delay = least + inner.random.below(most.saturating_sub(least) + 1);
            let lost = inner.random.below(1_000) < inner.loss;
            if lost || inner.cut.contains(&(from, to)) {
                return false;
            }
            Duration::from_micros(delay)
        };
        sleep(delay).await;
        loop {
            let held = self.inner.lock().held.contains(&(from, to));
            if !held {
                return true;
            }
            sleep(HELD).await;
        }
    }

    fn at(&self, node: NodeUid) -> Option<(u64, Consensus)> {
        self.inner.lock().nodes.get(&node).cloned()
    }

    fn lives(&self, node: NodeUid, life: u64) -> bool {
        self.inner.lock().lives.get(&node) == Some(&life)
    }
}

impl Transport for Port {
    fn ask(&self, to: NodeUid, request: Request) -> Pin<Box<dyn Future<Output = Result<Reply, Unasked>> + Send>> {
        let (hub, from, life) = (self.hub.clone(), self.node, self.life);
        Box::pin(async move {
            // As bytes, so that what is tested is what will travel between machines.
            let bytes = request.to_bytes();
            if !hub.pass(from, to).await || !hub.lives(from, life) {
                return pending().await;
            }
            let Some((its, target)) = hub.at(to) else { return Err(Unasked::Unreachable) };
            let request = Request::from_bytes(bytes).map_err(|_| Unasked::Lost)?;
            let served = tokio::spawn(async move { target.serve(from, request).await });
            let reply = served.await.map_err(|_| Unasked::Lost)?.to_bytes();
            if !hub.lives(to, its) || !hub.pass(to, from).await {
                return pending().await;
            }
            Reply::from_bytes(reply).map_err(|_| Unasked::Lost)
        })
    }

    fn peers(&self) -> Vec<NodeUid> {
        self.hub.inner.lock().nodes.keys().copied().filter(|node| *node != self.node).collect()
    }
}
