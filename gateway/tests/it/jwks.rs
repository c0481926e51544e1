//! An issuer's keys: from a file and from a URL, replaced while people chat, from servers that are slow, down, huge or mad.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::Ed25519KeyPair,
};
use chappe_cluster::process::config::Period;
use chappe_gateway::{
    Config, Gateway, Running,
    auth::{self, Algorithm},
    limiter::Local,
};
use jsonwebtoken::{EncodingKey, Header, jwk::Jwk};
use parking_lot::Mutex;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    node::Node,
    world::{Answer, Client, generous},
};

/// Everything here is heard of within this time; what is promised is longer.
const SOON: Duration = Duration::from_secs(10);

// === an issuer

struct Key {
    kid: &'static str,
    signing: EncodingKey,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        Self { kid, signing: EncodingKey::from_ed_der(private.as_ref()) }
    }

    fn token(&self) -> String {
        self.token_with(self.kid)
    }

    fn token_with(&self, kid: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(jsonwebtoken::Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &json!({"sub": "ada", "iat": now - 1, "exp": now + 600}), &self.signing).unwrap()
    }
}

fn set(keys: &[&Key]) -> String {
    let publish = |key: &&Key| {
        let jwk = Jwk::from_encoding_key(&key.signing, jsonwebtoken::Algorithm::EdDSA).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(key.kid);
        jwk
    };
    json!({ "keys": keys.iter().map(publish).collect::<Vec<Value>>() }).to_string()
}

/// How its server behaves.
#[derive(Clone)]
enum Mood {
    /// It answers with this document.
    Good(String),
    /// With another status, and a place to go to.
    Status(u16, String),
    /// With bytes that are no HTTP.
    Garbage,
    /// It says much more than anybody wants to hear.
    Huge,
    /// It accepts and says nothing.
    Silent,
    /// It hangs up.
    Gone,
}

struct Site {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    _serving: tokio::task::JoinSet<()>,
}

impl Site {
    async fn new(mood: Mood) -> Self {
        Self::over(mood, None).await
    }

    async fn over(mood: Mood, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, asked) = (Arc::new(Mutex::new(mood)), Arc::new(AtomicUsize::new(0)));
        let mut serving = tokio::task::JoinSet::new();
        let (moods, count) = (Arc::clone(&mood), Arc::clone(&asked));
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (mood, tls) = (moods.lock().clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            // A client that does not trust us hangs up.
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(stream, mood).await;
                            }
                        }
                        None => answer(stream, mood).await,
                    }
                });
            }
        });
        Self { address, mood, asked, _serving: serving }
    }

    fn url(&self) -> String {
        format!("http://{}/keys.json", self.address)
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until it was asked once more.
    async fn asked_again(&self) {
        let (before, began) = (self.asked(), Instant::now());
        while self.asked() == before {
            assert!(began.elapsed() < SOON, "nobody asks");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // What was asked is also answered, and looked at.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, mood: Mood) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    assert!(head.starts_with(b"GET /keys.json HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
    let said = match mood {
        Mood::Good(document) => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len())
        }
        Mood::Status(status, location) => {
            format!("HTTP/1.1 {status} So\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
        }
        Mood::Garbage => "\u{1}\u{2} nonsense\r\n\r\n".repeat(100),
        Mood::Huge => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"keys\":[\"").await;
            while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
            return;
        }
        Mood::Silent => return std::future::pending().await,
        Mood::Gone => return,
    };
    let _ = stream.write_all(said.as_bytes()).await;
}

// === a gateway that trusts it

struct World {
    gateway: Running,
    _data: tempfile::TempDir,
}

impl World {
    async fn new(change: impl FnOnce(&mut auth::Config)) -> Self {
        let mut config = Config { listen: "127.0.0.1:0".parse().unwrap(), limits: generous(), ..Config::default() };
        config.auth.algorithm = Algorithm::EdDSA;
        config.auth.jwks_refresh = Period::secs(1);
        change(&mut config.auth);
        let data = tempfile::tempdir().unwrap();
        let problems = config.check(data.path());
        assert!(problems.is_empty(), "{problems:?}");
        let auth = auth::resolve(&config.auth, config.listen, data.path()).unwrap();
        let limiter = Arc::new(Local::new(&config.limits));
        let gateway = Gateway::start(config, auth, limiter, Node::new()).await.unwrap();
        Self { gateway, _data: data }
    }

    async fn of_url(site: &Site) -> Self {
        Self::new(|config| config.jwks_url = Some(site.url())).await
    }

    async fn of_file(path: &Path) -> Self {
        Self::new(|config| config.jwks_file = Some(path.to_owned())).await
    }

