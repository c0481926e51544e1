//! An event as the columns of the cluster's log: what queries and operators want to see stands open, the rest in a sealed
//! `meta`, which also holds the checksums of everything beside it.
//!
//! The body has a checksum of its own, so that it can be erased without touching anything else.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::{
    event::Event,
    id::{Millis, Seq},
    stored::{Corrupt, Kind, Meta, StoredEvent, seal, unseal},
};

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Its place in the log.
    pub seq: Seq,
    /// Messages up to it.
    pub n: u64,
    /// What it is, by number.
    pub kind: u8,
    /// Who sent it.
    pub sender: String,
    /// From which device; empty for none.
    pub device: String,
    /// The command's id.
    pub command_id: Uuid,
    /// The event that it is about; 0 for none.
    pub target: Seq,
    /// None is in use.
    pub flags: u32,
    /// When it was stamped.
    pub created_at: Millis,
    /// What its client gave it; empty for none.
    pub body: Bytes,
    /// The rest, sealed.
    pub meta: Bytes,
}

/// What `meta` holds.
#[derive(Clone, PartialEq, Message)]
struct Sealed {
    #[prost(message, optional, tag = "1")]
    meta: Option<Meta>,
    #[prost(fixed64, tag = "2")]
    hash: u64,
    #[prost(fixed32, tag = "3")]
    columns_sum: u32,
    #[prost(fixed32, tag = "4")]
    body_sum: u32,
}

