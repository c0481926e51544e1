//! Watermarks: what each member has got, what of it the others see, and what follows for one message.

use chappe_schema::{
    inbox::Counts,
    limit::RECEIPTS_MEMBERS_MAX,
    receipt::{Progress, Progressed, Receipt, ReceiptView, Watermarks},
    stored::StoredReceipt,
};
use proptest::prelude::*;

use super::*;
use crate::conversation::Got;

fn progress(delivered: Option<u64>, read: Option<u64>) -> Progress {
    Progress { conversation: CONVERSATION, delivered, read }
}

fn receipts(seq: Seq) -> Command {
    Command::ReceiptList { conversation: CONVERSATION, seq, after: None, limit: 100 }
}

fn switch(receipts: bool) -> Command {
    let update = Box::new(Update { receipts: Some(receipts), ..Update::default() });
    Command::ConversationUpdate { conversation: CONVERSATION, update }
}

impl Talk {
    fn delivered(&mut self, who: &str, n: u64) -> Result<Progressed, Code> {
        self.state.progress(&user(who), &progress(Some(n), None), false).map_err(|error| error.code)
    }

    fn read(&mut self, who: &str, n: u64) -> Result<Progressed, Code> {
        self.state.progress(&user(who), &progress(None, Some(n)), false).map_err(|error| error.code)
    }

    fn read_privately(&mut self, who: &str, n: u64) -> Result<Progressed, Code> {
        self.state.progress(&user(who), &progress(None, Some(n)), true).map_err(|error| error.code)
    }

    /// Of how many, how many have got and read the message at `seq`; and who read it.
    fn standing(&mut self, seq: Seq) -> (u64, u64, u64, Vec<String>) {
        let Reply::Receipts { items, members, delivered, read, .. } = self.ok("ada", receipts(seq)) else { panic!() };
        let readers = items.iter().filter(|view| view.read).map(|view| view.user.to_string());
        (members, delivered, read, readers.collect())
    }

    /// What the others are told.
    fn moved(&mut self) -> Vec<(String, u64, u64)> {
        let item = |Receipt { user, marks }: Receipt| (user.to_string(), marks.delivered_n, marks.read_n);
        self.state.take_moved().items.into_iter().map(item).collect()
    }

    /// Marks as the list of members shows them.
    fn marks(&mut self, who: &str) -> Option<Watermarks> {
        let list = Command::MemberList { conversation: CONVERSATION, after: None, limit: 500 };
        let Reply::Members { items, .. } = self.ok("ada", list) else { panic!() };
        items.into_iter().find(|member| member.user == user(who)).unwrap().marks
    }
}

fn to(delivered_n: u64, read_n: u64) -> Option<Watermarks> {
    Some(Watermarks { delivered_n, read_n })
}

/// Threads: RocketChat/feature-requests#473 and #849, receipts larger than the messages: here they are one set of numbers per
/// member, and what of one message is read follows from them.
#[test]
fn feature_requests_473_what_of_a_message_is_read_follows_from_watermarks() {
    let mut talk = Talk::group(&["bob", "eve", "zoe"]);
    for n in 0..3 {
        talk.send("ada", &n.to_string());
    }
    assert_eq!(talk.standing(2), (3, 0, 0, vec![]));
    talk.delivered("bob", 3).unwrap();
    talk.delivered("eve", 1).unwrap();
    talk.read("bob", 2).unwrap();
    talk.read("zoe", 1).unwrap();
    assert_eq!(talk.standing(2), (3, 3, 2, vec!["bob".into(), "zoe".into()]));
    assert_eq!(talk.standing(3), (3, 1, 1, vec!["bob".into()]));
    assert_eq!(talk.standing(4), (3, 1, 0, vec![]));
    let bytes = talk.state.bytes();
    for n in 0..100 {
        talk.read("bob", n % 4).unwrap();
    }
    assert_eq!(talk.state.bytes(), bytes, "what is said again takes no room");
    assert_eq!(talk.log.len(), 4, "no receipt is an event");
}

#[test]
fn watermarks_only_rise_and_reading_is_having_received() {
    let mut talk = Talk::group(&["bob"]);
    for n in 0..5 {
        talk.send("ada", &n.to_string());
    }
    let counts = |unread| Counts { unread, ..Counts::default() };
    assert_eq!(talk.read("bob", 3), Ok(Progressed { delivered_n: 3, read_n: 3, counts: counts(2) }));
    assert_eq!(talk.read("bob", 1), Ok(Progressed { delivered_n: 3, read_n: 3, counts: counts(2) }));
    assert_eq!(talk.delivered("bob", 2), Ok(Progressed { delivered_n: 3, read_n: 3, counts: counts(2) }));
    assert_eq!(talk.delivered("bob", 5), Ok(Progressed { delivered_n: 5, read_n: 3, counts: counts(2) }));
    assert_eq!(talk.moved(), [("bob".into(), 5, 3)]);
    // What was said again is no news.
    talk.read("bob", 3).unwrap();
    assert_eq!(talk.moved(), []);
    assert!(!talk.state.has_moved() && talk.state.has_unkept());
    // Nobody has got what was not sent, and who is no member has got nothing.
    assert_eq!((talk.read("bob", 6), talk.delivered("bob", u64::MAX)), (Err(Code::Invalid), Err(Code::Invalid)));
    assert_eq!(talk.read("eve", 1), Err(Code::ConversationNotFound));
    assert_eq!(talk.marks("bob"), to(5, 3));
}

