//! Every operation over every transport that offers it: the same reply, the same errors.

use chappe_schema::{
    error::Code,
    operation::{Identity, Method, OPERATIONS, Op, Operation, Owner},
};
use serde_json::{Map, Value, json};

use crate::{
    node::{Mode, user},
    world::World,
};

/// Arguments that make sense for an operation in a fresh conversation of ada and bob with two messages.
pub(crate) fn args(op: Op, chat: &str) -> Value {
    let mut args = match op {
        Op::ConversationCreate => json!({"kind": "group", "title": "t", "members": ["bob"], "idempotency_key": "k"}),
        Op::ConversationList => json!({"limit": 5, "archived": false, "unread": true, "muted": false}),
        Op::InboxSync => json!({"cursor": "abc.1.7", "limit": 5}),
        Op::InboxUpdate => json!({"pinned": true, "archived": false, "muted": true, "marked_unread": true}),
        Op::ConversationUpdate => json!({"title": "new"}),
        Op::MemberList => json!({"limit": 5}),
        Op::MemberAdd => json!({"user": "eve", "role": "admin"}),
        Op::MemberRole => json!({"user": "bob", "role": "admin"}),
        Op::MemberRemove => json!({"user": "bob"}),
        Op::MessageSend => json!({"client_msg_id": "01890a5d-ac96-774b-bcce-b302099a8057", "body": {"text": "x"}}),
        Op::MessageList => json!({"before": 9, "limit": 5}),
        Op::MessageGet | Op::MessageDelete | Op::MessageHistory => json!({"seq": 1}),
        Op::MessageEdit => json!({"seq": 1, "body": {"text": "y"}}),
        Op::ReactionAdd | Op::ReactionRemove => json!({"seq": 1, "key": "👍/🏽"}),
        Op::ReactionList => json!({"seq": 1, "key": "👍/🏽", "limit": 5}),
        Op::EventList => json!({"after": 1}),
        Op::ConversationGet
        | Op::ConversationJoin
        | Op::ConversationLeave
        | Op::ConversationDelete
        | Op::ConversationOpen
        | Op::ConversationClose
        | Op::SessionList
        | Op::TypingStart
        | Op::TypingStop
        | Op::SessionLogoutAll => {
            json!({})
        }
        Op::PresenceGet => json!({"user": "bob", "conversation": chat}),
        Op::PresenceUpdate => json!({"invisible": true}),
        Op::PresenceWatch => json!({"users": [{"user": "bob"}]}),
        Op::PresenceAway => json!({"away": true}),
        Op::SessionLogout => json!({"device": "phone"}),
        Op::ConversationRead => json!({"n": 2, "private": true}),
        Op::ConversationDelivered => json!({"n": 2}),
        Op::ReceiptPut => json!({"conversations": {chat: {"delivered": 2, "read": 1}}, "private": false}),
        Op::ReceiptList => json!({"seq": 1, "limit": 5}),
        Op::ReceiptPreference => json!({}),
        Op::ReceiptPrefer => json!({"private": true}),
        Op::AdminUserGet | Op::AdminUserBan | Op::AdminUserUnban | Op::AdminUserLogout => json!({"user": "eve"}),
    };
    let of_user = [Op::InboxUpdate, Op::ConversationRead, Op::ConversationDelivered];
    if of_user.contains(&op) || (op.row().owner == Owner::Conversation && op != Op::ConversationCreate) {
        args["conversation"] = json!(chat);
    }
    args
}

