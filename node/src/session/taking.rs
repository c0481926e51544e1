//! Taking a partition over under a plan.
//!
//! Whatever a giver shows is kept under the number of its plan. It is opened only if the map says that the partition was
//! handed over *by that plan*, and of it only what the giver's last word confirms: an entity that was shown and has moved
//! on since, or that somebody else may have owned in between, is read from the log like any other.

use std::collections::BTreeMap;

use bytes::Bytes;
use chappe_cluster::ownership::{Map, PlanId, Row};
use chappe_schema::id::{EntityId, Partition, Seq, SessionId};
use hashbrown::HashMap;

use super::{Effect, Handover, Life, Says};
use crate::{
    planted::{Bug, is},
    shard::handover::{Handed, TenureMail},
};

/// What givers have shown, by partition.
#[derive(Default)]
pub(super) struct Taking(BTreeMap<Partition, Prepared>);

struct Prepared {
    plan: PlanId,
    shown: HashMap<EntityId, (Seq, Bytes)>,
    /// What may be opened, and what is to be read at once; once the giver has said what stands.
    stands: Option<(Vec<Handed>, Vec<EntityId>)>,
    /// Whoever takes over from this session finds what is to be read at once, too.
    listed: bool,
}

/// What is done about a giver's word.
enum Answer {
    Says(Says),
    /// Before this session may agree.
    List(Vec<EntityId>),
}

impl Life {
    /// Another session says something about a planned move.
    pub(crate) fn heard(&mut self, from: SessionId, handover: Handover, map: &Map, effects: &mut Vec<Effect>) {
        match &handover.says {
            Says::Seen | Says::Agreed => self.answered(from, &handover, effects),
            Says::Shown(_) | Says::Stands(_) => {
                let planned = map.plan(handover.plan).and_then(|plan| plan.moves.get(&handover.partition));
                // Of a plan that this node does not know (yet) it keeps nothing; the giver says it again.
                if planned.is_some_and(|planned| planned.from == from && planned.to == self.session()) {
                    let Handover { plan, partition, .. } = handover;
                    match self.taking.hear(handover) {
                        Some(Answer::Says(says)) => {
                            self.answer_giver(from, Handover { plan, partition, says }, effects)
                        }
                        Some(Answer::List(entities)) => effects.push(Effect::List(plan, partition, entities)),
                        None => {}
                    }
                }
            }
        }
    }

    fn answer_giver(&self, giver: SessionId, handover: Handover, effects: &mut Vec<Effect>) {
        // Gateways may hear of the commit before this node does: whoever asks then waits for that, and is not sent back to a
        // giver who decides nothing any more.
        let partition = handover.partition;
        if matches!(handover.says, Says::Agreed) && !self.held.contains_key(&partition) {
            effects.push(Effect::Tenure(partition, TenureMail::Opening(partition)));
        }
        effects.push(Effect::Send(giver, handover));
    }

    /// What the giver owes is listed: now it does not matter to anybody whether this session lives to open the partition.
    pub(crate) fn listed(&mut self, plan: PlanId, partition: Partition, map: &Map, effects: &mut Vec<Effect>) {
        let planned = map.plan(plan).and_then(|plan| plan.moves.get(&partition));
        if let Some(planned) = planned.filter(|planned| planned.to == self.session())
            && self.taking.listed(plan, partition)
        {
            self.answer_giver(planned.from, Handover { plan, partition, says: Says::Agreed }, effects);
        }
    }

    /// Forgets what was shown under plans that are gone, unless the partition came by them. Whoever waits for one that did not
    /// come waits in vain.
    pub(super) fn follow_givers(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        let mut in_vain = self.taking.follow(self.session(), map);
        in_vain.retain(|partition| !self.held.contains_key(partition));
        if !in_vain.is_empty() {
            effects.push(Effect::Close(in_vain));
        }
    }
}

impl Taking {
    fn hear(&mut self, Handover { plan, partition, says }: Handover) -> Option<Answer> {
        match says {
            Says::Shown(handed) => {
                let shown = handed.iter().map(|one| (one.entity.clone(), (one.seq, one.bytes.clone()))).collect();
                let prepared = Prepared { plan, shown, stands: None, listed: false };
                match self.0.get_mut(&partition) {
                    // Said again; by now the giver may have said more.
                    Some(known) if known.plan == plan => {}
                    _ => drop(self.0.insert(partition, prepared)),
                }
                Some(Answer::Says(Says::Seen))
            }
            Says::Stands(delta) => {
                let prepared = self.0.get_mut(&partition).filter(|prepared| prepared.plan == plan)?;
                prepared.stands = Some((delta.confirm(&prepared.shown), delta.warm.clone()));
                if prepared.listed || delta.warm.is_empty() {
                    return Some(Answer::Says(Says::Agreed));
                }
                // The giver lives on, so nobody reads what it was active in. If this session ended between the commit and its first
                // words, what the giver owes to others would be owed for ever (seed 1526).
                Some(Answer::List(delta.warm.clone()))
            }
            Says::Seen | Says::Agreed => None,
        }
    }

    /// What the giver owes is listed; whether that is news of the plan that is being followed.
    fn listed(&mut self, plan: PlanId, partition: Partition) -> bool {
        let prepared = self.0.get_mut(&partition).filter(|prepared| prepared.plan == plan && prepared.stands.is_some());
        prepared.is_some_and(|prepared| !std::mem::replace(&mut prepared.listed, true))
    }

    /// Forgets what was shown under plans that are gone, and names what was agreed on of that.
    fn follow(&mut self, me: SessionId, map: &Map) -> Vec<Partition> {
        let mut agreed = Vec::new();
        self.0.retain(|partition, prepared| {
            let planned = map.plan(prepared.plan).and_then(|plan| plan.moves.get(partition));
            let stays = planned.is_some_and(|planned| planned.to == me) || is(Bug::AbortedPlanOpened);
            if !stays && prepared.stands.is_some() {
                agreed.push(*partition);
            }
            stays
        });
        agreed
    }

    /// What may be opened of a partition that the map has just given to this session, and what is to be read at once.
    pub(super) fn committed(&mut self, partition: Partition, row: &Row) -> Option<(Vec<Handed>, Vec<EntityId>)> {
        let prepared = self.0.remove(&partition)?;
        if row.by == Some(prepared.plan) || is(Bug::AbortedPlanOpened) { prepared.stands } else { None }
    }
}
