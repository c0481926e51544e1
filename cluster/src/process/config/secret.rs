//! Secrets come in files.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The path of a file that holds a secret; by convention its key ends in `_file`.
///
/// Only the path is configuration. The secret itself is read when it is needed, so it is never in a dump, a log line
/// or `/proc/<pid>/environ`, and a secret that Kubernetes has rotated is read anew by reading again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretFile(PathBuf);

/// A secret in memory. It can be used but not shown: `Debug` prints `***`, and it does not serialise.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be opened or is not UTF-8.
    #[error("cannot read the secret in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An empty secret protects nothing.
    #[error("the secret in {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl SecretFile {
    /// The secret in this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads it. One line end at the end is not part of the secret: editors and `echo` add it.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text =
            std::fs::read_to_string(&self.0).map_err(|source| SecretError::Read { path: self.0.clone(), source })?;
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            return Err(SecretError::Empty { path: self.0.clone() });
        }
        Ok(Secret(secret.to_owned()))
    }
}

impl Secret {
    /// The secret itself. The name is long on purpose: each use is worth a look in review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_is_read_without_its_line_end_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = SecretFile::new(dir.path().join("key"));
        assert!(file.read().unwrap_err().to_string().contains("key"));

        std::fs::write(file.path(), "\n").unwrap();
        assert!(matches!(file.read(), Err(SecretError::Empty { .. })));

        std::fs::write(file.path(), "hunter2 \r\n").unwrap();
        let secret = file.read().unwrap();
        assert_eq!(secret.expose(), "hunter2 ");
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
