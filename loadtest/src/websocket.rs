//! WebSocket framing (RFC 6455) for both roles, without a buffer of its own while nothing is half read.
//!
//! A load tester shares its machine with the server it measures, so its own cost is part of every figure. A general
//! library keeps buffers per connection and allocates per message; this codec borrows the reader's buffer and hands
//! out slices of it. It speaks what Chappe needs: text, fragments, ping, pong, close; no extensions.

use std::fmt;

/// The largest message we take; a server that sends more is broken.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A buffer above this is given back once it is empty.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// Which end of the connection we are: clients mask, servers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We opened the connection.
    Client,
    /// We accepted it.
    Server,
}

/// What one frame or one completed message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A complete text or binary message.
    Data(&'a [u8]),
    /// A ping; answer with a pong of the same bytes.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// The other end closes, with its code (1005 when it gave none) and reason.
    Close(u16, &'a [u8]),
}

/// Frame types we write.
#[derive(Debug, Clone, Copy)]
pub enum Opcode {
    /// UTF-8 text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// Close, with a code.
    Close = 8,
    /// Ping.
    Ping = 9,
    /// Pong.
    Pong = 10,
}

/// The other end broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

/// Turns arriving bytes into [`Item`]s.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    /// The beginning of a frame whose end has not arrived.
    partial: Vec<u8>,
    /// The fragments of a message so far; `None` when none is open.
    fragments: Option<Vec<u8>>,
}

impl Decoder {
    /// A decoder for what `role` receives.
    pub fn new(role: Role) -> Self {
        Self::with(role, Vec::new())
    }

    /// A decoder that begins with bytes that came behind a handshake; feed it nothing to see them.
    pub fn with(role: Role, partial: Vec<u8>) -> Self {
        Self { role, partial, fragments: None }
    }

    /// Takes the bytes of one read and hands every complete item to `sink`. The bytes are unmasked in place.
    pub fn feed(&mut self, bytes: &mut [u8], sink: &mut impl FnMut(Item<'_>)) -> Result<(), Broken> {
        if self.partial.is_empty() {
            let used = self.consume(bytes, sink)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        let used = self.consume(&mut whole, sink)?;
        if used == whole.len() {
            whole.clear();
            if whole.capacity() > KEPT_BYTES_MAX {
                whole = Vec::new();
            }
        } else if used > 0 {
            whole.drain(..used);
        }
        self.partial = whole;
        Ok(())
    }

    fn consume(&mut self, bytes: &mut [u8], sink: &mut impl FnMut(Item<'_>)) -> Result<usize, Broken> {
        let mut at = 0;
        while let Some(header) = Header::read(&bytes[at..])? {
            if header.masked != (self.role == Role::Server) {
                return Err(Broken("a frame is masked by the wrong end"));
            }
            let start = at + header.bytes;
            let Some(payload) = bytes.get_mut(start..start + header.payload) else { break };
            if header.masked {
                mask(payload, header.key);
            }
            self.item(&header, payload, sink)?;
            at = start + header.payload;
        }
        Ok(at)
    }

    fn item(&mut self, header: &Header, payload: &[u8], sink: &mut impl FnMut(Item<'_>)) -> Result<(), Broken> {
        match (header.opcode, header.last) {
            (1 | 2, _) if self.fragments.is_some() => return Err(Broken("a new message inside a fragmented one")),
            (1 | 2, true) => sink(Item::Data(payload)),
            (1 | 2, false) => self.fragments = Some(payload.to_vec()),
            (0, last) => {
                let Some(so_far) = self.fragments.as_mut() else { return Err(Broken("a continuation of nothing")) };
                if so_far.len() + payload.len() > MESSAGE_BYTES_MAX {
                    return Err(Broken("a message is too large"));
                }
                so_far.extend_from_slice(payload);
                if last && let Some(message) = self.fragments.take() {
                    sink(Item::Data(&message));
                }
            }
            (8..=10, false) => return Err(Broken("a control frame is fragmented")),
            (8, true) => match payload {
                [] => sink(Item::Close(1005, b"")),
                [_] => return Err(Broken("a close frame with half a code")),
                [a, b, reason @ ..] => sink(Item::Close(u16::from_be_bytes([*a, *b]), reason)),
            },
            (9, true) => sink(Item::Ping(payload)),
            (10, true) => sink(Item::Pong),
            _ => return Err(Broken("an unknown opcode")),
        }
        Ok(())
    }
}

struct Header {
    opcode: u8,
    last: bool,
    masked: bool,
    key: [u8; 4],
    bytes: usize,
    payload: usize,
}

impl Header {
    /// The frame header at the start of `bytes`, or `None` until all of it has arrived.
    fn read(bytes: &[u8]) -> Result<Option<Self>, Broken> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Broken("a reserved bit is set"));
        }
        let (payload, length_bytes) = match (second & 0x7f, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
            (126 | 127, _) => return Ok(None),
            (short, _) => (u64::from(short), 0),
        };
        let opcode = first & 0x0f;
        if payload > MESSAGE_BYTES_MAX as u64 || (opcode >= 8 && payload > 125) {
            return Err(Broken("a frame is too large"));
        }
        let masked = second & 0x80 != 0;
        let mut bytes = 2 + length_bytes;
        let mut key = [0; 4];
        if masked {
            let Some(found) = rest.get(length_bytes..length_bytes + 4) else { return Ok(None) };
            key.copy_from_slice(found);
            bytes += 4;
        }
        Ok(Some(Self { opcode, last: first & 0x80 != 0, masked, key, bytes, payload: payload as usize }))
    }
}

/// Appends one unfragmented frame to `out`; a client gives the mask key, a server `None`.
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: Option<[u8; 4]>) {
    out.reserve(payload.len() + 14);
    out.push(0x80 | opcode as u8);
    let masked = if key.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ ..126 => out.push(masked | short as u8),
        middle @ 126..65536 => {
            out.push(masked | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(masked | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    if let Some(key) = key {
        out.extend_from_slice(&key);
    }
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut out[start..], key);
    }
}

fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// The client's half of the opening handshake.
pub fn handshake_request(host: &str, path: &str, protocol: &str, key: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
}

/// The server's half; `head` is the request up to and including its empty line.
pub fn handshake_answer(head: &[u8]) -> Result<String, Broken> {
    let key = header(head, "sec-websocket-key").ok_or(Broken("the handshake has no key"))?;
    let accept = tungstenite::handshake::derive_accept_key(key);
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Protocol: chappe.v1.json\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    ))
}

