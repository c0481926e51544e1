//! A node with two gateways in one process: what one of them is told reaches the clients of both, over real sockets.

#![allow(clippy::unwrap_used)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chappe_gateway::Running;
use chappe_node::node::wall_clock;
use chappe_schema::id::{DeviceId, UserId};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::*;

/// What is promised is 30 s; a push takes a moment, and this is its bound even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

struct World {
    node: Arc<Node>,
    store: Arc<Embedded>,
    gateways: [Running; 2],
    tokens: auth::Auth,
    data: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap()).await
    }

    async fn over(data: tempfile::TempDir) -> Self {
        let store = open_log(&data.path().join("log"), embedded::Config::default()).await.unwrap();
        let node = Node::start(Start {
            config: chappe_node::config::Config::default(),
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: Arc::new(wall_clock),
            dead: Arc::new(|why| panic!("{why}")),
        });
        let node = node.await.unwrap();
        let config =
            chappe_gateway::Config { listen: "127.0.0.1:0".parse().unwrap(), ..chappe_gateway::Config::default() };
        let resolve = || auth::resolve(&config.auth, config.listen, data.path()).unwrap();
        let start = || {
            let limiter = Arc::new(limiter::Local::new(&config.limits));
            Gateway::start(config.clone(), resolve(), limiter, Arc::clone(&node) as _)
        };
        let gateways = [start().await.unwrap(), start().await.unwrap()];
        let tokens = resolve();
        Self { node, store, gateways, tokens, data }
    }

    /// The same data, another life.
    async fn restarted(self) -> Self {
        let Self { node, store, gateways, data, .. } = self;
        drop(gateways);
        node.stop().await;
        drop(node);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
        Self::over(data).await
    }

    fn token(&self, device: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let (user, device) = (UserId::new("ada").unwrap(), DeviceId::new(device).unwrap());
        self.tokens.dev_tokens().unwrap().issue(&user, Some(&device), None, now).unwrap().token
    }

    async fn connect(&self, gateway: usize, token: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let url = format!("ws://{}/v1/ws", self.gateways[gateway].address());
        let (mut socket, _) = connect_async(url).await.unwrap();
        let connect = json!({"id": 1, "connect": {"token": token}}).to_string();
        socket.send(Message::text(connect)).await.unwrap();
        socket
    }

    /// The status of a request, and the code of its error.
    async fn ask(&self, gateway: usize, token: &str, method: &str, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.gateways[gateway].address()).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body["code"].clone())
    }
}

/// The next frame that has one of these keys.
async fn hear(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, key: &str) -> Value {
    let heard = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            let Message::Text(text) = message else { panic!("{message:?}") };
            for line in text.as_str().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                if line.get(key).is_some() {
                    return line;
                }
            }
        }
    };
    timeout(AT_ONCE, heard).await.unwrap()
}

/// The code with which a connection is closed.
async fn closed(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> u16 {
    let end = async {
        loop {
            if let Message::Close(close) = socket.next().await.unwrap().unwrap() {
                return close.unwrap().code.into();
            }
        }
    };
    timeout(AT_ONCE, end).await.expect("the connection stays open")
}

/// Goal: a log-out that one gateway is asked for reaches the other's sockets and requests, and outlives both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_out_at_one_gateway_is_one_at_the_other() {
    const LIST: &str = "/v1/conversations";
    let world = World::new().await;
    let (phone, laptop) = (world.token("phone"), world.token("laptop"));
    let mut sockets = [world.connect(0, &phone).await, world.connect(1, &phone).await, world.connect(1, &laptop).await];
    for socket in &mut sockets {
        assert!(hear(socket, "id").await["ok"].is_object());
    }
    // Both gateways know by now that nothing stands against ada.
    for gateway in [0, 1] {
        assert_eq!(world.ask(gateway, &phone, "GET", LIST).await.0, 200);
    }
    let [at_first, at_second, other] = &mut sockets;
    other.send(Message::text(json!({"id": 2, "session.logout": {"device": "phone"}}).to_string())).await.unwrap();
    assert!(hear(other, "id").await["ok"]["before"].is_string());
    let began = Instant::now();
    assert_eq!((closed(at_first).await, closed(at_second).await), (4503, 4503));
    for gateway in [0, 1] {
        assert_eq!(world.ask(gateway, &phone, "GET", LIST).await, (401, json!("auth.logged_out")), "gateway {gateway}");
        assert_eq!(world.ask(gateway, &laptop, "GET", LIST).await.0, 200);
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    // Everything, asked for at one, heard of at the other.
    assert_eq!(world.ask(0, &laptop, "POST", "/v1/sessions/logout_all").await.0, 200);
    assert_eq!(closed(other).await, 4503);
    assert_eq!(world.ask(1, &laptop, "GET", LIST).await, (401, json!("auth.logged_out")));
    let world = world.restarted().await;
    for gateway in [0, 1] {
        assert_eq!(world.ask(gateway, &laptop, "GET", LIST).await, (401, json!("auth.logged_out")));
        let mut socket = world.connect(gateway, &phone).await;
        assert_eq!(hear(&mut socket, "error").await["error"]["code"], "auth.logged_out");
        assert_eq!(closed(&mut socket).await, 4503);
        assert_eq!(world.ask(gateway, &world.token("phone"), "GET", LIST).await.0, 200);
    }
}
