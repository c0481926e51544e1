//! Goal: every rule catches its violation, and no rule cries without one.
//! Method: a clean history of a small honest world, one planted violation, and exactly that rule must report it.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{Limits, Oracle, Rule, Verdict, sample};
use crate::history::{Connection, Conversation, Fact, Mark, Read, Record, Shown, User, What};

const LIMITS: Limits = Limits { unavailable_us_max: Some(5_000_000) };

fn judge(history: &[Record]) -> Verdict {
    let mut oracle = Oracle::new(LIMITS);
    history.iter().for_each(|record| oracle.observe(record));
    oracle.finish()
}

/// Plants into clean histories of several seeds and demands that exactly `rule` reports it.
fn planted(rule: Rule, plant: impl Fn(&mut Vec<Record>)) {
    for seed in 0..20 {
        let mut history = sample::clean(seed, 600);
        plant(&mut history);
        let verdict = judge(&history);
        let broken: Vec<_> = verdict.counts.iter().map(|(rule, _)| *rule).collect();
        assert_eq!(broken, [rule], "seed {seed}: {verdict}");
    }
}

/// The final reads of a conversation, as ranges of records from their start to their end.
fn final_reads(history: &[Record], wanted: Conversation) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, record) in history.iter().enumerate() {
        if let What::ReadStart { read: wanted_read, conversation, last: true, .. } = record.what
            && conversation == wanted
        {
            let ends = |record: &Record| matches!(record.what, What::ReadEnd { read, .. } if read == wanted_read);
            found.push((start, start + history[start..].iter().position(ends).unwrap()));
        }
    }
    found
}

/// The final read of user 0, who never leaves: the log.
fn log(history: &[Record], conversation: Conversation) -> Vec<(u64, Fact)> {
    let (start, end) = final_reads(history, conversation)[0];
    let item = |record: &Record| match record.what {
        What::ReadItem { seq, fact, .. } => Some((seq, fact)),
        _ => None,
    };
    history[start..end].iter().filter_map(item).collect()
}

/// Appends an event to the log, as every final read of somebody who stayed shows it.
fn append(history: &mut Vec<Record>, conversation: Conversation, fact: Fact) {
    let head = log(history, conversation).len() as u64;
    for (_, end) in final_reads(history, conversation).into_iter().rev() {
        let What::ReadEnd { read, head: found } = history[end].what else { unreachable!() };
        if found == head {
            let at = history[end].at;
            history[end].what = What::ReadEnd { read, head: head + 1 };
            history.insert(end, Record { at, what: What::ReadItem { read, seq: head + 1, fact } });
        }
    }
}

fn insert_before_final_reads(history: &mut Vec<Record>, what: impl IntoIterator<Item = What>) {
    let index = history.iter().position(|record| matches!(record.what, What::ReadStart { last: true, .. })).unwrap();
    let at = history[index].at;
    history.splice(index..index, what.into_iter().map(|what| Record { at, what }));
}

fn push(history: &mut Vec<Record>, what: What) {
    let at = history.last().unwrap().at;
    history.push(Record { at, what });
}

const HOME: Conversation = Conversation(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn clean_histories_pass(seed in any::<u64>(), steps in 0usize..1500) {
        let verdict = judge(&sample::clean(seed, steps));
        prop_assert!(verdict.is_clean(), "{}", verdict);
        prop_assert_eq!(verdict.stats.acked_unread, 0);
    }

    #[test]
    fn any_order_of_records_is_judged_without_a_panic(seed in any::<u64>(), swaps in prop::collection::vec((0usize..900, 0usize..900), 0..200)) {
        let mut history = sample::clean(seed, 300);
        for (a, b) in swaps {
            let (a, b) = (a % history.len(), b % history.len());
            history.swap(a, b);
        }
        let _ = judge(&history);
    }
}

#[test]
fn rule_1_a_lost_tail() {
    planted(Rule::NoLoss, |history| {
        let (_, end) = final_reads(history, HOME)[1];
        let What::ReadEnd { read, head } = history[end].what else { unreachable!() };
        history[end].what = What::ReadEnd { read, head: head - 1 };
        history.remove(end - 1);
    });
}

