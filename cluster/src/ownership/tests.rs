//! Every command and every refusal, then long random sequences of commands in which I1 to I3 must hold.

use std::net::{Ipv4Addr, SocketAddr};

use chappe_schema::{
    id::{Epoch, NodeUid, Partition, SessionId},
    limit::{
        FENCED_MAX, FORMER_OWNERS_MAX, NODES_MAX, PARTITIONS_MAX, PLAN_MOVES_MAX, RETIRED_MAX, WEIGHT_MAX,
        ZONE_BYTES_MAX,
    },
};
use proptest::prelude::*;

use super::*;

const GENERATION: ClusterGeneration = 3;

/// A state and the index of its next entry.
#[derive(Clone)]
struct Log {
    state: Ownership,
    next: u64,
}

impl Log {
    fn empty() -> Self {
        Self { state: Ownership::default(), next: 1 }
    }

    fn founded(partitions: u32) -> Self {
        let mut log = Self::empty();
        let founding = Founding { cluster: ClusterId(7), generation: GENERATION, partitions, version: 5 };
        assert_eq!(log.apply(&Command::Found(founding)), Ok(Applied::Founded));
        log
    }

    /// A cluster in which each of `nodes` is registered and the partitions are dealt out in turn.
    fn dealt(partitions: u32, nodes: u64) -> (Self, Vec<SessionId>) {
        let mut log = Self::founded(partitions);
        let sessions: Vec<SessionId> = (1..=nodes).map(|node| log.register(node)).collect();
        let assignments = (0..partitions as u16).map(|p| Assignment {
            partition: Partition(p),
            expect: 0,
            to: sessions[usize::from(p) % sessions.len()],
        });
        log.ok(&Command::ExpireAndAssign { session: None, minute: None, assignments: assignments.collect() });
        (log, sessions)
    }

    fn apply(&mut self, command: &Command) -> Result<Applied, Refused> {
        let before = self.state.clone();
        let result = self.state.apply(self.next, command);
        check(&before, &self.state, command, result.is_ok());
        self.next += 1;
        result
    }

    #[track_caller]
    fn ok(&mut self, command: &Command) -> Applied {
        self.apply(command).unwrap()
    }

