//! Who takes part.

use std::net::SocketAddr;

use chappe_schema::id::NodeUid;

/// What a process is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It owns conversations.
    Node,
    /// It terminates clients, and owns nothing.
    Gateway,
}

/// A process that takes part. Two are equal when they are the same incarnation of the same one, wherever it can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// A node's uid, which it has for as long as its disk; a gateway's random number, which it has for one life. Never 0.
    pub uid: u64,
    /// The wall clock's milliseconds when the process started, raised above whatever it hears of itself. Of two that are heard
    /// of, the higher one is how things stand. It also grows within a life, when the process was held for down.
    pub incarnation: u64,
    /// What it is.
    pub role: Role,
    /// A node's number in its set.
    pub ordinal: u32,
    /// Where it hears of membership (UDP).
    pub addr: SocketAddr,
    /// Where it takes connections of nodes and gateways.
    pub link: SocketAddr,
}

/// Stands for whoever listens at an address: all that is known of a seed.
pub(super) const ANYBODY: u64 = 0;

impl Peer {
    /// Which node it is; none for a gateway.
    #[must_use]
    pub fn node(&self) -> Option<NodeUid> {
        (self.role == Role::Node).then_some(NodeUid(self.uid))
    }

    /// Whoever listens there.
    pub(super) fn anybody(addr: SocketAddr) -> Self {
        Self { addr, link: addr, ..Self::named(ANYBODY, 0) }
    }

    /// No more than a name: whom a message is for.
    pub(super) fn named(uid: u64, incarnation: u64) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self { uid, incarnation, role: Role::Node, ordinal: 0, addr: nowhere, link: nowhere }
    }

    /// The same one above whatever was heard of it.
    pub(super) fn above(self, incarnation: u64) -> Self {
        Self { incarnation: incarnation.max(self.incarnation).saturating_add(1), ..self }
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        (self.uid, self.incarnation) == (other.uid, other.incarnation)
    }
}

impl Eq for Peer {}

impl foca::Identity for Peer {
    /// Not its socket's: in Kubernetes a process comes back at another one.
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        Some(self.above(0))
    }

    fn addr(&self) -> u64 {
        self.uid
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.incarnation > other.incarnation
    }
}
