//! Frames: a kind, a length, a checksum, and bytes of which nothing is known here. How they are gathered for a stream, and
//! found again in what a stream brings.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chappe_schema::limit::LINK_FRAME_BYTES_MAX;

use super::connection::Cause;

/// Kind (2), length (4), checksum (4), all little-endian.
pub(super) const HEADER: usize = 10;

/// Bytes of the kind and of what is framed: a length that is wrong is found by what it covers.
pub(super) fn checksum(kind: u16, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&kind.to_le_bytes()), payload)
}

pub(super) fn header(kind: u16, payload: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut rest = &mut header[..];
    rest.put_u16_le(kind);
    // Nothing longer than `LINK_FRAME_BYTES_MAX` gets here.
    rest.put_u32_le(payload.len() as u32);
    rest.put_u32_le(checksum(kind, payload));
    header
}

/// Small frames are copied together, so that a stream holds few pieces: quinn walks over those that are not acknowledged.
const COPIED_BYTES_MAX: usize = 4 * 1024;
/// Pieces begin small, for a lane that says little, and grow with what waits.
const PIECE_BYTES_MIN: usize = 1024;
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Frames for one stream, in few pieces.
#[derive(Default)]
pub(super) struct Gathered {
    pieces: Vec<Bytes>,
    /// The last piece, which still grows.
    last: BytesMut,
    bytes: usize,
    frames: u64,
}

impl Gathered {
    pub(super) fn push(&mut self, header: &[u8; HEADER], payload: Bytes) {
        let length = HEADER + payload.len();
        if payload.len() <= COPIED_BYTES_MAX {
            self.room_for(length);
            self.last.put_slice(header);
            self.last.put_slice(&payload);
        } else {
            self.room_for(HEADER);
            self.last.put_slice(header);
            self.pieces.push(self.last.split().freeze());
            self.pieces.push(payload);
        }
        self.bytes += length;
        self.frames += 1;
    }

    fn room_for(&mut self, bytes: usize) {
        if self.last.capacity() - self.last.len() < bytes {
            if !self.last.is_empty() {
                self.pieces.push(self.last.split().freeze());
            }
            self.last = BytesMut::with_capacity(self.bytes.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX).max(bytes));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// The pieces, in order.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.pieces.push(self.last.freeze());
        }
        self.pieces
    }
}

/// Finds the frames in what a stream brings. They share the buffers in which they came; only one that came in several is put
/// together.
#[derive(Default)]
pub(super) struct Found {
    /// The beginning of a frame.
    begun: BytesMut,
}

impl Found {
    /// Takes what the stream brought next, and hands on each whole frame in it.
    pub(super) fn take(&mut self, mut brought: Bytes, mut hand_on: impl FnMut(u16, Bytes)) -> Result<(), Cause> {
        loop {
            if self.begun.is_empty() {
                let Some(length) = whole(&brought)? else { break };
                let (kind, payload) = open(brought.split_to(length))?;
                hand_on(kind, payload);
                continue;
            }
            // Just as much as belongs to it: what follows need not be moved.
            let wanted = wanted(&self.begun)?;
            let piece = brought.split_to((wanted - self.begun.len()).min(brought.len()));
            self.begun.extend_from_slice(&piece);
            if self.begun.len() < wanted {
                return Ok(());
            }
            if whole(&self.begun)?.is_some() {
                let (kind, payload) = open(self.begun.split().freeze())?;
                // What is left of its room belongs to the frame.
                self.begun = BytesMut::new();
                hand_on(kind, payload);
            }
        }
        if !brought.is_empty() {
            // Not as much as it says: what it says may not be true.
            self.begun.reserve(wanted(&brought)?.min(PIECE_BYTES_MAX).max(brought.len()));
            self.begun.extend_from_slice(&brought);
        }
        Ok(())
    }

    /// Whether nothing has begun that did not end.
    pub(super) fn is_between_frames(&self) -> bool {
        self.begun.is_empty()
    }
}

/// The length of the frame at the beginning, with its header, if the header is there.
fn length(bytes: &[u8]) -> Result<Option<usize>, Cause> {
    let Some(header) = bytes.get(..HEADER) else { return Ok(None) };
    let length = (&header[2..]).get_u32_le() as usize;
    if length > LINK_FRAME_BYTES_MAX { Err(Cause::Length) } else { Ok(Some(HEADER + length)) }
}

/// The same, if all of it is there.
fn whole(bytes: &[u8]) -> Result<Option<usize>, Cause> {
    Ok(length(bytes)?.filter(|length| *length <= bytes.len()))
}

/// How many bytes it takes to know more.
fn wanted(bytes: &[u8]) -> Result<usize, Cause> {
    Ok(length(bytes)?.unwrap_or(HEADER))
}

/// The kind and the payload of a whole frame.
fn open(mut frame: Bytes) -> Result<(u16, Bytes), Cause> {
    let (kind, _, sum) = (frame.get_u16_le(), frame.get_u32_le(), frame.get_u32_le());
    if checksum(kind, &frame) == sum { Ok((kind, frame)) } else { Err(Cause::Checksum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut rest = Bytes::copy_from_slice(bytes);
        for cut in cuts {
            pieces.push(rest.split_to((*cut).min(rest.len())));
        }
        pieces.push(rest);
        pieces
    }

    fn read(pieces: Vec<Bytes>) -> Result<(Vec<(u16, Bytes)>, bool), Cause> {
        let (mut found, mut frames) = (Found::default(), Vec::new());
        for piece in pieces {
            found.take(piece, |kind, frame| frames.push((kind, frame)))?;
        }
        Ok((frames, found.is_between_frames()))
    }

    proptest! {
        #[test]
        fn frames_are_found_wherever_the_stream_was_cut(
            frames in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9000)), 0..12),
            cuts in prop::collection::vec(0_usize..3000, 0..40),
        ) {
            let mut gathered = Gathered::default();
            for (kind, payload) in &frames {
                let payload = Bytes::from(payload.clone());
                gathered.push(&header(*kind, &payload), payload);
            }
            prop_assert_eq!(gathered.frames(), frames.len() as u64);
            let total = gathered.bytes;
            let bytes = gathered.finish().concat();
            prop_assert_eq!(bytes.len(), total);
            let (read, whole) = read(cut(&bytes, &cuts)).unwrap();
            prop_assert!(whole);
            let frames: Vec<(u16, Bytes)> = frames.into_iter().map(|(kind, bytes)| (kind, bytes.into())).collect();
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn a_changed_bit_is_never_a_frame(
            payload in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let mut bytes = header(7, &payload).to_vec();
            bytes.extend_from_slice(&payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // A length that grew waits for more, and the end of the stream tells.
            match read(vec![bytes.into()]) {
                Ok((frames, whole)) => prop_assert!(frames.is_empty() && !whole),
                Err(cause) => prop_assert!(matches!(cause, Cause::Length | Cause::Checksum)),
            }
        }
    }

    #[test]
    fn a_length_is_judged_before_anything_is_kept_for_it() {
        let mut bytes = header(1, b"x").to_vec();
        bytes[2..6].copy_from_slice(&(LINK_FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(read(vec![bytes.into()]).unwrap_err(), Cause::Length);
    }

    #[test]
    fn many_small_frames_are_few_pieces() {
        let mut gathered = Gathered::default();
        for _ in 0..10_000 {
            let payload = Bytes::from_static(&[5; 200]);
            gathered.push(&header(1, &payload), payload);
        }
        assert!(gathered.finish().len() < 50);
    }
}
