//! What a shard may do in each partition, and what becomes of questions where it may not.
//!
//! A partition is *open* under the epoch of its assignment: its entities decide and acknowledge. Before that it is
//! *opening* (predecessors are being fenced) and its questions wait. For a planned move it is *sealed*: nothing new is
//! begun, and what is on its way ends; then it is *cut*: the successor has been told what stands, so nothing more may
//! be let out, whatever the log answers, until the move is known to have come to nothing.

use std::collections::{BTreeSet, VecDeque};

use chappe_schema::{
    id::{Epoch, GatewayId, Partition, partitions},
    limit::PARTITION_PARKED_MAX,
    wire::{Asked, AskedAccess, Connecting, Lane},
};
use hashbrown::HashMap;
use std::sync::Arc;

use crate::planted::{Bug, is};

/// What may be done in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tenure {
    /// It is somebody else's.
    #[default]
    Absent,
    /// It will be this session's: questions wait.
    Opening,
    /// Its entities decide and acknowledge.
    Open(Epoch),
    /// Nothing new is begun; questions wait.
    Sealed(Epoch),
    /// Nothing is let out any more, unless the move is aborted.
    Cut(Epoch),
}

/// What a gateway asks.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Command(Arc<Asked>),
    Connect(Arc<Connecting>),
    Access(Arc<AskedAccess>),
}

/// Every partition's tenure, and the lanes that are out of step.
pub(super) struct Tenures {
    all: Box<[Tenure]>,
    /// What waits until a partition is open (again), in order.
    parked: HashMap<Partition, VecDeque<(GatewayId, Lane, Question)>>,
    /// Lanes that were refused or sent again, until their gateway is gone: few.
    lanes: HashMap<(GatewayId, Partition), Attempt>,
    /// What was this node's once and was taken from it, with whatever waited in it.
    left: BTreeSet<Partition>,
}

/// The newest attempt of a lane, and whether the rest of it counts for nothing.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    number: u32,
    refused: bool,
}

/// Whether a question of a lane counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is to be looked at.
    Current,
    /// An earlier question of the same attempt was refused, and so is this one.
    Refused,
    /// Its queue has been sent again since.
    Outdated,
}

