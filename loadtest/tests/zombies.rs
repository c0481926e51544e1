//! Two owners of one conversation on purpose, on a real CQL server: the old one stands still in the middle of something, a new
//! one takes over, and then the old one goes on. No message that was acknowledged may change, none may be acknowledged at two
//! seqs, and the old one stops for good at its next fence read.
//!
//! The owners are the production sessions and shards over the production store; what stands still is between them and the
//! servers ([`gate`]), so that it happens in every run. The oracle judges what clients saw. Each rule that is taken away on
//! purpose (`chappe_node::planted`) must be caught by the same oracle, in at least one of the same scenes.
//!
//! - [`gate`]: between an owner and the servers
//! - [`world`]: owners, who owns, and clients who ask again
//! - [`scenes`]: what happens
//! - [`process`]: the same with processes that are stopped by a signal

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "zombies/gate.rs"]
mod gate;
#[path = "zombies/process.rs"]
mod process;
#[path = "zombies/scenes.rs"]
mod scenes;
#[path = "zombies/world.rs"]
mod world;

use std::{panic::AssertUnwindSafe, time::Duration};

use chappe_node::planted::{self, Bug};

use scenes::SCENES;
use world::World;

/// Longer than anything takes on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Weakened owners may never answer, and what they answer is wrong: some of it comes soon.
const PATIENCE_WITH_A_BUG: Duration = Duration::from_secs(15);

/// The rules without which acknowledgements are worth nothing.
const RULES: &[Bug] = &[
    // No fence read, and one that does not end the session.
    Bug::AckBeforeFence,
    Bug::SessionRevived,
    // A fence read that began before the write was complete.
    Bug::TicketEarly,
    // The log is read before the fences are at a quorum, or without those of some.
    Bug::OpenBeforeFence,
    Bug::UnfencedForgotten,
    Bug::FenceOnlyLast,
    // What is adopted: all that may have been acknowledged, on what it was decided on, written again, its ids looked up.
    Bug::CutAtBase,
    Bug::MisfitIgnored,
    Bug::AdoptedNotWritten,
    Bug::DuplicateNotLookedUp,
    // Rows of several owners side by side, of which the last owner's counts.
    Bug::EpochNotInKey,
    Bug::EpochNotCompared,
    // A row is written again as it was.
    Bug::RetryDiffers,
];

#[test]
fn no_acknowledgement_changes_whatever_a_former_owner_does() {
    let Some(store) = world::Place::new("zombies") else { return };
    for scene in SCENES {
        let mut world = World::new(&store, PATIENCE);
        (scene.plays)(&mut world);
        let wrong = world.judge();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", scene.name);
        println!("{}: as promised", scene.name);
    }
}

#[test]
fn every_rule_that_is_taken_away_is_missed() {
    let Some(store) = world::Place::new("weakened") else { return };
    let mut never = Vec::new();
    for rule in RULES {
        let caught = SCENES.iter().filter(|scene| scene.needs.contains(rule)).find_map(|scene| {
            planted::plant(Some(*rule));
            // A broken rule may trip over an assertion, which is to be caught too.
            let wrong = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let mut world = World::new(&store, PATIENCE_WITH_A_BUG);
                (scene.plays)(&mut world);
                world.judge()
            }));
            planted::plant(None);
            let wrong = wrong.unwrap_or_else(|_| vec!["an assertion".to_owned()]);
            wrong.into_iter().next().map(|wrong| (scene.name, wrong))
        });
        match caught {
            Some((scene, wrong)) => println!("without {rule:?}, {scene}: {wrong}"),
            None => never.push(rule),
        }
    }
    assert!(never.is_empty(), "nobody misses {never:?}");
}

#[test]
fn each_rule_has_its_scene() {
    let needed = |rule: &Bug| SCENES.iter().any(|scene| scene.needs.contains(rule));
    assert!(RULES.iter().all(needed));
}
