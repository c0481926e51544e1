//! How things are named: conversations, users, devices, commands, positions, owners.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    archive::Text,
    event::Encryption,
    limit::{DEVICE_ID_BYTES_MAX, PARTITION_BITS, USER_ID_BYTES_MAX},
};

/// Position of an event in its entity's log: 1, 2, 3, … without holes. 0 means "before the first".
pub type Seq = u64;

/// The ownership number of a partition; grows at every change of owner. Clients never see it.
pub type Epoch = u64;

/// One life of a node process, never reused.
pub type SessionId = u64;

/// Milliseconds since the Unix epoch.
pub type Millis = u64;

/// Identity of the history that clients hold positions in; changes only on restore or loss.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The history that a founding of a cluster begins: another one in every cluster, and with every founding.
    #[must_use]
    pub fn of(cluster: u128, founding: u16) -> Self {
        Self(xxh3_64_with_seed(&cluster.to_be_bytes(), u64::from(founding)))
    }
}

/// A conversation: UUIDv8 derived for direct ones, v7 or v8 for groups.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(transparent)]
pub struct ConversationId(pub Uuid);

/// An application's name of a user (the JWT's `sub`): opaque, 1 to 128 bytes of UTF-8 without control characters.
///
/// Cloning shares the text; two equal ids may or may not share it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct UserId(#[rkyv(with = Text)] Arc<str>);

/// One of a user's devices: 1 to 64 bytes of `A–Z a–z 0–9 . _ : -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct DeviceId(#[rkyv(with = Text)] Arc<str>);

/// The id of a mutating command, made before the first attempt (UUIDv7): the same id never has two effects.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(transparent)]
pub struct CommandId(pub Uuid);

/// What is owned by one node at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum EntityId {
    /// A conversation and its log.
    Conversation(ConversationId),
    /// A user: inbox, connections, and a log of the user's own durable facts.
    User(UserId),
}

/// Bits of the hash that name a partition, in this process: all that it speaks with agree on them.
static BITS_IN_USE: AtomicU32 = AtomicU32::new(PARTITION_BITS);

/// How many partitions there are.
#[must_use]
pub fn partitions() -> usize {
    1 << BITS_IN_USE.load(Ordering::Relaxed)
}

/// Takes another number of partitions than the usual one, as the cluster has it; before anything is owned.
pub fn divide_into(partitions: usize) {
    BITS_IN_USE.store(partitions.next_power_of_two().trailing_zeros().clamp(1, 16), Ordering::Relaxed);
}

/// One slice of the hash space of entity ids.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(transparent)]
pub struct Partition(pub u16);

/// A node as the cluster remembers it: a random number, written to its disk before its first start and never reused.
/// A node that lost its disk is another node. Written in hex.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(transparent)]
pub struct NodeUid(pub u64);

/// A gateway process as nodes know it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct GatewayId(pub u32);

/// A client's connection as its gateway numbers it. Recipients travel as slots, never as names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ConnectionSlot(pub u32);

/// When something in a user's inbox last changed, in the order of its owners: the epoch of the one that changed it, and
/// that one's count. Clients see it as a text and know nothing of what is in it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Change {
    /// The owner's.
    pub epoch: Epoch,
    /// Its changes so far.
    pub count: u64,
}

/// A name that is not well formed. The text says what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

// === impl ConversationId ===

impl ConversationId {
    /// The one conversation of an unordered pair and an encryption: both members arrive at the same id.
    #[must_use]
    pub fn direct(a: &UserId, b: &UserId, encryption: Encryption) -> Self {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let mut hash = Sha256::new();
        hash.update(b"chappe/direct/1");
        hash.update([encryption as u8]);
        for user in [low, high] {
            hash.update((user.as_str().len() as u32).to_be_bytes());
            hash.update(user.as_str().as_bytes());
        }
        Self(uuid_v8(&hash.finalize()))
    }

    /// A group's id made from its creator and an idempotency key, so that a retried creation meets the same entity.
    #[must_use]
    pub fn keyed(creator: &UserId, key: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chappe/group/1");
        hash.update((creator.as_str().len() as u32).to_be_bytes());
        hash.update(creator.as_str().as_bytes());
        hash.update(key.as_bytes());
        Self(uuid_v8(&hash.finalize()))
    }
}

