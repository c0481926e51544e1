//! Receipts over a whole shard: who hears of what, what it costs, what a crash takes back.

use std::collections::BTreeMap;

use chappe_schema::{
    command::Update,
    limit::{RECEIPTS_EVENTS_PER_ROW, RECEIPTS_PACE_MS, RECEIPTS_ROWS_PER_TICK},
    receipt::{Progress, Progressed, Receipt, Watermarks},
};
use proptest::prelude::*;

use super::*;

fn read(n: u64) -> Command {
    Command::ConversationRead { conversation: CONVERSATION, n, private: None }
}

fn delivered(n: u64) -> Command {
    Command::ConversationDelivered { conversation: CONVERSATION, n }
}

fn prefer(private: bool) -> Command {
    Command::ReceiptPrefer { private }
}

fn progressed(reply: Result<Reply, Error>) -> Progressed {
    match reply {
        Ok(Reply::Progressed(progressed)) => progressed,
        other => panic!("no progress: {other:?}"),
    }
}

type Marks = BTreeMap<String, (u64, u64)>;

impl Bench {
    /// What a connection was told of members, word by word.
    fn words(&self, slot: u32) -> Vec<Vec<(String, u64, u64)>> {
        let heard = self.heard.0.lock();
        let to = |message: &ToGateway| match message {
            ToGateway::Receipts { connections, receipts } if connections.contains(&ConnectionSlot(slot)) => {
                let item = |Receipt { user, marks }: &Receipt| (user.to_string(), marks.delivered_n, marks.read_n);
                Some(receipts.items.iter().map(item).collect())
            }
            _ => None,
        };
        heard.iter().filter_map(to).collect()
    }

    /// Everybody's watermarks, as `who` is shown them.
    fn marks(&mut self, who: &str) -> Option<Marks> {
        let list = Command::MemberList { conversation: CONVERSATION, after: None, limit: 500 };
        let Ok(Reply::Members { items, .. }) = self.done(who, list) else { return None };
        let marks = |marks: Watermarks| (marks.delivered_n, marks.read_n);
        Some(items.into_iter().map(|member| (member.user.to_string(), member.marks.map_or((0, 0), marks))).collect())
    }

    /// Time goes by, so that whatever was held back is told.
    fn later(&mut self) {
        self.now.fetch_add(RECEIPTS_PACE_MS, Ordering::Relaxed);
        self.mail(Mail::Tick);
        self.settle();
    }

    fn receipt_rows(&self) -> usize {
        self.store.held.lock().receipt_rows
    }

    /// Ada's group with two messages.
    fn away(fenced: bool, members: &[&str]) -> Self {
        let mut bench = Self::new(fenced);
        bench.done("ada", group(members)).unwrap();
        bench.done("ada", send("one")).unwrap();
        bench.done("ada", send("two")).unwrap();
        bench
    }

    /// The same, and a connection for each: ada at 1, and so on.
    fn chat(fenced: bool, members: &[&str]) -> Self {
        let mut bench = Self::away(fenced, members);
        for (slot, name) in (1..).zip(std::iter::once(&"ada").chain(members)) {
            bench.connect(name, slot);
            bench.settle();
        }
        bench
    }

    fn disconnect(&mut self, who: &str, slot: u32) {
        let connection = ConnectionSlot(slot);
        self.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user(who), connection }));
    }
}

#[test]
fn the_others_hear_how_far_somebody_has_got_and_own_devices_what_is_left() {
    let mut bench = Bench::chat(true, &["bob", "eve"]);
    bench.connect("bob", 9);
    bench.settle();
    assert_eq!(progressed(bench.done("bob", delivered(2))).delivered_n, 2);
    let now = progressed(bench.done("bob", read(1)));
    assert_eq!((now.read_n, now.counts.unread), (1, 1));
    bench.later();
    for slot in [1, 3] {
        assert_eq!(bench.words(slot).last().unwrap(), &[("bob".to_owned(), 2, 1)], "connection {slot}");
    }
    // Nobody is told of themselves; but both of bob's devices hear what he has read.
    assert!(bench.words(2).is_empty());
    let of_inbox = |bench: &Bench, slot| {
        let heard = bench.heard.0.lock();
        let to = |message: &ToGateway| match message {
            ToGateway::InboxChanged { connections, changed } if connections.contains(&ConnectionSlot(slot)) => {
                changed.read.map(|(read_n, counts)| (read_n, counts.unread))
            }
            _ => None,
        };
        heard.iter().rev().find_map(to)
    };
    assert_eq!((of_inbox(&bench, 2), of_inbox(&bench, 9)), (Some((1, 1)), Some((1, 1))));
    // Read is read where the inbox is listed, and on whichever device.
    assert_eq!(shown(bench.done("bob", list(9))), [(CONVERSATION, 3, 1)]);
}

