//! What operators see of the embedded log. Handles are looked up once.

use std::time::Instant;

use chappe_cluster::process::metrics::{
    STORE_DISK_BYTES, STORE_DISK_FREE_BYTES, STORE_ERRORS_TOTAL, STORE_EVENTS_WRITTEN_TOTAL,
    STORE_OPERATION_DURATION_SECONDS, STORE_ROWS_WRITTEN_TOTAL, STORE_WAL_FSYNC_DURATION_SECONDS,
};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::store::Error;

const BACKEND: &str = "embedded";

/// What is asked of a store.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    Append,
    Project,
    Recover,
    Page,
    Overlay,
    Reactions,
    Reacted,
    FindId,
    Announced,
}

const OPERATIONS: [(Operation, &str); 9] = [
    (Operation::Append, "append"),
    (Operation::Project, "project"),
    (Operation::Recover, "recover"),
    (Operation::Page, "page"),
    (Operation::Overlay, "overlay"),
    (Operation::Reactions, "reactions"),
    (Operation::Reacted, "reacted"),
    (Operation::FindId, "find_id"),
    (Operation::Announced, "announced"),
];

pub(super) struct Meter {
    operations: [ByOperation; OPERATIONS.len()],
    pub(super) rows: Rows,
    pub(super) events: Counter,
    pub(super) commit: Histogram,
    disk_bytes: Gauge,
    disk_free: Gauge,
}

/// Rows written, by table.
pub(super) struct Rows {
    pub(super) log: Counter,
    pub(super) snapshot: Counter,
    pub(super) ids: Counter,
    pub(super) overlay: Counter,
    pub(super) reaction: Counter,
    pub(super) inbox: Counter,
    pub(super) announce: Counter,
}

struct ByOperation {
    duration: Histogram,
    unavailable: Counter,
    corrupt: Counter,
}

impl Meter {
    pub(super) fn new() -> Self {
        let rows = |table: &'static str| counter!(STORE_ROWS_WRITTEN_TOTAL, "table" => table);
        Self {
            operations: OPERATIONS.map(|(_, operation)| {
                let errors = |kind: &'static str| {
                    counter!(STORE_ERRORS_TOTAL, "backend" => BACKEND, "operation" => operation, "kind" => kind)
                };
                ByOperation {
                    duration: histogram!(STORE_OPERATION_DURATION_SECONDS, "backend" => BACKEND, "operation" => operation),
                    unavailable: errors("unavailable"),
                    corrupt: errors("corrupt"),
                }
            }),
            rows: Rows {
                log: rows("log"),
                snapshot: rows("snapshot"),
                ids: rows("ids"),
                overlay: rows("overlay"),
                reaction: rows("reaction"),
                inbox: rows("inbox"),
                announce: rows("announce"),
            },
            events: counter!(STORE_EVENTS_WRITTEN_TOTAL),
            commit: histogram!(STORE_WAL_FSYNC_DURATION_SECONDS),
            disk_bytes: gauge!(STORE_DISK_BYTES),
            disk_free: gauge!(STORE_DISK_FREE_BYTES),
        }
    }

    /// An operation has its answer.
    pub(super) fn answered(&self, operation: Operation, asked: Instant, error: Option<&Error>) {
        let by = &self.operations[operation as usize];
        by.duration.record(asked.elapsed().as_secs_f64());
        match error {
            None => {}
            Some(Error::Unavailable(_)) => by.unavailable.increment(1),
            Some(Error::Corrupt { .. }) => by.corrupt.increment(1),
        }
    }

    /// An operation was refused because the disk is full or the store closed.
    pub(super) fn refused(&self, operation: Operation) {
        self.operations[operation as usize].unavailable.increment(1);
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
