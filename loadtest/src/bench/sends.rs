//! Durable sends: hot groups, sparse conversations, and the pairs by which other servers were measured.

use std::{path::Path, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Plan, Row, peer::RawPeer, store};
use crate::{
    client::{Counters, Target, token::Signer},
    crowd::{Crowd, Habits, Manner, Measured, Pace, Person},
    metrics::Metrics,
    raw::{self, append},
    server::Server,
};

const BODY_BYTES: usize = 200;
/// What one message needs on a disk: its body and about 100 bytes of seq, sender, id, time and checksum.
const RECORD_BYTES: usize = 300;
pub(super) const WARM_UP: Duration = Duration::from_secs(1);
/// Groups for the raw appends when the server does not say how large its own are.
const GROUPS: [usize; 4] = [1, 8, 64, 256];

/// Who sends where.
pub(super) struct Shape {
    pub(super) load: String,
    pub(super) aim: &'static str,
    pub(super) clients: usize,
    /// Members of each conversation, by index.
    pub(super) groups: Vec<Vec<usize>>,
    /// Others, who are away, per client: direct conversations beside the groups.
    pub(super) away: usize,
    /// Whether a client sends at all.
    pub(super) sends: fn(usize) -> bool,
    pub(super) window: usize,
    /// Instead: everybody sends so often, whatever the answers do.
    pub(super) every: Option<Duration>,
}

pub(super) async fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let shape = shape(plan, name);
    let on_cql = name == "store-cql-groups";
    let settings = if on_cql { store::settings(&store::config(plan)?) } else { Vec::new() };
    let (mut server, home) = plan.server_with(&settings).await?;
    let (measured, counters, before, after) = ours(plan, &shape, &server, false).await?;
    let mut row = Row::of(name, shape.load.clone(), "sends/s", measured.acks_per_s, &measured);
    row.aim = shape.aim.into();
    let events = after.since(&before, "chappe_store_events_written_total");
    let rows = after.since(&before, "chappe_store_rows_written_total");
    row.rows_per_message = (events > 0.0).then(|| rows / events);
    row.notes.push(format!("{:.2} deliveries per send", measured.deliveries as f64 / (measured.acks as f64).max(1.0)));
    if counters.resyncs + counters.gaps + counters.retries > 0 {
        row.notes.push(format!("{} resyncs, {} gaps, {} retries", counters.resyncs, counters.gaps, counters.retries));
    }
    let tables = after.since_by_label(&before, "chappe_store_rows_written_total");
    let tables: Vec<String> = tables.into_iter().map(|(table, rows)| format!("{table} {rows:.0}")).collect();
    row.notes.push(format!("rows by table, for {events:.0} events: {}", tables.join(", ")));
    server.terminate().await?;
    // What stands beside it is for servers that sync their own disk.
    if !plan.no_peers && !on_cql {
        let members = shape.groups.first().map_or(1, Vec::len);
        let echo = measured.deliveries as f64 > measured.acks as f64 * (members as f64 - 0.5);
        let size =
            |bytes: u64, count: u64, default: usize| bytes.checked_div(count).map_or(default, |bytes| bytes as usize);
        let ack_bytes = size(counters.ack_bytes, counters.acks, 120);
        let delivery_bytes = size(counters.event_bytes, counters.events, 420);
        let raw = raw_server(plan, &shape, ack_bytes, delivery_bytes, echo).await?;
        let cpu = raw.server_cpu_s * 1e6 / (raw.acks as f64).max(1.0);
        row.beside("raw server", raw.acks_per_s, cpu, raw.tester_share);
        row.notes.push(format!(
            "raw server: the same traffic, {ack_bytes} byte acks, {delivery_bytes} byte deliveries, {}; ack p50 {:.2} ms, p99 {:.2}",
            if echo { "the sender hears itself" } else { "the sender does not hear itself" },
            raw.ack_ms.p50,
            raw.ack_ms.p99
        ));
        if name == "hot" || name == "sparse" {
            appends(plan, &mut row, home.path(), &before, &after)?;
        }
    }
    Ok(row)
}

