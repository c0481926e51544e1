//! Voters on threads of their own, with folders and real time: killed, paused and cut off, one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use chappe_schema::id::{NodeUid, SessionId};
use tempfile::TempDir;

use super::super::{
    Consensus, Home, Settings, bootstrap::Group, memory::Hub, pace::Pace, thread::Thread, voters::Seat,
};
use crate::{
    control::{ControlPlane, Outcome},
    ownership::{Applied, ClusterId, Command, NewSession, Versions},
};

const GROUP: Group = Group { cluster: ClusterId(9), generation: 1 };

/// One voter's life.
struct Life {
    consensus: Consensus,
    thread: Thread,
}

/// Voters by ordinal, with their folders below one directory.
struct Voters {
    dir: TempDir,
    hub: Hub,
    lives: BTreeMap<u32, Life>,
    uids: BTreeMap<u32, NodeUid>,
    /// Who led in which term.
    leaders: BTreeMap<u64, NodeUid>,
    acknowledged: BTreeSet<SessionId>,
    proposed: u64,
}

impl Voters {
    fn start(count: u32) -> Self {
        let mut voters = Self {
            dir: TempDir::new().unwrap(),
            hub: Hub::new(1),
            lives: BTreeMap::new(),
            uids: BTreeMap::new(),
            leaders: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            proposed: 0,
        };
        // All of them are first voters, so their names are needed before any of them begins.
        let opened: Vec<_> = (0..count).map(|ordinal| (ordinal, voters.open(ordinal))).collect();
        let first: BTreeMap<u64, Seat> = opened.iter().map(|(n, life)| (life.consensus.node().0, seat(*n))).collect();
        for (ordinal, life) in opened {
            let (first, consensus) = (first.clone(), life.consensus.clone());
            on(&life.thread, async move { consensus.enter_with(GROUP, Some(first)).await.unwrap() });
            voters.live(ordinal, life);
        }
        voters.await_leader(None);
        voters
    }

    fn open(&mut self, ordinal: u32) -> Life {
        let thread = Thread::start("raft").unwrap();
        let disk = Arc::new(super::folder::open(&self.dir.path().join(ordinal.to_string())).unwrap());
        let hub = self.hub.clone();
        let settings = Settings { seat: seat(ordinal), pace: Pace::PROMPT, partitions: 64, version: 1 };
        let consensus = on(&thread, async move {
            let home = Home::open(disk).await.unwrap();
            let port = Arc::new(hub.port(home.node()));
            Consensus::new(home, port, settings)
        });
        let name = consensus.node();
        assert!(self.uids.get(&ordinal).is_none_or(|known| *known == name), "a node keeps its name");
        self.uids.insert(ordinal, name);
        Life { consensus, thread }
    }

    fn live(&mut self, ordinal: u32, life: Life) {
        self.hub.attach(self.uids[&ordinal], life.consensus.clone());
        self.lives.insert(ordinal, life);
    }

    /// As a process dies: nothing is said to anybody.
    fn kill(&mut self, ordinal: u32) {
        self.hub.detach(self.uids[&ordinal]);
        if let Some(life) = self.lives.remove(&ordinal) {
            let Life { consensus, thread } = life;
            on(&thread, async move { consensus.stop().await });
        }
    }

    fn restart(&mut self, ordinal: u32) {
        let life = self.open(ordinal);
        let consensus = life.consensus.clone();
        on(&life.thread, async move { consensus.enter(GROUP, false).await.unwrap() });
        self.live(ordinal, life);
    }

    /// As SIGSTOP does: its timers, its answers, everything stands still.
    fn pause(&self, ordinal: u32, time: Duration) {
        self.lives[&ordinal].thread.handle().spawn(async move { std::thread::sleep(time) });
    }

