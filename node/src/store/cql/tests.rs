//! The contract on a real server, and what is particular to this store.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use chappe_cluster::{
    consensus::bootstrap::{Claim, Group, find::ClusterMeta},
    ownership::ClusterId,
};
use chappe_schema::{
    body::Body,
    cql::{TABLES, version},
    event::{Event, Fact},
    id::{CommandId, ConversationId, EntityId, Generation, Millis, NodeUid, Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredId, StoredOverlay, StoredReaction},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Builder, Runtime},
};

use super::{Config, Cql, OpenError, real};
use crate::store::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Shared, Show, Store, Walked, Written,
    contract::{self, Harness, ask, conversation, make_durable, message, rows, user},
    generation_of,
};

/// A keyspace and everything that a test does with it.
struct Keyspace {
    config: Config,
    runtime: Runtime,
    cql: Cql,
}

impl Keyspace {
    fn new(name: &str) -> Option<Arc<Self>> {
        let config = real::one_server(name)?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cql = runtime.block_on(Cql::open(&config)).unwrap();
        Some(Arc::new(Self { config, runtime, cql }))
    }

    /// As it was when it was new.
    fn empty(&self) {
        for table in TABLES.iter().filter(|table| table.name != "schema_version") {
            let truncate = format!("TRUNCATE {}.{}", self.config.keyspace, table.name);
            self.runtime.block_on(self.cql.shelf.driver.change(&truncate)).unwrap();
        }
    }

    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Cql, Done<T>)) -> T {
        let (tx, rx) = mpsc::channel();
        question(&self.cql, Box::new(move |answer| tx.send(answer).unwrap()));
        rx.recv_timeout(Duration::from_secs(30)).unwrap()
    }
}

impl Drop for Keyspace {
    fn drop(&mut self) {
        // Every table takes a megabyte of a server's memory, and makes the next one slower.
        if !std::thread::panicking() {
            real::drop_keyspace(&self.runtime, &self.config);
        }
    }
}

/// What a network does to appends: the next one is late, or its reply is lost.
#[derive(Default)]
struct Trouble {
    mute: bool,
    slow: bool,
    late: Vec<(Arc<dyn Store>, Vec<Append>)>,
}

/// A session's way to the real store, with trouble on it.
struct Troubled {
    store: Arc<dyn Store>,
    trouble: Arc<Mutex<Trouble>>,
}

impl Store for Troubled {
    fn append(&self, group: Vec<Append>, done: Done<Vec<Written>>) {
        let mut trouble = self.trouble.lock();
        let unknown = vec![Written::Unknown; group.len()];
        if std::mem::take(&mut trouble.slow) {
            trouble.late.push((Arc::clone(&self.store), group));
            return done(unknown);
        }
        let mute = std::mem::take(&mut trouble.mute);
        drop(trouble);
        self.store.append(
            group,
            Box::new(move |outcomes| {
                assert!(!mute || outcomes.iter().all(|outcome| *outcome == Written::Durable));
                done(if mute { unknown } else { outcomes });
            }),
        );
    }

    fn session(&self) -> Session {
        self.store.session()
    }

    fn is_fenced(&self) -> bool {
        self.store.is_fenced()
    }

    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation> {
        self.store.confirm(done)
    }

    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        self.store.recover(entity, ids_since, done);
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>) {
        self.store.page(request, done);
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {
        self.store.overlays(entity, targets, done);
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
        self.store.reactions(entity, target, user, keys, done);
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>) {
        self.store.reacted(request, done);
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    ) {
        self.store.members(conversation, after, limit, done);
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        since: (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    ) {
        self.store.find_id(entity, sender, id, since, done);
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>) {
        self.store.purge(purge, done);
    }

    fn list_active(&self, entities: Vec<EntityId>, done: Done<Result<(), Error>>) {
        self.store.list_active(entities, done);
    }

    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>) {
        self.store.walk(from, limit, all, done);
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        self.store.project(writes, done);
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>) {
        self.store.announced(done);
    }
}

/// Sessions on one keyspace, one after the other.
struct Sessions {
    keyspace: Arc<Keyspace>,
    owners: Vec<Arc<dyn Store>>,
    trouble: Arc<Mutex<Trouble>>,
}

impl Sessions {
    fn new(keyspace: &Arc<Keyspace>) -> Self {
        let mut sessions = Self { keyspace: Arc::clone(keyspace), owners: Vec::new(), trouble: Arc::default() };
        sessions.begin();
        sessions
    }

