//! What a user is to the node that owns them.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    access::{By, Token},
    event::{ConversationKind, Event, Fact},
    id::{Change, CommandId, ConnectionSlot, ConversationId, DeviceId, Epoch, GatewayId, Millis, Seq, UserId},
    inbox::{Place, Preference, Section},
    limit::USER_COMMANDS_KEPT,
    presence::Attention,
    reply::SessionView,
    stored::StoredInbox,
    wire::Actor,
};
use hashbrown::HashMap;

use crate::pace::snapshot_events;
use smallvec::SmallVec;

use super::{
    access::Record,
    index::{Entry, Index, Joined},
    presence::Visibility,
};

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
    /// The epoch of the owner whose memory this is, and whose snapshots; read from a snapshot, that of its writer.
    pub owner: Epoch,
    /// Change numbers up to here may have been handed out by blocks of the log.
    pub changes_reserved: u64,
    /// The seq of the last durable (or submitted) snapshot.
    pub snapshot_at: Seq,
    /// Every conversation that the user is or was a member of.
    pub(super) conversations: HashMap<ConversationId, Membership, foldhash::fast::FixedState>,
    /// Their orders.
    pub(super) index: Index,
    /// Leavings up to this change were forgotten.
    pub(super) left_floor: Change,
    /// The last commands of the user's own, and their hashes.
    pub(super) commands: VecDeque<(CommandId, u64)>,
    /// Conversations that wait to be asked where they stand, in this order; some may have been asked since.
    pub(super) questions: VecDeque<ConversationId>,
    /// Conversations that wait for that or for the answer.
    pub(super) open_questions: usize,
    /// Those of them that were asked.
    pub(super) asked: usize,
    /// Where the user's clients are.
    pub connections: SmallVec<[Client; 2]>,
    /// Others may not see how far the user has read.
    pub private_receipts: bool,
    /// What stands against the user's tokens, if anything ever did.
    pub(super) record: Option<Box<Record>>,
    /// How others see the user.
    pub(super) visibility: Visibility,
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
    /// What it has said of the user's attention.
    pub attention: Attention,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// What it is.
    pub kind: ConversationKind,
    /// The seq (in the conversation's log) of the last joining or leaving that was heard of.
    pub at: Seq,
    /// Whether a member now.
    pub joined: bool,
    /// When the joining was heard of.
    pub joined_at: Millis,
    /// What the user has set. Few conversations have anything.
    pub preference: Option<Box<Preference>>,
    /// Whether the conversation's heads do not come here by themselves.
    pub large: bool,
    /// Whether its owner has said where it stands.
    pub knowledge: Knowledge,
    /// Where it stands.
    pub inbox: StoredInbox,
    /// Whether `inbox` differs from its row.
    pub dirty: bool,
}

