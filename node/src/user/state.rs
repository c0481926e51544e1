//! What a user is to the node that owns them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chappe_schema::{
    access::{By, Token},
    event::{ConversationKind, Event, Fact},
    id::{Change, CommandId, ConnectionSlot, ConversationId, DeviceId, Epoch, GatewayId, Millis, Seq, UserId},
    reply::SessionView,
    stored::StoredInbox,
    wire::Actor,
};
use hashbrown::HashMap;

use crate::pace::snapshot_events;
use smallvec::SmallVec;

use super::access::Record;

/// A user as their owner knows them.
#[derive(Debug)]
pub struct User {
    /// Who.
    pub id: UserId,
    /// The last event of the user's own log.
    pub head: Seq,
    /// The stamp of that event.
    pub last_at: Millis,
    /// The epoch under which that event was written first.
    pub origin: Epoch,
    /// Change numbers up to here may have been handed out by blocks of the log.
    pub changes_reserved: u64,
    /// The seq of the last durable (or submitted) snapshot.
    pub snapshot_at: Seq,
    /// Every conversation that the user is or was a member of.
    pub(super) conversations: HashMap<ConversationId, Membership, foldhash::fast::FixedState>,
    /// The conversations of now by their last change.
    pub(super) by_change: BTreeMap<Change, ConversationId>,
    /// Conversations whose head was not yet asked of their owner, or must be asked again.
    pub(super) unverified: BTreeSet<ConversationId>,
    /// Answers about heads that wait until all are there.
    pub(super) answers: Vec<super::HeadKnown>,
    /// Conversations whose owner could not tell the head.
    pub(super) unknown: BTreeSet<ConversationId>,
    /// Where the user's clients are.
    pub connections: SmallVec<[Client; 2]>,
    /// What stands against the user's tokens, if anything ever did.
    pub(super) record: Option<Box<Record>>,
}

/// One client of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Where.
    pub connection: Connection,
    /// On which device.
    pub device: Option<DeviceId>,
    /// The token that keeps it here.
    pub token: Token,
    /// Since when.
    pub since: Millis,
}

/// How a client is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Through which gateway.
    pub gateway: GatewayId,
    /// Its number there.
    pub slot: ConnectionSlot,
}

/// A conversation as one user has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Membership {
    /// Direct or group.
    pub kind: ConversationKind,
    /// The seq (in the conversation's log) of the last joining or leaving that was heard of.
    pub at: Seq,
    /// Whether a member now.
    pub joined: bool,
    /// Whether the conversation's heads do not come here by themselves.
    pub large: bool,
    /// Where it stands.
    pub inbox: StoredInbox,
    /// Whether `inbox` differs from its row.
    pub dirty: bool,
}

impl User {
    /// A user of whom nothing is known.
    #[must_use]
    pub fn new(id: UserId) -> Self {
        Self {
            id,
            head: 0,
            last_at: 0,
            origin: 0,
            changes_reserved: 0,
            snapshot_at: 0,
            conversations: HashMap::default(),
            by_change: BTreeMap::new(),
            unverified: BTreeSet::new(),
            answers: Vec::new(),
            unknown: BTreeSet::new(),
            connections: SmallVec::new(),
            record: None,
        }
    }

    /// The event that a fact of a conversation makes in the user's log; `None` when it was heard of before: facts are
    /// delivered at least once.
    #[must_use]
    pub fn hear(&self, fact: &Fact, now: Millis) -> Option<Arc<Event>> {
        let (Fact::UserJoined { conversation, at, .. } | Fact::UserLeft { conversation, at }) = fact else {
            return None;
        };
        if self.conversations.get(conversation).is_some_and(|known| known.at >= *at) {
            return None;
        }
        Some(Arc::new(Event {
            seq: self.head + 1,
            n: 0,
            sender: self.id.clone(),
            device: None,
            id: CommandId::of_fact(*conversation, *at),
            target: 0,
            created_at: now.max(self.last_at),
            hash: *at,
            fact: fact.clone(),
        }))
    }

