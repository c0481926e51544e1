//! The model of the ownership protocol: its verdicts, its own honesty, and that production decides as it does.

#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, sync::Arc};

use chappe_loadtest::model::{
    checker::{Model, Verdict, exhaust},
    checks::CHECKS,
    pack, reading, recovery,
    session::Phase,
    setup::{Setup, Stop, Store},
    state::State,
    store::{EVERYWHERE, Found, Image, found},
    variant::Variant,
};
use chappe_node::recovery::{self as recovered, Basis, Trouble, resolve};
use chappe_schema::{
    body::Body,
    event::{Event, Fact},
    id::{CommandId, Epoch, Seq, UserId},
    stored::LogRow,
};
use uuid::Uuid;

#[test]
fn every_check_has_the_expected_verdict() {
    for check in CHECKS.iter().filter(|check| !check.is_long) {
        let report = check.run(1_000_000, 1);
        let what = format!("{} ({})", check.title(), check.setup);
        assert!(check.is_met_by(&report), "{what}: {report:?}");
        if let Verdict::Violated(trace) = &report.verdict {
            assert!(trace.steps.len() > 2, "{what} is violated out of nothing:\n{trace}");
        }
    }
}

#[test]
fn every_rule_is_missed_when_it_is_broken() {
    for variant in Variant::ALL.iter().filter(|variant| **variant != Variant::None) {
        let mut checks = CHECKS.iter().filter(|check| check.setup.variant == *variant);
        // The one that narrows what is adopted, and that acknowledgements do not need; see `docs/model.md`.
        let is_needed = *variant != Variant::SnapshotForgetsFresh;
        assert!(checks.any(|check| check.holds != is_needed), "{variant} is in no check");
    }
}

/// States with small worlds of every kind.
const WORLDS: [Setup; 4] = [
    Setup::of(3, 2, 3).evictions().snapshots(1),
    Setup::of(2, 2, 2).moves(2, 3).store(Store::Quorum),
    Setup::of(2, 1, 2).store(Store::Replicas).evictions(),
    Setup::of(3, 2, 3).stop(Stop::Fresh).history().single_flight(),
];

#[test]
fn a_packed_state_is_the_state() {
    for setup in WORLDS {
        let mut states = 0;
        exhaust(&setup, 20_000, |state, steps| {
            let (mut packed, mut again) = (Vec::new(), Vec::new());
            pack::pack(&setup, state, &mut packed);
            let unpacked = pack::unpack(&setup, &packed);
            pack::pack(&setup, &unpacked, &mut again);
            assert_eq!(packed, again, "{state:?}");
            // As many things may happen in it.
            let mut steps_again = Vec::new();
            setup.steps(&unpacked, &mut steps_again);
            assert_eq!(steps.len(), steps_again.len(), "{state:?}");
            states += 1;
        });
        assert!(states > 1000, "{setup}: {states} states");
    }
}

#[test]
fn names_do_not_matter() {
    let setup = Setup::of(2, 2, 2).store(Store::Replicas);
    let mut renamed = 0;
    exhaust(&setup, 20_000, |state, _| {
        let (mut packed, mut again) = (Vec::new(), Vec::new());
        pack::pack(&setup, state, &mut packed);
        let other = other_names(state);
        pack::pack(&setup, &other, &mut again);
        assert_eq!(packed, again, "{state:?}");
        renamed += u32::from(other != *state);
    });
    assert!(renamed > 1000, "{renamed} states have names in them");
}

/// Replicas 1, 2, 3 become 2, 3, 1; commands 1 and 2 change places.
fn other_names(state: &State) -> State {
    let turned = |set: u8| (set << 1 | set >> 2) & EVERYWHERE;
    let swapped = |command: u8| [0, 2, 1][usize::from(command)];
    let mut state = *state;
    for row in state.rows.iter_mut().flatten().flatten() {
        row.at = turned(row.at);
        row.command = swapped(row.command);
        row.on = row.on.map(swapped);
    }
    for session in &mut state.sessions {
        session.fence = turned(session.fence);
        session.fence_read.1 = turned(session.fence_read.1);
        session.log_read.0 = turned(session.log_read.0);
        session.commands = session.commands.map(swapped);
    }
    state.acked = state.acked.map(swapped);
    state
}

/// A recovery: the own epoch, the snapshot, the rows.
type Situation = (u8, Image, Found);

