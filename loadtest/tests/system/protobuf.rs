//! A connection that speaks protobuf, as a WebSocket and as a stream of gRPC, beside one that speaks JSON: the same people,
//! the same words, through a crash of the server.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use chappe_loadtest::{
    client::{Client, Options, Speech, Stream as JsonStream, Target, http::Http},
    crowd::{Crowd, Habits, Manner, Pace, Person},
    history::History,
    oracle::{Limits, Oracle},
    server::Server,
};
use chappe_schema::{
    operation::Op,
    proto::v1::{self, client_frame, server_frame::Payload},
};
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request,
    body::{Bytes, Frame},
};
use hyper_util::{client::legacy, rt::TokioExecutor};
use prost::{
    Message as _,
    encoding::{self, WireType},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tokio_tungstenite::{connect_async, tungstenite};
use tungstenite::{Message, client::IntoClientRequest};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(30);

/// What carries the frames.
#[derive(Clone, Copy, Debug)]
enum Way {
    WebSocket,
    Grpc,
}

/// One connection. It ends when this is dropped.
struct Live {
    says: UnboundedSender<Vec<u8>>,
    hears: UnboundedReceiver<Vec<u8>>,
    /// What came while something else was waited for.
    before: VecDeque<v1::ServerFrame>,
    last_id: u64,
    generation: String,
}

async fn websocket(url: &str, mut said: UnboundedReceiver<Vec<u8>>, heard: UnboundedSender<Vec<u8>>) {
    let mut request = format!("{}/v1/ws", url.replace("http", "ws")).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chappe.v1.protobuf".parse().unwrap());
    let (socket, answer) = connect_async(request).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chappe.v1.protobuf");
    let (mut to_server, mut from_server) = socket.split();
    tokio::spawn(async move {
        while let Some(frame) = said.recv().await {
            if to_server.send(Message::binary(frame)).await.is_err() {
                return;
            }
        }
        let _ = to_server.close().await;
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_server.next().await {
            match message {
                Message::Binary(frame) => drop(heard.send(frame.to_vec())),
                Message::Text(text) => panic!("text: {text}"),
                _ => {}
            }
        }
    });
}

async fn grpc(url: &str, said: UnboundedReceiver<Vec<u8>>, heard: UnboundedSender<Vec<u8>>) {
    let client = legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let frames = stream::unfold(said, async |mut said| {
        let frame: Vec<u8> = said.recv().await?;
        let mut message = vec![0];
        message.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        message.extend_from_slice(&frame);
        Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(message))), said))
    });
    let request = Request::post(format!("{url}/chappe.v1.Realtime/Connect"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(frames)))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    tokio::spawn(async move {
        // The client lives as long as its stream.
        let _client = client;
        let mut bytes = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { return };
            bytes.extend_from_slice(&data);
            while let Some(length) = bytes.get(1..5) {
                let end = 5 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
                let Some(message) = bytes.get(5..end) else { break };
                let _ = heard.send(message.to_vec());
                bytes.drain(..end);
            }
        }
    });
}

impl Live {
    /// Connects with these positions; what `connect` was answered.
    async fn connect(way: Way, url: &str, token: &str, positions: &[(Uuid, &str, u64)]) -> (Self, v1::Connected) {
        let (says, said) = unbounded_channel();
        let (heard, hears) = unbounded_channel();
        match way {
            Way::WebSocket => websocket(url, said, heard).await,
            Way::Grpc => grpc(url, said, heard).await,
        }
        let mut live = Self { says, hears, before: VecDeque::new(), last_id: 1, generation: String::new() };
        let Some(Payload::Hello(hello)) = live.frame().await.payload else { panic!("the server says hello first") };
        live.generation = hello.generation;
        let position = |generation: &str, seq| v1::ClientPosition { generation: generation.to_owned(), seq };
        let positions =
            positions.iter().map(|(group, generation, seq)| (group.to_string(), position(generation, *seq)));
        let connect = v1::Connect { token: token.to_owned(), positions: positions.collect(), ..Default::default() };
        let payload = Some(client_frame::Payload::Connect(connect));
        live.says.send(v1::ClientFrame { id: Some(1), payload }.encode_to_vec()).unwrap();
        let Some(Payload::Connected(connected)) = live.frame().await.payload else { panic!("`connect` is answered") };
        (live, connected)
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        timeout(SOON, self.hears.recv()).await.expect("nothing was heard")
    }

