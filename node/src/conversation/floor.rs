//! Where a conversation's history begins. What is kept for a time only is removed from below: an event moves the floor, and
//! from then on nothing at or below it is shown; the store is rid of it as soon as a durable snapshot stands above that event.
//!
//! Whoever removes what is overdue must know up to where that is, and reads stamps for it, by halves ([`Search`]): they never fall
//! along a log. Ids outlive the messages that they named ([`PURGED_IDS_KEPT_MS`]): a late repetition is still recognised.

use std::sync::Arc;

use chappe_schema::{
    cql::log_bucket,
    event::{Event, Fact},
    id::{CommandId, Millis, Seq, UserId},
    limit::{PURGED_IDS_KEPT_MS, RETENTION_LATE_MS_MAX, RETENTION_PARTS},
    stored::StoredFloor,
};
use uuid::Builder;
use xxhash_rust::xxh3::xxh3_128;

use super::state::Conversation;
use crate::store::{Part, Purge};

/// Where the history begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// No message above was stamped before; 0 if there is none.
    pub oldest_at: Millis,
    /// Of what was removed, if anything ever was.
    past: Option<Box<Past>>,
}

/// What is known of what was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Past {
    /// Everything at or below is removed.
    seq: Seq,
    /// Messages at or below.
    n: u64,
    /// The event that set the floor.
    set_by: Seq,
    /// Ids of events at or below are too old to be sent again.
    ids: Seq,
    /// An earlier floor, or this one: the ids below it will be next.
    ids_next: Seq,
    /// Since when that has been the floor.
    ids_next_at: Millis,
    /// The store holds nothing at or below.
    purged: Seq,
    /// And no ids of events at or below.
    purged_ids: Seq,
}

/// Up to where something is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The last event that is.
    pub seq: Seq,
    /// Messages up to it.
    pub n: u64,
    /// No message above was stamped before.
    pub oldest_at: Millis,
}

/// A search for the last event that was stamped at or before a time, by looks at single events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    cutoff: Millis,
    /// The last event known to be overdue, and messages up to it.
    low: (Seq, u64),
    /// The first event known not to be, and its stamp.
    high: (Seq, Millis),
}

/// What of something overdue makes it worth an event: so long after it is, for what is kept so long. See [`RETENTION_PARTS`].
const fn late_ms(kept_ms: Millis) -> Millis {
    let part = kept_ms / RETENTION_PARTS;
    if part < RETENTION_LATE_MS_MAX { part } else { RETENTION_LATE_MS_MAX }
}

/// How long messages are kept, in milliseconds: as long as the conversation says, and no longer than everywhere. `None` for ever.
#[must_use]
pub fn kept_ms(own_secs: u32, everywhere_ms: Option<Millis>) -> Option<Millis> {
    let own = (own_secs != 0).then(|| u64::from(own_secs) * 1000);
    own.into_iter().chain(everywhere_ms).min()
}

/// What was stamped at or before the time that this returns is to be removed, if anything is overdue long enough.
#[must_use]
pub const fn cutoff(kept_ms: Millis, oldest_at: Millis, now: Millis) -> Option<Millis> {
    if oldest_at == 0 || now < oldest_at.saturating_add(kept_ms).saturating_add(late_ms(kept_ms)) {
        return None;
    }
    Some(now - kept_ms)
}

// === impl Floor ===

impl Floor {
    /// A message was stamped so.
    pub(super) fn message(&mut self, at: Millis) {
        if self.oldest_at == 0 {
            self.oldest_at = at;
        }
    }

    /// What was removed; nothing, if nothing ever was.
    fn past(&self) -> &Past {
        const NOTHING: &Past =
            &Past { seq: 0, n: 0, set_by: 0, ids: 0, ids_next: 0, ids_next_at: 0, purged: 0, purged_ids: 0 };
        self.past.as_deref().unwrap_or(NOTHING)
    }

