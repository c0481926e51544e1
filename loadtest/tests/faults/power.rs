//! Power cuts: the data directory is a disk that forgets what was not synced.

use std::{path::PathBuf, time::Duration};

use chappe_loadtest::{
    server::{Server, Setup},
    weather::{
        dice::Dice,
        disk::{Cut, Disk, Names},
        power::{self, Power},
    },
};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::world::{PATIENCE, World, can, setup, size, turn};

const DISK: u64 = 4 << 30;

/// A disk, and a folder that outlives it. The fields end in this order.
pub(crate) struct Plugged {
    pub(crate) power: Power,
    _home: TempDir,
}

pub(crate) fn plug_in(names: Names) -> Plugged {
    power::sweep().unwrap();
    let home = tempfile::Builder::new().prefix("chappe-").tempdir().unwrap();
    let mountpoint = home.path().join("disk");
    std::fs::create_dir(&mountpoint).unwrap();
    let power = Power::on(&mountpoint, Disk::new(names, DISK)).unwrap();
    // A sync that takes no time is never interrupted, and gathers no groups.
    power.syncs_take(Duration::from_millis(1));
    Plugged { power, _home: home }
}

impl Plugged {
    /// A server whose data directory is the whole disk; its log of words stands outside.
    pub(crate) fn setup(&self) -> Setup {
        Setup { data_dir: Some(self.power.mountpoint().to_owned()), ..setup() }
    }

    /// Cuts the power now, or completes a cut that has frozen the disk already.
    pub(crate) async fn cut(&mut self, server: &mut Server, cut: Cut) {
        self.power.freeze();
        if server.pid().is_some() {
            server.signal(Signal::KILL).unwrap();
            self.power.go_dark();
            server.ended().await.unwrap();
        }
        self.power.restore(cut).unwrap();
    }

    /// Ends the server, now or where the disk has frozen already; the kernel keeps what it wrote.
    async fn kill(&mut self, server: &mut Server) {
        self.power.freeze();
        server.signal(Signal::KILL).unwrap();
        self.power.go_dark();
        server.ended().await.unwrap();
        self.power.thaw();
    }

    async fn frozen(&self) {
        while !self.power.is_frozen() {
            sleep(Duration::from_micros(300)).await;
        }
    }
}

fn any_cut(dice: &mut Dice) -> Cut {
    if dice.chance(0.5) { Cut::Synced } else { Cut::Torn(dice.below(u64::MAX)) }
}

/// Starts again; with `early`, the power fails during the start a few times first, at operations chosen by chance.
async fn restart(plugged: &mut Plugged, server: &mut Server, early: u64, dice: &mut Dice) -> u64 {
    let mut failed = 0;
    for _ in 0..early {
        plugged.power.freeze_at(dice.below(25));
        let frozen = tokio::select! {
            () = plugged.frozen() => true,
            result = server.restart() => {
                result.unwrap_or_else(|error| panic!("the server does not start again: {error:#}"));
                false
            }
        };
        failed += u64::from(frozen);
        let cut = any_cut(dice);
        plugged.cut(server, cut).await;
    }
    server.restart().await.unwrap_or_else(|error| panic!("the server does not start again: {error:#}"));
    failed
}

async fn cuts_lose_nothing(name: &'static str, names: Names) {
    let (_turn, mut dice) = turn(name);
    if !can(power::available()) {
        return;
    }
    let cuts = size("CHAPPE_TEST_CUTS", 8);
    let mut plugged = plug_in(names);
    let mut world = World::begin(plugged.setup()).await;
    let load = world.load(3, &mut dice);
    let (mut kills, mut during_start, mut after_start) = (0, 0, 0);
    for cut in 0..cuts {
        if cut % 2 == 0 {
            world.progress(&load, 1 + dice.below(150)).await;
        }
        // Half of the cuts stand at an operation: between a write and its sync, or before a rename.
        if dice.chance(0.5) {
            plugged.power.freeze_at(dice.below(60));
            timeout(PATIENCE, plugged.frozen()).await.expect("there is load");
        } else {
            sleep(dice.within(Duration::from_millis(100))).await;
        }
        // Sometimes only the process ends, at that operation: the next one finds bytes that were never synced, serves
        // them, and then the power fails.
        if dice.chance(0.4) {
            plugged.kill(&mut world.server).await;
            world.server.restart().await.unwrap();
            sleep(dice.within(Duration::from_millis(50))).await;
            kills += 1;
        }
        let how = any_cut(&mut dice);
        plugged.cut(&mut world.server, how).await;
        let early = dice.below(3);
        during_start += restart(&mut plugged, &mut world.server, early, &mut dice).await;
        // Again, right after the recovery: what it has shown and told since must be on the disk.
        if cut % 2 == 1 {
            sleep(dice.within(Duration::from_millis(100))).await;
            let how = any_cut(&mut dice);
            plugged.cut(&mut world.server, how).await;
            after_start += 1;
            restart(&mut plugged, &mut world.server, 0, &mut dice).await;
        }
    }
    world.progress(&load, 100).await;
    let acked = load.stop().await;
    println!(
        "{cuts} cuts, {kills} after a kill, {during_start} during a start, {after_start} within 100 ms after one, {acked} acknowledged"
    );
    assert!(acked > cuts * 10, "there was load");
    world.judge_clean().await;
    world.server.kill().await.unwrap();
}

