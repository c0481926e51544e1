//! The state of a user as bytes at rest, and back.

use bytes::Bytes;
use chappe_schema::{
    event::ConversationKind,
    id::{Change, CommandId, UserId},
    stored::{Corrupt, Kind, StoredCommand, StoredMembership, StoredUser, command_id, conversation_id, seal, unseal},
};

use super::{
    access::Record,
    state::{Membership, User},
};

impl User {
    /// The sealed state at `head`.
    #[must_use]
    pub fn snapshot(&self) -> Bytes {
        let mut conversations: Vec<StoredMembership> = self
            .conversations
            .iter()
            .map(|(id, known)| StoredMembership {
                conversation: id.0.as_bytes().to_vec(),
                kind: known.kind as i32,
                at: known.at,
                joined: known.joined,
                inbox: Some(known.inbox),
                joined_at: known.joined_at,
                preference: known.preference.as_deref().map(|preference| (*preference).into()),
            })
            .collect();
        // The same state is the same bytes.
        conversations.sort_unstable_by(|a, b| a.conversation.cmp(&b.conversation));
        let stored = StoredUser {
            seq: self.head,
            last_at: self.last_at,
            origin: self.origin,
            written_by: self.owner,
            changes_reserved: self.changes_reserved,
            conversations,
            access: self.record.as_deref().map(Record::stored),
            presence: self.stored_presence(),
            floor_epoch: self.left_floor.epoch,
            floor: self.left_floor.count,
            private_receipts: self.private_receipts,
            commands: self.commands.iter().map(|(id, hash)| stored_command(*id, *hash)).collect(),
        };
        seal(Kind::Snapshot, &stored)
    }

    /// The user of a snapshot.
    ///
    /// # Errors
    /// When the bytes are damaged or make no sense.
    pub fn from_snapshot(id: UserId, bytes: Bytes) -> Result<Self, Corrupt> {
        let stored: StoredUser = unseal(Kind::Snapshot, bytes)?;
        let mut user = Self::new(id);
        user.head = stored.seq;
        user.last_at = stored.last_at;
        user.origin = stored.origin;
        user.owner = stored.written_by;
        user.changes_reserved = stored.changes_reserved;
        user.snapshot_at = stored.seq;
        user.record = stored.access.map(Record::of_stored).transpose()?.map(Box::new);
        user.restore_presence(stored.presence.unwrap_or_default());
        user.left_floor = Change { epoch: stored.floor_epoch, count: stored.floor };
        user.private_receipts = stored.private_receipts;
        for one in stored.commands {
            user.commands.push_back((command_id(&one.id)?, one.hash));
        }
        for one in stored.conversations {
            let conversation = conversation_id(&one.conversation)?;
            let kind =
                ConversationKind::from_number(one.kind).ok_or(Corrupt::Content("a stored number has no meaning"))?;
            let known = Membership {
                at: one.at,
                joined: one.joined,
                joined_at: one.joined_at,
                preference: one.preference.map(|preference| Box::new(preference.into())),
                inbox: one.inbox.unwrap_or_default(),
                ..Membership::former(kind)
            };
            user.index.put(None, known.entry(conversation));
            user.conversations.insert(conversation, known);
        }
        Ok(user)
    }
}

fn stored_command(id: CommandId, hash: u64) -> StoredCommand {
    StoredCommand { id: id.0.as_bytes().to_vec(), hash }
}
