//! Presence and typing through real sockets: several people, several devices, reconnections and a crash.

use std::{sync::Arc, time::Duration};

use chappe_loadtest::{
    client::{Client, Failure, Happened, Options, Stream, http::Http},
    history::{History, What},
};
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);
/// The server's grace for whoever may come back, and a little.
const GONE: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(3);

async fn join(url: &str, user: &str, device: &str, history: &Arc<History>) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    let options = Options { history: Some(Arc::clone(history)), device: device.to_owned(), ..Options::default() };
    Client::connect(url, user, &token, options).await.unwrap()
}

async fn hear(stream: &mut Stream, name: &str, within: Duration) -> Happened {
    loop {
        let event = stream.event(within).await.unwrap_or_else(|| panic!("no {name} was heard"));
        if event.name == name {
            return event;
        }
    }
}

/// Hears until somebody is shown like this.
async fn see(stream: &mut Stream, user: &str, status: &str, within: Duration) -> Value {
    loop {
        let event = hear(stream, "presence.changed", within).await;
        if event.data["user"] == user && event.data["status"] == status {
            return event.data;
        }
    }
}

/// What is heard of presence and typing in a while.
async fn soft(stream: &mut Stream, within: Duration) -> Vec<Happened> {
    let mut heard = Vec::new();
    while let Some(event) = stream.event(within).await {
        if event.seq == 0 && event.name != "inbox.changed" {
            heard.push(event);
        }
    }
    heard
}

fn watch(users: &[&str], group: Uuid) -> Value {
    json!({ "users": users.iter().map(|user| json!({ "user": user, "conversation": group })).collect::<Vec<_>>() })
}

