//! One sender, 5,000 listeners in one conversation; the next message when all have the last (window 1), or the eighth
//! before it (window 8).

use std::{sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use super::{Plan, Row, peer::RawPeer};
use crate::{
    client::{Client, Counters, Options, Target},
    crowd::{Crowd, Habits, Manner, Measured, Pace, Person},
    raw,
    server::Server,
};

const BODY_BYTES: usize = 200;
/// Members that one creation may name.
const CREATE_MEMBERS_MAX: usize = 1_000;
const WARM_UP: Duration = Duration::from_secs(1);

pub(super) async fn measure(plan: &Plan, name: &str, window: usize) -> anyhow::Result<Row> {
    let listeners = plan.scaled(5_000);
    let (mut server, _home) = plan.server().await?;
    let (measured, counters) = ours(plan, listeners, window, &server).await?;
    server.terminate().await?;
    let load = format!("one sender, {listeners} listeners in one group, window {window}, {BODY_BYTES} byte bodies");
    let mut row = Row::of(name, load, "deliveries/s", measured.deliveries_per_s, &measured);
    row.cpu_us_per_send = None;
    let limit = if window == 1 { 7.5 } else { 2.0 };
    row.aim = format!("≥ 0.7 of the raw broadcast; ≤ {limit} µs of server CPU per delivery");
    if counters.resyncs > 0 {
        row.notes.push(format!("{} resyncs", counters.resyncs));
    }
    if plan.no_peers {
        return Ok(row);
    }
    let delivery_bytes = counters.event_bytes.checked_div(counters.events).map_or(420, |bytes| bytes as usize);
    // Ours may put a whole window into one write; then the loop may as well.
    let mut frames = vec![1, window];
    frames.dedup();
    for frames in frames {
        let args = [
            "raw-broadcast".to_owned(),
            format!("--sockets={listeners}"),
            format!("--delivery-bytes={delivery_bytes}"),
            format!("--frames-per-write={frames}"),
        ];
        let peer = RawPeer::start(&args).await?;
        let raw = at_peer(plan, listeners, window, peer).await?;
        let cpu = raw.server_cpu_s * 1e6 / (raw.deliveries as f64).max(1.0);
        row.beside(&format!("raw broadcast, {frames} per write"), raw.deliveries_per_s, cpu, raw.tester_share);
    }
    let args = ["raw-server".to_owned(), "--groups=1".to_owned(), format!("--delivery-bytes={delivery_bytes}")];
    let raw = at_peer(plan, listeners, window, RawPeer::start(&args).await?).await?;
    let cpu = raw.server_cpu_s * 1e6 / (raw.deliveries as f64).max(1.0);
    row.beside("raw server", raw.deliveries_per_s, cpu, raw.tester_share);
    Ok(row)
}

fn manner(listeners: usize) -> Manner {
    let habits = Habits { body_bytes: BODY_BYTES, ..Habits::default() };
    Manner { habits, sample: 64, fanout_listeners: Some(listeners as u64), ..Manner::default() }
}

async fn ours(plan: &Plan, listeners: usize, window: usize, server: &Server) -> anyhow::Result<(Measured, Counters)> {
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let signer = server.signer()?;
    let mut people = Vec::with_capacity(listeners + 1);
    for index in 0..=listeners {
        let user = format!("user-{index}");
        people.push(Person { token: signer.sign(&user)?, user, target: Arc::clone(&target), speech: None });
    }
    let group = gather(server, &people).await?;
    let crowd = Crowd::connect(people, manner(listeners), |_| {}).await?;
    crowd.open(group, 1..=listeners).await;
    let before = crowd.counters().await;
    crowd.assign(0, vec![group], Pace::Broadcast(window));
    let measured = work(plan, &crowd, server.pid()).await?;
    let after = crowd.counters().await;
    crowd.leave().await;
    let counters = Counters {
        events: after.events - before.events,
        event_bytes: after.event_bytes - before.event_bytes,
        resyncs: after.resyncs - before.resyncs,
        ..after
    };
    Ok((measured, counters))
}

/// Makes the group before its listeners are there: else each of them would hear of thousands joining, one by one, and
/// rightly fetch what it missed of that.
async fn gather(server: &Server, people: &[Person]) -> anyhow::Result<Uuid> {
    let refused = |failure| anyhow::anyhow!("the group cannot be made: {failure:?}");
    let (owner, _news) = Client::connect(&server.url(), &people[0].user, &people[0].token, Options::default()).await?;
    let names: Vec<&str> = people[1..].iter().map(|person| person.user.as_str()).collect();
    let (first, rest) = names.split_at(names.len().min(CREATE_MEMBERS_MAX));
    let group = owner.create_group("hall", first).await.map_err(refused)?;
    for name in rest {
        owner.request("member.add", json!({ "conversation": group, "user": name })).await.map_err(refused)?;
    }
    owner.stop().await;
    Ok(group)
}

async fn at_peer(plan: &Plan, listeners: usize, window: usize, peer: RawPeer) -> anyhow::Result<Measured> {
    let people = peer.people(std::iter::repeat_n(0, listeners + 1)).await?;
    let crowd = Crowd::connect(people, manner(listeners), |_| {}).await?;
    crowd.assign(0, vec![raw::conversation(0)], Pace::Broadcast(window));
    let measured = work(plan, &crowd, peer.pid()).await?;
    crowd.leave().await;
    peer.stop().await;
    Ok(measured)
}

async fn work(plan: &Plan, crowd: &Crowd, server: Option<u32>) -> anyhow::Result<Measured> {
    crowd.start();
    tokio::time::sleep(WARM_UP).await;
    crowd.measure(Duration::from_secs_f64(plan.secs), server, |_, _| {}).await
}
