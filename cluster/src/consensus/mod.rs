//! Raft around the replicated state. Nothing outside sees it: a node holds a `ControlPlane`.
pub mod bootstrap;
pub mod voters;
