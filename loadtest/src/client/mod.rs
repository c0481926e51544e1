//! The client library: a connection that comes back, messages that are never sent twice, events without gaps.
//!
//! Two ways to use it. [`Client`] is the comfortable one: `send` and `request` are futures, events come in a stream;
//! tests and small programs want it. A [`Handler`] is the lean one: it lives inside the client's only task, is called
//! for everything that arrives and may send at once, without channels; a crowd wants it ([`driver::start`]).
//!
//! Plain TCP only: TLS belongs to a proxy in front of the server, and a load test measures the server.

mod bridge;
pub mod driver;
pub mod grpc;
pub mod http;
mod inbox;
pub mod line;
mod pending;
mod protobuf;
mod receipts;
mod session;
mod speech;
#[cfg(test)]
mod tests;
pub mod token;
mod track;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use hashbrown::HashMap;
use serde_json::{Value, json};
use tokio::sync::{
    Semaphore,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};
use uuid::Uuid;

pub use self::{
    driver::Handle,
    inbox::Inbox,
    line::Event,
    pending::Sent,
    receipts::Progress,
    session::{Ack, Counters, Down, Failure, Handler, Refusal, Session},
    speech::Speech,
};
use crate::history::History;

/// How clients behave; one value is shared by a whole crowd.
#[derive(Debug, Clone)]
pub struct Options {
    /// How they talk.
    pub speech: Speech,
    /// What `connect` calls this device.
    pub device: String,
    /// Come back after a loss.
    pub reconnect: bool,
    /// How long an answer may take before the connection counts as broken.
    pub answer_timeout: Duration,
    /// How long a request is tried, over all connections.
    pub give_up: Duration,
    /// The first pause after a loss, at most; every further failure doubles it.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// Events per page of a read.
    pub page: u32,
    /// Where everything is noted, to be judged.
    pub history: Option<Arc<History>>,
    /// How many may be connecting at the same time.
    pub gate: Option<Arc<Semaphore>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            speech: Speech::default(),
            device: "loadtest".into(),
            reconnect: true,
            answer_timeout: Duration::from_secs(15),
            give_up: Duration::from_secs(60),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            page: 200,
            history: None,
            gate: None,
        }
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// What to call it in the `Host` header.
    pub host: String,
    /// The path of the WebSocket.
    pub path: String,
}

impl Target {
    /// Resolves `http://host:port` or `ws://host:port/path`; the path is `/v1/ws` if none is given.
    pub async fn resolve(url: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://"));
        let rest = rest.with_context(|| format!("{url}: expected http://host:port or ws://host:port"))?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let mut found = tokio::net::lookup_host(&with_port).await.with_context(|| format!("cannot resolve {host}"))?;
        let address = found.next().with_context(|| format!("{host} has no address"))?;
        let path = if path == "/" { "/v1/ws" } else { path };
        Ok(Self { address, host: host.to_owned(), path: path.to_owned() })
    }
}

/// An event, owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// Its dotted name.
    pub name: String,
    /// Where.
    pub conversation: Uuid,
    /// Its place; 0 for what is not durable.
    pub seq: u64,
    /// Its ordinal among messages, if it is one.
    pub n: Option<u64>,
    /// Who caused it.
    pub sender: Option<String>,
    /// The command's id.
    pub id: Option<Uuid>,
    /// The seq it is about.
    pub target: Option<u64>,
    /// The rest.
    pub data: Value,
}

/// What a [`Client`] hears.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// An event of a conversation.
    Event(Happened),
    /// Connected, for the first time or again.
    Up,
    /// The user's inbox has changed since the cursor that we keep: time to sync.
    Behind,
    /// The connection is lost; `true`: for good.
    Down(Down, bool),
}

/// The comfortable client.
pub struct Client {
    handle: Handle<Courier>,
    user: Arc<str>,
}

/// The stream of what a [`Client`] hears.
#[derive(Debug)]
pub struct Stream {
    news: UnboundedReceiver<News>,
}

impl Client {
    /// Connects and waits until the server has let us in.
    pub async fn connect(url: &str, user: &str, token: &str, options: Options) -> anyhow::Result<(Self, Stream)> {
        Self::connect_from(url, user, token, options, None, &[]).await
    }

