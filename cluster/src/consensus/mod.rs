//! Raft around the map of owners. Outside of this room nobody knows that it is Raft: a node holds a [`Consensus`] as its
//! [`ControlPlane`].
//!
//! In reading order:
//!
//! - [`bootstrap`]: how a node finds its cluster, or begins one, so that there are never two
//! - [`voters`]: which nodes vote
//! - [`pace`]: how fast it beats, and why
//! - [`transport`]: how nodes ask each other (`memory` in one process)
//! - [`log`]: what is on the disk
//! - [`observer`]: how a gateway reads the map
//! - [`thread`]: its own thread and runtime, so that load does not fake a death
//!
//! and behind them `machine` (the replicated state as Raft drives it), `board` (where the newest map hangs), `reign` (the
//! loop that leads when this node does), `view` and `follow` (how those hear of maps whom Raft does not tell), `propose`,
//! `network`, `wire`, `stored`.
//!
//! Every node runs Raft; those that are not among its members take no part and cost nothing. A node that becomes a voter is first
//! a learner. Nodes without a vote, and all gateways, follow the map from the voters.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chappe_schema::id::{NodeUid, SessionId};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};

use self::{
    bootstrap::Group,
    log::{Log, disk::Disk},
    machine::Machine,
    network::Network,
    pace::Pace,
    propose::Pledge,
    reign::Event,
    transport::{Reply, Request, Transport},
    types::{Metrics, Raft},
    view::View,
    voters::Seat,
    wire::{Ask, Say, Status},
};
use crate::{
    control::{ControlPlane, Done, Health, Outcome, Watcher},
    ownership::{Command, Map},
};

mod board;
pub mod bootstrap;
mod follow;
pub mod log;
mod machine;
#[cfg(any(test, feature = "simulation"))]
pub mod memory;
mod meter;
mod network;
pub mod observer;
pub mod pace;
mod propose;
mod reign;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod stored;
pub mod thread;
pub mod transport;
mod types;
mod view;
pub mod voters;
mod wire;

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its number, and what fails together with it.
    pub seat: Seat,
    /// How fast the cluster beats.
    pub pace: Pace,
    /// How many partitions a cluster that it begins has: a power of two.
    pub partitions: u32,
    /// The version that a cluster which it begins speaks at first.
    pub version: u16,
}

/// A node's part in the cluster's decisions. Clones are the same.
#[derive(Clone)]
pub struct Consensus {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeUid,
    settings: Settings,
    view: Arc<View>,
    /// Until the node enters its group.
    waiting: Mutex<Option<(Home, mpsc::UnboundedReceiver<Event>)>>,
    running: OnceLock<Running>,
    events: mpsc::UnboundedSender<Event>,
    /// Whether this node leads, and hears keepalives.
    reigns: AtomicBool,
    /// Whether this node leads, and no majority has answered for some time.
    deaf: Arc<AtomicBool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Running {
    group: Group,
    raft: Raft,
}

/// What a node's disk knows of its part: the node's name first of all, which its way to the others is made for.
pub struct Home {
    node: NodeUid,
    group: Option<Group>,
    log: Log,
    snapshot: Option<Bytes>,
}

impl Home {
    /// Reads a disk. A node that starts for the first time gets its name here, and has it for as long as it has its disk.
    ///
    /// # Errors
    /// When the disk cannot be read or written, or holds what was not written.
    pub async fn open(disk: Arc<dyn Disk>) -> io::Result<Self> {
        Self::open_as(disk, NodeUid(rand::random())).await
    }

    async fn open_as(disk: Arc<dyn Disk>, name: NodeUid) -> io::Result<Self> {
        let found = log::load(Arc::clone(&disk))?;
        if found.node.is_none() {
            log::name(&*disk, name).await?;
        }
        Ok(Self { node: found.node.unwrap_or(name), group: found.group, log: found.log, snapshot: found.snapshot })
    }

    /// Who the node is.
    #[must_use]
    pub fn node(&self) -> NodeUid {
        self.node
    }

    /// The group that it took part in.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.group
    }
}

