//! The OpenAPI document: paths from the table of operations, fields from the messages of the proto file, errors from the
//! table of errors. Whether the fields are those that the code reads is asked of the code.

use std::collections::{BTreeMap, BTreeSet};

use chappe_schema::{
    command::Command,
    error::{Code, Error},
    id::UserId,
    limit::{
        CREATE_MEMBERS_MAX, DEVICE_ID_BYTES_MAX, KEY_BYTES_MAX, MENTIONS_MAX, REACTION_KEY_BYTES_MAX, REASON_BYTES_MAX,
        RECEIPTS_BATCH_MAX, TITLE_BYTES_MAX, USER_ID_BYTES_MAX,
    },
    operation::{COMMON_ERRORS, HTTP_ERRORS, Http, Identity, Method, OPERATIONS, Op, Operation, Right, Scope},
};
use prost_types::{
    DescriptorProto, FieldDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{examples, golden, proto};

/// Lists that are left out when they are empty; the others are always there.
const OPTIONAL_LISTS: &[&str] = &["Message.reactions", "Mentions.users", "EventData.members"];

/// Fields that are there and null.
const NULL: &[&str] = &["Message.body", "Edit.body", "LastMessage.text"];

/// Fields that may be null where they are.
const NULLABLE: &[&str] = &["EventData.body"];

#[test]
fn the_openapi_document_is_what_the_code_says() {
    let document = Document::new().openapi();
    let mut text = Vec::new();
    let narrow = serde_json::ser::PrettyFormatter::with_indent(b" ");
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut text, narrow)).unwrap();
    text.push(b'\n');
    golden("docs/openapi.json", &text);
}

// === what is read ===

/// A message of the proto file.
struct Message {
    said: String,
    fields: Vec<Field>,
}

struct Field {
    said: String,
    is: FieldDescriptorProto,
    /// What a map's values are.
    values: Option<String>,
}

impl Field {
    fn name(&self) -> &str {
        self.is.name()
    }

    fn is_list(&self) -> bool {
        self.values.is_none() && self.is.label() == Label::Repeated
    }

    /// The message or enum that it is of.
    fn of(&self) -> &str {
        self.values.as_deref().unwrap_or(self.is.type_name()).rsplit('.').next().unwrap_or_default()
    }
}

struct Document {
    messages: BTreeMap<String, Message>,
    /// Words without the first, which nobody says.
    words: BTreeMap<String, (String, Vec<String>)>,
    services: BTreeMap<String, String>,
    schemas: Map<String, Value>,
    responses: Map<String, Value>,
}

impl Document {
    fn new() -> Self {
        let file = proto::file("/chappe.proto");
        let comments = proto::comments(&file);
        let said = |path: &[i32]| comments.get(path).cloned().unwrap_or_default();
        let mut messages = BTreeMap::new();
        for (at, message) in file.message_type.iter().enumerate() {
            let fields = message.field.iter().enumerate().map(|(number, field)| Field {
                said: said(&[4, at as i32, 2, number as i32]),
                is: field.clone(),
                values: map_values(message, field),
            });
            let message_said = said(&[4, at as i32]);
            messages.insert(message.name().to_owned(), Message { said: message_said, fields: fields.collect() });
        }
        let mut words = BTreeMap::new();
        for (at, word) in file.enum_type.iter().enumerate() {
            let prefix = word.value[0].name().trim_end_matches("UNSPECIFIED").to_owned();
            let names = word.value[1..].iter().map(|value| value.name()[prefix.len()..].to_ascii_lowercase()).collect();
            words.insert(word.name().to_owned(), (said(&[5, at as i32]), names));
        }
        let services = file.service.iter().enumerate();
        let services = services.map(|(at, service)| (service.name().to_owned(), said(&[6, at as i32]))).collect();
        Self { messages, words, services, schemas: Map::new(), responses: Map::new() }
    }
}

fn map_values(message: &DescriptorProto, field: &FieldDescriptorProto) -> Option<String> {
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
    })?;
    Some(entry.field[1].type_name().to_owned())
}

