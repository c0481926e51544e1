//! What of an entity's log counts after its owner has died: pure, from the rows that a quorum shows.
//!
//! A slot (a seq) may hold rows of several owners. Each of them had an epoch, and wrote either *fresh* rows, for new
//! commands, or *adopted* ones, of events that it found in its own recovery. The rules:
//!
//! 1. A row of a newer epoch than one's own: somebody else owns the entity by now ([`Trouble::Superseded`]).
//! 2. Per slot the highest epoch wins.
//! 3. The base is the highest seq that anybody knew to be committed: that of the snapshot, or the watermark of any row.
//!    Up to there everything is committed, and a slot that is missing is a loss ([`Trouble::Missing`]).
//! 4. Above the base an event may have been acknowledged, or not; whoever adopts it is on the safe side, as long as it
//!    can still stand there. The walk up ends at the first slot that is empty, that holds a command which stands lower
//!    already, or whose winner is older than a fresh row further down: the owner of that fresh row had recovered fewer
//!    slots, so nobody was ever told of this one. Nothing at or above that slot was ever acknowledged.
//! 5. Adopted events are written again under one's own epoch before anything of them is shown.
//!
//! The rules were checked by exhausting small models. Counting adopted rows as fresh in rule 4 breaks them.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    event::Event,
    id::{CommandId, Epoch, Seq, UserId},
    stored::{Corrupt, LogRow},
};
use hashbrown::HashSet;

/// Where the recovery begins.
#[derive(Clone, Copy, Debug)]
pub struct Basis {
    /// The epoch of the session that recovers.
    pub own_epoch: Epoch,
    /// The committed seq that the snapshot reflects, 0 without one.
    pub snapshot_seq: Seq,
    /// The highest epoch of a fresh row at or below it.
    pub snapshot_fresh_epoch: Epoch,
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
    pub standing: Vec<Arc<Event>>,
    /// Events of former owners that may have been acknowledged: to be written again under the own epoch, as adopted,
    /// before anything of them is shown.
    pub adopted: Vec<Arc<Event>>,
    /// The highest epoch of a fresh row in what counts, the snapshot included.
    pub fresh_epoch: Epoch,
    /// Why it ends where it ends.
    pub stop: Stop,
    /// `fresh_epoch` as it was below each of the adopted events.
    fresh_below: Vec<Epoch>,
}

/// What ended the walk up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// The slot is empty: the log ends.
    #[default]
    Gap,
    /// Its command stands at a lower slot already.
    Repeated,
    /// Its row is older than a fresh row at a lower slot.
    Outdated,
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

/// One seq, and who wrote there.
struct Slot {
    /// The highest epoch, which wins.
    epoch: Epoch,
    event: Arc<Event>,
    /// The highest epoch of a fresh row, winner or not; 0 without one.
    fresh: Epoch,
}

/// Decides what of `rows` counts. `known` tells whether a command made an event at or below the snapshot; where that
/// takes a read of older id blocks, the caller asks for the adopted events afterwards and uses [`Resolved::cut`].
///
/// # Errors
/// See [`Trouble`].
pub fn resolve(
    basis: Basis,
    known: impl Fn(&UserId, CommandId) -> bool,
    rows: Vec<LogRow>,
) -> Result<Resolved, Trouble> {
    let own = basis.own_epoch;
    if let Some(newest) = rows.iter().map(|row| row.epoch).max().filter(|epoch| *epoch > own) {
        return Err(Trouble::Superseded { epoch: newest, own });
    }
    let (mut slots, base) = slots(basis, rows);
    let mut resolved = Resolved { fresh_epoch: basis.snapshot_fresh_epoch, ..Resolved::default() };
    let mut ids = HashSet::new();
    for seq in basis.snapshot_seq + 1.. {
        let Some(slot) = slots.remove(&seq) else {
            if seq <= base {
                return Err(Trouble::Missing(seq));
            }
            break;
        };
        let is_first = ids.insert((slot.event.sender.clone(), slot.event.id));
        if seq <= base {
            resolved.committed.push(slot.event);
        } else if !is_first || known(&slot.event.sender, slot.event.id) {
            resolved.stop = Stop::Repeated;
            break;
        } else if slot.epoch < resolved.fresh_epoch {
            resolved.stop = Stop::Outdated;
            break;
        } else if slot.epoch == own && resolved.adopted.is_empty() {
            resolved.standing.push(slot.event);
        } else {
            resolved.fresh_below.push(resolved.fresh_epoch);
            resolved.adopted.push(slot.event);
        }
        resolved.fresh_epoch = resolved.fresh_epoch.max(slot.fresh);
    }
    Ok(resolved)
}

