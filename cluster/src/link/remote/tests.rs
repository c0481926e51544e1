//! A gateway and nodes over real QUIC on loopback, with real bytes; both ends only remember what they hear.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use chappe_schema::{
    access::By,
    command::Command as Asking,
    error::Code,
    id::{CommandId, ConversationId, GatewayId, Generation, SessionId, UserId},
    reply::Reply,
    wire::{Actor, Asked, Correlation, Lane, Owner, ToNode},
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{
    door::{Door, PeerPort, gateway_id},
    gateway::{RemoteLinks, Start},
    *,
};
use crate::{
    control::Watcher,
    link::{
        GatewayPort, Links, NodePort,
        quic::{Answer, Handler, Hello, Role, Settings, authority::Authority},
    },
    ownership::{Assignment, ClusterId, Command, Founding, NewSession, Ownership, Versions},
};

const LONG: Duration = Duration::from_secs(30);
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const GATEWAY: u64 = 0xabcd_0000_0007;
const CONVERSATION: ConversationId = ConversationId(Uuid::from_u128(7));

struct World {
    authority: Authority,
    _folder: TempDir,
}

/// A node's end, as its door sees it.
#[derive(Default)]
struct Node {
    gateways: Mutex<Vec<(GatewayId, Arc<dyn GatewayPort>)>>,
    gone: Mutex<Vec<GatewayId>>,
    heard: Mutex<Vec<ToNode>>,
    said: Mutex<Vec<Vec<u8>>>,
    back: Mutex<Vec<NodeUid>>,
    /// What is answered at once.
    refuses: Option<Code>,
}

/// A gateway's end.
#[derive(Default)]
struct Gateway {
    heard: Mutex<Vec<(SessionId, Vec<ToGateway>)>>,
    assigned: Mutex<usize>,
    lost: Mutex<Vec<SessionId>>,
}

impl NodePort for Node {
    fn attach(&self, id: GatewayId, gateway: Arc<dyn GatewayPort>) {
        self.gateways.lock().push((id, gateway));
    }

    fn detach(&self, id: GatewayId) {
        self.gone.lock().push(id);
    }

    fn receive(&self, from: GatewayId, message: ToNode) -> Vec<ToGateway> {
        assert_eq!(from, gateway_id(GATEWAY));
        let refusal = match (&message, self.refuses) {
            (ToNode::Command(_, asked), Some(code)) => vec![ToGateway::Reply(asked.correlation, Err(code.into()))],
            _ => Vec::new(),
        };
        self.heard.lock().push(message);
        refusal
    }

    fn generation(&self) -> Generation {
        Generation(1)
    }
}

impl PeerPort for Node {
    fn hear(&self, bytes: &[u8]) -> bool {
        self.said.lock().push(bytes.to_vec());
        bytes != b"nonsense"
    }

    fn back(&self, node: NodeUid) {
        self.back.lock().push(node);
    }
}

impl GatewayPort for Gateway {
    fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        self.heard.lock().push((from, batch));
    }

    fn assigned(&self, owners: &[(Partition, Owner)]) {
        *self.assigned.lock() += owners.len();
    }

    fn lost(&self, session: SessionId) {
        self.lost.lock().push(session);
    }
}

/// A node with its door open.
struct Host {
    uid: NodeUid,
    node: Arc<Node>,
    endpoint: Arc<Endpoint>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { authority: Authority::open_or_create(folder.path()).unwrap(), _folder: folder }
    }

    async fn host(&self, uid: u64, at: SocketAddr, node: Node) -> Host {
        let (door, node) = (Arc::new(Door::default()), Arc::new(node));
        let identity = self.authority.issue(Role::Node, Some(uid)).unwrap();
        let bind = || {
            let (identity, handler) = (identity.clone(), Arc::clone(&door) as _);
            Endpoint::bind(at, identity, hello(Role::Node, uid), Settings::default(), handler)
        };
        // A former endpoint may hold the address for a moment.
        let mut bound = bind();
        while bound.is_err() && at.port() != 0 {
            sleep(Duration::from_millis(5)).await;
            bound = bind();
        }
        let endpoint = bound.unwrap();
        door.open(Arc::clone(&node) as _, Arc::clone(&node) as _);
        Host { uid: NodeUid(uid), node, endpoint: Arc::new(endpoint) }
    }

    /// A gateway that knows this map.
    fn gateway(&self, map: &Map) -> (Arc<Gateway>, Arc<RemoteLinks>) {
        let identity = self.authority.issue(Role::Gateway, Some(GATEWAY)).unwrap();
        let start = Start::at(HERE, identity, hello(Role::Gateway, GATEWAY)).unwrap();
        let port = Arc::new(Gateway::default());
        let links = start.join(Arc::clone(&port) as _, Generation(1), |watcher: Watcher| watcher(map));
        (port, links)
    }
}

