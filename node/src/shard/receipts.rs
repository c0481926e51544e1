//! Receipts: how far members have got, on its way from one member's device to the screens of the others.
//!
//! The life of one: a device tells its user's shard (so that the user's preference counts, for one conversation or for many
//! at once), which tells the conversations' owners, one mail for each place. An owner raises the member's watermarks and
//! answers once its head is committed; the user's other devices hear what is left unread. The members hear of everything
//! that has moved in a conversation by one word at the end of a turn, and then not again for [`RECEIPTS_PACE_MS`].
//!
//! Nothing of this is an event, and nothing waits for the disk. A conversation's snapshot holds everything; what has moved
//! since is kept by one row for the whole conversation, written when the budget of the second has room for it, before the
//! conversation leaves memory, when the server stops, and when its partition is given away. A crash takes back what had no
//! row: clients say again what they said in the last minutes, and nothing below what others have seen does any harm to
//! them, for watermarks only rise in their books.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    id::{ConversationId, EntityId, GatewayId, Millis, Partition, UserId},
    limit::{RECEIPTS_EVENTS_PER_ROW, RECEIPTS_PACE_MS, RECEIPTS_ROWS_PER_TICK},
    receipt::{Progress, Progressed, Receipts},
    reply::Reply,
    wire::{Asked, ToGateway},
};

use super::{
    PeerMail, Phase, Projected, Release, Shard, Slot, UserRelease,
    conversations::{ConversationSlot, Parked},
    users::Recipients,
};
use crate::{conversation::Kept, store::Projection, user::Wish};

/// What a device says of one conversation, as its owner hears it.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// For the answer.
    pub(crate) token: u64,
    pub(crate) user: UserId,
    pub(crate) progress: Progress,
    /// What is read is not for others.
    pub(crate) private: bool,
}

/// A request that waits for conversations' owners.
pub(super) struct Telling {
    from: GatewayId,
    asked: Arc<Asked>,
    private: bool,
    /// Those that have not answered.
    open: Vec<Progress>,
    told: BTreeMap<ConversationId, Result<Progressed, Error>>,
}

/// What surrounds a conversation's watermarks.
#[derive(Default)]
pub(super) struct ReceiptSlot {
    /// Whether the members are about to be told.
    is_listed: bool,
    /// When they were told last.
    told_at: Millis,
    /// Whether it waits for a row.
    waits_for_row: bool,
    /// Rows on their way to the store.
    on_their_way: u32,
    /// What an earlier life of the state knew.
    kept: Option<Kept>,
}

impl ReceiptSlot {
    /// Whether no row is on its way.
    pub(super) const fn is_quiet(&self) -> bool {
        self.on_their_way == 0
    }
}

impl ConversationSlot {
    /// The state is about to be read again: what it knows of receipts may stand in no row.
    pub(super) fn keep_for_later(&mut self) {
        if let Phase::Ready(state) = &self.slot.phase {
            self.receipts.kept = Some(state.kept());
        }
    }
}

/// Where the budget for rows stands, and what waits for it.
#[derive(Default)]
pub(super) struct Keeping {
    /// Events committed since the last row that they paid for.
    pub(super) events: u64,
    waiting: std::collections::VecDeque<ConversationId>,
}

/// Conversations whose members are to be told.
#[derive(Default)]
pub(super) struct Due {
    now: Vec<ConversationId>,
    /// Those told a moment ago, with the time before which they are not told again.
    later: std::collections::VecDeque<(Millis, ConversationId)>,
}

impl Shard {
    // === at the user's