/// The rows by slot, and the base.
fn slots(basis: Basis, rows: Vec<LogRow>) -> (BTreeMap<Seq, Slot>, Seq) {
    let mut base = basis.snapshot_seq;
    let mut slots = BTreeMap::new();
    for row in rows {
        base = base.max(row.cw);
        let fresh = if row.adopted { 0 } else { row.epoch };
        for event in row.events {
            if event.seq <= basis.snapshot_seq {
                continue;
            }
            if basis.trusting {
                base = base.max(event.seq);
            }
            let slot =
                slots.entry(event.seq).or_insert_with(|| Slot { epoch: row.epoch, event: Arc::clone(&event), fresh });
            slot.fresh = slot.fresh.max(fresh);
            if row.epoch > slot.epoch {
                (slot.epoch, slot.event) = (row.epoch, event);
            }
        }
    }
    (slots, base)
}

impl Resolved {
    /// Stops earlier: the command of the adopted event `seq` was found further down after all.
    pub fn cut(&mut self, seq: Seq) {
        if let Some(index) = self.adopted.iter().position(|event| event.seq >= seq) {
            self.fresh_epoch = self.fresh_below[index];
            self.adopted.truncate(index);
            self.fresh_below.truncate(index);
            self.stop = Stop::Repeated;
        }
    }
}

#[cfg(test)]
mod tests {
    use chappe_schema::{body::Body, event::Fact};
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

    /// A fresh row of one event.
    fn fresh(epoch: Epoch, seq: Seq, id: u128, cw: Seq) -> LogRow {
        LogRow { epoch, cw, adopted: false, events: vec![event(seq, id)] }
    }

    fn adopted(epoch: Epoch, seq: Seq, id: u128, cw: Seq) -> LogRow {
        LogRow { adopted: true, ..fresh(epoch, seq, id, cw) }
    }

    const OWN: Epoch = 9;

    fn basis() -> Basis {
        Basis { own_epoch: OWN, snapshot_seq: 0, snapshot_fresh_epoch: 0, trusting: false }
    }

    /// Slots and commands of committed, standing and adopted events, and why it stopped.
    type Outcome = (Vec<(Seq, u128)>, Vec<(Seq, u128)>, Vec<(Seq, u128)>, Stop);

    fn outcome(resolved: &Resolved) -> Outcome {
        let named = |events: &[Arc<Event>]| events.iter().map(|event| (event.seq, event.id.0.as_u128())).collect();
        (named(&resolved.committed), named(&resolved.standing), named(&resolved.adopted), resolved.stop)
    }

    fn check(basis: Basis, rows: &[LogRow], expected: Result<Outcome, Trouble>) {
        let resolved = resolve(basis, |_, id| id.0.as_u128() >= 1000, rows.to_vec());
        assert_eq!(resolved.as_ref().map(outcome).map_err(Clone::clone), expected);
        // A quorum shows rows in any order.
        let backwards = resolve(basis, |_, id| id.0.as_u128() >= 1000, rows.iter().rev().cloned().collect());
        assert_eq!(backwards.as_ref().map(outcome).map_err(Clone::clone), expected);
    }

    #[test]
    fn nothing_is_an_empty_log() {
        check(basis(), &[], Ok((vec![], vec![], vec![], Stop::Gap)));
    }

    #[test]
    fn a_row_of_a_newer_epoch_ends_the_session() {
        let rows = [fresh(OWN + 1, 7, 1, 0), fresh(1, 1, 2, 0)];
        check(basis(), &rows, Err(Trouble::Superseded { epoch: OWN + 1, own: OWN }));
    }

    #[test]
    fn the_highest_epoch_wins_each_slot() {
        let rows = [fresh(1, 1, 1, 0), fresh(1, 2, 2, 0), adopted(3, 1, 1, 0), fresh(3, 2, 3, 1)];
        check(basis(), &rows, Ok((vec![(1, 1)], vec![], vec![(2, 3)], Stop::Gap)));
    }

