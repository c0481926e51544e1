//! Frames as clients write them (RFC 6455 §5), taken out of whatever bytes have arrived.
//!
//! tungstenite's context was tried here and keeps the buffer of the largest message for the life of a connection, with
//! no way to give it back. So its parser of headers is used, and the buffer is ours: all connections of a thread read
//! into one, frames are unmasked and handed out where they lie, and only the beginning of a frame whose end has not
//! arrived is kept with the connection. A silent one holds nothing.

use std::{io::Cursor, ops::ControlFlow};

use chappe_schema::limit::FRAME_BYTES_MAX;
use tungstenite::{
    Error,
    protocol::frame::{
        FrameHeader,
        coding::{CloseCode, Control, Data, OpCode},
    },
};

use super::encode::CONTROL_BYTES_MAX;

/// What has arrived of one connection and not been handed out.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Bytes from the beginning of a frame on.
    partial: Vec<u8>,
    /// A message that comes in fragments.
    fragments: Option<Box<Fragments>>,
}

#[derive(Debug)]
struct Fragments {
    is_text: bool,
    bytes: Vec<u8>,
}

/// What a frame, or a completed message, says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// Text, checked to be UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same bytes.
    Ping(&'a [u8]),
    /// A sign of life.
    Pong,
    /// The client closes; no code if it gave none.
    Close(Option<u16>),
}

/// Who takes what a reader reads.
pub(crate) trait Sink {
    /// The largest message that is accepted now.
    fn bytes_max(&self) -> usize;

    /// One item. Breaking off keeps what follows for the next call.
    fn item(&mut self, item: Item<'_>) -> ControlFlow<()>;
}

/// The client broke the WebSocket protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A frame that must not be, close code 1002.
    Protocol(&'static str),
    /// Text that is none, 1007.
    Utf8,
    /// Larger than accepted, 1009.
    TooLarge,
}

/// Longest header: two bytes, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;

impl Reader {
    /// A reader that begins with what came behind the handshake.
    pub(crate) fn starting_with(bytes: &[u8]) -> Self {
        Self { partial: bytes.to_vec(), fragments: None }
    }

    /// Whether bytes are kept that may hold a whole frame, because the sink broke off.
    pub(crate) fn has_kept(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes `fresh` bytes, which are unmasked in place, and hands every complete item to `sink`, which can break off:
    /// the rest is kept for the next call.
    pub(crate) fn feed(&mut self, fresh: &mut [u8], sink: &mut impl Sink) -> Result<(), Broken> {
        if self.partial.is_empty() {
            let used = self.walk(fresh, sink)?;
            if used < fresh.len() {
                self.keep(&fresh[used..]);
            }
            return Ok(());
        }
        let mut kept = std::mem::take(&mut self.partial);
        kept.extend_from_slice(fresh);
        let used = self.walk(&mut kept, sink)?;
        if used < kept.len() {
            if used > 0 {
                self.keep(&kept[used..]);
            } else {
                self.partial = kept;
            }
        }
        Ok(())
    }

    /// Keeps the beginning of a frame, with room for its end.
    fn keep(&mut self, bytes: &[u8]) {
        let whole = match FrameHeader::parse(&mut Cursor::new(bytes)) {
            Ok(Some((_, length))) => (length as usize).min(FRAME_BYTES_MAX).saturating_add(HEADER_BYTES_MAX),
            _ => HEADER_BYTES_MAX,
        };
        // What a client announces is not paid for before it comes.
        let mut partial = Vec::with_capacity(whole.min(2 * bytes.len()).max(bytes.len()));
        partial.extend_from_slice(bytes);
        self.partial = partial;
    }

    /// Returns how many bytes were complete frames.
    fn walk(&mut self, bytes: &mut [u8], sink: &mut impl Sink) -> Result<usize, Broken> {
        let mut at = 0;
        loop {
            let mut cursor = Cursor::new(&bytes[at..]);
            let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(broken)? else { return Ok(at) };
            let start = at + cursor.position() as usize;
            check(&header, length, start - at)?;
            let open = self.fragments.as_ref().map_or(0, |fragments| fragments.bytes.len());
            let is_control = matches!(header.opcode, OpCode::Control(_));
            if length > sink.bytes_max().saturating_sub(if is_control { 0 } else { open }) as u64 {
                return Err(Broken::TooLarge);
            }
            let end = start + length as usize;
            let Some(payload) = bytes.get_mut(start..end) else { return Ok(at) };
            if let Some(mask) = header.mask {
                unmask(payload, mask);
            }
            at = end;
            if self.item(&header, payload, sink)?.is_break() {
                return Ok(at);
            }
        }
    }

    fn item(&mut self, header: &FrameHeader, payload: &[u8], sink: &mut impl Sink) -> Result<ControlFlow<()>, Broken> {
        match (header.opcode, header.is_final) {
            (OpCode::Data(Data::Text | Data::Binary), _) if self.fragments.is_some() => {
                Err(Broken::Protocol("a new message began inside a fragmented one"))
            }
            (OpCode::Data(Data::Text), true) => Ok(sink.item(Item::Text(text(payload)?))),
            (OpCode::Data(Data::Binary), true) => Ok(sink.item(Item::Binary(payload))),
            (OpCode::Data(kind @ (Data::Text | Data::Binary)), false) => {
                self.fragments = Some(Box::new(Fragments { is_text: kind == Data::Text, bytes: payload.to_vec() }));
                Ok(ControlFlow::Continue(()))
            }
            (OpCode::Data(Data::Continue), last) => {
                let Some(fragments) = &mut self.fragments else {
                    return Err(Broken::Protocol("a continuation without a beginning"));
                };
                fragments.bytes.extend_from_slice(payload);
                if !last {
                    return Ok(ControlFlow::Continue(()));
                }
                let Some(whole) = self.fragments.take() else { return Ok(ControlFlow::Continue(())) };
                let item = if whole.is_text { Item::Text(text(&whole.bytes)?) } else { Item::Binary(&whole.bytes) };
                Ok(sink.item(item))
            }
            (OpCode::Control(Control::Ping), _) => Ok(sink.item(Item::Ping(payload))),
            (OpCode::Control(Control::Pong), _) => Ok(sink.item(Item::Pong)),
            (OpCode::Control(Control::Close), _) => Ok(sink.item(Item::Close(close_code(payload)?))),
            (OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)), _) => {
                Err(Broken::Protocol("a frame of an unknown type"))
            }
        }
    }
}

