//! The embedded store: the contract, then what only it promises: crashes at any byte, damage anywhere, a full disk.

use std::{
    path::PathBuf,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use chappe_cluster::engine::journal;
use chappe_schema::stored::StoredIdBlock;

use crate::store::{
    Part, Show,
    contract::{self, Harness, ask, conversation, make_durable, message, rows, user},
};

/// Small, so that tests see flushes and merges.
fn small() -> Config {
    use chappe_cluster::process::config::ByteSize;
    Config {
        cache_size: ByteSize::mib(4),
        journal_size_max: ByteSize::mib(64),
        log_memtable_size: ByteSize::kib(256),
        table_memtable_size: ByteSize::kib(64),
        free_space_min: ByteSize::mib(1),
    }
}

/// A fatal hook that fails the test.
fn never() -> Fatal {
    Arc::new(|why| panic!("unexpected: {why}"))
}

fn open(directory: &Path) -> Embedded {
    patiently(directory, never).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens what this test has closed just now. A child that another test starts holds every lock of this process between its
/// fork and its exec, which is long on a busy machine.
fn patiently(directory: &Path, fatal: impl Fn() -> Fatal) -> Result<Embedded, OpenError> {
    for _ in 0..1000 {
        match Embedded::open(directory, &small(), fatal()) {
            Err(OpenError::InUse { .. }) => thread::sleep(Duration::from_millis(5)),
            opened => return opened,
        }
    }
    Embedded::open(directory, &small(), fatal())
}

/// A directory and its present owner.
struct Owner {
    directory: TempDir,
    store: Option<Arc<Embedded>>,
}

impl Owner {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Some(Arc::new(open(directory.path())));
        Self { directory, store }
    }
}

impl Harness for Owner {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap()) as _
    }

    fn succeed(&mut self) {
        // Dropped without a word.
        self.store = None;
        self.store = Some(Arc::new(open(self.directory.path())));
    }

    fn turn(&mut self) {
        thread::sleep(Duration::from_micros(100));
    }

    fn zombie(&self) -> Option<Arc<dyn Store>> {
        None
    }

    fn lose_next_reply(&mut self) -> bool {
        false
    }

    fn delay_next_append(&mut self) -> bool {
        false
    }

    fn deliver_late(&mut self) {}
}

#[test]
fn embedded_store_keeps_the_contract() {
    contract::run(&|| Box::new(Owner::new()));
}

// === whose directory ===

fn refusal(directory: &Path) -> String {
    match Embedded::open(directory, &small(), never()) {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn embedded_store_admits_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    assert!(refusal(directory.path()).ends_with("is in use by another process"));
    first.close();
    open(directory.path());
}

#[test]
fn embedded_store_keeps_its_generation_and_counts_its_starts() {
    let directory = tempfile::tempdir().unwrap();
    let sessions: Vec<Session> = (0..3).map(|_| open(directory.path()).session()).collect();
    assert_eq!(sessions.iter().map(|session| session.epoch).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(sessions.iter().all(|session| session.generation == sessions[0].generation));
    let other = tempfile::tempdir().unwrap();
    assert_ne!(open(other.path()).session().generation, sessions[0].generation);
}

#[test]
fn embedded_store_refuses_what_is_not_its_own() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("thesis.txt"), "…").unwrap();
    assert!(refusal(directory.path()).contains("holds thesis.txt, but no chappe data"));
    assert!(!directory.path().join("log").exists() && !directory.path().join("lock").exists(), "nothing was touched");

    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("log")).unwrap();
    std::fs::write(directory.path().join("log/syslog"), "…").unwrap();
    assert!(refusal(directory.path()).contains("a folder log of something else"));

    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("CHAPPE"), "Claude").unwrap();
    assert!(refusal(directory.path()).contains("CHAPPE with another content"));

    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(refusal(file.path()).starts_with("cannot create the data directory"));
}

