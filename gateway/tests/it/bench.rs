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

/// The other tests of this process allocate too, so the measurement has a process of its own.
#[test]
fn an_idle_connection_costs_little() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "bench::idle_connections", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success() && said.contains("an idle connection costs"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "only run by the test above, in a process of its own"]
async fn idle_connections() {
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
    println!(
        "an idle connection costs {idle} bytes with its test client's end; after a message of 70 kB, {after_large}"
    );
    assert!(idle < 8 * 1024, "{idle} bytes");
    assert!(after_large < 8 * 1024, "{after_large} bytes after a large message");
}

/// CPU seconds of the threads whose name begins so: `(user, system)`.
fn cpu_seconds(name: &str) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (head, tail) = stat.rsplit_once(") ").unwrap();
        if head.split_once('(').unwrap().1.starts_with(name) {
            let fields: Vec<&str> = tail.split(' ').collect();
            let ticks = |index: usize| fields[index].parse::<f64>().unwrap() / 100.0;
            sum.0 += ticks(11);
            sum.1 += ticks(12);
        }
    }
    sum
}

fn threads(name: &'static str, count: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(count).thread_name(name).enable_all().build().unwrap()
}

/// A socket that is connected as `user` and has asked `then`, if anything.
async fn join(world: &World, user: &str, then: Option<serde_json::Value>) -> tokio::net::TcpStream {
    let mut stream = world.raw().await;
    let connect = json!({"id": 1, "connect": {"token": world.token(user)}});
    let mut last = "\"user\"";
    stream.write_all(&masked(0x81, connect.to_string().as_bytes())).await.unwrap();
    if let Some(then) = then {
        stream.write_all(&masked(0x81, then.to_string().as_bytes())).await.unwrap();
        last = "\"large\"";
    }
    let mut seen = String::new();
    let mut buffer = [0; 2048];
    while !seen.contains(last) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    stream
}

