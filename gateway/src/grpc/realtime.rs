//! `Realtime.Connect`: a connection as the WebSocket's, on a stream of gRPC.
//!
//! It is the same connection: its task, its outbox, its verdicts, its bounds. Between it and the stream lies a pipe in this
//! process's memory, on which it speaks `chappe.v1.protobuf`; here frames are taken out of one envelope and put into the
//! other.

use std::{future::pending, io, pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use chappe_schema::{
    error::{Code, Error},
    limit::{COMMAND_DEADLINE_MS, REQUEST_BYTES_MAX},
    proto::v1::{self, client_frame::Payload},
};
use futures_util::{Stream, stream};
use http::{HeaderMap, Request, header};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::{oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{
    Status, Streaming,
    server::{Grpc, StreamingService},
};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::{codec::Raw, deadline, status};
use crate::{
    connection::Connection,
    gateway::Gateway,
    http::{connection::About, routes::bearer},
    websocket::{self, encode::Format},
};

/// Where it is called.
pub(super) const PATH: &str = "/chappe.v1.Realtime/Connect";

/// Bytes that may lie in the pipe in either direction: what a socket's buffers are to a WebSocket.
const PIPE_BYTES: usize = 64 * 1024;

/// What the server says, as the library sends it.
type Said = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Answers a call. The stream lives as long as its answer's body.
pub(super) async fn answer(
    gateway: Arc<Gateway>,
    about: About,
    request: Request<Body>,
) -> http::Response<tonic::body::Body> {
    let taken = gateway.connections.len() + gateway.seats.http.load(std::sync::atomic::Ordering::Relaxed);
    if taken >= gateway.seats.max {
        let error = Error::new(Code::Overloaded).with_detail("the server has as many connections as it may");
        return status::of(&error.after_ms(5_000), &about.request_id).into_http();
    }
    let call = Call { patience: deadline::of(request.headers()), token: token(request.headers()), gateway, about };
    let request_id = Arc::clone(&call.about.request_id);
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(REQUEST_BYTES_MAX);
    status::dressed(grpc.streaming(call, request).await, &request_id)
}

/// A token in the metadata stands for one that `connect` leaves out.
fn token(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).and_then(bearer).map(str::to_owned)
}

struct Call {
    gateway: Arc<Gateway>,
    about: About,
    patience: Option<Duration>,
    token: Option<String>,
}

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Said;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Said>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (ours, theirs) = duplex(PIPE_BYTES);
        let connection = websocket::begin(theirs, &[], &self.gateway, Format::Protobuf);
        let (reading, writing) = split(ours);
        let (answered, answers) = watch::channel(0);
        let (refuse, refused) = oneshot::channel();
        // It ends with the client's last word, or with the connection: then nobody reads the pipe any more.
        let saying = Saying { pipe: writing, token: self.token.take(), asked: 0, answers };
        tokio::spawn(async move {
            if let Err(error) = saying.say(request.into_inner()).await {
                let _ = refuse.send(error);
            }
        });
        let hearing = Hearing {
            pipe: reading,
            connection,
            bytes: BytesMut::new(),
            answered,
            refused: Some(refused),
            ends: self.patience.map(|patience| Instant::now() + patience),
            request_id: Arc::clone(&self.about.request_id),
        };
        let frames = stream::unfold(Some(hearing), |hearing: Option<Hearing>| async move {
            let mut hearing = hearing?;
            match hearing.next().await {
                Ok(Some(frame)) => Some((Ok(frame), Some(hearing))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Box::pin(async move { Ok(tonic::Response::new(Box::pin(frames) as Said)) })
    }
}

// === from the client ===

/// Gives the connection what the client says.
struct Saying {
    pipe: WriteHalf<DuplexStream>,
    token: Option<String>,
    /// Requests with an id so far: each has one answer.
    asked: u64,
    /// How many answers the client has been given.
    answers: watch::Receiver<u64>,
}

impl Saying {
    /// Until the client has said its last, or what ends the stream.
    async fn say(mut self, mut messages: Streaming<Bytes>) -> Result<(), Error> {
        loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    let message = with_token(message, &mut self.token);
                    self.asked += u64::from(has_id(&message));
                    if self.pipe.write_all(&envelope(BINARY, &message)).await.is_err() {
                        return Ok(());
                    }
                }
                // The client has said all that it wanted to, as a WebSocket's client has when it closes; but here it goes on
                // hearing, and hears what it has asked for.
                Ok(None) => {
                    let asked = self.asked;
                    let all = self.answers.wait_for(|answered| *answered >= asked);
                    let _ = timeout(Duration::from_millis(COMMAND_DEADLINE_MS), all).await;
                    let _ = self.pipe.write_all(&envelope(CLOSE, &NORMAL.to_be_bytes())).await;
                    return Ok(());
                }
                // What follows cannot be told from the rest of it.
                Err(status) if status.code() == tonic::Code::OutOfRange => {
                    return Err(Error::new(Code::TooLarge)
                        .with_detail(format!("at most {REQUEST_BYTES_MAX} bytes are accepted")));
                }
                // It has broken off, or sent what is no message: there is nobody left to be heard.
                Err(_) => return Ok(()),
            }
        }
    }
}

/// What frames in both directions have in common.
#[derive(Clone, PartialEq, Message)]
struct Numbered {
    #[prost(uint64, optional, tag = "1")]
    id: Option<u64>,
}

/// Whether it is a request that is answered, or an answer.
fn has_id(frame: &[u8]) -> bool {
    Numbered::decode(frame).is_ok_and(|frame| frame.id.is_some())
}

