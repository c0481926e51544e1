//! What must hold of membership, whatever the network and the processes do: after it all heals, everybody agrees in time; who lives and
//! can be reached does not stay down; who died is down at all others in time.
//!
//! `CHAPPE_SWIM_SEEDS=1000 cargo test -p chappe-cluster --lib swim::simulation -- --nocapture` searches longer, and prints the figures;
//! `CHAPPE_SWIM_SEEDS=38..39 CHAPPE_SWIM_TELL=1` tells one of them, datagram by datagram.

use std::ops::Range;

use super::*;

fn plan(seed: u64, members: usize) -> Plan {
    Plan { seed, members, rhythm: Rhythm::PROMPT, weather: Weather::WET, seeds: 3.min(members) }
}

/// As many seeds as are asked for, or so many.
fn seeds(few: u64) -> Range<u64> {
    let asked = std::env::var("CHAPPE_SWIM_SEEDS").unwrap_or_default();
    let (from, to) = asked.split_once("..").unwrap_or(("0", &asked));
    from.parse().unwrap()..to.parse().unwrap_or(few)
}

/// How long it may take until all agree again: an announcement to seeds and to those that are down, the contradictions that follow, and
/// all of it once more, since one of twenty is lost.
const HEALED: Millis = 30_000;

struct Figures(&'static str, Vec<Millis>);

impl Figures {
    fn quantile(&mut self, of: usize) -> Millis {
        self.1.sort_unstable();
        self.1[(self.1.len() - 1) * of / 100]
    }

    fn print(&mut self) {
        let [half, most, nearly, all] = [50, 90, 99, 100].map(|of| self.quantile(of));
        println!("{} (ms, {} of them): p50 {half}, p90 {most}, p99 {nearly}, max {all}", self.0, self.1.len());
    }
}

fn agree(world: &mut World, seed: u64, what: &str) -> Millis {
    match world.until_agreed(HEALED) {
        Some(took) => took,
        None => panic!("seed {seed}, {what}: {}", world.disagreement()),
    }
}

#[test]
fn they_find_each_other() {
    for members in [3, 10, 50] {
        let mut took = Figures("found each other", Vec::new());
        for seed in seeds(if members == 50 { 3 } else { 20 }) {
            let mut world = World::new(plan(seed, members));
            for member in 0..members {
                world.start(member);
                let pause = world.random.below(200);
                world.run(pause);
            }
            let since = world.now;
            agree(&mut world, seed, "they started");
            took.1.push(world.now - since);
        }
        print!("{members} members ");
        took.print();
    }
}

#[test]
fn who_was_killed_is_down_everywhere_in_time() {
    let mut all = Figures("killed -> down at all nine others", Vec::new());
    let mut each = Figures("killed -> down at one other", Vec::new());
    for seed in seeds(60) {
        let mut world = World::formed(plan(seed, 10));
        let quiet = 1_000 + world.random.below(3_000);
        world.run(quiet);
        let (victim, killed) = (world.random.below(10) as usize, world.now);
        world.kill(victim);
        world.run(10_000);
        let downs = world.downs_of(victim, killed);
        assert_eq!(downs.len(), 9, "seed {seed}: {}", world.disagreement());
        all.1.extend(downs.values().max().map(|last| last - killed));
        each.1.extend(downs.values().map(|down| down - killed));
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
    }
    each.print();
    all.print();
    assert!(all.quantile(99) <= 2_600, "it takes too long");
}

#[test]
fn with_a_generous_rhythm_it_takes_longer_and_comes_to_the_same() {
    let mut all = Figures("generous: killed -> down at all nine others", Vec::new());
    for seed in seeds(15) {
        let mut world = World::formed(Plan { rhythm: Rhythm::GENEROUS, ..plan(seed, 10) });
        let killed = world.now;
        world.kill(4);
        world.run(30_000);
        let downs = world.downs_of(4, killed);
        assert_eq!(downs.len(), 9, "seed {seed}: {}", world.disagreement());
        all.1.extend(downs.values().max().map(|last| last - killed));
    }
    all.print();
    assert!(all.quantile(0) >= 4_000 && all.quantile(100) <= 15_000);
}

#[test]
fn who_says_goodbye_is_down_at_once_and_stays_so() {
    let mut all = Figures("goodbye -> down at all nine others", Vec::new());
    for seed in seeds(30) {
        let mut world = World::formed(plan(seed, 10));
        let (who, left) = (world.random.below(10) as usize, world.now);
        world.leave(who);
        world.run(10_000);
        assert!(!world.runs(who), "it ends by itself");
        let downs = world.downs_of(who, left);
        assert_eq!(downs.len(), 9, "seed {seed}");
        all.1.extend(downs.values().max().map(|last| last - left));
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
    }
    all.print();
    assert!(all.quantile(90) <= 400, "that is no sooner than by suspicion");
}

#[test]
fn rain_alone_takes_nobody_down() {
    let (mut downs, mut renewals, mut minutes) = (0, 0, 0);
    for seed in seeds(10) {
        let mut world = World::formed(plan(seed, 10));
        let (began, sent) = (world.now, world.sent);
        world.run(60_000);
        downs += world.count_downs(began);
        let renewed = world.said.iter().filter(|said| matches!(said.change, Change::Renewed(_)));
        renewals += renewed.count();
        minutes += 1;
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        let (packets, bytes) = (world.sent.0 - sent.0, world.sent.1 - sent.1);
        assert!(packets / 600 < 60 && bytes / packets < 400, "{packets} packets, {bytes} bytes in a minute");
        if seed == 0 {
            println!("10 members, 1 of 20 lost: each {} datagrams/s of {} bytes", packets / 600, bytes / packets);
        }
    }
    println!("1 of 20 lost, 10 members, {minutes} min: {downs} words of down about the living, {renewals} renewals");
    assert!(downs <= minutes && renewals <= minutes, "{downs} and {renewals} in {minutes} minutes");
}

#[test]
fn whoever_stood_still_is_down_comes_back_and_accuses_nobody() {
    let mut back = Figures("continued -> all agree", Vec::new());
    for seed in seeds(30) {
        let mut world = World::formed(plan(seed, 8));
        let (who, stopped) = (world.random.below(8) as usize, world.now);
        world.pause(who);
        world.run(10_000);
        assert_eq!(world.downs_of(who, stopped).len(), 7, "seed {seed}");
        let woke = world.now;
        world.resume(who);
        back.1.push(agree(&mut world, seed, "it continued"));
        world.run(5_000);
        let accused = world.said.iter().filter(|said| said.by == who && said.at >= woke);
        let accused: Vec<_> = accused.filter(|said| matches!(said.change, Change::Down(_))).collect();
        assert!(accused.is_empty(), "seed {seed}: {accused:?}");
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        assert!(world.core(who).counts().slept > 0);
    }
    back.print();
}

#[test]
fn whoever_starts_again_wins_over_its_former_life() {
    let mut took = Figures("started again -> all agree", Vec::new());
    for seed in seeds(40) {
        let mut world = World::formed(plan(seed, 6));
        let who = world.random.below(6) as usize;
        world.kill(who);
        // Before anybody noticed, or long after.
        let away = [50, 700, 5_000][world.random.below(3) as usize];
        world.run(away);
        if world.random.below(2) == 0 {
            world.move_away(who);
        }
        // Its clock may have gone back by ten years, or ahead by an hour.
        let ahead = [0, -315_360_000_000, -5_000, 3_600_000][world.random.below(4) as usize];
        world.set_clock(who, ahead);
        world.start(who);
        let started = world.now;
        took.1.push(agree(&mut world, seed, "it started again"));
        world.run(10_000);
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        let (uid, addr) = (world.uid(who), world.addr(who));
        let knows = |other: &usize| world.core(*other).states().any(|(peer, _)| peer.uid == uid && peer.addr == addr);
        assert!((0..6).filter(|other| *other != who).all(|other| knows(&other)), "seed {seed}: the address of before");
        let contested = world.core(who).counts().contested;
        assert!(contested <= 2, "seed {seed}: {contested} times above what was heard");
        let renewed = world.said.iter().filter(|said| said.by == who && said.at >= started);
        let renewed = renewed.filter(|said| matches!(said.change, Change::Renewed(_))).count();
        assert!(renewed <= 4, "seed {seed}: renewed {renewed} times");
    }
    took.print();
}

#[test]
fn whoever_was_cut_off_comes_back_by_itself() {
    let mut took = Figures("healed after a lone cut -> all agree", Vec::new());
    for seed in seeds(30) {
        let mut world = World::formed(plan(seed, 7));
        let who = world.random.below(7) as usize;
        world.isolate(who);
        let away = 5_000 + world.random.below(120_000);
        world.run(away);
        assert!(world.up(who).is_empty(), "seed {seed}");
        world.heal();
        took.1.push(agree(&mut world, seed, "it healed"));
    }
    took.print();
}

#[test]
fn a_split_heals_also_when_both_sides_have_forgotten_each_other() {
    let mut took = Figures("healed after a split -> all agree", Vec::new());
    for seed in seeds(6) {
        for (members, away) in [(6, 20_000), (20, 60_000), (5, FORGOTTEN)] {
            let mut world = World::formed(plan(seed, members));
            // Seeds on one side only.
            let (one, other): (Vec<_>, Vec<_>) = (0..members).partition(|member| *member < 3);
            world.split(&one, &other);
            world.run(away);
            assert_eq!(world.up(0).len(), 2, "seed {seed}");
            world.heal();
            took.1.push(agree(&mut world, seed, "the split healed"));
            // Whoever was suspected over the cut may still be; then it is calm.
            world.run(5_000);
            agree(&mut world, seed, "the split healed a while ago");
            world.run(20_000);
            assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        }
    }
    took.print();
}

/// Longer than who is down is known.
const FORGOTTEN: Millis = super::super::core::FORGET + 60_000;

#[test]
fn one_way_cuts_and_bridges_heal() {
    let mut took = Figures("one-way cuts and bridges healed -> all agree", Vec::new());
    for seed in seeds(15) {
        // One direction only, between two: others vouch for both.
        let mut world = World::formed(plan(seed, 8));
        let began = world.now;
        world.cut(1, 2);
        world.run(20_000);
        assert!(world.count_downs(began) <= 4, "seed {seed}: {} words of down", world.count_downs(began));
        world.heal();
        agree(&mut world, seed, "a one-way cut healed");
        // Somebody whom everybody hears, and who hears nobody.
        for other in 0..7 {
            world.cut(other, 7);
        }
        world.run(20_000);
        world.heal();
        took.1.push(agree(&mut world, seed, "a deaf member hears again"));
        // Two sides, and one that both can reach.
        world.split(&[0, 1, 2, 3], &[5, 6, 7]);
        world.run(30_000);
        world.heal();
        took.1.push(agree(&mut world, seed, "a bridged partition healed"));
    }
    took.print();
}

#[test]
fn after_any_history_all_agree() {
    let mut took = Figures("any history -> all agree", Vec::new());
    for seed in seeds(40) {
        let members = 3 + Random::new(seed ^ 0xc0de).below(8) as usize;
        let mut world = history(seed, members);
        took.1.push(agree(&mut world, seed, "the history ended"));
        // It stays so, once what was suspected over the cuts has been contradicted.
        world.run(3_000);
        let quiet = world.now;
        world.run(20_000);
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        assert!(world.count_downs(quiet) <= 2, "seed {seed}: {} words of down", world.count_downs(quiet));
    }
    took.print();
}

#[test]
fn a_seed_tells_the_same_history_again() {
    let tell = |seed| {
        let mut world = history(seed, 7);
        world.run(10_000);
        (world.hash(), world.sent, world.said.len())
    };
    for seed in 0..3 {
        assert_eq!(tell(seed), tell(seed), "seed {seed}");
    }
    assert_ne!(tell(1), tell(2));
}

/// Members are killed, stopped, started, cut off and moved for a minute; links flap. Then all links are open and everybody is awake.
fn history(seed: u64, members: usize) -> World {
    let mut world = World::formed(plan(seed, members));
    for _ in 0..30 {
        let pause = world.random.below(3_000);
        world.run(pause);
        let (one, other) = (world.random.below(members as u64) as usize, world.random.below(members as u64) as usize);
        match world.random.below(9) {
            0 => world.kill(one),
            1 if world.runs(one) => world.pause(one),
            2 if world.asleep(one) && world.runs(one) => world.resume(one),
            3 | 4 if !world.runs(one) => {
                if world.random.below(3) == 0 {
                    world.move_away(one);
                }
                let ahead = world.random.below(7_200_000) as i64 - 3_600_000;
                world.set_clock(one, ahead);
                world.start(one);
            }
            5 => world.cut(one, other),
            6 => world.open(one, other),
            7 => world.isolate(one),
            8 => {
                // It flaps.
                for _ in 0..6 {
                    world.isolate(one);
                    world.run(400);
                    world.heal();
                    world.run(400);
                }
            }
            _ => world.heal(),
        }
    }
    world.heal();
    for member in 0..members {
        if world.runs(member) && world.asleep(member) {
            world.resume(member);
        }
    }
    // The first seed lives: whoever knows nobody must find somebody.
    if !world.runs(0) {
        world.start(0);
    }
    world
}

#[test]
fn without_seeds_that_live_those_who_know_each_other_stay_together() {
    let mut world = World::formed(plan(5, 6));
    for seed in 0..3 {
        world.kill(seed);
    }
    agree(&mut world, 5, "the seeds died");
    world.isolate(4);
    world.run(30_000);
    world.heal();
    agree(&mut world, 5, "one of the rest was cut off");
}

#[test]
fn a_seed_that_is_only_its_own_is_no_harm() {
    let mut world = World::new(plan(6, 3));
    let own = world.addr(0);
    world.set_seeds(0, vec![own]);
    for member in 0..3 {
        world.start(member);
    }
    agree(&mut world, 6, "they started");
    world.isolate(0);
    world.run(60_000);
    world.heal();
    agree(&mut world, 6, "it was cut off, and knows no other's address but from before");
    assert_eq!(world.dropped.values().sum::<u64>(), world.dropped.get(&Dropped::Replayed).copied().unwrap_or(0));
}

#[test]
fn whoever_has_another_key_is_not_heard_and_disturbs_nobody() {
    let mut world = World::new(plan(8, 5));
    world.set_keys(4, keys(9));
    for member in 0..5 {
        world.start(member);
    }
    world.run(60_000);
    for member in 0..4 {
        assert_eq!(world.up(member).len(), 3);
    }
    assert!(world.up(4).is_empty());
    assert_eq!(world.count_downs(0), 0);
    assert!(world.dropped[&Dropped::Seal] > 10);
}

#[test]
fn keys_are_replaced_in_three_steps_without_anybody_noticing() {
    let mut world = World::formed(plan(9, 5));
    let began = world.now;
    let key = |byte| [byte; 32];
    let steps = [Keys::new(&[key(7), key(8)]), Keys::new(&[key(8), key(7)]), Keys::new(&[key(8)])];
    for step in steps.into_iter().flatten() {
        for member in 0..5 {
            world.replace_keys(member, &step);
            world.run(700);
        }
    }
    world.run(10_000);
    assert!(world.agrees());
    assert_eq!(world.count_downs(began), 0);
    assert!(!world.dropped.contains_key(&Dropped::Seal), "{:?}", world.dropped);
}

/// Somebody listens, sends again what was sent, at any time and to anybody, and sends bytes that nobody sent. Nobody goes down by
/// it, also when members died, started again and left in what is replayed.
#[test]
fn replays_and_noise_change_nothing() {
    for seed in seeds(6) {
        let mut world = World::new(plan(seed, 6));
        world.captured = Some(Vec::new());
        for member in 0..6 {
            world.start(member);
        }
        agree(&mut world, seed, "they started");
        // Suspicions, deaths, goodbyes and contradictions to be replayed.
        world.kill(5);
        world.run(5_000);
        world.start(5);
        world.run(5_000);
        world.leave(4);
        world.run(5_000);
        world.start(4);
        world.pause(3);
        world.run(4_000);
        world.resume(3);
        agree(&mut world, seed, "they were troubled");
        // One of them remembers nothing of what it has seen.
        world.kill(2);
        world.run(3_000);
        world.start(2);
        agree(&mut world, seed, "one started again");
        let captured = world.captured.take().unwrap();
        let began = world.now;
        for _ in 0..3_000 {
            let (which, whom) = (world.random.below(captured.len() as u64) as usize, world.random.below(6) as usize);
            let mut bytes = captured[which].clone();
            match world.random.below(4) {
                0 => {
                    let at = world.random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << world.random.below(8);
                }
                1 => bytes.truncate(world.random.below(bytes.len() as u64) as usize),
                _ => {}
            }
            let to = world.addr(whom);
            world.inject(to, bytes);
            world.run(10);
        }
        assert!(world.count_downs(began) <= 1, "seed {seed}: {} words of down", world.count_downs(began));
        assert!(world.agrees(), "seed {seed}: {}", world.disagreement());
        let counted = |why| world.dropped.get(&why).copied().unwrap_or(0);
        assert!(counted(Dropped::Replayed) > 100 && counted(Dropped::Seal) > 300, "{:?}", world.dropped);
        assert!(counted(Dropped::Size) + counted(Dropped::Version) > 20, "{:?}", world.dropped);
    }
}

/// The worst that a replay does: somebody who died, and whom the receiver does not know any more, is up until a probe has failed.
#[test]
fn a_replayed_announcement_of_the_dead_is_believed_for_seconds_at_most() {
    let mut world = World::new(Plan { weather: Weather::FAIR, ..plan(11, 3) });
    world.captured = Some(Vec::new());
    world.start(2);
    world.run(10);
    world.kill(2);
    let captured = world.captured.take().unwrap();
    assert!(!captured.is_empty(), "it has announced itself");
    world.start(0);
    world.start(1);
    agree(&mut world, 11, "two started");
    let to = world.addr(0);
    world.inject(to, captured[0].clone());
    world.run(100);
    assert!(world.up(0).contains(&world.uid(2)), "who knows nothing believes it");
    agree(&mut world, 11, "the dead was announced");
    let said = world.now;
    world.inject(to, captured[0].clone());
    world.run(5_000);
    let believed = world.said.iter().filter(|word| word.at > said && matches!(word.change, Change::Up(_)));
    assert_eq!(believed.count(), 0, "the second time nobody believes it");
}

/// Two processes with one name: neither is kept out for good, nobody else suffers, and it can be seen.
#[test]
fn two_with_one_name_are_seen() {
    let mut world = World::formed(plan(12, 4));
    // The same uid at another address: a copied disk.
    let uid = world.uid(3);
    world.members[2].uid = uid;
    world.kill(2);
    world.run(5_000);
    world.start(2);
    let (began, sent) = (world.now, world.sent.0);
    world.run(20_000);
    let contested = world.core(2).counts().contested + world.core(3).counts().contested;
    assert!(contested > 5, "contested {contested} times");
    assert!((world.sent.0 - sent) / 20 < 4 * 100, "{} datagrams a second", (world.sent.0 - sent) / 20);
    let others: Vec<_> = world.said.iter().filter(|said| said.at >= began && said.by < 2).collect();
    let accused = others.iter().filter(|said| matches!(said.change, Change::Down(peer) if peer.uid != uid)).count();
    assert_eq!(accused, 0);
    world.kill(2);
    world.run(10_000);
    assert!(world.up(0).contains(&uid) && world.up(1).contains(&uid), "the one that is left is up");
}
