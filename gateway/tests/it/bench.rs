//! Memory per idle connection, measured in this process and printed; run with `--nocapture` to see it.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{hostile::masked, world::World};

/// Resident memory that is this process's own.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_costs_little() {
    const COUNT: usize = 2_000;
    let world = World::new().await;
    let token = world.token("ada");
    let mut streams = Vec::with_capacity(COUNT);
    let mut measure = async |count: usize, large: bool| {
        for _ in 0..count {
            let mut stream = world.raw().await;
            let connect = json!({"id": 1, "connect": {"token": token}}).to_string();
            stream.write_all(&masked(0x81, connect.as_bytes())).await.unwrap();
            if large {
                let frame = json!({"id": 2, "heartbeat": {"x": "y".repeat(70_000)}}).to_string();
                stream.write_all(&masked(0x81, frame.as_bytes())).await.unwrap();
            }
            let last: &[u8] = if large { b"\"id\":2" } else { b"\"user\"" };
            let mut seen = Vec::new();
            let mut buffer = [0; 2048];
            while !seen.windows(last.len()).any(|window| window == last) {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0);
                seen.extend_from_slice(&buffer[..count]);
            }
            streams.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    };
    measure(300, true).await;
    let before = resident_bytes();
    measure(COUNT, false).await;
    let idle = (resident_bytes().saturating_sub(before)) / COUNT;
    let before = resident_bytes();
    measure(COUNT, true).await;
    let after_large = (resident_bytes().saturating_sub(before)) / COUNT;
    println!("an idle connection costs {idle} bytes with its test client's end; after a message of 70 kB, {after_large}");
    assert!(idle < 8 * 1024, "{idle} bytes");
    assert!(after_large < 8 * 1024, "{after_large} bytes after a large message");
}
