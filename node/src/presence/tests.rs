use std::collections::BTreeMap;

use chappe_schema::{
    id::{ConversationId, Millis, UserId},
    limit::{PRESENCE_EVENTS_S_MAX, PRESENCE_EXPIRES_MS, PRESENCE_GRACE_MS, PRESENCE_PAUSE_MS, PRESENCE_WATCHERS_MAX},
    presence::{Shown, Status, Watch},
};
use proptest::prelude::*;

use super::*;

const T: Millis = 1_700_000_000_000;
const ONLINE: Shown = Shown { status: Status::Online, last_seen: None };
const AWAY: Shown = Shown { status: Status::Away, last_seen: None };
const GONE: Shown = Shown { status: Status::Offline, last_seen: Some(T) };

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn conversation(n: u128) -> ConversationId {
    ConversationId(uuid::Uuid::from_u128(n))
}

fn at(name: &str, n: u128) -> Watch {
    Watch { user: user(name), conversation: conversation(n) }
}

fn told(words: impl IntoIterator<Item = Word>) -> Vec<(String, Shown, Vec<String>)> {
    let told = words.into_iter().map(|word| {
        let watchers = word.watchers.iter().map(UserId::to_string).collect();
        (word.user.to_string(), word.shown, watchers)
    });
    told.collect()
}

fn to(watcher: &str, shown: Shown) -> Vec<(String, Shown, Vec<String>)> {
    vec![("ada".to_owned(), shown, vec![watcher.to_owned()])]
}

/// A board on which bob looks at ada, who is online.
fn board() -> Board {
    let mut board = Board::default();
    let word = board.watch(&at("ada", 1), &user("bob"), None, (ONLINE, None), T);
    assert_eq!(told(word), to("bob", ONLINE), "the first word follows at once");
    board
}

#[test]
fn a_change_is_told_to_who_looks_and_to_nobody_else() {
    let mut board = board();
    assert_eq!(board.stands(&user("eve"), AWAY, None, T), None, "nobody looks");
    assert_eq!(told(board.stands(&user("ada"), AWAY, None, T + 5_000)), to("bob", AWAY));
    assert_eq!(board.stands(&user("ada"), AWAY, None, T + 9_000), None, "that is no news");
    board.unwatch(&user("ada"), &user("bob"));
    assert_eq!(board.stands(&user("ada"), ONLINE, None, T + 20_000), None);
    assert_eq!(board.watches(), 0);
}

#[test]
fn of_many_changes_the_last_one_is_told_after_the_pause() {
    let mut board = board();
    let ada = user("ada");
    assert_eq!(told(board.stands(&ada, AWAY, None, T + 5_000)), to("bob", AWAY));
    for ms in 1..PRESENCE_PAUSE_MS {
        let shown = if ms % 2 == 0 { AWAY } else { ONLINE };
        assert_eq!(board.stands(&ada, shown, None, T + 5_000 + ms), None);
    }
    assert_eq!(board.due(), 1, "however often it changes");
    assert_eq!(board.tick(T + 5_000 + PRESENCE_PAUSE_MS - 1, |_| None), []);
    assert_eq!(told(board.tick(T + 5_000 + PRESENCE_PAUSE_MS, |_| None)), to("bob", ONLINE));
    assert_eq!(board.due(), 0);
    assert_eq!(board.stands(&ada, AWAY, None, T + 7_500), None);
    assert_eq!(board.stands(&ada, ONLINE, None, T + 7_600), None);
    assert_eq!(board.tick(T + 20_000, |_| None), [], "it has come back to what they know");
}

