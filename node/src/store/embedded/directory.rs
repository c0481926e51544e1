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
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use chappe_schema::{
    id::Generation,
    stored::{Corrupt, Kind, seal, unseal},
};
use fjall::Readable;
use prost::Message;

use super::{
    config::Config,
    engine::{FIRST_TABLES, Failure, TABLES, Tables, in_words},
    journal,
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
    make_private(directory).map_err(failed("create the data directory", directory))?;
    let marked = marked(directory)?;
    let lock = lock(directory)?;

    let (log, unfinished) = (directory.join(LOG), directory.join(UNFINISHED));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed("remove the traces of an unfinished start", &unfinished))?;
    }
    if !log.exists() {
        if marked {
            return Err(damaged(directory, format!("its folder {LOG} is missing")));
        }
        create(directory, config, &unfinished)?;
        fs::rename(&unfinished, &log).map_err(failed("name", &log))?;
        sync(directory).map_err(failed("sync", directory))?;
    }
    journal::sync_tree(&log).map_err(failed("sync", &log))?;
    journal::check(&log).map_err(|error| match error {
        journal::Error::Io { path, source } => OpenError::Io { doing: "read", path, source },
        journal::Error::Damaged(what) => damaged(directory, what),
    })?;
    let tables = engine(directory, || Tables::open(&log, config, given))?;
    let session = begin_session(directory, &tables)?;
    if !marked {
        sync_above(directory).map_err(failed("sync the folders above", directory))?;
        mark(directory).map_err(failed("mark", directory))?;
    }
    Ok((lock, tables, session))
}

/// What people said is for this process's user only. Files follow the umask, which `main` sets; a directory that nobody
/// else may enter keeps them in any case. One that was there before is its owner's decision, and worth a word.
fn make_private(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() && found.permissions().mode() & 0o077 != 0 => {
            let mode = format!("{:o}", found.permissions().mode() & 0o7777);
            tracing::warn!(
                event = "data_directory_open",
                directory = %directory.display(),
                mode,
                "other users of this machine may look into the data directory; chmod 700 closes it"
            );
            Ok(())
        }
        Ok(found) if found.is_dir() => Ok(()),
        // What is there and no directory is said by the attempt.
        Ok(_) | Err(_) => DirBuilder::new().recursive(true).mode(0o700).create(directory),
    }
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

/// The lock is the kernel's: it ends with the process, however that ends.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK);
    let failed = |source| OpenError::Io { doing: "lock", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Builds an engine with its tables and first notes.
fn create(directory: &Path, config: &Config, unfinished: &Path) -> Result<(), OpenError> {
    let tables = engine(directory, || Tables::create(unfinished, config))?;
    let mut batch = tables.batch(3);
    batch.insert(&tables.note, GIVEN, seal(Kind::Note, &Note { value: TABLES.len() as u64 }));
    batch.insert(&tables.note, GENERATION, seal(Kind::Note, &Note { value: rand::random::<u64>() }));
    batch.insert(&tables.note, STARTS, seal(Kind::Note, &Note { value: 0 }));
    let written = batch.commit().and_then(|()| tables.sync());
    drop(tables);
    written.map_err(|error| OpenError::Engine { directory: directory.to_owned(), why: in_words(&error) })?;
    journal::sync_tree(unfinished).map_err(|source| OpenError::Io {
        doing: "sync",
        path: unfinished.to_owned(),
        source,
    })
}

/// Opens the engine. It panics on some kinds of damage; here that is an error like the others.
fn engine(directory: &Path, open: impl FnOnce() -> Result<Tables, Failure>) -> Result<Tables, OpenError> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(tables)) => Ok(tables),
        Ok(Err(Failure::Missing(name))) => Err(damaged(directory, format!("its table {name} is missing"))),
        Ok(Err(Failure::Engine(fjall::Error::Locked))) => Err(OpenError::InUse { directory: directory.to_owned() }),
        Ok(Err(Failure::Engine(fjall::Error::Io(error)))) => {
            Err(OpenError::Engine { directory: directory.to_owned(), why: error.to_string() })
        }
        Ok(Err(Failure::Engine(error))) => {
            Err(damaged(directory, format!("the engine refuses its files: {}", in_words(&error))))
        }
        Err(_) => Err(damaged(directory, "the engine cannot make sense of its files".to_owned())),
    }
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
    sync(directory)
}

/// The directory may be new, and the folders above it too: until those are synced, a power cut takes it away whole.
fn sync_above(directory: &Path) -> io::Result<()> {
    for folder in fs::canonicalize(directory)?.ancestors().skip(1) {
        match sync(folder) {
            // A folder that we may not even read is not one that we have created something in; and where folders cannot
            // be synced, it is not needed either.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {}
            synced => synced?,
        }
    }
    Ok(())
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn damaged(directory: &Path, what: String) -> OpenError {
    OpenError::Damaged { directory: directory.to_owned(), what }
}
