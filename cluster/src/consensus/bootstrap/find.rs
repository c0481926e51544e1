//! The way from a start to a part in a cluster: evidence is gathered, decided on, and what was decided is done, until the
//! node takes part.

use std::{future::Future, io, pin::Pin, time::Duration};

use chappe_schema::id::NodeUid;
use tokio::time::{sleep, timeout};

use super::{Claim, Decision, Evidence, Group, Why, decide};
use crate::{
    consensus::{
        Consensus, Home,
        wire::{Ask, Reply, Request, Say},
    },
    control::ControlPlane,
    ownership::{ClusterGeneration, ClusterId},
};

/// What the shared store keeps about the cluster itself. Reads and writes are at quorum.
pub trait ClusterMeta: Send + Sync + 'static {
    /// Every claim.
    fn claims(&self) -> Answer<'_, Vec<Claim>>;

    /// Adds a claim, under a key of its own: neither this nor anything else ever changes or removes one.
    fn claim(&self, claim: Claim) -> Answer<'_, ()>;

    /// Fences every session in the registry of sessions, which it reads after this is called. Called after a forced founding
    /// is claimed and before it begins: whatever the voters before had decided last, no session of theirs acknowledges any more.
    fn fence_all(&self) -> Answer<'_, ()>;
}

/// An answer of the store.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Why a node does not take part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It must not.
    #[error(transparent)]
    Refused(Why),
    /// Its disk fails.
    #[error("Raft's part of the data directory: {0}")]
    Disk(#[source] io::Error),
}

/// Between two looks. A cluster that starts gathers within seconds.
const PAUSE: Duration = Duration::from_millis(500);

/// How long the store may take. Then it counts as away, and is asked again.
const STORE: Duration = Duration::from_secs(5);

/// How long a peer may take to say what it is part of.
const PEER: Duration = Duration::from_secs(1);

/// Peers asked at each look: the seeds, or as many of a large cluster.
const PEERS_MAX: usize = 8;

impl Consensus {
    /// Finds the cluster or begins it, and returns when this node takes part. It waits for as long as there is nothing to
    /// take part in, and answers others meanwhile. `force` is the founding that the operator asks for.
    ///
    /// # Errors
    /// When the node must not take part, or its disk fails.
    pub async fn find(&self, meta: &dyn ClusterMeta, force: Option<ClusterGeneration>) -> Result<Group, Error> {
        let fresh = ClusterId(rand::random());
        let mut said = None;
        loop {
            let evidence = self.gather(meta, force).await;
            match decide(&evidence, fresh) {
                Decision::Resume(group) => {
                    // Between what it noted and its first vote it may have been killed.
                    let begin = is_alone(&evidence, group);
                    return self.enter(group, begin).await.map(|()| group).map_err(Error::Disk);
                }
                Decision::Join(group) => {
                    return self.enter(group, false).await.map(|()| group).map_err(Error::Disk);
                }
                Decision::Initialise(group) => {
                    // What voters before this founding decided last is given up; so are their sessions.
                    let fenced = group.generation == 1 || in_time(meta.fence_all()).await.is_some();
                    if fenced {
                        tracing::info!(event = "cluster_begins", cluster = %group.cluster, generation = group.generation);
                        return self.enter(group, true).await.map(|()| group).map_err(Error::Disk);
                    }
                }
                Decision::Claim(group) => {
                    let claimed = in_time(meta.claim(Claim { group, by: self.node() })).await;
                    if claimed.is_some() {
                        continue;
                    }
                }
                Decision::Wait(why) => {
                    if said != Some(why) {
                        tracing::warn!(event = "cluster_awaited", %why);
                        said = Some(why);
                    }
                }
                Decision::Refuse(why) => return Err(Error::Refused(why)),
            }
            sleep(PAUSE).await;
        }
    }

    async fn gather(&self, meta: &dyn ClusterMeta, force: Option<ClusterGeneration>) -> Evidence {
        let shared = &self.shared;
        let peers = self.ask_peers().await;
        // After the peers: a cluster that a peer reports stands in the store by then.
        let store = in_time(meta.claims()).await;
        let disk = shared.waiting.lock().as_ref().and_then(|(home, _)| Home::group(home));
        Evidence { node: shared.node, ordinal: shared.settings.seat.ordinal, disk, store, peers, force }
    }

    async fn ask_peers(&self) -> Vec<Group> {
        let ask = |peer: NodeUid| {
            let asked = self.shared.view.transport.ask(peer, Request { group: None, ask: Ask::Status });
            tokio::spawn(async move { timeout(PEER, asked).await })
        };
        let peers = self.shared.view.transport.peers();
        let asked: Vec<_> = peers.into_iter().take(PEERS_MAX).map(ask).collect();
        let mut groups = Vec::new();
        for answer in asked {
            if let Ok(Ok(Ok(Reply(Say::Status(status))))) = answer.await {
                groups.extend(status.group);
            }
        }
        groups
    }
}

/// Whether this node, and no other, claimed to begin the group.
fn is_alone(evidence: &Evidence, group: Group) -> bool {
    let claims = evidence.store.iter().flatten().filter(|claim| claim.group.generation == group.generation);
    let mut claims = claims.peekable();
    claims.peek().is_some() && claims.all(|claim| claim.by == evidence.node && claim.group == group)
}

async fn in_time<T>(answer: Answer<'_, T>) -> Option<T> {
    match timeout(STORE, answer).await {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            tracing::warn!(event = "cluster_meta_failed", %error);
            None
        }
        Err(_) => {
            tracing::warn!(event = "cluster_meta_late");
            None
        }
    }
}
