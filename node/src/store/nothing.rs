//! The way in of a node that has no session: it answers nothing, and nobody asks.

use bytes::Bytes;
use chappe_schema::{
    id::{CommandId, ConversationId, EntityId, Generation, Millis, Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredId, StoredOverlay, StoredReaction},
};

use super::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Store, Walked, Written,
};

/// See the module's documentation.
pub(crate) struct Nothing(Session);

impl Default for Nothing {
    fn default() -> Self {
        Self(Session { id: 0, epoch: 0, generation: Generation(0) })
    }
}

impl Store for Nothing {
    fn session(&self) -> Session {
        self.0
    }

    fn is_fenced(&self) -> bool {
        true
    }

    fn append(&self, _: Vec<Append>, _: Done<Vec<Written>>) {}

    fn confirm(&self, _: Done<Confirmation>) -> Option<Confirmation> {
        None
    }

    fn recover(&self, _: EntityId, _: Millis, _: Done<Result<Recovered, Error>>) {}

    fn page(&self, _: PageRequest, _: Done<Result<Page, Error>>) {}

    fn overlays(&self, _: EntityId, _: Vec<Seq>, _: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {}

    fn reactions(
        &self,
        _: EntityId,
        _: Seq,
        _: UserId,
        _: Vec<ReactionKey>,
        _: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
    }

    fn reacted(&self, _: ReactedRequest, _: Done<Result<Reacted, Error>>) {}

    fn members(&self, _: ConversationId, _: Option<UserId>, _: usize, _: Done<Result<MemberRows, Error>>) {}

    fn find_id(
        &self,
        _: EntityId,
        _: UserId,
        _: CommandId,
        _: (Seq, Millis),
        _: Done<Result<Option<StoredId>, Error>>,
    ) {
    }

    fn project(&self, _: Vec<Projection>, _: Done<Result<(), Error>>) {}

    fn purge(&self, _: Purge, _: Done<Result<bool, Error>>) {}

    fn walk(&self, _: Option<Bytes>, _: usize, _: bool, _: Done<Result<Walked, Error>>) {}

    fn announced(&self, _: Done<Result<Vec<EntityId>, Error>>) {}
}
