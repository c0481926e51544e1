//! Many clients at once: connected, put into conversations, set to work, measured, and in the end made to read
//! everything back.

mod member;
pub mod part;
pub mod run;
pub mod scenario;
pub(crate) mod score;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::Semaphore, time::sleep};
use uuid::Uuid;

use self::{
    member::{Chore, Fanout, Member, Shared},
    score::Score,
};
pub use self::{
    member::{Habits, Pace},
    score::{Counted, Latency},
};
use crate::{
    client::{Counters, Handle, Options, Speech, Target, driver},
    history::{History, What},
    process::{self, Meter},
};

/// Connections from one source address; the kernel has some 28,000 ports for each.
const PORTS_PER_SOURCE: usize = 20_000;
/// Connections being opened at the same time.
const CONNECTING_MAX: usize = 128;
/// Readers at the same time in the final read.
const READING_MAX: usize = 32;
/// How long setting up may stand still.
const STALL: Duration = Duration::from_secs(60);
/// Members that a creation may name.
const CREATE_MEMBERS_MAX: usize = 999;
/// The tag of chores whose answer nobody needs.
const NO_TAG: u64 = u64::MAX;
/// The tag of what members say of receipts.
const RECEIPTS_TAG: u64 = u64::MAX - 2;
/// The tag of what they are shown of them in the end.
const SHOWN_TAG: u64 = u64::MAX - 3;

/// Who comes, and where they connect.
#[derive(Debug, Clone)]
pub struct Person {
    /// The user.
    pub user: String,
    /// Their token.
    pub token: String,
    /// The server.
    pub target: Arc<Target>,
    /// How they talk; default: as the crowd's manner says.
    pub speech: Option<Speech>,
}

/// How a crowd behaves.
#[derive(Debug, Clone)]
pub struct Manner {
    /// How everybody talks, unless something else is said of them.
    pub speech: Speech,
    /// What everybody does, unless something else is said of them.
    pub habits: Habits,
    /// One in so many deliveries has its latency measured.
    pub sample: u64,
    /// Where everything is noted, to be judged.
    pub history: Option<Arc<History>>,
    /// The listeners of a fan-out, when one is to be measured.
    pub fanout_listeners: Option<u64>,
    /// Source addresses that other processes use: ours come after so many.
    pub sources_before: u8,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            speech: Speech::default(),
            habits: Habits::default(),
            sample: 8,
            history: None,
            fanout_listeners: None,
            sources_before: 0,
        }
    }
}

/// A crowd at work.
pub struct Crowd {
    shared: Arc<Shared>,
    people: Vec<Person>,
    members: Vec<Arc<Handle<Member>>>,
    history: Option<Arc<History>>,
}

/// What was measured in one stretch of time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How long.
    pub seconds: f64,
    /// Acknowledged sends.
    pub acks: u64,
    /// Messages delivered.
    pub deliveries: u64,
    /// Conversations of which members said how far they have got.
    pub receipts: u64,
    /// Words of what others have got that members heard.
    pub receipts_heard: u64,
    /// Sends that failed.
    pub failures: u64,
    /// Connections lost.
    pub lost: u64,
    /// Acknowledged sends per second.
    pub acks_per_s: f64,
    /// Deliveries per second.
    pub deliveries_per_s: f64,
    /// From the (intended) sending to the acknowledgement.
    pub ack_ms: Latency,
    /// From the (intended) sending to the delivery.
    pub delivery_ms: Latency,
    /// The server's CPU seconds.
    pub server_cpu_s: f64,
    /// Our CPU seconds.
    pub tester_cpu_s: f64,
    /// Our share of the whole machine's CPU.
    pub tester_share: f64,
    /// Reactions that members sent.
    pub reactions: u64,
    /// What happened in each second.
    pub timeline: Vec<Second>,
    /// Refusals that were repeated later, by their code.
    pub delayed: BTreeMap<String, u64>,
    /// The first failures in words.
    pub complaints: Vec<String>,
    /// Latencies of acknowledgements.
    #[serde(skip)]
    pub acks_us: Counted,
    /// Latencies of deliveries.
    #[serde(skip)]
    pub deliveries_us: Counted,
}

