//! The oracle: reads a history of what clients saw, and says which promises were broken.
//!
//! It judges in one pass, a look-up or two per observation. Servers hand out dense seqs, so the first sighting of an
//! event proposes its place in the order ([`ledger`]), and every later sighting must agree. What cannot be decided at
//! once (is a hole a lost message, or a seq nobody ever had?) is kept, and decided at the end.
//!
//! One rule, one file; the rules' numbers are those of the project's list of promises. The oracle knows nothing of the
//! server: it lives apart from the code it judges and depends on none of it. Every rule is tested with a planted
//! violation that it alone must report (`tests.rs`).

mod availability;
mod change;
mod dense;
mod ledger;
mod loss;
mod membership;
mod order;
mod phantom;
mod presence;
mod reaction;
mod reads;
mod receipt;
#[cfg(test)]
mod sample;
mod stream;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::history::{Connection, Conversation, Record, User, What};

/// Violations kept in words; the rest are only counted.
const TOLD_PER_RULE_MAX: usize = 20;

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Rule {
    /// What was acknowledged, or seen by anybody, is in each final read.
    NoLoss = 1,
    /// What is delivered or shown was sent, as it was sent.
    NoPhantom = 2,
    /// A message has one seq; a retry returns it.
    NoDuplicate = 3,
    /// Everybody sees the same event at the same seq.
    TotalOrder = 4,
    /// Seqs have no holes.
    Dense = 5,
    /// A send's seq exceeds everything acknowledged before the send began.
    RealTime = 6,
    /// A read holds what its user wrote and read before.
    Reads = 7,
    /// On a connection, seqs rise by one, or a resync says otherwise and is followed by a read.
    Stream = 8,
    /// Receipts rise; read ≤ delivered ≤ head, and no more than was said; what was accepted is shown in the end.
    Receipts = 9,
    /// Edits, deletions and reactions converge; tombstones stay dead.
    Changes = 10,
    /// Nothing is shown outside one's membership.
    Membership = 11,
    /// No conversation is without success for longer than allowed.
    Availability = 12,
    /// Typing and presence agree with the truth 5 s after the last change.
    Presence = 13,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// When it was seen, in the history's microseconds.
    pub at: u64,
    /// What was seen.
    pub text: String,
}

/// What is demanded beyond correctness.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// The longest time a conversation may go without success while somebody tries, in microseconds; `None` only
    /// measures it.
    pub unavailable_us_max: Option<u64>,
}

/// What was judged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Observations.
    pub records: u64,
    /// Conversations.
    pub conversations: u64,
    /// Messages that were begun.
    pub sends: u64,
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Messages that were definitely refused.
    pub failed: u64,
    /// Messages whose fate their sender does not know.
    pub unknown: u64,
    /// Messages of unknown fate that exist.
    pub unknown_found: u64,
    /// Events that arrived on connections.
    pub deliveries: u64,
    /// Reads of history.
    pub reads: u64,
    /// Final reads.
    pub final_reads: u64,
    /// Acknowledged messages in conversations that nobody finally read: for these, loss was not judged.
    pub acked_unread: u64,
    /// Resyncs.
    pub resyncs: u64,
    /// The longest time a conversation went without success while somebody tried, in microseconds.
    pub unavailable_us: u64,
}

/// The judgement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Broken promises; at most 20 of each rule are told.
    pub violations: Vec<Violation>,
    /// How often each rule was broken.
    pub counts: Vec<(Rule, u64)>,
    /// What was judged.
    pub stats: Stats,
}

impl Stats {
    fn and(self, other: Self) -> Self {
        Self {
            records: self.records + other.records,
            conversations: self.conversations + other.conversations,
            sends: self.sends + other.sends,
            acked: self.acked + other.acked,
            failed: self.failed + other.failed,
            unknown: self.unknown + other.unknown,
            unknown_found: self.unknown_found + other.unknown_found,
            deliveries: self.deliveries + other.deliveries,
            reads: self.reads + other.reads,
            final_reads: self.final_reads + other.final_reads,
            acked_unread: self.acked_unread + other.acked_unread,
            resyncs: self.resyncs + other.resyncs,
            unavailable_us: self.unavailable_us.max(other.unavailable_us),
        }
    }
}

