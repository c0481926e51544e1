//! What the replicated state makes of a command.

use std::{collections::BTreeSet, sync::Arc};

use chappe_schema::{
    id::{Epoch, NodeUid, Partition, SessionId},
    limit::{
        FENCED_MAX, FORMER_OWNERS_MAX, NODES_MAX, PARTITIONS_MAX, PLAN_MOVES_MAX, RETIRED_MAX, UNFENCED_MAX,
        WEIGHT_MAX, ZONE_BYTES_MAX,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Assignment, Command, Ended, Founding, Map, Move, NewSession, Plan, PlanId, Row, Session, map::Contents, number,
};

/// The state that Raft replicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ownership {
    pub(super) map: Map,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// The cluster begins.
    Founded,
    /// A life begins.
    Registered {
        /// Its session.
        session: SessionId,
        /// The node's session before, which expired in the same step.
        expired: Option<SessionId>,
    },
    /// A life ended, or what was ownerless was given out.
    Assigned {
        /// The epoch of what was given out.
        epoch: Epoch,
        /// What has a new owner.
        assigned: Vec<Partition>,
        /// What has not, and why.
        refused: Vec<(Partition, Refused)>,
    },
    /// The plan stands.
    Planned,
    /// Partitions changed hands.
    Committed {
        /// Their new epoch.
        epoch: Epoch,
        /// Which.
        moved: Vec<Partition>,
        /// Which did not, and why. Their owners are what they were.
        refused: Vec<(Partition, Refused)>,
    },
    /// These moves are not in the plan any more.
    Aborted {
        /// Those that were.
        partitions: Vec<Partition>,
    },
    /// The drain slot was taken or given back.
    DrainSet,
    /// There are so many partitions now.
    Split {
        /// The new number.
        count: u32,
    },
    /// Nobody needs to fence the session any more.
    Fenced,
    /// The version was raised, or was that already.
    VersionSet,
    /// The node left for good.
    Retired,
}

/// Why a command, or a part of it, had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// No command comes before the founding.
    #[error("the cluster is not founded yet")]
    NotFounded,
    /// A cluster is founded once.
    #[error("the cluster is founded already")]
    Founded,
    /// Not a power of two, too many, or not more than there are.
    #[error("{0} is no number of partitions that can be had")]
    Count(u32),
    /// Neither live nor remembered.
    #[error("session {0:x} is not known")]
    UnknownSession(SessionId),
    /// Only a live session can own, give or receive.
    #[error("session {0:x} is not live")]
    NotLive(SessionId),
    /// A live session is not fenced.
    #[error("session {0:x} is live")]
    Live(SessionId),
    /// The zone's name is too long.
    #[error("a zone's name has at most {ZONE_BYTES_MAX} bytes")]
    Zone,
    /// The weight is too large.
    #[error("a weight is at most {WEIGHT_MAX}")]
    Weight,
    /// Too many nodes.
    #[error("the cluster has as many nodes as it can")]
    Full,
    /// Too many fences are owed.
    #[error("too many expired sessions are not fenced yet")]
    Unfenced,
    /// The node cannot speak what the cluster has agreed on, or its range is empty.
    #[error("the cluster speaks version {0}, which the node does not")]
    CannotSpeak(u16),
    /// No such partition.
    #[error("there is no partition {}", .0.0)]
    UnknownPartition(Partition),
    /// The map is not what the proposer thought.
    #[error("the partition has owner {owner:x?} at epoch {epoch:x}")]
    Changed {
        /// The owner by now.
        owner: Option<SessionId>,
        /// The epoch by now.
        epoch: Epoch,
    },
    /// A live owner gives its partitions up itself.
    #[error("the partition's owner {0:x} is live")]
    OwnerLives(SessionId),
    /// A plan's number is used once.
    #[error("plans up to {0} have been made already")]
    PlanUsed(PlanId),
    /// It was committed, aborted or voided, or never stood.
    #[error("plan {0} does not stand")]
    NoPlan(PlanId),
    /// The plan stands, but not for this partition.
    #[error("the partition is not in the plan")]
    NotInPlan,
    /// A partition is in one plan at a time.
    #[error("the partition is in plan {0} already")]
    InPlan(PlanId),
    /// The giver itself commits.
    #[error("session {0:x} gives the partition, and it alone commits the move")]
    NotGiver(SessionId),
    /// A plan holds 1 to 32 moves, each of another partition and between two sessions.
    #[error("a plan is 1 to {PLAN_MOVES_MAX} moves of different partitions, each between two sessions")]
    BadPlan,
    /// Plans name partitions by their numbers, which a split changes.
    #[error("moves are planned; split when they are done")]
    PlansStand,
    /// One node drains at a time.
    #[error("session {0:x} holds the drain slot")]
    SlotTaken(SessionId),
    /// Who left for good does not come back.
    #[error("the node was decommissioned; with an empty data directory it joins as a new one")]
    Retired,
    /// A node that leaves for good has given everything away.
    #[error("the node owns {0} partitions; drain it first")]
    Owns(u32),
    /// Too many have left.
    #[error("as many nodes have been decommissioned as can be remembered")]
    RetiredFull,
    /// The version never falls.
    #[error("the cluster speaks version {0} already")]
    VersionFalls(u16),
    /// A live session does not know the version.
    #[error("session {0:x} does not speak that version")]
    VersionUnknown(SessionId),
}

