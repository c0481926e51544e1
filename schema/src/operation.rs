//! The table of operations. Each operation stands here once; the transports are walked from this table: HTTP's
//! routes are made from it, WebSocket frames are looked up in it, and a test compares the answers of all transports.

use serde::{Deserialize, Serialize};

use crate::error::Code;

/// An operation of the table, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Each is described by its row's summary.
pub enum Op {
    ConversationCreate,
    ConversationList,
    ConversationGet,
    ConversationUpdate,
    ConversationJoin,
    ConversationLeave,
    ConversationDelete,
    MemberList,
    MemberAdd,
    MemberRole,
    MemberRemove,
    MessageSend,
    MessageList,
    MessageGet,
    MessageEdit,
    MessageDelete,
    MessageHistory,
    ReactionAdd,
    ReactionRemove,
    ReactionList,
    EventList,
    ConversationOpen,
    ConversationClose,
    SessionList,
    SessionLogout,
    SessionLogoutAll,
    AdminUserGet,
    AdminUserBan,
    AdminUserUnban,
    AdminUserLogout,
    InboxSync,
    InboxUpdate,
    PresenceGet,
    PresenceUpdate,
    PresenceWatch,
    PresenceAway,
    TypingStart,
    TypingStop,
    ConversationRead,
    ConversationDelivered,
    ReceiptPut,
    ReceiptList,
    ReceiptPreference,
    ReceiptPrefer,
}

/// One row: everything that is not code about an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Which.
    pub op: Op,
    /// Its dotted name: the key of a WebSocket frame, the label of metrics.
    pub name: &'static str,
    /// A sentence for documents.
    pub summary: &'static str,
    /// The HTTP form, unless the operation needs a connection.
    pub http: Option<Http>,
    /// Whether the WebSocket offers it: everything that users may.
    pub websocket: bool,
    /// Which entity answers.
    pub owner: Owner,
    /// Who may.
    pub right: Right,
    /// How a repetition is recognised.
    pub identity: Identity,
    /// The errors of its own, beside those that every operation can meet ([`COMMON_ERRORS`]).
    pub errors: &'static [Code],
}

/// How an operation looks over HTTP.
#[derive(Clone, Copy, Debug)]
pub struct Http {
    /// The method.
    pub method: Method,
    /// The path, with its fields in braces; fields have the names of the command's fields.
    pub path: &'static str,
    /// Fields taken from the query string.
    pub query: &'static [&'static str],
    /// The status of success.
    pub status: u16,
}

/// HTTP methods in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// Which entity answers an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The conversation that the command names.
    Conversation,
    /// The caller's user entity, or that of the user whom a server-side caller names.
    User,
}

/// Who may perform an operation. Who may not even see a conversation is answered `conversation.not_found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Whoever is authenticated.
    Anyone,
    /// A member.
    Member,
    /// The author of the message.
    Author,
    /// The author of the message, or an admin or owner.
    AuthorOrAdmin,
    /// An admin or owner.
    Admin,
    /// An owner.
    Owner,
    /// A server-side caller whose API key has this scope. For others the operation does not exist.
    Server(Scope),
}

/// What an API key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// See what stands against a user, and where they are connected.
    #[serde(rename = "users.read")]
    UsersRead,
    /// Ban users and log them out.
    #[serde(rename = "users.write")]
    UsersWrite,
    /// Read as any user.
    #[serde(rename = "as_user.read")]
    AsUserRead,
    /// Do what any user may do.
    #[serde(rename = "as_user.write")]
    AsUserWrite,
}

/// How a repetition of an operation is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It changes nothing.
    ReadOnly,
    /// `client_msg_id`, required: a UUIDv7 made before the first attempt.
    ClientMsgId,
    /// `idempotency_key` (HTTP: the header `Idempotency-Key`), optional: a UUIDv7.
    Key,
    /// `idempotency_key`, optional, any text: the new entity's id is derived from it.
    CreationKey,
    /// It concerns this connection only.
    Connection,
    /// What it says does not last; said again, it counts again.
    Ephemeral,
    /// It raises numbers that only rise: said again, it changes nothing.
    Watermark,
}

/// Errors that any operation can meet.
pub const COMMON_ERRORS: &[Code] = &[
    Code::Malformed,
    Code::Invalid,
    Code::TooLarge,
    Code::AuthRequired,
    Code::AuthInvalid,
    Code::AuthExpired,
    Code::AuthLoggedOut,
    Code::AuthBanned,
    Code::RateLimited,
    Code::Overloaded,
    Code::Unavailable,
    Code::ConversationUnavailable,
    Code::OutcomeUnknown,
    Code::Aborted,
    Code::GoingAway,
    Code::Internal,
];

