//! How a life begins and ends, beside what the simulator searches.

use std::net::{Ipv4Addr, SocketAddr};

use chappe_cluster::{
    control::Answer,
    ownership::{Assignment, ClusterId, Founding, Move, Ownership, Versions},
};
use chappe_schema::id::{ConversationId, NodeUid};

use super::*;

const ME: NodeUid = NodeUid(4);

/// The cluster's decisions, one after the other.
struct Cluster {
    state: Ownership,
    index: u64,
}

impl Cluster {
    fn founded() -> Self {
        let mut cluster = Self { state: Ownership::default(), index: 0 };
        cluster.decide(&Command::Found(Founding { cluster: ClusterId(1), generation: 1, partitions: 4, version: 1 }));
        cluster
    }

    fn decide(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let result = self.state.apply(self.index, command);
        Outcome::Answered(Answer { result, version: self.state.map().version() })
    }

    fn map(&self) -> Map {
        self.state.map().clone()
    }
}

fn sessions() -> Sessions {
    sessions_of(ME)
}

fn sessions_of(node: NodeUid) -> Sessions {
    let me = Introduction {
        node,
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        zone: String::new(),
        ordinal: 0,
        weight: 1,
        versions: Versions { min: 1, max: 1 },
    };
    Sessions::new(me, Generation(7))
}

fn proposed(effects: &[Effect]) -> Vec<Command> {
    let proposal = |effect: &Effect| if let Effect::Propose(command) = effect { Some(command.clone()) } else { None };
    effects.iter().filter_map(proposal).collect()
}

/// The one session that is to be entered in the store's registry.
fn enrols(effects: &[Effect]) -> SessionId {
    let [Effect::Enrol(session)] = effects else { panic!("one session is entered") };
    *session
}

#[test]
fn a_life_begins_when_the_store_has_entered_it_and_another_when_it_ends() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    assert!(sessions.tick(0).is_empty(), "nothing is known of a cluster");
    let effects = sessions.map_changed(cluster.map(), 1);
    let [register] = &proposed(&effects)[..] else { panic!("one proposal") };
    assert!(sessions.tick(2).is_empty(), "it is on its way");
    let outcome = cluster.decide(register);
    let effects = sessions.answered(register, &outcome);
    let session = enrols(&effects);
    assert_eq!(sessions.living(), None);
    assert!(sessions.enrolled(session, None).is_empty(), "the store could not say");
    let effects = sessions.tick(2 + 20 * AGAIN_MS);
    assert!(matches!(effects[..], [Effect::Enrol(again)] if again == session));
    sessions.map_changed(cluster.map(), 10_000);
    let effects = sessions.enrolled(session, Some(Generation(7)));
    assert!(matches!(effects[0], Effect::Begin(begun) if begun == session));
    assert_eq!(sessions.living(), Some(session));

    // It ends, and the next is asked for at once.
    cluster.decide(&Command::ExpireAndAssign { session: Some(session), minute: None, assignments: Vec::new() });
    let effects = sessions.map_changed(cluster.map(), 10_001);
    assert!(matches!(effects[0], Effect::End(_)));
    assert_eq!(proposed(&effects).len(), 1);
}

/// The answer to a registration may come before maps that were made before it.
#[test]
fn a_map_of_before_its_registration_ends_no_life() {
    for is_entered in [false, true] {
        let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
        let register = proposed(&sessions.map_changed(cluster.map(), 1)).remove(0);
        // Others are decided about meanwhile, and seen late.
        cluster.decide(&Command::SetDrain { session: 77, slot: true });
        let other = sessions_of(NodeUid(9)).map_changed(cluster.map(), 0);
        cluster.decide(&proposed(&other)[0]);
        let late = cluster.map();
        let outcome = cluster.decide(&register);
        let effects = sessions.answered(&register, &outcome);
        let session = enrols(&effects);
        if is_entered {
            sessions.enrolled(session, Some(Generation(7)));
        }
        let effects = sessions.map_changed(late, 2);
        assert!(proposed(&effects).is_empty() && !effects.iter().any(|effect| matches!(effect, Effect::End(_))));
        sessions.map_changed(cluster.map(), 3);
        sessions.enrolled(session, Some(Generation(7)));
        assert_eq!(sessions.living(), Some(session));
    }
}

