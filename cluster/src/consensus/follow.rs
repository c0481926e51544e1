//! How a node that Raft does not tell of changes follows the map (it has no vote, or had one and missed that it has not any
//! more): two streams, each asking one voter after the other for what is newer. A voter that
//! is cut off from the rest holds up one question of one stream.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    Shared,
    wire::{Ask, Reply, Request, Say},
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
        let answered = match asked.get(turn % asked.len().max(1)).filter(|node| **node != shared.node) {
            Some(node) => {
                let group = shared.running.get().map(|running| running.group);
                let request = Request { group, ask: Ask::MapSince(shared.board.version()) };
                timeout(HELD + LATE, shared.transport.ask(*node, request)).await
            }
            None => {
                sleep(PAUSE).await;
                continue;
            }
        };
        match answered {
            Ok(Ok(Reply(Say::Map { update, status }))) => {
                shared.hear(&status);
                if let Some(update) = update {
                    shared.board.follow(update);
                }
            }
            _ => sleep(PAUSE).await,
        }
    }
}
