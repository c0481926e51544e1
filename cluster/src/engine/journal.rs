//! What a crash or a bad disk left of the engine's files, looked at before the engine does.
//!
//! The engine repairs by itself what it can, and it can too much: it cuts a journal at the first bytes that it does not
//! understand, whatever stands behind them, it takes a journal for damaged whose torn tail happens to have the right
//! shape, and it deletes a table whose manifest is gone. This check leaves it nothing to decide.
//!
//! A journal is a sequence of batches: a start (count, seqno), that many items, an end (checksum of the items, trailer).
//! Each of our batches was synced before the next one was written (whoever uses this check must keep to that), so:
//!
//! - bytes that are no batch, with a whole batch *behind* them, were synced once and have changed since: refused;
//! - a last batch that lacks a sector or its end was never synced: nobody was told that it is durable, so it is cut off;
//! - a last batch of which every sector was written, and which is yet not whole, has changed since: refused.
//!
//! What nobody can tell from an unwritten tail is batches that somebody cut off by hand, however many: the log is then
//! served as the shorter one that it looks like. What shows it is a client that holds a position above the head (its
//! resume is answered `ahead`, and the log says `client_ahead`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::Error;

/// Checks the manifests of all tables and all journals of a folder that nobody has open, and cuts off a torn tail.
///
/// # Errors
/// When a file cannot be read, or when something is missing from the folder or was changed. Nothing was touched then.
pub fn check(log: &Path) -> Result<(), Error> {
    // Where this file is missing the engine begins anew, on top of what is there.
    if !log.join("version").exists() {
        return Err(Error::Damaged(format!("its file {} is missing", log.join("version").display())));
    }
    let keyspaces = log.join("keyspaces");
    for table in folder(&keyspaces)? {
        check_manifest(&table)?;
    }
    let mut journals = Vec::new();
    for path in folder(log)? {
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number: Option<u64> =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            journals.push((
                number.ok_or_else(|| Error::Damaged(format!("{} is no journal's name", path.display())))?,
                path,
            ));
        }
    }
    journals.sort();
    let Some((_, active)) = journals.pop() else {
        return Err(Error::Damaged("its journal is missing".to_owned()));
    };
    for (_, sealed) in journals {
        // Synced as a whole before the next one was begun, so it has no torn tail.
        let Examined { last, tail } = examine(&read(&sealed)?);
        if tail != Tail::Clean {
            return Err(changed(&sealed, last.end));
        }
    }
    let bytes = read(&active)?;
    let Examined { last, tail } = examine(&bytes);
    match tail {
        Tail::Clean => {}
        Tail::Torn => {
            tracing::warn!(
                event = "journal_repaired",
                journal = %active.display(),
                at = last.end,
                "the journal ends in a write that is not whole, which is removed: after a crash nobody had been told that it is \
                 durable. If somebody has cut the file instead, what was cut off was durable and is missing; then clients \
                 that know more than the server show it (event client_ahead)"
            );
        }
        Tail::Damaged => return Err(changed(&active, last.end)),
    }
    settle(&active, &bytes, last, tail).map_err(|source| Error::Io { doing: "repair", path: active, source })
}

/// Cuts off what was never synced, and writes the last batch once more, as it is: the kernel may show bytes whose sync
/// failed in an earlier life as if they were on disk, and another sync does nothing about them. Bytes that are written
/// again it must sync.
fn settle(journal: &Path, bytes: &[u8], last: Range<usize>, tail: Tail) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(journal)?;
    if tail == Tail::Torn {
        file.set_len(last.end as u64)?;
    }
    file.write_all_at(&bytes[last.clone()], last.start as u64)?;
    file.sync_all()
}

fn changed(journal: &Path, at: usize) -> Error {
    Error::Damaged(format!("its journal {} was changed at byte {at} after it had been written", journal.display()))
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { doing: "read", path: path.to_owned(), source };
    fs::read_dir(path).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    read_written(path).map_err(|source| Error::Io { doing: "read", path: path.to_owned(), source })
}

