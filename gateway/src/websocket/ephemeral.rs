//! What may get lost on its way to a client: of each thing only the last value waits, and never for long.

use std::sync::Arc;

use chappe_schema::{
    frame,
    id::{ConversationId, UserId},
    limit::{EPHEMERALS_MAX, PRESENCE_WATCHES_MAX},
    receipt::Receipts,
};

use super::{
    encode::{Format, Shared},
    outbox::Entry,
};

/// What a value is of: a newer one takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// How a conversation is marked and read.
    Inbox(ConversationId),
    /// Whether somebody is writing.
    Typing(ConversationId, UserId),
    /// Whether somebody is there.
    Presence(UserId),
    /// How far a conversation's members have got.
    Receipts(ConversationId),
}

/// The values that wait for one connection's writer, the oldest first.
#[derive(Default)]
pub(crate) struct Ephemerals {
    values: Vec<Waiting>,
    /// Of users whom the connection watches: as many as it may watch, so that none is dropped for another. What was dropped
    /// would not be said again before it changes.
    presences: Vec<(UserId, Arc<Shared>)>,
}

struct Waiting {
    key: Key,
    frame: Arc<Shared>,
    /// What the frame says, where a newer one says only what has moved since.
    receipts: Option<Arc<Receipts>>,
}

/// A value's complete frame, encoded once for everybody.
pub(crate) fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Arc<Shared> {
    Shared::new(write)
}

impl Ephemerals {
    /// Takes a value, in the place of an older one of the same thing. At the brim the oldest goes.
    pub(crate) fn put(&mut self, key: &Key, frame: &Arc<Shared>) {
        if let Key::Presence(user) = key {
            return match self.presences.iter_mut().find(|(known, _)| known == user) {
                Some((_, waiting)) => waiting.clone_from(frame),
                None => {
                    if self.presences.len() >= PRESENCE_WATCHES_MAX {
                        self.presences.remove(0);
                    }
                    self.presences.push((user.clone(), Arc::clone(frame)));
                }
            };
        }
        match self.values.iter_mut().find(|known| known.key == *key) {
            Some(waiting) => waiting.frame.clone_from(frame),
            None => self.push(Waiting { key: key.clone(), frame: Arc::clone(frame), receipts: None }),
        }
    }

    /// Takes a word of what has moved. One that waits says something of other members, so that the two become one.
    pub(crate) fn put_receipts(&mut self, receipts: &Arc<Receipts>, encoded: &Arc<Shared>) {
        let key = Key::Receipts(receipts.conversation);
        match self.values.iter_mut().find(|known| known.key == key) {
            Some(Waiting { frame: waiting, receipts: Some(older), .. }) => {
                let both = receipts.after(older);
                *waiting = frame(|out| frame::write_receipts(out, &both));
                *older = Arc::new(both);
            }
            _ => self.push(Waiting { key, frame: Arc::clone(encoded), receipts: Some(Arc::clone(receipts)) }),
        }
    }

    fn push(&mut self, waiting: Waiting) {
        if self.values.len() >= EPHEMERALS_MAX {
            self.values.remove(0);
        }
        self.values.push(waiting);
    }

    /// What waits of a conversation's members, to be written ahead of what ends a membership.
    pub(crate) fn take_receipts(&mut self, conversation: ConversationId, format: Format) -> Option<Entry> {
        let index = self.values.iter().position(|waiting| waiting.key == Key::Receipts(conversation))?;
        Some(Entry::Shared(self.values.remove(index).frame, format))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.presences.is_empty()
    }

    /// Everything that waits, to be written.
    pub(crate) fn drain(&mut self, format: Format) -> impl Iterator<Item = Entry> {
        let presences = self.presences.drain(..).map(|(_, frame)| frame);
        self.values
            .drain(..)
            .map(|waiting| waiting.frame)
            .chain(presences)
            .map(move |frame| Entry::Shared(frame, format))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::receipt::{Receipt, Watermarks};

    #[test]
    fn two_words_of_one_conversation_become_one() {
        let conversation = ConversationId(uuid::Uuid::nil());
        let said = |items: &[(&str, u64)]| {
            let item = |(user, read_n): &(&str, u64)| Receipt {
                user: UserId::new(user).unwrap(),
                marks: Watermarks { delivered_n: 9, read_n: *read_n },
            };
            let receipts = Arc::new(Receipts { conversation, items: items.iter().map(item).collect() });
            let encoded = frame(|out| frame::write_receipts(out, &receipts));
            (receipts, encoded)
        };
        let mut ephemerals = Ephemerals::default();
        for items in [&[("bob", 1)][..], &[("ada", 2)], &[("bob", 3)]] {
            let (receipts, encoded) = said(items);
            ephemerals.put_receipts(&receipts, &encoded);
        }
        ephemerals.put(&Key::Inbox(conversation), &frame(|out| out.extend_from_slice(b"{}")));
        let (_, both) = said(&[("ada", 2), ("bob", 3)]);
        let ahead = ephemerals.take_receipts(conversation, Format::Json).unwrap();
        assert_eq!(ahead.bytes(), both.frame(Format::Json));
        assert!(ephemerals.take_receipts(conversation, Format::Json).is_none());
        assert_eq!(ephemerals.drain(Format::Json).count(), 1);
    }

    #[test]
    fn the_last_value_counts_and_the_oldest_goes_at_the_brim() {
        let key = |n: usize| Key::Inbox(ConversationId(uuid::Uuid::from_u128(n as u128)));
        let value = |text: &str| frame(|out| out.extend_from_slice(text.as_bytes()));
        let mut ephemerals = Ephemerals::default();
        for n in 0..EPHEMERALS_MAX {
            ephemerals.put(&key(n), &value("first"));
        }
        ephemerals.put(&key(1), &value("second"));
        ephemerals.put(&key(EPHEMERALS_MAX), &value("one more"));
        let written: Vec<Vec<u8>> = ephemerals.drain(Format::Json).map(|entry| entry.bytes()[2..].to_vec()).collect();
        assert_eq!((written.len(), &written[0][..]), (EPHEMERALS_MAX, &b"second"[..]));
        assert_eq!(written.last().map(Vec::as_slice), Some(&b"one more"[..]));
        assert!(ephemerals.is_empty());
    }

    #[test]
    fn whoever_is_watched_has_a_place_of_their_own() {
        let user = |n: usize| Key::Presence(UserId::new(&format!("u{n}")).unwrap());
        let value = |text: &str| frame(|out| out.extend_from_slice(text.as_bytes()));
        let mut ephemerals = Ephemerals::default();
        for round in ["online", "away", "offline"] {
            for n in 0..PRESENCE_WATCHES_MAX {
                ephemerals.put(&user(n), &value(round));
            }
        }
        ephemerals.put(&Key::Typing(ConversationId(uuid::Uuid::nil()), UserId::new("ada").unwrap()), &value("typing"));
        let written: Vec<Vec<u8>> = ephemerals.drain(Format::Json).map(|entry| entry.bytes()[2..].to_vec()).collect();
        assert_eq!(written.len(), PRESENCE_WATCHES_MAX + 1, "a reader that slow holds one value for each, and no more");
        assert!(written[1..].iter().all(|value| value == b"offline"), "the last one");
        assert!(ephemerals.is_empty());
    }
}
