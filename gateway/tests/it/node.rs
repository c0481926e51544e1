//! A node of a few lines: it answers everything plausibly, from memory, at once; or slowly, or never, or it panics.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use chappe_cluster::link::{GatewayPort, NodePort};
use chappe_schema::{
    access::Access,
    body::Body,
    command::{Command, From, Page},
    error::{Code, Error},
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess, Role, Settings},
    id::{Change, CommandId, ConnectionSlot, ConversationId, DeviceId, GatewayId, Generation, Seq, SessionId, UserId},
    inbox::{Counts, Cursor, Flags, Item, Lag, Reset, Row, Standing},
    presence::{Attention, Shown, Status},
    receipt::{Progress, Progressed, ReceiptView},
    reply::{ConversationView, EditView, MemberView, MessageView, ReactionView, Reply, Sent, UserView},
    wire::{Actor, Asked, Head, Heads, InboxChanged, ToGateway, ToNode},
};
use parking_lot::Mutex;

/// In whose name it speaks: the one that the link within a process takes for the only one.
const SESSION: SessionId = 1;

pub const GENERATION: Generation = Generation(0xabc);
/// Up to where every inbox is known here.
pub const CURSOR: Cursor = Cursor { generation: GENERATION, change: Change { epoch: 1, count: 7 } };

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// In the sender's own call.
    AtOnce,
    /// From a task, after a while.
    Slow(Duration),
    /// Never.
    Silent,
    /// Not at all: it panics in the sender's face.
    Panicking,
    /// With this error.
    Refusing(Code),
}

#[derive(Default)]
pub struct State {
    pub conversations: HashMap<ConversationId, Conversation>,
    pub connections: HashMap<UserId, Vec<(GatewayId, ConnectionSlot)>>,
    pub interest: HashSet<(GatewayId, ConversationId)>,
    pub access: HashMap<UserId, Arc<Access>>,
    /// What connections said of their users' attention.
    pub attending: Vec<(UserId, ConnectionSlot, Attention)>,
    /// Every message, in the order of arrival, by name.
    pub heard: Vec<String>,
}

#[derive(Default)]
pub struct Conversation {
    pub members: BTreeMap<UserId, Role>,
    pub events: Vec<Arc<Event>>,
    pub title: String,
    /// Delivered to listeners.
    pub large: bool,
    pub direct: bool,
    ids: HashMap<(UserId, CommandId), Seq>,
}

pub struct Node {
    gateways: Mutex<HashMap<GatewayId, Arc<dyn GatewayPort>>>,
    pub state: Mutex<State>,
    pub mode: Mutex<Mode>,
    me: std::sync::Weak<Node>,
}

