//! The embedded engine as this house uses it: for the log of a server that has no other, and for Raft's log on every node
//! of a cluster.
//!
//! - [`folder`]: a folder of the engine is there as a whole or not at all, and one process has it
//! - [`journal`]: what a crash or a bad disk left in it: repaired, or refused with a sentence
//!
//! Whoever opens the engine here syncs each batch before the next one is written: the check of the journal leans on it.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fjall::{AbstractTree, CompressionType, Database, Keyspace};

pub mod folder;
pub mod journal;

/// Why the engine's files cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has them.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// They are not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What the engine says.
    #[error("{0}")]
    Engine(String),
}

/// How much the engine may keep.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Blocks of the tables in memory.
    pub cache: u64,
    /// All journals on the disk.
    pub journals: u64,
}

/// The engine refuses less.
const JOURNALS_MIN: u64 = 64 * 1024 * 1024;

/// The engine is not asked to notice that a memtable is full. It would tell its worker so after every single write, in
/// a queue of a thousand places, until the worker has time; and the worker, once it has, waits for a free place in that
/// same queue: for ever, if it is the only one. Whoever writes looks with [`is_full`] and has it flushed once.
pub const MEMTABLE_SIZE: u64 = u64::MAX;

/// Sealed memtables of a table, at which the engine does not make writers wait yet.
const SEALED_MAX: usize = 3;

/// How many times its size a memtable may grow while its sealed predecessors wait.
const GROWTH_MAX: u64 = 4;

/// Whether a table's memtable, which is to grow to this size, is to be flushed (`rotate_memtable`).
#[must_use]
pub fn is_full(table: &Keyspace, size: u64) -> bool {
    // With one more sealed memtable the engine makes writers wait, for a tenth of a second each time. While its worker is at
    // a long merge the active one grows instead, as far as memory allows.
    let size = if table.tree.sealed_memtable_count() < SEALED_MAX { size } else { size * GROWTH_MAX };
    table.tree.active_memtable().size() > size
}

/// Opens the engine on a folder, or makes it.
///
/// # Errors
/// What the engine says.
pub fn open(path: &Path, sizes: Sizes) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(sizes.cache)
        .max_journaling_size(sizes.journals.max(JOURNALS_MIN))
        // One: of two, the engine's first passes the other's merges round and round in its queue until they are done,
        // which takes a whole core. Memtables wait while one merges; there is room for four.
        .worker_threads(1)
        // The engine compares a journal with what it would write today, compressor included: a compressor that changes
        // with an upgrade would make a journal unreadable. It also costs whoever writes time.
        .journal_compression(CompressionType::None)
        .open()
}

/// Does something with the engine that reads its files. It panics on some kinds of damage; here that is an error like the
/// others.
///
/// # Errors
/// What `act` says, or that it panicked.
pub fn attempt<T>(act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(Error::Damaged("the engine cannot make sense of its files".to_owned())))
}

/// The engine's errors in words.
#[must_use]
pub fn in_words(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => source.to_string(),
        fjall::Error::Poisoned => "the engine has stopped after an earlier failure".to_owned(),
        fjall::Error::Storage(fjall::LsmError::ChecksumMismatch { .. }) => {
            "a file is damaged (checksum mismatch)".to_owned()
        }
        other => other.to_string(),
    }
}

impl Error {
    /// A table that was there is not.
    #[must_use]
    pub fn missing(table: &str) -> Self {
        Self::Damaged(format!("its table {table} is missing"))
    }

    /// What the engine says of the folder when it opens it.
    #[must_use]
    pub fn of(folder: &Path, error: &fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::InUse(folder.to_owned()),
            fjall::Error::Io(source) => Self::Engine(source.to_string()),
            other => Self::Damaged(format!("the engine refuses its files: {}", in_words(other))),
        }
    }
}
