//! The state of a conversation as bytes at rest, and back. The same bytes are the hand-off format.

use bytes::Bytes;
use chappe_schema::{
    event::{ConversationKind, Encryption, Settings},
    id::{ConversationId, Millis},
    stored::{Corrupt, Kind, StoredConversation, StoredFloor, StoredSettings, seal, unseal},
};

use crate::planted::{Bug, is};

use super::{
    floor::{Floor, kept_ms},
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
            floor: self.floor.seq(),
            above_floor: Some(self.floor.to_stored()),
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

    /// For how long the messages of a snapshot's conversation are kept, where none are kept longer than `everywhere_ms`, and a
    /// time before which none of them was stamped. `None` if they are kept for ever, or there are none. Of damaged bytes
    /// nobody can tell.
    #[must_use]
    pub fn kept_of_snapshot(bytes: Bytes, everywhere_ms: Option<Millis>, is_behind: bool) -> Option<(Millis, Millis)> {
        let stored: StoredConversation = unseal(Kind::Snapshot, bytes).ok()?;
        let own_secs = stored.settings.as_ref().map_or(0, |settings| settings.retention_secs);
        let kept_ms = kept_ms(own_secs, everywhere_ms)?;
        let oldest_at = match stored.above_floor {
            // What is not in the snapshot was stamped later.
            Some(StoredFloor { oldest_at: 0, .. }) if is_behind => stored.last_at,
            Some(floor) => floor.oldest_at,
            None => stored.created_at,
        };
        Some((kept_ms, oldest_at))
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
        let oldest_at = if stored.n == 0 { 0 } else { stored.created_at };
        let oldest_seen = stored.above_floor.as_ref().map_or(oldest_at, |floor| floor.oldest_at) != 0;
        const NUMBER: Corrupt = Corrupt::Content("a stored number has no meaning");
        let floor = Floor::from_stored(stored.floor, stored.above_floor, oldest_at);
        Ok(Self {
            id,
            head: stored.seq,
            n: stored.n,
            last_at: stored.last_at,
            created_at: stored.created_at,
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
            retention_seen: true,
            oldest_seen,
            removal_seen: !floor.is_purging(),
            floor,
            hot: Some(Box::new(Hot { ids, ..Hot::default() })),
        })
    }
}
