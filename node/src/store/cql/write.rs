//! What is written: rows of the log, and what is derived from them.
//!
//! One statement writes into one partition, so it is one mutation, whole or not at all on each replica. An append is durable when
//! all of its statements are.

use std::sync::Arc;

use bytes::Bytes;
use chappe_schema::{
    columns::Columns,
    cql::{ANNOUNCE_LANES, log_bucket, prints_bucket},
    event::Event,
    id::{ConversationId, EntityId, Seq, UserId},
    limit::APPEND_EVENTS_MAX,
    stored::{Kind, StoredIdPrints, StoredInbox, StoredMember, StoredReceipt, seal},
};
use futures_util::future::join_all;
use scylla::{
    SerializeRow,
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::{CqlTimestamp, MaybeUnset},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{Shelf, driver::Failure};
use crate::store::{Append, Error, Part, Projection, Purge, Written};

/// A row of the log, in the order of its statement's marks.
#[derive(SerializeRow)]
#[scylla(flavor = "enforce_order", skip_name_checks)]
struct LogValues<'a> {
    entity: &'a [u8],
    bucket: i32,
    seq: i64,
    epoch: i64,
    cw: i64,
    origin: i64,
    after: i64,
    n: i64,
    kind: i8,
    sender: String,
    // A cell that holds nothing is not written: it would be a deletion, and kept like one.
    device: MaybeUnset<String>,
    command_id: uuid::Uuid,
    target_seq: MaybeUnset<i64>,
    flags: MaybeUnset<i32>,
    created_at: CqlTimestamp,
    body: MaybeUnset<Bytes>,
    meta: Bytes,
    timestamp: i64,
}

fn unless<T>(is_nothing: bool, value: T) -> MaybeUnset<T> {
    if is_nothing { MaybeUnset::Unset } else { MaybeUnset::Set(value) }
}

/// The rows of an append.
fn values<'a>(entity: &'a [u8], append: &Append) -> Vec<LogValues<'a>> {
    let mut after = append.after;
    let row = |event: &Arc<Event>| {
        let columns = Columns::of(event);
        LogValues {
            entity,
            bucket: log_bucket(columns.seq),
            seq: columns.seq as i64,
            epoch: append.epoch as i64,
            cw: append.cw as i64,
            origin: append.origin as i64,
            after: std::mem::replace(&mut after, append.origin) as i64,
            n: columns.n as i64,
            kind: columns.kind as i8,
            sender: columns.sender,
            device: unless(columns.device.is_empty(), columns.device),
            command_id: columns.command_id,
            target_seq: unless(columns.target == 0, columns.target as i64),
            flags: unless(columns.flags == 0, columns.flags as i32),
            created_at: CqlTimestamp(columns.created_at as i64),
            body: unless(columns.body.is_empty(), columns.body),
            meta: columns.meta,
            timestamp: columns.seq as i64,
        }
    };
    append.events.iter().map(row).collect()
}

/// Makes an append durable.
pub(super) async fn append(shelf: &Shelf, append: &Append) -> Written {
    let entity = append.entity.to_key();
    let rows = values(&entity, append);
    let statements = rows
        .chunk_by(|a, b| a.bucket == b.bucket)
        .flat_map(|bucket| bucket.chunks(APPEND_EVENTS_MAX))
        .map(|chunk| async move {
            match (chunk, shelf.statements.log_rows(chunk.len())) {
                ([row], _) | ([row, ..], None) => shelf.driver.write(&shelf.statements.log_row, row).await,
                (rows, Some(batch)) => shelf.driver.write_together(batch, rows).await,
                ([], None) => Ok(()),
            }
        });
    let last = append.events.last().map_or(0, |event| event.seq);
    let announcing = async { if append.announce { announce(shelf, &entity, last).await } else { Ok(()) } };
    let (written, announced) = tokio::join!(join_all(statements), announcing);
    let outcome = outcome(written.into_iter().chain([announced]));
    if outcome == Written::Durable {
        shelf.rows.log.increment(rows.len() as u64);
        shelf.rows.events.increment(rows.len() as u64);
    }
    outcome
}

/// What several statements make together.
pub(super) fn outcome(statements: impl IntoIterator<Item = Result<(), Failure>>) -> Written {
    let mut outcome = Written::Durable;
    for failure in statements.into_iter().filter_map(Result::err) {
        match failure {
            Failure::Refused(why) => return Written::Refused(why),
            Failure::Unknown(why) => {
                tracing::debug!(event = "store_write_unknown", why, "nobody knows what became of a write");
                outcome = Written::Unknown;
            }
        }
    }
    outcome
}

/// Where an entity stands in the list of announcements.
fn lane(entity: &[u8]) -> i16 {
    (xxh3_64(entity) % u64::from(ANNOUNCE_LANES)) as i16
}

async fn announce(shelf: &Shelf, entity: &[u8], seq: Seq) -> Result<(), Failure> {
    let seq = seq as i64;
    shelf.driver.write(&shelf.statements.announce, (lane(entity), entity, seq, seq)).await?;
    shelf.rows.announce.increment(1);
    Ok(())
}

