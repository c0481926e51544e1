//! The engine: looks at every state that a model can reach, or walks through it at random, and tells how a violation
//! came about.
//!
//! States are kept whole, packed into one arena, and compared byte by byte: no hash stands for a state, so "all states
//! were seen" means all of them. The search goes by breadth, so the first violation is one of the shortest.

use std::{fmt, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

/// Kinds of steps, at most.
pub const KINDS: usize = 32;

/// What can be checked.
pub trait Model {
    /// Everything there is at one moment.
    type State: Copy;
    /// What may happen next.
    type Step: Copy + PartialEq;
    /// What must never be.
    type Violation: Clone + fmt::Display;

    /// Where everything begins.
    fn initial(&self) -> Self::State;
    /// Everything that may happen in `state`.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Self::Step>);
    /// What `step` makes of `state`.
    ///
    /// # Errors
    /// It leads to what must never be.
    fn take(&self, state: &Self::State, step: Self::Step) -> Result<Self::State, Self::Violation>;
    /// Packs `state`; states that differ only in names (of replicas, of commands) are packed alike.
    fn pack(&self, state: &Self::State, bytes: &mut Vec<u8>);
    /// One of the states that are packed like this.
    fn unpack(&self, bytes: &[u8]) -> Self::State;
    /// Which kind of step it is, below [`KINDS`]: random walks choose a kind first, so that one with many variations drowns no
    /// other.
    fn kind(&self, step: Self::Step) -> u8;
    /// How much more often than another a kind is chosen.
    fn weight(&self, kind: u8) -> u32;
    /// `step` in plain words.
    fn tell(&self, state: &Self::State, step: Self::Step) -> String;
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Different states (of random walks: steps that were taken).
    pub states: u64,
    /// Steps that were looked at.
    pub steps: u64,
    /// The longest way from the beginning.
    pub depth: u32,
    /// The verdict.
    pub verdict: Verdict,
}

/// A check's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every state was seen, and none is wrong.
    Holds,
    /// Nothing wrong was seen, and not everything was.
    Unfinished,
    /// Something wrong was seen.
    Violated(Trace),
}

/// How a violation comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What happens, in plain words.
    pub steps: Vec<String>,
    /// What is wrong then.
    pub violation: String,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number:>2}. {step}")?;
        }
        write!(f, "  ==> {}", self.violation)
    }
}

/// Looks at every state, by breadth, until `states_max` are known. `visit` sees each state with its steps.
pub fn exhaust<M: Model>(model: &M, states_max: u64, mut visit: impl FnMut(&M::State, &[M::Step])) -> Report {
    let mut seen = Seen::default();
    let mut bytes = Vec::new();
    model.pack(&model.initial(), &mut bytes);
    seen.insert(&bytes, 0);
    let (mut next, mut steps_taken) = (0, 0);
    // The first state that is one step further away than what is being looked at.
    let (mut depth, mut level_end) = (0, 1);
    let mut steps = Vec::new();
    while next < seen.len() {
        if next == level_end {
            (depth, level_end) = (depth + 1, seen.len());
        }
        if seen.len() as u64 >= states_max {
            return Report { states: seen.len() as u64, steps: steps_taken, depth, verdict: Verdict::Unfinished };
        }
        let state = model.unpack(seen.bytes(next));
        steps.clear();
        model.steps(&state, &mut steps);
        visit(&state, &steps);
        for step in &steps {
            steps_taken += 1;
            match model.take(&state, *step) {
                Ok(after) => {
                    bytes.clear();
                    model.pack(&after, &mut bytes);
                    seen.insert(&bytes, next as u32);
                }
                Err(_) => {
                    let verdict = Verdict::Violated(retrace(model, &seen, next));
                    return Report { states: seen.len() as u64, steps: steps_taken, depth: depth + 1, verdict };
                }
            }
        }
        next += 1;
    }
    Report { states: seen.len() as u64, steps: steps_taken, depth, verdict: Verdict::Holds }
}

