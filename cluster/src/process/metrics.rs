//! The catalogue of metrics, and the text that Prometheus reads.
//!
//! [`CATALOGUE`] is the one table: a metric exists if it stands there. Its constants are what code records under
//! (`counter!(NODE_COMMANDS_TOTAL, "command" => "send", "result" => "ok")`), its rows are what the documentation,
//! the dashboards and `# HELP` say. A test compares it with a scrape, both ways.
//!
//! Names are written out in full, with prefix, unit and `_total`; the exporter's own suffixing stays off, so that what
//! is typed here is what is scraped. Labels are for ever: no user, conversation or address is ever a label.
//!
//! Handles (`counter!(…)` and its siblings) are looked up once and kept wherever the path is hot.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use super::version::Version;
use super::vitals::Vitals;

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The name in full, as scraped.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What one of it is.
    pub unit: Unit,
    /// What it is told apart by.
    pub labels: &'static [Label],
    /// One sentence for whoever reads a dashboard.
    pub help: &'static str,
    /// Which part of a process records it.
    pub component: Component,
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
    /// A distribution, cut at these bounds.
    Histogram(&'static [f64]),
}

/// What is counted. The name of a metric ends in it, where it is not a plain number of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things, or a yes and no.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// What a metric is told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The label.
    pub name: &'static str,
    /// All it can be, if the catalogue can know that; empty if another table decides (operations, routes, error codes).
    /// Series of known values are present at 0 from the start, so that a rate over them exists before the first event;
    /// owners of the other tables do the same with [`preset`].
    pub values: &'static [&'static str],
}

/// A part of a process. Standalone mode has all of them in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Every process.
    Process,
    /// Whoever terminates clients.
    Gateway,
    /// Whoever owns conversations.
    Node,
    /// Whoever keeps a log.
    Store,
    /// A node of a cluster: the map of owners, and its part in deciding it.
    Cluster,
    /// Whoever speaks with other processes of ours over QUIC.
    Link,
    /// A node or gateway of a cluster: who takes part.
    Membership,
}

/// Time, from half a millisecond to ten seconds, with an edge at every objective (0.25 s is that of delivery).
pub const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Frames, rows, recipients: from one to the largest channel.
pub const COUNTS: &[f64] =
    &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 100_000.0];

/// Round trips, from within one machine to another continent.
pub const RTT_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

const TRANSPORTS: &[&str] = &["websocket", "http"];
const CONVERSATIONS: &[&str] = &["direct", "group", "channel"];
/// Decided elsewhere; see [`Label::values`].
const OPEN: &[&str] = &[];

