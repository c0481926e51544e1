//! Clients that stop reading while a conversation is loud, on streams of gRPC and on WebSockets: they are told that something is
//! missing, or why they were let go; the server holds no more for them than it may, and nobody else notices.

use std::{convert::Infallible, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use chappe_loadtest::{
    client::{Client, Options, Stream, http::Http},
    metrics::Metrics,
    process,
    server::Server,
};
use chappe_schema::{
    limit::OUTBOX_BYTES_MAX,
    proto::{
        details,
        v1::{self, client_frame, server_frame::Payload},
    },
};
use futures_util::{future::join_all, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request,
    body::{Bytes, Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::json;
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::{crowd::PATIENCE, server};

const SOON: Duration = Duration::from_secs(60);

/// Streams of one connection that are not read.
const STREAMS: usize = 12;

/// Messages of one loud time, and the bytes of each: far more than may wait for anybody.
const MESSAGES: usize = 600;
const BODY_BYTES: usize = 8 * 1024;

/// A stream of `Realtime.Connect`, connected, and what has come of it and is no whole frame yet.
struct Live {
    body: Incoming,
    bytes: Vec<u8>,
    /// The client's side stays open.
    _says: oneshot::Sender<()>,
}

type Says = UnsyncBoxBody<Bytes, Infallible>;

/// A connection of HTTP/2 whose streams are taken one by one.
async fn connection(server: &Server) -> http2::SendRequest<Says> {
    let stream = TcpStream::connect(server.url().trim_start_matches("http://")).await.unwrap();
    let mut client = http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(65_535).initial_connection_window_size(STREAMS as u32 * 2 * 65_535);
    let (requests, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    requests
}

impl Live {
    async fn connect(requests: &mut http2::SendRequest<Says>, token: &str) -> Self {
        let connect = v1::Connect { token: token.to_owned(), ..Default::default() };
        let connect = v1::ClientFrame { id: Some(1), payload: Some(client_frame::Payload::Connect(connect)) };
        let connect = connect.encode_to_vec();
        let mut message = vec![0];
        message.extend_from_slice(&(connect.len() as u32).to_be_bytes());
        message.extend_from_slice(&connect);
        let (_says, silence) = oneshot::channel::<()>();
        let frames = stream::unfold((Some(message), silence), async |(message, silence)| match message {
            Some(message) => Some((Ok(Frame::data(Bytes::from(message))), (None, silence))),
            None => {
                let _ = silence.await;
                None
            }
        });
        let request = Request::post("http://localhost/chappe.v1.Realtime/Connect")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(StreamBody::new(Box::pin(frames)).boxed_unsync())
            .unwrap();
        let answer = timeout(SOON, requests.send_request(request)).await.expect("no answer").unwrap();
        let mut live = Self { body: answer.into_body(), bytes: Vec::new(), _says };
        while !matches!(live.next().await.unwrap().payload, Some(Payload::Connected(_))) {}
        live
    }

    /// The next frame, or the trailers that stand at the end.
    async fn next(&mut self) -> Result<v1::ServerFrame, HeaderMap> {
        loop {
            let length = self.bytes.get(1..5).map(|length| u32::from_be_bytes(length.try_into().unwrap()) as usize);
            if let Some(message) = length.and_then(|length| self.bytes.get(5..5 + length)) {
                let frame = v1::ServerFrame::decode(message).unwrap();
                self.bytes.drain(..5 + length.unwrap());
                return Ok(frame);
            }
            let frame =
                timeout(SOON, self.body.frame()).await.expect("nothing comes").expect("an end without a status");
            match frame.expect("the stream was reset").into_data() {
                Ok(data) => self.bytes.extend_from_slice(&data),
                Err(trailers) => return Err(trailers.into_trailers().unwrap()),
            }
        }
    }
}

/// Many and large messages; everybody who reads has all of them, in order.
async fn loud(ada: &Client, bob: &mut Stream, group: Uuid) -> u64 {
    let body = json!({ "text": "x".repeat(BODY_BYTES) });
    let mut last = 0;
    for _ in 0..MESSAGES / 10 {
        let sends = (0..10).map(|_| ada.send(group, &body));
        for sent in join_all(sends).await {
            last = last.max(sent.unwrap().seq);
        }
    }
    let mut seq = last - MESSAGES as u64;
    while seq < last {
        let event = bob.event(SOON).await.expect("who reads hears everything");
        if event.conversation == group && event.seq > 0 {
            assert_eq!(event.seq, seq + 1, "who reads misses nothing");
            seq = event.seq;
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_a_stream_is_told_and_costs_little() {
    let server = server().await;
    let url = server.url();
    let http = Http::new(&url);
    let (ada_token, bob_token, cyd) =
        (http.token("ada").await.unwrap(), http.token("bob").await.unwrap(), http.token("cyd").await.unwrap());
    let (ada, _) = Client::connect(&url, "ada", &ada_token, Options::default()).await.unwrap();
    let (_bob, mut bob) = Client::connect(&url, "bob", &bob_token, Options::default()).await.unwrap();
    let group = ada.create_group("loud", &["bob", "cyd"]).await.unwrap();
    let event = bob.event(SOON).await.unwrap();
    assert_eq!((&*event.name, event.seq), ("conversation.created", 1));
    // What the log and its caches take is not the streams'.
    loud(&ada, &mut bob, group).await;
    let memory = || process::memory(server.pid().unwrap()).unwrap().rss;
    let before = memory();

    let mut requests = connection(&server).await;
    let mut slow = Vec::new();
    for _ in 0..STREAMS {
        slow.push(Live::connect(&mut requests, &cyd).await);
    }
    let resyncs = count(&server.metrics().await.unwrap(), RESYNCS, "cause", "overflow");
    let head = loud(&ada, &mut bob, group).await;
    let grown = memory().saturating_sub(before);
    // Each of them could otherwise hold all that was said.
    let all = (MESSAGES * BODY_BYTES) as u64;
    let bound = STREAMS as u64 * OUTBOX_BYTES_MAX as u64 + 3 * all;
    assert!(grown < bound && bound < STREAMS as u64 * all, "{} KiB more", grown / 1024);
    until(&server, |now| count(now, RESYNCS, "cause", "overflow") - resyncs, STREAMS).await;

    // One reads again: it gets what was on its way, and then is told to fetch the rest, or that it was too slow for too long.
    let mut back = slow.pop().unwrap();
    let mut seqs = Vec::new();
    let told = loop {
        match back.next().await {
            Ok(frame) => match frame.payload {
                Some(Payload::Event(event)) => seqs.push(event.seq),
                Some(Payload::Resync(position)) => break Ok(position),
                _ => {}
            },
            Err(trailers) => break Err(trailers),
        }
    };
    assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{seqs:?}");
    assert!(seqs.len() < MESSAGES, "everything was kept for it");
    match told {
        Ok(position) => {
            assert_eq!(position.conversation, group.to_string());
            assert!(seqs.last().is_none_or(|last| *last < position.head) && position.head <= head, "{position:?}");
        }
        Err(trailers) => assert_eq!(reason(&trailers), "connection.slow_consumer"),
    }

    // The others are let go after half a minute, and hear why when they read after all.
    until(&server, |now| count(now, CLOSED, "reason", "slow_consumer"), slow.len()).await;
    let mut late = slow.pop().unwrap();
    let trailers = loop {
        if let Err(trailers) = late.next().await {
            break trailers;
        }
    };
    assert_eq!((&trailers["grpc-status"], &*reason(&trailers)), (&"8".parse().unwrap(), "connection.slow_consumer"));

    // And those who never do are reset: nothing is kept for them.
    until(&server, |now| count(now, STALLED, "protocol", "http2"), slow.len()).await;
    // Whoever reads has noticed nothing, and their connection is a good one.
    assert!(ada.send(group, &json!({ "text": "still here" })).await.unwrap().seq > head);
    Live::connect(&mut requests, &cyd).await;
}

const RESYNCS: &str = "chappe_gateway_resyncs_total";
const CLOSED: &str = "chappe_gateway_connections_closed_total";
const STALLED: &str = "chappe_gateway_answers_stalled_total";

fn count(metrics: &Metrics, name: &str, label: &str, value: &str) -> f64 {
    metrics.labelled(name, &[(label, value)])
}

/// Waits until something has been counted so often.
async fn until(server: &Server, counted: impl Fn(&Metrics) -> f64, times: usize) {
    let enough = async {
        while counted(&server.metrics().await.unwrap()) < times as f64 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("in vain: it is not counted");
}

/// The code of the error that a stream ended with.
fn reason(trailers: &HeaderMap) -> String {
    let details = trailers["grpc-status-details-bin"].as_bytes().trim_ascii_end();
    details::read(&BASE64_STANDARD_NO_PAD.decode(details).unwrap()).unwrap().1.code
}
