//! A cluster of real processes over a real CQL server: nodes and gateways are killed, paused and restarted under load, and the oracle
//! judges what clients saw.

use std::time::{Duration, Instant};

use chappe_cluster::process::operator::Overview;
use chappe_loadtest::{
    local::{self, Cluster, Plan, Which},
    weather::{self, clock::Clock},
};
use chappe_node::store::cql::real;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::sleep;

use super::crowd::Crowd;

/// A cluster of its own.
async fn cluster(dir: &TempDir, nodes: u16, gateways: u16, clocks: bool) -> Option<Cluster> {
    let config = real::one_server("processes")?;
    let plan = Plan {
        nodes,
        gateways,
        cql: config.contact_points.first().cloned(),
        dir: dir.path().to_owned(),
        port: local::free_ports(nodes + gateways).unwrap(),
        unlimited: true,
        binaries: super::binary().parent().map(Into::into),
        replicas: 1,
        node_sets: Vec::new(),
        network: None,
        clocks,
        relay: false,
    };
    Some(Cluster::start(plan).await.unwrap())
}

/// Goal: whatever ends, pauses or leaves, conversations are accepted again on another node within seconds, and nothing is lost or
/// doubled. Method: an owner is killed; another is stopped for longer than the cluster waits for it, and goes on; Raft's leader
/// is killed; a gateway is killed; then all are restarted in peace, one after the other, and no send fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_come_and_go_and_clients_notice_a_pause() {
    let dir = TempDir::new().unwrap();
    let Some(mut cluster) = cluster(&dir, 3, 2, false).await else { return };
    let crowd = Crowd::gather(&cluster.urls()).await;
    crowd.progress(10).await;
    let group = crowd.groups[0].to_string();

    let dead = Which::Node(cluster.owner_of(&group).await.unwrap());
    cluster.signal(dead, Signal::KILL).unwrap();
    let took = crowd.progress(3).await;
    println!("{dead:?} killed: every group was accepted again after {} ms", took.as_millis());
    cluster.ended(dead).await.unwrap();
    cluster.restart(dead).await.unwrap();
    cluster.wait(|seen| seen.nodes.len() == 3 && seen.is_settled()).await.unwrap();
    crowd.progress(5).await;

    let paused = Which::Node(cluster.owner_of(&group).await.unwrap());
    cluster.signal(paused, Signal::STOP).unwrap();
    let took = crowd.progress(3).await;
    println!("{paused:?} stopped: every group was accepted again after {} ms", took.as_millis());
    sleep(Duration::from_secs(3)).await;
    cluster.signal(paused, Signal::CONT).unwrap();
    crowd.progress(5).await;
    cluster
        .wait(|seen| seen.nodes.len() == 3 && seen.nodes.iter().all(|node| node.up) && seen.is_settled())
        .await
        .unwrap();

    // Whoever was paused may be thought to lead for a moment, or may have no session yet.
    let leads = |seen: &Overview| seen.nodes.iter().find(|node| Some(&node.uid) == seen.leader.as_ref()).cloned();
    let seen = cluster.wait(|seen| seen.nodes.len() == 3 && leads(seen).is_some()).await.unwrap();
    let leader = leads(&seen).expect("it was waited for");
    let leader = Which::Node(leader.ordinal as usize);
    cluster.signal(leader, Signal::KILL).unwrap();
    let took = crowd.progress(3).await;
    println!("{leader:?}, which led, killed: every group was accepted again after {} ms", took.as_millis());
    cluster.ended(leader).await.unwrap();
    cluster.restart(leader).await.unwrap();
    cluster.wait(|seen| seen.nodes.len() == 3 && seen.is_settled()).await.unwrap();

    cluster.signal(Which::Gateway(1), Signal::KILL).unwrap();
    cluster.ended(Which::Gateway(1)).await.unwrap();
    let began = Instant::now();
    cluster.restart(Which::Gateway(1)).await.unwrap();
    crowd.progress(3).await;
    println!("a gateway killed and started again: {} ms", began.elapsed().as_millis());

    for which in [Which::Node(0), Which::Node(1), Which::Node(2), Which::Gateway(0), Which::Gateway(1)] {
        crowd.longest.store(0, std::sync::atomic::Ordering::Relaxed);
        let began = Instant::now();
        cluster.signal(which, Signal::TERM).unwrap();
        assert!(cluster.ended(which).await.unwrap().success(), "{}", cluster.last_words());
        let ended = began.elapsed();
        cluster.restart(which).await.unwrap();
        cluster.wait(|seen| seen.nodes.len() == 3 && seen.is_settled()).await.unwrap();
        crowd.progress(3).await;
        let longest = crowd.longest.load(std::sync::atomic::Ordering::Relaxed);
        println!(
            "{which:?} ended after {} ms and came back; nobody waited longer than {longest} ms",
            ended.as_millis()
        );
    }
    crowd.judge().await;
    cluster.stop().await.unwrap();
}