    /// A user's request about receipts; the user is ready.
    pub(super) fn receipts_command(&mut self, id: &UserId, from: GatewayId, asked: Arc<Asked>) {
        if self.now > asked.deadline {
            let error = Error::new(Code::Aborted).with_detail("the request waited too long and was not begun");
            return self.answer_now(from, &asked, Err(error));
        }
        let Some(Phase::Ready(user)) = self.users.get(id).map(|slot| &slot.slot.phase) else { return };
        let (head, prefers_private) = (user.head, user.private_receipts);
        let progress = |conversation: &ConversationId, delivered, read| {
            vec![Progress { conversation: *conversation, delivered, read }]
        };
        let (progress, private) = match &asked.command {
            Command::ConversationRead { conversation, n, private } => {
                (progress(conversation, None, Some(*n)), private.unwrap_or(prefers_private))
            }
            Command::ConversationDelivered { conversation, n } => (progress(conversation, Some(*n), None), false),
            Command::ReceiptPut { progress, private } => (progress.clone(), private.unwrap_or(prefers_private)),
            Command::ReceiptPrefer { private } => return self.prefer_receipts(id, from, &asked, *private),
            _ => {
                let result = Ok(Reply::ReceiptPreference { private: prefers_private, changed: None });
                self.count_answer(&asked, &result);
                return self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
            }
        };
        self.measures.receipts_said(&progress);
        let token = self.token();
        let telling = Telling { from, asked, private, open: progress.clone(), told: BTreeMap::new() };
        self.tellings.insert(token, telling);
        self.kept();
        self.say_progress(token, id, &progress, private);
    }

    fn say_progress(&mut self, token: u64, user: &UserId, progress: &[Progress], private: bool) {
        let by_conversation: BTreeMap<ConversationId, Progress> =
            progress.iter().map(|progress| (progress.conversation, *progress)).collect();
        let by_place = self.by_place(by_conversation.into_values(), |progress| progress.conversation.partition());
        for (place, progress) in by_place {
            let user = user.clone();
            self.send_to_place(place, PeerMail::Progress { token, user, progress, private });
        }
    }

    /// A conversation's owner has noted how far the user has got, or says why not.
    pub(super) fn progressed(
        &mut self,
        token: u64,
        user: &UserId,
        conversation: ConversationId,
        result: Result<Progressed, Error>,
        was_read: bool,
    ) {
        if was_read && let Ok(progressed) = &result {
            self.has_read(user, conversation, Some((progressed.read_n, progressed.counts)));
        }
        // Somebody else's, of an earlier life.
        let Some(telling) = self.tellings.get_mut(&token).filter(|one| one.asked.actor.user == *user) else { return };
        telling.open.retain(|progress| progress.conversation != conversation);
        telling.told.insert(conversation, result);
        if telling.open.is_empty()
            && let Some(telling) = self.tellings.remove(&token)
        {
            self.finish_telling(telling);
        }
    }

    /// Answers a request, once the user's state shows what came of it.
    fn finish_telling(&mut self, telling: Telling) {
        let Telling { from, asked, open, mut told, .. } = telling;
        let late =
            || Error::new(Code::Unavailable).with_detail("the conversation's owner did not answer").after_ms(500);
        told.extend(open.iter().map(|progress| (progress.conversation, Err(late()))));
        let result = match &asked.command {
            Command::ReceiptPut { .. } => Ok(Reply::AllProgressed { items: told.into_iter().collect() }),
            _ => told.pop_first().map_or_else(|| Err(late()), |(_, result)| result.map(Reply::Progressed)),
        };
        self.count_answer(&asked, &result);
        let id = &asked.actor.user;
        match self.users.get(id).map(|slot| &slot.slot.phase) {
            Some(Phase::Ready(user)) => {
                let head = user.head;
                self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
            }
            _ => self.reply(from, asked.correlation, result),
        }
    }

    fn prefer_receipts(&mut self, id: &UserId, from: GatewayId, asked: &Asked, private: bool) {
        let now = self.now;
        let Self { users, flush, .. } = self;
        let Some(slot) = users.get_mut(id) else { return };
        let Slot { phase: Phase::Ready(user), line, .. } = &mut slot.slot else { return };
        let result = match user.prefer_receipts(&asked.actor, (asked.id, asked.command.hash()), private, now) {
            Err(error) => Err(error),
            Ok(Wish::As(changed)) => {
                Ok(Reply::ReceiptPreference { private: user.private_receipts, changed: Some(changed) })
            }
            Ok(Wish::Append(event)) if !line.admits(event.seq) => Err(Error::new(Code::Overloaded).after_ms(100)),
            Ok(Wish::Append(event)) => {
                slot.append(event, flush);
                Ok(Reply::ReceiptPreference { private, changed: Some(true) })
            }
        };
        let Some(head) = slot.ready().map(|user| user.head) else { return };
        self.count_answer(asked, &result);
        self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
    }

