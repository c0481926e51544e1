//! What is kept for a time only.

use chappe_schema::inbox::Counts;

use super::*;
use crate::conversation::{Read, floor::Overdue};

const HOUR: Millis = 3_600_000;

fn keep(secs: u32) -> Command {
    let update = Update { retention_secs: Some(secs), ..Update::default() };
    Command::ConversationUpdate { conversation: CONVERSATION, update: Box::new(update) }
}

impl Talk {
    /// Removes what is overdue, as a shard does. What the floor is then, if it has moved.
    fn retain(&mut self, everywhere_ms: Option<Millis>) -> Option<Seq> {
        let mut search = self.state.search(everywhere_ms, self.state.head, self.now)?;
        while let Some(seq) = search.next() {
            search.take(&self.log[seq as usize - 1]);
        }
        match self.state.purge(search.found(), self.now) {
            Some(event) => {
                assert_eq!(self.state.purge(search.found(), self.now).map(|again| again.id), Some(event.id));
                self.state.apply(&event);
                self.log.push(event);
                Some(self.state.floor.seq())
            }
            None => {
                self.state.nothing_overdue(search.found());
                None
            }
        }
    }

    fn counts(&self, who: &str) -> Counts {
        self.state.standing(&user(who)).unwrap().counts
    }
}

#[test]
fn only_owners_say_how_long_messages_are_kept() {
    let mut talk = Talk::group(&["bob", "eve"]);
    talk.ok("ada", role("bob", Role::Admin));
    for who in ["bob", "eve"] {
        assert_eq!(talk.refused(who, keep(3600)), Code::Forbidden);
    }
    talk.ok("ada", keep(3600));
    let Reply::Conversation(view) = talk.ok("eve", GET) else { panic!("no conversation") };
    assert_eq!((view.settings.retention_secs, view.floor), (3600, 0));
    let again = talk.ok("ada", keep(3600));
    assert!(matches!(again, Reply::Changed { changed: false, .. }), "{again:?}");
    talk.ok("ada", keep(0));
    assert_eq!(talk.state.settings.retention_secs, 0);
    let mut direct = Talk::created(ConversationKind::Direct, &["bob"], HistoryAccess::SinceJoin);
    assert_eq!(direct.refused("ada", keep(3600)), Code::ConversationFixed);
}

#[test]
fn what_is_overdue_is_gone_for_everybody() {
    let mut talk = Talk::created(ConversationKind::Group, &["bob"], HistoryAccess::All);
    talk.ok("ada", keep(3600));
    let old = talk.send("ada", "old");
    talk.ok("bob", react(old.seq, "+1"));
    let edited = talk.send("bob", "worse");
    talk.ok("bob", edit(edited.seq, "better"));
    talk.now += HOUR / 2;
    let young = talk.send("ada", "young");
    assert_eq!(talk.retain(None), None, "nothing is overdue");
    talk.now = T + HOUR + HOUR / 32 - 1;
    assert_eq!(talk.retain(None), None, "not long enough");
    talk.now += 1;
    assert_eq!(talk.retain(None), Some(young.seq - 1));

    let event = talk.log.last().unwrap().clone();
    assert_eq!((event.sender.as_str(), event.n, event.target), ("", 3, 0));
    let fact = Fact::HistoryPurged { floor: young.seq - 1, floor_n: 2, oldest_at: T + HOUR / 2 };
    assert_eq!(event.fact, fact);
    assert_eq!(talk.seqs("bob", From::Newest, 9), [young.seq]);
    for from in [From::Before(young.seq), From::After(0), From::Around(1)] {
        let seqs = talk.seqs("bob", from, 9);
        assert!(seqs.iter().all(|seq| *seq == young.seq), "{from:?}: {seqs:?}");
    }
    for command in [
        Command::MessageGet { conversation: CONVERSATION, seq: old.seq },
        Command::MessageHistory { conversation: CONVERSATION, seq: edited.seq },
        who_reacted(old.seq, "+1"),
        react(old.seq, "-1"),
        unreact(old.seq, "+1"),
        delete(old.seq),
        edit(edited.seq, "best"),
    ] {
        assert_eq!(talk.refused("bob", command), Code::MessageNotFound);
    }
    let events = |after| Command::EventList { conversation: CONVERSATION, after, limit: 99 };
    assert_eq!(talk.refused("bob", events(young.seq - 2)), Code::HistoryPurged);
    let Reply::Events { items, floor, .. } = talk.ok("bob", events(young.seq - 1)) else { panic!("no events") };
    assert_eq!((items.len(), floor), (2, young.seq - 1));
    let Reply::Conversation(view) = talk.ok("bob", GET) else { panic!("no conversation") };
    assert_eq!((view.floor, view.n), (young.seq - 1, 3));
}

