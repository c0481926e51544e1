//! What of an entity's log counts after its owner has died: pure, from the rows that a quorum shows.
//!
//! A slot (a seq) may hold rows of several owners. Each of them had an epoch, and wrote either *fresh* rows, for new
//! commands, or *adopted* ones, of events that it found in its own recovery. A row names the *origin* of its event (the
//! epoch under which that was written first) and the origin of the event one slot below, in its owner's log. The rules:
//!
//! 1. A row or a snapshot of a newer epoch than one's own: somebody else owns the entity by now ([`Trouble::Superseded`]).
//! 2. Per slot the highest epoch wins.
//! 3. The base is the highest seq that anybody knew to be committed: that of the snapshot, or the watermark of any row.
//!    Up to there everything is committed, and a slot that is missing is a loss ([`Trouble::Missing`]).
//! 4. Above the base an event may have been acknowledged, or not; whoever adopts it is on the safe side, as long as it
//!    stands on what it was decided on. The walk up ends at the first slot that is empty, and at the first whose winner
//!    was written above another event than the one that stands below it here: its owner had recovered another log, so
//!    nobody was ever told of this one. Nothing at or above that slot was ever acknowledged.
//! 5. Adopted events are written again under one's own epoch, with their origins, before anything of them is shown.
//!
//! An origin and a slot name one event: an owner gives a slot to one event only, and what is adopted keeps its origin. So
//! rule 4 compares histories as Raft compares the term of the previous entry. It also keeps a command from standing twice
//! (its second owner would have found the first in this very history) and an event off a history on which it would not
//! have been allowed. The rules were checked by exhausting small models (`docs/model.md`); a weaker rule that compared
//! fresh epochs kept acknowledgements, but could put an event on a history that it was not decided on.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    event::Event,
    id::{Epoch, Seq},
    stored::{Corrupt, LogRow},
};

use crate::planted::{Bug, is};

/// Where the recovery begins.
#[derive(Clone, Copy, Debug)]
pub struct Basis {
    /// The epoch of the session that recovers.
    pub own_epoch: Epoch,
    /// The committed seq that the snapshot reflects, 0 without one.
    pub snapshot_seq: Seq,
    /// The origin of the event at that seq.
    pub snapshot_origin: Epoch,
    /// The epoch of the owner that wrote the snapshot.
    pub snapshot_owner: Epoch,
    /// Whether every row that is there counts as committed: a store with a single writer that synced at its opening.
    pub trusting: bool,
}

/// What counts: consecutive events from above the snapshot, in three runs.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Committed.
    pub committed: Vec<Arc<Event>>,
    /// Durable under the own epoch, written by this session earlier in its life. Never written again: a clean fence read
    /// that starts now commits them.
    pub standing: Vec<Found>,
    /// Events of former owners that may have been acknowledged: to be written again under the own epoch, as adopted,
    /// before anything of them is shown.
    pub adopted: Vec<Found>,
    /// The origin of the last event that is committed.
    pub committed_origin: Epoch,
    /// The origin of the last event that counts.
    pub origin: Epoch,
    /// Why it ends where it ends.
    pub stop: Stop,
}

/// An event that was found, and the epoch under which it was written first.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The event.
    pub event: Arc<Event>,
    /// Its origin.
    pub origin: Epoch,
}

/// What ended the walk up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// The slot is empty: the log ends.
    #[default]
    Gap,
    /// Its event was written above another one than stands below it here.
    Misfit,
}

/// Why an entity cannot be recovered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// A newer owner has written.
    #[error("a row of epoch {epoch} is newer than this session's {own}")]
    Superseded {
        /// The row's.
        epoch: Epoch,
        /// The session's.
        own: Epoch,
    },
    /// A committed event is missing.
    #[error("event {0} is committed, but not there")]
    Missing(Seq),
    /// The snapshot is damaged.
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] Corrupt),
}

/// One seq, and who wrote there last.
struct Slot {
    /// The highest epoch, which wins.
    epoch: Epoch,
    found: Found,
    after: Epoch,
}

