//! The bytes at rest: a version byte, a kind byte, a CRC-32C, then a fixed header (log rows only) and protobuf.
//!
//! Every decoder checks the length, then the checksum, then the version, before it looks at anything else. Fields
//! are only ever added, under new numbers: no stored byte changes its meaning.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    access::{Access, Ban, LogOut, Mark, Marked},
    body::Body,
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess, Role, Settings},
    id::{Change, CommandId, ConversationId, DeviceId, Epoch, Seq, UserId},
    inbox::Preference,
    mention::{Mentioned, Mentions},
    reaction::ReactionKey,
};

/// The version that is written. Readers accept it and whatever older ones are named in [`open`].
pub const VERSION: u8 = 1;

/// What a stored value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Consecutive events of one entity that were appended together.
    Log = 1,
    /// The state of an entity at a committed seq.
    Snapshot = 2,
    /// The ids of 256 consecutive events.
    IdBlock = 3,
    /// What later events made of one message.
    Overlay = 4,
    /// A user's last known position in one conversation.
    Inbox = 5,
    /// The store's own notes (generation, start counter, schema version).
    Note = 6,
    /// Prints of the ids of one block.
    IdPrints = 7,
    /// One user's reaction to one message with one key.
    Reaction = 8,
    /// How far members of a conversation have got.
    Receipts = 9,
    /// A member of a conversation with very many.
    Member = 10,
    /// What an event of the cluster's log holds beside its columns.
    Columns = 16,
    /// One entry of Raft's log.
    RaftEntry = 32,
    /// The state that Raft replicates, at one entry.
    RaftSnapshot = 33,
    /// What a node remembers of its part in Raft: its name, its group, its vote.
    RaftNote = 34,
}

/// Why stored bytes cannot be used. Such bytes are never served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Shorter than any value.
    #[error("{0} bytes are too few for a stored value")]
    Short(usize),
    /// Another version than this program knows.
    #[error("stored format version {0} is newer than this program; run the program that wrote it")]
    Version(u8),
    /// Another kind of value than was expected at this place.
    #[error("expected a value of kind {expected:?}, found kind {found}")]
    Kind {
        /// What the place holds.
        expected: Kind,
        /// What was found.
        found: u8,
    },
    /// The bytes are not those that were written.
    #[error("checksum mismatch: the bytes are not those that were written")]
    Checksum,
    /// The checksum fits, but the content makes no sense: written by a program with a bug.
    #[error("{0}")]
    Content(&'static str),
}

const HEADER: usize = 6;

/// Frames a protobuf message as a stored value.
#[must_use]
pub fn seal(kind: Kind, message: &impl Message) -> Bytes {
    let mut out = begin(kind, message.encoded_len());
    message.encode_raw(&mut out);
    finish(out)
}

fn begin(kind: Kind, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + bytes);
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0, 0, 0]);
    out
}

fn finish(mut out: Vec<u8>) -> Bytes {
    let sum = checksum(&out);
    out[2..HEADER].copy_from_slice(&sum.to_le_bytes());
    Bytes::from(out)
}

fn checksum(value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&value[..2]), &value[HEADER..])
}

/// Checks a stored value and returns what follows its frame.
///
/// # Errors
/// When the bytes are not a whole, unchanged value of this kind and a known version.
pub fn open(kind: Kind, mut value: Bytes) -> Result<Bytes, Corrupt> {
    if value.len() < HEADER {
        return Err(Corrupt::Short(value.len()));
    }
    let sum = u32::from_le_bytes([value[2], value[3], value[4], value[5]]);
    if checksum(&value) != sum {
        return Err(Corrupt::Checksum);
    }
    if value[0] != VERSION {
        return Err(Corrupt::Version(value[0]));
    }
    if value[1] != kind as u8 {
        return Err(Corrupt::Kind { expected: kind, found: value[1] });
    }
    value.advance(HEADER);
    Ok(value)
}

/// [`open`]s and decodes a protobuf value.
///
/// # Errors
/// As `open`, and when the content does not decode.
pub fn unseal<M: Message + Default>(kind: Kind, value: Bytes) -> Result<M, Corrupt> {
    M::decode(open(kind, value)?).map_err(|_| Corrupt::Content("the protobuf content does not decode"))
}

/// Consecutive events of one entity, written by one owner in one append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The committed watermark: the highest seq known committed when the row was issued.
    pub cw: Seq,
    /// The epoch under which its events were written first. Another one than the row's own: a successor has written them
    /// again during its recovery.
    pub origin: Epoch,
    /// The origin of the event one slot below the first, in its owner's log; 0 at the beginning of a log. Two rows that stand
    /// one above the other belong together only if this fits. Stores with a single writer keep none and need none.
    pub after: Epoch,
    /// At least one event; seqs are consecutive.
    pub events: Vec<Arc<Event>>,
}

const LOG_HEADER: usize = 2 + 8 + 8 + 8 + 4;

impl LogRow {
    /// The row's bytes, as a store with a single writer keeps it: nothing is ever written again under another epoch.
    #[must_use]
    pub fn seal(epoch: Epoch, cw: Seq, events: &[Arc<Event>]) -> Bytes {
        let estimate: usize = events.iter().map(|event| 160 + event.body_len()).sum();
        let mut out = begin(Kind::Log, LOG_HEADER + estimate);
        // Flags; none is in use.
        out.put_u16_le(0);
        out.put_u64_le(epoch);
        out.put_u64_le(cw);
        out.put_u64_le(events.first().map_or(0, |event| event.seq));
        out.put_u32_le(events.len() as u32);
        for event in events {
            let stored = StoredEvent::from(&**event);
            prost::encoding::encode_varint(stored.encoded_len() as u64, &mut out);
            stored.encode_raw(&mut out);
        }
        finish(out)
    }

    /// The row of these bytes.
    ///
    /// # Errors
    /// When they are not the bytes of a whole, unchanged row.
    pub fn unseal(value: Bytes) -> Result<Self, Corrupt> {
        let mut value = open(Kind::Log, value)?;
        if value.len() < LOG_HEADER {
            return Err(Corrupt::Short(value.len()));
        }
        let _flags = value.get_u16_le();
        let (epoch, cw, first, count) =
            (value.get_u64_le(), value.get_u64_le(), value.get_u64_le(), value.get_u32_le());
        let mut events = Vec::with_capacity((count as usize).min(1024));
        for index in 0..u64::from(count) {
            let stored = StoredEvent::decode_length_delimited(&mut value)
                .map_err(|_| Corrupt::Content("an event does not decode"))?;
            let event = Event::try_from(stored)?;
            if event.seq != first + index {
                return Err(Corrupt::Content("the seqs of a row are not consecutive"));
            }
            events.push(Arc::new(event));
        }
        if events.is_empty() || value.has_remaining() {
            return Err(Corrupt::Content("the row's count does not fit its events"));
        }
        Ok(Self { epoch, cw, origin: epoch, after: 0, events })
    }
}

