//! The tables of the cluster's store, in the one dialect that ScyllaDB and Apache Cassandra 5 share: no lightweight
//! transactions, counters, secondary indexes, views, collections that are not frozen or batches over several partitions.
//!
//! [`TABLES`] is what there is, each with the query that it serves; [`MIGRATIONS`] is how it came about. A table keeps one of
//! three rules about the timestamps of its cells, and never mixes them:
//!
//! - [`Rule::Log`]: `USING TIMESTAMP` the seq of the event that the row is or comes from. Writers need no clock, and what is
//!   older never replaces what is newer, however late it arrives.
//! - [`Rule::Max`]: `USING TIMESTAMP` the value itself, one statement per cell: a register that only grows.
//! - [`Rule::Wall`]: the server's time. Rows are only ever added, or end by their time to live.
//!
//! In tables of the first two a plain `DELETE` would hide everything that is written afterwards, as wall clocks are far ahead of
//! seqs: what goes there is overwritten, or deleted `USING TIMESTAMP` a seq.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::id::Seq;

/// 2¹³ events stand in one partition of the log: 8 MB at 1 KB an event, 512 MB at the largest one.
pub const LOG_BUCKET_BITS: u32 = 13;

/// The prints of 2²⁰ events' ids stand in one partition: 4 MB.
pub const PRINTS_BUCKET_BITS: u32 = 20;

/// The partition of a log, of its overlays, reactions and id blocks, in which an event stands.
#[must_use]
pub const fn log_bucket(seq: Seq) -> i32 {
    (seq.saturating_sub(1) >> LOG_BUCKET_BITS) as i32
}

/// The partition of the prints of a block that ends there.
#[must_use]
pub const fn prints_bucket(end: Seq) -> i32 {
    (end.saturating_sub(1) >> PRINTS_BUCKET_BITS) as i32
}

/// Partitions among which the list of entities that others must hear of is spread.
pub const ANNOUNCE_LANES: u16 = 64;

/// What timestamps the cells of a table have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The seq of an event.
    Log,
    /// The value itself.
    Max,
    /// The server's time.
    Wall,
}

/// How a table is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// Large, written once, read in slices.
    Large,
    /// Rows that are overwritten, and read one by one.
    Overwritten,
    /// Rows that live so many seconds; files are dropped whole.
    Expiring(u32),
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name within the keyspace.
    pub name: &'static str,
    /// The query that it serves.
    pub serves: &'static str,
    /// Its timestamps.
    pub rule: Rule,
    /// Columns and primary key.
    pub columns: &'static str,
    /// `CLUSTERING ORDER BY`, if it is not ascending.
    pub order: Option<&'static str>,
    /// How it is merged.
    pub compaction: Compaction,
    /// Seconds for which a deletion is kept, where there are deletions that must not be the usual ten days long in the way.
    pub deletions_kept: Option<u32>,
}

/// A day, in seconds.
const DAY: u32 = 86_400;

/// How long a fence stands: longer than any write can be on its way, and than any process sleeps.
pub const FENCE_KEPT: u32 = 365 * DAY;

/// How long it is known in which entities a session was active: a successor asks within seconds of its end.
pub const ACTIVITY_KEPT: u32 = 3_600;