#[test]
fn rule_1_a_lost_event_in_the_middle() {
    planted(Rule::NoLoss, |history| {
        let (start, end) = final_reads(history, HOME)[1];
        history.remove(usize::midpoint(start, end));
    });
}

#[test]
fn rule_2_a_body_nobody_wrote() {
    planted(Rule::NoPhantom, |history| {
        let hash = history.iter_mut().rev().find_map(|record| match &mut record.what {
            What::Deliver { fact: Fact::Message { hash: Some(hash), .. }, .. } => Some(hash),
            _ => None,
        });
        *hash.unwrap() ^= 1;
    });
}

#[test]
fn rule_2_a_refused_message_exists() {
    planted(Rule::NoPhantom, |history| {
        let acked = history.iter().rev().find_map(|record| match record.what {
            What::Ack { id, .. } => Some(id),
            _ => None,
        });
        for record in history.iter_mut() {
            if matches!(record.what, What::Ack { id, .. } if Some(id) == acked) {
                record.what = What::Fail { id: acked.unwrap() };
            }
        }
    });
}

#[test]
fn rule_3_a_retry_became_a_second_message() {
    planted(Rule::NoDuplicate, |history| {
        let (_, fact) = *log(history, HOME).last().unwrap();
        append(history, HOME, fact);
    });
}

#[test]
fn rule_4_two_readers_see_two_orders() {
    planted(Rule::TotalOrder, |history| {
        let (_, end) = final_reads(history, HOME)[1];
        // The last two items are messages that were not deleted.
        let (What::ReadItem { fact: a, .. }, What::ReadItem { fact: b, .. }) =
            (history[end - 2].what.clone(), history[end - 1].what.clone())
        else {
            unreachable!()
        };
        for (index, other) in [(end - 2, b), (end - 1, a)] {
            if let What::ReadItem { fact, .. } = &mut history[index].what {
                *fact = other;
            }
        }
    });
}

#[test]
fn rule_5_a_seq_that_nobody_ever_had() {
    planted(Rule::Dense, |history| {
        let (last, fact) = *log(history, HOME).last().unwrap();
        let Fact::Message { id: moved, .. } = fact else { unreachable!() };
        for (_, end) in final_reads(history, HOME) {
            if let What::ReadItem { seq, .. } = &mut history[end - 1].what
                && *seq == last
            {
                *seq += 1;
                if let What::ReadEnd { head, .. } = &mut history[end].what {
                    *head += 1;
                }
            }
        }
        history.retain(|record| !matches!(record.what, What::Show { conversation: HOME, seq, .. } if seq == last));
        for record in history {
            if let What::Ack { id, seq } = &mut record.what
                && *id == moved
            {
                *seq += 1;
            }
        }
    });
}

#[test]
fn rule_6_a_later_send_stands_before_an_acknowledged_one() {
    planted(Rule::RealTime, |history| {
        let all = log(history, HOME);
        let [.., (seq_a, fact_a), (seq_b, fact_b)] = all[..] else { unreachable!() };
        let (Fact::Message { id: id_a, .. }, Fact::Message { id: id_b, .. }) = (fact_a, fact_b) else { unreachable!() };
        history.retain(|record| !matches!(record.what, What::Show { .. }));
        for record in history.iter_mut() {
            match &mut record.what {
                What::Ack { id, seq } if *id == id_a => *seq = seq_b,
                What::Ack { id, seq } if *id == id_b => *seq = seq_a,
                What::ReadItem { fact, .. } if *fact == fact_a => *fact = fact_b,
                What::ReadItem { fact, .. } if *fact == fact_b => *fact = fact_a,
                _ => {}
            }
        }
    });
}

#[test]
fn rule_7_a_read_that_forgot() {
    planted(Rule::Reads, |history| {
        let (_, fact) = log(history, HOME)[0];
        let read = Read(9_999);
        insert_before_final_reads(
            history,
            [
                What::ReadStart { read, user: User(0), conversation: HOME, after: 0, last: false },
                What::ReadItem { read, seq: 1, fact },
                What::ReadEnd { read, head: 1 },
            ],
        );
    });
}

