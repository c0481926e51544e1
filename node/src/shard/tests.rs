//! A whole shard, turn by turn, over a store whose every answer the test decides.

mod reactions;
mod receipts;
mod retention;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use chappe_cluster::link::GatewayPort;
use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create},
    error::{Code, Error},
    event::{ConversationKind, Encryption, Event, HistoryAccess, Role},
    id::{
        Change, CommandId, ConnectionSlot, ConversationId, DeviceId, EntityId, Epoch, GatewayId, Generation, Millis,
        Partition, Seq, SessionId, UserId,
    },
    inbox::{Filter, Flags, Marking, Row},
    reaction::ReactionKey,
    receipt::Progress,
    reply::{Reply, Sent},
    stored::{
        LogRow, StoredId, StoredIdBlock, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay, StoredReaction,
        StoredReceipts,
    },
    wire::{Actor, Asked, Connecting, Correlation, Heads, Lane, ToGateway, ToNode},
};
use parking_lot::Mutex;

use super::{
    Alone, Mail, Parts, PeerMail, Report, Settings, Shard,
    handover::TenureMail,
    mailbox::Mailbox,
    supervision::fault::{self as panic, Moment},
};
use crate::{
    conversation::state::fault,
    store::{
        Append, Confirmation, Done, Error as StoreError, MemberRows, Page, PageRequest, Part, Projection, Purge,
        Reacted, ReactedRequest, Recovered, Session, Show, Store, Walked, Written,
    },
};

mod abroad;
mod access;
mod channels;
mod inbox;
mod presence;

const T: Millis = 1_700_000_000_000;
const GATEWAY: GatewayId = GatewayId(1);
const CONVERSATION: ConversationId = ConversationId(uuid::Uuid::from_u128(7));

/// Work that answers when it is done.
type Work = Box<dyn FnOnce(&mut Held) -> Box<dyn FnOnce() + Send> + Send>;

/// What a store holds, and what it has not answered yet.
#[derive(Default)]
struct Held {
    rows: BTreeMap<(EntityId, Seq), LogRow>,
    snapshots: BTreeMap<EntityId, (Seq, bytes::Bytes)>,
    overlays: BTreeMap<(EntityId, Seq), StoredOverlay>,
    reactions: BTreeMap<(EntityId, Seq, ReactionKey, UserId), StoredReaction>,
    blocks: BTreeMap<(EntityId, Seq), Arc<StoredIdBlock>>,
    inbox: BTreeMap<(UserId, ConversationId), StoredInbox>,
    receipts: BTreeMap<ConversationId, StoredReceipts>,
    members: BTreeMap<(ConversationId, String), StoredMember>,
    /// Members' rows that were written, and pages of them that were read.
    member_rows: usize,
    member_pages: usize,
    /// Whether members and ids cannot be read, and nothing be removed.
    deaf: bool,
    /// Rows of receipts that were written.
    receipt_rows: usize,
    announced: BTreeMap<(EntityId, Seq), ()>,
    appends: VecDeque<(Vec<Append>, Done<Vec<Written>>)>,
    confirms: VecDeque<Done<Confirmation>>,
    others: VecDeque<Work>,
    recoveries: usize,
    appended: usize,
    projected: usize,
    /// Ids that were looked for.
    sought: usize,
    /// What was removed.
    purged: Vec<(Part, Seq, Seq)>,
    /// Looks at a user's own reactions.
    looked: usize,
    /// Whether recoveries bring no prints.
    printless: bool,
}

/// A store that answers when the test says so.
#[derive(Clone)]
struct Scripted {
    held: Arc<Mutex<Held>>,
    /// Whether `confirm` needs an answer too.
    fenced: bool,
    /// That of the session.
    epoch: Epoch,
}

impl Scripted {
    /// Answers everything but appends and confirmations, until nothing is left.
    fn answer_reads(&self) -> bool {
        let mut any = false;
        while let Some(work) = {
            let mut held = self.held.lock();
            held.others.pop_front()
        } {
            let tell = work(&mut self.held.lock());
            tell();
            any = true;
        }
        any
    }

    /// Answers the oldest append.
    fn answer_append(&self, outcome: &Written) -> bool {
        let Some((group, done)) = self.held.lock().appends.pop_front() else { return false };
        if matches!(outcome, Written::Durable | Written::Unknown) {
            let mut held = self.held.lock();
            for append in &group {
                let last = append.events.last().unwrap().seq;
                let row = LogRow {
                    epoch: append.epoch,
                    cw: append.cw,
                    origin: append.origin,
                    after: append.after,
                    events: append.events.to_vec(),
                };
                // What is written again must be identical.
                if let Some(before) = held.rows.insert((append.entity.clone(), last), row.clone())
                    && before.epoch == row.epoch
                {
                    assert_eq!(before, row, "a retried append differs from the first");
                }
                held.appended += append.events.len();
                if append.announce {
                    held.announced.insert((append.entity.clone(), last), ());
                }
            }
        }
        done(vec![outcome.clone(); group.len()]);
        true
    }
}

impl Store for Scripted {
    fn session(&self) -> Session {
        Session { id: self.epoch, epoch: self.epoch, generation: Generation(9) }
    }

