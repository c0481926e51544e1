//! Requests that wait for their answer. Ids count up over all connections, so a ring finds each in one step.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use uuid::Uuid;

/// A buffer for a line above this is not kept for the next one.
const KEPT_LINE_BYTES_MAX: usize = 4096;
const KEPT_LINES_MAX: usize = 64;

/// A message under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Where.
    pub conversation: Uuid,
    /// The client's id of the message.
    pub id: Uuid,
    /// Whatever the sender wanted to remember.
    pub tag: u64,
    /// When it was first asked for.
    pub began: Instant,
}

/// What a request is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Send(Sent),
    Request {
        tag: u64,
    },
    Change {
        tag: u64,
        id: Uuid,
    },
    Open {
        conversation: Uuid,
    },
    Page {
        reading: usize,
    },
    /// How far we have got: where, and what of it is for others.
    Progress {
        /// None where it is said again.
        tag: Option<u64>,
        said: Vec<(Uuid, u64, u64)>,
    },
    /// How far members have got, to be noted.
    Receipts {
        tag: u64,
        conversation: Uuid,
        last: bool,
    },
    /// A page of messages, to be noted.
    Messages {
        tag: u64,
        conversation: Uuid,
        last: bool,
    },
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) line: Vec<u8>,
    pub(super) purpose: Purpose,
    pub(super) began: Instant,
    /// When it was last written to a connection that still lives.
    pub(super) wired: Option<Instant>,
    /// An attempt got no answer, or one that does not say that nothing happened.
    pub(super) doubtful: bool,
    pub(super) attempts: u32,
    pub(super) retry_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    base: u64,
    slots: VecDeque<Option<Pending>>,
    waiting: usize,
    spare: Vec<Vec<u8>>,
}

impl Ring {
    pub(super) fn next_id(&self) -> u64 {
        // 0 is free for peers that answer without reading ids.
        self.base + self.slots.len() as u64 + 1
    }

    /// An empty buffer for a line.
    pub(super) fn line(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.slots.push_back(Some(pending));
        self.waiting += 1;
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Pending> {
        let index = id.checked_sub(self.base + 1)?;
        self.slots.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    /// The longest waiting request.
    pub(super) fn oldest(&self) -> Option<u64> {
        let index = self.slots.iter().position(Option::is_some)?;
        Some(self.base + 1 + index as u64)
    }

    pub(super) fn take(&mut self, id: u64) -> Option<Pending> {
        let index = usize::try_from(id.checked_sub(self.base + 1)?).ok()?;
        let pending = self.slots.get_mut(index)?.take()?;
        self.waiting -= 1;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(pending)
    }

    /// Takes a line's buffer back.
    pub(super) fn recycle(&mut self, mut line: Vec<u8>) {
        if line.capacity() <= KEPT_LINE_BYTES_MAX && self.spare.len() < KEPT_LINES_MAX {
            line.clear();
            self.spare.push(line);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Pending)> {
        let base = self.base;
        (1u64..).zip(&mut self.slots).filter_map(move |(index, slot)| Some((base + index, slot.as_mut()?)))
    }

    /// The connection is gone: nothing is on a wire, and what was may have happened.
    pub(super) fn unwire(&mut self) {
        for (_, pending) in self.iter_mut() {
            pending.doubtful |= pending.wired.take().is_some();
            pending.retry_at = None;
        }
    }

    /// Requests that are older than `give_up`.
    pub(super) fn expired(&mut self, now: Instant, give_up: Duration) -> Vec<u64> {
        self.iter_mut().filter(|(_, pending)| now.duration_since(pending.began) >= give_up).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pending() -> Pending {
        let purpose = Purpose::Request { tag: 0 };
        Pending {
            line: Vec::new(),
            purpose,
            began: Instant::now(),
            wired: None,
            doubtful: false,
            attempts: 0,
            retry_at: None,
        }
    }

    #[test]
    fn answers_in_any_order_find_their_requests() {
        let mut ring = Ring::default();
        let ids: Vec<_> = (0..5)
            .map(|_| {
                let id = ring.next_id();
                ring.push(pending());
                id
            })
            .collect();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        assert!(ring.take(3).is_some());
        assert!(ring.take(3).is_none());
        assert!(ring.take(0).is_none());
        assert!(ring.take(99).is_none());
        assert_eq!(ring.oldest(), Some(1));
        assert!(ring.take(1).is_some());
        assert!(ring.take(2).is_some());
        assert_eq!(ring.oldest(), Some(4));
        assert_eq!(ring.next_id(), 6);
        assert_eq!(ring.iter_mut().map(|(id, _)| id).collect::<Vec<_>>(), [4, 5]);
        assert!(ring.take(4).is_some());
        assert!(ring.take(5).is_some());
        assert!(ring.is_empty());
        assert_eq!(ring.next_id(), 6);
    }

    #[test]
    fn what_was_on_a_lost_wire_is_doubtful() {
        let mut ring = Ring::default();
        ring.push(Pending { wired: Some(Instant::now()), ..pending() });
        ring.push(pending());
        ring.unwire();
        assert!(ring.take(1).unwrap().doubtful);
        assert!(!ring.take(2).unwrap().doubtful);
    }
}
