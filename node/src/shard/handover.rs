//! Giving a partition away, and taking one over.
//!
//! A planned move, as the giver's shard lives it: [`TenureMail::Stream`] (show what is hot, go on serving) →
//! [`TenureMail::Seal`] (begin nothing new; what is on its way ends, or does not within [`SEAL_MS_MAX`]) → *cut*: the
//! [`Delta`] says what of the streamed entities stands as it was streamed, what stands differently, and what the successor
//! must read from the log. From then on nothing of the partition is let out, however the log answers, because the
//! successor may act on the delta at any moment. It ends with [`TenureMail::Close`], or, when the move has come to
//! nothing, with [`TenureMail::Open`] under the same epoch: then what was withheld goes on its way as if nothing had been.
//!
//! The receiver's shard only hears [`TenureMail::Open`], with what the delta confirmed.

use std::sync::Arc;

use bytes::Bytes;
use chappe_cluster::ownership::PlanId;
use chappe_schema::{
    event::Event,
    id::{ConversationId, EntityId, Epoch, Millis, Partition, Seq, UserId},
    limit::{MOVE_BYTES_MAX, MOVE_ENTITIES_MAX, SEAL_MS_MAX},
    wire::{Head, Owner},
};
use hashbrown::{HashMap, HashSet};

use super::{
    News, Parts, Phase, Report, Shard,
    conversations::{ConversationSlot, Reading},
    tenure::Tenure,
    users::UserSlot,
};
use crate::{
    conversation::Conversation,
    planted::{Bug, is},
    store::Store,
    user::User,
};

/// How long a conversation counts as active: heads of those are said again when a member's owner changes.
const ACTIVE_MS: u64 = 5 * 60_000;

/// How long changes of owners gather before members there are told where their conversations stand. Until then they hear of
/// what is said next, and miss only what was on its way as their partition moved.
const MOVED_MS: u64 = 200;

/// What happens to a partition of this shard.
pub(crate) enum TenureMail {
    /// It will be this session's as soon as its predecessors are fenced.
    Opening(Partition),
    /// It is this session's, under this epoch.
    Open {
        /// Which.
        partition: Partition,
        /// Of its assignment.
        epoch: Epoch,
        /// Entities at their committed seq, from the giver's memory.
        handed: Vec<Handed>,
        /// Entities to be read from the log at once.
        warm: Vec<EntityId>,
    },
    /// It is to be given away: show what it has in memory.
    Stream(Partition, PlanId),
    /// Begin nothing new, and say what stands.
    Seal(Partition, PlanId),
    /// Time has passed since it was sealed: what is on its way may have taken too long.
    Hurry,
    /// They are somebody else's. Many at once: some of what is forgotten is found by looking at all there is.
    Close(Vec<Partition>),
}

/// An entity in a giver's memory, as a successor may open it without a look into the log.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) struct Handed {
    /// Which.
    pub(crate) entity: EntityId,
    /// The committed seq that the bytes reflect.
    pub(crate) seq: Seq,
    /// The bytes of a snapshot.
    pub(crate) bytes: Bytes,
}

/// What stands at the end of a partition that is given away. It speaks of committed events only.
#[derive(Clone, Debug, Default, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) struct Delta {
    /// Entities that stand exactly as they were streamed, and at which seq.
    pub(crate) confirmed: Vec<(EntityId, Seq)>,
    /// Entities that stand otherwise, or were not streamed.
    pub(crate) changed: Vec<Handed>,
    /// Entities that the successor reads from the log at once: something of them was on its way, or is owed to others.
    pub(crate) warm: Vec<EntityId>,
}

/// A partition on its way to being cut.
pub(super) struct Sealing {
    partition: Partition,
    plan: PlanId,
    since: Millis,
    /// Of which something was on its way when that was looked at last. Nothing new is begun, so that they become fewer.
    busy: Vec<EntityId>,
}

impl Delta {
    /// What of `streamed` may be opened as it is, with what the delta brings. Whatever it does not confirm at exactly the
    /// streamed seq is discarded.
    #[must_use]
    pub(crate) fn confirm(&self, streamed: &HashMap<EntityId, (Seq, Bytes)>) -> Vec<Handed> {
        if is(Bug::StaleShown) {
            // As if what was shown were what stands.
            let handed = |(entity, (seq, bytes)): (&EntityId, &(Seq, Bytes))| Handed {
                entity: entity.clone(),
                seq: *seq,
                bytes: bytes.clone(),
            };
            return streamed.iter().map(handed).collect();
        }
        let stands = self.confirmed.iter().filter_map(|(entity, seq)| {
            let (streamed_at, bytes) = streamed.get(entity)?;
            (streamed_at == seq).then(|| Handed { entity: entity.clone(), seq: *seq, bytes: bytes.clone() })
        });
        stands.chain(self.changed.iter().cloned()).collect()
    }
}

