//! The real Raft of several nodes in one process and in virtual time, for whoever simulates a whole cluster.
//!
//! A [`Simulation`] owns a runtime of one thread whose clock stands still except in [`Simulation::advance`], a [`Hub`] between
//! its nodes, and a disk for each that forgets at a crash what was not synced. The same seed and the same calls make the same
//! history, to the last message: nothing is drawn but from the seed, nothing waits for a real clock, and no part iterates over a map
//! in random order. `--cfg tokio_unstable` is not needed: what Raft draws at random (its election timeout) is given to it by
//! [`super::pace`], and the one unbiased `select!` of openraft stands on a path that our network does not take.
//!
//! How a simulator drives it:
//!
//! ```
//! use std::{cell::RefCell, rc::Rc, sync::{Arc, Mutex}};
//! use chappe_cluster::{consensus::simulation::{Plan, Simulation}, control::{ControlPlane, Outcome}, ownership::{Command, NewSession, Versions}};
//!
//! let mut raft = Simulation::new(Plan { seed: 7, voters: 3, ..Plan::default() });
//! raft.advance(2_000);                        // a leader is elected and founds the cluster
//! let plane = raft.plane(1);                  // what node 1 holds as its ControlPlane, until it crashes
//! let heard = Arc::new(Mutex::new(None));
//! let hears = Arc::clone(&heard);
//! let new = NewSession {
//!     node: plane.node(), addr: ([127, 0, 0, 1], 7001).into(), zone: String::new(), ordinal: 1, weight: 100,
//!     versions: Versions { min: 1, max: 1 },
//! };
//! plane.propose(Command::RegisterSession(new), Box::new(move |outcome| *hears.lock().unwrap() = Some(outcome)));
//! raft.advance(50);                           // callbacks come in here, on this thread
//! assert!(matches!(*heard.lock().unwrap(), Some(Outcome::Answered(_))));
//!
//! let leader = raft.leader().unwrap();
//! raft.isolate(leader);                       // cut both ways from all others
//! raft.advance(2_000);
//! assert_ne!(raft.leader(), Some(leader));
//! raft.heal();
//! raft.crash(1);                              // its handle is dead; its disk has what was synced
//! raft.restart(1);
//! raft.advance(1_000);
//! assert_eq!(raft.map(1).version(), raft.map(0).version());
//! ```
//!
//! A simulator with a clock of its own calls `advance` up to the time of its next event, and then handles the event. What a
//! callback brings is to be put into a queue of the simulator's: a callback may propose, but it may not advance.
//!
//! A pause (SIGSTOP) is [`Simulation::hold`]: what is sent to and from the node waits. Its own timers go on, so that it may stand
//! for election while nobody hears it; a real pause is tested with real threads.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chappe_schema::id::{Millis, NodeUid};
use tokio::runtime::Runtime;

use super::{
    Consensus, Home, Settings, Vitals,
    bootstrap::Group,
    log::simulated::Platter,
    memory::{Hub, Random},
    pace::Pace,
    voters::Seat,
};
use crate::{
    control::ControlPlane,
    ownership::{ClusterId, Map},
};

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything random comes from.
    pub seed: u64,
    /// Nodes that vote from the beginning: those with the lowest ordinals.
    pub voters: u32,
    /// Nodes beside them, which follow, and are made voters as the cluster grows.
    pub others: u32,
    /// Partitions: a power of two.
    pub partitions: u32,
    /// How fast it beats.
    pub pace: Pace,
    /// Microseconds that a message takes, from and to.
    pub delay: (u64, u64),
    /// Microseconds that a sync takes, from and to.
    pub sync: (u64, u64),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 0,
            voters: 3,
            others: 0,
            partitions: 64,
            pace: Pace::PROMPT,
            delay: (100, 2_000),
            sync: (100, 2_000),
        }
    }
}

/// A control plane of several nodes. Nodes are named by their ordinals, from 0.
pub struct Simulation {
    // Dropped before the runtime that they run on.
    nodes: Vec<Node>,
    hub: Hub,
    group: Group,
    first: BTreeMap<u64, Seat>,
    runtime: Runtime,
    began: tokio::time::Instant,
}

struct Node {
    uid: NodeUid,
    settings: Settings,
    platter: Platter,
    life: Option<Consensus>,
}

