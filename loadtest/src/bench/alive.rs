//! What makes a chat feel alive, and what that costs: typing per message, presence of a crowd that comes and goes.
//!
//! Both are measured against the same crowd that does the same without anybody to tell.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Plan, Row, sends::work};
use crate::{
    client::Target,
    crowd::{Crowd, Habits, Manner, Measured, Pace, Person},
    process,
    server::Server,
};

const BODY_BYTES: usize = 200;
const GROUP: usize = 10;
const WARM_UP: Duration = Duration::from_secs(3);
/// Files that a process needs beside its sockets, and those of connections that are just broken.
const OTHER_FILES: usize = 2_000;
/// Somebody writes a message so often: longer than the pause in which a change of typing is not told.
const MESSAGE_EVERY: Duration = Duration::from_millis(1_500);
/// Each user comes or goes so often.
const FLAP_EVERY: Duration = Duration::from_secs(5);
const FLAPPING_USERS: usize = 20_000;

/// What `typing.started` and `typing.stopped` cost beside the message that ends them.
pub(super) async fn typing(plan: &Plan) -> anyhow::Result<Row> {
    let groups = plan.scaled(100);
    let mut runs = Vec::new();
    for types in [false, true] {
        let (mut server, _home) = plan.server().await?;
        let (crowd, homes) = gather(
            &server,
            groups,
            Manner { habits: Habits { body_bytes: BODY_BYTES, types, ..Habits::default() }, ..Manner::default() },
        )
        .await?;
        let everybody = || (0..crowd.len()).map(|member| (member, homes[member / GROUP]));
        crowd.open_each(everybody()).await;
        everybody().for_each(|(member, home)| crowd.assign(member, vec![home], Pace::Open(MESSAGE_EVERY)));
        runs.push(work(plan, &crowd, &server, WARM_UP).await?);
        crowd.leave().await;
        server.terminate().await?;
    }
    let [(quiet, _, _), (typed, before, after)] = &runs[..] else { anyhow::bail!("two runs were to be measured") };
    let per_message = |measured: &Measured| measured.server_cpu_s * 1e6 / (measured.acks as f64).max(1.0);
    let told = after.since(before, "chappe_typing_events_total");
    let load = format!(
        "{} clients in {groups} open groups of {GROUP}; each says that it writes and sends a message every {} ms",
        groups * GROUP,
        MESSAGE_EVERY.as_millis()
    );
    let mut row = Row::of(
        "typing",
        load,
        "us of server CPU per message for typing",
        per_message(typed) - per_message(quiet),
        typed,
    );
    let words = told * (GROUP - 1) as f64;
    row.notes.push(format!(
        "without typing {:.1} us per message, with it {:.1}; {:.2} changes told per message, {:.2} us per frame to a listener",
        per_message(quiet),
        per_message(typed),
        told / (typed.acks as f64).max(1.0),
        row.figure * typed.acks as f64 / words.max(1.0)
    ));
    row.aim = "rows per message do not change; what is told is bounded by the pause".into();
    let events = after.since(before, "chappe_store_events_written_total");
    row.rows_per_message = (events > 0.0).then(|| after.since(before, "chappe_store_rows_written_total") / events);
    Ok(row)
}

/// The CPU that presence takes while 20,000 users flap, each of whom nine others look at.
pub(super) async fn presence(plan: &Plan) -> anyhow::Result<Row> {
    let most = (process::raise_file_limit() as usize).saturating_sub(OTHER_FILES);
    let groups = plan.scaled(FLAPPING_USERS).min(most) / GROUP;
    let mut runs = Vec::new();
    for watched in [false, true] {
        let (mut server, _home) = plan.server().await?;
        let (crowd, homes) = gather(&server, groups, Manner::default()).await?;
        for (group, home) in homes.iter().enumerate() {
            let members = group * GROUP..(group + 1) * GROUP;
            for member in members.clone() {
                if watched {
                    crowd.watch(member, members.clone().filter(|other| *other != member), *home);
                }
                crowd.assign(member, vec![*home], Pace::Flap(FLAP_EVERY));
            }
        }
        runs.push(work(plan, &crowd, &server, WARM_UP).await?);
        crowd.leave().await;
        server.terminate().await?;
    }
    let [(alone, ..), (seen, before, after)] = &runs[..] else { anyhow::bail!("two runs were to be measured") };
    let share = |measured: &Measured| measured.server_cpu_s / measured.seconds * 100.0;
    let words = after.since(before, "chappe_presence_events_total") / seen.seconds;
    let users = groups * GROUP;
    let load = format!(
        "{users} connected users in {groups} groups of {GROUP}, each of whom the nine others watch; each changes every {} s, one change in ten is a broken connection",
        FLAP_EVERY.as_secs()
    );
    let mut row = Row::of("presence", load, "% of a core for presence", share(seen) - share(alone), seen);
    row.notes.push(format!(
        "{:.0} changes/s; without anybody who looks {:.1} % of a core, with everybody looking {:.1} %, of {} cores",
        users as f64 / FLAP_EVERY.as_secs_f64(),
        share(alone),
        share(seen),
        process::cores()
    ));
    row.notes.push(format!(
        "{words:.0} words/s told, {:.2} us of server CPU each; {:.0} watches, {:.0} users due at the end",
        row.figure * 1e4 / words.max(1.0),
        after.get("chappe_presence_watches"),
        after.get("chappe_presence_due")
    ));
    row.aim = "bounded by the budget, whatever flaps".into();
    Ok(row)
}

/// Connects groups of ten; returns where each talks.
async fn gather(server: &Server, groups: usize, manner: Manner) -> anyhow::Result<(Crowd, Vec<Uuid>)> {
    let target = Arc::new(Target::resolve(&server.url()).await?);
    let signer = server.signer()?;
    let mut people = Vec::with_capacity(groups * GROUP);
    for index in 0..groups * GROUP {
        let user = format!("user-{index}");
        people.push(Person { token: signer.sign(&user)?, user, target: Arc::clone(&target), speech: None });
    }
    let crowd = Crowd::connect(people, manner, |_| {}).await?;
    let shape: Vec<Vec<usize>> = (0..groups).map(|group| (group * GROUP..(group + 1) * GROUP).collect()).collect();
    let homes = crowd.create_groups(&shape, |_| {}).await?;
    Ok((crowd, homes))
}
