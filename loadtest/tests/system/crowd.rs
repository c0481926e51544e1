//! People who talk all the time, while something is done to the servers, and the oracle's verdict on what they saw.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::{Client, Failure, News, Options, http::Http, token::Signer},
    history::History,
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

const GROUPS: usize = 6;
const USERS: [&str; 6] = ["ada", "bob", "cyd", "dan", "eve", "fay"];

/// Everything that waits for a condition gives up after this.
pub(super) const PATIENCE: Duration = Duration::from_secs(150);

/// Waits for a condition, up to [`PATIENCE`].
pub(super) async fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// People who talk, from one end of the test to the other.
pub(super) struct Crowd {
    pub(super) clients: Vec<Arc<Client>>,
    /// Groups of all, and, where people talk apart, pairs.
    pub(super) groups: Vec<Uuid>,
    /// Who is in them, by the places of their clients.
    pub(super) members: Vec<Vec<usize>>,
    pub(super) lanes: Arc<Vec<Lane>>,
    arrivals: Arc<Arrivals>,
    began: Instant,
    history: Arc<History>,
    /// Acknowledged, by group.
    acked: Arc<Vec<AtomicU64>>,
    over: Arc<AtomicBool>,
    senders: JoinSet<Result<(), Failure>>,
    /// Why somebody stopped talking, who must not.
    failures: Arc<Mutex<Vec<String>>>,
    /// The longest that anybody waited for an acknowledgement, in milliseconds, since it was asked last.
    pub(super) longest: Arc<AtomicU64>,
}

/// When messages reach those who are connected.
#[derive(Default)]
struct Arrivals {
    /// When what has a place was acknowledged.
    acked: Mutex<HashMap<(Uuid, u64), Instant>>,
    /// The longest that somebody saw one after that, by conversation, in milliseconds, since this was asked last.
    late: Mutex<HashMap<Uuid, u64>>,
    /// Up to where each client has seen each conversation.
    seen: Mutex<HashMap<(usize, Uuid), u64>>,
}

impl Arrivals {
    fn note(&self, client: usize, conversation: Uuid, seq: u64) {
        self.seen.lock().insert((client, conversation), seq);
        if let Some(acked) = self.acked.lock().get(&(conversation, seq)) {
            let late = acked.elapsed().as_millis() as u64;
            let mut longest = self.late.lock();
            let longest = longest.entry(conversation).or_default();
            *longest = late.max(*longest);
        }
    }
}

/// Somebody who has one message on its way at a time.
pub(super) struct Lane {
    /// Whose client.
    pub(super) client: usize,
    /// Where they talk: in one after the other.
    pub(super) places: Vec<usize>,
    /// When the present one was asked for, in milliseconds since the crowd began.
    asked: AtomicU64,
    /// The longest that one took, since somebody wanted to know.
    longest: AtomicU64,
    acked: AtomicU64,
}

impl Lane {
    fn new(client: usize, places: Vec<usize>) -> Self {
        Self { client, places, asked: AtomicU64::new(0), longest: AtomicU64::new(0), acked: AtomicU64::new(0) }
    }
}

impl Crowd {
    /// Everybody connects, at one of these servers after the other, and begins to talk: each in every group, one after the other,
    /// with two messages on their way.
    pub(super) async fn gather(urls: &[String]) -> Self {
        let mut tokens = Vec::new();
        for (user, url) in USERS.iter().zip(urls.iter().cycle()) {
            tokens.push(Http::new(url).token(user).await.unwrap());
        }
        let mut crowd = Self::meet(urls, &tokens).await;
        let people = 0..crowd.clients.len();
        let lane = |index: usize, lane: usize| {
            Lane::new(index, (0..GROUPS).map(|step| (index + lane * 3 + step) % GROUPS).collect())
        };
        crowd.talk(people.flat_map(|index| [lane(index, 0), lane(index, 1)]).collect(), Duration::from_millis(2));
        crowd
    }