fn hello(role: Role, uid: u64) -> Hello {
    let name = format!("{role}-{uid:x}");
    Hello { role, uid, incarnation: 1, cluster: 0, protocol_min: 1, protocol_max: 1, name }
}

/// The map in which these nodes own everything in turn, and the sessions that they live.
fn map_of(hosts: &[&Host]) -> (Map, Vec<SessionId>) {
    let mut state = Ownership::default();
    let mut commands =
        vec![Command::Found(Founding { cluster: ClusterId(7), generation: 1, partitions: 4096, version: 1 })];
    commands.extend(hosts.iter().map(|host| {
        Command::RegisterSession(NewSession {
            node: host.uid,
            addr: host.endpoint.local_addr(),
            zone: String::new(),
            ordinal: 0,
            weight: 100,
            versions: Versions { min: 1, max: 1 },
        })
    }));
    for (index, command) in (1..).zip(&commands) {
        state.apply(index, command).unwrap();
    }
    let sessions: Vec<SessionId> = hosts.iter().map(|host| state.map().session_of(host.uid).unwrap()).collect();
    let assignments = (0..4096u16).map(|partition| Assignment {
        partition: Partition(partition),
        expect: 0,
        to: sessions[usize::from(partition) % sessions.len()],
    });
    let assign = Command::ExpireAndAssign { session: None, minute: None, assignments: assignments.collect() };
    state.apply(commands.len() as u64 + 1, &assign).unwrap();
    (state.map().clone(), sessions)
}

fn question(partition: u16, correlation: u64) -> ToNode {
    let actor = Actor { user: UserId::new("ada").unwrap(), device: None, by: By::Key("key".into()) };
    let command = Asking::ConversationGet { conversation: CONVERSATION };
    let id = CommandId(Uuid::from_u128(u128::from(correlation)));
    let asked = Asked { correlation: Correlation(correlation), actor, id, command, deadline: 9 };
    ToNode::Command(Lane { partition: Partition(partition), attempt: 0 }, Arc::new(asked))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(LONG, wait).await.is_ok(), "in vain: {what}");
}

/// What was asked, trials aside.
fn correlations(node: &Node) -> Vec<u64> {
    let number = |message: &ToNode| match message {
        ToNode::Command(_, asked) => asked.correlation.0,
        _ => 0,
    };
    node.heard.lock().iter().map(number).filter(|number| *number < 9_000).collect()
}

#[tokio::test]
async fn what_a_gateway_asks_reaches_the_owner_in_order_and_answers_come_back() {
    let world = World::new();
    let (one, other) = (world.host(1, HERE, Node::default()).await, world.host(2, HERE, Node::default()).await);
    let (map, sessions) = map_of(&[&one, &other]);
    let (port, links) = world.gateway(&map);
    until("both ways are there", || [&one, &other].iter().all(|host| host.node.gateways.lock().len() == 1)).await;
    until("everything has an owner", || *port.assigned.lock() == 4096).await;
    // A connection is known at both ends a moment before it is a way.
    let arrives = |index: usize| links.send(sessions[index], question(2, 9_000)).is_empty();
    until("the ways can be used", || arrives(0) && arrives(1)).await;
    for number in 0..500 {
        assert!(links.send(sessions[0], question(2, number)).is_empty());
        assert!(links.send(sessions[1], question(3, 1_000 + number)).is_empty());
    }
    until("all questions arrive", || correlations(&other.node).len() == 500 && correlations(&one.node).len() == 500)
        .await;
    assert_eq!(correlations(&one.node), (0..500).collect::<Vec<_>>());
    assert_eq!(correlations(&other.node), (1_000..1_500).collect::<Vec<_>>());
    let (id, gateway) = one.node.gateways.lock()[0].clone();
    assert_eq!(id, gateway_id(GATEWAY));
    gateway.receive(sessions[0], vec![ToGateway::Reply(Correlation(1), Ok(Reply::Closed)); 3]);
    gateway.receive(sessions[0], vec![ToGateway::Reply(Correlation(2), Err(Code::Internal.into()))]);
    until("both turns come back", || port.heard.lock().len() == 2).await;
    let heard = port.heard.lock();
    assert_eq!((heard[0].0, heard[0].1.len(), heard[1].1.len()), (sessions[0], 3, 1));
}

