//! How cost grows: conversations that are created, evicted and read again, and pages of one long conversation.
//!
//! `cargo run --release -p chappe-node --example growth -- [conversations] [messages]` (defaults: 100000 and 200000;
//! the figures in docs/ were made with 1000000 and 1000000). Everything goes through a whole node over the embedded
//! log in a temporary directory; nothing is asserted by time, ratios are printed.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use chappe_cluster::{
    link::{GatewayPort, NodePort},
    process::config::ByteSize,
};
use chappe_node::{
    config::Config,
    node::{Node, Start, wall_clock},
    store::{Store, embedded::Embedded},
};
use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create, From, Page},
    event::{ConversationKind, Encryption, HistoryAccess},
    id::{CommandId, ConversationId, EntityId, GatewayId, SessionId, UserId},
    reply::Reply,
    wire::{Actor, Asked, Correlation, Lane, ToGateway, ToNode},
};
use tokio::sync::Semaphore;

const GATEWAY: GatewayId = GatewayId(1);

/// Requests in flight.
const WINDOW: u32 = 4096;

/// Counts answers and lets as many new requests in.
struct Answers {
    window: Semaphore,
    failed: AtomicU64,
    messages: AtomicU64,
}

impl GatewayPort for Answers {
    fn receive(&self, _: SessionId, batch: Vec<ToGateway>) {
        for message in batch {
            if let ToGateway::Reply(_, result) = message {
                match result {
                    Ok(Reply::Messages { items, .. }) => {
                        self.messages.fetch_add(items.len() as u64, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                            eprintln!("refused: {error}");
                        }
                    }
                }
                self.window.add_permits(1);
            }
        }
    }
}

struct Bench {
    node: Arc<Node>,
    answers: Arc<Answers>,
    asked: u64,
}

impl Bench {
    async fn ask(&mut self, who: &UserId, command: Command) {
        self.answers.window.acquire().await.unwrap().forget();
        self.asked += 1;
        let asked = Asked {
            correlation: Correlation(self.asked),
            actor: Actor { user: who.clone(), device: None, by: By::Token(Token::default()) },
            id: CommandId::fresh(),
            command,
            deadline: wall_clock() + 60_000,
        };
        let entity = asked.command.conversation().map_or_else(|| who.clone().into(), EntityId::from);
        let lane = Lane { partition: entity.partition(), attempt: 0 };
        let at_once = self.node.receive(GATEWAY, ToNode::Command(lane, Arc::new(asked)));
        assert!(at_once.is_empty(), "refused at once: {at_once:?}");
    }

    async fn drain(&self) {
        // Every place of the window is free again.
        drop(self.answers.window.acquire_many(WINDOW).await.unwrap());
    }
}

