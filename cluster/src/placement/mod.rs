//! Where partitions should be: computed by whoever leads, outside the replicated log, and proposed as explicit
//! assignments with the epochs they expect. Pure: a map goes in, proposals come out.
//!
//! Every node has a quota, the floor or the ceiling of its fair share by weight. Owners keep what they have up to their
//! quota; orphans and what is above a quota go to the node that ranks best for the partition (rendezvous hashing) among those
//! below theirs. So a node that leaves moves exactly what it had, and one that joins exactly its fair share. Zones play no
//! part: an owner has no replica to keep apart; they matter for voters.

use std::collections::BTreeMap;

use chappe_schema::{
    id::{NodeUid, Partition, SessionId},
    limit::PLAN_MOVES_MAX,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::ownership::{Assignment, Map, Move};

/// At most one partition in so many moves at a time, cluster-wide: what moves pauses, and its memory travels.
pub const MOVING_ONE_IN: u32 = 50;

/// Groups that one node gives or receives at a time: one is sealed while the next one's snapshots travel.
pub const GROUPS_PER_NODE_MAX: usize = 2;

/// Who gets what nobody alive owns, once `expiring` is gone too. Empty if nobody can take anything.
#[must_use]
pub fn orphans(map: &Map, expiring: Option<SessionId>) -> Vec<Assignment> {
    let mut shares = Shares::of(map, expiring);
    let ownerless = map.rows().filter(|(_, row)| !shares.alive(row.owner));
    let ownerless: Vec<_> = ownerless.map(|(partition, row)| (partition, row.epoch)).collect();
    let assign = |(partition, expect)| {
        let to = shares.best(partition, |_| true)?;
        shares.give(to, 1);
        Some(Assignment { partition, expect, to })
    };
    ownerless.into_iter().filter_map(assign).collect()
}

/// The moves to plan now, in groups between two sessions each, within what may move at a time. While membership is not
/// `calm` only a node that drains is emptied.
#[must_use]
pub fn rebalance(map: &Map, calm: bool) -> Vec<Vec<Move>> {
    let mut shares = Shares::of(map, None);
    let mut groups = Groups::of(map);
    let mut plans = Vec::new();
    for from in shares.donors(map, calm) {
        while groups.room(from) {
            let limit = groups.budget.min(PLAN_MOVES_MAX).min(shares.above(from));
            let group = best_group(map, &shares, &groups, from, limit);
            let Some(to) = group.first().map(|first| first.to) else { break };
            shares.give(to, group.len() as u32);
            shares.take(from, group.len() as u32);
            groups.add(from, to, &group);
            plans.push(group);
        }
    }
    plans
}

/// The node that probably owns a partition, for whoever has no map: the best-ranked of these members. A node that does
/// not own it says so.
pub fn hint(members: impl IntoIterator<Item = (NodeUid, u16)>, partition: Partition) -> Option<NodeUid> {
    let ranked = members.into_iter().filter(|(_, weight)| *weight > 0);
    let ranked = ranked.map(|(node, weight)| (score(node, weight, partition), node));
    ranked.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, node)| node)
}

