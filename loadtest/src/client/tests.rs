//! Goal: the client keeps its promises towards the application whatever its server does.
//! Method: a small server of one conversation whose faults are scripted, and the oracle on top.

#![allow(clippy::unwrap_used)]

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use uuid::Uuid;

use super::{Client, Down, Failure, News, Options};
use crate::{
    history::History,
    websocket::{self, Decoder, Item, Opcode, Role},
};

const HOME: Uuid = Uuid::from_u128(0x42);
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server does wrong at the next send.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Nothing. A client has no position to come back to before its first event.
    None,
    /// The message is stored, the connection breaks before the acknowledgement.
    Hangup,
    /// Refused for now.
    Busy,
    /// Refused for good.
    Refuse,
    /// Stored and acknowledged, but not delivered; the client is told to resync.
    Resync,
    /// As `Resync`, without the word.
    Skip,
    /// Stored and acknowledged, then the server goes away for a moment.
    GoingAway,
}

#[derive(Default)]
struct State {
    events: Vec<Value>,
    faults: VecDeque<Fault>,
    connects: Vec<Value>,
    sends: Vec<String>,
    verdict: Option<Value>,
    refusal: Option<Value>,
}

struct Server {
    url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    async fn start(faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { faults: faults.iter().copied().collect(), ..State::default() }));
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self { url, state }
    }

    async fn client(&self, history: &Arc<History>) -> (Client, super::Stream) {
        let options = Options { history: Some(Arc::clone(history)), page: 2, ..Options::default() };
        Client::connect(&self.url, "ada", "a token", options).await.unwrap()
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while websocket::head_end(&head).is_none() {
        stream.read_buf(&mut head).await.unwrap();
    }
    stream.write_all(websocket::handshake_answer(&head).unwrap().as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    say(&mut to, &[json!({"hello": {"connection": "c", "heartbeat_ms": 1000, "generation": "g1", "limits": {}}})])
        .await;
    let mut decoder = Decoder::new(Role::Server);
    while let Some(lines) = hear(&mut from, &mut decoder).await {
        for line in lines {
            let (answers, hang_up) = state.lock().answer(&line);
            if !say(&mut to, &answers).await || hang_up {
                return;
            }
        }
    }
}

async fn hear(from: &mut OwnedReadHalf, decoder: &mut Decoder) -> Option<Vec<Value>> {
    let mut bytes = vec![0; 4096];
    let read = from.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
    let mut lines = Vec::new();
    decoder
        .feed(&mut bytes[..read], &mut |item| {
            if let Item::Data(data) = item {
                lines.push(serde_json::from_slice(data).unwrap());
            }
        })
        .ok()?;
    Some(lines)
}

/// Everything in one message, newline-separated, as the protocol allows.
async fn say(to: &mut OwnedWriteHalf, lines: &[Value]) -> bool {
    let message: Vec<_> = lines.iter().map(Value::to_string).collect();
    let mut frame = Vec::new();
    websocket::encode(&mut frame, Opcode::Text, message.join("\n").as_bytes(), None);
    lines.is_empty() || to.write_all(&frame).await.is_ok()
}

impl State {
    fn head(&self) -> u64 {
        self.events.len() as u64
    }

    fn answer(&mut self, line: &Value) -> (Vec<Value>, bool) {
        let id = &line["id"];
        if let Some(connect) = line.get("connect") {
            return (self.welcome(id, connect), false);
        }
        if let Some(list) = line.get("event.list") {
            let after = list["after"].as_u64().unwrap() as usize;
            let page: Vec<_> = self.events.iter().skip(after).take(list["limit"].as_u64().unwrap() as usize).collect();
            return (vec![json!({"id": id, "ok": {"events": page, "head": self.head(), "floor": 0}})], false);
        }
        if let Some(send) = line.get("message.send") {
            return self.take_message(id, send);
        }
        (vec![], false)
    }

    fn welcome(&mut self, id: &Value, connect: &Value) -> Vec<Value> {
        self.connects.push(connect.clone());
        if let Some(refusal) = &self.refusal {
            return vec![json!({"id": id, "error": refusal})];
        }
        let mut lines = vec![json!({"id": id, "ok": {"user": "ada", "conversations": {}}})];
        if let Some(position) = connect["positions"].get(HOME.to_string()) {
            let verdict = self.verdict.clone().unwrap_or(json!({"recovered": true, "head": self.head()}));
            if verdict["recovered"] == true {
                lines.extend(self.events.iter().skip(position[1].as_u64().unwrap() as usize).cloned());
                lines.push(json!({"caught_up": {"conversation": HOME, "head": self.head()}}));
            }
            lines[0]["ok"]["conversations"][HOME.to_string()] = verdict;
        }
        lines
    }

    fn take_message(&mut self, id: &Value, send: &Value) -> (Vec<Value>, bool) {
        let message = send["client_msg_id"].as_str().unwrap().to_owned();
        self.sends.push(message.clone());
        let fault = self.faults.pop_front();
        match fault {
            Some(Fault::Busy) => {
                let error = json!({"code": "overloaded", "status": 503, "title": "busy", "retryable": true, "retry_after_ms": 5});
                return (vec![json!({"id": id, "error": error})], false);
            }
            Some(Fault::Refuse) => {
                let error = json!({"code": "conversation.not_found", "status": 404, "title": "no", "retryable": false});
                return (vec![json!({"id": id, "error": error})], false);
            }
            _ => {}
        }
        if let (Some(Fault::Hangup), Some(_)) =
            (fault, self.events.iter().find(|event| event["id"] == message.as_str()))
        {
            return (vec![], true);
        }
        if let Some(known) = self.events.iter().find(|event| event["id"] == message.as_str()) {
            return (vec![json!({"id": id, "ok": {"seq": known["seq"], "n": 1, "duplicate": true}})], false);
        }
        let seq = self.head() + 1;
        let event = json!({
            "event": "message.new", "conversation": HOME, "seq": seq, "n": seq, "sender": "ada", "id": message, "data": {"body": send["body"]}
        });
        self.events.push(event.clone());
        let ack = json!({"id": id, "ok": {"seq": seq, "n": seq}});
        match fault {
            Some(Fault::Hangup) => (vec![], true),
            Some(Fault::Resync) => (vec![json!({"resync": {"conversation": HOME, "head": seq}}), ack], false),
            Some(Fault::Skip) => (vec![ack], false),
            Some(Fault::GoingAway) => (vec![ack, event, json!({"going_away": {"reconnect_after_ms": 30}})], true),
            _ => (vec![event, ack], false),
        }
    }
}

fn body(number: u64) -> Value {
    json!({ "text": format!("message {number}") })
}

/// Sends `count` messages one after the other, hears them all, and lets the oracle judge.
async fn converse(faults: &[Fault], count: u64) -> (Server, Client) {
    let server = Server::start(faults).await;
    let history = History::in_memory();
    let (client, mut stream) = server.client(&history).await;
    for number in 1..=count {
        assert_eq!(client.send(HOME, &body(number)).await.unwrap().seq, number);
    }
    for number in 1..=count {
        let event = stream.event(PATIENCE).await.unwrap();
        assert_eq!((event.seq, &event.data["body"]), (number, &body(number)));
    }
    assert_eq!(client.read_all(HOME, 0, true).await.unwrap(), count);
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.stats.acked, verdict.stats.acked_unread), (count, 0));
    (server, client)
}