    /// Connects from an address of choice, with positions that were kept from an earlier life
    /// (conversation, generation, seq).
    pub async fn connect_from(
        url: &str,
        user: &str,
        token: &str,
        options: Options,
        source: Option<IpAddr>,
        positions: &[(Uuid, String, u64)],
    ) -> anyhow::Result<(Self, Stream)> {
        let target = Arc::new(Target::resolve(url).await?);
        let (to_stream, news) = unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let courier = Courier { waiting: HashMap::new(), next: 0, news: to_stream, ready: Some(ready) };
        let handle = driver::start_with(target, Arc::new(options), user, token, source, |session| {
            positions
                .iter()
                .for_each(|(conversation, generation, seq)| session.restore(*conversation, generation, *seq));
            courier
        });
        is_ready.await.context("the client ended before it was connected")??;
        Ok((Self { handle, user: user.into() }, Stream { news }))
    }

    /// Whose client this is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Sends a message and waits for its acknowledgement, over as many connections as it takes.
    pub async fn send(&self, conversation: Uuid, body: &Value) -> Result<Ack, Failure> {
        let body = body.to_string().into_bytes();
        let (answer, answered) = oneshot::channel();
        self.handle.call(move |courier, session| {
            let tag = courier.wait(Waiting::Ack(answer));
            session.send(conversation, &body, tag);
        });
        answered.await.unwrap_or(Err(Failure::Stopped))
    }

    /// Does any operation. A request that had no answer is repeated after a reconnect: give it an idempotency key.
    pub async fn request(&self, op: &str, args: Value) -> Result<Value, Failure> {
        let (op, args) = (op.to_owned(), args.to_string());
        self.ask(move |session, tag| session.request(&op, &args, tag)).await
    }

    /// Edits a message, or deletes it when there is no body.
    pub async fn change(&self, conversation: Uuid, seq: u64, body: Option<Value>) -> Result<Value, Failure> {
        self.ask(move |session, tag| {
            session.change(conversation, seq, body.map(|body| body.to_string()).as_deref(), tag)
        })
        .await
    }

    /// Reacts to a message, or takes that back.
    pub async fn react(&self, conversation: Uuid, seq: u64, key: &str, on: bool) -> Result<Value, Failure> {
        let key = key.to_owned();
        self.ask(move |session, tag| session.react(conversation, seq, &key, on, tag)).await
    }

    /// Says how far the user has got in conversations, at most 200 at once; `private` where others are not to see, or are to,
    /// whatever the user prefers.
    pub async fn progress(&self, progress: Vec<Progress>, private: Option<bool>) -> Result<Value, Failure> {
        self.ask(move |session, tag| session.progress(&progress, private, tag)).await
    }

    /// Says that messages up to `n` have reached this device, and that they are read.
    pub async fn read(&self, conversation: Uuid, n: u64) -> Result<Value, Failure> {
        self.progress(vec![Progress { conversation, delivered: Some(n), read: Some(n) }], None).await
    }

    /// How far each member of a conversation has got, as we are shown it; `last` when the system is quiet and everybody has
    /// been answered.
    pub async fn receipts(&self, conversation: Uuid, last: bool) -> Result<Value, Failure> {
        self.ask(move |session, tag| session.receipts(conversation, last, tag)).await
    }

    /// All messages of a conversation as they are shown, oldest first. `last` marks the reading that counts, in a quiet
    /// system.
    pub async fn messages(&self, conversation: Uuid, last: bool) -> Result<Vec<Value>, Failure> {
        let (mut all, mut before) = (Vec::new(), None);
        loop {
            let page = self.ask(move |session, tag| session.messages(conversation, before, last, tag)).await?;
            let page = page["messages"].as_array().cloned().unwrap_or_default();
            let Some(first) = page.first().and_then(|message| message["seq"].as_u64()) else { return Ok(all) };
            before = Some(first);
            all.splice(0..0, page);
        }
    }

    /// Creates a group and returns its id.
    pub async fn create_group(&self, title: &str, members: &[&str]) -> Result<Uuid, Failure> {
        let args = json!({ "kind": "group", "title": title, "members": members, "idempotency_key": Uuid::now_v7().to_string() });
        self.request("conversation.create", args).await.map(|ok| created(&ok))
    }

    /// The direct conversation with somebody.
    pub async fn direct(&self, with: &str) -> Result<Uuid, Failure> {
        self.request("conversation.create", json!({ "kind": "direct", "with": with })).await.map(|ok| created(&ok))
    }

    /// Reads all events above `after`; returns the head. `last` marks the reading that counts, in a quiet system.
    pub async fn read_all(&self, conversation: Uuid, after: u64, last: bool) -> Result<u64, Failure> {
        let (answer, answered) = oneshot::channel();
        self.handle.call(move |courier, session| {
            let tag = courier.wait(Waiting::Read(answer));
            session.read_all(conversation, after, last, tag);
        });
        answered.await.unwrap_or(Err(Failure::Stopped))
    }

