//! Damaged files: truncated, torn, with flipped bits.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use chappe_loadtest::{
    client::http::Http,
    server::{Server, Setup},
    weather::dice::Dice,
};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::world::{World, setup, size, turn};

/// A data directory as a kill left it, and what its server had acknowledged.
struct Corpse {
    home: TempDir,
    /// By conversation: a member of it, and every event as it was served.
    logs: BTreeMap<Uuid, (&'static str, Vec<Value>)>,
    /// The texts of the messages in the order of their acknowledgement, each with its conversation and seq.
    told: Vec<(String, Uuid, u64)>,
}

impl Corpse {
    /// One message after the other, so that each is a batch of its own and their order is known.
    async fn make(setup: Setup, messages: u64, dice: &mut Dice) -> Self {
        let home = tempfile::Builder::new().prefix("chappe-").tempdir().unwrap();
        let mut world = World::begin(Setup { data_dir: Some(home.path().join("data")), ..setup }).await;
        let mut told = Vec::new();
        for number in 0..messages {
            let conversation = world.conversations[usize::from(dice.chance(0.3))].id;
            let text = format!("text {number:06} {}", "x".repeat(dice.below(900) as usize));
            let ack = world.members[0].client.send(conversation, &json!({ "text": text })).await.unwrap();
            told.push((text, conversation, ack.seq));
        }
        let mut logs = BTreeMap::new();
        for (conversation, reader) in
            [(&world.conversations[0], "fay"), (&world.conversations[1], "cyd"), (&world.conversations[2], "eve")]
        {
            let events = events(&world.server, reader, conversation.id).await.unwrap();
            assert!(!events.is_empty());
            logs.insert(conversation.id, (reader, events));
        }
        world.server.kill().await.unwrap();
        Self { home, logs, told }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A copy to be damaged.
    fn copy(&self, to: &Path) -> PathBuf {
        let data = to.join("data");
        let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&self.data(), &data]).status().unwrap();
        assert!(copied.success());
        data
    }

    /// The newest journal.
    fn journal(&self) -> PathBuf {
        let mut journals: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.data().join("log")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                journals.push((path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path));
            }
        }
        journals.sort();
        journals.pop().unwrap().1
    }
}

/// Every event of a conversation as HTTP serves it, or the answer that is no page.
async fn events(server: &Server, user: &str, conversation: Uuid) -> Result<Vec<Value>, Value> {
    let token = server.signer().unwrap().sign(user).unwrap();
    let (http, mut after, mut all) = (Http::new(&server.url()), 0, Vec::new());
    loop {
        let path = format!("/v1/conversations/{conversation}/events?after={after}&limit=100");
        let answer = http.call(Method::GET, &path, Some(&token), None).await.unwrap();
        let page = answer.json().unwrap();
        if answer.status != 200 {
            return Err(page);
        }
        let events = page["events"].as_array().unwrap();
        let Some(last) = events.last() else { return Ok(all) };
        after = last["seq"].as_u64().unwrap();
        all.extend(events.iter().cloned());
    }
}

/// What was done to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Everything from here on is gone.
    Truncated(u64),
    /// One bit is another.
    Flipped(u64, u8),
    /// Zeros from here, so many.
    Zeroed(u64, u64),
    /// Noise from here, so much.
    Noise(u64, u64),
}

impl Damage {
    /// `seams` are places where one record ends and the next begins.
    fn any(dice: &mut Dice, length: u64, seams: &[u64]) -> Self {
        // The end is where crashes happen; the middle is where disks rot; and a reader is most easily misled at a seam.
        let at = match dice.below(5) {
            0 | 1 => length - 1 - dice.below(length.min(1500)),
            2 if !seams.is_empty() => (dice.pick(seams) + dice.below(40)).saturating_sub(20).min(length - 1),
            _ => dice.below(length),
        };
        match dice.below(6) {
            0 | 1 => Self::Truncated(at),
            2 | 3 => Self::Flipped(at, 1 << dice.below(8)),
            4 => Self::Zeroed(if dice.chance(0.5) { at / 512 * 512 } else { at }, 1 + dice.below(2048)),
            _ => Self::Noise(at, 1 + dice.below(600)),
        }
    }

    fn at(self) -> u64 {
        let (Self::Truncated(at) | Self::Flipped(at, _) | Self::Zeroed(at, _) | Self::Noise(at, _)) = self;
        at
    }

