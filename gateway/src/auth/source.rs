//! Where a key set comes from, and how it stays fresh: a file that is looked at every few seconds, or a URL that is
//! fetched now and then, by a task of its own. No request of a client ever waits for either, or causes it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chappe_cluster::process::metrics::{AUTH_KEY_REFRESHES_TOTAL, AUTH_KEYS, AUTH_KEYS_REFRESHED_TIMESTAMP_SECONDS};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use rand::Rng;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    Algorithm, Auth, KeySet, SetupError, Verifier,
    fetch::{self, Target},
};

/// How often a file is looked at.
const FILE_LOOK: Duration = Duration::from_secs(2);

/// How soon a fetch that failed is tried again for the first time; each failure doubles it, up to the interval.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Where a key set comes from.
#[derive(Debug)]
pub(super) enum Source {
    File(Arc<File>),
    Url(Target),
}

/// A file with a set.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// As it was when it was last read.
    seen: Mutex<Print>,
}

/// Tells whether a file has become another: when it was written, its size, and its number, since a mounted secret is
/// replaced by exchanging what a link names.
pub(crate) type Print = Option<(i64, i64, u64, u64)>;

impl File {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: Mutex::new(None) }
    }

    /// The set in it.
    pub(super) fn read(&self, algorithm: Algorithm) -> Result<KeySet, SetupError> {
        // Before it is read: what is written meanwhile is a change.
        *self.seen.lock() = print(&self.path);
        read(&self.path, algorithm)
    }

    fn has_changed(&self) -> bool {
        print(&self.path) != *self.seen.lock()
    }
}

/// The set in a file.
pub(super) fn read(path: &Path, algorithm: Algorithm) -> Result<KeySet, SetupError> {
    let refused = |why: String| SetupError::KeySet { path: path.into(), why };
    let size = fs::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if size > super::key_set::SET_BYTES_MAX as u64 {
        return Err(refused(format!("it is larger than {} bytes", super::key_set::SET_BYTES_MAX)));
    }
    let content = fs::read(path).map_err(|error| refused(error.to_string()))?;
    KeySet::parse(&content, algorithm).map_err(refused)
}

/// A file as it is now.
pub(crate) fn print(path: &Path) -> Print {
    let found = fs::metadata(path).ok()?;
    Some((found.mtime(), found.mtime_nsec(), found.size(), found.ino()))
}

impl Auth {
    /// Whether a task has something to do about the keys.
    pub(crate) const fn has_source(&self) -> bool {
        self.source.is_some()
    }

    /// Resolves when there are keys to check tokens with, or (to `false`) when `self` is gone.
    pub(crate) fn has_keys(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut known = self.known.subscribe();
        async move { known.wait_for(|known| *known).await.is_ok() }
    }

    /// Keeps the keys fresh until the task is ended with the gateway.
    pub(crate) async fn keep_fresh(&self) {
        match &self.source {
            None => {}
            Some(Source::File(file)) => self.watch(file).await,
            Some(Source::Url(target)) => self.fetch_again_and_again(target).await,
        }
    }

    async fn watch(&self, file: &Arc<File>) {
        loop {
            sleep(FILE_LOOK).await;
            let (file, algorithm) = (Arc::clone(file), self.config.algorithm);
            // A disk may let one wait.
            let look = spawn_blocking(move || file.has_changed().then(|| file.read(algorithm)));
            match look.await {
                Ok(Some(Ok(set))) => self.renew(set),
                Ok(Some(Err(error))) => keep(&error.to_string()),
                Ok(None) | Err(_) => {}
            }
        }
    }

    async fn fetch_again_and_again(&self, target: &Target) {
        let mut failures = 0;
        loop {
            match fetch::fetch(target)
                .await
                .and_then(|document| KeySet::parse(&document, self.config.algorithm).map_err(fetch::Error::Set))
            {
                Ok(set) => {
                    failures = 0;
                    self.renew(set);
                }
                Err(error) => {
                    failures += 1;
                    keep(&format!("{}: {:#}", target.url(), anyhow::Error::from(error)));
                }
            }
            let pause = pause(self.config.jwks_refresh.get(), failures, rand::rng().random());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.asked.notified() => {}
            }
        }
    }

    /// These keys check tokens from now on.
    pub(super) fn renew(&self, set: KeySet) {
        tracing::info!(event = "auth_keys_refreshed", keys = set.len(), skipped = set.skipped());
        self.note_keys(set.len());
        *self.verifier.write() = Arc::new(Verifier::of_set(&self.config, set));
        self.known.send_replace(true);
    }

    pub(super) fn note_keys(&self, keys: usize) {
        counter!(AUTH_KEY_REFRESHES_TOTAL, "result" => "ok").increment(1);
        gauge!(AUTH_KEYS).set(keys as f64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        gauge!(AUTH_KEYS_REFRESHED_TIMESTAMP_SECONDS).set(now);
    }
}

/// A set that cannot be used changes nothing.
fn keep(error: &str) {
    counter!(AUTH_KEY_REFRESHES_TOTAL, "result" => "failed").increment(1);
    tracing::error!(event = "auth_keys_refresh_failed", error, "the keys of before stay in force");
}

/// How long until the next fetch. `dice` is anything from 0 to 1, so that many gateways do not come at once.
fn pause(interval: Duration, failures: u32, dice: f64) -> Duration {
    if failures == 0 {
        return interval.mul_f64(0.9 + 0.2 * dice);
    }
    let backoff = RETRY_MIN.saturating_mul(1 << (failures - 1).min(16));
    backoff.min(interval).mul_f64(0.5 + 0.5 * dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_soon_and_then_less_often_and_never_all_at_once() {
        let interval = Duration::from_secs(300);
        let range =
            |failures| (pause(interval, failures, 0.0).as_secs_f64(), pause(interval, failures, 1.0).as_secs_f64());
        assert_eq!(range(0), (270.0, 330.0));
        assert_eq!(range(1), (0.5, 1.0));
        assert_eq!(range(4), (4.0, 8.0));
        assert_eq!(range(60), (150.0, 300.0), "never less often than without failures");
    }
}
