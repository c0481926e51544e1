//! People who talk all the time, while something is done to the servers, and the oracle's verdict on what they saw.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::{Client, Failure, Options, http::Http},
    history::History,
};
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

/// People in groups of all, each of whom has several messages on their way, from one end of the test to the other.
pub(super) struct Crowd {
    pub(super) clients: Vec<Arc<Client>>,
    pub(super) groups: Vec<Uuid>,
    history: Arc<History>,
    /// Acknowledged, by group.
    acked: Arc<Vec<AtomicU64>>,
    over: Arc<AtomicBool>,
    senders: JoinSet<Result<(), Failure>>,
    /// The longest that anybody waited for an acknowledgement, in milliseconds, since it was asked last.
    pub(super) longest: Arc<AtomicU64>,
}

impl Crowd {
    /// Everybody connects, at one of these servers after the other, and begins to talk.
    pub(super) async fn gather(urls: &[String]) -> Self {
        let history = History::in_memory();
        let options = Options {
            history: Some(Arc::clone(&history)),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(200),
            give_up: Duration::from_secs(120),
            ..Options::default()
        };
        let mut clients = Vec::new();
        for (index, user) in USERS.iter().enumerate() {
            let url = &urls[index % urls.len()];
            let token = Http::new(url).token(user).await.unwrap();
            let (client, mut stream) = Client::connect(url, user, &token, options.clone()).await.unwrap();
            tokio::spawn(async move { while stream.next().await.is_some() {} });
            clients.push(Arc::new(client));
        }
        let mut groups = Vec::new();
        for number in 0..GROUPS {
            let founder = number % USERS.len();
            let others: Vec<&str> = USERS.iter().copied().filter(|user| *user != USERS[founder]).collect();
            groups.push(clients[founder].create_group(&format!("group {number}"), &others).await.unwrap());
        }
        let mut crowd = Self {
            clients,
            acked: Arc::new(groups.iter().map(|_| AtomicU64::new(0)).collect()),
            groups,
            history,
            over: Arc::default(),
            senders: JoinSet::new(),
            longest: Arc::default(),
        };
        for (index, client) in crowd.clients.iter().enumerate() {
            for lane in 0..2 {
                let (client, groups) = (Arc::clone(client), crowd.groups.clone());
                let (acked, over, longest) =
                    (Arc::clone(&crowd.acked), Arc::clone(&crowd.over), Arc::clone(&crowd.longest));
                crowd.senders.spawn(async move {
                    for number in 0.. {
                        if over.load(Relaxed) {
                            break;
                        }
                        let group = (index + lane * 3 + number) % groups.len();
                        let asked = Instant::now();
                        client.send(groups[group], &json!({ "text": format!("{index} {lane} {number}") })).await?;
                        longest.fetch_max(asked.elapsed().as_millis() as u64, Relaxed);
                        acked[group].fetch_add(1, Relaxed);
                        sleep(Duration::from_millis(2)).await;
                    }
                    Ok(())
                });
            }
        }
        crowd
    }

    pub(super) fn acked(&self) -> Vec<u64> {
        self.acked.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// So many more messages are acknowledged in every group; what that took.
    pub(super) async fn progress(&self, messages: u64) -> Duration {
        let (began, before) = (Instant::now(), self.acked());
        let arrived = || self.acked().iter().zip(&before).all(|(now, before)| *now >= before + messages);
        wait("every group goes on", arrived).await;
        began.elapsed()
    }

    /// Everybody stops, then reads everything, and the oracle judges.
    pub(super) async fn judge(mut self) {
        self.over.store(true, Relaxed);
        while let Some(sender) = timeout(PATIENCE, self.senders.join_next()).await.expect("every send is answered") {
            sender.unwrap().expect("no send fails");
        }
        for group in &self.groups {
            let mut heads = Vec::new();
            for client in &self.clients {
                let reading = client.read_all(*group, 0, true);
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