    async fn frame(&mut self) -> v1::ServerFrame {
        if let Some(frame) = self.before.pop_front() {
            return frame;
        }
        let frame = self.next().await.expect("the connection has ended");
        v1::ServerFrame::decode(&*frame).unwrap()
    }

    /// Asks for an operation, in the words of JSON.
    async fn ask(&mut self, op: Op, arguments: Value) -> Result<Value, String> {
        let rpc = op.rpc();
        let request = rpc.request(arguments.to_string().as_bytes()).unwrap();
        self.last_id += 1;
        let id = self.last_id;
        let mut frame = Vec::new();
        encoding::uint64::encode(1, &id, &mut frame);
        encoding::encode_key(rpc.field, WireType::LengthDelimited, &mut frame);
        encoding::encode_varint(request.len() as u64, &mut frame);
        frame.extend_from_slice(&request);
        self.says.send(frame).unwrap();
        loop {
            let raw = self.next().await.expect("the connection has ended");
            let frame = v1::ServerFrame::decode(&*raw).unwrap();
            match frame {
                v1::ServerFrame { id: Some(answered), payload } if answered == id => {
                    return match payload {
                        Some(Payload::Error(error)) => Err(error.code),
                        Some(Payload::Done(_)) => Ok(json!({})),
                        _ => Ok(reply(op, &raw)),
                    };
                }
                other => self.before.push_back(other),
            }
        }
    }

    /// The next event of this name; what else comes is passed over, but no other event.
    async fn event(&mut self, name: &str) -> v1::Event {
        loop {
            if let Some(Payload::Event(event)) = self.frame().await.payload {
                assert_eq!(event.event, name, "{event:?}");
                return event;
            }
        }
    }

    /// The next frame that this is the payload of.
    async fn until<T>(&mut self, wanted: impl Fn(Payload) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.frame().await.payload.and_then(&wanted) {
                return found;
            }
        }
    }
}

/// An answer's reply, as JSON.
fn reply(op: Op, mut frame: &[u8]) -> Value {
    loop {
        match encoding::decode_key(&mut frame).unwrap() {
            (_, WireType::Varint) => drop(encoding::decode_varint(&mut frame).unwrap()),
            (field, _) => {
                assert_eq!(field, op.rpc().field, "{}", op.name());
                let length = encoding::decode_varint(&mut frame).unwrap() as usize;
                return serde_json::from_str(&op.rpc().answer(&frame[..length]).unwrap()).unwrap();
            }
        }
    }
}

/// What JSON says of the same event.
async fn same(json: &mut JsonStream, event: &v1::Event) {
    let happened = loop {
        let happened = json.event(SOON).await.expect("JSON hears it too");
        if happened.seq != 0 {
            break happened;
        }
    };
    assert_eq!((&happened.name, happened.seq, happened.n), (&event.event, event.seq, Some(event.n)));
    assert_eq!(happened.sender.as_deref(), Some(&*event.sender));
    assert_eq!(happened.conversation.to_string(), event.conversation);
    let data = serde_json::to_value(event.data.as_ref().unwrap()).unwrap();
    assert_eq!(without_nulls(happened.data), without_nulls(data), "{}", event.event);
}

/// In protobuf, what is null is missing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => other,
    }
}

