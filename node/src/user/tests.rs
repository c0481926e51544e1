//! The pure state of a user: arrange, apply one, compare.

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    access::{By, Token},
    error::Code,
    event::{ConversationKind, Event, Fact},
    id::{Change, CommandId, ConnectionSlot, ConversationId, GatewayId, Generation, Millis, Seq, UserId},
    inbox::{Cursor, Filter, Flags, Lag, Marking, Place, Preference, Reset, Section},
    limit::{
        HEADS_ASKED_MAX, ID_AGE_MS_MAX, ID_AHEAD_MS_MAX, INBOX_LOOKS_MAX, LEFT_KEPT_MAX, PINNED_MAX, USER_COMMANDS_KEPT,
    },
    presence::Attention,
    wire::{Actor, Head},
};

use super::{Changed, Client, Connection, HeadKnown, MarkCommand, Marked, Moved, User};

const T: Millis = 1_700_000_000_000;

fn conversation(n: u64) -> ConversationId {
    ConversationId(uuid::Uuid::from_u128(n.into()))
}

fn id(n: u64) -> CommandId {
    CommandId(
        uuid::Builder::from_unix_timestamp_millis(T, &(u128::from(n)).to_be_bytes()[6..].try_into().unwrap())
            .into_uuid(),
    )
}

/// A user, the log that made them, and verbs to speak to them. Changes are numbered by one owner, unless told otherwise.
struct Person {
    user: User,
    log: Vec<Arc<Event>>,
    epoch: u64,
    count: u64,
    now: Millis,
    ids: u64,
}

impl Person {
    /// A member of conversations 1 to `count`, in which nothing was said, joined in this order.
    fn with(count: u64) -> Self {
        let user = User::new(UserId::new("ada").unwrap());
        let mut person = Self { user, log: Vec::new(), epoch: 1, count: 0, now: T, ids: 0 };
        for n in 1..=count {
            person.now = T + n;
            person.join(n, 1);
            person.answer(n, 1, 0, 0);
        }
        person
    }

    fn hear(&mut self, fact: &Fact) -> bool {
        let Self { user, epoch, count, now, .. } = self;
        let event = user.hear(fact, *now, || Change::next(*epoch, count));
        if let Some(event) = &event {
            self.take(event);
        }
        event.is_some()
    }

    fn take(&mut self, event: &Arc<Event>) {
        self.user.apply(event);
        self.log.push(Arc::clone(event));
    }

    fn join(&mut self, n: u64, at: Seq) -> bool {
        let (conversation, change) = (conversation(n), Change::default());
        self.hear(&Fact::UserJoined { conversation, kind: ConversationKind::Group, at, change })
    }

    fn leave(&mut self, n: u64, at: Seq) -> bool {
        self.hear(&Fact::UserLeft { conversation: conversation(n), at, change: Change::default() })
    }

    /// The conversation's owner says where it stands, having been asked.
    fn answer(&mut self, n: u64, seq: Seq, messages: u64, read_n: u64) {
        let Self { user, epoch, count, now, .. } = self;
        user.next_questions();
        let head = Some(Head { seq, n: messages });
        let known = HeadKnown { conversation: conversation(n), head, read_n, message_at: *now, large: false };
        user.verify(known, || Change::next(*epoch, count));
    }

    /// A message of somebody else's, `n`th in a conversation that has had one other event.
    fn message(&mut self, at: u64, n: u64, when: Millis) {
        self.now = self.now.max(when);
        let Self { user, epoch, count, .. } = self;
        let moved = Moved { head: Head { seq: n + 1, n }, message_at: when, read_n: 0 };
        user.raise(conversation(at), moved, || Change::next(*epoch, count));
    }

    fn read(&mut self, at: u64, n: u64) -> bool {
        let Self { user, epoch, count, .. } = self;
        user.read_upto(conversation(at), n, || Change::next(*epoch, count))
    }

    fn mark_as(&mut self, id: CommandId, at: u64, marking: Marking) -> Result<(Flags, bool), Code> {
        let actor = Actor { user: self.user.id.clone(), device: None, by: By::Token(Token::default()) };
        let hash = chappe_schema::command::Command::InboxUpdate { conversation: conversation(at), marking }.hash();
        let command = MarkCommand { actor: &actor, id, hash, conversation: conversation(at), marking };
        let Self { user, epoch, count, now, .. } = self;
        match user.mark(command, *now, || Change::next(*epoch, count)).map_err(|error| error.code)? {
            Marked::As(flags, changed) => Ok((flags, changed)),
            Marked::Append(event, flags) => {
                self.take(&event);
                assert_eq!(self.user.flags(&conversation(at), self.now), Some(flags), "it is as it was answered");
                Ok((flags, true))
            }
        }
    }

