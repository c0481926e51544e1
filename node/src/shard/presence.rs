//! Presence: telling those who look at a user how the user is seen.
//!
//! A client says at whom it looks ([`ToNode::Attend`]). The owner of *its* user checks that the user is a member of the
//! conversation by right of which they look, and asks the owner of each watched user ([`PeerMail::Watch`]), who checks the
//! same of theirs: so both have said in their own logs that they share it, and no conversation is woken up. From then on each
//! change goes the way back ([`PeerMail::Seen`]), to the connections that look. All of it is soft: what gets lost is
//! mended by the next renewal, and whoever takes over a partition is told again.

use std::sync::Arc;

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    id::{ConversationId, Epoch, GatewayId, Millis, Partition, UserId},
    limit::{PRESENCE_GRACE_MS, PRESENCE_RENEWED_MS},
    presence::{Attention, Shown, Status, Watch},
    reply::Reply,
    wire::{Asked, ToGateway},
};
use hashbrown::HashSet;

use super::{
    PeerMail, Phase, Shard, Slot, UserRelease,
    users::{Parked, Recipients, UserSlot},
};
use crate::{
    presence::{Renewal, Word},
    user::{Client, Connection, Wish},
};

/// A question how somebody is seen, until their owner answers.
pub(super) struct AskedSeen {
    from: GatewayId,
    asked: Arc<Asked>,
    watch: Watch,
}

impl Shard {
    // === who looks