impl Shard {
    pub(super) fn change_tenure(&mut self, mail: TenureMail) {
        match mail {
            TenureMail::Opening(partition) => self.tenures.set(partition, Tenure::Opening),
            TenureMail::Open { partition, epoch, handed, warm } => self.open(partition, epoch, handed, warm),
            TenureMail::Stream(partition, plan) => self.stream(partition, plan),
            TenureMail::Seal(partition, plan) => {
                if let Tenure::Open(epoch) = self.tenures.at(partition) {
                    self.tenures.set(partition, Tenure::Sealed(epoch));
                    for id in self.conversations_of(partition) {
                        self.guarded(|| id.into(), |shard| shard.keep_receipts(id));
                    }
                    self.sealing.push(Sealing { partition, plan, since: self.now, busy: self.busy_in(partition) });
                }
            }
            // It only has to begin a turn: the turn's end cuts what has waited long enough.
            TenureMail::Hurry => {}
            TenureMail::Close(partitions) => self.close(&partitions.into_iter().collect()),
        }
    }

    fn open(&mut self, partition: Partition, epoch: Epoch, handed: Vec<Handed>, warm: Vec<EntityId>) {
        self.sealing.retain(|sealing| sealing.partition != partition);
        self.tenures.set(partition, Tenure::Open(epoch));
        self.has_new_partitions();
        self.opened.insert(partition, self.now);
        for one in handed {
            self.install(partition, epoch, one);
        }
        for entity in warm {
            match entity {
                EntityId::Conversation(id) => {
                    // Its last owner may have told others of its events, or not.
                    self.unannounced.insert(id.into());
                    self.load_conversation(id);
                    self.owe_head(id);
                }
                // Nobody waits to hear from a user.
                EntityId::User(_) => {}
            }
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.withheld).into_iter().partition(|ticket| ticket.partition() == partition);
        self.withheld = others;
        // A clean fence read that begins now covers them.
        ours.into_iter().for_each(|ticket| self.pump.issue(ticket));
        if is(Bug::SlotsAgainAfterAbort) {
            // As if what is on its way would never arrive.
            for id in self.conversations_of(partition) {
                if self.conversations.get(&id).is_some_and(|slot| !slot.line.has_no_rows()) {
                    self.forget_conversation(id);
                }
            }
        }
        for (from, lane, question) in self.tenures.unpark(partition) {
            self.ask(from, lane, question);
        }
    }

    /// An entity from a giver's memory. What cannot be used is read from the log when somebody asks.
    fn install(&mut self, partition: Partition, epoch: Epoch, handed: Handed) {
        let Handed { entity, seq, bytes } = handed;
        if entity.partition() != partition {
            return;
        }
        let now = self.now;
        match entity {
            EntityId::Conversation(id) => {
                let Ok(mut state) = Conversation::from_snapshot(id, bytes) else { return };
                if state.head != seq || self.conversations.contains_key(&id) {
                    return;
                }
                state.owner = epoch;
                state.distrust_snapshot(self.settings.retention_ms);
                let mut slot = ConversationSlot::loading(now, (partition, epoch));
                slot.slot.line.restart(seq, state.origin);
                Self::account(&mut self.bytes, &mut slot.slot.bytes, state.bytes());
                let is_active = state.last_at >= now.saturating_sub(ACTIVE_MS);
                slot.slot.phase = Phase::Ready(Box::new(state));
                self.conversations.insert(id, slot);
                self.watch(id);
                if is_active {
                    self.owe_head(id);
                }
                // What its last owner had begun to remove.
                self.guarded(|| id.into(), |shard| shard.project_conversation(id));
            }
            EntityId::User(id) => {
                let Ok(mut state) = User::from_snapshot(id.clone(), bytes) else { return };
                if state.head != seq || self.users.contains_key(&id) {
                    return;
                }
                state.owner = epoch;
                state.distrust(None);
                let mut slot = UserSlot::loading(now, (partition, epoch));
                slot.slot.line.restart(seq, state.origin);
                Self::account(&mut self.bytes, &mut slot.slot.bytes, state.bytes());
                slot.slot.phase = Phase::Ready(Box::new(state));
                self.users.insert(id.clone(), slot);
                self.watch(id.clone());
                self.guarded(|| id.clone().into(), |shard| shard.ask_heads(&id));
            }
        }
    }

