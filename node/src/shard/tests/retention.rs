//! What is kept for a time only, as a shard removes it.

use chappe_schema::{command::Update, event::Fact, limit::RECOVERIES_MAX};

use super::*;

const HOUR: Millis = 3_600_000;

impl Bench {
    /// A bench whose messages are kept for so long.
    fn keeping(fenced: bool, retention_ms: Option<Millis>) -> Self {
        let mut bench = Self::new(fenced);
        bench.shard.settings.retention_ms = retention_ms;
        bench
    }

    /// Time passes evenly, second by second.
    fn wait(&mut self, secs: u64) {
        for _ in 0..secs {
            self.now.fetch_add(1000, Ordering::Relaxed);
            self.mail(Mail::Tick);
            self.settle();
        }
    }

    /// The clock jumps, and goes on evenly.
    fn goes_by(&mut self, ms: Millis) {
        self.now.fetch_add(ms, Ordering::Relaxed);
        self.wait(62);
    }

    /// Seqs of the log that the store holds.
    fn held(&self) -> Vec<Seq> {
        let held = self.store.held.lock();
        let of = held.rows.iter().filter(|((whose, _), _)| *whose == EntityId::from(CONVERSATION));
        of.flat_map(|(_, row)| row.events.iter().map(|event| event.seq)).collect()
    }

    fn floors(&self) -> Vec<Seq> {
        let held = self.store.held.lock();
        let events = held.rows.values().flat_map(|row| &row.events);
        let floor = |event: &Arc<Event>| match event.fact {
            Fact::HistoryPurged { floor, .. } => Some(floor),
            _ => None,
        };
        events.filter_map(floor).collect()
    }

    /// Messages that ada is shown.
    fn seqs(&mut self) -> Vec<Seq> {
        let page = chappe_schema::command::Page { from: chappe_schema::command::From::Newest, limit: 100 };
        let reply = self.done("ada", Command::MessageList { conversation: CONVERSATION, page });
        let Ok(Reply::Messages { items, .. }) = reply else { panic!("{reply:?}") };
        items.iter().map(|message| message.seq).collect()
    }
}

fn keep(secs: u32) -> Command {
    let update = Update { retention_secs: Some(secs), ..Update::default() };
    Command::ConversationUpdate { conversation: CONVERSATION, update: Box::new(update) }
}

#[test]
fn a_conversation_in_use_looks_by_itself() {
    for fenced in [false, true] {
        let mut bench = Bench::keeping(fenced, Some(HOUR));
        bench.connect("bob", 5);
        bench.done("ada", group(&["bob"])).unwrap();
        for text in ["one", "two", "three"] {
            bench.done("ada", send(text)).unwrap();
        }
        bench.goes_by(HOUR / 2);
        assert!(bench.floors().is_empty());
        let young = sent(Some(bench.done("ada", send("young")))).seq;
        assert_eq!((young, bench.held()), (5, vec![1, 2, 3, 4, 5]));
        bench.goes_by(HOUR * 3 / 4);
        let last = sent(Some(bench.done("ada", send("last")))).seq;
        // The commit looked; the floor, then a snapshot above it, then the store is rid of it.
        bench.settle();
        assert_eq!(bench.floors(), [4]);
        assert_eq!(bench.held(), [5, 6, 7], "{fenced}");
        assert_eq!(bench.seqs(), [young, last]);
        assert_eq!(bench.delivered(5), [1, 2, 3, 4, 5, 6, 7], "members hear of it");
        assert_eq!(bench.store.held.lock().purged, [(Part::History, 0, 4)]);
        // The next owner reads the same.
        let mut next = bench.succeeded();
        next.shard.settings.retention_ms = Some(HOUR);
        assert_eq!(next.seqs(), [young, last]);
        assert_eq!(next.floors(), [4]);
    }
}

