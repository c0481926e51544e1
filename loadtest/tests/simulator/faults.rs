//! What goes wrong, drawn from the seed: when, whom it hits, and when it is over.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::world::{DEVICES, GATEWAYS, NODES};

/// Something that happens to the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// A node's process ends, and starts again after so many milliseconds.
    Crash(usize, u64),
    /// A node stands still for so long.
    Pause(usize, u64),
    /// A node does not reach the store: not at all, or nothing comes back.
    NoStore(usize, bool, u64),
    /// A node does not reach whoever leads the cluster; the store it does.
    NoPlane(usize, u64),
    /// A gateway and a node do not hear each other.
    NoLink(usize, usize, u64),
    /// Two nodes do not hear each other.
    NoPeer(usize, usize, u64),
    /// Nobody leads the cluster.
    NoLeader(u64),
    /// A gateway's process ends and starts again.
    GatewayCrash(usize, u64),
    /// So many of three replicas are down.
    Replicas(usize, u64),
    /// Much of what goes to the store is late, lost, or lost on its way back.
    Storm(u64),
    /// A node's clock is wrong by so many milliseconds.
    Clock(usize, i64, u64),
    /// Some partitions are to move, for no reason.
    Moves,
    /// A node is emptied.
    Drain(usize),
    /// A node is said to be down that is not.
    Slander(usize, u64),
    /// A node is cut off from the cluster, and one gateway hears of no change: the node goes on being asked after others
    /// have taken over. It is slow to reach the store, or everybody else is.
    Zombie(usize, usize, bool, u64),
    /// A busy partition is to move, and its giver or its receiver is troubled in the middle of it.
    BrokenMove(Trouble),
    /// Most of what goes to the store is lost, and the owner of a conversation dies again and again.
    Tempest(u64),
    /// The handling of some entity panics.
    Stumble(usize, bool),
    /// A device reads nothing of what it is sent.
    Asleep(usize, u64),
}

/// What troubles a move, after so many milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// The receiver's answers are lost, and the giver dies later.
    Unheard(u64),
    /// That the receiver agrees is lost until the plan is given up, and the giver dies later.
    Unagreed,
    /// The giver does not hear how its commit ended.
    Uninformed,
    /// The giver reaches the store slowly, and the receiver's answers are lost.
    Slow(u64),
    /// The giver reaches the store slowly.
    Late,
    /// The receiver dies.
    Dead(u64),
}

/// How many there are to choose from, some twice.
const KINDS: u32 = 24;

/// The faults of a run that lasts so many milliseconds, by time.
pub fn draw(rng: &mut StdRng, lasts: u64) -> Vec<(u64, Fault)> {
    // Each run has a favourite or two, so that some are of one kind only and others mixed.
    let kinds: Vec<u32> = (0..KINDS).collect();
    let favourites: Vec<u32> = kinds.choose_multiple(rng, 3).copied().collect();
    let count = rng.random_range(3..12);
    let mut faults: Vec<(u64, Fault)> = (0..count)
        .map(|_| {
            let kind =
                if rng.random_bool(0.6) { favourites[rng.random_range(0..3)] } else { rng.random_range(0..KINDS) };
            (rng.random_range(0..lasts), one(rng, kind))
        })
        .collect();
    // Beside them, not instead of them: what clients do makes no other fault rarer.
    if rng.random_bool(0.3) {
        let asleep = Fault::Asleep(rng.random_range(0..DEVICES), rng.random_range(300..15_000));
        faults.push((rng.random_range(0..lasts), asleep));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn one(rng: &mut StdRng, kind: u32) -> Fault {
    let node = rng.random_range(0..NODES);
    let long = rng.random_range(300..15_000);
    let short = rng.random_range(200..4_000);
    match kind {
        0 => Fault::Crash(node, short),
        1 => Fault::Pause(node, long),
        2 => Fault::NoStore(node, rng.random_bool(0.5), long),
        3 => Fault::NoPlane(node, long),
        4 => Fault::NoLink(rng.random_range(0..GATEWAYS), node, long),
        5 => Fault::NoPeer(node, (node + rng.random_range(1..NODES)) % NODES, long),
        6 => Fault::NoLeader(short),
        7 => Fault::GatewayCrash(rng.random_range(0..GATEWAYS), short),
        8 => Fault::Replicas(rng.random_range(1..3), short),
        9 => Fault::Storm(long),
        10 => {
            let wrong = *[-3_600_000, -20_000, 20_000, 3_600_000].choose(rng).unwrap_or(&0);
            Fault::Clock(node, wrong, long)
        }
        11 => Fault::Drain(node),
        12 => Fault::Slander(node, short),
        13 => Fault::Moves,
        14..=18 => {
            Fault::Zombie(node, rng.random_range(0..GATEWAYS), rng.random_bool(0.7), rng.random_range(2_000..9_000))
        }
        19..=21 => {
            let after = rng.random_range(10..150);
            Fault::BrokenMove(match rng.random_range(0..7) {
                0 | 1 => Trouble::Unheard(after),
                6 => Trouble::Unagreed,
                2 => Trouble::Uninformed,
                3 => Trouble::Slow(after),
                4 => Trouble::Late,
                _ => Trouble::Dead(after),
            })
        }
        22 => Fault::Tempest(rng.random_range(2_000..6_000)),
        _ => Fault::Stumble(rng.random_range(0..60), rng.random_bool(0.5)),
    }
}
