//! A successor fences its predecessors and reads the log.

use super::{
    recovery::{self, Trouble},
    setup::{EPOCHS, Flights, SLOTS, Setup, Store},
    state::State,
    step::{Act, Parcel, Step},
    store::{self, EVERYWHERE, View, found, is_quorum, place},
    variant::Variant,
    violation::Violation,
};

/// What the session that owns `epoch` may read. Where a quorum is not spelt out, it fences and reads at one moment: who
/// could still commit something in between is fenced, and what others send may be seen or not in any case. Of all that it
/// may see, each outcome is tried once.
pub fn steps(setup: &Setup, state: &State, session: u8, epoch: u8, steps: &mut Vec<Step>) {
    if setup.store == Store::Replicas {
        if setup.variant == Variant::LogReadEarly || state.are_fenced(state.map.to_fence(epoch)) {
            answers(setup, state, session, steps);
        }
        return;
    }
    let mut outcomes = Vec::new();
    views(setup, state, epoch, |view| {
        let found = found(&state.rows, view.rows);
        let outcome = recovery::resolve(setup, epoch, &state.snapshot(view.snapshot), &found);
        // Who sees a row of a newer owner is dead, which is as good as doing nothing.
        if outcome != Err(Trouble::Superseded) && !outcomes.contains(&outcome) {
            outcomes.push(outcome);
            steps.push(Step::Act(session, Act::Recover(view)));
        }
    });
}

/// The answers that a read of the log may get from replicas.
fn answers(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    let (asked, _) = state.session(session).log_read;
    for replica in store::replicas().filter(|replica| asked >> replica & 1 == 0) {
        let mut may = |snapshot| steps.push(Step::Network(replica, Parcel::LogAnswer(session, snapshot)));
        may(None);
        if asked != 0 {
            written(setup, state).for_each(|snapshot| may(Some(snapshot)));
        }
    }
}

/// The snapshots that were sent: any of them may be seen, or none.
fn written(setup: &Setup, state: &State) -> impl Iterator<Item = u8> {
    (0..setup.snapshots).filter(|number| state.snapshots[usize::from(*number)].seq > 0)
}

/// Everything that the session which owns `epoch` may see when it reads the log now, where a quorum is not spelt out: a
/// snapshot that was sent, or none; all rows above it that are durable; and any of those that are not. A row of a newer
/// owner need not be seen, durable or not: the read may have begun before.
pub fn views(setup: &Setup, state: &State, epoch: u8, mut view: impl FnMut(View)) {
    let (mut certain, mut possible) = (0, 0);
    for (bit, row) in store::present(&state.rows) {
        let is_newer = place(bit).1 + 1 > usize::from(epoch);
        if row.at != 0 && !is_newer {
            certain |= 1 << bit;
        } else {
            possible |= 1u64 << bit;
        }
    }
    for snapshot in std::iter::once(None).chain(written(setup, state).map(Some)) {
        let from = usize::from(state.snapshot(snapshot).seq);
        let above = u64::MAX << (from * EPOCHS * 2);
        let (certain, possible) = (certain & above, possible & above);
        let mut subset = 0u64;
        loop {
            let rows = certain | subset;
            if !is_torn(setup, state, rows, from) {
                view(View { snapshot, rows });
            }
            // The next one, in the order of numbers.
            subset = subset.wrapping_sub(possible) & possible;
            if subset == 0 {
                break;
            }
        }
    }
}

/// Whether a flight is seen in part, above `from`.
fn is_torn(setup: &Setup, state: &State, rows: u64, from: usize) -> bool {
    const BELOW: usize = EPOCHS * 2;
    let is_joined = |bit: &usize| {
        let (slot, epoch, version) = place(*bit);
        slot > from && state.rows[slot][epoch][version].joined
    };
    let is_parted = |bit: usize| (rows >> bit ^ rows >> (bit - BELOW)) & 1 == 1;
    setup.flights == Flights::Single && (BELOW..SLOTS * BELOW).filter(is_joined).any(is_parted)
}

/// The fences that a session must write are at quorum.
pub fn fence(state: &mut State, session: u8) {
    let list = state.map.to_fence(state.session(session).epoch);
    for (number, fenced) in state.sessions.iter_mut().enumerate() {
        if list >> number & 1 == 1 {
            fenced.fence = EVERYWHERE;
        }
    }
}

/// It recovers the entity from what it has seen.
///
/// # Errors
/// A committed slot is not what it was, or what is adopted cannot stand where it stands.
pub fn recover(setup: &Setup, state: &mut State, session: u8, view: View) -> Result<(), Violation> {
    let epoch = state.session(session).epoch;
    let image = state.snapshot(view.snapshot);
    let resolve = |rows| recovery::resolve(setup, epoch, &image, &found(&state.rows, rows));
    let resolved = match resolve(view.rows) {
        // It reads once more, and by now sees everything that is durable.
        Err(Trouble::Missing(_)) => resolve(view.rows | store::seen(&state.rows, is_quorum)),
        resolved => resolved,
    };
    let outcome = match resolved {
        Ok(outcome) => outcome,
        Err(Trouble::Missing(slot)) => return Err(Violation::Lost(slot)),
        Err(Trouble::Superseded) => {
            state.session_mut(session).die();
            return Ok(());
        }
    };
    let mut claims = (1..=outcome.base).zip(outcome.commands).zip(state.acked);
    if let Some(((slot, _), _)) = claims.find(|((_, claimed), acked)| claimed != acked) {
        return Err(Violation::Claim(slot));
    }
    if outcome.misplaced > 0 {
        return Err(Violation::Misplaced(outcome.misplaced));
    }
    let own = state.session_mut(session);
    own.loaded = true;
    own.commands = outcome.commands;
    own.marks = if setup.has_marks() { outcome.marks } else { [0; SLOTS] };
    if setup.variant == Variant::AdoptedGetsNewOrigin {
        own.marks[usize::from(outcome.standing)..usize::from(outcome.len)].fill(epoch);
    }
    (own.len, own.found, own.committed) = (outcome.len, outcome.len, outcome.base);
    own.sent = if setup.variant == Variant::AdoptedNotRewritten { outcome.len } else { outcome.standing };
    own.cw = if setup.cw { outcome.base } else { 0 };
    Ok(())
}
