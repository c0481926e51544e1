//! An entity that is read again: what counts of its log goes into its state, and what must still be written or confirmed
//! into its line.

use std::sync::Arc;

use chappe_schema::{
    event::Event,
    id::{Epoch, Seq},
    stored::LogRow,
};

use super::{Phase, Slot, conversations::is_listed, line::Pending};
use crate::{
    conversation::Conversation,
    planted::{Bug, is},
    recovery::{self, Basis, Found, Resolved},
    user::User,
};

/// A state that its log makes.
pub(super) trait Logged {
    /// What a snapshot says of where it stands.
    fn basis(&self, own_epoch: Epoch, trusting: bool) -> Basis;

    fn head(&self) -> Seq;

    fn apply(&mut self, event: &Arc<Event>);

    /// Who owns it from now on, and under which epoch its last event was written first.
    fn own(&mut self, owner: Epoch, origin: Epoch);

    /// Bytes that it takes in memory.
    fn bytes(&self) -> usize;
}

macro_rules! logged {
    ($state:ty) => {
        impl Logged for $state {
            fn basis(&self, own_epoch: Epoch, trusting: bool) -> Basis {
                let (snapshot_seq, snapshot_origin, snapshot_owner) = (self.head, self.origin, self.owner);
                Basis { own_epoch, snapshot_seq, snapshot_origin, snapshot_owner, trusting }
            }

            fn head(&self) -> Seq {
                self.head
            }

            fn apply(&mut self, event: &Arc<Event>) {
                <$state>::apply(self, event);
            }

            fn own(&mut self, owner: Epoch, origin: Epoch) {
                (self.owner, self.origin) = (owner, origin);
            }

            fn bytes(&self) -> usize {
                <$state>::bytes(self)
            }
        }
    };
}

logged!(Conversation);
logged!(User);

/// An entity that was read again.
pub(super) struct Rebuilt<S> {
    /// The state after everything that was found and counts.
    pub(super) state: S,
    /// What the state takes in memory.
    pub(super) bytes: usize,
    /// What of it is committed.
    pub(super) committed: Seq,
    /// The committed events above the snapshot.
    pub(super) events: Vec<Arc<Event>>,
    /// The origin of the last event that is committed.
    committed_origin: Epoch,
    /// What is durable under the own epoch, and committed by the next fence read.
    standing: Vec<Found>,
    /// What is written again before anything of it is shown.
    adopted: Vec<Found>,
}

/// Takes what counts of `rows` into a state that came from a snapshot, or is empty; then `complete` adds what is not in
/// the log.
pub(super) fn rebuild<S: Logged>(
    mut state: S,
    own_epoch: Epoch,
    trusting: bool,
    rows: Vec<LogRow>,
    complete: impl FnOnce(&mut S),
) -> Result<Rebuilt<S>, recovery::Trouble> {
    let mut resolved = recovery::resolve(state.basis(own_epoch, trusting), rows)?;
    if is(Bug::AdoptedNotWritten) {
        // As if whatever is found were committed.
        resolved.committed.extend(resolved.standing.drain(..).map(|found| found.event));
        resolved.committed.extend(resolved.adopted.drain(..).map(|found| found.event));
        resolved.committed_origin = resolved.origin;
    }
    let Resolved { committed: events, standing, adopted, committed_origin, origin, .. } = resolved;
    for event in &events {
        state.apply(event);
    }
    let committed = state.head();
    for found in standing.iter().chain(&adopted) {
        state.apply(&found.event);
    }
    state.own(own_epoch, origin);
    complete(&mut state);
    let bytes = state.bytes();
    Ok(Rebuilt { state, bytes, committed, events, committed_origin, standing, adopted })
}

impl<C, P, R> Slot<C, P, R> {
    /// The entity answers again. Returns whether something of it stands that the next clean fence read commits.
    pub(super) fn answer_again(&mut self, rebuilt: Rebuilt<C>) -> bool {
        let Rebuilt { state, committed, committed_origin, standing, adopted, .. } = rebuilt;
        let pending = |Found { event, origin }| {
            let announce = is_listed(&event.fact);
            Pending { event, audience: None, announce, origin }
        };
        self.lives += 1;
        self.line.restart(committed, committed_origin);
        let stands = !standing.is_empty();
        if stands {
            self.line.stand(standing.into_iter().map(pending).collect());
        }
        adopted.into_iter().map(pending).for_each(|pending| self.line.push(pending));
        self.phase = Phase::Ready(Box::new(state));
        stands
    }
}