    fn is_fenced(&self) -> bool {
        self.fenced
    }

    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>) {
        self.held.lock().appends.push_back((group, done));
    }

    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation> {
        if !self.fenced {
            return Some(Confirmation::Clean);
        }
        self.held.lock().confirms.push_back(done);
        None
    }

    fn recover(&self, entity: EntityId, _: Millis, done: Done<Result<Recovered, StoreError>>) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            held.recoveries += 1;
            let snapshot = held.snapshots.get(&entity).cloned();
            let above = snapshot.as_ref().map_or(0, |(seq, _)| *seq);
            let rows = held
                .rows
                .iter()
                .filter(|((whose, last), _)| *whose == entity && *last > above)
                .map(|(_, row)| row.clone())
                .collect();
            let inbox = match &entity {
                EntityId::User(user) => held
                    .inbox
                    .iter()
                    .filter(|((whose, _), _)| whose == user)
                    .map(|((_, id), row)| (*id, *row))
                    .collect(),
                EntityId::Conversation(_) => Vec::new(),
            };
            let receipts = match &entity {
                EntityId::Conversation(id) => held.receipts.get(id).cloned().unwrap_or_default().items,
                EntityId::User(_) => Vec::new(),
            };
            let blocks = held.blocks.iter().filter(|((whose, _), _)| *whose == entity && !held.printless);
            let prints = blocks.map(|((_, end), block)| (*end, StoredIdPrints::of(block))).collect();
            Box::new(move || done(Ok(Recovered { snapshot, rows, inbox, receipts, prints })))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, StoreError>>) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            let mut events: Vec<Arc<Event>> = held
                .rows
                .iter()
                .filter(|((whose, _), _)| *whose == request.entity)
                .flat_map(|(_, row)| row.events.iter().cloned())
                .filter(|event| {
                    let is_shown = request.show != Show::Messages || event.fact.is_message();
                    (request.from..=request.upto).contains(&event.seq) && is_shown
                })
                .collect();
            if request.newest_first {
                events.reverse();
            }
            events.truncate(request.limit);
            events.sort_by_key(|event| event.seq);
            let overlay = |event: &Arc<Event>| {
                let target = if event.fact.is_message() { event.seq } else { event.target };
                Some((target, held.overlays.get(&(request.entity.clone(), target))?.clone()))
            };
            let overlays = match request.show {
                Show::Log => Vec::new(),
                Show::Messages => events.iter().filter_map(overlay).collect(),
                Show::Events => events.iter().filter_map(overlay).filter(|(_, overlay)| overlay.deleted != 0).collect(),
            };
            let mine = held
                .reactions
                .iter()
                .filter(|((whose, _, _, user), _)| *whose == request.entity && Some(user) == request.reader.as_ref());
            let own = mine.map(|((_, target, key, _), row)| (*target, key.clone(), *row)).collect();
            Box::new(move || done(Ok(Page { events, overlays, own, complete: true, reached: 0 })))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, StoreError>>) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            let one = |target| Some((target, held.overlays.get(&(entity.clone(), target))?.clone()));
            let found = targets.into_iter().filter_map(one).collect();
            Box::new(move || done(Ok(found)))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, StoreError>>,
    ) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            held.looked += 1;
            let one = |key: ReactionKey| {
                let row = held.reactions.get(&(entity.clone(), target, key.clone(), user.clone()))?;
                Some((key, *row))
            };
            let found = keys.into_iter().filter_map(one).collect();
            Box::new(move || done(Ok(found)))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, StoreError>>) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            let there = held.reactions.iter().filter(|((whose, target, key, user), _)| {
                (whose, *target, key) == (&request.entity, request.target, &request.key)
                    && request.after.as_ref().is_none_or(|after| user > after)
            });
            let mut there = there.map(|((.., user), row)| (user.clone(), *row));
            let rows = there.by_ref().take(request.limit).collect();
            let complete = there.next().is_none();
            Box::new(move || done(Ok(Reacted { rows, complete })))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, StoreError>>,
    ) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            if held.deaf {
                return Box::new(move || done(Err(StoreError::Unavailable("on purpose".to_owned()))));
            }
            held.member_pages += 1;
            let mut there = held.members.iter().filter(|((whose, user), _)| {
                *whose == conversation && after.as_ref().is_none_or(|after| **user > *after.as_str())
            });
            let rows = there.by_ref().take(limit).map(|(_, row)| row.clone()).collect();
            let complete = there.next().is_none();
            Box::new(move || done(Ok(MemberRows { rows, complete })))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        _: (Seq, Millis),
        done: Done<Result<Option<StoredId>, StoreError>>,
    ) {
        let read = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            held.sought += 1;
            if held.deaf {
                return Box::new(move || done(Err(StoreError::Unavailable("on purpose".to_owned()))));
            }
            let blocks = held.blocks.iter().filter(|((whose, _), _)| *whose == entity);
            let found = blocks
                .flat_map(|(_, block)| &block.ids)
                .find(|stored| stored.sender == sender.as_str() && stored.id == id.0.as_bytes())
                .cloned();
            Box::new(move || done(Ok(found)))
        };
        self.held.lock().others.push_back(Box::new(read));
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, StoreError>>) {
        let remove = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            if held.deaf {
                return Box::new(move || done(Err(StoreError::Unavailable("on purpose".to_owned()))));
            }
            let is_in = |seq: Seq| purge.above < seq && seq <= purge.upto;
            match purge.part {
                Part::History => held.rows.retain(|(whose, last), _| *whose != purge.entity || !is_in(*last)),
                Part::Ids => held.blocks.retain(|(whose, end), _| *whose != purge.entity || !is_in(*end)),
            }
            held.purged.push((purge.part, purge.above, purge.upto));
            Box::new(move || done(Ok(true)))
        };
        self.held.lock().others.push_back(Box::new(remove));
    }

    fn walk(&self, _: Option<Bytes>, _: usize, all: bool, done: Done<Result<Walked, StoreError>>) {
        let look = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            let mut walked = Walked::default();
            let logged = held.rows.keys().map(|(whose, _)| whose).filter(|_| all);
            let entities: std::collections::BTreeSet<EntityId> = held.snapshots.keys().chain(logged).cloned().collect();
            for entity in entities {
                let EntityId::Conversation(id) = entity else { continue };
                let snapshot = held.snapshots.get(&entity).cloned();
                let above = snapshot.as_ref().map_or(0, |(seq, _)| *seq);
                let is_behind = held.rows.keys().any(|(whose, last)| *whose == entity && *last > above);
                walked.found.push((id, snapshot.map(|(_, bytes)| bytes), is_behind));
            }
            Box::new(move || done(Ok(walked)))
        };
        self.held.lock().others.push_back(Box::new(look));
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), StoreError>>) {
        let write = move |held: &mut Held| -> Box<dyn FnOnce() + Send> {
            for write in writes {
                held.projected += 1;
                match write {
                    Projection::Snapshot { entity, seq, bytes } => {
                        let last = held.rows.keys().filter(|(whose, _)| *whose == entity).map(|(_, seq)| *seq).max();
                        assert!(last >= Some(seq), "a snapshot is ahead of the log");
                        held.snapshots.insert(entity, (seq, bytes));
                    }
                    Projection::Overlay { entity, target, overlay } => {
                        let there = held.overlays.entry((entity, target)).or_default();
                        if there.as_of < overlay.as_of {
                            *there = overlay;
                        }
                    }
                    Projection::Reaction { entity, target, key, user, reaction } => {
                        let there = held.reactions.entry((entity, target, key, user)).or_insert(reaction);
                        if there.seq < reaction.seq {
                            *there = reaction;
                        }
                    }
                    Projection::IdBlock { entity, end, block } => drop(held.blocks.insert((entity, end), block)),
                    Projection::Inbox { user, conversation, position } => {
                        held.inbox.insert((user, conversation), position);
                    }
                    Projection::Members { conversation, rows } => {
                        for row in rows {
                            held.member_rows += 1;
                            let there = held.members.entry((conversation, row.user.clone())).or_default();
                            if there.as_of < row.as_of {
                                *there = row;
                            }
                        }
                    }
                    Projection::Receipts { conversation, items, .. } => {
                        held.receipts.entry(conversation).or_default().raise(&items);
                        held.receipt_rows += 1;
                    }
                    Projection::Announced { entity, upto } => {
                        held.announced.retain(|(whose, seq), ()| *whose != entity || *seq > upto)
                    }
                }
            }
            Box::new(move || done(Ok(())))
        };
        self.held.lock().others.push_back(Box::new(write));
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, StoreError>>) {
        let owed = self.held.lock().announced.keys().map(|(entity, _)| entity.clone()).collect();
        done(Ok(owed));
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<ToGateway>>);

impl GatewayPort for Heard {
    fn receive(&self, _: SessionId, batch: Vec<ToGateway>) {
        self.0.lock().extend(batch);
    }
}

/// A shard and everything around it.
struct Bench {
    shard: Shard,
    store: Scripted,
    mailbox: Mailbox<Mail>,
    heard: Arc<Heard>,
    now: Arc<AtomicU64>,
    deaths: Arc<Mutex<Vec<String>>>,
    asked: u64,
    /// How often the gateway has sent its lanes again.
    attempt: u32,
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn body(text: &str) -> Body {
    Body::parse(&format!("{{\"text\":\"{text}\"}}")).unwrap()
}

fn send(text: &str) -> Command {
    Command::MessageSend { conversation: CONVERSATION, body: body(text), mentions: None }
}

fn list(limit: usize) -> Command {
    Command::ConversationList { filter: Filter::default(), below: None, limit }
}

/// What a list shows of each conversation: its head and what is unread.
fn shown(reply: Result<Reply, Error>) -> Vec<(ConversationId, Seq, u64)> {
    let Ok(Reply::Conversations { items, next_cursor: None, settling: false, .. }) = reply else {
        panic!("no inbox: {reply:?}")
    };
    let row = |row: &Row| {
        let standing = row.standing.as_ref().unwrap();
        (row.conversation, standing.head.seq, standing.counts.unread)
    };
    items.iter().map(row).collect()
}

fn leave() -> Command {
    Command::ConversationLeave { conversation: CONVERSATION }
}

fn add(name: &str) -> Command {
    Command::MemberAdd { conversation: CONVERSATION, user: user(name), role: Role::Member }
}

fn remove(name: &str) -> Command {
    Command::MemberRemove { conversation: CONVERSATION, user: user(name) }
}

fn group(members: &[&str]) -> Command {
    Command::ConversationCreate(Box::new(Create {
        conversation: CONVERSATION,
        kind: ConversationKind::Group,
        encryption: Encryption::None,
        members: members.iter().map(|name| user(name)).collect(),
        title: String::new(),
        data: None,
        history: HistoryAccess::All,
        receipts: true,
        open: false,
        retention_secs: 0,
    }))
}

impl Bench {
    fn new(fenced: bool) -> Self {
        Self::over(Scripted { held: Arc::default(), fenced, epoch: 3 })
    }

    /// A new life over what an earlier one has left.
    fn over(store: Scripted) -> Self {
        let mailbox = Mailbox::new();
        let now = Arc::new(AtomicU64::new(T));
        let clock = Arc::clone(&now);
        let deaths = Arc::new(Mutex::new(Vec::new()));
        let dead = Arc::clone(&deaths);
        let (fenced, epoch) = (store.fenced, store.epoch);
        let owing: Vec<EntityId> = store.held.lock().announced.keys().map(|(entity, _)| entity.clone()).collect();
        let unannounced = owing.clone();
        let mut shard = Shard::new(Parts {
            index: 0,
            peers: Arc::from([mailbox.clone()]),
            store: Arc::new(store.clone()),
            settings: Settings { idle_ms: 60_000, budget_bytes: 1 << 30, retention_ms: None },
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            reports: Arc::new(move |report| {
                if let Report::Ended(_, why) = report {
                    dead.lock().push(why);
                }
            }),
            abroad: Arc::new(Alone),
            unannounced,
        });
        let heard = Arc::new(Heard::default());
        shard.turn(&mut vec![Mail::Attach(GATEWAY, heard.clone())]);
        shard.warm_up();
        if fenced {
            // Where others could take over, nothing is owned until that is said.
            for partition in (0..chappe_schema::id::partitions()).map(|number| Partition(number as u16)) {
                let warm = owing.iter().filter(|entity| entity.partition() == partition).cloned().collect();
                let open = TenureMail::Open { partition, epoch, handed: Vec::new(), warm };
                shard.turn(&mut vec![Mail::Tenure(open)]);
            }
        }
        Self { shard, store, mailbox, heard, now, deaths, asked: 0, attempt: 0 }
    }

