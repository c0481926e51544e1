//! What the cluster decides.
//!
//! Mostly one linearisable machine: the production state and the production leader, without Raft around them; whoever is cut
//! off from it, or asks while nobody leads, is answered nothing. In one seed of ten it is the real openraft of three
//! voters on the same clock, with disks that lose at a crash what was not synced.

use std::sync::Arc;

use chappe_cluster::{
    consensus::simulation::{Plan, Simulation},
    control::{
        Answer, Health, Outcome,
        leader::{Leader, Timing},
    },
    ownership::{ClusterId, Command, Founding, Map, Ownership},
};
use chappe_schema::id::{Millis, NodeUid, SessionId};
use parking_lot::Mutex;

/// How often Raft's clock is moved on.
pub const RAFT_MS: Millis = 10;

/// One seed of so many has the real Raft.
const RAFT_EVERY: u64 = 10;

/// What decides, whichever it is.
pub enum Cluster {
    StandIn(Box<Plane>),
    Raft(Box<Raft>),
}

impl Cluster {
    pub fn found(seed: u64, nodes: usize, partitions: usize, now: Millis) -> Self {
        if seed.is_multiple_of(RAFT_EVERY) {
            Self::Raft(Box::new(Raft::found(seed, nodes, partitions)))
        } else {
            Self::StandIn(Box::new(Plane::found(partitions, now)))
        }
    }

    /// Whether it lives on a clock of its own, which is to be moved on ([`advance`](Self::advance)), says everything itself, and
    /// knows whom it cannot reach.
    pub const fn has_a_clock(&self) -> bool {
        matches!(self, Self::Raft(_))
    }

    pub fn uid(&self, node: usize) -> NodeUid {
        match self {
            Self::StandIn(_) => NodeUid(100 + node as u64),
            Self::Raft(raft) => raft.uid(node),
        }
    }

    /// The newest map that there is.
    pub fn map(&self) -> &Map {
        match self {
            Self::StandIn(plane) => plane.map(),
            Self::Raft(raft) => raft.newest(),
        }
    }

    /// A node asks. What it is answered at once, if it is.
    pub fn propose(&mut self, node: usize, life: u32, command: &Command, now: Millis) -> Option<Outcome> {
        match self {
            Self::StandIn(plane) => Some(plane.propose(command, now)),
            Self::Raft(raft) => {
                raft.propose(node, life, command.clone());
                None
            }
        }
    }

    /// An operator asks, through a node that runs; whether the map has changed by it at once.
    pub fn order(&mut self, through: Option<usize>, command: &Command, now: Millis) -> bool {
        match self {
            Self::StandIn(plane) => {
                let before = plane.map().version();
                plane.propose(command, now);
                plane.map().version() > before
            }
            Self::Raft(raft) => {
                if let Some(node) = through {
                    raft.propose(node, u32::MAX, command.clone());
                }
                false
            }
        }
    }

    pub fn keepalive(&mut self, node: usize, session: SessionId, minute: u64, now: Millis) {
        match self {
            Self::StandIn(plane) => plane.keepalive(session, minute, now),
            Self::Raft(raft) => raft.keepalive(node, session, minute),
        }
    }

    /// How a node is, as SWIM has it.
    pub fn health(&mut self, node: usize, health: Health) {
        let uid = self.uid(node);
        match self {
            Self::StandIn(plane) => plane.health(uid, health),
            Self::Raft(raft) => raft.health(node, health),
        }
    }

    /// Whoever leads looks around; whether the map has changed by it.
    pub fn lead(&mut self, now: Millis) -> bool {
        match self {
            Self::StandIn(plane) => plane.lead(now),
            Self::Raft(_) => false,
        }
    }

    /// Its own clock is moved on; what was said meanwhile.
    pub fn advance(&mut self) -> Vec<Said> {
        match self {
            Self::StandIn(_) => Vec::new(),
            Self::Raft(raft) => raft.advance(),
        }
    }

    /// Nobody leads until then.
    pub fn without_leader(&mut self, until: Millis) {
        match self {
            Self::StandIn(plane) => plane.leaderless_until = until,
            Self::Raft(raft) => {
                if let Some(leader) = raft.leader() {
                    raft.isolate(leader);
                }
            }
        }
    }

    pub fn start(&mut self, node: usize, life: u32) {
        self.voters(|raft| raft.start(node, life));
    }

    pub fn crash(&mut self, node: usize) {
        self.voters(|raft| raft.crash(node));
    }

    pub fn isolate(&mut self, node: usize) {
        self.voters(|raft| raft.isolate(node));
    }

    pub fn hold(&mut self, node: usize) {
        self.voters(|raft| raft.hold(node));
    }

    pub fn heal(&mut self) {
        self.voters(Raft::heal);
    }

    /// What happens to voters; the stand-in has none.
    fn voters(&mut self, happens: impl FnOnce(&mut Raft)) {
        if let Self::Raft(raft) = self {
            happens(raft);
        }
    }
}

/// The real Raft.
pub struct Raft {
    simulation: Simulation,
    said: Arc<Mutex<Vec<Said>>>,
    /// The newest map that any node has shown.
    newest: Map,
}

/// What Raft says to a node, in one of its lives.
pub enum Said {
    Map(usize, u32, Map),
    Answer(usize, u32, Command, Outcome),
}

