//! How mail reaches a shard: many senders, one reader that takes everything at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A queue whose reader takes all that waits in one turn: batches form by themselves under load.
#[derive(Debug)]
pub(crate) struct Mailbox<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    queue: Mutex<Vec<T>>,
    filled: Notify,
    /// The queue's length, readable without the lock.
    len: AtomicUsize,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { queue: Mutex::new(Vec::new()), filled: Notify::new(), len: AtomicUsize::new(0) }))
    }

    pub(crate) fn send(&self, item: T) {
        self.send_all(std::iter::once(item));
    }

    /// Adds all items with one wake-up.
    pub(crate) fn send_all(&self, items: impl IntoIterator<Item = T>) {
        let mut queue = self.0.queue.lock();
        let was_empty = queue.is_empty();
        queue.extend(items);
        let len = queue.len();
        self.0.len.store(len, Ordering::Relaxed);
        drop(queue);
        if was_empty && len > 0 {
            self.0.filled.notify_one();
        }
    }

    /// How much waits.
    pub(crate) fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed)
    }

    /// Resolves when something waits. For a reader that takes it by [`take_more`](Self::take_more).
    pub(crate) async fn filled(&self) {
        while self.len() == 0 {
            self.0.filled.notified().await;
        }
    }

    /// Adds what has come meanwhile.
    pub(crate) fn take_more(&self, mail: &mut Vec<T>) {
        if self.len() > 0 {
            let mut queue = self.0.queue.lock();
            mail.append(&mut queue);
            self.0.len.store(0, Ordering::Relaxed);
        }
    }

    /// Swaps everything that waits into `empty`, waiting until there is something.
    pub(crate) async fn take(&self, empty: &mut Vec<T>) {
        loop {
            {
                let mut queue = self.0.queue.lock();
                if !queue.is_empty() {
                    std::mem::swap(&mut *queue, empty);
                    self.0.len.store(0, Ordering::Relaxed);
                    return;
                }
            }
            self.0.filled.notified().await;
        }
    }
}
