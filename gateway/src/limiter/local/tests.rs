//! Goal: budgets are spent exactly, per key and scope, and memory stays bounded. The clock is ours.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    hint::black_box,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use governor::clock::FakeRelativeClock;
use metrics::{
    Counter, CounterFn, Gauge, Histogram, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
};

use super::*;

const ADA: Key<'static> = Key::User("ada");
const BOB: Key<'static> = Key::User("bob");

/// Ten a second, five at once, for sends; everything else as by default.
fn ten_a_second() -> Config {
    Config { sends: Rate { per_second: 10, burst: 5 }, ..Config::default() }
}

fn limiter(config: &Config) -> (Local<FakeRelativeClock>, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    (Local::with_clock(config, &clock), clock)
}

fn check<C: Clock + Send + Sync>(limiter: &Local<C>, scope: Scope, key: Key<'_>, cost: u32) -> Decision {
    match limiter.check(scope, key, cost) {
        Verdict::Ready(decision) => decision,
        Verdict::Pending(_) => panic!("the local backend answers at once"),
    }
}

fn send(limiter: &Local<FakeRelativeClock>, key: Key<'_>) -> bool {
    check(limiter, Scope::Sends, key, 1).allowed
}

fn buckets(keys_max: usize) -> Buckets {
    let own = DashMapStateStore::with_hasher(foldhash::fast::RandomState::default());
    Buckets { own, held: AtomicUsize::new(0), keys_max, shared: InMemoryState::default() }
}

fn address(text: &str) -> Key<'static> {
    Key::Address(text.parse().unwrap())
}

#[test]
fn a_burst_is_spent_and_flows_in_again() {
    let (limiter, clock) = limiter(&ten_a_second());
    for left in (0..5).rev() {
        let decision = check(&limiter, Scope::Sends, ADA, 1);
        let reset_after_ms = (5 - u64::from(left)) * 100;
        assert_eq!(decision, Decision { allowed: true, limit: 5, remaining: left, reset_after_ms, retry_after_ms: 0 });
    }
    let refused = Decision { allowed: false, limit: 5, remaining: 0, reset_after_ms: 500, retry_after_ms: 100 };
    assert_eq!(check(&limiter, Scope::Sends, ADA, 1), refused);

    clock.advance(Duration::from_millis(99));
    let decision = check(&limiter, Scope::Sends, ADA, 1);
    assert_eq!((decision.allowed, decision.retry_after_ms), (false, 1));
    clock.advance(Duration::from_millis(1));
    assert!(send(&limiter, ADA));
    assert!(!send(&limiter, ADA));
    clock.advance(Duration::from_secs(3600));
    assert_eq!((0..10).filter(|_| send(&limiter, ADA)).count(), 5, "no more than the burst is saved up");
}

#[test]
fn users_and_scopes_have_budgets_of_their_own() {
    let (limiter, _clock) = limiter(&ten_a_second());
    assert_eq!((0..10).filter(|_| send(&limiter, ADA)).count(), 5);
    assert!(send(&limiter, BOB));
    assert!(check(&limiter, Scope::Commands, ADA, 1).allowed);
}

#[test]
fn a_cost_is_spent_whole_or_not_at_all() {
    let (limiter, clock) = limiter(&ten_a_second());
    assert_eq!(check(&limiter, Scope::Sends, ADA, 3).remaining, 2);
    let refused = check(&limiter, Scope::Sends, ADA, 3);
    assert_eq!((refused.allowed, refused.remaining, refused.retry_after_ms), (false, 2, 100));
    assert!(check(&limiter, Scope::Sends, ADA, 2).allowed, "the refusal cost nothing");

    clock.advance(Duration::from_secs(1));
    let more_than_fits = check(&limiter, Scope::Sends, ADA, 1000);
    assert_eq!((more_than_fits.allowed, more_than_fits.remaining), (true, 0));
    assert_eq!(check(&limiter, Scope::Sends, ADA, 0), Decision::UNLIMITED);
}

