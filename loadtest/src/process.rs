//! What a process costs: CPU time and memory, as the kernel counts them.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The kernel's unit of time in `/proc/PID/stat`, fixed for user space on every architecture.
const TICK: Duration = Duration::from_millis(10);
/// Sums of the threads' own counters are finer; they miss threads that have ended, and then the coarse one is right.
const FINE_IS_TRUSTED: Duration = Duration::from_millis(100);

/// CPU time a process has used so far.
pub fn cpu(pid: u32) -> io::Result<Duration> {
    let coarse = coarse_cpu(pid)?;
    Ok(match fine_cpu(pid) {
        Ok(fine) if fine.abs_diff(coarse) < FINE_IS_TRUSTED => fine,
        _ => coarse,
    })
}

fn coarse_cpu(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(TICK * ticks as u32)
}

fn fine_cpu(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += stat.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// Memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident bytes.
    pub rss: u64,
    /// Resident bytes, shared pages divided among those who share them.
    pub pss: u64,
}

/// The memory of a process now.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let bytes = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    Ok(Memory { rss: bytes("Rss:"), pss: bytes("Pss:") })
}

/// Resident bytes of a process now; cheaper than [`memory`], which walks through all of it.
pub fn resident(pid: u32) -> io::Result<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    Ok(pages * rustix::param::page_size() as u64)
}

/// CPUs of this machine that we may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measures what a process uses from now on.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    pid: u32,
    began: Instant,
    cpu: Duration,
}

impl Meter {
    /// Begins to measure a process.
    pub fn start(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, began: Instant::now(), cpu: cpu(pid)? })
    }

    /// Begins to measure ourselves.
    pub fn of_self() -> io::Result<Self> {
        Self::start(std::process::id())
    }

    /// CPU time since the beginning.
    pub fn cpu(&self) -> io::Result<Duration> {
        Ok(cpu(self.pid)?.saturating_sub(self.cpu))
    }

    /// CPU time since the beginning, as a share of the whole machine's.
    pub fn share(&self) -> io::Result<f64> {
        Ok(self.cpu()?.as_secs_f64() / (self.began.elapsed().as_secs_f64() * cores() as f64).max(1e-9))
    }
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum;
    // Refused only where a sandbox forbids it; the soft limit holds then.
    match setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }) {
        Ok(()) => hard.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn our_own_cost_is_seen() {
        let meter = Meter::of_self().unwrap();
        let mut sum = 0u64;
        while meter.began.elapsed() < Duration::from_millis(60) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert!(meter.cpu().unwrap() > Duration::ZERO, "{sum}");
        assert!(memory(std::process::id()).unwrap().pss > 0);
    }
}
