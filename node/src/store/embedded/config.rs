//! What an operator may set about the embedded log.

use chappe_cluster::process::config::ByteSize;
use serde::{Deserialize, Serialize};

/// Sizes of the embedded log. The defaults suit two cores and 1 GiB.
///
/// Its memory is bounded by `cache_size + 7 × (log_memtable_size + 6 × table_memtable_size)` in the worst moment, when
/// every table has three sealed memtables waiting and an active one grown to four times its size; then writes wait. In
/// an ordinary one it is `cache_size` and two or three memtables of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Blocks of the tables kept in memory, beside what the kernel caches.
    pub cache_size: ByteSize,
    /// Size of all journals at which tables are flushed so that the oldest can go. It bounds the time of a start: about
    /// a second per 256 MiB. At least 64 MiB.
    pub journal_size_max: ByteSize,
    /// Rows of the log gathered in memory before they become a file. Larger: fewer merges, less CPU per row, more
    /// memory.
    pub log_memtable_size: ByteSize,
    /// The same for each of the other tables.
    pub table_memtable_size: ByteSize,
    /// With less than this free on the volume nothing is accepted any more (`disk is full`): what was accepted before
    /// still has to be flushed and merged. Writes resume by themselves when there is space again.
    pub free_space_min: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_size: ByteSize::mib(64),
            journal_size_max: ByteSize::mib(256),
            log_memtable_size: ByteSize::mib(32),
            table_memtable_size: ByteSize::mib(8),
            free_space_min: ByteSize::mib(256),
        }
    }
}
