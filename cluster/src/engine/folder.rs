//! A folder of the engine: made as a draft and renamed when it is complete, so that it is never half made. Whatever is
//! missing from it was taken away later, and is not replaced by something empty.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{Error, journal};

/// Takes the lock in this file, which is made if need be. The lock is the kernel's: it ends with the process, however that
/// ends, or with what is returned here.
///
/// # Errors
/// When another one has it, and then the error names `whole`; or what the system says.
pub fn lock(path: &Path, whole: &Path) -> Result<File, Error> {
    let failed = |source| Error::Io { doing: "lock", path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(whole.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes sure that the folder is there, and that all of it is on the disk and whole. A folder that is not there is made
/// by `make`, under the name of `draft`, beside it.
///
/// # Errors
/// When the system refuses something, or the folder is not as it was written.
pub fn prepare(folder: &Path, draft: &Path, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    if draft.exists() {
        fs::remove_dir_all(draft).map_err(failed("remove the traces of an unfinished start", draft))?;
    }
    if !folder.exists() {
        make(draft)?;
        sync_tree(draft).map_err(failed("sync", draft))?;
        fs::rename(draft, folder).map_err(failed("name", folder))?;
    }
    sync_tree(folder).map_err(failed("sync", folder))?;
    sync_above(folder).map_err(failed("sync the folders above", folder))?;
    journal::check(folder)
}

/// Syncs every file and folder of a tree. After a kill the kernel may show what is not on disk yet; what is about to be
/// read, and served, shall survive a power cut.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync(folder)
}

/// The folder may be new, and the folders above it too: until those are synced, a power cut takes it away whole.
fn sync_above(folder: &Path) -> io::Result<()> {
    for above in fs::canonicalize(folder)?.ancestors().skip(1) {
        match sync(above) {
            // A folder that we may not even read is not one that we have created something in; and where folders cannot
            // be synced, it is not needed either.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Syncs a folder: which names stand in it.
///
/// # Errors
/// What the system says.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
