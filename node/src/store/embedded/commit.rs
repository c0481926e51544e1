//! The one thread that writes: it takes everything that waits, from all shards, and makes it durable with one sync.
//!
//! While a group is being synced the next one gathers, so load forms the groups and there is no timer. Only derived
//! rows wait a moment ([`PROJECTIONS_WAIT`]) for a group of appends to ride with: then they cost no sync of their own.
//!
//! Every group is synced before the next one begins, so after a crash at most the last one is torn. The check of the
//! journal at the next start leans on that (`chappe_cluster::engine::journal`).

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chappe_cluster::engine::in_words;
use chappe_schema::{
    id::{EntityId, Seq},
    stored::{
        Kind, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay, StoredReaction, StoredReceipts, seal, unseal,
    },
};
use fjall::OwnedWriteBatch as Batch;
use parking_lot::{Condvar, Mutex};

use super::{
    CLOSED, Fatal, FreeSpace, Watch,
    engine::Tables,
    key,
    meter::{Meter, Operation},
    read::Doomed,
};
use crate::store::{Done, Error, Projection, Written};

/// How long derived rows wait for appends to ride with.
const PROJECTIONS_WAIT: Duration = Duration::from_millis(5);

/// Rows in one group. More wait for the next: a group of this size takes some 20 ms, which bounds what an append waits.
const GROUP_ROWS_MAX: usize = 4096;

/// Bytes in one group, for the same reason.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often the free space is looked at, at most.
const SPACE_CHECK: Duration = Duration::from_millis(100);

/// One packed row of the log, sealed.
pub(super) struct Row {
    pub(super) key: Vec<u8>,
    pub(super) value: Bytes,
    /// The entity's key and the row's last seq, if others must hear of it.
    pub(super) announce: Option<(Vec<u8>, Seq)>,
}

/// The rows of one call.
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// Where everybody leaves what is to be written.
pub(super) struct Committer {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// Durability cannot be promised any longer. Set once, never cleared.
    failed: AtomicBool,
    fatal: Fatal,
    meter: std::sync::Arc<Meter>,
}

#[derive(Default)]
struct Waiting {
    appends: Vec<Appending>,
    projections: Vec<Projecting>,
    removals: Vec<Removing>,
    closed: bool,
}

struct Appending {
    rows: Rows,
    /// Outcomes that are owed, one per append of the call.
    owed: usize,
    done: Done<Vec<Written>>,
    asked: Instant,
}

struct Projecting {
    writes: Vec<Projection>,
    done: Done<Result<(), Error>>,
    asked: Instant,
}

/// Rows that are removed for good.
struct Removing {
    doomed: Doomed,
    done: Done<Result<bool, Error>>,
}

/// What is committed together.
#[derive(Default)]
struct Group {
    appends: Vec<Appending>,
    projections: Vec<Projecting>,
    removal: Option<Removing>,
}

// === impl Appending, Projecting ===

impl Appending {
    /// Certainly nothing of it was written.
    fn refuse(self, why: &str) {
        (self.done)(vec![Written::NotWritten(why.to_owned()); self.owed]);
    }
}

impl Projecting {
    fn refuse(self, why: &str) {
        (self.done)(Err(Error::Unavailable(why.to_owned())));
    }
}

// === impl Committer ===

impl Committer {
    pub(super) fn new(meter: std::sync::Arc<Meter>, fatal: Fatal) -> Self {
        Self { waiting: Mutex::default(), arrived: Condvar::new(), failed: AtomicBool::new(false), fatal, meter }
    }

    pub(super) fn append(&self, rows: Rows, owed: usize, done: Done<Vec<Written>>) {
        let job = Appending { rows, owed, done, asked: Instant::now() };
        let refuse = |job: Appending| job.refuse(&format!("the log cannot be written: {CLOSED}"));
        self.leave(Operation::Append, job, |waiting| &mut waiting.appends, refuse);
    }

