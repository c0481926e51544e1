//! What the cluster decides, as one linearisable machine: the production state and the production leader, without Raft
//! around them. Whoever is cut off from it, or asks while nobody leads, is answered nothing.

use chappe_cluster::{
    control::{
        Answer, Health, Outcome,
        leader::{Leader, Timing},
    },
    ownership::{ClusterId, Command, Founding, Map, Ownership},
};
use chappe_schema::id::{Millis, NodeUid, SessionId};

/// See the module's documentation.
pub struct Plane {
    state: Ownership,
    index: u64,
    leader: Leader,
    /// Nobody leads until then.
    pub leaderless_until: Millis,
    led: bool,
    down: Vec<NodeUid>,
}

/// Timing of a cluster in a hurry: a seed lasts a minute or two.
const TIMING: Timing = Timing {
    missed_down: 400,
    missed: 8_000,
    grace: 3_000,
    asleep: 1_000,
    calm: 4_000,
    gather: 300,
    gather_max: 1_000,
    plan: 8_000,
    drain: 20_000,
};

impl Plane {
    pub fn found(partitions: usize, now: Millis) -> Self {
        let mut state = Ownership::default();
        let founding = Founding { cluster: ClusterId(1), generation: 1, partitions: partitions as u32, version: 1 };
        state.apply(1, &Command::Found(founding)).expect("an empty state can be founded");
        let leader = Leader::new(TIMING, now, state.map(), []);
        Self { state, index: 1, leader, leaderless_until: 0, led: true, down: Vec::new() }
    }

    pub fn map(&self) -> &Map {
        self.state.map()
    }

    pub fn propose(&mut self, command: &Command, now: Millis) -> Outcome {
        if now < self.leaderless_until {
            return Outcome::Unavailable;
        }
        self.index += 1;
        let result = self.state.apply(self.index, command);
        Outcome::Answered(Answer { version: self.state.map().version(), result })
    }

    pub fn keepalive(&mut self, session: SessionId, minute: u64, now: Millis) {
        self.leader.keepalive(session, minute, now);
    }

    pub fn health(&mut self, node: NodeUid, health: Health) {
        self.down.retain(|down| *down != node);
        if health == Health::Down {
            self.down.push(node);
        }
        self.leader.health(node, health);
    }

    /// The leader looks around; whether the map has changed by it.
    pub fn lead(&mut self, now: Millis) -> bool {
        if now < self.leaderless_until {
            self.led = false;
            return false;
        }
        if !self.led {
            self.led = true;
            self.leader = Leader::new(TIMING, now, self.state.map(), self.down.iter().copied());
        }
        let before = self.map().version();
        while let Some(command) = self.leader.next(now, self.state.map()) {
            self.index += 1;
            // What is refused was overtaken by something else.
            let refused = self.state.apply(self.index, &command).is_err();
            self.leader.settled();
            if refused {
                break;
            }
        }
        self.map().version() > before
    }
}
