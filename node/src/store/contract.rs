//! What every store must do, as tests that every store passes.
//!
//! A store brings a [`Harness`]; [`run`] takes a fresh one through each of the [`CASES`]. Where a store cannot suffer
//! something (there are no zombies behind a lock), its harness says so, and the case ends early. A store that nodes share
//! passes those of [`cluster`] as well.

// A test suite, compiled for other crates too: a surprise is to end it, as loudly as in any test.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chappe_schema::{
    body::Body,
    event::{Event, Fact},
    id::{CommandId, ConversationId, EntityId, Seq, UserId},
    reaction::ReactionKey,
    stored::{
        LogRow, StoredId, StoredIdBlock, StoredIdPrints, StoredInbox, StoredMember, StoredOverlay, StoredReaction,
        StoredReactionCount, StoredReceipt,
    },
};
use uuid::Uuid;

use super::{
    Append, Confirmation, Done, Error, MemberRows, PAGE_SCAN_MAX, Page, PageRequest, Part, Projection, Purge, Reacted,
    ReactedRequest, Recovered, Session, Show, Store, Written,
};
use crate::recovery::{Basis, Found, resolve};

pub mod cluster;

/// A store under test, and its surroundings.
pub trait Harness {
    /// The present owner's store. Nobody keeps it beyond the next [`succeed`](Self::succeed).
    fn store(&self) -> Arc<dyn Store>;

    /// The present owner ends without a word, and a successor opens the same data: fenced off from its predecessors and
    /// ready to read.
    fn succeed(&mut self);

    /// Lets a little time pass.
    fn turn(&mut self);

    /// The store of the owner before the present one, which does not know of its succession. `None` where there is no such thing.
    fn zombie(&self) -> Option<Arc<dyn Store>>;

    /// The next append will be written, and its reply lost. `false` where that cannot be.
    fn lose_next_reply(&mut self) -> bool;

    /// The next append will arrive only with [`deliver_late`](Self::deliver_late). `false` where that cannot be.
    fn delay_next_append(&mut self) -> bool;

    /// Whatever is late arrives.
    fn deliver_late(&mut self);
}

/// One promise of a store.
pub type Case = fn(&mut dyn Harness);

/// The promises, by name.
pub const CASES: &[(&str, Case)] = &[
    ("sessions follow each other", sessions_follow_each_other),
    ("what is durable is found", what_is_durable_is_found),
    ("an entity without a log is empty", an_entity_without_a_log_is_empty),
    ("a repetition changes nothing", a_repetition_changes_nothing),
    ("one group holds several appends of one entity", one_group_holds_several_appends_of_one_entity),
    ("recovery begins at the snapshot", recovery_begins_at_the_snapshot),
    ("snapshots never go back", snapshots_never_go_back),
    ("overlays never go back", overlays_never_go_back),
    ("reactions never go back", reactions_never_go_back),
    ("who reacted is paged by user", who_reacted_is_paged_by_user),
    ("pages of messages carry the reader's reactions", pages_of_messages_carry_the_readers_reactions),
    ("inbox numbers only grow", inbox_numbers_only_grow),
    ("receipts only rise", receipts_only_rise),
    ("receipts of parts of the members stand side by side", receipts_of_parts_stand_side_by_side),
    ("members never go back", members_never_go_back),
    ("members are paged by user", members_are_paged_by_user),
    ("pages read upwards", pages_read_upwards),
    ("pages read downwards", pages_read_downwards),
    ("pages end early by bytes", pages_end_early_by_bytes),
    ("pages of messages carry overlays", pages_of_messages_carry_overlays),
    ("pages of events tell what is deleted", pages_of_events_tell_what_is_deleted),
    ("a page looks at a bounded number of events", a_page_looks_at_a_bounded_number_of_events),
    ("large bodies come back", large_bodies_come_back),
    ("ids are found as far back as asked", ids_are_found_as_far_back_as_asked),
    ("a recovery brings the prints of young ids", a_recovery_brings_the_prints_of_young_ids),
    ("what is removed stays removed", what_is_removed_stays_removed),
    ("a bucket is removed as a whole", a_bucket_is_removed_as_a_whole),
    ("a page that begins in what is removed is no end", a_page_that_begins_in_what_is_removed_is_no_end),
    ("a walk meets every conversation", a_walk_meets_every_conversation),
    ("names that begin alike are kept apart", names_that_begin_alike_are_kept_apart),
    ("announcements are owed until they are made", announcements_are_owed_until_they_are_made),
    ("a clean owner is confirmed", a_clean_owner_is_confirmed),
    ("a zombie is told", a_zombie_is_told),
    ("a lost reply is repaired by repetition", a_lost_reply_is_repaired_by_repetition),
    ("a late row changes nothing that is committed", a_late_row_changes_nothing_that_is_committed),
];

/// Takes a store through every case.
pub fn run(make: &dyn Fn() -> Box<dyn Harness>) {
    for (name, case) in CASES {
        println!("contract: {name}");
        case(&mut *make());
    }
}

/// Asks the present owner's store and lets time pass until it answers.
pub fn ask<T: Send + 'static>(harness: &mut dyn Harness, question: impl FnOnce(&dyn Store, Done<T>)) -> T {
    let store = harness.store();
    ask_of(harness, &*store, question)
}

/// [`ask`], of any store.
pub fn ask_of<T: Send + 'static>(
    harness: &mut dyn Harness,
    store: &dyn Store,
    question: impl FnOnce(&dyn Store, Done<T>),
) -> T {
    let (tx, rx) = mpsc::channel();
    // The one who asks waits below, or has failed already.
    let tell = move |answer| {
        let _ = tx.send(answer);
    };
    question(store, Box::new(tell));
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(answer) = rx.try_recv() {
            return answer;
        }
        assert!(Instant::now() < patience, "the store does not answer");
        harness.turn();
    }
}

fn append(harness: &mut dyn Harness, group: Vec<Append>) -> Vec<Written> {
    ask(harness, |store, done| store.append(group, done))
}

/// Appends until it is durable, as an owner does.
pub fn make_durable(harness: &mut dyn Harness, group: &[Append]) {
    for _ in 0..20 {
        let outcomes = append(harness, group.to_vec());
        assert_eq!(outcomes.len(), group.len());
        if outcomes.iter().all(|outcome| *outcome == Written::Durable) {
            return;
        }
    }
    panic!("twenty repetitions are not durable");
}

fn project(harness: &mut dyn Harness, writes: Vec<Projection>) {
    assert_eq!(ask(harness, |store, done| store.project(writes, done)), Ok(()));
}

fn recover(harness: &mut dyn Harness, entity: &EntityId) -> Recovered {
    ask(harness, |store, done| store.recover(entity.clone(), 0, done)).unwrap()
}

fn page(harness: &mut dyn Harness, request: PageRequest) -> Page {
    ask(harness, |store, done| store.page(request, done)).unwrap()
}

fn confirm(harness: &mut dyn Harness, store: &dyn Store) -> Confirmation {
    let (tx, rx) = mpsc::channel();
    let tell = move |confirmation| {
        let _ = tx.send(confirmation);
    };
    if let Some(at_once) = store.confirm(Box::new(tell)) {
        return at_once;
    }
    let patience = Instant::now() + Duration::from_secs(30);
    while Instant::now() < patience {
        if let Ok(confirmation) = rx.try_recv() {
            return confirmation;
        }
        harness.turn();
    }
    panic!("the fence is not read");
}

// === things to write ===

/// A conversation, always another for another number.
#[must_use]
pub fn conversation(number: u128) -> ConversationId {
    ConversationId(Uuid::from_u128(number))
}

