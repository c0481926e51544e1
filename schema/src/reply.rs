//! What an operation answers, and how the answer looks as JSON in every transport.

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    access::{Access, Ban, Marked},
    archive::Inline,
    error::Error,
    event::{ConversationKind, Encryption, Event, Role, Settings},
    frame::Object,
    id::{CommandId, ConversationId, DeviceId, Millis, Seq, UserId},
    inbox::{Cursor, Flags, Item, Place, Reset, Row},
    limit::{TYPING_MS, TYPING_REPEAT_MS},
    mention::{Mentioned, Mentions},
    presence::Shown,
    reaction::ReactionKey,
    receipt::{Progressed, ReceiptView, Watermarks},
    time::Timestamp,
};

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Reply {
    /// A message was sent, now or (a duplicate) before.
    Sent(Sent),
    /// A change was made, or there was nothing to change.
    Changed {
        /// The event that made it; the current head if nothing changed.
        seq: Seq,
        /// Whether there is a new event.
        changed: bool,
    },
    /// A conversation.
    Conversation(Box<ConversationView>),
    /// A page of the inbox.
    Conversations {
        /// Pinned ones first, then the last active.
        items: Vec<Row>,
        /// Where the next page begins.
        next_cursor: Option<Place>,
        /// What changes from now on is told for this cursor.
        cursor: Cursor,
        /// Whether some conversations were not asked yet where they stand: they may still move up.
        settling: bool,
    },
    /// What has changed in the inbox.
    Synced {
        /// In the order of their last change.
        items: Vec<Item>,
        /// What changes from now on, or comes on the next page.
        cursor: Cursor,
        /// Whether there is a next page.
        more: bool,
        /// Why nothing could be told.
        reset: Option<Reset>,
        /// As of a page of the inbox.
        settling: bool,
    },
    /// A conversation was marked.
    Marked {
        /// As it stands now.
        flags: Flags,
        /// Whether that was news.
        changed: bool,
    },
    /// A page of members.
    Members {
        /// By user id.
        items: Vec<MemberView>,
        /// Where the next page begins.
        next_cursor: Option<UserId>,
    },
    /// One message.
    Message(Box<MessageView>),
    /// A page of messages, by seq.
    Messages {
        /// The messages.
        items: Vec<MessageView>,
        /// The conversation's head.
        head: Seq,
        /// Whether more lie below the first and above the last one.
        more: (bool, bool),
    },
    /// Every body that a message has had.
    Edits {
        /// Oldest first.
        items: Vec<EditView>,
        /// The deleting event, if there is one.
        deleted: Option<Seq>,
        /// Whether there were more edits than one answer holds; the newest are there.
        more: bool,
    },
    /// A page of who reacted to a message with one key.
    Reactions {
        /// By user id.
        items: Vec<ReactionView>,
        /// How many there are in all.
        count: u64,
        /// Where the next page begins.
        next_cursor: Option<UserId>,
    },
    /// How far the caller has got in one conversation.
    Progressed(Progressed),
    /// How far the caller has got in conversations, or why nothing could be noted.
    AllProgressed {
        /// By conversation.
        items: Vec<(ConversationId, Result<Progressed, Error>)>,
    },
    /// Whom a message has reached.
    Receipts {
        /// By user id: who was a member when it was sent and is one now, but for its sender.
        items: Vec<ReceiptView>,
        /// How many there are in all.
        members: u64,
        /// How many of them it has reached.
        delivered: u64,
        /// How many have read it.
        read: u64,
        /// Where the next page begins.
        next_cursor: Option<UserId>,
    },
    /// What others may see of how far the caller has read.
    ReceiptPreference {
        /// Nothing, unless a read says otherwise.
        private: bool,
        /// Whether that was news; `None` when it was only asked for.
        changed: Option<bool>,
    },
    /// A page of the log, by seq.
    Events {
        /// Whose.
        conversation: ConversationId,
        /// Consecutive, but for what the caller may not see.
        #[rkyv(with = rkyv::with::Map<Inline>)]
        items: Vec<Arc<Event>>,
        /// The conversation's head.
        head: Seq,
        /// Nothing at or below is there for the caller.
        floor: Seq,
    },
    /// A conversation is open.
    Opened {
        /// Its head when the listener was registered.
        head: Seq,
        /// Messages up to the head.
        n: u64,
        /// Whether it is delivered to open connections only.
        large: bool,
        /// The event by which the caller became a member: for the gateway, not for clients.
        joined: Seq,
    },
    /// A conversation is closed.
    Closed,
    /// Where a user is connected.
    Sessions {
        /// The longest connected first.
        items: Vec<SessionView>,
    },
    /// A user was logged out.
    LoggedOut {
        /// Tokens issued before this are refused from now on.
        before: Millis,
    },
    /// What an operator may know of a user.
    User(Box<UserView>),
    /// How a user is shown to the caller.
    Presence {
        /// Whom.
        user: UserId,
        /// How.
        shown: Shown,
        /// Whether others may not see them: told to themselves only.
        invisible: Option<bool>,
    },
    /// Others see the caller, or do not.
    Visibility {
        /// Whether they do not.
        invisible: bool,
        /// Whether that was news.
        changed: bool,
    },
    /// The caller is writing.
    Typing {
        /// Whether others are told.
        shown: bool,
    },
}