#[test]
fn rule_8_an_event_delivered_twice() {
    planted(Rule::Stream, |history| {
        let index = history.iter().rposition(|record| matches!(record.what, What::Deliver { .. })).unwrap();
        let again = history[index].clone();
        history.insert(index + 1, again);
    });
}

#[test]
fn rule_8_an_event_skipped() {
    planted(Rule::Stream, |history| {
        let index = history
            .iter()
            .rposition(|record| {
                let What::Deliver { connection: c, conversation: v, seq: s, .. } = record.what else { return false };
                history.iter().any(|later| matches!(later.what, What::Deliver { connection, conversation, seq, .. } if (connection, conversation, seq) == (c, v, s + 1)))
                    && history.iter().any(|before| matches!(before.what, What::Deliver { connection, conversation, seq, .. } if (connection, conversation, seq) == (c, v, s - 1)))
            })
            .unwrap();
        history.remove(index);
    });
}

#[test]
fn rule_8_a_resync_without_a_read() {
    planted(Rule::Stream, |history| {
        // Somebody who never leaves: who has left cannot read.
        let wanted = User(0);
        let is_theirs = |connection: Connection| {
            history.iter().any(
                |record| matches!(record.what, What::Connect { connection: c, user } if (c, user) == (connection, wanted)),
            )
        };
        let (connection, at) = history
            .iter()
            .rev()
            .find_map(|record| match record.what {
                What::Deliver { connection, conversation: HOME, .. } if is_theirs(connection) => {
                    Some((connection, record.at))
                }
                _ => None,
            })
            .unwrap();
        let head = log(history, HOME).len() as u64;
        let from = history.iter().rposition(|record| record.at == at).unwrap();
        // Nobody of this user reads after the resync but in the end.
        let later: Vec<_> = history[from..]
            .iter()
            .filter_map(|record| match record.what {
                What::ReadStart { read, user, conversation: HOME, last: false, .. } if user == wanted => Some(read),
                _ => None,
            })
            .collect();
        history.retain(|record| match record.what {
            What::ReadStart { read, .. } | What::ReadItem { read, .. } | What::ReadEnd { read, .. } => {
                !later.contains(&read)
            }
            _ => true,
        });
        history.insert(from + 1, Record { at, what: What::Resync { connection, conversation: HOME, head } });
    });
}

/// User 0 has said and was accepted to have got and read two messages, before anything is seen of it.
fn said(history: &mut Vec<Record>, delivered: u64, read: u64) {
    let (user, conversation) = (User(0), HOME);
    push(history, What::ReceiptStart { user, conversation, delivered, read });
    push(history, What::ReceiptAck { user, conversation, delivered, read });
}

fn saw(history: &mut Vec<Record>, mark: Mark, upto: u64) {
    push(history, What::Receipt { connection: Connection(77), user: User(0), conversation: HOME, mark, upto });
}

fn fault(history: &mut Vec<Record>, begins: bool) {
    push(history, What::Fault { name: "kill".into(), begins, forgets: true });
}

fn shown(history: &mut Vec<Record>, delivered: u64, read: u64) {
    let (observer, user, conversation) = (User(77), User(0), HOME);
    push(history, What::ReceiptShown { observer, user, conversation, delivered, read });
}

#[test]
fn rule_9_a_receipt_that_falls() {
    planted(Rule::Receipts, |history| {
        said(history, 2, 2);
        for upto in [2, 1] {
            saw(history, Mark::Delivered, upto);
        }
    });
}

#[test]
fn rule_9_a_receipt_ahead_of_everything() {
    planted(Rule::Receipts, |history| {
        said(history, 1 << 40, 0);
        saw(history, Mark::Delivered, 1 << 40);
    });
}

#[test]
fn rule_9_delivered_below_read() {
    planted(Rule::Receipts, |history| {
        said(history, 2, 2);
        for (mark, upto) in [(Mark::Delivered, 2), (Mark::Read, 2), (Mark::Delivered, 1)] {
            saw(history, mark, upto);
        }
    });
    planted(Rule::Receipts, |history| {
        said(history, 2, 2);
        saw(history, Mark::Delivered, 1);
        saw(history, Mark::Read, 2);
    });
}

