//! How the words look to a client of the WebSocket (and, in their JSON, to every client).
//!
//! A frame is a JSON object with one payload key beside an optional `id`: `{"id":1,"message.send":{…}}` is a request,
//! `{"id":1,"ok":{…}}` or `{"id":1,"error":{…}}` its answer, and a frame without `id` is a push. Several frames may
//! share one WebSocket message.

use std::{borrow::Cow, fmt, io::Write};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    decode,
    error::{Code, Error, Problem},
    event::{Event, Fact},
    id::{ConversationId, DeviceId, Generation, Millis, Seq, UserId},
    inbox::{Cursor, Lag},
    limit,
    mention::Mentions,
    presence::Shown,
    receipt::Receipts,
    reply::Reply,
    time::Timestamp,
    wire::{Head, InboxChanged},
};

/// What a client calls its request; echoed in the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A number.
    Number(u64),
    /// A string of at most 64 bytes.
    Text(Box<str>),
}

/// A client's frame, not yet decoded beyond its envelope.
#[derive(Debug)]
pub struct Request<'a> {
    /// To be echoed; without it the client wants no answer but errors.
    pub id: Option<RequestId>,
    /// The payload's key: an operation's name, `connect` or `heartbeat`.
    pub name: Cow<'a, str>,
    /// The payload.
    pub args: &'a RawValue,
}

/// A frame that is no request.
#[derive(Debug)]
pub struct NoRequest {
    /// What it is to be called in the answer, if it could be read.
    pub id: Option<RequestId>,
    /// What is wrong with it: [`Code::Malformed`].
    pub error: Error,
}

impl NoRequest {
    fn new(id: Option<RequestId>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { id, error: Error::new(Code::Malformed).with_detail(detail) }
    }
}

/// Walks the frames of one WebSocket message.
///
/// An object that is no request is passed over. After what is no object, or no JSON, the rest of the message is lost: there is no
/// telling where the next frame would begin.
pub fn requests(message: &str) -> Requests<'_> {
    Requests { frames: serde_json::Deserializer::from_str(message).into_iter(), broken: false }
}

/// The frames of one WebSocket message, see [`requests`].
pub struct Requests<'a> {
    frames: serde_json::StreamDeserializer<'a, serde_json::de::StrRead<'a>, Envelope<'a>>,
    broken: bool,
}

impl Requests<'_> {
    /// Where in the message the frames begin that have not been walked yet: a reader that has no room for more goes
    /// on from there later.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.frames.byte_offset()
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Result<Request<'a>, NoRequest>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let frame = self.frames.next()?;
        Some(match frame {
            Ok(Envelope(request)) => request,
            Err(error) => {
                self.broken = true;
                Err(NoRequest::new(None, decode::sentence(&error.to_string())))
            }
        })
    }
}

impl fmt::Debug for Requests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("offset", &self.offset()).field("broken", &self.broken).finish()
    }
}

