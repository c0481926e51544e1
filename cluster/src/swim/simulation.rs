//! Many members, one network and one clock, from one seed: the cores and seals of production, with everything between them under a test's
//! hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use chappe_schema::id::Millis;

use super::{
    Change,
    codec::{self, Payload},
    core::{Core, Output},
    peer::{ANYBODY, Peer, Role},
    random::Random,
    rhythm::Rhythm,
    seal::{Dropped, Keys, Opener, Sealer},
};

mod tests;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) members: usize,
    pub(super) rhythm: Rhythm,
    pub(super) weather: Weather,
    /// Members whose addresses everybody begins with.
    pub(super) seeds: usize,
}

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Of a thousand, lost.
    pub(super) lost: u64,
    /// Of a thousand, come twice.
    pub(super) twice: u64,
    /// Milliseconds on the way, from and to.
    pub(super) delay: (Millis, Millis),
}

impl Weather {
    pub(super) const FAIR: Self = Self { lost: 0, twice: 0, delay: (0, 2) };
    /// One of twenty is lost.
    pub(super) const WET: Self = Self { lost: 50, twice: 10, delay: (0, 5) };
}

/// What one member said of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) at: Millis,
    pub(super) by: usize,
    pub(super) change: Change,
}

pub(super) struct World {
    pub(super) now: Millis,
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) said: Vec<Said>,
    /// Datagrams that were not heeded.
    pub(super) dropped: BTreeMap<Dropped, u64>,
    /// Datagrams that were sent, and their bytes.
    pub(super) sent: (u64, u64),
    /// What somebody who listens has, if somebody does.
    pub(super) captured: Option<Vec<Vec<u8>>>,
    /// `CHAPPE_SWIM_TELL`: everything is printed.
    told: bool,
    plan: Plan,
    keys: Keys,
    members: Vec<Member>,
    places: BTreeMap<SocketAddr, usize>,
    /// Nothing passes from the first to the second.
    cut: BTreeSet<(usize, usize)>,
    queue: BTreeMap<(Millis, u64), Event>,
    events: u64,
    hash: u64,
}

struct Member {
    uid: u64,
    addr: SocketAddr,
    /// How far its wall clock is ahead.
    clock: i64,
    asleep: bool,
    /// What waits in the socket of one that sleeps.
    waiting: Vec<Vec<u8>>,
    lives: u64,
    life: Option<Life>,
    keys: Option<Keys>,
    seeds: Option<Vec<SocketAddr>>,
}

struct Life {
    core: Core,
    sealer: Sealer,
    opener: Opener,
    wakes: Option<Millis>,
    up: BTreeSet<u64>,
}

enum Event {
    Datagram { to: SocketAddr, bytes: Vec<u8> },
    Wake { member: usize, life: u64 },
}

/// What a socket holds of what is not read: 200 KB and more by default.
const SOCKET: usize = 256;

/// A key for tests.
pub(super) fn keys(byte: u8) -> Keys {
    Keys::new(&[[byte; 32]]).unwrap()
}

