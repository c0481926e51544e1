//! The inbox of users, over a whole shard: what is shown, what it costs, and that devices stay in step.

use std::collections::BTreeMap;

use chappe_schema::{
    event::Role,
    id::Change,
    inbox::{Cursor, Item, Lag, Marking, Reset},
    limit::{CONNECT_INBOX_MAX, SETTLING_MS_MAX},
    mention::Mentions,
    wire::InboxChanged,
};

use super::*;

fn place(n: u64) -> ConversationId {
    ConversationId(uuid::Uuid::from_u128(1_000 + u128::from(n)))
}

fn create(conversation: ConversationId, members: &[&str]) -> Command {
    let Command::ConversationCreate(create) = group(members) else { unreachable!() };
    let title = format!("title {}", conversation.0.as_u128());
    Command::ConversationCreate(Box::new(Create { conversation, title, ..*create }))
}

fn say(conversation: ConversationId, text: &str, users: &[&str]) -> Command {
    let users = users.iter().map(|name| user(name)).collect();
    let mentions = Mentions { users, all: false }.checked().unwrap();
    Command::MessageSend { conversation, body: body(text), mentions }
}

fn mark(conversation: ConversationId, marking: Marking) -> Command {
    Command::InboxUpdate { conversation, marking }
}

fn pin() -> Marking {
    Marking { pinned: Some(true), ..Marking::default() }
}

fn mark_unread() -> Marking {
    Marking { marked_unread: Some(true), ..Marking::default() }
}

fn sync(cursor: Option<Cursor>, limit: usize) -> Command {
    Command::InboxSync { cursor, limit }
}

/// The rows of a list and the cursor of a sync, everything said.
fn page(reply: Result<Reply, Error>) -> (Vec<Row>, Cursor) {
    let Ok(Reply::Conversations { items, next_cursor: None, cursor, settling: false }) = reply else {
        panic!("no inbox: {reply:?}")
    };
    (items, cursor)
}

fn synced(reply: Result<Reply, Error>) -> (Vec<Item>, Cursor, bool) {
    let Ok(Reply::Synced { items, cursor, more, reset: None, settling: false }) = reply else {
        panic!("no changes: {reply:?}")
    };
    (items, cursor, more)
}

impl Bench {
    fn rows(&mut self, who: &str) -> Vec<Row> {
        page(self.done(who, list(200))).0
    }

    fn unread(&mut self, who: &str) -> Vec<(ConversationId, u64, u64)> {
        let counts = |row: Row| {
            let counts = row.standing.unwrap().counts;
            (row.conversation, counts.unread, counts.mentions)
        };
        self.rows(who).into_iter().map(counts).collect()
    }

    fn has_read(&mut self, who: &str, conversation: ConversationId, read_n: u64) {
        self.done(who, Command::ConversationRead { conversation, n: read_n, private: None }).unwrap();
    }

    /// What a connection was told of marks, in order.
    fn heard_of_marks(&self, slot: u32) -> Vec<InboxChanged> {
        let heard = self.heard.0.lock();
        let to = |message: &ToGateway| match message {
            ToGateway::InboxChanged { connections, changed } if connections.contains(&ConnectionSlot(slot)) => {
                Some((**changed).clone())
            }
            _ => None,
        };
        heard.iter().filter_map(to).collect()
    }

    /// The last cursor that a connection was told for its heartbeat.
    fn cursor(&self, slot: u32) -> Option<Cursor> {
        let heard = self.heard.0.lock();
        let to = |message: &ToGateway| match message {
            ToGateway::Cursors(cursors) => {
                cursors.iter().find(|(to, _)| *to == ConnectionSlot(slot)).map(|(_, at)| *at)
            }
            _ => None,
        };
        heard.iter().rev().find_map(to)
    }

    fn recoveries(&self) -> usize {
        self.store.held.lock().recoveries
    }

