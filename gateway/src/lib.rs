//! Terminates clients: transports, sessions, limits, routing, delivery. Keeps nothing durable.
//!
//! In the order in which a message meets them:
//!
//! - [`config`]: what an operator may set
//! - [`server`]: how a gateway starts, runs and leaves
//! - `accept`: new connections
//! - [`http`]: HTTP, its routes walked from the table of operations
//! - `websocket`: WebSockets, one small future per connection
//! - `grpc`: gRPC, the same table as methods, and a connection on a stream
//! - [`auth`]: who is at the other end
//! - `access`: who was logged out or banned
//! - [`limiter`]: how much one client may ask for
//! - `gateway`, `route`: a command's way to its node, and the answer's way back
//! - `resume`: what a client that comes back is told, and how it is filled up
//! - `rejoin`: what is done when partitions have other owners
//! - `delivery`, `listeners`: events on their way to the connections they are for
//! - `presence`: who is there and who is writing, said to nodes and to clients
//! - `connection`: the table of connections
//! - `sweep`, `clock`: once a second
//! - `supervise`: what happens when a task of the gateway panics
//! - [`tls`]: TLS on the port for clients
//! - `meters`: the metrics' handles
//! - `simulation`: a gateway that is driven by hand; `pace`: what is different then

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accept;
mod access;
pub mod auth;
mod clock;
pub mod config;
mod connection;
mod delivery;
mod gateway;
mod grpc;
pub mod http;
pub mod limiter;
mod listeners;
mod meters;
#[cfg(feature = "simulation")]
pub mod pace;
#[cfg(not(feature = "simulation"))]
mod pace;
mod presence;
mod rejoin;
mod resume;
pub mod route;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulation;
mod supervise;
mod sweep;
pub mod tls;
mod websocket;

/// The same node of a few lines that the tests from outside have.
#[cfg(test)]
#[path = "../tests/it/node.rs"]
mod tests_node;

pub use config::Config;
pub use gateway::Gateway;
pub use server::{Door, Drained, Running, StartError, reload};
