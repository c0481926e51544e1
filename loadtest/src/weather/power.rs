//! A file system whose power can be cut: a [`Disk`] mounted with FUSE.
//!
//! A cut happens in steps, so that no process ever acts on what could not happen with real power:
//!
//! 1. [`Power::freeze`] (or [`Power::freeze_at`], at an operation chosen beforehand): nothing reaches the disk any more;
//!    whoever asks for something waits.
//! 2. The caller sends SIGKILL to the processes.
//! 3. [`Power::go_dark`]: those who wait are let go, with an error that they do not live to see.
//! 4. The caller waits for the end of the processes.
//! 5. [`Power::restore`]: what survives is mounted at the same place. Or [`Power::thaw`]: only the processes died, at a
//!    chosen operation, and all that they wrote is there.
//!
//! A tester must not touch a disk that may freeze under it: it would wait for itself.
//!
//! The kernel caches no writes here: each is seen when it is made, and each sync reaches us. Needs `/dev/fuse` and root;
//! no libfuse. The mount ends with the value. If a tester is killed its mounts stay behind, dead; the next one that
//! calls [`sweep`] removes them.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use hashbrown::HashMap;
use parking_lot::{Condvar, MappedMutexGuard, Mutex, MutexGuard};
use rustix::mount::UnmountFlags;

use super::disk::{Cut, Disk, PAGE, Refusal, Stat};

/// How our mounts are called; the process's id follows.
const SOURCE: &str = "chappe-weather-";

/// The kernel may trust what we said of a file for this long: nobody else changes it.
const TRUSTED: Duration = Duration::from_secs(3600);

/// A freeze that nobody ends, ends by itself: whoever waits for a frozen disk cannot even be killed.
const FROZEN_MAX: Duration = Duration::from_secs(60);

/// Requests served at the same time, so that a slow sync does not hold up reads.
const THREADS: usize = 3;

/// A mounted disk.
#[derive(Debug)]
pub struct Power {
    shared: Arc<Shared>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    disk: Disk,
    phase: Phase,
    /// Operations that change something, so far.
    operations: u64,
    freeze_at: Option<u64>,
    sync_takes: Duration,
    /// Folders being listed: each handle sees the folder as it was when it was opened.
    listings: HashMap<u64, Vec<(OsString, Stat)>>,
    next_listing: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    On,
    Frozen,
    Dark,
}

/// Whether file systems can be mounted here; if not, why.
pub fn available() -> Result<(), String> {
    fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| format!("/dev/fuse: {error}"))?;
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("mounting needs root".to_owned()) }
}

/// Removes what killed testers left mounted. Returns how many there were.
pub fn sweep() -> io::Result<usize> {
    let mut swept = 0;
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(mountpoint)) = (words.next(), words.next()) else { continue };
        let Some(pid) = source.strip_prefix(SOURCE) else { continue };
        // Who is gone has no command line, also where nobody has collected him yet.
        if fs::read(Path::new("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty()) {
            continue;
        }
        // By force: a killed tester may still wait for an answer of its own.
        rustix::mount::unmount(mountpoint, UnmountFlags::FORCE | UnmountFlags::DETACH)?;
        swept += 1;
    }
    Ok(swept)
}

/// What a mount of ours is called in `/proc/mounts`; it tells whose it is.
pub(super) fn source() -> String {
    format!("{SOURCE}{}", std::process::id())
}

// === impl Power ===