impl World {
    /// Nobody has started yet.
    pub(super) fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let member = |number| Member {
            uid: random.below(u64::MAX - 1) + 1,
            addr: place(number, 0),
            clock: 0,
            asleep: false,
            waiting: Vec::new(),
            lives: 0,
            life: None,
            keys: None,
            seeds: None,
        };
        let members: Vec<Member> = (0..plan.members).map(member).collect();
        let places = members.iter().enumerate().map(|(number, member)| (member.addr, number)).collect();
        Self {
            now: 0,
            random,
            weather: plan.weather,
            said: Vec::new(),
            dropped: BTreeMap::new(),
            sent: (0, 0),
            captured: None,
            told: std::env::var_os("CHAPPE_SWIM_TELL").is_some(),
            plan,
            keys: keys(7),
            members,
            places,
            cut: BTreeSet::new(),
            queue: BTreeMap::new(),
            events: 0,
            hash: 0,
        }
    }

    /// All of them have started, and know each other.
    pub(super) fn formed(plan: Plan) -> Self {
        let mut world = Self::new(plan);
        for member in 0..plan.members {
            world.start(member);
        }
        let agreed = world.until_agreed(30_000);
        assert!(agreed.is_some(), "seed {}: they did not find each other: {}", plan.seed, world.disagreement());
        world
    }

    pub(super) fn uid(&self, member: usize) -> u64 {
        self.members[member].uid
    }

    pub(super) fn addr(&self, member: usize) -> SocketAddr {
        self.members[member].addr
    }

    pub(super) fn runs(&self, member: usize) -> bool {
        self.members[member].life.is_some()
    }

    pub(super) fn asleep(&self, member: usize) -> bool {
        self.members[member].asleep
    }

    pub(super) fn core(&self, member: usize) -> &Core {
        &self.members[member].life.as_ref().unwrap().core
    }

    /// Everything that has happened, in one number.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    // === What a test does ===

    pub(super) fn start(&mut self, number: usize) {
        let (seed, now) = (self.random.below(u64::MAX), self.now);
        let rhythm = self.plan.rhythm;
        let member = &mut self.members[number];
        let wall = 1_700_000_000_000 + now as i64 + member.clock;
        let me = Peer {
            uid: member.uid,
            incarnation: wall.max(0) as u64,
            role: if number % 4 == 3 { Role::Gateway } else { Role::Node },
            ordinal: number as u32,
            addr: member.addr,
            link: member.addr,
        };
        let keys = member.keys.as_ref().unwrap_or(&self.keys);
        let mut name = [0; 16];
        name[..8].copy_from_slice(&seed.to_be_bytes());
        member.lives += 1;
        member.asleep = false;
        member.waiting.clear();
        member.life = Some(Life {
            core: Core::new(me, rhythm, seed, now),
            sealer: Sealer::new(keys, name),
            opener: Opener::new(keys.clone()),
            wakes: None,
            up: BTreeSet::new(),
        });
        self.act(number);
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, member: usize) {
        self.members[member].life = None;
    }

    /// SIGTERM.
    pub(super) fn leave(&mut self, member: usize) {
        let now = self.now;
        self.members[member].life.as_mut().unwrap().core.leave(now);
        self.act(member);
    }

    /// SIGSTOP.
    pub(super) fn pause(&mut self, member: usize) {
        self.members[member].asleep = true;
    }

    /// SIGCONT: what waits in the socket is heard first, as the loop does it.
    pub(super) fn resume(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.asleep = false;
        let waiting = std::mem::take(&mut member.waiting);
        for datagram in waiting {
            self.hear(number, &datagram);
        }
        self.act(number);
    }

    /// It will start at another address.
    pub(super) fn move_away(&mut self, number: usize) {
        let addr = place(number, self.members[number].lives);
        self.places.remove(&self.members[number].addr);
        self.places.insert(addr, number);
        self.members[number].addr = addr;
    }

    pub(super) fn set_clock(&mut self, member: usize, ahead: i64) {
        self.members[member].clock = ahead;
    }

    /// It will start with these.
    pub(super) fn set_keys(&mut self, member: usize, keys: Keys) {
        self.members[member].keys = Some(keys);
    }

    /// It takes other keys while it lives.
    pub(super) fn replace_keys(&mut self, member: usize, keys: &Keys) {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.random.below(u64::MAX).to_be_bytes());
        let life = self.members[member].life.as_mut().unwrap();
        life.sealer = Sealer::new(keys, name);
        life.opener.replace(keys.clone());
    }

    pub(super) fn set_seeds(&mut self, member: usize, seeds: Vec<SocketAddr>) {
        self.members[member].seeds = Some(seeds);
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(super) fn split(&mut self, one: &[usize], other: &[usize]) {
        for (from, to) in one.iter().flat_map(|from| other.iter().map(move |to| (*from, *to))) {
            self.cut(from, to);
            self.cut(to, from);
        }
    }

    pub(super) fn isolate(&mut self, member: usize) {
        let others: Vec<usize> = (0..self.members.len()).filter(|other| *other != member).collect();
        self.split(&[member], &others);
    }

    pub(super) fn open(&mut self, from: usize, to: usize) {
        self.cut.remove(&(from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Somebody who is no member sends something.
    pub(super) fn inject(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.put(self.now, Event::Datagram { to, bytes });
    }

    /// Time passes.
    pub(super) fn run(&mut self, millis: Millis) {
        let end = self.now + millis;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = entry.key().0;
            match entry.remove() {
                Event::Datagram { to, bytes } => self.arrive(to, bytes),
                Event::Wake { member, life } => {
                    let member_now = &mut self.members[member];
                    let due = self.now;
                    let awake = !member_now.asleep && member_now.lives == life;
                    // One that was set before it turned out that there is an earlier one.
                    let current = member_now.life.as_ref().is_some_and(|life| life.wakes == Some(due));
                    if awake && current {
                        self.act(member);
                    }
                }
            }
        }
        self.now = end;
    }

    /// Time passes until all agree who is here. How long it took.
    pub(super) fn until_agreed(&mut self, within: Millis) -> Option<Millis> {
        let began = self.now;
        while !self.agrees() {
            if self.now - began >= within {
                return None;
            }
            self.run(20);
        }
        Some(self.now - began)
    }

    // === What a test sees ===

    /// Whether everybody who runs and is awake holds exactly those for up who do.
    pub(super) fn agrees(&self) -> bool {
        let living = self.living();
        living.iter().all(|number| *self.up(*number) == self.others(*number, &living))
    }

    pub(super) fn disagreement(&self) -> String {
        let living = self.living();
        let names = |uids: Vec<u64>| {
            let name = |uid| self.members.iter().position(|member| member.uid == uid);
            uids.into_iter().map(name).collect::<Vec<_>>()
        };
        let differs = |number: &usize| {
            let (holds, should) = (self.up(*number), self.others(*number, &living));
            let missing = names(should.difference(holds).copied().collect());
            let wrong = names(holds.difference(&should).copied().collect());
            (holds != &should).then(|| format!("{number}: missing {missing:?}, wrongly up {wrong:?}"))
        };
        let differences: Vec<String> = living.iter().filter_map(differs).collect();
        format!("{} of {} differ; {}", differences.len(), living.len(), differences.join("; "))
    }

    /// Whom a member holds for up.
    pub(super) fn up(&self, member: usize) -> &BTreeSet<u64> {
        &self.members[member].life.as_ref().unwrap().up
    }

    pub(super) fn living(&self) -> Vec<usize> {
        let lives = |number: &usize| self.members[*number].life.is_some() && !self.members[*number].asleep;
        (0..self.members.len()).filter(lives).collect()
    }

    /// Who said since then that this one is down, and when first.
    pub(super) fn downs_of(&self, member: usize, since: Millis) -> BTreeMap<usize, Millis> {
        let uid = self.uid(member);
        let downs = self.said.iter().filter(|said| said.at >= since);
        let mut first = BTreeMap::new();
        for said in downs.filter(|said| matches!(said.change, Change::Down(peer) if peer.uid == uid)) {
            first.entry(said.by).or_insert(said.at);
        }
        first
    }

    /// How often somebody said since then that one is down who lives.
    pub(super) fn count_downs(&self, since: Millis) -> usize {
        let living: BTreeSet<u64> = self.living().into_iter().map(|number| self.uid(number)).collect();
        let is_wrong = |change| matches!(change, Change::Down(peer) if living.contains(&peer.uid));
        self.said.iter().filter(|said| said.at >= since && is_wrong(said.change)).count()
    }

    fn others(&self, member: usize, living: &[usize]) -> BTreeSet<u64> {
        living.iter().filter(|other| **other != member).map(|other| self.uid(*other)).collect()
    }

    // === How it goes on ===

    fn put(&mut self, at: Millis, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    fn arrive(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let Some(number) = self.places.get(&to).copied() else { return };
        let member = &mut self.members[number];
        match (&member.life, member.asleep) {
            (None, _) => {}
            (Some(_), true) if member.waiting.len() < SOCKET => member.waiting.push(bytes),
            (Some(_), true) => {}
            (Some(_), false) => {
                self.hear(number, &bytes);
                self.act(number);
            }
        }
    }

    fn hear(&mut self, number: usize, datagram: &[u8]) {
        let now = self.now;
        let Some(life) = &mut self.members[number].life else { return };
        let opened = life.opener.open(datagram, 0);
        if let Err(why) = opened.and_then(|payload| life.core.receive(now, payload)) {
            *self.dropped.entry(why).or_default() += 1;
        }
    }

    /// Time is told, what comes of it is done, and the next wake-up set.
    fn act(&mut self, number: usize) {
        let now = self.now;
        if let Some(life) = &mut self.members[number].life {
            life.core.tick(now);
        }
        while let Some(output) = self.members[number].life.as_mut().and_then(|life| life.core.output()) {
            match output {
                Output::Send { to, payload } => self.send(number, to, &payload),
                Output::Resolve => {
                    let seeds = (0..self.plan.seeds).map(|seed| self.addr(seed)).collect();
                    let seeds = self.members[number].seeds.clone().unwrap_or(seeds);
                    self.members[number].life.as_mut().unwrap().core.announce(now, seeds);
                }
                Output::Change(change) => self.note(number, change),
                Output::Forgotten(_) => {}
                Output::Gone => self.members[number].life = None,
            }
        }
        let member = &mut self.members[number];
        let lives = member.lives;
        let Some(life) = &mut member.life else { return };
        let due = life.core.due();
        if let Some(due) = due.filter(|due| life.wakes != Some(*due) || *due <= now) {
            let at = due.max(now + u64::from(due <= now));
            life.wakes = Some(at);
            self.put(at, Event::Wake { member: number, life: lives });
        }
    }

    fn note(&mut self, by: usize, change: Change) {
        let life = self.members[by].life.as_mut().unwrap();
        match change {
            Change::Up(peer) => drop(life.up.insert(peer.uid)),
            Change::Down(peer) => drop(life.up.remove(&peer.uid)),
            Change::Renewed(_) => {}
        }
        self.mix(by as u64);
        if self.told {
            println!("{} {by} says {change}", self.now);
        }
        self.said.push(Said { at: self.now, by, change });
    }

    fn send(&mut self, from: usize, to: SocketAddr, payload: &[u8]) {
        if self.told {
            let what = match codec::read(payload, ANYBODY) {
                Ok(Payload::Swim(packet, _)) => {
                    let members = packet.members.iter().map(|member| (member.id().ordinal, member.state()));
                    format!("{:?}, {:?}", packet.header.message, members.collect::<Vec<_>>())
                }
                other => format!("{other:?}"),
            };
            println!("{} {from} -> {:?}: {what}", self.now, self.places.get(&to));
        }
        let mut bytes = Vec::new();
        self.members[from].life.as_mut().unwrap().sealer.seal(0, payload, &mut bytes);
        self.sent = (self.sent.0 + 1, self.sent.1 + bytes.len() as u64);
        self.mix(u64::from(to.port()) ^ (bytes.len() as u64) << 16);
        if let Some(captured) = &mut self.captured {
            captured.push(bytes.clone());
        }
        let Weather { lost, twice, delay } = self.weather;
        let is_cut = self.places.get(&to).is_some_and(|to| self.cut.contains(&(from, *to)));
        if is_cut || self.random.below(1_000) < lost {
            return;
        }
        let copies = 1 + u64::from(self.random.below(1_000) < twice);
        for _ in 0..copies {
            let at = self.now + delay.0 + self.random.below(delay.1 - delay.0 + 1);
            self.put(at, Event::Datagram { to, bytes: bytes.clone() });
        }
    }

    fn mix(&mut self, with: u64) {
        self.hash = (self.hash ^ with ^ self.now << 20).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(7);
    }
}

/// A member's address, which changes with its moves.
fn place(number: usize, move_number: u64) -> SocketAddr {
    let port = 1_000 + number as u16 + 100 * move_number as u16;
    SocketAddr::from(([10, 0, 0, 1], port))
}
