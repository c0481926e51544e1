//! Channels: few write, many read, and whoever wants to may come.

use chappe_schema::{
    limit::{CHANNEL_MEMBERS_MAX, FORMER_MEMBERS_FACTOR, SMALL_MEMBERS_MAX},
    receipt::Progress,
};

use super::{super::Members, *};

fn channel(members: &[&str], open: bool) -> Talk {
    let mut talk = Talk::nowhere();
    let create = Create { open, ..creation(ConversationKind::Channel, members, HistoryAccess::All) };
    talk.ok("ada", Command::ConversationCreate(Box::new(create)));
    talk
}

fn update(update: Update) -> Command {
    Command::ConversationUpdate { conversation: CONVERSATION, update: Box::new(update) }
}

fn opened(open: bool) -> Command {
    update(Update { open: Some(open), ..Update::default() })
}

fn joined(talk: &mut Talk, who: &str) -> Result<bool, Code> {
    talk.judge(who, fresh(), &JOIN).map(|reply| match reply {
        Reply::Changed { changed, .. } => changed,
        other => panic!("{other:?}"),
    })
}

#[test]
fn few_write_and_everybody_reacts() {
    let mut talk = channel(&["bob", "eve"], false);
    let seq = talk.send("ada", "news").seq;
    assert_eq!(talk.judge("bob", fresh(), &send("me too")), Err(Code::Forbidden));
    assert_eq!(talk.judge("max", fresh(), &send("hi")), Err(Code::ConversationNotFound));
    talk.ok("bob", react(seq, "+1"));
    talk.ok("ada", role("bob", Role::Admin));
    let of_bob = talk.send("bob", "now I may").seq;
    talk.ok("bob", edit(of_bob, "better"));
    // Whoever may write no more does not write by editing; what is theirs they may take away.
    talk.ok("ada", role("bob", Role::Member));
    assert_eq!(talk.judge("bob", fresh(), &edit(of_bob, "worse")), Err(Code::Forbidden));
    talk.ok("bob", delete(of_bob));
    // A group is another thing.
    let mut group = Talk::group(&["bob"]);
    group.send("bob", "here I may");
}

#[test]
fn whoever_wants_to_joins_an_open_channel_and_no_other() {
    let mut talk = channel(&[], false);
    assert_eq!(joined(&mut talk, "bob"), Err(Code::ConversationNotFound));
    talk.ok("ada", opened(true));
    assert_eq!(joined(&mut talk, "bob"), Ok(true));
    assert_eq!(joined(&mut talk, "bob"), Ok(false), "a member already");
    assert_eq!(joined(&mut talk, "ada"), Ok(false));
    assert_eq!(talk.state.members.get(&user("bob")).map(|bob| bob.role), Some(Role::Member));
    // The first answer is given again, whatever has become of it.
    let id = fresh();
    let first = talk.judge("eve", id, &JOIN);
    talk.ok("eve", LEAVE);
    assert_eq!(talk.judge("eve", id, &JOIN), first);
    assert_eq!(talk.state.members.get(&user("eve")), None);
    talk.ok("ada", opened(false));
    assert_eq!(joined(&mut talk, "max"), Err(Code::ConversationNotFound));
    assert_eq!(joined(&mut talk, "eve"), Err(Code::ConversationNotFound));
    talk.ok("ada", DELETE);
    assert_eq!(joined(&mut talk, "max"), Err(Code::ConversationNotFound));
    // Groups and pairs are by invitation.
    let mut group = Talk::group(&["bob"]);
    assert_eq!(joined(&mut group, "max"), Err(Code::ConversationNotFound));
    assert_eq!(group.judge("ada", fresh(), &opened(true)), Err(Code::Invalid));
    assert_eq!(joined(&mut Talk::nowhere(), "max"), Err(Code::ConversationNotFound));
}

#[test]
fn who_was_removed_does_not_come_back_by_themselves() {
    let mut talk = channel(&[], true);
    for name in ["bob", "eve"] {
        joined(&mut talk, name).unwrap();
    }
    talk.ok("ada", remove("bob"));
    talk.ok("eve", LEAVE);
    let barred = |talk: &mut Talk| (joined(talk, "bob"), joined(talk, "eve"));
    assert_eq!(barred(&mut talk), (Err(Code::ConversationNotFound), Ok(true)));
    // Not after a restart either, from a snapshot or from the log.
    talk.state = Conversation::from_snapshot(CONVERSATION, talk.state.snapshot().unwrap()).unwrap();
    assert_eq!(barred(&mut talk), (Err(Code::ConversationNotFound), Ok(false)));
    let mut again = Talk::nowhere();
    talk.log.iter().for_each(|event| again.state.apply(event));
    assert_eq!(barred(&mut again), (Err(Code::ConversationNotFound), Ok(false)));
    // Somebody else may think better of it.
    talk.ok("ada", add("bob", Role::Member));
    talk.ok("bob", LEAVE);
    assert_eq!(joined(&mut talk, "bob"), Ok(true));
}

