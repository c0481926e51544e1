//! Who is here: membership by gossip, after SWIM. It only *suspects*: what it says of a node is a hint to whoever leads, who hears
//! keepalives as well, and Raft decides. Nodes and gateways take part alike. foca, which is the protocol, lives in this room only.
//!
//! In reading order:
//!
//! - [`peer`]: who takes part
//! - [`rhythm`]: how fast it beats, and why
//! - `core`: foca, and what it leaves to its user: no socket, no clock, no chance of its own
//! - `codec`: the bytes of what members tell each other
//! - [`seal`]: the key without which nobody is heard; nonces and replays
//! - `drive`: the loop that has the socket
//! - `roll`: who is here, for the rest of the process
//!
//! and beside them `timers`, `random`, `meter`. `simulation`, in tests, puts fifty of them into one clock.
//!
//! ```no_run
//! # async fn example(keys: chappe_cluster::swim::seal::Keys, link: std::net::SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
//! use chappe_cluster::{consensus::pace::Pace, swim::{Change, Config, Me, Role, Swim}};
//!
//! let swim = Swim::start(Config {
//!     listen: "0.0.0.0:7946".parse()?,
//!     advertise: Some("10.1.2.3:7946".parse()?),
//!     seeds: vec!["chappe-node.chat.svc:7946".to_owned()],   // as many addresses as there are pods
//!     me: Me { uid: rand::random(), role: Role::Gateway, ordinal: 0, link },
//!     keys,
//!     rhythm: Pace::PROMPT.swim,
//! }).await?;
//! swim.watch(Box::new(|change| if let Change::Down(peer) = change { println!("{} is gone", peer.uid) }));
//! # Ok(()) }
//! ```

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    net::UdpSocket,
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{
    core::Core,
    drive::{Driver, Order},
    peer::ANYBODY,
    rhythm::Rhythm,
    roll::Roll,
    seal::{Keys, Opener, Sealer},
};
use crate::ownership::ClusterId;

pub use self::peer::{Peer, Role};

mod codec;
mod core;
mod drive;
mod meter;
pub mod peer;
mod random;
pub mod rhythm;
mod roll;
pub mod seal;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod timers;

/// What a process brings to take part.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to hear others (UDP). Port 0 is any.
    pub listen: SocketAddr,
    /// Where others reach it; `listen`, if that says so. Port 0 is the one that is listened on.
    pub advertise: Option<SocketAddr>,
    /// Members to begin with, as `host:port`. A name may stand for many. All of them are announced to again and again, for as long as
    /// the process lives. Its own address among them does no harm.
    pub seeds: Vec<String>,
    /// What it says of itself.
    pub me: Me,
    /// The cluster's keys.
    pub keys: Keys,
    /// How fast it beats: the same at all members.
    pub rhythm: Rhythm,
}

/// What a process says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// A node's uid; a random number of a gateway's own.
    pub uid: u64,
    /// What it is.
    pub role: Role,
    /// A node's number in its set.
    pub ordinal: u32,
    /// Where it takes connections of nodes and gateways.
    pub link: SocketAddr,
}

/// Why a process cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system does not give it the socket.
    #[error("cannot listen on {addr} (UDP) for other members")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Others would not know where it is.
    #[error("it listens on {0}, which says nothing of where others reach it: name an address to advertise")]
    Unreachable(SocketAddr),
    /// It has no name.
    #[error("the uid 0 stands for anybody")]
    Nameless,
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is here. Said again when it is known in another incarnation, and perhaps at another address.
    Up(Peer),
    /// It does not answer, and has not contradicted in time; or it has said goodbye.
    Down(Peer),
    /// This process was held for down, or for a former life of itself, and is known by a higher incarnation now.
    Renewed(Peer),
}

/// Called with every change, in order. It only hands it on.
pub type Watcher = Box<dyn Fn(&Change) + Send + Sync>;

