//! What is told of the inbox beside events: cursors at `connect`, marks that other devices have set.

use std::time::Duration;

use serde_json::json;

use crate::{
    node::{CURSOR, user},
    world::World,
};

#[tokio::test]
async fn a_connecting_client_is_told_how_far_behind_it_is() {
    let world = World::new().await;
    let connect = |cursor: serde_json::Value| json!({"token": world.token("ada"), "cursor": cursor});
    for (cursor, told) in [
        (json!(null), "reset"),
        (json!(CURSOR.to_string()), "current"),
        (json!("abc.1.6"), "behind"),
        // What was never ours is of another history; whether that is so, the node says.
        (json!("nonsense"), "behind"),
    ] {
        let mut client = world.stranger().await;
        let answer = client.ask("connect", connect(cursor)).await;
        assert_eq!(answer["ok"]["inbox"], told, "{answer}");
        assert_eq!(answer["ok"]["cursor"], CURSOR.to_string());
        assert_eq!(answer["ok"].get("reset"), (told == "reset").then_some(&json!("new")));
    }
    let refused = world.stranger().await.ask("connect", connect(json!(7))).await;
    assert_eq!(refused["error"]["field"], "cursor");
}

#[tokio::test]
async fn marks_reach_every_device_of_the_user_and_nobody_else() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let (mut phone, mut laptop, mut bob) =
        (world.client("ada").await, world.client("ada").await, world.client("bob").await);
    world.node.mark(chat, "ada");
    for device in [&mut phone, &mut laptop] {
        let frame = device.frame().await;
        assert_eq!(frame["event"], "inbox.changed");
        assert_eq!((&frame["conversation"], &frame["data"]["marked_unread"]), (&json!(chat), &json!(true)));
        assert_eq!((&frame["data"]["read_n"], frame.get("seq")), (&json!(3), None));
    }
    assert!(bob.all_within(Duration::from_millis(50)).await.is_empty());
}

#[tokio::test]
async fn booleans_of_a_query_are_true_or_false() {
    let world = World::new().await;
    world.node.conversation(&["ada"], 0, false);
    let ask = async |query: &str| {
        let answer = world.ask_with("ada", "GET", &format!("/v1/conversations?{query}"), None, "").await;
        (answer.status, answer.json())
    };
    assert_eq!(ask("archived=false&muted=true&unread=true").await.0, 200);
    for query in ["archived=", "archived=1", "muted=yes", "unread=TRUE"] {
        let (status, problem) = ask(query).await;
        assert_eq!((status, &problem["code"]), (422, &json!("request.invalid")), "{query}: {problem}");
        assert_eq!(problem["field"], query.split('=').next().unwrap());
    }
    assert!(world.node.state.lock().conversations.values().all(|chat| chat.members.contains_key(&user("ada"))));
}