/// Decides what of `rows` counts.
///
/// # Errors
/// See [`Trouble`].
pub fn resolve(basis: Basis, rows: Vec<LogRow>) -> Result<Resolved, Trouble> {
    let own = basis.own_epoch;
    // A snapshot tells of a newer owner too, whose rows it may stand for.
    let newest = rows.iter().map(|row| row.epoch).chain([basis.snapshot_owner]).max().filter(|epoch| *epoch > own);
    if let Some(newest) = newest {
        return Err(Trouble::Superseded { epoch: newest, own });
    }
    let (mut slots, base) = slots(basis, rows);
    let origin = basis.snapshot_origin;
    let mut resolved = Resolved { committed_origin: origin, origin, ..Resolved::default() };
    for seq in basis.snapshot_seq + 1.. {
        let Some(slot) = slots.remove(&seq) else {
            if seq <= base {
                return Err(Trouble::Missing(seq));
            }
            break;
        };
        let origin = slot.found.origin;
        if seq <= base {
            resolved.committed_origin = origin;
            resolved.committed.push(slot.found.event);
        } else if is(Bug::CutAtBase) {
            break;
        } else if slot.after != resolved.origin && !is(Bug::MisfitIgnored) {
            resolved.stop = Stop::Misfit;
            break;
        } else if slot.epoch == own && resolved.adopted.is_empty() {
            resolved.standing.push(slot.found);
        } else {
            resolved.adopted.push(slot.found);
        }
        resolved.origin = origin;
    }
    Ok(resolved)
}

/// The winners by slot, and the base.
fn slots(basis: Basis, rows: Vec<LogRow>) -> (BTreeMap<Seq, Slot>, Seq) {
    let mut base = basis.snapshot_seq;
    let mut slots: BTreeMap<Seq, Slot> = BTreeMap::new();
    for row in rows {
        base = base.max(row.cw);
        let (epoch, origin, mut after) = (row.epoch, row.origin, row.after);
        for event in row.events {
            let seq = event.seq;
            let slot = Slot { epoch, found: Found { event, origin }, after };
            after = origin;
            if seq <= basis.snapshot_seq {
                continue;
            }
            if basis.trusting {
                base = base.max(seq);
            }
            let is_first = !slots.contains_key(&seq);
            if slots.get(&seq).is_none_or(|there| there.epoch < epoch) && (is_first || !is(Bug::EpochNotCompared)) {
                slots.insert(seq, slot);
            }
        }
    }
    (slots, base)
}

#[cfg(test)]
mod tests {
    use chappe_schema::{
        body::Body,
        event::Fact,
        id::{CommandId, UserId},
    };
    use hashbrown::HashSet;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// The event of command `id` at `seq`.
    fn event(seq: Seq, id: u128) -> Arc<Event> {
        Arc::new(Event {
            seq,
            n: seq,
            sender: UserId::new("ada").unwrap(),
            device: None,
            id: CommandId(Uuid::from_u128(id)),
            target: 0,
            created_at: 1,
            hash: 0,
            fact: Fact::MessageNew { body: Body::parse("{}").unwrap(), mentions: None },
        })
    }

    /// A fresh row of one event, written above an event of this origin.
    fn fresh(epoch: Epoch, seq: Seq, id: u128, cw: Seq, after: Epoch) -> LogRow {
        LogRow { epoch, cw, origin: epoch, after, events: vec![event(seq, id)] }
    }

    /// The same event, written again by a later owner.
    fn adopted(epoch: Epoch, cw: Seq, row: &LogRow) -> LogRow {
        LogRow { epoch, cw, ..row.clone() }
    }

    const OWN: Epoch = 9;

    fn basis() -> Basis {
        Basis { own_epoch: OWN, snapshot_seq: 0, snapshot_origin: 0, snapshot_owner: 0, trusting: false }
    }

    /// Slots and commands of committed, standing and adopted events, and why it stopped.
    type Outcome = (Vec<(Seq, u128)>, Vec<(Seq, u128)>, Vec<(Seq, u128)>, Stop);

    fn outcome(resolved: &Resolved) -> Outcome {
        let named = |event: &Arc<Event>| (event.seq, event.id.0.as_u128());
        let found = |found: &[Found]| found.iter().map(|found| named(&found.event)).collect();
        let committed = resolved.committed.iter().map(named).collect();
        (committed, found(&resolved.standing), found(&resolved.adopted), resolved.stop)
    }

    fn check(basis: Basis, rows: &[LogRow], expected: Result<Outcome, Trouble>) {
        let resolved = resolve(basis, rows.to_vec());
        assert_eq!(resolved.as_ref().map(outcome).map_err(Clone::clone), expected);
        // A quorum shows rows in any order.
        let backwards = resolve(basis, rows.iter().rev().cloned().collect());
        assert_eq!(backwards.as_ref().map(outcome).map_err(Clone::clone), expected);
    }

    #[test]
    fn nothing_is_an_empty_log() {
        check(basis(), &[], Ok((vec![], vec![], vec![], Stop::Gap)));
    }