/// The tester's own ceiling: the hot load against the server without logic. Needs no server of ours.
pub(super) async fn tester(plan: &Plan) -> anyhow::Result<Row> {
    let shape = shape(plan, "hot");
    let measured = raw_server(plan, &shape, 120, 420, true).await?;
    let load = format!("the tester's own ceiling: {}, against the raw server", shape.load);
    let mut row = Row::of("tester", load, "sends/s", measured.acks_per_s, &measured);
    let frames = (measured.acks * 2 + measured.deliveries) as f64;
    row.notes.push(format!(
        "the tester itself used {:.2} us of CPU per frame, in and out",
        measured.tester_cpu_s * 1e6 / frames.max(1.0)
    ));
    Ok(row)
}

pub(super) fn shape(plan: &Plan, name: &str) -> Shape {
    let pairs = |pairs: usize, window: usize, aim: &'static str| {
        let pairs = plan.scaled(pairs);
        Shape {
            load: format!(
                "{pairs} senders, each with one receiver online, {window} in flight, {BODY_BYTES} byte bodies"
            ),
            aim,
            clients: pairs * 2,
            groups: (0..pairs).map(|pair| vec![pair * 2, pair * 2 + 1]).collect(),
            away: 0,
            sends: |index| index % 2 == 0,
            window,
            every: None,
        }
    };
    match name {
        "pairs-64x1" => pairs(64, 1, "≤ 30 µs of server CPU per send with its delivery"),
        "pairs-256x1" => pairs(256, 1, ""),
        "pairs-64x8" => pairs(64, 8, "≤ 10 µs of server CPU per send with its delivery"),
        "sparse" => {
            let (clients, away) = (plan.scaled(10_000), 9);
            Shape {
                load: format!(
                    "{} users: {clients} connected, each in {away} direct conversations with users who are away; every send goes to its \
                     sender's next conversation, so {} conversations take turns; 1 in flight each, {BODY_BYTES} byte bodies",
                    clients * (away + 1),
                    clients * away
                ),
                aim: "≥ 0.5 of the raw server; ≤ 1.05 rows per message",
                clients,
                groups: Vec::new(),
                away,
                sends: |_| true,
                window: 1,
                every: None,
            }
        }
        _ => {
            let on_cql = name == "store-cql-groups";
            let groups = plan.scaled(if on_cql { 20 } else { 100 });
            Shape {
                load: format!(
                    "{} clients in {groups} groups of 10, all send, 8 in flight each, {BODY_BYTES} byte bodies{}",
                    groups * 10,
                    if on_cql { "; the log in CQL" } else { "" }
                ),
                aim: if on_cql {
                    "≤ 1.1 rows per message, and one per active user and minute"
                } else {
                    "≥ 0.5 of the raw server; ≤ 1.05 rows per message"
                },
                clients: groups * 10,
                groups: (0..groups).map(|group| (group * 10..group * 10 + 10).collect()).collect(),
                away: 0,
                sends: |_| true,
                window: 8,
                every: None,
            }
        }
    }
}

fn habits(receipts: bool) -> Habits {
    Habits { body_bytes: BODY_BYTES, receipts, ..Habits::default() }
}

fn manner() -> Manner {
    Manner { habits: habits(false), ..Manner::default() }
}

/// The figures, what the clients counted, and the server's own counters before and after.
pub(super) async fn ours(
    plan: &Plan,
    shape: &Shape,
    server: &Server,
    receipts: bool,
) -> anyhow::Result<(Measured, Counters, Metrics, Metrics)> {
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let crowd = crowd(shape, &target, &server.signer()?, receipts).await?;
    let (measured, before, after) = work(plan, &crowd, server, WARM_UP).await?;
    let counters = crowd.counters().await;
    crowd.leave().await;
    Ok((measured, counters, before, after))
}

