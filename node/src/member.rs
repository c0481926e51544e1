//! A node of a cluster, whole: Raft around the map, on a thread of its own, and under it the shards and their sessions.
//!
//! It starts in two steps. A [`Candidate`] has read Raft's part of its disk and knows its name; it answers other nodes, and
//! takes part in nothing. [`Candidate::enter`] finds the cluster, or begins it, and then lives in it as a [`Member`]. A cluster
//! of one node is a cluster like any other: one voter, the same code, fences on.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use chappe_cluster::{
    consensus::{
        self, Consensus,
        bootstrap::{
            Group,
            find::{self, ClusterMeta},
        },
        log::{disk::Disk, engine::Folder},
        pace::Pace,
        thread::Thread,
        transport::Transport,
        voters::Seat,
    },
    control::ControlPlane,
    link::{
        GatewayPort, Links, NodePort,
        memory::{MapLinks, Nodes},
    },
    ownership::{ClusterGeneration, Versions},
    process::{
        config::Problem,
        health::{Health, Part},
    },
};
use chappe_schema::{
    id::{GatewayId, Generation, Millis, NodeUid, SessionId, partitions},
    limit::{WEIGHT_MAX, ZONE_BYTES_MAX},
};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::JoinSet};

use crate::{
    config::Config,
    node::{Between, Introduction, Join, Node, Peers},
    store::{Shared, generation_of},
};

/// The section `[member]`: what a node says of itself where several share a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Membership {
    /// Its number among the nodes. The one with 0 begins the cluster, where there is none.
    pub ordinal: u32,
    /// What fails together with it: voters are spread over zones.
    pub zone: String,
    /// Its share of the partitions, relative to the others'.
    pub weight: u16,
}

impl Default for Membership {
    fn default() -> Self {
        Self { ordinal: 0, zone: String::new(), weight: 100 }
    }
}

impl Membership {
    /// Everything about these settings that would make a start fail. Keys of problems are those of the section `member`.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            let message = format!("{} is not within 1 to {WEIGHT_MAX}", self.weight);
            problems.push(Problem::at("member.weight", message));
        }
        if self.zone.len() > ZONE_BYTES_MAX {
            let message = format!("a zone's name has at most {ZONE_BYTES_MAX} bytes, this one {}", self.zone.len());
            problems.push(Problem::at("member.zone", message));
        }
        problems
    }
}

/// The version of what nodes say to each other; the first.
const VERSION: u16 = 1;

/// Raft's part of a node's data directory.
const RAFT: &str = "raft";

/// How often what a dashboard shows is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Why a node is not in its cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its disk, or a thread for Raft.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It must not take part, or its disk failed on the way.
    #[error(transparent)]
    Find(#[from] find::Error),
    /// Raft's thread has ended.
    #[error("Raft's thread has ended")]
    Thread,
}

/// A node that knows who it is, and takes part in nothing yet.
pub struct Candidate {
    plane: Consensus,
    membership: Membership,
    /// Last: what runs on it ends with it.
    thread: Thread,
}

/// What a candidate enters its cluster with.
pub struct Enter {
    /// What can be set about the node.
    pub config: Config,
    /// Where others reach it.
    pub addr: SocketAddr,
    /// The log that all share.
    pub shared: Arc<dyn Shared>,
    /// What the same store keeps about the cluster itself.
    pub meta: Arc<dyn ClusterMeta>,
    /// The founding that an operator asks for, when the voters of the one before are lost.
    pub force: Option<ClusterGeneration>,
    /// The ways to other nodes.
    pub peers: Arc<dyn Peers>,
    /// The time.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    /// Called with a sentence when this node must not go on.
    pub refused: Arc<dyn Fn(String) + Send + Sync>,
}

/// A node in its cluster.
pub struct Member {
    node: Arc<Node>,
    plane: Consensus,
    group: Group,
    /// Last: what runs on it ends with it.
    thread: Thread,
}

/// Nobody: the peers of the only node there is.
pub struct Nobody;

impl Peers for Nobody {
    fn send(&self, _: SessionId, _: Between) {}
}

impl Candidate {
    /// Reads Raft's part of a data directory, which is made if need be; whoever calls holds the lock on the directory.
    /// `transport` is called on Raft's own runtime.
    ///
    /// # Errors
    /// With a sentence for the operator, when something of it is damaged, or the system refuses.
    pub async fn open(
        data_dir: &Path,
        membership: Membership,
        pace: Pace,
        transport: impl FnOnce(NodeUid) -> io::Result<Arc<dyn Transport>> + Send + 'static,
    ) -> Result<Self, Error> {
        let folder = data_dir.join(RAFT);
        let disk = tokio::task::spawn_blocking(move || Folder::open(&folder)).await.map_err(|_| Error::Thread)??;
        Self::on(Arc::new(disk), membership, pace, transport).await
    }