fn uuid_v8(digest: &[u8]) -> Uuid {
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConversationId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        Uuid::try_parse(text).map(Self).map_err(|_| Malformed("expected a UUID"))
    }
}

// === impl CommandId ===

impl CommandId {
    /// A fresh id, for commands to which the client gave none.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id under which a user's log hears of event `at` of a conversation: each joining and each leaving has its own,
    /// and the same fact told again has the same.
    #[must_use]
    pub fn of_fact(conversation: ConversationId, at: Seq) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chappe/fact/1");
        hash.update(conversation.0.as_bytes());
        hash.update(at.to_be_bytes());
        Self(uuid_v8(&hash.finalize()))
    }

    /// The id under which a user's log notes, as its event `seq`, that a conversation is read.
    #[must_use]
    pub fn of_reading(conversation: ConversationId, seq: Seq) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chappe/reading/1");
        hash.update(conversation.0.as_bytes());
        hash.update(seq.to_be_bytes());
        Self(uuid_v8(&hash.finalize()))
    }

    /// The id under which a user's log notes, as its event `seq`, when the user was last seen.
    #[must_use]
    pub fn of_seeing(seq: Seq) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chappe/seeing/1");
        hash.update(seq.to_be_bytes());
        Self(uuid_v8(&hash.finalize()))
    }

    /// When the id says it was made, if it is a UUIDv7.
    #[must_use]
    pub fn time(self) -> Option<Millis> {
        (self.0.get_version_num() == 7).then(|| {
            let b = self.0.as_bytes();
            b[..6].iter().fold(0u64, |acc, byte| acc << 8 | u64::from(*byte))
        })
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl UserId, DeviceId ===

impl UserId {
    /// # Errors
    /// When `text` is empty, longer than 128 bytes or holds a control character.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        if text.is_empty() || text.len() > USER_ID_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Malformed("expected a user id: 1 to 128 bytes of text without control characters"));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The sender of what nobody did. No user has this id: it is empty.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Arc::from(""))
    }

    /// The id that was stored as this text: a user's, or nobody's.
    ///
    /// # Errors
    /// When it is neither.
    pub fn stored(text: &str) -> Result<Self, Malformed> {
        if text.is_empty() { Ok(Self::nobody()) } else { Self::new(text) }
    }

    /// The application's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shared text itself, for interning.
    #[must_use]
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl DeviceId {
    /// # Errors
    /// When `text` is empty, longer than 64 bytes or holds other characters than `A–Z a–z 0–9 . _ : -`.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        if text.is_empty() || text.len() > DEVICE_ID_BYTES_MAX || !text.bytes().all(fits) {
            return Err(Malformed("expected a device id: 1 to 64 of A-Z a-z 0-9 . _ : -"));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The device's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = Malformed;
            fn from_str(text: &str) -> Result<Self, Malformed> {
                Self::new(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use text_id;
text_id!(UserId);
text_id!(DeviceId);

// === impl EntityId ===

/// First byte of a conversation's key.
const CONVERSATION: u8 = b'c';
/// First byte of a user's key.
const USER: u8 = b'u';

impl EntityId {
    /// The key under which every store keeps the entity: a kind byte, then the id. No key is another's prefix (a
    /// user's id has its length before it), so what follows a key cannot be mistaken for part of a longer one.
    #[must_use]
    pub fn to_key(&self) -> Vec<u8> {
        match self {
            Self::Conversation(id) => {
                let mut key = Vec::with_capacity(17);
                key.push(CONVERSATION);
                key.extend_from_slice(id.0.as_bytes());
                key
            }
            Self::User(id) => {
                let mut key = Vec::with_capacity(2 + id.as_str().len());
                key.push(USER);
                key.push(id.as_str().len() as u8);
                key.extend_from_slice(id.as_str().as_bytes());
                key
            }
        }
    }

    /// The entity of a key.
    ///
    /// # Errors
    /// When the bytes are no such key.
    pub fn from_key(key: &[u8]) -> Result<Self, Malformed> {
        const WRONG: Malformed = Malformed("expected an entity key");
        match key.split_first() {
            Some((&CONVERSATION, id)) => {
                Uuid::from_slice(id).map(|id| Self::Conversation(ConversationId(id))).map_err(|_| WRONG)
            }
            Some((&USER, rest)) => {
                let (len, id) = rest.split_first().ok_or(WRONG)?;
                let whole = usize::from(*len) == id.len();
                let id = std::str::from_utf8(id).ok().filter(|_| whole).and_then(|id| UserId::new(id).ok());
                id.map(Self::User).ok_or(WRONG)
            }
            _ => Err(WRONG),
        }
    }

    /// The entity whose key the bytes begin with, whatever follows.
    #[must_use]
    pub fn from_key_prefix(key: &[u8]) -> Option<Self> {
        let len = match key {
            [CONVERSATION, ..] => 1 + size_of::<Uuid>(),
            [USER, len, ..] => 2 + usize::from(*len),
            _ => return None,
        };
        Self::from_key(key.get(..len)?).ok()
    }

    /// The slice of the hash space in which the entity lives. Top bits, so that doubling the number of
    /// partitions splits each into two neighbours. Conversations and users are spread apart by the kind byte.
    #[must_use]
    pub fn partition(&self) -> Partition {
        match self {
            Self::Conversation(id) => id.partition(),
            Self::User(id) => id.partition(),
        }
    }
}

impl ConversationId {
    /// Where the conversation lives; see [`EntityId::partition`].
    #[must_use]
    pub fn partition(&self) -> Partition {
        let mut key = [CONVERSATION; 17];
        key[1..].copy_from_slice(self.0.as_bytes());
        Partition::of_key(&key)
    }
}

impl UserId {
    /// Where the user lives; see [`EntityId::partition`]. Asked for every member of every message, so it takes no memory.
    #[must_use]
    pub fn partition(&self) -> Partition {
        let id = self.as_str().as_bytes();
        let mut key = [USER; 2 + USER_ID_BYTES_MAX];
        key[1] = id.len() as u8;
        key[2..2 + id.len()].copy_from_slice(id);
        Partition::of_key(&key[..2 + id.len()])
    }
}

impl Partition {
    fn of_key(key: &[u8]) -> Self {
        Self((xxh3_64(key) >> (64 - BITS_IN_USE.load(Ordering::Relaxed))) as u16)
    }
}

impl From<ConversationId> for EntityId {
    fn from(id: ConversationId) -> Self {
        Self::Conversation(id)
    }
}

impl From<UserId> for EntityId {
    fn from(id: UserId) -> Self {
        Self::User(id)
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversation(id) => write!(f, "conversation {id}"),
            Self::User(id) => write!(f, "user {id}"),
        }
    }
}

// === impl GatewayId ===

impl GatewayId {
    /// The name of one of its connections, as clients and operators see it.
    #[must_use]
    pub fn connection(self, slot: ConnectionSlot) -> String {
        format!("{:x}-{:x}", self.0, slot.0)
    }
}

// === impl Generation ===

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        u64::from_str_radix(text, 16).map(Self).map_err(|_| Malformed("expected a generation"))
    }
}

// === impl NodeUid ===

impl fmt::Display for NodeUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeUid {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        // Only what `Display` writes.
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(Self).ok_or(Malformed("expected a node's uid: 16 hexadecimal digits"))
    }
}