    pub(super) fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        let job = Projecting { writes, done, asked: Instant::now() };
        self.leave(Operation::Project, job, |waiting| &mut waiting.projections, |job| job.refuse(CLOSED));
    }

    /// Removes rows; tells whether there are no more.
    pub(super) fn remove(&self, doomed: Doomed, done: Done<Result<bool, Error>>) {
        let job = Removing { doomed, done };
        let refuse = |job: Removing| (job.done)(Err(Error::Unavailable(CLOSED.to_owned())));
        self.leave(Operation::Purge, job, |waiting| &mut waiting.removals, refuse);
    }

    /// Leaves something for the thread, unless it has ended: then it is refused, or dropped if nobody may be answered any more.
    fn leave<J>(&self, operation: Operation, job: J, queue: fn(&mut Waiting) -> &mut Vec<J>, refuse: fn(J)) {
        if self.has_failed() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            self.meter.refused(operation);
            return refuse(job);
        }
        queue(&mut waiting).push(job);
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Whether durability can no longer be promised.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Ends the process, once. Nothing is answered from now on.
    pub(super) fn fail(&self, why: String) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(event = "store_failed", why, "the log cannot be written any longer; this process ends");
            (self.fatal)(why);
        }
        self.arrived.notify_all();
    }

    /// Nothing more is accepted; what waits is still committed.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_all();
    }

    /// The committer thread.
    pub(super) fn run(&self, tables: Tables, announced: HashMap<Vec<u8>, Seq>, space: Space, watch: &Watch) {
        let mut writer = Writer { tables, announced, space, watch, meter: &self.meter };
        let work = || {
            while let Some(group) = self.next_group() {
                if let Err(error) = writer.write(group) {
                    self.fail(format!("the log cannot be written: {}", in_words(&error)));
                    return;
                }
            }
        };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.fail("the log's committer panicked".to_owned());
        }
        // Whatever still waits is dropped unanswered.
        *self.waiting.lock() = Waiting { closed: true, ..Waiting::default() };
    }

    /// Waits for something to write; `None` at the end.
    fn next_group(&self) -> Option<Group> {
        let mut waiting = self.waiting.lock();
        let mut until = None;
        loop {
            if self.has_failed() {
                return None;
            }
            if !waiting.appends.is_empty() || waiting.closed {
                break;
            }
            if waiting.projections.is_empty() && waiting.removals.is_empty() {
                self.arrived.wait(&mut waiting);
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + PROJECTIONS_WAIT);
            if self.arrived.wait_until(&mut waiting, until).timed_out() {
                break;
            }
        }
        let group = waiting.take();
        (!group.appends.is_empty() || !group.projections.is_empty() || group.removal.is_some()).then_some(group)
    }
}

impl Waiting {
    fn take(&mut self) -> Group {
        let (mut rows, mut bytes) = (0, 0);
        let fits = self.appends.iter().take_while(|append| {
            let first = rows == 0;
            rows += append.rows.rows.len();
            bytes += append.rows.bytes;
            first || (rows <= GROUP_ROWS_MAX && bytes <= GROUP_BYTES_MAX)
        });
        let count = fits.count();
        let rest = self.appends.split_off(count);
        Group {
            appends: std::mem::replace(&mut self.appends, rest),
            projections: std::mem::take(&mut self.projections),
            // One at a time: there is no hurry, and each may be as large as a group.
            removal: self.removals.pop(),
        }
    }
}

// === what the thread keeps ===

struct Writer<'a> {
    tables: Tables,
    /// What table `announce` holds, so that no append needs to read it.
    announced: HashMap<Vec<u8>, Seq>,
    space: Space,
    watch: &'a Watch,
    meter: &'a Meter,
}

