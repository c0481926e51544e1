//! Reactions through real sockets: live, over HTTP, through reconnections and a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chappe_loadtest::{
    client::{Client, Failure, Happened, Options, Stream, http::Http},
    history::{History, What},
};
use hyper::Method;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const KEYS: [&str; 3] = ["👍", "❤️", "party_parrot"];

async fn join(url: &str, user: &str, history: &Arc<History>) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    let options = Options { history: Some(Arc::clone(history)), ..Options::default() };
    Client::connect(url, user, &token, options).await.unwrap()
}

async fn hear(stream: &mut Stream, name: &str) -> Happened {
    loop {
        let event = stream.event(SOON).await.unwrap_or_else(|| panic!("no {name} was heard"));
        if event.name == name {
            return event;
        }
    }
}

/// What a client has made of the events it heard: who reacts to which message with what.
#[derive(Debug, Default, PartialEq)]
struct Picture(BTreeMap<u64, BTreeMap<String, BTreeSet<String>>>);

impl Picture {
    fn take(&mut self, event: &Happened) {
        let Some(target) = event.target else { return };
        if event.name == "message.deleted" {
            self.0.remove(&target);
        }
        let (Some(key), Some(sender)) = (event.data["key"].as_str(), event.sender.clone()) else { return };
        let users = self.0.entry(target).or_default().entry(key.to_owned()).or_default();
        match event.name.as_str() {
            "reaction.added" => assert!(users.insert(sender), "an event for what was so already: {event:?}"),
            "reaction.removed" => assert!(users.remove(&sender), "an event for what was so already: {event:?}"),
            _ => {}
        }
        self.0.entry(target).or_default().retain(|_, users| !users.is_empty());
        self.0.retain(|_, keys| !keys.is_empty());
    }

    /// What a page of messages must show to `reader`.
    fn shown(&self, reader: &str, seq: u64) -> BTreeMap<String, (u64, bool)> {
        let keys = self.0.get(&seq).into_iter().flatten();
        keys.map(|(key, users)| (key.clone(), (users.len() as u64, users.contains(reader)))).collect()
    }
}

fn shown(message: &Value) -> BTreeMap<String, (u64, bool)> {
    let reactions = message["reactions"].as_array().into_iter().flatten();
    reactions
        .map(|one| {
            let key = one["key"].as_str().unwrap().to_owned();
            (key, (one["count"].as_u64().unwrap(), one["mine"].as_bool().unwrap()))
        })
        .collect()
}

/// Thread: tinode/chat#693, open since 2021: reactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reactions_are_live_counted_and_told_over_every_transport() {
    let mut server = super::server().await;
    let (url, history) = (server.url(), History::in_memory());
    let ((ada, mut ada_hears), (bob, mut bob_hears)) =
        (join(&url, "ada", &history).await, join(&url, "bob", &history).await);
    let group = ada.create_group("trip", &["bob", "eve"]).await.unwrap();
    let seq = ada.send(group, &json!({ "text": "where to?" })).await.unwrap().seq;
    hear(&mut bob_hears, "message.new").await;

    // Over the WebSocket; everybody hears of it, who did it too.
    assert_eq!(bob.react(group, seq, "👍", true).await.unwrap()["changed"], true);
    assert_eq!(bob.react(group, seq, "👍", true).await.unwrap()["changed"], false);
    let added = hear(&mut ada_hears, "reaction.added").await;
    assert_eq!((added.target, added.sender.as_deref(), &added.data), (Some(seq), Some("bob"), &json!({ "key": "👍" })));
    assert_eq!(hear(&mut bob_hears, "reaction.added").await.seq, added.seq);

    // Over HTTP, whatever the key is made of.
    let http = Http::new(&url);
    let token = http.token("eve").await.unwrap();
    let path = |key: &str| format!("/v1/conversations/{group}/messages/{seq}/reactions/{key}");
    for (method, key, changed) in [
        (Method::PUT, "%F0%9F%91%8D", true),
        (Method::PUT, "a%2Fb%3F%23%25", true),
        (Method::DELETE, "a%2Fb%3F%23%25", true),
        (Method::DELETE, "a%2Fb%3F%23%25", false),
    ] {
        let answer = http.call(method, &path(key), Some(&token), None).await.unwrap();
        assert_eq!((answer.status, &answer.json().unwrap()["changed"]), (200, &json!(changed)));
    }
    let who = http.call(Method::GET, &format!("{}?limit=1", path("%F0%9F%91%8D")), Some(&token), None).await.unwrap();
    let who = who.json().unwrap();
    assert_eq!(
        (&who["count"], &who["reactions"][0]["user"], &who["next_cursor"]),
        (&json!(2), &json!("bob"), &json!("bob"))
    );
    assert_eq!(hear(&mut ada_hears, "reaction.added").await.sender.as_deref(), Some("eve"));
    let odd = hear(&mut ada_hears, "reaction.removed").await;
    assert_eq!(odd.data["key"], "a/b?#%");

    // Who was not there catches up; what is acknowledged survives a crash.
    bob.break_connection();
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    ada.react(group, seq, "❤️", true).await.unwrap();
    let late = hear(&mut bob_hears, "reaction.removed").await;
    assert_eq!(late.seq, odd.seq, "heard after the reconnection, if not before");
    assert_eq!(hear(&mut bob_hears, "reaction.added").await.data["key"], "❤️");
    let messages = bob.messages(group, false).await.unwrap();
    let expected = [("👍".to_owned(), (2, true)), ("❤️".to_owned(), (1, false))];
    assert_eq!(shown(&messages[0]), BTreeMap::from(expected));

    // Who is removed still counts, and neither does nor learns anything any more.
    ada.request("member.remove", json!({ "conversation": group, "user": "bob" })).await.unwrap();
    let Err(Failure::Refused(refusal)) = bob.react(group, seq, "👍", false).await else { panic!("not refused") };
    assert_eq!(refusal.code, "conversation.not_found");
    hear(&mut bob_hears, "member.left").await;
    ada.react(group, seq, "❤️", false).await.unwrap();
    assert_eq!(bob_hears.event(Duration::from_millis(300)).await, None);
    assert_eq!(shown(&ada.messages(group, false).await.unwrap()[0]), BTreeMap::from([("👍".to_owned(), (2, false))]));

    // A deleted message has none and takes none.
    ada.change(group, seq, None).await.unwrap();
    assert_eq!(shown(&ada.messages(group, true).await.unwrap()[0]), BTreeMap::new());
    let Err(Failure::Refused(refusal)) = ada.react(group, seq, "👍", true).await else { panic!("not refused") };
    assert_eq!(refusal.code, "message.deleted");
    for client in [ada, bob] {
        client.stop().await;
    }
}

