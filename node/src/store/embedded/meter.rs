//! What operators see of the embedded log beside what every store shows.

use std::ops::Deref;

use chappe_cluster::process::metrics::{STORE_DISK_BYTES, STORE_DISK_FREE_BYTES, STORE_WAL_FSYNC_DURATION_SECONDS};
use metrics::{Gauge, Histogram, gauge, histogram};

use crate::store::meter::{Operations, Rows};

pub(super) use crate::store::meter::Operation;

pub(super) struct Meter {
    operations: Operations,
    pub(super) rows: Rows,
    pub(super) commit: Histogram,
    disk_bytes: Gauge,
    disk_free: Gauge,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            operations: Operations::new("embedded"),
            rows: Rows::new(),
            commit: histogram!(STORE_WAL_FSYNC_DURATION_SECONDS),
            disk_bytes: gauge!(STORE_DISK_BYTES),
            disk_free: gauge!(STORE_DISK_FREE_BYTES),
        }
    }

    /// What the watch saw.
    pub(super) fn disk(&self, used: Option<u64>, free: Option<u64>) {
        if let Some(used) = used {
            self.disk_bytes.set(used as f64);
        }
        if let Some(free) = free {
            self.disk_free.set(free as f64);
        }
    }
}

impl Deref for Meter {
    type Target = Operations;
    fn deref(&self) -> &Operations {
        &self.operations
    }
}
