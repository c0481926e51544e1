//! A connection's life from the moment that it may be used to the word that it is over: what reads everything that the peer
//! sends, and hands it on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    Handler,
    connection::{Cause, Connection, LANES},
    endpoint::Shared,
    frame::Found,
    question,
};

/// How often round trips and losses are noted.
const NOTED: Duration = Duration::from_secs(5);
/// Pieces of a stream that are taken at once: packets that came together.
const PIECES: usize = 32;

/// A connection that has its place among those that are present, until this is dropped.
pub(super) struct Session {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

impl Session {
    pub(super) fn new(connection: Arc<Connection>, shared: Arc<Shared>) -> Self {
        Self { connection, shared }
    }

    /// The connection may be used from here on, and the handler is told so first.
    pub(super) fn begin(&self) {
        let (connection, peer) = (&self.connection, self.connection.peer());
        self.shared.meter.connections(peer.role, connection.dialled()).increment(1.0);
        tracing::info!(
            event = "quic_connected",
            %peer,
            address = %connection.address(),
            dialled = connection.dialled(),
            version = connection.version(),
            "connected to {peer}"
        );
        self.guarded(|handler, connection| handler.connected(connection));
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Hands on what the peer sends, until the connection is over and everything that came is handed on. It is closed with good
    /// grace when this process wants to leave.
    pub(super) async fn run(&self, leaving: impl Future<Output = ()>) {
        let run = self.receive();
        tokio::pin!(run);
        tokio::select! {
            () = &mut run => {}
            // What the peer still says is heard meanwhile.
            () = leaving => drop(tokio::join!(self.connection.finish(), &mut run)),
        }
    }

    async fn receive(&self) {
        let (connection, handler) = (&self.connection, &self.shared.handler);
        let mut lanes = JoinSet::new();
        let taken = Arc::new(AtomicU32::new(0));
        let mut noted = interval_at(Instant::now() + NOTED, NOTED);
        noted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost_packets = 0;
        loop {
            tokio::select! {
                lane = connection.quic.accept_uni() => {
                    let Ok(stream) = lane else { break };
                    lanes.spawn(read_lane(Arc::clone(connection), Arc::clone(handler), stream, Arc::clone(&taken)));
                }
                asked = connection.quic.accept_bi() => {
                    let Ok((back, stream)) = asked else { break };
                    // It is answered even if the connection ends meanwhile.
                    tokio::spawn(question::answer(Arc::clone(connection), Arc::clone(handler), back, stream));
                }
                datagram = connection.quic.read_datagram() => {
                    let Ok(datagram) = datagram else { break };
                    self.hand_on(datagram);
                }
                Some(read) = lanes.join_next() => self.judge(read),
                _ = noted.tick() => {
                    let stats = connection.quic.stats();
                    connection.meter.rtt.record(stats.path.rtt);
                    connection.meter.lost_packets.increment(stats.path.lost_packets.saturating_sub(lost_packets));
                    lost_packets = stats.path.lost_packets;
                }
            }
        }
        connection.shut();
        while let Some(read) = lanes.join_next().await {
            self.judge(read);
        }
    }

    /// The last word.
    pub(super) fn end(self) {
        let (connection, meter) = (&self.connection, &self.shared.meter);
        let (peer, cause) = (connection.peer(), connection.cause());
        meter.connections(peer.role, connection.dialled()).decrement(1.0);
        meter.disconnect(cause);
        let (reason, dialled) = (cause.name(), connection.dialled());
        match cause {
            Cause::Goodbye | Cause::Closed | Cause::Superseded | Cause::Introduction => {
                tracing::info!(event = "quic_disconnected", %peer, reason, dialled, "the connection to {peer} is over");
            }
            _ => tracing::warn!(event = "quic_disconnected", %peer, reason, dialled, "the connection to {peer} broke"),
        }
        self.guarded(|handler, connection| handler.lost(connection));
    }

    fn hand_on(&self, mut datagram: Bytes) {
        if datagram.len() < 2 {
            return self.connection.meter.datagrams_malformed.increment(1);
        }
        self.connection.meter.datagrams_received.increment(1);
        let kind = datagram.get_u16_le();
        self.guarded(|handler, connection| handler.datagram(connection, kind, datagram));
    }

    /// A panic of the handler ends this connection, and nothing else.
    fn guarded(&self, act: impl FnOnce(&dyn Handler, &Arc<Connection>)) {
        let act = || act(&*self.shared.handler, &self.connection);
        if catch_unwind(AssertUnwindSafe(act)).is_err() {
            self.connection.break_off(Cause::Panic);
        }
    }

    fn judge(&self, read: Result<Result<(), Cause>, tokio::task::JoinError>) {
        match read {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => self.connection.break_off(cause),
            Err(_) => self.connection.break_off(Cause::Panic),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Also where its task was dropped with the runtime.
        self.shared.forget(&self.connection);
    }
}

/// Hands on the frames of one lane, to its end or the connection's.
async fn read_lane(
    connection: Arc<Connection>,
    handler: Arc<dyn Handler>,
    mut stream: RecvStream,
    taken: Arc<AtomicU32>,
) -> Result<(), Cause> {
    let mut lane = [0];
    if stream.read_exact(&mut lane).await.is_err() {
        // Nobody opens one for nothing, and what ended the connection is known elsewhere.
        return if connection.quic.close_reason().is_some() { Ok(()) } else { Err(Cause::Lane) };
    }
    let [lane] = lane;
    if lane >= LANES || taken.fetch_or(1 << lane, Ordering::Relaxed) & (1 << lane) != 0 {
        return Err(Cause::Lane);
    }
    let (mut found, mut pieces) = (Found::default(), [const { Bytes::new() }; PIECES]);
    loop {
        let count = match stream.read_chunks(&mut pieces).await {
            Ok(Some(count)) => count,
            Ok(None) => return if found.is_between_frames() { Ok(()) } else { Err(Cause::Lane) },
            Err(ReadError::ConnectionLost(_)) => return Ok(()),
            Err(_) => return Err(Cause::Lane),
        };
        let (mut frames, mut bytes) = (0, 0);
        let mut read = Ok(());
        for piece in pieces.iter_mut().take(count).map(std::mem::take) {
            bytes += piece.len() as u64;
            read = read.and_then(|()| {
                found.take(piece, |kind, frame| {
                    frames += 1;
                    handler.frame(&connection, lane, kind, frame);
                })
            });
        }
        connection.meter.bytes_received.increment(bytes);
        connection.meter.frames_received.increment(frames);
        read?;
    }
}
