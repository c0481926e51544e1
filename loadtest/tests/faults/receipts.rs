//! Receipts under SIGKILL: a crash may take back what was said last, and clients bring it back.

use std::{sync::Arc, time::Duration};

use chappe_loadtest::{
    client::{News, Progress},
    history::What,
};
use tokio::time::timeout;

use crate::world::{PATIENCE, World, connect_heard, setup, size, turn};

/// Goal: whatever a crash takes back of what was accepted is there again once the clients are, nothing was ever seen that was
/// not said, and between crashes nothing falls. Method: everybody reads whatever arrives, the server is killed under load again and
/// again, and in the end everybody is shown how far the others have got.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kill_takes_back_of_receipts_heals() {
    let (_turn, mut dice) = turn("what_a_kill_takes_back_of_receipts_heals");
    let mut world = World::begin(setup()).await;
    let names = ["ada", "bob", "cyd", "dan", "eve", "fay"];
    let mut readers = Vec::new();
    for name in names {
        // A second device, which reads. It is the one that the history hears of receipts from.
        let (client, mut stream) = connect_heard(&world.server, name, Some(&world.history)).await;
        let client = Arc::new(client);
        readers.push(Arc::clone(&client));
        tokio::spawn(async move {
            while let Some(news) = stream.next().await {
                let News::Event(event) = news else { continue };
                let (Some(n), "message.new") = (event.n, event.name.as_str()) else { continue };
                let said = Progress { conversation: event.conversation, delivered: Some(n), read: Some(n) };
                // Answered or not, it is said again after a crash.
                let client = Arc::clone(&client);
                tokio::spawn(async move { client.progress(vec![said], None).await });
            }
        });
    }
    let load = world.load(1, &mut dice);
    let fault =
        |world: &World, begins| world.history.record(What::Fault { name: "kill".into(), begins, forgets: true });
    for _ in 0..size("CHAPPE_TEST_KILLS", 20).div_ceil(4) {
        world.progress(&load, 50 + dice.below(200)).await;
        fault(&world, true);
        world.server.kill().await.unwrap();
        world.server.restart().await.unwrap();
        // What the old connections had in their buffers has been heard by now.
        fault(&world, false);
    }
    world.progress(&load, 100).await;
    load.stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for conversation in &world.conversations {
        for member in &conversation.members {
            let shown = readers[*member].receipts(conversation.id, true);
            let shown = timeout(PATIENCE, shown).await.expect("a list is answered").unwrap();
            // Everybody has read everything by now.
            let marks = shown["members"].as_array().unwrap().iter().map(|one| one["read_n"].as_u64().unwrap());
            let marks: Vec<u64> = marks.collect();
            assert!(marks.iter().all(|n| *n == marks[0] && *n > 0), "{shown}");
        }
    }
    world.judge_clean().await;
}
