//! The frames of a connection as protobuf: what `Realtime.Connect` streams, and WebSockets of `chappe.v1.protobuf`.
//!
//! A client's frame becomes the JSON frame that says the same, and a server's is made from its JSON, so that there is one
//! way behind both. Events are the exception: they are what there are many of, and are written as they are.

use prost::{
    Message,
    encoding::{self, DecodeContext, WireType},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    json::moment_at,
    rpc,
    v1::{self, server_frame},
};
use crate::{
    error::{Code, Error},
    event::{Event, Fact, Settings},
    id::ConversationId,
    mention::Mentioned,
    operation::Op,
};

/// Fields of a `ClientFrame` that are no operations.
const ID: u32 = 1;
const CONNECT: u32 = 2;
const HEARTBEAT: u32 = 3;
const AUTH_REFRESH: u32 = 4;

/// What an `ok` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `connect`.
    Connect,
    /// An operation.
    Op(Op),
    /// Something that has nothing to tell.
    Done,
}

/// The JSON frame that says what a `ClientFrame` says.
///
/// # Errors
/// `request.malformed`, `request.unknown_operation`; `request.invalid` for a body that is no JSON. With the request's id
/// where it has been read.
pub fn client_frame(bytes: &[u8]) -> Result<String, (Option<u64>, Error)> {
    let (id, payload) = taken_apart(bytes).ok_or_else(|| (None, malformed()))?;
    let refused = |error| (id, error);
    let Some((field, payload)) = payload else {
        return Err(refused(Error::new(Code::Malformed).with_detail("the frame has no payload")));
    };
    let (name, arguments) = match field {
        CONNECT => ("connect", connect(payload).map_err(refused)?),
        HEARTBEAT => ("heartbeat", "{}".to_owned()),
        AUTH_REFRESH => ("auth.refresh", rpc::to_json::<v1::AuthRefresh>(payload).map_err(refused)?),
        field => match Op::of_field(field) {
            Some(op) => (op.name(), op.rpc().arguments(payload).map_err(refused)?),
            None => {
                let detail = format!("there is no operation with the number {field}");
                return Err(refused(Error::new(Code::UnknownOperation).with_detail(detail)));
            }
        },
    };
    Ok(match id {
        Some(id) => format!(r#"{{"id":{id},"{name}":{arguments}}}"#),
        None => format!(r#"{{"{name}":{arguments}}}"#),
    })
}

fn malformed() -> Error {
    Error::new(Code::Malformed).with_detail("the message is not a ClientFrame")
}

/// A frame's id, and its payload with the number of its field; of several payloads the last one counts, as ever in
/// protobuf.
#[allow(clippy::type_complexity)]
fn taken_apart(mut bytes: &[u8]) -> Option<(Option<u64>, Option<(u32, &[u8])>)> {
    let (mut id, mut payload) = (None, None);
    while !bytes.is_empty() {
        let (field, wire) = encoding::decode_key(&mut bytes).ok()?;
        match (field, wire) {
            (ID, WireType::Varint) => id = Some(encoding::decode_varint(&mut bytes).ok()?),
            (ID, _) => return None,
            (field, WireType::LengthDelimited) => {
                let length = usize::try_from(encoding::decode_varint(&mut bytes).ok()?).ok()?;
                let (inside, rest) = bytes.split_at_checked(length)?;
                payload = Some((field, inside));
                bytes = rest;
            }
            // Of a newer client.
            (field, wire) => encoding::skip_field(wire, field, &mut bytes, DecodeContext::default()).ok()?,
        }
    }
    Some((id, payload))
}

/// Positions are pairs in JSON.
fn connect(bytes: &[u8]) -> Result<String, Error> {
    #[derive(serde::Serialize)]
    struct Connect<'a> {
        token: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<&'a str>,
        positions: std::collections::BTreeMap<&'a str, (&'a str, u64)>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<&'a str>,
    }
    let asked = v1::Connect::decode(bytes).map_err(|_| malformed())?;
    let positions = asked.positions.iter().map(|(conversation, at)| (&**conversation, (&*at.generation, at.seq)));
    let connect = Connect {
        token: &asked.token,
        device: asked.device.as_deref(),
        positions: positions.collect(),
        cursor: asked.cursor.as_deref(),
    };
    serde_json::to_string(&connect).map_err(|_| malformed())
}

// === what the server says ===

