//! How long conversations stand still: when the node that owns them is killed (`failover`), and when it gives them away in peace
//! (`hand-off`). People talk in pairs through a cluster of real processes, one message on its way at a time; each conversation that
//! changed its owner is one sample, and the oracle judges what everybody saw.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use chappe_cluster::process::{metrics::NODE_MOVE_STEP_DURATION_SECONDS, operator::Overview};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use super::{Plan, Row};
use crate::{
    client::{Client, Options, token::Signer},
    history::History,
    local::{Cluster, Signal, Which},
    metrics::Metrics,
};

/// The first port of the processes.
const PORT: u16 = 17_500;
const NODES: u16 = 3;
const GATEWAYS: u16 = 2;
/// Conversations: a third of them changes its owner when a node goes.
const PAIRS: usize = 48;
/// Where it is milliseconds that count, the machine must have some to spare.
const PAIRS_IN_PEACE: usize = 16;
/// Between an acknowledgement and the next message. As many as there are shall not be all that two cores can do.
const PAUSE: Duration = Duration::from_millis(15);
/// How often a node goes.
const ROUNDS: usize = 9;
/// Before each time: what talking is like when nothing happens.
const PEACE: Duration = Duration::from_secs(2);

/// Conversations that the nodes have in memory beside those that talk, and the people who began them.
const FILLED: usize = 8_000;
const FILLERS: usize = 64;

/// Two people, of whom one talks.
struct Pair {
    conversation: Uuid,
    talks: Client,
    listens: Client,
    /// When each message was sent first, and when it was acknowledged, since somebody wanted to know.
    acks: Mutex<Vec<(Instant, Instant)>>,
}

/// All of them, talking.
struct Talk {
    pairs: Vec<Arc<Pair>>,
    over: Arc<AtomicBool>,
    talking: JoinSet<anyhow::Result<()>>,
    history: Arc<History>,
}

/// Samples in milliseconds.
#[derive(Default)]
struct Samples(Vec<f64>);

pub(super) async fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let (_home, mut cluster) = plan.cluster(NODES, GATEWAYS, PORT).await?;
    let filled = plan.scaled(FILLED) / FILLERS * FILLERS;
    fill(&cluster.urls(), &cluster.signer()?, filled).await?;
    let pairs = plan.scaled(if name == "failover" { PAIRS } else { PAIRS_IN_PEACE });
    let talk = Talk::begin(&cluster.urls(), &cluster.signer()?, pairs).await?;
    let rounds = plan.scaled(ROUNDS);
    let row = if name == "failover" {
        killed(&mut cluster, &talk, rounds).await?
    } else {
        given_away(&cluster, &talk, rounds).await?
    };
    let notes = talk.end().await?;
    cluster.stop().await?;
    let load = format!(
        "{NODES} nodes and {GATEWAYS} gateways over a CQL server, {filled} conversations in memory; {pairs} pairs talk, one message on its way, {} ms between two: {}",
        PAUSE.as_millis(),
        row.load
    );
    Ok(Row { name: name.into(), load, notes: row.notes.into_iter().chain([notes]).collect(), ..row })
}

/// One node after the other is killed, and comes back.
async fn killed(cluster: &mut Cluster, talk: &Talk, rounds: usize) -> anyhow::Result<Row> {
    let (mut stood_still, mut leaders, mut peace) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..rounds {
        let seen = settled(cluster).await?;
        let victim = round % usize::from(NODES);
        let leads =
            seen.nodes.iter().any(|node| node.ordinal as usize == victim && Some(&node.uid) == seen.leader.as_ref());
        let owned = talk.owned_by(cluster, victim).await?;
        peace.extend(talk.longest_in_peace().await);
        let killed = Instant::now();
        cluster.signal(Which::Node(victim), Signal::KILL)?;
        cluster.ended(Which::Node(victim)).await?;
        for pair in owned {
            // What was on its way may have been acknowledged by the dead: only what was sent afterwards counts.
            let accepted = pair.first_after(killed).await?;
            let ms = (accepted - killed).as_secs_f64() * 1e3;
            stood_still.0.push(ms);
            if leads {
                leaders.0.push(ms);
            }
        }
        cluster.restart(Which::Node(victim)).await?;
    }
    let load = format!(
        "{rounds} times a node is killed; from the kill to the acknowledgement of a message that was sent after it"
    );
    let mut row = Row { load, unit: "ms, p50".into(), figure: stood_still.quantile(0.5), ..Row::default() };
    row.aim = "p50 ≤ 2500 ms, p99 ≤ 4000 ms, also where the node led Raft".into();
    row.notes.push(format!("conversations of the killed: {stood_still}"));
    row.notes.push(format!("of those that led Raft: {leaders}"));
    row.notes.push(format!("the longest acknowledgement of each conversation in {PEACE:?} of peace: {peace}"));
    Ok(row)
}

