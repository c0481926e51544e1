//! The log store: what it must do, and the ways to do it.
//!
//! - [`embedded`]: one machine, an LSM tree in the data directory, one committer
//! - [`cql`]: ScyllaDB or Apache Cassandra, shared by many nodes
//! - [`quorum`]: three simulated replicas with delay, loss and late rows, for tests
//! - [`contract`]: the tests that every store passes
//!
//! A store is driven by shards, which never wait: each request carries what is to be called with its outcome, on
//! whatever thread. The rules behind the trait are those of partitioned ownership: rows carry the epoch of their owner, an owner may
//! acknowledge only what is durable *and* covered by a clean [`Store::confirm`] that started afterwards.

use std::sync::{Arc, atomic::AtomicU64};

use bytes::Bytes;
use chappe_schema::{
    cql::{LOG_BUCKET_BITS, log_bucket},
    event::Event,
    id::{CommandId, ConversationId, EntityId, Epoch, Generation, Millis, Seq, SessionId, UserId},
    reaction::ReactionKey,
    stored::{
        Corrupt, LogRow, StoredId, StoredIdBlock, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay,
        StoredReaction, StoredReceipt,
    },
};

pub mod cql;
pub mod embedded;
mod founding;
mod ids;
mod meter;
pub(crate) mod nothing;
mod slice;

pub use founding::generation_of;
pub use ids::PRINT_BLOCKS_MAX;
pub use slice::PAGE_SCAN_MAX;

#[cfg(any(test, feature = "simulation"))]
pub mod contract;
#[cfg(any(test, feature = "simulation"))]
pub mod quorum;

/// Called once with a request's outcome, on a thread of the store: it only hands the outcome on.
pub type Done<T> = Box<dyn FnOnce(T) + Send>;

/// This process's right to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// One life of the process, never reused.
    pub id: SessionId,
    /// The epoch that its rows carry. (Per partition in a cluster; a standalone server owns all at once.)
    pub epoch: Epoch,
    /// Identity of the history in this store.
    pub generation: Generation,
}

/// Consecutive events of one entity, to be made durable together. A repetition is identical to the letter.
#[derive(Clone, Debug)]
pub struct Append {
    /// Whose log.
    pub entity: EntityId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The highest seq known committed now.
    pub cw: Seq,
    /// The epoch under which they were written first: the owner's own, unless recovery writes them again.
    pub origin: Epoch,
    /// The origin of the event before the first one, 0 at the beginning of the log.
    pub after: Epoch,
    /// At least one.
    pub events: Arc<[Arc<Event>]>,
    /// Whether other entities must hear of these events (a membership changed): the entity is listed until
    /// [`Projection::Announced`] says that they have, and [`Store::announced`] returns the list after a crash.
    pub announce: bool,
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is durable. Not yet acknowledged: see [`Store::confirm`].
    Durable,
    /// Nobody knows (a lost reply, too few replicas in time): it must be written again, identically.
    Unknown,
    /// Certainly nothing of it was written, and the reason. Only a store with a single writer can say so.
    NotWritten(String),
    /// The store refuses it for good; the session must end.
    Refused(String),
}

/// What the session's fence says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// No successor has fenced this session: what was durable before the read started is committed.
    Clean,
    /// The session is over, for good.
    Fenced,
    /// The fence could not be read: acknowledge nothing, read again.
    Unknown,
}

/// What stands of an entity, as the store has it. What of it counts is decided by `recovery`.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The newest snapshot and the seq that it reflects.
    pub snapshot: Option<(Seq, Bytes)>,
    /// Every row with an event above the snapshot's seq, in order of seq, then epoch.
    pub rows: Vec<LogRow>,
    /// A user's inbox rows.
    pub inbox: Vec<(ConversationId, StoredInbox)>,
    /// How far a conversation's members have got, as far as it was written beside snapshots.
    pub receipts: Vec<StoredReceipt>,
    /// Prints of a conversation's youngest id blocks, by the last seq of each, in order: of those asked for and of the
    /// one before them, at most [`PRINT_BLOCKS_MAX`].
    pub prints: Vec<(Seq, StoredIdPrints)>,
}

/// A slice of an entity's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Whose.
    pub entity: EntityId,
    /// The lowest seq wanted.
    pub from: Seq,
    /// The highest seq wanted; at or below the committed head.
    pub upto: Seq,
    /// From the top down; the answer is in ascending order all the same.
    pub newest_first: bool,
    /// What of it.
    pub show: Show,
    /// At most this many events in the answer.
    pub limit: usize,
    /// The answer ends early at this many bytes of bodies, but holds at least one event if there is one.
    pub bytes_max: usize,
    /// Whose reactions are wanted beside the overlays of messages.
    pub reader: Option<UserId>,
}

