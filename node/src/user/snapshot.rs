//! The state of a user as bytes at rest, and back.

use bytes::Bytes;
use chappe_schema::{
    event::ConversationKind,
    id::{Change, UserId},
    stored::{Corrupt, Kind, StoredMembership, StoredUser, conversation_id, seal, unseal},
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
            })
            .collect();
        // The same state is the same bytes.
        conversations.sort_unstable_by(|a, b| a.conversation.cmp(&b.conversation));
        let stored = StoredUser {
            seq: self.head,
            last_at: self.last_at,
            origin: self.origin,
            changes_reserved: self.changes_reserved,
            conversations,
            access: self.record.as_deref().map(Record::stored),
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
        user.changes_reserved = stored.changes_reserved;
        user.snapshot_at = stored.seq;
        user.record = stored.access.map(Record::of_stored).transpose()?.map(Box::new);
        for one in stored.conversations {
            let conversation = conversation_id(&one.conversation)?;
            let kind =
                ConversationKind::from_number(one.kind).ok_or(Corrupt::Content("a stored number has no meaning"))?;
            let inbox = one.inbox.unwrap_or_default();
            let known = Membership { kind, at: one.at, joined: one.joined, large: false, inbox, dirty: false };
            if known.joined && inbox.last_change() != Change::default() {
                user.by_change.insert(inbox.last_change(), conversation);
            }
            user.conversations.insert(conversation, known);
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::{event::Fact, id::ConversationId, wire::Head};

    #[test]
    fn a_user_comes_back_from_a_snapshot() {
        let mut user = User::new(UserId::new("ada").unwrap());
        for n in 1..=3u128 {
            let conversation = ConversationId(uuid::Uuid::from_u128(n));
            let event =
                user.hear(&Fact::UserJoined { conversation, kind: ConversationKind::Direct, at: 1 }, 4).unwrap();
            user.apply(&event);
            user.raise(conversation, Head { seq: n as u64, n: 1 }, || Change { epoch: 1, count: 10 - n as u64 });
        }
        let back = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
        assert_eq!(back.page(None, 10), user.page(None, 10));
        assert_eq!((back.head, back.snapshot_at, back.last_at), (3, 3, 4));
        assert_eq!(back.snapshot(), user.snapshot());
        assert!(User::from_snapshot(user.id.clone(), user.snapshot().slice(1..)).is_err());
    }
}
