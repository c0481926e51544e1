//! Driving users.

use chappe_schema::{
    error::{Code, Error},
    event::{Event, Fact},
    id::{Change, ConnectionSlot, ConversationId, EntityId, Epoch, GatewayId, Millis, Partition, Seq, UserId},
    inbox::Counts,
    limit::{USER_CONNECTIONS_MAX, WINDOW},
    presence::{Shown, Watch},
    wire::{Asked, AskedAccess, Connecting, Correlation, Head, Heads, ToGateway},
};
use smallvec::SmallVec;
use std::{collections::BTreeMap, sync::Arc};

use super::{
    InHand, News, PeerMail, Phase, Projected, Shard, Slot, Ticket, UserRelease, WITHDRAWN_MS,
    inbox::Waiting,
    line::Pending,
    rebuild::{self, Rebuilt},
    supervision::Lost,
};
use crate::{
    pace::idle_snapshot_events,
    presence::Watching,
    recovery,
    store::{self, Projection, Recovered},
    user::{Client, Connection, Moved, User},
};

/// What waits until a user is ready, or until the heads are known.
pub(super) enum Parked {
    Connect(GatewayId, Arc<Connecting>),
    Inbox(GatewayId, Arc<Asked>),
    Tell(Fact, ConversationId),
    News(Arc<News>),
    AskAccess(GatewayId, Arc<AskedAccess>),
    /// Somebody looks at the user.
    Watch(UserId, Watch, Option<Shown>),
    /// A shard asks how the user is seen.
    AskSeen(u64, UserId, Watch),
    /// The user has read up to there; what is left.
    Read(ConversationId, u64, Counts),
}

/// Connections that hear of something, by gateway: most nodes have one or two.
#[derive(Default)]
pub(super) struct Recipients(SmallVec<[(GatewayId, Vec<ConnectionSlot>); 2]>);

impl Recipients {
    pub(super) fn add<'a>(&mut self, clients: impl IntoIterator<Item = &'a Client>) {
        for Client { connection, .. } in clients {
            match self.0.iter_mut().find(|(gateway, _)| *gateway == connection.gateway) {
                Some((_, slots)) => slots.push(connection.slot),
                None => self.0.push((connection.gateway, vec![connection.slot])),
            }
        }
    }

    /// Takes connections out again.
    fn remove(&mut self, clients: &[Client]) {
        let is_theirs = |gateway, slot| {
            clients.iter().any(|Client { connection, .. }| (connection.gateway, connection.slot) == (gateway, slot))
        };
        for (gateway, slots) in &mut self.0 {
            slots.retain(|slot| !is_theirs(*gateway, *slot));
        }
        self.0.retain(|(_, slots)| !slots.is_empty());
    }
}

impl IntoIterator for Recipients {
    type Item = (GatewayId, Vec<ConnectionSlot>);
    type IntoIter = smallvec::IntoIter<[Self::Item; 2]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// How news stand to what a user's connections have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// They come next.
    Follows,
    /// Others were lost before them.
    Jumps,
    /// They have been told already.
    Known,
}

/// What a user's connections have been told of conversations that the user has not joined as far as is known here.
type ToldHeads = BTreeMap<ConversationId, Head>;

/// Most of them. At the brim some are forgotten, and the next news of those may be taken for the first.
const TOLD_HEADS_MAX: usize = 1_024;

fn note_told(told: &mut ToldHeads, conversation: ConversationId, head: Head) {
    told.insert(conversation, head);
    if told.len() > TOLD_HEADS_MAX {
        told.pop_first();
    }
}

impl Path {
    /// `known` is how far connections have been told of the conversation, if of anything.
    fn of(news: &News, user: &UserId, known: Option<Head>) -> Self {
        match (known, news.events.first()) {
            (Some(known), _) if news.head.seq <= known.seq => Self::Known,
            (Some(known), Some(first)) if first.seq == known.seq + 1 => Self::Follows,
            (None, Some(first)) if begins_or_ends(&first.fact, user) => Self::Follows,
            _ => Self::Jumps,
        }
    }
}

/// Whether it is the first that a user hears of a conversation, or the last.
fn begins_or_ends(fact: &Fact, user: &UserId) -> bool {
    match fact {
        Fact::ConversationCreated { members, .. } => members.iter().any(|(member, _)| member == user),
        Fact::MemberJoined { user: member, .. } | Fact::MemberLeft { user: member } => member == user,
        Fact::ConversationDeleted => true,
        _ => false,
    }
}

