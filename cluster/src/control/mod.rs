//! How a node takes part in what the cluster decides, without knowing how it is decided.
//!
//! The [`ControlPlane`] is all that a node sees of Raft: it proposes commands, reads the map and says that it is alive.
//! Nothing here waits: what takes time calls back, on a thread of the plane, and whoever is called only hands it on.

pub mod leader;

use std::sync::Arc;

use chappe_schema::id::{NodeUid, SessionId};
use serde::{Deserialize, Serialize};

use crate::ownership::{Applied, Command, Map, Refused};

/// The cluster's decisions, as one node sees them.
pub trait ControlPlane: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> NodeUid;

    /// Asks for a command to be applied, once at most. `done` hears what became of it, once.
    fn propose(&self, command: Command, done: Done);

    /// The newest map that this node knows. It may be behind the cluster's; it never goes back.
    fn map(&self) -> Map;

    /// Calls `watcher` with the newest map, now and after every change, in order, for as long as the plane lives. Maps may be
    /// left out when several come at once. The watcher only hands it on.
    fn watch(&self, watcher: Watcher);

    /// Who leads, as far as this node knows. A node that is cut off may name an old one.
    fn leader(&self) -> Option<NodeUid>;

    /// Says that a session of this node is alive, and which minute of its activity is the last that it began. To be
    /// said every [`KEEPALIVE_MS`]; said once it may be lost.
    fn keepalive(&self, session: SessionId, minute: u64);

    /// What SWIM says of a node: a hint to whoever leads. It decides nothing alone.
    fn health(&self, node: NodeUid, health: Health);
}

/// How often a node says that its session is alive: three may be lost within the second after which a node that SWIM
/// has declared down is expired.
pub const KEEPALIVE_MS: u64 = 300;

/// Called once with what became of a proposal.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// Called with every newer map.
pub type Watcher = Box<dyn Fn(&Map) + Send + Sync>;

/// Does something with every newer map, on the present runtime and not on a thread of the plane, for as long as `whom` lives. Maps may
/// be left out when several come at once. `watch` hands a watcher to the plane.
pub fn follow<T: Send + Sync + 'static>(
    whom: &Arc<T>,
    watch: impl FnOnce(Watcher),
    mut step: impl FnMut(&T, &Map) + Send + 'static,
) {
    let (show, mut shown) = tokio::sync::watch::channel(Map::default());
    // Whoever has gone wants no more of them.
    watch(Box::new(move |map| drop(show.send(map.clone()))));
    let whom = Arc::downgrade(whom);
    tokio::spawn(async move {
        while shown.changed().await.is_ok() {
            let Some(whom) = whom.upgrade() else { return };
            let map = shown.borrow_and_update().clone();
            step(&whom, &map);
        }
    });
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The cluster has answered.
    Answered(Answer),
    /// Nobody can tell: it may have been applied, or be applied yet. The map shows what came of it.
    Unknown,
    /// Certainly nothing of it is or will be applied: nobody who leads could be reached.
    Unavailable,
}

/// The replicated state's answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The version of the map that shows the effect, or the reason of the refusal. The proposer's own map may be behind.
    pub version: u64,
    /// What it made of the command.
    pub result: Result<Applied, Refused>,
}

/// A node's health as SWIM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// It answers.
    Up,
    /// It does not, and has not contradicted in time.
    Down,
}
