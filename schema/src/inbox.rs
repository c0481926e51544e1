//! The inbox in words: how a user's conversations are ordered, marked and counted, and up to where a device knows them.

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use std::{fmt, str::FromStr};

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    error::Error,
    event::ConversationKind,
    frame::Object,
    id::{Change, ConversationId, Generation, Malformed, Millis, Seq, UserId},
    time::Timestamp,
    wire::Head,
};

/// The part of the list in which a conversation stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[repr(u8)]
pub enum Section {
    /// Put away: listed only when asked for.
    Archived = 0,
    /// Neither put away nor pinned.
    Usual = 1,
    /// Ahead of all others.
    Pinned = 2,
}

/// Where a conversation stands in its user's list: pinned ones first, then by last activity, the latest first. It is
/// also the cursor of a page of the list: what lies below a place does not depend on what moves above it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Place {
    /// Which part.
    pub section: Section,
    /// When something was last said there, or the user joined.
    pub at: Millis,
    /// Which conversation; of two active in the same millisecond one must come first.
    pub conversation: ConversationId,
}

/// Up to where a device knows its user's inbox: opaque to clients, equal only if nothing has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Cursor {
    /// Identity of the history.
    pub generation: Generation,
    /// The last change that the device has heard of.
    pub change: Change,
}

/// Which conversations a list shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Filter {
    /// Those put away, instead of the others.
    pub archived: bool,
    /// Only those with something unread, or marked as unread.
    pub unread: bool,
    /// Only those that are muted, or only those that are not.
    pub muted: Option<bool>,
}

/// What a user has set for one conversation: a fact of their own log, whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Preference {
    /// Ahead of all others.
    pub pinned: bool,
    /// Put away when it had so many messages; a later one brings it back, unless it comes while the conversation is muted.
    pub archived: Option<u64>,
    /// Muted until then: 0 for not at all, [`Preference::FOR_EVER`] for ever.
    pub muted_until: Millis,
    /// Marked as unread, whatever was read.
    pub marked_unread: bool,
}

/// A change of a preference; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Marking {
    /// Pin, or no longer.
    pub pinned: Option<bool>,
    /// Put away, or take back.
    pub archived: Option<bool>,
    /// Mute until then; 0 ends it.
    pub muted_until: Option<Millis>,
    /// Mark as unread, or no longer.
    pub marked_unread: Option<bool>,
}

/// A preference as clients see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Flags {
    /// Ahead of all others.
    pub pinned: bool,
    /// Put away.
    pub archived: bool,
    /// Muted now.
    pub muted: bool,
    /// Until when, if it is for a time; 0 else.
    pub muted_until: Millis,
    /// Marked as unread.
    pub marked_unread: bool,
}

/// What a member has not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Counts {
    /// Messages of others that were not deleted.
    pub unread: u64,
    /// There are at least so many: too much was deleted too long ago to be told apart.
    pub unread_more: bool,
    /// Those of them that mention the member.
    pub mentions: u64,
    /// At least so many.
    pub mentions_more: bool,
}

/// The last message of a conversation, cut to what a list shows.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Last {
    /// Its position.
    pub seq: Seq,
    /// Its ordinal.
    pub n: u64,
    /// Who sent it.
    pub sender: UserId,
    /// When.
    pub at: Millis,
    /// The beginning of its body's `text`, if it has one and it can be read.
    pub text: Option<Box<str>>,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// What a conversation's owner says of it to one member.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Standing {
    /// Empty for none.
    pub title: String,
    /// The other member of a direct conversation.
    pub with: Option<UserId>,
    /// Where it stands.
    pub head: Head,
    /// When the last message was stamped; the creation if there is none.
    pub message_at: Millis,
    /// Messages that the member has read.
    pub read_n: u64,
    /// What they have not.
    pub counts: Counts,
    /// The last message, if the member may see it.
    pub last: Option<Last>,
    /// Whether its heads do not come to the members by themselves.
    pub large: bool,
}

/// One conversation in a user's list.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Row {
    /// Which.
    pub conversation: ConversationId,
    /// What it is.
    pub kind: ConversationKind,
    /// The last change of this row.
    pub change: Change,
    /// When something was last said there, or the user joined.
    pub active_at: Millis,
    /// What the user has set.
    pub flags: Flags,
    /// What its owner says; `None` when nobody can tell at the moment.
    pub standing: Option<Standing>,
}

