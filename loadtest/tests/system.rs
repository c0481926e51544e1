//! The whole server, as a process, met by outside clients.

#![allow(clippy::unwrap_used)]

#[path = "system/access.rs"]
mod access;
#[path = "system/channels.rs"]
mod channels;
#[path = "system/cluster.rs"]
mod cluster;
// Made for other tests too.
#[allow(dead_code)]
#[path = "system/crowd.rs"]
mod crowd;
#[path = "system/inbox.rs"]
mod inbox;
#[path = "system/operator.rs"]
mod operator;
#[path = "system/parity.rs"]
mod parity;
#[path = "system/presence.rs"]
mod presence;
#[path = "system/processes.rs"]
mod processes;
#[path = "system/protobuf.rs"]
mod protobuf;
#[path = "system/reactions.rs"]
mod reactions;
#[path = "system/receipts.rs"]
mod receipts;
#[path = "system/retention.rs"]
mod retention;
#[path = "system/scenario.rs"]
mod scenario;
#[path = "system/slow.rs"]
mod slow;
#[path = "system/weather.rs"]
mod weather;
#[path = "system/workflow.rs"]
mod workflow;

use std::process::Command;

use chappe_loadtest::{
    client::{Client, Failure},
    server::{Server, Setup},
};
use chappe_node::store::cql::real;
use serde_json::{Value, json};
use uuid::Uuid;

/// The server's binary: where cargo puts it beside this test.
fn binary() -> std::path::PathBuf {
    let ours = std::env::current_exe().unwrap();
    ours.ancestors().nth(2).unwrap().join("chappe-node")
}

/// The code with which a request was refused.
async fn refused(client: &Client, op: &str, args: Value) -> String {
    match client.request(op, args).await {
        Err(Failure::Refused(refusal)) => refusal.code,
        other => panic!("{op} was not refused: {other:?}"),
    }
}

/// Says something; the seq that it got.
async fn say(client: &Client, conversation: Uuid, text: &str) -> u64 {
    client.send(conversation, &json!({ "text": text })).await.unwrap().seq
}

/// A server with no limits on rates, so that a test meets only what it is about.
async fn server() -> Server {
    let args = ["--set", "gateway.drain_window=200ms"].map(str::to_owned).to_vec();
    start(Setup { unlimited: true, args, ..Setup::default() }).await.unwrap()
}

/// A server on the store that these tests are about: its own, or one that nodes could share (`CHAPPE_TEST_STORE=cql`).
async fn start(mut setup: Setup) -> anyhow::Result<Server> {
    if is_on_cql() {
        let config = tokio::task::spawn_blocking(|| real::one_server("system")).await.unwrap();
        let config = config.expect("these tests are about a CQL server");
        let settings = [
            "server.store=cql".to_owned(),
            format!("cql.contact_points={:?}", config.contact_points),
            format!("cql.keyspace={}", config.keyspace),
            format!("cql.replication_factor={}", config.replication_factor),
        ];
        setup.args.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    }
    Server::start(setup).await
}

fn is_on_cql() -> bool {
    std::env::var(STORE).is_ok_and(|store| store == "cql")
}

const STORE: &str = "CHAPPE_TEST_STORE";

/// All of the above once more, with the log in CQL.
#[test]
fn everything_holds_on_cql_too() {
    if is_on_cql() || real::are_left_out() {
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    // The tests of several nodes have a store of their own.
    let output = again
        .args(
            ["everything_holds_on_cql_too", "cluster::", "processes::", "weather::"]
                .map(|skip| ["--skip", skip])
                .concat(),
        )
        .env(STORE, "cql")
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
