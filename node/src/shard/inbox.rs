//! What users ask of their inbox: the list, what has changed, and marks; and what they are told of it unasked.
//!
//! The life of a page: the request waits until the conversations that it needs have said where they stand (all of them,
//! but no longer than [`SETTLING_MS_MAX`]), and until everything that the user's state shows is committed. Then the user
//! *picks*: their orders say which conversations the page shows. The rows are *gathered* from the conversations' owners,
//! one mail for each place; each answers once its head is committed, for its members only. So a page costs what it
//! shows, and what a row shows is what the conversation's owner knows at that moment.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    id::{Change, ConnectionSlot, ConversationId, GatewayId, Millis, Partition, UserId},
    inbox::{Counts, Cursor, Item, Lag, Place, Row, Standing},
    limit::{CONNECT_INBOX_MAX, HEADS_ASKED_MAX, LARGE_HEADS_MS, SETTLING_MS_MAX},
    reply::Reply,
    wire::{Asked, Connecting, Heads, InboxChanged, ToGateway},
};
use hashbrown::HashMap;

use super::{
    InHand, PeerMail, Phase, Shard, Slot, UserRelease,
    users::{Parked, Recipients},
};
use crate::user::{Changed, Client, HeadKnown, MarkCommand, Marked, Moved, Pick, User};

/// A request that waits until conversations have said where they stand.
pub(super) struct Waiting {
    since: Millis,
    /// These must have.
    needs: Vec<ConversationId>,
    /// So should all others.
    everything: bool,
    pub(super) parked: Parked,
}

/// A page whose rows are being gathered.
pub(super) struct Gathering {
    from: GatewayId,
    asked: Arc<Asked>,
    /// What was picked, and what of it has been told.
    picks: Vec<Changed>,
    told: HashMap<ConversationId, Told, foldhash::fast::FixedState>,
    missing: usize,
    shape: Shape,
    cursor: Cursor,
    settling: bool,
}

enum Shape {
    List { next: Option<Place>, unread: bool },
    Sync { more: bool },
}

/// What a conversation's owner says of it to a member's inbox.
#[derive(Clone, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) enum Told {
    /// It stands like this.
    Standing(Box<Standing>),
    /// The user is no member.
    Stranger,
    /// Nobody can tell at the moment.
    Unknown,
}

impl Shard {
    // === waiting for heads

    /// A user's request.
    pub(super) fn inbox(&mut self, from: GatewayId, asked: Arc<Asked>) {
        let id = asked.actor.user.clone();
        let request = InHand::Command(from, asked.correlation);
        let wait = |shard: &mut Self| {
            let Some(Parked::Inbox(from, asked)) = shard.user_or_park(&id, Parked::Inbox(from, asked)) else { return };
            if asked.command.is_about_access() {
                return shard.access_command(&id, from, &asked);
            }
            if asked.command.is_about_presence() {
                return shard.presence_command(&id, from, asked);
            }
            if asked.command.is_about_receipts() {
                return shard.receipts_command(&id, from, asked);
            }
            let needs = match &asked.command {
                Command::InboxUpdate { conversation, .. } => vec![*conversation],
                _ => Vec::new(),
            };
            let everything = needs.is_empty();
            shard.wait_for_heads(&id, needs, everything, Parked::Inbox(from, asked));
        };
        self.guarded_for(Some(request), || id.clone().into(), wait);
    }

    /// A client has more of a conversation than is known here. Where there are several owners that is no wonder: they read it from its
    /// owner, whose news of it was lost on the way. It is asked before anybody is told that the server has lost something.
    pub(super) fn doubt_heads(&mut self, id: &UserId, connecting: &Connecting) {
        let Some(user) = self.users.get_mut(id).and_then(|slot| slot.slot.ready()) else { return };
        for (conversation, seq) in &connecting.positions {
            if user.head(conversation).is_some_and(|head| *seq > head.seq) {
                user.question(*conversation);
            }
        }
    }

