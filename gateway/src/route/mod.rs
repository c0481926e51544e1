//! Commands on their way to a node, and whom their answers are for.
//!
//! - [`lanes`]: the questions of each partition, in order, until they are answered

use std::sync::Arc;

use chappe_cluster::link::Links;
use chappe_schema::{
    access::{Access, Token},
    error::{Code, Error},
    frame::RequestId,
    id::{ConnectionSlot, ConversationId, Millis, Partition, SessionId, UserId},
    limit::{COMMAND_DEADLINE_MS, PAGE_IN_FLIGHT_WEIGHT},
    operation::{Identity, Op},
    reply::Reply,
    wire::{Correlation, Lane, Owner, ToGateway, ToNode},
};
use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{connection::Table, resume::Resuming};

pub mod lanes;

use lanes::{Ask, Lanes, Sending};

/// Whom an answer is for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A WebSocket's request.
    Socket(Asking),
    /// A WebSocket's `conversation.open`.
    Open(Asking, ConversationId),
    /// A WebSocket's `connect`.
    Connect(ConnectionSlot, Box<Resuming>),
    /// A connection that its user's next owner is told of.
    Rejoin(ConnectionSlot),
    /// A WebSocket's `auth.refresh`.
    Refresh(ConnectionSlot, Box<Refreshing>),
    /// What stands against a user, asked at a time of the gateway's clock.
    Access(UserId, u64, oneshot::Sender<Result<Arc<Access>, Error>>),
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

/// A newer token that waits for its user's owner.
#[derive(Debug)]
pub(crate) struct Refreshing {
    /// To be echoed; without it only an error is answered.
    pub(crate) id: Option<RequestId>,
    /// Fields that nobody reads.
    pub(crate) ignored: Vec<String>,
    /// The token.
    pub(crate) token: Token,
}

/// The table of questions without an answer.
pub(crate) struct Route {
    /// By partition. What a lane has to send is sent under its lock, so that nobody comes between.
    shards: [Mutex<Lanes<Pending>>; SHARDS],
    /// A lane waits for an owner.
    waiting: Notify,
}

/// Many, so that connections on different cores seldom meet.
const SHARDS: usize = 16;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// How long after a command's own deadline its answer is still waited for: the node drops what it has not looked at
/// by the deadline, and answers what it has.
const GRACE_S: u32 = 2;

/// What nodes answered at once, and in which session, to be looked at when the lanes are free again.
pub(crate) type AtOnce = Vec<(SessionId, Vec<ToGateway>)>;

impl Route {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), waiting: Notify::new() }
    }

    fn shard(&self, partition: Partition) -> (usize, &Mutex<Lanes<Pending>>) {
        let index = usize::from(partition.0) % SHARDS;
        (index, &self.shards[index])
    }

    /// Notes a question and sends it to the owner of its partition. `seconds` and `now` are the gateway's time.
    pub(crate) fn ask(
        &self,
        partition: Partition,
        pending: Pending,
        (seconds, now): (u32, Millis),
        links: &dyn Links,
        make: impl FnOnce(Correlation) -> Ask,
    ) -> AtOnce {
        let (index, shard) = self.shard(partition);
        let deadline = seconds + (COMMAND_DEADLINE_MS / 1000) as u32 + GRACE_S;
        let mut lanes = shard.lock();
        let make = |number: u64| make(correlation(number, index));
        match lanes.ask(partition, pending, deadline, links.owner(partition), now, make) {
            Some((to, message)) => {
                let mut at_once = AtOnce::new();
                send(links, to, message, &mut at_once);
                at_once
            }
            None => {
                self.waiting.notify_one();
                AtOnce::new()
            }
        }
    }

    /// Whom an answer is for; `None` if it is too late, or a second one.
    pub(crate) fn take(&self, correlation: Correlation) -> Option<Pending> {
        let (number, index) = (number(correlation), correlation.0 as usize % SHARDS);
        self.shards[index].lock().take(number)
    }

    /// A node has refused a lane.
    pub(crate) fn moved(&self, lane: Lane, named: Option<Owner>, now: Millis, links: &dyn Links) -> AtOnce {
        self.send(lane.partition, links, |lanes, send| lanes.moved(lane, named, now, send))
    }

    /// The map names another owner.
    pub(crate) fn assigned(&self, partition: Partition, owner: Owner, links: &dyn Links) -> AtOnce {
        self.send(partition, links, |lanes, send| lanes.assigned(partition, owner, send))
    }

    fn send(
        &self,
        partition: Partition,
        links: &dyn Links,
        act: impl FnOnce(&mut Lanes<Pending>, &mut dyn FnMut(Sending) -> bool),
    ) -> AtOnce {
        let mut at_once = Vec::new();
        let mut lanes = self.shard(partition).1.lock();
        act(&mut lanes, &mut |(to, message)| send(links, to, message, &mut at_once));
        if lanes.is_waiting() {
            self.waiting.notify_one();
        }
        at_once
    }

    /// The way to a node is broken.
    pub(crate) fn lost(&self, session: SessionId, now: Millis) {
        self.shards.iter().for_each(|lanes| lanes.lock().lost(session, now));
        self.waiting.notify_one();
    }

    /// The connections whose registration with another owner is not answered yet.
    pub(crate) fn rejoining(&self) -> HashSet<ConnectionSlot> {
        let mut slots = HashSet::new();
        for lanes in &self.shards {
            let waiting = |pending: &Pending| if let Pending::Rejoin(slot) = pending { Some(*slot) } else { None };
            slots.extend(lanes.lock().pending().filter_map(waiting));
        }
        slots
    }

    /// Resolves when a lane waits for an owner.
    pub(crate) async fn wait_for_waiting(&self) {
        self.waiting.notified().await;
    }

    /// Whether a lane waits for an owner.
    pub(crate) fn is_waiting(&self) -> bool {
        self.shards.iter().any(|lanes| lanes.lock().is_waiting())
    }

    /// Lanes that have waited for an owner look for one.
    pub(crate) fn resume(&self, now: Millis, links: &dyn Links) -> AtOnce {
        let mut at_once = Vec::new();
        for lanes in &self.shards {
            let send = &mut |(to, message)| send(links, to, message, &mut at_once);
            lanes.lock().resume(now, |partition| links.owner(partition), send);
        }
        at_once
    }

    /// Questions whose answer is not waited for any longer.
    pub(crate) fn expired(&self, now: u32) -> Vec<Pending> {
        self.shards.iter().flat_map(|lanes| lanes.lock().expired(now)).collect()
    }

    /// Questions without an answer.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|lanes| lanes.lock().len()).sum()
    }
}

