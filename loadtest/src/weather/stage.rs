//! What the weather happens to: one server, or a cluster of processes.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

use anyhow::Context;
use tempfile::TempDir;
use uuid::Uuid;

use super::{clock::Clock, dice::Dice, fault::Setting, network::Network, volume::Volume};
use crate::{
    client::token::Signer,
    local::{self, Cluster, STORE, Which},
    server::{Server, Setup},
};

/// Nodes and gateways of a cluster.
const NODES: u16 = 3;
const GATEWAYS: u16 = 2;

/// What is needed to set the stage.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Where `chappe-node` and `chappe-gateway` are; default: beside this program.
    pub binaries: Option<PathBuf>,
    /// A CQL server, for a cluster.
    pub cql: Option<String>,
    /// Three CQL servers of one ring, with commas between them, and their processes.
    pub ring: Option<String>,
    /// See there.
    pub ring_processes: Vec<u32>,
    /// Whether one server's disk is to be filled: it is a small one then, in memory.
    pub small_disk: bool,
}

/// Bytes of such a disk: some minutes of talk fit on it many times over.
const DISK_BYTES: u64 = 3 << 30;

/// See the module's documentation.
#[derive(Debug)]
pub enum Stage {
    /// One server.
    One(Box<One>),
    /// A cluster.
    Many(Box<Many>),
}

/// One server.
#[derive(Debug)]
pub struct One {
    /// It.
    pub server: Server,
    /// Its clock, where it can be set.
    pub clock: Option<Clock>,
    /// Its disk, where that is a small one.
    pub volume: Option<Volume>,
    _home: TempDir,
}

/// A cluster.
#[derive(Debug)]
pub struct Many {
    /// It.
    pub cluster: Cluster,
    /// What people talk in, of which somebody is an owner.
    pub conversations: Vec<Uuid>,
    /// The processes of its CQL servers, where there are several.
    pub replicas: Vec<u32>,
    network: Option<Arc<Network>>,
    _home: TempDir,
}

