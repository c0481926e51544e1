//! What operators see of a store: how long it takes to answer, what it could not do, the rows that it wrote. Handles are
//! looked up once.

use std::time::Instant;

use chappe_cluster::process::metrics::{
    STORE_ERRORS_TOTAL, STORE_EVENTS_WRITTEN_TOTAL, STORE_OPERATION_DURATION_SECONDS, STORE_ROWS_WRITTEN_TOTAL,
};
use metrics::{Counter, Histogram, counter, histogram};

use super::Error;

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
    Members,
    FindId,
    Purge,
    Walk,
    Announced,
    Confirm,
    Enrol,
    Fence,
    Activity,
}

const OPERATIONS: [(Operation, &str); 16] = [
    (Operation::Append, "append"),
    (Operation::Project, "project"),
    (Operation::Recover, "recover"),
    (Operation::Page, "page"),
    (Operation::Overlay, "overlay"),
    (Operation::Reactions, "reactions"),
    (Operation::Reacted, "reacted"),
    (Operation::Members, "members"),
    (Operation::FindId, "find_id"),
    (Operation::Purge, "purge"),
    (Operation::Walk, "walk"),
    (Operation::Announced, "announced"),
    (Operation::Confirm, "confirm"),
    (Operation::Enrol, "enrol"),
    (Operation::Fence, "fence"),
    (Operation::Activity, "activity"),
];

/// Operations and their outcomes.
pub(super) struct Operations([ByOperation; OPERATIONS.len()]);

/// Rows written, by table.
pub(super) struct Rows {
    pub(super) log: Counter,
    pub(super) snapshot: Counter,
    pub(super) ids: Counter,
    pub(super) overlay: Counter,
    pub(super) reaction: Counter,
    pub(super) inbox: Counter,
    pub(super) receipts: Counter,
    pub(super) members: Counter,
    pub(super) announce: Counter,
    pub(super) activity: Counter,
    /// Not rows but the events in them.
    pub(super) events: Counter,
}

struct ByOperation {
    duration: Histogram,
    unavailable: Counter,
    corrupt: Counter,
}

impl Operations {
    pub(super) fn new(backend: &'static str) -> Self {
        Self(OPERATIONS.map(|(_, operation)| {
            let errors = |kind: &'static str| {
                counter!(STORE_ERRORS_TOTAL, "backend" => backend, "operation" => operation, "kind" => kind)
            };
            ByOperation {
                duration: histogram!(STORE_OPERATION_DURATION_SECONDS, "backend" => backend, "operation" => operation),
                unavailable: errors("unavailable"),
                corrupt: errors("corrupt"),
            }
        }))
    }

    /// An operation has its answer.
    pub(super) fn answered(&self, operation: Operation, asked: Instant, error: Option<&Error>) {
        let by = &self.0[operation as usize];
        by.duration.record(asked.elapsed().as_secs_f64());
        match error {
            None => {}
            Some(Error::Unavailable(_)) => by.unavailable.increment(1),
            Some(Error::Corrupt { .. }) => by.corrupt.increment(1),
        }
    }

    /// An operation was refused, or nobody knows what became of it.
    pub(super) fn refused(&self, operation: Operation) {
        self.0[operation as usize].unavailable.increment(1);
    }
}

impl Rows {
    pub(super) fn new() -> Self {
        let rows = |table: &'static str| counter!(STORE_ROWS_WRITTEN_TOTAL, "table" => table);
        Self {
            log: rows("log"),
            snapshot: rows("snapshot"),
            ids: rows("ids"),
            overlay: rows("overlay"),
            reaction: rows("reaction"),
            inbox: rows("inbox"),
            receipts: rows("receipts"),
            members: rows("members"),
            announce: rows("announce"),
            activity: rows("activity"),
            events: counter!(STORE_EVENTS_WRITTEN_TOTAL),
        }
    }
}
