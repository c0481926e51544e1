//! A connection to another process: 16 ordered lanes each way, short questions, datagrams.
//!
//! Sending puts a frame where the lane's writer finds it; a lane has a writer, and a stream, from its first frame on. The
//! writer takes all that waits at once. What the peer sends is read by `session`.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use chappe_schema::limit::{
    LINK_FRAME_BYTES_MAX, LINK_LANES, LINK_QUESTION_BYTES_MAX, LINK_QUESTIONS_MAX, LINK_QUEUED_BYTES_MAX,
};
use parking_lot::Mutex;
use quinn::{ConnectionError, VarInt, WriteError};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    frame::{self, Gathered, HEADER},
    hello::Hello,
    meter::Meter,
    question::{self, Unasked},
};

/// How many ordered lanes a connection has each way.
pub const LANES: u8 = LINK_LANES;

/// What is queued when a connection is closed with good grace has this long to get out.
const FLUSH: Duration = Duration::from_secs(1);

/// A connection to another process, for as long as it lasts.
pub struct Connection {
    number: u64,
    peer: Hello,
    /// What was known here of the own cluster when it was made.
    pub(super) cluster: u128,
    dialled: bool,
    version: u16,
    address: SocketAddr,
    pub(super) quic: quinn::Connection,
    lanes: [Lane; LANES as usize],
    /// Bytes that wait in all lanes.
    queued: AtomicUsize,
    open: AtomicBool,
    /// Why it ended, if this end decided so.
    cause: OnceLock<Cause>,
    /// Whether everybody has been told that it ended.
    pub(super) ended: watch::Sender<bool>,
    writers: Mutex<Vec<JoinHandle<()>>>,
    /// Places for questions of ours.
    pub(super) questions: Semaphore,
    /// Bytes for questions of the peer.
    pub(super) held: Semaphore,
    pub(super) meter: Arc<Meter>,
    runtime: Handle,
}

#[derive(Default)]
struct Lane {
    waiting: Mutex<Waiting>,
    /// Something waits, or nothing will any more.
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    gathered: Gathered,
    has_writer: bool,
    closing: bool,
}

/// Why a connection ended. The number goes over the wire, the name is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// One end was going, and has sent what it had to say.
    Goodbye,
    /// Nothing was heard for too long.
    Silence,
    /// The peer has forgotten the connection: it has started anew.
    Reset,
    /// QUIC itself gave up.
    Transport,
    /// The peer took too little of what was sent.
    Queue,
    /// A frame was too long.
    Length,
    /// A frame was damaged.
    Checksum,
    /// A lane that cannot be, or that ended within a frame.
    Lane,
    /// Whoever was to take a frame panicked.
    Panic,
    /// The peer has connected anew.
    Superseded,
    /// The peer turned out to belong to another cluster.
    Cluster,
    /// Both ends have to introduce themselves again.
    Introduction,
    /// One end wanted it closed at once.
    Closed,
}

impl Cause {
    pub(super) const ALL: [Self; 13] = [
        Self::Goodbye,
        Self::Silence,
        Self::Reset,
        Self::Transport,
        Self::Queue,
        Self::Length,
        Self::Checksum,
        Self::Lane,
        Self::Panic,
        Self::Superseded,
        Self::Cluster,
        Self::Introduction,
        Self::Closed,
    ];

    /// The label.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Goodbye => "goodbye",
            Self::Silence => "silence",
            Self::Reset => "reset",
            Self::Transport => "transport",
            Self::Queue => "queue",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Lane => "lane",
            Self::Panic => "panic",
            Self::Superseded => "superseded",
            Self::Cluster => "cluster",
            Self::Introduction => "introduction",
            Self::Closed => "closed",
        }
    }

    fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Silence,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::LocallyClosed => Self::Goodbye,
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                Self::ALL.into_iter().find(|cause| cause.code().into_inner() == code).unwrap_or(Self::Closed)
            }
            _ => Self::Transport,
        }
    }
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What was agreed on when it was made.
pub(super) struct Agreed {
    pub(super) peer: Hello,
    pub(super) cluster: u128,
    pub(super) dialled: bool,
    pub(super) version: u16,
}

