//! A quorum store that is not there: three replicas in memory, a network that delays and loses, and a clock that moves
//! only when it is told to. For the contract suite, and for simulations of owners that come after each other.
//!
//! It keeps what the cluster's store keeps: one row per event under (entity, seq, epoch), written to all replicas and
//! durable on two of them, read from two of them. What it adds is bad luck, drawn from a seed: the same seed and the same
//! calls give the same trace.
//!
//! - A request or a reply may be lost: a write whose replies are lost *is* written, and answered `Unknown`.
//! - A write may arrive long after its writer was answered, or has died.
//! - A replica may be down, and get what it missed later.
//!
//! [`Replicas`] is the world, [`Quorum`] one session's way into it. A session that came later fences the earlier ones
//! ([`Quorum::fence_predecessors`]) before it reads a log; who forgets to is free to find out what happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    ops::{Range, RangeInclusive},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use chappe_cluster::consensus::bootstrap::{
    Claim,
    find::{Answer as Promise, ClusterMeta},
};
use chappe_schema::{
    cql::log_bucket,
    event::Event,
    id::{CommandId, ConversationId, EntityId, Epoch, Generation, Millis, Seq, SessionId, UserId},
    reaction::ReactionKey,
    stored::{
        LogRow, StoredId, StoredIdBlock, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay, StoredReaction,
        StoredReceipts,
    },
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::planted::{Bug, is};

use super::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Part, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Shared, Store, Walked, Written, generation_of,
    ids::{self, Wanted},
    slice::Slice,
};

/// How many there are.
const REPLICAS: usize = 3;

/// What a slow way takes more, at most.
const SLOW: Micros = 700_000;

/// What fences take more on a way on which they are late, at most.
const FENCES_LATE: Micros = 5_000_000;

/// How many must answer, for reads as for writes: any two quorums share a replica.
const QUORUM: usize = 2;

/// Microseconds of virtual time.
pub type Micros = u64;

/// What the network does.
#[derive(Clone, Debug, PartialEq)]
pub struct Weather {
    /// Time of one way.
    pub delay: RangeInclusive<Micros>,
    /// Share of requests that never arrive.
    pub loss: f64,
    /// Share of replies that never arrive.
    pub reply_loss: f64,
    /// Share of writes that arrive after `late` instead.
    pub lateness: f64,
    /// How late that is.
    pub late: RangeInclusive<Micros>,
    /// When an operation without a quorum of answers gives up.
    pub timeout: Micros,
}

/// The replicas, the network between them and everybody, and the clock. A clone is a handle on the same world, by the
/// same way.
#[derive(Clone)]
pub struct Replicas(Arc<Mutex<World>>, Arc<AtomicU8>);

/// How one machine's way to the replicas is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Like everybody's.
    Open = 0,
    /// Nothing gets there.
    Cut = 1,
    /// Everything gets there, and nothing comes back.
    Mute = 2,
    /// Everything takes up to 0.7 s more, each way.
    Slow = 3,
    /// Fences take up to 5 s more to get there; everything else is like everybody's.
    FencesLate = 4,
}

/// One session's store.
pub struct Quorum {
    replicas: Replicas,
    session: Session,
    /// The session's own count of minutes.
    minute: Arc<AtomicU64>,
    /// Entities that are listed as active, and in which minute they were last.
    listed: Arc<Mutex<HashMap<EntityId, u64>>>,
}

struct World {
    rng: StdRng,
    weather: Weather,
    now: Micros,
    /// Parcels on their way, by the time of their arrival and the order of their sending.
    under_way: BTreeMap<(Micros, u64), Parcel>,
    sent: u64,
    replicas: [Replica; REPLICAS],
    operations: BTreeMap<u64, Operation>,
    sessions: Vec<SessionId>,
    /// Appends whose replies are to be lost.
    mute: usize,
    /// Appends that are to arrive late.
    slow: usize,
    violations: Vec<String>,
    trace: DefaultHasher,
    generation: Generation,
}

#[derive(Default)]
struct Replica {
    down: bool,
    /// What was written to it meanwhile; somebody keeps it until the replica is back.
    hints: Vec<Arc<Request>>,
    shelves: BTreeMap<EntityId, Shelf>,
    fences: BTreeSet<SessionId>,
    registry: BTreeSet<SessionId>,
    claims: BTreeSet<Claim>,
    /// By session and its minute.
    activity: BTreeMap<(SessionId, u64), BTreeSet<EntityId>>,
}

/// What a replica has of one entity; also what it answers, cut to what was asked.
#[derive(Clone, Default)]
struct Shelf {
    snapshot: Option<(Seq, Bytes)>,
    rows: BTreeMap<(Seq, Epoch), Row>,
    overlays: BTreeMap<Seq, StoredOverlay>,
    reactions: BTreeMap<(Seq, ReactionKey, UserId), StoredReaction>,
    ids: BTreeMap<Seq, Arc<StoredIdBlock>>,
    prints: BTreeMap<Seq, StoredIdPrints>,
    inbox: BTreeMap<ConversationId, StoredInbox>,
    receipts: StoredReceipts,
    members: BTreeMap<UserId, StoredMember>,
    /// Up to where others must hear of it, and up to where they have.
    announce: (Seq, Seq),
    /// What was removed: whatever is as old and in it stays removed, whenever it comes.
    removed: Vec<Purge>,
}

#[derive(Clone, PartialEq)]
struct Row {
    cw: Seq,
    origin: Epoch,
    after: Epoch,
    event: Arc<Event>,
}

enum Parcel {
    Request { operation: u64, statement: usize, replica: usize, request: Arc<Request>, replied: bool, slow: bool },
    Reply { operation: u64, statement: usize, replica: usize, answer: Answer },
    Timeout { operation: u64 },
}

/// An operation that nobody waits for.
const NOBODY: u64 = u64::MAX;

enum Request {
    Write(Vec<Mutation>),
    Fence(SessionId),
    ReadFence(SessionId),
    Enrol(SessionId),
    ReadRegistry,
    Claim(Claim),
    ReadClaims,
    ReadActivity(SessionId, u64),
    Read(EntityId, Wanting),
    ReadAnnounced,
    ReadAll,
}

/// What of a shelf is asked.
enum Wanting {
    Snapshot,
    /// What stands above the snapshot, and beside it.
    Above {
        above: Seq,
        ids_since: Millis,
    },
    Log {
        from: Seq,
        upto: Seq,
        reader: Option<UserId>,
    },
    Overlays(Vec<Seq>),
    Reactions(Seq, UserId),
    Reacted(Seq, ReactionKey),
    Members(Option<UserId>),
    Ids,
}

enum Mutation {
    Row { entity: EntityId, epoch: Epoch, row: Row },
    Announce(EntityId, Seq),
    Active(SessionId, u64, Vec<EntityId>),
    Projection(Projection),
    Purge(Purge),
}

enum Answer {
    Written,
    Fenced(bool),
    Shelf(Box<Shelf>),
    Announced(BTreeMap<EntityId, (Seq, Seq)>),
    All(BTreeMap<ConversationId, Shelf>),
    Active(BTreeSet<EntityId>),
    Registry(BTreeSet<SessionId>),
    Claims(BTreeSet<Claim>),
}

