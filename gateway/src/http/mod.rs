//! HTTP and JSON: the table of operations as routes.
//!
//! - [`connection`]: one connection's requests, and what every answer has
//! - [`routes`]: which path leads where, walked from the table
//! - [`admin`]: the routes of server-side callers
//! - [`arguments`]: path, query, headers and body become one JSON object
//! - [`answer`]: replies and problems
//! - [`origin`]: which web pages may use this server
//! - [`proxy`]: who a request comes from
//! - [`dev_tokens`]: tokens for newcomers, on loopback only

mod admin;
pub(crate) mod answer;
pub(crate) mod arguments;
pub(crate) mod connection;
pub(crate) mod dev_tokens;
pub(crate) mod origin;
pub mod proxy;
pub(crate) mod routes;
