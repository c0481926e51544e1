//! An example of each operation: what is sent beside the path, and what is answered. A test decodes each of them.

use chappe_schema::operation::Op;
use serde_json::{Value, json};

pub(crate) const CONVERSATION: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const MESSAGE: &str = "01890a5d-ac96-774b-bcce-b30209000001";
const AT: &str = "2026-11-22T21:00:28.123Z";

/// A value for a field of a path, a query or a header, by its name: a name means one thing.
pub(crate) fn field(name: &str) -> Value {
    match name {
        "conversation" => json!(CONVERSATION),
        "user" => json!("bob"),
        "as" => json!("ada"),
        "seq" => json!(413),
        "key" => json!("👍"),
        "before" | "after" | "around" => json!(412),
        "limit" => json!(50),
        "archived" | "muted" => json!(false),
        "unread" => json!(true),
        "cursor" => json!("bob"),
        "idempotency_key" => json!(MESSAGE),
        other => panic!("{other} has no example; give it one"),
    }
}

/// A cursor of the inbox is no user's name.
pub(crate) fn cursor(op: Op) -> Option<Value> {
    match op {
        Op::ConversationList => Some(json!(format!("1.ff.{}", CONVERSATION.replace('-', "")))),
        Op::InboxSync => Some(json!("9.5.ff")),
        _ => None,
    }
}

/// What stands in the body of a request; empty where nothing does.
pub(crate) fn request(op: Op) -> Value {
    match op {
        Op::ConversationCreate => {
            json!({"kind": "group", "title": "Towers", "members": ["bob", "eve"], "data": {"color": "blue"},
            "history": "since_join", "encryption": "none", "receipts": true, "open": false, "retention_secs": 7_776_000})
        }
        Op::ConversationUpdate => {
            json!({"title": "Towers of France", "data": {"color": "red"}, "history": "all", "receipts": true, "open": false,
            "retention_secs": 7_776_000})
        }
        Op::MemberAdd | Op::MemberRole => json!({"role": "admin"}),
        Op::MessageSend => {
            json!({"client_msg_id": MESSAGE, "body": {"text": "bonjour"}, "mentions": {"users": ["bob"], "all": false}})
        }
        Op::MessageEdit => json!({"body": {"text": "bonsoir"}, "mentions": {"users": ["bob"]}}),
        Op::SessionLogout | Op::AdminUserLogout => json!({"device": "phone"}),
        Op::AdminUserBan => json!({"until": "2027-01-01T00:00:00.000Z", "reason": "spam"}),
        Op::InboxUpdate => {
            json!({"pinned": true, "archived": false, "muted": true, "muted_until": "2026-12-24T18:00:00.000Z",
            "marked_unread": false})
        }
        Op::PresenceUpdate => json!({"invisible": true}),
        Op::ConversationRead => json!({"n": 228, "private": false}),
        Op::ConversationDelivered => json!({"n": 231}),
        Op::ReceiptPut => json!({"conversations": {CONVERSATION: {"delivered": 231, "read": 228}}, "private": false}),
        Op::ReceiptPrefer => json!({"private": true}),
        // Of a connection: their place in the document is that of the WebSocket.
        Op::PresenceWatch => json!({"users": [{"user": "bob", "conversation": CONVERSATION}]}),
        Op::PresenceAway => json!({"away": true}),
        Op::ConversationOpen => json!({"from": 412}),
        _ => json!({}),
    }
}