    fn begin(&mut self) {
        let id = self.owners.len() as u64 + 1;
        let session = Session { id, epoch: id, generation: Generation(0) };
        let store = self.keyspace.cql.enter(session, Arc::default());
        self.owners.push(Arc::new(Troubled { store, trouble: Arc::clone(&self.trouble) }));
    }
}

impl Harness for Sessions {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.owners.last().unwrap())
    }

    fn succeed(&mut self) {
        let before = self.owners.iter().map(|owner| owner.session().id).collect();
        assert!(self.keyspace.ask(|cql, done| cql.fence(before, done)));
        self.begin();
    }

    fn turn(&mut self) {
        std::thread::sleep(Duration::from_micros(200));
    }

    fn zombie(&self) -> Option<Arc<dyn Store>> {
        let index = self.owners.len().checked_sub(2)?;
        Some(Arc::clone(&self.owners[index]))
    }

    fn lose_next_reply(&mut self) -> bool {
        self.trouble.lock().mute = true;
        true
    }

    fn delay_next_append(&mut self) -> bool {
        self.trouble.lock().slow = true;
        true
    }

    fn deliver_late(&mut self) {
        for (store, group) in std::mem::take(&mut self.trouble.lock().late) {
            let (tx, rx) = mpsc::channel();
            store.append(group, Box::new(move |outcomes| tx.send(outcomes).unwrap()));
            assert!(rx.recv().unwrap().iter().all(|outcome| *outcome == Written::Durable));
        }
    }
}

#[test]
fn store_cql_keeps_the_contract() {
    let Some(keyspace) = Keyspace::new("contract") else { return };
    contract::run(&|| {
        keyspace.empty();
        Box::new(Sessions::new(&keyspace))
    });
}

impl contract::cluster::Harness for Arc<Keyspace> {
    fn shared(&self) -> Arc<dyn Shared> {
        Arc::new(self.cql.clone())
    }

    fn meta(&self) -> Arc<dyn ClusterMeta> {
        Arc::new(self.cql.clone())
    }

    fn turn(&mut self) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn store_cql_keeps_the_contract_of_shared_stores() {
    let Some(keyspace) = Keyspace::new("founding") else { return };
    contract::cluster::run(&|| {
        keyspace.empty();
        Box::new(Arc::clone(&keyspace))
    });
}

#[test]
fn any_number_of_nodes_make_the_tables_at_once() {
    let Some(config) = real::one_server("migrate") else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let unready = Config { apply_schema: false, ..config.clone() };
    let refused = runtime.block_on(Cql::open(&unready)).err();
    assert!(matches!(refused, Some(OpenError::Older { found: 0, .. })), "{refused:?}");
    let opened: Vec<_> = (0..4)
        .map(|_| {
            let config = config.clone();
            runtime.spawn(async move { Cql::open(&config).await.map(drop) })
        })
        .collect();
    for one in opened {
        runtime.block_on(one).unwrap().unwrap();
    }
    // Each once, under the id that everybody computes; and once more changes nothing.
    for _ in 0..2 {
        let (state, _) = runtime.block_on(Cql::schema(&config, true)).unwrap();
        assert_eq!((state.version, state.wanted), (version(), version()));
        assert_eq!(state.replication.as_deref(), Some("datacenter1 1"));
    }
    let cql = runtime.block_on(Cql::open(&unready)).unwrap();
    let driver = &cql.shelf.driver;
    let tables = format!("SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{}'", config.keyspace);
    let found: Vec<(String,)> = runtime.block_on(driver.query(&tables)).unwrap();
    assert_eq!(found.len(), TABLES.len());

    // A newer program was here.
    let newer = format!(
        "INSERT INTO {}.schema_version (part, version, name) VALUES ('chappe', 99, 'from the future')",
        config.keyspace
    );
    runtime.block_on(driver.change(&newer)).unwrap();
    for config in [&config, &unready] {
        let refused = runtime.block_on(Cql::open(config)).err();
        assert!(matches!(refused, Some(OpenError::Newer { found: 99, .. })), "{refused:?}");
    }
    real::drop_keyspace(&runtime, &config);
}

#[test]
fn where_nobody_answers_the_operator_is_told_so() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    // Nobody listens on port 1.
    let config = Config { contact_points: vec!["127.0.0.1:1".to_owned()], ..Config::default() };
    let error = runtime.block_on(Cql::open(&config)).err().unwrap().to_string();
    assert!(error.starts_with("no CQL server answers at 127.0.0.1:1: "), "{error}");
}

