//! What is read of the replicated state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use chappe_schema::{
    id::{Epoch, NodeUid, Partition, SessionId},
    wire::Owner,
};
use serde::{Deserialize, Serialize};

use super::{ClusterGeneration, ClusterId, Move, PlanId, Versions};

/// A snapshot of who owns what. A clone shares its memory; it never changes under its reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Map(pub(super) Arc<Contents>);

/// All that is replicated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) version: u64,
    pub(super) identity: Option<(ClusterId, ClusterGeneration)>,
    pub(super) cluster_version: u16,
    /// The live ones.
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// All that are unfenced, and the youngest of those that are fenced.
    pub(super) ended: BTreeMap<SessionId, Ended>,
    /// By number of the partition.
    pub(super) rows: Vec<Row>,
    pub(super) plans: BTreeMap<PlanId, Plan>,
    /// Nodes that left for good, and whether they were released.
    pub(super) retired: BTreeMap<NodeUid, bool>,
    /// The highest number that a plan ever had.
    pub(super) last_plan: PlanId,
}

/// One life of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose life.
    pub node: NodeUid,
    /// Where it can be reached.
    pub addr: SocketAddr,
    /// What fails together with it; empty where nobody said.
    pub zone: String,
    /// Its number among the nodes. Lower ones become voters first.
    pub ordinal: u32,
    /// Its share of the partitions, relative to the others'.
    pub weight: u16,
    /// What it can speak.
    pub versions: Versions,
    /// Whether it holds the drain slot: its partitions move away, none come.
    pub drain: bool,
}

/// A life that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Whose life it was.
    pub node: NodeUid,
    /// The last minute of activity that it is known to have begun: how far a successor reads its activity.
    pub minute: Option<u64>,
    /// Whether its fence is known to be durable at quorum. Until then every new owner fences it first.
    pub fenced: bool,
}

/// A partition as the map has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The session it was last given to, live or not.
    pub owner: Option<SessionId>,
    /// Under which epoch; 0 if nobody ever owned it.
    pub epoch: Epoch,
    /// The plan by which it was handed over; `None` when it was given out because nobody alive owned it. A receiver opens
    /// what it was shown under a plan only if that is the plan that was committed: of an aborted one, whatever came after
    /// it, nothing may be opened.
    pub by: Option<PlanId>,
    /// Its owners before, the last one first.
    pub former: Vec<SessionId>,
}

/// Moves that were prepared together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What is neither committed nor aborted yet.
    pub moves: BTreeMap<Partition, Move>,
}

// === impl Map ===

