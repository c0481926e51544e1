//! What one session may own, step by step.
//!
//! A partition that the map gives to the session opens when *every* session that the map calls unfenced is fenced at the
//! store's quorum, whoever owned the partition before: a chain of owners may have died one after the other. What its
//! former owners did last is read then, so that it can be warmed up, and whatever they owed to others is told again.

use std::collections::{BTreeMap, BTreeSet};

use chappe_cluster::ownership::{Command, Map, Row};
use chappe_schema::id::{EntityId, Epoch, Millis, Partition, SessionId};

use crate::planted::{Bug, is};

use super::{AGAIN_MS, Effect, giving::Giving, has_passed, taking::Taking};
use crate::shard::handover::{Handed, TenureMail};

/// How often a session looks at the time.
const LOOK_MS: Millis = 20;

/// A session that owns.
pub(crate) struct Life {
    session: SessionId,
    pub(super) now: Millis,
    pub(super) held: BTreeMap<Partition, Held>,
    /// Those of `held` that are being opened, and those that are being given away: few, while thousands are open.
    opening: BTreeSet<Partition>,
    pub(super) giving: BTreeSet<Partition>,
    /// Sessions whose fences this one knows to be durable.
    fenced: BTreeSet<SessionId>,
    /// Fences on their way, since when.
    fencing: Option<(BTreeSet<SessionId>, Millis)>,
    /// Fenced sessions that the map still calls unfenced, and since when it has been asked not to.
    marking: BTreeMap<SessionId, Millis>,
    /// What former owners did last; `None` while it is being read, since when.
    activity: BTreeMap<SessionId, (Option<Vec<EntityId>>, Millis)>,
    /// What givers have shown.
    pub(super) taking: Taking,
    /// When it was looked at what has to be said again.
    looked: Millis,
    /// Since when the cluster has been asked to commit moves and has not answered.
    pub(super) committing: Option<Millis>,
    /// Whether moves were agreed on of which it has not been asked.
    pub(super) is_agreed: bool,
}

/// What a session has of a partition.
pub(super) enum Held {
    /// It is the session's, and opens when its predecessors are fenced and what they did last is known.
    Opening(Opening),
    /// Its shard decides.
    Open(Epoch),
    /// It is being given away.
    Giving(Giving),
}

pub(super) struct Opening {
    epoch: Epoch,
    /// What a giver has handed over, and what is to be read at once.
    handed: Option<(Vec<Handed>, Vec<EntityId>)>,
    /// Former owners whose last deeds are to be known.
    former: Vec<SessionId>,
}

impl Life {
    pub(crate) fn new(session: SessionId, now: Millis) -> Self {
        Self {
            session,
            now,
            held: BTreeMap::new(),
            opening: BTreeSet::new(),
            giving: BTreeSet::new(),
            fenced: BTreeSet::new(),
            fencing: None,
            marking: BTreeMap::new(),
            activity: BTreeMap::new(),
            taking: Taking::default(),
            looked: 0,
            committing: None,
            is_agreed: false,
        }
    }

    pub(crate) const fn session(&self) -> SessionId {
        self.session
    }

    /// The map, which still has this session among the living.
    pub(crate) fn map_changed(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        self.close_what_is_gone(map, effects);
        self.hold_what_is_new(map, effects);
        self.follow_plans(map, effects);
        self.follow_givers(map, effects);
        self.fence(map, effects);
        self.open_what_can_be(map, effects);
    }

    pub(crate) fn tick(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.now = now;
        if self.is_agreed {
            self.commit(effects);
        }
        // Whatever is heard is followed by a tick, and there may be much to look at. A clock that jumps back holds up nothing.
        if !has_passed(self.looked, LOOK_MS, now) {
            return;
        }
        self.looked = now;
        if let Some((sessions, since)) = &mut self.fencing
            && has_passed(*since, 10 * AGAIN_MS, now)
        {
            // The store answers in any case; this is for one that has forgotten.
            *since = now;
            effects.push(Effect::Fence(sessions.iter().copied().collect()));
        }
        for (session, since) in &mut self.marking {
            if has_passed(*since, 10 * AGAIN_MS, now) {
                *since = now;
                effects.push(Effect::Propose(Command::MarkFenced { session: *session }));
            }
        }
        self.give_on(effects);
    }

    /// A partition is opened, open, or given away.
    pub(super) fn hold(&mut self, partition: Partition, held: Held) {
        let into = |set: &mut BTreeSet<Partition>, belongs: bool| {
            if belongs {
                set.insert(partition)
            } else {
                set.remove(&partition)
            };
        };
        into(&mut self.opening, matches!(held, Held::Opening(_)));
        into(&mut self.giving, matches!(held, Held::Giving(_)));
        self.held.insert(partition, held);
    }

    fn close_what_is_gone(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        let (session, now, mut gone) = (self.session, self.now, Vec::new());
        self.held.retain(|partition, held| {
            let is_ours = map.owner(*partition) == Some((session, held.epoch()));
            if !is_ours {
                if let Held::Giving(giving) = held {
                    giving.gone(now, effects);
                }
                gone.push(*partition);
            }
            is_ours
        });
        for partition in &gone {
            self.opening.remove(partition);
            self.giving.remove(partition);
        }
        if !gone.is_empty() {
            effects.push(Effect::Close(gone));
        }
    }