    fn register(&mut self, node: u64) -> SessionId {
        match self.ok(&Command::RegisterSession(new_session(node))) {
            Applied::Registered { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    fn expire(&mut self, session: SessionId, minute: Option<u64>) {
        self.ok(&Command::ExpireAndAssign { session: Some(session), minute, assignments: vec![] });
    }

    fn map(&self) -> &Map {
        self.state.map()
    }

    fn epoch(&self, p: u16) -> Epoch {
        self.map().row(Partition(p)).unwrap().epoch
    }

    fn planned(&mut self, from: SessionId, to: SessionId, partitions: &[u16]) -> PlanId {
        let plan = self.map().next_plan();
        let moves = partitions.iter().map(|p| self.planned_move(*p, from, to)).collect();
        assert_eq!(self.ok(&Command::PlanMoves { plan, moves }), Applied::Planned);
        plan
    }

    fn planned_move(&self, p: u16, from: SessionId, to: SessionId) -> Move {
        Move { partition: Partition(p), expect: self.epoch(p), from, to }
    }
}

fn new_session(node: u64) -> NewSession {
    NewSession {
        node: NodeUid(node),
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 7000 + node as u16)),
        zone: format!("zone-{}", node % 2),
        ordinal: node as u32,
        weight: 100,
        versions: Versions { min: 4, max: 6 },
    }
}

fn parts(partitions: &[u16]) -> Vec<Partition> {
    partitions.iter().copied().map(Partition).collect()
}

/// What must hold between a state and the next, said apart from the code that brings it about.
fn check(before: &Ownership, after: &Ownership, command: &Command, accepted: bool) {
    let (old, new) = (before.map(), after.map());
    if !accepted {
        assert_eq!(before, after, "a refused command left a trace: {command:?}");
        return;
    }
    assert!(new.version() > old.version());

    // A partition's part after a split compares with the partition it came from.
    let parts = if old.partitions() == 0 { 1 } else { (new.partitions() / old.partitions()) as u16 };
    for (partition, row) in new.rows() {
        let Some(was) = old.row(Partition(partition.0 / parts)) else { continue };
        if was.owner == row.owner {
            assert_eq!(was.epoch, row.epoch, "an epoch changed without its owner");
            continue;
        }
        assert!(row.epoch > was.epoch, "I1: {was:?} became {row:?} by {command:?}");
        assert!(row.owner.is_some_and(|owner| new.is_live(owner)), "given to the dead");
        assert_eq!(row.former.first().copied(), was.owner);
        let by = if let Command::CommitMoves { plan, .. } = command { Some(*plan) } else { None };
        assert_eq!(row.by, by, "a receiver must be able to tell under which plan it was given what it has");
        let Some(owner) = was.owner else { continue };
        let sealed = match command {
            Command::CommitMoves { plan, from, partitions } => {
                let planned = old.plan(*plan).and_then(|plan| plan.moves.get(&partition));
                *from == owner
                    && partitions.contains(&partition)
                    && planned.is_some_and(|planned| Some(planned.to) == row.owner && planned.expect == was.epoch)
            }
            _ => false,
        };
        assert!(!new.is_live(owner) || sealed, "I2: {was:?} became {row:?} by {command:?}");
    }

    for (session, _) in old.sessions().filter(|(session, _)| !new.is_live(*session)) {
        assert!(new.unfenced().any(|(id, _)| id == session), "I3: session {session:x} went without a fence");
    }
    for (session, ended) in old.unfenced() {
        let confirmed = *command == Command::MarkFenced { session };
        let now = new.ended(session);
        assert!(now.is_some_and(|now| !now.fenced) || confirmed, "I3: session {session:x} was forgotten");
        assert!(now.is_none_or(|now| now.minute >= ended.minute));
    }

    for (_, plan) in new.plans() {
        assert!(!plan.moves.is_empty());
        for (partition, planned) in &plan.moves {
            assert!(new.is_live(planned.from) && new.is_live(planned.to), "a plan outlived a session");
            assert_eq!(new.owner(*partition), Some((planned.from, planned.expect)), "a plan outlived an owner");
        }
    }
    assert!(new.sessions().filter(|(_, session)| session.drain).count() <= 1);
    let nodes: std::collections::BTreeSet<NodeUid> = new.sessions().map(|(_, session)| session.node).collect();
    assert_eq!(nodes.len(), new.sessions().len(), "a node lives twice");
    assert!(!new.retired().any(|(node, _)| nodes.contains(&node)), "who left for good lives");
    let kept = |(node, released): (NodeUid, bool)| new.retirement(node).is_some_and(|now| now >= released);
    assert!(old.retired().all(kept), "who left for good was forgotten");
}

// === Leaving ===

#[test]
fn who_owns_something_does_not_leave_and_who_left_does_not_come_back() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let leave = |released| Command::RetireNode { node: NodeUid(1), released };
    assert_eq!(log.apply(&leave(false)), Err(Refused::Owns(2)));
    let plan = log.planned(sessions[0], sessions[1], &[0, 2]);
    log.ok(&Command::CommitMoves { plan, from: sessions[0], partitions: parts(&[0, 2]) });
    // What is about to come to it does not.
    log.planned(sessions[1], sessions[0], &[1]);
    assert_eq!(log.ok(&leave(false)), Applied::Retired);
    assert_eq!((log.map().session_of(NodeUid(1)), log.map().plans().len()), (None, 0));
    assert_eq!(log.map().unfenced().map(|(id, _)| id).collect::<Vec<_>>(), [sessions[0]], "its fence is owed");
    assert_eq!(log.map().retirement(NodeUid(1)), Some(false));
    assert_eq!(log.apply(&Command::RegisterSession(new_session(1))), Err(Refused::Retired));
    assert_eq!(log.ok(&leave(true)), Applied::Retired);
    assert_eq!(log.ok(&leave(false)), Applied::Retired, "once more is once");
    assert_eq!(log.map().retired().collect::<Vec<_>>(), [(NodeUid(1), true)]);
    assert_eq!(log.map().orphans().count(), 0);
    // A node that is dead, or was never there, needs not live for it.
    assert_eq!(log.ok(&Command::RetireNode { node: NodeUid(8), released: false }), Applied::Retired);
}

#[test]
fn those_who_left_are_counted() {
    let mut log = Log::founded(1);
    for node in 0..RETIRED_MAX as u64 {
        log.state.apply(log.next, &Command::RetireNode { node: NodeUid(node), released: false }).unwrap();
        log.next += 1;
    }
    let more = |node| Command::RetireNode { node: NodeUid(node), released: true };
    assert_eq!(log.apply(&more(RETIRED_MAX as u64)), Err(Refused::RetiredFull));
    assert_eq!(log.ok(&more(0)), Applied::Retired);
}

// === Founding ===

#[test]
fn nothing_comes_before_the_founding_and_there_is_one() {
    let mut log = Log::empty();
    assert_eq!(log.apply(&Command::RegisterSession(new_session(1))), Err(Refused::NotFounded));
    let founding = Founding { cluster: ClusterId(1), generation: 1, partitions: 4096, version: 1 };
    for count in [0, 3, PARTITIONS_MAX * 2] {
        let wrong = Command::Found(Founding { partitions: count, ..founding });
        assert_eq!(log.apply(&wrong), Err(Refused::Count(count)));
    }
    assert_eq!(log.apply(&Command::Found(founding)), Ok(Applied::Founded));
    assert_eq!(log.apply(&Command::Found(founding)), Err(Refused::Founded));
    assert_eq!((log.map().cluster(), log.map().generation(), log.map().partitions()), (Some(ClusterId(1)), 1, 4096));
    assert_eq!(log.map().owner(Partition(0)), None);
    assert_eq!(log.map().orphans().count(), 4096);
}

