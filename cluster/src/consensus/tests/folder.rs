//! Raft's folder after power cuts and on bad disks: what nobody was told of may be gone, what somebody was told of is there,
//! and what was changed is refused with a sentence. As the embedded store's tests of the same, on the other user of the
//! engine.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;

use super::super::log::{
    disk::{Batch, Disk},
    engine::Folder,
};
use crate::engine::journal::{Tail, examine, read_written};

/// Opens what was closed just now: the engine lets go of it when its threads have ended.
pub(super) fn open(path: &Path) -> io::Result<Folder> {
    for _ in 0..1000 {
        match Folder::open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(5)),
            opened => return opened,
        }
    }
    Folder::open(path)
}

fn found(path: &Path) -> BTreeMap<Vec<u8>, Bytes> {
    open(path).unwrap().load().unwrap()
}

fn refusal(path: &Path) -> String {
    let error = open(path).err().expect("it opens");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    error.to_string()
}

fn batch(steps: &[(&str, Option<&str>)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in steps {
        match value {
            Some(value) => batch.set(*key, Bytes::copy_from_slice(value.as_bytes())),
            None => batch.remove(*key),
        }
    }
    batch
}

fn write(folder: &Folder, batch: Batch) -> io::Result<()> {
    let (tell, told) = mpsc::channel();
    folder.write(batch, Some(Box::new(move |result| tell.send(result).unwrap())));
    told.recv().unwrap()
}

fn values(pairs: &[(&str, &str)]) -> BTreeMap<Vec<u8>, Bytes> {
    pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), Bytes::copy_from_slice(value.as_bytes()))).collect()
}

/// A folder to which this many values were written, each synced: `k1`, `k2` and so on. Where its journal ended after each.
fn journaled(count: usize) -> (TempDir, PathBuf, Vec<usize>) {
    let dir = TempDir::new().unwrap();
    let folder = open(dir.path()).unwrap();
    let path = dir.path().join("log/0.jnl");
    let end = || examine(&read_written(&path).unwrap()).last.end;
    let mut ends = vec![end()];
    for n in 1..=count {
        write(&folder, batch(&[(&format!("k{n}"), Some("hello"))])).unwrap();
        ends.push(end());
    }
    assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "{ends:?}");
    drop(folder);
    // Closed.
    assert_eq!(found(dir.path()).len(), count);
    (dir, path, ends)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, read_written(&entry.path()).unwrap()).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_folder_admits_one_owner() {
    let dir = TempDir::new().unwrap();
    let first = Folder::open(dir.path()).unwrap();
    let error = Folder::open(dir.path()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().ends_with("is in use by another process"), "{error}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_journal_cut_at_any_byte_is_repaired() {
    let (dir, path, ends) = journaled(4);
    let whole = read_written(&path).unwrap();
    for cut in ends[3]..=ends[4] {
        let told = ends.iter().rposition(|end| *end <= cut).unwrap();
        // As a crash leaves it: a shorter file, or a file as long as it was reserved.
        fs::write(&path, &whole[..cut]).unwrap();
        if cut % 2 == 0 {
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        }
        assert_eq!(found(dir.path()).len(), told, "cut at {cut} of {ends:?}");
        // What is repaired takes what comes.
        if cut % 16 == 0 {
            let folder = open(dir.path()).unwrap();
            write(&folder, batch(&[("later", Some("x"))])).unwrap();
            drop(folder);
            assert_eq!(found(dir.path()).len(), told + 1);
        }
    }
}

#[test]
fn a_last_write_that_lacks_sectors_is_removed() {
    let dir = TempDir::new().unwrap();
    let folder = open(dir.path()).unwrap();
    write(&folder, batch(&[("small", Some("hello"))])).unwrap();
    let path = dir.path().join("log/0.jnl");
    let before = examine(&read_written(&path).unwrap()).last.end;
    write(&folder, batch(&[("large", Some(&"x".repeat(5_000)))])).unwrap();
    drop(folder);
    assert_eq!(found(dir.path()).len(), 2);
    let whole = read_written(&path).unwrap();
    let end = examine(&whole).last.end;
    let first = before / 512 * 512;
    for lost in (first..end).step_by(512) {
        for upto in [lost + 512, end] {
            let mut bytes = whole.clone();
            bytes[lost.max(before)..upto.min(end)].fill(0);
            fs::write(&path, bytes).unwrap();
            assert_eq!(found(dir.path()), values(&[("small", "hello")]), "without {lost}..{upto}");
        }
    }
}

#[test]
fn a_journal_that_was_changed_is_refused() {
    let (dir, path, ends) = journaled(3);
    let whole = read_written(&path).unwrap();
    // The engine has no checksum over a batch's seqno. Where a change goes unnoticed it must do no harm.
    let is_seqno = |at: usize| ends[..3].iter().chain([&0]).any(|start| (start + 5..start + 13).contains(&at));
    for bit in 0..ends[3] * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if examine(&bytes).tail != Tail::Damaged {
            assert!(is_seqno(bit / 8), "byte {} of {ends:?}", bit / 8);
            fs::write(&path, bytes).unwrap();
            assert_eq!(found(dir.path()).len(), 3, "bit {bit}");
        }
    }
    for at in [ends[1] + 40, ends[0] + 1, ends[3] - 1, ends[2] - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refusal = refusal(dir.path());
        assert!(refusal.contains("0.jnl was changed at byte") && refusal.contains("joins its cluster as a new one"));
        assert_eq!(fs::read(&path).unwrap(), bytes, "a refusal changes nothing");
    }
    // A write in the middle that is gone.
    let mut bytes = whole.clone();
    bytes[ends[1]..ends[2]].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert!(refusal(dir.path()).contains("was changed at byte"));
}

