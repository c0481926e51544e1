//! A gateway on a port of its own, and clients that use the words of users: connect, send, expect.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chappe_cluster::process::config::Period;
use chappe_gateway::{
    Config, Gateway, Running,
    auth::{self, Auth},
    limiter::{self, Local, Rate},
};
use chappe_schema::id::{ConversationId, DeviceId};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};
use uuid::Uuid;

use crate::node::Node;

pub(crate) struct World {
    pub(crate) node: Arc<Node>,
    pub(crate) gateway: Running,
    auth: Auth,
    _data: tempfile::TempDir,
}

/// Limits that a test does not meet by accident.
pub(crate) fn generous() -> limiter::Config {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    limiter::Config {
        handshakes: rate,
        sends: rate,
        commands: rate,
        dev_tokens: rate,
        api_keys: rate,
        ..limiter::Config::default()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            drain_window: Period::ms(300),
            limits: generous(),
            ..Config::default()
        };
        change(&mut config);
        let data = tempfile::tempdir().unwrap();
        let resolve = || auth::resolve(&config.auth, config.listen, data.path()).unwrap();
        let (auth, ours) = (resolve(), resolve());
        let limiter = Arc::new(Local::new(&config.limits));
        let node = Node::new();
        let gateway = Gateway::start(config, auth, limiter, Arc::clone(&node) as _).await.unwrap();
        Self { node, gateway, auth: ours, _data: data }
    }

    pub(crate) fn token(&self, user: &str) -> String {
        self.token_for(user, 3600)
    }

    pub(crate) fn token_for(&self, user: &str, ttl_s: u64) -> String {
        self.issue(user, None, ttl_s)
    }

    /// A token that names its device.
    pub(crate) fn token_on(&self, user: &str, device: &str) -> String {
        self.issue(user, Some(device), 3600)
    }

    fn issue(&self, user: &str, device: Option<&str>, ttl_s: u64) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        let device = device.map(|name| DeviceId::new(name).unwrap());
        let issued = self.auth.dev_tokens().unwrap().issue(&crate::node::user(user), device.as_ref(), Some(ttl_s), now);
        issued.unwrap().token
    }

    /// A client that has been greeted and has not said a word.
    pub(crate) async fn stranger(&self) -> Client {
        Client::of(self.gateway.address()).await
    }

    /// A client that is connected.
    pub(crate) async fn client(&self, user: &str) -> Client {
        self.resumed(user, json!({})).await.0
    }

    /// A client that comes back with positions, and what it was told.
    pub(crate) async fn resumed(&self, user: &str, positions: Value) -> (Client, Value) {
        let mut client = self.stranger().await;
        client.say(json!({"id": 1, "connect": {"token": self.token(user), "positions": positions}})).await;
        let answer = client.frame().await;
        assert_eq!(answer["ok"]["user"], user, "{answer}");
        (client, answer["ok"]["conversations"].clone())
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.gateway.address()).await.unwrap()
    }

    /// A WebSocket by hand, greeted, for clients that no library would be.
    pub(crate) async fn raw(&self) -> TcpStream {
        let mut stream = self.tcp().await;
        stream.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        stream
    }

    /// One HTTP exchange on a connection of its own.
    pub(crate) async fn http(&self, request: &str) -> Answer {
        let mut stream = self.tcp().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
    }

    /// A JSON request with a token.
    pub(crate) async fn ask(&self, user: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.ask_with(user, method, path, body, "").await
    }

    pub(crate) async fn ask_with(
        &self,
        user: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &str,
    ) -> Answer {
        let token = self.token(user);
        let body = body.map(Value::to_string).unwrap_or_default();
        let typed = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        self.http(&format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{typed}{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await
    }
}

pub(crate) const HANDSHAKE: &str = "GET /v1/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut buffer = [0; 8192];
        let wait = Duration::from_secs(15);
        loop {
            let text = String::from_utf8_lossy(&bytes);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                if body.len() >= length.unwrap_or(0) {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return Self { status, head, body: body.to_owned() };
                }
            }
            let count = timeout(wait, stream.read(&mut buffer)).await.expect("no answer").unwrap();
            assert!(count > 0, "the connection ended before the answer: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&buffer[..count]);
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The code of a problem, which must have the one shape.
    pub(crate) fn problem(&self) -> String {
        let json = self.json();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(json["status"], self.status, "{json}");
        assert!(json["title"].is_string() && json["retryable"].is_boolean(), "{json}");
        if let Some(id) = self.header("x-request-id") {
            assert_eq!(json["request_id"], id);
        }
        json["code"].as_str().unwrap().to_owned()
    }
}

/// A WebSocket client of another author's.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    lines: Vec<Value>,
    next_id: u64,
}

impl Client {
    /// One that has been greeted.
    pub(crate) async fn of(gateway: SocketAddr) -> Self {
        let (socket, _) = connect_async(format!("ws://{gateway}/v1/ws")).await.unwrap();
        let mut client = Self { socket, lines: Vec::new(), next_id: 100 };
        let hello = client.frame().await;
        assert!(hello["hello"]["connection"].is_string(), "{hello}");
        client
    }

    pub(crate) async fn say(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    pub(crate) async fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next frame, whatever it is.
    pub(crate) async fn frame(&mut self) -> Value {
        while self.lines.is_empty() {
            let message =
                timeout(Duration::from_secs(10), self.socket.next()).await.expect("nothing came").unwrap().unwrap();
            match message {
                Message::Text(text) => {
                    self.lines = text.as_str().lines().rev().map(|line| serde_json::from_str(line).unwrap()).collect();
                }
                Message::Close(close) => panic!("closed: {close:?}"),
                _ => {}
            }
        }
        self.lines.pop().unwrap()
    }

    /// What arrives within a while.
    pub(crate) async fn all_within(&mut self, wait: Duration) -> Vec<Value> {
        let mut seen = Vec::new();
        while let Ok(frame) = timeout(wait, self.frame()).await {
            seen.push(frame);
        }
        seen
    }

    /// Frames up to and including the one that satisfies `last`.
    pub(crate) async fn until(&mut self, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let frame = self.frame().await;
            let is_last = last(&frame);
            seen.push(frame);
            if is_last {
                return seen;
            }
        }
    }

    /// A request and its answer; other frames in between are dropped.
    pub(crate) async fn ask(&mut self, name: &str, args: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        self.say(json!({"id": id, name: args})).await;
        self.until(|frame| frame["id"] == id).await.pop().unwrap()
    }

    pub(crate) async fn send(&mut self, conversation: ConversationId, text: &str) -> Value {
        let args = json!({"conversation": conversation, "client_msg_id": Uuid::now_v7(), "body": {"text": text}});
        self.ask("message.send", args).await
    }

    /// The last error frame and the close code.
    pub(crate) async fn closed(&mut self) -> (Option<Value>, u16) {
        let mut error = None;
        for line in self.lines.drain(..).rev() {
            if line.get("error").is_some() {
                error = Some(line);
            }
        }
        loop {
            let message = timeout(Duration::from_secs(10), self.socket.next()).await.expect("not closed");
            match message {
                Some(Ok(Message::Text(text))) => {
                    for line in text.as_str().lines() {
                        let line: Value = serde_json::from_str(line).unwrap();
                        if line.get("error").is_some() {
                            error = Some(line);
                        }
                    }
                }
                Some(Ok(Message::Close(close))) => {
                    return (
                        error,
                        close.map_or(1005, |close| match close.code {
                            CloseCode::Normal => 1000,
                            code => code.into(),
                        }),
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("lost: {error}"),
                None => panic!("ended without a close"),
            }
        }
    }
}