/// Goal: nodes that lose their disks, or leave for good, cost nobody a message. Method: a node loses its data directory and comes back
/// as another; one that owns a share is decommissioned by `ctl`, is not taken in again with what it had, and is with nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_leave_and_lose_their_disks() {
    let dir = TempDir::new().unwrap();
    let Some(mut cluster) = cluster(&dir, 3, 1, false).await else { return };
    let crowd = Crowd::gather(&cluster.urls()).await;
    crowd.progress(5).await;
    let uid = |seen: &Overview, ordinal: u32| {
        let node = seen.nodes.iter().find(|node| node.ordinal == ordinal);
        node.map(|node| node.uid.clone()).unwrap_or_default()
    };

    // A lost disk.
    let before = cluster.overview().await.unwrap();
    cluster.signal(Which::Node(2), Signal::KILL).unwrap();
    cluster.ended(Which::Node(2)).await.unwrap();
    cluster.lose(2).unwrap();
    cluster.restart(Which::Node(2)).await.unwrap();
    let voters = |seen: &Overview| {
        let known = |voter: &String| seen.nodes.iter().any(|node| node.uid == *voter);
        seen.voters.len() == 3 && seen.voters.iter().all(known)
    };
    let seen = cluster.wait(|seen| seen.nodes.len() == 3 && voters(seen)).await.unwrap();
    assert_ne!(uid(&seen, 2), uid(&before, 2), "who lost its name is another");
    crowd.progress(5).await;

    // Leaving for good. It takes its turn among those who have what they had.
    let leaves = uid(&seen, 1);
    let (refused, said) = cluster.ctl(1, &["decommission", &leaves]).await.unwrap();
    assert!(!refused && said.contains("ask another node"), "{said}");
    let (refused, said) = cluster.ctl(0, &["decommission", "00000000000000aa"]).await.unwrap();
    assert!(!refused && said.contains("no node of this uid"), "{said}");
    let began = Instant::now();
    let (left, said) = cluster.ctl(0, &["decommission", &leaves]).await.unwrap();
    assert!(left && said.contains("has left for good"), "{said}");
    cluster.ended(Which::Node(1)).await.unwrap();
    println!("a node was decommissioned and ended after {} ms", began.elapsed().as_millis());
    let seen = cluster.overview().await.unwrap();
    assert_eq!((seen.nodes.len(), &seen.left[..]), (2, &[leaves.clone()][..]));
    assert!(!seen.voters.contains(&leaves), "{:?}", seen.voters);
    crowd.progress(5).await;
    let why = cluster.restart(Which::Node(1)).await.expect_err("it is not taken in again");
    assert!(why.to_string().contains("decommissioned"), "{why}");
    cluster.lose(1).unwrap();
    cluster.restart(Which::Node(1)).await.unwrap();
    let seen = cluster.wait(|seen| seen.nodes.len() == 3 && voters(seen)).await.unwrap();
    assert_ne!(uid(&seen, 1), leaves);
    crowd.progress(5).await;

    crowd.judge().await;
    cluster.stop().await.unwrap();
}

