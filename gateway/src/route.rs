//! Commands on their way to a node, and whom their answers are for.

use std::sync::atomic::{AtomicUsize, Ordering};

use chappe_schema::{
    error::{Code, Error},
    frame::RequestId,
    id::{ConnectionSlot, ConversationId},
    limit::{COMMAND_DEADLINE_MS, PAGE_IN_FLIGHT_WEIGHT},
    operation::{Identity, Op},
    reply::Reply,
    wire::Correlation,
};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;

use crate::{connection::Table, resume::Resuming};

/// Whom an answer is for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A WebSocket's request.
    Socket(Asking),
    /// A WebSocket's `conversation.open`.
    Open(Asking, ConversationId),
    /// A WebSocket's `connect`.
    Connect(ConnectionSlot, Box<Resuming>),
    /// A page of a resume.
    CatchUp(ConnectionSlot),
    /// An HTTP request, whose handler waits.
    Waiter(Op, oneshot::Sender<Result<Reply, Error>>),
}

/// A WebSocket's request.
#[derive(Debug)]
pub(crate) struct Asking {
    /// Whose.
    pub(crate) connection: ConnectionSlot,
    /// What.
    pub(crate) op: Op,
    /// To be echoed; without it only an error is answered.
    pub(crate) id: Option<RequestId>,
    /// Fields that nobody reads.
    pub(crate) ignored: Vec<String>,
}

/// The table of questions without an answer.
pub(crate) struct Route {
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicUsize,
}

/// Many, so that connections on different cores seldom meet.
const SHARDS: usize = 16;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// How long after a command's own deadline its answer is still waited for: the node drops what it has not looked at
/// by the deadline, and answers what it has.
const GRACE_S: u32 = 2;

#[derive(Default)]
struct Shard {
    entries: Slab<Question>,
    /// Counts questions, so that a late answer never meets the next question in the same place.
    lives: u32,
}

struct Question {
    life: u32,
    /// In seconds of the gateway's clock.
    deadline: u32,
    pending: Pending,
}

impl Route {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), next: AtomicUsize::new(0) }
    }

    /// Notes a question.
    pub(crate) fn insert(&self, pending: Pending, now: u32) -> Correlation {
        let index = match pending.connection() {
            // A connection's questions stay together: they are asked by one task.
            Some(slot) => slot.0 as usize % SHARDS,
            None => self.next.fetch_add(1, Ordering::Relaxed) % SHARDS,
        };
        let deadline = now + (COMMAND_DEADLINE_MS / 1000) as u32 + GRACE_S;
        let mut shard = self.shards[index].lock();
        shard.lives = shard.lives.wrapping_add(1);
        let life = shard.lives;
        let key = shard.entries.insert(Question { life, deadline, pending });
        Correlation(u64::from(life) << 32 | (key as u64) << SHARD_BITS | index as u64)
    }

    /// Whom an answer is for; `None` if it is too late, or a second one.
    pub(crate) fn take(&self, correlation: Correlation) -> Option<Pending> {
        let index = correlation.0 as usize % SHARDS;
        let key = (correlation.0 as u32 >> SHARD_BITS) as usize;
        let mut shard = self.shards[index].lock();
        let is_it = shard.entries.get(key).is_some_and(|question| question.life == (correlation.0 >> 32) as u32);
        is_it.then(|| shard.entries.remove(key).pending)
    }

    /// Questions whose answer is not waited for any longer.
    pub(crate) fn expired(&self, now: u32) -> Vec<Pending> {
        let mut expired = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let late: Vec<usize> =
                shard.entries.iter().filter(|(_, question)| question.deadline <= now).map(|(key, _)| key).collect();
            expired.extend(late.into_iter().map(|key| shard.entries.remove(key).pending));
            if shard.entries.is_empty() && shard.entries.capacity() > 1024 {
                shard.entries.shrink_to_fit();
            }
        }
        expired
    }

    /// Questions without an answer.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }
}

impl Pending {
    /// The connection that asked.
    pub(crate) const fn connection(&self) -> Option<ConnectionSlot> {
        match self {
            Self::Socket(asking) | Self::Open(asking, _) => Some(asking.connection),
            Self::Connect(connection, _) | Self::CatchUp(connection) => Some(*connection),
            Self::Waiter(..) => None,
        }
    }

    /// Whether whoever asked is still there.
    pub(crate) fn is_awaited(&self, table: &Table) -> bool {
        match (self, self.connection()) {
            (Self::Waiter(_, waiter), _) => !waiter.is_closed(),
            (_, connection) => connection.is_none_or(|slot| table.get(slot).is_some()),
        }
    }

    /// What is answered when a node does not: what may have changed something may have been done.
    pub(crate) fn unanswered(&self) -> Error {
        let op = match self {
            Self::Socket(asking) | Self::Open(asking, _) => asking.op,
            Self::Waiter(op, _) => *op,
            Self::Connect(..) | Self::CatchUp(..) => return Error::new(Code::Unavailable),
        };
        match op.row().identity {
            Identity::ReadOnly | Identity::Connection => Error::new(Code::Unavailable),
            Identity::ClientMsgId | Identity::Key | Identity::CreationKey => Error::new(Code::OutcomeUnknown),
        }
    }
}

/// What a command counts for among those of its connection in flight: answers of pages are large.
pub(crate) const fn weight(op: Op) -> u32 {
    match op {
        Op::ConversationList | Op::MemberList | Op::MessageList | Op::MessageHistory | Op::EventList => {
            PAGE_IN_FLIGHT_WEIGHT as u32
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(connection: u32, op: Op) -> Pending {
        Pending::Socket(Asking { connection: ConnectionSlot(connection), op, id: None, ignored: Vec::new() })
    }

    #[test]
    fn a_late_answer_meets_no_other_question() {
        let route = Route::new();
        let first = route.insert(asking(3, Op::MessageSend), 1);
        assert!(route.take(first).is_some());
        assert!(route.take(first).is_none(), "an answer counts once");
        let second = route.insert(asking(3, Op::MessageSend), 1);
        assert_ne!(first, second);
        assert!(route.take(first).is_none());
        assert!(route.take(second).is_some());
    }

    #[test]
    fn answers_find_their_questions_among_many() {
        let route = Route::new();
        let all: Vec<_> = (0..1000).map(|slot| (slot, route.insert(asking(slot, Op::MessageSend), 1))).collect();
        for (slot, correlation) in all.into_iter().rev() {
            assert_eq!(route.take(correlation).unwrap().connection(), Some(ConnectionSlot(slot)));
        }
        assert_eq!(route.len(), 0);
    }

    #[test]
    fn what_is_not_answered_expires() {
        let route = Route::new();
        route.insert(asking(1, Op::MessageSend), 1);
        let later = route.insert(asking(2, Op::MessageGet), 5);
        assert!(route.expired(12).is_empty());
        let expired = route.expired(13);
        assert_eq!(expired.len(), 1);
        assert_eq!(expired[0].unanswered().code, Code::OutcomeUnknown);
        let read = route.take(later).unwrap();
        assert_eq!(read.unanswered().code, Code::Unavailable);
    }
}
