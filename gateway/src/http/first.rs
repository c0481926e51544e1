//! The first bytes of a connection: which HTTP it speaks.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::http2::PREFACE;

/// A stream whose first bytes have been looked at, and are read once more.
pub(crate) struct Looked<IO> {
    io: IO,
    first: [u8; PREFACE.len()],
    /// Of `first`, what has been read, and what of that has been given on.
    length: u8,
    given: u8,
}

impl<IO> Looked<IO> {
    pub(crate) const fn new(io: IO) -> Self {
        Self { io, first: [0; PREFACE.len()], length: 0, given: 0 }
    }

    /// Whether nothing has been read at all.
    pub(crate) const fn is_silent(&self) -> bool {
        self.length == 0
    }

    /// The stream itself, once everything has been given on.
    pub(crate) fn into_inner(self) -> IO {
        debug_assert_eq!(self.given, self.length, "what was looked at has been read");
        self.io
    }
}

impl<IO: AsyncRead + Unpin> Looked<IO> {
    /// Reads until it is clear whether the other side speaks HTTP/2. It may be given up at any time: what has been read
    /// is not lost.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        loop {
            let length = usize::from(self.length);
            if self.first[..length] != PREFACE[..length] {
                return Ok(false);
            }
            if length == PREFACE.len() {
                return Ok(true);
            }
            match self.io.read(&mut self.first[length..]).await? {
                0 => return Ok(false),
                count => self.length += count as u8,
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Looked<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (given, length) = (usize::from(self.given), usize::from(self.length));
        if given < length {
            let count = buffer.remaining().min(length - given);
            buffer.put_slice(&self.first[given..given + count]);
            self.given += count as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Looked<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn looked(bytes: &[u8], step: usize) -> (bool, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1024);
        let sent = bytes.to_vec();
        let sending = tokio::spawn(async move {
            for part in sent.chunks(step) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut looked = Looked::new(server);
        let is_http2 = looked.is_http2().await.unwrap();
        let mut read = Vec::new();
        looked.read_to_end(&mut read).await.unwrap();
        sending.await.unwrap();
        (is_http2, read)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_whatever_it_was() {
        let with_frames = [PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat();
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], false),
            (b"POST / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", false),
            (b"P", false),
            (b"", false),
            (PREFACE, true),
            (&with_frames, true),
        ] {
            for step in [1, 3, 1000] {
                assert_eq!(looked(bytes, step).await, (expected, bytes.to_vec()), "{:?}", bytes.escape_ascii());
            }
        }
    }
}
