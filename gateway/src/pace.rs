//! How much may wait for a client that reads slowly. Simulations allow less: a run of half a minute is to see what happens at the brim.

use chappe_schema::limit::OUTBOX_FRAMES_MAX;

#[cfg(feature = "simulation")]
thread_local! {
    static SHORT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// In this thread outboxes are small from now on, or usual again.
#[cfg(feature = "simulation")]
pub fn shorten(short: bool) {
    SHORT.set(short);
}

#[cfg(feature = "simulation")]
fn is_short() -> bool {
    SHORT.get()
}

#[cfg(not(feature = "simulation"))]
const fn is_short() -> bool {
    false
}

/// Frames of one connection's outbox.
pub(crate) fn outbox_frames() -> usize {
    if is_short() { 8 } else { OUTBOX_FRAMES_MAX }
}
