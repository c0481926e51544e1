//! Channels and large groups through real sockets: somebody who comes by themselves, somebody who is removed while they look, a
//! group that grows and shrinks across the bound, a crash, and very many members.

use std::{sync::Arc, time::Duration};

use chappe_loadtest::client::{Client, Happened, Options, Stream, http::Http};
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{refused, say};

const SOON: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(500);

async fn join(url: &str, user: &str) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    Client::connect(url, user, &token, Options::default()).await.unwrap()
}

async fn hear(stream: &mut Stream, name: &str) -> Happened {
    loop {
        let event = stream.event(SOON).await.unwrap_or_else(|| panic!("no {name} was heard"));
        if event.name == name {
            return event;
        }
    }
}

/// Hears up to a seq: every event once, in order.
async fn hear_upto(stream: &mut Stream, after: &mut u64, upto: u64) {
    while *after < upto {
        let event = stream.event(SOON).await.unwrap_or_else(|| panic!("nothing after {after}, of {upto}"));
        if event.seq != 0 {
            assert_eq!(event.seq, *after + 1, "{event:?}");
            *after = event.seq;
        }
    }
}

async fn channel(owner: &Client, members: &[String], open: bool) -> Uuid {
    let create = json!({ "kind": "channel", "title": "news", "members": members, "open": open });
    let created = owner.request("conversation.create", create).await.unwrap();
    created["conversation"]["id"].as_str().unwrap().parse().unwrap()
}

async fn row(client: &Client, conversation: Uuid) -> Option<Value> {
    let listed = client.request("conversation.list", json!({})).await.unwrap();
    let rows = listed["conversations"].as_array().unwrap();
    rows.iter().find(|row| row["id"] == conversation.to_string()).cloned()
}