fn log_of(events: std::ops::RangeInclusive<Seq>) -> Vec<Arc<Event>> {
    events.map(|seq| message(seq, "hello")).collect()
}

#[test]
fn a_log_is_read_across_its_buckets() {
    const EDGE: Seq = 8192;
    let Some(keyspace) = Keyspace::new("buckets") else { return };
    let mut sessions = Sessions::new(&keyspace);
    let entity: EntityId = conversation(1).into();
    let session = sessions.store().session();
    let snapshot = Projection::Snapshot { entity: entity.clone(), seq: EDGE - 100, bytes: "s".into() };
    assert_eq!(ask(&mut sessions, |store, done| store.project(vec![snapshot], done)), Ok(()));
    // One append across the edge.
    make_durable(&mut sessions, &[rows(session, &entity, EDGE - 100, log_of(EDGE - 99..=EDGE - 10))]);
    make_durable(&mut sessions, &[rows(session, &entity, EDGE - 10, log_of(EDGE - 9..=EDGE + 20))]);
    let found = ask(&mut sessions, |store, done| store.recover(entity.clone(), 0, done)).unwrap();
    let seqs: Vec<Seq> = found.rows.iter().map(|row| row.events[0].seq).collect();
    assert_eq!(seqs, (EDGE - 99..=EDGE + 20).collect::<Vec<_>>());
    for newest_first in [false, true] {
        let request = PageRequest {
            entity: entity.clone(),
            from: EDGE - 5,
            upto: EDGE + 5,
            newest_first,
            show: Show::Messages,
            limit: 8,
            bytes_max: usize::MAX,
            reader: None,
        };
        let page = ask(&mut sessions, |store, done| store.page(request, done)).unwrap();
        let expected = if newest_first { log_of(EDGE - 2..=EDGE + 5) } else { log_of(EDGE - 5..=EDGE + 2) };
        assert_eq!((page.events, page.complete), (expected, false));
    }
}

#[test]
fn a_cluster_begins_by_claims_and_sessions_are_registered() {
    let Some(keyspace) = Keyspace::new("claims") else { return };
    let block = |answer| keyspace.runtime.block_on(answer);
    assert_eq!(block(keyspace.cql.claims()).unwrap(), []);
    let claim =
        |cluster, generation, by| Claim { group: Group { cluster: ClusterId(cluster), generation }, by: NodeUid(by) };
    let all = [claim(u128::MAX - 7, 1, u64::MAX), claim(9, 2, 5)];
    for one in all {
        keyspace.runtime.block_on(keyspace.cql.claim(one)).unwrap();
    }
    assert_eq!(block(keyspace.cql.claims()).unwrap(), all);
    let enrol = |session| keyspace.ask(|cql, done| cql.enrol(session, done));
    assert_eq!(enrol(1 << 48 | 1), Ok(generation_of(all[1].group)));
    assert_ne!(generation_of(all[0].group), generation_of(all[1].group));
    assert_eq!(enrol(1 << 48 | 2), Ok(generation_of(all[1].group)));

    // A founding fences them all.
    let enter = |id| {
        let session = Session { id, epoch: id, generation: Generation(0) };
        keyspace.cql.enter(session, Arc::default())
    };
    let confirm = |id| {
        keyspace.ask(|_, done| {
            assert_eq!(enter(id).confirm(done), None);
        })
    };
    assert_eq!(confirm(1 << 48 | 1), Confirmation::Clean);
    keyspace.runtime.block_on(keyspace.cql.fence_all()).unwrap();
    assert_eq!(
        [1, 2, 3].map(|n| confirm(1 << 48 | n)),
        [Confirmation::Fenced, Confirmation::Fenced, Confirmation::Clean]
    );
}

