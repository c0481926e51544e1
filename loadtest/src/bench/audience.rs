//! What a message costs by the size of its conversation: one writer, the same few listeners, and ten, a thousand and a hundred
//! thousand members. It must not depend on those who are not there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use serde_json::json;
use uuid::Uuid;

use super::{Plan, Row};
use crate::{
    client::{Client, Failure, Options, Target},
    crowd::{Crowd, Habits, Manner, Measured, Pace, Person},
    process::memory,
    server::Server,
};

const SIZES: [usize; 3] = [10, 1_000, 100_000];
const LISTENERS: usize = 8;
const WINDOW: usize = 8;
const BODY_BYTES: usize = 200;
/// Additions under way at the same time.
const ADDING: usize = 48;
const WARM_UP: Duration = Duration::from_secs(1);
/// Members who are asked whether they have heard that it was deleted: the first, the last, and some between.
const ASKED: usize = 20;
/// How long that may take, a hundred thousand being told.
const PARTED_MAX: Duration = Duration::from_secs(120);

/// What one size of the audience comes to.
struct Run {
    members: usize,
    measured: Measured,
    /// To add one member.
    added_us: f64,
    /// After a kill: until its owner is connected and the channel has answered.
    opened_ms: f64,
    /// And the resident bytes that it takes then.
    bytes: u64,
    /// Until its deletion was acknowledged.
    deleted_ms: f64,
    /// After a kill right behind that, and with the server's start: until nobody who was asked lists it any more.
    gone_ms: f64,
}

pub(super) async fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let mut runs = Vec::new();
    for members in SIZES {
        let members = if members > 1_000 { plan.scaled(members) } else { members };
        runs.push(at(plan, members).await.with_context(|| format!("{members} members"))?);
    }
    let cpu = |run: &Run| run.measured.server_cpu_s * 1e6 / (run.measured.acks as f64).max(1.0);
    let [few, .., many] = &runs[..] else { unreachable!("there are three") };
    let load = format!(
        "a channel of {} members: one writes, {WINDOW} in flight, {LISTENERS} listen, {BODY_BYTES} byte bodies; the figure is \
         its CPU per send through that of {} members",
        many.members, few.members
    );
    let mut row = Row::of(name, load, "times the CPU per send", cpu(many) / cpu(few).max(1e-9), &many.measured);
    row.aim = "1.0: a message costs the same, however many members there are".into();
    for run in &runs {
        row.notes.push(format!(
            "{} members: {:.1} us of server CPU per send ({:.0} sends/s); {:.0} us to add one; after a \
             kill {:.0} ms until its owner is connected and answered, and {:.1} MiB in memory; deleted in {:.1} ms, and, killed \
             at once, on nobody's list {:.0} ms later",
            run.members,
            cpu(run),
            run.measured.acks_per_s,
            run.added_us,
            run.opened_ms,
            run.bytes as f64 / f64::from(1 << 20),
            run.deleted_ms,
            run.gone_ms
        ));
    }
    Ok(row)
}