    // === at the conversation's

    /// A member says how far they have got.
    pub(super) fn hear_progress(&mut self, id: ConversationId, said: Said) {
        let Some(Parked::Said(said)) = self.conversation_or_park(id, Parked::Said(said)) else { return };
        if self.guarded(|| id.into(), |shard| shard.note_progress(id, &said)).is_none() {
            // By now it is being read again, or withdrawn.
            self.hear_progress(id, said);
        }
    }

    fn note_progress(&mut self, id: ConversationId, said: &Said) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let Phase::Ready(state) = &mut slot.slot.phase else { return };
        let result = state.progress(&said.user, &said.progress, said.private);
        let head = state.head;
        self.list_receipts(id);
        self.wait_conversation(id, head, Release::Progressed(said.clone(), result));
        self.drop_if_absent(id);
    }

    /// The state was read again: what its earlier life knew beside the log is not lost.
    pub(super) fn carry_over(&mut self, id: ConversationId) {
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        let kept = slot.receipts.kept.take();
        if let (Some(kept), Some(state)) = (kept, slot.slot.ready()) {
            state.carry_over(kept);
            self.list_receipts(id);
        }
    }

    /// Members have got further: the others are told, and a row is due.
    pub(super) fn list_receipts(&mut self, id: ConversationId) {
        let now = self.now;
        let Some(ConversationSlot { slot, receipts, .. }) = self.conversations.get_mut(&id) else { return };
        let Phase::Ready(state) = &slot.phase else { return };
        if state.has_unkept() {
            // What a successor was shown is not how it stands any more.
            slot.streamed = None;
            if !std::mem::replace(&mut receipts.waits_for_row, true) {
                self.keeping.waiting.push_back(id);
            }
        }
        if state.has_moved() && !std::mem::replace(&mut receipts.is_listed, true) {
            if now >= receipts.told_at + RECEIPTS_PACE_MS {
                self.due.now.push(id);
            } else {
                self.due.later.push_back((now + RECEIPTS_PACE_MS, id));
            }
        }
    }

    pub(super) fn answer_progress(&mut self, id: ConversationId, said: Said, result: Result<Progressed, Error>) {
        let Said { token, user, progress, .. } = said;
        let was_read = progress.read.is_some();
        let entity = EntityId::User(user.clone());
        self.send_to_entity(&entity, PeerMail::Progressed { token, user, conversation: id, result, was_read });
    }

    /// Tells members what has moved: at the end of a turn.
    pub(super) fn tell_receipts(&mut self) {
        for id in std::mem::take(&mut self.due.now) {
            self.tell_moved(id);
        }
        while self.due.later.front().is_some_and(|(at, _)| *at <= self.now)
            && let Some((_, id)) = self.due.later.pop_front()
        {
            self.tell_moved(id);
        }
    }

    fn tell_moved(&mut self, id: ConversationId) {
        let now = self.now;
        let Some(slot) = self.conversations.get_mut(&id) else { return };
        (slot.receipts.is_listed, slot.receipts.told_at) = (false, now);
        let tell = |shard: &mut Self| {
            let Some(state) = shard.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
            let (head, moved) = (state.head, state.take_moved());
            if !moved.items.is_empty() {
                shard.wait_conversation(id, head, Release::Receipts(moved));
            }
        };
        self.guarded(|| id.into(), tell);
    }

    /// What has moved may be let out: to whoever is a member by now, of whoever is.
    pub(super) fn publish_receipts(&mut self, id: ConversationId, mut moved: Receipts) {
        let Some(state) = self.conversations.get_mut(&id).and_then(|slot| slot.slot.ready()) else { return };
        if !state.shows_receipts() {
            return;
        }
        moved.items.retain(|item| state.members.get(&item.user).is_some());
        // Nobody needs to be told of themselves alone.
        let concerns = |user: &UserId| moved.items.iter().any(|item| item.user != *user);
        let present = state.members.present().map(|member| &member.user);
        let users: Vec<UserId> = present.filter(|user| concerns(user)).cloned().collect();
        if users.is_empty() {
            return;
        }
        self.measures.receipts_told(moved.items.len());
        let receipts = Arc::new(moved);
        for (place, users) in self.by_place(users, UserId::partition) {
            self.send_to_place(place, PeerMail::Receipts { receipts: Arc::clone(&receipts), users });
        }
    }

    /// Members of a conversation have got further; these users of this shard hear of it.
    pub(super) fn hear_receipts(&mut self, receipts: &Arc<Receipts>, users: &[UserId]) {
        let mut recipients = Recipients::default();
        for id in users {
            let Some(Phase::Ready(user)) = self.users.get(id).map(|slot| &slot.slot.phase) else { continue };
            recipients.add(&user.connections);
        }
        for (gateway, connections) in recipients {
            self.send_to_gateway(gateway, ToGateway::Receipts { connections, receipts: Arc::clone(receipts) });
        }
    }

    // === rows

    /// Writes what no row holds yet; whether a row is on its way.
    pub(super) fn keep_receipts(&mut self, id: ConversationId) -> bool {
        while self.keep_some_receipts(id) {}
        let Some(slot) = self.conversations.get_mut(&id) else { return false };
        slot.receipts.waits_for_row = false;
        !slot.receipts.is_quiet()
    }

    /// Writes one row of what no row holds yet; whether there is more for others, as with very many members there is.
    fn keep_some_receipts(&mut self, id: ConversationId) -> bool {
        let Some(slot) = self.conversations.get_mut(&id) else { return false };
        let Some(state) = slot.slot.ready() else { return false };
        let Some((part, items)) = state.take_unkept() else { return false };
        let more = state.has_unkept();
        if !items.is_empty() {
            slot.receipts.on_their_way += 1;
            self.project(Projected::Receipts(id), Projection::Receipts { conversation: id, part, items });
        }
        more
    }

    /// A row is durable.
    pub(super) fn receipts_kept(&mut self, id: ConversationId) {
        if let Some(slot) = self.conversations.get_mut(&id) {
            slot.receipts.on_their_way = slot.receipts.on_their_way.saturating_sub(1);
        }
    }

    /// Once a second: rows that the budget has room for, and requests that have waited too long.
    pub(super) fn tick_receipts(&mut self) {
        let mut rows = RECEIPTS_ROWS_PER_TICK + self.keeping.events / RECEIPTS_EVENTS_PER_ROW;
        self.keeping.events %= RECEIPTS_EVENTS_PER_ROW;
        while rows > 0
            && let Some(id) = self.keeping.waiting.pop_front()
        {
            // What was kept meanwhile for another reason costs nothing.
            let waits = self.conversations.get(&id).is_some_and(|slot| slot.receipts.waits_for_row);
            rows -= u64::from(waits);
            let more = self.guarded(|| id.into(), |shard| shard.keep_some_receipts(id)) == Some(true);
            if let Some(slot) = self.conversations.get_mut(&id) {
                slot.receipts.waits_for_row = more;
                if more {
                    self.keeping.waiting.push_back(id);
                }
            }
        }
        self.measures.receipts_waiting(self.keeping.waiting.len());
        let now = self.now;
        let late: Vec<Telling> =
            self.tellings.extract_if(|_, telling| now > telling.asked.deadline).map(|(_, telling)| telling).collect();
        late.into_iter().for_each(|telling| self.finish_telling(telling));
    }

    /// Between nodes mail may get lost, and a conversation may have another owner by now.
    pub(super) fn say_progress_again(&mut self) {
        let open = self
            .tellings
            .iter()
            .map(|(token, telling)| (*token, telling.asked.actor.user.clone(), telling.open.clone(), telling.private));
        for (token, user, progress, private) in open.collect::<Vec<_>>() {
            self.say_progress(token, &user, &progress, private);
        }
    }

    /// A partition is somebody else's: its users' requests are asked again there.
    pub(super) fn forget_tellings(&mut self, gone: impl Fn(Partition) -> bool) {
        self.tellings.retain(|_, telling| !gone(telling.asked.actor.user.partition()));
    }
}