/// A text as one segment of a path.
fn in_path(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Method, path, body and further headers of an operation.
pub(crate) fn request(row: &Operation, args: &Value) -> Option<(&'static str, String, Option<Value>, String)> {
    let http = row.http?;
    let mut body: Map<String, Value> = args.as_object().unwrap().clone();
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut path = http.path.to_owned();
    let mut query = String::new();
    let mut headers = String::new();
    for (name, value) in args.as_object().unwrap() {
        let place = format!("{{{name}}}");
        if path.contains(&place) {
            path = path.replace(&place, &in_path(&text(value.clone())));
        } else if http.query.contains(&name.as_str()) {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(&format!("{name}={}", text(value.clone())));
        } else if name == "idempotency_key" {
            headers = format!("idempotency-key: {}\r\n", text(value.clone()));
        } else {
            continue;
        }
        body.remove(name);
    }
    let body = Value::Object(body);
    let body = (http.method != Method::Get && !body.as_object().unwrap().is_empty()).then_some(body);
    Some((http.method.name(), format!("{path}{query}"), body, headers))
}

async fn by_http(world: &World, row: &Operation, args: &Value) -> Option<(u16, Value)> {
    let (method, path, body, headers) = request(row, args)?;
    let answer = world.ask_with("ada", method, &path, body.as_ref(), &headers).await;
    Some((answer.status, answer.json()))
}

async fn by_websocket(world: &World, row: &Operation, args: &Value) -> Value {
    let mut client = world.client("ada").await;
    client.ask(row.name, args.clone()).await
}

/// What differs from one run to the next.
pub(crate) fn timeless(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for name in ["created_at", "last_at", "at", "edited_at", "id", "request_id", "conversation", "instance"]
                {
                    if fields.get(name).is_some_and(Value::is_string) {
                        fields.remove(name);
                    }
                }
                fields.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

async fn fresh() -> (World, String) {
    let world = World::new().await;
    let chat = world.node.conversation(&["ada", "bob"], 2, false).to_string();
    (world, chat)
}

#[tokio::test]
async fn every_operation_has_one_answer_over_every_transport() {
    for row in OPERATIONS.iter().filter(|row| row.is_for_users()) {
        let (world, chat) = fresh().await;
        let over_websocket = by_websocket(&world, row, &args(row.op, &chat)).await;
        assert!(over_websocket["ok"].is_object(), "{}: {over_websocket}", row.name);
        let (world, chat) = fresh().await;
        let Some((status, over_http)) = by_http(&world, row, &args(row.op, &chat)).await else {
            assert_eq!(row.identity, Identity::Connection, "{} is not offered over HTTP", row.name);
            continue;
        };
        assert_eq!(status, row.http.unwrap().status, "{}: {over_http}", row.name);
        assert_eq!(timeless(over_http), timeless(over_websocket["ok"].clone()), "{}", row.name);
    }
}

/// Operations that the gateway answers by itself.
const fn of_the_gateway(op: Op) -> bool {
    matches!(op, Op::ConversationClose | Op::PresenceWatch | Op::PresenceAway)
}

#[tokio::test]
async fn every_error_is_one_object_over_every_transport() {
    for code in [
        Code::ConversationNotFound,
        Code::Forbidden,
        Code::Overloaded,
        Code::OutcomeUnknown,
        Code::IdConflict,
        Code::Internal,
    ] {
        let (world, chat) = fresh().await;
        let mut client = world.client("ada").await;
        world.node.behave(Mode::Refusing(code));
        for row in OPERATIONS.iter().filter(|row| row.is_for_users() && !of_the_gateway(row.op)) {
            let args = args(row.op, &chat);
            let over_websocket = timeless(client.ask(row.name, args.clone()).await["error"].clone());
            assert_eq!(over_websocket["code"], code.row().code, "{}", row.name);
            let Some((status, over_http)) = by_http(&world, row, &args).await else { continue };
            assert_eq!(status, code.row().http);
            assert_eq!(timeless(over_http), over_websocket, "{}", row.name);
        }
    }
}

#[tokio::test]
async fn every_operation_refuses_what_it_cannot_read_alike() {
    let (world, chat) = fresh().await;
    let mut client = world.client("ada").await;
    for row in OPERATIONS.iter().filter(|row| row.is_for_users()) {
        let good = args(row.op, &chat);
        for name in good.as_object().unwrap().keys() {
            let mut bad = good.clone();
            // Neither a number nor an id, a role, a kind or an object.
            bad[name] = json!("\u{7}?");
            let over_websocket = client.ask(row.name, bad.clone()).await;
            if name == "idempotency_key" {
                continue;
            }
            assert_eq!(over_websocket["error"]["code"], "request.invalid", "{} {name}: {over_websocket}", row.name);
            if row
                .http
                .is_some_and(|http| !http.path.contains(&format!("{{{name}}}")) && !http.query.contains(&name.as_str()))
            {
                let (status, over_http) = by_http(&world, row, &bad).await.unwrap();
                assert_eq!(status, 422, "{} {name}", row.name);
                assert_eq!(over_http["field"], over_websocket["error"]["field"], "{} {name}", row.name);
            }
        }
    }
    assert!(
        world.node.heard().iter().all(|name| ["connect", "ask access", "conversation.create"].contains(&name.as_str())),
        "{:?}",
        world.node.heard()
    );
}

#[tokio::test]
async fn a_created_group_is_the_same_group_when_it_is_created_again() {
    let world = World::new().await;
    let body = json!({"kind": "group", "members": ["bob"]});
    let first =
        world.ask_with("ada", "POST", "/v1/conversations", Some(&body), "idempotency-key: abc\r\n").await.json();
    let again = world.ask_with("ada", "POST", "/v1/conversations", Some(&body), "idempotency-key: abc\r\n").await;
    assert_eq!(again.status, 201);
    assert_eq!(again.json()["existed"], true);
    assert_eq!(again.json()["conversation"]["id"], first["conversation"]["id"]);
    let mut ada = world.client("ada").await;
    let over_websocket =
        ada.ask("conversation.create", json!({"kind": "group", "members": ["bob"], "idempotency_key": "abc"})).await;
    assert_eq!(over_websocket["ok"]["conversation"]["id"], first["conversation"]["id"]);
    assert!(world.node.state.lock().conversations.values().all(|chat| chat.members.contains_key(&user("bob"))));
}
