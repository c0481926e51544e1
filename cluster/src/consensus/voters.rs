//! Which nodes vote: 1 in a cluster of fewer than 3, 3 in one of fewer than 7, else 5; the lowest ordinals, spread by zone.
//! Pure: the leader asks now and then, and makes the change it is told.

use std::collections::{BTreeMap, BTreeSet};

use chappe_schema::id::{Millis, NodeUid};
use serde::{Deserialize, Serialize};

/// What a voter is chosen by. It stands beside the voter in Raft's membership, for when its node is gone from the map.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seat {
    /// The node's number among the nodes.
    pub ordinal: u32,
    /// What fails together with it.
    pub zone: String,
}

/// A node with a live session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// What it would be chosen by.
    pub seat: Seat,
    /// Whether SWIM does not say otherwise.
    pub up: bool,
    /// Whether it is about to leave: it keeps its seat, and gets none.
    pub drain: bool,
}

/// A voter that is away for so long is replaced: a restart, a rolled node or a moved volume takes less.
pub const AWAY_MS_MAX: Millis = 5 * 60 * 1000;

/// Who has been away, and since when; and who left for good.
#[derive(Debug, Default)]
pub struct Electorate {
    away: BTreeMap<NodeUid, Millis>,
    left: BTreeSet<NodeUid>,
}

/// How many voters a cluster of so many nodes has.
#[must_use]
pub const fn wanted(nodes: usize) -> usize {
    match nodes {
        0..3 => 1,
        3..7 => 3,
        _ => 5,
    }
}

impl Electorate {
    /// A node left for good: it is replaced at once, or its seat falls away.
    pub fn leave(&mut self, node: NodeUid) {
        self.left.insert(node);
    }

    /// The voters that there should be, if they are not those that are. At most one that is gone is replaced at a time.
    pub fn next(
        &mut self,
        now: Millis,
        voters: &BTreeMap<NodeUid, Seat>,
        residents: &BTreeMap<NodeUid, Resident>,
    ) -> Option<BTreeMap<NodeUid, Seat>> {
        self.see(now, voters, residents);
        let gone = voters.iter().filter(|(node, seat)| self.is_gone(now, **node, seat, residents));
        // The one that was away first, so that everybody would choose the same; before them all who left while being there.
        let gone = gone.min_by_key(|(node, _)| (self.away.get(node), **node)).map(|(node, _)| *node);
        let mut chosen: BTreeMap<NodeUid, Seat> =
            voters.iter().filter(|(node, _)| Some(**node) != gone).map(|(node, seat)| (*node, seat.clone())).collect();

        let wanted = wanted(residents.len());
        let mut free: BTreeMap<NodeUid, &Seat> = residents
            .iter()
            .filter(|(node, resident)| resident.up && !resident.drain && !voters.contains_key(node))
            .map(|(node, resident)| (*node, &resident.seat))
            .collect();
        while chosen.len() < wanted {
            let Some(node) = best(&free, &chosen) else { break };
            if let Some(seat) = free.remove(&node) {
                chosen.insert(node, seat.clone());
            }
        }
        // An even number tolerates no more deaths than the odd one below it. Who leaves is who came last.
        let size = if gone.is_some() { chosen.len().min(wanted) } else { chosen.len() };
        let size = size.saturating_sub(usize::from(size % 2 == 0));
        while chosen.len() > size {
            let last = chosen.iter().max_by_key(|(node, seat)| (seat.ordinal, **node)).map(|(node, _)| *node)?;
            chosen.remove(&last);
        }
        let smaller = chosen.len() < voters.len();
        // Fewer than now only if the cluster itself is smaller: a gone voter without an heir may still come back.
        let fits = !chosen.is_empty() && (!smaller || (gone.is_some() && wanted < voters.len()));
        let same = chosen.keys().eq(voters.keys());
        (fits && !same).then_some(chosen)
    }

    fn see(&mut self, now: Millis, voters: &BTreeMap<NodeUid, Seat>, residents: &BTreeMap<NodeUid, Resident>) {
        let present = |node: &NodeUid| residents.get(node).is_some_and(|resident| resident.up);
        self.away.retain(|node, _| voters.contains_key(node) && !present(node));
        for node in voters.keys().filter(|node| !present(node)) {
            self.away.entry(*node).or_insert(now);
        }
    }

    fn is_gone(&self, now: Millis, node: NodeUid, seat: &Seat, residents: &BTreeMap<NodeUid, Resident>) -> bool {
        if self.left.contains(&node) {
            return true;
        }
        let Some(since) = self.away.get(&node) else { return false };
        // A node that lost its disk is another node; the old one does not come back.
        let replaced = !residents.contains_key(&node)
            && residents.values().any(|resident| resident.up && resident.seat.ordinal == seat.ordinal);
        replaced || now.saturating_sub(*since) >= AWAY_MS_MAX
    }
}

