//! The weather: faults that a server must survive, made on one Linux machine, most of them as root.
//!
//! - [`disk`] — a disk that knows what was synced and what was only written; pure, in memory.
//! - [`power`] — that disk as a FUSE file system, whose power can be cut.
//! - [`volume`] — a small real file system (tmpfs) that can be filled.
//! - [`trace`] — system calls of a running process, delayed or failed by strace.
//! - [`dice`] — seeded chance: every run prints the seed that repeats it.
//!
//! Signals (SIGKILL, SIGSTOP) are sent by [`Server`](crate::server::Server) itself.

pub mod dice;
pub mod disk;
pub mod power;
pub mod trace;
pub mod volume;
