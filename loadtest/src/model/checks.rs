//! The checks and their verdicts: those that take a moment are tests, the long ones are for a night.

use super::{
    checker::{Report, Verdict, exhaust, wander},
    setup::{Setup, Stop, Store},
    variant::Variant,
};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// What it is about.
    pub name: &'static str,
    /// What is checked.
    pub setup: Setup,
    /// How.
    pub by: By,
    /// Whether nothing wrong is to be found.
    pub holds: bool,
    /// Whether it takes longer than a moment.
    pub is_long: bool,
}

/// How a setup is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Every state.
    Breadth,
    /// So many random walks.
    Walks(u64),
}

/// The steps of a random walk, at most.
pub const WALK_STEPS: u32 = 120;

impl Check {
    const fn holds(name: &'static str, setup: Setup) -> Self {
        Self { name, setup, by: By::Breadth, holds: true, is_long: false }
    }

    const fn violated(name: &'static str, setup: Setup) -> Self {
        Self { holds: false, ..Self::holds(name, setup) }
    }

    const fn broken(setup: Setup, variant: Variant) -> Self {
        Self::violated("", setup.broken(variant))
    }

    const fn by_walks(self, walks: u64) -> Self {
        Self { by: By::Walks(walks), ..self }
    }

    const fn long(self) -> Self {
        Self { is_long: true, ..self }
    }

    /// Does it, with at most `states_max` states.
    pub fn run(&self, states_max: u64, seed: u64) -> Report {
        match self.by {
            By::Breadth => exhaust(&self.setup, states_max, |_, _| {}),
            By::Walks(walks) => wander(&self.setup, walks, WALK_STEPS, seed),
        }
    }

    /// Whether a report is what was to be expected.
    pub fn is_met_by(&self, report: &Report) -> bool {
        match (&report.verdict, self.by) {
            (Verdict::Holds, _) | (Verdict::Unfinished, By::Walks(_)) => self.holds,
            (Verdict::Unfinished, By::Breadth) => false,
            (Verdict::Violated(_), _) => !self.holds,
        }
    }

    /// Its name, or that of what is done wrong.
    pub fn title(&self) -> String {
        if self.setup.variant == Variant::None { self.name.to_owned() } else { self.setup.variant.to_string() }
    }
}

/// Three replicas, spelt out.
const fn replicas(sessions: u8, slots: u8, commands: u8) -> Setup {
    Setup::of(sessions, slots, commands).store(Store::Replicas)
}

/// Any quorum.
const fn quorum(sessions: u8, slots: u8, commands: u8) -> Setup {
    Setup::of(sessions, slots, commands).store(Store::Quorum)
}

/// Any quorum, and fenced sessions do nothing more.
const fn turns(sessions: u8, slots: u8, commands: u8) -> Setup {
    Setup::of(sessions, slots, commands)
}

/// With the walk that ends at gaps and repeated ids only, and without watermarks.
const fn plain(setup: Setup) -> Setup {
    setup.without_cw().stop(Stop::Repeated)
}

/// With the walk that ends at fresh epochs too.
const fn fresh(setup: Setup) -> Setup {
    setup.stop(Stop::Fresh)
}

