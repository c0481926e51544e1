//! Log-outs and bans at the door: over HTTP from what the gateway knows, over WebSockets by the owner's word.

use std::time::Duration;

use chappe_schema::{
    access::{Access, Ban, LogOut},
    error::Code,
    id::DeviceId,
};
use serde_json::json;

use crate::{
    node::Mode,
    world::{Answer, World},
};

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn log_out(access: &mut Access) {
    access.log_out(access.version, now(), &LogOut { before: now(), ..LogOut::default() });
}

fn ban(access: &mut Access) {
    access.set_ban(access.version, Some(Ban::default()));
}

/// A request with a token of a moment ago.
async fn list(world: &World, token: &str) -> Answer {
    world
        .http(&format!(
            "GET /v1/conversations HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        ))
        .await
}

fn asked(world: &World) -> usize {
    world.node.heard().iter().filter(|name| *name == "ask access").count()
}

#[tokio::test]
async fn a_request_is_refused_as_soon_as_the_gateway_is_told() {
    let world = World::new().await;
    let token = world.token("ada");
    for _ in 0..3 {
        assert_eq!(list(&world, &token).await.status, 200);
    }
    assert_eq!(asked(&world), 1, "the owner is asked once");
    tokio::time::sleep(Duration::from_millis(2)).await;
    world.node.change_access("ada", true, log_out);
    let refused = list(&world, &token).await;
    assert_eq!((refused.status, refused.problem().as_str()), (401, "auth.logged_out"));
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"));
    assert_eq!(list(&world, &world.token("ada")).await.status, 200, "a token of after the log-out");
    world.node.change_access("ada", true, ban);
    let refused = list(&world, &world.token("ada")).await;
    assert_eq!((refused.status, refused.problem().as_str()), (403, "auth.banned"));
    assert_eq!(refused.json()["retryable"], false);
    world.node.change_access("ada", true, |access| access.set_ban(access.version, None));
    assert_eq!(list(&world, &world.token("ada")).await.status, 200);
    assert_eq!(asked(&world), 1);
    assert_eq!(list(&world, &world.token("bob")).await.status, 200, "nobody else is touched");
}

#[tokio::test]
async fn nobody_gets_in_while_nobody_can_tell() {
    let world = World::new().await;
    world.node.behave(Mode::Refusing(Code::Unavailable));
    let refused = list(&world, &world.token("ada")).await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "unavailable"));
    world.node.behave(Mode::AtOnce);
    assert_eq!(list(&world, &world.token("ada")).await.status, 200, "a refusal is not remembered");
}

#[tokio::test]
async fn a_connection_is_refused_and_a_live_one_ends_with_a_code_that_says_not_to_come_back() {
    let world = World::new().await;
    let mut live = world.client("ada").await;
    let old = world.token("ada");
    tokio::time::sleep(Duration::from_millis(2)).await;
    world.node.change_access("ada", true, log_out);
    world.node.end("ada", Code::AuthLoggedOut);
    let (error, code) = live.closed().await;
    assert_eq!((error.unwrap()["error"]["code"].as_str(), code), (Some("auth.logged_out"), 4503));
    let mut stranger = world.stranger().await;
    stranger.say(json!({"id": 1, "connect": {"token": old}})).await;
    let (error, code) = stranger.closed().await;
    assert_eq!((error.unwrap()["error"]["code"].as_str(), code), (Some("auth.logged_out"), 4503));
    drop(world.client("ada").await);
    world.node.change_access("ada", true, ban);
    let mut stranger = world.stranger().await;
    stranger.say(json!({"id": 1, "connect": {"token": world.token("ada")}})).await;
    let (error, code) = stranger.closed().await;
    let error = error.unwrap();
    assert_eq!((error["id"].as_u64(), error["error"]["code"].as_str(), code), (Some(1), Some("auth.banned"), 4504));
    assert!((4500..5000).contains(&code));
}

#[tokio::test]
async fn a_refresh_is_for_the_same_user_and_device_and_never_for_who_was_logged_out() {
    let world = World::new().await;
    let (old, phone, laptop) = (world.token("ada"), world.token_on("ada", "phone"), world.token_on("ada", "laptop"));
    let mut ada = world.stranger().await;
    ada.say(json!({"id": 1, "connect": {"token": phone}})).await;
    assert_eq!(ada.frame().await["ok"]["device"], "phone");
    let answer = ada.ask("auth.refresh", json!({"token": phone, "device": "laptop", "positions": {}})).await;
    assert_eq!(answer["ok"]["ignored"], json!(["device", "positions"]), "{answer}");
    assert_eq!(world.node.connected("ada"), 1, "it is the same connection");
    // The device was said when it connected; a token that says nothing does not contradict it.
    assert!(ada.ask("auth.refresh", json!({"token": old})).await["ok"].is_object());
    for (token, code) in [
        (laptop.as_str(), "auth.invalid"),
        (&world.token("bob"), "auth.invalid"),
        ("x", "auth.invalid"),
        ("", "auth.required"),
    ] {
        let answer = ada.ask("auth.refresh", json!({"token": token})).await;
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
    assert_eq!(ada.ask("auth.refresh", json!({})).await["error"]["field"], "token");
    tokio::time::sleep(Duration::from_millis(2)).await;
    let phone_out = |access: &mut Access| {
        let device = DeviceId::new("phone").ok();
        access.log_out(access.version, now(), &LogOut { before: now(), device, ..LogOut::default() });
    };
    world.node.change_access("ada", true, phone_out);
    for token in [&old, &phone] {
        let answer = ada.ask("auth.refresh", json!({"token": token})).await;
        assert_eq!(answer["error"]["code"], "auth.logged_out", "{answer}");
    }
    assert!(ada.ask("auth.refresh", json!({"token": world.token_on("ada", "phone")})).await["ok"].is_object());
    // Before `connect` there is nothing to refresh.
    let mut stranger = world.stranger().await;
    stranger.say(json!({"id": 1, "auth.refresh": {"token": world.token("ada")}})).await;
    assert_eq!(stranger.closed().await.1, 4501);
}

#[tokio::test]
async fn what_is_for_server_side_callers_does_not_exist_for_users() {
    let world = World::new().await;
    let mut ada = world.client("ada").await;
    for name in ["admin.user.get", "admin.user.ban", "admin.user.unban", "admin.user.logout"] {
        let answer = ada.ask(name, json!({"user": "bob"})).await;
        assert_eq!(answer["error"]["code"], "request.unknown_operation", "{name}");
    }
    let answer = world.ask("ada", "GET", "/v1/admin/users/bob", None).await;
    assert_eq!((answer.status, answer.problem().as_str()), (404, "request.unknown_operation"));
    assert_eq!(world.node.heard(), ["connect"]);
}