    /// The next owner takes over what this one has left.
    fn succeeded(self) -> Self {
        {
            // Whatever it still had in hand is gone with it.
            let mut held = self.store.held.lock();
            held.appends.clear();
            held.confirms.clear();
            held.others.clear();
        }
        let asked = self.asked;
        Self { asked, ..Self::over(Scripted { epoch: self.store.epoch + 1, ..self.store }) }
    }

    /// Memory is so short that everything is put away.
    fn put_away(&mut self) {
        self.now.fetch_add(61_000, Ordering::Relaxed);
        let budget = std::mem::take(&mut self.shard.settings.budget_bytes);
        self.mail(Mail::Tick);
        self.settle();
        self.shard.settings.budget_bytes = budget;
        assert!(self.shard.conversations.is_empty() && self.shard.users.is_empty());
    }

    fn mail(&mut self, mail: Mail) {
        self.shard.turn(&mut vec![mail]);
    }

    fn ask_as(&mut self, who: &str, id: CommandId, command: Command) -> Correlation {
        self.asked += 1;
        let correlation = Correlation(self.asked);
        let actor = Actor { user: user(who), device: None, by: By::Token(Token::default()) };
        let deadline = self.now.load(Ordering::Relaxed) + 10_000;
        let entity = command.conversation().map_or_else(|| user(who).into(), EntityId::from);
        let lane = Lane { partition: entity.partition(), attempt: self.attempt };
        self.mail(Mail::Gateway(
            GATEWAY,
            ToNode::Command(lane, Arc::new(Asked { correlation, actor, id, command, deadline })),
        ));
        correlation
    }

    fn ask(&mut self, who: &str, command: Command) -> Correlation {
        let bytes = (u128::from(self.asked) + 1).to_be_bytes();
        let id = CommandId(uuid::Builder::from_unix_timestamp_millis(T, bytes[6..].try_into().unwrap()).into_uuid());
        self.ask_as(who, id, command)
    }

    fn connect(&mut self, who: &str, slot: u32) {
        self.connect_at(who, slot, 0);
    }

    fn connect_at(&mut self, who: &str, slot: u32, seq: Seq) {
        let connecting = self.connecting(who, slot, seq);
        let lane = Lane { partition: user(who).partition(), attempt: self.attempt };
        self.mail(Mail::Gateway(GATEWAY, ToNode::Connect(lane, Arc::new(connecting))));
    }

    /// A client that says it has everything up to `seq`.
    fn connecting(&mut self, who: &str, slot: u32, seq: Seq) -> Connecting {
        self.asked += 1;
        Connecting {
            again: false,
            correlation: Correlation(self.asked),
            actor: Actor { user: user(who), device: None, by: By::Token(Token::default()) },
            connection: ConnectionSlot(slot),
            positions: vec![(CONVERSATION, seq)],
            cursor: None,
        }
    }

    /// Takes the mail that the store's answers have become.
    fn collect(&mut self) -> bool {
        let mut mail = Vec::new();
        while self.mailbox.len() > 0 {
            futures_now(self.mailbox.take(&mut mail));
            self.shard.turn(&mut mail);
        }
        !mail.is_empty()
    }

    /// Lets the store answer everything that is not an append, until nothing moves.
    fn reads(&mut self) {
        while self.store.answer_reads() {
            self.collect();
        }
    }

    /// Answers the oldest append.
    fn append(&mut self, outcome: Written) {
        assert!(self.store.answer_append(&outcome), "no append is on its way");
        self.collect();
    }

    fn confirm(&mut self, confirmation: Confirmation) {
        let done = self.store.held.lock().confirms.pop_front().expect("no fence read is on its way");
        done(confirmation);
        self.collect();
    }

    /// Lets the store do everything it is asked for.
    fn settle(&mut self) {
        loop {
            let confirm = {
                let mut held = self.store.held.lock();
                held.confirms.pop_front()
            };
            let moved = confirm.map(|done| done(Confirmation::Clean)).is_some()
                | self.store.answer_reads()
                | self.store.answer_append(&Written::Durable);
            self.collect();
            if !moved {
                return;
            }
        }
    }

    fn done(&mut self, who: &str, command: Command) -> Result<Reply, Error> {
        let correlation = self.ask(who, command);
        self.settle();
        self.answer(correlation).expect("no answer")
    }

    fn answer(&self, correlation: Correlation) -> Option<Result<Reply, Error>> {
        self.heard.0.lock().iter().find_map(|message| match message {
            ToGateway::Reply(asked, result) if *asked == correlation => Some(result.clone()),
            _ => None,
        })
    }

    /// Whether the conversation's lane was refused under this attempt.
    fn is_refused(&self, attempt: u32) -> bool {
        let lane = Lane { partition: CONVERSATION.partition(), attempt };
        self.heard
            .0
            .lock()
            .iter()
            .any(|heard| matches!(heard, ToGateway::Moved { lane: refused, .. } if *refused == lane))
    }

    fn connected(&self) -> Vec<Heads> {
        let heads = |message: &ToGateway| {
            if let ToGateway::Connected(_, Ok(heads)) = message { Some(heads.clone()) } else { None }
        };
        self.heard.0.lock().iter().filter_map(heads).collect()
    }

    /// Seqs delivered to a connection, in order.
    fn delivered(&self, slot: u32) -> Vec<Seq> {
        let heard = self.heard.0.lock();
        let to = |message: &ToGateway| match message {
            ToGateway::Deliver { events, connections, .. } if connections.contains(&ConnectionSlot(slot)) => {
                events.iter().map(|event| event.seq).collect()
            }
            _ => Vec::new(),
        };
        heard.iter().flat_map(to).collect()
    }
}

/// Polls a future that is ready.
fn futures_now<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("the future is not ready"),
    }
}

fn sent(reply: Option<Result<Reply, Error>>) -> Sent {
    match reply {
        Some(Ok(Reply::Sent(sent))) => sent,
        other => panic!("{other:?}"),
    }
}

/// Thread: openimsdk/open-im-server#3080, acknowledged from a cache before the log had it.
#[test]
fn nothing_leaves_before_the_log_has_it() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.connect("bob", 5);
    bench.settle();
    let asked = bench.ask("ada", send("hi"));
    bench.reads();
    assert_eq!((bench.answer(asked), bench.delivered(5).len()), (None, 0));
    bench.append(Written::Durable);
    assert_eq!(sent(bench.answer(asked)).seq, 2);
    assert_eq!(bench.delivered(5), [2]);
}

#[test]
fn nothing_leaves_before_a_fence_read_that_started_afterwards() {
    let mut bench = Bench::new(true);
    bench.store.held.lock().confirms.clear();
    let asked = bench.ask("ada", group(&["bob"]));
    bench.reads();
    bench.append(Written::Durable);
    assert_eq!(bench.answer(asked), None);
    assert_eq!(bench.store.held.lock().confirms.len(), 1, "one read serves all that wait");
    bench.confirm(Confirmation::Unknown);
    assert_eq!(bench.answer(asked), None);
    bench.confirm(Confirmation::Clean);
    assert!(matches!(bench.answer(asked), Some(Ok(Reply::Conversation(_)))));
    bench.settle();
    // Reads and rejections are let out by a fence read too.
    let get = bench.ask("ada", Command::ConversationGet { conversation: CONVERSATION });
    let stranger = bench.ask("eve", send("x"));
    assert_eq!((bench.answer(get), bench.answer(stranger)), (None, None));
    bench.settle();
    assert!(bench.answer(get).unwrap().is_ok());
    assert_eq!(bench.answer(stranger).unwrap().unwrap_err().code, Code::ConversationNotFound);
}

/// A fuzzer that asked two things at once of what does not exist waited for one of the answers until it was too late.
#[test]
fn everybody_who_asks_for_what_does_not_exist_is_answered() {
    let mut bench = Bench::new(false);
    let change = || Command::MemberRemove { conversation: CONVERSATION, user: user("bob") };
    let asked = [("ada", change()), ("ada", change()), ("bob", send("x")), ("eve", change())];
    let asked = asked.map(|(who, command)| bench.ask(who, command));
    bench.settle();
    for correlation in asked {
        let answer = bench.answer(correlation).expect("everybody is answered");
        assert_eq!(answer.unwrap_err().code, Code::ConversationNotFound);
    }
    assert!(bench.shard.conversations.is_empty(), "and nothing of it is kept");
}

