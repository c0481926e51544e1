//! One client's side of the protocol, without a socket: lines go in, frames come out.
//!
//! The session keeps what must survive a connection: requests that have no answer (their lines, so that a retry is the
//! same message), and the position in each conversation. The application sees a dense stream of events: a gap is filled
//! by reading history before later events are handed on.

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use uuid::Uuid;

use super::{
    Options,
    line::{self, Event, Line},
    pending::{Pending, Purpose, Ring, Sent},
    protobuf,
    receipts::{self, Progress, Said},
    speech::Speech,
    track::{Step, Tracks},
};
use crate::{
    history::{self, Connection, Fact, History, Mark, Read, Shown, User, What},
    websocket::{self, Opcode},
};

/// Positions that one `connect` may carry; the rest are filled by reading.
const POSITIONS_MAX: usize = 200;

/// What an application does with what its client hears. All calls come from the one task of the connection.
#[allow(unused_variables)]
pub trait Handler: Send + 'static {
    /// The client is connected, for the first time or again. Unanswered requests have been sent again.
    fn ready(&mut self, session: &mut Session) {}
    /// The next event of a conversation, without gaps and without repetitions.
    fn event(&mut self, session: &mut Session, event: &Event<'_>) {}
    /// A message was acknowledged, refused or given up.
    fn sent(&mut self, session: &mut Session, sent: &Sent, result: Result<Ack, &Failure>) {}
    /// A request with this tag was answered, refused or given up.
    fn answered(&mut self, session: &mut Session, tag: u64, result: Result<&[u8], &Failure>) {}
    /// A request was refused for now; the client repeats it by itself.
    fn delayed(&mut self, session: &mut Session, refusal: &Refusal) {}
    /// A read of history that the application asked for is over; the head it found.
    fn read(&mut self, session: &mut Session, tag: u64, result: Result<u64, &Failure>) {}
    /// Something has changed in the user's inbox since the cursor that the application keeps.
    fn behind(&mut self, session: &mut Session) {}
    /// About once a second, and when a pause is over.
    fn tick(&mut self, session: &mut Session, now: Instant) {}
    /// The connection is lost; the client comes back by itself unless `last`.
    fn down(&mut self, session: &mut Session, why: &Down, last: bool) {}
}

/// An acknowledged message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Its place in the conversation.
    pub seq: u64,
    /// Whether the server had it already.
    pub duplicate: bool,
}

/// The server's refusal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The dotted code.
    pub code: String,
    /// The HTTP status it goes with.
    #[serde(default)]
    pub status: u16,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// When.
    pub retry_after_ms: Option<u64>,
    /// One sentence.
    #[serde(default)]
    pub title: Box<str>,
    /// More of it.
    #[serde(default)]
    pub detail: String,
    /// The offending field.
    pub field: Option<String>,
    /// The seq at and below which there is nothing any longer; 0 if that is not what is wrong.
    #[serde(default)]
    pub floor: u64,
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server refused, for good.
    Refused(Refusal),
    /// There was no answer for so long that the client gave up; whether it happened is unknown.
    GivenUp,
    /// The client was stopped.
    Stopped,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    /// It could not be opened, or broke.
    Lost(String),
    /// The application broke it, to see what comes of it.
    Broken,
    /// The server closed it with this code and reason.
    Closed(u16, String),
    /// The server refused the token, or the client itself.
    Refused(Refusal),
    /// The application stopped it.
    Stopped,
}

/// What a client has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that became ready.
    pub connects: u64,
    /// Requests written again.
    pub retries: u64,
    /// Events that arrived, before any repair.
    pub events: u64,
    /// Bytes of their lines.
    pub event_bytes: u64,
    /// Answers to sends.
    pub acks: u64,
    /// Bytes of their lines.
    pub ack_bytes: u64,
    /// Gaps without a word of the server.
    pub gaps: u64,
    /// Events that had arrived before.
    pub repeats: u64,
    /// Resyncs, and resumes that were limited.
    pub resyncs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection, or no hello yet.
    Waiting,
    /// `connect` has been sent.
    Introduced,
    /// Requests may go out.
    Live,
}

#[derive(Debug)]
struct Reading {
    conversation: Uuid,
    recorded: history::Conversation,
    /// The track whose gap it fills, if it does.
    track: Option<usize>,
    read: Read,
    next: u64,
    tag: u64,
}

/// The `id` of the `connect` request; requests count from 1, and raw peers answer with 0.
const CONNECT_ID: u64 = u64::MAX >> 12;

/// One client's side of the protocol.
#[derive(Debug)]
pub struct Session {
    options: Arc<Options>,
    user: Arc<str>,
    token: Arc<str>,
    phase: Phase,
    generation: Arc<str>,
    /// Up to where the application knows the user's inbox, if it keeps one.
    inbox: Option<Box<str>>,
    heartbeat: Duration,
    requests: Ring,
    tracks: Tracks,
    readings: Vec<Option<Reading>>,
    recorder: Option<Recorder>,
    /// How far we said that we have got.
    said: Said,
    counters: Counters,
    mask: u64,
    /// Frames to be written.
    pub(super) out: Vec<u8>,
    /// The server asked us to leave; when to come back.
    pub(super) back_at: Option<Instant>,
    deaf_until: Option<Instant>,
    /// The connection must end.
    pub(super) doom: Option<Down>,
    last_read: Instant,
    last_write: Instant,
    wake_at: Option<Instant>,
}