/// Goal: when most voters lose their disks an operator has the cluster founded anew, and nobody loses a message. Method: two of three
/// lose all they knew; the third founds, the others join.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn most_voters_lose_their_disks() {
    let dir = TempDir::new().unwrap();
    let Some(mut cluster) = cluster(&dir, 3, 1, false).await else { return };
    let crowd = Crowd::gather(&cluster.urls()).await;
    crowd.progress(5).await;
    let before = cluster.overview().await.unwrap();
    for ordinal in [1, 2] {
        cluster.signal(Which::Node(ordinal), Signal::KILL).unwrap();
        cluster.ended(Which::Node(ordinal)).await.unwrap();
        cluster.lose(ordinal).unwrap();
    }
    cluster.signal(Which::Node(0), Signal::KILL).unwrap();
    cluster.ended(Which::Node(0)).await.unwrap();
    let began = Instant::now();
    cluster.found_anew(0, 2).await.unwrap();
    let seen = cluster.wait(|seen| seen.founding == 2 && seen.is_settled()).await.unwrap();
    assert_eq!(seen.cluster, before.cluster, "it is the same cluster");
    // A gateway serves one founding. It ends by itself, and whoever runs it starts it again.
    cluster.ended(Which::Gateway(0)).await.unwrap();
    cluster.restart(Which::Gateway(0)).await.unwrap();
    crowd.progress(5).await;
    println!("founded anew: every group was accepted again after {} ms", began.elapsed().as_millis());
    for ordinal in [1, 2] {
        cluster.restart(Which::Node(ordinal)).await.unwrap();
    }
    cluster
        .wait(|seen| seen.is_settled() && seen.nodes.len() == 3 && seen.nodes.iter().all(|node| node.owns > 0))
        .await
        .unwrap();
    crowd.progress(5).await;

    crowd.judge().await;
    cluster.stop().await.unwrap();
}

/// Goal: a wall clock that jumps holds up nobody, and nothing is lost, doubled or reordered. Method: the clock of an owner, of another
/// node, of Raft's leader and of a gateway jump by an hour, forwards and back, and backwards and on, all under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_jump() {
    if !weather::can(Clock::available()).unwrap() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let Some(mut cluster) = cluster(&dir, 3, 2, true).await else { return };
    let crowd = Crowd::gather(&cluster.urls()).await;
    crowd.progress(10).await;
    let seen = cluster.wait(|seen| seen.leader.is_some()).await.unwrap();
    let leader = seen.nodes.iter().find(|node| Some(&node.uid) == seen.leader.as_ref()).map(|node| node.ordinal);
    let owner = cluster.owner_of(&crowd.groups[0].to_string()).await.unwrap();
    let scenes = [
        vec![(Which::Node(owner), HOUR)],
        vec![(Which::Node(owner), -HOUR)],
        vec![(Which::Node(leader.expect("somebody leads") as usize), HOUR)],
        vec![(Which::Node(owner), HOUR), (Which::Node((owner + 1) % 3), -HOUR)],
        vec![(Which::Gateway(0), HOUR)],
        vec![(Which::Gateway(0), -HOUR)],
    ];
    for scene in scenes {
        let versions = cluster.overview().await.unwrap().version;
        crowd.longest.store(0, std::sync::atomic::Ordering::Relaxed);
        for (which, wrong) in &scene {
            cluster.set_clock(*which, *wrong).unwrap();
        }
        sleep(Duration::from_secs(3)).await;
        crowd.progress(5).await;
        for (which, _) in &scene {
            cluster.set_clock(*which, 0).unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        crowd.progress(5).await;
        let longest = crowd.longest.load(std::sync::atomic::Ordering::Relaxed);
        let seen = cluster.wait(|seen| seen.nodes.len() == 3 && seen.is_settled()).await.unwrap();
        println!("{scene:?}: nobody waited longer than {longest} ms; the map changed: {}", seen.version > versions);
    }
    crowd.judge().await;
    cluster.stop().await.unwrap();
}

/// In seconds.
const HOUR: i64 = 3_600;
