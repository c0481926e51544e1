//! The replicated state as Raft drives it, and where the newest map hangs for everybody to see.

use std::{io::Cursor, sync::Arc};

use bytes::Bytes;
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine};
use parking_lot::Mutex;

use super::{
    board::Board,
    log::{
        SNAPSHOT,
        disk::{self, Batch, Disk},
        failed,
    },
    stored::{seal_snapshot, unseal_snapshot},
    types::{Entry, LogId, Response, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types},
};
use crate::{control::Answer, ownership::Ownership};

/// A handle on the state; clones are the same.
#[derive(Clone)]
pub(super) struct Machine {
    disk: Arc<dyn Disk>,
    board: Arc<Board>,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    last: Option<LogId>,
    membership: StoredMembership,
    ownership: Ownership,
    /// The newest snapshot that is on the disk.
    snapshot: Option<(SnapshotMeta, Bytes)>,
}

impl Machine {
    /// The state at the snapshot that was found; Raft applies what its log has beyond.
    pub(super) fn new(disk: Arc<dyn Disk>, board: Arc<Board>, snapshot: Option<Bytes>) -> std::io::Result<Self> {
        let machine = Self { disk, board, state: Arc::default() };
        if let Some(sealed) = snapshot {
            let damaged = |error: String| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            let (meta, bytes) = unseal_snapshot(sealed).map_err(|corrupt| damaged(corrupt.to_string()))?;
            machine.become_snapshot(meta, bytes).map_err(damaged)?;
        }
        Ok(machine)
    }

    fn become_snapshot(&self, meta: SnapshotMeta, bytes: Bytes) -> Result<(), String> {
        let ownership = Ownership::from_bytes(&bytes).map_err(|unreadable| unreadable.to_string())?;
        self.board.post(ownership.map());
        *self.state.lock() = State {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            ownership,
            snapshot: Some((meta, bytes)),
        };
        Ok(())
    }

    async fn keep(&self, meta: &SnapshotMeta, bytes: &Bytes) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.set(SNAPSHOT, seal_snapshot(meta, bytes.clone()));
        disk::write(&*self.disk, batch)
            .await
            .map_err(|error| failed(ErrorSubject::Snapshot(Some(meta.signature())), &error))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, ownership) = {
            let state = self.state.lock();
            let last = state.last.map_or(0, |last| last.index);
            let meta = SnapshotMeta {
                last_log_id: state.last,
                last_membership: state.membership.clone(),
                snapshot_id: format!("{}-{last}", state.last.map_or(0, |last| last.leader_id.term)),
            };
            (meta, state.ownership.clone())
        };
        let bytes = ownership.to_bytes();
        // One that came from the leader in the meantime is newer.
        let newer = |kept: &Option<(SnapshotMeta, Bytes)>| {
            kept.as_ref().is_some_and(|(kept, _)| kept.last_log_id > meta.last_log_id)
        };
        let superseded = newer(&self.state.lock().snapshot);
        if !superseded {
            self.keep(&meta, &bytes).await?;
            let mut state = self.state.lock();
            if !newer(&state.snapshot) {
                state.snapshot = Some((meta.clone(), bytes.clone()));
            }
        }
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes.into())) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.state.lock();
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut responses = Vec::new();
        let map = {
            let mut state = self.state.lock();
            for entry in entries {
                state.last = Some(entry.log_id);
                let answer = match entry.payload {
                    EntryPayload::Normal(command) => {
                        let result = state.ownership.apply(entry.log_id.index, &command);
                        Some(Answer { version: state.ownership.map().version(), result })
                    }
                    EntryPayload::Membership(membership) => {
                        state.membership = StoredMembership::new(Some(entry.log_id), membership);
                        None
                    }
                    EntryPayload::Blank => None,
                };
                responses.push(Response(answer));
            }
            state.ownership.map().clone()
        };
        self.board.post(&map);
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = Bytes::from(snapshot.into_inner());
        self.keep(meta, &bytes).await?;
        self.become_snapshot(meta.clone(), bytes).map_err(|why| {
            let subject = ErrorSubject::Snapshot(Some(meta.signature()));
            StorageError::from_io_error(subject, ErrorVerb::Read, std::io::Error::other(why))
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let kept = self.state.lock().snapshot.clone();
        Ok(kept.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(Cursor::new(bytes.into())) }))
    }
}