// === schemas ===

impl Document {
    /// A reference to a message, which becomes a component.
    fn reference(&mut self, name: &str) -> Value {
        if !self.schemas.contains_key(name) {
            // It may lead back to itself.
            self.schemas.insert(name.to_owned(), Value::Null);
            let is_reply = OPERATIONS.iter().any(|row| row.op.rpc().reply == name);
            let schema = if let Some((said, names)) = self.words.get(name) {
                json!({ "type": "string", "description": said, "enum": names })
            } else {
                let mut schema = self.object(name, |_| true);
                if is_reply {
                    let said = "Fields of the request that nobody knows: usually a typo.";
                    schema["properties"]["ignored"] =
                        json!({ "type": "array", "items": { "type": "string" }, "description": said });
                }
                schema
            };
            self.schemas.insert(name.to_owned(), schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// The object that a message is in JSON, with those of its fields that `holds` tells.
    fn object(&mut self, name: &str, holds: impl Fn(&str) -> bool) -> Value {
        let said = self.messages[name].said.clone();
        let is_request = name.ends_with("Request");
        let (mut properties, mut required) = (Map::new(), Vec::new());
        let count = self.messages[name].fields.len();
        for at in 0..count {
            let field = &self.messages[name].fields[at];
            if !holds(field.name()) {
                continue;
            }
            let (path, field_name) = (format!("{name}.{}", field.name()), field.name().to_owned());
            let is_missing = if field.is_list() {
                (is_request && path != "PresenceWatchRequest.users") || OPTIONAL_LISTS.contains(&path.as_str())
            } else {
                field.is.proto3_optional() && !NULL.contains(&path.as_str())
            };
            if !is_missing {
                required.push(json!(field_name));
            }
            let schema = self.field(name, at);
            properties.insert(field_name, schema);
        }
        let mut schema = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            schema["required"] = Value::Array(required);
        }
        if !said.is_empty() {
            schema["description"] = json!(said);
        }
        if name.ends_with("UpdateRequest") && schema.get("required").is_none() {
            schema["minProperties"] = json!(1);
        }
        schema
    }

    fn field(&mut self, message: &str, at: usize) -> Value {
        let field = &self.messages[message].fields[at];
        let (path, said, is_list, of) =
            (format!("{message}.{}", field.name()), field.said.clone(), field.is_list(), field.of().to_owned());
        let (name, kind, is_map) = (field.name().to_owned(), field.is.r#type(), field.values.is_some());
        let mut one = match kind {
            Type::Bool => json!({ "type": "boolean" }),
            Type::Uint64 | Type::Uint32 => {
                let least = u32::from(name == "limit");
                json!({ "type": "integer", "format": "int64", "minimum": least, "maximum": i64::MAX })
            }
            Type::String => text(message, &name),
            Type::Message if of == "Timestamp" => json!({ "type": "string", "format": "date-time" }),
            Type::Message if is_map => {
                let values = self.reference(&of);
                json!({ "type": "object", "additionalProperties": values, "propertyNames": { "format": "uuid" },
                    "minProperties": 1, "maxProperties": RECEIPTS_BATCH_MAX })
            }
            Type::Message | Type::Enum => self.reference(&of),
            other => panic!("{path}: {other:?} has no schema yet"),
        };
        if NULL.contains(&path.as_str()) || NULLABLE.contains(&path.as_str()) {
            one["type"] = json!([one["type"].clone(), "null"]);
        }
        let mut schema = if is_list { json!({ "type": "array", "items": one }) } else { one };
        let most = match path.as_str() {
            "Mentions.users" => Some(MENTIONS_MAX),
            "ConversationCreateRequest.members" => Some(CREATE_MEMBERS_MAX),
            "PresenceWatchRequest.users" => Some(chappe_schema::limit::PRESENCE_WATCHES_MAX),
            _ => None,
        };
        if let Some(most) = most {
            schema["maxItems"] = json!(most);
        }
        if !said.is_empty() {
            schema["description"] = json!(said);
        }
        schema
    }
}

/// A text, by its name: a name means one thing.
fn text(message: &str, name: &str) -> Value {
    let of_user = || json!({ "type": "string", "minLength": 1, "maxLength": USER_ID_BYTES_MAX, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$" });
    let uuid = || json!({ "type": "string", "format": "uuid" });
    match name {
        // Generators of clients take a plain object for one without fields.
        "body" | "data" => json!({ "type": "object", "additionalProperties": true }),
        "conversation" | "client_msg_id" => uuid(),
        "id" if message != "User" => uuid(),
        "idempotency_key" if message == "ConversationCreateRequest" => {
            json!({ "type": "string", "maxLength": KEY_BYTES_MAX, "pattern": "^[ -~]*$" })
        }
        "idempotency_key" => uuid(),
        "user" | "users" | "sender" | "with" | "members" | "id" => of_user(),
        "device" => {
            json!({ "type": "string", "minLength": 1, "maxLength": DEVICE_ID_BYTES_MAX, "pattern": "^[A-Za-z0-9._:-]+$" })
        }
        "key" => {
            json!({ "type": "string", "minLength": 1, "maxLength": REACTION_KEY_BYTES_MAX, "pattern": "^[^\\s\\x00-\\x1f\\x7f-\\x9f]+$" })
        }
        "title" => json!({ "type": "string", "maxLength": TITLE_BYTES_MAX }),
        "reason" => json!({ "type": "string", "maxLength": REASON_BYTES_MAX }),
        _ => json!({ "type": "string" }),
    }
}

// === paths ===

/// Under which prefix an operation of users is offered to server-side callers.
const AS_USER: &str = "/v1/admin/as/{as}";

impl Document {
    fn openapi(mut self) -> Value {
        let mut paths = Map::new();
        for row in OPERATIONS {
            let Some(http) = row.http else { continue };
            let method = http.method.name().to_ascii_lowercase();
            let operation = self.operation(row, &http, false);
            put(&mut paths, http.path, &method, operation);
            if row.is_for_users() && row.scope().is_some() {
                let path = format!("{AS_USER}{}", http.path.strip_prefix("/v1").unwrap());
                let operation = self.operation(row, &http, true);
                put(&mut paths, &path, &method, operation);
            }
        }
        self.others(&mut paths);
        let error = self.reference("Error");
        assert!(error.is_object());
        self.schemas["Error"]["properties"]["code"] = json!({ "type": "string", "description": "What programs compare.", "enum": Code::ALL.iter().map(|code| code.row().code).collect::<Vec<_>>() });
        let tags: Vec<Value> =
            self.services.iter().map(|(name, said)| json!({ "name": name, "description": said })).collect();
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Chappe",
                "version": env!("CARGO_PKG_VERSION"),
                "description": ABOUT,
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "tags": tags,
            "security": [{ "token": [] }],
            "paths": paths,
            "components": {
                "schemas": self.schemas,
                "responses": self.responses,
                "headers": headers(),
                "securitySchemes": {
                    "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A user's token: `sub` is the user." },
                    "api_key": { "type": "http", "scheme": "bearer", "description": "A server-side caller's API key." },
                },
            },
        })
    }

    /// One operation: for users, or for a server-side caller on a user's behalf.
    fn operation(&mut self, row: &Operation, http: &Http, on_behalf: bool) -> Value {
        let rpc = row.op.rpc();
        let names: Vec<String> =
            self.messages[rpc.request].fields.iter().map(|field| field.name().to_owned()).collect();
        let has_key = matches!(row.identity, Identity::Key | Identity::CreationKey);
        let in_path = |name: &str| http.path.contains(&format!("{{{name}}}"));
        let in_query = |name: &str| http.query.contains(&name);
        let in_header = |name: &str| has_key && name == "idempotency_key";
        let in_body = |name: &str| !in_path(name) && !in_query(name) && !in_header(name);
        let mut parameters = Vec::new();
        if on_behalf {
            parameters.push(json!({ "name": "as", "in": "path", "required": true, "description": "The user on whose behalf it is asked.",
                "schema": text("", "user"), "example": examples::field("as") }));
        }
        for (at, name) in names.iter().enumerate() {
            let (place, shown) = match name.as_str() {
                name if in_path(name) => ("path", name),
                name if in_query(name) => ("query", name),
                name if in_header(name) => ("header", "Idempotency-Key"),
                _ => continue,
            };
            let mut schema = self.field(rpc.request, at);
            let said = schema.as_object_mut().unwrap().remove("description");
            let example =
                examples::cursor(row.op).filter(|_| name == "cursor").unwrap_or_else(|| examples::field(name));
            let mut parameter = json!({ "name": shown, "in": place, "required": place == "path", "schema": schema, "example": example });
            if let Some(said) = said {
                parameter["description"] = said;
            }
            parameters.push(parameter);
        }
        let mut operation = json!({
            "operationId": if on_behalf { format!("as.{}", row.name) } else { row.name.to_owned() },
            "tags": [rpc.method.unwrap().service],
            "summary": row.summary,
            "description": self.about(row, on_behalf),
            "parameters": parameters,
        });
        if names.iter().any(|name| in_body(name)) {
            assert_ne!(http.method, Method::Get, "{}: GET has no body", row.name);
            let component = format!("{}Body", rpc.request.trim_end_matches("Request"));
            let schema = self.object(rpc.request, in_body);
            let required = schema.get("required").is_some() || schema.get("minProperties").is_some();
            self.schemas.insert(component.clone(), schema);
            operation["requestBody"] = json!({ "required": required, "content": { "application/json": {
                "schema": { "$ref": format!("#/components/schemas/{component}") }, "example": examples::request(row.op) } } });
        }
        if on_behalf || !row.is_for_users() {
            operation["security"] = json!([{ "api_key": [] }]);
        }
        let reply = self.reference(rpc.reply);
        let mut responses = Map::new();
        responses.insert(
            http.status.to_string(),
            json!({ "description": "Done.", "headers": limited(),
            "content": { "application/json": { "schema": reply, "example": examples::reply(row.op) } } }),
        );
        let mut codes: Vec<Code> = row.errors.iter().chain(COMMON_ERRORS).chain(HTTP_ERRORS).copied().collect();
        if on_behalf {
            codes.push(Code::Forbidden);
        }
        self.refusals(&codes, &mut responses);
        operation["responses"] = Value::Object(responses);
        operation
    }

    fn about(&self, row: &Operation, on_behalf: bool) -> String {
        let who = match row.right {
            _ if on_behalf => format!(
                "For a server-side caller with the scope `{}`; rights are those of the user.",
                row.scope().map_or("", Scope::name)
            ),
            Right::Anyone => "For anybody with a token.".to_owned(),
            Right::Member => "For members.".to_owned(),
            Right::Author => "For the message's author.".to_owned(),
            Right::AuthorOrAdmin => "For the message's author, admins and owners.".to_owned(),
            Right::Admin => "For admins and owners.".to_owned(),
            Right::Owner => "For owners.".to_owned(),
            Right::Server(scope) => format!("For a server-side caller with the scope `{}`.", scope.name()),
        };
        let method = row.op.rpc().method.unwrap();
        let elsewhere =
            if row.websocket && !on_behalf { format!(" WebSocket: `{}`.", row.name) } else { String::new() };
        format!("{who}{elsewhere} gRPC: `{}`.", method.path().trim_start_matches('/'))
    }

    /// Errors by their status: one component for each set of codes.
    fn refusals(&mut self, codes: &[Code], responses: &mut Map<String, Value>) {
        let mut by_status: BTreeMap<u16, BTreeSet<&'static str>> = BTreeMap::new();
        for code in codes {
            by_status.entry(code.row().http).or_default().insert(code.row().code);
        }
        for (status, codes) in by_status {
            let component = format!("{status}-{}", codes.iter().copied().collect::<Vec<_>>().join("-"));
            let row = |code: &str| Code::ALL.iter().find(|known| known.row().code == code).unwrap();
            if !self.responses.contains_key(&component) {
                let said: Vec<String> =
                    codes.iter().map(|code| format!("`{code}`: {}", row(code).row().title)).collect();
                let examples: Map<String, Value> =
                    codes.iter().map(|code| ((*code).to_owned(), json!({ "value": occurrence(*row(code)) }))).collect();
                let mut response = json!({
                    "description": said.join("; "),
                    "content": { "application/problem+json": {
                        "schema": { "allOf": [{ "$ref": "#/components/schemas/Error" }, { "properties": { "code": { "enum": codes } } }] },
                        "examples": examples } },
                });
                if matches!(status, 429 | 503) {
                    response["headers"] = json!({ "Retry-After": { "$ref": "#/components/headers/Retry-After" } });
                }
                if status == 401 {
                    response["headers"] =
                        json!({ "WWW-Authenticate": { "$ref": "#/components/headers/WWW-Authenticate" } });
                }
                self.responses.insert(component.clone(), response);
            }
            responses.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{component}") }));
        }
    }

    /// What is no operation of the table.
    fn others(&mut self, paths: &mut Map<String, Value>) {
        let mut responses = Map::new();
        let token = json!({ "token": "eyJ…", "user": "ada", "expires_at": "2026-11-23T21:00:28.123Z" });
        let issued = json!({ "type": "object", "required": ["token", "user", "expires_at"], "properties": {
            "token": { "type": "string" }, "user": text("", "user"), "expires_at": { "type": "string", "format": "date-time" } } });
        responses.insert(
            "201".into(),
            json!({ "description": "Done.", "headers": limited(),
            "content": { "application/json": { "schema": issued, "example": token } } }),
        );
        let codes =
            [Code::Malformed, Code::Invalid, Code::TooLarge, Code::Forbidden, Code::RateLimited, Code::Internal];
        self.refusals(&codes.iter().chain(HTTP_ERRORS).copied().collect::<Vec<_>>(), &mut responses);
        put(
            paths,
            "/v1/dev/tokens",
            "post",
            json!({
            "operationId": "dev.token", "tags": ["Server"], "summary": "A token for whoever asks.", "security": [],
            "description": "On a server that only its own machine can reach, unless it has a key. Elsewhere there is nothing here.",
            "requestBody": { "required": true, "content": { "application/json": {
                "schema": { "type": "object", "required": ["user"], "additionalProperties": false, "properties": {
                    "user": text("", "user"), "device": text("", "device"),
                    "ttl_seconds": { "type": "integer", "format": "int64", "minimum": 0, "maximum": i64::MAX } } },
                "example": { "user": "ada", "device": "laptop" } } } },
            "responses": responses }),
        );
        let mut responses = Map::new();
        responses.insert(
            "101".into(),
            json!({ "description": "The connection is a WebSocket now: see docs/api.md for its frames." }),
        );
        self.refusals(
            &[&[Code::UpgradeRequired, Code::Malformed, Code::Forbidden, Code::MethodNotAllowed], AT_THE_DOOR].concat(),
            &mut responses,
        );
        put(
            paths,
            "/v1/ws",
            "get",
            json!({
            "operationId": "websocket", "tags": ["Server"], "summary": "Live: every operation and every event over a WebSocket.", "security": [],
            "description": "The token stands in the first frame, `connect`.", "responses": responses,
            "parameters": [{ "name": "Sec-WebSocket-Protocol", "in": "header", "required": false, "schema": { "type": "string" }, "example": "chappe.v1.json" }] }),
        );
        let version = env!("CARGO_PKG_VERSION");
        let object = json!({ "type": "object", "additionalProperties": true });
        let greeting = json!({ "service": "chappe", "version": version, "websocket": "/v1/ws", "http": "/v1", "openapi": "/openapi.json", "docs": "/docs" });
        let words: Map<String, Value> = greeting
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| (name.clone(), json!({ "type": "string" })))
            .collect();
        let names: Vec<&String> = words.keys().collect();
        let greeted = json!({ "type": "object", "required": names, "properties": words });
        let document = json!({ "openapi": "3.1.0", "info": { "title": "Chappe", "version": version }, "paths": {} });
        for (path, operation, said, media, schema, example) in [
            (
                "/",
                "greeting",
                "What this is. Browsers of a server with development tokens get a page to try it with.",
                "application/json",
                greeted,
                greeting,
            ),
            ("/openapi.json", "openapi", "This document.", "application/json", object, document),
            (
                "/docs",
                "docs",
                "This document as a page to be read.",
                "text/html",
                json!({ "type": "string" }),
                json!("<!doctype html>…"),
            ),
        ] {
            let done =
                json!({ "description": "Done.", "content": { media: { "schema": schema, "example": example } } });
            let mut responses = Map::new();
            responses.insert("200".into(), done);
            self.refusals(AT_THE_DOOR, &mut responses);
            put(
                paths,
                path,
                "get",
                json!({ "operationId": operation, "tags": ["Server"], "summary": said, "security": [], "responses": responses }),
            );
        }
        self.services.insert("Server".into(), "The server itself.".into());
    }
}

/// What whoever comes may be told before anything is looked at: as many as fit are here, they come too often, or with too
/// much of a head.
const AT_THE_DOOR: &[Code] = &[Code::RateLimited, Code::HeadTooLarge, Code::Overloaded];

const ABOUT: &str = "A chat backend: messages are acknowledged after they are on the disk, each has one position in its conversation, \
and a client that was away is told exactly what it missed. docs/api.md explains the rules behind the operations: positions, ids that make \
repetitions safe, receipts, presence. Fields that nobody knows are ignored and named in the answer's `ignored`. Lengths are counted in \
bytes of UTF-8.";

fn put(paths: &mut Map<String, Value>, path: &str, method: &str, operation: Value) {
    let item = paths.entry(path).or_insert_with(|| json!({}));
    assert!(item.get(method).is_none(), "{method} {path} stands twice");
    item[method] = operation;
}

/// An occurrence of an error, as it is shown.
fn occurrence(code: Code) -> Value {
    let mut error = Error::new(code);
    if code == Code::Invalid {
        error = Error::invalid("seq", "expected a whole number, 0 or more");
    }
    if matches!(code, Code::RateLimited | Code::Overloaded) {
        error = error.after_ms(800);
    }
    serde_json::to_value(error.problem("6a9d9a09-8")).unwrap()
}

fn limited() -> Value {
    json!({
        "RateLimit-Limit": { "$ref": "#/components/headers/RateLimit-Limit" },
        "RateLimit-Remaining": { "$ref": "#/components/headers/RateLimit-Remaining" },
        "RateLimit-Reset": { "$ref": "#/components/headers/RateLimit-Reset" },
        "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" },
    })
}

