//! Time, turned by hand: heartbeats, silence, expiry, stalls and commands that nobody answers.
//!
//! Connections run over pipes in memory, so that what a socket takes is the test's decision.

use std::{sync::Arc, time::Duration};

use chappe_cluster::{
    link::memory::MemoryLink,
    process::metrics::{Component, Metrics},
};
use chappe_schema::{
    access::{By, Token},
    command::Command,
    error::Error,
    id::{ConversationId, GatewayId},
    limit::COMMAND_DEADLINE_MS,
    operation::Op,
    reply::Reply,
    wire::Actor,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    Config, auth,
    gateway::Gateway,
    limiter::{self, Local, Rate},
    tests_node::{Mode, Node},
};

pub(crate) struct World {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) node: Arc<Node>,
    metrics: Metrics,
    _data: tempfile::TempDir,
}

pub(crate) struct Client(DuplexStream);

impl World {
    pub(crate) fn new() -> Self {
        Self::with(&limiter::Config::default())
    }

    fn with(limits: &limiter::Config) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = Config::default();
        let auth = auth::resolve(&config.auth, config.listen, data.path()).unwrap();
        let limiter = Arc::new(Local::new(limits));
        let node = Node::new();
        let metrics = Metrics::detached(&[Component::Gateway]).unwrap();
        let connect = |id, port| Arc::new(MemoryLink::join(id, Arc::clone(&node) as _, port)) as _;
        let join = || Gateway::join(config, auth, None, limiter, GatewayId(1), connect);
        let gateway = metrics.within(join);
        Self { gateway, node, metrics, _data: data }
    }

    /// The value of one series.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    }

    /// So many seconds pass, and each is swept.
    pub(crate) async fn pass(&self, seconds: u32) {
        for _ in 0..seconds {
            self.gateway.clock.turn(1);
            super::once(&self.gateway);
            tokio::task::yield_now().await;
        }
    }

    async fn stranger(&self, pipe: usize) -> Client {
        let (ours, theirs) = duplex(pipe);
        crate::websocket::begin(theirs, &[], &self.gateway, crate::websocket::encode::Format::Json);
        let mut client = Client(ours);
        assert!(client.text().await["hello"].is_object());
        client
    }

    pub(crate) fn token(&self, user: &str) -> String {
        self.token_for(user, 3600)
    }

    fn token_for(&self, user: &str, ttl_s: u64) -> String {
        let now = self.gateway.clock.now_ms();
        let tokens = self.gateway.auth.dev_tokens().unwrap();
        tokens.issue(&crate::tests_node::user(user), None, Some(ttl_s), now).unwrap().token
    }

    pub(crate) async fn client(&self, user: &str, ttl_s: u64, pipe: usize) -> Client {
        let mut client = self.stranger(pipe).await;
        let token = self.token_for(user, ttl_s);
        client.say(json!({"id": 1, "connect": {"token": token}})).await;
        assert_eq!(client.text().await["ok"]["user"], user);
        client
    }
}

impl Client {
    pub(crate) async fn say(&mut self, frame: Value) {
        self.say_raw(0x81, frame.to_string().as_bytes()).await;
    }

