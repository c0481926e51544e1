//! HTTP and JSON: the table of operations as routes.
//!
//! - [`first`]: which HTTP a connection speaks
//! - [`connection`]: one HTTP/1.1 connection's requests, and what every answer has
//! - [`http2`]: one HTTP/2 connection
//! - [`exchange`]: one of its requests, and what is unread of its answer
//! - [`taken`]: an HTTP/1.1 connection's client that takes nothing
//! - [`routes`]: which path leads where, walked from the table
//! - [`admin`]: the routes of server-side callers
//! - [`arguments`]: path, query, headers and body become one JSON object
//! - [`answer`]: replies and problems
//! - [`origin`]: which web pages may use this server
//! - [`proxy`]: who a request comes from
//! - [`dev_tokens`]: tokens for newcomers, on loopback only

pub(crate) mod admin;
pub(crate) mod answer;
pub(crate) mod arguments;
pub(crate) mod connection;
pub(crate) mod dev_tokens;
pub(crate) mod exchange;
pub(crate) mod first;
pub(crate) mod http2;
pub(crate) mod origin;
pub mod proxy;
pub(crate) mod routes;
pub(crate) mod taken;
