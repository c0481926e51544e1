//! Driving conversations.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    event::{Event, Fact, HistoryAccess},
    id::{Change, ConversationId, EntityId, Epoch, GatewayId, Millis, Partition, Seq, UserId},
    limit::{COMMAND_DEADLINE_MS, WINDOW},
    reply::Reply,
    stored::StoredId,
    wire::{Asked, Correlation, Head, ToGateway},
};
use smallvec::SmallVec;

use super::{
    InHand, Incarnation, News, PeerMail, Phase, Projected, Release, Shard, Slot, StoreMail, Ticket, Told, WITHDRAWN_MS,
    line::{Line, Pending},
    members::{Gathered, MembersSlot},
    reactions::Reacting,
    rebuild::{self, Rebuilt},
    receipts::{ReceiptSlot, Said},
    retention::Retaining,
    supervision::Lost,
};
use crate::{
    conversation::{Audience, Conversation, Evidence, Got, Read, Verdict, read::Progress},
    planted::{Bug, is},
    recovery,
    store::{self, Page, PageRequest, Projection, Recovered, Show},
    user::HeadKnown,
};

/// An idle conversation is looked at again after so many times the idle time; it goes earlier when memory is short.
const IDLE_KEPT: u64 = 60;

/// What waits until a conversation is ready.
pub(super) enum Parked {
    /// A command, with what was found out for it so far.
    Command(GatewayId, Arc<Asked>, Evidence),
    /// A user's shard asks for the head.
    Head(UserId),
    /// A user's shard asks for what their inbox shows.
    Row(u64, UserId),
    /// A member has got further.
    Said(Said),
}

/// A conversation and what surrounds it.
pub(super) struct ConversationSlot {
    pub(super) slot: Slot<Conversation, Parked, Release>,
    /// Commands that wait for a look at a message.
    targets: BTreeMap<Seq, Vec<(GatewayId, Arc<Asked>, Evidence)>>,
    /// Commands that wait for a look at their sender's reactions to a message.
    pub(super) reacting: Reacting,
    /// How far members have got, beside the state.
    pub(super) receipts: ReceiptSlot,
    /// Events that users must still hear of: who of them, and what.
    announcing: BTreeMap<Seq, BTreeMap<UserId, Fact>>,
    /// Committed events that nobody was told of, because there was no state to tell from: told after the recovery.
    unpublished: Vec<Pending>,
    /// The same for what belongs in users' own logs.
    unannounced: Vec<Pending>,
    /// A snapshot that waits until everything it reflects is durable.
    pub(super) snapshot: Option<(Seq, bytes::Bytes)>,
    /// Its members, where they have rows of their own.
    pub(super) members: MembersSlot,
    /// The id block on its way to the store.
    id_block: Option<Seq>,
    /// Mutations that wait, in order, for the id blocks to be asked, the first one first.
    asking_id: VecDeque<(GatewayId, Arc<Asked>)>,
    /// What is being removed of it.
    pub(super) retaining: Retaining,
    /// Whether a question is on its way: one at a time. It may be about another than the first, if that came back to the
    /// front meanwhile; then its answer counts for nothing.
    is_asking: bool,
}

impl std::ops::Deref for ConversationSlot {
    type Target = Slot<Conversation, Parked, Release>;
    fn deref(&self) -> &Self::Target {
        &self.slot
    }
}

impl std::ops::DerefMut for ConversationSlot {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.slot
    }
}

/// A look into the store for a client.
pub(super) enum Reading {
    Page(GatewayId, Correlation, Box<Read>, ConversationId),
    /// A command that waits in `asking_id`, by whom it was asked; the last seq that had a durable block at that time.
    Id(ConversationId, (GatewayId, Correlation), Seq),
}

impl ConversationSlot {
    pub(super) fn loading(now: Millis, tenure: (Partition, Epoch)) -> Self {
        Self {
            slot: Slot::loading(now, tenure),
            targets: BTreeMap::new(),
            reacting: Reacting::default(),
            receipts: ReceiptSlot::default(),
            announcing: BTreeMap::new(),
            unpublished: Vec::new(),
            unannounced: Vec::new(),
            snapshot: None,
            members: MembersSlot::default(),
            id_block: None,
            asking_id: VecDeque::new(),
            retaining: Retaining::default(),
            is_asking: false,
        }
    }

    /// Whether its state is here, and all of it committed.
    pub(super) fn is_settled(&self) -> bool {
        matches!(&self.slot.phase, Phase::Ready(state) if state.head == self.slot.line.committed())
    }

    /// Whether nothing is on its way in or out, so that the slot may be dropped.
    pub(super) fn may_go(&self) -> bool {
        self.is_quiet()
            && self.targets.is_empty()
            && self.reacting.is_empty()
            && self.asking_id.is_empty()
            && !self.is_announcing()
            && self.unpublished.is_empty()
            && self.id_block.is_none()
            && self.receipts.is_quiet()
            && self.members.is_quiet()
            && self.retaining.is_quiet()
            // Nobody else would go on before the next start or takeover.
            && !self.core().is_some_and(|state| state.floor.is_purging())
    }

    /// Whether others must still hear of something, or may have to.
    pub(super) fn is_announcing(&self) -> bool {
        !self.announcing.is_empty() || !self.unannounced.is_empty()
    }
}

/// Committed events, shared by whoever hears of them.
type Events = Arc<[Arc<Event>]>;

/// The events as each of these users may read them, where that is not the same for all: who came after a message was written is
/// not told what an edit makes of it. In the moment after a panic, in which nobody knows who came when, all are told everything: the
/// other ways out would lose the event, or its words for those whose message it is.
fn shares(state: Option<&Conversation>, events: &[Arc<Event>], users: &[UserId]) -> Vec<(Events, Vec<UserId>)> {
    let edits: SmallVec<[&Event; 4]> =
        events.iter().map(Arc::as_ref).filter(|event| matches!(event.fact, Fact::MessageUpdated { .. })).collect();
    if edits.is_empty() {
        return Vec::new();
    }
    let Some(state) = state else { return Vec::new() };
    let mut by_veil: BTreeMap<SmallVec<[Seq; 4]>, Vec<UserId>> = BTreeMap::new();
    for user in users {
        let veiled = edits.iter().filter(|event| !state.was_there(user, event.target)).map(|event| event.seq);
        by_veil.entry(veiled.collect()).or_default().push(user.clone());
    }
    let share = |(veiled, users): (SmallVec<[Seq; 4]>, _)| {
        let of = |event: &Arc<Event>| match veiled.contains(&event.seq) {
            true => Arc::new(event.without_body()),
            false => Arc::clone(event),
        };
        (events.iter().map(of).collect(), users)
    };
    by_veil.into_iter().map(share).collect()
}

