//! The disk of a real node: the embedded engine in a folder of its own, and one thread that writes.
//!
//! ```text
//! raft/
//!   lock     held by the process that has the folder open
//!   log/     the engine's files, made as log.new
//! ```
//!
//! What nobody waits for is held in memory until something comes that is synced, and goes to the disk in the same batch
//! with it. So every batch of the engine is synced before the next one is written: after a crash nothing is there that is
//! later than something missing, and a torn end of the journal can be told from damage ([`journal`](crate::engine::journal)).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Instant,
};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use metrics::Histogram;
use parking_lot::Mutex;

use super::disk::{Batch, Disk, Done};
use crate::{
    engine::{self, Error, MEMTABLE_SIZE, Sizes, folder, in_words, is_full},
    process::metrics::RAFT_LOG_FSYNC_DURATION_SECONDS,
};

/// A folder with Raft's part of a node's data. The thread ends, what it still holds is written, and the engine is closed,
/// when it is dropped; its drop waits for that.
pub struct Folder {
    found: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    /// Only a drop takes the two.
    writer: Option<Sender<(Batch, Option<Done>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.writer = None;
        // Whoever was told of a write may be the last to hold it, on this very thread.
        let thread = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        // A panic of the engine is noted where it happens.
        let _ = thread.map(JoinHandle::join);
    }
}

const LOCK: &str = "lock";
const LOG: &str = "log";
const UNFINISHED: &str = "log.new";

/// The one table's name, as it stands in the folder.
const TABLE: &str = "raft";

/// All that is there is read at the start and kept in memory by its user; the journals hold a thousand times what is
/// written between two snapshots, and their size bounds the time of a start.
const SIZES: Sizes = Sizes { cache: 1024 * 1024, journals: 64 * 1024 * 1024 };

/// Some forty snapshots, or all entries between two of them, become a file at once.
const MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;

impl Folder {
    /// Opens the folder, or makes it. Blocks until all that is found there is known to be on the disk, and whole.
    ///
    /// # Errors
    /// With a sentence for the operator. Nothing of what is damaged is used: a node that went on with less than it had
    /// voted for or taken over would break what others count on.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::take(path).map_err(|error| {
            let kind = match &error {
                Error::InUse(_) => io::ErrorKind::ResourceBusy,
                Error::Damaged(_) => io::ErrorKind::InvalidData,
                Error::Io { source, .. } => source.kind(),
                Error::Engine(_) => io::ErrorKind::Other,
            };
            let sentence = match error {
                Error::Damaged(what) => format!(
                    "{} is damaged: {what}; nothing of it is used. Remove this folder, and the node joins its cluster as a new \
                     one (an older copy must never be put in its place)",
                    path.display()
                ),
                Error::Engine(why) => format!("{} cannot be opened: {why}", path.display()),
                other => other.to_string(),
            };
            io::Error::new(kind, sentence)
        })
    }

    fn take(path: &Path) -> Result<Self, Error> {
        let failed = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed("create"))?;
        let lock = folder::lock(&path.join(LOCK), path)?;
        let log = path.join(LOG);
        folder::prepare(&log, &path.join(UNFINISHED), |draft| {
            let db = engine::attempt(|| engine::open(draft, SIZES).map_err(|error| Error::of(draft, &error)))?;
            let made = db.keyspace(TABLE, options).and_then(|_| db.persist(PersistMode::SyncAll));
            made.map_err(|error| Error::of(draft, &error))
        })?;
        let (db, table, found) = engine::attempt(|| read(&log))?;
        let (writer, batches) = channel();
        let writing = Writer {
            db,
            table,
            held: BTreeMap::new(),
            failed: None,
            syncs: metrics::histogram!(RAFT_LOG_FSYNC_DURATION_SECONDS),
            _lock: lock,
        };
        let thread = thread::Builder::new().name("raft-disk".to_owned());
        let thread = thread.spawn(move || writing.run(&batches)).map_err(failed("start a thread for"))?;
        Ok(Self { found: Mutex::new(found), writer: Some(writer), thread: Some(thread) })
    }
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_SIZE)
}

type Everything = BTreeMap<Vec<u8>, Bytes>;

/// Opens the engine on a folder that was checked, and reads everything.
fn read(log: &Path) -> Result<(Database, Keyspace, Everything), Error> {
    let refused = |error| Error::of(log, &error);
    let db = engine::open(log, SIZES).map_err(refused)?;
    // The engine would make one that is missing.
    if !db.list_keyspace_names().iter().any(|name| &**name == TABLE) {
        return Err(Error::missing(TABLE));
    }
    let table = db.keyspace(TABLE, options).map_err(refused)?;
    let mut found = BTreeMap::new();
    for pair in table.iter() {
        let (key, value) = pair.into_inner().map_err(refused)?;
        found.insert(key.to_vec(), Bytes::from(value));
    }
    Ok((db, table, found))
}

impl Disk for Folder {
    fn load(&self) -> io::Result<BTreeMap<Vec<u8>, Bytes>> {
        Ok(std::mem::take(&mut *self.found.lock()))
    }

    fn write(&self, batch: Batch, done: Option<Done>) {
        let unsent = match &self.writer {
            Some(writer) => writer.send((batch, done)).err().map(|unsent| unsent.0),
            None => Some((batch, done)),
        };
        if let Some((_, Some(done))) = unsent {
            done(Err(io::Error::other("the disk's thread has ended")));
        }
    }
}

/// What the thread has.
struct Writer {
    db: Database,
    table: Keyspace,
    /// What is to be written with the next that is synced; of several steps with one key the last. It is as much as Raft
    /// does between two entries: a few positions, and the keys of what it purged.
    held: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Set once. What is on the disk is unknown then, so nothing is written any more.
    failed: Option<String>,
    syncs: Histogram,
    /// Last, so that the folder is free only when nothing touches it any more.
    _lock: File,
}

impl Writer {
    /// Takes everything that waits into one batch, as soon as somebody waits for some of it.
    fn run(mut self, batches: &Receiver<(Batch, Option<Done>)>) {
        while let Ok(first) = batches.recv() {
            let mut dones = Vec::new();
            for (batch, done) in std::iter::once(first).chain(batches.try_iter()) {
                self.held.extend(batch.steps);
                dones.extend(done);
            }
            if dones.is_empty() {
                continue;
            }
            self.sync();
            for done in dones {
                done(self.failed.clone().map_or(Ok(()), |why| Err(io::Error::other(why))));
            }
        }
        if !self.held.is_empty() {
            self.sync();
        }
    }

    /// Writes what is held as one batch, and syncs it.
    fn sync(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let began = Instant::now();
        let steps = std::mem::take(&mut self.held);
        let work = || -> fjall::Result<()> {
            let mut batch = OwnedWriteBatch::with_capacity(self.db.clone(), steps.len());
            for (key, value) in steps {
                match value {
                    Some(value) => batch.insert(&self.table, key, &value[..]),
                    None => batch.remove(&self.table, key),
                }
            }
            batch.durability(Some(PersistMode::SyncData)).commit()
        };
        let result = catch_unwind(AssertUnwindSafe(work));
        self.syncs.record(began.elapsed());
        let flushed = match result {
            Ok(Ok(())) if is_full(&self.table, MEMTABLE_BYTES) => self.table.rotate_memtable().map(drop),
            Ok(result) => result,
            Err(_) => {
                self.failed = Some("the engine panicked".to_owned());
                return;
            }
        };
        self.failed = flushed.err().map(|error| in_words(&error));
    }
}
