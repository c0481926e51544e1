//! The way in: greeting, connecting, and what is refused before it.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Answer, HANDSHAKE, World, generous};

#[tokio::test]
async fn a_client_connects_sends_and_hears_itself() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    let mut bob = world.client("bob").await;
    let answer = ada.send(chat, "hi").await;
    assert_eq!(answer["ok"]["seq"], 1);
    let event = bob.frame().await;
    assert_eq!(event["event"], "message.new");
    assert_eq!(event["data"]["body"]["text"], "hi");
    assert_eq!(event["sender"], "ada");
    let own = ada.until(|frame| frame["event"] == "message.new").await;
    assert_eq!(own.len(), 1, "the sender's own connection gets the event too");
}

#[tokio::test]
async fn the_answer_to_connect_shows_the_inbox() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 3, false);
    let (_, told) = world.resumed("ada", json!({})).await;
    assert_eq!(told[chat.to_string()], json!({"recovered": false, "head": 3, "n": 3}));
    assert_eq!(world.node.connected("ada"), 1);
}

#[tokio::test]
async fn a_leaving_client_leaves_everywhere() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, true);
    let mut ada = world.client("ada").await;
    ada.ask("conversation.open", json!({"conversation": chat})).await;
    assert_eq!(world.gateway.connections(), 1);
    drop(ada);
    for _ in 0..200 {
        if world.gateway.connections() == 0 && world.node.connected("ada") == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.gateway.connections(), 0);
    let heard = world.node.heard();
    assert_eq!(heard, ["connect", "interest true", "conversation.open", "interest false", "disconnect"]);
}

#[tokio::test]
async fn nothing_but_connect_and_heartbeat_comes_first() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    stranger.say(json!({"id": 5, "heartbeat": {}})).await;
    assert_eq!(stranger.frame().await, json!({"id": 5, "ok": {}}));
    stranger.say(json!({"id": 6, "conversation.list": {}})).await;
    let (error, code) = stranger.closed().await;
    let error = error.unwrap();
    assert_eq!((error["id"].clone(), error["error"]["code"].clone()), (json!(6), json!("auth.required")));
    assert_eq!(code, 4501);
}

#[tokio::test]
async fn tokens_that_do_not_hold_end_the_connection() {
    let world = World::new().await;
    let other = World::new().await;
    for (token, code, close) in [
        ("nonsense".to_owned(), "auth.invalid", 4502),
        (String::new(), "auth.required", 4501),
        (other.token("ada"), "auth.invalid", 4502),
    ] {
        let mut stranger = world.stranger().await;
        stranger.say(json!({"id": 1, "connect": {"token": token}})).await;
        let (error, closed) = stranger.closed().await;
        let error = error.unwrap();
        assert_eq!((&error["id"], &error["error"]["code"]), (&json!(1), &json!(code)));
        assert_eq!(closed, close);
    }
    assert!(world.node.heard().is_empty(), "nobody asked the node");
}

#[tokio::test]
async fn a_malformed_connect_may_be_tried_again_and_a_second_one_is_refused() {
    let world = World::new().await;
    let mut client = world.stranger().await;
    client.say(json!({"id": 1, "connect": {"token": 7}})).await;
    assert_eq!(client.frame().await["error"]["field"], "token");
    client.say(json!({"id": 2, "connect": {"token": world.token("ada"), "colour": "red"}})).await;
    assert_eq!(client.frame().await["ok"]["ignored"], json!(["colour"]));
    client.say(json!({"id": 3, "connect": {"token": world.token("ada")}})).await;
    assert_eq!(client.frame().await["error"]["code"], "connection.already_connected");
    assert!(client.ask("conversation.list", json!({})).await["ok"].is_object(), "the connection survives");
}

#[tokio::test]
async fn before_connect_little_may_be_said() {
    let world = World::new().await;
    let mut stranger = world.stranger().await;
    let heartbeat = json!({"heartbeat": {"x": "y".repeat(10_000)}}).to_string();
    for _ in 0..8 {
        stranger.say_text(&heartbeat).await;
    }
    let (error, code) = stranger.closed().await;
    assert_eq!(error.unwrap()["error"]["code"], "request.too_large");
    assert_eq!(code, 1009);
    // One large frame is refused by its header.
    let mut stranger = world.raw().await;
    stranger.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]).await.unwrap();
    let mut seen = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stranger.read_to_end(&mut seen)).await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(&seen).contains("request.too_large"),
        "and in the end the server hangs up by itself"
    );
}

