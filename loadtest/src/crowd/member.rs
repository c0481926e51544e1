//! One member of a crowd: does its chores (groups to create), then sends as its pace says, and counts what it hears.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{RECEIPTS_TAG, SHOWN_TAG, score::Score};
use crate::client::{Ack, Down, Event, Failure, Handle, Handler, Progress, Refusal, Sent, Session, line};

/// Chores under way at the same time, below what the server allows per connection.
const CHORES_IN_FLIGHT_MAX: usize = 32;
/// Who is only ever refused stops asking.
const FAILURES_IN_ROW_MAX: u32 = 200;
/// One in so many changes of a flapping member is a broken connection.
const FLAPS_PER_BREAK: u64 = 10;
/// The tag of what is said of presence and typing: nobody waits for the answer.
const SOFT_TAG: u64 = u64::MAX - 1;
/// Conversations of which one word on receipts tells.
const RECEIPTS_BATCH_MAX: usize = 200;
/// Digits of the time that stands at the beginning of each body's text.
const STAMP_DIGITS: usize = 16;

/// When a member sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Never.
    Listen,
    /// So many in flight; the next when one is acknowledged.
    Closed(usize),
    /// So often, whatever the answers do. Latencies count from the intended time, so a server that stalls is charged
    /// for everything that waited (no coordinated omission).
    Open(Duration),
    /// So many in flight, where one is over when everybody has it.
    Broadcast(usize),
    /// Sends nothing; so often nobody is at hand any more, or somebody is again, and once in ten times the connection breaks.
    Flap(Duration),
}

/// A fan-out's progress: how many deliveries are still to come before the sender may go on.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    pub(crate) listeners: u64,
    pub(crate) arrived: AtomicU64,
    pub(crate) sender: Mutex<Option<Arc<Handle<Member>>>>,
}

/// What all members of a crowd share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) score: Score,
    /// Conversations that chores created, by the chore's tag.
    pub(crate) created: Mutex<HashMap<u64, Uuid>>,
    pub(crate) body_bytes: usize,
    pub(crate) types: bool,
    /// One in so many deliveries has its latency measured.
    pub(crate) sample: u64,
    pub(crate) fanout: Option<Fanout>,
    /// Members say what has reached them and that they have read it.
    pub(crate) receipts: bool,
}

/// A request to be done before the load.
#[derive(Debug)]
pub(crate) struct Chore {
    pub(crate) op: &'static str,
    pub(crate) args: String,
    pub(crate) tag: u64,
}

/// One member.
#[derive(Debug)]
pub struct Member {
    shared: Arc<Shared>,
    chores: VecDeque<Chore>,
    chores_in_flight: usize,
    conversations: Vec<Uuid>,
    next: usize,
    pace: Pace,
    in_flight: usize,
    failures_in_row: u32,
    running: bool,
    /// When an open loop sends next, in the score's microseconds.
    due_us: u64,
    /// Changes of a flapping member so far.
    flaps: u64,
    /// At whom it looks.
    watch: Option<String>,
    sent: u64,
    /// Messages of ours that were acknowledged.
    pub(crate) acked: u64,
    body: Vec<u8>,
    /// What has reached us since we said so.
    unsaid: HashMap<Uuid, u64>,
    is_saying: bool,
}

impl std::fmt::Debug for Handle<Member> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle<Member>")
    }
}

impl Member {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let frame = br#"{"text":""}"#.len() + STAMP_DIGITS;
        let mut body = br#"{"text":""#.to_vec();
        body.extend([b'0'; STAMP_DIGITS]);
        // Words compress like words: a store that compresses shall not find a run of one letter.
        let words = b" the optical telegraph carried messages across France over a chain of towers".iter().cycle();
        body.extend(words.take(shared.body_bytes.saturating_sub(frame)));
        body.extend(br#""}"#);
        Self {
            shared,
            chores: VecDeque::new(),
            chores_in_flight: 0,
            conversations: Vec::new(),
            next: 0,
            pace: Pace::Listen,
            in_flight: 0,
            failures_in_row: 0,
            running: false,
            due_us: 0,
            flaps: 0,
            watch: None,
            sent: 0,
            acked: 0,
            body,
            unsaid: HashMap::new(),
            is_saying: false,
        }
    }

    pub(crate) fn add_chores(&mut self, chores: Vec<Chore>, session: &mut Session) {
        self.chores.extend(chores);
        self.do_chores(session);
    }

