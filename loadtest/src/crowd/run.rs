//! `run`: a crowd in groups against a server, with figures, a verdict and a report.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::Serialize;
use uuid::Uuid;

use super::{Crowd, Manner, Measured, Pace, Person};
use crate::{
    client::{Counters, Encoding, Target, http::Http, token::Signer},
    history::History,
    oracle::{Limits, Oracle, Verdict},
    process::{self, Memory},
    report,
    server::{Server, Setup},
};

/// Load with figures and a verdict.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    /// The server, as http://host:port; starts one of its own if absent.
    #[arg(long)]
    pub url: Option<String>,
    /// The server's binary, when one is started; default: chappe-node beside this binary.
    #[arg(long)]
    pub server: Option<PathBuf>,
    /// An argument for the server that is started; may be given several times.
    #[arg(long = "server-arg", allow_hyphen_values = true)]
    pub server_args: Vec<String>,
    /// The server's process, for its CPU and memory, when it is not ours.
    #[arg(long)]
    pub pid: Option<u32>,
    /// The server's data directory, whose secret signs tokens; without it they are asked for one by one.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Clients.
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub clients: usize,
    /// How frames are written: json or protobuf.
    #[arg(long, default_value_t)]
    pub encoding: Encoding,
    /// Members of each group.
    #[arg(long, default_value_t = 10)]
    pub group: usize,
    /// Bytes of each body.
    #[arg(long, default_value_t = 200)]
    pub body: usize,
    /// Messages in flight per client (closed loop).
    #[arg(long, default_value_t = 1)]
    pub window: usize,
    /// Messages per second of the whole crowd (open loop: latencies count from the intended time).
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 10.0)]
    pub secs: f64,
    /// Seconds of warming up.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Decides who is in which group, and the users' names.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Members say what has reached them and that they have read it.
    #[arg(long)]
    pub receipts: bool,
    /// One in so many deliveries has its latency measured.
    #[arg(long, default_value_t = 4)]
    pub sample: u64,
    /// Do not keep or judge a history: only figures.
    #[arg(long)]
    pub unjudged: bool,
    /// The longest outage of a conversation that the oracle accepts, in milliseconds.
    #[arg(long)]
    pub outage_max: Option<u64>,
    /// Write the history here, as JSONL.
    #[arg(long)]
    pub history: Option<PathBuf>,
    /// Write the report here, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the report here, as a page with plots.
    #[arg(long)]
    pub html: Option<PathBuf>,
}

/// What a run found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was asked for.
    pub plan: Plan,
    /// The seed that was used.
    pub seed: u64,
    /// CPUs of the machine.
    pub cores: usize,
    /// What was measured.
    pub measured: Measured,
    /// What the clients counted, over the whole run.
    pub counters: ClientCounts,
    /// Refusals outside the measurement that were repeated later, by their code.
    pub delayed_otherwise: BTreeMap<String, u64>,
    /// The server's memory after the load, if its process is known.
    pub server_memory: Option<Memory>,
    /// The server's CPU in microseconds per acknowledged send, with its deliveries.
    pub server_cpu_us_per_send: f64,
    /// The server's CPU in microseconds per delivery, with its part of the sends.
    pub server_cpu_us_per_delivery: f64,
    /// More than half of the machine went to the tester: the figures say more about it than about the server.
    pub tester_bound: bool,
    /// The oracle's verdict.
    pub verdict: Option<Verdict>,
}

/// The clients' own counts.
#[derive(Debug, Default, Serialize)]
pub struct ClientCounts {
    /// Connections that became ready.
    pub connects: u64,
    /// Requests written again.
    pub retries: u64,
    /// Gaps without a word of the server.
    pub gaps: u64,
    /// Events that had arrived before.
    pub repeats: u64,
    /// Resyncs.
    pub resyncs: u64,
}

impl From<Counters> for ClientCounts {
    fn from(counters: Counters) -> Self {
        let Counters { connects, retries, gaps, repeats, resyncs, .. } = counters;
        Self { connects, retries, gaps, repeats, resyncs }
    }
}

