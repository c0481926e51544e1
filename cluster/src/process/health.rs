//! Named conditions, and the three questions Kubernetes asks about them.
//!
//! - *alive*: does the runtime still turn? Nothing else, and above all no peer and no store: restarting this process
//!   cures neither. A heartbeat task ticks, and an old tick fails.
//! - *started*: has everything marked [`Part::Startup`] been well once? From then on, for good.
//! - *ready*: started, alive, not draining, and everything marked [`Part::Ready`] is well now.
//!
//! A condition that is not well carries a sentence that says what is wrong. Conditions marked
//! [`Part::Informational`] are shown and stop nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::metrics::{DRAINING, READY_CONDITION};

/// A process whose runtime has not turned for this long is dead. Ten beats: a long garbage page-in passes, a
/// deadlock does not.
pub const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(10);

/// How often the heartbeat ticks.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// What a condition has a say in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Has to be well once, before the process counts as started.
    Startup,
    /// Has to be well for the process to be ready.
    Ready,
    /// Is only shown.
    Informational,
}

/// The health of this process: a cheap handle that everyone may hold.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// A lock, not an atomic: it is taken once a second.
    last_beat: Mutex<Instant>,
    draining: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    conditions: Vec<Entry>,
    started: bool,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    part: Part,
    /// What is wrong, if anything.
    failing: Option<String>,
    since: Instant,
}

/// One condition of a [`Health`], held by whoever knows how it fares.
#[derive(Clone, Debug)]
pub struct Condition {
    health: Health,
    index: usize,
}

/// Everything about the health of a process at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The summary.
    pub status: Status,
    /// The runtime turns.
    pub alive: bool,
    /// It has started.
    pub started: bool,
    /// It takes work.
    pub ready: bool,
    /// It is leaving.
    pub draining: bool,
    /// In the order in which they were declared.
    pub conditions: Vec<Shown>,
}

/// One word for a whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Ready.
    Ok,
    /// Not yet started.
    Starting,
    /// Leaving on purpose.
    Draining,
    /// Started, but something that matters is not well.
    Failing,
}

/// A condition as others see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// What it has a say in.
    pub part: Part,
    /// Whether it is well.
    pub ok: bool,
    /// What is wrong, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it has been so.
    pub seconds: u64,
}

// === impl Health ===

