//! What a store that several nodes share must do beyond the log: how a cluster begins once, who is registered, who is fenced.

use std::{
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use chappe_cluster::{
    consensus::bootstrap::{
        Claim, Group,
        find::{Answer, ClusterMeta},
    },
    ownership::ClusterId,
};
use chappe_schema::id::{Generation, NodeUid, SessionId};

use super::{Confirmation, Session};
use crate::store::{Done, Error, Shared};

/// A shared store under test, empty, as one machine reaches it; and a way to let a little time pass.
pub trait Harness {
    /// Its sessions.
    fn shared(&self) -> Arc<dyn Shared>;

    /// Its claims, as another machine reaches them with every call.
    fn meta(&self) -> Arc<dyn ClusterMeta>;

    /// Lets a little time pass.
    fn turn(&mut self);
}

/// One promise of a shared store.
pub type Case = fn(&mut dyn Harness);

/// The promises, by name.
pub const CASES: &[(&str, Case)] = &[
    ("claims are kept side by side", claims_are_kept_side_by_side),
    ("of two that claim at once one sees the other", of_two_that_claim_at_once_one_sees_the_other),
    ("a founding ends every registered session", a_founding_ends_every_registered_session),
    ("who registers after a founding is told of it", who_registers_after_a_founding_is_told_of_it),
    ("nobody escapes a founding", nobody_escapes_a_founding),
    ("a fence ends one session and no other", a_fence_ends_one_session_and_no_other),
];

/// Takes a shared store through every case.
pub fn run(make: &dyn Fn() -> Box<dyn Harness>) {
    for (name, case) in CASES {
        println!("contract of shared stores: {name}");
        case(&mut *make());
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Lets time pass until all of them are answered.
fn all<T>(harness: &mut dyn Harness, mut answers: Vec<Answer<'_, T>>) -> Vec<T> {
    let until = Instant::now() + PATIENCE;
    let mut results: Vec<Option<T>> = answers.iter().map(|_| None).collect();
    while results.iter().any(Option::is_none) {
        assert!(Instant::now() < until, "the store does not answer");
        for (answer, result) in answers.iter_mut().zip(&mut results).filter(|(_, result)| result.is_none()) {
            if let Poll::Ready(ready) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                *result = Some(ready.unwrap());
            }
        }
        harness.turn();
    }
    results.into_iter().flatten().collect()
}

fn one<T>(harness: &mut dyn Harness, answer: Answer<'_, T>) -> T {
    all(harness, vec![answer]).remove(0)
}

fn ask<T: Send + 'static>(harness: &mut dyn Harness, question: impl FnOnce(&dyn Shared, Done<T>)) -> T {
    let (tell, told) = mpsc::channel();
    question(&*harness.shared(), Box::new(move |answer| drop(tell.send(answer))));
    await_answer(harness, &told)
}

fn await_answer<T>(harness: &mut dyn Harness, told: &mpsc::Receiver<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(answer) = told.try_recv() {
            return answer;
        }
        assert!(Instant::now() < until, "the store does not answer");
        harness.turn();
    }
}

fn claims(harness: &mut dyn Harness) -> Vec<Claim> {
    let meta = harness.meta();
    let mut claims = one(harness, meta.claims());
    claims.sort();
    claims
}

fn claim(harness: &mut dyn Harness, claim: Claim) {
    let meta = harness.meta();
    one(harness, meta.claim(claim));
}

fn enrol(harness: &mut dyn Harness, session: SessionId) -> Generation {
    ask::<Result<Generation, Error>>(harness, |shared, done| shared.enrol(session, done)).unwrap()
}

fn confirm(harness: &mut dyn Harness, session: SessionId) -> Confirmation {
    let id = Session { id: session, epoch: session, generation: Generation(0) };
    let store = harness.shared().enter(id, Arc::default());
    let (tell, told) = mpsc::channel();
    // The one who asks waits below, or has failed already.
    let tell = move |answer| {
        let _ = tell.send(answer);
    };
    match store.confirm(Box::new(tell)) {
        Some(at_once) => at_once,
        None => await_answer(harness, &told),
    }
}

/// The founding of a cluster, claimed by a node.
const fn founding(cluster: u128, generation: u16, by: u64) -> Claim {
    Claim { group: Group { cluster: ClusterId(cluster), generation }, by: NodeUid(by) }
}