async fn at(plan: &Plan, members: usize) -> anyhow::Result<Run> {
    let (mut server, _home) = plan.server().await?;
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let signer = server.signer()?;
    let mut people = Vec::with_capacity(LISTENERS + 1);
    for index in 0..=LISTENERS {
        let user = format!("user-{index}");
        people.push(Person { token: signer.sign(&user)?, user, target: Arc::clone(&target), speech: None });
    }
    let began = Instant::now();
    let channel = gather(&server, &people, members).await?;
    let added_us = began.elapsed().as_secs_f64() * 1e6 / members as f64;
    // What was in memory because a hundred thousand users have just become members is not what is measured; and whoever is a member
    // is one after a crash.
    server.kill().await?;
    server.restart().await?;
    let pid = server.pid().context("the server is not running")?;
    // Whoever connects asks where the channel stands, so that is read from its rows.
    let (before, began) = (memory(pid)?.rss, Instant::now());
    let (owner, _news) = Client::connect(&server.url(), &people[0].user, &people[0].token, Options::default()).await?;
    let shown = owner.request("conversation.get", json!({ "conversation": channel })).await.map_err(refused)?;
    let opened_ms = began.elapsed().as_secs_f64() * 1e3;
    let bytes = memory(pid)?.rss.saturating_sub(before);
    owner.stop().await;
    ensure!(shown["conversation"]["members"] == members, "there are other members than were added: {shown}");
    let manner = Manner { habits: Habits { body_bytes: BODY_BYTES, ..Habits::default() }, ..Manner::default() };
    let crowd = Crowd::connect(people.clone(), manner, |_| {}).await?;
    crowd.open(channel, 1..=LISTENERS).await;
    crowd.assign(0, vec![channel], Pace::Closed(WINDOW));
    (1..=LISTENERS).for_each(|listener| crowd.assign(listener, vec![channel], Pace::Listen));
    crowd.start();
    tokio::time::sleep(WARM_UP).await;
    let measured = crowd.measure(Duration::from_secs_f64(plan.secs), Some(pid), |_, _| {}).await?;
    crowd.leave().await;
    let (owner, _news) = Client::connect(&server.url(), &people[0].user, &people[0].token, Options::default()).await?;
    let began = Instant::now();
    owner.request("conversation.delete", json!({ "conversation": channel })).await.map_err(refused)?;
    let deleted_ms = began.elapsed().as_secs_f64() * 1e3;
    // All members are yet to be told.
    server.kill().await?;
    owner.stop().await;
    let began = Instant::now();
    server.restart().await?;
    for asked in 0..ASKED {
        let member = people.len() + asked * (members - people.len()) / ASKED;
        let user = if member < members { format!("member-{member}") } else { people[1].user.clone() };
        parted(&server, &user, &signer.sign(&user)?, channel).await?;
    }
    let gone_ms = began.elapsed().as_secs_f64() * 1e3;
    server.terminate().await?;
    Ok(Run { members, measured, added_us, opened_ms, bytes, deleted_ms, gone_ms })
}

/// Waits until a user does not list the channel.
async fn parted(server: &Server, user: &str, token: &str, channel: Uuid) -> anyhow::Result<()> {
    let (client, _news) = Client::connect(&server.url(), user, token, Options::default()).await?;
    let began = Instant::now();
    loop {
        let listed = client.request("conversation.list", json!({})).await.map_err(refused)?;
        let rows = listed["conversations"].as_array().context("there is no list")?;
        if !rows.iter().any(|row| row["id"] == channel.to_string()) {
            client.stop().await;
            return Ok(());
        }
        ensure!(began.elapsed() < PARTED_MAX, "{user} still lists a channel that was deleted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused(failure: Failure) -> anyhow::Error {
    anyhow!("the server refuses: {failure:?}")
}

/// A channel of the first of these people, with the others and strangers as members.
async fn gather(server: &Server, people: &[Person], members: usize) -> anyhow::Result<Uuid> {
    let (owner, _news) = Client::connect(&server.url(), &people[0].user, &people[0].token, Options::default()).await?;
    let listeners: Vec<&str> = people[1..].iter().map(|person| person.user.as_str()).collect();
    let create = json!({ "kind": "channel", "title": "news", "members": listeners });
    let created = owner.request("conversation.create", create).await.map_err(refused)?;
    let channel: Uuid = created["conversation"]["id"].as_str().context("the channel has no id")?.parse()?;
    let (owner, next) = (Arc::new(owner), Arc::new(AtomicUsize::new(people.len())));
    let mut adding = tokio::task::JoinSet::new();
    for _ in 0..ADDING {
        let (owner, next) = (Arc::clone(&owner), Arc::clone(&next));
        adding.spawn(async move {
            loop {
                let member = next.fetch_add(1, Relaxed);
                if member >= members {
                    return Ok(());
                }
                let args = json!({ "conversation": channel, "user": format!("member-{member}") });
                owner.request("member.add", args).await?;
            }
        });
    }
    while let Some(added) = adding.join_next().await {
        added?.map_err(refused)?;
    }
    if let Some(owner) = Arc::into_inner(owner) {
        owner.stop().await;
    }
    Ok(channel)
}
