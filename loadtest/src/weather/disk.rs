//! A disk that knows what was synced and what was only written. Pure: no clock, no thread, no system call.
//!
//! Programs see the *live* state. Beside it stands the *durable* one, which is all that a power cut leaves:
//!
//! - Bytes and size of a file become durable with `fsync` or `fdatasync` of that file, and with nothing else.
//! - A name (created, renamed, removed; of a file or a folder) becomes durable with `fsync` of the folder it stands in.
//!   A rename between two folders is one step: syncing either makes the whole of it durable. Under
//!   [`Names::Journaled`] every `fsync` of whatever also makes durable all that was done to names before, as the
//!   journals of ext4 and XFS do; under [`Names::Strict`] it does not, as POSIX allows.
//! - Modes, owners and times are durable at once: nothing here depends on them.
//!
//! What was not synced *may* survive all the same, since every kernel writes back by itself. [`Disk::survivors`]
//! therefore knows two ends: [`Cut::Synced`], nothing but the durable state, and [`Cut::Torn`], where any sector of
//! 512 bytes that was written since the last sync is there or not by chance, the size of a file is the old or the new one
//! by chance, and of the changes of names any number of the first are there, in order, as in a journal.
//!
//! A failed sync ([`Disk::fail_syncs`]) behaves as on Linux: what it should have written stays visible, counts as clean,
//! and no later sync writes it, unless it is written again.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::{OsStr, OsString},
    sync::Arc,
};

use super::dice::Dice;

/// The number of a file or folder.
pub type Ino = u64;

/// The top folder.
pub const ROOT: Ino = 1;

/// Bytes per page.
pub const PAGE: usize = 4096;

/// What a disk writes at once.
const SECTOR: usize = 512;

/// When names become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// By syncing their folder only.
    #[default]
    Strict,
    /// By syncing anything.
    Journaled,
}

/// What a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What was synced and nothing else.
    Synced,
    /// What was synced, and some of the rest, by chance; the seed of that chance.
    Torn(u64),
}

/// Why something cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such thing.
    Missing,
    /// The name is taken.
    Taken,
    /// A folder was needed, or was not.
    WrongKind,
    /// The folder holds something.
    NotEmpty,
    /// There is no room.
    Full,
    /// The sync failed.
    Failed,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its number.
    pub ino: Ino,
    /// Whether it is a folder.
    pub folder: bool,
    /// Bytes in it.
    pub size: u64,
    /// Bytes that it takes.
    pub used: u64,
    /// Permissions.
    pub mode: u16,
}

type Page = Arc<[u8; PAGE]>;

/// A file's bytes; pages that are not there are zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

#[derive(Debug, Clone, Default)]
struct File {
    live: Content,
    durable: Content,
    /// Pages written since they were last synced.
    dirty: BTreeSet<u64>,
}

type Entries = BTreeMap<OsString, Ino>;

#[derive(Debug, Clone, Default)]
struct Folder {
    live: Entries,
    durable: Entries,
}

#[derive(Debug, Clone)]
enum Kind {
    File(File),
    Folder(Folder),
}

#[derive(Debug, Clone)]
struct Node {
    mode: u16,
    kind: Kind,
}

/// One change of names: which name in which folder stands for what from now on.
#[derive(Debug, Clone)]
struct Change(Vec<(Ino, OsString, Option<Ino>)>);

/// The disk.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<Ino, Node>,
    next: Ino,
    names: Names,
    /// Changes of names that are not durable yet, oldest first.
    pending: Vec<Change>,
    capacity: u64,
    /// Pages in use.
    used: u64,
    lying: bool,
    failing: u64,
}

// === impl Disk ===

