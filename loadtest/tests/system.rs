//! The whole server, as a process, met by outside clients.

#![allow(clippy::unwrap_used)]

#[path = "system/access.rs"]
mod access;
#[path = "system/inbox.rs"]
mod inbox;
#[path = "system/operator.rs"]
mod operator;
#[path = "system/parity.rs"]
mod parity;
#[path = "system/reactions.rs"]
mod reactions;
#[path = "system/workflow.rs"]
mod workflow;

use chappe_loadtest::server::{Server, Setup};

/// The server's binary: where cargo puts it beside this test.
fn binary() -> std::path::PathBuf {
    let ours = std::env::current_exe().unwrap();
    ours.ancestors().nth(2).unwrap().join("chappe-node")
}

/// A server with no limits on rates, so that a test meets only what it is about.
async fn server() -> Server {
    let args = ["--set", "gateway.drain_window=200ms"].map(str::to_owned).to_vec();
    Server::start(Setup { unlimited: true, args, ..Setup::default() }).await.unwrap()
}