    /// Everything of these partitions is forgotten; whoever waits is sent to the next owner.
    fn close(&mut self, partitions: &HashSet<Partition>) {
        let gone = |partition: Partition| partitions.contains(&partition);
        self.sealing.retain(|sealing| !gone(sealing.partition));
        self.withheld.retain(|ticket| !gone(ticket.partition()));
        self.pump.forget(|ticket| gone(ticket.partition()));
        self.reads.retain(|_, reading| match reading {
            Reading::Id(id, ..) => !gone(id.partition()),
            // What a clean fence read has let out may be shown late.
            Reading::Page(..) => true,
        });
        self.owing_heads.retain(|id| !gone(id.partition()));
        self.recent.forget_all(gone);
        self.forget_presence(gone);
        self.forget_typing(gone);
        // Their news go to somebody else from now on.
        self.resting.forget_all(|id| gone(id.partition()));
        self.gatherings.retain(|_, gathering| !gone(gathering.partition()));
        self.forget_tellings(gone);
        let mut ordered: Vec<Partition> = partitions.iter().copied().collect();
        ordered.sort_unstable();
        for partition in ordered {
            self.close_one(partition);
        }
    }

    fn close_one(&mut self, partition: Partition) {
        self.tenures.leave(partition);
        for id in self.conversations_of(partition) {
            self.telling.remove(&id);
            self.unannounced.remove(&EntityId::Conversation(id));
            self.interest.remove(&id);
            self.forget_conversation(id);
        }
        for id in self.users_of(partition) {
            self.asking_heads.remove(&id);
            self.settling.remove(&id);
            self.forget_user(&id);
        }
        for (from, lane, _) in self.tenures.unpark(partition) {
            self.refuse(from, lane);
        }
    }

    /// Shows what is in memory and may be opened elsewhere as it is.
    fn stream(&mut self, partition: Partition, plan: PlanId) {
        let (mut handed, mut room) = (Vec::new(), Room::default());
        for id in self.conversations_of(partition).into_iter().take(MOVE_ENTITIES_MAX) {
            handed.extend(self.hand_conversation(id).filter(|one| room.takes(one)));
        }
        for id in self.users_of(partition).into_iter().take(MOVE_ENTITIES_MAX) {
            handed.extend(self.hand_user(&id).filter(|one| room.takes(one)));
        }
        for one in &handed {
            self.streamed(&one.entity, Some(one.seq));
        }
        (self.reports)(Report::Streamed(partition, plan, handed));
    }

    /// Notes what a successor was shown of an entity.
    fn streamed(&mut self, entity: &EntityId, seq: Option<Seq>) {
        match entity {
            EntityId::Conversation(id) => {
                if let Some(slot) = self.conversations.get_mut(id) {
                    slot.slot.streamed = seq;
                }
            }
            EntityId::User(id) => {
                if let Some(slot) = self.users.get_mut(id) {
                    slot.slot.streamed = seq;
                }
            }
        }
    }

    /// The conversation's bytes, if nothing of it is on its way or owed: then they reflect committed events only, and
    /// everything that derives from those is durable.
    fn hand_conversation(&mut self, id: ConversationId) -> Option<Handed> {
        let slot = self.conversations.get_mut(&id).filter(|slot| slot.may_go() || is(Bug::HandsUncommitted))?;
        let Phase::Ready(state) = &mut slot.slot.phase else { return None };
        // Very many members are read from their rows, and are no part of a snapshot.
        if state.members.are_apart() {
            return None;
        }
        let bytes = state.can_cool().then(|| state.snapshot()).flatten()?;
        Some(Handed { entity: id.into(), seq: state.head, bytes })
    }

    fn hand_user(&mut self, id: &UserId) -> Option<Handed> {
        let slot = self.users.get_mut(id).filter(|slot| slot.line.is_quiet())?;
        let Phase::Ready(state) = &mut slot.slot.phase else { return None };
        Some(Handed { entity: id.clone().into(), seq: state.head, bytes: state.snapshot() })
    }

