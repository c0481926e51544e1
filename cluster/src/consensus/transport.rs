//! How nodes ask each other: a question and an answer, at most once. Implemented in memory here, and by whatever carries
//! bytes between machines.
//!
//! What is asked is opaque: Raft's own messages, proposals, keepalives, and maps. A transport that carries bytes calls
//! [`Request::to_bytes`] and [`Request::from_bytes`]; both ends know each other by the certificate, so the sender's uid is certain.

use std::{future::Future, pin::Pin};

use chappe_schema::id::NodeUid;

pub use super::wire::{Reply, Request};

/// A node's way to the others.
pub trait Transport: Send + Sync + 'static {
    /// Asks a node. The question may arrive and be acted upon although no answer comes. The caller sets the deadline and
    /// drops the future at it; the node asked goes on nevertheless.
    fn ask(&self, to: NodeUid, request: Request) -> Pin<Box<dyn Future<Output = Result<Reply, Unasked>> + Send>>;

    /// The nodes that can probably be reached now, this one left out: what SWIM knows, or the seeds.
    fn peers(&self) -> Vec<NodeUid>;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The question certainly did not arrive.
    #[error("the node cannot be reached")]
    Unreachable,
    /// Nobody knows whether it did.
    #[error("the connection was lost before the answer came")]
    Lost,
}

/// The way of a node that has no others: a cluster of one.
pub struct Lone;

impl Transport for Lone {
    fn ask(&self, _: NodeUid, _: Request) -> Pin<Box<dyn Future<Output = Result<Reply, Unasked>> + Send>> {
        Box::pin(std::future::ready(Err(Unasked::Unreachable)))
    }

    fn peers(&self) -> Vec<NodeUid> {
        Vec::new()
    }
}
