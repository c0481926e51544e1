//! Leaving: every client is told, nobody is cut off, and not all at once.

use std::time::{Duration, Instant};

use chappe_cluster::process::config::Period;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    node::Mode,
    world::{Answer, World},
};

#[tokio::test]
async fn clients_are_told_when_to_come_back_and_closed_in_slices() {
    let world = World::with(|config| config.drain_window = Period::ms(600)).await;
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(world.client(&format!("user{n}")).await);
    }
    let began = Instant::now();
    let waiting = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let told = client.frame().await["going_away"]["reconnect_after_ms"].as_u64().unwrap();
            let (error, code) = client.closed().await;
            (told, error, code, began.elapsed())
        })
    });
    let waiting: Vec<_> = waiting.collect();
    let drained = world.gateway.drain().await;
    assert_eq!((drained.told, drained.left), (30, 0));
    let mut ends = Vec::new();
    for client in waiting {
        let (told, error, code, after) = client.await.unwrap();
        assert!(told <= 600);
        assert_eq!((error, code), (None, 4410));
        ends.push(after);
    }
    ends.sort_unstable();
    assert!(ends[29] - ends[0] >= Duration::from_millis(300), "they were closed over a while: {ends:?}");
    assert!(tokio::net::TcpStream::connect(world.gateway.address()).await.is_err(), "nobody is accepted any longer");
}

#[tokio::test]
async fn what_has_begun_is_finished() {
    let world = World::with(|config| config.drain_window = Period::ms(400)).await;
    let chat = world.node.conversation(&["ada"], 0, false);
    let mut ada = world.client("ada").await;
    world.node.behave(Mode::Slow(Duration::from_millis(200)));
    let body = json!({"client_msg_id": uuid::Uuid::now_v7(), "body": {"text": "by http"}}).to_string();
    let mut stream = world.tcp().await;
    let request = format!(
        "POST /v1/conversations/{chat}/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        world.token("ada"),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let args = json!({"conversation": chat, "client_msg_id": uuid::Uuid::now_v7(), "body": {}});
    ada.say(json!({"id": 7, "message.send": args})).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answers = async {
        let http = Answer::read(&mut stream).await.status;
        let frames = ada.until(|frame| frame["id"] == 7).await;
        (http, frames.last().unwrap()["ok"]["seq"].is_u64())
    };
    let (drained, answers) = tokio::join!(world.gateway.drain(), answers);
    assert_eq!(answers, (201, true));
    assert_eq!(drained.left, 0);
}

#[tokio::test]
async fn with_nobody_there_leaving_is_quick() {
    let world = World::with(|config| config.drain_window = Period::secs(60)).await;
    let began = Instant::now();
    assert_eq!(world.gateway.drain().await.told, 0);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_gateway_that_is_dropped_closes_its_connections() {
    let World { node, gateway, .. } = {
        let world = World::new().await;
        let mut ada = world.client("ada").await;
        tokio::spawn(async move { ada.closed().await });
        world
    };
    drop(gateway);
    for _ in 0..200 {
        if node.connected("ada") == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the node still knows of the connection");
}