/// A file up to the last space that was ever written: journals are created longer than they are.
///
/// # Errors
/// What the system says.
pub fn read_written(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut end = 0;
    while end < len {
        match seek(&file, SeekFrom::Data(end)) {
            Ok(data) => end = seek(&file, SeekFrom::Hole(data))?,
            Err(Errno::NXIO) => break,
            // A file system that does not tell.
            Err(_) => end = len,
        }
    }
    let mut bytes = vec![0; end as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

// === manifests ===

/// A table's folder has a file `current`: the number of the manifest that counts, and its checksum. The engine does not
/// compare it, and removes files that no manifest names.
fn check_manifest(table: &Path) -> Result<(), Error> {
    if !table.is_dir() {
        return Ok(());
    }
    let damaged = |why: &str| Error::Damaged(format!("the table in {} {why}", table.display()));
    let current = table.join("current");
    if !current.exists() {
        return Err(damaged("has no manifest"));
    }
    let current = read(&current)?;
    let (Some(number), Some(sum)) = (number_at(&current, 0), current.get(8..24).and_then(<[u8]>::first_chunk)) else {
        return Err(damaged("has a damaged manifest"));
    };
    let manifest = table.join(format!("v{number}"));
    if !manifest.exists() {
        return Err(damaged("lacks the manifest that counts"));
    }
    // Another kind of checksum than the one that this program knows is left to the engine.
    if current.get(24) == Some(&0) && xxh3_128(&read(&manifest)?) != u128::from_le_bytes(*sum) {
        return Err(damaged("has a damaged manifest"));
    }
    Ok(())
}

// === journals ===

/// What stands in a journal.
#[derive(Debug, PartialEq, Eq)]
pub struct Examined {
    /// The last whole batch; what counts ends with it.
    pub last: Range<usize>,
    /// What stands behind it.
    pub tail: Tail,
}

/// What stands behind the last whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing but unwritten space.
    Clean,
    /// A batch that was never synced.
    Torn,
    /// Something that was synced and has changed since.
    Damaged,
}

/// What the disk writes at once. A torn write lacks whole sectors.
const SECTOR: usize = 512;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Reads a journal's bytes.
#[must_use]
pub fn examine(journal: &[u8]) -> Examined {
    let written = journal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let (mut last, mut before) = (0..0, None);
    let broken = loop {
        if last.end >= written {
            return Examined { last, tail: Tail::Clean };
        }
        match batch(journal, last.end) {
            Ok(batch) if before.is_none_or(|before| follows(before, batch.seqno)) => {
                (last, before) = (last.end..batch.end, Some(batch.seqno));
            }
            Ok(_) => break Broken::Seqno,
            Err(broken) => break broken,
        }
    };
    let at = last.end;
    let whole_behind = || (at + 1..written).any(|next| journal[next] == START && batch(journal, next).is_ok());
    let complete = || journal[at..written].ends_with(&TRAILER) && !lacks_sector(journal, at, written);
    let damaged = broken != Broken::Content || complete() || whole_behind();
    Examined { last, tail: if damaged { Tail::Damaged } else { Tail::Torn } }
}

/// The engine's seqnos are under no checksum. They grow by one with every batch, and by a few more with every flush and
/// merge; one that only falls into such a gap changes no order and does no harm.
const fn follows(before: u64, seqno: u64) -> bool {
    seqno > before && seqno - before <= SEQNO_STEP_MAX
}

/// Far above any step, far below any flipped bit that would make the engine run out of seqnos.
const SEQNO_STEP_MAX: u64 = 1 << 20;

/// Whether some sector's share of a range was never written.
fn lacks_sector(journal: &[u8], from: usize, upto: usize) -> bool {
    let mut at = from;
    while at < upto {
        let end = (at / SECTOR * SECTOR + SECTOR).min(upto);
        if journal[at..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = end;
    }
    false
}

/// Why bytes are no batch.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// They do not have the shape, or the checksum, or they end too soon.
    Content,
    /// All is there and right but the four bytes after the checksum.
    Trailer,
    /// All is there and right but its place among the others.
    Seqno,
}

struct Batch {
    seqno: u64,
    /// Where the next one starts.
    end: usize,
}

/// The batch that starts here.
fn batch(journal: &[u8], start: usize) -> Result<Batch, Broken> {
    const SHAPE: Broken = Broken::Content;
    let byte = |at: usize| journal.get(at).copied().ok_or(SHAPE);
    if byte(start)? != START {
        return Err(SHAPE);
    }
    let count = u32::from_le_bytes(*journal.get(start + 1..).and_then(<[u8]>::first_chunk).ok_or(SHAPE)?);
    let seqno = number_at(journal, start + 5).ok_or(SHAPE)?;
    let items = start + 13;
    let mut at = items;
    for _ in 0..count {
        at = match byte(at)? {
            ITEM => {
                // tag, kind of value, compression, table, bytes of key, of value, of value as stored, key, value
                let key = u16::from_le_bytes(*journal.get(at + 11..).and_then(<[u8]>::first_chunk).ok_or(SHAPE)?);
                let value = u32::from_le_bytes(*journal.get(at + 17..).and_then(<[u8]>::first_chunk).ok_or(SHAPE)?);
                at + 21 + usize::from(key) + value as usize
            }
            CLEAR => at + 9,
            _ => return Err(SHAPE),
        };
    }
    let sum = number_at(journal, at + 1).ok_or(SHAPE)?;
    if byte(at)? != END || count == 0 || xxh3_64(&journal[items..at]) != sum {
        return Err(SHAPE);
    }
    match journal.get(at + 9..at + 13) {
        Some(trailer) if trailer == TRAILER => Ok(Batch { seqno, end: at + 13 }),
        Some(trailer) if !trailer.contains(&0) => Err(Broken::Trailer),
        _ => Err(SHAPE),
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|number| u64::from_le_bytes(*number))
}