/// A member as other members see them.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MemberView {
    /// Who.
    pub user: UserId,
    /// As what.
    pub role: Role,
    /// How far they have got, where members see that of each other.
    pub marks: Option<Watermarks>,
}

/// The acknowledgement of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Sent {
    /// Its position.
    pub seq: Seq,
    /// Its ordinal among messages.
    pub n: u64,
    /// When the owner stamped it.
    pub created_at: Millis,
    /// Whether the id was known already.
    pub duplicate: bool,
}

/// A conversation as a member sees it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ConversationView {
    /// Which.
    pub id: ConversationId,
    /// What it is.
    pub kind: ConversationKind,
    /// Fixed.
    pub encryption: Encryption,
    /// Title, data, history access.
    pub settings: Settings,
    /// How many members.
    pub members: usize,
    /// Whether its events come only to whoever has it open.
    pub large: bool,
    /// The other member of a direct conversation.
    pub with: Option<UserId>,
    /// The caller's role.
    pub role: Role,
    /// Last event.
    pub head: Seq,
    /// Messages up to the head.
    pub n: u64,
    /// Nothing at or below is there for the caller.
    pub floor: Seq,
    /// When it was created.
    pub created_at: Millis,
    /// When its last event was stamped.
    pub last_at: Millis,
    /// Whether a creation found it already there.
    pub existed: bool,
}

/// A message as it stands now.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MessageView {
    /// Position.
    pub seq: Seq,
    /// Ordinal among messages.
    pub n: u64,
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub device: Option<DeviceId>,
    /// Its client_msg_id.
    pub id: CommandId,
    /// When.
    pub created_at: Millis,
    /// The current body; `None` once deleted.
    pub body: Option<Bytes>,
    /// Whom it mentions now.
    pub mentions: Mentioned,
    /// The last edit's seq and time.
    pub edited: Option<(Seq, Millis)>,
    /// The deleting event's seq.
    pub deleted: Option<Seq>,
    /// Its reactions, in the order in which their keys came up.
    pub reactions: Vec<ReactionCount>,
}

/// How often a message was reacted to with one key.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ReactionCount {
    /// With what.
    pub key: ReactionKey,
    /// By how many users.
    pub count: u64,
    /// Whether the caller is one of them.
    pub mine: bool,
}

/// Somebody's reaction.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ReactionView {
    /// Whose.
    pub user: UserId,
    /// The event that added it.
    pub seq: Seq,
    /// When.
    pub at: Millis,
}