/// The table, and a constant for each name in it.
macro_rules! catalogue {
    ($($component:ident {
        $($constant:ident = $name:literal, $kind:expr, $unit:ident, {$($label:ident: $values:expr),*}, $help:literal;)*
    })*) => {
        $($(#[doc = $help] pub const $constant: &str = $name;)*)*

        /// Every metric of the spine, in the order in which a message meets them.
        pub const CATALOGUE: &[Metric] = &[$($(Metric {
            name: $constant,
            kind: $kind,
            unit: Unit::$unit,
            labels: &[$(Label { name: stringify!($label), values: $values }),*],
            help: $help,
            component: Component::$component,
        }),*),*];
    };
}

catalogue! {
    Process {
        BUILD_INFO = "chappe_build_info", Kind::Gauge, Count,
            {component: OPEN, version: OPEN, revision: OPEN, protocol_min: OPEN, protocol_max: OPEN},
            "Always 1; the labels say which build this is.";
        DRAINING = "chappe_draining", Kind::Gauge, Count, {},
            "1 while this process asks its clients to leave.";
        READY_CONDITION = "chappe_ready_condition", Kind::Gauge, Count, {condition: OPEN},
            "1 while the named condition of readiness holds.";
        PROCESS_RESIDENT_MEMORY_BYTES = "process_resident_memory_bytes", Kind::Gauge, Bytes, {},
            "Memory of this process in RAM.";
        PROCESS_CPU_SECONDS_TOTAL = "process_cpu_seconds_total", Kind::Counter, Seconds, {},
            "User and system CPU time spent.";
        PROCESS_OPEN_FDS = "process_open_fds", Kind::Gauge, Count, {},
            "Open file descriptors.";
        PROCESS_MAX_FDS = "process_max_fds", Kind::Gauge, Count, {},
            "File descriptors this process may open.";
        PROCESS_START_TIME_SECONDS = "process_start_time_seconds", Kind::Gauge, Seconds, {},
            "When this process started, in seconds since 1970.";
    }
    Gateway {
        GATEWAY_CONNECTIONS = "chappe_gateway_connections", Kind::Gauge, Count, {transport: TRANSPORTS},
            "Clients connected now.";
        GATEWAY_CONNECTIONS_LIMIT = "chappe_gateway_connections_limit", Kind::Gauge, Count, {},
            "Connections above this number are refused.";
        GATEWAY_CONNECTIONS_OPENED_TOTAL = "chappe_gateway_connections_opened_total", Kind::Counter, Count,
            {transport: TRANSPORTS},
            "Connections accepted.";
        GATEWAY_CONNECTIONS_CLOSED_TOTAL = "chappe_gateway_connections_closed_total", Kind::Counter, Count,
            {transport: TRANSPORTS, reason: &["client", "idle", "slow_consumer", "drain", "auth", "protocol", "error"]},
            "Connections ended, by who or what ended them.";
        GATEWAY_FRAMES_TOTAL = "chappe_gateway_frames_total", Kind::Counter, Count, {direction: &["in", "out"]},
            "Frames read from and written to clients.";
        GATEWAY_FRAME_BYTES_TOTAL = "chappe_gateway_frame_bytes_total", Kind::Counter, Bytes,
            {direction: &["in", "out"]},
            "Bytes of those frames.";
        GATEWAY_RESUMES_TOTAL = "chappe_gateway_resumes_total", Kind::Counter, Count,
            {result: &["resumed", "gap_filled", "resync", "rejected"]},
            "Clients that came back with positions, by the worst of what they were given; for live ones see resyncs.";
        GATEWAY_RESYNCS_TOTAL = "chappe_gateway_resyncs_total", Kind::Counter, Count,
            {cause: &["overflow", "queue", "gap", "grew", "catch_up", "panic"]},
            "Conversations of live connections whose events were left out, so that the client must fetch them, by cause.";
        GATEWAY_ANSWERS_STALLED_TOTAL = "chappe_gateway_answers_stalled_total", Kind::Counter, Count,
            {protocol: &["http1", "http2"]},
            "Answers of which clients took nothing for a minute: over HTTP/2 their stream was reset, over HTTP/1.1 the connection ended.";
        GATEWAY_PANICS_TOTAL = "chappe_gateway_panics_total", Kind::Counter, Count,
            {task: &["websocket", "http", "delivery", "sweep", "lanes", "accept", "keys"]},
            "Panics of gateway tasks; a connection's takes that connection only, the others begin again.";
        AUTH_REFUSALS_TOTAL = "chappe_auth_refusals_total", Kind::Counter, Count, {reason: OPEN},
            "Tokens and API keys that were refused, by why.";
        AUTH_KEY_REFRESHES_TOTAL = "chappe_auth_key_refreshes_total", Kind::Counter, Count, {result: &["ok", "failed"]},
            "Times that an issuer's key set was read or fetched; after a failure the keys of before stay in force.";
        AUTH_KEYS = "chappe_auth_keys", Kind::Gauge, Count, {},
            "Keys of the issuer's set that tokens may be signed with; 0 where there is no set, or none yet.";
        AUTH_KEYS_REFRESHED_TIMESTAMP_SECONDS = "chappe_auth_keys_refreshed_timestamp_seconds", Kind::Gauge, Seconds, {},
            "When an issuer's key set was last read or fetched, since the Unix epoch.";
        TLS_HANDSHAKES_TOTAL = "chappe_tls_handshakes_total", Kind::Counter, Count, {result: &["ok", "failed"]},
            "Handshakes of clients, where TLS is configured.";
        TLS_CERTIFICATE_READS_TOTAL = "chappe_tls_certificate_reads_total", Kind::Counter, Count, {result: &["ok", "failed"]},
            "Times that a changed certificate was read; after a failure the one of before stays in force.";
        HTTP_REQUEST_DURATION_SECONDS = "chappe_http_request_duration_seconds", Kind::Histogram(SECONDS), Seconds,
            {route: OPEN, method: OPEN, status_class: &["1xx", "2xx", "3xx", "4xx", "5xx"]},
            "Time from a request's head to its response's head, by route template.";
        RATE_LIMIT_DECISIONS_TOTAL = "chappe_rate_limit_decisions_total", Kind::Counter, Count,
            {scope: OPEN, backend: &["local"], decision: &["allowed", "refused", "exempt"]},
            "Tokens asked of the limiter, by what it said.";
        GATEWAY_ROUTES_TOTAL = "chappe_gateway_routes_total", Kind::Counter, Count,
            {result: &["ok", "moved", "stale_epoch", "no_owner", "timeout"]},
            "Commands sent to the owner of their conversation, by how that went.";
        DELIVERY_LATENCY_SECONDS = "chappe_delivery_latency_seconds", Kind::Histogram(SECONDS), Seconds,
            {kind: &["small", "large"]},
            "Time from accepting an event to its recipients' outboxes, once per event and gateway: small names its recipients (up to 256 members), large goes to whoever has it open.";
    }
    Node {
        NODE_COMMANDS_TOTAL = "chappe_node_commands_total", Kind::Counter, Count, {command: OPEN, result: OPEN},
            "Commands handled; result is ok or the code of the error.";
        NODE_COMMAND_DURATION_SECONDS = "chappe_node_command_duration_seconds", Kind::Histogram(SECONDS), Seconds,
            {command: OPEN},
            "Time from a command's arrival at its shard to its reply.";
        NODE_CONVERSATIONS = "chappe_node_conversations", Kind::Gauge, Count,
            {state: &["active", "recovering", "handing_over"]},
            "Conversations in memory.";
        NODE_SHARD_QUEUE_DEPTH = "chappe_node_shard_queue_depth", Kind::Histogram(COUNTS), Count, {},
            "Commands found waiting when a shard turns to its queue.";
        NODE_SHARD_REJECTIONS_TOTAL = "chappe_node_shard_rejections_total", Kind::Counter, Count, {reason: OPEN},
            "Commands refused before they reached an entity.";
        NODE_ENTITY_RESTARTS_TOTAL = "chappe_node_entity_restarts_total", Kind::Counter, Count,
            {kind: &["conversation", "user"], reason: OPEN},
            "Entities dropped from memory and recovered from the log.";
        NODE_PURGED_EVENTS_TOTAL = "chappe_node_purged_events_total", Kind::Counter, Count, {},
            "Events that were kept as long as they were to be, and of which the store is rid.";
        NODE_USERS_RESTING = "chappe_node_users_resting", Kind::Gauge, Count, {},
            "Users out of memory whose conversations are watched, so that their return asks only what has moved on.";
        NODE_INBOX_QUESTIONS_TOTAL = "chappe_node_inbox_questions_total", Kind::Counter, Count, {kind: &["head", "row"]},
            "Questions of users' inboxes to conversations' owners: where one stands, and what a page shows of it.";
        NODE_INBOX_SETTLING_TOTAL = "chappe_node_inbox_settling_total", Kind::Counter, Count, {},
            "Lists and syncs answered before every conversation of the user had said where it stands.";
        NODE_MOVE_STEP_DURATION_SECONDS = "chappe_node_move_step_duration_seconds", Kind::Histogram(SECONDS), Seconds,
            {step: &["show", "seal", "agree", "commit", "pause"]},
            "Time that a partition given away on purpose spends in each step; pause is seal, agree and commit: its commands wait.";
        PRESENCE_CONNECTIONS = "chappe_presence_connections", Kind::Gauge, Count, {status: &["online", "away"]},
            "Authenticated WebSocket connections, by whether somebody is at hand; counted once a second.";
        PRESENCE_WATCHES = "chappe_presence_watches", Kind::Gauge, Count, {},
            "Users looking at users: one for each pair, at the owner of who is looked at.";
        PRESENCE_DUE = "chappe_presence_due", Kind::Gauge, Count, {},
            "Watched users whose last change has not been told to everybody who looks: the budget of words per second is used up.";
        PRESENCE_EVENTS_TOTAL = "chappe_presence_events_total", Kind::Counter, Count, {},
            "Words to watchers how somebody is seen.";
        TYPING_CONVERSATIONS = "chappe_typing_conversations", Kind::Gauge, Count, {},
            "Conversations in which somebody is writing.";
        TYPING_EVENTS_TOTAL = "chappe_typing_events_total", Kind::Counter, Count, {change: &["started", "stopped"]},
            "Changes of who is writing that were told to gateways.";
        NODE_INBOX_RESETS_TOTAL = "chappe_node_inbox_resets_total", Kind::Counter, Count,
            {reason: &["new", "generation", "too_old", "ahead"]},
            "Cursors of devices that were of no use, so that they must list the inbox anew.";
        NODE_RECEIPTS_TOTAL = "chappe_node_receipts_total", Kind::Counter, Count, {kind: &["delivered", "read"]},
            "Times that clients said how far they have got in a conversation.";
        NODE_RECEIPTS_TOLD = "chappe_node_receipts_told", Kind::Histogram(COUNTS), Count, {},
            "Members whose watermarks one word to their conversation tells of; its count is that of such words.";
        NODE_RECEIPTS_WAITING = "chappe_node_receipts_waiting", Kind::Gauge, Count, {},
            "Conversations with watermarks that stand in memory only: a crash takes them back.";
        NODE_FANOUT_RECIPIENTS = "chappe_node_fanout_recipients", Kind::Histogram(COUNTS), Count,
            {kind: CONVERSATIONS},
            "Recipients of one event.";
    }
    Store {
        STORE_OPERATION_DURATION_SECONDS = "chappe_store_operation_duration_seconds", Kind::Histogram(SECONDS),
            Seconds, {backend: OPEN, operation: OPEN},
            "Time of one operation of the log store.";
        STORE_ERRORS_TOTAL = "chappe_store_errors_total", Kind::Counter, Count,
            {backend: OPEN, operation: OPEN, kind: OPEN},
            "Operations of the log store that failed.";
        STORE_REQUESTS_LIMIT = "chappe_store_requests_limit", Kind::Gauge, Count, {kind: OPEN},
            "Statements that may be under way to the CQL servers at once; it falls when they answer late.";
        STORE_REQUESTS_WAITING = "chappe_store_requests_waiting", Kind::Gauge, Count, {kind: OPEN},
            "Statements that wait for their turn.";
        STORE_WAL_FSYNC_DURATION_SECONDS = "chappe_store_wal_fsync_duration_seconds", Kind::Histogram(SECONDS),
            Seconds, {},
            "Time of one group commit's sync to disk.";
        STORE_ROWS_WRITTEN_TOTAL = "chappe_store_rows_written_total", Kind::Counter, Count, {table: OPEN},
            "Rows written; rows per event is what a message costs.";
        STORE_EVENTS_WRITTEN_TOTAL = "chappe_store_events_written_total", Kind::Counter, Count, {},
            "Events made durable.";
        STORE_DISK_BYTES = "chappe_store_disk_bytes", Kind::Gauge, Bytes, {},
            "Space the embedded store takes.";
        STORE_DISK_FREE_BYTES = "chappe_store_disk_free_bytes", Kind::Gauge, Bytes, {},
            "Space left on the volume of the data directory.";
    }
    Cluster {
        CLUSTER_MAP_VERSION = "chappe_cluster_map_version", Kind::Gauge, Count, {},
            "Version of the map of owners that this node knows (the index of the decision that made it).";
        CLUSTER_PARTITIONS = "chappe_cluster_partitions", Kind::Gauge, Count, {state: &["owned", "unowned", "moving"]},
            "Partitions in this node's map: with a live owner, without one, and planned to move.";
        CLUSTER_SESSIONS = "chappe_cluster_sessions", Kind::Gauge, Count, {state: &["live", "unfenced"]},
            "Sessions of nodes in this node's map: live ones, and expired ones whose fence is not confirmed.";
        RAFT_TERM = "chappe_raft_term", Kind::Gauge, Count, {},
            "Raft's term, which grows with every election.";
        RAFT_IS_VOTER = "chappe_raft_is_voter", Kind::Gauge, Count, {},
            "1 while this node votes, as far as it knows.";
        RAFT_IS_LEADER = "chappe_raft_is_leader", Kind::Gauge, Count, {},
            "1 while this node leads and a majority hears it.";
        RAFT_HAS_LEADER = "chappe_raft_has_leader", Kind::Gauge, Count, {},
            "1 while this node knows who leads.";
        RAFT_LAST_INDEX = "chappe_raft_last_index", Kind::Gauge, Count, {},
            "The last entry in this node's log of decisions.";
        RAFT_APPLIED_INDEX = "chappe_raft_applied_index", Kind::Gauge, Count, {},
            "The last decision that this node has applied.";
        RAFT_LEADER_CHANGES_TOTAL = "chappe_raft_leader_changes_total", Kind::Counter, Count, {},
            "Times that this node began to lead.";
        RAFT_PROPOSALS_TOTAL = "chappe_raft_proposals_total", Kind::Counter, Count,
            {result: &["applied", "refused", "unknown", "unavailable"]},
            "Proposals of this node, by what became of them.";
        RAFT_LOG_FSYNC_DURATION_SECONDS = "chappe_raft_log_fsync_duration_seconds", Kind::Histogram(SECONDS), Seconds, {},
            "Time of one sync of the log of decisions.";
    }
    Link {
        QUIC_CONNECTIONS = "chappe_quic_connections", Kind::Gauge, Count,
            {role: &["node", "gateway"], side: &["dialled", "accepted"]},
            "Connections to other processes, by what they are and who dialled.";
        QUIC_DIALS_TOTAL = "chappe_quic_dials_total", Kind::Counter, Count, {result: &["connected", "refused", "failed"]},
            "Attempts to reach another process.";
        QUIC_REFUSALS_TOTAL = "chappe_quic_refusals_total", Kind::Counter, Count,
            {side: &["dialled", "accepted"], reason: &["certificate", "expired", "unknown_authority", "alpn", "name", "somebody_else",
                "itself", "cluster", "version", "stale", "malformed", "late", "busy"]},
            "Handshakes that came to nothing because one side refused, by reason.";
        QUIC_DISCONNECTS_TOTAL = "chappe_quic_disconnects_total", Kind::Counter, Count,
            {reason: &["goodbye", "silence", "reset", "transport", "queue", "length", "checksum", "lane", "panic", "superseded",
                "cluster", "introduction", "closed"]},
            "Connections that ended, by reason.";
        QUIC_FRAMES_TOTAL = "chappe_quic_frames_total", Kind::Counter, Count, {direction: &["sent", "received"]},
            "Frames on lanes.";
        QUIC_FRAME_BYTES_TOTAL = "chappe_quic_frame_bytes_total", Kind::Counter, Bytes, {direction: &["sent", "received"]},
            "Frames on lanes, in bytes with their headers.";
        QUIC_DATAGRAMS_TOTAL = "chappe_quic_datagrams_total", Kind::Counter, Count,
            {result: &["sent", "received", "dropped", "malformed"]},
            "Datagrams, which may get lost; dropped are those that were not sent because they were too large or too many.";
        QUIC_QUESTIONS_TOTAL = "chappe_quic_questions_total", Kind::Counter, Count,
            {result: &["answered", "unreachable", "lost", "served", "declined"]},
            "Questions by what became of them: asked by this process, and (served, declined) asked of it.";
        QUIC_QUESTION_DURATION_SECONDS = "chappe_quic_question_duration_seconds", Kind::Histogram(SECONDS), Seconds, {},
            "From a question of this process to its answer.";
        QUIC_RTT_SECONDS = "chappe_quic_rtt_seconds", Kind::Histogram(RTT_SECONDS), Seconds, {},
            "Round trips of all connections, every five seconds.";
        QUIC_LOST_PACKETS_TOTAL = "chappe_quic_lost_packets_total", Kind::Counter, Count, {},
            "Packets that were sent and had to be sent again.";
    }
    Membership {
        SWIM_MEMBERS = "chappe_swim_members", Kind::Gauge, Count,
            {role: &["node", "gateway"], state: &["up", "suspect", "down"]},
            "Other members of the cluster as this process knows them; suspect ones count as up until they are down.";
        SWIM_CHANGES_TOTAL = "chappe_swim_changes_total", Kind::Counter, Count, {change: &["up", "down", "renewed"]},
            "Members that came up (or came back) and went down here; renewed: this process was held for down and contradicted.";
        SWIM_PROBES_FAILED_TOTAL = "chappe_swim_probes_failed_total", Kind::Counter, Count, {},
            "Members that answered neither this process nor those that it asked to try.";
        SWIM_CONTESTED_TOTAL = "chappe_swim_contested_total", Kind::Counter, Count, {},
            "Times that a later life of this process was known than it lives: once after a clock went back; without end if two have one name.";
        SWIM_SLEPT_TOTAL = "chappe_swim_slept_total", Kind::Counter, Count, {},
            "Times that membership acted so late that the process must have stood still.";
        SWIM_PACKETS_TOTAL = "chappe_swim_packets_total", Kind::Counter, Count, {direction: &["in", "out"]},
            "Datagrams of membership, dropped ones included.";
        SWIM_BYTES_TOTAL = "chappe_swim_bytes_total", Kind::Counter, Bytes, {direction: &["in", "out"]},
            "Bytes of those datagrams.";
        SWIM_DROPPED_TOTAL = "chappe_swim_dropped_total", Kind::Counter, Count,
            {reason: &["size", "version", "seal", "replayed", "cluster", "malformed", "unsent"]},
            "Datagrams that were not heeded, by why; seal: another key or other bytes than were sent; unsent: this system did not take it.";
    }
}

/// The metrics of this process: a cheap handle.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    handle: PrometheusHandle,
    components: Mutex<BTreeSet<Component>>,
    /// Only where it is not the recorder of the whole process.
    recorder: Option<PrometheusRecorder>,
}

/// Why metrics could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A histogram without bounds.
    #[error("cannot build the metrics recorder")]
    Build(#[source] BuildError),
    /// Another library has set the recorder of this process.
    #[error("metrics already go to another recorder")]
    Taken,
    /// No thread for the upkeep.
    #[error("cannot start the upkeep of metrics")]
    Upkeep(#[source] std::io::Error),
}

/// How often histograms fold in what was recorded. Between scrapes nothing else does, and samples wait in memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<Metrics> = OnceLock::new();
static INSTALLING: Mutex<()> = Mutex::new(());

/// Makes this process record, and describes the metrics of `components`.
///
/// May be called again: several servers in one process (tests, standalone mode) share one recorder. Handles looked up
/// before the first call record nowhere, so this stands early in a `main`.
pub fn install(components: &[Component]) -> Result<Metrics, Error> {
    let _one_at_a_time = INSTALLING.lock();
    let metrics = match INSTALLED.get() {
        Some(metrics) => metrics.clone(),
        None => {
            let recorder = recorder()?;
            let metrics = Metrics::over(recorder.handle(), None);
            ::metrics::set_global_recorder(recorder).map_err(|_| Error::Taken)?;
            // A thread, not a task: the recorder outlives every runtime of the process.
            let handle = metrics.0.handle.clone();
            let upkeep = move || {
                loop {
                    std::thread::sleep(UPKEEP_INTERVAL);
                    handle.run_upkeep();
                }
            };
            std::thread::Builder::new().name("metrics".into()).spawn(upkeep).map_err(Error::Upkeep)?;
            INSTALLED.get_or_init(|| metrics).clone()
        }
    };
    metrics.describe(components);
    Ok(metrics)
}

/// Describes the whole catalogue to the current recorder and brings every series it knows to existence, at 0.
pub fn describe_all() {
    describe(Component::EVERY);
}

/// [`describe_all`] for some components.
pub fn describe(components: &[Component]) {
    let described = CATALOGUE.iter().filter(|m| components.contains(&m.component) && !m.is_vital());
    for metric in described {
        match metric.kind {
            Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => ::metrics::describe_histogram!(metric.name, metric.help),
        }
        for labels in metric.known_series() {
            metric.touch(&labels);
        }
    }
}

/// Brings one series to existence at 0, for whoever owns the values of an open label.
///
/// ```
/// use chappe_cluster::process::metrics;
/// metrics::preset(metrics::STORE_ROWS_WRITTEN_TOTAL, &[("table", "log")]);
/// ```
pub fn preset(name: &'static str, labels: &[(&'static str, &'static str)]) {
    match find(name) {
        Some(metric) => metric.touch(labels),
        None => debug_assert!(false, "{name} is not in the catalogue"),
    }
}

/// Says which build this is.
pub fn record_build(version: &Version) {
    let gauge = ::metrics::gauge!(
        BUILD_INFO,
        "component" => version.component,
        "version" => version.version,
        "revision" => version.revision,
        "protocol_min" => version.protocol_min.to_string(),
        "protocol_max" => version.protocol_max.to_string(),
    );
    gauge.set(1.0);
}

/// The catalogue's row of a name.
pub fn find(name: &str) -> Option<&'static Metric> {
    CATALOGUE.iter().find(|metric| metric.name == name)
}

// === impl Metrics ===

impl Metrics {
    /// Metrics that only code inside [`Metrics::within`] records to: for tests that count, side by side.
    pub fn detached(components: &[Component]) -> Result<Self, Error> {
        let recorder = recorder()?;
        let metrics = Self::over(recorder.handle(), Some(recorder));
        metrics.describe(components);
        Ok(metrics)
    }

    /// Runs `act` recording to these metrics, on this thread.
    pub fn within<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.0.recorder {
            Some(recorder) => ::metrics::with_local_recorder(recorder, act),
            None => act(),
        }
    }

    /// Everything, in Prometheus' text format. A metric of the catalogue that has no series yet still shows its
    /// `# HELP`, so that a scrape always tells what exists.
    pub fn render(&self) -> String {
        let mut text = self.0.handle.render();
        let silent: Vec<&Metric> = {
            let present: HashSet<&str> =
                text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
            let components = self.0.components.lock();
            let ours = CATALOGUE.iter().filter(|m| components.contains(&m.component) && !m.is_vital());
            ours.filter(|m| !present.contains(m.name)).collect()
        };
        for metric in silent {
            metric.render_head(&mut text);
            text.push('\n');
        }
        if let Some(vitals) = Vitals::read() {
            vitals.render(&mut text);
        }
        text
    }

    fn over(handle: PrometheusHandle, recorder: Option<PrometheusRecorder>) -> Self {
        Self(Arc::new(Inner { handle, components: Mutex::new(BTreeSet::new()), recorder }))
    }

    fn describe(&self, components: &[Component]) {
        self.0.components.lock().extend(components);
        self.within(|| describe(components));
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("components", &self.0.components.lock()).finish_non_exhaustive()
    }
}

