//! Events on their way from a node to the connections of this gateway.
//!
//! An event is encoded once, whoever it goes to. Small conversations name their recipients and are delivered in the
//! node's own turn. Large ones name none: they go to whoever listens here, which may be thousands, so they are handed
//! to delivery tasks over queues that keep the order of each conversation, changes of membership included.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Weak},
};

use chappe_schema::{
    event::{Event, Fact},
    id::{ConnectionSlot, ConversationId, Millis, Seq, UserId},
    limit::DELIVERY_QUEUE_MAX,
};
use metrics::Histogram;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    connection::Table,
    gateway::{Gateway, wake},
    listeners::{Listener, SMALL},
    meters::{Cause, Task},
    supervise::supervised,
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
/// Larger ones are not worth the memory.
const RECENT_BYTES_MAX: usize = 2 * 1024;

/// About what an event's frame takes: its body, if it has one, is most of it.
fn size(event: &Event) -> usize {
    match &event.fact {
        Fact::MessageNew { body, .. } | Fact::MessageUpdated { body, .. } => body.bytes().len(),
        Fact::ConversationCreated { members, settings, .. } => members.len() * 64 + settings.data.len(),
        Fact::ConversationUpdated { settings } => settings.data.len(),
        _ => 0,
    }
}

/// One delivery task's work, in order.
#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<Item>>,
    /// What the task is at: if it panics, what it began is not forgotten.
    at: Mutex<Option<Item>>,
    more: Notify,
}

#[derive(Clone)]
enum Item {
    /// Events, and whether newcomers may not read what they make of messages before them.
    Events(ConversationId, Arc<[Arc<Event>]>, bool),
    /// Events that came through users, for connections that listen as well: one queue keeps the two ways in order.
    Few(ConversationId, Arc<[Arc<Event>]>, Vec<ConnectionSlot>),
    /// Events that found the queue full: only how far they went.
    Head(ConversationId, Seq, Cause),
    /// The same, of events that came through users, or did not come.
    FewHead(ConversationId, Seq, Vec<ConnectionSlot>, Cause),
    Removed(ConversationId, UserId),
    /// A member is writing, or no longer is.
    Typing(ConversationId, UserId, bool),
}

type Frames = SmallVec<[Frame; 8]>;

/// An event's frame, and the one for whoever joined after the message (at that seq) whose new words it tells.
struct Frame {
    encoded: Arc<Encoded>,
    veiled: Option<(Seq, Arc<Encoded>)>,
}

impl Frame {
    fn for_joined_at(&self, joined: Seq) -> &Arc<Encoded> {
        match &self.veiled {
            Some((target, veiled)) if *target < joined => veiled,
            _ => &self.encoded,
        }
    }
}

struct Recent {
    event: Weak<Event>,
    encoded: Arc<Encoded>,
}

/// Items of a lane behind which nobody is told any more who is writing: they would learn of it too late.
const TYPING_BEHIND_MAX: usize = 256;

/// How many connections are served before the wakers are called and others may run.
const STEP: usize = 256;

impl Lane {
    /// What to do next: first of all what a panic broke off.
    fn next(&self) -> Option<Item> {
        let mut at = self.at.lock();
        *at = match at.take() {
            Some(item) => Some(item.broken_off()),
            None => self.queue.lock().pop_front(),
        };
        at.clone()
    }

    fn done(&self) {
        *self.at.lock() = None;
    }
}

impl Item {
    /// What is still owed. Nobody knows how far events came, so that everybody is told to fetch them; a removal is done
    /// again, since whoever was removed must hear nothing more.
    fn broken_off(self) -> Self {
        match self {
            Self::Events(conversation, events, _) => Self::Head(conversation, last(&events), Cause::Panic),
            Self::Few(conversation, events, slots) => Self::FewHead(conversation, last(&events), slots, Cause::Panic),
            other => other,
        }
    }
}