impl PageRequest {
    /// One event, whatever its size.
    #[must_use]
    pub const fn of_one(entity: EntityId, seq: Seq, show: Show) -> Self {
        Self { entity, from: seq, upto: seq, newest_first: false, show, limit: 1, bytes_max: usize::MAX, reader: None }
    }
}

/// A slice of who reacted to a message with one key, by user id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactedRequest {
    /// In which log.
    pub entity: EntityId,
    /// To which message.
    pub target: Seq,
    /// With what.
    pub key: ReactionKey,
    /// Only users above this one.
    pub after: Option<UserId>,
    /// At most this many rows.
    pub limit: usize,
}

/// Who reacted to a message with one key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reacted {
    /// By user id; those who took it back are among them.
    pub rows: Vec<(UserId, StoredReaction)>,
    /// Whether there are no more.
    pub complete: bool,
}

/// What is removed of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its events, and what became of its messages.
    History,
    /// The ids of its events.
    Ids,
}

/// A part of a log that is removed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// Whose.
    pub entity: EntityId,
    /// What of it.
    pub part: Part,
    /// What is above this seq.
    pub above: Seq,
    /// And at or below this one: both in one bucket ([`log_bucket`]).
    pub upto: Seq,
    /// The event that decided it. Whatever was written for events before is removed; nothing is written later for what is
    /// at or below `upto`.
    pub at: Seq,
}

impl Purge {
    /// The seq below a bucket's first.
    #[must_use]
    pub const fn below(bucket: i32) -> Seq {
        (bucket as Seq) << LOG_BUCKET_BITS
    }

    /// Whether nothing of the bucket remains.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.upto == Self::below(log_bucket(self.upto) + 1)
    }
}

/// Some of the conversations that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Each with its snapshot, if it has one; and whether events are known to stand above that.
    pub found: Vec<(ConversationId, Option<Bytes>, bool)>,
    /// Where to go on; `None` at the end.
    pub next: Option<Bytes>,
}

/// Members of a conversation, each of whom has a row of their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberRows {
    /// By user id.
    pub rows: Vec<StoredMember>,
    /// Whether there are no more.
    pub complete: bool,
}

/// What a page shows of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Every event, as it was written.
    Log,
    /// Every event, and the overlays of the messages among them, or edited by them, that are deleted by now.
    Events,
    /// Only messages, and their overlays.
    Messages,
}

/// A part of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In ascending order of seq; at each seq the row of the highest epoch.
    pub events: Vec<Arc<Event>>,
    /// What later events made of them, by target, as far as the request wants it.
    pub overlays: Vec<(Seq, StoredOverlay)>,
    /// The reader's reactions with the keys that stand in these overlays.
    pub own: Vec<(Seq, ReactionKey, StoredReaction)>,
    /// Whether everything wanted was looked at; else there may be more beyond the last event in the direction of reading.
    pub complete: bool,
    /// The last seq that was looked at, in the direction of reading.
    pub reached: Seq,
}

/// A derived row. Written after the events it derives from are committed; written again it changes nothing.
#[derive(Clone, Debug)]
pub enum Projection {
    /// The state of an entity at a committed seq. An older one never replaces a newer one.
    Snapshot {
        /// Whose.
        entity: EntityId,
        /// The seq it reflects.
        seq: Seq,
        /// Its sealed bytes.
        bytes: Bytes,
    },
    /// What later events made of one message, whole. An older one (`as_of`) never replaces a newer one.
    Overlay {
        /// Whose log.
        entity: EntityId,
        /// The message.
        target: Seq,
        /// What became of it.
        overlay: StoredOverlay,
    },
    /// A user's reaction to a message with one key. An older one (`seq`) never replaces a newer one.
    Reaction {
        /// Whose log.
        entity: EntityId,
        /// The message.
        target: Seq,
        /// With what.
        key: ReactionKey,
        /// Whose.
        user: UserId,
        /// What it is now.
        reaction: StoredReaction,
    },
    /// The ids of a run of events. The store writes their prints beside it.
    IdBlock {
        /// Whose log.
        entity: EntityId,
        /// The seq of the last event in the block.
        end: Seq,
        /// The ids. Shared: what is on its way is kept, to be written again.
        block: Arc<StoredIdBlock>,
    },
    /// A user's position in a conversation. Each of its numbers only grows.
    Inbox {
        /// Whose.
        user: UserId,
        /// In which.
        conversation: ConversationId,
        /// The position.
        position: StoredInbox,
    },
    /// How far some members of a conversation have got. Each of their numbers only grows; what others have got stays.
    Receipts {
        /// Where.
        conversation: ConversationId,
        /// The part of the members among whom they are: a store that keeps members together keeps those of one part so.
        part: u8,
        /// Who, and how far.
        items: Vec<StoredReceipt>,
    },
    /// Members of a conversation, each in a row of their own. An older one (`as_of`) never replaces a newer one.
    Members {
        /// Where.
        conversation: ConversationId,
        /// As they are now.
        rows: Vec<StoredMember>,
    },
    /// Other entities have heard of the entity's events up to this seq.
    Announced {
        /// Which.
        entity: EntityId,
        /// Up to where.
        upto: Seq,
    },
}

