//! What a crowd does, as a file says it: who comes, in which groups they are, how often they write, and how that changes over time.
//!
//! `loadtest/scenarios` has examples. All fields are explained here, with what holds when they are left out; an unknown one is an error.
//! What is drawn (who is in which group) is drawn from a seed.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use hashbrown::HashSet;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

use super::{Pace, member::Habits, part::Part};
use crate::client::Speech;

/// A client whose reading pauses for longer counts its requests as lost before it reads the answers.
const SLOW_SECS_MAX: f64 = 10.0;

/// In the end everybody is waited for, and a client gives up what has no answer for a minute.
const AWAY_SECS_MAX: f64 = 30.0;

/// The most that one process is asked to do; further on it is its files that end.
const CLIENTS_MAX: usize = 1_000_000;

/// Members of the largest group.
const GROUP_MAX: usize = 100_000;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, for the report.
    pub title: String,
    /// Seconds of work before measuring begins, at the pace of the first phase's beginning.
    #[serde(default = "one")]
    pub warmup_secs: f64,
    /// Who comes.
    pub populations: Vec<Population>,
    /// What is measured, one after the other.
    pub phases: Vec<Phase>,
    /// When connections break.
    #[serde(default)]
    pub storms: Vec<Storm>,
}

/// Clients that behave alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Population {
    /// What they are called in the report.
    pub name: String,
    /// How many.
    pub clients: usize,
    /// Where they talk; each population is by itself.
    pub groups: Groups,
    /// When they write; absent: never.
    #[serde(default)]
    pub sends: Option<Sends>,
    /// How unevenly: the k-th of them writes, and the k-th conversation of each of them is written to, k to the power of this times less
    /// often than the first (Zipf). 0: everybody and everywhere alike; 1 is what people do.
    #[serde(default)]
    pub uneven: f64,
    /// Bytes of each body.
    #[serde(default = "two_hundred")]
    pub body_bytes: usize,
    /// How they talk.
    #[serde(default)]
    pub speech: Speech,
    /// They say that they are writing, before each message.
    #[serde(default)]
    pub types: bool,
    /// They say what has reached them and that they have read it.
    #[serde(default)]
    pub receipts: bool,
    /// A client says so about all of its conversations at once, and then not again for so long. 0: as soon as it has an answer.
    #[serde(default = "one")]
    pub receipts_secs: f64,
    /// To which share of the messages that they hear each of them reacts.
    #[serde(default)]
    pub reacts: f64,
    /// Everybody looks at the presence of so many others of their first group.
    #[serde(default)]
    pub watches: usize,
    /// They stop reading now and then, while their connections stay.
    #[serde(default)]
    pub slow: Option<Slow>,
    /// They lose their connections now and then, as telephones do.
    #[serde(default)]
    pub flaps: Option<Flaps>,
}

/// Conversations of a population. Sizes follow a power law (Zipf): a group of twice as many is 2^exponent times rarer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// In how many of them everybody is, on average.
    #[serde(default = "one")]
    pub per_client: f64,
    /// Members of the smallest.
    pub smallest: usize,
    /// Members of the largest; default: all have the same size. Above 256 members everybody has it open, as only then it is heard.
    #[serde(default)]
    pub largest: Option<usize>,
    /// How much rarer large ones are.
    #[serde(default = "one")]
    pub exponent: f64,
    /// Whether those of two are direct conversations.
    #[serde(default = "yes")]
    pub direct: bool,
}

/// How clients write: one of `in_flight` and `rate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sends {
    /// So many at a time each, the next when one is acknowledged (a closed loop: a server that stalls is asked less).
    #[serde(default)]
    pub in_flight: Option<usize>,
    /// So many per second of all of them together at pace 1, whatever the answers do (an open loop). Latencies count from when a message
    /// was meant to be sent: a server that stalls is charged for all that waited.
    #[serde(default)]
    pub rate: Option<f64>,
    /// When those are meant to be sent.
    #[serde(default)]
    pub arrivals: Arrivals,
}

/// How the messages of one client are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// At equal distances.
    #[default]
    Even,
    /// By chance, as the calls of many people do.
    Poisson,
}

