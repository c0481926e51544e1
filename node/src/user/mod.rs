//! The pure state of a user: conversations and where they stand, how they are ordered and marked, who is connected
//! from where, and who may come in no longer. It holds no socket, clock, disk or task.
//!
//! - [`state`]: what a user is, how the events of their own log change it
//! - [`index`]: the orders in which conversations are listed, kept with every change and never sorted
//! - [`inbox`]: heads of conversations, and pages of the list
//! - [`sync`]: what has changed since a device looked last, and why a cursor stays right whatever happens to owners
//! - [`preference`]: what a user sets for a conversation
//! - [`receipts`]: what others may see of how far the user has read
//! - [`access`]: log-outs and bans
//! - [`presence`]: how others see the user
//! - [`snapshot`]: the state as bytes at rest

mod access;
mod inbox;
mod index;
mod preference;
mod presence;
mod receipts;
mod snapshot;
mod state;
mod sync;
mod wish;

#[cfg(test)]
mod tests;

pub use inbox::{HeadKnown, Moved, Page, Pick};
pub use preference::{Command as MarkCommand, Marked};
pub use state::{Client, Connection, Membership, User};
pub use sync::{Changed, Changes};
pub use wish::Wish;
