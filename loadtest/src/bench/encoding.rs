//! What an event costs to encode, in protobuf and in JSON: once per event and format, however many connections it goes to.

use std::{hint::black_box, sync::Arc, time::Instant};

use chappe_schema::{
    body::Body,
    event::{Event, Fact},
    frame,
    id::{CommandId, ConversationId, DeviceId, UserId},
    mention::Mentions,
    proto,
};
use serde_json::json;
use uuid::Uuid;

use super::{Plan, Row};

const BODY_BYTES: usize = 200;
/// Events of one round; the two formats take turns, so that both meet the same machine.
const ROUND: usize = 10_000;

type Write = fn(&mut Vec<u8>, ConversationId, &Event);

pub(super) fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let (plain, mentioning) = (message(false)?, message(true)?);
    let (json, protobuf): (Write, Write) = (frame::write_event, proto::frame::write_event);
    let [of_json, of_protobuf] = timed(plan.secs, &plain, [json, protobuf]);
    let size = |write: Write, event: &Event| {
        let mut out = Vec::new();
        write(&mut out, ConversationId(Uuid::from_u128(7)), event);
        out.len()
    };
    let mut row = Row {
        name: name.to_owned(),
        load: format!(
            "a message with a {BODY_BYTES} byte body as an event's frame, in this process; the figure is the time for protobuf through that for JSON"
        ),
        unit: "times the time of JSON".to_owned(),
        figure: of_protobuf / of_json,
        aim: "about 1: whoever chooses protobuf costs nobody more".to_owned(),
        ..Row::default()
    };
    row.notes.push(format!(
        "{of_json:.0} ns and {} bytes in JSON, {of_protobuf:.0} ns and {} bytes in protobuf; a delivery's share is that \
         through the number of connections that speak the format",
        size(json, &plain),
        size(protobuf, &plain),
    ));
    let [of_json, of_protobuf] = timed(plan.secs / 2.0, &mentioning, [json, protobuf]);
    row.notes.push(format!("with ten mentions: {of_json:.0} ns in JSON, {of_protobuf:.0} ns in protobuf"));
    Ok(row)
}

/// Nanoseconds per event, by format.
fn timed(secs: f64, event: &Event, writes: [Write; 2]) -> [f64; 2] {
    let conversation = ConversationId(Uuid::from_u128(7));
    let (mut taken, mut rounds) = ([0.0; 2], 0);
    let began = Instant::now();
    let mut out = Vec::with_capacity(4096);
    while began.elapsed().as_secs_f64() < secs {
        for (write, taken) in writes.iter().zip(&mut taken) {
            let round = Instant::now();
            for _ in 0..ROUND {
                out.clear();
                write(&mut out, conversation, black_box(event));
                black_box(&out);
            }
            *taken += round.elapsed().as_secs_f64();
        }
        rounds += 1;
    }
    taken.map(|seconds| seconds * 1e9 / (rounds * ROUND) as f64)
}

fn message(with_mentions: bool) -> anyhow::Result<Event> {
    let user = |name: &str| UserId::new(name).map_err(|malformed| anyhow::anyhow!(malformed.0));
    let body = json!({ "text": "x".repeat(BODY_BYTES - r#"{"text":""}"#.len()) }).to_string();
    let users = (0..10).map(|number| user(&format!("user-{number}"))).collect::<anyhow::Result<Vec<_>>>()?;
    let mentions = with_mentions.then(|| Arc::new(Mentions { users, all: false }));
    Ok(Event {
        seq: 412,
        n: 231,
        created_at: 1_795_381_228_120,
        sender: user("user-1")?,
        device: DeviceId::new("laptop").ok(),
        id: CommandId(Uuid::now_v7()),
        target: 0,
        hash: 0,
        fact: Fact::MessageNew { body: Body::parse(&body).map_err(|error| anyhow::anyhow!("{error}"))?, mentions },
    })
}