/// Pauses of reading.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    /// From one to the next.
    pub every_secs: f64,
    /// Its length.
    pub for_secs: f64,
}

/// Losses of connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flaps {
    /// From one to the next, on average.
    pub every_secs: f64,
    /// How long somebody is away.
    pub away_secs: f64,
}

/// A stretch of time with one pace, or one that grows or falls evenly. The pace multiplies the rates of open loops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What it is called in the report.
    pub name: String,
    /// How long it lasts.
    pub secs: f64,
    /// The pace at its end.
    #[serde(default = "one")]
    pub pace: f64,
    /// The pace at its beginning; default: the one at its end.
    #[serde(default)]
    pub from: Option<f64>,
}

/// Many lose their connections in the same moment, and come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    /// When, after measuring began.
    pub at_secs: f64,
    /// Which share of them.
    pub share: f64,
    /// Of which population; default: of all.
    #[serde(default)]
    pub population: Option<String>,
}

const fn one() -> f64 {
    1.0
}

const fn two_hundred() -> usize {
    200
}

const fn yes() -> bool {
    true
}

/// Members of a conversation, by index, and which kind it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The first of them creates it.
    pub members: Vec<usize>,
    /// Whether it is between two.
    pub direct: bool,
}

/// Who is where, and how often each of them writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cast {
    /// By index of a client: in which conversations, by theirs.
    pub places: Vec<Vec<usize>>,
    /// By index of a client: when they write, at pace 1.
    pub paces: Vec<Pace>,
    /// By index of a client: which population.
    pub populations: Vec<usize>,
    /// All conversations.
    pub conversations: Vec<Conversation>,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// When there is none, or it is not a scenario; says where and why.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads what a file holds.
    ///
    /// # Errors
    /// Says where and why.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.populations.is_empty(), "populations: there is nobody");
        ensure!(!self.phases.is_empty(), "phases: there is nothing to be measured");
        ensure!(self.clients() <= CLIENTS_MAX, "populations: {} clients; {CLIENTS_MAX} are the most", self.clients());
        ensure!((0.0..=600.0).contains(&self.warmup_secs), "warmup_secs: from 0 to 600");
        for (at, population) in self.populations.iter().enumerate() {
            population.check().with_context(|| format!("populations[{at}] ({})", population.name))?;
            let twice = self.populations[..at].iter().any(|other| other.name == population.name);
            ensure!(!twice, "populations[{at}]: another one is called {} too", population.name);
        }
        for (at, phase) in self.phases.iter().enumerate() {
            let paces = [phase.pace, phase.from.unwrap_or(phase.pace)];
            let fine =
                phase.secs >= 1.0 && phase.secs <= 86_400.0 && paces.iter().all(|pace| (0.0..=1e6).contains(pace));
            ensure!(fine, "phases[{at}] ({}): secs from 1 to 86400, paces from 0 to 1e6", phase.name);
        }
        for (at, phase) in self.phases.iter().enumerate() {
            let twice = self.phases[..at].iter().any(|other| other.name == phase.name);
            ensure!(!twice, "phases[{at}]: another one is called {} too", phase.name);
        }
        for (at, storm) in self.storms.iter().enumerate() {
            ensure!(storm.at_secs >= 0.0 && (0.0..=1.0).contains(&storm.share), "storms[{at}]: share from 0 to 1");
            ensure!(storm.at_secs < self.secs(), "storms[{at}]: at_secs is after the last phase");
            if let Some(name) = &storm.population {
                let known = self.populations.iter().any(|population| population.name == *name);
                ensure!(known, "storms[{at}]: there is no population {name}");
            }
        }
        Ok(())
    }

    /// The same with so many times the clients and the rates.
    ///
    /// # Errors
    /// When that is too much, or nobody is left.
    pub fn scaled(mut self, factor: f64) -> anyhow::Result<Self> {
        for population in &mut self.populations {
            population.clients = (population.clients as f64 * factor).round() as usize;
            let groups = &mut population.groups;
            groups.largest = groups.largest.map(|largest| largest.min(population.clients).max(groups.smallest));
            if let Some(Sends { rate: Some(rate), .. }) = &mut population.sends {
                *rate *= factor;
            }
        }
        self.check()?;
        Ok(self)
    }

    /// What one of several processes does of it.
    ///
    /// # Errors
    /// When there are fewer clients than parts, or a group would be larger than what a part has.
    pub fn part(&self, part: Part) -> anyhow::Result<Self> {
        let mut ours = self.clone();
        for population in &mut ours.populations {
            let all = population.clients;
            let upto = |number: usize| all * number / part.of;
            population.clients = upto(part.number + 1) - upto(part.number);
            if let Some(Sends { rate: Some(rate), .. }) = &mut population.sends {
                *rate *= population.clients as f64 / all as f64;
            }
            let (largest, clients) =
                (population.groups.largest.unwrap_or(population.groups.smallest), population.clients);
            ensure!(
                largest <= clients || largest > all,
                "population {}: groups of {largest} do not fit into one of {} processes",
                population.name,
                part.of
            );
        }
        ours.check()?;
        Ok(ours)
    }

    /// All clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.populations.iter().map(|population| population.clients).sum()
    }

    /// Seconds that are measured.
    #[must_use]
    pub fn secs(&self) -> f64 {
        self.phases.iter().map(|phase| phase.secs).sum()
    }

    /// The pace at a moment after measuring began, and the phase that it belongs to.
    #[must_use]
    pub fn pace(&self, secs: f64) -> (f64, usize) {
        let mut begin = 0.0;
        for (at, phase) in self.phases.iter().enumerate() {
            if secs < begin + phase.secs || at + 1 == self.phases.len() {
                let from = phase.from.unwrap_or(phase.pace);
                let part = ((secs - begin) / phase.secs).clamp(0.0, 1.0);
                return (from + (phase.pace - from) * part, at);
            }
            begin += phase.secs;
        }
        (1.0, 0)
    }

    /// Draws who is where.
    ///
    /// # Errors
    /// Never for what [`Scenario::parse`] gave.
    pub fn cast(&self, seed: u64) -> anyhow::Result<Cast> {
        let (mut rng, mut cast) = (SmallRng::seed_from_u64(seed), Cast::default());
        for (number, population) in self.populations.iter().enumerate() {
            let first = cast.places.len();
            cast.places.resize_with(first + population.clients, Vec::new);
            cast.populations.resize(first + population.clients, number);
            for mut conversation in population.groups.deal(population.clients, &mut rng)? {
                conversation.members.iter_mut().for_each(|member| *member += first);
                for member in &conversation.members {
                    cast.places[*member].push(cast.conversations.len());
                }
                cast.conversations.push(conversation);
            }
            let weights = zipf(population.clients, population.uneven);
            cast.paces.extend(weights.map(|weight| population.pace_of(weight)));
        }
        Ok(cast)
    }
}

