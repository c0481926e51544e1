//! SIGKILL and SIGSTOP.

use std::time::Duration;

use chappe_loadtest::client::Client;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::world::{World, setup, size, turn};

/// Goal: a process that ends at any moment, also while it starts, loses and doubles nothing. Method: kill it under load
/// at random moments, start it on the same directory; clients come back and repeat what has no answer under the same ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing() {
    let (_turn, mut dice) = turn("kills_lose_nothing");
    let kills = size("CHAPPE_TEST_KILLS", 20);
    let mut world = World::begin(setup()).await;
    let load = world.load(3, &mut dice);
    let mut in_start = 0;
    for kill in 0..kills {
        // The first kills hit a server that works; later ones also one that has just begun.
        if kill < 3 || dice.chance(0.5) {
            world.progress(&load, 1 + dice.below(200)).await;
        } else {
            sleep(dice.within(Duration::from_millis(60))).await;
        }
        world.server.kill().await.unwrap();
        if dice.chance(0.25) && timeout(dice.within(Duration::from_millis(40)), world.server.restart()).await.is_err() {
            in_start += 1;
        }
        world.server.restart().await.unwrap_or_else(|error| panic!("after kill {kill}: {error:#}"));
    }
    world.progress(&load, 100).await;
    let acked = load.stop().await;
    println!("{kills} kills, {in_start} more during a start, {acked} acknowledged");
    assert!(acked > kills * 10, "there was load");
    world.judge_clean().await;
}

/// Goal: a process that stops for a while and goes on acknowledges nothing twice and forgets nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_lose_nothing() {
    let (_turn, mut dice) = turn("pauses_lose_nothing");
    let world = World::begin(setup()).await;
    let load = world.load(3, &mut dice);
    for pause in [50, 500, 2000] {
        world.progress(&load, 50).await;
        world.server.signal(Signal::STOP).unwrap();
        sleep(Duration::from_millis(pause)).await;
        world.server.signal(Signal::CONT).unwrap();
    }
    world.progress(&load, 50).await;
    load.stop().await;
    world.judge_clean().await;
}

/// Goal: who becomes a member hears of it, though the process ends right after the acknowledgement, before it has told the
/// members. Method: kill it at that moment; afterwards each member comes back and finds the conversation in the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_hear_of_a_conversation_that_was_created_just_before_a_kill() {
    let (_turn, mut dice) = turn("members_hear_of_a_conversation_that_was_created_just_before_a_kill");
    let mut world = World::begin(setup()).await;
    for round in 0..size("CHAPPE_TEST_KILLS", 20).div_ceil(2) {
        let ada = &world.members[0].client;
        let (id, told) = if round % 2 == 0 {
            (ada.create_group("late", &["bob", "eve"]).await.unwrap(), vec![0, 1, 4])
        } else {
            // Nobody has spoken to this one before.
            (ada.direct(&format!("guest-{round}")).await.unwrap(), vec![0])
        };
        sleep(dice.within(Duration::from_millis(2))).await;
        world.server.kill().await.unwrap();
        world.server.restart().await.unwrap();
        for member in told {
            let client = &world.members[member].client;
            let listed = async {
                while !lists(client, id).await {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let heard = timeout(Duration::from_secs(10), listed).await;
            assert!(heard.is_ok(), "round {round}: member {member} does not hear of {id}");
        }
    }
    world.judge_clean().await;
}

/// Whether a conversation stands anywhere in somebody's list.
async fn lists(client: &Client, id: Uuid) -> bool {
    let mut cursor = None;
    loop {
        let mut asked = json!({ "limit": 100 });
        if let Some(cursor) = cursor {
            asked["cursor"] = cursor;
        }
        let page = client.request("conversation.list", asked).await.unwrap();
        if page["conversations"].as_array().unwrap().iter().any(|shown| shown["id"] == id.to_string()) {
            return true;
        }
        cursor = page.get("next_cursor").filter(|cursor| !cursor.is_null()).cloned();
        if cursor.is_none() {
            return false;
        }
    }
}
