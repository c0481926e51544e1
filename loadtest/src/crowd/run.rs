//! `run`: a crowd against a server, with figures, a verdict and a report. What it does is said by a [`Scenario`], or by a few flags
//! for one population in groups of one size.

use std::{
    collections::BTreeMap,
    fs::File,
    io::IsTerminal,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Counted, Crowd, Habits, Latency, Manner, Measured, Person, Second,
    part::{self, Part, Place, Word},
    scenario::{Cast, Groups, Phase, Population, Scenario, Sends, Storm},
};
use crate::{
    client::{Counters, Speech, Target, http::Http, token::Signer},
    history::History,
    oracle::{Limits, Oracle, Verdict},
    process::{self, Memory},
    report,
    server::{Server, Setup},
};

/// Load with figures and a verdict.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    /// What the crowd does, as a file; in place of --clients, --group, --body, --window, --rate, --secs, --warmup, --speech and --receipts.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["clients", "group", "body", "window", "rate", "secs", "warmup", "speech", "receipts"])]
    pub scenario: Option<PathBuf>,
    /// Multiplies the clients and the rates of a scenario, to try it out.
    #[arg(long, default_value_t = 1.0, requires = "scenario")]
    pub scale: f64,
    /// The server, as http://host:port; several, and clients connect to one after the other; starts one of its own if absent.
    #[arg(long)]
    pub url: Vec<String>,
    /// The server's binary, when one is started; default: chappe-node beside this binary.
    #[arg(long)]
    pub server: Option<PathBuf>,
    /// An argument for the server that is started; may be given several times.
    #[arg(long = "server-arg", allow_hyphen_values = true)]
    pub server_args: Vec<String>,
    /// The servers' processes, for their CPU and memory, when they are not ours.
    #[arg(long)]
    pub pid: Vec<u32>,
    /// The server's data directory, whose secret signs tokens; without it they are asked for one by one.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Clients.
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub clients: usize,
    /// How they talk: json or protobuf on a WebSocket, grpc, or http (events on a WebSocket).
    #[arg(long, default_value_t)]
    pub speech: Speech,
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
    /// Processes that the clients are in: one has no more connections than it may open files.
    #[arg(long, default_value_t = 1)]
    pub testers: usize,
    /// Which of those this is; they are started by the one that was asked for.
    #[arg(long, hide = true)]
    pub part: Option<Part>,
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
    /// What the crowd did.
    pub scenario: Scenario,
    /// CPUs of the machine.
    pub cores: usize,
    /// What was measured.
    pub measured: Measured,
    /// Of each phase.
    pub phases: Vec<Stretch>,
    /// Connections that storms broke.
    pub stormed: u64,
    /// How long those whose connections storms broke took to come back; none if there was no storm.
    pub returns: Option<Latency>,
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
    /// More than half of the machine went to the tester, or its threads had hardly a pause: the figures say more about it than about
    /// the server.
    pub tester_bound: bool,
    /// The oracle's verdict.
    pub verdict: Option<Verdict>,
}

/// A phase, as it was.
#[derive(Debug, Serialize)]
pub struct Stretch {
    /// Its name.
    pub name: String,
    /// When it began, in seconds after measuring did.
    pub at: f64,
    /// Acknowledged sends per second.
    pub acks_per_s: f64,
    /// Deliveries per second.
    pub deliveries_per_s: f64,
    /// The highest 99th percentile of acknowledgements of one of its seconds, in milliseconds.
    pub worst_ack_p99_ms: f64,
    /// Of deliveries.
    pub worst_delivery_p99_ms: f64,
}

/// The clients' own counts.
#[derive(Debug, Default, Serialize, Deserialize)]
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

impl ClientCounts {
    fn and(&self, other: &Self) -> Self {
        Self {
            connects: self.connects + other.connects,
            retries: self.retries + other.retries,
            gaps: self.gaps + other.gaps,
            repeats: self.repeats + other.repeats,
            resyncs: self.resyncs + other.resyncs,
        }
    }
}

