//! How a node that Raft does not tell of changes follows the map (it has no vote, or had one and missed that it has not any
//! more): two streams, each asking one voter after the other for what is newer. A voter that
//! is cut off from the rest holds up one question of one stream.

use std::{sync::Arc, time::Duration};

use chappe_schema::id::NodeUid;
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    bootstrap::Group,
    wire::{Ask, Reply, Request, Say, Status},
};

/// Streams of one node.
pub(super) const STREAMS: usize = 2;

/// How long the one asked waits for something newer.
pub(super) const HELD: Duration = Duration::from_secs(1);

/// How long an answer may take beyond that.
const LATE: Duration = Duration::from_secs(1);

/// After a failure, and between two looks whether this node is still told by Raft.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn stream(shared: Arc<Shared>, number: usize) {
    for turn in number.. {
        if shared.is_served() {
            sleep(PAUSE).await;
            continue;
        }
        let known = shared.rumour.lock().voters.clone();
        let asked = if known.is_empty() { shared.transport.peers() } else { known };
        let next = asked.get(turn % asked.len().max(1)).copied();
        let Some(node) = next.filter(|node| *node != shared.node) else {
            sleep(PAUSE).await;
            continue;
        };
        let group = shared.running.get().map(|running| running.group);
        let request = Request { group, ask: Ask::MapSince(shared.board.version()) };
        match timeout(HELD + LATE, shared.transport.ask(node, request)).await {
            Ok(Ok(Reply(Say::Map { update, status }))) => {
                shared.hear(&status);
                if let Some(update) = update {
                    shared.board.follow(update);
                }
            }
            Ok(Ok(Reply(Say::Elsewhere))) => {
                shared.compare(node).await;
                sleep(PAUSE).await;
            }
            _ => sleep(PAUSE).await,
        }
    }
}

impl Shared {
    /// Asks a node that is of another group which one that is.
    async fn compare(&self, node: NodeUid) {
        let asked = self.transport.ask(node, Request { group: None, ask: Ask::Status });
        let Ok(Ok(Reply(Say::Status(Status { group: Some(theirs), .. })))) = timeout(LATE, asked).await else { return };
        let ours = self.running.get().map(|running| running.group);
        let later = |ours: Group| ours.cluster == theirs.cluster && ours.generation < theirs.generation;
        if ours.is_some_and(later) {
            // Said once is enough.
            let _ = self.superseded.set(theirs);
        }
    }
}