    /// Up to where we know our inbox: the stream says when there is more.
    pub fn know_inbox(&self, inbox: &Inbox) {
        if let Some(cursor) = inbox.cursor().map(str::to_owned) {
            self.handle.call(move |_, session| session.know_inbox(&cursor));
        }
    }

    /// Opens a conversation: its live events come from now on.
    pub fn open(&self, conversation: Uuid) {
        self.handle.call(move |_, session| session.open(conversation));
    }

    /// Closes a conversation.
    pub fn close(&self, conversation: Uuid) {
        self.handle.call(move |_, session| session.close(conversation));
    }

    /// Breaks the connection, as a network would.
    pub fn break_connection(&self) {
        self.handle.call(|_, session| session.break_connection(Duration::ZERO));
    }

    /// What the client has counted.
    pub async fn counters(&self) -> Counters {
        let (answer, answered) = oneshot::channel();
        self.handle.call(move |_, session| _ = answer.send(session.counters()));
        answered.await.unwrap_or_default()
    }

    /// Ends the client and waits for its end.
    pub async fn stop(mut self) {
        self.handle.stop();
        self.handle.ended().await;
    }

    async fn ask(&self, ask: impl FnOnce(&mut Session, u64) + Send + 'static) -> Result<Value, Failure> {
        let (answer, answered) = oneshot::channel();
        self.handle.call(move |courier, session| {
            let tag = courier.wait(Waiting::Value(answer));
            ask(session, tag);
        });
        answered.await.unwrap_or(Err(Failure::Stopped))
    }
}

impl Drop for Client {
    /// A client without an owner would live, and reconnect, for ever.
    fn drop(&mut self) {
        self.handle.stop();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Stream {
    /// The next news; `None` after the client's end.
    pub async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// The next event, whatever else happens meanwhile; `None` when none comes in time.
    pub async fn event(&mut self, within: Duration) -> Option<Happened> {
        let until = Instant::now() + within;
        loop {
            match tokio::time::timeout_at(until.into(), self.news.recv()).await {
                Ok(Some(News::Event(event))) => return Some(event),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

fn created(ok: &Value) -> Uuid {
    ok["conversation"]["id"].as_str().and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default()
}

// === the handler of a comfortable client ===

/// Carries answers to the futures that wait for them.
struct Courier {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    news: UnboundedSender<News>,
    ready: Option<oneshot::Sender<Result<(), Down>>>,
}

enum Waiting {
    Ack(oneshot::Sender<Result<Ack, Failure>>),
    Value(oneshot::Sender<Result<Value, Failure>>),
    Read(oneshot::Sender<Result<u64, Failure>>),
}

impl Courier {
    fn wait(&mut self, waiting: Waiting) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, waiting);
        self.next
    }
}

impl Handler for Courier {
    fn ready(&mut self, _: &mut Session) {
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Ok(()));
        }
        let _ = self.news.send(News::Up);
    }

    fn event(&mut self, _: &mut Session, event: &Event<'_>) {
        let data = event.field("data").and_then(|data| serde_json::from_slice(data).ok()).unwrap_or_default();
        let happened = Happened {
            name: event.name.to_owned(),
            conversation: Uuid::try_parse(event.conversation).unwrap_or_default(),
            seq: event.seq,
            n: event.n(),
            sender: event.sender().map(str::to_owned),
            id: event.id(),
            target: event.target(),
            data,
        };
        let _ = self.news.send(News::Event(happened));
    }

    fn sent(&mut self, _: &mut Session, sent: &Sent, result: Result<Ack, &Failure>) {
        if let Some(Waiting::Ack(answer)) = self.waiting.remove(&sent.tag) {
            let _ = answer.send(result.map_err(Failure::clone));
        }
    }

    fn answered(&mut self, _: &mut Session, tag: u64, result: Result<&[u8], &Failure>) {
        if let Some(Waiting::Value(answer)) = self.waiting.remove(&tag) {
            let value = result.map(|ok| serde_json::from_slice(ok).unwrap_or_default());
            let _ = answer.send(value.map_err(Failure::clone));
        }
    }

    fn read(&mut self, _: &mut Session, tag: u64, result: Result<u64, &Failure>) {
        if let Some(Waiting::Read(answer)) = self.waiting.remove(&tag) {
            let _ = answer.send(result.map_err(Failure::clone));
        }
    }

    fn behind(&mut self, _: &mut Session) {
        let _ = self.news.send(News::Behind);
    }

    fn down(&mut self, _: &mut Session, why: &Down, last: bool) {
        if last && let Some(ready) = self.ready.take() {
            let _ = ready.send(Err(why.clone()));
        }
        let _ = self.news.send(News::Down(why.clone(), last));
    }
}