impl Simulation {
    /// Starts all nodes. A leader is known after a second or so.
    ///
    /// # Panics
    /// When the system gives no runtime, or the plan makes no sense.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O needs nothing of the system");
        let began = runtime.block_on(async { tokio::time::Instant::now() });
        let mut random = Random::new(plan.seed);
        let hub = Hub::new(random.below(u64::MAX));
        hub.weather(plan.delay, 0);
        let node = |ordinal: u32| {
            let platter = Platter::default();
            platter.slow(plan.sync, random.below(u64::MAX));
            let seat = Seat { ordinal, zone: format!("zone-{}", ordinal % 3) };
            let settings = Settings { seat, pace: plan.pace, partitions: plan.partitions, version: 1 };
            Node { uid: NodeUid(random.below(u64::MAX)), settings, platter, life: None }
        };
        let nodes: Vec<Node> = (0..plan.voters + plan.others).map(node).collect();
        let voters = nodes.iter().take(plan.voters as usize);
        let first = voters.map(|node| (node.uid.0, node.settings.seat.clone())).collect();
        let group = Group { cluster: ClusterId(u128::from(plan.seed) + 1), generation: 1 };
        let mut simulation = Self { nodes, hub, group, first, runtime, began };
        for ordinal in 0..plan.voters + plan.others {
            // Processes do not start in the same microsecond.
            simulation.advance(u64::from(ordinal) * 7 % 40);
            simulation.start(ordinal, ordinal < plan.voters);
        }
        simulation
    }

    /// Milliseconds since the beginning.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.runtime.block_on(async { self.began.elapsed().as_millis() as Millis })
    }

    /// Time passes, and everything happens that is due in it.
    pub fn advance(&mut self, by: Millis) {
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(by)).await });
    }

    /// A node's uid.
    #[must_use]
    pub fn node(&self, ordinal: u32) -> NodeUid {
        self.nodes[ordinal as usize].uid
    }

    /// How many nodes there are, crashed ones included.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// What a node holds as its control plane, until it crashes.
    ///
    /// # Panics
    /// When it has crashed.
    #[must_use]
    pub fn plane(&self, ordinal: u32) -> Arc<dyn ControlPlane> {
        Arc::new(self.life(ordinal).expect("the node has crashed").clone())
    }

    /// Whether a node runs.
    #[must_use]
    pub fn runs(&self, ordinal: u32) -> bool {
        self.life(ordinal).is_some()
    }

    /// The map as a node knows it; empty while it is crashed.
    #[must_use]
    pub fn map(&self, ordinal: u32) -> Map {
        self.life(ordinal).map(ControlPlane::map).unwrap_or_default()
    }

    /// A node's part in numbers; none while it is crashed.
    #[must_use]
    pub fn vitals(&self, ordinal: u32) -> Option<Vitals> {
        self.life(ordinal).and_then(Consensus::vitals)
    }

    /// The node that leads in the highest term.
    #[must_use]
    pub fn leader(&self) -> Option<u32> {
        let leads = |ordinal: &u32| self.vitals(*ordinal).filter(|vitals| vitals.leads).map(|vitals| vitals.term);
        (0..self.nodes()).filter_map(|ordinal| Some((leads(&ordinal)?, ordinal))).max().map(|(_, ordinal)| ordinal)
    }

    /// A node's process is killed and its power cut: its disk keeps what was synced.
    pub fn crash(&mut self, ordinal: u32) {
        let node = &mut self.nodes[ordinal as usize];
        node.platter.crash();
        self.hub.detach(node.uid);
        if let Some(life) = node.life.take() {
            self.runtime.spawn(async move { life.stop().await });
        }
    }

    /// A crashed node's disk is lost. It starts as another node.
    pub fn wipe(&mut self, ordinal: u32) {
        self.crash(ordinal);
        let node = &mut self.nodes[ordinal as usize];
        node.platter.wipe();
        node.uid = NodeUid(node.uid.0.rotate_left(17) ^ 0x5eed);
    }

    /// A crashed node starts with what its disk has.
    pub fn restart(&mut self, ordinal: u32) {
        self.start(ordinal, false);
    }

    /// Nothing passes from one node to another any more.
    pub fn cut(&mut self, from: u32, to: u32) {
        self.hub.cut(self.node(from), self.node(to));
    }

    /// What one node sends to another waits.
    pub fn hold_link(&mut self, from: u32, to: u32) {
        self.hub.hold(self.node(from), self.node(to));
    }

    /// A link passes again, and what waits at it.
    pub fn open(&mut self, from: u32, to: u32) {
        self.hub.open(self.node(from), self.node(to));
    }

    /// A node is cut off from all others, both ways.
    pub fn isolate(&mut self, ordinal: u32) {
        for other in (0..self.nodes()).filter(|other| *other != ordinal) {
            self.cut(ordinal, other);
            self.cut(other, ordinal);
        }
    }

    /// What a node sends, and what is sent to it, waits.
    pub fn hold(&mut self, ordinal: u32) {
        for other in (0..self.nodes()).filter(|other| *other != ordinal) {
            self.hold_link(ordinal, other);
            self.hold_link(other, ordinal);
        }
    }

    /// All links pass again, and nothing is lost.
    pub fn heal(&mut self) {
        self.hub.heal();
    }

    /// How long messages take from now on, in microseconds, and how many of a thousand are lost.
    pub fn weather(&mut self, delay: (u64, u64), loss: u64) {
        self.hub.weather(delay, loss);
    }

    /// A planted bug: from now on the node's disk says that it has synced, and has not. What a simulator should find.
    pub fn lie(&mut self, ordinal: u32) {
        self.nodes[ordinal as usize].platter.lie();
    }

    fn life(&self, ordinal: u32) -> Option<&Consensus> {
        self.nodes[ordinal as usize].life.as_ref()
    }

    fn start(&mut self, ordinal: u32, first: bool) {
        let node = &mut self.nodes[ordinal as usize];
        let (hub, group, uid) = (self.hub.clone(), self.group, node.uid);
        let voters = first.then(|| self.first.clone());
        let (disk, settings) = (Arc::new(node.platter.mount()), node.settings.clone());
        let started = self.runtime.block_on(async move {
            let life = Consensus::new(Home::open_as(disk, uid).await?, Arc::new(hub.port(uid)), settings);
            hub.attach(uid, life.clone());
            life.enter_with(group, voters).await?;
            std::io::Result::Ok(life)
        });
        node.life = Some(started.expect("a disk in memory does not fail"));
    }
}

#[cfg(test)]
mod tests;
