//! The inbox as people have it: several devices, some of them away, a server that dies in between.

use std::{collections::BTreeMap, time::Duration};

use chappe_loadtest::client::{Client, Failure, Happened, Inbox, News, Options, Stream, http::Http};
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);

async fn join(url: &str, user: &str, device: &str) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    Client::connect(url, user, &token, Options { device: device.into(), ..Options::default() }).await.unwrap()
}

/// The next event of this name.
async fn hear(stream: &mut Stream, name: &str) -> Happened {
    loop {
        let event = stream.event(SOON).await.unwrap_or_else(|| panic!("no {name} was heard"));
        if event.name == name {
            return event;
        }
    }
}

/// Waits until the device is told that it is behind.
async fn is_behind(stream: &mut Stream) {
    let told = async {
        while let Some(news) = stream.next().await {
            if news == News::Behind {
                return;
            }
        }
        panic!("the client has ended");
    };
    tokio::time::timeout(SOON, told).await.expect("nobody told the device that it is behind");
}

/// What a device shows, without the numbers of changes.
fn shown(inbox: &Inbox) -> Vec<Value> {
    let timeless = |row: &&Value| {
        let mut row = (*row).clone();
        row.as_object_mut().unwrap().remove("change");
        row
    };
    inbox.rows().iter().map(timeless).collect()
}

fn counts(inbox: &Inbox, conversation: Uuid) -> (u64, u64) {
    let row = inbox.row(conversation).unwrap();
    (row["unread"].as_u64().unwrap(), row["mentions"].as_u64().unwrap())
}

/// A message that mentions somebody; its position.
async fn tell(client: &Client, conversation: Uuid, text: &str, users: &[&str]) -> u64 {
    let args = json!({ "conversation": conversation, "client_msg_id": Uuid::now_v7(), "body": { "text": text },
        "mentions": { "users": users } });
    client.request("message.send", args).await.unwrap()["seq"].as_u64().unwrap()
}

async fn mark(client: &Client, conversation: Uuid, marking: Value) -> Value {
    let mut args = marking;
    args["conversation"] = json!(conversation);
    args["idempotency_key"] = json!(Uuid::now_v7());
    client.request("inbox.update", args).await.unwrap()
}