    fn mark(&mut self, at: u64, marking: Marking) -> Result<(Flags, bool), Code> {
        self.ids += 1;
        self.mark_as(id(self.ids), at, marking)
    }

    fn listed(&self, filter: Filter) -> Vec<u64> {
        let page = self.user.page(filter, None, 10_000, self.now);
        assert_eq!(page.next, None);
        page.picks.iter().map(|pick| pick.conversation.0.as_u128() as u64).collect()
    }

    fn order(&self) -> Vec<u64> {
        self.listed(Filter::default())
    }

    /// Put away and read again, by the same owner or a later one: everything that is flushed is there.
    fn reload(&mut self, epoch: u64) {
        let rows = self.user.flush();
        let cut = self.log.len() / 2;
        let mut half = User::new(self.user.id.clone());
        self.log[..cut].iter().for_each(|event| half.apply(event));
        let mut again = User::from_snapshot(half.id.clone(), half.snapshot()).unwrap();
        self.log[cut..].iter().for_each(|event| again.apply(event));
        again.restore_inbox(rows);
        self.user = again;
        self.epoch = epoch;
    }

    fn changed(&self, since: Change) -> Vec<(u64, bool)> {
        let changes = self.user.changes(since, 10_000, self.now);
        let item = |item: &Changed| match item {
            Changed::Row(pick) => (pick.conversation.0.as_u128() as u64, true),
            Changed::Left(id, _) => (id.0.as_u128() as u64, false),
        };
        changes.items.iter().map(item).collect()
    }
}

fn pin(pinned: bool) -> Marking {
    Marking { pinned: Some(pinned), ..Marking::default() }
}

fn archive(archived: bool) -> Marking {
    Marking { archived: Some(archived), ..Marking::default() }
}

fn mute(until: Millis) -> Marking {
    Marking { muted_until: Some(until), ..Marking::default() }
}

fn mark_unread(marked: bool) -> Marking {
    Marking { marked_unread: Some(marked), ..Marking::default() }
}

const ARCHIVED: Filter = Filter { archived: true, unread: false, muted: None };
const UNREAD: Filter = Filter { archived: false, unread: true, muted: None };
const MUTED: Filter = Filter { archived: false, unread: false, muted: Some(true) };
const NOT_MUTED: Filter = Filter { archived: false, unread: false, muted: Some(false) };

// === facts

#[test]
fn facts_heard_again_or_late_change_nothing() {
    let mut person = Person::with(0);
    assert!(person.join(1, 1));
    assert!(!person.join(1, 1));
    assert!(person.leave(1, 5));
    assert!(!person.join(1, 3));
    assert!(person.order().is_empty());
    assert!(person.join(1, 6));
    assert_eq!((person.order(), person.user.head), (vec![1], 3));
    assert!(!person.hear(&Fact::ChangesReserved { upto: 9 }));
}

#[test]
fn connections_are_bounded_and_forgotten() {
    let mut user = User::new(UserId::new("ada").unwrap());
    let at = |gateway, slot, issued_at| Client {
        connection: Connection { gateway: GatewayId(gateway), slot: ConnectionSlot(slot) },
        device: None,
        token: Token { issued_at, ..Token::default() },
        since: 1,
        attention: Attention::default(),
    };
    assert!(user.connect(at(1, 1, 5), 2) && user.connect(at(2, 1, 5), 2) && !user.connect(at(2, 2, 5), 2));
    assert!(user.connect(at(1, 1, 6), 2), "a registration that is repeated is no second connection");
    user.forget(1, |known| known.gateway == GatewayId(2));
    assert_eq!(user.connections.as_slice(), [at(1, 1, 6)], "a repeated registration brings a newer token");
    user.forget(1, |known| known == at(1, 1, 6).connection);
    assert!(user.connections.is_empty());
}

// === the order

#[test]
fn the_last_active_stands_first() {
    let mut person = Person::with(4);
    assert_eq!(person.order(), [4, 3, 2, 1]);
    person.message(2, 1, T + 50);
    assert_eq!(person.order(), [2, 4, 3, 1]);
    // Old news changes nothing and takes no number.
    let count = person.count;
    person.message(2, 1, T + 50);
    person.message(1, 0, T);
    assert_eq!((person.order(), person.count), (vec![2, 4, 3, 1], count));
    // What is read, or happens without being a message, is no activity.
    person.read(1, 1);
    person.user.raise(
        conversation(3),
        Moved { head: Head { seq: 9, n: 0 }, message_at: 0, read_n: 0 },
        Change::default,
    );
    assert_eq!(person.order(), [2, 4, 3, 1]);
}