/// What somebody read for themselves is seen by others, or what nobody has said.
#[test]
fn rule_9_more_than_was_said_is_seen() {
    let before = |history: &[Record]| {
        let of_user_0 =
            |record: &Record| matches!(record.what, What::ReceiptStart { user: User(0), conversation: HOME, .. });
        history.iter().any(of_user_0)
    };
    planted(Rule::Receipts, |history| {
        // In some samples user 0 has said something before.
        history.retain(|record| match record.what {
            What::Receipt { user, conversation, .. }
            | What::ReceiptStart { user, conversation, .. }
            | What::ReceiptAck { user, conversation, .. } => (user, conversation) != (User(0), HOME),
            _ => true,
        });
        assert!(!before(history));
        said(history, 2, 0);
        saw(history, Mark::Delivered, 2);
        saw(history, Mark::Read, 2);
    });
}

#[test]
fn rule_9_what_was_accepted_is_not_shown_in_the_end() {
    planted(Rule::Receipts, |history| {
        fault(history, true);
        fault(history, false);
        said(history, 2, 2);
        shown(history, 2, 1);
    });
}

/// A fault may take back what no row held, at any moment while it lasts; clients say it again.
#[test]
fn a_fault_takes_receipts_back_and_they_heal() {
    let mut history = sample::clean(1, 600);
    said(&mut history, 2, 2);
    saw(&mut history, Mark::Delivered, 2);
    saw(&mut history, Mark::Read, 2);
    fault(&mut history, true);
    for _ in 0..2 {
        saw(&mut history, Mark::Delivered, 1);
        saw(&mut history, Mark::Delivered, 2);
        saw(&mut history, Mark::Read, 2);
    }
    fault(&mut history, false);
    saw(&mut history, Mark::Delivered, 1);
    shown(&mut history, 1, 0);
    said(&mut history, 2, 2);
    shown(&mut history, 2, 2);
    let verdict = judge(&history);
    assert!(verdict.is_clean(), "{verdict}");
}

/// What falls when nothing is wrong any more is wrong, and so is what nobody can have seen, at any time.
#[test]
fn rule_9_holds_again_when_the_fault_is_over_and_partly_before() {
    let lasting = |history: &mut Vec<Record>| {
        said(history, 2, 2);
        fault(history, true);
        fault(history, true);
        fault(history, false);
        saw(history, Mark::Delivered, 2);
        saw(history, Mark::Read, 2);
    };
    planted(Rule::Receipts, |history| {
        lasting(history);
        fault(history, false);
        saw(history, Mark::Delivered, 2);
        saw(history, Mark::Delivered, 1);
    });
    planted(Rule::Receipts, |history| {
        lasting(history);
        saw(history, Mark::Delivered, 1);
        // Read, and not delivered.
        saw(history, Mark::Read, 2);
    });
    planted(Rule::Receipts, |history| {
        lasting(history);
        saw(history, Mark::Delivered, 1 << 40);
    });
    // A fault by which nobody forgets anything takes nothing back.
    planted(Rule::Receipts, |history| {
        said(history, 2, 2);
        push(history, What::Fault { name: "pause".into(), begins: true, forgets: false });
        saw(history, Mark::Delivered, 2);
        saw(history, Mark::Delivered, 1);
    });
}

#[test]
fn rule_11_a_receipt_is_heard_after_leaving() {
    planted(Rule::Membership, |history| {
        let leaver = User(78);
        let head = 0;
        let connection = Connection(78);
        push(history, What::Connect { connection, user: leaver });
        push(history, What::Join { user: leaver, conversation: HOME, from: head });
        push(history, What::Leave { user: leaver, conversation: HOME, upto: head });
        said(history, 2, 2);
        let late = Record {
            at: history.last().unwrap().at + 3_000_000,
            what: What::Receipt { connection, user: User(0), conversation: HOME, mark: Mark::Delivered, upto: 1 },
        };
        history.push(late);
    });
}

