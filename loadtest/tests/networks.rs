//! A cluster of real processes, each on a host of its own in a network whose ways are cut under load, over a real CQL server. The
//! oracle judges what clients saw, and each scene prints how long which conversations were refused.
//!
//! One test at a time, and in a binary of its own: its figures are of a machine that does nothing else. It needs root, `ip` and a
//! CQL server.
//!
//! | variable | what | gate |
//! |---|---|---|
//! | `CHAPPE_TEST_NETWORKS` | how often all scenes are played, each when every node owns something | 0: [`GATE`], once |
//! | `CHAPPE_TEST_SCENE` | only this one, by its name, for example `Flapping` | |
//! | `CHAPPE_TEST_KEEP` | the processes' logs are kept, and where they are is said | |
//! | `CHAPPE_TEST_STRICT` | 0: left out where root or `ip` is missing | |
//! | `CHAPPE_TEST_SERVICES` | 0: left out, as all that needs a CQL server | |

#![allow(clippy::unwrap_used)]

// Made for several tests.
#[allow(dead_code)]
#[path = "system/crowd.rs"]
mod crowd;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use chappe_cluster::process::operator::Overview;
use chappe_loadtest::{
    client::{http::Http, token::Signer},
    local::{Cluster, Plan, STORE, Which},
    metrics::Metrics,
    weather::{self, dice, network::Network},
};
use chappe_node::store::cql::real;
use crowd::Crowd;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const NODES: usize = 3;
const GATEWAYS: usize = 2;

/// How long a way stays cut.
const CUT: Duration = Duration::from_secs(8);

/// The same for a node that the others still hear of, through gateways, when its leader does not hear it: it takes ten seconds to be
/// given up.
const UNHEARD: Duration = Duration::from_secs(15);

/// A side without the store must have stopped acknowledging by then, and refuses what is asked of it.
const STOPS: Duration = Duration::from_secs(2);

/// Deliveries that are worth a line.
const LATE: Duration = Duration::from_millis(1_000);

/// When the cluster must be whole again after a cut has healed.
const WHOLE: Duration = Duration::from_secs(60);

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// Nothing is: what the others are to be compared with.
    Nothing,
    /// An owner sees nobody: no node, no gateway, no store.
    OwnerAlone,
    /// An owner sees the store alone.
    Zombie,
    /// An owner sees the store, and gateways, which go on asking it.
    ZombieAsked,
    /// Nothing reaches Raft's leader from nodes and gateways; what it says arrives.
    LeaderDeaf,
    /// What Raft's leader says reaches no node and no gateway; it hears all.
    LeaderMute,
    /// Raft's leader and another node do not see each other. The third sees both.
    BridgeWithLeader,
    /// The two nodes that do not lead do not see each other.
    BridgeBeside,
    /// A gateway and one node do not see each other.
    GatewayFromNode,
    /// A gateway sees no node.
    GatewayAlone,
    /// The ways of an owner to all nodes and gateways come and go, several times a second and then slowly.
    Flapping,
    /// An owner sees all but the store.
    NoStore,
}

/// All of them.
const ALL: [Scene; 12] = [
    Scene::Nothing,
    Scene::OwnerAlone,
    Scene::Zombie,
    Scene::ZombieAsked,
    Scene::LeaderDeaf,
    Scene::LeaderMute,
    Scene::BridgeWithLeader,
    Scene::BridgeBeside,
    Scene::GatewayFromNode,
    Scene::GatewayAlone,
    Scene::Flapping,
    Scene::NoStore,
];

/// Those of every run.
const GATE: [Scene; 4] = [Scene::OwnerAlone, Scene::ZombieAsked, Scene::LeaderDeaf, Scene::NoStore];

/// A cluster, its network and its people.
struct World {
    network: Arc<Network>,
    cluster: Cluster,
    crowd: Crowd,
    signer: Signer,
    /// Conversations of [`STRANGER`], of which the crowd and the oracle know nothing.
    strange: Vec<String>,
    _dir: TempDir,
}

/// Somebody who talks over HTTP, and with nobody who listens.
const STRANGER: &str = "zoe";

