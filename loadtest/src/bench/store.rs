//! The log's stores by themselves, in this process: rows per second of appends with their fence reads, beside what the CQL driver
//! does with the same rows and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chappe_node::store::{
    Append, Confirmation, Done, PageRequest, Session, Shared, Show, Store, Written,
    cql::{self, Cql},
    embedded::{self, Embedded},
};
use chappe_schema::{
    body::Body,
    event::{Event, Fact},
    id::{CommandId, ConversationId, EntityId, Generation, Seq, UserId},
};
use tokio::{sync::oneshot, task::JoinSet};
use uuid::Uuid;

use super::{Plan, Row};
use crate::process;

/// Events in one append: what load makes of single messages. A power of two, so that no bucket is crossed.
const PACK: u64 = 32;

/// Entities that write at once, each one append after the other.
const ENTITIES: usize = 64;

/// Bytes of a message's text.
const TEXT: usize = 300;

pub(super) async fn embedded(plan: &Plan) -> anyhow::Result<Row> {
    let home = tempfile::Builder::new().prefix("chappe-bench-").tempdir_in(plan.folder())?;
    let directory = home.path().join("data");
    let open = move || Embedded::open(&directory, &embedded::Config::default(), Arc::new(|why| panic!("{why}")));
    let store = Arc::new(tokio::task::spawn_blocking(open).await??);
    let row = measure(plan, "store-embedded", Arc::clone(&store) as Arc<dyn Store>).await?;
    tokio::task::spawn_blocking(move || store.close()).await?;
    Ok(row)
}

/// A keyspace of the run's own, on the server that was given.
pub(super) fn config(plan: &Plan) -> anyhow::Result<cql::Config> {
    let Some(points) = &plan.cql else {
        bail!(
            "give the address of a CQL server with --cql; scripts/services up starts one, scripts/services env tells where"
        )
    };
    Ok(cql::Config {
        contact_points: points.split(',').map(str::to_owned).collect(),
        keyspace: format!("bench_{}_{}", std::process::id(), rand::random::<u16>()),
        replication_factor: plan.replicas,
        ..cql::Config::default()
    })
}

/// The same for a server, as `section.key=value`.
pub(super) fn settings(config: &cql::Config) -> Vec<String> {
    vec![
        "server.store=cql".to_owned(),
        format!("cql.contact_points={:?}", config.contact_points),
        format!("cql.keyspace={}", config.keyspace),
        format!("cql.replication_factor={}", config.replication_factor),
    ]
}

pub(super) async fn cql(plan: &Plan) -> anyhow::Result<Row> {
    let config = config(plan)?;
    let cql = Cql::open(&config).await?;
    let session = Session { id: 1, epoch: 1, generation: Generation(0) };
    // Both twice, in turn: a server of this kind is faster when it is warm.
    let store = || cql.enter(session, Arc::default());
    let mut rates = Vec::new();
    for _ in 0..2 {
        let raw = raw(plan, &cql, session).await?;
        let meter = process::Meter::of_self()?;
        let row = measure(plan, "store-cql", store()).await?;
        rates.push((row, raw, meter.share()?));
    }
    let (mut row, raw, share) = rates.pop().context("nothing was measured")?;
    row.tester_share = share;
    row.aim = "≥ 0.7 of the driver's raw batched inserts".to_owned();
    row.beside("driver alone", raw, 0.0, share);
    row.notes.push(format!("in keyspace {}, which is left there", config.keyspace));
    Ok(row)
}

/// Events that a page shows.
const PAGE: u64 = 50;

/// Pages that are read at each place.
const PAGES: usize = 300;

/// Appends of one conversation under way at once, while it is filled.
const FILLING: usize = 32;