/// Runs the plan; prints, writes the reports, and fails if a promise was broken.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    if plan.clients == 0 || plan.group == 0 {
        bail!("a crowd needs clients and groups need members");
    }
    process::raise_file_limit();
    let outcome = carry_out(plan).await?;
    print(&outcome);
    if let Some(path) = &outcome.plan.json {
        serde_json::to_writer_pretty(File::create(path).with_context(|| path.display().to_string())?, &outcome)?;
    }
    if let Some(path) = &outcome.plan.html {
        std::fs::write(path, report::page(&outcome)?).with_context(|| path.display().to_string())?;
    }
    match &outcome.verdict {
        Some(verdict) if !verdict.is_clean() => bail!("promises were broken"),
        _ => Ok(()),
    }
}

async fn carry_out(plan: Plan) -> anyhow::Result<Outcome> {
    let seed = plan.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let ours = match &plan.url {
        Some(_) => None,
        None => {
            let setup = Setup {
                binary: plan.server.clone(),
                data_dir: plan.data_dir.clone(),
                unlimited: true,
                args: plan.server_args.clone(),
                ..Setup::default()
            };
            let server = Server::start(setup).await?;
            println!("started {} (process {})", server.url(), server.pid().unwrap_or(0));
            Some(server)
        }
    };
    let url = ours.as_ref().map_or_else(|| plan.url.clone().unwrap_or_default(), Server::url);
    let pid = plan.pid.or_else(|| ours.as_ref().and_then(Server::pid));
    let data_dir = ours.as_ref().map(|server| server.data_dir().to_owned()).or_else(|| plan.data_dir.clone());
    let people = people(&plan, seed, &url, data_dir.as_deref()).await?;

    let history = if plan.unjudged { None } else { Some(history(&plan)?) };
    let manner = Manner {
        encoding: plan.encoding,
        body_bytes: plan.body,
        sample: plan.sample,
        history: history.clone(),
        fanout_listeners: None,
        types: false,
        receipts: plan.receipts,
    };
    let bar = bar("connecting", plan.clients as u64);
    let crowd = Crowd::connect(people, manner, |done| bar.set_position(done)).await?;
    let groups = groups(plan.clients, plan.group, seed);
    let conversations = crowd.create_groups(&groups, |_| {}).await?;
    bar.finish_and_clear();
    for (group, conversation) in groups.iter().zip(&conversations) {
        for member in group {
            let pace = plan.rate.map_or(Pace::Closed(plan.window), |rate| {
                Pace::Open(Duration::from_secs_f64(plan.clients as f64 / rate))
            });
            crowd.assign(*member, vec![*conversation], pace);
        }
    }
    crowd.start();
    tokio::time::sleep(Duration::from_secs_f64(plan.warmup)).await;
    let measured = watch(&crowd, &plan, pid).await?;
    crowd.rest().await?;
    let server_memory = pid.and_then(|pid| process::memory(pid).ok());
    let verdict = match &history {
        Some(history) => Some(judge(&crowd, &groups, &conversations, history).await?),
        None => None,
    };
    let counters = crowd.counters().await.into();
    let delayed_otherwise = crowd.delayed();
    crowd.leave().await;
    if let Some(mut server) = ours {
        server.terminate().await?;
    }
    Ok(Outcome {
        seed,
        cores: process::cores(),
        counters,
        delayed_otherwise,
        server_memory,
        server_cpu_us_per_send: measured.server_cpu_s * 1e6 / (measured.acks as f64).max(1.0),
        server_cpu_us_per_delivery: measured.server_cpu_s * 1e6 / (measured.deliveries as f64).max(1.0),
        tester_bound: measured.tester_share > 0.5,
        measured,
        verdict,
        plan,
    })
}

async fn people(plan: &Plan, seed: u64, url: &str, data_dir: Option<&std::path::Path>) -> anyhow::Result<Vec<Person>> {
    let target = Arc::new(Target::resolve(url).await?);
    let signer = data_dir.map(Signer::of_data_dir).transpose()?;
    let http = Http::new(url);
    // Names are new in every run: a server that keeps its data knows the old ones.
    let run = seed ^ SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut people = Vec::with_capacity(plan.clients);
    for index in 0..plan.clients {
        let user = format!("load-{run:x}-{index}");
        let token = match &signer {
            Some(signer) => signer.sign(&user)?,
            None => http.token(&user).await?,
        };
        people.push(Person { user, token, target: Arc::clone(&target) });
    }
    Ok(people)
}