impl Verdict {
    /// The judgements of two histories that have nothing in common.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.violations.extend(other.violations);
        for (rule, count) in other.counts {
            match self.counts.iter_mut().find(|(known, _)| *known == rule) {
                Some((_, known)) => *known += count,
                None => self.counts.push((rule, count)),
            }
        }
        self.stats = self.stats.and(other.stats);
        self
    }

    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.stats;
        writeln!(
            f,
            "oracle: {} sends ({} acked, {} failed, {} unknown of which {} exist), {} deliveries, {} reads ({} final), {} resyncs, \
             longest outage {:.1} ms",
            s.sends,
            s.acked,
            s.failed,
            s.unknown,
            s.unknown_found,
            s.deliveries,
            s.reads,
            s.final_reads,
            s.resyncs,
            s.unavailable_us as f64 / 1e3
        )?;
        if s.acked_unread > 0 {
            writeln!(
                f,
                "oracle: {} acked messages stand in conversations nobody finally read: loss not judged there",
                s.acked_unread
            )?;
        }
        for violation in &self.violations {
            writeln!(
                f,
                "VIOLATION of rule {} ({:?}) at {} us: {}",
                violation.rule as u8, violation.rule, violation.at, violation.text
            )?;
        }
        for (rule, count) in &self.counts {
            writeln!(f, "rule {} ({rule:?}) broken {count} times", *rule as u8)?;
        }
        if self.is_clean() { write!(f, "oracle: clean") } else { write!(f, "oracle: VIOLATIONS") }
    }
}

/// The judge, fed record by record in the order of time.
#[derive(Debug, Default)]
pub struct Oracle {
    limits: Limits,
    findings: Findings,
    ledger: ledger::Ledger,
    names: Names,
    connections: Vec<Option<User>>,
    views: view::Views,
    streams: stream::Streams,
    reads: reads::Reads,
    changes: change::Changes,
    reactions: reaction::Reactions,
    receipts: receipt::Receipts,
    presence: presence::Presences,
}

