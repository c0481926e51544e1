//! Several nodes of one cluster in one process: openraft with three voters on their disks, production shards, gateways with
//! WebSockets and the client library, over the memory link and one store that all nodes share. The oracle judges what the
//! clients saw.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use chappe_cluster::{
    consensus::{memory::Hub, observer::Observer, pace::Pace},
    control::{ControlPlane, Health},
    link::memory::{MapLinks, Nodes},
    ownership::{Command, Map, Move},
    process::health,
};
use chappe_gateway::{
    Config, Door, Gateway, Running, auth,
    limiter::{self, Local, Rate},
};
use chappe_node::{
    config,
    member::{Candidate, Enter, Error, Member, Membership},
    node::{Between, Node, Peers, wall_clock},
    store::quorum::{Replicas, Weather},
};
use chappe_schema::id::{ConversationId, EntityId, GatewayId, NodeUid, Partition, SessionId};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::crowd::{Crowd, PATIENCE, wait};

const MACHINES: usize = 3;
const GATEWAYS: usize = 2;

/// The three replicas, whose virtual time is the machine's for as long as this lives.
struct Store {
    replicas: Replicas,
    over: Arc<AtomicBool>,
    clock: Option<thread::JoinHandle<()>>,
}

impl Store {
    fn open() -> Self {
        let replicas = Replicas::new(5, Weather::default());
        let over = Arc::new(AtomicBool::new(false));
        let (world, ends) = (replicas.clone(), Arc::clone(&over));
        let began = Instant::now();
        let clock = thread::spawn(move || {
            while !ends.load(Relaxed) {
                let now = began.elapsed().as_micros() as u64;
                while world.next_at().is_some_and(|at| at <= now) {
                    world.step();
                }
                world.wait_until(now);
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self { replicas, over, clock: Some(clock) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        self.clock.take().unwrap().join().unwrap();
    }
}

/// The ways between nodes.
#[derive(Clone, Default)]
struct Street(Arc<Mutex<BTreeMap<NodeUid, Arc<Node>>>>);

/// One node's view of them: whoever its map says lives a session.
struct Doorstep<P> {
    street: Street,
    plane: P,
}

impl<P: ControlPlane> Peers for Doorstep<P> {
    fn send(&self, to: SessionId, word: Between) {
        let uid = self.plane.map().session(to).map(|session| session.node);
        let node = uid.and_then(|uid| self.street.0.lock().get(&uid).cloned());
        if let Some(node) = node {
            node.hear(word);
        }
    }
}

/// One process, as far as it can be one: a runtime of its own, which ends with all that runs on it.
struct Machine {
    runtime: Runtime,
    member: Member,
    uid: NodeUid,
}

struct Cluster {
    hub: Hub,
    nodes: Nodes,
    street: Street,
    dir: TempDir,
    machines: Vec<Option<Machine>>,
    gateways: Vec<(Running, Observer, TempDir)>,
    store: Store,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// Three nodes, all of which vote, and two gateways that see who owns what.
    async fn begin() -> Self {
        let mut cluster = Self {
            hub: Hub::new(3),
            nodes: Nodes::default(),
            street: Street::default(),
            dir: TempDir::new().unwrap(),
            machines: (0..MACHINES).map(|_| None).collect(),
            gateways: Vec::new(),
            store: Store::open(),
            refused: Arc::default(),
        };
        for ordinal in 0..MACHINES {
            cluster.start(ordinal).await;
        }
        wait("three voters, and every partition owned", || {
            let planes: Vec<_> = cluster.members().map(Member::plane).collect();
            let vote = planes.iter().all(|plane| plane.vitals().is_some_and(|vitals| vitals.voters.len() == MACHINES));
            vote && planes.iter().all(|plane| plane.map().sessions().len() == MACHINES && is_owned(&plane.map()))
        })
        .await;
        for index in 0..GATEWAYS {
            cluster.open_gateway(index).await;
        }
        cluster
    }

    /// A node starts, for the first time or again.
    async fn start(&mut self, ordinal: usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (hub, nodes, street) = (self.hub.clone(), self.nodes.clone(), self.street.clone());
        let (store, refused) = (self.store.replicas.from_elsewhere(), Arc::clone(&self.refused));
        let folder: PathBuf = self.dir.path().join(ordinal.to_string());
        let started = runtime.spawn(async move {
            let membership = Membership { ordinal: ordinal as u32, ..Membership::default() };
            let candidate = loop {
                let ports = hub.clone();
                let transport = move |uid| Ok(Arc::new(ports.port(uid)) as _);
                match Candidate::open(&folder, membership.clone(), Pace::PROMPT, transport).await {
                    Ok(candidate) => break candidate,
                    // Its former life still lets go of its disk.
                    Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        sleep(Duration::from_millis(5)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            let plane = candidate.plane().clone();
            let uid = plane.node();
            hub.attach(uid, plane.clone());
            let enter = Enter {
                config: config::Config { shards: 2, ..config::Config::default() },
                addr: SocketAddr::from(([127, 0, 0, 1], 7000 + ordinal as u16)),
                shared: Arc::new(store.clone()),
                meta: Arc::new(store),
                force: None,
                peers: Arc::new(Doorstep { street: street.clone(), plane }),
                clock: Arc::new(wall_clock),
                refused: Arc::new(move |why| refused.lock().push(why)),
            };
            let member = candidate.enter(enter).await.unwrap();
            street.0.lock().insert(uid, Arc::clone(member.node()));
            nodes.enter(uid, &(Arc::clone(member.node()) as _));
            (member, uid)
        });
        let (member, uid) = timeout(PATIENCE, started).await.expect("a node finds its cluster").unwrap();
        self.machines[ordinal] = Some(Machine { runtime, member, uid });
        for other in self.members() {
            other.plane().health(uid, Health::Up);
        }
    }

    async fn open_gateway(&mut self, index: usize) {
        let data = TempDir::new().unwrap();
        let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let limits = limiter::Config {
            handshakes: rate,
            sends: rate,
            commands: rate,
            dev_tokens: rate,
            ..limiter::Config::default()
        };
        let config = Config { listen: "127.0.0.1:0".parse().unwrap(), limits, ..Config::default() };
        let auth = auth::resolve(&config.auth, config.listen, data.path()).unwrap();
        let limiter = Arc::new(Local::new(&config.limits));
        let observer = Observer::start(Arc::new(self.hub.port(NodeUid(1_000 + index as u64))));
        let generation = self.members().next().unwrap().generation();
        let door = Door::take(config.listen).unwrap();
        let id = GatewayId(index as u32 + 1);
        let connect = |port| MapLinks::join(&self.nodes, id, port, generation, |watcher| observer.watch(watcher)) as _;
        let gateway = Gateway::start_among(door, config, auth, limiter, (id, connect)).await.unwrap();
        self.gateways.push((gateway, observer, data));
    }

    /// Its process is gone between two instructions: nothing is flushed, nobody is told.
    async fn kill(&mut self, ordinal: usize) {
        let Machine { runtime, member, uid } = self.machines[ordinal].take().unwrap();
        self.hub.detach(uid);
        self.street.0.lock().remove(&uid);
        runtime.shutdown_background();
        self.nodes.leave(uid);
        tokio::task::spawn_blocking(move || drop(member)).await.unwrap();
        self.is_down(uid);
    }

    /// It is asked to end, and does.
    async fn stop(&mut self, ordinal: usize) {
        let Machine { runtime, member, uid } = self.machines[ordinal].take().unwrap();
        runtime.spawn(member.stop()).await.unwrap();
        self.hub.detach(uid);
        self.street.0.lock().remove(&uid);
        self.nodes.leave(uid);
        runtime.shutdown_background();
        self.is_down(uid);
    }

    /// As SWIM would say after a while.
    fn is_down(&self, uid: NodeUid) {
        for other in self.members() {
            other.plane().health(uid, Health::Down);
        }
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.machines.iter().flatten().map(|machine| &machine.member)
    }

    /// The newest map that any node knows.
    fn map(&self) -> Map {
        self.members().map(|member| member.plane().map()).max_by_key(Map::version).unwrap()
    }

    /// Who owns a partition.
    fn owner(&self, partition: Partition) -> Option<usize> {
        let map = self.map();
        let uid = map.session(map.owner(partition)?.0)?.node;
        self.machines.iter().position(|machine| machine.as_ref().is_some_and(|machine| machine.uid == uid))
    }

    fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(|(gateway, ..)| format!("http://{}", gateway.address())).collect()
    }

    /// An operator has partitions moved to a node, and it is waited for.
    async fn move_to(&self, to: usize, partitions: &[Partition]) {
        let uid = self.machines[to].as_ref().unwrap().uid;
        let ask = |command: Command| {
            let member = self.members().next().unwrap();
            let (told, tell) = tokio::sync::oneshot::channel();
            member.plane().propose(command, Box::new(move |outcome| drop(told.send(outcome))));
            tell
        };
        let began = Instant::now();
        loop {
            let map = self.map();
            let Some(session) = map.session_of(uid) else { panic!("it has no session") };
            let elsewhere = |partition: &Partition| map.owner(*partition).is_some_and(|(owner, _)| owner != session);
            if !partitions.iter().any(elsewhere) {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "the partitions are not moved");
            // By giver, as a plan has one; what is planned already is waited for.
            let mut by_giver: BTreeMap<SessionId, Vec<Move>> = BTreeMap::new();
            for partition in partitions.iter().copied().filter(elsewhere) {
                let (from, expect) = map.owner(partition).unwrap();
                if map.planned(partition).is_none() {
                    by_giver.entry(from).or_default().push(Move { partition, expect, from, to: session });
                }
            }
            if let Some(moves) = by_giver.into_values().next() {
                let _ = ask(Command::PlanMoves { plan: map.next_plan(), moves }).await;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn is_owned(map: &Map) -> bool {
    map.partitions() > 0 && map.orphans().next().is_none() && map.rows().all(|(one, _)| map.owner(one).is_some())
}

fn partition_of(group: Uuid) -> Partition {
    EntityId::Conversation(ConversationId(group)).partition()
}

/// Goal: whatever ends, conversations are accepted again on another node, and nothing is lost or doubled. Method: under load an
/// owner is killed, then it comes back as the same node; the leader of Raft is killed; an owner ends in peace; partitions are moved on
/// purpose, to and fro.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_come_and_go_and_clients_notice_a_pause() {
    let mut cluster = Cluster::begin().await;
    let crowd = Crowd::gather(&cluster.urls()).await;
    crowd.progress(20).await;
    let groups: Vec<Partition> = crowd.groups.iter().map(|group| partition_of(*group)).collect();

    // An owner dies. Whatever it owned is somebody else's, and is served there.
    let dead = cluster.owner(groups[0]).unwrap();
    let uid = cluster.machines[dead].as_ref().unwrap().uid;
    cluster.kill(dead).await;
    let took = crowd.progress(5).await;
    println!("node {dead} killed: every group was accepted again after {} ms", took.as_millis());
    assert!(groups.iter().all(|group| cluster.owner(*group).is_some_and(|owner| owner != dead)));

    // It comes back, with its name and its vote, and a new session.
    cluster.start(dead).await;
    assert_eq!(cluster.machines[dead].as_ref().unwrap().uid, uid, "a node keeps its name");
    wait("it has a session again", || cluster.map().session_of(uid).is_some()).await;
    crowd.progress(5).await;

    // Moves on purpose, of everything that is busy, to it and on to the next.
    for to in [dead, (dead + 1) % MACHINES] {
        crowd.longest.store(0, Relaxed);
        cluster.move_to(to, &groups).await;
        crowd.progress(5).await;
        println!("moved to node {to}: nobody waited longer than {} ms", crowd.longest.load(Relaxed));
        assert!(groups.iter().all(|group| cluster.owner(*group) == Some(to)));
    }

    // The leader dies, whatever it owns.
    let leads = |machine: &Option<Machine>| {
        machine.as_ref().is_some_and(|machine| machine.member.plane().vitals().is_some_and(|vitals| vitals.leads))
    };
    wait("somebody leads", || cluster.machines.iter().any(leads)).await;
    let leader = cluster.machines.iter().position(leads).unwrap();
    cluster.kill(leader).await;
    let took = crowd.progress(5).await;
    println!("node {leader}, which led, killed: every group was accepted again after {} ms", took.as_millis());
    cluster.start(leader).await;
    crowd.progress(5).await;

    // One that owns something ends in peace.
    let tired = cluster.owner(groups[0]).unwrap();
    cluster.stop(tired).await;
    let took = crowd.progress(5).await;
    println!("node {tired} stopped: every group was accepted again after {} ms", took.as_millis());

    crowd.judge().await;
    assert_eq!(cluster.store.replicas.violations(), Vec::<String>::new());
    assert_eq!(*cluster.refused.lock(), Vec::<String>::new());
    for ordinal in 0..MACHINES {
        if cluster.machines[ordinal].is_some() {
            cluster.stop(ordinal).await;
        }
    }
}

/// Goal: a node says how it takes part, and what keeps it from going on. Method: a cluster of one node shows its conditions; then
/// an operator founds the cluster anew elsewhere, and the node that is of the founding before ends with a sentence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_is_ready_until_it_is_superseded() {
    use chappe_cluster::consensus::{
        bootstrap::{Claim, Group, find::ClusterMeta},
        transport::Lone,
    };

    let (dir, store) = (TempDir::new().unwrap(), Store::open());
    let membership = Membership::default();
    let lone = |_| Ok(Arc::new(Lone) as _);
    let candidate = Candidate::open(dir.path(), membership, Pace::PROMPT, lone).await.unwrap();
    let refused = Arc::new(Mutex::new(None));
    let says = Arc::clone(&refused);
    let enter = Enter {
        config: config::Config { shards: 1, ..config::Config::default() },
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        shared: Arc::new(store.replicas.clone()),
        meta: Arc::new(store.replicas.clone()),
        force: None,
        peers: Arc::new(chappe_node::member::Nobody),
        clock: Arc::new(wall_clock),
        refused: Arc::new(move |why| {
            says.lock().get_or_insert(why);
        }),
    };
    let member = timeout(PATIENCE, candidate.enter(enter)).await.unwrap().unwrap();
    let health = health::Health::new();
    let _reports = member.report(&health);
    let shown = |name: &str| health.report().conditions.into_iter().find(|shown| shown.name == name).unwrap();
    wait("it is ready", || ["session", "raft_leader", "raft_log"].iter().all(|name| shown(name).ok)).await;
    let map = member.plane().map();
    assert!(is_owned(&map) || map.orphans().count() > 0);
    wait("it owns everything", || is_owned(&member.plane().map())).await;

    // It ends its session and begins another, which reads that the history is not the one it serves any more.
    let group = member.plane().group().unwrap();
    let anew = Group { generation: group.generation + 1, ..group };
    store.replicas.claim(Claim { group: anew, by: NodeUid(1) }).await.unwrap();
    store.replicas.fence_all().await.unwrap();
    wait("it refuses to go on", || refused.lock().is_some()).await;
    let why = refused.lock().clone().unwrap();
    assert!(why.contains("the history in the store is of generation"), "{why}");
    member.stop().await;
}
