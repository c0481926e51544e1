//! The order of the house: which of our rooms leans on which of our crates, and in which room each library lives.
//!
//! The graph is a golden file, so that a new arrow shows in review as a line of diff. After a deliberate change:
//! `CHAPPE_UPDATE_GOLDEN=1 cargo test -p chappe-loadtest --test house`.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Our crates, from the bottom up: an arrow may only point downwards.
const CRATES: [&str; 5] = ["schema", "cluster", "node", "gateway", "loadtest"];

/// Libraries that live in as few rooms as possible.
const HOUSED: &[&str] = &[
    "aws_lc_rs",
    "axum",
    "clap",
    "figment",
    "fjall",
    "foca",
    "governor",
    "hdrhistogram",
    "hyper",
    "hyper_util",
    "indicatif",
    "jsonwebtoken",
    "metrics_exporter_prometheus",
    "mimalloc",
    "openraft",
    "plotters",
    "prost",
    "quinn",
    "rcgen",
    "rustix",
    "rustls",
    "scylla",
    "tokio",
    "tokio_tungstenite",
    "tracing_subscriber",
    "tungstenite",
    "fuser",
];

/// The checkout in which the test runs: cargo may have compiled it in another with the same target directory.
fn root() -> PathBuf {
    let ours = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    ours.parent().unwrap().to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: its first folder or its own name below `src`.
fn room(src: &Path, file: &Path) -> String {
    let below = file.strip_prefix(src).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// A file's text without comments and without the module of its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let lines =
        text.lines().take_while(|line| *line != "#[cfg(test)]").filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn mentions(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
        || code.contains(&format!("use {name};"))
}

fn graph() -> String {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut homes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (rank, name) in CRATES.iter().enumerate() {
        let src = root().join(name).join("src");
        let mut files = Vec::new();
        sources(&src, &mut files);
        for file in files
            .iter()
            .filter(|file| !file.ends_with("tests.rs") && !file.components().any(|part| part.as_os_str() == "tests"))
        {
            let (code, room) = (code(file), format!("{name}/{}", room(&src, file)));
            for (other_rank, other) in CRATES.iter().enumerate() {
                if other != name && mentions(&code, &format!("chappe_{other}")) {
                    let exception = room == "node/main" && *other == "gateway";
                    assert!(other_rank < rank || exception, "{room} leans on {other}, which stands above it");
                    assert!(
                        exception || (*name, *other) != ("gateway", "node"),
                        "{room}: gateway and node do not know each other"
                    );
                    arrows.entry(room.clone()).or_default().insert((*other).to_owned());
                }
            }
            for library in HOUSED.iter().filter(|library| mentions(&code, library)) {
                homes.entry(library).or_default().insert(room.clone());
            }
        }
    }
    let mut text = String::from("# room -> our crates\n");
    for (room, others) in arrows {
        text += &format!("{room} -> {}\n", others.into_iter().collect::<Vec<_>>().join(", "));
    }
    text += "\n# library: rooms\n";
    for (library, rooms) in homes {
        text += &format!("{library}: {}\n", rooms.into_iter().collect::<Vec<_>>().join(", "));
    }
    text
}

#[test]
fn the_house_is_as_it_was_agreed() {
    let golden = root().join("loadtest/tests/house.golden");
    let found = graph();
    if std::env::var_os("CHAPPE_UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &found).unwrap();
    }
    let agreed = fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(found, agreed, "the imports have changed; see the top of this file");
}

#[test]
fn every_crate_forbids_unsafe_code_and_leaves_nothing_undone() {
    for name in CRATES {
        let src = root().join(name).join("src");
        let mut files = Vec::new();
        sources(&src, &mut files);
        for file in &files {
            let text = fs::read_to_string(file).unwrap();
            let is_root = ["lib.rs", "main.rs"].iter().any(|root| *file == src.join(root));
            assert!(
                !is_root || text.contains("#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                file.display()
            );
            // What this test looks for, not something left undone: unfinished code and tests that never run.
            for word in ["todo!(", "unimplemented!(", "#[ignore]"] {
                assert!(!text.contains(word), "{} holds {word}", file.display());
            }
        }
    }
}