#[test]
fn embedded_store_refuses_a_newer_format() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).close();
    std::fs::write(directory.path().join("CHAPPE"), "chappe data directory, format 2\n").unwrap();
    assert!(refusal(directory.path()).contains("has format 2, this program knows 1"));
}

#[test]
fn embedded_store_finishes_a_first_start_that_was_cut_short() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("log.new/keyspaces/1")).unwrap();
    let generation = open(directory.path()).session().generation;
    assert!(!directory.path().join("log.new").exists());
    // Between the log and its marker.
    std::fs::remove_file(directory.path().join("CHAPPE")).unwrap();
    assert_eq!(open(directory.path()).session().generation, generation);
    assert!(directory.path().join("CHAPPE").exists());
}

#[test]
fn embedded_store_does_not_begin_anew_where_something_is_missing() {
    let missing = |path: &str| {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path()).close();
        let path = directory.path().join(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
        refusal(directory.path())
    };
    assert!(missing("log").contains("its folder log is missing"));
    assert!(missing("log/version").contains("log/version is missing"));
    assert!(missing("log/0.jnl").contains("its journal is missing"));
    assert!(missing("log/keyspaces/1/current").contains("has no manifest"));
    assert!(missing("log/keyspaces/1").contains("its table log is missing"));
    assert!(missing("log/keyspaces/3/v0").contains("lacks the manifest"));
}

/// A directory from before a table came up gets it, and then it must stay there.
#[test]
fn embedded_store_adds_the_tables_that_came_up_later() {
    use super::engine::{FIRST_TABLES, TABLES};
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).close();
    let folders = || -> Vec<std::path::PathBuf> {
        let mut folders: Vec<_> = std::fs::read_dir(directory.path().join("log/keyspaces"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().parse::<u64>().is_ok_and(|number| number > 0))
            .collect();
        folders.sort_by_key(|path| path.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap());
        folders
    };
    assert_eq!(folders().len(), TABLES.len());
    let last = folders().pop().unwrap();
    std::fs::remove_dir_all(&last).unwrap();
    let said = refusal(directory.path());
    assert!(said.contains(&format!("its table {} is missing", TABLES[TABLES.len() - 1])), "{said}");
    // As a program that did not know of it has left the directory: neither the table nor a note of it.
    let (db, note) = super::engine::bare(&directory.path().join("log"), &small()).unwrap();
    note.remove("tables").unwrap();
    db.persist(fjall::PersistMode::SyncAll).unwrap();
    drop((db, note));
    open(directory.path()).close();
    assert!(folders().len() >= TABLES.len() && TABLES.len() > FIRST_TABLES);
    let added = folders().pop().unwrap();
    std::fs::remove_dir_all(added).unwrap();
    assert!(refusal(directory.path()).contains("is missing"), "what was added once does not vanish unseen");
}

/// Opens the engine beside the store.
fn engine(directory: &Path) -> Tables {
    Tables::open(&directory.join("log"), &small(), super::directory::given).unwrap()
}

#[test]
fn embedded_store_refuses_damaged_notes() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).close();
    for (name, expected) in
        [("generation", "its note of the generation: checksum"), ("starts", "its note of the starts: checksum")]
    {
        let tables = engine(directory.path());
        let value = tables.note.get(name).unwrap().unwrap();
        let mut damaged = value.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        tables.note.insert(name, damaged).unwrap();
        drop(tables);
        assert!(refusal(directory.path()).contains(expected), "{}", refusal(directory.path()));
        engine(directory.path()).note.insert(name, value).unwrap();
    }
    open(directory.path());
}

// === what is damaged is not served ===