impl Consensus {
    /// A node that takes no part yet: it answers others that it knows no cluster.
    #[must_use]
    pub fn new(home: Home, transport: Arc<dyn Transport>, settings: Settings) -> Self {
        let (events, received) = mpsc::unbounded_channel();
        let shared = Shared {
            node: home.node,
            settings,
            view: Arc::new(View::new(transport)),
            waiting: Mutex::new(Some((home, received))),
            running: OnceLock::new(),
            events,
            reigns: AtomicBool::new(false),
            deaf: Arc::default(),
            tasks: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes part in a group: what the disk knows of another one is forgotten. With `begin` this node is its first and only
    /// voter. To be called once, as `bootstrap` has decided.
    ///
    /// # Errors
    /// When the disk fails, or holds what cannot be read.
    pub async fn enter(&self, group: Group, begin: bool) -> io::Result<()> {
        let alone = || BTreeMap::from([(self.shared.node.0, self.shared.settings.seat.clone())]);
        self.enter_with(group, begin.then(alone)).await
    }

    /// Enters; as one of these first voters, if the group has none yet.
    async fn enter_with(&self, group: Group, first: Option<BTreeMap<u64, Seat>>) -> io::Result<()> {
        let shared = &self.shared;
        let Some((Home { log, snapshot, group: before, .. }, events)) = shared.waiting.lock().take() else {
            return Err(io::Error::other("a node enters its group once"));
        };
        let same = before == Some(group);
        shared.view.enter(group);
        if !same {
            log.enter(group).await?;
        }
        let board = Arc::clone(&shared.view.board);
        let machine = Machine::new(Arc::clone(log.disk()), board, snapshot.filter(|_| same))?;
        let network = Network {
            group,
            transport: Arc::clone(&shared.view.transport),
            deaf: Arc::clone(&shared.deaf),
            silence: Duration::from_millis(shared.settings.pace.silence()),
        };
        let config = shared.settings.pace.config(shared.settings.seat.ordinal).validate().map_err(io::Error::other)?;
        let raft = Raft::new(shared.node.0, Arc::new(config), network, log, machine).await.map_err(io::Error::other)?;
        if let Some(first) = first
            && !raft.is_initialized().await.map_err(io::Error::other)?
        {
            raft.initialize(first).await.map_err(io::Error::other)?;
        }
        let _ = shared.running.set(Running { group, raft });
        let mut tasks = vec![tokio::spawn(reign::drive(Arc::clone(shared), events))];
        tasks.extend((0..follow::STREAMS).map(|stream| tokio::spawn(follow::stream(Arc::clone(shared), stream))));
        *shared.tasks.lock() = tasks;
        Ok(())
    }

    /// The group that this node takes part in, once it does.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.shared.running.get().map(|running| running.group)
    }

    /// Answers another node, or a gateway. The future is to be run to its end, whether or not the other still waits.
    pub async fn serve(&self, from: NodeUid, request: Request) -> Reply {
        Reply(self.shared.serve(from, request).await)
    }

    /// Ends this node's part: nothing is decided or answered here any more.
    pub async fn stop(&self) {
        for task in std::mem::take(&mut *self.shared.tasks.lock()) {
            task.abort();
        }
        self.shared.reigns.store(false, Ordering::Relaxed);
        if let Some(running) = self.shared.running.get() {
            // It was stopping by itself.
            let _ = running.raft.shutdown().await;
        }
    }

    /// Waits until Raft cannot go on, because its disk failed or the cluster was founded anew without this node, and says why.
    /// A node that it happens to ends its process: what it had voted for or taken over it cannot tell any more.
    pub async fn failed(&self) -> String {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let Some(running) = self.shared.running.get() else { continue };
            if let Some(group) = self.shared.view.superseded.get() {
                return format!(
                    "the cluster was founded anew ({}), and this node is of the founding before",
                    group.generation
                );
            }
            let metrics = running.raft.metrics();
            // When it panicked it could not say so.
            let gone = metrics.has_changed().is_err();
            let state = metrics.borrow().running_state.clone();
            match state {
                Err(openraft::error::Fatal::Stopped) => continue,
                Err(fatal) => return fatal.to_string(),
                Ok(()) if gone => return "a bug has stopped it".to_owned(),
                Ok(()) => {}
            }
        }
    }

    /// What a dashboard shows of it.
    #[must_use]
    pub fn vitals(&self) -> Option<Vitals> {
        self.shared.vitals()
    }
}

/// A node's part in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Raft's term.
    pub term: u64,
    /// Whether this node leads, is heard by a majority, and knows all that was decided before.
    pub leads: bool,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeUid>,
    /// Whether it votes.
    pub votes: bool,
    /// Who votes, as far as it knows.
    pub voters: Vec<NodeUid>,
    /// The last entry that it has applied.
    pub applied: u64,
    /// The last entry that it has.
    pub last: u64,
    /// The last entry of its snapshot.
    pub snapshot: u64,
}

