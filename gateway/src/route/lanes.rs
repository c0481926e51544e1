//! Questions that were not answered yet, in the order in which they were asked: one queue, a *lane*, for each partition.
//!
//! A question goes to the partition's owner at once and stays in its lane until it is answered. When an owner says that
//! the partition is not its own, when the map names another one, or when a link breaks, the whole lane is sent again, in
//! order, under the next attempt; nodes count nothing of an earlier attempt once they have seen a later one. So what one
//! connection asks of one conversation arrives in order, however often its owner changes, and the client sees nothing of
//! it but a pause. Asking twice is harmless: every mutation carries an id.
//!
//! Pure: it says what is to be sent to whom, and the caller sends it before it lets anybody else at the lanes.

use std::sync::Arc;

use chappe_schema::{
    id::{Millis, Partition, SessionId},
    wire::{Asked, AskedAccess, Connecting, Correlation, Lane, Owner, ToNode},
};
use hashbrown::HashMap;
use slab::Slab;

/// How long a lane waits after it was refused, when nobody knows a better owner: failovers take seconds, a map that is
/// on its way milliseconds.
pub const RESEND_MS: Millis = 50;

/// What is asked, to be asked again at need.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A command.
    Command(Arc<Asked>),
    /// A connection is to be registered.
    Connect(Arc<Connecting>),
    /// What stands against a user?
    Access(Arc<AskedAccess>),
}

/// Something to be sent to one life of a node.
pub type Sending = (SessionId, ToNode);

/// The lanes of some partitions. `P` is whom an answer is for.
#[derive(Debug)]
pub struct Lanes<P> {
    questions: Slab<Question<P>>,
    lanes: HashMap<Partition, State, foldhash::fast::FixedState>,
    /// Counts questions, so that a late answer never meets the next question in the same place.
    lives: u32,
    /// Lanes that wait for an owner.
    waiting: usize,
}

#[derive(Debug)]
struct Question<P> {
    life: u32,
    deadline: u32,
    pending: P,
    ask: Option<Ask>,
    partition: Partition,
    before: Option<usize>,
    after: Option<usize>,
}

/// One lane.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    attempt: u32,
    first: Option<usize>,
    last: Option<usize>,
    /// Who was asked last.
    owner: Option<Owner>,
    /// Nobody is asked before then.
    wait_until: Option<Millis>,
}

impl<P> Default for Lanes<P> {
    fn default() -> Self {
        Self { questions: Slab::new(), lanes: HashMap::default(), lives: 0, waiting: 0 }
    }
}

impl Ask {
    fn to_node(&self, lane: Lane) -> ToNode {
        match self {
            Self::Command(asked) => ToNode::Command(lane, Arc::clone(asked)),
            Self::Connect(connecting) => ToNode::Connect(lane, Arc::clone(connecting)),
            Self::Access(asked) => ToNode::AskAccess(lane, Arc::clone(asked)),
        }
    }
}

impl<P> Lanes<P> {
    /// Notes a question, which is answered under the correlation that it is given; says what is to be sent, unless the lane
    /// waits. `owner` is whom the map names, `shift` and `index` make the correlation unique among several `Lanes`.
    pub fn ask(
        &mut self,
        partition: Partition,
        pending: P,
        deadline: u32,
        owner: Option<Owner>,
        now: Millis,
        make: impl FnOnce(u64) -> Ask,
    ) -> Option<Sending> {
        self.lives = self.lives.wrapping_add(1);
        let life = self.lives;
        let lane = self.lanes.entry(partition).or_default();
        let before = lane.last;
        let entry = self.questions.vacant_entry();
        let key = entry.key();
        let ask = make(u64::from(life) << 32 | key as u64);
        lane.last = Some(key);
        lane.first.get_or_insert(key);
        if before.is_none() && owner_is_newer(owner, lane.owner) && lane.wait_until.is_none() {
            // Nobody else waits, so nothing has to be asked again.
            lane.owner = owner;
        }
        let sending = match (lane.owner, lane.wait_until) {
            (Some(owner), None) => Some((owner.session, ask.to_node(Lane { partition, attempt: lane.attempt }))),
            (None, None) => {
                lane.wait_until = Some(now + RESEND_MS);
                self.waiting += 1;
                None
            }
            (_, Some(_)) => None,
        };
        entry.insert(Question { life, deadline, pending, ask: Some(ask), partition, before, after: None });
        if let Some(before) = before {
            self.questions[before].after = Some(key);
        }
        sending
    }

    /// Whom an answer is for; `None` if it is too late, or a second one.
    pub fn take(&mut self, number: u64) -> Option<P> {
        let key = number as u32 as usize;
        let is_it = self.questions.get(key).is_some_and(|question| question.life == (number >> 32) as u32);
        is_it.then(|| self.remove(key))
    }