/// An event as protobuf. In the cluster's store the same fields are columns.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredEvent {
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) n: u64,
    #[prost(string, tag = "3")]
    pub(crate) sender: String,
    #[prost(string, tag = "4")]
    pub(crate) device: String,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) command_id: Vec<u8>,
    #[prost(uint64, tag = "6")]
    pub(crate) target: u64,
    #[prost(uint32, tag = "7")]
    pub(crate) flags: u32,
    #[prost(uint64, tag = "8")]
    pub(crate) created_at: u64,
    #[prost(uint32, tag = "9")]
    pub(crate) kind: u32,
    #[prost(bytes = "bytes", tag = "10")]
    pub(crate) body: Bytes,
    #[prost(message, optional, tag = "11")]
    pub(crate) meta: Option<Meta>,
    #[prost(fixed64, tag = "12")]
    pub(crate) hash: u64,
}

/// What a fact needs beside a body.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Meta {
    #[prost(message, optional, tag = "1")]
    settings: Option<StoredSettings>,
    #[prost(int32, tag = "2")]
    conversation_kind: i32,
    #[prost(int32, tag = "3")]
    encryption: i32,
    #[prost(message, repeated, tag = "4")]
    members: Vec<StoredMember>,
    #[prost(uint64, tag = "5")]
    previous: u64,
    #[prost(bytes = "vec", tag = "6")]
    conversation: Vec<u8>,
    #[prost(uint64, tag = "7")]
    at: u64,
    #[prost(uint64, tag = "8")]
    upto: u64,
    #[prost(message, optional, tag = "9")]
    mentions: Option<StoredMentions>,
    #[prost(uint64, tag = "10")]
    target_n: u64,
    #[prost(message, optional, tag = "11")]
    preference: Option<StoredPreference>,
    #[prost(uint64, tag = "12")]
    change_epoch: u64,
    #[prost(uint64, tag = "13")]
    change: u64,
    #[prost(string, tag = "14")]
    key: String,
    #[prost(bool, tag = "15")]
    private: bool,
    #[prost(message, optional, tag = "20")]
    log_out: Option<StoredLogOut>,
    #[prost(message, optional, tag = "21")]
    ban: Option<StoredBan>,
    #[prost(message, optional, tag = "22")]
    presence: Option<StoredPresence>,
    #[prost(message, optional, tag = "23")]
    floor: Option<StoredFloor>,
}

impl Meta {
    const fn change(&self) -> Change {
        Change { epoch: self.change_epoch, count: self.change }
    }
}

/// How a user is seen, whether their clients are there or not.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredPresence {
    /// Others are not to see whether they are there.
    #[prost(bool, tag = "1")]
    pub invisible: bool,
    /// When they were seen last; 0 if nobody remembers.
    #[prost(uint64, tag = "2")]
    pub seen: u64,
}

/// What a user has set for one conversation.
#[derive(Clone, PartialEq, Message)]
pub struct StoredPreference {
    /// Ahead of all others.
    #[prost(bool, tag = "1")]
    pub pinned: bool,
    /// Put away when it had so many messages.
    #[prost(uint64, optional, tag = "2")]
    pub archived: Option<u64>,
    /// Muted until then.
    #[prost(uint64, tag = "3")]
    pub muted_until: u64,
    /// Marked as unread.
    #[prost(bool, tag = "4")]
    pub marked_unread: bool,
}

/// Whom a message mentions.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMentions {
    /// User ids, ascending.
    #[prost(string, repeated, tag = "1")]
    pub users: Vec<String>,
    /// Every member.
    #[prost(bool, tag = "2")]
    pub all: bool,
}

impl StoredMentions {
    /// Mentions as they are stored; `None` for none.
    #[must_use]
    pub fn of(mentioned: &Mentioned) -> Option<Self> {
        mentioned.as_ref().map(|mentions| Self {
            users: mentions.users.iter().map(|user| user.as_str().to_owned()).collect(),
            all: mentions.all,
        })
    }

    /// The mentions that were stored.
    ///
    /// # Errors
    /// When a text is no user id, or they are out of order.
    pub fn open(stored: Option<Self>) -> Result<Mentioned, Corrupt> {
        let Some(Self { users, all }) = stored else { return Ok(None) };
        let users: Vec<UserId> = users.iter().map(|user| user_id(user)).collect::<Result<_, _>>()?;
        if !users.is_sorted() {
            return Err(Corrupt::Content("mentions are out of order"));
        }
        Ok(Some(Arc::new(Mentions { users, all })))
    }
}

fn user_id(text: &str) -> Result<UserId, Corrupt> {
    UserId::new(text).map_err(|_| Corrupt::Content("a stored text is no user id"))
}

/// A log-out, in an event.
#[derive(Clone, PartialEq, Message)]
struct StoredLogOut {
    #[prost(uint64, tag = "1")]
    before: u64,
    #[prost(message, repeated, tag = "2")]
    marks: Vec<StoredMark>,
    #[prost(string, tag = "3")]
    by: String,
}

/// A log-out of one device, or of one token.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMark {
    /// Tokens issued before this are refused.
    #[prost(uint64, tag = "1")]
    pub before: u64,
    /// The device; empty for a token.
    #[prost(string, tag = "2")]
    pub device: String,
    /// The token's print.
    #[prost(fixed64, tag = "3")]
    pub print: u64,
    /// When the token ends.
    #[prost(uint64, tag = "4")]
    pub expires_at: u64,
}

/// A ban, in an event or a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct StoredBan {
    /// Since when.
    #[prost(uint64, tag = "1")]
    pub since: u64,
    /// Until when; absent for good.
    #[prost(uint64, optional, tag = "2")]
    pub until: Option<u64>,
    /// Why.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// The API key that asked for it.
    #[prost(string, tag = "4")]
    pub by: String,
}

/// What stands against a user's tokens, in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct StoredAccess {
    /// The event that last changed it.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// Tokens issued before this are refused.
    #[prost(uint64, tag = "2")]
    pub before: u64,
    /// Log-outs of single devices and tokens.
    #[prost(message, repeated, tag = "3")]
    pub marks: Vec<StoredMark>,
    /// The ban.
    #[prost(message, optional, tag = "4")]
    pub ban: Option<StoredBan>,
    /// The last commands that changed it.
    #[prost(message, repeated, tag = "5")]
    pub ids: Vec<StoredAccessId>,
}

/// A command that logged somebody out, or changed a ban.
#[derive(Clone, PartialEq, Message)]
pub struct StoredAccessId {
    /// Its id.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Its hash.
    #[prost(fixed64, tag = "2")]
    pub hash: u64,
    /// What its log-out answered.
    #[prost(uint64, tag = "3")]
    pub before: u64,
}