impl Node {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            gateways: Mutex::default(),
            state: Mutex::default(),
            mode: Mutex::new(Mode::AtOnce),
            me: me.clone(),
        })
    }

    pub fn behave(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// A conversation with these members and so many messages.
    pub fn conversation(&self, members: &[&str], messages: u64, large: bool) -> ConversationId {
        let id = ConversationId(uuid::Uuid::now_v7());
        let mut conversation = Conversation { large, ..Conversation::default() };
        for (index, member) in members.iter().enumerate() {
            conversation.members.insert(user(member), if index == 0 { Role::Owner } else { Role::Member });
        }
        for n in 1..=messages {
            conversation.say(&user(members[0]), &format!("old {n}"));
        }
        self.state.lock().conversations.insert(id, conversation);
        id
    }

    /// Somebody says something, and everybody hears it.
    pub fn say(&self, id: ConversationId, sender: &str, text: &str) -> Seq {
        let mut state = self.state.lock();
        let event = state.conversations.get_mut(&id).unwrap().say(&user(sender), text);
        let seq = event.seq;
        let batches = state.publish(id, vec![event]);
        drop(state);
        self.deliver(batches);
        seq
    }

    /// Several at once: one commit batch.
    pub fn say_many(&self, id: ConversationId, sender: &str, count: usize) {
        let mut state = self.state.lock();
        let conversation = state.conversations.get_mut(&id).unwrap();
        let events = (0..count).map(|n| conversation.say(&user(sender), &format!("many {n}"))).collect();
        let batches = state.publish(id, events);
        drop(state);
        self.deliver(batches);
    }

    /// Writes to the log without telling anybody yet.
    pub fn write_silently(&self, id: ConversationId, sender: &str, count: usize) -> Vec<Arc<Event>> {
        let mut state = self.state.lock();
        let conversation = state.conversations.get_mut(&id).unwrap();
        (0..count).map(|n| conversation.say(&user(sender), &format!("silent {n}"))).collect()
    }

    pub fn publish(&self, id: ConversationId, events: Vec<Arc<Event>>) {
        let batches = self.state.lock().publish(id, events);
        self.deliver(batches);
    }

    /// The user has marked a conversation, on some device.
    pub fn mark(&self, id: ConversationId, who: &str) {
        let mut slots = BTreeMap::<GatewayId, Vec<ConnectionSlot>>::new();
        for (gateway, slot) in self.state.lock().connections.get(&user(who)).into_iter().flatten() {
            slots.entry(*gateway).or_default().push(*slot);
        }
        let flags = Flags { marked_unread: true, ..Flags::default() };
        let read = Some((3, Default::default()));
        let changed = Arc::new(InboxChanged { conversation: id, flags, read, cursor: CURSOR });
        let tell = |connections| vec![ToGateway::InboxChanged { connections, changed: Arc::clone(&changed) }];
        self.deliver(slots.into_iter().map(|(gateway, connections)| (gateway, tell(connections))).collect());
    }

    /// `who` is shown like this from now on, to all connections of `watcher`.
    pub fn show(&self, watcher: &str, who: &str, shown: Shown) {
        let mut slots = BTreeMap::<GatewayId, Vec<ConnectionSlot>>::new();
        for (gateway, slot) in self.state.lock().connections.get(&user(watcher)).into_iter().flatten() {
            slots.entry(*gateway).or_default().push(*slot);
        }
        let tell = |connections| vec![ToGateway::Presence { connections, user: user(who), shown }];
        self.deliver(slots.into_iter().map(|(gateway, connections)| (gateway, tell(connections))).collect());
    }

    pub fn remove(&self, id: ConversationId, who: &str) {
        let mut state = self.state.lock();
        let conversation = state.conversations.get_mut(&id).unwrap();
        let event = conversation.append(&user("owner"), CommandId::fresh(), 0, Fact::MemberLeft { user: user(who) });
        let mut batches = state.publish(id, vec![event]);
        state.conversations.get_mut(&id).unwrap().members.remove(&user(who));
        for gateway in self.gateways.lock().keys() {
            batches.entry(*gateway).or_default().push(ToGateway::Removed { conversation: id, user: user(who) });
        }
        drop(state);
        self.deliver(batches);
    }

    /// What stands against a user from now on; gateways hear of it only if `told`.
    pub fn change_access(&self, who: &str, told: bool, change: impl FnOnce(&mut Access)) {
        let mut state = self.state.lock();
        let entry = state.access.entry(user(who)).or_default();
        let access = Arc::make_mut(entry);
        access.version += 1;
        change(access);
        let access = Arc::clone(entry);
        let mut batches = BTreeMap::<GatewayId, Vec<ToGateway>>::new();
        for gateway in self.gateways.lock().keys().filter(|_| told) {
            let changed = ToGateway::AccessChanged { user: user(who), access: Arc::clone(&access) };
            batches.entry(*gateway).or_default().push(changed);
        }
        drop(state);
        self.deliver(batches);
    }

    /// These connections of a user are over.
    pub fn end(&self, who: &str, code: Code) {
        let connections = self.state.lock().connections.get(&user(who)).cloned().unwrap_or_default();
        let mut batches = BTreeMap::<GatewayId, Vec<ToGateway>>::new();
        for (gateway, slot) in connections {
            let end = ToGateway::End { connections: vec![slot], error: Error::new(code) };
            batches.entry(gateway).or_default().push(end);
        }
        self.deliver(batches);
    }

    pub fn heard(&self) -> Vec<String> {
        self.state.lock().heard.clone()
    }

    pub fn connected(&self, who: &str) -> usize {
        self.state.lock().connections.get(&user(who)).map_or(0, Vec::len)
    }

    fn deliver(&self, batches: BTreeMap<GatewayId, Vec<ToGateway>>) {
        for (gateway, batch) in batches {
            let port = self.gateways.lock().get(&gateway).cloned();
            if let Some(port) = port {
                port.receive(SESSION, batch);
            }
        }
    }

    /// What the one who asks is answered, in his own call; everybody else is told.
    fn perform(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway> {
        let mut batches = BTreeMap::<GatewayId, Vec<ToGateway>>::new();
        let mut state = self.state.lock();
        match message {
            ToNode::Command(_, asked) => {
                let asked = Arc::unwrap_or_clone(asked);
                let correlation = asked.correlation;
                let (result, after) = match *self.mode.lock() {
                    Mode::Refusing(code) => (Err(Error::new(code)), BTreeMap::new()),
                    _ => state.command(asked),
                };
                batches.entry(from).or_default().push(ToGateway::Reply(correlation, result));
                for (gateway, batch) in after {
                    batches.entry(gateway).or_default().extend(batch);
                }
            }
            ToNode::Connect(_, connecting) => {
                let Actor { user, device, by } = connecting.actor.clone();
                let refused =
                    state.access.get(&user).and_then(|access| access.check(device.as_ref(), &by, now()).err());
                let known = state.connections.entry(user.clone()).or_default();
                if refused.is_none() && !known.contains(&(from, connecting.connection)) {
                    known.push((from, connecting.connection));
                }
                let head = |id: &ConversationId| {
                    state
                        .conversations
                        .get(id)
                        .filter(|found| found.members.contains_key(&user))
                        .map(Conversation::head)
                };
                let positions: Vec<_> = connecting.positions.iter().map(|(id, _)| (*id, head(id))).collect();
                let others = state.conversations.iter().filter(|(id, conversation)| {
                    conversation.members.contains_key(&user)
                        && connecting.positions.iter().all(|(position, _)| position != *id)
                });
                let heads = Heads {
                    doubtful: Vec::new(),
                    unknown: Vec::new(),
                    others: others.map(|(id, found)| (*id, found.head())).collect(),
                    positions,
                    cursor: CURSOR,
                    lag: match connecting.cursor {
                        None => Lag::Reset(Reset::New),
                        Some(CURSOR) => Lag::Current,
                        Some(_) => Lag::Behind,
                    },
                };
                let result = match (*self.mode.lock(), refused) {
                    (Mode::Refusing(code), _) => Err(Error::new(code)),
                    (_, Some(refused)) => Err(refused),
                    _ => Ok(heads),
                };
                batches.entry(from).or_default().push(ToGateway::Connected(connecting.correlation, result));
            }
            ToNode::AskAccess(_, asked) => {
                let result = match *self.mode.lock() {
                    Mode::Refusing(code) => Err(Error::new(code)),
                    _ => Ok(state.access.get(&asked.user).cloned().unwrap_or_default()),
                };
                batches.entry(from).or_default().push(ToGateway::Access(asked.correlation, result));
            }
            ToNode::Disconnect { user, connection } => {
                if let Some(connections) = state.connections.get_mut(&user) {
                    connections.retain(|known| *known != (from, connection));
                }
            }
            ToNode::Attend { user, connection, attention } => {
                state.attending.push((user, connection, attention));
            }
            ToNode::Interest { conversation, listening: true } => {
                state.interest.insert((from, conversation));
            }
            ToNode::Interest { conversation, listening: false } => {
                state.interest.remove(&(from, conversation));
            }
        }
        drop(state);
        let own = batches.remove(&from).unwrap_or_default();
        self.deliver(batches);
        own
    }
}

impl NodePort for Node {
    fn attach(&self, id: GatewayId, gateway: Arc<dyn GatewayPort>) {
        self.gateways.lock().insert(id, gateway);
    }

    fn detach(&self, id: GatewayId) {
        self.gateways.lock().remove(&id);
    }

    fn receive(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway> {
        let name = match &message {
            ToNode::Command(_, asked) => asked.command.op().name().to_owned(),
            ToNode::Connect(..) => "connect".to_owned(),
            ToNode::AskAccess(..) => "ask access".to_owned(),
            ToNode::Disconnect { .. } => "disconnect".to_owned(),
            ToNode::Attend { .. } => "attend".to_owned(),
            ToNode::Interest { listening, .. } => format!("interest {listening}"),
        };
        self.state.lock().heard.push(name);
        let is_question = matches!(message, ToNode::Command(..) | ToNode::Connect(..) | ToNode::AskAccess(..));
        let mode = *self.mode.lock();
        match mode {
            Mode::Silent if is_question => Vec::new(),
            Mode::Panicking if is_question => panic!("a node that panics, on purpose"),
            Mode::Slow(delay) if is_question => {
                let me = self.me.upgrade().unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let own = me.perform(from, message);
                    me.deliver(BTreeMap::from([(from, own)]));
                });
                Vec::new()
            }
            _ => self.perform(from, message),
        }
    }

    fn generation(&self) -> Generation {
        GENERATION
    }
}

