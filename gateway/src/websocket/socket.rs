//! One connection's task: a single hand-written future that reads, writes and sleeps.
//!
//! It holds no timer (the sweep looks after time), no channel (others push into the outbox) and no buffer while
//! nothing is half done, because there are as many of it as there are clients.

use std::{
    cell::RefCell,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use chappe_schema::{
    error::{Code, Error},
    limit::CLOSING_MS_MAX,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    client::Client,
    encode::{self, Format},
    outbox::Taken,
    reader::{Broken, Item, Reader, Sink},
    writer::Writer,
};
use crate::{connection::Connection, gateway::Gateway, meters::Reason, websocket::outbox::Closing};

/// The future. Generic over its stream, so that TLS costs those who use it and nobody else.
pub(crate) struct Socket<IO> {
    io: IO,
    reader: Reader,
    writer: Writer,
    client: Client,
}

/// What all connections of a thread read into.
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Rounds of writing and reading before other tasks have their turn.
const ROUNDS_MAX: usize = 8;

impl<IO: AsyncRead + AsyncWrite + Unpin> Socket<IO> {
    /// A connection whose handshake is done; `rest` came behind it.
    pub(crate) fn new(io: IO, rest: &[u8], gateway: Arc<Gateway>, connection: Arc<Connection>, format: Format) -> Self {
        let client = Client::new(gateway, connection, format, !rest.is_empty());
        Self { io, reader: Reader::starting_with(rest), writer: Writer::default(), client }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> ControlFlow<Reason> {
        if let Some(closing) = self.client.overdue() {
            return ControlFlow::Break(closing.why);
        }
        for _ in 0..ROUNDS_MAX {
            self.write(cx)?;
            if !self.read(cx)? {
                return ControlFlow::Continue(());
            }
        }
        cx.waker().wake_by_ref();
        ControlFlow::Continue(())
    }

    /// Writes until nothing waits or the socket takes no more.
    fn write(&mut self, cx: &mut Context<'_>) -> ControlFlow<Reason> {
        let Self { io, writer, client, .. } = self;
        loop {
            if let Some(frame) = client.control.take() {
                writer.interject(frame.into_vec());
            }
            if writer.batch.is_empty() {
                if client.phase == Phase::Closed {
                    return ControlFlow::Break(client.why);
                }
                match client.take(&mut writer.batch, cx.waker()) {
                    Taken::Some => {}
                    Taken::Nothing => return ControlFlow::Continue(()),
                    Taken::Close(Closing { code, reason, why }) => {
                        if client.phase != Phase::Open {
                            return ControlFlow::Continue(());
                        }
                        client.phase = Phase::Closing;
                        client.why = why;
                        writer.interject(encode::close(Some(code), reason));
                    }
                }
            }
            match writer.poll_write(io, cx) {
                Poll::Ready(Ok(())) => client.said(),
                Poll::Ready(Err(_)) => return ControlFlow::Break(client.lost()),
                Poll::Pending => {
                    client.stalled(cx.waker());
                    return ControlFlow::Continue(());
                }
            }
        }
    }

    /// Reads once; whether anything came of it.
    fn read(&mut self, cx: &mut Context<'_>) -> ControlFlow<Reason, bool> {
        let Self { io, reader, writer, client } = self;
        if !client.may_read(cx) {
            return ControlFlow::Continue(false);
        }
        if client.broke_off && reader.has_kept() {
            client.broke_off = false;
            let result = reader.feed(&mut [], client);
            return after(result, reader, writer, client);
        }
        client.broke_off = false;
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(io).poll_read(cx, &mut buffer) {
                Poll::Pending => ControlFlow::Continue(false),
                Poll::Ready(Err(_)) => ControlFlow::Break(client.lost()),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => ControlFlow::Break(client.lost()),
                Poll::Ready(Ok(())) => {
                    client.heard(buffer.filled().len());
                    let result = match client.phase {
                        Phase::Deaf => Ok(()),
                        _ => reader.feed(buffer.filled_mut(), client),
                    };
                    after(result, reader, writer, client)
                }
            }
        })
    }
}

/// What follows from bytes that have been read.
fn after(
    result: Result<(), Broken>,
    reader: &mut Reader,
    writer: &mut Writer,
    client: &mut Client,
) -> ControlFlow<Reason, bool> {
    if let Err(broken) = result {
        *reader = Reader::default();
        if client.phase == Phase::Open {
            client.broke(broken);
        } else {
            client.phase = Phase::Deaf;
        }
    }
    match client.phase {
        Phase::Open => client.check_unauthenticated(),
        // The client has the last word: nothing but the answer to its close follows.
        Phase::Closed => writer.forget(),
        Phase::Closing | Phase::Deaf => {}
    }
    ControlFlow::Continue(true)
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Frames are read and written.
    Open,
    /// Our close frame is on its way, and the client's is awaited.
    Closing,
    /// As `Closing`, but what the client sends makes no sense any longer.
    Deaf,
    /// The client has closed; once the answer is written, that is the end.
    Closed,
}

impl Sink for Client {
    fn bytes_max(&self) -> usize {
        self.message_bytes_max()
    }

    fn item(&mut self, item: Item<'_>) -> ControlFlow<()> {
        match item {
            Item::Close(code) => {
                if self.phase == Phase::Open {
                    self.control = Some(encode::close(code, "").into());
                }
                self.phase = Phase::Closed;
                return ControlFlow::Break(());
            }
            _ if self.phase != Phase::Open => return ControlFlow::Continue(()),
            Item::Ping(payload) => self.control = Some(encode::pong(payload).into()),
            Item::Pong => {}
            Item::Binary(_) if self.format == Format::Json => {
                let detail = "binary messages are not part of the protocol; `chappe.v1.protobuf` has them";
                self.end(&Error::new(Code::Protocol).with_detail(detail), None);
            }
            Item::Text(_) if self.format == Format::Protobuf => {
                let detail = "text messages are not part of `chappe.v1.protobuf`";
                self.end(&Error::new(Code::Protocol).with_detail(detail), None);
            }
            Item::Binary(bytes) => {
                let flow = self.binary(bytes);
                self.broke_off |= flow.is_break();
                return flow;
            }
            Item::Text(text) => {
                let flow = self.text(text);
                self.broke_off |= flow.is_break();
                return flow;
            }
        }
        ControlFlow::Continue(())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Socket<IO> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let socket = self.get_mut();
        match socket.turn(cx) {
            ControlFlow::Continue(()) => Poll::Pending,
            ControlFlow::Break(why) => {
                socket.client.why = why;
                // Best effort: whatever the peer makes of it, the socket is dropped next.
                let _ = Pin::new(&mut socket.io).poll_shutdown(cx);
                Poll::Ready(())
            }
        }
    }
}

/// Seconds that a goodbye may take.
pub(crate) const CLOSING_S_MAX: u32 = (CLOSING_MS_MAX / 1000) as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_future_is_small() {
        let size = std::mem::size_of::<Socket<tokio::net::TcpStream>>();
        println!("a connection's future takes {size} bytes");
        assert!(size <= 256, "{size} bytes");
    }
}
