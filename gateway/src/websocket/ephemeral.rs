//! What may get lost on its way to a client: of each thing only the last value waits, and never for long.

use std::sync::Arc;

use chappe_schema::{id::ConversationId, limit::EPHEMERALS_MAX};

use super::{encode, outbox::Entry};

/// What a value is of: a newer one takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// How a conversation is marked and read.
    Inbox(ConversationId),
}

/// The values that wait for one connection's writer, the oldest first.
#[derive(Default)]
pub(crate) struct Ephemerals(Vec<(Key, Arc<[u8]>)>);

/// A value's complete frame, encoded once for everybody.
pub(crate) fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Arc<[u8]> {
    let mut frame = Vec::with_capacity(384);
    encode::text(&mut frame, write);
    frame.into()
}

impl Ephemerals {
    /// Takes a value, in the place of an older one of the same thing. At the brim the oldest goes.
    pub(crate) fn put(&mut self, key: Key, frame: &Arc<[u8]>) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, waiting)) => waiting.clone_from(frame),
            None => {
                if self.0.len() >= EPHEMERALS_MAX {
                    self.0.remove(0);
                }
                self.0.push((key, Arc::clone(frame)));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that waits, to be written.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Entry> {
        self.0.drain(..).map(|(_, frame)| Entry::Shared(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_the_oldest_goes_at_the_brim() {
        let key = |n: usize| Key::Inbox(ConversationId(uuid::Uuid::from_u128(n as u128)));
        let value = |text: &str| frame(|out| out.extend_from_slice(text.as_bytes()));
        let mut ephemerals = Ephemerals::default();
        for n in 0..EPHEMERALS_MAX {
            ephemerals.put(key(n), &value("first"));
        }
        ephemerals.put(key(1), &value("second"));
        ephemerals.put(key(EPHEMERALS_MAX), &value("one more"));
        let written: Vec<Vec<u8>> = ephemerals.drain().map(|entry| entry.bytes()[2..].to_vec()).collect();
        assert_eq!((written.len(), &written[0][..]), (EPHEMERALS_MAX, &b"second"[..]));
        assert_eq!(written.last().map(Vec::as_slice), Some(&b"one more"[..]));
        assert!(ephemerals.is_empty());
    }
}
