//! Clean histories for the oracle's own tests: a little chat server that keeps every promise, its clients, and chance.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use uuid::Uuid;

use crate::history::{Connection, Conversation, Counts, Fact, Mark, Read, Record, Shown, User, What, counts};

const USERS: u32 = 6;
const CONVERSATIONS: u32 = 3;

/// The hash of the body of the message or edit with this number.
fn body_hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

struct Client {
    user: User,
    connection: Connection,
    /// The last seq held, per conversation.
    cursors: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Message {
    conversation: Conversation,
    id: Uuid,
    hash: u64,
    seq: u64,
}

#[derive(Clone, Copy, Default)]
struct Member {
    from: u64,
    upto: Option<u64>,
}

#[derive(Default)]
struct Log {
    facts: Vec<Fact>,
    members: Vec<Option<Member>>,
    messages: u64,
    dead: Vec<u64>,
    edits: Vec<(u64, u64)>,
    /// Which message, whose, with what.
    reactions: Vec<(u64, User, u32)>,
}

struct World {
    rng: SmallRng,
    at: u64,
    records: Vec<Record>,
    logs: Vec<Log>,
    clients: Vec<Client>,
    pending: Vec<Message>,
    committed: Vec<Message>,
    connections: u32,
    reads: u32,
    numbers: u64,
    receipts: Vec<(User, User, Conversation, u64)>,
}

/// A clean history of about `steps` steps.
pub(super) fn clean(seed: u64, steps: usize) -> Vec<Record> {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.quiesce();
    world.records
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            at: 0,
            records: Vec::new(),
            logs: Vec::new(),
            clients: Vec::new(),
            pending: Vec::new(),
            committed: Vec::new(),
            connections: 0,
            reads: 0,
            numbers: 0,
            receipts: Vec::new(),
        };
        for user in 0..USERS {
            world.note(What::NameUser { user: User(user), name: format!("user-{user}") });
        }
        for index in 0..CONVERSATIONS {
            let conversation = Conversation(index);
            world.note(What::NameConversation { conversation, id: Uuid::from_u128(u128::from(index) + 1) });
            let mut log = Log { facts: vec![Fact::Other { mark: 1 }], ..Log::default() };
            log.members.resize(USERS as usize, None);
            // The last user begins as an outsider everywhere.
            for user in 0..USERS - 1 {
                log.members[user as usize] = Some(Member::default());
                world.note(What::Join { user: User(user), conversation, from: 0 });
            }
            world.logs.push(log);
        }
        for user in 0..USERS {
            for _ in 0..1 + user % 2 {
                let connection = world.connect(User(user));
                world.clients.push(Client { user: User(user), connection, cursors: vec![1; CONVERSATIONS as usize] });
            }
        }
        world
    }

    fn note(&mut self, what: What) {
        self.at += self.rng.random_range(1..100);
        self.records.push(Record { at: self.at, what });
    }

    fn connect(&mut self, user: User) -> Connection {
        let connection = Connection(self.connections);
        self.connections += 1;
        self.note(What::Connect { connection, user });
        connection
    }

    fn any_conversation(&mut self) -> Conversation {
        Conversation(self.rng.random_range(0..CONVERSATIONS))
    }

    fn any_member(&mut self, conversation: Conversation) -> User {
        loop {
            let user = User(self.rng.random_range(0..USERS));
            if self.logs[conversation.0 as usize].is_member(user) {
                return user;
            }
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => {
                let conversation = self.any_conversation();
                self.start(conversation);
            }
            25..45 => self.commit(),
            45..60 => self.answer(),
            60..85 => {
                let client = self.rng.random_range(0..self.clients.len());
                let conversation = self.any_conversation();
                self.deliver(client, conversation, 3);
            }
            85..88 => self.reconnect(),
            88..90 => self.resync(),
            90..92 => {
                let conversation = self.any_conversation();
                let user = self.any_member(conversation);
                self.read(user, conversation, false);
            }
            92..95 => self.change(),
            95..96 => self.membership(),
            96..97 => self.receipt(),
            97..99 => self.react(),
            _ => self.presence(),
        }
    }

    fn start(&mut self, conversation: Conversation) {
        let user = self.any_member(conversation);
        self.numbers += 1;
        let message = Message {
            conversation,
            id: Uuid::from_u128(u128::from(self.numbers)),
            hash: body_hash(self.numbers),
            seq: 0,
        };
        self.note(What::SendStart { user, conversation, id: message.id, hash: message.hash });
        self.pending.push(message);
    }

    fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.pending.len());
        let mut message = self.pending.swap_remove(index);
        if self.rng.random_ratio(1, 50) {
            return self.note(What::Fail { id: message.id });
        }
        let log = &mut self.logs[message.conversation.0 as usize];
        log.messages += 1;
        message.seq = log.append(Fact::Message { id: message.id, hash: Some(message.hash) });
        self.committed.push(message);
    }

    fn answer(&mut self) {
        if self.committed.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.committed.len());
        let message = self.committed.swap_remove(index);
        if self.rng.random_ratio(1, 30) {
            return self.note(What::Unknown { id: message.id });
        }
        self.note(What::Ack { id: message.id, seq: message.seq });
        if self.rng.random_ratio(1, 20) {
            self.note(What::Ack { id: message.id, seq: message.seq });
        }
    }

    /// Delivers the next few events that a client lacks.
    fn deliver(&mut self, client: usize, conversation: Conversation, most: usize) {
        for _ in 0..most {
            let Client { user, connection, ref cursors } = self.clients[client];
            let log = &self.logs[conversation.0 as usize];
            let seq = cursors[conversation.0 as usize] + 1;
            let Some(fact) = log.facts.get(seq as usize - 1).copied() else { return };
            if !log.may_see(user, seq) {
                return;
            }
            self.clients[client].cursors[conversation.0 as usize] = seq;
            self.note(What::Deliver { connection, conversation, seq, fact });
        }
    }

    fn reconnect(&mut self) {
        let index = self.rng.random_range(0..self.clients.len());
        let user = self.clients[index].user;
        let connection = self.connect(user);
        self.clients[index].connection = connection;
        for conversation in (0..CONVERSATIONS).map(Conversation) {
            if !self.logs[conversation.0 as usize].is_member(user) {
                continue;
            }
            let from = self.clients[index].cursors[conversation.0 as usize];
            self.note(What::Resume { connection, conversation, from });
        }
    }

    fn resync(&mut self) {
        let index = self.rng.random_range(0..self.clients.len());
        let conversation = self.any_conversation();
        let Client { user, connection, .. } = self.clients[index];
        let log = &self.logs[conversation.0 as usize];
        if !log.is_member(user) {
            return;
        }
        let head = log.head();
        self.note(What::Resync { connection, conversation, head });
        self.read(user, conversation, false);
        self.clients[index].cursors[conversation.0 as usize] = head;
    }

    /// Reads everything that the user may see.
    fn read(&mut self, user: User, conversation: Conversation, last: bool) {
        let log = &self.logs[conversation.0 as usize];
        let Some(member) = log.members[user.0 as usize] else { return };
        let (after, head) = (member.from, member.upto.unwrap_or(log.head()));
        self.reads += 1;
        let read = Read(self.reads);
        self.note(What::ReadStart { read, user, conversation, after, last });
        for seq in after + 1..=head {
            let fact = self.logs[conversation.0 as usize].shown(seq);
            self.note(What::ReadItem { read, seq, fact });
        }
        self.note(What::ReadEnd { read, head });
    }

    /// A message that is not deleted, and a member of its conversation; not at every attempt.
    fn any_living_message(&mut self) -> Option<(Conversation, User, u64)> {
        let conversation = self.any_conversation();
        let user = self.any_member(conversation);
        let log = &self.logs[conversation.0 as usize];
        let target = self.rng.random_range(1..=log.head());
        let is_living = matches!(log.facts[target as usize - 1], Fact::Message { .. }) && !log.dead.contains(&target);
        is_living.then_some((conversation, user, target))
    }

    fn change(&mut self) {
        let Some((conversation, user, target)) = self.any_living_message() else { return };
        self.numbers += 1;
        let id = Uuid::from_u128(u128::from(self.numbers));
        let hash = self.rng.random_ratio(2, 3).then(|| body_hash(self.numbers));
        self.note(What::ChangeStart { user, conversation, target, id, hash });
        let log = &mut self.logs[conversation.0 as usize];
        let seq = match hash {
            Some(hash) => {
                log.edits.push((target, hash));
                log.append(Fact::Edit { target, hash: Some(hash) })
            }
            None => {
                log.dead.push(target);
                log.reactions.retain(|(of, ..)| *of != target);
                log.append(Fact::Delete { target })
            }
        };
        if self.rng.random_ratio(9, 10) {
            self.note(What::ChangeAck { id, seq });
        }
    }

    fn react(&mut self) {
        let Some((conversation, user, target)) = self.any_living_message() else { return };
        let reaction = (target, user, self.rng.random_range(0..3));
        let log = &mut self.logs[conversation.0 as usize];
        let known = log.reactions.iter().position(|one| *one == reaction);
        let on = known.is_none();
        match known {
            Some(index) => _ = log.reactions.swap_remove(index),
            None => log.reactions.push(reaction),
        }
        let key = reaction.2;
        log.append(Fact::React { target, user, key, on });
        self.note(What::ReactStart { user, conversation, target, key, on });
    }

    /// The last user joins a conversation, or another one leaves it for good.
    fn membership(&mut self) {
        let conversation = self.any_conversation();
        let index = conversation.0 as usize;
        let newcomer = User(USERS - 1);
        if self.logs[index].members[newcomer.0 as usize].is_none() && self.rng.random_ratio(1, 2) {
            let seq = self.logs[index].append(Fact::Join { user: newcomer });
            self.logs[index].members[newcomer.0 as usize] = Some(Member { from: seq - 1, upto: None });
            self.note(What::Join { user: newcomer, conversation, from: seq - 1 });
            for client in self.clients.iter_mut().filter(|client| client.user == newcomer) {
                client.cursors[index] = seq - 1;
            }
            return;
        }
        let leaver = User(self.rng.random_range(2..USERS - 1));
        if self.logs[index].is_member(leaver) {
            let seq = self.logs[index].append(Fact::Leave { user: leaver });
            if let Some(member) = &mut self.logs[index].members[leaver.0 as usize] {
                member.upto = Some(seq);
            }
            self.note(What::Leave { user: leaver, conversation, upto: seq });
        }
    }

    fn receipt(&mut self) {
        let conversation = self.any_conversation();
        let (observer, user) = (self.any_member(conversation), self.any_member(conversation));
        let known = self.receipts.iter().position(|(o, u, c, _)| (*o, *u, *c) == (observer, user, conversation));
        let before = known.map_or(0, |index| self.receipts.swap_remove(index).3);
        let upto = self.rng.random_range(before..=self.logs[conversation.0 as usize].messages.max(before));
        self.note(What::ReceiptStart { user, conversation, delivered: upto, read: upto });
        // Connections of its own, which hear of nothing else.
        let connection = Connection(10_000 + observer.0);
        for mark in [Mark::Delivered, Mark::Read] {
            self.note(What::Receipt { connection, user, conversation, mark, upto });
        }
        self.note(What::ReceiptAck { user, conversation, delivered: upto, read: upto });
        self.receipts.push((observer, user, conversation, upto));
    }

    fn presence(&mut self) {
        let user = User(self.rng.random_range(0..USERS));
        let observer = User(self.rng.random_range(0..USERS));
        let conversation = self.rng.random_ratio(1, 2).then(|| self.any_conversation());
        self.note(What::Presence { user, conversation, on: true });
        self.note(What::PresenceSeen { observer, user, conversation, on: true });
        if conversation.is_some() {
            self.note(What::PresenceSeen { observer, user, conversation, on: false });
        }
    }

    fn quiesce(&mut self) {
        while !self.pending.is_empty() {
            self.commit();
        }
        while !self.committed.is_empty() {
            self.answer();
        }
        for client in 0..self.clients.len() {
            for conversation in (0..CONVERSATIONS).map(Conversation) {
                self.deliver(client, conversation, usize::MAX);
            }
        }
        // Two messages one after the other that only the final reads will show.
        for conversation in (0..CONVERSATIONS).map(Conversation) {
            for _ in 0..2 {
                self.start(conversation);
                if let Some(mut message) = self.pending.pop() {
                    let log = &mut self.logs[conversation.0 as usize];
                    message.seq = log.append(Fact::Message { id: message.id, hash: Some(message.hash) });
                    self.note(What::Ack { id: message.id, seq: message.seq });
                }
            }
        }
        self.at += 6_000_000;
        for conversation in (0..CONVERSATIONS).map(Conversation) {
            for user in (0..USERS).map(User) {
                self.read(user, conversation, true);
            }
            for seq in 1..=self.logs[conversation.0 as usize].head() {
                let log = &self.logs[conversation.0 as usize];
                let Fact::Message { hash: Some(original), .. } = log.facts[seq as usize - 1] else { continue };
                let edited =
                    log.edits.iter().rev().find(|(target, _)| *target == seq).map_or(original, |(_, hash)| *hash);
                let shown = if log.dead.contains(&seq) { Shown::Tombstone } else { Shown::Body(edited) };
                self.note(What::Show { user: User(0), conversation, seq, shown, last: true });
                for user in (0..2).map(User) {
                    let counts = self.logs[conversation.0 as usize].counts(user, seq);
                    self.note(What::Counted { user, conversation, seq, counts, last: true });
                }
            }
        }
    }
}

