//! Nodes, gateways, clients, the store and the control plane in one process, on one virtual clock, from one seed.
//!
//! A run begins with a founding and some conversations, then faults are on (the *safety* phase: whatever happens, the oracle
//! must find nothing), then everything heals and must recover within [`RECOVERY_MS_MAX`] (the *liveness* phase): every
//! command is answered, and every member reads everything. The same seed gives the same run to the last event.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use chappe_cluster::{
    control::{Health, Outcome},
    link::{GatewayPort, Links},
    ownership::{Command as Proposal, Map, Move, PlanId, Versions},
};
use chappe_gateway::{auth, simulation::Stepped as Gateway};
use chappe_loadtest::{
    history::{self, Conversation, Fact as Seen, Record, User, What},
    oracle::{Oracle, Verdict},
};
use chappe_node::{
    simulation::{Between, Introduction, Out, Stepped},
    store::quorum::{Replicas, Way, Weather},
};
use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create},
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess},
    id::{
        CommandId, ConversationId, EntityId, GatewayId, Generation, Millis, NodeUid, Partition, SessionId, UserId,
        partitions,
    },
    limit::LINK_LANES,
    reply::Reply,
    wire::{Actor, Asked as Question, Owner, ToGateway, ToNode},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use uuid::Uuid;

use super::{
    client::{Asked, Came, Client, Kind, Why},
    device::{Device, Sight},
    faults::{self, Fault, Trouble},
    plane::{Cluster, RAFT_MS, Said},
};

pub const NODES: usize = 3;
pub const GATEWAYS: usize = 2;
const CLIENTS: usize = 4;
/// The first users have two each.
pub const DEVICES: usize = 6;
pub const CONVERSATIONS: usize = 3;
/// Few, so that a partition holds more than one entity, and maps are short.
pub const PARTITIONS: usize = 16;

/// How long messages are kept where they are kept for a time only: a run has some times as much.
const RETENTION_SECS: u32 = 5;
const T0: Millis = 1_700_000_000_000;
const TICK_US: u64 = 100_000;
/// Within this time after everything has healed everything must be answered.
const RECOVERY_MS_MAX: Millis = 60_000;
/// Within this time after that every device must have heard of everything.
const LEVEL_MS_MAX: Millis = 30_000;
/// Within this time after that the store must be rid of what was removed.
const REMOVAL_MS_MAX: Millis = 30_000;
/// A way that is silent for so long is broken, for both its ends.
const IDLE_US: u64 = 5_000_000;

/// What a seed came to.
pub struct Outcomes {
    pub verdict: Verdict,
    /// What was not answered in time after everything had healed, or what no owner may do.
    pub wrong: Vec<String>,
    /// Stands for everything that happened.
    pub trace: u64,
    pub acked: u64,
    pub moves: usize,
    /// Up to where the history of a conversation was removed, because it was kept long enough.
    pub removed: u64,
}

impl Outcomes {
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean() && self.wrong.is_empty()
    }

    /// The first of what is wrong, in words.
    pub fn first_wrong(&self) -> String {
        let violation = self.verdict.violations.first();
        let told = violation.map(|violation| format!("rule {} {}", violation.rule as u8, violation.text));
        told.or_else(|| self.wrong.first().cloned()).unwrap_or_default()
    }
}

enum Event_ {
    Tick,
    /// Raft's clock is moved on.
    Raft,
    Fault(Fault),
    Heal(Fault),
    ToNode {
        gateway: usize,
        node: usize,
        life: u32,
        message: ToNode,
    },
    ToGateway {
        gateway: usize,
        node: usize,
        life: u32,
        from: SessionId,
        batch: Vec<ToGateway>,
    },
    Peer {
        from: usize,
        to: SessionId,
        word: Between,
    },
    MapToNode {
        node: usize,
        life: u32,
        map: Map,
    },
    MapToGateway {
        gateway: usize,
        map: Map,
    },
    Propose {
        node: usize,
        life: u32,
        command: Proposal,
    },
    Answer {
        node: usize,
        life: u32,
        command: Proposal,
        outcome: Outcome,
    },
    Health(usize, Health),
    /// A gateway is told that its way to a session is broken.
    Lost(usize, SessionId),
    /// An owner of a conversation dies, and comes back soon.
    Strike(usize, u64),
    /// A node is troubled on its way to the store.
    Slow(usize, u64),
    /// One node does not hear another.
    Deaf(usize, usize, u64),
}

struct NodeHost {
    node: Option<Stepped>,
    uid: NodeUid,
    life: u32,
    clock: Arc<AtomicU64>,
    skew: i64,
    paused: bool,
    /// What has arrived while it stood still.
    backlog: Vec<Event_>,
    store: Replicas,
    no_plane: bool,
    /// Somebody says that it is down, and is believed.
    slandered: bool,
    /// It says what it wants to the cluster, and hears nothing.
    no_news: bool,
    /// That begins with its next commit.
    deaf_on_commit: bool,
}

struct GatewayHost {
    id: GatewayId,
    gateway: Option<Gateway>,
    ways: Arc<Ways>,
    /// Who asked what is on its way.
    asked: BTreeMap<u64, (usize, u64)>,
    /// Whether it hears of changes of the map.
    informed: bool,
}

/// A gateway's ways to all nodes.
struct Ways {
    map: Mutex<Map>,
    generation: Generation,
    out: Mutex<Vec<(SessionId, ToNode)>>,
}

impl Links for Ways {
    fn owner(&self, partition: Partition) -> Option<Owner> {
        self.map.lock().named_owner(partition)
    }

    fn send(&self, to: SessionId, message: ToNode) -> Vec<ToGateway> {
        self.out.lock().push((to, message));
        Vec::new()
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}

/// The way between a gateway and a node, in order in both directions.
#[derive(Default)]
struct Link {
    cut: bool,
    /// Counts connections; what is on its way in a former one is lost.
    life: u32,
    /// Whether both ends have a connection.
    up: bool,
    cut_since: u64,
    /// Nothing arrives before what was sent earlier.
    arrivals: [u64; 2],
    /// What is sent while it is cut, to be sent again if that is short.
    held: Vec<Event_>,
}

/// How often a device loses its connection, per turn.
const BREAKS: f64 = 0.003;

/// By gateway and node.
type Spoken = Arc<Mutex<Vec<(usize, usize, SessionId, Vec<ToGateway>)>>>;

pub struct World {
    seed: u64,
    /// When events were stamped, by conversation and seq, as far as anybody was told.
    stamps: Vec<BTreeMap<u64, Millis>>,
    /// The highest floor that anybody was told of.
    removed: u64,
    pub rng: StdRng,
    now: u64,
    queue: BTreeMap<(u64, u64), Event_>,
    counted: u64,
    replicas: Replicas,
    cluster: Cluster,
    nodes: Vec<NodeHost>,
    gateways: Vec<GatewayHost>,
    /// Gateways' clock.
    clock: Arc<AtomicU64>,
    links: Vec<Vec<Link>>,
    no_peer: Vec<(usize, usize)>,
    /// Who does not hear from whom that they agree to a planned move.
    no_agreement: Vec<(usize, usize)>,
    /// When the last word from a node to a session arrives on a lane: the next one does not overtake it.
    words: BTreeMap<(usize, SessionId, u16), u64>,
    /// What nodes have for gateways, until the turn is over.
    spoken: Spoken,
    pub clients: Vec<Client>,
    /// Their WebSockets, the first of each and then the second.
    devices: Vec<Device>,
    connections: u32,
    /// Where conversations stand, as the last readings say.
    heads: Vec<u64>,
    pub conversations: Vec<(ConversationId, Conversation)>,
    created: Vec<bool>,
    oracle: Oracle,
    trace: DefaultHasher,
    reads: u32,
    lives: u32,
    moves: usize,
    stumbles: u32,
    pub wrong: Vec<String>,
    told: bool,
    /// Bytes for the entities of a shard: usually enough, sometimes so few that everything is put away at once.
    budget: usize,
}

struct Port {
    gateway: usize,
    node: usize,
    spoken: Spoken,
}

impl GatewayPort for Port {
    fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        self.spoken.lock().push((self.gateway, self.node, from, batch));
    }
}

