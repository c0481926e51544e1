//! What is kept for a time only is removed when it is overdue: from the conversation by an event, then from the store.
//!
//! A conversation that is in use looks after each commit, and when it is read. Those at rest are found by a walk over all that there are, which one
//! shard of a node makes, a page a second: whoever is overdue there is opened, and looks then.
//!
//! ```text
//! overdue → Search (stamps, by halves) → history.purged, committed → a snapshot above it, durable
//!         → Remove, bucket by bucket, from above
//! ```
//!
//! Whatever ends in between begins again: the conversation is listed, as for announcements, until the store is rid of it.

use std::collections::VecDeque;

use bytes::Bytes;
use chappe_schema::{
    id::{ConversationId, EntityId, Millis, Seq, SessionId},
    limit::{CLOCK_STEADY_MS, RECOVERIES_MAX, RETENTION_WALK_MS, RETENTION_WALK_SELDOM_MS},
};

use super::{
    Home, Mail, Phase, Projected, Shard, StoreMail, conversations::append, shard_of_partition, tenure::Tenure,
};
use crate::{
    conversation::{
        Conversation,
        floor::{Overdue, Search, cutoff},
    },
    store::{self, Page, PageRequest, Part, Projection, Purge, Show, Walked},
};

/// The shard that walks.
const WALKER: usize = 0;

/// Conversations that a walk looks at in a second, at most: some hundred kilobytes of snapshots.
const WALK_PAGE: usize = 500;

/// And how many bytes of snapshots it wants to read in one: those of large groups are larger.
const WALK_PAGE_BYTES: usize = 4 << 20;

/// Conversations that a walk has found and that are not opened yet. The next walk finds again what is beyond.
const FOUND_MAX: usize = 10_000;

/// How many of them are read from the store at a time, while nobody waits for another one.
const OPENING_MAX: usize = RECOVERIES_MAX / 8;

/// A clock that moves on by more between two ticks has jumped, or the process stood still: nobody can tell.
const JUMP_MS: Millis = 10_000;

/// What is being done about what is overdue in a conversation.
#[derive(Default)]
pub(super) struct Retaining {
    step: Step,
    /// Of the question that is on its way: answers to others come too late.
    token: u64,
    /// When the search began.
    began: Millis,
    /// A snapshot of this seq is durable.
    snapshot: Seq,
    /// Events that this owner has decided to remove, and the store still holds.
    decided: u64,
}

#[derive(Default)]
enum Step {
    #[default]
    Nothing,
    /// Up to where is something overdue?
    Search(Search),
    /// What is to be removed, the next part last.
    Remove(Vec<(Part, Seq, Seq)>),
}

/// The store's answer to a step.
pub(crate) enum StepDone {
    Looked(Result<Page, store::Error>),
    Removed(Result<bool, store::Error>),
}

/// A walk over all conversations, now and then.
#[derive(Default)]
pub(super) struct Walk {
    /// Where it stands, if it is under way.
    at: Option<Option<Bytes>>,
    /// The session under which a page is being read.
    reading: Option<SessionId>,
    /// When the next one begins.
    next: Millis,
    /// Conversations of the next page; `None` before the first, whose bytes nobody knows.
    page: Option<usize>,
    /// The shortest time for which anything is kept that this walk has met, or that somebody was told of meanwhile.
    shortest_ms: Option<Millis>,
    /// The shortest time that this shard has told the one that walks lately, and since when it counts.
    told: Option<(Millis, Millis)>,
    /// Conversations of this shard that a walk has found.
    found: VecDeque<ConversationId>,
    /// When the shard looked at the clock last, and for how long that has gone evenly.
    looked: Millis,
    steady_ms: Millis,
    /// Conversations whose step failed: they are looked at again with the next tick.
    again: Vec<ConversationId>,
}

impl Walk {
    fn page(&self) -> usize {
        self.page.unwrap_or(WALK_PAGE / 10)
    }
}

impl Retaining {
    pub(super) const fn is_quiet(&self) -> bool {
        matches!(self.step, Step::Nothing)
    }

