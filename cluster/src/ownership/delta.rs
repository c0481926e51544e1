//! How a reader's map follows: what differs between two versions, and the last few differences.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use chappe_schema::id::{NodeUid, Partition, SessionId};
use serde::{Deserialize, Serialize};

use super::{ClusterGeneration, ClusterId, Ended, Map, Plan, PlanId, Row, Session, map::Contents};

/// What turns one version of a map into a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) identity: Option<(ClusterId, ClusterGeneration)>,
    pub(super) cluster_version: u16,
    pub(super) partitions: u32,
    pub(super) last_plan: PlanId,
    pub(super) sessions: BTreeMap<SessionId, Option<Session>>,
    pub(super) ended: BTreeMap<SessionId, Option<Ended>>,
    pub(super) rows: BTreeMap<Partition, Row>,
    pub(super) plans: BTreeMap<PlanId, Option<Plan>>,
    pub(super) retired: BTreeMap<NodeUid, Option<bool>>,
}

/// A delta that does not begin at the version at hand. The reader asks for a whole map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delta begins at version {from:x}, the map is at {at:x}")]
pub struct Mismatch {
    /// Where the delta begins.
    pub from: u64,
    /// Where the map is.
    pub at: u64,
}

/// What brings a reader up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// The reader has not the beginning of any delta at hand.
    Whole(Map),
    /// What changed since the reader's version.
    Changes(Delta),
}

/// The newest map and how it came about, for those who stream it to others.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    map: Map,
    deltas: VecDeque<Delta>,
    /// In all of them.
    rows: usize,
}

/// Deltas kept. A reader that is further behind gets a whole map.
const DELTAS_MAX: usize = 256;

/// Rows in all deltas that are kept, for each partition: beyond that a whole map is shorter than what leads to it.
const ROWS_MAX: usize = 2;

// === impl Delta ===

impl Delta {
    /// The version that it is applied to.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from
    }

    /// The version that comes of it.
    #[must_use]
    pub fn to(&self) -> u64 {
        self.to
    }

    /// The partitions that it touches.
    pub fn partitions(&self) -> impl Iterator<Item = (Partition, &Row)> {
        self.rows.iter().map(|(partition, row)| (*partition, row))
    }

    /// One delta for two in a row.
    ///
    /// # Errors
    /// When `later` does not begin where this one ends.
    pub fn then(mut self, later: &Self) -> Result<Self, Mismatch> {
        if later.from != self.to {
            return Err(Mismatch { from: later.from, at: self.to });
        }
        self.sessions.extend(later.sessions.clone());
        self.ended.extend(later.ended.clone());
        self.plans.extend(later.plans.clone());
        self.retired.extend(later.retired.clone());
        self.rows.extend(later.rows.clone());
        self.rows.retain(|partition, _| u32::from(partition.0) < later.partitions);
        Ok(Self {
            to: later.to,
            identity: later.identity,
            cluster_version: later.cluster_version,
            partitions: later.partitions,
            last_plan: later.last_plan,
            ..self
        })
    }
}

impl Map {
    /// What turns `older` into this.
    #[must_use]
    pub fn diff(&self, older: &Self) -> Delta {
        let (new, old) = (&*self.0, &*older.0);
        let rows = self.rows().filter(|(partition, row)| older.row(*partition).unwrap_or(&Row::EMPTY) != *row);
        Delta {
            from: old.version,
            to: new.version,
            identity: new.identity,
            cluster_version: new.cluster_version,
            partitions: self.partitions(),
            last_plan: new.last_plan,
            sessions: differences(&old.sessions, &new.sessions),
            ended: differences(&old.ended, &new.ended),
            rows: rows.map(|(partition, row)| (partition, row.clone())).collect(),
            plans: differences(&old.plans, &new.plans),
            retired: differences(&old.retired, &new.retired),
        }
    }

    /// Follows one delta.
    ///
    /// # Errors
    /// When the delta does not begin at this version; the map stays as it was.
    pub fn apply_delta(&mut self, delta: &Delta) -> Result<(), Mismatch> {
        if delta.from != self.0.version {
            return Err(Mismatch { from: delta.from, at: self.0.version });
        }
        let contents = Arc::make_mut(&mut self.0);
        let Contents { version, identity, cluster_version, sessions, ended, rows, plans, retired, last_plan } =
            contents;
        *version = delta.to;
        *identity = delta.identity;
        *cluster_version = delta.cluster_version;
        *last_plan = delta.last_plan;
        follow(sessions, &delta.sessions);
        follow(ended, &delta.ended);
        follow(plans, &delta.plans);
        follow(retired, &delta.retired);
        rows.resize(delta.partitions as usize, Row::EMPTY);
        for (partition, row) in &delta.rows {
            if let Some(place) = rows.get_mut(usize::from(partition.0)) {
                place.clone_from(row);
            }
        }
        Ok(())
    }

    /// Follows an update.
    ///
    /// # Errors
    /// As `apply_delta`.
    pub fn follow(&mut self, update: Update) -> Result<(), Mismatch> {
        match update {
            Update::Whole(map) => {
                *self = map;
                Ok(())
            }
            Update::Changes(delta) => self.apply_delta(&delta),
        }
    }
}

impl Row {
    pub(super) const EMPTY: Self = Self { owner: None, epoch: 0, by: None, former: Vec::new() };
}

fn differences<K: Ord + Copy, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (*key, None));
    let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value));
    gone.chain(changed.map(|(key, value)| (*key, Some(value.clone())))).collect()
}

fn follow<K: Ord + Copy, V: Clone>(map: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => map.insert(*key, value.clone()),
            None => map.remove(key),
        };
    }
}

// === impl Recent ===

impl Recent {
    /// The newest map.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Takes a newer map. One that is not newer is passed over.
    pub fn advance(&mut self, map: Map) {
        if map.version() <= self.map.version() {
            return;
        }
        let delta = map.diff(&self.map);
        self.rows += delta.rows.len();
        self.deltas.push_back(delta);
        self.map = map;
        let rows_max = ROWS_MAX * self.map.partitions() as usize;
        while self.deltas.len() > DELTAS_MAX || (self.rows > rows_max && self.deltas.len() > 1) {
            self.rows -= self.deltas.pop_front().map_or(0, |delta| delta.rows.len());
        }
    }

    /// What brings a reader at `version` up to date; none if it is, or is ahead.
    #[must_use]
    pub fn since(&self, version: u64) -> Option<Update> {
        if version >= self.map.version() {
            return None;
        }
        let mut later = self.deltas.iter().skip_while(|delta| delta.from != version);
        let first = later.next().cloned();
        let whole = || Update::Whole(self.map.clone());
        Some(first.and_then(|first| later.try_fold(first, Delta::then).ok()).map_or_else(whole, Update::Changes))
    }
}