    #[test]
    fn a_row_of_a_newer_epoch_ends_the_session() {
        let rows = [fresh(OWN + 1, 7, 1, 0, 1), fresh(1, 1, 2, 0, 0)];
        check(basis(), &rows, Err(Trouble::Superseded { epoch: OWN + 1, own: OWN }));
        // Or its snapshot, which may be all that is left of it.
        let after = Basis { snapshot_seq: 3, snapshot_owner: OWN + 2, ..basis() };
        check(after, &[], Err(Trouble::Superseded { epoch: OWN + 2, own: OWN }));
    }

    #[test]
    fn the_highest_epoch_wins_each_slot() {
        let first = fresh(1, 1, 1, 0, 0);
        let rows = [first.clone(), fresh(1, 2, 2, 0, 1), adopted(3, 0, &first), fresh(3, 2, 3, 1, 1)];
        check(basis(), &rows, Ok((vec![(1, 1)], vec![], vec![(2, 3)], Stop::Gap)));
    }

    #[test]
    fn any_watermark_makes_everything_below_it_committed() {
        // Also that of a row which wins nothing.
        let rows = [fresh(1, 1, 1, 0, 0), fresh(1, 2, 2, 0, 1), fresh(1, 3, 3, 2, 1), fresh(2, 3, 4, 1, 1)];
        check(basis(), &rows, Ok((vec![(1, 1), (2, 2)], vec![], vec![(3, 4)], Stop::Gap)));
    }

    #[test]
    fn a_missing_committed_event_is_a_loss() {
        check(basis(), &[fresh(1, 1, 1, 0, 0), fresh(1, 4, 4, 3, 1)], Err(Trouble::Missing(2)));
        let after = Basis { snapshot_seq: 5, snapshot_origin: 1, ..basis() };
        check(after, &[fresh(1, 8, 8, 7, 1)], Err(Trouble::Missing(6)));
    }

    #[test]
    fn the_snapshot_is_committed_and_rows_below_it_are_ignored() {
        let after = Basis { snapshot_seq: 2, snapshot_origin: 1, ..basis() };
        let packed = LogRow { epoch: 1, cw: 0, origin: 1, after: 1, events: vec![event(2, 2), event(3, 3)] };
        check(after, &[fresh(1, 1, 1, 0, 0), packed], Ok((vec![], vec![], vec![(3, 3)], Stop::Gap)));
    }