    /// Takes the next event of the user's log. Total: whatever a log holds can be applied.
    ///
    /// # Panics
    /// When the event is not the next one: the caller has lost its place in the log.
    pub fn apply(&mut self, event: &Event) {
        assert_eq!(event.seq, self.head + 1, "event {} applied to a user at {}", event.seq, self.head);
        match &event.fact {
            Fact::UserJoined { conversation, kind, at } => {
                let known = self.conversations.entry(*conversation).or_insert(Membership {
                    kind: *kind,
                    at: 0,
                    joined: true,
                    large: false,
                    inbox: StoredInbox::default(),
                    dirty: false,
                });
                if *at >= known.at {
                    known.at = *at;
                    known.joined = true;
                    self.unverified.insert(*conversation);
                }
            }
            Fact::UserLeft { conversation, at } => {
                if let Some(known) = self.conversations.get_mut(conversation)
                    && *at >= known.at
                {
                    known.at = *at;
                    known.joined = false;
                    self.by_change.remove(&known.inbox.last_change());
                    self.unverified.remove(conversation);
                }
            }
            Fact::ChangesReserved { upto } => self.changes_reserved = self.changes_reserved.max(*upto),
            // Facts of conversations' logs have no business here; they change nothing.
            _ => self.apply_access(event),
        }
        self.head = event.seq;
        self.last_at = event.created_at;
    }

    /// Registers a client; false when the user has `max` already. One that is known has a newer token.
    pub fn connect(&mut self, client: Client, max: usize) -> bool {
        if let Some(known) = self.connections.iter_mut().find(|known| known.connection == client.connection) {
            known.token = client.token;
            return true;
        }
        if self.connections.len() >= max {
            return false;
        }
        self.connections.push(client);
        true
    }

    /// Forgets connections.
    pub fn forget(&mut self, is_gone: impl Fn(Connection) -> bool) {
        self.connections.retain(|known| !is_gone(known.connection));
    }

    /// Whether a snapshot of the present state is worth its row.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        self.head >= self.snapshot_at + snapshot_events()
    }

    /// Heap and own bytes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.conversations.allocation_size()
            + self.by_change.len() * 48
            + self.unverified.len() * 24
            + if self.connections.spilled() { self.connections.capacity() * size_of::<Client>() } else { 0 }
            + self.record.as_ref().map_or(0, |record| record.bytes())
    }
}

impl Client {
    /// A client that is registered now.
    #[must_use]
    pub fn new(connection: Connection, actor: &Actor, now: Millis) -> Self {
        let token = match &actor.by {
            By::Token(token) => *token,
            By::Key(_) => Token::default(),
        };
        Self { connection, device: actor.device.clone(), token, since: now }
    }

    /// As its user and operators see it.
    #[must_use]
    pub fn view(&self) -> SessionView {
        let Connection { gateway, slot } = self.connection;
        SessionView { connection: gateway.connection(slot), device: self.device.clone(), since: self.since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(n: u128) -> ConversationId {
        ConversationId(uuid::Uuid::from_u128(n))
    }

    fn joined(n: u128, at: Seq) -> Fact {
        Fact::UserJoined { conversation: conversation(n), kind: ConversationKind::Group, at }
    }

    fn left(n: u128, at: Seq) -> Fact {
        Fact::UserLeft { conversation: conversation(n), at }
    }

    fn hear(user: &mut User, fact: Fact) -> bool {
        let event = user.hear(&fact, 7);
        if let Some(event) = &event {
            user.apply(event);
        }
        event.is_some()
    }

    #[test]
    fn facts_heard_again_or_late_change_nothing() {
        let mut user = User::new(UserId::new("ada").unwrap());
        assert!(hear(&mut user, joined(1, 1)));
        assert!(!hear(&mut user, joined(1, 1)));
        assert!(hear(&mut user, left(1, 5)));
        assert!(!hear(&mut user, joined(1, 3)));
        assert!(!user.conversations[&conversation(1)].joined);
        assert!(hear(&mut user, joined(1, 6)));
        assert!(user.conversations[&conversation(1)].joined);
        assert_eq!(user.head, 3);
        assert!(!hear(&mut user, Fact::ChangesReserved { upto: 9 }));
    }

    #[test]
    fn connections_are_bounded_and_forgotten() {
        let mut user = User::new(UserId::new("ada").unwrap());
        let at = |gateway, slot, issued_at| Client {
            connection: Connection { gateway: GatewayId(gateway), slot: ConnectionSlot(slot) },
            device: None,
            token: Token { issued_at, ..Token::default() },
            since: 1,
        };
        assert!(user.connect(at(1, 1, 5), 2) && user.connect(at(2, 1, 5), 2) && !user.connect(at(2, 2, 5), 2));
        assert!(user.connect(at(1, 1, 6), 2), "a registration that is repeated is no second connection");
        user.forget(|known| known.gateway == GatewayId(2));
        assert_eq!(user.connections.as_slice(), [at(1, 1, 6)], "a repeated registration brings a newer token");
        user.forget(|known| known == at(1, 1, 6).connection);
        assert!(user.connections.is_empty());
    }
}
