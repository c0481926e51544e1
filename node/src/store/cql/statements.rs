//! Every statement that the store sends, prepared once.

use chappe_schema::limit::APPEND_EVENTS_MAX;
use scylla::statement::{
    batch::{Batch, BatchType},
    prepared::PreparedStatement,
};

use super::{
    OpenError,
    driver::{Driver, PageSize},
};

/// Rows of the log in one answer: at the largest body, 16 MiB.
const LOG_PAGE: PageSize = PageSize(256);

/// Blocks of ids in one answer, of some 20 KiB each.
const BLOCKS_PAGE: PageSize = PageSize(16);

/// Prints of blocks in one answer, of 1 KiB each: most look-ups end within the youngest.
const PRINTS_PAGE: PageSize = PageSize(64);

/// Small rows in one answer.
const PAGE: PageSize = PageSize(1000);

pub(super) struct Statements {
    /// Rows of the log, one or several at once: `log[0]` holds one.
    log: Vec<Batch>,
    pub(super) log_row: PreparedStatement,
    pub(super) log_slice: PreparedStatement,
    pub(super) snapshot: PreparedStatement,
    pub(super) snapshot_of: PreparedStatement,
    pub(super) snapshot_seq: PreparedStatement,
    pub(super) id_block: PreparedStatement,
    pub(super) id_blocks: PreparedStatement,
    pub(super) id_print: PreparedStatement,
    pub(super) id_prints: PreparedStatement,
    pub(super) overlay: PreparedStatement,
    pub(super) overlay_slice: PreparedStatement,
    pub(super) overlays: PreparedStatement,
    pub(super) reaction: PreparedStatement,
    pub(super) reactions_of: PreparedStatement,
    pub(super) reacted: PreparedStatement,
    pub(super) inbox_last_seq: PreparedStatement,
    pub(super) inbox_last_n: PreparedStatement,
    pub(super) inbox_read_n: PreparedStatement,
    pub(super) inbox_message_at: PreparedStatement,
    pub(super) inbox_change: PreparedStatement,
    pub(super) inbox: PreparedStatement,
    pub(super) receipt_read: PreparedStatement,
    pub(super) receipt_delivered: PreparedStatement,
    pub(super) receipt_shown: PreparedStatement,
    pub(super) receipts: PreparedStatement,
    pub(super) member: PreparedStatement,
    pub(super) members: PreparedStatement,
    pub(super) announce: PreparedStatement,
    pub(super) announce_end: PreparedStatement,
    pub(super) announced: PreparedStatement,
    pub(super) fence: PreparedStatement,
    pub(super) fence_of: PreparedStatement,
    pub(super) register: PreparedStatement,
    pub(super) registry: PreparedStatement,
    pub(super) active: PreparedStatement,
    pub(super) activity: PreparedStatement,
    /// A bucket of reactions, of overlays and of the log: all of it, or some.
    pub(super) purge_bucket: [PreparedStatement; 3],
    pub(super) purge_some: [PreparedStatement; 3],
    pub(super) purge_ids: PreparedStatement,
    pub(super) purge_prints: PreparedStatement,
    pub(super) walk_snapshots: PreparedStatement,
    pub(super) walk_log: PreparedStatement,
    pub(super) claim: PreparedStatement,
    pub(super) claims: PreparedStatement,
}

