//! Owners on a real store, the map that says who owns, and two users who ask again until they are answered.
//!
//! Everything happens in the test's thread but the store's own work; a scene waits for what it needs to have happened.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use chappe_cluster::{
    control::{Answer, Outcome},
    link::GatewayPort,
    ownership::{Assignment, ClusterId, Command as Proposal, Founding, Ownership, Versions},
};
use chappe_loadtest::{
    history::{self, Conversation, Fact as Seen, Record, User, What},
    oracle::Oracle,
};
use chappe_node::{
    simulation::{Introduction, Out, Stepped},
    store::{
        Shared,
        cql::{Config, Cql, real},
    },
};
use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create},
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess},
    id::{CommandId, ConversationId, GatewayId, Generation, Millis, NodeUid, Partition, SessionId, UserId, partitions},
    reply::Reply,
    wire::{Actor, Asked, Correlation, Lane, ToGateway, ToNode},
};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::gate::{Gate, Gated};

/// Between two looks whether something has happened. An owner's clock goes on by a millisecond with each.
const TURN: Duration = Duration::from_micros(200);

const T0: Millis = 1_700_000_000_000;

/// The members, of whom the first one sends.
const USERS: [&str; 2] = ["ada", "bob"];

const CONVERSATION: Conversation = Conversation(0);

/// A keyspace of a real server. Each world in it is a cluster of its own, with a founding's number and a conversation of its own.
pub struct Place {
    config: Config,
    cql: Cql,
    runtime: Runtime,
    worlds: AtomicU16,
}

/// See the module's documentation.
pub struct World {
    place: Arc<dyn Shared>,
    /// How long a scene waits for what has to come.
    patience: Duration,
    conversation: ConversationId,
    state: Ownership,
    index: u64,
    now: Arc<AtomicU64>,
    owners: Vec<Owner>,
    /// Who is owner by the map.
    owner: usize,
    oracle: Oracle,
    at: u64,
    reads: u32,
    messages: Vec<Message>,
    /// Why somebody was told to ask again, the last time.
    refusal: Option<String>,
    /// What the oracle does not look for.
    wrong: Vec<String>,
}

struct Owner {
    node: Stepped,
    gate: Arc<Gate>,
    session: SessionId,
    spoken: Arc<Mutex<Vec<ToGateway>>>,
    /// What it was asked and has not answered, by correlation.
    asked: BTreeMap<u64, Question>,
    attempts: BTreeMap<Partition, u32>,
    /// Whether it stands still.
    paused: bool,
    /// Whether it hears of the map.
    informed: bool,
}

#[derive(Clone)]
struct Question {
    id: CommandId,
    command: Command,
    about: About,
}

#[derive(Clone, Copy)]
enum About {
    Creation,
    /// The message that is sent.
    Message(usize),
    /// A reading of everything, by its number in the history.
    Read(history::Read),
}

struct Message {
    id: CommandId,
    text: String,
    acknowledged: bool,
}

struct Port(Arc<Mutex<Vec<ToGateway>>>);

impl GatewayPort for Port {
    fn receive(&self, _: SessionId, batch: Vec<ToGateway>) {
        self.0.lock().extend(batch);
    }
}

/// An owner, by its place in the succession.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(usize);

/// A message that a user sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent(usize);

// === impl Place ===