fn conversation(n: u64) -> ConversationId {
    ConversationId(uuid::Uuid::from_u128(u128::from(n) << 64 | 0x8000_0000_0000_0000))
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default().to_owned();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let conversations = args.next().unwrap_or(100_000);
    let messages = args.next().unwrap_or(200_000);
    let directory = tempfile::tempdir().unwrap();
    let store =
        Arc::new(Embedded::open(directory.path(), &Default::default(), Arc::new(|why| panic!("{why}"))).unwrap());
    let node = Node::start(Start {
        config: Config { entity_memory: ByteSize::mib(64), ..Config::default() },
        store: Arc::clone(&store) as Arc<dyn Store>,
        clock: Arc::new(wall_clock),
        dead: Arc::new(|why| panic!("{why}")),
    })
    .await
    .unwrap();
    let answers = Arc::new(Answers {
        window: Semaphore::new(WINDOW as usize),
        failed: AtomicU64::new(0),
        messages: AtomicU64::new(0),
    });
    node.attach(GATEWAY, Arc::clone(&answers) as _);
    let mut bench = Bench { node, answers, asked: 0 };
    let (ada, body) =
        (UserId::new("ada").unwrap(), Body::parse(&format!("{{\"text\":\"{}\"}}", "x".repeat(189))).unwrap());

    println!("{conversations} conversations of 2 members with 10 messages each, 64 MiB for entities");
    let chunk = (conversations / 10).max(1);
    for part in 0..conversations / chunk {
        let begun = Instant::now();
        for n in part * chunk..(part + 1) * chunk {
            let create = Create {
                conversation: conversation(n),
                kind: ConversationKind::Group,
                encryption: Encryption::None,
                members: vec![UserId::new(&format!("user-{n}")).unwrap()],
                title: String::new(),
                data: None,
                history: HistoryAccess::All,
                receipts: true,
                open: false,
                retention_secs: 0,
            };
            // Each conversation has an owner of its own, so that no inbox grows without end.
            let owner = UserId::new(&format!("owner-{n}")).unwrap();
            bench.ask(&owner, Command::ConversationCreate(Box::new(create))).await;
            for _ in 0..10 {
                bench
                    .ask(
                        &owner,
                        Command::MessageSend { conversation: conversation(n), body: body.clone(), mentions: None },
                    )
                    .await;
            }
        }
        bench.drain().await;
        let micros = begun.elapsed().as_micros() as f64 / chunk as f64;
        println!("  created up to {:>8}: {micros:>6.1} µs each, RSS {} MiB", (part + 1) * chunk, rss_mib());
    }
    let mut first = 0.0;
    for part in [0, 4, 9] {
        let begun = Instant::now();
        let from = part * conversations / 10;
        for n in (from..from + chunk).step_by(7) {
            let owner = UserId::new(&format!("owner-{n}")).unwrap();
            let page = Page { from: From::Newest, limit: 50 };
            bench.ask(&owner, Command::MessageList { conversation: conversation(n), page }).await;
        }
        bench.drain().await;
        let micros = begun.elapsed().as_micros() as f64 / (chunk as f64 / 7.0);
        if part == 0 {
            first = micros;
        }
        println!(
            "  read again around {from:>8}: {micros:>6.1} µs each, {:.2} of the first, RSS {} MiB",
            micros / first,
            rss_mib()
        );
    }

    println!("one conversation of {messages} messages");
    let long = conversation(u64::MAX);
    let create = Create {
        conversation: long,
        kind: ConversationKind::Group,
        encryption: Encryption::None,
        members: vec![UserId::new("bob").unwrap()],
        title: String::new(),
        data: None,
        history: HistoryAccess::All,
        receipts: true,
        open: false,
        retention_secs: 0,
    };
    bench.ask(&ada, Command::ConversationCreate(Box::new(create))).await;
    bench.drain().await;
    let begun = Instant::now();
    // No more at once than an entity's window takes.
    for part in 0..messages / 200 {
        for _ in 0..200 {
            bench.ask(&ada, Command::MessageSend { conversation: long, body: body.clone(), mentions: None }).await;
        }
        bench.drain().await;
        if part % 1000 == 999 {
            println!("  {:>8} messages, {:.1} s", (part + 1) * 200, begun.elapsed().as_secs_f64());
        }
    }
    let mut first = 0.0;
    for (name, from) in [
        ("first", From::After(0)),
        ("middle", From::Around(messages / 2)),
        ("last", From::Newest),
        ("first", From::After(0)),
    ] {
        let begun = Instant::now();
        for _ in 0..200 {
            bench.ask(&ada, Command::MessageList { conversation: long, page: Page { from, limit: 50 } }).await;
            bench.drain().await;
        }
        let micros = begun.elapsed().as_micros() as f64 / 200.0;
        if first == 0.0 {
            first = micros;
        }
        println!("  {name:<6} page: {micros:.0} µs, {:.2} of the first", micros / first);
    }
    let failed = bench.answers.failed.load(Ordering::Relaxed);
    println!("{} messages read, {failed} requests refused", bench.answers.messages.load(Ordering::Relaxed));
    bench.node.stop().await;
    store.close();
    assert_eq!(failed, 0, "a request was refused");
}
