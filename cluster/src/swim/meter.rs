//! Membership in numbers.

use foca::State;
use metrics::{Counter, Gauge, counter, gauge};

use super::{
    Change,
    core::{Core, Counts},
    peer::Role,
    seal::Dropped,
};
use crate::process::metrics::{
    SWIM_BYTES_TOTAL, SWIM_CHANGES_TOTAL, SWIM_CONTESTED_TOTAL, SWIM_DROPPED_TOTAL, SWIM_MEMBERS, SWIM_PACKETS_TOTAL,
    SWIM_PROBES_FAILED_TOTAL, SWIM_SLEPT_TOTAL,
};

pub(super) struct Meter {
    packets_in: Counter,
    packets_out: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    /// By role, and state.
    members: [(Role, State, Gauge); 6],
    shown: Counts,
}

impl Meter {
    pub(super) fn new() -> Self {
        let packets = |direction| counter!(SWIM_PACKETS_TOTAL, "direction" => direction);
        let bytes = |direction| counter!(SWIM_BYTES_TOTAL, "direction" => direction);
        let members = |role, state| {
            let role_label = match role {
                Role::Node => "node",
                Role::Gateway => "gateway",
            };
            let state_label = match state {
                State::Alive => "up",
                State::Suspect => "suspect",
                State::Down => "down",
            };
            (role, state, gauge!(SWIM_MEMBERS, "role" => role_label, "state" => state_label))
        };
        Self {
            packets_in: packets("in"),
            packets_out: packets("out"),
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            members: [
                members(Role::Node, State::Alive),
                members(Role::Node, State::Suspect),
                members(Role::Node, State::Down),
                members(Role::Gateway, State::Alive),
                members(Role::Gateway, State::Suspect),
                members(Role::Gateway, State::Down),
            ],
            shown: Counts::default(),
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.packets_in.increment(1);
        self.bytes_in.increment(bytes as u64);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.packets_out.increment(1);
        self.bytes_out.increment(bytes as u64);
    }

    /// What the core counts, and whom it knows.
    pub(super) fn show(&mut self, core: &Core) {
        let (before, now) = (self.shown, core.counts());
        counter!(SWIM_PROBES_FAILED_TOTAL).increment(now.probes_failed - before.probes_failed);
        counter!(SWIM_CONTESTED_TOTAL).increment(now.contested - before.contested);
        counter!(SWIM_SLEPT_TOTAL).increment(now.slept - before.slept);
        self.shown = now;
        for (role, state, gauge) in &self.members {
            let such = core.states().filter(|(peer, is)| (peer.role, *is) == (*role, *state)).count();
            gauge.set(such as f64);
        }
    }
}

pub(super) fn dropped(why: Dropped) {
    counter!(SWIM_DROPPED_TOTAL, "reason" => why.label()).increment(1);
}

pub(super) fn unsent() {
    counter!(SWIM_DROPPED_TOTAL, "reason" => "unsent").increment(1);
}

pub(super) fn changed(change: &Change) {
    let change = match change {
        Change::Up(_) => "up",
        Change::Down(_) => "down",
        Change::Renewed(_) => "renewed",
    };
    counter!(SWIM_CHANGES_TOTAL, "change" => change).increment(1);
}