impl Raft {
    /// Three voters who have founded a cluster.
    pub fn found(seed: u64, voters: usize, partitions: usize) -> Self {
        let plan = Plan { seed, voters: voters as u32, partitions: partitions as u32, ..Plan::default() };
        let mut simulation = Simulation::new(plan);
        simulation.advance(3_000);
        let newest = simulation.map(0);
        Self { simulation, said: Arc::default(), newest }
    }

    pub fn uid(&self, node: usize) -> NodeUid {
        self.simulation.node(node as u32)
    }

    pub const fn newest(&self) -> &Map {
        &self.newest
    }

    /// A node begins a life: it hears of every change from now on.
    pub fn start(&mut self, node: usize, life: u32) {
        if !self.simulation.runs(node as u32) {
            self.simulation.restart(node as u32);
        }
        let said = Arc::clone(&self.said);
        let hears = move |map: &Map| said.lock().push(Said::Map(node, life, map.clone()));
        self.simulation.plane(node as u32).watch(Box::new(hears));
    }

    pub fn crash(&mut self, node: usize) {
        self.simulation.crash(node as u32);
    }

    pub fn isolate(&mut self, node: usize) {
        self.simulation.isolate(node as u32);
    }

    pub fn hold(&mut self, node: usize) {
        self.simulation.hold(node as u32);
    }

    pub fn leader(&self) -> Option<usize> {
        self.simulation.leader().map(|leader| leader as usize)
    }

    pub fn heal(&mut self) {
        self.simulation.heal();
    }

    /// A node asks; the answer is said later.
    pub fn propose(&self, node: usize, life: u32, command: Command) {
        if !self.simulation.runs(node as u32) {
            return;
        }
        let (said, asked) = (Arc::clone(&self.said), command.clone());
        let done = move |outcome| said.lock().push(Said::Answer(node, life, asked, outcome));
        self.simulation.plane(node as u32).propose(command, Box::new(done));
    }

    pub fn keepalive(&self, node: usize, session: SessionId, minute: u64) {
        if self.simulation.runs(node as u32) {
            self.simulation.plane(node as u32).keepalive(session, minute);
        }
    }

    /// Every other node learns how one is.
    pub fn health(&self, node: usize, health: Health) {
        let uid = self.uid(node);
        for other in (0..self.simulation.nodes()).filter(|other| *other != node as u32) {
            if self.simulation.runs(other) {
                self.simulation.plane(other).health(uid, health);
            }
        }
    }

    /// Time passes; what was said meanwhile.
    pub fn advance(&mut self) -> Vec<Said> {
        self.simulation.advance(RAFT_MS);
        let said = std::mem::take(&mut *self.said.lock());
        for one in &said {
            if let Said::Map(_, _, map) = one
                && map.version() > self.newest.version()
            {
                self.newest = map.clone();
            }
        }
        said
    }
}

/// One machine in Raft's place.
pub struct Plane {
    state: Ownership,
    index: u64,
    leader: Leader,
    /// Nobody leads until then.
    pub leaderless_until: Millis,
    led: bool,
    down: Vec<NodeUid>,
}

/// Timing of a cluster in a hurry: a seed lasts a minute or two.
const TIMING: Timing = Timing {
    missed_down: 400,
    missed: 8_000,
    grace: 3_000,
    asleep: 1_000,
    calm: 4_000,
    gather: 300,
    gather_max: 1_000,
    plan: 8_000,
    drain: 20_000,
};

impl Plane {
    pub fn found(partitions: usize, now: Millis) -> Self {
        let mut state = Ownership::default();
        let founding = Founding { cluster: ClusterId(1), generation: 1, partitions: partitions as u32, version: 1 };
        state.apply(1, &Command::Found(founding)).expect("an empty state can be founded");
        let leader = Leader::new(TIMING, now, state.map(), []);
        Self { state, index: 1, leader, leaderless_until: 0, led: true, down: Vec::new() }
    }

    pub fn map(&self) -> &Map {
        self.state.map()
    }

    pub fn propose(&mut self, command: &Command, now: Millis) -> Outcome {
        if now < self.leaderless_until {
            return Outcome::Unavailable;
        }
        self.index += 1;
        let result = self.state.apply(self.index, command);
        Outcome::Answered(Answer { version: self.state.map().version(), result })
    }

    pub fn keepalive(&mut self, session: SessionId, minute: u64, now: Millis) {
        self.leader.keepalive(session, minute, now);
    }

    pub fn health(&mut self, node: NodeUid, health: Health) {
        self.down.retain(|down| *down != node);
        if health == Health::Down {
            self.down.push(node);
        }
        self.leader.health(node, health);
    }

    /// The leader looks around; whether the map has changed by it.
    pub fn lead(&mut self, now: Millis) -> bool {
        if now < self.leaderless_until {
            self.led = false;
            return false;
        }
        if !self.led {
            self.led = true;
            self.leader = Leader::new(TIMING, now, self.state.map(), self.down.iter().copied());
        }
        let before = self.map().version();
        while let Some(command) = self.leader.next(now, self.state.map()) {
            self.index += 1;
            // What is refused was overtaken by something else.
            let refused = self.state.apply(self.index, &command).is_err();
            self.leader.settled();
            if refused {
                break;
            }
        }
        self.map().version() > before
    }
}
