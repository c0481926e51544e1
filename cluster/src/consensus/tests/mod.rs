//! Raft's storage against openraft's own suite; real voters in one process, crashed, paused and cut off.

mod storage;
mod voters;