#[test]
fn embedded_store_serves_no_damaged_row() {
    let mut owner = Owner::new();
    let (bad, good): (EntityId, EntityId) = (conversation(1).into(), conversation(2).into());
    let session = owner.store().session();
    for entity in [&bad, &good] {
        make_durable(
            &mut owner,
            &[rows(session, entity, 0, vec![message(1, "a")]), rows(session, entity, 1, vec![message(2, "b")])],
        );
    }
    owner.store = None;
    let tables = engine(owner.directory.path());
    let key = key::with_seq(&bad.to_key(), 2);
    let mut value = tables.log.get(&key).unwrap().unwrap().to_vec();
    value[30] ^= 4;
    tables.log.insert(&key, value).unwrap();
    drop(tables);
    owner.store = Some(Arc::new(open(owner.directory.path())));
    let request = |entity: &EntityId, upto| PageRequest {
        entity: entity.clone(),
        from: 1,
        upto,
        newest_first: false,
        show: Show::Log,
        limit: 10,
        bytes_max: 1000,
        reader: None,
    };
    let refused = ask(&mut owner, |store, done| store.recover(bad.clone(), 0, done)).unwrap_err();
    assert!(contract::is_corrupt(&refused), "{refused}");
    let refused = ask(&mut owner, |store, done| store.page(request(&bad, 2), done)).unwrap_err();
    assert!(contract::is_corrupt(&refused), "{refused}");
    // What stands before it, and others, are served.
    assert_eq!(ask(&mut owner, |store, done| store.page(request(&bad, 1), done)).unwrap().events.len(), 1);
    assert_eq!(ask(&mut owner, |store, done| store.page(request(&good, 2), done)).unwrap().events.len(), 2);
}

/// Copies a directory as it is on disk now, without the space that journals only reserve.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::write(target, journal::read_written(&entry.path()).unwrap()).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Reads a conversation to its end: whatever comes back is right, and a failure says so.
fn read_all(store: &Arc<Embedded>, entity: &EntityId, head: Seq, text: &str) -> Result<Seq, Error> {
    let (tx, rx) = mpsc::channel();
    let request = PageRequest {
        entity: entity.clone(),
        from: 1,
        upto: head,
        newest_first: false,
        show: Show::Log,
        limit: 10_000,
        bytes_max: usize::MAX,
        reader: None,
    };
    store.page(request, Box::new(move |page| tx.send(page).unwrap()));
    let page = rx.recv_timeout(Duration::from_secs(10)).unwrap()?;
    for (index, event) in page.events.iter().enumerate() {
        assert_eq!(*event, message(index as Seq + 1, text), "a wrong event was served");
    }
    Ok(page.events.len() as Seq)
}

#[test]
fn embedded_store_notices_damaged_files() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let session = store.session();
    let (tx, rx) = mpsc::channel();
    // Enough for some files of the tree.
    for from in (1..=600).step_by(6) {
        let group = (1..=8).map(|number| {
            let events = (from..from + 6).map(|seq| message(seq, &"words ".repeat(40))).collect();
            rows(session, &conversation(number).into(), from - 1, events)
        });
        let tx = tx.clone();
        store.append(group.collect(), Box::new(move |outcomes| tx.send(outcomes).unwrap()));
    }
    for _ in 0..100 {
        assert!(rx.recv().unwrap().iter().all(|outcome| *outcome == Written::Durable));
    }
    store.close();
    let tables = || files(&directory.path().join("log/keyspaces"));
    let log = engine(directory.path());
    log.log.rotate_memtable_and_wait().unwrap();
    drop(log);

    let mut seen = (0, 0, 0);
    let mut random = 1u64;
    for path in tables().into_iter().filter(|path| std::fs::metadata(path).unwrap().len() > 0) {
        let copied = tempfile::tempdir().unwrap();
        let inside = path.strip_prefix(directory.path()).unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        for _ in 0..(size / 2000).clamp(2, 12) {
            copy(directory.path(), copied.path());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = (random >> 24) % size;
            bytes[at as usize] ^= 1 << (random >> 20 & 7);
            std::fs::write(copied.path().join(inside), bytes).unwrap();
            // The engine stops when it merges what is damaged; that is not what is asked here.
            match patiently(copied.path(), || Arc::new(|_| ())) {
                Err(error) => {
                    assert!(error.to_string().contains("damaged"), "{}: {error}", inside.display());
                    seen.0 += 1;
                }
                Ok(store) => {
                    let store = Arc::new(store);
                    for number in 1..=8 {
                        match read_all(&store, &conversation(number).into(), 600, &"words ".repeat(40)) {
                            Ok(count) => {
                                assert_eq!(
                                    count,
                                    600,
                                    "{} at {at}: events are missing and nobody says so",
                                    inside.display()
                                );
                                seen.1 += 1;
                            }
                            Err(error) => {
                                assert!(contract::is_corrupt(&error), "{error}");
                                seen.2 += 1;
                            }
                        }
                    }
                }
            }
            std::fs::remove_dir_all(copied.path()).unwrap();
        }
    }
    println!("refused {}, served whole {}, refused to serve {}", seen.0, seen.1, seen.2);
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0, "{seen:?}");
}