/// Runs a seed from beginning to end.
pub fn run(seed: u64, told: bool) -> Outcomes {
    chappe_node::pace::shorten(true);
    chappe_gateway::pace::shorten(true);
    // In some worlds a handful of members are very many.
    chappe_node::pace::crowd(seed.is_multiple_of(4));
    // What an earlier run of this thread has planted is not this one's.
    let _ = Stepped::steady();
    let mut world = World::new(seed, told);
    world.budget = if world.rng.random_bool(0.4) { 1_000 } else { 1 << 30 };
    world.begin();
    let lasts = world.rng.random_range(15_000..30_000);
    for (at, fault) in faults::draw(&mut world.rng, lasts) {
        world.after(at * 1000, Event_::Fault(fault));
    }
    world.run_for(lasts);
    world.heal();
    world.finish()
}

impl World {
    fn new(seed: u64, told: bool) -> Self {
        let replicas = Replicas::new(seed, Weather::default());
        let cluster = Cluster::found(seed, NODES, partitions(), T0);
        let nodes = (0..NODES)
            .map(|index| NodeHost {
                node: None,
                uid: cluster.uid(index),
                life: 0,
                clock: Arc::new(AtomicU64::new(T0)),
                skew: 0,
                paused: false,
                backlog: Vec::new(),
                store: replicas.from_elsewhere(),
                no_plane: false,
                slandered: false,
                no_news: false,
                deaf_on_commit: false,
            })
            .collect();
        let clock = Arc::new(AtomicU64::new(T0));
        let generation = replicas.generation();
        let gateway = |index: usize| GatewayHost::new(GatewayId(index as u32 + 1), generation, &clock);
        let links = || (0..NODES).map(|_| Link::default()).collect();
        let user = |index: usize| UserId::new(&format!("user{index}")).expect("a name");
        let conversations: Vec<(ConversationId, Conversation)> = (0..CONVERSATIONS)
            .map(|index| {
                let id = uuid::Builder::from_random_bytes((seed as u128 * 31 + index as u128 + 7).to_be_bytes());
                (ConversationId(id.into_uuid()), Conversation(index as u32))
            })
            .collect();
        let device = |index: usize| {
            let who = index % CLIENTS;
            Device::new(User(who as u32), token(&user(who)), format!("d{}", index / CLIENTS), &conversations)
        };
        Self {
            seed,
            stamps: vec![BTreeMap::new(); CONVERSATIONS],
            removed: 0,
            rng: StdRng::seed_from_u64(seed),
            now: 0,
            queue: BTreeMap::new(),
            counted: 0,
            cluster,
            replicas,
            nodes,
            gateways: (0..GATEWAYS).map(gateway).collect(),
            clock,
            links: (0..GATEWAYS).map(|_| links()).collect(),
            no_peer: Vec::new(),
            no_agreement: Vec::new(),
            words: BTreeMap::new(),
            spoken: Arc::default(),
            clients: (0..CLIENTS).map(|index| Client::new(user(index), User(index as u32))).collect(),
            devices: (0..DEVICES).map(device).collect(),
            connections: 0,
            heads: vec![0; CONVERSATIONS],
            conversations,
            created: vec![false; CONVERSATIONS],
            oracle: Oracle::default(),
            trace: DefaultHasher::new(),
            reads: 0,
            lives: GATEWAYS as u32,
            moves: 0,
            stumbles: 0,
            wrong: Vec::new(),
            told,
            budget: 1 << 30,
        }
    }

    pub fn ms(&self) -> Millis {
        T0 + self.now / 1000
    }

    pub fn say(&self, words: impl FnOnce() -> String) {
        if self.told {
            println!("{:>10.3} {}", self.now as f64 / 1e6, words());
        }
    }

    /// Tells of a command that somebody wants to follow: `CHAPPE_SIM_WATCH` is a part of its id.
    fn watch(&self, message: &ToNode, way: impl FnOnce() -> String) {
        if let (true, ToNode::Command(lane, asked)) = (self.told, message)
            && let Ok(wanted) = std::env::var("CHAPPE_SIM_WATCH")
            && asked.id.to_string().contains(&wanted)
        {
            self.say(|| format!("      {}: {} {lane:?}", asked.id, way()));
        }
    }

    /// Tells of events on their way to connections.
    fn tell_batch(&self, node: usize, gateway: usize, from: SessionId, batch: &[ToGateway]) {
        for message in batch.iter().filter(|_| self.told) {
            let what = match message {
                ToGateway::Deliver { conversation, events, connections } => {
                    let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
                    format!("events {seqs:?} of {conversation} for {connections:?}")
                }
                ToGateway::Behind { conversation, head, connections } => {
                    format!("the head {head} of {conversation} for {connections:?}")
                }
                ToGateway::Connected(correlation, heads) => format!("{correlation:?}: {heads:?}"),
                _ => continue,
            };
            self.say(|| format!("      node {node} ({from:x}) -> gateway {gateway}: {what}"));
        }
    }

    fn after(&mut self, us: u64, event: Event_) {
        self.queue.insert((self.now + us, self.counted), event);
        self.counted += 1;
    }

    pub fn note(&mut self, what: What) {
        self.say(|| format!("      {what:?}"));
        format!("{what:?}").hash(&mut self.trace);
        self.oracle.observe(&Record { at: self.now, what });
    }

    // === a run

    fn begin(&mut self) {
        for client in 0..CLIENTS {
            let (user, name) = (self.clients[client].named, self.clients[client].user.as_str().to_owned());
            self.note(What::NameUser { user, name });
        }
        for index in 0..NODES {
            self.start_node(index);
        }
        self.after(0, Event_::Tick);
        if self.cluster.has_a_clock() {
            self.after(0, Event_::Raft);
        }
        for index in 0..CONVERSATIONS {
            let (id, named) = self.conversations[index];
            self.note(What::NameConversation { conversation: named, id: id.0 });
            for client in 0..CLIENTS {
                let user = self.clients[client].named;
                self.note(What::Join { user, conversation: named, from: 0 });
            }
            let members = self.clients.iter().skip(1).map(|client| client.user.clone()).collect();
            let create = Create {
                conversation: id,
                kind: ConversationKind::Group,
                encryption: Encryption::None,
                members,
                title: String::new(),
                data: None,
                history: HistoryAccess::All,
                receipts: true,
                open: false,
                retention_secs: self.retention_secs(index),
            };
            let command = Command::ConversationCreate(Box::new(create));
            let now = self.ms();
            let key = CommandId(Uuid::from_u128(0x7000_0000_0000_0000_8000_0000_0000_0000 + index as u128));
            let _ = self.clients[0].ask(key, command, index, Kind::Create, now);
        }
        for client in &mut self.clients {
            client.active = false;
        }
        let end = self.now + 20_000_000;
        while self.created.iter().any(|created| !created) && self.now < end {
            self.step();
        }
        if self.created.iter().any(|created| !created) {
            self.wrong.push("the conversations could not be created in calm weather".to_owned());
        }
        for client in &mut self.clients {
            client.active = true;
        }
    }