impl State {
    fn publish(&self, id: ConversationId, events: Vec<Arc<Event>>) -> BTreeMap<GatewayId, Vec<ToGateway>> {
        let mut batches = BTreeMap::<GatewayId, Vec<ToGateway>>::new();
        let conversation = &self.conversations[&id];
        let events: Arc<[Arc<Event>]> = events.into();
        if conversation.large {
            for (gateway, _) in self.interest.iter().filter(|(_, interesting)| *interesting == id) {
                batches.entry(*gateway).or_default().push(ToGateway::Broadcast {
                    conversation: id,
                    since_join: false,
                    events: events.clone(),
                });
            }
            return batches;
        }
        let mut slots = BTreeMap::<GatewayId, Vec<ConnectionSlot>>::new();
        for member in conversation.members.keys() {
            for (gateway, slot) in self.connections.get(member).into_iter().flatten() {
                slots.entry(*gateway).or_default().push(*slot);
            }
        }
        for (gateway, connections) in slots {
            let deliver = ToGateway::Deliver { conversation: id, events: events.clone(), connections };
            batches.entry(gateway).or_default().push(deliver);
        }
        batches
    }

    fn command(&mut self, asked: Asked) -> (Result<Reply, Error>, BTreeMap<GatewayId, Vec<ToGateway>>) {
        let Asked { actor, id, command, .. } = asked;
        let nobody = BTreeMap::new();
        let caller = actor.user;
        let mine = self.conversations.iter().filter(|(_, conversation)| conversation.members.contains_key(&caller));
        let rows = mine.enumerate().map(|(change, (id, conversation))| Row {
            conversation: *id,
            kind: conversation.kind(),
            change: Change { epoch: 0, count: change as u64 },
            active_at: 0,
            flags: Flags::default(),
            standing: Some(conversation.standing()),
        });
        let (cursor, settling) = (CURSOR, false);
        match &command {
            Command::ConversationList { limit, .. } => {
                let items = rows.take(*limit).collect();
                return (Ok(Reply::Conversations { items, next_cursor: None, cursor, settling }), nobody);
            }
            Command::InboxSync { cursor: since, limit } => {
                let reset = since.is_none().then_some(Reset::New);
                let items = rows.take(*limit).map(Item::Row).filter(|_| reset.is_none()).collect();
                return (Ok(Reply::Synced { items, cursor, more: false, reset, settling }), nobody);
            }
            Command::InboxUpdate { marking, .. } => {
                let flags = Flags { pinned: marking.pinned == Some(true), ..Flags::default() };
                return (Ok(Reply::Marked { flags, changed: true }), nobody);
            }
            Command::PresenceGet { watch } => {
                let shown = Shown { status: Status::Online, last_seen: None };
                return (Ok(Reply::Presence { user: watch.user.clone(), shown, invisible: None }), nobody);
            }
            Command::PresenceUpdate { invisible } => {
                return (Ok(Reply::Visibility { invisible: *invisible, changed: true }), nobody);
            }
            _ => {}
        }
        if command.is_about_access() {
            let reply = match command {
                Command::SessionList => Reply::Sessions { items: Vec::new() },
                Command::SessionLogout { .. } | Command::SessionLogoutAll | Command::AdminUserLogout { .. } => {
                    Reply::LoggedOut { before: 1 }
                }
                _ => Reply::User(Box::new(UserView {
                    user: caller,
                    ban: None,
                    access: Arc::default(),
                    sessions: Vec::new(),
                    conversations: 0,
                })),
            };
            return (Ok(reply), nobody);
        }
        if command.is_about_receipts() {
            let progressed = |n| Progressed { delivered_n: n, read_n: n, counts: Counts::default() };
            let reply = match command {
                Command::ConversationRead { n, .. } | Command::ConversationDelivered { n, .. } => {
                    Reply::Progressed(progressed(n))
                }
                Command::ReceiptPut { progress, .. } => {
                    let item = |one: Progress| (one.conversation, Ok(progressed(one.read.unwrap_or_default())));
                    Reply::AllProgressed { items: progress.into_iter().map(item).collect() }
                }
                Command::ReceiptPrefer { private } => Reply::ReceiptPreference { private, changed: Some(true) },
                _ => Reply::ReceiptPreference { private: false, changed: None },
            };
            return (Ok(reply), nobody);
        }
        let place = command.conversation().unwrap();
        if let Command::ConversationCreate(create) = &command {
            let existed = self.conversations.contains_key(&place);
            let conversation = self.conversations.entry(place).or_default();
            if !existed {
                conversation.title.clone_from(&create.title);
                conversation.direct = create.kind == ConversationKind::Direct;
                conversation.members.insert(caller.clone(), Role::Owner);
                conversation.members.extend(create.members.iter().map(|member| (member.clone(), Role::Member)));
                let created = Fact::ConversationCreated {
                    kind: create.kind,
                    encryption: Encryption::None,
                    settings: Settings::default(),
                    members: Vec::new(),
                };
                conversation.append(&caller, id, 0, created);
            }
            return (Ok(Reply::Conversation(Box::new(conversation.view(place, &caller, existed)))), nobody);
        }
        let Some(conversation) = self.conversations.get_mut(&place).filter(|found| found.members.contains_key(&caller))
        else {
            return (Err(Error::new(Code::ConversationNotFound)), nobody);
        };
        let head = conversation.head();
        if let Some(seq) = conversation.ids.get(&(caller.clone(), id)) {
            let event = &conversation.events[*seq as usize - 1];
            let reply = match command {
                Command::MessageSend { .. } => {
                    Reply::Sent(Sent { seq: *seq, n: event.n, created_at: event.created_at, duplicate: true })
                }
                _ => Reply::Changed { seq: *seq, changed: true },
            };
            return (Ok(reply), nobody);
        }
        let message = |conversation: &Conversation, seq: Seq| -> Result<Arc<Event>, Error> {
            let found = conversation.events.get((seq as usize).wrapping_sub(1)).filter(|event| event.fact.is_message());
            found.cloned().ok_or(Error::new(Code::MessageNotFound))
        };
        let (fact, target) = match command {
            Command::ConversationGet { .. } => {
                return (Ok(Reply::Conversation(Box::new(conversation.view(place, &caller, false)))), nobody);
            }
            Command::MemberList { limit, .. } => {
                let member =
                    |(user, role): (&UserId, &Role)| MemberView { user: user.clone(), role: *role, marks: None };
                let items = conversation.members.iter().take(limit).map(member).collect();
                return (Ok(Reply::Members { items, next_cursor: None }), nobody);
            }
            Command::MessageGet { seq, .. } => {
                return (message(conversation, seq).map(|event| Reply::Message(Box::new(view(&event)))), nobody);
            }
            Command::MessageHistory { seq, .. } => {
                let edits = message(conversation, seq).map(|event| Reply::Edits {
                    more: false,
                    items: vec![EditView { seq, at: event.created_at, body: view(&event).body }],
                    deleted: None,
                });
                return (edits, nobody);
            }
            Command::MessageList { page: Page { from, limit }, .. } => {
                let fits = |seq: Seq| match from {
                    From::Newest => true,
                    From::Before(before) => seq < before,
                    From::After(after) => seq > after,
                    From::Around(around) => seq.abs_diff(around) <= limit as u64 / 2,
                };
                let items = conversation.events.iter().filter(|event| event.fact.is_message() && fits(event.seq));
                let items: Vec<_> = items.take(limit).map(|event| view(event)).collect();
                return (Ok(Reply::Messages { items, head: head.seq, more: (false, false) }), nobody);
            }
            Command::EventList { after, limit, .. } => {
                let items = conversation.events.iter().filter(|event| event.seq > after).take(limit).cloned().collect();
                return (Ok(Reply::Events { conversation: place, items, head: head.seq, floor: 0 }), nobody);
            }
            Command::ConversationOpen { .. } => {
                return (Ok(Reply::Opened { head: head.seq, n: head.n, large: conversation.large, joined: 1 }), nobody);
            }
            Command::TypingStart { .. } | Command::TypingStop { .. } => {
                let is_typing = matches!(command, Command::TypingStart { .. });
                let mut batches = nobody;
                for (gateway, _) in self.interest.iter().filter(|(_, interesting)| *interesting == place) {
                    let typing = ToGateway::Typing { conversation: place, user: caller.clone(), is_typing };
                    batches.entry(*gateway).or_default().push(typing);
                }
                return (Ok(if is_typing { Reply::Typing { shown: true } } else { Reply::Closed }), batches);
            }
            Command::ConversationClose { .. } => return (Ok(Reply::Closed), nobody),
            Command::MessageSend { body, mentions, .. } => (Fact::MessageNew { body, mentions }, 0),
            Command::MessageEdit { seq, body, mentions, .. } => match message(conversation, seq) {
                Ok(target) => (Fact::MessageUpdated { body, previous: 0, mentions, target_n: target.n }, seq),
                Err(error) => return (Err(error), nobody),
            },
            Command::MessageDelete { seq, .. } => match message(conversation, seq) {
                Ok(target) => (Fact::MessageDeleted { previous: 0, target_n: target.n }, seq),
                Err(error) => return (Err(error), nobody),
            },
            Command::ReactionAdd { seq, key, .. } => match message(conversation, seq) {
                Ok(_) => (Fact::ReactionAdded { key }, seq),
                Err(error) => return (Err(error), nobody),
            },
            Command::ReactionRemove { seq, key, .. } => match message(conversation, seq) {
                Ok(_) => (Fact::ReactionRemoved { key }, seq),
                Err(error) => return (Err(error), nobody),
            },
            Command::ReactionList { seq, .. } => {
                let items = vec![ReactionView { user: caller.clone(), seq, at: 0 }];
                return (
                    message(conversation, seq).map(|_| Reply::Reactions { items, count: 1, next_cursor: None }),
                    nobody,
                );
            }
            Command::ReceiptList { seq, .. } => {
                let items = vec![ReceiptView { user: caller.clone(), delivered: true, read: false }];
                let receipts = Reply::Receipts { items, members: 1, delivered: 1, read: 0, next_cursor: None };
                return (message(conversation, seq).map(|_| receipts), nobody);
            }
            Command::ConversationUpdate { update, .. } => {
                let title = update.title.unwrap_or_default();
                conversation.title.clone_from(&title);
                let settings = Settings { title, ..Settings::default() };
                (Fact::ConversationUpdated { settings }, 0)
            }
            Command::ConversationDelete { .. } => (Fact::ConversationDeleted, 0),
            Command::ConversationJoin { .. } => return (Ok(Reply::Changed { seq: head.seq, changed: false }), nobody),
            Command::ConversationLeave { .. } => {
                conversation.members.remove(&caller);
                (Fact::MemberLeft { user: caller.clone() }, 0)
            }
            Command::MemberAdd { user, role, .. } => {
                conversation.members.insert(user.clone(), role);
                (Fact::MemberJoined { user, role }, 0)
            }
            Command::MemberRole { user, role, .. } => {
                if conversation.members.insert(user.clone(), role).is_none() {
                    conversation.members.remove(&user);
                    return (Err(Error::new(Code::MemberNotFound)), nobody);
                }
                (Fact::MemberRole { user, role }, 0)
            }
            Command::MemberRemove { user, .. } => {
                if conversation.members.remove(&user).is_none() {
                    return (Err(Error::new(Code::MemberNotFound)), nobody);
                }
                (Fact::MemberLeft { user }, 0)
            }
            _ => unreachable!(),
        };
        let event = conversation.append_from(&caller, actor.device, id, target, fact);
        let reply = match &event.fact {
            Fact::MessageNew { .. } => {
                Reply::Sent(Sent { seq: event.seq, n: event.n, created_at: event.created_at, duplicate: false })
            }
            _ => Reply::Changed { seq: event.seq, changed: true },
        };
        (Ok(reply), self.publish(place, vec![event]))
    }
}

