//! Large conversations: listeners, interest, and removal in its place.

use std::time::Duration;

use chappe_schema::error::Code;
use serde_json::json;

use crate::{node::Mode, world::World};

#[tokio::test]
async fn only_who_has_it_on_screen_hears_a_large_conversation() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob", "eve"], 3, true);
    let mut ada = world.client("ada").await;
    let mut bob = world.client("bob").await;
    let opened = ada.ask("conversation.open", json!({"conversation": chat, "from": 3})).await;
    assert_eq!(opened["ok"], json!({"head": 3, "n": 3, "large": true}));
    world.node.say(chat, "eve", "hello");
    assert_eq!(ada.frame().await["seq"], 4);
    assert!(bob.all_within(Duration::from_millis(50)).await.is_empty());
    bob.ask("conversation.open", json!({"conversation": chat})).await;
    world.node.say(chat, "eve", "both");
    assert_eq!(ada.frame().await["seq"], 5);
    assert_eq!(bob.frame().await["seq"], 5);
    ada.ask("conversation.close", json!({"conversation": chat})).await;
    world.node.say(chat, "eve", "bob only");
    assert_eq!(bob.frame().await["seq"], 6);
    assert!(ada.all_within(Duration::from_millis(50)).await.is_empty());
    bob.ask("conversation.close", json!({"conversation": chat})).await;
    let heard: Vec<_> = world.node.heard().into_iter().filter(|name| name != "connect").collect();
    assert_eq!(heard, ["interest true", "conversation.open", "conversation.open", "interest false"]);
}

#[tokio::test]
async fn a_small_conversation_keeps_its_listeners_for_when_it_grows() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    assert_eq!(ada.ask("conversation.open", json!({"conversation": chat})).await["ok"]["large"], false);
    assert_eq!(world.node.heard(), ["connect", "interest true", "conversation.open"]);
    world.node.say(chat, "bob", "once");
    assert_eq!(ada.frame().await["seq"], 1);
    assert!(ada.all_within(Duration::from_millis(50)).await.is_empty());
}

#[tokio::test]
async fn who_may_not_open_is_no_listener() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, true);
    let mut eve = world.client("eve").await;
    let refused = eve.ask("conversation.open", json!({"conversation": chat})).await;
    assert_eq!(refused["error"]["code"], "conversation.not_found");
    assert_eq!(world.node.heard().last().unwrap(), "interest false");
}

#[tokio::test]
async fn a_removed_user_hears_of_it_and_then_nothing_more() {
    let world = World::new().await;
    let chat = world.node.conversation(&["owner", "eve"], 0, true);
    let mut eve = world.client("eve").await;
    let mut owner = world.client("owner").await;
    for client in [&mut eve, &mut owner] {
        client.ask("conversation.open", json!({"conversation": chat})).await;
    }
    world.node.say(chat, "owner", "before");
    world.node.remove(chat, "eve");
    for _ in 0..20 {
        world.node.say(chat, "owner", "after");
    }
    let heard = eve.all_within(Duration::from_millis(100)).await;
    let seqs: Vec<_> = heard.iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 2]);
    assert_eq!(heard[1]["event"], "member.left");
    assert_eq!(owner.until(|frame| frame["seq"] == 22).await.len(), 22);
}

#[tokio::test]
async fn batches_arrive_whole_and_in_order_at_many() {
    let world = World::new().await;
    let names: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).collect();
    let chat = world.node.conversation(&members, 0, true);
    let mut clients = Vec::new();
    for name in &members {
        let mut client = world.client(name).await;
        client.ask("conversation.open", json!({"conversation": chat})).await;
        clients.push(client);
    }
    for _ in 0..10 {
        world.node.say_many(chat, "user0", 7);
    }
    for client in &mut clients {
        for seq in 1..=70 {
            assert_eq!(client.frame().await["seq"], seq);
        }
    }
}

#[tokio::test]
async fn trouble_that_passes_closes_nothing() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, true);
    let mut ada = world.client("ada").await;
    ada.ask("conversation.open", json!({"conversation": chat})).await;
    world.node.behave(Mode::Refusing(Code::Unavailable));
    assert_eq!(ada.ask("conversation.open", json!({"conversation": chat})).await["error"]["code"], "unavailable");
    world.node.behave(Mode::AtOnce);
    world.node.say(chat, "ada", "still heard");
    assert_eq!(ada.frame().await["seq"], 1);
    world.node.behave(Mode::Refusing(Code::ConversationNotFound));
    ada.ask("conversation.open", json!({"conversation": chat})).await;
    world.node.say(chat, "ada", "no longer");
    assert!(ada.all_within(Duration::from_millis(50)).await.is_empty());
}