/// Every table.
pub const TABLES: &[Table] = &[
    Table {
        name: "log",
        serves: "a slice of an entity's log by seq: a page of history, or what stands above a snapshot. Each owner's rows stand \
                 under its own epoch; at a committed seq the highest epoch wins",
        rule: Rule::Log,
        columns: "entity blob, bucket int, seq bigint, epoch bigint, cw bigint, origin bigint, after bigint, n bigint, \
                  kind tinyint, sender text, device text, command_id uuid, target_seq bigint, flags int, \
                  created_at timestamp, body blob, meta blob, PRIMARY KEY ((entity, bucket), seq, epoch)",
        order: Some("seq DESC, epoch DESC"),
        compaction: Compaction::Large,
        deletions_kept: None,
    },
    Table {
        name: "snapshot",
        serves: "the state of an entity at a committed seq. Both cells are written by one statement with the seq as timestamp",
        rule: Rule::Max,
        columns: "entity blob PRIMARY KEY, seq bigint, bytes blob",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "id_blocks",
        serves: "the ids of 256 events, by the last one's seq: whether a command was carried out before",
        rule: Rule::Log,
        columns: "entity blob, bucket int, block_end bigint, ids blob, PRIMARY KEY ((entity, bucket), block_end)",
        order: Some("block_end DESC"),
        compaction: Compaction::Large,
        deletions_kept: None,
    },
    Table {
        name: "id_prints",
        serves: "which block can hold an id: the prints of a block's ids, newest block first",
        rule: Rule::Log,
        columns: "entity blob, bucket int, block_end bigint, prints blob, PRIMARY KEY ((entity, bucket), block_end)",
        order: Some("block_end DESC"),
        compaction: Compaction::Large,
        deletions_kept: None,
    },
    Table {
        name: "overlay",
        serves: "what later events made of the messages of a slice of the log: whole, under the message's seq, with the seq of \
                 the last of these events as timestamp",
        rule: Rule::Log,
        columns: "entity blob, bucket int, target_seq bigint, overlay blob, PRIMARY KEY ((entity, bucket), target_seq)",
        order: Some("target_seq DESC"),
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "reactions",
        serves: "who reacted to a message with a key, by user; and one user's reactions to a message",
        rule: Rule::Log,
        columns: "entity blob, bucket int, target_seq bigint, key text, user text, reaction blob, \
                  PRIMARY KEY ((entity, bucket), target_seq, key, user)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "inbox",
        serves: "the positions of a user in all conversations, when the user's entity is recovered. Changes are counted anew under \
                 every epoch, so each epoch has a row of its own; what the rows of a conversation tell together counts",
        rule: Rule::Max,
        columns: "user text, conversation uuid, change_epoch bigint, change bigint, last_seq bigint, last_n bigint, \
                  read_n bigint, message_at bigint, PRIMARY KEY (user, conversation, change_epoch)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "announce",
        serves: "the entities of whose events others may not have heard: read whole at a start. A telling deletes with the told seq \
                 as timestamp, so that what was listed for a later one stays",
        rule: Rule::Log,
        columns: "lane smallint, entity blob, seq bigint, PRIMARY KEY (lane, entity)",
        order: None,
        compaction: Compaction::Overwritten,
        // Longer than replicas keep what another one missed; what comes back after it is merely told once more.
        deletions_kept: Some(DAY),
    },
    Table {
        name: "session_fence",
        serves: "whether a session is over: read by that session at quorum before it acknowledges anything",
        rule: Rule::Wall,
        columns: "session bigint PRIMARY KEY",
        order: None,
        compaction: Compaction::Expiring(FENCE_KEPT),
        deletions_kept: None,
    },
    Table {
        name: "session_registry",
        serves: "every session that ever owned something, for a forced founding, which fences them all",
        rule: Rule::Wall,
        columns: "cluster text, session bigint, PRIMARY KEY (cluster, session)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "session_activity",
        serves: "the entities in which a session has committed since a minute of its, for its successors",
        rule: Rule::Wall,
        columns: "session bigint, minute bigint, k bigint, entities frozen<list<blob>>, PRIMARY KEY (session, minute, k)",
        order: None,
        compaction: Compaction::Expiring(ACTIVITY_KEPT),
        deletions_kept: None,
    },
    Table {
        name: "cluster_meta",
        serves: "who claimed to begin the cluster, and as which founding of it. Claims are only ever added",
        rule: Rule::Wall,
        columns: "key text, generation bigint, node bigint, cluster uuid, PRIMARY KEY (key, generation, node, cluster)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "receipts",
        serves: "how far the members of a conversation have got, when it is recovered: registers that only grow, each by its own value",
        rule: Rule::Max,
        columns: "entity blob, user text, read_n bigint, delivered_n bigint, shown_n bigint, PRIMARY KEY (entity, user)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    Table {
        name: "members",
        serves: "the members of a conversation with very many, in the order of their ids, when it is recovered",
        rule: Rule::Log,
        columns: "entity blob, user text, member blob, PRIMARY KEY (entity, user)",
        order: None,
        compaction: Compaction::Overwritten,
        deletions_kept: None,
    },
    VERSIONS,
];

/// The table that tells which version a keyspace has: the first to be made, and the only one that all versions know.
pub const VERSIONS: Table = Table {
    name: "schema_version",
    serves: "which migrations were applied: the highest version counts",
    rule: Rule::Wall,
    columns: "part text, version int, name text, PRIMARY KEY (part, version)",
    order: None,
    compaction: Compaction::Overwritten,
    deletions_kept: None,
};

/// A step from one version of the tables to the next. Whoever applies it may be interrupted, or be one of several at once: every
/// statement of it can be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// The version that it leads to.
    pub version: i32,
    /// What it is for.
    pub name: &'static str,
    /// The tables that it adds.
    pub creates: &'static [&'static str],
}

