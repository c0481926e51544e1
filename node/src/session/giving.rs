//! Giving a partition away under a plan.
//!
//! Show → seal → cut → say what stands → commit. Until it is cut the giver serves; from then on it lets nothing out, and
//! only the map says how it ended: either the partition is the receiver's, or the plan is gone and the giver goes on. A
//! receiver that does not answer makes the giver ask for the plan to be aborted: whichever of the two, the commit or the
//! abort, comes first into the cluster's log is what happened.

use std::{collections::BTreeMap, sync::Arc};

use chappe_cluster::ownership::{Command, Map, PlanId};
use chappe_schema::{
    id::{Epoch, Millis, Partition, SessionId},
    limit::SEAL_MS_MAX,
};

use crate::planted::{Bug, is};

use super::{AGAIN_MS, Effect, Handover, Life, Says, has_passed, life::Held};
use crate::shard::handover::{Delta, Handed, TenureMail};

/// How long a receiver, or one's own shard, may be silent before the plan is given up: clients wait meanwhile.
const SILENCE_MS_MAX: Millis = 2_000;

/// A partition on its way to another session.
pub(super) struct Giving {
    pub(super) epoch: Epoch,
    plan: PlanId,
    to: SessionId,
    step: Step,
    /// When the step began.
    since: Millis,
    /// When the shard was asked to begin nothing new: its clients wait from then on.
    sealed: Millis,
    /// When something was sent last.
    sent: Millis,
}

enum Step {
    /// The shard is asked what it has in memory.
    Showing,
    /// The receiver is to see that.
    Shown(Arc<[Handed]>),
    /// The shard is asked to come to an end.
    Sealing,
    /// The receiver is to agree to this.
    Cut(Arc<Delta>),
    /// It has: the cluster is asked, or will be when it has answered what it was asked before.
    Committing { asked: bool },
    /// Somebody is silent: the cluster is asked to give the move up.
    Aborting,
}

impl Life {
    /// Begins what is planned, and goes back to work where a plan is gone.
    pub(super) fn follow_plans(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        let (session, now) = (self.session(), self.now);
        for partition in self.giving.clone() {
            let planned = map.planned(partition).filter(|(_, planned)| planned.from == session);
            if let Some(Held::Giving(giving)) = self.held.get(&partition)
                && planned.is_none_or(|(plan, _)| plan != giving.plan)
            {
                let held = giving.take_back(partition, effects);
                self.hold(partition, held);
            }
        }
        let moves = map.plans().flat_map(|(id, plan)| plan.moves.iter().map(move |(at, planned)| (id, *at, planned)));
        for (plan, partition, planned) in moves.filter(|(.., planned)| planned.from == session) {
            if let Some(Held::Open(epoch)) = self.held.get(&partition)
                && planned.expect == *epoch
            {
                let (epoch, to) = (*epoch, planned.to);
                effects.push(Effect::Tenure(partition, TenureMail::Stream(partition, plan)));
                let giving = Giving { epoch, plan, to, step: Step::Showing, since: now, sealed: now, sent: now };
                self.hold(partition, Held::Giving(giving));
            }
        }
    }

    pub(crate) fn streamed(
        &mut self,
        partition: Partition,
        plan: PlanId,
        handed: Vec<Handed>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        if let Some(Held::Giving(giving)) = self.held.get_mut(&partition)
            && giving.plan == plan
            && matches!(giving.step, Step::Showing)
        {
            giving.enter(Step::Shown(handed.into()), now);
            giving.say(partition, now, effects);
        }
    }

    pub(crate) fn cut(&mut self, partition: Partition, plan: PlanId, delta: Delta, effects: &mut Vec<Effect>) {
        let now = self.now;
        if let Some(Held::Giving(giving)) = self.held.get_mut(&partition)
            && giving.plan == plan
            && matches!(giving.step, Step::Sealing)
        {
            giving.end_step(now, effects);
            giving.enter(Step::Cut(Arc::new(delta)), now);
            giving.say(partition, now, effects);
        }
    }

    /// The receiver has answered.
    pub(super) fn answered(&mut self, from: SessionId, handover: &Handover, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(Held::Giving(giving)) = self.held.get_mut(&handover.partition) else { return };
        if (giving.plan, giving.to) != (handover.plan, from) {
            return;
        }
        match (&giving.step, &handover.says) {
            (Step::Shown(_), Says::Seen) => {
                giving.end_step(now, effects);
                giving.enter(Step::Sealing, now);
                giving.sealed = now;
                effects.push(Effect::Tenure(handover.partition, TenureMail::Seal(handover.partition, handover.plan)));
            }
            (Step::Cut(_), Says::Agreed) => {
                giving.end_step(now, effects);
                giving.enter(Step::Committing { asked: false }, now);
                // Others may have agreed in the same message: the cluster is asked when all of it has been heard.
                self.is_agreed = true;
            }
            _ => {}
        }
    }

    /// The cluster has answered a commit, or will not. What it certainly has not heard is asked again after a pause, together.
    pub(super) fn committed(&mut self, was_heard: bool, effects: &mut Vec<Effect>) {
        if was_heard {
            self.committing = None;
            return self.commit(effects);
        }
        for partition in &self.giving {
            if let Some(Held::Giving(Giving { step: Step::Committing { asked }, .. })) = self.held.get_mut(partition) {
                *asked = false;
            }
        }
        self.committing = Some(self.now);
    }