impl Power {
    /// Mounts a disk on a folder.
    pub fn on(mountpoint: &Path, disk: Disk) -> io::Result<Self> {
        let state = State {
            disk,
            phase: Phase::On,
            operations: 0,
            freeze_at: None,
            sync_takes: Duration::ZERO,
            listings: HashMap::new(),
            next_listing: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut power = Self { shared, mountpoint: mountpoint.to_owned(), session: None };
        power.mount()?;
        Ok(power)
    }

    fn mount(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName(source()), MountOption::NoAtime, MountOption::NoDev, MountOption::NoSuid];
        config.n_threads = Some(THREADS);
        self.session = Some(fuser::spawn_mount(Front(Arc::clone(&self.shared)), &self.mountpoint, &config)?);
        Ok(())
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Does something to the disk itself.
    pub fn with<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> T {
        work(&mut self.shared.state.lock().disk)
    }

    /// How long each sync takes from now on. Work of which a cut may find half needs a disk that is not infinitely fast.
    pub fn syncs_take(&self, time: Duration) {
        self.shared.state.lock().sync_takes = time;
    }

    /// Operations so far that changed something, or synced it.
    pub fn operations(&self) -> u64 {
        self.shared.state.lock().operations
    }

    /// From now on nothing reaches the disk; whoever asks waits.
    pub fn freeze(&self) {
        let mut state = self.shared.state.lock();
        if state.phase == Phase::On {
            state.phase = Phase::Frozen;
        }
    }

    /// Freezes when so many further operations have been done, just before the next.
    pub fn freeze_at(&self, operations: u64) {
        let mut state = self.shared.state.lock();
        state.freeze_at = Some(state.operations + operations + 1);
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.shared.state.lock().phase == Phase::Frozen
    }

    /// Lets go of those who wait, with an error. Their processes must have been sent SIGKILL.
    pub fn go_dark(&self) {
        self.shared.state.lock().phase = Phase::Dark;
        self.shared.changed.notify_all();
    }

    /// Goes on as if nothing had been: only processes ended, the kernel has kept what they wrote. They must have ended.
    pub fn thaw(&self) {
        let mut state = self.shared.state.lock();
        (state.phase, state.freeze_at) = (Phase::On, None);
        self.shared.changed.notify_all();
    }

    /// The power is back: what survives is there again. The processes must have ended.
    pub fn restore(&mut self, cut: Cut) -> io::Result<()> {
        self.go_dark();
        self.unmount()?;
        let mut state = self.shared.state.lock();
        state.disk = state.disk.survivors(cut);
        (state.phase, state.freeze_at) = (Phase::On, None);
        state.listings.clear();
        drop(state);
        self.mount()
    }

    /// Another disk in the same place. The processes must have ended.
    pub fn replace(&mut self, disk: Disk) -> io::Result<()> {
        self.with(|old| *old = disk);
        self.shared.state.lock().disk.sync_all();
        self.restore(Cut::Synced)
    }

    fn unmount(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        // Somebody may be between fork and exec and hold a copy of a file for a moment; what is detached ends with him.
        let until = Instant::now() + Duration::from_secs(5);
        while let Err(error) = rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty()) {
            if Instant::now() >= until {
                rustix::mount::unmount(&self.mountpoint, UnmountFlags::FORCE | UnmountFlags::DETACH)?;
                return Err(io::Error::new(error.kind(), format!("{} was still in use", self.mountpoint.display())));
            }
            thread::sleep(Duration::from_millis(5));
        }
        session.join()
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        self.go_dark();
        if let Err(error) = self.unmount() {
            eprintln!("weather: {} is not unmounted properly: {error}", self.mountpoint.display());
        }
    }
}

// === the file system ===

/// What the kernel talks to.
struct Front(Arc<Shared>);

impl Front {
    /// The disk, if there is power.
    fn look(&self) -> Result<MappedMutexGuard<'_, Disk>, Errno> {
        self.powered(self.0.state.lock())
    }

    /// The disk, to change it.
    fn change(&self) -> Result<MappedMutexGuard<'_, Disk>, Errno> {
        let mut state = self.0.state.lock();
        state.operations += 1;
        if state.freeze_at == Some(state.operations) && state.phase == Phase::On {
            state.phase = Phase::Frozen;
        }
        self.powered(state)
    }

    fn powered<'a>(&self, mut state: MutexGuard<'a, State>) -> Result<MappedMutexGuard<'a, Disk>, Errno> {
        let until = Instant::now() + FROZEN_MAX;
        while state.phase == Phase::Frozen {
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                state.phase = Phase::Dark;
            }
        }
        match state.phase {
            Phase::On => Ok(MutexGuard::map(state, |state| &mut state.disk)),
            Phase::Frozen | Phase::Dark => Err(Errno::EIO),
        }
    }

    fn sync(&self, ino: INodeNo) -> Result<(), Errno> {
        let takes = self.0.state.lock().sync_takes;
        thread::sleep(takes);
        Ok(self.change()?.sync(ino.0)?)
    }

    fn set(&self, ino: INodeNo, mode: Option<u32>, size: Option<u64>) -> Result<FileAttr, Errno> {
        let mut disk = if size.is_some() { self.change()? } else { self.look()? };
        if let Some(size) = size {
            disk.truncate(ino.0, size)?;
        }
        if let Some(mode) = mode {
            disk.set_mode(ino.0, permissions(mode))?;
        }
        Ok(attributes(&disk.stat(ino.0)?))
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::ENOENT,
            Refusal::Taken => Self::EEXIST,
            Refusal::WrongKind => Self::EINVAL,
            Refusal::NotEmpty => Self::ENOTEMPTY,
            Refusal::Full => Self::ENOSPC,
            Refusal::Failed => Self::EIO,
        }
    }
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn kind(stat: &Stat) -> FileType {
    if stat.folder { FileType::Directory } else { FileType::RegularFile }
}

