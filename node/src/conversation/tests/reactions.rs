//! Reactions, and the overlays that they share with edits and deletions.

use chappe_schema::limit::{REACTION_KEYS_MAX, REACTION_KEYS_PER_USER_MAX, SNAPSHOT_EVENTS};

use super::{
    super::overlay::{Flight, fold},
    *,
};

impl Talk {
    /// The reactions that a message shows to somebody.
    fn reactions(&mut self, who: &str, seq: Seq) -> Vec<(String, u64, bool)> {
        let Reply::Message(view) = self.ok(who, Command::MessageGet { conversation: CONVERSATION, seq }) else {
            panic!("a message is asked for")
        };
        view.reactions.iter().map(|one| (one.key.as_str().to_owned(), one.count, one.mine)).collect()
    }

    /// Who reacts to a message with a key, from page to page, and how many that are said to be.
    fn reactors(&mut self, who: &str, seq: Seq, key: &str, limit: usize) -> (Vec<String>, u64) {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let key = ReactionKey::new(key).unwrap();
            let list = Command::ReactionList { conversation: CONVERSATION, seq, key, after, limit };
            let Reply::Reactions { items, count, next_cursor } = self.ok(who, list) else {
                panic!("reactions are asked for")
            };
            assert!(items.len() <= limit);
            found.extend(items.into_iter().map(|item| item.user.to_string()));
            after = next_cursor;
            if after.is_none() {
                return (found, count);
            }
        }
    }

    fn write(&mut self, flight: Flight, is_lucky: impl Fn(usize) -> bool) {
        let (overlays, reactions) = (flight.overlays.len(), flight.reactions.len());
        for (index, (target, overlay)) in flight.overlays.into_iter().enumerate() {
            let there = self.shelf.overlays.entry(target).or_default();
            if is_lucky(index) && there.as_of < overlay.as_of {
                *there = overlay;
            }
        }
        for (index, (target, key, user, row)) in flight.reactions.into_iter().enumerate() {
            let there = self.shelf.reactions.entry((target, key, user)).or_default();
            if is_lucky(overlays + index) && there.seq < row.seq {
                *there = row;
            }
        }
        assert!(reactions == 0 || overlays > 0, "what has reactions has an overlay");
        // What was unlucky was never there.
        self.shelf.overlays.retain(|_, overlay| overlay.as_of > 0);
        self.shelf.reactions.retain(|_, row| row.seq > 0);
    }

    /// Everything is written down, and nothing of it stays in memory.
    pub(super) fn settle(&mut self) {
        let committed = self.state.head;
        self.state.hot.as_mut().unwrap().overlays.forget();
        while let Some(flight) = self.state.hot.as_mut().unwrap().overlays.fly(committed) {
            let upto = flight.upto;
            self.write(flight, |_| true);
            let hot = self.state.hot.as_mut().unwrap();
            hot.overlays.landed(upto);
            hot.overlays.forget();
        }
        assert!(self.state.can_cool());
    }
}

fn changed(reply: Reply) -> bool {
    let Reply::Changed { changed, .. } = reply else { panic!("{reply:?}") };
    changed
}