/// A user and what surrounds them.
pub(super) struct UserSlot {
    pub(super) slot: Slot<User, Parked, UserRelease>,
    /// Connections of a user whose state was lost and is being read again. Nearly always none, so that they have no room here.
    pub(super) saved: Vec<Client>,
    /// Connections that are to be registered, wherever their request waits: who is gone by then is not.
    expected: SmallVec<[(Connection, Correlation); 2]>,
    /// Requests that wait until conversations have said where they stand.
    pub(super) waiting: Vec<Waiting>,
    /// What has moved on while the user was not in memory, if somebody has watched; until they are.
    missed: Option<Vec<ConversationId>>,
    /// Where conversations stand, as far as connections have been told, that the user has not joined as far as their log says; of the
    /// others the user's head of them tells. Only where news may get lost.
    told: ToldHeads,
    /// Whether somebody wants to know where the user's conversations stand.
    pub(super) attended: bool,
    /// When large conversations were last asked.
    pub(super) large_asked_at: Millis,
    /// Rows of the inbox on their way to the store.
    flushing: usize,
    /// At whom the user's connections look, if at anybody.
    pub(super) watching: Option<Box<Watching>>,
    /// Whether the shard has the user on its list of changed inboxes.
    pub(super) is_noted: bool,
}

impl std::ops::Deref for UserSlot {
    type Target = Slot<User, Parked, UserRelease>;
    fn deref(&self) -> &Self::Target {
        &self.slot
    }
}

impl std::ops::DerefMut for UserSlot {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.slot
    }
}

impl UserSlot {
    pub(super) fn loading(now: Millis, tenure: (Partition, Epoch)) -> Self {
        Self {
            slot: Slot::loading(now, tenure),
            saved: Vec::new(),
            expected: SmallVec::new(),
            waiting: Vec::new(),
            missed: None,
            told: ToldHeads::new(),
            attended: false,
            large_asked_at: 0,
            flushing: 0,
            watching: None,
            is_noted: false,
        }
    }

    /// Whether nothing is on its way in or out, so that the slot may be dropped.
    pub(super) fn may_go(&self) -> bool {
        let nobody_waits = self.waiting.is_empty() && self.saved.is_empty() && self.expected.is_empty();
        self.is_quiet() && nobody_waits && self.flushing == 0
    }

    /// Takes an event that the user's state has brought forth into that state, and into the line to the log.
    pub(super) fn append(&mut self, event: Arc<Event>, flush: &mut Vec<EntityId>) {
        let Slot { phase: Phase::Ready(user), line, epoch, .. } = &mut self.slot else { return };
        user.apply(&event);
        // A later owner must know what the next event stands on.
        user.origin = *epoch;
        line.push(Pending { event, audience: None, announce: false, origin: *epoch });
        if line.can_fly() {
            Shard::list_for_flush(flush, &mut line.listed, user.id.clone());
        }
    }

    /// The inbox has changed: whoever is connected hears of it with the next tick, for the next heartbeat.
    pub(super) fn note_change(&mut self, noted: &mut Vec<UserId>) {
        if let Phase::Ready(user) = &self.slot.phase
            && !self.is_noted
            && !user.connections.is_empty()
        {
            self.is_noted = true;
            noted.push(user.id.clone());
        }
    }

    /// Only a user whose connections outlive their state can miss something: heads are asked for after a load.
    fn misses_news(&self) -> bool {
        matches!(self.phase, Phase::Loading) && !self.saved.is_empty()
    }

