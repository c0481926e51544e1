//! A node among others: what it decides with them (Raft, on a thread of its own, with SWIM beside it), and what gateways and
//! other nodes say to it.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use chappe_cluster::{
    control::{self, ControlPlane},
    link::{
        quic::{Endpoint, Hello, Role, Settings},
        remote::{
            Ways,
            control::{Answers, Control},
            door::Door,
        },
    },
    ownership::{ClusterGeneration, Command},
    process::{
        files,
        health::Health,
        operator::{self, Decided, Desk},
    },
    swim::{self, Change, Swim},
};
use chappe_node::{
    member::{Candidate, Enter, Member},
    node,
    peers::Neighbours,
    store::cql::Cql,
};
use chappe_schema::id::{NodeUid, SessionId};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Config, VERSION, alone};

/// Between two looks whether partitions have moved away.
const LOOK: Duration = Duration::from_millis(100);

/// Partitions that do not move for so long have nowhere to go: nobody decides, or the others leave too.
const STALLED: Duration = Duration::from_secs(10);

/// A node in its cluster, with all its ways.
pub(super) struct Clustered {
    member: Member,
    neighbours: Beside,
    data: Arc<Endpoint>,
    /// What reports on it.
    _reports: JoinSet<()>,
}

/// What runs beside Raft.
#[derive(Clone)]
struct Beside {
    swim: Swim,
    control: Arc<Endpoint>,
}

