//! Driving users.

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    event::{Event, Fact},
    id::{ConversationId, EntityId, GatewayId, Millis, Seq, UserId},
    limit::{CONNECT_INBOX_MAX, IDLE_SNAPSHOT_EVENTS, USER_CONNECTIONS_MAX, WINDOW},
    reply::Reply,
    wire::{Asked, Connecting, ToGateway},
};
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::sync::Arc;

use super::{
    News, PeerMail, Phase, Projected, Shard, Slot, Ticket, UserRelease, WITHDRAWN_MS, connections_of, line::Pending,
    shard_of,
};
use crate::{
    recovery::{self, Resolved},
    store::{self, Projection, Recovered},
    user::{Connection, HeadKnown, User},
};

/// What waits until a user is ready, or until the heads are known.
pub(super) enum Parked {
    Connect(GatewayId, Box<Connecting>),
    Inbox(GatewayId, Box<Asked>),
    Tell(Fact, ConversationId),
    News(Arc<News>),
}

/// A user and what surrounds them.
pub(super) struct UserSlot {
    pub(super) slot: Slot<User, Parked, UserRelease>,
    /// Connections of a user whose state was lost and is being read again.
    saved: SmallVec<[Connection; 2]>,
    /// Requests that wait until the heads that were asked for are known.
    unanswered: Vec<Parked>,
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
    fn loading(now: Millis) -> Self {
        Self { slot: Slot::loading(now), saved: SmallVec::new(), unanswered: Vec::new() }
    }
}

impl Shard {
    /// The user, if ready; else `parked` waits for them.
    fn user_or_park(&mut self, id: &UserId, parked: Parked) -> Option<Parked> {
        let now = self.now;
        let slot = match self.users.get_mut(id) {
            Some(slot) => slot,
            None => {
                self.users.insert(id.clone(), UserSlot::loading(now));
                self.reload_user(id);
                // Just inserted; the entry API would clone the id on every call.
                self.users.get_mut(id)?
            }
        };
        slot.used = now;
        match slot.phase {
            Phase::Ready(_) => return Some(parked),
            Phase::Withdrawn { until } if now < until => self.refuse(id, parked, &Code::Unavailable.into()),
            Phase::Withdrawn { .. } => {
                slot.slot.phase = Phase::Loading;
                slot.slot.parked.push_back(parked);
                self.reload_user(id);
            }
            // What must not be lost waits in any number: it is bounded by what other entities have in hand.
            Phase::Loading
                if slot.parked.len() >= WINDOW as usize
                    && matches!(parked, Parked::Connect(..) | Parked::Inbox(..)) =>
            {
                self.refuse(id, parked, &Error::new(Code::Overloaded).after_ms(500));
            }
            Phase::Loading => {
                slot.slot.parked.push_back(parked);
                // Already under way, unless an earlier attempt has failed.
                self.reload_user(id);
            }
        }
        None
    }

    fn refuse(&mut self, user: &UserId, parked: Parked, error: &Error) {
        match parked {
            Parked::Connect(gateway, connecting) => {
                self.send_to_gateway(gateway, ToGateway::Connected(connecting.correlation, Err(error.clone())));
            }
            Parked::Inbox(gateway, asked) => self.reply(gateway, asked.correlation, Err(error.clone())),
            Parked::Tell(fact, conversation) => self.postponed.push((user.clone(), fact, conversation)),
            Parked::News(_) => {}
        }
    }

    // === requests

    /// A connection of the user exists. `asked` tells that the heads of large conversations are fresh.
    pub(super) fn connect(&mut self, from: GatewayId, connecting: Box<Connecting>, asked: bool) {
        let id = connecting.actor.user.clone();
        if self.is_stopping() {
            let error = Error::new(Code::GoingAway).after_ms(1000);
            return self.send_to_gateway(from, ToGateway::Connected(connecting.correlation, Err(error)));
        }
        let Some(Parked::Connect(from, connecting)) = self.user_or_park(&id, Parked::Connect(from, connecting)) else {
            return;
        };
        if !asked && self.heads_needed(&id) {
            return self.wait_for_heads(&id, Parked::Connect(from, connecting));
        }
        let Some(user) = self.users.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
        let head = user.head;
        self.wait_user(&id, head, UserRelease::Connect(from, connecting));
    }

