//! One UDP socket, from which a process dials others and at which others find it.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use chappe_schema::limit::{LINK_HANDSHAKE_MS_MAX, LINK_HANDSHAKES_MAX};
use parking_lot::{Mutex, RwLock};
use quinn::{ClientConfig, ConnectionError, Incoming, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Handler,
    connection::{Agreed, Cause, Connection},
    hello::{self, Hello, Reason, Refusal},
    identity::{Identity, Role},
    meter::Meter,
    session::Session,
    settings::{self, Settings},
    way::Way,
};

/// The name in the first packet of a dialler. Certificates are judged by what is introduced, not by it.
const NAME: &str = "chappe";
const HANDSHAKE: Duration = Duration::from_millis(LINK_HANDSHAKE_MS_MAX);
/// For the last packets of a closed endpoint.
const LINGER: Duration = Duration::from_millis(200);

/// A process's place among the others. Dropped it is closed without anybody waiting for that.
pub struct Endpoint {
    shared: Arc<Shared>,
}

/// What an endpoint, its ways and its connections share.
pub(super) struct Shared {
    quic: quinn::Endpoint,
    address: SocketAddr,
    transport: Arc<TransportConfig>,
    identity: RwLock<(Identity, ClientConfig)>,
    hello: Mutex<Hello>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) meter: Arc<Meter>,
    runtime: Handle,
    closing: watch::Sender<bool>,
    /// All connections between `connected` and `lost`.
    present: Mutex<BTreeMap<u64, Arc<Connection>>>,
    tasks: Mutex<JoinSet<()>>,
    handshakes: Arc<Semaphore>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// One end did not want the other.
    Refused(Refusal),
    /// There was no answer, or something in between failed.
    Failed(String),
}

// === impl Endpoint ===

impl Endpoint {
    /// Binds the socket and answers from here on. To be called within a tokio runtime, on which everything of this endpoint runs.
    ///
    /// # Errors
    /// When the address cannot be bound, or the certificate does not cover what is said in the introduction.
    pub fn bind(
        address: SocketAddr,
        identity: Identity,
        hello: Hello,
        settings: Settings,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Self> {
        covered(&identity, &hello)?;
        let transport = settings.transport()?;
        let quic = settings.bind(
            address,
            settings::server(&identity, &transport)?,
            identity.reset_key(hello.role, hello.uid),
        )?;
        let client = settings::client(&identity, &transport)?;
        let shared = Arc::new(Shared {
            address: quic.local_addr()?,
            quic,
            transport,
            identity: RwLock::new((identity, client)),
            hello: Mutex::new(hello),
            handler,
            meter: Arc::new(Meter::new()),
            runtime: Handle::current(),
            closing: watch::Sender::new(false),
            present: Mutex::default(),
            tasks: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(LINK_HANDSHAKES_MAX)),
        });
        shared.spawn(Arc::clone(&shared).answer());
        Ok(Self { shared })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// A way to the process of this number at this address, or to whoever answers there. There should be one way to a process:
    /// the other end takes a second one for the first, dialled anew.
    #[must_use]
    pub fn way(&self, to: Option<u64>, address: SocketAddr) -> Way {
        Way::open(&self.shared, to, address)
    }

    /// All connections that there are, dialled and accepted.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.shared.present.lock().values().cloned().collect()
    }

    /// From here on the process knows its cluster. Connections to other clusters are closed; those that were made while neither
    /// end knew are made again, so that both ends judge.
    pub fn know_cluster(&self, cluster: u128) {
        self.shared.hello.lock().cluster = cluster;
        for connection in self.connections() {
            match (connection.peer().cluster, connection.cluster) {
                (0, 0) => connection.break_off(Cause::Introduction),
                (0, known) if known == cluster => {}
                (theirs, _) if theirs == cluster => {}
                _ => connection.break_off(Cause::Cluster),
            }
        }
    }

    /// From here on the process introduces itself as this life of it; connections that stand are kept.
    pub fn renew(&self, incarnation: u64) {
        self.shared.hello.lock().incarnation = incarnation;
    }

    /// Another certificate, for connections from here on.
    ///
    /// # Errors
    /// When it does not cover what this process says of itself; then the one before stays.
    pub fn replace_identity(&self, identity: Identity) -> io::Result<()> {
        covered(&identity, &self.shared.hello.lock())?;
        let server = settings::server(&identity, &self.shared.transport)?;
        let client = settings::client(&identity, &self.shared.transport)?;
        *self.shared.identity.write() = (identity, client);
        self.shared.quic.set_server_config(Some(server));
        Ok(())
    }

    /// Leaves: dials and accepts no more, sends what is queued (for a second at most), closes all connections, and says so of each.
    pub async fn close(&self) {
        self.shared.closing.send_replace(true);
        loop {
            let mut tasks = std::mem::take(&mut *self.shared.tasks.lock());
            if tasks.is_empty() {
                break;
            }
            while tasks.join_next().await.is_some() {}
        }
        self.shared.quic.close(VarInt::from_u32(0), b"goodbye");
        let _ = timeout(LINGER, self.shared.quic.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
        // What is going on ends by itself.
        self.shared.tasks.lock().detach_all();
    }
}

fn covered(identity: &Identity, hello: &Hello) -> io::Result<()> {
    if hello.role.is_covered_by(hello.uid, identity.own()) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the certificate is neither for {} nor for {}",
        hello.role.certified(None),
        hello.role.certified(Some(hello.uid))
    )))
}

