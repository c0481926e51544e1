//! The one table of errors. HTTP, WebSocket and gRPC each translate from it; no transport has an error of its own.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::id::Seq;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What programs compare, for example `conversation.not_found`.
    pub code: &'static str,
    /// HTTP status.
    pub http: u16,
    /// gRPC status, by its number.
    pub grpc: u8,
    /// WebSocket close code, for errors that end a connection: 4000–4499 reconnect, 4500–4999 do not.
    pub close: Option<u16>,
    /// Whether the same request may succeed later. Mutations are repeated under the same id.
    pub retryable: bool,
    /// A sentence for people, the same for every occurrence.
    pub title: &'static str,
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $http:literal, $grpc:ident, $close:expr, $retryable:literal, $title:literal;)*) => {
        /// What went wrong, as a program sees it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        pub enum Code { $($(#[$doc])* #[doc = $title] $name,)* }

        impl Code {
            /// Every code, in the table's order.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code's row.
            #[must_use]
            pub const fn row(self) -> Row {
                match self {
                    $(Code::$name => Row { code: $code, http: $http, grpc: grpc::$grpc, close: $close, retryable: $retryable, title: $title },)*
                }
            }
        }
    };
}

/// gRPC's status numbers. `DEADLINE_EXCEEDED` is not among them: it tells of the client's own deadline, whatever became of the
/// request.
mod grpc {
    pub(super) const UNKNOWN: u8 = 2;
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const NOT_FOUND: u8 = 5;
    pub(super) const ALREADY_EXISTS: u8 = 6;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const FAILED_PRECONDITION: u8 = 9;
    pub(super) const ABORTED: u8 = 10;
    pub(super) const OUT_OF_RANGE: u8 = 11;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

table! {
    Malformed = "request.malformed", 400, INVALID_ARGUMENT, None, false, "the request is not well formed";
    Invalid = "request.invalid", 422, INVALID_ARGUMENT, None, false, "a field of the request is not acceptable";
    TooLarge = "request.too_large", 413, OUT_OF_RANGE, Some(1009), false, "the request is larger than the server accepts";
    HeadTooLarge = "request.head_too_large", 431, OUT_OF_RANGE, None, false, "the request's line and headers are larger than the server accepts";
    UnknownOperation = "request.unknown_operation", 404, UNIMPLEMENTED, None, false, "there is no such operation";
    MethodNotAllowed = "request.method_not_allowed", 405, UNIMPLEMENTED, None, false, "the path exists, but not with this method";
    UpgradeRequired = "request.upgrade_required", 426, FAILED_PRECONDITION, None, false, "this path speaks WebSocket only";
    UnsupportedMedia = "request.unsupported_media_type", 415, INVALID_ARGUMENT, None, false, "the request's body is of a type that the server does not read";
    RequestTimeout = "request.timeout", 408, UNAVAILABLE, None, true, "the request did not arrive in time";
    AuthRequired = "auth.required", 401, UNAUTHENTICATED, Some(4501), false, "a token is required";
    AuthInvalid = "auth.invalid", 401, UNAUTHENTICATED, Some(4502), false, "the token is not acceptable";
    AuthExpired = "auth.expired", 401, UNAUTHENTICATED, Some(4401), false, "the token has expired";
    AuthLoggedOut = "auth.logged_out", 401, UNAUTHENTICATED, Some(4503), false, "the token was issued before a log-out";
    AuthBanned = "auth.banned", 403, PERMISSION_DENIED, Some(4504), false, "the user is banned";
    Forbidden = "forbidden", 403, PERMISSION_DENIED, None, false, "the caller's role does not allow this";
    RateLimited = "rate.limited", 429, RESOURCE_EXHAUSTED, Some(4429), true, "too many requests";
    ConnectionLimit = "connection.limit", 429, RESOURCE_EXHAUSTED, Some(4430), true, "the user has too many connections";
    AlreadyConnected = "connection.already_connected", 409, FAILED_PRECONDITION, None, false, "the connection is already authenticated";
    SlowConsumer = "connection.slow_consumer", 408, RESOURCE_EXHAUSTED, Some(4408), true, "the client did not read what it was sent";
    Silent = "connection.silent", 408, UNAVAILABLE, Some(4409), true, "the client was silent for too long";
    GoingAway = "connection.going_away", 503, UNAVAILABLE, Some(4410), true, "the server is shutting down; connect again";
    Protocol = "connection.protocol", 400, INVALID_ARGUMENT, Some(4510), false, "the client broke the protocol of the connection";
    ConversationNotFound = "conversation.not_found", 404, NOT_FOUND, None, false, "there is no such conversation for the caller";
    ConversationExists = "conversation.conflict", 409, ALREADY_EXISTS, None, false, "the same key was used for another creation";
    ConversationFixed = "conversation.fixed", 409, FAILED_PRECONDITION, None, false, "a direct conversation cannot be changed this way";
    ConversationUnavailable = "conversation.unavailable", 503, UNAVAILABLE, None, true, "the conversation is withdrawn until an operator has looked at it";
    PinnedLimit = "inbox.pinned_limit", 409, FAILED_PRECONDITION, None, false, "the user has pinned as many conversations as they may";
    MemberNotFound = "member.not_found", 404, NOT_FOUND, None, false, "the user is not a member";
    MemberLimit = "member.limit", 409, FAILED_PRECONDITION, None, false, "the conversation has as many members as it may";
    LastOwner = "member.last_owner", 409, FAILED_PRECONDITION, None, false, "the last owner must make another member owner first";
    MessageNotFound = "message.not_found", 404, NOT_FOUND, None, false, "there is no such message for the caller";
    MessageDeleted = "message.deleted", 409, FAILED_PRECONDITION, None, false, "the message has been deleted";
    MessageTooLarge = "message.too_large", 413, OUT_OF_RANGE, None, false, "the body is larger than a message may be";
    ReactionLimit = "reaction.limit", 409, FAILED_PRECONDITION, None, false, "the message has as many different reactions as it may";
    ReceiptsOff = "receipts.off", 409, FAILED_PRECONDITION, None, false, "the members of this conversation do not see each other's receipts";
    EncryptionRequired = "encryption_required", 422, INVALID_ARGUMENT, None, false, "the conversation is encrypted: nothing readable may be put into it";
    IdConflict = "message.id_conflict", 409, ALREADY_EXISTS, None, false, "the same id was used for another request";
    BadId = "message.bad_id", 422, INVALID_ARGUMENT, None, false, "the id must be a UUIDv7 made with the server's clock";
    IdExpired = "message.id_expired", 409, FAILED_PRECONDITION, None, false, "the id is too old to be sent again";
    HistoryPurged = "history.purged", 410, OUT_OF_RANGE, None, false, "the history asked for has been removed";
    Overloaded = "overloaded", 503, UNAVAILABLE, Some(4413), true, "the server is busy; try again later";
    Unavailable = "unavailable", 503, UNAVAILABLE, None, true, "the log cannot be reached at the moment";
    OutcomeUnknown = "outcome_unknown", 504, UNKNOWN, None, true, "the server cannot tell whether it was done; the same id may be sent again";
    Aborted = "aborted", 503, ABORTED, None, true, "the request was given up before it was done";
    Internal = "internal", 500, INTERNAL, None, false, "the server failed to handle the request";
}

/// Most bytes of what a client sent that an error repeats: enough to recognise it, too little to make us carry it.
pub const EXCERPT_BYTES_MAX: usize = 64;

/// What a client sent, short enough to be repeated in an error.
#[must_use]
pub fn excerpt(text: &str) -> Cow<'_, str> {
    const ELLIPSIS: &str = "…";
    if text.len() <= EXCERPT_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(EXCERPT_BYTES_MAX - ELLIPSIS.len());
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

/// One occurrence of an error. It serialises as the problem object (RFC 9457) that every transport shows.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Error {
    /// Its row in the table.
    pub code: Code,
    /// What is special about this occurrence.
    #[rkyv(with = rkyv::with::AsOwned)]
    pub detail: Cow<'static, str>,
    /// The offending field of the request.
    #[rkyv(with = rkyv::with::Map<rkyv::with::AsOwned>)]
    pub field: Option<Cow<'static, str>>,
    /// When to try again.
    pub retry_after_ms: Option<u64>,
    /// The seq at and below which there is nothing (any longer).
    pub floor: Option<Seq>,
}