// === crashes ===

/// A store with a few groups in its journal, closed without trace of a shutdown: where the journal ended after each
/// group was answered, and the directory.
fn journaled(groups: u64) -> (TempDir, PathBuf, Vec<usize>) {
    let directory = tempfile::tempdir().unwrap();
    let mut owner = Owner { store: Some(Arc::new(open(directory.path()))), directory };
    let path = owner.directory.path().join("log/0.jnl");
    let session = owner.store().session();
    let end = || journal::examine(&journal::read_written(&path).unwrap()).last.end;
    let mut ends = vec![end()];
    for seq in 1..=groups {
        let group = [rows(session, &conversation(1).into(), seq - 1, vec![message(seq, "hello")])];
        make_durable(&mut owner, &group);
        ends.push(end());
    }
    assert!(ends.windows(2).all(|pair| pair[0] < pair[1]));
    owner.store = None;
    (owner.directory, path, ends)
}

/// How many of the conversation's events are there; each is whole and right.
fn events_in(directory: &Path) -> Result<Seq, OpenError> {
    let store = Arc::new(patiently(directory, never)?);
    let count = read_all(&store, &conversation(1).into(), 1000, "hello").unwrap();
    store.close();
    Ok(count)
}

#[test]
fn embedded_store_survives_a_journal_cut_at_any_byte() {
    let (directory, path, ends) = journaled(4);
    let whole = journal::read_written(&path).unwrap();
    for cut in ends[3]..=ends[4] {
        let answered = ends.iter().rposition(|end| *end <= cut).unwrap() as Seq;
        // As a crash leaves it: a shorter file, or a file as long as it was reserved.
        std::fs::write(&path, &whole[..cut]).unwrap();
        if cut % 2 == 0 {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        }
        assert_eq!(events_in(directory.path()).unwrap(), answered, "cut at {cut} of {ends:?}");
        // And again, now that it is repaired.
        if cut % 16 == 0 {
            assert_eq!(events_in(directory.path()).unwrap(), answered);
        }
    }
}

#[test]
fn embedded_store_repairs_a_last_write_that_lacks_sectors() {
    let directory = tempfile::tempdir().unwrap();
    let mut owner = Owner { store: Some(Arc::new(open(directory.path()))), directory };
    let session = owner.store().session();
    make_durable(&mut owner, &[rows(session, &conversation(1).into(), 0, vec![message(1, "hello")])]);
    let path = owner.directory.path().join("log/0.jnl");
    let before = journal::examine(&journal::read_written(&path).unwrap()).last.end;
    let large = [rows(session, &conversation(2).into(), 0, vec![message(1, &"x".repeat(5_000))])];
    make_durable(&mut owner, &large);
    owner.store = None;
    let whole = journal::read_written(&path).unwrap();
    let end = journal::examine(&whole).last.end;
    // Any run of sectors of the last write may have stayed away.
    let first = before / 512 * 512;
    for lost in (first..end).step_by(512) {
        for upto in [lost + 512, end] {
            let mut bytes = whole.clone();
            bytes[lost.max(before)..upto.min(end)].fill(0);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(events_in(owner.directory.path()).unwrap(), 1, "without {lost}..{upto}");
        }
    }
}