/// Facts that an event has for users' own logs; `None` when that takes the state, which is not there.
fn announcements(
    event: &Event,
    conversation: ConversationId,
    state: Option<&Conversation>,
) -> Option<Vec<(UserId, Fact)>> {
    // The user's owner numbers the change.
    let (at, change) = (event.seq, Change::default());
    let facts = match &event.fact {
        Fact::ConversationCreated { kind, members, .. } => {
            let joined = Fact::UserJoined { conversation, kind: *kind, at, change };
            members.iter().map(|(user, _)| (user.clone(), joined.clone())).collect()
        }
        Fact::MemberJoined { user, .. } => {
            vec![(user.clone(), Fact::UserJoined { conversation, kind: state?.kind, at, change })]
        }
        Fact::MemberLeft { user } => vec![(user.clone(), Fact::UserLeft { conversation, at, change })],
        Fact::ConversationDeleted => {
            let members = state?.members.present();
            members.map(|member| (member.user.clone(), Fact::UserLeft { conversation, at, change })).collect()
        }
        _ => Vec::new(),
    };
    Some(facts)
}

/// What a user's inbox learns of a conversation; nothing, if they are no member.
fn known_head(state: &Conversation, user: &UserId) -> HeadKnown {
    let member = state.member(user).ok();
    HeadKnown {
        conversation: state.id,
        head: member.map(|_| Head { seq: state.head, n: state.n }),
        read_n: member.map_or(0, |member| member.read_n),
        message_at: state.message_at,
        large: state.is_large(),
    }
}

/// Whether an event has facts for users' own logs.
pub(super) const fn is_announced(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::ConversationCreated { .. }
            | Fact::MemberJoined { .. }
            | Fact::MemberLeft { .. }
            | Fact::ConversationDeleted
    )
}

/// Whether an event is listed until what it decides is done outside of the log, too.
pub(super) const fn is_listed(fact: &Fact) -> bool {
    is_announced(fact) || matches!(fact, Fact::HistoryPurged { .. })
}

/// The state takes its next event, which waits for the log from then on.
pub(super) fn append(state: &mut Conversation, line: &mut Line<Release>, event: Arc<Event>, epoch: Epoch) {
    let audience = state.audience(&event);
    state.apply(&event);
    // A later owner must know what the next event stands on.
    state.origin = epoch;
    let announce = is_listed(&event.fact);
    line.push(Pending { event, audience: Some(audience), announce, origin: epoch });
}

impl Shard {
    /// A client's command.
    pub(super) fn command(&mut self, id: ConversationId, from: GatewayId, asked: Arc<Asked>) {
        if self.now > asked.deadline {
            let error = Error::new(Code::Aborted).with_detail("the request waited too long and was not begun");
            return self.answer_now(from, &asked, Err(error));
        }
        if self.is_stopping() {
            return self.answer_now(from, &asked, Err(Error::new(Code::GoingAway).after_ms(1000)));
        }
        let now = self.now;
        let Some(slot) = self.conversations.get_mut(&id) else {
            self.load_conversation(id);
            return self.park(id, Parked::Command(from, asked, Evidence::default()));
        };
        slot.used = now;
        match slot.phase {
            Phase::Ready(_) => {
                let only_reads = !asked.command.is_mutation();
                self.judge(id, from, asked, Evidence::default());
                // What is only read goes neither to rest nor through a commit.
                if only_reads {
                    self.retain(id);
                }
            }
            Phase::Loading => {
                self.park(id, Parked::Command(from, asked, Evidence::default()));
                // Already under way, unless an earlier attempt has failed.
                self.reload(id);
            }
            Phase::Withdrawn { until } if now >= until => {
                slot.phase = Phase::Loading;
                self.park(id, Parked::Command(from, asked, Evidence::default()));
                self.reload(id);
            }
            Phase::Withdrawn { .. } => self.answer_now(from, &asked, Err(Code::ConversationUnavailable.into())),
        }
    }