/// One body of a message's history.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct EditView {
    /// The event that gave it.
    pub seq: Seq,
    /// When.
    pub at: Millis,
    /// The body; `None` once the message is deleted.
    pub body: Option<Bytes>,
}

/// A connection of a user.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SessionView {
    /// As its `hello` called it.
    pub connection: String,
    /// Which device.
    pub device: Option<DeviceId>,
    /// When it was registered.
    pub since: Millis,
}

/// A user as a server-side caller sees them.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct UserView {
    /// Who.
    pub user: UserId,
    /// The ban that is in force.
    pub ban: Option<Ban>,
    /// What log-outs there were.
    #[rkyv(with = Inline)]
    pub access: Arc<Access>,
    /// Where they are connected.
    pub sessions: Vec<SessionView>,
    /// Conversations that they are a member of.
    pub conversations: u64,
}

impl Reply {
    /// Appends the answer's JSON object. Names in `ignored` are reported to the client.
    pub fn write_json(&self, out: &mut Vec<u8>, ignored: &[String]) {
        let mut object = Object::begin(out);
        match self {
            Self::Sent(sent) => {
                object.number("seq", sent.seq).number("n", sent.n).display("created_at", Timestamp(sent.created_at));
                if sent.duplicate {
                    object.raw("duplicate", b"true");
                }
            }
            Self::Changed { seq, changed } => {
                object.number("seq", *seq).flag("changed", *changed);
            }
            Self::Conversation(view) => {
                object.object("conversation", |out| view.write_json(out));
                if view.existed {
                    object.flag("existed", true);
                }
            }
            Self::Conversations { items, next_cursor, cursor, settling } => {
                object.array("conversations", items, |out, row| row.write_json(out));
                if let Some(next) = next_cursor {
                    object.display("next_cursor", next);
                }
                object.display("cursor", cursor);
                if *settling {
                    object.flag("settling", true);
                }
            }
            Self::Synced { items, cursor, more, reset, settling } => {
                object.array("conversations", items, |out, item| item.write_json(out));
                object.display("cursor", cursor).flag("more", *more);
                if let Some(reset) = reset {
                    object.text("reset", reset.name());
                }
                if *settling {
                    object.flag("settling", true);
                }
            }
            Self::Marked { flags, changed } => {
                flags.write_json(&mut object);
                object.flag("changed", *changed);
            }
            Self::Members { items, next_cursor } => {
                object.array("members", items, |out, member| {
                    let mut object = Object::begin(out);
                    object.text("user", member.user.as_str()).text("role", member.role.name());
                    if let Some(marks) = member.marks {
                        marks.write_json(&mut object);
                    }
                    object.end();
                });
                if let Some(cursor) = next_cursor {
                    object.text("next_cursor", cursor.as_str());
                }
            }
            Self::Message(view) => {
                object.object("message", |out| view.write_json(out));
            }
            Self::Messages { items, head, more } => {
                object.array("messages", items, |out, view| {
                    let mut object = Object::begin(out);
                    view.write_json(&mut object);
                    object.end();
                });
                object.number("head", *head).flag("more_before", more.0).flag("more_after", more.1);
            }
            Self::Edits { items, deleted, more } => {
                object.array("history", items, |out, edit| {
                    let mut object = Object::begin(out);
                    object
                        .number("seq", edit.seq)
                        .display("at", Timestamp(edit.at))
                        .raw("body", edit.body.as_deref().unwrap_or(b"null"));
                    object.end();
                });
                if let Some(seq) = deleted {
                    object.number("deleted", *seq);
                }
                if *more {
                    object.flag("more_before", true);
                }
            }
            Self::Reactions { items, count, next_cursor } => {
                object.array("reactions", items, |out, item| {
                    let mut object = Object::begin(out);
                    object.text("user", item.user.as_str()).number("seq", item.seq).display("at", Timestamp(item.at));
                    object.end();
                });
                object.number("count", *count);
                if let Some(cursor) = next_cursor {
                    object.text("next_cursor", cursor.as_str());
                }
            }
            Self::Progressed(progressed) => progressed.write_json(&mut object),
            Self::AllProgressed { items } => {
                object.array("conversations", items, |out, (conversation, result)| {
                    let mut object = Object::begin(out);
                    object.display("id", conversation);
                    match result {
                        Ok(progressed) => progressed.write_json(&mut object),
                        Err(error) => {
                            object.text("error", error.code.row().code);
                        }
                    }
                    object.end();
                });
            }
            Self::Receipts { items, members, delivered, read, next_cursor } => {
                object.number("members", *members).number("delivered", *delivered).number("read", *read);
                object.array("receipts", items, |out, item| {
                    let mut object = Object::begin(out);
                    object.text("user", item.user.as_str()).flag("delivered", item.delivered).flag("read", item.read);
                    object.end();
                });
                if let Some(cursor) = next_cursor {
                    object.text("next_cursor", cursor.as_str());
                }
            }
            Self::ReceiptPreference { private, changed } => {
                object.flag("private", *private);
                if let Some(changed) = changed {
                    object.flag("changed", *changed);
                }
            }
            Self::Events { conversation, items, head, floor } => {
                object.array("events", items, |out, event| event.write_json(*conversation, out));
                object.number("head", *head).number("floor", *floor);
            }
            Self::Opened { head, n, large, joined: _ } => {
                object.number("head", *head).number("n", *n).flag("large", *large);
            }
            Self::Closed => {}
            Self::Sessions { items } => {
                object.array("sessions", items, SessionView::write_json);
            }
            Self::LoggedOut { before } => {
                object.display("before", Timestamp(*before));
            }
            Self::Presence { user, shown, invisible } => {
                object.text("user", user.as_str());
                shown.write_json(&mut object);
                if let Some(invisible) = invisible {
                    object.flag("invisible", *invisible);
                }
            }
            Self::Visibility { invisible, changed } => {
                object.flag("invisible", *invisible).flag("changed", *changed);
            }
            Self::Typing { shown } => {
                object.flag("shown", *shown).number("expires_ms", TYPING_MS).number("repeat_ms", TYPING_REPEAT_MS);
            }
            Self::User(view) => {
                object.object("user", |user| view.write_json(user));
            }
        }
        if !ignored.is_empty() {
            object.array("ignored", ignored, |out, name| crate::frame::write_text(out, name));
        }
        object.end();
    }
}

