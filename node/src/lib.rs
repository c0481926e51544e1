//! The node: it owns conversations and users.
//!
//! The pure states decide, the shards drive them, the store keeps the log. In reading order:
//!
//! - [`conversation`]: the pure state of a conversation
//! - [`user`]: the pure state of a user
//! - [`store`]: the log, and the ways to keep it
//! - [`recovery`]: what of a log counts after its owner has died
//! - [`shard`]: drives entities: group commit, fan-out, supervision
//! - [`node`]: the shards together, as gateways see them
//! - `session`: this node's lives in the cluster, and what it owns in each
//! - [`config`]: what can be set

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod conversation;
pub mod node;
#[cfg(any(test, feature = "simulation"))]
pub mod pace;
#[cfg(not(any(test, feature = "simulation")))]
mod pace;
pub mod planted;
pub mod recovery;
mod session;
mod shard;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod store;
pub mod user;