#[test]
fn conversations_at_rest_are_found() {
    // By what is kept everywhere, and by what their owner said.
    for everywhere in [Some(HOUR), None] {
        let mut bench = Bench::keeping(true, everywhere);
        bench.done("ada", group(&["bob"])).unwrap();
        if everywhere.is_none() {
            bench.done("ada", keep(3600)).unwrap();
        }
        let said = sent(Some(bench.done("ada", send("once")))).seq;
        bench.put_away();
        assert_eq!(bench.store.held.lock().snapshots.get(&CONVERSATION.into()).map(|(seq, _)| *seq), Some(said));
        bench.goes_by(2 * HOUR);
        assert_eq!(bench.floors(), [said], "{everywhere:?}");
        assert_eq!(bench.held(), [said + 1]);
        assert!(bench.seqs().is_empty());
        // It is not opened again: there is no message.
        bench.put_away();
        let before = bench.store.held.lock().recoveries;
        bench.goes_by(48 * HOUR);
        bench.goes_by(48 * HOUR);
        assert_eq!(bench.store.held.lock().recoveries, before);
        assert_eq!(bench.floors(), [said]);
    }
}

#[test]
fn a_conversation_that_is_only_read_looks_too() {
    let mut bench = Bench::keeping(false, Some(HOUR));
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("one")).unwrap();
    // Too long for a snapshot to be written, and nobody walks.
    bench.shard.walk_never();
    for _ in 0..3 {
        bench.goes_by(HOUR / 2);
        bench.seqs();
    }
    bench.settle();
    assert_eq!(bench.floors(), [2]);
}

#[test]
fn a_clock_that_jumps_removes_nothing() {
    let mut bench = Bench::keeping(false, Some(HOUR));
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("one")).unwrap();
    bench.wait(70);
    bench.now.fetch_add(5 * HOUR, Ordering::Relaxed);
    bench.wait(50);
    bench.done("ada", Command::TypingStart { conversation: CONVERSATION }).unwrap();
    assert!(bench.floors().is_empty());
    // It is set right.
    bench.now.fetch_sub(5 * HOUR, Ordering::Relaxed);
    bench.wait(100);
    assert!(bench.floors().is_empty());
}

#[test]
fn what_a_crash_interrupts_is_done_by_the_next_owner() {
    for fenced in [false, true] {
        let mut bench = Bench::keeping(fenced, Some(HOUR));
        bench.done("ada", group(&["bob"])).unwrap();
        for text in ["one", "two"] {
            bench.done("ada", send(text)).unwrap();
        }
        bench.store.held.lock().deaf = true;
        bench.goes_by(2 * HOUR);
        bench.done("ada", send("young")).unwrap();
        bench.settle();
        assert_eq!((bench.floors(), bench.held()), (vec![3], vec![1, 2, 3, 4, 5]), "the store cannot be rid of it");
        let is_listed = |bench: &Bench| {
            bench.store.held.lock().announced.keys().any(|(entity, _)| *entity == EntityId::from(CONVERSATION))
        };
        assert!(is_listed(&bench));
        bench.store.held.lock().deaf = false;
        // The same owner tries again,
        let mut same = bench;
        if fenced {
            same.wait(2);
        } else {
            // or the next one begins where this one has ended, whoever asks for the conversation.
            same = same.succeeded();
            same.settle();
        }
        assert_eq!(same.held(), [4, 5]);
        assert!(!is_listed(&same));
        assert_eq!(same.seqs(), [4]);
    }
}

#[test]
fn a_large_log_goes_bucket_by_bucket() {
    let mut bench = Bench::keeping(false, Some(HOUR));
    bench.done("ada", group(&["bob"])).unwrap();
    // As if so much had been said.
    let event = |seq: Seq| {
        let held = bench.store.held.lock();
        let (_, first) = held.rows.iter().next().unwrap();
        let fact = Fact::MessageNew { body: body("x"), mentions: None };
        Arc::new(Event {
            seq,
            n: seq - 1,
            id: CommandId(uuid::Uuid::from_u128(seq.into())),
            fact,
            ..(*first.events[0]).clone()
        })
    };
    let events: Vec<Arc<Event>> = (2..=20_000).map(event).collect();
    for some in events.chunks(64) {
        let row = LogRow { epoch: 3, cw: 0, origin: 3, after: 3, events: some.to_vec() };
        let last = some.last().unwrap().seq;
        bench.store.held.lock().rows.insert((CONVERSATION.into(), last), row);
    }
    bench.put_away();
    bench.goes_by(2 * HOUR);
    assert_eq!(bench.floors(), [20_000]);
    assert_eq!(bench.held(), [20_001]);
    let history = |above, upto| (Part::History, above, upto);
    let parts = [history(16_384, 20_000), history(8192, 16_384), history(0, 8192)];
    assert_eq!(bench.store.held.lock().purged, parts);
}