impl World {
    async fn begin() -> Option<Self> {
        if !weather::can(weather::network::available()).unwrap_or_else(|why| panic!("{why}")) {
            return None;
        }
        let config = real::one_server("networks")?;
        let (mut dir, network) = (TempDir::new().unwrap(), Arc::new(Network::make(NODES + GATEWAYS).unwrap()));
        if std::env::var_os("CHAPPE_TEST_KEEP").is_some() {
            dir.disable_cleanup(true);
            println!("logs in {}", dir.path().display());
        }
        let plan = Plan {
            nodes: NODES as u16,
            gateways: GATEWAYS as u16,
            cql: config.contact_points.first().cloned(),
            dir: dir.path().to_owned(),
            port: 7400,
            unlimited: true,
            binaries: std::env::current_exe().unwrap().ancestors().nth(2).map(Into::into),
            replicas: 1,
            node_sets: Vec::new(),
            network: Some(Arc::clone(&network)),
            relay: true,
            clocks: false,
        };
        let cluster = Cluster::start(plan).await.unwrap();
        let signer = cluster.signer().unwrap();
        let crowd = Crowd::gather_apart(&cluster.urls(), &signer).await;
        crowd.progress(10).await;
        let mut world = Self { network, cluster, crowd, signer, strange: Vec::new(), _dir: dir };
        for number in 0..8 {
            let asked = json!({ "kind": "direct", "with": format!("nobody-{number}") });
            let (status, answer, _) = world.ask("/v1/conversations", &asked).await;
            assert!(status < 300, "{answer}");
            world.strange.push(answer["conversation"]["id"].as_str().unwrap().to_owned());
        }
        Some(world)
    }

    fn at(&self, which: Which) -> Ipv4Addr {
        self.cluster.address(which)
    }

    /// All other nodes.
    fn others(&self, node: usize) -> Vec<Ipv4Addr> {
        (0..NODES).filter(|other| *other != node).map(|other| self.at(Which::Node(other))).collect()
    }

    fn gateways(&self) -> Vec<Ipv4Addr> {
        (0..GATEWAYS).map(|number| self.at(Which::Gateway(number))).collect()
    }

    async fn leader(&self) -> usize {
        let leads = |seen: &Overview| seen.nodes.iter().find(|node| Some(&node.uid) == seen.leader.as_ref()).cloned();
        let seen = self.cluster.wait(|seen| leads(seen).is_some()).await.unwrap();
        leads(&seen).unwrap().ordinal as usize
    }

    /// Who owns each conversation.
    async fn owners(&self) -> Vec<usize> {
        let mut owners = Vec::new();
        for conversation in &self.crowd.groups {
            owners.push(self.cluster.owner_of(&conversation.to_string()).await.unwrap());
        }
        owners
    }

    /// How many messages a node has acknowledged.
    async fn acknowledged(&self, node: usize) -> f64 {
        let metrics = self.cluster.metrics(Which::Node(node)).await.unwrap();
        metrics.labelled("chappe_node_commands_total", &[("command", "message.send"), ("result", "ok")])
    }

