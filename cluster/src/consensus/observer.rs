//! A process that reads the map and decides nothing: a gateway.

use std::sync::Arc;

use chappe_schema::id::NodeUid;
use tokio::task::JoinHandle;

use super::{bootstrap::Group, follow, transport::Transport, view::View};
use crate::{control::Watcher, ownership::Map};

/// Follows the map from the voters. It ends when this is dropped.
pub struct Observer {
    view: Arc<View>,
    streams: Vec<JoinHandle<()>>,
}

impl Observer {
    /// Begins to follow, on the runtime of whoever calls. Until the first answer the map is empty.
    #[must_use]
    pub fn start(transport: Arc<dyn Transport>) -> Self {
        let view = Arc::new(View::new(transport));
        let stream = |number| tokio::spawn(follow::observe(Arc::clone(&view), number));
        let streams = (0..follow::STREAMS).map(stream).collect();
        Self { view, streams }
    }

    /// The newest map that it knows. It never goes back.
    #[must_use]
    pub fn map(&self) -> Map {
        self.view.board.map()
    }

    /// Calls `watcher` with the newest map, now and after every change, in order. The watcher only hands it on.
    pub fn watch(&self, watcher: Watcher) {
        self.view.board.watch(watcher);
    }

    /// The cluster and its founding whose map this is, once one was heard of. It changes when the cluster is founded anew.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.view.group()
    }

    /// Who leads, as far as it knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeUid> {
        self.view.rumour.lock().leader
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.streams.iter().for_each(JoinHandle::abort);
    }
}