/// One second of a measurement.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Second {
    /// Seconds after measuring began, at its end.
    pub at: f64,
    /// Acknowledged sends per second.
    pub acks_per_s: f64,
    /// Deliveries per second.
    pub deliveries_per_s: f64,
    /// From the (intended) sending to the acknowledgement, half are below.
    pub ack_p50_ms: f64,
    /// 99 of 100 are below.
    pub ack_p99_ms: f64,
    /// From the (intended) sending to the delivery, 99 of 100 are below.
    pub delivery_p99_ms: f64,
    /// Connections that are ready.
    pub connections: u64,
    /// Cores that the servers use.
    pub server_cores: f64,
    /// Cores that we use.
    pub tester_cores: f64,
    /// Resident bytes of the servers.
    pub server_rss: u64,
}

impl Second {
    /// The same second of two crowds: their sums; of percentiles the higher one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            at: self.at.max(other.at),
            acks_per_s: self.acks_per_s + other.acks_per_s,
            deliveries_per_s: self.deliveries_per_s + other.deliveries_per_s,
            ack_p50_ms: self.ack_p50_ms.max(other.ack_p50_ms),
            ack_p99_ms: self.ack_p99_ms.max(other.ack_p99_ms),
            delivery_p99_ms: self.delivery_p99_ms.max(other.delivery_p99_ms),
            connections: self.connections + other.connections,
            server_cores: self.server_cores + other.server_cores,
            tester_cores: self.tester_cores + other.tester_cores,
            server_rss: self.server_rss + other.server_rss,
        }
    }
}

impl std::fmt::Display for Second {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} acks/s, p99 {:.1} ms, {:.0} deliveries/s, {} connections",
            self.acks_per_s, self.ack_p99_ms, self.deliveries_per_s, self.connections
        )
    }
}

impl Measured {
    /// What two crowds measured in the same time. Which seconds were how, and the latencies of both, are for whoever has the counts of
    /// both to say ([`Measured::count`]).
    #[must_use]
    fn and(mut self, other: Self) -> Self {
        self.seconds = self.seconds.max(other.seconds);
        self.acks += other.acks;
        self.deliveries += other.deliveries;
        self.receipts += other.receipts;
        self.receipts_heard += other.receipts_heard;
        self.reactions += other.reactions;
        self.failures += other.failures;
        self.lost += other.lost;
        self.acks_per_s += other.acks_per_s;
        self.deliveries_per_s += other.deliveries_per_s;
        self.tester_cpu_s += other.tester_cpu_s;
        self.tester_share += other.tester_share;
        self.server_cpu_s += other.server_cpu_s;
        for (code, count) in other.delayed {
            *self.delayed.entry(code).or_default() += count;
        }
        self.complaints.extend(other.complaints);
        self
    }

    fn count(&mut self, acks_us: Counted, deliveries_us: Counted) {
        (self.ack_ms, self.delivery_ms) = (Latency::of(&acks_us.histogram()), Latency::of(&deliveries_us.histogram()));
        (self.acks_us, self.deliveries_us) = (acks_us, deliveries_us);
    }

    /// Latencies of acknowledgements and of deliveries by quantile, for a plot.
    pub(crate) fn curves(&self) -> [Vec<(f64, f64)>; 2] {
        [&self.acks_us, &self.deliveries_us].map(|counted| score::curve(&counted.histogram()))
    }
}

