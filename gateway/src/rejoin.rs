//! Partitions have other owners: whoever waited asks there, and the new owners are told what only their predecessors
//! knew: which connections their users have, and which large conversations are listened to here.
//!
//! What was on its way from a former owner may be lost, so connections are told where their most recent conversations
//! stand: a client that has that already does nothing, another one fetches what it missed.

use chappe_schema::{
    error::{Code, Error},
    id::{ConnectionSlot, Partition, SessionId, UserId},
    wire::{Heads, Owner, ToNode},
};
use hashbrown::HashSet;

use crate::{
    connection::Table,
    gateway::Gateway,
    meters::Reason,
    route::{AtOnce, Pending},
    websocket::outbox::Wakers,
};

/// The code with which a connection is closed that its user's owner has not registered.
pub(crate) fn unregistered(code: Code) -> u16 {
    code.row().close.or(Code::Overloaded.row().close).unwrap_or(1013)
}

impl Gateway {
    /// These partitions have other owners than before.
    pub(crate) fn assigned(&self, owners: &[(Partition, Owner)]) {
        let mut at_once = AtOnce::new();
        for (partition, owner) in owners {
            at_once.extend(self.route.assigned(*partition, *owner, &*self.link));
        }
        let moved: HashSet<Partition> = owners.iter().map(|(partition, _)| *partition).collect();
        self.listeners.announce_again(&|partition| moved.contains(&partition), &*self.link);
        at_once.extend(self.register_again(|partition| moved.contains(&partition), |_| true));
        self.receive_at_once(at_once);
    }

    /// The way to a node is broken, and the node has forgotten whom it knew here: it is told again when the way is there
    /// again, or its successor is. That may be said many times until then; who waits for an answer already is not told twice.
    pub(crate) fn lost(&self, session: SessionId) {
        self.route.lost(session, self.clock.now_ms());
        let lost = |partition| self.link.owner(partition).is_some_and(|owner| owner.session == session);
        self.listeners.announce_again(&lost, &*self.link);
        let waiting = self.route.rejoining();
        let at_once = self.register_again(lost, |slot| !waiting.contains(&slot));
        self.receive_at_once(at_once);
    }

    /// Registers such connections of all users who live in such partitions.
    fn register_again(&self, lives: impl Fn(Partition) -> bool, is_due: impl Fn(ConnectionSlot) -> bool) -> AtOnce {
        let mut homeless = Vec::new();
        self.connections.each(|connection| {
            if let Some(actor) = connection.actor()
                && lives(actor.user.partition())
                && is_due(connection.slot)
            {
                homeless.push((connection.slot, actor));
            }
        });
        let register = |(slot, actor)| self.register(Pending::Rejoin(slot), actor, slot, Vec::new(), None);
        homeless.into_iter().flat_map(register).collect()
    }

    /// A new owner has registered a connection, or cannot.
    pub(crate) fn rejoined(
        &self,
        slot: ConnectionSlot,
        result: Result<Heads, Error>,
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let Some(connection) = table.get(slot) else { return };
        let mut outbox = connection.outbox.lock();
        match result {
            Ok(heads) => {
                outbox.know_cursor(heads.cursor);
                self.attend_again(connection);
                for (conversation, head) in heads.others.into_iter().chain(heads.doubtful) {
                    outbox.behind(conversation, head.seq, wakers);
                }
            }
            // Without its registration the connection is of no use; its client comes back, unless it may not.
            Err(error) => {
                let request_id = connection.request_id();
                let (close, code) = (unregistered(error.code), error.code.row().code);
                outbox.close_with(close, code, Reason::of(&error), Some((&error, &request_id)), wakers);
            }
        }
    }

    /// A connection that is gone by the time its registration is known of is registered nowhere.
    pub(crate) fn unregister(&self, user: &UserId, connection: ConnectionSlot) {
        let user = user.clone();
        self.link.tell(user.partition(), ToNode::Disconnect { user, connection });
    }
}