#[test]
fn numbers_of_a_later_founding_are_above_all_earlier_ones() {
    assert!(number(2, 1) > number(1, (1 << 48) - 1));
    assert_eq!(generation_of(number(513, 77)), 513);
    let log = Log::founded(1);
    assert_eq!(generation_of(log.map().version()), GENERATION);
}

// === Sessions ===

#[test]
fn a_node_that_registers_again_ends_its_life_before() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let again = log.ok(&Command::RegisterSession(new_session(1)));
    let session = number(GENERATION, log.next - 1);
    assert_eq!(again, Applied::Registered { session, expired: Some(sessions[0]) });
    assert_eq!(log.map().owner(Partition(0)), None);
    assert_eq!(log.map().orphans().count(), 2);
    assert_eq!(log.map().owned_by(sessions[0]).count(), 0);
    assert_eq!(log.map().session_of(NodeUid(1)), Some(session));
    let ended = Ended { node: NodeUid(1), minute: None, fenced: false };
    assert_eq!(log.map().unfenced().collect::<Vec<_>>(), [(sessions[0], &ended)]);
}

#[test]
fn what_a_registration_may_not_say() {
    let mut log = Log::founded(4);
    let mut refused = |change: fn(&mut NewSession)| {
        let mut new = new_session(1);
        change(&mut new);
        log.apply(&Command::RegisterSession(new)).unwrap_err()
    };
    assert_eq!(refused(|new| new.zone = "z".repeat(ZONE_BYTES_MAX + 1)), Refused::Zone);
    assert_eq!(refused(|new| new.weight = WEIGHT_MAX + 1), Refused::Weight);
    assert_eq!(refused(|new| new.versions = Versions { min: 1, max: 4 }), Refused::CannotSpeak(5));
    assert_eq!(refused(|new| new.versions = Versions { min: 6, max: 9 }), Refused::CannotSpeak(5));
    assert_eq!(refused(|new| new.versions = Versions { min: 6, max: 4 }), Refused::CannotSpeak(5));
}

#[test]
fn the_cluster_has_a_brim_at_which_a_node_may_still_come_back() {
    let mut log = Log::founded(1);
    for node in 0..NODES_MAX as u64 {
        log.register(node);
    }
    assert_eq!(log.apply(&Command::RegisterSession(new_session(NODES_MAX as u64))), Err(Refused::Full));
    log.register(0);
}

#[test]
fn registrations_wait_when_too_many_fences_are_owed() {
    // Without `check`, which walks all of them each time.
    let mut state = Log::founded(1).state;
    let mut index = 2;
    let mut register = |state: &mut Ownership| {
        index += 1;
        state.apply(index, &Command::RegisterSession(new_session(1)))
    };
    for _ in 0..=chappe_schema::limit::UNFENCED_MAX {
        register(&mut state).unwrap();
    }
    assert_eq!(register(&mut state), Err(Refused::Unfenced));
    let session = state.map().unfenced().next().unwrap().0;
    state.apply(1 << 20, &Command::MarkFenced { session }).unwrap();
    state.apply((1 << 20) + 1, &Command::RegisterSession(new_session(1))).unwrap();
}

// === Expiry ===

#[test]
fn a_failover_is_one_entry() {
    let (mut log, sessions) = Log::dealt(8, 3);
    let (dead, heir) = (sessions[0], sessions[1]);
    let assignments = [0, 3].map(|p| Assignment { partition: Partition(p), expect: log.epoch(p), to: heir });
    let command = Command::ExpireAndAssign { session: Some(dead), minute: Some(42), assignments: assignments.to_vec() };
    let epoch = number(GENERATION, log.next);
    assert_eq!(log.ok(&command), Applied::Assigned { epoch, assigned: parts(&[0, 3]), refused: vec![] });
    assert_eq!(log.map().owner(Partition(3)), Some((heir, epoch)));
    assert_eq!(log.map().row(Partition(3)).unwrap().former, [dead]);
    assert_eq!(log.map().ended(dead), Some(&Ended { node: NodeUid(1), minute: Some(42), fenced: false }));
    assert_eq!(log.map().owned_by(heir).count(), 5);
}

