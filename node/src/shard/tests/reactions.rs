//! Reactions as a shard drives them.

use super::*;

fn react(seq: Seq, key: &str) -> Command {
    Command::ReactionAdd { conversation: CONVERSATION, seq, key: ReactionKey::new(key).unwrap() }
}

fn unreact(seq: Seq, key: &str) -> Command {
    Command::ReactionRemove { conversation: CONVERSATION, seq, key: ReactionKey::new(key).unwrap() }
}

impl Bench {
    /// The reactions that a message shows to somebody.
    pub(super) fn reactions(&mut self, who: &str, seq: Seq) -> Vec<(String, u64, bool)> {
        match self.done(who, Command::MessageGet { conversation: CONVERSATION, seq }) {
            Ok(Reply::Message(view)) => {
                view.reactions.iter().map(|one| (one.key.as_str().to_owned(), one.count, one.mine)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn reactors(&mut self, who: &str, seq: Seq, key: &str) -> Vec<String> {
        let key = ReactionKey::new(key).unwrap();
        let list = Command::ReactionList { conversation: CONVERSATION, seq, key, after: None, limit: 50 };
        match self.done(who, list) {
            Ok(Reply::Reactions { items, .. }) => items.iter().map(|item| item.user.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Rows that derive from the log and were written.
    fn derived(&self) -> (usize, usize) {
        let held = self.store.held.lock();
        (held.overlays.len(), held.reactions.len())
    }
}

#[test]
fn reactions_are_told_and_written_down() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob", "eve"])).unwrap();
    bench.connect("eve", 6);
    bench.done("ada", send("hi")).unwrap();
    bench.done("bob", react(2, "👍")).unwrap();
    bench.done("ada", react(2, "👍")).unwrap();
    bench.done("ada", react(2, "👍")).unwrap();
    bench.done("bob", unreact(2, "👍")).unwrap();
    assert_eq!(bench.delivered(6), [2, 3, 4, 5], "what changes nothing is no event");
    assert_eq!(bench.derived(), (1, 2));
    assert_eq!(bench.reactions("ada", 2), [("👍".into(), 1, true)]);
    assert_eq!(bench.reactors("eve", 2, "👍"), ["ada"]);
    // From the store alone, and then from the log alone.
    bench.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user("eve"), connection: ConnectionSlot(6) }));
    bench.put_away();
    assert_eq!(bench.reactions("bob", 2), [("👍".into(), 1, false)]);
    bench.store.held.lock().overlays.clear();
    bench.store.held.lock().reactions.clear();
    let mut next = bench.succeeded();
    assert_eq!(next.reactions("ada", 2), [("👍".into(), 1, true)]);
    assert_eq!(next.reactors("bob", 2, "👍"), ["ada"]);
    assert_eq!(next.derived(), (1, 2), "and written again");
}

/// What a crash has left half written is made whole, and what was whole is not counted twice.
#[test]
fn overlays_from_before_the_tail_are_not_forgotten() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob", "eve"])).unwrap();
    bench.done("ada", send("hi")).unwrap();
    bench.done("bob", react(2, "👍")).unwrap();
    bench
        .done("ada", Command::MessageEdit { conversation: CONVERSATION, seq: 2, body: body("ho"), mentions: None })
        .unwrap();
    for n in 0..40 {
        bench.done("ada", send(&n.to_string())).unwrap();
    }
    bench.put_away();
    assert!(bench.store.held.lock().snapshots[&CONVERSATION.into()].0 > 4);
    // Two more reactions; the rows of the second get lost.
    bench.done("eve", react(2, "👍")).unwrap();
    let before = {
        let held = bench.store.held.lock();
        (held.overlays.clone(), held.reactions.clone())
    };
    bench.done("ada", react(2, "❤️")).unwrap();
    {
        let mut held = bench.store.held.lock();
        (held.overlays, held.reactions) = before;
    }
    let mut next = bench.succeeded();
    let expected = [("👍".into(), 2, true), ("❤️".into(), 1, false)];
    assert_eq!(next.reactions("eve", 2), expected);
    assert_eq!(next.reactors("eve", 2, "👍"), ["bob", "eve"]);
    next.put_away();
    assert_eq!(next.reactions("eve", 2), expected);
    let text = |reply| match reply {
        Ok(Reply::Message(view)) => String::from_utf8(view.body.unwrap().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text(next.done("bob", Command::MessageGet { conversation: CONVERSATION, seq: 2 })), r#"{"text":"ho"}"#);
}

/// Commands of one user about one message keep their order while the store is asked for the user's own rows.
#[test]
fn who_changes_their_mind_while_the_store_is_asked_is_understood() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("hi")).unwrap();
    bench.done("bob", react(2, "👍")).unwrap();
    bench.put_away();
    bench.done("bob", Command::MessageGet { conversation: CONVERSATION, seq: 2 }).unwrap();
    let asked = [unreact(2, "👍"), react(2, "👍"), react(2, "👍"), unreact(2, "👍"), react(2, "🎉")];
    let asked = asked.map(|command| bench.ask("bob", command));
    let other = bench.ask("ada", send("meanwhile"));
    bench.settle();
    let changes = asked.map(|asked| match bench.answer(asked) {
        Some(Ok(Reply::Changed { changed, .. })) => changed,
        other => panic!("{other:?}"),
    });
    assert_eq!(changes, [true, true, false, true, true]);
    assert!(bench.answer(other).unwrap().is_ok());
    assert_eq!(bench.store.held.lock().looked, 1, "asked once for all of them");
    assert_eq!(bench.reactions("bob", 2), [("🎉".into(), 1, true)]);
}

/// Rows for each reaction and one of counts for each batch; a snapshot of the log's middle waits for nothing else.
#[test]
fn a_stream_of_reactions_costs_what_each_costs() {
    let names: Vec<String> = (0..200).map(|n| format!("user-{n:03}")).collect();
    let mut bench = Bench::new(false);
    bench.done("ada", group(&names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    bench.done("ada", send("hi")).unwrap();
    let before = bench.store.held.lock().projected;
    let asked: Vec<_> = names.iter().map(|name| bench.ask(name, react(2, "👍"))).collect();
    bench.settle();
    assert!(asked.iter().all(|asked| bench.answer(*asked).unwrap().is_ok()));
    let projected = bench.store.held.lock().projected - before;
    // Batches of 64 at most: four of them, or a few more.
    assert!((201..=210).contains(&projected), "{projected} rows");
    assert_eq!(bench.reactions("user-003", 2), [("👍".into(), 200, true)]);
    for round in 0..3 {
        for name in &names {
            bench.done(name, if round % 2 == 0 { unreact(2, "👍") } else { react(2, "👍") }).unwrap();
        }
    }
    let held = bench.store.held.lock();
    assert_eq!(held.snapshots[&CONVERSATION.into()].0, 512);
    assert_eq!(held.reactions.len(), 200, "a row is one, however often it changes");
}

/// A read that began before rows became durable is merged with what they hold.
#[test]
fn a_slow_look_misses_nothing_that_became_durable_meanwhile() {
    let mut bench = Bench::new(false);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("hi")).unwrap();
    bench.done("ada", react(2, "👍")).unwrap();
    bench.put_away();
    bench.done("bob", Command::MessageHistory { conversation: CONVERSATION, seq: 2 }).unwrap();
    // Bob's own rows are looked at, and the answer is kept back.
    let first = bench.ask("bob", react(2, "👍"));
    let look = bench.store.held.lock().others.pop_back().unwrap();
    bench.settle();
    assert_eq!(bench.answer(first), None);
    // Ada's change becomes durable in the meantime, rows and all.
    bench.done("ada", react(2, "🎉")).unwrap();
    let tell = look(&mut bench.store.held.lock());
    tell();
    bench.collect();
    bench.settle();
    assert!(bench.answer(first).unwrap().is_ok());
    assert_eq!(bench.reactions("bob", 2), [("👍".into(), 2, true), ("🎉".into(), 1, false)]);
    assert_eq!(bench.reactors("ada", 2, "👍"), ["ada", "bob"]);
}
