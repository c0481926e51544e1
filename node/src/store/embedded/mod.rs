//! The log of one machine: an LSM tree in the data directory, one committer, fsync before every acknowledgement.
//!
//! - [`config`]: what an operator may set
//! - [`directory`]: whose directory it is, the lock, the first start, and that all of it is on disk and whole before it is read
//! - [`engine`]: the tables and how each is tuned
//! - [`key`]: how rows are named, and values that are not framed elsewhere
//! - [`commit`]: the one thread that writes
//! - [`read`]: what the reader threads do
//! - [`meter`]: what operators see of it
//!
//! Ownership is trivial here: the fence is the lock on the directory, the epoch is a counter of starts kept in it. A
//! row that is present counts as committed, so nothing is ever adopted.
//!
//! Four kinds of threads: the committer, [`READERS`] readers, a watch that looks at the disk and at the engine's
//! health once a second, and the engine's own workers (flush, compaction). All end with [`Embedded::close`].

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chappe_cluster::engine::in_words;
use chappe_schema::{
    id::{CommandId, ConversationId, EntityId, Millis, Seq, UserId},
    reaction::ReactionKey,
    stored::{LogRow, StoredId, StoredOverlay, StoredReaction},
};
use parking_lot::{Condvar, Mutex};

use super::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Store, Walked, Written, ids::Wanted,
};

mod commit;
mod config;
mod directory;
mod engine;
mod key;
mod meter;
mod read;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use directory::OpenError;

use commit::{Committer, Row, Rows};
use engine::Tables;
use meter::Meter;
use read::Readers;

/// Called at most once, with a sentence, when durability cannot be promised any longer (a failed write or sync). It
/// ends the process; from that moment the store answers nothing.
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// Threads that read. Two, so that one slow read (a cold page, a long recovery) does not hold up all others.
const READERS: usize = 2;

/// How often the watch looks at the disk and at the engine.
const WATCH: Duration = Duration::from_secs(1);

/// Free bytes on the volume of a path; a function so that tests can fill a disk that is not full.
type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// The embedded store. One per data directory and machine.
pub struct Embedded {
    session: Session,
    committer: Arc<Committer>,
    readers: Arc<Readers>,
    meter: Arc<Meter>,
    /// Taken by the first `close`.
    running: Mutex<Option<Running>>,
}

/// What ends with the store. The threads hold the only handles on the engine, so it is closed when they have ended.
struct Running {
    threads: Vec<JoinHandle<()>>,
    watch: Arc<Watch>,
    /// Last, so that the directory is free only when nothing touches it any more.
    lock: File,
}

// === impl Embedded ===

impl Embedded {
    /// Opens the log in `directory`, which is created if need be, and belongs to this process from now on.
    ///
    /// Blocks until everything found there is known to be on disk: that takes as long as the engine's journal is long.
    ///
    /// # Errors
    /// With a sentence for the operator; nothing was served.
    pub fn open(directory: &Path, config: &Config, fatal: Fatal) -> Result<Self, OpenError> {
        Self::open_with(directory, config, fatal, Arc::new(free_space))
    }

    fn open_with(directory: &Path, config: &Config, fatal: Fatal, free: FreeSpace) -> Result<Self, OpenError> {
        let (lock, tables, session) = directory::open(directory, config)?;
        let announced = read::announced_seqs(&tables).map_err(|source| OpenError::Engine {
            directory: directory.to_owned(),
            why: format!("its list of announcements cannot be read: {}", in_words(&source)),
        })?;
        let meter = Arc::new(Meter::new());
        let watch = Arc::new(Watch::default());
        let running = Running { threads: Vec::with_capacity(READERS + 2), watch: Arc::clone(&watch), lock };
        let store = Self {
            session,
            committer: Arc::new(Committer::new(Arc::clone(&meter), fatal)),
            readers: Arc::new(Readers::default()),
            meter: Arc::clone(&meter),
            running: Mutex::new(Some(running)),
        };
        // Dropped on an error, the store ends those threads that run already.
        let space = commit::Space::new(directory.to_owned(), config.free_space_min.get(), Arc::clone(&free));
        let (committer, own, alarm) = (Arc::clone(&store.committer), tables.clone(), Arc::clone(&watch));
        store.spawn(directory, "log-commit", move || committer.run(own, announced, space, &alarm))?;
        for _ in 0..READERS {
            let (readers, own) = (Arc::clone(&store.readers), tables.clone());
            store.spawn(directory, "log-read", move || readers.run(&own))?;
        }
        let (committer, watched) = (Arc::clone(&store.committer), directory.to_owned());
        store.spawn(directory, "log-watch", move || watch.run(&tables, &committer, &meter, &watched, &free))?;
        Ok(store)
    }