#[test]
fn what_a_session_did_is_listed_once_a_minute() {
    let Some(keyspace) = Keyspace::new("activity") else { return };
    let minute = Arc::new(AtomicU64::new(3));
    let session = Session { id: 7, epoch: 7, generation: Generation(0) };
    let store = keyspace.cql.enter(session, Arc::clone(&minute));
    let write = |entity: EntityId, seq| {
        let group = vec![rows(session, &entity, 0, vec![message(seq, "hello")])];
        assert_eq!(keyspace.ask(|_, done| store.append(group, done)), [Written::Durable]);
    };
    let active = |since| keyspace.ask(|cql, done| cql.active(7, since, done)).unwrap();
    let listed = || {
        let rows = format!("SELECT count(*) FROM {}.session_activity WHERE session = 7", keyspace.config.keyspace);
        keyspace.runtime.block_on(keyspace.cql.shelf.driver.query::<(i64,)>(&rows)).unwrap()[0].0
    };
    let (one, other): (EntityId, EntityId) = (conversation(1).into(), user("ada").into());
    write(one.clone(), 1);
    write(one.clone(), 2);
    write(other.clone(), 1);
    assert_eq!(listed(), 2);
    minute.store(5, std::sync::atomic::Ordering::Relaxed);
    write(one.clone(), 3);
    write(one.clone(), 4);
    assert_eq!(listed(), 3);
    assert_eq!(active(0), [one.clone(), other]);
    assert_eq!(active(4), [one]);
    assert_eq!(active(6), []);
    assert_eq!(keyspace.ask(|cql, done| cql.active(8, 0, done)), Ok(vec![]));
}

#[test]
fn an_operator_is_told_what_is_not_as_it_should_be() {
    let Some(config) = real::one_server("check") else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let check = |config: &Config| runtime.block_on(Cql::check(config)).unwrap();
    let keyspace = &config.keyspace;
    assert_eq!(check(&config), [format!("keyspace {keyspace} is not there: `ctl schema apply` makes it")]);
    let cql = runtime.block_on(Cql::open(&config)).unwrap();
    assert_eq!(check(&config), Vec::<String>::new());
    assert_eq!(
        check(&Config { replication_factor: 3, ..config.clone() }),
        ["there are 1 copies of each row, the configuration says 3"]
    );

    let change = |what: &str| runtime.block_on(cql.shelf.driver.change(&what.replace('$', keyspace))).unwrap();
    change("DROP TABLE $.receipts");
    change("ALTER TABLE $.log DROP meta");
    change("ALTER TABLE $.session_fence WITH default_time_to_live = 60");
    change("ALTER TABLE $.snapshot WITH compaction = {'class': 'SizeTieredCompactionStrategy'}");
    change("ALTER KEYSPACE $ WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 2}");
    let mut found = check(&config);
    found.sort_unstable();
    // A quorum of two is more than there is.
    let unread = found.extract_if(.., |problem| problem.starts_with("the version of the tables is not known: "));
    assert_eq!(unread.count(), 1);
    assert_eq!(
        found,
        [
            "2 copies of each row have no place on 1 servers",
            "rows of table session_fence live 60 s, not 31536000 (0: for ever)",
            "table log has no column meta",
            "table receipts is missing",
            "table snapshot is merged by SizeTieredCompactionStrategy, not LeveledCompactionStrategy",
            "there are 2 copies of each row, the configuration says 1",
        ]
    );
    real::drop_keyspace(&runtime, &config);
}