    /// The state is about to go: the connections stay, and who waits for heads waits for the state instead.
    fn save_connections(&mut self) {
        if let Some(user) = self.slot.ready() {
            self.saved = std::mem::take(&mut user.connections).into_vec();
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.slot.parked.extend(waiting.into_iter().map(|waiting| waiting.parked));
    }

    fn expects(&self, gateway: GatewayId, connecting: &Connecting) -> bool {
        let connection = Connection { gateway, slot: connecting.connection };
        self.expected.contains(&(connection, connecting.correlation))
    }
}

impl Shard {
    /// The user, if ready; else `parked` waits for them.
    pub(super) fn user_or_park(&mut self, id: &UserId, parked: Parked) -> Option<Parked> {
        let now = self.now;
        let slot = match self.users.get_mut(id) {
            Some(slot) => slot,
            None => {
                let Some(tenure) = self.user_tenure(id) else {
                    self.refuse_question(id, parked, &Code::Unavailable.into());
                    return None;
                };
                self.new_user(id, tenure);
                self.reload_user(id);
                // Just inserted; the entry API would clone the id on every call.
                self.users.get_mut(id)?
            }
        };
        slot.used = now;
        match slot.phase {
            Phase::Ready(_) => return Some(parked),
            Phase::Withdrawn { until } if now < until => self.refuse_question(id, parked, &Code::Unavailable.into()),
            Phase::Withdrawn { .. } => {
                slot.slot.phase = Phase::Loading;
                slot.slot.parked.push_back(parked);
                self.kept();
                self.reload_user(id);
            }
            // What must not be lost waits in any number: it is bounded by what other entities have in hand.
            Phase::Loading
                if slot.parked.len() >= WINDOW as usize
                    && !matches!(parked, Parked::Tell(..) | Parked::News(_) | Parked::Read(..)) =>
            {
                self.refuse_question(id, parked, &Error::new(Code::Overloaded).after_ms(500));
            }
            Phase::Loading => {
                slot.slot.parked.push_back(parked);
                self.kept();
                // Already under way, unless an earlier attempt has failed.
                self.reload_user(id);
            }
        }
        None
    }

    fn new_user(&mut self, id: &UserId, tenure: (Partition, Epoch)) {
        let mut slot = UserSlot::loading(self.now, tenure);
        let missed = self.resting.wake(id);
        // Where others are owners too, not all news may have come here.
        slot.missed = missed.filter(|_| self.confirms_at_once);
        self.users.insert(id.clone(), slot);
    }

    /// Where the user lives, and the epoch under which this session owns them, if it does.
    fn user_tenure(&self, id: &UserId) -> Option<(Partition, Epoch)> {
        let partition = id.partition();
        Some((partition, self.tenures.open(partition)?))
    }

    fn refuse_question(&mut self, user: &UserId, parked: Parked, error: &Error) {
        match parked {
            Parked::Connect(gateway, connecting) => {
                self.connected(user, gateway, connecting.correlation, Err(error.clone()));
            }
            Parked::Inbox(gateway, asked) => self.reply(gateway, asked.correlation, Err(error.clone())),
            Parked::AskAccess(gateway, asked) => self.tell_access(gateway, asked.correlation, Err(error.clone())),
            // Where it may get lost on the way, it is told again anyway, to whoever owns the user then.
            Parked::Tell(..) if !self.confirms_at_once => {}
            Parked::Tell(fact, conversation) => self.postponed.push((user.clone(), fact, conversation)),
            // Clients say again what they have read; watches are renewed, and questions are asked again.
            Parked::News(_) | Parked::Read(..) | Parked::Watch(..) | Parked::AskSeen(..) => {}
        }
    }

    // === requests

    /// A connection of the user exists.
    pub(super) fn connect(&mut self, from: GatewayId, connecting: Arc<Connecting>) {
        let id = &connecting.actor.user;
        if !self.users.contains_key(id)
            && let Some(tenure) = self.user_tenure(id)
        {
            // The entry API would clone the id on every call.
            self.new_user(id, tenure);
        }
        if let Some(slot) = self.users.get_mut(id) {
            let connection = Connection { gateway: from, slot: connecting.connection };
            slot.expected.push((connection, connecting.correlation));
        }
        self.go_on_connecting(from, connecting);
    }

    fn go_on_connecting(&mut self, from: GatewayId, connecting: Arc<Connecting>) {
        let id = connecting.actor.user.clone();
        let request = InHand::Connect(from, connecting.correlation);
        let work = |shard: &mut Self| shard.try_to_connect(&id, from, connecting);
        self.guarded_for(Some(request), || id.clone().into(), work);
    }

    fn try_to_connect(&mut self, id: &UserId, from: GatewayId, connecting: Arc<Connecting>) {
        if !self.users.get(id).is_some_and(|slot| slot.expects(from, &connecting)) {
            // Gone, and nobody waits for an answer.
            return self.kept();
        }
        if self.is_stopping() {
            let error = Error::new(Code::GoingAway).after_ms(1000);
            return self.connected(id, from, connecting.correlation, Err(error));
        }
        let Some(Parked::Connect(from, connecting)) = self.user_or_park(id, Parked::Connect(from, connecting)) else {
            return;
        };
        self.doubt_heads(id, &connecting);
        let needs = self.heads_for_connection(id, &connecting);
        self.wait_for_heads(id, needs, false, Parked::Connect(from, connecting));
    }

