//! Fields that look otherwise in JSON than in protobuf: times are text, words of a closed set are lower case, bodies
//! stand as they are.

use prost_types::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

use super::v1;
use crate::time;

/// A word of a closed set: an enum of the proto file.
pub trait Word: Sized {
    /// What its constants' names begin with.
    const PREFIX: &'static str;
    /// The constant's name.
    fn constant(number: i32) -> Option<&'static str>;
    /// The number of a constant.
    fn number(constant: &str) -> Option<i32>;
}

macro_rules! words {
    ($($name:ident $prefix:literal),* $(,)?) => {
        $(impl Word for v1::$name {
            const PREFIX: &'static str = $prefix;
            fn constant(number: i32) -> Option<&'static str> {
                Self::try_from(number).ok().map(|word| word.as_str_name())
            }
            fn number(constant: &str) -> Option<i32> {
                Self::from_str_name(constant).map(|word| word as i32)
            }
        })*
    };
}

words! {
    ConversationKind "CONVERSATION_KIND_",
    Role "ROLE_",
    HistoryAccess "HISTORY_ACCESS_",
    Encryption "ENCRYPTION_",
    PresenceStatus "PRESENCE_STATUS_",
    InboxLag "INBOX_LAG_",
    InboxReset "INBOX_RESET_",
    PositionRefusal "POSITION_REFUSAL_",
}

/// Whether a word was not said.
#[allow(clippy::trivially_copy_pass_by_ref)] // Serde asks like this.
pub(super) const fn is_unspecified(number: &i32) -> bool {
    *number == 0
}

/// A word as JSON.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn word<W: Word, S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    // A number that nobody knows is no word: what reads it says which ones there are.
    let name = W::constant(*number).and_then(|constant| constant.strip_prefix(W::PREFIX)).unwrap_or("?");
    serializer.serialize_str(&name.to_ascii_lowercase())
}

/// A word that may be missing, as JSON.
pub(super) fn optional_word<W: Word, S: Serializer>(number: &Option<i32>, serializer: S) -> Result<S::Ok, S::Error> {
    word::<W, S>(&number.unwrap_or_default(), serializer)
}

/// A word from JSON; one that the proto file does not know is `…_UNSPECIFIED`.
pub(super) fn from_word<'de, W: Word, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(W::number(&format!("{}{}", W::PREFIX, name.to_ascii_uppercase())).unwrap_or_default())
}

/// A word from JSON that may be missing.
pub(super) fn from_optional_word<'de, W: Word, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    from_word::<W, D>(deserializer).map(Some)
}

/// A moment as JSON.
pub(super) fn time<S: Serializer>(moment: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment.as_ref().map(|moment| millis(moment).map(time::Timestamp).filter(|moment| moment.is_writable())) {
        Some(Some(moment)) => moment.serialize(serializer),
        // What reads it says what is expected.
        Some(None) => serializer.serialize_str("?"),
        None => serializer.serialize_none(),
    }
}

/// A moment from JSON.
pub(super) fn from_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let moment: Option<time::Timestamp> = Deserialize::deserialize(deserializer)?;
    Ok(moment.map(|time::Timestamp(ms)| moment_at(ms)))
}

/// A moment in protobuf.
#[must_use]
pub fn moment_at(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

fn millis(moment: &Timestamp) -> Option<u64> {
    let nanos = u64::try_from(moment.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    u64::try_from(moment.seconds).ok()?.checked_mul(1000)?.checked_add(nanos / 1_000_000)
}

/// A body as it is.
pub(super) fn body<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    raw("body", text, serializer)
}

/// A body that may be missing.
pub(super) fn optional_body<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    raw("body", text.as_deref().unwrap_or("null"), serializer)
}

/// An application's data as they are.
pub(super) fn data<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    raw("data", text, serializer)
}

/// An application's data that may be missing.
pub(super) fn optional_data<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    raw("data", text.as_deref().unwrap_or("null"), serializer)
}

/// A piece of JSON, as it is. What is none is refused: it could otherwise say more than its field. The error begins with
/// the field's name.
fn raw<S: Serializer>(field: &str, text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| ser::Error::custom(format!("{field}:{error}")))?;
    raw.serialize(serializer)
}

/// A piece of JSON, from JSON.
pub(super) fn from_raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    from_optional_raw(deserializer)?.ok_or_else(|| de::Error::custom("expected a JSON object"))
}

/// A piece of JSON that may be null, from JSON.
pub(super) fn from_optional_raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let raw: Option<Box<RawValue>> = Deserialize::deserialize(deserializer)?;
    Ok(raw.map(|raw| String::from(Box::<str>::from(raw))))
}
