//! One HTTP/1.1 connection: its requests one after the other, until it ends or becomes a WebSocket. What every answer has
//! over HTTP/2 too.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use chappe_schema::error::{Code, Error};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use tower::Service as _;

use super::{
    answer,
    exchange::{Exchange, Portions, Unread},
    http2::Busy,
    origin, proxy,
    routes::Routes,
    taken::Taken,
};
use crate::{
    gateway::{Gateway, log},
    grpc::services,
    limiter::{Key, Scope},
    websocket::{encode::Format, upgrade},
};

/// How an HTTP connection ended.
pub(crate) enum End<IO> {
    /// It is a WebSocket now; the bytes came behind the handshake.
    Upgraded(IO, Bytes, Format),
    /// All is answered.
    Done(IO),
    /// This is still to be said, and then it is over.
    Refused(IO, Error),
    /// The other side is gone, or has never said a word.
    Lost,
}

/// How long a stranger may take for its first request's head.
pub(crate) const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a later head may take, which includes the pause before it: longer than the minute after which common
/// proxies give up a connection they keep, since whoever ends it first must not be us.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Room for a head with a token of the largest size, and for one part of a body.
pub(super) const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Headers of one request.
const HEADERS_MAX: usize = 64;

/// Serves a connection to its end.
pub(crate) async fn serve<IO>(stream: IO, peer: IpAddr, gateway: &Arc<Gateway>, routes: Routes) -> End<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stage = Arc::new(AtomicU8::new(SILENT));
    let edge = Edge { gateway: Arc::clone(gateway), routes, peer, stage: Arc::clone(&stage), busy: None };
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
    let stream = Taken::new(stream, gateway.meters.answers_stalled_http1.clone());
    let stream = Unasked { io: stream, stage: Arc::clone(&stage), status: None };
    let mut connection = server.serve_connection(TokioIo::new(stream), edge);
    let mut leaving = gateway.leaving.subscribe();
    let mut leaving = pin!(async move {
        // The sender lives in the gateway, so this cannot end by itself.
        let _ = leaving.wait_for(|leaving| *leaving).await;
    });
    let mut has_left = false;
    let mut patience = pin!(sleep(FIRST_HEAD_TIMEOUT));
    let ended = poll_fn(|cx| {
        if stage.load(Ordering::Relaxed) == SILENT && patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if !has_left && leaving.as_mut().poll(cx).is_ready() {
            has_left = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx).map(Some)
    });
    let ended = ended.await;
    let parts = connection.into_parts();
    let Unasked { io, status, .. } = parts.io.into_inner();
    let io = io.into_inner();
    let has_begun = !parts.read_buf.is_empty();
    let late = || Error::new(Code::RequestTimeout).with_detail("the request's head did not arrive in time");
    match ended {
        Some(Ok(())) if stage.load(Ordering::Relaxed) == UPGRADED => End::Upgraded(io, parts.read_buf, Format::Json),
        Some(Ok(())) if stage.load(Ordering::Relaxed) == UPGRADED_TO_PROTOBUF => {
            End::Upgraded(io, parts.read_buf, Format::Protobuf)
        }
        Some(Ok(())) => End::Done(io),
        Some(Err(_)) if status.is_some() => End::Refused(io, broken_head(status)),
        // The pause between two requests may be as long as it likes to be, and ends without a word.
        None if has_begun => End::Refused(io, late()),
        Some(Err(error)) if error.is_timeout() && has_begun => End::Refused(io, late()),
        // The library has said it, without a body.
        Some(Err(error)) if error.is_parse() => End::Done(io),
        Some(Err(_)) | None => End::Lost,
    }
}

fn broken_head(status: Option<u16>) -> Error {
    match status {
        Some(431 | 414) => head_too_large(),
        _ => Error::new(Code::Malformed).with_detail("the request's line or headers are not HTTP/1.1"),
    }
}

fn head_too_large() -> Error {
    let detail = format!("about {} KiB and {HEADERS_MAX} headers are accepted", BUFFER_BYTES_MAX / 1024);
    Error::new(Code::HeadTooLarge).with_detail(detail)
}

/// Whether a head that came over HTTP/2 is larger than one may be over HTTP/1.1, counted as it would be there.
fn is_too_large<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let line = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    headers.len() > HEADERS_MAX || line + bytes.sum::<usize>() > BUFFER_BYTES_MAX
}

/// A stream whose first request may be none. What the library would answer to that by itself has no body, so it is held
/// back and said in the one shape. Once a request has been asked, everything passes: nobody could tell then whose words
/// they are.
struct Unasked<IO> {
    io: IO,
    stage: Arc<AtomicU8>,
    /// The status that the library chose.
    status: Option<u16>,
}