impl ControlPlane for Consensus {
    fn node(&self) -> NodeUid {
        self.shared.node
    }

    fn propose(&self, command: Command, done: Done) {
        match self.shared.running.get() {
            Some(_) => self.shared.tell(Event::Propose { command, pledge: Pledge(Some(done)) }),
            None => done(Outcome::Unavailable),
        }
    }

    fn map(&self) -> Map {
        self.shared.view.board.map()
    }

    fn watch(&self, watcher: Watcher) {
        self.shared.view.board.watch(watcher);
    }

    fn leader(&self) -> Option<NodeUid> {
        self.shared.leader()
    }

    fn keepalive(&self, session: SessionId, minute: u64) {
        self.shared.tell(Event::Keepalive { session, minute });
    }

    fn health(&self, node: NodeUid, health: Health) {
        self.shared.tell(Event::Health { node, health });
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        // Nobody listens when the node is on its way out; a proposal's pledge is kept all the same.
        let _ = self.events.send(event);
    }

    /// None while it takes no part, or none any more.
    fn metrics(&self) -> Option<Metrics> {
        let metrics = self.running.get()?.raft.metrics();
        let alive = metrics.has_changed().is_ok();
        let metrics = metrics.borrow().clone();
        (alive && metrics.running_state.is_ok()).then_some(metrics)
    }

    fn vitals(&self) -> Option<Vitals> {
        let metrics = self.metrics()?;
        Some(meter::vitals(&metrics, self.reigns.load(Ordering::Relaxed), self.node.0, self.leader()))
    }

    fn is_voter(&self) -> bool {
        self.metrics().is_some_and(|metrics| metrics.membership_config.voter_ids().any(|voter| voter == self.node.0))
    }

    /// Whether Raft tells this node what is decided: it has a vote, and a leader. One that lost its vote while it was away does
    /// not know, and nobody tells it.
    fn is_served(&self) -> bool {
        self.is_voter() && self.metrics().is_some_and(|metrics| metrics.current_leader.is_some())
    }

    fn leader(&self) -> Option<NodeUid> {
        let rumour = self.view.rumour.lock().clone();
        let own = self.metrics().and_then(|metrics| {
            let leader = metrics.current_leader.filter(|_| self.is_voter())?;
            (metrics.current_term >= rumour.term).then_some(NodeUid(leader))
        });
        own.or(rumour.leader)
    }

    fn status(&self) -> Status {
        let Some(metrics) = self.metrics() else { return Status::default() };
        let rumour = self.view.rumour.lock().clone();
        let voters: Vec<NodeUid> = metrics.membership_config.voter_ids().map(NodeUid).collect();
        Status {
            group: self.running.get().map(|running| running.group),
            term: metrics.current_term.max(rumour.term),
            leader: self.leader(),
            voters: if voters.is_empty() { rumour.voters } else { voters },
        }
    }

    async fn serve(&self, from: NodeUid, request: Request) -> Say {
        let Request { group, ask } = request;
        if let Ask::Status = ask {
            return Say::Status(self.status());
        }
        let Some(running) = self.running.get().filter(|running| Some(running.group) == group) else {
            return Say::Elsewhere;
        };
        match ask {
            // An error of these ends Raft here, and the node with it.
            Ask::Append(request) => running.raft.append_entries(request).await.map_or(Say::Elsewhere, Say::Append),
            Ask::Vote(request) => running.raft.vote(request).await.map_or(Say::Elsewhere, Say::Vote),
            Ask::Snapshot(request) => {
                running.raft.install_snapshot(request).await.map_or(Say::Elsewhere, Say::Snapshot)
            }
            Ask::Propose(command) => self.serve_proposal(command).await,
            Ask::Keepalive { session, minute } => {
                if !self.reigns.load(Ordering::Relaxed) {
                    return Say::NotLeader(self.leader());
                }
                tracing::trace!(event = "keepalive", %from, session, minute);
                self.tell(Event::Heard { session, minute });
                Say::Heard
            }
            Ask::MapSince(version) => {
                let _ = tokio::time::timeout(follow::HELD, self.view.board.newer(version)).await;
                Say::Map { update: self.view.board.since(version).map(Box::new), status: self.status() }
            }
            Ask::Status => Say::Status(self.status()),
        }
    }
}

#[cfg(test)]
mod tests;
