//! Frames: in order, whole, and bounded.

use std::collections::BTreeMap;

use super::*;
use crate::link::quic::{LANES, frame};

/// Frames of each lane that came over a connection, in order.
fn by_lane(seen: &Seen) -> BTreeMap<u8, Vec<u64>> {
    let mut lanes: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    for (_, lane, _, frame) in &seen.frames {
        lanes.entry(*lane).or_default().push(number_of(frame));
    }
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_frames_each_way_keep_the_order_of_their_lanes() {
    const FRAMES: u64 = 100_000;
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let way = gateway.reach(&node).await;
    let back = node.probe.last();
    // Windows of frames, so that the queue's bound is not what is tried here.
    let mut sent = 0;
    while sent < FRAMES {
        for number in sent..(sent + 5_000).min(FRAMES) {
            let frame = numbered(number, 8 + (number % 400) as usize);
            assert!(way.send((number % 16) as u8, number as u16, frame.clone()));
            assert!(back.send((number % 16) as u8, number as u16, frame));
        }
        sent = (sent + 5_000).min(FRAMES);
        for party in [&gateway, &node] {
            party.probe.until("the frames sent so far", |seen| seen.frames.len() as u64 == sent).await;
        }
    }
    for party in [&gateway, &node] {
        came_in_order(&party.probe.seen(), FRAMES);
        party.until_counted("chappe_quic_frames_total{direction=\"sent\"}", FRAMES).await;
        party.until_counted("chappe_quic_frames_total{direction=\"received\"}", FRAMES).await;
    }
}

fn came_in_order(seen: &Seen, frames: u64) {
    let lanes = by_lane(seen);
    assert_eq!(lanes.len(), usize::from(LANES));
    for (lane, numbers) in lanes {
        let expected: Vec<u64> = (0..frames).filter(|number| number % 16 == u64::from(lane)).collect();
        assert!(numbers == expected, "lane {lane} is out of order");
    }
    assert!(seen.frames.iter().all(|(_, _, kind, frame)| {
        let number = number_of(frame);
        *kind == number as u16 && *frame == numbered(number, 8 + (number % 400) as usize)
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_any_size_arrive_whole_and_larger_ones_are_not_sent() {
    const LARGEST: usize = chappe_schema::limit::LINK_FRAME_BYTES_MAX;
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let way = gateway.reach(&node).await;
    let sizes = [0, 1, 4_096, 4_097, 70_000, 1 << 20, LARGEST];
    for (lane, size) in sizes.into_iter().enumerate() {
        assert!(way.send(lane as u8 % 3, size as u16, Bytes::from(vec![lane as u8; size])));
    }
    assert!(!way.send(0, 0, Bytes::from(vec![0; LARGEST + 1])));
    node.probe.until("all of them", |seen| seen.frames.len() == sizes.len()).await;
    for (lane, size) in sizes.into_iter().enumerate() {
        let expected = Bytes::from(vec![lane as u8; size]);
        assert!(node.probe.seen().frames.iter().any(|(_, _, _, frame)| *frame == expected), "{size} bytes");
    }
    assert!(way.connection().unwrap().is_open(), "what is too large disturbs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_nobody_reads_holds_no_other_up_until_too_much_waits_in_it() {
    let world = World::new();
    let node = world.node(1);
    let raw = Raw::new(&world.authority.issue(Role::Gateway, None).unwrap());
    let peer = raw.enter(&node, &hello(Role::Gateway, 2)).await;
    node.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    let connection = node.probe.last();
    // More than the lane's window, and than all that one would guess.
    let megabyte = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..16 {
        assert!(connection.send(0, 1, megabyte.clone()));
    }
    for number in 0..1000 {
        assert!(connection.send(5, 2, numbered(number, 100)));
    }
    // One stream is left alone, the other one is read to the last frame.
    let mut left_alone = None;
    let mut read = loop {
        let mut stream = timeout(LONG, peer.accept_uni()).await.unwrap().unwrap();
        let mut lane = [0];
        stream.read_exact(&mut lane).await.unwrap();
        match lane {
            [5] => break stream,
            _ => left_alone = Some(stream),
        }
    };
    let mut bytes = vec![0; 1000 * (frame::HEADER + 100)];
    timeout(LONG, read.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes[bytes.len() - 100..][..8], 999_u64.to_le_bytes());

    let mut more = 0;
    while connection.send(0, 1, megabyte.clone()) {
        more += 1;
        assert!(more < 40, "nobody holds back");
    }
    node.probe.until("its end", |seen| seen.lost == [connection.number()]).await;
    assert_eq!(node.count("chappe_quic_disconnects_total{reason=\"queue\"}"), 1);
    assert!(!connection.is_open() && !connection.send(5, 2, Bytes::new()));
    drop(left_alone);
}

#[tokio::test]
async fn a_frame_that_breaks_the_rules_ends_its_connection_and_no_other() {
    let world = World::new();
    let node = world.node(1);
    let quiet = world.gateway(2);
    let way = quiet.reach(&node).await;
    let raw = Raw::new(&world.authority.issue(Role::Gateway, None).unwrap());
    let good = |payload: &[u8]| [&frame::header(3, payload), payload].concat();
    let mut damaged = good(b"something");
    damaged[12] ^= 1;
    let mut endless = good(b"x");
    endless[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases: [(&str, &str, Vec<Vec<u8>>); 6] = [
        ("a changed bit", "checksum", vec![[vec![0], good(b"first"), damaged].concat()]),
        ("too long", "length", vec![[vec![0], good(b"first"), endless].concat()]),
        ("noise", "length", vec![[vec![0], good(b"first"), vec![0xFF; 500]].concat()]),
        ("no such lane", "lane", vec![vec![LANES]]),
        ("an end within a frame", "lane", vec![[vec![0], good(b"first"), vec![1, 2, 3]].concat()]),
        ("a lane twice", "lane", vec![[vec![0], good(b"first")].concat(), vec![0]]),
    ];
    for (number, (what, reason, streams)) in (1..).zip(cases) {
        let series = format!("chappe_quic_disconnects_total{{reason=\"{reason}\"}}");
        let before = node.count(&series);
        let peer = raw.enter(&node, &hello(Role::Gateway, 3)).await;
        for bytes in &streams {
            let mut stream = peer.open_uni().await.unwrap();
            // The connection may be over before all of it is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.finish();
            if bytes != streams.last().unwrap() {
                node.probe.until("the first lane", |seen| !seen.frames.is_empty()).await;
            }
        }
        timeout(LONG, peer.closed()).await.unwrap();
        node.probe.until(what, |seen| seen.lost.len() == number).await;
        assert_eq!(node.count(&series), before + 1, "{what}");
        let mut seen = node.probe.seen();
        let whole = seen.frames.drain(..).all(|(_, lane, kind, frame)| (lane, kind, &frame[..]) == (0, 3, b"first"));
        assert!(whole, "{what}: only what was whole is handed on");
    }
    assert!(way.connection().unwrap().is_open());
    assert_eq!(quiet.probe.seen().lost.len(), 0);
}

#[tokio::test]
async fn a_panic_over_a_frame_ends_its_connection_and_the_next_one_works() {
    let world = World::new();
    let gateway = world.gateway(1);
    let probe = Probe {
        on_frame: Some(|from, lane, kind, frame| {
            assert_ne!(kind, 13, "a bug, on purpose");
            from.send(lane, kind, frame);
        }),
        ..Probe::default()
    };
    let identity = world.authority.issue(Role::Node, None).unwrap();
    let node = Party::with(identity, hello(Role::Node, 2), impatient(), HERE, probe);
    let way = gateway.reach(&node).await;
    assert!(way.send(4, 13, Bytes::new()));
    gateway.probe.until("a new connection", |seen| seen.connected.len() == 2 && seen.lost.len() == 1).await;
    assert_eq!(node.count("chappe_quic_disconnects_total{reason=\"panic\"}"), 1);
    eventually("it carries frames", || way.send(4, 12, numbered(1, 8))).await;
    gateway.probe.until("the frame back", |seen| !seen.frames.is_empty()).await;
}

#[tokio::test]
async fn datagrams_are_sent_or_dropped_and_hold_nothing_up() {
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let way = gateway.reach(&node).await;
    assert!(!way.datagram(1, &[0; 70_000]), "no packet is so large");
    assert_eq!(gateway.count("chappe_quic_datagrams_total{result=\"dropped\"}"), 1);
    let mut sent = 0;
    while node.probe.seen().datagrams.len() < 10 {
        assert!(sent < 10_000, "one of them arrives now and then");
        sent += u64::from(way.datagram(4, b"ada types"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(node.probe.seen().datagrams.iter().all(|(kind, bytes)| *kind == 4 && bytes == "ada types"));
    assert_eq!(gateway.count("chappe_quic_datagrams_total{result=\"sent\"}"), sent);
    drop(way);
    node.probe.until("the end", |seen| seen.lost.len() == 1).await;
    assert!(!gateway.probe.last().datagram(4, b"late"));
}