// === impl Shared ===

impl Shared {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Everybody has been told that it is over.
    pub(super) fn forget(&self, connection: &Connection) {
        self.present.lock().remove(&connection.number());
        connection.ended.send_replace(true);
    }

    /// Lets others in, until the endpoint closes.
    async fn answer(self: Arc<Self>) {
        let mut closing = self.closing();
        loop {
            let incoming = tokio::select! {
                incoming = self.quic.accept() => incoming,
                () = closed(&mut closing) => None,
            };
            let Some(incoming) = incoming else { return };
            match Arc::clone(&self.handshakes).try_acquire_owned() {
                Ok(place) => {
                    let shared = Arc::clone(&self);
                    self.spawn(async move {
                        let admitted = shared.admit(incoming).await;
                        drop(place);
                        if let Some(session) = admitted {
                            session.begin();
                            session.run(closed(&mut shared.closing())).await;
                            session.end();
                        }
                    });
                }
                Err(_) => {
                    self.meter.refusal(false, Reason::Busy);
                    incoming.refuse();
                }
            }
        }
    }

    async fn admit(self: &Arc<Self>, incoming: Incoming) -> Option<Session> {
        let address = incoming.remote_address();
        let deadline = Instant::now() + HANDSHAKE;
        let mut closing = self.closing();
        let admitted = tokio::select! {
            admitted = self.meet(incoming, deadline) => admitted,
            () = closed(&mut closing) => return None,
        };
        match admitted {
            Ok(session) => Some(session),
            Err(Failure::Refused(refusal)) => {
                let reason = refusal.reason.name();
                self.meter.refusal(false, refusal.reason);
                tracing::warn!(event = "quic_refused", %address, reason, "{address} is refused: {refusal}");
                None
            }
            Err(Failure::Failed(why)) => {
                tracing::debug!(event = "quic_handshake_failed", %address, why);
                None
            }
        }
    }

    /// The accepting end of a handshake.
    async fn meet(self: &Arc<Self>, incoming: Incoming, deadline: Instant) -> Result<Session, Failure> {
        let quic = match timeout_at(deadline, async { incoming.accept()?.await }).await {
            // Whoever began has left, or never was: first packets can be sent by anybody, and again.
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => return Err(late()),
            Ok(connecting) => connecting?,
        };
        let met = timeout_at(deadline, async {
            let (mut answer, mut said) = quic.accept_bi().await?;
            let said = said.read_to_end(hello::BYTES_MAX).await.map_err(unread)?;
            let (peer, _) = Hello::decode(&said)?;
            let own = self.hello.lock().clone();
            certified(&peer, &quic)?;
            let version = own.agree(&peer)?;
            let agreed = Agreed { peer, cluster: own.cluster, dialled: false, version };
            let connection = Connection::new(quic.clone(), agreed, Arc::clone(&self.meter), self.runtime.clone());
            let session = self.enter(connection).await?;
            answer.write_all(&own.encode(version)).await.map_err(|error| Failure::Failed(error.to_string()))?;
            // The peer's to read.
            let _ = answer.finish();
            Ok(session)
        });
        let met = met.await.unwrap_or_else(|_| Err(late()));
        if let Err(Failure::Refused(refusal)) = &met {
            refuse(&quic, refusal);
        }
        met
    }

    /// The only connection that this peer has dialled: one before is over first, and has been said to be.
    async fn enter(self: &Arc<Self>, connection: Arc<Connection>) -> Result<Session, Failure> {
        let peer = connection.peer();
        let is_same = |other: &Connection| (other.peer().role, other.peer().uid) == (peer.role, peer.uid);
        loop {
            let former = {
                let mut present = self.present.lock();
                let mut dialled = present.values().filter(|other| other.dialled() && is_same(other));
                if let Some(dead) = dialled.find(|other| other.peer().incarnation < peer.incarnation) {
                    // It speaks with a life that is over.
                    dead.break_off(Cause::Superseded);
                }
                let former = present.values().find(|other| !other.dialled() && is_same(other)).cloned();
                match former {
                    None => {
                        present.insert(connection.number(), Arc::clone(&connection));
                        return Ok(Session::new(connection, Arc::clone(self)));
                    }
                    Some(former) => former,
                }
            };
            if former.peer().incarnation > peer.incarnation {
                let sentence = format!("a later life of {peer} is connected already");
                return Err(Reason::Stale.because(sentence).into());
            }
            former.break_off(Cause::Superseded);
            // Its sender is in the connection that is held here.
            let _ = former.ended.subscribe().wait_for(|ended| *ended).await;
        }
    }

