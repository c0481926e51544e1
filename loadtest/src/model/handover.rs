//! The planned move of an entity: the giver streams, seals, and goes on after an abort; the receiver opens it.

use super::{
    map::Status,
    session::{Phase, Session},
    setup::Setup,
    state::State,
    step::{Act, Step},
    store::Image,
    variant::Variant,
};

/// What a giver may do. `next_epoch`: what it may take up; it may give away what it has not opened.
pub fn giver_steps(setup: &Setup, state: &State, session: u8, next_epoch: Option<u8>, steps: &mut Vec<Step>) {
    let own = state.session(session);
    let mut may = |act| steps.push(Step::Act(session, act));
    if own.phase == Phase::Sealed {
        let status = state.map.moves[usize::from(own.sealed_for)].status;
        if status == Status::Void || setup.variant == Variant::ResumesOnUnknown {
            may(Act::Resume);
        }
    }
    let Some(planned) = state.map.standing().map(|number| &state.map.moves[number]) else { return };
    let holds = own.phase == Phase::Holds && own.epoch == planned.epoch;
    if holds || next_epoch == Some(planned.epoch) {
        may(Act::Seal);
    }
    if holds && setup.variant == Variant::CommitBeforeSeal && !planned.proposed {
        may(Act::Propose);
    }
    // What is streamed matters only to those who open it without asking.
    if holds && own.loaded && own.committed > 0 && setup.variant == Variant::StreamNotConfirmed {
        may(Act::Stream);
    }
}

/// What the receiver that may take up `epoch` may open the entity from. It need not: then it reads the store.
pub fn receiver_steps(setup: &Setup, state: &State, session: u8, epoch: u8, steps: &mut Vec<Step>) {
    for (number, planned) in (0..).zip(&state.map.moves).filter(|(_, planned)| planned.to == session) {
        if planned.became == epoch && planned.confirmed {
            steps.push(Step::Act(session, Act::Open(number, false)));
        }
        if setup.variant == Variant::StreamNotConfirmed && planned.streamed.seq > 0 {
            steps.push(Step::Act(session, Act::Open(number, true)));
        }
    }
}

/// It streams the entity.
pub fn stream(setup: &Setup, state: &mut State, session: u8) {
    let streamed = state.session(session).committed_image(setup);
    state.map.standing_mut().into_iter().for_each(|planned| planned.streamed = streamed);
}

/// What the delta confirms of the entity: its bytes; or nothing, and it is to be read from the store.
pub fn delta(setup: &Setup, own: &Session) -> Option<Image> {
    // What a recovery found may have been acknowledged, so nothing is confirmed before all of it is committed.
    let is_settled = own.committed >= own.found || setup.variant == Variant::DeltaBeforeAdopted;
    (own.loaded && is_settled).then(|| own.committed_image(setup))
}

/// It seals. The delta and its confirmation take time in which nothing else happens to the giver, so they take none.
pub fn seal(setup: &Setup, state: &mut State, session: u8) {
    state.take_up(session);
    let Some(number) = state.map.standing() else { return };
    let own = state.session_mut(session);
    (own.phase, own.sealed_for) = (Phase::Sealed, number as u8);
    (own.fence_read, own.log_read) = ((0, 0), (0, 0));
    let delta = delta(setup, own);
    let planned = &mut state.map.moves[number];
    (planned.proposed, planned.confirmed) = (true, delta.is_some());
    planned.delta = delta.unwrap_or_default();
}

/// It goes on as owner, with what it has in memory.
pub fn resume(setup: &Setup, state: &mut State, session: u8) {
    let own = state.session_mut(session);
    (own.phase, own.sealed_for) = (Phase::Holds, 0);
    if setup.variant == Variant::SlotAssignedAnew {
        own.len = own.committed.max(own.found);
        own.sent = own.sent.min(own.len);
        own.commands[usize::from(own.len)..].fill(0);
        own.marks[usize::from(own.len)..].fill(0);
    }
}

/// It opens the entity from what it was sent.
pub fn open(setup: &Setup, state: &mut State, session: u8, number: u8, streamed: bool) {
    state.take_up(session);
    let planned = &state.map.moves[usize::from(number)];
    let image = if streamed { planned.streamed } else { planned.delta };
    let own = state.session_mut(session);
    own.loaded = true;
    (own.commands, own.marks) = (image.commands, image.marks(setup));
    (own.len, own.sent, own.committed) = (image.seq, image.seq, image.seq);
    own.cw = if setup.cw { image.seq } else { 0 };
}

/// Whether the session has given the partition away for good.
pub fn is_over(setup: &Setup, state: &State, session: u8) -> bool {
    let own = state.session(session);
    let goes_on = [Variant::ResumesOnUnknown, Variant::CommitsWhileSealed, Variant::SealedServesReads];
    own.phase == Phase::Sealed
        && state.map.moves[usize::from(own.sealed_for)].status == Status::Committed
        && !goes_on.contains(&setup.variant)
}
