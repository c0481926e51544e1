//! A user: sends, edits, deletes, reads, and never gives a command another id when it asks again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chappe_loadtest::history::{Conversation, User};
use chappe_schema::{
    body::Body,
    command::Command,
    error::{Code, Error},
    id::{CommandId, ConversationId, Millis, Seq, UserId},
    reply::Reply,
};
use rand::{Rng, rngs::StdRng};
use uuid::Uuid;

/// Commands that one user has in flight: several, so that their order is worth something.
const IN_FLIGHT_MAX: usize = 3;

/// How often a user asks for something again that was acknowledged before, and of how many they remember the ids.
const REPEATED: f64 = 0.06;
const REMEMBERED: usize = 4;

/// One user, on one device.
pub struct Client {
    pub user: UserId,
    pub named: User,
    /// What is asked and not answered, in the order of asking.
    pub asked: BTreeMap<u64, Asked>,
    next: u64,
    /// Own messages that were acknowledged: what can be edited.
    own: Vec<(usize, Seq)>,
    /// The last of them, as they were asked: some users do not trust an acknowledgement.
    sent: VecDeque<Asked>,
    /// Whether new things are begun.
    pub active: bool,
    /// Sends that were asked once and by the usual way, by conversation: in what order, and at which seq they stand.
    placed: BTreeMap<(usize, u64), Seq>,
}

/// Something that was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub id: CommandId,
    pub command: Command,
    pub conversation: usize,
    pub what: Kind,
    /// Asked again when nothing was heard by then.
    pub patience: Millis,
    /// Not asked before then.
    pub pause: Millis,
    pub on_its_way: bool,
    /// Whether it was asked once, by the usual way: then it keeps its place among those.
    pub orderly: bool,
    /// Whether it was acknowledged before: the same answer is due.
    pub repeated: bool,
    asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Send {
        hash: u64,
    },
    Change {
        target: Seq,
        hash: Option<u64>,
    },
    /// A reading of everything above `after`; `read` is its number in the history.
    Read {
        after: Seq,
        read: u32,
        why: Why,
    },
    Create,
}

/// Why somebody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// To see what there is.
    Browse,
    /// Because everything is over, and must be there.
    Last,
}

/// What comes of an answer.
#[derive(Debug)]
pub enum Came {
    /// It is over: these records are for the history.
    Over(Reply),
    /// It was refused for good.
    Refused(Error),
    /// Nobody can tell whether it was done, and it is given up.
    Unknown,
    /// Asked again later.
    Again,
}

impl Client {
    pub fn new(user: UserId, named: User) -> Self {
        Self {
            user,
            named,
            asked: BTreeMap::new(),
            next: 0,
            own: Vec::new(),
            sent: VecDeque::new(),
            active: true,
            placed: BTreeMap::new(),
        }
    }

    /// The next thing that the user does, if they have time for it. `id` is made the way clients make theirs.
    pub fn think(
        &mut self,
        rng: &mut StdRng,
        now: Millis,
        conversations: &[(ConversationId, Conversation)],
    ) -> Option<u64> {
        if !self.active || self.asked.len() >= IN_FLIGHT_MAX {
            return None;
        }
        if !self.sent.is_empty() && rng.random_bool(REPEATED) {
            let sent = self.sent[rng.random_range(0..self.sent.len())].clone();
            let number = self.ask(sent.id, sent.command, sent.conversation, sent.what, now);
            let asked = self.asked.get_mut(&number)?;
            (asked.orderly, asked.repeated) = (false, true);
            return Some(number);
        }
        let index = rng.random_range(0..conversations.len());
        let conversation = conversations[index].0;
        let mut bytes = [0; 10];
        rng.fill(&mut bytes);
        let id = CommandId(uuid::Builder::from_unix_timestamp_millis(now, &bytes).into_uuid());
        let text = format!("{{\"text\":\"{}\"}}", id.0.simple());
        let own: Vec<Seq> = self.own.iter().filter(|(at, _)| *at == index).map(|(_, seq)| *seq).collect();
        let (command, what) = match rng.random_range(0..100) {
            0..10 if !own.is_empty() => {
                let target = own[rng.random_range(0..own.len())];
                let body = Body::parse(&text).expect("a body");
                let hash = Some(chappe_loadtest::history::hash(text.as_bytes()));
                let command = Command::MessageEdit { conversation, seq: target, body, mentions: Default::default() };
                (command, Kind::Change { target, hash })
            }
            10..14 if !own.is_empty() => {
                let target = own[rng.random_range(0..own.len())];
                (Command::MessageDelete { conversation, seq: target }, Kind::Change { target, hash: None })
            }
            14..34 => return Some(self.read(now, index, conversation, 0, (u32::MAX, Why::Browse))),
            _ => {
                let body = Body::parse(&text).expect("a body");
                let hash = chappe_loadtest::history::hash(text.as_bytes());
                (Command::MessageSend { conversation, body, mentions: Default::default() }, Kind::Send { hash })
            }
        };
        Some(self.ask(id, command, index, what, now))
    }