    fn do_chores(&mut self, session: &mut Session) {
        while self.chores_in_flight < CHORES_IN_FLIGHT_MAX
            && let Some(chore) = self.chores.pop_front()
        {
            self.chores_in_flight += 1;
            session.request(chore.op, &chore.args, chore.tag);
        }
    }

    pub(crate) fn assign(&mut self, conversations: Vec<Uuid>, pace: Pace) {
        (self.conversations, self.pace) = (conversations, pace);
    }

    pub(crate) fn start(&mut self, session: &mut Session) {
        if self.conversations.is_empty() {
            return;
        }
        self.running = true;
        if let Pace::Open(every) | Pace::Flap(every) = self.pace {
            // Members begin anywhere within one interval, or they would all send at once.
            self.due_us = self.shared.score.now_us() + rand::random_range(0..=every.as_micros() as u64);
        }
        self.go_on(session);
    }

    pub(crate) fn stop(&mut self) {
        self.running = false;
    }

    /// Sends what may be sent now.
    pub(crate) fn go_on(&mut self, session: &mut Session) {
        if !self.running {
            return;
        }
        match self.pace {
            Pace::Listen => {}
            Pace::Closed(window) => {
                while self.in_flight < window {
                    let now = self.shared.score.now_us();
                    self.send(session, now);
                }
            }
            Pace::Open(every) => {
                let now = self.shared.score.now_us();
                while self.due_us <= now {
                    self.send(session, self.due_us);
                    self.due_us += every.as_micros().max(1) as u64;
                }
                session.wake_at(self.shared.score.began + Duration::from_micros(self.due_us));
            }
            Pace::Flap(every) => {
                let now = self.shared.score.now_us();
                if self.due_us <= now {
                    self.flap(session);
                    self.due_us = now + every.as_micros() as u64;
                }
                session.wake_at(self.shared.score.began + Duration::from_micros(self.due_us));
            }
            Pace::Broadcast(window) => {
                let Some(fanout) = &self.shared.fanout else { return };
                let over = fanout.arrived.load(Relaxed) / fanout.listeners.max(1);
                while self.sent < over + window as u64 {
                    let now = self.shared.score.now_us();
                    self.send(session, now);
                }
            }
        }
    }

    pub(crate) fn watch(&mut self, args: String, session: &mut Session) {
        session.request("presence.watch", &args, SOFT_TAG);
        self.watch = Some(args);
    }