/// The free one in the zone with the fewest voters; of those the lowest ordinal.
fn best(free: &BTreeMap<NodeUid, &Seat>, chosen: &BTreeMap<NodeUid, Seat>) -> Option<NodeUid> {
    let in_zone = |zone: &str| chosen.values().filter(|seat| seat.zone == zone).count();
    free.iter().min_by_key(|(node, seat)| (in_zone(&seat.zone), seat.ordinal, **node)).map(|(node, _)| *node)
}

/// The nodes of a set of voters.
#[must_use]
pub fn nodes(voters: &BTreeMap<NodeUid, Seat>) -> BTreeSet<NodeUid> {
    voters.keys().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zones a, b, c in turn.
    fn seat(ordinal: u32) -> Seat {
        Seat { ordinal, zone: ["a", "b", "c"][ordinal as usize % 3].to_owned() }
    }

    fn voters(ordinals: &[u32]) -> BTreeMap<NodeUid, Seat> {
        ordinals.iter().map(|ordinal| (NodeUid(u64::from(*ordinal)), seat(*ordinal))).collect()
    }

    fn residents(ordinals: impl IntoIterator<Item = u32>) -> BTreeMap<NodeUid, Resident> {
        let resident =
            |ordinal| (NodeUid(u64::from(ordinal)), Resident { seat: seat(ordinal), up: true, drain: false });
        ordinals.into_iter().map(resident).collect()
    }

    fn ordinals(voters: Option<BTreeMap<NodeUid, Seat>>) -> Option<Vec<u32>> {
        voters.map(|voters| voters.values().map(|seat| seat.ordinal).collect())
    }

    #[test]
    fn there_are_as_many_as_the_cluster_needs() {
        for (nodes, expected) in [(1, None), (2, None), (3, Some(vec![0, 1, 2])), (6, Some(vec![0, 1, 2]))] {
            let next = Electorate::default().next(0, &voters(&[0]), &residents(0..nodes));
            assert_eq!(ordinals(next), expected, "{nodes} nodes");
        }
        // Of five, two zones have two: whichever, the lowest ordinals.
        let next = Electorate::default().next(0, &voters(&[0, 1, 2]), &residents(0..7));
        assert_eq!(ordinals(next), Some(vec![0, 1, 2, 3, 4]));
        assert_eq!(Electorate::default().next(0, &voters(&[0, 1, 2]), &residents(0..3)), None);
    }

    #[test]
    fn zones_go_before_ordinals() {
        let mut nodes = residents(0..6);
        for ordinal in [0, 1, 2] {
            nodes.get_mut(&NodeUid(ordinal)).unwrap().seat.zone = "a".to_owned();
        }
        let next = Electorate::default().next(
            0,
            &BTreeMap::from([(NodeUid(0), Seat { ordinal: 0, zone: "a".to_owned() })]),
            &nodes,
        );
        assert_eq!(ordinals(next), Some(vec![0, 4, 5]));
    }

    #[test]
    fn there_is_never_an_even_number() {
        let mut nodes = residents(0..3);
        nodes.get_mut(&NodeUid(2)).unwrap().up = false;
        assert_eq!(Electorate::default().next(0, &voters(&[0]), &nodes), None, "one more would tolerate nothing");
        nodes.get_mut(&NodeUid(2)).unwrap().up = true;
        nodes.get_mut(&NodeUid(2)).unwrap().drain = true;
        assert_eq!(Electorate::default().next(0, &voters(&[0]), &nodes), None, "who leaves gets no seat");
    }

    #[test]
    fn a_voter_that_is_away_for_five_minutes_is_replaced() {
        let mut electorate = Electorate::default();
        let mut nodes = residents(0..5);
        nodes.remove(&NodeUid(1));
        assert_eq!(electorate.next(1_000, &voters(&[0, 1, 2]), &nodes), None);
        assert_eq!(electorate.next(1_000 + AWAY_MS_MAX - 1, &voters(&[0, 1, 2]), &nodes), None);
        let next = electorate.next(1_000 + AWAY_MS_MAX, &voters(&[0, 1, 2]), &nodes);
        assert_eq!(ordinals(next), Some(vec![0, 2, 4]), "in the zone that has no voter any more");
        // One that comes back in between starts its five minutes anew.
        let mut electorate = Electorate::default();
        electorate.next(1_000, &voters(&[0, 1, 2]), &nodes);
        electorate.next(200_000, &voters(&[0, 1, 2]), &residents(0..5));
        assert_eq!(electorate.next(1_000 + AWAY_MS_MAX, &voters(&[0, 1, 2]), &nodes), None);
    }

    #[test]
    fn swim_alone_is_enough_to_be_away() {
        let mut electorate = Electorate::default();
        let mut nodes = residents(0..4);
        nodes.get_mut(&NodeUid(2)).unwrap().up = false;
        electorate.next(0, &voters(&[0, 1, 2]), &nodes);
        assert_eq!(ordinals(electorate.next(AWAY_MS_MAX, &voters(&[0, 1, 2]), &nodes)), Some(vec![0, 1, 3]));
    }

    #[test]
    fn a_node_that_lost_its_disk_is_replaced_by_what_it_has_become() {
        let mut nodes = residents(0..3);
        nodes.remove(&NodeUid(1));
        nodes.insert(NodeUid(77), Resident { seat: seat(1), up: true, drain: false });
        let next = Electorate::default().next(0, &voters(&[0, 1, 2]), &nodes).unwrap();
        assert_eq!(nodes_of(&next), [0, 2, 77]);
    }

    #[test]
    fn without_an_heir_the_seat_is_kept_for_the_one_that_is_away() {
        let mut electorate = Electorate::default();
        let mut nodes = residents(0..3);
        nodes.get_mut(&NodeUid(1)).unwrap().up = false;
        electorate.next(0, &voters(&[0, 1, 2]), &nodes);
        assert_eq!(electorate.next(AWAY_MS_MAX * 2, &voters(&[0, 1, 2]), &nodes), None);
    }

    #[test]
    fn a_cluster_that_shrinks_has_fewer_voters_once_one_is_gone() {
        let mut electorate = Electorate::default();
        assert_eq!(electorate.next(0, &voters(&[0, 1, 2, 3, 4]), &residents(0..5)), None, "five present are no harm");
        electorate.next(0, &voters(&[0, 1, 2, 3, 4]), &residents(0..4));
        let next = electorate.next(AWAY_MS_MAX, &voters(&[0, 1, 2, 3, 4]), &residents(0..4));
        assert_eq!(ordinals(next), Some(vec![0, 1, 2]));
        let mut electorate = Electorate::default();
        electorate.next(0, &voters(&[0, 1, 2]), &residents([0, 2]));
        assert_eq!(ordinals(electorate.next(AWAY_MS_MAX, &voters(&[0, 1, 2]), &residents([0, 2]))), Some(vec![0]));
    }

    #[test]
    fn who_left_for_good_is_replaced_at_once_by_somebody_who_is_there() {
        let mut electorate = Electorate::default();
        electorate.leave(NodeUid(1));
        // It still answers; it has no session any more.
        let mut nodes = residents([0, 2, 3]);
        assert_eq!(ordinals(electorate.next(0, &voters(&[0, 1, 2]), &nodes)), Some(vec![0, 2, 3]));
        nodes.get_mut(&NodeUid(3)).unwrap().up = false;
        assert_eq!(electorate.next(0, &voters(&[0, 1, 2]), &nodes), None, "three are wanted: the heir is waited for");
        let shrinks = electorate.next(0, &voters(&[0, 1, 2]), &residents([0, 2]));
        assert_eq!(ordinals(shrinks), Some(vec![0]), "of three nodes that were, two are left, of which one votes");
        // The only voter hands over.
        electorate.leave(NodeUid(0));
        assert_eq!(ordinals(electorate.next(0, &voters(&[0]), &residents([2]))), Some(vec![2]));
        assert_eq!(electorate.next(0, &voters(&[0]), &residents([])), None, "there is nobody to hand over to");
    }

    #[test]
    fn one_is_replaced_at_a_time() {
        let mut electorate = Electorate::default();
        let nodes = residents([0, 1, 2, 5, 6, 7, 8]);
        electorate.next(0, &voters(&[0, 1, 2, 3, 4]), &nodes);
        let next = electorate.next(AWAY_MS_MAX, &voters(&[0, 1, 2, 3, 4]), &nodes).unwrap();
        assert_eq!(nodes_of(&next), [0, 1, 2, 4, 5]);
        let then = electorate.next(AWAY_MS_MAX, &next, &nodes).unwrap();
        assert_eq!(nodes_of(&then), [0, 1, 2, 5, 6]);
        assert_eq!(electorate.next(AWAY_MS_MAX, &then, &nodes), None);
    }

    fn nodes_of(voters: &BTreeMap<NodeUid, Seat>) -> Vec<u64> {
        voters.keys().map(|node| node.0).collect()
    }
}