#[test]
fn an_expiry_stands_even_if_an_assignment_does_not() {
    let (mut log, sessions) = Log::dealt(8, 3);
    let (dead, heir, other) = (sessions[0], sessions[1], sessions[2]);
    let good = Assignment { partition: Partition(0), expect: log.epoch(0), to: heir };
    let assignments = vec![
        good,
        Assignment { expect: good.expect + 1, partition: Partition(3), ..good },
        Assignment { partition: Partition(2), ..good },
        Assignment { partition: Partition(9), ..good },
        Assignment { partition: Partition(3), to: dead, ..good },
        Assignment { to: other, ..good },
    ];
    let applied = log.ok(&Command::ExpireAndAssign { session: Some(dead), minute: None, assignments });
    let epoch = number(GENERATION, log.next - 1);
    let refused = vec![
        (Partition(3), Refused::Changed { owner: Some(dead), epoch: good.expect }),
        (Partition(2), Refused::OwnerLives(other)),
        (Partition(9), Refused::UnknownPartition(Partition(9))),
        (Partition(3), Refused::NotLive(dead)),
        (Partition(0), Refused::Changed { owner: Some(heir), epoch }),
    ];
    assert_eq!(applied, Applied::Assigned { epoch, assigned: parts(&[0]), refused });
    assert!(!log.map().is_live(dead));
}

#[test]
fn an_expiry_repeated_changes_nothing_but_a_later_minute() {
    let (mut log, sessions) = Log::dealt(2, 2);
    log.expire(sessions[0], None);
    for (said, kept) in [(Some(7), Some(7)), (None, Some(7)), (Some(6), Some(7)), (Some(8), Some(8))] {
        log.expire(sessions[0], said);
        assert_eq!(log.map().ended(sessions[0]).unwrap().minute, kept);
    }
    let unknown = Command::ExpireAndAssign { session: Some(99), minute: None, assignments: vec![] };
    assert_eq!(log.apply(&unknown), Err(Refused::UnknownSession(99)));
}

#[test]
fn the_map_remembers_a_few_former_owners() {
    let mut log = Log::founded(1);
    let mut owners = Vec::new();
    for _ in 0..FORMER_OWNERS_MAX + 2 {
        let to = log.register(1);
        let assignments = vec![Assignment { partition: Partition(0), expect: log.epoch(0), to }];
        log.ok(&Command::ExpireAndAssign { session: None, minute: None, assignments });
        owners.insert(0, to);
    }
    let row = log.map().row(Partition(0)).unwrap();
    assert_eq!((row.owner, &row.former[..]), (Some(owners[0]), &owners[1..=FORMER_OWNERS_MAX]));
}

// === Fences ===

#[test]
fn a_session_is_fenced_after_it_has_expired_and_remembered_for_a_while() {
    let mut log = Log::founded(1);
    let first = log.register(1);
    assert_eq!(log.apply(&Command::MarkFenced { session: first }), Err(Refused::Live(first)));
    assert_eq!(log.apply(&Command::MarkFenced { session: 99 }), Err(Refused::UnknownSession(99)));
    let mut ended = vec![first];
    for _ in 0..FENCED_MAX + 1 {
        ended.push(log.register(1));
    }
    ended.pop();
    assert_eq!(log.map().unfenced().map(|(id, _)| id).collect::<Vec<_>>(), ended);
    for session in &ended {
        assert_eq!(log.ok(&Command::MarkFenced { session: *session }), Applied::Fenced);
    }
    assert_eq!(log.map().unfenced().count(), 0);
    assert_eq!(log.map().ended(ended[0]), None, "the oldest is forgotten");
    assert!(log.map().ended(ended[1]).unwrap().fenced);
    assert_eq!(log.ok(&Command::MarkFenced { session: ended[1] }), Applied::Fenced);
}

// === Planned moves ===

#[test]
fn a_planned_move_changes_the_owner_only_at_its_commit() {
    let (mut log, sessions) = Log::dealt(8, 3);
    let (from, to) = (sessions[0], sessions[1]);
    let before = log.epoch(0);
    let plan = log.planned(from, to, &[0, 3]);
    assert_eq!(log.map().owner(Partition(0)), Some((from, before)));
    assert_eq!(log.map().planned(Partition(3)).map(|(id, planned)| (id, planned.to)), Some((plan, to)));
    let epoch = number(GENERATION, log.next);
    let applied = log.ok(&Command::CommitMoves { plan, from, partitions: parts(&[0]) });
    assert_eq!(applied, Applied::Committed { epoch, moved: parts(&[0]), refused: vec![] });
    assert_eq!(log.map().owner(Partition(0)), Some((to, epoch)));
    assert_eq!(log.map().owner(Partition(3)), Some((from, before)));
    let applied = log.ok(&Command::CommitMoves { plan, from, partitions: parts(&[0, 3]) });
    let refused = vec![(Partition(0), Refused::NotInPlan)];
    assert_eq!(applied, Applied::Committed { epoch: epoch + 1, moved: parts(&[3]), refused });
    assert_eq!(log.map().plans().len(), 0, "a plan without moves is over");
    let again = Command::CommitMoves { plan, from, partitions: parts(&[3]) };
    assert_eq!(log.apply(&again), Err(Refused::NoPlan(plan)));
    assert!(log.map().is_live(from), "a planned move ends nobody");
}

