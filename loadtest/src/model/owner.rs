//! The owner of an entity that is in its memory: it gives commands their slots, sends rows, commits, writes snapshots.

use super::{
    pack,
    session::Session,
    setup::{Flights, Setup, Stop, Store},
    state::State,
    step::{Act, Step},
    store::{Image, Row, is_quorum},
    variant::Variant,
    violation::Violation,
};

/// What it may do.
pub fn steps(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    let own = state.session(session);
    // A key has two contents at most, and only where that is what is done wrong.
    let is_spent = state.own_rows(own).nth(own.sent.into()).is_some_and(|[_, second]| second.is_there());
    if !is_spent {
        match setup.flights {
            Flights::Pipelined => pipelined_steps(setup, state, session, steps),
            Flights::Single => flight_steps(setup, state, session, steps),
        }
    }
    commit_steps(setup, state, session, steps);
    if setup.snapshots > 0 {
        let image = snapshot(setup, own);
        let has_room = state.snapshots[..usize::from(setup.snapshots)].iter().any(|snapshot| snapshot.seq == 0);
        if has_room && image.seq > 0 && !state.snapshots.contains(&image) {
            steps.push(Step::Act(session, Act::Snapshot));
        }
    }
    let is_finished = setup.store != Store::Replicas
        || setup.variant == Variant::RecoversOverUnfinished
        || state.own_rows(own).all(|[row, _]| !row.is_there() || is_quorum(row.at));
    if setup.evictions && is_finished {
        steps.push(Step::Act(session, Act::Drop));
    }
}

fn pipelined_steps(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    let own = state.session(session);
    // The highest committed seq that was known when the row was issued: not below that of the row before.
    let watermarks = if setup.cw { own.cw..=own.committed } else { 0..=0 };
    if own.sent < own.len {
        steps.extend(watermarks.map(|cw| Step::Act(session, Act::Send(own.sent + 1, cw))));
    } else if own.len < setup.slots {
        let new = new_commands(setup, state, own);
        let issue = |command| watermarks.clone().map(move |cw| Step::Act(session, Act::Issue(command, cw)));
        steps.extend(new.flat_map(issue));
    }
}

fn flight_steps(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    let own = state.session(session);
    if own.len < setup.slots {
        steps.extend(new_commands(setup, state, own).map(|command| Step::Act(session, Act::Issue(command, 0))));
    }
    if own.sent == own.committed {
        // Adopted rows and fresh ones do not fly together.
        let last = if own.sent < own.found { own.found } else { own.len };
        let cw = if setup.cw { own.committed } else { 0 };
        steps.extend((own.sent + 1..=last).map(|upto| Step::Act(session, Act::Send(upto, cw))));
    }
}

/// The commands that a client may send to an owner and that are new to it.
fn new_commands(setup: &Setup, state: &State, own: &Session) -> impl Iterator<Item = u8> {
    // They are numbered as they come, and those that nobody has sent yet are all alike.
    let rows = state.rows.iter().flatten().flatten().map(|row| row.command);
    let sessions = state.sessions.iter().flat_map(|session| session.commands);
    let used = rows.chain(sessions).max().unwrap_or(0);
    let known = own.commands;
    (1..=setup.commands.min(used + 1)).filter(move |command| !known.contains(command))
}

/// What may be acknowledged. A fence read that is clean was clean when it began, so where a quorum is not spelt out it
/// takes no time; and what is durable counts from the moment when that is used.
pub fn commit_steps(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    let own = state.session(session);
    let is_fenced = state.is_fenced(session);
    let durable = durable(setup, state, own);
    let mut commit = |upto| steps.extend((own.committed + 1..=upto).map(|upto| Step::Act(session, Act::Commit(upto))));
    match (setup.variant, setup.store) {
        (Variant::NoFenceRead, _) => commit(durable),
        (Variant::FenceReadEarly, _) => {
            commit(durable.min(own.cleared));
            if own.cleared < own.sent && !is_fenced {
                steps.push(Step::Act(session, Act::Clear));
            }
        }
        (_, Store::Quorum | Store::InTurn) if is_fenced => {}
        (_, Store::Quorum | Store::InTurn) => commit(durable),
        (_, Store::Replicas) => {
            let begins = own.committed.max(own.fence_read.0) + 1..=durable;
            steps.extend(begins.map(|upto| Step::Act(session, Act::ReadFence(upto))));
        }
    }
}