/// A conversation's settings.
#[derive(Clone, PartialEq, Message)]
pub struct StoredSettings {
    /// Title.
    #[prost(string, tag = "1")]
    pub title: String,
    /// The application's JSON object.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// [`HistoryAccess`] by number.
    #[prost(int32, tag = "3")]
    pub history: i32,
    /// Members do not see how far the others have got.
    #[prost(bool, tag = "4")]
    pub receipts_off: bool,
    /// Whoever wants to becomes a member.
    #[prost(bool, tag = "5")]
    pub open: bool,
    /// How long a message is kept, in seconds; 0 for ever.
    #[prost(uint32, tag = "6")]
    pub retention_secs: u32,
}

/// A member, in an event, a snapshot or a row of their own.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMember {
    /// Who.
    #[prost(string, tag = "1")]
    pub user: String,
    /// [`Role`] by number.
    #[prost(int32, tag = "2")]
    pub role: i32,
    /// Pairs of joined and left seqs (snapshots only); an odd count means a member now.
    #[prost(uint64, repeated, tag = "3")]
    pub intervals: Vec<u64>,
    /// Messages read (snapshots only; here and below).
    #[prost(uint64, tag = "4")]
    pub read_n: u64,
    /// Messages that have reached them.
    #[prost(uint64, tag = "5")]
    pub delivered_n: u64,
    /// Messages read as others see it.
    #[prost(uint64, tag = "6")]
    pub shown_n: u64,
    /// Was removed by somebody else: does not come back by themselves.
    #[prost(bool, tag = "7")]
    pub barred: bool,
    /// The last event that is reflected here (rows of their own only).
    #[prost(uint64, tag = "8")]
    pub as_of: u64,
}

/// How far members of a conversation have got. A store may keep them together or each in a row of their own.
#[derive(Clone, PartialEq, Message)]
pub struct StoredReceipts {
    /// By user id, ascending.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<StoredReceipt>,
}

/// How far a member of a conversation has got. Each of its numbers only grows.
#[derive(Clone, PartialEq, Message)]
pub struct StoredReceipt {
    /// Who.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Messages read, privately or not.
    #[prost(uint64, tag = "2")]
    pub read_n: u64,
    /// Messages that have reached them, as others see it.
    #[prost(uint64, tag = "3")]
    pub delivered_n: u64,
    /// Messages read as others see it.
    #[prost(uint64, tag = "4")]
    pub shown_n: u64,
}

impl StoredReceipt {
    /// What two rows of one member tell together.
    #[must_use]
    pub fn highest(&self, other: &Self) -> Self {
        Self {
            user: self.user.clone(),
            read_n: self.read_n.max(other.read_n),
            delivered_n: self.delivered_n.max(other.delivered_n),
            shown_n: self.shown_n.max(other.shown_n),
        }
    }

    /// Whose.
    ///
    /// # Errors
    /// When the text is no user id.
    pub fn user(&self) -> Result<UserId, Corrupt> {
        user_id(&self.user)
    }
}

impl StoredReceipts {
    /// Adds what others tell, of whichever members.
    pub fn raise(&mut self, others: &[StoredReceipt]) {
        for other in others {
            match self.items.binary_search_by(|known| known.user.cmp(&other.user)) {
                Ok(index) => self.items[index] = self.items[index].highest(other),
                Err(index) => self.items.insert(index, other.clone()),
            }
        }
    }
}

/// One id that a log knows.
#[derive(Clone, PartialEq, Message)]
pub struct StoredId {
    /// Who sent it.
    #[prost(string, tag = "1")]
    pub sender: String,
    /// The command's id.
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    /// Where it stands.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// The command's hash.
    #[prost(fixed64, tag = "4")]
    pub hash: u64,
    /// `n` of its event.
    #[prost(uint64, tag = "5")]
    pub n: u64,
    /// When it was stamped.
    #[prost(uint64, tag = "6")]
    pub created_at: u64,
}

/// 256 consecutive ids of a log.
#[derive(Clone, PartialEq, Message)]
pub struct StoredIdBlock {
    /// The ids, by seq.
    #[prost(message, repeated, tag = "1")]
    pub ids: Vec<StoredId>,
}

/// What tells whether a block can hold an id, without the block: stores derive it and write it beside the block.
#[derive(Clone, PartialEq, Message)]
pub struct StoredIdPrints {
    /// The [`id_print`] of each id, by seq, four bytes each, little endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub prints: Bytes,
    /// `created_at` of the first event.
    #[prost(uint64, tag = "2")]
    pub first_at: u64,
    /// `created_at` of the last event.
    #[prost(uint64, tag = "3")]
    pub last_at: u64,
}

impl StoredIdPrints {
    /// The prints of a block.
    #[must_use]
    pub fn of(block: &StoredIdBlock) -> Self {
        let mut prints = Vec::with_capacity(block.ids.len() * 4);
        for one in &block.ids {
            prints.put_u32_le(id_print(&one.id, &one.sender));
        }
        let at = |one: Option<&StoredId>| one.map_or(0, |one| one.created_at);
        Self { prints: prints.into(), first_at: at(block.ids.first()), last_at: at(block.ids.last()) }
    }

    /// How many ids the block holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prints.len() / 4
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prints.len() < 4
    }

    /// The prints, by seq.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let (prints, _) = self.prints.as_chunks();
        prints.iter().map(|print| u32::from_le_bytes(*print))
    }

    /// Whether the block may hold an id with this print.
    #[must_use]
    pub fn contains(&self, print: u32) -> bool {
        self.iter().any(|one| one == print)
    }
}

/// 32 bits that stand for an id and its sender. Stored: never changes.
#[must_use]
pub fn id_print(id: &[u8], sender: &str) -> u32 {
    xxh3_64_with_seed(sender.as_bytes(), xxh3_64(id)) as u32
}

