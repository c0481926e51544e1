//! The weather: faults that a server must survive, made on one Linux machine, most of them as root.
//!
//! - [`disk`] — a disk that knows what was synced and what was only written; pure, in memory.
//! - [`power`] — that disk as a FUSE file system, whose power can be cut.
//! - [`volume`] — a small real file system (tmpfs) that can be filled.
//! - [`trace`] — system calls of a running process, delayed or failed by strace.
//! - [`hunger`] — a process with a tenth of a CPU, or without another file.
//! - [`clock`] — a process's wall clock, which jumps.
//! - [`fault`] — all of it by name, with what undoes it; [`stage`] — what it happens to; [`run`] — the command `weather`.
//! - [`network`] — a network of namespaces, whose ways can be cut.
//! - [`relay`] — a CQL server's port in such a network.
//! - [`dice`] — seeded chance: every run prints the seed that repeats it.
//!
//! Signals (SIGKILL, SIGSTOP) are sent by [`Server`](crate::server::Server) itself.

pub mod clock;
pub mod dice;
pub mod disk;
pub mod fault;
pub mod hunger;
pub mod network;
pub mod power;
pub mod relay;
pub mod run;
pub mod stage;
pub mod trace;
pub mod volume;

/// What decides about faults that cannot be made on this machine: the test fails with a sentence, or, with 0, is left out.
pub const STRICT: &str = "CHAPPE_TEST_STRICT";

/// Whether a fault can be made here. Where it cannot, a test that needs it is left out, if that is allowed.
///
/// # Errors
/// With the reason, when it is not.
pub fn can(available: Result<(), String>) -> Result<bool, String> {
    match available {
        Ok(()) => Ok(true),
        Err(why) if std::env::var(STRICT).is_ok_and(|strict| strict == "0") => {
            println!("SKIPPED: {why}");
            Ok(false)
        }
        Err(why) => Err(format!("not possible here: {why} ({STRICT}=0 leaves such tests out)")),
    }
}