impl Ownership {
    /// What is read of it.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Takes the command of the entry at `index`. Entries come in order, each once.
    ///
    /// # Errors
    /// When the command has no effect at all; the state is then unchanged.
    pub fn apply(&mut self, index: u64, command: &Command) -> Result<Applied, Refused> {
        let Some((_, generation)) = self.map.0.identity else {
            let Command::Found(founding) = command else { return Err(Refused::NotFounded) };
            return self.found(index, founding);
        };
        // Everything is looked at before anything is written: what is refused leaves no trace, and does not copy a
        // map that somebody else is reading.
        let at = number(generation, index);
        let map = &self.map;
        let applied = match command {
            Command::Found(_) => return Err(Refused::Founded),
            Command::RegisterSession(new) => {
                map.admit(new)?;
                self.edit(at).register(at, new)
            }
            Command::ExpireAndAssign { session, minute, assignments } => {
                if let Some(session) = session.filter(|id| !map.is_live(*id) && map.ended(*id).is_none()) {
                    return Err(Refused::UnknownSession(session));
                }
                let contents = self.edit(at);
                if let Some(session) = session {
                    contents.expire(*session, *minute);
                }
                contents.assign(at, assignments)
            }
            Command::PlanMoves { plan, moves } => {
                map.plannable(*plan, moves)?;
                self.edit(at).plan(*plan, moves)
            }
            Command::CommitMoves { plan, from, partitions } => {
                if map.plan(*plan).is_none() {
                    return Err(Refused::NoPlan(*plan));
                }
                self.edit(at).commit(at, *plan, *from, partitions)
            }
            Command::AbortMoves { plan, partitions } => {
                if map.plan(*plan).is_none() {
                    return Err(Refused::NoPlan(*plan));
                }
                self.edit(at).abort(*plan, partitions)
            }
            Command::SetDrain { session, slot } => {
                map.drainable(*session, *slot)?;
                self.edit(at).drain(*session, *slot)
            }
            Command::SplitPartitions { count } => {
                map.splittable(*count)?;
                self.edit(at).split(*count)
            }
            Command::MarkFenced { session } => {
                if map.is_live(*session) {
                    return Err(Refused::Live(*session));
                }
                if map.ended(*session).is_none() {
                    return Err(Refused::UnknownSession(*session));
                }
                self.edit(at).fenced(*session)
            }
            Command::RetireNode { node, released } => {
                map.retirable(*node)?;
                self.edit(at).retire(*node, *released)
            }
            Command::SetClusterVersion { version } => {
                map.raisable(*version)?;
                self.edit(at).cluster_version = *version;
                Applied::VersionSet
            }
        };
        Ok(applied)
    }

    fn found(&mut self, index: u64, founding: &Founding) -> Result<Applied, Refused> {
        let Founding { cluster, generation, partitions, version } = *founding;
        if !partitions.is_power_of_two() || partitions > PARTITIONS_MAX {
            return Err(Refused::Count(partitions));
        }
        let contents = self.edit(number(generation, index));
        contents.identity = Some((cluster, generation));
        contents.cluster_version = version;
        contents.rows = vec![Row::EMPTY; partitions as usize];
        Ok(Applied::Founded)
    }

    fn edit(&mut self, version: u64) -> &mut Contents {
        let contents = Arc::make_mut(&mut self.map.0);
        contents.version = version;
        contents
    }
}

// === What is looked at ===

impl Map {
    fn admit(&self, new: &NewSession) -> Result<(), Refused> {
        if new.zone.len() > ZONE_BYTES_MAX {
            return Err(Refused::Zone);
        }
        if new.weight > WEIGHT_MAX {
            return Err(Refused::Weight);
        }
        if !(new.versions.min..=new.versions.max).contains(&self.cluster_version()) {
            return Err(Refused::CannotSpeak(self.cluster_version()));
        }
        if self.sessions().len() >= NODES_MAX && self.session_of(new.node).is_none() {
            return Err(Refused::Full);
        }
        if self.retirement(new.node).is_some() {
            return Err(Refused::Retired);
        }
        if self.unfenced().count() >= UNFENCED_MAX {
            return Err(Refused::Unfenced);
        }
        Ok(())
    }

