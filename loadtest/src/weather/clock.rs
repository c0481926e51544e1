//! A process's clock that is wrong: the wall clock alone, never the one that only goes forward. By `libfaketime`, which is loaded
//! into the process before it starts and reads a file for how wrong the time is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where distributions keep it: `/usr/lib/<machine>/faketime`, `/usr/lib64/faketime`, `/usr/lib/faketime`.
const ROOTS: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
const LIBRARY: &str = "faketime/libfaketime.so.1";

/// The clock of one process.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right so far; `file` is where it is set.
    ///
    /// # Errors
    /// When the library is not installed, or the file cannot be written.
    pub fn new(file: &Path) -> io::Result<Self> {
        let library = library().ok_or_else(|| io::Error::other(MISSING))?;
        let clock = Self { library, file: file.to_owned() };
        clock.set(0)?;
        Ok(clock)
    }

    /// Whether clocks can be wrong here.
    ///
    /// # Errors
    /// With the reason.
    pub fn available() -> Result<(), String> {
        library().map(|_| ()).ok_or_else(|| MISSING.to_owned())
    }

    /// From now on it is wrong by so many seconds; 0: it is right.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        // It is read again and again: never half a number.
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("{seconds:+}\n"))?;
        fs::rename(fresh, &self.file)
    }

    /// What the process is started with.
    pub fn environment(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            // It is about times that files have and waits; both are let be.
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}

const MISSING: &str = "libfaketime is not installed (Debian: faketime)";

fn library() -> Option<PathBuf> {
    let roots = ROOTS.iter().map(PathBuf::from);
    let machines = fs::read_dir(ROOTS[0]).into_iter().flatten().flatten().map(|entry| entry.path());
    roots.chain(machines).map(|root| root.join(LIBRARY)).find(|library| library.is_file())
}
