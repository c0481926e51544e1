//! A thread and a runtime for what must not be held up by load: Raft, SWIM, and what keeps sessions alive. On the runtime
//! that serves clients a busy second would look like a death.

use std::{io, thread};

use tokio::{runtime::Handle, sync::oneshot};

/// A thread with a runtime of its own. It ends when this is dropped, and what runs on it ends with it.
pub struct Thread {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let handle = runtime.handle().clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Its sender says so, or is gone.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, end: Some(end), thread: Some(thread) })
    }

    /// Runs a future on it, and waits; for a `main` that starts up. Nothing if the thread ended first.
    pub fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (tell, told) = std::sync::mpsc::channel();
        // Whoever waits is there until it hears.
        self.handle.spawn(async move { drop(tell.send(future.await)) });
        told.recv().ok()
    }

    /// Its runtime, to spawn on.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported when it happened.
            let _ = thread.join();
        }
    }
}
