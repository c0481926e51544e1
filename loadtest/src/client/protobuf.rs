//! The words of a session in protobuf: its lines become `ClientFrame`s, and `ServerFrame`s become lines.
//!
//! A session speaks JSON whatever goes over the wire, so that what a crowd in protobuf is promised is judged by the same code.
//! What that costs is the tester's: its share of the CPU says more than in JSON, and the server's is what it is.

use std::collections::BTreeMap;

use chappe_schema::{
    operation::Op,
    proto::v1::{self, server_frame::Payload},
};
use prost::{
    Message,
    encoding::{self, DecodeContext, WireType},
};
use serde::{Deserialize, Serialize};

use super::line::{self, Fields};

/// Fields of a `ClientFrame` that are no operations.
const ID: u32 = 1;
const CONNECT: u32 = 2;
const HEARTBEAT: u32 = 3;

/// The `ClientFrame` that says what a line says.
pub(super) fn said(line: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(line.len());
    for (name, value) in Fields::new(line) {
        let (field, payload) = match name {
            b"id" => {
                encoding::uint64::encode(ID, &line::number(value)?, &mut frame);
                continue;
            }
            b"connect" => (CONNECT, connect(value)?),
            b"heartbeat" => (HEARTBEAT, Vec::new()),
            name => {
                let rpc = Op::named(std::str::from_utf8(name).ok()?)?.rpc();
                (rpc.field, rpc.request(value).ok()?)
            }
        };
        encoding::encode_key(field, WireType::LengthDelimited, &mut frame);
        encoding::encode_varint(payload.len() as u64, &mut frame);
        frame.extend_from_slice(&payload);
    }
    Some(frame)
}

/// Positions are pairs in JSON.
fn connect(json: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Connect {
        token: String,
        device: Option<String>,
        cursor: Option<String>,
        #[serde(default)]
        positions: BTreeMap<String, (String, u64)>,
    }
    let said: Connect = serde_json::from_slice(json).ok()?;
    let position = |(conversation, (generation, seq))| (conversation, v1::ClientPosition { generation, seq });
    let connect = v1::Connect {
        token: said.token,
        device: said.device,
        cursor: said.cursor,
        positions: said.positions.into_iter().map(position).collect(),
    };
    Some(connect.encode_to_vec())
}