/// Errors that only HTTP can meet: of its requests' form, before anybody knows which operation is meant.
pub const HTTP_ERRORS: &[Code] =
    &[Code::UnknownOperation, Code::MethodNotAllowed, Code::UnsupportedMedia, Code::RequestTimeout, Code::HeadTooLarge];

const fn get(path: &'static str, query: &'static [&'static str]) -> Option<Http> {
    Some(Http { method: Method::Get, path, query, status: 200 })
}

const fn http(method: Method, path: &'static str, status: u16) -> Option<Http> {
    Some(Http { method, path, query: &[], status })
}

const CONVERSATION: &str = "/v1/conversations/{conversation}";
const MEMBERS: &str = "/v1/conversations/{conversation}/members";
const MEMBER: &str = "/v1/conversations/{conversation}/members/{user}";
const MESSAGES: &str = "/v1/conversations/{conversation}/messages";
const ADMIN_USER_BAN: &str = "/v1/admin/users/{user}/ban";
const MESSAGE: &str = "/v1/conversations/{conversation}/messages/{seq}";
const PRESENCE: &str = "/v1/presence/{user}";
const TYPING: &str = "/v1/conversations/{conversation}/typing";
const REACTION: &str = "/v1/conversations/{conversation}/messages/{seq}/reactions/{key}";

macro_rules! row {
    ($op:ident, $name:literal, $summary:literal, $http:expr, $owner:ident, $right:ident, $identity:ident, [$($error:ident),*]) => {
        Operation {
            op: Op::$op, name: $name, summary: $summary, http: $http, websocket: true, owner: Owner::$owner,
            right: Right::$right, identity: Identity::$identity, errors: &[$(Code::$error),*],
        }
    };
}

/// A row that only server-side callers know of.
macro_rules! admin {
    ($op:ident, $name:literal, $summary:literal, $http:expr, $scope:ident, $identity:ident, [$($error:ident),*]) => {
        Operation {
            op: Op::$op, name: $name, summary: $summary, http: $http, websocket: false, owner: Owner::User,
            right: Right::Server(Scope::$scope), identity: Identity::$identity, errors: &[$(Code::$error),*],
        }
    };
}

/// The table.
pub const OPERATIONS: &[Operation] = &[
    row!(
        ConversationCreate,
        "conversation.create",
        "Create a direct conversation, a group or a channel; creating a direct one again returns it.",
        http(Method::Post, "/v1/conversations", 201),
        Conversation,
        Anyone,
        CreationKey,
        [ConversationExists, ConversationNotFound, MemberLimit]
    ),
    row!(
        ConversationList,
        "conversation.list",
        "The caller's conversations: pinned ones first, then the last active.",
        get("/v1/conversations", &["cursor", "limit", "archived", "unread", "muted"]),
        User,
        Anyone,
        ReadOnly,
        []
    ),
    row!(
        ConversationGet,
        "conversation.get",
        "One conversation's settings, head and the caller's role.",
        get(CONVERSATION, &[]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound]
    ),
    row!(
        ConversationUpdate,
        "conversation.update",
        "Change the title, data, history access or receipts of a group, who may join a channel, or (owners) how long messages are kept.",
        http(Method::Patch, CONVERSATION, 200),
        Conversation,
        Admin,
        Key,
        [ConversationNotFound, Forbidden, ConversationFixed, BadId, IdExpired, IdConflict]
    ),
    row!(
        ConversationJoin,
        "conversation.join",
        "Become a member of an open channel.",
        http(Method::Post, "/v1/conversations/{conversation}/join", 200),
        Conversation,
        Anyone,
        Key,
        [ConversationNotFound, MemberLimit, BadId, IdExpired, IdConflict]
    ),
    row!(
        ConversationLeave,
        "conversation.leave",
        "Leave a group or a channel.",
        http(Method::Post, "/v1/conversations/{conversation}/leave", 200),
        Conversation,
        Member,
        Key,
        [ConversationNotFound, ConversationFixed, LastOwner, BadId, IdExpired, IdConflict]
    ),
    row!(
        ConversationDelete,
        "conversation.delete",
        "Delete a group or a channel for everybody.",
        http(Method::Delete, CONVERSATION, 200),
        Conversation,
        Owner,
        Key,
        [ConversationNotFound, Forbidden, ConversationFixed, BadId, IdExpired, IdConflict]
    ),
    row!(
        MemberList,
        "member.list",
        "The members of a conversation.",
        get(MEMBERS, &["cursor", "limit"]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound]
    ),
    row!(
        MemberAdd,
        "member.add",
        "Add a user to a group; adding a member again changes nothing.",
        http(Method::Put, MEMBER, 200),
        Conversation,
        Admin,
        Key,
        [ConversationNotFound, Forbidden, ConversationFixed, MemberLimit, BadId, IdExpired, IdConflict]
    ),
    row!(
        MemberRole,
        "member.role",
        "Change a member's role.",
        http(Method::Patch, MEMBER, 200),
        Conversation,
        Admin,
        Key,
        [ConversationNotFound, Forbidden, ConversationFixed, MemberNotFound, LastOwner, BadId, IdExpired, IdConflict]
    ),
    row!(
        MemberRemove,
        "member.remove",
        "Remove a member from a group; removing oneself is leaving.",
        http(Method::Delete, MEMBER, 200),
        Conversation,
        Admin,
        Key,
        [ConversationNotFound, Forbidden, ConversationFixed, MemberNotFound, LastOwner, BadId, IdExpired, IdConflict]
    ),
    row!(
        MessageSend,
        "message.send",
        "Send a message. The same client_msg_id never becomes two messages.",
        http(Method::Post, MESSAGES, 201),
        Conversation,
        Member,
        ClientMsgId,
        [ConversationNotFound, Forbidden, MessageTooLarge, BadId, IdExpired, IdConflict]
    ),
    row!(
        MessageList,
        "message.list",
        "A page of messages before, after or around a seq; the newest without either.",
        get(MESSAGES, &["before", "after", "around", "limit"]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, HistoryPurged]
    ),
    row!(
        MessageGet,
        "message.get",
        "One message as it stands now.",
        get(MESSAGE, &[]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, MessageNotFound]
    ),
    row!(
        MessageEdit,
        "message.edit",
        "Give one's own message another body.",
        http(Method::Patch, MESSAGE, 200),
        Conversation,
        Author,
        Key,
        [
            ConversationNotFound,
            MessageNotFound,
            MessageDeleted,
            Forbidden,
            MessageTooLarge,
            BadId,
            IdExpired,
            IdConflict
        ]
    ),
    row!(
        MessageDelete,
        "message.delete",
        "Delete a message for everybody; its seq stays as a tombstone.",
        http(Method::Delete, MESSAGE, 200),
        Conversation,
        AuthorOrAdmin,
        Key,
        [ConversationNotFound, MessageNotFound, Forbidden, BadId, IdExpired, IdConflict]
    ),
    row!(
        MessageHistory,
        "message.history",
        "Every body that a message has had, oldest first.",
        get("/v1/conversations/{conversation}/messages/{seq}/history", &[]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, MessageNotFound]
    ),
    row!(
        ReactionAdd,
        "reaction.add",
        "React to a message with an emoji or a short name; doing it again changes nothing.",
        http(Method::Put, REACTION, 200),
        Conversation,
        Member,
        Key,
        [
            ConversationNotFound,
            MessageNotFound,
            MessageDeleted,
            ReactionLimit,
            EncryptionRequired,
            BadId,
            IdExpired,
            IdConflict
        ]
    ),
    row!(
        ReactionRemove,
        "reaction.remove",
        "Take one's own reaction back; what is not there is no error.",
        http(Method::Delete, REACTION, 200),
        Conversation,
        Member,
        Key,
        [ConversationNotFound, MessageNotFound, EncryptionRequired, BadId, IdExpired, IdConflict]
    ),
    row!(
        ReactionList,
        "reaction.list",
        "Who reacted to a message with this key.",
        get(REACTION, &["cursor", "limit"]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, MessageNotFound]
    ),
    row!(
        EventList,
        "event.list",
        "The raw log after a seq: what a client that fell behind fetches.",
        get("/v1/conversations/{conversation}/events", &["after", "limit"]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, HistoryPurged]
    ),
    row!(
        ConversationOpen,
        "conversation.open",
        "Tell that a conversation is on screen; needed for live events of large ones.",
        None,
        Conversation,
        Member,
        Connection,
        [ConversationNotFound]
    ),
    row!(
        ConversationClose,
        "conversation.close",
        "Tell that a conversation is no longer on screen.",
        None,
        Conversation,
        Anyone,
        Connection,
        []
    ),
    row!(
        SessionList,
        "session.list",
        "The caller's connections and their devices.",
        get("/v1/sessions", &[]),
        User,
        Anyone,
        ReadOnly,
        []
    ),
    row!(
        SessionLogout,
        "session.logout",
        "Log out one device, the caller's own unless one is named.",
        http(Method::Post, "/v1/sessions/logout", 200),
        User,
        Anyone,
        Key,
        [BadId, IdExpired, IdConflict]
    ),
    row!(
        SessionLogoutAll,
        "session.logout_all",
        "Log out all of the caller's devices.",
        http(Method::Post, "/v1/sessions/logout_all", 200),
        User,
        Anyone,
        Key,
        [BadId, IdExpired, IdConflict]
    ),
    admin!(
        AdminUserGet,
        "admin.user.get",
        "What stands against a user, and where they are connected.",
        get("/v1/admin/users/{user}", &[]),
        UsersRead,
        ReadOnly,
        [Forbidden]
    ),
    admin!(
        AdminUserBan,
        "admin.user.ban",
        "Ban a user, for good or until a time.",
        http(Method::Put, ADMIN_USER_BAN, 200),
        UsersWrite,
        Key,
        [Forbidden, BadId, IdExpired, IdConflict]
    ),
    admin!(
        AdminUserUnban,
        "admin.user.unban",
        "End a user's ban.",
        http(Method::Delete, ADMIN_USER_BAN, 200),
        UsersWrite,
        Key,
        [Forbidden, BadId, IdExpired, IdConflict]
    ),
    admin!(
        AdminUserLogout,
        "admin.user.logout",
        "Log out all of a user's devices, or the one that is named.",
        http(Method::Post, "/v1/admin/users/{user}/logout", 200),
        UsersWrite,
        Key,
        [Forbidden, BadId, IdExpired, IdConflict]
    ),
    row!(
        InboxSync,
        "inbox.sync",
        "What has changed in the inbox since a cursor: each conversation once, as it stands now.",
        get("/v1/sync", &["cursor", "limit"]),
        User,
        Anyone,
        ReadOnly,
        []
    ),
    row!(
        InboxUpdate,
        "inbox.update",
        "Pin, archive, mute a conversation or mark it as unread, for oneself.",
        http(Method::Patch, "/v1/inbox/{conversation}", 200),
        User,
        Member,
        Key,
        [ConversationNotFound, PinnedLimit, BadId, IdExpired, IdConflict]
    ),
    row!(
        PresenceGet,
        "presence.get",
        "Whether a user is there, as somebody who shares a conversation with them sees it.",
        get(PRESENCE, &["conversation"]),
        User,
        Anyone,
        ReadOnly,
        []
    ),
    row!(
        PresenceUpdate,
        "presence.update",
        "Be seen by others, or not.",
        http(Method::Patch, "/v1/presence", 200),
        User,
        Anyone,
        Key,
        [BadId, IdExpired, IdConflict]
    ),
    row!(
        PresenceWatch,
        "presence.watch",
        "Tell at whom this connection looks, in place of whom it looked at before.",
        None,
        User,
        Anyone,
        Connection,
        []
    ),
    row!(
        PresenceAway,
        "presence.away",
        "Tell whether anybody is at hand on this connection.",
        None,
        User,
        Anyone,
        Connection,
        []
    ),
    row!(
        TypingStart,
        "typing.start",
        "Tell that the caller is writing; ends by itself unless it is said again.",
        http(Method::Put, TYPING, 200),
        Conversation,
        Member,
        Ephemeral,
        [ConversationNotFound]
    ),
    row!(
        TypingStop,
        "typing.stop",
        "Tell that the caller has stopped writing.",
        http(Method::Delete, TYPING, 200),
        Conversation,
        Member,
        Ephemeral,
        [ConversationNotFound]
    ),
    row!(
        ConversationRead,
        "conversation.read",
        "Tell that the caller has read up to message n. Read on one device is read on all.",
        http(Method::Put, "/v1/conversations/{conversation}/read", 200),
        User,
        Member,
        Watermark,
        [ConversationNotFound]
    ),
    row!(
        ConversationDelivered,
        "conversation.delivered",
        "Tell that messages up to n have reached the caller's device.",
        http(Method::Put, "/v1/conversations/{conversation}/delivered", 200),
        User,
        Member,
        Watermark,
        [ConversationNotFound]
    ),
    row!(
        ReceiptPut,
        "receipt.put",
        "Tell how far the caller has got in many conversations.",
        http(Method::Put, "/v1/receipts", 200),
        User,
        Anyone,
        Watermark,
        []
    ),
    row!(
        ReceiptList,
        "receipt.list",
        "Whom a message has reached and who has read it.",
        get("/v1/conversations/{conversation}/messages/{seq}/receipts", &["cursor", "limit"]),
        Conversation,
        Member,
        ReadOnly,
        [ConversationNotFound, MessageNotFound, MessageDeleted, ReceiptsOff]
    ),
    row!(
        ReceiptPreference,
        "receipt.preference",
        "Whether others may see how far the caller has read.",
        get("/v1/receipts/preference", &[]),
        User,
        Anyone,
        ReadOnly,
        []
    ),
    row!(
        ReceiptPrefer,
        "receipt.prefer",
        "Let others see how far the caller has read, or no longer.",
        http(Method::Put, "/v1/receipts/preference", 200),
        User,
        Anyone,
        Key,
        [BadId, IdExpired, IdConflict]
    ),
];

/// Fields that are numbers; in paths and query strings they are written as digits.
pub const NUMERIC_FIELDS: &[&str] = &["seq", "before", "after", "around", "limit", "from"];

/// Fields that are `true` or `false`; in query strings they are written like this.
pub const BOOLEAN_FIELDS: &[&str] = &["archived", "unread", "muted"];

impl Op {
    /// Its row.
    #[must_use]
    pub fn row(self) -> &'static Operation {
        &OPERATIONS[self as usize]
    }

    /// Its dotted name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The operation of a dotted name, among those that users may perform: the others do not exist for them.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        // The hot one first; the rest are rare enough for a walk.
        if name == "message.send" {
            return Some(Self::MessageSend);
        }
        OPERATIONS.iter().find(|row| row.name == name && row.is_for_users()).map(|row| row.op)
    }
}

