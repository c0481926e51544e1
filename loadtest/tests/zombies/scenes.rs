//! What happens to owners, step by step, and which rules it takes to come out of it.

use chappe_node::planted::Bug;

use super::{gate::Kind, world::World};

/// A story of a few owners.
pub struct Scene {
    pub name: &'static str,
    pub plays: fn(&mut World),
    /// The rules of which each, taken away, must be missed here.
    pub needs: &'static [Bug],
}

pub const KINDS: [Kind; 4] = [Kind::Append, Kind::Appended, Kind::FenceAnswer, Kind::Fence];

pub const SCENES: &[Scene] = &[
    Scene {
        name: "an owner stands still with a row in its hands",
        plays: late_row,
        needs: &[
            Bug::AckBeforeFence,
            Bug::SessionRevived,
            Bug::UnfencedForgotten,
            Bug::EpochNotInKey,
            Bug::EpochNotCompared,
        ],
    },
    Scene {
        name: "an owner stands still between a clean read of its fence and a row",
        plays: early_read,
        needs: &[Bug::TicketEarly],
    },
    Scene { name: "a successor's fence is late", plays: late_fence, needs: &[Bug::OpenBeforeFence] },
    Scene {
        name: "an owner stands still after an acknowledgement",
        plays: after_acknowledgement,
        needs: &[Bug::CutAtBase, Bug::DuplicateNotLookedUp],
    },
    Scene {
        name: "two owners stand still, and the younger one's row is the last to arrive",
        plays: overtaken,
        needs: &[Bug::AdoptedNotWritten],
    },
    Scene { name: "rows of an owner arrive above another history", plays: misfit, needs: &[Bug::MisfitIgnored] },
    Scene { name: "a successor ends before it has fenced anybody", plays: chain, needs: &[Bug::FenceOnlyLast] },
    Scene { name: "an answer is lost, and the row is written again", plays: again, needs: &[Bug::RetryDiffers] },
];

/// The first owner's row has not reached the servers when it is superseded; its successor gives the same seq to another message.
fn late_row(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Append);
    let late = world.send(first, "zz, of the first owner");
    world.until("a row is in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed();
    world.exchange(second, "aa, of the second owner");
    world.gate(first).open(Kind::Append);
    world.wake_until_over(first, late);
    world.exchange(second, "after it");
    // Whoever has heard nothing asks the owner that there is.
    world.exchange_again(second, late);
}

/// The first owner has read its fence as clean before its row is written, but hears of both only after it was superseded.
fn early_read(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::FenceAnswer);
    world.look(first, false);
    world.until("its fence is read", |world| world.gate(first).held(Kind::FenceAnswer) == 1);
    world.gate(first).shut(Kind::Append);
    let late = world.send(first, "late");
    world.until("a row is in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed();
    world.exchange(second, "of the second owner");
    let appended = world.gate(first).appended();
    world.gate(first).open(Kind::Append);
    world.wake(first);
    world.until("it knows that its row is durable", |world| world.gate(first).appended() > appended && world.is_calm());
    world.gate(first).open(Kind::FenceAnswer);
    world.wake_until_over(first, late);
    world.exchange_again(second, late);
}

/// The successor's fence has not reached the servers yet: it must not have opened anything, as the first owner still acknowledges.
fn late_fence(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Append);
    let early = world.send(first, "of the first owner");
    world.until("a row is in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed_with(|gate| gate.shut(Kind::Fence));
    let next = world.send(second, "of the second owner");
    world.until("the second owner waits", |world| world.is_acknowledged(next) || world.is_calm());
    world.gate(first).open(Kind::Append);
    world.wake(first);
    world.until("the first owner may still acknowledge", |world| world.is_acknowledged(early) || world.is_over(first));
    world.gate(second).open(Kind::Fence);
    world.until("the second owner opens", |world| world.is_acknowledged(next));
    world.exchange_again(second, early);
}

/// What the first owner has acknowledged stands above everything that rows tell to be committed.
fn after_acknowledgement(world: &mut World) {
    let first = world.owner();
    let sent = world.exchange(first, "the last of the first owner");
    world.pause(first);
    let second = world.succeed();
    world.exchange(second, "the first of the second owner");
    world.exchange_again(second, sent);
}

/// The second owner saw nothing of the first one's row, and its own is on its way still when the third one adopts the first one's.
fn overtaken(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Append);
    let sent = world.send(first, "of the first owner");
    world.until("a row is in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed();
    world.gate(second).shut(Kind::Append);
    let other = world.send(second, "of the second owner");
    world.until("another row for the same seq", |world| world.gate(second).held(Kind::Append) == 1);
    world.pause(second);
    let appended = world.gate(first).appended();
    world.gate(first).open(Kind::Append);
    world.until("the first owner's row is there", |world| world.gate(first).appended() > appended);
    let third = world.succeed();
    world.exchange_again(third, sent);
    let appended = world.gate(second).appended();
    world.gate(second).open(Kind::Append);
    world.until("the second owner's row is there", |world| world.gate(second).appended() > appended);
    world.wake_until_over(second, other);
    let fourth = world.succeed();
    world.exchange_again(fourth, other);
}

/// Three rows of the first owner arrive when its successor has made another history of two, with the third message in it.
fn misfit(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Append);
    let sent = [world.send(first, "one"), world.send(first, "two"), world.send(first, "three")];
    world.until("rows are in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed();
    world.exchange(second, "of the second owner");
    world.exchange_again(second, sent[2]);
    let appended = world.gate(first).appended();
    world.gate(first).open(Kind::Append);
    world.until("the first owner's rows are there", |world| world.gate(first).appended() > appended);
    world.pause(second);
    let third = world.succeed();
    world.exchange_again(third, sent[2]);
    world.exchange_again(third, sent[0]);
}

/// The second owner ends before its fences are written. The third one must fence the first one too.
fn chain(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Append);
    let late = world.send(first, "of the first owner");
    world.until("a row is in its hands", |world| world.gate(first).held(Kind::Append) == 1);
    world.pause(first);
    let second = world.succeed_with(|gate| gate.shut(Kind::Fence));
    world.until("the second owner waits", World::is_calm);
    world.pause(second);
    let third = world.succeed();
    world.exchange(third, "of the third owner");
    world.gate(first).open(Kind::Append);
    world.wake_until_over(first, late);
    world.exchange_again(third, late);
}

/// Nobody knows what became of a row, and meanwhile there is more to write.
fn again(world: &mut World) {
    let first = world.owner();
    world.gate(first).shut(Kind::Appended);
    let sent = world.send(first, "one");
    world.until("its row is durable", |world| world.gate(first).held(Kind::Appended) == 1);
    let next = world.send(first, "two");
    world.until("more is to be written", World::is_calm);
    world.gate(first).lose_an_answer();
    world.gate(first).open(Kind::Appended);
    world.until("an acknowledgement", |world| world.is_acknowledged(sent) || world.is_acknowledged(next));
    world.pause(first);
    let second = world.succeed();
    world.exchange_again(second, sent);
    world.exchange_again(second, next);
}