/// The clients of a shape, connected and in their conversations.
pub(super) async fn crowd(
    shape: &Shape,
    target: &Arc<Target>,
    signer: &Signer,
    receipts: bool,
) -> anyhow::Result<Crowd> {
    let mut people = Vec::with_capacity(shape.clients);
    for index in 0..shape.clients {
        let user = format!("user-{index}");
        people.push(Person { token: signer.sign(&user)?, user, target: Arc::clone(target), speech: None });
    }
    let crowd = Crowd::connect(people, Manner { habits: habits(receipts), ..manner() }, |_| {}).await?;
    let mut homes: Vec<Vec<Uuid>> = vec![Vec::new(); shape.clients];
    let groups = crowd.create_groups(&shape.groups, |_| {}).await?;
    for (members, group) in shape.groups.iter().zip(groups) {
        members.iter().for_each(|member| homes[*member].push(group));
    }
    let away = (0..shape.clients)
        .flat_map(|member| (0..shape.away).map(move |other| (member, format!("away-{member}-{other}"))));
    let away: Vec<_> = away.collect();
    let directs = crowd.create_directs(&away, |_| {}).await?;
    for ((member, _), direct) in away.iter().zip(directs) {
        homes[*member].push(direct);
    }
    assign(&crowd, shape, homes);
    Ok(crowd)
}

/// Lets a crowd work and then rest; what the server counted before and after the measurement.
pub(super) async fn work(
    plan: &Plan,
    crowd: &Crowd,
    server: &Server,
    warm_up: Duration,
) -> anyhow::Result<(Measured, Metrics, Metrics)> {
    crowd.start();
    tokio::time::sleep(warm_up).await;
    let before = server.metrics().await?;
    let measured = crowd.measure(Duration::from_secs_f64(plan.secs), server.pid(), |_, _| {}).await?;
    let after = server.metrics().await?;
    crowd.rest().await?;
    Ok((measured, before, after))
}

/// The same crowd against the server without logic. A client whose conversations are all with people who are away is
/// a group of its own there.
pub(super) async fn raw_server(
    plan: &Plan,
    shape: &Shape,
    ack_bytes: usize,
    delivery_bytes: usize,
    echo: bool,
) -> anyhow::Result<Measured> {
    let mut group_of: Vec<usize> = (0..shape.clients).collect();
    for (group, members) in shape.groups.iter().enumerate() {
        members.iter().for_each(|member| group_of[*member] = group);
    }
    let mut args = vec!["raw-server".to_owned(), format!("--groups={}", shape.clients)];
    args.extend([format!("--ack-bytes={ack_bytes}"), format!("--delivery-bytes={delivery_bytes}")]);
    args.extend(echo.then(|| "--echo".to_owned()));
    let peer = RawPeer::start(&args).await?;
    let crowd = Crowd::connect(peer.people(group_of.iter().copied()).await?, manner(), |_| {}).await?;
    assign(&crowd, shape, group_of.iter().map(|group| vec![raw::conversation(*group)]).collect());
    crowd.start();
    tokio::time::sleep(WARM_UP).await;
    let measured = crowd.measure(Duration::from_secs_f64(plan.secs), peer.pid(), |_, _| {}).await?;
    crowd.leave().await;
    peer.stop().await;
    Ok(measured)
}

fn assign(crowd: &Crowd, shape: &Shape, homes: Vec<Vec<Uuid>>) {
    for (index, home) in homes.into_iter().enumerate() {
        let pace = match shape.every {
            _ if !(shape.sends)(index) => Pace::Listen,
            Some(every) => Pace::Open(every),
            None => Pace::Closed(shape.window),
        };
        crowd.assign(index, home, pace);
    }
}

fn appends(plan: &Plan, row: &mut Row, folder: &Path, before: &Metrics, after: &Metrics) -> anyhow::Result<()> {
    let events = after.since(before, "chappe_store_events_written_total");
    let syncs = after.since(before, "chappe_store_wal_fsync_duration_seconds_count");
    let observed = (syncs > 0.0 && events > 0.0).then(|| (events / syncs).round().max(1.0) as usize);
    let time = Duration::from_secs_f64((plan.secs / 4.0).clamp(0.5, 2.0));
    for group in observed.map_or(GROUPS.to_vec(), |observed| vec![observed]) {
        let appended = append::run(folder, group, RECORD_BYTES, time)?;
        row.beside(
            &format!("raw appends in groups of {group}"),
            appended.records_per_s,
            appended.cpu_us_per_record,
            0.0,
        );
    }
    if let Some(observed) = observed {
        row.notes.push(format!("the server synced about {observed} events at a time"));
    }
    Ok(())
}