    /// Members of one conversation each, created by somebody else.
    fn populated(count: u64, who: &str) -> Self {
        let mut bench = Self::new(false);
        for n in 0..count {
            bench.ask("zoe", create(place(n), &[who]));
            if n % 512 == 0 {
                bench.settle();
            }
        }
        bench.settle();
        bench
    }
}

#[test]
fn a_row_shows_what_a_first_screen_needs() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    let direct = ConversationId::direct(&user("ada"), &user("bob"), Encryption::None);
    let Command::ConversationCreate(group) = create(direct, &["bob"]) else { unreachable!() };
    let direct_command = Create { kind: ConversationKind::Direct, title: String::new(), ..*group };
    bench.done("ada", Command::ConversationCreate(Box::new(direct_command))).unwrap();
    bench.now.fetch_add(5, Ordering::Relaxed);
    bench.done("ada", say(place(1), "hello", &[])).unwrap();
    bench.done("ada", say(place(1), "hello, bob", &["bob"])).unwrap();
    let rows = bench.rows("bob");
    let standing = rows[0].standing.as_ref().unwrap();
    assert_eq!((rows[0].conversation, rows[0].active_at), (place(1), T + 5));
    assert_eq!((&*standing.title, &standing.with), ("title 1001", &None));
    assert_eq!((standing.counts.unread, standing.counts.mentions, standing.read_n), (2, 1, 0));
    let last = standing.last.as_ref().unwrap();
    assert_eq!((last.seq, last.sender.as_str(), last.text.as_deref()), (3, "ada", Some("hello, bob")));
    assert_eq!(rows[1].standing.as_ref().unwrap().with, Some(user("ada")));
    assert_eq!(bench.unread("ada"), [(place(1), 0, 0), (direct, 0, 0)]);
    // From a cold start too, and without the log of what was said being looked at.
    bench.put_away();
    assert_eq!(bench.rows("bob")[0].standing.as_ref().unwrap().last.as_ref().unwrap().n, 2);
    // Who joins later is shown nothing of before.
    let update =
        Box::new(chappe_schema::command::Update { history: Some(HistoryAccess::SinceJoin), ..Default::default() });
    bench.done("ada", Command::ConversationUpdate { conversation: place(1), update }).unwrap();
    let add = Command::MemberAdd { conversation: place(1), user: user("eve"), role: Role::Member };
    bench.done("ada", add).unwrap();
    let rows = bench.rows("eve");
    let standing = rows[0].standing.as_ref().unwrap();
    assert_eq!((&standing.last, standing.counts.unread, standing.read_n), (&None, 0, 2));
}

/// Edits that add or take a mention away, deletions, leaving and coming back: counted by the conversation's owner, so that
/// they are right after a restart and under a new owner too.
#[test]
fn rocket_chat_19121_counts_are_right_whatever_happens_and_whoever_owns() {
    let mut bench = Bench::new(true);
    bench.done("ada", create(place(1), &["bob", "eve"])).unwrap();
    for n in 1..=4 {
        bench.done("ada", say(place(1), &n.to_string(), if n == 2 { &["bob"] } else { &[] })).unwrap();
    }
    assert_eq!(bench.unread("bob"), [(place(1), 4, 1)]);
    let edit = |seq, users: &[&str]| {
        let Command::MessageSend { conversation, body, mentions } = say(place(1), "edited", users) else {
            unreachable!()
        };
        Command::MessageEdit { conversation, seq, body, mentions }
    };
    bench.done("ada", edit(4, &["bob", "eve"])).unwrap();
    assert_eq!((bench.unread("bob"), bench.unread("eve")), (vec![(place(1), 4, 2)], vec![(place(1), 4, 1)]));
    bench.done("ada", edit(3, &[])).unwrap();
    bench.done("ada", Command::MessageDelete { conversation: place(1), seq: 2 }).unwrap();
    assert_eq!(bench.unread("bob"), [(place(1), 3, 1)]);
    let mut bench = bench.succeeded();
    assert_eq!(bench.unread("bob"), [(place(1), 3, 1)]);
    bench.put_away();
    assert_eq!(bench.unread("eve"), [(place(1), 3, 1)]);
    bench.done("ada", Command::MessageDelete { conversation: place(1), seq: 4 }).unwrap();
    assert_eq!(bench.unread("eve"), [(place(1), 2, 0)]);
    // One's own message reads up to it, and who comes back has nothing to read of what was said meanwhile.
    bench.done("bob", say(place(1), "mine", &["bob"])).unwrap();
    assert_eq!((bench.unread("bob"), bench.unread("eve")), (vec![(place(1), 0, 0)], vec![(place(1), 3, 0)]));
    let leave = Command::ConversationLeave { conversation: place(1) };
    bench.done("bob", leave).unwrap();
    bench.done("ada", say(place(1), "without bob", &["bob"])).unwrap();
    assert!(bench.unread("bob").is_empty());
    let add = Command::MemberAdd { conversation: place(1), user: user("bob"), role: Role::Member };
    bench.done("ada", add).unwrap();
    assert_eq!(bench.unread("bob"), [(place(1), 0, 0)]);
    bench.done("ada", say(place(1), "welcome back", &["bob"])).unwrap();
    assert_eq!(bench.unread("bob"), [(place(1), 1, 1)]);
}