/// One node after the other gives away what it owns, and gets its share again.
async fn given_away(cluster: &Cluster, talk: &Talk, rounds: usize) -> anyhow::Result<Row> {
    let (mut paused, mut stayed) = (Samples::default(), Samples::default());
    let (mut peace, mut took) = (Samples::default(), Samples::default());
    let before = nodes_say(cluster).await?;
    for round in 0..rounds {
        let victim = round % usize::from(NODES);
        settled(cluster).await?;
        for drains in [true, false] {
            peace.extend(talk.longest_in_peace().await);
            let before = talk.owners(cluster).await?;
            talk.forget();
            let began = Instant::now();
            cluster.set_drain(victim, drains).await?;
            if drains {
                cluster.wait(|seen| owns(seen, victim) == Some(0)).await?;
                took.0.push(began.elapsed().as_secs_f64() * 1e3);
            } else {
                settled(cluster).await?;
            }
            // Whoever waits has an answer by then.
            sleep(PAUSE * 10).await;
            let after = talk.owners(cluster).await?;
            for (pair, (before, after)) in talk.pairs.iter().zip(before.iter().zip(&after)) {
                if before == after { &mut stayed } else { &mut paused }.0.push(pair.longest());
            }
        }
    }
    let load = format!(
        "{rounds} times a node drains and takes its share again; the longest acknowledgement of each conversation that moved"
    );
    let mut row = Row { load, unit: "ms, p50".into(), figure: paused.quantile(0.5), ..Row::default() };
    row.aim = "p99 ≤ 100 ms".into();
    row.notes.push(format!("conversations that moved: {paused}"));
    row.notes.push(format!("of those that did not, in the same time: {stayed}"));
    row.notes.push(format!("the longest acknowledgement of each conversation in {PEACE:?} of peace: {peace}"));
    row.notes.push(format!("until a node owned nothing: {took}"));
    row.notes.push(steps(&before, &nodes_say(cluster).await?));
    Ok(row)
}

/// What every node says of itself.
async fn nodes_say(cluster: &Cluster) -> anyhow::Result<Vec<Metrics>> {
    let mut all = Vec::new();
    for node in 0..usize::from(NODES) {
        all.push(cluster.metrics(Which::Node(node)).await?);
    }
    Ok(all)
}

/// How long partitions spent in each step of their moves, on average.
fn steps(before: &[Metrics], after: &[Metrics]) -> String {
    let grown = |suffix: &str, labels: &[(&str, &str)]| -> f64 {
        let name = format!("{NODE_MOVE_STEP_DURATION_SECONDS}_{suffix}");
        let of = |all: &[Metrics]| all.iter().map(|one| one.labelled(&name, labels)).sum::<f64>();
        of(after) - of(before)
    };
    let mean = |step| {
        let (sum, count) = (grown("sum", &[("step", step)]), grown("count", &[("step", step)]));
        format!("{step} {:.1}", sum / count.max(1.0) * 1e3)
    };
    let all: Vec<String> = ["show", "seal", "agree", "commit", "pause"].map(mean).into();
    let moves = grown("count", &[("step", "pause")]);
    let share = |le| grown("bucket", &[("step", "pause"), ("le", le)]) / moves.max(1.0) * 100.0;
    format!(
        "{moves} moves, ms in each step as the giver sees it: {}; {:.1} % of all partitions paused for at most 50 ms, {:.1} % for at most 100",
        all.join(", "),
        share("0.05"),
        share("0.1")
    )
}