impl Map {
    /// A number that grows at every change; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// The cluster's name, once it is founded.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.0.identity.map(|(cluster, _)| cluster)
    }

    /// How often the cluster was founded; 0 before it is.
    #[must_use]
    pub fn generation(&self) -> ClusterGeneration {
        self.0.identity.map_or(0, |(_, generation)| generation)
    }

    /// The version that all agree to speak.
    #[must_use]
    pub fn cluster_version(&self) -> u16 {
        self.0.cluster_version
    }

    /// How many partitions there are: a power of two, or 0 before the cluster is founded.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.0.rows.len() as u32
    }

    /// The live owner of a partition, and its epoch.
    #[must_use]
    pub fn owner(&self, partition: Partition) -> Option<(SessionId, Epoch)> {
        let row = self.row(partition)?;
        row.owner.filter(|owner| self.is_live(*owner)).map(|owner| (owner, row.epoch))
    }

    /// [`owner`](Self::owner), as links name it.
    #[must_use]
    pub fn named_owner(&self, partition: Partition) -> Option<Owner> {
        self.owner(partition).map(|(session, epoch)| Owner { session, epoch })
    }

    /// Partitions whose live owner, or its epoch, is another than in an earlier map.
    #[must_use]
    pub fn newly_owned(&self, before: &Self) -> Vec<(Partition, Owner)> {
        let owned = self.rows().filter_map(|(partition, _)| Some((partition, self.named_owner(partition)?)));
        owned.filter(|(partition, owner)| before.named_owner(*partition) != Some(*owner)).collect()
    }

    /// A partition as it was last given out, be its owner live or not.
    #[must_use]
    pub fn row(&self, partition: Partition) -> Option<&Row> {
        self.0.rows.get(usize::from(partition.0))
    }

    /// Every partition.
    pub fn rows(&self) -> impl Iterator<Item = (Partition, &Row)> {
        self.0.rows.iter().enumerate().map(|(number, row)| (Partition(number as u16), row))
    }

    /// What a session owns, in order. A session that has expired owns nothing.
    pub fn owned_by(&self, session: SessionId) -> impl Iterator<Item = (Partition, Epoch)> {
        let live = self.is_live(session);
        self.rows().filter(move |(_, row)| live && row.owner == Some(session)).map(|(p, row)| (p, row.epoch))
    }

    /// Partitions without a live owner, and the epochs to expect of them.
    pub fn orphans(&self) -> impl Iterator<Item = (Partition, Epoch)> {
        self.rows().filter(|(p, _)| self.owner(*p).is_none()).map(|(p, row)| (p, row.epoch))
    }

    /// Whether a session may own.
    #[must_use]
    pub fn is_live(&self, session: SessionId) -> bool {
        self.0.sessions.contains_key(&session)
    }

    /// A live session.
    #[must_use]
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.0.sessions.get(&session)
    }

    /// Every live session, the oldest first.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = (SessionId, &Session)> {
        self.0.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// The live session of a node.
    #[must_use]
    pub fn session_of(&self, node: NodeUid) -> Option<SessionId> {
        self.sessions().find(|(_, session)| session.node == node).map(|(id, _)| id)
    }

    /// Nodes that left for good, or are about to, and whether nothing depends on them any more.
    pub fn retired(&self) -> impl Iterator<Item = (NodeUid, bool)> {
        self.0.retired.iter().map(|(node, released)| (*node, *released))
    }

    /// Whether a node left for good, or is about to; then, whether nothing depends on it any more.
    #[must_use]
    pub fn retirement(&self, node: NodeUid) -> Option<bool> {
        self.0.retired.get(&node).copied()
    }

    /// The session that holds the drain slot.
    #[must_use]
    pub fn draining(&self) -> Option<SessionId> {
        self.sessions().find(|(_, session)| session.drain).map(|(id, _)| id)
    }

    /// A session that is over, as long as it is remembered.
    #[must_use]
    pub fn ended(&self, session: SessionId) -> Option<&Ended> {
        self.0.ended.get(&session)
    }

    /// Whether a life of a node is remembered that is over.
    #[must_use]
    pub fn has_ended(&self, node: NodeUid) -> bool {
        self.0.ended.values().any(|ended| ended.node == node)
    }

    /// What every new owner fences, all of it, before it reads a log.
    pub fn unfenced(&self) -> impl Iterator<Item = (SessionId, &Ended)> {
        self.0.ended.iter().filter(|(_, ended)| !ended.fenced).map(|(id, ended)| (*id, ended))
    }

    /// Every standing plan.
    pub fn plans(&self) -> impl ExactSizeIterator<Item = (PlanId, &Plan)> {
        self.0.plans.iter().map(|(id, plan)| (*id, plan))
    }

    /// A standing plan.
    #[must_use]
    pub fn plan(&self, plan: PlanId) -> Option<&Plan> {
        self.0.plans.get(&plan)
    }

    /// The planned move of a partition.
    #[must_use]
    pub fn planned(&self, partition: Partition) -> Option<(PlanId, &Move)> {
        self.plans().find_map(|(id, plan)| plan.moves.get(&partition).map(|planned| (id, planned)))
    }

    /// The number for the next plan.
    #[must_use]
    pub fn next_plan(&self) -> PlanId {
        PlanId(self.0.last_plan.0 + 1)
    }

    /// The sessions that the map knows as owners, live or not; for those who keep something per session.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<SessionId> {
        self.0.rows.iter().filter_map(|row| row.owner).collect()
    }
}
