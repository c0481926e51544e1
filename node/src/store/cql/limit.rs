//! How many statements are under way to the servers at once: as many as they answer in time.
//!
//! A server that is given more than it can do lets it wait where nobody sees it, until everything is late. So the limit falls when
//! answers are late or do not come, and grows again while all of it is used and answers are prompt. What waits for its turn waits
//! here, where it is counted: [`Limit::wait`] says how long what comes now would wait, and whoever asks for it can be told so at
//! once.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use chappe_cluster::process::metrics::{STORE_REQUESTS_LIMIT, STORE_REQUESTS_WAITING};
use metrics::{Gauge, gauge};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// An answer later than this is late: some five times what a loaded server takes, and more than it takes to ask a second one where
/// the first is silent.
const LATE: Duration = Duration::from_millis(500);

/// The limit never falls below this: someone has to find out that the servers are prompt again.
const LEAST: f64 = 4.0;

/// What is left of the limit when answers are late. It falls once per round of answers: all of one round say the same.
const CUT: f64 = 0.7;

/// By how much it grows with a whole round of prompt answers.
const GROWTH: f64 = 4.0;

/// See the module's documentation.
pub(super) struct Limit {
    turns: Semaphore,
    pace: Mutex<Pace>,
    waiting: AtomicUsize,
    limit_seen: Gauge,
    waiting_seen: Gauge,
}

/// What decides the limit: pure.
#[derive(Debug)]
struct Pace {
    limit: f64,
    most: f64,
    /// How long answers take, smoothed.
    takes: Duration,
    /// What was begun before then has had its say.
    fell_at: Instant,
    /// Turns that there are, taken or not: above the limit while too many are taken.
    turns: usize,
}

/// Somebody's turn.
pub(super) struct Turn<'a> {
    limit: &'a Limit,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
}

impl Limit {
    pub(super) fn new(kind: &'static str, most: usize) -> Self {
        let pace =
            Pace { limit: most as f64, most: most as f64, takes: Duration::ZERO, fell_at: Instant::now(), turns: most };
        let limit_seen = gauge!(STORE_REQUESTS_LIMIT, "kind" => kind);
        limit_seen.set(most as f64);
        Self {
            turns: Semaphore::new(most),
            pace: Mutex::new(pace),
            waiting: AtomicUsize::new(0),
            limit_seen,
            waiting_seen: gauge!(STORE_REQUESTS_WAITING, "kind" => kind),
        }
    }

    /// Waits for a turn, for so long.
    pub(super) async fn turn(&self, patience: Duration) -> Option<Turn<'_>> {
        let permit = match self.turns.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _counted = self.count();
                tokio::time::timeout(patience, self.turns.acquire()).await.ok()?.ok()?
            }
        };
        Some(Turn { limit: self, permit: Some(permit), began: Instant::now() })
    }

    /// How long what comes now would wait for its turn.
    pub(super) fn wait(&self) -> Duration {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting == 0 {
            return Duration::ZERO;
        }
        let pace = self.pace.lock();
        pace.takes.mul_f64(waiting as f64 / pace.limit)
    }

    /// How many turns there may be.
    #[cfg(test)]
    pub(super) fn now(&self) -> usize {
        self.pace.lock().turns_wanted()
    }

    fn count(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting_seen.increment(1.0);
        Waiting(self)
    }

    /// A turn is over.
    fn settle(&self, permit: SemaphorePermit<'_>, began: Instant, is_answered: bool) {
        let mut pace = self.pace.lock();
        let is_used_up = self.turns.available_permits() == 0;
        if pace.answered(began, Instant::now(), is_answered, is_used_up) {
            self.limit_seen.set(pace.limit);
        }
        match pace.turns_wanted() {
            wanted if wanted < pace.turns => {
                pace.turns -= 1;
                permit.forget();
                // Nobody has taken these.
                pace.turns -= self.turns.forget_permits(pace.turns - wanted);
            }
            wanted => {
                self.turns.add_permits(wanted - pace.turns);
                pace.turns = wanted;
            }
        }
    }
}

struct Waiting<'a>(&'a Limit);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.waiting_seen.decrement(1.0);
    }
}

impl Turn<'_> {
    /// There is an answer, good or bad, or none in time.
    pub(super) fn over(mut self, is_answered: bool) {
        if let Some(permit) = self.permit.take() {
            self.limit.settle(permit, self.began, is_answered);
        }
    }
}

impl Pace {
    /// Whether the limit is another one now.
    fn answered(&mut self, began: Instant, now: Instant, is_answered: bool, is_used_up: bool) -> bool {
        let took = now.saturating_duration_since(began);
        self.takes = (self.takes * 7 + took) / 8;
        let before = self.limit;
        if !is_answered || took > LATE {
            if began >= self.fell_at {
                self.fell_at = now;
                self.limit = (self.limit * CUT).max(LEAST);
            }
        } else if is_used_up {
            // What is not used tells nothing.
            self.limit = (self.limit + GROWTH / self.limit).min(self.most);
        }
        self.limit != before
    }

    const fn turns_wanted(&self) -> usize {
        self.limit as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(limit: f64) -> Pace {
        Pace { limit, most: 100.0, takes: Duration::ZERO, fell_at: Instant::now(), turns: limit as usize }
    }

    const PROMPT: Duration = Duration::from_millis(5);

    #[test]
    fn it_falls_once_for_all_that_was_under_way_together() {
        let mut pace = pace(100.0);
        let began = pace.fell_at;
        let late = began + LATE * 2;
        for _ in 0..100 {
            pace.answered(began, late, true, true);
        }
        assert_eq!(pace.limit, 70.0);
        // What was begun afterwards says something new.
        pace.answered(late, late + PROMPT, false, true);
        assert_eq!(pace.limit, 49.0);
        for round in 1..100 {
            let now = late + LATE * 2 * round;
            pace.answered(now, now + LATE * 2, true, true);
        }
        assert_eq!(pace.limit, LEAST);
    }

    #[test]
    fn it_grows_while_all_of_it_is_used_and_answers_are_prompt() {
        let mut pace = pace(LEAST);
        let now = pace.fell_at;
        pace.answered(now, now + PROMPT, true, false);
        assert_eq!(pace.limit, LEAST);
        let mut rounds = 0;
        while pace.limit < pace.most {
            for _ in 0..pace.limit as usize {
                pace.answered(now, now + PROMPT, true, true);
            }
            rounds += 1;
        }
        assert_eq!(pace.limit, 100.0);
        assert!((20..40).contains(&rounds), "{rounds} rounds");
    }

    #[tokio::test]
    async fn what_waits_is_counted_and_turns_that_are_too_many_are_not_given_again() {
        let limit = Limit::new("write", 10);
        let mut turns = Vec::new();
        for _ in 0..10 {
            turns.push(limit.turn(PROMPT).await.unwrap());
        }
        assert_eq!(limit.wait(), Duration::ZERO);
        assert!(limit.turn(PROMPT).await.is_none(), "nobody gives one back");
        limit.pace.lock().takes = Duration::from_secs(1);
        let waiting = [limit.count(), limit.count()];
        assert_eq!(limit.wait(), Duration::from_millis(200));
        drop(waiting);
        assert_eq!(limit.wait(), Duration::ZERO);
        // None was answered in time: of ten turns seven are left.
        turns.drain(..).for_each(|turn| turn.over(false));
        assert_eq!((limit.turns.available_permits(), limit.pace.lock().turns), (7, 7));
        // Nobody came to an end with it: it is nobody's fault.
        drop(limit.turn(PROMPT).await.unwrap());
        assert_eq!(limit.turns.available_permits(), 7);
    }
}
