//! Where three replicas are spelt out: what arrives at them, and their answers.

use super::{
    owner, reading,
    session::Phase,
    setup::Setup,
    state::State,
    step::{Parcel, Step},
    store::{self, View, is_quorum, place},
    variant::Variant,
    violation::Violation,
};

/// What may arrive: everything that was sent and is not there yet, and answers to reads of fences. (Answers to reads of
/// the log: [`reading::steps`].)
pub fn steps(state: &State, steps: &mut Vec<Step>) {
    for replica in store::replicas() {
        let is_missing = |set: u8| set >> replica & 1 == 0;
        let mut may = |parcel| steps.push(Step::Network(replica, parcel));
        for (bit, _) in store::present(&state.rows).filter(|(_, row)| is_missing(row.at) && !row.joined) {
            may(Parcel::Row(bit as u8));
        }
        let begun = (1..=state.map.epoch).fold(0, |begun, epoch| begun | state.map.to_fence(epoch));
        for session in 0..state.map.known {
            let own = state.session(session);
            // Once a fence is at quorum, another one changes nothing.
            if begun >> session & 1 == 1 && !is_quorum(own.fence) && is_missing(own.fence) {
                may(Parcel::Fence(session));
            }
            let (covers, asked) = own.fence_read;
            if covers > 0 && own.phase == Phase::Holds && is_missing(asked) {
                may(Parcel::FenceAnswer(session));
            }
        }
    }
}

/// It arrives.
///
/// # Errors
/// What follows from it must never be.
pub fn arrive(setup: &Setup, state: &mut State, replica: u8, parcel: Parcel) -> Result<(), Violation> {
    match parcel {
        Parcel::Row(bit) => {
            row_arrives(setup, state, replica, bit);
            Ok(())
        }
        Parcel::Fence(session) => {
            state.session_mut(session).fence |= 1 << replica;
            Ok(())
        }
        Parcel::FenceAnswer(session) => {
            let own = state.session_mut(session);
            if own.fence >> replica & 1 == 1 {
                own.die();
                return Ok(());
            }
            own.fence_read.1 |= 1 << replica;
            let (upto, asked) = own.fence_read;
            if !is_quorum(asked) {
                return Ok(());
            }
            own.fence_read = (0, 0);
            owner::commit(setup, state, session, upto)
        }
        Parcel::LogAnswer(session, snapshot) => {
            state.take_up(session);
            let shown = store::seen(&state.rows, |at| at >> replica & 1 == 1);
            let own = state.session_mut(session);
            own.log_read.0 |= 1 << replica;
            own.log_read.1 |= shown;
            let (asked, rows) = own.log_read;
            if !is_quorum(asked) {
                return Ok(());
            }
            own.log_read = (0, 0);
            reading::recover(setup, state, session, View { snapshot, rows })
        }
    }
}

/// A row arrives, with those that fly with it, and takes the place of what has the same key.
fn row_arrives(setup: &Setup, state: &mut State, replica: u8, bit: u8) {
    let here = 1u8 << replica;
    let (slot, epoch, version) = place(bit.into());
    for (above, epochs) in state.rows[slot..].iter_mut().enumerate() {
        if above > 0 && !epochs[epoch][version].joined {
            break;
        }
        if setup.variant == Variant::EpochNotInKey {
            epochs.iter_mut().flatten().for_each(|row| row.at &= !here);
        }
        epochs[epoch].iter_mut().for_each(|row| row.at &= !here);
        epochs[epoch][version].at |= here;
    }
}