fn headers() -> Value {
    let number = |said: &str| json!({ "description": said, "schema": { "type": "integer", "minimum": 0 } });
    json!({
        "RateLimit-Limit": number("The budget, where there is one."),
        "RateLimit-Remaining": number("What is left of it."),
        "RateLimit-Reset": number("Seconds until it is whole again."),
        "Retry-After": number("Seconds after which to try again, where they are known."),
        "WWW-Authenticate": { "description": "What is expected.", "schema": { "type": "string" } },
        "X-Request-Id": { "description": "Under which the request stands in the server's log.", "schema": { "type": "string" } },
    })
}

// === whether it is true ===

fn decode(op: Op, arguments: &Value, ignored: &mut Vec<String>) -> Result<Command, Error> {
    let caller = UserId::new("ada").unwrap();
    Command::decode(op, &caller, &arguments.to_string(), ignored).map(|decoded| decoded.command)
}

/// Everything that an operation may be given, its path and query included.
pub(crate) fn arguments(op: Op) -> Value {
    let mut arguments = examples::request(op);
    for field in &Document::new().messages[op.rpc().request].fields {
        let name = field.name();
        // These exclude each other.
        let is_left_out = matches!(name, "with" | "after" | "around") && op != Op::EventList;
        if arguments.get(name).is_none() && !is_left_out {
            arguments[name] =
                examples::cursor(op).filter(|_| name == "cursor").unwrap_or_else(|| examples::field(name));
        }
    }
    arguments
}