fn recorder() -> Result<PrometheusRecorder, Error> {
    // Without bounds a histogram would silently become a summary, which cannot be summed over pods.
    let mut builder = PrometheusBuilder::new().set_buckets(SECONDS).map_err(Error::Build)?;
    for metric in CATALOGUE {
        if let Kind::Histogram(bounds) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, bounds).map_err(Error::Build)?;
        }
    }
    Ok(builder.build_recorder())
}

// === impl Metric ===

impl Metric {
    /// Read from the kernel at each scrape, not recorded; see [`Vitals`].
    fn is_vital(&self) -> bool {
        self.name.starts_with("process_")
    }

    /// The two lines above a metric's samples.
    pub fn render_head(&self, text: &mut String) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {}", self.name, self.help, self.name, self.kind.name());
    }

    /// Every combination of labels that the catalogue knows; none if one of them is decided elsewhere.
    fn known_series(&self) -> Vec<Vec<(&'static str, &'static str)>> {
        self.labels.iter().fold(vec![vec![]], |series, label| {
            let with = |labels: &Vec<_>| {
                let labels = labels.clone();
                label.values.iter().map(move |value| [labels.as_slice(), &[(label.name, *value)]].concat())
            };
            series.iter().flat_map(with).collect()
        })
    }

    /// Looking a handle up is what creates its series.
    fn touch(&self, labels: &[(&'static str, &'static str)]) {
        match self.kind {
            Kind::Counter => drop(::metrics::counter!(self.name, labels)),
            Kind::Gauge => drop(::metrics::gauge!(self.name, labels)),
            Kind::Histogram(_) => drop(::metrics::histogram!(self.name, labels)),
        }
    }
}

