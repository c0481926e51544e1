//! `weather`: people talk, things go wrong, everything heals, everybody reads everything back, and the oracle judges.
//!
//! Faults come one after the other, or two at a time; after each, everybody must have a message accepted again. What is drawn is
//! drawn from a seed: whom a fault hits depends on who owns what at that moment, so a seed repeats the faults and not the interleaving.

use std::{
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    dice::Dice,
    fault::{Fault, Setting, Undo},
    network,
    stage::{self, Stage},
};
use crate::{
    client::Target,
    crowd::{Crowd, Habits, Manner, Pace, Person},
    history::{History, What},
    oracle::{Limits, Oracle, Verdict},
    process,
};

/// Weather with a verdict.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Plan {
    /// What it happens to.
    #[arg(long, value_enum, default_value = "one")]
    pub on: Setting,
    /// Only these faults, by name; may be given several times. Default: all that are possible.
    #[arg(long = "fault", value_enum)]
    pub faults: Vec<Fault>,
    /// Decides what happens when, and to whom.
    #[arg(long)]
    pub seed: Option<u64>,
    /// For how long things go wrong.
    #[arg(long, default_value_t = 120.0)]
    pub secs: f64,
    /// The longest that a fault lasts; the shortest is a fifth of it.
    #[arg(long, default_value_t = 6.0)]
    pub longest: f64,
    /// How often, of ten times, a second fault happens during the first.
    #[arg(long, default_value_t = 0)]
    pub doubled: u32,
    /// Clients, in groups of six and in pairs.
    #[arg(long, short = 'n', default_value_t = 24)]
    pub clients: usize,
    /// A CQL server, for a cluster.
    #[arg(long, env = "CHAPPE_TEST_CQL", value_name = "HOST:PORT")]
    pub cql: Option<String>,
    /// Three CQL servers of one ring, for `--on replicas`, and their processes; `scripts/services up cql3` starts them, and
    /// `scripts/services env` names them.
    #[arg(long, env = "CHAPPE_TEST_CQL3", value_name = "A,B,C")]
    pub cql3: Option<String>,
    /// See there.
    #[arg(long, env = "CHAPPE_TEST_CQL3_PIDS", value_name = "P,Q,R", value_delimiter = ',')]
    pub cql3_pids: Vec<u32>,
    /// Where `chappe-node` and `chappe-gateway` are; default: beside this program.
    #[arg(long, value_name = "DIR")]
    pub binaries: Option<PathBuf>,
    /// Write the history here, as JSONL: it can be judged again (`judge`). After a violation it is kept in any case.
    #[arg(long)]
    pub history: Option<PathBuf>,
    /// Write what happened here, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Name the faults, and end.
    #[arg(long)]
    pub list: bool,
}

/// What happened.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was asked for.
    pub plan: Plan,
    /// The seed that was used.
    pub seed: u64,
    /// What went wrong, in order.
    pub events: Vec<Happened>,
    /// Messages that were acknowledged.
    pub acked: u64,
    /// The oracle's verdict.
    pub verdict: Verdict,
    /// The history, where it was kept.
    pub history: Option<PathBuf>,
}

/// A fault, or two at a time.
#[derive(Debug, Serialize)]
pub struct Happened {
    /// Seconds after the beginning.
    pub at: f64,
    /// Which, and whom each hit.
    pub faults: Vec<(Fault, String)>,
    /// How long they lasted, in seconds.
    pub lasted: f64,
    /// Everybody had a message accepted so many seconds after they were over.
    pub recovered: f64,
    /// The longest that anybody waited for an acknowledgement meanwhile, in seconds.
    pub longest_wait: f64,
}

/// Quiet talk before the first fault, and between two.
const CALM: Duration = Duration::from_secs(2);

/// How long everybody may take to be heard again after a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// Members of a group.
const GROUP: usize = 6;

/// Messages on their way per client.
const WINDOW: usize = 2;

/// Runs the plan; prints, and fails if a promise was broken.
///
/// # Errors
/// When something does not start, come back, or keep its promises.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    if plan.list {
        for fault in Fault::all() {
            let of: Vec<String> = Setting::value_variants()
                .iter()
                .filter(|setting| fault.is_of(**setting))
                .map(|setting| format!("{setting:?}").to_lowercase())
                .collect();
            println!("{:<16} {:<24} {}", fault.name(), of.join(", "), fault.sentence());
        }
        return Ok(());
    }
    process::raise_file_limit();
    let json = plan.json.clone();
    let outcome = carry_out(plan).await?;
    println!("{}", outcome.verdict);
    if let Some(path) = json {
        serde_json::to_writer_pretty(File::create(&path).with_context(|| path.display().to_string())?, &outcome)?;
    }
    if !outcome.verdict.is_clean() {
        let kept = outcome.history.as_ref().map(|path| format!("; the history is {}", path.display()));
        bail!("promises were broken: seed {}{}", outcome.seed, kept.unwrap_or_default());
    }
    if outcome.verdict.stats.acked_unread > 0 || outcome.acked == 0 {
        bail!(
            "nothing was judged: {} acknowledged, {} of them not read",
            outcome.acked,
            outcome.verdict.stats.acked_unread
        );
    }
    Ok(())
}