#[derive(Debug)]
struct Recorder {
    history: Arc<History>,
    user: User,
    connection: Connection,
}

impl Session {
    pub(super) fn new(options: Arc<Options>, user: &str, token: &str) -> Self {
        let recorder = options.history.as_ref().map(|history| {
            let user = history.user(user);
            Recorder { history: Arc::clone(history), user, connection: Connection(u32::MAX) }
        });
        let now = Instant::now();
        Self {
            user: user.into(),
            token: token.into(),
            phase: Phase::Waiting,
            generation: "".into(),
            inbox: None,
            heartbeat: Duration::from_secs(25),
            requests: Ring::default(),
            tracks: Tracks::default(),
            readings: Vec::new(),
            recorder,
            said: Said::default(),
            counters: Counters::default(),
            mask: rand::random::<u64>() | 1,
            out: Vec::new(),
            back_at: None,
            deaf_until: None,
            doom: None,
            last_read: now,
            last_write: now,
            wake_at: None,
            options,
        }
    }

    // === what an application may do ===

    /// Whose client this is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether requests go out at once.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// What has been counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The last seq handed on, in a conversation the client has heard of.
    pub fn position(&mut self, conversation: Uuid) -> Option<u64> {
        let index = self.tracks.find(&conversation.to_string())?;
        let track = self.tracks.get(index);
        track.known.then_some(track.cursor)
    }

    /// Sends a message: `body` is a JSON object. Returns the id that the message keeps over all retries.
    pub fn send(&mut self, conversation: Uuid, body: &[u8], tag: u64) -> Uuid {
        let id = Uuid::now_v7();
        if let Some(recorder) = &self.recorder {
            let conversation = recorder.history.conversation(conversation);
            recorder.note(What::SendStart { user: recorder.user, conversation, id, hash: history::hash(body) });
        }
        let mut line = self.requests.line();
        // Writing to a vector cannot fail.
        let _ = write!(
            line,
            r#"{{"id":{},"message.send":{{"conversation":"{conversation}","client_msg_id":"{id}","body":"#,
            self.requests.next_id()
        );
        line.extend_from_slice(body);
        line.extend_from_slice(b"}}");
        let began = Instant::now();
        self.request_line(line, Purpose::Send(Sent { conversation, id, tag, began }), began);
        id
    }

    /// Any operation; `args` is a JSON object. The answer comes with the tag.
    pub fn request(&mut self, op: &str, args: &str, tag: u64) {
        self.ask(op, args, Purpose::Request { tag });
    }

