//! A small real file system (tmpfs), to be filled and emptied. Needs root. The mount ends with the value.

use std::{
    fs,
    io::{self, Write},
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
        rustix::mount::mount(
            power::source(),
            mountpoint,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(options.as_c_str()),
        )?;
        Ok(Self { mountpoint: mountpoint.to_owned() })
    }

    /// Bytes that are free.
    pub fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.mountpoint)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Whether this machine can make one.
    ///
    /// # Errors
    /// With what is missing.
    pub fn available() -> Result<(), String> {
        match rustix::process::geteuid().is_root() {
            true => Ok(()),
            false => Err("only root mounts a file system".into()),
        }
    }

    /// Takes space until only so many bytes are free.
    pub fn fill(&self, free: u64) -> io::Result<()> {
        // Most of it at once, and the rest step by step: others take space meanwhile.
        let most = self.free()?.saturating_sub(free).saturating_sub(16 << 20);
        if most > 0 {
            let ballast = fs::OpenOptions::new().create(true).append(true).open(self.ballast())?;
            match rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, most) {
                // Somebody took it meanwhile; what is left is taken below.
                Err(rustix::io::Errno::NOSPC) => {}
                taken => taken?,
            }
        }
        let step = vec![1; 1 << 20];
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.ballast())?;
        loop {
            let wanted = self.free()?.saturating_sub(free).min(step.len() as u64) as usize;
            if wanted == 0 {
                return Ok(());
            }
            match ballast.write_all(&step[..wanted]) {
                // Somebody took it meanwhile: look again.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                taken => taken?,
            }
        }
    }

    /// Gives it back, if that was not done yet.
    pub fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_is_filled_and_emptied() {
        let home = tempfile::tempdir().unwrap();
        let Ok(volume) = Volume::mount(home.path(), 8 << 20) else {
            return eprintln!("SKIPPED: a tmpfs cannot be mounted");
        };
        volume.fill(1 << 20).unwrap();
        assert_eq!(volume.free().unwrap(), 1 << 20);
        assert!(fs::write(home.path().join("file"), vec![1; 2 << 20]).is_err());
        volume.empty().unwrap();
        fs::write(home.path().join("file"), vec![1; 2 << 20]).unwrap();
        drop(volume);
        assert!(fs::read_dir(home.path()).unwrap().next().is_none(), "it is unmounted");
    }
}
