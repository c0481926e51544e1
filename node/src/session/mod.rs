//! The lives of this node: pure, from the map and from what the store, the shards and other nodes say, to what is to be
//! done.
//!
//! A node has one *session* at a time, and never the same twice. It is registered with the cluster, entered in the store's
//! registry, and then owns what the map gives to it; when the map has ended it, or its own fence is found, everything is
//! dropped and the next session begins. In reading order:
//!
//! - this file: from one session to the next
//! - [`life`]: what a session may own, step by step
//! - [`giving`], [`taking`]: the two sides of a planned move
//! - [`tenant`]: the shell that does what they want done
//!
//! Whatever is sent may be lost, except to one's own shards and to the store, which answer in any case. So everything is
//! said again with the ticks until the map, or an answer, shows that it was heard.

use std::sync::Arc;

use chappe_cluster::{
    control::{Answer, Outcome},
    ownership::{Applied, Command, Map, PlanId},
};
use chappe_schema::{
    archive::{Inline, Several},
    id::{EntityId, Generation, Millis, Partition, SessionId},
    wire::Owner,
};

use crate::shard::handover::{Delta, Handed, TenureMail};

mod giving;
mod life;
mod taking;
pub(crate) mod tenant;
#[cfg(test)]
mod tests;

pub(crate) use life::Life;

/// How long something that was sent may take before it is sent again.
pub(crate) const AGAIN_MS: Millis = 300;

/// Whether so much time has passed since then, by a clock that may have jumped back meanwhile: nothing waits for it to catch up.
const fn has_passed(since: Millis, patience: Millis, now: Millis) -> bool {
    now.abs_diff(since) >= patience
}

/// Who this node is to the cluster: what it registers each of its sessions as.
pub use chappe_cluster::ownership::NewSession as Introduction;

/// From one owner to another, about a planned move. Anything of it may be lost, or come twice.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) struct Handover {
    /// Under which plan.
    pub(crate) plan: PlanId,
    /// What of.
    pub(crate) partition: Partition,
    pub(crate) says: Says,
}