    fn run_for(&mut self, ms: Millis) {
        let end = self.now + ms * 1000;
        while self.now < end {
            self.step();
        }
    }

    /// All faults end, and nothing new is begun.
    fn heal(&mut self) {
        self.say(|| "healing".to_owned());
        let is_fault = |event: &Event_| {
            matches!(event, Event_::Fault(_) | Event_::Strike(..) | Event_::Slow(..) | Event_::Deaf(..))
        };
        let faults: Vec<(u64, u64)> =
            self.queue.iter().filter(|(_, event)| is_fault(event)).map(|(at, _)| *at).collect();
        for at in faults {
            self.queue.remove(&at);
        }
        let heals: Vec<(u64, u64)> =
            self.queue.iter().filter(|(_, event)| matches!(event, Event_::Heal(_))).map(|(at, _)| *at).collect();
        for at in heals {
            if let Some(Event_::Heal(fault)) = self.queue.remove(&at) {
                self.end_fault(fault);
            }
        }
        for host in &mut self.nodes {
            (host.no_news, host.deaf_on_commit) = (false, false);
        }
        for client in &mut self.clients {
            client.active = false;
        }
    }

    fn finish(mut self) -> Outcomes {
        let end = self.now + RECOVERY_MS_MAX * 1000;
        while self.clients.iter().any(|client| !client.asked.is_empty()) && self.now < end {
            self.step();
        }
        // Every member reads everything.
        for client in 0..CLIENTS {
            for index in 0..CONVERSATIONS {
                self.begin_read(client, index, 0, Why::Last);
            }
        }
        while self.clients.iter().any(|client| !client.asked.is_empty()) && self.now < end + 20_000_000 {
            self.step();
        }
        let end = self.now + LEVEL_MS_MAX * 1000;
        while !self.is_level() && self.now < end {
            self.step();
        }
        let ends = self.ends();
        for (device, client) in self.devices.iter().zip(self.clients.iter().cycle()) {
            for ((id, _), head) in self.conversations.iter().zip(&ends) {
                let position = device.position(*id);
                if position != *head {
                    self.wrong.push(format!(
                        "{} heard of {id} up to {position} and not up to {head} (settled: {})",
                        client.user,
                        device.is_settled()
                    ));
                }
            }
        }
        self.await_removal();
        for client in &self.clients {
            for asked in client.asked.values() {
                let words = format!("{} still waits for {:?} of {:?}", client.user, asked.what, asked.id);
                self.wrong.push(words);
            }
        }
        self.wrong.extend(self.replicas.violations());
        self.replicas.trace().hash(&mut self.trace);
        let verdict = self.oracle.finish();
        Outcomes {
            acked: verdict.stats.acked,
            verdict,
            wrong: self.wrong,
            trace: self.trace.finish(),
            moves: self.moves,
            removed: self.removed,
        }
    }

    /// What was removed leaves the store, too, whoever was interrupted at it.
    fn await_removal(&mut self) {
        let (entity, floor) = (self.conversations[0].0.into(), self.removed);
        let end = self.now + REMOVAL_MS_MAX * 1000;
        loop {
            match self.replicas.lowest_seq(&entity) {
                Some(lowest) if lowest <= floor && self.now >= end => {
                    return self
                        .wrong
                        .push(format!("event {lowest} was removed, as all up to {floor}, and is still stored"));
                }
                Some(lowest) if lowest <= floor => self.run_for(500),
                _ => return,
            }
        }
    }

    /// Whether every device has heard of everything.
    fn is_level(&self) -> bool {
        let ends = self.ends();
        let has_all = |device: &Device| {
            let mut heads = self.conversations.iter().zip(&ends);
            device.is_settled() && heads.all(|((id, _), head)| device.position(*id) == *head)
        };
        self.devices.iter().all(has_all)
    }

    /// Where conversations end: as the last readings say, or as anybody has heard since. Where messages are kept for a time only, what
    /// is overdue goes on being removed.
    fn ends(&self) -> Vec<u64> {
        let of = |(index, (id, _)): (usize, &(ConversationId, Conversation))| {
            let heard =
                self.devices.iter().map(|device| device.position(*id)).filter(|_| self.retention_secs(index) != 0);
            heard.chain([self.heads[index]]).max().unwrap_or(0)
        };
        self.conversations.iter().enumerate().map(of).collect()
    }

