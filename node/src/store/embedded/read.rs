//! What the reader threads do. Every function reads one unchanging view of the tables.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use chappe_cluster::engine::in_words;
use chappe_schema::{
    event::Event,
    id::{EntityId, Millis, Seq, UserId},
    reaction::ReactionKey,
    stored::{
        Corrupt, Kind, LogRow, StoredId, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay, StoredReaction,
        StoredReceipts, conversation_id, unseal,
    },
};
use fjall::{Guard, Iter, Keyspace, Readable};
use parking_lot::{Condvar, Mutex};

use super::{engine::Tables, key};
use crate::store::{
    Error, MemberRows, Page, PageRequest, Part, Purge, Reacted, ReactedRequest, Recovered, Walked,
    ids::{self, Wanted},
    slice::Slice,
};

/// A read, as it waits. `None` when the store closed first.
type Job = Box<dyn FnOnce(Option<&Tables>) + Send>;

/// The queue of the reader threads.
#[derive(Default)]
pub(super) struct Readers {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Readers {
    pub(super) fn submit(&self, job: Job) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            job(None);
            return;
        }
        waiting.jobs.push_back(job);
        drop(waiting);
        self.arrived.notify_one();
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_all();
    }

    /// A reader thread.
    pub(super) fn run(&self, tables: &Tables) {
        while let Some(job) = self.next() {
            // A read that panics is a bug, and its caller gets no answer; the other reads go on.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(Some(tables)))).is_err() {
                tracing::error!(event = "store_read_panicked", "a read of the log panicked and is not answered");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            self.arrived.wait(&mut waiting);
        }
    }
}

/// Everything needed to rebuild an entity.
pub(super) fn recover(tables: &Tables, entity: &EntityId, ids_since: Millis) -> Result<Recovered, Error> {
    let view = tables.view();
    let prefix = entity.to_key();
    let snapshot = match view.get(&tables.snapshot, &prefix).map_err(|error| failed(entity, &error))? {
        Some(value) => {
            let seq = key::open_checked_seq(&value).map_err(|why| corrupt(entity, why))?;
            Some((seq, Bytes::copy_from_slice(&value[key::CHECKED_SEQ..])))
        }
        None => None,
    };
    let from = snapshot.as_ref().map_or(0, |(seq, _)| *seq) + 1;
    let mut rows = Vec::new();
    for guard in view.range(&tables.log, key::with_seq(&prefix, from)..=key::with_seq(&prefix, Seq::MAX)) {
        rows.push(log_row(entity, guard)?);
    }
    let mut inbox = Vec::new();
    if let EntityId::User(_) = entity {
        for guard in view.prefix(&tables.inbox, &prefix) {
            let (row, value) = guard.into_inner().map_err(|error| failed(entity, &error))?;
            let conversation = conversation_id(&row[prefix.len()..]).map_err(|why| corrupt(entity, why))?;
            let position: StoredInbox = unseal(Kind::Inbox, value.into()).map_err(|why| corrupt(entity, why))?;
            inbox.push((conversation, position));
        }
    }
    let mut receipts = Vec::new();
    if let EntityId::Conversation(_) = entity {
        // Of all members together, or of each part of them.
        for guard in view.prefix(&tables.receipts, &prefix) {
            let value = guard.value().map_err(|error| failed(entity, &error))?;
            let row: StoredReceipts = unseal(Kind::Receipts, value.into()).map_err(|why| corrupt(entity, why))?;
            receipts.extend(row.items);
        }
    }
    let prints = match entity {
        // Without a snapshot every id is in the rows.
        EntityId::Conversation(_) if snapshot.is_some() => ids::recent(prints(&view, tables, entity), ids_since)?,
        _ => Vec::new(),
    };
    Ok(Recovered { snapshot, rows, inbox, receipts, prints })
}