#[test]
fn who_comes_back_in_time_was_never_gone() {
    let mut board = board();
    let ada = user("ada");
    let until = T + PRESENCE_GRACE_MS;
    assert_eq!(board.stands(&ada, ONLINE, Some(until), T), None, "the connection is gone, the user is not");
    assert_eq!(board.tick(until - 1, |_| panic!("too early")), []);
    assert_eq!(told(board.tick(until, |_| Some((GONE, None)))), to("bob", GONE));
    // Gone and back again and again: one look per grace.
    for second in 0..100 {
        board.stands(&ada, GONE, Some(until + 1 + second), until + second);
    }
    assert_eq!(board.turning(), 1);
}

#[test]
fn a_watch_that_nobody_renews_is_over() {
    let mut board = board();
    let eve = board.watch(&at("ada", 2), &user("eve"), Some(ONLINE), (ONLINE, None), T);
    assert_eq!(eve, None, "eve knew");
    let later = T + PRESENCE_EXPIRES_MS - 1;
    assert_eq!(board.renew(&at("ada", 1), &user("bob"), Some(ONLINE), later), Renewal::Renewed(None));
    assert_eq!(told(board.stands(&user("ada"), AWAY, None, later + 1)), to("bob", AWAY));
    board.tick(later + 1, |_| None);
    assert_eq!(board.watches(), 1, "only bob's is left");
    board.tick(later + 1 + PRESENCE_EXPIRES_MS, |_| None);
    assert!(!board.is_watched(&user("ada")) && board.watches() == 0, "nothing stays of it");
    assert_eq!(board.renew(&at("ada", 1), &user("bob"), Some(AWAY), later + 2), Renewal::New);
}

#[test]
fn a_renewal_mends_what_got_lost() {
    let mut board = board();
    assert!(board.stands(&user("ada"), AWAY, None, T + 5_000).is_some(), "and the word gets lost");
    let Renewal::Renewed(word) = board.renew(&at("ada", 1), &user("bob"), Some(ONLINE), T + 6_000) else {
        panic!("the watch stands")
    };
    assert_eq!(told(word), to("bob", AWAY));
    assert_eq!(board.renew(&at("ada", 1), &user("bob"), Some(AWAY), T + 7_000), Renewal::Renewed(None));
    assert_eq!(board.renew(&at("ada", 9), &user("bob"), Some(AWAY), T + 7_000), Renewal::New, "by another right");
}

#[test]
fn who_shares_the_conversation_no_longer_sees_nothing_more() {
    let mut board = board();
    board.watch(&at("ada", 2), &user("eve"), None, (ONLINE, None), T);
    assert_eq!(told(board.part(&user("ada"), conversation(1))), to("bob", Shown::default()));
    assert_eq!(told(board.stands(&user("ada"), AWAY, None, T + 5_000)), to("eve", AWAY));
    assert_eq!(board.part(&user("ada"), conversation(1)), None);
    board.forget(|_| true);
    assert_eq!((board.watches(), board.due()), (0, 0));
}

/// Threads: matrix-org/synapse#3971 and element-hq/synapse#16843: presence that pins the CPU, and whose fix is to switch it off.
#[test]
fn synapse_3971_words_per_second_are_bounded_whatever_flaps() {
    let mut board = Board::default();
    // Each of 2,000 users is looked at by 10 others.
    let users: Vec<UserId> = (0..2_000).map(|n| user(&format!("u{n}"))).collect();
    for (n, name) in users.iter().enumerate() {
        for k in 1..=10 {
            let watcher = &users[(n + k) % users.len()];
            board.watch(
                &Watch { user: name.clone(), conversation: conversation(1) },
                watcher,
                Some(ONLINE),
                (ONLINE, None),
                T,
            );
        }
    }
    let mut now = T + 10_000;
    for second in 0..20 {
        let mut said = board.tick(now, |_| None).iter().map(|word| word.watchers.len()).sum::<usize>();
        for flap in 0..2 {
            let shown = if flap == 0 { AWAY } else { GONE };
            for name in &users {
                said += board.stands(name, shown, None, now + flap).map_or(0, |word| word.watchers.len());
            }
        }
        assert!(said <= PRESENCE_EVENTS_S_MAX, "{said} words in second {second}");
        assert!(board.due() <= users.len(), "a user is due once, however often they flap");
        now += 1_000;
    }
    // Quiet: everybody has it right within the time that the budget gives.
    let mut seconds = 0;
    while board.due() > 0 {
        board.tick(now, |_| None);
        now += 1_000;
        seconds += 1;
    }
    let words = users.len() * 10;
    assert!(seconds <= 2 + words.div_ceil(PRESENCE_EVENTS_S_MAX), "{seconds} s");
}

