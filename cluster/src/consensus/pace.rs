//! How fast Raft beats, and why.

use chappe_schema::id::Millis;
use openraft::{Config, SnapshotPolicy};

use crate::{control::leader::Timing, swim::rhythm::Rhythm};

/// Intervals and timeouts of a cluster; the same on all its nodes.
///
/// A voter that hears nothing for its own election timeout, twice over, stands for election; voters that hear a leader
/// refuse votes for one timeout. Each has another timeout, by its ordinal, further apart than the checks for it are: two do not stand
/// at the same moment, and if they did, not twice. With `PROMPT` a new leader is known 0.7 to 1 s after the last one's
/// last heartbeat, which is before SWIM has made up its mind (1.3 s), so an owner that was the leader as well is missed no
/// longer than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between heartbeats, and how long an answer to one may take.
    pub heartbeat: Millis,
    /// The shortest election timeout. Six heartbeats and more: a lost packet or a slow disk elects nobody.
    pub election: Millis,
    /// A snapshot is written every so many entries: as many are read again at a start.
    pub snapshot: u64,
    /// What the leader waits for.
    pub timing: Timing,
    /// How fast membership beats.
    pub swim: Rhythm,
}

impl Pace {
    /// For machines that have the CPU they ask for.
    pub const PROMPT: Self =
        Self { heartbeat: 50, election: 340, snapshot: 5_000, timing: Timing::PROMPT, swim: Rhythm::PROMPT };

    /// For machines on which processes starve for seconds.
    pub const GENEROUS: Self =
        Self { heartbeat: 300, election: 2_000, timing: Timing::GENEROUS, swim: Rhythm::GENEROUS, ..Self::PROMPT };

    /// How far apart the election timeouts of two voters are: as far as Raft's own checks for them.
    const fn step(self) -> Millis {
        self.heartbeat * 3 / 2
    }

    /// Of the node with this ordinal.
    pub(super) fn election_of(self, ordinal: u32) -> Millis {
        self.election + self.step() * u64::from(ordinal % ELECTION_STEPS)
    }

    /// Whoever leads and has not been answered by a majority for so long decides nothing.
    pub(super) const fn unheard(self) -> Millis {
        2 * self.election
    }

    /// How long a leader must be silent for any voter to stand for election.
    pub(super) const fn silence(self) -> Millis {
        2 * (self.election + (ELECTION_STEPS as Millis - 1) * self.step()) + self.heartbeat
    }

    pub(super) fn config(self, ordinal: u32) -> Config {
        let election = self.election_of(ordinal);
        Config {
            cluster_name: "chappe".to_owned(),
            heartbeat_interval: self.heartbeat,
            // Raft draws a number from here to below there, once: this one.
            election_timeout_min: election,
            election_timeout_max: election + 1,
            // A snapshot is 100 KB.
            install_snapshot_timeout: self.election * 8,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot),
            // Who is further behind than this is sent the snapshot, which has come to be by then.
            replication_lag_threshold: 2 * self.snapshot,
            // Entries that are kept although a snapshot has them, for those who were away for a moment.
            max_in_snapshot_log_to_keep: self.snapshot / 5,
            ..Config::default()
        }
    }
}

/// As many voters as there are at most.
const ELECTION_STEPS: u32 = 5;

// A voter that stands for election has waited its timeout twice; the longest lease must be over by then.
const _: () = {
    let (shortest, longest) = (Pace::PROMPT.election, Pace::PROMPT.election + 4 * Pace::PROMPT.step());
    assert!(2 * shortest > longest + Pace::PROMPT.heartbeat / 2);
    let (shortest, longest) = (Pace::GENEROUS.election, Pace::GENEROUS.election + 4 * Pace::GENEROUS.step());
    assert!(2 * shortest > longest);
};
