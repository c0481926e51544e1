//! What a send costs a node, without sockets: pairs of users with several sends in flight each, every one delivered to
//! both.
//!
//! `cargo run --release -p chappe-node --example sends -- [pairs] [in flight] [sends]` (default: 64 8 20000). Everything
//! goes through a whole node over the embedded log in a temporary directory. To compare two states of the code, count
//! instructions instead of time, which is steady: `valgrind --tool=callgrind` before the built example.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use chappe_cluster::link::{GatewayPort, NodePort};
use chappe_node::{
    config::Config,
    node::{Node, Start, wall_clock},
    store::{Store, embedded::Embedded},
};
use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create},
    event::{ConversationKind, Encryption, HistoryAccess},
    id::{CommandId, ConnectionSlot, ConversationId, GatewayId, SessionId, UserId},
    wire::{Actor, Asked, Connecting, Correlation, Lane, ToGateway, ToNode},
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const GATEWAY: GatewayId = GatewayId(1);

/// Says which question was answered, and counts deliveries.
struct Port {
    answered: UnboundedSender<Correlation>,
    delivered: AtomicU64,
}

impl GatewayPort for Port {
    fn receive(&self, _: SessionId, batch: Vec<ToGateway>) {
        for message in batch {
            match message {
                ToGateway::Reply(correlation, result) => {
                    result.unwrap();
                    let _ = self.answered.send(correlation);
                }
                ToGateway::Connected(correlation, result) => {
                    result.unwrap();
                    let _ = self.answered.send(correlation);
                }
                ToGateway::Deliver { events, connections, .. } => {
                    let count = (events.len() * connections.len()) as u64;
                    self.delivered.fetch_add(count, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
}

fn actor(user: &UserId) -> Actor {
    Actor { user: user.clone(), device: None, by: By::Token(Token::default()) }
}

fn ask(node: &Node, user: &UserId, correlation: u64, command: Command) {
    let lane = Lane { partition: command.conversation().unwrap().partition(), attempt: 0 };
    let (actor, id, deadline) = (actor(user), CommandId::fresh(), wall_clock() + 600_000);
    let asked = Asked { correlation: Correlation(correlation), actor, id, command, deadline };
    let at_once = node.receive(GATEWAY, ToNode::Command(lane, Arc::new(asked)));
    assert!(at_once.is_empty(), "refused at once: {at_once:?}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let mut arg = |default| args.next().unwrap_or(default);
    let (pairs, window, sends) = (arg(64), arg(8), arg(20_000));
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path(), &Default::default(), Arc::new(|why| panic!("{why}")));
    let store = Arc::new(store.unwrap());
    let start = Start {
        config: Config::default(),
        store: Arc::clone(&store) as Arc<dyn Store>,
        clock: Arc::new(wall_clock),
        dead: Arc::new(|why| panic!("{why}")),
    };
    let node = Node::start(start).await.unwrap();
    let (to, mut answered) = unbounded_channel();
    let port = Arc::new(Port { answered: to, delivered: AtomicU64::new(0) });
    node.attach(GATEWAY, Arc::clone(&port) as _);

    let conversation = |pair: u64| ConversationId(uuid::Uuid::from_u128(u128::from(pair) << 64 | 1 << 63));
    let users: Vec<[UserId; 2]> =
        (0..pairs).map(|pair| ["left", "right"].map(|side| UserId::new(&format!("{side}-{pair}")).unwrap())).collect();
    for (pair, users) in (0..).zip(&users) {
        let create = Create {
            conversation: conversation(pair),
            kind: ConversationKind::Group,
            encryption: Encryption::None,
            members: vec![users[1].clone()],
            title: String::new(),
            data: None,
            history: HistoryAccess::All,
            receipts: true,
            open: false,
            retention_secs: 0,
        };
        ask(&node, &users[0], 0, Command::ConversationCreate(Box::new(create)));
    }
    for _ in 0..pairs {
        answered.recv().await.unwrap();
    }
    for (slot, user) in (0..).zip(users.iter().flatten()) {
        let lane = Lane { partition: user.partition(), attempt: 0 };
        let (correlation, connection) = (Correlation(0), ConnectionSlot(slot));
        let connecting =
            Connecting { correlation, actor: actor(user), connection, positions: vec![], cursor: None, again: false };
        assert!(node.receive(GATEWAY, ToNode::Connect(lane, Arc::new(connecting))).is_empty());
        answered.recv().await.unwrap();
    }

    let body = Body::parse(&format!("{{\"text\":\"{}\"}}", "x".repeat(189))).unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    let mut send = |pair: u64| {
        if sent < sends {
            sent += 1;
            let (conversation, body) = (conversation(pair), body.clone());
            let command = Command::MessageSend { conversation, body, mentions: None };
            ask(&node, &users[pair as usize][0], pair, command);
        }
    };
    for pair in (0..window).flat_map(|_| 0..pairs) {
        send(pair);
    }
    for _ in 0..sends {
        let Correlation(pair) = answered.recv().await.unwrap();
        send(pair);
    }
    let took = begun.elapsed();
    node.stop().await;
    let delivered = port.delivered.load(Ordering::Relaxed);
    assert_eq!(delivered, 2 * sends, "each send reaches both");
    println!("{pairs} pairs, {window} in flight: {sends} sends in {took:.2?}, {:.0?} each", took / sends as u32);
    store.close();
}
