//! Raft's messages over a [`Transport`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chappe_schema::id::NodeUid;
use openraft::{
    RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
        VoteResponse,
    },
};
use tokio::time::Instant;

use super::{
    bootstrap::Group,
    transport::{Transport, Unasked},
    types::Types,
    voters::Seat,
    wire::{Ask, Reply, Request, Say},
};

/// A voter's way to the others of its group.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) group: Group,
    pub(super) transport: Arc<dyn Transport>,
    /// Whether this node leads, and no majority has answered for some time.
    pub(super) deaf: Arc<AtomicBool>,
    /// How long others must hear nothing from a leader to elect another one.
    pub(super) silence: Duration,
}

/// The way to one of them.
pub(super) struct Peer {
    network: Network,
    target: NodeUid,
    /// When it was told something as by its leader.
    led: Option<Instant>,
}

/// Raft sends again at once what failed. A failure that takes no time would have it do nothing else.
const FAILURE_MS: u64 = 25;

type Failed<E> = RPCError<u64, Seat, RaftError<u64, E>>;

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &Seat) -> Peer {
        Peer { network: self.clone(), target: NodeUid(target), led: None }
    }
}

impl Peer {
    /// Whether to fall silent. A leader whose words arrive, and who hears no answer, decides nothing and keeps the others from
    /// electing one who does. It must be heard so seldom that they can; and now and then, to find out whether it hears again.
    fn is_to_be_silent(&mut self) -> bool {
        let deaf = self.network.deaf.load(Ordering::Relaxed);
        if deaf && self.led.is_some_and(|led| led.elapsed() < self.network.silence) {
            return true;
        }
        self.led = Some(Instant::now());
        false
    }

    async fn ask(&self, ask: Ask) -> Result<Say, NetworkError> {
        let request = Request { group: Some(self.network.group), ask };
        match self.network.transport.ask(self.target, request).await {
            Ok(Reply(say)) if !matches!(say, Say::Elsewhere) => Ok(say),
            other => {
                tokio::time::sleep(Duration::from_millis(FAILURE_MS)).await;
                let why = other.err().unwrap_or(Unasked::Unreachable);
                Err(NetworkError::new(&why))
            }
        }
    }
}

/// An answer to another question: a bug of the one asked.
fn astray<E: std::error::Error>() -> Failed<E> {
    RPCError::Network(NetworkError::new(&Unasked::Lost))
}

// Never `Unreachable`: Raft would wait half a second before it tries a node again that is back long since.
impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, Seat, RaftError<u64>>> {
        if self.is_to_be_silent() {
            tokio::time::sleep(Duration::from_millis(FAILURE_MS)).await;
            return Err(NetworkError::new(&Unasked::Unreachable).into());
        }
        match self.ask(Ask::Append(request)).await? {
            Say::Append(response) => Ok(response),
            _ => Err(astray()),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        match self.ask(Ask::Snapshot(request)).await? {
            Say::Snapshot(response) => Ok(response),
            _ => Err(astray()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, Seat, RaftError<u64>>> {
        match self.ask(Ask::Vote(request)).await? {
            Say::Vote(response) => Ok(response),
            _ => Err(astray()),
        }
    }
}