    /// Everything at or below is removed.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.past().seq
    }

    /// Messages at or below.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.past().n
    }

    /// The event that set it; 0 if none did.
    #[must_use]
    pub fn set_by(&self) -> Seq {
        self.past().set_by
    }

    /// Ids of events at or below are removed too.
    #[must_use]
    pub fn ids(&self) -> Seq {
        self.past().ids
    }

    /// The event at `set_by`, stamped so, has moved it here.
    pub(super) fn rise(&mut self, seq: Seq, n: u64, oldest_at: Millis, (set_by, at): (Seq, Millis)) {
        let past = self.past.get_or_insert_default();
        // Whatever a log holds can be applied: a floor never sinks.
        (past.seq, past.n, past.set_by) = (past.seq.max(seq), past.n.max(n), set_by);
        self.oldest_at = oldest_at;
        // What was removed so long ago is named by nobody any more.
        if past.ids_next != 0 && past.ids_next_at.saturating_add(PURGED_IDS_KEPT_MS) <= at {
            past.ids = past.ids_next;
            past.ids_next = 0;
        }
        if past.ids_next == 0 {
            (past.ids_next, past.ids_next_at) = (past.seq, at);
        }
    }

    /// Whether the store may hold something that is removed.
    #[must_use]
    pub fn is_purging(&self) -> bool {
        let past = self.past();
        past.purged < past.seq || past.purged_ids < past.ids
    }

    /// The store holds nothing of it any more.
    pub fn purged(&mut self) {
        if let Some(past) = &mut self.past {
            (past.purged, past.purged_ids) = (past.seq, past.ids);
        }
    }

    /// What is to be removed from the store, in this order: from above, so that whoever reads a log from below comes to a gap and
    /// not to an end. Each is one bucket's, which bounds it.
    #[must_use]
    pub fn parts(&self) -> Vec<(Part, Seq, Seq)> {
        let past = self.past();
        let ids = buckets(past.purged_ids, past.ids).map(|(above, upto)| (Part::Ids, above, upto));
        ids.chain(buckets(past.purged, past.seq).map(|(above, upto)| (Part::History, above, upto))).collect()
    }

    pub(super) fn to_stored(&self) -> StoredFloor {
        let Past { n, set_by, ids, ids_next, ids_next_at, purged, purged_ids, .. } = *self.past();
        StoredFloor { n, oldest_at: self.oldest_at, set_by, ids, ids_next, ids_next_at, purged, purged_ids }
    }

    /// `oldest_at` is a bound for a snapshot that does not say it.
    pub(super) fn from_stored(seq: Seq, stored: Option<StoredFloor>, oldest_at: Millis) -> Self {
        let Some(stored) = stored else { return Self { oldest_at, past: None } };
        let StoredFloor { n, oldest_at, set_by, ids, ids_next, ids_next_at, purged, purged_ids } = stored;
        let past =
            (set_by != 0).then(|| Box::new(Past { seq, n, set_by, ids, ids_next, ids_next_at, purged, purged_ids }));
        Self { oldest_at, past }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.past.as_ref().map_or(0, |_| size_of::<Past>())
    }
}

/// The buckets of the seqs above one and up to another, highest first: the seq below each, and its last.
fn buckets(above: Seq, upto: Seq) -> impl Iterator<Item = (Seq, Seq)> {
    let mut top = upto;
    std::iter::from_fn(move || {
        if top <= above {
            return None;
        }
        let below = Purge::below(log_bucket(top)).max(above);
        Some((below, std::mem::replace(&mut top, below)))
    })
}

// === impl Search ===

impl Search {
    /// The event whose stamp is wanted next; `None` at the end.
    #[must_use]
    pub const fn next(&self) -> Option<Seq> {
        let (low, high) = (self.low.0, self.high.0);
        if high - low <= 1 { None } else { Some(low + (high - low) / 2) }
    }

    /// The event that was wanted.
    pub fn take(&mut self, event: &Event) {
        if event.created_at <= self.cutoff {
            self.low = (event.seq, event.n);
        } else {
            self.high = (event.seq, event.created_at);
        }
    }

    /// What it has come to.
    #[must_use]
    pub const fn found(&self) -> Overdue {
        Overdue { seq: self.low.0, n: self.low.1, oldest_at: self.high.1 }
    }
}

// === impl Conversation ===

impl Conversation {
    /// How long its messages are kept, in milliseconds, where none are kept longer than `everywhere_ms`. `None` for ever.
    #[must_use]
    pub fn kept_ms(&self, everywhere_ms: Option<Millis>) -> Option<Millis> {
        kept_ms(self.settings.retention_secs, everywhere_ms)
    }

    /// A search for what is overdue, if anything is, among the events up to `committed`.
    #[must_use]
    pub fn search(&self, everywhere_ms: Option<Millis>, committed: Seq, now: Millis) -> Option<Search> {
        let cutoff = cutoff(self.kept_ms(everywhere_ms)?, self.floor.oldest_at, now)?;
        // What comes after was stamped no earlier than now.
        (committed > self.floor.seq()).then(|| Search {
            cutoff,
            low: (self.floor.seq(), self.floor.n()),
            high: (committed + 1, self.stamp(now)),
        })
    }

    /// The event that removes what is overdue, if there is a message among it. Its id is of its own making: whoever decides
    /// the same again names it the same.
    #[must_use]
    pub fn purge(&self, overdue: Overdue, now: Millis) -> Option<Arc<Event>> {
        let Overdue { seq: floor, n: floor_n, oldest_at } = overdue;
        if floor <= self.floor.seq() || floor > self.head || floor_n <= self.floor.n() {
            return None;
        }
        let created_at = self.stamp(now);
        let seq = self.head + 1;
        let mut name = [0; 32];
        name[..16].copy_from_slice(self.id.0.as_bytes());
        name[16..24].copy_from_slice(&seq.to_le_bytes());
        name[24..].copy_from_slice(&floor.to_le_bytes());
        let mut random = [0; 10];
        random.copy_from_slice(&xxh3_128(&name).to_le_bytes()[..10]);
        let id = CommandId(Builder::from_unix_timestamp_millis(created_at, &random).into_uuid());
        // No message stands above: the next one will be the oldest.
        let oldest_at = if floor_n == self.n { 0 } else { oldest_at };
        let fact = Fact::HistoryPurged { floor, floor_n, oldest_at };
        let (sender, n) = (UserId::nobody(), self.n);
        Some(Arc::new(Event { seq, n, sender, device: None, id, target: 0, created_at, hash: floor, fact }))
    }