    #[test]
    fn any_watermark_makes_everything_below_it_committed() {
        // Also that of a row which wins nothing.
        let rows = [fresh(1, 1, 1, 0), fresh(1, 2, 2, 0), fresh(1, 3, 3, 2), fresh(2, 3, 4, 1)];
        check(basis(), &rows, Ok((vec![(1, 1), (2, 2)], vec![], vec![(3, 4)], Stop::Gap)));
    }

    #[test]
    fn a_missing_committed_event_is_a_loss() {
        check(basis(), &[fresh(1, 1, 1, 0), fresh(1, 4, 4, 3)], Err(Trouble::Missing(2)));
        let after = Basis { snapshot_seq: 5, ..basis() };
        check(after, &[fresh(1, 8, 8, 7)], Err(Trouble::Missing(6)));
    }

    #[test]
    fn the_snapshot_is_committed_and_rows_below_it_are_ignored() {
        let after = Basis { snapshot_seq: 2, ..basis() };
        let packed = LogRow { epoch: 1, cw: 0, adopted: false, events: vec![event(2, 2), event(3, 3)] };
        check(after, &[fresh(1, 1, 1, 0), packed], Ok((vec![], vec![], vec![(3, 3)], Stop::Gap)));
    }

    #[test]
    fn the_walk_ends_at_a_gap() {
        let rows = [fresh(1, 1, 1, 0), fresh(1, 3, 3, 0)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1)], Stop::Gap)));
    }

    #[test]
    fn the_walk_ends_where_a_command_stands_lower_already() {
        let rows = [fresh(1, 1, 1, 0), fresh(1, 2, 1, 0), fresh(1, 3, 3, 0)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1)], Stop::Repeated)));
        // In a committed slot, in the snapshot.
        let rows = [fresh(1, 1, 1, 0), fresh(1, 2, 1, 1)];
        check(basis(), &rows, Ok((vec![(1, 1)], vec![], vec![], Stop::Repeated)));
        check(basis(), &[fresh(1, 1, 1000, 0)], Ok((vec![], vec![], vec![], Stop::Repeated)));
    }

    #[test]
    fn the_walk_ends_where_a_row_is_older_than_a_fresh_one_below() {
        // Owner 2 recovered nothing and wrote slot 1 afresh, so slot 2 of owner 1 was never acknowledged.
        let rows = [fresh(2, 1, 2, 0), fresh(1, 2, 1, 0)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 2)], Stop::Outdated)));
        // Also when the fresh row is committed, or stands in the snapshot.
        let rows = [fresh(2, 1, 2, 0), fresh(2, 2, 3, 1), fresh(1, 3, 1, 0)];
        check(basis(), &rows, Ok((vec![(1, 2)], vec![], vec![(2, 3)], Stop::Outdated)));
        let after = Basis { snapshot_seq: 4, snapshot_fresh_epoch: 3, ..basis() };
        check(after, &[fresh(2, 5, 5, 0)], Ok((vec![], vec![], vec![], Stop::Outdated)));
    }

    #[test]
    fn adopted_rows_do_not_count_as_fresh() {
        // Owner 2 adopted slot 1 and died before it adopted slot 2, which may have been acknowledged by owner 1.
        let rows = [fresh(1, 1, 1, 0), adopted(2, 1, 1, 0), fresh(1, 2, 2, 0)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 1), (2, 2)], Stop::Gap)));
    }

    #[test]
    fn a_fresh_row_that_lost_its_slot_still_counts_as_fresh() {
        // Owner 2 wrote slot 1 afresh, owner 3 adopted that; slot 2 of owner 1 was never acknowledged.
        let rows = [fresh(2, 1, 2, 0), adopted(3, 1, 2, 0), fresh(1, 2, 1, 0)];
        check(basis(), &rows, Ok((vec![], vec![], vec![(1, 2)], Stop::Outdated)));
    }

    #[test]
    fn own_rows_stand_and_are_not_written_again() {
        let rows = [adopted(OWN, 1, 1, 0), fresh(OWN, 2, 2, 0)];
        check(basis(), &rows, Ok((vec![], vec![(1, 1), (2, 2)], vec![], Stop::Gap)));
        // A late row of a former owner behind own adopted ones.
        let rows = [adopted(OWN, 1, 1, 0), fresh(3, 2, 2, 0)];
        check(basis(), &rows, Ok((vec![], vec![(1, 1)], vec![(2, 2)], Stop::Gap)));
    }

    #[test]
    fn a_trusting_recovery_takes_what_is_there() {
        let trusting = Basis { trusting: true, ..basis() };
        let rows = [fresh(1, 1, 1, 0), fresh(1, 2, 2, 0), fresh(3, 3, 3, 1)];
        check(trusting, &rows, Ok((vec![(1, 1), (2, 2), (3, 3)], vec![], vec![], Stop::Gap)));
        check(trusting, &[fresh(1, 2, 2, 0)], Err(Trouble::Missing(1)));
    }

    #[test]
    fn the_fresh_epoch_is_that_of_what_counts() {
        let rows = vec![fresh(2, 1, 1, 0), fresh(4, 2, 2, 0), adopted(5, 2, 2, 1), fresh(6, 4, 4, 0)];
        let resolved = resolve(basis(), |_, _| false, rows).unwrap();
        assert_eq!(resolved.fresh_epoch, 4);
    }

    #[test]
    fn a_cut_forgets_what_stands_above() {
        let rows = vec![fresh(2, 1, 1, 0), fresh(2, 2, 2, 1), fresh(4, 3, 3, 1), fresh(5, 4, 4, 1)];
        let mut resolved = resolve(basis(), |_, _| false, rows).unwrap();
        resolved.cut(5);
        assert_eq!(outcome(&resolved), (vec![(1, 1)], vec![], vec![(2, 2), (3, 3), (4, 4)], Stop::Gap));
        resolved.cut(3);
        assert_eq!(outcome(&resolved), (vec![(1, 1)], vec![], vec![(2, 2)], Stop::Repeated));
        assert_eq!(resolved.fresh_epoch, 2);
    }

    /// Any rows at all: several owners, slots and commands, watermarks that fit nothing.
    fn any_rows() -> impl Strategy<Value = Vec<LogRow>> {
        let row = (1..=OWN, 1..6u64, 1..6u128, 0..5u64, any::<bool>());
        let row = row.prop_map(|(epoch, seq, id, cw, adopted)| LogRow {
            epoch,
            cw: cw.min(seq - 1),
            adopted,
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
            let basis = Basis { snapshot_seq, ..basis() };
            let base = rows.iter().map(|row| row.cw).max().unwrap_or(0).max(snapshot_seq);
            match resolve(basis, |_, _| false, rows.clone()) {
                Err(Trouble::Missing(seq)) => {
                    prop_assert!(seq > snapshot_seq && seq <= base);
                    prop_assert!(rows.iter().all(|row| row.events[0].seq != seq));
                }
                Err(other) => prop_assert!(false, "{other}"),
                Ok(resolved) => {
                    let all: Vec<_> = resolved.committed.iter().chain(&resolved.standing).chain(&resolved.adopted).collect();
                    for (index, event) in all.iter().enumerate() {
                        prop_assert_eq!(event.seq, snapshot_seq + 1 + index as u64);
                        let winner = rows.iter().filter(|row| row.events[0].seq == event.seq).max_by_key(|row| row.epoch).unwrap();
                        prop_assert_eq!(*event, &winner.events[0]);
                    }
                    prop_assert_eq!(snapshot_seq + resolved.committed.len() as u64, base.max(snapshot_seq));
                    // Above the base no command stands twice, and nothing is older than a fresh row below it.
                    let mut ids = HashSet::new();
                    let mut fresh_below = 0;
                    for event in &all {
                        let there = || rows.iter().filter(|row| row.events[0].seq == event.seq);
                        let first = ids.insert(event.id);
                        if event.seq > base {
                            prop_assert!(first);
                            prop_assert!(there().map(|row| row.epoch).max().unwrap() >= fresh_below);
                        }
                        fresh_below = fresh_below.max(there().filter(|row| !row.adopted).map(|row| row.epoch).max().unwrap_or(0));
                    }
                    prop_assert_eq!(resolved.fresh_epoch, fresh_below);
                    // What stands is this session's own, what is adopted begins with somebody else's.
                    for event in &resolved.standing {
                        prop_assert!(rows.iter().any(|row| row.epoch == OWN && row.events[0] == *event));
                    }
                }
            }
        }
    }
}
