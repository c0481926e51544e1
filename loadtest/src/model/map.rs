//! The map: what Raft decides. To the model it is one list of decisions in one order, which sessions learn as late as
//! they like.

use super::{
    session::Phase,
    setup::{EPOCHS, MOVES, Setup},
    state::State,
    step::{Decision, Step},
    store::Image,
    variant::Variant,
};

/// The holder of an epoch that nobody will take up any more.
pub const NOBODY: u8 = 7;

/// What Raft has decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// The newest epoch.
    pub epoch: u8,
    /// Who was given each epoch.
    pub holders: [u8; EPOCHS],
    /// `unfenced`, as the holder of each epoch found it.
    pub unfenced: [u8; EPOCHS],
    /// The sessions that are expired.
    pub expired: u8,
    /// Those that were taken off `unfenced`.
    pub marked: u8,
    /// How many sessions were ever heard of.
    pub known: u8,
    /// The planned moves.
    pub moves: [Move; MOVES],
}

/// A planned move, and what its giver has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// What became of it.
    pub status: Status,
    /// The giver's epoch.
    pub epoch: u8,
    /// The receiver.
    pub to: u8,
    /// The receiver's epoch, once it is committed.
    pub became: u8,
    /// Whether its commit was proposed.
    pub proposed: bool,
    /// Whether a delta confirms the entity.
    pub confirmed: bool,
    /// At what.
    pub delta: Image,
    /// What was streamed last before.
    pub streamed: Image,
}

/// What became of a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// It was not begun.
    #[default]
    None,
    /// It is planned.
    Standing,
    /// It was aborted, or voided by an expiry.
    Void,
    /// The owner has changed.
    Committed,
}

impl Map {
    /// The owner.
    pub fn owner(&self) -> u8 {
        self.holders[usize::from(self.epoch) - 1]
    }

    /// What the session that took up `epoch` must fence.
    pub fn to_fence(&self, epoch: u8) -> u8 {
        self.unfenced[usize::from(epoch) - 1]
    }

    /// The number of the move that stands.
    pub fn standing(&self) -> Option<usize> {
        self.moves.iter().position(|planned| planned.status == Status::Standing)
    }

    /// The move that stands.
    pub fn standing_mut(&mut self) -> Option<&mut Move> {
        self.moves.iter_mut().find(|planned| planned.status == Status::Standing)
    }

    fn is_live(&self, session: u8) -> bool {
        self.expired >> session & 1 == 0
    }

    fn expire(&mut self, session: u8) {
        self.expired |= 1 << session;
        let owner = self.owner();
        if let Some(planned) = self.standing_mut().filter(|planned| planned.to == session || owner == session) {
            planned.status = Status::Void;
        }
    }

    fn assign(&mut self, to: u8, unfenced: u8) {
        self.holders[usize::from(self.epoch)] = to;
        self.unfenced[usize::from(self.epoch)] = unfenced;
        self.epoch += 1;
        self.known = self.known.max(to + 1);
    }
}

/// What Raft may decide next.
pub fn steps(setup: &Setup, state: &State, steps: &mut Vec<Step>) {
    let map = &state.map;
    let mut may = |decision| steps.push(Step::Raft(decision));
    let has_epochs = map.epoch < setup.epochs;
    // Sessions that were never heard of are all alike: the next one stands for them.
    let heirs = || (0..setup.sessions.min(map.known + 1)).filter(|to| map.is_live(*to) && *to != map.owner());
    let standing = map.standing();
    if has_epochs {
        heirs().for_each(|to| may(Decision::Expire(to)));
    }
    if let Some(number) = standing {
        may(Decision::Abort);
        // Anybody else who owns nothing may expire too, and nothing follows from it.
        may(Decision::Lose(map.moves[number].to));
    } else if has_epochs && map.moves[..usize::from(setup.moves)].iter().any(|planned| planned.status == Status::None) {
        heirs().for_each(|to| may(Decision::Plan(to)));
    }
    for (number, planned) in (0..).zip(&map.moves).filter(|(_, planned)| has_epochs && planned.proposed) {
        let committed = match (planned.status, setup.variant) {
            (Status::Standing, _) => Some(number),
            (Status::Void, Variant::AbortedMoveCommits) => Some(number).filter(|_| map.is_live(planned.to)),
            // Another one stands, between the same two.
            (Status::Void, Variant::CommitNamesNoMove) => {
                let is_like =
                    |other: &usize| map.moves[*other].epoch == planned.epoch && map.moves[*other].to == planned.to;
                standing.filter(is_like).map(|other| other as u8)
            }
            _ => None,
        };
        committed.into_iter().for_each(|number| may(Decision::Commit(number)));
    }
    if setup.variant == Variant::UnfencedForgotten {
        let begun = map.to_fence(map.epoch) & !map.marked;
        (0..map.known).filter(|session| begun >> session & 1 == 1).for_each(|session| may(Decision::Mark(session)));
    }
}

/// Raft has decided.
pub fn decide(setup: &Setup, map: &mut Map, decision: Decision) {
    match decision {
        Decision::Expire(to) => {
            let owner = map.owner();
            map.expire(owner);
            let unfenced = match setup.variant {
                Variant::FencesOnlyLast => 1 << owner,
                _ => map.expired & !map.marked,
            };
            map.assign(to, unfenced);
        }
        Decision::Lose(session) => map.expire(session),
        Decision::Plan(to) => {
            map.known = map.known.max(to + 1);
            let epoch = map.epoch;
            if let Some(free) = map.moves.iter_mut().find(|planned| planned.status == Status::None) {
                *free = Move { status: Status::Standing, epoch, to, ..Move::default() };
            }
        }
        Decision::Abort => map.standing_mut().into_iter().for_each(|planned| planned.status = Status::Void),
        Decision::Commit(number) => {
            let became = map.epoch + 1;
            let planned = &mut map.moves[usize::from(number)];
            (planned.status, planned.became) = (Status::Committed, became);
            let to = planned.to;
            let unfenced = match setup.variant {
                Variant::FencesOnlyLast | Variant::MoveFencesNobody => 0,
                _ => map.expired & !map.marked,
            };
            map.assign(to, unfenced);
        }
        Decision::Mark(session) => map.marked |= 1 << session,
    }
}

/// Forgets what nothing can come of any more.
pub fn tidy(setup: &Setup, state: &mut State) {
    let keeps_moves = [Variant::StreamNotConfirmed, Variant::AbortedMoveCommits, Variant::CommitNamesNoMove];
    let sessions = state.sessions;
    for planned in state.map.moves.iter_mut().filter(|_| !keeps_moves.contains(&setup.variant)) {
        let is_over = match planned.status {
            Status::Void => true,
            Status::Committed => {
                let receiver = &sessions[usize::from(planned.to)];
                receiver.phase == Phase::Dead || receiver.epoch >= planned.became
            }
            Status::None | Status::Standing => false,
        };
        if is_over {
            *planned = Move { status: planned.status, ..Move::default() };
        }
    }
    let fenced =
        (0..state.map.known).filter(|session| state.is_fenced(*session)).fold(0, |set, session| set | 1 << session);
    for epoch in 0..usize::from(state.map.epoch) {
        state.map.unfenced[epoch] &= !fenced;
        let holder = state.map.holders[epoch];
        let is_taken = holder != NOBODY && {
            let own = state.session(holder);
            own.phase == Phase::Dead || usize::from(own.epoch) > epoch
        };
        if is_taken && epoch + 1 < usize::from(state.map.epoch) {
            state.map.holders[epoch] = NOBODY;
        }
    }
}
