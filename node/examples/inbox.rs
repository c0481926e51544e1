//! What a large inbox costs: a user with very many conversations lists, comes back, and syncs.
//!
//! `cargo run --release -p chappe-node --example inbox -- [conversations]` (default: 10000). Everything goes through a
//! whole node over the embedded log in a temporary directory; nothing is asserted by time, times are printed.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
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
    error::Error,
    event::{ConversationKind, Encryption, HistoryAccess},
    id::{CommandId, ConnectionSlot, ConversationId, EntityId, GatewayId, SessionId, UserId},
    inbox::{Cursor, Filter},
    reply::Reply,
    wire::{Actor, Asked, Connecting, Correlation, Heads, Lane, ToGateway, ToNode},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const GATEWAY: GatewayId = GatewayId(1);

/// What a node answers.
#[allow(clippy::large_enum_variant)]
enum Answer {
    Reply(Result<Reply, Error>),
    Connected(Result<Heads, Error>),
}

struct Port(UnboundedSender<Answer>);

impl GatewayPort for Port {
    fn receive(&self, _: SessionId, batch: Vec<ToGateway>) {
        for message in batch {
            let _ = match message {
                ToGateway::Reply(_, result) => self.0.send(Answer::Reply(result)),
                ToGateway::Connected(_, result) => self.0.send(Answer::Connected(result)),
                _ => Ok(()),
            };
        }
    }
}

struct Bench {
    node: Arc<Node>,
    store: Arc<Embedded>,
    answers: UnboundedReceiver<Answer>,
    asked: u64,
}

impl Bench {
    async fn start(directory: &Path) -> Self {
        let store = Embedded::open(directory, &Default::default(), Arc::new(|why| panic!("{why}")));
        let store = Arc::new(store.unwrap());
        let start = Start {
            config: Config::default(),
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: Arc::new(wall_clock),
            dead: Arc::new(|why| panic!("{why}")),
        };
        let node = Node::start(start).await.unwrap();
        let (to, answers) = unbounded_channel();
        node.attach(GATEWAY, Arc::new(Port(to)));
        Self { node, store, answers, asked: 0 }
    }

    async fn stop(self) {
        self.node.stop().await;
        self.store.close();
    }

    fn actor(who: &str) -> Actor {
        Actor { user: UserId::new(who).unwrap(), device: None, by: By::Token(Token::default()) }
    }

    fn ask(&mut self, who: &str, command: Command) {
        self.asked += 1;
        let (correlation, actor, id) = (Correlation(self.asked), Self::actor(who), CommandId::fresh());
        let entity = command.conversation().map_or_else(|| actor.user.clone().into(), EntityId::from);
        let lane = Lane { partition: entity.partition(), attempt: 0 };
        let asked = Asked { correlation, actor, id, command, deadline: wall_clock() + 60_000 };
        let at_once = self.node.receive(GATEWAY, ToNode::Command(lane, Arc::new(asked)));
        assert!(at_once.is_empty(), "refused at once: {at_once:?}");
    }

    async fn reply(&mut self) -> Reply {
        loop {
            if let Answer::Reply(result) = self.answers.recv().await.unwrap() {
                return result.unwrap();
            }
        }
    }

    async fn done(&mut self, who: &str, command: Command) -> (Reply, Duration) {
        let begun = Instant::now();
        self.ask(who, command);
        (self.reply().await, begun.elapsed())
    }

    async fn connect(&mut self, who: &str, cursor: Option<Cursor>) -> (Heads, Duration) {
        self.asked += 1;
        let begun = Instant::now();
        let actor = Self::actor(who);
        let lane = Lane { partition: actor.user.partition(), attempt: 0 };
        let (correlation, connection) = (Correlation(self.asked), ConnectionSlot(self.asked as u32));
        let connecting = Connecting { correlation, actor, connection, positions: Vec::new(), cursor, again: false };
        let at_once = self.node.receive(GATEWAY, ToNode::Connect(lane, Arc::new(connecting)));
        assert!(at_once.is_empty(), "refused at once: {at_once:?}");
        loop {
            if let Answer::Connected(result) = self.answers.recv().await.unwrap() {
                return (result.unwrap(), begun.elapsed());
            }
        }
    }