/// Nearly always nothing is answered at once, and nothing is allocated.
///
/// Whether it is on its way: what was answered at once that it has moved is not.
fn send(links: &dyn Links, to: SessionId, message: ToNode, at_once: &mut AtOnce) -> bool {
    let answers = links.send(to, message);
    let is_sent = !answers.iter().any(|answer| matches!(answer, ToGateway::Moved { .. }));
    if !answers.is_empty() {
        at_once.push((to, answers));
    }
    is_sent
}

/// A question's number with its shard's: the shard in the lowest bits, so that the place keeps room above.
const fn correlation(number: u64, shard: usize) -> Correlation {
    Correlation(number & !(u32::MAX as u64) | (number as u32 as u64) << SHARD_BITS | shard as u64)
}

const fn number(correlation: Correlation) -> u64 {
    correlation.0 & !(u32::MAX as u64) | (correlation.0 as u32 >> SHARD_BITS) as u64
}

impl Pending {
    /// The connection that asked.
    pub(crate) const fn connection(&self) -> Option<ConnectionSlot> {
        match self {
            Self::Socket(asking) | Self::Open(asking, _) => Some(asking.connection),
            Self::Connect(connection, _)
            | Self::Refresh(connection, _)
            | Self::Rejoin(connection)
            | Self::CatchUp(connection) => Some(*connection),
            Self::Waiter(..) | Self::Access(..) => None,
        }
    }

    /// Whether whoever asked is still there.
    pub(crate) fn is_awaited(&self, table: &Table) -> bool {
        match (self, self.connection()) {
            (Self::Waiter(_, waiter), _) => !waiter.is_closed(),
            (Self::Access(_, _, waiter), _) => !waiter.is_closed(),
            (_, connection) => connection.is_none_or(|slot| table.get(slot).is_some()),
        }
    }

    /// What is answered when a node does not: what may have changed something may have been done.
    pub(crate) fn unanswered(&self) -> Error {
        let op = match self {
            Self::Socket(asking) | Self::Open(asking, _) => asking.op,
            Self::Waiter(op, _) => *op,
            Self::Connect(..) | Self::Refresh(..) | Self::Rejoin(_) | Self::Access(..) | Self::CatchUp(..) => {
                return Error::new(Code::Unavailable);
            }
        };
        match op.row().identity {
            // What only raises numbers may be said again, whether or not it was heard.
            Identity::ReadOnly | Identity::Connection | Identity::Ephemeral | Identity::Watermark => {
                Error::new(Code::Unavailable)
            }
            Identity::ClientMsgId | Identity::Key | Identity::CreationKey => Error::new(Code::OutcomeUnknown),
        }
    }
}

/// What a command counts for among those of its connection in flight: answers of pages are large.
pub(crate) const fn weight(op: Op) -> u32 {
    match op {
        Op::ConversationList
        | Op::InboxSync
        | Op::MemberList
        | Op::MessageList
        | Op::MessageHistory
        | Op::ReactionList
        | Op::ReceiptList
        | Op::EventList => PAGE_IN_FLIGHT_WEIGHT as u32,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_whole() {
        for (question, index) in [(0, 0), (u64::from(u32::MAX) << 32 | 0x0FFF_FFFF, 15), (7 << 32 | 3, 9)] {
            let named = correlation(question, index);
            assert_eq!((number(named), named.0 as usize % SHARDS), (question, index));
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_called_undone() {
        let asking = |op| Pending::Socket(Asking { connection: ConnectionSlot(1), op, id: None, ignored: Vec::new() });
        assert_eq!(asking(Op::MessageSend).unanswered().code, Code::OutcomeUnknown);
        assert_eq!(asking(Op::MessageGet).unanswered().code, Code::Unavailable);
    }
}
