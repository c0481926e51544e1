//! Raft's log: all of it in memory, as it is short, and all of it on a disk.
//!
//! - [`disk`]: what is asked of a disk
//! - [`engine`]: the embedded engine, in a folder
//! - [`simulated`]: in memory, and forgetful at a crash
//!
//! An appended entry and a vote are synced before anybody hears of them. Truncating, purging and the committed position are
//! not: writes reach the disk in order, so whatever is synced later finds them done, and a crash before that leaves what Raft can do
//! again.

use std::{collections::BTreeMap, fmt::Debug, io, ops::RangeBounds, sync::Arc};

use bytes::Bytes;
use chappe_schema::{id::NodeUid, stored::Corrupt};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::Mutex;

use self::disk::{Batch, Disk};
use super::{
    bootstrap::Group,
    stored::{NoteBytes, seal_entry, seal_note, unseal_entry, unseal_note},
    types::{Entry, LogId, StorageError, Types, Vote},
};

pub mod disk;
pub mod engine;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;

// Keys. An entry's is its letter and its index, high byte first: the order of keys is the order of the log.
const ENTRY: u8 = b'e';
const VOTE: &[u8] = b"v";
const COMMITTED: &[u8] = b"c";
const PURGED: &[u8] = b"p";
const GROUP: &[u8] = b"g";
const NODE: &[u8] = b"n";
pub(super) const SNAPSHOT: &[u8] = b"s";

/// What was found on a disk.
pub(super) struct Found {
    /// Who the node is: made at the first start, and lost with the disk.
    pub(super) node: Option<NodeUid>,
    /// Which group it takes part in.
    pub(super) group: Option<Group>,
    /// Its newest snapshot.
    pub(super) snapshot: Option<Bytes>,
    pub(super) log: Log,
}

/// A handle on the log; clones are the same.
#[derive(Clone)]
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

/// Reads a disk.
pub(super) fn load(disk: Arc<dyn Disk>) -> io::Result<Found> {
    let damaged = |key: &[u8], corrupt: Corrupt| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("Raft's part of the data ({}): {corrupt}", key.escape_ascii()),
        )
    };
    let (mut state, mut node, mut group, mut snapshot) = (State::default(), None, None, None);
    for (key, value) in disk.load()? {
        let note = || unseal_note(value.clone());
        let read = match &key[..] {
            VOTE => note().and_then(NoteBytes::into_vote).map(|vote| state.vote = Some(vote)),
            COMMITTED => note().and_then(NoteBytes::into_log_id).map(|id| state.committed = Some(id)),
            PURGED => note().and_then(NoteBytes::into_log_id).map(|id| state.purged = Some(id)),
            GROUP => note().and_then(NoteBytes::into_group).map(|found| group = Some(found)),
            NODE => note().map(|note| node = Some(NodeUid(note.into_node()))),
            SNAPSHOT => {
                snapshot = Some(value);
                Ok(())
            }
            [ENTRY, ..] => unseal_entry(value.clone()).map(|entry| {
                state.entries.insert(entry.log_id.index, entry);
            }),
            _ => Err(Corrupt::Content("a key of a newer program")),
        };
        read.map_err(|corrupt| damaged(&key, corrupt))?;
    }
    let first = state.purged.map_or(0, |purged| purged.index + 1);
    let holes = state.entries.keys().zip(first..).any(|(index, expected)| *index != expected);
    if holes {
        return Err(damaged(&[ENTRY], Corrupt::Content("entries are missing in the middle of the log")));
    }
    Ok(Found { node, group, snapshot, log: Log { disk, state: Arc::new(Mutex::new(state)) } })
}

/// Makes a node's name durable.
pub(super) async fn name(disk: &dyn Disk, node: NodeUid) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.set(NODE, seal_note(&NoteBytes::node(node.0)));
    disk::write(disk, batch).await
}

impl Log {
    /// Makes it durable that the node takes part in a group; what it knew of another one is removed in the same step.
    pub(super) async fn enter(&self, group: Group) -> io::Result<()> {
        let mut batch = Batch::default();
        for key in [VOTE, COMMITTED, PURGED, SNAPSHOT] {
            batch.remove(key);
        }
        let entries = std::mem::take(&mut *self.state.lock()).entries;
        for index in entries.into_keys() {
            batch.remove(key(index));
        }
        batch.set(GROUP, seal_note(&NoteBytes::group(group)));
        disk::write(&*self.disk, batch).await
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    fn write(&self, batch: Batch) {
        self.disk.write(batch, None);
    }
}

fn key(index: u64) -> Vec<u8> {
    let mut key = vec![ENTRY];
    key.extend_from_slice(&index.to_be_bytes());
    key
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.state.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let state = self.state.lock();
        let last = state.entries.values().next_back().map(|entry| entry.log_id).or(state.purged);
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.set(VOTE, seal_note(&NoteBytes::vote(vote)));
        disk::write(&*self.disk, batch).await.map_err(|error| failed(ErrorSubject::Vote, &error))?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.state.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        match committed {
            Some(id) => batch.set(COMMITTED, seal_note(&NoteBytes::log_id(id))),
            None => batch.remove(COMMITTED),
        }
        self.state.lock().committed = committed;
        self.write(batch);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        {
            let mut state = self.state.lock();
            for entry in entries {
                batch.set(key(entry.log_id.index), seal_entry(&entry));
                state.entries.insert(entry.log_id.index, entry);
            }
        }
        self.disk.write(batch, Some(Box::new(move |result| callback.log_io_completed(result))));
        Ok(())
    }

    async fn truncate(&mut self, id: LogId) -> Result<(), StorageError> {
        let cut = self.state.lock().entries.split_off(&id.index);
        let mut batch = Batch::default();
        cut.into_keys().for_each(|index| batch.remove(key(index)));
        self.write(batch);
        Ok(())
    }

    async fn purge(&mut self, id: LogId) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        {
            let mut state = self.state.lock();
            let kept = state.entries.split_off(&(id.index + 1));
            let purged = std::mem::replace(&mut state.entries, kept);
            purged.into_keys().for_each(|index| batch.remove(key(index)));
            state.purged = Some(id);
        }
        batch.set(PURGED, seal_note(&NoteBytes::log_id(id)));
        self.write(batch);
        Ok(())
    }
}

pub(super) fn failed(subject: ErrorSubject<u64>, error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageError::from_io_error(subject, ErrorVerb::Write, io::Error::other(AnyError::new(error)))
}
