//! What is read. Positions are computed: a slice of a log is read from the partitions in which it must stand.
//!
//! Every read is of a quorum, so it shows whatever was durable before it began, in the newest version: a row that went back would
//! have an older timestamp.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use chappe_schema::{
    columns::Columns,
    cql::{ANNOUNCE_LANES, LOG_BUCKET_BITS, log_bucket, prints_bucket},
    event::{Event, Fact},
    id::{ConversationId, EntityId, Epoch, Millis, Seq, UserId},
    reaction::ReactionKey,
    stored::{
        Corrupt, Kind, LogRow, StoredId, StoredIdBlock, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay,
        StoredReaction, StoredReceipt, unseal,
    },
};
use futures_util::future::try_join_all;
use scylla::{DeserializeRow, value::CqlTimestamp};

use super::Shelf;
use crate::store::{
    Error, MemberRows, Page, PageRequest, Reacted, ReactedRequest, Recovered, Show, Walked,
    ids::{Descent, Look, Recent, Wanted},
    slice::Slice,
};

/// Events of which a page asks at once, at most: at the largest body 16 MiB.
const WINDOW_MAX: u64 = 256;

/// Values that one statement may name: ScyllaDB refuses more than a hundred.
const NAMED_MAX: usize = 100;

/// A row of the log, in the order in which it is selected.
#[derive(DeserializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
struct LogColumns {
    seq: i64,
    epoch: i64,
    cw: i64,
    origin: i64,
    after: i64,
    n: i64,
    kind: i8,
    sender: String,
    device: Option<String>,
    command_id: uuid::Uuid,
    target_seq: Option<i64>,
    flags: Option<i32>,
    created_at: CqlTimestamp,
    body: Option<Vec<u8>>,
    meta: Vec<u8>,
}

impl LogColumns {
    fn row(self) -> Result<LogRow, Corrupt> {
        let (epoch, cw, origin, after) = (self.epoch as u64, self.cw as u64, self.origin as u64, self.after as u64);
        let columns = Columns {
            seq: self.seq as u64,
            n: self.n as u64,
            kind: self.kind as u8,
            sender: self.sender,
            device: self.device.unwrap_or_default(),
            command_id: self.command_id,
            target: self.target_seq.unwrap_or_default() as u64,
            flags: self.flags.unwrap_or_default() as u32,
            created_at: self.created_at.0 as u64,
            body: Bytes::from(self.body.unwrap_or_default()),
            meta: Bytes::from(self.meta),
        };
        Ok(LogRow { epoch, cw, origin, after, events: vec![Arc::new(columns.event()?)] })
    }
}

/// The rows of a part of one bucket, highest first.
async fn log_rows(shelf: &Shelf, entity: &EntityId, bucket: i32, from: Seq, upto: Seq) -> Result<Vec<LogRow>, Error> {
    let mut rows = Vec::new();
    let take = |row: LogColumns| {
        rows.push(row.row().map_err(|why| corrupt(entity, why))?);
        Ok(true)
    };
    let values = (entity.to_key(), bucket, from as i64, upto.min(i64::MAX as u64) as i64);
    shelf.driver.read(&shelf.statements.log_slice, values, take).await?;
    Ok(rows)
}

/// Everything needed to rebuild an entity.
pub(super) async fn recover(shelf: &Shelf, entity: &EntityId, ids_since: Millis) -> Result<Recovered, Error> {
    loop {
        let recovered = recover_once(shelf, entity, ids_since).await?;
        let above = recovered.snapshot.as_ref().map_or(0, |(seq, _)| *seq);
        // A former owner may go on removing what is too old: below a snapshot that it has written before. If that is the one
        // which was read, nothing above it is missing.
        if !matches!(entity, EntityId::Conversation(_)) || snapshot_seq(shelf, entity).await? <= above {
            return Ok(recovered);
        }
        tracing::info!(event = "recovery_overtaken", %entity, above, "a newer snapshot was written meanwhile: read again");
    }
}

async fn snapshot_seq(shelf: &Shelf, entity: &EntityId) -> Result<Seq, Error> {
    let mut top = 0;
    let take = |(seq,): (i64,)| {
        top = seq as Seq;
        Ok(true)
    };
    shelf.driver.read(&shelf.statements.snapshot_seq, (entity.to_key(),), take).await?;
    Ok(top)
}