/// The line that says what a `ServerFrame` says.
pub(super) fn heard(frame: &[u8]) -> Option<Vec<u8>> {
    let (id, field, payload) = taken_apart(frame)?;
    let answer = |ok: &str| Some(format!(r#"{{"id":{},"ok":{ok}}}"#, id?).into_bytes());
    if let Some(op) = Op::of_field(field) {
        return answer(&op.rpc().answer(payload).ok()?);
    }
    match v1::ServerFrame::decode(frame).ok()?.payload? {
        Payload::Hello(hello) => word("hello", &hello),
        Payload::Connected(connected) => answer(&serde_json::to_string(&connected).ok()?),
        Payload::Done(_) => answer("{}"),
        Payload::Error(error) => {
            let error = serde_json::to_string(&error).ok()?;
            Some(match id {
                Some(id) => format!(r#"{{"id":{id},"error":{error}}}"#).into_bytes(),
                None => format!(r#"{{"error":{error}}}"#).into_bytes(),
            })
        }
        Payload::Event(event) => serde_json::to_vec(&event).ok(),
        Payload::CaughtUp(position) => word("caught_up", &position),
        Payload::Resync(position) => word("resync", &position),
        Payload::GoingAway(going) => word("going_away", &going),
        Payload::Heartbeat(heartbeat) => word("heartbeat", &heartbeat),
        Payload::InboxChanged(changed) => event("inbox.changed", &changed),
        Payload::ReceiptUpdated(updated) => event("receipt.updated", &updated),
        Payload::PresenceChanged(changed) => event("presence.changed", &changed),
        Payload::TypingStarted(changed) => event("typing.started", &changed),
        Payload::TypingStopped(changed) => event("typing.stopped", &changed),
        // Replies of operations were recognised by their field.
        _ => None,
    }
}

/// A frame's id, and its payload with the number of its field.
fn taken_apart(mut bytes: &[u8]) -> Option<(Option<u64>, u32, &[u8])> {
    let (mut id, mut payload) = (None, None);
    while !bytes.is_empty() {
        match encoding::decode_key(&mut bytes).ok()? {
            (ID, WireType::Varint) => id = Some(encoding::decode_varint(&mut bytes).ok()?),
            (field, WireType::LengthDelimited) => {
                let length = usize::try_from(encoding::decode_varint(&mut bytes).ok()?).ok()?;
                let (inside, rest) = bytes.split_at_checked(length)?;
                payload = Some((field, inside));
                bytes = rest;
            }
            (field, wire) => encoding::skip_field(wire, field, &mut bytes, DecodeContext::default()).ok()?,
        }
    }
    let (field, payload) = payload?;
    Some((id, field, payload))
}

fn word(name: &str, said: &impl Serialize) -> Option<Vec<u8>> {
    Some(format!(r#"{{"{name}":{}}}"#, serde_json::to_string(said).ok()?).into_bytes())
}

fn event(name: &str, said: &impl Serialize) -> Option<Vec<u8>> {
    let said = serde_json::to_string(said).ok()?;
    let comma = if said == "{}" { "" } else { "," };
    Some(format!(r#"{{"event":"{name}"{comma}{}"#, said.strip_prefix('{')?).into_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use chappe_schema::proto::frame::{self, Answer};

    #[test]
    fn the_server_reads_what_a_session_says() {
        for line in [
            r#"{"id":7,"heartbeat":{}}"#,
            r#"{"heartbeat":{}}"#,
            r#"{"id":1,"connect":{"token":"t","device":"d","positions":{"01890a5d-ac96-774b-bcce-b302099a8057":["g",4]},"cursor":"c"}}"#,
            r#"{"id":2,"message.send":{"conversation":"01890a5d-ac96-774b-bcce-b302099a8057","client_msg_id":"01890a5d-ac96-774b-bcce-b302099a8058","body":{"text":"a", "n":1.50}}}"#,
        ] {
            assert_eq!(frame::client_frame(&said(line.as_bytes()).unwrap()).unwrap(), line);
        }
        assert_eq!(said(br#"{"id":2,"message.fly":{}}"#), None);
    }

    #[test]
    fn a_session_reads_what_the_server_says() {
        for (line, answer) in [
            (
                r#"{"hello":{"connection":"1","generation":"g","heartbeat_ms":25000,"limits":{},"features":[]}}"#,
                Answer::Done,
            ),
            (
                r#"{"id":1,"ok":{"user":"ada","conversations":{"c":{"recovered":true,"head":4,"n":3}}}}"#,
                Answer::Connect,
            ),
            (r#"{"id":2,"ok":{"seq":4,"n":3,"created_at":"2026-11-23T21:00:28.123Z"}}"#, Answer::Op(Op::MessageSend)),
            (r#"{"id":3,"ok":{}}"#, Answer::Op(Op::ConversationClose)),
            (
                r#"{"id":4,"error":{"code":"forbidden","status":403,"title":"t","retryable":true,"retry_after_ms":5}}"#,
                Answer::Done,
            ),
            (r#"{"error":{"code":"auth.expired","status":401,"title":"t","retryable":false}}"#, Answer::Done),
            (
                r#"{"event":"message.new","conversation":"c","seq":4,"n":3,"sender":"ada","id":"i","data":{"body":{"text":"a", "n":1.50}}}"#,
                Answer::Done,
            ),
            (r#"{"event":"typing.started","conversation":"c","sender":"ada","data":{}}"#, Answer::Done),
            (r#"{"caught_up":{"conversation":"c","head":4}}"#, Answer::Done),
            (r#"{"resync":{"conversation":"c","head":4}}"#, Answer::Done),
            (r#"{"going_away":{"reconnect_after_ms":400}}"#, Answer::Done),
            (r#"{"heartbeat":{"cursor":"c"}}"#, Answer::Done),
        ] {
            let mut bytes = Vec::new();
            frame::server_frame(line.as_bytes(), answer, &mut bytes).unwrap();
            let heard = String::from_utf8(heard(&bytes).unwrap()).unwrap();
            let said: serde_json::Value = serde_json::from_str(line).unwrap();
            let found: serde_json::Value = serde_json::from_str(&heard).unwrap();
            // What has a default in protobuf is there in any case.
            for (name, value) in said.as_object().unwrap() {
                match value.as_object() {
                    Some(fields) => fields.iter().for_each(|(field, value)| match field.as_str() {
                        "limits" | "features" | "conversations" => {}
                        field => assert_eq!(&found[name][field], value, "{heard}"),
                    }),
                    None => assert_eq!(&found[name], value, "{heard}"),
                }
            }
            // Bodies stay as they are: their bytes are what the oracle compares.
            assert_eq!(heard.contains(r#"{"text":"a", "n":1.50}"#), line.contains("1.50"), "{heard}");
            assert!(line::Line::parse(heard.as_bytes()).is_some(), "{heard}");
        }
        assert_eq!(heard(b"\xff"), None);
    }
}