#[test]
fn what_a_plan_may_not_hold() {
    let (mut log, sessions) = Log::dealt(128, 2);
    let (from, to) = (sessions[0], sessions[1]);
    let good = log.planned_move(0, from, to);
    let next = log.map().next_plan();
    let mut refused = |moves: Vec<Move>| log.apply(&Command::PlanMoves { plan: next, moves }).unwrap_err();
    assert_eq!(refused(vec![]), Refused::BadPlan);
    assert_eq!(refused(vec![good, good]), Refused::BadPlan);
    assert_eq!(refused(vec![Move { to: from, ..good }]), Refused::BadPlan);
    let many = (0..=PLAN_MOVES_MAX as u16).map(|p| Move { partition: Partition(2 * p), ..good });
    assert_eq!(refused(many.collect()), Refused::BadPlan);
    assert_eq!(refused(vec![Move { to: 99, ..good }]), Refused::NotLive(99));
    let nowhere = Move { partition: Partition(128), ..good };
    assert_eq!(refused(vec![good, nowhere]), Refused::UnknownPartition(Partition(128)));
    let changed = Refused::Changed { owner: Some(from), epoch: good.expect };
    assert_eq!(refused(vec![Move { expect: good.expect + 1, ..good }]), changed);
    let others = Refused::Changed { owner: Some(to), epoch: good.expect };
    assert_eq!(refused(vec![Move { partition: Partition(1), ..good }]), others);

    let plan = log.planned(from, to, &[0]);
    let used = Command::PlanMoves { plan, moves: vec![log.planned_move(2, from, to)] };
    assert_eq!(log.apply(&used), Err(Refused::PlanUsed(plan)));
    let twice = Command::PlanMoves { plan: log.map().next_plan(), moves: vec![good] };
    assert_eq!(log.apply(&twice), Err(Refused::InPlan(plan)));
}

#[test]
fn only_the_giver_commits() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let (from, to) = (sessions[0], sessions[1]);
    let plan = log.planned(from, to, &[0]);
    for proposer in [to, 99] {
        let applied = log.ok(&Command::CommitMoves { plan, from: proposer, partitions: parts(&[0]) });
        let Applied::Committed { moved, refused, .. } = applied else { panic!("{applied:?}") };
        assert_eq!((moved, refused), (vec![], vec![(Partition(0), Refused::NotGiver(from))]));
    }
}

#[test]
fn an_aborted_move_cannot_be_committed() {
    let (mut log, sessions) = Log::dealt(8, 2);
    let (from, to) = (sessions[0], sessions[1]);
    let plan = log.planned(from, to, &[0, 2, 4]);
    let aborted = log.ok(&Command::AbortMoves { plan, partitions: parts(&[2, 6]) });
    assert_eq!(aborted, Applied::Aborted { partitions: parts(&[2]) });
    let applied = log.ok(&Command::CommitMoves { plan, from, partitions: parts(&[0, 2]) });
    let Applied::Committed { moved, refused, .. } = applied else { panic!("{applied:?}") };
    assert_eq!((moved, refused), (parts(&[0]), vec![(Partition(2), Refused::NotInPlan)]));
    log.ok(&Command::AbortMoves { plan, partitions: parts(&[4]) });
    for command in [
        Command::AbortMoves { plan, partitions: parts(&[4]) },
        Command::CommitMoves { plan, from, partitions: parts(&[4]) },
    ] {
        assert_eq!(log.apply(&command), Err(Refused::NoPlan(plan)));
    }
    assert_eq!(log.map().owner(Partition(4)).unwrap().0, from);
}

#[test]
fn the_expiry_of_either_side_voids_a_plan() {
    for loser in [0, 1] {
        let (mut log, sessions) = Log::dealt(8, 3);
        let (from, to) = (sessions[0], sessions[1]);
        let plan = log.planned(from, to, &[0]);
        let other = log.planned(sessions[2], to, &[2]);
        log.expire(sessions[loser], None);
        assert_eq!(log.map().plan(plan), None);
        assert_eq!(log.map().plan(other).is_some(), loser == 0);
        let late = Command::CommitMoves { plan, from, partitions: parts(&[0]) };
        assert_eq!(log.apply(&late), Err(Refused::NoPlan(plan)));
    }
    // Registering again is an expiry too.
    let (mut log, sessions) = Log::dealt(8, 3);
    let plan = log.planned(sessions[0], sessions[1], &[0]);
    log.register(2);
    assert_eq!(log.map().plan(plan), None);
}

// === Drains, splits, versions ===