fn last(events: &[Arc<Event>]) -> Seq {
    events.last().map_or(0, |event| event.seq)
}

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
        if size(event) <= RECENT_BYTES_MAX {
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
            let lane = move || Arc::clone(&gateway).run_lane(index);
            tasks.spawn(supervised(Arc::clone(self), Task::Delivery, lane));
        }
    }

    /// The delivery tasks, for whoever drives them by hand.
    #[cfg(feature = "simulation")]
    pub(crate) fn delivery_lanes(self: &Arc<Self>) -> Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> {
        (0..LANES).map(|index| Box::pin(Arc::clone(self).run_lane(index)) as _).collect()
    }

    /// Those of these connections that do not listen to the conversation as well. To the others `later` goes in their lane,
    /// which keeps the two ways in order.
    fn leave_to_lane<'a>(
        &self,
        conversation: ConversationId,
        connections: &'a [ConnectionSlot],
        later: impl FnOnce(Vec<ConnectionSlot>) -> Item,
    ) -> Cow<'a, [ConnectionSlot]> {
        let (listening, plain) = self.listeners.split(conversation, connections);
        if !listening.is_empty() {
            let lane = self.delivery.lane(conversation);
            lane.queue.lock().push_back(later(listening));
            lane.more.notify_one();
        }
        plain
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
        let later = |listening| Item::Few(conversation, Arc::clone(events), listening);
        let plain = self.leave_to_lane(conversation, connections, later);
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

    /// Events of a small conversation that will not come: these connections are told to fetch them.
    pub(crate) fn behind(
        &self,
        conversation: ConversationId,
        head: Seq,
        connections: &[ConnectionSlot],
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let later = |listening| Item::FewHead(conversation, head, listening, Cause::Moved);
        let plain = self.leave_to_lane(conversation, connections, later);
        for connection in plain.iter().filter_map(|slot| table.get(*slot)) {
            connection.outbox.lock().behind(conversation, head, wakers);
        }
    }

    /// Events of a large conversation, for whoever listens here.
    pub(crate) fn broadcast(&self, conversation: ConversationId, since_join: bool, events: Arc<[Arc<Event>]>) {
        let lane = self.delivery.lane(conversation);
        let mut queue = lane.queue.lock();
        let item = match events.last() {
            None => return,
            Some(last) if queue.len() >= DELIVERY_QUEUE_MAX => Item::Head(conversation, last.seq, Cause::Queue),
            Some(_) => Item::Events(conversation, events, since_join),
        };
        // At the brim one word per run is enough: the newest head stands for all before it.
        match (queue.back_mut(), &item) {
            (Some(Item::Head(waiting, head, _)), Item::Head(same, newer, _)) if waiting == same => *head = *newer,
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

    /// A member is writing, or no longer is: behind whatever was said before, so that nobody who was removed hears of it. While
    /// much else waits it is left out.
    pub(crate) fn typing(&self, conversation: ConversationId, user: UserId, is_typing: bool) {
        if self.listeners.any(conversation) {
            let lane = self.delivery.lane(conversation);
            let mut queue = lane.queue.lock();
            if queue.len() < TYPING_BEHIND_MAX {
                queue.push_back(Item::Typing(conversation, user, is_typing));
                drop(queue);
                lane.more.notify_one();
            }
        }
    }

    async fn run_lane(self: Arc<Self>, index: usize) {
        let lane = &self.delivery.lanes[index];
        let mut listeners = Vec::new();
        loop {
            match lane.next() {
                None => {
                    listeners.shrink_to(STEP);
                    lane.more.notified().await;
                }
                Some(item) => {
                    self.hand_on(item, &mut listeners).await;
                    lane.done();
                }
            }
        }
    }

    async fn hand_on(&self, item: Item, listeners: &mut Vec<Listener>) {
        match item {
            Item::Few(conversation, events, slots) => {
                self.list_few(conversation, &slots, listeners);
                self.hand_out(conversation, &self.encoded(conversation, &events, false), listeners).await;
            }
            Item::FewHead(conversation, head, slots, cause) => {
                self.list_few(conversation, &slots, listeners);
                self.say_head(conversation, head, cause, listeners).await;
            }
            Item::Removed(conversation, user) => {
                self.listeners.remove_user(conversation, &user, &self.connections, &*self.link);
            }
            Item::Typing(conversation, user, is_typing) => {
                self.listeners.list(conversation, listeners);
                for step in listeners.chunks(STEP) {
                    let mut wakers = Wakers::new();
                    let slots: Vec<ConnectionSlot> = step.iter().map(|listener| listener.slot).collect();
                    let table = self.connections.table();
                    self.show_typing(conversation, &user, is_typing, &slots, &table, &mut wakers);
                    drop(table);
                    wake(wakers);
                }
            }
            Item::Head(conversation, head, cause) => {
                self.listeners.list(conversation, listeners);
                self.say_head(conversation, head, cause, listeners).await;
            }
            Item::Events(conversation, events, since_join) => {
                self.listeners.list(conversation, listeners);
                if listeners.is_empty() {
                    return;
                }
                self.hand_out(conversation, &self.encoded(conversation, &events, since_join), listeners).await;
                let now = self.clock.now_ms();
                events.iter().for_each(|event| observe(&self.meters.delivery_large, now, event));
            }
        }
    }

    fn encoded(&self, conversation: ConversationId, events: &[Arc<Event>], since_join: bool) -> Frames {
        #[cfg(test)]
        tests::maybe_panic(conversation);
        let frame = |event: &Arc<Event>| {
            let is_edit = matches!(event.fact, Fact::MessageUpdated { .. });
            let veiled = (since_join && is_edit).then(|| Encoded::event(conversation, &Arc::new(event.without_body())));
            Frame {
                encoded: self.delivery.encode(conversation, event),
                veiled: veiled.map(|frame| (event.target, frame)),
            }
        };
        events.iter().map(frame).collect()
    }

    /// Those of `slots` who listen, with how far they are; who no longer listens hears of it like everybody else.
    fn list_few(&self, conversation: ConversationId, slots: &[ConnectionSlot], into: &mut Vec<Listener>) {
        self.listeners.list(conversation, into);
        into.retain(|listener| slots.contains(&listener.slot));
        let others = slots.iter().filter(|slot| !self.listeners.listens(conversation, **slot));
        into.extend(others.map(|slot| Listener { slot: *slot, after: 0, joined: 0 }));
    }

    /// Tells listeners to fetch everything up to `head` that they have not had.
    async fn say_head(&self, conversation: ConversationId, head: Seq, cause: Cause, listeners: &[Listener]) {
        self.spread(listeners, |outbox, Listener { after, .. }, wakers| {
            if head > after || after == SMALL {
                outbox.resync(conversation, head, cause, wakers);
            }
        })
        .await;
        self.listeners.advance(conversation, listeners, head);
    }
}

impl Gateway {
    /// Events for listeners, each of whom has had everything up to their own seq: what is not above it is left out, and
    /// a jump is a word to fetch what lies between.
    async fn hand_out(&self, conversation: ConversationId, events: &[Frame], listeners: &[Listener]) {
        let Some(last) = events.last().map(|event| event.encoded.seq) else { return };
        self.spread(listeners, |outbox, Listener { after, joined, .. }, wakers| {
            if last <= after && after != SMALL {
                return;
            }
            let next = events.iter().map(|event| event.encoded.seq).find(|seq| *seq > after);
            if after == SMALL {
                return outbox.resync(conversation, last, Cause::Grew, wakers);
            }
            // 0: not a listener any more, for whom the user's own order holds.
            if after != 0 && next != Some(after + 1) {
                return outbox.resync(conversation, last, Cause::Gap, wakers);
            }
            for event in events.iter().filter(|event| event.encoded.seq > after) {
                outbox.event(event.for_joined_at(joined), wakers);
            }
        })
        .await;
        self.listeners.advance(conversation, listeners, last);
    }

    /// Pushes to many connections, a step at a time, so that writers begin and others run meanwhile.
    async fn spread(&self, listeners: &[Listener], mut push: impl FnMut(&mut Outbox, Listener, &mut Wakers)) {
        for step in listeners.chunks(STEP) {
            self.push_each(step, &mut push);
            tokio::task::coop::consume_budget().await;
        }
    }

    fn push_each(&self, listeners: &[Listener], push: &mut impl FnMut(&mut Outbox, Listener, &mut Wakers)) {
        let mut wakers = Wakers::new();
        let table = self.connections.table();
        for listener in listeners {
            if let Some(connection) = table.get(listener.slot) {
                push(&mut connection.outbox.lock(), *listener, &mut wakers);
            }
        }
        drop(table);
        wake(wakers);
    }
}

fn observe(latency: &Histogram, now: Millis, event: &Event) {
    latency.record(now.saturating_sub(event.created_at) as f64 / 1000.0);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    static PLANTED: Mutex<Vec<(ConversationId, u32)>> = Mutex::new(Vec::new());

    /// The next so many attempts to hand out events of a conversation panic.
    pub(crate) fn plant(conversation: ConversationId, panics: u32) {
        PLANTED.lock().push((conversation, panics));
    }

    pub(super) fn maybe_panic(conversation: ConversationId) {
        let mut planted = PLANTED.lock();
        if let Some((_, left)) = planted.iter_mut().find(|(planted, left)| *planted == conversation && *left > 0) {
            *left -= 1;
            drop(planted);
            panic!("planted in a delivery lane, on purpose");
        }
    }

    #[test]
    fn what_broke_off_is_owed_and_a_removal_is_done_again() {
        let conversation = ConversationId(uuid::Uuid::nil());
        let removed = Item::Removed(conversation, UserId::new("bob").unwrap());
        assert!(matches!(removed.broken_off(), Item::Removed(..)));
        let few = Item::Few(conversation, Vec::new().into(), vec![ConnectionSlot(7)]);
        assert!(matches!(few.broken_off(), Item::FewHead(_, 0, slots, _) if slots == [ConnectionSlot(7)]));
        assert!(matches!(Item::Events(conversation, Vec::new().into(), false).broken_off(), Item::Head(..)));
    }
}