/// All checks.
pub const CHECKS: &[Check] = &[
    // === one owner after the other
    Check::holds("the rules in use", replicas(2, 1, 2)),
    Check::holds("the rules in use", replicas(2, 2, 2)).long(),
    Check::holds("the rules in use", replicas(3, 1, 2)).long(),
    Check::holds("the rules in use", replicas(3, 2, 3)).by_walks(200),
    Check::holds("the rules in use", replicas(3, 2, 3)).by_walks(1_000_000).long(),
    Check::holds("the rules in use", quorum(2, 2, 2)),
    Check::holds("the rules in use", quorum(3, 2, 3)),
    Check::holds("the rules in use", quorum(4, 2, 2)).long(),
    Check::holds("the rules in use", quorum(4, 3, 3)).long(),
    Check::holds("the rules in use", turns(4, 2, 2)),
    Check::holds("the rules in use", turns(4, 3, 3)).long(),
    Check::holds("the rules in use", turns(5, 2, 3)).long(),
    Check::holds("the rules in use", turns(3, 4, 4)).long(),
    Check::broken(replicas(2, 2, 2), Variant::NoFenceRead),
    Check::broken(quorum(2, 2, 2), Variant::NoFenceRead),
    Check::broken(replicas(2, 2, 2), Variant::FenceReadEarly),
    Check::broken(quorum(2, 2, 2), Variant::FenceReadEarly),
    Check::broken(replicas(2, 2, 2), Variant::LogReadEarly),
    Check::broken(quorum(2, 2, 2), Variant::LogReadEarly),
    Check::broken(replicas(2, 2, 2), Variant::AdoptedNotRewritten),
    Check::broken(quorum(2, 2, 2), Variant::AdoptedNotRewritten),
    Check::broken(replicas(2, 2, 2), Variant::EpochNotInKey),
    Check::broken(replicas(3, 2, 3), Variant::ChainNotCompared).by_walks(10_000),
    Check::broken(turns(3, 2, 2), Variant::ChainNotCompared),
    Check::broken(turns(3, 2, 2).stop(Stop::Chain), Variant::ChainNotCompared),
    Check::broken(replicas(3, 2, 3), Variant::AdoptedGetsNewOrigin).by_walks(10_000),
    Check::broken(turns(3, 2, 2), Variant::AdoptedGetsNewOrigin),
    Check::broken(replicas(3, 2, 2), Variant::NewerEpochIgnored).long(),
    Check::broken(quorum(3, 2, 2), Variant::NewerEpochIgnored),
    // === recovery again, snapshots
    Check::holds("evictions", replicas(2, 1, 2).evictions()),
    Check::holds("evictions", replicas(2, 2, 2).evictions()).long(),
    Check::holds("evictions", quorum(3, 2, 2).evictions()),
    Check::holds("evictions", quorum(3, 3, 3).evictions()).long(),
    Check::holds("evictions", turns(3, 3, 4).evictions()).long(),
    Check::holds("snapshots", quorum(3, 2, 2).snapshots(1)),
    Check::holds("snapshots", replicas(2, 2, 2).snapshots(1)).long(),
    Check::holds("evictions, snapshots", replicas(2, 1, 2).evictions().snapshots(1)),
    Check::holds("evictions, snapshots", turns(3, 2, 2).evictions().snapshots(1)),
    Check::holds("evictions, snapshots", quorum(3, 2, 2).evictions().snapshots(1)).long(),
    Check::holds("evictions, snapshots", turns(3, 3, 3).evictions().snapshots(2)).long(),
    Check::holds("one flight at a time", quorum(3, 2, 3).single_flight()),
    Check::holds("one flight at a time, evictions", turns(4, 2, 3).evictions().single_flight()).long(),
    Check::holds("one flight at a time, evictions", turns(4, 3, 4).evictions().single_flight()).long(),
    Check::broken(quorum(2, 2, 2).evictions(), Variant::RecoversOverUnfinished),
    Check::broken(replicas(2, 2, 2).evictions(), Variant::RecoversOverUnfinished),
    Check::broken(quorum(2, 2, 2).snapshots(1), Variant::SnapshotAhead),
    Check::broken(turns(3, 3, 3).snapshots(1), Variant::SnapshotOriginAbove),
    Check::broken(turns(3, 2, 2).snapshots(1), Variant::SnapshotForgetsOrigin),
    Check::broken(quorum(2, 2, 2).evictions().snapshots(1), Variant::NewerSnapshotIgnored),
    // === planned moves, several that are to be fenced
    Check::holds("a move", replicas(2, 1, 2).moves(1, 2)),
    Check::holds("a move", replicas(2, 2, 2).moves(1, 2)).long(),
    Check::holds("moves", replicas(2, 1, 2).moves(2, 3)).long(),
    Check::holds("moves", quorum(2, 2, 2).moves(2, 3)),
    Check::holds("moves", quorum(3, 2, 2).moves(2, 4)).long(),
    Check::holds("moves", turns(3, 2, 2).moves(1, 3)),
    Check::holds("moves", turns(3, 2, 2).moves(2, 5)).long(),
    Check::holds("moves", turns(4, 2, 2).moves(2, 4)).long(),
    Check::holds("a move, evictions", turns(3, 3, 3).moves(1, 3).evictions()).long(),
    Check::holds("a move, evictions, snapshots", turns(2, 2, 2).moves(1, 3).evictions().snapshots(1)),
    Check::holds("a move, evictions, snapshots", turns(3, 2, 3).moves(1, 4).evictions().snapshots(1)).long(),
    Check::holds("moves, evictions, snapshots", quorum(2, 2, 2).moves(2, 3).evictions().snapshots(1)).long(),
    Check::holds("moves, evictions, snapshots", turns(2, 2, 2).moves(3, 4).evictions().snapshots(1)).long(),
    Check::holds("moves, evictions, snapshots", turns(3, 2, 2).moves(2, 4).evictions().snapshots(1)).long(),
    Check::broken(quorum(3, 2, 2), Variant::FencesOnlyLast),
    Check::broken(replicas(3, 1, 2), Variant::FencesOnlyLast).by_walks(10_000),
    Check::broken(quorum(3, 2, 2), Variant::UnfencedForgotten),
    Check::broken(quorum(3, 2, 2).moves(1, 3), Variant::MoveFencesNobody),
    Check::broken(turns(3, 2, 2).moves(1, 3), Variant::DeltaBeforeAdopted),
    Check::broken(turns(2, 2, 2).moves(1, 2).evictions(), Variant::DeltaBeforeAdopted),
    Check::broken(quorum(2, 2, 2).moves(2, 2), Variant::StreamNotConfirmed),
    Check::broken(replicas(2, 2, 2).moves(1, 2), Variant::SlotAssignedAnew).by_walks(10_000),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::SlotAssignedAnew),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::ResumesOnUnknown),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::CommitBeforeSeal),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::CommitsWhileSealed),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::SealedServesReads),
    Check::broken(quorum(2, 2, 2).moves(1, 2), Variant::AbortedMoveCommits),
    Check::broken(quorum(2, 2, 2).moves(2, 2), Variant::CommitNamesNoMove),
    // === other ends of the walk, which keep acknowledgements and not histories
    Check::holds("acknowledgements, no cw", plain(replicas(2, 1, 2))),
    Check::holds("acknowledgements, no cw", plain(replicas(2, 2, 2))).long(),
    Check::holds("acknowledgements, no cw", plain(replicas(3, 1, 2))).long(),
    Check::holds("acknowledgements, no cw", plain(quorum(3, 2, 3))),
    Check::holds("acknowledgements", replicas(2, 2, 2).stop(Stop::Repeated)).long(),
    Check::holds("acknowledgements", replicas(3, 2, 2).stop(Stop::Repeated)).by_walks(500_000).long(),
    Check::holds("acknowledgements", quorum(3, 2, 3).stop(Stop::Repeated)),
    Check::holds("acknowledgements", turns(4, 3, 3).stop(Stop::Repeated)).long(),
    Check::holds("acknowledgements", fresh(replicas(2, 2, 2))).long(),
    Check::holds("acknowledgements", fresh(replicas(3, 1, 2))).long(),
    Check::holds("acknowledgements", fresh(replicas(3, 2, 3))).by_walks(1_000_000).long(),
    Check::holds("acknowledgements", fresh(quorum(3, 2, 3))),
    Check::holds("acknowledgements", fresh(quorum(4, 3, 3))).long(),
    Check::holds("evictions, snapshots", fresh(turns(3, 3, 3)).evictions().snapshots(2)).long(),
    Check::holds("moves, evictions, snapshots", fresh(turns(3, 2, 2)).moves(2, 4).evictions().snapshots(1)).long(),
    Check::violated("histories", replicas(3, 2, 3).stop(Stop::Repeated).history()).by_walks(10_000),
    Check::violated("histories", fresh(replicas(3, 2, 3)).history()).by_walks(10_000),
    Check::violated("histories", fresh(turns(3, 2, 3)).history()),
    Check::violated("histories", fresh(turns(3, 2, 3)).history().single_flight().evictions()),
    Check::broken(replicas(3, 2, 2).stop(Stop::Repeated), Variant::NoIdLookup).by_walks(10_000),
    Check::broken(fresh(turns(3, 2, 2)), Variant::NoIdLookup),
    Check::broken(fresh(replicas(3, 2, 3)), Variant::AdoptedCountsAsFresh).by_walks(10_000),
    Check::broken(fresh(turns(3, 2, 2)), Variant::AdoptedCountsAsFresh),
    Check::broken(fresh(turns(3, 3, 3)).snapshots(1), Variant::SnapshotFreshAbove),
    Check::holds("acknowledgements", fresh(turns(3, 3, 3)).snapshots(1).broken(Variant::SnapshotForgetsFresh)).long(),
    Check::broken(fresh(turns(4, 2, 2)).snapshots(1), Variant::SnapshotIdsNotCounted),
];