/// `connect` with the token of the metadata, if it has none of its own. It is looked for until it has come.
fn with_token(message: Bytes, token: &mut Option<String>) -> Bytes {
    if token.is_none() {
        return message;
    }
    let Ok(v1::ClientFrame { id, payload: Some(Payload::Connect(mut connect)) }) = v1::ClientFrame::decode(&*message)
    else {
        return message;
    };
    match token.take() {
        Some(token) if connect.token.is_empty() => {
            connect.token = token;
            v1::ClientFrame { id, payload: Some(Payload::Connect(connect)) }.encode_to_vec().into()
        }
        _ => message,
    }
}

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
/// A close frame's code for an end in peace.
const NORMAL: u16 = 1000;

/// A frame as clients of WebSockets write them: masked, with a mask that changes nothing.
fn envelope(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASKED: u8 = 0x80;
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.push(first);
    match payload.len() {
        length @ 0..=125 => frame.push(MASKED | length as u8),
        length @ 126..=0xffff => {
            frame.push(MASKED | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

// === to the client ===

/// What the connection says, on its way out of the pipe.
struct Hearing {
    pipe: ReadHalf<DuplexStream>,
    connection: Option<Arc<Connection>>,
    bytes: BytesMut,
    /// Answers so far.
    answered: watch::Sender<u64>,
    /// What the client said that ends the stream.
    refused: Option<oneshot::Receiver<Error>>,
    /// When the client waits no longer.
    ends: Option<Instant>,
    request_id: Arc<str>,
}

impl Hearing {
    /// The next frame; none at a peaceful end.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            while let Some((opcode, payload)) = self.taken_out() {
                match opcode {
                    OpCode::Data(Data::Binary) => {
                        if has_id(&payload) {
                            self.answered.send_modify(|answered| *answered += 1);
                        }
                        return Ok(Some(payload));
                    }
                    OpCode::Control(Control::Close) => return self.closed(&payload),
                    _ => {}
                }
            }
            let Self { pipe, bytes, refused, ends, .. } = self;
            let over = async {
                match *ends {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let refusal = async {
                match refused {
                    Some(refused) => refused.await,
                    None => pending().await,
                }
            };
            let read = tokio::select! {
                read = pipe.read_buf(bytes) => read,
                refusal = refusal => {
                    self.refused = None;
                    match refusal {
                        Ok(error) => return Err(status::of(&error, &self.request_id)),
                        // The client has said its last; it may still hear.
                        Err(_) => continue,
                    }
                }
                () = over => {
                    let error = Error::new(Code::OutcomeUnknown).with_detail("the client's deadline has passed");
                    return Err(status::late(&error, &self.request_id));
                }
            };
            if !matches!(read, Ok(count) if count > 0) {
                // The connection's task is gone without a word: its client did not take one, or it panicked.
                let closing = self.connection.as_ref().and_then(|connection| connection.outbox.lock().closing());
                return self
                    .ended(closing.map_or(0, |closing| closing.code), closing.map_or("", |closing| closing.reason));
            }
        }
    }

    fn taken_out(&mut self) -> Option<(OpCode, Bytes)> {
        let mut cursor = io::Cursor::new(&*self.bytes);
        let (header, length) = FrameHeader::parse(&mut cursor).ok().flatten()?;
        let (start, length) = (cursor.position() as usize, usize::try_from(length).ok()?);
        if self.bytes.len() < start + length {
            self.bytes.reserve(start + length - self.bytes.len());
            return None;
        }
        self.bytes.advance(start);
        Some((header.opcode, self.bytes.split_to(length).freeze()))
    }

    /// A close frame as a status: its reason is the error's code.
    fn closed(&self, payload: &[u8]) -> Result<Option<Bytes>, Status> {
        let Some((code, reason)) = payload.split_first_chunk::<2>() else { return Ok(None) };
        self.ended(u16::from_be_bytes(*code), std::str::from_utf8(reason).unwrap_or_default())
    }

    fn ended(&self, code: u16, reason: &str) -> Result<Option<Bytes>, Status> {
        if code == NORMAL {
            return Ok(None);
        }
        let known = Code::ALL.iter().find(|code| code.row().code == reason);
        Err(status::of(&Error::new(known.copied().unwrap_or(Code::Aborted)), &self.request_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_what_the_reader_of_websockets_reads() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let frame = envelope(BINARY, &vec![7; length]);
            let mut cursor = io::Cursor::new(&frame);
            let (header, found) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!((header.mask, found as usize), (Some([0; 4]), length));
            assert_eq!(frame.len() - cursor.position() as usize, length);
        }
    }

    #[test]
    fn the_metadatas_token_stands_for_a_missing_one_only() {
        let connect = |token: &str| {
            let connect = v1::Connect { token: token.to_owned(), ..Default::default() };
            v1::ClientFrame { id: Some(1), payload: Some(Payload::Connect(connect)) }.encode_to_vec()
        };
        let filled = |token: &str| with_token(connect(token).into(), &mut Some("metadata".to_owned())).to_vec();
        assert_eq!(filled(""), connect("metadata"));
        assert_eq!(filled("mine"), connect("mine"));
        let heartbeat = v1::ClientFrame { id: None, payload: Some(Payload::Heartbeat(v1::Heartbeat::default())) };
        let heartbeat = heartbeat.encode_to_vec();
        let mut token = Some("metadata".to_owned());
        assert_eq!(with_token(heartbeat.clone().into(), &mut token), heartbeat);
        assert_eq!(with_token(connect("").into(), &mut token), connect("metadata"), "a heartbeat may come first");
        assert_eq!(with_token(connect("").into(), &mut token), connect(""));
    }
}