/// Writes derived rows.
///
/// # Errors
/// When one of them may not be durable.
pub(super) async fn project(shelf: &Shelf, writes: &[Projection]) -> Result<(), Error> {
    let done = join_all(writes.iter().map(|write| one(shelf, write))).await;
    done.into_iter().collect::<Result<(), Failure>>().map_err(Failure::into_error)
}

/// Removes a part of a log, by tombstones that are as old as what decided it: nothing that is written for later events is
/// hidden by them.
///
/// # Errors
/// When some of it may not be removed.
pub(super) async fn purge(shelf: &Shelf, purge: &Purge) -> Result<(), Error> {
    let (driver, statements, entity) = (&shelf.driver, &shelf.statements, purge.entity.to_key());
    let (at, above, upto) = (purge.at as i64, purge.above as i64, purge.upto as i64);
    let (bucket, prints) = (log_bucket(purge.upto), prints_bucket(purge.upto));
    // In this order: where events are left, something beside them may be.
    let done = async {
        match purge.part {
            Part::History if purge.is_whole() => {
                for whole in &statements.purge_bucket {
                    driver.write(whole, (at, &entity, bucket)).await?;
                }
            }
            Part::History => {
                for some in &statements.purge_some {
                    driver.write(some, (at, &entity, bucket, above, upto)).await?;
                }
            }
            Part::Ids => {
                driver.write(&statements.purge_prints, (at, &entity, prints, above, upto)).await?;
                driver.write(&statements.purge_ids, (at, &entity, bucket, above, upto)).await?;
            }
        }
        Ok::<(), Failure>(())
    };
    done.await.map_err(Failure::into_error)
}

async fn one(shelf: &Shelf, write: &Projection) -> Result<(), Failure> {
    let (driver, statements, rows) = (&shelf.driver, &shelf.statements, &shelf.rows);
    match write {
        Projection::Snapshot { entity, seq, bytes } => {
            let seq = *seq as i64;
            driver.write(&statements.snapshot, (entity.to_key(), seq, bytes, seq)).await?;
            rows.snapshot.increment(1);
        }
        Projection::Overlay { entity, target, overlay } => {
            let values = (
                entity.to_key(),
                log_bucket(*target),
                *target as i64,
                seal(Kind::Overlay, overlay),
                overlay.as_of as i64,
            );
            driver.write(&statements.overlay, values).await?;
            rows.overlay.increment(1);
        }
        Projection::Reaction { entity, target, key, user, reaction } => {
            let (bucket, row) = (log_bucket(*target), seal(Kind::Reaction, reaction));
            let values =
                (entity.to_key(), bucket, *target as i64, key.as_str(), user.as_str(), row, reaction.seq as i64);
            driver.write(&statements.reaction, values).await?;
            rows.reaction.increment(1);
        }
        Projection::IdBlock { entity, end, block } => {
            let entity = entity.to_key();
            let prints = seal(Kind::IdPrints, &StoredIdPrints::of(block));
            let at = *end as i64;
            let block = (&entity, log_bucket(*end), at, seal(Kind::IdBlock, &**block), at);
            driver.write(&statements.id_block, block).await?;
            // After it, so that no print stands there without its block.
            driver.write(&statements.id_print, (&entity, prints_bucket(*end), at, prints, at)).await?;
            rows.ids.increment(2);
        }
        Projection::Inbox { user, conversation, position } => {
            inbox(shelf, user, *conversation, position).await?;
            rows.inbox.increment(1);
        }
        Projection::Members { conversation, rows: members } => {
            let entity = EntityId::from(*conversation).to_key();
            let some = members.chunks(MEMBERS_TOGETHER).map(|members| write_members(shelf, &entity, members));
            join_all(some).await.into_iter().collect::<Result<(), _>>()?;
            rows.members.increment(members.len() as u64);
        }
        Projection::Receipts { conversation, items, .. } => {
            let entity = EntityId::from(*conversation).to_key();
            let some = items.chunks(RECEIPTS_TOGETHER).map(|items| receipts(shelf, &entity, items));
            join_all(some).await.into_iter().collect::<Result<(), _>>()?;
            rows.receipts.increment(items.len() as u64);
        }
        Projection::Announced { entity, upto } => {
            let entity = entity.to_key();
            driver.write(&statements.announce_end, (*upto as i64, lane(&entity), entity)).await?;
            rows.announce.increment(1);
        }
    }
    Ok(())
}