impl Stage {
    /// Starts everything.
    ///
    /// # Errors
    /// With the last words of whoever did not start.
    pub async fn set(setting: Setting, plan: &Plan) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("chappe-weather-").tempdir()?;
        let clocks = Clock::available().is_ok();
        if setting == Setting::One {
            let clock = clocks.then(|| Clock::new(&home.path().join("clock"))).transpose()?;
            let disk = home.path().join("disk");
            std::fs::create_dir(&disk)?;
            let volume = plan.small_disk.then(|| Volume::mount(&disk, DISK_BYTES)).transpose()?;
            let text = |(name, value): (&str, PathBuf)| (name.to_owned(), value.to_string_lossy().into_owned());
            let setup = Setup {
                binary: plan.binaries.as_ref().map(|folder| folder.join("chappe-node")),
                data_dir: Some(disk.join("data")),
                unlimited: true,
                env: clock.iter().flat_map(Clock::environment).map(text).collect(),
                ..Setup::default()
            };
            let server = Server::start(setup).await?;
            return Ok(Self::One(Box::new(One { server, clock, volume, _home: home })));
        }
        let hosts = usize::from(NODES + GATEWAYS);
        let network = (setting == Setting::Network).then(|| Network::make(hosts)).transpose()?.map(Arc::new);
        let replicas = plan.ring_processes.clone();
        let plan = local::Plan {
            nodes: NODES,
            gateways: GATEWAYS,
            cql: Some(match setting {
                Setting::Replicas => plan.ring.clone().context("replicas are of three CQL servers (--cql3)")?,
                _ => plan.cql.clone().context("a cluster needs a CQL server (--cql)")?,
            }),
            dir: home.path().to_owned(),
            port: local::free_ports(NODES + GATEWAYS)?,
            unlimited: true,
            binaries: plan.binaries.clone(),
            replicas: if setting == Setting::Replicas { 3 } else { 1 },
            node_sets: Vec::new(),
            network: network.clone(),
            relay: setting != Setting::Replicas,
            clocks: clocks && network.is_none(),
        };
        let cluster = Cluster::start(plan).await?;
        Ok(Self::Many(Box::new(Many { cluster, conversations: Vec::new(), replicas, network, _home: home })))
    }

    /// Where clients connect.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one.server.url()],
            Self::Many(many) => many.cluster.urls(),
        }
    }

    /// Signs tokens that are accepted.
    ///
    /// # Errors
    /// When there is no secret.
    pub fn signer(&self) -> anyhow::Result<Signer> {
        match self {
            Self::One(one) => one.server.signer(),
            Self::Many(many) => many.cluster.signer(),
        }
    }

    /// People talk in these.
    pub fn talks_in(&mut self, conversations: Vec<Uuid>) {
        if let Self::Many(many) = self {
            many.conversations = conversations;
        }
    }

    /// Waits until everybody is there again and everything is owned.
    ///
    /// # Errors
    /// When that does not come, with how it is.
    pub async fn whole(&self) -> anyhow::Result<()> {
        if let Self::Many(many) = self {
            let whole = |seen: &local::Overview| {
                seen.nodes.len() == usize::from(NODES)
                    && seen.nodes.iter().all(|node| node.up)
                    && seen.gateways.len() == usize::from(GATEWAYS)
                    && seen.leader.is_some()
                    && seen.is_settled()
            };
            many.cluster.wait(whole).await?;
        }
        Ok(())
    }

    /// The ends of all logs.
    #[must_use]
    pub fn last_words(&self) -> String {
        match self {
            Self::One(one) => one.server.last_words(),
            Self::Many(many) => many.cluster.last_words(),
        }
    }

    /// Ends everything.
    ///
    /// # Errors
    /// When something does not end.
    pub async fn end(self) -> anyhow::Result<()> {
        match self {
            Self::One(mut one) => one.server.terminate().await.map(drop),
            Self::Many(many) => many.cluster.stop().await,
        }
    }
}

impl Many {
    pub(super) fn nodes(&self) -> usize {
        usize::from(NODES)
    }

    pub(super) fn gateways(&self) -> usize {
        usize::from(GATEWAYS)
    }

    pub(super) fn name(&self, which: Which) -> String {
        match which {
            Which::Node(node) => format!("node {node}"),
            Which::Gateway(gateway) => format!("gateway {gateway}"),
        }
    }

    /// The owner of one of the conversations.
    pub(super) async fn owner(&self, dice: &mut Dice) -> anyhow::Result<usize> {
        let conversation = if self.conversations.is_empty() { None } else { Some(dice.pick(&self.conversations)) };
        self.cluster.owner_of(&conversation.context("nobody talks")?.to_string()).await
    }

    /// Raft's leader.
    pub(super) async fn leader(&self) -> anyhow::Result<usize> {
        let leads = |seen: &local::Overview| {
            let leader = seen.nodes.iter().find(|node| Some(&node.uid) == seen.leader.as_ref());
            leader.map(|node| node.ordinal as usize)
        };
        let seen = self.cluster.wait(|seen| leads(seen).is_some()).await?;
        leads(&seen).context("nobody leads")
    }

    pub(super) fn network(&self) -> anyhow::Result<&Network> {
        self.network.as_deref().context("there is no network here")
    }

    pub(super) fn store_address(&self) -> anyhow::Result<Ipv4Addr> {
        Ok(self.network()?.here(STORE))
    }

    /// All nodes, or all gateways, but this one.
    pub(super) fn addresses(&self, nodes: bool, but: Which) -> Vec<Ipv4Addr> {
        let all: Vec<Which> = match nodes {
            true => (0..self.nodes()).map(Which::Node).collect(),
            false => (0..self.gateways()).map(Which::Gateway).collect(),
        };
        all.into_iter().filter(|which| *which != but).map(|which| self.cluster.address(which)).collect()
    }
}
