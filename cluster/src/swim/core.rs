//! Membership without sockets and clocks: payloads, addresses and the time go in; payloads, changes and wishes come out.
//!
//! foca is the protocol. What it leaves to its user, and what this adds:
//!
//! - **Seeds are addresses.** foca speaks to members whose identity it knows; an announcement to [`ANYBODY`] is for whoever listens there.
//!   It is repeated for ever, since one that gets lost can split a cluster for good.
//! - **Whoever knows nobody is up stops all of foca's timers.** Then seeds, and members that are down, are announced to more often from here.
//! - **A former life may stand above the new one** (the clock went back between them). foca would answer such a life that it is down, and it would renew itself by
//!   one, and be answered again, as fast as the network carries it. Instead it is told what is known of it, and
//!   begins above that.
//! - **Whoever speaks to an earlier incarnation is told the present one.** foca hears nothing that is not for the present one, so a probe of a
//!   member that has just renewed itself would fail.
//! - **A process that slept blames itself.** Answers wait in its socket while its timers say that none came. Whoever sees that it acts
//!   late postpones everything by as much, and hears what waits before it judges.
//! - **Whoever left hears nothing.** foca would renew itself when it is told that it is down, and be back.
//! - **A suspicion that was contradicted is over.** foca tells such a member that it is down all the same, when the time to contradict ends
//!   ([`Core::is_pending`]); it would renew itself for nothing.
//! - **A suspicion is told to whoever is suspected.** In foca it may outlive the member that would have ended it, and all tellings: the next
//!   probe that fails would take the suspected one down without a word to it.
//! - **Whoever has renewed itself goes on at once.** foca would stay silent until somebody speaks to its new incarnation, which nobody
//!   knows if one datagram got lost ([`Core::connect`]).
//! - **A member first heard of as down** is no news to foca, and is to us: the map may name it as an owner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};

use chappe_schema::id::Millis;
use foca::{Foca, Member, Message, NoCustomBroadcast, Notification, Runtime, State, Timer};

use super::{
    Change,
    codec::{self, Codec, Packet, Payload},
    peer::Peer,
    random::Random,
    rhythm::Rhythm,
    seal::Dropped,
    timers::Timers,
};

/// How long a member that is down is known as such. Longer than the five minutes after which a voter is replaced.
pub(super) const FORGET: Millis = 15 * 60_000;

/// Members that are known to be down. Those that are down the longest are forgotten first.
pub(super) const DOWN_MAX: usize = 1_024;

/// Seeds, and members that are down, that are announced to at once. A name in DNS may stand for hundreds.
const ANNOUNCED_MAX: usize = 8;

/// One that has just started announces as often as a lonely one, and to so many members that are up as well: an answer names thirty members of a
/// large cluster, the next answer of the same one nearly the same thirty.
const YOUNG: Millis = 5_000;
const ASKED: usize = 3;

/// Members that a goodbye goes to. They tell the others.
const FAREWELLS_MAX: usize = 64;

/// How often it is said, and how long after the time before.
const FAREWELLS: u8 = 3;
const FAREWELL: Millis = 60;

/// What the core asks for, in order.
#[derive(Debug)]
pub(super) enum Output {
    /// A payload is to be sealed and sent.
    Send {
        to: SocketAddr,
        payload: Vec<u8>,
    },
    /// The seeds' names are to be looked up: [`Core::announce`] waits for what they stand for.
    Resolve,
    Change(Change),
    /// A member that was down is not known any more.
    Forgotten(u64),
    /// It has said goodbye; nothing comes any more.
    Gone,
}

/// One process' part in membership.
pub(super) struct Core {
    foca: Foca<Peer, Codec, Random, NoCustomBroadcast>,
    rhythm: Rhythm,
    hands: Hands,
    random: Random,
    known: BTreeMap<u64, Known>,
    began: Millis,
    /// When seeds are announced to next.
    announce: Millis,
    /// When it last had to begin above what was heard of it.
    raised: Option<Millis>,
    leaving: Option<Leaving>,
    counts: Counts,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Members that did not answer, neither directly nor through others.
    pub(super) probes_failed: u64,
    /// Times that this process spoke while a higher incarnation of it was known.
    pub(super) contested: u64,
    /// Times that it acted so late that it must have slept.
    pub(super) slept: u64,
}

struct Known {
    peer: Peer,
    up: bool,
    since: Millis,
}

struct Leaving {
    said: u8,
    next: Millis,
}

/// What foca acts with.
struct Hands {
    now: Millis,
    timers: Timers,
    outputs: VecDeque<Output>,
    news: Vec<News>,
    probes_failed: u64,
}