#[test]
fn one_node_drains_at_a_time() {
    let (mut log, sessions) = Log::dealt(2, 2);
    let take = |session| Command::SetDrain { session, slot: true };
    assert_eq!(log.ok(&take(sessions[0])), Applied::DrainSet);
    assert_eq!(log.ok(&take(sessions[0])), Applied::DrainSet);
    assert_eq!(log.map().draining(), Some(sessions[0]));
    assert_eq!(log.apply(&take(sessions[1])), Err(Refused::SlotTaken(sessions[0])));
    assert_eq!(log.apply(&take(99)), Err(Refused::NotLive(99)));
    log.ok(&Command::SetDrain { session: sessions[1], slot: false });
    assert_eq!(log.map().draining(), Some(sessions[0]), "another's giving back frees nothing");
    log.ok(&Command::SetDrain { session: sessions[0], slot: false });
    log.ok(&take(sessions[1]));
    // A holder that dies leaves the slot free, and its next life has it not.
    log.register(2);
    assert_eq!(log.map().draining(), None);
}

#[test]
fn a_split_is_metadata() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let before: Vec<_> = (0..4).map(|p| log.map().owner(Partition(p))).collect();
    let plan = log.planned(sessions[0], sessions[1], &[0]);
    assert_eq!(log.apply(&Command::SplitPartitions { count: 8 }), Err(Refused::PlansStand));
    log.ok(&Command::AbortMoves { plan, partitions: parts(&[0]) });
    for count in [0, 2, 4, 6, PARTITIONS_MAX * 2] {
        assert_eq!(log.apply(&Command::SplitPartitions { count }), Err(Refused::Count(count)));
    }
    assert_eq!(log.ok(&Command::SplitPartitions { count: 16 }), Applied::Split { count: 16 });
    for p in 0..16 {
        assert_eq!(log.map().owner(Partition(p)), before[usize::from(p / 4)]);
    }
}

#[test]
fn the_version_rises_when_all_speak_it() {
    let mut log = Log::founded(1);
    log.register(1);
    let old = log.ok(&Command::RegisterSession(NewSession { versions: Versions { min: 4, max: 5 }, ..new_session(2) }));
    let Applied::Registered { session: old, .. } = old else { panic!("{old:?}") };
    let set = |version| Command::SetClusterVersion { version };
    assert_eq!(log.apply(&set(4)), Err(Refused::VersionFalls(5)));
    assert_eq!(log.apply(&set(6)), Err(Refused::VersionUnknown(old)));
    log.expire(old, None);
    assert_eq!(log.ok(&set(6)), Applied::VersionSet);
    assert_eq!(log.ok(&set(6)), Applied::VersionSet);
    assert_eq!(log.map().cluster_version(), 6);
    let back = NewSession { versions: Versions { min: 4, max: 5 }, ..new_session(2) };
    assert_eq!(log.apply(&Command::RegisterSession(back)), Err(Refused::CannotSpeak(6)));
}

// === Readers ===

#[test]
fn a_map_does_not_change_under_its_reader() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let kept = log.map().clone();
    log.expire(sessions[0], None);
    assert!(kept.is_live(sessions[0]));
    assert_eq!(kept.owner(Partition(0)).map(|(owner, _)| owner), Some(sessions[0]));
    assert_eq!(log.map().owner(Partition(0)), None);
}

#[test]
fn a_delta_fits_one_version_only() {
    let (mut log, sessions) = Log::dealt(4, 2);
    let (mut reader, before) = (log.map().clone(), log.map().clone());
    log.expire(sessions[0], None);
    let delta = log.map().diff(&before);
    assert_eq!((delta.from(), delta.to()), (before.version(), log.map().version()));
    reader.apply_delta(&delta).unwrap();
    assert_eq!(&reader, log.map());
    let again = reader.apply_delta(&delta).unwrap_err();
    assert_eq!(again, delta::Mismatch { from: before.version(), at: log.map().version() });
    assert_eq!(&reader, log.map());
    assert!(delta.clone().then(&delta).is_err());
}

#[test]
fn a_reader_far_behind_gets_the_whole_map() {
    let mut log = Log::founded(1);
    let mut recent = Recent::default();
    recent.advance(log.map().clone());
    let (mut near, far) = (Map::default(), log.map().version());
    assert!(matches!(recent.since(0), Some(Update::Changes(_))), "the first map follows the empty one");
    for _ in 0..300 {
        log.register(1);
        recent.advance(log.map().clone());
        if let Some(update) = recent.since(near.version()) {
            near.follow(update).unwrap();
        }
        assert_eq!(&near, log.map());
    }
    assert_eq!(recent.since(far), Some(Update::Whole(log.map().clone())));
    assert_eq!(recent.since(log.map().version()), None);
    recent.advance(Map::default());
    assert_eq!(recent.map(), log.map(), "an older map changes nothing");

    // Also when less happened, but to everything.
    let (mut log, _) = Log::dealt(64, 2);
    let mut recent = Recent::default();
    recent.advance(log.map().clone());
    let far = log.map().version();
    for _ in 0..3 {
        let to = log.register(1);
        let expired: Vec<SessionId> = log.map().sessions().map(|(id, _)| id).filter(|id| *id != to).collect();
        let assignments = (0..64).map(|p| Assignment { partition: Partition(p), expect: log.epoch(p), to }).collect();
        log.ok(&Command::ExpireAndAssign { session: expired.first().copied(), minute: None, assignments });
        recent.advance(log.map().clone());
    }
    assert!(matches!(recent.since(far), Some(Update::Whole(_))));
}

