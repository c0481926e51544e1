//! A session over gRPC, or over HTTP beside a WebSocket.
//!
//! A session speaks WebSocket frames into a pipe in this process's memory; a task beside it takes what they say out of them and
//! puts it into what the transport has, and back. So it is the same session whatever a crowd talks over, and the same oracle
//! judges it. The detour is the tester's cost, not the server's.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use chappe_schema::operation::{Http, Method, Op};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request,
    body::{Body, Bytes, Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    select,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    Target,
    driver::{Socket, dial, shake_hands},
    grpc::{PREFIX_BYTES, framed},
    line::{self, Fields},
};
use crate::websocket::{self, Decoder, Item, Opcode, Role};

/// Bytes that may lie in the pipe in either direction: what a socket's buffers are to a WebSocket.
const PIPE_BYTES: usize = 64 << 10;
/// What one read takes at most. Requests are small, and there are many clients.
const READ_BYTES: usize = 4 << 10;
/// Messages that may wait for the transport.
const WAITING_MAX: usize = 16;
/// How long the server may take to end a stream that the client has ended.
const GOODBYE: Duration = Duration::from_secs(1);
const CONNECT: &str = "/chappe.v1.Realtime/Connect";
/// Any key will do: what it masks goes no further than this process, or over loopback.
const KEY: [u8; 4] = [0x43, 0x68, 0x61, 0x70];

// === gRPC ===

/// A body that is written as it comes.
struct Said(mpsc::Receiver<Bytes>);

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Calls `Realtime.Connect` on a connection of its own.
pub(super) async fn grpc(target: &Target, source: Option<IpAddr>) -> io::Result<DuplexStream> {
    let stream = TokioIo::new(dial(target, source).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
    // Ends with the tasks that use it.
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let (say, said) = mpsc::channel(WAITING_MAX);
    let request = Request::post(format!("http://{}{CONNECT}", target.host))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Said(said))
        .map_err(io::Error::other)?;
    let (head, heard) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    if head.status != 200 {
        return Err(io::Error::other(format!("gRPC answered with status {}", head.status)));
    }
    let (ours, theirs) = duplex(PIPE_BYTES);
    let (reading, mut writing) = split(theirs);
    tokio::spawn(async move {
        let _driving = driving;
        if refused(&head.headers, &mut writing).await {
            return;
        }
        let mut hearing = std::pin::pin!(hear_messages(heard, writing));
        select! {
            () = say_messages(reading, say) => drop(timeout(GOODBYE, hearing).await),
            () = &mut hearing => {}
        }
    });
    Ok(ours)
}

/// Whether the call is over: then the session is told as a WebSocket would.
async fn refused(headers: &HeaderMap, pipe: &mut WriteHalf<DuplexStream>) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status") else { return false };
    let (code, word) = if status == "0" { (1000_u16, "") } else { (1011, text("grpc-message").unwrap_or_default()) };
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend(format!("{status} {word}").bytes().take(120));
    let mut frame = Vec::new();
    websocket::encode(&mut frame, Opcode::Close, &payload, None);
    // The session may have gone.
    let _ = pipe.write_all(&frame).await;
    true
}

/// Until the session says goodbye, or the call is over.
async fn say_messages(mut pipe: ReadHalf<DuplexStream>, say: mpsc::Sender<Bytes>) {
    let mut frames = Frames::new();
    while let Some(said) = frames.next(&mut pipe).await {
        for message in said.messages {
            if say.send(framed(&message)).await.is_err() {
                return;
            }
        }
        if said.is_last {
            return;
        }
    }
}

/// Until the call is over, or nobody listens any more.
async fn hear_messages(mut body: Incoming, mut pipe: WriteHalf<DuplexStream>) {
    let (mut bytes, mut out) = (Vec::new(), Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    refused(&trailers, &mut pipe).await;
                }
                return;
            }
        };
        bytes.extend_from_slice(&data);
        let mut rest = &bytes[..];
        while let Some((message, behind)) = message(rest) {
            websocket::encode(&mut out, Opcode::Binary, message, None);
            rest = behind;
        }
        let used = bytes.len() - rest.len();
        bytes.drain(..used);
        if pipe.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
    }
}

/// The first message of a stream of gRPC, and what follows it.
fn message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
    let [_, length @ ..] = *prefix;
    rest.split_at_checked(u32::from_be_bytes(length) as usize)
}

// === HTTP beside a WebSocket ===

/// Opens a WebSocket; the connection for requests beside it comes with the first of them.
pub(super) async fn http(target: &Target, source: Option<IpAddr>, token: &str) -> io::Result<DuplexStream> {
    let Socket { stream, decoder } = shake_hands(target, "chappe.v1.json", source).await?;
    let authorization = format!("Bearer {token}");
    let asking = Asking { sender: None, driving: JoinSet::new(), target: target.clone(), source, authorization };
    let (ours, theirs) = duplex(PIPE_BYTES);
    let (reading, writing) = split(theirs);
    let (from_server, to_server) = stream.into_split();
    let (ask, asked) = mpsc::channel(WAITING_MAX);
    let (answer, answers) = mpsc::channel(WAITING_MAX);
    let (ping, pings) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        let mut hearing = std::pin::pin!(hear_both(from_server, decoder, answers, ping, writing));
        // Whatever ends first ends the rest, and the session comes back.
        select! {
            () = say_lines(reading, to_server, ask, pings) => drop(timeout(GOODBYE, hearing).await),
            () = asking.go_on(asked, answer) => {}
            () = &mut hearing => {}
        }
    });
    Ok(ours)
}

