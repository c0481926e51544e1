//! Presence and typing on their way between nodes and clients: what connections say of their users' attention, and
//! what they are told of others. Of everything only the last value waits, and slow readers lose it first.

use std::sync::Arc;

use chappe_schema::{
    frame,
    id::{ConnectionSlot, ConversationId, UserId},
    presence::{Attention, Shown},
    wire::ToNode,
};

use crate::{
    connection::{Connection, Table},
    gateway::Gateway,
    websocket::{ephemeral, outbox::Wakers},
};

impl Gateway {
    /// Tells a connection's user of its attention. Before the connection is registered nobody listens: then it is said again.
    pub(crate) fn attend(&self, connection: &Connection, attention: Attention) {
        if let Some(who) = connection.who() {
            let (user, connection) = (who.user.clone(), connection.slot);
            let partition = user.partition();
            self.link.tell(partition, ToNode::Attend { user, connection, attention });
        }
    }

    /// The connection is registered, for the first time or by another owner.
    pub(crate) fn attend_again(&self, connection: &Arc<Connection>) {
        if let Some(attention) = connection.attention() {
            self.attend(connection, attention);
        }
    }

    /// How a watched user is shown now.
    pub(crate) fn show(
        &self,
        connections: &[ConnectionSlot],
        user: &UserId,
        shown: Shown,
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let frame = ephemeral::frame(|out| frame::write_presence(out, user, shown));
        let key = ephemeral::Key::Presence(user.clone());
        for connection in connections.iter().filter_map(|slot| table.get(*slot)) {
            connection.outbox.lock().ephemeral(&key, &frame, wakers);
        }
    }

    /// A member is writing, or no longer is: for those who listen, but not for the member.
    pub(crate) fn show_typing(
        &self,
        conversation: ConversationId,
        user: &UserId,
        is_typing: bool,
        listeners: &[ConnectionSlot],
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let frame = ephemeral::frame(|out| frame::write_typing(out, conversation, user, is_typing));
        let key = ephemeral::Key::Typing(conversation, user.clone());
        let others = listeners.iter().filter_map(|slot| table.get(*slot));
        for connection in others.filter(|connection| connection.who().is_some_and(|who| who.user != *user)) {
            connection.outbox.lock().ephemeral(&key, &frame, wakers);
        }
    }
}
