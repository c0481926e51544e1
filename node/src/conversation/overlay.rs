//! What became of messages: edits, deletions and reactions, folded into one overlay for each message.
//!
//! The log is the truth, and an overlay the log's events about one message folded together. What this keeps in memory is
//! what the store does not have yet: the events since the rows that are durable, and what they make of the message. At
//! most one batch of rows is on its way to the store at a time; it reflects committed events only, so a message to which
//! somebody reacts without pause is written again and again, at most once a batch, and never has to wait for a pause.
//!
//! After a recovery only the store knows what the overlays were before the log's tail: until it was asked the events are
//! kept as they are, and folded onto whatever a page of the store shows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use chappe_schema::{
    event::{Event, Fact},
    id::{EntityId, Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredMentions, StoredOverlay, StoredReaction, StoredReactionCount},
};

use crate::store::Projection;

/// Messages whose overlay in the store is not what it will be.
#[derive(Debug, Default)]
pub struct Overlays {
    open: BTreeMap<Seq, Open>,
    /// Rows that reflect the events up to here are on their way to the store.
    flight: Option<Seq>,
    /// Rows that reflect the events up to here are durable.
    durable: Seq,
    /// Whether the store is being asked for overlays as they were before the tail.
    asked: bool,
}

/// One message.
#[derive(Debug)]
struct Open {
    /// The overlay as of the event `as_of`; later ones of `events` are to be folded into it. `None` while only the
    /// store knows on what.
    whole: Option<StoredOverlay>,
    /// The events about it that are not durable, in order.
    events: VecDeque<Arc<Event>>,
}

/// Rows for the store: what committed events up to `upto` made of messages, and of reactions.
#[derive(Debug, PartialEq)]
pub struct Flight {
    /// Everything at or below is reflected.
    pub upto: Seq,
    /// By message.
    pub overlays: Vec<(Seq, StoredOverlay)>,
    /// By message, key and user.
    pub reactions: Vec<(Seq, ReactionKey, UserId, StoredReaction)>,
}

impl Flight {
    /// The rows.
    pub fn rows(self, entity: EntityId) -> impl Iterator<Item = Projection> {
        let whose = entity.clone();
        let overlays = self.overlays.into_iter();
        let overlays =
            overlays.map(move |(target, overlay)| Projection::Overlay { entity: whose.clone(), target, overlay });
        let reactions = self.reactions.into_iter().map(move |(target, key, user, reaction)| Projection::Reaction {
            entity: entity.clone(),
            target,
            key,
            user,
            reaction,
        });
        overlays.chain(reactions)
    }
}

/// What memory knows of overlays at some head, for a read that merges it with a page of the store.
#[derive(Debug)]
pub struct Fresh {
    reader: UserId,
    /// By message: the overlay, with the reader's own events; or, while only the store knows the overlay, all events.
    known: Vec<(Seq, Option<StoredOverlay>, Vec<Arc<Event>>)>,
}

/// Takes the next event about a message. What an overlay reflects already changes nothing. Total, like the state.
pub(super) fn fold(overlay: &mut StoredOverlay, event: &Event) {
    if event.seq <= overlay.as_of {
        return;
    }
    overlay.as_of = event.seq;
    match &event.fact {
        // What was deleted stays so, whatever a log may hold.
        _ if overlay.deleted != 0 => {}
        Fact::MessageUpdated { body, mentions, .. } => {
            overlay.body = Some(body.bytes().clone());
            overlay.mentions = StoredMentions::of(mentions);
            overlay.edit = event.seq;
            overlay.edited_at = event.created_at;
        }
        Fact::MessageDeleted { previous, .. } => {
            *overlay =
                StoredOverlay { as_of: event.seq, edit: *previous, deleted: event.seq, ..StoredOverlay::default() };
        }
        Fact::ReactionAdded { key } => {
            match overlay.reactions.iter_mut().find(|one| one.key == key.as_str()) {
                Some(one) => one.count += 1,
                None => overlay.reactions.push(StoredReactionCount { key: key.as_str().to_owned(), count: 1 }),
            };
        }
        Fact::ReactionRemoved { key } => {
            if let Some(index) = overlay.reactions.iter().position(|one| one.key == key.as_str()) {
                let one = &mut overlay.reactions[index];
                one.count = one.count.saturating_sub(1);
                if one.count == 0 {
                    overlay.reactions.remove(index);
                }
            }
        }
        _ => {}
    }
}