    /// The dialling end of a handshake.
    pub(super) async fn dial(
        self: &Arc<Self>,
        to: Option<u64>,
        address: SocketAddr,
        attempt: Duration,
    ) -> Result<Session, Failure> {
        let dialled = self.call(to, address, attempt).await;
        match &dialled {
            Ok(_) => self.meter.connected.increment(1),
            Err(Failure::Failed(_)) => self.meter.failed.increment(1),
            Err(Failure::Refused(refusal)) => {
                self.meter.refused.increment(1);
                self.meter.refusal(true, refusal.reason);
            }
        }
        dialled
    }

    async fn call(
        self: &Arc<Self>,
        to: Option<u64>,
        address: SocketAddr,
        attempt: Duration,
    ) -> Result<Session, Failure> {
        let deadline = Instant::now() + HANDSHAKE;
        let client = self.identity.read().1.clone();
        let connecting =
            self.quic.connect_with(client, address, NAME).map_err(|error| Failure::Failed(error.to_string()))?;
        let quic = timeout(attempt, connecting).await.map_err(|_| Failure::Failed("no answer".to_owned()))??;
        let met = timeout_at(deadline, async {
            let own = self.hello.lock().clone();
            let (mut said, mut answer) = quic.open_bi().await?;
            said.write_all(&own.encode(0)).await.map_err(|error| match error {
                quinn::WriteError::ConnectionLost(error) => error.into(),
                error => Failure::Failed(error.to_string()),
            })?;
            let _ = said.finish();
            let answer = answer.read_to_end(hello::BYTES_MAX).await.map_err(unread)?;
            let (peer, version) = Hello::decode(&answer)?;
            certified(&peer, &quic)?;
            if to.is_some_and(|to| to != peer.uid) {
                return Err(Reason::SomebodyElse.because(format!("{peer} stands at {address}")).into());
            }
            if own.agree(&peer)? != version {
                return Err(Reason::Version.because(format!("{peer} wants to speak protocol {version}")).into());
            }
            let agreed = Agreed { peer, cluster: own.cluster, dialled: true, version };
            let connection = Connection::new(quic.clone(), agreed, Arc::clone(&self.meter), self.runtime.clone());
            self.present.lock().insert(connection.number(), Arc::clone(&connection));
            Ok(Session::new(connection, Arc::clone(self)))
        });
        let met = met.await.unwrap_or_else(|_| Err(late()));
        if let Err(Failure::Refused(refusal)) = &met {
            refuse(&quic, refusal);
        }
        met
    }
}

/// Waits until the endpoint is to close.
pub(super) async fn closed(closing: &mut watch::Receiver<bool>) {
    // Its sender is in `Shared`, which whoever waits holds.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Whether the peer's certificate is good for what it says of itself.
fn certified(peer: &Hello, quic: &quinn::Connection) -> Result<(), Failure> {
    let shown = quic.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let covers = |certificate: &CertificateDer<'_>| peer.role.is_covered_by(peer.uid, certificate);
    if shown.is_some_and(|shown| shown.first().is_some_and(covers)) {
        return Ok(());
    }
    let other = match peer.role {
        Role::Node => "a node's",
        Role::Gateway => "a gateway's",
    };
    Err(Reason::Name.because(format!("{peer} does not show {other} certificate of its own")).into())
}

/// Closes a connection with a sentence that the other end can log.
fn refuse(quic: &quinn::Connection, refusal: &Refusal) {
    quic.close(VarInt::from_u32(refusal.reason.code()), refusal.sentence.as_bytes());
}

fn late() -> Failure {
    Reason::Late.because("the handshake took too long").into()
}

fn unread(error: quinn::ReadToEndError) -> Failure {
    match error {
        quinn::ReadToEndError::TooLong => Reason::Malformed.because("the introduction is too long").into(),
        quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => error.into(),
        quinn::ReadToEndError::Read(_) => Reason::Malformed.because("the introduction was taken back").into(),
    }
}

// === impl Failure ===

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        let by_tls = |code: u64, said: String| match code.checked_sub(0x100) {
            Some(alert @ 0..=255) => Self::Refused(alert_reason(alert).because(said)),
            _ => Self::Failed(said),
        };
        match &error {
            ConnectionError::ApplicationClosed(close) => match Reason::of_code(close.error_code.into_inner()) {
                Some(reason) => {
                    let sentence: String =
                        String::from_utf8_lossy(&close.reason).chars().filter(|letter| !letter.is_control()).collect();
                    Self::Refused(reason.because(sentence))
                }
                None => Self::Failed(error.to_string()),
            },
            ConnectionError::TransportError(broken) => by_tls(broken.code.into(), error.to_string()),
            ConnectionError::ConnectionClosed(close) => by_tls(close.error_code.into(), error.to_string()),
            ConnectionError::TimedOut => Self::Failed("no answer".to_owned()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// TLS's own words for what is wrong with a certificate.
fn alert_reason(alert: u64) -> Reason {
    match alert {
        45 => Reason::Expired,
        48 => Reason::UnknownAuthority,
        120 => Reason::Alpn,
        _ => Reason::Certificate,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
