//! A stream whose other side has to take what is written: an HTTP/1.1 connection that takes nothing ends.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use metrics::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::exchange::STALLED_MAX;

/// The stream.
pub(super) struct Taken<IO> {
    io: IO,
    /// Runs while something waits to be taken.
    patience: Option<Pin<Box<Sleep>>>,
    stalled: Counter,
}

impl<IO> Taken<IO> {
    pub(super) const fn new(io: IO, stalled: Counter) -> Self {
        Self { io, patience: None, stalled }
    }

    pub(super) fn into_inner(self) -> IO {
        self.io
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(STALLED_MAX)));
        if patience.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.patience = None;
        self.stalled.increment(1);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Taken<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Taken<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever flushes has nothing left to write.
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use crate::{
        http::{connection, routes},
        sweep::tests::World,
    };

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_let_go() {
        let world = World::new();
        let (mut client, theirs) = duplex(4 * 1024);
        let (gateway, routes) = (Arc::clone(&world.gateway), routes::of(&world.gateway));
        let served = tokio::spawn(async move {
            let ended = connection::serve(theirs, Ipv4Addr::LOCALHOST.into(), &gateway, routes).await;
            matches!(ended, connection::End::Lost)
        });
        client.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        // A little is read, and then nothing.
        let mut some = [0; 6 * 1024];
        client.read_exact(&mut some).await.unwrap();
        assert!(served.await.unwrap(), "it is not waited for");
        assert_eq!(world.counted("chappe_gateway_answers_stalled_total{protocol=\"http1\"}"), 1);
    }
}