    fn plannable(&self, plan: PlanId, moves: &[Move]) -> Result<(), Refused> {
        if plan < self.next_plan() {
            return Err(Refused::PlanUsed(self.0.last_plan));
        }
        let partitions: BTreeSet<Partition> = moves.iter().map(|planned| planned.partition).collect();
        if moves.is_empty() || moves.len() > PLAN_MOVES_MAX || partitions.len() < moves.len() {
            return Err(Refused::BadPlan);
        }
        for planned in moves {
            if planned.from == planned.to {
                return Err(Refused::BadPlan);
            }
            if let Some((other, _)) = self.planned(planned.partition) {
                return Err(Refused::InPlan(other));
            }
            self.movable(planned)?;
        }
        Ok(())
    }

    /// Whether a move could be committed now, if it is in a standing plan.
    fn movable(&self, planned: &Move) -> Result<(), Refused> {
        if let Some(gone) = [planned.from, planned.to].into_iter().find(|session| !self.is_live(*session)) {
            return Err(Refused::NotLive(gone));
        }
        let row = self.row(planned.partition).ok_or(Refused::UnknownPartition(planned.partition))?;
        if (row.owner, row.epoch) != (Some(planned.from), planned.expect) {
            return Err(Refused::Changed { owner: row.owner, epoch: row.epoch });
        }
        Ok(())
    }

    fn drainable(&self, session: SessionId, slot: bool) -> Result<(), Refused> {
        if !self.is_live(session) {
            return Err(Refused::NotLive(session));
        }
        match self.draining().filter(|holder| slot && *holder != session) {
            Some(holder) => Err(Refused::SlotTaken(holder)),
            None => Ok(()),
        }
    }

    fn retirable(&self, node: NodeUid) -> Result<(), Refused> {
        let owns = self.session_of(node).map_or(0, |session| self.owned_by(session).count());
        if owns > 0 {
            return Err(Refused::Owns(owns as u32));
        }
        if self.0.retired.len() >= RETIRED_MAX && self.retirement(node).is_none() {
            return Err(Refused::RetiredFull);
        }
        Ok(())
    }

    fn splittable(&self, count: u32) -> Result<(), Refused> {
        if !count.is_power_of_two() || count > PARTITIONS_MAX || count <= self.partitions() {
            return Err(Refused::Count(count));
        }
        if self.plans().len() > 0 {
            return Err(Refused::PlansStand);
        }
        Ok(())
    }

    fn raisable(&self, version: u16) -> Result<(), Refused> {
        if version < self.cluster_version() {
            return Err(Refused::VersionFalls(self.cluster_version()));
        }
        let lacking =
            self.sessions().find(|(_, session)| !(session.versions.min..=session.versions.max).contains(&version));
        lacking.map_or(Ok(()), |(id, _)| Err(Refused::VersionUnknown(id)))
    }
}

// === What is written ===

impl Contents {
    fn register(&mut self, at: SessionId, new: &NewSession) -> Applied {
        let expired = self.sessions.iter().find(|(_, session)| session.node == new.node).map(|(id, _)| *id);
        if let Some(session) = expired {
            self.expire(session, None);
        }
        let NewSession { node, addr, zone, ordinal, weight, versions } = new.clone();
        self.sessions.insert(at, Session { node, addr, zone, ordinal, weight, versions, drain: false });
        Applied::Registered { session: at, expired }
    }

    /// Ends a session. One that has ended may still learn of a later minute.
    fn expire(&mut self, session: SessionId, minute: Option<u64>) {
        if let Some(Session { node, .. }) = self.sessions.remove(&session) {
            self.ended.insert(session, Ended { node, minute: None, fenced: false });
            self.plans
                .retain(|_, plan| !plan.moves.values().any(|planned| planned.from == session || planned.to == session));
        }
        if let Some(ended) = self.ended.get_mut(&session) {
            ended.minute = ended.minute.max(minute);
        }
    }

    fn assign(&mut self, at: Epoch, assignments: &[Assignment]) -> Applied {
        let (mut assigned, mut refused) = (Vec::new(), Vec::new());
        for Assignment { partition, expect, to } in assignments {
            match self.may_assign(*partition, *expect, *to) {
                Ok(()) => {
                    self.give(*partition, *to, at, None);
                    assigned.push(*partition);
                }
                Err(why) => refused.push((*partition, why)),
            }
        }
        Applied::Assigned { epoch: at, assigned, refused }
    }

