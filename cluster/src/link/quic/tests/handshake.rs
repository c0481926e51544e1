//! Who is let in, and with what sentence everybody else is not.

use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};

use super::*;
use crate::link::quic::hello::Reason;

/// A series of refusals.
fn refusals(side: &str, reason: &str) -> String {
    format!("chappe_quic_refusals_total{{side=\"{side}\",reason=\"{reason}\"}}")
}

/// One dials the other, and both know why nothing comes of it.
async fn refused(dialler: &Party, other: &Party, reason: &str) {
    let _way = dialler.endpoint.way(None, other.address());
    dialler.until_counted(&refusals("dialled", reason), 1).await;
    other.until_counted(&refusals("accepted", reason), 1).await;
    for party in [dialler, other] {
        assert!(party.probe.seen().connected.is_empty(), "nobody is told of a connection");
        assert_eq!(party.endpoint.connections().len(), 0);
    }
}

#[tokio::test]
async fn both_ends_know_each_other_and_the_protocol() {
    let world = World::new();
    let (cluster, strict) = (0x00C1_u128, world.authority.issue(Role::Node, Some(0xA7)).unwrap());
    let node = Hello { cluster, protocol_max: 3, incarnation: 9, ..hello(Role::Node, 0xA7) };
    let gateway = Hello { protocol_min: 1, protocol_max: 2, ..hello(Role::Gateway, 0xB1) };
    let node = Party::new(strict, node);
    let gateway = Party::new(world.authority.issue(Role::Gateway, None).unwrap(), gateway);
    let way = gateway.endpoint.way(Some(0xA7), node.address());
    gateway.probe.until("a connection", |seen| seen.connected.len() == 1).await;
    node.probe.until("the same", |seen| seen.connected.len() == 1).await;
    let (here, there) = (gateway.probe.last(), node.probe.last());
    assert!(here.dialled() && !there.dialled());
    assert_eq!((here.version(), there.version()), (2, 2));
    assert_eq!((here.peer().uid, here.peer().incarnation, here.peer().cluster), (0xA7, 9, cluster));
    assert_eq!((there.peer().role, there.peer().name.as_str()), (Role::Gateway, "gateway-177"));
    assert_eq!(gateway.count("chappe_quic_connections{role=\"node\",side=\"dialled\"}"), 1);
    assert_eq!(node.count("chappe_quic_connections{role=\"gateway\",side=\"accepted\"}"), 1);
    drop(way);
    node.probe.until("it is over", |seen| seen.lost.len() == 1).await;
    assert_eq!(node.count("chappe_quic_connections{role=\"gateway\",side=\"accepted\"}"), 0);
}

#[tokio::test]
async fn releases_that_are_too_far_apart_refuse_each_other_with_a_sentence() {
    let world = World::new();
    let party = |uid: u64, protocol_min: u16, protocol_max: u16| {
        let hello = Hello { protocol_min, protocol_max, ..hello(Role::Node, uid) };
        Party::new(world.authority.issue(Role::Node, None).unwrap(), hello)
    };
    let (old, new) = (party(1, 1, 2), party(2, 3, 4));
    refused(&old, &new, "version").await;
    // The next one speaks with both, as every release does with its neighbours.
    let between = party(3, 2, 3);
    let ways = [between.endpoint.way(None, old.address()), between.endpoint.way(None, new.address())];
    between.probe.until("both", |seen| seen.connected.len() == 2).await;
    let mut versions: Vec<u16> = between.probe.seen().connected.iter().map(|each| each.version()).collect();
    versions.sort_unstable();
    assert_eq!(versions, [2, 3]);
    drop(ways);

    let said = hello(Role::Node, 1).agree(&Hello { protocol_min: 3, protocol_max: 4, ..hello(Role::Node, 2) });
    let said = said.unwrap_err().to_string();
    assert!(said.contains("speaks the protocols 1 to 1") && said.contains("3 to 4"), "{said}");
}