/// Somebody reads a message, leaves, and comes back; meanwhile it is edited. `read` tells which seqs they are shown then.
fn away(history: &mut Vec<Record>, read: &[u64]) {
    let (user, conversation, connection) = (User(79), Conversation(9), Connection(79));
    let facts = [
        Fact::Join { user },
        Fact::Message { id: uuid::Uuid::from_u128(901), hash: Some(1) },
        Fact::Leave { user },
        Fact::Other { mark: 7 },
        Fact::Edit { target: 2, hash: Some(2) },
        Fact::Other { mark: 8 },
        Fact::Join { user },
    ];
    push(history, What::SendStart { user: User(0), conversation, id: uuid::Uuid::from_u128(901), hash: 1 });
    push(
        history,
        What::ChangeStart { user: User(0), conversation, target: 2, id: uuid::Uuid::from_u128(902), hash: Some(2) },
    );
    push(history, What::Ack { id: uuid::Uuid::from_u128(901), seq: 2 });
    push(history, What::Connect { connection, user });
    push(history, What::Join { user, conversation, from: 0 });
    push(history, What::Leave { user, conversation, upto: 3 });
    push(history, What::Join { user, conversation, from: 6 });
    push(history, What::Resume { connection, conversation, from: 0 });
    let show = |history: &mut Vec<Record>, number, reader, after, seqs: &[u64], last| {
        let read = Read(number);
        push(history, What::ReadStart { read, user: reader, conversation, after, last });
        for seq in seqs {
            push(history, What::ReadItem { read, seq: *seq, fact: facts[*seq as usize - 1] });
        }
        push(history, What::ReadEnd { read, head: 7 });
    };
    for seq in 1..=3 {
        push(history, What::Deliver { connection, conversation, seq, fact: facts[seq as usize - 1] });
    }
    push(history, What::Join { user: User(0), conversation, from: 0 });
    show(history, 9001, user, 3, read, false);
    show(history, 9002, User(0), 0, &[1, 2, 3, 4, 5, 6, 7], true);
}

#[test]
fn who_was_away_is_shown_what_became_of_their_messages_and_no_more() {
    let mut history = sample::clean(9, 600);
    away(&mut history, &[5, 7]);
    let verdict = judge(&history);
    assert!(verdict.is_clean(), "{verdict}");
    planted(Rule::Dense, |history| away(history, &[7]));
    planted(Rule::Membership, |history| away(history, &[4, 5, 7]));
}

#[test]
fn rule_10_a_tombstone_is_shown_alive() {
    planted(Rule::Changes, |history| {
        let (target, original) = deleted(history);
        for record in history {
            if let What::Show { conversation: HOME, seq, shown, .. } = &mut record.what
                && *seq == target
            {
                *shown = Shown::Body(original);
            }
        }
    });
}

#[test]
fn rule_10_a_tombstone_rises() {
    planted(Rule::Changes, |history| {
        let (target, _) = deleted(history);
        let id = uuid::Uuid::from_u128(1 << 100);
        insert_before_final_reads(
            history,
            [What::ChangeStart { user: User(0), conversation: HOME, target, id, hash: Some(5) }],
        );
        append(history, HOME, Fact::Edit { target, hash: Some(5) });
    });
}

#[test]
fn rule_10_a_body_withheld_from_the_living() {
    planted(Rule::Changes, |history| {
        let (_, end) = final_reads(history, HOME)[0];
        if let What::ReadItem { fact: Fact::Message { hash, .. }, .. } = &mut history[end - 1].what {
            *hash = None;
        }
    });
}

#[test]
fn rule_10_a_body_withheld_for_a_deletion_that_came_to_nothing() {
    planted(Rule::Changes, |history| {
        let alive = |history: &[Record]| {
            let events = log(history, HOME);
            let dead = |seq| events.iter().any(|(_, fact)| matches!(fact, Fact::Delete { target } if *target == seq));
            events.iter().find_map(|(seq, fact)| (matches!(fact, Fact::Message { .. }) && !dead(*seq)).then_some(*seq))
        };
        let target = alive(history).unwrap();
        let id = uuid::Uuid::from_u128(1 << 102);
        insert_before_final_reads(
            history,
            [What::ChangeStart { user: User(0), conversation: HOME, target, id, hash: None }],
        );
        let (begin, end) = final_reads(history, HOME)[0];
        for record in &mut history[begin..end] {
            if let What::ReadItem { seq, fact: Fact::Message { hash, .. }, .. } = &mut record.what
                && *seq == target
            {
                *hash = None;
            }
        }
    });
}

