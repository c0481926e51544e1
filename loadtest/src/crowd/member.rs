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

use super::{
    RECEIPTS_TAG, SHOWN_TAG,
    scenario::{cumulated, draw},
    score::Score,
};
use crate::client::{Ack, Down, Event, Failure, Handle, Handler, Progress, Refusal, Sent, Session, line};

/// Chores under way at the same time, below what the server allows per connection.
const CHORES_IN_FLIGHT_MAX: usize = 32;
/// Who is only ever refused stops asking.
const FAILURES_IN_ROW_MAX: u32 = 200;
/// After a refusal a closed loop rests for this, times the refusals in a row, and for half a second at most: otherwise it would do
/// nothing but ask.
const REST_US: u64 = 20_000;
const REST_US_MAX: u64 = 500_000;
/// One in so many changes of a flapping member is a broken connection.
const FLAPS_PER_BREAK: u64 = 10;
/// What members react with.
const REACTION: &str = "👍";
/// Later than any run.
const NEVER_US: u64 = u64::MAX / 4;
/// The tag of what is said of presence and typing: nobody waits for the answer.
const SOFT_TAG: u64 = u64::MAX - 1;
/// Conversations of which one word on receipts tells.
const RECEIPTS_BATCH_MAX: usize = 200;
/// Digits of the time that stands at the beginning of each body's text.
const STAMP_DIGITS: usize = 16;

/// What a member does besides sending.
#[derive(Debug, Clone, PartialEq)]
pub struct Habits {
    /// Bytes of each body.
    pub body_bytes: usize,
    /// It says that it is writing before it sends.
    pub types: bool,
    /// It says what has reached it and that it has read it.
    pub receipts: bool,
    /// Not more often than this: what happens between two words goes with the second.
    pub receipts_every: Duration,
    /// The share of messages to which it reacts.
    pub reacts: f64,
    /// The k-th of its conversations is written to k to the power of this times less often than the first; 0: one after the other.
    pub uneven: f64,
    /// Whether an open loop sends by chance instead of at equal distances.
    pub poisson: bool,
    /// How often it stops reading, and for how long.
    pub slow: Option<(Duration, Duration)>,
    /// How often, on average, it loses its connection, and how long it stays away.
    pub flaps: Option<(Duration, Duration)>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            body_bytes: 200,
            types: false,
            receipts: false,
            receipts_every: Duration::ZERO,
            reacts: 0.0,
            uneven: 0.0,
            poisson: false,
            slow: None,
            flaps: None,
        }
    }
}

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
    /// One in so many deliveries has its latency measured.
    pub(crate) sample: u64,
    pub(crate) fanout: Option<Fanout>,
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
    habits: Habits,
    chores: VecDeque<Chore>,
    chores_in_flight: usize,
    conversations: Vec<Uuid>,
    /// Running sums of how often each is written to; empty: one after the other.
    shares: Vec<f64>,
    next: usize,
    pace: Pace,
    /// Multiplies the rate of an open loop.
    tempo: f64,
    in_flight: usize,
    failures_in_row: u32,
    running: bool,
    /// When an open loop sends next, and a closed one at the earliest, in the score's microseconds.
    due_us: u64,
    /// When its reading pauses next, and when it loses its connection next.
    slow_us: u64,
    flap_us: u64,
    /// Until then, in the score's microseconds, it did not listen for reasons of its own: what was sent before is late by its own fault.
    excused_us: u64,
    /// Until then it is away, and writes nothing.
    away_us: u64,
    /// When a storm broke its connection, until it is back.
    stormed_us: Option<u64>,
    is_up: bool,
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
    /// Nothing is said of it before then.
    say_us: u64,
}

impl std::fmt::Debug for Handle<Member> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle<Member>")
    }
}