/// Threads: RocketChat/feature-requests#473 and #849: many who read many messages are neither many rows nor many words.
#[test]
fn feature_requests_849_a_watermark_that_moves_often_is_told_once() {
    let members: Vec<String> = (0..9).map(|n| format!("user-{n}")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut bench = Bench::chat(false, &members);
    bench.later();
    let before = bench.words(1).len();
    for n in 3..=50 {
        bench.done("ada", send("text")).unwrap();
        for name in &members {
            bench.done(name, delivered(n)).unwrap();
            bench.done(name, read(n)).unwrap();
        }
    }
    assert_eq!(bench.words(1).len() - before, 1, "the first word does not wait, everything else does");
    bench.later();
    let words = bench.words(1);
    assert_eq!(words.len() - before, 2);
    assert_eq!(words.last().unwrap().len(), 9);
    assert!(words.last().unwrap().iter().all(|(_, delivered_n, read_n)| (*delivered_n, *read_n) == (50, 50)));
}

#[test]
fn one_request_tells_of_many_conversations() {
    let mut bench = Bench::new(true);
    let place = |n: u64| ConversationId(uuid::Uuid::from_u128(1_000 + u128::from(n)));
    for n in 0..20 {
        let Command::ConversationCreate(create) = group(&["bob"]) else { unreachable!() };
        let create = Create { conversation: place(n), ..*create };
        bench.done("ada", Command::ConversationCreate(Box::new(create))).unwrap();
        bench.done("ada", Command::MessageSend { conversation: place(n), body: body("text"), mentions: None }).unwrap();
    }
    bench.put_away();
    let of = |n: u64, delivered, read| Progress { conversation: place(n), delivered, read };
    let mut progress: Vec<Progress> = (0..20).map(|n| of(n, Some(1), (n % 2 == 0).then_some(1))).collect();
    // One that is not there, and one with nothing to have got.
    progress.extend([of(99, Some(1), None), of(21, Some(0), Some(0))]);
    progress[3].delivered = Some(7);
    let Ok(Reply::AllProgressed { items }) = bench.done("bob", Command::ReceiptPut { progress, private: None }) else {
        panic!("no answer")
    };
    assert_eq!(items.len(), 22);
    for (conversation, result) in items {
        match conversation.0.as_u128() - 1_000 {
            3 => assert_eq!(result.unwrap_err().code, Code::Invalid),
            21 | 99 => assert_eq!(result.unwrap_err().code, Code::ConversationNotFound),
            n => {
                let now = result.unwrap();
                assert_eq!((now.delivered_n, now.read_n), (1, u64::from(n % 2 == 0)));
            }
        }
    }
    let unread = |bench: &mut Bench| shown(bench.done("bob", list(200))).iter().filter(|row| row.2 == 1).count();
    assert_eq!(unread(&mut bench), 10);
    assert!(!bench.shard.conversations.contains_key(&place(99)), "what does not exist is not kept");
}

#[test]
fn a_preference_holds_unless_a_read_says_otherwise() {
    let mut bench = Bench::chat(true, &["bob"]);
    let preference = |bench: &mut Bench| bench.done("bob", Command::ReceiptPreference);
    let as_it_is = |private, changed| Ok(Reply::ReceiptPreference { private, changed });
    assert_eq!(preference(&mut bench), as_it_is(false, None));
    assert_eq!(bench.done("bob", prefer(true)), as_it_is(true, Some(true)));
    assert_eq!(bench.done("bob", prefer(true)), as_it_is(true, Some(false)));
    let mut bench = bench.succeeded();
    bench.connect("ada", 1);
    bench.settle();
    assert_eq!(preference(&mut bench), as_it_is(true, None));
    assert_eq!(progressed(bench.done("bob", read(1))).counts.unread, 1);
    bench.later();
    assert!(bench.words(1).is_empty());
    assert_eq!(bench.marks("ada").unwrap()["bob"], (0, 0));
    let public = Command::ConversationRead { conversation: CONVERSATION, n: 1, private: Some(false) };
    bench.done("bob", public).unwrap();
    bench.later();
    assert_eq!(bench.words(1), [[("bob".to_owned(), 1, 1)]]);
    // From a snapshot of the user, too.
    for n in 0..40 {
        bench.done("bob", prefer(n % 2 == 1)).unwrap();
    }
    bench.disconnect("ada", 1);
    bench.put_away();
    assert_eq!(preference(&mut bench), as_it_is(true, None));
    // A late repetition does not undo what came between.
    let id = CommandId(uuid::Builder::from_unix_timestamp_millis(T, &[9; 10]).into_uuid());
    let asked = bench.ask_as("bob", id, prefer(false));
    bench.settle();
    assert_eq!(bench.answer(asked), Some(as_it_is(false, Some(true))));
    bench.done("bob", prefer(true)).unwrap();
    let again = bench.ask_as("bob", id, prefer(false));
    let other = bench.ask_as("bob", id, prefer(true));
    bench.settle();
    assert_eq!(bench.answer(again), Some(as_it_is(true, Some(true))));
    assert_eq!(bench.answer(other).unwrap().unwrap_err().code, Code::IdConflict);
}

/// Nothing of a watermark is let out before the head at which it was decided is committed: a message that never was cannot
/// have been read.
#[test]
fn no_watermark_is_ahead_of_the_log() {
    let mut bench = Bench::chat(true, &["bob"]);
    bench.ask("ada", send("three"));
    let asked = bench.ask("bob", read(3));
    bench.now.fetch_add(1_000, Ordering::Relaxed);
    bench.mail(Mail::Tick);
    assert_eq!(bench.answer(asked), None);
    assert!(bench.words(1).is_empty());
    let mut bench = bench.succeeded();
    bench.connect("ada", 1);
    bench.settle();
    assert_eq!(bench.marks("ada").unwrap()["bob"], (0, 0));
    assert_eq!(bench.done("bob", read(3)).unwrap_err().field.as_deref(), Some("n"));
    bench.done("ada", send("another three")).unwrap();
    assert_eq!(progressed(bench.done("bob", read(3))).read_n, 3);
}

/// A removed member hears nothing after the event that removed them, and nothing is told of them.
#[test]
fn who_was_removed_hears_nothing_more() {
    let mut bench = Bench::chat(true, &["bob", "eve"]);
    bench.done("eve", read(1)).unwrap();
    bench.later();
    assert_eq!(bench.words(2).len(), 1);
    // In one turn: eve gets further, bob is removed; neither is committed.
    bench.ask("eve", read(2));
    bench.ask("ada", remove("bob"));
    bench.settle();
    bench.later();
    let removed_at = |message: &ToGateway| matches!(message, ToGateway::Deliver { events, .. } if events.iter().any(|event| event.fact.about() == Some(&user("bob"))));
    let heard = bench.heard.0.lock();
    let at = heard.iter().position(removed_at).unwrap();
    let to_bob = |message: &ToGateway| matches!(message, ToGateway::Receipts { connections, .. } if connections.contains(&ConnectionSlot(2)));
    assert!(!heard[at..].iter().any(to_bob));
    drop(heard);
    bench.done("eve", send("without bob")).unwrap();
    bench.done("eve", read(3)).unwrap();
    bench.later();
    assert_eq!(bench.words(1).last().unwrap(), &[("eve".to_owned(), 3, 3)]);
    assert_eq!(bench.words(2).len(), 1);
    assert_eq!(bench.done("bob", read(2)).unwrap_err().code, Code::ConversationNotFound);
    assert_eq!(bench.marks("bob"), None);
}

#[test]
fn switched_off_nobody_hears_of_anybody() {
    let mut bench = Bench::chat(false, &["bob"]);
    let update = |receipts| {
        let update = Box::new(Update { receipts: Some(receipts), ..Update::default() });
        Command::ConversationUpdate { conversation: CONVERSATION, update }
    };
    bench.done("bob", read(1)).unwrap();
    // Held back when it is switched off: not told then.
    bench.done("bob", read(2)).unwrap();
    bench.done("ada", update(false)).unwrap();
    bench.later();
    assert_eq!(bench.words(1), [[("bob".to_owned(), 1, 1)]]);
    bench.done("ada", send("three")).unwrap();
    assert_eq!(progressed(bench.done("bob", read(3))).counts.unread, 0);
    bench.done("ada", update(true)).unwrap();
    bench.later();
    assert_eq!(bench.words(1).len(), 1);
    assert_eq!(bench.marks("ada").unwrap()["bob"], (2, 2));
}

// === rows

/// "Rows per message ≤ 1.05 with receipts on": everybody in groups of ten gets and reads every message.
#[test]
fn feature_requests_473_receipts_cost_next_to_no_rows() {
    const GROUPS: u64 = 20;
    const MESSAGES: u64 = 3_000;
    let mut bench = Bench::new(false);
    let names: Vec<String> = (0..10).map(|n| format!("user-{n}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = |n: u64| ConversationId(uuid::Uuid::from_u128(1_000 + u128::from(n)));
    for n in 0..GROUPS {
        let Command::ConversationCreate(create) = group(&members[1..]) else { unreachable!() };
        let create = Create { conversation: place(n), ..*create };
        bench.done(members[0], Command::ConversationCreate(Box::new(create))).unwrap();
    }
    (1..).zip(&members).for_each(|(slot, name)| bench.connect(name, slot));
    bench.settle();
    let written = |bench: &Bench| {
        let held = bench.store.held.lock();
        held.rows.len() + held.projected
    };
    let before = written(&bench);
    for message in 0..MESSAGES {
        let (at, n) = (place(message % GROUPS), message / GROUPS + 1);
        let send = Command::MessageSend { conversation: at, body: body("text"), mentions: None };
        bench.done(members[(message % 10) as usize], send).unwrap();
        for name in &members {
            let progress = vec![Progress { conversation: at, delivered: Some(n), read: Some(n) }];
            bench.done(name, Command::ReceiptPut { progress, private: None }).unwrap();
        }
        // A thousand messages a second.
        if message % 1_000 == 999 {
            bench.now.fetch_add(1_000, Ordering::Relaxed);
            bench.mail(Mail::Tick);
            bench.settle();
        }
    }
    let per_message = (written(&bench) - before) as f64 / MESSAGES as f64;
    println!("{per_message} rows per message with {} words on receipts", bench.words(1).len());
    assert!(per_message <= 1.05, "{per_message} rows per message");
    assert!(bench.receipt_rows() > 0);
}

#[test]
fn rows_are_written_as_the_budget_has_room() {
    let mut bench = Bench::new(false);
    let many = RECEIPTS_ROWS_PER_TICK * 3;
    let place = |n: u64| ConversationId(uuid::Uuid::from_u128(1_000 + u128::from(n)));
    let mut events = 0;
    for n in 0..many {
        let Command::ConversationCreate(create) = group(&["bob"]) else { unreachable!() };
        let create = Create { conversation: place(n), ..*create };
        bench.done("ada", Command::ConversationCreate(Box::new(create))).unwrap();
        bench.done("ada", Command::MessageSend { conversation: place(n), body: body("text"), mentions: None }).unwrap();
        events += 2;
        let progress = vec![Progress { conversation: place(n), delivered: Some(1), read: None }];
        bench.done("bob", Command::ReceiptPut { progress, private: None }).unwrap();
    }
    // The users' own logs pay nothing.
    assert!(events < RECEIPTS_EVENTS_PER_ROW);
    assert_eq!(bench.receipt_rows(), 0);
    for tick in 1..=3 {
        bench.later();
        assert_eq!(bench.receipt_rows() as u64, RECEIPTS_ROWS_PER_TICK * tick);
    }
    bench.later();
    assert_eq!(bench.receipt_rows() as u64, many, "what stands in a row is not written again");
    // Several members and several words are one row.
    for (who, n) in [("bob", 0), ("ada", 1), ("bob", 1)] {
        let progress = vec![Progress { conversation: place(0), delivered: None, read: Some(n) }];
        bench.done(who, Command::ReceiptPut { progress, private: None }).unwrap();
    }
    bench.later();
    assert_eq!(bench.receipt_rows() as u64, many + 1);
}

/// Put away, stopped, or read again because a send came after an hour: what members have got is not forgotten, though no
/// snapshot was due.
#[test]
fn nothing_is_forgotten_without_a_crash() {
    for fenced in [false, true] {
        let mut bench = Bench::away(fenced, &["bob"]);
        bench.done("bob", read(1)).unwrap();
        bench.put_away();
        assert_eq!(bench.marks("ada").unwrap()["bob"], (1, 1));
        // Idle: it stays in memory without what can be read again, and is read again for a send.
        bench.now.fetch_add(61_000, Ordering::Relaxed);
        bench.mail(Mail::Tick);
        bench.settle();
        let state = bench.shard.conversations.get_mut(&CONVERSATION).and_then(|slot| slot.slot.ready()).unwrap();
        assert!(state.hot.is_none());
        bench.done("bob", delivered(2)).unwrap();
        let (rows, recoveries) = (bench.receipt_rows(), bench.store.held.lock().recoveries);
        bench.done("ada", send("three")).unwrap();
        assert_eq!((bench.receipt_rows(), bench.store.held.lock().recoveries), (rows, recoveries + 1));
        assert_eq!(bench.marks("ada").unwrap()["bob"], (2, 1));
        bench.done("bob", read(3)).unwrap();
        let (done, _stopped) = tokio::sync::oneshot::channel();
        bench.mail(Mail::Stop(done));
        bench.settle();
        let mut bench = bench.succeeded();
        assert_eq!(bench.marks("ada").unwrap()["bob"], (3, 3));
        assert_eq!(shown(bench.done("bob", list(9)))[0].2, 0);
    }
}

/// A send to an idle conversation has it read again, in the very turn in which somebody gets further: nobody misses that.
#[test]
fn what_has_moved_is_told_though_the_conversation_is_read_again() {
    let mut bench = Bench::chat(false, &["bob"]);
    bench.now.fetch_add(61_000, Ordering::Relaxed);
    bench.mail(Mail::Tick);
    bench.settle();
    let is_cool = |bench: &mut Bench| {
        let state = bench.shard.conversations.get_mut(&CONVERSATION).and_then(|slot| slot.slot.ready()).unwrap();
        state.hot.is_none()
    };
    assert!(is_cool(&mut bench));
    let turn: Vec<Mail> = [("bob", read(2)), ("ada", send("three"))]
        .into_iter()
        .map(|(who, command)| {
            bench.asked += 1;
            let actor = Actor { user: user(who), device: None, by: By::Token(Token::default()) };
            let entity = command.conversation().map_or_else(|| user(who).into(), EntityId::from);
            let asked = Asked {
                correlation: Correlation(bench.asked),
                actor,
                id: CommandId(uuid::Builder::from_unix_timestamp_millis(T, &[7; 10]).into_uuid()),
                command,
                deadline: T + 120_000,
            };
            let lane = Lane { partition: entity.partition(), attempt: 0 };
            Mail::Gateway(GATEWAY, ToNode::Command(lane, Arc::new(asked)))
        })
        .collect();
    bench.shard.turn(&mut turn.into_iter().collect());
    bench.settle();
    bench.later();
    assert!(!is_cool(&mut bench));
    assert_eq!(bench.words(1), [[("bob".to_owned(), 2, 2)]]);
    assert_eq!(bench.marks("ada").unwrap()["bob"], (2, 2));
}

/// A crash takes back what had no row, and the clients' saying it again heals that.
#[test]
fn what_a_crash_takes_back_heals() {
    let mut bench = Bench::chat(true, &["bob"]);
    bench.done("bob", read(1)).unwrap();
    bench.later();
    bench.done("bob", read(2)).unwrap();
    let mut bench = bench.succeeded();
    assert_eq!(bench.marks("ada").unwrap()["bob"], (1, 1), "what stood in a row stands");
    bench.connect("ada", 1);
    bench.settle();
    assert_eq!(progressed(bench.done("bob", read(2))).read_n, 2);
    bench.later();
    assert_eq!(bench.words(1), [[("bob".to_owned(), 2, 2)]]);
}

/// Rows of a former owner that arrive late raise numbers, if anything.
#[test]
fn a_partition_that_is_given_away_takes_its_watermarks_along() {
    let mut bench = Bench::chat(true, &["bob"]);
    let partition = EntityId::from(CONVERSATION).partition();
    let plan = chappe_cluster::ownership::PlanId::default();
    bench.mail(Mail::Tenure(TenureMail::Stream(partition, plan)));
    // Further than what the successor was shown.
    bench.done("bob", read(2)).unwrap();
    assert_eq!(bench.receipt_rows(), 0);
    bench.mail(Mail::Tenure(TenureMail::Seal(partition, plan)));
    bench.settle();
    assert_eq!(bench.receipt_rows(), 1);
    let mut bench = bench.succeeded();
    assert_eq!(bench.marks("ada").unwrap()["bob"], (2, 2));
}

#[test]
fn an_owner_that_does_not_answer_is_no_reason_to_wait_for_ever() {
    let mut bench = Bench::away(true, &["bob"]);
    bench.put_away();
    // The store is slow: neither the user's log nor the conversation's is read.
    let asked = bench.ask("bob", read(2));
    for _ in 0..12 {
        bench.now.fetch_add(1_000, Ordering::Relaxed);
        bench.mail(Mail::Tick);
    }
    bench.settle();
    assert!(bench.answer(asked).unwrap().is_err());
    assert!(bench.shard.tellings.is_empty());
    assert_eq!(progressed(bench.done("bob", read(2))).read_n, 2);
}

/// What was held back when somebody left is told when they are back: the others had put them away.
#[test]
fn whoever_comes_back_is_told_of() {
    let mut bench = Bench::chat(false, &["bob"]);
    bench.done("bob", read(1)).unwrap();
    bench.done("bob", read(2)).unwrap();
    assert_eq!(bench.words(1), [[("bob".to_owned(), 1, 1)]]);
    bench.done("bob", leave()).unwrap();
    bench.later();
    assert_eq!(bench.words(1).len(), 1, "of who is no member nobody is told");
    bench.done("ada", add("bob")).unwrap();
    bench.later();
    assert_eq!(bench.words(1)[1..], [[("bob".to_owned(), 2, 2)]]);
}

mod properties {
    use super::*;

    #[derive(Clone, Debug)]
    enum Deed {
        Send(usize),
        Delivered(usize, u64),
        Read(usize, u64, Option<bool>),
        Prefer(usize, bool),
        Leave(usize),
        Add(usize),
        Rest,
        Succeed,
        Tick,
    }

    const NAMES: [&str; 4] = ["ada", "bob", "eve", "zoe"];

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            4 => (0..4usize).prop_map(Deed::Send),
            4 => (0..4usize, 1..15u64).prop_map(|(who, n)| Deed::Delivered(who, n)),
            6 => (0..4usize, 1..15u64, prop::option::of(any::<bool>())).prop_map(|(who, n, private)| Deed::Read(who, n, private)),
            1 => (0..4usize, any::<bool>()).prop_map(|(who, private)| Deed::Prefer(who, private)),
            1 => (1..4usize).prop_map(Deed::Leave),
            2 => (1..4usize).prop_map(Deed::Add),
            1 => Just(Deed::Rest),
            1 => Just(Deed::Succeed),
            2 => Just(Deed::Tick),
        ]
    }

    /// What one client believes: listed when it connected, and kept by what it heard since.
    struct Device {
        slot: u32,
        heard: usize,
        marks: Option<Marks>,
    }

    impl Device {
        /// Takes what it has heard; what is below what it knows is nothing to it.
        fn hear(&mut self, bench: &Bench) -> Result<(), TestCaseError> {
            let words = bench.words(self.slot);
            for (user, delivered_n, read_n) in words[self.heard..].iter().flatten() {
                prop_assert!(read_n <= delivered_n, "{user} has read what did not reach them");
                let marks = self.marks.as_mut().expect("somebody hears who is no member");
                if let Some(known) = marks.get_mut(user) {
                    *known = (known.0.max(*delivered_n), known.1.max(*read_n));
                }
            }
            self.heard = words.len();
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Receipts, joins, leaves, evictions and takeovers in any order, several of them on their way at once: in the end
        /// every member's books say what the owner's do.
        #[test]
        fn clients_converge(deeds in prop::collection::vec(deed(), 1..50), pace in 1..6usize, fenced: bool) {
            let mut bench = Bench::new(fenced);
            bench.done("ada", group(&NAMES[1..])).unwrap();
            let mut slots = 0..;
            let connect = |bench: &mut Bench, who: &str, slot: u32| {
                bench.connect(who, slot);
                bench.settle();
                Device { slot, heard: 0, marks: bench.marks(who) }
            };
            let mut devices: BTreeMap<usize, Device> = BTreeMap::new();
            let mut said: BTreeMap<usize, Vec<Command>> = BTreeMap::new();
            for (who, name) in NAMES.iter().enumerate() {
                devices.insert(who, connect(&mut bench, name, slots.next().unwrap()));
            }
            for (step, deed) in deeds.into_iter().enumerate() {
                bench.now.fetch_add(20, Ordering::Relaxed);
                match deed {
                    Deed::Send(who) => _ = bench.ask(NAMES[who], send("text")),
                    Deed::Delivered(who, n) => {
                        said.entry(who).or_default().push(delivered(n));
                        bench.ask(NAMES[who], delivered(n));
                    }
                    Deed::Read(who, n, private) => {
                        let read = Command::ConversationRead { conversation: CONVERSATION, n, private };
                        bench.ask(NAMES[who], read);
                    }
                    Deed::Prefer(who, private) => _ = bench.ask(NAMES[who], prefer(private)),
                    Deed::Leave(who) => {
                        bench.settle();
                        devices.get_mut(&who).unwrap().hear(&bench)?;
                        bench.done(NAMES[who], leave()).ok();
                        let device = devices.get_mut(&who).unwrap();
                        device.hear(&bench)?;
                        device.marks = None;
                    }
                    Deed::Add(who) => {
                        bench.done("ada", add(NAMES[who])).unwrap();
                        // Whoever joins lists whom they meet; what was on its way before is part of that.
                        let device = devices.get_mut(&who).unwrap();
                        device.heard = bench.words(device.slot).len();
                        device.marks = bench.marks(NAMES[who]);
                    }
                    Deed::Rest => {
                        bench.settle();
                        for device in devices.values_mut() {
                            device.hear(&bench)?;
                        }
                        for (who, device) in &mut devices {
                            bench.disconnect(NAMES[*who], device.slot);
                        }
                        // A read of the fence that began before the long time says nothing after it.
                        bench.settle();
                        bench.put_away();
                        for (who, device) in &mut devices {
                            *device = connect(&mut bench, NAMES[*who], slots.next().unwrap());
                        }
                    }
                    Deed::Succeed => {
                        bench = bench.succeeded();
                        for (who, device) in &mut devices {
                            *device = connect(&mut bench, NAMES[*who], slots.next().unwrap());
                        }
                    }
                    Deed::Tick => bench.mail(Mail::Tick),
                }
                if step % pace == 0 {
                    bench.settle();
                    for device in devices.values_mut() {
                        device.hear(&bench)?;
                    }
                }
            }
            bench.settle();
            // Clients that have come back say again what they said; nothing of it does any harm.
            for (who, said) in said {
                for command in said {
                    bench.ask(NAMES[who], command);
                }
            }
            bench.settle();
            bench.later();
            bench.later();
            let books = bench.marks("ada").unwrap();
            let state = bench.shard.conversations.get_mut(&CONVERSATION).and_then(|slot| slot.slot.ready()).unwrap();
            let n = state.n;
            prop_assert!(books.values().all(|(delivered_n, read_n)| read_n <= delivered_n && *delivered_n <= n));
            for (who, device) in &mut devices {
                let who = NAMES[*who];
                device.hear(&bench)?;
                match &mut device.marks {
                    Some(marks) => {
                        marks.retain(|user, _| books.contains_key(user));
                        // Of oneself nobody is told, and who joined since has begun at nothing.
                        let of_others = |marks: &Marks| -> Marks {
                            marks.iter().filter(|(user, marks)| *user != who && **marks != (0, 0)).map(|(user, marks)| (user.clone(), *marks)).collect()
                        };
                        // Members who came after this device had listed are listed when their joining is heard of.
                        for (user, known) in &books {
                            marks.entry(user.clone()).or_insert(*known);
                        }
                        prop_assert_eq!(of_others(marks), of_others(&books), "{} believes otherwise", who);
                    }
                    None => prop_assert!(!books.contains_key(who), "{} is a member without a book", who),
                }
            }
        }
    }
}
