//! Where the newest map hangs: put up by Raft, or by the stream that a node without a vote follows.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    control::Watcher,
    ownership::{Map, Recent, Update},
};

#[derive(Default)]
pub(super) struct Board {
    recent: Mutex<Recent>,
    /// Locked while they are called, so that they hear of maps in order. Locked before `recent`.
    watchers: Mutex<(u64, Vec<Watcher>)>,
    changed: Notify,
}

impl Board {
    pub(super) fn map(&self) -> Map {
        self.recent.lock().map().clone()
    }

    pub(super) fn version(&self) -> u64 {
        self.recent.lock().map().version()
    }

    /// Hangs up a map, if it is newer.
    pub(super) fn post(&self, map: &Map) {
        {
            let mut recent = self.recent.lock();
            if map.version() <= recent.map().version() {
                return;
            }
            recent.advance(map.clone());
        }
        self.changed.notify_waiters();
        self.tell();
    }

    /// Follows a stream.
    pub(super) fn follow(&self, update: Update) {
        let mut map = self.map();
        // Two streams bring the same; whoever is late finds its delta done.
        if map.follow(update).is_ok() {
            self.post(&map);
        }
    }

    pub(super) fn since(&self, version: u64) -> Option<Update> {
        self.recent.lock().since(version)
    }

    /// Waits for a map newer than `version`.
    pub(super) async fn newer(&self, version: u64) {
        loop {
            let changed = self.changed.notified();
            if self.version() > version {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        let mut watchers = self.watchers.lock();
        watcher(&self.map());
        watchers.1.push(watcher);
    }

    fn tell(&self) {
        let mut watchers = self.watchers.lock();
        let map = self.map();
        // Somebody else was quicker.
        if map.version() <= watchers.0 {
            return;
        }
        watchers.0 = map.version();
        for watcher in &watchers.1 {
            watcher(&map);
        }
    }
}