impl Place {
    /// None where tests that need servers are left out.
    pub fn new(name: &str) -> Option<Self> {
        let config = real::one_server(name)?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cql = runtime.block_on(Cql::open(&config)).unwrap();
        Some(Self { config, cql, runtime, worlds: AtomicU16::new(1) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // On a server of our own it goes with the server.
        if std::env::var_os("CHAPPE_TEST_CQL").is_some() {
            real::drop_keyspace(&self.runtime, &self.config);
        }
    }
}

// === impl World: scenes ===

impl World {
    /// A conversation that its first owner has created.
    pub fn new(place: &Place, patience: Duration) -> Self {
        let generation = place.worlds.fetch_add(1, Ordering::Relaxed);
        let mut state = Ownership::default();
        let founding = Founding { cluster: ClusterId(1), generation, partitions: partitions() as u32, version: 1 };
        state.apply(1, &Proposal::Found(founding)).unwrap();
        let mut world = Self {
            place: Arc::new(place.cql.clone()),
            patience,
            conversation: ConversationId(Uuid::new_v4()),
            state,
            index: 1,
            now: Arc::new(AtomicU64::new(T0)),
            owners: Vec::new(),
            owner: 0,
            oracle: Oracle::default(),
            at: 0,
            reads: 0,
            messages: Vec::new(),
            refusal: None,
            wrong: Vec::new(),
        };
        world.note(What::NameConversation { conversation: CONVERSATION, id: world.conversation.0 });
        for (index, name) in USERS.into_iter().enumerate() {
            let user = User(index as u32);
            world.note(What::NameUser { user, name: name.to_owned() });
            world.note(What::Join { user, conversation: CONVERSATION, from: 0 });
        }
        let first = world.start();
        world.assign(None, first);
        world.create(first);
        world
    }

    /// The owner by the map.
    pub const fn owner(&self) -> Who {
        Who(self.owner)
    }

    pub fn gate(&self, who: Who) -> Arc<Gate> {
        Arc::clone(&self.owners[who.0].gate)
    }

    /// It stands still from now on, and hears nothing any more of who owns what.
    pub fn pause(&mut self, who: Who) {
        let owner = &mut self.owners[who.0];
        (owner.paused, owner.informed) = (true, false);
    }

    /// It goes on, and still hears nothing but the store.
    pub fn wake(&mut self, who: Who) {
        self.owners[who.0].paused = false;
    }

    /// The cluster ends the owner's session and gives what it had to a new one.
    pub fn succeed(&mut self) -> Who {
        self.succeed_with(|_| {})
    }

    /// The same, with something of the new one's held up from the beginning.
    pub fn succeed_with(&mut self, prepare: impl FnOnce(&Gate)) -> Who {
        let (before, next) = (self.owner(), self.start());
        prepare(&self.owners[next.0].gate);
        self.assign(Some(before), next);
        next
    }

    /// A user sends a new message. The text decides nothing, but stands in the row.
    pub fn send(&mut self, to: Who, text: &str) -> Sent {
        let id = self.fresh_id();
        let text = format!("{{\"text\":\"{text}\"}}");
        let hash = history::hash(text.as_bytes());
        self.note(What::SendStart { user: User(0), conversation: CONVERSATION, id: id.0, hash });
        self.messages.push(Message { id, text, acknowledged: false });
        let sent = Sent(self.messages.len() - 1);
        self.repeat(to, sent);
        sent
    }

    /// The same message is sent again, to whoever that is.
    pub fn repeat(&mut self, to: Who, Sent(index): Sent) {
        let Message { id, text, acknowledged } = &mut self.messages[index];
        *acknowledged = false;
        let body = Body::parse(text).unwrap();
        let command = Command::MessageSend { conversation: self.conversation, body, mentions: Default::default() };
        let question = Question { id: *id, command, about: About::Message(index) };
        self.ask(to, question);
    }

    /// A user wants to read everything: the answer waits for a clean fence read. `last`: nothing is missing in it.
    pub fn look(&mut self, to: Who, last: bool) {
        self.reads += 1;
        let read = history::Read(self.reads);
        self.note(What::ReadStart { read, user: User(0), conversation: CONVERSATION, after: 0, last });
        let command = Command::EventList { conversation: self.conversation, after: 0, limit: 200 };
        self.ask(to, Question { id: CommandId(Uuid::nil()), command, about: About::Read(read) });
    }

    /// Whether it was acknowledged since it was sent the last time, by anybody.
    pub fn is_acknowledged(&self, Sent(index): Sent) -> bool {
        self.messages[index].acknowledged
    }

    /// Whether the owner has found out that it is none.
    pub fn is_over(&self, who: Who) -> bool {
        let owner = &self.owners[who.0];
        owner.node.alive().is_none_or(|(session, _)| session != owner.session)
    }

    /// Whether nothing is going to happen by itself.
    pub fn is_calm(&self) -> bool {
        self.owners.iter().all(|owner| owner.gate.is_calm() && (owner.paused || owner.node.is_idle()))
    }

    /// Lets everything take its course until something is so.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < self.patience, "it never came to this: {what}");
            self.turn();
        }
    }