#[test]
fn pinned_ones_stand_first_and_archived_ones_apart() {
    let mut person = Person::with(5);
    person.mark(1, pin(true)).unwrap();
    person.mark(3, pin(true)).unwrap();
    person.mark(4, archive(true)).unwrap();
    assert_eq!((person.order(), person.listed(ARCHIVED)), (vec![3, 1, 5, 2], vec![4]));
    person.message(1, 1, T + 50);
    assert_eq!(person.order(), [1, 3, 5, 2]);
    // What is put away is not pinned, and what is pinned is not put away.
    assert_eq!(person.mark(1, archive(true)).unwrap().0, Flags { archived: true, ..Flags::default() });
    assert_eq!((person.order(), person.listed(ARCHIVED)), (vec![3, 5, 2], vec![1, 4]));
    assert_eq!(person.mark(1, pin(true)).unwrap().0, Flags { pinned: true, ..Flags::default() });
    person.mark(3, pin(false)).unwrap();
    assert_eq!((person.order(), person.listed(ARCHIVED)), (vec![1, 5, 3, 2], vec![4]));
}

#[test]
fn a_message_brings_back_what_was_archived_unless_it_is_muted() {
    let mut person = Person::with(3);
    for n in 1..=3 {
        person.mark(n, archive(true)).unwrap();
    }
    person.mark(2, mute(T + 100)).unwrap();
    person.mark(3, mute(Preference::FOR_EVER)).unwrap();
    for n in 1..=3 {
        person.message(n, 1, T + 60);
    }
    assert_eq!((person.order(), person.listed(ARCHIVED)), (vec![1], vec![3, 2]));
    // The end of the muting brings nothing back, nor does taking it away; the next message does.
    person.now = T + 200;
    assert_eq!(person.listed(ARCHIVED), [3, 2]);
    assert!(person.mark(3, mute(0)).unwrap().0.archived);
    assert_eq!(person.listed(ARCHIVED), [3, 2]);
    person.message(2, 2, T + 200);
    person.message(3, 2, T + 201);
    assert_eq!((person.order(), person.listed(ARCHIVED)), (vec![3, 2, 1], vec![]));
    // It is derived from what is flushed anyway: it is the same for whoever reads the user again.
    person.mark(1, archive(true)).unwrap();
    let before = (person.order(), person.listed(ARCHIVED));
    person.reload(1);
    assert_eq!((person.order(), person.listed(ARCHIVED)), before);
}

#[test]
fn filters_show_what_they_say() {
    let mut person = Person::with(5);
    person.message(2, 3, T + 10);
    person.message(4, 1, T + 20);
    person.mark(1, mark_unread(true)).unwrap();
    assert_eq!(person.listed(UNREAD), [4, 2, 1]);
    person.read(2, 2);
    assert_eq!(person.listed(UNREAD), [4, 2, 1]);
    person.read(2, 3);
    assert_eq!(person.listed(UNREAD), [4, 1]);
    person.mark(4, mute(T + 100)).unwrap();
    person.mark(5, mute(Preference::FOR_EVER)).unwrap();
    assert_eq!((person.listed(MUTED), person.listed(NOT_MUTED)), (vec![4, 5], vec![2, 3, 1]));
    person.now = T + 100;
    assert_eq!((person.listed(MUTED), person.listed(NOT_MUTED)), (vec![5], vec![4, 2, 3, 1]));
    person.mark(4, archive(true)).unwrap();
    let both = Filter { archived: true, unread: true, muted: Some(false) };
    assert_eq!((person.listed(both), person.listed(UNREAD)), (vec![4], vec![1]));
    // Unmarking is reading.
    let event = person.user.unmark(conversation(1), T, || Change { epoch: 1, count: 99 }).unwrap();
    person.take(&event);
    assert!(person.listed(UNREAD).is_empty());
    assert!(person.user.unmark(conversation(1), T, || unreachable!()).is_none());
}

#[test]
fn pages_follow_the_cursor_whatever_moves_above_it() {
    let mut person = Person::with(6);
    person.mark(2, pin(true)).unwrap();
    let page = |person: &Person, below| {
        let page = person.user.page(Filter::default(), below, 2, person.now);
        let shown: Vec<u64> = page.picks.iter().map(|pick| pick.conversation.0.as_u128() as u64).collect();
        // Cursors go to clients and back as texts.
        (shown, page.next.map(|next| next.to_string().parse::<Place>().unwrap()))
    };
    let (first, cursor) = page(&person, None);
    assert_eq!(first, [2, 6]);
    person.message(4, 1, T + 50);
    person.message(2, 1, T + 60);
    let (second, cursor) = page(&person, cursor);
    assert_eq!(second, [5, 3], "what moved up is neither shown twice nor in the way");
    let (third, end) = page(&person, cursor);
    assert_eq!((third, end), (vec![1], None));
    // What moved up meanwhile is told by the changes since the first page.
    assert!(person.changed(Change { epoch: 1, count: 13 }).contains(&(4, true)));
    // A cursor of another part of the list is a place like any other.
    let archived = Place { section: Section::Archived, at: 5, conversation: conversation(1) };
    assert_eq!(page(&person, Some(archived)).0, [0; 0]);
    let top = Place { section: Section::Pinned, at: u64::MAX, conversation: conversation(1) };
    assert_eq!(person.user.page(ARCHIVED, Some(top), 5, T).picks.len(), 0);
}