/// Somebody edits a message that lives, and all are shown the edit without its words.
fn withheld_edit(history: &mut Vec<Record>) -> u64 {
    let events = log(history, HOME);
    let dead = |seq| events.iter().any(|(_, fact)| matches!(fact, Fact::Delete { target } if *target == seq));
    let alive = events.iter().find(|(seq, fact)| matches!(fact, Fact::Message { .. }) && !dead(*seq));
    let (target, _) = *alive.unwrap();
    let id = uuid::Uuid::from_u128(1 << 103);
    let edit = What::ChangeStart { user: User(0), conversation: HOME, target, id, hash: Some(5) };
    insert_before_final_reads(history, [edit]);
    append(history, HOME, Fact::Edit { target, hash: None });
    target
}

#[test]
fn rule_10_an_edit_withheld_from_the_living() {
    planted(Rule::Changes, |history| {
        withheld_edit(history);
    });
    planted(Rule::Changes, |history| {
        let target = withheld_edit(history);
        append(history, HOME, Fact::Purged { floor: target - 1 });
    });
}

#[test]
fn an_edit_may_outlive_its_message_without_its_words() {
    for seed in 0..20 {
        let mut history = sample::clean(seed, 600);
        let target = withheld_edit(&mut history);
        append(&mut history, HOME, Fact::Purged { floor: target });
        let verdict = judge(&history);
        assert!(verdict.is_clean(), "seed {seed}: {verdict}");
    }
}

/// A message of `HOME` that lives, and to which user 0 does not react with this key.
const NEW_KEY: u32 = 77;

fn living(history: &[Record]) -> u64 {
    let events = log(history, HOME);
    let dead = |seq| events.iter().any(|(_, fact)| matches!(fact, Fact::Delete { target } if *target == seq));
    let living = |(seq, fact): &(u64, Fact)| (matches!(fact, Fact::Message { .. }) && !dead(*seq)).then_some(*seq);
    events.iter().find_map(living).unwrap()
}

/// Somebody reacts, or takes it back, and everybody reads it.
fn react(history: &mut Vec<Record>, target: u64, on: bool, is_asked_for: bool) {
    let (user, key) = (User(0), NEW_KEY);
    if is_asked_for {
        let asked = What::ReactStart { user, conversation: HOME, target, key, on };
        insert_before_final_reads(history, [asked]);
    }
    append(history, HOME, Fact::React { target, user, key, on });
    // What is shown is another matter.
    history.retain(|record| !matches!(record.what, What::Counted { conversation: HOME, .. }));
}

#[test]
fn rule_10_a_reaction_that_was_there_already() {
    planted(Rule::Changes, |history| {
        let target = living(history);
        react(history, target, true, true);
        react(history, target, true, true);
    });
}

#[test]
fn rule_10_a_reaction_taken_back_that_was_not_there() {
    planted(Rule::Changes, |history| {
        let target = living(history);
        react(history, target, false, true);
    });
}

#[test]
fn rule_10_a_reaction_to_the_dead() {
    planted(Rule::Changes, |history| {
        let (target, _) = deleted(history);
        react(history, target, true, true);
    });
}

#[test]
fn rule_2_a_reaction_that_nobody_made() {
    planted(Rule::NoPhantom, |history| {
        let target = living(history);
        react(history, target, true, false);
    });
}

#[test]
fn rule_10_counts_that_the_log_does_not_add_up_to() {
    for own in [false, true] {
        planted(Rule::Changes, |history| {
            let counted = history.iter_mut().rev().find_map(|record| match &mut record.what {
                What::Counted { counts, .. } => Some(counts),
                _ => None,
            });
            let counts = counted.unwrap();
            *(if own { &mut counts.own } else { &mut counts.all }) ^= 1;
        });
    }
}