/// What the standard demands of every frame of a client.
fn check(header: &FrameHeader, length: u64, header_bytes: usize) -> Result<(), Broken> {
    if header.mask.is_none() {
        return Err(Broken::Protocol("a frame is not masked"));
    }
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(Broken::Protocol("a reserved bit is set"));
    }
    if header.len(length) != header_bytes {
        return Err(Broken::Protocol("a length is not written in its shortest form"));
    }
    if matches!(header.opcode, OpCode::Control(_)) {
        if !header.is_final {
            return Err(Broken::Protocol("a control frame is fragmented"));
        }
        if length > CONTROL_BYTES_MAX as u64 {
            return Err(Broken::Protocol("a control frame is too long"));
        }
    }
    Ok(())
}

fn broken(error: Error) -> Broken {
    match error {
        Error::Capacity(_) => Broken::TooLarge,
        Error::Utf8(_) => Broken::Utf8,
        _ => Broken::Protocol("a frame of an unknown type"),
    }
}

fn text(payload: &[u8]) -> Result<&str, Broken> {
    std::str::from_utf8(payload).map_err(|_| Broken::Utf8)
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Broken> {
    match payload {
        [] => Ok(None),
        [_] => Err(Broken::Protocol("half a close code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !CloseCode::from(code).is_allowed() {
                return Err(Broken::Protocol("a close code that must not be sent"));
            }
            text(reason)?;
            Ok(Some(code))
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        *byte ^= mask[index & 3];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    struct Each<F>(F);

    impl<F: FnMut(Item<'_>) -> ControlFlow<()>> Sink for Each<F> {
        fn bytes_max(&self) -> usize {
            FRAME_BYTES_MAX
        }
        fn item(&mut self, item: Item<'_>) -> ControlFlow<()> {
            (self.0)(item)
        }
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            length @ ..126 => bytes.push(0x80 | length as u8),
            length @ ..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&MASK);
        bytes.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ MASK[index & 3]));
        bytes
    }

    /// Feeds `bytes` in pieces of `step` and says what came out.
    fn read(bytes: &[u8], step: usize) -> (Vec<String>, Result<(), Broken>, Reader) {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for piece in bytes.chunks(step) {
            let mut sink = Each(|item: Item<'_>| {
                seen.push(match item {
                    Item::Text(text) if text.len() > 100 => format!("Text of {}", text.len()),
                    item => format!("{item:?}"),
                });
                ControlFlow::Continue(())
            });
            let result = reader.feed(&mut piece.to_vec(), &mut sink);
            if result.is_err() {
                return (seen, result, reader);
            }
        }
        (seen, Ok(()), reader)
    }

    fn refused(bytes: &[u8]) -> Broken {
        read(bytes, 7).1.unwrap_err()
    }

    #[test]
    fn frames_come_out_however_they_arrive() {
        let mut bytes = Vec::new();
        bytes.extend(frame(0x81, b"one"));
        bytes.extend(frame(0x89, b"ping"));
        bytes.extend(frame(0x01, b"tw"));
        bytes.extend(frame(0x8A, b""));
        bytes.extend(frame(0x00, b""));
        bytes.extend(frame(0x80, b"o"));
        bytes.extend(frame(0x81, "é".repeat(200).as_bytes()));
        bytes.extend(frame(0x81, &[b'x'; 70_000]));
        bytes.extend(frame(0x82, b"\xff"));
        bytes.extend(frame(0x88, &[3, 232, b'b']));
        let expected = [
            "Text(\"one\")",
            "Ping([112, 105, 110, 103])",
            "Pong",
            "Text(\"two\")",
            "Text of 400",
            "Text of 70000",
            "Binary([255])",
            "Close(Some(1000))",
        ];
        for step in [1, 2, 3, 5, 14, 100, 4096, usize::MAX] {
            let (seen, result, reader) = read(&bytes, step);
            assert_eq!((seen, result), (expected.map(str::to_owned).to_vec(), Ok(())), "in pieces of {step}");
            assert_eq!(reader.partial.capacity(), 0, "a reader with nothing to keep holds no memory");
            assert!(reader.fragments.is_none());
        }
    }

    #[test]
    fn the_standard_is_kept() {
        let mut unmasked = frame(0x81, b"x");
        unmasked[1] = 1;
        for bytes in [
            unmasked,
            frame(0xC1, b"x"),
            frame(0x83, b"x"),
            frame(0x8B, b"x"),
            frame(0x09, b"x"),
            frame(0x89, &[0; 126]),
            frame(0x80, b"x"),
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            vec![0x81, 0x80 | 126, 0, 5, 1, 2, 3, 4, 0, 0, 0, 0, 0],
            frame(0x88, &[3]),
            frame(0x88, &[3, 237]),
        ] {
            assert!(matches!(refused(&bytes), Broken::Protocol(_)), "{bytes:?}");
        }
        assert_eq!(refused(&frame(0x81, b"\xc3\x28")), Broken::Utf8);
        assert_eq!(refused(&[frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat()), Broken::Utf8);
        assert_eq!(refused(&frame(0x88, &[3, 232, 0xff])), Broken::Utf8);
        // A character may be cut by a fragment.
        assert_eq!(read(&[frame(0x01, b"\xc3"), frame(0x80, b"\xa9")].concat(), 3).0, ["Text(\"é\")"]);
    }

    #[test]
    fn size_is_refused_before_it_arrives() {
        let huge = frame(0x81, &vec![b'x'; FRAME_BYTES_MAX + 1]);
        assert_eq!(refused(&huge[..14]), Broken::TooLarge);
        let lie = [0x81, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(refused(&lie), Broken::TooLarge);
        let half = vec![b'x'; FRAME_BYTES_MAX / 2 + 1];
        assert_eq!(refused(&[frame(0x01, &half), frame(0x80, &half)].concat()), Broken::TooLarge);
    }

    #[test]
    fn a_sink_may_break_off_and_go_on_later() {
        let bytes: Vec<u8> = (0..10u8).flat_map(|n| frame(0x81, &[b'0' + n])).collect();
        let mut reader = Reader::default();
        let mut seen = String::new();
        let mut fresh = bytes;
        while fresh.len() + reader.partial.len() > 0 {
            let mut room = 3;
            let mut sink = Each(|item: Item<'_>| {
                let Item::Text(text) = item else { panic!() };
                seen.push_str(text);
                room -= 1;
                if room == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            reader.feed(&mut fresh, &mut sink).unwrap();
            fresh.clear();
        }
        assert_eq!(seen, "0123456789");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, step in 1usize..50) {
            let _ = read(&bytes, step);
        }
    }
}