/// Why a store did not answer a read or a projection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It may answer later.
    #[error("the log cannot be reached: {0}")]
    Unavailable(String),
    /// What it holds is not what was written. The entity is withdrawn; nothing of it is served.
    #[error("{entity}: {why}")]
    Corrupt {
        /// Whose bytes.
        entity: EntityId,
        /// What is wrong with them.
        why: Corrupt,
    },
}

/// A log that several sessions share, one after the other or side by side: the ways into it, and what keeps one session
/// from acknowledging what another has taken over.
///
/// Such a store also keeps what decides whether a cluster may begin (`chappe_cluster::consensus::bootstrap::find::ClusterMeta`),
/// and the two know each other: the history's generation is that of the last founding ([`generation_of`]).
pub trait Shared: Send + Sync + 'static {
    /// A session's way in. `minute` is that session's own count, under which the entities in which it commits are listed.
    fn enter(&self, session: Session, minute: Arc<AtomicU64>) -> Arc<dyn Store>;

    /// Enters the session in the registry, then (after that is durable) reads the generation of the history. A session that
    /// is not registered must not open anything: a forced founding is claimed first, and then fences whoever it finds in the
    /// registry, so whoever it did not find there reads the founding's generation here, and ends.
    fn enrol(&self, session: SessionId, done: Done<Result<Generation, Error>>);

    /// Ends sessions for good: `true` when a quorum knows. Not before may anything of theirs be read.
    fn fence(&self, sessions: Vec<SessionId>, done: Done<bool>);

    /// The entities in which a session has committed since that minute of its.
    fn active(&self, session: SessionId, since: u64, done: Done<Result<Vec<EntityId>, Error>>);
}

/// A log of every entity, as one session sees it. See the module's documentation.
pub trait Store: Send + Sync + 'static {
    /// This process's session.
    fn session(&self) -> Session;

    /// Whether other sessions may take over while this one lives: then what is durable is committed only by a clean
    /// [`confirm`](Self::confirm), and rows of several owners may stand in one slot. A store behind an exclusive lock has
    /// one session, which owns everything.
    fn is_fenced(&self) -> bool;

    /// Whether there is more to do than the store gets done, and for how many milliseconds clients had better stay away. A
    /// store whose callers wait for it in any case has none.
    fn overload(&self) -> Option<Millis> {
        None
    }

    /// Makes events durable. `done` gets one outcome per append, in order.
    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>);

    /// Reads this session's fence. The read starts inside this call. A store that needs no read answers at once
    /// with `Some` and never calls `done`.
    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation>;

    /// Lists entities as active under this session, as if it had committed in them: whoever takes over from it looks at them. A
    /// store with one session has nobody to tell.
    fn list_active(&self, entities: Vec<EntityId>, done: Done<Result<(), Error>>) {
        drop(entities);
        done(Ok(()));
    }

    /// Everything needed to rebuild an entity. Ids are wanted as far back as blocks whose last event was stamped at or
    /// after `ids_since`.
    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>);

    /// A slice of a log.
    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>);

    /// The overlays that there are of these messages.
    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>);

    /// A user's reactions to a message with those of these keys that they ever used.
    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    );

    /// Who reacted to a message with one key.
    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>);

    /// Members of a conversation that have a row of their own: at most so many, by user id, above `after`.
    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    );

    /// Looks for an id among the durable blocks above a seq, by their prints, newest first, as far back as blocks whose last event
    /// was stamped at or after a time: both are `since`.
    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        since: (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    );

    /// Writes derived rows; those of one call may become durable in any order.
    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>);

    /// Removes a part of a log, or some of it: `false` when it must be called again. Called again it changes nothing. A row of
    /// several events is removed when all of them are.
    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>);

    /// Some of the conversations that there are, in an order of its own: about so many, from where the last walk ended; `all`, or
    /// those that have a snapshot. One may come up twice.
    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>);

    /// The entities whose events other entities may not have heard of.
    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>);
}