/// What waits for a quorum.
struct Operation {
    /// By statement: who has answered.
    answered: Vec<BTreeSet<usize>>,
    answers: Vec<Answer>,
    then: Then,
}

enum Then {
    /// With the statements of each append.
    Append(Vec<Range<usize>>, Done<Vec<Written>>),
    /// A write of a session or a claim; `true` when it is durable.
    Noted(Done<bool>),
    Registry(Done<Result<Vec<SessionId>, Error>>),
    Claims(Done<Result<Vec<Claim>, Error>>),
    Active(Done<Result<Vec<EntityId>, Error>>),
    Project(Done<Result<(), Error>>),
    Confirm(Done<Confirmation>),
    Snapshot(Done<Result<Option<(Seq, Bytes)>, Error>>),
    /// With the snapshot, and how far back ids are wanted.
    Recover(Option<(Seq, Bytes)>, Millis, Done<Result<Recovered, Error>>),
    Page(PageRequest, Done<Result<Page, Error>>),
    Overlays(Done<Result<Vec<(Seq, StoredOverlay)>, Error>>),
    Reactions(Vec<ReactionKey>, Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>),
    Reacted(ReactedRequest, Done<Result<Reacted, Error>>),
    Members(usize, Done<Result<MemberRows, Error>>),
    Walk(Option<Bytes>, usize, bool, Done<Result<Walked, Error>>),
    FindId(UserId, CommandId, (Seq, Millis), Done<Result<Option<StoredId>, Error>>),
    Announced(Done<Result<Vec<EntityId>, Error>>),
}

impl Default for Weather {
    /// A calm day: a millisecond each way, nothing lost.
    fn default() -> Self {
        Self {
            delay: 500..=1_500,
            loss: 0.0,
            reply_loss: 0.0,
            lateness: 0.0,
            late: 5_000_000..=60_000_000,
            timeout: 1_500_000,
        }
    }
}

impl Weather {
    /// A bad one: a tenth of everything is lost, and some writes arrive after their owner's death.
    #[must_use]
    pub fn stormy() -> Self {
        Self { delay: 100..=200_000, loss: 0.1, reply_loss: 0.1, lateness: 0.1, ..Self::default() }
    }
}

// === impl Replicas ===

impl Replicas {
    /// Empty replicas, and luck from `seed`.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let world = World {
            rng: StdRng::seed_from_u64(seed),
            weather,
            now: 0,
            under_way: BTreeMap::new(),
            sent: 0,
            replicas: Default::default(),
            operations: BTreeMap::new(),
            sessions: Vec::new(),
            mute: 0,
            slow: 0,
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            generation: Generation(seed),
        };
        Self(Arc::new(Mutex::new(world)), Arc::default())
    }

    /// Another machine's handle, with a way of its own.
    #[must_use]
    pub fn from_elsewhere(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::default())
    }

    /// How this handle's way is from now on.
    pub fn set_way(&self, way: Way) {
        self.1.store(way as u8, Ordering::Relaxed);
    }

    fn begin(&self, requests: Vec<Request>, then: Then) {
        let way = self.1.load(Ordering::Relaxed);
        self.0.lock().begin(requests, then, way);
    }

    /// A new session, newer than all before. Nobody told those, and nobody has fenced them.
    #[must_use]
    pub fn begin_session(&self) -> Arc<Quorum> {
        let mut world = self.0.lock();
        let id = 1 + world.sessions.len() as u64;
        world.sessions.push(id);
        let session = Session { id, epoch: id, generation: world.generation };
        drop(world);
        Arc::new(self.quorum(session, Arc::default()))
    }

    fn quorum(&self, session: Session, minute: Arc<AtomicU64>) -> Quorum {
        Quorum { replicas: self.clone(), session, minute, listed: Arc::default() }
    }

    /// Identity of the history that it keeps.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.0.lock().generation
    }

    /// The next thing happens, whatever it is and however far off. `false` when nothing is under way.
    pub fn step(&self) -> bool {
        let mut world = self.0.lock();
        let Some(((at, order), parcel)) = world.under_way.pop_first() else { return false };
        world.now = world.now.max(at);
        let then = world.arrive(order, parcel);
        // Whoever is answered may ask again at once.
        drop(world);
        if let Some(answer) = then {
            answer();
        }
        true
    }

    /// Everything that happens within this time from now happens.
    pub fn run_for(&self, time: Micros) {
        let end = self.now() + time;
        while self.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        let mut world = self.0.lock();
        world.now = world.now.max(end);
    }

    /// Moves the clock on, if nothing happens before; for worlds in which other things happen too.
    pub fn wait_until(&self, at: Micros) {
        let mut world = self.0.lock();
        world.now = world.now.max(at);
    }

    /// Runs until nobody waits for an answer. Late writes may still be under way.
    pub fn run_until_answered(&self) {
        while !self.0.lock().operations.is_empty() && self.step() {}
    }

    /// Runs until nothing is under way.
    pub fn run_until_quiet(&self) {
        while self.step() {}
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.0.lock().now
    }

    /// When the next thing happens, if anything is under way.
    #[must_use]
    pub fn next_at(&self) -> Option<Micros> {
        self.0.lock().under_way.first_key_value().map(|((at, _), _)| *at)
    }

    /// Another weather, for what is sent from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Takes a replica away, or brings it back. It keeps what it had; what is written meanwhile reaches it later.
    pub fn set_down(&self, replica: usize, down: bool) {
        let mut world = self.0.lock();
        world.replicas[replica].down = down;
        if !down {
            for request in std::mem::take(&mut world.replicas[replica].hints) {
                let delay = world.late();
                world.send(
                    delay,
                    Parcel::Request { operation: NOBODY, statement: 0, replica, request, replied: false, slow: false },
                );
            }
        }
    }

    /// The next `count` appends are written, but their replies are lost.
    pub fn lose_replies(&self, count: usize) {
        self.0.lock().mute = count;
    }

    /// The next `count` appends arrive at every replica long after they were given up.
    pub fn delay_appends(&self, count: usize) {
        self.0.lock().slow = count;
    }

    /// What owners did that no owner may do: another content under a seq and epoch that was written before.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    /// The lowest event of a log that any two replicas still show.
    #[must_use]
    pub fn lowest_seq(&self, entity: &EntityId) -> Option<Seq> {
        let world = self.0.lock();
        let shelf = |replica: usize| world.replicas[replica].shelves.get(entity).cloned().unwrap_or_default();
        let pairs = (0..REPLICAS).map(|one| shelf(one).merge(shelf((one + 1) % REPLICAS)));
        pairs.filter_map(|both| both.rows.first_key_value().map(|((seq, _), _)| *seq)).min()
    }

    /// A number that stands for everything that happened so far.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.lock().trace.finish()
    }
}

// === impl World ===

