//! The admin port: plain HTTP for probes, Prometheus and `ctl`, never routed to the outside.
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the runtime turns |
//! | `/startupz` | 200 once started |
//! | `/readyz` | 200 while ready; `?verbose` shows every condition |
//! | `/health` | everything about health as JSON, with 200 while ready, else 503 |
//! | `/version` | this build as JSON |
//! | `/metrics` | Prometheus' text format |
//!
//! It must answer when everything else is in trouble, and to whoever scans the network: each connection has bounds on
//! heads, bodies and on how long any of them, or our answer, may take; and there are only so many connections.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::health::{Health, Part, Report};
use super::metrics::Metrics;
use super::version::Version;

/// Prometheus, two probers and a few people. The next one waits in the backlog until one of these is done, and none
/// of them can take longer than the times below without making progress.
const CONNECTIONS_MAX: usize = 64;
/// For a request's head, and for the next one on a connection that stays open.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// A request line and headers. Probes send 200 bytes; hyper's buffer cannot be smaller than 8 KiB.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Headers of a request; more is answered with 431.
const HEADERS_MAX: usize = 48;
/// For a whole body, which is read before a route sees it.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// Only `ctl` sends bodies, small ones; more is answered with 413.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// A client that takes nothing of our answer for so long is gone.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);
/// What is being answered when the port closes may still finish.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);
/// After a failed accept (no file descriptors left, most likely): trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the admin port shows.
#[derive(Clone, Debug)]
pub struct Admin {
    shown: Arc<Shown>,
    extra: Router,
}

#[derive(Debug)]
struct Shown {
    health: Health,
    metrics: Metrics,
    version: Version,
}

impl Admin {
    /// The six paths above.
    pub fn new(health: Health, metrics: Metrics, version: Version) -> Self {
        Self { shown: Arc::new(Shown { health, metrics, version }), extra: Router::new() }
    }

    /// More of them, under the same bounds. A path that already exists panics here, at start.
    #[must_use]
    pub fn with_routes(mut self, routes: Router) -> Self {
        self.extra = self.extra.merge(routes);
        self
    }

    /// All of it as a router.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/startupz", get(startupz))
            .route("/readyz", get(readyz))
            .route("/health", get(health))
            .route("/version", get(version))
            .route("/metrics", get(metrics))
            .with_state(self.shown.clone())
            .merge(self.extra.clone())
            .layer(middleware::from_fn(whole_body))
    }
}

/// Serves the admin port until `shutdown` is done; then answers what is being asked and returns.
pub async fn serve(listener: TcpListener, admin: Admin, shutdown: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(admin.router());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);

    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, accept(&listener).await)
        };
        let (permit, stream) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        let connection = http.serve_connection(TokioIo::new(Unstalled::new(stream, WRITE_STALL_MAX)), service.clone());
        let mut closed = closed.clone();
        connections.spawn(async move {
            let mut connection = pin!(connection);
            // How a connection ends interests nobody: probers hang up in the middle all day.
            let close = async { drop(closed.wait_for(|closing| *closing).await) };
            let _ = tokio::select! {
                result = connection.as_mut() => result,
                () = close => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }

    drop(listener);
    closing.send_replace(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSE_TIME_MAX, finish).await.is_err() {
        tracing::warn!(event = "admin_close_failed", open = connections.len(), "closing on admin clients");
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        let accepted: io::Result<(TcpStream, SocketAddr)> = listener.accept().await;
        match accepted {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(event = "admin_accept_failed", %error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

// === paths ===

async fn livez(State(shown): State<Arc<Shown>>) -> Response {
    match shown.health.alive() {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn startupz(State(shown): State<Arc<Shown>>, RawQuery(query): RawQuery) -> Response {
    let report = shown.health.report();
    probe(report.started, &report, |part| part == Part::Startup, verbose(query))
}

async fn readyz(State(shown): State<Arc<Shown>>, RawQuery(query): RawQuery) -> Response {
    let report = shown.health.report();
    probe(report.ready, &report, |part| part == Part::Ready, verbose(query))
}

async fn health(State(shown): State<Arc<Shown>>) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(flatten)]
        report: &'a Report,
        version: &'a Version,
        uptime_seconds: u64,
    }

    let report = shown.health.report();
    let uptime_seconds = shown.health.uptime().as_secs();
    (status(report.ready), Json(Body { report: &report, version: &shown.version, uptime_seconds })).into_response()
}

async fn version(State(shown): State<Arc<Shown>>) -> Response {
    Json(&shown.version).into_response()
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    shown.metrics.within(|| {
        shown.health.mirror();
        super::metrics::record_build(&shown.version);
    });
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], shown.metrics.render()).into_response()
}

// === what they answer ===

/// The answer of a probe. A failing one always says what is wrong, because Kubernetes puts it into the pod's events;
/// with `verbose` every condition has its line.
fn probe(ok: bool, report: &Report, asked: impl Fn(Part) -> bool, verbose: bool) -> Response {
    let mut body = String::new();
    let mut line = |mark: &str, name: &str, words: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(body, "[{mark}] {name}: {words}");
    };
    if report.draining {
        line("-", "draining", "this process is leaving");
    }
    if !report.alive {
        line("-", "alive", "the runtime does not turn");
    }
    for condition in &report.conditions {
        // A process that has not started is not ready either, and the reason is a startup condition.
        let matters = asked(condition.part) || (!report.started && condition.part == Part::Startup);
        match &condition.reason {
            Some(reason) if matters => line("-", condition.name, reason),
            Some(reason) if verbose => line("!", condition.name, reason),
            None if verbose => line("+", condition.name, "ok"),
            _ => {}
        }
    }
    let summary = if ok { "ok" } else { "failing" };
    let body = if ok && !verbose { "ok\n".to_owned() } else { format!("{body}{summary}\n") };
    text(status(ok), body)
}

fn verbose(query: Option<String>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")))
}

fn status(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, TEXT)], body.into()).into_response()
}

/// Reads the body before the route runs, so that no route can be held up by a client that dawdles.
async fn whole_body(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match timeout(BODY_TIME_MAX, axum::body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(_)) => text(StatusCode::PAYLOAD_TOO_LARGE, "the body cannot be read or is too large\n"),
        Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    }
}

// === a stream that gives up on those who do not read ===

/// A socket whose writes fail once the other side has taken nothing for `stall_max`.
struct Unstalled {
    stream: TcpStream,
    stall_max: Duration,
    /// Running while a write waits.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    fn new(stream: TcpStream, stall_max: Duration) -> Self {
        Self { stream, stall_max, stall: None }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(self.stall_max)));
        stall.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unstalled {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Unstalled {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
