//! Three real replicas, of which some stop: what an owner notices, and that nothing it was told is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use chappe_schema::id::{EntityId, Generation, Seq};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Builder;

use super::{Cql, real};
use crate::store::{
    Confirmation, Done, Session, Shared, Store, Written,
    contract::{conversation, message, rows},
};

/// Owners that write at once.
const OWNERS: u64 = 4;

/// Longer than anything is to take while two of three replicas answer: a shard tries again within it.
const PATIENCE: Duration = Duration::from_secs(5);

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> T {
    let (tx, rx) = mpsc::channel();
    question(Box::new(move |answer| tx.send(answer).unwrap()));
    rx.recv_timeout(Duration::from_secs(30)).unwrap()
}

/// An acknowledgement, as an owner gives it: the row is durable, and then the fence is read as clean.
struct Owner {
    store: Arc<dyn Store>,
    entity: EntityId,
    acknowledged: Seq,
}

impl Owner {
    /// Tries until the next event is acknowledged, or until it is told to end.
    fn say(&mut self, end: &AtomicBool) -> Option<Duration> {
        let began = Instant::now();
        let next = self.acknowledged + 1;
        let append = rows(self.store.session(), &self.entity, self.acknowledged, vec![message(next, "hello")]);
        while ask(|done| self.store.append(vec![append.clone()], done)) != [Written::Durable] {
            if end.load(Ordering::Relaxed) {
                return None;
            }
        }
        loop {
            match ask(|done| assert_eq!(self.store.confirm(done), None)) {
                Confirmation::Clean => break,
                Confirmation::Unknown if end.load(Ordering::Relaxed) => return None,
                Confirmation::Unknown => {}
                Confirmation::Fenced => panic!("nobody has fenced it"),
            }
        }
        self.acknowledged = next;
        Some(began.elapsed())
    }
}

/// What was acknowledged since it was last asked, and the longest that one took.
#[derive(Default)]
struct Heard {
    count: AtomicU64,
    worst: Mutex<Duration>,
}

impl Heard {
    fn note(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut worst = self.worst.lock();
        *worst = (*worst).max(took);
    }

    fn during(&self, what: &str, time: Duration) -> (u64, Duration) {
        self.count.store(0, Ordering::Relaxed);
        *self.worst.lock() = Duration::ZERO;
        thread::sleep(time);
        let heard = (self.count.load(Ordering::Relaxed), *self.worst.lock());
        println!("{what}: {} acknowledged in {time:?}, the slowest after {:?}", heard.0, heard.1);
        heard
    }
}

#[test]
fn of_three_replicas_one_may_stop_and_two_stop_everything_until_they_are_back() {
    let Some((config, pids)) = real::three_servers("faults") else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cql = runtime.block_on(Cql::open(&config)).unwrap();
    let session = Session { id: 1, epoch: 1, generation: Generation(0) };
    let store = cql.enter(session, Arc::default());
    let (end, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Heard::default()));
    let owners: Vec<_> = (0..OWNERS)
        .map(|index| {
            let (store, end, heard) = (Arc::clone(&store), Arc::clone(&end), Arc::clone(&heard));
            thread::spawn(move || {
                let entity = conversation(u128::from(index)).into();
                let mut owner = Owner { store, entity, acknowledged: 0 };
                while !end.load(Ordering::Relaxed) {
                    if let Some(took) = owner.say(&end) {
                        heard.note(took);
                    }
                }
                (owner.entity, owner.acknowledged)
            })
        })
        .collect();

    let goes_on = |what: &str, time: u64| {
        let (count, worst) = heard.during(what, Duration::from_secs(time));
        assert!(count > 10, "{what}: only {count} acknowledged");
        assert!(worst < PATIENCE, "{what}: one took {worst:?}");
    };
    goes_on("all three", 3);
    signal(pids[1], Signal::STOP);
    goes_on("one paused", 5);
    signal(pids[1], Signal::CONT);
    goes_on("it is back", 2);
    signal(pids[2], Signal::KILL);
    goes_on("one killed", 4);

    // One is gone, another one pauses: no quorum. What is on its way may still end well.
    signal(pids[1], Signal::STOP);
    heard.during("a second one stops", Duration::from_secs(2));
    let (count, _) = heard.during("two of three are away", Duration::from_secs(4));
    assert_eq!(count, 0, "acknowledged without a quorum");
    let asked = Instant::now();
    let refused = ask(|done| store.recover(conversation(0).into(), 0, done));
    assert!(refused.is_err(), "{refused:?}");
    assert!(asked.elapsed() < PATIENCE, "it took {:?} to say so", asked.elapsed());

    signal(pids[1], Signal::CONT);
    heard.during("two are back", Duration::from_secs(5));
    goes_on("two of three again", 3);
    // The third comes back with what it had.
    let Some((_, again)) = real::three_servers("unused") else { return };
    assert_ne!(again[2], pids[2]);
    goes_on("all three again", 3);

    end.store(true, Ordering::Relaxed);
    for owner in owners {
        let (entity, acknowledged) = owner.join().unwrap();
        let found = ask(|done| store.recover(entity.clone(), 0, done)).unwrap();
        let seqs: Vec<Seq> = found.rows.iter().map(|row| row.events[0].seq).collect();
        assert!(seqs.len() as Seq >= acknowledged, "{entity}: {} of {acknowledged} are there", seqs.len());
        assert!(seqs.iter().copied().eq(1..=seqs.len() as Seq), "{entity}: {seqs:?}");
    }
}