/// What goes over HTTP.
struct Asked {
    id: u64,
    method: Method,
    path: String,
    body: Option<String>,
}

/// The connection for requests: opened for the first, and again when the server has closed it, as servers do with those that are idle.
struct Asking {
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    /// What drives it, for as long as this lives.
    driving: JoinSet<hyper::Result<()>>,
    target: Target,
    source: Option<IpAddr>,
    authorization: String,
}

impl Asking {
    /// One after the other, so that what a client says in order arrives in order.
    async fn go_on(mut self, mut asked: mpsc::Receiver<Asked>, answer: mpsc::Sender<Vec<u8>>) {
        while let Some(next) = asked.recv().await {
            let Some(line) = self.ask(next).await else { return };
            if answer.send(line).await.is_err() {
                return;
            }
        }
        // The session has said goodbye; the rest waits for that.
        std::future::pending().await
    }

    /// A connection that takes a request now.
    async fn sender(&mut self) -> Option<&mut http1::SendRequest<Full<Bytes>>> {
        let is_ready = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !is_ready {
            let stream = TokioIo::new(dial(&self.target, self.source).await.ok()?);
            let (sender, connection) = http1::handshake(stream).await.ok()?;
            self.driving.abort_all();
            self.driving.spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut()
    }

    /// The answer as a WebSocket would bring it; nothing if there is none.
    async fn ask(&mut self, asked: Asked) -> Option<Vec<u8>> {
        let method = match asked.method {
            Method::Get => hyper::Method::GET,
            Method::Post => hyper::Method::POST,
            Method::Put => hyper::Method::PUT,
            Method::Patch => hyper::Method::PATCH,
            Method::Delete => hyper::Method::DELETE,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(asked.path)
            .header("host", &self.target.host)
            .header("authorization", &self.authorization);
        if asked.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::from(asked.body.unwrap_or_default())).ok()?;
        let (head, body) = self.sender().await?.send_request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        let kind = if head.status.is_success() { "ok" } else { "error" };
        let mut line = format!(r#"{{"id":{},"{kind}":"#, asked.id).into_bytes();
        line.extend_from_slice(&body);
        line.push(b'}');
        Some(line)
    }
}

impl Asked {
    /// What HTTP offers of what a line asks.
    fn from_line(line: &[u8]) -> Option<Self> {
        let (mut id, mut operation) = (None, None);
        for (name, value) in Fields::new(line) {
            match name {
                b"id" => id = Some(line::number(value)?),
                name => operation = Some((Op::named(std::str::from_utf8(name).ok()?)?.row().http?, value)),
            }
        }
        let (http, arguments) = operation?;
        let (path, body) = place(&http, serde_json::from_slice(arguments).ok()?)?;
        Some(Self { id: id?, method: http.method, path, body })
    }
}

/// Where the arguments of an operation stand: in the path and the query, or in the body.
fn place(http: &Http, mut arguments: Map<String, Value>) -> Option<(String, Option<String>)> {
    let mut path = String::with_capacity(http.path.len() + 64);
    let mut template = http.path;
    while let Some((before, (name, after))) =
        template.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        path.push_str(before);
        push_escaped(&mut path, &arguments.remove(name)?)?;
        template = after;
    }
    path.push_str(template);
    let mut before = '?';
    for name in http.query {
        let Some(value) = arguments.remove(*name) else { continue };
        path.push(std::mem::replace(&mut before, '&'));
        path.push_str(name);
        path.push('=');
        push_escaped(&mut path, &value)?;
    }
    match (arguments.is_empty(), http.method) {
        (true, _) => Some((path, None)),
        (false, Method::Get) => None,
        (false, _) => Some((path, Some(Value::Object(arguments).to_string()))),
    }
}

/// A value as it stands in a URL (RFC 3986 §2.3).
fn push_escaped(url: &mut String, value: &Value) -> Option<()> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(byte.into()),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(())
}

/// What HTTP offers goes there, the rest to the WebSocket.
async fn say_lines(
    mut pipe: ReadHalf<DuplexStream>,
    mut server: OwnedWriteHalf,
    ask: mpsc::Sender<Asked>,
    mut pings: mpsc::Receiver<Vec<u8>>,
) {
    let (mut frames, mut out) = (Frames::new(), Vec::new());
    loop {
        let said = select! {
            said = frames.next(&mut pipe) => said,
            Some(payload) = pings.recv() => {
                websocket::encode(&mut out, Opcode::Pong, &payload, Some(KEY));
                Some(Read::default())
            }
        };
        let Some(said) = said else { return };
        for message in said.messages {
            for line in message.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match Asked::from_line(line) {
                    Some(asked) => {
                        if ask.send(asked).await.is_err() {
                            return;
                        }
                    }
                    None => websocket::encode(&mut out, Opcode::Text, line, Some(KEY)),
                }
            }
        }
        if said.is_last {
            websocket::encode(&mut out, Opcode::Close, &1000_u16.to_be_bytes(), Some(KEY));
        }
        if server.write_all(&out).await.is_err() || said.is_last {
            return;
        }
        out.clear();
    }
}

