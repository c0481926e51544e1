//! Presence and typing as a shard drives them.

use chappe_schema::{
    limit::{LAST_SEEN_ROW_MS, PRESENCE_GRACE_MS, PRESENCE_PAUSE_MS, PRESENCE_RENEWED_MS, TYPING_MS, TYPING_PAUSE_MS},
    presence::{Attention, Shown, Status, Watch},
};

use super::*;

const ONLINE: Shown = Shown { status: Status::Online, last_seen: None };
const AWAY: Shown = Shown { status: Status::Away, last_seen: None };

fn gone(at: Millis) -> Shown {
    Shown { status: Status::Offline, last_seen: Some(at) }
}

impl Bench {
    /// A group of ada, bob and eve; each is connected, at the slot of their name's place.
    fn gathered(fenced: bool) -> Self {
        let mut bench = Self::new(fenced);
        bench.done("ada", group(&["bob", "eve"])).unwrap();
        for (index, who) in ["ada", "bob", "eve"].into_iter().enumerate() {
            bench.connect(who, index as u32 + 1);
        }
        bench.settle();
        bench
    }

    fn attend(&mut self, who: &str, slot: u32, away: bool, watches: &[&str]) {
        let watches: Vec<Watch> =
            watches.iter().map(|name| Watch { user: user(name), conversation: CONVERSATION }).collect();
        let attention = Attention { away, watches: (!watches.is_empty()).then(|| watches.into()) };
        self.mail(Mail::Gateway(
            GATEWAY,
            ToNode::Attend { user: user(who), connection: ConnectionSlot(slot), attention },
        ));
        self.settle();
    }

    fn leave(&mut self, who: &str, slot: u32) {
        self.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user(who), connection: ConnectionSlot(slot) }));
        self.settle();
    }

    /// Time passes, second by second.
    fn pass(&mut self, ms: u64) {
        let end = self.now.load(Ordering::Relaxed) + ms;
        loop {
            let now = self.now.load(Ordering::Relaxed);
            if now >= end {
                return;
            }
            self.now.store((now + 1_000).min(end), Ordering::Relaxed);
            self.mail(Mail::Tick);
            self.settle();
        }
    }

    /// What a connection was told of others since this was last asked.
    fn seen(&mut self, slot: u32) -> Vec<(String, Shown)> {
        let mut seen = Vec::new();
        self.heard.0.lock().retain_mut(|message| {
            let ToGateway::Presence { connections, user, shown } = message else { return true };
            if connections.contains(&ConnectionSlot(slot)) {
                connections.retain(|known| *known != ConnectionSlot(slot));
                seen.push((user.to_string(), *shown));
            }
            !connections.is_empty()
        });
        seen
    }

    fn typed(&mut self) -> Vec<(String, bool)> {
        let mut typed = Vec::new();
        self.heard.0.lock().retain(|message| match message {
            ToGateway::Typing { user, is_typing, .. } => {
                typed.push((user.to_string(), *is_typing));
                false
            }
            _ => true,
        });
        typed
    }

    fn listen(&mut self, listening: bool) {
        self.mail(Mail::Gateway(GATEWAY, ToNode::Interest { conversation: CONVERSATION, listening }));
    }

    fn invisible(&mut self, who: &str, invisible: bool) -> bool {
        match self.done(who, Command::PresenceUpdate { invisible }) {
            Ok(Reply::Visibility { changed, .. }) => changed,
            other => panic!("{other:?}"),
        }
    }

    fn looked_up(&mut self, who: &str, whom: &str) -> Shown {
        let watch = Watch { user: user(whom), conversation: CONVERSATION };
        match self.done(who, Command::PresenceGet { watch }) {
            Ok(Reply::Presence { shown, .. }) => shown,
            other => panic!("{other:?}"),
        }
    }
}

fn started() -> Command {
    Command::TypingStart { conversation: CONVERSATION }
}

fn stopped() -> Command {
    Command::TypingStop { conversation: CONVERSATION }
}