#[test]
fn what_was_not_read_and_is_gone_counts_no_longer() {
    let mut talk = Talk::group(&["bob", "eve"]);
    for _ in 0..3 {
        talk.send("ada", "old");
    }
    let mentions = Mentions { users: vec![user("bob")], all: false };
    let mention = |text| Command::MessageSend {
        conversation: CONVERSATION,
        body: body(text),
        mentions: Some(Arc::new(mentions.clone())),
    };
    talk.ok("ada", mention("old"));
    talk.now += HOUR;
    talk.ok("ada", mention("young"));
    let gone = talk.send("ada", "gone").seq;
    talk.ok("ada", delete(gone));
    let before = talk.counts("bob");
    assert_eq!((before.unread, before.mentions), (5, 2));
    talk.now += HOUR / 2;
    assert!(talk.retain(Some(HOUR)).is_some());
    let after = talk.counts("bob");
    assert_eq!((after.unread, after.unread_more, after.mentions, after.mentions_more), (1, false, 1, false));
    assert_eq!(talk.counts("ada").unread, 0);
    // The last message is gone with the rest.
    talk.now += 3 * HOUR;
    assert!(talk.retain(Some(HOUR)).is_some());
    assert_eq!((talk.counts("bob").unread, talk.counts("bob").mentions), (0, 0));
    assert!(talk.state.latest.last().is_none());
    assert_eq!(talk.retain(Some(HOUR)), None, "there is no message");
    talk.now += 100 * HOUR;
    assert_eq!(talk.retain(Some(HOUR)), None, "what stands there removes nothing more");
    assert_eq!(talk.state.floor.oldest_at, 0);
    talk.send("ada", "new");
    assert_eq!(talk.state.floor.oldest_at, talk.now);
    assert_eq!(talk.counts("bob").unread, 1);
}

#[test]
fn a_snapshot_tells_where_the_history_begins() {
    let mut talk = Talk::group(&["bob"]);
    assert!(!talk.state.snapshot_due());
    talk.ok("ada", keep(3600));
    assert!(talk.state.snapshot_due(), "whoever looks for what is overdue finds it by its snapshot");
    talk.state.snapshot_taken();
    assert!(!talk.state.snapshot_due() && !talk.state.snapshot_due_at_rest(None));
    talk.send("ada", "old");
    assert!(talk.state.snapshot_due_at_rest(None), "and how old the oldest is");
    let kept =
        |talk: &Talk, everywhere| Conversation::kept_of_snapshot(talk.state.snapshot().unwrap(), everywhere, false);
    assert_eq!(kept(&talk, None), Some((HOUR, T)));
    assert_eq!(kept(&talk, Some(5)), Some((5, T)));
    talk.state.snapshot_taken();
    assert!(!talk.state.snapshot_due_at_rest(None));
    talk.now += 2 * HOUR;
    assert!(talk.retain(None).is_some());
    assert!(talk.state.snapshot_due());
    let bytes = talk.state.snapshot().unwrap();
    assert_eq!(Conversation::kept_of_snapshot(bytes.clone(), None, false), Some((HOUR, 0)), "there is no message");
    // But there may be one above.
    assert_eq!(Conversation::kept_of_snapshot(bytes.clone(), None, true), Some((HOUR, talk.now)));
    let mut read = Conversation::from_snapshot(CONVERSATION, bytes).unwrap();
    assert_eq!(read.floor, talk.state.floor);
    assert!(read.floor.is_purging() && !read.snapshot_due());
    read.distrust_snapshot(None);
    assert!(read.snapshot_due(), "what came from another's memory may not be durable");
    read.floor.purged();
    assert!(!read.floor.is_purging());
}

