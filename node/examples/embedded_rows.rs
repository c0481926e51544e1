//! What a row of the embedded log costs: rows per second and CPU microseconds per row, by size of group.
//!
//! `cargo run --release -p chappe-node --example embedded_rows -- [rows] [directory] [group]`
//!
//! Each line is a fresh store. A group is one call with that many appends, each to another conversation out of a hundred
//! thousand; as in a server, the next call is made when the last is answered. `packs of 8` puts eight events into each
//! append. The CPU is that of the whole process: sealing, journal, memtable, flush and merges.
//!
//! Then what a page of one long conversation costs, at its beginning, in its middle and at its end.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use chappe_node::store::{
    Append, PageRequest, Show, Store, Written,
    embedded::{Config, Embedded},
};
use chappe_schema::{
    body::Body,
    event::{Event, Fact},
    id::{CommandId, ConversationId, Seq, UserId},
};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Conversations that are written to in turn.
const CONVERSATIONS: usize = 100_000;

/// Bytes of a body, as in the loads of the tester.
const BODY_BYTES: usize = 200;

struct Log {
    entity: ConversationId,
    sender: UserId,
    head: Seq,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rows = arguments.next().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    println!(
        "{:<28} {:>10} {:>12} {:>12} {:>12} {:>10} {:>10}",
        "groups", "rows", "rows/s", "events/s", "CPU µs/row", "ms/group", "worst ms"
    );
    let only: Option<usize> = arguments.next().and_then(|group| group.parse().ok());
    for (group, pack) in [(1, 1), (64, 1), (512, 1), (1, 8), (64, 8), (512, 8)] {
        if only.is_some_and(|only| only != group) {
            continue;
        }
        // The time of small groups is that of the disk; fewer of them say as much.
        let rows = if group == 1 { rows / 50 } else { rows };
        let packs = if pack == 1 { "single events".to_owned() } else { format!("packs of {pack}") };
        let directory = directory.join(format!("chappe-embedded-rows-{}-{group}-{pack}", std::process::id()));
        measure(&directory, &format!("of {group}, {packs}"), rows, group, pack);
        std::fs::remove_dir_all(&directory).expect("the directory was just written");
    }
    if only.is_none() {
        let directory = directory.join(format!("chappe-embedded-pages-{}", std::process::id()));
        pages(&directory, rows as Seq);
        std::fs::remove_dir_all(&directory).expect("the directory was just written");
    }
}