#[test]
fn marks_are_durable_and_told_to_every_device_once_they_are() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    bench.done("ada", create(place(2), &["bob"])).unwrap();
    bench.connect("bob", 5);
    bench.connect("bob", 6);
    bench.connect("ada", 7);
    bench.settle();
    let asked = bench.ask("bob", mark(place(1), pin()));
    assert_eq!((bench.answer(asked), bench.heard_of_marks(5).len()), (None, 0), "nothing before the log has it");
    bench.settle();
    assert!(matches!(bench.answer(asked), Some(Ok(Reply::Marked { flags, changed: true })) if flags.pinned));
    for slot in [5, 6] {
        let told = bench.heard_of_marks(slot);
        assert_eq!((told.len(), told[0].conversation, told[0].flags.pinned), (1, place(1), true));
    }
    assert!(bench.heard_of_marks(7).is_empty(), "nobody else's business");
    // The same again is no news.
    let again = bench.done("bob", mark(place(1), pin()));
    assert!(matches!(again, Ok(Reply::Marked { changed: false, .. })));
    assert_eq!(bench.heard_of_marks(5).len(), 1);
    assert_eq!(bench.rows("bob")[0].conversation, place(1));
    assert!(!bench.rows("ada")[0].flags.pinned);
    let refused = bench.done("eve", mark(place(1), pin())).unwrap_err();
    assert_eq!(refused.code, Code::ConversationNotFound);
    let mut next = bench.succeeded();
    let rows = next.rows("bob");
    assert_eq!((rows[0].conversation, rows[0].flags.pinned, rows[1].flags.pinned), (place(1), true, false));
    // The log that is full refuses a mark like anything else, and everybody is told the truth.
    let asked = next.ask("bob", mark(place(2), mark_unread()));
    next.append(Written::NotWritten("full".to_owned()));
    next.settle();
    assert_eq!(next.answer(asked).unwrap().unwrap_err().code, Code::Unavailable);
    assert!(!next.rows("bob")[1].flags.marked_unread);
}

#[test]
fn read_on_one_device_is_read_on_all() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    for n in 0..3 {
        bench.done("ada", say(place(1), &n.to_string(), &["bob"])).unwrap();
    }
    bench.connect("bob", 5);
    bench.connect("bob", 6);
    bench.done("bob", mark(place(1), mark_unread())).unwrap();
    let before = bench.cursor(5);
    bench.has_read("bob", place(1), 2);
    for slot in [5, 6] {
        let told = bench.heard_of_marks(slot).pop().unwrap();
        let (read_n, counts) = told.read.unwrap();
        assert_eq!((read_n, counts.unread, counts.mentions, told.flags.marked_unread), (2, 1, 1, false));
    }
    assert_eq!(bench.unread("bob"), [(place(1), 1, 1)]);
    bench.mail(Mail::Tick);
    assert_ne!(bench.cursor(5), before);
    // Marked as unread and sent to: who writes has read.
    bench.done("bob", mark(place(1), mark_unread())).unwrap();
    bench.done("bob", say(place(1), "mine", &[])).unwrap();
    assert!(!bench.heard_of_marks(6).last().unwrap().flags.marked_unread);
    assert!(!bench.rows("bob")[0].flags.marked_unread);
    // Reading what was read already takes the mark away too.
    bench.done("bob", mark(place(1), mark_unread())).unwrap();
    bench.has_read("bob", place(1), 4);
    assert!(!bench.succeeded().rows("bob")[0].flags.marked_unread);
}

