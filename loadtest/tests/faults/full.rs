//! Full disks.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use chappe_loadtest::{
    client::http::Http,
    history::What,
    server::Setup,
    weather::{disk::Names, power, volume::Volume},
};
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    power::plug_in,
    world::{PATIENCE, World, can, setup, turn},
};

const MIB: u64 = 1 << 20;

fn with(mut setup: Setup, setting: &str) -> Setup {
    setup.args.extend(["--set".to_owned(), setting.to_owned()]);
    setup
}

async fn send(world: &World, conversation: Uuid) -> (u16, Value) {
    let token = world.server.signer().unwrap().sign("bob").unwrap();
    let (id, body) = (Uuid::now_v7(), json!({ "text": "is there room?" }));
    let send = json!({ "client_msg_id": id, "body": body });
    world.note_send("bob", conversation, id, &body);
    let path = format!("/v1/conversations/{conversation}/messages");
    let answer = Http::new(&world.server.url()).call(Method::POST, &path, Some(&token), Some(&send)).await.unwrap();
    let (status, answer) = (answer.status, answer.json().unwrap());
    match answer["seq"].as_u64() {
        Some(seq) => world.note_ack(id, seq),
        // What was refused must not appear.
        None => world.history.record(What::Fail { id }),
    }
    (status, answer)
}

/// Goal: on a full disk sends are refused so that clients know to come back, reading goes on, and service resumes by
/// itself. Method: a small tmpfs, filled beyond what the store wants to keep free; also over a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_sends_and_recovers() {
    let (_turn, mut dice) = turn("a_full_disk_refuses_sends_and_recovers");
    let home = tempfile::Builder::new().prefix("chappe-").tempdir().unwrap();
    let _ = power::sweep();
    let volume = match Volume::mount(home.path(), 128 * MIB) {
        Ok(volume) => volume,
        Err(error) => {
            can(Err(format!("a tmpfs cannot be mounted: {error}")));
            return;
        }
    };
    let setup = Setup { data_dir: Some(home.path().join("data")), ..with(setup(), "store.free_space_min=16MiB") };
    let mut world = World::begin(setup).await;
    let all = world.conversations[0].id;
    for round in 0..2 {
        let load = world.load(2, &mut dice);
        world.progress(&load, 100).await;
        println!("{} bytes are free", volume.free().unwrap());
        volume.fill(8 * MIB).unwrap_or_else(|error| panic!("{error}: {:?}", volume.free()));
        let refused = async {
            loop {
                let (status, answer) = send(&world, all).await;
                if status >= 300 {
                    return (status, answer);
                }
            }
        };
        let (status, error) = timeout(Duration::from_secs(5), refused).await.expect("a full disk is noticed");
        assert_eq!(
            (status, &error["code"], &error["retryable"]),
            (503, &json!("unavailable"), &json!(true)),
            "{error}"
        );
        // Whoever was let in before has his answer by now.
        sleep(Duration::from_millis(200)).await;
        let before = load.acked.load(Relaxed);
        sleep(Duration::from_millis(800)).await;
        assert_eq!(load.acked.load(Relaxed), before, "acknowledged on a full disk");
        if round == 1 {
            world.server.kill().await.unwrap();
            world.server.restart().await.expect("what is there can be read");
            assert_eq!(send(&world, all).await.0, 503);
        }
        // Reading goes on.
        let token = world.server.signer().unwrap().sign("bob").unwrap();
        let (http, path) = (Http::new(&world.server.url()), format!("/v1/conversations/{all}/events?after=0"));
        let mut refused = 0;
        for _ in 0..200 {
            let answer = http.call(Method::GET, &path, Some(&token), None).await.unwrap();
            if answer.status != 200 {
                refused += 1;
                assert_eq!(answer.json().unwrap()["code"], "unavailable", "{answer:?}");
            }
            sleep(Duration::from_millis(3)).await;
        }
        println!("{refused} of 200 reads are refused");
        // A read that meets a send which is just being refused is refused with it; most meet none.
        assert!(refused < 50, "{refused} of 200 reads are refused on a full disk");
        volume.empty().unwrap();
        world.progress(&load, 100).await;
        load.stop().await;
    }
    world.judge_clean().await;
    world.server.kill().await.unwrap();
}

/// Goal: a write that finds no room, in spite of all care, ends the process with a sentence; nothing is acknowledged, and
/// nothing is lost. Method: a disk that shrinks below what the server believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_room_ends_the_process() {
    let (_turn, mut dice) = turn("a_write_without_room_ends_the_process");
    if !can(power::available()) {
        return;
    }
    let plugged = plug_in(Names::Strict);
    let whole = plugged.power.with(|disk| disk.space().0);
    let mut world = World::begin(with(plugged.setup(), "store.free_space_min=0")).await;
    let load = world.load(2, &mut dice);
    for _ in 0..3 {
        world.progress(&load, 50).await;
        plugged.power.with(|disk| {
            let (capacity, free) = disk.space();
            disk.resize(capacity - free + dice.below(64) * 1024);
        });
        let status = timeout(PATIENCE, world.server.ended()).await.expect("it ends").unwrap();
        let words = world.server.last_words();
        assert_eq!(status.code(), Some(1), "{status}: {words}");
        let sentence = words
            .lines()
            .find(|line| line.starts_with("chappe-node: "))
            .unwrap_or_else(|| panic!("no sentence in:\n{words}"));
        println!("{sentence}");
        // It may find that it cannot start either, and says so, or find room enough.
        let started = world.server.restart().await;
        println!(
            "on the full disk: {}",
            started.map_or_else(
                |error| error.to_string().lines().last().unwrap_or("").to_owned(),
                |()| "it starts".into()
            )
        );
        plugged.power.with(|disk| disk.resize(whole));
        world.server.restart().await.unwrap();
    }
    world.progress(&load, 50).await;
    load.stop().await;
    world.judge_clean().await;
    world.server.kill().await.unwrap();
}