    /// Cuts sealed partitions in which nothing is on its way any more, and those that have waited long enough.
    pub(super) fn cut_what_is_quiet(&mut self) {
        for mut sealing in std::mem::take(&mut self.sealing) {
            sealing.busy.retain(|entity| !self.is_quiet(entity));
            if sealing.busy.is_empty() {
                // Whatever follows from what has ended may have begun since.
                sealing.busy = self.busy_in(sealing.partition);
            }
            if sealing.busy.is_empty() || self.now.abs_diff(sealing.since) >= SEAL_MS_MAX {
                self.cut(sealing.partition, sealing.plan);
            } else {
                self.sealing.push(sealing);
            }
        }
    }

    /// Entities of a partition of which something is on its way to the log.
    fn busy_in(&self, partition: Partition) -> Vec<EntityId> {
        let conversations = self.conversations.of(partition).map(|id| EntityId::Conversation(*id));
        let users = self.users.of(partition).map(|id| EntityId::User(id.clone()));
        conversations.chain(users).filter(|entity| !self.is_quiet(entity)).collect()
    }

    /// Whether nothing of an entity is on its way to the log. Nothing is, of one that is not in memory.
    fn is_quiet(&self, entity: &EntityId) -> bool {
        match entity {
            EntityId::Conversation(id) => {
                self.conversations.get(id).is_none_or(|slot| slot.line.is_quiet() && slot.receipts.is_quiet())
            }
            EntityId::User(id) => self.users.get(id).is_none_or(|slot| slot.line.is_quiet()),
        }
    }

    fn conversations_of(&self, partition: Partition) -> Vec<ConversationId> {
        self.conversations.of(partition).copied().collect()
    }

    fn users_of(&self, partition: Partition) -> Vec<UserId> {
        self.users.of(partition).cloned().collect()
    }

    fn cut(&mut self, partition: Partition, plan: PlanId) {
        let Tenure::Sealed(epoch) = self.tenures.at(partition) else { return };
        self.tenures.set(partition, Tenure::Cut(epoch));
        let (mut delta, mut room) = (Delta::default(), Room::default());
        for id in self.conversations_of(partition) {
            let streamed = self.conversations.get(&id).and_then(|slot| slot.streamed);
            match self.hand_conversation(id) {
                Some(handed) if streamed == Some(handed.seq) || room.takes(&handed) => delta.stands(handed, streamed),
                // Something of it may be owed to others, or it is too much.
                _ => delta.warm.push(id.into()),
            }
        }
        // What was put away lately may have news on a way that has broken: the successor says where it stands.
        delta.warm.extend(self.recent.of(partition).into_iter().map(EntityId::from));
        for id in self.users_of(partition) {
            let streamed = self.users.get(&id).and_then(|slot| slot.streamed);
            if let Some(handed) = self.hand_user(&id)
                && (streamed == Some(handed.seq) || room.takes(&handed))
            {
                delta.stands(handed, streamed);
            }
        }
        (self.reports)(Report::Cut(partition, plan, delta));
    }

    /// These partitions have another owner. What follows from that takes a look at every conversation, and moves come in
    /// dozens: they gather for a moment.
    pub(super) fn moved(&mut self, partitions: &[(Partition, Owner)]) {
        if self.moved.is_empty() {
            self.moved_at = self.now;
        }
        self.moved.extend(partitions.iter().map(|(partition, _)| *partition));
    }

    /// The heads of what was active lately are said again to members whose partitions have another owner, since news on
    /// their way to the former one are lost.
    pub(super) fn follow_the_moved(&mut self) {
        // A clock that jumps back holds up nothing.
        if self.moved.is_empty() || self.now.abs_diff(self.moved_at) < MOVED_MS {
            return;
        }
        let moved = std::mem::take(&mut self.moved);
        let since = self.now.saturating_sub(ACTIVE_MS);
        let is_concerned = |slot: &ConversationSlot| match &slot.slot.phase {
            Phase::Ready(state) if slot.is_settled() => state.last_at >= since,
            _ => true,
        };
        let concerned = self.conversations.iter().filter(|(_, slot)| is_concerned(slot));
        for id in concerned.map(|(id, _)| *id).collect::<Vec<ConversationId>>() {
            if self.conversations.get(&id).is_some_and(|slot| slot.is_settled()) {
                self.say_head(id, since, |user| moved.contains(&user.partition()));
            } else {
                self.owe_head(id);
            }
        }
        for id in self.recent.with_members_in(&moved) {
            self.owe_head(id);
        }
        self.watch_again(&moved);
    }

