//! Commands in flight, readers that do not read, and what is pushed where.

use std::time::Duration;

use chappe_schema::limit::{CONNECTION_IN_FLIGHT_MAX, OPEN_CONVERSATIONS_MAX};
use serde_json::json;
use uuid::Uuid;

use crate::{node::Mode, world::World};

/// How often the node was asked, once it has been asked `expected` times and had a moment to be asked too often.
async fn asked(world: &World, name: &str, expected: usize) -> usize {
    let count = || world.node.heard().iter().filter(|heard| *heard == name).count();
    while count() < expected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    count()
}

#[tokio::test]
async fn reading_stops_while_too_many_commands_are_in_flight() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let mut ada = world.client("ada").await;
    world.node.behave(Mode::Slow(Duration::from_secs(1)));
    let count = 3 * CONNECTION_IN_FLIGHT_MAX as u64;
    // Both ways of sending many: a message each, and all in one message.
    let frame = |id: u64| {
        let args = json!({"conversation": chat, "client_msg_id": Uuid::now_v7(), "body": {}});
        json!({"id": id, "message.send": args}).to_string()
    };
    for id in 0..count / 2 {
        ada.say_text(&frame(id)).await;
    }
    ada.say_text(&(count / 2..count).map(frame).collect::<Vec<_>>().join("\n")).await;
    let asked = asked(&world, "message.send", CONNECTION_IN_FLIGHT_MAX).await;
    assert_eq!(asked, CONNECTION_IN_FLIGHT_MAX, "no more than that are asked at once");
    let mut seqs = Vec::new();
    while seqs.len() < count as usize {
        let frame = ada.frame().await;
        if frame["ok"].is_object() {
            assert_eq!(frame["id"], seqs.len() as u64, "answers in the order of asking, as this node answers");
            seqs.push(frame["ok"]["seq"].as_u64().unwrap());
        }
    }
    assert!(seqs.iter().zip(1..).all(|(seq, expected)| *seq == expected), "sent in the order of asking");
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_a_resync_and_no_more_memory() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    let text = "x".repeat(10_000);
    // More than the kernel's buffers and the outbox hold together.
    for _ in 0..3_000 {
        world.node.say(chat, "bob", &text);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut last = 0;
    let mut resync = None;
    while resync.is_none() {
        let frame = ada.frame().await;
        if let Some(seq) = frame["seq"].as_u64() {
            assert_eq!(seq, last + 1, "in order, without holes before the resync");
            last = seq;
        } else {
            resync = frame["resync"]["head"].as_u64();
        }
    }
    assert_eq!(resync, Some(3_000));
    world.node.say(chat, "bob", "again");
    assert_eq!(ada.frame().await["seq"], 3_001, "and then events flow again");
}

#[tokio::test]
async fn replies_are_not_dropped_when_events_are() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    for n in 0..50 {
        let args = json!({"conversation": chat, "client_msg_id": Uuid::now_v7(), "body": {}});
        ada.say(json!({"id": n, "message.send": args})).await;
        for _ in 0..60 {
            world.node.say(chat, "bob", &"y".repeat(10_000));
        }
    }
    let mut answered = 0;
    while answered < 50 {
        if ada.frame().await["ok"].is_object() {
            answered += 1;
        }
    }
}

#[tokio::test]
async fn pages_count_for_more_than_small_answers() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 10, false);
    let mut ada = world.client("ada").await;
    world.node.behave(Mode::Slow(Duration::from_millis(500)));
    for id in 0..20 {
        ada.say(json!({"id": id, "message.list": {"conversation": chat}})).await;
    }
    assert_eq!(asked(&world, "message.list", 4).await, 4);
    for id in 0..20 {
        assert_eq!(ada.frame().await["id"], id);
    }
}

#[tokio::test]
async fn requests_without_an_id_are_answered_only_when_they_fail() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let mut ada = world.client("ada").await;
    let args =
        |chat: String| json!({"message.send": {"conversation": chat, "client_msg_id": Uuid::now_v7(), "body": {}}});
    ada.say(args(chat.to_string())).await;
    assert_eq!(ada.frame().await["event"], "message.new");
    ada.say(args(Uuid::now_v7().to_string())).await;
    let error = ada.frame().await;
    assert_eq!(error["error"]["code"], "conversation.not_found");
    assert!(error.get("id").is_none());
}

#[tokio::test]
async fn many_open_conversations_are_too_many() {
    let world = World::new().await;
    let mut ada = world.client("ada").await;
    let all: Vec<_> = (0..=OPEN_CONVERSATIONS_MAX).map(|_| world.node.conversation(&["ada"], 0, true)).collect();
    for chat in &all[1..] {
        assert!(ada.ask("conversation.open", json!({"conversation": chat})).await["ok"].is_object());
    }
    let refused = ada.ask("conversation.open", json!({"conversation": all[0]})).await;
    assert_eq!(refused["error"]["field"], "conversation");
    assert!(ada.ask("conversation.close", json!({"conversation": all[1]})).await["ok"].is_object());
    assert!(ada.ask("conversation.open", json!({"conversation": all[0]})).await["ok"].is_object());
}
