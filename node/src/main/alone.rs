//! A node that is alone on a store which nodes could share: a cluster with one voter. The code is that of a cluster, fences and
//! all; what another node would decide with it, it decides with itself.
//!
//! Its data directory holds its name and Raft's log, a few hundred kilobytes. Who loses it keeps the history, which is in the
//! store, and says `--force-new-cluster`.

use std::{future::Future, net::SocketAddr, path::Path, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use chappe_cluster::{
    consensus::{
        Consensus, Home, Settings,
        log::engine::Folder,
        pace::Pace,
        thread::Thread,
        transport::{Reply, Request, Transport, Unasked},
        voters::Seat,
    },
    control::ControlPlane,
    ownership::{ClusterGeneration, Versions},
    process::files,
};
use chappe_node::{
    node::{self, Between, Introduction, Join, Node, Peers},
    store::{cql::Cql, generation_of},
};
use chappe_schema::id::{NodeUid, SessionId, partitions};
use tokio::time::sleep;

use super::{Config, VERSION};

/// Where Raft's part of the data directory is.
const RAFT: &str = "raft";

/// What the embedded log has in the same place.
const EMBEDDED: &str = "CHAPPE";

/// What this program speaks with others of its kind.
const PROTOCOL: Versions = Versions { min: VERSION.protocol_min as u16, max: VERSION.protocol_max as u16 };

/// Between two looks whether the partitions are owned.
const LOOK: Duration = Duration::from_millis(20);

/// A cluster of one.
pub(super) struct Alone {
    consensus: Consensus,
    thread: Thread,
}

/// The ways to other nodes, of which there are none.
struct Nobody;

/// A directory with a log of its own is not taken for one without.
pub(super) fn check_directory(data_dir: &Path) -> anyhow::Result<()> {
    if data_dir.join(EMBEDDED).exists() {
        bail!(
            "{} holds an embedded log, which a server with server.store = \"cql\" would not serve; choose another directory",
            data_dir.display()
        );
    }
    Ok(())
}

impl Transport for Nobody {
    fn ask(&self, _: NodeUid, _: Request) -> Pin<Box<dyn Future<Output = Result<Reply, Unasked>> + Send>> {
        Box::pin(async { Err(Unasked::Unreachable) })
    }

    fn peers(&self) -> Vec<NodeUid> {
        Vec::new()
    }
}

impl Peers for Nobody {
    fn send(&self, _: SessionId, _: Between) {}
}

impl Alone {
    /// Finds the cluster of this store, or begins it.
    pub(super) async fn begin(cql: &Cql, data_dir: &Path, force: Option<ClusterGeneration>) -> anyhow::Result<Self> {
        check_directory(data_dir)?;
        files::make_private(data_dir)
            .with_context(|| format!("cannot create the data directory {}", data_dir.display()))?;
        let thread = Thread::start("raft").context("Raft's thread cannot start")?;
        let (path, meta) = (data_dir.join(RAFT), cql.clone());
        let begin = async move {
            let disk = tokio::task::spawn_blocking(move || Folder::open(&path)).await??;
            let home = Home::open(Arc::new(disk)).await?;
            let seat = Seat { ordinal: 0, zone: String::new() };
            let settings =
                Settings { seat, pace: Pace::PROMPT, partitions: partitions() as u32, version: PROTOCOL.max };
            let consensus = Consensus::new(home, Arc::new(Nobody), settings);
            consensus.find(&meta, force).await?;
            anyhow::Ok(consensus)
        };
        let consensus = thread.handle().spawn(begin).await.context("Raft ended while it started")??;
        Ok(Self { consensus, thread })
    }

    /// Starts the node, and waits until it owns everything. What it does not own yet its gateway waits for.
    pub(super) async fn join(
        &self,
        cql: Cql,
        config: &Config,
        refused: Arc<dyn Fn(String) + Send + Sync>,
    ) -> anyhow::Result<Arc<Node>> {
        let group = self.consensus.group().context("the node takes part in no cluster")?;
        let before = self.consensus.map().session_of(self.consensus.node());
        let node = Node::join(Join {
            config: config.node.clone(),
            me: self.introduction(config.gateway.listen),
            shared: Arc::new(cql),
            generation: generation_of(group),
            plane: Arc::new(self.consensus.clone()),
            peers: Arc::new(Nobody),
            clock: Arc::new(node::wall_clock),
            refused,
        });
        loop {
            let map = self.consensus.map();
            let mine = map.session_of(self.consensus.node()).filter(|session| Some(*session) > before);
            if mine.is_some_and(|session| map.owned_by(session).count() == map.partitions() as usize) {
                return Ok(node);
            }
            sleep(LOOK).await;
        }
    }

    fn introduction(&self, addr: SocketAddr) -> Introduction {
        Introduction {
            node: self.consensus.node(),
            ordinal: 0,
            addr,
            zone: String::new(),
            weight: 1,
            versions: PROTOCOL,
        }
    }

    /// Resolves, with the reason, when the process must end.
    pub(super) async fn failed(&self) -> String {
        format!("Raft cannot go on: {}", self.consensus.failed().await)
    }

    /// Ends it, when the node has stopped.
    pub(super) async fn stop(self) {
        let Self { consensus, thread } = self;
        let stopping = thread.handle().spawn(async move { consensus.stop().await });
        // It ends with the thread at the latest.
        let _ = stopping.await;
        let _ = tokio::task::spawn_blocking(move || drop(thread)).await;
    }
}