#[test]
fn a_fenced_session_acknowledges_nothing_any_more() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    let asked = bench.ask("ada", send("hi"));
    bench.append(Written::Durable);
    bench.confirm(Confirmation::Fenced);
    assert_eq!(bench.answer(asked), None);
    assert_eq!(bench.deaths.lock().len(), 1);
    let late = bench.ask("ada", send("more"));
    bench.settle();
    assert_eq!((bench.answer(late), bench.answer(asked)), (None, None));
    // Whoever asks is sent to the next owner.
    let heard = bench.heard.0.lock();
    assert!(heard.iter().any(|message| matches!(message, ToGateway::Moved { .. })), "{heard:?}");
}

/// Seed 535 of the simulator: a partition goes and comes back within one session, and the log answers to its first tenure.
#[test]
fn an_answer_to_an_earlier_tenure_commits_nothing_of_this_one() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    let first = bench.ask("ada", send("1"));
    assert_eq!(bench.store.held.lock().appends.len(), 1, "it is on its way");
    let partition = CONVERSATION.partition();
    bench.mail(Mail::Tenure(TenureMail::Close(vec![partition])));
    let open = TenureMail::Open { partition, epoch: 5, handed: Vec::new(), warm: Vec::new() };
    bench.mail(Mail::Tenure(open));
    // Its gateway has not heard of it yet. What waited is forgotten, and nothing may overtake it.
    let late = bench.ask("ada", send("too early"));
    bench.reads();
    assert!(bench.answer(late).is_none() && bench.is_refused(0), "it is to be sent again, behind the first");
    bench.attempt = 1;
    let second = bench.ask("ada", send("2"));
    bench.reads();
    assert_eq!(bench.store.held.lock().appends.len(), 2);
    bench.append(Written::Durable);
    while !bench.store.held.lock().confirms.is_empty() {
        bench.confirm(Confirmation::Clean);
    }
    assert_eq!((bench.answer(first), bench.answer(second)), (None, None), "only the first tenure's row is durable");
    bench.settle();
    assert!(bench.answer(second).unwrap().is_ok());
    assert_eq!(bench.answer(first), None, "asked again by its gateway, or never");
}

#[test]
fn commands_that_come_together_are_appended_together() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let first = bench.ask("ada", send("1"));
    let second = bench.ask("bob", send("2"));
    let third = bench.ask("ada", send("3"));
    bench.reads();
    assert_eq!(bench.store.held.lock().appends.len(), 1, "the rest waits for the first to land");
    bench.append(Written::Durable);
    assert_eq!((bench.answer(first).is_some(), bench.answer(second)), (true, None));
    assert_eq!(bench.store.held.lock().appends[0].0[0].events.len(), 2);
    bench.append(Written::Durable);
    assert_eq!((sent(bench.answer(second)).seq, sent(bench.answer(third)).seq), (3, 4));
}

#[test]
fn a_retry_attaches_to_the_message_that_is_still_pending() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let id = CommandId(uuid::Builder::from_unix_timestamp_millis(T, &[3; 10]).into_uuid());
    let first = bench.ask_as("ada", id, send("hi"));
    let retry = bench.ask_as("ada", id, send("hi"));
    bench.reads();
    assert_eq!(bench.answer(retry), None, "a duplicate of what is not committed is not acknowledged either");
    bench.settle();
    let (first, retry) = (sent(bench.answer(first)), sent(bench.answer(retry)));
    assert_eq!(retry, Sent { duplicate: true, ..first });
    // Nor after a restart.
    let mut next = Bench::over(bench.store.clone());
    let again = next.ask_as("ada", id, send("hi"));
    next.settle();
    assert_eq!(sent(next.answer(again)), retry);
    assert_eq!(next.store.held.lock().rows.keys().filter(|(whose, _)| *whose == CONVERSATION.into()).count(), 2);
}

#[test]
fn a_write_of_unknown_outcome_is_written_again_identically() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let asked = bench.ask("ada", send("hi"));
    bench.append(Written::Unknown);
    bench.append(Written::Unknown);
    assert_eq!(bench.answer(asked), None);
    bench.append(Written::Durable);
    assert_eq!(sent(bench.answer(asked)).seq, 2);
}

#[test]
fn what_certainly_was_not_written_is_refused_and_forgotten() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let first = bench.ask("ada", send("1"));
    let second = bench.ask("ada", send("2"));
    bench.append(Written::NotWritten("disk full".into()));
    for asked in [first, second] {
        assert_eq!(bench.answer(asked).unwrap().unwrap_err().code, Code::Unavailable);
    }
    bench.settle();
    let Ok(Reply::Sent(sent)) = bench.done("ada", send("3")) else { panic!("no answer") };
    assert_eq!(sent.seq, 2, "the refused messages have left no hole");
    assert!(bench.deaths.lock().is_empty());
}

#[test]
fn a_panic_costs_one_command_and_reaches_no_other_entity() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    // On its way when the panic comes: it must be acknowledged all the same.
    let pending = bench.ask("ada", send("2"));
    fault::at(4);
    let struck = bench.ask("ada", send("3"));
    assert_eq!(bench.answer(struck).unwrap().unwrap_err().code, Code::Internal);
    let after = bench.ask("bob", send("4"));
    assert_eq!(bench.answer(after), None, "the log is read again first");
    bench.settle();
    assert_eq!((sent(bench.answer(pending)).seq, sent(bench.answer(after)).seq), (3, 4));
}

#[test]
fn an_entity_that_panics_again_and_again_is_withdrawn_for_a_while() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    for _ in 0..3 {
        fault::at(2);
        let struck = bench.ask("ada", send("x"));
        assert_eq!(bench.answer(struck).unwrap().unwrap_err().code, Code::Internal);
        bench.settle();
    }
    assert_eq!(bench.done("ada", send("x")).unwrap_err().code, Code::ConversationUnavailable);
    bench.now.fetch_add(super::WITHDRAWN_MS, Ordering::Relaxed);
    assert!(bench.done("ada", send("x")).is_ok());
}

#[test]
fn members_hear_and_the_removed_hear_no_more() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob", "eve"])).unwrap();
    bench.connect("bob", 5);
    bench.connect("eve", 6);
    bench.connect("ada", 7);
    bench.settle();
    assert_eq!(bench.connected()[0].positions[0].1.unwrap().seq, 1);
    bench.done("ada", send("all")).unwrap();
    bench.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("eve") }).unwrap();
    bench.done("ada", send("without eve")).unwrap();
    assert_eq!(
        (bench.delivered(5), bench.delivered(6), bench.delivered(7)),
        (vec![2, 3, 4], vec![2, 3], vec![2, 3, 4])
    );
    bench.connect("eve", 8);
    bench.settle();
    assert_eq!(bench.connected().last().unwrap().positions[0].1, None);
}

/// A client that has more than is known of a conversation is not told that the server lost it before its owner has been asked: where
/// there are several owners the news of it may have been lost (found by seeds 307, 427 and 1732 of a simulation).
#[test]
fn who_has_more_than_is_known_is_believed_until_the_owner_was_asked() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("x")).unwrap();
    bench.connect("bob", 4);
    bench.settle();
    for (seq, known) in [(1, true), (2, true), (3, false)] {
        let connecting = bench.connecting("bob", 5, seq);
        bench.shard.doubt_heads(&user("bob"), &connecting);
        let bob = bench.shard.users.get_mut(&user("bob")).and_then(|slot| slot.slot.ready()).unwrap();
        assert_eq!(bob.knows_head(&CONVERSATION), known, "at {seq}");
    }
    bench.connect_at("bob", 6, 3);
    bench.settle();
    assert_eq!(bench.connected().last().unwrap().positions[0].1.unwrap().seq, 2, "it was asked, and knows no more");
}

/// A connection's answer comes before its first event, even while the user's own log is being written.
#[test]
fn no_event_overtakes_the_answer_to_connect() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.connect("bob", 4);
    bench.settle();
    // Bob's log is about to hear of leaving; the row is on its way and stays there.
    bench.ask("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("bob") });
    bench.append(Written::Durable);
    bench.ask("ada", Command::MemberAdd { conversation: CONVERSATION, user: user("bob"), role: Default::default() });
    bench.reads();
    assert_eq!(bench.store.held.lock().appends.len(), 2, "bob's row and the conversation's");
    bench.connect("bob", 5);
    bench.reads();
    bench.store.held.lock().appends.swap(0, 1);
    bench.append(Written::Durable);
    bench.reads();
    assert_eq!((bench.connected().len(), bench.delivered(4), bench.delivered(5)), (1, vec![2, 3], vec![]));
    bench.settle();
    assert_eq!(bench.connected().len(), 2);
    let head = bench.connected()[1].positions[0].1.unwrap().seq;
    let Ok(Reply::Sent(sent)) = bench.done("ada", send("next")) else { panic!("no answer") };
    assert_eq!((head, sent.seq, bench.delivered(5)), (3, 4, vec![4]));
}

