//! A crowd as a scenario describes it, against a real server: everything that a population can do, at once.

use chappe_loadtest::crowd::{
    run::{self, Plan},
    scenario::Scenario,
};
use clap::Parser;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    plan: Plan,
}

const ALL: &str = r#"
    title = "everything at once"
    warmup_secs = 0.5

    [[populations]]
    name = "desks"
    clients = 60
    groups = { per_client = 2.0, smallest = 2, largest = 20 }
    sends = { rate = 120.0, arrivals = "poisson" }
    uneven = 1.0
    types = true
    receipts = true
    reacts = 0.1
    watches = 3

    [[populations]]
    name = "telephones"
    clients = 20
    groups = { smallest = 5 }
    sends = { rate = 40.0 }
    speech = "protobuf"
    receipts = true
    flaps = { every_secs = 2.0, away_secs = 0.3 }

    [[populations]]
    name = "programs"
    clients = 10
    groups = { smallest = 5 }
    sends = { rate = 20.0 }
    speech = "grpc"
    receipts = true

    [[populations]]
    name = "pages"
    clients = 10
    groups = { smallest = 5 }
    sends = { rate = 20.0 }
    speech = "http"
    receipts = true
    receipts_secs = 0.0

    [[populations]]
    name = "slow"
    clients = 20
    groups = { smallest = 10 }
    sends = { rate = 40.0 }
    slow = { every_secs = 2.0, for_secs = 1.0 }

    [[phases]]
    name = "ramp"
    secs = 2.0
    from = 0.0
    [[phases]]
    name = "steady"
    secs = 3.0
    [[phases]]
    name = "rest"
    secs = 2.0
    pace = 0.0

    [[storms]]
    at_secs = 3.0
    share = 0.5
    population = "desks"
"#;

/// Goal: whatever a crowd does, every promise is kept, and what a scenario says is what happens. Method: all habits, phases and a storm
/// at once, judged by the oracle; the figures of each phase follow its pace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_does_what_its_scenario_says_and_is_promised_what_it_was() {
    let mut server = super::server().await;
    let data = server.data_dir().to_string_lossy().into_owned();
    let plan = Flags::parse_from(["run", "--url", &server.url(), "--data-dir", &data, "--seed", "7"]).plan;
    let outcome = run::carry_out(plan, Scenario::parse(ALL).unwrap()).await.unwrap();
    let verdict = outcome.verdict.as_ref().unwrap();
    println!("{verdict}");
    assert!(verdict.is_clean(), "promises were broken");
    assert_eq!((verdict.stats.acked_unread, verdict.stats.failed), (0, 0));
    assert_eq!(outcome.measured.failures, 0, "{:?}", outcome.measured.complaints);
    let returns = outcome.returns.unwrap();
    assert!((15..=45).contains(&returns.count), "about half of sixty were thrown out, and came back: {returns:?}");
    assert!(outcome.measured.reactions > 0 && outcome.measured.receipts > 0);
    assert!(outcome.counters.connects > 100 + returns.count, "telephones come and go: {:?}", outcome.counters);
    let [ramp, steady, rest] = &outcome.phases[..] else { panic!() };
    assert!(steady.acks_per_s > ramp.acks_per_s, "{ramp:?} {steady:?}");
    assert!(steady.acks_per_s > rest.acks_per_s, "{steady:?} {rest:?}");
    server.terminate().await.unwrap();
}
