//! Which operation is which method of which service. Each operation has its row here, or the build fails.

use prost::Message;
use serde::{Serialize, de::DeserializeOwned};

use super::v1;
use crate::{
    decode,
    error::{Code, Error},
    operation::{OPERATIONS, Op},
};

/// One row: an operation's form in protobuf.
#[derive(Clone, Copy, Debug)]
pub struct Rpc {
    /// The method, for operations that need no connection.
    pub method: Option<Method>,
    /// The number of its field in frames of a connection; 0 where it is not offered there.
    pub field: u32,
    /// The name of the request's message.
    pub request: &'static str,
    /// The name of the reply's message.
    pub reply: &'static str,
    forms: (Form, Form),
}

/// How one message goes from protobuf to JSON and back.
#[derive(Clone, Copy, Debug)]
struct Form {
    to_json: fn(&[u8]) -> Result<String, Error>,
    from_json: fn(&[u8]) -> Result<Vec<u8>, Error>,
}

/// A unary method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The service, without its package.
    pub service: &'static str,
    /// The method's name.
    pub name: &'static str,
}

/// The package of all services.
pub const PACKAGE: &str = "chappe.v1";

macro_rules! method {
    (-) => {
        None
    };
    ($service:ident . $name:ident) => {
        Some(Method { service: stringify!($service), name: stringify!($name) })
    };
}

macro_rules! rows {
    ($($op:ident $field:literal ($($method:tt)*) $request:ident $reply:ident;)*) => {
        impl Op {
            /// Its form in protobuf.
            #[must_use]
            pub const fn rpc(self) -> Rpc {
                match self {
                    $(Op::$op => Rpc {
                        method: method!($($method)*),
                        field: $field,
                        request: stringify!($request),
                        reply: stringify!($reply),
                        forms: (Form::of::<v1::$request>(), Form::of::<v1::$reply>()),
                    },)*
                }
            }
        }
    };
}

rows! {
    ConversationCreate 100 (Conversations.Create) ConversationCreateRequest ConversationCreateResponse;
    ConversationList 101 (Conversations.List) ConversationListRequest ConversationListResponse;
    ConversationGet 102 (Conversations.Get) ConversationGetRequest ConversationGetResponse;
    ConversationUpdate 103 (Conversations.Update) ConversationUpdateRequest Changed;
    ConversationJoin 139 (Conversations.Join) ConversationJoinRequest Changed;
    ConversationLeave 104 (Conversations.Leave) ConversationLeaveRequest Changed;
    ConversationDelete 105 (Conversations.Delete) ConversationDeleteRequest Changed;
    MemberList 106 (Members.List) MemberListRequest MemberListResponse;
    MemberAdd 107 (Members.Add) MemberAddRequest Changed;
    MemberRole 108 (Members.SetRole) MemberRoleRequest Changed;
    MemberRemove 109 (Members.Remove) MemberRemoveRequest Changed;
    MessageSend 110 (Messages.Send) MessageSendRequest MessageSendResponse;
    MessageList 111 (Messages.List) MessageListRequest MessageListResponse;
    MessageGet 112 (Messages.Get) MessageGetRequest MessageGetResponse;
    MessageEdit 113 (Messages.Edit) MessageEditRequest Changed;
    MessageDelete 114 (Messages.Delete) MessageDeleteRequest Changed;
    MessageHistory 115 (Messages.History) MessageHistoryRequest MessageHistoryResponse;
    ReactionAdd 116 (Reactions.Add) ReactionAddRequest Changed;
    ReactionRemove 117 (Reactions.Remove) ReactionRemoveRequest Changed;
    ReactionList 118 (Reactions.List) ReactionListRequest ReactionListResponse;
    EventList 119 (Events.List) EventListRequest EventListResponse;
    ConversationOpen 120 (-) ConversationOpenRequest ConversationOpenResponse;
    ConversationClose 121 (-) ConversationCloseRequest Empty;
    SessionList 122 (Sessions.List) SessionListRequest SessionListResponse;
    SessionLogout 123 (Sessions.Logout) SessionLogoutRequest LoggedOut;
    SessionLogoutAll 124 (Sessions.LogoutAll) SessionLogoutAllRequest LoggedOut;
    AdminUserGet 0 (Admin.GetUser) AdminUserGetRequest AdminUserResponse;
    AdminUserBan 0 (Admin.BanUser) AdminUserBanRequest AdminUserResponse;
    AdminUserUnban 0 (Admin.UnbanUser) AdminUserUnbanRequest AdminUserResponse;
    AdminUserLogout 0 (Admin.LogoutUser) AdminUserLogoutRequest LoggedOut;
    InboxSync 125 (Inbox.Sync) InboxSyncRequest InboxSyncResponse;
    InboxUpdate 126 (Inbox.Update) InboxUpdateRequest InboxUpdateResponse;
    PresenceGet 127 (Presence.Get) PresenceGetRequest PresenceGetResponse;
    PresenceUpdate 128 (Presence.Update) PresenceUpdateRequest PresenceUpdateResponse;
    PresenceWatch 129 (-) PresenceWatchRequest Empty;
    PresenceAway 130 (-) PresenceAwayRequest Empty;
    TypingStart 131 (Typing.Start) TypingStartRequest TypingStartResponse;
    TypingStop 132 (Typing.Stop) TypingStopRequest Empty;
    ConversationRead 133 (Conversations.Read) ConversationReadRequest Progress;
    ConversationDelivered 134 (Conversations.Delivered) ConversationDeliveredRequest Progress;
    ReceiptPut 135 (Receipts.Put) ReceiptPutRequest ReceiptPutResponse;
    ReceiptList 136 (Receipts.List) ReceiptListRequest ReceiptListResponse;
    ReceiptPreference 137 (Receipts.Preference) ReceiptPreferenceRequest ReceiptPreferenceResponse;
    ReceiptPrefer 138 (Receipts.Prefer) ReceiptPreferRequest ReceiptPreferResponse;
}