    fn may_assign(&self, partition: Partition, expect: Epoch, to: SessionId) -> Result<(), Refused> {
        let row = self.rows.get(usize::from(partition.0)).ok_or(Refused::UnknownPartition(partition))?;
        if row.epoch != expect {
            return Err(Refused::Changed { owner: row.owner, epoch: row.epoch });
        }
        if let Some(owner) = row.owner.filter(|owner| self.sessions.contains_key(owner)) {
            return Err(Refused::OwnerLives(owner));
        }
        if self.sessions.contains_key(&to) { Ok(()) } else { Err(Refused::NotLive(to)) }
    }

    /// The only place where a partition changes hands.
    fn give(&mut self, partition: Partition, to: SessionId, epoch: Epoch, by: Option<PlanId>) {
        let row = &mut self.rows[usize::from(partition.0)];
        assert!(epoch > row.epoch, "the log's indices grow, so every epoch is above those before it");
        if let Some(owner) = row.owner {
            row.former.insert(0, owner);
            row.former.truncate(FORMER_OWNERS_MAX);
        }
        (row.owner, row.epoch, row.by) = (Some(to), epoch, by);
    }

    fn plan(&mut self, plan: PlanId, moves: &[Move]) -> Applied {
        let moves = moves.iter().map(|planned| (planned.partition, *planned)).collect();
        self.plans.insert(plan, Plan { moves });
        self.last_plan = plan;
        Applied::Planned
    }

    fn commit(&mut self, at: Epoch, plan: PlanId, from: SessionId, partitions: &[Partition]) -> Applied {
        let (mut moved, mut refused) = (Vec::new(), Vec::new());
        for partition in partitions {
            match self.may_commit(plan, from, *partition) {
                Ok(to) => {
                    self.give(*partition, to, at, Some(plan));
                    self.leave_plan(plan, *partition);
                    moved.push(*partition);
                }
                Err(why) => refused.push((*partition, why)),
            }
        }
        Applied::Committed { epoch: at, moved, refused }
    }

    fn may_commit(&self, plan: PlanId, from: SessionId, partition: Partition) -> Result<SessionId, Refused> {
        let moves = &self.plans.get(&plan).ok_or(Refused::NoPlan(plan))?.moves;
        let planned = moves.get(&partition).ok_or(Refused::NotInPlan)?;
        if planned.from != from {
            return Err(Refused::NotGiver(planned.from));
        }
        if let Some(gone) = [from, planned.to].into_iter().find(|session| !self.sessions.contains_key(session)) {
            return Err(Refused::NotLive(gone));
        }
        let row = self.rows.get(usize::from(partition.0)).ok_or(Refused::UnknownPartition(partition))?;
        if (row.owner, row.epoch) != (Some(from), planned.expect) {
            return Err(Refused::Changed { owner: row.owner, epoch: row.epoch });
        }
        Ok(planned.to)
    }

    fn abort(&mut self, plan: PlanId, partitions: &[Partition]) -> Applied {
        let partitions = partitions.iter().copied().filter(|partition| self.leave_plan(plan, *partition)).collect();
        Applied::Aborted { partitions }
    }

    /// Takes a move out of its plan; a plan without moves is over.
    fn leave_plan(&mut self, plan: PlanId, partition: Partition) -> bool {
        let Some(standing) = self.plans.get_mut(&plan) else { return false };
        let was = standing.moves.remove(&partition).is_some();
        if standing.moves.is_empty() {
            self.plans.remove(&plan);
        }
        was
    }

    fn drain(&mut self, session: SessionId, slot: bool) -> Applied {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.drain = slot;
        }
        Applied::DrainSet
    }

    /// Its session ends in the same step, so that nothing is given to it any more.
    fn retire(&mut self, node: NodeUid, released: bool) -> Applied {
        let session = self.sessions.iter().find(|(_, session)| session.node == node).map(|(id, _)| *id);
        if let Some(session) = session {
            self.expire(session, None);
        }
        *self.retired.entry(node).or_insert(false) |= released;
        Applied::Retired
    }

    fn split(&mut self, count: u32) -> Applied {
        let parts = count as usize / self.rows.len();
        self.rows = self.rows.iter().flat_map(|row| std::iter::repeat_n(row, parts)).cloned().collect();
        Applied::Split { count }
    }

    fn fenced(&mut self, session: SessionId) -> Applied {
        if let Some(ended) = self.ended.get_mut(&session) {
            ended.fenced = true;
        }
        let fenced = self.ended.iter().filter(|(_, ended)| ended.fenced).map(|(id, _)| *id);
        let fenced: Vec<SessionId> = fenced.collect();
        for oldest in fenced.iter().take(fenced.len().saturating_sub(FENCED_MAX)) {
            self.ended.remove(oldest);
        }
        Applied::Fenced
    }
}