    fn isolate(&self, ordinal: u32) {
        for other in self.uids.iter().filter(|(other, _)| **other != ordinal).map(|(_, uid)| *uid) {
            self.hub.cut(self.uids[&ordinal], other);
            self.hub.cut(other, self.uids[&ordinal]);
        }
    }

    /// Who leads, other than `not`, and what this took. Every look is checked: one leader per term.
    fn await_leader(&mut self, not: Option<u32>) -> (u32, Duration) {
        let began = Instant::now();
        loop {
            let mut found = None;
            for (ordinal, life) in &self.lives {
                let Some(vitals) = life.consensus.vitals().filter(|vitals| vitals.leads) else { continue };
                let node = life.consensus.node();
                assert_eq!(*self.leaders.entry(vitals.term).or_insert(node), node, "two lead in term {}", vitals.term);
                if Some(*ordinal) != not {
                    found = Some(*ordinal);
                }
            }
            if let Some(leader) = found {
                return (leader, began.elapsed());
            }
            if began.elapsed() > Duration::from_secs(30) {
                let vitals: Vec<_> = self.lives.iter().map(|(n, life)| (n, life.consensus.vitals())).collect();
                panic!("nobody leads: {vitals:#?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Registers a voter's node once more, and remembers what was acknowledged.
    fn propose(&mut self, at: u32) -> bool {
        self.proposed += 1;
        let new = NewSession {
            node: self.uids[&at],
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            zone: String::new(),
            ordinal: at,
            weight: 0,
            versions: Versions { min: 1, max: 1 },
        };
        let (told, tell) = mpsc::channel();
        self.lives[&at]
            .consensus
            .propose(Command::RegisterSession(new), Box::new(move |outcome| told.send(outcome).unwrap()));
        match tell.recv().unwrap() {
            Outcome::Answered(answer) => {
                let Ok(Applied::Registered { session, .. }) = answer.result else { panic!("{answer:?}") };
                assert!(self.acknowledged.insert(session));
                true
            }
            _ => false,
        }
    }

    /// As an operator asks for it, at any of the others.
    fn decommission(&self, ordinal: u32, at: u32) -> Outcome {
        let (told, tell) = mpsc::channel();
        let command = Command::RetireNode { node: self.uids[&ordinal], released: false };
        self.lives[&at].consensus.propose(command, Box::new(move |outcome| told.send(outcome).unwrap()));
        tell.recv().unwrap()
    }

    /// All who live come to the same map, and nothing acknowledged is missing from it.
    fn agree(&mut self) {
        self.await_leader(None);
        let (leader, _) = self.await_leader(None);
        assert!((0..5).any(|_| self.propose(leader)), "peace, and no answer");
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let versions: BTreeSet<u64> = self.lives.values().map(|life| life.consensus.map().version()).collect();
            if versions.len() == 1 {
                break;
            }
            assert!(Instant::now() < until, "{versions:x?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let map = self.lives[&leader].consensus.map();
        for session in &self.acknowledged {
            assert!(map.is_live(*session) || map.ended(*session).is_some(), "{session:x} is lost");
        }
    }
}

impl Drop for Voters {
    fn drop(&mut self) {
        let ordinals: Vec<u32> = self.lives.keys().copied().collect();
        ordinals.into_iter().for_each(|ordinal| self.kill(ordinal));
    }
}

fn seat(ordinal: u32) -> Seat {
    Seat { ordinal, zone: String::new() }
}

fn on<T: Send + 'static>(thread: &Thread, future: impl Future<Output = T> + Send + 'static) -> T {
    thread.wait(future).unwrap()
}

#[test]
fn one_voter_restarts_with_all_that_it_had() {
    let mut voters = Voters::start(1);
    for _ in 0..3 {
        for _ in 0..20 {
            assert!(voters.propose(0));
        }
        let before = voters.lives[&0].consensus.map();
        voters.kill(0);
        voters.restart(0);
        let (_, took) = voters.await_leader(None);
        println!("one voter leads again {took:?} after its start");
        assert_eq!(voters.lives[&0].consensus.map(), before);
        voters.agree();
    }
}

/// Each voter is killed, paused and cut off in turn, the leader first.
fn single_faults(count: u32) {
    let mut voters = Voters::start(count);
    let mut times: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
    for round in 0..count {
        for fault in ["killed", "paused", "cut off"] {
            let (leader, _) = voters.await_leader(None);
            let victim = (leader + round) % count;
            let other = (victim + 1) % count;
            for _ in 0..5 {
                voters.propose(other);
            }
            match fault {
                "killed" => voters.kill(victim),
                "paused" => voters.pause(victim, Duration::from_millis(3_000)),
                _ => voters.isolate(victim),
            }
            let (_, took) = voters.await_leader(Some(victim));
            if victim == leader {
                times.entry(fault).or_default().push(took.as_millis());
            }
            for _ in 0..5 {
                voters.propose(other);
            }
            match fault {
                "killed" => voters.restart(victim),
                // It wakes up as what it was, and learns.
                "paused" => on(&voters.lives[&victim].thread, async {}),
                _ => voters.hub.heal(),
            }
            voters.agree();
        }
    }
    println!("{count} voters: a new leader after ms: {times:?}; {} acknowledged, none lost", voters.acknowledged.len());
    assert!(voters.acknowledged.len() as u64 > voters.proposed / 2);
}

#[test]
fn three_voters_survive_any_single_crash_pause_and_partition() {
    single_faults(3);
}

#[test]
fn five_voters_survive_any_single_crash_pause_and_partition() {
    single_faults(5);
}

/// Ten times over, for the figures.
#[test]
fn a_new_leader_is_known_within_a_second_or_two() {
    let mut voters = Voters::start(3);
    let mut times = Vec::new();
    for _ in 0..6 {
        let (leader, _) = voters.await_leader(None);
        voters.kill(leader);
        times.push(voters.await_leader(Some(leader)).1.as_millis());
        voters.restart(leader);
        voters.agree();
    }
    times.sort_unstable();
    println!("a new leader after ms: {times:?}");
    // A busy machine may hold anybody up; the figures are printed.
    assert!(times[0] < 2_000, "{times:?}");
}

/// The leader and then a follower, of whom one has an heir and one has none.
#[test]
fn who_is_decommissioned_hands_its_vote_over_before_it_may_end() {
    let mut voters = Voters::start(3);
    voters.restart(3);
    for ordinal in 0..4 {
        assert!((0..50).any(|_| voters.propose(ordinal)), "node {ordinal} has no session");
    }
    for who in ["the leader", "another"] {
        let (leader, _) = voters.await_leader(None);
        let other = *voters.lives.keys().find(|ordinal| **ordinal != leader).unwrap();
        let (leaves, asked) = if who == "the leader" { (leader, other) } else { (other, leader) };
        let uid = voters.uids[&leaves];
        let outcome = voters.decommission(leaves, asked);
        assert!(matches!(&outcome, Outcome::Answered(answer) if answer.result == Ok(Applied::Retired)), "{outcome:?}");

        // Its process learns, too, that it may end.
        let until = Instant::now() + Duration::from_secs(60);
        while !voters.lives.values().all(|life| life.consensus.map().retirement(uid) == Some(true)) {
            let vitals: Vec<_> = voters.lives.iter().map(|(n, life)| (n, life.consensus.vitals())).collect();
            assert!(Instant::now() < until, "{who}, node {leaves}, may not end: {vitals:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        voters.kill(leaves);
        voters.agree();
        let (leader, _) = voters.await_leader(None);
        let votes = voters.lives[&leader].consensus.vitals().unwrap().voters;
        assert!(!votes.contains(&uid), "{votes:?}");
        assert_eq!(votes.len(), if who == "the leader" { 3 } else { 1 }, "of two nodes one votes");
    }
}