    /// The conversations that a new connection is told of must have said where they stand: all, if they are asked at
    /// once, else what stands first as far as anybody knows.
    pub(super) fn heads_for_connection(&self, id: &UserId, connecting: &Connecting) -> Vec<ConversationId> {
        let Some(Phase::Ready(user)) = self.users.get(id).map(|slot| &slot.slot.phase) else { return Vec::new() };
        let mut needs: Vec<ConversationId> = match user.open_questions() {
            0 => Vec::new(),
            1..=HEADS_ASKED_MAX => user.unverified(),
            _ => user.first(CONNECT_INBOX_MAX).collect(),
        };
        let positions = connecting.positions.iter().map(|(conversation, _)| *conversation);
        needs.extend(positions.filter(|position| user.head(position).is_some()));
        needs
    }

    pub(super) fn wait_for_heads(&mut self, id: &UserId, needs: Vec<ConversationId>, everything: bool, parked: Parked) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id) else { return };
        slot.attended = true;
        let ask_large = now >= slot.large_asked_at + LARGE_HEADS_MS;
        let Some(user) = slot.slot.ready() else { return };
        if ask_large && user.has_large() {
            user.distrust_large();
            slot.large_asked_at = now;
        }
        user.ask_first(&needs);
        let mut waiting = Waiting { since: now, needs, everything, parked };
        if waiting.is_over(user, now) {
            return self.go_on(id, waiting.parked);
        }
        slot.waiting.push(waiting);
        self.settling.insert(id.clone());
        self.kept();
        self.ask_heads(id);
    }

    /// Asks conversations' owners where those stand of which the user does not know.
    pub(super) fn ask_heads(&mut self, id: &UserId) {
        let Some(slot) = self.users.get_mut(id) else { return };
        // Whoever was only told something, and is not there, wants to know nothing.
        if !slot.attended {
            return;
        }
        let Some(user) = slot.slot.ready() else { return };
        let questions = user.next_questions();
        if user.is_verified() {
            self.asking_heads.remove(id);
        } else if !self.confirms_at_once {
            self.asking_heads.insert(id.clone());
        }
        self.measures.asked_heads(questions.len());
        for (place, conversations) in self.by_place(questions, ConversationId::partition) {
            self.send_to_place(place, PeerMail::AskHeads { user: id.clone(), conversations });
        }
    }

    /// A conversation's owner has said where it stands.
    pub(super) fn head_known(&mut self, id: &UserId, known: HeadKnown) {
        let verify = |shard: &mut Self| {
            let Self { users, changes, confirms_at_once, .. } = shard;
            let Some(slot) = users.get_mut(id) else { return };
            let epoch = slot.epoch;
            let Some(user) = slot.slot.ready() else { return };
            let (conversation, large) = (known.conversation, known.large);
            let before = user.head(&conversation);
            user.verify(known, || Change::next(epoch, changes));
            // It moved on and the news of it were lost; of a large one none come. Connections have been told of no more than was
            // known here, though nobody had asked yet. Where there is one owner nothing gets lost.
            if let (Some(before), Some(now)) = (before, user.head(&conversation))
                && now.seq > before.seq
                && !large
                && !*confirms_at_once
            {
                let mut behind = Recipients::default();
                behind.add(&user.connections);
                shard.send_behind(conversation, now.seq, behind);
            }
            shard.note_change(id);
            shard.ask_heads(id);
        };
        self.guarded(|| id.clone().into(), verify);
        self.go_on_with_waiting(id);
    }

    /// Lets go on what has waited long enough.
    fn go_on_with_waiting(&mut self, id: &UserId) {
        let now = self.now;
        let Some(slot) = self.users.get_mut(id).filter(|slot| !slot.waiting.is_empty()) else { return };
        let Phase::Ready(user) = &slot.slot.phase else { return };
        let mut over = Vec::new();
        for mut waiting in std::mem::take(&mut slot.waiting) {
            if waiting.is_over(user, now) { over.push(waiting.parked) } else { slot.waiting.push(waiting) }
        }
        if slot.waiting.is_empty() {
            self.settling.remove(id);
        }
        for parked in over {
            let request = match &parked {
                Parked::Connect(from, connecting) => Some(InHand::Connect(*from, connecting.correlation)),
                Parked::Inbox(from, asked) => Some(InHand::Command(*from, asked.correlation)),
                _ => None,
            };
            self.guarded_for(request, || id.clone().into(), |shard| shard.go_on(id, parked));
        }
    }

    /// The heads are known; what the user's state shows must be committed.
    fn go_on(&mut self, id: &UserId, parked: Parked) {
        let Some(parked) = self.user_or_park(id, parked) else { return };
        let Some(head) = self.users.get_mut(id).and_then(|slot| slot.slot.ready()).map(|user| user.head) else {
            return;
        };
        match parked {
            Parked::Connect(from, connecting) => self.wait_user(id, head, UserRelease::Connect(from, connecting)),
            Parked::Inbox(from, asked) => self.wait_user(id, head, UserRelease::Inbox(from, asked)),
            _ => {}
        }
    }

    // === picking

    /// Everything that the user's state shows is committed: the request is answered from it.
    pub(super) fn answer_inbox(&mut self, from: GatewayId, asked: Arc<Asked>) {
        let id = asked.actor.user.clone();
        let request = InHand::Command(from, asked.correlation);
        let answer = |shard: &mut Self| {
            let Some(Parked::Inbox(from, asked)) = shard.user_or_park(&id, Parked::Inbox(from, asked)) else { return };
            let Some(slot) = shard.users.get_mut(&id) else { return };
            let committed = slot.line.committed();
            let Some(user) = slot.slot.ready() else { return };
            if user.head > committed {
                let head = user.head;
                return shard.wait_user(&id, head, UserRelease::Inbox(from, asked));
            }
            if shard.now > asked.deadline {
                let error = Error::new(Code::Aborted).with_detail("the request waited too long and was not begun");
                return shard.answer_now(from, &asked, Err(error));
            }
            if let Command::InboxUpdate { .. } = &asked.command {
                return shard.mark(&id, from, &asked);
            }
            match shard.pick(&id, from, &asked) {
                Ok(gathering) => shard.gather(gathering),
                Err(result) => shard.answer_now(from, &asked, result),
            }
        };
        self.guarded_for(Some(request), || id.clone().into(), answer);
    }

    /// The conversations of a page; or the answer at once.
    fn pick(&mut self, id: &UserId, from: GatewayId, asked: &Arc<Asked>) -> Result<Gathering, Result<Reply, Error>> {
        let (now, generation) = (self.now, self.store.session().generation);
        let Some(slot) = self.users.get_mut(id) else { return Err(Err(Code::Unavailable.into())) };
        let latest = Change { epoch: slot.epoch, count: self.changes };
        let Some(user) = slot.slot.ready() else { return Err(Err(Code::Unavailable.into())) };
        let newest = Cursor { generation, change: user.newest() };
        let settling = !user.is_verified();
        let (picks, shape, cursor) = match &asked.command {
            Command::ConversationList { filter, below, limit } => {
                let page = user.page(*filter, *below, *limit, now);
                let picks = page.picks.into_iter().map(Changed::Row).collect();
                (picks, Shape::List { next: page.next, unread: filter.unread }, newest)
            }
            Command::InboxSync { cursor, limit } => {
                let since = match (user.lag(*cursor, generation, latest), cursor) {
                    (Lag::Current | Lag::Behind, Some(cursor)) => cursor.change,
                    (Lag::Reset(reset), _) => {
                        self.measures.reset(reset);
                        let (items, reset) = (Vec::new(), Some(reset));
                        return Err(Ok(Reply::Synced { items, cursor: newest, more: false, reset, settling }));
                    }
                    (_, None) => return Err(Err(Code::Internal.into())),
                };
                let changes = user.changes(since, *limit, now);
                let upto = Cursor { generation, change: changes.upto };
                (changes.items, Shape::Sync { more: changes.more }, upto)
            }
            _ => return Err(Err(Code::UnknownOperation.into())),
        };
        let (asked, told) = (Arc::clone(asked), HashMap::default());
        Ok(Gathering { from, asked, picks, told, missing: 0, shape, cursor, settling })
    }

    // === gathering

    fn gather(&mut self, mut gathering: Gathering) {
        let rows: Vec<ConversationId> = gathering.rows().map(|pick| pick.conversation).collect();
        gathering.missing = rows.len();
        if rows.is_empty() {
            return self.gathered(gathering);
        }
        self.measures.asked_rows(rows.len());
        let (token, user) = (self.token(), gathering.asked.actor.user.clone());
        self.gatherings.insert(token, gathering);
        self.kept();
        self.ask_rows(token, &user, rows);
    }

    fn ask_rows(&mut self, token: u64, user: &UserId, rows: Vec<ConversationId>) {
        for (place, conversations) in self.by_place(rows, ConversationId::partition) {
            self.send_to_place(place, PeerMail::AskRows { token, user: user.clone(), conversations });
        }
    }

    /// Rows that have not come: between nodes questions may get lost.
    pub(super) fn ask_rows_again(&mut self) {
        let missing = self.gatherings.iter().map(|(token, gathering)| {
            let rows = gathering.rows().map(|pick| pick.conversation);
            let missing = rows.filter(|row| !gathering.told.contains_key(row)).collect();
            (*token, gathering.asked.actor.user.clone(), missing)
        });
        let missing: Vec<(u64, UserId, Vec<ConversationId>)> = missing.collect();
        for (token, user, rows) in missing {
            self.ask_rows(token, &user, rows);
        }
    }

    /// A conversation's owner has told a row.
    pub(super) fn row_told(&mut self, token: u64, user: &UserId, conversation: ConversationId, told: Told) {
        if let Told::Standing(standing) = &told {
            // News travel the same way and have come before it; of large conversations there are none.
            let Standing { head, read_n, message_at, large, .. } = **standing;
            self.head_known(user, HeadKnown { conversation, head: Some(head), read_n, message_at, large });
        }
        // Somebody else's, of an earlier life.
        let Some(gathering) = self.gatherings.get_mut(&token).filter(|one| one.asked.actor.user == *user) else {
            return;
        };
        if gathering.told.insert(conversation, told).is_none() {
            gathering.missing -= 1;
        }
        if gathering.missing == 0
            && let Some(gathering) = self.gatherings.remove(&token)
        {
            self.gathered(gathering);
        }
    }

    fn gathered(&mut self, mut gathering: Gathering) {
        let items = gathering.items();
        let Gathering { from, asked, shape, cursor, settling, .. } = gathering;
        if settling {
            self.measures.answered_settling();
        }
        let reply = match shape {
            Shape::List { next, .. } => {
                let row = |item| if let Item::Row(row) = item { Some(row) } else { None };
                let items = items.into_iter().filter_map(row).collect();
                Reply::Conversations { items, next_cursor: next, cursor, settling }
            }
            Shape::Sync { more } => Reply::Synced { items, cursor, more, reset: None, settling },
        };
        self.answer_now(from, &asked, Ok(reply));
    }

    // === marking

    fn mark(&mut self, id: &UserId, from: GatewayId, asked: &Arc<Asked>) {
        let Command::InboxUpdate { conversation, marking } = asked.command else { return };
        let now = self.now;
        let Self { users, changes, flush, .. } = self;
        let Some(slot) = users.get_mut(id) else { return };
        let epoch = slot.epoch;
        let Slot { phase: Phase::Ready(user), line, .. } = &mut slot.slot else { return };
        let hash = asked.command.hash();
        let command = MarkCommand { actor: &asked.actor, id: asked.id, hash, conversation, marking };
        let result = match user.mark(command, now, || Change::next(epoch, changes)) {
            Err(error) => Err(error),
            Ok(Marked::As(flags, changed)) => Ok(Reply::Marked { flags, changed }),
            Ok(Marked::Append(event, _)) if !line.admits(event.seq) => Err(Error::new(Code::Overloaded).after_ms(100)),
            Ok(Marked::Append(event, flags)) => {
                slot.append(event, flush);
                Ok(Reply::Marked { flags, changed: true })
            }
        };
        let is_news = matches!(&result, Ok(Reply::Marked { changed: true, .. }));
        let Some(head) = slot.ready().map(|user| user.head) else { return };
        self.count_answer(asked, &result);
        self.wait_user(id, head, UserRelease::Reply(id.clone(), from, asked.correlation, result));
        if is_news {
            self.wait_user(id, head, UserRelease::Changed(id.clone(), conversation, None));
        }
    }

    /// The user has read of a conversation, on whatever device: what was marked as unread no longer is, and all devices
    /// hear of it. `read` says up to where, and what is left, unless that is known already.
    pub(super) fn has_read(&mut self, id: &UserId, conversation: ConversationId, read: Option<(u64, Counts)>) {
        if let Some((read_n, counts)) = read
            && self.user_or_park(id, Parked::Read(conversation, read_n, counts)).is_none()
        {
            return;
        }
        let note = |shard: &mut Self| {
            let now = shard.now;
            let Self { users, changes, flush, .. } = shard;
            let Some(slot) = users.get_mut(id) else { return };
            let epoch = slot.epoch;
            let Some(user) = slot.ready() else { return };
            if let Some((read_n, _)) = read {
                user.read_upto(conversation, read_n, || Change::next(epoch, changes));
            }
            if let Some(event) = user.unmark(conversation, now, || Change::next(epoch, changes)) {
                slot.append(event, flush);
            }
            let Some(head) = slot.ready().map(|user| user.head) else { return };
            shard.note_change(id);
            shard.wait_user(id, head, UserRelease::Changed(id.clone(), conversation, read));
        };
        if self.guarded(|| id.clone().into(), note).is_none()
            && let Some((read_n, counts)) = read
        {
            // It is noted after the recovery.
            self.user_or_park(id, Parked::Read(conversation, read_n, counts));
        }
    }

    // === telling unasked

    /// The user was mentioned where news do not come by themselves.
    pub(super) fn is_mentioned(&mut self, id: &UserId, known: HeadKnown, counts: Counts) {
        let Some(head) = known.head else { return };
        let note = |shard: &mut Self| {
            let Self { users, changes, .. } = shard;
            // Whoever is not in memory asks large conversations anyway.
            let Some(slot) = users.get_mut(id) else { return };
            let epoch = slot.epoch;
            let Some(user) = slot.slot.ready() else { return };
            let moved = Moved { head, message_at: known.message_at, read_n: known.read_n };
            user.raise(known.conversation, moved, || Change::next(epoch, changes));
            let head = user.head;
            shard.note_change(id);
            let read = Some((known.read_n, counts));
            shard.wait_user(id, head, UserRelease::Changed(id.clone(), known.conversation, read));
        };
        self.guarded(|| id.clone().into(), note);
    }

    /// Tells the user's connections how a conversation is marked and read now.
    pub(super) fn push_changed(&mut self, id: &UserId, conversation: ConversationId, read: Option<(u64, Counts)>) {
        let (now, generation) = (self.now, self.store.session().generation);
        let Some(slot) = self.users.get_mut(id) else { return };
        let Some(user) = slot.slot.ready() else { return };
        let Some(flags) = user.flags(&conversation, now) else { return };
        let cursor = Cursor { generation, change: user.newest() };
        let changed = Arc::new(InboxChanged { conversation, flags, read, cursor });
        let mut recipients = Recipients::default();
        recipients.add(&user.connections);
        for (gateway, connections) in recipients {
            let changed = Arc::clone(&changed);
            self.send_to_gateway(gateway, ToGateway::InboxChanged { connections, changed });
        }
    }

    /// The user's inbox has changed: their gateways hear of it with the next tick, for the next heartbeat.
    pub(super) fn note_change(&mut self, id: &UserId) {
        if let Some(slot) = self.users.get_mut(id) {
            slot.note_change(&mut self.noted);
        }
    }

    /// Once a second.
    pub(super) fn tick_inbox(&mut self) {
        let settling: Vec<UserId> = self.settling.iter().cloned().collect();
        settling.iter().for_each(|id| self.go_on_with_waiting(id));
        let Self { settling, users, .. } = self;
        settling.retain(|id| users.get(id).is_some_and(|slot| !slot.waiting.is_empty()));
        let now = self.now;
        let late = self.gatherings.extract_if(|_, gathering| now > gathering.asked.deadline);
        let late: Vec<Gathering> = late.map(|(_, gathering)| gathering).collect();
        for gathering in late {
            // Whoever has not told by now cannot.
            self.gathered(gathering);
        }
        let generation = self.store.session().generation;
        let mut by_gateway: BTreeMap<GatewayId, Vec<(ConnectionSlot, Cursor)>> = BTreeMap::new();
        for id in std::mem::take(&mut self.noted) {
            let Some(slot) = self.users.get_mut(&id) else { continue };
            slot.is_noted = false;
            let Some(user) = slot.slot.ready() else { continue };
            let cursor = Cursor { generation, change: user.newest() };
            for Client { connection, .. } in &user.connections {
                by_gateway.entry(connection.gateway).or_default().push((connection.slot, cursor));
            }
        }
        for (gateway, cursors) in by_gateway {
            self.send_to_gateway(gateway, ToGateway::Cursors(cursors));
        }
    }

    /// What a new connection is told.
    pub(super) fn heads(&self, connecting: &Connecting) -> Heads {
        let Some(slot) = self.users.get(&connecting.actor.user) else { return Heads::default() };
        let Phase::Ready(user) = &slot.slot.phase else { return Heads::default() };
        let generation = self.store.session().generation;
        let latest = Change { epoch: slot.epoch, count: self.changes };
        let positions: Vec<ConversationId> =
            connecting.positions.iter().map(|(conversation, _)| *conversation).collect();
        // One may have been joined since it was looked what must be asked. And where there are several owners the word that
        // the user has joined may be on its way still.
        let may_come = |id: &ConversationId| !self.confirms_at_once && !user.has_heard_of(id);
        let is_unknown = |id: &&ConversationId| user.is_unknown(id) || !user.knows_head(id) || may_come(id);
        let others = user.first(CONNECT_INBOX_MAX + positions.len()).filter(|id| !positions.contains(id));
        let others = others.filter_map(|id| Some((id, user.head(&id)?))).take(CONNECT_INBOX_MAX);
        let (doubtful, others) = others.partition(|(id, _)| is_unknown(&id));
        Heads {
            positions: positions.iter().map(|id| (*id, user.head(id))).collect(),
            unknown: positions.iter().filter(is_unknown).copied().collect(),
            others,
            doubtful,
            cursor: Cursor { generation, change: user.newest() },
            lag: user.lag(connecting.cursor, generation, latest),
        }
    }
}