impl Oracle {
    /// A judge with limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Judges a whole history.
    pub fn judge<'a>(history: impl IntoIterator<Item = &'a Record>) -> Verdict {
        let mut oracle = Self::default();
        for record in history {
            oracle.observe(record);
        }
        oracle.finish()
    }

    /// Takes the next record.
    pub fn observe(&mut self, record: &Record) {
        self.findings.at = record.at;
        self.findings.stats.records += 1;
        let at = record.at;
        match record.what {
            What::NameUser { user, ref name } => _ = self.names.users.insert(user, name.as_str().into()),
            What::NameConversation { conversation, id } => _ = self.names.conversations.insert(conversation, id),
            What::Connect { connection, user } => {
                let index = connection.0 as usize;
                if self.connections.len() <= index {
                    self.connections.resize(index + 1, None);
                }
                self.connections[index] = Some(user);
            }
            What::SendStart { user, conversation, id, hash } => self.send_started(at, user, conversation, id, hash),
            What::Ack { id, seq } => self.acked(at, id, seq),
            What::Fail { id } => self.failed(at, id),
            What::Unknown { id } => self.forgotten(at, id),
            What::Deliver { connection, conversation, seq, fact } => {
                self.findings.stats.deliveries += 1;
                let user = self.user_of(connection);
                self.sighted(conversation, seq, &fact);
                self.moved(user, conversation, seq, &fact);
                self.streamed(connection, user, conversation, seq);
                self.views.of(user, conversation).see(seq);
            }
            What::Resume { connection, conversation, from } => self.resumed(connection, conversation, from),
            What::Resync { connection, conversation, head } => self.resynced(connection, conversation, head),
            What::ReadStart { read, user, conversation, after, last } => {
                self.read_started(read, user, conversation, after, last)
            }
            What::ReadItem { read, seq, fact } => self.read_item(read, seq, &fact),
            What::Purged { read, floor } => self.read_purged(read, floor),
            What::ReadEnd { read, head } => self.read_ended(read, head),
            What::Show { conversation, seq, shown, last, .. } => self.shown(conversation, seq, shown, last),
            What::ChangeStart { conversation, target, id, hash, .. } => {
                self.change_started(conversation, target, id, hash)
            }
            What::ChangeAck { id, seq } => self.change_acked(id, seq),
            What::ReactStart { user, conversation, target, key, on } => {
                self.react_started(conversation, target, user, key, on)
            }
            What::Counted { user, conversation, seq, counts, last } => {
                self.counted(user, conversation, seq, counts, last)
            }
            What::Join { user, conversation, from } => {
                self.receipts.joined(user, conversation);
                self.joined(user, conversation, from)
            }
            What::Leave { user, conversation, upto } => {
                self.receipts.left(user, conversation, at);
                self.left(user, conversation, upto)
            }
            What::Receipt { connection, user, conversation, mark, upto } => {
                self.receipt(connection, user, conversation, mark, upto)
            }
            What::ReceiptStart { user, conversation, delivered, read } => {
                self.receipt_said((user, conversation), (delivered, read), false)
            }
            What::ReceiptAck { user, conversation, delivered, read } => {
                self.receipt_said((user, conversation), (delivered, read), true)
            }
            What::ReceiptShown { observer, user, conversation, delivered, read } => {
                self.receipt_shown((observer, user, conversation), (delivered, read))
            }
            What::Presence { user, conversation, on } => self.presence.changed(at, user, conversation, on),
            What::PresenceSeen { observer, user, conversation, on } => {
                self.presence.seen(at, observer, user, conversation, on)
            }
            What::Fault { begins, forgets, .. } => {
                if forgets {
                    self.receipts.fault(begins);
                }
            }
        }
    }

    /// Ends the history.
    pub fn finish(mut self) -> Verdict {
        self.finish_streams();
        self.finish_reads();
        self.finish_loss();
        self.finish_phantoms();
        self.finish_changes();
        self.finish_reactions();
        self.finish_membership();
        self.finish_availability();
        self.finish_presence();
        self.findings.stats.conversations =
            self.ledger.logs().filter(|(_, log)| !log.slots().is_empty()).count() as u64;
        let counts = self.findings.counts;
        Verdict {
            violations: self.findings.violations,
            counts: RULES
                .into_iter()
                .filter(|rule| counts[*rule as usize] > 0)
                .map(|rule| (rule, counts[rule as usize]))
                .collect(),
            stats: self.findings.stats,
        }
    }

    fn user_of(&self, connection: Connection) -> User {
        // A history without the opening of a connection is read as if each were a user of its own.
        self.connections.get(connection.0 as usize).copied().flatten().unwrap_or(User(u32::MAX - connection.0))
    }
}

const RULES: [Rule; 13] = [
    Rule::NoLoss,
    Rule::NoPhantom,
    Rule::NoDuplicate,
    Rule::TotalOrder,
    Rule::Dense,
    Rule::RealTime,
    Rule::Reads,
    Rule::Stream,
    Rule::Receipts,
    Rule::Changes,
    Rule::Membership,
    Rule::Availability,
    Rule::Presence,
];

/// What has been found so far.
#[derive(Debug, Default)]
struct Findings {
    at: u64,
    violations: Vec<Violation>,
    counts: [u64; 14],
    stats: Stats,
}

impl Findings {
    /// Notes a violation; the words are made only while there is room for them.
    fn report(&mut self, rule: Rule, text: impl FnOnce() -> String) {
        let count = &mut self.counts[rule as usize];
        *count += 1;
        if *count <= TOLD_PER_RULE_MAX as u64 {
            self.violations.push(Violation { rule, at: self.at, text: text() });
        }
    }
}

/// What numbers are called in words.
#[derive(Debug, Default)]
struct Names {
    users: HashMap<User, Box<str>>,
    conversations: HashMap<Conversation, Uuid>,
}

impl Names {
    fn user(&self, user: User) -> String {
        self.users.get(&user).map_or_else(|| format!("user {}", user.0), |name| name.to_string())
    }

    fn conversation(&self, conversation: Conversation) -> String {
        self.conversations
            .get(&conversation)
            .map_or_else(|| format!("conversation {}", conversation.0), Uuid::to_string)
    }
}
