//! The one task of a client: opens connections, moves bytes, keeps time.
//!
//! A wake-up reads what has arrived into a buffer that all clients of a thread share, lets the session answer, and
//! writes everything that came of it at once: one read and one write per wake-up, whatever the number of frames.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Sleep, sleep_until, timeout},
};

use super::{
    Options, Speech, Target, bridge,
    session::{Down, Handler, Session},
};
use crate::websocket::{self, Decoder, Item, Role};

/// What one read takes at most; large enough for a burst of deliveries.
const READ_BYTES: usize = 64 << 10;
/// Reads per wake-up, so that one busy connection does not starve its neighbours.
const READS_PER_WAKE: usize = 4;
/// Close codes from here on say: do not come back.
const CLOSE_FOR_GOOD: u16 = 4500;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Something an application wants done inside its client's task.
type Call<H> = Box<dyn FnOnce(&mut H, &mut Session) + Send>;

struct Inbox<H> {
    calls: Vec<Call<H>>,
    stopping: bool,
    waker: Option<Waker>,
}

/// Holds a running client. Dropping it leaves the client running; [`Handle::stop`] ends it.
pub struct Handle<H> {
    inbox: Arc<Mutex<Inbox<H>>>,
    task: JoinHandle<()>,
}

impl<H: Handler> Handle<H> {
    /// Runs `call` inside the client's task, soon.
    pub fn call(&self, call: impl FnOnce(&mut H, &mut Session) + Send + 'static) {
        let mut inbox = self.inbox.lock();
        inbox.calls.push(Box::new(call));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }

    /// Ends the client: requests without an answer fail as [`super::Failure::Stopped`].
    pub fn stop(&self) {
        let mut inbox = self.inbox.lock();
        inbox.stopping = true;
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }

    /// Waits until the client's task is over.
    pub async fn ended(&mut self) {
        if !self.task.is_finished() {
            // A panic in the task has been printed where it happened.
            let _ = (&mut self.task).await;
        }
    }

    /// Whether the client's task is over.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// Starts a client. `source` is the address to bind to: more than 28,000 connections to one port need several.
pub fn start<H: Handler>(
    target: Arc<Target>,
    options: Arc<Options>,
    user: &str,
    token: &str,
    source: Option<IpAddr>,
    handler: H,
) -> Handle<H> {
    start_with(target, options, user, token, source, |_| handler)
}

/// Starts a client whose handler wants to see the session first, to restore positions.
pub fn start_with<H: Handler>(
    target: Arc<Target>,
    options: Arc<Options>,
    user: &str,
    token: &str,
    source: Option<IpAddr>,
    handler: impl FnOnce(&mut Session) -> H,
) -> Handle<H> {
    let inbox = Arc::new(Mutex::new(Inbox { calls: Vec::new(), stopping: false, waker: None }));
    let mut session = Session::new(Arc::clone(&options), user, token);
    let handler = handler(&mut session);
    let driver = Driver { session, handler, target, options, source, token: token.into(), inbox: Arc::clone(&inbox) };
    Handle { inbox, task: tokio::spawn(driver.run()) }
}

struct Driver<H> {
    session: Session,
    handler: H,
    target: Arc<Target>,
    options: Arc<Options>,
    source: Option<IpAddr>,
    token: Box<str>,
    inbox: Arc<Mutex<Inbox<H>>>,
}

/// A WebSocket after its handshake.
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    /// With what came behind the handshake.
    pub(super) decoder: Decoder,
}

struct Link {
    stream: Wire,
    decoder: Decoder,
}

