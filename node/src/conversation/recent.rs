//! The last events of a busy conversation, from which most readers are served without the store.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{event::Event, id::Seq};

/// Events that a busy conversation keeps at hand: enough for reconnecting clients and for edits of what was just said.
const RECENT_EVENTS: usize = 32;

/// Bytes that an event takes beside its body.
const EVENT_BYTES: usize = 224;

/// Consecutive events, up to the head.
#[derive(Debug, Default)]
pub struct Recent {
    events: VecDeque<Arc<Event>>,
    /// What they take in memory. Kept, since it is asked for with every commit.
    bytes: usize,
}

impl Recent {
    /// The next event of the log.
    pub fn push(&mut self, event: &Arc<Event>) {
        self.bytes += bytes_of(event);
        self.events.push_back(Arc::clone(event));
    }

    /// Forgets what is committed and no longer recent.
    pub fn trim(&mut self, committed: Seq) {
        while self.events.len() > RECENT_EVENTS && self.events.front().is_some_and(|event| event.seq <= committed) {
            self.bytes -= self.events.pop_front().map_or(0, |event| bytes_of(&event));
        }
    }

    /// The event at a position, if it is recent.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        let first = self.events.front()?.seq;
        self.events.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// From the oldest to the head.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// Bytes that they take, roughly.
    #[must_use]
    pub const fn heap_bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes_of(event: &Event) -> usize {
    event.body_len() + EVENT_BYTES
}