fn attributes(stat: &Stat) -> FileAttr {
    // No time is kept: nothing here looks at one.
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.used / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(stat),
        perm: stat.mode,
        nlink: if stat.folder { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    }
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look().and_then(|disk| Ok(disk.lookup(parent.0, name)?)) {
            Ok(stat) => reply.entry(&TRUSTED, &attributes(&stat), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        // A disk without power forgets nothing.
        let mut state = self.0.state.lock();
        if state.phase == Phase::On {
            state.disk.forget(ino.0);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.look().and_then(|disk| Ok(disk.stat(ino.0)?)) {
            Ok(stat) => reply.attr(&TRUSTED, &attributes(&stat)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set(ino, mode, size) {
            Ok(attributes) => reply.attr(&TRUSTED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        match self.change().and_then(|mut disk| Ok(disk.create(parent.0, name, permissions(mode & !umask), true)?)) {
            Ok(stat) => reply.entry(&TRUSTED, &attributes(&stat), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change().and_then(|mut disk| Ok(disk.remove(parent.0, name, false)?)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change().and_then(|mut disk| Ok(disk.remove(parent.0, name, true)?)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        done(self.change().and_then(|mut disk| Ok(disk.rename((parent.0, name), (to.0, new_name))?)), reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.look().and_then(|disk| Ok(disk.read(ino.0, offset, size as usize)?)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change().and_then(|mut disk| Ok(disk.write(ino.0, offset, bytes)?)) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close makes nothing durable.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.sync(ino), reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listing = self.look().and_then(|disk| Ok(disk.list(ino.0)?));
        match listing {
            Ok(listing) => {
                let mut state = self.0.state.lock();
                state.next_listing += 1;
                let handle = state.next_listing;
                state.listings.insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.0.state.lock();
        let listing = state.listings.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
        for (index, (name, stat)) in (1u64..).zip(listing).skip(offset as usize) {
            if reply.add(INodeNo(stat.ino), index, kind(stat), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.state.lock().listings.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.sync(ino), reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.look() {
            Ok(disk) => {
                let (all, free) = disk.space();
                let page = PAGE as u64;
                reply.statfs(all / page, free / page, free / page, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
            }
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        match self.change().and_then(|mut disk| Ok(disk.create(parent.0, name, permissions(mode & !umask), false)?)) {
            Ok(stat) => reply.created(&TRUSTED, &attributes(&stat), Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs::{File, OpenOptions},
        io::{Read, Write},
        os::unix::fs::FileExt,
    };

    use super::*;
    use crate::weather::disk::Names;

    /// A mounted disk, or `None` where that is not possible.
    fn power() -> Option<(tempfile::TempDir, Power)> {
        if let Err(why) = available() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        sweep().unwrap();
        let home = tempfile::tempdir().unwrap();
        let power = Power::on(home.path(), Disk::new(Names::Strict, 1 << 30)).unwrap();
        Some((home, power))
    }

    #[test]
    fn it_is_a_file_system() {
        let Some((home, power)) = power() else { return };
        let path = home.path();
        fs::create_dir_all(path.join("a/b")).unwrap();
        for number in 0..300 {
            fs::write(path.join(format!("a/b/file {number}")), [number as u8; 3000]).unwrap();
        }
        assert_eq!(fs::read_dir(path.join("a/b")).unwrap().count(), 300);
        assert_eq!(fs::read(path.join("a/b/file 7")).unwrap(), [7; 3000]);
        let mut appended = OpenOptions::new().append(true).open(path.join("a/b/file 7")).unwrap();
        appended.write_all(b"more").unwrap();
        let file = File::open(path.join("a/b/file 7")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3004);
        let mut four = [0; 4];
        file.read_exact_at(&mut four, 3000).unwrap();
        assert_eq!(&four, b"more");
        fs::write(path.join("a/b/file 7"), b"short").unwrap();
        assert_eq!(fs::read(path.join("a/b/file 7")).unwrap(), b"short");
        fs::rename(path.join("a/b/file 7"), path.join("moved")).unwrap();
        let mut open = File::open(path.join("moved")).unwrap();
        fs::remove_file(path.join("moved")).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "short");
        let lock = File::create(path.join("lock")).unwrap();
        lock.try_lock().unwrap();
        assert!(File::open(path.join("lock")).unwrap().try_lock().is_err());
        fs::remove_dir_all(path.join("a")).unwrap();
        assert!(!path.join("a").exists());
        assert!(rustix::fs::statvfs(path).unwrap().f_bavail > 1000);
        drop((appended, file, open, lock, power));
        assert!(fs::read_dir(path).unwrap().next().is_none(), "it is unmounted");
    }

    #[test]
    fn a_cut_keeps_what_was_synced() {
        let Some((home, mut power)) = power() else { return };
        let path = home.path().join("file");
        let mut file = File::create(&path).unwrap();
        File::open(home.path()).unwrap().sync_all().unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_data().unwrap();
        file.write_all(b" and written").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"synced and written");
        drop(file);
        power.restore(Cut::Synced).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"synced");
    }

    #[test]
    fn a_chosen_operation_is_the_first_that_does_not_happen() {
        let Some((home, mut power)) = power() else { return };
        let path = home.path().join("file");
        let file = File::create(&path).unwrap();
        File::open(home.path()).unwrap().sync_all().unwrap();
        power.freeze_at(3);
        let writer = thread::spawn(move || {
            file.write_all_at(b"1", 0).unwrap();
            file.sync_data().unwrap();
            file.write_all_at(b"2", 1).unwrap();
            assert!(file.sync_data().is_err());
        });
        while !power.is_frozen() {
            thread::sleep(Duration::from_millis(1));
        }
        power.go_dark();
        writer.join().unwrap();
        power.restore(Cut::Synced).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }

    #[test]
    fn a_full_disk_says_so() {
        let Some((home, power)) = power() else { return };
        power.with(|disk| disk.resize(64 << 10));
        let error = fs::write(home.path().join("file"), vec![1; 100 << 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