    pub(super) fn park(&mut self, id: ConversationId, parked: Parked) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        match parked {
            Parked::Command(from, asked, _) if slot.parked.len() >= WINDOW as usize => {
                self.answer_now(from, &asked, Err(Error::new(Code::Overloaded).after_ms(500)));
            }
            // Questions for the head are bounded by the members: each asks once and waits.
            parked => {
                slot.slot.parked.push_back(parked);
                self.kept();
            }
        }
    }

    /// The conversation, if ready for what another shard asks or says; else `parked` waits for it. What its partition's next
    /// owner is to hear is dropped: whoever said it says it again, or goes on without it.
    pub(super) fn conversation_or_park(&mut self, id: ConversationId, parked: Parked) -> Option<Parked> {
        let Some(slot) = self.conversations.get(&id) else {
            self.load_conversation(id);
            self.park(id, parked);
            return None;
        };
        if !self.tenures.may_release(slot.partition) {
            return None;
        }
        match slot.phase {
            Phase::Ready(_) => return Some(parked),
            Phase::Loading => {
                self.park(id, parked);
                self.reload(id);
            }
            Phase::Withdrawn { .. } => self.refuse_parked(id, parked, &Code::ConversationUnavailable.into()),
        }
        None
    }

    fn refuse_parked(&mut self, id: ConversationId, parked: Parked, error: &Error) {
        match parked {
            Parked::Command(from, asked, _) => self.answer_now(from, &asked, Err(error.clone())),
            Parked::Head(user) => self.head_unknown(id, user),
            Parked::Row(token, user) => self.tell_row(id, token, user, Told::Unknown),
            Parked::Said(said) => self.answer_progress(id, said, Err(error.clone())),
        }
    }

    /// Nobody can tell where the conversation stands.
    fn head_unknown(&mut self, id: ConversationId, user: UserId) {
        let known = HeadKnown { conversation: id, head: None, read_n: 0, message_at: 0, large: false };
        self.send_to_entity(&user.clone().into(), PeerMail::Heads { user, known });
    }

    fn tell_row(&mut self, id: ConversationId, token: u64, user: UserId, told: Told) {
        self.send_to_entity(&user.clone().into(), PeerMail::Row { token, user, conversation: id, told });
    }

    /// Counts an answer, with the time since the gateway asked: it set the deadline then.
    pub(super) fn count_answer(&self, asked: &Asked, result: &Result<Reply, Error>) {
        let began = asked.deadline.saturating_sub(COMMAND_DEADLINE_MS);
        self.measures.answered(asked.command.op(), result.as_ref().err(), self.now.saturating_sub(began));
    }

    pub(super) fn answer_now(&mut self, from: GatewayId, asked: &Asked, result: Result<Reply, Error>) {
        self.count_answer(asked, &result);
        self.reply(from, asked.correlation, result);
    }

    pub(super) fn judge(&mut self, id: ConversationId, from: GatewayId, asked: Arc<Asked>, evidence: Evidence) {
        let request = InHand::Command(from, asked.correlation);
        self.guarded_for(Some(request), || id.into(), |shard| shard.judge_ready(id, from, asked, evidence));
    }

    fn judge_ready(&mut self, id: ConversationId, from: GatewayId, asked: Arc<Asked>, evidence: Evidence) {
        let now = self.now;
        // Forgotten meanwhile: it is read again.
        let Some(slot) = self.conversations.get_mut(&id) else { return self.command(id, from, asked) };
        let epoch = slot.epoch;
        let state = match &mut slot.slot.phase {
            Phase::Ready(state) => state,
            Phase::Loading => return self.park(id, Parked::Command(from, asked, evidence)),
            Phase::Withdrawn { .. } => return self.answer_now(from, &asked, Err(Code::ConversationUnavailable.into())),
        };
        // Sends keep their order: while one waits for the store, those behind it wait for it.
        if !slot.asking_id.is_empty() && evidence.id.is_none() && asked.command.is_mutation() {
            if slot.asking_id.len() >= WINDOW as usize {
                return self.answer_now(from, &asked, Err(Error::new(Code::Overloaded).after_ms(100)));
            }
            slot.asking_id.push_back((from, asked));
            return self.kept();
        }
        let line = &mut slot.slot.line;
        let mut decide = || {
            let verdict = state.decide(&asked.actor, asked.id, &asked.command, evidence, now);
            let Verdict::Append(event, reply) = verdict else { return Ok((verdict, state.head)) };
            if !line.admits(event.seq) {
                return Err(Error::new(Code::Overloaded)
                    .with_detail("too many events of this conversation wait for the log")
                    .after_ms(100));
            }
            append(state, line, event, epoch);
            Ok((Verdict::Answer(Ok(reply)), state.head))
        };
        let (verdict, head) = match decide() {
            Ok(decided) => decided,
            Err(error) => return self.answer_now(from, &asked, Err(error)),
        };
        if !line.has_no_rows() {
            Self::list_for_flush(&mut self.flush, &mut line.listed, id);
        }
        // Somebody has come back.
        let tells_of = state.has_moved();
        match verdict {
            Verdict::Answer(result) => {
                if tells_of {
                    self.list_receipts(id);
                }
                self.count_answer(&asked, &result);
                let release = match &asked.command {
                    Command::TypingStart { .. } | Command::TypingStop { .. } if result.is_ok() => {
                        let is_typing = matches!(asked.command, Command::TypingStart { .. });
                        Release::Typing(from, asked.correlation, asked.actor.user.clone(), is_typing)
                    }
                    _ => Release::Reply(from, asked.correlation, result),
                };
                self.wait_conversation(id, head, release);
            }
            Verdict::Append(..) => unreachable!("an append was turned into its answer above"),
            Verdict::Read(read) => {
                self.measures.answered(asked.command.op(), None, 0);
                self.wait_conversation(id, head, Release::Read(from, asked.correlation, Box::new(read)));
            }
            Verdict::NeedTarget(seq) => {
                let waiting = slot.targets.entry(seq).or_default();
                waiting.push((from, asked, evidence));
                let is_first = waiting.len() == 1;
                self.kept();
                if is_first {
                    // What the store is asked for must be there.
                    self.wait_conversation(id, seq, Release::Target(seq));
                }
            }
            Verdict::NeedReactions(seq, keys) => {
                self.look_at_reactions(id, seq, keys, (from, asked, evidence));
            }
            Verdict::NeedId(since) => {
                let upto = state.hot.as_ref().map_or(0, |hot| hot.ids.durable().0);
                let above = state.floor.ids();
                let (user, command_id) = (asked.actor.user.clone(), asked.id);
                let key = (from, asked.correlation);
                // Whoever asks again stays in front.
                slot.asking_id.push_front((from, asked));
                // Else it is asked when the present question is answered.
                let is_next = !std::mem::replace(&mut slot.is_asking, true);
                slot.slot.looks += u32::from(is_next);
                self.kept();
                if !is_next {
                    return;
                }
                let token = self.token();
                let done = self.answer(move |found| StoreMail::Id { token, found });
                self.store.find_id(id.into(), user, command_id, (above, since), done);
                self.reads.insert(token, Reading::Id(id, key, upto));
            }
            Verdict::NeedHot => {
                self.park(id, Parked::Command(from, asked, evidence));
                self.heat(id);
            }
        }
        self.drop_if_absent(id);
    }

    /// An idle conversation is read again, but for its members: those it keeps.
    pub(super) fn heat(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.keep_members();
        slot.slot.phase = Phase::Loading;
        self.reload(id);
    }

    /// A conversation that does not exist is not kept: anyone can name any number of ids.
    pub(super) fn drop_if_absent(&mut self, id: ConversationId) {
        if let Some(slot) = self.conversations.get_mut(&id)
            && slot.ready().is_some_and(|state| state.head == 0)
            && slot.may_go()
        {
            self.forget_conversation(id);
        }
    }

    pub(super) fn forget_conversation(&mut self, id: ConversationId) {
        if let Some(mut slot) = self.conversations.remove(&id) {
            Self::account(&mut self.bytes, &mut slot.slot.bytes, 0);
        }
    }

    pub(super) fn wait_conversation(&mut self, id: ConversationId, after: Seq, release: Release) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let after = if is(Bug::ReadsUncommitted) && is_read(&release) { 0 } else { after };
        let now = slot.line.wait(after, release);
        self.kept();
        match now {
            None => {}
            Some(release) if self.confirms_at_once => self.release_conversation(id, release),
            Some(release) => self.pump.issue(Ticket::Conversation(id, release)),
        }
    }

    /// Lets out what was decided on a head that is committed now.
    pub(super) fn release_conversation(&mut self, id: ConversationId, release: Release) {
        match release {
            Release::Reply(gateway, correlation, result) => self.reply(gateway, correlation, result),
            Release::Read(gateway, correlation, read) => {
                let begin = |shard: &mut Self| {
                    let (read, progress) = read.begin();
                    shard.go_on_reading(id, gateway, correlation, Box::new(read), progress);
                };
                self.guarded_for(Some(InHand::Command(gateway, correlation)), || id.into(), begin);
            }
            Release::Target(seq) => {
                let Some(slot) = self.conversations.get_mut(&id) else { return };
                slot.looks += 1;
                let of = slot.incarnation();
                let done = self.answer(move |page| StoreMail::Target { conversation: id, of, seq, page });
                self.store.page(PageRequest::of_one(id.into(), seq, Show::Messages), done);
            }
            Release::Head(user, known) => self.send_to_entity(&user.clone().into(), PeerMail::Heads { user, known }),
            Release::Row(token, user, told) => self.tell_row(id, token, user, told),
            Release::Typing(gateway, correlation, user, is_typing) => {
                let work = |shard: &mut Self| shard.type_on(id, (gateway, correlation), &user, is_typing);
                self.guarded_for(Some(InHand::Command(gateway, correlation)), || id.into(), work);
            }
            Release::Mentioned(user, known, counts) => {
                self.send_to_entity(&user.clone().into(), PeerMail::Mentioned { user, known, counts });
            }
            Release::Progressed(said, result) => self.answer_progress(id, said, result),
            Release::Receipts(moved) => self.publish_receipts(id, moved),
        }
    }

    // === commits

    pub(super) fn commit_conversation(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let committed = slot.line.commit();
        self.keeping.events += committed.len() as u64;
        if slot.line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id);
        }
        self.tell_everybody(id, &committed, &committed);
        while let Some(release) = self.conversations.get_mut(&id).and_then(|slot| slot.line.released()) {
            self.release_conversation(id, release);
        }
        let derive = |shard: &mut Self| {
            shard.project_conversation(id);
            if let Some(slot) = shard.conversations.get_mut(&id) {
                let bytes = slot.ready().map_or(1, |state| state.bytes());
                Self::account(&mut shard.bytes, &mut slot.slot.bytes, bytes);
            }
        };
        self.guarded(|| id.into(), derive);
        self.pay_head(id);
        self.retain(id);
        self.reload(id);
    }

    /// Sends committed events to whoever hears of them, and what belongs there to users' own logs. Who could not be told
    /// because of a panic is told after the recovery.
    fn tell_everybody(&mut self, id: ConversationId, publish: &[Pending], announce: &[Pending]) {
        // What comes later waits its turn behind what is held up.
        let is_held_up = self.conversations.get(&id).is_some_and(|slot| !slot.unpublished.is_empty());
        if (is_held_up || self.guarded(|| id.into(), |shard| shard.publish(id, publish)).is_none())
            && let Some(slot) = self.conversations.get_mut(&id)
        {
            slot.unpublished.extend_from_slice(publish);
        }
        if announce.iter().any(|pending| pending.announce)
            && self.guarded(|| id.into(), |shard| shard.announce(id, announce)).is_none()
            && let Some(slot) = self.conversations.get_mut(&id)
        {
            slot.unannounced.extend(announce.iter().filter(|pending| pending.announce).cloned());
        }
    }

    /// Sends committed events to whoever hears of them: one message for each run of events with the same audience.
    fn publish(&mut self, id: ConversationId, committed: &[Pending]) {
        let same = |a: &Pending, b: &Pending| match (&a.audience, &b.audience) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        for run in committed.chunk_by(same) {
            let (Some(last), Some(audience)) = (run.last(), &run[0].audience) else { continue };
            let events: Events = run.iter().map(|pending| Arc::clone(&pending.event)).collect();
            let head = Head { seq: last.event.seq, n: last.event.n };
            let state = self.conversations.get(&id).and_then(|slot| slot.slot.core());
            let large = state.is_some_and(Conversation::is_large);
            let since_join = state.is_none_or(|state| state.settings.history == HistoryAccess::SinceJoin);
            let shares = match &**audience {
                Audience::Users(users) if since_join => shares(state, &events, users),
                _ => Vec::new(),
            };
            let message_at = events.iter().rfind(|event| event.fact.is_message()).map_or(0, |event| event.created_at);
            let news = Arc::new(News { conversation: id, head, message_at, events, large });
            let users = match &**audience {
                Audience::Users(users) => users,
                Audience::Listeners(about) => {
                    self.broadcast(id, since_join, &news);
                    self.tell_mentioned(id, &news);
                    about
                }
            };
            self.dismiss(id, &news);
            self.end_typing(id, &news);
            self.measures.fanned_out(users.len());
            if shares.is_empty() {
                self.send_news(&news, users);
            }
            for (events, users) in shares {
                self.send_news(&Arc::new(News { events, ..News::clone(&news) }), &users);
            }
        }
    }

    /// Sends news to users, wherever they are: one mail for each shard here and for each node elsewhere.
    pub(super) fn send_news(&mut self, news: &Arc<News>, users: &[UserId]) {
        for (place, users) in self.by_place(users.iter().cloned(), UserId::partition) {
            self.send_to_place(place, PeerMail::News { news: Arc::clone(news), users });
        }
    }

    /// Who is mentioned in a large conversation hears of it, though its news go to listeners only. A mention of everybody is
    /// for whoever listens: nothing is done for each member and message.
    fn tell_mentioned(&mut self, id: ConversationId, news: &News) {
        let mentions = news.events.iter().filter_map(|event| match &event.fact {
            Fact::MessageNew { mentions, .. } | Fact::MessageUpdated { mentions, .. } => mentions.as_ref(),
            _ => None,
        });
        let mentioned: BTreeSet<&UserId> = mentions.flat_map(|mentions| &mentions.users).collect();
        for user in mentioned {
            let Some(state) = self.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
            let (after, known) = (state.head, known_head(state, user));
            let Some(counts) = state.standing(user).map(|standing| standing.counts) else { continue };
            self.wait_conversation(id, after, Release::Mentioned(user.clone(), known, counts));
        }
    }

    fn broadcast(&mut self, id: ConversationId, since_join: bool, news: &News) {
        let Some(gateways) = self.interest.get(&id).cloned() else { return };
        for gateway in gateways {
            let events = Arc::clone(&news.events);
            self.send_to_gateway(gateway, ToGateway::Broadcast { conversation: id, since_join, events });
        }
    }

    /// Who was removed listens no longer, however the conversation is delivered at the moment.
    fn dismiss(&mut self, id: ConversationId, news: &News) {
        let left = news.events.iter().filter_map(|event| match &event.fact {
            Fact::MemberLeft { user } => Some(user),
            _ => None,
        });
        for user in left {
            for gateway in self.interest.get(&id).cloned().unwrap_or_default() {
                self.send_to_gateway(gateway, ToGateway::Removed { conversation: id, user: user.clone() });
            }
        }
    }

    /// Tells users what belongs in their own logs.
    fn announce(&mut self, id: ConversationId, committed: &[Pending]) {
        for pending in committed.iter().filter(|pending| pending.announce) {
            let Some(slot) = self.conversations.get_mut(&id) else { return };
            let Some(facts) = announcements(&pending.event, id, slot.ready().map(|state| &*state)) else {
                slot.unannounced.push(pending.clone());
                continue;
            };
            if facts.is_empty() {
                continue;
            }
            slot.announcing.insert(pending.event.seq, facts.iter().cloned().collect());
            self.telling.insert(id);
            for (user, fact) in facts {
                self.send_to_entity(&user.clone().into(), PeerMail::Tell { user, fact, conversation: id });
            }
        }
    }

    /// Whoever has not said that they heard is told again: the mail, or the answer, may have been lost.
    pub(super) fn tell_again(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get(&id) else {
            self.telling.remove(&id);
            return;
        };
        let facts: Vec<(UserId, Fact)> =
            slot.announcing.values().flatten().map(|(user, fact)| (user.clone(), fact.clone())).collect();
        for (user, fact) in facts {
            self.send_to_entity(&user.clone().into(), PeerMail::Tell { user, fact, conversation: id });
        }
    }

    /// A user has heard of event `at`.
    pub(super) fn told(&mut self, id: ConversationId, at: Seq, user: &UserId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        if let Some(left) = slot.announcing.get_mut(&at) {
            left.remove(user);
            if !left.is_empty() {
                return;
            }
            slot.announcing.remove(&at);
        }
        if !slot.unannounced.is_empty() {
            return;
        }
        match slot.announcing.keys().next() {
            Some(first) => {
                let upto = first - 1;
                self.project(Projected::Other, Projection::Announced { entity: id.into(), upto });
            }
            None => {
                self.telling.remove(&id);
                self.end_announcing(id);
            }
        }
        self.guarded(|| id.into(), |shard| shard.project_conversation(id));
    }

    /// Writes what derives from committed events.
    pub(super) fn project_conversation(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let committed = slot.line.committed();
        let announced = !slot.is_announcing();
        let Phase::Ready(state) = &mut slot.slot.phase else { return };
        let mut writes = Vec::new();
        if let Some(flight) = state.hot.as_mut().and_then(|hot| hot.overlays.fly(committed)) {
            let upto = flight.upto;
            let mut rows = flight.rows(id.into());
            // They are written by one call, and durable when it is answered.
            writes.extend(rows.next().map(|row| (Projected::Derived(id, upto), row)));
            writes.extend(rows.map(|row| (Projected::Other, row)));
        }
        if slot.snapshot.is_none() && state.snapshot_due() {
            state.snapshot_taken();
            state.members.part();
            slot.snapshot = state.snapshot().map(|bytes| (state.head, bytes));
            slot.members.take_stale(state, &mut self.next_token);
        }
        slot.members.fly(id, committed, &mut writes);
        if let Some(hot) = &mut state.hot {
            hot.recent.trim(committed);
            if slot.id_block.is_none()
                && let Some((end, block)) = hot.ids.block_due(committed)
            {
                slot.id_block = Some(end);
                if is(Bug::IdsDroppedEarly) {
                    hot.ids.block_durable(end, u64::MAX / 2);
                }
                writes.push((Projected::IdBlock(id, end), Projection::IdBlock { entity: id.into(), end, block }));
            }
        }
        // A snapshot stands for everything that it reflects, so all of that must be durable first.
        if let Some((seq, _)) = &slot.snapshot
            && (*seq <= committed || is(Bug::SnapshotAhead))
            && announced
            && state.is_derived_upto(*seq)
            && slot.members.are_durable()
            && let Some((seq, bytes)) = slot.snapshot.take()
        {
            writes.push((Projected::Snapshot(id, seq), Projection::Snapshot { entity: id.into(), seq, bytes }));
        }
        self.projections.extend(writes);
        self.ask_overlays(id);
    }

    /// The rows that derive from the conversation's events up to `upto` are durable.
    pub(super) fn derived_durable(&mut self, id: ConversationId, upto: Seq) {
        let land = |shard: &mut Self| {
            let Some(slot) = shard.conversations.get_mut(&id) else { return };
            // While a read is under way its page may be older than these rows: memory keeps what they reflect.
            let is_looked_at = slot.looks > 0;
            if let Some(hot) = slot.ready().and_then(|state| state.hot.as_mut()) {
                hot.overlays.landed(upto);
                if !is_looked_at {
                    hot.overlays.forget();
                }
            }
            shard.project_conversation(id);
        };
        self.guarded(|| id.into(), land);
    }

    pub(super) fn id_block_durable(&mut self, id: ConversationId, end: Seq) {
        let now = self.now;
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.id_block = None;
        let forget = |shard: &mut Self| {
            if let Some(state) = shard.conversations.get_mut(&id).and_then(|slot| slot.slot.ready())
                && let Some(hot) = &mut state.hot
            {
                hot.ids.block_durable(end, now);
            }
            shard.project_conversation(id);
        };
        self.guarded(|| id.into(), forget);
    }

    // === reads

    pub(super) fn go_on_reading(
        &mut self,
        id: ConversationId,
        gateway: GatewayId,
        correlation: Correlation,
        read: Box<Read>,
        progress: Progress,
    ) {
        match progress {
            Progress::Done(result) => self.reply(gateway, correlation, result),
            Progress::Reacted(request) => self.read_reacted(id, gateway, correlation, read, request),
            Progress::More(request) => {
                let token = self.token();
                let done = self.answer(move |page| StoreMail::Page { token, page });
                self.reads.insert(token, Reading::Page(gateway, correlation, read, id));
                self.kept();
                self.store.page(request, done);
            }
        }
    }

    pub(super) fn page_read(&mut self, token: u64, page: Result<Page, store::Error>) {
        let Some(Reading::Page(gateway, correlation, read, id)) = self.reads.remove(&token) else { return };
        match page {
            Ok(page) => {
                let go_on = |shard: &mut Self| {
                    let (read, progress) = read.take(page);
                    shard.go_on_reading(id, gateway, correlation, Box::new(read), progress);
                };
                self.guarded_for(Some(InHand::Command(gateway, correlation)), || id.into(), go_on);
            }
            Err(error) => {
                let error = self.store_failed(id, &error);
                self.reply(gateway, correlation, Err(error));
            }
        }
    }

    pub(super) fn id_found(&mut self, token: u64, found: Result<Option<StoredId>, store::Error>) {
        let Some(Reading::Id(id, key, upto)) = self.reads.remove(&token) else { return };
        self.looked(id);
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.is_asking = false;
        let is_first = slot.asking_id.front().is_some_and(|(from, asked)| (*from, asked.correlation) == key);
        if !is_first {
            return self.judge_those_behind(id);
        }
        let Some((from, asked)) = slot.asking_id.pop_front() else { return };
        match found {
            Ok(found) => {
                let evidence = Evidence { id: Some((found.as_ref().map(Into::into), upto)) };
                self.judge(id, from, asked, evidence);
            }
            Err(error) => {
                let error = self.store_failed(id, &error);
                self.answer_now(from, &asked, Err(error.clone()));
                // Those behind it share its fate. They would overtake it if this answer got lost: then its gateway asks again
                // for it, and not for them (seed 5563).
                self.refuse_asking(id, &error);
            }
        }
        self.judge_those_behind(id);
    }

    /// Answers everything that waits for questions about ids.
    fn refuse_asking(&mut self, id: ConversationId, error: &Error) {
        let asking = self.conversations.get_mut(&id).map(|slot| std::mem::take(&mut slot.asking_id));
        for (from, asked) in asking.into_iter().flatten() {
            self.answer_now(from, &asked, Err(error.clone()));
        }
    }

    /// Judges what waited behind a question to the store, up to the next question.
    fn judge_those_behind(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        if slot.is_asking {
            return;
        }
        let mut behind = std::mem::take(&mut slot.asking_id);
        while let Some((from, asked)) = behind.pop_front() {
            self.judge(id, from, asked, Evidence::default());
            if let Some(slot) = self.conversations.get_mut(&id)
                && !slot.asking_id.is_empty()
            {
                slot.asking_id.append(&mut behind);
                return;
            }
        }
    }

    pub(super) fn target_found(
        &mut self,
        id: ConversationId,
        of: Incarnation,
        seq: Seq,
        page: Result<Page, store::Error>,
    ) {
        if !self.is_of_present_state(id, of) {
            return;
        }
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        // Judged whatever becomes of the state: without one they wait for it.
        let waiting = slot.targets.remove(&seq).unwrap_or_default();
        match page {
            Ok(mut page) => {
                let remember = |shard: &mut Self| {
                    if let Some(state) = shard.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) {
                        let overlay = page.overlays.pop().map(|(_, overlay)| overlay);
                        state.remember_target(seq, page.events.pop().map(|event| (event, overlay)));
                    }
                };
                self.guarded(|| id.into(), remember);
                // What became durable meanwhile is forgotten only after it was merged with what was found.
                self.looked(id);
                for (from, asked, evidence) in waiting {
                    self.judge(id, from, asked, evidence);
                }
            }
            Err(error) => {
                let error = self.store_failed(id, &error);
                self.looked(id);
                for (from, asked, _) in waiting {
                    self.answer_now(from, &asked, Err(error.clone()));
                }
            }
        }
    }

    /// Whether what was looked up is for the present state. For a former one it is back, and that is all: whoever waited for it is
    /// judged anew.
    pub(super) fn is_of_present_state(&mut self, id: ConversationId, of: Incarnation) -> bool {
        let present = self.conversations.get(&id).map(|slot| slot.incarnation());
        if present.is_some_and(|(epoch, _)| epoch == of.0) && present != Some(of) {
            self.looked(id);
        }
        present == Some(of)
    }

    /// A read that is merged with memory is back.
    pub(super) fn looked(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.slot.looks = slot.slot.looks.saturating_sub(1);
        if slot.slot.looks == 0 {
            let forget = |shard: &mut Self| {
                let state = shard.conversations.get_mut(&id).and_then(|slot| slot.ready());
                if let Some(hot) = state.and_then(|state| state.hot.as_mut()) {
                    hot.overlays.forget();
                }
            };
            self.guarded(|| id.into(), forget);
        }
    }

    pub(super) fn store_failed(&mut self, id: ConversationId, error: &store::Error) -> Error {
        tracing::error!(event = "read_failed", conversation = %id, %error);
        match error {
            store::Error::Unavailable(_) => Error::new(Code::Unavailable).after_ms(500),
            store::Error::Corrupt { .. } => {
                self.withdraw(id, Millis::MAX);
                Code::ConversationUnavailable.into()
            }
        }
    }

    // === heads

    /// A user's shard asks where the conversation stands.
    pub(super) fn ask_head(&mut self, id: ConversationId, user: UserId) {
        let Some(Parked::Head(user)) = self.conversation_or_park(id, Parked::Head(user)) else { return };
        if self.guarded(|| id.into(), |shard| shard.tell_head(id, &user)).is_none() {
            // By now it is being read again, or withdrawn.
            self.ask_head(id, user);
        }
    }

    fn tell_head(&mut self, id: ConversationId, user: &UserId) {
        let Some(state) = self.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
        let after = state.head;
        let known = known_head(state, user);
        self.wait_conversation(id, after, Release::Head(user.clone(), known));
        self.drop_if_absent(id);
    }

    /// A user's shard asks what their inbox shows of the conversation.
    pub(super) fn ask_row(&mut self, id: ConversationId, token: u64, user: UserId) {
        let Some(Parked::Row(token, user)) = self.conversation_or_park(id, Parked::Row(token, user)) else { return };
        if self.guarded(|| id.into(), |shard| shard.show_row(id, token, &user)).is_none() {
            // By now it is being read again, or withdrawn.
            self.ask_row(id, token, user);
        }
    }

    fn show_row(&mut self, id: ConversationId, token: u64, user: &UserId) {
        let Some(state) = self.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
        let after = state.head;
        let told = state.standing(user).map_or(Told::Stranger, |standing| Told::Standing(Box::new(standing)));
        self.wait_conversation(id, after, Release::Row(token, user.clone(), told));
        self.drop_if_absent(id);
    }

    /// A gateway has, or no longer has, listeners.
    pub(super) fn listen(&mut self, gateway: GatewayId, id: ConversationId, listening: bool) {
        let gateways = self.interest.entry(id).or_default();
        gateways.retain(|known| *known != gateway);
        if listening {
            gateways.push(gateway);
        }
        if gateways.is_empty() {
            self.interest.remove(&id);
        }
    }

    // === recovery and supervision

    pub(super) fn load_conversation(&mut self, id: ConversationId) {
        let partition = id.partition();
        // Asked again where it is owned, whoever asked here.
        let Some(epoch) = self.tenures.open(partition) else { return };
        let now = self.now;
        self.recent.forget(id);
        if !self.conversations.contains_key(&id) {
            self.conversations.insert(id, ConversationSlot::loading(now, (partition, epoch)));
        }
        self.reload(id);
    }

    /// Reads the conversation's log again, as soon as every row that this session sent for it is durable.
    pub(super) fn reload(&mut self, id: ConversationId) {
        if self.conversations.get_mut(&id).is_some_and(|slot| slot.begin_reading()) {
            self.recover(id.into());
        }
    }

    pub(super) fn conversation_recovered(&mut self, id: ConversationId, result: Result<Recovered, store::Error>) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        slot.reading = false;
        if !matches!(slot.phase, Phase::Loading) {
            return self.turn_away(id, &Code::ConversationUnavailable.into());
        }
        let recovered = match result {
            Ok(recovered) => recovered,
            Err(error) => return self.conversation_not_read(id, &error),
        };
        if let Some((recovered, members)) = self.members_to_come(id, recovered) {
            self.rebuild_conversation(id, recovered, members);
        }
    }

    pub(super) fn conversation_not_read(&mut self, id: ConversationId, error: &store::Error) {
        let error = self.store_failed(id, error);
        self.turn_away(id, &error);
    }

    /// Everything that stands of the conversation is there.
    pub(super) fn rebuild_conversation(&mut self, id: ConversationId, recovered: Recovered, members: Gathered) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let (epoch, trusting) = (slot.epoch, self.confirms_at_once);
        if let Some((seq, _)) = &recovered.snapshot {
            slot.retaining.keeps(*seq);
        }
        let rebuilt = self.guarded(|| id.into(), |_| rebuild(id, epoch, recovered, members, trusting));
        let Some(rebuilt) = rebuilt else { return };
        match rebuilt {
            Ok(rebuilt) => self.conversation_rebuilt(id, rebuilt),
            Err(recovery::Trouble::Superseded { .. }) => {
                self.die(format!("a newer owner has written to conversation {id}"))
            }
            Err(trouble) => {
                tracing::error!(event = "conversation_withdrawn", conversation = %id, %trouble);
                self.withdraw(id, Millis::MAX);
                self.turn_away(id, &Code::ConversationUnavailable.into());
            }
        }
    }

    fn conversation_rebuilt(&mut self, id: ConversationId, mut rebuilt: Rebuilt<Conversation>) {
        let owes = self.unannounced.contains(&EntityId::Conversation(id));
        let bytes = rebuilt.bytes;
        let events = std::mem::take(&mut rebuilt.events);
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let (is_new_to_watch, epoch) = (slot.slot.bytes == 0, slot.epoch);
        if slot.slot.answer_again(rebuilt) {
            self.pump.issue(Ticket::Flight(id.into(), epoch));
        }
        if slot.slot.line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id);
        }
        slot.id_block = None;
        slot.snapshot = None;
        slot.retaining.forget();
        slot.members.forget_state();
        Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
        if is_new_to_watch {
            self.watch(id);
        }
        if owes {
            // An earlier life may have died between this commit and telling the users: they are told again.
            let owed: Vec<Pending> = events
                .into_iter()
                .filter(|event| is_announced(&event.fact))
                .map(|event| Pending { event, audience: None, announce: true, origin: 0 })
                .collect();
            if owed.is_empty() {
                // Everybody had heard; only the note of it was lost.
                self.end_announcing(id);
            }
            self.tell_everybody(id, &[], &owed);
        }
        self.guarded(|| id.into(), |shard| shard.carry_over(id));
        self.catch_up(id);
        self.pay_head(id);
        self.guarded(|| id.into(), |shard| shard.project_conversation(id));
        // Each while the others still wait: a conversation that does not exist is kept for them. What waits anew meanwhile
        // waits behind them.
        let waiting = self.conversations.get(&id).map_or(0, |slot| slot.slot.parked.len());
        for _ in 0..waiting {
            let Some(parked) = self.conversations.get_mut(&id).and_then(|slot| slot.slot.parked.pop_front()) else {
                break;
            };
            match parked {
                Parked::Command(from, asked, evidence) if self.now <= asked.deadline => {
                    self.judge(id, from, asked, evidence)
                }
                Parked::Command(from, asked, _) => self.answer_now(from, &asked, Err(Code::Aborted.into())),
                Parked::Head(user) => self.ask_head(id, user),
                Parked::Row(token, user) => self.ask_row(id, token, user),
                Parked::Said(said) => self.hear_progress(id, said),
            }
        }
        self.retain(id);
        self.drop_if_absent(id);
    }

    /// Lets out what a panic has held up.
    fn catch_up(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let (publish, announce) = (std::mem::take(&mut slot.unpublished), std::mem::take(&mut slot.unannounced));
        if !publish.is_empty() || !announce.is_empty() {
            self.tell_everybody(id, &publish, &announce);
        }
        while let Some(release) = self.conversations.get_mut(&id).and_then(|slot| slot.line.released()) {
            self.release_conversation(id, release);
        }
    }

    /// Answers everything that waits for a conversation that cannot be read.
    fn turn_away(&mut self, id: ConversationId, error: &Error) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let parked: Vec<Parked> = slot.slot.parked.drain(..).collect();
        let targets = std::mem::take(&mut slot.targets);
        let reacting = slot.reacting.drain();
        self.refuse_asking(id, error);
        for parked in parked {
            self.refuse_parked(id, parked, error);
        }
        for (from, asked, _) in targets.into_values().flatten().chain(reacting) {
            self.answer_now(from, &asked, Err(error.clone()));
        }
        // The next command tries again.
        if let Some(slot) = self.conversations.get(&id)
            && matches!(slot.phase, Phase::Loading)
            && slot.may_go()
        {
            self.forget_conversation(id);
        }
    }

    fn withdraw(&mut self, id: ConversationId, until: Millis) {
        if let Some(slot) = self.conversations.get_mut(&id) {
            slot.slot.phase = Phase::Withdrawn { until };
            self.measures.restarted(&id.into(), "withdrawn");
        }
    }

    /// The state is lost; what surrounds it is put in order.
    pub(super) fn conversation_panicked(&mut self, id: ConversationId) {
        let now = self.now;
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let lost = slot.lose_state(now);
        slot.snapshot = None;
        slot.members.forget_state();
        if slot.line.can_fly() {
            // The panic may have come between a row and its listing.
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id);
        }
        match lost {
            Lost::Mendable => {}
            Lost::Hopeless => {
                self.withdraw(id, now + WITHDRAWN_MS);
                return self.turn_away(id, &Code::ConversationUnavailable.into());
            }
            Lost::Withdrawn => return,
        }
        // Mutations that waited for a question about an id come first: what came meanwhile waits behind them (seed 825). The
        // answer to the question, when it comes, counts for nothing.
        for (from, asked) in std::mem::take(&mut slot.asking_id).into_iter().rev() {
            slot.slot.parked.push_front(Parked::Command(from, asked, Evidence::default()));
        }
        // Commands that waited for a look at a message, or at reactions, are judged anew.
        let (targets, reacting) = (std::mem::take(&mut slot.targets), slot.reacting.drain());
        for (from, asked, evidence) in targets.into_values().flatten().chain(reacting) {
            self.park(id, Parked::Command(from, asked, evidence));
        }
        self.reload(id);
    }

    /// Nothing of what is on its way was written: whoever waits is told so, and the log is read again.
    pub(super) fn conversation_lost(&mut self, id: ConversationId, error: &Error) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let released = slot.slot.line.give_up();
        slot.keep_for_later();
        slot.slot.phase = Phase::Loading;
        slot.snapshot = None;
        slot.members.forget_state();
        let (targets, reacting) = (std::mem::take(&mut slot.targets), slot.reacting.drain());
        for release in released {
            match release {
                Release::Reply(gateway, correlation, _) | Release::Read(gateway, correlation, _) => {
                    self.reply(gateway, correlation, Err(error.clone()));
                }
                Release::Head(user, _) => self.park(id, Parked::Head(user)),
                Release::Row(token, user, _) => self.park(id, Parked::Row(token, user)),
                Release::Typing(gateway, correlation, ..) => self.reply(gateway, correlation, Err(error.clone())),
                Release::Progressed(said, _) => self.park(id, Parked::Said(said)),
                Release::Target(_) | Release::Mentioned(..) | Release::Receipts(_) => {}
            }
        }
        for (from, asked, _) in targets.into_values().flatten().chain(reacting) {
            self.answer_now(from, &asked, Err(error.clone()));
        }
        self.refuse_asking(id, error);
        self.measures.restarted(&id.into(), "not_written");
        self.reload(id);
    }

    // === rest

    /// Looks at a conversation that may have gone idle; says when to look again, and when it was used last. `used` is
    /// when it had been used last when it was looked at before.
    pub(super) fn rest_conversation(&mut self, id: ConversationId, used: Millis) -> Option<(Millis, Millis)> {
        let (now, idle_ms, crowded) = (self.now, self.settings.idle_ms, self.is_crowded());
        let slot = self.conversations.get_mut(&id)?;
        let idle_at = slot.used + idle_ms;
        let in_use = idle_at > now && (!crowded || slot.used > used);
        if in_use || !slot.may_go() {
            let bytes = slot.ready().map_or(1, |state| state.bytes());
            Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
            let again = Some((idle_at.max(now + 1000), slot.used));
            // It may owe something and have failed to be read.
            self.reload(id);
            return again;
        }
        self.snapshot_before_rest(id);
        let slot = self.conversations.get_mut(&id)?;
        let last_used = slot.used;
        if !slot.members.is_quiet() {
            // Its snapshot waits for their rows.
            return Some((now + 1000, last_used));
        }
        match slot.slot.ready() {
            Some(state) if !state.can_cool() => {
                // The store may have failed to say what there was before.
                self.guarded(|| id.into(), |shard| shard.ask_overlays(id));
                Some((now + 1000, last_used))
            }
            Some(state) if !crowded => {
                state.cool();
                let bytes = state.bytes();
                Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
                Some((now + IDLE_KEPT * idle_ms, last_used))
            }
            _ => {
                // What is on its way to the store must be there before the conversation is read again.
                if self.keep_receipts(id) {
                    return Some((now + 1000, last_used));
                }
                self.note_recent(id);
                self.forget_conversation(id);
                None
            }
        }
    }

    /// A conversation that has moved on since its last snapshot writes one, so that it is cheap to read again.
    pub(super) fn snapshot_before_rest(&mut self, id: ConversationId) {
        let everywhere_ms = self.settings.retention_ms;
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let announced = !slot.is_announcing();
        let complete = slot.line.has_no_rows() && announced && slot.members.are_durable();
        let Some(state) = slot.ready() else { return };
        if complete && state.can_cool() && state.snapshot_due_at_rest(everywhere_ms) {
            state.members.part();
            let Some(bytes) = state.snapshot() else { return };
            let seq = state.head;
            state.snapshot_taken();
            if state.members.are_apart() {
                // Behind their rows.
                let Some(slot) = self.conversations.get_mut(&id) else { return };
                let Phase::Ready(state) = &mut slot.slot.phase else { return };
                slot.snapshot = Some((seq, bytes));
                slot.members.take_stale(state, &mut self.next_token);
                self.project_conversation(id);
            } else {
                self.project(Projected::Snapshot(id, seq), Projection::Snapshot { entity: id.into(), seq, bytes });
            }
        }
    }
}

/// Whether an answer only shows what is there.
const fn is_read(release: &Release) -> bool {
    matches!(release, Release::Read(..))
}

fn rebuild(
    id: ConversationId,
    epoch: Epoch,
    recovered: Recovered,
    members: Gathered,
    trusting: bool,
) -> Result<Rebuilt<Conversation>, recovery::Trouble> {
    let mut state = match recovered.snapshot {
        Some((_, bytes)) => Conversation::from_snapshot(id, bytes)?,
        None => Conversation::absent(id),
    };
    members.install(&mut state)?;
    if let Some(hot) = &mut state.hot {
        hot.ids.recall(&recovered.prints);
    }
    let mut receipts = Vec::with_capacity(recovered.receipts.len());
    for stored in &recovered.receipts {
        receipts.push((stored.user()?, Got::from(stored)));
    }
    let complete = |state: &mut Conversation| {
        state.members.caught_up();
        receipts.iter().for_each(|(user, got)| state.restore(user, *got));
    };
    rebuild::rebuild(state, epoch, trusting, recovered.rows, complete)
}
