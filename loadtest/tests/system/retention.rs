//! Messages that are kept for a time only, through real sockets: gone for everybody, from the store too, whoever asks or nobody,
//! through a crash.

use std::time::{Duration, Instant};

use chappe_loadtest::{
    client::{Client, Options, Stream, http::Http},
    server::{Server, Setup},
};
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{refused, say};

const SOON: Duration = Duration::from_secs(20);

async fn join(url: &str, user: &str) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    Client::connect(url, user, &token, Options::default()).await.unwrap()
}

/// A server that keeps messages for so long.
async fn keeping(retention: &str) -> Server {
    let args = ["--set", "gateway.drain_window=200ms", "--set", &format!("node.retention={retention}")];
    let args = args.map(str::to_owned).to_vec();
    super::start(Setup { unlimited: true, args, ..Setup::default() }).await.unwrap()
}

/// A user over HTTP.
struct Asking {
    http: Http,
    token: String,
}

impl Asking {
    async fn new(url: &str, user: &str) -> Self {
        let http = Http::new(url);
        let token = http.token(user).await.unwrap();
        Self { http, token }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.http.call(method, path, Some(&self.token), body).await.unwrap();
        (answer.status, answer.json().unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, None).await
    }

    /// Waits until what stands in the conversation has gone.
    async fn until_empty(&self, conversation: Uuid) {
        let begin = Instant::now();
        loop {
            let (status, page) = self.get(&format!("/v1/conversations/{conversation}/messages")).await;
            assert_eq!(status, 200, "{page}");
            if page["messages"].as_array().unwrap().is_empty() {
                return;
            }
            assert!(begin.elapsed() < SOON, "it is kept for ever: {page}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What the server has counted so far.
async fn purged(server: &Server) -> u64 {
    let text = Http::new(&server.admin_url()).text("/metrics").await.unwrap();
    let line = text.lines().find(|line| line.starts_with("chappe_node_purged_events_total")).unwrap().to_owned();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Threads: mattermost#22524, retention for money only; synapse#3364, purging that makes disks fuller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_overdue_is_gone_for_everybody() {
    let mut server = keeping("3s").await;
    let url = server.url();
    let ((ada, _ada), (bob, mut bob_hears)) = (join(&url, "ada").await, join(&url, "bob").await);
    let eve = Asking::new(&url, "eve").await;
    let trip = ada.create_group("trip", &["bob", "eve"]).await.unwrap();
    let direct = ada.direct("bob").await.unwrap();
    let old = say(&ada, trip, "old").await;
    let edited = say(&bob, trip, "worse").await;
    bob.change(trip, edited, Some(json!({ "text": "better" }))).await.unwrap();
    bob.react(trip, old, "👍", true).await.unwrap();
    say(&ada, direct, "between us").await;
    let shown = eve.get("/v1/conversations").await.1["conversations"][0].clone();
    assert_eq!((&shown["unread"], &shown["last"]["text"]), (&json!(2), &json!("better")), "{shown}");

    // Nobody asks for anything: members hear of it all the same.
    let floor = loop {
        let event = bob_hears.event(SOON).await.expect("nothing is removed");
        if event.name == "history.purged" && event.conversation == trip {
            assert_eq!(event.sender.as_deref(), Some(""), "nobody did it");
            assert_eq!(event.data["floor_n"], 2);
            break event.data["floor"].as_u64().unwrap();
        }
    };
    assert_eq!(floor, edited + 2, "with everything that was done to it");
    eve.until_empty(trip).await;
    let path = |rest: &str| format!("/v1/conversations/{trip}{rest}");
    for gone in [path(&format!("/messages/{old}")), path(&format!("/messages/{edited}/history"))] {
        assert_eq!(eve.get(&gone).await.0, 404, "{gone}");
    }
    let (status, problem) = eve.get(&path("/events?after=0")).await;
    assert_eq!((status, &problem["code"]), (410, &json!("history.purged")), "{problem}");
    let (_, view) = eve.get(&path("")).await;
    assert_eq!(view["conversation"]["floor"], floor, "{view}");
    let (status, events) = eve.get(&path(&format!("/events?after={floor}"))).await;
    assert_eq!(
        (status, &events["floor"], &events["events"][0]["event"]),
        (200, &json!(floor), &json!("history.purged"))
    );
    let shown = eve.get("/v1/conversations").await.1["conversations"][0].clone();
    assert_eq!((&shown["unread"], shown.get("last")), (&json!(0), None), "{shown}");
    assert_eq!(
        refused(&ada, "message.edit", json!({ "conversation": trip, "seq": old, "body": {} })).await,
        "message.not_found"
    );
    let bobs = Asking::new(&url, "bob").await;
    bobs.until_empty(direct).await;

    // The store is rid of it.
    let begin = Instant::now();
    while purged(&server).await < floor + 2 {
        assert!(begin.elapsed() < SOON, "the store keeps it: {} events are gone", purged(&server).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // What is said later is there, through a crash; and goes in its turn.
    let young = say(&ada, trip, "young").await;
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    let (_, page) = eve.get(&path("/messages")).await;
    let seqs: Vec<u64> = page["messages"].as_array().unwrap().iter().map(|one| one["seq"].as_u64().unwrap()).collect();
    assert!(seqs == [young] || seqs.is_empty(), "{page}");
    assert_eq!(eve.get(&path("")).await.1["conversation"]["n"], 3);
    eve.until_empty(trip).await;
    for client in [ada, bob] {
        client.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_say_how_long_messages_are_kept() {
    let mut server = super::server().await;
    let url = server.url();
    let (ada, bob) = (Asking::new(&url, "ada").await, Asking::new(&url, "bob").await);
    let group = json!({ "kind": "group", "members": ["bob"], "retention_secs": 86_400 });
    let (status, made) = ada.call(Method::POST, "/v1/conversations", Some(&group)).await;
    assert_eq!((status, &made["conversation"]["retention_secs"]), (201, &json!(86_400)), "{made}");
    let path = format!("/v1/conversations/{}", made["conversation"]["id"].as_str().unwrap());
    let keep = |secs: u64| json!({ "retention_secs": secs });
    assert_eq!(bob.call(Method::PATCH, &path, Some(&keep(60))).await.0, 403);
    for nonsense in [1, 59, 4_000_000_000] {
        let (status, problem) = ada.call(Method::PATCH, &path, Some(&keep(nonsense))).await;
        assert_eq!((status, &problem["field"]), (422, &json!("retention_secs")), "{problem}");
    }
    let (_, changed) = ada.call(Method::PATCH, &path, Some(&keep(60))).await;
    assert_eq!(changed["changed"], true);
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(bob.get(&path).await.1["conversation"]["retention_secs"], 60);
    let events = bob.get(&format!("{path}/events?after=0")).await.1;
    assert_eq!(events["events"][1]["data"]["retention_secs"], 60, "{events}");
    assert_eq!(ada.call(Method::PATCH, &path, Some(&keep(0))).await.1["changed"], true);
    assert_eq!(bob.get(&path).await.1["conversation"].get("retention_secs"), None, "for ever");
    let direct = json!({ "kind": "direct", "with": "bob", "retention_secs": 60 });
    assert_eq!(ada.call(Method::POST, "/v1/conversations", Some(&direct)).await.0, 422);
}
