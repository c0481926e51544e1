//! The tables of the embedded log and how each is tuned. Every use of the engine's options stands here.
//!
//! What was measured (`examples/embedded_rows.rs`) decides: see the comments at each option.

use std::{path::Path, sync::Arc};

use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch as Batch, PersistMode,
    compaction::Leveled,
    config::{BlockSizePolicy, CompressionPolicy, FilterPolicy},
};

use super::config::Config;

/// The tables' names, as they stand in the directory.
pub(super) const TABLES: [&str; 7] = ["log", "snapshot", "ids", "overlay", "inbox", "announce", "note"];

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
}

impl Tables {
    /// Opens the engine, creating it and its tables where they do not exist.
    ///
    /// # Errors
    /// What the engine says.
    pub(super) fn open(path: &Path, config: &Config) -> fjall::Result<Self> {
        let db = Database::builder(path)
            .cache_size(config.cache_size.get())
            .max_journaling_size(config.journal_size_max.get().max(JOURNALS_MIN))
            // Two: while one merges, the other flushes, else writers wait for the merge.
            .worker_threads(1)
            // The engine compares a journal with what it would write today, compressor included: a compressor that
            // changes with an upgrade would make a journal unreadable. It also costs the committer time.
            .journal_compression(CompressionType::None)
            .open()?;
        let log = db.keyspace("log", || log_options(config))?;
        let table = |name| db.keyspace(name, || table_options(config));
        Ok(Self {
            log,
            snapshot: table("snapshot")?,
            ids: table("ids")?,
            overlay: table("overlay")?,
            inbox: table("inbox")?,
            announce: table("announce")?,
            note: table("note")?,
            db,
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

    /// The tables that exist, whether this program knows them or not.
    pub(super) fn count(&self) -> usize {
        self.db.keyspace_count()
    }
}

/// The engine refuses less.
const JOURNALS_MIN: u64 = 64 * 1024 * 1024;

fn log_options(config: &Config) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(config.log_memtable_size.get())
        // The log is read in ranges only; a filter answers point reads, and building it is work at every merge.
        .filter_policy(FilterPolicy::disabled())
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
        .data_block_compression_policy(CompressionPolicy::new([CompressionType::None, CompressionType::None, CompressionType::Lz4]))
        .compaction_strategy(Arc::new(Leveled::default()))
}

fn table_options(config: &Config) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(config.table_memtable_size.get())
}