impl Member {
    pub(crate) fn new(shared: Arc<Shared>, habits: Habits) -> Self {
        Self {
            body: body(habits.body_bytes),
            shared,
            habits,
            chores: VecDeque::new(),
            chores_in_flight: 0,
            conversations: Vec::new(),
            shares: Vec::new(),
            next: 0,
            pace: Pace::Listen,
            tempo: 1.0,
            in_flight: 0,
            failures_in_row: 0,
            running: false,
            due_us: 0,
            slow_us: NEVER_US,
            flap_us: NEVER_US,
            excused_us: 0,
            away_us: 0,
            stormed_us: None,
            is_up: false,
            flaps: 0,
            watch: None,
            sent: 0,
            acked: 0,
            unsaid: HashMap::new(),
            is_saying: false,
            say_us: 0,
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

    pub(crate) fn behave(&mut self, habits: Habits) {
        self.body = body(habits.body_bytes);
        self.habits = habits;
    }

    pub(crate) fn assign(&mut self, conversations: Vec<Uuid>, pace: Pace) {
        (self.conversations, self.pace) = (conversations, pace);
        let share = |rank: usize| ((rank + 1) as f64).powf(-self.habits.uneven);
        let is_even = self.habits.uneven == 0.0 || self.conversations.is_empty();
        self.shares = if is_even { Vec::new() } else { cumulated((0..self.conversations.len()).map(share)) };
    }

    pub(crate) fn start(&mut self, session: &mut Session) {
        if self.conversations.is_empty() {
            return;
        }
        self.running = true;
        let now = self.shared.score.now_us();
        // Members begin anywhere within one interval, or they would all do the same at once.
        let soon = |every: Duration| now + rand::random_range(0..=every.as_micros() as u64);
        if let Pace::Open(every) | Pace::Flap(every) = self.pace {
            self.due_us = now + (self.between(every) * rand::random_range(0.0..1.0)) as u64;
        }
        self.slow_us = self.habits.slow.map_or(NEVER_US, |(every, _)| soon(every));
        self.flap_us = self.habits.flaps.map_or(NEVER_US, |(every, _)| soon(every * 2));
        self.live(session);
        self.go_on(session);
    }

    /// It sends nothing more, and stays from now on.
    pub(crate) fn stop(&mut self) {
        self.running = false;
        (self.slow_us, self.flap_us) = (NEVER_US, NEVER_US);
    }

    /// Microseconds between two messages of an open loop that sends so often at tempo 1.
    fn between(&self, every: Duration) -> f64 {
        (every.as_micros().max(1) as f64 / self.tempo).min(NEVER_US as f64 / 4.0)
    }

    /// The rate of open loops is that many times what it was meant to be. What is left of a waiting time shrinks or grows with it.
    pub(crate) fn set_tempo(&mut self, tempo: f64, session: &mut Session) {
        let (now, before) = (self.shared.score.now_us(), self.tempo);
        // Slower than anybody waits for, and still a number to divide by.
        self.tempo = tempo.max(1e-9);
        if matches!(self.pace, Pace::Open(_)) && self.due_us > now {
            self.due_us = now + ((self.due_us - now) as f64 * before / self.tempo).min(NEVER_US as f64 / 4.0) as u64;
        }
        self.go_on(session);
    }

    /// A storm breaks its connection, if it has one.
    pub(crate) fn storm(&mut self, session: &mut Session) {
        if self.is_up {
            self.stormed_us = Some(self.shared.score.now_us());
            self.shared.score.stormed.fetch_add(1, Relaxed);
            session.break_connection(Duration::ZERO);
        }
    }

    /// Pauses and losses that are due.
    fn live(&mut self, session: &mut Session) {
        let now = self.shared.score.now_us();
        if let (Some((every, pause)), true) = (self.habits.slow, self.slow_us <= now) {
            self.slow_us = now + every.as_micros() as u64;
            self.excused_us = self.excused_us.max(now + pause.as_micros() as u64);
            session.be_deaf_until(Instant::now() + pause);
        }
        if let (Some((every, away)), true) = (self.habits.flaps, self.flap_us <= now) {
            self.flap_us = now + (every.as_micros() as f64 * rand::random_range(0.5..1.5)) as u64;
            self.excused_us = self.excused_us.max(now + away.as_micros() as u64);
            self.away_us = now + away.as_micros() as u64;
            session.break_connection(away);
        }
        let next = self.slow_us.min(self.flap_us);
        if next < NEVER_US {
            session.wake_at(self.shared.score.began + Duration::from_micros(next));
        }
    }

    /// Sends what may be sent now.
    pub(crate) fn go_on(&mut self, session: &mut Session) {
        if !self.running {
            return;
        }
        match self.pace {
            Pace::Listen => {}
            Pace::Closed(window) => {
                let now = self.shared.score.now_us();
                if now < self.due_us {
                    return session.wake_at(self.shared.score.began + Duration::from_micros(self.due_us));
                }
                while self.in_flight < window {
                    self.send(session, now);
                }
            }
            Pace::Open(every) => {
                let now = self.shared.score.now_us();
                while self.due_us <= now {
                    // Whoever is away for reasons of their own writes nothing, and the server is not charged for it.
                    if self.due_us >= self.away_us {
                        self.send(session, self.due_us);
                    }
                    let chance =
                        if self.habits.poisson { -rand::random_range(f64::MIN_POSITIVE..1.0).ln() } else { 1.0 };
                    self.due_us += ((self.between(every) * chance) as u64).max(1);
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
            return session.break_connection(Duration::ZERO);
        }
        let args = if self.flaps % 2 == 1 { r#"{"away":true}"# } else { r#"{"away":false}"# };
        session.request("presence.away", args, SOFT_TAG);
    }

    /// The load is over: what has reached us and was not said is said now, however often that was to be.
    pub(crate) fn speak_up(&mut self, session: &mut Session) {
        self.habits.receipts_every = Duration::ZERO;
        self.say_us = 0;
        self.say(session);
    }

    /// Says what has reached us, of all conversations at once; while that is on its way, the next word gathers.
    fn say(&mut self, session: &mut Session) {
        if self.is_saying || self.unsaid.is_empty() {
            return;
        }
        let now = self.shared.score.now_us();
        if now < self.say_us {
            return session.wake_at(self.shared.score.began + Duration::from_micros(self.say_us));
        }
        self.say_us = now + self.habits.receipts_every.as_micros() as u64;
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
        if !self.shares.is_empty() {
            self.next = draw(&self.shares, &mut rand::rng());
        }
        let conversation = self.conversations[self.next];
        self.next = (self.next + 1) % self.conversations.len();
        self.in_flight += 1;
        self.sent += 1;
        self.shared.score.in_flight.fetch_add(1, Relaxed);
        if self.habits.types {
            session.request("typing.start", &format!(r#"{{"conversation":"{conversation}"}}"#), SOFT_TAG);
        }
        session.send(conversation, &self.body, began_us);
    }
}

/// A body of about so many bytes, with room for the time at its beginning.
fn body(bytes: usize) -> Vec<u8> {
    let frame = br#"{"text":""}"#.len() + STAMP_DIGITS;
    let mut body = br#"{"text":""#.to_vec();
    body.extend([b'0'; STAMP_DIGITS]);
    // Words compress like words: a store that compresses shall not find a run of one letter.
    let words = b" the optical telegraph carried messages across France over a chain of towers".iter().cycle();
    body.extend(words.take(bytes.saturating_sub(frame)));
    body.extend(br#""}"#);
    body
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
        self.shared.score.up.fetch_add(u64::from(!self.is_up), Relaxed);
        self.is_up = true;
        if let Some(at) = self.stormed_us.take() {
            self.shared.score.note_return(at);
        }
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
        if self.habits.receipts
            && let (Ok(conversation), Some(n)) = (Uuid::try_parse(event.conversation), event.n())
        {
            self.unsaid.insert(conversation, n);
            self.say(session);
        }
        if self.habits.reacts > 0.0
            && rand::random_bool(self.habits.reacts)
            && let Ok(conversation) = Uuid::try_parse(event.conversation)
        {
            self.shared.score.reactions.fetch_add(1, Relaxed);
            session.react(conversation, event.seq, REACTION, true, SOFT_TAG);
        }
        let nth = self.shared.score.deliveries.fetch_add(1, Relaxed);
        if nth.is_multiple_of(self.shared.sample) {
            // Whoever did not listen is late by their own fault.
            if let Some(began_us) = event.body().and_then(stamp).filter(|began_us| *began_us >= self.excused_us) {
                self.shared.score.note_delivery(began_us);
            }
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
                self.shared.score.note_ack(sent.tag, sent.tag >= self.excused_us);
            }
            Err(failure) => {
                self.failures_in_row += 1;
                self.running &= self.failures_in_row < FAILURES_IN_ROW_MAX && *failure != Failure::Stopped;
                self.shared.score.complain(|| failure.to_string());
                if matches!(self.pace, Pace::Closed(_)) {
                    let rest = (REST_US * u64::from(self.failures_in_row)).min(REST_US_MAX);
                    self.due_us = self.shared.score.now_us() + rest;
                }
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
        self.live(session);
        self.say(session);
        if matches!(self.pace, Pace::Open(_) | Pace::Flap(_) | Pace::Closed(_)) {
            self.go_on(session);
        }
    }

    fn down(&mut self, _: &mut Session, why: &Down, last: bool) {
        self.shared.score.up.fetch_sub(u64::from(std::mem::take(&mut self.is_up)), Relaxed);
        let is_meant = *why == Down::Broken || matches!(self.pace, Pace::Flap(_));
        if *why == Down::Stopped || (is_meant && !last) {
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
