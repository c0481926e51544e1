//! The standard `process_*` metrics, read from `/proc` at each scrape.
//!
//! They are written as text beside the recorder's: `process_cpu_seconds_total` is a counter with a fraction, which
//! the recorder's integer counters cannot hold.

use std::fmt::Write as _;
use std::fs;

use super::files;
use super::metrics::{
    self, PROCESS_CPU_SECONDS_TOTAL, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT_MEMORY_BYTES,
    PROCESS_START_TIME_SECONDS,
};

/// What the kernel says about this process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vitals {
    /// Memory in RAM.
    pub resident_memory_bytes: u64,
    /// User and system time since the start.
    pub cpu_seconds: f64,
    /// File descriptors in use.
    pub open_fds: u64,
    /// File descriptors allowed; see [`files`].
    pub max_fds: u64,
    /// When the process began, in seconds since 1970.
    pub start_time_seconds: f64,
}

impl Vitals {
    /// Reads them; `None` where there is no `/proc`.
    pub fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        // Reading the directory opens one descriptor more.
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let stat = Stat::parse(&stat)?;
        Some(Self {
            resident_memory_bytes: stat.resident_pages * rustix::param::page_size() as u64,
            cpu_seconds: stat.cpu_ticks as f64 / ticks,
            open_fds,
            max_fds: files::limit(),
            start_time_seconds: boot_time(&boot)? + stat.start_ticks as f64 / ticks,
        })
    }

    /// Appends them in Prometheus' text format.
    pub fn render(&self, text: &mut String) {
        let samples = [
            (PROCESS_RESIDENT_MEMORY_BYTES, self.resident_memory_bytes.to_string()),
            (PROCESS_CPU_SECONDS_TOTAL, self.cpu_seconds.to_string()),
            (PROCESS_OPEN_FDS, self.open_fds.to_string()),
            (PROCESS_MAX_FDS, self.max_fds.to_string()),
            (PROCESS_START_TIME_SECONDS, self.start_time_seconds.to_string()),
        ];
        for (name, value) in samples {
            if let Some(metric) = metrics::find(name) {
                metric.render_head(text);
            }
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} {value}\n");
        }
    }
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and it may hold spaces and parentheses of its own.
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from one and includes the two fields before the cut.
        let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
        Some(Self { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)?, resident_pages: field(24)? })
    }
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line =
            "42 (a) (b c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 8 0 12345 1000000 678 18446744073709551615";
        let expected = Stat { cpu_ticks: 300, start_ticks: 12345, resident_pages: 678 };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("42 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_plausible_vitals() {
        let vitals = Vitals::read().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(vitals.resident_memory_bytes > 1 << 20, "{vitals:?}");
        assert!(vitals.open_fds >= 3 && vitals.open_fds <= vitals.max_fds, "{vitals:?}");
        assert!((0.0..86_400.0).contains(&(now - vitals.start_time_seconds)), "{vitals:?}, now {now}");
        assert!(vitals.cpu_seconds >= 0.0, "{vitals:?}");
    }
}
