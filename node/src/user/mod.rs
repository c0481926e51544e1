//! The pure state of a user: conversations and their heads, the inbox's order, who is connected from where,
//! and who may come in no longer.
//! It holds no socket, clock, disk or task.

mod access;
mod inbox;
mod snapshot;
mod state;

pub use inbox::HeadKnown;
pub use state::{Client, Connection, Membership, User};
