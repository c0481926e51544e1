//! One crowd in several processes: a process has no more than so many files, an address no more than so many ports.
//!
//! The one that was asked for starts the others, each with its part of every population; they connect and wait, begin at the same word,
//! say every second how it goes, and in the end what they found. What they say are lines of JSON ([`Word`]) on their standard output.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};

use super::{
    Cost, Costs, Second,
    run::{self, Found, Plan},
    scenario::Scenario,
};
use crate::process::Memory;

/// How long everybody may take to connect and to make their conversations, and to read everything back.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What the others begin at.
const GO: &str = "go";

/// Which of how many parts a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// From 0.
    pub number: usize,
    /// How many.
    pub of: usize,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, of) = text.split_once('/').ok_or("expected N/M")?;
        let parse = |text: &str| text.parse::<usize>().map_err(|error| error.to_string());
        let part = Self { number: parse(number)?, of: parse(of)? };
        if part.number < part.of { Ok(part) } else { Err("parts count from 0".into()) }
    }
}

/// What a part says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// Everybody is connected, and every conversation there is.
    Ready,
    /// From now on it is measured.
    Measuring,
    /// A second has passed.
    Second(Second),
    /// Nobody sends any more, and what was sent has arrived.
    Rests,
    /// All is over.
    Found(Box<Found>),
}

/// Says something to whoever started this part.
pub(super) fn say(word: &Word) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(word)?)?)
}

/// Says that this part is ready, and waits for the word to begin.
pub(super) async fn wait_for_go() -> anyhow::Result<()> {
    say(&Word::Ready)?;
    // There is one line to come; a thread may wait for it.
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = line.await??;
    if line.trim() != GO {
        bail!("whoever started this part is gone");
    }
    Ok(())
}

/// Says how a second went.
pub(super) fn tell(second: Second) {
    // Whoever does not listen any more is seen at the next word that matters.
    let _ = say(&Word::Second(second));
}

/// Says what was found.
pub(super) fn conclude(found: Found) -> anyhow::Result<()> {
    say(&Word::Found(Box::new(found)))
}

/// A running part.
struct Other {
    child: Child,
    input: ChildStdin,
    words: Lines<BufReader<ChildStdout>>,
}

/// Runs a scenario in several processes.
///
/// # Errors
/// When one of them fails; what it said of that is on standard error.
pub(super) async fn run(plan: &Plan, scenario: &Scenario, seed: u64, place: &Place<'_>) -> anyhow::Result<Found> {
    let folder = tempfile::tempdir()?;
    let mut others = Vec::new();
    for number in 0..plan.testers {
        let part = Part { number, of: plan.testers };
        let file = folder.path().join(format!("part-{number}.toml"));
        std::fs::write(&file, toml::to_string(&scenario.part(part)?)?)?;
        others.push(start(plan, part, &file, seed, place)?);
    }
    let bar = run::bar("connecting", others.len() as u64);
    for other in &mut others {
        match next(&mut other.words).await? {
            Word::Ready => bar.inc(1),
            word => bail!("a part says {word:?} before it is ready"),
        }
    }
    bar.finish_and_clear();
    let (words, mut heard) = mpsc::unbounded_channel();
    let mut children = Vec::new();
    for (number, mut other) in others.into_iter().enumerate() {
        other.input.write_all(format!("{GO}\n").as_bytes()).await?;
        let words = words.clone();
        tokio::spawn(async move {
            loop {
                let word = next(&mut other.words).await;
                let is_last = matches!(word, Ok(Word::Found(_)) | Err(_));
                if words.send((number, word)).is_err() || is_last {
                    return;
                }
            }
        });
        children.push(other.child);
    }
    let (found, timeline, cpu, memory) = gather(scenario, place, &mut heard, children.len()).await?;
    for mut child in children {
        let status = timeout(PATIENCE, child.wait()).await??;
        if !status.success() {
            bail!("a part ended with {status}");
        }
    }
    let mut all = found.into_iter().reduce(Found::and).context("there was no part")?;
    (all.measured.timeline, all.measured.server_cpu_s, all.server_memory) = (timeline, cpu, memory);
    Ok(all)
}

