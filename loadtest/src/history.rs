//! What the clients saw, on one monotonic clock: the only thing the oracle may read.
//!
//! Names are interned (users, conversations and connections become small numbers), so a record is a few dozen bytes.
//! A large run does not keep its records at all: they go straight to a judge, or to a file, as they happen.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::oracle::{Oracle, Verdict};

/// A user, interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct User(pub u32);

/// A conversation, interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Conversation(pub u32);

/// One connection of one user, from its opening to its end; a reconnect is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Connection(pub u32);

/// One reading of a stretch of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Read(pub u32);

/// When something happened, in microseconds since the history began, and what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the history began; never falls.
    pub at: u64,
    /// What happened.
    pub what: What,
}

/// Which of a receipt's two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Reached a device.
    Delivered,
    /// Seen by the user.
    Read,
}

/// What one event says, as far as it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A message.
    Message {
        /// The client's id.
        id: Uuid,
        /// Hash of its body; `None` when the server withheld the body of a deleted message.
        hash: Option<u64>,
    },
    /// `target` has another body from here on.
    Edit {
        /// The message.
        target: u64,
        /// Hash of the new body; `None` when it was withheld: the message is deleted, or removed.
        hash: Option<u64>,
    },
    /// `target` has no body from here on.
    Delete {
        /// The message.
        target: u64,
    },
    /// A user reacts to `target`, or no longer does.
    React {
        /// The message.
        target: u64,
        /// Whose reaction.
        user: User,
        /// Hash of its key.
        key: u32,
        /// There from here on, or no longer.
        on: bool,
    },
    /// A user became a member.
    Join {
        /// Who.
        user: User,
    },
    /// A user is no longer a member.
    Leave {
        /// Who.
        user: User,
    },
    /// Everything at or below is removed from here on.
    Purged {
        /// The last seq that is.
        floor: u64,
    },
    /// Anything else that has a seq; told apart by a hash of its name.
    Other {
        /// The hash.
        mark: u64,
    },
}

/// A message as a list of messages shows it: with its edits and deletion applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// With a body of this hash.
    Body(u64),
    /// As a tombstone.
    Tombstone,
}

/// The reactions that a message is shown with, as two hashes: sets compare like them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Of all keys and how often each is there.
    pub all: u64,
    /// Of the keys that are shown as the reader's own.
    pub own: u64,
}

