//! Handles of the gateway's metrics, looked up once: a look-up by name has no place where frames pass.

use chappe_cluster::process::metrics::{
    DELIVERY_LATENCY_SECONDS, GATEWAY_ANSWERS_STALLED_TOTAL, GATEWAY_CONNECTIONS, GATEWAY_CONNECTIONS_CLOSED_TOTAL,
    GATEWAY_CONNECTIONS_LIMIT, GATEWAY_CONNECTIONS_OPENED_TOTAL, GATEWAY_FRAME_BYTES_TOTAL, GATEWAY_FRAMES_TOTAL,
    GATEWAY_PANICS_TOTAL, GATEWAY_RESUMES_TOTAL, GATEWAY_RESYNCS_TOTAL, GATEWAY_ROUTES_TOTAL, PRESENCE_CONNECTIONS,
};
use chappe_schema::error::{Code, Error};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// The handles.
pub(crate) struct Meters {
    /// WebSocket connections.
    pub(crate) websocket: Transport,
    /// HTTP connections, those that are about to become WebSockets included.
    pub(crate) http: Transport,
    /// Most connections.
    pub(crate) connections_limit: Gauge,
    /// Authenticated connections where somebody is at hand.
    pub(crate) online: Gauge,
    /// And those where nobody is.
    pub(crate) away: Gauge,
    /// What clients sent.
    pub(crate) frames_in: Flow,
    /// What clients were sent.
    pub(crate) frames_out: Flow,
    /// Clients that came back.
    pub(crate) resumes: Resumes,
    /// Commands answered.
    pub(crate) routed: Counter,
    /// Commands that nobody answered in time.
    pub(crate) timed_out: Counter,
    /// Answers that their clients did not take.
    pub(crate) answers_stalled_http1: Counter,
    /// The same, over HTTP/2.
    pub(crate) answers_stalled_http2: Counter,
    /// From an event's acceptance to its recipients' outboxes.
    pub(crate) delivery_small: Histogram,
    /// The same, of large conversations.
    pub(crate) delivery_large: Histogram,
    panics: [Counter; Task::ALL.len()],
}

/// Connections of one transport.
pub(crate) struct Transport {
    /// Now.
    pub(crate) open: Gauge,
    /// Ever.
    pub(crate) opened: Counter,
    closed: [Counter; Reason::ALL.len()],
}

/// Frames and their bytes.
pub(crate) struct Flow {
    frames: Counter,
    bytes: Counter,
}

/// What clients that came back were given; of several conversations the worst counts.
pub(crate) struct Resumes {
    /// Nothing was missing.
    pub(crate) resumed: Counter,
    /// Something was missing and follows.
    pub(crate) gap_filled: Counter,
    /// Too much was missing.
    pub(crate) resync: Counter,
    /// A position counted for nothing.
    pub(crate) rejected: Counter,
}

/// Who or what ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client, politely or not.
    Client,
    /// Nothing was heard.
    Idle,
    /// What was sent was not read.
    SlowConsumer,
    /// The server is leaving.
    Drain,
    /// No token, or none that holds any longer.
    Auth,
    /// The client broke a rule.
    Protocol,
    /// The socket, or the server.
    Error,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let flow = |direction: &'static str| Flow {
            frames: counter!(GATEWAY_FRAMES_TOTAL, "direction" => direction),
            bytes: counter!(GATEWAY_FRAME_BYTES_TOTAL, "direction" => direction),
        };
        let resumes = |result: &'static str| counter!(GATEWAY_RESUMES_TOTAL, "result" => result);
        Self {
            websocket: Transport::new("websocket"),
            http: Transport::new("http"),
            connections_limit: gauge!(GATEWAY_CONNECTIONS_LIMIT),
            online: gauge!(PRESENCE_CONNECTIONS, "status" => "online"),
            away: gauge!(PRESENCE_CONNECTIONS, "status" => "away"),
            frames_in: flow("in"),
            frames_out: flow("out"),
            resumes: Resumes {
                resumed: resumes("resumed"),
                gap_filled: resumes("gap_filled"),
                resync: resumes("resync"),
                rejected: resumes("rejected"),
            },
            routed: counter!(GATEWAY_ROUTES_TOTAL, "result" => "ok"),
            timed_out: counter!(GATEWAY_ROUTES_TOTAL, "result" => "timeout"),
            answers_stalled_http1: counter!(GATEWAY_ANSWERS_STALLED_TOTAL, "protocol" => "http1"),
            answers_stalled_http2: counter!(GATEWAY_ANSWERS_STALLED_TOTAL, "protocol" => "http2"),
            // The link does not say what kind a conversation is; how it travelled is what an operator looks for.
            delivery_small: histogram!(DELIVERY_LATENCY_SECONDS, "kind" => "small"),
            delivery_large: histogram!(DELIVERY_LATENCY_SECONDS, "kind" => "large"),
            panics: Task::ALL.map(|task| counter!(GATEWAY_PANICS_TOTAL, "task" => task.name())),
        }
    }

    /// Panics of a kind of task.
    pub(crate) const fn panics(&self, task: Task) -> &Counter {
        &self.panics[task as usize]
    }
}

