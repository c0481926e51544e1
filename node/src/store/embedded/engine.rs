//! The tables of the embedded log and how each is tuned. Every use of the engine's options stands here.
//!
//! What was measured (`examples/embedded_rows.rs`) decides: see the comments at each option.

use std::{path::Path, sync::Arc};

use chappe_cluster::engine::{Error, MEMTABLE_SIZE, Sizes, is_full};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch as Batch, PersistMode,
    compaction::Leveled,
    config::{BlockSizePolicy, CompressionPolicy, FilterPolicy},
};

use super::config::Config;

/// The tables' names, as they stand in the directory, in the order in which they came up: later ones behind.
pub(super) const TABLES: [&str; 10] =
    ["log", "snapshot", "ids", "overlay", "inbox", "announce", "note", "reaction", "receipts", "members"];

/// Tables that every directory has had from its beginning.
pub(super) const FIRST_TABLES: usize = 7;

/// Handles on all tables. A clone is eight counters; the engine is closed when the last is dropped.
#[derive(Clone)]
pub(super) struct Tables {
    db: Database,
    pub(super) log: Keyspace,
    pub(super) snapshot: Keyspace,
    pub(super) ids: Keyspace,
    pub(super) overlay: Keyspace,
    pub(super) inbox: Keyspace,
    pub(super) announce: Keyspace,
    pub(super) note: Keyspace,
    pub(super) reaction: Keyspace,
    pub(super) receipts: Keyspace,
    pub(super) members: Keyspace,
    log_memtable_size: u64,
    table_memtable_size: u64,
}

impl Tables {
    /// Creates the engine and its tables.
    ///
    /// # Errors
    /// What the engine says.
    pub(super) fn create(path: &Path, config: &Config) -> Result<Self, Error> {
        let engine = |error| Error::of(path, &error);
        Self::with(database(path, config).map_err(engine)?, config).map_err(engine)
    }

    /// Opens the engine and its tables, and creates those that came up since the directory was used last. The engine
    /// would create any table that is not there: so that what was lost does not look as if it had never been, a table
    /// that the directory was `given`, as its notes say, must be there.
    ///
    /// # Errors
    /// The first table that is missing, or what the engine says.
    pub(super) fn open(path: &Path, config: &Config, given: impl FnOnce(&Keyspace) -> usize) -> Result<Self, Error> {
        let engine = |error| Error::of(path, &error);
        let db = database(path, config).map_err(engine)?;
        let there = db.list_keyspace_names();
        let missing = |names: &[&'static str]| {
            names.iter().find(|name| !there.iter().any(|known| &**known == **name)).map(|name| Error::missing(name))
        };
        if let Some(failure) = missing(&TABLES[..FIRST_TABLES]) {
            return Err(failure);
        }
        let note = db.keyspace("note", table_options).map_err(engine)?;
        let given = given(&note).clamp(FIRST_TABLES, TABLES.len());
        missing(&TABLES[..given]).map_or_else(|| Self::with(db, config).map_err(engine), Err)
    }

    fn with(db: Database, config: &Config) -> fjall::Result<Self> {
        let table = |name| db.keyspace(name, table_options);
        Ok(Self {
            log: db.keyspace("log", log_options)?,
            snapshot: table("snapshot")?,
            ids: table("ids")?,
            overlay: table("overlay")?,
            inbox: table("inbox")?,
            announce: table("announce")?,
            note: table("note")?,
            reaction: table("reaction")?,
            receipts: table("receipts")?,
            members: table("members")?,
            db,
            log_memtable_size: config.log_memtable_size.get(),
            table_memtable_size: config.table_memtable_size.get(),
        })
    }

    /// A batch that is synced when it is committed.
    pub(super) fn batch(&self, capacity: usize) -> Batch {
        Batch::with_capacity(self.db.clone(), capacity).durability(Some(PersistMode::SyncData))
    }

    /// A view that does not change.
    pub(super) fn view(&self) -> fjall::Snapshot {
        self.db.snapshot()
    }

    /// Whether a memtable is to be flushed.
    pub(super) fn is_full(&self) -> bool {
        self.full().next().is_some()
    }

    /// Hands full memtables to the engine's worker.
    pub(super) fn flush_full(&self) -> fjall::Result<()> {
        self.full().try_for_each(|table| table.rotate_memtable().map(drop))
    }

    fn full(&self) -> impl Iterator<Item = &Keyspace> {
        let others = [
            &self.snapshot,
            &self.ids,
            &self.overlay,
            &self.inbox,
            &self.announce,
            &self.note,
            &self.reaction,
            &self.receipts,
            &self.members,
        ];
        let sized = others.map(|table| (table, self.table_memtable_size)).into_iter();
        let sized = std::iter::once((&self.log, self.log_memtable_size)).chain(sized);
        sized.filter(|(table, size)| is_full(table, *size)).map(|(table, _)| table)
    }

    /// Syncs the journal with its metadata.
    pub(super) fn sync(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::SyncAll)
    }

    /// Whether the engine still works: its threads may have failed unseen.
    pub(super) fn check(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::Buffer)
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> Option<u64> {
        self.db.disk_space().ok()
    }
}

/// The engine with its notes and no other table touched.
#[cfg(test)]
pub(super) fn bare(path: &Path, config: &Config) -> fjall::Result<(Database, Keyspace)> {
    let db = database(path, config)?;
    let note = db.keyspace("note", table_options)?;
    Ok((db, note))
}

fn database(path: &Path, config: &Config) -> fjall::Result<Database> {
    let sizes = Sizes { cache: config.cache_size.get(), journals: config.journal_size_max.get() };
    chappe_cluster::engine::open(path, sizes)
}

fn log_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_SIZE)
        // The log is read in ranges only; a filter answers point reads, and building it is work at every merge.
        .filter_policy(FilterPolicy::disabled())
        // A page of a conversation is a few of these; smaller ones cost more index and compress worse.
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
        // What is young is merged again soon; compressing it costs more than writing it.
        .data_block_compression_policy(CompressionPolicy::new([
            CompressionType::None,
            CompressionType::None,
            CompressionType::Lz4,
        ]))
        // More flushes to a merge would be less merging (7 % of a row's CPU at eight), but longer merges, while which
        // nothing is flushed.
        .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(4)))
}

fn table_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_SIZE)
}