impl Waiting {
    fn is_over(&mut self, user: &User, now: Millis) -> bool {
        while self.needs.last().is_some_and(|need| user.knows_head(need)) {
            self.needs.pop();
        }
        self.needs.is_empty() && (!self.everything || user.is_verified() || now >= self.since + SETTLING_MS_MAX)
    }
}

impl Gathering {
    /// Where the user lives who asks.
    pub(super) fn partition(&self) -> Partition {
        self.asked.actor.user.partition()
    }

    fn rows(&self) -> impl Iterator<Item = &Pick> {
        self.picks.iter().filter_map(|pick| match pick {
            Changed::Row(pick) => Some(pick),
            Changed::Left(..) => None,
        })
    }

    /// What was picked, with what was told of it.
    fn items(&mut self) -> Vec<Item> {
        let unread_only = matches!(self.shape, Shape::List { unread: true, .. });
        let told = &mut self.told;
        let item = |pick: &Changed| match pick {
            Changed::Left(conversation, change) => Some(Item::Left { conversation: *conversation, change: *change }),
            Changed::Row(pick) => {
                let standing = match told.remove(&pick.conversation) {
                    Some(Told::Standing(standing)) => Some(*standing),
                    // That they left is a change of its own.
                    Some(Told::Stranger) => return None,
                    Some(Told::Unknown) | None => None,
                };
                // What is left unread there may have been deleted.
                let is_read = standing.as_ref().is_some_and(|standing| standing.counts.unread == 0);
                if unread_only && is_read && !pick.flags.marked_unread {
                    return None;
                }
                let Pick { conversation, kind, change, active_at, flags } = *pick;
                Some(Item::Row(Row { conversation, kind, change, active_at, flags, standing }))
            }
        };
        self.picks.iter().filter_map(item).collect()
    }
}
