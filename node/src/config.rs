//! What can be set about a node.

use chappe_cluster::process::config::{ByteSize, Period};
use serde::{Deserialize, Serialize};

/// The section `[node]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Loops that drive entities; 0 for one per core.
    pub shards: usize,
    /// Memory for entities, over all shards. Beyond it the longest unused are evicted.
    pub entity_memory: ByteSize,
    /// An entity that was not used for this long becomes idle, and a user without connections is unloaded.
    pub idle_after: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self { shards: 0, entity_memory: ByteSize::mib(512), idle_after: Period::secs(60) }
    }
}

impl Config {
    /// How many shards that makes on this machine.
    #[must_use]
    pub fn shards(&self) -> usize {
        if self.shards > 0 {
            return self.shards;
        }
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}