#[test]
fn embedded_store_refuses_a_journal_that_was_changed() {
    let (directory, path, ends) = journaled(3);
    let whole = journal::read_written(&path).unwrap();
    let end = ends[3];
    // The engine has no checksum over a batch's seqno. Where a change goes unnoticed it must do no harm.
    let is_seqno = |at: usize| ends[..3].iter().chain([&0]).any(|start| (start + 5..start + 13).contains(&at));
    for bit in 0..end * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if journal::examine(&bytes).tail != journal::Tail::Damaged {
            assert!(is_seqno(bit / 8), "byte {} of {ends:?}", bit / 8);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(events_in(directory.path()).unwrap(), 3, "bit {bit}");
        }
    }
    let mut bytes = whole.clone();
    bytes[ends[1] + 40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refusal = refusal(directory.path());
    assert!(refusal.contains("0.jnl was changed at byte") && refusal.contains("restore it from a backup"), "{refusal}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "a refusal changes nothing");
    // Stray bytes in space that was never written hurt nobody.
    std::fs::write(&path, &whole).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"stray", 100_000).unwrap();
    assert_eq!(events_in(directory.path()).unwrap(), 3);
}

/// Where the writer of [`embedded_store_survives_kill`] finds its directory.
const WRITER: &str = "CHAPPE_TEST_EMBEDDED_WRITER";

/// Not a test of its own: the process that is killed. Prints the number of each group that is durable.
#[test]
fn embedded_store_writer() {
    let Some(directory) = std::env::var_os(WRITER) else { return };
    let store = open(Path::new(&directory));
    let session = store.session();
    let heads = (0..16).map(|number| {
        let (tx, rx) = mpsc::channel();
        store.recover(conversation(number).into(), 0, Box::new(move |found| tx.send(found.unwrap()).unwrap()));
        rx.recv().unwrap().rows.last().map_or(0, |row| row.events.last().unwrap().seq)
    });
    let mut heads: Vec<Seq> = heads.collect();
    let (tx, rx) = mpsc::channel();
    for round in 0.. {
        let group = (0..16).map(|number| {
            let head = &mut heads[number];
            let first = *head + 1;
            *head += round % 3 + 1;
            rows(
                session,
                &conversation(number as u128).into(),
                first - 1,
                (first..=*head).map(|seq| message(seq, "hello")).collect(),
            )
        });
        let tx = tx.clone();
        let ends: Vec<Append> = group.collect();
        let said: Vec<String> = ends.iter().map(|append| append.events.last().unwrap().seq.to_string()).collect();
        store.append(
            ends,
            Box::new(move |outcomes| {
                assert!(outcomes.iter().all(|outcome| *outcome == Written::Durable));
                println!("durable {}", said.join(" "));
                tx.send(()).unwrap();
            }),
        );
        if round >= 4 {
            rx.recv().unwrap();
        }
    }
}

#[test]
fn embedded_store_survives_kill() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let mut durable = vec![0; 16];
    for (index, patience) in [3, 40, 170, 90, 300, 10].into_iter().enumerate() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                &format!("{}::embedded_store_writer", module_path!().split_once("::").unwrap().1),
            ])
            .env(WRITER, directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut answers = output.lines().map_while(Result::ok).filter_map(|line| {
            let heads: Vec<Seq> = line.strip_prefix("durable ")?.split(' ').map(|head| head.parse().unwrap()).collect();
            (heads.len() == 16).then_some(heads)
        });
        durable = answers.by_ref().nth(patience).expect("the writer writes");
        child.kill().unwrap();
        // What it managed to say before it died counts too.
        durable = answers.last().unwrap_or(durable);
        child.wait().unwrap();
        let store = Arc::new(open(directory.path()));
        assert_eq!(store.session().epoch, index as u64 * 2 + 2);
        for (number, head) in durable.iter().enumerate() {
            let found = read_all(&store, &conversation(number as u128).into(), 1_000_000, "hello").unwrap();
            assert!(found >= (*head).min(2048), "conversation {number}: {found} of {head} are there");
        }
        store.close();
    }
    assert!(durable[0] > 0);
}

