//! States as bytes: short, and the same for states that differ only in the names of replicas and commands.

use super::{
    bits::{Bits, Reader, Writer},
    map::{Map, Move, Status},
    session::{Phase, Session},
    setup::{COMMANDS, EPOCHS, Flights, REPLICAS, SESSIONS, SLOTS, SNAPSHOTS, Setup, Stop, Store},
    state::State,
    store::{EVERYWHERE, Image, Row},
    variant::Variant,
};

/// Bits of a slot, an epoch, a session, a command, a set of replicas, or none of them.
const SMALL: u32 = 3;

/// Bits of a set of rows.
const ROWS: u32 = (SLOTS * EPOCHS * 2) as u32;

const _: () = assert!(SLOTS < 8 && EPOCHS < 8 && SESSIONS < 8 && COMMANDS < 8 && REPLICAS == 3 && ROWS <= 56);

/// Packs `state` behind `bytes`.
pub fn pack(setup: &Setup, state: &State, bytes: &mut Vec<u8>) {
    let mut state = *state;
    rename_commands(setup, &mut state);
    if setup.store == Store::Replicas {
        rename_replicas(&mut state);
    }
    let mut bits = Writer::new(bytes);
    walk(setup, &mut state, &mut bits);
    bits.finish();
}

/// The state that was packed like this.
pub fn unpack(setup: &Setup, bytes: &[u8]) -> State {
    let mut state = State::default();
    walk(setup, &mut state, &mut Reader::new(bytes));
    state
}

/// Whether a key may have two contents.
pub fn has_seconds(setup: &Setup) -> bool {
    let variants = [Variant::SlotAssignedAnew, Variant::RecoversOverUnfinished, Variant::NewerSnapshotIgnored];
    setup.store == Store::Replicas && variants.contains(&setup.variant)
}

// === names

/// Numbers commands in the order in which they are met.
fn rename_commands(setup: &Setup, state: &mut State) {
    let mut names = [0; COMMANDS + 1];
    let mut given = 0;
    let mut rename = |command: &mut u8| {
        if *command != 0 {
            let name = &mut names[usize::from(*command)];
            if *name == 0 {
                given += 1;
                *name = given;
            }
            *command = *name;
        }
    };
    state.acked.iter_mut().for_each(&mut rename);
    for row in state.rows.iter_mut().flatten().flatten().filter(|row| row.is_there()) {
        rename(&mut row.command);
        row.on.iter_mut().for_each(&mut rename);
    }
    for session in &mut state.sessions {
        session.commands.iter_mut().for_each(&mut rename);
    }
    if setup.has_images() {
        let moves = state.map.moves.iter_mut().flat_map(|planned| [&mut planned.delta, &mut planned.streamed]);
        for image in state.snapshots.iter_mut().chain(moves) {
            image.commands.iter_mut().for_each(&mut rename);
        }
        state.snapshots.sort_unstable_by_key(|image| (u8::MAX - image.seq, image.epoch, image.mark, image.commands));
    }
}

/// Numbers replicas by what they have.
fn rename_replicas(state: &mut State) {
    let mut columns = [(0u64, 0u64, 0); REPLICAS];
    for (replica, (rows, sessions, number)) in columns.iter_mut().enumerate() {
        for row in state.rows.iter().flatten().flatten() {
            *rows = *rows << 1 | u64::from(row.at >> replica & 1);
        }
        for session in &state.sessions {
            for set in [session.fence, session.fence_read.1, session.log_read.0] {
                *sessions = *sessions << 1 | u64::from(set >> replica & 1);
            }
        }
        *number = replica;
    }
    columns.sort_unstable();
    let rename = |set: &mut u8| *set = (0..REPLICAS).fold(0, |renamed, at| renamed | (*set >> columns[at].2 & 1) << at);
    state.rows.iter_mut().flatten().flatten().for_each(|row| rename(&mut row.at));
    for session in &mut state.sessions {
        rename(&mut session.fence);
        rename(&mut session.fence_read.1);
        rename(&mut session.log_read.0);
    }
}

// === the walk: what a state consists of, as far as a setup makes it matter

fn walk(setup: &Setup, state: &mut State, bits: &mut impl Bits) {
    walk_map(setup, &mut state.map, bits);
    let slots = usize::from(setup.slots);
    state.acked[..slots].iter_mut().for_each(|acked| bits.small(acked, SMALL));
    let versions = if has_seconds(setup) { 2 } else { 1 };
    for (slot, epochs) in state.rows[..slots].iter_mut().enumerate() {
        for row in epochs[..usize::from(state.map.epoch)].iter_mut().flat_map(|both| &mut both[..versions]) {
            walk_row(setup, row, slot, bits);
        }
    }
    for session in &mut state.sessions[..usize::from(state.map.known)] {
        walk_session(setup, session, bits);
    }
    for image in &mut state.snapshots[..usize::from(setup.snapshots).min(SNAPSHOTS)] {
        walk_image(setup, image, bits);
        bits.small(&mut image.epoch, SMALL);
    }
}