#[test]
fn a_watermark_that_moves_three_times_is_told_once() {
    let mut talk = Talk::group(&["bob", "eve"]);
    for n in 1..=3 {
        talk.send("ada", &n.to_string());
        talk.delivered("bob", n).unwrap();
        talk.read("bob", n).unwrap();
    }
    talk.read("eve", 1).unwrap();
    assert_eq!(talk.moved(), [("bob".into(), 3, 3), ("eve".into(), 1, 1)]);
    assert_eq!(talk.moved(), []);
}

#[test]
fn who_reads_privately_reads_for_themselves() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "one");
    talk.send("ada", "two");
    let progressed = talk.read_privately("bob", 2).unwrap();
    assert_eq!((progressed.read_n, progressed.delivered_n, progressed.counts.unread), (2, 0, 0));
    assert_eq!((talk.moved(), talk.standing(3)), (vec![], (1, 0, 0, vec![])));
    assert_eq!(talk.marks("bob"), to(0, 0));
    // It is kept all the same, and a later one for everybody tells no more than it says.
    assert!(talk.state.has_unkept());
    talk.read("bob", 1).unwrap();
    assert_eq!((talk.moved(), talk.marks("bob")), (vec![("bob".into(), 1, 1)], to(1, 1)));
}

#[test]
fn writing_reads_for_oneself_and_shows_nothing() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "question");
    talk.send("bob", "answer");
    assert_eq!(talk.state.standing(&user("bob")).unwrap().counts.unread, 0);
    assert_eq!((talk.moved(), talk.standing(2)), (vec![], (1, 0, 0, vec![])));
    // Nobody is among those who have read their own message.
    talk.read("ada", 2).unwrap();
    talk.read("bob", 2).unwrap();
    assert_eq!(talk.standing(3), (1, 1, 1, vec!["ada".into()]));
}

#[test]
fn edits_move_nothing_and_of_a_deleted_message_nothing_is_told() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "one");
    talk.send("ada", "two");
    talk.read("bob", 2).unwrap();
    talk.ok("ada", edit(2, "edited"));
    assert_eq!(talk.standing(2), (1, 1, 1, vec!["bob".into()]));
    talk.ok("ada", delete(2));
    assert_eq!(talk.refused("ada", receipts(2)), Code::MessageDeleted);
    assert_eq!(talk.refused("ada", receipts(4)), Code::MessageNotFound);
    assert_eq!(talk.refused("ada", receipts(99)), Code::MessageNotFound);
    assert_eq!(talk.refused("eve", receipts(3)), Code::ConversationNotFound);
    assert_eq!(talk.standing(3), (1, 1, 1, vec!["bob".into()]));
}

/// Whoever was not there when a message came is not among those who may read it; and who comes back has not read what they
/// had not read.
#[test]
fn leaving_and_coming_back_reads_nothing() {
    let mut talk = Talk::group(&["bob", "eve"]);
    talk.send("ada", "one");
    talk.send("ada", "two");
    talk.read("bob", 1).unwrap();
    talk.read("eve", 2).unwrap();
    talk.moved();
    talk.ok("bob", LEAVE);
    assert_eq!(talk.read("bob", 2), Err(Code::ConversationNotFound));
    assert_eq!(talk.standing(2), (1, 1, 1, vec!["eve".into()]));
    assert_eq!(talk.judge("bob", fresh(), &receipts(2)), Err(Code::ConversationNotFound));
    talk.send("ada", "without bob");
    talk.ok("ada", add("bob", Role::Member));
    talk.ok("ada", add("zoe", Role::Member));
    talk.send("ada", "welcome");
    // Nothing is left to read of before, but nothing of it was read either.
    assert_eq!(talk.state.standing(&user("bob")).unwrap().counts.unread, 1);
    assert_eq!(talk.marks("bob"), to(1, 1));
    assert_eq!(talk.standing(3), (2, 1, 1, vec!["eve".into()]));
    assert_eq!(talk.standing(5), (1, 0, 0, vec![]));
    assert_eq!(talk.standing(8), (3, 0, 0, vec![]));
    talk.read("bob", 4).unwrap();
    assert_eq!(talk.standing(3), (2, 2, 2, vec!["bob".into(), "eve".into()]));
    // Who has left since is not told of.
    talk.ok("ada", remove("eve"));
    assert_eq!(talk.moved(), [("bob".into(), 4, 4)]);
    talk.read("zoe", 4).unwrap();
    talk.ok("zoe", LEAVE);
    assert_eq!(talk.moved(), []);
}

