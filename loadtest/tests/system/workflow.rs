//! Whole workflows: people who talk, leave, come back.

use std::time::Duration;

use chappe_loadtest::client::{Client, Happened, Options, Stream, http::Http};
use serde_json::json;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(10);

async fn join(url: &str, user: &str) -> (Client, Stream) {
    let token = Http::new(url).token(user).await.unwrap();
    Client::connect(url, user, &token, Options::default()).await.unwrap()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_lives_through_edits_leavings_restarts_and_returns() {
    let mut server = super::server().await;
    let url = server.url();
    let ((ada, mut ada_hears), (bob, mut bob_hears), (eve, mut eve_hears)) =
        (join(&url, "ada").await, join(&url, "bob").await, join(&url, "eve").await);
    let group = ada.create_group("trip", &["bob"]).await.unwrap();
    assert_eq!(hear(&mut bob_hears, "conversation.created").await.seq, 1);

    // A message reaches everybody, the sender too, and an edit follows it.
    let sent = ada.send(group, &json!({ "text": "where to?" })).await.unwrap();
    assert_eq!(hear(&mut bob_hears, "message.new").await.seq, sent.seq);
    assert_eq!(hear(&mut ada_hears, "message.new").await.seq, sent.seq);
    ada.change(group, sent.seq, Some(json!({ "text": "where to go?" }))).await.unwrap();
    let edit = hear(&mut bob_hears, "message.updated").await;
    assert_eq!((edit.target, &edit.data["body"]["text"]), (Some(sent.seq), &json!("where to go?")));

    // A newcomer hears of the joining first and sees nothing from before.
    ada.request("member.add", json!({ "conversation": group, "user": "eve" })).await.unwrap();
    let joined = hear(&mut eve_hears, "member.joined").await;
    let page = eve.request("message.list", json!({ "conversation": group })).await.unwrap();
    assert_eq!(page["messages"], json!([]));

    // The server dies without a word and comes back: everybody goes on where they were.
    server.kill().await.unwrap();
    let waiting = tokio::spawn(async move {
        let ack = bob.send(group, &json!({ "text": "the sea" })).await.unwrap();
        (bob, ack)
    });
    server.restart().await.unwrap();
    let (bob, ack) = waiting.await.unwrap();
    assert_eq!(ack.seq, joined.seq + 1, "a message sent while the server was away has the next place");
    for hears in [&mut ada_hears, &mut eve_hears] {
        assert_eq!(hear(hears, "message.new").await.seq, ack.seq);
    }

    // Who is removed hears of it, and nothing afterwards.
    ada.request("member.remove", json!({ "conversation": group, "user": "eve" })).await.unwrap();
    hear(&mut eve_hears, "member.left").await;
    let last = ada.send(group, &json!({ "text": "without eve" })).await.unwrap();
    assert_eq!(hear(&mut bob_hears, "message.new").await.seq, ack.seq);
    assert_eq!(hear(&mut bob_hears, "message.new").await.seq, last.seq);
    assert_eq!(eve_hears.event(Duration::from_millis(500)).await, None);
    assert!(eve.request("event.list", json!({ "conversation": group, "after": 0 })).await.is_err());

    let inbox = bob.request("conversation.list", json!({})).await.unwrap();
    assert_eq!(inbox["conversations"][0]["head"], last.seq);
    assert_eq!(inbox["conversations"][0]["unread"], 1, "bob has read up to his own message");
    for client in [ada, bob, eve] {
        client.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_users_reconnect_again_and_again_and_miss_nothing() {
    let server = super::server().await;
    let url = server.url();
    let names: Vec<String> = (0..20).map(|n| format!("user-{n:02}")).collect();
    let others: Vec<&str> = names[1..].iter().map(String::as_str).collect();
    let mut crowd = Vec::new();
    for name in &names {
        crowd.push(join(&url, name).await);
    }
    let group: Uuid = crowd[0].0.create_group("all", &others).await.unwrap();
    // Who has heard nothing of a conversation yet has no position to come back with.
    for (_, hears) in &mut crowd {
        assert_eq!(hear(hears, "conversation.created").await.seq, 1);
    }
    let mut last = 0;
    for round in 0..10 {
        for (place, (client, _)) in crowd.iter().enumerate() {
            if place % 3 == round % 3 {
                client.break_connection();
            }
            last = last.max(client.send(group, &json!({ "text": format!("{round}/{place}") })).await.unwrap().seq);
        }
    }
    assert_eq!(last, 201);
    for (name, (_, hears)) in names.iter().zip(&mut crowd) {
        let mut expected = 2;
        while expected <= last {
            let event = hears.event(SOON).await.unwrap_or_else(|| panic!("{name} waits for {expected}"));
            assert_eq!(event.seq, expected, "{name} missed or doubled an event");
            expected += 1;
        }
    }
    for (client, _) in crowd {
        client.stop().await;
    }
}

/// Conversations above 256 members are live where they are open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_group_is_live_where_it_is_open() {
    let server = super::server().await;
    let url = server.url();
    let (ada, _) = join(&url, "ada").await;
    let (bob, mut bob_hears) = join(&url, "bob").await;
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).chain(["bob"]).collect();
    let group = ada.create_group("hall", &members).await.unwrap();
    let opened = bob.request("conversation.open", json!({ "conversation": group })).await.unwrap();
    assert_eq!((&opened["large"], &opened["head"]), (&json!(true), &json!(1)));
    for n in 0..20 {
        ada.send(group, &json!({ "text": n.to_string() })).await.unwrap();
    }
    for seq in 2..22 {
        assert_eq!(hear(&mut bob_hears, "message.new").await.seq, seq);
    }
    ada.request("member.remove", json!({ "conversation": group, "user": "bob" })).await.unwrap();
    hear(&mut bob_hears, "member.left").await;
    ada.send(group, &json!({ "text": "without bob" })).await.unwrap();
    assert_eq!(bob_hears.event(Duration::from_millis(500)).await, None);
    for client in [ada, bob] {
        client.stop().await;
    }
}

/// A conversation that outgrows the small way of delivery while it is open: nobody misses anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_large_under_its_listeners() {
    let server = super::server().await;
    let url = server.url();
    let (ada, _) = join(&url, "ada").await;
    let (bob, mut bob_hears) = join(&url, "bob").await;
    let names: Vec<String> = (0..254).map(|n| format!("user-{n:03}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).chain(["bob"]).collect();
    let group = ada.create_group("hall", &members).await.unwrap();
    let opened = bob.request("conversation.open", json!({ "conversation": group })).await.unwrap();
    assert_eq!(opened["large"], json!(false));
    for n in 0..5 {
        ada.send(group, &json!({ "text": "small" })).await.unwrap();
        if n == 2 {
            ada.request("member.add", json!({ "conversation": group, "user": "eve" })).await.unwrap();
        }
    }
    let last = ada.send(group, &json!({ "text": "large" })).await.unwrap().seq;
    let mut heard = 0;
    while heard < last {
        let event = bob_hears.event(SOON).await.unwrap_or_else(|| panic!("nothing after {heard}"));
        assert!(heard == 0 || event.seq == heard + 1, "{} after {heard}", event.seq);
        heard = event.seq;
    }
    for client in [ada, bob] {
        client.stop().await;
    }
}

/// What is done to a message is for whoever may see the message, whenever it is done: who was out for a moment is told of it when
/// they are back, and who came later is not told the new words of what they never saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_follow_the_message_and_not_the_hour() {
    let server = super::server().await;
    let url = server.url();
    let ((ada, _), (bob, mut bob_hears), (eve, mut eve_hears), (zoe, mut zoe_hears)) =
        (join(&url, "ada").await, join(&url, "bob").await, join(&url, "eve").await, join(&url, "zoe").await);
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    for others in [&names[..0], &names[..]] {
        let members: Vec<&str> = others.iter().map(String::as_str).chain(["bob", "eve"]).collect();
        let group = ada.create_group("trip", &members).await.unwrap();
        let here = json!({ "conversation": group });
        for client in [&bob, &eve] {
            client.request("conversation.open", here.clone()).await.unwrap();
        }
        let say = async |text: &str| ada.send(group, &json!({ "text": text })).await.unwrap().seq;
        let (kept, gone) = (say("v1").await, say("a secret").await);
        hear(&mut eve_hears, "message.new").await;
        hear(&mut eve_hears, "message.new").await;

        ada.request("member.remove", json!({ "conversation": group, "user": "eve" })).await.unwrap();
        hear(&mut eve_hears, "member.left").await;
        let unseen = say("without eve").await;
        ada.change(group, kept, Some(json!({ "text": "v2" }))).await.unwrap();
        ada.change(group, gone, None).await.unwrap();
        ada.change(group, unseen, Some(json!({ "text": "still without eve" }))).await.unwrap();
        for user in ["eve", "zoe"] {
            ada.request("member.add", json!({ "conversation": group, "user": user })).await.unwrap();
        }
        let edit = eve_hears.event(SOON).await.unwrap();
        assert_eq!((edit.name.as_str(), edit.target), ("message.updated", Some(kept)), "{edit:?}");
        assert_eq!(edit.data["body"]["text"], "v2");
        let deletion = eve_hears.event(SOON).await.unwrap();
        assert_eq!((deletion.name.as_str(), deletion.target), ("message.deleted", Some(gone)), "{deletion:?}");
        assert_eq!(eve_hears.event(SOON).await.unwrap().name, "member.joined");

        // Live, both of them: who holds the message hears the new words, who came later that there are some.
        hear(&mut zoe_hears, "member.joined").await;
        for client in [&eve, &zoe] {
            client.request("conversation.open", here.clone()).await.unwrap();
        }
        ada.change(group, kept, Some(json!({ "text": "v3" }))).await.unwrap();
        let of_zoe = say("welcome").await;
        ada.change(group, of_zoe, Some(json!({ "text": "welcome, zoe" }))).await.unwrap();
        for (hears, old) in [(&mut bob_hears, json!("v3")), (&mut zoe_hears, json!(null))] {
            let edit = loop {
                let edit = hear(hears, "message.updated").await;
                if edit.seq + 1 == of_zoe {
                    break edit;
                }
            };
            assert_eq!((edit.target, &edit.data["body"]["text"]), (Some(kept), &old), "{edit:?}");
            assert_eq!(hear(hears, "message.updated").await.data["body"]["text"], "welcome, zoe");
        }
        let page = zoe.request("event.list", json!({ "conversation": group, "after": 0 })).await.unwrap();
        assert!(!page.to_string().contains("v3") && page.to_string().contains("welcome, zoe"), "{page}");
        while eve_hears.event(Duration::from_millis(300)).await.is_some() {}
    }
    for client in [ada, bob, eve, zoe] {
        client.stop().await;
    }
}
