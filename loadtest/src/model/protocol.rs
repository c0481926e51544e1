//! The protocol of ownership as a machine: what may happen in a state, and what comes of it.
//!
//! What needs no state of its own has none: a message that is lost is one that never arrives; a session that died is one
//! that does nothing any more; a client repeats any command to any owner at any time. Whatever is true for good may be
//! learnt at any time after, so nothing is sent to tell that it is: replies, entries of Raft's log.

use super::{
    checker::Model,
    handover, map, network, owner, pack, reading,
    session::Phase,
    setup::{Setup, Store},
    state::State,
    step::{Act, Step},
    story,
    variant::Variant,
    violation::Violation,
};

impl Model for Setup {
    type State = State;
    type Step = Step;
    type Violation = Violation;

    fn initial(&self) -> State {
        State::initial()
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        map::steps(self, state, steps);
        for session in 0..state.map.known {
            session_steps(self, state, session, steps);
        }
        if self.store == Store::Replicas {
            network::steps(state, steps);
        }
    }

    fn take(&self, state: &State, step: Step) -> Result<State, Violation> {
        let mut after = *state;
        match step {
            Step::Raft(decision) => map::decide(self, &mut after.map, decision),
            Step::Act(session, act) => take_act(self, &mut after, session, act)?,
            Step::Network(replica, parcel) => network::arrive(self, &mut after, replica, parcel)?,
        }
        tidy(self, &mut after);
        after.check(self)?;
        Ok(after)
    }

    fn pack(&self, state: &State, bytes: &mut Vec<u8>) {
        pack::pack(self, state, bytes);
    }

    fn unpack(&self, bytes: &[u8]) -> State {
        pack::unpack(self, bytes)
    }

    fn kind(&self, step: Step) -> u8 {
        step.kind()
    }

    fn weight(&self, kind: u8) -> u32 {
        Step::weight(kind)
    }

    fn tell(&self, state: &State, step: Step) -> String {
        story::tell(self, state, step)
    }
}

fn session_steps(setup: &Setup, state: &State, session: u8, steps: &mut Vec<Step>) {
    if setup.store == Store::InTurn && state.is_fenced(session) {
        return;
    }
    let own = state.session(session);
    let next_epoch = state.next_epoch(session);
    handover::giver_steps(setup, state, session, next_epoch, steps);
    if let Some(epoch) = next_epoch {
        handover::receiver_steps(setup, state, session, epoch, steps);
        reading::steps(setup, state, session, epoch, steps);
    }
    match own.phase {
        Phase::Holds if !own.loaded => reading::steps(setup, state, session, own.epoch, steps),
        Phase::Holds if state.may_act(setup, session) => owner::steps(setup, state, session, steps),
        Phase::Holds if setup.store != Store::Replicas => steps.push(Step::Act(session, Act::Fence)),
        Phase::Sealed if own.loaded && setup.variant == Variant::CommitsWhileSealed => {
            owner::commit_steps(setup, state, session, steps);
        }
        Phase::None | Phase::Holds | Phase::Sealed | Phase::Dead => {}
    }
}

fn take_act(setup: &Setup, state: &mut State, session: u8, act: Act) -> Result<(), Violation> {
    match act {
        Act::Stream => handover::stream(setup, state, session),
        Act::Seal => handover::seal(setup, state, session),
        Act::Propose => state.map.standing_mut().into_iter().for_each(|planned| planned.proposed = true),
        Act::Resume => handover::resume(setup, state, session),
        Act::Open(number, streamed) => handover::open(setup, state, session, number, streamed),
        Act::Recover(view) => {
            state.take_up(session);
            if setup.variant != Variant::LogReadEarly {
                reading::fence(state, session);
            }
            reading::recover(setup, state, session, view)?;
        }
        Act::Fence => reading::fence(state, session),
        Act::Issue(command, cw) => owner::issue(setup, state, session, command, cw)?,
        Act::Send(upto, cw) => owner::send(setup, state, session, upto, cw)?,
        Act::Commit(upto) => owner::commit(setup, state, session, upto)?,
        Act::Clear => {
            let own = state.session_mut(session);
            own.cleared = own.sent;
        }
        Act::Snapshot => {
            let image = owner::snapshot(setup, state.session(session));
            state.snapshots.iter_mut().find(|snapshot| snapshot.seq == 0).into_iter().for_each(|free| *free = image);
        }
        Act::Drop => owner::drop_entity(setup, state, session),
        Act::ReadFence(upto) => state.session_mut(session).fence_read = (upto, 0),
    }
    Ok(())
}

/// Forgets what nothing can come of any more, so that states that differ in nothing else are one.
fn tidy(setup: &Setup, state: &mut State) {
    for session in 0..state.map.known {
        let is_fenced = state.is_fenced(session);
        let is_given = handover::is_over(setup, state, session);
        let own = state.session_mut(session);
        if setup.store == Store::InTurn && is_fenced {
            own.die();
        } else if is_given {
            own.let_go();
        }
        if own.committed >= own.found {
            own.found = 0;
        }
        // Marks of committed slots but the last are asked by nobody.
        let settled = usize::from(own.committed).saturating_sub(1);
        own.marks[..settled].fill(0);
    }
    map::tidy(setup, state);
}