#[test]
fn a_channel_is_an_audience_however_small() {
    let mut talk = channel(&["bob"], true);
    let view = |talk: &mut Talk| match talk.ok("bob", GET) {
        Reply::Conversation(view) => (view.large, view.settings.receipts_off, view.settings.open, view.members),
        other => panic!("{other:?}"),
    };
    assert_eq!(view(&mut talk), (true, true, true, 2));
    assert!(talk.state.is_large() && !talk.state.shows_receipts());
    let receipts = update(Update { receipts: Some(true), ..Update::default() });
    assert_eq!(talk.judge("ada", fresh(), &receipts), Err(Code::Invalid));
    // Its events are for whoever listens, and for those whom they are about.
    let about = Event::clone(&talk.log[0]);
    let mut audience = |fact| talk.state.audience(&Event { fact, ..about.clone() });
    let listeners = |users: &[&str]| Audience::Listeners(users.iter().map(|name| user(name)).collect());
    let said = Fact::MessageNew { body: body("x"), mentions: None };
    assert_eq!(*audience(said), listeners(&[]));
    assert_eq!(*audience(Fact::MemberJoined { user: user("eve"), role: Role::Member }), listeners(&["eve"]));
    // What each has not read is counted all the same.
    talk.send("ada", "one");
    let all = Mentions { users: Vec::new(), all: true }.checked().unwrap();
    talk.ok("ada", Command::MessageSend { conversation: CONVERSATION, body: body("two"), mentions: all });
    let standing = talk.state.standing(&user("bob")).unwrap();
    assert_eq!((standing.counts.unread, standing.counts.mentions, standing.large), (2, 1, true));
}

#[test]
fn members_are_bounded_and_so_are_those_who_left() {
    let mut talk = channel(&[], true);
    for n in talk.state.members.len()..CHANNEL_MEMBERS_MAX {
        talk.state.members.join(&user(&format!("user-{n:06}")), Role::Member, 1, 0);
    }
    assert_eq!(joined(&mut talk, "one-more"), Err(Code::MemberLimit));
    assert_eq!(talk.judge("ada", fresh(), &add("one-more", Role::Member)), Err(Code::MemberLimit));
    talk.ok("ada", remove("user-000001"));
    assert_eq!(joined(&mut talk, "one-more"), Ok(true));
    assert!(talk.state.members.heap_bytes() < 24 << 20, "{} bytes", talk.state.members.heap_bytes());
    // All of them leave, and as many others come and leave.
    let come_and_go = |talk: &mut Talk, names: &dyn Fn(usize) -> String| {
        for n in 0..CHANNEL_MEMBERS_MAX {
            let name = user(&names(n));
            if talk.state.members.known() < FORMER_MEMBERS_FACTOR * CHANNEL_MEMBERS_MAX {
                talk.state.members.join(&name, Role::Member, 2, 0);
            }
            talk.state.members.leave(&name, 3, false);
        }
    };
    come_and_go(&mut talk, &|n| format!("user-{n:06}"));
    come_and_go(&mut talk, &|n| format!("other-{n:06}"));
    assert!(talk.state.members.len() < 10);
    assert_eq!(joined(&mut talk, "too-late"), Err(Code::MemberLimit));
    assert_eq!(joined(&mut talk, "user-000077"), Ok(true), "who is known comes back");
}

/// A snapshot of very many members holds none of them: each has a row.
#[test]
fn a_snapshot_of_very_many_is_as_small_as_one_of_few() {
    let mut talk = channel(&[], true);
    for n in 0..20_000 {
        talk.state.members.join(&user(&format!("user-{n:06}")), Role::Member, 1, 0);
    }
    talk.send("ada", "news");
    assert_eq!(talk.state.members.take_stale(talk.state.head).len(), 0, "not before there is a snapshot");
    talk.state.members.part();
    let snapshot = talk.state.snapshot().unwrap();
    assert!(snapshot.len() < 1_000, "{} bytes", snapshot.len());
    let rows = talk.state.members.take_stale(talk.state.head);
    assert_eq!((rows.len(), talk.state.members.take_stale(9).len()), (20_001, 0));
    // One who joins is one row, and so is one who writes.
    joined(&mut talk, "bob").unwrap();
    talk.send("ada", "more");
    let head = talk.state.head;
    let changed = talk.state.members.take_stale(head);
    assert_eq!(changed.iter().map(|row| (&*row.user, row.as_of)).collect::<Vec<_>>(), [("ada", head), ("bob", head)]);
    assert!(Conversation::members_stand_apart(snapshot.clone()));
    let mut again = Conversation::from_snapshot(CONVERSATION, snapshot).unwrap();
    assert_eq!(again.members.len(), 0);
    again.members = Members::from_rows(rows, again.head).unwrap();
    talk.log[again.head as usize..].iter().for_each(|event| again.apply(event));
    again.members.caught_up();
    assert!(again.members.all().eq(talk.state.members.all()));
    // How far they have got is kept in parts.
    for n in 0..2_000 {
        let said = Progress { conversation: CONVERSATION, delivered: None, read: Some(1) };
        again.progress(&user(&format!("user-{n:06}")), &said, false).unwrap();
    }
    let mut parts = Vec::new();
    while let Some((part, items)) = again.take_unkept() {
        assert!((1..=64).contains(&part) && items.len() < 100);
        parts.push((part, items.len()));
    }
    assert_eq!(parts.iter().map(|(_, items)| items).sum::<usize>(), 2_000);
    let distinct: std::collections::BTreeSet<u8> = parts.iter().map(|(part, _)| *part).collect();
    assert_eq!(distinct.len(), parts.len());
}

/// A group grows large and small again; it stays what it is.
#[test]
fn a_group_is_large_by_its_members() {
    let mut talk = Talk::group(&["bob"]);
    for n in 2..SMALL_MEMBERS_MAX {
        talk.state.members.join(&user(&format!("user-{n:03}")), Role::Member, 1, 0);
    }
    assert!(!talk.state.is_large());
    talk.ok("ada", add("eve", Role::Member));
    assert!(talk.state.is_large());
    talk.send("bob", "in a group everybody writes");
    talk.ok("eve", LEAVE);
    assert!(!talk.state.is_large());
}
