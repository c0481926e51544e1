//! The state of a conversation as bytes at rest, and back. The same bytes are the hand-off format.

use bytes::Bytes;
use chappe_schema::{
    event::{ConversationKind, Encryption, Settings},
    id::ConversationId,
    stored::{Corrupt, Kind, StoredConversation, StoredSettings, seal, unseal},
};

use crate::planted::{Bug, is};

use super::{
    ids::Ids,
    latest::Latest,
    marks::Marks,
    members::Members,
    receipts::Unsettled,
    state::{Conversation, Hot},
};

impl Conversation {
    /// The sealed state at `head`. Only a hot conversation knows its ids, so an idle one has no bytes to give (and
    /// needs none: it has not changed since it was read).
    #[must_use]
    pub fn snapshot(&self) -> Option<Bytes> {
        let hot = self.hot.as_ref()?;
        let (mut id_block_end, id_block_at) = hot.ids.durable();
        let mut ids = hot.ids.stored(usize::MAX);
        if is(Bug::SnapshotWithoutIds) {
            (id_block_end, ids) = (self.head, Vec::new());
        }
        let mut marks = self.marks.clone();
        marks.prune(&self.members);
        let stored = StoredConversation {
            seq: self.head,
            n: self.n,
            kind: self.kind as i32,
            encryption: self.encryption as i32,
            settings: Some(StoredSettings::from(&*self.settings)),
            members: self.members.to_stored(),
            floor: self.floor,
            last_at: self.last_at,
            origin: self.origin,
            written_by: self.owner,
            ids,
            id_block_end,
            deleted: self.deleted,
            created_at: self.created_at,
            creation_hash: self.creation_hash,
            id_block_at,
            message_at: self.message_at,
            last: self.latest.to_stored(),
            marks: marks.to_stored(),
            members_apart: self.members.are_apart(),
        };
        Some(seal(Kind::Snapshot, &stored))
    }

    /// Whether a snapshot says that the members stand in rows of their own. Of damaged bytes nobody can tell; whoever opens
    /// them will.
    #[must_use]
    pub fn members_stand_apart(bytes: Bytes) -> bool {
        unseal::<StoredConversation>(Kind::Snapshot, bytes).is_ok_and(|stored| stored.members_apart)
    }

    /// The conversation of a snapshot; without its members, if it says that they stand apart.
    ///
    /// # Errors
    /// When the bytes are damaged or make no sense.
    pub fn from_snapshot(id: ConversationId, bytes: Bytes) -> Result<Self, Corrupt> {
        let stored: StoredConversation = unseal(Kind::Snapshot, bytes)?;
        let ids = Ids::recovered(&stored.ids, stored.id_block_end, stored.id_block_at)?;
        if ids.end() != stored.seq {
            return Err(Corrupt::Content("the ids of a snapshot do not reach its seq"));
        }
        const NUMBER: Corrupt = Corrupt::Content("a stored number has no meaning");
        Ok(Self {
            id,
            head: stored.seq,
            n: stored.n,
            last_at: stored.last_at,
            created_at: stored.created_at,
            floor: stored.floor,
            origin: stored.origin,
            owner: stored.written_by,
            kind: ConversationKind::from_number(stored.kind).ok_or(NUMBER)?,
            encryption: Encryption::from_number(stored.encryption).ok_or(NUMBER)?,
            creation_hash: stored.creation_hash,
            deleted: stored.deleted,
            settings: Box::new(Settings::try_from(stored.settings.unwrap_or_default())?),
            members: Members::from_stored(stored.members)?,
            message_at: if stored.message_at == 0 { stored.last_at } else { stored.message_at },
            latest: Latest::from_stored(stored.last)?,
            marks: Marks::from_stored(stored.marks)?,
            unsettled: Unsettled::default(),
            snapshot_at: stored.seq,
            hot: Some(Box::new(Hot { ids, ..Hot::default() })),
        })
    }
}