impl Conversation {
    pub fn head(&self) -> Head {
        self.events.last().map_or(Head::default(), |event| Head { seq: event.seq, n: event.n })
    }

    fn standing(&self) -> Standing {
        Standing {
            title: self.title.clone(),
            with: None,
            head: self.head(),
            message_at: 0,
            read_n: 0,
            counts: Default::default(),
            last: None,
            large: self.large,
        }
    }

    fn kind(&self) -> ConversationKind {
        if self.direct { ConversationKind::Direct } else { ConversationKind::Group }
    }

    fn say(&mut self, sender: &UserId, text: &str) -> Arc<Event> {
        let body = Body::parse(&serde_json::json!({ "text": text }).to_string()).unwrap();
        self.append(sender, CommandId::fresh(), 0, Fact::MessageNew { body, mentions: None })
    }

    fn append(&mut self, sender: &UserId, id: CommandId, target: Seq, fact: Fact) -> Arc<Event> {
        self.append_from(sender, None, id, target, fact)
    }

    fn append_from(
        &mut self,
        sender: &UserId,
        device: Option<DeviceId>,
        id: CommandId,
        target: Seq,
        fact: Fact,
    ) -> Arc<Event> {
        let head = self.head();
        let event = Arc::new(Event {
            seq: head.seq + 1,
            n: head.n + u64::from(fact.is_message()),
            sender: sender.clone(),
            device,
            id,
            target,
            created_at: now(),
            hash: 0,
            fact,
        });
        self.ids.insert((sender.clone(), id), event.seq);
        self.events.push(Arc::clone(&event));
        event
    }

    fn view(&self, id: ConversationId, caller: &UserId, existed: bool) -> ConversationView {
        ConversationView {
            id,
            kind: self.kind(),
            encryption: Encryption::None,
            settings: Settings { title: self.title.clone(), history: HistoryAccess::All, ..Settings::default() },
            members: self.members.len(),
            large: self.large,
            with: None,
            role: self.members[caller],
            head: self.head().seq,
            n: self.head().n,
            floor: 0,
            created_at: 0,
            last_at: 0,
            existed,
        }
    }
}

fn view(event: &Event) -> MessageView {
    let (body, mentions) = match &event.fact {
        Fact::MessageNew { body, mentions } => (Some(body.bytes().clone()), mentions.clone()),
        _ => (None, None),
    };
    MessageView {
        seq: event.seq,
        n: event.n,
        sender: event.sender.clone(),
        device: event.device.clone(),
        id: event.id,
        created_at: event.created_at,
        body,
        mentions,
        edited: None,
        deleted: None,
        reactions: Vec::new(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}