    /// Plays a scene: cuts, looks on, heals, and waits until everything is as before.
    async fn play(&self, scene: Scene) {
        let owners = self.owners().await;
        let leader = self.leader().await;
        let (owner, store) = (owners[0], [self.network.here(STORE)]);
        let beside = (0..NODES).find(|node| *node != leader).unwrap();
        let (nodes, gateways) = (self.others(owner), self.gateways());
        let around: Vec<_> = nodes.iter().chain(&gateways).copied().collect();
        let around_leader: Vec<_> = self.others(leader).into_iter().chain(self.gateways()).collect();
        let at = |node: usize| [self.at(Which::Node(node))];
        let network = &self.network;
        println!("=== {scene:?}: node {leader} leads; owners of the conversations: {owners:?}");
        let before = self.gateways_say().await;
        self.crowd.waited();
        self.crowd.late();
        let began = Instant::now();
        let victim = match scene {
            Scene::Nothing => None,
            Scene::OwnerAlone => {
                network.part(&at(owner), &[&around[..], &store].concat()).unwrap();
                Some(owner)
            }
            Scene::Zombie => {
                network.part(&at(owner), &around).unwrap();
                Some(owner)
            }
            Scene::ZombieAsked => {
                network.part(&at(owner), &nodes).unwrap();
                Some(owner)
            }
            Scene::LeaderDeaf => {
                network.cut(&around_leader, &at(leader)).unwrap();
                Some(leader)
            }
            Scene::LeaderMute => {
                network.cut(&at(leader), &around_leader).unwrap();
                Some(leader)
            }
            Scene::BridgeWithLeader => {
                network.part(&at(leader), &at(beside)).unwrap();
                Some(beside)
            }
            Scene::BridgeBeside => {
                let others = self.others(leader);
                network.part(&others[..1], &others[1..]).unwrap();
                None
            }
            Scene::GatewayFromNode => {
                network.part(&gateways[..1], &at(owner)).unwrap();
                Some(owner)
            }
            Scene::GatewayAlone => {
                network.part(&gateways[..1], &[&nodes[..], &at(owner)].concat()).unwrap();
                None
            }
            Scene::Flapping => {
                for (number, pause) in [(12, 250), (3, 1_500)] {
                    for _ in 0..number {
                        network.part(&at(owner), &around).unwrap();
                        sleep(Duration::from_millis(pause)).await;
                        network.heal().unwrap();
                        sleep(Duration::from_millis(pause)).await;
                    }
                }
                Some(owner)
            }
            Scene::NoStore => {
                network.part(&at(owner), &store).unwrap();
                Some(owner)
            }
        };
        if matches!(scene, Scene::OwnerAlone | Scene::NoStore) {
            self.has_stopped(owner).await;
        }
        let cut = if scene == Scene::ZombieAsked { UNHEARD } else { CUT };
        sleep(cut.saturating_sub(began.elapsed())).await;
        let during = self.crowd.waited();
        self.say("while it was cut", &owners, victim, &during);
        network.heal().unwrap();
        let healed = Instant::now();
        let (answered, heard, whole) =
            tokio::join!(self.crowd.all_are_answered(), self.crowd.all_hear(), self.is_whole());
        let after = self.crowd.waited();
        self.say("until all was well", &owners, victim, &after);
        println!(
            "cut for {:.1} s; after it healed everybody was answered within {} ms, heard what is new within {} ms, and the cluster was \
             whole within {} ms",
            (healed - began).as_secs_f64(),
            answered.as_millis(),
            heard.as_millis(),
            whole.as_millis()
        );
        for (place, late) in self.crowd.late().into_iter().enumerate().filter(|(_, late)| *late >= LATE) {
            println!(
                "conversation {place}, which node {} owned: a message was seen {} ms late",
                owners[place],
                late.as_millis()
            );
        }
        for (gateway, (now, before)) in self.gateways_say().await.iter().zip(&before).enumerate() {
            let resyncs = now.since_by_label(before, "chappe_gateway_resyncs_total");
            println!("gateway {gateway} told clients to fetch: {resyncs:?}");
        }
    }

    async fn gateways_say(&self) -> Vec<Metrics> {
        let mut said = Vec::new();
        for gateway in 0..GATEWAYS {
            said.push(self.cluster.metrics(Which::Gateway(gateway)).await.unwrap());
        }
        said
    }

    /// Whoever has no store acknowledges nothing, and what is asked of it is refused.
    async fn has_stopped(&self, node: usize) {
        sleep(STOPS).await;
        let before = self.acknowledged(node).await;
        // What the others know: a node that is alone does not know what it has lost.
        let witness = (0..NODES).find(|other| *other != node).unwrap();
        if let Some(conversation) = self.strange_of(node, witness).await {
            let message = json!({ "client_msg_id": Uuid::now_v7(), "body": { "text": "is anybody there?" } });
            let (status, answer, took) =
                self.ask(&format!("/v1/conversations/{conversation}/messages"), &message).await;
            println!(
                "{STOPS:?} after the cut a message to node {node} is answered {status} {} after {} ms",
                answer["code"],
                took.as_millis()
            );
            assert!(took < STOPS || status < 300, "it is refused after {took:?}: {answer}");
        }
        sleep(Duration::from_secs(3)).await;
        let after = self.acknowledged(node).await;
        assert_eq!(after, before, "node {node} acknowledges without a store");
    }