// === when nothing can be written ===

#[test]
fn embedded_store_refuses_writes_while_the_disk_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 30));
    let seen = Arc::clone(&free);
    let config = Config { free_space_min: chappe_cluster::process::config::ByteSize::mib(10), ..small() };
    let store = Embedded::open_with(
        directory.path(),
        &config,
        never(),
        Arc::new(move |_: &Path| Ok(seen.load(Ordering::Relaxed))),
    )
    .unwrap();
    let session = store.session();
    let entity: EntityId = conversation(1).into();
    let append = |seq| {
        let (tx, rx) = mpsc::channel();
        store.append(
            vec![rows(session, &entity, 0, vec![message(seq, "a")])],
            Box::new(move |outcomes| tx.send(outcomes).unwrap()),
        );
        rx.recv().unwrap().remove(0)
    };
    assert_eq!(append(1), Written::Durable);
    free.store(9 << 20, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(110));
    let Written::NotWritten(why) = append(2) else { panic!("it is written") };
    assert_eq!(why, "the disk is full: 9437184 bytes are free, 10485760 must stay so");
    let (tx, rx) = mpsc::channel();
    let told = Projection::Announced { entity: entity.clone(), upto: 1 };
    store.project(vec![told], Box::new(move |result| tx.send(result).unwrap()));
    assert!(matches!(rx.recv().unwrap(), Err(Error::Unavailable(why)) if why.contains("the disk is full")));
    // Reads go on, and writes do when there is space again; nothing of what was refused is there.
    let (tx, rx) = mpsc::channel();
    store.recover(entity.clone(), 0, Box::new(move |found| tx.send(found).unwrap()));
    assert_eq!(rx.recv().unwrap().unwrap().rows.len(), 1);
    free.store(11 << 20, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(110));
    assert_eq!(append(2), Written::Durable);
    let (tx, rx) = mpsc::channel();
    store.recover(entity, 0, Box::new(move |found| tx.send(found).unwrap()));
    assert_eq!(rx.recv().unwrap().unwrap().rows.len(), 2);
}

#[test]
fn embedded_store_ends_the_process_when_its_engine_fails() {
    let directory = tempfile::tempdir().unwrap();
    let (tx, fatal) = mpsc::channel();
    let store = Embedded::open(directory.path(), &small(), Arc::new(move |why| tx.send(why).unwrap())).unwrap();
    let session = store.session();
    // A flush that has nowhere to write to: nobody who waits for an answer sees it, but the watch does.
    for table in std::fs::read_dir(directory.path().join("log/keyspaces")).unwrap() {
        std::fs::remove_dir_all(table.unwrap().path().join("tables")).unwrap();
    }
    let (tx, rx) = mpsc::channel();
    for seq in 1..=20 {
        let tx = tx.clone();
        let group = vec![rows(session, &conversation(seq).into(), 0, vec![message(1, &"x".repeat(60_000))])];
        store.append(group, Box::new(move |outcomes| drop(tx.send(outcomes))));
    }
    let why = fatal.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(why.starts_with("the log"), "{why}");
    // From now on nobody is answered, and nobody is told twice.
    while rx.try_recv().is_ok() {}
    let late = tx.clone();
    store.append(
        vec![rows(session, &conversation(1).into(), 1, vec![message(2, "a")])],
        Box::new(move |outcomes| drop(late.send(outcomes))),
    );
    store.recover(conversation(1).into(), 0, Box::new(move |_| drop(tx.send(vec![]))));
    assert!(rx.recv_timeout(Duration::from_millis(300)).is_err());
    assert!(fatal.try_recv().is_err());
    assert_eq!(store.confirm(Box::new(|_| ())), Some(Confirmation::Unknown));
    store.close();
}