#[test]
fn a_first_start_that_was_cut_short_is_finished() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("log.new/keyspaces/1")).unwrap();
    fs::write(dir.path().join("log.new/version"), "half").unwrap();
    assert!(found(dir.path()).is_empty());
    assert!(!dir.path().join("log.new").exists());
}

#[test]
fn nothing_begins_anew_where_something_is_missing() {
    let missing = |path: &str| {
        let dir = TempDir::new().unwrap();
        found(dir.path());
        found(dir.path());
        let path = dir.path().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        refusal(dir.path())
    };
    assert!(missing("log/version").contains("log/version is missing"));
    assert!(missing("log/0.jnl").contains("its journal is missing"));
    assert!(missing("log/keyspaces/1/current").contains("has no manifest"));
    assert!(missing("log/keyspaces/1").contains("its table raft is missing"));
    assert!(missing("log/keyspaces/1/v0").contains("lacks the manifest"));
}

/// What nobody waits for reaches the disk together with what comes after it, or not at all; never without something that
/// came before it.
#[test]
fn what_is_not_synced_does_not_survive_alone() {
    let dir = TempDir::new().unwrap();
    let folder = open(dir.path()).unwrap();
    // As the disk is when the power is cut now.
    let cut = || {
        let after = TempDir::new().unwrap();
        thread::sleep(Duration::from_millis(30));
        copy(dir.path(), after.path());
        found(after.path())
    };
    folder.write(batch(&[("committed", Some("1")), ("old", Some("x"))]), None);
    assert!(cut().is_empty(), "nobody was told of it");
    write(&folder, batch(&[("entry", Some("a"))])).unwrap();
    assert_eq!(cut(), values(&[("committed", "1"), ("entry", "a"), ("old", "x")]));
    folder.write(batch(&[("old", None), ("committed", Some("2"))]), None);
    folder.write(batch(&[("committed", Some("3"))]), None);
    assert_eq!(cut(), values(&[("committed", "1"), ("entry", "a"), ("old", "x")]));
    write(&folder, batch(&[("entry", None), ("entry", Some("b"))])).unwrap();
    assert_eq!(cut(), values(&[("committed", "3"), ("entry", "b")]), "in order, and the last counts");
    // Whoever ends in peace leaves nothing behind.
    folder.write(batch(&[("committed", Some("4"))]), None);
    drop(folder);
    assert_eq!(found(dir.path()), values(&[("committed", "4"), ("entry", "b")]));
}

/// Six megabytes: memtables become files, which are found, and are noticed when they were changed.
#[test]
fn what_became_files_is_found_or_refused() {
    let dir = TempDir::new().unwrap();
    let folder = open(dir.path()).unwrap();
    let value = |n: u32| Bytes::from(n.to_be_bytes().repeat(10_000));
    for n in 0..150u32 {
        let mut one = Batch::default();
        one.set(n.to_be_bytes(), value(n));
        if n % 10 == 9 { write(&folder, one).unwrap() } else { folder.write(one, None) }
    }
    let is_flushed = || !files(&dir.path().join("log/keyspaces/1/tables")).is_empty();
    for _ in 0..1000 {
        if is_flushed() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(is_flushed(), "no memtable became a file");
    drop(folder);
    let whole = found(dir.path());
    assert!(
        whole.len() == 150
            && whole.iter().all(|(key, found)| *found == value(u32::from_be_bytes(key[..].try_into().unwrap())))
    );

    let (mut refused, mut served, mut random) = (0, 0, 1u64);
    for path in files(&dir.path().join("log/keyspaces")) {
        let size = fs::metadata(&path).unwrap().len();
        for _ in 0..if size == 0 { 0 } else { 4 } {
            let copied = TempDir::new().unwrap();
            copy(dir.path(), copied.path());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = fs::read(&path).unwrap();
            bytes[((random >> 24) % size) as usize] ^= 1 << (random >> 20 & 7);
            fs::write(copied.path().join(path.strip_prefix(dir.path()).unwrap()), bytes).unwrap();
            match open(copied.path()) {
                Ok(folder) => {
                    assert!(folder.load().unwrap() == whole, "{}: something else is served", path.display());
                    served += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("is damaged: "), "{}: {error}", path.display());
                    refused += 1;
                }
            }
        }
    }
    println!("refused {refused}, whole {served}");
    assert!(refused > 0 && served > 0, "refused {refused}, whole {served}");
}

#[test]
fn a_disk_that_fails_says_so_from_then_on() {
    let dir = TempDir::new().unwrap();
    let folder = open(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join("log/keyspaces/1/tables")).unwrap();
    let large = "x".repeat(3 << 20);
    let mut failed = false;
    for n in 0..400 {
        let result = write(&folder, batch(&[(&format!("k{n}"), Some(if n < 4 { &large } else { "x" }))]));
        assert!(!failed || result.is_err(), "it has failed, and goes on");
        failed = result.is_err();
        if !failed {
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(failed, "a flush that has nowhere to write to is not noticed");
}
