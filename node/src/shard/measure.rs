//! What a shard counts. Handles are looked up once: a command costs an addition.

use chappe_cluster::process::metrics as names;
use chappe_schema::{
    error::Error,
    id::EntityId,
    inbox::Reset,
    operation::{OPERATIONS, Op},
    receipt::Progress,
};
use metrics::{Counter, Gauge, Histogram};

/// Every reason for which a cursor is of no use, in the order of their numbers.
const RESETS: [Reset; 4] = [Reset::New, Reset::Generation, Reset::TooOld, Reset::Ahead];

/// A shard's counters.
pub(crate) struct Measures {
    commands: Vec<(Counter, Counter)>,
    durations: Vec<Histogram>,
    queue: Histogram,
    recipients: Histogram,
    conversations: Gauge,
    users: Gauge,
    resting: Gauge,
    /// Questions of users' inboxes to conversations' owners: where one stands, and what a page shows of it.
    asked_heads: Counter,
    asked_rows: Counter,
    settling: Counter,
    purged: Counter,
    resets: [Counter; 4],
    presence_told: Counter,
    watches: Gauge,
    due: Gauge,
    typing: Gauge,
    typing_told: [Counter; 2],
    /// What clients say of how far they have got, what members are told of it, and conversations that wait for a row of it.
    said_delivered: Counter,
    said_read: Counter,
    told_receipts: Histogram,
    receipts_waiting: Gauge,
    receipts_counted: usize,
    /// What this shard has added to the gauges, which all shards share.
    counted: (usize, usize, usize),
    counted_presence: (usize, usize, usize),
}

impl Measures {
    pub(crate) fn new() -> Self {
        let command = |row: &chappe_schema::operation::Operation, result: &'static str| metrics::counter!(names::NODE_COMMANDS_TOTAL, "command" => row.name, "result" => result);
        Self {
            commands: OPERATIONS.iter().map(|row| (command(row, "ok"), command(row, "error"))).collect(),
            durations: OPERATIONS
                .iter()
                .map(|row| metrics::histogram!(names::NODE_COMMAND_DURATION_SECONDS, "command" => row.name))
                .collect(),
            queue: metrics::histogram!(names::NODE_SHARD_QUEUE_DEPTH),
            recipients: metrics::histogram!(names::NODE_FANOUT_RECIPIENTS, "kind" => "small"),
            conversations: metrics::gauge!(names::NODE_CONVERSATIONS, "state" => "active"),
            users: metrics::gauge!("chappe_node_users"),
            resting: metrics::gauge!(names::NODE_USERS_RESTING),
            purged: metrics::counter!(names::NODE_PURGED_EVENTS_TOTAL),
            asked_heads: metrics::counter!(names::NODE_INBOX_QUESTIONS_TOTAL, "kind" => "head"),
            asked_rows: metrics::counter!(names::NODE_INBOX_QUESTIONS_TOTAL, "kind" => "row"),
            settling: metrics::counter!(names::NODE_INBOX_SETTLING_TOTAL),
            resets: RESETS.map(|reset| metrics::counter!(names::NODE_INBOX_RESETS_TOTAL, "reason" => reset.name())),
            presence_told: metrics::counter!(names::PRESENCE_EVENTS_TOTAL),
            watches: metrics::gauge!(names::PRESENCE_WATCHES),
            due: metrics::gauge!(names::PRESENCE_DUE),
            typing: metrics::gauge!(names::TYPING_CONVERSATIONS),
            typing_told: ["stopped", "started"]
                .map(|change| metrics::counter!(names::TYPING_EVENTS_TOTAL, "change" => change)),
            said_delivered: metrics::counter!(names::NODE_RECEIPTS_TOTAL, "kind" => "delivered"),
            said_read: metrics::counter!(names::NODE_RECEIPTS_TOTAL, "kind" => "read"),
            told_receipts: metrics::histogram!(names::NODE_RECEIPTS_TOLD),
            receipts_waiting: metrics::gauge!(names::NODE_RECEIPTS_WAITING),
            receipts_counted: 0,
            counted: (0, 0, 0),
            counted_presence: (0, 0, 0),
        }
    }

    /// A command was answered, so many milliseconds after it was asked.
    pub(super) fn answered(&self, op: Op, error: Option<&Error>, ms: u64) {
        let (ok, failed) = &self.commands[op as usize];
        if error.is_none() {
            ok.increment(1)
        } else {
            failed.increment(1)
        }
        self.durations[op as usize].record(ms as f64 / 1000.0);
    }

    /// The store is rid of so many events.
    pub(super) fn removed(&self, events: u64) {
        self.purged.increment(events);
    }

    pub(super) fn queue_depth(&self, mail: usize) {
        self.queue.record(mail as f64);
    }

    pub(super) fn fanned_out(&self, users: usize) {
        self.recipients.record(users as f64);
    }

    pub(super) fn restarted(&self, entity: &EntityId, reason: &'static str) {
        let kind = match entity {
            EntityId::Conversation(_) => "conversation",
            EntityId::User(_) => "user",
        };
        metrics::counter!(names::NODE_ENTITY_RESTARTS_TOTAL, "kind" => kind, "reason" => reason).increment(1);
    }

    pub(super) fn entities(&mut self, conversations: usize, users: usize, resting: usize) {
        self.conversations.increment(conversations as f64 - self.counted.0 as f64);
        self.users.increment(users as f64 - self.counted.1 as f64);
        self.resting.increment(resting as f64 - self.counted.2 as f64);
        self.counted = (conversations, users, resting);
    }

    /// So many watchers were told how somebody is seen.
    pub(super) fn said_presence(&self, watchers: usize) {
        self.presence_told.increment(watchers as u64);
    }

    /// Others were told that somebody is writing, or no longer is.
    pub(super) fn said_typing(&self, is_typing: bool) {
        self.typing_told[usize::from(is_typing)].increment(1);
    }

    pub(super) fn presence(&mut self, watches: usize, due: usize, typing: usize) {
        self.watches.increment(watches as f64 - self.counted_presence.0 as f64);
        self.due.increment(due as f64 - self.counted_presence.1 as f64);
        self.typing.increment(typing as f64 - self.counted_presence.2 as f64);
        self.counted_presence = (watches, due, typing);
    }

    /// Conversations' owners are asked where they stand.
    pub(super) fn asked_heads(&self, count: usize) {
        self.asked_heads.increment(count as u64);
    }

    /// Conversations' owners are asked for what a page shows.
    pub(super) fn asked_rows(&self, count: usize) {
        self.asked_rows.increment(count as u64);
    }

    /// A page was answered before every conversation had said where it stands.
    pub(super) fn answered_settling(&self) {
        self.settling.increment(1);
    }

    /// A client says how far it has got.
    pub(super) fn receipts_said(&self, progress: &[Progress]) {
        self.said_delivered.increment(progress.iter().filter(|one| one.delivered.is_some()).count() as u64);
        self.said_read.increment(progress.iter().filter(|one| one.read.is_some()).count() as u64);
    }

    /// Members of a conversation are told at once how far so many have got.
    pub(super) fn receipts_told(&self, members: usize) {
        self.told_receipts.record(members as f64);
    }

    /// So many conversations of this shard have receipts that no row holds.
    pub(super) fn receipts_waiting(&mut self, conversations: usize) {
        self.receipts_waiting.increment(conversations as f64 - self.receipts_counted as f64);
        self.receipts_counted = conversations;
    }

    /// A device's cursor was of no use.
    pub(super) fn reset(&self, reset: Reset) {
        self.resets[reset as usize].increment(1);
    }
}
