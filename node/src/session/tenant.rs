//! The shell around a node's sessions: it brings them what the map, the store, the shards and other nodes say, and does
//! what they want done. Whoever runs it (a task, a simulator) calls [`Tenant::step`] when something was heard.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use chappe_cluster::{
    control::Outcome,
    ownership::{Command, Map, PlanId},
    process::metrics::NODE_MOVE_STEP_DURATION_SECONDS,
};
use chappe_schema::{
    archive::{self, Unreadable},
    id::{EntityId, Generation, Millis, Partition, SessionId},
    wire::Owner,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Effect, Handover, Introduction, Sessions};
use crate::{
    shard::{Abroad, Home, Mail, PeerMail, Report, handover::TenureMail, mailbox::Mailbox, shard_of_partition},
    store::{Session, Shared, Store},
};

/// Bytes of entities that one message about planned moves holds, if it holds more than one word. So many do not hold up what
/// else is on the way.
const SAID_AT_ONCE_MAX: usize = 256 << 10;

/// A session's own minute.
const MINUTE_MS: Millis = 60_000;

/// See the module's documentation.
pub(crate) struct Tenant {
    mailboxes: Arc<[Mailbox<Mail>]>,
    shared: Arc<dyn Shared>,
    sessions: Sessions,
    home: Arc<Whereabouts>,
    heard: Mailbox<Heard>,
    generation: Generation,
    now: Millis,
    began: Millis,
    minute: Arc<AtomicU64>,
    /// The way into the log of the last session that began.
    store: Option<Arc<dyn Store>>,
}

/// What a node wants done beyond itself.
#[derive(Debug)]
pub enum Out {
    /// Ask the cluster; the outcome is heard of.
    Propose(Command),
    /// For another session. It may get lost.
    Peer(SessionId, Between),
    /// The node refuses to go on, and why.
    Refused(String),
}

/// From one node to another. Anything of it may be lost.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Between(Word);

#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
enum Word {
    Mail(PeerMail),
    /// All that was said in one step.
    Handovers(SessionId, Vec<Handover>),
}

impl Between {
    /// Its bytes.
    ///
    /// # Errors
    /// When it does not fit into a message.
    pub fn to_bytes(&self) -> Result<Bytes, Unreadable> {
        archive::to_bytes(self)
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// When they say nothing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        archive::from_bytes(bytes)
    }

    /// Whether it says of a planned move that its receiver will open exactly what stands.
    #[cfg(any(test, feature = "simulation"))]
    #[must_use]
    pub fn is_agreement(&self) -> bool {
        let agrees = |handover: &Handover| matches!(handover.says, super::Says::Agreed);
        matches!(&self.0, Word::Handovers(_, handovers) if handovers.iter().any(agrees))
    }

    /// The partition of whoever says it: what one entity says stays in order.
    #[must_use]
    pub fn speaker(&self) -> Partition {
        match &self.0 {
            Word::Mail(mail) => mail.speaker(),
            // An answer to each is waited for before more is said of its partition.
            Word::Handovers(_, handovers) => handovers.first().map_or(Partition(0), |first| first.partition),
        }
    }
}

/// What the sessions are told.
pub(crate) enum Heard {
    Report(Report),
    Map(Map),
    Answered(Command, Outcome),
    Word(Between),
    /// The way to the node that lives this session was broken: what was on it is lost.
    Lost(SessionId),
    Fenced(Vec<SessionId>, bool),
    Enrolled(SessionId, Option<Generation>),
    Active(SessionId, Option<Vec<EntityId>>),
    Listed(PlanId, Partition, bool),
}

/// Which partitions live here, and what is on its way to those that do not.
#[derive(Default)]
pub(crate) struct Whereabouts {
    view: Mutex<View>,
    abroad: Mutex<Vec<(SessionId, Between)>>,
    /// Whoever hands on what is on its way is woken.
    leaving: Notify,
}

#[derive(Default)]
struct View {
    map: Map,
    me: Option<SessionId>,
}