#[test]
fn production_recovers_what_the_model_recovers() {
    let setups = [
        Setup::of(3, 2, 3),
        Setup::of(3, 2, 2).evictions().snapshots(1),
        Setup::of(3, 3, 3).snapshots(1).store(Store::Quorum),
        Setup::of(4, 2, 2).store(Store::Quorum),
        Setup::of(2, 2, 2).moves(2, 3).evictions(),
        Setup::of(3, 3, 3).evictions().single_flight(),
        Setup::of(3, 3, 3).broken(Variant::RecoversOverUnfinished).evictions(),
    ];
    let mut met: HashSet<Situation> = HashSet::new();
    for setup in setups {
        exhaust(&setup, 30_000, |state, _| {
            for session in 0..state.map.known {
                let own = state.session(session);
                let reloads = own.phase == Phase::Holds && !own.loaded;
                let Some(epoch) = state.next_epoch(session).or(reloads.then_some(own.epoch)) else { continue };
                reading::views(&setup, state, epoch, |view| {
                    let situation = (epoch, state.snapshot(view.snapshot), found(&state.rows, view.rows));
                    if met.insert(situation) {
                        compare(&setup, &situation);
                    }
                });
            }
        });
    }
    assert!(met.len() > 10_000, "{} situations", met.len());
}

fn compare(setup: &Setup, (own, image, found): &Situation) {
    let what = format!("{own} {image:?} {found:?}");
    let mut rows = Vec::new();
    for (slot, epochs) in (1..).zip(found).skip(image.seq.into()) {
        for (epoch, row) in (1..).zip(epochs).filter(|(_, row)| row.is_there()) {
            let (origin, after) = (row.origin.into(), row.after.into());
            rows.push(LogRow { epoch, cw: row.cw.into(), origin, after, events: vec![event(slot, row.command)] });
        }
    }
    let snapshot_origin = image.mark.into();
    let basis = Basis {
        own_epoch: (*own).into(),
        snapshot_seq: image.seq.into(),
        snapshot_origin,
        snapshot_owner: image.epoch.into(),
        trusting: false,
    };
    let (expected, resolved) = match (recovery::resolve(setup, *own, image, found), resolve(basis, rows)) {
        (Ok(outcome), Ok(resolved)) => (outcome, resolved),
        (Err(recovery::Trouble::Superseded), Err(Trouble::Superseded { .. })) => return,
        (Err(recovery::Trouble::Missing(slot)), Err(Trouble::Missing(seq))) if Seq::from(slot) == seq => return,
        (expected, resolved) => panic!("{what}: {expected:?} and {resolved:?}"),
    };
    // The slots above `from`, with their commands and origins.
    let origin = |upto: u8| upto.checked_sub(1).map_or(0, |last| Epoch::from(expected.marks[usize::from(last)]));
    let slots = |from: u8, upto: u8| -> Vec<(Seq, u128, Epoch)> {
        (from..upto)
            .map(|slot| (Seq::from(slot) + 1, expected.commands[usize::from(slot)].into(), origin(slot + 1)))
            .collect()
    };
    let run = |found: &[recovered::Found]| -> Vec<(Seq, u128, Epoch)> {
        found.iter().map(|found| (found.event.seq, found.event.id.0.as_u128(), found.origin)).collect()
    };
    let committed = resolved.committed.iter().map(|event| (event.seq, event.id.0.as_u128()));
    let expected_committed = slots(image.seq, expected.base).into_iter().map(|(seq, command, _)| (seq, command));
    assert!(committed.eq(expected_committed), "{what}");
    assert_eq!(run(&resolved.standing), slots(expected.base, expected.standing), "{what}");
    assert_eq!(run(&resolved.adopted), slots(expected.standing, expected.len), "{what}");
    assert_eq!((resolved.committed_origin, resolved.origin), (origin(expected.base), origin(expected.len)), "{what}");
}

fn event(seq: u64, command: u8) -> Arc<Event> {
    Arc::new(Event {
        seq,
        n: seq,
        sender: UserId::new("ada").unwrap(),
        device: None,
        id: CommandId(Uuid::from_u128(command.into())),
        target: 0,
        created_at: 1,
        hash: 0,
        fact: Fact::MessageNew { body: Body::parse("{}").unwrap(), mentions: None },
    })
}