#[derive(Deserialize)]
struct Said<'a> {
    /// A request's number; an event has a text of this name.
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    ok: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    event: Option<&'a str>,
    #[serde(borrow)]
    hello: Option<&'a RawValue>,
    #[serde(borrow)]
    caught_up: Option<&'a RawValue>,
    #[serde(borrow)]
    resync: Option<&'a RawValue>,
    #[serde(borrow)]
    going_away: Option<&'a RawValue>,
    #[serde(borrow)]
    heartbeat: Option<&'a RawValue>,
}

/// Appends the `ServerFrame` that says what a JSON frame of the server says; `answer` tells what an `ok` is the answer to.
///
/// # Errors
/// `internal`, where the two differ: tests go through all of them.
pub fn server_frame(json: &[u8], answer: Answer, out: &mut Vec<u8>) -> Result<(), Error> {
    use server_frame::Payload;
    let said: Said<'_> = serde_json::from_slice(json).map_err(|error| differs(&error))?;
    let id = said.id.and_then(|id| id.get().parse::<u64>().ok());
    let payload = if let Some(ok) = said.ok {
        match answer {
            Answer::Connect => Payload::Connected(read(ok)?),
            Answer::Op(op) if op.rpc().reply != "Empty" => {
                let reply = op.rpc().reply(ok.get().as_bytes())?;
                if let Some(id) = id {
                    encoding::uint64::encode(ID, &id, out);
                }
                encoding::encode_key(op.rpc().field, WireType::LengthDelimited, out);
                encoding::encode_varint(reply.len() as u64, out);
                out.extend_from_slice(&reply);
                return Ok(());
            }
            Answer::Op(_) | Answer::Done => Payload::Done(v1::Empty {}),
        }
    } else if let Some(error) = said.error {
        Payload::Error(read(error)?)
    } else if let Some(event) = said.event {
        match event {
            "inbox.changed" => Payload::InboxChanged(all(json)?),
            "receipt.updated" => Payload::ReceiptUpdated(all(json)?),
            "presence.changed" => Payload::PresenceChanged(all(json)?),
            "typing.started" => Payload::TypingStarted(all(json)?),
            "typing.stopped" => Payload::TypingStopped(all(json)?),
            _ => Payload::Event(all(json)?),
        }
    } else if let Some(hello) = said.hello {
        Payload::Hello(read(hello)?)
    } else if let Some(position) = said.caught_up {
        Payload::CaughtUp(read(position)?)
    } else if let Some(position) = said.resync {
        Payload::Resync(read(position)?)
    } else if let Some(going) = said.going_away {
        Payload::GoingAway(read(going)?)
    } else if let Some(heartbeat) = said.heartbeat {
        Payload::Heartbeat(read(heartbeat)?)
    } else {
        return Err(Error::new(Code::Internal).with_detail("the frame has no form in protobuf"));
    };
    append(&v1::ServerFrame { id, payload: Some(payload) }, out);
    Ok(())
}

fn append(frame: &v1::ServerFrame, out: &mut Vec<u8>) {
    out.reserve(frame.encoded_len());
    frame.encode_raw(out);
}

fn read<M: DeserializeOwned>(json: &RawValue) -> Result<M, Error> {
    all(json.get().as_bytes())
}

fn all<M: DeserializeOwned>(json: &[u8]) -> Result<M, Error> {
    serde_json::from_slice(json).map_err(|error| differs(&error))
}

fn differs(error: &serde_json::Error) -> Error {
    Error::new(Code::Internal).with_detail(format!("the frame has no form in protobuf: {error}"))
}

/// Appends an event's `ServerFrame`.
pub fn write_event(out: &mut Vec<u8>, conversation: ConversationId, event: &Event) {
    let event = v1::Event {
        event: event.fact.name().to_owned(),
        conversation: conversation.to_string(),
        seq: event.seq,
        n: event.n,
        at: Some(moment_at(event.created_at)),
        sender: event.sender.as_str().to_owned(),
        device: event.device.as_ref().map(|device| device.as_str().to_owned()),
        id: event.id.to_string(),
        target: (event.target != 0).then_some(event.target),
        data: Some(data(&event.fact)),
    };
    append(&v1::ServerFrame { id: None, payload: Some(server_frame::Payload::Event(event)) }, out);
}

