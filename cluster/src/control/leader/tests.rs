//! A leader over the replicated state itself, on a clock moved by hand.

use std::net::{Ipv4Addr, SocketAddr};

use chappe_schema::id::Partition;

use super::*;
use crate::ownership::{Applied, ClusterId, Founding, NewSession, Ownership, Refused, Versions};

struct Court {
    state: Ownership,
    index: u64,
    now: Millis,
    leader: Leader,
    /// Sessions that send keepalives.
    alive: BTreeSet<SessionId>,
    /// What was proposed, and when.
    done: Vec<(Millis, Command)>,
}

const MINUTE: u64 = 17;

impl Court {
    /// So many nodes, all gathered and balanced.
    fn of(nodes: u64) -> Self {
        let mut state = Ownership::default();
        let founding = Founding { cluster: ClusterId(1), generation: 1, partitions: 64, version: 1 };
        state.apply(1, &Command::Found(founding)).unwrap();
        let leader = Leader::new(Timing::PROMPT, 0, state.map(), []);
        let mut court = Self { state, index: 1, now: 0, leader, alive: BTreeSet::new(), done: vec![] };
        for node in 1..=nodes {
            court.join(node);
        }
        court.run(2_000);
        assert!(nodes == 0 || court.state.map().orphans().count() == 0);
        court.done.clear();
        court
    }

    fn map(&self) -> &Map {
        self.state.map()
    }

    fn apply(&mut self, command: &Command) -> Result<Applied, Refused> {
        self.index += 1;
        self.state.apply(self.index, command)
    }

    fn join(&mut self, node: u64) -> SessionId {
        let new = NewSession {
            node: NodeUid(node),
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            zone: String::new(),
            ordinal: 0,
            weight: 100,
            versions: Versions { min: 1, max: 1 },
        };
        let Ok(Applied::Registered { session, .. }) = self.apply(&Command::RegisterSession(new)) else { panic!() };
        self.alive.insert(session);
        session
    }

    fn session(&self, node: u64) -> SessionId {
        self.map().session_of(NodeUid(node)).unwrap()
    }

    /// Time passes: keepalives of the living, a question to the leader every 100 ms, its proposals applied.
    fn run(&mut self, ms: Millis) {
        let until = self.now + ms;
        while self.now < until {
            self.now += 100;
            if self.now.is_multiple_of(300) {
                for session in &self.alive {
                    self.leader.keepalive(*session, MINUTE, self.now);
                }
            }
            while let Some(command) = self.leader.next(self.now, self.state.map()) {
                self.done.push((self.now, command.clone()));
                self.apply(&command).unwrap();
                self.leader.settled();
            }
        }
    }

    fn new_leader(&mut self, down: &[u64]) {
        self.leader = Leader::new(Timing::PROMPT, self.now, self.state.map(), down.iter().copied().map(NodeUid));
    }

    /// When each session expired, from `since` on.
    fn expiries(&self, since: Millis) -> Vec<(Millis, SessionId)> {
        let expiry = |(at, command): &(Millis, Command)| match command {
            Command::ExpireAndAssign { session: Some(session), .. } => Some((at - since, *session)),
            _ => None,
        };
        self.done.iter().filter_map(expiry).collect()
    }
}

#[test]
fn a_silent_session_expires_after_ten_seconds() {
    let mut court = Court::of(3);
    let dead = court.session(2);
    court.run(300 - court.now % 300);
    let since = court.now;
    court.alive.remove(&dead);
    court.run(20_000);
    assert_eq!(court.expiries(since), [(10_000, dead)]);
    assert_eq!(court.map().orphans().count(), 0);
    assert_eq!(court.map().ended(dead).unwrap().minute, Some(MINUTE));
}

#[test]
fn one_that_swim_declares_down_expires_after_a_second_of_silence() {
    let mut court = Court::of(3);
    let dead = court.session(2);
    court.run(300 - court.now % 300);
    let since = court.now;
    court.alive.remove(&dead);
    court.run(600);
    court.leader.health(NodeUid(2), Health::Down);
    court.run(5_000);
    assert_eq!(court.expiries(since), [(1_000, dead)]);
    let [(_, Command::ExpireAndAssign { assignments, .. })] = &court.done[..] else { panic!("{:?}", court.done) };
    assert!((21..=22).contains(&assignments.len()), "one entry per failover");
}

#[test]
fn swim_alone_expires_nobody() {
    let mut court = Court::of(3);
    court.leader.health(NodeUid(2), Health::Down);
    court.run(30_000);
    assert_eq!(court.expiries(0), []);
}

#[test]
fn word_that_it_is_up_again_ends_the_haste() {
    let mut court = Court::of(3);
    let silent = court.session(2);
    court.run(300 - court.now % 300);
    court.leader.health(NodeUid(2), Health::Down);
    court.alive.remove(&silent);
    court.run(900);
    court.leader.health(NodeUid(2), Health::Up);
    court.run(5_000);
    assert_eq!(court.expiries(0), []);
}