#[test]
fn heartbeats_are_told_how_far_the_inbox_is() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    bench.connect("bob", 5);
    bench.settle();
    let at_connect = bench.connected()[0].cursor;
    bench.mail(Mail::Tick);
    assert_eq!(bench.cursor(5), None, "nothing has changed");
    for n in 0..10 {
        bench.done("ada", say(place(1), &n.to_string(), &[])).unwrap();
    }
    bench.mail(Mail::Tick);
    let cursor = bench.cursor(5).unwrap();
    assert!(cursor.change > at_connect.change);
    let told = bench.heard.0.lock().iter().filter(|message| matches!(message, ToGateway::Cursors(_))).count();
    assert_eq!(told, 1, "once, however much has changed");
    assert_eq!(synced(bench.done("bob", sync(Some(at_connect), 9))).1, cursor);
}

/// Synapse #10842: lists that took minutes. What is counted here is work, not time.
#[test]
fn synapse_10842_an_inbox_of_ten_thousand_costs_what_is_visible() {
    const ALL: u64 = 10_000;
    let mut bench = Bench::populated(ALL, "ada");
    // Everybody is asked once where they stand.
    bench.done("ada", list(1)).unwrap();
    bench.put_away();
    let before = bench.recoveries();
    // A user comes back of whom nothing has moved: their log is read, and the rows that are shown.
    let (rows, _) = {
        let Ok(Reply::Conversations { items, cursor, next_cursor: Some(_), settling: false }) =
            bench.done("ada", list(50))
        else {
            panic!("no inbox")
        };
        (items, cursor)
    };
    assert_eq!((rows.len(), bench.recoveries() - before), (50, 51));
    // Everything is in memory now: a page costs no read at all, whatever it filters.
    let before = bench.recoveries();
    let unread = Filter { unread: true, ..Filter::default() };
    bench.done("ada", Command::ConversationList { filter: unread, below: None, limit: 50 }).unwrap();
    bench.done("ada", list(50)).unwrap();
    assert_eq!(bench.recoveries(), before);
    bench.put_away();
    // Three have moved on while they were away, and somebody has watched.
    for n in [17, 4_711, 9_999] {
        bench.now.fetch_add(1, Ordering::Relaxed);
        bench.done("zoe", say(place(n), "news", &[])).unwrap();
    }
    bench.now.fetch_add(61_000, Ordering::Relaxed);
    bench.put_away();
    let before = bench.recoveries();
    bench.connect("ada", 5);
    bench.settle();
    assert_eq!(bench.recoveries() - before, 1 + 3);
    let heads = bench.connected().pop().unwrap();
    let first: Vec<ConversationId> = heads.others.iter().take(3).map(|(id, _)| *id).collect();
    assert_eq!((first, heads.others.len()), ([9_999, 4_711, 17].map(place).to_vec(), CONNECT_INBOX_MAX));

    // After a restart nobody has watched. A connection is answered when what it shows is known; the rest is asked a few
    // at a time, in the background.
    let before = bench.recoveries();
    let mut next = bench.succeeded();
    next.connect("ada", 5);
    let mut work = 0;
    while next.connected().is_empty() {
        assert!(next.store.answer_reads(), "nothing moves");
        next.collect();
        work = next.recoveries() - before;
    }
    assert!(work <= 1 + 2 * chappe_schema::limit::HEADS_ASKED_MAX + CONNECT_INBOX_MAX, "{work} reads");
    next.settle();
    let (items, _, more) = synced(next.done("ada", sync(Some(heads.cursor), 10)));
    assert_eq!(
        (items.len(), more),
        (3, false),
        "what the dead owner had not flushed is told once more, and nothing else"
    );
    assert!((next.recoveries() - before) as u64 > ALL);
}