impl World {
    fn begin(&mut self, requests: Vec<Request>, then: Then, way: u8) {
        let operation = self.sent;
        let is_append = matches!(then, Then::Append(..));
        let mute = is_append && take_one(&mut self.mute);
        let slow = is_append && take_one(&mut self.slow);
        let answered = vec![BTreeSet::new(); requests.len()];
        self.operations.insert(operation, Operation { answered, answers: Vec::new(), then });
        self.send(self.weather.timeout, Parcel::Timeout { operation });
        for (statement, request) in requests.into_iter().enumerate() {
            let request = Arc::new(request);
            for replica in 0..REPLICAS {
                if self.rng.random_bool(self.weather.loss) || way == Way::Cut as u8 {
                    continue;
                }
                let late = slow || (request.is_write() && self.rng.random_bool(self.weather.lateness));
                let mut delay = if late { self.late() } else { self.rng.random_range(self.weather.delay.clone()) };
                if way == Way::Slow as u8 {
                    delay += self.rng.random_range(0..SLOW);
                }
                if way == Way::FencesLate as u8 && matches!(*request, Request::Fence(_)) {
                    delay += self.rng.random_range(0..FENCES_LATE);
                }
                let slowly = way == Way::Slow as u8;
                let replied = !mute && way != Way::Mute as u8 && !self.rng.random_bool(self.weather.reply_loss);
                self.send(
                    delay,
                    Parcel::Request {
                        operation,
                        statement,
                        replica,
                        request: Arc::clone(&request),
                        replied,
                        slow: slowly,
                    },
                );
            }
        }
    }

    fn late(&mut self) -> Micros {
        self.rng.random_range(self.weather.late.clone())
    }

    fn send(&mut self, delay: Micros, parcel: Parcel) {
        self.under_way.insert((self.now + delay, self.sent), parcel);
        self.sent += 1;
    }

    /// One arrival. What is returned is called without the lock.
    fn arrive(&mut self, order: u64, parcel: Parcel) -> Option<Box<dyn FnOnce()>> {
        (self.now, order).hash(&mut self.trace);
        match parcel {
            Parcel::Request { operation, statement, replica, request, replied, slow } => {
                if self.replicas[replica].down {
                    if request.is_write() {
                        self.replicas[replica].hints.push(request);
                    }
                    return None;
                }
                let answer = self.serve(replica, &request);
                if replied {
                    let mut delay = self.rng.random_range(self.weather.delay.clone());
                    if slow {
                        delay += self.rng.random_range(0..SLOW);
                    }
                    self.send(delay, Parcel::Reply { operation, statement, replica, answer });
                }
                None
            }
            Parcel::Reply { operation, statement, replica, answer } => {
                let pending = self.operations.get_mut(&operation)?;
                if pending.answered[statement].len() < QUORUM && pending.answered[statement].insert(replica) {
                    pending.answers.push(answer);
                }
                if pending.answered.iter().any(|answered| answered.len() < QUORUM) {
                    return None;
                }
                self.operations.remove(&operation).map(Operation::finish)
            }
            Parcel::Timeout { operation } => self.operations.remove(&operation).map(Operation::finish),
        }
    }

    fn serve(&mut self, replica: usize, request: &Request) -> Answer {
        let replica = &mut self.replicas[replica];
        match request {
            Request::Write(mutations) => {
                for mutation in mutations {
                    if let Err(violation) = replica.write(mutation) {
                        self.violations.push(violation);
                    }
                }
                Answer::Written
            }
            Request::Fence(session) => {
                replica.fences.insert(*session);
                Answer::Written
            }
            Request::ReadFence(session) => Answer::Fenced(replica.fences.contains(session)),
            Request::Enrol(session) => {
                replica.registry.insert(*session);
                Answer::Written
            }
            Request::ReadRegistry => Answer::Registry(replica.registry.clone()),
            Request::Claim(claim) => {
                replica.claims.insert(*claim);
                Answer::Written
            }
            Request::ReadClaims => Answer::Claims(replica.claims.clone()),
            Request::ReadActivity(session, since) => {
                let minutes = replica.activity.range((*session, *since)..=(*session, u64::MAX));
                Answer::Active(minutes.flat_map(|(_, entities)| entities.iter().cloned()).collect())
            }
            Request::Read(entity, part) => {
                Answer::Shelf(Box::new(replica.shelves.get(entity).map(|shelf| shelf.part(part)).unwrap_or_default()))
            }
            Request::ReadAll => {
                let conversation = |(entity, shelf): (&EntityId, &Shelf)| match entity {
                    EntityId::Conversation(id) => Some((*id, shelf.at_rest())),
                    EntityId::User(_) => None,
                };
                Answer::All(replica.shelves.iter().filter_map(conversation).collect())
            }
            Request::ReadAnnounced => {
                let listed = replica.shelves.iter().map(|(entity, shelf)| (entity.clone(), shelf.announce));
                Answer::Announced(listed.filter(|(_, (listed, _))| *listed > 0).collect())
            }
        }
    }
}

impl Request {
    const fn is_write(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Fence(_) | Self::Enrol(_) | Self::Claim(_))
    }
}

fn take_one(count: &mut usize) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

// === impl Replica, Shelf ===

impl Replica {
    fn shelf(&mut self, entity: &EntityId) -> &mut Shelf {
        self.shelves.entry(entity.clone()).or_default()
    }

    fn write(&mut self, mutation: &Mutation) -> Result<(), String> {
        match mutation {
            Mutation::Row { entity, epoch, row } => {
                let place = (row.event.seq, *epoch);
                let there = self.shelf(entity).rows.entry(place).or_insert_with(|| row.clone());
                if there != row {
                    return Err(format!("{entity}: another content under seq {} and epoch {epoch}", row.event.seq));
                }
                self.shelf(entity).bury();
            }
            Mutation::Announce(entity, seq) => {
                let announce = &mut self.shelf(entity).announce;
                announce.0 = announce.0.max(*seq);
            }
            Mutation::Active(session, minute, entities) => {
                self.activity.entry((*session, *minute)).or_default().extend(entities.iter().cloned());
            }
            Mutation::Projection(projection) => self.project(projection),
            Mutation::Purge(purge) => {
                let shelf = self.shelf(&purge.entity);
                if !shelf.removed.contains(purge) {
                    shelf.removed.push(purge.clone());
                }
                shelf.bury();
            }
        }
        Ok(())
    }

    fn project(&mut self, projection: &Projection) {
        match projection {
            Projection::Snapshot { entity, seq, bytes } => {
                let shelf = self.shelf(entity);
                if shelf.snapshot.as_ref().is_none_or(|(there, _)| there < seq) {
                    shelf.snapshot = Some((*seq, bytes.clone()));
                }
            }
            Projection::Overlay { entity, target, overlay } => {
                let there = self.shelf(entity).overlays.entry(*target).or_insert_with(|| overlay.clone());
                if there.as_of < overlay.as_of {
                    *there = overlay.clone();
                }
                self.shelf(entity).bury();
            }
            Projection::Reaction { entity, target, key, user, reaction } => {
                let place = (*target, key.clone(), user.clone());
                let there = self.shelf(entity).reactions.entry(place).or_insert(*reaction);
                if there.seq < reaction.seq {
                    *there = *reaction;
                }
                self.shelf(entity).bury();
            }
            Projection::IdBlock { entity, end, block } => {
                let shelf = self.shelf(entity);
                shelf.ids.insert(*end, Arc::clone(block));
                shelf.prints.insert(*end, StoredIdPrints::of(block));
                shelf.bury();
            }
            Projection::Inbox { user, conversation, position } => {
                let there = self.shelf(&user.clone().into()).inbox.entry(*conversation).or_default();
                *there = there.highest(position);
            }
            Projection::Members { conversation, rows } => {
                rows.iter().for_each(|row| self.shelf(&(*conversation).into()).take_member(row));
            }
            Projection::Receipts { conversation, items, .. } => {
                self.shelf(&(*conversation).into()).receipts.raise(items);
            }
            Projection::Announced { entity, upto } => {
                let announce = &mut self.shelf(entity).announce;
                announce.1 = announce.1.max(*upto);
            }
        }
    }
}