    /// The same, and in pairs too; but in each conversation two people talk who wait for nothing else there, each through
    /// another server: what is held up in one place holds up no other.
    pub(super) async fn gather_apart(urls: &[String], signer: &Signer) -> Self {
        let tokens: Vec<String> = USERS.iter().map(|user| signer.sign(user).unwrap()).collect();
        let mut crowd = Self::meet(urls, &tokens).await;
        for first in (0..USERS.len()).step_by(2) {
            crowd.groups.push(crowd.clients[first].direct(USERS[first + 1]).await.unwrap());
            crowd.members.push(vec![first, first + 1]);
        }
        let lanes = crowd.members.iter().enumerate().flat_map(|(place, members)| {
            let talks = |step: usize| Lane::new(members[(place + step) % members.len()], vec![place]);
            [talks(0), talks(1)]
        });
        let lanes = lanes.collect();
        crowd.talk(lanes, Duration::from_millis(20));
        crowd
    }

    /// Everybody connects, and groups of all are made.
    async fn meet(urls: &[String], tokens: &[String]) -> Self {
        let history = History::in_memory();
        let options = Options {
            history: Some(Arc::clone(&history)),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(200),
            give_up: Duration::from_secs(120),
            ..Options::default()
        };
        let (mut clients, arrivals) = (Vec::new(), Arc::new(Arrivals::default()));
        for (index, user) in USERS.iter().enumerate() {
            let url = &urls[index % urls.len()];
            let (client, mut stream) = Client::connect(url, user, &tokens[index], options.clone()).await.unwrap();
            let arrivals = Arc::clone(&arrivals);
            tokio::spawn(async move {
                while let Some(news) = stream.next().await {
                    if let News::Event(event) = news {
                        arrivals.note(index, event.conversation, event.seq);
                    }
                }
            });
            clients.push(Arc::new(client));
        }
        let mut groups = Vec::new();
        for number in 0..GROUPS {
            let founder = number % USERS.len();
            let others: Vec<&str> = USERS.iter().copied().filter(|user| *user != USERS[founder]).collect();
            groups.push(clients[founder].create_group(&format!("group {number}"), &others).await.unwrap());
        }
        Self {
            members: vec![(0..clients.len()).collect(); groups.len()],
            lanes: Arc::default(),
            arrivals,
            began: Instant::now(),
            clients,
            acked: Arc::default(),
            groups,
            history,
            over: Arc::default(),
            senders: JoinSet::new(),
            failures: Arc::default(),
            longest: Arc::default(),
        }
    }

    /// They begin to talk, with a pause after each message.
    fn talk(&mut self, lanes: Vec<Lane>, pause: Duration) {
        self.lanes = Arc::new(lanes);
        self.acked = Arc::new(self.groups.iter().map(|_| AtomicU64::new(0)).collect());
        for index in 0..self.lanes.len() {
            let (lanes, groups, began) = (Arc::clone(&self.lanes), self.groups.clone(), self.began);
            let (acked, over, longest) = (Arc::clone(&self.acked), Arc::clone(&self.over), Arc::clone(&self.longest));
            let (client, arrivals) = (Arc::clone(&self.clients[lanes[index].client]), Arc::clone(&self.arrivals));
            let failures = Arc::clone(&self.failures);
            self.senders.spawn(async move {
                let lane = &lanes[index];
                for number in 0.. {
                    if over.load(Relaxed) {
                        break;
                    }
                    let place = lane.places[number % lane.places.len()];
                    let asked = began.elapsed().as_millis() as u64;
                    lane.asked.store(asked.max(1), Relaxed);
                    let sent = client.send(groups[place], &json!({ "text": format!("{index} {number}") })).await;
                    let ack = sent.inspect_err(|why| failures.lock().push(format!("{index} in {place}: {why:?}")))?;
                    arrivals.acked.lock().insert((groups[place], ack.seq), Instant::now());
                    let took = began.elapsed().as_millis() as u64 - asked;
                    lane.asked.store(0, Relaxed);
                    lane.longest.fetch_max(took, Relaxed);
                    lane.acked.fetch_add(1, Relaxed);
                    longest.fetch_max(took, Relaxed);
                    acked[place].fetch_add(1, Relaxed);
                    sleep(pause).await;
                }
                Ok(())
            });
        }
    }