/// One observation of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A connection of `user` was opened.
    Connect {
        /// The connection.
        connection: Connection,
        /// Whose.
        user: User,
    },
    /// A message is about to be sent for the first time.
    SendStart {
        /// By whom.
        user: User,
        /// Where.
        conversation: Conversation,
        /// The client's id.
        id: Uuid,
        /// Hash of its body.
        hash: u64,
    },
    /// The server acknowledged a send, for the first time or again.
    Ack {
        /// The client's id.
        id: Uuid,
        /// The position it was given.
        seq: u64,
    },
    /// Every attempt of a send was definitely refused.
    Fail {
        /// The client's id.
        id: Uuid,
    },
    /// A send was given up without knowing whether it happened.
    Unknown {
        /// The client's id.
        id: Uuid,
    },
    /// An event arrived on a connection, before any repair by the client.
    Deliver {
        /// Where it arrived.
        connection: Connection,
        /// The conversation.
        conversation: Conversation,
        /// Its position.
        seq: u64,
        /// What it says.
        fact: Fact,
    },
    /// The server promised that the connection's next event here is `from + 1`.
    Resume {
        /// The connection.
        connection: Connection,
        /// The conversation.
        conversation: Conversation,
        /// What the client already held.
        from: u64,
    },
    /// The server said that it dropped events up to `head`: history must be read.
    Resync {
        /// The connection.
        connection: Connection,
        /// The conversation.
        conversation: Conversation,
        /// The last of the dropped.
        head: u64,
    },
    /// A read of everything above `after` begins.
    ReadStart {
        /// The read.
        read: Read,
        /// By whom.
        user: User,
        /// Of what.
        conversation: Conversation,
        /// Events above this seq.
        after: u64,
        /// Whether the system is quiet and this reading is the one that counts.
        last: bool,
    },
    /// One event that a read found.
    ReadItem {
        /// The read.
        read: Read,
        /// Its position.
        seq: u64,
        /// What it says.
        fact: Fact,
    },
    /// A read was told that nothing stands at or below `floor` any longer.
    Purged {
        /// The read.
        read: Read,
        /// The last seq that is removed.
        floor: u64,
    },
    /// A read is over: it should hold `after + 1 ..= head`.
    ReadEnd {
        /// The read.
        read: Read,
        /// The end of the log as the server named it, or as far as the client meant to read.
        head: u64,
    },
    /// A list of messages showed one of them.
    Show {
        /// To whom.
        user: User,
        /// Of what.
        conversation: Conversation,
        /// Which message.
        seq: u64,
        /// How.
        shown: Shown,
        /// Whether the system was quiet.
        last: bool,
    },
    /// A list of messages showed one of them with these reactions.
    Counted {
        /// To whom.
        user: User,
        /// Of what.
        conversation: Conversation,
        /// Which message.
        seq: u64,
        /// The reactions.
        counts: Counts,
        /// Whether the system was quiet.
        last: bool,
    },
    /// A reaction to `target` is about to be added or removed.
    ReactStart {
        /// By whom.
        user: User,
        /// Where.
        conversation: Conversation,
        /// The message.
        target: u64,
        /// Hash of the key.
        key: u32,
        /// Added or removed.
        on: bool,
    },
    /// An edit or deletion of `target` is about to be sent; `hash` is the new body's, `None` deletes.
    ChangeStart {
        /// By whom.
        user: User,
        /// Where.
        conversation: Conversation,
        /// The message.
        target: u64,
        /// The command's id.
        id: Uuid,
        /// Hash of the new body.
        hash: Option<u64>,
    },
    /// An edit or deletion was acknowledged.
    ChangeAck {
        /// The command's id.
        id: Uuid,
        /// The position of its event.
        seq: u64,
    },
    /// A user may see the conversation's events above `from` from now on.
    Join {
        /// Who.
        user: User,
        /// Where.
        conversation: Conversation,
        /// The last seq that stays hidden; 0 when all history is open.
        from: u64,
    },
    /// A user may see nothing above `upto`.
    Leave {
        /// Who.
        user: User,
        /// Where.
        conversation: Conversation,
        /// The seq of the leaving.
        upto: u64,
    },
    /// A connection was told how far `user` has received or read.
    Receipt {
        /// Which.
        connection: Connection,
        /// About whom.
        user: User,
        /// Where.
        conversation: Conversation,
        /// Which mark.
        mark: Mark,
        /// Up to which message ordinal.
        upto: u64,
    },
    /// A user is about to say how far they have got, for others to see: 0 for what is nobody else's business.
    ReceiptStart {
        /// Who.
        user: User,
        /// Where.
        conversation: Conversation,
        /// Messages up to this ordinal have reached them.
        delivered: u64,
        /// They have read up to here.
        read: u64,
    },
    /// It was accepted.
    ReceiptAck {
        /// Who.
        user: User,
        /// Where.
        conversation: Conversation,
        /// Messages up to this ordinal have reached them.
        delivered: u64,
        /// They have read up to here.
        read: u64,
    },
    /// In a quiet system, when everybody has said how far they have got, an observer was shown how far `user` has.
    ReceiptShown {
        /// To whom.
        observer: User,
        /// About whom.
        user: User,
        /// Where.
        conversation: Conversation,
        /// Messages up to this ordinal have reached them.
        delivered: u64,
        /// They have read up to here.
        read: u64,
    },
    /// A user went online or offline, or began or stopped typing (`conversation` says where).
    Presence {
        /// Who.
        user: User,
        /// Where they type; `None` is being online.
        conversation: Option<Conversation>,
        /// On or off.
        on: bool,
    },
    /// An observer was told of a [`What::Presence`].
    PresenceSeen {
        /// Who was told.
        observer: User,
        /// About whom.
        user: User,
        /// Where they type; `None` is being online.
        conversation: Option<Conversation>,
        /// On or off.
        on: bool,
    },
    /// The weather changed: a fault began or ended.
    Fault {
        /// Which.
        name: String,
        /// Whether it begins.
        begins: bool,
        /// Whether what was in memory alone may be gone.
        #[serde(default = "yes")]
        forgets: bool,
    },
    /// `name` is called `user` in this history.
    NameUser {
        /// The number.
        user: User,
        /// The name.
        name: String,
    },
    /// `id` is called `conversation` in this history.
    NameConversation {
        /// The number.
        conversation: Conversation,
        /// The id.
        id: Uuid,
    },
}

/// What a body is compared by.
pub fn hash(body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(body)
}

/// What a set of reactions is compared by: how often each key (by its hash) is there, and which are the reader's own.
pub fn counts(all: impl IntoIterator<Item = (u32, u64)>, own: impl IntoIterator<Item = u32>) -> Counts {
    let sum = |pairs: Vec<(u32, u64)>| {
        let mut pairs = pairs;
        pairs.sort_unstable();
        let bytes = pairs.iter().flat_map(|(key, count)| [u64::from(*key).to_le_bytes(), count.to_le_bytes()]);
        hash(&bytes.flatten().collect::<Vec<u8>>())
    };
    Counts { all: sum(all.into_iter().collect()), own: sum(own.into_iter().map(|key| (key, 1)).collect()) }
}

/// A history being written, shared by all clients of a run.
#[derive(Debug)]
pub struct History {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    users: HashMap<Box<str>, User>,
    conversations: HashMap<Uuid, Conversation>,
    connections: u32,
    reads: u32,
    records: Option<Vec<Record>>,
    judge: Option<Box<Oracle>>,
    file: Option<BufWriter<File>>,
    broken: Option<std::io::Error>,
}