#[test]
fn who_looks_is_told_and_nobody_else() {
    let mut bench = Bench::gathered(false);
    bench.attend("ada", 1, false, &["bob"]);
    assert_eq!(bench.seen(1), [("bob".into(), ONLINE)], "the first word follows");
    bench.pass(PRESENCE_PAUSE_MS);
    bench.attend("bob", 2, true, &[]);
    assert_eq!(bench.seen(1), [("bob".into(), AWAY)]);
    // Another device at hand: online again, after the pause.
    bench.connect("bob", 7);
    bench.settle();
    assert_eq!(bench.seen(1), []);
    bench.pass(PRESENCE_PAUSE_MS);
    assert_eq!(bench.seen(1), [("bob".into(), ONLINE)]);
    bench.attend("eve", 3, true, &[]);
    bench.pass(30_000);
    assert_eq!((bench.seen(1), bench.seen(2), bench.seen(3)), (vec![], vec![], vec![]), "ada looks at nobody else");
    bench.attend("ada", 1, false, &[]);
    bench.leave("bob", 2);
    bench.leave("bob", 7);
    bench.pass(60_000);
    assert_eq!(bench.seen(1), []);
}

/// Thread: RocketChat/Rocket.Chat#21182: a proxy restarts, and everybody's presence flaps.
#[test]
fn rocket_chat_21182_whoever_comes_back_in_time_was_never_gone() {
    let mut bench = Bench::gathered(false);
    bench.attend("ada", 1, false, &["bob"]);
    bench.seen(1);
    for round in 0..10 {
        bench.leave("bob", if round == 0 { 2 } else { 9 + round });
        bench.pass(PRESENCE_GRACE_MS - 2_000);
        bench.connect("bob", 10 + round);
        bench.settle();
        assert_eq!(bench.seen(1), [], "round {round}");
    }
    bench.leave("bob", 19);
    let left = bench.now.load(Ordering::Relaxed);
    bench.pass(PRESENCE_GRACE_MS + 1_000);
    assert_eq!(bench.seen(1), [("bob".into(), gone(left))]);
}

#[test]
fn who_is_invisible_leaves_no_trace() {
    let mut bench = Bench::gathered(false);
    bench.attend("ada", 1, false, &["bob"]);
    bench.seen(1);
    bench.pass(5_000);
    let hidden = bench.now.load(Ordering::Relaxed);
    assert!(bench.invisible("bob", true));
    assert!(!bench.invisible("bob", true), "that is no news");
    assert_eq!(bench.seen(1), [("bob".into(), gone(hidden))]);
    bench.attend("bob", 2, true, &[]);
    bench.connect("bob", 8);
    bench.leave("bob", 2);
    bench.leave("bob", 8);
    bench.pass(2 * PRESENCE_GRACE_MS);
    bench.connect("bob", 9);
    bench.pass(10_000);
    assert_eq!(bench.seen(1), [], "whatever they do moves nothing");
    assert_eq!(bench.looked_up("eve", "bob"), gone(hidden));
    // Nor does a restart uncover them.
    let mut next = bench.succeeded();
    next.connect("bob", 5);
    next.settle();
    assert_eq!(next.looked_up("ada", "bob"), gone(hidden));
    next.connect("ada", 1);
    next.attend("ada", 1, false, &["bob"]);
    assert_eq!(next.seen(1), [("bob".into(), gone(hidden))]);
    next.pass(5_000);
    assert!(next.invisible("bob", false));
    assert_eq!(next.seen(1), [("bob".into(), ONLINE)]);
    let watch = Watch { user: user("bob"), conversation: CONVERSATION };
    let Ok(Reply::Presence { invisible, shown, .. }) = next.done("bob", Command::PresenceGet { watch }) else {
        panic!()
    };
    assert_eq!((invisible, shown), (Some(false), ONLINE), "they see for themselves");
}

#[test]
fn strangers_the_removed_and_who_is_not_there_look_alike() {
    let mut bench = Bench::gathered(false);
    bench.connect("mallory", 6);
    bench.settle();
    bench.attend("mallory", 6, false, &["ada", "nobody"]);
    assert_eq!(bench.seen(6), [("ada".into(), Shown::default()), ("nobody".into(), Shown::default())]);
    assert_eq!(bench.looked_up("mallory", "ada"), Shown::default());
    assert_eq!(bench.looked_up("ada", "mallory"), Shown::default(), "who is no member cannot be looked at");
    // A member who is removed sees nothing more, and is seen no more.
    bench.attend("ada", 1, false, &["bob"]);
    bench.attend("bob", 2, false, &["ada", "eve"]);
    bench.seen(1);
    bench.seen(2);
    bench.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("bob") }).unwrap();
    assert_eq!(bench.seen(1), [("bob".into(), Shown::default())]);
    assert_eq!(bench.seen(2), [("ada".into(), Shown::default()), ("eve".into(), Shown::default())]);
    bench.pass(PRESENCE_PAUSE_MS);
    bench.attend("eve", 3, true, &[]);
    bench.leave("ada", 1);
    bench.pass(2 * PRESENCE_GRACE_MS);
    assert_eq!(bench.seen(2), []);
    assert_eq!(bench.looked_up("bob", "ada"), Shown::default());
    // Who is added again may look again.
    let add =
        Command::MemberAdd { conversation: CONVERSATION, user: user("bob"), role: chappe_schema::event::Role::Member };
    bench.done("eve", add.clone()).unwrap_err();
    bench.done("ada", add).unwrap();
    bench.pass(PRESENCE_RENEWED_MS + 1_000);
    assert_eq!(bench.seen(2).iter().filter(|(who, shown)| who == "eve" && *shown == AWAY).count(), 1);
}

