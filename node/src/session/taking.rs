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
                    if let Some(says) = self.taking.hear(handover) {
                        // Gateways may hear of the commit before this node does: whoever asks then waits for that, and is not
                        // sent back to a giver who decides nothing any more.
                        if matches!(says, Says::Agreed) && !self.held.contains_key(&partition) {
                            effects.push(Effect::Tenure(partition, TenureMail::Opening(partition)));
                        }
                        effects.push(Effect::Send(from, Handover { plan, partition, says }));
                    }
                }
            }
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
    fn hear(&mut self, Handover { plan, partition, says }: Handover) -> Option<Says> {
        match says {
            Says::Shown(handed) => {
                let shown = handed.iter().map(|one| (one.entity.clone(), (one.seq, one.bytes.clone()))).collect();
                let prepared = Prepared { plan, shown, stands: None };
                match self.0.get_mut(&partition) {
                    // Said again; by now the giver may have said more.
                    Some(known) if known.plan == plan => {}
                    _ => drop(self.0.insert(partition, prepared)),
                }
                Some(Says::Seen)
            }
            Says::Stands(delta) => {
                let prepared = self.0.get_mut(&partition).filter(|prepared| prepared.plan == plan)?;
                prepared.stands = Some((delta.confirm(&prepared.shown), delta.warm.clone()));
                Some(Says::Agreed)
            }
            Says::Seen | Says::Agreed => None,
        }
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