/// Mails of conversations to users are a moment behind the sender's acknowledgement: waits until a fresh list shows it.
async fn settled(client: &Client, until: impl Fn(&Inbox) -> bool) -> Inbox {
    for _ in 0..200 {
        let inbox = client.inbox().await.unwrap();
        if until(&inbox) {
            return inbox;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the inbox never showed it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_stay_in_step_over_reconnections_and_restarts() {
    let mut server = super::server().await;
    let url = server.url();
    let (ada, _) = join(&url, "ada", "desk").await;
    let (eve, mut eve_hears) = join(&url, "eve", "desk").await;
    let (phone, mut phone_hears) = join(&url, "bob", "phone").await;
    let (laptop, mut laptop_hears) = join(&url, "bob", "laptop").await;
    let trip = ada.create_group("trip", &["bob", "eve"]).await.unwrap();
    let work = ada.create_group("work", &["bob"]).await.unwrap();
    let direct = ada.direct("bob").await.unwrap();
    for hears in [&mut phone_hears, &mut laptop_hears] {
        for _ in 0..3 {
            hear(hears, "conversation.created").await;
        }
    }
    let mut on_phone = settled(&phone, |inbox| inbox.rows().len() == 3).await;
    let mut on_laptop = laptop.inbox().await.unwrap();
    assert_eq!(shown(&on_phone), shown(&on_laptop));
    assert_eq!(on_phone.row(direct).unwrap()["with"], "ada");

    // What is said adds up on both devices, and is what the server counts.
    let first = tell(&ada, trip, "where to?", &["bob"]).await;
    tell(&ada, trip, "the sea?", &[]).await;
    tell(&eve, trip, "bob decides", &["bob", "ada"]).await;
    for (inbox, hears) in [(&mut on_phone, &mut phone_hears), (&mut on_laptop, &mut laptop_hears)] {
        for _ in 0..3 {
            assert!(inbox.hear(&hear(hears, "message.new").await));
        }
        assert_eq!(counts(inbox, trip), (3, 2));
    }
    assert_eq!(counts(&phone.inbox().await.unwrap(), trip), (3, 2));
    assert_eq!(counts(&ada.inbox().await.unwrap(), trip), (1, 1));

    // Marks of one device reach the other.
    let marked = mark(&phone, work, json!({ "pinned": true, "marked_unread": true })).await;
    assert_eq!((&marked["pinned"], &marked["changed"]), (&json!(true), &json!(true)));
    let changed = hear(&mut laptop_hears, "inbox.changed").await;
    assert_eq!((changed.conversation, &changed.data["pinned"], changed.seq), (work, &json!(true), 0));
    assert!(on_laptop.hear(&changed));
    assert_eq!(on_laptop.rows()[0]["title"], "work");
    // Who writes has read, on all devices, and what was marked no longer is.
    tell(&laptop, work, "at it", &[]).await;
    let changed = hear(&mut phone_hears, "inbox.changed").await;
    let changed = if changed.data["marked_unread"] == json!(true) {
        hear(&mut phone_hears, "inbox.changed").await
    } else {
        changed
    };
    assert_eq!((changed.conversation, &changed.data["marked_unread"]), (work, &json!(false)));
    // A direct conversation cannot be left, but it is out of the way until the other one writes.
    let refused = phone.request("conversation.leave", json!({ "conversation": direct })).await;
    assert!(matches!(refused, Err(Failure::Refused(refusal)) if refusal.code == "conversation.fixed"));
    mark(&phone, direct, json!({ "archived": true })).await;
    let listed = phone.request("conversation.list", json!({})).await.unwrap();
    assert_eq!(listed["conversations"].as_array().unwrap().len(), 2);

    // The laptop is closed for days. Everything happens meanwhile, and the server dies without a word.
    laptop.sync_inbox(&mut on_laptop).await.unwrap();
    laptop.stop().await;
    phone.sync_inbox(&mut on_phone).await.unwrap();
    ada.change(trip, first, Some(json!({ "text": "where to go?" }))).await.unwrap();
    let hotel = tell(&ada, trip, "a hotel?", &["bob"]).await;
    tell(&ada, trip, "or a tent, all", &[]).await;
    ada.change(trip, hotel, None).await.unwrap();
    let farewell = ada.create_group("farewell", &["bob", "eve"]).await.unwrap();
    ada.request("member.remove", json!({ "conversation": farewell, "user": "bob" })).await.unwrap();
    ada.request("member.remove", json!({ "conversation": trip, "user": "eve" })).await.unwrap();
    hear(&mut eve_hears, "member.left").await;
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    tell(&ada, direct, "are you there?", &["bob"]).await;
    ada.request("conversation.update", json!({ "conversation": work, "title": "more work" })).await.unwrap();

    // The phone was there all the time, the laptop was not: both show what a fresh list shows.
    is_behind(&mut phone_hears).await;
    phone.sync_inbox(&mut on_phone).await.unwrap();
    let fresh = settled(&phone, |inbox| inbox.row(work).is_some_and(|row| row["title"] == "more work")).await;
    phone.sync_inbox(&mut on_phone).await.unwrap();
    assert_eq!(shown(&on_phone), shown(&fresh));
    // The first mention is gone with its edit, the second with its message; the third still stands.
    assert_eq!(counts(&fresh, trip), (4, 1));
    assert_eq!((counts(&fresh, direct), &fresh.row(direct).unwrap()["archived"]), ((1, 1), &json!(false)));
    assert_eq!(fresh.row(work).unwrap()["pinned"], json!(true));
    assert!(fresh.row(farewell).is_none());
    let (laptop, mut laptop_hears) = join(&url, "bob", "laptop").await;
    laptop.sync_inbox(&mut on_laptop).await.unwrap();
    assert_eq!(shown(&on_laptop), shown(&fresh));

    // A connection that breaks is told at its return whether there is more.
    laptop.break_connection();
    tell(&ada, work, "still there?", &["bob"]).await;
    is_behind(&mut laptop_hears).await;
    laptop.sync_inbox(&mut on_laptop).await.unwrap();
    let fresh = settled(&laptop, |inbox| counts(inbox, work) == (1, 1)).await;
    laptop.sync_inbox(&mut on_laptop).await.unwrap();
    assert_eq!(shown(&on_laptop), shown(&fresh));

    // Who was removed sees nothing of it, whoever asks and however.
    tell(&ada, trip, "without eve", &["eve"]).await;
    let theirs = eve.inbox().await.unwrap();
    assert!(theirs.row(trip).is_none() && theirs.row(farewell).is_some());
    let mark_it = json!({ "conversation": trip, "pinned": true });
    let refused = eve.request("inbox.update", mark_it).await;
    assert!(matches!(refused, Err(Failure::Refused(refusal)) if refusal.code == "conversation.not_found"));
    for client in [ada, eve, phone, laptop] {
        client.stop().await;
    }
}

/// What a script does: pages and changes over HTTP, without a socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_pages_misses_nothing_that_moves() {
    let server = super::server().await;
    let url = server.url();
    let (ada, _) = join(&url, "ada", "desk").await;
    let mut groups = Vec::new();
    for n in 0..25 {
        let group = ada.create_group(&format!("group {n}"), &["bob"]).await.unwrap();
        tell(&ada, group, "hello", &[]).await;
        groups.push(group);
    }
    let http = Http::new(&url);
    let token = http.token("bob").await.unwrap();
    let ask = async |path: String| {
        let answer = http.call(Method::GET, &path, Some(&token), None).await.unwrap();
        assert_eq!(answer.status, 200, "{path}");
        answer.json().unwrap()
    };
    let (mut rows, mut cursor, mut since) = (BTreeMap::new(), String::new(), String::new());
    let mut seen = 0;
    for page in 0.. {
        let answer = ask(format!("/v1/conversations?limit=7{cursor}")).await;
        for row in answer["conversations"].as_array().unwrap() {
            seen += 1;
            rows.insert(row["id"].to_string(), row["n"].clone());
        }
        if page == 0 {
            since = answer["cursor"].as_str().unwrap().to_owned();
        }
        // Some that are still to come move up, and some that were shown already.
        for group in [groups[page * 3 % 25], groups[24 - page]] {
            tell(&ada, group, "moved", &[]).await;
        }
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(seen <= 25, "{seen} rows: one was shown twice");
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0.. {
        let changes = ask(format!("/v1/sync?limit=4&cursor={since}")).await;
        for row in changes["conversations"].as_array().unwrap() {
            rows.insert(row["id"].to_string(), row["n"].clone());
        }
        since = changes["cursor"].as_str().unwrap().to_owned();
        if changes["more"] == json!(false) {
            break;
        }
    }
    let fresh = ask("/v1/conversations?limit=100".to_owned()).await;
    let fresh: BTreeMap<String, Value> = fresh["conversations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].to_string(), row["n"].clone()))
        .collect();
    assert_eq!((rows.len(), &rows), (25, &fresh));
    let old = ask("/v1/sync?cursor=0.0.0".to_owned()).await;
    assert_eq!((&old["reset"], &old["conversations"]), (&json!("generation"), &json!([])));
    ada.stop().await;
}
