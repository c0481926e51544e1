//! The outside of Chappe: clients, the crowd, and the oracle that judges what they saw.
//!
//! Nothing here depends on the server's crates: the tester is an outside client and knows the protocol only. Read in
//! this order:
//!
//! - [`client`] — the client library: connect, resume, send with retries that keep the id, events without gaps.
//! - [`history`] — what clients saw, on one clock.
//! - [`oracle`] — which promises were broken.
//! - [`server`] — a real server as a child process, for tests and benches.
//! - [`process`] — what a process costs: CPU and memory; [`metrics`] — what the server says of itself.
//! - [`crowd`] — `run`: many clients, figures, a verdict, a report ([`report`]).
//!   What a crowd does is a flag or two, or a file ([`crowd::scenario`]); [`compare`] puts two reports side by side.
//! - [`raw`] — peers without logic, for comparisons like with like.
//! - [`bench`] — `bench`: the project's figures as ratios.
//! - [`weather`] — faults: power cuts, full disks, slow and failing syncs.
//! - [`websocket`] — the framing under all of it.
//! - [`model`] — `model`: the protocol of ownership, every state of it in a small world. It stands alone.

#![forbid(unsafe_code)]

pub mod bench;
pub mod client;
pub mod compare;
pub mod crowd;
pub mod history;
pub mod local;
pub mod metrics;
pub mod model;
pub mod oracle;
pub mod process;
pub mod raw;
pub mod report;
pub mod server;
pub mod weather;
pub mod websocket;