/// Where the frames go.
enum Wire {
    Tcp(TcpStream),
    /// To a task that speaks another transport.
    Pipe(DuplexStream),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Pipe(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Pipe(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl<H: Handler> Driver<H> {
    async fn run(mut self) {
        let mut failures = 0u32;
        loop {
            let connects = self.session.counters().connects;
            let down = match self.connect().await {
                Ok((link, gate)) => self.serve(link, gate).await,
                Err(error) => Down::Lost(error.to_string()),
            };
            self.session.gone();
            let last = match &down {
                Down::Stopped => true,
                Down::Closed(code, _) => *code >= CLOSE_FOR_GOOD,
                Down::Refused(refusal) => !refusal.retryable,
                Down::Lost(_) | Down::Broken => false,
            } || !self.options.reconnect;
            self.handler.down(&mut self.session, &down, last);
            if last {
                return self.session.abandon(&mut self.handler);
            }
            failures = if self.session.counters().connects > connects { 0 } else { failures + 1 };
            let pause = self.pause(failures, &down);
            if !self.rest(pause).await {
                self.handler.down(&mut self.session, &Down::Stopped, true);
                return self.session.abandon(&mut self.handler);
            }
        }
    }

    /// How long to wait before the next attempt: what the server asked for, else a jittered exponential backoff.
    fn pause(&mut self, failures: u32, down: &Down) -> Duration {
        if let Some(back_at) = self.session.back_at.take() {
            return back_at.saturating_duration_since(Instant::now());
        }
        let ceiling = self.options.backoff_min.saturating_mul(1 << failures.min(16)).min(self.options.backoff_max);
        let asked = match down {
            Down::Refused(refusal) => Duration::from_millis(refusal.retry_after_ms.unwrap_or(0)),
            _ => Duration::ZERO,
        };
        asked + ceiling.mul_f64(rand::random_range(0.1..1.0))
    }

    /// Waits between connections, ticking so that requests are given up in time; `false` when stopped meanwhile.
    async fn rest(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let now = Instant::now();
            if now >= until {
                return true;
            }
            self.session.tick(now, &mut self.handler);
            let mut sleep = pin!(sleep_until(until.min(self.session.next_tick(now)).into()));
            let stopped = poll_fn(|cx| {
                if self.take_calls(cx) {
                    return Poll::Ready(true);
                }
                sleep.as_mut().poll(cx).map(|()| false)
            });
            if stopped.await {
                return false;
            }
        }
    }

    async fn connect(&mut self) -> io::Result<(Link, Option<tokio::sync::OwnedSemaphorePermit>)> {
        let gate = match &self.options.gate {
            Some(gate) => Arc::clone(gate).acquire_owned().await.ok(),
            None => None,
        };
        let link =
            timeout(self.options.answer_timeout, open(&self.target, self.options.speech, self.source, &self.token))
                .await;
        Ok((link.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??, gate))
    }

    /// Serves one connection until it ends.
    async fn serve(&mut self, mut link: Link, mut gate: Option<tokio::sync::OwnedSemaphorePermit>) -> Down {
        self.session.up();
        let mut timer = Box::pin(sleep_until(self.session.next_tick(Instant::now()).into()));
        // Bytes behind the handshake may already hold the hello.
        if let Err(down) = self.digest(&mut link.decoder, &mut []) {
            return down;
        }
        let down = poll_fn(|cx| {
            let polled = self.poll(&mut link, &mut timer, cx);
            if gate.is_some() && self.session.is_live() {
                gate = None;
            }
            polled
        })
        .await;
        if down == Down::Stopped {
            self.session.say_goodbye();
            let goodbye = std::mem::take(&mut self.session.out);
            let _ = timeout(Duration::from_secs(1), link.stream.write_all(&goodbye)).await;
        }
        down
    }

    fn poll(&mut self, link: &mut Link, timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<Down> {
        if self.take_calls(cx) {
            return Poll::Ready(Down::Stopped);
        }
        let now = Instant::now();
        let is_deaf = self.session.is_deaf(now);
        for round in 0.. {
            if is_deaf {
                break;
            }
            match self.poll_read(link, cx) {
                Poll::Ready(Ok(())) => self.session.was_read(now),
                Poll::Ready(Err(down)) => return Poll::Ready(down),
                Poll::Pending => break,
            }
            if round == READS_PER_WAKE {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if timer.as_mut().poll(cx).is_ready() {
            self.session.tick(now, &mut self.handler);
            timer.as_mut().reset(self.session.next_tick(now).into());
            let _ = timer.as_mut().poll(cx);
        } else {
            let wanted = self.session.next_tick(now);
            // Resetting takes a lock; only a clearly earlier wish is worth it.
            if wanted + Duration::from_millis(1) < timer.deadline().into_std() {
                timer.as_mut().reset(wanted.into());
                let _ = timer.as_mut().poll(cx);
            }
        }
        if let Some(down) = self.session.doom.take() {
            return Poll::Ready(down);
        }
        self.poll_write(link, now, cx)
    }

    fn poll_read(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<(), Down>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            if let Err(error) = ready!(Pin::new(&mut link.stream).poll_read(cx, &mut read)) {
                return Poll::Ready(Err(Down::Lost(error.to_string())));
            }
            if read.filled().is_empty() {
                return Poll::Ready(Err(Down::Lost("the server hung up".into())));
            }
            Poll::Ready(self.digest(&mut link.decoder, read.filled_mut()))
        })
    }

    fn digest(&mut self, decoder: &mut Decoder, bytes: &mut [u8]) -> Result<(), Down> {
        let (session, handler) = (&mut self.session, &mut self.handler);
        let mut closed = None;
        let fed = decoder.feed(bytes, &mut |item| match item {
            Item::Data(message) => session.message(message, handler),
            Item::Ping(payload) => session.pong(payload),
            Item::Pong => {}
            Item::Close(code, reason) => {
                closed = Some(Down::Closed(code, String::from_utf8_lossy(reason).into_owned()))
            }
        });
        match (fed, closed) {
            (Err(broken), _) => Err(Down::Lost(broken.to_string())),
            (Ok(()), Some(down)) => Err(session.doom.take().unwrap_or(down)),
            (Ok(()), None) => Ok(()),
        }
    }

    fn poll_write(&mut self, link: &mut Link, now: Instant, cx: &mut Context<'_>) -> Poll<Down> {
        while !self.session.out.is_empty() {
            match ready!(Pin::new(&mut link.stream).poll_write(cx, &self.session.out)) {
                Ok(0) => return Poll::Ready(Down::Lost("the server takes nothing".into())),
                Ok(written) if written == self.session.out.len() => self.session.out.clear(),
                Ok(written) => _ = self.session.out.drain(..written),
                Err(error) => return Poll::Ready(Down::Lost(error.to_string())),
            }
            self.session.was_written(now);
        }
        Poll::Pending
    }

    /// Does what the application asked for; `true` when that is to stop.
    fn take_calls(&mut self, cx: &mut Context<'_>) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.stopping {
            return true;
        }
        match &mut inbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => inbox.waker = Some(cx.waker().clone()),
        }
        if inbox.calls.is_empty() {
            return false;
        }
        let calls = std::mem::take(&mut inbox.calls);
        drop(inbox);
        calls.into_iter().for_each(|call| call(&mut self.handler, &mut self.session));
        false
    }
}

/// Opens a connection for frames.
async fn open(target: &Target, speech: Speech, source: Option<IpAddr>, token: &str) -> io::Result<Link> {
    let pipe = match speech {
        Speech::Json | Speech::Protobuf => {
            let Socket { stream, decoder } = shake_hands(target, speech.protocol(), source).await?;
            return Ok(Link { stream: Wire::Tcp(stream), decoder });
        }
        Speech::Grpc => bridge::grpc(target, source).await?,
        Speech::Http => bridge::http(target, source, token).await?,
    };
    Ok(Link { stream: Wire::Pipe(pipe), decoder: Decoder::new(Role::Client) })
}

/// Opens a TCP connection.
pub(super) async fn dial(target: &Target, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if target.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        // One source port may serve many destinations.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a TCP connection and does the WebSocket handshake.
pub(super) async fn shake_hands(target: &Target, protocol: &str, source: Option<IpAddr>) -> io::Result<Socket> {
    let mut stream = dial(target, source).await?;
    // Any 24 base64 characters of 16 bytes: the server only hashes them.
    let key = "Q2hhcHBlJ3MgbG9hZHRlc3Q=";
    let request = websocket::handshake_request(&target.host, &target.path, protocol, key);
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(512);
    let end = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = websocket::head_end(&head) {
            break end;
        }
        if head.len() > 16 << 10 {
            return Err(io::Error::other("the server's answer to the handshake has no end"));
        }
    };
    websocket::handshake_accepted(&head[..end], key)
        .map_err(|status| io::Error::other(format!("the server answered the handshake with status {status}")))?;
    Ok(Socket { stream, decoder: Decoder::with(Role::Client, head.split_off(end)) })
}