    /// Answers a connection, which is expected no longer.
    pub(super) fn connected(
        &mut self,
        user: &UserId,
        gateway: GatewayId,
        correlation: Correlation,
        result: Result<Heads, Error>,
    ) {
        if self.in_hand == Some(InHand::Connect(gateway, correlation)) {
            self.kept();
        }
        if let Some(slot) = self.users.get_mut(user) {
            slot.expected.retain(|(connection, asked)| connection.gateway != gateway || *asked != correlation);
        }
        self.send_to_gateway(gateway, ToGateway::Connected(correlation, result));
    }

    /// Everything that the user's state shows is committed: the connection is registered and answered in one step, so
    /// that no event reaches it before its answer, and none is missed after.
    fn register(&mut self, from: GatewayId, connecting: Arc<Connecting>) {
        let now = self.now;
        let id = &connecting.actor.user;
        let Some(slot) = self.users.get_mut(id) else { return };
        if !slot.expects(from, &connecting) {
            return self.kept();
        }
        let committed = slot.line.committed();
        let Some(user) = slot.slot.ready() else {
            slot.slot.parked.push_back(Parked::Connect(from, connecting));
            return self.kept();
        };
        if user.head > committed {
            let (head, id) = (user.head, id.clone());
            return self.wait_user(&id, head, UserRelease::Connect(from, connecting));
        }
        let connection = Connection { gateway: from, slot: connecting.connection };
        let actor = &connecting.actor;
        let result = if let Err(refused) = user.check_access(actor, now) {
            Err(refused)
        } else if user.connect(Client::new(connection, actor, now), USER_CONNECTIONS_MAX) {
            // Its answer tells it of what the user is known to have joined; of the rest it has not been told here.
            slot.told.clear();
            Ok(self.heads(&connecting))
        } else {
            Err(Error::new(Code::ConnectionLimit)
                .with_detail(format!("at most {USER_CONNECTIONS_MAX} connections of one user")))
        };
        self.connected(&connecting.actor.user, from, connecting.correlation, result);
        self.seen(&connecting.actor.user);
    }

    /// A connection of the user is gone.
    pub(super) fn disconnect(&mut self, id: &UserId, connection: Connection) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.used = now;
        self.forget_connections(id, |known| known == connection);
    }

    pub(super) fn forget_gateway(&mut self, gateway: GatewayId) {
        let users: Vec<UserId> = self.users.keys().cloned().collect();
        for id in users {
            self.forget_connections(&id, |known| known.gateway == gateway);
        }
    }

    pub(super) fn forget_connections(&mut self, id: &UserId, is_gone: impl Fn(Connection) -> bool) {
        let forget = |shard: &mut Self| {
            let now = shard.now;
            if let Some(user) = shard.users.get_mut(id).and_then(|slot| slot.slot.ready())
                && user.forget(now, &is_gone)
            {
                shard.seen(id);
                shard.look(id);
            }
        };
        self.guarded(|| id.clone().into(), forget);
        // After that: a panic has saved them.
        if let Some(slot) = self.users.get_mut(id) {
            slot.saved.retain(|saved| !is_gone(saved.connection));
            slot.expected.retain(|(expected, _)| !is_gone(*expected));
        }
    }

    // === news

    /// A conversation of these users has moved on. Who is not loaded needs no news: the heads are asked for after a load.
    pub(super) fn news(&mut self, news: &Arc<News>, users: &[UserId]) {
        let (mut recipients, mut behind) = (Recipients::default(), Recipients::default());
        for id in users {
            let hear = |shard: &mut Self| shard.hear_news(id, news, &mut recipients, &mut behind);
            let heard = self.guarded(|| id.clone().into(), hear);
            if heard != Some(true)
                && let Some(slot) = self.users.get_mut(id)
                && slot.misses_news()
            {
                if heard.is_none() {
                    // It is heard once more after the recovery.
                    recipients.remove(&slot.saved);
                    behind.remove(&slot.saved);
                }
                slot.slot.parked.push_back(Parked::News(Arc::clone(news)));
                // Already under way, unless an earlier attempt has failed.
                self.reload_user(id);
            }
        }
        for (gateway, connections) in recipients {
            let events = Arc::clone(&news.events);
            self.send_to_gateway(gateway, ToGateway::Deliver { conversation: news.conversation, events, connections });
        }
        self.send_behind(news.conversation, news.head.seq, behind);
    }

