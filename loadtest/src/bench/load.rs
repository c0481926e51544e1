//! What becomes of the figures when the server is not busy (`half-load`), when everybody comes back at once (`resume`), and when
//! there is much that it knows (`growth`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use super::{
    Plan, Row,
    peer::RawPeer,
    sends::{self, Shape},
};
use crate::{
    client::Target,
    crowd::{Crowd, Manner, Pace},
    process, raw,
};

/// How long everybody has to come back.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// Conversations of each client whose growth is looked at.
const GROWTH: [usize; 4] = [1, 10, 100, 1_000];

/// How long a message takes when messages come half as fast as they could.
pub(super) async fn half(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let full = sends::shape(plan, "hot");
    let (mut server, _home) = plan.server().await?;
    let (reached, ..) = sends::ours(plan, &full, &server, false).await?;
    server.terminate().await?;
    let rate = reached.acks_per_s / 2.0;
    let every = Duration::from_secs_f64(full.clients as f64 / rate.max(1.0));
    let half = Shape {
        load: format!(
            "{} clients in groups of 10 write {rate:.0} messages per second together, half of what they reach",
            full.clients
        ),
        every: Some(every),
        ..full
    };
    let (mut server, _home) = plan.server().await?;
    let (measured, ..) = sends::ours(plan, &half, &server, false).await?;
    server.terminate().await?;
    let mut row = Row::of(name, half.load.clone(), "ms to the acknowledgement, p99", measured.ack_ms.p99, &measured);
    row.notes.push(format!(
        "{:.0} sends/s of {rate:.0} intended; each counts from when it was to be sent. At full load: p50 {:.2} ms, p99 {:.2}",
        measured.acks_per_s, reached.ack_ms.p50, reached.ack_ms.p99
    ));
    if !plan.no_peers {
        let raw = sends::raw_server(plan, &half, 120, 420, true).await?;
        let cpu = raw.server_cpu_s * 1e6 / (raw.acks as f64).max(1.0);
        row.beside("raw server", raw.ack_ms.p99, cpu, raw.tester_share);
        row.notes.push(format!("raw server at the same rate: p50 {:.2} ms, p99 {:.2}", raw.ack_ms.p50, raw.ack_ms.p99));
    }
    Ok(row)
}

/// Everybody loses their connection in the same moment, and resumes.
pub(super) async fn resume(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let groups = plan.scaled(500);
    let shape = Shape {
        load: format!(
            "{} clients in {groups} groups of 10 are thrown out at once; until the last has resumed all its conversations",
            groups * 10
        ),
        aim: "",
        clients: groups * 10,
        groups: (0..groups).map(|group| (group * 10..group * 10 + 10).collect()).collect(),
        sends: |_| false,
        ..sends::shape(plan, "hot")
    };
    let (mut server, _home) = plan.server().await?;
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let crowd = sends::crowd(&shape, &target, &server.signer()?, false).await?;
    let (cpu, meter) =
        (process::Meter::start(server.pid().context("the server does not run")?)?, process::Meter::of_self()?);
    let took = thrown_out(&crowd).await?;
    let (used, tester_share) = (cpu.share()? * process::cores() as f64 * took.as_secs_f64(), meter.share()?);
    let returns = crowd.returns().histogram();
    let mut row = Row {
        name: name.into(),
        load: shape.load.clone(),
        unit: "resumed per second".into(),
        figure: crowd.len() as f64 / took.as_secs_f64(),
        tester_share,
        tester_bound: tester_share > super::TESTER_SHARE_MAX,
        ..Row::default()
    };
    row.notes.push(format!(
        "back after p50 {:.0} ms, p99 {:.0}, the last {:.0}; {:.0} µs of server CPU each",
        returns.value_at_quantile(0.5) as f64 / 1e3,
        returns.value_at_quantile(0.99) as f64 / 1e3,
        returns.max() as f64 / 1e3,
        used * 1e6 / crowd.len() as f64
    ));
    crowd.leave().await;
    server.terminate().await?;
    if !plan.no_peers {
        let peer = RawPeer::start(&["raw-server".to_owned(), format!("--groups={groups}")]).await?;
        let people = peer.people((0..shape.clients).map(|client| client / 10)).await?;
        let crowd = Crowd::connect(people, Manner::default(), |_| {}).await?;
        (0..crowd.len()).for_each(|client| crowd.assign(client, vec![raw::conversation(client / 10)], Pace::Listen));
        let meter = process::Meter::of_self()?;
        let took = thrown_out(&crowd).await?;
        row.beside(
            "raw server, which has nothing to resume",
            crowd.len() as f64 / took.as_secs_f64(),
            0.0,
            meter.share()?,
        );
        crowd.leave().await;
        peer.stop().await;
    }
    Ok(row)
}

/// Everybody's connection breaks; until all are back.
async fn thrown_out(crowd: &Crowd) -> anyhow::Result<Duration> {
    let began = Instant::now();
    crowd.storm(0..crowd.len());
    while crowd.returns().histogram().len() < crowd.len() as u64 {
        ensure!(began.elapsed() < RETURN_MAX, "some are not back after {RETURN_MAX:?}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}

/// The same load over ever more conversations.
pub(super) async fn growth(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let clients = plan.scaled(1_000);
    let mut costs: Vec<f64> = Vec::new();
    let mut row = Row {
        name: name.into(),
        unit: "times the CPU per send with the most conversations as with the fewest".into(),
        ..Row::default()
    };
    for away in GROWTH {
        let shape = Shape { clients, away, ..sends::shape(plan, "sparse") };
        let (mut server, _home) = plan.server().await?;
        let began = Instant::now();
        let (measured, _, before, after) = sends::ours(plan, &shape, &server, false).await?;
        let memory = process::memory(server.pid().context("the server does not run")?)?;
        let events = after.since(&before, "chappe_store_events_written_total");
        let rows = after.since(&before, "chappe_store_rows_written_total");
        let cpu = measured.server_cpu_s * 1e6 / (measured.acks as f64).max(1.0);
        row.notes.push(format!(
            "{} conversations: {:.0} sends/s, p50 {:.2} ms, p99 {:.2}, {cpu:.1} µs of CPU per send, {:.3} rows per event, {:.0} MiB (PSS); {:.0} s with their making",
            clients * away,
            measured.acks_per_s,
            measured.ack_ms.p50,
            measured.ack_ms.p99,
            rows / events.max(1.0),
            memory.pss as f64 / 1048576.0,
            began.elapsed().as_secs_f64()
        ));
        costs.push(cpu);
        row.tester_share = row.tester_share.max(measured.tester_share);
        server.terminate().await?;
    }
    row.load = format!(
        "{clients} clients write to their direct conversations in turn, one in flight each; {} to {} conversations",
        clients * GROWTH[0],
        clients * GROWTH[GROWTH.len() - 1]
    );
    row.figure = costs.last().zip(costs.first()).map_or(f64::NAN, |(last, first)| last / first.max(1e-9));
    Ok(row)
}
