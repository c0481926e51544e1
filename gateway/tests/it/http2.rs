//! Clients of HTTP/2 that break rules, frame by frame: their connection ends or their stream is refused, and everybody
//! else is left in peace.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::world::World;

const SOON: Duration = Duration::from_secs(60);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a stream is refused with when there are too many.
const REFUSED_STREAM: u32 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as it is: neither indexed nor compressed.
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // An integer with a prefix of seven bits.
        if text.len() < 127 {
            bytes.push(text.len() as u8);
        } else {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn head(method: &str, path: &str) -> Vec<u8> {
    let pairs = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost")];
    pairs.iter().flat_map(|(name, value)| header(name, value)).collect()
}

async fn greeted(world: &World) -> TcpStream {
    let mut stream = world.tcp().await;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// The next frame: kind, flags, stream, payload. None at the end of the connection.
async fn one(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let read = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], id, payload))
    };
    timeout(SOON, read).await.expect("the connection neither ends nor goes on")
}

/// Everything up to the end of the connection, or up to a frame of which `last` is true: kind, stream, payload.
async fn heard(stream: &mut TcpStream, last: impl Fn(u8, u32, &[u8]) -> bool) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((kind, _, id, payload)) = one(stream).await {
        let is_last = last(kind, id, &payload);
        frames.push((kind, id, payload));
        if is_last {
            break;
        }
    }
    frames
}