/// A slice of a log.
pub(super) fn page(tables: &Tables, request: &PageRequest) -> Result<Page, Error> {
    let view = tables.view();
    let prefix = request.entity.to_key();
    let at = |seq| key::with_seq(&prefix, seq);
    let mut slice = Slice::new(request);
    let (from, upto) = (slice.from(), request.upto);
    if slice.done() {
        return Ok(slice.finish());
    }
    let mut overlays = Overlays {
        tables,
        entity: &request.entity,
        rows: view.range(&tables.overlay, at(from)..=at(upto)),
        newest_first: request.newest_first,
        next: None,
    };
    // A row stands under its last seq, so the first that can hold a seq is the first whose key is not below it.
    if request.newest_first {
        let top = view.range(&tables.log, at(upto)..=at(Seq::MAX)).next();
        let below = view.range(&tables.log, at(from)..at(upto)).rev();
        for guard in top.into_iter().chain(below) {
            for event in log_row(&request.entity, guard)?.events.into_iter().rev() {
                overlays.take(&mut slice, event)?;
            }
            if slice.done() {
                break;
            }
        }
    } else {
        for guard in view.range(&tables.log, at(from)..=at(Seq::MAX)) {
            let row = log_row(&request.entity, guard)?;
            let last = row.events.last().map_or(Seq::MAX, |event| event.seq);
            for event in row.events {
                overlays.take(&mut slice, event)?;
            }
            if slice.done() || last >= upto {
                break;
            }
        }
    }
    Ok(slice.finish())
}

/// The overlays of a range of messages, read alongside them.
struct Overlays<'a> {
    tables: &'a Tables,
    entity: &'a EntityId,
    rows: Iter,
    newest_first: bool,
    next: Option<(Seq, StoredOverlay)>,
}

impl Overlays<'_> {
    fn take(&mut self, slice: &mut Slice<'_>, event: Arc<Event>) -> Result<(), Error> {
        let seq = event.seq;
        // What an edit is about stands anywhere below.
        let (tables, entity) = (self.tables, self.entity);
        let own = |user: &UserId, key: &ReactionKey| reaction(tables, entity, seq, key, user);
        let of = |target| if target == seq { self.of(target) } else { overlay(tables, entity, target) };
        slice.take(event, of, own)
    }

    /// The overlay of a message. Messages are asked for in the direction of reading.
    fn of(&mut self, target: Seq) -> Result<Option<StoredOverlay>, Error> {
        loop {
            if let Some((seq, overlay)) = self.next.take() {
                if seq == target {
                    return Ok(Some(overlay));
                }
                if (seq > target) != self.newest_first {
                    self.next = Some((seq, overlay));
                    return Ok(None);
                }
            }
            let row = if self.newest_first { self.rows.next_back() } else { self.rows.next() };
            let Some(guard) = row else { return Ok(None) };
            let (key, value) = guard.into_inner().map_err(|error| failed(self.entity, &error))?;
            let seq = key::seq_of(&key).ok_or_else(|| corrupt(self.entity, BAD_KEY))?;
            self.next = Some((seq, open_overlay(self.entity, &value)?));
        }
    }
}

/// The overlays of some messages.
pub(super) fn overlays(
    tables: &Tables,
    entity: &EntityId,
    targets: &[Seq],
) -> Result<Vec<(Seq, StoredOverlay)>, Error> {
    let one = |target: &Seq| Ok(overlay(tables, entity, *target)?.map(|overlay| (*target, overlay)));
    targets.iter().filter_map(|target| one(target).transpose()).collect()
}

/// A user's reactions to a message.
pub(super) fn reactions(
    tables: &Tables,
    entity: &EntityId,
    target: Seq,
    user: &UserId,
    keys: Vec<ReactionKey>,
) -> Result<Vec<(ReactionKey, StoredReaction)>, Error> {
    let one = |key: ReactionKey| Ok(reaction(tables, entity, target, &key, user)?.map(|row| (key, row)));
    keys.into_iter().filter_map(|key| one(key).transpose()).collect()
}

