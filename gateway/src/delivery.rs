//! Events on their way from a node to the connections of this gateway.
//!
//! An event is encoded once, whoever it goes to. Small conversations name their recipients and are delivered in the
//! node's own turn. Large ones name none: they go to whoever listens here, which may be thousands, so they are handed
//! to delivery tasks over queues that keep the order of each conversation, changes of membership included.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use chappe_schema::{
    event::Event,
    id::{ConnectionSlot, ConversationId, Millis, Seq, UserId},
    limit::DELIVERY_QUEUE_MAX,
};
use metrics::Histogram;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    connection::Table,
    gateway::{Gateway, wake},
    listeners::SMALL,
    websocket::{
        encode::Encoded,
        outbox::{Outbox, Wakers},
    },
};

/// The delivery tasks' queues, and the events encoded last.
pub(crate) struct Delivery {
    lanes: [Lane; LANES],
    recent: Box<[Mutex<Option<Recent>>]>,
}

/// Two cores are what a small machine has; a lane is busy only while a large conversation talks.
const LANES: usize = 2;

/// Events remembered in their encoded form. The recipients of a small conversation live on several shards of a node,
/// which deliver the same event within microseconds of each other.
const RECENT: usize = 1024;
/// Larger frames are not worth the memory.
const RECENT_BYTES_MAX: usize = 2 * 1024;

/// One delivery task's work, in order.
#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<Item>>,
    more: Notify,
}

enum Item {
    Events(ConversationId, Arc<[Arc<Event>]>),
    /// Events that came through users, for connections that listen as well: one queue keeps the two ways in order.
    Few(ConversationId, Arc<[Arc<Event>]>, Vec<ConnectionSlot>),
    /// Events that found the queue full: only how far they went.
    Head(ConversationId, Seq),
    Removed(ConversationId, UserId),
}

struct Recent {
    event: Weak<Event>,
    encoded: Arc<Encoded>,
}

/// How many connections are served before the wakers are called and others may run.
const STEP: usize = 256;

impl Delivery {
    pub(crate) fn new() -> Self {
        Self {
            lanes: std::array::from_fn(|_| Lane::default()),
            recent: (0..RECENT).map(|_| Mutex::new(None)).collect(),
        }
    }

    /// The event's frame, made now or a moment ago.
    fn encode(&self, conversation: ConversationId, event: &Arc<Event>) -> Arc<Encoded> {
        let spread = usize::from(conversation.0.as_bytes()[15]) << 2 | usize::from(conversation.0.as_bytes()[14] & 3);
        let place = &self.recent[(spread + event.seq as usize) % RECENT];
        if let Some(recent) = &*place.lock()
            && recent.event.as_ptr() == Arc::as_ptr(event)
        {
            return Arc::clone(&recent.encoded);
        }
        let encoded = Encoded::event(conversation, event);
        if encoded.frame.len() <= RECENT_BYTES_MAX {
            // The weak reference keeps the event's address from being used again, so a pointer is proof enough.
            let recent = Recent { event: Arc::downgrade(event), encoded: Arc::clone(&encoded) };
            let former = place.lock().replace(recent);
            drop(former);
        }
        encoded
    }

    fn lane(&self, conversation: ConversationId) -> &Lane {
        &self.lanes[usize::from(conversation.0.as_bytes()[15]) % LANES]
    }
}

impl Gateway {
    /// Starts the delivery tasks. They end with the gateway.
    pub(crate) fn start_delivery(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        for index in 0..LANES {
            let gateway = Arc::clone(self);
            tasks.spawn(async move { gateway.run_lane(index).await });
        }
    }

    /// Events of a small conversation, for these connections.
    pub(crate) fn deliver(
        &self,
        conversation: ConversationId,
        events: &Arc<[Arc<Event>]>,
        connections: &[ConnectionSlot],
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let (listening, plain) = self.listeners.split(conversation, connections);
        if !listening.is_empty() {
            let lane = self.delivery.lane(conversation);
            lane.queue.lock().push_back(Item::Few(conversation, Arc::clone(events), listening));
            lane.more.notify_one();
        }
        for event in events.iter() {
            let encoded = self.delivery.encode(conversation, event);
            for slot in plain.iter() {
                if let Some(connection) = table.get(*slot) {
                    connection.outbox.lock().event(&encoded, wakers);
                }
            }
            observe(&self.meters.delivery_small, self.clock.now_ms(), event);
        }
    }

