//! New connections: how many, from whom, and a polite word for those that are too many.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chappe_schema::{
    error::{Code, Error},
    limit::UNREAD_BODY_BYTES_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    gateway::Gateway,
    http::{self, first::Looked, proxy, routes::Routes},
    limiter::{Key, Scope},
    meters::{Reason, Task},
};

/// How many connections there may be.
pub(crate) struct Seats {
    /// HTTP connections, those that are about to become WebSockets included.
    pub(crate) http: AtomicUsize,
    /// All of them together.
    pub(crate) max: usize,
}

/// Connections that are being told that they are too many. More are dropped without a word.
const REFUSALS_MAX: usize = 64;

/// A refused client hears this and may come back.
const FULL_RETRY_AFTER_MS: u64 = 5_000;

/// How long the last words of a connection may take to be read.
const LINGER: Duration = Duration::from_millis(1_000);

/// Accepts until the gateway leaves.
pub(crate) async fn run(gateway: Arc<Gateway>, listener: Arc<TcpListener>, routes: Routes) {
    let mut leaving = gateway.leaving.subscribe();
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = leaving.wait_for(|leaving| *leaving) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => admit(&gateway, &routes, &refusals, stream, peer),
            Err(error) => {
                // Out of files or memory: those who wait in the backlog wait a little longer.
                tracing::warn!(event = "accept_failed", %error);
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn admit(gateway: &Arc<Gateway>, routes: &Routes, refusals: &Arc<Semaphore>, stream: TcpStream, peer: SocketAddr) {
    // Small frames must not wait for each other's acknowledgements.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let taken = gateway.seats.http.load(Ordering::Relaxed) + gateway.connections.len();
    if taken >= gateway.seats.max {
        let error = Error::new(Code::Overloaded).with_detail("the server has as many connections as it may");
        return refuse(gateway, refusals, stream, error.after_ms(FULL_RETRY_AFTER_MS));
    }
    let seat = Seat::take(gateway);
    let (routes, refusals) = (routes.clone(), Arc::clone(refusals));
    tokio::spawn(async move {
        match greet(&seat.0, peer.ip()).await {
            Ok(()) => match &seat.0.tls.clone() {
                None => serve(stream, peer.ip(), seat, routes).await,
                Some(tls) => {
                    if let Some(stream) = tls.accept(stream).await {
                        serve(stream, peer.ip(), seat, routes).await;
                    }
                }
            },
            Err(error) => refuse(&seat.0, &refusals, stream, error),
        }
    });
}

/// Counts a handshake against its address. Behind a proxy that is done when the request says whose it is.
async fn greet(gateway: &Gateway, peer: IpAddr) -> Result<(), Error> {
    if proxy::is_trusted(peer, &gateway.config.trusted_proxies) {
        return Ok(());
    }
    let decision = gateway.limiter.check(Scope::Handshakes, Key::Address(peer), 1).await;
    if decision.allowed { Ok(()) } else { Err(Error::new(Code::RateLimited).after_ms(decision.retry_after_ms)) }
}

/// HTTP until the connection ends or becomes a WebSocket. Generic over the stream: TLS stands in front of it where it is
/// configured.
async fn serve<IO>(stream: IO, peer: IpAddr, seat: Seat, routes: Routes)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let gateway = &seat.0;
    let mut stream = Looked::new(stream);
    let mut leaving = gateway.leaving.subscribe();
    let is_http2 = tokio::select! {
        biased;
        is_http2 = timeout(http::connection::FIRST_HEAD_TIMEOUT, stream.is_http2()) => is_http2,
        // What has begun to come is answered by whoever answers what is incomplete.
        _ = leaving.wait_for(|leaving| *leaving) => Ok(Ok(false)),
    };
    match is_http2 {
        Ok(Ok(true)) => return http::http2::serve(stream, peer, gateway, routes).await,
        // A stranger who has never said a word.
        Err(_) if stream.is_silent() => return,
        Ok(Ok(false)) | Err(_) => {}
        Ok(Err(_)) => return,
    }
    match http::connection::serve(stream, peer, gateway, routes).await {
        http::connection::End::Upgraded(stream, rest, format) => {
            // Its task looks after itself.
            drop(crate::websocket::begin(stream.into_inner(), &rest, gateway, format));
        }
        http::connection::End::Done(stream) => {
            drop(seat);
            linger(stream).await;
        }
        http::connection::End::Refused(stream, error) => {
            drop(seat);
            say_last(stream, &error).await;
        }
        http::connection::End::Lost => {}
    }
}

fn refuse(gateway: &Gateway, refusals: &Arc<Semaphore>, stream: TcpStream, error: Error) {
    // A handshake is work that is not done for whoever is too many, and nobody would understand what is said without one.
    if gateway.tls.is_some() {
        return;
    }
    let Ok(permit) = Arc::clone(refusals).try_acquire_owned() else { return };
    tokio::spawn(async move {
        say_last(stream, &error).await;
        drop(permit);
    });
}

/// An error, and the end.
async fn say_last<IO: AsyncRead + AsyncWrite + Unpin>(mut stream: IO, error: &Error) {
    let response = http::answer::plain(error);
    if timeout(LINGER, stream.write_all(&response)).await.is_ok_and(|written| written.is_ok()) {
        linger(stream).await;
    }
}

/// Lets the other side read the last words: closing a socket with unread bytes in it would take them back.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(mut stream: IO) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut discarded = 0;
        let mut buffer = [0; 2048];
        while discarded < UNREAD_BODY_BYTES_MAX {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => discarded += count,
            }
        }
        Ok::<(), std::io::Error>(())
    })
    .await;
}

/// One HTTP connection's place among the connections.
pub(crate) struct Seat(Arc<Gateway>);

impl Seat {
    fn take(gateway: &Arc<Gateway>) -> Self {
        gateway.seats.http.fetch_add(1, Ordering::Relaxed);
        gateway.meters.http.open();
        Self(Arc::clone(gateway))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seats.http.fetch_sub(1, Ordering::Relaxed);
        let mut why = Reason::Client;
        if std::thread::panicking() {
            why = Reason::Error;
            self.0.meters.panics(Task::Http).increment(1);
        }
        self.0.meters.http.close(why);
    }
}

impl Seats {
    /// As many as are configured, or as there can be files: what the process needs itself is left free.
    pub(crate) fn new(configured: usize) -> Self {
        let files = usize::try_from(chappe_cluster::process::files::limit()).unwrap_or(usize::MAX);
        let possible = files.saturating_sub((files / 16).max(256)).max(16);
        let max = if configured == 0 { possible } else { configured.min(possible) };
        Self { http: AtomicUsize::new(0), max }
    }
}