    /// [`Candidate::open`] on any disk.
    ///
    /// # Errors
    /// As there.
    pub async fn on(
        disk: Arc<dyn Disk>,
        membership: Membership,
        pace: Pace,
        transport: impl FnOnce(NodeUid) -> io::Result<Arc<dyn Transport>> + Send + 'static,
    ) -> Result<Self, Error> {
        let thread = Thread::start("raft")?;
        let settings = consensus::Settings {
            seat: Seat { ordinal: membership.ordinal, zone: membership.zone.clone() },
            pace,
            partitions: partitions() as u32,
            version: VERSION,
        };
        let begin = async move {
            let home = consensus::Home::open(disk).await?;
            let transport = transport(home.node())?;
            Ok::<_, io::Error>(Consensus::new(home, transport, settings))
        };
        let plane = thread.handle().spawn(begin).await.map_err(|_| Error::Thread)??;
        Ok(Self { plane, membership, thread })
    }

    /// Raft's own runtime: what must not be held up by load runs there.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        self.thread.handle()
    }

    /// Its part in the cluster's decisions: what answers the questions of other nodes.
    #[must_use]
    pub const fn plane(&self) -> &Consensus {
        &self.plane
    }

    /// Finds the cluster, or begins it, and lives in it: on the present runtime, and Raft on its own. It waits for as long as
    /// there is nothing to take part in.
    ///
    /// # Errors
    /// When the node must not take part, or its disk fails.
    pub async fn enter(self, enter: Enter) -> Result<Member, Error> {
        let Self { plane, membership, thread } = self;
        let (finder, meta, force) = (plane.clone(), enter.meta, enter.force);
        let found = thread.handle().spawn(async move { finder.find(&*meta, force).await });
        let group = found.await.map_err(|_| Error::Thread)??;
        let node = Node::join(Join {
            config: enter.config,
            me: Introduction {
                node: plane.node(),
                ordinal: membership.ordinal,
                addr: enter.addr,
                zone: membership.zone,
                weight: membership.weight,
                versions: Versions { min: VERSION, max: VERSION },
            },
            shared: enter.shared,
            generation: generation_of(group),
            plane: Arc::new(plane.clone()),
            peers: enter.peers,
            clock: enter.clock,
            refused: enter.refused,
        });
        Ok(Member { node, plane, group, thread })
    }
}

impl Member {
    /// Its shards, as gateways and other nodes see them.
    #[must_use]
    pub const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its part in the cluster's decisions.
    #[must_use]
    pub const fn plane(&self) -> &Consensus {
        &self.plane
    }

    /// Its cluster, and which founding of it.
    #[must_use]
    pub const fn group(&self) -> Group {
        self.group
    }

    /// Identity of the history that its cluster keeps.
    #[must_use]
    pub fn generation(&self) -> Generation {
        generation_of(self.group)
    }

    /// The way of a gateway in this process to the nodes in this process, to be handed to the gateway
    /// when it starts: this node is among them from now on. To be called within a runtime.
    pub fn connect(&self, nodes: &Nodes) -> impl FnOnce(GatewayId, Arc<dyn GatewayPort>) -> Arc<dyn Links> + use<> {
        let port: Arc<dyn NodePort> = Arc::clone(&self.node) as _;
        nodes.enter(self.plane.node(), &port);
        let (nodes, plane, generation) = (nodes.clone(), self.plane.clone(), self.generation());
        move |id, gateway| MapLinks::join(&nodes, id, gateway, generation, |watcher| plane.watch(watcher)) as _
    }

    /// Shows an operator how the node takes part, for as long as the returned tasks live. It is ready while it has a session;
    /// without a leader what it owns is served as before, so that is only said.
    pub fn report(&self, health: &Health) -> JoinSet<()> {
        let session = health.condition("session", Part::Ready);
        let leader = health.condition("raft_leader", Part::Informational);
        let vote = health.condition("raft_log", Part::Informational);
        let plane = self.plane.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                match plane.map().session_of(plane.node()) {
                    Some(_) => session.ok(),
                    None => {
                        session.failing("the cluster has not given this node a session yet, or has ended its last one")
                    }
                }
                match plane.leader() {
                    Some(_) => leader.ok(),
                    None => {
                        leader.failing("nobody is known to lead: nothing is taken over or moved until somebody does")
                    }
                }
                match plane.vitals() {
                    Some(vitals) if vitals.applied >= vitals.last || !vitals.votes => vote.ok(),
                    Some(vitals) => {
                        vote.failing(format!(
                            "{} of its {} decisions are not applied here",
                            vitals.last - vitals.applied,
                            vitals.last
                        ));
                    }
                    None => vote.failing("Raft does not run"),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        tasks
    }

    /// Waits until the node cannot go on, and says why: Raft has failed, or a shard has ended. Its process ends then.
    pub async fn failed(&self) -> String {
        tokio::select! {
            why = self.plane.failed() => format!("Raft cannot go on: {why}"),
            () = self.node.failed() => "a shard has ended".to_owned(),
        }
    }

    /// Ends its part in peace: the shards flush what only memory knows, and Raft falls silent.
    pub async fn stop(self) {
        self.node.stop().await;
        let plane = self.plane.clone();
        // On its own thread, where its tasks are; if that is gone, so are they.
        let _ = self.thread.handle().spawn(async move { plane.stop().await }).await;
        let thread = self.thread;
        // Its end is waited for.
        let _ = tokio::task::spawn_blocking(move || drop(thread)).await;
    }
}