/// Thread: tinode/chat#693, open since 2021: reactions.
#[test]
fn a_reaction_is_there_once_however_often_it_is_put() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let seq = talk.send("ada", "hi").seq;
    assert!(changed(talk.ok("bob", react(seq, "👍"))));
    assert!(!changed(talk.ok("bob", react(seq, "👍"))));
    assert!(changed(talk.ok("eve", react(seq, "👍"))));
    assert!(changed(talk.ok("bob", react(seq, "❤️"))));
    assert_eq!(talk.state.head, seq + 3, "putting it again makes no event");
    assert_eq!(talk.reactions("bob", seq), [("👍".into(), 2, true), ("❤️".into(), 1, true)]);
    assert_eq!(talk.reactions("ada", seq), [("👍".into(), 2, false), ("❤️".into(), 1, false)]);
    assert_eq!(talk.reactors("ada", seq, "👍", 1), (vec!["bob".into(), "eve".into()], 2));
    let event = talk.log.last().unwrap();
    assert_eq!((event.target, event.n, event.sender.as_str()), (seq, 1, "bob"));

    assert!(changed(talk.ok("bob", unreact(seq, "👍"))));
    assert!(!changed(talk.ok("bob", unreact(seq, "👍"))));
    assert!(!changed(talk.ok("ada", unreact(seq, "👍"))), "it is not theirs");
    assert!(!changed(talk.ok("ada", unreact(seq, "nobody's"))));
    assert_eq!(talk.reactions("bob", seq), [("👍".into(), 1, false), ("❤️".into(), 1, true)]);
    assert!(changed(talk.ok("bob", unreact(seq, "❤️"))));
    assert_eq!(talk.reactions("bob", seq), [("👍".into(), 1, false)], "a key without users is gone");
    assert_eq!(talk.reactors("bob", seq, "❤️", 9), (vec![], 0));
}

#[test]
fn only_messages_that_are_there_take_reactions() {
    let mut talk = Talk::group(&["bob"]);
    let seq = talk.send("ada", "hi").seq;
    for missing in [0, 1, 99] {
        assert_eq!(talk.refused("bob", react(missing, "👍")), Code::MessageNotFound);
        assert_eq!(talk.refused("bob", unreact(missing, "👍")), Code::MessageNotFound);
        assert_eq!(talk.refused("bob", who_reacted(missing, "👍")), Code::MessageNotFound);
    }
    talk.ok("bob", react(seq, "👍"));
    talk.ok("ada", delete(seq));
    assert_eq!(talk.refused("bob", react(seq, "❤️")), Code::MessageDeleted);
    assert!(!changed(talk.ok("bob", unreact(seq, "👍"))), "nothing is left to be taken back");
    assert_eq!((talk.reactions("bob", seq), talk.reactors("bob", seq, "👍", 9)), (vec![], (vec![], 0)));
    // What a newcomer may not see takes none of theirs.
    talk.ok("ada", add("eve", Role::Member));
    assert_eq!(talk.refused("eve", react(seq, "👍")), Code::MessageNotFound);
    assert_eq!(talk.refused("eve", who_reacted(seq, "👍")), Code::MessageNotFound);
}

#[test]
fn a_retried_reaction_is_answered_like_the_first() {
    let mut talk = Talk::group(&["bob"]);
    let seq = talk.send("ada", "hi").seq;
    let first = talk.judge("bob", id_at(T, 50), &react(seq, "👍"));
    talk.ok("bob", unreact(seq, "👍"));
    assert_eq!(talk.judge("bob", id_at(T, 50), &react(seq, "👍")), first, "late, and not done again");
    assert_eq!(talk.judge("bob", id_at(T, 50), &react(seq, "👎")), Err(Code::IdConflict));
    assert_eq!(talk.reactions("bob", seq), []);
}

/// Their reactions stay, and nothing of the conversation reaches them.
#[test]
fn who_was_removed_still_counts_and_learns_nothing() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let seq = talk.send("ada", "hi").seq;
    talk.ok("bob", react(seq, "👍"));
    talk.ok("ada", remove("bob"));
    assert_eq!(talk.reactions("ada", seq), [("👍".into(), 1, false)]);
    assert_eq!(talk.reactors("ada", seq, "👍", 9), (vec!["bob".into()], 1));
    for command in [react(seq, "❤️"), unreact(seq, "👍"), who_reacted(seq, "👍")] {
        assert_eq!(talk.refused("bob", command), Code::ConversationNotFound);
    }
    // Who comes back finds their own.
    talk.ok(
        "ada",
        Command::ConversationUpdate {
            conversation: CONVERSATION,
            update: Box::new(Update { history: Some(HistoryAccess::All), ..Update::default() }),
        },
    );
    talk.ok("ada", add("bob", Role::Member));
    assert_eq!(talk.reactions("bob", seq), [("👍".into(), 1, true)]);
    assert!(!changed(talk.ok("bob", react(seq, "👍"))));
}

