//! A server, its clients under load, and the judgement at the end.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::{Client, Failure, News, Options, Stream},
    history::{self, History, What},
    oracle::Verdict,
    server::{Server, Setup},
    weather::{
        self,
        dice::{self, Dice},
    },
};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

/// How long anything may take that should take a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The faults take turns: they are judged by what they do to one server on a machine that is otherwise quiet.
pub(crate) struct Turn {
    _held: MutexGuard<'static, ()>,
    name: &'static str,
    began: Instant,
}

/// Takes a turn and rolls the dice.
pub(crate) fn turn(name: &'static str) -> (Turn, Dice) {
    static TURN: Mutex<()> = Mutex::new(());
    let held = TURN.lock();
    let dice = Dice::new();
    println!("{name}: {dice}");
    (Turn { _held: held, name, began: Instant::now() }, dice)
}

impl Drop for Turn {
    fn drop(&mut self) {
        println!("{}: took {:.1} s", self.name, self.began.elapsed().as_secs_f64());
    }
}

/// A size from the environment.
pub(crate) fn size(name: &str, gate: u64) -> u64 {
    dice::number(name).unwrap_or(gate)
}

/// Whether a fault can be made here; see [`weather::can`].
pub(crate) fn can(available: Result<(), String>) -> bool {
    weather::can(available).unwrap_or_else(|why| panic!("{why}"))
}

/// How our servers are started.
pub(crate) fn setup() -> Setup {
    let binary = std::env::var_os("CHAPPE_TEST_NODE").map(PathBuf::from);
    // Small tables: they are flushed and merged all the time, under every fault.
    let small = ["--set", "store.log_memtable_size=128KiB", "--set", "store.table_memtable_size=64KiB"];
    Setup { binary, unlimited: true, args: small.map(str::to_owned).into(), ..Setup::default() }
}

/// A server and its clients.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) history: Arc<History>,
    pub(crate) members: Vec<Member>,
    pub(crate) conversations: Vec<Conversation>,
}

pub(crate) struct Member {
    pub(crate) client: Arc<Client>,
}

#[derive(Clone)]
pub(crate) struct Conversation {
    pub(crate) id: Uuid,
    /// Indexes of its members.
    pub(crate) members: Vec<usize>,
}

/// Clients that try hard: short pauses, long patience.
pub(crate) fn options(history: Option<Arc<History>>) -> Options {
    Options {
        history,
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(200),
        answer_timeout: Duration::from_secs(10),
        give_up: Duration::from_secs(120),
        ..Options::default()
    }
}

impl World {
    /// A server on `setup`, six members, a conversation of all, one of three, a direct one.
    pub(crate) async fn begin(setup: Setup) -> Self {
        Self::around(Server::start(setup).await.unwrap()).await
    }

    pub(crate) async fn around(server: Server) -> Self {
        let history = History::in_memory();
        let mut members = Vec::new();
        for name in ["ada", "bob", "cyd", "dan", "eve", "fay"] {
            members.push(Member { client: connect(&server, name, Some(&history)).await });
        }
        let ada = &members[0].client;
        let conversations = vec![
            Conversation {
                id: ada.create_group("all", &["bob", "cyd", "dan", "eve", "fay"]).await.unwrap(),
                members: (0..6).collect(),
            },
            Conversation { id: ada.create_group("three", &["bob", "cyd"]).await.unwrap(), members: vec![0, 1, 2] },
            Conversation { id: members[3].client.direct("eve").await.unwrap(), members: vec![3, 4] },
        ];
        Self { server, history, members, conversations }
    }

    /// Sends from everybody to everywhere until told to stop, `lanes` messages per member in flight.
    pub(crate) fn load(&self, lanes: usize, dice: &mut Dice) -> Load {
        let load = Load { stop: Arc::default(), acked: Arc::default(), lanes: JoinSet::new() };
        self.add_lanes(load, lanes, dice)
    }

    fn add_lanes(&self, mut load: Load, lanes: usize, dice: &mut Dice) -> Load {
        for (index, member) in self.members.iter().enumerate() {
            let mine: Vec<Uuid> =
                self.conversations.iter().filter(|c| c.members.contains(&index)).map(|c| c.id).collect();
            for _ in 0..lanes {
                let (client, mine, mut dice) = (Arc::clone(&member.client), mine.clone(), dice.fork());
                let (stop, acked) = (Arc::clone(&load.stop), Arc::clone(&load.acked));
                load.lanes.spawn(async move {
                    while !stop.load(Relaxed) {
                        client.send(*dice.pick(&mine), &body(&mut dice)).await?;
                        acked.fetch_add(1, Relaxed);
                    }
                    Ok(())
                });
            }
        }
        load
    }