/// What is known of where a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Its owner has said it, and says whatever changes.
    Known,
    /// Its owner must be asked.
    Waiting,
    /// Its owner has been asked.
    Asked,
    /// Its owner could not tell.
    Unknown,
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
            owner: 0,
            changes_reserved: 0,
            snapshot_at: 0,
            conversations: HashMap::default(),
            index: Index::default(),
            left_floor: Change::default(),
            commands: VecDeque::new(),
            questions: VecDeque::new(),
            open_questions: 0,
            asked: 0,
            connections: SmallVec::new(),
            private_receipts: false,
            record: None,
            visibility: Visibility::default(),
        }
    }

    /// The event that a fact of a conversation makes in the user's log; `None` when it was heard of before: facts are
    /// delivered at least once. `change` hands out the next change number.
    #[must_use]
    pub fn hear(&self, fact: &Fact, now: Millis, change: impl FnOnce() -> Change) -> Option<Arc<Event>> {
        let (conversation, at) = match fact {
            Fact::UserJoined { conversation, at, .. } | Fact::UserLeft { conversation, at, .. } => (*conversation, *at),
            _ => return None,
        };
        if self.conversations.get(&conversation).is_some_and(|known| known.at >= at) {
            return None;
        }
        let fact = match fact {
            Fact::UserJoined { kind, .. } => Fact::UserJoined { conversation, kind: *kind, at, change: change() },
            _ => Fact::UserLeft { conversation, at, change: change() },
        };
        let id = CommandId::of_fact(conversation, at);
        Some(Arc::new(Event { id, hash: at, ..self.event(fact, now) }))
    }

    /// The next event of the user's log, but for its id.
    pub(super) fn event(&self, fact: Fact, now: Millis) -> Event {
        Event {
            seq: self.head + 1,
            n: 0,
            sender: self.id.clone(),
            device: None,
            id: CommandId(uuid::Uuid::nil()),
            target: 0,
            created_at: now.max(self.last_at),
            hash: 0,
            fact,
        }
    }

    /// Takes the next event of the user's log. Total: whatever a log holds can be applied.
    ///
    /// # Panics
    /// When the event is not the next one: the caller has lost its place in the log.
    pub fn apply(&mut self, event: &Event) {
        assert_eq!(event.seq, self.head + 1, "event {} applied to a user at {}", event.seq, self.head);
        match &event.fact {
            Fact::UserJoined { conversation, kind, at, change } => {
                let known = self.conversations.get(conversation);
                if known.is_none_or(|known| *at >= known.at) {
                    self.join(*conversation, *kind, *at, *change, event.created_at);
                }
            }
            Fact::UserLeft { conversation, at, change } => {
                let known = self.conversations.get(conversation);
                if known.is_some_and(|known| *at >= known.at) {
                    self.leave(*conversation, *at, *change);
                }
            }
            Fact::UserPreference { conversation, preference, change } => {
                if self.joined(conversation).is_some() {
                    self.change(*conversation, |known| {
                        known.preference = (!preference.is_default()).then(|| Box::new(*preference));
                        known.changed(*change);
                    });
                }
                self.remember_command(event);
            }
            Fact::UserReceipts { private } => {
                self.private_receipts = *private;
                self.remember_command(event);
            }
            Fact::ChangesReserved { upto } => self.changes_reserved = self.changes_reserved.max(*upto),
            Fact::UserPresence { .. } => self.apply_presence(event),
            // Facts of conversations' logs have no business here; they change nothing.
            _ => self.apply_access(event),
        }
        self.head = event.seq;
        self.last_at = event.created_at;
    }

    /// A command of the user's own, so that it is known when it comes again.
    pub(super) fn remember_command(&mut self, event: &Event) {
        if self.commands.len() >= USER_COMMANDS_KEPT {
            self.commands.pop_front();
        }
        self.commands.push_back((event.id, event.hash));
    }

    fn join(&mut self, conversation: ConversationId, kind: ConversationKind, at: Seq, change: Change, now: Millis) {
        self.conversations.entry(conversation).or_insert_with(|| Membership::former(kind));
        self.change(conversation, |known| {
            (known.at, known.joined_at) = (at, now);
            known.joined = true;
            known.changed(change);
        });
        // Its owner knows where it stands.
        self.question(conversation);
    }

    fn leave(&mut self, conversation: ConversationId, at: Seq, change: Change) {
        let mut open = Knowledge::Known;
        self.change(conversation, |known| {
            (known.at, known.joined) = (at, false);
            // Whoever joins again begins anew.
            known.preference = None;
            open = std::mem::replace(&mut known.knowledge, Knowledge::Known);
            known.changed(change);
        });
        self.open_questions -= usize::from(open.is_open());
        self.asked -= usize::from(open == Knowledge::Asked);
        self.forget_left();
    }

    /// Changes what is known of a conversation, and its place in every order with it.
    pub(super) fn change(&mut self, conversation: ConversationId, change: impl FnOnce(&mut Membership)) {
        if let Some(known) = self.conversations.get_mut(&conversation) {
            let before = known.entry(conversation);
            change(known);
            self.index.put(before, known.entry(conversation));
        }
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

    /// Forgets connections; whether there were any of these.
    pub fn forget(&mut self, now: Millis, is_gone: impl Fn(Connection) -> bool) -> bool {
        let before = self.connections.len();
        if before > 0 && self.connections.iter().all(|known| is_gone(known.connection)) {
            self.note_parting(now);
        }
        self.connections.retain(|known| !is_gone(known.connection));
        self.connections.len() < before
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
            + self.index.heap_bytes()
            + self.questions.capacity() * size_of::<ConversationId>()
            + self.commands.capacity() * size_of::<(CommandId, u64)>()
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
        Self { connection, device: actor.device.clone(), token, since: now, attention: Attention::default() }
    }

    /// As its user and operators see it.
    #[must_use]
    pub fn view(&self) -> SessionView {
        let Connection { gateway, slot } = self.connection;
        SessionView { connection: gateway.connection(slot), device: self.device.clone(), since: self.since }
    }
}

impl Membership {
    /// Of a conversation in which the user is not yet.
    pub(super) fn former(kind: ConversationKind) -> Self {
        Self {
            kind,
            at: 0,
            joined: false,
            joined_at: 0,
            preference: None,
            large: kind == ConversationKind::Channel,
            knowledge: Knowledge::Known,
            inbox: StoredInbox::default(),
            dirty: false,
        }
    }

    /// What the user has set.
    #[must_use]
    pub fn preference(&self) -> Preference {
        self.preference.as_deref().copied().unwrap_or_default()
    }

    /// When something was last said there, or the user joined.
    #[must_use]
    pub fn active_at(&self) -> Millis {
        self.inbox.message_at.max(self.joined_at)
    }

    /// The change stands in the user's log: it needs no row.
    fn changed(&mut self, change: Change) {
        if change > self.inbox.last_change() {
            self.inbox.set_change(change);
        }
    }

    /// How it stands in the index.
    pub(super) fn entry(&self, conversation: ConversationId) -> Option<Entry> {
        let change = self.inbox.last_change();
        if !self.joined {
            // Not before the first joining.
            return (self.at > 0).then_some(Entry { conversation, change, joined: None });
        }
        let preference = self.preference();
        let section = match preference {
            _ if preference.is_archived(self.inbox.last_n, self.inbox.message_at) => Section::Archived,
            Preference { pinned: true, .. } => Section::Pinned,
            _ => Section::Usual,
        };
        let place = Place { section, at: self.active_at(), conversation };
        let unread = preference.marked_unread || self.inbox.last_n > self.inbox.read_n;
        let joined = Joined { place, unread, muted: preference.muted_until != 0, large: self.large };
        Some(Entry { conversation, change, joined: Some(joined) })
    }
}

impl Knowledge {
    /// Whether an answer is still to come.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Asked)
    }
}