#[test]
fn keys_are_bounded_for_a_user_and_for_a_message() {
    let names: Vec<String> = (0..4).map(|n| format!("user-{n}")).collect();
    let mut talk = Talk::group(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let seq = talk.send("ada", "hi").seq;
    let key = |who: usize, n: usize| format!("{who}-{n}");
    for (who, name) in names[..3].iter().enumerate() {
        let room = (REACTION_KEYS_MAX - who * REACTION_KEYS_PER_USER_MAX).min(REACTION_KEYS_PER_USER_MAX);
        for n in 0..room {
            talk.ok(name, react(seq, &key(who, n)));
        }
        assert_eq!(talk.refused(name, react(seq, "one_more")), Code::ReactionLimit);
    }
    assert_eq!(talk.refused(&names[3], react(seq, "another")), Code::ReactionLimit);
    talk.ok(&names[3], react(seq, &key(0, 0)));
    assert_eq!(talk.refused(&names[0], react(seq, &key(1, 0))), Code::ReactionLimit, "twenty are twenty");
    talk.ok(&names[0], unreact(seq, &key(0, 1)));
    talk.ok(&names[3], react(seq, "another"));
    assert_eq!(talk.reactions("ada", seq).len(), REACTION_KEYS_MAX);
}

/// An encrypted conversation's reactions are its members' business.
#[test]
fn an_encrypted_conversation_takes_no_readable_reaction() {
    let mut talk = Talk::nowhere();
    let create =
        Create { encryption: Encryption::Mls, ..creation(ConversationKind::Group, &["bob"], HistoryAccess::SinceJoin) };
    talk.ok("ada", Command::ConversationCreate(Box::new(create)));
    let seq = talk.send("ada", "ciphertext").seq;
    assert_eq!(talk.refused("bob", react(seq, "👍")), Code::EncryptionRequired);
    assert_eq!(talk.refused("bob", unreact(seq, "👍")), Code::EncryptionRequired);
}

/// What is known already is not asked of the store: a first reaction needs no look, nor does a second thought.
#[test]
fn the_store_is_asked_only_for_what_nobody_knows() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let seq = talk.send("ada", "hi").seq;
    talk.ok("bob", react(seq, "👍"));
    let verdict = |talk: &Talk, who: &str, command: &Command| {
        talk.state.decide(&actor(who), fresh(), command, Evidence::default(), T)
    };
    assert!(matches!(verdict(&talk, "bob", &unreact(seq, "👍")), Verdict::NeedReactions(..)));
    talk.ok("bob", react(seq, "❤️"));
    assert!(matches!(verdict(&talk, "bob", &unreact(seq, "👍")), Verdict::Append(..)));
    assert!(matches!(verdict(&talk, "eve", &unreact(seq, "🎉")), Verdict::Answer(Ok(_))));
    let Verdict::NeedReactions(of, keys) = verdict(&talk, "eve", &react(seq, "🎉")) else { panic!("not asked") };
    assert_eq!((of, keys.len()), (seq, 2));
}

