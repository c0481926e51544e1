//! A process that gets a tenth of a CPU: it runs for 10 ms and stands still for 90, again and again. And one that may open no more files.

use std::{fs, io, sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::{task::JoinHandle, time::sleep};

const RUNS: Duration = Duration::from_millis(10);
const STANDS: Duration = Duration::from_millis(90);

fn pid(pid: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(pid as i32).context("there is no such process")
}

/// A hungry process. It goes on when this is dropped.
#[derive(Debug)]
pub struct Hunger {
    pid: Pid,
    task: JoinHandle<()>,
    /// Held while it is stopped or let go, so that nobody stops it after it was let go for good.
    over: Arc<Mutex<bool>>,
}

impl Hunger {
    /// From now on it is hungry.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(process: u32) -> anyhow::Result<Self> {
        let pid = pid(process)?;
        let over = Arc::new(Mutex::new(false));
        let is_over = Arc::clone(&over);
        let task = tokio::spawn(async move {
            let stop = || {
                let over = is_over.lock();
                !*over && kill_process(pid, Signal::STOP).is_ok()
            };
            // Until it has ended, or is fed.
            while stop() {
                sleep(STANDS).await;
                if kill_process(pid, Signal::CONT).is_err() {
                    break;
                }
                sleep(RUNS).await;
            }
        });
        Ok(Self { pid, task, over })
    }
}

impl Drop for Hunger {
    fn drop(&mut self) {
        let mut over = self.over.lock();
        *over = true;
        if !self.task.is_finished() {
            self.task.abort();
            let _ = kill_process(self.pid, Signal::CONT);
        }
    }
}

/// Processes that stand still. They go on when this is dropped.
#[derive(Debug, Default)]
pub struct Stopped(Vec<Pid>);

impl Stopped {
    /// From now on all of these stand still.
    ///
    /// # Errors
    /// When one of them is not there; then none of them does.
    pub fn all(processes: impl IntoIterator<Item = u32>) -> anyhow::Result<Self> {
        let mut stopped = Self::default();
        for process in processes {
            let pid = pid(process)?;
            kill_process(pid, Signal::STOP)?;
            stopped.0.push(pid);
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

/// A process that may open no more files. It may again when this is dropped.
#[derive(Debug)]
pub struct NoFiles {
    pid: Pid,
    before: Rlimit,
}

impl NoFiles {
    /// From now on it may open none beyond those that it has.
    ///
    /// # Errors
    /// When there is no such process, or it is not ours.
    pub fn of(process: u32) -> anyhow::Result<Self> {
        let highest = highest_file(process)?;
        let pid = pid(process)?;
        let known = prlimit_of(process)?;
        let before =
            prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(highest + 1), maximum: known.maximum })?;
        Ok(Self { pid, before })
    }
}

impl Drop for NoFiles {
    fn drop(&mut self) {
        // It may have ended over it.
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

/// A new file would get the lowest free number: below the highest there may still be some.
fn highest_file(process: u32) -> io::Result<u64> {
    let mut highest = 0;
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        highest = highest.max(entry?.file_name().to_string_lossy().parse().unwrap_or(0));
    }
    Ok(highest)
}

fn prlimit_of(process: u32) -> anyhow::Result<Rlimit> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit of files is known")?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    Ok(Rlimit { current: numbers.next(), maximum: numbers.next() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::process::cpu;

    /// A process that works as long as nobody ends it.
    struct Busy(Child);

    impl Busy {
        fn start() -> Self {
            Self(Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap())
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn a_hungry_process_works_little_and_goes_on() {
        let busy = Busy::start();
        let used = async |time| {
            let before = cpu(busy.0.id()).unwrap();
            sleep(Duration::from_millis(time)).await;
            cpu(busy.0.id()).unwrap().saturating_sub(before)
        };
        let hunger = Hunger::of(busy.0.id()).unwrap();
        let hungry = used(1_000).await;
        assert!(hungry < Duration::from_millis(500), "{hungry:?}");
        drop(hunger);
        // On a busy machine it may get little, and all the same it runs.
        let mut fed = Duration::ZERO;
        for _ in 0..100 {
            fed += used(100).await;
            if fed > Duration::from_millis(100) {
                return;
            }
        }
        panic!("it does not go on: {fed:?}");
    }

    #[test]
    fn who_may_open_nothing_may_again() {
        let busy = Busy::start();
        let limit = || prlimit_of(busy.0.id()).unwrap();
        let before = limit();
        let none = NoFiles::of(busy.0.id()).unwrap();
        assert!(limit().current < before.current && limit().maximum == before.maximum, "{:?}", limit().current);
        drop(none);
        assert_eq!(limit().current, before.current);
    }
}