#[test]
fn a_list_does_not_wait_for_ever_for_those_that_say_nothing() {
    let mut bench = Bench::populated(600, "ada");
    bench.put_away();
    let mut next = bench.succeeded();
    let asked = next.ask("ada", list(5));
    // The user is read, and not one conversation.
    let work = next.store.held.lock().others.pop_front().unwrap();
    let tell = work(&mut next.store.held.lock());
    tell();
    next.collect();
    let held: Vec<Work> = next.store.held.lock().others.drain(..).collect();
    next.mail(Mail::Tick);
    assert_eq!(next.answer(asked), None);
    next.now.fetch_add(SETTLING_MS_MAX, Ordering::Relaxed);
    next.mail(Mail::Tick);
    assert_eq!(next.answer(asked), None, "the rows that are shown are waited for");
    next.store.held.lock().others.extend(held.into_iter().take(200));
    next.store.answer_reads();
    next.collect();
    next.store.held.lock().others.clear();
    let Some(Ok(Reply::Conversations { items, settling: true, .. })) = next.answer(asked) else { panic!("no answer") };
    assert_eq!(items.len(), 5);
    // Rows that never come do not hold an answer up for ever either.
    let asked = next.ask(
        "ada",
        Command::ConversationList {
            filter: Filter::default(),
            below: Some(chappe_schema::inbox::Place {
                section: chappe_schema::inbox::Section::Usual,
                at: T,
                conversation: place(100),
            }),
            limit: 5,
        },
    );
    next.now.fetch_add(SETTLING_MS_MAX, Ordering::Relaxed);
    next.mail(Mail::Tick);
    assert_eq!(next.answer(asked), None);
    next.now.fetch_add(10_001, Ordering::Relaxed);
    next.mail(Mail::Tick);
    let Some(Ok(Reply::Conversations { items, settling: true, .. })) = next.answer(asked) else { panic!("no answer") };
    assert!(items.iter().all(|row| row.standing.is_none()) && items.len() == 5);
}

#[test]
fn what_cannot_be_read_is_a_row_that_says_so() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    bench.done("ada", create(place(2), &["bob"])).unwrap();
    bench.put_away();
    let damaged = bytes::Bytes::from_static(b"damaged");
    bench.store.held.lock().snapshots.insert(place(1).into(), (1, damaged));
    let rows = bench.rows("bob");
    let standings: Vec<_> = rows.iter().map(|row| (row.conversation, row.standing.is_some())).collect();
    assert_eq!(standings, [(place(2), true), (place(1), false)]);
}

/// After the event that removes them a member learns nothing, asked or unasked.
#[test]
fn a_removed_member_learns_nothing_more() {
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &["bob"])).unwrap();
    bench.done("ada", say(place(1), "one", &[])).unwrap();
    bench.connect("bob", 5);
    bench.settle();
    let cursor = page(bench.done("bob", list(9))).1;
    // The removal is committed, and bob's own log does not know of it yet.
    bench.ask("ada", Command::MemberRemove { conversation: place(1), user: user("bob") });
    bench.reads();
    bench.append(Written::Durable);
    let asked = [bench.ask("bob", list(9)), bench.ask("bob", sync(Some(cursor), 9))];
    let told = bench.heard_of_marks(5).len();
    bench.done("ada", say(place(1), "two", &["bob"])).unwrap();
    let edit = Command::MessageEdit { conversation: place(1), seq: 2, body: body("edited"), mentions: None };
    bench.done("ada", edit).unwrap();
    let Some(Ok(Reply::Conversations { items, .. })) = bench.answer(asked[0]) else { panic!("no inbox") };
    let shown = items.iter().filter_map(|row| row.standing.as_ref()).map(|standing| standing.head.seq).max();
    assert!(shown <= Some(3), "at most the event that removed them: {items:?}");
    assert!(bench.rows("bob").is_empty());
    let (items, after, _) = synced(bench.done("bob", sync(Some(cursor), 9)));
    assert!(matches!(items[..], [Item::Left { .. }]));
    assert_eq!((bench.delivered(5), bench.heard_of_marks(5).len()), (vec![3], told));
    // Nothing of what goes on there is a change to them, over restarts too.
    bench.done("ada", say(place(1), "three", &["bob"])).unwrap();
    assert_eq!(synced(bench.done("bob", sync(Some(after), 9))).0.len(), 0);
    assert_eq!(bench.done("bob", mark(place(1), pin())).unwrap_err().code, Code::ConversationNotFound);
    let mut next = bench.succeeded();
    assert!(next.rows("bob").is_empty());
    assert_eq!(synced(next.done("bob", sync(Some(after), 9))).0.len(), 0);
}

