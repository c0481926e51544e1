//! One request of an HTTP/2 connection, until the last of its answer is on its way: what it holds in memory, and how long.
//!
//! A client takes an answer when it likes: it opens a window for it, or does not. So each answer is given in portions, what the
//! unread ones of a connection hold together is bounded, and one of which nothing is taken for
//! [`ANSWER_STALLED_MS_MAX`] is given up: its stream is reset, and the connection goes on.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use chappe_schema::{
    limit::{
        ANSWER_STALLED_MS_MAX, ANSWERS_HELD_BYTES_MAX, FRAME_BYTES_MAX, PAGE_BYTES_MAX, PAGE_IN_FLIGHT_WEIGHT,
        UNREAD_BODY_BYTES_MAX, UNREAD_BODY_MS_MAX,
    },
    operation::Op,
};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    rt::Executor,
};
use metrics::Counter;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task_local,
    time::{Instant, sleep, timeout},
};

use crate::route::weight;

/// How long nothing of an answer may be taken.
pub(super) const STALLED_MAX: Duration = Duration::from_millis(ANSWER_STALLED_MS_MAX);

/// What is given of an answer at once: one frame of the size that everybody takes.
const PORTION_BYTES: usize = 16 * 1024;

/// Of less than this, all is given.
const WHOLE_BYTES_MAX: usize = 1024;

task_local! {
    /// The exchange that a stream's task is about.
    static CURRENT: Arc<Exchange>;
}

/// A request and its answer.
pub(crate) struct Exchange {
    /// Since when it is the client's turn to take something; none while it is ours.
    theirs: Mutex<Option<Instant>>,
    /// What the connection's answers may hold.
    room: Arc<Semaphore>,
    /// What this one does.
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Exchange {
    /// That of this task, which [`Streams`] began.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Waits until an answer of the largest size that an operation may have finds room.
    pub(crate) async fn make_room(&self, op: Op) {
        const UNIT: usize = PAGE_BYTES_MAX / PAGE_IN_FLIGHT_WEIGHT;
        let bytes = match op {
            Op::MessageGet => FRAME_BYTES_MAX as u32,
            _ => weight(op) * UNIT as u32,
        };
        // Nobody closes it.
        let permit = Arc::clone(&self.room).acquire_many_owned(bytes).await.ok();
        *self.held.lock() = permit;
    }

    /// The answer is so large: what was kept free for a larger one is there for others.
    pub(crate) fn is_of(&self, bytes: usize) {
        if let Some(held) = &mut *self.held.lock() {
            let unneeded = held.num_permits().saturating_sub(bytes);
            drop(held.split(unneeded));
        }
    }

    fn is_ours(&self) {
        *self.theirs.lock() = None;
    }

    fn is_theirs(&self) {
        *self.theirs.lock() = Some(Instant::now());
    }

    /// Ends when nothing of the answer has been taken for too long. It wants to be polled whenever the stream was.
    async fn stalled(&self) {
        let mut patience = pin!(sleep(STALLED_MAX));
        poll_fn(|cx| {
            let Some(since) = *self.theirs.lock() else { return Poll::Pending };
            if patience.deadline() != since + STALLED_MAX {
                patience.as_mut().reset(since + STALLED_MAX);
            }
            patience.as_mut().poll(cx)
        })
        .await;
    }
}

/// Runs the streams of one connection, each as a task.
#[derive(Clone)]
pub(super) struct Streams {
    room: Arc<Semaphore>,
    /// Answers that were given up.
    stalled: Counter,
}

impl Streams {
    pub(super) fn new(stalled: Counter) -> Self {
        Self { room: Arc::new(Semaphore::new(ANSWERS_HELD_BYTES_MAX)), stalled }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let exchange =
            Arc::new(Exchange { theirs: Mutex::default(), room: Arc::clone(&self.room), held: Mutex::default() });
        let (watched, stalled) = (Arc::clone(&exchange), self.stalled.clone());
        tokio::spawn(CURRENT.scope(exchange, async move {
            tokio::select! {
                biased;
                () = stream => {}
                // Whoever drops a stream resets it, and what waits for its client's window is forgotten.
                () = watched.stalled() => stalled.increment(1),
            }
        }));
    }
}

/// An answer's body in portions. The next is asked for when the client has made room for the one before, and the last byte of
/// a larger answer is one of its own: until it is given, somebody looks after how long that takes.
pub(super) struct Portions<G> {
    body: Body,
    rest: Bytes,
    exchange: Arc<Exchange>,
    /// Kept as long as the answer is.
    _guard: G,
}

impl<G> Portions<G> {
    pub(super) fn of(body: Body, exchange: Arc<Exchange>, guard: G) -> Self {
        Self { body, rest: Bytes::new(), exchange, _guard: guard }
    }
}

const fn portion(bytes: usize) -> usize {
    match bytes {
        ..=WHOLE_BYTES_MAX => bytes,
        _ if bytes > PORTION_BYTES => PORTION_BYTES,
        _ => bytes - 1,
    }
}

impl<G: Unpin> HttpBody for Portions<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            this.exchange.is_ours();
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let portion = this.rest.split_to(portion(this.rest.len()));
        this.exchange.is_theirs();
        Poll::Ready(Some(Ok(Frame::data(portion))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

// === the other way ===

/// A request's body, which comes back when whoever read it has read enough.
pub(super) struct Lent {
    body: Option<Incoming>,
    back: Unread,
}

/// Where it comes back to.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    pub(super) fn lend(&self, body: Incoming) -> Body {
        Body::new(Lent { body: Some(body), back: self.clone() })
    }

    /// Reads what nobody wanted to while the answer is on its way, within bounds. Whoever drops a body resets its stream, and
    /// clients that are still sending take that for an error and lose the answer (curl 7.88 does): they have time to see it.
    pub(super) fn finish(self) {
        let Some(mut body) = self.0.lock().take() else { return };
        tokio::spawn(timeout(Duration::from_millis(UNREAD_BODY_MS_MAX), async move {
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > UNREAD_BODY_BYTES_MAX {
                    // Its window is closed from now on.
                    pending::<()>().await;
                }
            }
        }));
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.back.0.lock() = self.body.take().filter(|body| !body.is_end_stream());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_of_what_is_large_waits_for_the_client() {
        for (bytes, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (1024, vec![1024]),
            (1025, vec![1024, 1]),
            (16 * 1024 + 1, vec![16 * 1024, 1]),
            (40_000, vec![16 * 1024, 16 * 1024, 7231, 1]),
        ] {
            let (mut rest, mut portions) = (bytes, Vec::new());
            while rest > 0 {
                portions.push(portion(rest));
                rest -= portion(rest);
            }
            assert_eq!(portions, expected, "{bytes}");
        }
    }
}