/// Runs the plan.
///
/// # Errors
/// When something does not start or come back.
pub async fn carry_out(plan: Plan) -> anyhow::Result<Outcome> {
    let faults = possible(&plan)?;
    let seed = plan.seed.unwrap_or_else(rand::random);
    let mut dice = Dice::of(seed);
    println!("seed {seed}");
    if plan.on == Setting::Network {
        network::available().map_err(anyhow::Error::msg)?;
    }
    let kept = tempfile::Builder::new().prefix("chappe-history-").suffix(".jsonl").tempfile()?;
    let file = match &plan.history {
        Some(path) => File::create(path).with_context(|| path.display().to_string())?,
        None => kept.as_file().try_clone()?,
    };
    let history = History::judged(Oracle::new(Limits::default()), Some(file));
    let small_disk = faults.contains(&Fault::DiskFull);
    let setup = stage::Plan {
        binaries: plan.binaries.clone(),
        cql: plan.cql.clone(),
        ring: plan.cql3.clone(),
        ring_processes: plan.cql3_pids.clone(),
        small_disk,
    };
    let mut stage = Stage::set(plan.on, &setup).await?;
    let talk = Talk::begin(&stage, plan.clients, &history).await?;
    stage.talks_in(talk.conversations());
    let played = play(&plan, &faults, &mut dice, &mut stage, &talk, &history).await;
    let events = match played {
        Ok(events) => events,
        Err(error) => bail!("{error:#}\n{}", stage.last_words()),
    };
    let acked = talk.crowd.acks();
    let verdict = talk.judge(&history).await?;
    stage.end().await?;
    let history = match plan.history.clone() {
        Some(path) => Some(path),
        None if verdict.is_clean() => None,
        None => Some(kept.keep()?.1),
    };
    Ok(Outcome { plan, seed, events, acked, verdict, history })
}

/// The faults that are wished and possible.
fn possible(plan: &Plan) -> anyhow::Result<Vec<Fault>> {
    for fault in &plan.faults {
        if !fault.is_of(plan.on) {
            bail!("{} is not for this; --list says what is for which", fault.name());
        }
        fault.available().map_err(anyhow::Error::msg)?;
    }
    if !plan.faults.is_empty() {
        return Ok(plan.faults.clone());
    }
    let mut possible = Vec::new();
    for fault in Fault::all().iter().filter(|fault| fault.is_of(plan.on)) {
        match fault.available() {
            Ok(()) => possible.push(*fault),
            Err(why) => println!("left out: {}: {why}", fault.name()),
        }
    }
    Ok(possible)
}

