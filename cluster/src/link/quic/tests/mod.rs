//! Real sockets over loopback. What is awaited is an event; the deadlines are for a machine that has other things to do.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

use super::{
    Answer, Connection, Endpoint, Handler, Hello, Role, Settings, Way, authority::Authority, identity::Identity,
    settings,
};
use crate::process::metrics::{Component, Metrics};

mod handshake;
mod hostile;
mod identity;
mod lanes;
mod life;
mod questions;

const LONG: Duration = Duration::from_secs(60);
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Processes that believe each other.
struct World {
    authority: Authority,
    _folder: TempDir,
}

/// One of them.
struct Party {
    endpoint: Endpoint,
    probe: Arc<Probe>,
    metrics: Metrics,
}

type OnFrame = fn(&Arc<Connection>, u8, u16, Bytes);

/// Remembers all that it is told.
#[derive(Default)]
struct Probe {
    seen: Mutex<Seen>,
    changed: watch::Sender<()>,
    /// What to do with questions; without it they come back.
    on_question: Option<fn(Bytes) -> Answer>,
    /// What to do with frames instead of remembering them.
    on_frame: Option<OnFrame>,
}

#[derive(Default)]
struct Seen {
    connected: Vec<Arc<Connection>>,
    lost: Vec<u64>,
    frames: Vec<(u64, u8, u16, Bytes)>,
    datagrams: Vec<(u16, Bytes)>,
    /// Connections as they came and went, in this order.
    order: Vec<(&'static str, u64)>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { authority: Authority::open_or_create(folder.path()).unwrap(), _folder: folder }
    }

    fn node(&self, uid: u64) -> Party {
        Party::new(self.authority.issue(Role::Node, None).unwrap(), hello(Role::Node, uid))
    }

    fn gateway(&self, uid: u64) -> Party {
        Party::new(self.authority.issue(Role::Gateway, None).unwrap(), hello(Role::Gateway, uid))
    }

    /// A certificate of this authority with any name and time.
    fn identity(
        &self,
        name: &str,
        from: SystemTime,
        lives: Duration,
    ) -> Result<Identity, super::identity::IdentityError> {
        let (certificate, key) = self.authority.make(name, from, lives).unwrap();
        let authority = rustls_pki_types::pem::PemObject::from_pem_slice(self.authority.certificate_pem().as_bytes());
        let authority: CertificateDer<'static> = authority.unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity::new(&[authority], vec![certificate.der().clone()], key, b"a secret")
    }
}

fn hello(role: Role, uid: u64) -> Hello {
    let name = format!("{role}-{uid}");
    Hello { role, uid, incarnation: 1, cluster: 0, protocol_min: 1, protocol_max: 1, name }
}

/// Loses patience soon, so that tests of it do not take long.
fn impatient() -> Settings {
    Settings { idle_timeout: Duration::from_secs(1), keep_alive: Duration::from_millis(200), ..Settings::default() }
}

impl Party {
    fn new(identity: Identity, hello: Hello) -> Self {
        Self::with(identity, hello, impatient(), HERE, Probe::default())
    }

    fn with(identity: Identity, hello: Hello, settings: Settings, address: SocketAddr, probe: Probe) -> Self {
        let (probe, metrics) = (Arc::new(probe), Metrics::detached(&[Component::Link]).unwrap());
        let handler: Arc<dyn Handler> = Arc::clone(&probe) as _;
        let endpoint = metrics.within(|| Endpoint::bind(address, identity, hello, settings, handler)).unwrap();
        Self { endpoint, probe, metrics }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// A way that is up.
    async fn reach(&self, other: &Party) -> Way {
        let way = self.endpoint.way(None, other.address());
        self.probe.until("a connection", |seen| seen.connected.len() > seen.lost.len()).await;
        other.probe.until("the same at the other end", |seen| seen.connected.len() > seen.lost.len()).await;
        eventually("the way knows its connection", || way.connection().is_some()).await;
        way
    }

    /// A series as it is scraped.
    fn count(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
    }

    async fn until_counted(&self, series: &str, at_least: u64) {
        eventually(series, || self.count(series) >= at_least).await;
    }
}

impl Probe {
    async fn until(&self, what: &str, mut check: impl FnMut(&Seen) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !check(&self.seen.lock()) {
                // Its sender is here.
                let _ = changed.changed().await;
            }
        };
        assert!(timeout(LONG, wait).await.is_ok(), "waited in vain: {what}");
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock()
    }

    fn note(&self, act: impl FnOnce(&mut Seen)) {
        act(&mut self.seen.lock());
        self.changed.send_replace(());
    }

    /// One connection came, and is there.
    fn is_undisturbed(&self) {
        let seen = self.seen();
        assert_eq!((seen.connected.len(), seen.lost.len()), (1, 0));
    }

    /// The connection that came last.
    fn last(&self) -> Arc<Connection> {
        Arc::clone(self.seen().connected.last().unwrap())
    }
}

/// Waits for what nobody tells of.
async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let wait = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, wait).await.is_ok(), "waited in vain: {what}");
}

impl Handler for Probe {
    fn connected(&self, connection: &Arc<Connection>) {
        self.note(|seen| {
            seen.connected.push(Arc::clone(connection));
            seen.order.push(("connected", connection.number()));
        });
    }

    fn frame(&self, from: &Arc<Connection>, lane: u8, kind: u16, frame: Bytes) {
        match self.on_frame {
            Some(act) => act(from, lane, kind, frame),
            None => self.note(|seen| seen.frames.push((from.number(), lane, kind, frame))),
        }
    }

    fn ask(&self, _: &Arc<Connection>, _: u16, question: Bytes) -> Answer {
        match self.on_question {
            Some(act) => act(question),
            None => Box::pin(async { Some(question) }),
        }
    }

    fn datagram(&self, _: &Arc<Connection>, kind: u16, datagram: Bytes) {
        self.note(|seen| seen.datagrams.push((kind, datagram)));
    }

    fn lost(&self, connection: &Arc<Connection>) {
        self.note(|seen| {
            seen.lost.push(connection.number());
            seen.order.push(("lost", connection.number()));
        });
    }
}

/// A process that keeps to nothing but QUIC.
struct Raw {
    endpoint: quinn::Endpoint,
}

impl Raw {
    fn new(identity: &Identity) -> Self {
        let transport = Settings::default().transport().unwrap();
        let mut endpoint = quinn::Endpoint::client(HERE).unwrap();
        endpoint.set_default_client_config(settings::client(identity, &transport).unwrap());
        Self { endpoint }
    }

    async fn connect(&self, to: &Party) -> quinn::Connection {
        self.endpoint.connect(to.address(), "chappe").unwrap().await.unwrap()
    }

    /// Connects and introduces itself.
    async fn enter(&self, to: &Party, hello: &Hello) -> quinn::Connection {
        let connection = self.connect(to).await;
        introduce(&connection, &hello.encode(0)).await.unwrap();
        connection
    }
}

async fn introduce(connection: &quinn::Connection, said: &[u8]) -> Result<Vec<u8>, quinn::ReadToEndError> {
    let (mut stream, mut answer) = connection.open_bi().await.unwrap();
    // What comes of it is read from the answer.
    let _ = stream.write_all(said).await;
    let _ = stream.finish();
    answer.read_to_end(1024).await
}

fn numbered(number: u64, length: usize) -> Bytes {
    let mut bytes = vec![number as u8; length.max(8)];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

fn number_of(bytes: &Bytes) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}
