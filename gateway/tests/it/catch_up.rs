//! Clients that come back: verdicts, pages, and events that arrive meanwhile.

use std::time::Duration;

use chappe_schema::limit::CATCH_UP_EVENTS_MAX;
use serde_json::{Value, json};

use crate::{
    node::{GENERATION, Mode},
    world::World,
};

fn position(seq: u64) -> Value {
    json!([GENERATION.to_string(), seq])
}

#[tokio::test]
async fn what_was_missed_follows_and_then_what_is_new() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 500, false);
    let (mut ada, told) = world.resumed("ada", json!({chat.to_string(): position(20)})).await;
    assert_eq!(told[chat.to_string()]["recovered"], true);
    let frames = ada.until(|frame| frame.get("caught_up").is_some()).await;
    let seqs: Vec<_> = frames.iter().filter_map(|frame| frame["seq"].as_u64()).collect();
    assert_eq!(seqs, (21..=500).collect::<Vec<_>>());
    assert_eq!(frames.last().unwrap()["caught_up"], json!({"conversation": chat, "head": 500}));
    world.node.say(chat, "bob", "live");
    assert_eq!(ada.frame().await["seq"], 501);
}

#[tokio::test]
async fn events_that_arrive_meanwhile_come_once_and_in_order() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 900, false);
    let other = world.node.conversation(&["ada", "bob"], 900, false);
    world.node.behave(Mode::Slow(Duration::from_millis(5)));
    let positions = json!({chat.to_string(): position(1), other.to_string(): position(450)});
    let (mut ada, _) = world.resumed("ada", positions).await;
    // Some announced late: a page may already hold what has not been announced.
    let node = world.node.clone();
    let speaking = tokio::spawn(async move {
        for round in 0..30 {
            node.say(chat, "bob", "live");
            node.say(other, "bob", "live");
            let silent = node.write_silently(chat, "bob", 3);
            tokio::time::sleep(Duration::from_millis(3)).await;
            node.publish(chat, silent);
            if round % 5 == 0 {
                node.say_many(chat, "bob", 4);
            }
        }
    });
    let (mut in_chat, mut in_other, mut caught_up) = (1, 450, 0);
    let chat_head = 900 + 30 * 4 + 6 * 4;
    let other_head = 930;
    while in_chat < chat_head || in_other < other_head || caught_up < 2 {
        let frame = ada.frame().await;
        if let Some(at) = frame.get("caught_up") {
            let expected = if at["conversation"] == chat.to_string() { in_chat } else { in_other };
            assert_eq!(at["head"], expected, "caught up with what has been sent");
            caught_up += 1;
        } else if let Some(seq) = frame["seq"].as_u64() {
            let last = if frame["conversation"] == chat.to_string() { &mut in_chat } else { &mut in_other };
            assert_eq!(seq, *last + 1, "in order, once each: {frame}");
            *last = seq;
        } else {
            panic!("{frame}");
        }
    }
    speaking.await.unwrap();
}

#[tokio::test]
async fn verdicts_say_why_there_is_nothing() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 5, false);
    let key = chat.to_string();
    for (position, expected) in [
        (position(5), json!({"recovered": true, "head": 5, "n": 5})),
        (position(6), json!({"recovered": false, "reason": "ahead", "head": 5, "n": 5})),
        (json!(["fff", 3]), json!({"recovered": false, "reason": "generation", "head": 5, "n": 5})),
        (json!(["not hex", 3]), json!({"recovered": false, "reason": "generation", "head": 5, "n": 5})),
    ] {
        let (mut ada, told) = world.resumed("ada", json!({&key: position})).await;
        assert_eq!(told[&key], expected);
        assert!(ada.all_within(Duration::from_millis(50)).await.is_empty());
    }
    let long = world.node.conversation(&["ada"], CATCH_UP_EVENTS_MAX + 2, false);
    let (mut ada, told) = world.resumed("ada", json!({long.to_string(): position(1)})).await;
    assert_eq!(told[long.to_string()]["limited"], true);
    assert_eq!(told[long.to_string()]["recovered"], false);
    assert!(ada.all_within(Duration::from_millis(50)).await.is_empty());
}

#[tokio::test]
async fn a_page_that_fails_becomes_a_resync() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 900, false);
    world.node.behave(Mode::Slow(Duration::from_millis(50)));
    let (mut ada, _) = world.resumed("ada", json!({chat.to_string(): position(0)})).await;
    world.node.behave(Mode::Refusing(chappe_schema::error::Code::HistoryPurged));
    let frames = ada.until(|frame| frame.get("resync").is_some()).await;
    assert_eq!(frames.last().unwrap()["resync"]["head"], 900);
    assert!(frames.iter().all(|frame| frame.get("caught_up").is_none()));
}

#[tokio::test]
async fn too_many_positions_are_refused() {
    let world = World::new().await;
    let mut client = world.stranger().await;
    let positions: serde_json::Map<_, _> = (0..201).map(|_| (uuid::Uuid::now_v7().to_string(), position(1))).collect();
    client.say(json!({"id": 1, "connect": {"token": world.token("ada"), "positions": positions}})).await;
    assert_eq!(client.frame().await["error"]["field"], "positions");
}

#[tokio::test]
async fn a_slow_client_is_filled_as_fast_as_it_reads() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    for n in 0..900 {
        world.node.say(chat, "bob", &format!("{n}{}", "z".repeat(5_000)));
    }
    let (mut ada, _) = world.resumed("ada", json!({chat.to_string(): position(0)})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = world.node.heard().iter().filter(|name| *name == "event.list").count();
    assert!(asked < 5, "{asked} pages were fetched for a client that does not read");
    let frames = ada.until(|frame| frame.get("caught_up").is_some()).await;
    assert_eq!(frames.len(), 901);
}