    fn flap(&mut self, session: &mut Session) {
        self.flaps += 1;
        if self.flaps.is_multiple_of(FLAPS_PER_BREAK) {
            return session.break_connection();
        }
        let args = if self.flaps % 2 == 1 { r#"{"away":true}"# } else { r#"{"away":false}"# };
        session.request("presence.away", args, SOFT_TAG);
    }

    /// Says what has reached us, of all conversations at once; while that is on its way, the next word gathers.
    fn say(&mut self, session: &mut Session) {
        if self.is_saying || self.unsaid.is_empty() {
            return;
        }
        let some: Vec<Uuid> = self.unsaid.keys().take(RECEIPTS_BATCH_MAX).copied().collect();
        let said = some.into_iter().filter_map(|conversation| {
            let n = self.unsaid.remove(&conversation)?;
            Some(Progress { conversation, delivered: Some(n), read: Some(n) })
        });
        let said: Vec<Progress> = said.collect();
        self.is_saying = true;
        self.shared.score.receipts.fetch_add(said.len() as u64, Relaxed);
        session.progress(&said, None, RECEIPTS_TAG);
    }

    fn send(&mut self, session: &mut Session, began_us: u64) {
        let start = br#"{"text":""#.len();
        let mut rest = began_us;
        for digit in self.body[start..start + STAMP_DIGITS].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        let conversation = self.conversations[self.next];
        self.next = (self.next + 1) % self.conversations.len();
        self.in_flight += 1;
        self.sent += 1;
        self.shared.score.in_flight.fetch_add(1, Relaxed);
        if self.shared.types {
            session.request("typing.start", &format!(r#"{{"conversation":"{conversation}"}}"#), SOFT_TAG);
        }
        session.send(conversation, &self.body, began_us);
    }
}

/// The time at the beginning of a body's text.
fn stamp(body: &[u8]) -> Option<u64> {
    let text = line::field(body, "text")?;
    let digits = std::str::from_utf8(text.get(1..=STAMP_DIGITS)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

impl Handler for Member {
    fn ready(&mut self, session: &mut Session) {
        self.shared.score.ready.fetch_add(1, Relaxed);
        // Requests that wait for their answer go out again by themselves; what a former connection was told does not.
        if let Some(args) = &self.watch {
            session.request("presence.watch", args, SOFT_TAG);
        }
    }

    fn event(&mut self, session: &mut Session, event: &Event<'_>) {
        if event.name == "receipt.updated" {
            self.shared.score.receipts_heard.fetch_add(1, Relaxed);
        }
        if event.name != "message.new" {
            return;
        }
        if self.shared.receipts
            && let (Ok(conversation), Some(n)) = (Uuid::try_parse(event.conversation), event.n())
        {
            self.unsaid.insert(conversation, n);
            self.say(session);
        }
        let nth = self.shared.score.deliveries.fetch_add(1, Relaxed);
        if nth.is_multiple_of(self.shared.sample) {
            self.shared.score.note_delivery(event.body().and_then(stamp));
        }
        if let Some(fanout) = &self.shared.fanout
            && self.pace == Pace::Listen
        {
            let arrived = fanout.arrived.fetch_add(1, Relaxed) + 1;
            if arrived.is_multiple_of(fanout.listeners)
                && let Some(sender) = &*fanout.sender.lock()
            {
                sender.call(|member, session| member.go_on(session));
            }
        }
    }

    fn sent(&mut self, session: &mut Session, sent: &Sent, result: Result<Ack, &Failure>) {
        self.in_flight -= 1;
        self.shared.score.in_flight.fetch_sub(1, Relaxed);
        match result {
            Ok(_) => {
                self.acked += 1;
                self.failures_in_row = 0;
                self.shared.score.note_ack(sent.tag);
            }
            Err(failure) => {
                self.failures_in_row += 1;
                self.running &= self.failures_in_row < FAILURES_IN_ROW_MAX && *failure != Failure::Stopped;
                self.shared.score.complain(|| failure.to_string());
            }
        }
        if matches!(self.pace, Pace::Closed(_)) {
            self.go_on(session);
        }
    }

    fn answered(&mut self, session: &mut Session, tag: u64, result: Result<&[u8], &Failure>) {
        if tag == SOFT_TAG {
            if let Err(failure) = result {
                self.shared.score.complain(|| failure.to_string());
            }
            return;
        }
        if tag == RECEIPTS_TAG {
            self.is_saying = false;
            if let Err(failure) = result {
                self.shared.score.complain(|| format!("receipts: {failure}"));
            }
            return self.say(session);
        }
        if tag == SHOWN_TAG {
            self.shared.score.chores.fetch_sub(1, Relaxed);
            if let Err(failure) = result {
                self.shared.score.complain(|| format!("receipts: {failure}"));
            }
            return;
        }
        self.chores_in_flight -= 1;
        self.shared.score.chores.fetch_sub(1, Relaxed);
        match result {
            Ok(ok) => {
                let id = line::field(ok, "conversation").and_then(|conversation| line::field(conversation, "id"));
                if let Some(id) = id.and_then(line::text).and_then(|id| Uuid::try_parse(id).ok()) {
                    self.shared.created.lock().insert(tag, id);
                }
            }
            Err(failure) => self.shared.score.complain(|| failure.to_string()),
        }
        self.do_chores(session);
    }

    fn delayed(&mut self, _: &mut Session, refusal: &Refusal) {
        *self.shared.score.delayed.lock().entry(refusal.code.clone()).or_default() += 1;
    }

    fn read(&mut self, _: &mut Session, _: u64, result: Result<u64, &Failure>) {
        self.shared.score.chores.fetch_sub(1, Relaxed);
        if let Err(failure) = result {
            self.shared.score.complain(|| format!("a read failed: {failure}"));
        }
    }

    fn tick(&mut self, session: &mut Session, _: Instant) {
        if matches!(self.pace, Pace::Open(_) | Pace::Flap(_)) {
            self.go_on(session);
        }
    }

    fn down(&mut self, _: &mut Session, why: &Down, last: bool) {
        if *why == Down::Stopped || (matches!(self.pace, Pace::Flap(_)) && !last) {
            return;
        }
        self.shared.score.lost.fetch_add(1, Relaxed);
        if last {
            self.shared.score.complain(|| why.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back() {
        assert_eq!(stamp(br#"{"text":"00000000000000ff the optical"}"#), Some(255));
        assert_eq!(stamp(br#"{"text":"short"}"#), None);
    }
}