#[test]
fn the_inbox_shows_heads_that_nobody_wrote_down() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    for n in 0..5 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    assert_eq!(shown(bench.done("bob", list(10))), [(CONVERSATION, 6, 5)]);
    let mut next = Bench::over(bench.store.clone());
    assert_eq!(shown(next.done("bob", list(10))), [(CONVERSATION, 6, 5)]);
    let own = shown(next.done("ada", list(10)));
    assert_eq!(own, [(CONVERSATION, 6, 0)], "who wrote it has read it, crash or not");
}

/// Whoever asks while the heads of others' conversations are awaited gets an answer too.
#[test]
fn nobody_waits_for_ever_for_the_heads() {
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", group(&names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    let mut next = Bench::over(bench.store.clone());
    let first = next.ask("user-007", list(5));
    next.store.answer_reads();
    next.collect();
    let second = next.ask("user-007", list(5));
    next.settle();
    let third = next.ask("user-007", list(5));
    next.settle();
    for asked in [first, second, third] {
        assert!(next.answer(asked).is_some_and(|answer| answer.is_ok()));
    }
}

impl Bench {
    /// Ada says so much that ids stand in the store only; the next life of it has the conversation at hand, and asks there for each.
    fn asking_the_store(mut self) -> Self {
        for n in 0..300 {
            self.done("ada", send(&n.to_string())).unwrap();
        }
        self.put_away();
        let mut next = Self::over(self.store.clone());
        next.store.held.lock().printless = true;
        next.done("bob", Command::ConversationGet { conversation: CONVERSATION }).unwrap();
        next.asked = 10_000;
        next
    }
}

/// A group of ada and bob whose ids stand in the store only.
fn with_ids_in_the_store() -> Bench {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.asking_the_store()
}

/// Sends keep their order while the first of them waits for the id blocks.
#[test]
fn sends_that_wait_for_the_store_keep_their_order() {
    let mut next = with_ids_in_the_store();
    let asked: Vec<Correlation> = (0..20).map(|n| next.ask("ada", send(&n.to_string()))).collect();
    next.settle();
    let seqs: Vec<Seq> = asked.iter().map(|asked| sent(next.answer(*asked)).seq).collect();
    assert_eq!(seqs, (302..322).collect::<Vec<_>>());
    assert_eq!(next.store.held.lock().sought, 20);
}

/// Seed 825 of the simulator: the answer about an id came between a panic and the reading of the log, and who had waited for it was put behind
/// what had come meanwhile.
#[test]
fn a_panic_leaves_those_that_wait_for_the_store_in_front() {
    let mut next = with_ids_in_the_store();
    let mut asked: Vec<Correlation> = (0..3).map(|n| next.ask("ada", send(&n.to_string()))).collect();
    next.shard.conversation_panicked(CONVERSATION);
    asked.extend((3..5).map(|n| next.ask("ada", send(&n.to_string()))));
    next.settle();
    let seqs: Vec<Seq> = asked.iter().map(|asked| sent(next.answer(*asked)).seq).collect();
    assert_eq!(seqs, (302..307).collect::<Vec<_>>());
}

/// Seed 5563 of the simulator: the answer to the first was lost, and its gateway asked for it again, behind those that had been behind it.
#[test]
fn those_behind_a_look_that_failed_share_its_fate() {
    let mut next = with_ids_in_the_store();
    next.store.held.lock().deaf = true;
    let asked: Vec<Correlation> = (0..5).map(|n| next.ask("ada", send(&n.to_string()))).collect();
    next.settle();
    for asked in asked {
        let answer = next.answer(asked).expect("no answer");
        assert_eq!(answer.map_err(|error| error.code), Err(Code::Unavailable));
    }
    next.store.held.lock().deaf = false;
    assert_eq!(sent(Some(next.done("ada", send("later")))).seq, 302);
}

/// A group of ada and bob in which ada has said something, under an id that is known.
fn with_an_old_message() -> (Bench, CommandId, Sent) {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let old = CommandId(uuid::Builder::from_unix_timestamp_millis(T, &[9; 10]).into_uuid());
    let first = bench.ask_as("ada", old, send("old"));
    bench.settle();
    let first = sent(bench.answer(first));
    (bench, old, first)
}

/// Seed 778 of the simulator: an edit looks at its message while others come, and a block of ids becomes durable meanwhile.
/// So it asks the blocks again, in front of whoever waits; but the question that is on its way is another's, and so is its
/// answer.
#[test]
fn an_answer_about_ids_belongs_to_who_asked() {
    let (bench, old, first) = with_an_old_message();
    let mut next = bench.asking_the_store();
    let edit = Command::MessageEdit { conversation: CONVERSATION, seq: first.seq, body: body("new"), mentions: None };
    let edit = next.ask("ada", edit);
    assert!(next.store.answer_reads(), "whether its id is known");
    next.collect();
    let look = next.store.held.lock().others.pop_front().expect("it looks at its message");
    for n in 0..230 {
        next.done("ada", send(&n.to_string())).unwrap();
    }
    assert_eq!(next.store.held.lock().blocks.len(), 2, "a block became durable meanwhile");
    let again = next.ask_as("ada", old, send("old"));
    assert_eq!(next.store.held.lock().others.len(), 1, "whether this id is known");
    let tell = look(&mut next.store.held.lock());
    tell();
    next.collect();
    next.settle();
    assert_eq!(sent(next.answer(again)), Sent { duplicate: true, ..first });
    assert!(matches!(next.answer(edit), Some(Ok(Reply::Changed { changed: true, .. }))), "{:?}", next.answer(edit));
    let held = next.store.held.lock();
    let ids = held.rows.values().flat_map(|row| row.events.iter()).filter(|event| event.id == old);
    assert_eq!(ids.count(), 1, "it stands once");
}

/// News that are lost on their way from another owner are noticed with the next ones, or when their sender's successor says the head
/// again: the user's connections are told to fetch, and are not given what does not follow.
#[test]
fn a_jump_in_the_news_is_told() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    bench.connect("bob", 5);
    bench.settle();
    let event = |seq| {
        Arc::new(Event {
            seq,
            n: seq - 1,
            sender: user("ada"),
            device: None,
            id: CommandId(uuid::Uuid::from_u128(u128::from(seq))),
            target: 0,
            created_at: T,
            hash: 0,
            fact: chappe_schema::event::Fact::MessageNew { body: body("x"), mentions: None },
        })
    };
    let mut news = |head: Seq, events: Vec<Arc<Event>>| {
        bench.heard.0.lock().clear();
        let head = chappe_schema::wire::Head { seq: head, n: head - 1 };
        let news = super::News { conversation: CONVERSATION, head, message_at: T, events: events.into(), large: false };
        bench.mail(Mail::Peer(PeerMail::News { news: Arc::new(news), users: vec![user("bob")] }));
        let behind = bench.heard.0.lock().iter().find_map(|heard| match heard {
            ToGateway::Behind { conversation: CONVERSATION, head, connections } => {
                assert_eq!(connections, &[ConnectionSlot(5)]);
                Some(*head)
            }
            _ => None,
        });
        (behind, bench.delivered(5))
    };
    assert_eq!(news(3, vec![event(3)]), (None, vec![3]), "what follows is given");
    assert_eq!(news(3, Vec::new()), (None, vec![]), "what is said again is no news");
    assert_eq!(news(6, Vec::new()), (Some(6), vec![]), "the successor says the head again");
    assert_eq!(news(7, vec![event(7)]), (None, vec![7]));
    assert_eq!(news(10, vec![event(9), event(10)]), (Some(10), vec![]), "8 was lost");
    assert_eq!(news(11, vec![event(11)]), (None, vec![11]));
}

