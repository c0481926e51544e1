//! What of the log counts, from the rows that a quorum showed: the model's own version of `chappe_node::recovery`, with
//! the rules as switches. A test compares the two in every situation that a check meets.

use super::{
    setup::{EPOCHS, SLOTS, Setup, Stop},
    store::{Found, Image, Row},
    variant::Variant,
};

/// What counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many slots count.
    pub len: u8,
    /// Up to where they are committed.
    pub base: u8,
    /// Up to where they are the session's own already.
    pub standing: u8,
    /// The commands.
    pub commands: [u8; SLOTS],
    /// What the session remembers of the writers; see [`super::session::Session::marks`].
    pub marks: [u8; SLOTS],
    /// The first slot that was decided on another history than the one it would stand on, or 0.
    pub misplaced: u8,
}

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A newer owner has written.
    Superseded,
    /// A committed slot is empty.
    Missing(u8),
}

/// Decides what of `found` counts above `image`, for a session that owns `own`.
///
/// # Errors
/// See [`Trouble`].
pub fn resolve(setup: &Setup, own: u8, image: &Image, found: &Found) -> Result<Outcome, Trouble> {
    let from = usize::from(image.seq);
    let slots = from..usize::from(setup.slots);
    let rows = || found[slots.clone()].iter().flat_map(|epochs| (1..).zip(epochs)).filter(|(_, row)| row.is_there());
    let newer_row = setup.variant != Variant::NewerEpochIgnored && rows().any(|(epoch, _)| epoch > own);
    let newer_snapshot = setup.variant != Variant::NewerSnapshotIgnored && image.epoch > own;
    if newer_row || newer_snapshot {
        return Err(Trouble::Superseded);
    }
    let base = rows().map(|(_, row)| row.cw).max().unwrap_or(0).max(image.seq);
    let mut outcome = Outcome {
        len: image.seq,
        base,
        standing: base,
        commands: image.commands,
        marks: image.marks(setup),
        misplaced: 0,
    };
    for slot in slots {
        let Some(winner) = (0..EPOCHS).rev().find(|epoch| found[slot][*epoch].is_there()) else {
            if slot < usize::from(base) {
                return Err(Trouble::Missing(slot as u8 + 1));
            }
            break;
        };
        let row = &found[slot][winner];
        let is_committed = slot < usize::from(base);
        if !is_committed && is_end(setup, from, &outcome, row, slot, winner) {
            break;
        }
        if setup.history && !is_committed && outcome.misplaced == 0 && row.on[..slot] != outcome.commands[..slot] {
            outcome.misplaced = slot as u8 + 1;
        }
        outcome.commands[slot] = row.command;
        outcome.marks[slot] = match setup.stop {
            Stop::Repeated => 0,
            Stop::Fresh => fresh(setup, &found[slot]).max(below(&outcome.marks, slot)),
            Stop::Chain => row.origin,
        };
        outcome.len = slot as u8 + 1;
        if !is_committed && winner + 1 == usize::from(own) && usize::from(outcome.standing) == slot {
            outcome.standing = outcome.len;
        }
    }
    outcome.standing = outcome.standing.min(outcome.len);
    Ok(outcome)
}

/// Whether the walk that began at `from` ends before `slot`, which `row` of the epoch `winner` has won.
fn is_end(setup: &Setup, from: usize, below_it: &Outcome, row: &Row, slot: usize, winner: usize) -> bool {
    let counted_from = if setup.variant == Variant::SnapshotIdsNotCounted { from } else { 0 };
    let is_repeated =
        setup.variant != Variant::NoIdLookup && below_it.commands[counted_from..slot].contains(&row.command);
    match setup.stop {
        Stop::Repeated => is_repeated,
        Stop::Fresh => is_repeated || winner + 1 < usize::from(below(&below_it.marks, slot)),
        Stop::Chain => row.after != below(&below_it.marks, slot) && setup.variant != Variant::ChainNotCompared,
    }
}

/// The highest epoch of a fresh row in a slot.
fn fresh(setup: &Setup, slot: &[Row; EPOCHS]) -> u8 {
    let counts = |row: &Row| row.is_there() && (!row.adopted || setup.variant == Variant::AdoptedCountsAsFresh);
    (0..EPOCHS).rev().find(|epoch| counts(&slot[*epoch])).map_or(0, |epoch| epoch as u8 + 1)
}

/// The mark of the slot below `slot`.
fn below(marks: &[u8; SLOTS], slot: usize) -> u8 {
    slot.checked_sub(1).map_or(0, |below| marks[below])
}