/// Two registrations on their way, each with its answer: the second ends what the first has begun.
fn registered_twice() -> (Cluster, Sessions, [(Command, Outcome); 2]) {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let first = proposed(&sessions.map_changed(cluster.map(), 1)).remove(0);
    let second = proposed(&sessions.tick(1 + 10 * AGAIN_MS)).remove(0);
    let answered = [first, second].map(|register| {
        let outcome = cluster.decide(&register);
        (register, outcome)
    });
    (cluster, sessions, answered)
}

/// Two registrations on their way: the second ends what the first has begun. (Seed 2600: for ever, as each end asked for one more.)
#[test]
fn registrations_that_overtake_each_other_come_to_an_end() {
    let (cluster, mut sessions, [(first, one), (second, other)]) = registered_twice();
    let effects = sessions.answered(&first, &one);
    let ended = enrols(&effects);
    let effects = sessions.map_changed(cluster.map(), 2 + 10 * AGAIN_MS);
    assert!(proposed(&effects).is_empty(), "one is on its way");
    let effects = sessions.answered(&second, &other);
    let session = enrols(&effects);
    assert_ne!(session, ended);
    sessions.enrolled(session, Some(Generation(7)));
    assert_eq!(sessions.living(), Some(session));
}

/// The answers to two registrations come the other way round: the older one tells of a session that has ended.
#[test]
fn an_older_answer_does_not_replace_what_lives() {
    for is_map_first in [false, true] {
        let (cluster, mut sessions, [(first, one), (second, other)]) = registered_twice();
        let effects = sessions.answered(&second, &other);
        let session = enrols(&effects);
        if is_map_first {
            sessions.map_changed(cluster.map(), 2 + 10 * AGAIN_MS);
        }
        assert!(sessions.answered(&first, &one).is_empty());
        sessions.map_changed(cluster.map(), 3 + 10 * AGAIN_MS);
        sessions.enrolled(session, Some(Generation(7)));
        assert_eq!(sessions.living(), Some(session));
    }
}

/// The map shows that a session has ended before its node hears that it began.
#[test]
fn a_session_that_the_map_shows_as_ended_is_not_begun() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let register = proposed(&sessions.map_changed(cluster.map(), 1)).remove(0);
    let outcome = cluster.decide(&register);
    let Outcome::Answered(Answer { result: Ok(Applied::Registered { session, .. }), .. }) = outcome else {
        panic!("it is registered")
    };
    cluster.decide(&Command::ExpireAndAssign { session: Some(session), minute: None, assignments: Vec::new() });
    assert!(sessions.map_changed(cluster.map(), 2).is_empty(), "an answer is on its way");
    let effects = sessions.answered(&register, &outcome);
    assert_eq!(proposed(&effects).len(), 1, "the next is asked for at once");
}

#[test]
fn a_history_of_another_generation_ends_the_process() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let register = proposed(&sessions.map_changed(cluster.map(), 0)).remove(0);
    let outcome = cluster.decide(&register);
    let effects = sessions.answered(&register, &outcome);
    let session = enrols(&effects);
    let effects = sessions.enrolled(session, Some(Generation(8)));
    assert!(matches!(effects[..], [Effect::Refuse(_)]));
    assert_eq!(sessions.living(), None);
}

#[test]
fn who_left_for_good_asks_for_no_life_and_ends_when_nobody_needs_it() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let register = proposed(&sessions.map_changed(cluster.map(), 0)).remove(0);
    let outcome = cluster.decide(&register);
    let effects = sessions.answered(&register, &outcome);
    let session = enrols(&effects);
    sessions.map_changed(cluster.map(), 1);
    sessions.enrolled(session, Some(Generation(7)));

    cluster.decide(&Command::RetireNode { node: ME, released: false });
    let effects = sessions.map_changed(cluster.map(), 2);
    assert!(matches!(effects[..], [Effect::End(_)]), "its life ends, and no other begins");
    for second in 1..100 {
        assert!(sessions.tick(second * 1_000).is_empty(), "others may need its vote");
    }
    cluster.decide(&Command::RetireNode { node: ME, released: true });
    let effects = sessions.map_changed(cluster.map(), 100_000);
    assert!(matches!(effects[..], [Effect::Refuse(_)]));

    // Started again, it learns so at once.
    let mut again = super::tests::sessions();
    let effects = again.map_changed(cluster.map(), 0);
    assert!(matches!(effects[..], [Effect::Refuse(_)]));
}