    /// Tells connections that events will not come by themselves.
    pub(super) fn send_behind(&mut self, conversation: ConversationId, head: Seq, behind: Recipients) {
        for (gateway, connections) in behind {
            self.send_to_gateway(gateway, ToGateway::Behind { conversation, head, connections });
        }
    }

    /// Whether nothing is missed by it: the user heard it, or need not.
    ///
    /// News that do not follow what is known here, or that only say the head again, mean that others were lost with their
    /// sender or on their way: then the user's connections are told to fetch. News of what is known already were overtaken, or
    /// come from somebody who does not know of it: connections have had those events, or were told to fetch them.
    fn hear_news(&mut self, id: &UserId, news: &News, recipients: &mut Recipients, behind: &mut Recipients) -> bool {
        let Self { users, changes, resting, noted, confirms_at_once, .. } = self;
        let Some(slot) = users.get_mut(id) else {
            resting.note(id, news.conversation);
            return true;
        };
        let (misses_news, epoch) = (slot.misses_news(), slot.epoch);
        let Some(user) = slot.slot.ready() else {
            // Asked for after the load; unless it is known what must be.
            slot.missed.iter_mut().for_each(|missed| missed.push(news.conversation));
            return !misses_news;
        };
        // Who writes has read up to their own message.
        let own = news.events.iter().rev().find(|event| event.fact.is_message() && event.sender == *id);
        let moved = Moved { head: news.head, message_at: news.message_at, read_n: own.map_or(0, |own| own.n) };
        // Where there is one owner nothing gets lost, and nobody has to look.
        let mut path = Path::Follows;
        if !*confirms_at_once {
            let joined = user.head(&news.conversation);
            path = Path::of(news, &user.id, joined.or_else(|| slot.told.get(&news.conversation).copied()));
            if joined.is_none() && path != Path::Known {
                note_told(&mut slot.told, news.conversation, news.head);
            }
        }
        user.raise(news.conversation, moved, || Change::next(epoch, changes));
        let unmark = own.is_some() && user.is_marked_unread(&news.conversation);
        if news.large {
            user.grown_large(news.conversation);
        }
        match path {
            Path::Follows if news.events.is_empty() => {}
            Path::Follows => recipients.add(&user.connections),
            Path::Jumps => behind.add(&user.connections),
            Path::Known => {}
        }
        slot.note_change(noted);
        if unmark {
            self.has_read(id, news.conversation, None);
        }
        true
    }

    /// A fact for the user's own log.
    pub(super) fn tell(&mut self, id: UserId, fact: Fact, conversation: ConversationId) {
        let Some(Parked::Tell(fact, conversation)) = self.user_or_park(&id, Parked::Tell(fact, conversation)) else {
            return;
        };
        let hear = |shard: &mut Self| shard.hear_fact(&id, &fact, conversation);
        if self.guarded(|| id.clone().into(), hear).is_none() {
            // It is heard after the recovery.
            self.user_or_park(&id, Parked::Tell(fact, conversation));
        }
    }

    fn hear_fact(&mut self, id: &UserId, fact: &Fact, conversation: ConversationId) {
        let (Fact::UserJoined { at, .. } | Fact::UserLeft { at, .. }) = fact else { return };
        let now = self.now;
        let confirms_at_once = self.confirms_at_once;
        let Self { users, changes, flush, tenures, .. } = self;
        let Some(slot) = users.get_mut(id) else { return };
        let epoch = slot.epoch;
        if tenures.open(slot.partition).is_none() {
            // Told again, to the next owner.
            return;
        }
        let Some(user) = slot.ready() else { return };
        let joined = user.head(&conversation);
        if let Some(event) = user.hear(fact, now, || Change::next(epoch, changes)) {
            slot.append(event, flush);
        }
        let Some(user) = slot.slot.ready() else { return };
        match (joined, user.head(&conversation)) {
            // Connections may have been told of it before.
            (None, Some(_)) => {
                if let Some(head) = slot.told.remove(&conversation) {
                    let moved = Moved { head, message_at: 0, read_n: 0 };
                    user.raise(conversation, moved, || Change::next(epoch, changes));
                }
            }
            // Or will be told of the last of it.
            (Some(head), None) if !confirms_at_once => note_told(&mut slot.told, conversation, head),
            _ => {}
        }
        let Some(user) = slot.ready() else { return };
        // Its owner says where a conversation stands that the user has just joined, if somebody wants to know.
        user.ask_first(&[conversation]);
        let head = user.head;
        self.note_change(id);
        self.ask_heads(id);
        self.wait_user(id, head, UserRelease::Told(id.clone(), conversation, *at));
        match fact {
            Fact::UserLeft { .. } => self.parted(id, conversation),
            // They may have been looking before they might.
            _ => self.look(id),
        }
    }