#[test]
fn embedded_store_answers_everything_before_it_closes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let session = store.session();
    let (tx, rx) = mpsc::channel();
    for seq in 1..=100 {
        let tx = tx.clone();
        let group = vec![rows(session, &conversation(1).into(), seq - 1, vec![message(seq, "hello")])];
        store.append(group, Box::new(move |outcomes| tx.send((seq, outcomes)).unwrap()));
    }
    let projected = tx.clone();
    let told = Projection::Announced { entity: conversation(1).into(), upto: 1 };
    store.project(
        vec![told.clone()],
        Box::new(move |result| {
            projected.send((0, vec![result.map_or(Written::Unknown, |()| Written::Durable)])).unwrap()
        }),
    );
    store.close();
    store.close();
    let mut answers: Vec<_> = rx.try_iter().collect();
    answers.sort_by_key(|(seq, _)| *seq);
    assert_eq!(answers.len(), 101);
    assert!(answers.iter().all(|(_, outcomes)| outcomes == &[Written::Durable]));
    // Later requests are answered at once.
    let group = vec![rows(session, &conversation(1).into(), 100, vec![message(101, "hello")])];
    let late = tx.clone();
    store.append(group, Box::new(move |outcomes| late.send((101, outcomes)).unwrap()));
    assert_eq!(
        rx.try_recv().unwrap(),
        (101, vec![Written::NotWritten("the log cannot be written: it is closed".to_owned())])
    );
    store.recover(conversation(1).into(), 0, Box::new(|found| assert!(matches!(found, Err(Error::Unavailable(_))))));
    store.project(vec![told], Box::new(|result| assert!(matches!(result, Err(Error::Unavailable(_))))));
    assert_eq!(events_in(directory.path()).unwrap(), 100);
}