/// Goal: nothing acknowledged depends on bytes that were not synced, whatever a file system may do by POSIX.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_lose_nothing_on_a_strict_disk() {
    cuts_lose_nothing("cuts_lose_nothing_on_a_strict_disk", Names::Strict).await;
}

/// The same where names become durable in other moments: as ext4 and XFS do it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_lose_nothing_on_a_journaled_disk() {
    cuts_lose_nothing("cuts_lose_nothing_on_a_journaled_disk", Names::Journaled).await;
}

/// Goal: a first start that is cut short leaves something that the next start takes for its own. The data directory is
/// a folder that the server creates itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_may_be_cut_anywhere() {
    let (_turn, mut dice) = turn("a_first_start_may_be_cut_anywhere");
    if !can(power::available()) {
        return;
    }
    let mut plugged = plug_in(Names::Strict);
    let data_dir: PathBuf = plugged.power.mountpoint().join("data");
    // Once without a cut, to have a server to start again, and to know how long a first start is.
    let mut server = Server::start(Setup { data_dir: Some(data_dir), ..setup() }).await.unwrap();
    let operations = plugged.power.operations();
    println!("a first start takes {operations} operations");
    for _ in 0..size("CHAPPE_TEST_CUTS", 8) {
        plugged.cut(&mut server, Cut::Synced).await;
        plugged.power.replace(Disk::new(Names::Strict, DISK)).unwrap();
        // The first operation is our own: the log of the server's words stands on the disk here.
        plugged.power.freeze_at(1 + dice.below(operations));
        tokio::select! {
            () = plugged.frozen() => {}
            result = server.restart() => result.unwrap(),
        }
        let how = any_cut(&mut dice);
        plugged.cut(&mut server, how).await;
        server.restart().await.unwrap_or_else(|error| panic!("after a first start that was cut short: {error:#}"));
        // What it says now, it keeps.
        let world = World::around(server).await;
        let ada = &world.members[0].client;
        let seq = ada.send(world.conversations[0].id, &serde_json::json!({ "text": "first" })).await.unwrap().seq;
        server = world.server;
        plugged.cut(&mut server, Cut::Synced).await;
        server.restart().await.unwrap();
        let conversation = &world.conversations[0];
        let head = timeout(PATIENCE, ada.read_all(conversation.id, 0, true)).await.unwrap().unwrap();
        assert!(head >= seq, "the message is gone: head {head}, seq {seq}");
        let verdict = world.history.verdict().unwrap();
        assert!(verdict.is_clean(), "{verdict}");
    }
    server.kill().await.unwrap();
}

/// Goal: these tests can fail. Method: a disk that says it has synced, and has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_disk_is_found_out() {
    let (_turn, mut dice) = turn("a_lying_disk_is_found_out");
    if !can(power::available()) {
        return;
    }
    let mut plugged = plug_in(Names::Strict);
    let mut world = World::begin(plugged.setup()).await;
    plugged.power.with(|disk| disk.lie(true));
    let load = world.load(1, &mut dice);
    world.progress(&load, 200).await;
    assert!(load.stop().await >= 200);
    plugged.cut(&mut world.server, Cut::Synced).await;
    world.server.restart().await.unwrap();
    let verdict = world.judge().await;
    assert!(!verdict.is_clean(), "acknowledged messages are gone, and the oracle says nothing");
    world.server.kill().await.unwrap();
}

/// Goal: bytes whose sync has failed are never taken for durable, though the kernel shows them. Method: a sync fails, the
/// process ends, the next one finds the bytes, acknowledges their retries, and then the power is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_not_believed_later() {
    let (_turn, mut dice) = turn("a_failed_sync_is_not_believed_later");
    if !can(power::available()) {
        return;
    }
    let mut plugged = plug_in(Names::Strict);
    let mut world = World::begin(plugged.setup()).await;
    let load = world.load(3, &mut dice);
    for _ in 0..size("CHAPPE_TEST_CUTS", 8).div_ceil(2) {
        world.progress(&load, 1 + dice.below(50)).await;
        plugged.power.with(|disk| disk.fail_syncs(1));
        let status = world.server.ended().await.expect("a failed sync ends the process");
        assert!(!status.success(), "{status}");
        world.server.restart().await.unwrap();
        // Clients have come back and have been told what became of their sends.
        world.progress(&load, 20).await;
        plugged.cut(&mut world.server, Cut::Synced).await;
        world.server.restart().await.unwrap();
    }
    world.progress(&load, 20).await;
    load.stop().await;
    world.judge_clean().await;
    world.server.kill().await.unwrap();
}
