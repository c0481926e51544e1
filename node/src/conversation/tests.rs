//! The pure state: arrange events, judge one command, compare the verdict.

mod channels;
mod floor;
mod reactions;
mod receipts;

use std::{collections::BTreeMap, sync::Arc};

use chappe_schema::{
    access::{By, Token},
    body::Body,
    command::{Command, Create, From, Page as PageOf, Update},
    error::Code,
    event::{ConversationKind, Encryption, Event, Fact, HistoryAccess, Role},
    id::{CommandId, ConversationId, Millis, Seq, UserId},
    limit::{ID_AGE_MS_MAX, ID_AHEAD_MS_MAX},
    mention::{Mentioned, Mentions},
    reaction::ReactionKey,
    reply::{MessageView, Reply, Sent},
    stored::{StoredOverlay, StoredReaction},
    wire::Actor,
};

use super::{
    Audience, Conversation, Evidence, Verdict,
    read::{PASSED_MAX, Progress},
};
use crate::store::{Page, PageRequest, Reacted, ReactedRequest, Show};

const T: Millis = 1_700_000_000_000;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn actor(name: &str) -> Actor {
    Actor { user: user(name), device: None, by: By::Token(Token::default()) }
}

fn id_at(time: Millis, salt: u8) -> CommandId {
    CommandId(uuid::Builder::from_unix_timestamp_millis(time, &[salt; 10]).into_uuid())
}

fn fresh() -> CommandId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SALT: AtomicU64 = AtomicU64::new(1);
    let salt = SALT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut random = [0; 10];
    random[2..].copy_from_slice(&salt);
    CommandId(uuid::Builder::from_unix_timestamp_millis(T, &random).into_uuid())
}

const CONVERSATION: ConversationId = ConversationId(uuid::Uuid::from_u128(7));

/// A conversation, the log that made it, and verbs to speak to it.
struct Talk {
    state: Conversation,
    log: Vec<Arc<Event>>,
    now: Millis,
    shelf: Shelf,
}

/// What a store has beside the log; nothing, unless a test writes it.
#[derive(Default)]
struct Shelf {
    overlays: BTreeMap<Seq, StoredOverlay>,
    reactions: BTreeMap<(Seq, ReactionKey, UserId), StoredReaction>,
}

impl Talk {
    /// A group of ada (owner) and these members.
    fn group(members: &[&str]) -> Self {
        Self::created(ConversationKind::Group, members, HistoryAccess::SinceJoin)
    }

    fn created(kind: ConversationKind, members: &[&str], history: HistoryAccess) -> Self {
        let mut talk = Self::nowhere();
        let create = creation(kind, members, history);
        talk.ok("ada", Command::ConversationCreate(Box::new(create)));
        talk
    }

    fn nowhere() -> Self {
        Self { state: Conversation::absent(CONVERSATION), log: Vec::new(), now: T, shelf: Shelf::default() }
    }

