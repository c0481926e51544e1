//! Appends and syncs, and nothing else: what the disk can do for messages of this size.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

/// What the disk did with one group size.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Appended {
    /// Records appended before each fdatasync.
    pub group: usize,
    /// Records per second.
    pub records_per_s: f64,
    /// CPU microseconds per record.
    pub cpu_us_per_record: f64,
}

/// Appends groups of records to a new file in `folder` for a while, each group with one write and one fdatasync.
pub fn run(folder: &Path, group: usize, record_bytes: usize, time: Duration) -> io::Result<Appended> {
    let file = tempfile::Builder::new().prefix("raw-append-").tempfile_in(folder)?;
    let mut log: &File = file.as_file();
    let bytes = vec![b'x'; group * record_bytes];
    let meter = crate::process::Meter::of_self()?;
    let began = Instant::now();
    let mut groups = 0u64;
    while began.elapsed() < time {
        log.write_all(&bytes)?;
        log.sync_data()?;
        groups += 1;
    }
    let records = groups as f64 * group as f64;
    let cpu = meter.cpu()?.as_secs_f64();
    Ok(Appended {
        group,
        records_per_s: records / began.elapsed().as_secs_f64(),
        cpu_us_per_record: cpu * 1e6 / records.max(1.0),
    })
}