impl Crowd {
    /// Connects everybody, in order, and waits until all are let in.
    pub async fn connect(people: Vec<Person>, manner: Manner, progress: impl Fn(u64)) -> anyhow::Result<Self> {
        let fanout = manner.fanout_listeners.map(|listeners| Fanout { listeners, ..Fanout::default() });
        let shared = Arc::new(Shared {
            score: Score::new(),
            created: parking_lot::Mutex::default(),
            sample: manner.sample.max(1),
            fanout,
        });
        let gate = Some(Arc::new(Semaphore::new(CONNECTING_MAX)));
        // One for each speech: they are shared by all who speak so.
        let mut options: HashMap<Speech, Arc<Options>> = HashMap::new();
        let history = manner.history.clone();
        let mut crowd = Self { shared, people, members: Vec::new(), history: manner.history };
        for (index, person) in crowd.people.iter().enumerate() {
            let host = 1 + manner.sources_before + (index / PORTS_PER_SOURCE) as u8;
            let source = (host > 1 && person.target.address.ip().is_loopback())
                .then_some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)));
            let member = Member::new(Arc::clone(&crowd.shared), manner.habits.clone());
            let speech = person.speech.unwrap_or(manner.speech);
            let options = options.entry(speech).or_insert_with(|| {
                let (gate, history) = (gate.clone(), history.clone());
                Arc::new(Options { speech, history, gate, ..Options::default() })
            });
            let handle = driver::start(
                Arc::clone(&person.target),
                Arc::clone(options),
                &person.user,
                &person.token,
                source,
                member,
            );
            crowd.members.push(Arc::new(handle));
            if index == 0 {
                // Peers without logic take the first connection for the sender's.
                crowd
                    .settle("connecting", 1, |score| 1usize.saturating_sub(score.ready.load(Relaxed)), &progress)
                    .await?;
            }
        }
        let all = crowd.members.len();
        crowd.settle("connecting", all, |score| all.saturating_sub(score.ready.load(Relaxed)), &progress).await?;
        Ok(crowd)
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The name of a member, by index.
    pub fn user(&self, member: usize) -> &str {
        &self.people[member].user
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Creates groups; each is a list of members, by index, whose first creates it. Returns their ids.
    pub async fn create_groups(&self, groups: &[Vec<usize>], progress: impl Fn(u64)) -> anyhow::Result<Vec<Uuid>> {
        let mut chores: Vec<Vec<Chore>> = Vec::new();
        chores.resize_with(self.members.len(), Vec::new);
        for (tag, group) in (0u64..).zip(groups) {
            let [owner, others @ ..] = &group[..] else { continue };
            let named: Vec<_> = others.iter().take(CREATE_MEMBERS_MAX).map(|index| &self.people[*index].user).collect();
            let key = Uuid::now_v7().to_string();
            let args =
                json!({ "kind": "group", "title": format!("group {tag}"), "members": named, "idempotency_key": key });
            chores[*owner].push(Chore { op: "conversation.create", args: args.to_string(), tag });
        }
        self.do_chores(chores, &progress).await?;
        let created = self.created(groups.len())?;
        let mut more: Vec<Vec<Chore>> = Vec::new();
        more.resize_with(self.members.len(), Vec::new);
        for (group, conversation) in groups.iter().zip(&created) {
            for index in group.iter().skip(1 + CREATE_MEMBERS_MAX) {
                let user = &self.people[*index].user;
                let args = json!({ "conversation": conversation, "user": user, "idempotency_key": Uuid::now_v7() });
                more[group[0]].push(Chore { op: "member.add", args: args.to_string(), tag: NO_TAG });
            }
        }
        self.do_chores(more, &progress).await?;
        if let Some(history) = &self.history {
            for (group, conversation) in groups.iter().zip(&created) {
                let conversation = history.conversation(*conversation);
                for index in group {
                    history.record(What::Join { user: history.user(&self.people[*index].user), conversation, from: 0 });
                }
            }
        }
        Ok(created)
    }

    /// Creates direct conversations: (member by index, other user). Returns their ids.
    pub async fn create_directs(&self, pairs: &[(usize, String)], progress: impl Fn(u64)) -> anyhow::Result<Vec<Uuid>> {
        let mut chores: Vec<Vec<Chore>> = Vec::new();
        chores.resize_with(self.members.len(), Vec::new);
        for (tag, (member, other)) in (0u64..).zip(pairs) {
            let args = json!({ "kind": "direct", "with": other }).to_string();
            chores[*member].push(Chore { op: "conversation.create", args, tag });
        }
        self.do_chores(chores, &progress).await?;
        let created = self.created(pairs.len())?;
        if let Some(history) = &self.history {
            for ((member, other), conversation) in pairs.iter().zip(&created) {
                let conversation = history.conversation(*conversation);
                for user in [&self.people[*member].user, other] {
                    history.record(What::Join { user: history.user(user), conversation, from: 0 });
                }
            }
        }
        Ok(created)
    }

    fn created(&self, count: usize) -> anyhow::Result<Vec<Uuid>> {
        let mut created = std::mem::take(&mut *self.shared.created.lock());
        let found: Option<Vec<_>> = (0..count as u64).map(|tag| created.remove(&tag)).collect();
        found.with_context(|| {
            format!("not every conversation could be created: {:?}", self.shared.score.complaints.lock())
        })
    }

    async fn do_chores(&self, chores: Vec<Vec<Chore>>, progress: &impl Fn(u64)) -> anyhow::Result<()> {
        let all: usize = chores.iter().map(Vec::len).sum();
        self.shared.score.chores.store(all, Relaxed);
        for (member, chores) in self.members.iter().zip(chores) {
            if !chores.is_empty() {
                member.call(|member, session| member.add_chores(chores, session));
            }
        }
        self.settle("setting up", all, |score| score.chores.load(Relaxed), progress).await
    }

    /// Opens a conversation for members by index: large conversations are heard only by whom they are open for.
    pub async fn open(&self, conversation: Uuid, members: impl Iterator<Item = usize>) {
        self.open_each(members.map(|index| (index, conversation))).await;
    }

    /// Opens conversations, each for a member by index.
    pub async fn open_each(&self, what: impl Iterator<Item = (usize, Uuid)>) {
        for (index, conversation) in what {
            self.members[index].call(move |_, session| session.open(conversation));
        }
        self.calm().await;
    }

    /// A member looks at others by right of a conversation, after each connecting anew.
    pub fn watch(&self, member: usize, others: impl Iterator<Item = usize>, conversation: Uuid) {
        let users: Vec<_> =
            others.map(|other| json!({ "user": self.people[other].user, "conversation": conversation })).collect();
        let args = json!({ "users": users }).to_string();
        self.members[member].call(move |member, session| member.watch(args, session));
    }

    /// Tells a member where to send, and how.
    pub fn assign(&self, member: usize, conversations: Vec<Uuid>, pace: Pace) {
        if let (Some(fanout), Pace::Broadcast(_)) = (&self.shared.fanout, pace) {
            *fanout.sender.lock() = Some(Arc::clone(&self.members[member]));
        }
        self.members[member].call(move |member, _| member.assign(conversations, pace));
    }

    /// From now on a member, by index, does this besides sending.
    pub fn behave(&self, member: usize, habits: Habits) {
        self.members[member].call(move |member, _| member.behave(habits));
    }

    /// The rates of open loops are so many times what they were meant to be, from now on.
    pub fn set_tempo(&self, tempo: f64) {
        for member in &self.members {
            member.call(move |member, session| member.set_tempo(tempo, session));
        }
    }

    /// Breaks the connections of members, by index, in this moment.
    pub fn storm(&self, members: impl Iterator<Item = usize>) {
        for member in members {
            self.members[member].call(Member::storm);
        }
    }

    /// How long those whose connections storms broke took to come back, so far.
    pub fn returns(&self) -> Counted {
        Counted::of(&self.shared.score.return_us.lock())
    }

    /// Everybody begins to send.
    pub fn start(&self) {
        for member in &self.members {
            member.call(Member::start);
        }
    }

    /// Measures for a while. `each` is told the time that has passed, several times a second. `servers` are the processes whose CPU and
    /// memory are theirs.
    pub async fn measure(
        &self,
        time: Duration,
        servers: impl IntoIterator<Item = u32>,
        mut each: impl FnMut(Duration, &Measured),
    ) -> anyhow::Result<Measured> {
        let score = &self.shared.score;
        let counts = || Counts::of(score);
        score.ack_us.lock().reset();
        score.delivery_us.lock().reset();
        score.delayed.lock().clear();
        score.begin_window();
        let costs = Costs::start(servers)?;
        let (first, began) = (counts(), Instant::now());
        let mut now = Measured::default();
        let (mut acks, mut deliveries) = (score::histogram(), score::histogram());
        let mut second = (0.0, first, costs.read());
        loop {
            let passed = began.elapsed();
            let counted = counts();
            now.seconds = passed.as_secs_f64();
            (now.acks, now.deliveries) = (counted.acks - first.acks, counted.deliveries - first.deliveries);
            (now.failures, now.lost) = (counted.failures - first.failures, counted.lost - first.lost);
            (now.receipts, now.receipts_heard) =
                (counted.receipts - first.receipts, counted.receipts_heard - first.receipts_heard);
            now.reactions = counted.reactions - first.reactions;
            let (span, is_over) = (now.seconds - second.0, passed >= time);
            // What is left at the end is a second too, if a short one.
            if span >= 1.0 || (is_over && span >= 0.1) {
                let (ack, delivery) = (gather(&score.ack_us, &mut acks), gather(&score.delivery_us, &mut deliveries));
                let (before, cost) = (second.2, costs.read());
                now.timeline.push(Second {
                    at: now.seconds,
                    acks_per_s: (counted.acks - second.1.acks) as f64 / span,
                    deliveries_per_s: (counted.deliveries - second.1.deliveries) as f64 / span,
                    ack_p50_ms: ack.p50,
                    ack_p99_ms: ack.p99,
                    delivery_p99_ms: delivery.p99,
                    connections: score.up.load(Relaxed),
                    server_cores: (cost.servers - before.servers).max(0.0) / span,
                    tester_cores: (cost.ours - before.ours).max(0.0) / span,
                    server_rss: cost.rss,
                });
                second = (now.seconds, counted, cost);
            }
            each(passed, &now);
            if is_over {
                break;
            }
            sleep((time - passed).min(Duration::from_millis(100))).await;
        }
        (now.tester_cpu_s, now.tester_share) = (costs.ours.cpu()?.as_secs_f64(), costs.ours.share()?);
        // A server that died under the load is told by failures; its CPU is then unknown.
        now.server_cpu_s = costs.read().servers;
        score.end_window();
        (now.acks_per_s, now.deliveries_per_s) = (now.acks as f64 / now.seconds, now.deliveries as f64 / now.seconds);
        gather(&score.ack_us, &mut acks);
        gather(&score.delivery_us, &mut deliveries);
        now.count(Counted::of(&acks), Counted::of(&deliveries));
        now.complaints = std::mem::take(&mut *score.complaints.lock());
        now.delayed = std::mem::take(&mut *score.delayed.lock());
        Ok(now)
    }

    /// Adds the latencies of what was meant to be sent while that was measured, and has arrived since: a server that stalls in the end
    /// is charged for it like any other time.
    pub fn late(&self, measured: &mut Measured) {
        let [acks, deliveries] = [&self.shared.score.ack_us, &self.shared.score.delivery_us].map(|late| {
            let mut late = late.lock();
            let counted = Counted::of(&late);
            late.reset();
            counted
        });
        let acks_us = std::mem::take(&mut measured.acks_us);
        let deliveries_us = std::mem::take(&mut measured.deliveries_us);
        measured.count(acks_us.and(acks), deliveries_us.and(deliveries));
    }

    /// Connections that storms broke so far, whether they are back or not.
    pub fn stormed(&self) -> u64 {
        self.shared.score.stormed.load(Relaxed)
    }

    /// Waits until every member who sends has had a message accepted that was sent after this was asked, and returns how long that
    /// took.
    ///
    /// # Errors
    /// When somebody's is not within `patience`.
    pub async fn goes_on(&self, patience: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let before = self.acked().await;
        // One may have been on its way.
        let goes_on = |now: &[u64]| now.iter().zip(&before).all(|(now, before)| *now > before + 1);
        loop {
            let now = self.acked().await;
            if goes_on(&now) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > patience {
                let stuck = now.iter().zip(&before).filter(|(now, before)| *now <= &(*before + 1)).count();
                bail!("{stuck} of {} clients had no message accepted for {patience:?}", now.len());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn acked(&self) -> Vec<u64> {
        let mut acked = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let (answer, answered) = tokio::sync::oneshot::channel();
            member.call(move |member, _| _ = answer.send(member.acked));
            acked.push(answered.await.unwrap_or_default());
        }
        acked
    }

    /// The longest that anybody waited for an acknowledgement that came, since this was asked last.
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.shared.score.longest_us.swap(0, Relaxed))
    }

    /// Acknowledged messages so far.
    pub fn acks(&self) -> u64 {
        self.shared.score.acks.load(Relaxed)
    }

    /// Everybody ceases to send; waits until nothing is under way.
    pub async fn rest(&self) -> anyhow::Result<()> {
        for member in &self.members {
            member.call(|member, session| {
                member.stop();
                member.speak_up(session);
            });
        }
        self.settle("ending", 0, |score| score.in_flight.load(Relaxed), &|_| {}).await?;
        self.calm().await;
        Ok(())
    }

    /// Waits until deliveries have ceased for a moment.
    async fn calm(&self) {
        let mut before = u64::MAX;
        for _ in 0..100 {
            sleep(Duration::from_millis(200)).await;
            let score = &self.shared.score;
            let now =
                score.deliveries.load(Relaxed) + score.receipts.load(Relaxed) + score.receipts_heard.load(Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Every member (by index) reads each of their conversations from the beginning, for the oracle.
    pub async fn read_all(&self, what: &[(usize, Uuid)], progress: impl Fn(u64)) -> anyhow::Result<()> {
        let score = &self.shared.score;
        for (done, batch) in what.chunks(READING_MAX).enumerate() {
            score.chores.store(batch.len(), Relaxed);
            for (member, conversation) in batch {
                let conversation = *conversation;
                self.members[*member].call(move |_, session| session.read_all(conversation, 0, true, 0));
            }
            self.settle("reading back", batch.len(), |score| score.chores.load(Relaxed), &|_| {}).await?;
            progress((done * READING_MAX) as u64);
        }
        Ok(())
    }

    /// Every member (by index) is shown how far the members of each of their conversations have got, for the oracle.
    pub async fn read_receipts(&self, what: &[(usize, Uuid)]) -> anyhow::Result<()> {
        let score = &self.shared.score;
        for batch in what.chunks(READING_MAX) {
            score.chores.store(batch.len(), Relaxed);
            for (member, conversation) in batch {
                let conversation = *conversation;
                self.members[*member].call(move |_, session| session.receipts(conversation, true, SHOWN_TAG));
            }
            self.settle("reading receipts", batch.len(), |score| score.chores.load(Relaxed), &|_| {}).await?;
        }
        Ok(())
    }

    /// What all members have counted together.
    pub async fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for member in &self.members {
            let (answer, answered) = tokio::sync::oneshot::channel();
            member.call(move |_, session| _ = answer.send(session.counters()));
            let one = answered.await.unwrap_or_default();
            sum.connects += one.connects;
            sum.retries += one.retries;
            sum.events += one.events;
            sum.event_bytes += one.event_bytes;
            sum.acks += one.acks;
            sum.ack_bytes += one.ack_bytes;
            sum.gaps += one.gaps;
            sum.repeats += one.repeats;
            sum.resyncs += one.resyncs;
        }
        sum
    }

    /// Refusals since the last measurement that were repeated later, by their code.
    pub fn delayed(&self) -> BTreeMap<String, u64> {
        self.shared.score.delayed.lock().clone()
    }

    /// Everybody goes home.
    pub async fn leave(self) {
        if let Some(fanout) = &self.shared.fanout {
            // The fan-out holds a member that holds the fan-out.
            *fanout.sender.lock() = None;
        }
        for member in &self.members {
            member.stop();
        }
        for member in &self.members {
            while !member.is_over() {
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Waits until nothing of `all` is left; gives up when that has not moved for long.
    async fn settle(
        &self,
        what: &str,
        all: usize,
        left: impl Fn(&Score) -> usize,
        progress: &impl Fn(u64),
    ) -> anyhow::Result<()> {
        let score = &self.shared.score;
        let (mut before, mut moved) = (usize::MAX, Instant::now());
        loop {
            let now = left(score);
            progress(all.saturating_sub(now) as u64);
            if now == 0 {
                return Ok(());
            }
            if now != before {
                (before, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALL {
                bail!("{what}: stands still, {now} of {all} are left; {:?}", score.complaints.lock());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What is counted, at one moment.
#[derive(Clone, Copy)]
struct Counts {
    acks: u64,
    deliveries: u64,
    failures: u64,
    lost: u64,
    receipts: u64,
    receipts_heard: u64,
    reactions: u64,
}

impl Counts {
    fn of(score: &Score) -> Self {
        Self {
            acks: score.acks.load(Relaxed),
            deliveries: score.deliveries.load(Relaxed),
            failures: score.failures.load(Relaxed),
            lost: score.lost.load(Relaxed),
            receipts: score.receipts.load(Relaxed),
            receipts_heard: score.receipts_heard.load(Relaxed),
            reactions: score.reactions.load(Relaxed),
        }
    }
}

/// What processes have used since a measurement began.
struct Costs {
    ours: Meter,
    servers: Vec<(u32, Meter)>,
}

/// The same, at one moment.
#[derive(Clone, Copy)]
struct Cost {
    /// CPU seconds.
    ours: f64,
    /// CPU seconds of those that still run.
    servers: f64,
    /// Bytes.
    rss: u64,
}

impl Costs {
    fn start(servers: impl IntoIterator<Item = u32>) -> anyhow::Result<Self> {
        let meter = |pid| Ok((pid, Meter::start(pid).with_context(|| format!("there is no process {pid}"))?));
        Ok(Self { ours: Meter::of_self()?, servers: servers.into_iter().map(meter).collect::<anyhow::Result<_>>()? })
    }

    fn read(&self) -> Cost {
        let cpu = |meter: &Meter| meter.cpu().unwrap_or_default().as_secs_f64();
        Cost {
            ours: cpu(&self.ours),
            servers: self.servers.iter().map(|(_, meter)| cpu(meter)).sum(),
            rss: self.servers.iter().map(|(pid, _)| process::resident(*pid).unwrap_or(0)).sum(),
        }
    }
}

/// What one stretch of time measured, which is added to the whole.
fn gather(
    stretch: &parking_lot::Mutex<hdrhistogram::Histogram<u64>>,
    whole: &mut hdrhistogram::Histogram<u64>,
) -> Latency {
    let mut stretch = stretch.lock();
    let latency = Latency::of(&stretch);
    // Both have the same bounds.
    let added = whole.add(&*stretch);
    debug_assert!(added.is_ok());
    stretch.reset();
    latency
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::raw;

    /// A crowd against the peer without logic: everything that is counted adds up.
    async fn crowd(groups: usize, size: usize, manner: Manner) -> Crowd {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(raw::server::serve(
            listener,
            raw::server::Plan { groups, ack_bytes: 120, delivery_bytes: 420, echo: false },
        ));
        let mut people = Vec::new();
        for index in 0..groups * size {
            let target = Target::resolve(&format!("http://{address}/raw/{}", index / size)).await.unwrap();
            people.push(Person {
                user: format!("user-{index}"),
                token: "t".into(),
                target: Arc::new(target),
                speech: None,
            });
        }
        Crowd::connect(people, manner, |_| {}).await.unwrap()
    }

    #[tokio::test]
    async fn a_closed_loop_adds_up() {
        let crowd = crowd(4, 5, Manner::default()).await;
        assert_eq!(crowd.len(), 20);
        for index in 0..20 {
            crowd.assign(index, vec![raw::conversation(index / 5)], Pace::Closed(3));
        }
        crowd.start();
        let measured = crowd.measure(Duration::from_millis(300), None, |_, _| {}).await.unwrap();
        assert!(measured.acks > 0 && measured.ack_ms.count > 0);
        crowd.rest().await.unwrap();
        let counters = crowd.counters().await;
        assert_eq!(counters.events, counters.acks * 4);
        assert_eq!((measured.failures, measured.lost), (0, 0));
        crowd.leave().await;
    }

    #[tokio::test]
    async fn an_open_loop_keeps_its_pace() {
        let crowd = crowd(2, 2, Manner::default()).await;
        for index in 0..4 {
            crowd.assign(index, vec![raw::conversation(index / 2)], Pace::Open(Duration::from_millis(5)));
        }
        crowd.start();
        let measured = crowd.measure(Duration::from_millis(500), None, |_, _| {}).await.unwrap();
        // 400 were intended; a busy machine may be late, and never early.
        assert!((1..=410).contains(&measured.acks), "{}", measured.acks);
        crowd.leave().await;
    }

    #[tokio::test]
    async fn a_fan_out_goes_on_when_all_have_it() {
        let crowd = crowd(1, 11, Manner { fanout_listeners: Some(10), ..Manner::default() }).await;
        crowd.assign(0, vec![raw::conversation(0)], Pace::Broadcast(1));
        crowd.start();
        let measured = crowd.measure(Duration::from_millis(300), None, |_, _| {}).await.unwrap();
        assert!(measured.acks > 1, "{measured:?}");
        assert!(measured.deliveries.abs_diff(measured.acks * 10) <= 20, "{measured:?}");
        crowd.leave().await;
    }
}
