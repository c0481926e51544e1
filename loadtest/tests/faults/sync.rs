//! Slow and failing syncs.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::http::Http,
    weather::trace::{self, SYNCS, Trace},
};
use hyper::Method;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

use crate::world::{PATIENCE, World, body, can, connect_heard, setup, turn};

const DELAY: Duration = Duration::from_millis(200);

/// Where strace writes.
fn log(world: &World) -> PathBuf {
    world.server.data_dir().with_extension("strace")
}

/// Goal: an acknowledgement, and a delivery, follow the sync of what they tell. Method: every fdatasync and fsync is
/// delayed at its entry, so whatever needs a sync that begins after it was asked for takes at least that long; one
/// answer that comes sooner proves that it did not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledgement_comes_before_its_sync() {
    let (_turn, mut dice) = turn("no_acknowledgement_comes_before_its_sync");
    if !can(trace::available()) {
        return;
    }
    let world = World::begin(setup()).await;
    let (ada, bob) = (&world.members[0].client, &world.members[1].client);
    let all = world.conversations[0].id;
    let http = Http::new(&world.server.url());
    let token = world.server.signer().unwrap().sign("cyd").unwrap();
    let first = ada.send(all, &body(&mut dice)).await.unwrap().seq;
    let second = ada.send(all, &body(&mut dice)).await.unwrap().seq;
    // Undelayed, the same takes a small part of the delay: else this would prove nothing.
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        ada.send(all, &body(&mut dice)).await.unwrap();
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < DELAY / 4, "without a delay a send takes {quickest:?}");

    let (listener, mut heard) = connect_heard(&world.server, "eve", None).await;
    let trace =
        Trace::inject(world.server.pid().unwrap(), SYNCS, &format!("delay_enter={}", DELAY.as_micros()), &log(&world))
            .unwrap();
    let mut took: Vec<(&str, Duration)> = Vec::new();

    // Alone, so that no other's sync is under way.
    for _ in 0..3 {
        let began = Instant::now();
        let text = Uuid::now_v7().to_string();
        let body = json!({ "text": text });
        let sending = ada.send(all, &body);
        let delivery = async {
            loop {
                let event = heard.event(PATIENCE).await.expect("the message is delivered");
                if event.data["body"]["text"] == text.as_str() {
                    return began.elapsed();
                }
            }
        };
        let (sent, delivered) = tokio::join!(async { (sending.await.unwrap(), began.elapsed()) }, delivery);
        took.extend([("a send alone", sent.1), ("a delivery", delivered)]);
    }
    // Everything else that is acknowledged.
    let began = Instant::now();
    ada.change(all, first, Some(json!({ "text": "edited" }))).await.unwrap();
    took.push(("an edit", began.elapsed()));
    let began = Instant::now();
    ada.change(all, second, None).await.unwrap();
    took.push(("a deletion", began.elapsed()));
    let began = Instant::now();
    ada.create_group("slow", &["bob"]).await.unwrap();
    took.push(("a group", began.elapsed()));
    let began = Instant::now();
    bob.direct("fay").await.unwrap();
    took.push(("a direct conversation", began.elapsed()));
    let path = format!("/v1/conversations/{all}/messages");
    let (id, body_over_http) = (Uuid::now_v7(), json!({ "text": "over HTTP" }));
    let send = json!({ "client_msg_id": id, "body": body_over_http });
    world.note_send("cyd", all, id, &body_over_http);
    let began = Instant::now();
    let answer = http.call(Method::POST, &path, Some(&token), Some(&send)).await.unwrap();
    took.push(("a send over HTTP", began.elapsed()));
    assert_eq!(answer.status, 201, "{answer:?}");
    world.note_ack(id, answer.json().unwrap()["seq"].as_u64().unwrap());
    // Many at a time, begun at any moment of the syncs of others.
    let mut sends = JoinSet::new();
    for index in 0..60 {
        let client = world.members[index % 3].client.clone();
        let (conversation, pause, body) = (world.conversations[index % 2].id, dice.within(DELAY * 6), body(&mut dice));
        sends.spawn(async move {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            client.send(conversation, &body).await.unwrap();
            ("one of many sends", began.elapsed())
        });
    }
    took.extend(timeout(PATIENCE, sends.join_all()).await.expect("slow, but not for ever"));

    let calls = trace.detach().unwrap();
    let soonest = took.iter().min_by_key(|(_, took)| *took).unwrap();
    println!("{} answers, the soonest ({}) after {:?}; undelayed {quickest:?}", took.len(), soonest.0, soonest.1);
    // The timer of the delay and ours are the same clock; a millisecond is for its rounding.
    let early: Vec<_> = took.iter().filter(|(_, took)| *took + Duration::from_millis(1) < DELAY).collect();
    assert!(early.is_empty(), "answered before their sync: {early:?}");
    assert!(calls.iter().filter(|call| call.text.contains("DELAYED")).count() >= 10, "{calls:?}");
    drop(listener);
    world.judge_clean().await;
}