    fn remove(&mut self, key: usize) -> P {
        let Question { pending, partition, before, after, .. } = self.questions.remove(key);
        if let Some(before) = before {
            self.questions[before].after = after;
        }
        if let Some(after) = after {
            self.questions[after].before = before;
        }
        if let Some(lane) = self.lanes.get_mut(&partition) {
            if lane.first == Some(key) {
                lane.first = after;
            }
            if lane.last == Some(key) {
                lane.last = before;
            }
        }
        pending
    }

    /// An owner has refused a lane: all of it goes to whom it names, or, if that is nobody newer, to whom the map names after
    /// a pause.
    pub fn moved(&mut self, lane: Lane, named: Option<Owner>, now: Millis, send: &mut dyn FnMut(Sending) -> bool) {
        let Some(state) = self.lanes.get_mut(&lane.partition) else { return };
        if state.attempt != lane.attempt {
            return;
        }
        state.attempt += 1;
        if owner_is_newer(named, state.owner) {
            self.send_again(lane.partition, named, send);
        } else {
            self.wait(lane.partition, now);
        }
    }

    /// The map names another owner.
    pub fn assigned(&mut self, partition: Partition, owner: Owner, send: &mut dyn FnMut(Sending) -> bool) {
        let Some(state) = self.lanes.get_mut(&partition) else { return };
        if owner_is_newer(Some(owner), state.owner) {
            state.attempt += 1;
            self.send_again(partition, Some(owner), send);
        }
    }

    /// The way to a node is broken: nobody knows what of it arrived. It is asked again after a pause, or whoever follows it.
    pub fn lost(&mut self, session: SessionId, now: Millis) {
        let lost: Vec<Partition> = self
            .lanes
            .iter()
            .filter(|(_, state)| state.owner.is_some_and(|owner| owner.session == session) && state.first.is_some())
            .map(|(partition, _)| *partition)
            .collect();
        for partition in lost {
            if let Some(state) = self.lanes.get_mut(&partition) {
                state.attempt += 1;
            }
            self.wait(partition, now);
        }
    }

    /// Time has passed: lanes that have waited long enough are sent to whom the map names.
    pub fn resume(
        &mut self,
        now: Millis,
        owner: impl Fn(Partition) -> Option<Owner>,
        send: &mut dyn FnMut(Sending) -> bool,
    ) {
        if self.waiting == 0 {
            return;
        }
        let due: Vec<Partition> = self
            .lanes
            .iter()
            .filter(|(_, state)| state.wait_until.is_some_and(|until| until <= now))
            .map(|(partition, _)| *partition)
            .collect();
        for partition in due {
            let known = self.lanes.get(&partition).and_then(|state| state.owner);
            let named = owner(partition);
            // A map that is behind what an owner has said is no help.
            let to = if owner_is_newer(named, known) { named } else { known };
            if to.is_some() {
                self.send_again(partition, to, send);
            } else {
                self.wait(partition, now);
            }
        }
    }

    fn wait(&mut self, partition: Partition, now: Millis) {
        if let Some(state) = self.lanes.get_mut(&partition)
            && state.wait_until.replace(now + RESEND_MS).is_none()
        {
            self.waiting += 1;
        }
    }

    fn send_again(&mut self, partition: Partition, owner: Option<Owner>, send: &mut dyn FnMut(Sending) -> bool) {
        let Some(state) = self.lanes.get_mut(&partition) else { return };
        if state.wait_until.take().is_some() {
            self.waiting -= 1;
        }
        state.owner = owner;
        let Some(owner) = owner else { return };
        let lane = Lane { partition, attempt: state.attempt };
        let mut next = state.first;
        while let Some(question) = next.and_then(|key| self.questions.get(key)) {
            if let Some(ask) = &question.ask
                && !send((owner.session, ask.to_node(lane)))
            {
                // The answer that it has moved sends them all once more: a later one must not arrive before this one.
                return;
            }
            next = question.after;
        }
    }

    /// Questions whose answer is not waited for any longer.
    pub fn expired(&mut self, now: u32) -> Vec<P> {
        let late: Vec<usize> =
            self.questions.iter().filter(|(_, question)| question.deadline <= now).map(|(key, _)| key).collect();
        let expired = late.into_iter().map(|key| self.remove(key)).collect();
        if self.questions.is_empty() && self.questions.capacity() > 1024 {
            self.questions.shrink_to_fit();
        }
        expired
    }

    /// Whom answers are waited for.
    pub fn pending(&self) -> impl Iterator<Item = &P> {
        self.questions.iter().map(|(_, question)| &question.pending)
    }