impl Kind {
    /// As Prometheus calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

impl Component {
    /// What a standalone server is made of.
    pub const ALL: &'static [Component] = &[Component::Process, Component::Gateway, Component::Node, Component::Store];

    /// All that there is.
    pub const EVERY: &'static [Component] = &[
        Component::Process,
        Component::Gateway,
        Component::Node,
        Component::Store,
        Component::Cluster,
        Component::Link,
        Component::Membership,
    ];
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    fn types(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    #[test]
    fn the_catalogue_is_what_is_scraped_both_ways() {
        let metrics = Metrics::detached(Component::EVERY).unwrap();
        metrics.within(|| {
            record_build(&Version::of("standalone", 1, 1));
            // With every open label used as well, so that every kind of series is in the text.
            for metric in CATALOGUE.iter().filter(|m| !m.is_vital()) {
                let labels: Vec<_> =
                    metric.labels.iter().map(|l| (l.name, *l.values.first().unwrap_or(&"x"))).collect();
                preset(metric.name, &labels);
            }
        });
        let text = metrics.render();
        let scraped = types(&text);
        let catalogued: BTreeMap<&str, &str> = CATALOGUE.iter().map(|m| (m.name, m.kind.name())).collect();
        assert_eq!(scraped, catalogued);
        assert_eq!(CATALOGUE.len(), catalogued.len(), "a name stands twice");

        for metric in CATALOGUE {
            let head = format!("# HELP {} {}\n# TYPE {} ", metric.name, metric.help, metric.name);
            assert_eq!(text.matches(&head).count(), 1, "{}", metric.name);
        }
        for sample in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let name = sample.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = family.filter(|family| find(family).is_some()).unwrap_or(name);
            assert!(find(family).is_some(), "{sample} is not in the catalogue");
            let value = sample.rsplit_once(' ').unwrap().1;
            assert!(value.parse::<f64>().is_ok(), "{sample}");
        }
    }