#[tokio::test]
async fn a_gateways_certificate_does_not_speak_as_a_node_nor_a_strict_one_as_another() {
    let world = World::new();
    let node = world.node(1);
    let raw = Raw::new(&world.authority.issue(Role::Gateway, None).unwrap());
    for said in [hello(Role::Node, 2), hello(Role::Node, 1)] {
        let connection = raw.connect(&node).await;
        assert!(introduce(&connection, &said.encode(0)).await.is_err());
        let Some(quinn::ConnectionError::ApplicationClosed(close)) = connection.close_reason() else { panic!() };
        assert_eq!(close.error_code.into_inner(), u64::from(Reason::Name.code()));
        let sentence = String::from_utf8_lossy(&close.reason).into_owned();
        assert!(sentence.contains("does not show a node's certificate"), "{sentence}");
    }
    let raw = Raw::new(&world.authority.issue(Role::Node, Some(2)).unwrap());
    assert!(introduce(&raw.connect(&node).await, &hello(Role::Node, 3).encode(0)).await.is_err());
    node.until_counted(&refusals("accepted", "name"), 3).await;
    // Its own name is welcome.
    raw.enter(&node, &hello(Role::Node, 2)).await;
    node.probe.until("the one that may", |seen| seen.connected.len() == 1).await;
}

#[tokio::test]
async fn certificates_of_others_and_those_of_yesterday_are_refused_by_whoever_sees_them() {
    let (world, other) = (World::new(), World::new());
    let (node, stranger) = (world.node(1), other.node(2));
    // The dialler sees the other's certificate first.
    let _way = stranger.endpoint.way(None, node.address());
    stranger.until_counted(&refusals("dialled", "unknown_authority"), 1).await;
    node.until_counted(&refusals("accepted", "unknown_authority"), 1).await;
    assert!(node.probe.seen().connected.is_empty() && stranger.probe.seen().connected.is_empty());

    // Who believes our authority and is not believed by it.
    let (certificate, key) = other.authority.issue_pem(Role::Node, None).unwrap();
    let raw = Raw::new(&pieced(&[&world, &other], &certificate, &key));
    let connection = raw.connect(&node).await;
    assert!(introduce(&connection, &hello(Role::Node, 3).encode(0)).await.is_err());
    node.until_counted(&refusals("accepted", "unknown_authority"), 2).await;
}

/// An identity that believes several authorities.
fn pieced(believes: &[&World], certificate: &str, key: &str) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authorities: String = believes.iter().map(|world| world.authority.certificate_pem()).collect();
    Identity::load(&path("ca", &authorities), &path("certificate", certificate), &path("key", key)).unwrap()
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_is_refused_while_its_process_still_runs() {
    let world = World::new();
    let node = world.node(1);
    let lives = Duration::from_millis(2_500);
    let identity = world.identity("gateway.chappe", SystemTime::now() - Duration::from_secs(1), lives).unwrap();
    // Times in certificates are whole seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let gateway = Party::new(identity, hello(Role::Gateway, 2));
    let way = gateway.endpoint.way(None, node.address());
    node.until_counted(&refusals("accepted", "expired"), 1).await;
    gateway.until_counted(&refusals("dialled", "expired"), 1).await;
    // A new one is good for the next attempt, without a new start.
    assert!(gateway.endpoint.replace_identity(world.authority.issue(Role::Node, None).unwrap()).is_err());
    gateway.endpoint.replace_identity(world.authority.issue(Role::Gateway, None).unwrap()).unwrap();
    way.redial();
    gateway.probe.until("a connection with the new one", |seen| seen.connected.len() == 1).await;
}