impl Disk {
    /// An empty disk of this many bytes.
    pub fn new(names: Names, capacity: u64) -> Self {
        let root = Node { mode: 0o755, kind: Kind::Folder(Folder::default()) };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            names,
            pending: Vec::new(),
            capacity,
            used: 0,
            lying: false,
            failing: 0,
        }
    }

    /// From now on syncs say yes and do nothing, as a drive does whose cache loses its contents. No program can keep a
    /// promise on such a disk: tests of tests want it.
    pub fn lie(&mut self, lying: bool) {
        self.lying = lying;
    }

    /// The next `count` syncs of files fail.
    pub fn fail_syncs(&mut self, count: u64) {
        self.failing = count;
    }

    /// Changes the size of the disk. What is on it stays.
    pub fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Bytes of the disk, and how many of them are free.
    pub fn space(&self) -> (u64, u64) {
        (self.capacity, self.capacity.saturating_sub(self.used * PAGE as u64))
    }

    // === names ===

    /// What a name stands for.
    pub fn lookup(&self, folder: Ino, name: &OsStr) -> Result<Stat, Refusal> {
        self.stat(*self.folder(folder)?.live.get(name).ok_or(Refusal::Missing)?)
    }

    /// What a number stands for.
    pub fn stat(&self, ino: Ino) -> Result<Stat, Refusal> {
        let node = self.nodes.get(&ino).ok_or(Refusal::Missing)?;
        let (folder, size, used) = match &node.kind {
            Kind::File(file) => (false, file.live.size, file.live.pages.len() as u64 * PAGE as u64),
            Kind::Folder(folder) => (true, folder.live.len() as u64, PAGE as u64),
        };
        Ok(Stat { ino, folder, size, used, mode: node.mode })
    }

    /// What stands in a folder.
    pub fn list(&self, folder: Ino) -> Result<Vec<(OsString, Stat)>, Refusal> {
        let entries = self.folder(folder)?.live.iter();
        entries.map(|(name, ino)| Ok((name.clone(), self.stat(*ino)?))).collect()
    }

    /// Creates a file or a folder.
    pub fn create(&mut self, folder: Ino, name: &OsStr, mode: u16, is_folder: bool) -> Result<Stat, Refusal> {
        if self.folder(folder)?.live.contains_key(name) {
            return Err(Refusal::Taken);
        }
        let ino = self.next;
        self.next += 1;
        let kind = if is_folder { Kind::Folder(Folder::default()) } else { Kind::File(File::default()) };
        self.nodes.insert(ino, Node { mode, kind });
        self.change(Change(vec![(folder, name.to_owned(), Some(ino))]));
        self.stat(ino)
    }

    /// Removes a name.
    pub fn remove(&mut self, folder: Ino, name: &OsStr, is_folder: bool) -> Result<(), Refusal> {
        let stat = self.lookup(folder, name)?;
        if stat.folder != is_folder {
            return Err(Refusal::WrongKind);
        }
        if stat.folder && stat.size > 0 {
            return Err(Refusal::NotEmpty);
        }
        self.change(Change(vec![(folder, name.to_owned(), None)]));
        Ok(())
    }

    /// Gives something another name, which may have stood for something else.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Refusal> {
        let moved = self.lookup(from.0, from.1)?;
        if let Ok(replaced) = self.lookup(to.0, to.1) {
            if replaced.ino == moved.ino {
                return Ok(());
            }
            if replaced.folder != moved.folder {
                return Err(Refusal::WrongKind);
            }
            if replaced.folder && replaced.size > 0 {
                return Err(Refusal::NotEmpty);
            }
        }
        self.folder(to.0)?;
        self.change(Change(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(moved.ino))]));
        Ok(())
    }

    /// Sets permissions.
    pub fn set_mode(&mut self, ino: Ino, mode: u16) -> Result<(), Refusal> {
        self.nodes.get_mut(&ino).ok_or(Refusal::Missing)?.mode = mode;
        Ok(())
    }

    fn change(&mut self, change: Change) {
        for (folder, name, ino) in &change.0 {
            if let Some(Node { kind: Kind::Folder(folder), .. }) = self.nodes.get_mut(folder) {
                set(&mut folder.live, name, *ino);
            }
        }
        self.pending.push(change);
    }

    fn settle(&mut self, change: &Change) {
        for (folder, name, ino) in &change.0 {
            if let Some(Node { kind: Kind::Folder(folder), .. }) = self.nodes.get_mut(folder) {
                set(&mut folder.durable, name, *ino);
            }
        }
    }

    fn folder(&self, ino: Ino) -> Result<&Folder, Refusal> {
        match &self.nodes.get(&ino).ok_or(Refusal::Missing)?.kind {
            Kind::Folder(folder) => Ok(folder),
            Kind::File(_) => Err(Refusal::WrongKind),
        }
    }

    // === bytes ===

    /// Up to `count` bytes.
    pub fn read(&self, ino: Ino, offset: u64, count: usize) -> Result<Vec<u8>, Refusal> {
        match &self.nodes.get(&ino).ok_or(Refusal::Missing)?.kind {
            Kind::File(file) => Ok(file.live.read(offset, count)),
            Kind::Folder(_) => Err(Refusal::WrongKind),
        }
    }

    /// Writes bytes.
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let free = (self.capacity / PAGE as u64).saturating_sub(self.used);
        let file = self.file(ino)?;
        let touched = pages(offset, bytes.len() as u64);
        let fresh = touched.clone().filter(|page| !file.live.pages.contains_key(page)).count() as u64;
        if fresh > free {
            return Err(Refusal::Full);
        }
        file.live.write(offset, bytes);
        file.dirty.extend(touched);
        self.used += fresh;
        Ok(())
    }

    /// Sets a file's size.
    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<(), Refusal> {
        let file = self.file(ino)?;
        let before = file.live.pages.len();
        let dropped: Vec<u64> = file.live.pages.range(size / PAGE as u64..).map(|(page, _)| *page).collect();
        file.dirty.extend(dropped);
        file.live.truncate(size);
        let freed = before - file.live.pages.len();
        self.used -= freed as u64;
        Ok(())
    }

    fn file(&mut self, ino: Ino) -> Result<&mut File, Refusal> {
        match &mut self.nodes.get_mut(&ino).ok_or(Refusal::Missing)?.kind {
            Kind::File(file) => Ok(file),
            Kind::Folder(_) => Err(Refusal::WrongKind),
        }
    }

    // === durability ===

    /// `fsync` or `fdatasync` of a file, `fsync` of a folder.
    pub fn sync(&mut self, ino: Ino) -> Result<(), Refusal> {
        let (lying, failing) = (self.lying, self.failing);
        match &mut self.nodes.get_mut(&ino).ok_or(Refusal::Missing)?.kind {
            Kind::File(file) => {
                if failing > 0 {
                    self.failing -= 1;
                    // The kernel has tried: it does not try again.
                    file.dirty.clear();
                    return Err(Refusal::Failed);
                }
                if lying {
                    return Ok(());
                }
                file.sync();
                if self.names == Names::Journaled {
                    self.settle_all();
                }
            }
            Kind::Folder(_) if lying => {}
            Kind::Folder(_) => match self.names {
                Names::Journaled => self.settle_all(),
                Names::Strict => self.settle_folder(ino),
            },
        }
        Ok(())
    }

    /// Makes everything durable, as a proper shutdown does.
    pub fn sync_all(&mut self) {
        for node in self.nodes.values_mut() {
            if let Kind::File(file) = &mut node.kind {
                file.sync();
            }
        }
        self.settle_all();
    }

    fn settle_all(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            self.settle(&change);
        }
    }

    /// Settles what was done in a folder, and what that depends on.
    fn settle_folder(&mut self, ino: Ino) {
        let mut names: HashSet<(Ino, OsString)> = HashSet::new();
        let mut due = vec![false; self.pending.len()];
        for (due, change) in due.iter_mut().zip(&self.pending).rev() {
            *due = change.0.iter().any(|(folder, name, _)| *folder == ino || names.contains(&(*folder, name.clone())));
            if *due {
                names.extend(change.0.iter().map(|(folder, name, _)| (*folder, name.clone())));
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for (change, due) in pending.into_iter().zip(due) {
            if due {
                self.settle(&change);
            } else {
                self.pending.push(change);
            }
        }
    }

    /// What a power cut at this moment leaves, as a disk that is in the machine when the power is back.
    pub fn survivors(&self, cut: Cut) -> Self {
        let mut disk = self.clone();
        if let Cut::Torn(seed) = cut {
            let mut dice = Dice::of(seed);
            let first = dice.below(disk.pending.len() as u64 + 1) as usize;
            for change in disk.pending.clone().iter().take(first) {
                disk.settle(change);
            }
            // Sometimes almost nothing is lost, sometimes almost everything.
            let kept = *dice.pick(&[0.0, 0.1, 0.5, 0.9, 1.0]);
            for node in disk.nodes.values_mut() {
                if let Kind::File(file) = &mut node.kind {
                    file.tear(kept, &mut dice);
                }
            }
        }
        disk.pending.clear();
        for node in disk.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(file) => {
                    file.live = file.durable.clone();
                    file.dirty.clear();
                }
                Kind::Folder(folder) => folder.live = folder.durable.clone(),
            }
        }
        (disk.lying, disk.failing) = (false, 0);
        disk.forget_unreachable();
        disk
    }

    fn forget_unreachable(&mut self) {
        let (mut reached, mut next) = (BTreeSet::new(), vec![ROOT]);
        while let Some(ino) = next.pop() {
            if reached.insert(ino)
                && let Ok(folder) = self.folder(ino)
            {
                next.extend(folder.live.values());
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
        let files = self.nodes.values().map(|node| match &node.kind {
            Kind::File(file) => file.live.pages.len() as u64,
            Kind::Folder(_) => 0,
        });
        self.used = files.sum();
    }

    /// Nobody has a file open any longer that no name stands for: its space is free again.
    pub fn forget(&mut self, ino: Ino) {
        let named = |entries: &Entries| entries.values().any(|named| *named == ino);
        let pending = self.pending.iter().flat_map(|change| &change.0).any(|(_, _, named)| *named == Some(ino));
        let kept = pending
            || self.nodes.values().any(
                |node| matches!(&node.kind, Kind::Folder(folder) if named(&folder.live) || named(&folder.durable)),
            );
        if let (false, Some(Node { kind: Kind::File(file), .. })) = (kept, self.nodes.get(&ino)) {
            self.used -= file.live.pages.len() as u64;
            self.nodes.remove(&ino);
        }
    }
}

fn set(entries: &mut Entries, name: &OsStr, ino: Option<Ino>) {
    match ino {
        Some(ino) => _ = entries.insert(name.to_owned(), ino),
        None => _ = entries.remove(name),
    }
}

/// The pages that a range touches.
fn pages(offset: u64, count: u64) -> std::ops::Range<u64> {
    let page = PAGE as u64;
    if count == 0 { 0..0 } else { offset / page..(offset + count).div_ceil(page) }
}

// === impl Content, File ===

impl Content {
    fn read(&self, offset: u64, count: usize) -> Vec<u8> {
        let count = self.size.saturating_sub(offset).min(count as u64);
        let mut bytes = vec![0; count as usize];
        for page in pages(offset, count) {
            if let Some(found) = self.pages.get(&page) {
                let (in_bytes, in_page) = overlap(offset, count, page);
                bytes[in_bytes].copy_from_slice(&found[in_page]);
            }
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let count = bytes.len() as u64;
        for page in pages(offset, count) {
            let (in_bytes, in_page) = overlap(offset, count, page);
            let held = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(held)[in_page].copy_from_slice(&bytes[in_bytes]);
        }
        self.size = self.size.max(offset + count);
    }

    fn truncate(&mut self, size: u64) {
        let _ = self.pages.split_off(&size.div_ceil(PAGE as u64));
        if let Some(last) = self.pages.get_mut(&(size / PAGE as u64)) {
            Arc::make_mut(last)[size as usize % PAGE..].fill(0);
        }
        self.size = size;
    }
}

/// Where a page overlaps a range: in the range's bytes, and in the page.
fn overlap(offset: u64, count: u64, page: u64) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let start = page * PAGE as u64;
    let from = offset.max(start);
    let upto = (offset + count).min(start + PAGE as u64);
    ((from - offset) as usize..(upto - offset) as usize, (from - start) as usize..(upto - start) as usize)
}

impl File {
    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            match self.live.pages.get(&page) {
                Some(bytes) => _ = self.durable.pages.insert(page, Arc::clone(bytes)),
                None => _ = self.durable.pages.remove(&page),
            }
        }
        // Also cuts what a failed sync had left of a longer past.
        self.durable.truncate(self.live.size);
    }

    /// Lets each unsynced sector reach the disk with this probability.
    fn tear(&mut self, kept: f64, dice: &mut Dice) {
        let size = if dice.chance(kept) { self.live.size } else { self.durable.size };
        for page in &self.dirty {
            let zeros: Page = Arc::new([0; PAGE]);
            let live = self.live.pages.get(page).unwrap_or(&zeros);
            let mut torn = self.durable.pages.get(page).map_or([0; PAGE], |page| **page);
            for sector in (0..PAGE).step_by(SECTOR) {
                if dice.chance(kept) {
                    torn[sector..sector + SECTOR].copy_from_slice(&live[sector..sector + SECTOR]);
                }
            }
            self.durable.pages.insert(*page, Arc::new(torn));
        }
        self.durable.truncate(size);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const BIG: u64 = 1 << 30;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn create(disk: &mut Disk, folder: Ino, called: &str) -> Ino {
        disk.create(folder, name(called), 0o644, false).unwrap().ino
    }

    fn content(disk: &Disk, called: &str) -> Option<Vec<u8>> {
        let stat = disk.lookup(ROOT, name(called)).ok()?;
        Some(disk.read(stat.ino, 0, stat.size as usize).unwrap())
    }

    #[test]
    fn only_synced_bytes_survive() {
        let mut disk = Disk::new(Names::Strict, BIG);
        let file = create(&mut disk, ROOT, "a");
        disk.sync(ROOT).unwrap();
        disk.write(file, 5000, b"first").unwrap();
        disk.sync(file).unwrap();
        disk.write(file, 5001, b"XX").unwrap();
        disk.write(file, 9000, b"second").unwrap();
        assert_eq!(content(&disk, "a").unwrap().len(), 9006);
        let after = content(&disk.survivors(Cut::Synced), "a").unwrap();
        assert_eq!(after.len(), 5005);
        assert_eq!((&after[..5000], &after[5000..]), (&[0; 5000][..], &b"first"[..]));
    }

    #[test]
    fn a_name_needs_the_sync_of_its_folder() {
        for (names, survives) in [(Names::Strict, false), (Names::Journaled, true)] {
            let mut disk = Disk::new(names, BIG);
            let file = create(&mut disk, ROOT, "a");
            disk.write(file, 0, b"x").unwrap();
            disk.sync(file).unwrap();
            assert_eq!(content(&disk.survivors(Cut::Synced), "a").is_some(), survives);
            disk.sync(ROOT).unwrap();
            assert_eq!(content(&disk.survivors(Cut::Synced), "a").unwrap(), b"x");
            disk.remove(ROOT, name("a"), false).unwrap();
            assert_eq!(content(&disk, "a"), None);
            assert_eq!(content(&disk.survivors(Cut::Synced), "a").unwrap(), b"x");
            disk.sync(ROOT).unwrap();
            assert_eq!(content(&disk.survivors(Cut::Synced), "a"), None);
        }
    }

    #[test]
    fn a_rename_is_one_step_whichever_folder_is_synced() {
        for which in 0..2 {
            let mut disk = Disk::new(Names::Strict, BIG);
            let folders = ["from", "to"].map(|folder| disk.create(ROOT, name(folder), 0o755, true).unwrap().ino);
            disk.sync(ROOT).unwrap();
            // The creation in the first folder is not durable when the second is synced: the rename carries it along.
            create(&mut disk, folders[0], "a");
            disk.rename((folders[0], name("a")), (folders[1], name("b"))).unwrap();
            let before = disk.survivors(Cut::Synced);
            assert!(before.list(folders[0]).unwrap().is_empty() && before.list(folders[1]).unwrap().is_empty());
            disk.sync(folders[which]).unwrap();
            let after = disk.survivors(Cut::Synced);
            assert!(after.lookup(folders[1], name("b")).is_ok() && after.lookup(folders[0], name("a")).is_err());
        }
    }

    #[test]
    fn a_file_under_a_folder_without_a_durable_name_is_gone() {
        let mut disk = Disk::new(Names::Strict, BIG);
        let folder = disk.create(ROOT, name("folder"), 0o755, true).unwrap().ino;
        let file = create(&mut disk, folder, "a");
        disk.sync(file).unwrap();
        disk.sync(folder).unwrap();
        assert!(disk.survivors(Cut::Synced).lookup(ROOT, name("folder")).is_err());
        disk.sync(ROOT).unwrap();
        assert!(disk.survivors(Cut::Synced).lookup(folder, name("a")).is_ok());
    }

    #[test]
    fn a_torn_cut_leaves_a_mixture_of_sectors_but_all_that_was_synced() {
        let mut mixed = 0;
        for seed in 0..50 {
            let mut disk = Disk::new(Names::Strict, BIG);
            let file = create(&mut disk, ROOT, "a");
            disk.sync(ROOT).unwrap();
            disk.write(file, 0, &[1; 2048]).unwrap();
            disk.sync(file).unwrap();
            disk.write(file, 2048, &[2; 2 * PAGE]).unwrap();
            let after = content(&disk.survivors(Cut::Torn(seed)), "a").unwrap();
            assert!(after[..2048].iter().all(|byte| *byte == 1));
            assert!(after.len() == 2048 || after.len() == 2048 + 2 * PAGE);
            let sectors: Vec<u8> = after[2048..].chunks(SECTOR).map(|sector| sector[0]).collect();
            assert!(after[2048..].chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            mixed += u32::from(sectors.contains(&0) && sectors.contains(&2));
        }
        assert!(mixed > 5, "{mixed}");
    }

    #[test]
    fn changes_of_names_survive_in_their_order() {
        let mut seen = BTreeSet::new();
        for seed in 0..60 {
            let mut disk = Disk::new(Names::Strict, BIG);
            for called in ["a", "b", "c"] {
                create(&mut disk, ROOT, called);
            }
            let after = disk.survivors(Cut::Torn(seed));
            seen.insert(
                after.list(ROOT).unwrap().into_iter().map(|(name, _)| name.into_string().unwrap()).collect::<String>(),
            );
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["", "a", "ab", "abc"]);
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let mut disk = Disk::new(Names::Strict, BIG);
        let file = create(&mut disk, ROOT, "a");
        disk.sync(ROOT).unwrap();
        disk.write(file, 0, b"lost").unwrap();
        disk.fail_syncs(1);
        assert_eq!(disk.sync(file), Err(Refusal::Failed));
        disk.sync(file).unwrap();
        assert_eq!(content(&disk, "a").unwrap(), b"lost");
        assert_eq!(content(&disk.survivors(Cut::Synced), "a").unwrap(), [0; 4]);
        disk.write(file, 0, b"lost").unwrap();
        disk.sync(file).unwrap();
        assert_eq!(content(&disk.survivors(Cut::Synced), "a").unwrap(), b"lost");
    }

    #[test]
    fn a_lying_disk_keeps_nothing() {
        let mut disk = Disk::new(Names::Strict, BIG);
        disk.lie(true);
        let file = create(&mut disk, ROOT, "a");
        disk.write(file, 0, b"x").unwrap();
        disk.sync(file).unwrap();
        disk.sync(ROOT).unwrap();
        assert_eq!(content(&disk.survivors(Cut::Synced), "a"), None);
    }

    #[test]
    fn a_full_disk_takes_nothing_more_until_something_goes() {
        let mut disk = Disk::new(Names::Strict, 4 * PAGE as u64);
        let file = create(&mut disk, ROOT, "a");
        disk.write(file, 0, &[1; 3 * PAGE]).unwrap();
        assert_eq!(disk.write(file, 3 * PAGE as u64, &[1; 2 * PAGE]), Err(Refusal::Full));
        assert_eq!(disk.space().1, PAGE as u64);
        disk.write(file, 10, &[2; 5]).unwrap();
        disk.truncate(file, 1).unwrap();
        assert_eq!(disk.space().1, 3 * PAGE as u64);
        assert_eq!(disk.read(file, 0, 100).unwrap(), [1]);
        disk.sync(ROOT).unwrap();
        disk.remove(ROOT, name("a"), false).unwrap();
        disk.forget(file);
        assert!(disk.stat(file).is_ok(), "its name is durable still");
        disk.sync(ROOT).unwrap();
        disk.forget(file);
        assert_eq!((disk.stat(file), disk.space().1), (Err(Refusal::Missing), 4 * PAGE as u64));
    }

    #[test]
    fn a_shortened_file_is_long_again_until_it_is_synced() {
        let mut disk = Disk::new(Names::Strict, BIG);
        let file = create(&mut disk, ROOT, "a");
        disk.sync(ROOT).unwrap();
        disk.write(file, 0, &[7; 10_000]).unwrap();
        disk.sync(file).unwrap();
        disk.truncate(file, 5).unwrap();
        assert_eq!(content(&disk.survivors(Cut::Synced), "a").unwrap(), [7; 10_000]);
        disk.truncate(file, 9_000).unwrap();
        disk.sync(file).unwrap();
        let after = content(&disk.survivors(Cut::Synced), "a").unwrap();
        assert_eq!((after.len(), after.iter().filter(|byte| **byte == 7).count()), (9_000, 5));
    }
}
