//! Goal: the same `client_msg_id` is the same message, whenever, over whatever connection and transport it is repeated: the
//! first answer comes back, and says that it does.

use std::time::Duration;

use chappe_loadtest::{
    client::{Ack, Client, http::Http},
    server::Server,
    weather::trace::{self, SYNCS, Trace},
};
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    wire::Wire,
    world::{PATIENCE, World, can, connect, connect_heard, options, setup, turn},
};

/// Sends over a WebSocket, with an id of choice.
async fn over_websocket(client: &Client, conversation: Uuid, id: Uuid, text: &str) -> Value {
    let send = json!({ "conversation": conversation, "client_msg_id": id, "body": { "text": text } });
    timeout(PATIENCE, client.request("message.send", send)).await.expect("an answer").unwrap()
}

/// Sends over HTTP, with an id of choice: status and body.
async fn over_http(server: &Server, user: &str, conversation: Uuid, id: Uuid, text: &str) -> (u16, Value) {
    let token = server.signer().unwrap().sign(user).unwrap();
    let send = json!({ "client_msg_id": id, "body": { "text": text } });
    let path = format!("/v1/conversations/{conversation}/messages");
    let answer = Http::new(&server.url()).call(Method::POST, &path, Some(&token), Some(&send)).await.unwrap();
    (answer.status, answer.json().unwrap())
}

/// How many messages of this id the log holds, at which seq.
async fn found(server: &Server, user: &str, conversation: Uuid, id: Uuid) -> Vec<u64> {
    let token = server.signer().unwrap().sign(user).unwrap();
    let (http, mut after, mut found) = (Http::new(&server.url()), 0, Vec::new());
    loop {
        let path = format!("/v1/conversations/{conversation}/events?after={after}&limit=200");
        let page = http.call(Method::GET, &path, Some(&token), None).await.unwrap().json().unwrap();
        let events = page["events"].as_array().unwrap();
        let Some(last) = events.last() else { return found };
        after = last["seq"].as_u64().unwrap();
        found.extend(
            events.iter().filter(|event| event["id"] == id.to_string()).map(|event| event["seq"].as_u64().unwrap()),
        );
    }
}

/// Whether an answer says that it is not the first. Where it is the first, nothing is said of it.
fn is_repeated(answer: &Value) -> bool {
    answer.get("duplicate").is_some_and(|duplicate| duplicate == true)
}

