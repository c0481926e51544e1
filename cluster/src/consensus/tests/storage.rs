//! The log and the state on both disks, by openraft's own suite; and what a restart finds.

use std::{
    io,
    sync::{Arc, mpsc},
};

use chappe_schema::id::NodeUid;
use openraft::{
    Vote,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::super::{
    board::Board,
    bootstrap::Group,
    log::{
        self, Log,
        disk::{Batch, Disk},
        engine::Folder,
        simulated::Platter,
    },
    machine::Machine,
    stored::{seal_snapshot, unseal_snapshot},
    types::{Entry, Membership, SnapshotMeta, StorageError, StoredMembership, Types, log_id},
    voters::Seat,
};
use crate::ownership::{ClusterId, Command, Founding};

fn open(disk: Arc<dyn Disk>) -> (Log, Machine) {
    let found = log::load(Arc::clone(&disk)).unwrap();
    let machine = Machine::new(disk, Arc::new(Board::default()), found.snapshot).unwrap();
    (found.log, machine)
}

struct Folders;

impl StoreBuilder<Types, Log, Machine, TempDir> for Folders {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError> {
        let dir = TempDir::new().unwrap();
        let (log, machine) = open(Arc::new(Folder::open(dir.path()).unwrap()));
        Ok((dir, log, machine))
    }
}

struct Platters;

impl StoreBuilder<Types, Log, Machine, ()> for Platters {
    async fn build(&self) -> Result<((), Log, Machine), StorageError> {
        let (log, machine) = open(Arc::new(Platter::default().mount()));
        Ok(((), log, machine))
    }
}

#[test]
fn the_engine_passes_openrafts_suite() {
    Suite::test_all(Folders).unwrap();
}

#[test]
fn the_simulated_disk_passes_openrafts_suite() {
    Suite::test_all(Platters).unwrap();
}

pub(super) fn entries(indices: std::ops::Range<u64>) -> Vec<Entry> {
    let seats = |n: u64| (n, Seat { ordinal: n as u32, zone: "a".to_owned() });
    let membership = Membership::new(
        vec![[1, 2].into(), [2, 3].into()],
        (1..=4).map(seats).collect::<std::collections::BTreeMap<_, _>>(),
    );
    let payload = |index: u64| match index % 3 {
        0 => openraft::EntryPayload::Blank,
        1 => openraft::EntryPayload::Normal(Command::MarkFenced { session: index }),
        _ => openraft::EntryPayload::Membership(membership.clone()),
    };
    indices.map(|index| Entry { log_id: log_id(2, index), payload: payload(index) }).collect()
}

/// What a disk holds after everything was done to it, however it is opened.
async fn restart(open_again: impl Fn() -> Arc<dyn Disk>) {
    use openraft::RaftLogReader;

    let (mut log, _machine) = open(open_again());
    let vote = Vote::new_committed(2, 7);
    log.save_vote(&vote).await.unwrap();
    log.blocking_append(entries(0..20)).await.unwrap();
    log.truncate(log_id(2, 15)).await.unwrap();
    log.purge(log_id(2, 4)).await.unwrap();
    log.save_committed(Some(log_id(2, 9))).await.unwrap();
    log.blocking_append(entries(15..17)).await.unwrap();
    drop((log, _machine));

    let (mut log, _machine) = open(open_again());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 9)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(2, 4)), Some(log_id(2, 16))));
    assert_eq!(log.try_get_log_entries(0..100).await.unwrap(), entries(5..17));

    // A node that enters another group knows nothing of the one before, but who it is.
    log::name(&**log.disk(), NodeUid(77)).await.unwrap();
    let group = Group { cluster: ClusterId(5), generation: 2 };
    log.enter(group).await.unwrap();
    drop((log, _machine));
    let found = log::load(open_again()).unwrap();
    assert_eq!((found.node, found.group), (Some(NodeUid(77)), Some(group)));
    let mut log = found.log;
    assert_eq!(log.read_vote().await.unwrap(), None);
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
}

