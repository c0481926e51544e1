//! What can be done wrong on purpose: a checker that finds nothing wrong must find these.

use std::fmt;

macro_rules! variants {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// What is done wrong: each is a rule of the protocol, left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
        pub enum Variant {
            $($(#[doc = $doc])* $name,)*
        }

        impl Variant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

variants! {
    /// Nothing.
    None,
    /// An owner acknowledges what is durable without reading its fence.
    NoFenceRead,
    /// A fence read covers what was not yet durable when it started.
    FenceReadEarly,
    /// A successor reads the log before the fence is at quorum.
    LogReadEarly,
    /// What a successor adopts counts as committed without being written again.
    AdoptedNotRewritten,
    /// A row's key is its slot: whatever arrives last stays.
    EpochNotInKey,
    /// The walk does not stop at a command that stands lower already.
    NoIdLookup,
    /// Adopted rows count as fresh in the walk.
    AdoptedCountsAsFresh,
    /// The walk does not ask what a row was written above.
    ChainNotCompared,
    /// An adopted row names its own epoch as the one under which its event was written first.
    AdoptedGetsNewOrigin,
    /// A row of a newer owner does not end the session that reads it.
    NewerEpochIgnored,
    /// A new owner fences the session whose expiry made it owner, and no other.
    FencesOnlyLast,
    /// The receiver of a planned move fences nobody.
    MoveFencesNobody,
    /// A session leaves `unfenced` when the write of its fence was begun.
    UnfencedForgotten,
    /// A snapshot shows what is not committed.
    SnapshotAhead,
    /// A snapshot's epoch counts fresh rows above it.
    SnapshotFreshAbove,
    /// A snapshot carries no epoch of a fresh row.
    SnapshotForgetsFresh,
    /// A snapshot carries the origin of an event above it.
    SnapshotOriginAbove,
    /// A snapshot carries no origin of its last event.
    SnapshotForgetsOrigin,
    /// A snapshot of a newer owner does not end the session that reads it.
    NewerSnapshotIgnored,
    /// The walk does not count the ids below the snapshot as lower slots.
    SnapshotIdsNotCounted,
    /// The receiver opens whatever was streamed to it, confirmed by the delta or not.
    StreamNotConfirmed,
    /// The delta carries an entity at its committed seq although its recovery found more.
    DeltaBeforeAdopted,
    /// A giver whose move was aborted assigns its unresolved slots anew.
    SlotAssignedAnew,
    /// A giver that does not know what became of its commit goes on.
    ResumesOnUnknown,
    /// A giver proposes the commit before it has sealed.
    CommitBeforeSeal,
    /// A sealed giver acknowledges what becomes durable.
    CommitsWhileSealed,
    /// A sealed giver answers reads.
    SealedServesReads,
    /// The map applies a commit of a move that was aborted.
    AbortedMoveCommits,
    /// A commit names the two sessions and the epoch, and not the move.
    CommitNamesNoMove,
    /// The entity is recovered again while rows of the same session are unfinished.
    RecoversOverUnfinished,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("none", |value| value.get_name()))
    }
}