async fn talk(server: &mut Server, way: Way) {
    let url = server.url();
    let http = Http::new(&url);
    let (ada, bob) = (http.token("ada").await.unwrap(), http.token("bob").await.unwrap());
    let (mut ada, _) = Live::connect(way, &url, &ada, &[]).await;
    let bobs_token = bob;
    let (mut bob, connected) = Live::connect(way, &url, &bobs_token, &[]).await;
    assert_eq!(connected.user, "bob");
    let (json, mut json_hears) = Client::connect(&url, "bob", &bobs_token, Options::default()).await.unwrap();

    // A group, a message, its edit: the same to both.
    let made = ada.ask(Op::ConversationCreate, json!({"kind": "group", "title": "trip", "members": ["bob"]})).await;
    let group = made.unwrap()["conversation"]["id"].as_str().unwrap().to_owned();
    same(&mut json_hears, &bob.event("conversation.created").await).await;
    let said =
        |text: &str| json!({"conversation": group, "client_msg_id": Uuid::now_v7(), "body": {"text": text, "n": 1.50}});
    let send = said("where to?");
    let sent = ada.ask(Op::MessageSend, send.clone()).await.unwrap();
    let again = ada.ask(Op::MessageSend, send).await.unwrap();
    assert_eq!((&sent["seq"], &again["duplicate"]), (&again["seq"], &json!(true)));
    same(&mut json_hears, &bob.event("message.new").await).await;
    let seq = sent["seq"].as_u64().unwrap();
    let edit =
        json!({"conversation": group, "seq": seq, "body": {"text": "where to go?"}, "mentions": {"users": ["bob"]}});
    ada.ask(Op::MessageEdit, edit).await.unwrap();
    same(&mut json_hears, &bob.event("message.updated").await).await;
    bob.ask(Op::ReactionAdd, json!({"conversation": group, "seq": seq, "key": "👍"})).await.unwrap();
    same(&mut json_hears, &bob.event("reaction.added").await).await;
    for name in ["conversation.created", "message.new", "message.updated", "reaction.added"] {
        ada.event(name).await;
    }

    // What may get lost: writing, reading, marks, presence.
    assert_eq!(ada.ask(Op::ConversationOpen, json!({"conversation": group})).await.unwrap()["head"], seq + 2);
    bob.ask(Op::TypingStart, json!({"conversation": group})).await.unwrap();
    let typing =
        ada.until(|payload| if let Payload::TypingStarted(typing) = payload { Some(typing) } else { None }).await;
    assert_eq!((&*typing.sender, &typing.conversation), ("bob", &group));
    let read = bob.ask(Op::ConversationRead, json!({"conversation": group, "n": 1})).await.unwrap();
    assert_eq!(read["unread"], 0);
    let receipts =
        ada.until(|payload| if let Payload::ReceiptUpdated(told) = payload { told.data } else { None }).await;
    assert_eq!((&*receipts.receipts[0].user, receipts.receipts[0].read_n), ("bob", 1));
    json.request("inbox.update", json!({"conversation": group, "pinned": true})).await.unwrap();
    let marks = bob.until(|payload| match payload {
        Payload::InboxChanged(changed) => changed.data.filter(|data| data.pinned),
        _ => None,
    });
    assert!(!marks.await.cursor.is_empty());
    ada.ask(Op::PresenceWatch, json!({"users": [{"user": "bob", "conversation": group}]})).await.unwrap();
    let online = |payload| match payload {
        Payload::PresenceChanged(changed) => changed.data.filter(|data| data.status() == v1::PresenceStatus::Online),
        _ => None,
    };
    assert_eq!(ada.until(online).await.user, "bob");

    // Errors are answers.
    let other = json!({"conversation": Uuid::now_v7()});
    assert_eq!(ada.ask(Op::ConversationGet, other).await.unwrap_err(), "conversation.not_found");

    // The server dies without a word, and others go on while bob is away.
    let known = seq + 2;
    let generation = bob.generation.clone();
    server.kill().await.unwrap();
    while bob.next().await.is_some() {}
    while ada.next().await.is_some() {}
    server.restart().await.unwrap();
    let url = server.url();
    let (mut ada, _) = Live::connect(way, &url, &Http::new(&url).token("ada").await.unwrap(), &[]).await;
    for text in ["the sea", "or the hills"] {
        ada.ask(Op::MessageSend, said(text)).await.unwrap();
    }
    let position = (group.parse().unwrap(), &*generation, known);
    let (mut bob, connected) = Live::connect(way, &url, &bobs_token, &[position]).await;
    let verdict = &connected.conversations[&group];
    assert_eq!((verdict.recovered, verdict.head), (true, Some(known + 2)), "{verdict:?}");
    for seq in [known + 1, known + 2] {
        let event = bob.event("message.new").await;
        assert_eq!(event.seq, seq);
        same(&mut json_hears, &event).await;
    }
    let caught_up = bob.until(|payload| if let Payload::CaughtUp(at) = payload { Some(at.head) } else { None }).await;
    assert_eq!(caught_up, known + 2);

    // Who is removed hears of it, and nothing afterwards.
    ada.ask(Op::MemberRemove, json!({"conversation": group, "user": "bob"})).await.unwrap();
    same(&mut json_hears, &bob.event("member.left").await).await;
    ada.ask(Op::MessageSend, said("without bob")).await.unwrap();
    assert_eq!(
        bob.ask(Op::EventList, json!({"conversation": group, "after": 0})).await.unwrap_err(),
        "conversation.not_found"
    );
    assert!(!bob.before.iter().any(|frame| matches!(frame.payload, Some(Payload::Event(_)))));

    // An open channel, which large conversations are like: live where it is open.
    let made =
        ada.ask(Op::ConversationCreate, json!({"kind": "channel", "title": "news", "open": true})).await.unwrap();
    assert_eq!((&made["conversation"]["kind"], &made["conversation"]["open"]), (&json!("channel"), &json!(true)));
    let news = made["conversation"]["id"].clone();
    bob.ask(Op::ConversationJoin, json!({"conversation": news})).await.unwrap();
    assert_eq!(bob.ask(Op::ConversationOpen, json!({"conversation": news})).await.unwrap()["large"], true);
    let post = json!({"conversation": news, "client_msg_id": Uuid::now_v7(), "body": {}});
    let posted = ada.ask(Op::MessageSend, post).await.unwrap();
    let event = bob.until(|payload| match payload {
        Payload::Event(event) if event.event == "message.new" => Some(event),
        _ => None,
    });
    assert_eq!(event.await.seq, posted["seq"].as_u64().unwrap());
    assert_eq!(bob.ask(Op::ConversationClose, json!({"conversation": news})).await.unwrap(), json!({}));
    json.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_in_protobuf_hears_what_one_in_json_hears() {
    talk(&mut super::server().await, Way::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_grpc_hears_what_a_websocket_hears() {
    talk(&mut super::server().await, Way::Grpc).await;
}

/// What `chappe-loadtest run --speech …` does, in small: a crowd that talks in each of the ways there are, the server killed in between,
/// and an oracle that finds every promise kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_promised_the_same_whatever_it_talks_over() {
    const SPEECHES: [Speech; 4] = [Speech::Protobuf, Speech::Grpc, Speech::Http, Speech::Json];
    // Of different ways in each.
    const GROUPS: usize = 5;
    const PEOPLE: usize = 20;
    let mut server = super::server().await;
    let target = Arc::new(Target::resolve(&server.url()).await.unwrap());
    let signer = server.signer().unwrap();
    let person = |index: usize| {
        let user = format!("user-{index}");
        let speech = Some(SPEECHES[index % SPEECHES.len()]);
        Person { token: signer.sign(&user).unwrap(), user, target: Arc::clone(&target), speech }
    };
    let history = History::judged(Oracle::new(Limits::default()), None);
    let manner = Manner {
        history: Some(Arc::clone(&history)),
        habits: Habits { receipts: true, types: true, ..Habits::default() },
        ..Manner::default()
    };
    let crowd = Crowd::connect((0..PEOPLE).map(person).collect(), manner, |_| {}).await.unwrap();
    let groups: Vec<Vec<usize>> = (0..GROUPS).map(|group| (group..PEOPLE).step_by(GROUPS).collect()).collect();
    let conversations = crowd.create_groups(&groups, |_| {}).await.unwrap();
    for (group, conversation) in groups.iter().zip(&conversations) {
        for member in group {
            crowd.assign(*member, vec![*conversation], Pace::Closed(2));
        }
    }
    crowd.start();
    let measured = crowd.measure(Duration::from_millis(500), None, |_, _| {}).await.unwrap();
    // They come back with positions, and send again what had no answer.
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    let again = crowd.measure(Duration::from_secs(1), None, |_, _| {}).await.unwrap();
    crowd.rest().await.unwrap();
    let reads: Vec<_> = groups
        .iter()
        .zip(&conversations)
        .flat_map(|(group, conversation)| group.iter().map(|member| (*member, *conversation)))
        .collect();
    crowd.read_all(&reads, |_| {}).await.unwrap();
    let shown: Vec<_> = groups.iter().zip(&conversations).map(|(group, id)| (group[0], *id)).collect();
    crowd.read_receipts(&shown).await.unwrap();
    let counters = crowd.counters().await;
    let verdict = history.verdict().unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert!(measured.acks > 0 && measured.deliveries > 0, "{measured:?} {again:?}");
    assert!(counters.connects >= 2 * PEOPLE as u64, "{counters:?}");
    crowd.leave().await;
}