impl Shelf {
    /// What was removed goes, as far as it is as old as that.
    fn bury(&mut self) {
        for Purge { part, above, upto, at, .. } in &self.removed {
            let is_in = |seq: Seq| above < &seq && seq <= *upto;
            match part {
                Part::History => {
                    self.rows.retain(|(seq, _), _| !(is_in(*seq) && seq <= at));
                    self.overlays.retain(|target, row| !(is_in(*target) && row.as_of <= *at));
                    self.reactions.retain(|(target, ..), row| !(is_in(*target) && row.seq <= *at));
                }
                Part::Ids => {
                    self.ids.retain(|end, _| !(is_in(*end) && end <= at));
                    self.prints.retain(|end, _| !(is_in(*end) && end <= at));
                }
            }
        }
    }

    fn part(&self, part: &Wanting) -> Self {
        Self { removed: self.removed.clone(), ..self.wanted(part) }
    }

    /// Its snapshot, and the rows above.
    fn at_rest(&self) -> Self {
        let above = self.snapshot.as_ref().map_or(0, |(seq, _)| *seq);
        Self { snapshot: self.snapshot.clone(), ..self.part(&Wanting::Above { above, ids_since: Millis::MAX }) }
    }

    fn wanted(&self, part: &Wanting) -> Self {
        match part {
            Wanting::Snapshot => Self { snapshot: self.snapshot.clone(), ..Self::default() },
            Wanting::Above { above, ids_since } => {
                let rows = self.rows.range((above + 1, 0)..).map(|(place, row)| (*place, row.clone())).collect();
                let prints = self.recent_prints(*ids_since).into_iter().collect();
                let (inbox, receipts) = (self.inbox.clone(), self.receipts.clone());
                Self { rows, inbox, receipts, prints, ..Self::default() }
            }
            Wanting::Log { from, upto, reader } => {
                let rows = self
                    .rows
                    .range((*from, 0)..=(*upto, Epoch::MAX))
                    .map(|(place, row)| (*place, row.clone()))
                    .collect();
                // Those of what edits are about stand below.
                let overlays = self.overlays.range(..=upto).map(|(seq, overlay)| (*seq, overlay.clone())).collect();
                let reactions = self
                    .reactions_of(|target, _, user| Some(user) == reader.as_ref() && (*from..=*upto).contains(&target));
                Self { rows, overlays, reactions, ..Self::default() }
            }
            Wanting::Overlays(targets) => {
                let wanted = self.overlays.iter().filter(|(target, _)| targets.contains(target));
                Self {
                    overlays: wanted.map(|(target, overlay)| (*target, overlay.clone())).collect(),
                    ..Self::default()
                }
            }
            Wanting::Reactions(message, whose) => {
                let reactions = self.reactions_of(|target, _, user| target == *message && user == whose);
                Self { reactions, ..Self::default() }
            }
            Wanting::Reacted(message, with) => {
                let reactions = self.reactions_of(|target, key, _| target == *message && key == with);
                Self { reactions, ..Self::default() }
            }
            Wanting::Members(after) => {
                let is_above = |user: &UserId| after.as_ref().is_none_or(|after| user > after);
                let above = self.members.iter().filter(|(user, _)| is_above(user));
                Self { members: above.map(|(user, row)| (user.clone(), row.clone())).collect(), ..Self::default() }
            }
            Wanting::Ids => Self { ids: self.ids.clone(), prints: self.prints.clone(), ..Self::default() },
        }
    }

    /// What two replicas know together.
    fn merge(mut self, other: Self) -> Self {
        if other.snapshot.as_ref().map(|(seq, _)| *seq) > self.snapshot.as_ref().map(|(seq, _)| *seq) {
            self.snapshot = other.snapshot;
        }
        self.rows.extend(other.rows);
        for (target, overlay) in other.overlays {
            if self.overlays.get(&target).is_none_or(|there| there.as_of < overlay.as_of) {
                self.overlays.insert(target, overlay);
            }
        }
        for (place, reaction) in other.reactions {
            if self.reactions.get(&place).is_none_or(|there| there.seq < reaction.seq) {
                self.reactions.insert(place, reaction);
            }
        }
        self.ids.extend(other.ids);
        self.prints.extend(other.prints);
        for (conversation, position) in other.inbox {
            let there = self.inbox.entry(conversation).or_default();
            *there = there.highest(&position);
        }
        self.receipts.raise(&other.receipts.items);
        other.members.values().for_each(|row| self.take_member(row));
        self.removed.extend(other.removed);
        self.bury();
        self
    }

    fn take_member(&mut self, row: &StoredMember) {
        let Ok(user) = UserId::new(&row.user) else { return };
        if self.members.get(&user).is_none_or(|there| there.as_of < row.as_of) {
            self.members.insert(user, row.clone());
        }
    }

    fn reactions_of(
        &self,
        is_wanted: impl Fn(Seq, &ReactionKey, &UserId) -> bool,
    ) -> BTreeMap<(Seq, ReactionKey, UserId), StoredReaction> {
        let wanted = self.reactions.iter().filter(|((target, key, user), _)| is_wanted(*target, key, user));
        wanted.map(|(place, reaction)| (place.clone(), *reaction)).collect()
    }

    fn reacted(self, request: &ReactedRequest) -> Reacted {
        let rows = self.reactions.into_iter().map(|((.., user), reaction)| (user, reaction));
        let mut rows = rows.filter(|(user, _)| request.after.as_ref().is_none_or(|after| user > after));
        let page = rows.by_ref().take(request.limit).collect();
        Reacted { rows: page, complete: rows.next().is_none() }
    }

    fn member_rows(self, limit: usize) -> MemberRows {
        let mut rows = self.members.into_values();
        let page = rows.by_ref().take(limit).collect();
        MemberRows { rows: page, complete: rows.next().is_none() }
    }

    fn recent_prints(&self, since: Millis) -> Vec<(Seq, StoredIdPrints)> {
        let Ok(recent) = ids::recent(self.newest_prints(), since);
        recent
    }

    fn newest_prints(&self) -> impl Iterator<Item = Result<(Seq, StoredIdPrints), Infallible>> {
        self.prints.iter().rev().map(|(end, prints)| Ok((*end, prints.clone())))
    }

    fn recovered(self, snapshot: Option<(Seq, Bytes)>, ids_since: Millis) -> Recovered {
        let prints = if snapshot.is_some() { self.recent_prints(ids_since) } else { Vec::new() };
        let row = |((_, epoch), row): (_, Row)| LogRow {
            epoch,
            cw: row.cw,
            origin: row.origin,
            after: row.after,
            events: vec![row.event],
        };
        let inbox = self.inbox.into_iter().collect();
        let receipts = self.receipts.items;
        Recovered { snapshot, rows: self.rows.into_iter().map(row).collect(), inbox, receipts, prints }
    }

