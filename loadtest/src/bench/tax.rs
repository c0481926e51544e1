//! The cluster's tax: what a message costs through a gateway, QUIC and a node of its own, beside one server that does all of it,
//! on the same CQL server and under the same load.

use std::{sync::Arc, time::Duration};

use anyhow::Context;

use super::{
    Plan, Row,
    sends::{WARM_UP, crowd, ours, shape},
    store,
};
use crate::{client::Target, local::Which, process::Meter};

/// The first port of the two processes.
const PORT: u16 = 17_400;

pub(super) async fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let config = store::config(plan)?;
    let shape = shape(plan, if name == "tax-1" { "pairs-64x1" } else { "pairs-64x8" });

    let (mut server, _data) = plan.server_with(&store::settings(&config)).await?;
    let (alone, ..) = ours(plan, &shape, &server, false).await?;
    server.terminate().await?;

    let (_home, cluster) = plan.cluster(1, 1, PORT).await?;
    let target = Arc::new(Target::resolve(cluster.urls().first().context("no gateway")?).await?);
    let crowd = crowd(&shape, &target, &cluster.signer()?, false).await?;
    let (node, gateway) = (cluster.pid(Which::Node(0)), cluster.pid(Which::Gateway(0)));
    crowd.start();
    tokio::time::sleep(WARM_UP).await;
    let meter = Meter::start(node.context("the node has ended")?)?;
    let mut together = crowd.measure(Duration::from_secs_f64(plan.secs), gateway, |_, _| {}).await?;
    let of_node = meter.cpu()?.as_secs_f64();
    let of_gateway = together.server_cpu_s;
    together.server_cpu_s += of_node;
    crowd.rest().await?;
    crowd.leave().await;
    cluster.stop().await?;

    let per_send = |seconds: f64, acks: u64| seconds * 1e6 / (acks as f64).max(1.0);
    let load = format!("{}, on a CQL server: a gateway and a node, beside one server", shape.load);
    let mut row = Row::of(name, load, "sends/s", together.acks_per_s, &together);
    row.aim = "≤ 2 times the CPU per send of one server".into();
    row.beside("one server", alone.acks_per_s, per_send(alone.server_cpu_s, alone.acks), alone.tester_share);
    row.notes.push(format!(
        "tax: {:.2} times the CPU per send of one server; the gateway {:.1} us, the node {:.1} us",
        per_send(together.server_cpu_s, together.acks) / per_send(alone.server_cpu_s, alone.acks).max(1e-9),
        per_send(of_gateway, together.acks),
        per_send(of_node, together.acks),
    ));
    row.notes.push(format!("one server: ack p50 {:.2} ms, p99 {:.2}", alone.ack_ms.p50, alone.ack_ms.p99));
    Ok(row)
}