#[tokio::test]
async fn who_says_nothing_at_all_is_shown_out() {
    let world = World::new().await;
    let mut silent = world.tcp().await;
    let began = std::time::Instant::now();
    let mut half = world.tcp().await;
    half.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(15), silent.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "who has said nothing is told nothing: {end:?}");
    assert_eq!(Answer::read(&mut half).await.problem(), "request.timeout");
    assert!(began.elapsed() >= Duration::from_secs(9));
}

#[tokio::test]
async fn what_is_sent_with_the_handshake_is_not_lost() {
    let world = World::new().await;
    let token = world.token("ada");
    let text = json!({"id": 1, "connect": {"token": token}}).to_string();
    let mut bytes = HANDSHAKE.as_bytes().to_vec();
    bytes.extend(crate::hostile::masked(0x81, text.as_bytes()));
    let mut stream = world.tcp().await;
    stream.write_all(&bytes).await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains("\"user\":\"ada\"") {
        let count = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[tokio::test]
async fn handshakes_that_are_none_are_problems() {
    let world = World::new().await;
    let plain = world.http("GET /v1/ws HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!((plain.status, plain.problem().as_str()), (426, "request.upgrade_required"));
    assert_eq!(plain.header("upgrade"), Some("websocket"));
    let old = world.http(&HANDSHAKE.replace("version: 13", "version: 8")).await;
    assert_eq!((old.status, old.header("sec-websocket-version")), (426, Some("13")));
    let keyless = HANDSHAKE.replace("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "");
    let keyless = world.http(&keyless).await;
    assert_eq!((keyless.status, keyless.problem().as_str()), (400, "request.malformed"));
    let strange = HANDSHAKE.replace("\r\n\r\n", "\r\norigin: https://evil.example\r\nconnection: close\r\n\r\n");
    let strange = world.http(&strange).await;
    assert_eq!((strange.status, strange.problem().as_str()), (403, "forbidden"));
    let post = HANDSHAKE.replace("GET", "POST").replace("\r\n\r\n", "\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(world.http(&post).await.problem(), "request.method_not_allowed");
}

#[tokio::test]
async fn too_many_connections_are_refused_politely() {
    let world = World::with(|config| config.connections_max = 2).await;
    let _ada = world.client("ada").await;
    let _bob = world.client("bob").await;
    let refused = world.http("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), Some("5"));
    drop(_ada);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.http("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn an_address_that_comes_too_often_waits() {
    let world = World::with(|config| {
        config.limits.exempt_loopback = false;
        config.limits.handshakes = chappe_gateway::limiter::Rate { per_second: 1, burst: 3 };
    })
    .await;
    for _ in 0..3 {
        assert_eq!(world.http("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.status, 200);
    }
    let refused = world.http("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!((refused.status, refused.problem().as_str()), (429, "rate.limited"));
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_clients_are_counted() {
    let world = World::with(|config| {
        config.limits = generous();
        config.limits.handshakes = chappe_gateway::limiter::Rate { per_second: 1, burst: 1 };
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let upgrade = |client: &str| HANDSHAKE.replace("\r\n\r\n", &format!("\r\nx-forwarded-for: {client}\r\n\r\n"));
    let status = async |client: &str| {
        let mut stream = world.tcp().await;
        stream.write_all(upgrade(client).as_bytes()).await.unwrap();
        Answer::read(&mut stream).await.status
    };
    assert_eq!(status("203.0.113.1").await, 101);
    assert_eq!(status("203.0.113.1").await, 429);
    assert_eq!(status("203.0.113.2").await, 101);
}

#[tokio::test]
async fn a_refused_registration_ends_the_connection() {
    let world = World::new().await;
    world.node.behave(crate::node::Mode::Refusing(chappe_schema::error::Code::ConnectionLimit));
    let mut client = world.stranger().await;
    client.say(json!({"id": 1, "connect": {"token": world.token("ada")}})).await;
    let (error, code) = client.closed().await;
    assert_eq!(error.unwrap()["error"]["code"], "connection.limit");
    assert_eq!(code, 4430);
}