/// News of a conversation may come before the user's log says that they have joined it. A connection that comes then is not told of it
/// by its answer: what comes next does not follow for it, whatever others have been told (seed 3028 of the simulator).
#[test]
fn who_comes_before_a_joining_is_known_is_told_to_fetch() {
    let mut bench = Bench::new(true);
    bench.connect("bob", 5);
    bench.settle();
    let news = |bench: &mut Bench, seq: Seq| {
        bench.heard.0.lock().clear();
        let fact = chappe_schema::event::Fact::MessageNew { body: body("x"), mentions: None };
        let id = CommandId(uuid::Uuid::from_u128(u128::from(seq)));
        let (sender, device, created_at) = (user("ada"), None, T);
        let event = Arc::new(Event { seq, n: seq - 1, sender, device, id, target: 0, created_at, hash: 0, fact });
        let head = chappe_schema::wire::Head { seq, n: seq - 1 };
        let news =
            super::News { conversation: CONVERSATION, head, message_at: T, events: [event].into(), large: false };
        bench.mail(Mail::Peer(PeerMail::News { news: Arc::new(news), users: vec![user("bob")] }));
        let is_behind = |heard: &ToGateway| matches!(heard, ToGateway::Behind { .. });
        let behind = bench.heard.0.lock().iter().any(is_behind);
        (behind, bench.delivered(5))
    };
    assert_eq!(news(&mut bench, 20), (true, vec![]), "nobody knows what was before");
    assert_eq!(news(&mut bench, 21), (false, vec![21]), "it follows");
    bench.connect("bob", 6);
    bench.settle();
    assert_eq!(news(&mut bench, 22), (true, vec![]));
    assert_eq!(news(&mut bench, 23), (false, vec![23]));
}

/// A conversation's owner tells users that they have joined until it hears that they know. A word too many must not make the user's
/// owner wait for the conversation's beginning: every later message would be taken for one that does not follow, for ever.
#[test]
fn a_joining_that_is_told_again_later_holds_up_no_news() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    bench.connect("bob", 5);
    bench.settle();
    bench.heard.0.lock().clear();
    let fact = chappe_schema::event::Fact::UserJoined {
        conversation: CONVERSATION,
        kind: ConversationKind::Group,
        at: 1,
        change: Change::default(),
    };
    bench.mail(Mail::Peer(PeerMail::Tell { user: user("bob"), fact, conversation: CONVERSATION }));
    bench.settle();
    for seq in [3, 4] {
        bench.heard.0.lock().clear();
        bench.done("ada", send("more")).unwrap();
        bench.settle();
        let is_behind = |heard: &ToGateway| matches!(heard, ToGateway::Behind { .. });
        assert!(!bench.heard.0.lock().iter().any(is_behind), "{seq} follows");
        assert_eq!(bench.delivered(5), [seq]);
    }
}

/// After a restart, too, a first attempt is known to be new without a read; a repetition is still recognised.
#[test]
fn first_attempts_after_a_restart_need_no_read() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let old = bench.ask("ada", send("old"));
    for n in 0..300 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    bench.put_away();
    let mut next = bench.succeeded();
    for n in 0..20 {
        next.done("ada", send(&n.to_string())).unwrap();
    }
    assert_eq!(next.store.held.lock().sought, 0);
    next.asked = old.0 - 1;
    let Ok(Reply::Sent(again)) = next.done("ada", send("old")) else { panic!("no answer") };
    assert_eq!((again.seq, again.duplicate, next.store.held.lock().sought), (2, true, 1));
}

#[test]
fn a_crash_between_the_commit_and_telling_the_users_is_made_good() {
    let mut bench = Bench::new(false);
    let asked = bench.ask("ada", group(&["bob"]));
    bench.reads();
    bench.append(Written::Durable);
    assert!(bench.answer(asked).unwrap().is_ok());
    // The process dies here: the users' logs were not written.
    assert!(bench.store.held.lock().rows.keys().all(|(whose, _)| *whose == CONVERSATION.into()));
    bench.store.held.lock().appends.clear();
    bench.store.held.lock().others.clear();
    let mut next = Bench::over(bench.store.clone());
    next.settle();
    assert!(next.store.held.lock().announced.is_empty(), "what was owed has been told");
    assert_eq!(shown(next.done("bob", list(10))).len(), 1);
}

#[test]
fn edits_survive_and_are_seen_at_once() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("v1")).unwrap();
    let edit = Command::MessageEdit { conversation: CONVERSATION, seq: 2, body: body("v2"), mentions: None };
    bench.done("ada", edit).unwrap();
    let get = || Command::MessageGet { conversation: CONVERSATION, seq: 2 };
    let text = |reply: Result<Reply, Error>| match reply {
        Ok(Reply::Message(view)) => String::from_utf8(view.body.unwrap().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text(bench.done("bob", get())), r#"{"text":"v2"}"#);
    assert_eq!(bench.store.held.lock().overlays.len(), 1);
    // An overlay that was lost with its process is made again from the log.
    bench.store.held.lock().overlays.clear();
    let mut next = Bench::over(bench.store.clone());
    assert_eq!(text(next.done("bob", get())), r#"{"text":"v2"}"#);
}

#[test]
fn ids_blocks_and_snapshots_are_written_and_serve() {
    let (mut bench, old, first) = with_an_old_message();
    for n in 0..600 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    {
        let held = bench.store.held.lock();
        assert_eq!(held.blocks.len(), 2);
        assert_eq!(held.snapshots[&CONVERSATION.into()].0, 512);
        assert_eq!(held.projected, 2 + 1 + 1, "two id blocks, a snapshot, an announcement");
    }
    let retry = bench.ask_as("ada", old, send("old"));
    bench.settle();
    assert_eq!(sent(bench.answer(retry)), Sent { duplicate: true, ..first });
    let mut next = Bench::over(bench.store.clone());
    let retry = next.ask_as("ada", old, send("old"));
    next.settle();
    assert_eq!(sent(next.answer(retry)), Sent { duplicate: true, ..first });
    assert_eq!(
        next.done("ada", send("next")).map(|reply| matches!(reply, Reply::Sent(sent) if sent.seq == 603)),
        Ok(true)
    );
}

#[test]
fn the_idle_are_put_away_and_come_back() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    for n in 0..40 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    let busy = bench.shard.bytes;
    bench.now.fetch_add(61_000, Ordering::Relaxed);
    bench.mail(Mail::Tick);
    bench.settle();
    assert_eq!(bench.store.held.lock().snapshots[&CONVERSATION.into()].0, 41, "a long tail is folded into a snapshot");
    bench.now.fetch_add(61_000, Ordering::Relaxed);
    bench.mail(Mail::Tick);
    bench.settle();
    assert!(bench.shard.users.is_empty(), "users without connections are unloaded");
    assert!(bench.shard.bytes < busy && bench.shard.bytes <= 1024, "{} bytes", bench.shard.bytes);
    let recoveries = bench.store.held.lock().recoveries;
    assert!(bench.done("ada", Command::ConversationGet { conversation: CONVERSATION }).is_ok());
    assert_eq!(bench.store.held.lock().recoveries, recoveries, "an idle conversation answers from memory");
    assert_eq!(
        bench.done("ada", send("again")).map(|reply| matches!(reply, Reply::Sent(sent) if sent.seq == 42)),
        Ok(true)
    );
    assert_eq!(bench.store.held.lock().recoveries, recoveries + 1);
}

#[test]
fn ids_that_name_nothing_cost_nothing() {
    let mut bench = Bench::new(false);
    for n in 100..200 {
        let conversation = ConversationId(uuid::Uuid::from_u128(n));
        let refused = bench.done("ada", Command::ConversationGet { conversation }).unwrap_err();
        assert_eq!(refused.code, Code::ConversationNotFound);
    }
    assert!(bench.shard.conversations.is_empty());
    assert_eq!(bench.shard.bytes, 0);
}

#[test]
fn an_expired_command_is_not_begun() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let mut next = Bench::over(bench.store.clone());
    let asked = next.ask("ada", send("late"));
    next.now.fetch_add(10_001, Ordering::Relaxed);
    next.settle();
    assert_eq!(next.answer(asked).unwrap().unwrap_err().code, Code::Aborted);
    assert_eq!(
        next.done("ada", send("next")).map(|reply| matches!(reply, Reply::Sent(sent) if sent.seq == 2)),
        Ok(true)
    );
}

#[test]
fn more_than_the_window_is_refused_and_loses_nothing() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    let asked: Vec<Correlation> = (0..300).map(|n| bench.ask("ada", send(&n.to_string()))).collect();
    let refused = asked
        .iter()
        .filter(|asked| matches!(bench.answer(**asked), Some(Err(error)) if error.code == Code::Overloaded))
        .count();
    assert_eq!(refused, 300 - 256);
    bench.settle();
    let seqs: Vec<Seq> = asked
        .iter()
        .filter_map(|asked| bench.answer(*asked).unwrap().ok())
        .map(|reply| sent(Some(Ok(reply))).seq)
        .collect();
    assert_eq!(seqs, (2..258).collect::<Vec<_>>());
}

