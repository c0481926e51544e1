//! Presence and typing between a client and its node: what is said of attention, who is told of whom.

use std::time::Duration;

use chappe_schema::{
    limit::PRESENCE_WATCHES_MAX,
    presence::{Attention, Shown, Status},
};
use serde_json::{Value, json};

use crate::{node::user, world::World};

const SHORT: Duration = Duration::from_millis(100);

/// What the node was told last of a user's attention, once it was told so often.
async fn attention(world: &World, who: &str, times: usize) -> Attention {
    for _ in 0..200 {
        let said: Vec<Attention> = {
            let state = world.node.state.lock();
            let said = state.attending.iter().filter(|(whose, ..)| *whose == user(who));
            said.map(|(_, _, attention)| attention.clone()).collect()
        };
        if said.len() >= times {
            assert_eq!(said.len(), times, "{said:?}");
            return said.last().unwrap().clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the node was told nothing of {who}")
}

#[tokio::test]
async fn a_client_says_at_whom_it_looks_and_whether_anybody_is_at_hand() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    let users = json!([{ "user": "eve", "conversation": chat }, { "user": "bob" }]);
    assert_eq!(ada.ask("presence.watch", json!({ "users": users })).await["ok"], json!({}));
    let told = attention(&world, "ada", 1).await;
    assert!(told.watches(&user("bob")) && told.watches(&user("eve")) && !told.away);
    assert_eq!(ada.ask("presence.away", json!({ "away": true })).await["ok"], json!({}));
    let told = attention(&world, "ada", 2).await;
    assert!(told.away && told.watches(&user("bob")), "all of it, whatever was said");
    // A request does not mean that somebody is back: they would say so.
    ada.send(chat, "from my pocket").await;
    ada.ask("presence.watch", json!({ "users": [] })).await;
    assert_eq!(attention(&world, "ada", 3).await, Attention { away: true, watches: None });

    let many: Vec<Value> = (0..=PRESENCE_WATCHES_MAX).map(|n| json!({ "user": format!("u{n}") })).collect();
    let refused = ada.ask("presence.watch", json!({ "users": many })).await;
    assert_eq!((&refused["error"]["code"], &refused["error"]["field"]), (&json!("request.invalid"), &json!("users")));
    let refused = ada.ask("presence.away", json!({})).await;
    assert_eq!(refused["error"]["field"], "away");
}

#[tokio::test]
async fn who_is_watched_is_shown_to_the_connections_that_the_node_names() {
    let world = World::new().await;
    world.node.conversation(&["ada", "bob"], 0, false);
    let (mut ada, mut eve) = (world.client("ada").await, world.client("eve").await);
    world.node.show("ada", "bob", Shown { status: Status::Away, last_seen: None });
    let frame = ada.frame().await;
    assert_eq!(frame, json!({ "event": "presence.changed", "data": { "user": "bob", "status": "away" } }));
    world.node.show("ada", "bob", Shown { status: Status::Offline, last_seen: Some(0) });
    let data = &ada.frame().await["data"];
    assert_eq!((&data["status"], &data["last_seen"]), (&json!("offline"), &json!("1970-01-01T00:00:00.000Z")));
    assert!(eve.all_within(SHORT).await.is_empty());
    // Over HTTP the same, once.
    let answer = world.ask("ada", "GET", "/v1/presence/bob", None).await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "user": "bob", "status": "online" })));
}

#[tokio::test]
async fn typing_reaches_the_others_who_have_the_conversation_open() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob", "eve"], 0, false);
    let (mut ada, mut laptop) = (world.client("ada").await, world.client("ada").await);
    let (mut bob, mut eve) = (world.client("bob").await, world.client("eve").await);
    for client in [&mut ada, &mut laptop, &mut bob] {
        client.ask("conversation.open", json!({ "conversation": chat })).await;
    }
    let started = ada.ask("typing.start", json!({ "conversation": chat })).await;
    assert_eq!(started["ok"]["shown"], true);
    let frame = bob.frame().await;
    assert_eq!(
        frame,
        json!({ "event": "typing.started", "conversation": chat, "sender": "ada", "data": { "expires_ms": 6000 } })
    );
    let stopped = world.ask("ada", "DELETE", &format!("/v1/conversations/{chat}/typing"), None).await;
    assert_eq!(stopped.status, 200);
    assert_eq!(bob.frame().await["event"], "typing.stopped");
    // Neither the writer's own devices nor who has it not open.
    for client in [&mut ada, &mut laptop, &mut eve] {
        assert!(client.all_within(SHORT).await.is_empty());
    }
    bob.ask("conversation.close", json!({ "conversation": chat })).await;
    ada.ask("typing.start", json!({ "conversation": chat })).await;
    assert!(bob.all_within(SHORT).await.is_empty());
}

#[tokio::test]
async fn who_was_removed_is_told_of_nobody_who_writes() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob", "eve"], 0, false);
    let (mut ada, mut bob) = (world.client("ada").await, world.client("bob").await);
    bob.ask("conversation.open", json!({ "conversation": chat })).await;
    world.node.remove(chat, "bob");
    ada.ask("typing.start", json!({ "conversation": chat })).await;
    let heard = bob.all_within(SHORT).await;
    assert!(heard.iter().all(|frame| frame["event"] == "member.left"), "{heard:?}");
    let refused = bob.ask("typing.start", json!({ "conversation": chat })).await;
    assert_eq!(refused["error"]["code"], "conversation.not_found");
}
