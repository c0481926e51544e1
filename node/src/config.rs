//! What can be set about a node.

use chappe_cluster::process::config::{ByteSize, Period, Problem};
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
    /// No messages are kept longer than this; 0 for ever. Conversations may say less for themselves.
    pub retention: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self { shards: 0, entity_memory: ByteSize::mib(512), idle_after: Period::secs(60), retention: Period::ZERO }
    }
}

/// Most shards: each is a loop of its own, and more than there are cores only cost.
pub const SHARDS_MAX: usize = 1024;

/// Least memory for entities per shard. With less a shard would put away what it is about to use.
pub const SHARD_MEMORY_MIN: ByteSize = ByteSize::mib(4);

/// Shortest idle time: entities would be put away between two messages of a conversation.
pub const IDLE_AFTER_MIN: Period = Period::secs(1);

/// Shortest time for which messages are kept: less is a mistake of units.
pub const RETENTION_MIN: Period = Period::secs(1);

impl Config {
    /// Everything about these settings that would make a start fail or a server useless. Keys of problems are those of
    /// the section `node`.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.shards > SHARDS_MAX {
            problems.push(Problem::at("node.shards", format!("{} is more than {SHARDS_MAX}", self.shards)));
        } else {
            let shards = self.shards();
            let least = ByteSize::bytes(SHARD_MEMORY_MIN.get() * shards as u64);
            if self.entity_memory < least {
                let message = format!("{} is too little for {shards} shards: at least {least}", self.entity_memory);
                problems.push(Problem::at("node.entity_memory", message));
            }
        }
        if self.idle_after < IDLE_AFTER_MIN {
            let message = format!("{} is less than {IDLE_AFTER_MIN}", self.idle_after);
            problems.push(Problem::at("node.idle_after", message));
        }
        if self.retention > Period::ZERO && self.retention < RETENTION_MIN {
            let message = format!("{} is less than {RETENTION_MIN}; 0s keeps messages for ever", self.retention);
            problems.push(Problem::at("node.retention", message));
        }
        problems
    }

    /// How many shards that makes on this machine.
    #[must_use]
    pub fn shards(&self) -> usize {
        if self.shards > 0 {
            return self.shards;
        }
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_its_path() {
        let keys = |config: Config| config.check().into_iter().map(|problem| problem.key).collect::<Vec<_>>();
        let config = || Config { shards: 2, ..Config::default() };
        assert!(keys(Config::default()).is_empty());
        assert!(keys(Config { entity_memory: ByteSize::mib(8), ..config() }).is_empty());
        assert_eq!(keys(Config { shards: 100_000, ..config() }), ["node.shards"]);
        assert_eq!(keys(Config { entity_memory: ByteSize::mib(7), ..config() }), ["node.entity_memory"]);
        assert_eq!(keys(Config { idle_after: Period::ZERO, ..config() }), ["node.idle_after"]);
        assert_eq!(keys(Config { retention: Period::ms(999), ..config() }), ["node.retention"]);
    }
}
