//! How a node finds its cluster, or begins one, so that there are never two.
//!
//! What decides is not what a node believes but what stands in the shared store: a cluster begins with a *claim* there, and
//! only one that is alone may begin. Claims are only ever added, each under its own key, and read at quorum after one's own
//! is written at quorum: of two nodes that claim at the same time at least one sees the other's claim, and whoever sees another's
//! gives way. That may be both; then an operator decides (`--force-new-cluster`). It is never neither.
//!
//! [`decide`] is pure; [`find`] gathers the [`Evidence`] and does what it says.

use chappe_schema::id::NodeUid;

use crate::ownership::{ClusterGeneration, ClusterId};

pub mod find;

/// A cluster and its founding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Group {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which founding of it. Voters of different foundings do not hear each other.
    pub generation: ClusterGeneration,
}

/// A node says in the shared store that it begins a cluster, or begins it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// What it begins.
    pub group: Group,
    /// Who.
    pub by: NodeUid,
}

/// What a node knows when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// This node.
    pub node: NodeUid,
    /// Its number among the nodes.
    pub ordinal: u32,
    /// What its disk holds of Raft; none if nothing.
    pub disk: Option<Group>,
    /// The claims in the shared store, read at quorum; none if it could not be read.
    pub store: Option<Vec<Claim>>,
    /// The clusters that peers report.
    pub peers: Vec<Group>,
    /// The founding that the operator asks for (`--force-new-cluster=N`), when the voters of the one before are lost. It
    /// is named, so that a flag that is left on a command line has no second effect.
    pub force: Option<ClusterGeneration>,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It takes part as before.
    Resume(Group),
    /// It claims the group, reads the claims again, and asks again.
    Claim(Group),
    /// Its claim is alone: it begins the group with itself as the only voter.
    Initialise(Group),
    /// It waits to be taken in.
    Join(Group),
    /// It looks again in a while.
    Wait(Why),
    /// It ends, with a sentence for the operator.
    Refuse(Why),
}

/// Why a node waits or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Nothing is known without the store.
    #[error("the shared store cannot be read, and without it nobody knows whether there is a cluster already")]
    StoreUnknown,
    /// Ordinal 0 begins.
    #[error("no cluster is there yet; the node with ordinal 0 begins it")]
    NotFirst,
    /// A claim stands in the store, and nobody is found who takes part in it.
    #[error("the store knows the cluster {}, of which no node can be reached; if all its voters' disks are lost, start one node with --force-new-cluster", .0.cluster)]
    NobodyThere(Group),
    /// Two nodes claim at once.
    #[error(
        "another node claims to begin the cluster too; are there two nodes with ordinal 0? If none of them has begun it, start one with --force-new-cluster"
    )]
    Contested,
    /// The disk is another cluster's.
    #[error("this data directory belongs to cluster {}, the store to cluster {}", .disk.cluster, .store.cluster)]
    OtherCluster {
        /// What the disk holds.
        disk: Group,
        /// What the store holds.
        store: Group,
    },
    /// The disk is of an earlier founding.
    #[error("this data directory is of founding {} of the cluster, which has been founded anew ({}); empty it, and the node joins", .disk.generation, .store.generation)]
    Superseded {
        /// What the disk holds.
        disk: Group,
        /// What the store holds.
        store: Group,
    },
    /// The store has forgotten the cluster.
    #[error("this data directory belongs to cluster {}, of which the store knows nothing: is it the right store? Was it emptied?", .0.cluster)]
    StoreForgot(Group),
    /// A peer is of a cluster that the store does not know.
    #[error("a peer reports cluster {}, the store knows another or none: do they use the same store?", .0.cluster)]
    PeerElsewhere(Group),
    /// The founding that is asked for is not the next one.
    #[error("--force-new-cluster: the next founding is {}; to begin it, and to give up whatever the voters before had decided last, say --force-new-cluster={}", .0, .0)]
    NotNext(ClusterGeneration),
}

