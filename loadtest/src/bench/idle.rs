//! What a connected, authenticated, silent client costs the server.

use std::{sync::Arc, time::Duration};

use anyhow::Context;

use super::{Plan, Row};
use crate::{
    client::Target,
    crowd::{Crowd, Manner, Person},
    process,
};

/// Files that a process needs beside its sockets.
const OTHER_FILES: u64 = 1_000;
/// Until allocators have given back what connecting took, and nothing moves.
const SETTLING: Duration = Duration::from_secs(5);

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Row> {
    let most = process::raise_file_limit().saturating_sub(OTHER_FILES) as usize;
    let clients = plan.scaled(15_000).min(most);
    let (mut server, _home) = plan.server().await?;
    let pid = server.pid().context("the server does not run")?;
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let signer = server.signer()?;
    let mut people = Vec::with_capacity(clients);
    for index in 0..clients {
        let user = format!("user-{index}");
        people.push(Person { token: signer.sign(&user)?, user, target: Arc::clone(&target), speech: None });
    }
    // The first few connections pay for what all share.
    let few = people.split_off(clients - (clients / 100).max(1));
    let warm = Crowd::connect(few, Manner::default(), |_| {}).await?;
    tokio::time::sleep(SETTLING / 2).await;
    let before = process::memory(pid)?;
    let meter = process::Meter::of_self()?;
    let crowd = Crowd::connect(people, Manner::default(), |_| {}).await?;
    tokio::time::sleep(SETTLING).await;
    let after = process::memory(pid)?;
    let connected = crowd.len();
    let cpu = process::Meter::start(pid)?;
    tokio::time::sleep(Duration::from_secs_f64(plan.secs)).await;
    let idle_cpu = cpu.share()? * process::cores() as f64;
    let kib = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1024.0 / connected as f64;
    let row = Row {
        name: "idle".into(),
        load: format!("{connected} authenticated WebSockets, each of another user, silent"),
        unit: "KiB per socket (PSS)".into(),
        figure: kib(after.pss, before.pss),
        aim: "≤ 8 KiB".into(),
        tester_share: meter.share()?,
        notes: vec![
            format!(
                "resident: {:.2} KiB per socket; the server's PSS is {:.1} MiB in all",
                kib(after.rss, before.rss),
                after.pss as f64 / 1048576.0
            ),
            format!("idle, the server uses {:.2} % of a core", idle_cpu * 100.0),
        ],
        ..Row::default()
    };
    crowd.leave().await;
    warm.leave().await;
    server.terminate().await?;
    Ok(row)
}