    fn page(&self, request: &PageRequest) -> Page {
        // Rows are in order of seq, then epoch: the last of a seq wins.
        let winners: BTreeMap<Seq, &Arc<Event>> = self.rows.iter().map(|((seq, _), row)| (*seq, &row.event)).collect();
        let mut slice = Slice::new(request);
        let mut take = |event: &Arc<Event>| {
            let overlay = |seq| Ok::<_, Infallible>(self.overlays.get(&seq).cloned());
            let own = |user: &UserId, key: &ReactionKey| {
                Ok(self.reactions.get(&(event.seq, key.clone(), user.clone())).copied())
            };
            let Ok(()) = slice.take(Arc::clone(event), overlay, own);
        };
        if request.newest_first {
            winners.values().rev().for_each(|event| take(event));
        } else {
            winners.values().for_each(|event| take(event));
        }
        slice.finish()
    }

    fn find_id(&self, sender: &UserId, id: CommandId, (above, not_before): (Seq, Millis)) -> Option<StoredId> {
        let wanted = Wanted { sender, id, above, not_before };
        let Ok(found) = wanted.find(self.newest_prints(), |ends, take| {
            let _ = self.ids.range(ends).rev().all(|(_, block)| take((**block).clone()));
            Ok(())
        });
        found
    }
}

// === impl Operation ===

impl Operation {
    /// The operation has all its answers, or will get no more. What is returned tells the one who waits.
    fn finish(self) -> Box<dyn FnOnce()> {
        let has_quorum = |statement: &BTreeSet<usize>| statement.len() >= QUORUM;
        let complete = self.answered.iter().all(has_quorum);
        let unavailable = no_quorum;
        let shelf = |answers: Vec<Answer>| {
            let shelves = answers
                .into_iter()
                .filter_map(|answer| if let Answer::Shelf(shelf) = answer { Some(*shelf) } else { None });
            if complete { Ok(shelves.fold(Shelf::default(), Shelf::merge)) } else { Err(unavailable()) }
        };
        match self.then {
            Then::Append(statements, done) => {
                // The listing of active entities, if any, stands behind the appends' own statements.
                let rows = statements.last().map_or(0, |last| last.end);
                let is_listed = self.answered[rows..].iter().all(has_quorum);
                let outcome = |statements: Range<usize>| {
                    let is_durable = is_listed && self.answered[statements].iter().all(has_quorum);
                    if is_durable { Written::Durable } else { Written::Unknown }
                };
                let outcomes = statements.into_iter().map(outcome).collect();
                Box::new(move || done(outcomes))
            }
            Then::Registry(done) => {
                let of = |answer| if let Answer::Registry(some) = answer { some } else { BTreeSet::new() };
                let all: BTreeSet<SessionId> = self.answers.into_iter().flat_map(of).collect();
                Box::new(move || done(if complete { Ok(all.into_iter().collect()) } else { Err(unavailable()) }))
            }
            Then::Claims(done) => {
                let of = |answer| if let Answer::Claims(some) = answer { some } else { BTreeSet::new() };
                let all: BTreeSet<Claim> = self.answers.into_iter().flat_map(of).collect();
                Box::new(move || done(if complete { Ok(all.into_iter().collect()) } else { Err(unavailable()) }))
            }
            Then::Active(done) => {
                let of = |answer| if let Answer::Active(some) = answer { some } else { BTreeSet::new() };
                let all: BTreeSet<EntityId> = self.answers.into_iter().flat_map(of).collect();
                Box::new(move || done(if complete { Ok(all.into_iter().collect()) } else { Err(unavailable()) }))
            }
            Then::Project(done) => Box::new(move || done(if complete { Ok(()) } else { Err(unavailable()) })),
            Then::Noted(done) => Box::new(move || done(complete)),
            Then::Confirm(done) => {
                let fenced = self.answers.iter().any(|answer| matches!(answer, Answer::Fenced(true)));
                let confirmation = match (fenced, complete) {
                    // One replica that knows it is enough: a fence is never taken back.
                    (true, _) => Confirmation::Fenced,
                    (false, true) => Confirmation::Clean,
                    (false, false) => Confirmation::Unknown,
                };
                Box::new(move || done(confirmation))
            }
            Then::Snapshot(done) => {
                let result = shelf(self.answers).map(|shelf| shelf.snapshot);
                Box::new(move || done(result))
            }
            Then::Recover(snapshot, ids_since, done) => {
                let result = shelf(self.answers).map(|shelf| shelf.recovered(snapshot, ids_since));
                Box::new(move || done(result))
            }
            Then::Page(request, done) => {
                let result = shelf(self.answers).map(|shelf| shelf.page(&request));
                Box::new(move || done(result))
            }
            Then::Overlays(done) => {
                let result = shelf(self.answers).map(|shelf| shelf.overlays.into_iter().collect());
                Box::new(move || done(result))
            }
            Then::Reactions(keys, done) => {
                let own = |shelf: Shelf| {
                    let rows = shelf.reactions.into_iter().filter(|((_, key, _), _)| keys.contains(key));
                    rows.map(|((_, key, _), reaction)| (key, reaction)).collect()
                };
                let result = shelf(self.answers).map(own);
                Box::new(move || done(result))
            }
            Then::Reacted(request, done) => {
                let result = shelf(self.answers).map(|shelf| shelf.reacted(&request));
                Box::new(move || done(result))
            }
            Then::Members(limit, done) => {
                let result = shelf(self.answers).map(|shelf| shelf.member_rows(limit));
                Box::new(move || done(result))
            }
            Then::Walk(from, limit, every, done) => {
                let mut all: BTreeMap<ConversationId, Shelf> = BTreeMap::new();
                for (id, shelf) in self.answers.into_iter().flat_map(|answer| match answer {
                    Answer::All(some) => some,
                    _ => BTreeMap::new(),
                }) {
                    let known = all.remove(&id).unwrap_or_default();
                    all.insert(id, known.merge(shelf));
                }
                all.retain(|_, shelf| every || shelf.snapshot.is_some());
                let result = if complete { Ok(walked(all, from.as_deref(), limit)) } else { Err(unavailable()) };
                Box::new(move || done(result))
            }
            Then::FindId(sender, id, since, done) => {
                let result = shelf(self.answers).map(|shelf| shelf.find_id(&sender, id, since));
                Box::new(move || done(result))
            }
            Then::Announced(done) => {
                let mut all: BTreeMap<EntityId, (Seq, Seq)> = BTreeMap::new();
                for (entity, (listed, told)) in self.answers.into_iter().flat_map(|answer| match answer {
                    Answer::Announced(some) => some,
                    _ => BTreeMap::new(),
                }) {
                    let entry = all.entry(entity).or_default();
                    *entry = (entry.0.max(listed), entry.1.max(told));
                }
                let owed =
                    all.into_iter().filter(|(_, (listed, told))| listed > told).map(|(entity, _)| entity).collect();
                let result = if complete { Ok(owed) } else { Err(unavailable()) };
                Box::new(move || done(result))
            }
        }
    }
}

// === impl Quorum ===

impl Quorum {
    /// The world that it writes to.
    #[must_use]
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Writes the fences of all earlier sessions. `true` when a quorum has them; not before may a log be read.
    pub fn fence_predecessors(&self, done: Done<bool>) {
        let earlier = self.replicas.0.lock().sessions.iter().copied().filter(|id| *id < self.session.id).collect();
        self.replicas.fence(earlier, done);
    }

    fn read(&self, entity: EntityId, part: Wanting, then: Then) {
        self.replicas.read(entity, part, then);
    }
}