impl From<Counters> for ClientCounts {
    fn from(counters: Counters) -> Self {
        let Counters { connects, retries, gaps, repeats, resyncs, .. } = counters;
        Self { connects, retries, gaps, repeats, resyncs }
    }
}

/// Above so many members a conversation is heard only where it is open, and nobody is shown what others have read.
const SMALL_MEMBERS_MAX: usize = 256;

/// Source addresses that a tester may need, and how many testers have their own in one network of 256.
const SOURCES: u8 = 10;
const TESTERS_MAX: usize = 25;

/// Above this share of their time the tester's threads make what they measure wait: an office that was judged at 0.83 showed twenty
/// times the latencies of one that was not, at 0.7.
const BUSY_MAX: f64 = 0.6;

/// Between two changes of the pace.
const PACE_SECS: f64 = 0.5;

/// Runs the plan; prints, writes the reports, and fails if a promise was broken.
///
/// # Errors
/// When the scenario is none, something does not start, or a promise was broken.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let scenario = match &plan.scenario {
        Some(path) => Scenario::read(path)?.scaled(plan.scale)?,
        None => plan.flags()?,
    };
    if plan.testers > TESTERS_MAX {
        bail!("--testers: at most {TESTERS_MAX}; each has ten source addresses of its own");
    }
    process::raise_file_limit();
    if let Some(part) = plan.part {
        let seed = seed(&plan);
        let cast = scenario.cast(seed)?;
        let place = Place { urls: &plan.url, pids: &[], data_dir: plan.data_dir.as_deref() };
        return part::conclude(work(&plan, &scenario, &cast, &place, seed, Some(part)).await?);
    }
    let outcome = carry_out(plan, scenario).await?;
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

impl Plan {
    /// What the flags say.
    fn flags(&self) -> anyhow::Result<Scenario> {
        if self.clients == 0 || self.group == 0 {
            bail!("a crowd needs clients and groups need members");
        }
        let sends = match self.rate {
            Some(_) => Sends { rate: self.rate, ..Sends::default() },
            None => Sends { in_flight: Some(self.window), ..Sends::default() },
        };
        let population = Population {
            name: "clients".into(),
            clients: self.clients,
            groups: Groups { per_client: 1.0, smallest: self.group, largest: None, exponent: 1.0, direct: false },
            sends: Some(sends),
            uneven: 0.0,
            body_bytes: self.body,
            speech: self.speech,
            types: false,
            receipts: self.receipts,
            receipts_secs: 0.0,
            reacts: 0.0,
            watches: 0,
            slow: None,
            flaps: None,
        };
        let load = self
            .rate
            .map_or_else(|| format!("{} in flight each", self.window), |rate| format!("{rate} messages per second"));
        Ok(Scenario {
            title: format!("{} clients in groups of {}, {} byte bodies, {load}", self.clients, self.group, self.body),
            warmup_secs: self.warmup,
            populations: vec![population],
            phases: vec![Phase { name: "steady".into(), secs: self.secs, pace: 1.0, from: None }],
            storms: Vec::new(),
        })
    }
}

/// What was found by one process, or by several together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) measured: Measured,
    acks_us: Counted,
    deliveries_us: Counted,
    returns_us: Counted,
    stormed: u64,
    counters: ClientCounts,
    delayed_otherwise: BTreeMap<String, u64>,
    pub(super) server_memory: Option<Memory>,
    verdict: Option<Verdict>,
}