#[test]
fn a_map_of_a_new_founding_follows_too() {
    let (old, _) = Log::dealt(8, 3);
    let mut anew = Log::empty();
    let founding = Founding { cluster: ClusterId(7), generation: GENERATION + 1, partitions: 4, version: 5 };
    anew.ok(&Command::Found(founding));
    let mut reader = old.map().clone();
    reader.apply_delta(&anew.map().diff(old.map())).unwrap();
    assert_eq!(&reader, anew.map());
}

/// What is stored is read by every later program: these bytes may not change their meaning.
#[test]
fn the_bytes_of_a_command_are_those_of_the_first_release() {
    let command = Command::ExpireAndAssign {
        session: Some(0x0003_0000_0000_0007),
        minute: Some(5),
        assignments: vec![Assignment { partition: Partition(9), expect: 300, to: 2 }],
    };
    let bytes = [0x1a, 0x14, 0x09, 7, 0, 0, 0, 0, 0, 3, 0, 0x10, 5, 0x1a, 7, 0x08, 9, 0x10, 0xac, 0x02, 0x20, 2];
    assert_eq!(&command.to_bytes()[..], bytes);
    assert_eq!(Command::from_bytes(&bytes), Ok(command));
    for wrong in [&bytes[..9], &[0x62, 0][..], &[], &[0xff; 7]] {
        assert!(Command::from_bytes(wrong).is_err());
    }
}

/// A snapshot of a cluster of 4096 partitions is one short message.
#[test]
fn a_map_is_about_a_hundred_kilobytes() {
    let (log, _) = Log::dealt(4096, 50);
    let bytes = log.map().to_bytes();
    println!("{} bytes", bytes.len());
    assert!(bytes.len() < 120_000);
    assert_eq!(Map::from_bytes(&bytes).as_ref(), Ok(log.map()));
}

// === Any sequence of commands ===