    fn inflict(self, path: &Path, dice: &mut Dice) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let within = |at: u64, count: u64| vec![0; count.min(length - at) as usize];
        match self {
            Self::Truncated(at) => file.set_len(at).unwrap(),
            Self::Flipped(at, bit) => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ bit], at).unwrap();
            }
            Self::Zeroed(at, count) => file.write_all_at(&within(at, count), at).unwrap(),
            Self::Noise(at, count) => {
                let mut noise = within(at, count);
                noise.fill_with(|| dice.below(256) as u8);
                file.write_all_at(&noise, at).unwrap();
            }
        }
    }
}

/// What a start on damaged files came to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Outcome {
    /// It does not start, and says why.
    Refused,
    /// It serves all there was.
    Whole,
    /// It serves the beginning of what there was.
    Beginning,
    /// It serves some conversations, and says of others that it cannot.
    Withdrawn,
}

/// Starts a server on damaged files, and checks whatever it says. Returns what it serves of each conversation.
async fn examine(corpse: &Corpse, data: &Path, what: &str, go_on: bool) -> (Outcome, BTreeMap<Uuid, usize>) {
    let log = data.with_extension("log");
    let panicked = |when: &str| {
        let words = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let ours = words.lines().any(|line| line.contains("panicked at") && !line.contains("/registry/"));
        assert!(!ours, "{what}: it panicked {when}:\n{words}");
    };
    let mut server = match Server::start(Setup { data_dir: Some(data.to_owned()), ..setup() }).await {
        Ok(server) => server,
        Err(error) => {
            let words = fs::read_to_string(&log).unwrap_or_default();
            let sentence = words.lines().rfind(|line| line.starts_with("chappe-node: "));
            assert!(sentence.is_some(), "{what}: refused without a sentence: {error:#}\n{words}");
            panicked("while it refused");
            return (Outcome::Refused, BTreeMap::new());
        }
    };
    let (mut served, mut outcome) = (BTreeMap::new(), Outcome::Whole);
    for (conversation, (reader, canon)) in &corpse.logs {
        match events(&server, reader, *conversation).await {
            Ok(found) => {
                let same = found.iter().zip(canon).take_while(|(found, canon)| found == canon).count();
                assert!(
                    same == found.len(),
                    "{what}: served something else at seq {}: {:?} instead of {:?}",
                    same + 1,
                    found[same],
                    canon.get(same)
                );
                if found.len() < canon.len() {
                    outcome = outcome.max(Outcome::Beginning);
                }
                served.insert(*conversation, found.len());
            }
            // Whose creation is gone is not there, or not there for this reader.
            Err(error) if error["status"] == 404 => {
                outcome = outcome.max(Outcome::Beginning);
                served.insert(*conversation, 0);
            }
            Err(error) => {
                assert_eq!(error["status"], 503, "{what}: {error}");
                outcome = Outcome::Withdrawn;
            }
        }
    }
    if go_on && outcome != Outcome::Withdrawn {
        continue_life(&mut server, corpse, &served, what).await;
    }
    server.kill().await.unwrap();
    panicked("while it served");
    (outcome, served)
}

/// What was repaired is good for more than reading: a message goes in, and survives the next kill.
async fn continue_life(server: &mut Server, corpse: &Corpse, served: &BTreeMap<Uuid, usize>, what: &str) {
    for (conversation, length) in served.iter().filter(|(_, length)| **length > 0) {
        let (reader, _) = corpse.logs[conversation];
        let token = server.signer().unwrap().sign(reader).unwrap();
        let send = json!({ "client_msg_id": Uuid::now_v7(), "body": { "text": "life goes on" } });
        let path = format!("/v1/conversations/{conversation}/messages");
        let answer = Http::new(&server.url()).call(Method::POST, &path, Some(&token), Some(&send)).await.unwrap();
        assert_eq!(answer.status, 201, "{what}: {:?}", answer.json());
        assert_eq!(answer.json().unwrap()["seq"], *length as u64 + 1, "{what}");
    }
    server.kill().await.unwrap();
    server.restart().await.unwrap_or_else(|error| panic!("{what}: it does not start a second time: {error:#}"));
    for (conversation, length) in served.iter().filter(|(_, length)| **length > 0) {
        let found = events(server, corpse.logs[conversation].0, *conversation).await.unwrap();
        assert_eq!(found.len(), length + 1, "{what}");
        assert_eq!(found[*length]["data"]["body"]["text"], "life goes on", "{what}");
    }
}