// === impl Change ===

impl Change {
    /// The next one of an owner that has counted so far.
    pub const fn next(epoch: Epoch, counted: &mut u64) -> Self {
        *counted += 1;
        Self { epoch, count: *counted }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.epoch, self.count)
    }
}

impl FromStr for Change {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        // Only what `Display` writes: a sign or a capital was never ours.
        let number = |part: &str| {
            let digits = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            u64::from_str_radix(part, 16).ok().filter(|_| digits)
        };
        let parts = text.split_once('.').and_then(|(epoch, count)| Some((number(epoch)?, number(count)?)));
        parts.map(|(epoch, count)| Self { epoch, count }).ok_or(Malformed("expected a change"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_and_keep_the_order_of_owners() {
        // A cluster's epoch: its generation, then the index of an entry of its log.
        let late = Change { epoch: 3 << 48 | 70_000, count: 1 };
        let early = Change { epoch: 3 << 48 | 69_999, count: u64::MAX };
        assert!(early < late);
        for change in [early, late, Change::default()] {
            assert_eq!(change.to_string().parse(), Ok(change));
        }
        assert_eq!(late.to_string(), "3000000011170.1");
        for text in ["", ".", "1", "1.", ".1", "1.2.3", "+1.2", "1.-2", "A.1", "1 .2", "10000000000000000.1"] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn a_pair_has_one_direct_conversation_per_encryption() {
        let (ada, bob) = (user("ada"), user("bob"));
        let clear = ConversationId::direct(&ada, &bob, Encryption::None);
        assert_eq!(clear, ConversationId::direct(&bob, &ada, Encryption::None));
        assert_ne!(clear, ConversationId::direct(&ada, &bob, Encryption::Mls));
        assert_eq!(clear.0.get_version_num(), 8);
    }

    #[test]
    fn the_border_between_two_names_matters() {
        let one = ConversationId::direct(&user("ab"), &user("c"), Encryption::None);
        let other = ConversationId::direct(&user("a"), &user("bc"), Encryption::None);
        assert_ne!(one, other);
    }

    #[test]
    fn keys_come_back() {
        for entity in [EntityId::from(ConversationId(Uuid::now_v7())), EntityId::from(user("zoë"))] {
            assert_eq!(EntityId::from_key_prefix(&entity.to_key()), Some(entity.clone()));
            assert_eq!(EntityId::from_key_prefix(&[&*entity.to_key(), b"\0more"].concat()), Some(entity.clone()));
            assert_eq!(EntityId::from_key(&entity.to_key()), Ok(entity));
        }
        assert!(EntityId::from_key(b"").is_err());
        assert!(EntityId::from_key(b"c123").is_err());
        assert!(EntityId::from_key(b"u").is_err());
        assert!(EntityId::from_key(b"u\x02a").is_err());
    }

    #[test]
    fn no_key_is_anothers_prefix() {
        let (short, long) = (EntityId::from(user("a")).to_key(), EntityId::from(user("ab")).to_key());
        assert!(!long.starts_with(&short));
    }

    #[test]
    fn node_uids_come_back() {
        for uid in [NodeUid(0), NodeUid(0xfeed), NodeUid(u64::MAX)] {
            assert_eq!(uid.to_string().parse(), Ok(uid));
        }
        for text in ["", "feed", "+00000000000feed", "000000000000FEED", "00000000000000000"] {
            assert!(text.parse::<NodeUid>().is_err(), "{text}");
        }
    }

    #[test]
    fn user_ids_are_bounded() {
        assert!(UserId::new("").is_err());
        assert!(UserId::new("a\nb").is_err());
        assert!(UserId::new(&"x".repeat(128)).is_ok());
        assert!(UserId::new(&"x".repeat(129)).is_err());
    }

    #[test]
    fn a_command_id_tells_its_time_only_as_v7() {
        let id = CommandId(Uuid::now_v7());
        let (seconds, nanos) = id.0.get_timestamp().unwrap().to_unix();
        assert_eq!(id.time(), Some(seconds * 1000 + u64::from(nanos) / 1_000_000));
        assert_eq!(CommandId(Uuid::new_v4()).time(), None);
    }

    #[test]
    fn an_entity_lives_where_the_hash_of_its_key_says() {
        let longest = "x".repeat(USER_ID_BYTES_MAX);
        let users = ["a", "zoë", longest.as_str()].map(|name| EntityId::from(user(name)));
        for entity in users.into_iter().chain([ConversationId(Uuid::now_v7()).into()]) {
            assert_eq!(u64::from(entity.partition().0), xxh3_64(&entity.to_key()) >> (64 - PARTITION_BITS), "{entity}");
        }
    }

    #[test]
    fn partitions_fill_evenly() {
        let mut counts = vec![0u32; 1 << PARTITION_BITS];
        for i in 0..200_000u32 {
            counts[usize::from(EntityId::from(user(&format!("user-{i}"))).partition().0)] += 1;
        }
        let mean = 200_000 / counts.len() as u32;
        assert!(counts.iter().all(|count| *count < mean * 3), "a partition holds three times its share");
    }
}