/// The state of a conversation at a committed seq.
#[derive(Clone, PartialEq, Message)]
pub struct StoredConversation {
    /// The committed seq whose state this is.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// Messages so far.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// [`ConversationKind`] by number.
    #[prost(int32, tag = "3")]
    pub kind: i32,
    /// [`Encryption`] by number.
    #[prost(int32, tag = "4")]
    pub encryption: i32,
    /// Settings.
    #[prost(message, optional, tag = "5")]
    pub settings: Option<StoredSettings>,
    /// Members, present and past.
    #[prost(message, repeated, tag = "6")]
    pub members: Vec<StoredMember>,
    /// Everything at or below was removed.
    #[prost(uint64, tag = "7")]
    pub floor: u64,
    /// `created_at` of event `seq`.
    #[prost(uint64, tag = "8")]
    pub last_at: u64,
    /// The epoch under which the event at `seq` was written first.
    #[prost(uint64, tag = "9")]
    pub origin: u64,
    /// The ids of the events above the last durable block.
    #[prost(message, repeated, tag = "10")]
    pub ids: Vec<StoredId>,
    /// Events whose ids stand in durable blocks: `id_block_end` and below.
    #[prost(uint64, tag = "11")]
    pub id_block_end: u64,
    /// Whether it was deleted.
    #[prost(bool, tag = "12")]
    pub deleted: bool,
    /// `created_at` of the first event.
    #[prost(uint64, tag = "13")]
    pub created_at: u64,
    /// Hash of the creating command.
    #[prost(fixed64, tag = "14")]
    pub creation_hash: u64,
    /// `created_at` of event `id_block_end`.
    #[prost(uint64, tag = "15")]
    pub id_block_at: u64,
    /// `created_at` of the last message, or of the creation; 0 where nobody noted it: then `last_at` stands for it.
    #[prost(uint64, tag = "16")]
    pub message_at: u64,
    /// The last message; absent if there is none, or nobody noted it.
    #[prost(message, optional, tag = "17")]
    pub last: Option<StoredLast>,
    /// Deletions and mentions that somebody may not have read yet.
    #[prost(message, optional, tag = "18")]
    pub marks: Option<StoredMarks>,
    /// There are too many members for this row: each has one of their own, and `members` is empty.
    #[prost(bool, tag = "19")]
    pub members_apart: bool,
    /// What else is known of the floor, and of what is above it. Absent in snapshots of before anything was ever removed.
    #[prost(message, optional, tag = "20")]
    pub above_floor: Option<StoredFloor>,
    /// The epoch of the owner that wrote it: one above its reader's tells the reader that it is superseded. 0 where there is
    /// one owner for ever.
    #[prost(uint64, tag = "30")]
    pub written_by: u64,
}

/// Where a conversation's history begins, beside the seq.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredFloor {
    /// Messages at or below the floor.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// No message above it was stamped before; 0 if there is none.
    #[prost(uint64, tag = "2")]
    pub oldest_at: u64,
    /// The event that set the floor.
    #[prost(uint64, tag = "3")]
    pub set_by: u64,
    /// Ids of events at or below are too old to be sent again.
    #[prost(uint64, tag = "4")]
    pub ids: u64,
    /// Those of events at or below will be next.
    #[prost(uint64, tag = "5")]
    pub ids_next: u64,
    /// When `ids_next` became the floor.
    #[prost(uint64, tag = "6")]
    pub ids_next_at: u64,
    /// The store holds nothing of what is at or below.
    #[prost(uint64, tag = "7")]
    pub purged: u64,
    /// It holds no ids of events at or below.
    #[prost(uint64, tag = "8")]
    pub purged_ids: u64,
}

/// The last message of a conversation, as a list shows it.
#[derive(Clone, PartialEq, Message)]
pub struct StoredLast {
    /// Its position.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// Its ordinal.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// Who sent it.
    #[prost(string, tag = "3")]
    pub sender: String,
    /// When.
    #[prost(uint64, tag = "4")]
    pub at: u64,
    /// The beginning of its text.
    #[prost(string, optional, tag = "5")]
    pub text: Option<String>,
    /// Whether it was deleted.
    #[prost(bool, tag = "6")]
    pub deleted: bool,
}

/// What counts of unread messages need beside numbers.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMarks {
    /// Pairs of the first and last ordinal of runs of deleted messages, ascending.
    #[prost(uint64, repeated, tag = "1")]
    pub deleted: Vec<u64>,
    /// Deletions at or below were forgotten.
    #[prost(uint64, tag = "2")]
    pub deleted_floor: u64,
    /// Messages that mention somebody, ascending.
    #[prost(message, repeated, tag = "3")]
    pub mentions: Vec<StoredMention>,
    /// Mentions at or below were forgotten.
    #[prost(uint64, tag = "4")]
    pub mentions_floor: u64,
}

/// A message that mentions somebody.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMention {
    /// Its ordinal.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// Whom.
    #[prost(message, optional, tag = "2")]
    pub mentions: Option<StoredMentions>,
}

/// The state of a user at a committed seq of the user's own log.
#[derive(Clone, PartialEq, Message)]
pub struct StoredUser {
    /// The committed seq whose state this is.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// `created_at` of event `seq`.
    #[prost(uint64, tag = "2")]
    pub last_at: u64,
    /// The epoch under which the event at `seq` was written first.
    #[prost(uint64, tag = "3")]
    pub origin: u64,
    /// Change numbers up to here may have been handed out.
    #[prost(uint64, tag = "4")]
    pub changes_reserved: u64,
    /// The conversations, joined and left.
    #[prost(message, repeated, tag = "5")]
    pub conversations: Vec<StoredMembership>,
    /// Log-outs and bans; absent when there never were any.
    #[prost(message, optional, tag = "20")]
    pub access: Option<StoredAccess>,
    /// How the user is seen; absent when nothing was ever noted.
    #[prost(message, optional, tag = "21")]
    pub presence: Option<StoredPresence>,
    /// Leavings up to this change were forgotten: its epoch.
    #[prost(uint64, tag = "6")]
    pub floor_epoch: u64,
    /// And its count.
    #[prost(uint64, tag = "7")]
    pub floor: u64,
    /// The last commands of the user's own.
    #[prost(message, repeated, tag = "8")]
    pub commands: Vec<StoredCommand>,
    /// Others may not see how far the user has read.
    #[prost(bool, tag = "9")]
    pub private_receipts: bool,
    /// The epoch of the owner that wrote it: one above its reader's tells the reader that it is superseded. 0 where there is
    /// one owner for ever.
    #[prost(uint64, tag = "30")]
    pub written_by: u64,
}

/// A command that a user's log knows.
#[derive(Clone, PartialEq, Message)]
pub struct StoredCommand {
    /// Its id.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Its hash.
    #[prost(fixed64, tag = "2")]
    pub hash: u64,
}

/// One conversation in a user's snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMembership {
    /// Which.
    #[prost(bytes = "vec", tag = "1")]
    pub conversation: Vec<u8>,
    /// [`ConversationKind`] by number.
    #[prost(int32, tag = "2")]
    pub kind: i32,
    /// The seq (in the conversation's log) of the last joining or leaving that was heard of.
    #[prost(uint64, tag = "3")]
    pub at: u64,
    /// Whether a member now.
    #[prost(bool, tag = "4")]
    pub joined: bool,
    /// Its position, as in its inbox row.
    #[prost(message, optional, tag = "5")]
    pub inbox: Option<StoredInbox>,
    /// When the joining was heard of.
    #[prost(uint64, tag = "6")]
    pub joined_at: u64,
    /// What the user has set.
    #[prost(message, optional, tag = "7")]
    pub preference: Option<StoredPreference>,
}

