//! How fast membership beats, and why.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use chappe_schema::id::Millis;
use foca::{Config, PeriodicParams};

use super::{core, seal};

/// Intervals of membership; the same at all members.
///
/// A dead member is probed by somebody within one or two `probe`s, is suspected at the end of that one, and is down `suspicion`
/// later; so with `PROMPT` all know it after 1.7 s as a rule. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Between two probes, each of one member.
    pub probe: Millis,
    /// How long an answer may take before three others are asked to probe as well. They have the rest of `probe` for it.
    pub rtt: Millis,
    /// How long a suspected member has to contradict.
    pub suspicion: Millis,
    /// Between two tellings of what is new, each to three members.
    pub gossip: Millis,
    /// Between two announcements to the seeds, and to one member that is up. Whatever got lost is mended by them.
    pub announce: Millis,
    /// The same for a member that knows nobody who is up.
    pub lonely: Millis,
    /// Between two announcements to members that are down: a partition heals through them.
    pub revive: Millis,
    /// Whoever acts so late was asleep itself; what it waited for waits on, as if no time had passed.
    pub asleep: Millis,
}

impl Rhythm {
    /// For machines that have the CPU they ask for.
    pub const PROMPT: Self = Self {
        probe: 300,
        rtt: 100,
        suspicion: 1_000,
        gossip: 100,
        announce: 10_000,
        lonely: 1_000,
        revive: 5_000,
        asleep: 300,
    };

    /// For machines on which processes starve for seconds.
    pub const GENEROUS: Self =
        Self { probe: 1_000, rtt: 400, suspicion: 4_000, gossip: 300, lonely: 2_000, asleep: 1_000, ..Self::PROMPT };

    pub(super) fn config(self) -> Config {
        let every = |millis, members| PeriodicParams { frequency: Duration::from_millis(millis), num_members: members };
        Config {
            probe_period: Duration::from_millis(self.probe),
            probe_rtt: Duration::from_millis(self.rtt),
            num_indirect_probes: FANOUT,
            max_transmissions: TOLD_MAX,
            suspect_to_down_after: Duration::from_millis(self.suspicion),
            remove_down_after: Some(Duration::from_millis(core::FORGET)),
            max_packet_size: PAYLOAD_MAX,
            notify_down_members: true,
            periodic_announce: Some(every(self.announce, NonZeroUsize::MIN)),
            periodic_announce_to_down_members: Some(every(self.revive, FANOUT)),
            periodic_gossip: Some(every(self.gossip, FANOUT)),
        }
    }
}

/// Members that are asked or told at once.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).expect("it is not 0");

/// How often one member tells what is new: enough for several hundred members.
const TOLD_MAX: NonZeroU8 = NonZeroU8::new(10).expect("it is not 0");

/// What is left of a datagram for foca.
const PAYLOAD_MAX: NonZeroUsize = NonZeroUsize::new(seal::PAYLOAD_MAX - 1).expect("it is not 0");