/// Members of a conversation that have a row of their own.
pub(super) fn members(
    tables: &Tables,
    entity: &EntityId,
    after: Option<&UserId>,
    limit: usize,
) -> Result<MemberRows, Error> {
    let prefix = entity.to_key();
    // A user's text holds no control characters, so nobody stands between a user and this.
    let from = after.map_or_else(|| prefix.clone(), |after| key::joined(&key::member(&prefix, after.as_str()), &[0]));
    // No text holds this byte.
    let upto = key::joined(&prefix, &[u8::MAX]);
    let mut members = MemberRows::default();
    for guard in tables.view().range(&tables.members, from..upto) {
        if members.rows.len() >= limit {
            return Ok(members);
        }
        let (key, value) = guard.into_inner().map_err(|error| failed(entity, &error))?;
        let row: StoredMember = unseal(Kind::Member, value.into()).map_err(|why| corrupt(entity, why))?;
        if key[prefix.len()..] != *row.user.as_bytes() {
            return Err(corrupt(entity, BAD_KEY));
        }
        members.rows.push(row);
    }
    members.complete = true;
    Ok(members)
}

/// Who reacted to a message with one key.
pub(super) fn reacted(tables: &Tables, request: &ReactedRequest) -> Result<Reacted, Error> {
    let ReactedRequest { entity, target, key, after, limit } = request;
    let prefix = key::reactions(&entity.to_key(), *target, key);
    // A user's text holds no control characters, so nobody stands between a user and this.
    let from = after
        .as_ref()
        .map_or_else(|| prefix.clone(), |after| key::joined(&key::joined(&prefix, after.as_str().as_bytes()), &[0]));
    // No text holds this byte.
    let upto = key::joined(&prefix, &[u8::MAX]);
    let mut reacted = Reacted::default();
    for guard in tables.view().range(&tables.reaction, from..upto) {
        if reacted.rows.len() >= *limit {
            return Ok(reacted);
        }
        let (key, value) = guard.into_inner().map_err(|error| failed(entity, &error))?;
        let user = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|user| UserId::new(user).ok());
        let user = user.ok_or_else(|| corrupt(entity, BAD_KEY))?;
        reacted.rows.push((user, unseal(Kind::Reaction, value.into()).map_err(|why| corrupt(entity, why))?));
    }
    reacted.complete = true;
    Ok(reacted)
}

fn reaction(
    tables: &Tables,
    entity: &EntityId,
    target: Seq,
    key: &ReactionKey,
    user: &UserId,
) -> Result<Option<StoredReaction>, Error> {
    let key = key::reaction(&entity.to_key(), target, key, user);
    let value = tables.reaction.get(key).map_err(|error| failed(entity, &error))?;
    value.map(|value| unseal(Kind::Reaction, value.into()).map_err(|why| corrupt(entity, why))).transpose()
}

/// The overlay of one message.
fn overlay(tables: &Tables, entity: &EntityId, target: Seq) -> Result<Option<StoredOverlay>, Error> {
    let value = tables.overlay.get(key::with_seq(&entity.to_key(), target)).map_err(|error| failed(entity, &error))?;
    value.map(|value| open_overlay(entity, &value)).transpose()
}

/// An id among the durable blocks.
pub(super) fn find_id(tables: &Tables, entity: &EntityId, wanted: &Wanted<'_>) -> Result<Option<StoredId>, Error> {
    let view = tables.view();
    let prefix = entity.to_key();
    wanted.find(prints(&view, tables, entity), |ends, take| {
        let rows = key::with_seq(&prefix, *ends.start())..=key::with_seq(&prefix, *ends.end());
        for guard in view.range(&tables.ids, rows).rev() {
            let (_, value) = guard.into_inner().map_err(|error| failed(entity, &error))?;
            if !take(unseal(Kind::IdBlock, value.into()).map_err(|why| corrupt(entity, why))?) {
                break;
            }
        }
        Ok(())
    })
}

