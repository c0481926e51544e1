//! The data directory: whose it is, who holds it, and how it begins.
//!
//! ```text
//! chappe-data/
//!   CHAPPE    says whose directory this is, and the version of its format
//!   lock      held by the process that owns the directory
//!   log/      the engine's files
//! ```
//!
//! A first start builds the engine in `log.new` and renames it when it is complete, so that `log` is never half made:
//! whatever is missing from it was taken away later, and is not replaced by something empty.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use chappe_cluster::{
    engine::{self, Error, folder, in_words},
    process::files,
};
use chappe_schema::{
    id::Generation,
    stored::{Corrupt, Kind, seal, unseal},
};
use fjall::Readable;
use prost::Message;

use super::{
    config::Config,
    engine::{FIRST_TABLES, TABLES, Tables},
};
use crate::store::Session;

const MARKER: &str = "CHAPPE";
const DRAFT: &str = "CHAPPE.new";
const LOCK: &str = "lock";
const LOG: &str = "log";
const UNFINISHED: &str = "log.new";

/// What the marker begins with; the version follows.
const MARKER_TEXT: &str = "chappe data directory, format ";

/// The version of the directory's format.
const FORMAT: u32 = 1;

/// What may stand in a directory before its first start: our own traces of a start that was cut short, the development
/// secret, and what a fresh volume holds.
const BEFORE_FIRST_START: [&str; 6] = [LOCK, LOG, UNFINISHED, DRAFT, "dev-token.secret", "lost+found"];

/// Why the log cannot be opened: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data directory {directory} is in use by another process")]
    InUse {
        /// Which.
        directory: PathBuf,
    },
    /// It belongs to something else.
    #[error("{directory} holds {found}, but no chappe data; choose an empty directory")]
    NotOurs {
        /// Which.
        directory: PathBuf,
        /// What is in it.
        found: String,
    },
    /// A newer program wrote it.
    #[error(
        "the data directory {directory} has format {found}, this program knows {FORMAT}; run the program that wrote it"
    )]
    Newer {
        /// Which.
        directory: PathBuf,
        /// Its format.
        found: u32,
    },
    /// What it holds is not what was written. Nothing of it is served.
    #[error("the data directory {directory} is damaged: {what}; restore it from a backup")]
    Damaged {
        /// Which.
        directory: PathBuf,
        /// Where the damage is.
        what: String,
    },
    /// The system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The storage engine refused.
    #[error("the log in {directory} cannot be opened: {why}")]
    Engine {
        /// Where.
        directory: PathBuf,
        /// What the engine says.
        why: String,
    },
}

/// A number that the store keeps about itself.
#[derive(Clone, Copy, PartialEq, Message)]
struct Note {
    #[prost(fixed64, tag = "1")]
    value: u64,
}

const GENERATION: &str = "generation";
const STARTS: &str = "starts";
/// How many of the tables the directory has been given.
const GIVEN: &str = "tables";

/// Takes the directory, makes sure that all of it is on disk and whole, opens the engine and begins a session.
pub(super) fn open(directory: &Path, config: &Config) -> Result<(File, Tables, Session), OpenError> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { doing, path, source }
    };
    files::make_private(directory).map_err(failed("create the data directory", directory))?;
    let marked = marked(directory)?;
    let refused = |error| OpenError::of(directory, error);
    let lock = folder::lock(&directory.join(LOCK), directory).map_err(refused)?;

    let (log, unfinished) = (directory.join(LOG), directory.join(UNFINISHED));
    if marked && !log.exists() {
        return Err(damaged(directory, format!("its folder {LOG} is missing")));
    }
    folder::prepare(&log, &unfinished, |draft| create(draft, config)).map_err(refused)?;
    let tables = engine::attempt(|| Tables::open(&log, config, given)).map_err(refused)?;
    let session = begin_session(directory, &tables)?;
    if !marked {
        mark(directory).map_err(failed("mark", directory))?;
    }
    Ok((lock, tables, session))
}

