//! A disk in memory that forgets at a crash what was not synced, for simulations and tests.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    super::memory::Random,
    disk::{Batch, Disk, Done},
};

/// What survives. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Platter {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    synced: BTreeMap<Vec<u8>, Bytes>,
    pending: Vec<Batch>,
    /// Which mount may write: what a crashed one still sends goes nowhere.
    mount: u64,
    syncs: u64,
    /// Microseconds that a sync takes, from and to; and what decides.
    slow: Option<((u64, u64), Random)>,
    /// A planted bug: syncs that are claimed and not done.
    lies: bool,
}

/// The disk as one life of a node has it.
pub struct Mounted {
    platter: Platter,
    mount: u64,
}

impl Platter {
    /// The disk for a node that starts.
    #[must_use]
    pub fn mount(&self) -> Mounted {
        let mut state = self.state.lock();
        state.mount += 1;
        Mounted { platter: self.clone(), mount: state.mount }
    }

    /// The power is cut: what was not synced is gone, and nothing is written until it is mounted again.
    pub fn crash(&self) {
        let mut state = self.state.lock();
        state.pending.clear();
        state.mount += 1;
    }

    /// The disk is lost with all that was on it.
    pub fn wipe(&self) {
        self.crash();
        self.state.lock().synced.clear();
    }

    /// Syncs take so many microseconds, from and to; what is written meanwhile is lost in a crash. To be used within a runtime.
    pub fn slow(&self, takes: (u64, u64), seed: u64) {
        self.state.lock().slow = Some((takes, Random::new(seed)));
    }

    /// From now on syncs are claimed and not done: a planted bug, for tests that must find it.
    pub fn lie(&self) {
        self.state.lock().lies = true;
    }

    /// How often something was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }
}

impl State {
    fn sync(&mut self) {
        self.syncs += 1;
        if self.lies {
            return;
        }
        for batch in std::mem::take(&mut self.pending) {
            for (key, value) in batch.steps {
                match value {
                    Some(value) => self.synced.insert(key, value),
                    None => self.synced.remove(&key),
                };
            }
        }
    }
}

impl Disk for Mounted {
    fn load(&self) -> io::Result<BTreeMap<Vec<u8>, Bytes>> {
        Ok(self.platter.state.lock().synced.clone())
    }

    fn write(&self, batch: Batch, done: Option<Done>) {
        let mut state = self.platter.state.lock();
        if state.mount != self.mount {
            // A life that is over hears nothing any more.
            return;
        }
        state.pending.push(batch);
        let Some(done) = done else { return };
        let Some(((least, most), random)) = &mut state.slow else {
            state.sync();
            drop(state);
            return done(Ok(()));
        };
        let takes = Duration::from_micros(*least + random.below(most.saturating_sub(*least) + 1));
        let (platter, mount) = (self.platter.clone(), self.mount);
        tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            {
                let mut state = platter.state.lock();
                if state.mount != mount {
                    return;
                }
                state.sync();
            }
            done(Ok(()));
        });
    }
}
