//! The line in which an entity's events wait for the log, and everything decided on them waits for the commit.
//!
//! It lives outside the entity, so that a panic in the entity does not lose track of rows that were already sent.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    event::Event,
    id::{EntityId, Epoch, Seq},
    limit::{APPEND_BYTES_MAX, APPEND_EVENTS_MAX, WINDOW},
};

use crate::{
    conversation::Audience,
    planted::{Bug, is},
    store::Append,
};

/// An event on its way to the log.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) event: Arc<Event>,
    /// Who hears of it once it is committed; nobody for users' logs and for adopted events.
    pub(super) audience: Option<Arc<Audience>>,
    /// Whether other entities must hear of it.
    pub(super) announce: bool,
    /// The epoch under which it was written first: another one than the owner's own if recovery writes it again.
    pub(super) origin: Epoch,
}

/// One entity's line. `R` is what waits for a commit.
#[derive(Debug)]
pub(super) struct Line<R> {
    committed: Seq,
    /// The origin of the last event that was sent, or found.
    origin: Epoch,
    open: VecDeque<Pending>,
    /// The append on its way. One at a time: a store that refuses one append must not have a later one in hand.
    flight: Option<Flight>,
    waiting: VecDeque<(Seq, R)>,
    /// Whether the shard has it on its list of entities to flush.
    pub(super) listed: bool,
}

#[derive(Debug)]
struct Flight {
    /// `None` when recovery found the events durable: nothing is sent.
    append: Option<Append>,
    pending: Vec<Pending>,
}

impl<R> Line<R> {
    pub(super) const fn new(committed: Seq) -> Self {
        Self { committed, origin: 0, open: VecDeque::new(), flight: None, waiting: VecDeque::new(), listed: false }
    }

    pub(super) const fn committed(&self) -> Seq {
        self.committed
    }

    /// The log was read again: this is what is committed, and the origin of the last event of it. Only for a line without
    /// rows.
    pub(super) fn restart(&mut self, committed: Seq, origin: Epoch) {
        debug_assert!(self.has_no_rows(), "a line was restarted while rows were on their way");
        (self.committed, self.origin) = (committed, origin);
    }

    /// These events were found in the log under the own epoch. They are the present flight, though nothing is sent: a
    /// clean fence read that starts from now on commits them, and what follows waits behind them. Only for a line without
    /// rows.
    pub(super) fn stand(&mut self, pending: Vec<Pending>) {
        debug_assert!(self.has_no_rows(), "events were found standing while rows were on their way");
        self.origin = pending.last().map_or(self.origin, |last| last.origin);
        self.flight = Some(Flight { append: None, pending });
    }

