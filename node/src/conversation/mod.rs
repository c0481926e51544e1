//! The pure state of a conversation: it takes a command and the time and says what to append and what to answer.
//! It holds no socket, clock, disk or task.
//!
//! - [`state`]: what a conversation is, how events change it
//! - [`decide`]: how each command is judged; one file a command below it
//! - [`members`]: who may see what
//! - [`recent`]: its last events
//! - [`floor`]: where its history begins
//! - [`overlay`]: what edits, deletions and reactions made of messages
//! - [`receipts`]: how far members have got
//! - [`ids`]: which commands are known already
//! - [`marks`], [`latest`], [`standing`]: what members' inboxes show
//! - [`snapshot`]: the state as bytes at rest

mod decide;
mod delete;
mod edit;
pub mod floor;
pub mod ids;
mod latest;
mod lifecycle;
mod marks;
pub mod members;
mod membership;
pub mod overlay;
mod reactions;
pub(crate) mod read;
mod receipts;
mod recent;
mod send;
mod snapshot;
mod standing;
pub(crate) mod state;

#[cfg(test)]
mod tests;

pub use decide::{Evidence, Verdict};
pub use members::Members;
pub use read::Read;
pub use receipts::{Got, Kept, KeptMembers};
pub use state::{Audience, Conversation, Target};