#[test]
fn receipts_are_switched_by_admins_and_off_above_a_size() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "one");
    talk.send("ada", "two");
    talk.read("bob", 1).unwrap();
    assert_eq!(talk.refused("bob", switch(false)), Code::Forbidden);
    talk.ok("ada", switch(false));
    assert_eq!(talk.refused("ada", receipts(2)), Code::ReceiptsOff);
    assert_eq!(talk.marks("bob"), None);
    // What is read meanwhile counts, and is never shown.
    assert_eq!(talk.read("bob", 2).unwrap().counts.unread, 0);
    talk.moved();
    talk.ok("ada", switch(true));
    assert_eq!((talk.moved(), talk.marks("bob")), (vec![], to(1, 1)));
    let shows = |talk: &mut Talk| {
        let Reply::Conversation(view) = talk.ok("ada", GET) else { panic!() };
        !view.settings.receipts_off
    };
    assert!(shows(&mut talk));
    for n in talk.state.members.len()..=RECEIPTS_MEMBERS_MAX {
        talk.ok("ada", add(&format!("user-{n}"), Role::Member));
    }
    assert!(!shows(&mut talk));
    assert_eq!(talk.refused("ada", receipts(2)), Code::ReceiptsOff);
    assert_eq!(talk.read("bob", 2).unwrap().delivered_n, 1);
    talk.ok("ada", remove("user-2"));
    assert!(shows(&mut talk));
    let direct = Talk::created(ConversationKind::Direct, &["bob"], HistoryAccess::SinceJoin);
    assert!(direct.state.shows_receipts());
}

#[test]
fn who_got_it_is_paged_by_user() {
    let names = ["b", "c", "d", "e"];
    let mut talk = Talk::group(&names);
    talk.send("c", "one");
    talk.read("d", 1).unwrap();
    let page = |talk: &mut Talk, after: Option<&str>| {
        let after = after.map(user);
        let command = Command::ReceiptList { conversation: CONVERSATION, seq: 2, after, limit: 2 };
        let Reply::Receipts { items, members, read, next_cursor, .. } = talk.ok("b", command) else { panic!() };
        assert_eq!((members, read), (4, 1), "a page tells of all");
        (items, next_cursor.map(|user| user.to_string()))
    };
    let view = |name: &str, got: bool| ReceiptView { user: user(name), delivered: got, read: got };
    assert_eq!(page(&mut talk, None), (vec![view("ada", false), view("b", false)], Some("b".into())));
    assert_eq!(page(&mut talk, Some("b")), (vec![view("d", true), view("e", false)], None));
    assert_eq!(page(&mut talk, Some("e")), (vec![], None));
}

#[test]
fn a_snapshot_and_rows_bring_back_how_far_members_have_got() {
    let mut talk = Talk::group(&["bob", "eve"]);
    for n in 0..4 {
        talk.send("ada", &n.to_string());
    }
    talk.read("bob", 1).unwrap();
    let snapshot = talk.state.snapshot().unwrap();
    talk.delivered("bob", 4).unwrap();
    talk.read_privately("eve", 3).unwrap();
    let row =
        |user: &str, read_n, delivered_n, shown_n| StoredReceipt { user: user.into(), read_n, delivered_n, shown_n };
    let (part, rows) = talk.state.take_unkept().unwrap();
    assert_eq!(part, 0, "few members are kept together");
    assert_eq!(rows, [row("bob", 1, 4, 1), row("eve", 3, 0, 0)]);
    assert_eq!(talk.state.take_unkept(), None);
    let mut again = Conversation::from_snapshot(CONVERSATION, snapshot).unwrap();
    assert_eq!(again.members.get(&user("bob")).unwrap().marks, to(1, 1).unwrap());
    // A row that speaks of what the log does not have, or of a stranger.
    for row in rows.iter().chain(&[row("eve", 9, 9, 9), row("nobody", 1, 1, 1)]) {
        again.restore(&user(&row.user), Got::from(row));
    }
    let got = |user_id: &str| again.members.get(&user(user_id)).unwrap().got();
    assert_eq!(got("bob"), Got { read_n: 1, marks: to(4, 1).unwrap() });
    assert_eq!(got("eve"), Got { read_n: 4, marks: to(4, 4).unwrap() });
    // Neither is news to anybody.
    assert!(!again.has_moved() && !again.has_unkept());
    // What another life carries over may stand in no row.
    let mut third = Conversation::from_snapshot(CONVERSATION, again.snapshot().unwrap()).unwrap();
    talk.moved();
    third.carry_over(talk.state.kept());
    assert!(!third.has_unkept(), "what is known already needs no row");
    talk.read("bob", 4).unwrap();
    third.carry_over(talk.state.kept());
    assert_eq!(third.take_unkept(), Some((0, vec![row("bob", 4, 4, 4)])));
    // Nor have the others been told.
    assert_eq!(third.take_moved().items, [Receipt { user: user("bob"), marks: to(4, 4).unwrap() }]);
}

