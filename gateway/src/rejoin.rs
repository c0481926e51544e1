//! Partitions have other owners: whoever waited asks there, and the new owners are told what only their predecessors
//! knew: which connections their users have, and which large conversations are listened to here.
//!
//! What was on its way from a former owner may be lost, so connections are told where their most recent conversations
//! stand: a client that has that already does nothing, another one fetches what it missed.

use chappe_schema::{
    error::{Code, Error},
    id::{ConnectionSlot, EntityId, Partition, UserId},
    wire::{Heads, Owner, ToNode},
};
use hashbrown::HashSet;

use crate::{
    connection::Table,
    gateway::Gateway,
    meters::{Cause, Reason},
    route::Pending,
    websocket::outbox::Wakers,
};

/// The code with which a connection is closed that its user's owner has not registered.
pub(crate) fn unregistered(code: Code) -> u16 {
    code.row().close.or(Code::Overloaded.row().close).unwrap_or(1013)
}

impl Gateway {
    /// These partitions have other owners than before.
    pub(crate) fn assigned(&self, owners: &[(Partition, Owner)]) {
        let mut at_once = Vec::new();
        for (partition, owner) in owners {
            at_once.extend(self.route.assigned(*partition, *owner, &*self.link));
        }
        let moved: HashSet<Partition> = owners.iter().map(|(partition, _)| *partition).collect();
        self.listeners.announce_again(&moved, &*self.link);
        let mut homeless = Vec::new();
        self.connections.each(|connection| {
            if let Some(actor) = connection.actor()
                && moved.contains(&EntityId::User(actor.user.clone()).partition())
            {
                homeless.push((connection.slot, actor));
            }
        });
        for (slot, actor) in homeless {
            at_once.extend(self.register(Pending::Rejoin(slot), actor, slot, Vec::new(), None));
        }
        self.receive(at_once);
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
                for (conversation, head) in heads.others {
                    if outbox.catch_up.as_mut().is_none_or(|catch_up| !catch_up.raise(conversation, head.seq)) {
                        outbox.resync(conversation, head.seq, Cause::Moved, wakers);
                    }
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
        self.link.tell(EntityId::User(user.clone()).partition(), ToNode::Disconnect { user, connection });
    }
}