/// Threads: matrix-org/synapse#3971 (presence goes to who looks, and to nobody else), RocketChat/Rocket.Chat#21182 (a
/// reconnection is no news).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_who_is_there_and_who_writes() {
    let mut server = super::server().await;
    let (url, history) = (server.url(), History::in_memory());
    let there = |user: &str, on: bool| {
        history.record(What::Presence { user: history.user(user), conversation: None, on });
    };
    let (ada, mut ada_hears) = join(&url, "ada", "phone", &history).await;
    let (laptop, mut laptop_hears) = join(&url, "ada", "laptop", &history).await;
    let (bob, mut bob_hears) = join(&url, "bob", "phone", &history).await;
    let (eve, _eve_hears) = join(&url, "eve", "phone", &history).await;
    let (mallory, mut mallory_hears) = join(&url, "mallory", "phone", &history).await;
    let group = ada.create_group("trip", &["bob", "eve"]).await.unwrap();
    hear(&mut bob_hears, "conversation.created", SOON).await;
    there("bob", true);
    there("eve", true);

    // Whoever looks is told how it is, then what changes.
    ada.request("presence.watch", watch(&["bob", "eve"], group)).await.unwrap();
    see(&mut ada_hears, "bob", "online", SOON).await;
    bob.request("presence.away", json!({ "away": true })).await.unwrap();
    see(&mut ada_hears, "bob", "away", SOON).await;
    let (tablet, mut tablet_hears) = join(&url, "bob", "tablet", &history).await;
    see(&mut ada_hears, "bob", "online", SOON).await;
    bob.request("presence.away", json!({ "away": false })).await.unwrap();
    // One device goes, another one loses its network and is back: that is no news. Ada's laptop looks at nobody.
    tablet.break_connection();
    bob.break_connection();
    bob.request("conversation.get", json!({ "conversation": group })).await.unwrap();
    assert_eq!(soft(&mut ada_hears, QUIET).await, []);
    assert_eq!(soft(&mut laptop_hears, Duration::from_millis(10)).await, []);

    // A stranger sees what nobody else would either, over every transport.
    mallory.request("presence.watch", watch(&["bob", "nobody"], group)).await.unwrap();
    for _ in 0..2 {
        let shown = hear(&mut mallory_hears, "presence.changed", SOON).await.data;
        assert_eq!((&shown["status"], shown.get("last_seen")), (&json!("offline"), None), "{shown}");
    }
    let http = Http::new(&url);
    let (token, stranger) = (http.token("eve").await.unwrap(), http.token("mallory").await.unwrap());
    let look = async |token: &str, user: &str| {
        let path = format!("/v1/presence/{user}?conversation={group}");
        http.call(Method::GET, &path, Some(token), None).await.unwrap().json().unwrap()
    };
    assert_eq!(look(&stranger, "bob").await, json!({ "user": "bob", "status": "offline" }));
    assert_eq!(look(&token, "bob").await, json!({ "user": "bob", "status": "online" }));

    // Eve does not want to be seen; she sees for herself.
    let hide = json!({ "invisible": true });
    let hidden = http.call(Method::PATCH, "/v1/presence", Some(&token), Some(&hide)).await.unwrap();
    assert_eq!(hidden.json().unwrap(), json!({ "invisible": true, "changed": true }));
    there("eve", false);
    let seen = see(&mut ada_hears, "eve", "offline", SOON).await["last_seen"].clone();
    assert!(seen.is_string());
    assert_eq!(look(&token, "eve").await["invisible"], true);

    // Writing is told to who has the conversation open, not to the writer's own devices, and ends by itself.
    for client in [&ada, &laptop, &bob, &tablet] {
        client.open(group);
    }
    // The opening is on the way before it.
    bob.request("conversation.get", json!({ "conversation": group })).await.unwrap();
    tablet.request("conversation.get", json!({ "conversation": group })).await.unwrap();
    let typing = |user: &str, on: bool| {
        let conversation = Some(history.conversation(group));
        history.record(What::Presence { user: history.user(user), conversation, on });
    };
    typing("ada", true);
    let started = ada.request("typing.start", json!({ "conversation": group })).await.unwrap();
    assert_eq!(started["shown"], true);
    for hears in [&mut bob_hears, &mut tablet_hears] {
        assert_eq!(hear(hears, "typing.started", SOON).await.sender.as_deref(), Some("ada"));
    }
    for hears in [&mut bob_hears, &mut tablet_hears] {
        assert_eq!(hear(hears, "typing.stopped", SOON).await.conversation, group);
    }
    typing("ada", false);
    ada.request("typing.start", json!({ "conversation": group })).await.unwrap();
    hear(&mut bob_hears, "typing.started", SOON).await;
    ada.send(group, &json!({ "text": "the sea" })).await.unwrap();
    let mut ended = [bob_hears.event(SOON).await.unwrap().name, bob_hears.event(SOON).await.unwrap().name];
    ended.sort_unstable();
    assert_eq!(ended, ["message.new", "typing.stopped"], "a message ends it at once");
    assert_eq!(soft(&mut laptop_hears, QUIET).await, []);

    // The server dies and comes back; everybody is there again, and who was hidden still is.
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    ada.request("presence.watch", watch(&["bob", "eve"], group)).await.unwrap();
    bob.request("conversation.get", json!({ "conversation": group })).await.unwrap();
    eve.request("conversation.get", json!({ "conversation": group })).await.unwrap();
    see(&mut ada_hears, "bob", "online", SOON).await;
    assert_eq!(look(&http.token("bob").await.unwrap(), "eve").await["last_seen"], seen, "nothing of it has moved");
    assert!(soft(&mut ada_hears, QUIET).await.iter().all(|event| event.data["status"] != "online"));

    // Eve shows herself and leaves: seen, and after a while gone.
    eve.request("presence.update", json!({ "invisible": false })).await.unwrap();
    see(&mut ada_hears, "eve", "online", SOON).await;
    there("eve", false);
    eve.stop().await;

    // Who is removed is seen no more, sees nothing more, and writes no more.
    bob.request("presence.watch", watch(&["ada"], group)).await.unwrap();
    see(&mut bob_hears, "ada", "online", SOON).await;
    typing("bob", true);
    bob.request("typing.start", json!({ "conversation": group })).await.unwrap();
    hear(&mut ada_hears, "typing.started", SOON).await;
    there("bob", false);
    typing("bob", false);
    ada.request("member.remove", json!({ "conversation": group, "user": "bob" })).await.unwrap();
    let mut heard = (false, false);
    while heard != (true, true) {
        let event = ada_hears.event(SOON).await.unwrap();
        heard.0 |= event.name == "typing.stopped" && event.sender.as_deref() == Some("bob");
        heard.1 |= event.name == "presence.changed" && event.data == json!({ "user": "bob", "status": "offline" });
    }
    see(&mut bob_hears, "ada", "offline", SOON).await;
    let Err(Failure::Refused(refusal)) = bob.request("typing.start", json!({ "conversation": group })).await else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, "conversation.not_found");
    ada.request("typing.start", json!({ "conversation": group })).await.unwrap();
    ada.request("presence.away", json!({ "away": true })).await.unwrap();
    let shown = see(&mut ada_hears, "eve", "offline", GONE).await;
    assert!(shown["last_seen"].as_str() > seen.as_str(), "{shown}");
    assert_eq!(soft(&mut bob_hears, QUIET).await, []);
    for client in [ada, laptop, bob, tablet, mallory] {
        client.stop().await;
    }
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}
