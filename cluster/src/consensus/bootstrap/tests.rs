//! The table of what a node does with what it knows, and all interleavings of nodes that begin at once.

use std::collections::BTreeSet;

use super::*;

const ME: NodeUid = NodeUid(1);
const OTHER: NodeUid = NodeUid(2);
const FRESH: ClusterId = ClusterId(100);

const fn group(cluster: u128, generation: ClusterGeneration) -> Group {
    Group { cluster: ClusterId(cluster), generation }
}

/// Cluster 7 and its second founding; another cluster.
const A: Group = group(7, 1);
const A2: Group = group(7, 2);
const B: Group = group(8, 1);

fn by(node: NodeUid, group: Group) -> Claim {
    Claim { group, by: node }
}

#[test]
fn what_a_node_does_with_what_it_knows() {
    use Decision::*;
    let mine = by(ME, A);
    let others = by(OTHER, A);
    let new = Group { cluster: FRESH, generation: 1 };
    type Row = (&'static str, u32, Option<Group>, Option<Vec<super::Claim>>, Vec<Group>, Option<u16>, Decision);
    let table: Vec<Row> = vec![
        // what, ordinal, disk, store, peers, force
        ("the first start of ordinal 0", 0, None, Some(vec![]), vec![], None, Claim(new)),
        ("the first start of another", 1, None, Some(vec![]), vec![], None, Wait(Why::NotFirst)),
        ("its claim is read back", 0, None, Some(vec![mine]), vec![], None, Initialise(A)),
        ("a crash between claim and beginning", 0, None, Some(vec![mine]), vec![], None, Initialise(A)),
        ("two claim at once", 0, None, Some(vec![mine, by(OTHER, B)]), vec![], None, Wait(Why::Contested)),
        ("of two claims the other has begun", 0, None, Some(vec![mine, by(OTHER, B)]), vec![B], None, Join(B)),
        ("a node joins", 1, None, Some(vec![others]), vec![A], None, Join(A)),
        ("ordinal 0 lost its disk", 0, None, Some(vec![others]), vec![A], None, Join(A)),
        ("it lost its disk, and sees nobody", 0, None, Some(vec![others]), vec![], None, Wait(Why::NobodyThere(A))),
        ("the store is away", 0, None, None, vec![], None, Wait(Why::StoreUnknown)),
        ("the store is away, peers are there", 1, None, None, vec![A], None, Wait(Why::StoreUnknown)),
        ("peers of another store", 0, None, Some(vec![]), vec![B], None, Wait(Why::PeerElsewhere(B))),
        ("peers of another cluster", 1, None, Some(vec![others]), vec![B], None, Wait(Why::PeerElsewhere(B))),
        ("peers of two clusters", 1, None, Some(vec![others]), vec![B, A], None, Join(A)),
        (
            "a peer of an earlier founding",
            1,
            None,
            Some(vec![others, by(OTHER, A2)]),
            vec![A],
            None,
            Wait(Why::NobodyThere(A2)),
        ),
        ("peers of both foundings", 1, None, Some(vec![others, by(OTHER, A2)]), vec![A, A2], None, Join(A2)),
        // with a disk
        ("a restart", 0, Some(A), Some(vec![mine]), vec![A], None, Resume(A)),
        ("a restart without the store", 1, Some(A), None, vec![], None, Resume(A)),
        ("a restart of all", 1, Some(A), Some(vec![others]), vec![], None, Resume(A)),
        ("a late rival's claim", 0, Some(A), Some(vec![mine, by(OTHER, B)]), vec![], None, Resume(A)),
        ("the store was emptied", 0, Some(A), Some(vec![]), vec![A], None, Refuse(Why::StoreForgot(A))),
        (
            "another cluster's disk",
            0,
            Some(B),
            Some(vec![others]),
            vec![A],
            None,
            Refuse(Why::OtherCluster { disk: B, store: A }),
        ),
        (
            "a disk of before",
            1,
            Some(A),
            Some(vec![others, by(OTHER, A2)]),
            vec![A2],
            None,
            Refuse(Why::Superseded { disk: A, store: A2 }),
        ),
        // forced
        ("forced, no store", 0, Some(A), None, vec![], Some(2), Wait(Why::StoreUnknown)),
        ("forced, nothing there", 0, None, Some(vec![]), vec![], Some(2), Refuse(Why::NotNext(1))),
        ("forced on a survivor", 2, Some(A), Some(vec![others]), vec![], Some(2), Claim(A2)),
        ("forced on an empty disk", 2, None, Some(vec![others]), vec![], Some(2), Claim(A2)),
        ("forced on who began the first", 0, Some(A), Some(vec![mine]), vec![], Some(2), Claim(A2)),
        ("forced too far", 0, Some(A), Some(vec![mine]), vec![], Some(3), Refuse(Why::NotNext(2))),
        (
            "its claim is read back, on a survivor",
            2,
            Some(A),
            Some(vec![others, by(ME, A2)]),
            vec![],
            Some(2),
            Initialise(A2),
        ),
        (
            "its claim is read back, on an empty disk",
            2,
            None,
            Some(vec![others, by(ME, A2)]),
            vec![],
            Some(2),
            Initialise(A2),
        ),
        (
            "forced on two",
            2,
            Some(A),
            Some(vec![others, by(ME, A2), by(OTHER, A2)]),
            vec![],
            Some(2),
            Wait(Why::Contested),
        ),
        (
            "forced on another before",
            2,
            Some(A),
            Some(vec![others, by(OTHER, A2)]),
            vec![],
            Some(2),
            Refuse(Why::Superseded { disk: A, store: A2 }),
        ),
        ("the flag is left on", 2, Some(A2), Some(vec![others, by(ME, A2)]), vec![], Some(2), Resume(A2)),
        (
            "the flag is left on one that joined",
            2,
            Some(A2),
            Some(vec![others, by(OTHER, A2)]),
            vec![A2],
            Some(2),
            Resume(A2),
        ),
        ("the flag is left on, the disk lost", 2, None, Some(vec![others, by(OTHER, A2)]), vec![A2], Some(2), Join(A2)),
        (
            "a survivor of before without the flag, its claim unfinished",
            2,
            Some(A),
            Some(vec![others, by(ME, A2)]),
            vec![],
            None,
            Refuse(Why::Superseded { disk: A, store: A2 }),
        ),
    ];
    for (what, ordinal, disk, store, peers, force, expected) in table {
        let evidence = Evidence { node: ME, ordinal, disk, store, peers, force };
        assert_eq!(decide(&evidence, FRESH), expected, "{what}");
    }
}

/// The reasons are sentences.
#[test]
fn a_reason_says_what_to_do() {
    let why = Why::Superseded { disk: A, store: A2 };
    assert!(why.to_string().contains("founding 1") && why.to_string().contains("anew (2)"), "{why}");
    assert!(Why::NotNext(3).to_string().contains("--force-new-cluster=3"));
}

/// Nodes that believe to be the first, each reading, claiming and reading again, in every order in which their steps can
/// interleave, with crashes that lose a disk between any two: never do two begin.
#[test]
fn two_clusters_cannot_be_formed() {
    /// A node's next step.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        Look,
        Write(Group),
        Done,
    }
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        store: BTreeSet<Claim>,
        nodes: Vec<(NodeUid, Step, Option<Group>, Option<u16>)>,
        begun: BTreeSet<Group>,
        crashes: u64,
    }
    let start = |force: [Option<u16>; 3], store: BTreeSet<Claim>| World {
        store,
        nodes: (1..=3).map(|n| (NodeUid(n), Step::Look, None, force[n as usize - 1])).collect(),
        begun: BTreeSet::new(),
        crashes: 0,
    };
    let mut seen = BTreeSet::new();
    let mut stack = vec![start([None; 3], BTreeSet::new()), start([Some(2); 3], BTreeSet::from([by(NodeUid(9), A)]))];
    let mut outcomes = BTreeSet::new();
    while let Some(world) = stack.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        assert!(world.begun.len() <= 1, "two clusters: {:?}", world.begun);
        outcomes.insert(world.begun.len());
        for at in 0..world.nodes.len() {
            let (node, step, disk, force) = world.nodes[at];
            let mut next = world.clone();
            match step {
                Step::Look => {
                    let store = Some(world.store.iter().copied().collect());
                    let evidence = Evidence { node, ordinal: 0, disk, store, peers: vec![], force };
                    next.nodes[at].1 = match decide(&evidence, ClusterId(u128::from(node.0))) {
                        Decision::Claim(group) => Step::Write(group),
                        Decision::Initialise(group) => {
                            next.begun.insert(group);
                            // By whom: two nodes that begin the same group are two clusters as well.
                            assert_eq!(disk, None);
                            assert!(world.nodes.iter().all(|(_, _, other, _)| *other != Some(group)), "begun twice");
                            next.nodes[at].2 = Some(group);
                            Step::Done
                        }
                        _ => Step::Done,
                    };
                    stack.push(next);
                }
                Step::Write(group) => {
                    next.store.insert(by(node, group));
                    next.nodes[at].1 = Step::Look;
                    stack.push(next);
                }
                Step::Done => {}
            }
            // A restart; with the disk, or as another node without it.
            if world.crashes < 2 {
                let mut restarted = world.clone();
                restarted.crashes += 1;
                restarted.nodes[at].1 = Step::Look;
                stack.push(restarted.clone());
                restarted.nodes[at].0 = NodeUid(node.0 + 10 * restarted.crashes);
                restarted.nodes[at].2 = None;
                stack.push(restarted);
            }
        }
    }
    println!("{} worlds", seen.len());
    assert_eq!(outcomes, BTreeSet::from([0, 1]));
}