    /// Nothing was to be removed after all: the next look is due when the oldest message above is overdue.
    pub fn nothing_overdue(&mut self, overdue: Overdue) {
        if overdue.n == self.floor.n() && self.floor.oldest_at != 0 {
            self.floor.oldest_at = self.floor.oldest_at.max(overdue.oldest_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Millis = 3_600_000;

    #[test]
    fn the_shorter_time_counts_and_what_is_overdue_goes_together() {
        assert_eq!(kept_ms(0, None), None);
        assert_eq!(kept_ms(60, None), Some(60_000));
        assert_eq!(kept_ms(0, Some(5)), Some(5));
        assert_eq!(kept_ms(60, Some(70_000)), Some(60_000));
        assert_eq!(kept_ms(60, Some(50_000)), Some(50_000));
        assert_eq!(kept_ms(u32::MAX, None), Some(u64::from(u32::MAX) * 1000));
        // A 32nd later, at most a day.
        let at = 1_000_000;
        assert_eq!(cutoff(32 * HOUR, at, at + 33 * HOUR - 1), None);
        assert_eq!(cutoff(32 * HOUR, at, at + 33 * HOUR), Some(at + HOUR));
        assert_eq!(cutoff(3200 * HOUR, at, at + 3224 * HOUR), Some(at + 24 * HOUR));
        assert_eq!(cutoff(HOUR, 0, u64::MAX), None, "there is no message");
        assert_eq!(cutoff(u64::MAX, at, u64::MAX - 1), None);
    }

    #[test]
    fn a_search_finds_the_last_event_of_before() {
        for events in 0..40u64 {
            for overdue in 0..=events {
                for floor in 0..=overdue {
                    let stamp = |seq: Seq| if seq <= overdue { 10 } else { 20 + seq };
                    let mut search = Search { cutoff: 15, low: (floor, floor), high: (events + 1, 999) };
                    let mut looks = 0;
                    while let Some(seq) = search.next() {
                        assert!((floor + 1..=events).contains(&seq));
                        let event = Event {
                            seq,
                            n: seq,
                            sender: UserId::nobody(),
                            device: None,
                            id: CommandId::fresh(),
                            target: 0,
                            created_at: stamp(seq),
                            hash: 0,
                            fact: Fact::ConversationDeleted,
                        };
                        search.take(&event);
                        looks += 1;
                    }
                    assert!(looks <= 6, "{looks} looks at {events} events");
                    let oldest_at = if overdue == events { 999 } else { stamp(overdue + 1) };
                    assert_eq!(search.found(), Overdue { seq: overdue, n: overdue, oldest_at });
                }
            }
        }
    }

    #[test]
    fn what_is_removed_is_removed_bucket_by_bucket_from_above() {
        let mut floor = Floor::default();
        assert!(!floor.is_purging() && floor.parts().is_empty());
        floor.rise(20_000, 19_000, 5, (30_000, 100));
        assert!(floor.is_purging());
        let history = |above, upto| (Part::History, above, upto);
        assert_eq!(floor.parts(), [history(16_384, 20_000), history(8192, 16_384), history(0, 8192)]);
        assert_eq!((floor.seq(), floor.n(), floor.set_by()), (20_000, 19_000, 30_000));
        floor.purged();
        assert!(!floor.is_purging() && floor.parts().is_empty());
        floor.rise(20_500, 19_100, 5, (31_000, 200));
        assert_eq!(floor.parts(), [history(20_000, 20_500)]);
        let stored = floor.to_stored();
        assert_eq!(Floor::from_stored(20_500, Some(stored), 0), floor);
        assert_eq!(Floor::from_stored(0, None, 7), Floor { oldest_at: 7, ..Floor::default() });
    }

    #[test]
    fn ids_outlive_what_they_named() {
        let mut floor = Floor::default();
        floor.rise(100, 90, 5, (200, 1000));
        floor.rise(150, 140, 5, (201, 1000 + PURGED_IDS_KEPT_MS - 1));
        assert_eq!(floor.ids(), 0);
        floor.purged();
        floor.rise(160, 150, 5, (202, 1000 + PURGED_IDS_KEPT_MS));
        assert_eq!(floor.ids(), 100);
        assert_eq!(floor.parts(), [(Part::Ids, 0, 100), (Part::History, 150, 160)]);
        floor.purged();
        // That floor's own time begins when the last one's ended.
        floor.rise(170, 160, 5, (203, 1000 + 2 * PURGED_IDS_KEPT_MS - 1));
        assert_eq!(floor.ids(), 100);
        floor.rise(180, 170, 5, (204, 1000 + 2 * PURGED_IDS_KEPT_MS));
        assert_eq!(floor.ids(), 160);
    }
}