/// A message of `HOME` that was deleted, planted if chance did not.
fn deleted(history: &mut Vec<Record>) -> (u64, u64) {
    let events = log(history, HOME);
    let original = |target: u64| {
        let Fact::Message { id: wanted, .. } = events[target as usize - 1].1 else { unreachable!() };
        history
            .iter()
            .find_map(|record| match record.what {
                What::SendStart { id, hash, .. } if id == wanted => Some(hash),
                _ => None,
            })
            .unwrap()
    };
    if let Some(target) =
        events.iter().find_map(|(_, fact)| if let Fact::Delete { target } = fact { Some(*target) } else { None })
    {
        return (target, original(target));
    }
    let target = events.len() as u64;
    let found = (target, original(target));
    let id = uuid::Uuid::from_u128(1 << 101);
    insert_before_final_reads(
        history,
        [What::ChangeStart { user: User(0), conversation: HOME, target, id, hash: None }],
    );
    append(history, HOME, Fact::Delete { target });
    for record in history {
        if let What::Show { conversation: HOME, seq, shown, .. } = &mut record.what
            && *seq == target
        {
            *shown = Shown::Tombstone;
        }
    }
    found
}

#[test]
fn rule_11_an_outsider_is_shown_something() {
    planted(Rule::Membership, |history| {
        let (seq, fact) = log(history, HOME)[0];
        let connection = Connection(9_999);
        push(history, What::Connect { connection, user: User(99) });
        push(history, What::Deliver { connection, conversation: HOME, seq, fact });
    });
}

#[test]
fn rule_11_a_newcomer_is_shown_the_past() {
    planted(Rule::Membership, |history| {
        let (seq, fact) = log(history, HOME)[1];
        let from = log(history, HOME).len() as u64;
        let connection = Connection(9_999);
        push(history, What::Join { user: User(99), conversation: HOME, from });
        push(history, What::Connect { connection, user: User(99) });
        push(history, What::Deliver { connection, conversation: HOME, seq, fact });
    });
}

#[test]
fn rule_12_a_conversation_stands_still() {
    planted(Rule::Availability, |history| {
        let index = history.iter().rposition(|record| matches!(record.what, What::Ack { .. })).unwrap();
        history[index..].iter_mut().for_each(|record| record.at += 10_000_000);
    });
}

#[test]
fn rule_12_quick_refusals_are_no_success() {
    let mut history = Vec::new();
    let mut at = 0;
    for number in 0..100 {
        at += 1_000_000;
        let id = uuid::Uuid::from_u128(number);
        history.push(Record { at, what: What::SendStart { user: User(0), conversation: HOME, id, hash: 1 } });
        history.push(Record { at: at + 10, what: What::Fail { id } });
    }
    assert_eq!(judge(&history).counts, [(Rule::Availability, 1)]);
}

#[test]
fn rule_13_somebody_types_for_ever() {
    planted(Rule::Presence, |history| {
        let (user, observer, conversation) = (User(0), User(1), Some(HOME));
        insert_before_final_reads(
            history,
            [
                What::Presence { user, conversation, on: true },
                What::PresenceSeen { observer, user, conversation, on: true },
            ],
        );
        let end = history.last().unwrap().at + 6_000_000;
        history.push(Record { at: end, what: What::Fault { name: "none".into(), begins: true, forgets: true } });
    });
}

#[test]
fn an_unbelievable_seq_costs_no_memory() {
    let id = uuid::Uuid::from_u128(1);
    let history = [
        Record { at: 1, what: What::SendStart { user: User(0), conversation: HOME, id, hash: 1 } },
        Record { at: 2, what: What::Ack { id, seq: u64::MAX } },
    ];
    assert_eq!(judge(&history).counts, [(Rule::Dense, 1)]);
}

/// A figure, not an assertion: how fast the judge is.
#[test]
fn a_large_history_is_judged_in_one_pass() {
    let history = sample::clean(7, 20_000);
    let began = std::time::Instant::now();
    let verdict = judge(&history);
    let seconds = began.elapsed().as_secs_f64();
    assert!(verdict.is_clean(), "{verdict}");
    println!("{} records judged in {seconds:.3} s: {:.0} k/s", history.len(), history.len() as f64 / seconds / 1e3);
}