/// The second floor rises before anything says that the store is rid of what is below the first one, and a crash comes in between: what
/// stands between the two goes as well.
#[test]
fn a_crash_between_two_floors_leaves_nothing_behind() {
    for fenced in [false, true] {
        let mut bench = Bench::keeping(fenced, Some(100_000));
        bench.shard.walk_never();
        bench.done("ada", group(&["bob"])).unwrap();
        bench.done("ada", send("one")).unwrap();
        bench.wait(50);
        bench.done("ada", send("two")).unwrap();
        bench.wait(54);
        bench.done("ada", send("three")).unwrap();
        bench.settle();
        assert_eq!((bench.floors(), bench.held()), (vec![2], vec![3, 4, 5]), "{fenced}");
        bench.wait(50);
        bench.store.held.lock().deaf = true;
        bench.done("ada", send("four")).unwrap();
        bench.settle();
        assert_eq!((bench.floors(), bench.held()), (vec![2, 3], vec![3, 4, 5, 6, 7]));
        bench.store.held.lock().deaf = false;
        let mut next = bench.succeeded();
        next.seqs();
        next.settle();
        assert_eq!(next.held(), [4, 5, 6, 7], "{fenced}");
    }
}

#[test]
fn a_walk_opens_few_at_a_time_and_whoever_is_waited_for_first() {
    let mut bench = Bench::keeping(true, Some(HOUR));
    let others: Vec<ConversationId> = (100..1100).map(|n| ConversationId(uuid::Uuid::from_u128(n))).collect();
    for id in &others {
        bench.mail(Mail::Overdue(*id));
    }
    assert_eq!(bench.shard.recoveries, RECOVERIES_MAX / 8);
    bench.ask("ada", group(&["bob"]));
    assert_eq!(bench.shard.recoveries, RECOVERIES_MAX / 8 + 1, "nobody waits behind them");
    bench.settle();
    assert_eq!(bench.shard.recoveries, 0);
    assert!(bench.store.held.lock().recoveries >= 1000, "all are opened");
}

#[test]
fn where_something_is_kept_for_a_time_from_now_on_the_walk_comes_sooner() {
    let mut bench = Bench::keeping(true, None);
    bench.done("ada", group(&["bob"])).unwrap();
    // The first walk finds nothing of the kind; the next one is a day off.
    bench.goes_by(2 * HOUR);
    let said = sent(Some(bench.done("ada", send("once")))).seq;
    bench.done("ada", keep(3600)).unwrap();
    bench.put_away();
    bench.goes_by(2 * HOUR);
    assert_eq!(bench.floors(), [said + 1], "with the event that says how long");
}

/// Short memory puts away nobody who must still be rid of something: nobody would go on with it.
#[test]
fn what_is_to_be_removed_keeps_a_conversation_in_memory() {
    let mut bench = Bench::keeping(true, Some(HOUR));
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("one")).unwrap();
    bench.store.held.lock().deaf = true;
    bench.goes_by(2 * HOUR);
    bench.done("ada", send("young")).unwrap();
    bench.settle();
    assert_eq!((bench.floors(), bench.held()), (vec![2], vec![1, 2, 3, 4]));
    bench.shard.settings.budget_bytes = 0;
    bench.wait(200);
    assert!(bench.shard.conversations.contains_key(&CONVERSATION));
    bench.store.held.lock().deaf = false;
    bench.wait(200);
    assert_eq!(bench.held(), [3, 4]);
    assert!(!bench.shard.conversations.contains_key(&CONVERSATION), "it may go now");
}