    /// Asks the cluster for everything that was agreed on. One question at a time: what is agreed on meanwhile goes with the next
    /// one, so that the moves of a group are few decisions, each of which everybody hears of.
    pub(super) fn commit(&mut self, effects: &mut Vec<Effect>) {
        if self.committing.is_some() {
            return;
        }
        self.is_agreed = false;
        let mut agreed: BTreeMap<PlanId, Vec<Partition>> = BTreeMap::new();
        for partition in &self.giving {
            if let Some(Held::Giving(giving)) = self.held.get_mut(partition)
                && let Step::Committing { asked: asked @ false } = &mut giving.step
            {
                *asked = true;
                agreed.entry(giving.plan).or_default().push(*partition);
            }
        }
        for (plan, partitions) in agreed {
            self.committing = Some(self.now);
            effects.push(Effect::Propose(Command::CommitMoves { plan, from: self.session(), partitions }));
        }
    }

    /// Whatever was not answered is said again.
    pub(super) fn give_on(&mut self, effects: &mut Vec<Effect>) {
        let (now, session) = (self.now, self.session());
        if self.committing.is_some_and(|since| has_passed(since, AGAIN_MS, now)) {
            self.committed(true, effects);
        }
        for partition in self.giving.clone() {
            let Some(Held::Giving(giving)) = self.held.get_mut(&partition) else { continue };
            if matches!(giving.step, Step::Sealing) && has_passed(giving.sent, SEAL_MS_MAX, now) {
                giving.sent = now;
                effects.push(Effect::Tenure(partition, TenureMail::Hurry));
            }
            let is_silent = has_passed(giving.since, SILENCE_MS_MAX, now);
            if is(Bug::CommitUnknownResumes)
                && matches!(giving.step, Step::Committing { .. })
                && has_passed(giving.since, AGAIN_MS, now)
            {
                // As if no answer were a refusal.
                let held = giving.take_back(partition, effects);
                self.hold(partition, held);
                continue;
            }
            if is_silent && !matches!(giving.step, Step::Committing { .. } | Step::Aborting) {
                giving.enter(Step::Aborting, now);
                giving.ask(session, partition, effects);
            } else if has_passed(giving.sent, AGAIN_MS, now) {
                giving.say(partition, now, effects);
                if has_passed(giving.sent, 10 * AGAIN_MS, now) {
                    giving.sent = now;
                    giving.ask(session, partition, effects);
                }
            }
        }
    }
}

impl Giving {
    fn enter(&mut self, step: Step, now: Millis) {
        (self.step, self.since, self.sent) = (step, now, now);
    }

    /// The partition is the receiver's now.
    pub(super) fn gone(&self, now: Millis, effects: &mut Vec<Effect>) {
        self.end_step(now, effects);
        if matches!(self.step, Step::Committing { .. }) {
            effects.push(Effect::Took("pause", now.saturating_sub(self.sealed)));
        }
    }

    /// Notes how long the step took. Showing what is there is one with waiting until it was seen.
    fn end_step(&self, now: Millis, effects: &mut Vec<Effect>) {
        let step = match self.step {
            Step::Showing | Step::Aborting => return,
            Step::Shown(_) => "show",
            Step::Sealing => "seal",
            Step::Cut(_) => "agree",
            Step::Committing { .. } => "commit",
        };
        effects.push(Effect::Took(step, now.saturating_sub(self.since)));
    }

    /// The partition stays with its giver, who goes on under the same epoch.
    fn take_back(&self, partition: Partition, effects: &mut Vec<Effect>) -> Held {
        let epoch = self.epoch;
        let open = TenureMail::Open { partition, epoch, handed: Vec::new(), warm: Vec::new() };
        effects.push(Effect::Tenure(partition, open));
        Held::Open(epoch)
    }

    /// Says to the receiver what it must know.
    fn say(&mut self, partition: Partition, now: Millis, effects: &mut Vec<Effect>) {
        let says = match &self.step {
            Step::Shown(handed) => Says::Shown(Arc::clone(handed)),
            Step::Cut(delta) => Says::Stands(Arc::clone(delta)),
            Step::Showing | Step::Sealing | Step::Committing { .. } | Step::Aborting => return,
        };
        self.sent = now;
        effects.push(Effect::Send(self.to, Handover { plan: self.plan, partition, says }));
    }

    /// Asks the cluster.
    fn ask(&self, from: SessionId, partition: Partition, effects: &mut Vec<Effect>) {
        let (plan, partitions) = (self.plan, vec![partition]);
        match self.step {
            Step::Committing { asked: true } => {
                effects.push(Effect::Propose(Command::CommitMoves { plan, from, partitions }))
            }
            Step::Aborting => effects.push(Effect::Propose(Command::AbortMoves { plan, partitions })),
            Step::Showing | Step::Shown(_) | Step::Sealing | Step::Cut(_) | Step::Committing { asked: false } => {}
        }
    }
}
