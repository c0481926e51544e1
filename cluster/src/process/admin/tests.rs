//! Goal: whatever arrives on the admin port, the next probe is answered. Method: real sockets, written to by hand.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::process::health::HEARTBEAT_AGE_MAX;
use crate::process::metrics::Component;

struct Server {
    address: SocketAddr,
    health: Health,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn server() -> Server {
    let health = Health::new();
    let metrics = Metrics::detached(&[Component::Process]).unwrap();
    let echo = Router::new().route("/echo", axum::routing::post(|body: String| async move { body }));
    let admin = Admin::new(health.clone(), metrics, Version::of("test", 3, 4)).with_routes(echo);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, admin, async { drop(stopped.await) }));
    Server { address, health, stop, task }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    async fn send(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        split(&read_all(&mut stream).await)
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is fine: we may have been writing still.
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes))
        .await
        .expect("the server keeps the connection");
    String::from_utf8(bytes).unwrap()
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
}

#[tokio::test]
async fn probes_follow_health() {
    let server = server().await;
    let log = server.health.condition("log", Part::Startup);
    let store = server.health.condition("store", Part::Ready);
    let search = server.health.condition("search", Part::Informational);
    assert_eq!(server.get("/livez").await, (200, "ok\n".into()));
    assert_eq!(server.get("/startupz").await, (503, "[-] log: not known yet\nfailing\n".into()));
    store.ok();
    assert_eq!(server.get("/readyz").await, (503, "[-] log: not known yet\nfailing\n".into()));

    log.ok();
    search.failing("behind");
    assert_eq!(server.get("/startupz").await, (200, "ok\n".into()));
    assert_eq!(server.get("/readyz").await, (200, "ok\n".into()));
    let lines = "[+] log: ok\n[+] store: ok\n[!] search: behind\nok\n";
    assert_eq!(server.get("/readyz?verbose").await, (200, lines.into()));
    assert_eq!(server.get("/readyz?a=b&verbose=1").await, (200, lines.into()));

    store.failing("disk full");
    assert_eq!(server.get("/readyz").await, (503, "[-] store: disk full\nfailing\n".into()));
    store.ok();
    server.health.begin_draining();
    assert_eq!(server.get("/readyz").await, (503, "[-] draining: this process is leaving\nfailing\n".into()));
    assert_eq!(server.get("/livez").await.0, 200);

    server.health.beat_at(Instant::now().checked_sub(HEARTBEAT_AGE_MAX + Duration::from_secs(1)).unwrap());
    assert_eq!(server.get("/livez").await, (503, "the runtime has not turned for 11 s\n".into()));
}

#[tokio::test]
async fn health_and_version_are_json() {
    let server = server().await;
    let store = server.health.condition("store", Part::Ready);
    store.failing("disk full");
    let (code, body) = server.get("/health").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(code, 503);
    assert_eq!(body["status"], "failing");
    assert_eq!(body["conditions"][0]["name"], "store");
    assert_eq!(body["conditions"][0]["reason"], "disk full");
    assert_eq!(body["version"]["component"], "test");
    assert!(body["uptime_seconds"].is_u64());
    store.ok();
    let (code, body) = server.get("/health").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &body["status"]), (200, &"ok".into()));

    let (code, body) = server.get("/version").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &body["protocol_max"]), (200, &4.into()));
}

#[tokio::test]
async fn metrics_are_scraped() {
    let server = server().await;
    server.health.condition("store", Part::Ready).ok();
    let (code, body) = server.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(body.contains("chappe_ready_condition{condition=\"store\"} 1\n"), "{body}");
    assert!(body.contains("chappe_build_info{component=\"test\","), "{body}");
    assert!(body.contains("\nprocess_open_fds "), "{body}");
}

#[tokio::test]
async fn more_routes_can_be_merged_and_unknown_ones_are_not_found() {
    let server = server().await;
    let post = "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(server.send(post).await, (200, "hi".into()));
    assert_eq!(server.get("/nothing").await.0, 404);
    assert_eq!(server.send("POST /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.0, 405);
}

#[tokio::test]
async fn malformed_and_oversized_requests_are_refused() {
    let server = server().await;
    assert_eq!(server.send("\u{1}\u{2} not http at all\r\n\r\n").await.0, 400);
    let many = "a: b\r\n".repeat(HEADERS_MAX + 1);
    assert_eq!(server.send(&format!("GET /livez HTTP/1.1\r\n{many}\r\n")).await.0, 431);
    let long = "x".repeat(4 * HEAD_BYTES_MAX);
    assert_eq!(server.send(&format!("GET /livez HTTP/1.1\r\na: {long}\r\n\r\n")).await.0, 431);
    let body = "x".repeat(BODY_BYTES_MAX + 1);
    let length = body.len();
    assert_eq!(
        server
            .send(&format!(
                "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await
            .0,
        413
    );
    assert_eq!(server.get("/livez").await.0, 200);
}

#[tokio::test]
async fn clients_that_dawdle_lose_their_place_to_the_next_probe() {
    let server = server().await;
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /livez HT").await.unwrap();
        slow.push(stream);
    }
    let begun = Instant::now();
    let answer = timeout(HEAD_TIME_MAX + Duration::from_secs(10), server.get("/livez")).await.unwrap();
    assert_eq!(answer.0, 200);
    assert!(begun.elapsed() > HEAD_TIME_MAX / 2, "there was no queue, so nothing was tested");
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let server = server().await;
    let mut stream = server.connect().await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").await.unwrap();
    assert_eq!(split(&read_all(&mut stream).await).0, 408);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let (stream, _) = server.accept().await.unwrap();
    let mut stream = Unstalled::new(stream, Duration::from_millis(100));
    let endless = async {
        loop {
            if let Err(error) = stream.write_all(&[0; 64 * 1024]).await {
                return error.kind();
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(10), endless).await.unwrap(), io::ErrorKind::TimedOut);
    drop(client);
}

#[tokio::test]
async fn closing_the_port_finishes_what_is_being_answered() {
    let server = server().await;
    // One client idles on an open connection, another is in the middle of its body.
    let mut idle = server.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nh").await.unwrap();
    // Long enough for the server to have read it; if it has not, it finishes all the same or the test says so.
    sleep(Duration::from_millis(200)).await;

    server.stop.send(()).unwrap();
    sleep(Duration::from_millis(50)).await;
    busy.write_all(b"i").await.unwrap();
    assert_eq!(split(&read_all(&mut busy).await), (200, "hi".into()));
    timeout(Duration::from_secs(3), server.task).await.expect("the idle connection holds the port").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