/// Somebody who follows the rules is answered at once.
async fn others_are_in_peace(world: &World) {
    let mut ada = world.client("ada").await;
    let answered = timeout(SOON, ada.ask("conversation.list", json!({}))).await.expect("others wait");
    assert!(answered["ok"].is_object(), "{answered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_back_every_request_is_sent_away() {
    let world = World::new().await;
    let mut stream = greeted(&world).await;
    let mut all = Vec::new();
    for number in 0..5_000 {
        let id = 2 * number + 1;
        all.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &head("GET", "/v1/conversations")));
        all.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
    }
    // The server may close before everything is sent.
    let _ = stream.write_all(&all).await;
    others_are_in_peace(&world).await;
    let frames = heard(&mut stream, |kind, _, _| kind == GOAWAY).await;
    assert!(frames.len() < 1_000, "{} answers", frames.len());
    drop(stream);
    others_are_in_peace(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_are_cut_off() {
    let world = World::new().await;
    // More than is accepted, in one piece of several frames: this request is refused, and nothing else.
    let mut stream = greeted(&world).await;
    let long = [head("GET", "/v1/conversations"), header("x-long", &"x".repeat(40_000))].concat();
    let mut frames = frame(HEADERS, END_STREAM, 1, &long[..16_000]);
    frames.extend(frame(CONTINUATION, 0, 1, &long[16_000..32_000]));
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &long[32_000..]));
    stream.write_all(&frames).await.unwrap();
    let answered = heard(&mut stream, |kind, id, _| (kind == HEADERS && id == 1) || kind == GOAWAY).await;
    assert_eq!(answered.last().unwrap().0, HEADERS);
    let said = heard(&mut stream, |kind, id, _| kind == DATA && id == 1).await;
    let said = String::from_utf8_lossy(&said.last().unwrap().2).into_owned();
    assert!(said.contains("request.head_too_large"), "{said}");

    // A head of which nobody knows where it ends.
    let mut stream = greeted(&world).await;
    let _ = stream.write_all(&frame(HEADERS, END_STREAM, 1, &head("GET", "/"))).await;
    let piece = header("x-more", &"x".repeat(1_000));
    for _ in 0..10_000 {
        if stream.write_all(&frame(CONTINUATION, 0, 1, &piece)).await.is_err() {
            break;
        }
    }
    others_are_in_peace(&world).await;
    heard(&mut stream, |kind, _, _| kind == GOAWAY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_so_many_requests_and_no_more() {
    let world = World::new().await;
    let mut stream = greeted(&world).await;
    // Once both know the other's settings, more is more than was agreed.
    heard(&mut stream, |kind, _, payload| kind == SETTINGS && payload.is_empty()).await;
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    // Bodies that never come: each of them is waited for.
    let token = format!("Bearer {}", world.token("mallory"));
    let more = [header("authorization", &token), header("content-type", "application/json")].concat();
    let head = [head("POST", "/v1/conversations"), more].concat();
    for number in 0..200 {
        stream.write_all(&frame(HEADERS, END_HEADERS, 2 * number + 1, &head)).await.unwrap();
    }
    others_are_in_peace(&world).await;
    let is_refused = |kind, payload: &[u8]| kind == RST_STREAM && payload == REFUSED_STREAM.to_be_bytes();
    let frames = heard(&mut stream, |kind, id, payload| is_refused(kind, payload) && id == 399).await;
    let refused = frames.iter().filter(|(kind, _, payload)| is_refused(*kind, payload)).count();
    assert_eq!(refused, 72, "128 are answered, sooner or later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_or_nonsense_does_not_stay() {
    let world = World::new().await;
    let mut silent = greeted(&world).await;
    let mut nonsense = world.tcp().await;
    nonsense.write_all(&[PREFACE, &[0xff; 400]].concat()).await.unwrap();
    heard(&mut nonsense, |_, _, _| false).await;
    let mut half = world.tcp().await;
    half.write_all(&PREFACE[..10]).await.unwrap();
    others_are_in_peace(&world).await;
    heard(&mut silent, |_, _, _| false).await;
    let mut rest = Vec::new();
    let read = timeout(SOON, half.read_to_end(&mut rest)).await.expect("half a greeting is not waited for");
    read.unwrap_or_default();
}

/// curl 7.88 takes what ends a stream while it still sends for an error, and loses the answer that came before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_come_whole_although_the_body_is_still_coming() {
    let world = World::new().await;
    let good = format!("Bearer {}", world.token("ada"));
    // What a client may send without having heard of the server, and has to wait with the rest.
    const WINDOW: usize = 60_000;
    for (token, bytes, code) in [
        ("Bearer nonsense", 75_000, "auth.invalid"),
        ("", 75_000, "auth.required"),
        (&*good, 500_000, "request.too_large"),
        ("Bearer nonsense", 10, "auth.invalid"),
    ] {
        let mut stream = greeted(&world).await;
        let length = bytes.to_string();
        let mut more = [header("content-type", "application/json"), header("content-length", &length)].concat();
        if !token.is_empty() {
            more.extend(header("authorization", token));
        }
        let head = [head("POST", "/v1/conversations"), more].concat();
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &head)).await.unwrap();
        let (mut sent, mut window, mut frames) = (0, WINDOW.min(bytes), Vec::new());
        let mut has_ended = false;
        while !has_ended || sent < bytes {
            while sent < window {
                let piece = (window - sent).min(16_000);
                sent += piece;
                let last = if sent == bytes { END_STREAM } else { 0 };
                stream.write_all(&frame(DATA, last, 1, &vec![b' '; piece])).await.unwrap();
            }
            let (kind, flags, id, payload) = one(&mut stream).await.expect("the connection has ended");
            // Of the stream's window, which is smaller than the connection's.
            if kind == WINDOW_UPDATE && id == 1 {
                let more = u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                window = (window + more).min(bytes);
            }
            assert!(kind != RST_STREAM && kind != GOAWAY, "{code}: frame {kind} after {sent} of {bytes} bytes");
            has_ended |= id == 1 && matches!(kind, HEADERS | DATA) && flags & END_STREAM > 0;
            frames.push((kind, id, payload));
        }
        let said: Vec<u8> =
            frames.iter().filter(|(kind, ..)| *kind == DATA).flat_map(|(.., data)| data.clone()).collect();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(code), "{said}");
        // Nothing follows that would take it back.
        stream.write_all(&frame(PING, 0, 0, &[7; 8])).await.unwrap();
        let rest = heard(&mut stream, |kind, _, payload| kind == PING && payload == [7; 8]).await;
        assert!(rest.iter().all(|(kind, ..)| *kind != RST_STREAM && *kind != GOAWAY), "{rest:?}");
    }
}