#[tokio::test]
async fn messages_are_acknowledged_and_heard() {
    let (server, client) = converse(&[], 5).await;
    assert_eq!(server.state.lock().sends.len(), 5);
    let counters = client.counters().await;
    assert_eq!((counters.acks, counters.events, counters.retries), (5, 5, 0));
    client.stop().await;
}

#[tokio::test]
async fn a_lost_acknowledgement_is_asked_for_again_under_the_same_id() {
    let (server, client) = converse(&[Fault::None, Fault::Hangup], 3).await;
    {
        let state = server.state.lock();
        assert_eq!(state.sends.len(), 4);
        assert_eq!(state.sends[1], state.sends[2]);
        assert_eq!(state.connects.len(), 2);
    }
    assert_eq!(client.counters().await.retries, 1);
}

#[tokio::test]
async fn a_resume_goes_on_where_the_client_was() {
    let (server, _client) = converse(&[Fault::GoingAway, Fault::GoingAway], 4).await;
    let state = server.state.lock();
    assert_eq!(state.connects.len(), 3);
    assert_eq!(state.connects[1]["positions"][HOME.to_string()], json!(["g1", 1]));
    assert_eq!(state.connects[2]["positions"][HOME.to_string()], json!(["g1", 2]));
}

#[tokio::test]
async fn busy_is_tried_again_later() {
    let (server, client) = converse(&[Fault::Busy, Fault::Busy], 2).await;
    assert_eq!(server.state.lock().sends.len(), 4);
    assert_eq!(client.counters().await.retries, 2);
}