    /// The longest that each lane has waited for an acknowledgement, or waits by now, since this was asked last.
    pub(super) fn waited(&self) -> Vec<Duration> {
        let now = self.began.elapsed().as_millis() as u64;
        let waited = |lane: &Lane| {
            let asked = lane.asked.load(Relaxed);
            let waits = if asked == 0 { 0 } else { now.saturating_sub(asked) };
            Duration::from_millis(lane.longest.swap(0, Relaxed).max(waits))
        };
        self.lanes.iter().map(waited).collect()
    }

    pub(super) fn acked(&self) -> Vec<u64> {
        self.acked.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// How late, after its acknowledgement, a message was seen by a member at last, in each conversation, since this was asked last.
    pub(super) fn late(&self) -> Vec<Duration> {
        let late = std::mem::take(&mut *self.arrivals.late.lock());
        let late = |group| Duration::from_millis(late.get(group).copied().unwrap_or(0));
        self.groups.iter().map(late).collect()
    }

    /// Everybody who waits for an acknowledgement has one, and one more: how long that took.
    pub(super) async fn all_are_answered(&self) -> Duration {
        let (began, counts) = (Instant::now(), || self.lanes.iter().map(|lane| lane.acked.load(Relaxed)));
        let before: Vec<u64> = counts().collect();
        wait("everybody is answered", || counts().zip(&before).all(|(now, before)| now >= before + 2)).await;
        began.elapsed()
    }

    /// Everybody has seen, in each of their conversations, something that is newer than what is acknowledged now: how long that
    /// took.
    pub(super) async fn all_hear(&self) -> Duration {
        let began = Instant::now();
        let mut newest: HashMap<Uuid, u64> = HashMap::new();
        for (conversation, seq) in self.arrivals.acked.lock().keys() {
            let newest = newest.entry(*conversation).or_default();
            *newest = (*seq).max(*newest);
        }
        let hears = || {
            let seen = self.arrivals.seen.lock();
            self.groups
                .iter()
                .zip(&self.members)
                .all(|(group, members)| members.iter().all(|member| seen.get(&(*member, *group)) > newest.get(group)))
        };
        wait("everybody hears", hears).await;
        began.elapsed()
    }

    /// So many more messages are acknowledged in every group; what that took.
    pub(super) async fn progress(&self, messages: u64) -> Duration {
        let (began, before) = (Instant::now(), self.acked());
        let arrived = || self.acked().iter().zip(&before).all(|(now, before)| *now >= before + messages);
        while !arrived() {
            assert!(began.elapsed() < PATIENCE, "some groups do not go on; before: {before:?}, {}", self.describe());
            sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    /// Who waits where.
    fn describe(&self) -> String {
        let now = self.began.elapsed().as_millis() as u64;
        let lane = |lane: &Lane| match lane.asked.load(Relaxed) {
            0 => "rests".to_owned(),
            asked => {
                let place = lane.places[lane.acked.load(Relaxed) as usize % lane.places.len()];
                format!("client {} waits in {place} for {} ms", lane.client, now.saturating_sub(asked))
            }
        };
        let lanes: Vec<String> = self.lanes.iter().map(lane).collect();
        format!("acknowledged: {:?}, lanes: {lanes:#?}, failures: {:#?}", self.acked(), self.failures.lock())
    }

    /// Everybody stops, then reads everything, and the oracle judges.
    pub(super) async fn judge(mut self) {
        self.over.store(true, Relaxed);
        while let Some(sender) = timeout(PATIENCE, self.senders.join_next()).await.expect("every send is answered") {
            sender.unwrap().expect("no send fails");
        }
        for (group, members) in self.groups.iter().zip(&self.members) {
            let mut heads = Vec::new();
            for member in members {
                let reading = self.clients[*member].read_all(*group, 0, true);
                heads.push(timeout(PATIENCE, reading).await.expect("a final read ends").unwrap());
            }
            assert!(heads.windows(2).all(|pair| pair[0] == pair[1]), "members see different heads: {heads:?}");
        }
        let verdict = self.history.verdict().unwrap();
        println!("{verdict}");
        assert!(verdict.is_clean(), "promises were broken");
        assert_eq!((verdict.stats.acked_unread, verdict.stats.unknown), (0, 0));
        assert!(verdict.stats.acked > 300, "there was load");
    }
}
