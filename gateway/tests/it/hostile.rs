//! Clients that break rules, one rule each: what they are told, and that everybody else is left in peace.

use std::time::Duration;

use chappe_cluster::process::metrics;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::world::World;

/// A client's frame.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [7, 77, 177, 250];
    bytes.extend(mask);
    bytes.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index & 3]));
    bytes
}

/// Everything a server sends up to its close frame: texts and the close code.
async fn to_the_end(stream: &mut TcpStream) -> (Vec<Value>, Option<u16>) {
    let mut texts = Vec::new();
    let read = async {
        loop {
            let first = stream.read_u8().await.ok()?;
            let length = match stream.read_u8().await.ok()? {
                126 => usize::from(stream.read_u16().await.ok()?),
                127 => stream.read_u64().await.ok()? as usize,
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.ok()?;
            match first {
                0x81 => texts.push(serde_json::from_slice(&payload).unwrap()),
                0x88 => return Some(u16::from_be_bytes([payload[0], payload[1]])),
                _ => {}
            }
        }
    };
    let code = timeout(Duration::from_secs(10), read).await.expect("the server does not close");
    (texts, code)
}

async fn connected(world: &World) -> TcpStream {
    let mut stream = world.raw().await;
    let connect = json!({"id": 1, "connect": {"token": world.token("mallory")}}).to_string();
    stream.write_all(&masked(0x81, connect.as_bytes())).await.unwrap();
    let mut buffer = [0; 4096];
    let mut seen = String::new();
    while !seen.contains("mallory") {
        let count = stream.read(&mut buffer).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    stream
}

#[tokio::test]
async fn broken_frames_end_with_the_standards_codes() {
    let world = World::new().await;
    let mut unmasked = vec![0x81, 2];
    unmasked.extend(b"{}");
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (unmasked, 1002, "connection.protocol"),
        (masked(0xC1, b"{}"), 1002, "connection.protocol"),
        (masked(0x83, b"{}"), 1002, "connection.protocol"),
        (masked(0x80, b"{}"), 1002, "connection.protocol"),
        (masked(0x09, b"x"), 1002, "connection.protocol"),
        ([masked(0x01, b"{"), masked(0x81, b"}")].concat(), 1002, "connection.protocol"),
        (masked(0x81, b"{\"a\":\"\xff\"}"), 1007, "connection.protocol"),
        (masked(0x81, &vec![b' '; 90_000]), 1009, "request.too_large"),
        ([masked(0x01, &vec![b' '; 50_000]), masked(0x80, &vec![b' '; 50_000])].concat(), 1009, "request.too_large"),
        (masked(0x82, b"{}"), 4510, "connection.protocol"),
    ];
    for (bytes, code, error) in cases {
        let mut stream = connected(&world).await;
        // The server may close before everything is sent.
        let _ = stream.write_all(&bytes).await;
        let (texts, closed) = to_the_end(&mut stream).await;
        assert_eq!(closed, Some(code), "{texts:?}");
        assert_eq!(texts.last().unwrap()["error"]["code"], error, "{code}");
    }
}

#[tokio::test]
async fn nonsense_is_answered_and_survived() {
    let world = World::new().await;
    let mut client = world.client("mallory").await;
    let deep = format!("{{\"id\":1,\"message.send\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let deep_body = format!(
        r#"{{"id":1,"message.send":{{"conversation":"01890a5d-ac96-774b-bcce-b302099a8057","client_msg_id":"01890a5d-ac96-774b-bcce-b302099a8057","body":{{"a":{}1{}}}}}}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    for (text, code) in [
        ("", ""),
        ("{", "request.malformed"),
        ("nonsense", "request.malformed"),
        ("[]", "request.malformed"),
        ("{}", "request.malformed"),
        (r#"{"id":1}"#, "request.malformed"),
        (r#"{"id":1,"a":1,"b":2}"#, "request.malformed"),
        (r#"{"id":-1,"heartbeat":{}}"#, "request.malformed"),
        (r#"{"id":1,"message.fly":{}}"#, "request.unknown_operation"),
        (r#"{"id":1,"message.send":7}"#, "request.malformed"),
        (r#"{"id":1,"message.send":{}}"#, "request.invalid"),
        (r#"{"id":1,"conversation.get":{"conversation":"x"}}"#, "request.invalid"),
        (deep.as_str(), "request.malformed"),
        (deep_body.as_str(), "request.invalid"),
    ] {
        client.say_text(text).await;
        if code.is_empty() {
            continue;
        }
        let answer = client.frame().await;
        assert_eq!(answer["error"]["code"], code, "{}", &text[..text.len().min(80)]);
        assert!(answer["error"]["request_id"].is_string());
    }
    let answer = client.ask("conversation.list", json!({"limti": 5})).await;
    assert_eq!(answer["ok"]["ignored"], json!(["limti"]));
}

#[tokio::test]
async fn foreign_conversations_look_like_none() {
    let world = World::new().await;
    let theirs = world.node.conversation(&["ada"], 1, false);
    let mut mallory = world.client("mallory").await;
    let foreign = mallory.ask("conversation.get", json!({"conversation": theirs})).await;
    let missing = mallory.ask("conversation.get", json!({"conversation": uuid::Uuid::now_v7()})).await;
    assert_eq!(foreign["error"]["code"], missing["error"]["code"]);
    let (_, told) = world.resumed("mallory", json!({theirs.to_string(): ["abc", 1]})).await;
    assert_eq!(told[theirs.to_string()], json!({"recovered": false, "reason": "not_found"}));
}

#[tokio::test]
async fn fragments_and_pings_in_between_are_read() {
    let world = World::new().await;
    let mut stream = connected(&world).await;
    let text = br#"{"id":9,"heartbeat":{}}"#;
    let mut bytes = masked(0x01, &text[..5]);
    bytes.extend(masked(0x89, b"are you there"));
    bytes.extend(masked(0x00, &text[5..10]));
    bytes.extend(masked(0x80, &text[10..]));
    // One byte at a time is a client too.
    for byte in bytes {
        stream.write_all(&[byte]).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains(r#"{"id":9,"ok":{}}"#) {
        let count = timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    assert!(seen.windows(15).any(|window| window == b"\x8a\x0dare you there"), "the ping was answered");
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_with_the_last_one_and_costs_nothing() {
    let world = World::new().await;
    let chat = world.node.conversation(&["mallory"], 0, false);
    let mut stream = connected(&world).await;
    let pings: Vec<u8> = (0..50_000u32).flat_map(|n| masked(0x89, &n.to_be_bytes())).collect();
    stream.write_all(&pings).await.unwrap();
    stream.write_all(&masked(0x81, br#"{"id":9,"heartbeat":{}}"#)).await.unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 65536];
    while !String::from_utf8_lossy(&seen).contains(r#"{"id":9,"ok":{}}"#) {
        let count = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    let last = 49_999u32.to_be_bytes();
    assert!(seen.windows(6).any(|window| window[..2] == [0x8a, 4] && window[2..] == last));
    world.node.say(chat, "mallory", "still here");
}

#[tokio::test]
async fn polite_closes_are_answered_politely() {
    let world = World::new().await;
    let mut stream = connected(&world).await;
    stream.write_all(&masked(0x88, &[3, 232])).await.unwrap();
    assert_eq!(to_the_end(&mut stream).await.1, Some(1000));
    let mut client = world.client("ada").await;
    client.socket.close(None).await.unwrap();
    assert!(matches!(
        timeout(Duration::from_secs(2), futures_util::StreamExt::next(&mut client.socket)).await,
        Ok(None | Some(Ok(Message::Close(_))))
    ));
}

#[tokio::test]
async fn who_goes_on_after_being_limited_is_closed() {
    let world = World::with(|config| {
        config.limits.commands = chappe_gateway::limiter::Rate { per_second: 1, burst: 5 };
    })
    .await;
    let mut client = world.client("mallory").await;
    let mut limited = 0;
    for _ in 0..10 {
        let answer = client.ask("conversation.list", json!({})).await;
        if answer["error"]["code"] == "rate.limited" {
            assert!(answer["error"]["retry_after_ms"].as_u64().unwrap() > 0);
            limited += 1;
        }
    }
    assert!(limited >= 4, "{limited}");
    // Nonsense is not cheaper than sense.
    let many = "{\"id\":1,\"nothing\":{}}\n".repeat(400);
    client.say_text(&many).await;
    let (error, code) = client.closed().await;
    assert_eq!(error.unwrap()["error"]["code"], "rate.limited");
    assert_eq!(code, 4429);
}

#[tokio::test]
async fn a_node_that_panics_hurts_only_whoever_asked() {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada").await;
    let mut bob = world.client("bob").await;
    world.node.behave(crate::node::Mode::Panicking);
    ada.say(json!({"id": 1, "conversation.get": {"conversation": chat}})).await;
    let end = timeout(Duration::from_secs(5), futures_util::StreamExt::next(&mut ada.socket)).await.unwrap();
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
    world.node.behave(crate::node::Mode::AtOnce);
    assert_eq!(bob.send(chat, "still here").await["ok"]["seq"], 1);
    assert_eq!(world.gateway.connections(), 1);
}

#[tokio::test]
async fn a_panic_over_http_is_counted_and_frees_its_place() {
    let metrics = metrics::install(&[metrics::Component::Gateway]).unwrap();
    let counted = || {
        let text = metrics.render();
        let value = |series: &str| text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        value("chappe_gateway_panics_total{task=\"http\"}").unwrap()
    };
    let world = World::new().await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let before = counted();
    world.node.behave(crate::node::Mode::Panicking);
    let mut stream = world.tcp().await;
    let token = world.token("ada");
    let request = format!("GET /v1/conversations/{chat} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    world.node.behave(crate::node::Mode::AtOnce);
    assert!(counted() > before);
    assert_eq!(world.ask("ada", "GET", &format!("/v1/conversations/{chat}"), None).await.status, 200);
    assert_eq!(world.gateway.drain().await.left, 0);
}