#[test]
fn embedded_store_merges_what_many_threads_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()));
    let session = store.session();
    let writers = (0..4).map(|writer| {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            for seq in 1..=50 {
                let group = (0..5).map(|number| {
                    rows(session, &conversation(writer * 5 + number).into(), seq - 1, vec![message(seq, "hello")])
                });
                let (tx, rx) = mpsc::channel();
                store.append(group.collect(), Box::new(move |outcomes| tx.send(outcomes).unwrap()));
                assert_eq!(rx.recv().unwrap(), vec![Written::Durable; 5]);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.join().unwrap();
    }
    for number in 0..20 {
        assert_eq!(read_all(&store, &conversation(number).into(), 50, "hello").unwrap(), 50);
    }
}

/// A block of ids `from..=upto`, all sent by ada; id `n` at `n` milliseconds.
fn id_block(from: Seq, upto: Seq) -> Arc<StoredIdBlock> {
    let id = |seq: Seq| StoredId {
        sender: "ada".to_owned(),
        id: uuid::Uuid::from_u128(u128::from(seq)).as_bytes().to_vec(),
        seq,
        hash: seq,
        n: seq,
        created_at: seq,
    };
    Arc::new(StoredIdBlock { ids: (from..=upto).map(id).collect() })
}

/// Written before there were prints, or damaged since: the blocks themselves are read.
#[test]
fn embedded_store_finds_ids_whose_prints_are_missing() {
    let mut owner = Owner::new();
    let entity: EntityId = conversation(1).into();
    let blocks =
        (1..=5).map(|n| Projection::IdBlock { entity: entity.clone(), end: n * 4, block: id_block(n * 4 - 3, n * 4) });
    let blocks: Vec<_> = blocks.collect();
    assert_eq!(ask(&mut owner, |store, done| store.project(blocks, done)), Ok(()));
    owner.store = None;
    let tables = engine(owner.directory.path());
    let prints = |end| key::prints(&entity.to_key(), end);
    tables.ids.remove(prints(20)).unwrap();
    tables.ids.remove(prints(8)).unwrap();
    let mut damaged = tables.ids.get(prints(12)).unwrap().unwrap().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    tables.ids.insert(prints(12), damaged).unwrap();
    drop(tables);
    owner.store = Some(Arc::new(open(owner.directory.path())));
    for id in 0..=21 {
        let (sender, command) = (user("ada"), CommandId(uuid::Uuid::from_u128(id)));
        let found =
            ask(&mut owner, |store, done| store.find_id(entity.clone(), sender, command, (0, 0), done)).unwrap();
        assert_eq!(found.map(|found| u128::from(found.seq)), (1..=20).contains(&id).then_some(id));
    }
}

/// How long it takes to learn that an old id is new, in a log of a million events: with prints, and by reading blocks as
/// it is where there are none. `cargo test --release -p chappe-node --lib -- --ignored --nocapture old_id`
#[test]
#[ignore = "a measurement"]
fn an_old_id_in_a_long_log() {
    let mut owner = Owner::new();
    let entity: EntityId = conversation(1).into();
    let blocks = 1_000_000 / 256;
    for chunk in (1..=blocks).collect::<Vec<Seq>>().chunks(64) {
        let block = |n: &Seq| Projection::IdBlock {
            entity: entity.clone(),
            end: n * 256,
            block: id_block(n * 256 - 255, n * 256),
        };
        let writes: Vec<_> = chunk.iter().map(block).collect();
        assert_eq!(ask(&mut owner, |store, done| store.project(writes, done)), Ok(()));
    }
    let measure = |owner: &mut Owner, what: &str| {
        for round in 0..3 {
            let id = CommandId(uuid::Uuid::from_u128(1 << 100 | round));
            let began = std::time::Instant::now();
            let found = ask(owner, |store, done| store.find_id(entity.clone(), user("ada"), id, (0, 0), done));
            println!("{what}, round {round}: {:?}", began.elapsed());
            assert_eq!(found, Ok(None));
        }
    };
    measure(&mut owner, "with prints");
    owner.store = None;
    owner.store = Some(Arc::new(open(owner.directory.path())));
    measure(&mut owner, "with prints, reopened");
    owner.store = None;
    let tables = engine(owner.directory.path());
    for n in 1..=blocks {
        tables.ids.remove(key::prints(&entity.to_key(), n * 256)).unwrap();
    }
    drop(tables);
    owner.store = Some(Arc::new(open(owner.directory.path())));
    measure(&mut owner, "by the blocks");
}

/// Thread: synapse#3364, where purging made disks fuller.
#[test]
fn what_is_removed_makes_room_on_the_disk() {
    let mut owner = Owner::new();
    let entity: EntityId = conversation(1).into();
    let session = owner.store().session();
    let path = owner.directory.path().to_owned();
    // What does not compress.
    let mut random = 1u64;
    let mut text = || -> String {
        let mut letter = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + (random >> 59) as u8 % 26)
        };
        (0..4000).map(|_| letter()).collect()
    };
    for first in (1..=8192).step_by(64) {
        let events = (first..first + 64).map(|seq| message(seq, &text())).collect();
        make_durable(&mut owner, &[rows(session, &entity, first - 1, events)]);
    }
    // Journals are thrown away by themselves.
    let path = path.join("log").join("keyspaces");
    let full = bytes_in(&path);
    assert!(full > 20 << 20, "{full} bytes");
    let purge = Purge { entity: entity.clone(), part: Part::History, above: 0, upto: 8192, at: 8200 };
    while !ask(&mut owner, |store, done| store.purge(purge.clone(), done)).unwrap() {}
    // Merges go on as others write, a tenth of it.
    let other: EntityId = conversation(2).into();
    for first in (1..=819).step_by(32) {
        let events = (first..first + 32).map(|seq| message(seq, &text())).collect();
        make_durable(&mut owner, &[rows(session, &other, first - 1, events)]);
    }
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let left = bytes_in(&path);
        if left < full / 2 {
            println!("{full} bytes, then {left}");
            return;
        }
        assert!(Instant::now() < patience, "{full} bytes, and still {left}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What the files of a directory take.
fn bytes_in(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_in(&entry.path()),
        // A merge may remove it meanwhile.
        data => data.map_or(0, |data| data.len()),
    };
    entries.map(of).sum()
}