#[test]
fn a_device_that_was_away_hears_what_has_changed() {
    let mut bench = Bench::new(false);
    for n in 0..4 {
        bench.done("ada", create(place(n), &["bob"])).unwrap();
    }
    let (_, cursor) = page(bench.done("bob", list(9)));
    bench.connect("bob", 5);
    bench.settle();
    assert_eq!(bench.connected()[0].lag, Lag::Reset(Reset::New));
    // Days pass: the user is put away, things happen, the server is restarted twice.
    bench.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user("bob"), connection: ConnectionSlot(5) }));
    bench.put_away();
    bench.done("ada", say(place(2), "one", &["bob"])).unwrap();
    bench.done("ada", say(place(2), "two", &[])).unwrap();
    bench.put_away();
    let mut bench = bench.succeeded();
    bench.done("ada", Command::MemberRemove { conversation: place(0), user: user("bob") }).unwrap();
    bench.done("bob", mark(place(3), pin())).unwrap();
    let mut bench = bench.succeeded();
    let (items, after, more) = synced(bench.done("bob", sync(Some(cursor), 9)));
    let mut told: Vec<_> = items
        .iter()
        .map(|item| match item {
            Item::Row(row) => {
                let counts = row.standing.as_ref().unwrap().counts;
                (row.conversation, Some((counts.unread, counts.mentions, row.flags.pinned)))
            }
            Item::Left { conversation, .. } => (*conversation, None),
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, [(place(0), None), (place(2), Some((2, 1, false))), (place(3), Some((0, 0, true)))]);
    assert!(!more);
    assert_eq!(synced(bench.done("bob", sync(Some(after), 9))).0, []);
    for (cursor, reset) in [
        (None, Reset::New),
        (Some(Cursor { generation: Generation(1), ..after }), Reset::Generation),
        (Some(Cursor { change: Change { epoch: 99, count: 1 }, ..after }), Reset::Ahead),
    ] {
        let Ok(Reply::Synced { items, cursor: newest, reset: Some(why), .. }) = bench.done("bob", sync(cursor, 9))
        else {
            panic!("no reset")
        };
        assert_eq!((items.len(), why, newest), (0, reset, after));
    }
}

