//! What every process of ours shows its operator.
//!
//! A gateway, a node and the load tester all start the same way, and an operator meets the same things in each. In
//! the order in which a `main` uses them:
//!
//! - [`config`]: one file, the environment and flags become one checked value, or a list of everything wrong with it
//! - [`log`]: one line per event on stderr, as text or JSON
//! - [`files`]: as many file descriptors as this process may have
//! - [`version`]: which build this is
//! - [`metrics`]: the catalogue of metrics, and the text that Prometheus reads
//! - [`vitals`]: the `process_*` metrics, read from `/proc`
//! - [`health`]: named conditions; alive, started, ready
//! - [`admin`]: the port that shows all of this over HTTP
//! - [`network`]: how the processes of one cluster find and trust each other
//! - [`shutdown`]: signals, and the stages in which a process leaves
//!
//! Nothing here knows what a conversation is.

pub mod admin;
pub mod config;
pub mod files;
pub mod health;
pub mod log;
pub mod metrics;
pub mod network;
pub mod operator;
pub mod shutdown;
pub mod version;
pub mod vitals;
