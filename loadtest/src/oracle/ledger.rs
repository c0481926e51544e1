//! What is known of every send and every place in every log. The first sighting of an event fixes its place.

use hashbrown::HashMap;
use uuid::Uuid;

use crate::history::{Conversation, Fact, User};

/// A seq further than this above everything known is not believed: it would cost memory, and no log grows so fast.
const SEQ_LEAP_MAX: u64 = 50_000_000;

/// A send's number in this ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendIndex(pub(super) u32);

/// What became of a send, as its sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pending,
    Acked,
    Failed,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Send {
    pub(super) id: Uuid,
    pub(super) user: User,
    pub(super) conversation: Conversation,
    pub(super) hash: u64,
    /// The highest seq acknowledged in the conversation before this send began.
    pub(super) floor: u64,
    /// Where it was first seen; 0 while nobody has seen it.
    pub(super) seq: u64,
    pub(super) fate: Fate,
}

/// What stands at a place of a log, without what may be erased later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Empty,
    Message(SendIndex),
    Edit {
        target: u32,
        hash: u64,
    },
    Delete {
        target: u32,
    },
    React {
        target: u32,
        user: User,
        key: u32,
        on: bool,
    },
    Join(User),
    Leave(User),
    /// Nobody's doing: it comes when it is due, in a quiet system too.
    Purged(u64),
    Other(u64),
}

/// One conversation's log, and what is counted beside it.
#[derive(Debug, Default)]
pub(super) struct Log {
    slots: Vec<Slot>,
    pub(super) acked_max: u64,
    pub(super) acked: u64,
    pub(super) started: u64,
    pub(super) finally_read: bool,
    /// Rule 12: sends under way, since when nothing succeeded, and whether something failed meanwhile.
    pub(super) pending: u32,
    pub(super) waiting_since: u64,
    pub(super) dark: bool,
    pub(super) unavailable_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    sends: Vec<Send>,
    by_id: HashMap<Uuid, SendIndex>,
    logs: Vec<Log>,
}

impl Ledger {
    pub(super) fn log(&mut self, conversation: Conversation) -> &mut Log {
        let index = conversation.0 as usize;
        if self.logs.len() <= index {
            self.logs.resize_with(index + 1, Log::default);
        }
        &mut self.logs[index]
    }

    pub(super) fn known_log(&self, conversation: Conversation) -> Option<&Log> {
        self.logs.get(conversation.0 as usize)
    }

    pub(super) fn logs(&self) -> impl Iterator<Item = (Conversation, &Log)> {
        self.logs.iter().enumerate().map(|(index, log)| (Conversation(index as u32), log))
    }

    pub(super) fn sends(&self) -> &[Send] {
        &self.sends
    }

    pub(super) fn find(&self, id: Uuid) -> Option<SendIndex> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn send(&mut self, index: SendIndex) -> &mut Send {
        &mut self.sends[index.0 as usize]
    }

    /// Enters a send; a second start of the same id changes nothing.
    pub(super) fn start(&mut self, send: Send) -> SendIndex {
        let next = SendIndex(self.sends.len() as u32);
        let index = *self.by_id.entry(send.id).or_insert(next);
        if index == next {
            self.sends.push(send);
        }
        index
    }
}

impl Log {
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What is known to stand at `seq`.
    pub(super) fn at(&self, seq: u64) -> Slot {
        seq.checked_sub(1).and_then(|index| self.slots.get(index as usize)).copied().unwrap_or(Slot::Empty)
    }

    /// Proposes what stands at `seq`: what stood there before, or `None` when the seq is beyond belief.
    pub(super) fn propose(&mut self, seq: u64, slot: Slot) -> Option<Slot> {
        if seq == 0 || seq > self.slots.len() as u64 + SEQ_LEAP_MAX {
            return None;
        }
        let index = (seq - 1) as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::Empty);
        }
        let before = self.slots[index];
        if before == Slot::Empty {
            self.slots[index] = slot;
        }
        Some(before)
    }
}

impl Slot {
    /// The message that it is about.
    pub(super) const fn target(self) -> Option<u64> {
        match self {
            Self::Edit { target, .. } | Self::Delete { target } | Self::React { target, .. } => Some(target as u64),
            _ => None,
        }
    }

    /// What a fact other than a message leaves at its place; `None` for an edit whose body was erased, which can
    /// be told from another one only by its target.
    pub(super) fn of(fact: &Fact) -> Option<Self> {
        Some(match *fact {
            Fact::Message { .. } | Fact::Edit { hash: None, .. } => return None,
            Fact::Edit { target, hash: Some(hash) } => Self::Edit { target: target as u32, hash },
            Fact::Delete { target } => Self::Delete { target: target as u32 },
            Fact::React { target, user, key, on } => Self::React { target: target as u32, user, key, on },
            Fact::Join { user } => Self::Join(user),
            Fact::Leave { user } => Self::Leave(user),
            Fact::Purged { floor } => Self::Purged(floor),
            Fact::Other { mark } => Self::Other(mark),
        })
    }
}