/// A giver and a receiver, all of whose partitions are the giver's and planned for the receiver.
struct Two {
    cluster: Cluster,
    plan: PlanId,
    giver: Sessions,
    receiver: Sessions,
}

impl Two {
    fn planned() -> Self {
        let mut cluster = Cluster::founded();
        let [giver, receiver] = [1, 2].map(|node| {
            let mut sessions = sessions_of(NodeUid(node));
            let asked = proposed(&sessions.map_changed(cluster.map(), 0));
            let [register] = &asked[..] else { panic!("it registers") };
            let outcome = cluster.decide(register);
            let effects = sessions.answered(register, &outcome);
            let session = enrols(&effects);
            sessions.map_changed(cluster.map(), 0);
            sessions.enrolled(session, Some(Generation(7)));
            sessions
        });
        let (from, to) = (giver.living().unwrap(), receiver.living().unwrap());
        let all = || (0..4).map(Partition);
        let assignments = all().map(|partition| Assignment { partition, expect: 0, to: from }).collect();
        cluster.decide(&Command::ExpireAndAssign { session: None, minute: None, assignments });
        let map = cluster.map();
        let planned = |partition| Move { partition, expect: map.row(partition).unwrap().epoch, from, to };
        let plan = map.next_plan();
        cluster.decide(&Command::PlanMoves { plan, moves: all().map(planned).collect() });
        let mut two = Self { cluster, plan, giver, receiver };
        two.show_map();
        two
    }

    /// What each of them does when it sees the newest map.
    fn show_map(&mut self) -> [Vec<Effect>; 2] {
        [&mut self.giver, &mut self.receiver].map(|sessions| sessions.map_changed(self.cluster.map(), 0))
    }

    /// What the one wants to be said is heard by the other.
    fn carry(effects: Vec<Effect>, from: &Sessions, to: &mut Sessions) -> Vec<Effect> {
        let words = effects.into_iter().filter_map(|effect| match effect {
            Effect::Send(_, handover) => Some(handover),
            _ => None,
        });
        words.flat_map(|handover| to.heard(from.living().unwrap(), handover)).collect()
    }

    /// A partition goes all the way until the receiver has agreed: what the receiver does then.
    fn agree(&mut self, partition: Partition) -> Vec<Effect> {
        let shown = self.giver.streamed(partition, self.plan, Vec::new());
        let seen = Self::carry(shown, &self.giver, &mut self.receiver);
        let seals = Self::carry(seen, &self.receiver, &mut self.giver);
        assert!(seals.iter().any(|effect| matches!(effect, Effect::Tenure(_, TenureMail::Seal(..)))));
        let stands = self.giver.cut(partition, self.plan, Delta::default());
        Self::carry(stands, &self.giver, &mut self.receiver)
    }
}

#[test]
fn what_is_agreed_on_while_the_cluster_decides_goes_with_the_next_question() {
    let mut two = Two::planned();
    let mut commits = Vec::new();
    for number in 0..4 {
        let agreed = two.agree(Partition(number));
        commits.extend(proposed(&Two::carry(agreed, &two.receiver, &mut two.giver)));
        // What is heard at once is asked at once.
        if number == 1 {
            commits.extend(proposed(&two.giver.tick(0)));
        }
    }
    commits.extend(proposed(&two.giver.tick(0)));
    let (plan, from) = (two.plan, two.giver.living().unwrap());
    let commit = |numbers: &[u16]| Command::CommitMoves {
        plan,
        from,
        partitions: numbers.iter().copied().map(Partition).collect(),
    };
    assert_eq!(commits, [commit(&[0, 1])], "one question at a time");
    // Whatever the answer is: the map tells what came of it.
    let next = proposed(&two.giver.answered(&commit(&[0, 1]), &Outcome::Unknown));
    assert_eq!(next, [commit(&[2, 3])]);
    for command in commits.iter().chain(&next) {
        two.cluster.decide(command);
    }
    let [gives, takes] = two.show_map();
    let closed: Vec<_> =
        gives.iter().filter_map(|one| if let Effect::Close(gone) = one { Some(gone) } else { None }).collect();
    assert_eq!(closed, [&[0, 1, 2, 3].map(Partition)], "all at once");
    let opened = takes.iter().filter(|one| matches!(one, Effect::Tenure(_, TenureMail::Open { .. }))).count();
    assert_eq!(opened, 4);
}