/// A conversation of many messages: what its first, middle and last page take.
pub(super) async fn pages(plan: &Plan) -> anyhow::Result<Row> {
    let config = config(plan)?;
    let cql = Cql::open(&config).await?;
    let store = cql.enter(Session { id: 1, epoch: 1, generation: Generation(0) }, Arc::default());
    let (entity, text) = (entity(0), text()?);
    let events = plan.rows.div_ceil(PACK) * PACK;
    let began = Instant::now();
    let mut filling = JoinSet::new();
    for lane in 0..FILLING as u64 {
        let (store, entity, text) = (Arc::clone(&store), entity.clone(), text.clone());
        filling.spawn(async move {
            let firsts = (0..events / PACK).map(|pack| pack * PACK + 1).skip(lane as usize).step_by(FILLING);
            for first in firsts {
                let append = append(store.session(), &entity, first, &text)?;
                while ask(|done| store.append(vec![append.clone()], done)).await? != [Written::Durable] {}
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = filling.join_next().await {
        filled??;
    }
    let filled = began.elapsed();
    // Not always the same page: anywhere within some thousand events.
    let within = (events / 3).clamp(1, 4_096);
    let places = [("first", 1), ("middle", events / 2), ("last", events.saturating_sub(within + PAGE).max(1))];
    let mut took: [Vec<Duration>; 3] = Default::default();
    for _ in 0..PAGES {
        for ((_, low), took) in places.iter().zip(&mut took) {
            let from = low + rand::random_range(0..within);
            let request = PageRequest {
                entity: entity.clone(),
                from,
                upto: (from + PAGE - 1).min(events),
                newest_first: false,
                show: Show::Messages,
                limit: PAGE as usize,
                bytes_max: usize::MAX,
                reader: None,
            };
            let began = Instant::now();
            let page = ask(|done| store.page(request, done)).await??;
            took.push(began.elapsed());
            if page.events.is_empty() {
                bail!("the page from {from} on is empty");
            }
        }
    }
    took.iter_mut().for_each(|took| took.sort_unstable());
    let at = |took: &[Duration], share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    let medians = took.each_ref().map(|took| at(took, 0.5));
    let mut row = Row {
        name: "store-cql-pages".to_owned(),
        load: format!(
            "a conversation of {events} messages of {TEXT} bytes, pages of {PAGE} anywhere near three places"
        ),
        unit: "ms a page in the middle, p50".to_owned(),
        figure: medians[1],
        aim: "the first, the middle and the last page cost the same".to_owned(),
        ..Row::default()
    };
    for ((place, _), took) in places.iter().zip(&took) {
        row.notes.push(format!("{place} page: {:.2} ms (p50), {:.2} ms (p90)", at(took, 0.5), at(took, 0.9)));
    }
    let largest = medians.iter().fold(0.0f64, |a, b| a.max(*b));
    let least = medians.iter().fold(f64::MAX, |a, b| a.min(*b));
    row.notes.push(format!("the dearest place costs {:.2} of the cheapest", largest / least));
    row.notes.push(format!(
        "filled in {:.0} s, {:.0} rows/s",
        filled.as_secs_f64(),
        events as f64 / filled.as_secs_f64()
    ));
    row.notes.push(format!("in keyspace {}, which is left there", config.keyspace));
    Ok(row)
}

fn entity(index: usize) -> EntityId {
    // Another log in every run.
    ConversationId(Uuid::from_u128(u128::from(rand::random::<u64>()) << 64 | index as u128)).into()
}

fn append(session: Session, entity: &EntityId, first: Seq, text: &Body) -> anyhow::Result<Append> {
    let sender = UserId::new("ada").map_err(anyhow::Error::msg)?;
    let event = |seq| {
        Arc::new(Event {
            seq,
            n: seq,
            sender: sender.clone(),
            device: None,
            id: CommandId::fresh(),
            target: 0,
            created_at: seq,
            hash: seq,
            fact: Fact::MessageNew { body: text.clone(), mentions: None },
        })
    };
    Ok(Append {
        entity: entity.clone(),
        epoch: session.epoch,
        cw: first - 1,
        origin: session.epoch,
        after: if first > 1 { session.epoch } else { 0 },
        events: (first..first + PACK).map(event).collect(),
        announce: false,
    })
}

fn text() -> anyhow::Result<Body> {
    Body::parse(&format!("{{\"text\":\"{}\"}}", "x".repeat(TEXT))).map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// The driver alone: rows that are made once, sent again and again.
async fn raw(plan: &Plan, cql: &Cql, session: Session) -> anyhow::Result<f64> {
    let end = Instant::now() + Duration::from_secs_f64(plan.secs);
    let text = text()?;
    let mut tasks = JoinSet::new();
    for index in 0..ENTITIES {
        let mut raw = cql.raw(&append(session, &entity(index), 1, &text)?);
        tasks.spawn(async move {
            let mut first = 1;
            while Instant::now() < end {
                raw.insert(first).await?;
                first += PACK;
            }
            anyhow::Ok(first - 1)
        });
    }
    let began = Instant::now();
    let mut rows = 0;
    while let Some(task) = tasks.join_next().await {
        rows += task??;
    }
    Ok(rows as f64 / began.elapsed().as_secs_f64())
}

async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> anyhow::Result<T> {
    let (tx, rx) = oneshot::channel();
    // Whoever asks waits just below.
    question(Box::new(move |answer| drop(tx.send(answer))));
    rx.await.context("the store gave no answer")
}

/// Appends, each followed by a fence read that began after it: what a shard waits for.
async fn measure(plan: &Plan, name: &str, store: Arc<dyn Store>) -> anyhow::Result<Row> {
    let end = Instant::now() + Duration::from_secs_f64(plan.secs);
    let text = text()?;
    let (reads, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let fence = tokio::spawn(read_fence(Arc::clone(&store), Arc::clone(&reads), Arc::clone(&over)));
    let mut tasks = JoinSet::new();
    for index in 0..ENTITIES {
        let (store, entity, text, session) = (Arc::clone(&store), entity(index), text.clone(), store.session());
        tasks.spawn(async move {
            let (mut first, mut latencies) = (1, Vec::new());
            while Instant::now() < end {
                let began = Instant::now();
                let group = vec![append(session, &entity, first, &text)?];
                let outcomes = ask(|done| store.append(group, done)).await?;
                if outcomes != [Written::Durable] {
                    bail!("an append came to {outcomes:?}");
                }
                latencies.push(began.elapsed());
                first += PACK;
            }
            anyhow::Ok((first - 1, latencies))
        });
    }
    let began = Instant::now();
    let (mut rows, mut latencies) = (0, Vec::new());
    while let Some(task) = tasks.join_next().await {
        let (some, took) = task??;
        rows += some;
        latencies.extend(took);
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    fence.await??;
    latencies.sort_unstable();
    let at = |share: f64| {
        latencies.get((latencies.len() as f64 * share) as usize).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    };
    Ok(Row {
        name: name.to_owned(),
        load: format!("{ENTITIES} entities, appends of {PACK} events of {TEXT} bytes, one after the other"),
        unit: "rows/s".to_owned(),
        figure: rate,
        notes: vec![format!(
            "an append takes {:.2} ms (p50), {:.2} ms (p99); {} fence reads meanwhile",
            at(0.5),
            at(0.99),
            reads.load(Ordering::Relaxed)
        )],
        ..Row::default()
    })
}

/// One fence read after the other, as a shard under load has them.
async fn read_fence(store: Arc<dyn Store>, reads: Arc<AtomicU64>, over: Arc<AtomicBool>) -> anyhow::Result<()> {
    while !over.load(Ordering::Relaxed) {
        let (tx, rx) = oneshot::channel();
        let tell = move |confirmation| {
            // Whoever asked waits below.
            let _ = tx.send(confirmation);
        };
        let at_once = store.confirm(Box::new(tell));
        let confirmation = match at_once {
            // Nothing to be read: not every microsecond either.
            Some(confirmation) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                confirmation
            }
            None => rx.await.context("the store gave no answer")?,
        };
        if confirmation != Confirmation::Clean {
            bail!("the fence was read as {confirmation:?}");
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