/// Everybody into groups of about the same size, by chance.
fn groups(clients: usize, size: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut all: Vec<usize> = (0..clients).collect();
    all.shuffle(&mut SmallRng::seed_from_u64(seed));
    all.chunks(size).map(<[usize]>::to_vec).collect()
}

fn history(plan: &Plan) -> anyhow::Result<Arc<History>> {
    let file =
        plan.history.as_ref().map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()?;
    let limits = Limits { unavailable_us_max: plan.outage_max.map(|ms| ms * 1000) };
    Ok(History::judged(Oracle::new(limits), file))
}

async fn watch(crowd: &Crowd, plan: &Plan, pid: Option<u32>) -> anyhow::Result<Measured> {
    let bar = bar("measuring", (plan.secs * 10.0) as u64);
    let measured = crowd
        .measure(Duration::from_secs_f64(plan.secs), pid, |passed, now| {
            bar.set_position((passed.as_secs_f64() * 10.0) as u64);
            let rate = |count: u64| count as f64 / now.seconds.max(0.001);
            bar.set_message(format!(
                "{:.0} acks/s, {:.0} deliveries/s, {} failures",
                rate(now.acks),
                rate(now.deliveries),
                now.failures
            ));
        })
        .await?;
    bar.finish_and_clear();
    Ok(measured)
}

async fn judge(
    crowd: &Crowd,
    groups: &[Vec<usize>],
    conversations: &[Uuid],
    history: &Arc<History>,
) -> anyhow::Result<Verdict> {
    let reads: Vec<_> =
        groups.iter().zip(conversations).flat_map(|(group, id)| group.iter().map(|member| (*member, *id))).collect();
    let bar = bar("reading back", reads.len() as u64);
    crowd.read_all(&reads, |done| bar.set_position(done)).await?;
    // One member of each group is shown what everybody has got.
    let shown: Vec<_> = groups.iter().zip(conversations).map(|(group, id)| (group[0], *id)).collect();
    crowd.read_receipts(&shown).await?;
    bar.finish_and_clear();
    Ok(history.verdict()?)
}

fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {percent:>3}% {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_prefix(what)
}

fn print(outcome: &Outcome) {
    let Outcome { measured: m, counters: c, .. } = outcome;
    println!(
        "acks        {:>10.0}/s   p50 {:.2} ms  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        m.acks_per_s, m.ack_ms.p50, m.ack_ms.p90, m.ack_ms.p99, m.ack_ms.p999, m.ack_ms.max
    );
    println!(
        "deliveries  {:>10.0}/s   p50 {:.2} ms  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        m.deliveries_per_s,
        m.delivery_ms.p50,
        m.delivery_ms.p90,
        m.delivery_ms.p99,
        m.delivery_ms.p999,
        m.delivery_ms.max
    );
    println!(
        "failures    {:>10}     lost connections {}, retries {}, resyncs {}, gaps {}, repeats {}",
        m.failures, m.lost, c.retries, c.resyncs, c.gaps, c.repeats
    );
    if m.receipts > 0 {
        println!(
            "receipts    {:>10.0}/s   {:.0} words of others' per second",
            m.receipts as f64 / m.seconds,
            m.receipts_heard as f64 / m.seconds
        );
    }
    if m.server_cpu_s > 0.0 {
        println!(
            "server      {:>10.1} us CPU per send, {:.2} us per delivery, {:.2} of a core",
            outcome.server_cpu_us_per_send,
            outcome.server_cpu_us_per_delivery,
            m.server_cpu_s / m.seconds
        );
    }
    if let Some(memory) = outcome.server_memory {
        println!(
            "            {:>10.1} MiB resident, {:.1} MiB proportional",
            memory.rss as f64 / 1048576.0,
            memory.pss as f64 / 1048576.0
        );
    }
    let bound = if outcome.tester_bound { "  (tester-bound)" } else { "" };
    println!("tester      {:>10.1} % of the machine's CPU{bound}", m.tester_share * 100.0);
    for (code, count) in m.delayed.iter().chain(&outcome.delayed_otherwise) {
        println!("delayed     {count:>10} times {code}");
    }
    for complaint in &m.complaints {
        println!("failure: {complaint}");
    }
    match &outcome.verdict {
        Some(verdict) => println!("{verdict}"),
        None => println!("oracle: not asked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_in_one_group() {
        let groups = groups(103, 10, 1);
        let mut all: Vec<_> = groups.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!(groups.len(), 11);
    }
}