impl Abroad for Whereabouts {
    fn home(&self, partition: Partition) -> Home {
        let view = self.view.lock();
        match view.map.owner(partition) {
            None => Home::Nowhere,
            Some((owner, _)) if view.me == Some(owner) => Home::Here,
            Some((owner, _)) => Home::Elsewhere(owner),
        }
    }

    fn send(&self, to: SessionId, mail: PeerMail) {
        let mut abroad = self.abroad.lock();
        abroad.push((to, Between(Word::Mail(mail))));
        let is_first = abroad.len() == 1;
        drop(abroad);
        if is_first {
            self.leaving.notify_one();
        }
    }
}

impl Whereabouts {
    /// Resolves when something has begun to wait for its way to another node.
    pub(crate) async fn leaving(&self) {
        self.leaving.notified().await;
    }
}

impl Tenant {
    pub(crate) fn new(
        me: Introduction,
        mailboxes: Arc<[Mailbox<Mail>]>,
        shared: Arc<dyn Shared>,
        generation: Generation,
        home: Arc<Whereabouts>,
        heard: Mailbox<Heard>,
    ) -> Self {
        Self {
            mailboxes,
            shared,
            sessions: Sessions::new(me, generation),
            home,
            heard,
            generation,
            now: 0,
            began: 0,
            minute: Arc::default(),
            store: None,
        }
    }

    /// Hands everything that was heard to the sessions, and does what they want; what is beyond the node is given back.
    pub(crate) fn step(&mut self, now: Millis) -> Vec<Out> {
        self.now = now;
        self.sessions.at(now);
        self.minute.store(now.saturating_sub(self.began) / MINUTE_MS, Ordering::Relaxed);
        let mut out = Vec::new();
        let mut heard = Vec::new();
        loop {
            self.heard.take_more(&mut heard);
            if heard.is_empty() {
                break;
            }
            for one in heard.drain(..) {
                self.hear(one, &mut out);
            }
        }
        let effects = self.sessions.tick(now);
        self.perform(effects, &mut out);
        let abroad = std::mem::take(&mut *self.home.abroad.lock());
        out.extend(abroad.into_iter().map(|(to, word)| Out::Peer(to, word)));
        out
    }

    /// The present session and its minute, to be said to the control plane.
    pub(crate) fn alive(&self) -> Option<(SessionId, u64)> {
        self.sessions.living().map(|session| (session, self.minute.load(Ordering::Relaxed)))
    }

    fn hear(&mut self, heard: Heard, out: &mut Vec<Out>) {
        let effects = match heard {
            Heard::Report(Report::Ended(session, why)) => self.sessions.ended(session, why),
            Heard::Report(Report::Streamed(partition, plan, handed)) => self.sessions.streamed(partition, plan, handed),
            Heard::Report(Report::Cut(partition, plan, delta)) => self.sessions.cut(partition, plan, delta),
            Heard::Map(map) => {
                let effects = self.sessions.map_changed(map, self.now);
                self.look_around();
                effects
            }
            Heard::Answered(command, outcome) => self.sessions.answered(&command, &outcome),
            Heard::Word(Between(Word::Mail(mail))) => {
                for (shard, mail) in mail.by_shard(self.mailboxes.len()) {
                    self.mailboxes[shard].send(Mail::Peer(mail));
                }
                Vec::new()
            }
            Heard::Lost(session) => {
                let theirs = self.sessions.map().owned_by(session);
                let partitions: Arc<[_]> =
                    theirs.map(|(partition, epoch)| (partition, Owner { session, epoch })).collect();
                self.all(|| Mail::Moved(Arc::clone(&partitions)));
                Vec::new()
            }
            Heard::Word(Between(Word::Handovers(from, handovers))) => {
                handovers.into_iter().flat_map(|handover| self.sessions.heard(from, handover)).collect()
            }
            Heard::Fenced(sessions, durable) => self.sessions.fenced(&sessions, durable),
            Heard::Enrolled(session, generation) => self.sessions.enrolled(session, generation),
            Heard::Active(session, entities) => self.sessions.active(session, entities),
            Heard::Listed(plan, partition, durable) => self.sessions.listed(plan, partition, durable),
        };
        self.perform(effects, out);
    }