/// Whether the directory is marked as ours; if not, it must be as good as empty.
fn marked(directory: &Path) -> Result<bool, OpenError> {
    let not_ours = |found: String| OpenError::NotOurs { directory: directory.to_owned(), found };
    let marker = directory.join(MARKER);
    match fs::read_to_string(&marker) {
        Ok(text) => {
            let version = text.strip_prefix(MARKER_TEXT).and_then(|version| version.trim_end().parse().ok());
            match version {
                Some(FORMAT) => Ok(true),
                Some(found) if found > FORMAT => Err(OpenError::Newer { directory: directory.to_owned(), found }),
                _ => Err(not_ours(format!("a file {MARKER} with another content"))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let unreadable = |source| OpenError::Io { doing: "read", path: directory.to_owned(), source };
            for entry in fs::read_dir(directory).map_err(unreadable)? {
                let name = entry.map_err(unreadable)?.file_name();
                if !BEFORE_FIRST_START.iter().any(|known| name == *known) {
                    return Err(not_ours(name.display().to_string()));
                }
            }
            // A log without a marker is a first start that was cut short, and then it is complete.
            let log = directory.join(LOG);
            if log.exists() && !log.join("keyspaces").exists() {
                return Err(not_ours(format!("a folder {LOG} of something else")));
            }
            Ok(false)
        }
        Err(source) => Err(OpenError::Io { doing: "read", path: marker, source }),
    }
}

/// Builds an engine with its tables and first notes.
fn create(draft: &Path, config: &Config) -> Result<(), Error> {
    let tables = engine::attempt(|| Tables::create(draft, config))?;
    let mut batch = tables.batch(3);
    batch.insert(&tables.note, GIVEN, seal(Kind::Note, &Note { value: TABLES.len() as u64 }));
    batch.insert(&tables.note, GENERATION, seal(Kind::Note, &Note { value: rand::random::<u64>() }));
    batch.insert(&tables.note, STARTS, seal(Kind::Note, &Note { value: 0 }));
    batch.commit().and_then(|()| tables.sync()).map_err(|error| Error::Engine(in_words(&error)))
}

/// How many tables the notes say that the directory has. A note that is damaged is refused a moment later.
pub(super) fn given(note: &fjall::Keyspace) -> usize {
    let value = note.get(GIVEN).ok().flatten();
    let note = value.and_then(|value| unseal::<Note>(Kind::Note, value.into()).ok());
    note.map_or(FIRST_TABLES, |note| usize::try_from(note.value).unwrap_or(usize::MAX))
}

/// Counts this start. The count is on disk before the session exists, so no epoch is ever used twice.
fn begin_session(directory: &Path, tables: &Tables) -> Result<Session, OpenError> {
    let engine = |error: fjall::Error| OpenError::Engine { directory: directory.to_owned(), why: in_words(&error) };
    let note = |name: &str| {
        let value = tables.view().get(&tables.note, name).map_err(engine)?;
        let value = value.ok_or_else(|| damaged(directory, format!("its note of the {name} is missing")))?;
        match unseal::<Note>(Kind::Note, value.into()) {
            Ok(note) => Ok(note.value),
            Err(Corrupt::Version(version)) => {
                Err(OpenError::Newer { directory: directory.to_owned(), found: u32::from(version) })
            }
            Err(why) => Err(damaged(directory, format!("its note of the {name}: {why}"))),
        }
    };
    let generation = Generation(note(GENERATION)?);
    let starts = note(STARTS)? + 1;
    let mut batch = tables.batch(2);
    batch.insert(&tables.note, STARTS, seal(Kind::Note, &Note { value: starts }));
    // Tables that this start has added are there from now on; those of a newer program stay.
    let is_noted = tables.note.contains_key(GIVEN).map_err(engine)? && note(GIVEN)? >= TABLES.len() as u64;
    if !is_noted {
        batch.insert(&tables.note, GIVEN, seal(Kind::Note, &Note { value: TABLES.len() as u64 }));
    }
    batch.commit().map_err(engine)?;
    Ok(Session { id: starts, epoch: starts, generation })
}

fn mark(directory: &Path) -> io::Result<()> {
    // Written under another name and renamed, so that it is never read half written.
    let (draft, marker) = (directory.join(DRAFT), directory.join(MARKER));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    writeln!(file, "{MARKER_TEXT}{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&draft, &marker)?;
    folder::sync(directory)
}

fn damaged(directory: &Path, what: String) -> OpenError {
    OpenError::Damaged { directory: directory.to_owned(), what }
}

impl OpenError {
    fn of(directory: &Path, error: Error) -> Self {
        let directory = directory.to_owned();
        match error {
            Error::InUse(_) => Self::InUse { directory },
            Error::Damaged(what) => Self::Damaged { directory, what },
            Error::Io { doing, path, source } => Self::Io { doing, path, source },
            Error::Engine(why) => Self::Engine { directory, why },
        }
    }
}
