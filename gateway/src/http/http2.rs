//! One HTTP/2 connection: many requests at once, gRPC among them.

use std::{
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::connection::{Edge, FIRST_HEAD_TIMEOUT};
use crate::gateway::Gateway;

/// What a client says first: nothing of HTTP/1.1 begins like this.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of one connection at once, streams among them. More: they wait.
const STREAMS_MAX: u32 = 128;

/// What may be on its way to us of one request, and of all requests of a connection: a body is at most 80 KiB.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// What waits for one stream's reader. More: whoever writes waits.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Headers of one request, as they are in memory.
const HEAD_BYTES_MAX: u32 = 32 * 1024;

/// A silent connection is asked for a sign of life so often, and is over when none comes: half of what common proxies
/// wait.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection on which nothing has been asked for this long is ended, politely. Clients of gRPC keep one for as long as
/// they live and come back by themselves.
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);

/// How often it is looked at whether a connection is idle.
const LOOK: Duration = Duration::from_secs(5);

/// What the requests of a connection tell it.
#[derive(Default)]
pub(crate) struct Busy {
    /// Requests that are being answered.
    now: AtomicU32,
    /// Those that there have been.
    ever: AtomicU32,
}

/// A request that is being answered, its answer's body included.
pub(crate) struct Answering(Arc<Busy>);

impl Busy {
    pub(crate) fn begin(self: &Arc<Self>) -> Answering {
        self.now.fetch_add(1, Ordering::Relaxed);
        self.ever.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve<IO>(stream: IO, peer: IpAddr, gateway: &Arc<Gateway>, routes: super::routes::Routes)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let busy = Arc::new(Busy::default());
    let edge = Edge::of_http2(Arc::clone(gateway), routes, peer, Arc::clone(&busy));
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), edge));
    let mut leaving = gateway.leaving.subscribe();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut last_busy, mut ends) = (Instant::now(), Instant::now(), None);
    loop {
        // Once it is known that it ends, what has begun may go on for a while.
        let at = ends;
        let over = async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // However it ended, there is nobody left to be told.
            _ = &mut connection => return,
            () = over => return,
            _ = leaving.wait_for(|leaving| *leaving), if ends.is_none() => {
                connection.as_mut().graceful_shutdown();
                // As long as WebSockets have, and a moment for last words.
                ends = Some(Instant::now() + gateway.config.drain_window.get() + PING_TIMEOUT);
            }
            _ = look.tick(), if ends.is_none() => {
                let has_asked = busy.ever.load(Ordering::Relaxed) > 0;
                if busy.now.load(Ordering::Relaxed) > 0 {
                    last_busy = Instant::now();
                }
                if !has_asked && began.elapsed() > FIRST_HEAD_TIMEOUT {
                    return;
                }
                if last_busy.elapsed() > IDLE_MAX {
                    connection.as_mut().graceful_shutdown();
                    ends = Some(Instant::now() + PING_TIMEOUT);
                }
            }
        }
    }
}