/// A user.
#[must_use]
pub fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// A message at `seq`, written at that many milliseconds.
#[must_use]
pub fn message(seq: Seq, text: &str) -> Arc<Event> {
    event(
        seq,
        u128::from(seq),
        Fact::MessageNew { body: Body::parse(&format!("{{\"text\":\"{text}\"}}")).unwrap(), mentions: None },
    )
}

fn edit(seq: Seq, target: Seq) -> Arc<Event> {
    let fact = Fact::MessageUpdated {
        body: Body::parse("{\"text\":\"better\"}").unwrap(),
        previous: 0,
        mentions: None,
        target_n: 0,
    };
    Arc::new(Event { target, ..(*event(seq, u128::from(seq), fact)).clone() })
}

fn event(seq: Seq, id: u128, fact: Fact) -> Arc<Event> {
    Arc::new(Event {
        seq,
        n: seq,
        sender: user("ada"),
        device: None,
        id: CommandId(Uuid::from_u128(id)),
        target: 0,
        created_at: seq,
        hash: seq,
        fact,
    })
}

/// An append of these events.
#[must_use]
pub fn rows(session: Session, entity: &EntityId, cw: Seq, events: Vec<Arc<Event>>) -> Append {
    let epoch = session.epoch;
    let after = if events.first().is_some_and(|event| event.seq > 1) { epoch } else { 0 };
    Append { entity: entity.clone(), epoch, cw, origin: epoch, after, events: events.into(), announce: false }
}

fn session(harness: &dyn Harness) -> Session {
    harness.store().session()
}

/// Writes events `from..=upto`, `pack` to an append; every third is an edit of the one before where `edits`.
fn write_log(harness: &mut dyn Harness, entity: &EntityId, from: Seq, upto: Seq, pack: u64, edits: bool) {
    let session = session(harness);
    let mut first = from;
    let mut group = Vec::new();
    while first <= upto {
        let last = (first + pack - 1).min(upto);
        let event = |seq| if edits && seq % 3 == 0 { edit(seq, seq - 1) } else { message(seq, "hello") };
        group.push(rows(session, entity, first - 1, (first..=last).map(event).collect()));
        first = last + 1;
    }
    make_durable(harness, &group);
}

fn wanted(entity: &EntityId, from: Seq, upto: Seq) -> PageRequest {
    PageRequest {
        entity: entity.clone(),
        from,
        upto,
        newest_first: false,
        show: Show::Log,
        limit: 10,
        bytes_max: usize::MAX,
        reader: None,
    }
}

fn seqs(page: &Page) -> Vec<Seq> {
    page.events.iter().map(|event| event.seq).collect()
}

fn events(rows: &[LogRow]) -> Vec<Arc<Event>> {
    rows.iter().flat_map(|row| row.events.clone()).collect()
}

// === the cases ===

fn sessions_follow_each_other(harness: &mut dyn Harness) {
    let first = session(harness);
    harness.succeed();
    let second = session(harness);
    harness.succeed();
    let third = session(harness);
    assert!(first.epoch < second.epoch && second.epoch < third.epoch, "{first:?} {second:?} {third:?}");
    assert!(first.id < second.id && second.id < third.id);
    assert_eq!(first.generation, third.generation);
}

fn what_is_durable_is_found(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let first = session(harness);
    let written: Vec<_> = (1..=5).map(|seq| message(seq, "hello")).collect();
    make_durable(harness, &[rows(first, &entity, 0, written[..2].to_vec())]);
    // Written again from an earlier owner's, above another one's: only who shares the log has to know.
    make_durable(harness, &[Append { origin: 7, after: 5, ..rows(first, &entity, 2, written[2..].to_vec()) }]);
    let is_fenced = harness.store().is_fenced();
    for _ in 0..2 {
        let found = recover(harness, &entity);
        assert_eq!(found.snapshot, None);
        assert_eq!(events(&found.rows), written);
        for row in &found.rows {
            let late = row.events[0].seq > 2;
            assert_eq!((row.epoch, row.cw), (first.epoch, if late { 2 } else { 0 }));
            let expected = match row.events[0].seq {
                _ if !is_fenced => (first.epoch, 0),
                1 => (first.epoch, 0),
                2 => (first.epoch, first.epoch),
                3 => (7, 5),
                _ => (7, 7),
            };
            assert_eq!((row.origin, row.after), expected, "event {}", row.events[0].seq);
        }
        harness.succeed();
    }
}

fn an_entity_without_a_log_is_empty(harness: &mut dyn Harness) {
    for entity in [EntityId::from(conversation(1)), user("nobody").into()] {
        let found = recover(harness, &entity);
        assert!(found.snapshot.is_none() && found.rows.is_empty() && found.inbox.is_empty());
        let page = page(harness, wanted(&entity, 1, 10));
        assert!(page.complete && page.events.is_empty());
        assert_eq!(ask(harness, |store, done| store.overlays(entity.clone(), vec![1, 2], done)), Ok(vec![]));
        let keys = vec![key("+1")];
        assert_eq!(ask(harness, |store, done| store.reactions(entity.clone(), 1, user("ada"), keys, done)), Ok(vec![]));
        assert_eq!(reacted(harness, &entity, 1, "+1", None, 9), (vec![], true));
        let id = CommandId(Uuid::from_u128(1));
        assert_eq!(ask(harness, |store, done| store.find_id(entity, user("ada"), id, (0, 0), done)), Ok(None));
    }
    assert_eq!(ask(harness, |store, done| store.announced(done)), Ok(vec![]));
}

fn a_repetition_changes_nothing(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let session = session(harness);
    let one = rows(session, &entity, 0, vec![message(1, "a"), message(2, "b")]);
    make_durable(harness, std::slice::from_ref(&one));
    make_durable(harness, &[rows(session, &entity, 2, vec![message(3, "c")])]);
    make_durable(harness, std::slice::from_ref(&one));
    make_durable(harness, &[one.clone(), one]);
    assert_eq!(events(&recover(harness, &entity).rows), [message(1, "a"), message(2, "b"), message(3, "c")]);
    harness.succeed();
    assert_eq!(events(&recover(harness, &entity).rows), [message(1, "a"), message(2, "b"), message(3, "c")]);
}

fn one_group_holds_several_appends_of_one_entity(harness: &mut dyn Harness) {
    let (one, other) = (conversation(1).into(), EntityId::from(user("ada")));
    let session = session(harness);
    let group = [
        rows(session, &one, 0, vec![message(1, "a"), message(2, "b")]),
        rows(session, &other, 0, vec![message(1, "x")]),
        rows(session, &one, 0, vec![message(3, "c")]),
    ];
    assert_eq!(append(harness, group.to_vec()), vec![Written::Durable; 3]);
    assert_eq!(events(&recover(harness, &one).rows), [message(1, "a"), message(2, "b"), message(3, "c")]);
    assert_eq!(events(&recover(harness, &other).rows), [message(1, "x")]);
}

fn snapshot(entity: &EntityId, seq: Seq, bytes: &'static str) -> Projection {
    Projection::Snapshot { entity: entity.clone(), seq, bytes: Bytes::from_static(bytes.as_bytes()) }
}

fn recovery_begins_at_the_snapshot(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 12, 4, false);
    project(harness, vec![snapshot(&entity, 8, "eight")]);
    for _ in 0..2 {
        let found = recover(harness, &entity);
        assert_eq!(found.snapshot, Some((8, Bytes::from_static(b"eight"))));
        assert_eq!(events(&found.rows).iter().map(|event| event.seq).collect::<Vec<_>>(), [9, 10, 11, 12]);
        harness.succeed();
    }
    // In the middle of a packed row: what stands above it must be there, what stands below it may.
    project(harness, vec![snapshot(&entity, 10, "ten")]);
    let above: Vec<Seq> =
        events(&recover(harness, &entity).rows).iter().map(|event| event.seq).filter(|seq| *seq > 10).collect();
    assert_eq!(above, [11, 12]);
}