#[test]
fn a_new_leader_grants_a_grace_and_swim_ends_it() {
    let mut court = Court::of(4);
    let (silent, down, late) = (court.session(1), court.session(2), court.session(3));
    court.run(300 - court.now % 300);
    for session in [silent, down, late] {
        court.alive.remove(&session);
    }
    court.new_leader(&[2]);
    let since = court.now;
    court.run(3_000);
    assert_eq!(court.expiries(since), [(100, down)], "at once");
    court.leader.health(NodeUid(3), Health::Down);
    court.run(10_000);
    assert_eq!(court.expiries(since), [(100, down), (3_100, late), (5_000, silent)]);
}

#[test]
fn a_keepalive_within_the_grace_is_all_it_takes() {
    let mut court = Court::of(3);
    court.new_leader(&[]);
    court.run(60_000);
    assert_eq!(court.expiries(0), []);
}

#[test]
fn a_leader_that_slept_blames_nobody() {
    let mut court = Court::of(3);
    let dead = court.session(3);
    court.alive.remove(&dead);
    court.run(5_000);
    court.now += 60_000;
    let since = court.now;
    court.run(10_000);
    assert_eq!(court.expiries(since), [(5_100, dead)], "the living spoke up within the grace that it grants again");
}

#[test]
fn nobody_is_expired_without_an_heir() {
    let mut court = Court::of(1);
    let only = court.session(1);
    court.alive.remove(&only);
    court.run(60_000);
    assert_eq!(court.expiries(0), []);
    court.join(2);
    let since = court.now;
    court.run(1_000);
    assert_eq!(court.expiries(since), [(100, only)]);
}

#[test]
fn a_node_that_registers_again_gets_its_partitions_at_once() {
    let mut court = Court::of(3);
    let before: Vec<Partition> = court.map().owned_by(court.session(1)).map(|(p, _)| p).collect();
    court.join(1);
    court.run(100);
    let after: Vec<Partition> = court.map().owned_by(court.session(1)).map(|(p, _)| p).collect();
    assert_eq!(before, after);
}

#[test]
fn a_cluster_gathers_before_it_gives_out_its_partitions() {
    let mut court = Court::of(0);
    for node in 1..=3 {
        court.join(node);
        court.run(800);
        assert_eq!(court.map().orphans().count(), 64);
    }
    court.run(300);
    assert_eq!(court.map().orphans().count(), 0);
    assert!(court.done.iter().all(|(_, command)| matches!(command, Command::ExpireAndAssign { .. })));
    let loads = court.map().sessions().map(|(id, _)| court.map().owned_by(id).count());
    assert!(loads.into_iter().all(|load| (21..=22).contains(&load)));
}

#[test]
fn a_cluster_does_not_gather_for_ever() {
    let mut court = Court::of(0);
    let began = court.now;
    for node in 1..=20 {
        court.join(node);
        court.run(500);
    }
    let first = court.done.first().unwrap().0 - began;
    assert!((5_000..=5_200).contains(&first), "{first}");
}

#[test]
fn balance_waits_until_membership_is_calm() {
    let mut court = Court::of(2);
    let joined = court.join(3);
    court.run(59_900);
    assert_eq!(court.done, []);
    court.run(200);
    let plans: Vec<_> = court.map().plans().map(|(_, plan)| plan.moves.len()).collect();
    assert_eq!(plans, [1], "one partition in fifty, at least one");
    // The giver commits; the leader plans the next.
    for _ in 0..200 {
        let Some((plan, moves)) = court.map().plans().next().map(|(id, plan)| (id, plan.moves.clone())) else { break };
        let from = moves.values().next().unwrap().from;
        court.apply(&Command::CommitMoves { plan, from, partitions: moves.keys().copied().collect() }).unwrap();
        court.run(100);
    }
    assert_eq!(court.map().owned_by(joined).count(), 21);
    court.done.clear();
    court.run(10_000);
    assert_eq!(court.done, [], "and then there is nothing to do");
}

#[test]
fn a_drain_does_not_wait_and_does_not_last_for_ever() {
    let mut court = Court::of(3);
    let session = court.session(1);
    court.apply(&Command::SetDrain { session, slot: true }).unwrap();
    court.run(100);
    assert!(court.map().plans().flat_map(|(_, plan)| plan.moves.values()).all(|planned| planned.from == session));
    assert_eq!(court.map().plans().len(), 1);
    court.run(15 * 60_000);
    assert_eq!(court.map().draining(), None);
}

#[test]
fn a_plan_that_does_not_get_anywhere_is_aborted() {
    let mut court = Court::of(3);
    let session = court.session(1);
    court.apply(&Command::SetDrain { session, slot: true }).unwrap();
    court.run(100);
    let (plan, _) = court.map().plans().next().unwrap();
    court.run(29_900);
    assert!(court.map().plan(plan).is_some());
    court.run(200);
    assert!(court.map().plan(plan).is_none());
    assert_eq!(court.map().plans().len(), 1, "and made anew");
}

#[test]
fn one_proposal_is_on_its_way_at_a_time() {
    let mut court = Court::of(3);
    court.alive.clear();
    court.now += 500;
    for node in 1..=3 {
        court.leader.health(NodeUid(node), Health::Down);
    }
    court.now += 500;
    let (now, map) = (court.now, court.state.map());
    let first = court.leader.next(now, map);
    assert!(first.is_some());
    assert_eq!(court.leader.next(now, map), None);
    court.leader.settled();
    assert_eq!(
        court.leader.next(now, map),
        first,
        "an unknown outcome is proposed again while the map shows nothing of it"
    );
}