/// A user's last known position in one conversation.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredInbox {
    /// Head.
    #[prost(uint64, tag = "1")]
    pub last_seq: u64,
    /// Messages up to the head.
    #[prost(uint64, tag = "2")]
    pub last_n: u64,
    /// Messages read.
    #[prost(uint64, tag = "3")]
    pub read_n: u64,
    /// Count of the last change.
    #[prost(uint64, tag = "4")]
    pub change: u64,
    /// Epoch of the last change.
    #[prost(uint64, tag = "5")]
    pub change_epoch: u64,
    /// When the last message was stamped; 0 if nobody noted it.
    #[prost(uint64, tag = "6")]
    pub message_at: u64,
}

impl StoredInbox {
    /// The last change.
    #[must_use]
    pub const fn last_change(&self) -> Change {
        Change { epoch: self.change_epoch, count: self.change }
    }

    /// There was a change.
    pub const fn set_change(&mut self, change: Change) {
        (self.change_epoch, self.change) = (change.epoch, change.count);
    }

    /// What two positions tell together: each of their numbers only grows.
    #[must_use]
    pub fn highest(&self, other: &Self) -> Self {
        let change = self.last_change().max(other.last_change());
        Self {
            last_seq: self.last_seq.max(other.last_seq),
            last_n: self.last_n.max(other.last_n),
            read_n: self.read_n.max(other.read_n),
            change: change.count,
            change_epoch: change.epoch,
            message_at: self.message_at.max(other.message_at),
        }
    }
}

/// What later events made of one message. Written whole.
#[derive(Clone, PartialEq, Message)]
pub struct StoredOverlay {
    /// The last event that is reflected here.
    #[prost(uint64, tag = "1")]
    pub as_of: u64,
    /// The current body, if edited and not deleted.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub body: Option<Bytes>,
    /// The last edit's seq, 0 for none.
    #[prost(uint64, tag = "3")]
    pub edit: u64,
    /// When it was last edited.
    #[prost(uint64, tag = "4")]
    pub edited_at: u64,
    /// The deleting event's seq, 0 for none.
    #[prost(uint64, tag = "5")]
    pub deleted: u64,
    /// Whom it mentions since the last edit.
    #[prost(message, optional, tag = "6")]
    pub mentions: Option<StoredMentions>,
    /// Its reactions, in the order in which their keys came up; none of a deleted message.
    #[prost(message, repeated, tag = "7")]
    pub reactions: Vec<StoredReactionCount>,
}

/// How many users reacted to a message with one key.
#[derive(Clone, PartialEq, Message)]
pub struct StoredReactionCount {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// At least one.
    #[prost(uint64, tag = "2")]
    pub count: u64,
}

/// One user's reaction to one message with one key, as of its last event.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StoredReaction {
    /// The event that added or removed it.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// When.
    #[prost(uint64, tag = "2")]
    pub at: u64,
    /// Whether it was removed.
    #[prost(bool, tag = "3")]
    pub removed: bool,
}

impl StoredReaction {
    /// What an event leaves of its sender's reaction; `None` if it is about none.
    #[must_use]
    pub const fn of(event: &Event) -> Option<(&ReactionKey, Self)> {
        let (key, removed) = match &event.fact {
            Fact::ReactionAdded { key } => (key, false),
            Fact::ReactionRemoved { key } => (key, true),
            _ => return None,
        };
        Some((key, Self { seq: event.seq, at: event.created_at, removed }))
    }
}

// === impl Event ===

const MESSAGE_NEW: u32 = 1;
const MESSAGE_UPDATED: u32 = 2;
const MESSAGE_DELETED: u32 = 3;
const REACTION_ADDED: u32 = 4;
const REACTION_REMOVED: u32 = 5;
const CONVERSATION_CREATED: u32 = 16;
const CONVERSATION_UPDATED: u32 = 17;
const CONVERSATION_DELETED: u32 = 18;
const MEMBER_JOINED: u32 = 32;
const MEMBER_LEFT: u32 = 33;
const MEMBER_ROLE: u32 = 34;
const HISTORY_PURGED: u32 = 48;
const USER_JOINED: u32 = 64;
const USER_LEFT: u32 = 65;
const CHANGES_RESERVED: u32 = 66;
const USER_LOGGED_OUT: u32 = 80;
const USER_BANNED: u32 = 81;
const USER_UNBANNED: u32 = 82;
const USER_PREFERENCE: u32 = 67;
const USER_PRESENCE: u32 = 83;
const USER_RECEIPTS: u32 = 68;

impl Event {
    /// Bytes of what its client gave it.
    #[must_use]
    pub fn body_len(&self) -> usize {
        match &self.fact {
            Fact::MessageNew { body, mentions } | Fact::MessageUpdated { body, mentions, .. } => {
                let users = mentions.iter().flat_map(|mentions| &mentions.users);
                body.bytes().len() + users.map(|user| user.as_str().len() + 2).sum::<usize>()
            }
            Fact::ConversationCreated { members, settings, .. } => members.len() * 32 + settings.data.len(),
            Fact::ConversationUpdated { settings } => settings.data.len(),
            Fact::ReactionAdded { key } | Fact::ReactionRemoved { key } => key.as_str().len(),
            _ => 0,
        }
    }
}