#[test]
fn a_commit_without_an_answer_holds_up_the_others_for_a_moment_only() {
    let mut two = Two::planned();
    for number in 0..2 {
        let agreed = two.agree(Partition(number));
        Two::carry(agreed, &two.receiver, &mut two.giver);
        two.giver.tick(0);
    }
    assert!(proposed(&two.giver.tick(AGAIN_MS / 2)).is_empty());
    let [Command::CommitMoves { partitions, .. }] = &proposed(&two.giver.tick(AGAIN_MS))[..] else {
        panic!("it goes on")
    };
    assert_eq!(partitions, &[Partition(1)]);
}

#[test]
fn a_commit_that_nobody_heard_is_asked_again_with_all_the_others() {
    let mut two = Two::planned();
    for number in 0..3 {
        let agreed = two.agree(Partition(number));
        Two::carry(agreed, &two.receiver, &mut two.giver);
    }
    let [commit] = &proposed(&two.giver.tick(0))[..] else { panic!("one question") };
    let agreed = two.agree(Partition(3));
    Two::carry(agreed, &two.receiver, &mut two.giver);
    assert!(proposed(&two.giver.answered(commit, &Outcome::Unavailable)).is_empty(), "not without a pause");
    assert!(proposed(&two.giver.tick(AGAIN_MS / 2)).is_empty());
    let [Command::CommitMoves { partitions, .. }] = &proposed(&two.giver.tick(AGAIN_MS))[..] else {
        panic!("it is asked again")
    };
    assert_eq!(partitions, &(0..4).map(Partition).collect::<Vec<_>>());
}

/// A receiver that ends before it has opened anything leaves to the next owner what the giver owed (seed 1526).
#[test]
fn a_receiver_agrees_when_what_the_giver_owes_is_listed() {
    let mut two = Two::planned();
    let at = Partition(2);
    let shown = two.giver.streamed(at, two.plan, Vec::new());
    let seen = Two::carry(shown, &two.giver, &mut two.receiver);
    Two::carry(seen, &two.receiver, &mut two.giver);
    let owed: EntityId = ConversationId(uuid::Uuid::from_u128(5)).into();
    let delta = Delta { warm: vec![owed.clone()], ..Delta::default() };
    let stands = two.giver.cut(at, two.plan, delta);
    for _ in 0..2 {
        // As often as the giver says it.
        let again = stands.iter().filter_map(|one| match one {
            Effect::Send(to, handover) => Some(Effect::Send(*to, handover.clone())),
            _ => None,
        });
        let effects = Two::carry(again.collect(), &two.giver, &mut two.receiver);
        let [Effect::List(plan, partition, entities)] = &effects[..] else { panic!("it agrees at once") };
        assert_eq!((*plan, *partition, &entities[..]), (two.plan, at, &[owed.clone()][..]));
        assert!(two.receiver.listed(two.plan, at, false).is_empty(), "the store did not say so");
    }
    let agrees = |effects: &[Effect]| {
        effects.iter().any(|one| matches!(one, Effect::Send(_, Handover { says: Says::Agreed, .. })))
    };
    assert!(agrees(&two.receiver.listed(two.plan, at, true)));
    assert!(two.receiver.listed(two.plan, at, true).is_empty(), "once");
    assert!(agrees(&Two::carry(stands, &two.giver, &mut two.receiver)));
    two.cluster.decide(&Command::AbortMoves { plan: two.plan, partitions: vec![at] });
    two.show_map();
    assert!(two.receiver.listed(two.plan, at, true).is_empty(), "nobody waits for it");
}

#[test]
fn a_receiver_lets_gateways_wait_for_what_it_agreed_on_until_that_has_come_to_nothing() {
    let mut two = Two::planned();
    let at = Partition(3);
    let agreed = two.agree(at);
    assert!(matches!(agreed[..], [Effect::Tenure(opening, TenureMail::Opening(_)), Effect::Send(..)] if opening == at));
    two.cluster.decide(&Command::AbortMoves { plan: two.plan, partitions: vec![at] });
    let [_, takes] = two.show_map();
    assert!(takes.iter().any(|one| matches!(one, Effect::Close(gone) if gone[..] == [at])));
}