/// Up to where the own rows are durable, or may be by the time when they are committed.
fn durable(setup: &Setup, state: &State, own: &Session) -> u8 {
    if setup.store != Store::Replicas {
        return own.sent;
    }
    let is_durable = |(_, [first, second]): &(u8, &[Row; 2])| match (first.is_there(), second.is_there()) {
        (_, true) => is_quorum(second.at),
        (true, false) => is_quorum(first.at),
        (false, false) => setup.variant == Variant::AdoptedNotRewritten,
    };
    let uncommitted = (1..=own.sent).zip(state.own_rows(own)).skip(own.committed.into());
    uncommitted.take_while(is_durable).last().map_or(own.committed, |(slot, _)| slot)
}

/// It gives a command the next slot.
///
/// # Errors
/// See [`send`].
pub fn issue(setup: &Setup, state: &mut State, session: u8, command: u8, cw: u8) -> Result<(), Violation> {
    let own = state.session_mut(session);
    own.commands[usize::from(own.len)] = command;
    if setup.has_marks() {
        own.marks[usize::from(own.len)] = own.epoch;
    }
    own.len += 1;
    let slot = own.len;
    if setup.flights == Flights::Pipelined { send(setup, state, session, slot, cw) } else { Ok(()) }
}

/// It sends its rows up to `upto`.
///
/// # Errors
/// One of them was sent with another content before.
pub fn send(setup: &Setup, state: &mut State, session: u8, upto: u8, cw: u8) -> Result<(), Violation> {
    let own = *state.session(session);
    for slot in own.sent..upto {
        let at = usize::from(slot);
        let mut row = Row { command: own.commands[at], cw, joined: slot > own.sent, ..Row::default() };
        match setup.stop {
            Stop::Repeated => {}
            Stop::Fresh => row.adopted = slot < own.found,
            Stop::Chain => {
                row.origin = own.marks[at];
                row.after = at.checked_sub(1).map_or(0, |below| own.marks[below]);
            }
        }
        if setup.history {
            row.on[..at].copy_from_slice(&own.commands[..at]);
        }
        put(setup, &mut state.rows[at][usize::from(own.epoch) - 1], row)
            .map_err(|()| Violation::Rewritten(slot + 1, own.epoch))?;
    }
    let own = state.session_mut(session);
    (own.sent, own.cw) = (upto, cw);
    Ok(())
}

/// Puts a row under its key, which must be free or have it already; or may have two contents.
fn put(setup: &Setup, versions: &mut [Row; 2], row: Row) -> Result<(), ()> {
    if !versions[0].is_there() {
        versions[0] = row;
    } else if (Row { at: 0, ..versions[0] }) != row {
        if !pack::has_seconds(setup) || versions[1].is_there() {
            return Err(());
        }
        versions[1] = row;
    }
    Ok(())
}

/// It commits and acknowledges up to `upto`.
///
/// # Errors
/// What it acknowledges was acknowledged otherwise.
pub fn commit(setup: &Setup, state: &mut State, session: u8, upto: u8) -> Result<(), Violation> {
    let own = *state.session(session);
    for slot in own.committed..upto {
        let at = usize::from(slot);
        if setup.store != Store::Replicas {
            state.rows[at][usize::from(own.epoch) - 1][0].settle();
        }
        state.acknowledge(slot + 1, own.commands[at])?;
    }
    state.session_mut(session).committed = upto;
    Ok(())
}

/// The entity leaves its memory.
pub fn drop_entity(setup: &Setup, state: &mut State, session: u8) {
    let own = state.session_mut(session);
    own.forget();
    let epoch = usize::from(own.epoch) - 1;
    // By now all that was sent is durable.
    if setup.store != Store::Replicas && setup.variant != Variant::RecoversOverUnfinished {
        state.rows.iter_mut().for_each(|epochs| epochs[epoch][0].settle());
    }
}

/// The snapshot that it would write now.
pub fn snapshot(setup: &Setup, own: &Session) -> Image {
    let image = match setup.variant {
        Variant::SnapshotAhead => own.image(setup, own.len, own.len),
        Variant::SnapshotFreshAbove | Variant::SnapshotOriginAbove => own.image(setup, own.committed, own.len),
        Variant::SnapshotForgetsFresh | Variant::SnapshotForgetsOrigin => own.image(setup, own.committed, 0),
        _ => own.committed_image(setup),
    };
    Image { epoch: own.epoch, ..image }
}