#[tokio::test]
async fn what_is_answered_in_place_of_a_shard_comes_back_too() {
    let world = World::new();
    let host = world.host(1, HERE, Node { refuses: Some(Code::Overloaded), ..Node::default() }).await;
    let (map, sessions) = map_of(&[&host]);
    let (port, links) = world.gateway(&map);
    until("the way is there", || links.send(sessions[0], question(2, 5)).is_empty()).await;
    until("it is refused", || !port.heard.lock().is_empty()).await;
    let heard = port.heard.lock();
    assert!(
        matches!(&heard[0].1[..], [ToGateway::Reply(Correlation(5), Err(error))] if error.code == Code::Overloaded)
    );
}

/// A node that ends has nothing to say to clients: its partitions are somebody else's by then, or soon.
#[tokio::test]
async fn a_node_that_leaves_sends_gateways_elsewhere() {
    let world = World::new();
    let host = world.host(1, HERE, Node { refuses: Some(Code::GoingAway), ..Node::default() }).await;
    let (map, sessions) = map_of(&[&host]);
    let (port, links) = world.gateway(&map);
    until("the way is there", || links.send(sessions[0], question(2, 5)).is_empty()).await;
    until("it is sent elsewhere", || !port.heard.lock().is_empty()).await;
    assert!(matches!(&port.heard.lock()[0].1[..], [ToGateway::Moved { owner: None, .. }]));
}