/// What has changed of one conversation since a cursor.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Item {
    /// It stands like this now.
    Row(Row),
    /// The user is no member any more.
    Left {
        /// Of which.
        conversation: ConversationId,
        /// The last change.
        change: Change,
    },
}

/// Why a cursor is of no use: the device must list the inbox anew and go on from the new cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Reset {
    /// There was no cursor.
    New,
    /// It is of another history.
    Generation,
    /// What changed before the oldest change that is remembered can no longer be told.
    TooOld,
    /// It is ahead of everything that has happened.
    Ahead,
}

/// How far behind its user's inbox a device is that knows it up to a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Lag {
    /// Nothing has changed since.
    Current,
    /// Something has, or may have: `inbox.sync` tells what.
    Behind,
    /// The cursor is of no use.
    Reset(Reset),
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}.{}", self.section as u8, self.at, self.conversation.0.as_simple())
    }
}

impl FromStr for Place {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parse = || {
            let mut parts = text.split('.');
            let (section, at, id) = (parts.next()?, parts.next()?, parts.next()?);
            let section = match section {
                "0" => Section::Archived,
                "1" => Section::Usual,
                "2" => Section::Pinned,
                _ => return None,
            };
            let whole = parts.next().is_none() && id.len() == 32;
            let conversation = ConversationId(Uuid::try_parse(id).ok().filter(|_| whole)?);
            Some(Self { section, at: hex(at)?, conversation })
        };
        parse().ok_or(Malformed("expected the `next_cursor` of an earlier page"))
    }
}

/// Only what `Display` writes: a sign or a capital was never ours.
fn hex(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

// === impl Cursor ===

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.change)
    }
}

impl FromStr for Cursor {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parse = || {
            let (generation, change) = text.split_once('.')?;
            Some(Self { generation: Generation(hex(generation)?), change: change.parse().ok()? })
        };
        parse().ok_or(Malformed("expected a cursor"))
    }
}

// === impl Preference ===

impl Preference {
    /// The end of what is muted without one.
    pub const FOR_EVER: Millis = Millis::MAX;

    /// Whether it says nothing.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the conversation is put away: a message that came after it was, and not while it was muted, has brought
    /// it back. `n` counts its messages, the last one stamped at `message_at`.
    ///
    /// This is all there is to coming back: it needs no event of its own and no clock, and whoever looks at a later
    /// time finds the same.
    #[must_use]
    pub fn is_archived(&self, n: u64, message_at: Millis) -> bool {
        self.archived.is_some_and(|at| n <= at || message_at < self.muted_until)
    }

    /// Whether it is muted at `now`.
    #[must_use]
    pub const fn is_muted(&self, now: Millis) -> bool {
        now < self.muted_until
    }

    /// As clients see it.
    #[must_use]
    pub fn flags(&self, n: u64, message_at: Millis, now: Millis) -> Flags {
        let muted = self.is_muted(now);
        let for_a_time = muted && self.muted_until != Self::FOR_EVER;
        Flags {
            pinned: self.pinned,
            archived: self.is_archived(n, message_at),
            muted,
            muted_until: if for_a_time { self.muted_until } else { 0 },
            marked_unread: self.marked_unread,
        }
    }
}

impl Flags {
    /// Adds the flags' fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        object.flag("pinned", self.pinned).flag("archived", self.archived).flag("muted", self.muted);
        if self.muted_until != 0 {
            object.display("muted_until", Timestamp(self.muted_until));
        }
        object.flag("marked_unread", self.marked_unread);
    }
}

// === impl Marking ===

/// What clients write of a marking.
#[derive(Deserialize)]
pub(crate) struct MarkingArgs {
    pub(crate) conversation: ConversationId,
    pinned: Option<bool>,
    archived: Option<bool>,
    muted: Option<bool>,
    muted_until: Option<Timestamp>,
    marked_unread: Option<bool>,
    pub(crate) idempotency_key: Option<Uuid>,
}

