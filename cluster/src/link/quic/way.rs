//! A way to another process, which is kept up: dialled, and dialled again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rand::Rng;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::{
    connection::Connection,
    endpoint::{Failure, Shared, closed},
    question::Unasked,
    session::Session,
};

/// The first pause after a connection broke or could not be made; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one: the next pause is the first again.
const LASTED: Duration = Duration::from_secs(2);

/// An attempt to connect: short at first, so that a peer which starts again is met soon; longer and longer, for a machine that
/// is too busy for that.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// A way to another process. It is dialled as long as this exists, and closed with good grace when it is dropped.
pub struct Way {
    kept: Arc<Kept>,
    /// Whoever dials stops when this is gone.
    _dialling: watch::Sender<()>,
}

/// What a way and whoever dials for it share.
struct Kept {
    to: Option<u64>,
    address: Mutex<SocketAddr>,
    current: RwLock<Option<Arc<Connection>>>,
    /// Somebody has reason to believe that it works now.
    hurry: Notify,
    shared: Arc<Shared>,
}

impl Way {
    pub(super) fn open(shared: &Arc<Shared>, to: Option<u64>, address: SocketAddr) -> Self {
        let kept = Arc::new(Kept {
            to,
            address: Mutex::new(address),
            current: RwLock::new(None),
            hurry: Notify::new(),
            shared: Arc::clone(shared),
        });
        let (dialling, stopped) = watch::channel(());
        shared.spawn(Arc::clone(&kept).keep(stopped));
        Self { kept, _dialling: dialling }
    }

    /// The connection that there is now.
    #[must_use]
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.kept.current.read().clone()
    }

    /// [`Connection::send`]; false if there is no connection, and nothing is kept for a later one.
    pub fn send(&self, lane: u8, kind: u16, frame: Bytes) -> bool {
        self.kept.current.read().as_ref().is_some_and(|connection| connection.send(lane, kind, frame))
    }

    /// [`Connection::datagram`]; false if there is no connection.
    pub fn datagram(&self, kind: u16, payload: &[u8]) -> bool {
        self.kept.current.read().as_ref().is_some_and(|connection| connection.datagram(kind, payload))
    }

    /// [`Connection::ask`]; unreachable if there is no connection.
    pub fn ask(
        &self,
        kind: u16,
        question: Bytes,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, Unasked>> + Send + use<> {
        let kept = Arc::clone(&self.kept);
        async move {
            let connection = kept.current.read().clone();
            match connection {
                Some(connection) => connection.ask(kind, question, within).await,
                None => {
                    kept.shared.meter.unreachable.increment(1);
                    Err(Unasked::Unreachable)
                }
            }
        }
    }

    /// Dials at once if there is no connection, with the shortest pauses from here on: somebody has heard that the peer is
    /// there again.
    pub fn redial(&self) {
        if self.kept.current.read().is_none() {
            self.kept.hurry.notify_one();
        }
    }

    /// The peer is somewhere else now. A connection that still stands is kept.
    pub fn move_to(&self, address: SocketAddr) {
        let before = std::mem::replace(&mut *self.kept.address.lock(), address);
        if before != address {
            self.redial();
        }
    }
}

impl Kept {
    async fn keep(self: Arc<Self>, mut stopped: watch::Receiver<()>) {
        let mut closing = self.shared.closing();
        let (mut failures, mut complaint) = (0_u32, String::new());
        loop {
            let attempt = (ATTEMPT_MIN * (1 << failures.min(3))).min(ATTEMPT_MAX);
            let address = *self.address.lock();
            let dialled = tokio::select! {
                dialled = self.shared.dial(self.to, address, attempt) => dialled,
                () = self.hurry.notified() => { failures = 0; continue }
                _ = stopped.changed() => return,
                () = closed(&mut closing) => return,
            };
            match dialled {
                Ok(session) => {
                    complaint.clear();
                    let began = Instant::now();
                    self.hold(session, &mut stopped, &mut closing).await;
                    if stopped.has_changed().is_err() || *closing.borrow() {
                        return;
                    }
                    if began.elapsed() >= LASTED {
                        failures = 0;
                    }
                }
                Err(failure) => {
                    let said = failure.to_string();
                    // Once, until it is another.
                    if said != complaint {
                        let refused = matches!(failure, Failure::Refused(_));
                        tracing::warn!(event = "quic_dial_failed", %address, refused, reason = said, "no way to {address}: {said}");
                        complaint = said;
                    }
                }
            }
            let pause = (PAUSE_MIN * (1 << failures.min(10))).min(PAUSE_MAX);
            failures += 1;
            // Half of it at least: those who lost the same peer come back one after the other.
            let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                _ = timeout(pause, self.hurry.notified()) => {}
                _ = stopped.changed() => return,
                () = closed(&mut closing) => return,
            }
        }
    }

    /// Lives through one connection: from here to the word that it is over.
    async fn hold(&self, session: Session, stopped: &mut watch::Receiver<()>, closing: &mut watch::Receiver<bool>) {
        session.begin();
        *self.current.write() = Some(Arc::clone(session.connection()));
        let leaving = async {
            tokio::select! {
                _ = stopped.changed() => {}
                () = closed(closing) => {}
            }
        };
        session.run(leaving).await;
        *self.current.write() = None;
        session.end();
    }
}