impl Log {
    fn append(&mut self, fact: Fact) -> u64 {
        self.facts.push(fact);
        self.head()
    }

    fn head(&self) -> u64 {
        self.facts.len() as u64
    }

    fn is_member(&self, user: User) -> bool {
        self.members[user.0 as usize].is_some_and(|member| member.upto.is_none())
    }

    fn may_see(&self, user: User, seq: u64) -> bool {
        self.members[user.0 as usize]
            .is_some_and(|member| seq > member.from && member.upto.is_none_or(|upto| seq <= upto))
    }

    fn counts(&self, user: User, seq: u64) -> Counts {
        let of_message = || self.reactions.iter().filter(|(target, ..)| *target == seq);
        let all = (0..3).map(|key| (key, of_message().filter(|(.., with)| *with == key).count() as u64));
        let own = of_message().filter(|(_, whose, _)| *whose == user).map(|(.., key)| *key);
        counts(all.filter(|(_, count)| *count > 0), own)
    }

    /// An event as a read shows it: the bodies of deleted messages are gone.
    fn shown(&self, seq: u64) -> Fact {
        match self.facts[seq as usize - 1] {
            Fact::Message { id, .. } if self.dead.contains(&seq) => Fact::Message { id, hash: None },
            Fact::Edit { target, .. } if self.dead.contains(&target) => Fact::Edit { target, hash: None },
            fact => fact,
        }
    }
}