impl Population {
    fn check(&self) -> anyhow::Result<()> {
        let Groups { per_client, smallest, largest, exponent, .. } = self.groups;
        let largest = largest.unwrap_or(smallest);
        ensure!(self.clients > 0, "clients: at least one");
        ensure!(
            smallest > 0 && smallest <= largest && largest <= GROUP_MAX,
            "groups: 1 ≤ smallest ≤ largest ≤ {GROUP_MAX}"
        );
        ensure!(
            largest <= self.clients || smallest == largest,
            "groups.largest: there are only {} clients",
            self.clients
        );
        ensure!((1.0..=1000.0).contains(&per_client), "groups.per_client: from 1 to 1000");
        ensure!((0.0..=10.0).contains(&exponent), "groups.exponent: from 0 to 10");
        ensure!((0.0..=10.0).contains(&self.uneven), "uneven: from 0 to 10");
        ensure!((0.0..=1.0).contains(&self.reacts), "reacts: from 0 to 1");
        if let Some(sends) = &self.sends {
            match (sends.in_flight, sends.rate) {
                (Some(in_flight), None) => ensure!((1..=1000).contains(&in_flight), "sends.in_flight: from 1 to 1000"),
                (None, Some(rate)) => ensure!(rate > 0.0 && rate <= 1e7, "sends.rate: above 0 up to 1e7"),
                _ => bail!("sends: either in_flight or rate"),
            }
            let is_closed = sends.in_flight.is_some();
            ensure!(!is_closed || sends.arrivals == Arrivals::Even, "sends.arrivals: only of an open loop (rate)");
        }
        ensure!((0.0..=60.0).contains(&self.receipts_secs), "receipts_secs: from 0 to 60");
        if let Some(slow) = self.slow {
            let every = slow.for_secs..=86_400.0;
            let fine = slow.for_secs > 0.0 && slow.for_secs <= SLOW_SECS_MAX && every.contains(&slow.every_secs);
            ensure!(fine, "slow: for_secs above 0 up to {SLOW_SECS_MAX}, every_secs longer than that, up to 86400");
        }
        if let Some(flaps) = self.flaps {
            let fine = (0.0..=AWAY_SECS_MAX).contains(&flaps.away_secs)
                && flaps.every_secs > flaps.away_secs
                && flaps.every_secs <= 86_400.0;
            ensure!(fine, "flaps: away_secs up to {AWAY_SECS_MAX}, every_secs above that of away_secs, up to 86400");
        }
        Ok(())
    }