    /// Events of a large conversation, for whoever listens here.
    pub(crate) fn broadcast(&self, conversation: ConversationId, events: Arc<[Arc<Event>]>) {
        let lane = self.delivery.lane(conversation);
        let mut queue = lane.queue.lock();
        let item = match events.last() {
            None => return,
            Some(last) if queue.len() >= DELIVERY_QUEUE_MAX => Item::Head(conversation, last.seq),
            Some(_) => Item::Events(conversation, events),
        };
        // At the brim one word per run is enough: the newest head stands for all before it.
        match (queue.back_mut(), &item) {
            (Some(Item::Head(waiting, head)), Item::Head(same, newer)) if waiting == same => *head = *newer,
            _ => queue.push_back(item),
        }
        drop(queue);
        lane.more.notify_one();
    }

    /// A user was removed from a conversation: behind the events before, ahead of those after.
    pub(crate) fn removed(&self, conversation: ConversationId, user: UserId) {
        if self.listeners.any(conversation) {
            let lane = self.delivery.lane(conversation);
            lane.queue.lock().push_back(Item::Removed(conversation, user));
            lane.more.notify_one();
        }
    }

    async fn run_lane(self: Arc<Self>, index: usize) {
        let lane = &self.delivery.lanes[index];
        let mut listeners = Vec::new();
        loop {
            let item = lane.queue.lock().pop_front();
            match item {
                None => {
                    listeners.shrink_to(STEP);
                    lane.more.notified().await;
                }
                Some(Item::Few(conversation, events, slots)) => {
                    self.listeners.list(conversation, &mut listeners);
                    listeners.retain(|(slot, _)| slots.contains(slot));
                    // Who no longer listens hears of it like everybody else.
                    listeners.extend(
                        slots
                            .iter()
                            .filter(|slot| !self.listeners.listens(conversation, **slot))
                            .map(|slot| (*slot, 0)),
                    );
                    let encoded: smallvec::SmallVec<[Arc<Encoded>; 8]> =
                        events.iter().map(|event| self.delivery.encode(conversation, event)).collect();
                    self.hand_out(conversation, &encoded, &listeners).await;
                }
                Some(Item::Removed(conversation, user)) => {
                    self.listeners.remove_user(conversation, &user, &self.connections, &self.link);
                }
                Some(Item::Head(conversation, head)) => {
                    self.listeners.list(conversation, &mut listeners);
                    self.spread(&listeners, |outbox, after, wakers| {
                        if head > after || after == SMALL {
                            outbox.resync(conversation, head, wakers);
                        }
                    })
                    .await;
                    self.listeners.advance(conversation, &listeners, head);
                }
                Some(Item::Events(conversation, events)) => {
                    self.listeners.list(conversation, &mut listeners);
                    if listeners.is_empty() {
                        continue;
                    }
                    let encoded: smallvec::SmallVec<[Arc<Encoded>; 8]> =
                        events.iter().map(|event| self.delivery.encode(conversation, event)).collect();
                    self.hand_out(conversation, &encoded, &listeners).await;
                    let now = self.clock.now_ms();
                    events.iter().for_each(|event| observe(&self.meters.delivery_large, now, event));
                }
            }
        }
    }
}

impl Gateway {
    /// Events for listeners, each of whom has had everything up to their own seq: what is not above it is left out, and
    /// a jump is a word to fetch what lies between.
    async fn hand_out(
        &self,
        conversation: ConversationId,
        events: &[Arc<Encoded>],
        listeners: &[(ConnectionSlot, Seq)],
    ) {
        let Some(last) = events.last().map(|event| event.seq) else { return };
        self.spread(listeners, |outbox, after, wakers| {
            if last <= after && after != SMALL {
                return;
            }
            let next = events.iter().find(|event| event.seq > after).map(|event| event.seq);
            // 0: not a listener any more, for whom the user's own order holds.
            if after == SMALL || (after != 0 && next != Some(after + 1)) {
                return outbox.resync(conversation, last, wakers);
            }
            for event in events.iter().filter(|event| event.seq > after) {
                outbox.event(event, wakers);
            }
        })
        .await;
        self.listeners.advance(conversation, listeners, last);
    }

    /// Pushes to many connections, a step at a time, so that writers begin and others run meanwhile.
    async fn spread(&self, listeners: &[(ConnectionSlot, Seq)], mut push: impl FnMut(&mut Outbox, Seq, &mut Wakers)) {
        for step in listeners.chunks(STEP) {
            self.push_each(step, &mut push);
            tokio::task::coop::consume_budget().await;
        }
    }

    fn push_each(&self, listeners: &[(ConnectionSlot, Seq)], push: &mut impl FnMut(&mut Outbox, Seq, &mut Wakers)) {
        let mut wakers = Wakers::new();
        let table = self.connections.table();
        for (slot, after) in listeners {
            if let Some(connection) = table.get(*slot) {
                push(&mut connection.outbox.lock(), *after, &mut wakers);
            }
        }
        drop(table);
        wake(wakers);
    }
}

fn observe(latency: &Histogram, now: Millis, event: &Event) {
    latency.record(now.saturating_sub(event.created_at) as f64 / 1000.0);
}
