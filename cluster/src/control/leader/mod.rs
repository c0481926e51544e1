//! What the leader decides on its own: whose time is over, who goes on, what moves. Pure: it hears keepalives, SWIM's
//! hints and the time, looks at the map, and says what to propose.
//!
//! None of it is needed for safety. A session that is expired wrongly costs one failover; one that is expired late costs
//! availability of its partitions until then.

use std::collections::{BTreeMap, BTreeSet};

use chappe_schema::id::{Millis, NodeUid, SessionId};

use super::Health;
use crate::{
    ownership::{Command, Map, PlanId},
    placement,
};

/// How long the leader waits for what. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A session that SWIM has declared down expires after so long without a keepalive: three were lost.
    pub missed_down: Millis,
    /// Any session expires after so long without one: whatever SWIM says, the leader does not hear it.
    pub missed: Millis,
    /// What a new leader, who has heard nobody yet, grants every session that SWIM has not declared down: a keepalive
    /// finds its way to a new leader within one election and one interval.
    pub grace: Millis,
    /// A leader that was not asked for so long was asleep itself, and begins anew.
    pub asleep: Millis,
    /// Balance waits so long after the last change of membership: who restarts finds its partitions again, and a
    /// rolling restart is not chased by moves.
    pub calm: Millis,
    /// A cluster that begins gives out its partitions when nobody has joined for so long: nodes start side by side.
    pub gather: Millis,
    /// Or when so long has passed since the first of them joined.
    pub gather_max: Millis,
    /// A plan that stands for so long is aborted: a move takes a second or so, and what is planned is not given to others.
    pub plan: Millis,
    /// A drain slot that is held for so long is given back: drains end with the process, or somebody forgot.
    pub drain: Millis,
}

impl Timing {
    /// For machines that have the CPU they ask for.
    pub const PROMPT: Self = Self {
        missed_down: 1_000,
        missed: 10_000,
        grace: 5_000,
        asleep: 1_000,
        calm: 60_000,
        gather: 1_000,
        gather_max: 5_000,
        plan: 30_000,
        drain: 15 * 60_000,
    };

    /// For machines on which processes starve for seconds: failover takes longer, and is not set off by hunger.
    pub const GENEROUS: Self =
        Self { missed_down: 4_000, missed: 30_000, grace: 15_000, asleep: 4_000, plan: 120_000, ..Self::PROMPT };
}

/// One reign: from the election to the loss of leadership.
#[derive(Debug)]
pub struct Leader {
    timing: Timing,
    /// When the reign, or the last sleep, ended or began.
    since: Millis,
    asked: Millis,
    heard: BTreeMap<SessionId, Heard>,
    down: BTreeSet<NodeUid>,
    /// When a session last came or went.
    moved: Millis,
    plans: BTreeMap<PlanId, Millis>,
    drain: Option<(SessionId, Millis)>,
    /// When partitions that nobody ever owned met the first session that could take them.
    gathering: Option<Millis>,
    /// The map at which nothing was left to move, and whether it was calm then.
    balanced: Option<(u64, bool)>,
    /// A proposal is on its way.
    busy: bool,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    /// None: not in this reign.
    at: Option<Millis>,
    minute: Option<u64>,
}

impl Leader {
    /// A reign begins. `down` is what SWIM says now.
    #[must_use]
    pub fn new(timing: Timing, now: Millis, map: &Map, down: impl IntoIterator<Item = NodeUid>) -> Self {
        let heard = map.sessions().map(|(id, _)| (id, Heard { at: None, minute: None })).collect();
        Self {
            timing,
            since: now,
            asked: now,
            heard,
            down: down.into_iter().collect(),
            moved: now,
            plans: BTreeMap::new(),
            drain: None,
            gathering: None,
            balanced: None,
            busy: false,
        }
    }

    /// A session says that it is alive.
    pub fn keepalive(&mut self, session: SessionId, minute: u64, now: Millis) {
        if let Some(heard) = self.heard.get_mut(&session) {
            heard.at = Some(now);
            heard.minute = heard.minute.max(Some(minute));
        }
    }

    /// SWIM says something of a node.
    pub fn health(&mut self, node: NodeUid, health: Health) {
        match health {
            Health::Up => self.down.remove(&node),
            Health::Down => self.down.insert(node),
        };
    }