/// The fields of the document are those that the code reads, no more and no less: unknown ones are named by the code itself.
#[test]
fn every_field_is_read_and_every_field_that_is_read_is_there() {
    let document = Document::new();
    let universe: BTreeSet<&str> =
        document.messages.values().flat_map(|message| message.fields.iter().map(Field::name)).collect();
    for row in OPERATIONS {
        let fields = &document.messages[row.op.rpc().request].fields;
        for name in &universe {
            let mut ignored = Vec::new();
            let _ = decode(row.op, &json!({ *name: null }), &mut ignored);
            let is_read = !ignored.contains(&(*name).to_owned());
            let is_there = fields.iter().any(|field| field.name() == *name);
            assert_eq!(is_read, is_there, "{}: `{name}` is read: {is_read}, is in the document: {is_there}", row.name);
        }
    }
}

/// What the document calls required is refused when it is missing, and what it does not is not.
#[test]
fn required_is_what_the_code_requires() {
    let mut document = Document::new();
    for row in OPERATIONS {
        let request = row.op.rpc().request;
        let all = arguments(row.op);
        let mut ignored = Vec::new();
        if let Err(error) = decode(row.op, &all, &mut ignored) {
            panic!("{}: {all}: {error}", row.name);
        }
        assert!(ignored.is_empty(), "{}: {ignored:?}", row.name);
        let schema = document.object(request, |_| true);
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in all.as_object().unwrap().keys() {
            let mut without = all.clone();
            without.as_object_mut().unwrap().remove(name);
            let refused =
                decode(row.op, &without, &mut Vec::new()).err().filter(|error| error.detail.contains("missing"));
            assert_eq!(
                refused.is_some(),
                required.contains(&json!(name)),
                "{} without `{name}`: {refused:?}",
                row.name
            );
        }
    }
}