impl Operation {
    /// Whether users may perform it, or some of them.
    #[must_use]
    pub const fn is_for_users(&self) -> bool {
        !matches!(self.right, Right::Server(_))
    }

    /// What an API key must be for. Every operation of users can be performed for one, but for those about their
    /// connections: a server-side caller has none.
    #[must_use]
    pub const fn scope(&self) -> Option<Scope> {
        match (self.right, self.identity, self.op) {
            (Right::Server(scope), ..) => Some(scope),
            (_, Identity::Connection, _) | (.., Op::SessionList | Op::SessionLogout | Op::SessionLogoutAll) => None,
            (_, Identity::ReadOnly, _) => Some(Scope::AsUserRead),
            _ => Some(Scope::AsUserWrite),
        }
    }
}

impl Scope {
    /// As it stands in a file of keys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UsersRead => "users.read",
            Self::UsersWrite => "users.write",
            Self::AsUserRead => "as_user.read",
            Self::AsUserWrite => "as_user.write",
        }
    }
}

impl Method {
    /// As it stands in a request line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_operation_stands_once_and_in_its_place() {
        let mut names = HashSet::new();
        let mut routes = HashSet::new();
        for (index, row) in OPERATIONS.iter().enumerate() {
            assert_eq!(row.op as usize, index, "{} stands out of order", row.name);
            assert!(names.insert(row.name));
            assert_eq!(Op::named(row.name), row.is_for_users().then_some(row.op));
            assert_eq!(row.websocket, row.is_for_users(), "{}", row.name);
            if let Some(http) = row.http {
                assert!(routes.insert((http.method.name(), http.path)), "{} has another's route", row.name);
                assert_eq!(http.method == Method::Get, row.identity == Identity::ReadOnly, "{}", row.name);
            }
        }
        assert_eq!(Op::named("nothing"), None);
    }

    #[test]
    fn scopes_are_called_what_files_call_them() {
        for scope in [Scope::UsersRead, Scope::UsersWrite, Scope::AsUserRead, Scope::AsUserWrite] {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.name());
        }
        assert_eq!(Op::MessageSend.row().scope(), Some(Scope::AsUserWrite));
        assert_eq!(Op::MessageList.row().scope(), Some(Scope::AsUserRead));
        assert_eq!(Op::AdminUserGet.row().scope(), Some(Scope::UsersRead));
        assert_eq!((Op::SessionLogout.row().scope(), Op::ConversationOpen.row().scope()), (None, None));
    }
}