#[test]
fn a_lost_word_is_said_again_and_a_lost_watcher_forgotten() {
    let mut bench = Bench::gathered(false);
    bench.attend("ada", 1, false, &["bob"]);
    bench.seen(1);
    bench.pass(5_000);
    // The watcher's shard never hears of it.
    let word = bench.shard.board.stands(&user("bob"), AWAY, None, bench.now.load(Ordering::Relaxed));
    assert!(word.is_some());
    bench.attend("bob", 2, true, &[]);
    assert_eq!(bench.seen(1), [], "the board thinks that ada knows");
    bench.pass(PRESENCE_RENEWED_MS);
    assert_eq!(bench.seen(1), [("bob".into(), AWAY)]);
    assert_eq!(bench.shard.board.watches(), 1);
    // A watcher's shard that dies says nothing any more.
    bench.shard.forget_user(&user("ada"));
    bench.pass(130_000);
    assert_eq!(bench.shard.board.watches(), 0);
}

#[test]
fn a_panic_or_a_new_owner_makes_nobody_flap() {
    let mut bench = Bench::gathered(true);
    bench.attend("ada", 1, false, &["bob"]);
    assert_eq!(bench.seen(1), [("bob".into(), ONLINE)]);
    bench.pass(PRESENCE_GRACE_MS);
    // Bob's state is lost, and read again.
    panic::plant(0, Moment::Before);
    bench.attend("bob", 2, false, &[]);
    bench.pass(5_000);
    assert_eq!(bench.seen(1), []);
    // Bob's partition goes and comes back, as to a new owner, who knows of no connection.
    let partition = user("bob").partition();
    bench.mail(Mail::Tenure(TenureMail::Close(vec![partition])));
    bench.mail(Mail::Tenure(TenureMail::Open { partition, epoch: 9, handed: Vec::new(), warm: Vec::new() }));
    let owner = chappe_schema::wire::Owner { session: 1, epoch: 9 };
    bench.mail(Mail::Moved(Arc::from([(partition, owner)])));
    bench.settle();
    bench.pass(PRESENCE_GRACE_MS / 2);
    // Somebody who looks only now is told what the others know.
    bench.attend("eve", 3, false, &["bob"]);
    assert_eq!(bench.seen(3), [("bob".into(), ONLINE)]);
    assert_eq!(bench.seen(1), [], "their gateway is about to say that they are there");
    bench.attempt = 1;
    bench.connect("bob", 2);
    bench.settle();
    bench.pass(PRESENCE_GRACE_MS);
    assert_eq!(bench.seen(1), []);
    bench.attend("bob", 2, true, &[]);
    assert_eq!(bench.seen(1), [("bob".into(), AWAY)], "and whoever looked still does");
    // This time nobody comes.
    bench.mail(Mail::Tenure(TenureMail::Close(vec![partition])));
    bench.mail(Mail::Tenure(TenureMail::Open { partition, epoch: 10, handed: Vec::new(), warm: Vec::new() }));
    let owner = chappe_schema::wire::Owner { epoch: 10, ..owner };
    bench.mail(Mail::Moved(Arc::from([(partition, owner)])));
    bench.settle();
    bench.pass(PRESENCE_GRACE_MS + 2_000);
    assert_eq!(bench.seen(1), [("bob".into(), Shown::default())], "nobody remembers when");
}