#[test]
fn a_repetition_is_recognised_after_its_message_is_gone() {
    let mut talk = Talk::group(&["bob"]);
    let id = fresh();
    let Ok(Reply::Sent(sent)) = talk.judge("ada", id, &send("once")) else { panic!("not sent") };
    talk.now += 2 * HOUR;
    assert!(talk.retain(Some(HOUR)).is_some());
    let Ok(Reply::Sent(again)) = talk.judge("ada", id, &send("once")) else { panic!("not known") };
    assert_eq!((again.seq, again.duplicate), (sent.seq, true));
    assert_eq!(talk.judge("ada", id, &send("twice")), Err(Code::IdConflict));
}

#[test]
fn a_floor_never_sinks() {
    let mut talk = Talk::group(&["bob"]);
    for _ in 0..5 {
        talk.send("ada", "old");
    }
    let state = &talk.state;
    let overdue = |seq, n| Overdue { seq, n, oldest_at: T };
    assert!(state.purge(overdue(0, 0), T).is_none(), "there is nothing");
    assert!(state.purge(overdue(1, 0), T).is_none(), "there is no message");
    assert!(state.purge(overdue(7, 5), T).is_none(), "there is no such event");
    let event = state.purge(overdue(4, 3), T).unwrap();
    talk.state.apply(&event);
    talk.log.push(event);
    assert!(talk.state.purge(overdue(3, 2), T).is_none());
    assert!(talk.state.purge(overdue(4, 3), T).is_none());
    // Whatever a log holds can be applied.
    let lower = Fact::HistoryPurged { floor: 2, floor_n: 1, oldest_at: T };
    let event = Event { seq: 8, fact: lower, ..(**talk.log.last().unwrap()).clone() };
    talk.state.apply(&Arc::new(event));
    assert_eq!((talk.state.floor.seq(), talk.state.floor.n()), (4, 3));
}

/// A reading of events from the store, as it was allowed, and what it asks for first.
fn reading(talk: &Talk, after: Seq) -> (Box<Read>, PageRequest) {
    let list = Command::EventList { conversation: CONVERSATION, after, limit: 100 };
    let Verdict::Read(read) = talk.state.read(&actor("ada"), &list) else { panic!("it is read") };
    let (read, Progress::More(request)) = read.begin() else { panic!("it takes the store") };
    (Box::new(read), request)
}

#[test]
fn a_reader_whom_a_removal_overtakes_is_shown_no_gap() {
    let mut talk = Talk::group(&["bob"]);
    for _ in 0..20 {
        talk.send("ada", "x");
    }
    // So that it asks the store.
    talk.state.hot = None;
    let page = |talk: &Talk, request: &PageRequest, gone: std::ops::RangeInclusive<Seq>| {
        let mut page = talk.page(request);
        page.events.retain(|event| !gone.contains(&event.seq));
        page
    };
    // All that is below the gap is shown, and that there is more.
    let (read, request) = reading(&talk, 3);
    let (_, progress) = read.take(page(&talk, &request, 9..=12));
    let Progress::Done(Ok(Reply::Events { items, head, .. })) = progress else { panic!("{progress:?}") };
    assert_eq!((items.iter().map(|event| event.seq).collect::<Vec<_>>(), head), ((4..=8).collect(), 21));
    // Who stands before it is told where to go on.
    for (gone, floor) in [(1..=12, 12), (1..=21, 21)] {
        let (read, request) = reading(&talk, 3);
        let (_, progress) = read.take(page(&talk, &request, gone));
        let Progress::Done(Err(error)) = progress else { panic!("{progress:?}") };
        assert_eq!((error.code, error.floor), (Code::HistoryPurged, Some(floor)));
    }
    // A store that looked at some of it in vain says how far that goes.
    let (read, request) = reading(&talk, 3);
    let looked = Page { reached: 10, ..Page::default() };
    assert!(request.upto > 10);
    let (_, progress) = read.take(looked);
    assert!(matches!(progress, Progress::Done(Err(error)) if error.floor == Some(10)));
}