impl From<&Event> for StoredEvent {
    fn from(event: &Event) -> Self {
        let mut body = Bytes::new();
        let mut meta = None;
        let member =
            |user: &UserId, role: i32| StoredMember { user: user.as_str().to_owned(), role, ..StoredMember::default() };
        let about = |user: &UserId, role: i32| Some(Meta { members: vec![member(user, role)], ..Meta::default() });
        let about_inbox = |conversation: ConversationId, change: Change| Meta {
            conversation: conversation.0.as_bytes().to_vec(),
            change_epoch: change.epoch,
            change: change.count,
            ..Meta::default()
        };
        let kind = match &event.fact {
            Fact::MessageNew { body: content, mentions } => {
                body = content.bytes().clone();
                meta = mentions.is_some().then(|| Meta { mentions: StoredMentions::of(mentions), ..Meta::default() });
                MESSAGE_NEW
            }
            Fact::MessageUpdated { body: content, previous, mentions, target_n } => {
                body = content.bytes().clone();
                let mentions = StoredMentions::of(mentions);
                meta = Some(Meta { previous: *previous, mentions, target_n: *target_n, ..Meta::default() });
                MESSAGE_UPDATED
            }
            Fact::MessageDeleted { previous, target_n } => {
                meta = Some(Meta { previous: *previous, target_n: *target_n, ..Meta::default() });
                MESSAGE_DELETED
            }
            Fact::ReactionAdded { key } => {
                meta = Some(Meta { key: key.as_str().to_owned(), ..Meta::default() });
                REACTION_ADDED
            }
            Fact::ReactionRemoved { key } => {
                meta = Some(Meta { key: key.as_str().to_owned(), ..Meta::default() });
                REACTION_REMOVED
            }
            Fact::ConversationCreated { kind, encryption, settings, members } => {
                meta = Some(Meta {
                    settings: Some(settings.into()),
                    conversation_kind: *kind as i32,
                    encryption: *encryption as i32,
                    members: members.iter().map(|(user, role)| member(user, *role as i32)).collect(),
                    ..Meta::default()
                });
                CONVERSATION_CREATED
            }
            Fact::ConversationUpdated { settings } => {
                meta = Some(Meta { settings: Some(settings.into()), ..Meta::default() });
                CONVERSATION_UPDATED
            }
            Fact::ConversationDeleted => CONVERSATION_DELETED,
            Fact::MemberJoined { user, role } => {
                meta = about(user, *role as i32);
                MEMBER_JOINED
            }
            Fact::MemberLeft { user } => {
                meta = about(user, 0);
                MEMBER_LEFT
            }
            Fact::MemberRole { user, role } => {
                meta = about(user, *role as i32);
                MEMBER_ROLE
            }
            Fact::HistoryPurged { floor, floor_n, oldest_at } => {
                let floor =
                    StoredFloor { n: *floor_n, oldest_at: *oldest_at, set_by: *floor, ..StoredFloor::default() };
                meta = Some(Meta { floor: Some(floor), ..Meta::default() });
                HISTORY_PURGED
            }
            Fact::UserJoined { conversation, kind, at, change } => {
                meta = Some(Meta { conversation_kind: *kind as i32, at: *at, ..about_inbox(*conversation, *change) });
                USER_JOINED
            }
            Fact::UserLeft { conversation, at, change } => {
                meta = Some(Meta { at: *at, ..about_inbox(*conversation, *change) });
                USER_LEFT
            }
            Fact::UserPreference { conversation, preference, change } => {
                let preference = Some(StoredPreference::from(*preference));
                meta = Some(Meta { preference, ..about_inbox(*conversation, *change) });
                USER_PREFERENCE
            }
            Fact::ChangesReserved { upto } => {
                meta = Some(Meta { upto: *upto, ..Meta::default() });
                CHANGES_RESERVED
            }
            Fact::UserLoggedOut(out) => {
                meta = Some(Meta { log_out: Some(out.into()), ..Meta::default() });
                USER_LOGGED_OUT
            }
            Fact::UserBanned(ban) => {
                meta = Some(Meta { ban: Some(ban.into()), ..Meta::default() });
                USER_BANNED
            }
            Fact::UserPresence { invisible, seen } => {
                let presence = Some(StoredPresence { invisible: *invisible, seen: *seen });
                meta = Some(Meta { presence, ..Meta::default() });
                USER_PRESENCE
            }
            Fact::UserUnbanned { by } => {
                meta =
                    Some(Meta { ban: Some(StoredBan { by: by.clone(), ..StoredBan::default() }), ..Meta::default() });
                USER_UNBANNED
            }
            Fact::UserReceipts { private } => {
                meta = Some(Meta { private: *private, ..Meta::default() });
                USER_RECEIPTS
            }
        };
        Self {
            seq: event.seq,
            n: event.n,
            sender: event.sender.as_str().to_owned(),
            device: event.device.as_ref().map(|device| device.as_str().to_owned()).unwrap_or_default(),
            command_id: event.id.0.as_bytes().to_vec(),
            target: event.target,
            flags: 0,
            created_at: event.created_at,
            kind,
            body,
            meta,
            hash: event.hash,
        }
    }
}

impl TryFrom<StoredEvent> for Event {
    type Error = Corrupt;

    fn try_from(stored: StoredEvent) -> Result<Self, Corrupt> {
        const WRONG: Corrupt = Corrupt::Content("an event's fields do not fit its kind");
        let mut meta = stored.meta.unwrap_or_default();
        let one = |meta: &mut Meta| meta.members.pop().ok_or(WRONG);
        let fact = match stored.kind {
            MESSAGE_NEW => Fact::MessageNew {
                body: Body::trusted(stored.body),
                mentions: StoredMentions::open(meta.mentions.take())?,
            },
            MESSAGE_UPDATED => Fact::MessageUpdated {
                body: Body::trusted(stored.body),
                previous: meta.previous,
                mentions: StoredMentions::open(meta.mentions.take())?,
                target_n: meta.target_n,
            },
            MESSAGE_DELETED => Fact::MessageDeleted { previous: meta.previous, target_n: meta.target_n },
            REACTION_ADDED => Fact::ReactionAdded { key: ReactionKey::new(&meta.key).map_err(|_| WRONG)? },
            REACTION_REMOVED => Fact::ReactionRemoved { key: ReactionKey::new(&meta.key).map_err(|_| WRONG)? },
            CONVERSATION_CREATED => Fact::ConversationCreated {
                kind: ConversationKind::from_number(meta.conversation_kind).ok_or(WRONG)?,
                encryption: Encryption::from_number(meta.encryption).ok_or(WRONG)?,
                settings: Settings::try_from(meta.settings.unwrap_or_default())?,
                members: meta.members.iter().map(StoredMember::user_and_role).collect::<Result<_, _>>()?,
            },
            CONVERSATION_UPDATED => {
                Fact::ConversationUpdated { settings: Settings::try_from(meta.settings.unwrap_or_default())? }
            }
            CONVERSATION_DELETED => Fact::ConversationDeleted,
            MEMBER_JOINED => {
                let (user, role) = one(&mut meta)?.user_and_role()?;
                Fact::MemberJoined { user, role }
            }
            MEMBER_LEFT => Fact::MemberLeft { user: one(&mut meta)?.user()? },
            MEMBER_ROLE => {
                let (user, role) = one(&mut meta)?.user_and_role()?;
                Fact::MemberRole { user, role }
            }
            HISTORY_PURGED => {
                let StoredFloor { n: floor_n, oldest_at, set_by: floor, .. } = meta.floor.ok_or(WRONG)?;
                Fact::HistoryPurged { floor, floor_n, oldest_at }
            }
            USER_JOINED => Fact::UserJoined {
                conversation: conversation_id(&meta.conversation)?,
                kind: ConversationKind::from_number(meta.conversation_kind).ok_or(WRONG)?,
                at: meta.at,
                change: meta.change(),
            },
            USER_LEFT => Fact::UserLeft {
                conversation: conversation_id(&meta.conversation)?,
                at: meta.at,
                change: meta.change(),
            },
            USER_PREFERENCE => Fact::UserPreference {
                conversation: conversation_id(&meta.conversation)?,
                preference: meta.preference.take().unwrap_or_default().into(),
                change: meta.change(),
            },
            CHANGES_RESERVED => Fact::ChangesReserved { upto: meta.upto },
            USER_LOGGED_OUT => Fact::UserLoggedOut(meta.log_out.ok_or(WRONG)?.try_into()?),
            USER_BANNED => Fact::UserBanned(meta.ban.ok_or(WRONG)?.into()),
            USER_PRESENCE => {
                let StoredPresence { invisible, seen } = meta.presence.unwrap_or_default();
                Fact::UserPresence { invisible, seen }
            }
            USER_UNBANNED => Fact::UserUnbanned { by: meta.ban.unwrap_or_default().by },
            USER_RECEIPTS => Fact::UserReceipts { private: meta.private },
            _ => return Err(Corrupt::Content("an event of a kind that this program does not know")),
        };
        Ok(Self {
            seq: stored.seq,
            n: stored.n,
            sender: UserId::stored(&stored.sender).map_err(|_| WRONG)?,
            device: if stored.device.is_empty() {
                None
            } else {
                Some(DeviceId::new(&stored.device).map_err(|_| WRONG)?)
            },
            id: command_id(&stored.command_id)?,
            target: stored.target,
            created_at: stored.created_at,
            hash: stored.hash,
            fact,
        })
    }
}