impl ConversationView {
    fn write_json(&self, object: &mut Object<'_>) {
        object.display("id", self.id).text("kind", self.kind.name()).text("encryption", self.encryption.name());
        self.settings.write_json(object);
        if let Some(with) = &self.with {
            object.text("with", with.as_str());
        }
        if self.large {
            object.flag("large", true);
        }
        object.number("members", self.members as u64).text("role", self.role.name());
        object.number("head", self.head).number("n", self.n).number("floor", self.floor);
        object.display("created_at", Timestamp(self.created_at)).display("last_at", Timestamp(self.last_at));
    }
}

impl SessionView {
    fn write_json(out: &mut Vec<u8>, session: &Self) {
        let mut object = Object::begin(out);
        object.text("connection", &session.connection);
        if let Some(device) = &session.device {
            object.text("device", device.as_str());
        }
        object.display("since", Timestamp(session.since));
        object.end();
    }
}

impl UserView {
    fn write_json(&self, object: &mut Object<'_>) {
        object.text("id", self.user.as_str());
        if let Some(ban) = &self.ban {
            object.object("banned", |object| ban.write_json(object));
        }
        if self.access.before != 0 {
            object.display("logged_out_before", Timestamp(self.access.before));
        }
        let devices = self.access.marks.iter().filter_map(|mark| match &mark.what {
            Marked::Device(device) => Some((device, mark.before)),
            Marked::Token { .. } => None,
        });
        object.array("logged_out_devices", &devices.collect::<Vec<_>>(), |out, (device, before)| {
            let mut object = Object::begin(out);
            object.text("device", device.as_str()).display("before", Timestamp(*before));
            object.end();
        });
        object.array("sessions", &self.sessions, SessionView::write_json);
        object.number("conversations", self.conversations);
    }
}