/// The parts of an answer that a repetition must repeat.
fn essence(answer: &Value) -> (u64, u64, String) {
    (answer["seq"].as_u64().unwrap(), answer["n"].as_u64().unwrap(), answer["created_at"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_reply_the_first_answer_comes_back() {
    let (_turn, _) = turn("after_a_lost_reply_the_first_answer_comes_back");
    let world = World::begin(setup()).await;
    let all = world.conversations[0].id;
    let wire = Wire::to(&world.server.url()).await;
    let token = world.server.signer().unwrap().sign("ada").unwrap();
    let (ada, _news) = Client::connect(&wire.url(), "ada", &token, options(Some(world.history.clone()))).await.unwrap();
    let (_listener, mut heard) = connect_heard(&world.server, "bob", None).await;
    for round in 0..10 {
        let text = format!("round {round}");
        wire.lose_replies();
        let body = json!({ "text": text });
        let sending = ada.send(all, &body);
        let breaking = async {
            // Another member hears it: it is committed, and the reply is on its way, to nowhere.
            let seq = loop {
                let event = heard.event(PATIENCE).await.expect("the message is delivered");
                if event.data["body"]["text"] == text.as_str() {
                    break event.seq;
                }
            };
            while wire.lost() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            wire.hang_up();
            seq
        };
        let (sent, seq) =
            timeout(PATIENCE, async { tokio::join!(sending, breaking) }).await.expect("the retry is answered");
        assert_eq!(sent.unwrap(), Ack { seq, duplicate: true });
    }
    assert!(ada.counters().await.retries >= 10);
    world.judge_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_first_is_pending_everybody_gets_its_answer() {
    let (_turn, _) = turn("while_the_first_is_pending_everybody_gets_its_answer");
    if !can(trace::available()) {
        return;
    }
    let world = World::begin(setup()).await;
    let all = world.conversations[0].id;
    let (first, second) = (&world.members[0].client, connect(&world.server, "ada", None).await);
    let log = world.server.data_dir().with_extension("strace");
    let trace = Trace::inject(world.server.pid().unwrap(), SYNCS, "delay_enter=300000", &log).unwrap();
    for round in 0..3 {
        let (id, text) = (Uuid::now_v7(), format!("pending {round}"));
        world.note_send("ada", all, id, &json!({ "text": text }));
        let repeat = async |after: u64| {
            sleep(Duration::from_millis(after)).await;
            over_websocket(&second, all, id, &text).await
        };
        let answers = tokio::join!(
            over_websocket(first, all, id, &text),
            over_websocket(first, all, id, &text),
            repeat(30),
            repeat(120),
            async {
                sleep(Duration::from_millis(80)).await;
                over_http(&world.server, "ada", all, id, &text).await.1
            },
        );
        let answers = [answers.0, answers.1, answers.2, answers.3, answers.4];
        let firsts = answers.iter().filter(|answer| !is_repeated(answer)).count();
        assert_eq!(firsts, 1, "{answers:?}");
        assert!(answers.iter().all(|answer| essence(answer) == essence(&answers[0])), "{answers:?}");
        world.note_ack(id, essence(&answers[0]).0);
        assert_eq!(found(&world.server, "ada", all, id).await, [essence(&answers[0]).0]);
    }
    trace.detach().unwrap();
    world.judge_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_and_over_any_transport_the_first_answer_comes_back() {
    let (_turn, mut dice) = turn("after_a_restart_and_over_any_transport_the_first_answer_comes_back");
    let mut world = World::begin(setup()).await;
    let all = world.conversations[0].id;
    let [by_websocket, by_http] = [(); 2].map(|()| Uuid::now_v7());
    world.note_send("ada", all, by_websocket, &json!({ "text": "by websocket" }));
    world.note_send("ada", all, by_http, &json!({ "text": "by http" }));
    let first = over_websocket(&world.members[0].client, all, by_websocket, "by websocket").await;
    assert!(!is_repeated(&first), "{first}");
    let (status, second) = over_http(&world.server, "ada", all, by_http, "by http").await;
    assert!(status == 201 && !is_repeated(&second), "{status} {second}");
    for round in 0..3 {
        let other = connect(&world.server, "ada", None).await;
        for (id, text, first) in [(by_websocket, "by websocket", &first), (by_http, "by http", &second)] {
            let again = [
                over_websocket(&world.members[0].client, all, id, text).await,
                over_websocket(&other, all, id, text).await,
            ];
            let (again_status, over_http) = over_http(&world.server, "ada", all, id, text).await;
            assert_eq!(again_status, status, "the original status");
            for again in again.iter().chain([&over_http]) {
                assert!(is_repeated(again), "round {round}: {again}");
                assert_eq!(essence(again), essence(first), "round {round}");
            }
            assert_eq!(found(&world.server, "bob", all, id).await, [essence(first).0]);
        }
        // Another body under the same id is another message, and is refused; another's id is their own.
        let (refused, error) = over_http(&world.server, "ada", all, by_http, "something else").await;
        assert_eq!((refused, &error["retryable"]), (409, &json!(false)), "{error}");
        // So much later that the answer is remembered by the log alone, and then in another life of the process.
        let load = world.load(4, &mut dice);
        world.progress(&load, 700).await;
        load.stop().await;
        world.server.kill().await.unwrap();
        world.server.restart().await.unwrap();
    }
    let bobs = over_websocket(&world.members[1].client, all, by_http, "by http").await;
    assert!(!is_repeated(&bobs), "whose id it is counts");
    assert_ne!(essence(&bobs).0, essence(&second).0);
}