/// Nobody but a node that it has dialled has anything to say to a gateway.
#[tokio::test]
async fn a_gateway_hears_nodes_alone() {
    let world = World::new();
    let host = world.host(1, HERE, Node::default()).await;
    let (map, _) = map_of(&[&host]);
    let identity = world.authority.issue(Role::Gateway, Some(GATEWAY)).unwrap();
    let start = Start::at(HERE, identity, hello(Role::Gateway, GATEWAY)).unwrap();
    let address = start.address();
    let port = Arc::new(Gateway::default());
    let _links = start.join(Arc::clone(&port) as _, Generation(1), |watcher: Watcher| watcher(&map));
    let turn = Turn { from: 1, batch: vec![ToGateway::Reply(Correlation(1), Ok(Reply::Closed))] };
    let turn = chappe_schema::archive::to_bytes(&turn).unwrap();
    for role in [Role::Gateway, Role::Node] {
        let identity = world.authority.issue(role, Some(9)).unwrap();
        let endpoint = Endpoint::bind(HERE, identity, hello(role, 9), Settings::default(), Arc::new(Deaf)).unwrap();
        let way = endpoint.way(Some(GATEWAY), address);
        // It may be closed before it can be used.
        let sent = async {
            while !way.send(0, TO_GATEWAY, turn.clone()) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(Duration::from_secs(1), sent).await;
        sleep(Duration::from_millis(100)).await;
        assert!(port.heard.lock().is_empty(), "{role}");
    }
}

/// A turn that does not fit into a frame comes in several, and an answer that does not is an error.
#[tokio::test]
async fn turns_of_any_size_come_back() {
    let world = World::new();
    let host = world.host(1, HERE, Node::default()).await;
    let (map, sessions) = map_of(&[&host]);
    let (port, _links) = world.gateway(&map);
    until("the way is there", || host.node.gateways.lock().len() == 1).await;
    let gateway = Arc::clone(&host.node.gateways.lock()[0].1);
    let large = |number: u64, bytes: usize| {
        let error = chappe_schema::error::Error::new(Code::Internal).with_detail("x".repeat(bytes));
        ToGateway::Reply(Correlation(number), Err(error))
    };
    gateway.receive(sessions[0], (0..5).map(|number| large(number, LINK_FRAME_BYTES_MAX / 3)).collect());
    gateway.receive(sessions[0], vec![large(5, LINK_FRAME_BYTES_MAX + 1)]);
    let numbers = || -> Vec<u64> {
        let heard = port.heard.lock();
        let number = |message: &ToGateway| match message {
            ToGateway::Reply(correlation, _) => correlation.0,
            _ => 99,
        };
        heard.iter().flat_map(|(_, batch)| batch.iter().map(number)).collect()
    };
    until("everything comes", || numbers().len() == 6).await;
    assert_eq!(numbers(), [0, 1, 2, 3, 4, 5]);
    assert!(port.heard.lock().len() > 2, "in several frames");
}

/// A way that breaks is said, and said again when it is back; what is sent meanwhile is answered as by an owner who has moved, so
/// that its lane is asked again. The way comes back by itself, and the node starts from nothing.
#[tokio::test]
async fn a_broken_way_is_said_and_comes_back() {
    let world = World::new();
    let host = world.host(1, HERE, Node::default()).await;
    let address = host.endpoint.local_addr();
    let (map, sessions) = map_of(&[&host]);
    let (port, links) = world.gateway(&map);
    until("the way is there", || host.node.gateways.lock().len() == 1).await;
    host.endpoint.close().await;
    let Host { node, endpoint, .. } = host;
    drop(endpoint);
    until("the gateway hears of it", || !port.lost.lock().is_empty()).await;
    until("so does the node", || *node.gone.lock() == [gateway_id(GATEWAY)]).await;
    // Whoever keeps a connection keeps its socket.
    node.gateways.lock().clear();
    port.lost.lock().clear();
    // A session that nobody lives any more is none that can be reached.
    for session in [sessions[0], 77] {
        let answered = links.send(session, question(2, 11));
        let lane = Lane { partition: Partition(2), attempt: 0 };
        assert!(matches!(answered[..], [ToGateway::Moved { lane: at, owner: None }] if at == lane), "{answered:?}");
    }
    let again = world.host(1, address, Node::default()).await;
    until("the way is back", || again.node.gateways.lock().len() == 1).await;
    until("which is said", || port.lost.lock().contains(&sessions[0])).await;
    until("and can be used", || links.send(sessions[0], question(2, 9_000)).is_empty()).await;
    links.send(sessions[0], question(2, 12));
    until("and is used", || correlations(&again.node) == [12]).await;
}

/// Ways between nodes: each dials the other for what it has to say.
#[tokio::test]
async fn nodes_hear_each_other_and_are_told_when_a_way_is_back() {
    let world = World::new();
    let (one, other) = (world.host(1, HERE, Node::default()).await, world.host(2, HERE, Node::default()).await);
    let (map, _) = map_of(&[&one, &other]);
    let ways = Ways::new(Arc::clone(&one.endpoint));
    ways.follow(&map, Some(one.uid));
    until("the way is there", || *one.node.back.lock() == [other.uid]).await;
    assert!(!ways.send(one.uid, Partition(1), Kind::BETWEEN, || Some(Bytes::new())), "there is no way to oneself");
    for number in 0..100u8 {
        assert!(ways.send(other.uid, Partition(3), Kind::BETWEEN, || Some(Bytes::from(vec![number]))));
    }
    until("it is heard", || other.node.said.lock().len() == 100).await;
    assert!(other.node.said.lock().iter().map(|said| said[0]).eq(0..100));
    // What cannot be read ends the connection, and another one comes.
    assert!(ways.send(other.uid, Partition(3), Kind::BETWEEN, || Some(Bytes::from_static(b"nonsense"))));
    until("the way is back", || one.node.back.lock().len() == 2).await;
    ways.follow(&Map::default(), Some(one.uid));
    assert!(
        !ways.send(other.uid, Partition(3), Kind::BETWEEN, || Some(Bytes::new())),
        "who is not in the map is not known"
    );
}

/// Remembers nothing.
struct Deaf;

impl Handler for Deaf {
    fn connected(&self, _: &Arc<Connection>) {}
    fn frame(&self, _: &Arc<Connection>, _: u8, _: u16, _: Bytes) {}
    fn ask(&self, _: &Arc<Connection>, _: u16, _: Bytes) -> Answer {
        Box::pin(std::future::ready(None))
    }
    fn datagram(&self, _: &Arc<Connection>, _: u16, _: Bytes) {}
    fn lost(&self, _: &Arc<Connection>) {}
}

/// A gateway that speaks as a node, or of nothing that can be read, loses its connection, and the node hears nothing of it.
#[tokio::test]
async fn a_gateway_says_only_what_gateways_say() {
    let world = World::new();
    let host = world.host(1, HERE, Node::default()).await;
    let identity = world.authority.issue(Role::Gateway, Some(GATEWAY)).unwrap();
    let endpoint = Endpoint::bind(HERE, identity, hello(Role::Gateway, GATEWAY), Settings::default(), Arc::new(Deaf));
    let endpoint = endpoint.unwrap();
    let way = endpoint.way(Some(1), host.endpoint.local_addr());
    for (round, (kind, bytes)) in
        [(BETWEEN, "x"), (TO_NODE, "nonsense"), (TO_GATEWAY, "x"), (99, "")].into_iter().enumerate()
    {
        until("it is connected", || host.node.gateways.lock().len() == round + 1 && way.connection().is_some()).await;
        assert!(way.send(0, kind, Bytes::from_static(bytes.as_bytes())));
        until("its connection ends", || host.node.gone.lock().len() == round + 1).await;
    }
    assert!(host.node.heard.lock().is_empty() && host.node.said.lock().is_empty());
}