    /// Whether a lane waits for an owner: [`resume`](Self::resume) is to be called soon.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Questions without an answer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether nobody waits for an answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }
}

/// Of two that are said to own a partition, whoever has the higher epoch does, or did last.
fn owner_is_newer(named: Option<Owner>, known: Option<Owner>) -> bool {
    match (named, known) {
        (Some(named), Some(known)) => named.epoch > known.epoch,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// The number that an answer comes back with.
#[must_use]
pub fn number_of(asked: &Ask) -> Correlation {
    match asked {
        Ask::Command(asked) => asked.correlation,
        Ask::Connect(connecting) => connecting.correlation,
        Ask::Access(asked) => asked.correlation,
    }
}

#[cfg(test)]
mod tests {
    use chappe_schema::{
        access::{By, Token},
        command::Command,
        id::{CommandId, ConversationId, UserId},
        wire::Actor,
    };
    use proptest::prelude::*;

    use super::*;

    const HERE: Partition = Partition(5);

    fn owner(epoch: u64) -> Owner {
        Owner { session: 100 + epoch, epoch }
    }

    fn ask(lanes: &mut Lanes<u32>, name: u32, owner: Option<Owner>) -> Option<(SessionId, u32, u64)> {
        let make = |number| {
            Ask::Command(Arc::new(Asked {
                correlation: Correlation(number),
                actor: Actor { user: UserId::new("ada").unwrap(), device: None, by: By::Token(Token::default()) },
                id: CommandId(uuid::Uuid::nil()),
                command: Command::ConversationGet { conversation: ConversationId(uuid::Uuid::nil()) },
                deadline: 0,
            }))
        };
        lanes.ask(HERE, name, 9, owner, 0, make).as_ref().map(seen)
    }

    /// To whom, under which attempt, under which number.
    fn seen((to, message): &Sending) -> (SessionId, u32, u64) {
        match message {
            ToNode::Command(lane, asked) => (*to, lane.attempt, asked.correlation.0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_goes_to_its_owner_and_is_answered_once() {
        let mut lanes = Lanes::default();
        let (to, attempt, number) = ask(&mut lanes, 1, Some(owner(1))).unwrap();
        assert_eq!((to, attempt), (101, 0));
        assert_eq!((lanes.take(number), lanes.take(number)), (Some(1), None));
        let (_, _, next) = ask(&mut lanes, 2, Some(owner(1))).unwrap();
        assert_ne!(next, number, "a late answer meets no other question");
        assert_eq!(lanes.expired(8), [0; 0]);
        assert_eq!(lanes.expired(9), [2]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn what_is_not_answered_goes_to_the_next_owner_in_order() {
        let mut lanes = Lanes::default();
        let numbers: Vec<u64> = (1..=4).map(|name| ask(&mut lanes, name, Some(owner(1))).unwrap().2).collect();
        assert_eq!(lanes.take(numbers[1]), Some(2));
        let mut sent = Vec::new();
        lanes.moved(Lane { partition: HERE, attempt: 0 }, Some(owner(2)), 0, &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert_eq!(sent, [(102, 1, numbers[0]), (102, 1, numbers[2]), (102, 1, numbers[3])]);
        // The same refusal, said of a later question, is old news; so is a map that is behind.
        let nobody = &mut |sending: Sending| -> bool { panic!("{sending:?}") };
        lanes.moved(Lane { partition: HERE, attempt: 0 }, Some(owner(3)), 0, nobody);
        lanes.assigned(HERE, owner(2), nobody);
        assert_eq!(ask(&mut lanes, 5, Some(owner(1))).map(|(to, attempt, _)| (to, attempt)), Some((102, 1)));
    }

    #[test]
    fn what_could_not_be_sent_is_not_overtaken() {
        let mut lanes = Lanes::default();
        let numbers: Vec<u64> = (1..=3).map(|name| ask(&mut lanes, name, Some(owner(1))).unwrap().2).collect();
        let mut sent = Vec::new();
        let broken = &mut |sending: Sending| {
            sent.push(seen(&sending));
            sent.len() < 2
        };
        lanes.moved(Lane { partition: HERE, attempt: 0 }, Some(owner(2)), 0, broken);
        assert_eq!(sent, [(102, 1, numbers[0]), (102, 1, numbers[1])]);
        // The way back says that it has moved: they go once more, all of them, from the first.
        sent.clear();
        lanes.moved(Lane { partition: HERE, attempt: 1 }, Some(owner(3)), 0, &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert_eq!(sent, numbers.iter().map(|number| (103, 2, *number)).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_is_asked_while_nobody_is_known_to_own() {
        let mut lanes = Lanes::default();
        assert_eq!(ask(&mut lanes, 1, None), None);
        assert_eq!(ask(&mut lanes, 2, Some(owner(1))), None, "what came later does not overtake");
        let mut sent = Vec::new();
        lanes.resume(RESEND_MS - 1, |_| Some(owner(1)), &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert!(sent.is_empty());
        lanes.resume(RESEND_MS, |_| Some(owner(1)), &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert_eq!(sent.iter().map(|(to, attempt, _)| (*to, *attempt)).collect::<Vec<_>>(), [(101, 0), (101, 0)]);
        // The link breaks: asked again after a pause, under another attempt, the same one if nobody is newer.
        sent.clear();
        lanes.lost(101, 1000);
        assert_eq!(ask(&mut lanes, 3, Some(owner(1))), None);
        lanes.resume(1000 + RESEND_MS, |_| Some(owner(1)), &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert_eq!(sent.iter().map(|(to, attempt, _)| (*to, *attempt)).collect::<Vec<_>>(), [(101, 1); 3]);
        sent.clear();
        lanes.resume(5000, |_| Some(owner(7)), &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert!(sent.is_empty(), "nothing waits");
        lanes.assigned(HERE, owner(7), &mut |sending| {
            sent.push(seen(&sending));
            true
        });
        assert_eq!(sent.len(), 3);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        Answer(usize),
        Moved(u64),
        Lost,
        Resume,
        Assign(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Ask),
            3 => (0usize..8).prop_map(Step::Answer),
            1 => (1u64..9).prop_map(Step::Moved),
            1 => Just(Step::Lost),
            2 => Just(Step::Resume),
            1 => (1u64..9).prop_map(Step::Assign),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        /// Within each attempt questions are sent in the order in which they were asked, attempts only grow, and a new
        /// attempt begins with the oldest question that is not answered.
        #[test]
        fn a_lane_keeps_its_order_whatever_happens(steps in steps()) {
            let mut lanes = Lanes::default();
            let (mut sent, mut open, mut named, mut now) = (Vec::new(), Vec::<(u64, u32)>::new(), 1, 0);
            let mut numbers = 0;
            for step in steps {
                let from = sent.len();
                match step {
                    Step::Ask => {
                        let mut made = 0;
                        let make = |number| {
                            made = number;
                            Ask::Connect(Arc::new(Connecting {
                                again: false,
                                correlation: Correlation(number),
                                actor: Actor { user: UserId::new("ada").unwrap(), device: None, by: By::Token(Token::default()) },
                                connection: chappe_schema::id::ConnectionSlot(0),
                                positions: Vec::new(),
                                cursor: None,
                            }))
                        };
                        sent.extend(lanes.ask(HERE, numbers, 9, Some(owner(named)), now, make));
                        open.push((made, numbers));
                        numbers += 1;
                    }
                    Step::Answer(index) if !open.is_empty() => {
                        let (number, name) = open.remove(index % open.len());
                        prop_assert_eq!(lanes.take(number), Some(name));
                    }
                    Step::Answer(_) => {}
                    Step::Moved(epoch) => {
                        let attempt = lanes.lanes.get(&HERE).map_or(0, |lane| lane.attempt);
                        lanes.moved(Lane { partition: HERE, attempt }, Some(owner(epoch)), now, &mut |one| {
                            sent.push(one);
                            true
                        });
                    }
                    Step::Lost => {
                        if let Some(known) = lanes.lanes.get(&HERE).and_then(|lane| lane.owner) {
                            lanes.lost(known.session, now);
                        }
                    }
                    Step::Resume => {
                        now += RESEND_MS;
                        lanes.resume(now, |_| Some(owner(named)), &mut |one| {
                            sent.push(one);
                            true
                        });
                    }
                    Step::Assign(epoch) => {
                        named = named.max(epoch);
                        lanes.assigned(HERE, owner(named), &mut |one| {
                            sent.push(one);
                            true
                        });
                    }
                }
                let numbered: Vec<(u32, u64)> = sent[from..].iter().map(|(_, message)| match message {
                    ToNode::Connect(lane, connecting) => (lane.attempt, connecting.correlation.0),
                    other => panic!("{other:?}"),
                }).collect();
                if numbered.len() > 1 || sent.len() == from + 1 && !matches!(step, Step::Ask) {
                    let all: Vec<u64> = open.iter().map(|(number, _)| *number).collect();
                    prop_assert_eq!(numbered.iter().map(|(_, number)| *number).collect::<Vec<_>>(), all);
                }
            }
            let attempts: Vec<u32> = sent.iter().map(|(_, message)| match message {
                ToNode::Connect(lane, _) => lane.attempt,
                other => panic!("{other:?}"),
            }).collect();
            prop_assert!(attempts.is_sorted());
            prop_assert_eq!(lanes.len(), open.len());
        }
    }
}