/// What the WebSocket brings, and answers of HTTP between its frames.
async fn hear_both(
    mut server: OwnedReadHalf,
    mut decoder: Decoder,
    mut answers: mpsc::Receiver<Vec<u8>>,
    pings: mpsc::Sender<Vec<u8>>,
    mut pipe: WriteHalf<DuplexStream>,
) {
    // Bytes behind the handshake may already hold the hello.
    let (mut buffer, mut out, mut read) = (vec![0; READ_BYTES], Vec::new(), 0);
    loop {
        let fed = decoder.feed(&mut buffer[..read], &mut |item| match item {
            Item::Data(message) => websocket::encode(&mut out, Opcode::Text, message, None),
            // So many that they do not fit are no sign of life that anybody waits for.
            Item::Ping(payload) => drop(pings.try_send(payload.to_vec())),
            Item::Pong => {}
            Item::Close(code, reason) => {
                let payload = [&code.to_be_bytes()[..], reason].concat();
                websocket::encode(&mut out, Opcode::Close, &payload, None);
            }
        });
        if fed.is_err() || pipe.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
        read = 0;
        select! {
            found = server.read(&mut buffer) => match found {
                Ok(0) | Err(_) => return,
                Ok(bytes) => read = bytes,
            },
            Some(line) = answers.recv() => websocket::encode(&mut out, Opcode::Text, &line, None),
        }
    }
}

// === The session's side of the pipe ===

/// Takes what the session says out of its frames.
struct Frames {
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// What one read brought.
#[derive(Default)]
struct Read {
    messages: Vec<Vec<u8>>,
    /// The session has said goodbye.
    is_last: bool,
}

impl Frames {
    fn new() -> Self {
        // The session speaks as a client does.
        Self { decoder: Decoder::new(Role::Server), buffer: vec![0; READ_BYTES] }
    }

    /// Nothing when the session has gone.
    async fn next(&mut self, pipe: &mut ReadHalf<DuplexStream>) -> Option<Read> {
        let bytes = pipe.read(&mut self.buffer).await.ok().filter(|bytes| *bytes > 0)?;
        let mut read = Read::default();
        let fed = self.decoder.feed(&mut self.buffer[..bytes], &mut |item| match item {
            Item::Data(message) => read.messages.push(message.to_vec()),
            // Nobody pings through the pipe.
            Item::Ping(_) | Item::Pong => {}
            Item::Close(..) => read.is_last = true,
        });
        fed.is_ok().then_some(read)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Option<(Method, String, Option<Value>)> {
        let asked = Asked::from_line(line.as_bytes())?;
        Some((asked.method, asked.path, asked.body.map(|body| serde_json::from_str(&body).unwrap())))
    }

    #[test]
    fn what_a_line_asks_is_placed_where_http_has_it() {
        let sends = r#"{"id":7,"message.send":{"conversation":"c-1","client_msg_id":"m","body":{"text":"a b"}}}"#;
        let body = serde_json::json!({ "client_msg_id": "m", "body": { "text": "a b" } });
        assert_eq!(asked(sends), Some((Method::Post, "/v1/conversations/c-1/messages".into(), Some(body))));
        let lists = r#"{"id":8,"event.list":{"conversation":"c-1","limit":50,"after":3}}"#;
        let path = "/v1/conversations/c-1/events?after=3&limit=50";
        assert_eq!(asked(lists), Some((Method::Get, path.into(), None)));
        let reacts = r#"{"id":9,"reaction.add":{"conversation":"c","seq":4,"key":"👍/?"}}"#;
        let path = "/v1/conversations/c/messages/4/reactions/%F0%9F%91%8D%2F%3F";
        assert_eq!(asked(reacts), Some((Method::Put, path.into(), None)));
    }

    #[test]
    fn what_http_has_not_stays_on_the_websocket() {
        for line in [
            r#"{"id":1,"connect":{"token":"t"}}"#,
            r#"{"heartbeat":{}}"#,
            r#"{"id":2,"presence.away":{"away":true}}"#,
            r#"{"message.send":{"conversation":"c"}}"#,
            r#"{"id":3,"message.list":{"conversation":"c","what":["x"]}}"#,
            "nonsense",
        ] {
            assert_eq!(asked(line), None, "{line}");
        }
    }

    #[test]
    fn messages_of_grpc_are_taken_one_by_one() {
        let stream = [&[0, 0, 0, 0, 2][..], b"ab", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 3], b"c"].concat();
        let (first, rest) = message(&stream).unwrap();
        let (second, rest) = message(rest).unwrap();
        assert_eq!((first, second), (&b"ab"[..], &b""[..]));
        assert_eq!(message(rest), None, "its end has not come");
    }
}