#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) enum Says {
    /// The giver shows what it has in memory, while it goes on serving.
    Shown(#[rkyv(with = Several)] Arc<[Handed]>),
    /// The receiver has it.
    Seen,
    /// The giver is cut off from the partition: this is what stands.
    Stands(#[rkyv(with = Inline)] Arc<Delta>),
    /// The receiver will open exactly that.
    Agreed,
}

impl Says {
    /// Bytes of the entities that it carries.
    fn bytes(&self) -> usize {
        let all = |handed: &[Handed]| handed.iter().map(|one| one.bytes.len()).sum();
        match self {
            Self::Shown(handed) => all(handed),
            Self::Stands(delta) => all(&delta.changed),
            Self::Seen | Self::Agreed => 0,
        }
    }
}

/// What is to be done.
pub(crate) enum Effect {
    /// Ask the cluster.
    Propose(Command),
    /// Enter the session in the store's registry, and read the generation of the history after that.
    Enrol(SessionId),
    /// The shards begin anew, for this session.
    Begin(SessionId),
    /// Nothing of the present session may leave the shards any more.
    End(String),
    /// End these sessions for good, in the store.
    Fence(Vec<SessionId>),
    /// List for whoever takes over from this session what somebody must look at in a partition that it takes under a plan.
    List(PlanId, Partition, Vec<EntityId>),
    /// Read in what a session has committed since that minute of its.
    ReadActivity(SessionId, u64),
    /// For the shard of this partition.
    Tenure(Partition, TenureMail),
    /// For the shards of these partitions: they are somebody else's.
    Close(Vec<Partition>),
    /// For another session.
    Send(SessionId, Handover),
    /// These partitions have other owners than before: for shards, links and gateways.
    Moved(Vec<(Partition, Owner)>),
    /// A partition that is given away has come through a step, in this time.
    Took(&'static str, Millis),
    /// The process must end: the store's history is another than the one this node was started with, or the node has left for good.
    Refuse(String),
}

/// See the module's documentation.
pub(crate) struct Sessions {
    me: Introduction,
    generation: Generation,
    map: Map,
    stage: Stage,
    /// The version of the map that shows the present session: whether it lives, no older one can tell (seed 2600).
    shown_by: u64,
    /// Registrations that were not answered. Each ends the session of the one before: another one while one is on its way would end what
    /// that one begins, and so on for ever (seed 2600).
    asked: u32,
    now: Millis,
}

enum Stage {
    /// Nothing is registered; a proposal may be on its way since then.
    Unregistered { proposed: Option<Millis> },
    /// Registered, and being entered in the store's registry.
    Enrolling { session: SessionId, since: Option<Millis> },
    /// It owns what the map gives it.
    Living(Box<Life>),
}

impl Sessions {
    /// A node that has just started; `generation` is that of the history which its gateways are told.
    pub(crate) fn new(me: Introduction, generation: Generation) -> Self {
        Self {
            me,
            generation,
            map: Map::default(),
            stage: Stage::Unregistered { proposed: None },
            shown_by: 0,
            asked: 0,
            now: 0,
        }
    }

    /// The present session, once it may own anything.
    pub(crate) fn living(&self) -> Option<SessionId> {
        match &self.stage {
            Stage::Living(life) => Some(life.session()),
            _ => None,
        }
    }

    /// The newest map that was shown.
    pub(crate) const fn map(&self) -> &Map {
        &self.map
    }

    /// It is that late now; what follows is heard at this time.
    pub(crate) fn at(&mut self, now: Millis) {
        self.now = now;
        if let Stage::Living(life) = &mut self.stage {
            life.now = now;
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Millis) -> Vec<Effect> {
        self.now = now;
        let mut effects = Vec::new();
        let is_due = |since: Option<Millis>, patience| since.is_none_or(|since| has_passed(since, patience, now));
        // Who left for good is never taken in again. Its process stays until nothing depends on it: others may wait for its vote.
        let left = self.map.retirement(self.me.node);
        match &mut self.stage {
            // A session of an earlier life, or of a proposal whose answer was lost, ends with the registration of the next.
            Stage::Unregistered { .. } if left == Some(true) => effects.push(Effect::Refuse(
                "this node was decommissioned, and its work here is done; with an empty data directory it joins as a new one"
                    .to_owned(),
            )),
            Stage::Unregistered { .. } if left.is_some() => {}
            Stage::Unregistered { proposed } if self.map.cluster().is_some() && is_due(*proposed, 10 * AGAIN_MS) => {
                *proposed = Some(now);
                self.asked += 1;
                effects.push(Effect::Propose(Command::RegisterSession(self.me.clone())));
            }
            Stage::Unregistered { .. } => {}
            Stage::Enrolling { session, since } if is_due(*since, 10 * AGAIN_MS) => {
                *since = Some(now);
                effects.push(Effect::Enrol(*session));
            }
            Stage::Enrolling { .. } => {}
            Stage::Living(life) => life.tick(now, &mut effects),
        }
        effects
    }

    /// The map has changed. Older ones are passed over.
    pub(crate) fn map_changed(&mut self, map: Map, now: Millis) -> Vec<Effect> {
        self.now = now;
        if map.version() <= self.map.version() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        let before = std::mem::replace(&mut self.map, map);
        let moved = self.map.newly_owned(&before);
        if !moved.is_empty() {
            effects.push(Effect::Moved(moved));
        }
        match &mut self.stage {
            Stage::Unregistered { .. } => {}
            _ if self.map.version() < self.shown_by => {}
            Stage::Enrolling { session, .. } if !self.map.is_live(*session) => self.begin_anew(),
            Stage::Enrolling { .. } => {}
            Stage::Living(life) => {
                if self.map.is_live(life.session()) {
                    life.map_changed(&self.map, &mut effects);
                } else {
                    effects.push(Effect::End("the cluster has ended this session".to_owned()));
                    self.begin_anew();
                }
            }
        }
        effects.extend(self.tick(self.now));
        effects
    }

    /// The present session is over. The next is asked for at once, unless one is on its way.
    fn begin_anew(&mut self) {
        self.stage = Stage::Unregistered { proposed: (self.asked > 0).then_some(self.now) };
    }

    /// A proposal was answered.
    pub(crate) fn answered(&mut self, command: &Command, outcome: &Outcome) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(command, Command::RegisterSession(_)) {
            self.asked = self.asked.saturating_sub(1);
        }
        match (&mut self.stage, outcome) {
            (
                Stage::Unregistered { .. } | Stage::Enrolling { .. },
                Outcome::Answered(Answer { result: Ok(Applied::Registered { session, .. }), version }),
            ) if matches!(command, Command::RegisterSession(_)) => {
                // Answers may overtake each other: an older one tells of a session that the newer one has ended.
                if *version > self.shown_by {
                    self.shown_by = *version;
                    self.stage = Stage::Enrolling { session: *session, since: None };
                    // And maps may overtake answers.
                    if self.map.version() >= *version && !self.map.is_live(*session) {
                        self.begin_anew();
                    }
                }
                effects = self.tick(self.now);
            }
            (Stage::Living(life), outcome) if matches!(command, Command::CommitMoves { .. }) => {
                life.committed(!matches!(outcome, Outcome::Unavailable), &mut effects);
            }
            // Asked again with a tick.
            (Stage::Unregistered { proposed }, _) => {
                if matches!(outcome, Outcome::Answered(_) | Outcome::Unavailable) {
                    *proposed = Some(self.now);
                }
            }
            _ => {}
        }
        effects
    }

    /// The store has entered a session in its registry, or has not.
    pub(crate) fn enrolled(&mut self, of: SessionId, generation: Option<Generation>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Stage::Enrolling { session, since } = &mut self.stage else { return effects };
        if *session != of {
            return effects;
        }
        match generation {
            None => *since = Some(self.now),
            Some(generation) if generation != self.generation => {
                effects.push(Effect::Refuse(format!(
                    "the history in the store is of generation {:x}, this node serves {:x}",
                    generation.0, self.generation.0
                )));
            }
            Some(_) => {
                effects.push(Effect::Begin(of));
                let mut life = Life::new(of, self.now);
                life.map_changed(&self.map, &mut effects);
                self.stage = Stage::Living(Box::new(life));
            }
        }
        effects
    }

    /// Fences are durable at the store's quorum, or may not be.
    pub(crate) fn fenced(&mut self, sessions: &[SessionId], durable: bool) -> Vec<Effect> {
        self.living_do(|life, map, effects| life.fenced(sessions, durable, map, effects))
    }

    /// The store has told what a session committed, or could not.
    pub(crate) fn active(&mut self, session: SessionId, entities: Option<Vec<EntityId>>) -> Vec<Effect> {
        self.living_do(|life, map, effects| life.active(session, entities, map, effects))
    }

    /// What the giver of a partition owes is listed for whoever takes over from this session, or may not be.
    pub(crate) fn listed(&mut self, plan: PlanId, partition: Partition, durable: bool) -> Vec<Effect> {
        self.living_do(|life, map, effects| {
            if durable {
                life.listed(plan, partition, map, effects);
            }
        })
    }

    /// A shard shows what it has of a partition that is to be given away.
    pub(crate) fn streamed(&mut self, partition: Partition, plan: PlanId, handed: Vec<Handed>) -> Vec<Effect> {
        self.living_do(|life, _, effects| life.streamed(partition, plan, handed, effects))
    }

    /// A shard is cut off from a partition.
    pub(crate) fn cut(&mut self, partition: Partition, plan: PlanId, delta: Delta) -> Vec<Effect> {
        self.living_do(|life, _, effects| life.cut(partition, plan, delta, effects))
    }

    /// Another session says something about a planned move.
    pub(crate) fn heard(&mut self, from: SessionId, handover: Handover) -> Vec<Effect> {
        self.living_do(|life, map, effects| life.heard(from, handover, map, effects))
    }

    /// A shard has found the session's own fence, or rows of a newer owner.
    pub(crate) fn ended(&mut self, session: SessionId, why: String) -> Vec<Effect> {
        if self.living() != Some(session) {
            return Vec::new();
        }
        self.stage = Stage::Unregistered { proposed: None };
        let mut effects = vec![Effect::End(why)];
        effects.extend(self.tick(self.now));
        effects
    }

    fn living_do(&mut self, act: impl FnOnce(&mut Life, &Map, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Stage::Living(life) = &mut self.stage {
            act(life, &self.map, &mut effects);
        }
        effects
    }
}