    /// A connection has said whether its user is at hand, and at whom they look.
    pub(super) fn attend(&mut self, id: &UserId, connection: Connection, attention: Attention) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        let saved = slot.saved.iter_mut().find(|client| client.connection == connection);
        if let Some(client) = saved {
            // Looked at when the state is read again.
            client.attention = attention;
            return;
        }
        slot.used = now;
        let attend = |shard: &mut Self| {
            let Some(user) = shard.users.get_mut(id).and_then(|slot| slot.slot.ready()) else { return };
            // Who is not registered yet says it again when they are.
            let Some(client) = user.connections.iter_mut().find(|client| client.connection == connection) else {
                return;
            };
            let before = std::mem::replace(&mut client.attention, attention.clone());
            if before.away != attention.away {
                shard.seen(id);
            }
            if before.watches != attention.watches {
                shard.look(id);
                shard.show_what_is_known(id, connection, &before);
            }
        };
        self.guarded(|| id.clone().into(), attend);
    }

    /// Brings a user's watches in line with what their connections look at, and with what they may look at.
    pub(super) fn look(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let UserSlot { slot, watching, .. } = slot;
        let Phase::Ready(user) = &slot.phase else { return };
        let looked_at = user.connections.iter().filter_map(|client| client.attention.watches.as_deref()).flatten();
        let mut wanted = looked_at.filter(|watch| user.may_be_seen_in(&watch.conversation)).peekable();
        if wanted.peek().is_none() && watching.is_none() {
            return;
        }
        let watching = watching.get_or_insert_default();
        let wishes = watching.look(wanted);
        if !watching.is_empty() && !std::mem::replace(&mut watching.is_listed, true) {
            self.renewals.push_back((self.now + PRESENCE_RENEWED_MS, id.clone()));
        }
        for user in &wishes.unwatch {
            // Whoever still looks may no longer: what they see is what a stranger would.
            self.show(id, user, Shown::default());
        }
        self.ask_to_watch(id, wishes.watch);
        for (place, users) in self.by_place(wishes.unwatch, UserId::partition) {
            self.send_to_place(place, PeerMail::Unwatch { watcher: id.clone(), users });
        }
    }

    fn ask_to_watch(&mut self, watcher: &UserId, watches: Vec<(Watch, Option<Shown>)>) {
        for (place, watches) in self.by_place(watches, |(watch, _)| watch.user.partition()) {
            self.send_to_place(place, PeerMail::Watch { watcher: watcher.clone(), watches });
        }
    }

    /// What is known of whom a connection looks at now and did not before.
    fn show_what_is_known(&mut self, id: &UserId, connection: Connection, before: &Attention) {
        let Some(slot) = self.users.get_mut(id) else { return };
        let UserSlot { slot, watching, .. } = slot;
        let Phase::Ready(user) = &slot.phase else { return };
        let Some(client) = user.connections.iter().find(|client| client.connection == connection) else { return };
        let watches = client.attention.watches.as_deref().unwrap_or_default();
        let new = watches.iter().filter(|watch| !before.watches(&watch.user));
        let known = new.filter_map(|watch| {
            match watching.as_ref().and_then(|watching| watching.shown(&watch.user)) {
                // Their owner is being asked.
                Some(None) => None,
                Some(Some(shown)) => Some((watch.user.clone(), shown)),
                // At whom the user may not look.
                None => Some((watch.user.clone(), Shown::default())),
            }
        });
        let known: Vec<(UserId, Shown)> = known.collect();
        for (user, shown) in known {
            let connections = vec![connection.slot];
            self.send_to_gateway(connection.gateway, ToGateway::Presence { connections, user, shown });
        }
    }

    /// Shows `user` to those of a watcher's connections that look at them.
    fn show(&mut self, watcher: &UserId, user: &UserId, shown: Shown) {
        let mut recipients = Recipients::default();
        if let Some(slot) = self.users.get(watcher) {
            add_recipients(slot, user, &mut recipients);
        }
        self.send_presence(user, shown, recipients);
    }

    fn send_presence(&mut self, user: &UserId, shown: Shown, recipients: Recipients) {
        for (gateway, connections) in recipients {
            self.send_to_gateway(gateway, ToGateway::Presence { connections, user: user.clone(), shown });
        }
    }

    /// A watched user's owner has said how they are seen.
    pub(super) fn is_seen(&mut self, user: &UserId, shown: Shown, epoch: Epoch, watchers: &[UserId]) {
        let mut recipients = Recipients::default();
        for watcher in watchers {
            let Some(slot) = self.users.get_mut(watcher) else { continue };
            if slot.watching.as_mut().is_some_and(|watching| watching.hear(user, shown, epoch)) {
                add_recipients(slot, user, &mut recipients);
            }
        }
        self.send_presence(user, shown, recipients);
    }

    // === who is looked at

    /// Somebody looks at these users, or says again that they do.
    pub(super) fn watch_users(&mut self, watcher: &UserId, watches: Vec<(Watch, Option<Shown>)>) {
        for (watch, knows) in watches {
            match self.board.renew(&watch, watcher, knows, self.now) {
                Renewal::Renewed(word) => self.say(word),
                Renewal::New => self.watch_user(watcher.clone(), watch, knows),
            }
        }
    }

    pub(super) fn watch_user(&mut self, watcher: UserId, watch: Watch, knows: Option<Shown>) {
        let id = watch.user.clone();
        let register = |shard: &mut Self| {
            let parked = Parked::Watch(watcher, watch, knows);
            let Some(Parked::Watch(watcher, watch, knows)) = shard.user_or_park(&id, parked) else { return };
            let now = shard.now;
            let shares = shard.shares(&watch);
            // What others were told before counts as much.
            let before = knows.or_else(|| shard.board.shown(&id));
            let Some((shown, turns_at)) = shard.standing(&id, before) else { return };
            if shares {
                let word = shard.board.watch(&watch, &watcher, knows, (shown, turns_at), now);
                shard.say(word);
            } else if knows != Some(Shown::default()) {
                // Not kept: they ask again when they renew it.
                let word = Word { user: id.clone(), shown: Shown::default(), watchers: vec![watcher] };
                shard.say(Some(word));
            }
            shard.drop_if_nobody(&id);
        };
        self.guarded(|| id.clone().into(), register);
    }

    /// Whether the watched user is a member of the conversation by right of which somebody looks at them.
    fn shares(&mut self, watch: &Watch) -> bool {
        let user = self.users.get_mut(&watch.user).and_then(|slot| slot.slot.ready());
        user.is_some_and(|user| user.may_be_seen_in(&watch.conversation))
    }

    /// A user of whom nothing is known is not kept: anyone can name any number of ids.
    fn drop_if_nobody(&mut self, id: &UserId) {
        if let Some(slot) = self.users.get_mut(id)
            && slot.slot.ready().is_some_and(|user| user.head == 0 && user.connections.is_empty())
            && slot.may_go()
        {
            self.forget_user(id);
        }
    }

    /// Somebody looks at these users no longer.
    pub(super) fn unwatch_users(&mut self, watcher: &UserId, users: &[UserId]) {
        for user in users {
            self.board.unwatch(user, watcher);
        }
    }

    /// Something about a user has changed: whoever looks at them is told, if it is to be seen.
    pub(super) fn seen(&mut self, id: &UserId) {
        if !self.board.is_watched(id) {
            return;
        }
        if let Some((shown, turns_at)) = self.standing(id, None) {
            let word = self.board.stands(id, shown, turns_at, self.now);
            self.say(word);
        }
    }

    /// A user is no member of a conversation any more: nobody looks at them by right of it, and they at nobody.
    pub(super) fn parted(&mut self, id: &UserId, conversation: ConversationId) {
        let word = self.board.part(id, conversation);
        self.say(word);
        self.look(id);
    }

    /// How a user is seen and when that changes by itself; `None` while nobody can tell. `before` is what somebody was told.
    fn standing(&self, id: &UserId, before: Option<Shown>) -> Option<(Shown, Option<Millis>)> {
        let slot = self.users.get(id)?;
        let Phase::Ready(user) = &slot.phase else { return None };
        let now = self.now;
        let shown = user.shown(now);
        let turns_at = user.lingers_until().filter(|until| *until > now);
        // Gateways are about to tell a new owner of their connections: until then nobody is called gone.
        let settled_at = self.opened_at(slot.partition) + PRESENCE_GRACE_MS;
        let is_unsettled = user.connections.is_empty() && !user.is_invisible() && now < settled_at;
        match before {
            Some(before) if is_unsettled && before.status != Status::Offline => Some((before, Some(settled_at))),
            _ if is_unsettled => Some((shown, Some(settled_at.max(turns_at.unwrap_or(0))))),
            _ => Some((shown, turns_at)),
        }
    }

    /// Since when this session has owned a partition.
    fn opened_at(&self, partition: Partition) -> Millis {
        self.opened.get(&partition).copied().unwrap_or(self.began)
    }

    fn say(&mut self, word: Option<Word>) {
        let Some(Word { user, shown, watchers }) = word else { return };
        self.measures.said_presence(watchers.len());
        let Some(epoch) = self.tenures.open(user.partition()) else {
            // Its next owner says what is so.
            return;
        };
        for (place, watchers) in self.by_place(watchers, UserId::partition) {
            self.send_to_place(place, PeerMail::Seen { user: user.clone(), shown, epoch, watchers });
        }
    }

    // === commands

    /// A command about who is seen.
    pub(super) fn presence_command(&mut self, id: &UserId, from: GatewayId, asked: Arc<Asked>) {
        match &asked.command {
            Command::PresenceUpdate { invisible } => self.be_seen(id, from, &asked, *invisible),
            Command::PresenceGet { watch } if watch.user == *id => {
                let now = self.now;
                let Some(user) = self.users.get_mut(id).and_then(|slot| slot.slot.ready()) else { return };
                let (shown, invisible) = (user.shown(now), Some(user.is_invisible()));
                let (head, result) = (user.head, Ok(Reply::Presence { user: id.clone(), shown, invisible }));
                self.count_answer(&asked, &result);
                self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
            }
            Command::PresenceGet { watch } => {
                let user = self.users.get_mut(id).and_then(|slot| slot.slot.ready());
                if !user.is_some_and(|user| user.may_be_seen_in(&watch.conversation)) {
                    return self.answer_seen(from, &asked, watch.user.clone(), Shown::default());
                }
                let (token, watch) = (self.token(), watch.clone());
                self.asked_seen.insert(token, AskedSeen { from, asked: Arc::clone(&asked), watch: watch.clone() });
                self.kept();
                let partition = watch.user.partition();
                self.send_to_partition(partition, PeerMail::AskSeen { token, asker: id.clone(), watch });
            }
            // Of a connection; its gateway answers them.
            _ => self.answer_now(from, &asked, Err(Code::UnknownOperation.into())),
        }
    }

    fn answer_seen(&mut self, from: GatewayId, asked: &Asked, user: UserId, shown: Shown) {
        self.answer_now(from, asked, Ok(Reply::Presence { user, shown, invisible: None }));
    }

    fn be_seen(&mut self, id: &UserId, from: GatewayId, asked: &Asked, invisible: bool) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        let Slot { phase: Phase::Ready(user), line, .. } = &mut slot.slot else { return };
        let judged = if line.admits(user.head + 1) {
            user.wish(&asked.actor, asked.id, asked.command.hash(), invisible, now)
        } else {
            Err(Error::new(Code::Overloaded).after_ms(200))
        };
        let is_news = matches!(judged, Ok(Wish::Append(_)));
        if let Ok(Wish::Append(event)) = &judged {
            slot.append(Arc::clone(event), &mut self.flush);
        }
        let Some(user) = slot.ready() else { return };
        let result = judged.map(|wish| Reply::Visibility {
            invisible: user.is_invisible(),
            changed: matches!(wish, Wish::Append(_) | Wish::As(true)),
        });
        let head = user.head;
        self.count_answer(asked, &result);
        if is_news {
            // Before the answer: whoever is told that nobody sees them is seen by nobody.
            self.wait_user(id, head, UserRelease::Seen(id.clone()));
        }
        self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
    }

    /// A user's shard asks how somebody is seen.
    pub(super) fn ask_seen(&mut self, token: u64, asker: UserId, watch: Watch) {
        let id = watch.user.clone();
        let tell = |shard: &mut Self| {
            let parked = Parked::AskSeen(token, asker, watch);
            let Some(Parked::AskSeen(token, asker, watch)) = shard.user_or_park(&id, parked) else { return };
            let shares = shard.shares(&watch);
            let Some((shown, _)) = shard.standing(&id, None) else { return };
            let shown = if shares { shown } else { Shown::default() };
            shard.drop_if_nobody(&id);
            shard.send_to_entity(&asker.clone().into(), PeerMail::ToldSeen { token, asker, shown });
        };
        self.guarded(|| id.clone().into(), tell);
    }

    /// Their owner has told.
    pub(super) fn told_seen(&mut self, token: u64, asker: &UserId, shown: Shown) {
        // Somebody else's, of an earlier life.
        if self.asked_seen.get(&token).is_none_or(|one| one.asked.actor.user != *asker) {
            return;
        }
        if let Some(AskedSeen { from, asked, watch }) = self.asked_seen.remove(&token) {
            self.answer_seen(from, &asked, watch.user, shown);
        }
    }

    // === time, and owners

    /// A second has passed.
    pub(super) fn tick_presence(&mut self) {
        let now = self.now;
        self.opened.retain(|_, at| *at + PRESENCE_GRACE_MS > now);
        let mut board = std::mem::take(&mut self.board);
        let words = board.tick(now, |user| self.standing(user, None));
        self.board = board;
        for word in words {
            self.say(Some(word));
        }
        while let Some((at, _)) = self.renewals.front()
            && *at <= now
            && let Some((_, id)) = self.renewals.pop_front()
        {
            self.renew_watches(&id);
        }
        self.ask_seen_again();
        self.measures.presence(self.board.watches(), self.board.due(), self.typing.len());
    }

    fn renew_watches(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        if let Some(watching) = &mut slot.watching {
            watching.is_listed = false;
        }
        // What the user may look at may have become another.
        self.guarded(|| id.clone().into(), |shard| shard.look(id));
        let Some(watching) = self.users.get_mut(id).and_then(|slot| slot.watching.as_mut()) else { return };
        if watching.is_empty() {
            if let Some(slot) = self.users.get_mut(id) {
                slot.watching = None;
            }
            return;
        }
        let watches = watching.renewal();
        if !std::mem::replace(&mut watching.is_listed, true) {
            self.renewals.push_back((self.now + PRESENCE_RENEWED_MS, id.clone()));
        }
        self.ask_to_watch(id, watches);
    }

    /// Between nodes questions may get lost; and who is asked may not be there to answer.
    fn ask_seen_again(&mut self) {
        let now = self.now;
        let late = self.asked_seen.extract_if(|_, one| one.asked.deadline < now);
        let late: Vec<AskedSeen> = late.map(|(_, one)| one).collect();
        for AskedSeen { from, asked, .. } in late {
            self.answer_now(from, &asked, Err(Error::new(Code::Unavailable).after_ms(500)));
        }
        let open: Vec<(u64, UserId, Watch)> = self
            .asked_seen
            .iter()
            .map(|(token, one)| (*token, one.asked.actor.user.clone(), one.watch.clone()))
            .collect();
        for (token, asker, watch) in open {
            let partition = watch.user.partition();
            self.send_to_partition(partition, PeerMail::AskSeen { token, asker, watch });
        }
    }

    /// These partitions have other owners, who know of nobody who looks.
    pub(super) fn watch_again(&mut self, moved: &HashSet<Partition>) {
        let mut again = Vec::new();
        for (id, slot) in self.users.iter() {
            let Some(watching) = &slot.watching else { continue };
            let mut watches = watching.renewal();
            watches.retain(|(watch, _)| moved.contains(&watch.user.partition()));
            if !watches.is_empty() {
                again.push((id.clone(), watches));
            }
        }
        for (id, watches) in again {
            self.ask_to_watch(&id, watches);
        }
    }

    /// This partition is somebody else's.
    pub(super) fn forget_presence(&mut self, gone: impl Fn(Partition) -> bool) {
        self.opened.retain(|partition, _| !gone(*partition));
        self.board.forget(|user| gone(user.partition()));
        // Asked again by their gateway, where they are answered.
        self.asked_seen.retain(|_, one| !gone(one.asked.actor.user.partition()));
    }
}

/// Those of a user's connections that look at `user`, whether the user's state is there or being read again.
fn add_recipients(slot: &UserSlot, user: &UserId, recipients: &mut Recipients) {
    let clients: &[Client] = match &slot.phase {
        Phase::Ready(user) => &user.connections,
        _ => &slot.saved,
    };
    recipients.add(clients.iter().filter(|client| client.attention.watches(user)));
}
