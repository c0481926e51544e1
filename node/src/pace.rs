//! How many events make an id block, and how many a snapshot; how many members a snapshot has room for. Simulations take fewer:
//! a run of half a minute is to see many of all.

use chappe_schema::limit::{
    ID_BLOCK_EVENTS, IDLE_SNAPSHOT_EVENTS, MEMBER_ROWS_PAGE, SNAPSHOT_EVENTS, SNAPSHOT_MEMBERS_MAX,
};

#[cfg(any(test, feature = "simulation"))]
thread_local! {
    static SHORT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static CROWDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// In this thread blocks and snapshots are short from now on, or usual again.
#[cfg(any(test, feature = "simulation"))]
pub fn shorten(short: bool) {
    SHORT.set(short);
}

/// In this thread a handful of members are too many for a snapshot from now on, or no longer.
#[cfg(any(test, feature = "simulation"))]
pub fn crowd(crowded: bool) {
    CROWDED.set(crowded);
}

#[cfg(any(test, feature = "simulation"))]
fn is_crowded() -> bool {
    CROWDED.get()
}

#[cfg(not(any(test, feature = "simulation")))]
const fn is_crowded() -> bool {
    false
}

#[cfg(any(test, feature = "simulation"))]
fn is_short() -> bool {
    SHORT.get()
}

#[cfg(not(any(test, feature = "simulation")))]
const fn is_short() -> bool {
    false
}

/// Events of one id block.
pub(crate) fn id_block_events() -> u64 {
    if is_short() { 4 } else { ID_BLOCK_EVENTS }
}

/// Events from one snapshot to the next.
pub(crate) fn snapshot_events() -> u64 {
    if is_short() { 8 } else { SNAPSHOT_EVENTS }
}

/// Events that make a snapshot worth its row when an entity goes to rest.
pub(crate) fn idle_snapshot_events() -> u64 {
    if is_short() { 2 } else { IDLE_SNAPSHOT_EVENTS }
}

/// Members of whom a snapshot still has room.
pub(crate) fn snapshot_members_max() -> usize {
    if is_crowded() { 3 } else { SNAPSHOT_MEMBERS_MAX }
}

/// Members' rows that are read at once.
pub(crate) fn member_rows_page() -> usize {
    if is_crowded() { 2 } else { MEMBER_ROWS_PAGE }
}