/// Listens until everybody has said what they found; returns that, the seconds of all together, the servers' CPU seconds, and their
/// memory after the load.
async fn gather(
    scenario: &Scenario,
    place: &Place<'_>,
    heard: &mut mpsc::UnboundedReceiver<(usize, anyhow::Result<Word>)>,
    parts: usize,
) -> anyhow::Result<(Vec<Found>, Vec<Second>, f64, Option<Memory>)> {
    let bar = run::bar("measuring", scenario.secs() as u64);
    let (mut found, mut memory) = (Vec::new(), None);
    let (mut measuring, mut resting, mut costs) = (0, 0, Costs::start(place.pids.iter().copied())?);
    // Of each part; and what the servers had used when the first part said the second of that number.
    let (mut seconds, mut used) = (vec![Vec::<Second>::new(); parts], Vec::<Cost>::new());
    while found.len() < parts {
        match heard.recv().await.context("the parts are gone")? {
            (_, Ok(Word::Measuring)) => {
                measuring += 1;
                if measuring == parts {
                    costs = Costs::start(place.pids.iter().copied())?;
                }
            }
            (number, Ok(Word::Second(second))) => {
                seconds[number].push(second);
                if seconds[number].len() > used.len() {
                    used.push(costs.read());
                    let latest = seconds.iter().filter_map(|seconds| seconds.last()).copied().reduce(Second::and);
                    bar.set_position(second.at as u64);
                    bar.set_message(latest.unwrap_or_default().to_string());
                }
            }
            (_, Ok(Word::Rests)) => {
                resting += 1;
                if resting == parts {
                    memory = run::memory(place.pids);
                }
            }
            (_, Ok(Word::Found(one))) => found.push(*one),
            (number, Ok(Word::Ready)) => bail!("part {number} is ready twice"),
            (number, Err(error)) => return Err(error.context(format!("part {number}"))),
        }
    }
    bar.finish_and_clear();
    let cpu = used.last().map_or(0.0, |cost| cost.servers);
    Ok((found, together(&seconds, &used), cpu, memory))
}

/// The seconds of all parts, by their number.
fn together(seconds: &[Vec<Second>], used: &[Cost]) -> Vec<Second> {
    let (mut at, mut servers, mut all) = (0.0, 0.0, Vec::with_capacity(used.len()));
    for (number, cost) in used.iter().enumerate() {
        let of_parts = seconds.iter().filter_map(|seconds| seconds.get(number)).copied();
        let Some(mut second) = of_parts.reduce(Second::and) else { break };
        let span = (second.at - at).max(0.1);
        (second.server_cores, second.server_rss) = ((cost.servers - servers).max(0.0) / span, cost.rss);
        (at, servers) = (second.at, cost.servers);
        all.push(second);
    }
    all
}

/// Where the servers are.
pub(super) struct Place<'a> {
    pub(super) urls: &'a [String],
    pub(super) pids: &'a [u32],
    pub(super) data_dir: Option<&'a Path>,
}

fn start(plan: &Plan, part: Part, file: &Path, seed: u64, place: &Place<'_>) -> anyhow::Result<Other> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--part", &format!("{}/{}", part.number, part.of)]).arg("--scenario").arg(file);
    // Nobody is called like somebody in another part, and nobody sits where somebody does there.
    command.args(["--seed", &seed.wrapping_add(part.number as u64).to_string(), "--sample", &plan.sample.to_string()]);
    command.args(place.urls.iter().flat_map(|url| ["--url", url]));
    if let Some(data_dir) = place.data_dir {
        command.arg("--data-dir").arg(data_dir);
    }
    if plan.unjudged {
        command.arg("--unjudged");
    }
    if let Some(outage_max) = plan.outage_max {
        command.args(["--outage-max", &outage_max.to_string()]);
    }
    if let Some(history) = &plan.history {
        command.arg("--history").arg(numbered(history, part.number));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("cannot start another tester")?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (Some(input), Some(output)) = (input, output) else { bail!("another tester has no pipes") };
    Ok(Other { child, input, words: BufReader::new(output).lines() })
}

/// `history.jsonl` of the third part is `history.2.jsonl`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
    path.with_extension(extension.map_or_else(|| number.to_string(), |extension| format!("{number}.{extension}")))
}

async fn next(words: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Word> {
    let line = timeout(PATIENCE, words.next_line()).await.context("a part says nothing any more")??;
    let line = line.context("a part has ended before it was done")?;
    serde_json::from_str(&line).with_context(|| format!("a part says {line:.200}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn seconds_of_parts_are_put_together_by_their_number() {
        let second =
            |at: f64, acks_per_s: f64, ack_p99_ms: f64| Second { at, acks_per_s, ack_p99_ms, ..Second::default() };
        let seconds =
            [vec![second(1.0, 10.0, 5.0), second(2.0, 20.0, 1.0)], vec![second(1.1, 1.0, 7.0), second(2.2, 2.0, 0.5)]];
        let cost = |servers| Cost { ours: 0.0, servers, rss: 7 };
        let all = together(&seconds, &[cost(1.1), cost(3.3)]);
        let seen: Vec<_> = all.iter().map(|each| (each.acks_per_s, each.ack_p99_ms, each.server_rss)).collect();
        assert_eq!(seen, [(11.0, 7.0, 7), (22.0, 1.0, 7)]);
        assert!((all[0].server_cores - 1.0).abs() < 0.01 && (all[1].server_cores - 2.0).abs() < 0.01, "{all:?}");
    }

    #[test]
    fn parts_are_named_and_their_files_numbered() {
        assert_eq!("2/5".parse(), Ok(Part { number: 2, of: 5 }));
        assert!(["5/5", "1", "a/b", "-1/3"].iter().all(|text| text.parse::<Part>().is_err()));
        assert_eq!(numbered(Path::new("a/history.jsonl"), 2), Path::new("a/history.2.jsonl"));
        assert_eq!(numbered(Path::new("history"), 0), Path::new("history.0"));
    }
}
