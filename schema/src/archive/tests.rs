use std::fmt::Debug;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    access::{Access, Ban, By, Mark, Marked, Token},
    body::Body,
    command::{Command, Create, From, Page, Update},
    error::{Code, Error},
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess, Role, Settings},
    id::{Change, CommandId, ConnectionSlot, ConversationId, DeviceId, Generation, Partition, UserId},
    inbox::{Counts, Cursor, Flags, Item, Lag, Last, Reset, Row, Standing},
    mention::Mentions,
    presence::{Attention, Shown, Status, Watch},
    reaction::ReactionKey,
    receipt::{Progress, Receipt, Receipts, Watermarks},
    reply::{ConversationView, MessageView, ReactionCount, Reply, Sent, UserView},
    wire::{Actor, Asked, AskedAccess, Connecting, Correlation, Head, Heads, Lane, Owner, ToGateway, ToNode},
};

const CONVERSATION: ConversationId = ConversationId(Uuid::from_u128(7));
const LANE: Lane = Lane { partition: Partition(9), attempt: 3 };

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn body() -> Body {
    Body::parse(r#"{"text":"h\u00e9"}"#).unwrap()
}

fn actor() -> Actor {
    let token = Token { issued_at: 1, expires_at: 2, print: 3, is_bound: true };
    Actor { user: user("ada"), device: DeviceId::new("phone").ok(), by: By::Token(token) }
}

fn event(seq: u64) -> Arc<Event> {
    let mentions = Mentions { users: vec![user("bob"), user("éve")], all: seq == 2 }.checked().unwrap();
    Arc::new(Event {
        seq,
        n: seq,
        sender: user("ada"),
        device: None,
        id: CommandId(Uuid::from_u128(8)),
        target: 0,
        created_at: 12,
        hash: u64::MAX,
        fact: Fact::MessageNew { body: body(), mentions },
    })
}

fn questions() -> Vec<ToNode> {
    let create = Create {
        conversation: CONVERSATION,
        kind: ConversationKind::Group,
        encryption: Encryption::Mls,
        members: vec![user("bob")],
        title: "t".repeat(80),
        data: Some(body()),
        history: HistoryAccess::All,
        receipts: true,
        open: false,
        retention_secs: 0,
    };
    let progress = vec![Progress { conversation: CONVERSATION, delivered: Some(4), read: None }];
    let commands = [
        Command::ConversationCreate(Box::new(create)),
        Command::ConversationUpdate {
            conversation: CONVERSATION,
            update: Box::new(Update { title: Some(String::new()), open: Some(true), ..Update::default() }),
        },
        Command::MessageSend { conversation: CONVERSATION, body: body(), mentions: None },
        Command::MessageList { conversation: CONVERSATION, page: Page { from: From::Around(3), limit: 50 } },
        Command::ReactionAdd { conversation: CONVERSATION, seq: 2, key: ReactionKey::new("👍").unwrap() },
        Command::ReceiptPut { progress, private: Some(false) },
        Command::SessionList,
    ];
    let asked = |command| Asked {
        correlation: Correlation(1),
        actor: actor(),
        id: CommandId(Uuid::from_u128(9)),
        command,
        deadline: 55,
    };
    let connecting = Connecting {
        correlation: Correlation(2),
        actor: Actor { by: By::Key("key".into()), ..actor() },
        connection: ConnectionSlot(4),
        positions: vec![(CONVERSATION, 7)],
        cursor: Some(Cursor { generation: Generation(1), change: Change { epoch: 2, count: 3 } }),
        again: true,
    };
    let watches: Arc<[Watch]> = [Watch { user: user("bob"), conversation: CONVERSATION }].into();
    let mut questions: Vec<ToNode> =
        commands.into_iter().map(|command| ToNode::Command(LANE, Arc::new(asked(command)))).collect();
    questions.extend([
        ToNode::Connect(LANE, Arc::new(connecting)),
        ToNode::AskAccess(LANE, Arc::new(AskedAccess { correlation: Correlation(3), user: user("bob") })),
        ToNode::Disconnect { user: user("bob"), connection: ConnectionSlot(1) },
        ToNode::Attend {
            user: user("bob"),
            connection: ConnectionSlot(1),
            attention: Attention { away: true, watches: Some(watches) },
        },
        ToNode::Interest { conversation: CONVERSATION, listening: true },
    ]);
    questions
}

fn answers() -> Vec<ToGateway> {
    let ban = Ban { since: 1, until: None, reason: "spam".to_owned(), by: "ops".to_owned() };
    let marks = vec![Mark { before: 3, what: Marked::Token { print: 1, expires_at: 2 } }];
    let access = Arc::new(Access { version: 1, before: 2, marks, ban: Some(ban.clone()) });
    let view = ConversationView {
        id: CONVERSATION,
        kind: ConversationKind::Channel,
        encryption: Encryption::None,
        settings: Settings { title: "x".to_owned(), data: "{}".into(), ..Settings::default() },
        members: 100_000,
        large: true,
        with: None,
        role: Role::Owner,
        head: 1,
        n: 2,
        floor: 3,
        created_at: 4,
        last_at: 5,
        existed: false,
    };
    let message = MessageView {
        seq: 1,
        n: 2,
        sender: user("ada"),
        device: None,
        id: CommandId(Uuid::from_u128(1)),
        created_at: 3,
        body: Some("{}".into()),
        mentions: Mentions { users: vec![user("bob")], all: false }.checked().unwrap(),
        edited: Some((4, 5)),
        deleted: None,
        reactions: vec![ReactionCount { key: ReactionKey::new("ok").unwrap(), count: 9, mine: true }],
    };
    let last = Last { seq: 1, n: 1, sender: user("bob"), at: 2, text: Some("hi".into()), deleted: false };
    let head = Head { seq: 5, n: 4 };
    let row = Row {
        conversation: CONVERSATION,
        kind: ConversationKind::Direct,
        change: Change { epoch: 1, count: 2 },
        active_at: 3,
        flags: Flags::default(),
        standing: Some(Standing {
            title: String::new(),
            with: Some(user("bob")),
            head,
            message_at: 1,
            read_n: 2,
            counts: Counts::default(),
            last: Some(last),
            large: false,
        }),
    };
    let replies = [
        Ok(Reply::Sent(Sent { seq: 1, n: 1, created_at: 5, duplicate: true })),
        Ok(Reply::Conversation(Box::new(view))),
        Ok(Reply::Messages { items: vec![message], head: 9, more: (true, false) }),
        Ok(Reply::Synced {
            items: vec![Item::Row(row)],
            cursor: Cursor::default(),
            more: false,
            reset: Some(Reset::TooOld),
            settling: false,
        }),
        Ok(Reply::Events { conversation: CONVERSATION, items: vec![event(1), event(2)], head: 2, floor: 0 }),
        Ok(Reply::AllProgressed { items: vec![(CONVERSATION, Err(Code::ConversationNotFound.into()))] }),
        Ok(Reply::User(Box::new(UserView {
            user: user("ada"),
            ban: Some(ban),
            access: Arc::clone(&access),
            sessions: Vec::new(),
            conversations: 1,
        }))),
        Err(Error::invalid("n", "is too large").after_ms(4)),
    ];
    let heads = Heads {
        positions: vec![(CONVERSATION, None)],
        others: vec![(CONVERSATION, head)],
        lag: Lag::Reset(Reset::Ahead),
        ..Heads::default()
    };
    let receipts = Receipts {
        conversation: CONVERSATION,
        items: vec![Receipt { user: user("bob"), marks: Watermarks { delivered_n: 2, read_n: 1 } }],
    };
    let mut answers: Vec<ToGateway> =
        replies.into_iter().map(|result| ToGateway::Reply(Correlation(1), result)).collect();
    answers.extend([
        ToGateway::Moved { lane: LANE, owner: Some(Owner { session: 1, epoch: u64::MAX }) },
        ToGateway::Connected(Correlation(2), Ok(heads)),
        ToGateway::Access(Correlation(3), Ok(Arc::clone(&access))),
        ToGateway::AccessChanged { user: user("ada"), access },
        ToGateway::Deliver {
            conversation: CONVERSATION,
            events: [event(1), event(2)].into(),
            connections: vec![ConnectionSlot(1), ConnectionSlot(u32::MAX)],
        },
        ToGateway::Presence {
            connections: vec![ConnectionSlot(1)],
            user: user("ada"),
            shown: Shown { status: Status::Away, last_seen: Some(1) },
        },
        ToGateway::Receipts { connections: Vec::new(), receipts: Arc::new(receipts) },
        ToGateway::Removed { conversation: CONVERSATION, user: user("bob") },
    ]);
    answers
}

/// Bytes and back, from any place in a larger buffer.
fn assert_same<T>(value: &T)
where
    T: Debug + Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rkyv::rancor::Error>>,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rkyv::rancor::Error>>
        + Deserialize<T, HighDeserializer<rkyv::rancor::Error>>,
{
    let bytes = to_bytes(value).unwrap();
    for shift in 0..3 {
        let mut buffer = vec![0; shift];
        buffer.extend_from_slice(&bytes);
        let again: T = from_bytes(&buffer[shift..]).unwrap();
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
}

#[test]
fn what_gateways_and_nodes_say_comes_back_from_its_bytes() {
    questions().iter().for_each(assert_same);
    answers().iter().for_each(assert_same);
    assert_same(&answers());
}

proptest! {
    /// Bytes that were damaged in a way that no checksum has noticed are refused, or are another message: nothing panics.
    #[test]
    fn damaged_bytes_do_no_harm(which: prop::sample::Index, at: prop::sample::Index, with: u8, cut: prop::sample::Index) {
        let answers = answers();
        let mut bytes = to_bytes(which.get(&answers)).unwrap().to_vec();
        let place = at.index(bytes.len());
        bytes[place] ^= with;
        if let Ok(answer) = from_bytes::<ToGateway>(&bytes) {
            drop(format!("{answer:?}"));
        }
        bytes.truncate(cut.index(bytes.len()));
        drop(from_bytes::<ToGateway>(&bytes).map(|answer| format!("{answer:?}")));
    }
}