    /// The same, where a weakened owner may never come to it: that is for the judge.
    fn until_or_late(&mut self, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) && began.elapsed() < self.patience {
            self.turn();
        }
    }

    /// A message is sent and acknowledged.
    pub fn exchange(&mut self, to: Who, text: &str) -> Sent {
        let sent = self.send(to, text);
        self.until("an acknowledgement", |world| world.is_acknowledged(sent));
        sent
    }

    /// A message that was sent before is sent again, and acknowledged.
    pub fn exchange_again(&mut self, to: Who, sent: Sent) {
        self.repeat(to, sent);
        self.until("an acknowledgement of what was sent before", |world| world.is_acknowledged(sent));
    }

    /// It goes on, and either answers this message or finds its end.
    pub fn wake_until_over(&mut self, who: Who, sent: Sent) {
        self.wake(who);
        self.until("an owner that wakes up ends, or answers", |world| {
            world.is_over(who) || world.is_acknowledged(sent)
        });
    }

    /// What is wrong with all that was seen, after a last owner has read everything and users have asked again for everything
    /// that they had been told. Every former owner must have ended by its next fence read.
    pub fn judge(mut self) -> Vec<String> {
        let formers: Vec<Who> = (0..self.owners.len()).filter(|index| *index != self.owner).map(Who).collect();
        for former in &formers {
            let gate = self.gate(*former);
            for kind in super::scenes::KINDS {
                gate.open(kind);
            }
            self.wake(*former);
        }
        self.until_or_late(|world| formers.iter().all(|former| world.is_over(*former)));
        for former in formers {
            if !self.is_over(former) {
                self.wrong.push(format!("{former:?} has a successor and goes on"));
            }
        }
        let before = self.owner();
        self.look(before, false);
        self.until_or_late(|world| world.owners[before.0].asked.is_empty());
        let last = self.succeed();
        for index in 0..self.messages.len() {
            self.repeat(last, Sent(index));
        }
        self.until_or_late(|world| world.owners[last.0].asked.is_empty());
        self.look(last, true);
        self.until_or_late(|world| world.owners[last.0].asked.is_empty());
        let unanswered = self.owners[last.0].asked.len() + self.owners[before.0].asked.len();
        if unanswered > 0 {
            let refusal = self.refusal.take().unwrap_or_default();
            self.wrong.push(format!("{unanswered} questions were not answered in time: {refusal}"));
        }
        let verdict = self.oracle.finish();
        let told = verdict.violations.iter().map(|violation| format!("{:?}: {}", violation.rule, violation.text));
        told.chain(self.wrong).collect()
    }
}

// === impl World: what goes on behind them ===

impl World {
    fn note(&mut self, what: What) {
        self.at += 1;
        self.oracle.observe(&Record { at: self.at, what });
    }

    fn fresh_id(&self) -> CommandId {
        let now = self.now.load(Ordering::Relaxed);
        CommandId(uuid::Builder::from_unix_timestamp_millis(now, &rand::random()).into_uuid())
    }

    fn apply(&mut self, proposal: &Proposal) -> Outcome {
        self.index += 1;
        let result = self.state.apply(self.index, proposal);
        Outcome::Answered(Answer { version: self.state.map().version(), result })
    }

    /// A node begins, and has a session.
    fn start(&mut self) -> Who {
        let index = self.owners.len();
        let me = Introduction {
            node: NodeUid(100 + index as u64),
            ordinal: index as u32,
            addr: ([127, 0, 0, 1], 7000 + index as u16).into(),
            zone: String::new(),
            weight: 1,
            versions: Versions { min: 1, max: 1 },
        };
        let gate = Arc::new(Gate::default());
        let shared: Arc<dyn Shared> = Arc::new(Gated::new(Arc::clone(&self.place), Arc::clone(&gate)));
        let node = Stepped::new(me, shared, Generation(0), Arc::clone(&self.now), 1 << 30);
        let spoken: Arc<Mutex<Vec<ToGateway>>> = Arc::default();
        let port: Arc<dyn GatewayPort> = Arc::new(Port(Arc::clone(&spoken)));
        node.attach(GatewayId(1), &port);
        self.owners.push(Owner {
            node,
            gate,
            session: 0,
            spoken,
            asked: BTreeMap::new(),
            attempts: BTreeMap::new(),
            paused: false,
            informed: true,
        });
        self.announce();
        self.until("a session", |world| world.owners[index].node.alive().is_some());
        self.owners[index].session = self.owners[index].node.alive().unwrap().0;
        Who(index)
    }