    async fn list(&self, token: &str) -> Answer {
        let mut stream = tokio::net::TcpStream::connect(self.gateway.address()).await.unwrap();
        let request = format!(
            "GET /v1/conversations HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
    }

    async fn status(&self, key: &Key) -> u16 {
        self.list(&key.token()).await.status
    }

    async fn becomes(&self, key: &Key, status: u16) {
        let began = Instant::now();
        loop {
            let now = self.status(key).await;
            if now == status {
                return;
            }
            assert!(began.elapsed() < SOON, "{} is still answered {now}", key.kid);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn socket(&self, token: &str) -> Client {
        let mut client = Client::of(self.gateway.address()).await;
        client.say(json!({"id": 1, "connect": {"token": token}})).await;
        client
    }
}

#[tokio::test]
async fn keys_of_a_url_are_replaced_while_people_chat() {
    let (old, new, thief) = (Key::new("old"), Key::new("new"), Key::new("old"));
    let site = Site::new(Mood::Good(set(&[&old]))).await;
    let world = World::of_url(&site).await;
    assert!(world.gateway.has_keys().await);
    assert_eq!((world.status(&old).await, world.status(&new).await, world.status(&thief).await), (200, 401, 401));
    let mut ada = world.socket(&old.token()).await;
    assert_eq!(ada.frame().await["ok"]["user"], "ada");
    site.be(Mood::Good(set(&[&new, &old])));
    world.becomes(&new, 200).await;
    assert_eq!(world.status(&old).await, 200, "both count while they overlap");
    site.be(Mood::Good(set(&[&new])));
    world.becomes(&old, 401).await;
    assert_eq!(world.status(&new).await, 200);
    // Who is there stays, with the token that it came with, and may go on with a newer one.
    assert!(ada.ask("auth.refresh", json!({"token": old.token()})).await["error"]["code"] == "auth.invalid");
    assert!(ada.ask("auth.refresh", json!({"token": new.token()})).await["ok"].is_object());
}

/// Goal: no token makes the gateway ask anybody anything. Method: tokens of every kind, and the issuer's own count of
/// who has asked it, as well as that of a thief's server that tokens point to.
#[tokio::test]
async fn no_token_makes_anybody_ask_anything() {
    let (ours, thief) = (Key::new("ours"), Key::new("thief"));
    let site = Site::new(Mood::Good(set(&[&ours]))).await;
    let trap = Site::new(Mood::Good(set(&[&thief]))).await;
    let world = World::new(|config| {
        config.jwks_url = Some(site.url());
        config.jwks_refresh = Period::hours(1);
    })
    .await;
    assert!(world.gateway.has_keys().await);
    let asked = site.asked();
    for kid in ["thief", "", "unknown", "../ours"] {
        for _ in 0..5 {
            let refused = world.list(&thief.token_with(kid)).await;
            assert_eq!((refused.status, refused.problem().as_str()), (401, "auth.invalid"), "{kid}");
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let published = Jwk::from_encoding_key(&thief.signing, jsonwebtoken::Algorithm::EdDSA).unwrap();
    for header in [
        Header { jku: Some(trap.url()), ..Header::new(jsonwebtoken::Algorithm::EdDSA) },
        Header { x5u: Some(trap.url()), ..Header::new(jsonwebtoken::Algorithm::EdDSA) },
        Header { jwk: Some(published), ..Header::new(jsonwebtoken::Algorithm::EdDSA) },
    ] {
        for kid in [None, Some("ours".to_owned()), Some("thief".to_owned())] {
            let header = Header { kid, ..header.clone() };
            let token = jsonwebtoken::encode(&header, &json!({"sub": "ada", "exp": now + 60}), &thief.signing).unwrap();
            assert_eq!(world.list(&token).await.status, 401);
            let mut client = world.socket(&token).await;
            assert_eq!(client.closed().await.1, 4502);
        }
    }
    assert_eq!((site.asked(), trap.asked()), (asked, 0));
    assert_eq!(world.status(&ours).await, 200);
}

#[tokio::test]
async fn whatever_happens_to_the_issuer_its_last_good_keys_stay() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let site = Site::new(Mood::Good(set(&[&old]))).await;
    let trap = Site::new(Mood::Good(set(&[&new]))).await;
    let world = World::of_url(&site).await;
    assert!(world.gateway.has_keys().await);
    for mood in [
        Mood::Gone,
        Mood::Garbage,
        Mood::Huge,
        Mood::Status(500, String::new()),
        Mood::Status(302, trap.url()),
        Mood::Status(204, String::new()),
        Mood::Good("<html>".to_owned()),
        Mood::Good(json!({"keys": []}).to_string()),
    ] {
        site.be(mood);
        site.asked_again().await;
        assert_eq!((world.status(&old).await, world.status(&new).await), (200, 401));
    }
    assert_eq!(trap.asked(), 0, "redirects are not followed");
    // An operator need not wait, and a server that says nothing holds nobody up.
    site.be(Mood::Silent);
    site.asked_again().await;
    let began = Instant::now();
    assert_eq!((world.status(&old).await, world.status(&new).await), (200, 401));
    assert!(began.elapsed() < Duration::from_secs(1));
    site.be(Mood::Good(set(&[&new])));
    let before = site.asked();
    assert!(world.gateway.reload_keys().fetching);
    world.becomes(&new, 401).await;
    // The fetch that hangs is given up in its time, and the next one succeeds.
    let began = Instant::now();
    while world.status(&new).await != 200 {
        assert!(began.elapsed() < Duration::from_secs(14), "a silent issuer is waited for for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(site.asked() > before);
}

#[tokio::test]
async fn until_the_keys_are_known_everybody_is_told_to_come_back() {
    let key = Key::new("1");
    let site = Site::new(Mood::Gone).await;
    let world = World::of_url(&site).await;
    site.asked_again().await;
    let refused = world.list(&key.token()).await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "unavailable"));
    assert_eq!((refused.json()["retryable"].clone(), refused.header("retry-after")), (json!(true), Some("1")));
    let (error, code) = world.socket(&key.token()).await.closed().await;
    assert_eq!((error.unwrap()["error"]["code"].as_str(), code), (Some("unavailable"), 4413));
    let mut known = std::pin::pin!(world.gateway.has_keys());
    assert!(tokio::time::timeout(Duration::from_millis(10), known.as_mut()).await.is_err());
    site.be(Mood::Good(set(&[&key])));
    assert!(tokio::time::timeout(SOON, known).await.unwrap());
    assert_eq!(world.status(&key).await, 200);
}

#[tokio::test]
async fn an_issuer_is_believed_only_with_a_certificate_that_holds() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (right, wrong) = (dir.path().join("right.pem"), dir.path().join("wrong.pem"));
    std::fs::write(&right, made.cert.pem()).unwrap();
    std::fs::write(&wrong, other.cert.pem()).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], private)
        .unwrap();
    let key = Key::new("1");
    let site = Site::over(Mood::Good(set(&[&key])), Some(TlsAcceptor::from(Arc::new(tls)))).await;
    let url = |host: &str| format!("https://{host}:{}/keys.json", site.address.port());
    let of = async |host: &str, ca: Option<&Path>| {
        let (url, ca) = (url(host), ca.map(Path::to_owned));
        World::new(|config| {
            config.jwks_url = Some(url);
            config.jwks_ca_file = ca;
        })
        .await
    };
    let world = of("localhost", Some(&right)).await;
    assert!(tokio::time::timeout(SOON, world.gateway.has_keys()).await.unwrap());
    assert_eq!(world.status(&key).await, 200);
    // Another authority, the system's, and the right one for another name.
    for (host, ca) in [("localhost", Some(wrong.as_path())), ("localhost", None), ("127.0.0.1", Some(right.as_path()))]
    {
        let world = of(host, ca).await;
        site.asked_again().await;
        site.asked_again().await;
        assert_eq!(world.status(&key).await, 503, "{host} {ca:?}");
    }
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_or_an_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let (old, new, last) = (Key::new("old"), Key::new("new"), Key::new("last"));
    std::fs::write(&path, set(&[&old])).unwrap();
    let world = World::of_file(&path).await;
    assert!(world.gateway.has_keys().await);
    assert_eq!((world.status(&old).await, world.status(&new).await), (200, 401));
    // By itself, however it was replaced: here as Kubernetes does, by exchanging a link.
    std::fs::write(dir.path().join("next"), set(&[&old, &new])).unwrap();
    std::fs::rename(dir.path().join("next"), &path).unwrap();
    world.becomes(&new, 200).await;
    assert_eq!(world.status(&old).await, 200);
    // At once, when asked; and nonsense changes nothing.
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(world.gateway.reload_keys().refused[..], [auth::SetupError::KeySet { .. }]));
    assert_eq!((world.status(&old).await, world.status(&new).await), (200, 200));
    std::fs::write(&path, set(&[&last])).unwrap();
    assert_eq!(world.gateway.reload_keys().read, ["jwks_file"]);
    assert_eq!((world.status(&old).await, world.status(&new).await, world.status(&last).await), (401, 401, 200));
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.status(&last).await, 200, "a file that is gone takes nothing with it");
}
