//! One of a user's WebSockets: connects, resumes where it was, and sees events, without gaps unless it is told to fetch.
//!
//! It notes for the oracle whatever arrives. By itself it judges one thing: when everything is quiet it must have heard of
//! everything ([`Device::position`]).

use std::collections::{BTreeMap, BTreeSet};

use chappe_loadtest::{
    client::line::{self, Line},
    history::{self, Connection, Conversation, Fact, Read, User, What},
    websocket::{self, Decoder, Opcode, Role},
};
use chappe_schema::id::{ConversationId, Millis, Seq};

/// Before then a sign of life is due.
const HEARTBEAT_MS: Millis = 20_000;

/// How long an answer may take before the connection counts as broken.
const PATIENCE_MS: Millis = 15_000;

/// Events of a page: few, so that fetching takes several.
const PAGE: usize = 20;

pub struct Device {
    pub user: User,
    token: String,
    /// What it calls itself.
    name: String,
    /// It reads nothing.
    pub asleep: bool,
    /// The gateway and its connection there.
    pub line: Option<(usize, u64)>,
    /// Not before then another try.
    pub back_at: Millis,
    connection: Connection,
    phase: Phase,
    generation: String,
    decoder: Decoder,
    /// Bytes for the gateway.
    pub out: Vec<u8>,
    tracks: BTreeMap<ConversationId, Track>,
    asked: BTreeMap<u64, Asked>,
    next: u64,
    said_at: Millis,
}

#[derive(PartialEq)]
enum Phase {
    Waiting,
    Introduced,
    Live,
}

struct Track {
    named: Conversation,
    /// Everything up to here has been seen.
    position: Seq,
    /// Live events that arrived while earlier ones are fetched.
    held: BTreeSet<Seq>,
    filling: bool,
    /// Up to where it was told to fetch; a page that is on its way may end before.
    told: Seq,
}

struct Asked {
    conversation: ConversationId,
    read: Read,
    at: Millis,
}

/// What of the world it needs.
pub struct Sight<'a> {
    pub now: Millis,
    pub connections: &'a mut u32,
    pub reads: &'a mut u32,
    pub notes: Vec<What>,
    pub wrong: Vec<String>,
}

impl Device {
    pub fn new(user: User, token: String, name: String, conversations: &[(ConversationId, Conversation)]) -> Self {
        let track = |named| Track { named, position: 0, held: BTreeSet::new(), filling: false, told: 0 };
        Self {
            user,
            token,
            name,
            asleep: false,
            line: None,
            back_at: 0,
            connection: Connection(0),
            phase: Phase::Waiting,
            generation: String::new(),
            decoder: Decoder::new(Role::Client),
            out: Vec::new(),
            tracks: conversations.iter().map(|(id, named)| (*id, track(*named))).collect(),
            asked: BTreeMap::new(),
            next: 0,
            said_at: 0,
        }
    }

    /// Up to where it has seen a conversation.
    pub fn position(&self, conversation: ConversationId) -> Seq {
        self.tracks[&conversation].position
    }

    /// Whether it is connected and nothing that it asked is open.
    pub fn is_settled(&self) -> bool {
        self.line.is_some() && self.phase == Phase::Live && self.asked.is_empty()
    }

    /// A connection is there.
    pub fn up(&mut self, gateway: usize, line: u64, sight: &mut Sight<'_>) {
        (self.line, self.phase, self.said_at) = (Some((gateway, line)), Phase::Waiting, sight.now);
        self.decoder = Decoder::new(Role::Client);
        self.connection = Connection(*sight.connections);
        *sight.connections += 1;
        sight.notes.push(What::Connect { connection: self.connection, user: self.user });
    }

    /// The connection is gone, and with it whatever was asked.
    pub fn down(&mut self, back_at: Millis) {
        (self.line, self.phase, self.back_at) = (None, Phase::Waiting, back_at);
        self.out.clear();
        self.asked.clear();
        for track in self.tracks.values_mut() {
            track.filling = false;
            track.held.clear();
        }
    }

    /// Whether the other end has been silent for too long.
    pub fn is_overdue(&self, now: Millis) -> bool {
        let handshake = self.phase != Phase::Live && now > self.said_at + PATIENCE_MS;
        handshake || self.asked.values().any(|asked| now > asked.at + PATIENCE_MS)
    }