#[test]
fn a_page_with_a_filter_looks_at_no_more_than_it_may() {
    let mut person = Person::with(INBOX_LOOKS_MAX as u64 + 10);
    for n in 1..=INBOX_LOOKS_MAX as u64 + 10 {
        if n != 3 {
            person.mark(n, mute(Preference::FOR_EVER)).unwrap();
        }
    }
    let first = person.user.page(NOT_MUTED, None, 5, T);
    assert!(first.picks.is_empty() && first.next.is_some(), "short, but not the end");
    let second = person.user.page(NOT_MUTED, first.next, 5, T);
    assert_eq!((second.picks[0].conversation, second.next), (conversation(3), None));
}

/// Whether few or many pass a filter, which is done in two ways, its pages are those of the whole list without the rest.
#[test]
fn filters_of_few_and_of_many_are_the_same() {
    let mut person = Person::with(1_500);
    let mut unread = Vec::new();
    for n in 0..1_000 {
        let conversation = 1 + n * 7 % 1_500;
        person.message(conversation, 1, T + 2_000 + n);
        unread.insert(0, conversation);
        if n % 100 != 99 {
            continue;
        }
        let (mut pages, mut cursor) = (Vec::new(), None);
        loop {
            let page = person.user.page(UNREAD, cursor, 37, T);
            pages.extend(page.picks.iter().map(|pick| pick.conversation.0.as_u128() as u64));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(pages, unread);
    }
}

// === heads

#[test]
fn after_a_load_owners_are_asked_in_the_order_of_the_list_and_not_all_at_once() {
    let count = HEADS_ASKED_MAX as u64 + 50;
    let mut person = Person::with(count);
    person.message(7, 1, T + 10_000);
    person.reload(2);
    person.user.distrust(None);
    assert!(!person.user.is_verified() && !person.user.knows_head(&conversation(7)));
    person.user.ask_first(&[conversation(9), conversation(3)]);
    let asked = person.user.next_questions();
    assert_eq!(asked.len(), HEADS_ASKED_MAX);
    assert_eq!(asked[..4], [9, 3, 7, count].map(conversation));
    assert!(person.user.next_questions().is_empty());
    // Answers make room for the next ones; where something is new, it gets a number of the new owner.
    let before = person.user.newest();
    person.answer(9, 5, 3, 1);
    person.answer(3, 1, 0, 0);
    assert_eq!(person.changed(before), [(9, true)]);
    assert_eq!(person.user.newest().epoch, 2);
    let unasked = person.user.unverified().len();
    // An answer that is overdue is asked for again, and one that comes twice counts once.
    person.user.ask_again();
    for n in 1..=count {
        person.answer(n, 1, 0, 0);
        person.answer(n, 1, 0, 0);
    }
    assert_eq!((person.user.is_verified(), unasked), (true, count as usize - 2));
}

#[test]
fn who_was_watched_asks_only_what_moved_and_what_is_large() {
    let mut person = Person::with(20);
    person.user.grown_large(conversation(5));
    person.user.distrust(Some(&[conversation(3), conversation(77)]));
    let mut asked = person.user.next_questions();
    asked.sort_unstable();
    assert_eq!(asked, [3, 5].map(conversation));
    person.answer(3, 1, 0, 0);
    assert!(!person.user.is_verified());
    // It is not large any more, and who leaves is not waited for.
    person.leave(5, 9);
    assert!(person.user.is_verified());
    assert!(!person.user.has_large());
}

#[test]
fn what_its_owner_cannot_tell_is_unknown_and_not_waited_for() {
    let mut person = Person::with(3);
    person.user.distrust(None);
    person.user.next_questions();
    for n in 1..=3 {
        let known = HeadKnown { conversation: conversation(n), head: None, read_n: 0, message_at: 0, large: false };
        person.user.verify(known, || unreachable!("nothing is news"));
    }
    assert!(person.user.is_verified() && person.user.is_unknown(&conversation(2)));
    assert_eq!(person.user.head(&conversation(2)), Some(Head { seq: 1, n: 0 }));
}

#[test]
fn what_was_read_elsewhere_is_news_too() {
    let mut person = Person::with(1);
    person.message(1, 5, T + 1);
    assert!(person.read(1, 3) && !person.read(1, 2));
    let before = person.user.newest();
    person.reload(2);
    person.user.distrust(None);
    person.answer(1, 6, 5, 4);
    assert_eq!(person.changed(before), [(1, true)]);
}

#[test]
fn what_changed_is_flushed_once() {
    let mut person = Person::with(2);
    assert_eq!(person.user.flush().len(), 2);
    person.message(1, 1, T + 9);
    let rows = person.user.flush();
    assert_eq!((rows.len(), rows[0].1.last_seq, rows[0].1.message_at), (1, 2, T + 9));
    assert!(person.user.flush().is_empty());
    // What the user's own log tells needs no row.
    person.mark(2, pin(true)).unwrap();
    assert!(person.user.flush().is_empty());
}

// === preferences

#[test]
fn a_marking_that_changes_nothing_is_no_event_and_a_repetition_none_either() {
    let mut person = Person::with(2);
    let (first, again) = (id(1_001), id(1_002));
    assert_eq!(person.mark_as(first, 1, pin(true)), Ok((Flags { pinned: true, ..Flags::default() }, true)));
    let head = person.user.head;
    assert_eq!(person.mark_as(again, 1, pin(true)), Ok((Flags { pinned: true, ..Flags::default() }, false)));
    // A late repetition does not undo what came between, on another device, over a restart.
    person.mark(1, pin(false)).unwrap();
    person.reload(2);
    assert_eq!(person.mark_as(first, 1, pin(true)), Ok((Flags::default(), true)));
    assert_eq!(person.mark_as(first, 1, pin(false)), Err(Code::IdConflict));
    assert_eq!(person.mark_as(first, 2, pin(true)), Err(Code::IdConflict));
    assert_eq!(person.user.head, head + 1);
    for _ in 0..USER_COMMANDS_KEPT {
        person.mark(2, mute(person.ids + 1)).unwrap();
    }
    assert_eq!(person.user.commands.len(), USER_COMMANDS_KEPT);
}

#[test]
fn markings_are_judged() {
    let mut person = Person::with(PINNED_MAX as u64 + 1);
    assert_eq!(person.mark(9_999, pin(true)), Err(Code::ConversationNotFound));
    let at = |time: Millis| CommandId(uuid::Builder::from_unix_timestamp_millis(time, &[1; 10]).into_uuid());
    assert_eq!(person.mark_as(at(person.now + ID_AHEAD_MS_MAX + 1), 1, pin(true)), Err(Code::BadId));
    assert_eq!(person.mark_as(at(person.now - ID_AGE_MS_MAX - 1), 1, pin(true)), Err(Code::IdExpired));
    for n in 1..=PINNED_MAX as u64 {
        person.mark(n, pin(true)).unwrap();
    }
    assert_eq!(person.mark(PINNED_MAX as u64 + 1, pin(true)), Err(Code::PinnedLimit));
    person.leave(3, 9);
    person.mark(PINNED_MAX as u64 + 1, pin(true)).unwrap();
    // Who comes back begins anew.
    person.join(3, 10);
    assert_eq!(person.user.flags(&conversation(3), T), Some(Flags::default()));
}

// === what has changed

#[test]
fn each_conversation_is_told_once_as_it_stands() {
    let mut person = Person::with(4);
    let cursor = person.user.newest();
    assert!(person.changed(cursor).is_empty());
    for n in 1..=3 {
        person.message(2, n, T + n);
    }
    person.mark(4, pin(true)).unwrap();
    person.leave(1, 9);
    person.read(2, 3);
    assert_eq!(person.changed(cursor), [(4, true), (1, false), (2, true)]);
    let first = person.user.changes(cursor, 2, T);
    assert_eq!((first.items.len(), first.more), (2, true));
    let second = person.user.changes(first.upto, 2, T);
    assert_eq!((second.items.len(), second.more, second.upto), (1, false, person.user.newest()));
    assert_eq!(person.changed(second.upto), []);
}

#[test]
fn a_cursor_of_another_life_is_told_to_start_anew() {
    let mut person = Person::with(2);
    let ours = Generation(7);
    let latest = Change { epoch: 1, count: person.count };
    let lag = |person: &Person, cursor| person.user.lag(cursor, ours, latest);
    let at = |change| Some(Cursor { generation: ours, change });
    assert_eq!(lag(&person, None), Lag::Reset(Reset::New));
    let other = Cursor { generation: Generation(8), change: latest };
    assert_eq!(lag(&person, Some(other)), Lag::Reset(Reset::Generation));
    assert_eq!(lag(&person, at(Change { epoch: 2, count: 0 })), Lag::Reset(Reset::Ahead));
    assert_eq!(lag(&person, at(person.user.newest())), Lag::Current);
    assert_eq!(lag(&person, at(Change::default())), Lag::Behind);
    person.user.distrust(None);
    assert_eq!(lag(&person, at(person.user.newest())), Lag::Behind, "it may have missed what nobody knows yet");
}

#[test]
fn left_conversations_are_remembered_up_to_a_bound_and_cursors_below_it_are_too_old() {
    let mut person = Person::with(LEFT_KEPT_MAX as u64 + 2);
    let cursor = person.user.newest();
    let mut second = Change::default();
    for n in 1..=LEFT_KEPT_MAX as u64 + 1 {
        person.leave(n, 9);
        if n == 1 {
            second = person.user.newest();
        }
    }
    let lag = |change| {
        let latest = Change { epoch: 1, count: u64::MAX };
        person.user.lag(Some(Cursor { generation: Generation(7), change }), Generation(7), latest)
    };
    assert_eq!((lag(cursor), lag(second)), (Lag::Reset(Reset::TooOld), Lag::Behind));
    assert_eq!(person.changed(second).len(), LEFT_KEPT_MAX);
    let again = User::from_snapshot(person.user.id.clone(), person.user.snapshot()).unwrap();
    assert_eq!(
        again.lag(Some(Cursor { generation: Generation(7), change: cursor }), Generation(7), second),
        Lag::Reset(Reset::TooOld)
    );
}

/// What devices were told by an owner that was lost before it flushed, and what they were not told.
#[test]
fn cursors_stay_right_over_a_loss() {
    let mut person = Person::with(4);
    person.user.flush();
    let flushed = person.user.snapshot();
    let (log, rows) = (person.log.len(), Vec::new());
    let told = person.user.newest();
    // All of this is lost but what stands in the logs.
    person.message(1, 1, T + 10);
    person.read(1, 1);
    let heard = person.user.newest();
    person.mark(2, pin(true)).unwrap();
    person.leave(3, 9);
    let mut next = User::from_snapshot(person.user.id.clone(), flushed).unwrap();
    person.log[log..].iter().for_each(|event| next.apply(event));
    next.restore_inbox(rows);
    next.distrust(None);
    person.user = next;
    person.epoch = 2;
    person.answer(1, 2, 1, 1);
    person.answer(2, 1, 0, 0);
    person.answer(4, 1, 0, 0);
    let mut since_told = person.changed(told);
    since_told.sort_unstable();
    assert_eq!(since_told, [(1, true), (2, true), (3, false)]);
    // Who had heard of the message hears of it once more; who has heard everything is behind by nothing else.
    let mut since_heard = person.changed(heard);
    since_heard.sort_unstable();
    assert_eq!(since_heard, [(1, true), (2, true), (3, false)]);
    assert!(person.changed(person.user.newest()).is_empty());
}

#[test]
fn a_user_comes_back_from_a_snapshot() {
    let mut person = Person::with(5);
    person.message(2, 3, T + 50);
    person.mark(1, pin(true)).unwrap();
    person.mark(3, archive(true)).unwrap();
    person.mark(4, mute(T + 1_000)).unwrap();
    person.mark(4, mark_unread(true)).unwrap();
    person.leave(5, 9);
    let user = &person.user;
    let back = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
    for filter in [Filter::default(), ARCHIVED, UNREAD, MUTED] {
        assert_eq!(back.page(filter, None, 10, T), user.page(filter, None, 10, T));
    }
    assert_eq!(back.changes(Change::default(), 10, T), user.changes(Change::default(), 10, T));
    assert_eq!((back.head, back.snapshot_at, back.last_at), (user.head, user.head, user.last_at));
    assert_eq!(back.snapshot(), user.snapshot());
    assert!(User::from_snapshot(user.id.clone(), user.snapshot().slice(1..)).is_err());
}

/// What was stored before there were preferences, marks and times of messages still makes a user.
#[test]
fn a_user_of_before_comes_back() {
    use chappe_schema::stored::{Kind, StoredInbox, StoredMembership, StoredUser, seal};
    let inbox = StoredInbox { last_seq: 9, last_n: 4, read_n: 1, change: 5, change_epoch: 1, message_at: 0 };
    let membership = |n, joined, inbox| StoredMembership {
        conversation: conversation(n).0.as_bytes().to_vec(),
        kind: 2,
        at: 1,
        joined,
        inbox,
        ..StoredMembership::default()
    };
    let conversations = vec![membership(1, true, Some(inbox)), membership(2, true, None), membership(3, false, None)];
    let stored = StoredUser { seq: 4, conversations, ..StoredUser::default() };
    let mut user = User::from_snapshot(UserId::new("ada").unwrap(), seal(Kind::Snapshot, &stored)).unwrap();
    let page = user.page(Filter::default(), None, 10, T);
    assert_eq!((page.picks.len(), page.picks[0].flags), (2, Flags::default()));
    user.distrust(None);
    assert_eq!(user.next_questions().len(), 2);
    let known = HeadKnown {
        conversation: conversation(1),
        head: Some(Head { seq: 9, n: 4 }),
        read_n: 1,
        message_at: T,
        large: false,
    };
    user.verify(known, || unreachable!("it is as it was"));
    assert_eq!(user.page(Filter::default(), None, 1, T).picks[0].conversation, conversation(1));
    // A change that nobody has noted is before all cursors, but the leaving is still told to whoever asks from the first.
    assert_eq!(user.changes(Change::default(), 10, T).items.len(), 1);
}

/// The promise for very many conversations: a page costs what it shows, and a user costs a bounded sum for each.
#[test]
fn synapse_10842_ten_thousand_conversations_take_bounded_memory() {
    let mut person = Person::with(10_000);
    for n in 1..=10_000 {
        person.message(n, 1, T + 20_000 + n * 7 % 10_000);
    }
    let bytes = person.user.bytes();
    println!("10,000 conversations, all unread: {bytes} bytes");
    assert!(bytes < 5 << 20, "{bytes} bytes");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Deed {
        Join(u64),
        Leave(u64),
        Message(u64),
        Read(u64),
        Mark(u64, Marking),
        Wait(u64),
        Reload,
        Lose,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        let place = || 1..8u64;
        let marking = prop_oneof![
            any::<bool>().prop_map(pin),
            any::<bool>().prop_map(archive),
            any::<bool>().prop_map(mark_unread),
            prop::sample::select(vec![0, 5, 50, Preference::FOR_EVER]).prop_map(mute),
        ];
        prop_oneof![
            2 => place().prop_map(Deed::Join),
            1 => place().prop_map(Deed::Leave),
            6 => place().prop_map(Deed::Message),
            3 => place().prop_map(Deed::Read),
            4 => (place(), marking).prop_map(|(n, marking)| Deed::Mark(n, marking)),
            2 => (0..20u64).prop_map(Deed::Wait),
            1 => Just(Deed::Reload),
            1 => Just(Deed::Lose),
        ]
    }

    /// A conversation as a plain model has it.
    #[derive(Clone, Debug, Default)]
    struct Plain {
        seq: Seq,
        n: u64,
        read_n: u64,
        message_at: Millis,
        joined: Option<Millis>,
        pinned: bool,
        archived: bool,
        muted_until: Millis,
        marked: bool,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever happens, in whichever owner's hands: the list is a full sort of a plain model, each filter is that
        /// filter of it, and a device that is told the changes since its cursor has what a fresh list shows.
        #[test]
        fn the_list_is_a_full_sort_and_changes_make_up_for_it(deeds in prop::collection::vec(deed(), 1..120), pace in 1..9usize) {
            let mut person = Person::with(0);
            let mut model: BTreeMap<u64, Plain> = BTreeMap::new();
            // What a device knows: of each conversation, flags and activity; and its cursor.
            let mut device: BTreeMap<u64, (Flags, Millis)> = BTreeMap::new();
            let mut cursor = Change::default();
            for (step, deed) in deeds.into_iter().enumerate() {
                match deed {
                    Deed::Join(n) => {
                        let plain = model.entry(n).or_default();
                        if plain.joined.is_none() {
                            (plain.joined, plain.seq, plain.read_n) = (Some(person.now), plain.seq + 1, plain.n);
                            let (seq, count, read_n, at) = (plain.seq, plain.n, plain.read_n, plain.message_at);
                            person.join(n, seq);
                            let now = std::mem::replace(&mut person.now, at);
                            person.answer(n, seq, count, read_n);
                            person.now = now;
                        }
                    }
                    Deed::Leave(n) => {
                        if let Some(plain) = model.get_mut(&n).filter(|plain| plain.joined.is_some()) {
                            *plain = Plain { seq: plain.seq + 1, n: plain.n, message_at: plain.message_at, ..Plain::default() };
                            person.leave(n, plain.seq);
                        }
                    }
                    Deed::Message(n) => {
                        if let Some(plain) = model.get_mut(&n) {
                            (plain.seq, plain.n, plain.message_at) = (plain.seq + 1, plain.n + 1, person.now);
                            if plain.joined.is_some() && person.now >= plain.muted_until {
                                plain.archived = false;
                            }
                            let moved = Moved { head: Head { seq: plain.seq, n: plain.n }, message_at: person.now, read_n: 0 };
                            let Person { user, epoch, count, .. } = &mut person;
                            user.raise(conversation(n), moved, || Change::next(*epoch, count));
                        }
                    }
                    Deed::Read(n) => {
                        if let Some(plain) = model.get_mut(&n).filter(|plain| plain.joined.is_some()) {
                            plain.read_n = plain.n;
                            person.read(n, plain.n);
                        }
                    }
                    Deed::Mark(n, mut marking) => {
                        // A time is meant from now on.
                        let relative = marking.muted_until.filter(|ms| (1..1_000).contains(ms));
                        marking.muted_until = relative.map(|ms| person.now + ms).or(marking.muted_until);
                        let marked = person.mark(n, marking);
                        let Some(plain) = model.get_mut(&n).filter(|plain| plain.joined.is_some()) else {
                            prop_assert_eq!(marked, Err(Code::ConversationNotFound));
                            continue;
                        };
                        if let Some(pinned) = marking.pinned {
                            plain.pinned = pinned;
                            plain.archived &= !pinned;
                        }
                        if let Some(archived) = marking.archived {
                            plain.archived = archived;
                            plain.pinned &= !archived;
                        }
                        plain.muted_until = marking.muted_until.unwrap_or(plain.muted_until);
                        plain.marked = marking.marked_unread.unwrap_or(plain.marked);
                    }
                    Deed::Wait(ms) => person.now += ms,
                    Deed::Reload | Deed::Lose => {
                        if let Deed::Lose = deed {
                            // Nothing was flushed: the rows are lost, the log and the conversations are not.
                            let mut again = User::new(person.user.id.clone());
                            person.log.iter().for_each(|event| again.apply(event));
                            person.user = again;
                            person.epoch += 1;
                        } else {
                            person.reload(person.epoch);
                        }
                        person.user.distrust(None);
                        for (n, plain) in model.iter().filter(|(_, plain)| plain.joined.is_some()) {
                            let now = std::mem::replace(&mut person.now, plain.message_at);
                            person.answer(*n, plain.seq, plain.n, plain.read_n);
                            person.now = now;
                        }
                    }
                }
                let now = person.now;
                let active = |plain: &Plain| plain.message_at.max(plain.joined.unwrap_or(0));
                let sorted = |keep: &dyn Fn(&Plain) -> bool| {
                    let mut kept: Vec<(u64, &Plain)> = model.iter().map(|(n, plain)| (*n, plain)).collect();
                    kept.retain(|(_, plain)| plain.joined.is_some() && keep(plain));
                    kept.sort_by_key(|(n, plain)| std::cmp::Reverse((plain.pinned, active(plain), *n)));
                    kept.into_iter().map(|(n, _)| n).collect::<Vec<u64>>()
                };
                let unread = |plain: &Plain| plain.marked || plain.n > plain.read_n;
                prop_assert_eq!(person.order(), sorted(&|plain| !plain.archived));
                prop_assert_eq!(person.listed(ARCHIVED), sorted(&|plain| plain.archived));
                prop_assert_eq!(person.listed(UNREAD), sorted(&|plain| !plain.archived && unread(plain)));
                prop_assert_eq!(person.listed(MUTED), sorted(&|plain| !plain.archived && now < plain.muted_until));
                if step % pace == 0 {
                    let mut more = true;
                    while more {
                        let changes = person.user.changes(cursor, 2, now);
                        for item in &changes.items {
                            match item {
                                Changed::Row(pick) => _ = device.insert(pick.conversation.0.as_u128() as u64, (pick.flags, pick.active_at)),
                                Changed::Left(id, _) => _ = device.remove(&(id.0.as_u128() as u64)),
                            }
                        }
                        (cursor, more) = (changes.upto, changes.more);
                    }
                    let mut fresh = BTreeMap::new();
                    for filter in [Filter::default(), ARCHIVED] {
                        for pick in person.user.page(filter, None, 100, now).picks {
                            fresh.insert(pick.conversation.0.as_u128() as u64, (pick.flags, pick.active_at));
                        }
                    }
                    // Time alone ends a muting: that is no change, clients know until when it was.
                    let timeless = |known: &BTreeMap<u64, (Flags, Millis)>| -> Vec<_> {
                        known.iter().map(|(n, (flags, at))| (*n, Flags { muted: false, muted_until: 0, ..*flags }, *at)).collect()
                    };
                    prop_assert_eq!(timeless(&device), timeless(&fresh));
                }
            }
        }
    }
}
