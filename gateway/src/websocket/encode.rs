//! Frames as the server writes them (RFC 6455 §5.2): never masked, never in fragments.

use std::sync::Arc;

use chappe_schema::{
    event::Event,
    frame,
    id::{ConversationId, Seq},
};

/// An event's complete frame, encoded once and shared by every connection that it goes to.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Whose event it is: what is dropped at the brim is remembered by conversation.
    pub(crate) conversation: ConversationId,
    /// Its place.
    pub(crate) seq: Seq,
    /// Header and payload.
    pub(crate) frame: Box<[u8]>,
}

impl Encoded {
    pub(crate) fn event(conversation: ConversationId, event: &Event) -> Arc<Self> {
        let mut frame = Vec::with_capacity(384);
        text(&mut frame, |payload| frame::write_event(payload, conversation, event));
        Arc::new(Self { conversation, seq: event.seq, frame: frame.into_boxed_slice() })
    }
}

/// Types of frames that the server writes.
const TEXT: u8 = 0x1;
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
///
/// The length of a payload is known only once it is written, and it decides how long the header is. Room for the
/// most frequent header is left free, and the payload moves in the other cases: a few bytes for small ones, and
/// large ones are rare.
pub(crate) fn text(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    const GUESS: usize = 4;
    let start = out.len();
    out.extend_from_slice(&[0; GUESS]);
    write(out);
    let length = out.len() - start - GUESS;
    let (header, size) = header(FINAL | TEXT, length);
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
