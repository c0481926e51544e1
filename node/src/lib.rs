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
//! - [`config`]: what can be set

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod conversation;
pub mod node;
pub mod recovery;
mod shard;
pub mod store;
pub mod user;