    fn hold_what_is_new(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        for (partition, epoch) in map.owned_by(self.session) {
            if self.held.contains_key(&partition) {
                continue;
            }
            let Some(row) = map.row(partition) else { continue };
            let handed = self.taking.committed(partition, row);
            let former = if handed.is_some() { Vec::new() } else { self.predecessors(map, row) };
            self.hold(partition, Held::Opening(Opening { epoch, handed, former }));
            effects.push(Effect::Tenure(partition, TenureMail::Opening(partition)));
        }
    }

    /// Whose last deeds matter: the owner before, and those before it that are over. An owner that took over tells again
    /// what its predecessor owed, but may have died before it could.
    fn predecessors(&self, map: &Map, row: &Row) -> Vec<SessionId> {
        let over = |session: &SessionId| !map.is_live(*session);
        let first = row.former.first().copied();
        let others = row.former.iter().skip(1).copied().filter(over);
        first.into_iter().chain(others).filter(|session| *session != self.session).collect()
    }

    /// Fences all that the map calls unfenced, as soon as something is to be opened.
    fn fence(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        let unfenced: BTreeSet<SessionId> = map.unfenced().map(|(session, _)| session).collect();
        self.marking.retain(|session, _| unfenced.contains(session));
        if self.fencing.is_some() || self.opening.is_empty() {
            return;
        }
        let mut missing: BTreeSet<SessionId> = unfenced.difference(&self.fenced).copied().collect();
        if is(Bug::UnfencedForgotten) {
            missing.clear();
        }
        if is(Bug::FenceOnlyLast) {
            let last = |partition: &Partition| map.row(*partition).and_then(|row| row.former.first().copied());
            let lasts: BTreeSet<SessionId> = self.held.keys().filter_map(last).collect();
            missing.retain(|session| lasts.contains(session));
        }
        if !missing.is_empty() {
            effects.push(Effect::Fence(missing.iter().copied().collect()));
            self.fencing = Some((missing, self.now));
        }
    }

    pub(crate) fn fenced(&mut self, sessions: &[SessionId], durable: bool, map: &Map, effects: &mut Vec<Effect>) {
        self.fencing = None;
        if durable {
            for session in sessions {
                self.fenced.insert(*session);
                if map.unfenced().any(|(unfenced, _)| unfenced == *session) {
                    self.marking.insert(*session, self.now);
                    effects.push(Effect::Propose(Command::MarkFenced { session: *session }));
                }
            }
        }
        self.fence(map, effects);
        self.open_what_can_be(map, effects);
    }

    pub(crate) fn active(
        &mut self,
        session: SessionId,
        entities: Option<Vec<EntityId>>,
        map: &Map,
        effects: &mut Vec<Effect>,
    ) {
        match entities {
            Some(entities) => drop(self.activity.insert(session, (Some(entities), self.now))),
            None => drop(self.activity.remove(&session)),
        }
        self.open_what_can_be(map, effects);
        if self.opening.is_empty() {
            // Lists are long, and another takeover reads newer ones.
            self.activity.retain(|_, (entities, _)| entities.is_none());
        }
    }

    /// Opens whatever has its predecessors fenced.
    fn open_what_can_be(&mut self, map: &Map, effects: &mut Vec<Effect>) {
        let unfenced = |session: SessionId| !self.fenced.contains(&session) && !is(Bug::OpenBeforeFence);
        let all_matter = !is(Bug::UnfencedForgotten) && !is(Bug::FenceOnlyLast);
        if all_matter && map.unfenced().any(|(session, _)| unfenced(session)) {
            return;
        }
        let (mut wanted, mut opened) = (BTreeSet::new(), false);
        for partition in self.opening.clone() {
            let Some(Held::Opening(opening)) = self.held.get_mut(&partition) else { continue };
            if is(Bug::OpenBeforeFence) {
                opening.former.clear();
            }
            if is(Bug::FenceOnlyLast) {
                let last = map.row(partition).and_then(|row| row.former.first().copied());
                if last.is_some_and(|last| !map.is_live(last) && !self.fenced.contains(&last)) {
                    continue;
                }
            }
            let unread =
                opening.former.iter().filter(|session| !matches!(self.activity.get(session), Some((Some(_), _))));
            let unread: Vec<SessionId> = unread.copied().collect();
            if !unread.is_empty() {
                wanted.extend(unread);
                continue;
            }
            let (handed, mut warm) = opening.handed.take().unwrap_or_default();
            for (entities, _) in opening.former.iter().filter_map(|session| self.activity.get(session)) {
                warm.extend(entities.iter().flatten().filter(|entity| entity.partition() == partition).cloned());
            }
            let epoch = opening.epoch;
            let open = TenureMail::Open { partition, epoch, handed, warm };
            effects.push(Effect::Tenure(partition, open));
            self.hold(partition, Held::Open(epoch));
            opened = true;
        }
        for session in wanted {
            if !self.activity.contains_key(&session) {
                self.activity.insert(session, (None, self.now));
                // What it did in the minute before the last that is known of still may not have reached everybody.
                let since = map.ended(session).and_then(|ended| ended.minute).unwrap_or(0).saturating_sub(1);
                effects.push(Effect::ReadActivity(session, since));
            }
        }
        if opened {
            // It may be planned to go on already, and the map says so once.
            self.follow_plans(map, effects);
        }
    }
}

impl Held {
    pub(super) const fn epoch(&self) -> Epoch {
        match self {
            Self::Opening(opening) => opening.epoch,
            Self::Open(epoch) => *epoch,
            Self::Giving(giving) => giving.epoch,
        }
    }
}