impl Tenures {
    /// All partitions in the same state.
    pub(super) fn all(tenure: Tenure) -> Self {
        Self {
            all: vec![tenure; partitions()].into(),
            parked: HashMap::new(),
            lanes: HashMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// Another session: what the former one owned is forgotten. What gateways were refused is not: what still arrives of those
    /// attempts is refused by this session too, or a later question would overtake an earlier one (seed 92).
    pub(super) fn begin_anew(&mut self, tenure: Tenure) {
        for partition in (0..self.all.len()).map(|number| Partition(number as u16)) {
            if self.at(partition) != Tenure::Absent {
                self.leave(partition);
            }
        }
        self.all.fill(tenure);
        self.parked.clear();
    }

    /// A partition is somebody else's, and what waited in it is forgotten. Its lanes may not know yet when it is this node's
    /// again: whatever comes of an attempt of before is refused, or it would overtake what was forgotten (seed 775).
    pub(super) fn leave(&mut self, partition: Partition) {
        self.set(partition, Tenure::Absent);
        self.left.insert(partition);
        for (_, attempt) in self.lanes.iter_mut().filter(|((_, of), _)| *of == partition) {
            attempt.refused = true;
        }
    }

    pub(super) fn at(&self, partition: Partition) -> Tenure {
        self.all.get(usize::from(partition.0)).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, partition: Partition, tenure: Tenure) {
        if let Some(place) = self.all.get_mut(usize::from(partition.0)) {
            *place = tenure;
        }
    }

    /// The epoch under which its entities may decide now.
    pub(super) fn open(&self, partition: Partition) -> Option<Epoch> {
        match self.at(partition) {
            Tenure::Open(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// Whether what was decided may be let out.
    pub(super) fn may_release(&self, partition: Partition) -> bool {
        matches!(self.at(partition), Tenure::Open(_) | Tenure::Sealed(_))
    }

    /// Whether a question of this lane is to be looked at.
    pub(super) fn standing(&mut self, from: GatewayId, lane: Lane) -> Standing {
        if self.lanes.is_empty() && self.left.is_empty() && lane.attempt == 0 {
            return Standing::Current;
        }
        // Of a lane that was never out of step nobody knows whether it was there before: then its first attempt was.
        let first = Attempt { number: lane.attempt, refused: lane.attempt == 0 && self.left.contains(&lane.partition) };
        let known = self.lanes.entry((from, lane.partition)).or_insert(first);
        if lane.attempt < known.number {
            return Standing::Outdated;
        }
        if lane.attempt > known.number {
            *known = Attempt { number: lane.attempt, refused: false };
        }
        if known.refused && !is(Bug::LaneOutOfOrder) { Standing::Refused } else { Standing::Current }
    }

    /// Whatever comes later of this attempt is refused too.
    pub(super) fn refuse(&mut self, from: GatewayId, lane: Lane) {
        self.lanes.insert((from, lane.partition), Attempt { number: lane.attempt, refused: true });
    }

    /// A gateway is gone, with its lanes.
    pub(super) fn forget(&mut self, gateway: GatewayId) {
        self.lanes.retain(|(from, _), _| *from != gateway);
        for parked in self.parked.values_mut() {
            parked.retain(|(from, ..)| *from != gateway);
        }
    }

    /// Keeps a question until the partition is open; `false` when too many wait.
    pub(super) fn park(&mut self, from: GatewayId, lane: Lane, question: Question) -> bool {
        let parked = self.parked.entry(lane.partition).or_default();
        if parked.len() >= PARTITION_PARKED_MAX {
            return false;
        }
        parked.push_back((from, lane, question));
        true
    }

    /// What waited for the partition, in order.
    pub(super) fn unpark(&mut self, partition: Partition) -> VecDeque<(GatewayId, Lane, Question)> {
        self.parked.remove(&partition).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: GatewayId = GatewayId(1);

    fn lane(attempt: u32) -> Lane {
        Lane { partition: Partition(7), attempt }
    }

    #[test]
    fn a_refused_question_takes_the_rest_of_its_attempt_with_it() {
        let mut tenures = Tenures::all(Tenure::Absent);
        assert_eq!(tenures.standing(GATEWAY, lane(0)), Standing::Current);
        tenures.refuse(GATEWAY, lane(0));
        assert_eq!(tenures.standing(GATEWAY, lane(0)), Standing::Refused);
        assert_eq!(tenures.standing(GatewayId(2), lane(0)), Standing::Current, "another gateway's is another lane");
        assert_eq!(tenures.standing(GATEWAY, lane(1)), Standing::Current, "its queue was sent again");
        assert_eq!(tenures.standing(GATEWAY, lane(0)), Standing::Outdated, "what is still on its way is late");
        tenures.refuse(GATEWAY, lane(1));
        tenures.begin_anew(Tenure::Absent);
        assert_eq!(tenures.standing(GATEWAY, lane(1)), Standing::Refused, "also by the node's next session");
        tenures.forget(GATEWAY);
        assert_eq!(tenures.standing(GATEWAY, lane(0)), Standing::Current);
    }

    /// Seed 775: a partition went and came back before a gateway had heard of it.
    #[test]
    fn what_is_sent_into_a_former_tenure_overtakes_nothing() {
        let (other, at) = (GatewayId(2), Partition(7));
        let mut tenures = Tenures::all(Tenure::Absent);
        tenures.set(at, Tenure::Open(3));
        assert_eq!(tenures.standing(GATEWAY, lane(0)), Standing::Current, "asked, and forgotten with the partition");
        assert_eq!(tenures.standing(other, lane(4)), Standing::Current);
        tenures.leave(at);
        assert_eq!(tenures.at(at), Tenure::Absent);
        tenures.set(at, Tenure::Open(9));
        for (gateway, attempt) in [(GATEWAY, 0), (other, 4)] {
            assert_eq!(tenures.standing(gateway, lane(attempt)), Standing::Refused, "the next of the same attempt");
            assert_eq!(tenures.standing(gateway, lane(attempt + 1)), Standing::Current, "the whole lane, sent again");
        }
        assert_eq!(tenures.standing(GATEWAY, Lane { partition: Partition(8), attempt: 0 }), Standing::Current);
        // The same where a session ends and the next one gets the partition back.
        tenures.begin_anew(Tenure::Absent);
        tenures.set(at, Tenure::Open(12));
        assert_eq!(tenures.standing(GATEWAY, lane(1)), Standing::Refused);
        assert_eq!(tenures.standing(GatewayId(3), lane(0)), Standing::Refused);
        assert_eq!(tenures.standing(GatewayId(3), lane(1)), Standing::Current);
    }

    #[test]
    fn only_an_open_partition_decides_and_a_cut_one_lets_nothing_out() {
        let mut tenures = Tenures::all(Tenure::Absent);
        let at = Partition(9);
        for (tenure, open, releases) in [
            (Tenure::Absent, None, false),
            (Tenure::Opening, None, false),
            (Tenure::Open(4), Some(4), true),
            (Tenure::Sealed(4), None, true),
            (Tenure::Cut(4), None, false),
        ] {
            tenures.set(at, tenure);
            assert_eq!((tenures.open(at), tenures.may_release(at)), (open, releases), "{tenure:?}");
        }
        assert_eq!(tenures.at(Partition(10)), Tenure::Absent);
    }
}