fn snapshots_never_go_back(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let newest = |harness: &mut dyn Harness| {
        recover(harness, &entity).snapshot.map(|(seq, bytes)| (seq, String::from_utf8(bytes.to_vec()).unwrap()))
    };
    project(harness, vec![snapshot(&entity, 5, "five")]);
    project(harness, vec![snapshot(&entity, 3, "three")]);
    assert_eq!(newest(harness), Some((5, "five".to_owned())));
    project(harness, vec![snapshot(&entity, 9, "nine"), snapshot(&entity, 7, "seven")]);
    assert_eq!(newest(harness), Some((9, "nine".to_owned())));
    harness.succeed();
    project(harness, vec![snapshot(&entity, 8, "eight")]);
    assert_eq!(newest(harness), Some((9, "nine".to_owned())));
}

fn overlay(entity: &EntityId, target: Seq, as_of: Seq, body: &'static str) -> Projection {
    let overlay = StoredOverlay {
        as_of,
        body: Some(Bytes::from_static(body.as_bytes())),
        edit: as_of,
        ..StoredOverlay::default()
    };
    Projection::Overlay { entity: entity.clone(), target, overlay }
}

fn overlays_never_go_back(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let body = |harness: &mut dyn Harness, target| {
        let found = ask(harness, |store, done| store.overlays(entity.clone(), vec![target, 99], done)).unwrap();
        found.into_iter().next().map(|(of, overlay)| {
            assert_eq!(of, target);
            (overlay.as_of, overlay.body.unwrap())
        })
    };
    project(harness, vec![overlay(&entity, 2, 7, "seven"), overlay(&entity, 3, 8, "eight")]);
    project(harness, vec![overlay(&entity, 2, 5, "five")]);
    assert_eq!(body(harness, 2), Some((7, Bytes::from_static(b"seven"))));
    project(harness, vec![overlay(&entity, 2, 11, "eleven"), overlay(&entity, 2, 9, "nine")]);
    for _ in 0..2 {
        assert_eq!(body(harness, 2), Some((11, Bytes::from_static(b"eleven"))));
        assert_eq!(body(harness, 3), Some((8, Bytes::from_static(b"eight"))));
        assert_eq!(body(harness, 1), None);
        harness.succeed();
    }
}

fn key(text: &str) -> ReactionKey {
    ReactionKey::new(text).unwrap()
}

fn reaction(entity: &EntityId, target: Seq, with: &str, who: &str, seq: Seq, removed: bool) -> Projection {
    let reaction = StoredReaction { seq, at: seq * 10, removed };
    Projection::Reaction { entity: entity.clone(), target, key: key(with), user: user(who), reaction }
}

/// Users with the seqs of their reactions, negative where they were taken back, and whether these are all.
fn reacted(
    harness: &mut dyn Harness,
    entity: &EntityId,
    target: Seq,
    with: &str,
    after: Option<&str>,
    limit: usize,
) -> (Vec<(String, i64)>, bool) {
    let request = ReactedRequest { entity: entity.clone(), target, key: key(with), after: after.map(user), limit };
    let Reacted { rows, complete } = ask(harness, |store, done| store.reacted(request, done)).unwrap();
    let row = |(user, row): (UserId, StoredReaction)| {
        assert_eq!(row.at, row.seq * 10);
        (user.to_string(), if row.removed { -(row.seq as i64) } else { row.seq as i64 })
    };
    (rows.into_iter().map(row).collect(), complete)
}

fn reactions_never_go_back(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let one = |seq, removed| reaction(&entity, 2, "+1", "ada", seq, removed);
    project(harness, vec![one(5, false)]);
    project(harness, vec![one(7, true), one(6, false)]);
    project(harness, vec![one(4, false)]);
    let mut expected = -7;
    for _ in 0..2 {
        assert_eq!(reacted(harness, &entity, 2, "+1", None, 9), (vec![("ada".into(), expected)], true));
        let keys = vec![key("-1"), key("+1")];
        let own = ask(harness, |store, done| store.reactions(entity.clone(), 2, user("ada"), keys, done)).unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!((&own[0].0, own[0].1.seq as i64), (&key("+1"), expected.abs()));
        harness.succeed();
        project(harness, vec![one(8, false), one(7, true)]);
        expected = 8;
    }
}

fn who_reacted_is_paged_by_user(harness: &mut dyn Harness) {
    let (entity, other): (EntityId, EntityId) = (conversation(1).into(), conversation(2).into());
    let mut writes = Vec::new();
    for (seq, who) in (10..).zip(["b", "a", "ab", "aa", "zo\u{eb}"]) {
        writes.push(reaction(&entity, 2, "+1", who, seq, who == "ab"));
        // What stands beside it in every way.
        writes.push(reaction(&entity, 2, "+", who, seq, false));
        writes.push(reaction(&entity, 2, "+11", who, seq, false));
        writes.push(reaction(&entity, 3, "+1", who, seq, false));
        writes.push(reaction(&other, 2, "+1", who, seq, false));
    }
    writes.push(reaction(&entity, 2, "+", "1x", 40, false));
    project(harness, writes);
    let page = |harness: &mut dyn Harness, after, limit| {
        let (rows, complete) = reacted(harness, &entity, 2, "+1", after, limit);
        (rows.into_iter().map(|(who, seq)| format!("{who}{seq}")).collect::<Vec<_>>().join(" "), complete)
    };
    assert_eq!(page(harness, None, 9), ("a11 aa13 ab-12 b10 zo\u{eb}14".into(), true));
    assert_eq!(page(harness, None, 2), ("a11 aa13".into(), false));
    assert_eq!(page(harness, Some("aa"), 2), ("ab-12 b10".into(), false));
    assert_eq!(page(harness, Some("b"), 2), ("zo\u{eb}14".into(), true));
    assert_eq!(page(harness, Some("a0"), 1), ("aa13".into(), false));
    assert_eq!(page(harness, Some("zz"), 1), (String::new(), true));
}

fn pages_of_messages_carry_the_readers_reactions(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 6, 2, false);
    let counted = |target: Seq, keys: &[&str]| {
        let reactions = keys.iter().map(|key| StoredReactionCount { key: (*key).to_owned(), count: 2 }).collect();
        let overlay = StoredOverlay { as_of: 9, reactions, ..StoredOverlay::default() };
        Projection::Overlay { entity: entity.clone(), target, overlay }
    };
    let writes = vec![
        counted(2, &["+1", "\u{1f44d}"]),
        counted(4, &["+1"]),
        counted(5, &["+1"]),
        reaction(&entity, 2, "\u{1f44d}", "ada", 8, false),
        reaction(&entity, 2, "+1", "bob", 8, false),
        reaction(&entity, 4, "+1", "ada", 9, true),
        // Nobody has it any more, so nobody asks.
        reaction(&entity, 2, "-1", "ada", 9, true),
        reaction(&entity, 5, "+1", "bob", 9, false),
    ];
    project(harness, writes);
    let shown =
        |reader: Option<&str>| PageRequest { show: Show::Messages, reader: reader.map(user), ..wanted(&entity, 1, 6) };
    for newest_first in [false, true] {
        let own = |harness: &mut dyn Harness, reader| {
            let page = page(harness, PageRequest { newest_first, ..shown(reader) });
            assert_eq!((page.events.len(), page.overlays.len()), (6, 3));
            let mut own: Vec<_> =
                page.own.into_iter().map(|(of, key, row)| (of, key.as_str().to_owned(), row.removed)).collect();
            own.sort();
            own
        };
        assert_eq!(own(harness, Some("ada")), [(2, "\u{1f44d}".to_owned(), false), (4, "+1".to_owned(), true)]);
        assert_eq!(own(harness, Some("bob")), [(2, "+1".to_owned(), false), (5, "+1".to_owned(), false)]);
        assert_eq!(own(harness, Some("eve")), []);
        assert_eq!(own(harness, None), []);
    }
    // Counts count.
    let size = message(1, "hello").body_len();
    let few = page(harness, PageRequest { bytes_max: 2 * size + 2, ..shown(None) });
    assert_eq!(seqs(&few), [1]);
}

