//! Connections come and go: nobody is told twice, or in the wrong order, or never.

use super::*;
use crate::link::quic::tests::hostile::Relay;

#[tokio::test]
async fn a_peer_that_leaves_has_sent_everything_and_is_missed_at_once() {
    let world = World::new();
    let patient = |role, uid| {
        let identity = world.authority.issue(role, None).unwrap();
        let settings = Settings { idle_timeout: Duration::from_secs(30), ..Settings::default() };
        Party::with(identity, hello(role, uid), settings, HERE, Probe::default())
    };
    let (gateway, node) = (patient(Role::Gateway, 1), patient(Role::Node, 2));
    let way = gateway.reach(&node).await;
    for number in 0..2_000 {
        assert!(way.send((number % 16) as u8, 1, numbered(number, 500)));
        assert!(node.probe.last().send(3, 1, numbered(number, 500)));
    }
    let began = std::time::Instant::now();
    gateway.endpoint.close().await;
    assert!(!way.send(0, 1, Bytes::new()) && way.connection().is_none());
    node.probe.until("the end", |seen| seen.lost.len() == 1).await;
    assert!(began.elapsed() < Duration::from_secs(25), "not by silence");
    assert_eq!(node.probe.seen().frames.len(), 2_000, "what was queued came first");
    assert_eq!(node.count("chappe_quic_disconnects_total{reason=\"goodbye\"}"), 1);
    assert_eq!(gateway.probe.seen().lost.len(), 1, "who leaves is told too");
    assert!(gateway.endpoint.connections().is_empty() && node.endpoint.connections().is_empty());
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_missed_by_both_and_found_again() {
    let world = World::new();
    let (gateway, node) = (world.gateway(1), world.node(2));
    let relay = Relay::to(node.address()).await;
    let way = gateway.endpoint.way(Some(2), relay.address());
    node.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    eventually("the way knows", || way.connection().is_some()).await;
    relay.cut();
    for party in [&gateway, &node] {
        party.probe.until("its end", |seen| seen.lost.len() == 1).await;
        assert_eq!(party.count("chappe_quic_disconnects_total{reason=\"silence\"}"), 1);
    }
    assert!(way.connection().is_none() && !way.send(0, 1, Bytes::new()));
    relay.mend();
    way.redial();
    for party in [&gateway, &node] {
        party.probe.until("a new one", |seen| seen.connected.len() == 2).await;
        let numbers: Vec<u64> = party.probe.seen().connected.iter().map(|each| each.number()).collect();
        let order = [("connected", numbers[0]), ("lost", numbers[0]), ("connected", numbers[1])];
        assert_eq!(party.probe.seen().order, order);
    }
    eventually("it carries frames", || way.send(0, 1, numbered(5, 8))).await;
    node.probe.until("the frame", |seen| seen.frames.len() == 1).await;
}

#[tokio::test]
async fn who_dials_again_before_the_former_connection_is_missed_supersedes_it() {
    let world = World::new();
    let node = world.node(1);
    let raw = Raw::new(&world.authority.issue(Role::Gateway, None).unwrap());
    let said = |incarnation| Hello { incarnation, ..hello(Role::Gateway, 2) };
    let first = raw.enter(&node, &said(5)).await;
    let second = raw.enter(&node, &said(5)).await;
    let _third = raw.enter(&node, &said(6)).await;
    for superseded in [first, second] {
        timeout(LONG, superseded.closed()).await.unwrap();
    }
    node.probe.until("the third", |seen| seen.connected.len() == 3).await;
    let numbers: Vec<u64> = node.probe.seen().connected.iter().map(|each| each.number()).collect();
    assert_eq!(
        node.probe.seen().order[..5],
        [
            ("connected", numbers[0]),
            ("lost", numbers[0]),
            ("connected", numbers[1]),
            ("lost", numbers[1]),
            ("connected", numbers[2])
        ]
    );
    assert_eq!(node.count("chappe_quic_disconnects_total{reason=\"superseded\"}"), 2);
}

#[tokio::test]
async fn an_earlier_life_is_refused_while_a_later_one_is_connected() {
    let world = World::new();
    let node = world.node(1);
    let raw = Raw::new(&world.authority.issue(Role::Gateway, None).unwrap());
    let said = |incarnation| Hello { incarnation, ..hello(Role::Gateway, 2) };
    let later = raw.enter(&node, &said(6)).await;
    let earlier = raw.connect(&node).await;
    assert!(introduce(&earlier, &said(5).encode(0)).await.is_err());
    assert_eq!(node.count("chappe_quic_refusals_total{side=\"accepted\",reason=\"stale\"}"), 1);
    assert!(later.close_reason().is_none());
}

#[tokio::test]
async fn a_node_that_starts_again_makes_others_leave_the_life_before() {
    let world = World::new();
    let (one, two) = (world.node(1), world.node(2));
    let relay = Relay::to(two.address()).await;
    let way = one.endpoint.way(Some(2), relay.address());
    one.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    relay.cut();
    // It is back, elsewhere, and dials: before silence would tell.
    let again = Hello { incarnation: 2, ..hello(Role::Node, 2) };
    let again = Party::new(world.authority.issue(Role::Node, None).unwrap(), again);
    let _back = again.endpoint.way(Some(1), one.address());
    one.until_counted("chappe_quic_disconnects_total{reason=\"superseded\"}", 1).await;
    way.move_to(again.address());
    again.probe.until("both ways", |seen| seen.connected.len() == 2).await;
    eventually("the way leads there", || way.connection().is_some_and(|there| there.peer().incarnation == 2)).await;
}

#[test]
fn a_peer_that_was_killed_and_starts_again_is_missed_at_its_first_packet() {
    let world = World::new();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (ours, killed) = (runtime(), runtime());
    let party = |role, uid, incarnation, address| {
        let identity = world.authority.issue(role, None).unwrap();
        // Silence would take longer than the test waits.
        let settings = Settings { idle_timeout: 10 * LONG, ..impatient() };
        let hello = Hello { incarnation, ..hello(role, uid) };
        Party::with(identity, hello, settings, address, Probe::default())
    };
    let node = killed.block_on(async { party(Role::Node, 1, 1, HERE) });
    let gateway = ours.block_on(async { party(Role::Gateway, 2, 1, HERE) });
    let address = node.address();
    let way = ours.block_on(gateway.reach(&node));
    killed.shutdown_background();
    drop(node);
    let is_free = || std::net::UdpSocket::bind(address).is_ok();
    ours.block_on(eventually("its port is free", is_free));
    assert!(way.connection().is_some(), "it said nothing");
    let again = ours.block_on(async { party(Role::Node, 1, 2, address) });
    ours.block_on(async {
        gateway.until_counted("chappe_quic_disconnects_total{reason=\"reset\"}", 1).await;
        again.probe.until("a connection", |seen| seen.connected.len() == 1).await;
        eventually("the way leads there", || way.send(0, 1, numbered(1, 8))).await;
        again.probe.until("a frame", |seen| seen.frames.len() == 1).await;
    });
}

#[tokio::test]
async fn a_way_is_dialled_until_somebody_answers_and_no_longer_than_it_exists() {
    let world = World::new();
    let gateway = world.gateway(1);
    // A port that somebody had a moment ago.
    let address = world.node(9).address();
    let way = gateway.endpoint.way(Some(2), address);
    gateway.until_counted("chappe_quic_dials_total{result=\"failed\"}", 1).await;
    let identity = world.authority.issue(Role::Node, None).unwrap();
    let node = Party::with(identity, hello(Role::Node, 2), impatient(), address, Probe::default());
    way.redial();
    gateway.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    eventually("the way knows", || way.connection().is_some()).await;
    assert!(way.send(3, 1, numbered(1, 8)));
    drop(way);
    node.probe.until("its end", |seen| seen.lost.len() == 1).await;
    assert_eq!(node.probe.seen().frames.len(), 1, "what was queued came first");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.probe.seen().connected.len(), 1, "nobody dials any more");
    assert_eq!(node.count("chappe_quic_disconnects_total{reason=\"goodbye\"}"), 1);
}