    /// The next thing happens, in the store or elsewhere.
    fn step(&mut self) {
        let next = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        if let Some(at) = self.replicas.next_at().filter(|at| *at <= next) {
            self.now = self.now.max(at);
            self.set_clocks();
            self.replicas.step();
        } else if let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.replicas.wait_until(at);
            self.set_clocks();
            self.happen(event);
        }
        self.let_nodes_run();
    }

    fn set_clocks(&self) {
        let ms = self.ms();
        self.clock.store(ms, Ordering::Relaxed);
        for host in &self.nodes {
            host.clock.store(ms.saturating_add_signed(host.skew), Ordering::Relaxed);
        }
    }

    fn let_nodes_run(&mut self) {
        for index in 0..NODES {
            let host = &mut self.nodes[index];
            if host.paused || host.node.as_ref().is_none_or(Stepped::is_idle) {
                continue;
            }
            self.run_node(index);
        }
    }

    fn run_node(&mut self, index: usize) {
        let host = &mut self.nodes[index];
        let Some(node) = &mut host.node else { return };
        node.run();
        let (out, life) = (node.take_out(), host.life);
        for out in out {
            match out {
                Out::Propose(command) => {
                    let delay = self.rng.random_range(1_000..30_000);
                    self.say(|| format!("node {index} proposes {command:?}"));
                    self.after(delay, Event_::Propose { node: index, life, command });
                }
                Out::Peer(to, word) => {
                    // In order on each lane, for each life of the receiver.
                    let at = self.now + self.rng.random_range(300..8_000);
                    let lane = word.speaker().0 % u16::from(LINK_LANES);
                    let arrival = self.words.entry((index, to, lane)).or_default();
                    *arrival = at.max(*arrival);
                    self.queue.insert((*arrival, self.counted), Event_::Peer { from: index, to, word });
                    self.counted += 1;
                }
                Out::Refused(why) => self.wrong.push(format!("node {index} refuses to go on: {why}")),
            }
        }
        let spoken = std::mem::take(&mut *self.spoken.lock());
        for (gateway, node, from, batch) in spoken {
            let life = self.links[gateway][node].life;
            self.travel(gateway, node, 1, Event_::ToGateway { gateway, node, life, from, batch });
        }
    }

    // === events

    fn happen(&mut self, event: Event_) {
        // A node that stands still hears nothing until it goes on.
        let to = match &event {
            Event_::ToNode { node, .. } | Event_::MapToNode { node, .. } | Event_::Answer { node, .. } => Some(*node),
            Event_::Peer { to, .. } => self.node_of(*to),
            _ => None,
        };
        if let Some(host) = to.and_then(|node| self.nodes.get_mut(node))
            && host.paused
        {
            host.backlog.push(event);
            return;
        }
        match event {
            Event_::Tick => self.tick(),
            Event_::Raft => self.raft_goes_on(),
            Event_::Fault(fault) => self.begin_fault(fault),
            Event_::Heal(fault) => self.end_fault(fault),
            Event_::ToNode { gateway, node, life, message } => {
                self.watch(&message, || format!("gateway {gateway} -> node {node}"));
                let from = self.gateways[gateway].id;
                if self.links[gateway][node].life == life
                    && let Some(stepped) = &self.nodes[node].node
                {
                    // A link says how much time is left, not when it ends: clocks differ.
                    let message = self.with_deadline_of(node, message);
                    stepped.receive(from, message);
                }
            }
            Event_::ToGateway { gateway, node, life, from, batch } => {
                if self.links[gateway][node].life == life {
                    self.tell_batch(node, gateway, from, &batch);
                    self.gateway_does(gateway, |gateway| gateway.receive(from, batch));
                }
            }
            Event_::Peer { from, to, word } => {
                let Some(node) = self.node_of(to) else { return };
                let is_lost = self.no_peer.contains(&(from, node))
                    || (word.is_agreement() && self.no_agreement.contains(&(from, node)));
                if is_lost {
                    return;
                }
                if let Some(stepped) = &self.nodes[node].node {
                    stepped.hear(word);
                }
            }
            Event_::MapToNode { node, life, map } => {
                let host = &self.nodes[node];
                if host.life == life
                    && !self.is_cut_off(node)
                    && !host.no_news
                    && let Some(stepped) = &host.node
                {
                    stepped.map_changed(map);
                }
            }
            Event_::MapToGateway { gateway, map } => self.gateway_sees(gateway, map),
            Event_::Propose { node, life, command } => {
                if self.is_cut_off(node) || self.nodes[node].life != life {
                    return;
                }
                if matches!(command, Proposal::CommitMoves { .. })
                    && std::mem::take(&mut self.nodes[node].deaf_on_commit)
                {
                    self.nodes[node].no_news = true;
                    self.after(3_000_000, Event_::Heal(Fault::BrokenMove(Trouble::Uninformed)));
                }
                let now = self.ms();
                let before = self.cluster.map().version();
                let Some(outcome) = self.cluster.propose(node, life, &command, now) else { return };
                self.say(|| format!("plane: {command:?} -> {outcome:?}"));
                if self.cluster.map().version() > before {
                    self.announce();
                }
                let delay = self.rng.random_range(1_000..30_000);
                // An answer may be lost on its way.
                let outcome = if self.rng.random_bool(0.03) { Outcome::Unknown } else { outcome };
                self.after(delay, Event_::Answer { node, life, command, outcome });
            }
            Event_::Answer { node, life, command, outcome } => {
                let host = &self.nodes[node];
                if host.life == life
                    && let Some(stepped) = &host.node
                {
                    let is_cut = self.is_cut_off(node) || host.no_news;
                    let outcome = if is_cut { Outcome::Unknown } else { outcome };
                    stepped.answered(command, outcome);
                }
            }
            Event_::Health(node, health) => {
                self.cluster.health(node, health);
                // Who lives objects, and is heard soon.
                let host = &self.nodes[node];
                if health == Health::Down && host.node.is_some() && !(host.paused || host.no_plane || host.slandered) {
                    self.after(500_000, Event_::Health(node, Health::Up));
                }
            }
            Event_::Lost(gateway, session) => {
                self.gateway_does(gateway, |gateway| gateway.lost(session));
            }
            Event_::Strike(node, ms) => self.begin_fault(Fault::Crash(node, ms)),
            Event_::Slow(node, ms) => {
                self.nodes[node].store.set_way(Way::Slow);
                self.after(ms * 1000, Event_::Heal(Fault::NoStore(node, false, ms)));
            }
            Event_::Deaf(from, to, ms) => {
                self.no_peer.push((from, to));
                self.after(ms * 1000, Event_::Heal(Fault::NoPeer(from, to, ms)));
            }
        }
    }

    fn with_deadline_of(&self, node: usize, message: ToNode) -> ToNode {
        let skew = self.nodes[node].skew;
        match message {
            ToNode::Command(lane, asked) if skew != 0 => {
                let deadline = asked.deadline.saturating_add_signed(skew);
                ToNode::Command(lane, Arc::new(Question { deadline, ..(*asked).clone() }))
            }
            other => other,
        }
    }

    /// Everybody hears of the newest map, each in their own time.
    fn announce(&mut self) {
        if self.cluster.has_a_clock() {
            // Raft says it itself.
            return;
        }
        let map = self.cluster.map().clone();
        self.say(|| {
            let owners: Vec<String> = map
                .rows()
                .map(|(partition, _)| {
                    map.owner(partition).map_or("-".to_owned(), |(session, _)| format!("{:x}", session & 0xFFFF))
                })
                .collect();
            format!("map {:x}: {}", map.version() & 0xFFFF, owners.join(" "))
        });
        for node in 0..NODES {
            let (life, delay) = (self.nodes[node].life, self.rng.random_range(500..60_000));
            self.after(delay, Event_::MapToNode { node, life, map: map.clone() });
        }
        for gateway in 0..GATEWAYS {
            let delay = self.rng.random_range(500..150_000);
            self.after(delay, Event_::MapToGateway { gateway, map: map.clone() });
        }
    }

    /// Whether a node hears nothing of the cluster. Whom Raft cuts off it cuts off itself.
    fn is_cut_off(&self, node: usize) -> bool {
        self.nodes[node].no_plane && !self.cluster.has_a_clock()
    }

    /// Somebody, an operator or the leader, asks the cluster.
    fn order(&mut self, command: &Proposal) {
        self.say(|| format!("ordered: {command:?}"));
        let asked = (0..NODES).find(|node| self.nodes[*node].node.is_some());
        let now = self.ms();
        // The answer is for no life of any node.
        if self.cluster.order(asked, command, now) {
            self.announce();
        }
    }

    fn raft_goes_on(&mut self) {
        self.after(RAFT_MS * 1000, Event_::Raft);
        let before = self.cluster.map().version();
        let said = self.cluster.advance();
        let newest = self.cluster.map().clone();
        for one in said {
            match one {
                Said::Map(node, life, map) => self.after(0, Event_::MapToNode { node, life, map }),
                Said::Answer(node, life, command, outcome) => {
                    self.say(|| format!("raft: {command:?} -> {outcome:?}"));
                    self.after(0, Event_::Answer { node, life, command, outcome });
                }
            }
        }
        if newest.version() > before {
            for gateway in 0..GATEWAYS {
                let delay = self.rng.random_range(500..150_000);
                self.after(delay, Event_::MapToGateway { gateway, map: newest.clone() });
            }
        }
    }

    fn node_of(&self, session: SessionId) -> Option<usize> {
        self.nodes
            .iter()
            .position(|host| host.node.as_ref().and_then(Stepped::alive).is_some_and(|(alive, _)| alive == session))
    }

    fn tick(&mut self) {
        self.after(TICK_US, Event_::Tick);
        let now = self.ms();
        let whole_second = (self.now / TICK_US).is_multiple_of(10);
        for index in 0..NODES {
            let host = &self.nodes[index];
            if host.paused {
                continue;
            }
            let Some(stepped) = &host.node else { continue };
            if whole_second {
                stepped.second();
            }
            if !self.is_cut_off(index)
                && let Some((session, minute)) = stepped.alive()
                && (self.now / TICK_US).is_multiple_of(3)
            {
                self.cluster.keepalive(index, session, minute, now);
            }
            // A map that got lost is asked for again.
            if !self.cluster.has_a_clock() && !self.nodes[index].no_plane && self.rng.random_bool(0.05) {
                let (life, map) = (self.nodes[index].life, self.cluster.map().clone());
                self.after(1_000, Event_::MapToNode { node: index, life, map });
            }
            self.run_node(index);
        }
        if self.cluster.lead(now) {
            self.announce();
        }
        self.look_at_links();
        for gateway in 0..GATEWAYS {
            self.gateway_does(gateway, |gateway| {
                if whole_second {
                    gateway.second();
                }
                gateway.resume_lanes();
            });
        }
        for device in 0..DEVICES {
            self.device_goes_on(device);
        }
        for client in 0..CLIENTS {
            if self.rng.random_bool(0.4) {
                let conversations = self.conversations.clone();
                let number = self.clients[client].think(&mut self.rng, now, &conversations);
                if let Some(number) = number {
                    self.begun(client, number);
                }
            }
            for (number, asked) in self.clients[client].due(now) {
                self.ask(client, number, &asked);
                // Some clients cannot wait, and ask again at once.
                if self.rng.random_bool(0.08) {
                    self.clients[client].hurried(number);
                    self.ask(client, number, &asked);
                }
            }
        }
    }

    // === clients

    /// Notes what a user sets out to do.
    fn begun(&mut self, client: usize, number: u64) {
        let Some(asked) = self.clients[client].asked.get(&number).cloned() else { return };
        let (user, conversation) = (self.clients[client].named, Conversation(asked.conversation as u32));
        match asked.what {
            Kind::Send { .. } if asked.repeated => {}
            Kind::Send { hash } => self.note(What::SendStart { user, conversation, id: asked.id.0, hash }),
            Kind::Change { target, hash } => {
                self.note(What::ChangeStart { user, conversation, target, id: asked.id.0, hash });
            }
            Kind::Read { after, .. } => {
                self.reads += 1;
                let read = self.reads;
                if let Some(asked) = self.clients[client].asked.get_mut(&number) {
                    asked.what = Kind::Read { after, read, why: Why::Browse };
                }
                let read = history::Read(read);
                self.note(What::ReadStart { read, user, conversation, after, last: false });
            }
            Kind::Create => {}
        }
    }

    /// How long messages of a conversation are kept: in every fourth world the first one's for some seconds.
    fn retention_secs(&self, index: usize) -> u32 {
        if self.seed % 4 == 1 && index == 0 { RETENTION_SECS } else { 0 }
    }

    /// Nothing is removed before its time: by stamps, which clocks that jump do not change.
    fn judge_removal(&mut self, index: usize, event: &Event) {
        self.stamps[index].insert(event.seq, event.created_at);
        let Fact::HistoryPurged { floor, .. } = event.fact else { return };
        let kept_ms = u64::from(self.retention_secs(index)) * 1000;
        let young =
            self.stamps[index].range(..=floor).find(|(_, at)| kept_ms == 0 || **at + kept_ms > event.created_at);
        if let Some((seq, at)) = young {
            self.wrong.push(format!(
                "event {seq} of conversation {index}, stamped {at}, was removed at {}",
                event.created_at
            ));
        }
        self.removed = self.removed.max(floor);
    }

    pub fn begin_read(&mut self, client: usize, index: usize, after: u64, why: Why) {
        self.reads += 1;
        let (user, conversation) = (self.clients[client].named, Conversation(index as u32));
        let read = self.reads;
        let last = why == Why::Last;
        self.note(What::ReadStart { read: history::Read(read), user, conversation, after, last });
        let (now, id) = (self.ms(), self.conversations[index].0);
        self.clients[client].read(now, index, id, after, (read, why));
    }

    /// Asks through some gateway, mostly the same.
    fn ask(&mut self, client: usize, number: u64, asked: &Asked) {
        let mut gateway = client % GATEWAYS;
        if self.gateways[gateway].gateway.is_none() || self.rng.random_bool(0.08) {
            gateway = (gateway + 1) % GATEWAYS;
            self.clients[client].hurried(number);
        }
        let actor = Actor { user: self.clients[client].user.clone(), device: None, by: By::Token(Token::default()) };
        let host = &mut self.gateways[gateway];
        if let Some(stepped) = &mut host.gateway {
            let question = stepped.ask(actor, asked.id, asked.command.clone());
            host.asked.insert(question, (client, number));
            self.gateway_does(gateway, |_| {});
        }
    }

    fn answered(&mut self, client: usize, number: u64, answer: Option<Result<Reply, chappe_schema::error::Error>>) {
        let now = self.ms();
        let Some((asked, came)) = self.clients[client].answered(number, answer, now) else { return };
        let reply = match came {
            Came::Over(reply) => reply,
            Came::Again => return,
            Came::Unknown => {
                match asked.what {
                    Kind::Send { .. } if asked.repeated => {}
                    Kind::Send { .. } => self.note(What::Unknown { id: asked.id.0 }),
                    // Whoever must have read asks again.
                    Kind::Read { why: why @ Why::Last, after, .. } => {
                        self.begin_read(client, asked.conversation, after, why);
                    }
                    Kind::Create => self.wrong.push("a creation broke in the middle".to_owned()),
                    Kind::Change { .. } | Kind::Read { .. } => {}
                }
                return;
            }
            Came::Refused(error) => {
                self.say(|| format!("      {} was refused: {error}", asked.id));
                match asked.what {
                    // What is removed is missed by nobody: the read goes on above.
                    Kind::Read { read, why, .. } if error.floor.is_some() => {
                        let floor = error.floor.unwrap_or(0);
                        self.note(What::Purged { read: history::Read(read), floor });
                        if why == Why::Last {
                            let (now, id) = (self.ms(), self.conversations[asked.conversation].0);
                            self.clients[client].read(now, asked.conversation, id, floor, (read, why));
                        }
                    }
                    Kind::Send { .. } if asked.repeated => {
                        self.wrong
                            .push(format!("{} was acknowledged, and refused when it came again: {error}", asked.id));
                    }
                    Kind::Send { .. } => self.note(What::Fail { id: asked.id.0 }),
                    Kind::Read { why: Why::Last, .. } | Kind::Create => {
                        self.wrong.push(format!("{:?} was refused: {error}", asked.what));
                    }
                    Kind::Change { .. } | Kind::Read { .. } => {}
                }
                return;
            }
        };
        match (asked.what, reply) {
            (Kind::Send { .. }, Reply::Sent(sent)) => {
                self.note(What::Ack { id: asked.id.0, seq: sent.seq });
                self.stamps[asked.conversation].insert(sent.seq, sent.created_at);
                if let Some(wrong) = self.clients[client].out_of_order(number, &asked, sent.seq) {
                    self.wrong.push(wrong);
                }
            }
            (Kind::Change { .. }, Reply::Changed { seq, changed: true }) => {
                self.note(What::ChangeAck { id: asked.id.0, seq });
            }
            (Kind::Change { .. }, Reply::Changed { changed: false, .. }) => {}
            (Kind::Read { after, read, why }, Reply::Events { items, head, .. }) => {
                for event in &items {
                    self.judge_removal(asked.conversation, event);
                    self.note(What::ReadItem { read: history::Read(read), seq: event.seq, fact: seen(event) });
                }
                let reached = items.last().map_or(after, |event| event.seq);
                let complete = reached >= head || items.is_empty();
                self.note(What::ReadEnd { read: history::Read(read), head: if complete { head } else { reached } });
                match why {
                    Why::Browse => {}
                    Why::Last if complete => self.heads[asked.conversation] = self.heads[asked.conversation].max(head),
                    Why::Last => self.begin_read(client, asked.conversation, reached, why),
                }
            }
            (Kind::Create, Reply::Conversation(_)) => self.created[asked.conversation] = true,
            (what, reply) => self.wrong.push(format!("{what:?} was answered by {reply:?}")),
        }
    }

    // === gateways and links

    /// Something happens to a gateway that is there, and what follows from it.
    fn gateway_does(&mut self, gateway: usize, act: impl FnOnce(&mut Gateway)) {
        let host = &mut self.gateways[gateway];
        let Some(stepped) = &mut host.gateway else { return };
        act(stepped);
        stepped.run();
        let answers = stepped.answers();
        let sendings = std::mem::take(&mut *host.ways.out.lock());
        let answers: Vec<_> =
            answers.into_iter().filter_map(|(number, answer)| Some((host.asked.remove(&number)?, answer))).collect();
        self.send(gateway, sendings);
        for ((client, number), answer) in answers {
            self.answered(client, number, Some(answer));
        }
    }

    fn gateway_sees(&mut self, gateway: usize, map: Map) {
        let host = &mut self.gateways[gateway];
        if !host.informed || map.version() <= host.ways.map.lock().version() {
            return;
        }
        let before = std::mem::replace(&mut *host.ways.map.lock(), map.clone());
        let changed = map.newly_owned(&before);
        self.gateway_does(gateway, |gateway| gateway.assigned(&changed));
    }

    /// A device reads and writes, if it has a connection, or looks for one.
    fn device_goes_on(&mut self, index: usize) {
        let now = self.ms();
        let Some((gateway, line)) = self.devices[index].line else {
            if now >= self.devices[index].back_at {
                let gateway = if self.rng.random_bool(0.9) { index % GATEWAYS } else { (index + 1) % GATEWAYS };
                let Some(line) = self.gateways[gateway].gateway.as_mut().and_then(Gateway::open) else { return };
                self.with_device(index, |device, sight| device.up(gateway, line, sight));
                self.say(|| format!("      device {index} connects at gateway {gateway}"));
            }
            return;
        };
        let is_there = self.gateways[gateway].gateway.as_ref().is_some_and(|stepped| stepped.has(line));
        let breaks = self.clients[index % CLIENTS].active && self.rng.random_bool(BREAKS);
        if !is_there || breaks || self.devices[index].is_overdue(now) {
            self.say(|| format!("      device {index} lost the connection"));
            let pause = self.rng.random_range(50..2_000);
            self.devices[index].down(now + pause);
            self.gateway_does(gateway, |gateway| gateway.cut(line));
            return;
        }
        // Not every turn: what is on its way when a connection breaks is lost.
        if !self.devices[index].asleep && self.rng.random_bool(0.7) {
            let bytes = self.gateways[gateway].gateway.as_ref().map(|stepped| stepped.read(line)).unwrap_or_default();
            self.with_device(index, |device, sight| device.hear(bytes, sight));
        }
        self.devices[index].tick(now);
        let out = std::mem::take(&mut self.devices[index].out);
        if !out.is_empty() {
            self.gateway_does(gateway, |gateway| gateway.write(line, &out));
        }
    }

    fn with_device(&mut self, index: usize, act: impl FnOnce(&mut Device, &mut Sight<'_>)) {
        let now = self.ms();
        let (connections, reads) = (&mut self.connections, &mut self.reads);
        let mut sight = Sight { now, connections, reads, notes: Vec::new(), wrong: Vec::new() };
        act(&mut self.devices[index], &mut sight);
        let Sight { notes, wrong, .. } = sight;
        self.wrong.extend(wrong.into_iter().map(|wrong| format!("device {index}: {wrong}")));
        for what in notes {
            self.note(what);
        }
    }

    fn send(&mut self, gateway: usize, sendings: Vec<(SessionId, ToNode)>) {
        for (session, message) in sendings {
            let node = self
                .cluster
                .map()
                .session(session)
                .map(|session| session.node)
                .and_then(|uid| self.nodes.iter().position(|host| host.uid == uid));
            // Whoever was there is gone; its successor is found in the map.
            let Some(node) = node else { continue };
            if !self.links[gateway][node].up {
                // What cannot be sent is lost, and that is said.
                self.after(20_000, Event_::Lost(gateway, session));
                continue;
            }
            let life = self.links[gateway][node].life;
            self.travel(gateway, node, 0, Event_::ToNode { gateway, node, life, message });
        }
    }

    /// Something sets out on a link, in order behind what went before.
    fn travel(&mut self, gateway: usize, node: usize, direction: usize, event: Event_) {
        let (now, delay) = (self.now, self.rng.random_range(100..3_000));
        let link = &mut self.links[gateway][node];
        if !link.up {
            return;
        }
        if link.cut {
            link.held.push(event);
            return;
        }
        let at = (now + delay).max(link.arrivals[direction]);
        link.arrivals[direction] = at;
        self.queue.insert((at, self.counted), event);
        self.counted += 1;
    }

    fn look_at_links(&mut self) {
        for gateway in 0..GATEWAYS {
            for node in 0..NODES {
                let both = self.gateways[gateway].gateway.is_some() && self.nodes[node].node.is_some();
                let link = &self.links[gateway][node];
                let is_over = !both || (link.cut && self.now >= link.cut_since + IDLE_US);
                if link.up && is_over {
                    self.break_link(gateway, node);
                } else if !link.up && both && !link.cut {
                    self.join_link(gateway, node);
                }
            }
        }
    }

    fn break_link(&mut self, gateway: usize, node: usize) {
        let link = &mut self.links[gateway][node];
        link.life += 1;
        link.up = false;
        link.held.clear();
        let uid = self.nodes[node].uid;
        // Every session that it knew of that node.
        let known = self.gateways[gateway].ways.map.lock().clone();
        let known = known.sessions().chain(self.cluster.map().sessions());
        let sessions: BTreeSet<SessionId> =
            known.filter(|(_, session)| session.node == uid).map(|(id, _)| id).collect();
        self.gateway_does(gateway, |gateway| sessions.iter().for_each(|session| gateway.lost(*session)));
        if let Some(stepped) = &self.nodes[node].node {
            stepped.detach(self.gateways[gateway].id);
        }
    }

    fn join_link(&mut self, gateway: usize, node: usize) {
        let link = &mut self.links[gateway][node];
        link.up = true;
        link.life += 1;
        let port: Arc<dyn GatewayPort> = Arc::new(Port { gateway, node, spoken: Arc::clone(&self.spoken) });
        if let Some(stepped) = &self.nodes[node].node {
            stepped.attach(self.gateways[gateway].id, &port);
        }
    }

    // === faults

    fn start_node(&mut self, index: usize) {
        self.lives += 1;
        let host = &mut self.nodes[index];
        host.life += 1;
        host.backlog.clear();
        host.paused = false;
        let me = Introduction {
            node: host.uid,
            ordinal: index as u32,
            addr: ([127, 0, 0, 1], 7000 + index as u16).into(),
            zone: String::new(),
            weight: 1,
            versions: Versions { min: 1, max: 1 },
        };
        self.cluster.start(index, host.life);
        let generation = host.store.generation();
        host.node =
            Some(Stepped::new(me, Arc::new(host.store.clone()), generation, Arc::clone(&host.clock), self.budget));
        let (life, map) = (host.life, self.cluster.map().clone());
        self.after(2_000, Event_::MapToNode { node: index, life, map });
        self.after(200_000, Event_::Health(index, Health::Up));
        for gateway in 0..GATEWAYS {
            if self.links[gateway][index].up {
                self.break_link(gateway, index);
            }
        }
    }

    fn begin_fault(&mut self, fault: Fault) {
        self.say(|| format!("fault: {fault:?}"));
        format!("{fault:?}").hash(&mut self.trace);
        let notice = self.rng.random_range(200..900) * 1000;
        let lasts = match fault {
            Fault::Crash(node, ms) => {
                self.nodes[node].node = None;
                self.nodes[node].life += 1;
                self.cluster.crash(node);
                self.after(notice, Event_::Health(node, Health::Down));
                ms
            }
            Fault::Pause(node, ms) => {
                self.nodes[node].paused = true;
                self.cluster.hold(node);
                if ms * 1000 > notice {
                    self.after(notice, Event_::Health(node, Health::Down));
                }
                ms
            }
            Fault::NoStore(node, mute, ms) => {
                self.nodes[node].store.set_way(if mute { Way::Mute } else { Way::Cut });
                ms
            }
            Fault::NoPlane(node, ms) => {
                self.nodes[node].no_plane = true;
                self.cluster.isolate(node);
                if self.rng.random_bool(0.7) {
                    self.after(notice, Event_::Health(node, Health::Down));
                }
                ms
            }
            Fault::NoLink(gateway, node, ms) => {
                let now = self.now;
                let link = &mut self.links[gateway][node];
                if !link.cut {
                    (link.cut, link.cut_since) = (true, now);
                }
                ms
            }
            Fault::NoPeer(one, other, ms) => {
                // Sometimes only one of the two does not hear.
                self.no_peer.push((one, other));
                if self.rng.random_bool(0.7) {
                    self.no_peer.push((other, one));
                }
                ms
            }
            Fault::NoLeader(ms) => {
                let until = self.ms() + ms;
                self.cluster.without_leader(until);
                ms
            }
            Fault::GatewayCrash(gateway, ms) => {
                let host = &mut self.gateways[gateway];
                (host.gateway, host.ways) = (None, Arc::new(Ways::new(host.ways.generation)));
                let asked = std::mem::take(&mut host.asked);
                for node in 0..NODES {
                    if self.links[gateway][node].up {
                        self.break_link(gateway, node);
                    }
                }
                // Whoever asked hears nothing, and asks again elsewhere.
                for (client, number) in asked.into_values() {
                    self.answered(client, number, None);
                }
                ms
            }
            Fault::Replicas(count, ms) => {
                for replica in 0..count {
                    self.replicas.set_down(replica, true);
                }
                ms
            }
            Fault::Storm(ms) => {
                let stormy = Weather { late: 500_000..=20_000_000, ..Weather::stormy() };
                self.replicas.set_weather(stormy);
                ms
            }
            Fault::Clock(node, wrong, ms) => {
                self.nodes[node].skew = wrong;
                ms
            }
            Fault::Moves => {
                self.plan_moves();
                0
            }
            Fault::Asleep(device, ms) => {
                self.devices[device].asleep = true;
                ms
            }
            Fault::Drain(node) => {
                let session = self.nodes[node].node.as_ref().and_then(Stepped::alive);
                if let Some((session, _)) = session {
                    self.order(&Proposal::SetDrain { session, slot: true });
                }
                8_000
            }
            Fault::Slander(node, ms) => {
                self.nodes[node].slandered = true;
                self.after(1, Event_::Health(node, Health::Down));
                ms
            }
            Fault::Zombie(node, gateway, is_slow, ms) => {
                self.nodes[node].no_plane = true;
                self.cluster.isolate(node);
                // Whoever follows it learns of the log slowly, or the zombie does, or of its end.
                let fences_late = ms % 3 == 0;
                for other in 0..NODES {
                    match (other == node, fences_late) {
                        (false, true) => self.nodes[other].store.set_way(Way::FencesLate),
                        (is_it, false) if is_it == is_slow => self.nodes[other].store.set_way(Way::Slow),
                        _ => {}
                    }
                }
                self.gateways[gateway].informed = false;
                self.after(1, Event_::Health(node, Health::Down));
                ms
            }
            Fault::BrokenMove(trouble) => return self.break_a_move(trouble),
            Fault::Tempest(ms) => {
                let tempest = Weather { loss: 0.5, reply_loss: 0.2, ..Weather::stormy() };
                self.replicas.set_weather(tempest);
                for blow in 0..4 {
                    if let Some(owner) = self.owner_of_something() {
                        self.after(blow * ms * 250, Event_::Strike(owner, 150));
                    }
                }
                ms
            }
            Fault::Stumble(passes, before) => {
                // An entity that panics three times in a minute is withdrawn for longer than a run lasts.
                if self.stumbles < 2 {
                    self.stumbles += 1;
                    Stepped::stumble(passes, before);
                }
                0
            }
        };
        self.after(lasts * 1000, Event_::Heal(fault));
    }

    /// A node that owns a conversation.
    fn owner_of_something(&mut self) -> Option<usize> {
        let index = self.rng.random_range(0..CONVERSATIONS);
        let partition = self.conversations[index].0.partition();
        let (session, _) = self.cluster.map().owner(partition)?;
        self.node_of(session)
    }

    fn break_a_move(&mut self, trouble: Trouble) {
        let map = self.cluster.map().clone();
        let index = self.rng.random_range(0..CONVERSATIONS);
        let partition = self.conversations[index].0.partition();
        let Some((from, expect)) = map.owner(partition) else { return };
        let others: Vec<SessionId> = map.sessions().map(|(id, _)| id).filter(|id| *id != from).collect();
        let Some(to) = others.choose(&mut self.rng).copied() else { return };
        let (Some(giver), Some(receiver)) = (self.node_of(from), self.node_of(to)) else { return };
        if map.planned(partition).is_some() {
            return;
        }
        self.moves += 1;
        let plan = map.next_plan();
        let moves = vec![Move { partition, expect, from, to }];
        self.order(&Proposal::PlanMoves { plan, moves });
        match trouble {
            Trouble::Unheard(after) => {
                self.after(after * 1000, Event_::Deaf(receiver, giver, 4_000));
                self.after((after + 4_500) * 1000, Event_::Strike(giver, 2_000));
            }
            Trouble::Unagreed => {
                self.no_agreement.push((receiver, giver));
                self.after(4_000_000, Event_::Heal(Fault::BrokenMove(trouble)));
                self.after(6_000_000, Event_::Strike(giver, 2_000));
            }
            Trouble::Uninformed => self.nodes[giver].deaf_on_commit = true,
            Trouble::Late => self.after(1, Event_::Slow(giver, 4_000)),
            Trouble::Slow(after) => {
                self.after(1, Event_::Slow(giver, 5_000));
                self.after(after * 1000, Event_::Deaf(receiver, giver, 4_000));
            }
            Trouble::Dead(after) => self.after(after * 1000, Event_::Strike(receiver, 1_000)),
        }
    }

    fn plan_moves(&mut self) {
        let map = self.cluster.map().clone();
        let sessions: Vec<SessionId> = map.sessions().map(|(id, _)| id).collect();
        let wanted = self.rng.random_range(1..4);
        let mut moves = Vec::new();
        for _ in 0..wanted {
            // Mostly where something is going on.
            let busy =
                EntityId::Conversation(self.conversations[self.rng.random_range(0..CONVERSATIONS)].0).partition();
            let partition =
                if self.rng.random_bool(0.8) { busy } else { Partition(self.rng.random_range(0..partitions()) as u16) };
            let (Some((from, expect)), Some(to)) = (map.owner(partition), sessions.choose(&mut self.rng)) else {
                continue;
            };
            if from != *to && map.planned(partition).is_none() && moves.iter().all(|m: &Move| m.partition != partition)
            {
                moves.push(Move { partition, expect, from, to: *to });
            }
        }
        if moves.is_empty() {
            return;
        }
        self.moves += moves.len();
        let plan: PlanId = map.next_plan();
        self.order(&Proposal::PlanMoves { plan, moves });
    }

    fn end_fault(&mut self, fault: Fault) {
        self.say(|| format!("over: {fault:?}"));
        if matches!(fault, Fault::Pause(..) | Fault::NoPlane(..) | Fault::NoLeader(_) | Fault::Zombie(..)) {
            self.cluster.heal();
        }
        match fault {
            Fault::Crash(node, _) if self.nodes[node].node.is_none() => self.start_node(node),
            Fault::Crash(..) => {}
            Fault::Pause(node, _) => {
                self.nodes[node].paused = false;
                self.after(100_000, Event_::Health(node, Health::Up));
                for event in std::mem::take(&mut self.nodes[node].backlog) {
                    self.happen(event);
                }
            }
            Fault::NoStore(node, ..) => self.nodes[node].store.set_way(Way::Open),
            Fault::NoPlane(node, _) => {
                self.nodes[node].no_plane = false;
                self.after(100_000, Event_::Health(node, Health::Up));
                let (life, map) = (self.nodes[node].life, self.cluster.map().clone());
                self.after(5_000, Event_::MapToNode { node, life, map });
            }
            Fault::NoLink(gateway, node, _) => {
                self.links[gateway][node].cut = false;
                for event in std::mem::take(&mut self.links[gateway][node].held) {
                    let direction = usize::from(matches!(event, Event_::ToGateway { .. }));
                    self.travel(gateway, node, direction, event);
                }
            }
            Fault::NoPeer(one, other, _) => {
                self.no_peer.retain(|pair| *pair != (one, other) && *pair != (other, one));
                for (node, lost) in [(one, other), (other, one)] {
                    let lost = self.nodes[lost].node.as_ref().and_then(Stepped::alive);
                    if let (Some(stepped), Some((session, _))) = (&self.nodes[node].node, lost) {
                        stepped.peer_lost(session);
                    }
                }
            }
            Fault::BrokenMove(Trouble::Unagreed) => self.no_agreement.clear(),
            Fault::BrokenMove(_) => {
                for node in 0..NODES {
                    self.nodes[node].no_news = false;
                    let (life, map) = (self.nodes[node].life, self.cluster.map().clone());
                    self.after(5_000, Event_::MapToNode { node, life, map });
                }
            }
            Fault::NoLeader(_) | Fault::Moves | Fault::Stumble(..) => {}
            Fault::Asleep(device, _) => self.devices[device].asleep = false,
            Fault::Zombie(node, gateway, ..) => {
                self.nodes[node].no_plane = false;
                self.nodes.iter().for_each(|host| host.store.set_way(Way::Open));
                self.gateways[gateway].informed = true;
                self.after(100_000, Event_::Health(node, Health::Up));
                let (life, map) = (self.nodes[node].life, self.cluster.map().clone());
                self.after(5_000, Event_::MapToNode { node, life, map: map.clone() });
                self.after(5_000, Event_::MapToGateway { gateway, map });
            }
            Fault::Tempest(_) => self.replicas.set_weather(Weather::default()),
            Fault::GatewayCrash(gateway, _) if self.gateways[gateway].gateway.is_some() => {}
            Fault::GatewayCrash(gateway, _) => {
                self.lives += 1;
                let (generation, informed) = (self.replicas.generation(), self.gateways[gateway].informed);
                let host = GatewayHost::new(GatewayId(self.lives), generation, &self.clock);
                self.gateways[gateway] = GatewayHost { informed, ..host };
                let map = self.cluster.map().clone();
                self.after(3_000, Event_::MapToGateway { gateway, map });
            }
            Fault::Replicas(count, _) => {
                for replica in 0..count {
                    self.replicas.set_down(replica, false);
                }
            }
            Fault::Storm(_) => self.replicas.set_weather(Weather::default()),
            Fault::Clock(node, ..) => self.nodes[node].skew = 0,
            Fault::Drain(_) => {
                if let Some(session) = self.cluster.map().draining() {
                    self.order(&Proposal::SetDrain { session, slot: false });
                }
            }
            Fault::Slander(node, _) => {
                self.nodes[node].slandered = false;
                self.after(1, Event_::Health(node, Health::Up));
            }
        }
    }
}