    /// Whether nothing is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.open.is_empty() && self.flight.is_none() && self.waiting.is_empty()
    }

    /// Whether no row is on its way or about to be.
    pub(super) fn has_no_rows(&self) -> bool {
        self.open.is_empty() && self.flight.is_none()
    }

    /// Whether event `seq` may be issued now.
    pub(super) const fn admits(&self, seq: Seq) -> bool {
        seq <= self.committed + WINDOW
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.open.push_back(pending);
    }

    /// Holds `release` until `after` is committed; gives it back if it is.
    pub(super) fn wait(&mut self, after: Seq, release: R) -> Option<R> {
        if after <= self.committed {
            return Some(release);
        }
        // Decisions are made on a head that only grows, but a target's seq may lie below it.
        let place = self.waiting.partition_point(|(seq, _)| *seq <= after);
        self.waiting.insert(place, (after, release));
        None
    }

    /// Whether there is something to send and nothing on its way.
    pub(super) fn can_fly(&self) -> bool {
        self.flight.is_none() && !self.open.is_empty()
    }

    /// The next append: as much as one may hold.
    pub(super) fn fly(&mut self, entity: EntityId, epoch: Epoch) -> Option<Append> {
        if !self.can_fly() {
            return None;
        }
        let origin = self.open.front().map_or(epoch, |first| first.origin);
        let mut bytes = 0;
        let mut count = 0;
        for pending in &self.open {
            bytes += pending.event.body_len();
            if count == APPEND_EVENTS_MAX || (count > 0 && bytes > APPEND_BYTES_MAX) || pending.origin != origin {
                break;
            }
            count += 1;
        }
        let pending: Vec<Pending> = self.open.drain(..count).collect();
        let append = Append {
            entity,
            epoch,
            cw: self.committed,
            origin,
            after: std::mem::replace(&mut self.origin, origin),
            events: pending.iter().map(|pending| Arc::clone(&pending.event)).collect(),
            announce: pending.iter().any(|pending| pending.announce),
        };
        self.flight = Some(Flight { append: Some(append.clone()), pending });
        Some(append)
    }

    /// The append on its way, to be sent again identically.
    pub(super) fn again(&mut self) -> Option<Append> {
        if is(Bug::RetryDiffers)
            && let Some(flight) = &mut self.flight
            && let Some(append) = &mut flight.append
            && let Some(more) = self.open.pop_front()
        {
            let mut events = append.events.to_vec();
            events[0] = Arc::new(Event { seq: events[0].seq, ..(*more.event).clone() });
            append.events = events.into();
        }
        self.flight.as_ref().and_then(|flight| flight.append.clone())
    }

    /// The append on its way is durable and confirmed: its events are committed.
    pub(super) fn commit(&mut self) -> Vec<Pending> {
        let Some(flight) = self.flight.take() else { return Vec::new() };
        if let Some(last) = flight.pending.last() {
            debug_assert!(last.event.seq > self.committed, "a commit went back");
            self.committed = last.event.seq;
        }
        flight.pending
    }

    /// The next of what waited for the commit.
    pub(super) fn released(&mut self) -> Option<R> {
        if self.waiting.front().is_some_and(|(after, _)| *after <= self.committed) {
            return self.waiting.pop_front().map(|(_, release)| release);
        }
        None
    }

    /// The events on their way, sent or not.
    pub(super) fn unwritten(&self) -> impl Iterator<Item = &Arc<Event>> {
        let flying = self.flight.iter().flat_map(|flight| &flight.pending);
        flying.chain(&self.open).map(|pending| &pending.event)
    }

    /// Nothing of what is on its way was or will be written: gives back what waited for it.
    pub(super) fn give_up(&mut self) -> Vec<R> {
        self.open.clear();
        self.flight = None;
        self.waiting.drain(..).map(|(_, release)| release).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_schema::{
        event::Fact,
        id::{CommandId, UserId},
    };

    fn pending(seq: Seq, origin: Epoch) -> Pending {
        let event = Event {
            seq,
            n: 0,
            sender: UserId::new("ada").unwrap(),
            device: None,
            id: CommandId::fresh(),
            target: 0,
            created_at: 0,
            hash: 0,
            fact: Fact::ConversationDeleted,
        };
        Pending { event: Arc::new(event), audience: None, announce: seq == 2, origin }
    }

    fn entity() -> EntityId {
        UserId::new("ada").unwrap().into()
    }

    #[test]
    fn what_is_decided_waits_for_its_commit() {
        let mut line: Line<&str> = Line::new(0);
        assert_eq!(line.wait(0, "at once"), Some("at once"));
        line.push(pending(1, 7));
        assert_eq!(line.wait(1, "first"), None);
        let append = line.fly(entity(), 7).unwrap();
        assert_eq!((append.events.len(), append.epoch, append.cw, append.announce), (1, 7, 0, false));
        line.push(pending(2, 7));
        line.wait(2, "second");
        line.wait(1, "also first");
        assert!(line.fly(entity(), 7).is_none(), "a second append must wait for the first");
        assert_eq!(line.released(), None);
        assert_eq!(line.commit().len(), 1);
        assert_eq!((line.released(), line.released(), line.released()), (Some("first"), Some("also first"), None));
        let append = line.fly(entity(), 7).unwrap();
        assert_eq!((append.cw, append.announce, line.unwritten().count()), (1, true, 1));
        assert_eq!(line.again().unwrap().events, append.events);
        line.commit();
        assert_eq!(line.released(), Some("second"));
        assert!(line.is_quiet());
    }

    #[test]
    fn an_append_is_bounded_and_has_one_origin() {
        let mut line: Line<()> = Line::new(0);
        line.push(pending(1, 5));
        for seq in 2..=100 {
            line.push(pending(seq, 7));
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| {
            let append = line.fly(entity(), 7)?;
            line.commit();
            Some(append.events.len())
        })
        .collect();
        assert_eq!(sizes, [1, 64, 35]);
        assert!(line.admits(100 + WINDOW) && !line.admits(101 + WINDOW));
    }

    #[test]
    fn what_stands_already_is_not_sent_and_comes_first() {
        let mut line: Line<&str> = Line::new(0);
        line.restart(3, 1);
        line.stand(vec![pending(4, 2), pending(5, 3)]);
        line.push(pending(6, 4));
        line.push(pending(7, 7));
        assert_eq!(line.wait(5, "standing"), None);
        assert!(!line.can_fly() && line.again().is_none() && !line.has_no_rows());
        assert_eq!(line.commit().len(), 2);
        assert_eq!((line.committed(), line.released()), (5, Some("standing")));
        let append = line.fly(entity(), 7).unwrap();
        // Each says what it was written above.
        assert_eq!((append.cw, append.origin, append.after, append.events[0].seq), (5, 4, 3, 6));
        line.commit();
        let append = line.fly(entity(), 7).unwrap();
        assert_eq!((append.cw, append.origin, append.after, append.events[0].seq), (6, 7, 4, 7));
    }

    #[test]
    fn giving_up_gives_back_what_waited() {
        let mut line: Line<u32> = Line::new(3);
        line.push(pending(4, 7));
        line.wait(4, 40);
        let _ = line.fly(entity(), 1);
        line.push(pending(5, 7));
        line.wait(5, 50);
        assert_eq!(line.give_up(), [40, 50]);
        assert!(line.is_quiet());
        assert_eq!(line.committed(), 3);
    }
}