/// The prints of an entity's id blocks, newest first. Damaged ones count as absent: the block itself is read instead.
fn prints(
    view: &impl Readable,
    tables: &Tables,
    entity: &EntityId,
) -> impl Iterator<Item = Result<(Seq, StoredIdPrints), Error>> {
    let prefix = entity.to_key();
    let rows = view.range(&tables.ids, key::prints(&prefix, 0)..=key::prints(&prefix, Seq::MAX));
    rows.rev().filter_map(move |guard| {
        let (key, value) = match guard.into_inner() {
            Ok(row) => row,
            Err(error) => return Some(Err(failed(entity, &error))),
        };
        match (key::seq_of(&key), unseal(Kind::IdPrints, value.into())) {
            (Some(end), Ok(prints)) => Some(Ok((end, prints))),
            (_, damaged) => {
                let why = damaged.err().unwrap_or(BAD_KEY);
                tracing::error!(event = "store_row_damaged", %entity, %why, "prints of ids are damaged and not used");
                None
            }
        }
    })
}

// === what goes ===

/// Most rows that one call removes: a group of the committer's size.
const DOOMED_MAX: usize = 4096;

/// Rows that are to be removed.
pub(super) struct Doomed {
    pub(super) keys: Vec<(Table, Vec<u8>)>,
    /// Whether there are no more.
    pub(super) complete: bool,
}

/// A table of which rows are removed.
#[derive(Clone, Copy)]
pub(super) enum Table {
    Log,
    Overlay,
    Reaction,
    Ids,
}

impl Table {
    pub(super) const fn of(self, tables: &Tables) -> &Keyspace {
        match self {
            Self::Log => &tables.log,
            Self::Overlay => &tables.overlay,
            Self::Reaction => &tables.reaction,
            Self::Ids => &tables.ids,
        }
    }
}

/// What stands of a part of a log; its events last, so that whoever finds none knows that there is nothing else.
pub(super) fn doomed(tables: &Tables, purge: &Purge) -> Result<Doomed, Error> {
    let entity = purge.entity.to_key();
    let (from, upto) = (purge.above + 1, purge.upto);
    // Reactions go on behind the seq.
    let rows = |table, first: Vec<u8>, last: Vec<u8>| (table, first, key::joined(&last, &[u8::MAX]));
    let ranges = match purge.part {
        Part::History => vec![
            rows(Table::Reaction, key::with_seq(&entity, from), key::with_seq(&entity, upto)),
            rows(Table::Overlay, key::with_seq(&entity, from), key::with_seq(&entity, upto)),
            rows(Table::Log, key::with_seq(&entity, from), key::with_seq(&entity, upto)),
        ],
        Part::Ids => vec![
            rows(Table::Ids, key::prints(&entity, from), key::prints(&entity, upto)),
            rows(Table::Ids, key::with_seq(&entity, from), key::with_seq(&entity, upto)),
        ],
    };
    let mut doomed = Doomed { keys: Vec::new(), complete: true };
    for (table, first, last) in ranges {
        for guard in table.of(tables).range(first..=last) {
            if doomed.keys.len() == DOOMED_MAX {
                doomed.complete = false;
                return Ok(doomed);
            }
            doomed.keys.push((table, guard.key().map_err(|error| failed(&purge.entity, &error))?.to_vec()));
        }
    }
    Ok(doomed)
}