    /// Asks for everything above a seq.
    pub fn read(
        &mut self,
        now: Millis,
        index: usize,
        conversation: ConversationId,
        after: Seq,
        (read, why): (u32, Why),
    ) -> u64 {
        let command = Command::EventList { conversation, after, limit: 200 };
        self.ask(CommandId(Uuid::nil()), command, index, Kind::Read { after, read, why }, now)
    }

    pub fn ask(&mut self, id: CommandId, command: Command, conversation: usize, what: Kind, now: Millis) -> u64 {
        self.next += 1;
        let asked = Asked {
            id,
            command,
            conversation,
            what,
            patience: 0,
            pause: now,
            on_its_way: false,
            orderly: true,
            repeated: false,
            asked: false,
        };
        self.asked.insert(self.next, asked);
        self.next
    }

    /// An answer has come, or none in time.
    pub fn answered(
        &mut self,
        number: u64,
        answer: Option<Result<Reply, Error>>,
        now: Millis,
    ) -> Option<(Asked, Came)> {
        let asked = self.asked.get_mut(&number)?;
        match answer {
            Some(Ok(reply)) => {
                let asked = self.asked.remove(&number)?;
                if let (Kind::Send { .. }, Reply::Sent(sent)) = (asked.what, &reply) {
                    self.own.push((asked.conversation, sent.seq));
                    self.sent.push_back(asked.clone());
                    if self.sent.len() > REMEMBERED {
                        self.sent.pop_front();
                    }
                }
                Some((asked, Came::Over(reply)))
            }
            // What broke in the middle may have been done.
            Some(Err(error)) if error.code == Code::Internal => {
                let asked = self.asked.remove(&number)?;
                Some((asked, Came::Unknown))
            }
            Some(Err(error)) if !error.code.row().retryable => {
                let asked = self.asked.remove(&number)?;
                Some((asked, Came::Refused(error)))
            }
            _ => {
                asked.on_its_way = false;
                asked.pause = now + 100;
                Some((asked.clone(), Came::Again))
            }
        }
    }

    /// What is to be asked (again) now, in order: a later command to a conversation waits for the earlier ones.
    pub fn due(&mut self, now: Millis) -> Vec<(u64, Asked)> {
        let mut blocked = BTreeSet::new();
        let mut due = Vec::new();
        for (number, asked) in &mut self.asked {
            let is_late = asked.on_its_way && now >= asked.patience;
            if (!asked.on_its_way && now >= asked.pause || is_late) && !blocked.contains(&asked.conversation) {
                asked.on_its_way = true;
                asked.orderly &= !asked.asked;
                asked.asked = true;
                asked.patience = now + 12_500;
                due.push((*number, asked.clone()));
            } else if !asked.on_its_way {
                blocked.insert(asked.conversation);
            }
        }
        due
    }

    /// A command takes another way than usual, or is asked twice: nobody promises its place any more.
    pub fn hurried(&mut self, number: u64) {
        if let Some(asked) = self.asked.get_mut(&number) {
            asked.orderly = false;
        }
    }

    /// Whether a send that was asked once stands before one that was asked earlier, or behind one that was asked later.
    pub fn out_of_order(&mut self, number: u64, asked: &Asked, seq: Seq) -> Option<String> {
        if !asked.orderly {
            return None;
        }
        let at = (asked.conversation, number);
        let before = self.placed.range((at.0, 0)..at).next_back().map(|(_, seq)| *seq);
        let after = self.placed.range(at..(at.0 + 1, 0)).next().map(|(_, seq)| *seq);
        self.placed.insert(at, seq);
        let wrong = before.is_some_and(|before| before > seq) || after.is_some_and(|after| after < seq);
        wrong.then(|| format!("{}: what was asked in order stands at {before:?}, {seq}, {after:?}", asked.id))
    }
}