impl Health {
    /// Alive, with no conditions yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Inner {
            began: now,
            last_beat: Mutex::new(now),
            draining: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        }))
    }

    /// Declares a condition, failing until it is set for the first time. Declaring a name again returns the same
    /// condition, as it stands.
    ///
    /// A process without a startup condition counts as started, so declare them before the admin port opens.
    pub fn condition(&self, name: &'static str, part: Part) -> Condition {
        let mut state = self.0.state.lock();
        let index = state.conditions.iter().position(|entry| entry.name == name).unwrap_or_else(|| {
            let failing = Some("not known yet".to_owned());
            state.conditions.push(Entry { name, part, failing, since: Instant::now() });
            // Parts of a process declare their conditions one after the other while it starts; what the first ones
            // have reached must not speak for the later ones.
            state.started &= part != Part::Startup;
            state.conditions.len() - 1
        });
        drop(state);
        let condition = Condition { health: self.clone(), index };
        self.mirror();
        condition
    }

    /// Says how a condition fares: `Ok`, or a sentence that says what is wrong.
    pub fn set(&self, condition: &Condition, fares: Result<(), String>) {
        let mut state = self.0.state.lock();
        // A condition knows its own health; one of another process's health (in a test) is not ours to set.
        let Some(entry) = state.conditions.get_mut(condition.index) else { return };
        let was = entry.failing.take();
        entry.failing = fares.err();
        let (name, now) = (entry.name, entry.failing.clone());
        let turned = was.is_none() != now.is_none();
        if turned {
            entry.since = Instant::now();
        }
        let startup_done = state.conditions.iter().all(|e| e.part != Part::Startup || e.failing.is_none());
        let started_now = startup_done && !state.started;
        state.started |= startup_done;
        drop(state);

        gauge_condition(name, now.is_none());
        match now {
            Some(reason) if turned => tracing::warn!(event = "health_condition_failed", condition = name, reason),
            None if turned => tracing::info!(event = "health_condition_recovered", condition = name),
            _ => {}
        }
        if started_now {
            tracing::info!(event = "process_started", seconds = self.uptime().as_secs_f64());
        }
    }

    /// Whether the runtime still turns, else a sentence.
    pub fn alive(&self) -> Result<(), String> {
        self.alive_at(Instant::now())
    }

    /// [`Health::alive`] at another time.
    pub fn alive_at(&self, now: Instant) -> Result<(), String> {
        let age = now.saturating_duration_since(*self.0.last_beat.lock());
        match age > HEARTBEAT_AGE_MAX {
            true => Err(format!("the runtime has not turned for {} s", age.as_secs())),
            false => Ok(()),
        }
    }

    /// Whether everything needed to start has been well once.
    pub fn started(&self) -> bool {
        self.0.state.lock().has_started()
    }

    /// Whether this process takes work.
    pub fn ready(&self) -> bool {
        self.report().ready
    }

    /// Whether this process is leaving.
    pub fn draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Not ready from now on, whatever the conditions say.
    pub fn begin_draining(&self) {
        self.set_draining(true);
    }

    /// Takes [`Health::begin_draining`] back.
    pub fn end_draining(&self) {
        self.set_draining(false);
    }

    /// Everything at this moment.
    pub fn report(&self) -> Report {
        let now = Instant::now();
        let (alive, draining) = (self.alive_at(now).is_ok(), self.draining());
        let state = self.0.state.lock();
        let started = state.has_started();
        let well = state.conditions.iter().all(|entry| entry.part != Part::Ready || entry.failing.is_none());
        let ready = alive && started && well && !draining;
        let status = match (ready, draining, started) {
            (true, _, _) => Status::Ok,
            (_, true, _) => Status::Draining,
            (_, _, false) => Status::Starting,
            _ => Status::Failing,
        };
        let conditions = state.conditions.iter().map(|entry| entry.shown(now)).collect();
        Report { status, alive, started, ready, draining, conditions }
    }

    /// How long this process has run.
    pub fn uptime(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Ticks for ever; spawn it on the runtime whose life it shall prove, and never on one of its own.
    pub async fn heartbeat(self) {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.beat_at(Instant::now());
        }
    }

    /// One tick, as if at `when`.
    pub fn beat_at(&self, when: Instant) {
        *self.0.last_beat.lock() = when;
    }

    /// Writes every gauge again. The admin port does so before each scrape, so that what was set before metrics were
    /// installed is seen too.
    pub fn mirror(&self) {
        gauge_draining(self.draining());
        let state = self.0.state.lock();
        state.conditions.iter().for_each(|entry| gauge_condition(entry.name, entry.failing.is_none()));
    }

    fn set_draining(&self, draining: bool) {
        let was = self.0.draining.swap(draining, Ordering::AcqRel);
        gauge_draining(draining);
        if was != draining {
            tracing::info!(event = "process_draining_changed", draining);
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Condition ===

impl Condition {
    /// It is well.
    pub fn ok(&self) {
        self.health.set(self, Ok(()));
    }

    /// It is not, and this sentence says why.
    pub fn failing(&self, reason: impl Into<String>) {
        self.health.set(self, Err(reason.into()));
    }

    /// Either of them.
    pub fn set(&self, fares: Result<(), String>) {
        self.health.set(self, fares);
    }
}

// === impl State ===

impl State {
    fn has_started(&self) -> bool {
        self.started || self.conditions.iter().all(|entry| entry.part != Part::Startup)
    }
}

impl Entry {
    fn shown(&self, now: Instant) -> Shown {
        Shown {
            name: self.name,
            part: self.part,
            ok: self.failing.is_none(),
            reason: self.failing.clone(),
            seconds: now.saturating_duration_since(self.since).as_secs(),
        }
    }
}

// Gauges are looked up anew each time: it happens rarely, and a handle from before `metrics::install` is deaf.

fn gauge_condition(name: &'static str, ok: bool) {
    ::metrics::gauge!(READY_CONDITION, "condition" => name).set(f64::from(u8::from(ok)));
}

fn gauge_draining(draining: bool) {
    ::metrics::gauge!(DRAINING).set(f64::from(u8::from(draining)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::metrics::{Component, Metrics};

    #[test]
    fn a_process_starts_becomes_ready_fails_recovers_and_drains() {
        let health = Health::new();
        let recovered = health.condition("log_recovered", Part::Startup);
        let store = health.condition("store", Part::Ready);
        let search = health.condition("search", Part::Informational);
        let seen = || {
            let report = health.report();
            (report.status, report.started, report.ready)
        };
        assert_eq!(seen(), (Status::Starting, false, false));

        store.ok();
        assert_eq!(seen(), (Status::Starting, false, false), "ready conditions do not start a process");
        recovered.ok();
        assert_eq!(seen(), (Status::Ok, true, true), "an informational condition stops nothing");

        store.failing("disk full");
        assert_eq!(seen(), (Status::Failing, true, false));
        store.ok();
        assert_eq!(seen(), (Status::Ok, true, true));

        recovered.failing("again");
        assert_eq!(seen(), (Status::Ok, true, true), "started is for good");
        search.failing("behind");
        assert_eq!(seen(), (Status::Ok, true, true));

        health.begin_draining();
        assert_eq!(seen(), (Status::Draining, true, false));
        health.end_draining();
        assert_eq!(seen(), (Status::Ok, true, true));
    }

    #[test]
    fn a_startup_condition_declared_late_is_waited_for() {
        let health = Health::new();
        health.condition("store", Part::Ready).ok();
        health.condition("log_recovered", Part::Startup).ok();
        assert!(health.started());
        let listening = health.condition("listening", Part::Startup);
        assert!(!health.started() && !health.ready());
        listening.ok();
        assert!(health.started() && health.ready());
    }

    #[test]
    fn a_report_tells_what_is_wrong() {
        let health = Health::new();
        let store = health.condition("store", Part::Ready);
        assert_eq!(health.report().conditions[0].reason.as_deref(), Some("not known yet"));
        store.failing("disk full");
        let shown = &health.report().conditions[0];
        assert_eq!((shown.name, shown.ok, shown.reason.as_deref()), ("store", false, Some("disk full")));
        store.ok();
        assert_eq!(health.report().conditions[0].reason, None);
    }

    #[test]
    fn declaring_a_condition_again_returns_the_same_one() {
        let health = Health::new();
        health.condition("store", Part::Ready).ok();
        let again = health.condition("store", Part::Ready);
        assert!(health.ready());
        again.failing("gone");
        assert!(!health.ready());
        assert_eq!(health.report().conditions.len(), 1);
    }

    #[test]
    fn an_old_heartbeat_is_death_and_nothing_else_is() {
        let health = Health::new();
        health.condition("store", Part::Ready).failing("everything is on fire");
        let now = Instant::now();
        health.beat_at(now);
        assert_eq!(health.alive_at(now + HEARTBEAT_AGE_MAX), Ok(()));
        let late = health.alive_at(now + HEARTBEAT_AGE_MAX + Duration::from_secs(1));
        assert_eq!(late, Err("the runtime has not turned for 11 s".to_owned()));
    }

    #[tokio::test]
    async fn the_heartbeat_beats() {
        let health = Health::new();
        let old = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        health.beat_at(old);
        assert!(health.alive().is_err() && !health.report().alive);
        let task = tokio::spawn(health.clone().heartbeat());
        while health.alive().is_err() {
            tokio::task::yield_now().await;
        }
        task.abort();
    }

    #[test]
    fn gauges_follow() {
        let metrics = Metrics::detached(&[Component::Process]).unwrap();
        let health = Health::new();
        // Set while nothing records: the mirror brings it in.
        let store = health.condition("store", Part::Ready);
        store.ok();
        metrics.within(|| health.mirror());
        assert!(metrics.render().contains("chappe_ready_condition{condition=\"store\"} 1\n"));
        metrics.within(|| {
            store.failing("gone");
            health.begin_draining();
        });
        let text = metrics.render();
        assert!(text.contains("chappe_ready_condition{condition=\"store\"} 0\n"), "{text}");
        assert!(text.contains("chappe_draining 1\n"), "{text}");
    }
}
