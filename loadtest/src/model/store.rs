//! What the store holds: rows of the log and snapshots, on their way or there.

use super::setup::{EPOCHS, REPLICAS, SLOTS, Setup};

/// The rows that were sent, by slot, epoch, and whether it is a second content under the same key.
pub type Rows = [[[Row; 2]; EPOCHS]; SLOTS];

/// The rows that a quorum showed, by slot and epoch.
pub type Found = [[Row; EPOCHS]; SLOTS];

/// All replicas.
pub const EVERYWHERE: u8 = (1 << REPLICAS) - 1;

/// A row of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    /// The command; 0 where there is no row.
    pub command: u8,
    /// The committed watermark.
    pub cw: u8,
    /// Whether a successor wrote it again.
    pub adopted: bool,
    /// Whether it was sent together with the one below it, and arrives with it or not at all.
    pub joined: bool,
    /// The epoch under which the event was written first, and that of the event one slot below
    /// ([`super::setup::Stop::Chain`]).
    pub origin: u8,
    /// See above.
    pub after: u8,
    /// The commands below it when it was decided ([`Setup::history`]).
    pub on: [u8; SLOTS],
    /// The replicas that have it. Where a quorum is not spelt out: all of them, or none.
    pub at: u8,
}

/// The bytes of a snapshot, in the store or on the way to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Image {
    /// Up to where it goes; 0 where there is none.
    pub seq: u8,
    /// The epoch of its writer; 0 on the way between nodes.
    pub epoch: u8,
    /// The commands up to there.
    pub commands: [u8; SLOTS],
    /// The mark of its last slot; see [`super::session::Session::marks`].
    pub mark: u8,
}

/// What a session sees when it reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The number of the snapshot.
    pub snapshot: Option<u8>,
    /// The rows, as bits: see [`place`].
    pub rows: u64,
}

/// Whether a quorum is among `replicas`.
pub fn is_quorum(replicas: u8) -> bool {
    replicas.count_ones() as usize > REPLICAS / 2
}

/// Every replica.
pub fn replicas() -> impl Iterator<Item = u8> {
    0..REPLICAS as u8
}

/// The slot and the epoch, from 0, and the version of a row's bit.
pub fn place(bit: usize) -> (usize, usize, usize) {
    (bit / 2 / EPOCHS, bit / 2 % EPOCHS, bit % 2)
}

/// The rows that are there, with their bits.
pub fn present(rows: &Rows) -> impl Iterator<Item = (usize, &Row)> {
    rows.iter().flatten().flatten().enumerate().filter(|(_, row)| row.is_there())
}

/// The rows whose replicas fit, as bits.
pub fn seen(rows: &Rows, fits: impl Fn(u8) -> bool) -> u64 {
    present(rows).filter(|(_, row)| fits(row.at)).fold(0, |seen, (bit, _)| seen | 1 << bit)
}

/// The rows that were seen.
pub fn found(rows: &Rows, seen: u64) -> Found {
    let mut found = Found::default();
    // Of two contents under one key the first one stays.
    for bit in (0..SLOTS * EPOCHS * 2).rev().filter(|bit| seen >> bit & 1 == 1) {
        let (slot, epoch, version) = place(bit);
        found[slot][epoch] = rows[slot][epoch][version];
    }
    found
}

impl Row {
    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.command != 0
    }

    /// It is durable, if it is there; where a quorum is not spelt out.
    pub fn settle(&mut self) {
        self.at = if self.is_there() { EVERYWHERE } else { 0 };
    }
}

impl Image {
    /// The marks of the slots up to it, as far as it tells them.
    pub fn marks(&self, setup: &Setup) -> [u8; SLOTS] {
        let mut marks = [0; SLOTS];
        if let Some(last) = self.seq.checked_sub(1).filter(|_| setup.has_marks()) {
            marks[usize::from(last)] = self.mark;
        }
        marks
    }
}