    /// The median of many pages, and the slowest.
    async fn pages(&mut self, what: &str, command: impl Fn() -> Command) {
        let mut times = Vec::new();
        for _ in 0..200 {
            times.push(self.done("ada", command()).await.1);
        }
        times.sort();
        println!("{what}: median {:.0?}, slowest {:.0?}", times[100], times[199]);
    }
}

fn conversation(n: u64) -> ConversationId {
    ConversationId(uuid::Uuid::from_u128(u128::from(n) << 64 | 0x8000_0000_0000_0000))
}

fn list(filter: Filter) -> Command {
    Command::ConversationList { filter, below: None, limit: 50 }
}

fn say(n: u64) -> Command {
    let body = Body::parse(&format!("{{\"text\":\"{}\"}}", "x".repeat(189))).unwrap();
    Command::MessageSend { conversation: conversation(n), body, mentions: None }
}

/// Listed with everything settled: how long that took, and how often it was asked.
async fn settled(bench: &mut Bench) -> (Cursor, Duration, usize) {
    let begun = Instant::now();
    for asked in 1.. {
        if let (Reply::Conversations { cursor, settling: false, .. }, _) =
            bench.done("ada", list(Filter::default())).await
        {
            return (cursor, begun.elapsed(), asked);
        }
    }
    unreachable!()
}

#[tokio::main]
async fn main() {
    let count = std::env::args().nth(1).map_or(10_000, |arg| arg.parse::<u64>().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(directory.path()).await;
    for n in 0..count {
        let create = Create {
            conversation: conversation(n),
            kind: ConversationKind::Group,
            encryption: Encryption::None,
            members: vec![UserId::new("ada").unwrap()],
            title: format!("conversation {n}"),
            data: None,
            history: HistoryAccess::All,
            receipts: true,
            open: false,
            retention_secs: 0,
        };
        bench.ask(&format!("owner-{n}"), Command::ConversationCreate(Box::new(create)));
        if n % 1_000 == 999 || n + 1 == count {
            for _ in 0..=n % 1_000 {
                bench.reply().await;
            }
        }
    }
    for n in 0..count {
        bench.ask(&format!("owner-{n}"), say(n));
        if n % 1_000 == 999 || n + 1 == count {
            for _ in 0..=n % 1_000 {
                bench.reply().await;
            }
        }
    }
    println!("{count} conversations of 2 members with one message each");
    let (_, took, asked) = settled(&mut bench).await;
    println!("first list, everything in memory: {took:.1?} over {asked} answers");
    bench.pages("a page of 50", || list(Filter::default())).await;
    let unread = Filter { unread: true, ..Filter::default() };
    bench.pages("a page of 50 unread", || list(unread)).await;
    bench.pages("a page of 50 that are not muted", || list(Filter { muted: Some(false), ..unread })).await;
    let (cursor, ..) = settled(&mut bench).await;
    bench.pages("a sync with nothing new", || Command::InboxSync { cursor: Some(cursor), limit: 50 }).await;
    let (heads, took) = bench.connect("ada", Some(cursor)).await;
    println!("connect: {took:.0?}, {:?}, {} heads", heads.lag, heads.others.len());
    bench.stop().await;

    let mut bench = Bench::start(directory.path()).await;
    let (heads, took) = bench.connect("ada", Some(cursor)).await;
    println!("connect after a restart: {took:.1?}, {:?}, {} heads", heads.lag, heads.others.len());
    let (_, took, asked) = settled(&mut bench).await;
    println!("then a list, every conversation asked and read from the log: {took:.1?} over {asked} answers");
    bench.pages("a page of 50", || list(Filter::default())).await;
    let (reply, took) = bench.done("ada", Command::InboxSync { cursor: Some(cursor), limit: 200 }).await;
    let Reply::Synced { items, more, .. } = reply else { panic!("no changes") };
    println!("sync with the cursor of before: {took:.1?}, {} told, more: {more}", items.len());
    bench.stop().await;
}