/// Some of the conversations that there are, by their keys, from that key on.
pub(super) fn walk(tables: &Tables, from: Option<&[u8]>, limit: usize, all: bool) -> Result<Walked, Error> {
    let view = tables.view();
    let unreadable = |error: fjall::Error| Error::Unavailable(in_words(&error));
    let first_of = |table: &Keyspace, from: &[u8]| match view.range(table, from..).next() {
        Some(guard) => guard.key().map(|key| EntityId::from_key_prefix(&key)).map_err(unreadable),
        None => Ok(None),
    };
    let mut at = from.map_or_else(Vec::new, <[u8]>::to_vec);
    let mut walked = Walked::default();
    for _ in 0..limit {
        let kept = first_of(&tables.snapshot, &at)?;
        let logged = if all { first_of(&tables.log, &at)? } else { None };
        let next = kept.into_iter().chain(logged).map(|entity| (entity.to_key(), entity)).min_by(|a, b| a.0.cmp(&b.0));
        let Some((key, entity)) = next else { return Ok(walked) };
        // Nothing else begins like this, and nothing of it lies behind.
        at = key::joined(&key, &[u8::MAX; 9]);
        // Users stand behind all conversations.
        let EntityId::Conversation(id) = entity else { return Ok(walked) };
        let snapshot = view.get(&tables.snapshot, &key).map_err(|error| failed(&entity, &error))?;
        let (seq, bytes) = match snapshot.map(|value| (key::open_checked_seq(&value), value)) {
            None => (0, None),
            Some((Ok(seq), value)) => (seq, Some(Bytes::copy_from_slice(&value[key::CHECKED_SEQ..]))),
            // Said in the log. It holds up nobody else, and whoever opens it is told.
            Some((Err(why), _)) => {
                corrupt(&entity, why);
                continue;
            }
        };
        let above = key::with_seq(&key, seq + 1)..=key::with_seq(&key, Seq::MAX);
        let is_behind = view.range(&tables.log, above).next().is_some();
        walked.found.push((id, bytes, is_behind));
    }
    walked.next = Some(at.into());
    Ok(walked)
}

/// The entities that are listed for announcement.
pub(super) fn announced(tables: &Tables) -> Result<Vec<EntityId>, Error> {
    let unreadable = |error: fjall::Error| Error::Unavailable(in_words(&error));
    let listed = tables.announce.iter().map(|guard| {
        let key = guard.key().map_err(unreadable)?;
        EntityId::from_key(&key)
            .map_err(|error| Error::Unavailable(format!("the list of announcements is damaged: {error}")))
    });
    listed.collect()
}

/// What table `announce` holds.
pub(super) fn announced_seqs(tables: &Tables) -> Result<HashMap<Vec<u8>, Seq>, fjall::Error> {
    let listed = tables.announce.iter().map(|guard| {
        let (entity, value) = guard.into_inner()?;
        // Listed is what matters: the entity announces everything up to its head, whatever the seq was.
        let seq = key::open_checked_seq(&value).unwrap_or_else(|why| {
            tracing::error!(event = "store_row_damaged", table = "announce", %why, "a row of the list is damaged");
            0
        });
        Ok((entity.to_vec(), seq))
    });
    listed.collect()
}

const BAD_KEY: Corrupt = Corrupt::Content("a row's key is not as it was written");

/// A row of the log, whole and at its place.
fn log_row(entity: &EntityId, guard: Guard) -> Result<LogRow, Error> {
    let (key, value) = guard.into_inner().map_err(|error| failed(entity, &error))?;
    // Copied: bodies are slices of this, and what they are slices of else is a block of the engine, which a single
    // small body would keep in memory.
    let row = LogRow::unseal(Bytes::copy_from_slice(&value)).map_err(|why| corrupt(entity, why))?;
    if row.events.last().map(|event| event.seq) != key::seq_of(&key) {
        return Err(corrupt(entity, BAD_KEY));
    }
    Ok(row)
}

fn open_overlay(entity: &EntityId, value: &[u8]) -> Result<StoredOverlay, Error> {
    unseal(Kind::Overlay, Bytes::copy_from_slice(value)).map_err(|why| corrupt(entity, why))
}

fn corrupt(entity: &EntityId, why: Corrupt) -> Error {
    tracing::error!(event = "store_row_damaged", %entity, %why, "stored bytes are damaged and are not served");
    Error::Corrupt { entity: entity.clone(), why }
}

/// What an error of the engine means for an entity.
fn failed(entity: &EntityId, error: &fjall::Error) -> Error {
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            Error::Unavailable(source.to_string())
        }
        fjall::Error::Storage(_) | fjall::Error::Decompress(_) => {
            tracing::error!(event = "store_file_damaged", %error, "a file of the log is damaged");
            corrupt(entity, Corrupt::Checksum)
        }
        _ => Error::Unavailable(in_words(error)),
    }
}