fn inbox_numbers_only_grow(harness: &mut dyn Harness) {
    let ada = user("ada");
    let changed = |last_seq, last_n, read_n, change, change_epoch| StoredInbox {
        last_seq,
        last_n,
        read_n,
        change,
        change_epoch,
        message_at: 0,
    };
    let at = |last_seq, last_n, read_n, change| changed(last_seq, last_n, read_n, change, 0);
    let write = |position| Projection::Inbox { user: ada.clone(), conversation: conversation(1), position };
    project(harness, vec![write(at(5, 4, 1, 10))]);
    project(harness, vec![write(at(6, 5, 0, 9)), write(at(4, 3, 2, 11))]);
    let other = Projection::Inbox { user: ada.clone(), conversation: conversation(2), position: at(1, 1, 1, 1) };
    project(harness, vec![other]);
    // Another owner counts from the beginning.
    project(
        harness,
        vec![Projection::Inbox { user: ada.clone(), conversation: conversation(3), position: at(1, 1, 1, 9) }],
    );
    for position in [changed(1, 1, 1, 2, 7 << 48), changed(1, 1, 1, 500, 6 << 48)] {
        project(harness, vec![Projection::Inbox { user: ada.clone(), conversation: conversation(3), position }]);
    }
    for _ in 0..2 {
        let mut inbox = recover(harness, &ada.clone().into()).inbox;
        inbox.sort_by_key(|(conversation, _)| *conversation);
        let third = changed(1, 1, 1, 2, 7 << 48);
        let expected = [at(6, 5, 2, 11), at(1, 1, 1, 1), third];
        assert_eq!(inbox, [1, 2, 3].map(|n| (conversation(n), expected[n as usize - 1])));
        harness.succeed();
    }
}

fn receipts_only_rise(harness: &mut dyn Harness) {
    let item = |user: &str, read_n, delivered_n, shown_n| StoredReceipt {
        user: user.to_owned(),
        read_n,
        delivered_n,
        shown_n,
    };
    let write = |n, items: &[StoredReceipt]| Projection::Receipts {
        conversation: conversation(n),
        part: 0,
        items: items.to_vec(),
    };
    project(harness, vec![write(1, &[item("bob", 3, 5, 1), item("ada", 1, 1, 1)])]);
    // Late, in one call and in several; of some members only.
    project(harness, vec![write(1, &[item("bob", 2, 6, 2)]), write(1, &[item("bob", 1, 1, 3), item("eve", 9, 9, 0)])]);
    project(harness, vec![write(2, &[item("bob", 7, 7, 7)])]);
    project(harness, vec![write(1, &[item("ada", 0, 0, 0)])]);
    // A snapshot stands beside them and takes nothing away.
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 2, 7, false);
    project(harness, vec![snapshot(&entity, 2, "state")]);
    for _ in 0..2 {
        let receipts = |harness: &mut dyn Harness, n| {
            let mut receipts = recover(harness, &conversation(n).into()).receipts;
            receipts.sort_by(|a, b| a.user.cmp(&b.user));
            receipts
        };
        assert_eq!(receipts(harness, 1), [item("ada", 1, 1, 1), item("bob", 3, 6, 3), item("eve", 9, 9, 0)]);
        assert_eq!(receipts(harness, 2), [item("bob", 7, 7, 7)]);
        assert_eq!(receipts(harness, 3), []);
        harness.succeed();
    }
}

fn receipts_of_parts_stand_side_by_side(harness: &mut dyn Harness) {
    let item = |user: &str, read_n| StoredReceipt { user: user.to_owned(), read_n, ..StoredReceipt::default() };
    let write = |n, part, items: &[StoredReceipt]| Projection::Receipts {
        conversation: conversation(n),
        part,
        items: items.to_vec(),
    };
    // Written together at first, by parts later.
    project(harness, vec![write(1, 0, &[item("ada", 1), item("bob", 2)])]);
    project(harness, vec![write(1, 1, &[item("ada", 5)]), write(1, 64, &[item("bob", 4), item("eve", 3)])]);
    project(harness, vec![write(1, 1, &[item("ada", 4)]), write(2, 1, &[item("ada", 9)])]);
    for _ in 0..2 {
        let read_n = |harness: &mut dyn Harness, n, user: &str| {
            let receipts = recover(harness, &conversation(n).into()).receipts;
            receipts.iter().filter(|item| item.user == user).map(|item| item.read_n).max()
        };
        assert_eq!(["ada", "bob", "eve"].map(|user| read_n(harness, 1, user)), [Some(5), Some(4), Some(3)]);
        assert_eq!(["ada", "bob"].map(|user| read_n(harness, 2, user)), [Some(9), None]);
        harness.succeed();
    }
}

fn member(user: &str, role: i32, as_of: Seq) -> StoredMember {
    StoredMember { user: user.to_owned(), role, intervals: vec![1], as_of, ..StoredMember::default() }
}

fn members_of(harness: &mut dyn Harness, n: u128, after: Option<&str>, limit: usize) -> MemberRows {
    let after = after.map(|user| UserId::new(user).unwrap());
    ask(harness, |store, done| store.members(conversation(n), after, limit, done)).unwrap()
}

fn members_never_go_back(harness: &mut dyn Harness) {
    let write = |rows: &[StoredMember]| Projection::Members { conversation: conversation(1), rows: rows.to_vec() };
    assert_eq!(members_of(harness, 1, None, 10), MemberRows { rows: Vec::new(), complete: true });
    project(harness, vec![write(&[member("bob", 1, 5), member("ada", 1, 5)])]);
    // Late, in one call and in several.
    project(harness, vec![write(&[member("bob", 2, 7)]), write(&[member("bob", 3, 6), member("eve", 1, 6)])]);
    project(harness, vec![write(&[member("ada", 3, 4)])]);
    for _ in 0..2 {
        let rows = members_of(harness, 1, None, 10).rows;
        assert_eq!(rows, [member("ada", 1, 5), member("bob", 2, 7), member("eve", 1, 6)]);
        harness.succeed();
    }
}

fn members_are_paged_by_user(harness: &mut dyn Harness) {
    // More than one statement writes, of conversations and users whose names begin alike.
    let name = |n: usize| format!("user-{:03}", n * 7 % 250);
    let rows: Vec<StoredMember> = (0..250).map(|n| member(&name(n), 1, 9)).collect();
    project(harness, vec![Projection::Members { conversation: conversation(1), rows }]);
    let others = vec![member("user-0", 1, 9), member("zoë", 1, 9)];
    project(harness, vec![Projection::Members { conversation: conversation(2), rows: others }]);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = members_of(harness, 1, after.as_deref(), 99);
        assert!(page.rows.len() <= 99);
        found.extend(page.rows.iter().map(|row| row.user.clone()));
        after = found.last().cloned();
        if page.complete {
            break;
        }
    }
    assert_eq!(found, (0..250).map(|n| format!("user-{n:03}")).collect::<Vec<_>>());
    assert_eq!(members_of(harness, 1, Some("user-249"), 99), MemberRows { rows: Vec::new(), complete: true });
    let exact = members_of(harness, 2, None, 2);
    assert_eq!((exact.rows.len(), exact.complete), (2, true));
    assert_eq!(members_of(harness, 2, Some("user-0"), 1).rows, [member("zoë", 1, 9)]);
}

