//! How the map is followed by whoever Raft does not tell of changes: a gateway, a node without a vote, and one that had a vote
//! and missed that it has it no more. Two streams, each asking one voter after the other for what is newer, and never both the same: a
//! voter that is dead, or cut off from the rest, holds up one of them.

use std::{sync::Arc, time::Duration};

use chappe_schema::id::NodeUid;
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    bootstrap::Group,
    view::View,
    wire::{Ask, Reply, Request, Say, Status},
};

/// Streams of one process.
pub(super) const STREAMS: usize = 2;

/// Of so many questions one goes to whoever can be reached instead of to a voter.
const STRANGERS: usize = 8;

/// How long the one asked waits for something newer.
pub(super) const HELD: Duration = Duration::from_secs(1);

/// How long an answer may take beyond that.
const LATE: Duration = Duration::from_secs(1);

/// After a failure, and between two looks whether this node is still told by Raft.
const PAUSE: Duration = Duration::from_millis(200);

/// A stream of a node.
pub(super) async fn stream(shared: Arc<Shared>, number: usize) {
    for turn in number.. {
        if shared.is_served() {
            sleep(PAUSE).await;
            continue;
        }
        if let Some(later) = shared.view.ask_next(turn, Some(shared.node)).await {
            // A node belongs to its disk's group, for good. Said once is enough.
            let _ = shared.view.superseded.set(later);
        }
    }
}

/// A stream of a process that only reads.
pub(super) async fn observe(view: Arc<View>, number: usize) {
    for turn in number.. {
        if let Some(later) = view.ask_next(turn, None).await {
            view.enter(later);
        }
    }
}

/// A question that is under way.
struct Question<'a> {
    view: &'a View,
    to: NodeUid,
}

impl<'a> Question<'a> {
    /// To the next of these, in turn, of whom nothing is being asked.
    fn begin(view: &'a View, all: &[NodeUid], turn: usize, not: Option<NodeUid>) -> Option<Self> {
        let mut asked = view.asked.lock();
        let next = turn % all.len().max(1);
        let free = |node: &&NodeUid| Some(**node) != not && !asked.contains(node);
        let to = *all[next..].iter().chain(&all[..next]).find(free)?;
        asked.insert(to);
        Some(Self { view, to })
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.view.asked.lock().remove(&self.to);
    }
}

impl View {
    /// Asks the next node for a newer map, and pauses if there is none to ask. Returns a group that is later than this one.
    async fn ask_next(&self, turn: usize, not: Option<NodeUid>) -> Option<Group> {
        let known = self.rumour.lock().voters.clone();
        // Now and then whoever is there: voters that are all gone, their disks too, name no others.
        let asked = if known.is_empty() || turn % STRANGERS == STRANGERS - 1 { self.transport.peers() } else { known };
        let Some(question) = Question::begin(self, &asked, turn, not) else {
            sleep(PAUSE).await;
            return None;
        };
        let node = question.to;
        let request = Request { group: self.group(), ask: Ask::MapSince(self.board.version()) };
        match timeout(HELD + LATE, self.transport.ask(node, request)).await {
            Ok(Ok(Reply(Say::Map { update, status }))) => {
                self.hear(&status);
                if let Some(update) = update {
                    self.board.follow(*update);
                }
                None
            }
            Ok(Ok(Reply(Say::Elsewhere))) => {
                let later = self.compare(node).await;
                if later.is_none() {
                    sleep(PAUSE).await;
                }
                later
            }
            _ => {
                sleep(PAUSE).await;
                None
            }
        }
    }

    /// Asks a node that is of another group which one that is, and returns it if it is a later founding, or the first that is
    /// heard of.
    async fn compare(&self, node: NodeUid) -> Option<Group> {
        let asked = self.transport.ask(node, Request { group: None, ask: Ask::Status });
        let Ok(Ok(Reply(Say::Status(Status { group: Some(theirs), .. })))) = timeout(LATE, asked).await else {
            return None;
        };
        let later = |ours: Group| ours.cluster == theirs.cluster && ours.generation < theirs.generation;
        self.group().is_none_or(later).then_some(theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::memory::Hub;

    #[test]
    fn two_streams_never_ask_the_same() {
        let view = View::new(Arc::new(Hub::new(1).port(NodeUid(9))));
        let all: Vec<NodeUid> = (1..=3).map(NodeUid).collect();
        let ask = |turn, not| Question::begin(&view, &all, turn, not);
        let first = ask(1, None).unwrap();
        assert_eq!(first.to, NodeUid(2));
        let second = ask(1, None).unwrap();
        assert_eq!(second.to, NodeUid(3), "the one after it");
        assert!(ask(0, Some(NodeUid(1))).is_none(), "who asks does not ask itself");
        drop(first);
        assert_eq!(ask(2, None).unwrap().to, NodeUid(1));
        assert_eq!(ask(4, None).unwrap().to, NodeUid(2), "it is free again");
        assert!(Question::begin(&view, &[], 7, None).is_none());
    }
}
