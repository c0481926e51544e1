//! The control plane in numbers: gauges that the driving loop sets, and what proposals come to.

use chappe_schema::id::NodeUid;
use metrics::{Counter, Gauge, counter, gauge};

use super::{Vitals, types::Metrics};
use crate::{
    control::Outcome,
    ownership::Map,
    process::metrics::{
        CLUSTER_MAP_VERSION, CLUSTER_PARTITIONS, CLUSTER_SESSIONS, RAFT_APPLIED_INDEX, RAFT_HAS_LEADER, RAFT_IS_LEADER,
        RAFT_IS_VOTER, RAFT_LAST_INDEX, RAFT_LEADER_CHANGES_TOTAL, RAFT_PROPOSALS_TOTAL, RAFT_TERM,
    },
};

pub(super) struct Meter {
    /// The version that the map's gauges show.
    map: Option<u64>,
    map_version: Gauge,
    owned: Gauge,
    unowned: Gauge,
    moving: Gauge,
    live: Gauge,
    unfenced: Gauge,
    term: Gauge,
    is_voter: Gauge,
    is_leader: Gauge,
    has_leader: Gauge,
    last: Gauge,
    applied: Gauge,
    reigns: Counter,
}

impl Meter {
    pub(super) fn new() -> Self {
        let partitions = |state| gauge!(CLUSTER_PARTITIONS, "state" => state);
        Self {
            map: None,
            map_version: gauge!(CLUSTER_MAP_VERSION),
            owned: partitions("owned"),
            unowned: partitions("unowned"),
            moving: partitions("moving"),
            live: gauge!(CLUSTER_SESSIONS, "state" => "live"),
            unfenced: gauge!(CLUSTER_SESSIONS, "state" => "unfenced"),
            term: gauge!(RAFT_TERM),
            is_voter: gauge!(RAFT_IS_VOTER),
            is_leader: gauge!(RAFT_IS_LEADER),
            has_leader: gauge!(RAFT_HAS_LEADER),
            last: gauge!(RAFT_LAST_INDEX),
            applied: gauge!(RAFT_APPLIED_INDEX),
            reigns: counter!(RAFT_LEADER_CHANGES_TOTAL),
        }
    }

    pub(super) fn reign_began(&self) {
        self.reigns.increment(1);
    }

    /// What the node's part is now; nothing if it has none any more.
    pub(super) fn show(&mut self, map: &Map, vitals: Option<&Vitals>) {
        let is = |yes: bool| f64::from(u8::from(yes));
        self.is_voter.set(is(vitals.is_some_and(|vitals| vitals.votes)));
        self.is_leader.set(is(vitals.is_some_and(|vitals| vitals.leads)));
        self.has_leader.set(is(vitals.is_some_and(|vitals| vitals.leader.is_some())));
        if let Some(vitals) = vitals {
            self.term.set(vitals.term as f64);
            self.last.set(vitals.last as f64);
            self.applied.set(vitals.applied as f64);
        }
        if self.map != Some(map.version()) {
            self.map = Some(map.version());
            self.show_map(map);
        }
    }

    fn show_map(&self, map: &Map) {
        let unowned = map.orphans().count() as u32;
        // Without the founding in its upper bits: a gauge holds 53 of them.
        self.map_version.set((map.version() & ((1 << 48) - 1)) as f64);
        self.unowned.set(unowned);
        self.owned.set(map.partitions() - unowned);
        self.moving.set(map.plans().map(|(_, plan)| plan.moves.len()).sum::<usize>() as f64);
        self.live.set(map.sessions().len() as f64);
        self.unfenced.set(map.unfenced().count() as f64);
    }
}

pub(super) fn proposed(outcome: &Outcome) {
    let result = match outcome {
        Outcome::Answered(answer) if answer.result.is_ok() => "applied",
        Outcome::Answered(_) => "refused",
        Outcome::Unknown => "unknown",
        Outcome::Unavailable => "unavailable",
    };
    counter!(RAFT_PROPOSALS_TOTAL, "result" => result).increment(1);
}

/// What a dashboard shows of Raft's own numbers.
pub(super) fn vitals(metrics: &Metrics, reigns: bool, node: u64, leader: Option<NodeUid>) -> Vitals {
    let voters = || metrics.membership_config.voter_ids();
    Vitals {
        term: metrics.current_term,
        // The loop that reigns may not have heard yet that another does.
        leads: metrics.state.is_leader() && reigns,
        leader,
        votes: voters().any(|voter| voter == node),
        voters: voters().map(NodeUid).collect(),
        applied: metrics.last_applied.map_or(0, |applied| applied.index),
        last: metrics.last_log_index.unwrap_or(0),
        snapshot: metrics.snapshot.map_or(0, |snapshot| snapshot.index),
    }
}