fn pages_read_upwards(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 40, 7, false);
    let whole = page(harness, PageRequest { limit: 100, ..wanted(&entity, 1, 40) });
    assert_eq!(seqs(&whole), (1..=40).collect::<Vec<_>>());
    assert_eq!((whole.complete, whole.reached), (true, 40));
    assert_eq!(whole.events[4], message(5, "hello"));
    let first = page(harness, wanted(&entity, 3, 40));
    assert_eq!((seqs(&first), first.complete, first.reached), ((3..=12).collect(), false, 12));
    let exact = page(harness, wanted(&entity, 3, 12));
    assert_eq!((seqs(&exact), exact.complete, exact.reached), ((3..=12).collect(), true, 12));
    let one = page(harness, wanted(&entity, 8, 8));
    assert_eq!((seqs(&one), one.complete), (vec![8], true));
    // Nothing above what was asked for, though it stands there; nothing invented beyond the end.
    let end = page(harness, wanted(&entity, 38, 45));
    assert_eq!((seqs(&end), end.complete), (vec![38, 39, 40], true));
    let none = page(harness, wanted(&entity, 9, 8));
    assert_eq!((seqs(&none), none.complete), (vec![], true));
    let zero = page(harness, PageRequest { limit: 0, ..wanted(&entity, 5, 8) });
    assert_eq!((seqs(&zero), zero.complete, zero.reached), (vec![], false, 4));
    let from_zero = page(harness, wanted(&entity, 0, 3));
    assert_eq!((seqs(&from_zero), from_zero.complete), (vec![1, 2, 3], true));
}

fn pages_read_downwards(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 40, 7, false);
    let down = |from, upto| PageRequest { newest_first: true, ..wanted(&entity, from, upto) };
    let last = page(harness, down(1, 40));
    assert_eq!((seqs(&last), last.complete, last.reached), ((31..=40).collect(), false, 31));
    let middle = page(harness, down(1, 24));
    assert_eq!((seqs(&middle), middle.complete, middle.reached), ((15..=24).collect(), false, 15));
    let first = page(harness, down(1, 10));
    assert_eq!((seqs(&first), first.complete, first.reached), ((1..=10).collect(), true, 1));
    let within_a_pack = page(harness, down(9, 13));
    assert_eq!((seqs(&within_a_pack), within_a_pack.complete, within_a_pack.reached), ((9..=13).collect(), true, 9));
    let beyond = page(harness, down(36, 50));
    assert_eq!((seqs(&beyond), beyond.complete), ((36..=40).collect(), true));
    let zero = page(harness, PageRequest { limit: 0, ..down(5, 8) });
    assert_eq!((zero.complete, zero.reached), (false, 9));
}

fn pages_end_early_by_bytes(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 1, 10, 3, false);
    let size = message(1, "hello").body_len();
    let some = page(harness, PageRequest { bytes_max: 3 * size, ..wanted(&entity, 1, 10) });
    assert_eq!((seqs(&some), some.complete, some.reached), (vec![1, 2, 3], false, 3));
    let least = page(harness, PageRequest { bytes_max: 1, ..wanted(&entity, 4, 10) });
    assert_eq!((seqs(&least), least.complete, least.reached), (vec![4], false, 4));
    let newest = page(harness, PageRequest { bytes_max: 2 * size, newest_first: true, ..wanted(&entity, 1, 10) });
    assert_eq!((seqs(&newest), newest.complete, newest.reached), (vec![9, 10], false, 9));
    let last = page(harness, PageRequest { bytes_max: size, ..wanted(&entity, 10, 10) });
    assert!(last.complete);
}

fn pages_of_messages_carry_overlays(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    // 1 2 e 4 5 e 7 8 e 10 11 e
    write_log(harness, &entity, 1, 12, 5, true);
    project(harness, [2, 5, 8, 11].map(|target| overlay(&entity, target, target + 1, "better")).to_vec());
    let messages = |from, upto, limit| PageRequest { show: Show::Messages, limit, ..wanted(&entity, from, upto) };
    let targets = |page: &Page| page.overlays.iter().map(|(seq, _)| *seq).collect::<Vec<_>>();
    let up = page(harness, messages(1, 12, 4));
    assert_eq!((seqs(&up), targets(&up), up.complete, up.reached), (vec![1, 2, 4, 5], vec![2, 5], false, 5));
    let down = page(harness, PageRequest { newest_first: true, ..messages(1, 12, 3) });
    assert_eq!((seqs(&down), targets(&down), down.complete, down.reached), (vec![8, 10, 11], vec![8, 11], false, 8));
    let rest = page(harness, PageRequest { newest_first: true, ..messages(1, 7, 10) });
    assert_eq!((seqs(&rest), targets(&rest), rest.complete, rest.reached), (vec![1, 2, 4, 5, 7], vec![2, 5], true, 1));
    let only_edits = page(harness, messages(9, 9, 10));
    assert_eq!((seqs(&only_edits), only_edits.complete, only_edits.reached), (vec![], true, 9));
    // Everything: no overlays.
    let all = page(harness, PageRequest { limit: 20, ..wanted(&entity, 1, 12) });
    assert_eq!((all.events.len(), targets(&all)), (12, vec![]));
    // What the overlays carry counts too.
    let one = message(1, "hello").body_len();
    let few = page(harness, PageRequest { bytes_max: 2 * one, ..messages(1, 12, 10) });
    assert_eq!(seqs(&few), [1]);
}

fn pages_of_events_tell_what_is_deleted(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    // 1 2 e 4 5 e 7 8 e 10 11 e
    write_log(harness, &entity, 1, 12, 5, true);
    let deleted = |target: Seq| {
        let overlay = StoredOverlay { as_of: target + 20, deleted: target + 20, ..StoredOverlay::default() };
        Projection::Overlay { entity: entity.clone(), target, overlay }
    };
    project(harness, vec![deleted(2), overlay(&entity, 5, 6, "better"), deleted(7), deleted(8)]);
    let events = |from, upto| PageRequest { show: Show::Events, limit: 20, ..wanted(&entity, from, upto) };
    let told = |page: Page| {
        assert!(page.overlays.iter().all(|(_, overlay)| overlay.deleted != 0));
        (seqs(&page), page.overlays.iter().map(|(target, _)| *target).collect::<BTreeSet<_>>())
    };
    assert_eq!(told(page(harness, events(1, 12))), ((1..=12).collect(), BTreeSet::from([2, 7, 8])));
    // An edit is seen without the message that it is about.
    assert_eq!(told(page(harness, events(9, 12))), ((9..=12).collect(), BTreeSet::from([8])));
    assert_eq!(told(page(harness, events(3, 5))), ((3..=5).collect(), BTreeSet::from([2])));
    assert_eq!(told(page(harness, events(4, 6))), ((4..=6).collect(), BTreeSet::new()));
}

fn a_page_looks_at_a_bounded_number_of_events(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let session = session(harness);
    let count = PAGE_SCAN_MAX as Seq + 500;
    let edits: Vec<_> = (1..=count).map(|seq| if seq == 1 { message(1, "a") } else { edit(seq, 1) }).collect();
    let group: Vec<_> = edits.chunks(64).map(|chunk| rows(session, &entity, 0, chunk.to_vec())).collect();
    make_durable(harness, &group);
    let down = |upto| PageRequest { newest_first: true, show: Show::Messages, ..wanted(&entity, 1, upto) };
    let first = page(harness, down(count));
    assert!(first.events.is_empty() && !first.complete);
    assert_eq!(first.reached, count - PAGE_SCAN_MAX as Seq + 1);
    let second = page(harness, down(first.reached - 1));
    assert_eq!((seqs(&second), second.complete), (vec![1], true));
}