    /// All members of a conversation are to be told where it stands: some may have missed events of it, with a former owner
    /// who died between a commit and the news, or on a way that broke.
    fn owe_head(&mut self, id: ConversationId) {
        self.owing_heads.insert(id);
        self.pay_head(id);
    }

    /// Once a second: what could not be read is tried again.
    pub(super) fn pay_heads(&mut self) {
        for id in self.owing_heads.iter().copied().collect::<Vec<_>>() {
            self.pay_head(id);
        }
        self.recent.forget_before(self.now.saturating_sub(ACTIVE_MS));
    }

    /// Says to all members where a conversation stands, if they are owed that, as soon as all of it is committed.
    pub(super) fn pay_head(&mut self, id: ConversationId) {
        if !self.owing_heads.contains(&id) {
            return;
        }
        let Some(slot) = self.conversations.get(&id) else { return self.load_conversation(id) };
        match slot.slot.phase {
            Phase::Ready(_) if slot.is_settled() => {
                self.owing_heads.remove(&id);
                self.say_head(id, 0, |_| true);
            }
            // As soon as what is on its way is committed.
            Phase::Ready(_) => {}
            Phase::Withdrawn { .. } => drop(self.owing_heads.remove(&id)),
            Phase::Loading => self.reload(id),
        }
    }

    /// A conversation is put away: should it be lately active, it can still say where it stands.
    pub(super) fn note_recent(&mut self, id: ConversationId) {
        let since = self.now.saturating_sub(ACTIVE_MS);
        let Self { conversations, recent, now, confirms_at_once, .. } = self;
        if !*confirms_at_once
            && let Some(state) = conversations.get_mut(&id).and_then(|slot| slot.slot.ready())
            && state.last_at >= since
            && !state.is_large()
        {
            recent.put(*now, id, state.members.present().map(|member| member.user.partition()));
        }
    }

    /// Says again to some members where a settled conversation stands that was active since then: events on their way to them
    /// may be lost. Members of a large conversation ask.
    fn say_head(&mut self, id: ConversationId, since: Millis, is_meant: impl Fn(&UserId) -> bool) {
        let Some(Phase::Ready(state)) = self.conversations.get(&id).map(|slot| &slot.slot.phase) else { return };
        if state.last_at < since || state.is_large() {
            return;
        }
        let members = state.members.present().map(|member| &member.user);
        let users: Vec<UserId> = members.filter(|user| is_meant(user)).cloned().collect();
        if users.is_empty() {
            return;
        }
        let head = Head { seq: state.head, n: state.n };
        let (events, message_at): (Arc<[Arc<Event>]>, _) = (Arc::from([]), state.message_at);
        self.send_news(&Arc::new(News { conversation: id, head, message_at, events, large: false }), &users);
    }

    /// Forgets everything: what was known was known to a session that is over. What stays is the shard's own place in the
    /// node, who it talks to, and what must never be given out twice.
    pub(super) fn begin_session(&mut self, store: Arc<dyn Store>) {
        // Those are the former session's words.
        self.send_batches();
        let anew = Self::new(Parts {
            index: self.index,
            peers: Arc::clone(&self.peers),
            store,
            settings: self.settings.clone(),
            clock: Arc::clone(&self.clock),
            reports: Arc::clone(&self.reports),
            abroad: Arc::clone(&self.abroad),
            unannounced: Vec::new(),
        });
        let tenure = anew.tenures.at(Partition(0));
        let former = std::mem::replace(self, anew);
        self.gateways = former.gateways;
        self.tenures = former.tenures;
        self.tenures.begin_anew(tenure);
        // Answers to the former session's questions may still come, and inboxes' cursors are with clients.
        (self.next_token, self.changes) = (former.next_token, former.changes);
        (self.now, self.clean_at, self.began) = (former.now, former.now, former.now);
        self.in_hand = former.in_hand;
        (self.stopping, self.stopped) = (former.stopping, former.stopped);
        self.measures = former.measures;
    }
}

/// What may be handed over yet.
struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(MOVE_BYTES_MAX)
    }
}

impl Room {
    /// Whether there is room for it, which it takes then.
    fn takes(&mut self, handed: &Handed) -> bool {
        let left = self.0.checked_sub(handed.bytes.len());
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

impl Delta {
    fn stands(&mut self, handed: Handed, streamed: Option<Seq>) {
        if streamed == Some(handed.seq) {
            self.confirmed.push((handed.entity, handed.seq));
        } else {
            self.changed.push(handed);
        }
    }
}
