//! A cluster of real processes over a real CQL server: nodes and gateways are killed, paused and restarted under load, and the oracle
//! judges what clients saw.

use std::time::{Duration, Instant};

use chappe_cluster::process::operator::Overview;
use chappe_loadtest::local::{Cluster, Plan, Which};
use chappe_node::store::cql::real;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::sleep;

use super::crowd::Crowd;

/// A cluster of its own.
async fn cluster(dir: &TempDir, nodes: u16, gateways: u16) -> Option<Cluster> {
    let config = real::one_server("processes")?;
    let plan = Plan {
        nodes,
        gateways,
        cql: config.contact_points.first().cloned(),
        dir: dir.path().to_owned(),
        port: free_ports(nodes + gateways),
        unlimited: true,
        binaries: super::binary().parent().map(Into::into),
        node_sets: Vec::new(),
        network: None,
    };
    Some(Cluster::start(plan).await.unwrap())
}

/// The first of enough ports that nobody uses at the moment: away from those that the system gives out by itself.
fn free_ports(processes: u16) -> u16 {
    let is_free = |port: u16| {
        std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
            && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
    };
    let first = 12_000 + (std::process::id() % 80) as u16 * 100;
    let found = (first..28_000).step_by(100).find(|first| (*first..first + 10 * processes).all(is_free));
    found.expect("there are free ports")
}

/// Goal: whatever ends, pauses or leaves, conversations are accepted again on another node within seconds, and nothing is lost or
/// doubled. Method: an owner is killed; another is stopped for longer than the cluster waits for it, and goes on; Raft's leader
/// is killed; a gateway is killed; then all are restarted in peace, one after the other, and no send fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_come_and_go_and_clients_notice_a_pause() {
    let dir = TempDir::new().unwrap();
    let Some(mut cluster) = cluster(&dir, 3, 2).await else { return };
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