/// Ten thousand reactions on one message: each costs what the first did, in memory, in rows and in what is looked at.
#[test]
fn ten_thousand_reactions_stay_cheap() {
    let mut talk = Talk::created(ConversationKind::Group, &[], HistoryAccess::All);
    let seq = talk.send("ada", "hi").seq;
    talk.ok("ada", react(seq, "👍"));
    talk.settle();
    let names: Vec<UserId> = (0..10_000).map(|n| user(&format!("user-{n:05}"))).collect();
    // As many members as a group may have were added one by one; here all at once.
    for name in &names {
        talk.state.members.join(name, Role::Member, talk.state.head, 0);
    }
    let (mut rows, mut largest) = (0, 0);
    for batch in names.chunks(50) {
        for name in batch {
            assert!(changed(talk.ok(name.as_str(), react(seq, "👍"))));
        }
        let hot = talk.state.hot.as_mut().unwrap();
        largest = largest.max(hot.overlays.heap_bytes() + hot.reactors.heap_bytes());
        let flight = hot.overlays.fly(talk.state.head).unwrap();
        rows += flight.overlays.len() + flight.reactions.len();
        talk.write(flight, |_| true);
        talk.settle_landed();
    }
    assert_eq!(rows, names.len() + names.len() / 50, "a row for each, and one of counts for each batch");
    assert!(largest < 64 * 1024, "{largest} bytes");
    assert_eq!(talk.reactions("user-00007", seq), [("👍".into(), 10_001, true)]);
    let (found, count) = talk.reactors("ada", seq, "👍", 200);
    assert_eq!((found.len(), count), (10_001, 10_001));
    assert!(found.is_sorted());
}

impl Talk {
    /// What is on its way has landed.
    fn settle_landed(&mut self) {
        let head = self.state.head;
        let hot = self.state.hot.as_mut().unwrap();
        hot.overlays.landed(head);
        hot.overlays.forget();
        assert!(hot.overlays.is_empty());
    }
}

/// A message to which somebody reacts without pause does not keep the rest of the log from being put into a snapshot.
#[test]
fn a_busy_message_holds_no_snapshot_up() {
    let mut talk = Talk::group(&["bob"]);
    let seq = talk.send("ada", "hi").seq;
    for n in 0..=SNAPSHOT_EVENTS {
        talk.ok("bob", if n % 2 == 0 { react(seq, "👍") } else { unreact(seq, "👍") });
        // Never a moment in which everything is committed, written and known to be.
        let committed = talk.state.head - 1;
        let hot = talk.state.hot.as_mut().unwrap();
        if let Some(flight) = hot.overlays.fly(committed) {
            assert_eq!(flight.overlays.len(), 1);
            let upto = flight.upto;
            talk.write(flight, |_| true);
            talk.state.hot.as_mut().unwrap().overlays.landed(upto);
        }
        assert!(!talk.state.can_cool());
        assert!(talk.state.is_derived_upto(committed));
    }
}

