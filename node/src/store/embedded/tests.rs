//! The embedded store: the contract, then what only it promises: crashes at any byte, damage anywhere, a full disk.

use std::{
    path::PathBuf,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::store::contract::{self, Harness, ask, conversation, make_durable, message, rows};

/// Small, so that tests see flushes and merges.
fn small() -> Config {
    use chappe_cluster::process::config::ByteSize;
    Config {
        cache_size: ByteSize::mib(4),
        journal_size_max: ByteSize::mib(64),
        log_memtable_size: ByteSize::kib(256),
        table_memtable_size: ByteSize::kib(64),
        free_space_min: ByteSize::mib(1),
    }
}

/// A fatal hook that fails the test.
fn never() -> Fatal {
    Arc::new(|why| panic!("unexpected: {why}"))
}

fn open(directory: &Path) -> Embedded {
    Embedded::open(directory, &small(), never()).unwrap_or_else(|error| panic!("{error}"))
}

/// A directory and its present owner.
struct Owner {
    directory: TempDir,
    store: Option<Arc<Embedded>>,
}

impl Owner {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Some(Arc::new(open(directory.path())));
        Self { directory, store }
    }
}

impl Harness for Owner {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap()) as _
    }

    fn succeed(&mut self) {
        // Dropped without a word.
        self.store = None;
        self.store = Some(Arc::new(open(self.directory.path())));
    }

    fn turn(&mut self) {
        thread::sleep(Duration::from_micros(100));
    }

    fn zombie(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn lose_next_reply(&mut self) -> bool {
        false
    }

    fn delay_next_append(&mut self) -> bool {
        false
    }

    fn deliver_late(&mut self) {}
}

#[test]
fn embedded_store_keeps_the_contract() {
    contract::run(&|| Box::new(Owner::new()));
}
