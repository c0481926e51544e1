//! Nodes that look for their cluster, over a store in memory: the first start of many, lost disks, a forced founding.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use chappe_schema::id::NodeUid;
use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::sleep};

use super::super::{
    Consensus, Home, Settings,
    bootstrap::{
        Claim, Group, Why,
        find::{Answer, ClusterMeta, Error},
    },
    log::simulated::Platter,
    memory::Hub,
    observer::Observer,
    pace::Pace,
    voters::Seat,
};
use crate::{
    control::{ControlPlane, Outcome},
    ownership::{Applied, ClusterGeneration, Command, NewSession, Versions, generation_of},
};

#[derive(Default)]
struct Meta {
    claims: Mutex<Vec<Claim>>,
    fenced: AtomicU32,
    away: AtomicBool,
}

impl Meta {
    fn answer<T: Send + 'static>(&self, act: impl FnOnce() -> T) -> Answer<'_, T> {
        let result = if self.away.load(Ordering::Relaxed) { Err(io::Error::other("away")) } else { Ok(act()) };
        Box::pin(async move {
            sleep(Duration::from_millis(3)).await;
            result
        })
    }
}

impl ClusterMeta for Meta {
    fn claims(&self) -> Answer<'_, Vec<Claim>> {
        self.answer(|| self.claims.lock().clone())
    }

    fn claim(&self, claim: Claim) -> Answer<'_, ()> {
        self.answer(|| self.claims.lock().push(claim))
    }

    fn fence_all(&self) -> Answer<'_, ()> {
        self.answer(|| {
            self.fenced.fetch_add(1, Ordering::Relaxed);
        })
    }
}

/// Nodes by a name of the test's; two may have the same ordinal.
struct World {
    hub: Hub,
    meta: Arc<Meta>,
    platters: BTreeMap<&'static str, Platter>,
    lives: BTreeMap<&'static str, (Consensus, Finding)>,
}

type Finding = JoinHandle<Result<Group, Error>>;

impl World {
    fn new() -> Self {
        let hub = Hub::new(4);
        hub.weather((100, 2_000), 0);
        Self { hub, meta: Arc::default(), platters: BTreeMap::new(), lives: BTreeMap::new() }
    }

    async fn start(&mut self, name: &'static str, ordinal: u32, force: Option<ClusterGeneration>) -> NodeUid {
        let platter = self.platters.entry(name).or_default();
        let home = Home::open(Arc::new(platter.mount())).await.unwrap();
        let node = home.node();
        let seat = Seat { ordinal, zone: String::new() };
        let settings = Settings { seat, pace: Pace::PROMPT, partitions: 16, version: 1 };
        let consensus = Consensus::new(home, Arc::new(self.hub.port(node)), settings);
        self.hub.attach(node, consensus.clone());
        let (finder, meta) = (consensus.clone(), Arc::clone(&self.meta));
        let found = tokio::spawn(async move { finder.find(&*meta, force).await });
        self.lives.insert(name, (consensus, found));
        node
    }

    async fn kill(&mut self, name: &'static str) {
        let (consensus, found) = self.lives.remove(name).unwrap();
        found.abort();
        self.platters[name].crash();
        self.hub.detach(consensus.node());
        consensus.stop().await;
    }

    fn group(&self, name: &'static str) -> Option<Group> {
        self.lives[name].0.group()
    }