    #[test]
    fn the_walk_ends_at_a_gap() {
        let rows = [fresh(1, 1, 1, 0, 0), fresh(1, 3, 3, 0, 1)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1)], Stop::Gap)));
    }

    #[test]
    fn the_walk_ends_where_an_event_was_written_above_another_one() {
        // Owner 2 recovered nothing and wrote slot 1 afresh, so slot 2 of owner 1 was never acknowledged.
        let rows = [fresh(2, 1, 2, 0, 0), fresh(1, 2, 1, 0, 1)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 2)], Stop::Misfit)));
        // Also when what stands below is committed, or in the snapshot.
        let rows = [fresh(2, 1, 2, 0, 0), fresh(2, 2, 3, 1, 2), fresh(1, 3, 1, 0, 1)];
        check(basis(), &rows, Ok((vec![(1, 2)], vec![], vec![(2, 3)], Stop::Misfit)));
        let after = Basis { snapshot_seq: 4, snapshot_origin: 3, ..basis() };
        check(after, &[fresh(2, 5, 5, 0, 2)], Ok((vec![], vec![], vec![], Stop::Misfit)));
        check(after, &[fresh(4, 5, 5, 0, 3)], Ok((vec![], vec![], vec![(5, 5)], Stop::Gap)));
    }

    /// The model's trace: a row that was adopted hides under which epoch its event was written, unless it says so.
    #[test]
    fn an_adopted_row_below_does_not_hide_that_what_stands_above_belongs_elsewhere() {
        // Owner 1 wrote [a, b], of which one replica knows; owner 2 saw nothing and wrote [c]; owner 3 adopted that. Whoever
        // comes after owner 3 and sees all of it must not put b on c.
        let c = fresh(2, 1, 3, 0, 0);
        let rows = [fresh(1, 1, 1, 0, 0), fresh(1, 2, 2, 0, 1), c.clone(), adopted(3, 0, &c)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 3)], Stop::Misfit)));
    }

    #[test]
    fn a_later_event_of_a_newer_owner_does_not_stand_on_what_that_owner_never_saw() {
        // Owner 2 wrote [b, c], but slot 1 of it is not to be seen; slot 1 of owner 1 is.
        let rows = [fresh(1, 1, 1, 0, 0), fresh(2, 2, 3, 0, 2)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1)], Stop::Misfit)));
    }

    #[test]
    fn what_was_adopted_in_part_goes_on_with_what_it_was_written_with() {
        // Owner 2 adopted slot 1 and died before it adopted slot 2, which may have been acknowledged by owner 1.
        let first = fresh(1, 1, 1, 0, 0);
        let rows = [first.clone(), adopted(2, 0, &first), fresh(1, 2, 2, 0, 1)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1), (2, 2)], Stop::Gap)));
    }

    #[test]
    fn own_rows_stand_and_are_not_written_again() {
        let first = fresh(3, 1, 1, 0, 0);
        let rows = [adopted(OWN, 0, &first), fresh(OWN, 2, 2, 0, 3)];
        check(basis(), &rows, Ok((vec![], vec![(1, 1), (2, 2)], vec![], Stop::Gap)));
        // A late row of a former owner behind own adopted ones.
        let rows = [adopted(OWN, 0, &first), fresh(3, 2, 2, 0, 3)];
        check(basis(), &rows, Ok((vec![], vec![(1, 1)], vec![(2, 2)], Stop::Gap)));
    }

    #[test]
    fn a_trusting_recovery_takes_what_is_there() {
        let trusting = Basis { trusting: true, ..basis() };
        // A single writer's rows do not say what they stand on.
        let rows = [fresh(1, 1, 1, 0, 0), fresh(1, 2, 2, 0, 0), fresh(3, 3, 3, 1, 0)];
        check(trusting, &rows, Ok((vec![(1, 1), (2, 2), (3, 3)], vec![], vec![], Stop::Gap)));
        check(trusting, &[fresh(1, 2, 2, 0, 0)], Err(Trouble::Missing(1)));
    }

    #[test]
    fn origins_are_kept() {
        let second = fresh(4, 2, 2, 1, 2);
        let rows = vec![fresh(2, 1, 1, 0, 0), second.clone(), adopted(5, 1, &second), fresh(6, 4, 4, 0, 4)];
        let resolved = resolve(basis(), rows).unwrap();
        assert_eq!((resolved.committed_origin, resolved.origin, resolved.adopted[0].origin), (2, 4, 4));
    }

    /// Any rows at all: several owners, slots and commands, watermarks and origins that fit nothing.
    fn any_rows() -> impl Strategy<Value = Vec<LogRow>> {
        let row = (1..=OWN, 1..6u64, 1..6u128, 0..5u64, 0..3u64, 0..3u64);
        let row = row.prop_map(|(epoch, seq, id, cw, origin, after)| LogRow {
            epoch,
            cw: cw.min(seq - 1),
            origin: origin.min(epoch),
            after,
            events: vec![event(seq, id)],
        });
        proptest::collection::vec(row, 0..12).prop_map(|mut rows| {
            // What stands at a slot under an epoch never changes.
            let mut seen = HashSet::new();
            rows.retain(|row| seen.insert((row.epoch, row.events[0].seq)));
            rows
        })
    }

    proptest! {
        #[test]
        fn whatever_is_there_the_outcome_is_dense_and_right(rows in any_rows(), snapshot_seq in 0..3u64) {
            let basis = Basis { snapshot_seq, snapshot_origin: 1, ..basis() };
            let base = rows.iter().map(|row| row.cw).max().unwrap_or(0).max(snapshot_seq);
            match resolve(basis, rows.clone()) {
                Err(Trouble::Missing(seq)) => {
                    prop_assert!(seq > snapshot_seq && seq <= base);
                    prop_assert!(rows.iter().all(|row| row.events[0].seq != seq));
                }
                Err(other) => prop_assert!(false, "{other}"),
                Ok(resolved) => {
                    let above = resolved.standing.iter().chain(&resolved.adopted).map(|found| &found.event);
                    let all: Vec<_> = resolved.committed.iter().chain(above).collect();
                    let mut below = 1;
                    for (index, event) in all.iter().enumerate() {
                        prop_assert_eq!(event.seq, snapshot_seq + 1 + index as u64);
                        let there = rows.iter().filter(|row| row.events[0].seq == event.seq);
                        let winner = there.max_by_key(|row| row.epoch).unwrap();
                        prop_assert_eq!(*event, &winner.events[0]);
                        // Above the base everything stands on what it was written on.
                        prop_assert!(event.seq <= base || winner.after == below);
                        below = winner.origin;
                    }
                    prop_assert_eq!(resolved.origin, below);
                    prop_assert_eq!(snapshot_seq + resolved.committed.len() as u64, base.max(snapshot_seq));
                    // What stands is this session's own, what is adopted begins with somebody else's.
                    for found in &resolved.standing {
                        prop_assert!(rows.iter().any(|row| row.epoch == OWN && row.events[0] == found.event));
                    }
                }
            }
        }
    }
}