/// Checks the server's answer to [`handshake_request`]; gives the HTTP status when it refused.
pub fn handshake_accepted(head: &[u8], key: &str) -> Result<(), u16> {
    let status = head.split(|b| *b == b' ').nth(1).and_then(|s| std::str::from_utf8(s).ok()?.parse().ok()).unwrap_or(0);
    let expected = tungstenite::handshake::derive_accept_key(key.as_bytes());
    match status {
        101 if header(head, "sec-websocket-accept") == Some(expected.as_bytes()) => Ok(()),
        101 => Err(0),
        refused => Err(refused),
    }
}

/// Where the head of an HTTP message ends, once it has arrived.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn collect(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<String>, Broken> {
        let mut items = Vec::new();
        let mut bytes = bytes.to_vec();
        decoder.feed(&mut bytes, &mut |item| {
            items.push(match item {
                Item::Data(data) => format!("data {}", String::from_utf8_lossy(data)),
                Item::Ping(data) => format!("ping {}", String::from_utf8_lossy(data)),
                Item::Pong => "pong".into(),
                Item::Close(code, reason) => format!("close {code} {}", String::from_utf8_lossy(reason)),
            });
        })?;
        Ok(items)
    }

    #[test]
    fn what_tungstenite_writes_is_read() {
        use std::io::Cursor;
        use tungstenite::{Message, WebSocket, protocol::Role as Theirs};
        let mut peer = WebSocket::from_raw_socket(Cursor::new(Vec::new()), Theirs::Client, None);
        peer.send(Message::text("hello")).unwrap();
        peer.send(Message::text("x".repeat(70_000))).unwrap();
        peer.send(Message::Ping("are you there".into())).unwrap();
        let bytes = peer.into_inner().into_inner();
        let items = collect(&mut Decoder::new(Role::Server), &bytes).unwrap();
        assert_eq!(items[0], "data hello");
        assert_eq!(items[1].len(), 70_005);
        assert_eq!(items[2], "ping are you there");
    }

    #[test]
    fn what_we_write_tungstenite_reads() {
        use std::io::Cursor;
        use tungstenite::{Message, WebSocket, protocol::Role as Theirs};
        let mut bytes = Vec::new();
        for payload in ["short".to_owned(), "m".repeat(300), "l".repeat(70_000)] {
            encode(&mut bytes, Opcode::Text, payload.as_bytes(), Some([1, 2, 3, 4]));
        }
        let mut peer = WebSocket::from_raw_socket(Cursor::new(bytes), Theirs::Server, None);
        assert_eq!(peer.read().unwrap(), Message::text("short"));
        assert_eq!(peer.read().unwrap(), Message::text("m".repeat(300)));
        assert_eq!(peer.read().unwrap(), Message::text("l".repeat(70_000)));
    }

    #[test]
    fn fragments_become_one_message_even_around_a_ping() {
        let bytes = b"\x01\x03one\x89\x00\x80\x03two";
        assert_eq!(collect(&mut Decoder::new(Role::Client), bytes).unwrap(), ["ping ", "data onetwo"]);
    }

    #[test]
    fn broken_frames_are_refused() {
        for bytes in
            [&b"\xc1\x00"[..], b"\x80\x00", b"\x83\x00", b"\x88\x01x", b"\x81\x80\0\0\0\0", b"\x89\x7e\x00\x80"]
        {
            assert!(collect(&mut Decoder::new(Role::Client), bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_handshake_fits_itself() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let request = handshake_request("localhost", "/v1/ws", "chappe.v1.json", key);
        let answer = handshake_answer(request.as_bytes()).unwrap();
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(handshake_accepted(answer.as_bytes(), key), Ok(()));
        assert_eq!(handshake_accepted(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", key), Err(503));
        assert_eq!(head_end(answer.as_bytes()), Some(answer.len()));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_items(payloads in prop::collection::vec(".{0,200}", 1..8), cuts in prop::collection::vec(1usize..50, 1..60)) {
            let mut bytes = Vec::new();
            for payload in &payloads {
                encode(&mut bytes, Opcode::Text, payload.as_bytes(), Some([7, 0, 255, 9]));
            }
            let mut decoder = Decoder::new(Role::Server);
            let mut items = Vec::new();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                items.extend(collect(&mut decoder, now).unwrap());
                rest = later;
            }
            let expected: Vec<_> = payloads.iter().map(|p| format!("data {p}")).collect();
            prop_assert_eq!(items, expected);
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = collect(&mut Decoder::new(Role::Client), &bytes);
            let _ = collect(&mut Decoder::new(Role::Server), &bytes);
        }
    }
}