    /// When somebody writes who writes so many times as often as the average.
    fn pace_of(&self, weight: f64) -> Pace {
        match &self.sends {
            Some(Sends { in_flight: Some(window), .. }) => Pace::Closed(*window),
            Some(Sends { rate: Some(rate), .. }) => {
                // Who would write once a year may as well write once a month.
                Pace::Open(Duration::from_secs_f64((self.clients as f64 / (rate * weight)).min(3e6)))
            }
            _ => Pace::Listen,
        }
    }

    /// What its clients do besides.
    #[must_use]
    pub fn habits(&self) -> Habits {
        let secs = Duration::from_secs_f64;
        Habits {
            body_bytes: self.body_bytes,
            types: self.types,
            receipts: self.receipts,
            receipts_every: secs(self.receipts_secs),
            reacts: self.reacts,
            uneven: self.uneven,
            poisson: self.sends.as_ref().is_some_and(|sends| sends.arrivals == Arrivals::Poisson),
            slow: self.slow.map(|slow| (secs(slow.every_secs), secs(slow.for_secs))),
            flaps: self.flaps.map(|flaps| (secs(flaps.every_secs), secs(flaps.away_secs))),
        }
    }
}

impl Groups {
    /// Deals seats to so many clients, as cards are: everybody gets about as many as everybody else, and nobody two in one group.
    fn deal(&self, clients: usize, rng: &mut SmallRng) -> anyhow::Result<Vec<Conversation>> {
        let seats = ((clients as f64 * self.per_client).round() as usize).max(clients);
        let largest = self.largest.unwrap_or(self.smallest).min(clients);
        let smallest = self.smallest.min(largest);
        let sizes: Vec<f64> = cumulated((smallest..=largest).map(|size| (size as f64).powf(-self.exponent)));
        let (mut deck, mut dealt, mut groups) = (Vec::new(), 0, Vec::new());
        let mut pairs = HashSet::new();
        while dealt < seats {
            let size = (smallest + draw(&sizes, rng)).min(seats - dealt);
            let (mut members, mut aside, mut there) =
                (Vec::with_capacity(size), Vec::new(), HashSet::with_capacity(size));
            while members.len() < size {
                let Some(card) = deck.pop() else {
                    deck = (0..clients).collect();
                    deck.shuffle(rng);
                    continue;
                };
                match there.insert(card) {
                    true => members.push(card),
                    false => aside.push(card),
                }
            }
            deck.append(&mut aside);
            dealt += size;
            // Two people have one direct conversation.
            let direct =
                self.direct && size == 2 && pairs.insert((members[0].min(members[1]), members[0].max(members[1])));
            groups.push(Conversation { members, direct });
        }
        Ok(groups)
    }
}

/// Weights of so many by Zipf's law, 1 on average.
fn zipf(count: usize, exponent: f64) -> impl Iterator<Item = f64> {
    let weight = move |rank: usize| ((rank + 1) as f64).powf(-exponent);
    let sum: f64 = (0..count).map(weight).sum();
    (0..count).map(move |rank| weight(rank) * count as f64 / sum)
}