#[tokio::test]
async fn a_refusal_is_the_answer() {
    let server = Server::start(&[Fault::Refuse]).await;
    let history = History::in_memory();
    let (client, _stream) = server.client(&history).await;
    let Err(Failure::Refused(refusal)) = client.send(HOME, &body(1)).await else { panic!("not refused") };
    assert_eq!((refusal.code.as_str(), refusal.status), ("conversation.not_found", 404));
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.stats.failed, 1);
}

#[tokio::test]
async fn a_resync_is_filled_from_history() {
    let server = Server::start(&[]).await;
    let history = History::in_memory();
    let (client, mut stream) = server.client(&history).await;
    for number in 1..=2 {
        client.send(HOME, &body(number)).await.unwrap();
    }
    server.state.lock().faults = VecDeque::from([Fault::Resync, Fault::Resync, Fault::Resync]);
    for number in 3..=7 {
        client.send(HOME, &body(number)).await.unwrap();
    }
    for number in 1..=7 {
        assert_eq!(stream.event(PATIENCE).await.unwrap().seq, number);
    }
    assert!(client.counters().await.resyncs == 3);
    client.read_all(HOME, 0, true).await.unwrap();
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}

#[tokio::test]
async fn a_silent_gap_is_filled_and_the_oracle_sees_it() {
    let server = Server::start(&[]).await;
    let history = History::in_memory();
    let (client, mut stream) = server.client(&history).await;
    client.send(HOME, &body(1)).await.unwrap();
    server.state.lock().faults = VecDeque::from([Fault::Skip, Fault::Skip, Fault::Skip]);
    for number in 2..=6 {
        client.send(HOME, &body(number)).await.unwrap();
    }
    for number in 1..=6 {
        assert_eq!(stream.event(PATIENCE).await.unwrap().seq, number);
    }
    assert_eq!(client.counters().await.gaps, 1);
    client.read_all(HOME, 0, true).await.unwrap();
    let verdict = history.verdict().unwrap();
    assert_eq!(verdict.counts, [(crate::oracle::Rule::Stream, 3)]);
}

#[tokio::test]
async fn a_limited_resume_is_filled_from_history() {
    let server = Server::start(&[]).await;
    let history = History::in_memory();
    let (client, mut stream) = server.client(&history).await;
    client.send(HOME, &body(1)).await.unwrap();
    server.state.lock().verdict = Some(json!({"recovered": false, "limited": true, "head": 4}));
    let other = History::in_memory();
    let (friend, _friend_stream) = server.client(&other).await;
    client.break_connection();
    for number in 2..=4 {
        friend.send(HOME, &body(number)).await.unwrap();
    }
    for number in 1..=4 {
        assert_eq!(stream.event(PATIENCE).await.unwrap().seq, number);
    }
}

#[tokio::test]
async fn a_refused_token_ends_the_client() {
    let server = Server::start(&[]).await;
    server.state.lock().refusal =
        Some(json!({"code": "auth.invalid", "status": 401, "title": "no", "retryable": false}));
    let error = Client::connect(&server.url, "ada", "bad", Options::default()).await.unwrap_err();
    assert!(error.to_string().contains("auth.invalid"), "{error}");
}

#[tokio::test]
async fn requests_are_given_up_in_the_end() {
    let server = Server::start(&[Fault::Hangup; 1000]).await;
    let history = History::in_memory();
    let options =
        Options { history: Some(Arc::clone(&history)), give_up: Duration::from_millis(300), ..Options::default() };
    let (client, mut stream) = Client::connect(&server.url, "ada", "t", options).await.unwrap();
    assert_eq!(client.send(HOME, &body(1)).await, Err(Failure::GivenUp));
    assert_eq!(history.verdict().unwrap().stats.unknown, 1);
    while let Some(news) = stream.next().await {
        if let News::Down(Down::Lost(_), false) = news {
            break;
        }
    }
    client.stop().await;
}