impl Statements {
    /// # Errors
    /// When a table is missing or is not as it should be.
    pub(super) async fn prepare(driver: &Driver, keyspace: &str) -> Result<Self, OpenError> {
        let cql = |text: &str| text.replace("$", &format!("{keyspace}."));
        let writing = async |text: &str| driver.writing(&cql(text)).await;
        let reading = async |text: &str, page| driver.reading(&cql(text), page).await;
        let log_row = writing(
            "INSERT INTO $log (entity, bucket, seq, epoch, cw, origin, after, n, kind, sender, device, command_id, target_seq, \
             flags, created_at, body, meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
        )
        .await?;
        let log = (1..=APPEND_EVENTS_MAX).map(|count| driver.together(repeated(&log_row, count))).collect();
        Ok(Self {
            log,
            log_row,
            log_slice: reading(
                "SELECT seq, epoch, cw, origin, after, n, kind, sender, device, command_id, target_seq, flags, created_at, \
                 body, meta FROM $log WHERE entity = ? AND bucket = ? AND seq >= ? AND seq <= ?",
                LOG_PAGE,
            )
            .await?,
            snapshot: writing("INSERT INTO $snapshot (entity, seq, bytes) VALUES (?, ?, ?) USING TIMESTAMP ?").await?,
            snapshot_of: reading("SELECT seq, bytes FROM $snapshot WHERE entity = ?", PAGE).await?,
            snapshot_seq: reading("SELECT seq FROM $snapshot WHERE entity = ?", PAGE).await?,
            id_block: writing(
                "INSERT INTO $id_blocks (entity, bucket, block_end, ids) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            id_blocks: reading(
                "SELECT block_end, ids FROM $id_blocks WHERE entity = ? AND bucket = ? AND block_end >= ? AND block_end <= ?",
                BLOCKS_PAGE,
            )
            .await?,
            id_print: writing(
                "INSERT INTO $id_prints (entity, bucket, block_end, prints) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            id_prints: reading("SELECT block_end, prints FROM $id_prints WHERE entity = ? AND bucket = ?", PRINTS_PAGE)
                .await?,
            overlay: writing(
                "INSERT INTO $overlay (entity, bucket, target_seq, overlay) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
            )
            .await?,
            overlay_slice: reading(
                "SELECT target_seq, overlay FROM $overlay WHERE entity = ? AND bucket = ? AND target_seq >= ? AND \
                 target_seq <= ?",
                LOG_PAGE,
            )
            .await?,
            overlays: reading(
                "SELECT target_seq, overlay FROM $overlay WHERE entity = ? AND bucket = ? AND target_seq IN ?",
                LOG_PAGE,
            )
            .await?,
            reaction: writing(
                "INSERT INTO $reactions (entity, bucket, target_seq, key, user, reaction) VALUES (?, ?, ?, ?, ?, ?) \
                 USING TIMESTAMP ?",
            )
            .await?,
            reactions_of: reading(
                "SELECT key, reaction FROM $reactions WHERE entity = ? AND bucket = ? AND target_seq = ? AND key IN ? AND \
                 user = ?",
                PAGE,
            )
            .await?,
            reacted: reading(
                "SELECT user, reaction FROM $reactions WHERE entity = ? AND bucket = ? AND target_seq = ? AND key = ? AND \
                 user > ? LIMIT ?",
                PAGE,
            )
            .await?,
            inbox_last_seq: writing(&inbox_cell("last_seq")).await?,
            inbox_last_n: writing(&inbox_cell("last_n")).await?,
            inbox_read_n: writing(&inbox_cell("read_n")).await?,
            inbox_message_at: writing(&inbox_cell("message_at")).await?,
            inbox_change: writing(&inbox_cell("change")).await?,
            inbox: reading(
                "SELECT conversation, change_epoch, change, last_seq, last_n, read_n, message_at FROM $inbox WHERE user = ?",
                PAGE,
            )
            .await?,
            receipt_read: writing(&receipt_cell("read_n")).await?,
            receipt_delivered: writing(&receipt_cell("delivered_n")).await?,
            receipt_shown: writing(&receipt_cell("shown_n")).await?,
            receipts: reading("SELECT user, read_n, delivered_n, shown_n FROM $receipts WHERE entity = ?", PAGE).await?,
            member: writing("INSERT INTO $members (entity, user, member) VALUES (?, ?, ?) USING TIMESTAMP ?").await?,
            members: reading("SELECT user, member FROM $members WHERE entity = ? AND user > ? LIMIT ?", PAGE).await?,
            announce: writing("INSERT INTO $announce (lane, entity, seq) VALUES (?, ?, ?) USING TIMESTAMP ?").await?,
            announce_end: writing("DELETE FROM $announce USING TIMESTAMP ? WHERE lane = ? AND entity = ?").await?,
            announced: reading("SELECT entity FROM $announce WHERE lane = ?", PAGE).await?,
            fence: writing("INSERT INTO $session_fence (session) VALUES (?)").await?,
            fence_of: reading("SELECT session FROM $session_fence WHERE session = ?", PAGE).await?,
            register: writing("INSERT INTO $session_registry (cluster, session) VALUES (?, ?)").await?,
            registry: reading("SELECT session FROM $session_registry WHERE cluster = ?", PAGE).await?,
            active: writing("INSERT INTO $session_activity (session, minute, k, entities) VALUES (?, ?, ?, ?)").await?,
            activity: reading("SELECT entities FROM $session_activity WHERE session = ? AND minute >= ?", PAGE).await?,
            purge_bucket: [
                writing(&purge_bucket("reactions")).await?,
                writing(&purge_bucket("overlay")).await?,
                writing(&purge_bucket("log")).await?,
            ],
            purge_some: [
                writing(&purge_some("reactions", "target_seq")).await?,
                writing(&purge_some("overlay", "target_seq")).await?,
                writing(&purge_some("log", "seq")).await?,
            ],
            purge_ids: writing(&purge_some("id_blocks", "block_end")).await?,
            purge_prints: writing(&purge_some("id_prints", "block_end")).await?,
            walk_snapshots: reading(
                "SELECT token(entity), entity, bytes FROM $snapshot WHERE token(entity) > ? LIMIT ?",
                PAGE,
            )
            .await?,
            walk_log: reading(
                "SELECT DISTINCT token(entity, bucket), entity, bucket FROM $log WHERE token(entity, bucket) > ? LIMIT ?",
                PAGE,
            )
            .await?,
            claim: writing("INSERT INTO $cluster_meta (key, generation, node, cluster) VALUES (?, ?, ?, ?)").await?,
            claims: reading("SELECT generation, node, cluster FROM $cluster_meta WHERE key = ?", PAGE).await?,
        })
    }

    /// So many rows of one partition of the log, at once.
    pub(super) fn log_rows(&self, count: usize) -> Option<&Batch> {
        count.checked_sub(1).and_then(|index| self.log.get(index))
    }
}

/// One cell of an inbox row: a register that only grows, by its own value.
fn inbox_cell(column: &str) -> String {
    format!("UPDATE $inbox USING TIMESTAMP ? SET {column} = ? WHERE user = ? AND conversation = ? AND change_epoch = ?")
}

/// One cell of a receipt, in the same way.
fn receipt_cell(column: &str) -> String {
    format!("UPDATE $receipts USING TIMESTAMP ? SET {column} = ? WHERE entity = ? AND user = ?")
}

/// A whole partition.
fn purge_bucket(table: &str) -> String {
    format!("DELETE FROM ${table} USING TIMESTAMP ? WHERE entity = ? AND bucket = ?")
}

/// A part of one.
fn purge_some(table: &str, seq: &str) -> String {
    format!("DELETE FROM ${table} USING TIMESTAMP ? WHERE entity = ? AND bucket = ? AND {seq} > ? AND {seq} <= ?")
}

fn repeated(statement: &PreparedStatement, count: usize) -> Batch {
    Batch::new_with_statements(BatchType::Unlogged, vec![statement.clone().into(); count])
}