/// A whole object, and what it asks.
struct Envelope<'a>(Result<Request<'a>, NoRequest>);

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Envelope<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a frame: an object with one payload key and an optional `id`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
                // It is read to its end whatever is wrong with it: the `id` may come last, and the next frame is to be found.
                let (mut id, mut payload, mut problem) = (None, None, None);
                while let Some(Key(key)) = map.next_key()? {
                    if key == "id" {
                        match map.next_value()? {
                            MaybeId(Some(known)) => id = Some(known),
                            MaybeId(None) => problem = Some(NO_ID),
                        }
                    } else if payload.is_none() {
                        payload = Some((key, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        problem = Some("a frame has one payload key");
                    }
                }
                Ok(Envelope(match (payload, problem) {
                    (_, Some(problem)) => Err(NoRequest::new(id, problem)),
                    (None, None) => Err(NoRequest::new(id, "the frame has no payload")),
                    (Some((name, args)), None) => Ok(Request { id, name, args }),
                }))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A key, borrowed from the message unless it holds an escape.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What an `id` must be.
const NO_ID: &str = "an `id` is a non-negative integer or a string of at most 64 bytes";

/// An `id`, if it is one.
struct MaybeId(Option<RequestId>);

impl<'de> Deserialize<'de> for MaybeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Id;
        impl<'de> Visitor<'de> for Id {
            type Value = MaybeId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NO_ID)
            }
            fn visit_u64<E>(self, number: u64) -> Result<MaybeId, E> {
                Ok(MaybeId(Some(RequestId::Number(number))))
            }
            fn visit_str<E>(self, text: &str) -> Result<MaybeId, E> {
                Ok(MaybeId((text.len() <= 64).then(|| RequestId::Text(text.into()))))
            }
            fn visit_i64<E>(self, _: i64) -> Result<MaybeId, E> {
                Ok(MaybeId(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<MaybeId, E> {
                Ok(MaybeId(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<MaybeId, E> {
                Ok(MaybeId(None))
            }
            fn visit_unit<E>(self) -> Result<MaybeId, E> {
                Ok(MaybeId(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<MaybeId, A::Error> {
                IgnoredAny.visit_seq(items).map(|_| MaybeId(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<MaybeId, A::Error> {
                IgnoredAny.visit_map(entries).map(|_| MaybeId(None))
            }
        }
        deserializer.deserialize_any(Id)
    }
}

// === what the server writes ===

/// Appends `{"id":…,"ok":…}`.
pub fn write_reply(out: &mut Vec<u8>, id: &RequestId, reply: &Reply, ignored: &[String]) {
    let mut object = Object::begin(out);
    object.id(id).key("ok");
    reply.write_json(object.out, ignored);
    object.end();
}

/// Appends `{"id":…,"error":…}`, without an id where the request had none.
pub fn write_error(out: &mut Vec<u8>, id: Option<&RequestId>, problem: Problem<'_>) {
    let mut object = Object::begin(out);
    if let Some(id) = id {
        object.id(id);
    }
    object.json("error", &problem);
    object.end();
}

/// Appends `{"id":…,"ok":{}}`: what `heartbeat` and `auth.refresh` are answered, which no entity sees.
pub fn write_done(out: &mut Vec<u8>, id: &RequestId, ignored: &[String]) {
    write_reply(out, id, &Reply::Closed, ignored);
}

/// What a connecting client is told about one conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Everything between the client's position and the head follows.
    pub recovered: bool,
    /// Too much is missing to push it: the client fetches a range.
    pub limited: bool,
    /// Why the client's position counts for nothing: `generation`, `ahead`, `not_found`, or `unavailable`
    /// (nobody can tell at the moment; ask again later).
    pub reason: Option<&'static str>,
    /// Where the conversation stands, if the client may know.
    pub head: Option<Head>,
}

/// Appends the answer to `connect`.
pub fn write_connected(
    out: &mut Vec<u8>,
    id: Option<&RequestId>,
    user: &UserId,
    device: Option<&DeviceId>,
    inbox: (Cursor, Lag),
    verdicts: &[(ConversationId, Verdict)],
    ignored: &[String],
) {
    let mut object = Object::begin(out);
    if let Some(id) = id {
        object.id(id);
    }
    object.object("ok", |ok| {
        ok.text("user", user.as_str());
        if let Some(device) = device {
            ok.text("device", device.as_str());
        }
        let (cursor, lag) = inbox;
        ok.display("cursor", cursor).text("inbox", lag.name());
        if let Lag::Reset(reset) = lag {
            ok.text("reset", reset.name());
        }
        ok.key("conversations");
        ok.out.push(b'{');
        for (index, (conversation, verdict)) in verdicts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(ok.out, "{comma}\"{conversation}\":");
            let mut object = Object::begin(ok.out);
            object.flag("recovered", verdict.recovered);
            if verdict.limited {
                object.flag("limited", true);
            }
            if let Some(reason) = verdict.reason {
                object.text("reason", reason);
            }
            if let Some(head) = verdict.head {
                object.number("head", head.seq).number("n", head.n);
            }
            object.end();
        }
        ok.out.push(b'}');
        if !ignored.is_empty() {
            ok.array("ignored", ignored, |out, name| write_text(out, name));
        }
    });
    object.end();
}

/// Appends the first frame of every connection.
pub fn write_hello(out: &mut Vec<u8>, connection: &str, now: Millis, generation: Generation) {
    let mut object = Object::begin(out);
    object.object("hello", |hello| {
        hello.text("connection", connection).display("now", Timestamp(now)).display("generation", generation);
        hello.number("heartbeat_ms", limit::HEARTBEAT_MS);
        hello.object("limits", |limits| {
            limits
                .number("frame_bytes", limit::FRAME_BYTES_MAX as u64)
                .number("body_bytes", limit::BODY_BYTES_MAX as u64);
            limits
                .number("in_flight", limit::CONNECTION_IN_FLIGHT_MAX as u64)
                .number("positions", limit::POSITIONS_MAX as u64);
            limits
                .number("page", limit::PAGE_MAX as u64)
                .number("id_ahead_ms", limit::ID_AHEAD_MS_MAX)
                .number("id_age_ms", limit::ID_AGE_MS_MAX);
        });
        hello.raw(
            "features",
            b"[\"resume\",\"edit_history\",\"large_conversations\",\"mentions\",\"inbox\",\"reactions\",\"receipts\",\"presence\",\"typing\"]",
        );
    });
    object.end();
}

/// Appends an event as clients see it, live or in a page.
pub fn write_event(out: &mut Vec<u8>, conversation: ConversationId, event: &Event) {
    event.write_json(conversation, out);
}

/// Appends `{"caught_up":…}`: everything up to `head` has been sent.
pub fn write_caught_up(out: &mut Vec<u8>, conversation: ConversationId, head: Seq) {
    write_position(out, "caught_up", conversation, head);
}

/// Appends `{"resync":…}`: events were dropped; fetch from your own seq.
pub fn write_resync(out: &mut Vec<u8>, conversation: ConversationId, head: Seq) {
    write_position(out, "resync", conversation, head);
}

fn write_position(out: &mut Vec<u8>, key: &'static str, conversation: ConversationId, head: Seq) {
    let mut object = Object::begin(out);
    object.object(key, |inner| {
        inner.display("conversation", conversation).number("head", head);
    });
    object.end();
}

/// Appends `{"going_away":…}`.
pub fn write_going_away(out: &mut Vec<u8>, reconnect_after_ms: u64) {
    let mut object = Object::begin(out);
    object.object("going_away", |inner| {
        inner.number("reconnect_after_ms", reconnect_after_ms);
    });
    object.end();
}

/// Appends `{"event":"inbox.changed",…}`: how a conversation is marked and read now. It is not durable and has no seq.
pub fn write_inbox_changed(out: &mut Vec<u8>, changed: &InboxChanged) {
    let mut object = Object::begin(out);
    object.text("event", "inbox.changed").display("conversation", changed.conversation);
    object.object("data", |data| {
        changed.flags.write_json(data);
        if let Some((read_n, counts)) = &changed.read {
            data.number("read_n", *read_n);
            counts.write_json(data);
        }
        data.display("cursor", changed.cursor);
    });
    object.end();
}

/// Appends `{"event":"presence.changed",…}`: how a watched user is shown now. It is not durable and has no seq.
pub fn write_presence(out: &mut Vec<u8>, user: &UserId, shown: Shown) {
    let mut object = Object::begin(out);
    object.text("event", "presence.changed");
    object.object("data", |data| {
        data.text("user", user.as_str());
        shown.write_json(data);
    });
    object.end();
}

/// Appends `{"event":"typing.started",…}` or `typing.stopped`. It is not durable and has no seq.
pub fn write_typing(out: &mut Vec<u8>, conversation: ConversationId, user: &UserId, is_typing: bool) {
    let mut object = Object::begin(out);
    object.text("event", if is_typing { "typing.started" } else { "typing.stopped" });
    object.display("conversation", conversation).text("sender", user.as_str());
    object.object("data", |data| {
        if is_typing {
            data.number("expires_ms", limit::TYPING_MS);
        }
    });
    object.end();
}

/// Appends `{"event":"receipt.updated",…}`: how far members have got now. It is not durable and has no seq.
pub fn write_receipts(out: &mut Vec<u8>, receipts: &Receipts) {
    let mut object = Object::begin(out);
    object.text("event", "receipt.updated").display("conversation", receipts.conversation);
    object.object("data", |data| {
        data.array("receipts", &receipts.items, |out, receipt| {
            let mut object = Object::begin(out);
            object.text("user", receipt.user.as_str());
            receipt.marks.write_json(&mut object);
            object.end();
        });
    });
    object.end();
}

/// Appends the frame that keeps a silent connection alive, for a client whose inbox is known up to `cursor`.
pub fn write_heartbeat(out: &mut Vec<u8>, cursor: Cursor) {
    let mut object = Object::begin(out);
    object.object("heartbeat", |heartbeat| {
        heartbeat.display("cursor", cursor);
    });
    object.end();
}

/// The frame that keeps a silent connection alive.
pub const HEARTBEAT: &[u8] = b"{\"heartbeat\":{}}";

impl Event {
    /// Appends the event's JSON object.
    pub fn write_json(&self, conversation: ConversationId, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.text("event", self.fact.name()).display("conversation", conversation);
        object.number("seq", self.seq).number("n", self.n).display("at", Timestamp(self.created_at));
        object.text("sender", self.sender.as_str());
        if let Some(device) = &self.device {
            object.text("device", device.as_str());
        }
        object.display("id", self.id);
        if self.target != 0 {
            object.number("target", self.target);
        }
        object.object("data", |data| match &self.fact {
            Fact::MessageNew { body, mentions } => {
                data.raw("body", body.json());
                Mentions::write_json(mentions, data);
            }
            Fact::MessageUpdated { body, previous, mentions, target_n } => {
                data.raw("body", body.json()).number("previous", *previous);
                Mentions::write_json(mentions, data);
                write_target_n(data, *target_n);
            }
            Fact::MessageDeleted { previous, target_n } => {
                write_target_n(data, *target_n);
                if *previous != 0 {
                    data.number("previous", *previous);
                }
            }
            Fact::ReactionAdded { key } | Fact::ReactionRemoved { key } => {
                data.text("key", key.as_str());
            }
            Fact::ConversationDeleted => {}
            Fact::ConversationCreated { kind, encryption, settings, members } => {
                data.text("kind", kind.name()).text("encryption", encryption.name());
                settings.write_json(data);
                data.array("members", members, |out, (user, role)| {
                    let mut object = Object::begin(out);
                    object.text("user", user.as_str()).text("role", role.name());
                    object.end();
                });
            }
            Fact::ConversationUpdated { settings } => settings.write_json(data),
            Fact::MemberJoined { user, role } | Fact::MemberRole { user, role } => {
                data.text("user", user.as_str()).text("role", role.name());
            }
            Fact::MemberLeft { user } => {
                data.text("user", user.as_str());
            }
            Fact::HistoryPurged { floor, floor_n, .. } => {
                data.number("floor", *floor).number("floor_n", *floor_n);
            }
            Fact::UserJoined { conversation, kind, at, .. } => {
                data.display("conversation", *conversation).text("kind", kind.name()).number("at", *at);
            }
            Fact::UserLeft { conversation, at, .. } => {
                data.display("conversation", *conversation).number("at", *at);
            }
            Fact::UserPreference { conversation, preference, .. } => {
                data.display("conversation", *conversation);
                preference.flags(0, 0, self.created_at).write_json(data);
            }
            Fact::ChangesReserved { upto } => {
                data.number("upto", *upto);
            }
            Fact::UserLoggedOut(out) => {
                data.display("before", Timestamp(out.before));
                if let Some(device) = &out.device {
                    data.text("device", device.as_str());
                }
            }
            Fact::UserBanned(ban) => ban.write_json(data),
            Fact::UserUnbanned { by } => {
                data.text("by", by);
            }
            Fact::UserPresence { invisible, .. } => {
                data.flag("invisible", *invisible);
            }
            Fact::UserReceipts { private } => {
                data.flag("private", *private);
            }
        });
        object.end();
    }
}

fn write_target_n(data: &mut Object<'_>, target_n: u64) {
    if target_n != 0 {
        data.number("target_n", target_n);
    }
}

/// A JSON object that is being written. Serde would do, but for the bodies: they are spliced in as they are.
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    /// Opens the brace.
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Closes the brace.
    pub fn end(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &'static str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn id(&mut self, id: &RequestId) -> &mut Self {
        match id {
            RequestId::Number(number) => self.number("id", *number),
            RequestId::Text(text) => self.text("id", text),
        }
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, number: u64) -> &mut Self {
        self.key(key);
        // Vec's writer cannot fail.
        let _ = write!(self.out, "{number}");
        self
    }

    /// A boolean.
    pub fn flag(&mut self, key: &'static str, flag: bool) -> &mut Self {
        self.raw(key, if flag { b"true" } else { b"false" })
    }

    /// A string, escaped.
    pub fn text(&mut self, key: &'static str, text: &str) -> &mut Self {
        self.key(key);
        write_text(self.out, text);
        self
    }

    /// A string whose characters never need escaping: ids, times.
    pub fn display(&mut self, key: &'static str, value: impl fmt::Display) -> &mut Self {
        self.key(key);
        let _ = write!(self.out, "\"{value}\"");
        self
    }

    /// JSON that was validated before.
    pub fn raw(&mut self, key: &'static str, json: &[u8]) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(json);
        self
    }

    /// Whatever serde can write.
    pub fn json(&mut self, key: &'static str, value: &impl serde::Serialize) -> &mut Self {
        self.key(key);
        if serde_json::to_writer(&mut *self.out, value).is_err() {
            self.out.extend_from_slice(b"null");
        }
        self
    }

    /// An object in the object.
    pub fn object(&mut self, key: &'static str, fill: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.key(key);
        let mut inner = Object::begin(self.out);
        fill(&mut inner);
        inner.end();
        self
    }

    /// An array.
    pub fn array<T>(&mut self, key: &'static str, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) -> &mut Self {
        self.key(key);
        self.out.push(b'[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write(self.out, item);
        }
        self.out.push(b']');
        self
    }
}

/// Appends a JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // Strings always serialise and Vec's writer cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        body::Body,
        id::{Change, CommandId},
        inbox::{Counts, Flags, Reset},
        receipt::{Receipt, Watermarks},
        reply::Sent,
    };

    fn one(message: &str) -> Result<(Option<RequestId>, String, String), NoRequest> {
        let mut frames = requests(message);
        let frame = frames.next().unwrap()?;
        Ok((frame.id, frame.name.into_owned(), frame.args.get().to_owned()))
    }

    #[test]
    fn an_envelope_is_taken_apart() {
        let (id, name, args) = one(r#"{"id":7,"message.send":{"a":[1,{"b":2}]}}"#).unwrap();
        assert_eq!(
            (id, name.as_str(), args.as_str()),
            (Some(RequestId::Number(7)), "message.send", r#"{"a":[1,{"b":2}]}"#)
        );
        let (id, name, _) = one(r#"{"heartbeat":{}}"#).unwrap();
        assert_eq!((id, name.as_str()), (None, "heartbeat"));
        let (id, name, _) = one(r#"{"a\u0062":1,"id":"x"}"#).unwrap();
        assert_eq!((id, name.as_str()), (Some(RequestId::Text("x".into())), "ab"));
    }

    #[test]
    fn frames_share_a_message() {
        let names: Vec<_> =
            requests("{\"a\":1}\n{\"b\":2}{\"c\":\n3}").map(|frame| frame.unwrap().name.into_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let mut broken = requests("{\"a\":1}\n}{\"b\":1}");
        assert!(broken.next().unwrap().is_ok());
        assert!(broken.next().unwrap().is_err());
        assert!(broken.next().is_none());
    }

    #[test]
    fn broken_envelopes_are_malformed() {
        for message in [
            "{}",
            "{\"id\":1}",
            "[]",
            "1",
            "{\"a\":1,\"b\":2}",
            "{\"id\":-1,\"a\":1}",
            "{\"id\":1.5,\"a\":1}",
            "{\"a\":",
        ] {
            assert_eq!(one(message).unwrap_err().error.code, Code::Malformed, "{message}");
        }
        assert!(one(&format!("{{\"id\":\"{}\",\"a\":1}}", "x".repeat(65))).is_err());
    }

    /// Whoever asks wrongly is to know which of its requests that was; what stands behind it is asked all the same.
    #[test]
    fn an_object_that_is_no_request_is_answered_under_its_id() {
        for object in [r#"{"id":7,"a":{},"b":[{}]}"#, r#"{"a":1,"b":{"c":2},"id":7}"#, r#"{"id":7}"#] {
            let message = format!("{object}{{\"next\":{{}}}}");
            let mut frames = requests(&message);
            let refused = frames.next().unwrap().unwrap_err();
            assert_eq!((refused.id, refused.error.code), (Some(RequestId::Number(7)), Code::Malformed), "{object}");
            assert_eq!(frames.next().unwrap().unwrap().name, "next", "{object}");
        }
        for id in ["-1", "1.5", "true", "null", "[[7]]", r#"{"a":{"b":7}}"#] {
            let message = format!("{{\"id\":{id},\"a\":1}}{{\"next\":{{}}}}");
            let mut frames = requests(&message);
            let refused = frames.next().unwrap().unwrap_err();
            assert_eq!((refused.id, &*refused.error.detail), (None, NO_ID), "{id}");
            assert!(frames.next().unwrap().is_ok(), "{id}");
        }
    }

    #[test]
    fn an_event_is_json() {
        let event = Event {
            seq: 413,
            n: 230,
            sender: UserId::new("a\"da").unwrap(),
            device: None,
            id: CommandId::fresh(),
            target: 0,
            created_at: 0,
            hash: 0,
            fact: Fact::MessageNew { body: Body::parse(r#"{"text":"hi"}"#).unwrap(), mentions: None },
        };
        let mut out = Vec::new();
        write_event(&mut out, ConversationId(uuid::Uuid::nil()), &event);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["event"], "message.new");
        assert_eq!(json["sender"], "a\"da");
        assert_eq!(json["data"]["body"]["text"], "hi");
        assert_eq!(json["at"], "1970-01-01T00:00:00.000Z");
        assert!(json.get("target").is_none());
    }

    #[test]
    fn answers_echo_the_id() {
        let mut out = Vec::new();
        let sent = Reply::Sent(Sent { seq: 1, n: 1, created_at: 0, duplicate: true });
        write_reply(&mut out, &RequestId::Text("x\"".into()), &sent, &["typo".to_owned()]);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["id"], "x\"");
        assert_eq!(json["ok"]["duplicate"], true);
        assert_eq!(json["ok"]["ignored"][0], "typo");
        out.clear();
        write_error(&mut out, None, Error::new(Code::Overloaded).problem("r"));
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["error"]["code"], "overloaded");
        assert!(json.get("id").is_none());
    }

    #[test]
    fn a_walk_can_be_left_and_taken_up_again() {
        let message = "{\"a\":1}\n{\"b\":2} {\"c\":3}";
        let mut frames = requests(message);
        assert_eq!(frames.next().unwrap().unwrap().name, "a");
        let rest = &message[frames.offset()..];
        assert_eq!(requests(rest).map(|frame| frame.unwrap().name.into_owned()).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn what_is_told_unasked_is_json() {
        let cursor = Cursor { generation: Generation(1), change: Change { epoch: 5, count: 10 } };
        let conversation = ConversationId(uuid::Uuid::nil());
        let counts = Counts { unread: 3, mentions: 1, ..Counts::default() };
        let flags = Flags { marked_unread: true, ..Flags::default() };
        let mut out = Vec::new();
        write_inbox_changed(&mut out, &InboxChanged { conversation, flags, read: Some((7, counts)), cursor });
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let data = serde_json::json!({ "pinned": false, "archived": false, "muted": false, "marked_unread": true,
            "read_n": 7, "unread": 3, "mentions": 1, "cursor": "1.5.a" });
        assert_eq!(json, serde_json::json!({ "event": "inbox.changed", "conversation": conversation, "data": data }));
        out.clear();
        let marks = Watermarks { delivered_n: 9, read_n: 7 };
        let items = vec![Receipt { user: UserId::new("bob").unwrap(), marks }];
        write_receipts(&mut out, &Receipts { conversation, items });
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let data = serde_json::json!({ "receipts": [{ "user": "bob", "delivered_n": 9, "read_n": 7 }] });
        assert_eq!(json, serde_json::json!({ "event": "receipt.updated", "conversation": conversation, "data": data }));
        out.clear();
        write_heartbeat(&mut out, cursor);
        assert_eq!(out, br#"{"heartbeat":{"cursor":"1.5.a"}}"#);
    }

    #[test]
    fn verdicts_are_json() {
        let conversation = ConversationId(uuid::Uuid::nil());
        let mut out = Vec::new();
        let head = Some(Head { seq: 9, n: 7 });
        let verdicts = [
            (conversation, Verdict { recovered: true, head, ..Verdict::default() }),
            (conversation, Verdict { limited: true, head, ..Verdict::default() }),
            (conversation, Verdict { reason: Some("not_found"), ..Verdict::default() }),
        ];
        write_connected(
            &mut out,
            Some(&RequestId::Number(1)),
            &UserId::new("ada").unwrap(),
            None,
            (Cursor { generation: Generation(1), change: Change { epoch: 5, count: 10 } }, Lag::Reset(Reset::TooOld)),
            &verdicts,
            &["x".to_owned()],
        );
        let text = String::from_utf8(out).unwrap();
        let nil = conversation.to_string();
        assert_eq!(
            text.replace(&nil, "c"),
            r#"{"id":1,"ok":{"user":"ada","cursor":"1.5.a","inbox":"reset","reset":"too_old","conversations":{"c":{"recovered":true,"head":9,"n":7},"c":{"recovered":false,"limited":true,"head":9,"n":7},"c":{"recovered":false,"reason":"not_found"}},"ignored":["x"]}}"#
        );
    }

    #[test]
    fn pushes_are_json() {
        let conversation = ConversationId(uuid::Uuid::nil());
        let mut out = Vec::new();
        write_hello(&mut out, "c1", 0, Generation(255));
        out.push(b'\n');
        write_caught_up(&mut out, conversation, 9);
        out.push(b'\n');
        write_resync(&mut out, conversation, 9);
        out.push(b'\n');
        write_going_away(&mut out, 5);
        out.push(b'\n');
        out.extend_from_slice(HEARTBEAT);
        let lines: Vec<serde_json::Value> =
            out.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!(lines[0]["hello"]["generation"], "ff");
        assert_eq!(lines[1]["caught_up"]["head"], 9);
        assert_eq!(lines[2]["resync"]["head"], 9);
        assert_eq!(lines[3]["going_away"]["reconnect_after_ms"], 5);
    }
}
