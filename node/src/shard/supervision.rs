//! Supervision: a panic while one entity is handled costs that entity its state and reaches nobody else.
//!
//! Whatever handles something for one entity runs [`Shard::guarded`]. What surrounds the entity (its line, what waits
//! for it, its connections) lives outside of its state and outlives it: rows on their way are committed all the same,
//! then the log is read again. Three panics within a minute: the entity is withdrawn for some minutes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chappe_schema::{
    error::Code,
    id::{EntityId, GatewayId, Millis},
    limit::PANICS_PER_MINUTE_MAX,
    wire::Correlation,
};

use super::{Phase, Shard, Slot};
use crate::planted::{Bug, is};

/// For how long an entity that panicked again and again is withdrawn.
pub(super) const WITHDRAWN_MS: u64 = 5 * 60_000;

/// A request that only the work under way knows of: if that panics, it is answered `internal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InHand {
    Command(GatewayId, Correlation),
    Connect(GatewayId, Correlation),
    AskAccess(GatewayId, Correlation),
}

impl Shard {
    /// Runs what handles something for one entity. `None` after a panic: then the entity's state is gone, and it is
    /// being read again.
    pub(super) fn guarded<T>(
        &mut self,
        entity: impl FnOnce() -> EntityId,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        self.guarded_for(None, entity, work)
    }

    /// [`guarded`](Self::guarded), with a request that is answered in any case.
    pub(super) fn guarded_for<T>(
        &mut self,
        request: Option<InHand>,
        entity: impl FnOnce() -> EntityId,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let outer = std::mem::replace(&mut self.in_hand, request);
        // Nobody sees what is half changed: the state is dropped, and everything else is either of the shard's own
        // books, which are kept in whole steps, or mended below.
        let done = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(any(test, feature = "simulation"))]
            fault::pass(fault::Moment::Before);
            let done = work(self);
            #[cfg(any(test, feature = "simulation"))]
            fault::pass(fault::Moment::After);
            done
        }));
        let request = std::mem::replace(&mut self.in_hand, outer);
        if done.is_err() {
            self.panicked(entity(), request);
        }
        done.ok()
    }

    /// The request in hand is kept where its answer will come from.
    pub(super) const fn kept(&mut self) {
        self.in_hand = None;
    }

    fn panicked(&mut self, entity: EntityId, request: Option<InHand>) {
        tracing::error!(event = "entity_panicked", %entity);
        self.measures.restarted(&entity, "panic");
        match &entity {
            EntityId::Conversation(id) => self.conversation_panicked(*id),
            EntityId::User(id) => self.user_panicked(id),
        }
        match (request, &entity) {
            (Some(InHand::Command(gateway, correlation)), _) => {
                self.reply(gateway, correlation, Err(Code::Internal.into()));
            }
            (Some(InHand::Connect(gateway, correlation)), EntityId::User(user)) => {
                self.connected(user, gateway, correlation, Err(Code::Internal.into()));
            }
            (Some(InHand::AskAccess(gateway, correlation)), _) => {
                self.tell_access(gateway, correlation, Err(Code::Internal.into()));
            }
            // Nobody connects to a conversation.
            (Some(InHand::Connect(..)), EntityId::Conversation(_)) | (None, _) => {}
        }
    }
}

impl<C, P, R> Slot<C, P, R> {
    /// Whether the log is to be read now: the entity has no state, nobody is reading, and every row that this session
    /// sent for it is durable. The caller reads.
    pub(super) fn begin_reading(&mut self) -> bool {
        let unfinished = !self.line.has_no_rows() && !is(Bug::RecoveryOverUnfinished);
        if self.reading || unfinished || !matches!(self.phase, Phase::Loading) {
            return false;
        }
        self.reading = true;
        true
    }

    /// Drops the state after a panic. What was withdrawn before stays so.
    pub(super) fn lose_state(&mut self, now: Millis) -> Lost {
        self.panics.retain(|at| *at + 60_000 > now);
        self.panics.push(now);
        if matches!(self.phase, Phase::Withdrawn { .. }) {
            return Lost::Withdrawn;
        }
        self.phase = Phase::Loading;
        if self.panics.len() >= PANICS_PER_MINUTE_MAX { Lost::Hopeless } else { Lost::Mendable }
    }
}

/// What becomes of an entity after a panic.
pub(super) enum Lost {
    /// It is read again.
    Mendable,
    /// Too many panics in a minute: it is to be withdrawn.
    Hopeless,
    /// It was withdrawn already.
    Withdrawn,
}

/// Lets tests of supervision, and simulations, make any guarded work panic.
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod fault {
    use std::cell::Cell;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Moment {
        Before,
        After,
    }

    thread_local! {
        static PLANTED: Cell<Option<(usize, Moment)>> = const { Cell::new(None) };
    }

    /// The work after so many others panics, before it has begun or when it is done.
    pub(crate) fn plant(passes: usize, moment: Moment) {
        PLANTED.set(Some((passes, moment)));
    }

    /// Whether what was planted is still there, which is then taken away.
    pub(crate) fn dig_up() -> bool {
        PLANTED.take().is_some()
    }

    pub(super) fn pass(moment: Moment) {
        match PLANTED.get() {
            Some((0, planted)) if planted == moment => {
                PLANTED.set(None);
                // Without a word to the log of the tests: there are thousands.
                std::panic::resume_unwind(Box::new("planted"));
            }
            Some((passes, planted)) if planted == moment => PLANTED.set(Some((passes - 1, planted))),
            _ => {}
        }
    }
}