/// A process' part in membership. Clones are the same; when the last one is dropped it ends, without a goodbye.
#[derive(Clone)]
pub struct Swim {
    roll: Arc<Roll>,
    cluster: Arc<OnceLock<u128>>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Swim {
    /// Takes part, on the runtime of whoever calls: Raft's own, so that load does not fake a death.
    ///
    /// # Errors
    /// When there is no socket, or no address that others reach it at.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config { listen, advertise, seeds, me, keys, rhythm } = config;
        if me.uid == ANYBODY {
            return Err(StartError::Nameless);
        }
        let failed = |source| StartError::Listen { addr: listen, source };
        let socket = UdpSocket::bind(listen).await.map_err(failed)?;
        let bound = socket.local_addr().map_err(failed)?;
        let mut addr = advertise.unwrap_or(bound);
        if addr.port() == 0 {
            addr.set_port(bound.port());
        }
        if addr.ip().is_unspecified() {
            return Err(StartError::Unreachable(listen));
        }
        let Me { uid, role, ordinal, link } = me;
        let me = Peer { uid, incarnation: incarnation(), role, ordinal, addr, link };
        let (orders, received) = mpsc::unbounded_channel();
        let (roll, cluster) = (Arc::new(Roll::new(me)), Arc::default());
        tracing::info!(event = "membership_begins", member = %me, seeds = seeds.len());
        let driver = Driver {
            socket,
            core: Core::new(me, rhythm, rand::random(), 0),
            sealer: Sealer::new(&keys, rand::random()),
            opener: Opener::new(keys),
            roll: Arc::clone(&roll),
            cluster: Arc::clone(&cluster),
            seeds: seeds.into_iter().map(Into::into).collect(),
            orders: received,
            began: Instant::now(),
        };
        tokio::spawn(drive::drive(driver));
        Ok(Self { roll, cluster, orders })
    }

    /// This process, as others are to know it now.
    #[must_use]
    pub fn me(&self) -> Peer {
        self.roll.me()
    }

    /// Whoever is up, by uid, this process left out.
    #[must_use]
    pub fn members(&self) -> Vec<Peer> {
        self.roll.up()
    }

    /// A member, if it is up.
    #[must_use]
    pub fn find(&self, uid: u64) -> Option<Peer> {
        self.roll.find(uid)
    }

    /// Whoever is known to be down, for fifteen minutes: 1,024 at most.
    #[must_use]
    pub fn down(&self) -> Vec<Peer> {
        self.roll.down()
    }

    /// Calls `watcher` with what is known, and then with every change, in order, on membership's own thread. It must not block.
    pub fn watch(&self, watcher: Watcher) {
        self.roll.watch(watcher);
    }

    /// The cluster that this process is part of. From now on another one's datagrams are refused, though they have the same key.
    pub fn know_cluster(&self, cluster: ClusterId) {
        // It is known once, and stays.
        let _ = self.cluster.set(cluster.0);
    }

    /// Takes other keys from now on.
    pub fn replace_keys(&self, keys: Keys) {
        // The loop has ended: nothing is sealed any more.
        let _ = self.orders.send(Order::Keys(keys));
    }

    /// Says goodbye, and ends: others hear `Down` at once instead of suspecting. It takes a fifth of a second.
    pub async fn leave(&self) {
        let (left, done) = oneshot::channel();
        if self.orders.send(Order::Leave(left)).is_ok() {
            // If the loop ended in between, that is what was asked for.
            let _ = done.await;
        }
    }
}

/// A life's first: above those of former lives, unless the clock went back; then it hears of it.
fn incarnation() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Node => "node",
            Role::Gateway => "gateway",
        };
        write!(f, "{role} {:016x} at {} ({})", self.uid, self.addr, self.incarnation)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(peer) => write!(f, "up: {peer}"),
            Self::Down(peer) => write!(f, "down: {peer}"),
            Self::Renewed(peer) => write!(f, "renewed: {peer}"),
        }
    }
}