/// Concurrent reactions, edits, deletions, joinings and leavings: in the end every client's own picture, every page and
/// the log agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reactions_converge_on_every_client_whatever_happens_meanwhile() {
    let mut server = super::server().await;
    let (url, history) = (server.url(), History::in_memory());
    let names = ["ada", "bob", "eve", "zoe"];
    let mut crowd = Vec::new();
    for name in names {
        crowd.push(join(&url, name, &history).await);
    }
    let group = crowd[0].0.create_group("all", &names[1..]).await.unwrap();
    let place = history.conversation(group);
    for name in names {
        history.record(What::Join { user: history.user(name), conversation: place, from: 0 });
    }
    let mut messages = Vec::new();
    for (number, (client, _)) in crowd.iter().enumerate() {
        messages.push(client.send(group, &json!({ "text": format!("message {number}") })).await.unwrap().seq);
    }
    let mut tasks = Vec::new();
    for (who, (client, hears)) in crowd.into_iter().enumerate() {
        let messages = messages.clone();
        tasks.push(tokio::spawn(async move {
            let mut luck = who as u64 + 1;
            for round in 0..60u64 {
                luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (target, key) = (messages[(luck >> 33) as usize % messages.len()], KEYS[(luck >> 40) as usize % 3]);
                if round % 20 == 7 {
                    client.break_connection();
                }
                let done = match luck >> 50 & 15 {
                    // One's own message; others' are refused, and that is right too.
                    0 => client.change(group, messages[who], Some(json!({ "text": format!("{round}") }))).await,
                    1 if round > 30 => client.change(group, messages[who], None).await,
                    _ => client.react(group, target, key, luck >> 60 & 1 == 0).await,
                };
                if let Err(failure) = done {
                    let Failure::Refused(refusal) = &failure else { panic!("{failure}") };
                    assert!(["message.deleted", "conversation.not_found"].contains(&&*refusal.code), "{failure}");
                }
            }
            (client, hears)
        }));
    }
    // Meanwhile the server dies, and somebody has to go.
    tokio::time::sleep(Duration::from_millis(150)).await;
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    let (judge, _hears) = join(&url, "ada", &history).await;
    let left = judge.request("member.remove", json!({ "conversation": group, "user": "zoe" })).await.unwrap();
    let upto = left["seq"].as_u64().unwrap();
    history.record(What::Leave { user: history.user("zoe"), conversation: place, upto });
    let mut crowd = Vec::new();
    for task in tasks {
        crowd.push(task.await.unwrap());
    }
    let head = judge.read_all(group, 0, true).await.unwrap();
    assert!(head > 60, "{head} events are not much of a storm");
    for (name, (client, hears)) in names.iter().zip(&mut crowd) {
        let is_gone = *name == "zoe";
        // Who was away when they were removed never hears of it, and of nothing that came after either.
        let patience = if is_gone { Duration::from_millis(300) } else { SOON };
        let (mut picture, mut seq) = (Picture::default(), 0);
        while seq < head {
            let Some(event) = hears.event(patience).await else { break };
            assert_eq!(event.seq, seq + 1, "{name} missed or doubled an event");
            picture.take(&event);
            seq = event.seq;
        }
        if is_gone {
            assert!(seq <= upto, "{name} heard {seq}, and was removed by {upto}");
            continue;
        }
        assert_eq!(seq, head, "{name} waits for what is there");
        client.read_all(group, 0, true).await.unwrap();
        for message in client.messages(group, true).await.unwrap() {
            let seq = message["seq"].as_u64().unwrap();
            assert_eq!(shown(&message), picture.shown(name, seq), "{name}, message {seq}");
        }
    }
    for (client, _) in crowd {
        client.stop().await;
    }
    judge.stop().await;
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}