/// So many conversations with a message each, by people who then leave.
async fn fill(urls: &[String], signer: &Signer, conversations: usize) -> anyhow::Result<()> {
    let mut filling = JoinSet::new();
    for number in 0..FILLERS {
        let user = format!("fills-{number}");
        let (url, token) = (urls[number % urls.len()].clone(), signer.sign(&user)?);
        filling.spawn(async move {
            let (client, _unheard) = Client::connect(&url, &user, &token, Options::default()).await?;
            for other in 0..conversations / FILLERS {
                let begun = client.direct(&format!("filled-{number}-{other}")).await;
                let conversation = begun.map_err(|failure| anyhow!("{failure:?}"))?;
                let sent = client.send(conversation, &json!({ "text": "for the nodes' memory" })).await;
                sent.map_err(|failure| anyhow!("{failure:?}"))?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = filling.join_next().await {
        filled?.context("a conversation was not begun")?;
    }
    Ok(())
}

fn owns(seen: &Overview, ordinal: usize) -> Option<usize> {
    seen.nodes.iter().find(|node| node.ordinal as usize == ordinal).map(|node| node.owns)
}

/// All nodes are there, own their fair shares, and nothing moves.
async fn settled(cluster: &Cluster) -> anyhow::Result<Overview> {
    let is_fair = |seen: &Overview| {
        let fair = seen.partitions as usize / usize::from(NODES);
        seen.nodes.iter().all(|node| node.up && !node.drains && node.owns.abs_diff(fair) <= 1)
    };
    cluster.wait(|seen| seen.nodes.len() == usize::from(NODES) && seen.is_settled() && is_fair(seen)).await
}

impl Talk {
    async fn begin(urls: &[String], signer: &Signer, pairs: usize) -> anyhow::Result<Self> {
        let history = History::in_memory();
        let options = Options {
            history: Some(Arc::clone(&history)),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(200),
            ..Options::default()
        };
        let (mut talking, over, mut all) = (JoinSet::new(), Arc::new(AtomicBool::new(false)), Vec::new());
        for number in 0..pairs {
            let (talks, listens) = (format!("talks-{number}"), format!("listens-{number}"));
            // Each at a gateway of its own.
            let (near, far) = (&urls[number % urls.len()], &urls[(number + 1) % urls.len()]);
            let (here, _unheard) = Client::connect(near, &talks, &signer.sign(&talks)?, options.clone()).await?;
            let (there, _unheard) = Client::connect(far, &listens, &signer.sign(&listens)?, options.clone()).await?;
            let conversation = here.direct(&listens).await.map_err(|failure| anyhow!("{failure:?}"))?;
            let pair = Arc::new(Pair { conversation, talks: here, listens: there, acks: Mutex::default() });
            talking.spawn(Arc::clone(&pair).talk(Arc::clone(&over)));
            all.push(pair);
        }
        Ok(Self { pairs: all, over, talking, history })
    }

    /// Who owns each conversation.
    async fn owners(&self, cluster: &Cluster) -> anyhow::Result<Vec<usize>> {
        let mut owners = Vec::with_capacity(self.pairs.len());
        for pair in &self.pairs {
            owners.push(cluster.owner_of(&pair.conversation.to_string()).await?);
        }
        Ok(owners)
    }

    async fn owned_by(&self, cluster: &Cluster, ordinal: usize) -> anyhow::Result<Vec<&Pair>> {
        let owners = self.owners(cluster).await?;
        Ok(self.pairs.iter().zip(owners).filter(|(_, owner)| *owner == ordinal).map(|(pair, _)| &**pair).collect())
    }

    fn forget(&self) {
        self.pairs.iter().for_each(|pair| pair.acks.lock().clear());
    }

    async fn longest_in_peace(&self) -> Samples {
        self.forget();
        sleep(PEACE).await;
        Samples(self.pairs.iter().map(|pair| pair.longest()).collect())
    }

    /// Everybody stops and reads everything; the oracle judges, and what it says is returned where it is no violation.
    async fn end(mut self) -> anyhow::Result<String> {
        self.over.store(true, Relaxed);
        while let Some(talked) = self.talking.join_next().await {
            talked?.context("a send failed")?;
        }
        for pair in &self.pairs {
            for client in [&pair.talks, &pair.listens] {
                let read = client.read_all(pair.conversation, 0, true).await;
                read.map_err(|failure| anyhow!("a conversation cannot be read: {failure:?}"))?;
            }
        }
        let verdict = self.history.verdict()?;
        ensure!(verdict.is_clean(), "promises were broken: {verdict}");
        Ok(format!("the oracle is clean over {} sends, of which none failed", verdict.stats.acked))
    }
}

impl Pair {
    async fn talk(self: Arc<Self>, over: Arc<AtomicBool>) -> anyhow::Result<()> {
        for number in 0_u64.. {
            if over.load(Relaxed) {
                break;
            }
            let asked = Instant::now();
            let sent = self.talks.send(self.conversation, &json!({ "text": format!("message {number}") })).await;
            sent.map_err(|failure| anyhow!("{failure:?}"))?;
            self.acks.lock().push((asked, Instant::now()));
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// When the first message was acknowledged that was sent after a moment.
    async fn first_after(&self, moment: Instant) -> anyhow::Result<Instant> {
        loop {
            if let Some((_, acked)) = self.acks.lock().iter().find(|(asked, _)| *asked > moment) {
                return Ok(*acked);
            }
            ensure!(moment.elapsed() < Duration::from_secs(60), "{} is not accepted any more", self.conversation);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The longest time from a sending to its acknowledgement, in milliseconds.
    fn longest(&self) -> f64 {
        let acks = self.acks.lock();
        acks.iter().map(|(asked, acked)| (*acked - *asked).as_secs_f64() * 1e3).fold(0.0, f64::max)
    }
}

impl Samples {
    fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The smallest sample that so large a share of them does not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

impl std::fmt::Display for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| self.quantile(share));
        write!(f, "{} samples, p50 {p50:.0} ms, p90 {p90:.0}, p99 {p99:.0}, longest {max:.0}", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = Samples((1..=100).rev().map(f64::from).collect());
        assert_eq!([0.5, 0.99, 1.0].map(|share| samples.quantile(share)), [50.0, 99.0, 100.0]);
        assert_eq!(Samples(vec![7.0]).quantile(0.99), 7.0);
        assert!(Samples::default().quantile(0.5).is_nan());
    }
}