    /// What a node that ended said.
    async fn refusal(&mut self, name: &'static str) -> Why {
        let (_, found) = self.lives.remove(name).unwrap();
        match found.await.unwrap() {
            Err(Error::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Registers a session of a node, and says its id.
    async fn register(&self, name: &'static str, ordinal: u32) -> Option<u64> {
        let consensus = &self.lives[name].0;
        let new = NewSession {
            node: consensus.node(),
            addr: ([127, 0, 0, 1], 1).into(),
            zone: String::new(),
            ordinal,
            weight: 100,
            versions: Versions { min: 1, max: 1 },
        };
        let (told, tell) = tokio::sync::oneshot::channel();
        consensus.propose(Command::RegisterSession(new), Box::new(move |outcome| drop(told.send(outcome))));
        match tell.await.unwrap() {
            Outcome::Answered(answer) => match answer.result.unwrap() {
                Applied::Registered { session, .. } => Some(session),
                other => panic!("{other:?}"),
            },
            _ => None,
        }
    }
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_start_side_by_side_form_one_cluster() {
    let mut world = World::new();
    // The others are there before the first.
    for (name, ordinal) in [("b", 1), ("c", 2)] {
        world.start(name, ordinal, None).await;
    }
    seconds(5).await;
    assert_eq!((world.group("b"), world.group("c")), (None, None));
    assert_eq!(world.register("b", 1).await, None, "nobody to ask yet");
    world.start("a", 0, None).await;
    seconds(5).await;
    let group = world.group("a").unwrap();
    assert_eq!((world.group("b"), world.group("c")), (Some(group), Some(group)));
    assert_eq!(world.meta.claims.lock().len(), 1);
    for (name, ordinal) in [("a", 0), ("b", 1), ("c", 2)] {
        let session = world.register(name, ordinal).await.unwrap();
        assert_eq!(generation_of(session), 1);
    }
    seconds(10).await;
    let vitals = world.lives["c"].0.vitals().unwrap();
    assert!(vitals.votes && vitals.voters.len() == 3, "{vitals:?}");
    assert_eq!(world.lives["b"].0.map().cluster(), Some(group.cluster));

    // The first loses its disk, and starts again as another: it joins, and begins nothing.
    world.kill("a").await;
    world.platters["a"].wipe();
    world.start("a", 0, None).await;
    seconds(5).await;
    assert_eq!(world.group("a"), Some(group));
    assert_eq!(world.meta.claims.lock().len(), 1);
    seconds(5).await;
    assert_eq!(world.lives["a"].0.map().version(), world.lives["b"].0.map().version());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_killed_at_any_step_of_its_first_start_goes_on() {
    for at in (1..60).step_by(2) {
        let mut world = World::new();
        world.platters.entry("a").or_default().slow((500, 3_000), at);
        world.start("a", 0, None).await;
        sleep(Duration::from_millis(at)).await;
        world.kill("a").await;
        world.start("a", 0, None).await;
        seconds(3).await;
        assert!(world.group("a").is_some(), "killed after {at} ms");
        assert!(world.register("a", 0).await.is_some(), "killed after {at} ms");
        assert!(world.meta.claims.lock().len() <= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_nothing_begins() {
    let mut world = World::new();
    world.meta.away.store(true, Ordering::Relaxed);
    world.start("a", 0, None).await;
    seconds(20).await;
    assert_eq!(world.group("a"), None);
    world.meta.away.store(false, Ordering::Relaxed);
    seconds(3).await;
    assert!(world.group("a").is_some());
    // Who takes part already goes on without it.
    world.kill("a").await;
    world.meta.away.store(true, Ordering::Relaxed);
    world.start("a", 0, None).await;
    seconds(3).await;
    assert!(world.lives["a"].0.vitals().unwrap().leads);
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_take_themselves_for_the_first_do_not_form_two_clusters() {
    for lag in [0, 1, 2, 3, 4, 5, 7, 10, 700] {
        let mut world = World::new();
        // They do not see each other, only the store.
        world.hub.weather((100, 2_000), 1_000);
        world.start("a", 0, None).await;
        sleep(Duration::from_millis(lag)).await;
        world.start("b", 0, None).await;
        seconds(10).await;
        let begun: Vec<Group> = ["a", "b"].into_iter().filter_map(|name| world.group(name)).collect();
        assert!(begun.len() <= 1, "lag {lag}: {begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_founds_the_cluster_anew() {
    let mut world = World::new();
    for (name, ordinal) in [("a", 0), ("b", 1), ("c", 2)] {
        world.start(name, ordinal, None).await;
    }
    seconds(5).await;
    let gateway = Observer::start(Arc::new(world.hub.port(NodeUid(77))));
    let old = world.register("a", 0).await.unwrap();
    for (name, ordinal) in [("b", 1), ("c", 2)] {
        world.register(name, ordinal).await.unwrap();
    }
    seconds(10).await;
    assert_eq!(gateway.map().sessions().len(), 3, "a gateway reads the map too");
    assert_eq!(gateway.map().orphans().count(), 0);
    assert_eq!(gateway.leader(), world.lives["a"].0.leader());
    // Two of three voters are gone for good.
    for name in ["a", "b"] {
        world.kill(name).await;
        world.platters[name].wipe();
    }
    world.start("a", 0, None).await;
    seconds(10).await;
    assert_eq!(world.register("c", 2).await, None, "no majority");
    world.kill("c").await;

    world.start("c", 2, Some(3)).await;
    seconds(1).await;
    assert_eq!(world.refusal("c").await, Why::NotNext(2));
    world.start("c", 2, Some(2)).await;
    seconds(5).await;
    let group = world.group("c").unwrap();
    assert_eq!(group.generation, 2);
    assert_eq!(world.meta.fenced.load(Ordering::Relaxed), 1);
    let session = world.register("c", 2).await.unwrap();
    assert!(session > old && generation_of(session) == 2);
    assert_eq!(world.lives["c"].0.map().sessions().len(), 1, "the map begins anew");

    seconds(5).await;
    assert_eq!(gateway.map().generation(), 2, "a gateway follows it there");
    assert!(gateway.map().is_live(session));

    // The flag is left on; nothing happens again. Who comes back empty joins; who has the old disk is sent away.
    world.kill("c").await;
    world.start("c", 2, Some(2)).await;
    seconds(5).await;
    assert_eq!(world.group("c"), Some(group));
    assert_eq!(world.meta.fenced.load(Ordering::Relaxed), 1);
    assert!(world.lives["c"].0.map().is_live(session));
    // Who had entered the founding before hears of the other, and ends; its disk is not taken for one of the new founding.
    let failed = tokio::time::timeout(Duration::from_secs(10), world.lives["a"].0.failed()).await.unwrap();
    assert!(failed.contains("anew (2)"), "{failed}");
    world.kill("a").await;
    world.start("a", 0, None).await;
    seconds(2).await;
    assert!(matches!(world.refusal("a").await, Why::Superseded { .. }));
    world.platters["a"].wipe();
    world.start("a", 0, None).await;
    seconds(5).await;
    assert_eq!(world.group("a"), Some(group));
    assert!(world.register("a", 0).await.is_some());
}