impl Ban {
    /// Adds the ban's fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        object.display("since", Timestamp(self.since));
        if let Some(until) = self.until {
            object.display("until", Timestamp(until));
        }
        object.text("reason", &self.reason).text("by", &self.by);
    }
}

impl Settings {
    /// Adds the settings' fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        object.text("title", &self.title).raw("data", if self.data.is_empty() { b"{}" } else { &self.data });
        object.text("history", self.history.name()).flag("receipts", !self.receipts_off);
        if self.open {
            object.flag("open", true);
        }
        if self.retention_secs != 0 {
            object.number("retention_secs", self.retention_secs.into());
        }
    }
}

impl MessageView {
    fn write_json(&self, object: &mut Object<'_>) {
        object.number("seq", self.seq).number("n", self.n).text("sender", self.sender.as_str());
        if let Some(device) = &self.device {
            object.text("device", device.as_str());
        }
        object.display("id", self.id).display("created_at", Timestamp(self.created_at));
        object.raw("body", self.body.as_deref().unwrap_or(b"null"));
        Mentions::write_json(&self.mentions, object);
        if let Some((seq, at)) = self.edited {
            object.number("edit", seq).display("edited_at", Timestamp(at));
        }
        if let Some(seq) = self.deleted {
            object.number("deleted", seq);
        }
        if !self.reactions.is_empty() {
            object.array("reactions", &self.reactions, |out, one| {
                let mut object = Object::begin(out);
                object.text("key", one.key.as_str()).number("count", one.count).flag("mine", one.mine);
                object.end();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{LogOut, Mark},
        body::Body,
        event::{Fact, HistoryAccess},
        id::{Change, Generation},
        inbox::{Counts, Section},
        presence::Status,
    };
    use serde_json::{Value, json};

    fn shown(reply: &Reply) -> Value {
        let mut out = Vec::new();
        reply.write_json(&mut out, &[]);
        serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out)))
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    const ID: ConversationId = ConversationId(uuid::Uuid::nil());

    fn message() -> MessageView {
        MessageView {
            seq: 2,
            n: 1,
            sender: user("ada"),
            device: Some(DeviceId::new("laptop").unwrap()),
            id: CommandId(uuid::Uuid::nil()),
            created_at: 0,
            body: Some(Bytes::from_static(br#"{"text":"x"}"#)),
            mentions: None,
            edited: Some((4, 1)),
            deleted: None,
            reactions: vec![ReactionCount { key: ReactionKey::new("👍").unwrap(), count: 3, mine: true }],
        }
    }

    #[test]
    fn a_message_shows_its_edit_or_its_tombstone() {
        let edited = shown(&Reply::Message(Box::new(message())));
        assert_eq!(edited["message"]["body"], json!({ "text": "x" }));
        assert_eq!(
            (&edited["message"]["edit"], &edited["message"]["edited_at"]),
            (&json!(4), &json!("1970-01-01T00:00:00.001Z"))
        );
        assert_eq!(edited["message"]["reactions"], json!([{ "key": "👍", "count": 3, "mine": true }]));
        let deleted = MessageView {
            body: None,
            edited: None,
            deleted: Some(5),
            device: None,
            reactions: Vec::new(),
            ..message()
        };
        let page = shown(&Reply::Messages { items: vec![message(), deleted], head: 9, more: (true, false) });
        assert_eq!((&page["messages"][1]["body"], &page["messages"][1]["deleted"]), (&Value::Null, &json!(5)));
        assert_eq!(
            (&page["more_before"], &page["more_after"], &page["head"]),
            (&json!(true), &json!(false), &json!(9))
        );
        for absent in ["edit", "device", "reactions"] {
            assert!(page["messages"][1].get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_conversation_shows_what_its_member_may_know() {
        let view = ConversationView {
            id: ID,
            kind: ConversationKind::Direct,
            encryption: Encryption::None,
            settings: Settings { title: "a \"b\"".into(), history: HistoryAccess::All, ..Settings::default() },
            members: 2,
            large: false,
            with: Some(user("bob")),
            role: Role::Member,
            head: 7,
            n: 3,
            floor: 0,
            created_at: 0,
            last_at: 0,
            existed: true,
        };
        let shown = shown(&Reply::Conversation(Box::new(view)));
        assert_eq!(
            shown,
            json!({"conversation": {"id": ID, "kind": "direct", "encryption": "none", "title": "a \"b\"", "data": {}, "history": "all", "receipts": true,
                "with": "bob", "members": 2, "role": "member", "head": 7, "n": 3, "floor": 0,
                "created_at": "1970-01-01T00:00:00.000Z", "last_at": "1970-01-01T00:00:00.000Z"}, "existed": true})
        );
    }

    #[test]
    fn lists_say_where_the_next_page_begins() {
        let change = Change { epoch: 5, count: 255 };
        let cursor = Cursor { generation: Generation(1), change };
        let place = Place { section: Section::Usual, at: 16, conversation: ID };
        let row = Row {
            conversation: ID,
            kind: ConversationKind::Group,
            change,
            active_at: 16,
            flags: Flags::default(),
            standing: None,
        };
        let page = Reply::Conversations { items: vec![row], next_cursor: Some(place), cursor, settling: true };
        let inbox = shown(&page);
        assert_eq!(inbox["next_cursor"], json!("1.10.00000000000000000000000000000000"));
        assert_eq!((&inbox["cursor"], &inbox["settling"]), (&json!("1.5.ff"), &json!(true)));
        assert_eq!(inbox["conversations"][0]["change"], json!("5.ff"));
        let last = Reply::Conversations { items: Vec::new(), next_cursor: None, cursor, settling: false };
        assert_eq!(shown(&last), json!({ "conversations": [], "cursor": "1.5.ff" }));
        let left = Item::Left { conversation: ID, change };
        let synced = Reply::Synced { items: vec![left], cursor, more: true, reset: None, settling: false };
        assert_eq!(
            shown(&synced),
            json!({ "conversations": [{ "id": ID, "left": true, "change": "5.ff" }], "cursor": "1.5.ff", "more": true })
        );
        let reset = Some(Reset::TooOld);
        let synced = Reply::Synced { items: Vec::new(), cursor, more: false, reset, settling: false };
        assert_eq!(shown(&synced)["reset"], json!("too_old"));
        let marked = Reply::Marked { flags: Flags { pinned: true, ..Flags::default() }, changed: true };
        assert_eq!(
            shown(&marked),
            json!({ "pinned": true, "archived": false, "muted": false, "marked_unread": false, "changed": true })
        );
        let member = |name, marks| MemberView { user: user(name), role: Role::Owner, marks };
        let items = vec![member("ada", None), member("bob", Some(Watermarks { delivered_n: 3, read_n: 2 }))];
        let members = shown(&Reply::Members { items, next_cursor: Some(user("bob")) });
        let bob = json!({ "user": "bob", "role": "owner", "delivered_n": 3, "read_n": 2 });
        assert_eq!(members, json!({ "members": [{ "user": "ada", "role": "owner" }, bob], "next_cursor": "bob" }));
    }

    #[test]
    fn receipts_say_how_far_members_have_got() {
        let counts = Counts { unread: 1, ..Counts::default() };
        let progressed = Progressed { delivered_n: 4, read_n: 3, counts };
        let one = json!({ "delivered_n": 4, "read_n": 3, "unread": 1, "mentions": 0 });
        assert_eq!(shown(&Reply::Progressed(progressed)), one);
        let refused = Err(crate::error::Code::ConversationNotFound.into());
        let many = shown(&Reply::AllProgressed { items: vec![(ID, Ok(progressed)), (ID, refused)] });
        assert_eq!(many["conversations"][0]["read_n"], json!(3));
        assert_eq!(many["conversations"][1], json!({ "id": ID, "error": "conversation.not_found" }));
        let item = ReceiptView { user: user("bob"), delivered: true, read: false };
        let next_cursor = Some(user("bob"));
        let of = shown(&Reply::Receipts { items: vec![item], members: 5, delivered: 4, read: 3, next_cursor });
        let items = json!([{ "user": "bob", "delivered": true, "read": false }]);
        assert_eq!(of, json!({ "members": 5, "delivered": 4, "read": 3, "receipts": items, "next_cursor": "bob" }));
        let preference = |changed| shown(&Reply::ReceiptPreference { private: true, changed });
        assert_eq!(preference(None), json!({ "private": true }));
        assert_eq!(preference(Some(false)), json!({ "private": true, "changed": false }));
    }

    #[test]
    fn a_user_shows_what_stands_against_them() {
        let device = DeviceId::new("phone").unwrap();
        let session = SessionView { connection: "1-0".into(), device: Some(device.clone()), since: 0 };
        let marks = vec![
            Mark { before: 1, what: Marked::Device(device) },
            Mark { before: 1, what: Marked::Token { print: 1, expires_at: 2 } },
        ];
        let ban = Ban { since: 0, until: None, reason: "spam".into(), by: "backend".into() };
        let view = UserView {
            user: user("ada"),
            ban: Some(ban),
            access: Arc::new(Access { version: 1, before: 1, marks, ban: None }),
            sessions: vec![session],
            conversations: 3,
        };
        let (epoch, next) = ("1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.001Z");
        let session = json!({ "connection": "1-0", "device": "phone", "since": epoch });
        assert_eq!(
            shown(&Reply::User(Box::new(view))),
            json!({ "user": { "id": "ada", "banned": { "since": epoch, "reason": "spam", "by": "backend" }, "conversations": 3,
                "logged_out_before": next, "logged_out_devices": [{ "device": "phone", "before": next }], "sessions": [session] } })
        );
        assert_eq!(shown(&Reply::LoggedOut { before: 1 }), json!({ "before": next }));
        assert_eq!(shown(&Reply::Sessions { items: Vec::new() }), json!({ "sessions": [] }));
    }

    #[test]
    fn the_rest_is_what_the_page_for_clients_says() {
        assert_eq!(shown(&Reply::Changed { seq: 3, changed: false }), json!({ "seq": 3, "changed": false }));
        assert_eq!(
            shown(&Reply::Opened { head: 3, n: 1, large: true, joined: 1 }),
            json!({ "head": 3, "n": 1, "large": true })
        );
        assert_eq!(shown(&Reply::Closed), json!({}));
        let seen = Shown { status: Status::Offline, last_seen: Some(0) };
        assert_eq!(
            shown(&Reply::Presence { user: user("bob"), shown: seen, invisible: None }),
            json!({ "user": "bob", "status": "offline", "last_seen": "1970-01-01T00:00:00.000Z" })
        );
        let online = Shown { status: Status::Online, last_seen: None };
        assert_eq!(
            shown(&Reply::Presence { user: user("ada"), shown: online, invisible: Some(false) }),
            json!({ "user": "ada", "status": "online", "invisible": false })
        );
        assert_eq!(
            shown(&Reply::Visibility { invisible: true, changed: false }),
            json!({ "invisible": true, "changed": false })
        );
        assert_eq!(
            shown(&Reply::Typing { shown: true }),
            json!({ "shown": true, "expires_ms": TYPING_MS, "repeat_ms": TYPING_REPEAT_MS })
        );
        let edit = EditView { seq: 2, at: 0, body: None };
        let edits = shown(&Reply::Edits { items: vec![edit], deleted: Some(9), more: false });
        assert_eq!(
            edits,
            json!({ "history": [{ "seq": 2, "at": "1970-01-01T00:00:00.000Z", "body": null }], "deleted": 9 })
        );
        let item = ReactionView { user: user("bob"), seq: 7, at: 0 };
        let who = shown(&Reply::Reactions { items: vec![item], count: 2, next_cursor: Some(user("bob")) });
        assert_eq!(
            who,
            json!({ "reactions": [{ "user": "bob", "seq": 7, "at": "1970-01-01T00:00:00.000Z" }], "count": 2, "next_cursor": "bob" })
        );
        let event = |seq, target, fact| {
            Arc::new(Event {
                seq,
                n: 1,
                sender: user("ada"),
                device: DeviceId::new("d").ok(),
                id: CommandId(uuid::Uuid::nil()),
                target,
                created_at: 0,
                hash: 0,
                fact,
            })
        };
        let body = || Body::parse("{}").unwrap();
        let settings = || Settings { title: "t".into(), ..Settings::default() };
        let facts = [
            Fact::ConversationCreated {
                kind: ConversationKind::Group,
                encryption: Encryption::None,
                settings: settings(),
                members: vec![(user("ada"), Role::Owner)],
            },
            Fact::MessageNew { body: body(), mentions: None },
            Fact::MessageUpdated { body: body(), previous: 0, mentions: None, target_n: 1 },
            Fact::MessageDeleted { previous: 3, target_n: 1 },
            Fact::ReactionAdded { key: ReactionKey::new("👍").unwrap() },
            Fact::ReactionRemoved { key: ReactionKey::new("👍").unwrap() },
            Fact::ConversationUpdated { settings: settings() },
            Fact::MemberJoined { user: user("bob"), role: Role::Admin },
            Fact::MemberRole { user: user("bob"), role: Role::Member },
            Fact::MemberLeft { user: user("bob") },
            Fact::HistoryPurged { floor: 1, floor_n: 1, oldest_at: 0 },
            Fact::ConversationDeleted,
            Fact::UserJoined { conversation: ID, kind: ConversationKind::Direct, at: 1, change: Change::default() },
            Fact::UserLeft { conversation: ID, at: 2, change: Change::default() },
            Fact::ChangesReserved { upto: 9 },
            Fact::UserLoggedOut(LogOut { device: DeviceId::new("tv").ok(), ..LogOut::default() }),
            Fact::UserBanned(Ban { until: Some(1), ..Ban::default() }),
            Fact::UserUnbanned { by: "backend".into() },
            Fact::UserPresence { invisible: true, seen: 1 },
            Fact::UserReceipts { private: true },
        ];
        let names: Vec<&str> = facts.iter().map(Fact::name).collect();
        let items =
            facts.iter().enumerate().map(|(index, fact)| event(index as u64 + 1, index as u64, fact.clone())).collect();
        let page = shown(&Reply::Events { conversation: ID, items, head: 12, floor: 0 });
        let events = page["events"].as_array().unwrap();
        assert_eq!(events.iter().map(|event| event["event"].as_str().unwrap()).collect::<Vec<_>>(), names);
        assert!(events[0].get("target").is_none());
        assert_eq!(
            (&events[3]["target"], &events[3]["data"]["previous"], &events[7]["data"]["role"]),
            (&json!(3), &json!(3), &json!("admin"))
        );
        assert_eq!((&events[4]["target"], &events[4]["data"]), (&json!(4), &json!({ "key": "👍" })));
        assert_eq!(events[0]["data"]["members"][0]["role"], "owner");
        assert_eq!((&events[15]["data"]["device"], &events[17]["data"]["by"]), (&json!("tv"), &json!("backend")));
        assert_eq!(events[16]["data"]["until"], "1970-01-01T00:00:00.001Z");
    }
}