/// The way to the state `last`, and the violation behind it.
fn retrace<M: Model>(model: &M, seen: &Seen, last: usize) -> Trace {
    let mut way = vec![last];
    while let Some(&at) = way.last().filter(|at| **at != 0) {
        way.push(seen.parents[at] as usize);
    }
    let mut state = model.initial();
    let mut told = Vec::new();
    let (mut steps, mut bytes) = (Vec::new(), Vec::new());
    // The states of the arena may have other names in them than those we meet on the way, so steps are found anew.
    for &at in way.iter().rev().skip(1) {
        steps.clear();
        model.steps(&state, &mut steps);
        let found = steps.iter().find_map(|step| {
            let after = model.take(&state, *step).ok()?;
            bytes.clear();
            model.pack(&after, &mut bytes);
            (bytes == seen.bytes(at)).then_some((*step, after))
        });
        let Some((step, after)) = found else { unreachable!("renaming changed what may happen") };
        told.push(model.tell(&state, step));
        state = after;
    }
    steps.clear();
    model.steps(&state, &mut steps);
    let wrong = steps.iter().find_map(|step| Some((*step, model.take(&state, *step).err()?)));
    let Some((step, violation)) = wrong else { unreachable!("renaming changed what is wrong") };
    told.push(model.tell(&state, step));
    Trace { steps: told, violation: violation.to_string() }
}

/// Walks at random, `walks` times, at most `steps_max` steps each. Every walk has its own preferences among the kinds of
/// steps, so that what comes early on one comes late on another. A violation's way is shortened before it is told.
pub fn wander<M: Model>(model: &M, walks: u64, steps_max: u32, seed: u64) -> Report {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut report = Report { states: 0, steps: 0, depth: 0, verdict: Verdict::Unfinished };
    let (mut steps, mut kinds, mut way) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..walks {
        let preferences: [u32; KINDS] = std::array::from_fn(|kind| model.weight(kind as u8) << rng.random_range(0..6));
        let mut state = model.initial();
        way.clear();
        for _ in 0..steps_max {
            steps.clear();
            model.steps(&state, &mut steps);
            kinds.clear();
            kinds.extend(steps.iter().map(|step| model.kind(*step)));
            kinds.sort_unstable();
            kinds.dedup();
            let Ok(kind) = kinds.choose_weighted(&mut rng, |kind| preferences[usize::from(*kind)]) else { break };
            steps.retain(|step| model.kind(*step) == *kind);
            let step = steps[rng.random_range(0..steps.len())];
            way.push(step);
            report.steps += 1;
            match model.take(&state, step) {
                Ok(after) => state = after,
                Err(_) => {
                    report.depth = report.depth.max(way.len() as u32);
                    report.states = report.steps;
                    report.verdict = Verdict::Violated(shorten(model, way, &mut rng));
                    return report;
                }
            }
        }
        report.depth = report.depth.max(way.len() as u32);
    }
    report.states = report.steps;
    report
}

/// Leaves out what is not needed.
fn shorten<M: Model>(model: &M, mut way: Vec<M::Step>, rng: &mut StdRng) -> Trace {
    let replay = |way: &[M::Step]| -> Option<Trace> {
        let (mut state, mut steps, mut told) = (model.initial(), Vec::new(), Vec::new());
        for step in way {
            steps.clear();
            model.steps(&state, &mut steps);
            if !steps.contains(step) {
                return None;
            }
            told.push(model.tell(&state, *step));
            match model.take(&state, *step) {
                Ok(after) => state = after,
                Err(violation) => return Some(Trace { steps: told, violation: violation.to_string() }),
            }
        }
        None
    };
    let Some(mut trace) = replay(&way) else { unreachable!("a walk can be walked again") };
    loop {
        way.truncate(trace.steps.len());
        // One step less, or two: some only make sense together.
        let mut fewer: Vec<(usize, usize)> =
            (0..way.len()).flat_map(|first| (first..way.len()).map(move |second| (first, second))).collect();
        fewer.shuffle(rng);
        fewer.sort_by_key(|(first, second)| first != second);
        let shorter = fewer.into_iter().find_map(|(first, second)| {
            let kept = |(at, step): (usize, &M::Step)| (at != first && at != second).then_some(*step);
            let shorter: Vec<M::Step> = way.iter().enumerate().filter_map(kept).collect();
            replay(&shorter).map(|trace| (shorter, trace))
        });
        let Some((shorter_way, shorter_trace)) = shorter else { return trace };
        (way, trace) = (shorter_way, shorter_trace);
    }
}