/// A command made from random numbers: near what stands, so that many are accepted, and often beside it.
fn command_from(map: &Map, dice: &[u16; 6]) -> Command {
    let [kind, a, b, c, d, e] = dice.map(usize::from);
    let live: Vec<SessionId> = map.sessions().map(|(id, _)| id).collect();
    let mut known = live.clone();
    known.extend(map.owners());
    known.extend(map.unfenced().map(|(id, _)| id));
    known.push(99);
    let any = |n: usize| known[n % known.len()];
    let mostly_live = |n: usize| if live.is_empty() || n % 8 == 7 { any(n / 8) } else { live[n / 8 % live.len()] };
    let partition = |n: usize| Partition((n % (map.partitions() as usize + 1)) as u16);
    let expect = |p: Partition, n: usize| map.row(p).map_or(0, |row| row.epoch).saturating_sub(u64::from(n % 8 == 7));
    let plan = |n: usize| map.plans().nth(n % (map.plans().len() + 1)).map_or(PlanId(n as u64 % 50), |(id, _)| id);
    let in_plan = |id: PlanId| map.plan(id).map_or_else(Vec::new, |plan| plan.moves.keys().copied().collect());
    match kind % 20 {
        0..=2 => Command::RegisterSession(NewSession { weight: (b % 1100) as u16, ..new_session(a as u64 % 5) }),
        3..=6 => Command::ExpireAndAssign {
            session: (a % 3 > 0).then(|| any(b)),
            minute: (c % 2 > 0).then_some(c as u64),
            assignments: (0..e % 12)
                .map(|i| {
                    let partition = partition(d + i);
                    Assignment { partition, expect: expect(partition, c + i), to: mostly_live(e + i * 8) }
                })
                .collect(),
        },
        7..=10 => {
            let from = mostly_live(a);
            let owned: Vec<Partition> = map.owned_by(from).map(|(p, _)| p).collect();
            let pick = |n: usize| if owned.is_empty() { partition(n) } else { owned[n % owned.len()] };
            let moves = (0..1 + d % 4).map(|i| {
                let partition = pick(c + i);
                Move { partition, expect: expect(partition, d), from, to: mostly_live(b) }
            });
            let used = if e % 8 == 7 { 0 } else { 1 };
            Command::PlanMoves { plan: PlanId(map.next_plan().0 - 1 + used), moves: moves.collect() }
        }
        11..=13 => {
            let plan = plan(a);
            let giver = map.plan(plan).and_then(|plan| plan.moves.values().next()).map_or(99, |planned| planned.from);
            let mut partitions = in_plan(plan);
            partitions.push(partition(c));
            partitions.truncate(1 + d % 4);
            Command::CommitMoves { plan, from: if b % 8 == 7 { any(c) } else { giver }, partitions }
        }
        14 => {
            let plan = plan(a);
            let mut partitions = in_plan(plan);
            partitions.truncate(1 + d % 3);
            Command::AbortMoves { plan, partitions }
        }
        15..=16 => Command::MarkFenced { session: any(a) },
        17 => Command::SetDrain { session: any(a), slot: b % 2 == 0 },
        18 if a % 8 == 0 => Command::SplitPartitions { count: map.partitions() << (b % 3) },
        18 => Command::SetClusterVersion { version: (3 + b % 6) as u16 },
        // Those who live can come to leave, but not so soon that nobody is left.
        19 if a % 4 == 0 => {
            let node = if b % 16 == 0 { c % 5 } else { 100 + c % 50 };
            Command::RetireNode { node: NodeUid(node as u64), released: d % 2 == 0 }
        }
        _ => Command::Found(Founding { cluster: ClusterId(9), generation: 9, partitions: 4, version: 5 }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// `Log::apply` checks I1 to I3 after each; here also that every voter and every reader comes to the same.
    #[test]
    fn any_sequence_of_commands_keeps_the_invariants(rolls in prop::collection::vec(any::<[u16; 6]>(), 1..120)) {
        let mut log = Log::founded(8);
        let (mut follower, mut reader, mut recent) = (log.state.clone(), Map::default(), Recent::default());
        let (mut composed, mut base): (Option<Delta>, Map) = (None, log.map().clone());
        let mut given: Vec<u64> = Vec::new();
        for (at, dice) in rolls.iter().enumerate() {
            let command = command_from(log.map(), dice);
            prop_assert_eq!(&Command::from_bytes(&command.to_bytes()).unwrap(), &command);
            let before = log.map().clone();
            let index = log.next;
            let result = log.apply(&command);
            prop_assert_eq!(&follower.apply(index, &command), &result);
            if let Ok(Applied::Registered { session, .. }) = &result {
                prop_assert!(given.iter().all(|earlier| earlier < session), "a session's id was reused");
                given.push(*session);
            }

            let delta = log.map().diff(&before);
            let update = Update::Changes(delta.clone());
            prop_assert_eq!(Update::from_bytes(&update.to_bytes()), Ok(update));
            composed = Some(match composed.take() {
                Some(earlier) => earlier.then(&delta).unwrap(),
                None => delta,
            });
            recent.advance(log.map().clone());
            if dice[0] % 3 == 0 {
                if let Some(update) = recent.since(reader.version()) {
                    reader.follow(update).unwrap();
                }
                prop_assert_eq!(&reader, log.map());
            }
            if at % 7 == 6 {
                let mut jumped = base.clone();
                jumped.apply_delta(&composed.take().unwrap()).unwrap();
                prop_assert_eq!(&jumped, log.map());
                base = log.map().clone();
            }
        }
        prop_assert_eq!(&follower, &log.state);
        let text = serde_json::to_string(&log.state).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Ownership>(&text).unwrap(), &log.state);
        prop_assert_eq!(&Ownership::from_bytes(&log.state.to_bytes()).unwrap(), &log.state);
        let update = Update::Whole(log.map().clone());
        prop_assert_eq!(Update::from_bytes(&update.to_bytes()), Ok(update));
    }
}

/// The sequences above reach every command's effect, not only its refusals.
#[test]
fn random_commands_are_often_accepted() {
    let mut log = Log::founded(8);
    let mut accepted = std::collections::BTreeMap::<String, u32>::new();
    // A fixed generator: xorshift.
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut roll = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u16
    };
    for _ in 0..3_000 {
        let command = command_from(log.map(), &std::array::from_fn(|_| roll()));
        let name = format!("{command:?}").split([' ', '(', '{']).next().unwrap().to_owned();
        let counts = match log.apply(&command) {
            Ok(Applied::Committed { moved, .. }) => !moved.is_empty(),
            Ok(Applied::Assigned { assigned, .. }) => !assigned.is_empty(),
            Ok(Applied::Aborted { partitions }) => !partitions.is_empty(),
            other => other.is_ok(),
        };
        *accepted.entry(name).or_default() += u32::from(counts);
    }
    for (name, least) in [
        ("RegisterSession", 100),
        ("ExpireAndAssign", 100),
        ("PlanMoves", 50),
        ("CommitMoves", 30),
        ("AbortMoves", 10),
        ("MarkFenced", 50),
        ("SetDrain", 5),
        ("SplitPartitions", 1),
        ("SetClusterVersion", 5),
        ("RetireNode", 5),
    ] {
        assert!(accepted[name] >= least, "{name}: {accepted:?}");
    }
}
