//! The node: it owns conversations and users.
//!
//! The pure states decide, the shards drive them, the store keeps the log. In reading order:
//!
//! - [`conversation`]: the pure state of a conversation
//! - [`user`]: the pure state of a user
//! - [`presence`]: who looks at whom, and what they were told
//! - [`typing`]: who is writing where
//! - [`store`]: the log, and the ways to keep it
//! - [`recovery`]: what of a log counts after its owner has died
//! - [`shard`]: drives entities: group commit, fan-out, supervision
//! - [`node`]: the shards together, as gateways see them
//! - [`member`]: a node of a cluster, whole: Raft, sessions, shards
//! - `session`: this node's lives in the cluster, and what it owns in each
//! - [`config`]: what can be set

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod conversation;
pub mod member;
pub mod node;
#[cfg(any(test, feature = "simulation"))]
pub mod pace;
#[cfg(not(any(test, feature = "simulation")))]
mod pace;
pub mod peers;
pub mod planted;
pub mod presence;
pub mod recovery;
mod session;
mod shard;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod store;
pub mod typing;
pub mod user;