impl Writer<'_> {
    /// Commits a group and answers it.
    ///
    /// # Errors
    /// When the engine could not write or sync. What is on disk is unknown then, so nothing is answered.
    fn write(&mut self, mut group: Group) -> Result<(), fjall::Error> {
        if let Some(why) = self.space.refusal() {
            let removal = group.removal.take();
            self.refuse(group, &why);
            // What makes room is done all the same: it takes little, and there is a reserve.
            group = Group { removal, ..Group::default() };
        }
        let mut batch = self.tables.batch(group.appends.iter().map(|append| append.rows.rows.len()).sum::<usize>() + 8);
        let mut announcements = HashMap::new();
        let (mut events, mut answers) = (0, Vec::with_capacity(group.appends.len()));
        for append in group.appends {
            events += append.rows.events;
            for row in append.rows.rows {
                if let Some((entity, last)) = row.announce {
                    self.announce(&mut announcements, entity, last);
                }
                batch.insert(&self.tables.log, row.key, row.value);
            }
            answers.push((append.done, append.owed, append.asked));
        }
        let rows = batch.len();
        let projected = if group.projections.is_empty() {
            Ok(())
        } else {
            self.project(&mut batch, &mut announcements, group.projections.iter().flat_map(|job| &job.writes))
        };
        self.meter.rows.announce.increment(announcements.len() as u64);
        for (entity, seq) in announcements {
            match seq {
                Some(seq) => batch.insert(&self.tables.announce, entity, key::checked_seq(seq)),
                None => batch.remove(&self.tables.announce, entity),
            }
        }

        let removal = group.removal.map(|Removing { doomed, done }| {
            for (table, key) in doomed.keys {
                batch.remove(table.of(&self.tables), key);
            }
            (done, doomed.complete)
        });

        let began = Instant::now();
        batch.commit()?;
        self.meter.commit.record(began.elapsed().as_secs_f64());
        self.meter.rows.log.increment(rows as u64);
        self.meter.rows.events.increment(events as u64);

        for (done, owed, asked) in answers {
            self.meter.answered(Operation::Append, asked, None);
            done(vec![Written::Durable; owed]);
        }
        for job in group.projections {
            self.meter.answered(Operation::Project, job.asked, projected.as_ref().err());
            (job.done)(projected.clone());
        }
        if let Some((done, complete)) = removal {
            done(Ok(complete));
        }
        if self.tables.is_full() {
            self.watch.wake();
        }
        Ok(())
    }

    fn refuse(&self, group: Group, why: &str) {
        for append in group.appends {
            self.meter.refused(Operation::Append);
            append.refuse(why);
        }
        for job in group.projections {
            self.meter.refused(Operation::Project);
            job.refuse(why);
        }
    }

    /// Lists an entity, if it is not listed for this seq already.
    fn announce(&mut self, announcements: &mut HashMap<Vec<u8>, Option<Seq>>, entity: Vec<u8>, last: Seq) {
        let listed = self.announced.entry(entity.clone()).or_insert(0);
        if *listed < last {
            *listed = last;
            announcements.insert(entity, Some(last));
        }
    }

    /// Adds derived rows to the batch, each at most once and none that would go back.
    ///
    /// # Errors
    /// When what stands there could not be read, so that nobody knows whether it is newer. The rows that could be
    /// compared are in the batch all the same: writing them again changes nothing.
    fn project<'w>(
        &mut self,
        batch: &mut Batch,
        announcements: &mut HashMap<Vec<u8>, Option<Seq>>,
        writes: impl Iterator<Item = &'w Projection>,
    ) -> Result<(), Error> {
        let mut snapshots: HashMap<Vec<u8>, (Seq, &Bytes)> = HashMap::new();
        let mut overlays: HashMap<Vec<u8>, &StoredOverlay> = HashMap::new();
        let mut reactions: HashMap<Vec<u8>, StoredReaction> = HashMap::new();
        let mut inbox: HashMap<Vec<u8>, StoredInbox> = HashMap::new();
        let mut receipts: HashMap<Vec<u8>, StoredReceipts> = HashMap::new();
        let mut members: HashMap<Vec<u8>, &StoredMember> = HashMap::new();
        let mut blocks = 0;
        for write in writes {
            match write {
                Projection::Snapshot { entity, seq, bytes } => {
                    let newest = snapshots.entry(entity.to_key()).or_insert((*seq, bytes));
                    if newest.0 < *seq {
                        *newest = (*seq, bytes);
                    }
                }
                Projection::Overlay { entity, target, overlay } => {
                    let newest = overlays.entry(key::with_seq(&entity.to_key(), *target)).or_insert(overlay);
                    if newest.as_of < overlay.as_of {
                        *newest = overlay;
                    }
                }
                Projection::Reaction { entity, target, key, user, reaction } => {
                    let key = key::reaction(&entity.to_key(), *target, key, user);
                    let newest = reactions.entry(key).or_insert(*reaction);
                    if newest.seq < reaction.seq {
                        *newest = *reaction;
                    }
                }
                Projection::IdBlock { entity, end, block } => {
                    let (entity, prints) = (entity.to_key(), StoredIdPrints::of(block));
                    batch.insert(&self.tables.ids, key::with_seq(&entity, *end), seal(Kind::IdBlock, &**block));
                    batch.insert(&self.tables.ids, key::prints(&entity, *end), seal(Kind::IdPrints, &prints));
                    blocks += 2;
                }
                Projection::Inbox { user, conversation, position } => {
                    let key = key::inbox(user, *conversation);
                    inbox.entry(key).and_modify(|row| *row = row.highest(position)).or_insert(*position);
                }
                Projection::Receipts { conversation, part, items } => {
                    receipts.entry(key::receipts(*conversation, *part)).or_default().raise(items);
                }
                Projection::Members { conversation, rows } => {
                    let entity = EntityId::from(*conversation).to_key();
                    for row in rows {
                        let newest = members.entry(key::member(&entity, &row.user)).or_insert(row);
                        if newest.as_of < row.as_of {
                            *newest = row;
                        }
                    }
                }
                Projection::Announced { entity, upto } => {
                    let entity = entity.to_key();
                    if self.announced.get(&entity).is_some_and(|listed| listed <= upto) {
                        self.announced.remove(&entity);
                        announcements.insert(entity, None);
                    }
                }
            }
        }
        self.meter.rows.ids.increment(blocks);

        let mut result = Ok(());
        for (key, (seq, bytes)) in snapshots {
            match read(&self.tables.snapshot, &key, |value| key::open_checked_seq(&value)) {
                Ok(Some(stored)) if stored >= seq => {}
                Ok(_) => {
                    batch.insert(&self.tables.snapshot, key, key::joined(&key::checked_seq(seq), bytes));
                    self.meter.rows.snapshot.increment(1);
                }
                Err(error) => result = Err(error),
            }
        }
        for (key, overlay) in overlays {
            match read(&self.tables.overlay, &key, |value| unseal::<StoredOverlay>(Kind::Overlay, value)) {
                Ok(Some(stored)) if stored.as_of >= overlay.as_of => {}
                Ok(_) => {
                    batch.insert(&self.tables.overlay, key, seal(Kind::Overlay, overlay));
                    self.meter.rows.overlay.increment(1);
                }
                Err(error) => result = Err(error),
            }
        }
        for (key, reaction) in reactions {
            match read(&self.tables.reaction, &key, |value| unseal::<StoredReaction>(Kind::Reaction, value)) {
                Ok(Some(stored)) if stored.seq >= reaction.seq => {}
                Ok(_) => {
                    batch.insert(&self.tables.reaction, key, seal(Kind::Reaction, &reaction));
                    self.meter.rows.reaction.increment(1);
                }
                Err(error) => result = Err(error),
            }
        }
        for (key, position) in inbox {
            match read(&self.tables.inbox, &key, |value| unseal::<StoredInbox>(Kind::Inbox, value)) {
                Ok(stored) => {
                    let row = stored.map_or(position, |stored| stored.highest(&position));
                    if stored != Some(row) {
                        batch.insert(&self.tables.inbox, key, seal(Kind::Inbox, &row));
                        self.meter.rows.inbox.increment(1);
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        for (key, member) in members {
            match read(&self.tables.members, &key, |value| unseal::<StoredMember>(Kind::Member, value)) {
                Ok(Some(stored)) if stored.as_of >= member.as_of => {}
                Ok(_) => {
                    batch.insert(&self.tables.members, key, seal(Kind::Member, member));
                    self.meter.rows.members.increment(1);
                }
                Err(error) => result = Err(error),
            }
        }
        for (key, raised) in receipts {
            match read(&self.tables.receipts, &key, |value| unseal::<StoredReceipts>(Kind::Receipts, value)) {
                Ok(stored) => {
                    let mut row = stored.clone().unwrap_or_default();
                    row.raise(&raised.items);
                    if stored.as_ref() != Some(&row) {
                        batch.insert(&self.tables.receipts, key, seal(Kind::Receipts, &row));
                        self.meter.rows.receipts.increment(1);
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

/// What stands under a key. Bytes that are damaged count as absent: the row that is about to be written heals them.
fn read<T>(
    table: &fjall::Keyspace,
    key: &[u8],
    open: impl FnOnce(Bytes) -> Result<T, chappe_schema::stored::Corrupt>,
) -> Result<Option<T>, Error> {
    let value = table.get(key).map_err(|error| Error::Unavailable(in_words(&error)))?;
    Ok(value.and_then(|value| match open(value.into()) {
        Ok(stored) => Some(stored),
        Err(why) => {
            tracing::error!(event = "store_row_damaged", table = &**table.name(), %why, "a derived row is damaged and is replaced");
            None
        }
    }))
}

// === space ===

/// Whether there is room to write. A write that fails for lack of space ends the process, so none is begun.
pub(super) struct Space {
    directory: PathBuf,
    min: u64,
    free: FreeSpace,
    looked: Option<Instant>,
    /// What was free, if it was too little.
    short: Option<u64>,
}

impl Space {
    pub(super) fn new(directory: PathBuf, min: u64, free: FreeSpace) -> Self {
        Self { directory, min, free, looked: None, short: None }
    }

    /// Why nothing may be written now.
    fn refusal(&mut self) -> Option<String> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= SPACE_CHECK) {
            self.looked = Some(Instant::now());
            let was_short = self.short.is_some();
            match (self.free)(&self.directory) {
                Ok(free) => self.short = (free < self.min).then_some(free),
                // Not a reason to stop: the write itself will tell.
                Err(error) => tracing::warn!(event = "disk_space_unknown", %error, "the free space cannot be read"),
            }
            match (was_short, self.short) {
                (false, Some(free)) => {
                    tracing::error!(event = "disk_full", free, min = self.min, "the disk is full: nothing is accepted");
                }
                (true, None) => tracing::info!(event = "disk_free", "there is space on the disk again"),
                _ => {}
            }
        }
        self.short.map(|free| format!("the disk is full: {free} bytes are free, {} must stay so", self.min))
    }
}