    /// Everybody reads everything, the oracle judges.
    pub(crate) async fn judge(&self) -> Verdict {
        for conversation in &self.conversations {
            let mut heads = Vec::new();
            for member in &conversation.members {
                let reading = self.members[*member].client.read_all(conversation.id, 0, true);
                heads.push(timeout(PATIENCE, reading).await.expect("a final read ends").unwrap());
            }
            assert!(heads.windows(2).all(|pair| pair[0] == pair[1]), "members see different heads: {heads:?}");
        }
        self.history.verdict().unwrap()
    }

    /// As [`Self::judge`], and the verdict must be clean.
    pub(crate) async fn judge_clean(&self) -> Verdict {
        let verdict = self.judge().await;
        println!("{verdict}");
        assert!(verdict.is_clean(), "promises were broken; the server's last words:\n{}", self.server.last_words());
        assert_eq!(verdict.stats.acked_unread, 0);
        assert_eq!(verdict.stats.unknown, 0, "no send was given up");
        self.no_panics();
        verdict
    }

    /// The server has never panicked.
    pub(crate) fn no_panics(&self) {
        let log = std::fs::read(self.server.data_dir().with_extension("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let panic = log.lines().find(|line| line.contains("panicked"));
        assert!(panic.is_none(), "the server panicked: {panic:?}");
    }

    /// Notes a send that is about to happen outside of our clients.
    pub(crate) fn note_send(&self, user: &str, conversation: Uuid, id: Uuid, body: &Value) {
        let hash = history::hash(body.to_string().as_bytes());
        let (user, conversation) = (self.history.user(user), self.history.conversation(conversation));
        self.history.record(What::SendStart { user, conversation, id, hash });
    }

    /// Notes its acknowledgement.
    pub(crate) fn note_ack(&self, id: Uuid, seq: u64) {
        self.history.record(What::Ack { id, seq });
    }

    /// Waits until so many further messages have been acknowledged.
    pub(crate) async fn progress(&self, load: &Load, messages: u64) {
        let goal = load.acked.load(Relaxed) + messages;
        let arrived = async {
            while load.acked.load(Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, arrived)
            .await
            .unwrap_or_else(|_| panic!("no progress; last words:\n{}", self.server.last_words()));
    }
}

/// A connected client whose news are thrown away.
pub(crate) async fn connect(server: &Server, name: &str, history: Option<&Arc<History>>) -> Arc<Client> {
    let (client, mut stream) = connect_heard(server, name, history).await;
    tokio::spawn(async move {
        while let Some(news) = stream.next().await {
            if let News::Down(why, true) = news
                && why != chappe_loadtest::client::Down::Stopped
            {
                println!("a client ended: {why}");
            }
        }
    });
    Arc::new(client)
}

/// A connected client and what it hears.
pub(crate) async fn connect_heard(server: &Server, name: &str, history: Option<&Arc<History>>) -> (Client, Stream) {
    let token = server.signer().unwrap().sign(name).unwrap();
    Client::connect(&server.url(), name, &token, options(history.cloned())).await.unwrap()
}

/// A body: mostly short, sometimes larger than a sector or a page of the disk.
pub(crate) fn body(dice: &mut Dice) -> Value {
    let length = *dice.pick(&[5, 50, 50, 200, 200, 700, 5000]);
    let text: String = (0..length).map(|_| char::from(b'a' + dice.below(26) as u8)).collect();
    json!({ "text": text })
}

/// Running senders.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) acked: Arc<AtomicU64>,
    lanes: JoinSet<Result<(), Failure>>,
}

impl Load {
    /// Stops them and waits for the answers that are still due; returns how many messages were acknowledged.
    pub(crate) async fn stop(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        let ended = async {
            while let Some(lane) = self.lanes.join_next().await {
                if let Err(failure) = lane.unwrap() {
                    panic!("a send failed: {failure}");
                }
            }
        };
        timeout(PATIENCE, ended).await.expect("every send is answered in the end");
        self.acked.load(Relaxed)
    }
}