impl Replicas {
    fn read(&self, entity: EntityId, part: Wanting, then: Then) {
        self.begin(vec![Request::Read(entity, part)], then);
    }

    /// As on a real server: first the snapshot, then what is above it. Whatever goes from there meanwhile went below a newer
    /// snapshot: then all is read again.
    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        let replicas = self.clone();
        let back = entity.clone();
        let above = move |snapshot: Result<Option<(Seq, Bytes)>, Error>| match snapshot {
            Ok(snapshot) => replicas.recover_above(back, snapshot, ids_since, done),
            Err(error) => done(Err(error)),
        };
        self.read(entity, Wanting::Snapshot, Then::Snapshot(Box::new(above)));
    }

    fn recover_above(
        &self,
        entity: EntityId,
        snapshot: Option<(Seq, Bytes)>,
        ids_since: Millis,
        done: Done<Result<Recovered, Error>>,
    ) {
        let above = snapshot.as_ref().map_or(0, |(seq, _)| *seq);
        if matches!(entity, EntityId::User(_)) || is(Bug::RecoveryOvertaken) {
            return self.read(entity, Wanting::Above { above, ids_since }, Then::Recover(snapshot, ids_since, done));
        }
        let replicas = self.clone();
        let back = entity.clone();
        let look_again = move |recovered: Result<Recovered, Error>| {
            let recovered = match recovered {
                Ok(recovered) => recovered,
                Err(error) => return done(Err(error)),
            };
            let (again, back_again) = (replicas.clone(), back.clone());
            let compare = move |newest: Result<Option<(Seq, Bytes)>, Error>| match newest {
                Ok(Some((seq, bytes))) if seq > above => {
                    again.recover_above(back_again, Some((seq, bytes)), ids_since, done);
                }
                Ok(_) => done(Ok(recovered)),
                Err(error) => done(Err(error)),
            };
            replicas.read(back, Wanting::Snapshot, Then::Snapshot(Box::new(compare)));
        };
        let then = Then::Recover(snapshot, ids_since, Box::new(look_again));
        self.read(entity, Wanting::Above { above, ids_since }, then);
    }
}

impl Shared for Replicas {
    fn enter(&self, session: Session, minute: Arc<AtomicU64>) -> Arc<dyn Store> {
        Arc::new(self.quorum(session, minute))
    }

    fn enrol(&self, session: SessionId, done: Done<Result<Generation, Error>>) {
        let replicas = self.clone();
        let registered = move |durable: bool| {
            if !durable {
                return done(Err(no_quorum()));
            }
            // After the row is durable: a founding that did not see it is seen now.
            let read = replicas.clone();
            let newest = move |claims: Result<Vec<Claim>, Error>| {
                let last =
                    claims.map(|claims| claims.iter().map(|claim| claim.group).max_by_key(|group| group.generation));
                done(last.map(|group| group.map_or_else(|| replicas.generation(), generation_of)));
            };
            read.begin(vec![Request::ReadClaims], Then::Claims(Box::new(newest)));
        };
        self.begin(vec![Request::Enrol(session)], Then::Noted(Box::new(registered)));
    }

    fn fence(&self, sessions: Vec<SessionId>, done: Done<bool>) {
        if sessions.is_empty() {
            return done(true);
        }
        self.begin(sessions.into_iter().map(Request::Fence).collect(), Then::Noted(done));
    }

    fn active(&self, session: SessionId, since: u64, done: Done<Result<Vec<EntityId>, Error>>) {
        self.begin(vec![Request::ReadActivity(session, since)], Then::Active(done));
    }
}

impl Replicas {
    /// Asks at once; the answer can be waited for.
    fn promise<T: Send + 'static>(&self, ask: impl FnOnce(&Self, Done<Result<T, Error>>)) -> Promise<'static, T> {
        let (tell, told) = tokio::sync::oneshot::channel();
        // Whoever does not wait any longer has given it up.
        ask(self, Box::new(move |answer| drop(tell.send(answer))));
        Box::pin(async move { told.await.map_err(io::Error::other)?.map_err(io::Error::other) })
    }

    fn note(&self, requests: Vec<Request>, done: Done<Result<(), Error>>) {
        let noted = move |durable: bool| {
            done(if durable { Ok(()) } else { Err(no_quorum()) });
        };
        self.begin(requests, Then::Noted(Box::new(noted)));
    }
}

impl ClusterMeta for Replicas {
    fn claims(&self) -> Promise<'_, Vec<Claim>> {
        self.promise(|replicas, done| replicas.begin(vec![Request::ReadClaims], Then::Claims(done)))
    }

    fn claim(&self, claim: Claim) -> Promise<'_, ()> {
        self.promise(|replicas, done| replicas.note(vec![Request::Claim(claim)], done))
    }

    fn fence_all(&self) -> Promise<'_, ()> {
        let sessions = self.promise(|replicas, done| replicas.begin(vec![Request::ReadRegistry], Then::Registry(done)));
        Box::pin(async move {
            let fences: Vec<Request> = sessions.await?.into_iter().map(Request::Fence).collect();
            if fences.is_empty() {
                return Ok(());
            }
            self.promise(|replicas, done| replicas.note(fences, done)).await
        })
    }
}

impl Quorum {
    /// Entities of a group that are not listed as active in this minute yet, as a statement of its own; and what notes that
    /// it became durable.
    fn list(&self, group: &[Append]) -> Option<(Mutation, u64)> {
        let minute = self.minute.load(Ordering::Relaxed);
        let listed = self.listed.lock();
        let new: Vec<EntityId> = group
            .iter()
            .filter(|append| listed.get(&append.entity) != Some(&minute))
            .map(|append| append.entity.clone())
            .collect();
        (!new.is_empty()).then(|| (Mutation::Active(self.session.id, minute, new), minute))
    }
}

impl Store for Quorum {
    fn session(&self) -> Session {
        self.session
    }