    pub(super) fn wait_user(&mut self, id: &UserId, after: Seq, release: UserRelease) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let now = slot.line.wait(after, release);
        self.kept();
        match now {
            None => {}
            Some(release) if self.confirms_at_once => self.release_user(release),
            Some(release) => self.pump.issue(Ticket::User(release)),
        }
    }

    pub(super) fn release_user(&mut self, release: UserRelease) {
        match release {
            UserRelease::Reply(_, gateway, correlation, result) => self.reply(gateway, correlation, result),
            UserRelease::Connect(gateway, connecting) => {
                let id = connecting.actor.user.clone();
                let request = InHand::Connect(gateway, connecting.correlation);
                let register = |shard: &mut Self| shard.register(gateway, connecting);
                self.guarded_for(Some(request), || id.into(), register);
            }
            UserRelease::Seen(user) => self.seen(&user),
            UserRelease::Inbox(gateway, asked) => self.answer_inbox(gateway, asked),
            UserRelease::Changed(user, conversation, read) => self.push_changed(&user, conversation, read),
            UserRelease::Told(user, conversation, at) => {
                self.send_to_entity(&conversation.into(), PeerMail::Told { conversation, at, user })
            }
            UserRelease::Access(gateway, asked, access) => self.tell_access(gateway, asked.correlation, Ok(access)),
            UserRelease::AccessChanged(change) => self.access_changed(&change),
        }
    }

    pub(super) fn commit_user(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.line.commit();
        if slot.line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id.clone());
        }
        while let Some(release) = self.users.get_mut(id).and_then(|slot| slot.line.released()) {
            self.release_user(release);
        }
        self.reload_user(id);
        self.guarded(|| id.clone().into(), |shard| shard.snapshot_user(id));
    }

    fn snapshot_user(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let quiet = slot.line.has_no_rows();
        let Some(user) = slot.ready() else { return };
        // Users' logs grow by a row per joined conversation: a moment without rows on the way comes soon enough.
        if quiet && user.snapshot_due() {
            let (seq, bytes) = (user.head, user.snapshot());
            user.snapshot_at = seq;
            self.project(Projected::Other, Projection::Snapshot { entity: id.clone().into(), seq, bytes });
        }
    }

    // === recovery and supervision

    fn reload_user(&mut self, id: &UserId) {
        if self.users.get_mut(id).is_some_and(|slot| slot.begin_reading()) {
            self.recover(id.clone().into());
        }
    }

    pub(super) fn user_recovered(&mut self, id: &UserId, result: Result<Recovered, store::Error>) {
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.reading = false;
        if !matches!(slot.phase, Phase::Loading) {
            return self.turn_user_away(id);
        }
        let recovered = match result {
            Ok(recovered) => recovered,
            Err(error) => {
                tracing::error!(event = "user_not_read", user = %id, %error);
                if matches!(error, store::Error::Corrupt { .. }) {
                    slot.slot.phase = Phase::Withdrawn { until: Millis::MAX };
                }
                return self.turn_user_away(id);
            }
        };
        let Some(slot) = self.users.get_mut(id) else { return };
        let (epoch, missed) = (slot.epoch, slot.missed.take());
        let trusting = self.confirms_at_once;
        let rebuild = |_: &mut Self| rebuild(id, epoch, recovered, missed.as_deref(), trusting);
        let rebuilt = self.guarded(|| id.clone().into(), rebuild);
        let Some(rebuilt) = rebuilt else { return };
        let mut rebuilt = match rebuilt {
            Ok(rebuilt) => rebuilt,
            Err(recovery::Trouble::Superseded { .. }) => {
                return self.die(format!("a newer owner has written to user {id}"));
            }
            Err(trouble) => {
                tracing::error!(event = "user_withdrawn", user = %id, %trouble);
                if let Some(slot) = self.users.get_mut(id) {
                    slot.slot.phase = Phase::Withdrawn { until: Millis::MAX };
                }
                return self.turn_user_away(id);
            }
        };
        let Some(slot) = self.users.get_mut(id) else { return };
        rebuilt.state.connections = std::mem::take(&mut slot.saved).into();
        let (is_new_to_watch, bytes) = (slot.slot.bytes == 0, rebuilt.bytes);
        if slot.slot.answer_again(rebuilt) {
            self.pump.issue(Ticket::Flight(id.clone().into(), epoch));
        }
        if slot.slot.line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id.clone());
        }
        Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
        if is_new_to_watch {
            self.watch(id.clone());
        }
        while let Some(release) = self.users.get_mut(id).and_then(|slot| slot.line.released()) {
            self.release_user(release);
        }
        let look = |shard: &mut Self| {
            shard.ask_heads(id);
            shard.look(id);
            shard.seen(id);
        };
        self.guarded(|| id.clone().into(), look);
        let parked: Vec<Parked> =
            self.users.get_mut(id).map(|slot| slot.slot.parked.drain(..).collect()).unwrap_or_default();
        for parked in parked {
            match parked {
                Parked::Connect(from, connecting) => self.go_on_connecting(from, connecting),
                Parked::Inbox(from, asked) => self.inbox(from, asked),
                Parked::Tell(fact, conversation) => self.tell(id.clone(), fact, conversation),
                Parked::News(news) => self.news(&news, std::slice::from_ref(id)),
                Parked::AskAccess(from, asked) => self.ask_access(from, asked),
                Parked::Watch(watcher, watch, knows) => self.watch_user(watcher, watch, knows),
                Parked::AskSeen(token, asker, watch) => self.ask_seen(token, asker, watch),
                Parked::Read(conversation, read_n, counts) => self.has_read(id, conversation, Some((read_n, counts))),
            }
        }
    }

    fn turn_user_away(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let parked: Vec<Parked> = {
            let waiting = slot.waiting.drain(..).map(|waiting| waiting.parked);
            slot.slot.parked.drain(..).chain(waiting).collect()
        };
        for parked in parked {
            self.refuse_question(id, parked, &Error::new(Code::Unavailable).after_ms(500));
        }
        if let Some(slot) = self.users.get(id)
            && matches!(slot.phase, Phase::Loading)
            && slot.may_go()
        {
            self.forget_user(id);
        }
    }

    pub(super) fn forget_user(&mut self, id: &UserId) {
        if let Some(mut slot) = self.users.remove(id) {
            Self::account(&mut self.bytes, &mut slot.slot.bytes, 0);
        }
    }

    /// The state is lost, the connections stay; what surrounds it is put in order.
    pub(super) fn user_panicked(&mut self, id: &UserId) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.save_connections();
        let lost = slot.lose_state(now);
        if slot.line.can_fly() {
            // The panic may have come between a row and its listing.
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id.clone());
        }
        match lost {
            Lost::Mendable => self.reload_user(id),
            Lost::Hopeless => {
                slot.slot.phase = Phase::Withdrawn { until: now + WITHDRAWN_MS };
                self.measures.restarted(&id.clone().into(), "withdrawn");
                self.turn_user_away(id);
            }
            Lost::Withdrawn => {}
        }
    }

    /// Nothing of what is on its way was written: the log is read again, and facts are told again.
    pub(super) fn user_lost(&mut self, id: &UserId, error: &Error) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let events: Vec<(ConversationId, Fact)> = slot
            .slot
            .line
            .unwritten()
            .filter_map(|event| match event.fact {
                Fact::UserJoined { conversation, .. } | Fact::UserLeft { conversation, .. } => {
                    Some((conversation, event.fact.clone()))
                }
                _ => None,
            })
            .collect();
        let released = slot.slot.line.give_up();
        slot.save_connections();
        slot.slot.phase = Phase::Loading;
        // Not at once: what was refused would be refused again.
        self.postponed.extend(events.into_iter().map(|(conversation, fact)| (id.clone(), fact, conversation)));
        for release in released {
            match release {
                UserRelease::Reply(_, gateway, correlation, _) => self.reply(gateway, correlation, Err(error.clone())),
                UserRelease::Connect(gateway, connecting) => {
                    self.connected(id, gateway, connecting.correlation, Err(error.clone()));
                }
                UserRelease::Inbox(gateway, asked) => self.reply(gateway, asked.correlation, Err(error.clone())),
                UserRelease::Access(gateway, asked, _) => {
                    self.tell_access(gateway, asked.correlation, Err(error.clone()));
                }
                UserRelease::Told(..)
                | UserRelease::Changed(..)
                | UserRelease::Seen(_)
                | UserRelease::AccessChanged(_) => {}
            }
        }
        self.reload_user(id);
    }

    // === rest

    /// Looks at a user who may have gone; says when to look again, and when they were used last. `used` is when they had
    /// been used last when they were looked at before.
    pub(super) fn rest_user(&mut self, id: &UserId, used: Millis) -> Option<(Millis, Millis)> {
        let (now, idle_ms, crowded) = (self.now, self.settings.idle_ms, self.is_crowded());
        let slot = self.users.get_mut(id)?;
        if !slot.saved.is_empty() {
            // Nobody may ask for them, but their connections want to hear again.
            if matches!(slot.phase, Phase::Withdrawn { until } if until <= now) {
                slot.slot.phase = Phase::Loading;
            }
            if matches!(slot.phase, Phase::Loading) {
                self.reload_user(id);
            }
        }
        let slot = self.users.get_mut(id)?;
        let idle_at = slot.used + idle_ms;
        let in_use = idle_at > now && (!crowded || slot.used > used);
        let quiet = slot.may_go();
        let connected = slot.ready().is_some_and(|user| !user.connections.is_empty());
        if in_use || !quiet || connected {
            let bytes = slot.ready().map_or(1, |user| user.bytes());
            Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
            return Some((idle_at.max(now + idle_ms), slot.used));
        }
        // What is on its way to the store must be there before the user is read again.
        if self.flush_inbox(id) {
            return Some((now + 1000, used));
        }
        let unknown = self.users.get_mut(id).and_then(|slot| slot.slot.ready()).map(|user| user.unverified());
        self.forget_user(id);
        if let Some(unknown) = unknown {
            self.resting.rest(id.clone(), unknown);
        }
        None
    }

    /// Writes what only memory knows of a user; whether there is something.
    pub(super) fn flush_inbox(&mut self, id: &UserId) -> bool {
        let Some(slot) = self.users.get_mut(id) else { return false };
        let Some(user) = slot.slot.ready() else { return false };
        let rows = user.flush();
        let now = self.now;
        if let Some(event) = user.note_seen(now)
            && slot.slot.line.admits(event.seq)
            && self.tenures.open(slot.slot.partition).is_some()
        {
            slot.append(event, &mut self.flush);
        }
        let quiet = slot.line.has_no_rows();
        let Some(user) = slot.slot.ready() else { return false };
        let snapshot = (quiet && user.head >= user.snapshot_at + idle_snapshot_events()).then(|| {
            user.snapshot_at = user.head;
            (user.head, user.snapshot())
        });
        slot.flushing += rows.len();
        let is_dirty = slot.flushing > 0 || !slot.slot.line.is_quiet();
        for (conversation, position) in rows {
            let then = Projected::Inbox(id.clone());
            self.project(then, Projection::Inbox { user: id.clone(), conversation, position });
        }
        if let Some((seq, bytes)) = snapshot {
            self.project(Projected::Other, Projection::Snapshot { entity: id.clone().into(), seq, bytes });
        }
        is_dirty
    }

    /// A row of the user's inbox is durable.
    pub(super) fn inbox_flushed(&mut self, id: &UserId) {
        if let Some(slot) = self.users.get_mut(id) {
            slot.flushing = slot.flushing.saturating_sub(1);
        }
    }
}

fn rebuild(
    id: &UserId,
    epoch: Epoch,
    recovered: Recovered,
    missed: Option<&[ConversationId]>,
    trusting: bool,
) -> Result<Rebuilt<User>, recovery::Trouble> {
    let user = match recovered.snapshot {
        Some((_, bytes)) => User::from_snapshot(id.clone(), bytes)?,
        None => User::new(id.clone()),
    };
    rebuild::rebuild(user, epoch, trusting, recovered.rows, |user| {
        user.restore_inbox(recovered.inbox);
        user.distrust(missed);
    })
}