const FIRST: Claim = founding(u128::MAX - 7, 1, u64::MAX);
const SECOND: Claim = founding(u128::MAX - 7, 2, 5);

fn claims_are_kept_side_by_side(harness: &mut dyn Harness) {
    assert_eq!(claims(harness), []);
    let others = [FIRST, founding(3, 1, 4), SECOND];
    for one in others {
        claim(harness, one);
        // Said again it is the same claim.
        claim(harness, one);
    }
    let mut expected = others.to_vec();
    expected.sort();
    assert_eq!(claims(harness), expected);
}

fn of_two_that_claim_at_once_one_sees_the_other(harness: &mut dyn Harness) {
    for round in 0..20 {
        let pair = [founding(1 + round, 1, 1 + 2 * round as u64), founding(100 + round, 1, 2 + 2 * round as u64)];
        let meta = harness.meta();
        all(harness, pair.iter().map(|one| meta.claim(*one)).collect());
        let seen = all(harness, vec![meta.claims(), meta.claims()]);
        assert!(seen.iter().any(|seen| pair.iter().all(|one| seen.contains(one))), "{seen:?}");
    }
}

fn a_founding_ends_every_registered_session(harness: &mut dyn Harness) {
    claim(harness, FIRST);
    let sessions = [1 << 48 | 1, 1 << 48 | 2, 1 << 48 | 900];
    for session in sessions {
        enrol(harness, session);
        assert_eq!(confirm(harness, session), Confirmation::Clean);
    }
    claim(harness, SECOND);
    let meta = harness.meta();
    one(harness, meta.fence_all());
    for session in sessions {
        assert_eq!(confirm(harness, session), Confirmation::Fenced);
    }
    let later = 2 << 48 | 1;
    enrol(harness, later);
    assert_eq!(confirm(harness, later), Confirmation::Clean);
}

fn who_registers_after_a_founding_is_told_of_it(harness: &mut dyn Harness) {
    claim(harness, FIRST);
    let before = enrol(harness, 1 << 48 | 1);
    assert_eq!(enrol(harness, 1 << 48 | 2), before, "one founding, one history");
    claim(harness, SECOND);
    let after = enrol(harness, 1 << 48 | 3);
    assert_ne!(after, before, "the session sees that it is of another founding");
    assert_eq!(enrol(harness, 2 << 48 | 1), after);
}

/// A session that registers while a founding is under way is fenced by it, or told of it.
fn nobody_escapes_a_founding(harness: &mut dyn Harness) {
    claim(harness, FIRST);
    for round in 0..30 {
        let history = enrol(harness, 1 << 48 | (100 + round));
        let session = 1 << 48 | (10 + round);
        let next = founding(FIRST.group.cluster.0, 2 + round as u16, 70 + round);
        let (tell, told) = mpsc::channel();
        let (shared, meta) = (harness.shared(), harness.meta());
        let enrolling = move || shared.enrol(session, Box::new(move |answer| drop(tell.send(answer))));
        // It begins at some point of the founding.
        let mut enrolling = Some(enrolling);
        let begins = round % 10;
        let mut turns = 0;
        let mut step = |harness: &mut dyn Harness, answer: &mut Answer<'_, ()>| {
            let until = Instant::now() + PATIENCE;
            while answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                assert!(Instant::now() < until, "the store does not answer");
                if turns == begins
                    && let Some(enrol) = enrolling.take()
                {
                    enrol();
                }
                turns += 1;
                harness.turn();
            }
        };
        step(harness, &mut meta.claim(next));
        step(harness, &mut meta.fence_all());
        if let Some(enrol) = enrolling.take() {
            enrol();
        }
        let told: Result<Generation, Error> = await_answer(harness, &told);
        let is_told = told.unwrap() != history;
        let is_fenced = confirm(harness, session) == Confirmation::Fenced;
        assert!(is_told || is_fenced, "round {round}: a session of the founding before goes on");
    }
}

fn a_fence_ends_one_session_and_no_other(harness: &mut dyn Harness) {
    for session in [7, 8, 9] {
        enrol(harness, session);
    }
    assert!(ask(harness, |shared, done| shared.fence(vec![8, 9], done)));
    assert!(ask(harness, |shared, done| shared.fence(Vec::new(), done)), "nobody is fenced at once");
    let confirmed = [7, 8, 9].map(|session| confirm(harness, session));
    assert_eq!(confirmed, [Confirmation::Clean, Confirmation::Fenced, Confirmation::Fenced]);
}