/// Threads: RocketChat/Rocket.Chat#30721 and #30978: presence that ends at 200 connections.
#[test]
fn rocket_chat_30721_whoever_comes_late_still_learns_of_it() {
    let mut board = Board::default();
    let mut now = T;
    for n in 0..PRESENCE_WATCHERS_MAX {
        board.watch(&at("ada", 1), &user(&format!("u{n}")), Some(ONLINE), (ONLINE, None), now);
    }
    let late = user("late");
    let word = board.watch(&at("ada", 1), &late, None, (ONLINE, None), now);
    assert_eq!(told(word), to("late", ONLINE));
    now += 10_000;
    let word = board.stands(&user("ada"), AWAY, None, now).unwrap();
    assert_eq!(word.watchers.len(), PRESENCE_WATCHERS_MAX);
    // It is not on the list, but it asks again.
    assert_eq!(board.renew(&at("ada", 1), &late, Some(ONLINE), now), Renewal::New);
    let word = board.watch(&at("ada", 1), &late, Some(ONLINE), (AWAY, None), now);
    assert_eq!(told(word), to("late", AWAY));
    assert_eq!(board.watch(&at("ada", 1), &late, Some(AWAY), (AWAY, None), now), None, "that is no news");
}

#[test]
fn a_user_looks_by_all_their_connections_together() {
    let mut watching = Watching::default();
    let (ada, eve) = (at("ada", 1), at("eve", 2));
    let wishes = watching.look([&ada, &eve, &ada].into_iter());
    assert_eq!(wishes.watch, [(ada.clone(), None), (eve.clone(), None)]);
    assert!(wishes.unwatch.is_empty());
    assert!(watching.hear(&ada.user, ONLINE, 5));
    assert!(!watching.hear(&ada.user, ONLINE, 5), "that is no news");
    assert!(!watching.hear(&ada.user, GONE, 4), "the owner before knows nothing any more");
    assert!(!watching.hear(&user("bob"), ONLINE, 5), "nobody looks");
    assert_eq!((watching.shown(&ada.user), watching.shown(&user("bob"))), (Some(Some(ONLINE)), None));
    assert_eq!(watching.renewal(), [(ada.clone(), Some(ONLINE)), (eve.clone(), None)]);
    // Another right is another question; what is left out ends.
    let other = at("ada", 3);
    let wishes = watching.look([&other].into_iter());
    assert_eq!((wishes.watch, wishes.unwatch), (vec![(other.clone(), None)], vec![eve.user.clone()]));
    assert_eq!(watching.look([&other].into_iter()), Wishes::default());
    assert_eq!(watching.look(std::iter::empty()).unwatch, [other.user]);
    assert!(watching.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Stands(u8, u8),
    Watch(u8, u8, u8),
    Unwatch(u8, u8),
    Part(u8, u8),
    Lose,
    Pass(u64),
    Renew,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..3).prop_map(|(user, shown)| Step::Stands(user, shown)),
        3 => (0u8..3, 0u8..4, 0u8..2).prop_map(|(user, watcher, by)| Step::Watch(user, watcher, by)),
        1 => (0u8..3, 0u8..4).prop_map(|(user, watcher)| Step::Unwatch(user, watcher)),
        1 => (0u8..3, 0u8..2).prop_map(|(user, by)| Step::Part(user, by)),
        1 => Just(Step::Lose),
        4 => (1u64..30_000).prop_map(Step::Pass),
        1 => Just(Step::Renew),
    ]
}