    #[test]
    fn a_metric_nobody_has_recorded_is_still_announced() {
        let metrics = Metrics::detached(&[Component::Process, Component::Store]).unwrap();
        let text = metrics.render();
        assert_eq!(types(&text).get(STORE_ROWS_WRITTEN_TOTAL), Some(&"counter"));
        assert!(!types(&text).contains_key(NODE_COMMANDS_TOTAL), "a store is not a node");
    }

    #[test]
    fn series_with_known_labels_begin_at_zero_and_describing_again_keeps_them() {
        let metrics = Metrics::detached(Component::ALL).unwrap();
        let line = "chappe_gateway_connections_closed_total{transport=\"websocket\",reason=\"slow_consumer\"}";
        assert!(metrics.render().contains(&format!("{line} 0\n")));
        metrics.within(|| {
            let labels = [("transport", "websocket"), ("reason", "slow_consumer")];
            ::metrics::counter!(GATEWAY_CONNECTIONS_CLOSED_TOTAL, &labels).increment(3);
            describe_all();
        });
        assert!(metrics.render().contains(&format!("{line} 3\n")));
    }

    #[test]
    fn histograms_have_their_own_buckets() {
        let metrics = Metrics::detached(Component::ALL).unwrap();
        metrics.within(|| {
            ::metrics::histogram!(STORE_WAL_FSYNC_DURATION_SECONDS).record(0.2);
            ::metrics::histogram!(NODE_FANOUT_RECIPIENTS, "kind" => "group").record(150.0);
            ::metrics::histogram!("of_somebody_else_seconds").record(0.2);
        });
        let text = metrics.render();
        assert!(text.contains("chappe_store_wal_fsync_duration_seconds_bucket{le=\"0.25\"} 1\n"), "{text}");
        assert!(text.contains("chappe_node_fanout_recipients_bucket{kind=\"group\",le=\"200\"} 1\n"), "{text}");
        assert!(text.contains("of_somebody_else_seconds_bucket{le=\"0.25\"} 1\n"), "{text}");
        assert!(!text.contains("summary"), "{text}");
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in CATALOGUE {
            let name = metric.name;
            assert!(name.starts_with("chappe_") || metric.is_vital(), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            let stem = name.trim_end_matches("_total");
            assert_eq!(stem.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
            assert_eq!(stem.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{name}");
            assert!(metric.known_series().len() <= 100, "{name} has too many series");
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted_by(|a, b| a < b), "{name}");
            }
        }
    }

    #[test]
    fn installing_twice_shares_one_recorder() {
        let first = install(&[Component::Process]).unwrap();
        let second = install(&[Component::Store]).unwrap();
        assert!(Arc::ptr_eq(&first.0, &second.0));
        assert!(types(&first.render()).contains_key(STORE_DISK_BYTES));
    }
}