    fn is_fenced(&self) -> bool {
        true
    }

    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>) {
        let mut statements = Vec::new();
        let mut requests = Vec::new();
        // What is durable must be listed too: a ticket waits for both.
        let listing = self.list(&group);
        let entities: Vec<EntityId> = group.iter().map(|append| append.entity.clone()).collect();
        for append in group {
            let first = requests.len();
            let mut after = append.after;
            for bucket in append.events.chunk_by(|a, b| log_bucket(a.seq) == log_bucket(b.seq)) {
                let mut mutations: Vec<_> = bucket
                    .iter()
                    .map(|event| {
                        let below = std::mem::replace(&mut after, append.origin);
                        let (cw, origin, event) = (append.cw, append.origin, Arc::clone(event));
                        let row = Row { cw, origin, after: below, event };
                        Mutation::Row { entity: append.entity.clone(), epoch: append.epoch, row }
                    })
                    .collect();
                if let (true, Some(last)) = (append.announce, bucket.last()) {
                    mutations.push(Mutation::Announce(append.entity.clone(), last.seq));
                }
                requests.push(Request::Write(mutations));
            }
            statements.push(first..requests.len());
        }
        let minute = listing.map(|(listing, minute)| {
            requests.push(Request::Write(vec![listing]));
            minute
        });
        let listed = Arc::clone(&self.listed);
        let heard: Done<Vec<Written>> = Box::new(move |outcomes| {
            if let Some(minute) = minute.filter(|_| outcomes.iter().all(|outcome| *outcome == Written::Durable)) {
                listed.lock().extend(entities.into_iter().map(|entity| (entity, minute)));
            }
            done(outcomes);
        });
        self.replicas.begin(requests, Then::Append(statements, heard));
    }

    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation> {
        self.replicas.begin(vec![Request::ReadFence(self.session.id)], Then::Confirm(done));
        None
    }

    fn list_active(&self, entities: Vec<EntityId>, done: Done<Result<(), Error>>) {
        let listing = Mutation::Active(self.session.id, self.minute.load(Ordering::Relaxed), entities);
        self.replicas.begin(vec![Request::Write(vec![listing])], Then::Project(done));
    }

    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        self.replicas.recover(entity, ids_since, done);
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>) {
        let reader = request.reader.clone();
        let part = Wanting::Log { from: request.from.min(request.upto), upto: request.upto, reader };
        self.read(request.entity.clone(), part, Then::Page(request, done));
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {
        self.read(entity, Wanting::Overlays(targets), Then::Overlays(done));
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
        self.read(entity, Wanting::Reactions(target, user), Then::Reactions(keys, done));
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>) {
        let part = Wanting::Reacted(request.target, request.key.clone());
        self.read(request.entity.clone(), part, Then::Reacted(request, done));
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    ) {
        self.read(conversation.into(), Wanting::Members(after), Then::Members(limit, done));
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        since: (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    ) {
        self.read(entity, Wanting::Ids, Then::FindId(sender, id, since, done));
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>) {
        let done: Done<Result<(), Error>> = Box::new(move |result| done(result.map(|()| true)));
        self.replicas.begin(vec![Request::Write(vec![Mutation::Purge(purge)])], Then::Project(done));
    }

    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>) {
        self.replicas.begin(vec![Request::ReadAll], Then::Walk(from, limit, all, done));
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        let requests = writes.into_iter().map(|write| Request::Write(vec![Mutation::Projection(write)])).collect();
        self.replicas.begin(requests, Then::Project(done));
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>) {
        self.replicas.begin(vec![Request::ReadAnnounced], Then::Announced(done));
    }
}

/// So many of all conversations, from that one on.
fn walked(all: BTreeMap<ConversationId, Shelf>, from: Option<&[u8]>, limit: usize) -> Walked {
    let above = from.and_then(|from| Uuid::from_slice(from).ok()).map(ConversationId);
    let mut some = all.into_iter().filter(|(id, _)| above.is_none_or(|above| *id > above));
    let mut walked = Walked::default();
    for (id, shelf) in some.by_ref().take(limit) {
        let is_behind = !shelf.rows.is_empty();
        walked.found.push((id, shelf.snapshot.map(|(_, bytes)| bytes), is_behind));
    }
    let last = walked.found.last().map(|(id, ..)| Bytes::copy_from_slice(id.0.as_bytes()));
    walked.next = last.filter(|_| some.next().is_some());
    walked
}

