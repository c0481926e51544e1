//! System calls of a running process, delayed, failed or written down by strace. Needs strace, and the right to trace.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long attaching and detaching may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What strace calls syncs of a file.
pub const SYNCS: &str = "fdatasync,fsync";

/// A strace that is attached to a process. It detaches with the value; the process goes on.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    log: PathBuf,
}

/// One system call, as strace saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The thread.
    pub tid: u32,
    /// When it was entered, in seconds since 1970.
    pub at: f64,
    /// How it was written down.
    pub text: String,
}

impl Trace {
    /// Attaches to all threads of a process. `calls` and `injection` are as in `strace -e inject=CALLS:INJECTION`, for
    /// example `fdatasync` and `delay_enter=200000` (microseconds) or `error=EIO`. What it sees goes to `log`.
    pub fn inject(pid: u32, calls: &str, injection: &str, log: &Path) -> io::Result<Self> {
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-ttt",
            "-e",
            &format!("trace={calls}"),
            "-e",
            &format!("inject={calls}:{injection}"),
        ]);
        command.arg("-o").arg(log).args(["-p", &pid.to_string()]);
        let strace = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let mut trace = Self { strace, log: log.to_owned() };
        let until = Instant::now() + PATIENCE;
        while !traced(pid)? {
            if let Some(status) = trace.strace.try_wait()? {
                if status.success() {
                    // The process has ended under it already: what was injected came quickly.
                    return Ok(trace);
                }
                return Err(io::Error::other(format!("strace ended with {status}")));
            }
            if Instant::now() >= until {
                return Err(io::Error::other("strace does not attach"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(trace)
    }

    /// What it has seen so far.
    pub fn calls(&self) -> io::Result<Vec<Call>> {
        Ok(fs::read_to_string(&self.log)?.lines().filter_map(Call::parse).collect())
    }

    /// Detaches; the process goes on undisturbed.
    pub fn detach(mut self) -> io::Result<Vec<Call>> {
        self.end();
        self.calls()
    }

    fn end(&mut self) {
        if let Ok(Some(_)) = self.strace.try_wait() {
            return;
        }
        // On SIGINT it lets its tracees go properly. If it does not, the kernel does when it is gone.
        if let Some(pid) = Pid::from_raw(self.strace.id() as i32) {
            let _ = kill_process(pid, Signal::INT);
        }
        let until = Instant::now() + PATIENCE;
        while let Ok(None) = self.strace.try_wait() {
            if Instant::now() >= until {
                let _ = self.strace.kill();
                let _ = self.strace.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.end();
    }
}

impl Call {
    /// Reads a line of `strace -f -ttt -o`: thread, time, text.
    fn parse(line: &str) -> Option<Self> {
        let (tid, rest) = line.trim_start().split_once(' ')?;
        let (at, text) = rest.trim_start().split_once(' ')?;
        Some(Self { tid: tid.parse().ok()?, at: at.parse().ok()?, text: text.to_owned() })
    }
}

/// Whether strace is there; if not, what is to be said.
pub fn available() -> Result<(), String> {
    let asked = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match asked {
        Ok(status) if status.success() => Ok(()),
        _ => Err("strace is not installed".to_owned()),
    }
}

/// Whether every thread of a process has a tracer.
fn traced(pid: u32) -> io::Result<bool> {
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        // It has ended; strace says so too, in a moment.
        Err(_) => return Ok(false),
    };
    for task in tasks {
        let status = match fs::read_to_string(task?.path().join("status")) {
            Ok(status) => status,
            // A thread that has ended meanwhile.
            Err(_) => continue,
        };
        if status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() == "0")) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_strace_is_read() {
        let call = Call::parse("4711  1700000000.123456 fdatasync(9) = 0 (DELAYED)");
        let text = "fdatasync(9) = 0 (DELAYED)".to_owned();
        assert_eq!(call, Some(Call { tid: 4711, at: 1_700_000_000.123456, text }));
        assert_eq!(Call::parse("garbage"), None);
    }
}
