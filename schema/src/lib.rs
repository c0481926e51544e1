//! The words of Chappe: what clients, gateways and nodes say to each other, and what stands on the disk.
//!
//! No I/O and no runtime live here, so every other crate can depend on it. In reading order:
//!
//! - [`id`]: how conversations, users, devices, commands and positions are named
//! - [`limit`]: every bound, with its reason and what happens at the brim
//! - [`error`]: the one table of errors that all transports translate from
//! - [`body`]: what a message may carry
//! - [`mention`]: whom a message is for in particular
//! - [`inbox`]: how a user's conversations are ordered, marked and counted
//! - [`reaction`]: what a reaction says
//! - [`presence`]: who is there, and who is writing
//! - [`receipt`]: how far members have got
//! - [`operation`]: the table of operations; each operation stands there once
//! - [`command`] and [`reply`]: what an operation is given and what it answers
//! - [`decode`]: what is wrong with a client's JSON, in words for the client
//! - [`access`]: log-outs and bans
//! - [`event`]: one durable fact in a conversation's (or a user's) log
//! - [`frame`]: how commands, replies and events look to a client of the WebSocket
//! - [`proto`]: the same words as protobuf, for gRPC
//! - [`wire`]: what gateways and nodes say to each other over a link; [`archive`]: its bytes
//! - [`stored`]: the bytes at rest; [`columns`]: an event in the cluster's store
//! - [`cql`]: the tables of the cluster's store

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod archive;
pub mod body;
pub mod columns;
pub mod command;
pub mod cql;
pub mod decode;
pub mod error;
pub mod event;
pub mod frame;
pub mod id;
pub mod inbox;
pub mod limit;
pub mod mention;
pub mod operation;
pub mod presence;
pub mod proto;
pub mod reaction;
pub mod receipt;
pub mod reply;
pub mod stored;
pub mod time;
pub mod wire;