impl Clustered {
    /// Finds the cluster of this store among its neighbours, or begins it, and takes part.
    pub(super) async fn begin(
        config: &Config,
        cql: Cql,
        force: Option<ClusterGeneration>,
        refused: Arc<dyn Fn(String) + Send + Sync>,
        health: &Health,
    ) -> anyhow::Result<Self> {
        let network = &config.cluster;
        let (listens, is_at) = network.listens().zip(network.is_at()).context("cluster.listen is not set")?;
        alone::check_directory(&config.server.data_dir)?;
        files::make_private(&config.server.data_dir)
            .with_context(|| format!("cannot create the data directory {}", config.server.data_dir.display()))?;

        // What decides, on a thread of its own.
        let incarnation = node::wall_clock();
        let ordinal = config.member.ordinal;
        let (answers, swim, bound) =
            (Arc::new(Answers::default()), Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let begin = {
            let (network, answers) = (network.clone(), Arc::clone(&answers));
            let (swim, bound) = (Arc::clone(&swim), Arc::clone(&bound));
            move |uid: NodeUid| {
                let identity = network.identity(Role::Node, uid.0).map_err(io::Error::other)?;
                let hello = hello(uid, incarnation, ordinal);
                let endpoint = Endpoint::bind(listens.control, identity, hello, Settings::default(), answers)?;
                let endpoint = Arc::new(endpoint);
                drop(bound.set(Arc::clone(&endpoint)));
                Ok(Arc::new(Control::new(endpoint, swim)) as _)
            }
        };
        let (data_dir, membership, pace) = (&config.server.data_dir, config.member.clone(), network.pace.pace());
        let candidate = Candidate::open(data_dir, membership, pace, begin).await?;
        let plane = candidate.plane().clone();
        answers.begin(plane.clone());
        let uid = plane.node();
        let me = swim::Me { uid: uid.0, role: swim::peer::Role::Node, ordinal, link: is_at.control };
        let started = candidate.runtime().spawn(Swim::start(network.swim(me)?));
        let started = started.await.context("Raft's thread ended")??;
        drop(swim.set(started.clone()));
        let told = plane.clone();
        started.watch(Box::new(move |change| match change {
            Change::Up(peer) => peer.node().into_iter().for_each(|node| told.health(node, control::Health::Up)),
            Change::Down(peer) => peer.node().into_iter().for_each(|node| told.health(node, control::Health::Down)),
            Change::Renewed(_) => {}
        }));
        let beside = Beside { swim: started, control: bound.get().context("nothing runs beside Raft")?.clone() };

        // What is said.
        let (door, identity) = (Arc::new(Door::default()), network.identity(Role::Node, uid.0)?);
        let hello = hello(uid, incarnation, config.member.ordinal);
        let data = Endpoint::bind(listens.data, identity, hello, Settings::default(), Arc::clone(&door) as _)
            .with_context(|| format!("cluster.listen: {} cannot be used", listens.data))?;
        let data = Arc::new(data);
        let neighbours = Neighbours::follow(Ways::new(Arc::clone(&data)), Arc::new(plane));
        let enter = Enter {
            config: config.node.clone(),
            addr: is_at.data,
            shared: Arc::new(cql.clone()),
            meta: Arc::new(cql),
            force,
            peers: Arc::clone(&neighbours) as _,
            clock: Arc::new(node::wall_clock),
            refused,
        };
        let member = candidate.enter(enter).await?;
        let cluster = member.group().cluster;
        for endpoint in [&data, &beside.control] {
            endpoint.know_cluster(cluster.0);
        }
        beside.swim.know_cluster(cluster);
        neighbours.are_of(member.node());
        door.open(Arc::clone(member.node()) as _, neighbours);
        let reports = member.report(health);
        Ok(Self { member, neighbours: beside, data, _reports: reports })
    }

    /// Its number.
    pub(super) fn uid(&self) -> NodeUid {
        self.member.plane().node()
    }

    /// Operators see the cluster from now on.
    pub(super) fn show(&self, desk: &Desk) {
        desk.open(self.member.plane().clone(), Arc::new(self.neighbours.swim.clone()));
    }

    /// Resolves, with the reason, when the process must end.
    pub(super) async fn failed(&self) -> String {
        self.member.failed().await
    }

    /// The session that this node lives, with what it owns, where there is another one that could own it.
    fn burden(&self) -> Option<(SessionId, usize)> {
        let (plane, map) = (self.member.plane(), self.member.plane().map());
        let session = map.session_of(plane.node())?;
        let others = map.sessions().any(|(other, found)| other != session && !found.drain && found.weight > 0);
        others.then(|| (session, map.owned_by(session).count()))
    }

    /// Gives everything away, in peace, for as long as that is allowed to take.
    pub(super) async fn empty(&self, longest: Duration) {
        let begin = Instant::now();
        let (mut said, mut least, mut moved_at) = (false, usize::MAX, begin);
        while let Some((session, owned)) = self.burden().filter(|(_, owned)| *owned > 0) {
            // While another one drains, this one waits for its turn.
            if owned < least || self.member.plane().map().draining().is_some_and(|draining| draining != session) {
                (least, moved_at) = (owned.min(least), Instant::now());
            }
            if begin.elapsed() >= longest || moved_at.elapsed() >= STALLED {
                tracing::warn!(event = "drain_given_up", owned, "what is left is taken over when this node is gone");
                return;
            }
            let drains = self.member.plane().map().session(session).is_some_and(|session| session.drain);
            if !drains
                && let Decided::Done =
                    operator::propose(self.member.plane(), Command::SetDrain { session, slot: true }).await
                && !std::mem::replace(&mut said, true)
            {
                tracing::info!(event = "drain_begun", owned, "this node's partitions move to the others");
            }
            sleep(LOOK).await;
        }
        tracing::info!(event = "drain_done", after_ms = begin.elapsed().as_millis() as u64);
    }

    /// Ends its part.
    pub(super) async fn stop(self) {
        let Self { member, neighbours, data, _reports: reports } = self;
        drop(reports);
        member.node().stop().await;
        data.close().await;
        // Said while Raft's thread still lives.
        neighbours.swim.leave().await;
        neighbours.control.close().await;
        member.stop().await;
    }
}

fn hello(uid: NodeUid, incarnation: u64, ordinal: u32) -> Hello {
    Hello {
        role: Role::Node,
        uid: uid.0,
        incarnation,
        cluster: 0,
        protocol_min: VERSION.protocol_min as u16,
        protocol_max: VERSION.protocol_max as u16,
        name: format!("node {ordinal}"),
    }
}