impl Transport {
    fn new(transport: &'static str) -> Self {
        let closed = |reason: Reason| counter!(GATEWAY_CONNECTIONS_CLOSED_TOTAL, "transport" => transport, "reason" => reason.name());
        Self {
            open: gauge!(GATEWAY_CONNECTIONS, "transport" => transport),
            opened: counter!(GATEWAY_CONNECTIONS_OPENED_TOTAL, "transport" => transport),
            closed: Reason::ALL.map(closed),
        }
    }

    /// Counts a new connection.
    pub(crate) fn open(&self) {
        self.open.increment(1.0);
        self.opened.increment(1);
    }

    /// Counts the end of one.
    pub(crate) fn close(&self, reason: Reason) {
        self.open.decrement(1.0);
        self.closed[reason as usize].increment(1);
    }
}

impl Flow {
    /// Counts so many frames of so many bytes together.
    pub(crate) fn count(&self, frames: usize, bytes: usize) {
        self.frames.increment(frames as u64);
        self.bytes.increment(bytes as u64);
    }
}

impl Reason {
    const ALL: [Self; 7] =
        [Self::Client, Self::Idle, Self::SlowConsumer, Self::Drain, Self::Auth, Self::Protocol, Self::Error];

    /// Why a connection ends that its user's owner does not let in.
    pub(crate) const fn of(error: &Error) -> Self {
        match error.code {
            Code::AuthBanned | Code::AuthLoggedOut => Self::Auth,
            _ => Self::Error,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Idle => "idle",
            Self::SlowConsumer => "slow_consumer",
            Self::Drain => "drain",
            Self::Auth => "auth",
            Self::Protocol => "protocol",
            Self::Error => "error",
        }
    }
}

/// Why a live connection is told to fetch what it was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The outbox was full: the client reads too slowly.
    Overflow,
    /// The delivery queue was full: the gateway is too slow.
    Queue,
    /// A large conversation's events did not follow on what the connection has had.
    Gap,
    /// The conversation became large while it was open.
    Grew,
    /// The catch-up of a resume failed, or could not keep up.
    CatchUp,
    /// A delivery task broke off.
    Panic,
    /// The user has another owner.
    Moved,
}

impl Cause {
    /// Counts one conversation of one connection. Rare, so that no handle is kept.
    pub(crate) fn count(self) {
        counter!(GATEWAY_RESYNCS_TOTAL, "cause" => self.name()).increment(1);
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Queue => "queue",
            Self::Gap => "gap",
            Self::Grew => "grew",
            Self::CatchUp => "catch_up",
            Self::Panic => "panic",
            Self::Moved => "moved",
        }
    }
}

/// Tasks of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// One WebSocket.
    WebSocket,
    /// One HTTP connection.
    Http,
    /// A lane of the delivery to large conversations.
    Delivery,
    /// The sweep.
    Sweep,
    /// Lanes that wait for an owner.
    Lanes,
    /// The accept loop.
    Accept,
    /// What keeps the issuer's keys fresh.
    Keys,
}

impl Task {
    const ALL: [Self; 7] =
        [Self::WebSocket, Self::Http, Self::Delivery, Self::Sweep, Self::Lanes, Self::Accept, Self::Keys];

    /// As in metrics and log lines.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Http => "http",
            Self::Delivery => "delivery",
            Self::Sweep => "sweep",
            Self::Lanes => "lanes",
            Self::Accept => "accept",
            Self::Keys => "keys",
        }
    }
}