impl Overlays {
    /// Takes the next event about a message; `before` is what became of the message before it, if that is known.
    pub(super) fn take(&mut self, event: &Arc<Event>, before: Option<&StoredOverlay>) {
        let open =
            self.open.entry(event.target).or_insert_with(|| Open { whole: before.cloned(), events: VecDeque::new() });
        open.events.push_back(Arc::clone(event));
    }

    /// The messages for which the store must be asked, unless that is under way.
    pub fn ask(&mut self) -> Option<Vec<Seq>> {
        let unknown = |(target, open): (&Seq, &Open)| open.whole.is_none().then_some(*target);
        if self.asked {
            return None;
        }
        let targets: Vec<Seq> = self.open.iter().filter_map(unknown).collect();
        self.asked = !targets.is_empty();
        self.asked.then_some(targets)
    }

    /// The store's answer for `targets`: the overlays that there are. `None` if it could not say: it is asked again.
    pub fn answer(&mut self, targets: &[Seq], found: Option<Vec<(Seq, StoredOverlay)>>) {
        self.asked = false;
        let Some(found) = found else { return };
        let mut found: BTreeMap<Seq, StoredOverlay> = found.into_iter().collect();
        for target in targets {
            if let Some(open) = self.open.get_mut(target)
                && open.whole.is_none()
            {
                open.whole = Some(found.remove(target).unwrap_or_default());
            }
        }
    }

    /// The next rows for the store, if there are any to be written and none on their way. They are on their way now.
    pub fn fly(&mut self, committed: Seq) -> Option<Flight> {
        let is_due = |event: &Arc<Event>| event.seq <= committed;
        if self.flight.is_some()
            || self.open.values().any(|open| open.whole.is_none() && open.events.front().is_some_and(is_due))
        {
            return None;
        }
        let mut flight = Flight { upto: committed, overlays: Vec::new(), reactions: Vec::new() };
        for (target, open) in &mut self.open {
            let Some(whole) = &mut open.whole else { continue };
            let mut reactions: BTreeMap<(&ReactionKey, &UserId), StoredReaction> = BTreeMap::new();
            let mut is_news = false;
            for event in open.events.iter().take_while(|event| event.seq <= committed) {
                fold(whole, event);
                if event.seq > self.durable {
                    is_news = true;
                    if let Some((key, row)) = StoredReaction::of(event) {
                        reactions.insert((key, &event.sender), row);
                    }
                }
            }
            if is_news {
                flight.overlays.push((*target, whole.clone()));
                let rows = reactions.into_iter();
                flight.reactions.extend(rows.map(|((key, user), row)| (*target, key.clone(), user.clone(), row)));
            }
        }
        if flight.overlays.is_empty() {
            return None;
        }
        self.flight = Some(committed);
        Some(flight)
    }

    /// Rows up to `upto` are durable.
    pub fn landed(&mut self, upto: Seq) {
        if self.flight == Some(upto) {
            self.flight = None;
            self.durable = self.durable.max(upto);
        }
    }

    /// Drops what is durable. Not while a read is under way that may have missed it.
    pub fn forget(&mut self) {
        let durable = self.durable;
        self.open.retain(|_, open| {
            while open.events.front().is_some_and(|event| event.seq <= durable) {
                open.events.pop_front();
            }
            !open.events.is_empty()
        });
    }

