//! A little bad weather: three faults on one server, and three on a cluster. All of them, and mixes for hours: `chappe-loadtest weather`,
//! `scripts/soak`.

use chappe_loadtest::weather::{
    self,
    fault::{Fault, Setting},
    run::{self, Plan},
    trace,
};
use chappe_node::store::cql::real;

async fn weather(on: Setting, faults: &[Fault], cql: Option<String>) {
    let plan = Plan {
        on,
        faults: faults.to_vec(),
        seed: None,
        secs: 30.0,
        longest: 5.0,
        doubled: 0,
        clients: 12,
        cql,
        cql3: None,
        cql3_pids: Vec::new(),
        binaries: super::binary().parent().map(Into::into),
        history: None,
        json: None,
        list: false,
    };
    let outcome = run::carry_out(plan).await.unwrap();
    println!("{}", outcome.verdict);
    assert!(outcome.verdict.is_clean(), "promises were broken; the history is {:?}", outcome.history);
    assert_eq!((outcome.verdict.stats.acked_unread, outcome.verdict.stats.failed), (0, 0));
    let seen = |fault: &Fault| outcome.events.iter().any(|event| event.faults.iter().any(|(name, _)| name == fault));
    assert!(faults.iter().all(seen), "{:?}", outcome.events);
    assert!(outcome.acked > 100, "there was load: {}", outcome.acked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_in_bad_weather() {
    let mut faults = vec![Fault::Kill, Fault::Pause];
    if weather::can(trace::available()).unwrap() {
        faults.push(Fault::SlowSync);
    }
    weather(Setting::One, &faults, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_in_bad_weather() {
    let Some(config) = real::one_server("weather") else { return };
    let faults = [Fault::StoreHangs, Fault::KillLeader, Fault::RestartGateway];
    weather(Setting::Cluster, &faults, config.contact_points.first().cloned()).await;
}