    fn look_around(&self) {
        *self.home.view.lock() = View { map: self.sessions.map().clone(), me: self.sessions.living() };
    }

    fn all(&self, mail: impl Fn() -> Mail) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(mail());
        }
    }

    /// What is said to one session goes in one message as long as that is small, and is said in order.
    fn say(&mut self, me: SessionId, to: SessionId, handover: Handover, out: &mut Vec<Out>) {
        let bytes = handover.says.bytes();
        let last = out.iter_mut().rev().find_map(|out| match out {
            Out::Peer(whom, Between(Word::Handovers(who, said))) if (*who, *whom) == (me, to) => Some(said),
            _ => None,
        });
        match last {
            Some(said) if bytes + said.iter().map(|said| said.says.bytes()).sum::<usize>() <= SAID_AT_ONCE_MAX => {
                said.push(handover);
            }
            _ => out.push(Out::Peer(to, Between(Word::Handovers(me, vec![handover])))),
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, out: &mut Vec<Out>) {
        for effect in effects {
            match effect {
                Effect::Propose(command) => out.push(Out::Propose(command)),
                Effect::Enrol(session) => {
                    let heard = self.heard.clone();
                    let done = move |result: Result<Generation, _>| heard.send(Heard::Enrolled(session, result.ok()));
                    self.shared.enrol(session, Box::new(done));
                }
                Effect::Begin(id) => {
                    let session = Session { id, epoch: id, generation: self.generation };
                    self.began = self.now;
                    self.minute = Arc::default();
                    let store = self.shared.enter(session, Arc::clone(&self.minute));
                    self.store = Some(Arc::clone(&store));
                    self.all(|| Mail::Begin(Arc::clone(&store)));
                    self.look_around();
                }
                Effect::End(why) => {
                    self.all(|| Mail::End(why.clone()));
                    self.look_around();
                }
                Effect::Fence(sessions) => {
                    let (heard, named) = (self.heard.clone(), sessions.clone());
                    let done = move |durable| heard.send(Heard::Fenced(named, durable));
                    self.shared.fence(sessions, Box::new(done));
                }
                Effect::List(plan, partition, entities) => {
                    let heard = self.heard.clone();
                    let done = move |result: Result<(), _>| heard.send(Heard::Listed(plan, partition, result.is_ok()));
                    if let Some(store) = &self.store {
                        store.list_active(entities, Box::new(done));
                    }
                }
                Effect::ReadActivity(session, since) => {
                    let heard = self.heard.clone();
                    let done = move |result: Result<Vec<EntityId>, _>| heard.send(Heard::Active(session, result.ok()));
                    self.shared.active(session, since, Box::new(done));
                }
                Effect::Tenure(partition, mail) => {
                    self.mailboxes[shard_of_partition(partition, self.mailboxes.len())].send(Mail::Tenure(mail));
                }
                Effect::Close(partitions) => {
                    let shards = self.mailboxes.len();
                    for (shard, mailbox) in self.mailboxes.iter().enumerate() {
                        let theirs = |partition: &Partition| shard_of_partition(*partition, shards) == shard;
                        let gone: Vec<Partition> = partitions.iter().copied().filter(theirs).collect();
                        if !gone.is_empty() {
                            mailbox.send(Mail::Tenure(TenureMail::Close(gone)));
                        }
                    }
                }
                Effect::Send(to, handover) => {
                    if let Some(me) = self.sessions.living() {
                        self.say(me, to, handover, out);
                    }
                }
                Effect::Moved(partitions) => {
                    let partitions: Arc<[_]> = partitions.into();
                    self.all(|| Mail::Moved(Arc::clone(&partitions)));
                }
                Effect::Took(step, ms) => {
                    metrics::histogram!(NODE_MOVE_STEP_DURATION_SECONDS, "step" => step).record(ms as f64 / 1e3);
                }
                Effect::Refuse(why) => out.push(Out::Refused(why)),
            }
        }
    }
}