    fn spawn(&self, directory: &Path, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| OpenError::Io {
            doing: "start a thread for",
            path: directory.to_owned(),
            source,
        })?;
        if let Some(running) = &mut *self.running.lock() {
            running.threads.push(thread);
        }
        Ok(())
    }

    /// Commits what is waiting, answers it, ends the threads, closes the engine and frees the directory. Appends that
    /// come later are answered `NotWritten`, reads `Unavailable`. Called again, or from one of the store's own
    /// threads, it only asks for the end.
    pub fn close(&self) {
        self.committer.close();
        self.readers.close();
        let Some(running) = self.running.lock().take() else { return };
        running.watch.close();
        let me = thread::current().id();
        for thread in running.threads {
            // A callback may hold the last handle on the store; its thread cannot wait for itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!(event = "store_thread_panicked", "a thread of the log ended by a panic");
            }
        }
        drop(running.lock);
    }

    /// Hands a read to the readers. `done` is called on one of them.
    fn read<T: Send + 'static>(
        &self,
        operation: meter::Operation,
        done: Done<Result<T, Error>>,
        read: impl FnOnce(&Tables) -> Result<T, Error> + Send + 'static,
    ) {
        let asked = Instant::now();
        let (meter, committer) = (Arc::clone(&self.meter), Arc::clone(&self.committer));
        self.readers.submit(Box::new(move |tables| {
            if committer.has_failed() {
                return;
            }
            let result = match tables {
                Some(tables) => read(tables),
                None => Err(Error::Unavailable(CLOSED.to_owned())),
            };
            meter.answered(operation, asked, result.as_ref().err());
            done(result);
        }));
    }
}

const CLOSED: &str = "it is closed";

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Embedded {
    fn session(&self) -> Session {
        self.session
    }

    fn is_fenced(&self) -> bool {
        false
    }

    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>) {
        // Sealed here, on the shard's thread: encoding runs on all cores, committing on one.
        let mut rows = Rows { rows: Vec::with_capacity(group.len()), events: 0, bytes: 0 };
        for append in &group {
            let (Some(first), Some(last)) = (append.events.first(), append.events.last()) else { continue };
            debug_assert!(first.seq <= last.seq, "events of an append ascend");
            let value = LogRow::seal(append.epoch, append.cw, &append.events);
            let entity = append.entity.to_key();
            let key = key::with_seq(&entity, last.seq);
            rows.events += append.events.len();
            rows.bytes += key.len() + value.len();
            rows.rows.push(Row { key, value, announce: append.announce.then_some((entity, last.seq)) });
        }
        self.committer.append(rows, group.len(), done);
    }

    fn confirm(&self, _done: Done<Confirmation>) -> Option<Confirmation> {
        // The lock on the directory is the fence: whoever holds it is the only owner there can be.
        Some(if self.committer.has_failed() { Confirmation::Unknown } else { Confirmation::Clean })
    }

    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        self.read(meter::Operation::Recover, done, move |tables| read::recover(tables, &entity, ids_since));
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>) {
        self.read(meter::Operation::Page, done, move |tables| read::page(tables, &request));
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {
        self.read(meter::Operation::Overlay, done, move |tables| read::overlays(tables, &entity, &targets));
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
        self.read(meter::Operation::Reactions, done, move |tables| {
            read::reactions(tables, &entity, target, &user, keys)
        });
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>) {
        self.read(meter::Operation::Reacted, done, move |tables| read::reacted(tables, &request));
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    ) {
        self.read(meter::Operation::Members, done, move |tables| {
            read::members(tables, &conversation.into(), after.as_ref(), limit)
        });
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        (above, not_before): (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    ) {
        self.read(meter::Operation::FindId, done, move |tables| {
            read::find_id(tables, &entity, &Wanted { sender: &sender, id, above, not_before })
        });
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>) {
        let committer = Arc::clone(&self.committer);
        let found: Done<Result<read::Doomed, Error>> = Box::new(move |found| match found {
            Ok(doomed) if doomed.keys.is_empty() => done(Ok(doomed.complete)),
            Ok(doomed) => committer.remove(doomed, done),
            Err(error) => done(Err(error)),
        });
        self.read(meter::Operation::Purge, found, move |tables| read::doomed(tables, &purge));
    }

    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>) {
        self.read(meter::Operation::Walk, done, move |tables| read::walk(tables, from.as_deref(), limit, all));
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        self.committer.project(writes, done);
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>) {
        self.read(meter::Operation::Announced, done, read::announced);
    }
}

/// What may be written for a process without privileges.
fn free_space(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

// === the watch ===

/// Looks at the disk and at the engine once a second, and at once when the committer finds a memtable full.
///
/// A flush or a merge that fails stops the engine for good, and says so only to the next who writes: without the watch
/// an idle server would find out too late.
#[derive(Default)]
struct Watch {
    state: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    is_full: bool,
    closed: bool,
}

impl Watch {
    fn run(&self, tables: &Tables, committer: &Committer, meter: &Meter, directory: &Path, free: &FreeSpace) {
        let mut look = Instant::now();
        loop {
            // Both find out about an engine that has stopped.
            let mut health = tables.flush_full();
            if Instant::now() >= look {
                look = Instant::now() + WATCH;
                health = health.and_then(|()| tables.check());
                meter.disk(tables.disk_bytes(), free(directory).ok());
            }
            if let Err(error) = health {
                committer.fail(format!("the log can no longer be written: {}", in_words(&error)));
            }
            let mut state = self.state.lock();
            while !state.closed && !state.is_full && !self.changed.wait_until(&mut state, look).timed_out() {}
            state.is_full = false;
            if state.closed {
                return;
            }
        }
    }

    /// A memtable is full.
    fn wake(&self) {
        self.state.lock().is_full = true;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