enum News {
    Up(Peer),
    Down(Peer),
    Other(Peer),
    Renewed,
}

impl Core {
    /// A process that starts. It announces itself at the first tick.
    pub(super) fn new(me: Peer, rhythm: Rhythm, seed: u64, now: Millis) -> Self {
        let mut random = Random::new(seed);
        let foca = Foca::new(me, rhythm.config(), Random::new(random.below(u64::MAX)), Codec { me: me.uid });
        let (timers, outputs) = (Timers::default(), VecDeque::new());
        let hands = Hands { now, timers, outputs, news: Vec::new(), probes_failed: 0 };
        Self {
            foca,
            rhythm,
            hands,
            random,
            known: BTreeMap::new(),
            began: now,
            announce: now,
            raised: None,
            leaving: None,
            counts: Counts::default(),
        }
    }

    /// This process as it is now.
    pub(super) fn me(&self) -> Peer {
        *self.foca.identity()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { probes_failed: self.hands.probes_failed, ..self.counts }
    }

    /// Every member that foca knows, and how it stands.
    pub(super) fn states(&self) -> impl Iterator<Item = (Peer, State)> {
        let me = self.me().uid;
        let members = self.foca.iter_membership_state().map(|member| (*member.id(), member.state()));
        members.filter(move |(peer, _)| peer.uid != me)
    }

    /// When the next tick is due.
    pub(super) fn due(&self) -> Option<Millis> {
        match &self.leaving {
            Some(leaving) => (leaving.said < FAREWELLS).then_some(leaving.next),
            None => Some(self.hands.timers.due().map_or(self.announce, |due| due.min(self.announce))),
        }
    }

    /// What is to be done next.
    pub(super) fn output(&mut self) -> Option<Output> {
        self.hands.outputs.pop_front()
    }

    /// A payload has come, with an unbroken seal.
    pub(super) fn receive(&mut self, now: Millis, payload: &[u8]) -> Result<(), Dropped> {
        if self.leaving.is_some() {
            return Ok(());
        }
        self.wake(now);
        match codec::read(payload, self.me().uid).map_err(|_| Dropped::Malformed)? {
            Payload::Known(known) if known.uid == self.me().uid => self.heard_of_me(known.incarnation),
            Payload::Known(known) => {
                let alive = std::iter::once(Member::alive(known));
                self.foca.apply_many(alive, true, &mut self.hands).map_err(|_| Dropped::Malformed)?;
            }
            Payload::Swim(packet, data) => self.hear(&packet, data)?,
        }
        self.settle();
        Ok(())
    }

    /// These addresses are of seeds.
    pub(super) fn announce(&mut self, now: Millis, seeds: Vec<SocketAddr>) {
        if self.leaving.is_some() {
            return;
        }
        self.wake(now);
        let me = self.me().addr;
        let seeds: BTreeSet<SocketAddr> = seeds.into_iter().filter(|seed| *seed != me).collect();
        for seed in self.random.some(seeds.into_iter().collect(), ANNOUNCED_MAX) {
            self.announce_to(Peer::anybody(seed));
        }
        self.settle();
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Millis) {
        if self.leaving.is_some() {
            return self.say_goodbye(now);
        }
        self.wake(now);
        while let Some(timer) = self.hands.timers.next(now) {
            if !self.is_pending(&timer) {
                continue;
            }
            if let Err(error) = self.foca.handle_timer(timer, &mut self.hands) {
                // It goes on by itself.
                tracing::debug!(event = "swim_timer", %error);
            }
        }
        if now >= self.announce {
            self.announce_again();
        }
        self.settle();
        self.forget(now);
    }

    /// Tells the others that this process goes. It says so several times; [`Output::Gone`] when it has.
    pub(super) fn leave(&mut self, now: Millis) {
        if self.leaving.is_some() {
            return;
        }
        self.hands.now = now;
        let others = self.foca.num_members().clamp(1, FAREWELLS_MAX);
        let mut config = self.rhythm.config();
        config.num_indirect_probes = NonZeroUsize::new(others).unwrap_or(NonZeroUsize::MIN);
        config.max_transmissions = NonZeroU8::MAX;
        let left = self.foca.set_config(config).and_then(|()| self.foca.leave_cluster(&mut self.hands));
        if let Err(error) = left {
            tracing::debug!(event = "swim_leave", %error);
        }
        self.hands.news.clear();
        self.leaving = Some(Leaving { said: 1, next: now + FAREWELL });
    }