/// Writes one conversation of so many messages, opens it anew and reads pages of fifty.
fn pages(directory: &Path, messages: Seq) {
    let open = || {
        Embedded::open(directory, &Config::default(), Arc::new(|why: String| panic!("{why}")))
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let store = open();
    let (entity, sender) = (ConversationId(Uuid::new_v4()), UserId::new("ada").expect("it is a name"));
    let bodies: Vec<Body> = (0..1024).map(body).collect();
    let (tx, rx) = mpsc::channel();
    for first in (1..=messages).step_by(512) {
        let events = |first: Seq| -> Vec<_> {
            (first..first + 8).map(|seq| event(seq, &sender, &bodies[seq as usize % 1024])).collect()
        };
        let row = |first| Append {
            entity: entity.into(),
            epoch: 1,
            cw: first - 1,
            origin: 1,
            after: 0,
            events: events(first).into(),
            announce: false,
        };
        let tx = tx.clone();
        store.append(
            (first..first + 512).step_by(8).map(row).collect(),
            Box::new(move |_| tx.send(()).expect("main waits")),
        );
        rx.recv().expect("the store answers");
    }
    store.close();
    let began = Instant::now();
    let store = open();
    println!("\na conversation of {messages} messages; opened again in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    println!("{:<28} {:>12} {:>12}", "page of 50", "first, µs", "again, µs");
    for (name, upto) in [("beginning", 50), ("middle", messages / 2), ("end", messages)] {
        let read = || {
            let request = PageRequest {
                entity: entity.into(),
                from: 1,
                upto,
                newest_first: true,
                show: Show::Messages,
                limit: 50,
                bytes_max: 256 * 1024,
                reader: None,
            };
            let (tx, rx) = mpsc::channel();
            let began = Instant::now();
            store.page(request, Box::new(move |page| tx.send(page).expect("main waits")));
            let page = rx.recv().expect("the store answers").unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(page.events.len(), 50);
            began.elapsed().as_secs_f64() * 1e6
        };
        let first = read();
        let mut again: Vec<f64> = (0..101).map(|_| read()).collect();
        again.sort_by(f64::total_cmp);
        println!("{name:<28} {first:>12.0} {:>12.0}", again[50]);
    }
}

fn event(seq: Seq, sender: &UserId, body: &Body) -> Arc<Event> {
    Arc::new(Event {
        seq,
        n: seq,
        sender: sender.clone(),
        device: None,
        id: CommandId(Uuid::from_u128(u128::from(seq))),
        target: 0,
        created_at: 1_700_000_000_000,
        hash: seq,
        fact: Fact::MessageNew { body: body.clone(), mentions: None },
    })
}

fn measure(directory: &Path, name: &str, rows: usize, group: usize, pack: usize) {
    let fatal = Arc::new(|why: String| panic!("{why}"));
    let store = Embedded::open(directory, &Config::default(), fatal).unwrap_or_else(|error| panic!("{error}"));
    let epoch = store.session().epoch;
    let bodies: Vec<Body> = (0..1024).map(body).collect();
    let mut logs: Vec<Log> = (0..CONVERSATIONS)
        .map(|index| Log {
            entity: ConversationId(Uuid::new_v4()),
            sender: UserId::new(&format!("user-{index}")).expect("it is a name"),
            head: 0,
        })
        .collect();
    let mut events_of = |index: usize| {
        let log = &mut logs[index % CONVERSATIONS];
        let events: Vec<_> = (0..pack)
            .map(|_| {
                log.head += 1;
                event(log.head, &log.sender, &bodies[(index * 31 + log.head as usize) % bodies.len()])
            })
            .collect();
        Append {
            entity: log.entity.into(),
            epoch,
            cw: log.head - pack as u64,
            origin: epoch,
            after: 0,
            events: events.into(),
            announce: false,
        }
    };

    // Two calls at a time, as two shards would: while one group is being synced the next one waits.
    let (tx, rx) = mpsc::channel();
    let (mut next, mut answered) = (0, 0);
    let (began, cpu) = (Instant::now(), cpu_time());
    let (mut busy, mut worst) = (Duration::ZERO, Duration::ZERO);
    while answered < rows {
        while next < rows && next < answered + 2 * group {
            let made = own_cpu_time();
            let appends: Vec<_> = (next..next + group).map(&mut events_of).collect();
            busy += own_cpu_time() - made;
            next += group;
            let tx = tx.clone();
            store.append(appends, Box::new(move |outcomes| tx.send(outcomes).expect("main waits")));
        }
        let waited = Instant::now();
        let outcomes = rx.recv().expect("the store answers");
        worst = worst.max(waited.elapsed());
        assert!(outcomes.iter().all(|outcome| *outcome == Written::Durable));
        answered += outcomes.len();
    }
    let took = began.elapsed();
    // What has been written still has to be merged; that is part of a row's price.
    std::thread::sleep(Duration::from_millis(500));
    store.close();
    let spent = cpu_time() - cpu - busy;
    let per_second = answered as f64 / took.as_secs_f64();
    println!(
        "{name:<28} {answered:>10} {per_second:>12.0} {:>12.0} {:>12.2} {:>10.3} {:>10.0}",
        per_second * pack as f64,
        spent.as_secs_f64() * 1e6 / answered as f64,
        took.as_secs_f64() * 1e3 * group as f64 / answered as f64,
        worst.as_secs_f64() * 1e3,
    );
}

/// Something that compresses about as well as talk does.
fn body(seed: u64) -> Body {
    const WORDS: &str =
        "well the so you then I maybe tomorrow coffee know yes meeting at think would not really send it over please";
    let words: Vec<&str> = WORDS.split(' ').collect();
    let mut text = String::new();
    let mut state = seed;
    while text.len() < BODY_BYTES - 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
        text.push_str(&format!("{} ", (state >> 50) % 100));
    }
    Body::parse(&format!("{{\"text\":\"{text}\"}}")).expect("it is a body")
}

/// CPU time of all threads so far, ended ones included, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    // What follows the program's name, which may hold spaces; 11 fields later stand user and system time.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: u64 = fields.take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// CPU time of this thread so far.
fn own_cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this is Linux");
    Duration::from_nanos(stat.split_whitespace().next().and_then(|spent| spent.parse().ok()).unwrap_or(0))
}