impl MarkingArgs {
    pub(crate) fn marking(&self) -> Result<Marking, Error> {
        let muted_until = match (self.muted, self.muted_until) {
            (Some(false), Some(_)) => {
                return Err(Error::invalid("muted_until", "what is not muted has no time until when"));
            }
            (_, Some(until)) => Some(until.0),
            (Some(true), None) => Some(Preference::FOR_EVER),
            (Some(false), None) => Some(0),
            (None, None) => None,
        };
        if self.pinned == Some(true) && self.archived == Some(true) {
            return Err(Error::invalid("archived", "what is put away is not pinned"));
        }
        let (pinned, archived, marked_unread) = (self.pinned, self.archived, self.marked_unread);
        let marking = Marking { pinned, archived, muted_until, marked_unread };
        if marking == Marking::default() {
            let detail = "nothing to change: give `pinned`, `archived`, `muted`, `muted_until` or `marked_unread`";
            return Err(Error::invalid("pinned", detail));
        }
        Ok(marking)
    }
}

// === impl Counts, Last, Row, Item, Reset ===

impl Counts {
    /// Adds the counts' fields to an object.
    pub fn write_json(&self, object: &mut Object<'_>) {
        object.number("unread", self.unread);
        if self.unread_more {
            object.flag("unread_more", true);
        }
        object.number("mentions", self.mentions);
        if self.mentions_more {
            object.flag("mentions_more", true);
        }
    }
}

impl Last {
    fn write_json(&self, object: &mut Object<'_>) {
        object.number("seq", self.seq).number("n", self.n).text("sender", self.sender.as_str());
        object.display("at", Timestamp(self.at));
        match &self.text {
            Some(text) => object.text("text", text),
            None => object.raw("text", b"null"),
        };
        if self.deleted {
            object.flag("deleted", true);
        }
    }
}

impl Row {
    /// Appends the row's JSON object.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut object = Object::begin(out);
        object.display("id", self.conversation).text("kind", self.kind.name());
        match &self.standing {
            None => {
                object.flag("unavailable", true);
            }
            Some(standing) => {
                match &standing.with {
                    Some(with) => object.text("with", with.as_str()),
                    None => object.text("title", &standing.title),
                };
                if standing.large {
                    object.flag("large", true);
                }
                object.number("head", standing.head.seq).number("n", standing.head.n);
                object.number("read_n", standing.read_n);
                standing.counts.write_json(&mut object);
                if let Some(last) = &standing.last {
                    object.object("last", |out| last.write_json(out));
                }
            }
        }
        object.display("active_at", Timestamp(self.active_at));
        self.flags.write_json(&mut object);
        object.display("change", self.change);
        object.end();
    }
}

impl Item {
    /// Appends the item's JSON object.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Row(row) => row.write_json(out),
            Self::Left { conversation, change } => {
                let mut object = Object::begin(out);
                object.display("id", conversation).flag("left", true).display("change", change);
                object.end();
            }
        }
    }

    /// The change that it tells.
    #[must_use]
    pub const fn change(&self) -> Change {
        match self {
            Self::Row(row) => row.change,
            Self::Left { change, .. } => *change,
        }
    }
}

impl Lag {
    /// The name that clients see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Reset(_) => "reset",
        }
    }
}

impl Default for Lag {
    fn default() -> Self {
        Self::Reset(Reset::New)
    }
}

impl Reset {
    /// The name that clients see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Generation => "generation",
            Self::TooOld => "too_old",
            Self::Ahead => "ahead",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(n: u128) -> ConversationId {
        ConversationId(Uuid::from_u128(n))
    }