/// What to do with what is known. `fresh` is the name that a new cluster would get.
#[must_use]
pub fn decide(evidence: &Evidence, fresh: ClusterId) -> Decision {
    let Evidence { node, ordinal, disk, store, peers, force } = evidence;
    let Some(claims) = store else {
        // Who takes part already goes on: sessions need the store, Raft does not. A forced founding needs it.
        return disk.filter(|_| force.is_none()).map_or(Decision::Wait(Why::StoreUnknown), Decision::Resume);
    };
    let standing = Standing::of(claims, *node);
    if let Some(asked) = force.filter(|asked| *asked > standing.generation) {
        return standing.anew(asked);
    }
    match disk {
        Some(disk) if standing.groups.contains(disk) => Decision::Resume(*disk),
        Some(disk) => standing.with_other_disk(*disk, *force),
        None => standing.without_disk(*ordinal, peers, fresh),
    }
}

/// The newest founding that the store knows, as one node sees it.
struct Standing {
    generation: ClusterGeneration,
    /// One, unless it is contested.
    groups: Vec<Group>,
    mine: Option<Group>,
    contested: bool,
}

impl Standing {
    fn of(claims: &[Claim], node: NodeUid) -> Self {
        let generation = claims.iter().map(|claim| claim.group.generation).max().unwrap_or_default();
        let newest: Vec<&Claim> = claims.iter().filter(|claim| claim.group.generation == generation).collect();
        Self {
            generation,
            groups: newest.iter().map(|claim| claim.group).collect(),
            mine: newest.iter().find(|claim| claim.by == node).map(|claim| claim.group),
            contested: newest.iter().any(|claim| claim.by != node),
        }
    }

    /// The operator says that the voters are lost.
    fn anew(&self, asked: ClusterGeneration) -> Decision {
        match self.groups.first() {
            Some(group) if asked == self.generation + 1 => {
                Decision::Claim(Group { generation: asked, cluster: group.cluster })
            }
            _ => Decision::Refuse(Why::NotNext(self.generation + 1)),
        }
    }

    fn with_other_disk(&self, disk: Group, force: Option<ClusterGeneration>) -> Decision {
        match (self.groups.first(), self.mine) {
            (None, _) => Decision::Refuse(Why::StoreForgot(disk)),
            // This node claimed the founding that was asked for, and still has the disk from before.
            (Some(_), Some(mine)) if !self.contested && force == Some(mine.generation) => Decision::Initialise(mine),
            (Some(_), Some(mine)) if force == Some(mine.generation) => Decision::Wait(Why::Contested),
            (Some(store), _) if store.cluster == disk.cluster => {
                Decision::Refuse(Why::Superseded { disk, store: *store })
            }
            (Some(store), _) => Decision::Refuse(Why::OtherCluster { disk, store: *store }),
        }
    }

    /// An empty disk: a cluster that is there is joined, and never begun a second time.
    fn without_disk(&self, ordinal: u32, peers: &[Group], fresh: ClusterId) -> Decision {
        if let Some(group) = peers.iter().find(|group| self.groups.contains(group)) {
            return Decision::Join(*group);
        }
        // A peer of an earlier founding is about to end; one of another cluster is somebody's mistake.
        let stranger = peers.iter().find(|peer| self.groups.iter().all(|group| group.cluster != peer.cluster));
        if let Some(stranger) = stranger {
            return Decision::Wait(Why::PeerElsewhere(*stranger));
        }
        match (self.mine, self.groups.first()) {
            (Some(mine), _) if !self.contested => Decision::Initialise(mine),
            (Some(_), _) => Decision::Wait(Why::Contested),
            (None, Some(group)) => Decision::Wait(Why::NobodyThere(*group)),
            (None, None) if ordinal == 0 => Decision::Claim(Group { cluster: fresh, generation: 1 }),
            (None, None) => Decision::Wait(Why::NotFirst),
        }
    }
}

#[cfg(test)]
mod tests;