/// A row that says so, however long that takes: those of large conversations are asked for once a second.
async fn row_with(client: &Client, conversation: Uuid, unread: u64) -> Value {
    for _ in 0..100 {
        if let Some(row) = row(client, conversation).await.filter(|row| row["unread"] == unread) {
            return row;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{unread} unread are not shown but {:?}", row(client, conversation).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_come_by_themselves_read_react_and_go() {
    let mut server = super::server().await;
    let url = server.url();
    let ((ada, _ada_hears), (bob, mut bob_hears)) = (join(&url, "ada").await, join(&url, "bob").await);
    let (eve, mut eve_hears) = join(&url, "eve").await;
    let news = channel(&ada, &[], true).await;
    let first = say(&ada, news, "one").await;

    // Bob comes over the WebSocket, Eve over HTTP; both may read what was before them.
    let here = json!({ "conversation": news });
    assert_eq!(bob.request("conversation.join", here.clone()).await.unwrap()["changed"], true);
    assert_eq!(bob.request("conversation.join", here.clone()).await.unwrap()["changed"], false);
    let http = Http::new(&url);
    let token = http.token("eve").await.unwrap();
    let path = format!("/v1/conversations/{news}/join");
    let joined = http.call(Method::POST, &path, Some(&token), None).await.unwrap();
    assert_eq!((joined.status, &joined.json().unwrap()["changed"]), (200, &json!(true)));
    assert_eq!(hear(&mut bob_hears, "member.joined").await.data["user"], "bob");
    assert_eq!(bob.messages(news, false).await.unwrap()[0]["seq"], first);
    let shown = bob.request("conversation.get", here.clone()).await.unwrap()["conversation"].clone();
    assert_eq!(
        [&shown["kind"], &shown["open"], &shown["large"], &shown["role"], &shown["receipts"]],
        [&json!("channel"), &json!(true), &json!(true), &json!("member"), &json!(false)]
    );

    // Few write.
    assert_eq!(
        refused(&bob, "message.send", json!({ "conversation": news, "client_msg_id": Uuid::now_v7(), "body": {} }))
            .await,
        "forbidden"
    );
    bob.react(news, first, "👍", true).await.unwrap();
    // Whoever looks hears at once; whoever does not, asks.
    bob.open(news);
    let second = say(&ada, news, "two").await;
    while hear(&mut bob_hears, "message.new").await.seq != second {}
    let listed = row_with(&eve, news, 1).await;
    assert_eq!(
        (&listed["large"], &listed["last"]["text"], &listed["kind"]),
        (&json!(true), &json!("two"), &json!("channel"))
    );
    eve.read(news, 2).await.unwrap();
    row_with(&eve, news, 0).await;

    // A mention reaches whom it is about, wherever they look.
    let mentioning = json!({ "conversation": news, "client_msg_id": Uuid::now_v7(), "body": { "text": "eve!" }, "mentions": { "users": ["eve"] } });
    ada.request("message.send", mentioning).await.unwrap();
    loop {
        let told = hear(&mut eve_hears, "inbox.changed").await;
        if told.data["mentions"] == 1 {
            break;
        }
    }

    // A crash: what was acknowledged stands, and whoever looked looks again.
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    let third = say(&ada, news, "after the crash").await;
    while hear(&mut bob_hears, "message.new").await.seq != third {}
    assert_eq!(row_with(&eve, news, 2).await["mentions"], 1);

    // Bob is removed while he looks: that is the last that he hears, and he does not come back by himself.
    ada.request("member.remove", json!({ "conversation": news, "user": "bob" })).await.unwrap();
    hear(&mut bob_hears, "member.left").await;
    say(&ada, news, "not for bob").await;
    let last = say(&ada, news, "nor this").await;
    assert_eq!(bob_hears.event(QUIET).await, None);
    for op in ["conversation.join", "conversation.open", "conversation.get", "member.list"] {
        assert_eq!(refused(&bob, op, here.clone()).await, "conversation.not_found", "{op}");
    }
    assert_eq!(
        refused(&bob, "event.list", json!({ "conversation": news, "after": 0 })).await,
        "conversation.not_found"
    );
    assert_eq!(row(&bob, news).await, None);
    // Eve goes by herself, comes back, and misses nothing.
    eve.request("conversation.leave", here.clone()).await.unwrap();
    eve.request("conversation.join", here.clone()).await.unwrap();
    assert_eq!(eve.messages(news, false).await.unwrap().last().unwrap()["seq"], last);
    // Closed to others.
    ada.request("conversation.update", json!({ "conversation": news, "open": false })).await.unwrap();
    let (max, _max_hears) = join(&url, "max").await;
    assert_eq!(refused(&max, "conversation.join", here).await, "conversation.not_found");
}

/// Across the bound and back, while somebody looks, somebody does not, and a connection breaks: nothing is lost, doubled or
/// out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_large_and_small_again_under_live_sockets() {
    let mut server = super::server().await;
    let url = server.url();
    let (ada, _ada_hears) = join(&url, "ada").await;
    let ((bob, mut bob_hears), (eve, mut eve_hears)) = (join(&url, "bob").await, join(&url, "eve").await);
    let mut members: Vec<String> = (0..251).map(|n| format!("user-{n:03}")).collect();
    members.extend(["bob".to_owned(), "eve".to_owned()]);
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let group = ada.create_group("crowd", &names).await.unwrap();
    let (mut bob_at, mut eve_at) = (0, 0);
    hear_upto(&mut bob_hears, &mut bob_at, 1).await;
    hear_upto(&mut eve_hears, &mut eve_at, 1).await;
    bob.open(group);
    let mut head = 1;
    for round in 0..3 {
        for more in ["x", "y", "z", "w", "v"] {
            ada.request("member.add", json!({ "conversation": group, "user": more })).await.unwrap();
            head = say(&ada, group, more).await;
        }
        if round == 1 {
            bob.break_connection();
        }
        let shown = bob.request("conversation.get", json!({ "conversation": group })).await.unwrap();
        assert_eq!((&shown["conversation"]["large"], &shown["conversation"]["members"]), (&json!(true), &json!(259)));
        for fewer in ["x", "y", "z", "w", "v"] {
            ada.request("member.remove", json!({ "conversation": group, "user": fewer })).await.unwrap();
            head = say(&ada, group, fewer).await;
        }
        if round == 2 {
            server.kill().await.unwrap();
            server.restart().await.unwrap();
            head = say(&ada, group, "after the crash").await;
        }
        // It is small now: what comes last comes to everybody, and tells of what did not come.
        hear_upto(&mut bob_hears, &mut bob_at, head).await;
        hear_upto(&mut eve_hears, &mut eve_at, head).await;
    }
    assert_eq!((bob_at, eve_at), (head, head));
    for client in [ada, bob, eve] {
        client.stop().await;
    }
}

/// More members than a snapshot holds: they are paged, survive a crash and an orderly end, and what they have read too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_members_survive_whatever_happens_to_the_server() {
    const MEMBERS: usize = 1_600;
    let mut server = super::server().await;
    let url = server.url();
    let (ada, _ada_hears) = join(&url, "ada").await;
    let name = |n: usize| format!("user-{n:05}");
    let news = channel(&ada, &(0..900).map(name).collect::<Vec<_>>(), true).await;
    let ada = Arc::new(ada);
    let mut adding = tokio::task::JoinSet::new();
    for lane in 0..16 {
        let ada = Arc::clone(&ada);
        adding.spawn(async move {
            for n in (900..MEMBERS).filter(|n| n % 16 == lane) {
                ada.request("member.add", json!({ "conversation": news, "user": name(n) })).await.unwrap();
            }
        });
    }
    adding.join_all().await;
    ada.request("member.remove", json!({ "conversation": news, "user": name(7) })).await.unwrap();
    let (one, _one_hears) = join(&url, &name(1_500)).await;
    for n in 0..3 {
        say(&ada, news, &format!("{n}")).await;
    }
    one.read(news, 2).await.unwrap();
    let listed = async || {
        let (mut found, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let mut page = json!({ "conversation": news, "limit": 500 });
            if !cursor.is_null() {
                page["cursor"] = cursor.clone();
            }
            let page = ada.request("member.list", page).await.unwrap();
            found
                .extend(page["members"].as_array().unwrap().iter().map(|one| one["user"].as_str().unwrap().to_owned()));
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                return found;
            }
        }
    };
    let mut expected: Vec<String> = (0..MEMBERS).filter(|n| *n != 7).map(name).collect();
    expected.insert(0, "ada".to_owned());
    assert_eq!(listed().await, expected);
    // An end in order, then one without a word; between the two somebody comes and somebody goes.
    server.terminate().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(listed().await, expected);
    assert_eq!(row_with(&one, news, 1).await["kind"], "channel");
    one.request("conversation.leave", json!({ "conversation": news })).await.unwrap();
    ada.request("member.add", json!({ "conversation": news, "user": "zoe" })).await.unwrap();
    expected.retain(|user| *user != name(1_500));
    expected.push("zoe".to_owned());
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(listed().await, expected);
    one.request("conversation.join", json!({ "conversation": news })).await.unwrap();
    let (removed, _removed_hears) = join(&url, &name(7)).await;
    assert_eq!(refused(&removed, "conversation.join", json!({ "conversation": news })).await, "conversation.not_found");
    say(&ada, news, "all is well").await;
    row_with(&one, news, 1).await;
}
