//! Real servers for tests: those that `scripts/services` finds or starts, once per process.
//!
//! Where there can be none the test fails, with the sentence that the script ends with. `CHAPPE_TEST_SERVICES=0` leaves such tests
//! out, and says so.

// For tests of this crate and of others: a surprise is to end them.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;

use super::Config;

fn script() -> PathBuf {
    // Of the checkout in which a test runs: cargo may have compiled it in another with the same target directory.
    let ours = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    ours.join("../scripts/services")
}

/// Whether tests that need servers are to be left out; says so.
#[must_use]
pub fn are_left_out() -> bool {
    let left_out = std::env::var("CHAPPE_TEST_SERVICES").is_ok_and(|value| value == "0");
    if left_out {
        println!("left out: CHAPPE_TEST_SERVICES=0");
    }
    left_out
}

/// Starts what is named, unless it runs, and tells where everything is; none where services are left out.
fn up(service: &str) -> Option<HashMap<String, String>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if are_left_out() {
        return None;
    }
    let _turn = ONE_AT_A_TIME.lock();
    let started = Command::new(script()).args(["up", service, "--for", &process::id().to_string()]).output().unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let places = Command::new(script()).arg("env").output().unwrap();
    assert!(places.status.success(), "{}", String::from_utf8_lossy(&places.stderr));
    let text = String::from_utf8(places.stdout).unwrap();
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    Some(text.lines().filter_map(pair).collect())
}

/// A server and a keyspace of its own that nobody has used.
#[must_use]
pub fn one_server(name: &str) -> Option<Config> {
    let places = up("cql")?;
    Some(config(&places["CHAPPE_TEST_CQL"], name, 1))
}

/// Three servers, each with a copy of everything, and the processes that they are. Where one has ended it is started again.
#[must_use]
pub fn three_servers(name: &str) -> Option<(Config, Vec<u32>)> {
    let places = up("cql3")?;
    let pids = places["CHAPPE_TEST_CQL3_PIDS"].split(',').map(|pid| pid.parse().unwrap()).collect();
    Some((config(&places["CHAPPE_TEST_CQL3"], name, 3), pids))
}

fn config(points: &str, name: &str, replication_factor: u16) -> Config {
    static USED: AtomicU32 = AtomicU32::new(0);
    let number = USED.fetch_add(1, Ordering::Relaxed);
    Config {
        contact_points: points.split(',').map(str::to_owned).collect(),
        keyspace: format!("test_{name}_{}_{number}", process::id()),
        replication_factor,
        ..Config::default()
    }
}

/// Ends a keyspace that was used.
pub fn drop_keyspace(runtime: &tokio::runtime::Runtime, config: &Config) {
    let driver = runtime.block_on(super::Driver::connect(config)).unwrap();
    runtime.block_on(driver.change(&format!("DROP KEYSPACE IF EXISTS {}", config.keyspace))).unwrap();
}