#[test]
fn zero_is_unlimited() {
    let (limiter, _clock) = limiter(&Config { sends: Rate { per_second: 0, burst: 1 }, ..Config::default() });
    for _ in 0..10_000 {
        assert_eq!(check(&limiter, Scope::Sends, ADA, 1), Decision::UNLIMITED);
    }
    assert!(!Decision::UNLIMITED.is_limited());
}

#[test]
fn a_rate_without_a_burst_holds_one_second() {
    let (limiter, _clock) = limiter(&Config { sends: Rate { per_second: 3, burst: 0 }, ..Config::default() });
    assert_eq!((0..10).filter(|_| send(&limiter, ADA)).count(), 3);
}

#[test]
fn one_network_is_one_client() {
    let config = Config { handshakes: Rate { per_second: 1, burst: 2 }, ..Config::default() };
    let (limiter, _clock) = limiter(&config);
    let shake = |text| check(&limiter, Scope::Handshakes, address(text), 1).allowed;
    assert!(shake("2001:db8::1"));
    assert!(shake("2001:db8::2"));
    assert!(!shake("2001:db8::3"), "same /64");
    assert!(shake("2001:db8:0:1::1"), "another /64");
    assert!(shake("192.0.2.1"));
    assert!(shake("::ffff:192.0.2.1"));
    assert!(!shake("192.0.2.1"), "the mapped address is the same client");
    assert!(shake("192.0.2.2"));
}

#[test]
fn loopback_is_free_unless_told_otherwise() {
    let config = Config { handshakes: Rate { per_second: 1, burst: 1 }, ..Config::default() };
    for text in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let allowed = |config| {
            let (limiter, _clock) = limiter(config);
            (0..10).filter(|_| check(&limiter, Scope::Handshakes, address(text), 1).allowed).count()
        };
        assert_eq!(allowed(&config), 10, "{text}");
        assert_eq!(allowed(&Config { exempt_loopback: false, ..config.clone() }), 1, "{text}");
    }
}

