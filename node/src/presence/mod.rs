//! Presence, as pure books: who is looked at and what they were told, without a clock, a socket or a task.
//!
//! A change of one user goes to whoever looks at them, and to nobody else: each watcher costs one word at most every two
//! seconds and watched user, and all words of a shard come out of one budget. What is over it is not queued: the user is
//! *due*, and is told as they stand when their turn comes. So presence can be late, and it can never pile up (threads:
//! matrix-org/synapse#3971, RocketChat/Rocket.Chat#30721).
//!
//! - [`board`]: at the owner of who is looked at: their watchers, and what each of them knows
//! - [`watching`]: at the owner of who looks: at whom, and how they are shown
//!
//! What is said between the two may get lost. A watcher's owner renews each watch every 20 s with what it knows, and is
//! told where that is wrong; a watch that nobody renews ends.

mod board;
mod watching;

#[cfg(test)]
mod tests;

pub use board::{Board, Renewal, Word};
pub use watching::{Watching, Wishes};
