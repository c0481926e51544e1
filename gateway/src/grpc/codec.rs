//! Messages as bytes: what is in them is decoded where it is known which operation they are of.

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Takes whole messages, and gives them.
#[derive(Clone, Copy, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(message.len());
        out.put(message);
        Ok(())
    }
}

/// As [`Raw`], where the client has one message to say.
#[derive(Clone, Copy, Default)]
pub(super) struct Single;

/// Takes one message and refuses the next.
#[derive(Default)]
pub(super) struct Only {
    has_come: bool,
}

impl Codec for Single {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Only;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Only {
        Only::default()
    }
}

impl Decoder for Only {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        if std::mem::replace(&mut self.has_come, true) {
            return Err(Status::unimplemented(SEVERAL));
        }
        Raw.decode(message)
    }
}

/// What is said of a second message.
pub(super) const SEVERAL: &str = "a call of this method has one message, and this one has more";

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