#[test]
fn large_conversations_reach_listeners_once_a_gateway() {
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", group(&names)).unwrap();
    bench.mail(Mail::Gateway(GATEWAY, ToNode::Interest { conversation: CONVERSATION, listening: true }));
    bench.done("ada", send("hi")).unwrap();
    bench.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("user-007") }).unwrap();
    {
        let heard = bench.heard.0.lock();
        let broadcasts: Vec<Seq> = heard
            .iter()
            .filter_map(
                |message| if let ToGateway::Broadcast { events, .. } = message { Some(events[0].seq) } else { None },
            )
            .collect();
        assert_eq!(broadcasts, [2, 3]);
        assert!(matches!(
            heard.iter().rev().find(|message| !matches!(message, ToGateway::Reply(..))),
            Some(ToGateway::Removed { .. })
        ));
    }
    bench.mail(Mail::Gateway(GATEWAY, ToNode::Interest { conversation: CONVERSATION, listening: false }));
    let before = bench.heard.0.lock().len();
    bench.done("ada", send("nobody listens")).unwrap();
    assert_eq!(bench.heard.0.lock().len(), before + 1, "only the answer");
    // A connection learns a large conversation's head all the same.
    bench.connect("user-001", 1);
    bench.settle();
    assert_eq!(bench.connected().last().unwrap().positions[0].1.unwrap().seq, 4);
}

#[test]
fn stopping_flushes_what_only_memory_knows() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    for n in 0..40 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    bench.done("bob", list(1)).unwrap();
    let (tx, mut rx) = tokio::sync::oneshot::channel();
    bench.mail(Mail::Stop(tx));
    let refused = bench.ask("ada", send("too late"));
    assert_eq!(bench.answer(refused).unwrap().unwrap_err().code, Code::GoingAway);
    assert!(rx.try_recv().is_err(), "not before the store has it");
    bench.settle();
    assert!(rx.try_recv().is_ok());
    let held = bench.store.held.lock();
    assert_eq!(held.snapshots[&CONVERSATION.into()].0, 41);
    assert!(held.inbox.values().any(|row| row.last_seq == 41));
}

// === recovery on a store that needs a fence read

/// What this session has written itself stands in the log already: it is neither lost nor written again.
#[test]
fn what_stands_under_the_own_epoch_is_confirmed_not_written_again() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    bench.done("ada", send("2")).unwrap();
    bench.put_away();
    let appended = bench.store.held.lock().appended;
    let get = bench.ask("ada", Command::MessageGet { conversation: CONVERSATION, seq: 3 });
    let more = bench.ask("ada", send("3"));
    bench.reads();
    // The last row is not known to be committed until the fence was read.
    assert_eq!((bench.answer(get), bench.answer(more)), (None, None));
    assert!(bench.store.held.lock().appends.is_empty(), "what is new flies behind what stands");
    bench.confirm(Confirmation::Clean);
    bench.settle();
    assert!(bench.answer(get).unwrap().is_ok());
    assert_eq!(sent(bench.answer(more)).seq, 4);
    let asked = bench.ask("bob", list(9));
    bench.settle();
    assert_eq!(shown(bench.answer(asked).unwrap()), [(CONVERSATION, 4, 3)]);
    assert_eq!(bench.store.held.lock().appended, appended + 1);
}

/// The owner died with rows in the air: they are written again before anything of them is shown.
#[test]
fn what_a_former_owner_may_have_acknowledged_is_adopted_first() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    let mut next = bench.succeeded();
    next.store.held.lock().confirms.clear();
    let more = next.ask("ada", send("2"));
    next.reads();
    let held = next.store.clone();
    let flying = |at: usize| held.held.lock().appends[at].0[0].clone();
    let named = |append: Append| (append.origin, append.after, append.events[0].seq, append.epoch);
    assert_eq!(named(flying(0)), (3, 3, 2, 4), "written again, as the former owner wrote it");
    next.append(Written::Durable);
    next.confirm(Confirmation::Clean);
    assert_eq!((named(flying(0)), flying(0).cw), ((4, 3, 3, 4), 2));
    next.settle();
    assert_eq!(sent(next.answer(more)).seq, 3);
}

/// Leaving what one has joined is another fact, not the same one again.
#[test]
fn leaving_is_not_taken_for_a_repetition_of_joining() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("bob") }).unwrap();
    let mut next = bench.succeeded();
    assert!(matches!(next.done("bob", list(10)), Ok(Reply::Conversations { items, .. }) if items.is_empty()));
    let rows: Vec<(Seq, Epoch, Epoch)> = {
        let held = next.store.held.lock();
        let of_bob = held.rows.iter().filter(|((whose, _), _)| *whose == user("bob").into());
        of_bob.map(|((_, seq), row)| (*seq, row.epoch, row.origin)).collect()
    };
    assert_eq!(rows, [(1, 3, 3), (2, 4, 3)], "the last fact is adopted");
}

/// A late row of an owner who had another log fits nowhere, also where a snapshot has taken in what stands below.
#[test]
fn a_snapshot_knows_the_origin_of_what_stands_above_all() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    let mut second = bench.succeeded();
    let none = |bench: &Bench| bench.store.held.lock().snapshots.is_empty();
    assert!(none(&second));
    for n in 0..40 {
        second.done("ada", send(&n.to_string())).unwrap();
    }
    let names: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
    for n in &names {
        let id = ConversationId(uuid::Uuid::new_v4());
        let create = Command::ConversationCreate(Box::new(Create {
            conversation: id,
            kind: ConversationKind::Group,
            encryption: Encryption::None,
            members: vec![user(n)],
            title: String::new(),
            data: None,
            history: HistoryAccess::All,
            receipts: true,
            open: false,
            retention_secs: 0,
        }));
        second.done("ada", create).unwrap();
    }
    second.put_away();
    let snapshots = second.store.held.lock().snapshots.clone();
    let (seq, bytes) = snapshots[&CONVERSATION.into()].clone();
    let conversation = crate::conversation::Conversation::from_snapshot(CONVERSATION, bytes).unwrap();
    assert_eq!((seq, conversation.origin), (41, 4));
    let (_, bytes) = snapshots[&user("ada").into()].clone();
    assert_eq!(crate::user::User::from_snapshot(user("ada"), bytes).unwrap().origin, 4);
    // A late row of the first owner, above: never acknowledged.
    let mut event = second.store.held.lock().rows[&(CONVERSATION.into(), 41)].events[0].as_ref().clone();
    (event.seq, event.id) = (42, CommandId::fresh());
    let late = LogRow { epoch: 3, cw: 1, origin: 3, after: 3, events: vec![Arc::new(event)] };
    second.store.held.lock().rows.insert((CONVERSATION.into(), 42), late);
    let mut third = second.succeeded();
    let Ok(Reply::Opened { head, .. }) = third.done("ada", Command::ConversationOpen { conversation: CONVERSATION })
    else {
        panic!("no answer")
    };
    assert_eq!(head, 41);
}

// === supervision

/// Clients that ask again, under the same id, when they are told that something went wrong inside.
struct Patient {
    bench: Bench,
    ids: u64,
}

impl Patient {
    fn done(&mut self, who: &str, command: Command) -> Reply {
        self.ids += 1;
        let random: [u8; 10] = (u128::from(self.ids)).to_be_bytes()[6..].try_into().unwrap();
        let id = CommandId(uuid::Builder::from_unix_timestamp_millis(T, &random).into_uuid());
        for _ in 0..3 {
            let asked = self.bench.ask_as(who, id, command.clone());
            self.bench.settle();
            match self.bench.answer(asked).expect("no answer") {
                Err(error) if error.code == Code::Internal => {}
                answer => return answer.unwrap_or_else(|error| panic!("{who}, {command:?}: {error:?}")),
            }
        }
        panic!("{command:?} fails again and again");
    }

    fn connect(&mut self, who: &str, slot: u32) {
        for _ in 0..3 {
            self.bench.connect(who, slot);
            self.bench.settle();
            let last = Correlation(self.bench.asked);
            let heard = self.bench.heard.0.lock();
            let answer = |message: &ToGateway| match message {
                ToGateway::Connected(asked, result) if *asked == last => Some(result.is_ok()),
                _ => None,
            };
            if heard.iter().find_map(answer).expect("no answer") {
                return;
            }
        }
        panic!("{who} cannot connect");
    }