/// News of large conversations go to listeners only; whoever is mentioned hears of it all the same, everybody else does not.
#[test]
fn a_mention_in_a_large_conversation_is_told_to_whom_it_is_about() {
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    (0..3).for_each(|n| bench.connect(&names[n], n as u32));
    bench.settle();
    bench.done("ada", say(place(1), "to nobody", &[])).unwrap();
    let asked = bench.ask("ada", say(place(1), "to two", &["user-000", "user-001", "eve"]));
    bench.reads();
    assert_eq!((bench.answer(asked), bench.heard_of_marks(0).len()), (None, 0), "nothing before the log has it");
    bench.settle();
    for slot in [0, 1] {
        let told = bench.heard_of_marks(slot);
        let (read_n, counts) = told[0].read.unwrap();
        assert_eq!((told.len(), read_n, counts.unread, counts.mentions), (1, 0, 2, 1));
    }
    assert!(bench.heard_of_marks(2).is_empty() && bench.delivered(0).is_empty());
    // The device is behind by it, whether that was lost or not.
    bench.mail(Mail::Tick);
    assert!(bench.cursor(0).is_some() && bench.cursor(2).is_none());
    // Who is no member any more hears nothing.
    bench.done("ada", Command::MemberRemove { conversation: place(1), user: user("user-000") }).unwrap();
    bench.done("ada", say(place(1), "to one", &["user-000", "user-001"])).unwrap();
    assert_eq!((bench.heard_of_marks(0).len(), bench.heard_of_marks(1).len()), (1, 2));
    // A list asks for large conversations itself, once a second.
    bench.now.fetch_add(1_000, Ordering::Relaxed);
    assert_eq!(bench.unread("user-002"), [(place(1), 3, 0)]);
}

