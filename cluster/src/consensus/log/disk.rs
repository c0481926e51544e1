//! What Raft asks of a disk: all that was ever written at the start, and writes in order from then on.

use std::{collections::BTreeMap, io};

use bytes::Bytes;

/// A few thousand values by key, all of which are in memory as well.
pub trait Disk: Send + Sync + 'static {
    /// Everything. Called once, before the first write; what it returns is durable.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    fn load(&self) -> io::Result<BTreeMap<Vec<u8>, Bytes>>;

    /// Writes a batch, whole or not at all, after every batch before it. With `done` it is synced, and `done` is called once
    /// it is, on whatever thread; without, a later synced one makes it durable. After a failure every batch fails.
    fn write(&self, batch: Batch, done: Option<Done>);
}

/// Called once a batch is durable, or certainly or possibly is not.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Values to set and keys to remove, in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) steps: Vec<(Vec<u8>, Option<Bytes>)>,
}

impl Batch {
    /// Sets a value.
    pub fn set(&mut self, key: impl Into<Vec<u8>>, value: Bytes) {
        self.steps.push((key.into(), Some(value)));
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.steps.push((key.into(), None));
    }
}

/// Writes and waits until it is durable.
///
/// # Errors
/// What the disk says.
pub async fn write(disk: &dyn Disk, batch: Batch) -> io::Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let done = Box::new(move |result| {
        // Nobody listens when the node is on its way out.
        let _ = tell.send(result);
    });
    disk.write(batch, Some(done));
    told.await.unwrap_or_else(|_| Err(io::Error::other("the disk is gone")))
}