#[test]
fn threads_never_spend_more_than_there_is() {
    let config = Config { sends: Rate { per_second: 1, burst: 1_000 }, ..Config::default() };
    let (limiter, _clock) = limiter(&config);
    let users = ["a", "b", "c"];
    let spent: usize = thread::scope(|scope| {
        let spend =
            || users.iter().map(|user| (0..600).filter(|_| send(&limiter, Key::User(user))).count()).sum::<usize>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(spend)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(spent, 1_000 * users.len());
    assert_eq!(limiter.sweep().kept, users.len(), "keys that raced are counted once");
}

#[test]
fn a_key_that_two_threads_bring_at_once_is_counted_once() {
    let buckets = buckets(2);
    assert!(buckets.settle(1).is_some());
    assert!(buckets.settle(1).is_some(), "both had looked before either came");
    assert_eq!(buckets.len(), 1);
    assert!(buckets.settle(2).is_some());
    assert!(buckets.settle(3).is_none());
}

#[test]
fn memory_is_given_back_after_a_flood() {
    let buckets = buckets(100_000);
    for key in 0..100_000 {
        assert!(buckets.settle(key).is_some());
    }
    let full = buckets.own.capacity();
    assert!(full >= 100_000);
    buckets.retain_recent(Nanos::new(0));
    buckets.shrink_to_fit();
    assert_eq!((buckets.len(), buckets.own.len()), (0, 0));
    assert!(buckets.own.capacity() < full / 100, "{}", buckets.own.capacity());
}

#[test]
fn a_sweep_forgets_only_what_is_full_again() {
    let (limiter, clock) = limiter(&ten_a_second());
    for _ in 0..5 {
        assert!(send(&limiter, ADA));
    }
    assert!(send(&limiter, BOB));
    clock.advance(Duration::from_millis(250));
    assert_eq!(limiter.sweep(), Swept { dropped: 1, kept: 1 }, "bob's one is back, ada's five are not");
    assert_eq!((0..10).filter(|_| send(&limiter, ADA)).count(), 2, "a sweep gives nothing away");
    clock.advance(Duration::from_secs(10));
    assert_eq!(limiter.sweep(), Swept { dropped: 1, kept: 0 });
    assert_eq!(limiter.sweep(), Swept::default());
    assert!(send(&limiter, ADA));
}

#[test]
fn a_full_table_makes_newcomers_share_one_budget() {
    let (limiter, clock) = limiter(&Config { keys_max: 2, ..ten_a_second() });
    assert!(send(&limiter, ADA));
    assert!(send(&limiter, BOB));
    let strangers: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    let let_in = |limiter| strangers.iter().filter(|name| send(limiter, Key::User(name))).count();
    assert_eq!(let_in(&limiter), 5, "all strangers together have one burst");
    assert_eq!((0..10).filter(|_| send(&limiter, ADA)).count(), 4, "who was known keeps a budget");
    assert_eq!(limiter.sweep(), Swept { dropped: 0, kept: 2 });

    clock.advance(Duration::from_secs(10));
    assert_eq!(limiter.sweep(), Swept { dropped: 2, kept: 0 });
    assert_eq!((0..10).filter(|_| send(&limiter, Key::User("eve"))).count(), 5, "there is room again");
}

#[test]
fn a_flood_of_addresses_is_bounded() {
    let config = Config { handshakes: Rate { per_second: 1, burst: 1 }, keys_max: 50_000, ..Config::default() };
    let (limiter, clock) = limiter(&config);
    let network = |n: u64| Key::Address(IpAddr::V6(Ipv6Addr::from_bits(u128::from(n + (0x2001 << 48)) << 64)));
    let let_in = (0..60_000).filter(|n| check(&limiter, Scope::Handshakes, network(*n), 1).allowed).count();
    assert_eq!(let_in, 50_001, "each its own, and one from the shared bucket");
    let table = |limiter: &Local<FakeRelativeClock>| {
        let rule = limiter.scopes[Scope::Handshakes as usize].rule.as_ref().unwrap();
        rule.buckets.len()
    };
    assert_eq!(table(&limiter), 50_000);
    clock.advance(Duration::from_secs(5));
    assert_eq!(limiter.sweep(), Swept { dropped: 50_000, kept: 0 });
    assert_eq!(table(&limiter), 0);
}

#[test]
fn decisions_are_counted_by_scope_and_kind() {
    let book = Book::default();
    with_local_recorder(&book, || {
        let (limiter, _clock) = limiter(&ten_a_second());
        for _ in 0..7 {
            send(&limiter, ADA);
        }
        check(&limiter, Scope::Handshakes, address("127.0.0.1"), 1);
        check(&limiter, Scope::Commands, ADA, 1);
    });
    let label =
        |scope: &str, decision: &str| format!("{DECISIONS_TOTAL} scope={scope} backend=local decision={decision}");
    assert_eq!(book.read(&label("sends", "allowed")), 5);
    assert_eq!(book.read(&label("sends", "refused")), 2);
    assert_eq!(book.read(&label("handshakes", "exempt")), 1);
    assert_eq!(book.read(&label("commands", "allowed")), 1);
    assert_eq!(book.counters.lock().unwrap().len(), 15, "every handle is there from the start");
}

/// Prints only: a figure for the reader, not a promise.
#[test]
fn the_cost_of_one_check() {
    const CHECKS: u32 = 200_000;
    let limiter = Local::new(&Config { sends: Rate { per_second: u32::MAX, burst: 0 }, ..Config::default() });
    let started = Instant::now();
    for _ in 0..CHECKS {
        black_box(limiter.check(Scope::Sends, Key::User("0123456789abcdef"), 1));
    }
    println!("one check: {} ns", started.elapsed().as_nanos() / u128::from(CHECKS));
}

/// A recorder that remembers counters by name and labels.
#[derive(Default)]
struct Book {
    counters: Mutex<HashMap<String, Arc<Count>>>,
}

#[derive(Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Book {
    fn read(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[name].0.load(Ordering::Relaxed)
    }
}

impl Recorder for Book {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &metrics::Key, _: &Metadata<'_>) -> Counter {
        let labels: String = key.labels().map(|label| format!(" {}={}", label.key(), label.value())).collect();
        let mut counters = self.counters.lock().unwrap();
        Counter::from_arc(counters.entry(format!("{}{labels}", key.name())).or_default().clone())
    }
    fn register_gauge(&self, _: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
