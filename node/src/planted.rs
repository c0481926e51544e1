//! Bugs that are planted on purpose, one at a time, to see whether the simulator finds them. They exist in builds for tests
//! and simulations only, and are off unless a test switches one on for its own thread; in every other build nothing is
//! left of them.

#[cfg(any(test, feature = "simulation"))]
use std::cell::Cell;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Durable rows are acknowledged without a look at the fence.
    AckBeforeFence,
    /// A fence read covers what was issued while it was under way. Not among [`Self::ALL`]: in half a minute of simulated
    /// time it takes too rare a coincidence. The model and a test of the pump find it.
    TicketEarly,
    /// A partition opens before its predecessors' fences are durable. Not among [`Self::ALL`] either: since words between
    /// nodes arrive in order no seed below 3,000 has shown it (668 did before). The model finds it.
    OpenBeforeFence,
    /// Only the last owner is fenced, whoever else is not.
    FenceOnlyLast,
    /// The map says who is not fenced; nobody listens.
    UnfencedForgotten,
    /// The winner of a slot is the row that was written first, whatever its epoch.
    EpochNotCompared,
    /// Rows of all owners stand under one key, in CQL. Not among [`Self::ALL`]: the simulated store has no such key. Tests on a
    /// real server find it.
    EpochNotInKey,
    /// Adopted rows count as committed at once and are not written again.
    AdoptedNotWritten,
    /// Ids are not looked up: a repetition is a new message.
    DuplicateNotLookedUp,
    /// The ids that a snapshot brings are forgotten.
    SnapshotWithoutIds,
    /// Ids are dropped from memory as soon as their block is on its way.
    IdsDroppedEarly,
    /// Recovery ends at the base: what may have been acknowledged above it is dropped.
    CutAtBase,
    /// A snapshot is written when it is made, ahead of the commit.
    SnapshotAhead,
    /// What a giver showed is opened though it has moved on since.
    StaleShown,
    /// What was shown under a plan that was aborted is opened.
    AbortedPlanOpened,
    /// A giver that is cut off lets out what the log confirms.
    CutReleases,
    /// After an aborted move slots that were on their way are given out again.
    SlotsAgainAfterAbort,
    /// An entity is read again while rows of it are on their way.
    RecoveryOverUnfinished,
    /// A row that is written again carries what came in meanwhile.
    RetryDiffers,
    /// A node goes on under a session that has ended.
    SessionRevived,
    /// A gateway's later questions overtake one that was refused.
    LaneOutOfOrder,
    /// A commit that nobody knows the outcome of is taken for a failure: the giver goes on.
    CommitUnknownResumes,
    /// Reads show what is not committed yet.
    ReadsUncommitted,
    /// A giver hands over what is not committed yet.
    HandsUncommitted,
    /// An event is adopted whatever stands below it.
    MisfitIgnored,
    /// A log is read above a snapshot, and nobody looks whether a newer one was written meanwhile. Not among [`Self::ALL`]: no
    /// seed has been looked for that shows it.
    RecoveryOvertaken,
}

impl Bug {
    /// Those that the simulator need not find: why stands beside each.
    pub const RARE: &'static [Self] = &[Self::TicketEarly, Self::OpenBeforeFence, Self::RecoveryOvertaken];

    /// Those that the simulator has to find.
    pub const ALL: &'static [Self] = &[
        Self::AckBeforeFence,
        Self::FenceOnlyLast,
        Self::UnfencedForgotten,
        Self::EpochNotCompared,
        Self::AdoptedNotWritten,
        Self::DuplicateNotLookedUp,
        Self::SnapshotWithoutIds,
        Self::IdsDroppedEarly,
        Self::CutAtBase,
        Self::SnapshotAhead,
        Self::StaleShown,
        Self::AbortedPlanOpened,
        Self::CutReleases,
        Self::SlotsAgainAfterAbort,
        Self::RecoveryOverUnfinished,
        Self::RetryDiffers,
        Self::SessionRevived,
        Self::LaneOutOfOrder,
        Self::CommitUnknownResumes,
        Self::ReadsUncommitted,
        Self::HandsUncommitted,
        Self::MisfitIgnored,
    ];
}

#[cfg(any(test, feature = "simulation"))]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in this thread, or digs it up.
#[cfg(any(test, feature = "simulation"))]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(any(test, feature = "simulation"))]
#[must_use]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// No bug is planted here.
#[cfg(not(any(test, feature = "simulation")))]
#[must_use]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