#[test]
fn when_somebody_was_seen_outlives_a_restart() {
    let mut bench = Bench::gathered(false);
    let rows =
        |bench: &Bench| bench.store.held.lock().rows.keys().filter(|(entity, _)| *entity == user("bob").into()).count();
    let before = rows(&bench);
    bench.leave("bob", 2);
    let left = bench.now.load(Ordering::Relaxed);
    assert_eq!(rows(&bench), before, "nothing is written while somebody may come back");
    for (who, slot) in [("ada", 1), ("eve", 3)] {
        bench.leave(who, slot);
    }
    bench.pass(PRESENCE_GRACE_MS);
    bench.put_away_all();
    assert_eq!(rows(&bench), before + 1);
    let mut next = bench.succeeded();
    next.pass(PRESENCE_GRACE_MS);
    assert_eq!(next.looked_up("ada", "bob"), gone(left));
    // Within the hour a coming and going costs no row.
    next.connect("bob", 4);
    next.settle();
    next.pass(10_000);
    next.leave("bob", 4);
    next.pass(PRESENCE_GRACE_MS);
    next.put_away_all();
    assert_eq!(rows(&next), before + 1);
    next.now.fetch_add(LAST_SEEN_ROW_MS, Ordering::Relaxed);
    next.connect("bob", 5);
    next.settle();
    next.leave("bob", 5);
    next.pass(PRESENCE_GRACE_MS);
    next.put_away_all();
    assert_eq!(rows(&next), before + 2);
}

impl Bench {
    /// As [`Bench::put_away`], with the time that it takes to write what only memory knows.
    fn put_away_all(&mut self) {
        let budget = std::mem::take(&mut self.shard.settings.budget_bytes);
        for _ in 0..10 {
            self.now.fetch_add(61_000, Ordering::Relaxed);
            self.mail(Mail::Tick);
            self.settle();
        }
        self.shard.settings.budget_bytes = budget;
        assert!(self.shard.users.is_empty());
    }
}

#[test]
fn typing_is_told_to_who_has_it_open_and_ends_by_itself() {
    let mut bench = Bench::gathered(false);
    assert_eq!(bench.done("ada", started()), Ok(Reply::Typing { shown: true }));
    assert_eq!(bench.typed(), [], "nobody has it open");
    bench.pass(2 * TYPING_MS);
    bench.listen(true);
    let appended = bench.store.held.lock().appended;
    bench.done("ada", started()).unwrap();
    bench.done("ada", started()).unwrap();
    assert_eq!(bench.typed(), [("ada".into(), true)], "said again too soon");
    bench.pass(TYPING_MS + 1_000);
    assert_eq!(bench.typed(), [("ada".into(), false)]);
    bench.pass(TYPING_PAUSE_MS);
    bench.done("ada", started()).unwrap();
    bench.pass(TYPING_PAUSE_MS);
    assert_eq!(bench.done("ada", stopped()), Ok(Reply::Closed));
    assert_eq!(bench.typed(), [("ada".into(), true), ("ada".into(), false)]);
    assert_eq!(bench.store.held.lock().appended, appended, "nothing of it is written");
    // A message ends it.
    bench.pass(TYPING_PAUSE_MS);
    bench.done("ada", started()).unwrap();
    bench.done("ada", send("hi")).unwrap();
    assert_eq!(bench.typed(), [("ada".into(), true), ("ada".into(), false)]);
    bench.listen(false);
    bench.pass(TYPING_PAUSE_MS);
    bench.done("ada", started()).unwrap();
    assert_eq!(bench.typed(), []);
}

#[test]
fn who_is_removed_types_no_more() {
    let mut bench = Bench::gathered(false);
    bench.listen(true);
    bench.done("bob", started()).unwrap();
    bench.done("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("bob") }).unwrap();
    assert_eq!(bench.typed(), [("bob".into(), true), ("bob".into(), false)]);
    bench.pass(TYPING_PAUSE_MS);
    assert_eq!(bench.done("bob", started()).unwrap_err().code, Code::ConversationNotFound);
    assert_eq!(bench.done("bob", stopped()).unwrap_err().code, Code::ConversationNotFound);
    assert_eq!(bench.done("mallory", started()).unwrap_err().code, Code::ConversationNotFound);
    // Judged before the removal, let out behind it.
    bench.connect("eve", 3);
    let remove = bench.ask("ada", Command::MemberRemove { conversation: CONVERSATION, user: user("eve") });
    let late = bench.ask("eve", started());
    bench.settle();
    assert!(bench.answer(remove).unwrap().is_ok());
    assert_eq!(bench.answer(late).unwrap().unwrap_err().code, Code::ConversationNotFound);
    assert_eq!(bench.typed(), []);
}