#[derive(Clone, Debug)]
enum Deed {
    Send(usize),
    Say(usize, Option<u64>, Option<u64>, bool),
    Leave(usize),
    Add(usize),
    Switch(bool),
    Delete(Seq),
    Again,
}

const NAMES: [&str; 4] = ["ada", "bob", "eve", "zoe"];

fn deed() -> impl Strategy<Value = Deed> {
    let n = || prop::option::of(0..20u64);
    prop_oneof![
        4 => (0..4usize).prop_map(Deed::Send),
        8 => (0..4usize, n(), n(), any::<bool>()).prop_map(|(who, d, r, private)| Deed::Say(who, d, r, private)),
        1 => (1..4usize).prop_map(Deed::Leave),
        1 => (1..4usize).prop_map(Deed::Add),
        1 => any::<bool>().prop_map(Deed::Switch),
        1 => (1..20u64).prop_map(Deed::Delete),
        1 => Just(Deed::Again),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Against a plain table of who said what: watermarks are the highest that was said for others to see, never fall, never
    /// pass the last message; and each message's view is what the table says.
    #[test]
    fn watermarks_are_the_highest_of_what_was_said(deeds in prop::collection::vec(deed(), 1..80)) {
        let mut talk = Talk::group(&NAMES[1..]);
        let mut said: BTreeMap<usize, Watermarks> = BTreeMap::new();
        for deed in deeds {
            match deed {
                Deed::Send(who) => _ = talk.judge(NAMES[who], fresh(), &send("text")),
                Deed::Say(who, delivered, read, private) => {
                    let is_on = talk.state.shows_receipts();
                    let told = talk.state.progress(&user(NAMES[who]), &progress(delivered, read), private);
                    if let Ok(progressed) = told {
                        prop_assert!(progressed.read_n >= read.unwrap_or(0));
                        let read_n = read.filter(|_| !private && is_on).unwrap_or(0);
                        let delivered_n = delivered.filter(|_| is_on).unwrap_or(0).max(read_n);
                        let known = said.entry(who).or_default();
                        *known = known.highest(Watermarks { delivered_n, read_n });
                    }
                }
                Deed::Leave(who) => _ = talk.judge(NAMES[who], fresh(), &LEAVE),
                Deed::Add(who) => _ = talk.ok("ada", add(NAMES[who], Role::Member)),
                Deed::Switch(on) => _ = talk.ok("ada", switch(on)),
                Deed::Delete(seq) => _ = talk.judge("ada", fresh(), &delete(seq)),
                Deed::Again => {
                    // Another owner: from the log, and from what was written beside it.
                    let rows = talk.state.take_unkept().map_or_else(Vec::new, |(_, rows)| rows);
                    let kept = talk.state.kept().got;
                    let mut again = Conversation::from_snapshot(CONVERSATION, talk.state.snapshot().unwrap()).unwrap();
                    for row in &rows {
                        again.restore(&user(&row.user), Got::from(row));
                    }
                    prop_assert_eq!(again.kept().got, kept);
                    talk.state = again;
                }
            }
            for (who, name) in NAMES.iter().enumerate() {
                let Some(member) = talk.state.members.get(&user(name)) else { continue };
                let Watermarks { delivered_n, read_n } = member.marks;
                prop_assert_eq!(member.marks, said.get(&who).copied().unwrap_or_default());
                prop_assert!(read_n <= delivered_n && delivered_n <= talk.state.n && read_n <= member.read_n);
            }
        }
        if talk.state.shows_receipts() {
            for message in talk.log.clone().iter().filter(|event| event.fact.is_message()) {
                let Ok(Reply::Receipts { items, .. }) = talk.judge("ada", fresh(), &receipts(message.seq)) else { continue };
                for view in items {
                    let who = NAMES.iter().position(|name| user(name) == view.user).unwrap();
                    let marks = said.get(&who).copied().unwrap_or_default();
                    prop_assert_eq!((view.delivered, view.read), (marks.delivered_n >= message.n, marks.read_n >= message.n));
                    prop_assert!(view.user != message.sender);
                }
            }
        }
    }
}