proptest! {
    /// Whatever changes, whoever looks, whatever gets lost: after a quiet time with one renewal everybody who looks knows
    /// how everybody stands, and nobody else was told anything.
    #[test]
    fn everybody_who_looks_has_it_right_in_the_end(steps in proptest::collection::vec(step(), 1..150)) {
        let shown = [ONLINE, AWAY, GONE];
        let (mut board, mut now) = (Board::default(), T);
        let mut truth = [GONE; 3];
        // By (watched, watcher): by which right, and what they were told.
        let mut looks: BTreeMap<(u8, u8), (u8, Option<Shown>)> = BTreeMap::new();
        let mut losing = false;
        let name = |n: u8| user(&format!("u{n}"));
        let number = |user: &UserId| user.as_str()[1..].parse::<u8>().unwrap();
        let renew = |looks: &BTreeMap<(u8, u8), (u8, Option<Shown>)>, board: &mut Board, truth: &[Shown; 3], now| {
            let mut words = Vec::new();
            for ((of, watcher), (by, knows)) in looks {
                let watch = Watch { user: name(*of), conversation: conversation(u128::from(*by)) };
                match board.renew(&watch, &name(*watcher), *knows, now) {
                    Renewal::Renewed(word) => words.extend(word),
                    Renewal::New => {
                        words.extend(board.watch(&watch, &name(*watcher), *knows, (truth[usize::from(*of)], None), now));
                    }
                }
            }
            words
        };
        for step in steps.into_iter().chain([Step::Pass(PRESENCE_PAUSE_MS), Step::Renew, Step::Pass(PRESENCE_PAUSE_MS)]) {
            let mut parted = false;
            let words: Vec<Word> = match &step {
                &Step::Stands(of, how) => {
                    truth[usize::from(of)] = shown[usize::from(how)];
                    board.stands(&name(of), truth[usize::from(of)], None, now).into_iter().collect()
                }
                &Step::Watch(of, watcher, by) => {
                    let watch = Watch { user: name(of), conversation: conversation(u128::from(by)) };
                    looks.insert((of, watcher), (by, None));
                    board.watch(&watch, &name(watcher), None, (truth[usize::from(of)], None), now).into_iter().collect()
                }
                &Step::Unwatch(of, watcher) => {
                    looks.remove(&(of, watcher));
                    board.unwatch(&name(of), &name(watcher));
                    Vec::new()
                }
                &Step::Part(of, by) => {
                    parted = true;
                    board.part(&name(of), conversation(u128::from(by))).into_iter().collect()
                }
                Step::Lose => { losing = true; Vec::new() }
                Step::Renew => { losing = false; renew(&looks, &mut board, &truth, now) }
                &Step::Pass(ms) => { now += ms; board.tick(now, |_| None) }
            };
            for word in words {
                let of = number(&word.user);
                for watcher in &word.watchers {
                    let key = (of, number(watcher));
                    if parted {
                        let (by, _) = looks.remove(&key).unwrap_or_default();
                        prop_assert_eq!(word.shown, Shown::default());
                        prop_assert!(by < 2);
                        continue;
                    }
                    let Some((_, knows)) = looks.get_mut(&key) else {
                        return Err(TestCaseError::fail(format!("{watcher} was told of {} without looking", word.user)));
                    };
                    if !losing {
                        *knows = Some(word.shown);
                    }
                }
            }
            // Who has parted looks no longer, whether they were told or not.
            if let Step::Part(of, by) = step {
                looks.retain(|(user, _), (right, _)| *user != of || *right != by);
            }
        }
        for ((of, watcher), (_, knows)) in &looks {
            prop_assert_eq!(*knows, Some(truth[usize::from(*of)]), "u{} of u{}", watcher, of);
        }
        prop_assert!(board.watches() >= looks.len());
    }
}
