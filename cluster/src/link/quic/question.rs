//! Questions: a stream of its own for each, a frame there and a frame back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chappe_schema::limit::LINK_FRAME_BYTES_MAX;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::time::timeout;

pub use crate::consensus::transport::Unasked;

use super::{
    Handler,
    connection::{Cause, Connection},
    frame::{self, Found, HEADER},
};

/// A question or an answer that nobody wants, or can give, any more.
const NEVER_MIND: VarInt = VarInt::from_u32(1);

/// A frame on its way. Dropped before its end it is taken back, where quinn would end it, as if it were whole.
struct Outgoing(SendStream);

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Nothing to take back where it is finished or the connection gone.
        let _ = self.0.reset(NEVER_MIND);
    }
}

/// What keeps a frame from coming whole.
enum Unread {
    /// The connection, or the peer's wish.
    Gone,
    /// The peer breaks rules.
    Broken(Cause),
}

pub(super) async fn ask(
    connection: &Arc<Connection>,
    kind: u16,
    question: Bytes,
    within: Duration,
) -> Result<Bytes, Unasked> {
    if question.len() > LINK_FRAME_BYTES_MAX || !connection.is_open() {
        return Err(Unasked::Unreachable);
    }
    let Ok(_place) = connection.questions.try_acquire() else { return Err(Unasked::Unreachable) };
    let mut left = false;
    let answer = timeout(within, exchange(connection, kind, question, &mut left)).await;
    answer.ok().flatten().ok_or(if left { Unasked::Lost } else { Unasked::Unreachable })
}

/// `left` says whether anything of the question may have reached the peer.
async fn exchange(connection: &Connection, kind: u16, question: Bytes, left: &mut bool) -> Option<Bytes> {
    let (stream, mut back) = connection.quic.open_bi().await.ok()?;
    let mut stream = Outgoing(stream);
    write(&mut stream.0, kind, question, left).await.ok()?;
    // From here on it is the peer's; when nobody waits any more it is told by the other direction.
    stream.0.finish().ok()?;
    match read(&mut back, |_| async {}).await {
        Ok((_, answer)) => Some(answer),
        Err(Unread::Gone) => None,
        Err(Unread::Broken(cause)) => {
            connection.break_off(cause);
            None
        }
    }
}

async fn write(stream: &mut SendStream, kind: u16, payload: Bytes, left: &mut bool) -> Result<(), WriteError> {
    let header = Bytes::copy_from_slice(&frame::header(kind, &payload));
    let mut pieces = [header, payload];
    let mut rest = &mut pieces[..];
    while !rest.is_empty() {
        let written = stream.write_chunks(rest).await?;
        *left = true;
        rest = &mut rest[written.chunks..];
    }
    Ok(())
}

/// Reads one frame; once its length is known, that has to be allowed.
async fn read<P>(stream: &mut RecvStream, allow: impl AsyncFnOnce(u32) -> P) -> Result<(u16, Bytes), Unread> {
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0) | quinn::ReadExactError::ReadError(_)) => return Err(Unread::Gone),
        Err(quinn::ReadExactError::FinishedEarly(_)) => return Err(Unread::Broken(Cause::Length)),
    }
    let (mut found, mut whole) = (Found::default(), None);
    let mut take = |piece: Bytes, whole: &mut Option<(u16, Bytes)>| {
        found.take(piece, |kind, frame| *whole = Some((kind, frame))).map_err(Unread::Broken)
    };
    take(Bytes::copy_from_slice(&header), &mut whole)?;
    let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
    let _place = allow(length).await;
    loop {
        if let Some(frame) = whole.take() {
            return Ok(frame);
        }
        match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => take(chunk.bytes, &mut whole)?,
            Ok(None) => return Err(Unread::Broken(Cause::Length)),
            Err(ReadError::ClosedStream | ReadError::Reset(_) | ReadError::ConnectionLost(_)) => {
                return Err(Unread::Gone);
            }
            Err(_) => return Err(Unread::Broken(Cause::Transport)),
        }
    }
}

/// Answers a question of the peer.
pub(super) async fn answer(
    connection: Arc<Connection>,
    handler: Arc<dyn Handler>,
    stream: SendStream,
    mut question: RecvStream,
) {
    let mut stream = Outgoing(stream);
    let mut place = None;
    let read = read(&mut question, async |length| {
        // It is never closed.
        place = connection.held.acquire_many(length).await.ok();
    });
    let answer = match read.await {
        Ok((kind, question)) => handler.ask(&connection, kind, question).await.map(|answer| (kind, answer)),
        Err(Unread::Gone) => return,
        Err(Unread::Broken(cause)) => return connection.break_off(cause),
    };
    drop(place);
    let Some((kind, answer)) = answer.filter(|(_, answer)| answer.len() <= LINK_FRAME_BYTES_MAX) else {
        return connection.meter.declined.increment(1);
    };
    // Whether it still can be sent is the asker's to notice.
    if write(&mut stream.0, kind, answer, &mut false).await.is_ok() && stream.0.finish().is_ok() {
        connection.meter.served.increment(1);
        // Until it has arrived: a reset would overtake it.
        let _ = stream.0.stopped().await;
    }
}