/// What is answered.
pub(crate) fn reply(op: Op) -> Value {
    let changed = json!({"seq": 417, "changed": true});
    let progress = json!({"delivered_n": 231, "read_n": 228, "unread": 2, "mentions": 1});
    let user = json!({"user": {"id": "bob", "banned": {"since": AT, "until": "2027-01-01T00:00:00.000Z", "reason": "spam", "by": "backend"},
        "logged_out_before": AT, "logged_out_devices": [{"device": "phone", "before": AT}],
        "sessions": [{"connection": "1-a", "device": "laptop", "since": AT}], "conversations": 12}});
    match op {
        Op::ConversationCreate => json!({"conversation": conversation(), "existed": true}),
        Op::ConversationGet => json!({"conversation": conversation()}),
        Op::ConversationList => {
            json!({"conversations": [row()], "next_cursor": cursor(op), "cursor": "9.5.ff", "settling": true})
        }
        Op::InboxSync => {
            json!({"conversations": [row(), {"id": CONVERSATION, "left": true, "change": "5.1"}], "cursor": "9.5.ff",
            "more": false, "reset": "too_old", "settling": true})
        }
        Op::ConversationUpdate
        | Op::ConversationJoin
        | Op::ConversationLeave
        | Op::ConversationDelete
        | Op::MemberAdd
        | Op::MemberRole
        | Op::MemberRemove
        | Op::MessageEdit
        | Op::MessageDelete
        | Op::ReactionAdd
        | Op::ReactionRemove => changed,
        Op::ConversationRead | Op::ConversationDelivered => progress,
        Op::MemberList => json!({"members": [{"user": "ada", "role": "owner", "delivered_n": 231, "read_n": 231},
            {"user": "bob", "role": "member"}], "next_cursor": "bob"}),
        Op::MessageSend => json!({"seq": 416, "n": 231, "created_at": AT, "duplicate": true}),
        Op::MessageList => {
            json!({"messages": [message(), {"seq": 414, "n": 231, "sender": "bob", "id": MESSAGE, "created_at": AT, "body": null, "deleted": 420}],
                "head": 420, "more_before": true, "more_after": false})
        }
        Op::MessageGet => json!({"message": message()}),
        Op::MessageHistory => {
            json!({"history": [{"seq": 413, "at": AT, "body": {"text": "bonjour"}}, {"seq": 415, "at": AT, "body": null}],
            "deleted": 420, "more_before": true})
        }
        Op::ReactionList => {
            json!({"reactions": [{"user": "bob", "seq": 417, "at": AT}], "count": 3, "next_cursor": "bob"})
        }
        Op::EventList => json!({"events": [
            {"event": "message.new", "conversation": CONVERSATION, "seq": 413, "n": 230, "at": AT, "sender": "ada", "device": "laptop",
                "id": MESSAGE, "data": {"body": {"text": "bonjour"}, "mentions": {"users": ["bob"]}}},
            {"event": "message.updated", "conversation": CONVERSATION, "seq": 414, "n": 230, "at": AT, "sender": "ada", "id": MESSAGE,
                "target": 413, "data": {"body": {"text": "bonsoir"}, "previous": 413, "target_n": 230}},
            {"event": "reaction.added", "conversation": CONVERSATION, "seq": 415, "n": 230, "at": AT, "sender": "bob", "id": MESSAGE,
                "target": 413, "data": {"key": "👍"}},
            {"event": "member.joined", "conversation": CONVERSATION, "seq": 416, "n": 230, "at": AT, "sender": "ada", "id": MESSAGE,
                "data": {"user": "eve", "role": "member"}}],
            "head": 416, "floor": 0}),
        Op::SessionList => json!({"sessions": [{"connection": "1-a", "device": "laptop", "since": AT}]}),
        Op::SessionLogout | Op::SessionLogoutAll | Op::AdminUserLogout => json!({"before": AT}),
        Op::AdminUserGet | Op::AdminUserBan | Op::AdminUserUnban => user,
        Op::InboxUpdate => {
            json!({"pinned": true, "archived": false, "muted": true, "muted_until": AT, "marked_unread": false, "changed": true})
        }
        Op::PresenceGet => json!({"user": "bob", "status": "offline", "last_seen": AT, "invisible": false}),
        Op::PresenceUpdate => json!({"invisible": true, "changed": true}),
        Op::TypingStart => json!({"shown": true, "expires_ms": 6000, "repeat_ms": 3000}),
        Op::TypingStop | Op::ConversationClose | Op::PresenceWatch | Op::PresenceAway => json!({}),
        Op::ReceiptPut => {
            json!({"conversations": [{"id": CONVERSATION, "delivered_n": 231, "read_n": 228, "unread": 2, "mentions": 1},
            {"id": "01890a5d-ac96-774b-bcce-b302099a8058", "error": "conversation.not_found"}]})
        }
        Op::ReceiptList => {
            json!({"members": 5, "delivered": 4, "read": 3, "receipts": [{"user": "bob", "delivered": true, "read": true}],
            "next_cursor": "bob"})
        }
        Op::ReceiptPreference => json!({"private": true}),
        Op::ReceiptPrefer => json!({"private": true, "changed": true}),
        Op::ConversationOpen => json!({"head": 416, "n": 231, "large": false}),
    }
}

fn conversation() -> Value {
    json!({"id": CONVERSATION, "kind": "group", "encryption": "none", "title": "Towers", "data": {"color": "blue"}, "history": "since_join",
        "receipts": true, "members": 3, "role": "owner", "head": 415, "n": 231, "floor": 0, "created_at": AT, "last_at": AT})
}

fn row() -> Value {
    json!({"id": CONVERSATION, "kind": "direct", "with": "bob", "head": 415, "n": 231, "read_n": 228, "unread": 2, "mentions": 1,
        "last": {"seq": 415, "n": 231, "sender": "bob", "at": AT, "text": "see you at the …"}, "active_at": AT, "pinned": false,
        "archived": false, "muted": true, "muted_until": AT, "marked_unread": false, "change": "5.ff"})
}

fn message() -> Value {
    json!({"seq": 413, "n": 230, "sender": "ada", "device": "laptop", "id": MESSAGE, "created_at": AT, "body": {"text": "bonsoir"},
        "mentions": {"users": ["bob"]}, "edit": 414, "edited_at": AT, "reactions": [{"key": "👍", "count": 3, "mine": true}]})
}