fn large_bodies_come_back(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let session = session(harness);
    let text = "x".repeat(60_000);
    let group: Vec<_> = (1..=200).map(|seq| rows(session, &entity, seq - 1, vec![message(seq, &text)])).collect();
    make_durable(harness, &group);
    let whole = page(harness, PageRequest { limit: 200, ..wanted(&entity, 1, 200) });
    assert_eq!(whole.events.len(), 200);
    assert!(whole.events.iter().all(|event| event.body_len() == message(1, &text).body_len()));
    let bounded = page(harness, PageRequest { limit: 200, bytes_max: 256 * 1024, ..wanted(&entity, 1, 200) });
    assert_eq!(bounded.events.len(), 4);
}

fn block(sender: &str, from: Seq, upto: Seq) -> Arc<StoredIdBlock> {
    let id = |seq: Seq| StoredId {
        sender: sender.to_owned(),
        id: Uuid::from_u128(u128::from(seq)).as_bytes().to_vec(),
        seq,
        hash: seq,
        n: seq,
        created_at: seq * 10,
    };
    Arc::new(StoredIdBlock { ids: (from..=upto).map(id).collect() })
}

fn ids_are_found_as_far_back_as_asked(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let write = |end, block| Projection::IdBlock { entity: entity.clone(), end, block };
    project(harness, vec![write(4, block("ada", 1, 4)), write(8, block("ada", 5, 8))]);
    project(harness, vec![write(12, block("ada", 9, 12))]);
    project(harness, vec![write(8, block("ada", 5, 8))]);
    for _ in 0..2 {
        let mut find = |sender, id: u128, not_before| {
            let id = CommandId(Uuid::from_u128(id));
            ask(harness, |store, done| store.find_id(entity.clone(), user(sender), id, (0, not_before), done))
                .unwrap()
                .map(|found| (found.seq, found.hash))
        };
        assert_eq!(find("ada", 12, 0), Some((12, 12)));
        assert_eq!(find("ada", 5, 0), Some((5, 5)));
        assert_eq!(find("ada", 5, 80), Some((5, 5)), "its block ends at that time");
        assert_eq!(find("ada", 5, 81), None, "its block is older");
        assert_eq!(find("ada", 13, 0), None);
        assert_eq!(find("bob", 5, 0), None, "another sender's");
        harness.succeed();
    }
}

fn a_recovery_brings_the_prints_of_young_ids(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let others = [conversation(2).into(), EntityId::from(user("ada"))];
    let write = |entity: &EntityId, end, block| Projection::IdBlock { entity: entity.clone(), end, block };
    project(harness, (1..=5).map(|n| write(&entity, n * 4, block("ada", n * 4 - 3, n * 4))).collect());
    for other in &others {
        project(harness, vec![write(other, 24, block("ada", 21, 24))]);
    }
    let find = |harness: &mut dyn Harness, since| {
        ask(harness, |store, done| store.recover(entity.clone(), since, done)).unwrap().prints
    };
    assert!(find(harness, 0).is_empty(), "without a snapshot the rows tell every id");
    project(harness, vec![snapshot(&entity, 20, "twenty")]);
    for _ in 0..2 {
        let ends = |found: Vec<(Seq, StoredIdPrints)>| found.iter().map(|(end, _)| *end).collect::<Vec<_>>();
        let young = find(harness, 150);
        let expected = |n: Seq| (n * 4, StoredIdPrints::of(&block("ada", n * 4 - 3, n * 4)));
        assert_eq!(young, [expected(3), expected(4), expected(5)], "and the one before");
        assert_eq!(ends(find(harness, 0)), [4, 8, 12, 16, 20]);
        assert_eq!(ends(find(harness, 1000)), [20]);
        harness.succeed();
    }
}

fn purge(harness: &mut dyn Harness, purge: &Purge) {
    for _ in 0..100 {
        if ask(harness, |store, done| store.purge(purge.clone(), done)).unwrap() {
            return;
        }
    }
    panic!("a removal has no end");
}

fn what_is_removed_stays_removed(harness: &mut dyn Harness) {
    let (entity, other): (EntityId, EntityId) = (conversation(1).into(), conversation(2).into());
    let block_of =
        |entity: &EntityId, end| Projection::IdBlock { entity: entity.clone(), end, block: block("ada", end - 3, end) };
    for entity in [&entity, &other] {
        write_log(harness, entity, 1, 20, 5, false);
        let derived = [2, 10, 11].map(|target| overlay(entity, target, target + 5, "better")).to_vec();
        project(harness, derived);
        let with = |target: Seq, user| reaction(entity, target, "+1", user, target + 4, false);
        project(harness, vec![with(10, "ada"), with(10, "bob"), with(11, "ada")]);
        project(harness, [4, 8, 12].map(|end| block_of(entity, end)).to_vec());
        project(harness, vec![snapshot(entity, 17, "kept")]);
    }
    let history = Purge { entity: entity.clone(), part: Part::History, above: 0, upto: 10, at: 16 };
    let ids = Purge { part: Part::Ids, upto: 9, ..history.clone() };
    for round in 0..4 {
        for part in [&ids, &history] {
            purge(harness, part);
        }
        let rest = page(harness, PageRequest { limit: 30, ..wanted(&entity, 1, 20) });
        assert_eq!((seqs(&rest), rest.complete), ((11..=20).collect(), true), "round {round}");
        let messages = PageRequest { show: Show::Messages, limit: 30, newest_first: true, ..wanted(&entity, 1, 20) };
        let targets: Vec<Seq> = page(harness, messages).overlays.iter().map(|(target, _)| *target).collect();
        assert_eq!(targets, [11]);
        let overlays = ask(harness, |store, done| store.overlays(entity.clone(), vec![2, 10, 11], done)).unwrap();
        assert_eq!(overlays.iter().map(|(target, _)| *target).collect::<Vec<_>>(), [11]);
        assert_eq!(reacted(harness, &entity, 10, "+1", None, 9), (vec![], true));
        assert_eq!(reacted(harness, &entity, 11, "+1", None, 9).0.len(), 1);
        let mut find = |id: u128, above| {
            let id = CommandId(Uuid::from_u128(id));
            ask(harness, |store, done| store.find_id(entity.clone(), user("ada"), id, (above, 0), done))
                .unwrap()
                .is_some()
        };
        // A block whose last id is to be kept is kept whole.
        assert!(find(9, 8) && find(12, 0) && !find(8, 0) && !find(1, 0));
        let found = recover(harness, &entity);
        assert_eq!(found.snapshot.map(|(seq, _)| seq), Some(17));
        let above = events(&found.rows).iter().map(|event| event.seq).filter(|seq| *seq > 17).collect::<Vec<_>>();
        assert_eq!(above, [18, 19, 20]);
        // Another's stands.
        let whole = page(harness, PageRequest { limit: 30, ..wanted(&other, 1, 20) });
        assert_eq!(seqs(&whole), (1..=20).collect::<Vec<_>>());
        assert_eq!(reacted(harness, &other, 10, "+1", None, 9).0.len(), 2);
        // What was written before it was removed may arrive later.
        if let Some(zombie) = harness.zombie() {
            let late = rows(zombie.session(), &entity, 0, (1..=5).map(|seq| message(seq, "late")).collect());
            let outcomes = ask_of(harness, &*zombie, |store, done| store.append(vec![late], done));
            assert_eq!(outcomes, [Written::Durable]);
            project(harness, vec![overlay(&entity, 2, 7, "late"), reaction(&entity, 10, "+1", "eve", 14, false)]);
        }
        harness.succeed();
    }
}