/// Goal: a journal that is not as it was written is repaired where that is certain to lose nothing acknowledged before
/// the damage, or refused with a sentence; damaged bytes are never served. Method: one journal, damaged in many ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_repaired_or_refused() {
    let (_turn, mut dice) = turn("a_damaged_journal_is_repaired_or_refused");
    // Nothing is flushed: all there is stands in the journal.
    let corpse = Corpse::make(Setup { args: Vec::new(), ..setup() }, 80, &mut dice).await;
    let journal = corpse.journal();
    let bytes = fs::read(&journal).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let place = |text: &str| {
        let at = bytes
            .windows(11)
            .position(|window| window == &text.as_bytes()[..11])
            .unwrap_or_else(|| panic!("{text} is not in the journal"));
        at as u64
    };
    let places: Vec<u64> = corpse.told.iter().map(|(text, ..)| place(text)).collect();
    assert!(places.is_sorted());
    // What the engine writes behind each batch.
    let seams: Vec<u64> =
        (4..written as usize).filter(|at| &bytes[at - 4..*at] == b"FJL\x03").map(|at| at as u64).collect();
    assert!(seams.len() >= places.len(), "each message is a batch of its own");
    println!("a journal of {written} bytes, {} messages in {} batches", places.len(), seams.len());
    let mut outcomes: BTreeMap<(&str, Outcome), u32> = BTreeMap::new();
    for index in 0..size("CHAPPE_TEST_DAMAGES", 24) {
        let home = tempfile::Builder::new().prefix("chappe-").tempdir().unwrap();
        let data = corpse.copy(home.path());
        // First, every time, the places where a reader is misled most easily: the first byte of a batch in the middle and
        // of the last one, and the end of the last.
        let (middle, last, end) = (seams[seams.len() / 2], seams[seams.len() - 2], seams[seams.len() - 1] - 1);
        let damage = match [middle, last, end, last + 1].get(index as usize) {
            Some(at) => Damage::Flipped(*at, 1 << dice.below(8)),
            None => Damage::any(&mut dice, written, &seams),
        };
        damage.inflict(&data.join("log").join(journal.file_name().unwrap()), &mut dice);
        let what = format!("{damage:?} of {written}");
        let (outcome, served) = examine(&corpse, &data, &what, index % 3 == 0).await;
        let kind = match damage {
            Damage::Truncated(_) => "truncated",
            Damage::Flipped(..) => "flipped",
            Damage::Zeroed(..) => "zeroed",
            Damage::Noise(..) => "noise",
        };
        *outcomes.entry((kind, outcome)).or_default() += 1;
        if outcome == Outcome::Refused {
            continue;
        }
        assert_ne!(outcome, Outcome::Withdrawn, "{what}: a conversation is withdrawn for good");
        // A message whose successor begins before the damage was whole before the damage.
        let safe = places.iter().filter(|place| **place < damage.at()).count().saturating_sub(1);
        for (text, conversation, seq) in &corpse.told[..safe] {
            assert!(
                served[conversation] as u64 >= *seq,
                "{what}: acknowledged before the damage, and gone: {}",
                &text[..11]
            );
        }
        // A cut tail cannot be told from one that was never written; a changed one can.
        if let Damage::Flipped(..) = damage {
            assert_ne!(
                outcome,
                Outcome::Beginning,
                "{what}: what was changed after it had been synced was cut off in silence"
            );
        }
    }
    for ((kind, outcome), count) in outcomes {
        println!("  {kind}: {outcome:?} {count}");
    }
}

/// Goal: no bit of any other file of the log can change unnoticed. Method: the same with tables, manifests and whatever
/// stands in the directory. What is noticed may be refused at the start or at the read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_anywhere_is_never_served() {
    let (_turn, mut dice) = turn("damage_anywhere_is_never_served");
    let corpse = Corpse::make(setup(), 500, &mut dice).await;
    let root = corpse.data().join("log");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.retain(|path| {
        path.extension().is_none_or(|extension| extension != "jnl") && fs::metadata(path).unwrap().len() > 0
    });
    println!("{} files beside the journals", files.len());
    let mut outcomes: BTreeMap<Outcome, u32> = BTreeMap::new();
    for _ in 0..size("CHAPPE_TEST_DAMAGES", 24).div_ceil(2) {
        let home = tempfile::Builder::new().prefix("chappe-").tempdir().unwrap();
        let data = corpse.copy(home.path());
        let file = dice.pick(&files).strip_prefix(&root).unwrap();
        let path = data.join("log").join(file);
        let damage = Damage::any(&mut dice, fs::metadata(&path).unwrap().len(), &[]);
        damage.inflict(&path, &mut dice);
        let what = format!("{}: {damage:?}", file.display());
        let (outcome, served) = examine(&corpse, &data, &what, false).await;
        println!("  {what}: {outcome:?}");
        assert_ne!(outcome, Outcome::Beginning, "{what}: some is gone, in silence: {served:?}");
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{outcomes:?}");
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}