fn data(fact: &Fact) -> v1::EventData {
    let known = |n: u64| (n != 0).then_some(n);
    let mut data = v1::EventData::default();
    match fact {
        Fact::MessageNew { body, mentions } => {
            data.body = text(body.json());
            data.mentions = mentioned(mentions);
        }
        Fact::MessageUpdated { body, previous, mentions, target_n } => {
            data.body = text(body.json());
            data.previous = Some(*previous);
            data.mentions = mentioned(mentions);
            data.target_n = known(*target_n);
        }
        Fact::MessageDeleted { previous, target_n } => {
            data.previous = known(*previous);
            data.target_n = known(*target_n);
        }
        Fact::ReactionAdded { key } | Fact::ReactionRemoved { key } => data.key = Some(key.as_str().to_owned()),
        Fact::ConversationCreated { kind, encryption, settings, members } => {
            data.kind = word::<v1::ConversationKind>(kind.name());
            data.encryption = word::<v1::Encryption>(encryption.name());
            set(&mut data, settings);
            let member = |(user, role): &(crate::id::UserId, crate::event::Role)| v1::MemberRole {
                user: user.as_str().to_owned(),
                role: word::<v1::Role>(role.name()).unwrap_or_default(),
            };
            data.members = members.iter().map(member).collect();
        }
        Fact::ConversationUpdated { settings } => set(&mut data, settings),
        Fact::MemberJoined { user, role } | Fact::MemberRole { user, role } => {
            data.user = Some(user.as_str().to_owned());
            data.role = word::<v1::Role>(role.name());
        }
        Fact::MemberLeft { user } => data.user = Some(user.as_str().to_owned()),
        Fact::HistoryPurged { floor, floor_n, .. } => {
            data.floor = Some(*floor);
            data.floor_n = Some(*floor_n);
        }
        // The rest has nothing to tell, or is of users' own logs, which no client is shown.
        _ => {}
    }
    data
}

fn set(data: &mut v1::EventData, settings: &Settings) {
    data.title = Some(settings.title.clone());
    data.data = text(if settings.data.is_empty() { b"{}" } else { &settings.data });
    data.history = word::<v1::HistoryAccess>(settings.history.name());
    data.receipts = Some(!settings.receipts_off);
    data.open = settings.open.then_some(true);
    data.retention_secs = (settings.retention_secs != 0).then_some(settings.retention_secs.into());
}

fn word<W: super::json::Word>(name: &str) -> Option<i32> {
    W::number(&format!("{}{}", W::PREFIX, name.to_ascii_uppercase()))
}

/// A piece of JSON that was validated before; the tombstone of a deleted message is missing in protobuf.
fn text(json: &[u8]) -> Option<String> {
    std::str::from_utf8(json).ok().filter(|text| *text != "null").map(str::to_owned)
}

