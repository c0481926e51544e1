//! Bytes on their way into one socket: everything that waits goes in one system call.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

use super::outbox::Entry;

/// What is being written. Only whole entries are added, and control frames only between them, so a frame is never cut
/// by another.
#[derive(Default)]
pub(crate) struct Writer {
    /// The batch that was taken from the outbox.
    pub(crate) batch: VecDeque<Entry>,
    /// How much of its first entry is written.
    written: usize,
}

/// The kernel takes up to 1024; beyond this many, copying the list costs more than another call.
const SLICES_MAX: usize = 64;

/// A batch above this is given back once it is written.
const KEPT_ENTRIES: usize = 16;

impl Writer {
    /// Puts a control frame in front, or behind what is half written.
    pub(crate) fn interject(&mut self, frame: Vec<u8>) {
        let behind = usize::from(self.written > 0).min(self.batch.len());
        self.batch.insert(behind, Entry::Own(frame));
    }

    /// Forgets everything that is not half written.
    pub(crate) fn forget(&mut self) {
        self.batch.truncate(usize::from(self.written > 0));
    }

    /// Writes as much as the socket takes in one call; ready when something was written.
    pub(crate) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(first) = self.batch.front() else { return Poll::Ready(Ok(())) };
        let first = &first.bytes()[self.written..];
        let result = if self.batch.len() == 1 {
            Pin::new(io).poll_write(cx, first)
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            slices[0] = IoSlice::new(first);
            let mut count = 1;
            for (slice, entry) in slices[1..].iter_mut().zip(self.batch.iter().skip(1)) {
                *slice = IoSlice::new(entry.bytes());
                count += 1;
            }
            Pin::new(io).poll_write_vectored(cx, &slices[..count])
        };
        match result {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(count)) => {
                self.advance(count);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.batch.front() {
            let left = first.bytes().len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.batch.pop_front();
        }
        if self.batch.capacity() > KEPT_ENTRIES {
            self.batch = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes `step` bytes at a time and then none, in turns.
    struct Narrow {
        taken: Vec<u8>,
        step: usize,
        full: bool,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.full = !self.full;
            if self.full {
                return Poll::Pending;
            }
            let count = bytes.len().min(self.step);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.as_mut().poll_write(cx, &all)
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn nothing_is_lost_and_no_frame_is_cut_however_little_the_socket_takes() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for step in (1..40).chain([1000, 100_000]) {
            let mut writer = Writer::default();
            let mut socket = Narrow { taken: Vec::new(), step, full: false };
            for n in 0..200u8 {
                writer.batch.push_back(Entry::Own(vec![n; usize::from(n) + 1]));
            }
            let mut interjected = 0;
            while !writer.batch.is_empty() {
                let blocked = writer.poll_write(&mut socket, &mut cx).is_pending();
                if blocked && interjected < 20 {
                    interjected += 1;
                    writer.interject(vec![255; 7]);
                }
            }
            // Taken apart again: every entry whole, in order, control frames between them.
            let mut at = 0;
            let mut expected = 0u8;
            while at < socket.taken.len() {
                let n = socket.taken[at];
                let length = if n == 255 { 7 } else { usize::from(n) + 1 };
                assert!(socket.taken[at..at + length].iter().all(|byte| *byte == n), "a frame was cut, step {step}");
                if n != 255 {
                    assert_eq!(n, expected);
                    expected += 1;
                }
                at += length;
            }
            assert_eq!(expected, 200);
            assert_eq!(socket.taken.iter().filter(|byte| **byte == 255).count(), 7 * interjected);
        }
    }

    #[test]
    fn what_is_half_written_is_finished() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut writer = Writer::default();
        let mut socket = Narrow { taken: Vec::new(), step: 3, full: true };
        writer.batch.push_back(Entry::Own(b"abcdef".to_vec()));
        writer.batch.push_back(Entry::Own(b"ghi".to_vec()));
        assert!(writer.poll_write(&mut socket, &mut cx).is_ready());
        writer.forget();
        writer.interject(b"!".to_vec());
        while !writer.batch.is_empty() {
            let _ = writer.poll_write(&mut socket, &mut cx);
        }
        assert_eq!(socket.taken, b"abcdef!");
    }
}