/// Has no certificate.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn who_speaks_something_else_or_shows_no_certificate_is_refused() {
    let world = World::new();
    let node = world.node(1);
    let identity = world.authority.issue(Role::Node, None).unwrap();
    let mut other = (*identity.client()).clone();
    other.alpn_protocols = vec![b"h3".to_vec()];
    let mut nobody = (*identity.client()).clone();
    nobody.client_auth_cert_resolver = Arc::new(Nobody);
    for (tls, reason) in [(other, "alpn"), (nobody, "certificate")] {
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let raw = Raw::new(&identity);
        let connecting = raw.endpoint.connect_with(quinn::ClientConfig::new(Arc::new(tls)), node.address(), "chappe");
        if let Ok(connection) = connecting.unwrap().await {
            assert!(introduce(&connection, &hello(Role::Node, 2).encode(0)).await.is_err());
        }
        node.until_counted(&refusals("accepted", reason), 1).await;
    }
    assert!(node.probe.seen().connected.is_empty());
}

#[tokio::test]
async fn foreign_clusters_and_oneself_are_refused() {
    let world = World::new();
    let party = |uid: u64, cluster: u128| {
        let hello = Hello { cluster, ..hello(Role::Node, uid) };
        Party::new(world.authority.issue(Role::Node, None).unwrap(), hello)
    };
    refused(&party(1, 0xA), &party(2, 0xB), "cluster").await;
    let one = party(3, 0xA);
    refused(&one, &one, "itself").await;
    // Whoever does not know yet is let in.
    party(4, 0).reach(&party(5, 0xB)).await;
}

#[tokio::test]
async fn who_stands_at_another_ones_address_is_not_taken_for_it() {
    let world = World::new();
    let (one, other) = (world.node(1), world.node(2));
    let _way = one.endpoint.way(Some(7), other.address());
    one.until_counted(&refusals("dialled", "somebody_else"), 1).await;
    assert!(one.probe.seen().connected.is_empty());
    // The other end heard of a connection, and that it is over.
    other.probe.until("over", |seen| seen.lost.len() == seen.connected.len()).await;
}

#[tokio::test]
async fn when_a_cluster_is_known_foreigners_go_and_strangers_introduce_themselves_again() {
    let world = World::new();
    let (one, two) = (world.node(1), world.node(2));
    let foreign = Hello { cluster: 0xB, ..hello(Role::Node, 3) };
    let foreign = Party::new(world.authority.issue(Role::Node, None).unwrap(), foreign);
    let _way = one.reach(&two).await;
    let _foreign = one.endpoint.way(None, foreign.address());
    one.probe.until("both", |seen| seen.connected.len() == 2).await;

    one.endpoint.know_cluster(0xA);
    one.until_counted("chappe_quic_disconnects_total{reason=\"cluster\"}", 1).await;
    one.until_counted("chappe_quic_disconnects_total{reason=\"introduction\"}", 1).await;
    two.probe.until("it is told who it is now", |seen| seen.connected.len() == 2).await;
    assert_eq!(two.probe.last().peer().cluster, 0xA);
    one.until_counted(&refusals("dialled", "cluster"), 1).await;

    // The other learns the same: nothing to judge.
    two.endpoint.know_cluster(0xA);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(two.probe.last().is_open());
}

#[tokio::test]
async fn introductions_that_cannot_be_read_or_do_not_come_are_refused() {
    let world = World::new();
    let node = world.node(1);
    let raw = Raw::new(&world.authority.issue(Role::Node, None).unwrap());
    let good = hello(Role::Node, 2).encode(0);
    let mut unknown_role = good.clone();
    unknown_role[0] = 9;
    for said in [&b""[..], &good[..good.len() - 1], &unknown_role, &[0; 2000]] {
        assert!(introduce(&raw.connect(&node).await, said).await.is_err());
    }
    node.until_counted(&refusals("accepted", "malformed"), 4).await;
    // What a later release says beyond this one is no concern of ours.
    let mut longer = good;
    longer.extend_from_slice(b"and more");
    introduce(&raw.connect(&node).await, &longer).await.unwrap();

    let silent = raw.connect(&node).await;
    node.until_counted(&refusals("accepted", "late"), 1).await;
    silent.closed().await;
    assert_eq!(node.probe.seen().connected.len(), 1);
}