    /// A day in the life of two conversations. What is left at its end, in words.
    fn live(mut self) -> (String, Bench) {
        let other = ConversationId(uuid::Uuid::from_u128(8));
        let in_other = |command: Command| match command {
            Command::MessageSend { body, mentions, .. } => Command::MessageSend { conversation: other, body, mentions },
            Command::ConversationCreate(mut create) => {
                create.conversation = other;
                Command::ConversationCreate(create)
            }
            command => command,
        };
        self.done("ada", group(&["bob", "eve"]));
        self.done("zoe", in_other(group(&["yan", "bob"])));
        self.connect("bob", 5);
        self.connect("ada", 7);
        self.done("ada", send("1"));
        self.done("bob", send("2"));
        self.done("yan", in_other(send("x")));
        self.done(
            "ada",
            Command::MessageEdit { conversation: CONVERSATION, seq: 2, body: body("better"), mentions: None },
        );
        self.done("ada", Command::MessageDelete { conversation: CONVERSATION, seq: 2 });
        self.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("eve") });
        self.done(
            "ada",
            Command::MemberAdd { conversation: CONVERSATION, user: user("eve"), role: Default::default() },
        );
        self.done("eve", Command::MessageGet { conversation: CONVERSATION, seq: 3 });
        let key = || ReactionKey::new("👍").unwrap();
        for who in ["ada", "eve"] {
            self.done(who, Command::ReactionAdd { conversation: CONVERSATION, seq: 3, key: key() });
        }
        self.done("ada", Command::ReactionRemove { conversation: CONVERSATION, seq: 3, key: key() });
        let reacted = Command::ReactionList { conversation: CONVERSATION, seq: 3, key: key(), after: None, limit: 9 };
        self.done("bob", reacted);
        let Reply::Conversations { cursor, .. } = self.done("bob", list(9)) else { panic!("no inbox") };
        let marking = Marking { pinned: Some(true), marked_unread: Some(true), ..Marking::default() };
        self.done("bob", Command::InboxUpdate { conversation: CONVERSATION, marking });
        self.done("bob", Command::ReceiptPrefer { private: true });
        // He has written since: a panic takes nothing back of what follows from the log.
        self.done("bob", Command::ConversationRead { conversation: CONVERSATION, n: 1, private: Some(false) });
        let progress =
            [CONVERSATION, other].map(|conversation| Progress { conversation, delivered: Some(1), read: None });
        self.done("bob", Command::ReceiptPut { progress: progress.into(), private: None });
        self.bench.mail(Mail::Tick);
        self.bench.settle();
        self.done("ada", Command::ReceiptList { conversation: CONVERSATION, seq: 3, after: None, limit: 9 });
        let Reply::Synced { items, .. } = self.done("bob", Command::InboxSync { cursor: Some(cursor), limit: 9 })
        else {
            panic!("no changes")
        };
        assert!(!items.is_empty());
        self.connect("eve", 6);
        self.bench
            .mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user("eve"), connection: ConnectionSlot(6) }));
        for n in 0..40 {
            self.done("ada", send(&n.to_string()));
        }
        self.bench.now.fetch_add(61_000, Ordering::Relaxed);
        self.bench.mail(Mail::Tick);
        self.bench.settle();
        self.done("ada", send("later"));
        self.done("zoe", Command::ConversationDelete { conversation: other });
        self.bench.mail(Mail::Tick);
        self.bench.settle();
        let mut left = String::new();
        for who in ["ada", "bob", "eve", "yan", "zoe"] {
            let reply = self.done(who, list(9));
            let Reply::Conversations { items, .. } = &reply else { panic!("no inbox") };
            let flags: Vec<Flags> = items.iter().map(|row| row.flags).collect();
            let items = shown(Ok(reply));
            left += &format!("{who}: {items:?} {flags:?}\n");
        }
        let mut bench = self.bench;
        for slot in [5, 6, 7] {
            // Told again after a panic, if need be; clients know each event by its seq. Where news may get lost, a client may
            // be told to fetch instead, which the simulator judges.
            if bench.shard.confirms_at_once {
                let mut heard = bench.delivered(slot);
                heard.dedup();
                left += &format!("{slot} heard {heard:?}\n");
            }
        }
        {
            let held = bench.store.held.lock();
            for entity in [CONVERSATION, other] {
                let rows = held.rows.iter().filter(|((whose, _), _)| *whose == entity.into());
                let ids: Vec<_> =
                    rows.flat_map(|(_, row)| row.events.iter().map(|event| (event.seq, event.id))).collect();
                left += &format!("{ids:?}\n");
            }
            left += &format!("owed: {:?}\n", held.announced);
            left += &format!("{:?}\n{:?}\n", held.overlays, held.reactions);
        }
        assert!(bench.deaths.lock().is_empty());
        let shard = &mut bench.shard;
        assert!(shard.flush.is_empty() && shard.groups.is_empty() && shard.reads.is_empty());
        assert!(shard.projecting.is_empty() && shard.recoveries == 0 && shard.in_hand.is_none());
        assert!(shard.gatherings.is_empty() && shard.settling.is_empty());
        assert!(shard.conversations.values_mut().all(|slot| slot.ready().is_some() && slot.is_quiet()));
        assert!(shard.users.values_mut().all(|slot| slot.ready().is_some() && slot.is_quiet()));
        let heard = bench.heard.0.lock();
        for asked in 1..=bench.asked {
            let is_answer = |message: &&ToGateway| matches!(message, ToGateway::Reply(to, _) | ToGateway::Connected(to, _) if *to == Correlation(asked));
            assert_eq!(heard.iter().filter(is_answer).count(), 1, "answers to request {asked}");
        }
        drop(heard);
        (left, bench)
    }
}

/// Wherever a panic strikes, and whatever was under way: nothing is lost, nothing is done twice, and who asked is told.
#[test]
fn a_panic_anywhere_costs_nobody_anything() {
    for fenced in [false, true] {
        let live = || Patient { bench: Bench::new(fenced), ids: 0 }.live().0;
        let undisturbed = live();
        for moment in [Moment::Before, Moment::After] {
            for passes in 0.. {
                panic::plant(passes, moment);
                let left = std::panic::catch_unwind(live);
                let is_over = panic::dig_up();
                let left = left.unwrap_or_else(|_| panic!("{moment:?} work {passes}, fenced {fenced}"));
                assert_eq!(left, undisturbed, "{moment:?} work {passes}, fenced {fenced}");
                if is_over {
                    println!("{passes} works, {moment:?}, fenced {fenced}");
                    break;
                }
            }
        }
    }
}

/// Who is gone before the fence was read is not registered; who comes back under the same number is, once.
#[test]
fn a_connection_that_is_gone_before_its_answer_is_not_registered() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("bob", list(1)).unwrap();
    bench.connect("bob", 5);
    let gone = || ToNode::Disconnect { user: user("bob"), connection: ConnectionSlot(5) };
    bench.mail(Mail::Gateway(GATEWAY, gone()));
    bench.settle();
    assert_eq!(bench.connected().len(), 0);
    bench.done("ada", send("1")).unwrap();
    assert!(bench.delivered(5).is_empty());
    bench.connect("bob", 5);
    bench.mail(Mail::Gateway(GATEWAY, gone()));
    bench.connect("bob", 5);
    bench.settle();
    assert_eq!(bench.connected().len(), 1);
    bench.done("ada", send("2")).unwrap();
    assert_eq!(bench.delivered(5), [3]);
    bench.mail(Mail::Gateway(GATEWAY, gone()));
    bench.put_away();
}

/// A deletion that is committed while its conversation is read again is told to its members all the same.
#[test]
fn what_was_committed_during_a_recovery_is_announced_after_it() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.ask("ada", Command::ConversationDelete { conversation: CONVERSATION });
    // The row is on its way when the state is lost.
    panic::plant(0, Moment::Before);
    let struck = bench.ask("ada", Command::ConversationGet { conversation: CONVERSATION });
    assert_eq!(bench.answer(struck).unwrap().unwrap_err().code, Code::Internal);
    bench.settle();
    assert!(shown(bench.done("bob", list(10))).is_empty());
    assert!(bench.store.held.lock().announced.is_empty());
}

/// From the store too, long after the overlay of the deletion has left memory, and over a restart.
#[test]
fn what_was_deleted_is_in_no_page_of_events() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    for text in ["kept", "gone"] {
        bench.done("ada", send(text)).unwrap();
    }
    let edit = Command::MessageEdit { conversation: CONVERSATION, seq: 3, body: body("gone, better"), mentions: None };
    bench.done("ada", edit).unwrap();
    for n in 0..60 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    bench.done("ada", Command::MessageDelete { conversation: CONVERSATION, seq: 3 }).unwrap();
    let shown = |bench: &mut Bench, after| -> Vec<(Seq, usize)> {
        let list = Command::EventList { conversation: CONVERSATION, after, limit: 3 };
        let Ok(Reply::Events { items, .. }) = bench.done("bob", list) else { panic!("no events") };
        items.iter().map(|event| (event.seq, event.body_len())).collect()
    };
    assert_eq!(shown(&mut bench, 1), [(2, 15), (3, 0), (4, 0)]);
    assert_eq!(shown(&mut bench, 3)[0], (4, 0));
    bench.put_away();
    let mut next = bench.succeeded();
    assert_eq!(shown(&mut next, 1), [(2, 15), (3, 0), (4, 0)]);
}
