//! What driving a conversation takes for reactions: looks at the caller's own rows and at who reacted, and at overlays of
//! which a recovery found only the latest changes.

use std::sync::Arc;

use chappe_schema::{
    id::{ConversationId, GatewayId, Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredOverlay, StoredReaction},
    wire::{Asked, Correlation},
};

use super::{InHand, Incarnation, Shard, StoreMail, conversations::Reading};
use crate::{
    conversation::{Evidence, Read},
    store::{self, Reacted, ReactedRequest},
};

/// A user's reactions to a message, as they were asked for and found.
pub(crate) struct ReactionsFound {
    pub(super) conversation: ConversationId,
    /// The state that asked.
    pub(super) of: Incarnation,
    pub(super) target: Seq,
    pub(super) user: UserId,
    pub(super) rows: Result<Vec<(ReactionKey, StoredReaction)>, store::Error>,
}

/// A command that waits.
type Waiting = (GatewayId, Arc<Asked>, Evidence);

/// Commands of one user about one message that wait for a look at the user's reactions to it, in order.
#[derive(Default)]
pub(super) struct Reacting(Vec<(Seq, UserId, Vec<Waiting>)>);

impl Reacting {
    /// Adds a command; whether it is the first, so that the store is to be asked.
    fn wait(&mut self, target: Seq, from: GatewayId, asked: Arc<Asked>, evidence: Evidence) -> bool {
        let waits = self.0.iter_mut().find(|(of, user, _)| *of == target && *user == asked.actor.user);
        if let Some((.., waiting)) = waits {
            waiting.push((from, asked, evidence));
            return false;
        }
        self.0.push((target, asked.actor.user.clone(), vec![(from, asked, evidence)]));
        true
    }

    fn take(&mut self, target: Seq, user: &UserId) -> Vec<Waiting> {
        let place = self.0.iter().position(|(of, whose, _)| *of == target && whose == user);
        place.map(|index| self.0.swap_remove(index).2).unwrap_or_default()
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        std::mem::take(&mut self.0).into_iter().flat_map(|(.., waiting)| waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Shard {
    /// Looks at the reactions of whoever asks to a message.
    pub(super) fn look_at_reactions(
        &mut self,
        id: ConversationId,
        target: Seq,
        keys: Vec<ReactionKey>,
        (from, asked, evidence): Waiting,
    ) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let user = asked.actor.user.clone();
        let is_first = slot.reacting.wait(target, from, asked, evidence);
        self.kept();
        if !is_first {
            return;
        }
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.looks += 1;
        let (of, whose) = (slot.incarnation(), user.clone());
        let found = move |rows| ReactionsFound { conversation: id, of, target, user: whose, rows };
        let done = self.answer(move |rows| StoreMail::Reactions(found(rows)));
        self.store.reactions(id.into(), target, user, keys, done);
    }

    pub(super) fn reactions_found(&mut self, found: ReactionsFound) {
        let ReactionsFound { conversation: id, of, target, user, rows } = found;
        if !self.is_of_present_state(id, of) {
            return;
        }
        // What became durable meanwhile is forgotten only after it was merged with what was found.
        let rows = match rows {
            Ok(rows) => {
                let remember = |shard: &mut Self| {
                    if let Some(state) = shard.conversations.get_mut(&id).and_then(|slot| slot.ready()) {
                        state.remember_reactions(target, &user, rows);
                    }
                };
                self.guarded(|| id.into(), remember);
                Ok(())
            }
            Err(error) => Err(self.store_failed(id, &error)),
        };
        self.looked(id);
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        for (from, asked, evidence) in slot.reacting.take(target, &user) {
            match &rows {
                Ok(()) => self.judge(id, from, asked, evidence),
                Err(error) => self.answer_now(from, &asked, Err(error.clone())),
            }
        }
    }

    /// A slice of who reacted, for a read.
    pub(super) fn read_reacted(
        &mut self,
        id: ConversationId,
        gateway: GatewayId,
        correlation: Correlation,
        read: Box<Read>,
        request: ReactedRequest,
    ) {
        let token = self.token();
        let done = self.answer(move |page| StoreMail::Reacted { token, page });
        self.reads.insert(token, Reading::Page(gateway, correlation, read, id));
        self.kept();
        self.store.reacted(request, done);
    }

    pub(super) fn reacted_read(&mut self, token: u64, page: Result<Reacted, store::Error>) {
        let Some(Reading::Page(gateway, correlation, read, id)) = self.reads.remove(&token) else { return };
        match page {
            Ok(page) => {
                let go_on = |shard: &mut Self| {
                    let (read, progress) = read.take_reacted(page);
                    shard.go_on_reading(id, gateway, correlation, Box::new(read), progress);
                };
                self.guarded_for(Some(InHand::Command(gateway, correlation)), || id.into(), go_on);
            }
            Err(error) => {
                let error = self.store_failed(id, &error);
                self.reply(gateway, correlation, Err(error));
            }
        }
    }

    /// Asks the store for the overlays of messages of which a recovery found only what changed lately.
    pub(super) fn ask_overlays(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let of = slot.incarnation();
        let Some(hot) = slot.ready().and_then(|state| state.hot.as_mut()) else { return };
        if let Some(targets) = hot.overlays.ask() {
            let asked = targets.clone();
            let done = self.answer(move |found| StoreMail::Overlays { conversation: id, of, targets: asked, found });
            self.store.overlays(id.into(), targets, done);
        }
    }

    pub(super) fn overlays_found(
        &mut self,
        id: ConversationId,
        targets: &[Seq],
        found: Result<Vec<(Seq, StoredOverlay)>, store::Error>,
    ) {
        // Asked again when the conversation is looked at next.
        let found = found.inspect_err(|error| drop(self.store_failed(id, error))).ok();
        let is_known = found.is_some();
        let work = |shard: &mut Self| {
            let state = shard.conversations.get_mut(&id).and_then(|slot| slot.ready());
            if let Some(hot) = state.and_then(|state| state.hot.as_mut()) {
                hot.overlays.answer(targets, found);
            }
            if is_known {
                shard.project_conversation(id);
            }
        };
        self.guarded(|| id.into(), work);
    }
}