impl Error {
    /// An error with nothing to add to the table's sentence.
    #[must_use]
    pub const fn new(code: Code) -> Self {
        Self { code, detail: Cow::Borrowed(""), field: None, retry_after_ms: None, floor: None }
    }

    /// An unacceptable field.
    #[must_use]
    pub fn invalid(field: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Invalid).with_detail(detail).at(field)
    }

    /// Says what is special about this occurrence.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Names the offending field.
    #[must_use]
    pub fn at(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub const fn after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Says above which seq there is something.
    #[must_use]
    pub const fn above(mut self, floor: Seq) -> Self {
        self.floor = Some(floor);
        self
    }

    /// The problem object, with the id under which the request stands in the logs.
    #[must_use]
    pub const fn problem<'a>(&'a self, request_id: &'a str) -> Problem<'a> {
        Problem { error: self, request_id }
    }
}

impl From<Code> for Error {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.code.row();
        write!(f, "{}: {}", row.code, if self.detail.is_empty() { row.title } else { &self.detail })
    }
}

impl std::error::Error for Error {}

/// The object that a client sees.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    error: &'a Error,
    request_id: &'a str,
}

impl Serialize for Problem<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = self.error.code.row();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", row.code)?;
        map.serialize_entry("status", &row.http)?;
        map.serialize_entry("title", row.title)?;
        if !self.error.detail.is_empty() {
            map.serialize_entry("detail", &self.error.detail)?;
        }
        if let Some(field) = &self.error.field {
            map.serialize_entry("field", field)?;
        }
        map.serialize_entry("retryable", &row.retryable)?;
        if let Some(ms) = self.error.retry_after_ms {
            map.serialize_entry("retry_after_ms", &ms)?;
        }
        if let Some(floor) = self.error.floor {
            map.serialize_entry("floor", &floor)?;
        }
        if !self.request_id.is_empty() {
            map.serialize_entry("request_id", self.request_id)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_close_codes_tell_whether_to_reconnect() {
        let mut codes = HashSet::new();
        let mut closes = HashSet::new();
        for code in Code::ALL {
            let row = code.row();
            assert!(codes.insert(row.code), "{} stands twice", row.code);
            assert!((400..600).contains(&row.http), "{}", row.code);
            if let Some(close) = row.close {
                assert!(closes.insert(close), "close code {close} stands twice");
                if close >= 4000 && row.retryable {
                    assert!(
                        (4000..4500).contains(&close),
                        "{} is retryable, but its close code says otherwise",
                        row.code
                    );
                }
            }
        }
    }

    #[test]
    fn a_problem_has_one_shape() {
        let error = Error::invalid("body.text", "expected a string").after_ms(5).above(7);
        let json = serde_json::to_value(error.problem("r1")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"code":"request.invalid","status":422,"title":"a field of the request is not acceptable",
                "detail":"expected a string","field":"body.text","retryable":false,"retry_after_ms":5,"floor":7,"request_id":"r1"})
        );
    }

    #[test]
    fn an_excerpt_is_short_and_whole_characters() {
        assert_eq!(excerpt("short"), "short");
        for text in ["x".repeat(65), "é".repeat(64), "语".repeat(1000)] {
            let short = excerpt(&text);
            assert!(short.len() <= EXCERPT_BYTES_MAX && short.len() > 56 && short.ends_with('…'), "{short}");
        }
    }
}