#[test]
fn an_edit_outlives_its_message_without_its_words() {
    let mut talk = Talk::group(&["bob"]);
    let old = talk.send("ada", "worse").seq;
    talk.ok("ada", edit(old, "better"));
    let edit = talk.state.head;
    // The floor stands between them.
    let overdue = Overdue { seq: old, n: 1, oldest_at: 0 };
    let event = talk.state.purge(overdue, talk.now).unwrap();
    talk.state.apply(&event);
    talk.log.push(event);
    for from_memory in [true, false] {
        if !from_memory {
            talk.state.hot = None;
        }
        let Reply::Events { items, .. } =
            talk.ok("ada", Command::EventList { conversation: CONVERSATION, after: old, limit: 9 })
        else {
            panic!("events")
        };
        assert_eq!(items[0].seq, edit);
        assert_eq!(items[0].body_len(), 0, "{from_memory}");
    }
}

#[test]
fn nobody_hears_of_what_is_removed_of_a_deleted_conversation() {
    let mut talk = Talk::group(&["bob"]);
    let old = talk.send("ada", "x").seq;
    talk.ok("ada", Command::ConversationDelete { conversation: CONVERSATION });
    let event = talk.state.purge(Overdue { seq: old, n: 1, oldest_at: 0 }, talk.now).unwrap();
    assert_eq!(*talk.state.audience(&event), Audience::Users(Vec::new()));
}

#[test]
fn a_snapshot_at_rest_tells_whoever_walks_by_what_they_must_know() {
    const WEEK: Option<Millis> = Some(7 * 24 * 3_600_000);
    let mut talk = Talk::group(&["bob"]);
    // No message: it is not opened again and again.
    assert!(talk.state.snapshot_due_at_rest(WEEK) && !talk.state.snapshot_due_at_rest(None));
    talk.state.snapshot_taken();
    assert!(!talk.state.snapshot_due_at_rest(WEEK));
    // There is one: what says that there is none would be believed, also by whoever keeps messages for a time only later on.
    let old = talk.send("ada", "x").seq;
    assert!(talk.state.snapshot_due_at_rest(WEEK) && talk.state.snapshot_due_at_rest(None));
    talk.state.snapshot_taken();
    talk.send("ada", "x");
    assert!(!talk.state.snapshot_due_at_rest(WEEK) && !talk.state.snapshot_due_at_rest(None));
    // The store is rid of what was removed: that is not to be done again by whoever opens it.
    let event = talk.state.purge(Overdue { seq: old, n: 1, oldest_at: T }, talk.now).unwrap();
    talk.state.apply(&event);
    assert!(talk.state.snapshot_due());
    talk.state.snapshot_taken();
    talk.state.floor.purged();
    assert!(!talk.state.snapshot_due_at_rest(None), "there is no later event to write it for");
    talk.ok("bob", remove("bob"));
    assert!(talk.state.snapshot_due_at_rest(None));
    let bytes = talk.state.snapshot().unwrap();
    talk.state.snapshot_taken();
    assert!(!talk.state.snapshot_due_at_rest(None));
    assert!(!Conversation::from_snapshot(CONVERSATION, bytes).unwrap().floor.is_purging());
}

/// Review of stop 22: what was handed over was never stored, and a walk believed the older snapshot that is.
#[test]
fn what_was_handed_over_writes_a_snapshot_of_its_own_when_it_rests() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "x");
    let handed = talk.state.snapshot().unwrap();
    for (everywhere_ms, is_due) in [(Some(HOUR), true), (None, false)] {
        let mut state = Conversation::from_snapshot(CONVERSATION, handed.clone()).unwrap();
        state.distrust_snapshot(everywhere_ms);
        assert_eq!(state.snapshot_due_at_rest(everywhere_ms), is_due);
        state.snapshot_taken();
        assert!(!state.snapshot_due_at_rest(everywhere_ms));
    }
}