    async fn say_raw(&mut self, first: u8, payload: &[u8]) {
        let mut bytes = vec![first];
        if payload.len() < 126 {
            bytes.push(0x80 | payload.len() as u8);
        } else {
            bytes.push(0x80 | 126);
            bytes.extend((payload.len() as u16).to_be_bytes());
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let first = self.0.read_u8().await.unwrap();
            let length = match self.0.read_u8().await.unwrap() {
                126 => usize::from(self.0.read_u16().await.unwrap()),
                127 => self.0.read_u64().await.unwrap() as usize,
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.unwrap();
            (first, payload)
        };
        timeout(Duration::from_secs(5), read).await.expect("nothing came")
    }

    pub(crate) async fn text(&mut self) -> Value {
        let (first, payload) = self.frame().await;
        assert_eq!(first, 0x81, "{}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).unwrap()
    }

    /// An error frame and then a close frame.
    pub(crate) async fn ended(&mut self) -> (String, u16) {
        let mut error = String::new();
        loop {
            let (first, payload) = self.frame().await;
            if first == 0x88 {
                return (error, u16::from_be_bytes([payload[0], payload[1]]));
            }
            let frame: Value = serde_json::from_slice(&payload).unwrap();
            if let Some(code) = frame["error"]["code"].as_str() {
                error = code.to_owned();
            }
        }
    }

    pub(crate) async fn nothing(&mut self) {
        let quiet = timeout(Duration::from_millis(20), self.0.read_u8()).await;
        assert!(quiet.is_err(), "something came: {quiet:?}");
    }
}

#[tokio::test]
async fn a_silent_connection_is_kept_alive_by_heartbeats() {
    let world = World::new();
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    world.pass(24).await;
    ada.nothing().await;
    world.pass(2).await;
    // It tells up to where the inbox is known: a client that is behind fetches.
    assert_eq!(ada.text().await, json!({"heartbeat": {"cursor": "abc.1.7"}}));
    // Whatever is said counts, so the next one comes that much later.
    ada.say(json!({"id": 2, "heartbeat": {}})).await;
    assert_eq!(ada.text().await["id"], 2);
    world.pass(20).await;
    ada.nothing().await;
    world.pass(6).await;
    assert_eq!(ada.text().await, json!({"heartbeat": {"cursor": "abc.1.7"}}));
}

#[tokio::test]
async fn who_is_silent_for_too_long_is_let_go_and_a_pong_is_a_sign_of_life() {
    let world = World::new();
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    let mut bob = world.client("bob", 3600, 64 * 1024).await;
    world.pass(40).await;
    bob.say_raw(0x8A, b"").await;
    tokio::task::yield_now().await;
    world.pass(12).await;
    assert_eq!(ada.ended().await, ("connection.silent".into(), 4409));
    world.pass(30).await;
    bob.say(json!({"id": 2, "heartbeat": {}})).await;
    while bob.text().await["id"] != 2 {}
}

#[tokio::test]
async fn ten_seconds_are_enough_to_say_who_one_is() {
    let world = World::new();
    let mut stranger = world.stranger(64 * 1024).await;
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    world.pass(8).await;
    stranger.nothing().await;
    world.pass(3).await;
    assert_eq!(stranger.ended().await, ("auth.required".into(), 4501));
    ada.nothing().await;
}

#[tokio::test]
async fn heartbeats_before_connect_win_no_time() {
    let world = World::new();
    let mut stranger = world.stranger(64 * 1024).await;
    for _ in 0..9 {
        world.pass(1).await;
        stranger.say(json!({"heartbeat": {}})).await;
        tokio::task::yield_now().await;
    }
    stranger.nothing().await;
    world.pass(2).await;
    assert_eq!(stranger.ended().await, ("auth.required".into(), 4501));
}

/// Goal: a heartbeat a second is free, and whatever else no entity is asked costs as much as a command. Method: a budget
/// of three, which hardly flows in.
#[tokio::test]
async fn heartbeats_and_refreshes_go_on_the_budget() {
    let three = limiter::Config { commands: Rate { per_second: 1, burst: 3 }, ..limiter::Config::default() };
    let world = World::with(&three);
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    for _ in 0..20 {
        world.pass(1).await;
        ada.say(json!({"heartbeat": {}})).await;
        tokio::task::yield_now().await;
    }
    ada.nothing().await;
    assert_eq!(world.counted("chappe_gateway_connections{transport=\"websocket\"}"), 1);
    let now = world.gateway.clock.now_ms();
    let issue = |user| {
        let tokens = world.gateway.auth.dev_tokens().unwrap();
        tokens.issue(&crate::tests_node::user(user), None, Some(60), now).unwrap().token
    };
    for (user, frame) in [
        ("with_id", json!({"id": 9, "heartbeat": {}})),
        ("refresh", json!({"id": 9, "auth.refresh": {"token": issue("refresh")}})),
    ] {
        let mut client = world.client(user, 3600, 64 * 1024).await;
        let mut answers = Vec::new();
        for _ in 0..6 {
            client.say(frame.clone()).await;
            answers.push(client.text().await["error"]["code"].clone());
        }
        assert!(answers[..3].iter().all(Value::is_null), "{user}: {answers:?}");
        assert!(answers.iter().any(|code| code == "rate.limited"), "{user}: {answers:?}");
    }
    // Without an id nothing but the refusal is said, and too many of them end the connection as ever.
    let mut many = world.client("many", 3600, 64 * 1024).await;
    for _ in 0..6 {
        many.say(json!({"heartbeat": {}})).await;
    }
    assert_eq!(many.text().await["error"]["code"], "rate.limited");
}

#[tokio::test]
async fn a_connection_outlives_its_token_by_half_a_minute_at_most() {
    let world = World::new();
    let mut ada = world.client("ada", 60, 64 * 1024).await;
    let mut bob = world.client("bob", 60, 64 * 1024).await;
    for _ in 0..8 {
        world.pass(10).await;
        for client in [&mut ada, &mut bob] {
            client.say(json!({"id": 2, "heartbeat": {}})).await;
            while client.text().await["id"] != 2 {}
        }
    }
    let tokens = world.gateway.auth.dev_tokens().unwrap();
    let now = world.gateway.clock.now_ms();
    let token = tokens.issue(&crate::tests_node::user("bob"), None, Some(60), now).unwrap().token;
    bob.say(json!({"id": 3, "auth.refresh": {"token": token}})).await;
    while bob.text().await["id"] != 3 {}
    world.pass(12).await;
    assert_eq!(ada.ended().await, ("auth.expired".into(), 4401));
    bob.say(json!({"id": 4, "heartbeat": {}})).await;
    while bob.text().await["id"] != 4 {}
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_given_up() {
    let world = World::new();
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let mut ada = world.client("ada", 3600, 512).await;
    for _ in 0..20 {
        world.node.say(chat, "bob", &"x".repeat(400));
    }
    tokio::task::yield_now().await;
    world.pass(28).await;
    assert_eq!(world.gateway.connections.len(), 1);
    world.pass(4).await;
    // It reads after all: what was half written comes whole, and then the end.
    assert_eq!(ada.ended().await, ("connection.slow_consumer".into(), 4408));
}

#[tokio::test]
async fn a_goodbye_that_nobody_hears_ends_too() {
    let world = World::new();
    let chat = world.node.conversation(&["ada", "bob"], 0, false);
    let _ada = world.client("ada", 3600, 256).await;
    for _ in 0..20 {
        world.node.say(chat, "bob", &"x".repeat(400));
    }
    tokio::task::yield_now().await;
    world.pass(50).await;
    assert_eq!(world.gateway.connections.len(), 0);
    assert_eq!(world.node.connected("ada"), 0, "and the node is told");
}

#[tokio::test]
async fn what_a_node_does_not_answer_is_answered_in_its_place() {
    let world = World::new();
    let chat = world.node.conversation(&["ada"], 1, false);
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    world.node.behave(Mode::Silent);
    let send = |chat: ConversationId| json!({"conversation": chat, "client_msg_id": Uuid::now_v7(), "body": {}});
    ada.say(json!({"id": 2, "message.send": send(chat)})).await;
    ada.say(json!({"id": 3, "message.get": {"conversation": chat, "seq": 1}})).await;
    ada.say(json!({"id": 4, "conversation.open": {"conversation": chat}})).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.pass((COMMAND_DEADLINE_MS / 1000) as u32).await;
    ada.nothing().await;
    world.pass(4).await;
    let mut answers = [ada.text().await, ada.text().await, ada.text().await];
    answers.sort_by_key(|answer| answer["id"].as_u64());
    let codes = answers.map(|answer| answer["error"]["code"].as_str().unwrap().to_owned());
    assert_eq!(codes, ["outcome_unknown", "unavailable", "unavailable"]);
    assert_eq!(world.gateway.route.len(), 0);
    assert!(!world.gateway.listeners.any(chat), "an open that was not answered is none");
    world.node.behave(Mode::AtOnce);
    ada.say(json!({"id": 5, "message.send": send(chat)})).await;
    let answers = [ada.text().await, ada.text().await];
    assert!(answers.iter().any(|answer| answer["ok"]["seq"] == 2), "{answers:?}");
}

#[tokio::test]
async fn a_connect_that_is_not_answered_ends_the_connection() {
    let world = World::new();
    world.node.behave(Mode::Silent);
    let mut stranger = world.stranger(64 * 1024).await;
    let now = world.gateway.clock.now_ms();
    let tokens = world.gateway.auth.dev_tokens().unwrap();
    let token = tokens.issue(&crate::tests_node::user("ada"), None, None, now).unwrap().token;
    stranger.say(json!({"id": 1, "connect": {"token": token}})).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.pass(14).await;
    let (error, code) = stranger.ended().await;
    assert_eq!((error.as_str(), code), ("unavailable", 4413));
}

impl World {
    /// An HTTP request for a message, asked of a node that is silent.
    fn wait_for_a_message(&self, answer: tokio::sync::oneshot::Sender<Result<Reply, Error>>) {
        let actor = Actor { user: crate::tests_node::user("ada"), device: None, by: By::Token(Token::default()) };
        let command = Command::MessageGet { conversation: ConversationId(uuid::Uuid::nil()), seq: 1 };
        self.gateway.ask(crate::route::Pending::Waiter(Op::MessageGet, answer), actor, None, command);
    }
}

/// A client that is gone is no reason to say that a node is slow.
#[tokio::test]
async fn what_nobody_waits_for_any_longer_is_not_late() {
    const LATE: &str = "chappe_gateway_routes_total{result=\"timeout\"}";
    let world = World::new();
    let chat = world.node.conversation(&["ada"], 1, false);
    let mut ada = world.client("ada", 3600, 64 * 1024).await;
    world.node.behave(Mode::Silent);
    ada.say(json!({"id": 2, "message.get": {"conversation": chat, "seq": 1}})).await;
    let mut hasty = world.stranger(64 * 1024).await;
    let tokens = world.gateway.auth.dev_tokens().unwrap();
    let token = tokens.issue(&crate::tests_node::user("bob"), None, None, world.gateway.clock.now_ms()).unwrap().token;
    hasty.say(json!({"id": 1, "connect": {"token": token}})).await;
    let (answer, waiter) = tokio::sync::oneshot::channel();
    world.wait_for_a_message(answer);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(world.gateway.route.len(), 3);
    drop((ada, hasty, waiter));
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.pass(14).await;
    assert_eq!((world.gateway.route.len(), world.counted(LATE)), (0, 0));

    // One that still waits is.
    let bob = world.stranger(64 * 1024).await;
    let (answer, waiter) = tokio::sync::oneshot::channel();
    world.wait_for_a_message(answer);
    world.pass(14).await;
    assert_eq!(waiter.await.unwrap().unwrap_err().code, chappe_schema::error::Code::Unavailable);
    assert_eq!(world.counted(LATE), 1);
    drop(bob);
}