/// A request and a reply say the same in protobuf as in JSON.
#[test]
fn every_example_is_the_same_in_both_forms() {
    for row in OPERATIONS {
        let rpc = row.op.rpc();
        let asked = arguments(row.op);
        let bytes = rpc.request(asked.to_string().as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", row.name));
        let json: Value = serde_json::from_str(&rpc.arguments(&bytes).unwrap()).unwrap();
        assert_eq!(json, asked, "{}", row.name);
        let answered = examples::reply(row.op);
        let bytes = rpc.reply(answered.to_string().as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", row.name));
        let json: Value = serde_json::from_str(&rpc.answer(&bytes).unwrap()).unwrap();
        assert_eq!(json, without_nulls(answered), "{}", row.name);
    }
}

/// In protobuf, what is null is missing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What is answered has what the document promises, and nothing that it does not know.
#[test]
fn every_example_of_a_reply_fits_its_schema() {
    let mut document = Document::new();
    for row in OPERATIONS {
        document.reference(row.op.rpc().reply);
    }
    for row in OPERATIONS {
        check(&document, row.op.rpc().reply, &examples::reply(row.op), row.name);
    }
}

fn check(document: &Document, message: &str, value: &Value, at: &str) {
    let schema = &document.schemas[message];
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{at}: {message}.{name} is missing");
    }
    for (name, value) in value.as_object().unwrap() {
        let field = document.messages[message].fields.iter().find(|field| field.name() == name);
        let field = field.unwrap_or_else(|| panic!("{at}: {message} has no field `{name}`"));
        let is_object = field.is.r#type() == Type::Message && field.of() != "Timestamp";
        match value {
            Value::Array(items) if is_object => items.iter().for_each(|item| check(document, field.of(), item, at)),
            Value::Object(_) if is_object => check(document, field.of(), value, at),
            _ => {}
        }
    }
}