/// The states that are known, in the order in which they were found.
#[derive(Default)]
struct Seen {
    arena: Vec<u8>,
    /// Where each begins; the next one's beginning is its end.
    begins: Vec<u64>,
    /// From which each was found first.
    parents: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Seen {
    fn len(&self) -> usize {
        self.parents.len()
    }

    fn bytes(&self, at: usize) -> &[u8] {
        let end = self.begins.get(at + 1).map_or(self.arena.len(), |end| *end as usize);
        &self.arena[self.begins[at] as usize..end]
    }

    fn insert(&mut self, bytes: &[u8], parent: u32) {
        let hash = self.hasher.hash_one(bytes);
        if self.index.find(hash, |at| self.bytes(*at as usize) == bytes).is_some() {
            return;
        }
        let at = self.len() as u32;
        self.begins.push(self.arena.len() as u64);
        self.arena.extend_from_slice(bytes);
        self.parents.push(parent);
        let (arena, begins, hasher) = (&self.arena, &self.begins, &self.hasher);
        self.index.insert_unique(hash, at, |at| {
            let at = *at as usize;
            let end = begins.get(at + 1).map_or(arena.len(), |end| *end as usize);
            hasher.hash_one(&arena[begins[at] as usize..end])
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two jugs, of three and of five litres, and a tap; exactly `wanted` litres must never be in one.
    struct Jugs {
        wanted: u8,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Pour {
        Fill(usize),
        Empty(usize),
        Over(usize),
    }

    impl Model for Jugs {
        type State = [u8; 2];
        type Step = Pour;
        type Violation = String;

        fn initial(&self) -> [u8; 2] {
            [0, 0]
        }

        fn steps(&self, _: &[u8; 2], steps: &mut Vec<Pour>) {
            steps.extend([0, 1].map(Pour::Fill));
            steps.extend([0, 1].map(Pour::Empty));
            steps.extend([0, 1].map(Pour::Over));
        }

        fn take(&self, jugs: &[u8; 2], step: Pour) -> Result<[u8; 2], String> {
            let size = [3, 5];
            let mut jugs = *jugs;
            match step {
                Pour::Fill(jug) => jugs[jug] = size[jug],
                Pour::Empty(jug) => jugs[jug] = 0,
                Pour::Over(jug) => {
                    let litres = jugs[jug].min(size[1 - jug] - jugs[1 - jug]);
                    jugs[jug] -= litres;
                    jugs[1 - jug] += litres;
                }
            }
            if jugs.contains(&self.wanted) { Err(format!("{} litres", self.wanted)) } else { Ok(jugs) }
        }

        fn pack(&self, jugs: &[u8; 2], bytes: &mut Vec<u8>) {
            bytes.extend(jugs);
        }

        fn unpack(&self, bytes: &[u8]) -> [u8; 2] {
            [bytes[0], bytes[1]]
        }

        fn kind(&self, step: Pour) -> u8 {
            match step {
                Pour::Fill(_) => 0,
                Pour::Empty(_) => 1,
                Pour::Over(_) => 2,
            }
        }

        fn weight(&self, _: u8) -> u32 {
            1
        }

        fn tell(&self, jugs: &[u8; 2], step: Pour) -> String {
            format!("{jugs:?} {step:?}")
        }
    }

    #[test]
    fn every_state_is_seen_once() {
        let mut visited = Vec::new();
        let report = exhaust(&Jugs { wanted: 9 }, 1000, |jugs, _| visited.push(*jugs));
        assert_eq!((report.states, report.steps, report.verdict), (16, 16 * 6, Verdict::Holds));
        visited.sort_unstable();
        visited.dedup();
        assert_eq!(visited.len(), 16);
        assert_eq!(exhaust(&Jugs { wanted: 9 }, 10, |_, _| ()).verdict, Verdict::Unfinished);
    }

    #[test]
    fn the_first_violation_is_one_of_the_shortest() {
        let report = exhaust(&Jugs { wanted: 4 }, 1000, |_, _| ());
        let Verdict::Violated(trace) = report.verdict else { panic!("{report:?}") };
        let way = [
            "[0, 0] Fill(1)",
            "[0, 5] Over(1)",
            "[3, 2] Empty(0)",
            "[0, 2] Over(1)",
            "[2, 0] Fill(1)",
            "[2, 5] Over(1)",
        ];
        assert_eq!(
            (trace.steps, trace.violation.as_str(), report.depth),
            (way.map(str::to_owned).to_vec(), "4 litres", 6)
        );
    }

    #[test]
    fn a_random_violation_is_told_without_detours() {
        let report = wander(&Jugs { wanted: 4 }, 1000, 100, 1);
        let Verdict::Violated(trace) = report.verdict else { panic!("{report:?}") };
        assert!(trace.steps.len() <= 8 && report.depth >= 6, "{trace}");
        assert_eq!(wander(&Jugs { wanted: 9 }, 10, 100, 1).verdict, Verdict::Unfinished);
    }
}
