//! The disk of a real node: the embedded engine in a folder of its own, and one thread that writes.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

use bytes::Bytes;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use parking_lot::Mutex;

use super::disk::{Batch, Disk, Done};
use crate::process::metrics::RAFT_LOG_FSYNC_DURATION_SECONDS;

/// A folder with Raft's part of a node's data. The thread ends, and the engine is closed, when it is dropped.
pub struct Folder {
    found: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    writer: Sender<(Batch, Option<Done>)>,
}

/// The one table's name, as it stands in the folder.
const TABLE: &str = "raft";

/// The least that the engine takes, and a thousand times what is written between two snapshots.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Small: all that is there is read at the start and kept in memory by its user.
const CACHE_BYTES: u64 = 1024 * 1024;

impl Folder {
    /// Opens the folder, or makes it. Whoever calls holds the lock on the data directory around it.
    ///
    /// # Errors
    /// What the system or the engine says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            // A compressor that changes with an upgrade would make a journal unreadable.
            .journal_compression(CompressionType::None)
            .open()
            .map_err(io::Error::other)?;
        let table = db.keyspace(TABLE, KeyspaceCreateOptions::default).map_err(io::Error::other)?;
        let mut found = BTreeMap::new();
        for pair in table.iter() {
            let (key, value) = pair.into_inner().map_err(io::Error::other)?;
            found.insert(key.to_vec(), Bytes::from(value));
        }
        // After a kill the kernel may show what is not on the disk yet, or never will be. What is about to be counted on is
        // written once more, as it is; that much the disk must sync.
        let mut again = OwnedWriteBatch::with_capacity(db.clone(), found.len()).durability(Some(PersistMode::SyncAll));
        for (key, value) in &found {
            again.insert(&table, &key[..], &value[..]);
        }
        again.commit().and_then(|()| db.persist(PersistMode::SyncAll)).map_err(io::Error::other)?;

        let (writer, batches) = channel();
        thread::Builder::new().name("raft-disk".to_owned()).spawn(move || write_all(&db, &table, &batches))?;
        Ok(Self { found: Mutex::new(found), writer })
    }
}

impl Disk for Folder {
    fn load(&self) -> io::Result<BTreeMap<Vec<u8>, Bytes>> {
        Ok(std::mem::take(&mut *self.found.lock()))
    }

    fn write(&self, batch: Batch, done: Option<Done>) {
        if let Err(unsent) = self.writer.send((batch, done))
            && let (_, Some(done)) = unsent.0
        {
            done(Err(io::Error::other("the disk's thread has ended")));
        }
    }
}

/// Takes everything that waits into one batch of the engine, with one sync if any of it asks for one.
fn write_all(db: &Database, table: &Keyspace, batches: &Receiver<(Batch, Option<Done>)>) {
    let syncs = metrics::histogram!(RAFT_LOG_FSYNC_DURATION_SECONDS);
    let mut failed: Option<String> = None;
    while let Ok(first) = batches.recv() {
        let mut dones = Vec::new();
        let mut joined = OwnedWriteBatch::with_capacity(db.clone(), first.0.steps.len());
        for (batch, done) in std::iter::once(first).chain(batches.try_iter()) {
            for (key, value) in batch.steps {
                match value {
                    Some(value) => joined.insert(table, key, &value[..]),
                    None => joined.remove(table, key),
                }
            }
            dones.extend(done);
        }
        if failed.is_none() {
            let began = Instant::now();
            let mode = if dones.is_empty() { PersistMode::Buffer } else { PersistMode::SyncData };
            failed = joined.durability(Some(mode)).commit().err().map(|error| error.to_string());
            if !dones.is_empty() {
                syncs.record(began.elapsed());
            }
        }
        for done in dones {
            done(failed.clone().map_or(Ok(()), |why| Err(io::Error::other(why))));
        }
    }
}
