//! Every operation of the table gives the same results and the same errors over every transport that offers it.

use std::{collections::HashSet, time::Duration};

use chappe_loadtest::{
    client::{Client, Failure, Options, grpc::Grpc, http::Http},
    server::{Server, Setup},
};
use chappe_schema::{
    error::Code,
    operation::{NUMERIC_FIELDS, OPERATIONS, Operation},
};
use hyper::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::access;

/// One step: who asks what. `$C` stands for the conversation, `$U:name` for a user, `$I:n` for the id number n.
const SCRIPT: &[(&str, &str, &str)] = &[
    (
        "ada",
        "conversation.create",
        r#"{"kind":"group","title":"t","members":["$U:bob","$U:eve"],"idempotency_key":"$K"}"#,
    ),
    (
        "ada",
        "conversation.create",
        r#"{"kind":"group","title":"t","members":["$U:bob","$U:eve"],"idempotency_key":"$K"}"#,
    ),
    ("ada", "conversation.create", r#"{"kind":"group","title":"other","idempotency_key":"$K"}"#),
    ("ada", "conversation.create", r#"{"kind":"direct","with":"$U:ada"}"#),
    ("ada", "conversation.create", r#"{"kind":"group","tilte":"typo"}"#),
    ("bob", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:1","body":{"text":"one"}}"#),
    ("bob", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:1","body":{"text":"one"}}"#),
    ("bob", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:1","body":{"text":"two"}}"#),
    (
        "ada",
        "message.send",
        r#"{"conversation":"$C","client_msg_id":"$I:2","body":{"text":"two","more":[1,{"a":null}]}}"#,
    ),
    (
        "ada",
        "message.send",
        r#"{"conversation":"$C","client_msg_id":"5f0f6f4e-0f0e-4c6b-8f3c-1f0b6a8f3b11","body":{}}"#,
    ),
    ("ada", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:3","body":[]}"#),
    ("ada", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:3"}"#),
    ("zoe", "message.send", r#"{"conversation":"$C","client_msg_id":"$I:4","body":{}}"#),
    ("bob", "message.edit", r#"{"conversation":"$C","seq":2,"body":{"text":"edited"}}"#),
    ("ada", "message.edit", r#"{"conversation":"$C","seq":2,"body":{"text":"not mine"}}"#),
    ("bob", "message.edit", r#"{"conversation":"$C","seq":99,"body":{}}"#),
    ("bob", "message.get", r#"{"conversation":"$C","seq":2}"#),
    ("bob", "message.get", r#"{"conversation":"$C","seq":1}"#),
    ("ada", "message.history", r#"{"conversation":"$C","seq":2}"#),
    ("eve", "message.list", r#"{"conversation":"$C","limit":10}"#),
    ("eve", "message.list", r#"{"conversation":"$C","before":3,"limit":10}"#),
    ("eve", "message.list", r#"{"conversation":"$C","before":3,"after":1}"#),
    ("eve", "message.list", r#"{"conversation":"$C","limit":0}"#),
    ("eve", "event.list", r#"{"conversation":"$C","after":0,"limit":10}"#),
    ("zoe", "event.list", r#"{"conversation":"$C","after":0}"#),
    ("ada", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("ada", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("eve", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("eve", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"a/b?c#d%20"}"#),
    ("eve", "reaction.add", r#"{"conversation":"$C","seq":2,"key":"👍"}"#),
    ("eve", "reaction.add", r#"{"conversation":"$C","seq":1,"key":"👍"}"#),
    ("eve", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"white space"}"#),
    ("zoe", "reaction.add", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("ada", "message.get", r#"{"conversation":"$C","seq":3}"#),
    ("bob", "message.list", r#"{"conversation":"$C","limit":10}"#),
    ("bob", "reaction.list", r#"{"conversation":"$C","seq":3,"key":"👍","limit":1}"#),
    ("bob", "reaction.list", r#"{"conversation":"$C","seq":3,"key":"👍","cursor":"$U:ada"}"#),
    ("bob", "reaction.list", r#"{"conversation":"$C","seq":3,"key":"nobody"}"#),
    ("bob", "reaction.list", r#"{"conversation":"$C","seq":99,"key":"👍"}"#),
    ("zoe", "reaction.list", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("eve", "reaction.remove", r#"{"conversation":"$C","seq":3,"key":"a/b?c#d%20"}"#),
    ("eve", "reaction.remove", r#"{"conversation":"$C","seq":3,"key":"a/b?c#d%20"}"#),
    ("zoe", "reaction.remove", r#"{"conversation":"$C","seq":3,"key":"👍"}"#),
    ("ada", "message.delete", r#"{"conversation":"$C","seq":2}"#),
    ("ada", "message.delete", r#"{"conversation":"$C","seq":2}"#),
    ("ada", "reaction.add", r#"{"conversation":"$C","seq":2,"key":"👍"}"#),
    ("eve", "reaction.remove", r#"{"conversation":"$C","seq":2,"key":"👍"}"#),
    ("bob", "message.edit", r#"{"conversation":"$C","seq":2,"body":{"text":"late"}}"#),
    ("eve", "message.delete", r#"{"conversation":"$C","seq":3}"#),
    ("ada", "message.history", r#"{"conversation":"$C","seq":2}"#),
    ("ada", "conversation.get", r#"{"conversation":"$C"}"#),
    ("zoe", "conversation.get", r#"{"conversation":"$C"}"#),
    ("zoe", "conversation.join", r#"{"conversation":"$C"}"#),
    ("ada", "conversation.get", r#"{"conversation":"nonsense"}"#),
    ("ada", "conversation.update", r#"{"conversation":"$C","title":"new","data":{"color":"blue"}}"#),
    ("bob", "conversation.update", r#"{"conversation":"$C","title":"mine"}"#),
    ("ada", "conversation.update", r#"{"conversation":"$C"}"#),
    ("ada", "member.add", r#"{"conversation":"$C","user":"$U:zoe","role":"admin"}"#),
    ("ada", "member.add", r#"{"conversation":"$C","user":"$U:zoe"}"#),
    ("bob", "member.add", r#"{"conversation":"$C","user":"$U:max"}"#),
    ("bob", "conversation.join", r#"{"conversation":"$C"}"#),
    ("ada", "conversation.update", r#"{"conversation":"$C","open":true}"#),
    ("ada", "conversation.leave", r#"{"conversation":"$C"}"#),
    ("ada", "member.role", r#"{"conversation":"$C","user":"$U:ada","role":"member"}"#),
    ("zoe", "member.role", r#"{"conversation":"$C","user":"$U:bob","role":"owner"}"#),
    ("ada", "member.role", r#"{"conversation":"$C","user":"$U:bob","role":"owner"}"#),
    ("ada", "member.role", r#"{"conversation":"$C","user":"$U:bob"}"#),
    ("ada", "member.role", r#"{"conversation":"$C","user":"$U:nobody","role":"admin"}"#),
    ("ada", "member.list", r#"{"conversation":"$C","limit":2}"#),
    ("ada", "member.remove", r#"{"conversation":"$C","user":"$U:eve"}"#),
    ("eve", "event.list", r#"{"conversation":"$C","after":0}"#),
    ("eve", "conversation.list", r#"{}"#),
    ("ada", "conversation.list", r#"{"limit":5}"#),
    ("ada", "conversation.list", r#"{"cursor":"nonsense"}"#),
    ("bob", "conversation.list", r#"{"unread":true,"archived":false,"muted":false}"#),
    ("bob", "conversation.list", r#"{"unread":"perhaps"}"#),
    (
        "bob",
        "inbox.update",
        r#"{"conversation":"$C","pinned":true,"muted_until":"2999-01-01T00:00:00Z","idempotency_key":"$I:5"}"#,
    ),
    (
        "bob",
        "inbox.update",
        r#"{"conversation":"$C","pinned":true,"muted_until":"2999-01-01T00:00:00Z","idempotency_key":"$I:5"}"#,
    ),
    ("bob", "inbox.update", r#"{"conversation":"$C","pinned":false,"idempotency_key":"$I:5"}"#),
    ("bob", "inbox.update", r#"{"conversation":"$C","pinned":true}"#),
    ("bob", "inbox.update", r#"{"conversation":"$C","pinned":true,"archived":true}"#),
    ("bob", "inbox.update", r#"{"conversation":"$C","muted_until":"tomorrow"}"#),
    ("bob", "inbox.update", r#"{"conversation":"$C"}"#),
    ("bob", "inbox.update", r#"{"conversation":"$C","marked_unread":true}"#),
    ("bob", "conversation.list", r#"{"muted":true}"#),
    ("eve", "inbox.update", r#"{"conversation":"$C","archived":true}"#),
    ("bob", "inbox.sync", r#"{}"#),
    ("bob", "conversation.delivered", r#"{"conversation":"$C","n":2}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C","n":1}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C","n":1}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C","n":99}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C","n":-1}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C"}"#),
    ("bob", "conversation.read", r#"{"conversation":"$C","n":2,"private":true,"privte":1}"#),
    ("eve", "conversation.read", r#"{"conversation":"$C","n":1}"#),
    ("eve", "conversation.delivered", r#"{"conversation":"$C","n":1}"#),
    ("bob", "receipt.put", r#"{"conversations":{"$C":{"delivered":2,"read":1}}}"#),
    ("eve", "receipt.put", r#"{"conversations":{"$C":{"read":1}},"private":true}"#),
    ("bob", "receipt.put", r#"{"conversations":{"$C":{}}}"#),
    ("bob", "receipt.put", r#"{"conversations":{}}"#),
    ("bob", "receipt.put", r#"{"conversations":{"nonsense":{"read":1}}}"#),
    ("ada", "receipt.list", r#"{"conversation":"$C","seq":3}"#),
    ("ada", "receipt.list", r#"{"conversation":"$C","seq":2}"#),
    ("ada", "receipt.list", r#"{"conversation":"$C","seq":99,"limit":1}"#),
    ("eve", "receipt.list", r#"{"conversation":"$C","seq":3}"#),
    ("ada", "conversation.update", r#"{"conversation":"$C","receipts":false}"#),
    ("ada", "receipt.list", r#"{"conversation":"$C","seq":3}"#),
    ("ada", "member.list", r#"{"conversation":"$C"}"#),
    ("bob", "receipt.preference", r#"{}"#),
    ("bob", "receipt.prefer", r#"{"private":true,"idempotency_key":"$I:6"}"#),
    ("bob", "receipt.prefer", r#"{"private":true,"idempotency_key":"$I:6"}"#),
    ("bob", "receipt.prefer", r#"{"private":false,"idempotency_key":"$I:6"}"#),
    ("bob", "receipt.prefer", r#"{"private":"yes"}"#),
    ("bob", "receipt.preference", r#"{}"#),
    ("bob", "inbox.sync", r#"{"cursor":"nonsense"}"#),
    ("bob", "inbox.sync", r#"{"cursor":"0.0.0","limit":5}"#),
    ("bob", "presence.get", r#"{"user":"$U:ada","conversation":"$C"}"#),
    ("bob", "presence.get", r#"{"user":"$U:eve","conversation":"$C"}"#),
    ("bob", "presence.get", r#"{"user":"$U:ada"}"#),
    ("eve", "presence.get", r#"{"user":"$U:ada","conversation":"$C"}"#),
    ("bob", "presence.get", r#"{"user":"$U:bob"}"#),
    ("bob", "presence.get", r#"{"user":"$U:ada","conversation":"nonsense"}"#),
    ("bob", "presence.update", r#"{"invisible":true,"idempotency_key":"$I:6"}"#),
    ("bob", "presence.update", r#"{"invisible":true,"idempotency_key":"$I:6"}"#),
    ("bob", "presence.update", r#"{"invisible":false,"idempotency_key":"$I:6"}"#),
    ("bob", "presence.update", r#"{"invisible":false}"#),
    ("bob", "presence.update", r#"{"invisible":false}"#),
    ("bob", "presence.update", r#"{}"#),
    ("bob", "typing.start", r#"{"conversation":"$C"}"#),
    ("bob", "typing.stop", r#"{"conversation":"$C"}"#),
    ("eve", "typing.start", r#"{"conversation":"$C"}"#),
    ("eve", "typing.stop", r#"{"conversation":"$C"}"#),
    ("zoe", "conversation.leave", r#"{"conversation":"$C"}"#),
    ("zoe", "conversation.leave", r#"{"conversation":"$C"}"#),
    ("zoe", "conversation.delete", r#"{"conversation":"$C"}"#),
    ("ada", "conversation.delete", r#"{"conversation":"$C"}"#),
    ("ada", "conversation.get", r#"{"conversation":"$C"}"#),
    ("ada", "session.list", r#"{}"#),
    ("ada", "session.list", r#"{"devcie":"typo"}"#),
    ("ada", "session.logout", r#"{"device":"another","idempotency_key":"$I:5"}"#),
    ("ada", "session.logout", r#"{"device":"another","idempotency_key":"$I:5"}"#),
    ("ada", "session.logout_all", r#"{"idempotency_key":"$I:5"}"#),
    ("ada", "session.logout", r#"{"device":"not a device"}"#),
    ("ada", "session.logout_all", r#"{"idempotency_key":"5f0f6f4e-0f0e-4c6b-8f3c-1f0b6a8f3b11"}"#),
    ("ada", "session.list", r#"{}"#),
    ("ada", "session.logout_all", r#"{}"#),
];

/// What servers ask, with keys that may everything (`backend`) and only look (`reader`). Over the WebSocket they ask nothing: in
/// its world HTTP is asked, so that the worlds stay the same.
const OF_SERVERS: &[(&str, &str, &str)] = &[
    ("backend", "admin.user.get", r#"{"user":"$U:max"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","reason":"spam","idempotency_key":"$I:5"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","reason":"spam","idempotency_key":"$I:5"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","reason":"other","idempotency_key":"$I:5"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","until":"2999-01-01T00:00:00Z"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","until":"tomorrow"}"#),
    ("backend", "admin.user.ban", r#"{"user":"$U:max","idempotency_key":"5f0f6f4e-0f0e-4c6b-8f3c-1f0b6a8f3b11"}"#),
    ("reader", "admin.user.get", r#"{"user":"$U:max"}"#),
    ("reader", "admin.user.ban", r#"{"user":"$U:max"}"#),
    ("reader", "admin.user.unban", r#"{"user":"$U:max"}"#),
    ("reader", "admin.user.logout", r#"{"user":"$U:max"}"#),
    ("backend", "admin.user.unban", r#"{"user":"$U:max"}"#),
    ("backend", "admin.user.unban", r#"{"user":"$U:max"}"#),
    ("backend", "admin.user.logout", r#"{"user":"$U:max","device":"phone"}"#),
    ("backend", "admin.user.logout", r#"{"user":"$U:max"}"#),
    ("backend", "admin.user.get", r#"{"user":"$U:max"}"#),
    ("nobody", "admin.user.get", r#"{"user":"$U:max"}"#),
];

/// A text as one segment of a path.
fn in_path(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The row of an operation, also of one that no frame can name.
fn row(name: &str) -> &'static Operation {
    OPERATIONS.iter().find(|row| row.name == name).unwrap()
}

const USERS: [&str; 4] = ["ada", "bob", "eve", "zoe"];

/// One transport's way of asking; each has users of its own, so that their inboxes hold the same.
struct Voice<'a> {
    name: &'static str,
    http: &'a Http,
    transport: Transport,
    /// The sockets are there in any case.
    clients: Vec<(String, String, Client)>,
    conversation: Uuid,
    ids: Vec<Uuid>,
}

/// Over what a voice asks.
#[derive(Clone)]
enum Transport {
    Http,
    WebSocket,
    Grpc(Box<Grpc>),
}

impl<'a> Voice<'a> {
    async fn new(name: &'static str, server: &Server, http: &'a Http, transport: Transport) -> Self {
        let mut clients = Vec::new();
        for user in USERS {
            let user = format!("{user}-{name}");
            let token = http.token(&user).await.unwrap();
            let client = Client::connect(&server.url(), &user, &token, Options::default()).await.unwrap().0;
            clients.push((user, token, client));
        }
        Self {
            name,
            http,
            transport,
            clients,
            conversation: Uuid::nil(),
            ids: (0..9).map(|_| Uuid::now_v7()).collect(),
        }
    }

    fn fill(&self, args: &str) -> Value {
        let mut text = args.replace("$C", &self.conversation.to_string()).replace("$K", &format!("key-{}", self.name));
        for (number, id) in self.ids.iter().enumerate() {
            text = text.replace(&format!("$I:{number}"), &id.to_string());
        }
        while let Some(at) = text.find("$U:") {
            let end = at + 3 + text[at + 3..].find('"').unwrap();
            let user = format!("{}-{}", &text[at + 3..end], self.name);
            text.replace_range(at..end, &user);
        }
        serde_json::from_str(&text).unwrap()
    }

    async fn ask(&mut self, who: &str, op: &str, args: &str) -> Value {
        let args = self.fill(args);
        let token = match USERS.iter().position(|user| *user == who) {
            Some(place) => self.clients[place].1.as_str(),
            None => access::key(who),
        };
        let answer = match &self.transport {
            Transport::WebSocket if row(op).websocket => match self.client(who).request(op, args).await {
                Ok(ok) => json!({ "ok": ok }),
                Err(Failure::Refused(refusal)) => {
                    json!({ "error": { "code": refusal.code, "status": refusal.status, "retryable": refusal.retryable,
                    "title": refusal.title, "field": refusal.field } })
                }
                Err(other) => panic!("{op}: {other:?}"),
            },
            // What cannot be said in protobuf is said over HTTP, so that the voices' worlds stay the same.
            Transport::Grpc(grpc) if Grpc::can_say(row(op).op, &args) => {
                match grpc.call(row(op).op, token, &args).await.unwrap() {
                    Ok(ok) => json!({ "ok": ok }),
                    Err(refusal) => {
                        let code = refusal.error["code"].as_str().unwrap();
                        let row = Code::ALL.iter().find(|known| known.row().code == code).unwrap().row();
                        assert_eq!(refusal.status, i32::from(row.grpc), "{op}: {code}");
                        Self::refused(&refusal.error)
                    }
                }
            }
            Transport::Http | Transport::WebSocket | Transport::Grpc(_) => self.over_http(op, token, args).await,
        };
        if op == "conversation.create"
            && self.conversation.is_nil()
            && let Some(id) = answer["ok"]["conversation"]["id"].as_str()
        {
            self.conversation = id.parse().unwrap();
        }
        self.normal(answer)
    }

    fn client(&self, who: &str) -> &Client {
        &self.clients[USERS.iter().position(|user| *user == who).unwrap()].2
    }

    async fn over_http(&self, op: &str, token: &str, args: Value) -> Value {
        let http = row(op).http.unwrap();
        let Value::Object(mut fields) = args else { panic!("arguments are an object") };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut path = http.path.to_owned();
        for (name, value) in fields.clone() {
            let hole = format!("{{{name}}}");
            if path.contains(&hole) {
                path = path.replace(&hole, &in_path(&text(&value)));
                fields.remove(&name);
            }
        }
        let method = Method::from_bytes(http.method.name().as_bytes()).unwrap();
        let body = if method == Method::GET {
            let query: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name}={}", in_path(&text(value)))).collect();
            if !query.is_empty() {
                path = format!("{path}?{}", query.join("&"));
            }
            None
        } else {
            (!fields.is_empty()).then_some(Value::Object(fields))
        };
        let answer = self.http.call(method, &path, Some(token), body.as_ref()).await.unwrap();
        let value = answer.json().unwrap();
        if answer.status < 400 {
            assert_eq!(answer.status, http.status, "{op}");
            return json!({ "ok": value });
        }
        assert_eq!(value["status"], answer.status, "{op}: the problem's status differs from the answer's");
        assert!(value["request_id"].is_string());
        Self::refused(&value)
    }

    /// What of an error is the same whoever asks.
    fn refused(error: &Value) -> Value {
        json!({ "error": { "code": error["code"], "status": error["status"], "retryable": error["retryable"], "title": error["title"],
            "field": error["field"] } })
    }

    /// Without what must differ: times, ids, the names' suffix.
    fn normal(&self, value: Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(
                map.into_iter()
                    // In protobuf, what is null is missing, and so is a list of nothing.
                    .filter(|(_, value)| !value.is_null() && *value != json!([]))
                    .filter(|(key, _)| key != "change" && key != "cursor" && key != "device")
                    .map(|(key, value)| {
                        let value = match key.as_str() {
                            "created_at" | "last_at" | "at" | "edited_at" | "active_at" | "before" | "since"
                            | "logged_out_before" => {
                                json!("T")
                            }
                            "id" | "connection" => json!("ID"),
                            _ => self.normal(value),
                        };
                        (key, value)
                    })
                    .collect::<Map<String, Value>>(),
            ),
            Value::Array(list) => Value::Array(list.into_iter().map(|value| self.normal(value)).collect()),
            Value::String(text) if text == self.conversation.to_string() => json!("C"),
            Value::String(text) => json!(text.strip_suffix(&format!("-{}", self.name)).unwrap_or(&text)),
            other => other,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_the_same_over_every_transport() {
    let home = tempfile::tempdir().unwrap();
    let args = access::keys(home.path());
    let server = super::start(Setup { unlimited: true, args, ..Setup::default() }).await.unwrap();
    let http = Http::new(&server.url());
    let mut over_http = Voice::new("h", &server, &http, Transport::Http).await;
    let mut over_socket = Voice::new("w", &server, &http, Transport::WebSocket).await;
    let mut over_grpc = Voice::new("g", &server, &http, Transport::Grpc(Box::new(Grpc::new(&server.url())))).await;
    let mut walked = HashSet::new();
    // Over gRPC.
    let mut said = HashSet::new();
    let mut refusals = HashSet::new();
    for (step, (who, op, args)) in SCRIPT.iter().chain(OF_SERVERS).enumerate() {
        let (one, other) = (over_http.ask(who, op, args).await, over_socket.ask(who, op, args).await);
        assert_eq!(one, other, "step {step}: {who} {op} {args}: HTTP and WebSocket answer differently");
        let third = over_grpc.ask(who, op, args).await;
        assert_eq!(one, third, "step {step}: {who} {op} {args}: HTTP and gRPC answer differently");
        if Grpc::can_say(row(op).op, &over_grpc.fill(args)) {
            said.insert(*op);
        }
        walked.insert(*op);
        if let Some(code) = one["error"]["code"].as_str() {
            // An operation's own errors stand in its row.
            let known = row(op).errors.iter().chain(chappe_schema::operation::COMMON_ERRORS);
            assert!(
                known.into_iter().any(|known| known.row().code == code),
                "{op} answered {code}, which its row does not name"
            );
            refusals.insert(code.to_owned());
        }
    }
    let missing: Vec<&str> = OPERATIONS
        .iter()
        .filter(|row| row.http.is_some())
        .map(|row| row.name)
        .filter(|name| !walked.contains(name))
        .collect();
    assert!(missing.is_empty(), "operations without a step: {missing:?}");
    assert_eq!(said, walked, "every operation has a step that gRPC can say");
    assert!(refusals.len() > 9, "few errors were met: {refusals:?}");
    assert!(NUMERIC_FIELDS.contains(&"seq"));
}

/// A retry over another transport or connection is the same message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_over_another_transport_is_the_same_message() {
    let server = super::server().await;
    let http = Http::new(&server.url());
    let token = http.token("ada").await.unwrap();
    let (client, _) = Client::connect(&server.url(), "ada", &token, Options::default()).await.unwrap();
    let conversation = client.direct("bob").await.unwrap();
    let id = Uuid::now_v7();
    let send = json!({ "conversation": conversation, "client_msg_id": id, "body": { "text": "once" } });
    let first = client.request("message.send", send.clone()).await.unwrap();
    let path = format!("/v1/conversations/{conversation}/messages");
    let body = json!({ "client_msg_id": id, "body": { "text": "once" } });
    let second = http.call(Method::POST, &path, Some(&token), Some(&body)).await.unwrap();
    assert_eq!(second.status, 201);
    let second = second.json().unwrap();
    let (other, _) = Client::connect(&server.url(), "ada", &token, Options::default()).await.unwrap();
    let third = other.request("message.send", send).await.unwrap();
    assert_eq!(second, third);
    assert_eq!(
        (&first["seq"], &first["created_at"], &second["duplicate"]),
        (&second["seq"], &second["created_at"], &json!(true))
    );
    tokio::time::sleep(Duration::from_millis(1)).await;
}
