//! Frames as the server writes them (RFC 6455 §5.2): never masked, never in fragments.

use std::sync::{Arc, OnceLock};

use chappe_schema::{
    event::{Event, Fact},
    frame,
    id::{ConversationId, Seq},
    proto::frame::{Answer, server_frame, write_event},
};

/// How a connection's frames are encoded: its subprotocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// `chappe.v1.json`.
    #[default]
    Json,
    /// `chappe.v1.protobuf`.
    Protobuf,
}

/// An event's complete frames: each is encoded once, when it is first needed, and shared by every connection that it
/// goes to.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Whose event it is: what is dropped at the brim is remembered by conversation.
    pub(crate) conversation: ConversationId,
    /// Its place.
    pub(crate) seq: Seq,
    /// Whether it ends somebody's membership: what may get lost and came before it is written before it.
    pub(crate) parts: bool,
    event: Arc<Event>,
    /// Header and payload.
    json: OnceLock<Box<[u8]>>,
    protobuf: OnceLock<Box<[u8]>>,
}

impl Encoded {
    pub(crate) fn event(conversation: ConversationId, event: &Arc<Event>) -> Arc<Self> {
        let parts = matches!(event.fact, Fact::MemberLeft { .. } | Fact::ConversationDeleted);
        let (seq, event) = (event.seq, Arc::clone(event));
        Arc::new(Self { conversation, seq, parts, event, json: OnceLock::new(), protobuf: OnceLock::new() })
    }

    /// The frame of a format.
    pub(crate) fn frame(&self, format: Format) -> &[u8] {
        let made = match format {
            Format::Json => &self.json,
            Format::Protobuf => &self.protobuf,
        };
        made.get_or_init(|| {
            let mut frame = Vec::with_capacity(384);
            event(&mut frame, format, self.conversation, &self.event);
            frame.into_boxed_slice()
        })
    }
}

/// Appends an event's frame.
pub(crate) fn event(out: &mut Vec<u8>, format: Format, conversation: ConversationId, event: &Event) {
    write(out, format, |payload| match format {
        Format::Json => frame::write_event(payload, conversation, event),
        Format::Protobuf => write_event(payload, conversation, event),
    });
}

/// Another complete frame that is shared. Its JSON is made at once, what else is needed from that.
#[derive(Debug)]
pub(crate) struct Shared {
    json: Box<[u8]>,
    protobuf: OnceLock<Box<[u8]>>,
}

impl Shared {
    /// A frame whose payload `write` appends as JSON.
    pub(crate) fn new(write: impl FnOnce(&mut Vec<u8>)) -> Arc<Self> {
        let mut json = Vec::with_capacity(384);
        text(&mut json, write);
        Arc::new(Self { json: json.into(), protobuf: OnceLock::new() })
    }

    /// The frame of a format.
    pub(crate) fn frame(&self, format: Format) -> &[u8] {
        match format {
            Format::Json => &self.json,
            Format::Protobuf => self.protobuf.get_or_init(|| {
                let mut frame = Vec::with_capacity(self.json.len());
                translated(&mut frame, payload(&self.json), Answer::Done);
                frame.into()
            }),
        }
    }
}

/// A frame of a connection's own, whose payload `write` appends as JSON; an `ok` in it is the answer to `answer`.
pub(crate) fn own(out: &mut Vec<u8>, format: Format, answer: Answer, write: impl FnOnce(&mut Vec<u8>)) {
    match format {
        Format::Json => text(out, write),
        Format::Protobuf => {
            let mut json = Vec::with_capacity(256);
            write(&mut json);
            translated(out, &json, answer);
        }
    }
}

/// The binary frame that says what a JSON frame says.
fn translated(out: &mut Vec<u8>, json: &[u8], answer: Answer) {
    write(out, Format::Protobuf, |payload| {
        if let Err(error) = server_frame(json, answer, payload) {
            // Tests go through all of them; an empty frame is one that a client skips.
            tracing::error!(event = "frame_without_protobuf", %error);
        }
    });
}

/// What a complete frame carries.
pub(crate) fn payload(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1) {
        Some(&LENGTH_IN_8_BYTES) => 10,
        Some(&LENGTH_IN_2_BYTES) => 4,
        _ => 2,
    };
    frame.get(header..).unwrap_or_default()
}