fn walk_map(setup: &Setup, map: &mut Map, bits: &mut impl Bits) {
    bits.small(&mut map.epoch, SMALL);
    bits.small(&mut map.known, SMALL);
    let known = map.known.into();
    for epoch in 0..usize::from(map.epoch) {
        bits.small(&mut map.holders[epoch], SMALL);
        bits.small(&mut map.unfenced[epoch], known);
    }
    bits.small(&mut map.expired, known);
    if setup.variant == Variant::UnfencedForgotten {
        bits.small(&mut map.marked, known);
    }
    for planned in &mut map.moves[..usize::from(setup.moves)] {
        walk_move(setup, planned, bits);
    }
}

fn walk_move(setup: &Setup, planned: &mut Move, bits: &mut impl Bits) {
    let mut status = planned.status as u8;
    bits.small(&mut status, 2);
    planned.status = [Status::None, Status::Standing, Status::Void, Status::Committed][usize::from(status)];
    if planned.status == Status::None {
        return;
    }
    for number in [&mut planned.epoch, &mut planned.to, &mut planned.became] {
        bits.small(number, SMALL);
    }
    bits.flag(&mut planned.proposed);
    bits.flag(&mut planned.confirmed);
    if planned.confirmed {
        walk_image(setup, &mut planned.delta, bits);
    }
    if setup.variant == Variant::StreamNotConfirmed {
        walk_image(setup, &mut planned.streamed, bits);
    }
}

fn walk_row(setup: &Setup, row: &mut Row, slot: usize, bits: &mut impl Bits) {
    bits.small(&mut row.command, SMALL);
    if !row.is_there() {
        return;
    }
    if setup.cw && slot > 0 {
        bits.small(&mut row.cw, SMALL);
    }
    if setup.flights == Flights::Single && slot > 0 {
        bits.flag(&mut row.joined);
    }
    match setup.stop {
        Stop::Repeated => {}
        Stop::Fresh => bits.flag(&mut row.adopted),
        Stop::Chain => {
            bits.small(&mut row.origin, SMALL);
            bits.small(&mut row.after, SMALL);
        }
    }
    if setup.history {
        row.on[..slot].iter_mut().for_each(|below| bits.small(below, SMALL));
    }
    walk_replicas(setup, &mut row.at, bits);
}

fn walk_image(setup: &Setup, image: &mut Image, bits: &mut impl Bits) {
    bits.small(&mut image.seq, SMALL);
    image.commands[..usize::from(image.seq)].iter_mut().for_each(|command| bits.small(command, SMALL));
    if image.seq > 0 && setup.has_marks() {
        bits.small(&mut image.mark, SMALL);
    }
}

fn walk_session(setup: &Setup, session: &mut Session, bits: &mut impl Bits) {
    bits.small(&mut session.epoch, SMALL);
    let mut phase = session.phase as u8;
    bits.small(&mut phase, 2);
    session.phase = [Phase::None, Phase::Holds, Phase::Sealed, Phase::Dead][usize::from(phase)];
    if setup.moves > 0 {
        bits.small(&mut session.sealed_for, 2);
    }
    walk_replicas(setup, &mut session.fence, bits);
    if setup.store == Store::Replicas {
        bits.small(&mut session.log_read.0, SMALL);
        if session.log_read.0 != 0 {
            bits.bits(&mut session.log_read.1, ROWS);
        }
    }
    bits.flag(&mut session.loaded);
    if !session.loaded {
        return;
    }
    bits.small(&mut session.len, SMALL);
    let len = usize::from(session.len);
    session.commands[..len].iter_mut().for_each(|command| bits.small(command, SMALL));
    if setup.has_marks() {
        session.marks[..len].iter_mut().for_each(|mark| bits.small(mark, SMALL));
    }
    for slot in [&mut session.found, &mut session.sent, &mut session.committed, &mut session.cw] {
        bits.small(slot, SMALL);
    }
    if setup.variant == Variant::FenceReadEarly {
        bits.small(&mut session.cleared, SMALL);
    }
    if setup.store == Store::Replicas {
        bits.small(&mut session.fence_read.0, SMALL);
        bits.small(&mut session.fence_read.1, SMALL);
    }
}

/// A set of replicas; where a quorum is not spelt out, all or none.
fn walk_replicas(setup: &Setup, set: &mut u8, bits: &mut impl Bits) {
    if setup.store == Store::Replicas {
        return bits.small(set, SMALL);
    }
    let mut is_everywhere = *set != 0;
    bits.flag(&mut is_everywhere);
    *set = if is_everywhere { EVERYWHERE } else { 0 };
}