impl<IO> Unasked<IO> {
    /// Takes what is written while nothing has been asked.
    fn hold_back(&mut self, bytes: &[u8]) -> bool {
        let is_silent = self.stage.load(Ordering::Relaxed) == SILENT;
        if is_silent && self.status.is_none() {
            let status = bytes.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
            self.status = Some(status.unwrap_or(400));
        }
        is_silent
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Unasked<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Unasked<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.hold_back(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.hold_back(parts.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
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

/// Nothing has been asked yet.
const SILENT: u8 = 0;
/// Something has.
const ASKED: u8 = 1;
/// A WebSocket was asked for and granted.
const UPGRADED: u8 = 2;
/// The same, of the subprotocol `chappe.v1.protobuf`.
const UPGRADED_TO_PROTOBUF: u8 = 3;

/// What a handler knows about its request beside the request.
#[derive(Clone)]
pub(crate) struct About {
    /// Under which it stands in the log.
    pub(crate) request_id: Arc<str>,
    /// Whose it is, proxies seen through.
    pub(crate) client: IpAddr,
    /// When its head was there.
    pub(crate) began: Instant,
    /// Where it holds something in memory beside others of its connection: over HTTP/2.
    pub(crate) exchange: Option<Arc<Exchange>>,
}

/// What answers the requests of a connection.
pub(crate) struct Edge {
    gateway: Arc<Gateway>,
    routes: Routes,
    peer: IpAddr,
    /// Where the connection is: what its server cannot tell.
    stage: Arc<AtomicU8>,
    /// What an HTTP/2 connection is told of its requests.
    busy: Option<Arc<Busy>>,
}

impl Edge {
    /// Of an HTTP/2 connection.
    pub(crate) fn of_http2(gateway: Arc<Gateway>, routes: Routes, peer: IpAddr, busy: Arc<Busy>) -> Self {
        Self { gateway, routes, peer, stage: Arc::default(), busy: Some(busy) }
    }
}

impl Service<Request<Incoming>> for Edge {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let gateway = Arc::clone(&self.gateway);
        let routes = self.routes.clone();
        let stage = Arc::clone(&self.stage);
        stage.store(ASKED, Ordering::Relaxed);
        let peer = self.peer;
        let answering = self.busy.as_ref().map(Busy::begin);
        Box::pin(async move {
            let about = About {
                request_id: request_id(),
                client: proxy::client(peer, request.headers(), &gateway.config.trusted_proxies),
                began: Instant::now(),
                exchange: Exchange::current(),
            };
            let exchange = about.exchange.clone();
            // Over HTTP/1.1 the end of the connection waits for what is still coming.
            let unread = exchange.is_some().then(Unread::default);
            let request = request.map(|body| match &unread {
                Some(unread) => unread.lend(body),
                None => Body::new(body),
            });
            let page = request.headers().get(header::ORIGIN).cloned();
            let id = HeaderValue::from_str(&about.request_id);
            let mut response = answer(&gateway, routes, &stage, peer, about, request).await;
            let headers = response.headers_mut();
            origin::allow(page.as_ref(), headers, &gateway.config.allowed_origins);
            if let Ok(id) = id {
                headers.insert(REQUEST_ID, id);
            }
            if let Some(unread) = unread {
                unread.finish();
            }
            Ok(match exchange {
                // It is over when the last of its answer is.
                Some(exchange) => response.map(|body| Body::new(Portions::of(body, exchange, answering))),
                None => response,
            })
        })
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

async fn answer(
    gateway: &Arc<Gateway>,
    mut routes: Routes,
    stage: &AtomicU8,
    peer: IpAddr,
    about: About,
    mut request: Request<Body>,
) -> Response {
    if request.version() == Version::HTTP_2 {
        let is_grpc = services::is_grpc(request.headers());
        if is_too_large(&request) {
            let error = head_too_large();
            log(&error, &about.request_id);
            return match is_grpc {
                true => services::refuse(&error, &about.request_id),
                false => answer::problem(&error, &about.request_id),
            };
        }
        if is_grpc {
            return routes.grpc.answer(about, request).await;
        }
    }
    let is_websocket = request.uri().path() == upgrade::PATH;
    if request.method() == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        origin::allow_preflight(response.headers_mut());
        return response;
    }
    if is_websocket {
        let accepted = match greet(gateway, peer, about.client).await {
            Ok(()) => upgrade::accept(&request, &gateway.config.allowed_origins),
            Err(error) => Err(error),
        };
        return match accepted {
            Ok((response, format)) => {
                let upgraded = match format {
                    Format::Json => UPGRADED,
                    Format::Protobuf => UPGRADED_TO_PROTOBUF,
                };
                stage.store(upgraded, Ordering::Relaxed);
                response
            }
            Err(error) => {
                log(&error, &about.request_id);
                let mut response = answer::problem(&error, &about.request_id);
                if error.code == Code::UpgradeRequired {
                    // Whoever came with plain HTTP, or an older draft, is told what is spoken here.
                    let headers = response.headers_mut();
                    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                } else if error.code == Code::MethodNotAllowed {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
                }
                response
            }
        };
    }
    request.extensions_mut().insert(about);
    match routes.http.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Counts the handshake of a client behind a proxy; others have been counted when they were accepted.
async fn greet(gateway: &Gateway, peer: IpAddr, client: IpAddr) -> Result<(), Error> {
    if peer == client {
        return Ok(());
    }
    let decision = gateway.limiter.check(Scope::Handshakes, Key::Address(client), 1).await;
    if decision.allowed { Ok(()) } else { Err(Error::new(Code::RateLimited).after_ms(decision.retry_after_ms)) }
}

/// A name that no other request of this process has, and no other process soon.
fn request_id() -> Arc<str> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let process = PROCESS.get_or_init(rand::random);
    format!("{process:08x}-{:x}", NEXT.fetch_add(1, Ordering::Relaxed)).into()
}