/// Faults until time is up; returns what happened.
async fn play(
    plan: &Plan,
    faults: &[Fault],
    dice: &mut Dice,
    stage: &mut Stage,
    talk: &Talk,
    history: &History,
) -> anyhow::Result<Vec<Happened>> {
    let (began, mut events) = (Instant::now(), Vec::new());
    let time = Duration::from_secs_f64(plan.secs);
    talk.crowd.goes_on(PATIENCE).await?;
    sleep(CALM).await;
    let mut turn = 0;
    while began.elapsed() < time {
        // Each has its turn before one comes twice: of few seconds not all would be drawn.
        let first = if turn < faults.len() { faults[turn] } else { *dice.pick(faults) };
        turn += 1;
        let longest = Duration::from_secs_f64(plan.longest);
        let lasts = longest / 5 + dice.within(longest * 4 / 5);
        talk.crowd.longest_wait();
        let at = began.elapsed().as_secs_f64();
        let (mut hit, mut undos) = (Vec::<(Fault, String)>::new(), Vec::<(Fault, Undo)>::new());
        let note = |fault: Fault, begins| {
            history.record(What::Fault { name: fault.name(), begins, forgets: fault.forgets(plan.on) })
        };
        let strike = Instant::now();
        note(first, true);
        let (whom, undo) = first.begin(stage, dice).await.with_context(|| first.name())?;
        println!("{at:>6.1} s  {} ({whom}) for {:.1} s", first.name(), lasts.as_secs_f64());
        hit.push((first, whom));
        undos.push((first, undo));
        if dice.below(10) < u64::from(plan.doubled) {
            sleep(dice.within(lasts)).await;
            let second = *dice.pick(faults);
            // What needs somebody who is gone by then cannot be done, and does not happen.
            if let Ok((whom, undo)) = second.begin(stage, dice).await {
                note(second, true);
                println!("          and {} ({whom})", second.name());
                hit.push((second, whom));
                undos.push((second, undo));
            }
        }
        sleep(lasts.saturating_sub(strike.elapsed())).await;
        // The last one first: what was begun while something else was wrong is undone while it is. But nothing starts without space.
        undos.sort_by_key(|(_, undo)| matches!(undo, Undo::Space));
        while let Some((fault, undo)) = undos.pop() {
            undo.undo(stage).await.with_context(|| format!("after {}", fault.name()))?;
        }
        let lasted = strike.elapsed().as_secs_f64();
        let recovered = talk.crowd.goes_on(PATIENCE).await?;
        let longest_wait = talk.crowd.longest_wait();
        println!(
            "          over after {lasted:.1} s; everybody was heard {:.2} s later; the longest wait {:.2} s",
            recovered.as_secs_f64(),
            longest_wait.as_secs_f64()
        );
        let (recovered, longest_wait) = (recovered.as_secs_f64(), longest_wait.as_secs_f64());
        stage.whole().await?;
        // What somebody else has taken over goes back only now: until here receipts may fall.
        hit.iter().for_each(|(fault, _)| note(*fault, false));
        events.push(Happened { at, faults: hit, lasted, recovered, longest_wait });
        sleep(CALM).await;
    }
    Ok(events)
}

/// People who talk.
struct Talk {
    crowd: Crowd,
    groups: Vec<(Vec<usize>, Uuid)>,
}

impl Talk {
    async fn begin(stage: &Stage, clients: usize, history: &Arc<History>) -> anyhow::Result<Self> {
        let (signer, mut targets) = (stage.signer()?, Vec::new());
        for url in stage.urls() {
            targets.push(Arc::new(Target::resolve(&url).await?));
        }
        let clients = clients.max(2);
        let person = |index: usize| {
            let user = format!("user-{index}");
            let target = Arc::clone(&targets[index % targets.len()]);
            anyhow::Ok(Person { token: signer.sign(&user)?, user, target, speech: None })
        };
        let people = (0..clients).map(person).collect::<anyhow::Result<Vec<_>>>()?;
        let users: Vec<String> = people.iter().map(|person| person.user.clone()).collect();
        let habits = Habits { receipts: true, ..Habits::default() };
        let manner = Manner { history: Some(Arc::clone(history)), habits, ..Manner::default() };
        let crowd = Crowd::connect(people, manner, |_| {}).await?;
        let groups: Vec<Vec<usize>> = (0..clients).collect::<Vec<_>>().chunks(GROUP).map(<[usize]>::to_vec).collect();
        let ids = crowd.create_groups(&groups, |_| {}).await?;
        // Neighbours, who are at different gateways.
        let pairs: Vec<(usize, String)> =
            (0..clients - 1).step_by(2).map(|index| (index, users[index + 1].clone())).collect();
        let directs = crowd.create_directs(&pairs, |_| {}).await?;
        let mut all: Vec<(Vec<usize>, Uuid)> = groups.into_iter().zip(ids).collect();
        all.extend(pairs.iter().map(|(index, _)| vec![*index, index + 1]).zip(directs));
        for member in 0..clients {
            let of = |(members, id): &(Vec<usize>, Uuid)| members.contains(&member).then_some(*id);
            crowd.assign(member, all.iter().filter_map(of).collect(), Pace::Closed(WINDOW));
        }
        crowd.start();
        Ok(Self { crowd, groups: all })
    }

    fn conversations(&self) -> Vec<Uuid> {
        self.groups.iter().map(|(_, id)| *id).collect()
    }

    /// Everybody stops and reads everything back.
    async fn judge(self, history: &Arc<History>) -> anyhow::Result<Verdict> {
        self.crowd.rest().await?;
        let reads: Vec<(usize, Uuid)> =
            self.groups.iter().flat_map(|(members, id)| members.iter().map(|member| (*member, *id))).collect();
        self.crowd.read_all(&reads, |_| {}).await?;
        // One member of each is shown what everybody has got.
        let shown: Vec<(usize, Uuid)> = self.groups.iter().map(|(members, id)| (members[0], *id)).collect();
        self.crowd.read_receipts(&shown).await?;
        self.crowd.leave().await;
        Ok(history.verdict()?)
    }
}