    /// Time passes.
    pub fn tick(&mut self, now: Millis) {
        if self.phase == Phase::Live && now > self.said_at + HEARTBEAT_MS {
            self.say(now, r#"{"heartbeat":{}}"#);
        }
    }

    /// Bytes of the gateway's.
    pub fn hear(&mut self, mut bytes: Vec<u8>, sight: &mut Sight<'_>) {
        let mut messages = Vec::new();
        let fed = self.decoder.feed(&mut bytes, &mut |item| {
            if let websocket::Item::Data(message) = item {
                messages.push(message.to_vec());
            }
        });
        if let Err(broken) = fed {
            sight.wrong.push(format!("a gateway breaks the protocol: {broken}"));
        }
        for message in messages {
            for json in message.split(|byte| *byte == b'\n').filter(|json| !json.is_empty()) {
                match Line::parse(json) {
                    Some(line) => self.line(&line, json, sight),
                    None => sight.wrong.push(format!("not understood: {}", String::from_utf8_lossy(json))),
                }
            }
        }
    }

    fn line(&mut self, line: &Line<'_>, json: &[u8], sight: &mut Sight<'_>) {
        match line {
            Line::Hello(hello) => self.introduce(hello, sight.now),
            Line::Ok(0, ok) => self.welcomed(ok, sight),
            Line::Ok(id, ok) => {
                if let Some(asked) = self.asked.remove(id) {
                    self.page(&asked, ok, sight);
                }
            }
            // It is asked again where it matters: the connection begins anew.
            Line::Error(Some(0) | None, _) => {}
            Line::Error(Some(id), error) => {
                let Some(asked) = self.asked.remove(id) else { return };
                let code = line::field(error, "code").and_then(line::text);
                if code == Some("conversation.not_found")
                    && let Some(track) = self.tracks.get_mut(&asked.conversation).filter(|track| track.position == 0)
                {
                    // It is to be created yet.
                    track.filling = false;
                    return;
                }
                // What is removed is missed by nobody: the read goes on above.
                if let (Some("history.purged"), Some(floor)) =
                    (code, line::field(error, "floor").and_then(line::number))
                {
                    sight.notes.push(What::Purged { read: asked.read, floor });
                    if let Some(track) = self.tracks.get_mut(&asked.conversation) {
                        track.position = track.position.max(floor);
                    }
                    return self.fetch(asked.conversation, Some(asked.read), sight);
                }
                if code != Some("internal") && line::field(error, "retryable") != Some(b"true") {
                    sight.wrong.push(format!("a fetch was refused: {}", String::from_utf8_lossy(error)));
                }
                self.fetch(asked.conversation, None, sight);
            }
            Line::Event(event) if event.seq > 0 => self.arrived(event, sight),
            Line::Resync(position) => {
                let Some(conversation) = self.find(position.conversation) else { return };
                let (connection, named) = (self.connection, self.tracks[&conversation].named);
                sight.notes.push(What::Resync { connection, conversation: named, head: position.head });
                if let Some(track) = self.tracks.get_mut(&conversation) {
                    track.told = track.told.max(position.head);
                }
                self.fill(conversation, sight);
            }
            Line::Event(_) | Line::CaughtUp(_) | Line::Heartbeat(_) | Line::GoingAway(_) => {}
            Line::Unknown => sight.wrong.push(format!("unknown: {}", String::from_utf8_lossy(json))),
        }
    }

    fn introduce(&mut self, hello: &[u8], now: Millis) {
        let generation = line::field(hello, "generation").and_then(line::text);
        self.generation = generation.unwrap_or_default().to_owned();
        let positions: Vec<String> = self
            .tracks
            .iter()
            .map(|(id, track)| format!(r#""{id}":["{}",{}]"#, self.generation, track.position))
            .collect();
        let (token, name, positions) = (&self.token, &self.name, positions.join(","));
        let connect =
            format!(r#"{{"id":0,"connect":{{"token":"{token}","device":"{name}","positions":{{{positions}}}}}}}"#);
        self.say(now, &connect);
        self.phase = Phase::Introduced;
    }

    fn welcomed(&mut self, ok: &[u8], sight: &mut Sight<'_>) {
        self.phase = Phase::Live;
        let verdicts = line::field(ok, "conversations").unwrap_or(b"{}");
        let conversations: Vec<ConversationId> = self.tracks.keys().copied().collect();
        for conversation in conversations {
            let (connection, track) = (self.connection, &self.tracks[&conversation]);
            let (named, from) = (track.named, track.position);
            let Some(verdict) = line::field(verdicts, &conversation.to_string()) else {
                sight.wrong.push(format!("no verdict for {conversation}"));
                continue;
            };
            let is = |name| line::field(verdict, name) == Some(b"true");
            if is("recovered") {
                sight.notes.push(What::Resume { connection, conversation: named, from });
            } else if is("limited") {
                let head = line::field(verdict, "head").and_then(line::number).unwrap_or(0);
                sight.notes.push(What::Resume { connection, conversation: named, from });
                sight.notes.push(What::Resync { connection, conversation: named, head });
                self.fill(conversation, sight);
            } else if line::field(verdict, "reason").and_then(line::text) == Some("unavailable") {
                // Nobody could tell: it is fetched.
                self.fill(conversation, sight);
            } else if from > 0 {
                // What has been delivered was durable.
                let verdict = String::from_utf8_lossy(verdict);
                sight.wrong.push(format!("{conversation} was not resumed from {from}: {verdict}"));
            }
        }
    }

    fn arrived(&mut self, event: &line::Event<'_>, sight: &mut Sight<'_>) {
        let Some(conversation) = self.find(event.conversation) else { return };
        let connection = self.connection;
        let Some(track) = self.tracks.get_mut(&conversation) else { return };
        let (seq, fact) = (event.seq, fact(event));
        sight.notes.push(What::Deliver { connection, conversation: track.named, seq, fact });
        if track.filling {
            track.held.insert(seq);
        } else if seq == track.position + 1 {
            track.position = seq;
        } else if seq > track.position {
            track.held.insert(seq);
            self.fill(conversation, sight);
        }
    }

    fn find(&self, conversation: &str) -> Option<ConversationId> {
        self.tracks.keys().copied().find(|id| id.to_string() == conversation)
    }

    /// Fetches what lies above its position.
    fn fill(&mut self, conversation: ConversationId, sight: &mut Sight<'_>) {
        if let Some(track) = self.tracks.get_mut(&conversation)
            && !std::mem::replace(&mut track.filling, true)
        {
            self.fetch(conversation, None, sight);
        }
    }

    /// Asks for a page; of a reading that goes on, or of a new one.
    fn fetch(&mut self, conversation: ConversationId, goes_on: Option<Read>, sight: &mut Sight<'_>) {
        let Some(track) = self.tracks.get(&conversation) else { return };
        let (after, named) = (track.position, track.named);
        let read = goes_on.unwrap_or_else(|| {
            *sight.reads += 1;
            let read = Read(*sight.reads);
            sight.notes.push(What::ReadStart { read, user: self.user, conversation: named, after, last: false });
            read
        });
        self.next += 1;
        let id = self.next;
        let ask = r#""event.list":{"conversation":"#;
        self.say(sight.now, &format!(r#"{{"id":{id},{ask}"{conversation}","after":{after},"limit":{PAGE}}}}}"#));
        self.asked.insert(id, Asked { conversation, read, at: sight.now });
    }

    fn page(&mut self, asked: &Asked, ok: &[u8], sight: &mut Sight<'_>) {
        let (read, conversation) = (asked.read, asked.conversation);
        let Some(track) = self.tracks.get_mut(&conversation) else { return };
        let head = line::field(ok, "head").and_then(line::number).unwrap_or(0);
        let before = track.position;
        for raw in line::elements(line::field(ok, "events").unwrap_or(b"[]")) {
            let Some(event) = line::Event::parse(raw) else { continue };
            sight.notes.push(What::ReadItem { read, seq: event.seq, fact: fact(&event) });
            track.position = track.position.max(event.seq);
        }
        if track.position < head && track.position > before {
            return self.fetch(conversation, Some(read), sight);
        }
        sight.notes.push(What::ReadEnd { read, head });
        while let Some(seq) = track.held.first().copied().filter(|seq| *seq <= track.position + 1) {
            track.held.remove(&seq);
            track.position = track.position.max(seq);
        }
        let told = std::mem::take(&mut track.told);
        if !track.held.is_empty() || told > track.position {
            return self.fetch(conversation, None, sight);
        }
        track.filling = false;
    }

    fn say(&mut self, now: Millis, text: &str) {
        self.said_at = now;
        websocket::encode(&mut self.out, Opcode::Text, text.as_bytes(), Some([7, 7, 7, 7]));
    }
}

/// What an event says, as far as it is judged.
fn fact(event: &line::Event<'_>) -> Fact {
    let (target, hash) = (event.target().unwrap_or(0), event.body().map(history::hash));
    match event.name {
        "message.new" => Fact::Message { id: event.id().unwrap_or_default(), hash },
        "message.updated" => Fact::Edit { target, hash },
        "message.deleted" => Fact::Delete { target },
        "history.purged" => Fact::Purged { floor: event.floor().unwrap_or(0) },
        other => Fact::Other { mark: history::hash(other.as_bytes()) },
    }
}