/// Goal: after a sync that fails nothing is acknowledged, and the process ends with a sentence. Method: all syncs fail
/// with EIO from a quiet moment on, then everybody sends. Afterwards the server starts again, and the retries go through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_sync_acknowledges_nothing_and_ends_the_process() {
    let (_turn, mut dice) = turn("a_failing_sync_acknowledges_nothing_and_ends_the_process");
    if !can(trace::available()) {
        return;
    }
    let mut world = World::begin(setup()).await;
    for calls in ["fdatasync", "fdatasync,fsync"] {
        let load = world.load(2, &mut dice);
        world.progress(&load, 30).await;
        load.stop().await;
        // What waits a moment to be written with others is written by now.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let trace = Trace::inject(world.server.pid().unwrap(), calls, "error=EIO", &log(&world)).unwrap();
        let load = world.load(2, &mut dice);
        let status = timeout(PATIENCE, world.server.ended()).await.expect("it ends").unwrap();
        assert_eq!(load.acked.load(std::sync::atomic::Ordering::Relaxed), 0, "acknowledged without a sync");
        assert_eq!(status.code(), Some(1), "{status}");
        let words = world.server.last_words();
        let sentence = words
            .lines()
            .find(|line| line.starts_with("chappe-node: "))
            .unwrap_or_else(|| panic!("no sentence in:\n{words}"));
        println!("{calls}: {sentence}");
        assert!(sentence.contains("the log cannot be written"), "{sentence}");
        let failed = trace.detach().unwrap();
        assert!(failed.iter().any(|call| call.text.contains("EIO")), "{failed:?}");
        world.server.restart().await.unwrap();
        world.progress(&load, 30).await;
        load.stop().await;
    }
    world.judge_clean().await;
}

/// The same in the middle of the load: what was acknowledged before stays, what was not is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_once_is_not_tried_again() {
    let (_turn, mut dice) = turn("a_sync_that_fails_once_is_not_tried_again");
    if !can(trace::available()) {
        return;
    }
    let mut world = World::begin(setup()).await;
    let load = world.load(3, &mut dice);
    for _ in 0..3 {
        world.progress(&load, 20).await;
        let which = 1 + dice.below(20);
        let injection = format!("error=EIO:when={which}");
        let trace = Trace::inject(world.server.pid().unwrap(), "fdatasync", &injection, &log(&world)).unwrap();
        let status = timeout(PATIENCE, world.server.ended()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(1), "{status}: {}", world.server.last_words());
        // The file must not be synced again as if nothing had happened: the kernel would say yes.
        let calls = trace.detach().unwrap();
        let failed = calls.iter().position(|call| call.text.contains("EIO")).expect("it was injected");
        let later: Vec<_> = calls[failed + 1..]
            .iter()
            .filter(|call| call.text.contains("fdatasync") && call.text.contains("= 0"))
            .collect();
        assert!(later.is_empty(), "synced again after a failure: {later:?}");
        world.server.restart().await.unwrap();
    }
    world.progress(&load, 20).await;
    load.stop().await;
    world.judge_clean().await;
}
