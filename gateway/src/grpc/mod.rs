//! gRPC: the table of operations as methods of package `chappe.v1`.
//!
//! - [`call`]: one operation, from a message to its reply
//! - [`realtime`]: a connection on a stream
//! - [`caller`]: who asks
//! - [`status`]: errors as gRPC shows them
//! - [`deadline`]: until when a client waits
//! - [`codec`]: messages as bytes
//! - [`health`]: whether the services serve
//! - [`services`]: which path leads where, reflection

mod call;
mod caller;
mod codec;
mod deadline;
mod health;
mod realtime;
pub(crate) mod services;
mod status;