    fn say_goodbye(&mut self, now: Millis) {
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.said >= FAREWELLS || now < leaving.next {
            return;
        }
        leaving.said += 1;
        leaving.next = now + FAREWELL;
        let last = leaving.said == FAREWELLS;
        self.hands.now = now;
        if let Err(error) = self.foca.gossip(&mut self.hands) {
            tracing::debug!(event = "swim_leave", %error);
        }
        if last {
            self.hands.outputs.push_back(Output::Gone);
        }
    }

    /// Whoever acts late has slept, and nothing that it waited for has had its time.
    fn wake(&mut self, now: Millis) {
        self.hands.now = now;
        let late = self.hands.timers.due().map_or(0, |due| now.saturating_sub(due));
        if late > self.rhythm.asleep {
            self.counts.slept += 1;
            self.hands.timers.postpone(late);
        }
    }

    fn hear(&mut self, packet: &Packet, data: &[u8]) -> Result<(), Dropped> {
        let (me, src) = (self.me(), packet.header.src);
        let named = packet.members.iter().map(Member::id).chain([&packet.header.dst, &src]);
        if let Some(heard) = named.filter(|peer| peer.uid == me.uid).map(|peer| peer.incarnation).max() {
            self.heard_of_me(heard);
        }
        if src.uid == me.uid {
            // Its own, by way of a seed that it is itself; or a former life's.
            return Ok(());
        }
        if let Some(known) = self.state_of(src.uid).filter(|known| known.incarnation > src.incarnation) {
            self.tell_known(&src, &known);
            return Ok(());
        }
        let (me, dst) = (self.me(), packet.header.dst);
        if dst.uid == me.uid && dst.incarnation < me.incarnation && packet.header.message != Message::Announce {
            self.tell_known(&src, &me);
            return Ok(());
        }
        let handled = self.foca.handle_data(data, &mut self.hands);
        self.settle();
        self.tell_suspected(&src);
        for member in packet.members.iter().filter(|member| member.state() == State::Down) {
            self.heard_down(member.id());
        }
        handled.map_err(|_| Dropped::Malformed)
    }

    /// Whoever speaks while it is suspected has not heard of it: it is told, so that it contradicts.
    fn tell_suspected(&mut self, src: &Peer) {
        let mut members = self.foca.iter_membership_state();
        let Some(suspected) = members.find(|member| member.id() == src && member.state() == State::Suspect) else {
            return;
        };
        let mut payload = Vec::new();
        codec::write_suspected(&self.me(), suspected, &mut payload);
        self.hands.outputs.push_back(Output::Send { to: src.addr, payload });
    }

    fn tell_known(&mut self, to: &Peer, known: &Peer) {
        let mut payload = Vec::new();
        codec::write_known(known, &mut payload);
        self.hands.outputs.push_back(Output::Send { to: to.addr, payload });
    }

    /// What foca does not tell: somebody is down who never was up here.
    fn heard_down(&mut self, peer: &Peer) {
        let is_new = peer.uid != self.me().uid && !self.known.contains_key(&peer.uid);
        let is_down = |(known, state): (Peer, State)| known == *peer && state == State::Down;
        if is_new && self.states().any(is_down) {
            self.tell_down(*peer);
        }
    }

    /// Somebody knows this process in an incarnation above the present one: a former life's, whose clock was ahead. (Or two
    /// processes have one name, and then it is known to be contested without end.)
    fn heard_of_me(&mut self, incarnation: u64) {
        let me = self.me();
        if incarnation <= me.incarnation {
            return;
        }
        let now = self.hands.now;
        if self.raised.is_some_and(|raised| now.saturating_sub(raised) < self.rhythm.probe) {
            return;
        }
        self.raised = Some(now);
        self.counts.contested += 1;
        tracing::warn!(event = "swim_contested", incarnation = me.incarnation, heard = incarnation);
        if let Err(error) = self.foca.change_identity(me.above(incarnation), &mut self.hands) {
            tracing::debug!(event = "swim_raise", %error);
        }
        self.hands.news.push(News::Renewed);
        self.announce = now;
    }

