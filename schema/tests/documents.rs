//! The documents that clients are generated from are what the code says: they are made anew here, and compared with
//! what is committed. After a deliberate change: `CHAPPE_UPDATE_GOLDEN=1 cargo test -p chappe-schema --test documents`.

#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf};

#[path = "documents/examples.rs"]
mod examples;
#[path = "documents/openapi.rs"]
mod openapi;
#[path = "documents/proto.rs"]
mod proto;

/// The checkout. Where the test runs, not where it was compiled: cargo takes a test of another checkout for this one's when both
/// share a target directory.
fn root() -> PathBuf {
    let ours = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    ours.parent().unwrap().to_owned()
}

/// Compares a committed file with what it should be, or writes it.
fn golden(path: &str, made: &[u8]) {
    let file = root().join(path);
    if std::env::var_os("CHAPPE_UPDATE_GOLDEN").is_some() {
        fs::write(&file, made).unwrap();
    }
    let committed = fs::read(&file).unwrap_or_default();
    assert!(committed == made, "{path} is not what the code says any more; see the top of tests/documents.rs");
}