#[test]
fn folding_skips_what_is_reflected_and_what_is_dead() {
    let mut talk = Talk::group(&["bob"]);
    let seq = talk.send("ada", "v1").seq;
    for command in [react(seq, "👍"), react(seq, "❤️"), unreact(seq, "👍")] {
        talk.ok("bob", command);
    }
    talk.ok("ada", edit(seq, "v2"));
    let mut overlay = StoredOverlay::default();
    for event in &talk.log {
        fold(&mut overlay, event);
        let again = overlay.clone();
        talk.log.iter().filter(|event| event.seq <= again.as_of).for_each(|event| fold(&mut overlay, event));
        assert_eq!(overlay, again);
    }
    assert_eq!((overlay.reactions.len(), overlay.edit, overlay.as_of), (1, seq + 4, seq + 4));
    talk.ok("ada", delete(seq));
    fold(&mut overlay, talk.log.last().unwrap());
    // Whatever a log may hold.
    let late = Event { seq: seq + 6, ..(*talk.log[seq as usize]).clone() };
    fold(&mut overlay, &late);
    assert_eq!((overlay.deleted, overlay.reactions.len(), overlay.as_of), (seq + 5, 0, seq + 6));
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const USERS: [&str; 4] = ["ada", "bob", "eve", "zoe"];
    const KEYS: [&str; 3] = ["👍", "❤️", "+1"];

    /// What everybody should see of a message: whether it is there, its text, and who reacts with what.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Plain {
        text: Option<String>,
        reactions: BTreeMap<String, BTreeSet<String>>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(&'static str, Command),
        /// Rows go to the store; this many of the last events are not committed.
        Fly(u64),
        Land,
        /// The store says what overlays were before the tail.
        Tell,
        Forget,
        Snapshot,
        /// The process dies; of the rows on their way those whose number has this bit set have landed.
        Crash(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = prop::sample::select(USERS.to_vec());
        let key = prop::sample::select(KEYS.to_vec());
        let seq = 1..9u64;
        let ask = prop_oneof![
            2 => "[a-c]{1,2}".prop_map(|text| send(&text)),
            6 => (seq.clone(), key.clone()).prop_map(|(seq, key)| react(seq, key)),
            4 => (seq.clone(), key).prop_map(|(seq, key)| unreact(seq, key)),
            2 => (seq.clone(), "[a-c]{1,2}").prop_map(|(seq, text)| edit(seq, &text)),
            1 => seq.prop_map(delete),
            1 => prop::sample::select(USERS[1..].to_vec()).prop_map(remove),
            1 => prop::sample::select(USERS[1..].to_vec()).prop_map(|name| add(name, Role::Member)),
        ];
        prop_oneof![
            8 => (who, ask).prop_map(|(who, command)| Step::Ask(who, command)),
            3 => (0..3u64).prop_map(Step::Fly),
            3 => Just(Step::Land),
            1 => Just(Step::Tell),
            1 => Just(Step::Forget),
            1 => Just(Step::Snapshot),
            1 => any::<u8>().prop_map(Step::Crash),
        ]
    }

    /// A conversation over a store that is slow, and a plain idea of what it should look like.
    struct World {
        talk: Talk,
        model: BTreeMap<Seq, Plain>,
        flight: Option<Flight>,
        snapshot: Option<bytes::Bytes>,
    }

    impl World {
        fn new() -> Self {
            let talk = Talk::created(ConversationKind::Group, &USERS[1..], HistoryAccess::All);
            Self { talk, model: BTreeMap::new(), flight: None, snapshot: None }
        }

        fn take(&mut self, step: Step) {
            let head = self.talk.state.head;
            match step {
                Step::Ask(who, command) => self.ask(who, &command),
                Step::Fly(uncommitted) => {
                    let overlays = &mut self.talk.state.hot.as_mut().unwrap().overlays;
                    if let Some(flight) = overlays.fly(head.saturating_sub(uncommitted)) {
                        assert!(self.flight.is_none(), "two flights at a time");
                        self.flight = Some(flight);
                    }
                }
                Step::Land => {
                    if let Some(flight) = self.flight.take() {
                        let upto = flight.upto;
                        self.talk.write(flight, |_| true);
                        self.talk.state.hot.as_mut().unwrap().overlays.landed(upto);
                    }
                }
                Step::Tell => {
                    let overlays = &mut self.talk.state.hot.as_mut().unwrap().overlays;
                    if let Some(targets) = overlays.ask() {
                        let there = self.talk.shelf.overlays.iter().filter(|(seq, _)| targets.contains(seq));
                        let found = there.map(|(seq, overlay)| (*seq, overlay.clone())).collect();
                        overlays.answer(&targets, Some(found));
                    }
                }
                Step::Forget => self.talk.state.hot.as_mut().unwrap().overlays.forget(),
                Step::Snapshot if self.talk.state.is_derived_upto(head) => {
                    self.snapshot = self.talk.state.snapshot();
                }
                Step::Snapshot => {}
                Step::Crash(lucky) => {
                    if let Some(flight) = self.flight.take() {
                        self.talk.write(flight, |index| lucky >> (index % 8) & 1 == 1);
                    }
                    let mut state = match &self.snapshot {
                        Some(bytes) => Conversation::from_snapshot(CONVERSATION, bytes.clone()).unwrap(),
                        None => Conversation::absent(CONVERSATION),
                    };
                    self.talk.log[state.head as usize..].iter().for_each(|event| state.apply(event));
                    self.talk.state = state;
                }
            }
        }

        fn ask(&mut self, who: &str, command: &Command) {
            let before = self.talk.state.head;
            let answer = self.talk.judge(who, fresh(), command);
            let is_member = self.talk.state.members.get(&user(who)).is_some();
            let made = self.talk.log.get(before as usize).cloned();
            match command {
                Command::MessageSend { body, .. } if answer.is_ok() => {
                    let text = Some(String::from_utf8(body.bytes().to_vec()).unwrap());
                    self.model.insert(made.unwrap().seq, Plain { text, ..Plain::default() });
                }
                Command::MessageEdit { seq, body, .. } if answer.is_ok() => {
                    self.model.get_mut(seq).unwrap().text = Some(String::from_utf8(body.bytes().to_vec()).unwrap());
                }
                Command::MessageDelete { seq, .. } if answer.is_ok() => {
                    self.model.insert(*seq, Plain::default());
                }
                Command::ReactionAdd { seq, key, .. } | Command::ReactionRemove { seq, key, .. } => {
                    let adds = matches!(command, Command::ReactionAdd { .. });
                    let Some(message) = self.model.get_mut(seq).filter(|_| is_member) else {
                        assert!(answer.is_err());
                        return;
                    };
                    if message.text.is_none() {
                        assert_eq!(answer.is_err(), adds, "{answer:?}");
                        return;
                    }
                    let users = message.reactions.entry(key.as_str().to_owned()).or_default();
                    let is_news = if adds { users.insert(who.to_owned()) } else { users.remove(who) };
                    message.reactions.retain(|_, users| !users.is_empty());
                    assert_eq!(changed(answer.unwrap()), is_news);
                    assert_eq!(made.is_some(), is_news, "an event for what changes something, and only for that");
                }
                _ => {}
            }
        }

        /// Every member sees of every message what there is to be seen.
        fn check(&mut self) {
            let members: Vec<String> = self.talk.state.members.present().map(|m| m.user.to_string()).collect();
            for who in members {
                let (messages, _) = self.talk.messages(&who, From::Newest, 100);
                assert_eq!(messages.len(), self.model.len());
                for message in messages {
                    let plain = &self.model[&message.seq];
                    let text = message.body.map(|body| String::from_utf8(body.to_vec()).unwrap());
                    assert_eq!((&text, message.deleted.is_some()), (&plain.text, plain.text.is_none()));
                    let counts = message.reactions.iter();
                    let counts: BTreeMap<_, _> =
                        counts.map(|one| (one.key.as_str(), (one.count as usize, one.mine))).collect();
                    let expected = plain.reactions.iter();
                    let expected: BTreeMap<_, _> =
                        expected.map(|(key, users)| (key.as_str(), (users.len(), users.contains(&who)))).collect();
                    assert_eq!(counts, expected, "message {} as {who} sees it", message.seq);
                }
            }
            for (seq, plain) in self.model.clone() {
                for key in KEYS {
                    let users = plain.reactions.get(key).cloned().unwrap_or_default();
                    let (found, count) = self.talk.reactors("ada", seq, key, 2);
                    assert_eq!((&found, count), (&users.into_iter().collect(), found.len() as u64));
                }
            }
        }
    }

    proptest! {
        /// Whatever is asked by whomever, written when, lost and read again: everybody sees the same, and what the
        /// events add up to.
        #[test]
        fn reactions_edits_and_deletions_converge(steps in prop::collection::vec(step(), 0..80)) {
            let mut world = World::new();
            for step in steps {
                world.take(step);
                world.check();
            }
            // In the end everything can be written down, and the store alone says the same.
            world.take(Step::Land);
            world.take(Step::Tell);
            world.talk.settle();
            world.check();
        }
    }
}