fn a_bucket_is_removed_as_a_whole(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    write_log(harness, &entity, 8101, 8200, 4, false);
    project(harness, [8150, 8192, 8193].map(|target| overlay(&entity, target, 8195, "better")).to_vec());
    let bucket = Purge { entity: entity.clone(), part: Part::History, above: 0, upto: 8192, at: 8200 };
    assert!(bucket.is_whole() && !Purge { upto: 8191, ..bucket.clone() }.is_whole());
    purge(harness, &bucket);
    for _ in 0..2 {
        let rest = page(
            harness,
            PageRequest { show: Show::Messages, newest_first: true, limit: 200, ..wanted(&entity, 1, 8200) },
        );
        assert_eq!(seqs(&rest), (8193..=8200).collect::<Vec<_>>());
        assert_eq!(rest.overlays.iter().map(|(target, _)| *target).collect::<Vec<_>>(), [8193]);
        harness.succeed();
    }
}

/// Whoever was allowed to read before the floor rose reads on to what is left, and is not told before that there is no more.
fn a_page_that_begins_in_what_is_removed_is_no_end(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    // Rows end where buckets and floors do: a row of several events goes with its last one.
    write_log(harness, &entity, 7001, 9000, 8, false);
    for (above, upto) in [(8192, 8800), (0, 8192)] {
        purge(harness, &Purge { entity: entity.clone(), part: Part::History, above, upto, at: 8990 });
        // The upper part goes before the lower one.
        let left: Vec<Seq> = (7001..=8192).filter(|_| above > 0).chain(8801..=9000).collect();
        for (show, newest_first) in
            [(Show::Log, false), (Show::Events, false), (Show::Messages, false), (Show::Log, true)]
        {
            let mut found = Vec::new();
            let (mut from, mut upto) = (7001, 9000);
            for _ in 0..100 {
                let read = page(harness, PageRequest { show, newest_first, limit: 60, ..wanted(&entity, from, upto) });
                found.extend(seqs(&read));
                if read.complete {
                    break;
                }
                assert!((from..=upto).contains(&read.reached));
                if newest_first {
                    upto = read.reached - 1;
                } else {
                    from = read.reached + 1;
                }
            }
            found.sort_unstable();
            // Downwards the gap is the end: everything below is removed, too.
            let expected: Vec<Seq> = if newest_first { (8801..=9000).collect() } else { left.clone() };
            found.retain(|seq| !newest_first || *seq > 8800);
            let ends = |seqs: &[Seq]| (seqs.len(), seqs.first().copied(), seqs.last().copied());
            assert!(found == expected, "{show:?}, {newest_first}: {:?} and not {:?}", ends(&found), ends(&expected));
        }
        harness.succeed();
    }
}

fn a_walk_meets_every_conversation(harness: &mut dyn Harness) {
    let session = session(harness);
    for number in 1..=7 {
        let entity: EntityId = conversation(number).into();
        make_durable(harness, &[rows(session, &entity, 0, vec![message(1, "hello"), message(2, "again")])]);
        if number <= 4 {
            project(harness, vec![snapshot(&entity, if number <= 2 { 1 } else { 2 }, "kept")]);
        }
    }
    let ada: EntityId = user("ada").into();
    make_durable(harness, &[rows(session, &ada, 0, vec![message(1, "mine")])]);
    project(harness, vec![snapshot(&ada, 1, "hers")]);
    for (limit, all) in [(1, true), (2, true), (3, false), (100, true), (100, false)] {
        let mut met = BTreeSet::new();
        let mut from = None;
        for _ in 0..100 {
            let walked = ask(harness, |store, done| store.walk(from.take(), limit, all, done)).unwrap();
            assert!(walked.found.len() <= limit);
            for (id, bytes, is_behind) in walked.found {
                let number = id.0.as_u128();
                assert_eq!(bytes.is_some(), number <= 4, "{number}");
                assert!(!is_behind || number != 3 && number != 4, "{number}");
                met.insert(number);
            }
            from = walked.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(met, (1..=if all { 7 } else { 4 }).collect(), "{limit} at a time, all: {all}");
    }
}

fn names_that_begin_alike_are_kept_apart(harness: &mut dyn Harness) {
    let names = ["a", "aa", "aaa", "aaaaaaaaaaaaaaaa", "b", "a\u{10ffff}"];
    let session = session(harness);
    let entities: Vec<EntityId> =
        names.iter().map(|name| user(name).into()).chain([conversation(0x6161_6161).into()]).collect();
    for (index, entity) in entities.iter().enumerate() {
        let text = format!("of {index}");
        make_durable(harness, &[rows(session, entity, 0, (1..=3).map(|seq| message(seq, &text)).collect())]);
        project(
            harness,
            vec![
                overlay(entity, 2, 3, "x"),
                Projection::IdBlock { entity: entity.clone(), end: 3, block: block(&text, 1, 3) },
            ],
        );
        if let EntityId::User(user) = entity {
            let position = StoredInbox { last_seq: index as u64 + 1, ..StoredInbox::default() };
            project(harness, vec![Projection::Inbox { user: user.clone(), conversation: conversation(1), position }]);
        }
    }
    for (index, entity) in entities.iter().enumerate() {
        let text = format!("of {index}");
        let found = recover(harness, entity);
        let expected: Vec<_> = (1..=3).map(|seq| message(seq, &text)).collect();
        assert_eq!(events(&found.rows), expected, "{entity}");
        let inbox: Vec<_> = found.inbox.iter().map(|(_, position)| position.last_seq).collect();
        assert_eq!(inbox, if matches!(entity, EntityId::User(_)) { vec![index as u64 + 1] } else { vec![] });
        for newest_first in [false, true] {
            let whole = page(harness, PageRequest { newest_first, show: Show::Messages, ..wanted(entity, 1, 99) });
            assert_eq!(whole.events, expected);
            assert_eq!(whole.overlays.len(), 1);
        }
        let id = CommandId(Uuid::from_u128(2));
        let mut found = |sender| {
            ask(harness, |store, done| store.find_id(entity.clone(), user(sender), id, (0, 0), done)).unwrap().is_some()
        };
        assert!(found(&text) && !found("of 99"));
    }
}

fn announcements_are_owed_until_they_are_made(harness: &mut dyn Harness) {
    let (one, other, silent): (EntityId, EntityId, EntityId) =
        (conversation(1).into(), user("ada").into(), conversation(3).into());
    let announced = |session, entity: &EntityId, seq| Append {
        announce: true,
        ..rows(session, entity, 0, vec![message(seq, "joined")])
    };
    let owed = |harness: &mut dyn Harness| {
        ask(harness, |store, done| store.announced(done)).unwrap().into_iter().collect::<BTreeSet<_>>()
    };
    let told = |entity: &EntityId, upto| Projection::Announced { entity: entity.clone(), upto };
    let first = session(harness);
    let group =
        [announced(first, &one, 1), announced(first, &other, 1), rows(first, &silent, 0, vec![message(1, "hello")])];
    make_durable(harness, &group);
    make_durable(harness, &[announced(first, &one, 2)]);
    // A repetition does not take the place of what came after it.
    make_durable(harness, &group[..1]);
    assert_eq!(owed(harness), BTreeSet::from([one.clone(), other.clone()]));
    project(harness, vec![told(&one, 1)]);
    assert_eq!(owed(harness), BTreeSet::from([one.clone(), other.clone()]), "event 2 was not announced");
    harness.succeed();
    assert_eq!(owed(harness), BTreeSet::from([one.clone(), other.clone()]));
    project(harness, vec![told(&one, 2), told(&silent, 9)]);
    assert_eq!(owed(harness), BTreeSet::from([other.clone()]));
    let second = session(harness);
    make_durable(harness, &[announced(second, &one, 3)]);
    project(harness, vec![told(&other, 1)]);
    harness.succeed();
    assert_eq!(owed(harness), BTreeSet::from([one]));
}

fn a_clean_owner_is_confirmed(harness: &mut dyn Harness) {
    for _ in 0..2 {
        let store = harness.store();
        assert_eq!(confirm(harness, &*store), Confirmation::Clean);
        drop(store);
        harness.succeed();
    }
}

fn a_zombie_is_told(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let first = session(harness);
    make_durable(harness, &[rows(first, &entity, 0, vec![message(1, "a")])]);
    harness.succeed();
    let Some(zombie) = harness.zombie() else { return };
    // Its rows may well become durable, but it can never acknowledge them.
    let ghost = rows(first, &entity, 1, vec![message(2, "ghost")]);
    let written = ask_of(harness, &*zombie, |store, done| store.append(vec![ghost], done));
    assert!(matches!(written[..], [Written::Durable | Written::Unknown | Written::Refused(_)]));
    for _ in 0..5 {
        assert_eq!(confirm(harness, &*zombie), Confirmation::Fenced);
    }
    let second = session(harness);
    let mine = event(2, 77, Fact::MessageNew { body: Body::parse("{\"text\":\"mine\"}").unwrap(), mentions: None });
    make_durable(harness, &[Append { after: first.epoch, ..rows(second, &entity, 1, vec![Arc::clone(&mine)]) }]);
    let store = harness.store();
    assert_eq!(confirm(harness, &*store), Confirmation::Clean);
    drop(store);
    let both = page(harness, wanted(&entity, 1, 2));
    assert_eq!(both.events, [message(1, "a"), Arc::clone(&mine)], "the highest epoch wins");
    harness.succeed();
    let found = recover(harness, &entity);
    let order: Vec<_> = found.rows.iter().map(|row| (row.events[0].seq, row.epoch)).collect();
    assert!(order.is_sorted(), "{order:?}");
    let basis = Basis {
        own_epoch: session(harness).epoch,
        snapshot_seq: 0,
        snapshot_origin: 0,
        snapshot_owner: 0,
        trusting: false,
    };
    let resolved = resolve(basis, found.rows).unwrap();
    assert_eq!(resolved.committed, [message(1, "a")]);
    assert_eq!(resolved.adopted, [Found { event: mine, origin: second.epoch }]);
}

fn a_lost_reply_is_repaired_by_repetition(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let first = session(harness);
    let one = rows(first, &entity, 0, vec![message(1, "a"), message(2, "b")]);
    if !harness.lose_next_reply() {
        return;
    }
    assert_eq!(append(harness, vec![one.clone()]), [Written::Unknown]);
    // It is there all the same: unknown means just that.
    assert_eq!(events(&recover(harness, &entity).rows).len(), 2);
    assert_eq!(append(harness, vec![one]), [Written::Durable]);
    assert_eq!(events(&recover(harness, &entity).rows), [message(1, "a"), message(2, "b")]);
}

fn a_late_row_changes_nothing_that_is_committed(harness: &mut dyn Harness) {
    let entity: EntityId = conversation(1).into();
    let first = session(harness);
    make_durable(harness, &[rows(first, &entity, 0, vec![message(1, "a")])]);
    if !harness.delay_next_append() {
        return;
    }
    let late = [rows(first, &entity, 1, vec![message(2, "late"), message(3, "later")])];
    assert_eq!(append(harness, late.to_vec()), [Written::Unknown]);
    harness.succeed();
    let second = session(harness);
    let basis =
        Basis { own_epoch: second.epoch, snapshot_seq: 0, snapshot_origin: 0, snapshot_owner: 0, trusting: false };
    let found = resolve(basis, recover(harness, &entity).rows).unwrap();
    assert_eq!(found.committed.len() + found.adopted.len(), 1, "nothing is there yet");
    // The client's retry: the same command, now at another place.
    let adopted = Append { origin: first.epoch, ..rows(second, &entity, 0, vec![message(1, "a")]) };
    let fresh = event(2, 3, Fact::MessageNew { body: Body::parse("{\"text\":\"later\"}").unwrap(), mentions: None });
    let above = Append { after: first.epoch, ..rows(second, &entity, 0, vec![Arc::clone(&fresh)]) };
    make_durable(harness, &[adopted, above]);
    harness.deliver_late();
    let seen = page(harness, wanted(&entity, 1, 2));
    assert_eq!(seen.events, [message(1, "a"), Arc::clone(&fresh)]);
    harness.succeed();
    let third = session(harness);
    let found = recover(harness, &entity);
    assert!(found.rows.iter().any(|row| row.events[0].seq == 3), "the late rows are there");
    let basis = Basis { own_epoch: third.epoch, ..basis };
    let resolved = resolve(basis, found.rows).unwrap();
    let adopted = resolved.adopted.into_iter().map(|found| found.event);
    let all: Vec<_> = resolved.committed.into_iter().chain(adopted).collect();
    assert_eq!(all, [message(1, "a"), fresh], "no command stands twice");
}

/// What an error says of an entity whose bytes are damaged.
#[must_use]
pub const fn is_corrupt(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. })
}