    /// Whether a timer has anything to say yet.
    fn is_pending(&self, timer: &Timer<Peer>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return true };
        let suspected = Member::new(*member_id, *incarnation, State::Suspect);
        self.foca.iter_membership_state().any(|member| *member == suspected)
    }

    /// Begins to take part if there is anybody, and ends if there is nobody.
    fn connect(&mut self) {
        if let Err(error) = self.foca.apply_many(std::iter::empty(), false, &mut self.hands) {
            tracing::debug!(event = "swim_connect", %error);
        }
        let soon = self.hands.now + self.rhythm.lonely;
        if self.foca.num_members() == 0 && self.announce > soon {
            self.announce = soon;
        }
    }

    fn state_of(&self, uid: u64) -> Option<Peer> {
        self.states().map(|(peer, _)| peer).find(|peer| peer.uid == uid)
    }

    fn announce_again(&mut self) {
        let lonely = self.foca.num_members() == 0;
        let young = self.hands.now.saturating_sub(self.began) < YOUNG;
        let pause = if lonely || young { self.rhythm.lonely } else { self.rhythm.announce };
        // Members that started together do not announce together for ever.
        self.announce = self.hands.now + pause * 4 / 5 + self.random.below(pause * 2 / 5);
        self.hands.outputs.push_back(Output::Resolve);
        let (wanted, most) = match (lonely, young) {
            (true, _) => (State::Down, ANNOUNCED_MAX),
            (false, true) => (State::Alive, ASKED),
            (false, false) => return,
        };
        let members = self.states().filter(|(_, state)| *state == wanted).map(|(peer, _)| peer).collect();
        for peer in self.random.some(members, most) {
            self.announce_to(peer);
        }
    }

    fn announce_to(&mut self, peer: Peer) {
        if let Err(error) = self.foca.announce(peer, &mut self.hands) {
            tracing::debug!(event = "swim_announce", %error);
        }
    }

    /// Makes changes of what foca said.
    fn settle(&mut self) {
        self.connect();
        let me = self.me();
        for news in std::mem::take(&mut self.hands.news) {
            match news {
                News::Renewed => self.hands.outputs.push_back(Output::Change(Change::Renewed(me))),
                // Foca files this process' own former incarnations.
                News::Up(peer) | News::Down(peer) | News::Other(peer) if peer.uid == me.uid => {}
                News::Up(peer) => self.tell_up(peer),
                News::Down(peer) => self.tell_down(peer),
                News::Other(peer) => match self.known.get_mut(&peer.uid) {
                    Some(known) if known.up => self.tell_up(peer),
                    Some(known) => known.peer = peer,
                    // It was down when it was first heard of. If it is up now, that is said by itself.
                    None => {}
                },
            }
        }
    }

    fn tell_up(&mut self, peer: Peer) {
        self.known.insert(peer.uid, Known { peer, up: true, since: self.hands.now });
        self.hands.outputs.push_back(Output::Change(Change::Up(peer)));
    }

    fn tell_down(&mut self, peer: Peer) {
        self.known.insert(peer.uid, Known { peer, up: false, since: self.hands.now });
        self.hands.outputs.push_back(Output::Change(Change::Down(peer)));
        let down = || self.known.iter().filter(|(_, known)| !known.up);
        if down().count() > DOWN_MAX {
            let oldest = down().min_by_key(|(_, known)| known.since).map(|(uid, _)| *uid);
            oldest.into_iter().for_each(|oldest| self.drop_known(oldest));
        }
    }

    fn forget(&mut self, now: Millis) {
        let over = self.known.iter().filter(|(_, known)| !known.up && now.saturating_sub(known.since) >= FORGET);
        let over: Vec<u64> = over.map(|(uid, _)| *uid).collect();
        over.into_iter().for_each(|uid| self.drop_known(uid));
    }

    fn drop_known(&mut self, uid: u64) {
        self.known.remove(&uid);
        self.hands.outputs.push_back(Output::Forgotten(uid));
    }
}

impl Runtime<Peer> for Hands {
    fn notify(&mut self, notification: Notification<'_, Peer>) {
        match notification {
            Notification::MemberUp(peer) => self.news.push(News::Up(*peer)),
            Notification::MemberDown(peer) => self.news.push(News::Down(*peer)),
            Notification::Rename(_, peer) => self.news.push(News::Other(*peer)),
            Notification::Rejoin(_) => self.news.push(News::Renewed),
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Peer, data: &[u8]) {
        let mut payload = Vec::with_capacity(data.len() + 1);
        codec::write_swim(data, &mut payload);
        self.outputs.push_back(Output::Send { to: to.addr, payload });
    }

    fn submit_after(&mut self, timer: Timer<Peer>, after: std::time::Duration) {
        // It is set when a probe of this process has failed, and then only.
        if matches!(timer, Timer::ChangeSuspectToDown { .. }) {
            self.probes_failed += 1;
        }
        self.timers.set(self.now + after.as_millis() as Millis, timer);
    }
}
