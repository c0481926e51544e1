//! A small real file system (tmpfs), to be filled and emptied. Needs root. The mount ends with the value.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags};

use super::power;

/// A mounted tmpfs.
#[derive(Debug)]
pub struct Volume {
    mountpoint: PathBuf,
}

impl Volume {
    /// Mounts one of this many bytes on a folder.
    pub fn mount(mountpoint: &Path, bytes: u64) -> io::Result<Self> {
        let options = std::ffi::CString::new(format!("size={bytes},mode=0755"))?;
        rustix::mount::mount(power::source(), mountpoint, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
        Ok(Self { mountpoint: mountpoint.to_owned() })
    }

    /// Bytes that are free.
    pub fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.mountpoint)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Takes space until only so many bytes are free.
    pub fn fill(&self, free: u64) -> io::Result<()> {
        let bytes = self.free()?.saturating_sub(free);
        fs::write(self.ballast(), vec![1; usize::try_from(bytes).unwrap_or(usize::MAX)])
    }

    /// Gives it back.
    pub fn empty(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.mountpoint.join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH) {
            eprintln!("weather: {} is not unmounted: {error}", self.mountpoint.display());
        }
    }
}