    fn judge(&mut self, who: &str, id: CommandId, command: &Command) -> Result<Reply, Code> {
        loop {
            match self.state.decide(&actor(who), id, command, Evidence::default(), self.now) {
                Verdict::Answer(result) => return result.map_err(|error| error.code),
                Verdict::Append(event, reply) => {
                    self.state.apply(&event);
                    self.log.push(event);
                    return Ok(reply);
                }
                Verdict::Read(read) => {
                    let (mut read, mut progress) = read.begin();
                    loop {
                        match progress {
                            Progress::Done(result) => return result.map_err(|error| error.code),
                            Progress::More(request) => {
                                let page = self.page(&request);
                                (read, progress) = read.take(page);
                            }
                            Progress::Reacted(request) => {
                                let page = self.shelf.reacted(&request);
                                (read, progress) = read.take_reacted(page);
                            }
                        }
                    }
                }
                Verdict::NeedTarget(seq) => {
                    let found = self.log.get(seq as usize - 1).cloned();
                    let overlay = self.shelf.overlays.get(&seq).cloned();
                    self.state.remember_target(seq, found.map(|event| (event, overlay)));
                }
                Verdict::NeedReactions(seq, keys) => {
                    let one = |key: ReactionKey| {
                        let row = self.shelf.reactions.get(&(seq, key.clone(), user(who)))?;
                        Some((key, *row))
                    };
                    let rows = keys.into_iter().filter_map(one).collect();
                    self.state.remember_reactions(seq, &user(who), rows);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// What a store would answer.
    fn page(&self, request: &PageRequest) -> Page {
        let mut events: Vec<Arc<Event>> = self
            .log
            .iter()
            .filter(|event| (request.from..=request.upto).contains(&event.seq))
            .filter(|event| request.show != Show::Messages || event.fact.is_message())
            .cloned()
            .collect();
        if request.newest_first {
            events.reverse();
        }
        let complete = events.len() <= request.limit;
        events.truncate(request.limit);
        let end = if request.newest_first { request.from } else { request.upto };
        let reached = if complete { end } else { events.last().map_or(end, |event| event.seq) };
        events.sort_by_key(|event| event.seq);
        let shown = |seq: &Seq| events.iter().any(|event| event.seq == *seq || event.target == *seq);
        let overlays = self.shelf.overlays.iter().filter(|(seq, _)| request.show != Show::Log && shown(seq));
        let overlays = overlays.map(|(seq, overlay)| (*seq, overlay.clone())).collect();
        let own = self.shelf.reactions.iter();
        let own = own.filter(|((seq, _, user), _)| request.reader.as_ref() == Some(user) && shown(seq));
        let own = own.map(|((seq, key, _), row)| (*seq, key.clone(), *row)).collect();
        Page { events, overlays, own, complete, reached }
    }

    fn ok(&mut self, who: &str, command: Command) -> Reply {
        self.judge(who, fresh(), &command).unwrap_or_else(|code| panic!("{command:?} was refused: {code:?}"))
    }

    fn refused(&mut self, who: &str, command: Command) -> Code {
        let before = self.state.head;
        let code = self.judge(who, fresh(), &command).expect_err("it was accepted");
        assert_eq!(self.state.head, before, "a refused command has changed something");
        code
    }

    fn send(&mut self, who: &str, text: &str) -> Sent {
        let Reply::Sent(sent) = self.ok(who, send(text)) else { panic!("a send is answered by its position") };
        sent
    }

    fn messages(&mut self, who: &str, from: From, limit: usize) -> (Vec<MessageView>, (bool, bool)) {
        let command = Command::MessageList { conversation: CONVERSATION, page: PageOf { from, limit } };
        let Reply::Messages { items, more, .. } = self.ok(who, command) else {
            panic!("a list is answered by messages")
        };
        (items, more)
    }

    fn seqs(&mut self, who: &str, from: From, limit: usize) -> Vec<Seq> {
        self.messages(who, from, limit).0.iter().map(|message| message.seq).collect()
    }
}

impl Shelf {
    fn reacted(&self, request: &ReactedRequest) -> Reacted {
        let rows = self.reactions.iter().filter(|((seq, key, user), _)| {
            let is_later = request.after.as_ref().is_none_or(|after| user > after);
            *seq == request.target && *key == request.key && is_later
        });
        let mut rows = rows.map(|((.., user), row)| (user.clone(), *row));
        let page = rows.by_ref().take(request.limit).collect();
        Reacted { rows: page, complete: rows.next().is_none() }
    }
}

fn creation(kind: ConversationKind, members: &[&str], history: HistoryAccess) -> Create {
    Create {
        conversation: CONVERSATION,
        kind,
        encryption: Encryption::None,
        members: members.iter().map(|name| user(name)).collect(),
        title: String::new(),
        data: None,
        history,
        receipts: true,
        open: false,
        retention_secs: 0,
    }
}

fn body(text: &str) -> Body {
    Body::parse(&format!("{{\"text\":\"{text}\"}}")).unwrap()
}

fn send(text: &str) -> Command {
    Command::MessageSend { conversation: CONVERSATION, body: body(text), mentions: None }
}

fn edit(seq: Seq, text: &str) -> Command {
    Command::MessageEdit { conversation: CONVERSATION, seq, body: body(text), mentions: None }
}

fn delete(seq: Seq) -> Command {
    Command::MessageDelete { conversation: CONVERSATION, seq }
}

fn react(seq: Seq, key: &str) -> Command {
    Command::ReactionAdd { conversation: CONVERSATION, seq, key: ReactionKey::new(key).unwrap() }
}

fn unreact(seq: Seq, key: &str) -> Command {
    Command::ReactionRemove { conversation: CONVERSATION, seq, key: ReactionKey::new(key).unwrap() }
}

fn who_reacted(seq: Seq, key: &str) -> Command {
    let key = ReactionKey::new(key).unwrap();
    Command::ReactionList { conversation: CONVERSATION, seq, key, after: None, limit: 100 }
}

fn add(name: &str, role: Role) -> Command {
    Command::MemberAdd { conversation: CONVERSATION, user: user(name), role }
}

fn remove(name: &str) -> Command {
    Command::MemberRemove { conversation: CONVERSATION, user: user(name) }
}

fn role(name: &str, role: Role) -> Command {
    Command::MemberRole { conversation: CONVERSATION, user: user(name), role }
}

const JOIN: Command = Command::ConversationJoin { conversation: CONVERSATION };
const LEAVE: Command = Command::ConversationLeave { conversation: CONVERSATION };
const DELETE: Command = Command::ConversationDelete { conversation: CONVERSATION };
const GET: Command = Command::ConversationGet { conversation: CONVERSATION };

#[test]
fn seqs_are_dense_and_only_messages_count_in_n() {
    let mut talk = Talk::group(&["bob"]);
    let first = talk.send("ada", "one");
    talk.ok("ada", add("eve", Role::Member));
    let second = talk.send("bob", "two");
    assert_eq!((first.seq, first.n, second.seq, second.n), (2, 1, 4, 2));
    assert!(talk.log.iter().enumerate().all(|(index, event)| event.seq == index as u64 + 1));
}

fn mentioning(text: &str, users: &[&str], all: bool) -> Command {
    let users = users.iter().map(|name| user(name)).collect();
    let mentions = Mentions { users, all }.checked().unwrap();
    Command::MessageSend { conversation: CONVERSATION, body: body(text), mentions }
}

#[test]
fn a_message_mentions_whom_its_last_edit_does() {
    let mut talk = Talk::group(&["bob", "eve"]);
    assert_eq!(talk.refused("bob", mentioning("hey", &[], true)), Code::Forbidden);
    talk.ok("bob", mentioning("hey", &["eve", "nobody"], false));
    talk.ok("ada", mentioning("everybody", &[], true));
    let named = |talk: &mut Talk, seq| {
        let Reply::Message(view) = talk.ok("eve", Command::MessageGet { conversation: CONVERSATION, seq }) else {
            panic!("a message is asked for")
        };
        view.mentions.map(|mentions| (mentions.all, mentions.users.clone()))
    };
    assert_eq!(named(&mut talk, 2), Some((false, vec![user("eve"), user("nobody")])));
    assert_eq!(named(&mut talk, 3), Some((true, vec![])));
    let Command::MessageSend { body, mentions, .. } = mentioning("bob", &["bob"], false) else { panic!() };
    let edit = Command::MessageEdit { conversation: CONVERSATION, seq: 2, body: body.clone(), mentions };
    talk.ok("bob", edit);
    assert_eq!(named(&mut talk, 2), Some((false, vec![user("bob")])));
    assert!(matches!(&talk.log[3].fact, Fact::MessageUpdated { target_n: 1, .. }));
    talk.ok("bob", Command::MessageEdit { conversation: CONVERSATION, seq: 2, body, mentions: None });
    assert_eq!(named(&mut talk, 2), None);
    // Nothing of a deleted message is left, in pages of the log neither.
    talk.ok("ada", delete(3));
    assert_eq!(named(&mut talk, 3), None);
    assert!(matches!(&talk.log[5].fact, Fact::MessageDeleted { target_n: 2, .. }));
    let list = Command::EventList { conversation: CONVERSATION, after: 2, limit: 1 };
    let Reply::Events { items, .. } = talk.ok("eve", list) else { panic!("events are asked for") };
    assert!(matches!(&items[0].fact, Fact::MessageNew { mentions: None, .. }));
}

#[test]
fn stamps_never_fall() {
    let mut talk = Talk::group(&["bob"]);
    talk.now = T + 500;
    assert_eq!(talk.send("ada", "one").created_at, T + 500);
    talk.now = T - 10_000;
    assert_eq!(talk.send("ada", "two").created_at, T + 500);
}

/// Thread: GetStream/stream-chat-android#6587, retries of delivered messages shown as failed for ever.
#[test]
fn a_retry_of_a_delivered_message_is_answered_like_the_first() {
    let mut talk = Talk::group(&["bob"]);
    let id = id_at(T, 9);
    let Ok(Reply::Sent(first)) = talk.judge("ada", id, &send("hi")) else { panic!("refused") };
    talk.send("bob", "between");
    let Ok(Reply::Sent(second)) = talk.judge("ada", id, &send("hi")) else { panic!("refused") };
    assert_eq!(second, Sent { duplicate: true, ..first });
    assert_eq!(talk.judge("ada", id, &send("something else")), Err(Code::IdConflict));
    assert!(
        matches!(talk.judge("bob", id, &send("hi")), Ok(Reply::Sent(Sent { duplicate: false, .. }))),
        "ids are each sender's own"
    );
    // Also for who was removed meanwhile: the message is theirs and it was delivered.
    let id = id_at(T, 10);
    talk.judge("bob", id, &send("last words")).unwrap();
    talk.ok("ada", remove("bob"));
    assert!(matches!(talk.judge("bob", id, &send("last words")), Ok(Reply::Sent(Sent { duplicate: true, .. }))));
    assert_eq!(talk.refused("bob", send("more")), Code::ConversationNotFound);
}

/// Seed 632 of the simulator: the owner of a partition changes, and the next one's clock is an hour behind.
#[test]
fn a_repetition_is_known_to_an_owner_whose_clock_is_behind() {
    let mut talk = Talk::group(&["bob"]);
    let id = fresh();
    let first = talk.judge("ada", id, &send("x")).unwrap();
    talk.now = T - 3_600_000;
    let Reply::Sent(again) = talk.judge("ada", id, &send("x")).unwrap() else { panic!("{first:?}") };
    assert!(again.duplicate);
    assert!(talk.judge("ada", fresh(), &send("y")).is_ok(), "stamps never fall, so neither does what is new");
}

#[test]
fn ids_from_the_future_or_too_old_are_refused_and_never_doubled() {
    let mut talk = Talk::group(&["bob"]);
    assert_eq!(talk.judge("ada", id_at(T + ID_AHEAD_MS_MAX + 1, 1), &send("x")), Err(Code::BadId));
    assert_eq!(talk.judge("ada", id_at(T - ID_AGE_MS_MAX - 1, 1), &send("x")), Err(Code::IdExpired));
    assert!(talk.judge("ada", id_at(T + ID_AHEAD_MS_MAX, 1), &send("x")).is_ok());
    assert!(talk.judge("ada", id_at(T - ID_AGE_MS_MAX, 1), &send("x")).is_ok());
}

#[test]
fn an_id_that_only_the_store_can_know_is_asked_for() {
    let mut talk = Talk::group(&["bob"]);
    for n in 0..300 {
        talk.now += 1;
        talk.send("ada", &n.to_string());
    }
    let hot = talk.state.hot.as_mut().unwrap();
    let (end, block) = hot.ids.block_due(300).unwrap();
    hot.ids.block_durable(end, talk.now);
    let old = talk.log[9].clone();
    let command = send("8");
    let ask = talk.state.decide(&actor("ada"), old.id, &command, Evidence::default(), talk.now);
    assert!(matches!(ask, Verdict::NeedId(_)), "{ask:?}");
    let stored = block.ids.iter().find(|stored| stored.id == old.id.0.as_bytes()).unwrap();
    let evidence = Evidence { id: Some((Some(stored.into()), end)) };
    let Verdict::Answer(Ok(Reply::Sent(sent))) = talk.state.decide(&actor("ada"), old.id, &command, evidence, talk.now)
    else {
        panic!("a known id is answered")
    };
    assert_eq!((sent.seq, sent.duplicate), (10, true));
    let outdated = Evidence { id: Some((None, 0)) };
    assert!(matches!(talk.state.decide(&actor("ada"), old.id, &command, outdated, talk.now), Verdict::NeedId(_)));
    let none = Evidence { id: Some((None, end)) };
    assert!(matches!(talk.state.decide(&actor("ada"), old.id, &command, none, talk.now), Verdict::Append(..)));
}

#[test]
fn strangers_meet_nothing() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "secret");
    for command in [
        GET,
        LEAVE,
        DELETE,
        send("x"),
        edit(2, "x"),
        delete(2),
        add("eve", Role::Member),
        remove("bob"),
        role("bob", Role::Admin),
        Command::MessageGet { conversation: CONVERSATION, seq: 2 },
        Command::MessageHistory { conversation: CONVERSATION, seq: 2 },
        react(2, "+1"),
        unreact(2, "+1"),
        who_reacted(2, "+1"),
        Command::EventList { conversation: CONVERSATION, after: 0, limit: 9 },
        Command::MemberList { conversation: CONVERSATION, after: None, limit: 9 },
        Command::ConversationOpen { conversation: CONVERSATION },
        Command::ConversationUpdate {
            conversation: CONVERSATION,
            update: Box::new(Update { title: Some("x".into()), ..Update::default() }),
        },
        Command::ConversationCreate(Box::new(creation(ConversationKind::Group, &[], HistoryAccess::All))),
    ] {
        let mut nowhere = Talk::nowhere();
        let code = talk.refused("eve", command.clone());
        assert_eq!(code, Code::ConversationNotFound, "{command:?}");
        if !matches!(command, Command::ConversationCreate(_)) {
            assert_eq!(
                nowhere.refused("eve", command),
                code,
                "what is hidden and what does not exist must look the same"
            );
        }
    }
}

#[test]
fn roles_hold() {
    let mut talk = Talk::group(&["bob", "eve"]);
    assert_eq!(talk.refused("bob", add("zoe", Role::Member)), Code::Forbidden);
    assert_eq!(talk.refused("bob", role("bob", Role::Owner)), Code::Forbidden);
    assert_eq!(talk.refused("bob", remove("eve")), Code::Forbidden);
    assert_eq!(talk.refused("bob", DELETE), Code::Forbidden);
    talk.ok("ada", role("bob", Role::Admin));
    assert_eq!(talk.refused("bob", role("bob", Role::Owner)), Code::Forbidden, "nobody promotes themselves");
    assert_eq!(talk.refused("bob", role("ada", Role::Member)), Code::Forbidden);
    assert_eq!(talk.refused("bob", remove("ada")), Code::Forbidden);
    assert_eq!(talk.refused("bob", add("zoe", Role::Owner)), Code::Forbidden);
    assert_eq!(talk.refused("bob", remove("nobody")), Code::MemberNotFound);
    talk.ok("bob", add("zoe", Role::Admin));
    talk.ok("bob", remove("eve"));
    assert_eq!(talk.refused("ada", LEAVE), Code::LastOwner);
    assert_eq!(talk.refused("ada", role("ada", Role::Member)), Code::LastOwner);
    talk.ok("ada", role("zoe", Role::Owner));
    talk.ok("ada", LEAVE);
    assert_eq!(talk.refused("ada", GET), Code::ConversationNotFound);
    talk.ok("zoe", remove("bob"));
    talk.ok("zoe", LEAVE);
    assert!(talk.state.members.is_empty());
}

#[test]
fn what_is_so_already_changes_nothing() {
    let mut talk = Talk::group(&["bob"]);
    let update = |title: &str| Command::ConversationUpdate {
        conversation: CONVERSATION,
        update: Box::new(Update { title: Some(title.into()), ..Update::default() }),
    };
    let message = talk.send("ada", "x").seq;
    talk.ok("ada", update("t"));
    talk.ok("ada", delete(message));
    let head = talk.state.head;
    for command in [add("bob", Role::Admin), role("bob", Role::Member), update("t"), delete(message)] {
        assert_eq!(talk.ok("ada", command), Reply::Changed { seq: head, changed: false });
    }
}

#[test]
fn a_direct_conversation_is_fixed() {
    let mut talk = Talk::created(ConversationKind::Direct, &["bob"], HistoryAccess::SinceJoin);
    for command in [LEAVE, DELETE, add("eve", Role::Member), remove("bob"), role("bob", Role::Admin)] {
        assert_eq!(talk.refused("ada", command), Code::ConversationFixed);
    }
    let mut again = creation(ConversationKind::Direct, &["ada"], HistoryAccess::All);
    again.conversation = CONVERSATION;
    let Reply::Conversation(view) = talk.ok("bob", Command::ConversationCreate(Box::new(again))) else {
        panic!("no view")
    };
    assert!(view.existed);
    assert_eq!(view.with, Some(user("ada")));
    assert_eq!(talk.state.head, 1);
}

#[test]
fn a_creation_under_a_used_key_is_a_conflict() {
    let mut talk = Talk::group(&["bob"]);
    let same = creation(ConversationKind::Group, &["bob"], HistoryAccess::SinceJoin);
    assert!(
        matches!(talk.ok("ada", Command::ConversationCreate(Box::new(same))), Reply::Conversation(view) if view.existed)
    );
    let other = creation(ConversationKind::Group, &["eve"], HistoryAccess::SinceJoin);
    assert_eq!(talk.refused("ada", Command::ConversationCreate(Box::new(other))), Code::ConversationExists);
}

#[test]
fn a_deleted_conversation_is_gone_for_everybody() {
    let mut talk = Talk::group(&["bob"]);
    talk.ok("ada", DELETE);
    for who in ["ada", "bob"] {
        assert_eq!(talk.refused(who, GET), Code::ConversationNotFound);
        assert_eq!(talk.refused(who, send("x")), Code::ConversationNotFound);
    }
}

#[test]
fn edits_form_a_chain_and_deletion_ends_it() {
    let mut talk = Talk::group(&["bob"]);
    let seq = talk.send("bob", "v1").seq;
    assert_eq!(talk.refused("ada", edit(seq, "x")), Code::Forbidden, "not even an owner edits another's words");
    talk.ok("bob", edit(seq, "v2"));
    talk.ok("bob", edit(seq, "v3"));
    let history = Command::MessageHistory { conversation: CONVERSATION, seq };
    let Reply::Edits { items, deleted: None, more: false } = talk.ok("ada", history.clone()) else {
        panic!("no history")
    };
    let bodies: Vec<_> =
        items.iter().map(|edit| String::from_utf8(edit.body.as_ref().unwrap().to_vec()).unwrap()).collect();
    assert_eq!(bodies, [r#"{"text":"v1"}"#, r#"{"text":"v2"}"#, r#"{"text":"v3"}"#]);
    let (messages, _) = talk.messages("ada", From::Newest, 9);
    assert_eq!(messages[0].body.as_deref(), Some(br#"{"text":"v3"}"#.as_slice()));
    assert_eq!(messages[0].edited.map(|(seq, _)| seq), Some(4));
    talk.ok("ada", delete(seq));
    let (messages, _) = talk.messages("ada", From::Newest, 9);
    assert_eq!((messages[0].body.as_ref(), messages[0].deleted), (None, Some(5)));
    assert_eq!(talk.refused("bob", edit(seq, "v4")), Code::MessageDeleted);
    let Reply::Edits { items, deleted: Some(5), .. } = talk.ok("ada", history) else { panic!("no history") };
    assert!(items.len() == 3 && items.iter().all(|edit| edit.body.is_none()));
}

#[test]
fn what_is_no_message_is_not_edited() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "x");
    for seq in [0, 1, 3, u64::MAX] {
        assert_eq!(talk.refused("ada", edit(seq, "y")), Code::MessageNotFound, "{seq}");
        assert_eq!(talk.refused("ada", delete(seq)), Code::MessageNotFound, "{seq}");
        let get = Command::MessageGet { conversation: CONVERSATION, seq };
        assert_eq!(talk.refused("ada", get), Code::MessageNotFound, "{seq}");
    }
}

#[test]
fn members_delete_their_own_and_admins_any() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let (of_ada, of_bob) = (talk.send("ada", "a").seq, talk.send("bob", "b").seq);
    assert_eq!(talk.refused("eve", delete(of_bob)), Code::Forbidden);
    talk.ok("bob", delete(of_bob));
    talk.ok("ada", role("eve", Role::Admin));
    talk.ok("eve", delete(of_ada));
}

/// Bodies of a page of events: seq, and the text or nothing.
fn told(talk: &mut Talk, who: &str, after: Seq, limit: usize) -> Vec<(Seq, Option<String>)> {
    let list = Command::EventList { conversation: CONVERSATION, after, limit };
    let Reply::Events { items, .. } = talk.ok(who, list) else { panic!("no events") };
    let text = |event: &Arc<Event>| match &event.fact {
        Fact::MessageNew { body, .. } | Fact::MessageUpdated { body, .. } => body.text(),
        _ => None,
    };
    items.iter().map(|event| (event.seq, text(event))).collect()
}

/// What somebody holds of messages becomes what everybody holds, however long they were away; what was said meanwhile does not.
#[test]
fn who_comes_back_is_told_what_was_done_to_messages_that_are_theirs() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let (first, second, third) = (talk.send("ada", "v1").seq, talk.send("ada", "gone").seq, talk.send("bob", "x").seq);
    talk.ok("ada", remove("eve"));
    let left = talk.state.head;
    let unseen = talk.send("ada", "without eve").seq;
    talk.ok("ada", edit(unseen, "still without eve"));
    talk.ok("ada", edit(first, "v2"));
    let edited = talk.state.head;
    talk.ok("ada", delete(second));
    let deleted = talk.state.head;
    talk.ok("bob", react(third, "+1"));
    let reacted = talk.state.head;
    talk.ok("bob", react(unseen, "+1"));
    assert_eq!(
        talk.refused("eve", Command::EventList { conversation: CONVERSATION, after: left, limit: 9 }),
        Code::ConversationNotFound
    );
    talk.ok("ada", add("eve", Role::Member));
    let joined = talk.state.head;
    let all = [(edited, Some("v2".to_owned())), (deleted, None), (reacted, None), (joined, None)];
    assert_eq!(told(&mut talk, "eve", left, 99), all);
    // However small the pages are, and with nothing at hand.
    talk.settle();
    let mut after = left;
    for event in all {
        assert_eq!(told(&mut talk, "eve", after, 1), std::slice::from_ref(&event));
        after = event.0;
    }
    assert_eq!(told(&mut talk, "eve", after, 1), []);
    // Who came meanwhile is shown nothing of it.
    talk.ok("ada", add("zoe", Role::Member));
    assert_eq!(told(&mut talk, "zoe", 0, 99), [(joined + 1, None)]);
}

/// What a page costs is bounded, however long somebody was away.
#[test]
fn of_a_very_long_absence_only_a_part_is_looked_through() {
    let mut talk = Talk::group(&["bob", "eve"]);
    let seq = talk.send("ada", "v1").seq;
    talk.ok("ada", remove("eve"));
    let left = talk.state.head;
    for _ in 0..PASSED_MAX / 2 {
        talk.send("ada", "x");
    }
    talk.ok("ada", edit(seq, "early"));
    let early = talk.state.head;
    for _ in 0..PASSED_MAX * 2 {
        talk.send("ada", "x");
    }
    talk.ok("ada", edit(seq, "late"));
    talk.ok("ada", add("eve", Role::Member));
    let joined = talk.state.head;
    assert_eq!(told(&mut talk, "eve", left, 99), [(early, Some("early".into()))]);
    assert_eq!(told(&mut talk, "eve", early, 99), [(joined, None)]);
    assert_eq!(talk.messages("eve", From::Newest, 9).0[0].body.as_deref(), Some(br#"{"text":"late"}"#.as_slice()));
}

#[test]
fn newcomers_are_not_told_the_new_words_of_old_messages() {
    let mut talk = Talk::group(&["bob"]);
    let before = talk.send("ada", "v1").seq;
    talk.ok("ada", add("eve", Role::Member));
    let joined = talk.state.head;
    let after = talk.send("ada", "w1").seq;
    talk.ok("ada", edit(before, "v2"));
    talk.ok("ada", edit(after, "w2"));
    let events = [(joined, None), (after, Some("w1".into())), (after + 1, None), (after + 2, Some("w2".into()))];
    assert_eq!(told(&mut talk, "eve", 0, 99), events);
    assert_eq!(told(&mut talk, "bob", after, 99)[0], (after + 1, Some("v2".into())));
    talk.settle();
    assert_eq!(told(&mut talk, "eve", 0, 99), events);
}

#[test]
fn newcomers_see_what_was_written_since_they_joined() {
    let mut talk = Talk::group(&["bob"]);
    let before = talk.send("ada", "before").seq;
    talk.ok("ada", add("eve", Role::Member));
    let during = talk.send("ada", "during").seq;
    assert_eq!(talk.seqs("eve", From::Newest, 9), [during]);
    assert_eq!(
        talk.refused("eve", Command::MessageGet { conversation: CONVERSATION, seq: before }),
        Code::MessageNotFound
    );
    assert_eq!(talk.refused("eve", delete(before)), Code::MessageNotFound);
    talk.ok("ada", remove("eve"));
    talk.send("ada", "away");
    talk.ok("ada", add("eve", Role::Member));
    let after = talk.send("ada", "after").seq;
    assert_eq!(talk.seqs("eve", From::Newest, 9), [during, after]);
    let Reply::Events { items, floor, .. } =
        talk.ok("eve", Command::EventList { conversation: CONVERSATION, after: 0, limit: 99 })
    else {
        panic!("no events")
    };
    assert_eq!(items.iter().map(|event| event.seq).collect::<Vec<_>>(), [3, 4, 5, 7, 8]);
    assert_eq!(floor, 2);
    let mut open = Talk::created(ConversationKind::Group, &["bob"], HistoryAccess::All);
    open.send("ada", "before");
    open.ok("ada", add("eve", Role::Member));
    assert_eq!(open.seqs("eve", From::Newest, 9), [2]);
}

#[test]
fn pages_lie_where_they_are_asked_for() {
    let mut talk = Talk::group(&["bob"]);
    for n in 0..20 {
        talk.send("ada", &n.to_string());
    }
    // Messages stand at seqs 2 to 21.
    assert_eq!(talk.messages("bob", From::Newest, 3).1, (true, false));
    assert_eq!(talk.seqs("bob", From::Newest, 3), [19, 20, 21]);
    assert_eq!(talk.seqs("bob", From::Before(19), 3), [16, 17, 18]);
    assert_eq!(talk.seqs("bob", From::After(19), 30), [20, 21]);
    assert_eq!(talk.seqs("bob", From::After(1), 2), [2, 3]);
    assert_eq!(talk.seqs("bob", From::Around(10), 5), [8, 9, 10, 11, 12]);
    assert_eq!(talk.seqs("bob", From::Around(21), 4), [20, 21]);
    assert_eq!(talk.seqs("bob", From::Before(2), 3), [0; 0]);
    assert_eq!(talk.seqs("bob", From::After(u64::MAX), 3), [0; 0]);
    assert_eq!(talk.seqs("bob", From::Before(u64::MAX), 1), [21]);
    assert_eq!(talk.messages("bob", From::Around(10), 5).1, (true, true));
}

#[test]
fn recent_events_are_served_without_the_store() {
    let mut talk = Talk::group(&["bob"]);
    for n in 0..50 {
        talk.send("ada", &n.to_string());
    }
    talk.state.hot.as_mut().unwrap().recent.trim(talk.state.head);
    let ask = |after| Command::EventList { conversation: CONVERSATION, after, limit: 5 };
    let verdict = talk.state.decide(&actor("bob"), fresh(), &ask(45), Evidence::default(), T);
    let Verdict::Answer(Ok(Reply::Events { items, head: 51, .. })) = verdict else { panic!("{verdict:?}") };
    assert_eq!(items.iter().map(|event| event.seq).collect::<Vec<_>>(), [46, 47, 48, 49, 50]);
    assert!(matches!(talk.state.decide(&actor("bob"), fresh(), &ask(3), Evidence::default(), T), Verdict::Read(_)));
}

/// Whatever bodies a deleted message has had are in no page of events, from memory or from the log.
#[test]
fn pages_of_events_do_not_show_what_was_deleted() {
    let mut talk = Talk::group(&["bob"]);
    talk.send("ada", "kept");
    talk.send("ada", "gone");
    talk.ok("ada", edit(2, "kept, better"));
    talk.ok("ada", edit(3, "gone, better"));
    talk.ok("ada", delete(3));
    let shown = |talk: &mut Talk, after| -> Vec<(Seq, bool)> {
        let list = Command::EventList { conversation: CONVERSATION, after, limit: 5 };
        let Reply::Events { items, .. } = talk.ok("bob", list) else { panic!("no events") };
        let has_body = |event: &Arc<Event>| match &event.fact {
            Fact::MessageNew { body, .. } | Fact::MessageUpdated { body, .. } => *body != Body::erased(),
            _ => true,
        };
        items.iter().map(|event| (event.seq, has_body(event))).collect()
    };
    let expected = [(2, true), (3, false), (4, true), (5, false), (6, true)];
    assert_eq!(shown(&mut talk, 1), expected);
    assert_eq!(shown(&mut talk, 4), expected[3..]);
    // What was delivered and stored is untouched.
    assert!(
        talk.log.iter().all(|event| !matches!(&event.fact, Fact::MessageNew { body, .. } if *body == Body::erased()))
    );
    for n in 0..60 {
        talk.send("ada", &n.to_string());
    }
    talk.state.hot.as_mut().unwrap().recent.trim(talk.state.head);
    assert_eq!(shown(&mut talk, 1), expected);
    // From memory also when the overlay is in the store already.
    let seq = talk.send("ada", "gone too").seq;
    talk.ok("ada", delete(seq));
    talk.settle();
    assert_eq!(shown(&mut talk, seq - 1), [(seq, false), (seq + 1, true)]);
}

#[test]
fn the_audience_is_the_members_before_and_whoever_it_is_about() {
    let mut talk = Talk::group(&["bob"]);
    let names = |audience: &Audience| -> Vec<String> {
        let Audience::Users(users) = audience else { panic!("{audience:?}") };
        users.iter().map(ToString::to_string).collect()
    };
    let audience_of = |talk: &mut Talk, who: &str, command: Command| {
        let Verdict::Append(event, _) = talk.state.decide(&actor(who), fresh(), &command, Evidence::default(), T)
        else {
            panic!("refused")
        };
        let audience = talk.state.audience(&event);
        talk.state.apply(&event);
        names(&audience)
    };
    assert_eq!(audience_of(&mut talk, "ada", add("eve", Role::Member)), ["ada", "bob", "eve"]);
    assert_eq!(audience_of(&mut talk, "ada", send("x")), ["ada", "bob", "eve"]);
    assert_eq!(audience_of(&mut talk, "ada", remove("bob")), ["ada", "bob", "eve"]);
    assert_eq!(audience_of(&mut talk, "ada", send("y")), ["ada", "eve"]);
}

#[test]
fn many_members_are_listeners() {
    let names: Vec<String> = (0..300).map(|n| format!("user-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut talk = Talk::group(&names);
    assert!(talk.state.is_large());
    let Verdict::Append(event, _) = talk.state.decide(&actor("ada"), fresh(), &send("x"), Evidence::default(), T)
    else {
        panic!("refused")
    };
    assert_eq!(*talk.state.audience(&event), Audience::Listeners(Vec::new()));
    let Verdict::Append(event, _) =
        talk.state.decide(&actor("ada"), fresh(), &add("zoe", Role::Member), Evidence::default(), T)
    else {
        panic!("refused")
    };
    assert_eq!(*talk.state.audience(&event), Audience::Listeners(vec![user("zoe")]));
    // Who is a member hears of their own removal where they listen, and only there.
    let Verdict::Append(event, _) =
        talk.state.decide(&actor("ada"), fresh(), &remove("user-007"), Evidence::default(), T)
    else {
        panic!("refused")
    };
    assert_eq!(*talk.state.audience(&event), Audience::Listeners(Vec::new()));
}

#[test]
fn a_snapshot_and_the_tail_make_the_same_state() {
    let mut talk = Talk::group(&["bob", "eve"]);
    for n in 0..40 {
        talk.send("ada", &n.to_string());
    }
    talk.ok("ada", remove("eve"));
    let bytes = talk.state.snapshot().unwrap();
    let cut = talk.log.len();
    talk.ok("ada", edit(3, "edited"));
    talk.ok("ada", add("eve", Role::Admin));
    let mut again = Conversation::from_snapshot(CONVERSATION, bytes.clone()).unwrap();
    assert_eq!(again.head, cut as u64);
    for event in &talk.log[cut..] {
        again.apply(event);
    }
    assert_eq!(again.members, talk.state.members);
    assert_eq!(
        (again.head, again.n, again.last_at, &again.settings),
        (talk.state.head, talk.state.n, talk.state.last_at, &talk.state.settings)
    );
    assert_eq!(again.snapshot(), talk.state.snapshot());
    // A retry is recognised after recovery too.
    let first = talk.log[5].clone();
    let verdict = again.decide(&actor("ada"), first.id, &send("4"), Evidence::default(), T);
    assert!(matches!(verdict, Verdict::Answer(Ok(Reply::Sent(Sent { seq: 6, duplicate: true, .. })))), "{verdict:?}");
    assert!(Conversation::from_snapshot(CONVERSATION, bytes.slice(..bytes.len() - 1)).is_err());
}

/// Resuming across a time away: what may not be seen is skipped, not taken for the end.
#[test]
fn a_page_finds_what_lies_beyond_a_time_away() {
    let mut talk = Talk::group(&["bob"]);
    talk.ok("ada", remove("bob"));
    for n in 0..100 {
        talk.send("ada", &n.to_string());
    }
    let back = talk.state.head + 1;
    talk.ok("ada", add("bob", Role::Member));
    let said = talk.send("ada", "welcome back").seq;
    let Reply::Events { items, .. } =
        talk.ok("bob", Command::EventList { conversation: CONVERSATION, after: 2, limit: 5 })
    else {
        panic!("no events")
    };
    assert_eq!(items.iter().map(|event| event.seq).collect::<Vec<_>>(), [back, said]);
    assert_eq!(talk.seqs("bob", From::Before(said), 5), [0; 0]);
    assert_eq!(talk.seqs("bob", From::After(1), 5), [said]);
    for after in [u64::MAX, u64::MAX - 1] {
        let list = Command::EventList { conversation: CONVERSATION, after, limit: 5 };
        assert!(matches!(talk.ok("bob", list), Reply::Events { items, .. } if items.is_empty()));
    }
}

#[test]
fn a_retried_deletion_of_the_conversation_is_answered_like_the_first() {
    let mut talk = Talk::group(&["bob"]);
    let id = id_at(T, 77);
    let first = talk.judge("ada", id, &DELETE);
    assert_eq!(talk.judge("ada", id, &DELETE), first);
    assert_eq!(talk.judge("bob", id, &DELETE), Err(Code::ConversationNotFound));
}

/// The promise of the issue: an idle, loaded conversation of ten members costs at most 1 KiB.
#[test]
fn an_idle_conversation_is_small() {
    let names: Vec<String> = (0..9).map(|n| format!("user-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut talk = Talk::group(&names);
    for n in 0..200 {
        talk.send("ada", &n.to_string());
    }
    talk.state.cool();
    assert!(talk.state.bytes() <= 1024, "{} bytes", talk.state.bytes());
    assert!(matches!(talk.state.decide(&actor("ada"), fresh(), &send("x"), Evidence::default(), T), Verdict::NeedHot));
    assert!(matches!(talk.state.decide(&actor("ada"), fresh(), &GET, Evidence::default(), T), Verdict::Answer(Ok(_))));
    assert_eq!(talk.state.snapshot(), None);
}

#[test]
fn facts_of_another_log_change_nothing() {
    let mut talk = Talk::group(&["bob"]);
    let event = Event { seq: 2, fact: Fact::ChangesReserved { upto: 9 }, ..(*talk.log[0]).clone() };
    talk.state.apply(&Arc::new(event));
    assert_eq!((talk.state.head, talk.state.members.len()), (2, 2));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn command() -> impl Strategy<Value = Command> {
        let name = prop::sample::select(vec!["ada", "bob", "eve", "zoe"]);
        let a_role = prop::sample::select(vec![Role::Member, Role::Admin, Role::Owner]);
        prop_oneof![
            4 => "[a-c]{1,3}".prop_map(|text| send(&text)),
            2 => (1..30u64, "[a-c]").prop_map(|(seq, text)| edit(seq, &text)),
            2 => (1..30u64).prop_map(delete),
            2 => (name.clone(), a_role.clone()).prop_map(|(name, role)| add(name, role)),
            1 => name.clone().prop_map(remove),
            1 => (name, a_role).prop_map(|(name, to)| role(name, to)),
            1 => Just(LEAVE),
            1 => "[a-z]{0,4}".prop_map(|title| Command::ConversationUpdate {
                conversation: CONVERSATION,
                update: Box::new(Update { title: Some(title), ..Update::default() }),
            }),
        ]
    }

    proptest! {
        /// Whatever is asked by whomever: the log is dense, replaying it gives the same state, and a conversation with
        /// members has an owner.
        #[test]
        fn any_commands_leave_a_sound_state(
            script in prop::collection::vec((prop::sample::select(vec!["ada", "bob", "eve", "zoe"]), command()), 0..60),
            cut in 0..60usize,
        ) {
            let mut talk = Talk::group(&["bob"]);
            let mut snapshot = None;
            for (step, (who, command)) in script.iter().enumerate() {
                if step == cut {
                    snapshot = talk.state.snapshot();
                }
                let _ = talk.judge(who, fresh(), command);
            }
            let mut replayed = Conversation::absent(CONVERSATION);
            for event in &talk.log {
                replayed.apply(event);
            }
            prop_assert_eq!(replayed.snapshot(), talk.state.snapshot());
            if let Some(bytes) = snapshot {
                let mut resumed = Conversation::from_snapshot(CONVERSATION, bytes).unwrap();
                for event in &talk.log[resumed.head as usize..] {
                    resumed.apply(event);
                }
                prop_assert_eq!(resumed.snapshot(), talk.state.snapshot());
            }
            prop_assert!(talk.state.members.is_empty() || talk.state.members.owners() > 0);
        }
    }

    /// Unread messages and mentions of a member, counted by going through the whole log.
    fn recount(log: &[Arc<Event>], who: &UserId, watermarks: &[(usize, UserId, u64)]) -> (u64, u64) {
        // What was read by watermark, and what by sending or joining: in the order in which it happened.
        let (mut read_n, mut member) = (0, false);
        let mut messages: Vec<(u64, UserId, Option<bool>)> = Vec::new();
        let names = |mentions: &Mentioned| mentions.as_ref().is_some_and(|mentions| mentions.name(who));
        for (index, event) in log.iter().enumerate() {
            match &event.fact {
                Fact::ConversationCreated { members, .. } => member = members.iter().any(|(user, _)| user == who),
                Fact::MemberJoined { user, .. } if user == who && !member => (member, read_n) = (true, event.n),
                Fact::MemberLeft { user } if user == who => member = false,
                Fact::MessageNew { mentions, .. } => {
                    messages.push((event.n, event.sender.clone(), Some(names(mentions))));
                    if event.sender == *who {
                        read_n = read_n.max(event.n);
                    }
                }
                Fact::MessageUpdated { mentions, .. } => {
                    let n = log[event.target as usize - 1].n;
                    messages[n as usize - 1].2 = Some(names(mentions));
                }
                Fact::MessageDeleted { .. } => messages[log[event.target as usize - 1].n as usize - 1].2 = None,
                _ => {}
            }
            let read = watermarks.iter().filter(|(after, user, _)| *after == index + 1 && user == who);
            read.for_each(|(_, _, n)| read_n = read_n.max(*n));
        }
        let unread = messages.iter().filter(|(n, sender, _)| *n > read_n && sender != who);
        let left: Vec<bool> = unread.filter_map(|(_, _, mentioned)| *mentioned).collect();
        (left.len() as u64, left.iter().filter(|mentioned| **mentioned).count() as u64)
    }

    /// What somebody does in a conversation whose counts are watched.
    #[derive(Clone, Debug)]
    enum Deed {
        Ask(Command),
        /// Reads up to so many messages before the last one.
        Read(u64),
        /// The conversation goes idle, or its owner dies: it comes back from its snapshot and the tail.
        Forget,
        Idle,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        let whom = prop::sample::subsequence(vec!["ada", "bob", "eve", "zoe", "nobody"], 0..3);
        let mentioned = (whom, prop::bool::weighted(0.2));
        prop_oneof![
            5 => mentioned.clone().prop_map(|(users, all)| Deed::Ask(mentioning("x", &users, all))),
            3 => (2..40u64, mentioned).prop_map(|(seq, (users, all))| {
                let Command::MessageSend { conversation, body, mentions } = mentioning("y", &users, all) else {
                    unreachable!()
                };
                Deed::Ask(Command::MessageEdit { conversation, seq, body, mentions })
            }),
            3 => (2..40u64).prop_map(|seq| Deed::Ask(delete(seq))),
            2 => prop::sample::select(vec!["bob", "eve", "zoe"]).prop_map(|name| Deed::Ask(add(name, Role::Admin))),
            1 => prop::sample::select(vec!["bob", "eve", "zoe"]).prop_map(|name| Deed::Ask(remove(name))),
            1 => Just(Deed::Ask(LEAVE)),
            2 => (0..6u64).prop_map(Deed::Read),
            1 => Just(Deed::Forget),
            1 => Just(Deed::Idle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// Rocket.Chat #19121, "unread counts wrong for months": they are computed, so they are those of a recount,
        /// whatever is edited, deleted, left, joined again, read, put away and recovered.
        #[test]
        fn rocket_chat_19121_counts_are_those_of_a_recount(
            deeds in prop::collection::vec((prop::sample::select(vec!["ada", "bob", "eve", "zoe"]), deed()), 1..80),
        ) {
            let mut talk = Talk::created(ConversationKind::Group, &["bob"], HistoryAccess::All);
            let mut watermarks = Vec::new();
            let mut snapshot = (0, None);
            for (who, deed) in deeds {
                match deed {
                    Deed::Ask(command) => _ = talk.judge(who, fresh(), &command),
                    Deed::Read(before) => {
                        let n = talk.state.n.saturating_sub(before);
                        if talk.state.members.get(&user(who)).is_some() {
                            talk.state.members.read(&user(who), n);
                            watermarks.push((talk.log.len(), user(who), n));
                            snapshot = (talk.log.len(), talk.state.snapshot());
                        }
                    }
                    Deed::Idle => {
                        snapshot = (talk.log.len(), talk.state.snapshot());
                        talk.state.cool();
                        talk.state.hot = Some(Box::default());
                        // What memory knew of ids and overlays is read again.
                        let mut again = Conversation::absent(CONVERSATION);
                        talk.log.iter().for_each(|event| again.apply(event));
                        talk.state.hot = again.hot;
                    }
                    Deed::Forget => {
                        let (at, bytes) = snapshot.clone();
                        let mut again = match bytes {
                            Some(bytes) => Conversation::from_snapshot(CONVERSATION, bytes).unwrap(),
                            None => Conversation::absent(CONVERSATION),
                        };
                        talk.log[at..].iter().for_each(|event| again.apply(event));
                        let mut whole = Conversation::absent(CONVERSATION);
                        talk.log.iter().for_each(|event| whole.apply(event));
                        again.hot = whole.hot;
                        talk.state = again;
                    }
                }
                for name in ["ada", "bob", "eve", "zoe"] {
                    let Some(standing) = talk.state.standing(&user(name)) else { continue };
                    let counts = standing.counts;
                    prop_assert!(!counts.unread_more && !counts.mentions_more);
                    let counted = recount(&talk.log, &user(name), &watermarks);
                    prop_assert_eq!((counts.unread, counts.mentions), counted, "{} at {}", name, talk.state.head);
                }
            }
        }
    }
}
