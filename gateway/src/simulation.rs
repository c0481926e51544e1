//! A gateway that is driven by hand: production code from the bytes of a WebSocket to the messages for nodes and back,
//! without tasks, sockets, or a clock of its own. For simulators, which decide what arrives when.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use chappe_cluster::link::{GatewayPort, Links};
use chappe_schema::{
    command::Command,
    error::Error,
    id::{CommandId, GatewayId, Partition, SessionId},
    reply::Reply,
    wire::{Actor, Owner, ToGateway},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::{
    Gateway,
    auth::Auth,
    clock::Clock,
    config::Config,
    limiter::{Decision, Key, Limiter, Scope, Swept, Verdict},
    route::Pending,
    sweep,
    websocket::{encode::Format, socket::Socket},
};

/// A gateway, turn by turn.
pub struct Stepped {
    gateway: Arc<Gateway>,
    port: Arc<dyn GatewayPort>,
    delivery: Vec<Task>,
    lines: BTreeMap<u64, Line>,
    asked: BTreeMap<u64, oneshot::Receiver<Result<Reply, Error>>>,
    next: u64,
}

/// What would be a task.
struct Task {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    woken: Arc<Woken>,
}

/// A client's connection.
struct Line {
    task: Task,
    pipe: Pipe,
}

/// Whether something waits for its turn.
struct Woken(AtomicBool);

/// Both directions of a connection.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    from_client: Vec<u8>,
    to_client: Vec<u8>,
    /// The client is gone.
    cut: bool,
    /// Who waits for room in `to_client`.
    writer: Option<Waker>,
}

/// What lies between a gateway and a client that does not read: two or three events.
const PIPE_BYTES: usize = 1_024;

/// Everybody may do everything.
struct Unlimited;

/// A turn of a task that goes on and on is broken off here: then something is wrong.
const TURNS_MAX: usize = 10_000;

// === impl Stepped ===

impl Stepped {
    /// A gateway that has just started. `now` is its clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn new(id: GatewayId, auth: Auth, links: Arc<dyn Links>, now: Arc<AtomicU64>) -> Self {
        let mut port = None;
        let connect = |_, end| {
            port = Some(end);
            links
        };
        let config = Config { connections_max: 1_000, ..Config::default() };
        let gateway = Gateway::join_by(Clock::given(now), config, auth, None, Arc::new(Unlimited), id, connect);
        // `join_by` calls it, once.
        let port = port.unwrap_or_else(|| unreachable!("a gateway connects"));
        let delivery = gateway.delivery_lanes().into_iter().map(Task::new).collect();
        Self { gateway, port, delivery, lines: BTreeMap::new(), asked: BTreeMap::new(), next: 0 }
    }

    /// A batch of a node's shard, in this session's name.
    pub fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        self.port.receive(from, batch);
    }

    /// These partitions have other owners than before.
    pub fn assigned(&self, owners: &[(Partition, Owner)]) {
        self.port.assigned(owners);
    }

    /// The way to a node is broken.
    pub fn lost(&self, session: SessionId) {
        self.port.lost(session);
    }

    /// Asks something as an HTTP request would; the answer comes under this number, from [`Self::answers`].
    pub fn ask(&mut self, actor: Actor, id: CommandId, command: Command) -> u64 {
        let (answer, answered) = oneshot::channel();
        self.next += 1;
        self.asked.insert(self.next, answered);
        self.gateway.ask(Pending::Waiter(command.op(), answer), actor, Some(id), command);
        self.next
    }

    /// What has been answered since.
    pub fn answers(&mut self) -> Vec<(u64, Result<Reply, Error>)> {
        let mut answers = Vec::new();
        self.asked.retain(|number, answered| match answered.try_recv() {
            Ok(answer) => {
                answers.push((*number, answer));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        answers
    }

    /// A client's WebSocket whose handshake is done.
    pub fn open(&mut self) -> Option<u64> {
        let connection = self.gateway.connections.insert(self.gateway.clock.seconds())?;
        let pipe = Pipe::default();
        let socket = Socket::new(pipe.clone(), &[], Arc::clone(&self.gateway), connection, Format::Json);
        self.next += 1;
        self.lines.insert(self.next, Line { task: Task::new(Box::pin(socket)), pipe });
        Some(self.next)
    }

    /// Bytes from a client.
    pub fn write(&self, line: u64, bytes: &[u8]) {
        if let Some(line) = self.lines.get(&line) {
            line.pipe.ends().from_client.extend(bytes);
            line.task.woken.wake_by_ref();
        }
    }

    /// Bytes for a client.
    #[must_use]
    pub fn read(&self, line: u64) -> Vec<u8> {
        let Some(line) = self.lines.get(&line) else { return Vec::new() };
        let mut ends = line.pipe.ends();
        if let Some(writer) = ends.writer.take() {
            writer.wake();
        }
        std::mem::take(&mut ends.to_client)
    }

    /// Whether a connection is still there.
    #[must_use]
    pub fn has(&self, line: u64) -> bool {
        self.lines.contains_key(&line)
    }

    /// A client's connection breaks; what it had not read is lost.
    pub fn cut(&self, line: u64) {
        if let Some(line) = self.lines.get(&line) {
            line.pipe.ends().cut = true;
            line.task.woken.wake_by_ref();
        }
    }

    /// A second has passed.
    pub fn second(&self) {
        sweep::once(&self.gateway);
    }

    /// Lanes that wait for an owner look for one.
    pub fn resume_lanes(&self) {
        let at_once = self.gateway.route.resume(self.gateway.clock.now_ms(), &*self.gateway.link);
        self.gateway.receive_at_once(at_once);
    }

    /// Lets everything that waits take its turn, until nothing does.
    pub fn run(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.tasks().all(|task| !task.is_woken()) {
                return;
            }
            for lane in &mut self.delivery {
                lane.turn();
            }
            self.lines.retain(|_, line| !line.task.turn());
        }
    }

    fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.delivery.iter().chain(self.lines.values().map(|line| &line.task))
    }
}

// === impl Task, Woken ===

impl Task {
    fn new(future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { future, woken: Arc::new(Woken(AtomicBool::new(true))) }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// A turn, if it wants one; whether it was the last.
    fn turn(&mut self) -> bool {
        if !self.woken.0.swap(false, Ordering::Relaxed) {
            return false;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// === impl Pipe ===

impl Pipe {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock()
    }
}

impl AsyncRead for Pipe {
    /// No waker is kept: whoever writes wakes the task.
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.ends();
        if ends.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if ends.from_client.is_empty() {
            return Poll::Pending;
        }
        let count = ends.from_client.len().min(buffer.remaining());
        buffer.put_slice(&ends.from_client[..count]);
        ends.from_client.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut ends = self.ends();
        if ends.cut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = PIPE_BYTES.saturating_sub(ends.to_client.len());
        if room == 0 {
            ends.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = &bytes[..bytes.len().min(room)];
        ends.to_client.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// === impl Unlimited ===

impl Limiter for Unlimited {
    fn check(&self, _: Scope, _: Key<'_>, _: u32) -> Verdict {
        Verdict::Ready(Decision::UNLIMITED)
    }

    fn sweep(&self) -> Swept {
        Swept::default()
    }
}