/// Goal: what the gateway adds to the system calls of a fan-out. Method: the same sockets and the same bytes, once
/// through the gateway and once through a loop of writes, each on threads of its own whose CPU is read from /proc.
#[test]
#[ignore = "a measurement: cargo test --release -p chappe-gateway --test it -- --ignored --nocapture --test-threads 1"]
fn fan_out() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    const SOCKETS: usize = 2_000;
    let (gateway_threads, client_threads, raw_threads) = (threads("gw", 2), threads("client", 1), threads("raw", 1));
    let world = Arc::new(gateway_threads.block_on(async { tokio::spawn(World::new()).await.unwrap() }));
    let chat = world.node.conversation(&["ada"], 0, true);
    let (received, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listen = |stream: tokio::net::TcpStream| {
        let (received, bytes) = (received.clone(), bytes.clone());
        client_threads.spawn(async move {
            let mut stream = stream;
            let mut buffer = vec![0; 16 * 1024];
            // Every frame has one event; frames are counted by their first byte's neighbour in the JSON.
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                let frames = buffer[..count].windows(9).filter(|window| window == b"{\"event\":").count();
                bytes.fetch_add(count, Ordering::Relaxed);
                received.fetch_add(frames, Ordering::Relaxed);
            }
        });
    };
    client_threads.block_on(async {
        for _ in 0..SOCKETS {
            listen(join(&world, "ada", Some(json!({"id": 2, "conversation.open": {"conversation": chat}}))).await);
        }
    });
    let wait = |count: usize| {
        let began = std::time::Instant::now();
        while received.load(Ordering::Relaxed) < count {
            assert!(began.elapsed() < Duration::from_secs(30), "{} of {count}", received.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    let text = "x".repeat(120);
    for batch in [1usize, 8] {
        let rounds = 100;
        let before = (received.load(Ordering::Relaxed), cpu_seconds("gw"));
        for round in 0..rounds {
            if batch == 1 {
                world.node.say(chat, "ada", &text);
            } else {
                world.node.say_many(chat, "ada", batch);
            }
            wait(before.0 + (round + 1) * batch * SOCKETS);
        }
        let (user, system) = cpu_seconds("gw");
        let deliveries = (rounds * batch * SOCKETS) as f64;
        let each = |seconds: f64| seconds * 1e6 / deliveries;
        println!(
            "gateway, {batch} to a write: {:.2} CPU µs per delivery ({:.2} user, {:.2} system)",
            each(user + system - before.1.0 - before.1.1),
            each(user - before.1.0),
            each(system - before.1.1)
        );
    }
    // The same frame, written by a loop.
    let listener = raw_threads.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let connecting = client_threads.spawn(tokio::net::TcpStream::connect(address));
        let (socket, _) = raw_threads.block_on(listener.accept()).unwrap();
        socket.set_nodelay(true).unwrap();
        listen(client_threads.block_on(connecting).unwrap().unwrap());
        sockets.push(socket);
    }
    let frame = [b"\x81\x7e\x01\x50{\"event\":".as_slice(), &[b' '; 330]].concat();
    for batch in [1usize, 8] {
        let frames: Arc<[u8]> = frame.repeat(batch).into();
        let before = (received.load(Ordering::Relaxed), cpu_seconds("raw"));
        for round in 0..100 {
            let frames = Arc::clone(&frames);
            sockets = raw_threads
                .block_on(raw_threads.spawn(async move {
                    for socket in &sockets {
                        assert_eq!(socket.try_write(&frames).unwrap(), frames.len());
                    }
                    sockets
                }))
                .unwrap();
            wait(before.0 + (round + 1) * batch * SOCKETS);
        }
        let (user, system) = cpu_seconds("raw");
        let each = (user + system - before.1.0 - before.1.1) * 1e6 / (100 * batch * SOCKETS) as f64;
        println!("a loop of writes, {batch} to a write: {each:.2} CPU µs per delivery");
    }
    drop(world);
}

/// Goal: what a send with its one delivery costs in the gateway, the node being next to nothing. Method: pairs in
/// conversations of two, each sender with so many requests in flight.
#[test]
#[ignore = "a measurement, as above"]
fn sends() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    const PAIRS: usize = 64;
    const SENDS: usize = 1_000;
    for (in_flight, name) in [(1usize, "one"), (8, "eight")] {
        let (gateway_threads, client_threads) = (threads(name, 2), threads("client", 1));
        let world = Arc::new(gateway_threads.block_on(async { tokio::spawn(World::new()).await.unwrap() }));
        let delivered = Arc::new(AtomicUsize::new(0));
        let before = cpu_seconds(name);
        let began = std::time::Instant::now();
        client_threads.block_on(async {
            let mut senders = Vec::new();
            for pair in 0..PAIRS {
                let (from, to) = (format!("from{pair}"), format!("to{pair}"));
                let chat = world.node.conversation(&[&from, &to], 0, false);
                let (mut sender, mut receiver) = (join(&world, &from, None).await, join(&world, &to, None).await);
                let delivered = delivered.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 16 * 1024];
                    while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
                        let frames = buffer[..count].windows(9).filter(|window| window == b"{\"event\":").count();
                        delivered.fetch_add(frames, Ordering::Relaxed);
                    }
                });
                senders.push(tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    let (mut asked, mut answered) = (0, 0);
                    while answered < SENDS {
                        let mut bytes = Vec::new();
                        while asked < SENDS && asked < answered + in_flight {
                            let args = json!({"conversation": chat, "client_msg_id": uuid::Uuid::now_v7(), "body": {"text": "x".repeat(190)}});
                            bytes.extend(masked(0x81, json!({"id": asked, "message.send": args}).to_string().as_bytes()));
                            asked += 1;
                        }
                        sender.write_all(&bytes).await.unwrap();
                        let count = sender.read(&mut buffer).await.unwrap();
                        assert!(count > 0);
                        answered += buffer[..count].windows(5).filter(|window| window == b"\"ok\":").count();
                    }
                }));
            }
            for sender in senders {
                sender.await.unwrap();
            }
        });
        let (user, system) = cpu_seconds(name);
        let each = |seconds: f64| seconds * 1e6 / (PAIRS * SENDS) as f64;
        println!(
            "a send with its acknowledgement and two deliveries, {in_flight} in flight: {:.1} CPU µs ({:.1} user, {:.1} system), {:.0} sends/s",
            each(user + system - before.0 - before.1),
            each(user - before.0),
            each(system - before.1),
            (PAIRS * SENDS) as f64 / began.elapsed().as_secs_f64(),
        );
        drop(world);
        gateway_threads.shutdown_background();
    }
}