    /// The first event of which the rows are not durable.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        let first = |open: &Open| open.events.iter().map(|event| event.seq).find(|seq| *seq > self.durable);
        self.open.values().filter_map(first).min()
    }

    /// Whether memory knows nothing that the store does not.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The events about a message that may not be durable, in order.
    pub(super) fn events(&self, target: Seq) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.open.get(&target).into_iter().flat_map(|open| &open.events)
    }

    /// What became of a message as of the head, from what the store has.
    pub(super) fn latest(&self, target: Seq, stored: StoredOverlay) -> StoredOverlay {
        match self.open.get(&target) {
            None => stored,
            Some(open) => {
                let mut latest = newer(open.whole.clone(), stored);
                open.events.iter().for_each(|event| fold(&mut latest, event));
                latest
            }
        }
    }

    /// What a read by `reader` must know beside a page of the store.
    pub(super) fn fresh(&self, reader: &UserId) -> Fresh {
        let fresh = |(target, open): (&Seq, &Open)| match &open.whole {
            None => (*target, None, open.events.iter().cloned().collect()),
            Some(whole) => {
                let mut whole = whole.clone();
                open.events.iter().for_each(|event| fold(&mut whole, event));
                let own = open.events.iter().filter(|event| event.sender == *reader);
                (*target, Some(whole), own.cloned().collect())
            }
        };
        Fresh { reader: reader.clone(), known: self.open.iter().map(fresh).collect() }
    }

    /// Heap bytes, roughly.
    pub(super) fn heap_bytes(&self) -> usize {
        let one = |open: &Open| {
            let keys = open.whole.as_ref().map_or(0, |whole| whole.reactions.len());
            let body = open.whole.as_ref().and_then(|whole| whole.body.as_ref()).map_or(0, bytes::Bytes::len);
            size_of::<(Seq, Open)>() + body + keys * 48 + open.events.len() * 176
        };
        self.open.values().map(one).sum()
    }
}

fn newer(known: Option<StoredOverlay>, stored: StoredOverlay) -> StoredOverlay {
    known.filter(|known| known.as_of > stored.as_of).unwrap_or(stored)
}

impl Fresh {
    /// Nothing: the store has everything.
    pub(super) const fn nothing(reader: UserId) -> Self {
        Self { reader, known: Vec::new() }
    }

    /// What became of a message, from what the store's page says of it.
    pub(super) fn latest(&self, target: Seq, stored: Option<&StoredOverlay>) -> StoredOverlay {
        let stored = stored.cloned().unwrap_or_default();
        match self.of(target) {
            None => stored,
            Some((known, events)) => {
                let mut latest = newer(known.clone(), stored);
                events.iter().for_each(|event| fold(&mut latest, event));
                latest
            }
        }
    }

    /// The messages of which something is known.
    pub(super) fn targets(&self) -> impl Iterator<Item = Seq> {
        self.known.iter().map(|(target, ..)| *target)
    }

    /// Whether the reader reacts to a message with a key, from what the store's page says of it.
    pub(super) fn is_own(&self, target: Seq, key: &str, stored: Option<StoredReaction>) -> bool {
        let events = self.of(target).into_iter().flat_map(|(_, events)| events);
        let rows = events.filter(|event| event.sender == self.reader).filter_map(|event| {
            let (with, row) = StoredReaction::of(event)?;
            (with.as_str() == key).then_some(row)
        });
        rows.chain(stored).max_by_key(|row| row.seq).is_some_and(|row| !row.removed)
    }

    /// Who reads.
    pub(super) const fn reader(&self) -> &UserId {
        &self.reader
    }

    fn of(&self, target: Seq) -> Option<(&Option<StoredOverlay>, &Vec<Arc<Event>>)> {
        let index = self.known.binary_search_by_key(&target, |(target, ..)| *target).ok()?;
        let (_, whole, events) = &self.known[index];
        Some((whole, events))
    }
}