    /// Partitions of everybody who takes part.
    fn partitions(&self) -> Vec<Partition> {
        let users = USERS.map(|name| UserId::new(name).unwrap().partition());
        let mut all: Vec<Partition> = users.into_iter().chain([self.conversation.partition()]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn assign(&mut self, before: Option<Who>, next: Who) {
        let to = self.owners[next.0].session;
        let expect = |partition| self.state.map().owner(partition).map_or(0, |(_, epoch)| epoch);
        let assignments =
            self.partitions().into_iter().map(|partition| Assignment { partition, expect: expect(partition), to });
        let assignments = assignments.collect();
        let session = before.map(|before| self.owners[before.0].session);
        let outcome = self.apply(&Proposal::ExpireAndAssign { session, minute: None, assignments });
        assert!(matches!(outcome, Outcome::Answered(Answer { result: Ok(_), .. })), "{outcome:?}");
        self.owner = next.0;
        self.announce();
    }

    /// Whoever hears of the map does.
    fn announce(&mut self) {
        for owner in self.owners.iter().filter(|owner| owner.informed) {
            owner.node.map_changed(self.state.map().clone());
        }
    }

    fn create(&mut self, who: Who) {
        let create = Create {
            conversation: self.conversation,
            kind: ConversationKind::Group,
            encryption: Encryption::None,
            members: vec![UserId::new(USERS[1]).unwrap()],
            title: String::new(),
            data: None,
            history: HistoryAccess::All,
            receipts: false,
            open: false,
            retention_secs: 0,
        };
        let id = self.fresh_id();
        self.ask(who, Question { id, command: Command::ConversationCreate(Box::new(create)), about: About::Creation });
        self.until("the conversation is there", |world| world.owners[who.0].asked.is_empty());
        self.until("everybody knows of it", Self::is_calm);
    }

    fn ask(&mut self, who: Who, question: Question) {
        static CORRELATIONS: AtomicU64 = AtomicU64::new(1);
        let correlation = CORRELATIONS.fetch_add(1, Ordering::Relaxed);
        self.owners[who.0].asked.insert(correlation, question);
        self.say(who, correlation);
    }

    fn say(&self, Who(index): Who, correlation: u64) {
        let owner = &self.owners[index];
        let Some(Question { id, command, .. }) = owner.asked.get(&correlation).cloned() else { return };
        let partition = self.conversation.partition();
        let lane = Lane { partition, attempt: owner.attempts.get(&partition).copied().unwrap_or_default() };
        let actor = Actor { user: UserId::new(USERS[0]).unwrap(), device: None, by: By::Token(Token::default()) };
        let deadline = self.now.load(Ordering::Relaxed) + 1_000_000;
        let asked = Asked { correlation: Correlation(correlation), actor, id, command, deadline };
        owner.node.receive(GatewayId(1), ToNode::Command(lane, Arc::new(asked)));
    }

    /// Everybody who does not stand still does what there is to do.
    fn turn(&mut self) {
        thread::sleep(TURN);
        let now = self.now.fetch_add(1, Ordering::Relaxed);
        for index in 0..self.owners.len() {
            if self.owners[index].paused {
                continue;
            }
            if now.is_multiple_of(100) {
                self.owners[index].node.second();
            }
            self.owners[index].node.run();
            for out in self.owners[index].node.take_out() {
                self.carry_out(index, out);
            }
            let spoken = std::mem::take(&mut *self.owners[index].spoken.lock());
            for word in spoken {
                self.hear(Who(index), word);
            }
        }
    }

    fn carry_out(&mut self, index: usize, out: Out) {
        match out {
            // Whoever does not hear of the map is not heard either.
            Out::Propose(proposal) if self.owners[index].informed => {
                let outcome = self.apply(&proposal);
                self.owners[index].node.answered(proposal, outcome);
                self.announce();
            }
            Out::Propose(_) => {}
            Out::Peer(to, word) => {
                let receiver = self.owners.iter().find(|owner| owner.session == to && !owner.paused);
                if let Some(receiver) = receiver {
                    receiver.node.hear(word);
                }
            }
            Out::Refused(why) => self.wrong.push(format!("an owner refuses to go on: {why}")),
        }
    }

    fn hear(&mut self, who: Who, word: ToGateway) {
        match word {
            ToGateway::Reply(Correlation(correlation), Ok(reply)) => {
                let Some(question) = self.owners[who.0].asked.remove(&correlation) else { return };
                self.answered(question, reply);
            }
            ToGateway::Reply(Correlation(correlation), Err(error)) => {
                let Some(question) = self.owners[who.0].asked.get(&correlation) else { return };
                if error.code.row().retryable && !self.is_over(who) {
                    self.refusal = Some(error.to_string());
                    self.say(who, correlation);
                } else {
                    self.wrong.push(format!("{:?} was refused: {error}", question.id));
                    self.owners[who.0].asked.remove(&correlation);
                }
            }
            // What a former owner does not answer is asked elsewhere.
            ToGateway::Moved { lane, .. } if who.0 == self.owner => {
                *self.owners[who.0].attempts.entry(lane.partition).or_default() = lane.attempt + 1;
                let asked: Vec<u64> = self.owners[who.0].asked.keys().copied().collect();
                for correlation in asked {
                    self.say(who, correlation);
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, question: Question, reply: Reply) {
        match (question.about, reply) {
            (About::Message(index), Reply::Sent(sent)) => {
                self.messages[index].acknowledged = true;
                self.note(What::Ack { id: question.id.0, seq: sent.seq });
            }
            (About::Read(read), Reply::Events { items, head, .. }) => {
                for event in items {
                    self.note(What::ReadItem { read, seq: event.seq, fact: seen(&event) });
                }
                self.note(What::ReadEnd { read, head });
            }
            (About::Creation, Reply::Conversation(_)) => {}
            (_, reply) => self.wrong.push(format!("{:?} was answered by {reply:?}", question.command)),
        }
    }
}

/// An event as far as the oracle judges it.
fn seen(event: &Event) -> Seen {
    match &event.fact {
        Fact::MessageNew { body, .. } => Seen::Message { id: event.id.0, hash: Some(history::hash(body.json())) },
        other => Seen::Other { mark: history::hash(other.name().as_bytes()) },
    }
}