    /// A snapshot of the conversation is durable.
    pub(super) fn keeps(&mut self, seq: Seq) {
        self.snapshot = self.snapshot.max(seq);
    }

    /// The state is another one: what was found for the former counts for nothing.
    pub(super) fn forget(&mut self) {
        self.step = Step::Nothing;
    }
}

impl Shard {
    /// Looks whether something of a conversation is overdue, or the store must still be rid of it.
    pub(super) fn retain(&mut self, id: ConversationId) {
        if self.is_stopping() {
            return;
        }
        let (now, everywhere_ms) = (self.now, self.settings.retention_ms);
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let Phase::Ready(state) = &mut slot.slot.phase else { return };
        if !slot.retaining.is_quiet() {
            return;
        }
        if state.floor.is_purging() {
            if slot.retaining.snapshot >= state.floor.set_by() {
                // Somebody may have removed it before, or some of it: nobody can tell from what is left. What is removed twice
                // is at most what the last floor removed, unless no snapshot was written since.
                let mut parts = state.floor.parts();
                parts.reverse();
                slot.retaining.step = Step::Remove(parts);
                self.remove_next(id);
            }
            return;
        }
        let Some(kept_ms) = state.kept_ms(everywhere_ms) else { return };
        let search = state.search(everywhere_ms, slot.slot.line.committed(), now);
        // When this one rests, only a walk will find it. Whoever said the shorter time may have gone.
        let is_told =
            |(told_ms, since): (Millis, Millis)| told_ms <= kept_ms && now.abs_diff(since) < walk_every(Some(told_ms));
        if !self.walk.told.is_some_and(is_told) {
            self.walk.told = Some((kept_ms, now));
            self.outgoing[WALKER].push(Mail::Kept(kept_ms));
        }
        let Some(search) = search else { return };
        // Whoever is about to give it away begins nothing.
        if !self.is_clock_steady(kept_ms) || !matches!(self.tenures.at(id.partition()), Tenure::Open(_)) {
            return;
        }
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        if slot.slot.core().is_some_and(|state| state.hot.is_none()) {
            return self.heat(id);
        }
        slot.retaining.step = Step::Search(search);
        slot.retaining.began = now;
        self.go_on_searching(id);
    }

    /// A clock that has just jumped may be wrong, and what is removed does not come back when it is set right.
    fn is_clock_steady(&self, kept_ms: Millis) -> bool {
        self.walk.steady_ms >= CLOCK_STEADY_MS.min(kept_ms / 4)
    }

    /// Reads one event.
    fn look_at_event(&mut self, id: ConversationId, seq: Seq) {
        if let Some(done) = self.answer_to_step(id, StepDone::Looked) {
            self.store.page(PageRequest::of_one(id.into(), seq, Show::Log), done);
        }
    }