/// The id of 16 stored bytes.
///
/// # Errors
/// When there are not 16.
pub fn conversation_id(bytes: &[u8]) -> Result<ConversationId, Corrupt> {
    Uuid::from_slice(bytes).map(ConversationId).map_err(|_| Corrupt::Content("an id is not 16 bytes"))
}

/// The id of 16 stored bytes.
///
/// # Errors
/// When there are not 16.
pub fn command_id(bytes: &[u8]) -> Result<CommandId, Corrupt> {
    Uuid::from_slice(bytes).map(CommandId).map_err(|_| Corrupt::Content("an id is not 16 bytes"))
}

impl StoredMember {
    /// Who.
    ///
    /// # Errors
    /// When the text is no user id.
    pub fn user(&self) -> Result<UserId, Corrupt> {
        user_id(&self.user)
    }

    /// Who and as what.
    ///
    /// # Errors
    /// When the text is no user id or the number no role.
    pub fn user_and_role(&self) -> Result<(UserId, Role), Corrupt> {
        Ok((self.user()?, Role::from_number(self.role).ok_or(Corrupt::Content("a stored number is no role"))?))
    }
}

// === impl StoredAccess and its parts ===

impl From<&LogOut> for StoredLogOut {
    fn from(out: &LogOut) -> Self {
        let device = out.device.as_ref().map(|device| Marked::Device(device.clone()));
        let tokens =
            out.tokens.iter().map(|(print, expires_at)| Marked::Token { print: *print, expires_at: *expires_at });
        let marks = device.into_iter().chain(tokens).map(|what| (&Mark { before: out.before, what }).into());
        Self { before: out.before, marks: marks.collect(), by: out.by.clone() }
    }
}

impl TryFrom<StoredLogOut> for LogOut {
    type Error = Corrupt;
    fn try_from(stored: StoredLogOut) -> Result<Self, Corrupt> {
        let mut out = Self { before: stored.before, by: stored.by, ..Self::default() };
        for mark in stored.marks {
            match Mark::try_from(mark)?.what {
                Marked::Device(device) => out.device = Some(device),
                Marked::Token { print, expires_at } => out.tokens.push((print, expires_at)),
            }
        }
        Ok(out)
    }
}

impl From<&Mark> for StoredMark {
    fn from(mark: &Mark) -> Self {
        let stored = Self { before: mark.before, ..Self::default() };
        match &mark.what {
            Marked::Device(device) => Self { device: device.as_str().to_owned(), ..stored },
            Marked::Token { print, expires_at } => Self { print: *print, expires_at: *expires_at, ..stored },
        }
    }
}

impl TryFrom<StoredMark> for Mark {
    type Error = Corrupt;
    fn try_from(stored: StoredMark) -> Result<Self, Corrupt> {
        let StoredMark { before, device, print, expires_at } = stored;
        let what = match device.as_str() {
            "" => Marked::Token { print, expires_at },
            device => {
                let device = DeviceId::new(device);
                Marked::Device(device.map_err(|_| Corrupt::Content("a stored text is no device id"))?)
            }
        };
        Ok(Self { before, what })
    }
}

impl From<&Ban> for StoredBan {
    fn from(ban: &Ban) -> Self {
        Self { since: ban.since, until: ban.until, reason: ban.reason.clone(), by: ban.by.clone() }
    }
}

impl From<StoredBan> for Ban {
    fn from(stored: StoredBan) -> Self {
        Self { since: stored.since, until: stored.until, reason: stored.reason, by: stored.by }
    }
}

impl From<&Access> for StoredAccess {
    fn from(access: &Access) -> Self {
        Self {
            version: access.version,
            before: access.before,
            marks: access.marks.iter().map(Into::into).collect(),
            ban: access.ban.as_ref().map(Into::into),
            ids: Vec::new(),
        }
    }
}

impl TryFrom<StoredAccess> for Access {
    type Error = Corrupt;
    fn try_from(stored: StoredAccess) -> Result<Self, Corrupt> {
        Ok(Self {
            version: stored.version,
            before: stored.before,
            marks: stored.marks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            ban: stored.ban.map(Into::into),
        })
    }
}

impl From<Preference> for StoredPreference {
    fn from(preference: Preference) -> Self {
        let Preference { pinned, archived, muted_until, marked_unread } = preference;
        Self { pinned, archived, muted_until, marked_unread }
    }
}

impl From<StoredPreference> for Preference {
    fn from(stored: StoredPreference) -> Self {
        let StoredPreference { pinned, archived, muted_until, marked_unread } = stored;
        Self { pinned, archived, muted_until, marked_unread }
    }
}

impl From<&Settings> for StoredSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            title: settings.title.clone(),
            data: settings.data.clone(),
            history: settings.history as i32,
            receipts_off: settings.receipts_off,
            open: settings.open,
            retention_secs: settings.retention_secs,
        }
    }
}