impl Found {
    /// What two processes found that had nothing to do with each other's conversations.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.measured = self.measured.and(other.measured);
        self.acks_us = self.acks_us.and(other.acks_us);
        self.deliveries_us = self.deliveries_us.and(other.deliveries_us);
        self.returns_us = self.returns_us.and(other.returns_us);
        self.stormed += other.stormed;
        self.counters = self.counters.and(&other.counters);
        for (code, count) in other.delayed_otherwise {
            *self.delayed_otherwise.entry(code).or_default() += count;
        }
        self.verdict = match (self.verdict, other.verdict) {
            (Some(one), Some(another)) => Some(one.and(another)),
            (one, another) => one.or(another),
        };
        self
    }
}

fn seed(plan: &Plan) -> u64 {
    plan.seed.unwrap_or_else(rand::random)
}

/// Runs a scenario.
///
/// # Errors
/// When something does not start, or somebody cannot connect.
pub async fn carry_out(plan: Plan, scenario: Scenario) -> anyhow::Result<Outcome> {
    let seed = seed(&plan);
    println!("seed {seed}");
    let ours = match plan.url[..] {
        [_, ..] => None,
        [] => {
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
    let urls = ours.as_ref().map_or_else(|| plan.url.clone(), |server| vec![server.url()]);
    let pids: Vec<u32> = plan.pid.iter().copied().chain(ours.as_ref().and_then(Server::pid)).collect();
    let data_dir = ours.as_ref().map(|server| server.data_dir().to_owned()).or_else(|| plan.data_dir.clone());
    let place = Place { urls: &urls, pids: &pids, data_dir: data_dir.as_deref() };
    let mut found = match plan.testers {
        0 | 1 => work(&plan, &scenario, &scenario.cast(seed)?, &place, seed, None).await?,
        _ => part::run(&plan, &scenario, seed, &place).await?,
    };
    found.measured.count(found.acks_us, found.deliveries_us);
    if let Some(mut server) = ours {
        server.terminate().await?;
    }
    let measured = found.measured;
    let threads = tokio::runtime::Handle::current().metrics().num_workers() * plan.testers.max(1);
    let busy = measured.tester_cpu_s / (measured.seconds * threads as f64).max(1e-9);
    Ok(Outcome {
        seed,
        cores: process::cores(),
        counters: found.counters,
        delayed_otherwise: found.delayed_otherwise,
        server_memory: found.server_memory,
        stormed: found.stormed,
        server_cpu_us_per_send: measured.server_cpu_s * 1e6 / (measured.acks as f64).max(1.0),
        server_cpu_us_per_delivery: measured.server_cpu_s * 1e6 / (measured.deliveries as f64).max(1.0),
        tester_bound: measured.tester_share > 0.5 || busy > BUSY_MAX,
        phases: stretches(&scenario, &measured),
        returns: (!scenario.storms.is_empty()).then(|| Latency::of(&found.returns_us.histogram())),
        scenario,
        measured,
        verdict: found.verdict,
        plan,
    })
}

/// What one process does: all of it, or a part that waits for the others before it begins.
async fn work(
    plan: &Plan,
    scenario: &Scenario,
    cast: &Cast,
    place: &Place<'_>,
    seed: u64,
    part: Option<Part>,
) -> anyhow::Result<Found> {
    let people = people(scenario, cast, part, seed, place).await?;
    let history = if plan.unjudged { None } else { Some(history(plan)?) };
    // Each process has its addresses: ports of one address end at some 28,000, too.
    let sources_before = part.map_or(0, |part| SOURCES * part.number as u8);
    let manner = Manner { sample: plan.sample, history: history.clone(), sources_before, ..Manner::default() };
    let bar = bar("connecting", people.len() as u64);
    let crowd = Crowd::connect(people, manner, |done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    let conversations = settle(&crowd, scenario, cast).await?;
    crowd.set_tempo(scenario.pace(0.0).0);
    if part.is_some() {
        part::wait_for_go().await?;
    }
    crowd.start();
    tokio::time::sleep(Duration::from_secs_f64(scenario.warmup_secs)).await;
    if part.is_some() {
        part::say(&Word::Measuring)?;
    }
    let mut measured = watch(&crowd, scenario, cast, place.pids, part).await?;
    crowd.rest().await?;
    crowd.late(&mut measured);
    if part.is_some() {
        part::say(&Word::Rests)?;
    }
    let server_memory = memory(place.pids);
    let verdict = match &history {
        Some(history) => Some(judge(&crowd, cast, &conversations, history).await?),
        None => None,
    };
    let counters = crowd.counters().await.into();
    let (delayed_otherwise, returns_us, stormed) = (crowd.delayed(), crowd.returns(), crowd.stormed());
    crowd.leave().await;
    let (acks_us, deliveries_us) = (std::mem::take(&mut measured.acks_us), std::mem::take(&mut measured.deliveries_us));
    Ok(Found {
        measured,
        acks_us,
        deliveries_us,
        returns_us,
        stormed,
        counters,
        delayed_otherwise,
        server_memory,
        verdict,
    })
}

/// Makes the conversations, and says to everybody what they do.
async fn settle(crowd: &Crowd, scenario: &Scenario, cast: &Cast) -> anyhow::Result<Vec<Uuid>> {
    let bar = bar("meeting", cast.conversations.len() as u64);
    let of_kind = |direct: bool| {
        let all = cast.conversations.iter().enumerate();
        all.filter(move |(_, each)| each.direct == direct).map(|(index, each)| (index, each.members.clone()))
    };
    let (group_indices, groups): (Vec<usize>, Vec<Vec<usize>>) = of_kind(false).unzip();
    let (direct_indices, pairs): (Vec<usize>, Vec<Vec<usize>>) = of_kind(true).unzip();
    let made = crowd.create_groups(&groups, |done| bar.set_position(done)).await?;
    let pairs: Vec<(usize, String)> = pairs.iter().map(|pair| (pair[0], crowd.user(pair[1]).to_owned())).collect();
    let direct = crowd.create_directs(&pairs, |done| bar.set_position(done)).await?;
    let mut conversations = vec![Uuid::nil(); cast.conversations.len()];
    for (index, id) in group_indices.into_iter().zip(made).chain(direct_indices.into_iter().zip(direct)) {
        conversations[index] = id;
    }
    // Who is in a large one hears it only where it is open.
    let large =
        cast.conversations.iter().zip(&conversations).filter(|(each, _)| each.members.len() > SMALL_MEMBERS_MAX);
    crowd.open_each(large.flat_map(|(each, id)| each.members.iter().map(|member| (*member, *id)))).await;
    let habits: Vec<Habits> = scenario.populations.iter().map(Population::habits).collect();
    for (index, places) in cast.places.iter().enumerate() {
        let population = cast.populations[index];
        crowd.behave(index, habits[population].clone());
        crowd.assign(index, places.iter().map(|place| conversations[*place]).collect(), cast.paces[index]);
        let watches = scenario.populations[population].watches;
        if let (Some(first), 1..) = (places.first(), watches) {
            let others = cast.conversations[*first].members.iter().copied().filter(|member| *member != index);
            crowd.watch(index, others.take(watches), conversations[*first]);
        }
    }
    bar.finish_and_clear();
    Ok(conversations)
}

/// The memory of processes together, if all are there.
pub(super) fn memory(pids: &[u32]) -> Option<Memory> {
    let all = pids.iter().map(|pid| process::memory(*pid).ok()).collect::<Option<Vec<_>>>()?;
    let sum = |of: fn(&Memory) -> u64| all.iter().map(of).sum();
    (!all.is_empty()).then(|| Memory { rss: sum(|memory| memory.rss), pss: sum(|memory| memory.pss) })
}

/// The phases, by the seconds that lie in them.
fn stretches(scenario: &Scenario, measured: &Measured) -> Vec<Stretch> {
    let mut at = 0.0;
    let of = |phase: &Phase| {
        let (begin, end) = (at, at + phase.secs);
        at = end;
        let begins = std::iter::once(0.0).chain(measured.timeline.iter().map(|second| second.at));
        let middle = |(second, began): &(&Second, f64)| (second.at + began) / 2.0;
        let all = measured.timeline.iter().zip(begins);
        let seconds: Vec<&Second> =
            all.filter(|second| (begin..end).contains(&middle(second))).map(|(second, _)| second).collect();
        let mean =
            |of: fn(&Second) -> f64| seconds.iter().map(|second| of(second)).sum::<f64>() / seconds.len().max(1) as f64;
        let worst = |of: fn(&Second) -> f64| seconds.iter().map(|second| of(second)).fold(0.0, f64::max);
        Stretch {
            name: phase.name.clone(),
            at: begin,
            acks_per_s: mean(|second| second.acks_per_s),
            deliveries_per_s: mean(|second| second.deliveries_per_s),
            worst_ack_p99_ms: worst(|second| second.ack_p99_ms),
            worst_delivery_p99_ms: worst(|second| second.delivery_p99_ms),
        }
    };
    scenario.phases.iter().map(of).collect()
}

async fn people(
    scenario: &Scenario,
    cast: &Cast,
    part: Option<Part>,
    seed: u64,
    place: &Place<'_>,
) -> anyhow::Result<Vec<Person>> {
    let mut targets = Vec::new();
    for url in place.urls {
        targets.push((Arc::new(Target::resolve(url).await?), Http::new(url)));
    }
    let signer = place.data_dir.map(Signer::of_data_dir).transpose()?;
    // Names are new in every run: a server that keeps its data knows the old ones.
    let run = seed ^ SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut people = Vec::with_capacity(cast.populations.len());
    for (index, population) in cast.populations.iter().enumerate() {
        let (target, http) = &targets[index % targets.len()];
        let user = match part {
            Some(part) => format!("load-{run:x}-{}-{index}", part.number),
            None => format!("load-{run:x}-{index}"),
        };
        let token = match &signer {
            Some(signer) => signer.sign(&user)?,
            None => http.token(&user).await?,
        };
        let speech = Some(scenario.populations[*population].speech);
        people.push(Person { user, token, target: Arc::clone(target), speech });
    }
    Ok(people)
}

fn history(plan: &Plan) -> anyhow::Result<Arc<History>> {
    let file =
        plan.history.as_ref().map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()?;
    let limits = Limits { unavailable_us_max: plan.outage_max.map(|ms| ms * 1000) };
    Ok(History::judged(Oracle::new(limits), file))
}

async fn watch(
    crowd: &Crowd,
    scenario: &Scenario,
    cast: &Cast,
    pids: &[u32],
    part: Option<Part>,
) -> anyhow::Result<Measured> {
    let bar = bar("measuring", (scenario.secs() * 10.0) as u64);
    let (mut changed, mut pace, mut told) = (0.0, scenario.pace(0.0).0, 0);
    let mut storms: Vec<&Storm> = scenario.storms.iter().collect();
    storms.sort_by(|a, b| b.at_secs.total_cmp(&a.at_secs));
    let measured = crowd
        .measure(Duration::from_secs_f64(scenario.secs()), pids.iter().copied(), |passed, now| {
            let at = passed.as_secs_f64();
            let (wanted, phase) = scenario.pace(at);
            if wanted != pace && at - changed >= PACE_SECS {
                (pace, changed) = (wanted, at);
                crowd.set_tempo(pace);
            }
            while let Some(storm) = storms.pop_if(|storm| storm.at_secs <= at) {
                let is_of = |index: &usize| {
                    let name = &scenario.populations[cast.populations[*index]].name;
                    storm.population.as_ref().is_none_or(|wanted| wanted == name)
                };
                crowd.storm((0..crowd.len()).filter(is_of).filter(|_| rand::random_bool(storm.share)));
            }
            bar.set_position((at * 10.0) as u64);
            let last = now.timeline.last().copied().unwrap_or_default();
            if part.is_some() && now.timeline.len() > told {
                told = now.timeline.len();
                part::tell(last);
            }
            bar.set_message(format!("{}: {last}, {} failures", scenario.phases[phase].name, now.failures));
        })
        .await?;
    bar.finish_and_clear();
    Ok(measured)
}

async fn judge(crowd: &Crowd, cast: &Cast, conversations: &[Uuid], history: &Arc<History>) -> anyhow::Result<Verdict> {
    let all = || cast.conversations.iter().zip(conversations);
    let reads: Vec<_> = all().flat_map(|(each, id)| each.members.iter().map(|member| (*member, *id))).collect();
    let bar = bar("reading back", reads.len() as u64);
    crowd.read_all(&reads, |done| bar.set_position(done)).await?;
    // One member of each is shown what everybody has got; in large ones nobody is.
    let shown = all().filter(|(each, _)| each.members.len() <= SMALL_MEMBERS_MAX);
    crowd.read_receipts(&shown.map(|(each, id)| (each.members[0], *id)).collect::<Vec<_>>()).await?;
    bar.finish_and_clear();
    Ok(history.verdict()?)
}

pub(super) fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {percent:>3}% {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    // A part's output is heard by whoever started it, and nobody looks at it.
    let bar = if std::io::stdout().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    bar.with_style(style).with_prefix(what)
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
    if outcome.phases.len() > 1 {
        for phase in &outcome.phases {
            println!(
                "{:<11} {:>10.0}/s   {:.0} deliveries/s; the worst second: p99 {:.2} ms, deliveries {:.2}",
                phase.name,
                phase.acks_per_s,
                phase.deliveries_per_s,
                phase.worst_ack_p99_ms,
                phase.worst_delivery_p99_ms
            );
        }
    }
    if let Some(returns) = &outcome.returns {
        println!(
            "storms      {:>10} connections broken, {} came back, after p50 {:.0} ms, p99 {:.0}, max {:.0}",
            outcome.stormed, returns.count, returns.p50, returns.p99, returns.max
        );
    }
    if m.reactions > 0 {
        println!("reactions   {:>10.0}/s", m.reactions as f64 / m.seconds);
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        plan: Plan,
    }

    #[test]
    fn flags_put_everybody_into_one_group() {
        let plan = Flags::parse_from(["run", "--clients", "103", "--group", "10", "--window", "3"]).plan;
        let cast = plan.flags().unwrap().cast(1).unwrap();
        let mut all: Vec<_> = cast.conversations.iter().flat_map(|each| each.members.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!((cast.conversations.len(), cast.paces[0]), (11, super::super::Pace::Closed(3)));
        assert!(cast.conversations.iter().all(|each| !each.direct));
    }

    #[test]
    fn seconds_belong_to_the_phase_in_which_most_of_them_lies() {
        let phase = |name: &str, secs| Phase { name: name.into(), secs, pace: 1.0, from: None };
        let scenario = Scenario {
            title: String::new(),
            warmup_secs: 0.0,
            populations: Vec::new(),
            phases: vec![phase("slow", 2.0), phase("fast", 3.0)],
            storms: Vec::new(),
        };
        let second =
            |at: f64, acks_per_s: f64| Second { at, acks_per_s, ack_p99_ms: acks_per_s / 10.0, ..Second::default() };
        let timeline = vec![second(1.03, 10.0), second(2.06, 20.0), second(3.1, 100.0), second(4.1, 200.0)];
        let measured = Measured { timeline, ..Measured::default() };
        let found = stretches(&scenario, &measured);
        let found: Vec<_> =
            found.iter().map(|each| (each.name.as_str(), each.acks_per_s, each.worst_ack_p99_ms)).collect();
        assert_eq!(found, [("slow", 15.0, 2.0), ("fast", 150.0, 20.0)]);
    }
}
