//! Files: how many may be open (each socket of a client is one), and whom new ones are for.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};

/// From here on whatever this process makes is for its own user only, files of its libraries included: what people said
/// is nobody else's business on a machine that others use too.
pub fn keep_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// What people said is for this process's user only. Files follow the umask, which `main` sets; a directory that nobody
/// else may enter keeps them in any case. One that was there before is its owner's decision, and worth a word.
///
/// # Errors
/// When it is not there and cannot be made.
pub fn make_private(directory: &Path) -> io::Result<()> {
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

/// Raises the soft limit of open files to the hard one, logs both, and returns what now holds.
///
/// Soft limits are often 1024 for the sake of `select(2)`, which nobody here calls. Only an administrator can raise
/// the hard limit (`LimitNOFILE=` of systemd, the container runtime). The gateway takes its connection limit from the
/// value returned.
pub fn raise_limit() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum.or_else(system_maximum), maximum: before.maximum };
    if raised.current != before.current
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(event = "files_limit_raise_failed", %error, "the limit of open files stays as it is");
    }
    let now = getrlimit(Resource::Nofile);
    let soft = now.current.unwrap_or(u64::MAX);
    tracing::info!(
        event = "files_limit_raised",
        before = before.current,
        now = soft,
        hard = now.maximum,
        "this process may open {soft} files"
    );
    soft
}

/// What this process may have open now.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Where there is no hard limit, the kernel still refuses a soft one above its own maximum.
fn system_maximum() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(Some(limit), now.maximum.or(now.current));
        assert_eq!(super::limit(), limit);
    }
}
