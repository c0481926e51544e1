//! Conversations with very many members, or few who write: how they are delivered, and what they are read from.

use chappe_schema::reply::MemberView;

use super::*;
use crate::{conversation::Conversation, pace};

const NAMES: [&str; 6] = ["bob", "eve", "kim", "max", "tom", "zoe"];

fn channel(members: &[&str]) -> Command {
    let Command::ConversationCreate(group) = group(members) else { unreachable!() };
    Command::ConversationCreate(Box::new(Create { kind: ConversationKind::Channel, open: true, ..*group }))
}

fn join() -> Command {
    Command::ConversationJoin { conversation: CONVERSATION }
}

fn read(n: u64) -> Command {
    Command::ConversationRead { conversation: CONVERSATION, n, private: None }
}

impl Bench {
    /// A bench on which a handful of members are very many, and snapshots frequent.
    fn crowded(fenced: bool) -> Self {
        pace::shorten(true);
        pace::crowd(true);
        Self::new(fenced)
    }

    /// Members, from page to page.
    fn members(&mut self) -> Vec<String> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let list = Command::MemberList { conversation: CONVERSATION, after, limit: 2 };
            let Ok(Reply::Members { items, next_cursor }) = self.done("ada", list) else { panic!("no members") };
            found.extend(items.into_iter().map(|MemberView { user, .. }| user.to_string()));
            after = next_cursor;
            if after.is_none() {
                return found;
            }
        }
    }

    fn say_so(&mut self, times: usize) {
        for n in 0..times {
            self.done("ada", send(&n.to_string())).unwrap();
        }
    }

    fn unread_of(&mut self, who: &str) -> Vec<(ConversationId, Seq, u64)> {
        self.now.fetch_add(1_000, Ordering::Relaxed);
        let asked = self.ask(who, list(9));
        self.settle();
        shown(self.answer(asked).unwrap())
    }

    fn snapshot(&self) -> (Seq, Conversation) {
        let (seq, bytes) = self.store.held.lock().snapshots[&CONVERSATION.into()].clone();
        (seq, Conversation::from_snapshot(CONVERSATION, bytes).unwrap())
    }

    fn member_rows(&self) -> (usize, usize) {
        let held = self.store.held.lock();
        (held.member_rows, held.member_pages)
    }

    fn broadcasts(&self) -> Vec<Seq> {
        let heard = self.heard.0.lock();
        let events = heard.iter().filter_map(|message| match message {
            ToGateway::Broadcast { events, .. } => Some(events.iter().map(|event| event.seq)),
            _ => None,
        });
        events.flatten().collect()
    }

    fn hear_all(&mut self) {
        self.mail(Mail::Gateway(GATEWAY, ToNode::Interest { conversation: CONVERSATION, listening: true }));
    }
}

#[test]
fn very_many_members_have_rows_of_their_own_and_come_back_from_them() {
    for fenced in [false, true] {
        let mut bench = Bench::crowded(fenced);
        bench.done("ada", channel(&NAMES)).unwrap();
        bench.say_so(8);
        let (seq, snapshot) = bench.snapshot();
        assert_eq!((seq, snapshot.members.len()), (8, 0), "they stand in no snapshot");
        assert_eq!(bench.member_rows().0, 7);
        // Then only whoever has changed: ada writes, one comes, one goes.
        bench.done("new", join()).unwrap();
        bench.done("eve", leave()).unwrap();
        bench.done("ada", remove("kim")).unwrap();
        bench.done("bob", read(5)).unwrap();
        bench.say_so(6);
        assert_eq!((bench.snapshot().0, bench.member_rows().0), (16, 7 + 4));
        bench.say_so(1);
        let members = ["ada", "bob", "max", "new", "tom", "zoe"];
        assert_eq!(bench.members(), members);
        assert_eq!(bench.unread_of("bob"), [(CONVERSATION, 19, 10)]);
        bench.mail(Mail::Tick);
        bench.settle();
        let mut next = bench.succeeded();
        assert_eq!(next.members(), members);
        assert_eq!(next.member_rows().1, 4, "eight rows, two to a page");
        assert_eq!(next.unread_of("bob"), [(CONVERSATION, 19, 10)]);
        assert_eq!(next.unread_of("new"), [(CONVERSATION, 19, 7)]);
        assert_eq!(next.unread_of("eve"), []);
        // Who was removed stays out, who left comes back, and both are known from their rows.
        assert_eq!(next.done("kim", join()).unwrap_err().code, Code::ConversationNotFound);
        next.done("eve", join()).unwrap();
        assert_eq!(next.members().len(), 7);
        assert_eq!(next.done("kim", send("x")).unwrap_err().code, Code::ConversationNotFound);
    }
}

/// A crash between the rows and the snapshot that was to follow them: they are ahead of it.
#[test]
fn rows_may_be_ahead_of_the_snapshot_that_they_are_found_with() {
    let mut bench = Bench::crowded(false);
    bench.done("ada", channel(&NAMES)).unwrap();
    bench.say_so(8);
    let before = bench.store.held.lock().snapshots[&CONVERSATION.into()].clone();
    for _ in 0..3 {
        bench.done("eve", leave()).unwrap();
        bench.done("eve", join()).unwrap();
    }
    bench.done("ada", remove("kim")).unwrap();
    bench.say_so(3);
    let (seq, _) = bench.snapshot();
    let stays = |bench: &mut Bench| {
        let slot = bench.shard.conversations.get_mut(&CONVERSATION).unwrap();
        let state = slot.slot.ready().unwrap();
        state.members.all().cloned().collect::<Vec<_>>()
    };
    let there = stays(&mut bench);
    assert!(seq > before.0 && bench.member_rows().0 > 7);
    bench.store.held.lock().snapshots.insert(CONVERSATION.into(), before);
    let mut next = bench.succeeded();
    assert_eq!(next.members(), ["ada", "bob", "eve", "max", "tom", "zoe"]);
    assert_eq!(stays(&mut next), there);
}