impl History {
    /// Keeps every record in memory: for tests.
    pub fn in_memory() -> Arc<Self> {
        Self::new(Some(Vec::new()), None, None)
    }

    /// Judges every record as it happens and forgets it; writes it to `file` too when one is given.
    pub fn judged(oracle: Oracle, file: Option<File>) -> Arc<Self> {
        Self::new(None, Some(Box::new(oracle)), file)
    }

    fn new(records: Option<Vec<Record>>, judge: Option<Box<Oracle>>, file: Option<File>) -> Arc<Self> {
        let state = State {
            users: HashMap::new(),
            conversations: HashMap::new(),
            connections: 0,
            reads: 0,
            records,
            judge,
            file: file.map(|file| BufWriter::with_capacity(1 << 18, file)),
            broken: None,
        };
        Arc::new(Self { began: Instant::now(), state: Mutex::new(state) })
    }

    /// Notes what happened, now.
    pub fn record(&self, what: What) {
        let mut state = self.state.lock();
        // The time is taken inside the lock: the order of records is the order of times.
        let at = self.began.elapsed().as_micros() as u64;
        state.push(Record { at, what });
    }

    /// The number of a user.
    pub fn user(&self, name: &str) -> User {
        let mut state = self.state.lock();
        if let Some(user) = state.users.get(name) {
            return *user;
        }
        let user = User(state.users.len() as u32);
        state.users.insert(name.into(), user);
        let at = self.began.elapsed().as_micros() as u64;
        state.push(Record { at, what: What::NameUser { user, name: name.into() } });
        user
    }

    /// The number of a conversation.
    pub fn conversation(&self, id: Uuid) -> Conversation {
        let mut state = self.state.lock();
        if let Some(conversation) = state.conversations.get(&id) {
            return *conversation;
        }
        let conversation = Conversation(state.conversations.len() as u32);
        state.conversations.insert(id, conversation);
        let at = self.began.elapsed().as_micros() as u64;
        state.push(Record { at, what: What::NameConversation { conversation, id } });
        conversation
    }

    /// A number for a new connection of `user`.
    pub fn connect(&self, user: User) -> Connection {
        let mut state = self.state.lock();
        let connection = Connection(state.connections);
        state.connections += 1;
        let at = self.began.elapsed().as_micros() as u64;
        state.push(Record { at, what: What::Connect { connection, user } });
        connection
    }

    /// A number for a new read.
    pub fn read(&self) -> Read {
        let mut state = self.state.lock();
        state.reads += 1;
        Read(state.reads)
    }

    /// Takes the records kept so far out of the memory.
    pub fn take(&self) -> Vec<Record> {
        self.state.lock().records.replace(Vec::new()).unwrap_or_default()
    }

    /// Ends the history: the verdict of its judge, or of a judge called now over the kept records.
    pub fn verdict(&self) -> std::io::Result<Verdict> {
        let mut state = self.state.lock();
        if let Some(mut file) = state.file.take() {
            file.flush()?;
        }
        if let Some(error) = state.broken.take() {
            return Err(error);
        }
        Ok(match (state.judge.take(), &state.records) {
            (Some(judge), _) => judge.finish(),
            (None, Some(records)) => Oracle::judge(records),
            (None, None) => Oracle::judge(&[]),
        })
    }
}

impl State {
    fn push(&mut self, record: Record) {
        if let Some(judge) = &mut self.judge {
            judge.observe(&record);
        }
        if let Some(file) = &mut self.file
            && let Err(error) = write_record(file, &record)
        {
            self.broken = Some(error);
            self.file = None;
        }
        if let Some(records) = &mut self.records {
            records.push(record);
        }
    }
}

fn write_record(to: &mut impl Write, record: &Record) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, record)?;
    to.write_all(b"\n")
}

/// Writes records as JSONL.
pub fn write(to: &mut impl Write, records: &[Record]) -> std::io::Result<()> {
    records.iter().try_for_each(|record| write_record(to, record))
}

/// Reads a JSONL history, record by record.
pub fn read(path: &Path) -> std::io::Result<impl Iterator<Item = std::io::Result<Record>> + use<>> {
    let lines = BufReader::with_capacity(1 << 18, File::open(path)?).lines();
    Ok(lines.map(|line| serde_json::from_str(&line?).map_err(std::io::Error::from)))
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_history_survives_its_file() {
        let history = History::in_memory();
        let (ada, conversation) = (history.user("ada"), history.conversation(Uuid::from_u128(7)));
        assert_eq!(history.user("ada"), ada);
        let connection = history.connect(ada);
        let id = Uuid::from_u128(8);
        history.record(What::SendStart { user: ada, conversation, id, hash: hash(b"body") });
        history.record(What::Ack { id, seq: 2 });
        let fact = Fact::Message { id, hash: Some(hash(b"body")) };
        history.record(What::Deliver { connection, conversation, seq: 2, fact });
        let records = history.take();
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&mut file.as_file(), &records).unwrap();
        let back: Vec<_> = read(file.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(back, records);
        assert!(records.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 72, "{} bytes", size_of::<Record>());
    }
}