/// Types of frames that the server writes.
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PONG: u8 = 0xA;
/// This frame is the whole message.
const FINAL: u8 = 0x80;
/// Lengths that a header's second byte cannot hold stand behind it in so many bytes.
const LENGTH_IN_2_BYTES: u8 = 126;
const LENGTH_IN_8_BYTES: u8 = 127;
/// The longest payload of a control frame.
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// Appends a text frame around whatever `write` appends.
pub(crate) fn text(out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    write(out, Format::Json, payload);
}

/// Appends a frame around whatever `payload` appends.
///
/// The length of a payload is known only once it is written, and it decides how long the header is. Room for the
/// most frequent header is left free, and the payload moves in the other cases: a few bytes for small ones, and
/// large ones are rare.
fn write(out: &mut Vec<u8>, format: Format, payload: impl FnOnce(&mut Vec<u8>)) {
    const GUESS: usize = 4;
    let start = out.len();
    out.extend_from_slice(&[0; GUESS]);
    payload(out);
    let length = out.len() - start - GUESS;
    let opcode = match format {
        Format::Json => TEXT,
        Format::Protobuf => BINARY,
    };
    let (header, size) = header(FINAL | opcode, length);
    if size < GUESS {
        out.copy_within(start + GUESS.., start + size);
        out.truncate(start + size + length);
    } else if size > GUESS {
        out.resize(start + size + length, 0);
        out.copy_within(start + GUESS..start + GUESS + length, start + size);
    }
    out[start..start + size].copy_from_slice(&header[..size]);
}

/// A pong with a ping's payload.
pub(crate) fn pong(payload: &[u8]) -> Vec<u8> {
    control(PONG, payload)
}

/// A close frame; without a code for a peer that gave none.
pub(crate) fn close(code: Option<u16>, reason: &str) -> Vec<u8> {
    let mut payload = [0; CONTROL_BYTES_MAX];
    let Some(code) = code else { return control(CLOSE, &[]) };
    payload[..2].copy_from_slice(&code.to_be_bytes());
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload[2..2 + end].copy_from_slice(&reason.as_bytes()[..end]);
    control(CLOSE, &payload[..2 + end])
}

fn control(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX)];
    let mut frame = Vec::with_capacity(2 + payload.len());
    frame.extend_from_slice(&[FINAL | opcode, payload.len() as u8]);
    frame.extend_from_slice(payload);
    frame
}

/// A header and how much of the array it takes.
fn header(first: u8, length: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = first;
    if length < usize::from(LENGTH_IN_2_BYTES) {
        header[1] = length as u8;
        (header, 2)
    } else if let Ok(length) = u16::try_from(length) {
        header[1] = LENGTH_IN_2_BYTES;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        (header, 4)
    } else {
        header[1] = LENGTH_IN_8_BYTES;
        header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
        (header, 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::protocol::frame::{
        FrameHeader,
        coding::{Control, Data, OpCode},
    };

    fn taken_apart(bytes: &[u8]) -> (OpCode, Vec<u8>, usize) {
        let mut cursor = std::io::Cursor::new(bytes);
        let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert!(header.is_final && header.mask.is_none());
        let start = cursor.position() as usize;
        assert_eq!(start, header.len(length), "the shortest form of a length is required");
        let end = start + length as usize;
        (header.opcode, bytes[start..end].to_vec(), end)
    }

    #[test]
    fn headers_are_those_of_the_standard_at_every_edge() {
        for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; length];
            let mut out = b"before".to_vec();
            text(&mut out, |out| out.extend_from_slice(&payload));
            assert_eq!(&out[..6], b"before");
            let (opcode, read, end) = taken_apart(&out[6..]);
            assert_eq!(opcode, OpCode::Data(Data::Text));
            assert_eq!(read, payload, "{length}");
            assert_eq!(super::payload(&out[6..]), payload);
            assert_eq!(end, out.len() - 6);
        }
    }

    #[test]
    fn control_frames_are_never_too_long() {
        let (opcode, payload, _) = taken_apart(&close(Some(4410), &"é".repeat(100)));
        assert_eq!(opcode, OpCode::Control(Control::Close));
        assert_eq!(&payload[..2], 4410u16.to_be_bytes());
        assert!(std::str::from_utf8(&payload[2..]).is_ok(), "a reason is cut between characters");
        assert_eq!(taken_apart(&close(None, "")).1, b"");
        assert_eq!(taken_apart(&pong(b"abc")), (OpCode::Control(Control::Pong), b"abc".to_vec(), 5));
    }
}