#[tokio::test]
async fn a_restart_finds_what_was_written_in_a_folder() {
    let dir = TempDir::new().unwrap();
    restart(|| Arc::new(super::folder::open(dir.path()).unwrap())).await;
}

#[tokio::test]
async fn a_restart_finds_what_was_written_in_memory() {
    let platter = Platter::default();
    restart(|| Arc::new(platter.mount())).await;
}

#[tokio::test]
async fn a_crash_forgets_what_was_not_synced() {
    let platter = Platter::default();
    let (mut log, _machine) = open(Arc::new(platter.mount()));
    log.blocking_append(entries(0..3)).await.unwrap();
    log.save_committed(Some(log_id(2, 2))).await.unwrap();
    platter.crash();
    // The life that is over does not write any more.
    let (told, tell) = mpsc::channel();
    let mut batch = Batch::default();
    batch.set(*b"v", bytes::Bytes::new());
    log.disk().write(batch, Some(Box::new(move |result: io::Result<()>| told.send(result.is_ok()).unwrap())));
    assert!(tell.recv().is_err(), "it hears nothing");
    let (mut log, _machine) = open(Arc::new(platter.mount()));
    assert_eq!(log.read_committed().await.unwrap(), None);
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 2)));
}

#[tokio::test]
async fn damaged_bytes_are_not_taken_for_a_log() {
    let platter = Platter::default();
    let (mut log, _machine) = open(Arc::new(platter.mount()));
    log.blocking_append(entries(0..3)).await.unwrap();
    let disk = platter.mount();
    let mut found = disk.load().unwrap();
    let (key, value) = found.pop_last().unwrap();
    let mut flipped = value.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let mut batch = Batch::default();
    batch.set(key, flipped.into());
    log::disk::write(&disk, batch).await.unwrap();
    let error = log::load(Arc::new(platter.mount())).err().unwrap().to_string();
    assert!(error.contains("checksum"), "{error}");

    // Nor is one with a hole.
    let disk = platter.mount();
    let mut batch = Batch::default();
    for (key, _) in disk.load().unwrap().into_iter().skip(1).take(2) {
        batch.remove(key);
    }
    batch.set([&b"e"[..], &9u64.to_be_bytes()].concat(), super::super::stored::seal_entry(&entries(9..10)[0]));
    log::disk::write(&disk, batch).await.unwrap();
    let error = log::load(Arc::new(platter.mount())).err().unwrap().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_kept_and_found() {
    let platter = Platter::default();
    let (_log, mut machine) = open(Arc::new(platter.mount()));
    let founding = Founding { cluster: ClusterId(1), generation: 1, partitions: 64, version: 1 };
    let entry = Entry { log_id: log_id(1, 3), payload: openraft::EntryPayload::Normal(Command::Found(founding)) };
    machine.apply([entry]).await.unwrap();
    let built = openraft::RaftSnapshotBuilder::build_snapshot(&mut machine).await.unwrap();
    platter.crash();
    let board = Arc::new(Board::default());
    let found = log::load(Arc::new(platter.mount())).unwrap();
    let mut machine = Machine::new(Arc::new(platter.mount()), Arc::clone(&board), found.snapshot).unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 3)));
    assert_eq!(board.map().partitions(), 64);
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, built.meta);
}

#[test]
fn a_snapshots_bytes_come_back() {
    let membership = StoredMembership::new(
        Some(log_id(3, 9)),
        Membership::new(vec![[4].into()], [4u64].into_iter().collect::<std::collections::BTreeSet<_>>()),
    );
    for last_log_id in [None, Some(log_id(4, 12))] {
        let meta = SnapshotMeta { last_log_id, last_membership: membership.clone(), snapshot_id: "x".to_owned() };
        let state = bytes::Bytes::from_static(b"state");
        assert_eq!(unseal_snapshot(seal_snapshot(&meta, state.clone())).unwrap(), (meta, state));
    }
}
