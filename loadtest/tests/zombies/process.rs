//! The same with whole servers: one is stopped by a signal under load, another one founds the cluster anew on the same keyspace,
//! and then the first one goes on.

use std::{path::PathBuf, sync::Arc, time::Duration};

use chappe_loadtest::{
    client::http::Http,
    history::{self, Fact, History, What},
    server::{Server, Setup},
};
use chappe_node::store::cql::{Config, real};
use hyper::Method;
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

/// Requests that are under way at once.
const SENDERS: usize = 8;

/// Acknowledgements before the first server is stopped.
const ENOUGH: usize = 200;

/// How long nobody runs between the two servers, so that what the first one had under way has an end.
const STILL: Duration = Duration::from_millis(300);

fn setup(config: &Config, founding: u16) -> Setup {
    let settings = [
        "server.store=cql".to_owned(),
        format!("cql.contact_points={:?}", config.contact_points),
        format!("cql.keyspace={}", config.keyspace),
        format!("cql.replication_factor={}", config.replication_factor),
    ];
    let mut args: Vec<String> = settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect();
    if founding > 1 {
        args.push(format!("--force-new-cluster={founding}"));
    }
    let ours = std::env::current_exe().unwrap();
    let binary = std::env::var_os("CHAPPE_TEST_NODE").map(PathBuf::from);
    let binary = binary.or_else(|| Some(ours.ancestors().nth(2).unwrap().join("chappe-node")));
    Setup { binary, unlimited: true, args, ..Setup::default() }
}

/// A user at a server, over HTTP.
#[derive(Clone)]
struct User {
    http: Http,
    token: String,
}

impl User {
    fn of(server: &Server) -> Self {
        Self { http: Http::new(&server.url()), token: server.signer().unwrap().sign("ada").unwrap() }
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let answer = self.http.call(Method::POST, path, Some(&self.token), Some(body)).await?;
        Ok((answer.status, answer.json()?))
    }

    /// Sends a message; its seq, if it is acknowledged.
    async fn send(&self, conversation: Uuid, message: &Message) -> Option<u64> {
        let path = format!("/v1/conversations/{conversation}/messages");
        let body = json!({ "client_msg_id": message.id, "body": message.body() });
        let (status, answer) = self.post(&path, &body).await.ok()?;
        (status < 300).then(|| answer["seq"].as_u64().unwrap())
    }
}

#[derive(Clone, Debug)]
struct Message {
    id: Uuid,
    text: String,
}

impl Message {
    fn fresh() -> Self {
        let id = Uuid::now_v7();
        Self { id, text: id.simple().to_string() }
    }

    fn body(&self) -> Value {
        json!({ "text": self.text })
    }
}

/// What was asked and not answered, and how often something was.
#[derive(Default)]
struct Asked {
    open: Vec<Message>,
    acknowledged: usize,
}

/// Everything that a reader sees, as the oracle wants it: by the read's number, and whether nothing may be missing in it.
async fn read(history: &History, user: &User, conversation: Uuid, (number, last): (u32, bool)) {
    let read = history::Read(number);
    let (reader, at) = (history.user("ada"), history.conversation(conversation));
    history.record(What::ReadStart { read, user: reader, conversation: at, after: 0, last });
    let mut after = 0;
    loop {
        let path = format!("/v1/conversations/{conversation}/events?after={after}&limit=200");
        let answer = user.http.call(Method::GET, &path, Some(&user.token), None).await.unwrap();
        let page = answer.json().unwrap();
        assert_eq!(answer.status, 200, "{page}");
        for event in page["events"].as_array().unwrap() {
            after = event["seq"].as_u64().unwrap();
            let fact = if event["event"] == "message.new" {
                let hash = history::hash(event["data"]["body"].to_string().as_bytes());
                Fact::Message { id: event["id"].as_str().unwrap().parse().unwrap(), hash: Some(hash) }
            } else {
                Fact::Other { mark: history::hash(event["event"].as_str().unwrap().as_bytes()) }
            };
            history.record(What::ReadItem { read, seq: after, fact });
        }
        let head = page["head"].as_u64().unwrap();
        if after >= head {
            history.record(What::ReadEnd { read, head });
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_ends_when_it_goes_on_and_nothing_acknowledged_has_changed() {
    let Some(config) = tokio::task::spawn_blocking(|| real::one_server("stopped")).await.unwrap() else { return };
    let history = History::in_memory();
    let mut old = Server::start(setup(&config, 1)).await.unwrap();
    let user = User::of(&old);
    let (status, created) =
        user.post("/v1/conversations", &json!({ "kind": "group", "title": "all", "members": ["bob"] })).await.unwrap();
    assert_eq!(status, 201, "{created}");
    let conversation: Uuid = created["conversation"]["id"].as_str().unwrap().parse().unwrap();

    let asked = Arc::new(Mutex::new(Asked::default()));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (user, history, asked) = (user.clone(), Arc::clone(&history), Arc::clone(&asked));
        senders.spawn(async move {
            loop {
                let message = Message::fresh();
                let hash = history::hash(message.body().to_string().as_bytes());
                let (sender, at) = (history.user("ada"), history.conversation(conversation));
                history.record(What::SendStart { user: sender, conversation: at, id: message.id, hash });
                let Some(seq) = user.send(conversation, &message).await else {
                    // The server is gone, or refuses: whoever asked knows nothing.
                    return asked.lock().open.push(message);
                };
                history.record(What::Ack { id: message.id, seq });
                asked.lock().acknowledged += 1;
            }
        });
    }
    while asked.lock().acknowledged < ENOUGH {
        sleep(Duration::from_millis(1)).await;
    }
    old.signal(Signal::STOP).unwrap();
    sleep(STILL).await;

    // Ready: the sessions of before are fenced, everything is owned.
    let new = Server::start(setup(&config, 2)).await.unwrap();
    let successor = User::of(&new);
    read(&history, &successor, conversation, (1, false)).await;
    for _ in 0..20 {
        let message = Message::fresh();
        let hash = history::hash(message.body().to_string().as_bytes());
        let (sender, at) = (history.user("ada"), history.conversation(conversation));
        history.record(What::SendStart { user: sender, conversation: at, id: message.id, hash });
        let seq = successor.send(conversation, &message).await.expect("an acknowledgement");
        history.record(What::Ack { id: message.id, seq });
    }
    old.signal(Signal::CONT).unwrap();
    let status = old.ended().await.unwrap();
    assert!(!status.success(), "{status}: {}", old.last_words());
    assert!(
        old.last_words().contains("of another owner") || old.last_words().contains("generation"),
        "{}",
        old.last_words()
    );
    while let Some(sender) = senders.join_next().await {
        sender.unwrap();
    }
    // Whoever was not answered asks the server that there is.
    let open = std::mem::take(&mut asked.lock().open);
    assert_eq!(open.len(), SENDERS, "each had one message under way");
    for message in &open {
        let seq = successor.send(conversation, message).await.expect("an acknowledgement");
        history.record(What::Ack { id: message.id, seq });
    }
    read(&history, &successor, conversation, (2, true)).await;
    let verdict = history.verdict().unwrap();
    println!("{verdict}");
    assert!(verdict.is_clean(), "{}", new.last_words());
}