/// The cells of a position, each with its own value as timestamp.
async fn inbox(
    shelf: &Shelf,
    user: &UserId,
    conversation: ConversationId,
    position: &StoredInbox,
) -> Result<(), Failure> {
    let statements = &shelf.statements;
    let cells: [(&PreparedStatement, u64); 5] = [
        (&statements.inbox_change, position.change),
        (&statements.inbox_last_seq, position.last_seq),
        (&statements.inbox_last_n, position.last_n),
        (&statements.inbox_read_n, position.read_n),
        (&statements.inbox_message_at, position.message_at),
    ];
    // What is absent counts as 0; the change tells that the row is there.
    let cells = cells.into_iter().enumerate().filter(|(index, (_, value))| *index == 0 || *value > 0);
    let (written, values): (Vec<_>, Vec<_>) = cells
        .map(|(_, (statement, value))| {
            let value = value as i64;
            let cell = (value, value, user.as_str(), conversation.0, position.change_epoch as i64);
            (statement.clone().into(), cell)
        })
        .unzip();
    let batch = shelf.driver.together(Batch::new_with_statements(BatchType::Unlogged, written));
    shelf.driver.write_together(&batch, values).await
}

/// Members whose cells are written by one statement: some ten kilobytes.
const RECEIPTS_TOGETHER: usize = 100;

/// The cells of some members' receipts, each with its own value as timestamp. All are of one partition.
async fn receipts(shelf: &Shelf, entity: &[u8], items: &[StoredReceipt]) -> Result<(), Failure> {
    let statements = &shelf.statements;
    let cells = items.iter().flat_map(|item| {
        let cells = [
            (&statements.receipt_read, item.read_n),
            (&statements.receipt_delivered, item.delivered_n),
            (&statements.receipt_shown, item.shown_n),
        ];
        // What is absent counts as 0.
        let cells = cells.into_iter().filter(|(_, value)| *value > 0);
        cells.map(move |(statement, value)| {
            (statement.clone().into(), (value as i64, value as i64, entity, &*item.user))
        })
    });
    let (written, values): (Vec<_>, Vec<_>) = cells.unzip();
    if written.is_empty() {
        return Ok(());
    }
    let batch = shelf.driver.together(Batch::new_with_statements(BatchType::Unlogged, written));
    shelf.driver.write_together(&batch, values).await
}

/// Members whose rows are written by one statement: some ten kilobytes.
const MEMBERS_TOGETHER: usize = 100;

/// Some members' rows. All are of one partition.
async fn write_members(shelf: &Shelf, entity: &[u8], members: &[StoredMember]) -> Result<(), Failure> {
    let row =
        |member: &StoredMember| (entity.to_vec(), member.user.clone(), seal(Kind::Member, member), member.as_of as i64);
    let values: Vec<_> = members.iter().map(row).collect();
    let written = vec![shelf.statements.member.clone().into(); values.len()];
    let batch = shelf.driver.together(Batch::new_with_statements(BatchType::Unlogged, written));
    shelf.driver.write_together(&batch, values).await
}

/// Entities in one row of what a session did.
const ACTIVITY_ROW: usize = 500;

/// Notes in which entities a session commits in a minute of its.
pub(super) async fn note_active(
    shelf: &Shelf,
    session: i64,
    minute: u64,
    first_row: i64,
    entities: &[EntityId],
) -> Result<(), Failure> {
    let rows = entities.chunks(ACTIVITY_ROW).zip(first_row..).map(|(chunk, row)| async move {
        let keys: Vec<Vec<u8>> = chunk.iter().map(EntityId::to_key).collect();
        shelf.driver.write(&shelf.statements.active, (session, minute as i64, row, keys)).await
    });
    join_all(rows).await.into_iter().collect::<Result<(), _>>()?;
    shelf.rows.activity.increment(entities.len().div_ceil(ACTIVITY_ROW) as u64);
    Ok(())
}

/// How many rows that takes.
pub(super) const fn activity_rows(entities: usize) -> i64 {
    entities.div_ceil(ACTIVITY_ROW) as i64
}

/// The yardstick of the log: the same rows again and again, each time higher up, by the driver alone.
pub struct Raw {
    shelf: Arc<Shelf>,
    rows: Vec<LogValues<'static>>,
}

impl Raw {
    /// Rows like those of an append of at most [`APPEND_EVENTS_MAX`] events. The entity's name is kept for as long as the process lives.
    pub(super) fn new(shelf: Arc<Shelf>, append: &Append) -> Self {
        Self { shelf, rows: values(append.entity.to_key().leak(), append) }
    }

    /// Inserts them, the first at `first`, in one batch. Buckets are not crossed: `first - 1` is a multiple of the rows' count, and
    /// that a power of two.
    ///
    /// # Errors
    /// When nobody knows that it was done.
    pub async fn insert(&mut self, first: Seq) -> Result<(), Error> {
        for (row, seq) in self.rows.iter_mut().zip(first..) {
            (row.bucket, row.seq, row.timestamp) = (log_bucket(seq), seq as i64, seq as i64);
        }
        let batch = self.shelf.statements.log_rows(self.rows.len());
        let batch = batch.ok_or_else(|| Error::Unavailable("too many rows for one batch".to_owned()))?;
        self.shelf.driver.batch(batch, &self.rows).await.map_err(Failure::into_error)
    }
}