    /// Edits a message (`body` is a JSON object), or deletes it (`None`). The answer comes with the tag.
    pub fn change(&mut self, conversation: Uuid, target: u64, body: Option<&str>, tag: u64) {
        let id = Uuid::now_v7();
        if let Some(recorder) = &self.recorder {
            let conversation = recorder.history.conversation(conversation);
            let hash = body.map(|body| history::hash(body.as_bytes()));
            recorder.note(What::ChangeStart { user: recorder.user, conversation, target, id, hash });
        }
        let (op, body) =
            body.map_or(("message.delete", String::new()), |body| ("message.edit", format!(r#","body":{body}"#)));
        let args = format!(r#"{{"conversation":"{conversation}","seq":{target},"idempotency_key":"{id}"{body}}}"#);
        self.ask(op, &args, Purpose::Change { tag, id });
    }

    /// Reacts to a message, or takes that back. The answer comes with the tag.
    pub fn react(&mut self, conversation: Uuid, target: u64, key: &str, on: bool, tag: u64) {
        // Strings always serialise.
        let key = serde_json::to_string(key).unwrap_or_default();
        if let Some(recorder) = &self.recorder {
            let conversation = recorder.history.conversation(conversation);
            let key = history::hash(key.as_bytes()) as u32;
            recorder.note(What::ReactStart { user: recorder.user, conversation, target, key, on });
        }
        let id = Uuid::now_v7();
        let op = if on { "reaction.add" } else { "reaction.remove" };
        let args =
            format!(r#"{{"conversation":"{conversation}","seq":{target},"key":{key},"idempotency_key":"{id}"}}"#);
        self.ask(op, &args, Purpose::Request { tag });
    }

    /// Says how far the user has got in conversations. The answer comes with the tag; after a reconnect it is said again.
    pub fn progress(&mut self, progress: &[Progress], private: Option<bool>, tag: u64) {
        self.said.note(progress, private, Instant::now());
        self.say(progress, private, Some(tag));
    }

    fn say(&mut self, progress: &[Progress], private: Option<bool>, tag: Option<u64>) {
        // What is private is for nobody else, so that nobody may see it.
        let of_others = |one: &Progress| {
            let read = one.read.filter(|_| private != Some(true)).unwrap_or(0);
            (one.conversation, one.delivered.unwrap_or(0), read)
        };
        let said: Vec<_> = if self.recorder.is_some() { progress.iter().map(of_others).collect() } else { Vec::new() };
        if let Some(recorder) = &self.recorder {
            recorder.note_said(&said, false);
        }
        self.ask("receipt.put", &receipts::args(progress, private), Purpose::Progress { tag, said });
    }

    /// How far each member of a conversation has got, noted as it is shown; `last` when the system is quiet and everybody has
    /// been answered. The answer comes with the tag.
    pub fn receipts(&mut self, conversation: Uuid, last: bool, tag: u64) {
        let args = format!(r#"{{"conversation":"{conversation}","limit":500}}"#);
        self.ask("member.list", &args, Purpose::Receipts { tag, conversation, last });
    }

    /// A page of messages below a seq, or the newest, noted as it is shown; `last` when the system is quiet. The answer
    /// comes with the tag.
    pub fn messages(&mut self, conversation: Uuid, before: Option<u64>, last: bool, tag: u64) {
        let before = before.map(|seq| format!(r#","before":{seq}"#)).unwrap_or_default();
        let args = format!(r#"{{"conversation":"{conversation}","limit":{}{before}}}"#, self.options.page);
        self.ask("message.list", &args, Purpose::Messages { tag, conversation, last });
    }

    /// Opens a conversation: its live events come from now on, also after a reconnect.
    pub fn open(&mut self, conversation: Uuid) {
        let index = self.track(conversation);
        self.tracks.get(index).open = true;
        self.ask_open(index);
    }

    /// Closes a conversation.
    pub fn close(&mut self, conversation: Uuid) {
        let index = self.track(conversation);
        self.tracks.get(index).open = false;
        self.ask("conversation.close", &format!(r#"{{"conversation":"{conversation}"}}"#), Purpose::Request { tag: 0 });
    }

    /// Sets the position in a conversation, as a client does that kept it on its disk. Takes effect at the next connect.
    pub fn restore(&mut self, conversation: Uuid, generation: &str, seq: u64) {
        let index = self.track(conversation);
        let track = self.tracks.get(index);
        (track.known, track.cursor, track.generation) = (true, seq, generation.into());
    }

    /// Up to where the application knows the user's inbox: from now on it is told when there is more.
    pub fn know_inbox(&mut self, cursor: &str) {
        self.inbox = Some(cursor.into());
    }

    /// Reads all events above `after`, for the history alone; `last` when the system is quiet and the reading counts.
    pub fn read_all(&mut self, conversation: Uuid, after: u64, last: bool, tag: u64) {
        self.read(conversation, None, after, last, tag);
    }

    /// Asks for a [`Handler::tick`] at this time instead of in about a second.
    pub fn wake_at(&mut self, when: Instant) {
        self.wake_at = Some(self.wake_at.map_or(when, |before| before.min(when)));
    }

    /// Ends the connection, as a network would; the client comes back by itself, not before `away` has passed.
    pub fn break_connection(&mut self, away: Duration) {
        self.doom = Some(Down::Broken);
        self.back_at = (!away.is_zero()).then(|| Instant::now() + away);
    }

    /// Reads nothing until then, while the connection stays.
    pub fn be_deaf_until(&mut self, until: Instant) {
        self.deaf_until = Some(until);
    }

    /// Whether it reads nothing now.
    pub(super) fn is_deaf(&mut self, now: Instant) -> bool {
        let is_deaf = self.deaf_until.is_some_and(|until| now < until);
        if !is_deaf && self.deaf_until.take().is_some() {
            // Whatever was said meanwhile is about to be read.
            self.last_read = now;
        }
        is_deaf
    }

    // === requests ===

    fn ask(&mut self, op: &str, args: &str, purpose: Purpose) {
        let mut line = self.requests.line();
        let _ = write!(line, r#"{{"id":{},"{op}":{args}}}"#, self.requests.next_id());
        self.request_line(line, purpose, Instant::now());
    }

    fn request_line(&mut self, line: Vec<u8>, purpose: Purpose, began: Instant) {
        let live = self.phase == Phase::Live;
        if live {
            self.write(&line);
        }
        let wired = live.then_some(began);
        self.requests.push(Pending { line, purpose, began, wired, doubtful: false, attempts: 1, retry_at: None });
    }

    fn write(&mut self, line: &[u8]) {
        let key = self.mask_key();
        match self.options.speech {
            Speech::Json | Speech::Http => websocket::encode(&mut self.out, Opcode::Text, line, Some(key)),
            Speech::Protobuf | Speech::Grpc => match protobuf::said(line) {
                Some(frame) => websocket::encode(&mut self.out, Opcode::Binary, &frame, Some(key)),
                None => self.misunderstood("has no form in protobuf", line),
            },
        }
    }

    fn mask_key(&mut self) -> [u8; 4] {
        // xorshift: the mask guards against proxies that read payloads as requests, not against an enemy of the tester.
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 7;
        self.mask ^= self.mask << 17;
        ((self.mask >> 16) as u32).to_le_bytes()
    }

    fn ask_open(&mut self, index: usize) {
        let track = self.tracks.get(index);
        let (conversation, from) = (track.id, if track.known { track.cursor } else { 0 });
        self.ask(
            "conversation.open",
            &format!(r#"{{"conversation":"{conversation}","from":{from}}}"#),
            Purpose::Open { conversation },
        );
    }

    fn track(&mut self, conversation: Uuid) -> usize {
        match self.tracks.find(&conversation.to_string()) {
            Some(index) => index,
            None => {
                let recorded =
                    self.recorder.as_ref().map_or(history::Conversation(0), |r| r.history.conversation(conversation));
                self.tracks.add(conversation, Arc::clone(&self.generation), recorded)
            }
        }
    }

    // === the life of a connection ===

    /// A connection has been opened.
    pub(super) fn up(&mut self) {
        let now = Instant::now();
        (self.last_read, self.last_write) = (now, now);
        self.phase = Phase::Waiting;
        self.out.clear();
        self.back_at = None;
        self.deaf_until = None;
        self.doom = None;
        if let Some(recorder) = &mut self.recorder {
            recorder.connection = recorder.history.connect(recorder.user);
        }
    }

    /// The connection is gone.
    pub(super) fn gone(&mut self) {
        self.phase = Phase::Waiting;
        self.out = Vec::new();
        self.requests.unwire();
    }

    pub(super) fn was_read(&mut self, now: Instant) {
        self.last_read = now;
    }

    pub(super) fn was_written(&mut self, now: Instant) {
        self.last_write = now;
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        let key = self.mask_key();
        websocket::encode(&mut self.out, Opcode::Pong, payload, Some(key));
    }

    pub(super) fn say_goodbye(&mut self) {
        let key = self.mask_key();
        websocket::encode(&mut self.out, Opcode::Close, &1000u16.to_be_bytes(), Some(key));
    }

    /// When [`Session::tick`] wants to be called, at the latest.
    pub(super) fn next_tick(&self, now: Instant) -> Instant {
        let lazy = if self.requests.is_empty() { self.heartbeat / 3 } else { Duration::from_secs(1) };
        [self.wake_at, self.deaf_until].into_iter().flatten().fold(now + lazy, Instant::min)
    }

    /// Time has passed: retries, heartbeats, giving up.
    pub(super) fn tick<H: Handler>(&mut self, now: Instant, handler: &mut H) {
        self.wake_at = None;
        for id in self.requests.expired(now, self.options.give_up) {
            if let Some(pending) = self.requests.take(id) {
                self.fail(pending, &Failure::GivenUp, handler);
            }
        }
        if self.phase == Phase::Live {
            self.retry_due(now);
            if now.duration_since(self.last_write) >= self.heartbeat / 2 && self.out.is_empty() {
                self.write(br#"{"heartbeat":{}}"#);
            }
        }
        if self.is_deaf(now) {
            return handler.tick(self, now);
        }
        let silent = now.duration_since(self.last_read);
        if self.phase != Phase::Live && silent > self.options.answer_timeout {
            self.doom = Some(Down::Lost("the server did not answer the handshake".into()));
        } else if silent > self.heartbeat * 2 + Duration::from_secs(5) {
            self.doom = Some(Down::Lost("the server was silent".into()));
        }
        handler.tick(self, now);
    }

    fn retry_due(&mut self, now: Instant) {
        let (mut next, mut overdue, timeout) = (None::<Instant>, false, self.options.answer_timeout);
        let mut due = Vec::new();
        for (id, pending) in self.requests.iter_mut() {
            match (pending.retry_at, pending.wired) {
                (Some(at), _) if at <= now => due.push(id),
                (Some(at), _) => next = Some(next.map_or(at, |next| next.min(at))),
                (None, Some(at)) if now.duration_since(at) > timeout => overdue = true,
                _ => {}
            }
        }
        for id in due {
            self.rewire(id, now);
        }
        if overdue {
            self.doom = Some(Down::Lost("a request had no answer".into()));
        }
        if let Some(next) = next {
            self.wake_at(next);
        }
    }

    fn rewire(&mut self, id: u64, now: Instant) {
        let Some(pending) = self.requests.get(id) else { return };
        let again = pending.attempts > 1 || pending.doubtful || pending.retry_at.is_some();
        pending.retry_at = None;
        pending.wired = Some(now);
        let line = std::mem::take(&mut pending.line);
        self.write(&line);
        if let Some(pending) = self.requests.get(id) {
            pending.line = line;
        }
        self.counters.retries += u64::from(again);
    }

    /// Ends everything that waits: the client is being stopped.
    pub(super) fn abandon<H: Handler>(&mut self, handler: &mut H) {
        let ids: Vec<_> = self.requests.iter_mut().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(pending) = self.requests.take(id) {
                self.fail(pending, &Failure::Stopped, handler);
            }
        }
    }

    // === lines ===

    /// Takes one WebSocket message: one or more lines, or one frame of protobuf.
    pub(super) fn message<H: Handler>(&mut self, message: &[u8], handler: &mut H) {
        if self.options.speech.is_protobuf() {
            return match protobuf::heard(message) {
                Some(json) => self.line(&json, message.len(), handler),
                None => self.misunderstood("not understood", message),
            };
        }
        for json in message.split(|byte| *byte == b'\n').filter(|json| !json.is_empty()) {
            self.line(json, json.len(), handler);
        }
    }

    fn misunderstood(&mut self, why: &str, what: &[u8]) {
        self.doom = Some(Down::Lost(format!("{why}: {}", what[..what.len().min(200)].escape_ascii())));
    }

    /// Takes one line, which had so many bytes on its way.
    fn line<H: Handler>(&mut self, json: &[u8], bytes: usize, handler: &mut H) {
        let Some(line) = Line::parse(json) else { return self.misunderstood("not understood", json) };
        match line {
            Line::Event(event) => {
                self.counters.events += 1;
                self.counters.event_bytes += bytes as u64;
                self.arrived(&event, json, handler);
            }
            Line::Ok(CONNECT_ID, ok) => self.welcomed(ok, handler),
            Line::Ok(0, _) if self.phase == Phase::Introduced => self.welcomed(b"{}", handler),
            Line::Ok(id, ok) => {
                let id = if id == 0 { self.requests.oldest().unwrap_or(0) } else { id };
                if let Some(pending) = self.requests.take(id) {
                    self.answered(pending, ok, bytes, handler);
                }
            }
            Line::Error(Some(CONNECT_ID) | None, error) => {
                let refusal = Refusal::parse(error);
                self.doom = Some(Down::Refused(refusal));
            }
            Line::Error(Some(id), error) => self.refused(id, Refusal::parse(error), handler),
            Line::Hello(hello) => self.introduce(hello),
            Line::Heartbeat(Some(cursor)) => self.inbox_at(cursor, handler),
            Line::CaughtUp(_) | Line::Heartbeat(None) | Line::Unknown => {}
            Line::Resync(position) => self.resync(position.conversation, position.head),
            Line::GoingAway(after_ms) => self.back_at = Some(Instant::now() + Duration::from_millis(after_ms)),
        }
    }

    fn introduce(&mut self, hello: &[u8]) {
        if let Some(generation) = line::field(hello, "generation").and_then(line::text)
            && *self.generation != *generation
        {
            self.generation = generation.into();
        }
        if let Some(ms) = line::field(hello, "heartbeat_ms").and_then(line::number) {
            self.heartbeat = Duration::from_millis(ms.max(100));
        }
        let mut connect =
            format!(r#"{{"id":{CONNECT_ID},"connect":{{"token":"{}","device":"{}","#, self.token, self.options.device);
        if let Some(cursor) = &self.inbox {
            connect += &format!(r#""cursor":"{cursor}","#);
        }
        connect += r#""positions":{"#;
        for (index, track) in self.tracks.iter().filter(|track| track.known).take(POSITIONS_MAX).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            connect += &format!(r#"{comma}"{}":["{}",{}]"#, track.id, track.generation, track.cursor);
        }
        connect += "}}}";
        self.write(connect.as_bytes());
        self.phase = Phase::Introduced;
    }

    fn welcomed<H: Handler>(&mut self, ok: &[u8], handler: &mut H) {
        #[derive(Deserialize)]
        struct Welcome {
            #[serde(default)]
            conversations: BTreeMap<String, Verdict>,
            cursor: Option<String>,
        }
        #[derive(Deserialize, Default)]
        struct Verdict {
            #[serde(default)]
            recovered: bool,
            #[serde(default)]
            limited: bool,
            #[serde(default)]
            head: u64,
        }
        let welcome = serde_json::from_slice::<Welcome>(ok).ok();
        let (verdicts, cursor) = welcome.map(|welcome| (welcome.conversations, welcome.cursor)).unwrap_or_default();
        self.phase = Phase::Live;
        self.counters.connects += 1;
        let now = Instant::now();
        let waiting: Vec<_> = self.requests.iter_mut().map(|(id, _)| id).collect();
        for id in waiting {
            self.rewire(id, now);
        }
        if self.counters.connects > 1 {
            for (progress, private) in self.said.again(now) {
                self.say(&progress, private, None);
            }
        }
        for index in 0..self.tracks.len() {
            let track = self.tracks.get(index);
            if track.open {
                self.ask_open(index);
            }
            let track = self.tracks.get(index);
            if !track.known {
                continue;
            }
            let (cursor, recorded, id) = (track.cursor, track.recorded, track.id.to_string());
            match verdicts.get(&id) {
                Some(Verdict { recovered: true, .. }) => {
                    self.note(|connection| What::Resume { connection, conversation: recorded, from: cursor });
                }
                Some(Verdict { limited: true, head, .. }) => {
                    self.note(|connection| What::Resume { connection, conversation: recorded, from: cursor });
                    self.resync(&id, *head);
                }
                // Another history, or ours is ahead of it: nothing that we hold counts any more.
                Some(_) => self.tracks.get(index).known = false,
                // There was no room for its position.
                None if !verdicts.is_empty() => self.fill(index),
                None => {}
            }
        }
        handler.ready(self);
        if let Some(cursor) = cursor {
            self.inbox_at(&cursor, handler);
        }
    }

    /// The server knows the user's inbox up to this cursor.
    fn inbox_at<H: Handler>(&mut self, cursor: &str, handler: &mut H) {
        if self.inbox.as_deref().is_some_and(|known| known != cursor) {
            handler.behind(self);
        }
    }

    fn answered<H: Handler>(&mut self, pending: Pending, ok: &[u8], bytes: usize, handler: &mut H) {
        match pending.purpose {
            Purpose::Send(ref sent) => {
                let seq = line::field(ok, "seq").and_then(line::number).unwrap_or(0);
                let duplicate = line::field(ok, "duplicate") == Some(b"true");
                self.counters.acks += 1;
                self.counters.ack_bytes += bytes as u64;
                if let Some(recorder) = &self.recorder {
                    recorder.note(What::Ack { id: sent.id, seq });
                }
                handler.sent(self, sent, Ok(Ack { seq, duplicate }));
            }
            Purpose::Request { tag } => handler.answered(self, tag, Ok(ok)),
            Purpose::Progress { tag, ref said } => {
                if let Some(recorder) = &self.recorder {
                    // One by one some may have been refused: what they said then is not shown.
                    let refused = |id: &Uuid| {
                        let id = id.to_string();
                        line::elements(line::field(ok, "conversations").unwrap_or(b"[]")).any(|item| {
                            line::field(item, "id").and_then(line::text) == Some(&*id)
                                && line::field(item, "error").is_some()
                        })
                    };
                    let accepted: Vec<_> = said.iter().filter(|(id, ..)| !refused(id)).copied().collect();
                    recorder.note_said(&accepted, true);
                }
                if let Some(tag) = tag {
                    handler.answered(self, tag, Ok(ok));
                }
            }
            Purpose::Receipts { tag, conversation, last } => {
                // While things move, a word that was sent before the list may come after it.
                if let Some(recorder) = self.recorder.as_ref().filter(|_| last) {
                    recorder.note_receipts(conversation, line::field(ok, "members").unwrap_or(b"[]"), true);
                }
                handler.answered(self, tag, Ok(ok));
            }
            Purpose::Messages { tag, conversation, last } => {
                if let Some(recorder) = &self.recorder {
                    recorder.note_messages(conversation, ok, last);
                }
                handler.answered(self, tag, Ok(ok));
            }
            Purpose::Change { tag, id } => {
                // What was so already has made no event: the seq is the head's.
                if let (Some(recorder), Some(seq)) = (&self.recorder, line::field(ok, "seq").and_then(line::number))
                    && line::field(ok, "changed") == Some(b"true")
                {
                    recorder.note(What::ChangeAck { id, seq });
                }
                handler.answered(self, tag, Ok(ok));
            }
            Purpose::Open { conversation } => self.opened(conversation, ok),
            Purpose::Page { reading } => self.page(reading, ok, handler),
        }
        self.requests.recycle(pending.line);
    }

    fn opened(&mut self, conversation: Uuid, ok: &[u8]) {
        let Some(head) = line::field(ok, "head").and_then(line::number) else { return };
        let index = self.track(conversation);
        let track = self.tracks.get(index);
        if !track.known {
            (track.known, track.cursor) = (true, head);
        } else if track.cursor < head {
            // What lies between our position and the opening was never on its way to us.
            let recorded = track.recorded;
            self.note(|connection| What::Resync { connection, conversation: recorded, head });
            self.fill(index);
        }
    }

    fn refused<H: Handler>(&mut self, id: u64, refusal: Refusal, handler: &mut H) {
        let jitter = rand::random_range(0..50);
        let Some(pending) = self.requests.get(id) else { return };
        if refusal.retryable {
            pending.wired = None;
            // A retryable refusal may follow an attempt that happened.
            pending.doubtful = true;
            let backoff = 20u64 << pending.attempts.min(6);
            pending.attempts += 1;
            let at = Instant::now() + Duration::from_millis(refusal.retry_after_ms.unwrap_or(backoff) + jitter);
            pending.retry_at = Some(at);
            self.wake_at(at);
            return handler.delayed(self, &refusal);
        }
        if let Some(pending) = self.requests.take(id) {
            self.fail(pending, &Failure::Refused(refusal), handler);
        }
    }

    fn fail<H: Handler>(&mut self, pending: Pending, failure: &Failure, handler: &mut H) {
        match pending.purpose {
            Purpose::Send(ref sent) => {
                if let Some(recorder) = &self.recorder {
                    let id = sent.id;
                    let certain = matches!(failure, Failure::Refused(_)) || pending.wired.is_none();
                    recorder.note(if certain && !pending.doubtful { What::Fail { id } } else { What::Unknown { id } });
                }
                handler.sent(self, sent, Err(failure));
            }
            Purpose::Progress { tag: None, .. } => {}
            Purpose::Request { tag }
            | Purpose::Change { tag, .. }
            | Purpose::Messages { tag, .. }
            | Purpose::Progress { tag: Some(tag), .. }
            | Purpose::Receipts { tag, .. } => handler.answered(self, tag, Err(failure)),
            Purpose::Open { .. } => {}
            Purpose::Page { reading } => {
                let place = reading;
                let Some(mut reading) = self.readings.get_mut(place).and_then(Option::take) else { return };
                // What is removed is missed by nobody: the read goes on above.
                if let Failure::Refused(Refusal { floor, .. }) = &failure
                    && *floor >= reading.next
                {
                    if let Some(recorder) = &self.recorder {
                        recorder.note(What::Purged { read: reading.read, floor: *floor });
                    }
                    reading.next = floor + 1;
                    if let Some(track) = reading.track.map(|index| self.tracks.get(index)) {
                        track.cursor = track.cursor.max(*floor);
                    }
                    self.readings[place] = Some(reading);
                    return self.ask_page(place);
                }
                match reading.track {
                    // What cannot be read is not waited for: the next event begins anew.
                    Some(index) => {
                        let track = self.tracks.get(index);
                        (track.filling, track.known) = (false, false);
                        track.held.clear();
                    }
                    None => handler.read(self, reading.tag, Err(failure)),
                }
            }
        }
    }

    // === events ===

    fn arrived<H: Handler>(&mut self, event: &Event<'_>, raw: &[u8], handler: &mut H) {
        if event.seq == 0 {
            self.record_soft(event);
            return handler.event(self, event);
        }
        let index = match self.tracks.find(event.conversation) {
            Some(index) => index,
            None => {
                let Ok(id) = Uuid::try_parse(event.conversation) else { return };
                self.track(id)
            }
        };
        if self.recorder.is_some() {
            self.record_arrival(event, index);
        }
        match self.tracks.get(index).step(event.seq, raw) {
            Step::Next => handler.event(self, event),
            Step::Skip => self.counters.repeats += 1,
            Step::Held => {}
            Step::Fill => {
                self.counters.gaps += 1;
                self.fill(index);
            }
        }
    }

    /// Who is said to be there, or to be writing.
    fn record_soft(&self, event: &Event<'_>) {
        let Some(recorder) = &self.recorder else { return };
        let field = |name| line::field(event.field("data")?, name).and_then(line::text);
        let (who, conversation, on) = match event.name {
            "presence.changed" => (field("user"), None, field("status") != Some("offline")),
            "typing.started" | "typing.stopped" => {
                let Ok(conversation) = Uuid::try_parse(event.conversation) else { return };
                let conversation = recorder.history.conversation(conversation);
                (event.sender(), Some(conversation), event.name == "typing.started")
            }
            "receipt.updated" => {
                let receipts = event.field("data").and_then(|data| line::field(data, "receipts"));
                if let (Ok(conversation), Some(receipts)) = (Uuid::try_parse(event.conversation), receipts) {
                    recorder.note_receipts(conversation, receipts, false);
                }
                return;
            }
            _ => return,
        };
        if let Some(who) = who {
            let (observer, user) = (recorder.user, recorder.history.user(who));
            recorder.note(What::PresenceSeen { observer, user, conversation, on });
        }
    }

    fn record_arrival(&mut self, event: &Event<'_>, index: usize) {
        let Some(recorder) = &self.recorder else { return };
        let fact = recorder.fact(event);
        let track = self.tracks.get(index);
        let conversation = track.recorded;
        if let Fact::Join { user } = fact
            && user == recorder.user
        {
            // Our own joining begins a new stretch, wherever the last one ended. What was done meanwhile to messages of
            // before is fetched like anything else that is missing.
            recorder.note(What::Resume { connection: recorder.connection, conversation, from: event.seq - 1 });
        }
        recorder.note(What::Deliver { connection: recorder.connection, conversation, seq: event.seq, fact });
    }

    fn resync(&mut self, conversation: &str, head: u64) {
        self.counters.resyncs += 1;
        let Some(index) = self.tracks.find(conversation) else { return };
        let track = self.tracks.get(index);
        let (known, recorded) = (track.known, track.recorded);
        self.note(|connection| What::Resync { connection, conversation: recorded, head });
        if known {
            let track = self.tracks.get(index);
            track.told = track.told.max(head);
            self.fill(index);
        }
    }

    /// Reads what lies between the track's position and the head; live events wait.
    fn fill(&mut self, index: usize) {
        let track = self.tracks.get(index);
        if track.filling {
            return;
        }
        track.filling = true;
        let (id, after) = (track.id, track.cursor);
        self.read(id, Some(index), after, false, 0);
    }

    fn read(&mut self, conversation: Uuid, track: Option<usize>, after: u64, last: bool, tag: u64) {
        let (mut recorded, mut read) = (history::Conversation(0), Read(0));
        if let Some(recorder) = &self.recorder {
            recorded = recorder.history.conversation(conversation);
            read = recorder.history.read();
            recorder.note(What::ReadStart { read, user: recorder.user, conversation: recorded, after, last });
        }
        let reading = Reading { conversation, recorded, track, read, next: after + 1, tag };
        let index = match self.readings.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.readings.push(None);
                self.readings.len() - 1
            }
        };
        self.readings[index] = Some(reading);
        self.ask_page(index);
    }

    fn ask_page(&mut self, index: usize) {
        let Some(Some(reading)) = self.readings.get(index) else { return };
        let (conversation, after, limit) = (reading.conversation, reading.next - 1, self.options.page);
        let args = format!(r#"{{"conversation":"{conversation}","after":{after},"limit":{limit}}}"#);
        self.ask("event.list", &args, Purpose::Page { reading: index });
    }

    fn page<H: Handler>(&mut self, index: usize, ok: &[u8], handler: &mut H) {
        let Some(mut reading) = self.readings.get_mut(index).and_then(Option::take) else { return };
        let head = line::field(ok, "head").and_then(line::number).unwrap_or(0);
        let before = reading.next;
        for raw in line::elements(line::field(ok, "events").unwrap_or(b"[]")) {
            let Some(event) = Event::parse(raw) else { continue };
            reading.next = event.seq + 1;
            if let Some(recorder) = &self.recorder {
                recorder.note(What::ReadItem { read: reading.read, seq: event.seq, fact: recorder.fact(&event) });
            }
            if let Some(track) = reading.track.map(|index| self.tracks.get(index))
                && event.seq > track.cursor
            {
                track.cursor = event.seq;
                handler.event(self, &event);
            }
        }
        let progress = reading.next > before;
        if reading.next <= head && progress {
            self.readings[index] = Some(reading);
            return self.ask_page(index);
        }
        if let Some(recorder) = &self.recorder {
            recorder.note(What::ReadEnd { read: reading.read, head });
        }
        match reading.track {
            Some(track) => self.filled(track, reading.recorded, handler),
            None => handler.read(self, reading.tag, Ok(head)),
        }
    }

    /// A gap is filled: hands on what was held back, unless that shows another gap.
    fn filled<H: Handler>(&mut self, index: usize, _recorded: history::Conversation, handler: &mut H) {
        let track = self.tracks.get(index);
        track.filling = false;
        let told = std::mem::take(&mut track.told);
        let held = std::mem::take(&mut track.held);
        for raw in &held {
            let Some(event) = Event::parse(raw) else { continue };
            match self.tracks.get(index).step(event.seq, raw) {
                Step::Next => handler.event(self, &event),
                Step::Fill => self.fill(index),
                Step::Skip | Step::Held => {}
            }
        }
        // A page that was on its way when the server named its head may have been read before.
        if told > self.tracks.get(index).cursor {
            self.fill(index);
        }
    }

    fn note(&self, what: impl FnOnce(Connection) -> What) {
        if let Some(recorder) = &self.recorder {
            recorder.note(what(recorder.connection));
        }
    }
}

// === impl Recorder ===

impl Recorder {
    fn note(&self, what: What) {
        self.history.record(what);
    }

    /// How far we say that we have got, or were told that it is noted.
    fn note_said(&self, said: &[(Uuid, u64, u64)], accepted: bool) {
        let user = self.user;
        for (conversation, delivered, read) in said {
            let (delivered, read) = (*delivered, *read);
            let conversation = self.history.conversation(*conversation);
            self.note(match accepted {
                false => What::ReceiptStart { user, conversation, delivered, read },
                true => What::ReceiptAck { user, conversation, delivered, read },
            });
        }
    }

    /// How far members have got, as an event or a list tells it.
    fn note_receipts(&self, conversation: Uuid, members: &[u8], last: bool) {
        let (observer, conversation) = (self.user, self.history.conversation(conversation));
        for member in line::elements(members) {
            let mark = |name| line::field(member, name).and_then(line::number);
            let (Some(delivered), Some(read)) = (mark("delivered_n"), mark("read_n")) else { continue };
            let Some(user) = line::field(member, "user").and_then(line::text) else { continue };
            let user = self.history.user(user);
            if last {
                self.note(What::ReceiptShown { observer, user, conversation, delivered, read });
            } else {
                let connection = self.connection;
                for (mark, upto) in [(Mark::Delivered, delivered), (Mark::Read, read)] {
                    self.note(What::Receipt { connection, user, conversation, mark, upto });
                }
            }
        }
    }

    /// What a page of messages shows, as far as it is judged.
    fn note_messages(&self, conversation: Uuid, ok: &[u8], last: bool) {
        let (user, conversation) = (self.user, self.history.conversation(conversation));
        for message in line::elements(line::field(ok, "messages").unwrap_or(b"[]")) {
            let Some(seq) = line::field(message, "seq").and_then(line::number) else { continue };
            let body = line::field(message, "body").filter(|body| *body != b"null");
            let shown = body.map_or(Shown::Tombstone, |body| Shown::Body(history::hash(body)));
            self.note(What::Show { user, conversation, seq, shown, last });
            let reactions = || line::elements(line::field(message, "reactions").unwrap_or(b"[]"));
            let key = |one: &[u8]| history::hash(line::field(one, "key").unwrap_or_default()) as u32;
            let count = |one: &[u8]| line::field(one, "count").and_then(line::number).unwrap_or(0);
            let own = reactions().filter(|one| line::field(one, "mine") == Some(b"true")).map(key);
            let counts = history::counts(reactions().map(|one| (key(one), count(one))), own);
            self.note(What::Counted { user, conversation, seq, counts, last });
        }
    }

    /// What an event says, as far as it is judged.
    fn fact(&self, event: &Event<'_>) -> Fact {
        let target = || event.target().unwrap_or(0);
        let somebody = || {
            let name = event.field("data").and_then(|data| line::field(data, "user")).and_then(line::text);
            self.history.user(name.unwrap_or("?"))
        };
        match event.name {
            "message.new" => {
                Fact::Message { id: event.id().unwrap_or_default(), hash: event.body().map(history::hash) }
            }
            "message.updated" => Fact::Edit { target: target(), hash: event.body().map(history::hash) },
            "message.deleted" => Fact::Delete { target: target() },
            "reaction.added" | "reaction.removed" => {
                let key = event.field("data").and_then(|data| line::field(data, "key")).unwrap_or_default();
                let user = self.history.user(event.sender().unwrap_or("?"));
                let on = event.name == "reaction.added";
                Fact::React { target: target(), user, key: history::hash(key) as u32, on }
            }
            "member.joined" => Fact::Join { user: somebody() },
            "member.left" => Fact::Leave { user: somebody() },
            "history.purged" => Fact::Purged { floor: event.floor().unwrap_or(0) },
            other => Fact::Other { mark: history::hash(other.as_bytes()) },
        }
    }
}

// === impl Refusal, Failure, Down ===

impl Refusal {
    /// Reads an error object; what cannot be read is a refusal all the same.
    pub fn parse(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_else(|error| Self {
            code: "client.unreadable_error".into(),
            status: 0,
            retryable: false,
            retry_after_ms: None,
            title: "the server's error could not be read".into(),
            detail: error.to_string(),
            floor: 0,
            field: None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {} {}", self.code, self.status, self.title, self.detail)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::GivenUp => f.write_str("no answer, given up"),
            Self::Stopped => f.write_str("the client was stopped"),
        }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(why) => write!(f, "connection lost: {why}"),
            Self::Broken => f.write_str("broken by the application"),
            Self::Closed(code, reason) => write!(f, "closed by the server with {code}: {reason}"),
            Self::Refused(refusal) => write!(f, "the server refused the connection: {refusal}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for Down {}