#[tokio::test]
async fn what_is_sent_in_connected_comes_first() {
    struct Greeter(Arc<Probe>);
    impl Handler for Greeter {
        fn connected(&self, connection: &Arc<Connection>) {
            assert!(connection.send(2, 9, "first".into()));
            self.0.connected(connection);
        }
        fn frame(&self, from: &Arc<Connection>, lane: u8, kind: u16, frame: Bytes) {
            self.0.frame(from, lane, kind, frame);
        }
        fn ask(&self, from: &Arc<Connection>, kind: u16, question: Bytes) -> Answer {
            self.0.ask(from, kind, question)
        }
        fn datagram(&self, from: &Arc<Connection>, kind: u16, datagram: Bytes) {
            self.0.datagram(from, kind, datagram);
        }
        fn lost(&self, connection: &Arc<Connection>) {
            self.0.lost(connection);
        }
    }
    let world = World::new();
    let node = world.node(1);
    let identity = world.authority.issue(Role::Gateway, None).unwrap();
    let greeter = Arc::new(Greeter(Arc::default()));
    let gateway = Endpoint::bind(HERE, identity, hello(Role::Gateway, 2), impatient(), greeter).unwrap();
    let way = gateway.way(None, node.address());
    eventually("the way is up", || way.send(2, 10, "second".into())).await;
    node.probe.until("both frames", |seen| seen.frames.len() == 2).await;
    let kinds: Vec<u16> = node.probe.seen().frames.iter().map(|(_, _, kind, _)| *kind).collect();
    assert_eq!(kinds, [9, 10]);
}