fn mentioned(mentioned: &Mentioned) -> Option<v1::Mentions> {
    mentioned.as_ref().map(|mentions| v1::Mentions {
        users: mentions.users.iter().map(|user| user.as_str().to_owned()).collect(),
        all: mentions.all.then_some(true),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        body::Body,
        event::{ConversationKind, Encryption, HistoryAccess, Role},
        frame,
        id::{Change, CommandId, DeviceId, Generation, Seq, UserId},
        inbox::{Counts, Cursor, Flags, Lag, Reset},
        mention::Mentions,
        presence::{Shown, Status},
        reaction::ReactionKey,
        receipt::{Receipt, Receipts, Watermarks},
        wire::{Head, InboxChanged},
    };

    const CONVERSATION: ConversationId = ConversationId(uuid::Uuid::from_u128(7));

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn read(json: &[u8], answer: Answer) -> v1::ServerFrame {
        let mut out = Vec::new();
        server_frame(json, answer, &mut out)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)));
        v1::ServerFrame::decode(&*out).unwrap()
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> server_frame::Payload {
        let mut json = Vec::new();
        write(&mut json);
        read(&json, Answer::Done).payload.unwrap()
    }

    /// An event is written as it is, and says what its JSON says.
    #[test]
    fn every_event_is_what_its_json_is() {
        let body = || Body::parse(r#"{ "text":"x", "big":18446744073709551615 }"#).unwrap();
        let settings = Settings { title: "t".into(), history: HistoryAccess::All, ..Settings::default() };
        let with_data = Settings { data: (*br#"{"a":1}"#).to_vec().into(), receipts_off: true, ..Settings::default() };
        let mentions = Some(Arc::new(Mentions { users: vec![user("bob")], all: true }));
        let key = || ReactionKey::new("👍").unwrap();
        let facts = [
            Fact::MessageNew { body: body(), mentions: None },
            Fact::MessageNew { body: body(), mentions: mentions.clone() },
            Fact::MessageUpdated { body: body(), previous: 3, mentions, target_n: 2 },
            Fact::MessageDeleted { previous: 0, target_n: 0 },
            Fact::MessageDeleted { previous: 9, target_n: 2 },
            Fact::ReactionAdded { key: key() },
            Fact::ReactionRemoved { key: key() },
            Fact::ConversationCreated {
                kind: ConversationKind::Group,
                encryption: Encryption::None,
                settings,
                members: vec![(user("ada"), Role::Owner), (user("bob"), Role::Member)],
            },
            Fact::ConversationCreated {
                kind: ConversationKind::Channel,
                encryption: Encryption::None,
                settings: Settings { open: true, ..Settings::default() },
                members: vec![(user("ada"), Role::Owner)],
            },
            Fact::ConversationUpdated { settings: with_data },
            Fact::ConversationDeleted,
            Fact::MemberJoined { user: user("eve"), role: Role::Admin },
            Fact::MemberRole { user: user("bob"), role: Role::Member },
            Fact::MemberLeft { user: user("bob") },
            Fact::HistoryPurged { floor: 3, floor_n: 2, oldest_at: 7 },
            Fact::ConversationUpdated { settings: Settings { retention_secs: 60, ..Settings::default() } },
        ];
        for fact in facts {
            let event = Event {
                seq: 9,
                n: 4,
                created_at: 1_795_381_228_120,
                sender: user("ada"),
                device: DeviceId::new("laptop").ok(),
                id: CommandId(uuid::Uuid::from_u128(9)),
                target: 3,
                hash: 0,
                fact,
            };
            let (mut json, mut direct) = (Vec::new(), Vec::new());
            frame::write_event(&mut json, CONVERSATION, &event);
            write_event(&mut direct, CONVERSATION, &event);
            let direct = v1::ServerFrame::decode(&*direct).unwrap();
            assert_eq!(direct, read(&json, Answer::Done), "{}", event.fact.name());
        }
    }

    #[test]
    fn whatever_a_server_says_by_itself_has_a_form_in_protobuf() {
        use server_frame::Payload;
        let cursor = Cursor { generation: Generation(1), change: Change { epoch: 5, count: 255 } };
        let Payload::Hello(hello) = written(|out| frame::write_hello(out, "1-a", 250, Generation(255))) else {
            panic!("no hello")
        };
        assert_eq!((hello.generation.as_str(), hello.now, hello.features.len()), ("ff", Some(moment_at(250)), 9));
        assert_eq!(hello.limits.unwrap().frame_bytes, crate::limit::FRAME_BYTES_MAX as u64);
        let position = v1::Position { conversation: CONVERSATION.to_string(), head: 9 };
        let caught_up = written(|out| frame::write_caught_up(out, CONVERSATION, 9));
        assert_eq!(caught_up, Payload::CaughtUp(position.clone()));
        assert_eq!(written(|out| frame::write_resync(out, CONVERSATION, 9)), Payload::Resync(position));
        let going = Payload::GoingAway(v1::GoingAway { reconnect_after_ms: 8 });
        assert_eq!(written(|out| frame::write_going_away(out, 8)), going);
        let Payload::Heartbeat(heartbeat) = written(|out| frame::write_heartbeat(out, cursor)) else { panic!() };
        assert_eq!(heartbeat.cursor, Some(cursor.to_string()));
        assert_eq!(
            written(|out| out.extend_from_slice(frame::HEARTBEAT)),
            Payload::Heartbeat(v1::Heartbeat::default())
        );
        let flags = Flags { pinned: true, muted: true, muted_until: 1, ..Flags::default() };
        let counts = Counts { unread: 2, unread_more: true, ..Counts::default() };
        let changed = InboxChanged { conversation: CONVERSATION, flags, read: Some((7, counts)), cursor };
        let Payload::InboxChanged(changed) = written(|out| frame::write_inbox_changed(out, &changed)) else { panic!() };
        let data = changed.data.unwrap();
        assert_eq!((data.pinned, data.unread, data.unread_more, data.read_n), (true, Some(2), Some(true), Some(7)));
        let shown = Shown { status: Status::Offline, last_seen: Some(1) };
        let Payload::PresenceChanged(presence) = written(|out| frame::write_presence(out, &user("bob"), shown)) else {
            panic!()
        };
        assert_eq!(presence.data.unwrap().status(), v1::PresenceStatus::Offline);
        let typing = written(|out| frame::write_typing(out, CONVERSATION, &user("bob"), true));
        assert!(matches!(typing, Payload::TypingStarted(typing) if typing.data.unwrap().expires_ms.is_some()));
        let typing = written(|out| frame::write_typing(out, CONVERSATION, &user("bob"), false));
        assert!(matches!(typing, Payload::TypingStopped(typing) if typing.sender == "bob"));
        let marks = Watermarks { delivered_n: 9, read_n: 4 };
        let receipts = Receipts { conversation: CONVERSATION, items: vec![Receipt { user: user("eve"), marks }] };
        let Payload::ReceiptUpdated(updated) = written(|out| frame::write_receipts(out, &receipts)) else { panic!() };
        assert_eq!(updated.data.unwrap().receipts[0].read_n, 4);
        let error = Error::invalid("seq", "no");
        let refused = written(|out| frame::write_error(out, None, error.problem("r")));
        assert!(matches!(refused, Payload::Error(error) if error.code == "request.invalid" && error.status == 422));
    }

    #[test]
    fn a_connection_is_answered_with_its_verdicts() {
        let cursor = Cursor { generation: Generation(1), change: Change::default() };
        let head = Some(Head { seq: 9, n: 4 });
        let verdicts = [
            (CONVERSATION, frame::Verdict { recovered: true, head, ..frame::Verdict::default() }),
            (
                ConversationId(uuid::Uuid::nil()),
                frame::Verdict { reason: Some("not_found"), ..frame::Verdict::default() },
            ),
        ];
        let mut json = Vec::new();
        let id = frame::RequestId::Number(3);
        let lag = Lag::Reset(Reset::TooOld);
        frame::write_connected(&mut json, Some(&id), &user("ada"), None, (cursor, lag), &verdicts, &[]);
        let said = read(&json, Answer::Connect);
        let Some(server_frame::Payload::Connected(connected)) = said.payload else { panic!() };
        assert_eq!(
            (said.id, connected.inbox(), connected.reset()),
            (Some(3), v1::InboxLag::Reset, v1::InboxReset::TooOld)
        );
        let verdict = &connected.conversations[&CONVERSATION.to_string()];
        assert_eq!((verdict.recovered, verdict.head, verdict.n), (true, Some(9), Some(4)));
        let other = &connected.conversations[&uuid::Uuid::nil().to_string()];
        assert_eq!(other.reason(), v1::PositionRefusal::NotFound);
    }

    #[test]
    fn a_clients_frame_says_what_its_json_would() {
        let frame = |id, payload| v1::ClientFrame { id, payload: Some(payload) }.encode_to_vec();
        use v1::client_frame::Payload;
        let seq: Seq = 412;
        let position = v1::ClientPosition { generation: "ff".to_owned(), seq };
        let connect = v1::Connect {
            token: "t\"".to_owned(),
            device: Some("d".to_owned()),
            positions: [(CONVERSATION.to_string(), position)].into(),
            cursor: None,
        };
        assert_eq!(
            client_frame(&frame(Some(1), Payload::Connect(connect))).unwrap(),
            format!(
                r#"{{"id":1,"connect":{{"token":"t\"","device":"d","positions":{{"{CONVERSATION}":["ff",412]}}}}}}"#
            )
        );
        let heartbeat = Payload::Heartbeat(v1::Heartbeat::default());
        assert_eq!(client_frame(&frame(None, heartbeat)).unwrap(), r#"{"heartbeat":{}}"#);
        let refresh = Payload::AuthRefresh(v1::AuthRefresh { token: "t".to_owned() });
        assert_eq!(client_frame(&frame(Some(2), refresh)).unwrap(), r#"{"id":2,"auth.refresh":{"token":"t"}}"#);
        let refused = |bytes: &[u8]| client_frame(bytes).map_err(|(id, error)| (id, error.code)).unwrap_err();
        let send = v1::MessageSendRequest { body: "{".to_owned(), ..Default::default() };
        assert_eq!(refused(&frame(Some(9), Payload::MessageSend(send))), (Some(9), Code::Invalid));
        assert_eq!(refused(&[]), (None, Code::Malformed));
        assert_eq!(refused(&[0xff; 20]), (None, Code::Malformed));
        // An operation of tomorrow.
        assert_eq!(refused(&[8, 7, 0xfa, 0x7d, 0]), (Some(7), Code::UnknownOperation));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = client_frame(&bytes);
        }
    }
}
