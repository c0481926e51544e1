//! How rows are named: the entity's key, then what tells its rows apart, big endian, so that rows sort as they are read.
//!
//! | table | key | value |
//! |---|---|---|
//! | log | entity ‖ last seq of the packed row | [`LogRow`](chappe_schema::stored::LogRow) |
//! | snapshot | entity | checked seq ‖ the snapshot's own sealed bytes |
//! | ids | entity ‖ last seq of the block | `StoredIdBlock` |
//! | ids | `p` ‖ entity ‖ last seq of the block | `StoredIdPrints`: all of a log's stand together, apart from the blocks |
//! | overlay | entity ‖ target seq | `StoredOverlay` |
//! | reaction | entity ‖ target seq ‖ length of the key ‖ key ‖ user | `StoredReaction` |
//! | inbox | user ‖ conversation | `StoredInbox` |
//! | receipts | entity | `StoredReceipts`: of all members of a conversation who have got further than its snapshot says |
//! | receipts | entity ‖ part | the same of a part of its members, where there are very many |
//! | members | entity ‖ user | `StoredMember`: of a conversation with very many |
//! | announce | entity | checked seq |
//! | note | name | `Note` |
//!
//! No entity's key is a prefix of another's, so the rows of one entity are a range of keys.

use chappe_schema::{
    id::{ConversationId, EntityId, Seq, UserId},
    reaction::ReactionKey,
    stored::Corrupt,
};

/// A row's key.
pub(super) fn with_seq(entity: &[u8], seq: Seq) -> Vec<u8> {
    joined(entity, &seq.to_be_bytes())
}

/// The key of a block's prints. No entity's key begins like this.
pub(super) fn prints(entity: &[u8], end: Seq) -> Vec<u8> {
    with_seq(&joined(b"p", entity), end)
}

/// Two parts as one key, in exactly as much memory.
pub(super) fn joined(entity: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(entity.len() + rest.len());
    key.extend_from_slice(entity);
    key.extend_from_slice(rest);
    key
}

/// The seq at a key's end.
pub(super) fn seq_of(key: &[u8]) -> Option<Seq> {
    key.last_chunk().map(|bytes| Seq::from_be_bytes(*bytes))
}

/// Bytes of a checked seq.
pub(super) const CHECKED_SEQ: usize = 12;

/// A seq that stands outside of any sealed value, with a checksum of its own.
pub(super) fn checked_seq(seq: Seq) -> [u8; CHECKED_SEQ] {
    let mut out = [0; CHECKED_SEQ];
    out[..8].copy_from_slice(&seq.to_be_bytes());
    out[8..].copy_from_slice(&crc32c::crc32c(&seq.to_be_bytes()).to_be_bytes());
    out
}

/// The seq at a value's beginning.
///
/// # Errors
/// When the bytes are not those that were written.
pub(super) fn open_checked_seq(value: &[u8]) -> Result<Seq, Corrupt> {
    let bytes: &[u8; CHECKED_SEQ] = value.first_chunk().ok_or(Corrupt::Short(value.len()))?;
    let (seq, sum) = bytes.split_at(8);
    if crc32c::crc32c(seq).to_be_bytes() != sum {
        return Err(Corrupt::Checksum);
    }
    seq.first_chunk().map(|seq| Seq::from_be_bytes(*seq)).ok_or(Corrupt::Short(value.len()))
}

/// What the keys of all reactions to a message with one key begin with; the user follows.
pub(super) fn reactions(entity: &[u8], target: Seq, key: &ReactionKey) -> Vec<u8> {
    let key = key.as_str().as_bytes();
    let mut out = Vec::with_capacity(entity.len() + 9 + key.len());
    out.extend_from_slice(entity);
    out.extend_from_slice(&target.to_be_bytes());
    out.push(key.len() as u8);
    out.extend_from_slice(key);
    out
}

/// A reaction row's key.
pub(super) fn reaction(entity: &[u8], target: Seq, key: &ReactionKey, user: &UserId) -> Vec<u8> {
    joined(&reactions(entity, target, key), user.as_str().as_bytes())
}

/// The key of how far a part of a conversation's members have got. Part 0 is all of them.
pub(super) fn receipts(conversation: ConversationId, part: u8) -> Vec<u8> {
    let entity = EntityId::from(conversation).to_key();
    if part == 0 { entity } else { joined(&entity, &[part]) }
}

/// A member's key.
pub(super) fn member(entity: &[u8], user: &str) -> Vec<u8> {
    joined(entity, user.as_bytes())
}

/// An inbox row's key.
pub(super) fn inbox(user: &UserId, conversation: ConversationId) -> Vec<u8> {
    joined(&EntityId::User(user.clone()).to_key(), conversation.0.as_bytes())
}