async fn recover_once(shelf: &Shelf, entity: &EntityId, ids_since: Millis) -> Result<Recovered, Error> {
    let mut snapshot = None;
    let take = |(seq, bytes): (i64, Vec<u8>)| {
        snapshot = Some((seq as u64, Bytes::from(bytes)));
        Ok(true)
    };
    // First: whatever it does not hold stands in the log by then.
    shelf.driver.read(&shelf.statements.snapshot_of, (entity.to_key(),), take).await?;
    let above = snapshot.as_ref().map_or(0, |(seq, _)| *seq);
    let wants_prints = matches!(entity, EntityId::Conversation(_)) && snapshot.is_some();
    let prints =
        async { if wants_prints { recent_prints(shelf, entity, above, ids_since).await } else { Ok(Vec::new()) } };
    let (rows, inbox, receipts, prints) =
        tokio::try_join!(rows_above(shelf, entity, above), inbox(shelf, entity), receipts(shelf, entity), prints)?;
    Ok(Recovered { snapshot, rows, inbox, receipts, prints })
}

/// Every row above a seq, in order of seq, then epoch: bucket by bucket, until one is empty.
async fn rows_above(shelf: &Shelf, entity: &EntityId, above: Seq) -> Result<Vec<LogRow>, Error> {
    let first = log_bucket(above + 1);
    let read = |bucket| log_rows(shelf, entity, bucket, above + 1, Seq::MAX);
    // Two at once: nearly always the second is the empty one.
    let (mut rows, mut next) = tokio::try_join!(read(first), read(first + 1))?;
    rows.reverse();
    let mut bucket = first + 1;
    while !next.is_empty() {
        rows.extend(next.into_iter().rev());
        bucket += 1;
        next = read(bucket).await?;
    }
    Ok(rows)
}

