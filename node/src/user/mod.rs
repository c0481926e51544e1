//! The pure state of a user: conversations and their heads, the inbox's order, and who is connected from where.
//! It holds no socket, clock, disk or task.

mod inbox;
mod snapshot;
mod state;

pub use inbox::HeadKnown;
pub use state::{Connection, Membership, User};