/// Running sums, the last of which is 1.
pub(super) fn cumulated(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sum = 0.0;
    let mut sums: Vec<f64> = weights
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect();
    sums.iter_mut().for_each(|each| *each /= sum);
    sums
}

/// Draws a place by running sums.
pub(super) fn draw(sums: &[f64], rng: &mut impl Rng) -> usize {
    let at: f64 = rng.random();
    sums.partition_point(|sum| *sum <= at).min(sums.len().saturating_sub(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        title = "two kinds of people"

        [[populations]]
        name = "talkers"
        clients = 100
        groups = { per_client = 3.0, smallest = 2, largest = 40, exponent = 1.2 }
        sends = { rate = 50.0, arrivals = "poisson" }
        uneven = 1.0
        receipts = true

        [[populations]]
        name = "crowd"
        clients = 30
        groups = { smallest = 10 }
        sends = { in_flight = 2 }

        [[phases]]
        name = "ramp"
        secs = 10.0
        from = 0.0
        [[phases]]
        name = "spike"
        secs = 5.0
        pace = 4.0

        [[storms]]
        at_secs = 12.0
        share = 0.5
        population = "talkers"
    "#;

    #[test]
    fn seats_are_dealt_fairly_and_nobody_sits_twice_in_one_group() {
        let scenario = Scenario::parse(SMALL).unwrap();
        let cast = scenario.cast(7).unwrap();
        assert_eq!(cast, scenario.cast(7).unwrap());
        assert_ne!(cast, scenario.cast(8).unwrap());
        assert_eq!((cast.places.len(), cast.paces.len()), (130, 130));
        assert!(cast.places[..100].iter().all(|places| (2..=4).contains(&places.len())), "{:?}", cast.places);
        assert!(cast.places[100..].iter().all(|places| places.len() == 1));
        for (index, conversation) in cast.conversations.iter().enumerate() {
            let members: HashSet<usize> = conversation.members.iter().copied().collect();
            assert_eq!(members.len(), conversation.members.len());
            assert!(members.iter().all(|member| cast.places[*member].contains(&index)));
            assert!(!conversation.direct || members.len() == 2);
            // Populations are by themselves.
            assert!(members.iter().all(|member| *member < 100) || members.iter().all(|member| *member >= 100));
        }
        let sizes = |wanted: std::ops::RangeInclusive<usize>| {
            let talk = cast.conversations.iter().filter(|each| each.members[0] < 100);
            talk.filter(|each| wanted.contains(&each.members.len())).count()
        };
        assert!(sizes(2..=5) > sizes(20..=40), "small ones are more than large ones");
        assert!(sizes(10..=40) > 0);
        let directs: HashSet<Vec<usize>> = cast
            .conversations
            .iter()
            .filter(|each| each.direct)
            .map(|each| {
                let mut pair = each.members.clone();
                pair.sort_unstable();
                pair
            })
            .collect();
        assert_eq!(directs.len(), cast.conversations.iter().filter(|each| each.direct).count());
    }

    #[test]
    fn rates_add_up_however_uneven_people_are() {
        let cast = Scenario::parse(SMALL).unwrap().cast(7).unwrap();
        let rate: f64 = cast.paces[..100]
            .iter()
            .map(|pace| if let Pace::Open(every) = pace { 1.0 / every.as_secs_f64() } else { 0.0 })
            .sum();
        assert!((rate - 50.0).abs() < 0.01, "{rate}");
        let Pace::Open(first) = cast.paces[0] else { panic!() };
        let Pace::Open(tenth) = cast.paces[9] else { panic!() };
        assert!((tenth.as_secs_f64() / first.as_secs_f64() - 10.0).abs() < 0.01);
        assert!(cast.paces[100..].iter().all(|pace| *pace == Pace::Closed(2)));
    }

    #[test]
    fn a_pace_grows_within_a_phase_and_jumps_between_two() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!([0.0, 5.0, 9.99, 10.0, 99.0].map(|at| scenario.pace(at).1), [0, 0, 0, 1, 1]);
        let paces = [0.0, 5.0, 10.0, 14.0, 99.0].map(|at| (scenario.pace(at).0 * 10.0).round() / 10.0);
        assert_eq!(paces, [0.0, 0.5, 4.0, 4.0, 4.0]);
    }

    #[test]
    fn who_is_drawn_follows_the_weights() {
        let (sums, mut rng) = (cumulated([3.0, 1.0].into_iter()), SmallRng::seed_from_u64(1));
        let first = (0..4000).filter(|_| draw(&sums, &mut rng) == 0).count();
        assert!((2850..3150).contains(&first), "{first}");
    }

    #[test]
    fn a_smaller_one_has_the_same_rate_for_each() {
        let scenario = Scenario::parse(SMALL).unwrap().scaled(0.1).unwrap();
        assert_eq!((scenario.clients(), scenario.populations[0].groups.largest), (13, Some(10)));
        assert_eq!(scenario.populations[0].sends.as_ref().unwrap().rate, Some(5.0));
        assert!(Scenario::parse(SMALL).unwrap().scaled(0.001).is_err());
    }

    #[test]
    fn parts_are_the_whole_together() {
        let scenario = Scenario::parse(SMALL).unwrap();
        let parts: Vec<_> = (0..2).map(|number| scenario.part(Part { number, of: 2 }).unwrap()).collect();
        assert_eq!(parts.iter().map(Scenario::clients).sum::<usize>(), 130);
        let rate = |part: &Scenario| part.populations[0].sends.as_ref().unwrap().rate.unwrap();
        assert_eq!(parts.iter().map(rate).sum::<f64>(), 50.0);
        // What a part is told as a file is what was meant.
        assert_eq!(Scenario::parse(&toml::to_string(&parts[0]).unwrap()).unwrap(), parts[0]);
        let why = scenario.part(Part { number: 0, of: 3 }).unwrap_err().to_string();
        assert!(why.contains("groups of 40 do not fit into one of 3 processes"), "{why}");
    }

    #[test]
    fn the_examples_are_scenarios() {
        // Tests run in their package's folder.
        let folder = Path::new("scenarios");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 4, "{files:?}");
        for file in files {
            let scenario = Scenario::read(&file).unwrap();
            scenario.scaled(0.05).unwrap().cast(1).unwrap();
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let refused = |from: &str, to: &str| {
            assert!(SMALL.contains(from), "{from}");
            format!("{:#}", Scenario::parse(&SMALL.replace(from, to)).unwrap_err())
        };
        for (from, to, said) in [
            ("receipts = true", "recipts = true", "recipts"),
            ("in_flight = 2", "in_flight = 2, rate = 1.0", "populations[1] (crowd): sends: either in_flight or rate"),
            ("largest = 40", "largest = 400", "there are only 100 clients"),
            ("name = \"crowd\"", "name = \"talkers\"", "another one is called talkers too"),
            ("population = \"talkers\"", "population = \"nobody\"", "there is no population nobody"),
            ("at_secs = 12.0", "at_secs = 120.0", "after the last phase"),
            ("secs = 5.0", "secs = 0.0", "phases[1] (spike)"),
            ("name = \"spike\"", "name = \"ramp\"", "phases[1]: another one is called ramp too"),
            ("at_secs = 12.0", "at_secs = 15.0", "after the last phase"),
            ("per_client = 3.0", "per_client = 0.5", "groups.per_client"),
            ("in_flight = 2", "in_flight = 2, arrivals = \"poisson\"", "only of an open loop"),
            ("receipts = true", "receipts_secs = -1.0", "receipts_secs: from 0 to 60"),
            ("uneven = 1.0", "flaps = { every_secs = 90.0, away_secs = 60.0 }", "flaps: away_secs up to 30"),
            ("uneven = 1.0", "uneven = -1.0", "uneven"),
            ("uneven = 1.0", "slow = { every_secs = 20.0, for_secs = 15.0 }", "slow: for_secs"),
            ("uneven = 1.0", "flaps = { every_secs = 2.0, away_secs = 5.0 }", "every_secs above that"),
        ] {
            let why = refused(from, to);
            assert!(why.contains(said), "{to}: {why}");
        }
    }
}
