//! Who is here, who owns what, how bytes travel; and what every process shows its operator.
//!
//! - [`ownership`]: which session owns which partition; the state that Raft replicates, and the map that all read
//! - [`placement`]: where partitions should be
//! - [`control`]: how a node takes part in what the cluster decides
//! - [`consensus`]: Raft, which makes it one decision for all
//! - [`swim`]: who is here, as far as anybody can tell
//! - [`engine`]: the embedded engine's files: made whole, checked before they are opened
//! - [`link`]: how gateways and nodes reach each other
//! - [`process`]: configuration, logs, metrics, health, shutdown: the same in every process

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod consensus;
pub mod control;
pub mod engine;
pub mod link;
pub mod ownership;
pub mod placement;
pub mod process;
pub mod swim;