/// A way to the servers that lets so many bytes a second through, and then any number.
fn narrow_way(runtime: &Runtime, server: &str, is_wide: &Arc<AtomicBool>) -> SocketAddr {
    /// Bytes that pass at once.
    const SOME: usize = 4096;
    /// And how long each of these takes, in both directions together.
    const EACH: Duration = Duration::from_millis(20);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (server, is_wide, narrow) = (server.to_owned(), Arc::clone(is_wide), Arc::new(tokio::sync::Mutex::new(())));
    let pass = async move |mut from: OwnedReadHalf,
                           mut to: OwnedWriteHalf,
                           is_wide: Arc<AtomicBool>,
                           narrow: Arc<tokio::sync::Mutex<()>>| {
        let mut bytes = vec![0; SOME];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if !is_wide.load(Ordering::Relaxed) {
                let _turn = narrow.lock().await;
                tokio::time::sleep(EACH).await;
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    runtime.spawn(async move {
        while let Ok((outside, _)) = listener.accept().await {
            let Ok(inside) = TcpStream::connect(&server).await else { continue };
            let ((here, there), (read, write)) = (outside.into_split(), inside.into_split());
            tokio::spawn(pass(here, write, Arc::clone(&is_wide), Arc::clone(&narrow)));
            // Answers are small: what is asked is what takes long.
            tokio::spawn(pass(read, there, Arc::new(AtomicBool::new(true)), Arc::clone(&narrow)));
        }
    });
    address
}

#[test]
fn too_much_for_the_servers_is_seen_early_and_passed_on() {
    /// More than may write at once.
    const OWNERS: u128 = 1_500;
    let Some(config) = real::one_server("overload") else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_wide = Arc::new(AtomicBool::new(true));
    let door = narrow_way(&runtime, &config.contact_points[0], &is_wide);
    let config = Config { contact_points: vec![door.to_string()], ..config };
    let cql = runtime.block_on(Cql::open(&config)).unwrap();
    let session = Session { id: 1, epoch: 1, generation: Generation(0) };
    let store = cql.enter(session, Arc::default());
    let limit = || cql.shelf.driver.writes_limit();
    let at_first = limit();
    assert_eq!(store.overload(), None);

    // Owners who write 1 KB each, again until it is durable, as shards do.
    is_wide.store(false, Ordering::Relaxed);
    let text = "x".repeat(1_000);
    let (tx, durable) = mpsc::channel();
    for owner in 0..OWNERS {
        let append = rows(session, &conversation(owner).into(), 0, vec![message(1, &text)]);
        write_until_durable(Arc::clone(&store), append, tx.clone());
    }
    let (mut told, mut least, mut count) = (None, at_first, 0);
    while count < OWNERS {
        match durable.recv_timeout(Duration::from_millis(20)) {
            Ok(()) => count += 1,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(error) => panic!("{error}"),
        }
        least = least.min(limit());
        if told.is_none() && store.overload().is_some() {
            told = Some(count);
        }
        if count == OWNERS / 2 {
            is_wide.store(true, Ordering::Relaxed);
        }
    }
    let told = told.expect("clients are told to stay away");
    assert!(told < OWNERS / 2, "only after {told}");
    assert!(least < at_first / 2, "the limit went from {at_first} to {least}");
    // Nothing waits any more; and where the servers are prompt the limit grows with what is asked.
    assert_eq!(store.overload(), None);
    let began = std::time::Instant::now();
    let mut next = OWNERS;
    while limit() <= least {
        assert!(began.elapsed() < Duration::from_secs(60), "the limit stays at {}", limit());
        for owner in next..next + 200 {
            let append = rows(session, &conversation(owner).into(), 0, vec![message(1, "hello")]);
            write_until_durable(Arc::clone(&store), append, tx.clone());
        }
        next += 200;
        (0..200).for_each(|_| durable.recv_timeout(Duration::from_secs(30)).unwrap());
    }
    // Everything stands there once.
    for owner in 0..OWNERS {
        let found = recovered(&store, conversation(owner).into());
        assert_eq!(found.rows.len(), 1);
    }
    real::drop_keyspace(&runtime, &config);
}

fn write_until_durable(store: Arc<dyn Store>, append: Append, tell: mpsc::Sender<()>) {
    let (again, same) = (Arc::clone(&store), append.clone());
    store.append(
        vec![append],
        Box::new(move |outcomes| match outcomes[0] {
            Written::Durable => tell.send(()).unwrap(),
            Written::Unknown => write_until_durable(again, same, tell),
            ref refused => panic!("{refused:?}"),
        }),
    );
}

fn recovered(store: &Arc<dyn Store>, entity: EntityId) -> Recovered {
    let (tx, rx) = mpsc::channel();
    store.recover(entity, 0, Box::new(move |found| tx.send(found).unwrap()));
    rx.recv_timeout(Duration::from_secs(30)).unwrap().unwrap()
}

#[test]
fn an_erased_body_is_read_as_such() {
    let Some(keyspace) = Keyspace::new("erased") else { return };
    let mut sessions = Sessions::new(&keyspace);
    let entity: EntityId = conversation(1).into();
    let session = sessions.store().session();
    make_durable(&mut sessions, &[rows(session, &entity, 0, log_of(1..=3))]);
    // As a deletion at seq 9 does it: over whatever stands there of any owner, and nothing older brings it back.
    let log = format!("{}.log", keyspace.config.keyspace);
    let key: String = entity.to_key().iter().map(|byte| format!("{byte:02x}")).collect();
    for body in ["0x", "null"] {
        let erase = format!(
            "UPDATE {log} USING TIMESTAMP 9 SET body = {body} WHERE entity = 0x{key} AND bucket = 0 AND seq = 2 AND epoch = {}",
            session.epoch
        );
        keyspace.runtime.block_on(keyspace.cql.shelf.driver.change(&erase)).unwrap();
        make_durable(&mut sessions, &[rows(session, &entity, 0, log_of(1..=3))]);
        let found = ask(&mut sessions, |store, done| store.recover(entity.clone(), 0, done)).unwrap();
        let bodies: Vec<bool> = found
            .rows
            .iter()
            .map(|row| match &row.events[0].fact {
                Fact::MessageNew { body, .. } => *body == Body::erased(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(bodies, [false, true, false], "erased by {body}");
    }
}