/// Weighted rendezvous: the node with the highest score is the partition's own. A node that joins or leaves changes
/// nobody else's.
fn score(node: NodeUid, weight: u16, partition: Partition) -> f64 {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&node.0.to_le_bytes());
    key[8..].copy_from_slice(&partition.0.to_le_bytes());
    // Uniform in (0, 1), from the 53 bits that a double holds.
    let uniform = ((xxh3_64(&key) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

/// The largest group that `from` may give to one receiver now: of its partitions those that rank highest there.
fn best_group(map: &Map, shares: &Shares, groups: &Groups, from: SessionId, limit: usize) -> Vec<Move> {
    if limit == 0 {
        return Vec::new();
    }
    let mut by_receiver: BTreeMap<SessionId, Vec<(f64, Move)>> = BTreeMap::new();
    let own = map.owned_by(from).filter(|(partition, _)| !groups.moving.contains(partition));
    for (partition, expect) in own {
        let Some(to) = shares.best(partition, |to| to != from && groups.room(to)) else { continue };
        let rank = shares.rank(to, partition);
        by_receiver.entry(to).or_default().push((rank, Move { partition, expect, from, to }));
    }
    let sized = |(to, moves): &(SessionId, Vec<_>)| moves.len().min(limit).min(shares.below(*to));
    let Some((to, mut moves)) = by_receiver.into_iter().max_by_key(sized) else { return Vec::new() };
    moves.sort_by(|a, b| b.0.total_cmp(&a.0));
    moves.truncate(limit.min(shares.below(to)));
    moves.into_iter().map(|(_, planned)| planned).collect()
}

// === Who may have how much ===

/// The sessions and what they have, counting what is planned as done.
struct Shares {
    shares: BTreeMap<SessionId, Share>,
}

struct Share {
    node: NodeUid,
    weight: u16,
    held: u32,
    quota: u32,
}

impl Shares {
    fn of(map: &Map, expiring: Option<SessionId>) -> Self {
        let live = || map.sessions().filter(|(id, _)| Some(*id) != expiring);
        // A node that drains gets nothing, unless nobody else is there.
        let all_drain = live().all(|(_, session)| session.drain || session.weight == 0);
        let shares = live().map(|(id, session)| {
            let weight = if session.drain && !all_drain { 0 } else { session.weight };
            (id, Share { node: session.node, weight, held: 0, quota: 0 })
        });
        let mut shares = Self { shares: shares.collect() };
        let planned: BTreeMap<Partition, &Move> =
            map.plans().flat_map(|(_, plan)| plan.moves.iter().map(|(p, m)| (*p, m))).collect();
        for (partition, row) in map.rows() {
            let owner = row.owner.filter(|owner| shares.alive(Some(*owner)));
            let planned = planned.get(&partition).map(|planned| planned.to).filter(|to| shares.alive(Some(*to)));
            if let Some(owner) = owner.map(|owner| planned.unwrap_or(owner)) {
                shares.give(owner, 1);
            }
        }
        shares.set_quotas(map.partitions());
        shares
    }

    /// Floors of the fair shares; what is left goes first to those that hold more than their floor (it is there already), then by the
    /// largest remainder.
    fn set_quotas(&mut self, partitions: u32) {
        let weights: u64 = self.shares.values().map(|share| u64::from(share.weight)).sum();
        if weights == 0 {
            return;
        }
        let mut left = partitions;
        let mut uneven = Vec::new();
        for (id, share) in &mut self.shares {
            let exact = u64::from(partitions) * u64::from(share.weight);
            share.quota = (exact / weights) as u32;
            left -= share.quota;
            let remainder = exact % weights;
            if remainder > 0 {
                uneven.push((share.held > share.quota, remainder, xxh3_64(&share.node.0.to_le_bytes()), *id));
            }
        }
        uneven.sort_unstable_by(|a, b| b.cmp(a));
        for (.., id) in uneven.into_iter().take(left as usize) {
            if let Some(share) = self.shares.get_mut(&id) {
                share.quota += 1;
            }
        }
    }

    fn alive(&self, owner: Option<SessionId>) -> bool {
        owner.is_some_and(|owner| self.shares.contains_key(&owner))
    }

    fn give(&mut self, to: SessionId, partitions: u32) {
        if let Some(share) = self.shares.get_mut(&to) {
            share.held += partitions;
        }
    }

    fn take(&mut self, from: SessionId, partitions: u32) {
        if let Some(share) = self.shares.get_mut(&from) {
            share.held -= partitions;
        }
    }

    fn above(&self, session: SessionId) -> usize {
        self.shares.get(&session).map_or(0, |share| share.held.saturating_sub(share.quota)) as usize
    }

    fn below(&self, session: SessionId) -> usize {
        self.shares.get(&session).map_or(0, |share| share.quota.saturating_sub(share.held)) as usize
    }

    fn rank(&self, session: SessionId, partition: Partition) -> f64 {
        self.shares.get(&session).map_or(0.0, |share| score(share.node, share.weight, partition))
    }

    /// The best-ranked session below its quota.
    fn best(&self, partition: Partition, fits: impl Fn(SessionId) -> bool) -> Option<SessionId> {
        let below = self.shares.iter().filter(|(id, share)| share.held < share.quota && fits(**id));
        let ranked = below.map(|(id, share)| (score(share.node, share.weight, partition), *id));
        ranked.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, id)| id)
    }

    /// Who has to give, in the order in which they may: whoever drains, then the fullest.
    fn donors(&self, map: &Map, calm: bool) -> Vec<SessionId> {
        let drains = |id: &SessionId| map.session(*id).is_some_and(|session| session.drain);
        let over = self.shares.keys().filter(|id| self.above(**id) > 0 && (calm || drains(id)));
        let mut over: Vec<_> = over.map(|id| (drains(id), self.above(*id), *id)).collect();
        over.sort_unstable_by(|a, b| b.cmp(a));
        over.into_iter().map(|(.., id)| id).collect()
    }
}

// === What moves already ===

struct Groups {
    /// Pairs of giver and receiver that a session is in.
    of: BTreeMap<SessionId, usize>,
    moving: std::collections::BTreeSet<Partition>,
    budget: usize,
}

impl Groups {
    fn of(map: &Map) -> Self {
        let budget = (map.partitions() / MOVING_ONE_IN).max(1) as usize;
        let mut groups = Self { of: BTreeMap::new(), moving: Default::default(), budget };
        for (_, plan) in map.plans() {
            let mut pairs: BTreeMap<_, Vec<Move>> = BTreeMap::new();
            for planned in plan.moves.values() {
                pairs.entry((planned.from, planned.to)).or_default().push(*planned);
            }
            for ((from, to), moves) in pairs {
                groups.add(from, to, &moves);
            }
        }
        groups
    }

    fn room(&self, session: SessionId) -> bool {
        self.budget > 0 && self.of.get(&session).is_none_or(|groups| *groups < GROUPS_PER_NODE_MAX)
    }

    fn add(&mut self, from: SessionId, to: SessionId, moves: &[Move]) {
        *self.of.entry(from).or_default() += 1;
        *self.of.entry(to).or_default() += 1;
        self.moving.extend(moves.iter().map(|planned| planned.partition));
        self.budget = self.budget.saturating_sub(moves.len());
    }
}

#[cfg(test)]
mod tests;