/// Every migration, in order.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "the first tables",
        creates: &[
            "log",
            "snapshot",
            "id_blocks",
            "id_prints",
            "overlay",
            "reactions",
            "inbox",
            "announce",
            "session_fence",
            "session_registry",
            "session_activity",
            "cluster_meta",
        ],
    },
    Migration { version: 2, name: "receipts", creates: &["receipts"] },
    Migration { version: 3, name: "members", creates: &["members"] },
];

/// The version that this program works with.
#[must_use]
pub fn version() -> i32 {
    MIGRATIONS.last().map_or(0, |migration| migration.version)
}

/// Whose server it is. The tables are the same; how they are merged is said in other words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// ScyllaDB.
    Scylla,
    /// Apache Cassandra.
    Cassandra,
}

/// Where replicas of every row stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// How many there are.
    pub factor: u16,
    /// The data centre in which they are; none: whatever there is.
    pub data_centre: Option<String>,
}

/// Whether a text can be a keyspace's name as it stands: it needs no quotes then.
#[must_use]
pub fn is_keyspace(name: &str) -> bool {
    let mut chars = name.chars();
    name.len() <= 48
        && chars.next().is_some_and(|first| first.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Makes the keyspace, unless it is there.
#[must_use]
pub fn create_keyspace(keyspace: &str, replication: &Replication) -> String {
    let place = replication.data_centre.as_deref().unwrap_or("replication_factor").replace('\'', "''");
    format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{place}': {}}}",
        replication.factor
    )
}

impl Table {
    /// A table by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }

    /// Makes the table, unless it is there.
    #[must_use]
    pub fn create(&self, keyspace: &str, dialect: Dialect) -> String {
        let Self { name, columns, .. } = self;
        let mut options = Vec::new();
        options.extend(self.order.map(|order| format!("CLUSTERING ORDER BY ({order})")));
        if dialect == Dialect::Cassandra {
            // Two nodes that make a table of the same name at once would make two tables of it: Cassandra knows them by
            // an id that each would roll for itself. ScyllaDB agrees on schema changes one after the other.
            options.push(format!("ID = '{}'", self.id(keyspace)));
        }
        options.push(format!("compaction = {}", self.compaction.options(dialect)));
        if let Compaction::Expiring(seconds) = self.compaction {
            options.push(format!("default_time_to_live = {seconds}"));
        }
        options.extend(self.deletions_kept.map(|seconds| format!("gc_grace_seconds = {seconds}")));
        format!("CREATE TABLE IF NOT EXISTS {keyspace}.{name} ({columns}) WITH {}", options.join(" AND "))
    }

    /// The table's id in Apache Cassandra: the same for everybody who makes it.
    #[must_use]
    pub fn id(&self, keyspace: &str) -> Uuid {
        let digest = Sha256::digest(format!("chappe/table/1/{keyspace}/{}", self.name));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

/// A column, as servers list it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// The type of its values.
    pub holds: &'static str,
    /// What it is for.
    pub place: Place,
}

/// What a column is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The so manieth part of the partition's key.
    Partition(usize),
    /// The so manieth part of the key within the partition.
    Clustering(usize),
    /// A cell.
    Cell,
}

impl Table {
    /// Its columns, in the order in which they are written.
    #[must_use]
    pub fn list(&self) -> Vec<Column> {
        const KEY: &str = "PRIMARY KEY";
        let (mut partition, mut clustering) = (Vec::new(), Vec::new());
        let mut columns = Vec::new();
        for part in split(self.columns) {
            if let Some(key) = part.strip_prefix(KEY) {
                let parts = split(inside(key));
                let first = parts.first().copied().unwrap_or_default();
                partition = if first.starts_with('(') { split(inside(first)) } else { vec![first] };
                clustering = parts.into_iter().skip(1).collect();
            } else if let Some((name, holds)) = part.split_once(' ') {
                let holds = match holds.strip_suffix(KEY) {
                    Some(holds) => {
                        partition = vec![name];
                        holds.trim()
                    }
                    None => holds,
                };
                columns.push((name, holds));
            }
        }
        let place = |name: &str| {
            let at = |key: &[&str]| key.iter().position(|part| *part == name);
            at(&partition)
                .map(Place::Partition)
                .or_else(|| at(&clustering).map(Place::Clustering))
                .unwrap_or(Place::Cell)
        };
        columns.into_iter().map(|(name, holds)| Column { name, holds, place: place(name) }).collect()
    }
}

/// What stands between commas, but for those within brackets.
fn split(text: &'static str) -> Vec<&'static str> {
    let mut depth = 0;
    let parts = text.split(move |c| {
        match c {
            '(' | '<' => depth += 1,
            ')' | '>' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).collect()
}

/// What stands in round brackets.
fn inside(text: &'static str) -> &'static str {
    text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(text)
}

impl Compaction {
    /// How its server calls it.
    #[must_use]
    pub const fn class(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Self::Large, Dialect::Scylla) => "IncrementalCompactionStrategy",
            (Self::Large, Dialect::Cassandra) => "UnifiedCompactionStrategy",
            (Self::Overwritten, _) => "LeveledCompactionStrategy",
            (Self::Expiring(_), _) => "TimeWindowCompactionStrategy",
        }
    }

    fn options(self, dialect: Dialect) -> String {
        let class = self.class(dialect);
        let more = match (self, dialect) {
            (Self::Large, Dialect::Cassandra) => ", 'scaling_parameters': 'T4'".to_owned(),
            (Self::Large, Dialect::Scylla) | (Self::Overwritten, _) => String::new(),
            (Self::Expiring(seconds), _) => {
                // Some thirty files in a lifetime.
                let minutes = (seconds / 60 / 30).max(1);
                format!(", 'compaction_window_unit': 'MINUTES', 'compaction_window_size': {minutes}")
            }
        };
        format!("{{'class': '{class}'{more}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_comes_from_one_migration() {
        let made: Vec<&str> =
            MIGRATIONS.iter().flat_map(|migration| migration.creates.iter().copied()).chain([VERSIONS.name]).collect();
        let all: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
        assert_eq!(made, all);
        assert!(MIGRATIONS.iter().map(|migration| migration.version).eq(1..=version()));
    }

    #[test]
    fn a_table_is_made_in_the_words_of_its_server() {
        let log = Table::named("log").unwrap();
        let (scylla, cassandra) = (log.create("chat", Dialect::Scylla), log.create("chat", Dialect::Cassandra));
        for text in [&scylla, &cassandra] {
            assert!(
                text.starts_with("CREATE TABLE IF NOT EXISTS chat.log (entity blob, bucket int, seq bigint"),
                "{text}"
            );
            assert!(text.contains("CLUSTERING ORDER BY (seq DESC, epoch DESC)"), "{text}");
            assert!(!text.contains('\n'));
        }
        assert!(scylla.contains("Incremental") && !scylla.contains(" ID "));
        assert!(cassandra.contains("Unified") && cassandra.contains(&format!("ID = '{}'", log.id("chat"))));
        assert_ne!(log.id("chat"), log.id("chat2"));
        let fence = Table::named("session_fence").unwrap().create("chat", Dialect::Cassandra);
        assert!(fence.contains("default_time_to_live = 31536000"), "{fence}");
    }

    #[test]
    fn columns_are_listed_as_servers_do() {
        let column = |name, holds, place| Column { name, holds, place };
        let listed = |name| Table::named(name).unwrap().list();
        let log = listed("log");
        assert_eq!(log.len(), 17);
        for column in [
            column("entity", "blob", Place::Partition(0)),
            column("bucket", "int", Place::Partition(1)),
            column("seq", "bigint", Place::Clustering(0)),
            column("epoch", "bigint", Place::Clustering(1)),
            column("meta", "blob", Place::Cell),
        ] {
            assert!(log.contains(&column), "{column:?} in {log:?}");
        }
        assert_eq!(listed("snapshot")[0], column("entity", "blob", Place::Partition(0)));
        assert_eq!(listed("session_fence"), [column("session", "bigint", Place::Partition(0))]);
        assert_eq!(listed("session_activity")[3], column("entities", "frozen<list<blob>>", Place::Cell));
        assert_eq!(listed("inbox")[1], column("conversation", "uuid", Place::Clustering(0)));
    }

    #[test]
    fn keyspaces_need_no_quotes() {
        assert!(is_keyspace("chappe") && is_keyspace("c_2"));
        for name in ["", "2c", "Chappe", "c-2", "c;drop", "é", &"c".repeat(49)] {
            assert!(!is_keyspace(name), "{name}");
        }
        let replication = Replication { factor: 3, data_centre: Some("eu'west".to_owned()) };
        assert!(create_keyspace("c", &replication).ends_with("'eu''west': 3}"));
    }

    #[test]
    fn buckets_are_computed() {
        assert_eq!([0, 1, 8192, 8193].map(log_bucket), [0, 0, 0, 1]);
        assert_eq!([1, 1 << 20, (1 << 20) + 1].map(prints_bucket), [0, 0, 1]);
    }
}