impl Op {
    /// The operation of a field of a `ClientFrame`.
    #[must_use]
    pub fn of_field(field: u32) -> Option<Self> {
        OPERATIONS.iter().map(|row| row.op).find(|op| field != 0 && op.rpc().field == field)
    }

    /// The operation of a method's path, `/chappe.v1.Messages/Send`.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let (service, name) = path.strip_prefix('/')?.strip_prefix(PACKAGE)?.strip_prefix('.')?.split_once('/')?;
        let is_it = |method: Method| method.service == service && method.name == name;
        OPERATIONS.iter().map(|row| row.op).find(|op| op.rpc().method.is_some_and(is_it))
    }
}

impl Rpc {
    /// The JSON arguments that [`Command::decode`](crate::command::Command::decode) takes, from a request's bytes.
    ///
    /// # Errors
    /// `request.malformed`; `request.invalid` for a body that is no JSON.
    pub fn arguments(&self, request: &[u8]) -> Result<String, Error> {
        (self.forms.0.to_json)(request)
    }

    /// A reply's bytes, from the JSON that [`Reply::write_json`](crate::reply::Reply::write_json) writes.
    ///
    /// # Errors
    /// `internal`, where the two differ: a test goes through all of them.
    pub fn reply(&self, json: &[u8]) -> Result<Vec<u8>, Error> {
        (self.forms.1.from_json)(json)
    }

    /// A client's side: a request's bytes from its JSON.
    ///
    /// # Errors
    /// `internal`, where the JSON is no request of this operation.
    pub fn request(&self, json: &[u8]) -> Result<Vec<u8>, Error> {
        (self.forms.0.from_json)(json)
    }

    /// A client's side: the JSON of a reply.
    ///
    /// # Errors
    /// `request.malformed`, where it is no reply of this operation.
    pub fn answer(&self, reply: &[u8]) -> Result<String, Error> {
        (self.forms.1.to_json)(reply)
    }
}

impl Form {
    const fn of<M: Message + Default + Serialize + DeserializeOwned>() -> Self {
        Self { to_json: to_json::<M>, from_json: from_json::<M> }
    }
}

impl Method {
    /// Where it is called.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{PACKAGE}.{}/{}", self.service, self.name)
    }
}

pub(super) fn to_json<M: Message + Default + Serialize>(bytes: &[u8]) -> Result<String, Error> {
    let message = M::decode(bytes)
        .map_err(|_| Error::new(Code::Malformed).with_detail("the request is not a message of this method"))?;
    serde_json::to_string(&message).map_err(|error| {
        // Only a piece of JSON can be none; its field stands in front.
        let said = error.to_string();
        let (field, said) = said.split_once(':').unwrap_or(("body", &said));
        Error::invalid(field.to_owned(), decode::sentence(said))
    })
}

fn from_json<M: Message + DeserializeOwned>(json: &[u8]) -> Result<Vec<u8>, Error> {
    let message: M = serde_json::from_slice(json).map_err(|error| {
        Error::new(Code::Internal).with_detail(format!("the reply has no form in protobuf: {error}"))
    })?;
    Ok(message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::operation::Identity;

    #[test]
    fn whatever_http_offers_is_a_method_of_its_own() {
        let mut paths = HashSet::new();
        for row in OPERATIONS {
            let method = row.op.rpc().method;
            assert_eq!(method.is_some(), row.http.is_some(), "{}", row.name);
            assert_eq!(method.is_none(), row.identity == Identity::Connection, "{}", row.name);
            if let Some(method) = method {
                assert!(paths.insert(method.path()), "{} has another's method", row.name);
                assert_eq!(Op::of_path(&method.path()), Some(row.op));
            }
        }
        for path in ["", "/", "/chappe.v1.Messages", "/chappe.v1.Messages/Nothing", "/chappe.v2.Messages/Send"] {
            assert_eq!(Op::of_path(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_message_or_no_json_is_refused() {
        let rpc = Op::MessageSend.rpc();
        assert_eq!(rpc.arguments(&[0xff, 0xff]).unwrap_err().code, Code::Malformed);
        let send = |body: &str| {
            let request = v1::MessageSendRequest { body: body.to_owned(), ..Default::default() };
            rpc.arguments(&request.encode_to_vec())
        };
        for body in ["", "{", "{},\"seq\":1", "{}}", "nonsense", "{} {}"] {
            let error = send(body).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (Code::Invalid, Some("body")), "{body}");
            assert!(!error.detail.contains("column"), "{}", error.detail);
        }
        assert_eq!(send(r#"{ "a" : 1 }"#).unwrap(), r#"{"conversation":"","client_msg_id":"","body":{ "a" : 1 }}"#);
    }
}