impl Connection {
    pub(super) fn new(quic: quinn::Connection, agreed: Agreed, meter: Arc<Meter>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            peer: agreed.peer,
            cluster: agreed.cluster,
            dialled: agreed.dialled,
            version: agreed.version,
            address: quic.remote_address(),
            quic,
            lanes: Default::default(),
            queued: AtomicUsize::new(0),
            open: AtomicBool::new(true),
            cause: OnceLock::new(),
            ended: watch::Sender::new(false),
            writers: Mutex::default(),
            questions: Semaphore::new(LINK_QUESTIONS_MAX),
            held: Semaphore::new(LINK_QUESTION_BYTES_MAX),
            meter,
            runtime,
        })
    }

    /// What the peer said of itself, as far as its certificate allows.
    #[must_use]
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Whether it was this process that dialled.
    #[must_use]
    pub fn dialled(&self) -> bool {
        self.dialled
    }

    /// The protocol that both speak.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Its number, which no other connection of this process has ever had.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where the peer is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long a round trip takes, as estimated now.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// Whether something sent now may arrive.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Sends a frame on a lane (counted modulo [`LANES`]), behind what was sent on it before. Never waits. False: it certainly
    /// does not arrive, because the connection is over or the frame is too large. True: it is on its way, and if the way breaks
    /// nobody knows whether it arrived; that is said by `Handler::lost`.
    pub fn send(self: &Arc<Self>, lane: u8, kind: u16, frame: Bytes) -> bool {
        if !self.is_open() {
            return false;
        }
        if frame.len() > LINK_FRAME_BYTES_MAX {
            tracing::error!(event = "quic_frame_too_large", peer = %self.peer, kind, bytes = frame.len(), "a frame was not sent");
            return false;
        }
        let length = HEADER + frame.len();
        let header = frame::header(kind, &frame);
        if self.queued.fetch_add(length, Ordering::Relaxed) + length > LINK_QUEUED_BYTES_MAX {
            self.break_off(Cause::Queue);
            return false;
        }
        let number = lane % LANES;
        let lane = &self.lanes[usize::from(number)];
        let mut waiting = lane.waiting.lock();
        if waiting.closing {
            return false;
        }
        let was_empty = waiting.gathered.is_empty();
        waiting.gathered.push(&header, frame);
        if !std::mem::replace(&mut waiting.has_writer, true) {
            // Under the lock, so that whoever closes finds it.
            self.writers.lock().push(self.runtime.spawn(Arc::clone(self).write(number)));
        } else if was_empty {
            drop(waiting);
            lane.more.notify_one();
        }
        true
    }

    /// Sends what may get lost, and what may come in any order. False: it is not even tried, because it is too large for a packet
    /// (somewhat above 1,100 bytes fit anywhere) or too much is waiting.
    pub fn datagram(&self, kind: u16, payload: &[u8]) -> bool {
        let length = 2 + payload.len();
        let fits = self.is_open()
            && self.quic.max_datagram_size().is_some_and(|most| length <= most)
            // Otherwise an older one would be dropped in its place, and nobody would know.
            && self.quic.datagram_send_buffer_space() >= length;
        let sent = fits && {
            let mut bytes = BytesMut::with_capacity(length);
            bytes.put_u16_le(kind);
            bytes.put_slice(payload);
            self.quic.send_datagram(bytes.freeze()).is_ok()
        };
        if sent {
            self.meter.datagrams_sent.increment(1)
        } else {
            self.meter.datagrams_dropped.increment(1)
        }
        sent
    }

    /// Asks the peer, and waits for its answer no longer than that. To be asked within a tokio runtime.
    pub fn ask(
        self: &Arc<Self>,
        kind: u16,
        question: Bytes,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, Unasked>> + Send + use<> {
        let connection = Arc::clone(self);
        async move {
            let began = Instant::now();
            let answer = question::ask(&connection, kind, question, within).await;
            match &answer {
                Ok(_) => {
                    connection.meter.answered.increment(1);
                    connection.meter.question.record(began.elapsed());
                }
                Err(Unasked::Unreachable) => connection.meter.unreachable.increment(1),
                Err(Unasked::Lost) => connection.meter.lost.increment(1),
            }
            answer
        }
    }

    /// Closes it now, whatever waits.
    pub fn close(&self) {
        self.break_off(Cause::Closed);
    }

    /// Ends it for a reason, which the peer is told.
    pub(super) fn break_off(&self, cause: Cause) {
        // The first reason is the one that counts.
        let _ = self.cause.set(cause);
        self.open.store(false, Ordering::Release);
        self.quic.close(cause.code(), cause.name().as_bytes());
    }

    /// Nothing is sent any more: what waits is, if the connection still stands.
    pub(super) fn shut(&self) {
        self.open.store(false, Ordering::Release);
        for lane in &self.lanes {
            lane.waiting.lock().closing = true;
            lane.more.notify_one();
        }
    }

    /// Closes it with good grace: the peer has everything that was sent, unless that takes too long.
    pub(super) async fn finish(&self) {
        self.shut();
        let writers = std::mem::take(&mut *self.writers.lock());
        let written = async {
            for writer in writers {
                // One that panicked has written what it could.
                let _ = writer.await;
            }
        };
        let _ = timeout(FLUSH, written).await;
        self.break_off(Cause::Goodbye);
    }

    /// Why it ended, once it has.
    pub(super) fn cause(&self) -> Cause {
        self.cause
            .get()
            .copied()
            .unwrap_or_else(|| self.quic.close_reason().map_or(Cause::Goodbye, |error| Cause::of(&error)))
    }

    async fn write(self: Arc<Self>, lane: u8) {
        match self.write_lane(lane).await {
            Ok(()) | Err(WriteError::ConnectionLost(_)) => {}
            // Nobody stops a lane but a peer that is mistaken.
            Err(_) => self.break_off(Cause::Lane),
        }
    }

    async fn write_lane(&self, number: u8) -> Result<(), WriteError> {
        let lane = &self.lanes[usize::from(number)];
        let mut stream = self.quic.open_uni().await?;
        stream.write_all(&[number]).await?;
        loop {
            let (gathered, closing) = {
                let mut waiting = lane.waiting.lock();
                (std::mem::take(&mut waiting.gathered), waiting.closing)
            };
            if gathered.is_empty() {
                if closing {
                    // It fails where the connection is gone.
                    if stream.finish().is_ok() {
                        let _ = stream.stopped().await;
                    }
                    return Ok(());
                }
                lane.more.notified().await;
                continue;
            }
            self.meter.frames_sent.increment(gathered.frames());
            let mut pieces = gathered.finish();
            let mut rest = &mut pieces[..];
            while !rest.is_empty() {
                let written = stream.write_chunks(rest).await?;
                rest = &mut rest[written.chunks..];
                self.queued.fetch_sub(written.bytes, Ordering::Relaxed);
                self.meter.bytes_sent.increment(written.bytes as u64);
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("number", &self.number).field("peer", &self.peer).finish_non_exhaustive()
    }
}