    #[test]
    fn places_sort_like_the_list_and_come_back() {
        let place = |section, at, id| Place { section, at, conversation: conversation(id) };
        let list = [
            place(Section::Pinned, 1, 1),
            place(Section::Usual, 9, 3),
            place(Section::Usual, 9, 2),
            place(Section::Usual, 8, 7),
            place(Section::Archived, 99, 1),
        ];
        assert!(list.is_sorted_by(|above, below| above > below));
        for place in list {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        let id = "00000000000000000000000000000001";
        assert_eq!(list[0].to_string(), format!("2.1.{id}"));
        for text in ["", "nonsense", "3.1.{}", "2.+1.{}", "2.A.{}", "2.1.{}.", "2..{}", "2.1.1", ".1.{}"] {
            assert!(text.replace("{}", id).parse::<Place>().is_err(), "{text}");
        }
        assert!("2.1.00000000-0000-0000-0000-000000000001".parse::<Place>().is_err());
    }

    #[test]
    fn cursors_come_back() {
        let cursor = Cursor { generation: Generation(0xab), change: Change { epoch: 5, count: 255 } };
        assert_eq!(cursor.to_string(), "ab.5.ff");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "5.ff", "ab.5", "ab.5.ff.1", "+ab.5.ff", "AB.5.ff", "ab.5.-1", " ab.5.ff"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_message_brings_back_what_was_put_away_unless_it_is_muted() {
        let away = Preference { archived: Some(7), ..Preference::default() };
        assert!(away.is_archived(7, 50) && !away.is_archived(8, 60));
        let muted = Preference { muted_until: 100, ..away };
        assert!(muted.is_archived(8, 99), "what came while it was muted changes nothing, whenever one looks");
        assert!(!muted.is_archived(9, 100), "but a message after it does");
        let for_ever = Preference { muted_until: Preference::FOR_EVER, ..away };
        assert!(for_ever.is_archived(1_000, u64::MAX - 1));
        assert!(!Preference::default().is_archived(0, 0));
    }

    #[test]
    fn flags_are_those_of_the_moment() {
        let preference = Preference { muted_until: 100, pinned: true, ..Preference::default() };
        let flags = preference.flags(1, 1, 99);
        assert_eq!((flags.pinned, flags.muted, flags.muted_until), (true, true, 100));
        assert_eq!(preference.flags(1, 1, 100).muted_until, 0);
        let for_ever = Preference { muted_until: Preference::FOR_EVER, ..preference }.flags(1, 1, 100);
        assert_eq!((for_ever.muted, for_ever.muted_until), (true, 0));
    }

    fn marking(json: &str) -> Result<Marking, Error> {
        serde_json::from_str::<MarkingArgs>(&format!("{{\"conversation\":\"{}\",{json}}}", conversation(1)))
            .unwrap()
            .marking()
    }

    #[test]
    fn a_marking_says_one_thing() {
        assert_eq!(marking(r#""muted":true"#).unwrap().muted_until, Some(Preference::FOR_EVER));
        assert_eq!(marking(r#""muted":false"#).unwrap().muted_until, Some(0));
        let until = marking(r#""muted_until":"1970-01-01T00:00:01.5Z""#).unwrap();
        assert_eq!(until, Marking { muted_until: Some(1_500), ..Marking::default() });
        assert_eq!(marking(r#""pinned":false"#).unwrap().pinned, Some(false));
        for (json, field) in [
            (r#""pinned":null"#, "pinned"),
            (r#""pinned":true,"archived":true"#, "archived"),
            (r#""muted":false,"muted_until":"2026-01-01T00:00:00Z""#, "muted_until"),
        ] {
            assert_eq!(marking(json).unwrap_err().field.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn a_row_shows_what_a_first_screen_needs() {
        let shown = |row: &Row| {
            let mut out = Vec::new();
            row.write_json(&mut out);
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        let user = |name| UserId::new(name).unwrap();
        let last = Last { seq: 9, n: 4, sender: user("bob"), at: 0, text: Some("hi \"you\"".into()), deleted: false };
        let standing = Standing {
            title: String::new(),
            with: Some(user("bob")),
            head: Head { seq: 9, n: 4 },
            message_at: 0,
            read_n: 2,
            counts: Counts { unread: 1, unread_more: true, mentions: 1, mentions_more: false },
            last: Some(last),
            large: false,
        };
        let row = Row {
            conversation: conversation(1),
            kind: ConversationKind::Direct,
            change: Change { epoch: 5, count: 255 },
            active_at: 0,
            flags: Flags { pinned: true, muted: true, muted_until: 1, ..Flags::default() },
            standing: Some(standing),
        };
        assert_eq!(
            shown(&row),
            serde_json::json!({"id": conversation(1), "kind": "direct", "with": "bob", "head": 9, "n": 4, "read_n": 2,
                "unread": 1, "unread_more": true, "mentions": 1,
                "last": {"seq": 9, "n": 4, "sender": "bob", "at": "1970-01-01T00:00:00.000Z", "text": "hi \"you\""},
                "active_at": "1970-01-01T00:00:00.000Z", "pinned": true, "archived": false, "muted": true,
                "muted_until": "1970-01-01T00:00:00.001Z", "marked_unread": false, "change": "5.ff"})
        );
        let unknown = shown(&Row { standing: None, kind: ConversationKind::Group, ..row });
        assert_eq!((&unknown["unavailable"], unknown.get("unread")), (&serde_json::json!(true), None));
        let mut out = Vec::new();
        Item::Left { conversation: conversation(2), change: Change { epoch: 5, count: 1 } }.write_json(&mut out);
        let left: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(left, serde_json::json!({"id": conversation(2), "left": true, "change": "5.1"}));
    }
}