/// An idle conversation becomes a hot one with every message that comes after a pause: its members are in memory.
#[test]
fn very_many_members_are_not_read_again_for_every_pause() {
    let mut bench = Bench::crowded(false);
    bench.done("ada", channel(&NAMES)).unwrap();
    bench.say_so(8);
    bench.now.fetch_add(61_000, Ordering::Relaxed);
    bench.mail(Mail::Tick);
    bench.settle();
    let state = bench.shard.conversations.get_mut(&CONVERSATION).unwrap().slot.ready().unwrap();
    assert!(state.hot.is_none(), "it is idle");
    // Said to an idle one, and known to the hot one.
    bench.done("bob", read(7)).unwrap();
    let recoveries = bench.store.held.lock().recoveries;
    bench.done("ada", send("again")).unwrap();
    assert_eq!(bench.store.held.lock().recoveries, recoveries + 1);
    assert_eq!(bench.unread_of("bob"), [(CONVERSATION, 10, 2)]);
    assert_eq!(bench.member_rows().1, 0);
    bench.put_away();
    assert_eq!(bench.members().len(), 7);
    assert_eq!(bench.member_rows().1, 4);
    assert_eq!(bench.unread_of("bob"), [(CONVERSATION, 10, 2)], "what was kept in parts");
}

/// What cannot be read is asked for again, and nobody waits for ever.
#[test]
fn members_who_cannot_be_read_are_asked_for_again() {
    let mut bench = Bench::crowded(false);
    bench.done("ada", channel(&NAMES)).unwrap();
    bench.say_so(8);
    let mut next = bench.succeeded();
    let asked = next.ask("ada", send("x"));
    next.store.held.lock().deaf = true;
    next.settle();
    assert_eq!(next.answer(asked).unwrap().unwrap_err().code, Code::Unavailable);
    next.store.held.lock().deaf = false;
    assert_eq!(sent(Some(next.done("ada", send("y")))).seq, 10);
}

#[test]
fn a_stop_writes_the_rows_and_then_the_snapshot() {
    let mut bench = Bench::crowded(false);
    bench.done("ada", channel(&NAMES)).unwrap();
    bench.say_so(2);
    assert!(bench.store.held.lock().snapshots.is_empty());
    let (tx, mut rx) = tokio::sync::oneshot::channel();
    bench.mail(Mail::Stop(tx));
    assert!(rx.try_recv().is_err(), "not before the store has them");
    bench.settle();
    assert!(rx.try_recv().is_ok());
    assert_eq!((bench.snapshot().0, bench.member_rows().0), (3, 7));
}

/// The work for a message does not depend on how many members there are: one word for a gateway that listens.
#[test]
fn a_channel_reaches_whoever_listens_and_nobody_else() {
    let mut bench = Bench::new(false);
    bench.done("ada", channel(&["bob"])).unwrap();
    bench.connect("bob", 1);
    bench.connect("eve", 2);
    bench.settle();
    bench.say_so(2);
    assert_eq!((bench.broadcasts(), bench.delivered(1)), (vec![], vec![]));
    bench.hear_all();
    bench.say_so(2);
    assert_eq!((bench.broadcasts(), bench.delivered(1)), (vec![4, 5], vec![]));
    // Who joins hears of that, wherever they look; who is removed does not look any more.
    bench.done("eve", join()).unwrap();
    bench.done("ada", remove("bob")).unwrap();
    bench.done("ada", send("x")).unwrap();
    assert_eq!((bench.delivered(1), bench.delivered(2)), (vec![], vec![6]));
    assert_eq!(bench.broadcasts(), [4, 5, 6, 7, 8]);
    assert!(bench.heard.0.lock().iter().any(|message| matches!(message, ToGateway::Removed { .. })));
    // Who does not look asks.
    assert_eq!(bench.unread_of("eve"), [(CONVERSATION, 8, 1)]);
    assert_eq!(bench.unread_of("bob"), []);
}

/// Growing and shrinking across the bound: each event comes by one way at least, and the last one of a way tells of it.
#[test]
fn a_group_that_grows_changes_its_way_and_back() {
    let names: Vec<String> = (0..255).map(|n| format!("user-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", group(&names)).unwrap();
    bench.connect("user-007", 7);
    bench.settle();
    bench.hear_all();
    bench.say_so(2);
    bench.done("ada", add("eve")).unwrap();
    assert_eq!((bench.delivered(7), bench.broadcasts()), (vec![2, 3, 4], vec![]));
    bench.say_so(2);
    bench.done("ada", remove("eve")).unwrap();
    assert_eq!((bench.delivered(7), bench.broadcasts()), (vec![2, 3, 4], vec![5, 6, 7]));
    bench.say_so(1);
    assert_eq!((bench.delivered(7), bench.broadcasts()), (vec![2, 3, 4, 8], vec![5, 6, 7]));
    assert_eq!(bench.unread_of("user-007"), [(CONVERSATION, 8, 5)]);
}
