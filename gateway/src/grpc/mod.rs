//! gRPC: the table of operations as methods of package `chappe.v1`.
//!
//! - [`call`]: one operation, from a message to its reply
//! - [`realtime`]: a connection on a stream
//! - [`caller`]: who asks
//! - [`status`]: errors as gRPC shows them
//! - [`deadline`]: until when a client waits
//! - [`codec`]: messages as bytes
//! - [`services`]: health and reflection, and which path leads where

mod call;
mod caller;
mod codec;
mod deadline;
mod realtime;
pub(crate) mod services;
mod status;