    /// Everything that the user's state shows is committed: the connection is registered and answered in one step, so
    /// that no event reaches it before its answer, and none is missed after.
    fn register(&mut self, from: GatewayId, connecting: Box<Connecting>) {
        let id = &connecting.actor.user;
        let Some(slot) = self.users.get_mut(id) else { return };
        let committed = slot.line.committed();
        let Some(user) = slot.slot.ready() else {
            slot.slot.parked.push_back(Parked::Connect(from, connecting));
            return;
        };
        if user.head > committed {
            let (head, id) = (user.head, id.clone());
            return self.wait_user(&id, head, UserRelease::Connect(from, connecting));
        }
        let connection = Connection { gateway: from, slot: connecting.connection };
        let result = if user.connect(connection, USER_CONNECTIONS_MAX) {
            Ok(user.heads(&connecting.positions, CONNECT_INBOX_MAX))
        } else {
            Err(Error::new(Code::ConnectionLimit)
                .with_detail(format!("at most {USER_CONNECTIONS_MAX} connections of one user")))
        };
        self.send_to_gateway(from, ToGateway::Connected(connecting.correlation, result));
    }

    /// A connection of the user is gone.
    pub(super) fn disconnect(&mut self, id: &UserId, connection: Connection) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.used = now;
        slot.saved.retain(|saved| *saved != connection);
        let same = |parked: &Parked| matches!(parked, Parked::Connect(from, connecting) if *from == connection.gateway && connecting.connection == connection.slot);
        slot.slot.parked.retain(|parked| !same(parked));
        slot.unanswered.retain(|parked| !same(parked));
        slot.slot.line.forget(|release| {
            matches!(release, UserRelease::Connect(from, connecting) if *from == connection.gateway && connecting.connection == connection.slot)
        });
        if let Some(user) = slot.ready() {
            user.disconnect(connection);
        }
    }

    pub(super) fn forget_gateway(&mut self, gateway: GatewayId) {
        for slot in self.users.values_mut() {
            slot.saved.retain(|saved| saved.gateway != gateway);
            if let Some(user) = slot.ready() {
                user.forget_gateway(gateway);
            }
        }
    }

    /// The caller's list of conversations.
    pub(super) fn inbox(&mut self, from: GatewayId, asked: Box<Asked>, heads_asked: bool) {
        let id = asked.actor.user.clone();
        let Some(Parked::Inbox(from, asked)) = self.user_or_park(&id, Parked::Inbox(from, asked)) else { return };
        if !heads_asked && self.heads_needed(&id) {
            return self.wait_for_heads(&id, Parked::Inbox(from, asked));
        }
        let Some(user) = self.users.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
        let result = match &asked.command {
            Command::ConversationList { cursor, limit } => {
                let (items, next_cursor) = user.page(*cursor, *limit);
                Ok(Reply::Conversations { items, next_cursor })
            }
            _ => Err(Error::new(Code::UnknownOperation)),
        };
        let head = user.head;
        self.count_answer(&asked, &result);
        self.wait_user(&id, head, UserRelease::Reply(from, asked.correlation, result));
    }

    /// Whether heads must be asked for before an answer; large conversations' are asked for every time.
    fn heads_needed(&mut self, id: &UserId) -> bool {
        let Some(user) = self.users.get_mut(id).and_then(|slot| slot.slot.ready()) else { return false };
        // Questions are on their way; whoever comes later waits for the same answers.
        if !user.is_verified() {
            return true;
        }
        user.distrust_large();
        if user.is_verified() {
            return false;
        }
        self.ask_heads(id);
        true
    }

    fn wait_for_heads(&mut self, id: &UserId, parked: Parked) {
        if let Some(slot) = self.users.get_mut(id) {
            slot.unanswered.push(parked);
        }
    }

    fn ask_heads(&mut self, id: &UserId) {
        let Some(user) = self.users.get_mut(id).and_then(|slot| slot.slot.ready()) else { return };
        let unverified: Vec<ConversationId> = user.unverified().collect();
        let mut by_shard: HashMap<usize, Vec<ConversationId>> = HashMap::new();
        for conversation in unverified {
            by_shard.entry(shard_of(&conversation.into(), self.peers.len())).or_default().push(conversation);
        }
        for (shard, conversations) in by_shard {
            self.send_to_shard(shard, PeerMail::AskHeads { user: id.clone(), conversations });
        }
    }

    /// A conversation's owner has answered.
    pub(super) fn head_known(&mut self, id: &UserId, known: HeadKnown) {
        let mut next = self.next_change;
        let Some(slot) = self.users.get_mut(id) else { return };
        let Some(user) = slot.slot.ready() else { return };
        let mut change = || {
            next += 1;
            next
        };
        user.verify(known, &mut change);
        let verified = user.is_verified();
        self.next_change = next;
        if verified {
            let Some(slot) = self.users.get_mut(id) else { return };
            for parked in std::mem::take(&mut slot.unanswered) {
                match parked {
                    Parked::Connect(from, connecting) => self.connect(from, connecting, true),
                    Parked::Inbox(from, asked) => self.inbox(from, asked, true),
                    Parked::Tell(..) | Parked::News(_) => {}
                }
            }
        }
    }

    // === news

    /// A conversation of these users has moved on. Who is not loaded needs no news: the heads are asked for after a load.
    pub(super) fn news(&mut self, news: &Arc<News>, users: &[UserId]) {
        let mut next = self.next_change;
        // Most nodes have one or two gateways, most users one connection.
        let mut recipients: SmallVec<[(GatewayId, Vec<chappe_schema::id::ConnectionSlot>); 2]> = SmallVec::new();
        for id in users {
            let Some(slot) = self.users.get_mut(id) else { continue };
            match &mut slot.slot.phase {
                Phase::Ready(user) => {
                    let mut change = || {
                        next += 1;
                        next
                    };
                    user.raise(news.conversation, news.head, &mut change);
                    if news.large {
                        user.grown_large(news.conversation);
                    }
                    // Who writes has read up to their own message.
                    if let Some(own) =
                        news.events.iter().rev().find(|event| event.fact.is_message() && event.sender == *id)
                    {
                        user.read_upto(news.conversation, own.n);
                    }
                    for connection in &user.connections {
                        match recipients.iter_mut().find(|(gateway, _)| *gateway == connection.gateway) {
                            Some((_, slots)) => slots.push(connection.slot),
                            None => recipients.push((connection.gateway, vec![connection.slot])),
                        }
                    }
                }
                // Only a user whose connections outlive their state can miss something here.
                Phase::Loading if !slot.saved.is_empty() => slot.slot.parked.push_back(Parked::News(Arc::clone(news))),
                Phase::Loading | Phase::Withdrawn { .. } => {}
            }
        }
        self.next_change = next;
        for (gateway, connections) in recipients {
            let events = Arc::clone(&news.events);
            self.send_to_gateway(gateway, ToGateway::Deliver { conversation: news.conversation, events, connections });
        }
    }

    /// A fact for the user's own log.
    pub(super) fn tell(&mut self, id: UserId, fact: Fact, conversation: ConversationId) {
        let Some(Parked::Tell(fact, conversation)) = self.user_or_park(&id, Parked::Tell(fact, conversation)) else {
            return;
        };
        let (Fact::UserJoined { at, .. } | Fact::UserLeft { at, .. }) = fact else { return };
        let joined = matches!(fact, Fact::UserJoined { .. });
        let (now, epoch) = (self.now, self.epoch);
        let Some(slot) = self.users.get_mut(&id) else { return };
        let line = &mut slot.slot.line;
        let Phase::Ready(user) = &mut slot.slot.phase else { return };
        let heard = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if let Some(event) = user.hear(&fact, now) {
                user.apply(&event);
                user.fresh_epoch = epoch;
                line.push(Pending { event, audience: None, announce: false, adopted: false });
            }
            user.head
        }));
        let Ok(head) = heard else {
            slot.slot.parked.push_back(Parked::Tell(fact, conversation));
            return self.user_panicked(&id);
        };
        if line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut line.listed, id.clone());
        }
        self.wait_user(&id, head, UserRelease::Told(conversation, at));
        if joined {
            // Its owner says where a conversation stands that the user has just joined.
            self.send_to_entity(
                &conversation.into(),
                PeerMail::AskHeads { user: id, conversations: vec![conversation] },
            );
        }
    }

    fn wait_user(&mut self, id: &UserId, after: Seq, release: UserRelease) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let Some(release) = slot.line.wait(after, release) else { return };
        if self.confirms_at_once {
            self.release_user(release);
        } else {
            self.pump.issue(Ticket::User(release));
        }
    }

    pub(super) fn release_user(&mut self, release: UserRelease) {
        match release {
            UserRelease::Reply(gateway, correlation, result) => self.reply(gateway, correlation, result),
            UserRelease::Connect(gateway, connecting) => self.register(gateway, connecting),
            UserRelease::Told(conversation, at) => {
                self.send_to_entity(&conversation.into(), PeerMail::Told { conversation, at })
            }
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
        self.snapshot_user(id);
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
        let Some(slot) = self.users.get_mut(id) else { return };
        if slot.reading || !slot.line.has_no_rows() || !matches!(slot.phase, Phase::Loading) {
            return;
        }
        slot.reading = true;
        self.recover(id.clone().into());
    }

    pub(super) fn user_recovered(&mut self, id: &UserId, result: Result<Recovered, store::Error>) {
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.reading = false;
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
        let (epoch, trusting) = (self.epoch, self.confirms_at_once);
        let entity = || EntityId::User(id.clone());
        let Some(built) = self.supervised(entity, || rebuild(id, epoch, recovered, trusting)) else {
            return self.user_panicked(id);
        };
        let Rebuilt { mut user, committed, standing, adopted } = match built {
            Ok(built) => built,
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
        user.connections = std::mem::take(&mut slot.saved);
        user.distrust();
        let verified = user.is_verified();
        let bytes = user.bytes();
        let is_new_to_watch = slot.slot.bytes == 0;
        slot.slot.line.restart(committed);
        let found = |adopted| move |event: Arc<Event>| Pending { event, audience: None, announce: false, adopted };
        if !standing.is_empty() {
            slot.slot.line.stand(standing.into_iter().map(found(false)).collect());
            self.pump.issue(Ticket::Flight(id.clone().into()));
        }
        adopted.into_iter().map(found(true)).for_each(|pending| slot.slot.line.push(pending));
        if slot.slot.line.can_fly() {
            Self::list_for_flush(&mut self.flush, &mut slot.slot.line.listed, id.clone());
        }
        slot.slot.phase = Phase::Ready(Box::new(user));
        Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
        let parked: Vec<Parked> = slot.slot.parked.drain(..).collect();
        if is_new_to_watch {
            self.watch(id.clone());
        }
        if !verified {
            self.ask_heads(id);
        }
        for parked in parked {
            match parked {
                Parked::Connect(from, connecting) => self.connect(from, connecting, false),
                Parked::Inbox(from, asked) => self.inbox(from, asked, false),
                Parked::Tell(fact, conversation) => self.tell(id.clone(), fact, conversation),
                Parked::News(news) => self.news(&news, std::slice::from_ref(id)),
            }
        }
    }

    fn turn_user_away(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let parked: Vec<Parked> = slot.slot.parked.drain(..).chain(slot.unanswered.drain(..)).collect();
        for parked in parked {
            self.refuse(id, parked, &Error::new(Code::Unavailable).after_ms(500));
        }
        if let Some(slot) = self.users.get(id)
            && matches!(slot.phase, Phase::Loading)
            && slot.is_quiet()
            && slot.saved.is_empty()
        {
            self.forget_user(id);
        }
    }

    fn forget_user(&mut self, id: &UserId) {
        if let Some(mut slot) = self.users.remove(id) {
            Self::account(&mut self.bytes, &mut slot.slot.bytes, 0);
        }
    }

    fn user_panicked(&mut self, id: &UserId) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        let hopeless = Self::is_hopeless(&mut slot.slot.panics, now);
        Self::lose_state(slot);
        if hopeless {
            slot.slot.phase = Phase::Withdrawn { until: now + WITHDRAWN_MS };
            return self.turn_user_away(id);
        }
        self.reload_user(id);
    }

    /// The state goes, the connections stay.
    fn lose_state(slot: &mut UserSlot) {
        if let Some(user) = slot.slot.ready() {
            slot.saved = connections_of(user);
        }
        slot.slot.phase = Phase::Loading;
        let unanswered = std::mem::take(&mut slot.unanswered);
        slot.slot.parked.extend(unanswered);
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
        Self::lose_state(slot);
        // Not at once: what was refused would be refused again.
        self.postponed.extend(events.into_iter().map(|(conversation, fact)| (id.clone(), fact, conversation)));
        for release in released {
            match release {
                UserRelease::Reply(gateway, correlation, _) => self.reply(gateway, correlation, Err(error.clone())),
                UserRelease::Connect(gateway, connecting) => {
                    self.send_to_gateway(gateway, ToGateway::Connected(connecting.correlation, Err(error.clone())));
                }
                UserRelease::Told(..) => {}
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
        let idle_at = slot.used + idle_ms;
        let in_use = idle_at > now && (!crowded || slot.used > used);
        let quiet = slot.is_quiet() && slot.unanswered.is_empty() && slot.saved.is_empty();
        let connected = slot.ready().is_some_and(|user| !user.connections.is_empty());
        if in_use || !quiet || connected {
            let bytes = slot.ready().map_or(1, |user| user.bytes());
            Self::account(&mut self.bytes, &mut slot.slot.bytes, bytes);
            return Some((idle_at.max(now + idle_ms), slot.used));
        }
        self.flush_inbox(id);
        self.forget_user(id);
        None
    }

    /// Writes what only memory knows of a user.
    pub(super) fn flush_inbox(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let quiet = slot.line.has_no_rows();
        let Some(user) = slot.ready() else { return };
        let rows = user.flush();
        let snapshot = (quiet && user.head >= user.snapshot_at + IDLE_SNAPSHOT_EVENTS).then(|| {
            user.snapshot_at = user.head;
            (user.head, user.snapshot())
        });
        for (conversation, position) in rows {
            self.project(Projected::Other, Projection::Inbox { user: id.clone(), conversation, position });
        }
        if let Some((seq, bytes)) = snapshot {
            self.project(Projected::Other, Projection::Snapshot { entity: id.clone().into(), seq, bytes });
        }
    }
}

/// A user who was read again.
struct Rebuilt {
    /// The state after everything that was found and counts.
    user: User,
    /// What of it is committed.
    committed: Seq,
    /// What is durable under the own epoch, and committed by the next fence read.
    standing: Vec<Arc<Event>>,
    /// What is written again before anything of it is shown.
    adopted: Vec<Arc<Event>>,
}

fn rebuild(id: &UserId, epoch: u64, recovered: Recovered, trusting: bool) -> Result<Rebuilt, recovery::Trouble> {
    let mut user = match recovered.snapshot {
        Some((_, bytes)) => User::from_snapshot(id.clone(), bytes)?,
        None => User::new(id.clone()),
    };
    let basis =
        recovery::Basis { own_epoch: epoch, snapshot_seq: user.head, snapshot_fresh_epoch: user.fresh_epoch, trusting };
    let resolved = recovery::resolve(basis, |_, _| false, recovered.rows)?;
    let Resolved { committed, standing, adopted, fresh_epoch, .. } = resolved;
    for event in &committed {
        user.apply(event);
    }
    let committed = user.head;
    for event in standing.iter().chain(&adopted) {
        user.apply(event);
    }
    user.fresh_epoch = fresh_epoch;
    user.restore_inbox(recovered.inbox);
    Ok(Rebuilt { user, committed, standing, adopted })
}