impl Columns {
    /// The columns of an event.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        let stored = StoredEvent::from(event);
        let mut columns = Self {
            seq: stored.seq,
            n: stored.n,
            kind: stored.kind as u8,
            sender: stored.sender,
            device: stored.device,
            command_id: event.id.0,
            target: stored.target,
            flags: stored.flags,
            created_at: stored.created_at,
            body: stored.body,
            meta: Bytes::new(),
        };
        let body_sum = crc32c::crc32c(&columns.body);
        let sealed = Sealed { meta: stored.meta, hash: stored.hash, columns_sum: columns.sum(), body_sum };
        columns.meta = seal(Kind::Columns, &sealed);
        columns
    }

    /// The event of these columns. A body that is not there any more was erased, or its time is over: the rest stands.
    ///
    /// # Errors
    /// When they are not those that were written.
    pub fn event(self) -> Result<Event, Corrupt> {
        let sum = self.sum();
        let sealed: Sealed = unseal(Kind::Columns, self.meta)?;
        let is_other_body = !self.body.is_empty() && sealed.body_sum != crc32c::crc32c(&self.body);
        if sealed.columns_sum != sum || is_other_body {
            return Err(Corrupt::Checksum);
        }
        Event::try_from(StoredEvent {
            seq: self.seq,
            n: self.n,
            sender: self.sender,
            device: self.device,
            command_id: self.command_id.as_bytes().to_vec(),
            target: self.target,
            flags: self.flags,
            created_at: self.created_at,
            kind: u32::from(self.kind),
            body: self.body,
            meta: sealed.meta,
            hash: sealed.hash,
        })
    }

    /// The checksum of everything but body and meta. Stored: never changes.
    fn sum(&self) -> u32 {
        let mut sum = 0;
        for number in [self.seq, self.n, u64::from(self.kind), self.target, u64::from(self.flags), self.created_at] {
            sum = crc32c::crc32c_append(sum, &number.to_le_bytes());
        }
        for part in [self.sender.as_bytes(), self.device.as_bytes(), self.command_id.as_bytes().as_slice()] {
            sum = crc32c::crc32c_append(sum, &(part.len() as u32).to_le_bytes());
            sum = crc32c::crc32c_append(sum, part);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        body::Body,
        cql::{LOG_BUCKET_BITS, PRINTS_BUCKET_BITS, log_bucket},
        event::Fact,
        id::{CommandId, DeviceId, UserId},
        limit::{BODY_BYTES_MAX, USER_ID_BYTES_MAX},
        stored::{StoredId, StoredIdBlock, StoredIdPrints},
    };

    fn event() -> Event {
        Event {
            seq: 7,
            n: 5,
            sender: UserId::new("ada").unwrap(),
            device: Some(DeviceId::new("phone").unwrap()),
            id: CommandId(Uuid::from_u128(9)),
            target: 3,
            created_at: 1_700_000_000_000,
            hash: u64::MAX,
            fact: Fact::MessageUpdated {
                body: Body::parse("{\"text\":\"better\"}").unwrap(),
                previous: 3,
                mentions: None,
                target_n: 2,
            },
        }
    }

    #[test]
    fn an_event_comes_back() {
        let columns = Columns::of(&event());
        assert_eq!((columns.seq, columns.target, columns.sender.as_str()), (7, 3, "ada"));
        assert_eq!(columns.event(), Ok(event()));
        let bare = Event { device: None, target: 0, fact: Fact::ConversationDeleted, ..event() };
        let columns = Columns::of(&bare);
        assert!(columns.body.is_empty() && columns.device.is_empty());
        assert_eq!(columns.event(), Ok(bare));
    }

    #[test]
    fn an_erased_body_is_no_damage() {
        let mut columns = Columns::of(&event());
        columns.body = Bytes::new();
        let erased = columns.event().unwrap();
        let Fact::MessageUpdated { body, previous, .. } = &erased.fact else { panic!("{erased:?}") };
        assert_eq!((body, *previous), (&Body::erased(), 3));
        // Its id and the hash of what it was stay: a repetition is known by them.
        assert_eq!((erased.id, erased.hash), (event().id, event().hash));
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let changes: [fn(&mut Columns); 11] = [
            |c| c.seq += 1,
            |c| c.n += 1,
            |c| c.kind = 1,
            |c| c.sender = "adb".to_owned(),
            |c| c.device.clear(),
            |c| c.command_id = Uuid::from_u128(10),
            |c| c.target = 0,
            |c| c.flags = 1,
            |c| c.created_at -= 1,
            |c| c.body = Bytes::from_static(b"{\"text\":\"butter\"}"),
            |c| c.meta = c.meta.slice(..c.meta.len() - 1),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut columns = Columns::of(&event());
            change(&mut columns);
            assert_eq!(columns.event(), Err(Corrupt::Checksum), "change {index}");
        }
    }

    /// Bytes of a row's cells and of its key, as a partition holds them.
    fn row_bytes(columns: &Columns) -> u64 {
        // seq, epoch, cw, origin, after, n, target_seq, created_at; kind, flags; command_id.
        const FIXED: usize = 8 * 8 + 1 + 4 + 16;
        let cells = [columns.sender.len(), columns.device.len(), columns.body.len(), columns.meta.len()];
        (FIXED + cells.iter().sum::<usize>()) as u64
    }

    /// A message of so many bytes of JSON.
    fn message(seq: Seq, body: usize) -> Columns {
        let text = "x".repeat(body - r#"{"text":""}"#.len());
        let body = Body::parse(&format!(r#"{{"text":"{text}"}}"#)).unwrap();
        let (hash, created_at) = (u64::MAX, 1_700_000_000_000 + seq);
        let fact = Fact::MessageNew { body, mentions: None };
        Columns::of(&Event { seq, n: seq, target: 0, created_at, hash, fact, ..event() })
    }

    #[test]
    fn partitions_of_a_conversation_of_ten_million_messages_stay_within_their_bounds() {
        const EVENTS: Seq = 10_000_000;
        const MIB: u64 = 1 << 20;
        // Rows of a partition: never more than a bucket, however long the log is.
        let last = log_bucket(EVENTS);
        let first_of = |bucket: i32| (bucket as Seq) << LOG_BUCKET_BITS;
        let rows = |bucket: i32| first_of(bucket + 1).min(EVENTS) - first_of(bucket);
        assert_eq!((0..=last).map(rows).sum::<u64>(), EVENTS);
        assert_eq!((last, (0..=last).map(rows).max()), (1_220, Some(8_192)));
        for seq in [1, 8_192, 8_193, EVENTS / 2, EVENTS] {
            let bucket = log_bucket(seq);
            assert!((first_of(bucket) + 1..=first_of(bucket + 1)).contains(&seq), "{seq} in {bucket}");
        }
        // The highest seqs take the most room.
        let usual = row_bytes(&message(EVENTS, 850));
        assert!((900..=1024).contains(&usual), "a row of {usual} bytes");
        assert!(usual << LOG_BUCKET_BITS <= 8 * MIB);
        let largest = row_bytes(&message(EVENTS, BODY_BYTES_MAX));
        assert!(largest << LOG_BUCKET_BITS <= 514 * MIB, "{largest} bytes in the largest row");

        // Ids of 256 events stand in a block, the prints of 2²⁰ in a partition.
        let id = |seq: Seq| StoredId {
            sender: "u".repeat(USER_ID_BYTES_MAX),
            id: vec![7; 16],
            seq,
            hash: u64::MAX,
            n: seq,
            created_at: 1_700_000_000_000 + seq,
        };
        let block = StoredIdBlock { ids: (EVENTS - 255..=EVENTS).map(id).collect() };
        let (ids, prints) = (seal(Kind::IdBlock, &block), seal(Kind::IdPrints, &StoredIdPrints::of(&block)));
        assert!(ids.len() as u64 * (1 << LOG_BUCKET_BITS) / 256 <= 2 * MIB, "{} bytes in a block", ids.len());
        assert!(prints.len() as u64 * (1 << PRINTS_BUCKET_BITS) / 256 <= 5 * MIB, "{} bytes of prints", prints.len());
    }
}