impl GatewayHost {
    fn new(id: GatewayId, generation: Generation, clock: &Arc<AtomicU64>) -> Self {
        let ways = Arc::new(Ways::new(generation));
        let links = Arc::clone(&ways) as Arc<dyn Links>;
        let gateway = Some(Gateway::new(id, keys(), links, Arc::clone(clock)));
        Self { id, gateway, ways, asked: BTreeMap::new(), informed: true }
    }
}

impl Ways {
    fn new(generation: Generation) -> Self {
        Self { map: Mutex::default(), generation, out: Mutex::default() }
    }
}

/// What every gateway checks tokens with.
fn keys() -> auth::Auth {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::TempDir::new().expect("a folder");
        std::fs::write(folder.path().join(auth::dev::SECRET_FILE), "5".repeat(64)).expect("a file");
        folder
    });
    let listen = ([127, 0, 0, 1], 0).into();
    auth::resolve(&auth::Config::default(), listen, folder.path()).expect("development tokens")
}

/// A token that outlives every run.
fn token(user: &UserId) -> String {
    static KEYS: OnceLock<auth::Auth> = OnceLock::new();
    let keys = KEYS.get_or_init(keys);
    let issuer = keys.dev_tokens().expect("development tokens");
    issuer.issue(user, None, None, T0).expect("a token").token
}

/// An event as far as the oracle judges it.
pub fn seen(event: &Event) -> Seen {
    let hash = |body: &Body| (!body.bytes().is_empty()).then(|| history::hash(body.json()));
    match &event.fact {
        Fact::MessageNew { body, .. } => Seen::Message { id: event.id.0, hash: hash(body) },
        Fact::MessageUpdated { body, .. } => Seen::Edit { target: event.target, hash: hash(body) },
        Fact::MessageDeleted { .. } => Seen::Delete { target: event.target },
        Fact::HistoryPurged { floor, .. } => Seen::Purged { floor: *floor },
        other => Seen::Other { mark: history::hash(other.name().as_bytes()) },
    }
}