impl TryFrom<StoredSettings> for Settings {
    type Error = Corrupt;
    fn try_from(stored: StoredSettings) -> Result<Self, Corrupt> {
        let history = HistoryAccess::from_number(stored.history)
            .ok_or(Corrupt::Content("a stored number is no history access"))?;
        let StoredSettings { title, data, receipts_off, open, retention_secs, .. } = stored;
        Ok(Self { title, data, history, receipts_off, open, retention_secs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    /// One event of every kind, seqs from 7.
    fn every_kind() -> Vec<Arc<Event>> {
        let body = || Body::parse(r#"{"text":"hi"}"#).unwrap();
        let mentions = || Some(Arc::new(Mentions { users: vec![user("bob"), user("eve")], all: true }));
        let settings = Settings {
            title: "t".into(),
            data: Bytes::from_static(b"{}"),
            history: HistoryAccess::All,
            receipts_off: true,
            open: true,
            retention_secs: 86_400,
        };
        let conversation = ConversationId(Uuid::now_v7());
        let change = Change { epoch: 7, count: 9 };
        let facts = [
            Fact::MessageNew { body: body(), mentions: None },
            Fact::MessageNew { body: body(), mentions: mentions() },
            Fact::MessageUpdated { body: body(), previous: 3, mentions: mentions(), target_n: 2 },
            Fact::MessageDeleted { previous: 5, target_n: 2 },
            Fact::ReactionAdded { key: ReactionKey::new("👍").unwrap() },
            Fact::ReactionRemoved { key: ReactionKey::new("👍").unwrap() },
            Fact::ConversationCreated {
                kind: ConversationKind::Group,
                encryption: Encryption::None,
                settings: settings.clone(),
                members: vec![(user("ada"), Role::Owner), (user("bob"), Role::Member)],
            },
            Fact::ConversationUpdated { settings },
            Fact::ConversationDeleted,
            Fact::MemberJoined { user: user("eve"), role: Role::Admin },
            Fact::MemberLeft { user: user("eve") },
            Fact::MemberRole { user: user("bob"), role: Role::Owner },
            Fact::HistoryPurged { floor: 5, floor_n: 4, oldest_at: 17 },
            Fact::UserJoined { conversation, kind: ConversationKind::Direct, at: 9, change },
            Fact::UserLeft { conversation, at: 10, change },
            Fact::UserPreference {
                conversation,
                preference: Preference { pinned: true, archived: Some(0), muted_until: u64::MAX, marked_unread: true },
                change,
            },
            Fact::UserPreference { conversation, preference: Preference::default(), change },
            Fact::ChangesReserved { upto: 1024 },
            Fact::UserLoggedOut(LogOut { before: 9, by: "backend".into(), ..LogOut::default() }),
            Fact::UserLoggedOut(LogOut {
                before: 9,
                device: DeviceId::new("tv").ok(),
                tokens: vec![(u64::MAX, 10), (1, 11)],
                by: String::new(),
            }),
            Fact::UserBanned(Ban { since: 1, until: Some(0), reason: "spam".into(), by: "backend".into() }),
            Fact::UserBanned(Ban::default()),
            Fact::UserUnbanned { by: "backend".into() },
            Fact::UserPresence { invisible: true, seen: u64::MAX },
            Fact::UserPresence { invisible: false, seen: 0 },
            Fact::UserReceipts { private: true },
            Fact::UserReceipts { private: false },
        ];
        let event = |(index, fact): (usize, Fact)| {
            Arc::new(Event {
                seq: 7 + index as u64,
                n: 3,
                sender: user("ada"),
                device: (index % 2 == 0).then(|| DeviceId::new("laptop").unwrap()),
                id: CommandId::fresh(),
                target: index as u64,
                created_at: 1_700_000_000_000,
                hash: u64::MAX - index as u64,
                fact,
            })
        };
        facts.into_iter().enumerate().map(event).collect()
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let events = every_kind();
        let row = LogRow { epoch: 5, cw: 6, origin: 5, after: 0, events: events.clone() };
        assert_eq!(LogRow::unseal(LogRow::seal(5, 6, &events)), Ok(row));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let whole = LogRow::seal(5, 6, &every_kind());
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(LogRow::unseal(Bytes::from(bytes)).is_err(), "bit {bit}");
        }
        for len in 0..whole.len() {
            assert!(LogRow::unseal(whole.slice(..len)).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_row_with_a_hole_is_refused() {
        let mut events = every_kind();
        events.remove(3);
        assert!(matches!(LogRow::unseal(LogRow::seal(1, 0, &events)), Err(Corrupt::Content(_))));
        assert!(matches!(LogRow::unseal(LogRow::seal(1, 0, &[])), Err(Corrupt::Content(_))));
    }

    #[test]
    fn a_value_of_another_kind_or_version_is_refused() {
        let overlay = seal(Kind::Overlay, &StoredOverlay::default());
        assert!(matches!(unseal::<StoredOverlay>(Kind::Inbox, overlay.clone()), Err(Corrupt::Kind { .. })));
        let mut newer = overlay.to_vec();
        newer[0] = VERSION + 1;
        let sum = checksum(&newer);
        newer[2..HEADER].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(unseal::<StoredOverlay>(Kind::Overlay, newer.into()), Err(Corrupt::Version(VERSION + 1)));
    }

    /// The bytes of format version 1: if this changes, stored logs have changed their meaning.
    #[test]
    fn the_format_is_pinned() {
        let event = Event {
            seq: 1,
            n: 1,
            sender: user("ada"),
            device: None,
            id: CommandId("01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()),
            target: 0,
            created_at: 1_700_000_000_000,
            hash: 7,
            fact: Fact::MessageNew { body: Body::parse(r#"{"text":"hi"}"#).unwrap(), mentions: None },
        };
        let bytes = LogRow::seal(2, 0, &[Arc::new(event)]);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, PINNED);
    }

    #[test]
    fn receipts_only_rise_and_stay_in_order() {
        let item = |user: &str, read_n, delivered_n, shown_n| StoredReceipt {
            user: user.into(),
            read_n,
            delivered_n,
            shown_n,
        };
        let mut receipts = StoredReceipts::default();
        receipts.raise(&[item("bob", 3, 2, 1), item("ada", 1, 1, 1)]);
        receipts.raise(&[item("bob", 2, 4, 0), item("eve", 9, 0, 0)]);
        assert_eq!(receipts.items, [item("ada", 1, 1, 1), item("bob", 3, 4, 1), item("eve", 9, 0, 0)]);
        let sealed = seal(Kind::Receipts, &receipts);
        assert_eq!(unseal::<StoredReceipts>(Kind::Receipts, sealed), Ok(receipts));
    }

    #[test]
    fn the_prints_of_a_block_are_pinned() {
        let id = |seq: u64| StoredId {
            sender: "ada".to_owned(),
            id: Uuid::from_u128(u128::from(seq)).as_bytes().to_vec(),
            seq,
            created_at: seq * 10,
            ..StoredId::default()
        };
        let block = StoredIdBlock { ids: (5..=7).map(id).collect() };
        let prints = StoredIdPrints::of(&block);
        assert_eq!((prints.len(), prints.first_at, prints.last_at), (3, 50, 70));
        assert!(
            prints.contains(id_print(&block.ids[1].id, "ada")) && !prints.contains(id_print(&block.ids[1].id, "bob"))
        );
        assert_eq!(prints.iter().collect::<Vec<_>>(), [641_693_374, 976_791_550, 1_096_226_196]);
    }

    const PINNED: &str = "01017ef29b7a0000020000000000000000000000000000000100000000000000010000003c080110011a036164612a1001890a5dac96774bbcceb302099a80574080d095ffbc314801520d7b2274657874223a226869227d610700000000000000";

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = LogRow::unseal(Bytes::from(bytes.clone()));
            let mut framed = begin(Kind::Log, bytes.len());
            framed.extend_from_slice(&bytes);
            let _ = LogRow::unseal(finish(framed));
        }
    }
}
