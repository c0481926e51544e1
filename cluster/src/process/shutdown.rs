//! How a process leaves.
//!
//! SIGTERM or SIGINT begins; the parts of the process then walk through the [`Stage`]s, each announced in the log with
//! how long it took and how much it dealt with. A second signal means that somebody has no more patience: the process
//! ends there and then. What was acknowledged is durable, so that is safe, merely rude to clients.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Where a process is on its way out. Only ever forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Not on its way out.
    Running,
    /// `/readyz` fails, so that no new clients are sent here.
    NotReady,
    /// Clients are told to go elsewhere, in slices.
    GoingAway,
    /// New work is refused; what has begun is finished.
    RefuseWork,
    /// What is in memory goes to disk.
    Flush,
    /// Nothing is left to do.
    Exit,
}

/// The way out of this process: a handle that everyone may hold.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: watch::Sender<Stage>,
    /// How much each stage dealt with: connections told to leave, commands finished, entities flushed.
    counts: [AtomicU64; Stage::ALL.len()],
    /// When the shutdown began and when its current stage did. Held while a stage is announced, so that stages
    /// appear in the log in their order.
    clock: Mutex<Option<Clock>>,
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    began: Instant,
    stage: Instant,
}

impl Shutdown {
    /// A process that is running.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            stage: watch::Sender::new(Stage::Running),
            counts: Default::default(),
            clock: Mutex::new(None),
        }))
    }

    /// Listens to SIGTERM and SIGINT from now on, in a task of this runtime. The first begins the shutdown; another
    /// one, of either kind, exits with 128 + its number (130 for Ctrl-C), as shells expect.
    ///
    /// A shutdown that began otherwise (`ctl drain`) does not count as the first signal: the SIGTERM that Kubernetes
    /// sends after the preStop hook must not cut it short.
    pub fn listen(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                    _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                }
            };
            let (name, _) = next().await;
            if !shutdown.begin(name) {
                tracing::info!(event = "shutdown_signal_received", signal = name, stage = %shutdown.stage(), "already on the way");
            }
            let (name, kind) = next().await;
            tracing::warn!(event = "shutdown_cut_short", signal = name, stage = %shutdown.stage(), "second signal: exiting at once");
            std::process::exit(128 + kind.as_raw_value());
        });
        Ok(())
    }

    /// Begins, and says why; `false` if it had begun already.
    pub fn begin(&self, reason: &str) -> bool {
        self.advance(Stage::NotReady, Some(reason))
    }

    /// Enters a stage and announces it. Going backwards, or into the same stage again, does nothing.
    pub fn enter(&self, stage: Stage) {
        self.advance(stage, None);
    }

    /// Counts what the current stage deals with; its sum is in the log line that ends the stage.
    pub fn count(&self, amount: u64) {
        self.0.counts[self.stage() as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// What a stage has dealt with so far.
    pub fn counted(&self, stage: Stage) -> u64 {
        self.0.counts[stage as usize].load(Ordering::Relaxed)
    }

    /// Where the process is now.
    pub fn stage(&self) -> Stage {
        *self.0.stage.borrow()
    }

    /// Whether it has begun.
    pub fn is_requested(&self) -> bool {
        self.stage() > Stage::Running
    }

    /// Waits until it begins.
    pub async fn requested(&self) {
        self.reached(Stage::NotReady).await;
    }

    /// Waits until a stage is entered or left behind.
    pub async fn reached(&self, stage: Stage) {
        let mut stages = self.0.stage.subscribe();
        // The sender lives in `self`, so this cannot end by itself.
        let _ = stages.wait_for(|now| *now >= stage).await;
    }

    fn advance(&self, to: Stage, reason: Option<&str>) -> bool {
        let mut clock = self.0.clock.lock();
        let from = self.stage();
        if to <= from {
            return false;
        }
        let now = Instant::now();
        if let Some(Clock { stage, .. }) = *clock {
            tracing::info!(
                event = "shutdown_stage_done",
                stage = %from,
                count = self.counted(from),
                ms = now.duration_since(stage).as_millis() as u64,
            );
        }
        let began = clock.map_or(now, |clock| clock.began);
        *clock = Some(Clock { began, stage: now });
        tracing::info!(
            event = "shutdown_stage_entered",
            stage = %to,
            reason,
            ms = now.duration_since(began).as_millis() as u64,
            "{}",
            to.announcement(),
        );
        self.0.stage.send_replace(to);
        true
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    /// In order.
    pub const ALL: [Stage; 6] =
        [Stage::Running, Stage::NotReady, Stage::GoingAway, Stage::RefuseWork, Stage::Flush, Stage::Exit];

    /// As in log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::NotReady => "not_ready",
            Stage::GoingAway => "going_away",
            Stage::RefuseWork => "refuse_work",
            Stage::Flush => "flush",
            Stage::Exit => "exit",
        }
    }

    const fn announcement(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::NotReady => "shutting down: no longer ready for new clients",
            Stage::GoingAway => "asking clients to go elsewhere",
            Stage::RefuseWork => "refusing new work, finishing what has begun",
            Stage::Flush => "flushing to disk",
            Stage::Exit => "done, exiting",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[tokio::test]
    async fn stages_only_go_forwards_and_keep_count() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        assert!(shutdown.begin("test"));
        assert!(!shutdown.begin("test again"), "it had begun");
        waiting.await.unwrap();

        shutdown.enter(Stage::GoingAway);
        shutdown.count(3);
        shutdown.count(4);
        shutdown.enter(Stage::NotReady);
        assert_eq!(shutdown.stage(), Stage::GoingAway, "there is no way back");
        shutdown.enter(Stage::Flush);
        shutdown.count(1);
        assert_eq!(shutdown.counted(Stage::GoingAway), 7);
        assert_eq!(shutdown.counted(Stage::Flush), 1);
        // A stage that was skipped counts as reached, or its waiters would wait for ever.
        shutdown.reached(Stage::RefuseWork).await;
    }

    #[test]
    fn stages_stand_in_their_order() {
        assert!(Stage::ALL.is_sorted());
        assert!(Stage::ALL.iter().enumerate().all(|(at, stage)| *stage as usize == at));
    }

    /// Goal: the two-signal behaviour of a real process. This test binary starts itself again, running only `child`.
    #[test]
    fn one_signal_begins_and_a_second_exits_at_once() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process::shutdown::tests::child", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut wait_for = |wanted: &str| {
            let found = lines.by_ref().any(|line| line.unwrap().contains(wanted));
            assert!(found, "the child never said {wanted:?}");
        };
        wait_for("child listens");
        kill_process(pid, Signal::TERM).unwrap();
        wait_for("child was asked");
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }

    #[tokio::test]
    #[ignore = "only run by the test above, in a process of its own"]
    async fn child() {
        let shutdown = Shutdown::new();
        // A shutdown by other means must not make the first signal the last.
        shutdown.begin("the test");
        shutdown.listen().unwrap();
        println!("child listens");
        tokio::signal::unix::signal(SignalKind::terminate()).unwrap().recv().await;
        println!("child was asked");
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    }
}