    /// A way for the store to answer a step. Tokens are never used again, so an answer belongs to this one step.
    fn answer_to_step<T: 'static>(&mut self, id: ConversationId, done: fn(T) -> StepDone) -> Option<store::Done<T>> {
        let token = self.token();
        self.conversations.get_mut(&id)?.retaining.token = token;
        Some(self.answer(move |found| StoreMail::Retained { conversation: id, token, done: done(found) }))
    }

    fn go_on_searching(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let Step::Search(search) = &slot.retaining.step else { return };
        match search.next() {
            Some(seq) => self.look_at_event(id, seq),
            None => {
                let overdue = search.found();
                slot.retaining.step = Step::Nothing;
                if self.now < slot.retaining.began {
                    // The clock has gone back meanwhile: what was overdue may not be yet (seed 2125, with `IdsDroppedEarly`).
                    return self.walk.again.push(id);
                }
                self.guarded(|| id.into(), |shard| shard.raise_floor(id, overdue));
            }
        }
    }

    /// Removes what is overdue from the conversation.
    fn raise_floor(&mut self, id: ConversationId, overdue: Overdue) {
        let now = self.now;
        if !matches!(self.tenures.at(id.partition()), Tenure::Open(_)) {
            return;
        }
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let epoch = slot.epoch;
        let Phase::Ready(state) = &mut slot.slot.phase else { return };
        let Some(event) = state.purge(overdue, now) else { return state.nothing_overdue(overdue) };
        let line = &mut slot.slot.line;
        if !line.admits(event.seq) {
            // The next commit looks again.
            return;
        }
        slot.retaining.decided += overdue.seq - state.floor.seq();
        append(state, line, event, epoch);
        Self::list_for_flush(&mut self.flush, &mut line.listed, id);
    }

    pub(super) fn retained(&mut self, id: ConversationId, token: u64, done: StepDone) {
        let Some(slot) = self.conversations.get_mut(&id).filter(|slot| slot.retaining.token == token) else { return };
        match (&mut slot.retaining.step, done) {
            (Step::Search(search), StepDone::Looked(Ok(page))) => match page.events.first() {
                Some(event) => {
                    search.take(event);
                    self.go_on_searching(id);
                }
                None => {
                    tracing::error!(event = "log_has_a_hole", conversation = %id, "nothing is removed of it");
                    slot.retaining.step = Step::Nothing;
                }
            },
            (Step::Remove(parts), StepDone::Removed(Ok(complete))) => {
                if complete {
                    parts.pop();
                }
                self.remove_next(id);
            }
            (_, StepDone::Looked(Err(error)) | StepDone::Removed(Err(error))) => {
                tracing::warn!(event = "retention_failed", conversation = %id, %error, "it is tried again");
                slot.retaining.step = Step::Nothing;
                self.walk.again.push(id);
            }
            _ => {}
        }
    }

    fn remove_next(&mut self, id: ConversationId) {
        let Some(done) = self.answer_to_step(id, StepDone::Removed) else { return };
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let Step::Remove(parts) = &slot.retaining.step else { return };
        let Phase::Ready(state) = &mut slot.slot.phase else { return };
        if let Some((part, above, upto)) = parts.last().copied() {
            let purge = Purge { entity: id.into(), part, above, upto, at: state.floor.set_by() };
            return self.store.purge(purge, done);
        }
        slot.retaining.step = Step::Nothing;
        state.floor.purged();
        self.measures.removed(std::mem::take(&mut slot.retaining.decided));
        self.end_announcing(id);
        // More may be overdue by now.
        self.retain(id);
    }

    /// Nothing of the conversation has to be done again after a crash, as far as others and the store are concerned.
    pub(super) fn end_announcing(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get(&id) else { return };
        let is_purging = slot.slot.core().is_some_and(|state| state.floor.is_purging());
        if slot.is_announcing() || is_purging {
            return;
        }
        let upto = slot.line.committed();
        self.unannounced.remove(&EntityId::Conversation(id));
        self.project(Projected::Other, Projection::Announced { entity: id.into(), upto });
    }

    /// A snapshot of the conversation is durable.
    pub(super) fn snapshot_durable(&mut self, id: ConversationId, seq: Seq) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.retaining.keeps(seq);
        self.retain(id);
    }

    // === those at rest

    pub(super) fn tick_retention(&mut self) {
        let step = self.now.checked_sub(std::mem::replace(&mut self.walk.looked, self.now));
        self.walk.steady_ms = match step {
            Some(step) if step < JUMP_MS => self.walk.steady_ms.saturating_add(step),
            _ => 0,
        };
        for id in std::mem::take(&mut self.walk.again) {
            self.retain(id);
        }
        if self.index == WALKER && self.session != 0 && !self.is_stopping() {
            self.walk_on();
        }
        self.open_found();
    }

    /// Conversations have come that no walk of this node has met.
    pub(super) fn has_new_partitions(&mut self) {
        self.outgoing[WALKER].push(Mail::Kept(4 * RETENTION_WALK_MS));
    }

    /// Something is kept for so short a time.
    pub(super) fn retention_heard(&mut self, kept_ms: Millis) {
        self.walk.shortest_ms = self.walk.shortest_ms.into_iter().chain([kept_ms]).min();
        if self.walk.next != 0 {
            self.walk.next = self.walk.next.min(self.now + walk_every(Some(kept_ms)));
        }
    }

    fn walk_on(&mut self) {
        if self.walk.next == 0 {
            let shortest_ms = self.settings.retention_ms.into_iter().chain(self.walk.shortest_ms).min();
            self.walk.next = self.now + walk_every(shortest_ms).min(RETENTION_WALK_MS);
        }
        // Whoever is opened while the clock is not to be trusted would not be looked at again soon. And a page that was asked
        // for under another session is not answered.
        let is_steady = self.walk.steady_ms >= CLOCK_STEADY_MS.min(walk_every(self.settings.retention_ms));
        if !is_steady || self.walk.reading == Some(self.session) {
            return;
        }
        if self.walk.at.is_none() {
            // However far the clock has jumped back, the next walk is no further off than it ever was.
            let is_due = self.now >= self.walk.next || self.now + RETENTION_WALK_SELDOM_MS < self.walk.next;
            if !is_due {
                return;
            }
            self.walk.at = Some(None);
            self.walk.shortest_ms = self.settings.retention_ms;
        }
        let Some(from) = self.walk.at.clone() else { return };
        self.walk.reading = Some(self.session);
        let done = self.answer(StoreMail::Walked);
        self.store.walk(from, self.walk.page(), self.settings.retention_ms.is_some(), done);
    }

    pub(super) fn walked(&mut self, result: Result<Walked, store::Error>) {
        self.walk.reading = None;
        let walked = match result {
            Ok(walked) => walked,
            Err(error) => return tracing::warn!(event = "walk_failed", %error, "it goes on with the next tick"),
        };
        let bytes: usize = walked.found.iter().filter_map(|(_, snapshot, _)| snapshot.as_ref()).map(Bytes::len).sum();
        let page = self.walk.page();
        let fair = (page * WALK_PAGE_BYTES).checked_div(bytes).unwrap_or(WALK_PAGE);
        self.walk.page = Some(fair.min(page * 2).clamp(1, WALK_PAGE));
        for (id, snapshot, is_behind) in walked.found {
            if self.abroad.home(id.partition()) != Home::Here {
                continue;
            }
            let everywhere_ms = self.settings.retention_ms;
            let is_overdue = match snapshot {
                Some(bytes) => {
                    let kept = Conversation::kept_of_snapshot(bytes, everywhere_ms, is_behind);
                    let kept_ms = kept.map(|(kept_ms, _)| kept_ms);
                    self.walk.shortest_ms = self.walk.shortest_ms.into_iter().chain(kept_ms).min();
                    kept.is_some_and(|(kept_ms, oldest_at)| cutoff(kept_ms, oldest_at, self.now).is_some())
                }
                // Too small for one; whoever opens it will tell.
                None => everywhere_ms.is_some(),
            };
            if is_overdue {
                let shard = shard_of_partition(id.partition(), self.peers.len());
                self.outgoing[shard].push(Mail::Overdue(id));
            }
        }
        self.walk.at = walked.next.map(Some);
        if self.walk.at.is_none() {
            self.walk.next = self.now + walk_every(self.walk.shortest_ms);
        }
    }

    /// No walk begins any more.
    #[cfg(test)]
    pub(super) fn walk_never(&mut self) {
        self.walk.reading = Some(self.session);
    }

    /// Something of the conversation may be overdue.
    pub(super) fn overdue(&mut self, id: ConversationId) {
        if self.conversations.contains_key(&id) {
            self.retain(id);
        } else if self.walk.found.len() < FOUND_MAX {
            self.walk.found.push_back(id);
            self.open_found();
        }
    }

    /// Whoever is waited for comes first.
    pub(super) fn open_found(&mut self) {
        while self.recoveries_waiting.is_empty()
            && self.recoveries < OPENING_MAX
            && let Some(id) = self.walk.found.pop_front()
        {
            if !self.conversations.contains_key(&id) {
                self.load_conversation(id);
            }
        }
    }
}

/// How often all conversations are looked at, where nothing is kept for less.
fn walk_every(shortest_ms: Option<Millis>) -> Millis {
    shortest_ms.map_or(RETENTION_WALK_SELDOM_MS, |kept_ms| (kept_ms / 4).clamp(1000, RETENTION_WALK_MS))
}