#[cfg(test)]
mod tests {
    use super::{
        super::quorum::{Quorum, Replicas, Weather},
        *,
    };

    /// Sessions over three replicas, one after the other.
    struct Sessions {
        replicas: Replicas,
        owners: Vec<Arc<Quorum>>,
    }

    impl Sessions {
        fn new(seed: u64, weather: Weather) -> Self {
            let replicas = Replicas::new(seed, weather);
            let owners = vec![replicas.begin_session()];
            Self { replicas, owners }
        }
    }

    impl Harness for Sessions {
        fn store(&self) -> Arc<dyn Store> {
            Arc::clone(self.owners.last().unwrap()) as _
        }

        fn succeed(&mut self) {
            let successor = self.replicas.begin_session();
            loop {
                let (tx, rx) = mpsc::channel();
                successor.fence_predecessors(Box::new(move |fenced| tx.send(fenced).unwrap()));
                self.replicas.run_until_answered();
                if rx.try_recv() == Ok(true) {
                    break;
                }
            }
            self.owners.push(successor);
        }

        fn turn(&mut self) {
            self.replicas.step();
        }

        fn zombie(&self) -> Option<Arc<dyn Store>> {
            let index = self.owners.len().checked_sub(2)?;
            Some(Arc::clone(&self.owners[index]) as _)
        }

        fn lose_next_reply(&mut self) -> bool {
            self.replicas.lose_replies(1);
            true
        }

        fn delay_next_append(&mut self) -> bool {
            self.replicas.delay_appends(1);
            true
        }

        fn deliver_late(&mut self) {
            self.replicas.run_until_quiet();
        }
    }

    #[test]
    fn store_quorum_keeps_the_contract() {
        run(&|| Box::new(Sessions::new(7, Weather::default())));
    }

    /// A world, and another machine's way into it.
    struct Shared(Replicas);

    impl cluster::Harness for Shared {
        fn shared(&self) -> Arc<dyn crate::store::Shared> {
            Arc::new(self.0.clone())
        }

        fn meta(&self) -> Arc<dyn chappe_cluster::consensus::bootstrap::find::ClusterMeta> {
            Arc::new(self.0.from_elsewhere())
        }

        fn turn(&mut self) {
            self.0.step();
        }
    }

    #[test]
    fn store_quorum_keeps_the_contract_of_shared_stores() {
        for seed in 0..20 {
            cluster::run(&|| {
                let replicas = Replicas::new(seed, Weather::default());
                replicas.set_down(seed as usize % 3, seed % 2 == 0);
                Box::new(Shared(replicas))
            });
        }
    }

    #[test]
    fn store_quorum_keeps_the_contract_with_a_replica_down() {
        run(&|| {
            let sessions = Sessions::new(8, Weather::default());
            sessions.replicas.set_down(1, true);
            Box::new(sessions)
        });
    }
}