    /// The next proposal, if there is anything to do. To be asked several times a second, and after every change of
    /// the map; there is no other before [`Leader::settled`].
    pub fn next(&mut self, now: Millis, map: &Map) -> Option<Command> {
        self.wake(now);
        self.see(now, map);
        if self.busy {
            return None;
        }
        let command = self
            .expiry(now, map)
            .or_else(|| self.ownerless(now, map))
            .or_else(|| self.overdue_plan(now, map))
            .or_else(|| self.overdue_drain(now))
            .or_else(|| self.balance(now, map));
        self.busy = command.is_some();
        command
    }

    /// The proposal has an outcome, known or not: the map shows what came of it.
    pub fn settled(&mut self) {
        self.busy = false;
    }

    /// Whoever slept has heard nothing, which says nothing about the others.
    fn wake(&mut self, now: Millis) {
        if now.saturating_sub(self.asked) > self.timing.asleep {
            self.since = now;
            for heard in self.heard.values_mut() {
                heard.at = None;
            }
        }
        self.asked = now;
    }

    /// Takes note of what is new in the map, and since when.
    fn see(&mut self, now: Millis, map: &Map) {
        let before = self.heard.len();
        self.heard.retain(|id, _| map.is_live(*id));
        let mut changed = self.heard.len() < before;
        for (id, _) in map.sessions() {
            self.heard.entry(id).or_insert_with(|| {
                changed = true;
                Heard { at: Some(now), minute: None }
            });
        }
        if changed {
            self.moved = now;
        }
        self.plans.retain(|id, _| map.plan(*id).is_some());
        for (id, _) in map.plans() {
            self.plans.entry(id).or_insert(now);
        }
        if self.drain.map(|(session, _)| session) != map.draining() {
            self.drain = map.draining().map(|session| (session, now));
        }
    }

    fn expiry(&self, now: Millis, map: &Map) -> Option<Command> {
        let over = map.sessions().filter(|(id, session)| self.is_over(now, *id, self.down.contains(&session.node)));
        let expire = |(session, _)| {
            let assignments = placement::orphans(map, Some(session));
            // Without an heir it would only stop serving: it may live, and if not, it registers again.
            let heirless = assignments.is_empty() && map.owned_by(session).next().is_some();
            let minute = self.heard.get(&session).and_then(|heard| heard.minute);
            (!heirless).then_some(Command::ExpireAndAssign { session: Some(session), minute, assignments })
        };
        over.filter_map(expire).next()
    }

    fn is_over(&self, now: Millis, session: SessionId, down: bool) -> bool {
        let Some(heard) = self.heard.get(&session) else { return false };
        let Timing { missed_down, missed, grace, .. } = self.timing;
        match heard.at {
            Some(at) => now.saturating_sub(at) >= if down { missed_down } else { missed },
            None => down || now.saturating_sub(self.since) >= grace,
        }
    }

    /// Partitions that nobody alive owns: new ones, and those of a node that registered again.
    fn ownerless(&mut self, now: Millis, map: &Map) -> Option<Command> {
        map.orphans().next()?;
        let mut assignments = placement::orphans(map, None);
        let first = assignments.iter().any(|assignment| assignment.expect == 0);
        if first {
            let began = *self.gathering.get_or_insert(now);
            let gathered = now.saturating_sub(self.moved) >= self.timing.gather;
            if !gathered && now.saturating_sub(began) < self.timing.gather_max {
                assignments.retain(|assignment| assignment.expect > 0);
            }
        }
        (!assignments.is_empty()).then_some(Command::ExpireAndAssign { session: None, minute: None, assignments })
    }

    fn overdue_plan(&self, now: Millis, map: &Map) -> Option<Command> {
        let overdue = |(_, since): &(&PlanId, &Millis)| now.saturating_sub(**since) >= self.timing.plan;
        let (plan, _) = self.plans.iter().find(overdue)?;
        let partitions = map.plan(*plan)?.moves.keys().copied().collect();
        Some(Command::AbortMoves { plan: *plan, partitions })
    }

    fn overdue_drain(&self, now: Millis) -> Option<Command> {
        let (session, since) = self.drain?;
        let overdue = now.saturating_sub(since) >= self.timing.drain;
        overdue.then_some(Command::SetDrain { session, slot: false })
    }

    fn balance(&mut self, now: Millis, map: &Map) -> Option<Command> {
        let at = (map.version(), now.saturating_sub(self.moved) >= self.timing.calm);
        if self.balanced == Some(at) {
            return None;
        }
        let moves = placement::rebalance(map, at.1).into_iter().next();
        if moves.is_none() {
            self.balanced = Some(at);
        }
        Some(Command::PlanMoves { plan: map.next_plan(), moves: moves? })
    }
}

#[cfg(test)]
mod tests;