    /// A conversation that nobody uses and that a node owns, as another one knows.
    async fn strange_of(&self, node: usize, witness: usize) -> Option<&String> {
        for conversation in &self.strange {
            if self.cluster.owner_seen_by(witness, conversation).await.is_ok_and(|owner| owner == node) {
                return Some(conversation);
            }
        }
        None
    }

    /// Posts something once, without patience: the status, what was answered, and how long that took.
    async fn ask(&self, path: &str, body: &Value) -> (u16, Value, Duration) {
        let http = Http::new(&self.cluster.urls()[0]);
        let token = self.signer.sign(STRANGER).unwrap();
        let asked = Instant::now();
        let answer = http.call("POST".parse().unwrap(), path, Some(&token), Some(body)).await.unwrap();
        (answer.status, answer.json().unwrap(), asked.elapsed())
    }

    /// Every node sees all nodes and gateways, each with a session, and the same leader; every partition is owned.
    async fn is_whole(&self) -> Duration {
        let began = Instant::now();
        loop {
            let mut seen = Vec::new();
            for node in 0..NODES {
                seen.push(self.cluster.overview_of(node).await);
            }
            let whole = |seen: &Overview| {
                seen.nodes.len() == NODES
                    && seen.nodes.iter().all(|node| node.up)
                    && seen.gateways.len() == GATEWAYS
                    && seen.leader.is_some()
                    && seen.is_settled()
            };
            if seen.iter().all(|seen| seen.as_ref().is_ok_and(whole)) {
                return began.elapsed();
            }
            assert!(
                began.elapsed() < WHOLE,
                "the cluster is not whole {WHOLE:?} after the cut: {seen:#?}\n{}",
                self.cluster.last_words()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// How long conversations were refused, by their owner before the cut, and through which gateway.
    fn say(&self, when: &str, owners: &[usize], victim: Option<usize>, waited: &[Duration]) {
        let mut longest: BTreeMap<(usize, usize), Duration> = BTreeMap::new();
        for (lane, waited) in self.crowd.lanes.iter().zip(waited) {
            let key = (owners[lane.places[0]], lane.client % GATEWAYS);
            let longest = longest.entry(key).or_default();
            *longest = (*longest).max(*waited);
        }
        for node in 0..NODES {
            let through = |gateway| longest.get(&(node, gateway)).map(|waited| waited.as_millis());
            let through: Vec<String> = (0..GATEWAYS)
                .filter_map(|gateway| Some(format!("{} ms through gateway {gateway}", through(gateway)?)))
                .collect();
            let mark = if victim == Some(node) { " (cut off)" } else { "" };
            if !through.is_empty() {
                println!("{when}, the longest wait in what node {node}{mark} owned: {}", through.join(", "));
            }
        }
    }
}

/// Goal: whatever way between processes is cut, in whichever direction, nothing acknowledged is lost, doubled or reordered, a side
/// without the store acknowledges nothing, and when ways are whole again so is the cluster. Method: the scenes above, one after the
/// other, under steady load in groups and pairs through both gateways; after each all ways are mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_are_cut_and_nothing_is_lost() {
    let Some(world) = World::begin().await else { return };
    let rounds = dice::number("CHAPPE_TEST_NETWORKS").unwrap_or(0);
    let only = std::env::var("CHAPPE_TEST_SCENE").ok();
    let wanted = |scene: &Scene| only.as_ref().is_none_or(|only| format!("{scene:?}") == *only);
    let scenes: Vec<Scene> = match rounds {
        0 if only.is_none() => GATE.to_vec(),
        _ => (0..rounds.max(1)).flat_map(|_| ALL).filter(wanted).collect(),
    };
    for scene in scenes {
        if rounds > 0 {
            // Whoever was given up gets its share back when there was calm for a minute.
            let shared = |seen: &Overview| seen.nodes.len() == NODES && seen.nodes.iter().all(|node| node.owns > 0);
            world.cluster.wait(|seen| shared(seen) && seen.is_settled()).await.unwrap();
        }
        let played = timeout(Duration::from_secs(240), world.play(scene)).await;
        assert!(played.is_ok(), "{scene:?} does not end\n{}", world.cluster.last_words());
    }
    // How a cluster ends in peace is another test's.
    world.crowd.judge().await;
}