async fn inbox(shelf: &Shelf, entity: &EntityId) -> Result<Vec<(ConversationId, StoredInbox)>, Error> {
    type Row = (uuid::Uuid, i64, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
    let EntityId::User(user) = entity else { return Ok(Vec::new()) };
    let mut inbox: BTreeMap<ConversationId, StoredInbox> = BTreeMap::new();
    let take = |(conversation, epoch, change, last_seq, last_n, read_n, message_at): Row| {
        let number = |cell: Option<i64>| cell.unwrap_or_default() as u64;
        let row = StoredInbox {
            last_seq: number(last_seq),
            last_n: number(last_n),
            read_n: number(read_n),
            change: number(change),
            change_epoch: epoch as Epoch,
            message_at: number(message_at),
        };
        let position = inbox.entry(ConversationId(conversation)).or_default();
        *position = position.highest(&row);
        Ok(true)
    };
    shelf.driver.read(&shelf.statements.inbox, (user.as_str(),), take).await?;
    Ok(inbox.into_iter().collect())
}

async fn receipts(shelf: &Shelf, entity: &EntityId) -> Result<Vec<StoredReceipt>, Error> {
    type Row = (String, Option<i64>, Option<i64>, Option<i64>);
    let EntityId::Conversation(_) = entity else { return Ok(Vec::new()) };
    let mut receipts = Vec::new();
    let take = |(user, read_n, delivered_n, shown_n): Row| {
        let number = |cell: Option<i64>| cell.unwrap_or_default() as u64;
        let (read_n, delivered_n, shown_n) = (number(read_n), number(delivered_n), number(shown_n));
        receipts.push(StoredReceipt { user, read_n, delivered_n, shown_n });
        Ok(true)
    };
    shelf.driver.read(&shelf.statements.receipts, (entity.to_key(),), take).await?;
    Ok(receipts)
}

// === ids ===

/// Prints of an entity's blocks, newest first, until `take` has enough. `top` is a seq of which no block is far above.
async fn prints(
    shelf: &Shelf,
    entity: &EntityId,
    top: Seq,
    mut take: impl FnMut(Seq, StoredIdPrints) -> bool,
) -> Result<(), Error> {
    let mut enough = false;
    // A block that is not reflected in a snapshot yet may stand in the next bucket.
    for bucket in (0..=prints_bucket(top) + 1).rev() {
        let take = |(end, bytes): (i64, Vec<u8>)| {
            match unseal::<StoredIdPrints>(Kind::IdPrints, bytes.into()) {
                Ok(prints) => enough = !take(end as Seq, prints),
                // The block itself is read instead.
                Err(why) => tracing::error!(
                    event = "store_row_damaged", %entity, %why, "prints of ids are damaged and not used"
                ),
            }
            Ok(!enough)
        };
        shelf.driver.read(&shelf.statements.id_prints, (entity.to_key(), bucket), take).await?;
        if enough {
            break;
        }
    }
    Ok(())
}

async fn recent_prints(
    shelf: &Shelf,
    entity: &EntityId,
    top: Seq,
    since: Millis,
) -> Result<Vec<(Seq, StoredIdPrints)>, Error> {
    let mut recent = Recent::new(since);
    prints(shelf, entity, top, |end, prints| recent.take(end, prints)).await?;
    Ok(recent.finish())
}

/// An id among the durable blocks.
pub(super) async fn find_id(shelf: &Shelf, entity: &EntityId, wanted: &Wanted<'_>) -> Result<Option<StoredId>, Error> {
    let top = snapshot_seq(shelf, entity).await?;
    let highest = (log_bucket(top) as Seq + 2) << LOG_BUCKET_BITS;
    // Prints are small; which blocks they lead to shows at once.
    let mut descent = Descent::new();
    let mut ranges = Vec::new();
    let mut ended = false;
    let step = |end: Seq, prints: StoredIdPrints| {
        let stop = descent.to(wanted, end, &prints);
        ranges.push(stop.without);
        ranges.extend(stop.with.map(|end| end..=end));
        ended = stop.is_last;
        !ended
    };
    prints(shelf, entity, top, step).await?;
    if !ended {
        ranges.push(descent.rest(wanted));
    }
    for range in ranges {
        let (from, upto) = (*range.start(), (*range.end()).min(highest));
        match find_in_blocks(shelf, entity, wanted, from, upto).await? {
            Look::Found(id) => return Ok(Some(id)),
            Look::Older => return Ok(None),
            Look::Absent => {}
        }
    }
    Ok(None)
}

async fn find_in_blocks(
    shelf: &Shelf,
    entity: &EntityId,
    wanted: &Wanted<'_>,
    from: Seq,
    upto: Seq,
) -> Result<Look, Error> {
    if from > upto {
        return Ok(Look::Absent);
    }
    for bucket in (log_bucket(from)..=log_bucket(upto)).rev() {
        let mut look = Look::Absent;
        let take = |(_, bytes): (i64, Vec<u8>)| {
            let block: StoredIdBlock = unseal(Kind::IdBlock, bytes.into()).map_err(|why| corrupt(entity, why))?;
            look = wanted.look(block);
            Ok(matches!(look, Look::Absent))
        };
        let values = (entity.to_key(), bucket, from as i64, upto as i64);
        shelf.driver.read(&shelf.statements.id_blocks, values, take).await?;
        if !matches!(look, Look::Absent) {
            return Ok(look);
        }
    }
    Ok(Look::Absent)
}

// === a walk over all there is ===

/// Where a walk stands: among the snapshots, then among the first buckets of logs, in the order of their tokens.
struct At {
    is_logs: bool,
    token: i64,
}

impl At {
    fn open(from: Option<Bytes>) -> Self {
        let at = |bytes: &[u8]| Some((*bytes.first()? != 0, i64::from_be_bytes(*bytes.get(1..)?.first_chunk()?)));
        let (is_logs, token) = from.as_deref().and_then(at).unwrap_or((false, i64::MIN));
        Self { is_logs, token }
    }

    fn close(&self) -> Bytes {
        let mut bytes = vec![u8::from(self.is_logs)];
        bytes.extend_from_slice(&self.token.to_be_bytes());
        bytes.into()
    }
}

/// Some of the conversations that there are. Nobody looks whether events stand above a snapshot: whoever takes over from a
/// session that has ended reads what it was active in.
pub(super) async fn walk(shelf: &Shelf, from: Option<Bytes>, limit: usize, all: bool) -> Result<Walked, Error> {
    let mut at = At::open(from);
    let mut walked = Walked::default();
    let (mut rows, mut last) = (0, at.token);
    let conversation = |key: &[u8]| match EntityId::from_key(key) {
        Ok(EntityId::Conversation(id)) => Some(id),
        _ => None,
    };
    if at.is_logs {
        let mut some = Vec::new();
        let take = |(token, key, bucket): (i64, Vec<u8>, i32)| {
            (rows, last) = (rows + 1, token);
            some.extend((bucket == 0).then(|| conversation(&key)).flatten());
            Ok(true)
        };
        shelf.driver.read(&shelf.statements.walk_log, (at.token, limit as i32), take).await?;
        let asked = some.into_iter().map(|id| async move {
            let key = EntityId::from(id).to_key();
            let known: Vec<(i64,)> = shelf.driver.rows(&shelf.statements.snapshot_seq, (key,)).await?;
            Ok::<_, Error>(known.is_empty().then_some((id, None, false)))
        });
        walked.found.extend(try_join_all(asked).await?.into_iter().flatten());
    } else {
        let take = |(token, key, bytes): (i64, Vec<u8>, Option<Vec<u8>>)| {
            (rows, last) = (rows + 1, token);
            walked.found.extend(conversation(&key).map(|id| (id, bytes.map(Bytes::from), false)));
            Ok(true)
        };
        shelf.driver.read(&shelf.statements.walk_snapshots, (at.token, limit as i32), take).await?;
    }
    at.token = last;
    let is_end = rows < limit;
    if is_end && all && !at.is_logs {
        at = At { is_logs: true, token: i64::MIN };
    } else if is_end {
        return Ok(walked);
    }
    walked.next = Some(at.close());
    Ok(walked)
}

// === pages ===

/// Events of a part of a log, and what stands beside them.
struct Window {
    /// In ascending order; at each seq that of the highest epoch.
    events: Vec<Arc<Event>>,
    overlays: HashMap<Seq, StoredOverlay>,
    own: HashMap<(Seq, ReactionKey), StoredReaction>,
}

/// A slice of a log.
pub(super) async fn page(shelf: &Shelf, request: &PageRequest) -> Result<Page, Error> {
    let mut slice = Slice::new(request);
    let (from, upto) = (slice.from(), request.upto);
    // One more than wanted: it tells whether there is more.
    let mut width = (request.limit as u64).saturating_add(1).min(WINDOW_MAX);
    let mut next = if request.newest_first { upto } else { from };
    while !slice.done() {
        // Within one bucket: its bounds are next to each other.
        let bucket = log_bucket(next) as Seq;
        let (low, high) = if request.newest_first {
            ((next + 1).saturating_sub(width).max(from).max((bucket << LOG_BUCKET_BITS) + 1), next)
        } else {
            (next, (next + width - 1).min(upto).min((bucket + 1) << LOG_BUCKET_BITS))
        };
        let window = window(shelf, request, low, high).await?;
        // A log has no gaps: all of it was removed meanwhile.
        let is_removed = window.events.is_empty();
        let mut take = |event: Arc<Event>| {
            let overlay = |target: Seq| Ok::<_, Error>(window.overlays.get(&target).cloned());
            let seq = event.seq;
            let own = |_: &UserId, key: &ReactionKey| Ok(window.own.get(&(seq, key.clone())).copied());
            slice.take(event, overlay, own)
        };
        if request.newest_first {
            window.events.iter().rev().try_for_each(|event| take(Arc::clone(event)))?;
        } else {
            window.events.iter().try_for_each(|event| take(Arc::clone(event)))?;
        }
        let is_end = if request.newest_first { low == from } else { high == upto };
        if is_end {
            break;
        }
        if is_removed && !request.newest_first {
            // How much of what is above went too is not worth looking for window by window.
            slice.stop_at(high);
            break;
        }
        next = if request.newest_first { low - 1 } else { high + 1 };
        // A log of which little is shown is read in larger steps.
        width = (width * 2).min(WINDOW_MAX);
    }
    Ok(slice.finish())
}

async fn window(shelf: &Shelf, request: &PageRequest, low: Seq, high: Seq) -> Result<Window, Error> {
    let entity = &request.entity;
    let bucket = log_bucket(low);
    let beside = async {
        if request.show == Show::Messages { overlay_slice(shelf, entity, low, high).await } else { Ok(HashMap::new()) }
    };
    let (mut rows, mut overlays) = tokio::try_join!(log_rows(shelf, entity, bucket, low, high), beside)?;
    // Highest first, so the first of each seq is the winner.
    rows.dedup_by_key(|row| row.events[0].seq);
    let events: Vec<Arc<Event>> = rows.into_iter().rev().flat_map(|row| row.events).collect();
    if request.show == Show::Events {
        let targets = events.iter().filter_map(|event| match event.fact {
            Fact::MessageNew { .. } => Some(event.seq),
            Fact::MessageUpdated { .. } => Some(event.target),
            _ => None,
        });
        overlays = overlays_of(shelf, entity, targets.collect()).await?.into_iter().collect();
    }
    let mut own = HashMap::new();
    if let (Show::Messages, Some(reader)) = (request.show, &request.reader) {
        let reacted = overlays.iter().filter(|(_, overlay)| !overlay.reactions.is_empty());
        let asked = reacted.map(|(target, overlay)| async move {
            let keys = overlay.reactions.iter().filter_map(|one| ReactionKey::new(&one.key).ok()).collect();
            Ok::<_, Error>((*target, reactions(shelf, entity, *target, reader, keys).await?))
        });
        for (target, found) in try_join_all(asked).await? {
            own.extend(found.into_iter().map(|(key, row)| ((target, key), row)));
        }
    }
    Ok(Window { events, overlays, own })
}

async fn overlay_slice(
    shelf: &Shelf,
    entity: &EntityId,
    low: Seq,
    high: Seq,
) -> Result<HashMap<Seq, StoredOverlay>, Error> {
    let mut overlays = HashMap::new();
    let take = |(target, bytes): (i64, Vec<u8>)| {
        overlays.insert(target as Seq, open_overlay(entity, bytes)?);
        Ok(true)
    };
    let values = (entity.to_key(), log_bucket(low), low as i64, high as i64);
    shelf.driver.read(&shelf.statements.overlay_slice, values, take).await?;
    Ok(overlays)
}

/// The overlays of some messages.
pub(super) async fn overlays(
    shelf: &Shelf,
    entity: &EntityId,
    targets: Vec<Seq>,
) -> Result<Vec<(Seq, StoredOverlay)>, Error> {
    let mut found: HashMap<Seq, StoredOverlay> =
        overlays_of(shelf, entity, targets.clone()).await?.into_iter().collect();
    Ok(targets.into_iter().filter_map(|target| found.remove_entry(&target)).collect())
}

async fn overlays_of(
    shelf: &Shelf,
    entity: &EntityId,
    mut targets: Vec<Seq>,
) -> Result<Vec<(Seq, StoredOverlay)>, Error> {
    targets.sort_unstable();
    targets.dedup();
    let parts = targets.chunk_by(|a, b| log_bucket(*a) == log_bucket(*b)).flat_map(|bucket| bucket.chunks(NAMED_MAX));
    let asked = parts.map(|part| async move {
        let seqs: Vec<i64> = part.iter().map(|target| *target as i64).collect();
        let rows: Vec<(i64, Vec<u8>)> =
            shelf.driver.rows(&shelf.statements.overlays, (entity.to_key(), log_bucket(part[0]), seqs)).await?;
        rows.into_iter()
            .map(|(target, bytes)| Ok((target as Seq, open_overlay(entity, bytes)?)))
            .collect::<Result<Vec<_>, Error>>()
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

fn open_overlay(entity: &EntityId, bytes: Vec<u8>) -> Result<StoredOverlay, Error> {
    unseal(Kind::Overlay, bytes.into()).map_err(|why| corrupt(entity, why))
}

// === reactions ===

fn open_reaction(entity: &EntityId, bytes: Vec<u8>) -> Result<StoredReaction, Error> {
    unseal(Kind::Reaction, bytes.into()).map_err(|why| corrupt(entity, why))
}

const BAD_KEY: Corrupt = Corrupt::Content("a row's key is not as it was written");

/// A user's reactions to a message.
pub(super) async fn reactions(
    shelf: &Shelf,
    entity: &EntityId,
    target: Seq,
    user: &UserId,
    keys: Vec<ReactionKey>,
) -> Result<Vec<(ReactionKey, StoredReaction)>, Error> {
    let mut found = Vec::new();
    for part in keys.chunks(NAMED_MAX) {
        let names: Vec<&str> = part.iter().map(ReactionKey::as_str).collect();
        let take = |(key, bytes): (String, Vec<u8>)| {
            let key = ReactionKey::new(&key).map_err(|_| corrupt(entity, BAD_KEY))?;
            found.push((key, open_reaction(entity, bytes)?));
            Ok(true)
        };
        let values = (entity.to_key(), log_bucket(target), target as i64, names, user.as_str());
        shelf.driver.read(&shelf.statements.reactions_of, values, take).await?;
    }
    Ok(found)
}

/// Who reacted to a message with one key.
pub(super) async fn reacted(shelf: &Shelf, request: &ReactedRequest) -> Result<Reacted, Error> {
    let ReactedRequest { entity, target, key, after, limit } = request;
    let mut reacted = Reacted { rows: Vec::new(), complete: true };
    let take = |(user, bytes): (String, Vec<u8>)| {
        if reacted.rows.len() == *limit {
            reacted.complete = false;
            return Ok(false);
        }
        let user = UserId::new(&user).map_err(|_| corrupt(entity, BAD_KEY))?;
        reacted.rows.push((user, open_reaction(entity, bytes)?));
        Ok(true)
    };
    // Nobody's name is empty.
    let after = after.as_ref().map_or("", |user| user.as_str());
    let one_more = i32::try_from(limit.saturating_add(1)).unwrap_or(i32::MAX);
    let values = (entity.to_key(), log_bucket(*target), *target as i64, key.as_str(), after, one_more);
    shelf.driver.read(&shelf.statements.reacted, values, take).await?;
    Ok(reacted)
}

/// Members of a conversation that have a row of their own.
pub(super) async fn members(
    shelf: &Shelf,
    entity: &EntityId,
    after: Option<&UserId>,
    limit: usize,
) -> Result<MemberRows, Error> {
    let mut members = MemberRows { rows: Vec::new(), complete: true };
    let take = |(user, bytes): (String, Vec<u8>)| {
        if members.rows.len() == limit {
            members.complete = false;
            return Ok(false);
        }
        let row: StoredMember = unseal(Kind::Member, bytes.into()).map_err(|why| corrupt(entity, why))?;
        if row.user != user {
            return Err(corrupt(entity, BAD_KEY));
        }
        members.rows.push(row);
        Ok(true)
    };
    // Nobody's name is empty.
    let after = after.map_or("", |user| user.as_str());
    let one_more = i32::try_from(limit.saturating_add(1)).unwrap_or(i32::MAX);
    shelf.driver.read(&shelf.statements.members, (entity.to_key(), after, one_more), take).await?;
    Ok(members)
}

// === announcements, activity ===

fn entity_of(key: &[u8]) -> Result<EntityId, Error> {
    EntityId::from_key(key).map_err(|error| Error::Unavailable(format!("a list of entities is damaged: {error}")))
}

/// The entities that are listed for announcement.
pub(super) async fn announced(shelf: &Shelf) -> Result<Vec<EntityId>, Error> {
    let lanes = (0..ANNOUNCE_LANES as i16).map(|lane| async move {
        let rows: Vec<(Vec<u8>,)> = shelf.driver.rows(&shelf.statements.announced, (lane,)).await?;
        rows.iter().map(|(entity,)| entity_of(entity)).collect::<Result<Vec<_>, Error>>()
    });
    Ok(try_join_all(lanes).await?.into_iter().flatten().collect())
}

/// The entities in which a session committed since a minute of its.
pub(super) async fn active(shelf: &Shelf, session: i64, since: u64) -> Result<Vec<EntityId>, Error> {
    let mut entities = Vec::new();
    let take = |(keys,): (Option<Vec<Vec<u8>>>,)| {
        for key in keys.iter().flatten() {
            entities.push(entity_of(key)?);
        }
        Ok(true)
    };
    shelf.driver.read(&shelf.statements.activity, (session, since.min(i64::MAX as u64) as i64), take).await?;
    entities.sort_unstable();
    entities.dedup();
    Ok(entities)
}

fn corrupt(entity: &EntityId, why: Corrupt) -> Error {
    tracing::error!(event = "store_row_damaged", %entity, %why, "stored bytes are damaged and are not served");
    Error::Corrupt { entity: entity.clone(), why }
}
