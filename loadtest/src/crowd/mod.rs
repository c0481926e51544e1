//! Many clients at once: connected, put into conversations, set to work, measured, and in the end made to read
//! everything back.

mod member;
pub mod run;
pub(crate) mod score;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::json;
use tokio::{sync::Semaphore, time::sleep};
use uuid::Uuid;

pub use self::{member::Pace, score::Latency};
use self::{
    member::{Chore, Fanout, Member, Shared},
    score::Score,
};
use crate::{
    client::{Counters, Encoding, Handle, Options, Target, driver},
    history::{History, What},
    process::Meter,
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
}

/// How a crowd behaves.
#[derive(Debug, Clone)]
pub struct Manner {
    /// How frames are written.
    pub encoding: Encoding,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// One in so many deliveries has its latency measured.
    pub sample: u64,
    /// Where everything is noted, to be judged.
    pub history: Option<Arc<History>>,
    /// The listeners of a fan-out, when one is to be measured.
    pub fanout_listeners: Option<u64>,
    /// Whether members say that they are writing before they send.
    pub types: bool,
    /// Members say what has reached them and that they have read it.
    pub receipts: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            encoding: Encoding::default(),
            body_bytes: 200,
            sample: 8,
            history: None,
            fanout_listeners: None,
            types: false,
            receipts: false,
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
#[derive(Debug, Clone, Default, Serialize)]
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
    /// Acknowledgements and deliveries of each second.
    pub timeline: Vec<(f64, f64, f64)>,
    /// Refusals that were repeated later, by their code.
    pub delayed: BTreeMap<String, u64>,
    /// The first failures in words.
    pub complaints: Vec<String>,
    /// Latencies of acknowledgements by quantile, for a plot.
    #[serde(skip)]
    pub ack_curve: Vec<(f64, f64)>,
    /// Latencies of deliveries by quantile, for a plot.
    #[serde(skip)]
    pub delivery_curve: Vec<(f64, f64)>,
}

impl Crowd {
    /// Connects everybody, in order, and waits until all are let in.
    pub async fn connect(people: Vec<Person>, manner: Manner, progress: impl Fn(u64)) -> anyhow::Result<Self> {
        let fanout = manner.fanout_listeners.map(|listeners| Fanout { listeners, ..Fanout::default() });
        let shared = Arc::new(Shared {
            score: Score::new(),
            created: parking_lot::Mutex::default(),
            body_bytes: manner.body_bytes,
            types: manner.types,
            sample: manner.sample.max(1),
            fanout,
            receipts: manner.receipts,
        });
        let gate = Some(Arc::new(Semaphore::new(CONNECTING_MAX)));
        let options =
            Options { encoding: manner.encoding, history: manner.history.clone(), gate, ..Options::default() };
        let options = Arc::new(options);
        let mut crowd = Self { shared, people, members: Vec::new(), history: manner.history };
        for (index, person) in crowd.people.iter().enumerate() {
            let host = 1 + (index / PORTS_PER_SOURCE) as u8;
            let source = (host > 1 && person.target.address.ip().is_loopback())
                .then_some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)));
            let member = Member::new(Arc::clone(&crowd.shared));
            let handle = driver::start(
                Arc::clone(&person.target),
                Arc::clone(&options),
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

    /// Everybody begins to send.
    pub fn start(&self) {
        for member in &self.members {
            member.call(Member::start);
        }
    }

    /// Measures for a while. `each` is told the time that has passed, several times a second.
    pub async fn measure(
        &self,
        time: Duration,
        server: Option<u32>,
        each: impl Fn(Duration, &Measured),
    ) -> anyhow::Result<Measured> {
        let score = &self.shared.score;
        let counts = || {
            (
                score.acks.load(Relaxed),
                score.deliveries.load(Relaxed),
                score.failures.load(Relaxed),
                score.lost.load(Relaxed),
                score.receipts.load(Relaxed),
                score.receipts_heard.load(Relaxed),
            )
        };
        score.ack_us.lock().reset();
        score.delivery_us.lock().reset();
        score.delayed.lock().clear();
        score.measuring.store(true, Relaxed);
        let ours = Meter::of_self()?;
        let theirs = server.map(Meter::start).transpose().context("the server's process is not there")?;
        let (first, began) = (counts(), Instant::now());
        let mut now = Measured::default();
        let mut second = (0.0, first.0, first.1);
        loop {
            let passed = began.elapsed();
            let counted = counts();
            now.seconds = passed.as_secs_f64();
            (now.acks, now.deliveries) = (counted.0 - first.0, counted.1 - first.1);
            (now.failures, now.lost) = (counted.2 - first.2, counted.3 - first.3);
            (now.receipts, now.receipts_heard) = (counted.4 - first.4, counted.5 - first.5);
            if now.seconds - second.0 >= 1.0 {
                let span = now.seconds - second.0;
                now.timeline.push((
                    now.seconds,
                    (counted.0 - second.1) as f64 / span,
                    (counted.1 - second.2) as f64 / span,
                ));
                second = (now.seconds, counted.0, counted.1);
            }
            if passed >= time {
                break;
            }
            each(passed, &now);
            sleep((time - passed).min(Duration::from_millis(100))).await;
        }
        now.tester_cpu_s = ours.cpu()?.as_secs_f64();
        now.tester_share = ours.share()?;
        if let Some(theirs) = theirs {
            // A server that died under the load is told by failures; its CPU is then unknown.
            now.server_cpu_s = theirs.cpu().unwrap_or_default().as_secs_f64();
        }
        score.measuring.store(false, Relaxed);
        (now.acks_per_s, now.deliveries_per_s) = (now.acks as f64 / now.seconds, now.deliveries as f64 / now.seconds);
        {
            let (acks, deliveries) = (score.ack_us.lock(), score.delivery_us.lock());
            (now.ack_ms, now.ack_curve) = (Latency::of(&acks), score::curve(&acks));
            (now.delivery_ms, now.delivery_curve) = (Latency::of(&deliveries), score::curve(&deliveries));
        }
        now.complaints = std::mem::take(&mut *score.complaints.lock());
        now.delayed = std::mem::take(&mut *score.delayed.lock());
        Ok(now)
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
            member.call(|member, _| member.stop());
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
            people.push(Person { user: format!("user-{index}"), token: "t".into(), target: Arc::new(target) });
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
