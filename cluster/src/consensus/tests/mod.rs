//! Raft's storage against openraft's own suite; real voters in one process, crashed, paused and cut off.

mod beginning;
mod folder;
mod storage;
mod voters;
mod wire;