fn no_quorum() -> Error {
    Error::Unavailable("too few replicas answered in time".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::mpsc};

    use chappe_schema::{body::Body, cql::LOG_BUCKET_BITS, event::Fact};
    use uuid::Uuid;

    use super::*;
    use crate::recovery::{Basis, Found, resolve};

    fn entity() -> EntityId {
        ConversationId(Uuid::from_u128(1)).into()
    }

    fn event(seq: Seq, id: u128) -> Arc<Event> {
        Arc::new(Event {
            seq,
            n: seq,
            sender: UserId::new("ada").unwrap(),
            device: None,
            id: CommandId(Uuid::from_u128(id)),
            target: 0,
            created_at: 1,
            hash: 0,
            fact: Fact::MessageNew { body: Body::parse("{}").unwrap(), mentions: None },
        })
    }

    /// `origin` and `after` are the epochs of the first event and of what stands below it.
    fn append(session: Session, cw: Seq, (origin, after): (Epoch, Epoch), events: Vec<Arc<Event>>) -> Append {
        Append { entity: entity(), epoch: session.epoch, cw, origin, after, events: events.into(), announce: false }
    }

    /// Asks and runs the world until the answer comes; what else is under way goes on meanwhile.
    fn ask<T: Send + 'static>(replicas: &Replicas, question: impl FnOnce(Done<T>)) -> T {
        let (tx, rx) = mpsc::channel();
        question(Box::new(move |answer| tx.send(answer).unwrap()));
        loop {
            if let Ok(answer) = rx.try_recv() {
                return answer;
            }
            assert!(replicas.step(), "nothing is under way, and nobody was answered");
        }
    }

    fn confirm(owner: &Quorum) -> Confirmation {
        ask(&owner.replicas, |done| assert_eq!(owner.confirm(done), None))
    }

    #[test]
    fn without_a_quorum_nobody_is_told_anything() {
        let replicas = Replicas::new(1, Weather::default());
        let owner = replicas.begin_session();
        let session = owner.session();
        replicas.set_down(0, true);
        replicas.set_down(2, true);
        let written =
            ask(&replicas, |done| owner.append(vec![append(session, 0, (session.epoch, 0), vec![event(1, 1)])], done));
        assert_eq!(written, [Written::Unknown]);
        assert_eq!(replicas.now(), Weather::default().timeout, "it waited as long as it may");
        assert_eq!(confirm(&owner), Confirmation::Unknown);
        assert!(matches!(ask(&replicas, |done| owner.recover(entity(), 0, done)), Err(Error::Unavailable(_))));
        assert!(matches!(ask(&replicas, |done| owner.announced(done)), Err(Error::Unavailable(_))));
        let later = replicas.begin_session();
        assert!(!ask(&replicas, |done| later.fence_predecessors(done)));
        // What was missed arrives when they are back.
        replicas.set_down(0, false);
        replicas.set_down(2, false);
        replicas.run_until_quiet();
        assert_eq!(ask(&replicas, |done| later.recover(entity(), 0, done)).unwrap().rows.len(), 1);
        assert_eq!(confirm(&owner), Confirmation::Fenced, "the fence arrived too");
    }

    #[test]
    fn an_append_across_a_bucket_may_arrive_in_part() {
        let last = 1u64 << LOG_BUCKET_BITS;
        let events = || vec![event(last, 1), event(last + 1, 2)];
        let mut parts = BTreeSet::new();
        for seed in 0..60 {
            let replicas = Replicas::new(seed, Weather { loss: 0.5, ..Weather::default() });
            let owner = replicas.begin_session();
            let written = ask(&replicas, |done| owner.append(vec![append(owner.session(), 0, (1, 1), events())], done));
            replicas.set_weather(Weather::default());
            let found = ask(&replicas, |done| owner.recover(entity(), 0, done)).unwrap().rows.len();
            assert!(written != [Written::Durable] || found == 2, "seed {seed}");
            parts.insert(found);
        }
        assert!(parts.contains(&1), "{parts:?}");
    }

    #[test]
    fn what_no_owner_may_do_is_noticed() {
        let replicas = Replicas::new(1, Weather::default());
        let owner = replicas.begin_session();
        let session = owner.session();
        for (cw, id) in [(0, 1), (0, 1), (0, 2)] {
            assert!(replicas.violations().is_empty());
            ask(&replicas, |done| {
                owner.append(vec![append(session, cw, (session.epoch, 0), vec![event(1, id)])], done)
            });
            replicas.run_until_quiet();
        }
        assert!(replicas.violations()[0].contains("another content under seq 1 and epoch 1"));
    }

    /// An owner as the shards' pure half sees it: what it believes of the log, and how far that is committed.
    struct Owner {
        store: Arc<Quorum>,
        log: Vec<Found>,
        committed: Seq,
        /// Appends that were sent and of which nothing was heard yet.
        flights: Vec<Append>,
        alive: bool,
    }

    /// What clients were told.
    #[derive(Default)]
    struct Told {
        by_seq: BTreeMap<Seq, CommandId>,
        by_id: HashMap<CommandId, Seq>,
        wrong: Vec<String>,
    }

    impl Told {
        fn acknowledged(&mut self, event: &Event) {
            let there = *self.by_seq.entry(event.seq).or_insert(event.id);
            if there != event.id {
                self.wrong.push(format!("seq {} was acknowledged twice", event.seq));
            }
            let before = *self.by_id.entry(event.id).or_insert(event.seq);
            if before != event.seq {
                self.wrong.push(format!("a command was acknowledged at {before} and at {}", event.seq));
            }
        }
    }

    impl Owner {
        /// A session that comes after all others. `None` when the log is out of reach.
        fn begin(replicas: &Replicas, is_careful: bool, told: &mut Told) -> Option<Self> {
            let store = replicas.begin_session();
            if is_careful && !(0..5).any(|_| ask(replicas, |done| store.fence_predecessors(done))) {
                return None;
            }
            let found = (0..5).find_map(|_| ask(replicas, |done| store.recover(entity(), 0, done)).ok())?;
            let basis = Basis {
                own_epoch: store.session().epoch,
                snapshot_seq: 0,
                snapshot_origin: 0,
                snapshot_owner: 0,
                trusting: false,
            };
            let origins: BTreeMap<(Seq, CommandId), Epoch> =
                found.rows.iter().map(|row| ((row.events[0].seq, row.events[0].id), row.origin)).collect();
            let resolved = match resolve(basis, found.rows) {
                Ok(resolved) => resolved,
                Err(trouble) => {
                    if is_careful {
                        told.wrong.push(trouble.to_string());
                    }
                    return None;
                }
            };
            let committed = resolved.committed.len() as Seq;
            let adopted = resolved.adopted;
            let committed_events = resolved.committed.into_iter().map(|event| {
                let origin = origins.get(&(event.seq, event.id)).copied().unwrap_or(0);
                Found { event, origin }
            });
            let log: Vec<_> = committed_events.chain(adopted.iter().cloned()).collect();
            for (seq, id) in &told.by_seq {
                if log.get(*seq as usize - 1).map(|found| found.event.id) != Some(*id) {
                    told.wrong.push(format!("acknowledged event {seq} is lost to session {}", store.session().id));
                }
            }
            let mut owner = Self { store, log, committed, flights: Vec::new(), alive: true };
            for found in adopted {
                owner.fly(found);
            }
            Some(owner)
        }

        /// Sends a row and does not wait.
        fn fly(&mut self, Found { event, origin }: Found) {
            let below = self.log.iter().find(|found| found.event.seq + 1 == event.seq).map_or(0, |found| found.origin);
            let row = append(self.store.session(), self.committed, (origin, below), vec![event]);
            self.store.append(vec![row.clone()], Box::new(|_| ()));
            self.flights.push(row);
        }

        /// Repeats what flew until it is durable, then reads the fence: what it had by then is committed.
        fn land(&mut self) {
            for row in std::mem::take(&mut self.flights) {
                let is_durable = |_| {
                    ask(self.store.replicas(), |done| self.store.append(vec![row.clone()], done)) == [Written::Durable]
                };
                self.alive &= (0..6).any(is_durable);
            }
            let confirmation =
                (0..6).map(|_| confirm(&self.store)).find(|confirmation| *confirmation != Confirmation::Unknown);
            match confirmation {
                Some(Confirmation::Clean) if self.alive => self.committed = self.log.len() as Seq,
                _ => self.alive = false,
            }
        }

        /// Clients send commands, some of them again, all before any is answered.
        fn send(&mut self, ids: &[u128], is_patient: bool, told: &mut Told) {
            if !self.alive {
                return;
            }
            let mut asked = Vec::new();
            for id in ids {
                let known = self.log.iter().find(|found| found.event.id.0.as_u128() == *id).cloned();
                asked.push(known.unwrap_or_else(|| {
                    let event = event(self.log.len() as Seq + 1, *id);
                    let found = Found { event, origin: self.store.session().epoch };
                    self.log.push(found.clone());
                    self.fly(found.clone());
                    found
                }));
            }
            if !is_patient {
                // It dies with rows in the air.
                self.alive = false;
                return;
            }
            self.land();
            // Also what was known is told only after a clean read of the fence that began after the question.
            if self.alive {
                asked.iter().for_each(|found| told.acknowledged(&found.event));
            }
        }
    }

    /// Owners that come after each other in bad weather, each of which does not know that it was succeeded.
    fn live_through(seed: u64, is_careful: bool) -> (Told, Replicas) {
        let replicas = Replicas::new(seed, Weather::stormy());
        let mut luck = StdRng::seed_from_u64(seed ^ 0xC0FFEE);
        let (mut told, mut owners) = (Told::default(), Vec::new());
        for _ in 0..8 {
            owners.extend(Owner::begin(&replicas, is_careful, &mut told));
            for _ in 0..luck.random_range(0..4) {
                let count = owners.len();
                if count == 0 {
                    break;
                }
                // Mostly the newest; sometimes one that should know better.
                let index = if luck.random_bool(0.7) { count - 1 } else { luck.random_range(0..count) };
                let ids: Vec<u128> = (0..luck.random_range(1..4)).map(|_| luck.random_range(1..10)).collect();
                owners[index].send(&ids, luck.random_bool(0.6), &mut told);
            }
            replicas.set_down(luck.random_range(0..REPLICAS), luck.random_bool(0.3));
            replicas.run_for(luck.random_range(0..3_000_000));
        }
        for replica in 0..REPLICAS {
            replicas.set_down(replica, false);
        }
        replicas.set_weather(Weather::default());
        replicas.run_until_quiet();
        Owner::begin(&replicas, is_careful, &mut told);
        told.wrong.extend(replicas.violations());
        (told, replicas)
    }

    #[test]
    fn owners_in_a_storm_keep_what_they_said() {
        let mut acknowledged = 0;
        for seed in 0..400 {
            let (told, _) = live_through(seed, true);
            assert!(told.wrong.is_empty(), "seed {seed}: {:?}", told.wrong);
            acknowledged += told.by_seq.len();
        }
        assert!(
            acknowledged > 400,
            "only {acknowledged} events were acknowledged: the storm is too strong to show anything"
        );
    }

    #[test]
    fn without_fences_they_do_not() {
        let wrong = (0..400).filter(|seed| !live_through(*seed, false).0.wrong.is_empty()).count();
        assert!(wrong > 0, "the storm shows nothing");
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        let trace = |seed| live_through(seed, true).1.trace();
        assert_eq!(trace(5), trace(5));
        assert_ne!(trace(5), trace(6));
    }
}
