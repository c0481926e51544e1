//! Who is here, for everybody in this process who wants to know.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Change, Watcher, peer::Peer};

pub(super) struct Roll {
    state: Mutex<State>,
    /// Locked while they are called, so that they hear of changes in order. Locked before `state`.
    watchers: Mutex<Vec<Watcher>>,
}

struct State {
    me: Peer,
    up: BTreeMap<u64, Peer>,
    down: BTreeMap<u64, Peer>,
}

impl Roll {
    pub(super) fn new(me: Peer) -> Self {
        let state = State { me, up: BTreeMap::new(), down: BTreeMap::new() };
        Self { state: Mutex::new(state), watchers: Mutex::default() }
    }

    pub(super) fn me(&self) -> Peer {
        self.state.lock().me
    }

    pub(super) fn up(&self) -> Vec<Peer> {
        self.state.lock().up.values().copied().collect()
    }

    pub(super) fn find(&self, uid: u64) -> Option<Peer> {
        self.state.lock().up.get(&uid).copied()
    }

    pub(super) fn down(&self) -> Vec<Peer> {
        self.state.lock().down.values().copied().collect()
    }

    pub(super) fn note(&self, change: &Change) {
        let watchers = self.watchers.lock();
        self.state.lock().note(change);
        watchers.iter().for_each(|watcher| watcher(change));
    }

    pub(super) fn forget(&self, uid: u64) {
        self.state.lock().down.remove(&uid);
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        let mut watchers = self.watchers.lock();
        let (up, down) = (self.up(), self.down());
        let known = up.into_iter().map(Change::Up).chain(down.into_iter().map(Change::Down));
        known.for_each(|known| watcher(&known));
        watchers.push(watcher);
    }
}

impl State {
    fn note(&mut self, change: &Change) {
        match *change {
            Change::Up(peer) => {
                self.down.remove(&peer.uid);
                self.up.insert(peer.uid, peer);
            }
            Change::Down(peer) => {
                self.up.remove(&peer.uid);
                self.down.insert(peer.uid, peer);
            }
            Change::Renewed(me) => self.me = me,
        }
    }
}