/// Rows are the currency: the inbox of ten members costs next to none of them.
#[test]
fn rows_written_per_message_in_a_group_of_ten() {
    let names: Vec<String> = (0..9).map(|n| format!("user-{n}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", create(place(1), &members)).unwrap();
    (1..).zip(&members).for_each(|(slot, name)| bench.connect(name, slot));
    bench.done("user-1", mark(place(1), pin())).unwrap();
    let written = |bench: &Bench| {
        let held = bench.store.held.lock();
        held.rows.len() + held.projected
    };
    let before = written(&bench);
    const MESSAGES: usize = 2_000;
    for n in 0..MESSAGES {
        let mentioned: &[&str] = if n % 10 == 0 { &["user-3"] } else { &[] };
        bench.done(members[n % 9], say(place(1), "text", mentioned)).unwrap();
        if n % 100 == 0 {
            bench.has_read("user-2", place(1), n as u64);
        }
    }
    for (slot, name) in (1..).zip(&members) {
        bench.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user(name), connection: ConnectionSlot(slot) }));
    }
    bench.put_away();
    let per_message = (written(&bench) - before) as f64 / MESSAGES as f64;
    println!("{per_message} rows per message");
    assert!(per_message <= 1.05, "{per_message} rows per message");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Deed {
        Say(u64, &'static str, bool),
        Edit(u64, Seq, bool),
        Delete(u64, Seq),
        Mark(u64, Marking),
        Read(u64),
        Leave(u64),
        Add(u64),
        Rename(u64),
        /// Everybody is put away.
        Rest,
        /// The owner dies and another one takes over; with or without what it had in memory only.
        Succeed,
        Tick,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        let at = || 0..3u64;
        let who = prop::sample::select(vec!["ada", "bob"]);
        let marking = (any::<[Option<bool>; 4]>()).prop_map(|[pinned, archived, muted, marked_unread]| Marking {
            pinned,
            archived: archived.filter(|_| pinned != Some(true)),
            // For ever, or not at all: time alone is no change.
            muted_until: muted.map(|muted| if muted { Millis::MAX } else { 0 }),
            marked_unread,
        });
        prop_oneof![
            6 => (at(), who, any::<bool>()).prop_map(|(at, who, mention)| Deed::Say(at, who, mention)),
            2 => (at(), 2..20u64, any::<bool>()).prop_map(|(at, seq, mention)| Deed::Edit(at, seq, mention)),
            2 => (at(), 2..20u64).prop_map(|(at, seq)| Deed::Delete(at, seq)),
            3 => (at(), marking).prop_map(|(at, marking)| Deed::Mark(at, marking)),
            2 => at().prop_map(Deed::Read),
            1 => at().prop_map(Deed::Leave),
            2 => at().prop_map(Deed::Add),
            1 => at().prop_map(Deed::Rename),
            1 => Just(Deed::Rest),
            1 => Just(Deed::Succeed),
            1 => Just(Deed::Tick),
        ]
    }

    fn fresh(bench: &mut Bench) -> BTreeMap<ConversationId, Row> {
        let archived = Filter { archived: true, ..Filter::default() };
        let away = Command::ConversationList { filter: archived, below: None, limit: 200 };
        let rows = [page(bench.done("bob", list(200))).0, page(bench.done("bob", away)).0];
        let numberless = |row: Row| (row.conversation, Row { change: Change::default(), ..row });
        rows.into_iter().flatten().map(numberless).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// A device that syncs now and then, whatever happens in between and whoever owns: it has what a fresh list shows.
        #[test]
        fn a_device_that_syncs_has_what_a_fresh_list_shows(deeds in prop::collection::vec(deed(), 1..60), pace in 1..7usize, limit in 1..4usize) {
            let mut bench = Bench::new(false);
            for n in 0..3 {
                bench.done("ada", create(place(n), &["bob"])).unwrap();
            }
            let mut device = fresh(&mut bench);
            let mut cursor = page(bench.done("bob", list(200))).1;
            let mut read: BTreeMap<u64, u64> = BTreeMap::new();
            for (step, deed) in deeds.into_iter().enumerate() {
                bench.now.fetch_add(3, Ordering::Relaxed);
                let mentioned = |mention: bool| -> &[&str] { if mention { &["bob"] } else { &[] } };
                match deed {
                    Deed::Say(at, who, mention) => _ = bench.done(who, say(place(at), "text", mentioned(mention))),
                    Deed::Edit(at, seq, mention) => {
                        let Command::MessageSend { conversation, body, mentions } = say(place(at), "edited", mentioned(mention)) else {
                            unreachable!()
                        };
                        _ = bench.done("ada", Command::MessageEdit { conversation, seq, body, mentions });
                    }
                    Deed::Delete(at, seq) => _ = bench.done("ada", Command::MessageDelete { conversation: place(at), seq }),
                    Deed::Mark(at, marking) => _ = bench.done("bob", mark(place(at), marking)),
                    Deed::Read(at) => {
                        if let Some(row) = device.get(&place(at)) {
                            read.insert(at, row.standing.as_ref().unwrap().head.n);
                        }
                    }
                    Deed::Leave(at) => _ = bench.done("bob", Command::ConversationLeave { conversation: place(at) }),
                    Deed::Add(at) => {
                        let add = Command::MemberAdd { conversation: place(at), user: user("bob"), role: Role::Member };
                        bench.done("ada", add).unwrap();
                    }
                    Deed::Rename(at) => {
                        let title = Some(format!("title at {step}"));
                        let update = Box::new(chappe_schema::command::Update { title, ..Default::default() });
                        bench.done("ada", Command::ConversationUpdate { conversation: place(at), update }).unwrap();
                    }
                    Deed::Rest => bench.put_away(),
                    Deed::Succeed => bench = bench.succeeded(),
                    Deed::Tick => bench.mail(Mail::Tick),
                }
                // What was read is not durable at once: clients say it again.
                for (at, n) in &read {
                    bench.done("ada", Command::ConversationGet { conversation: place(*at) }).unwrap();
                    let state = bench.shard.conversations.get_mut(&place(*at)).and_then(|slot| slot.slot.ready()).unwrap();
                    if state.members.get(&user("bob")).is_some_and(|member| member.read_n < *n) {
                        bench.has_read("bob", place(*at), *n);
                    }
                }
                if step % pace == 0 {
                    let mut more = true;
                    while more {
                        let items;
                        (items, cursor, more) = synced(bench.done("bob", sync(Some(cursor), limit)));
                        prop_assert!(items.len() <= limit && (!more || items.len() == limit));
                        for item in items {
                            match item {
                                Item::Row(row) => _ = device.insert(row.conversation, Row { change: Change::default(), ..row }),
                                Item::Left { conversation, .. } => _ = device.remove(&conversation),
                            }
                        }
                    }
                    prop_assert_eq!(&device, &fresh(&mut bench), "after step {}", step);
                    prop_assert_eq!(synced(bench.done("bob", sync(Some(cursor), 9))).0, []);
                }
            }
        }
    }
}
