//! The log that nodes share: ScyllaDB, or Apache Cassandra 5, by one dialect of CQL. What tables there are, each with its query,
//! stands in [`chappe_schema::cql`].
//!
//! - [`config`]: what an operator may set
//! - [`tls`]: encrypted connections
//! - [`driver`]: the way to the servers, how long it waits, how its errors are understood
//! - [`limit`]: how much is under way at once
//! - [`migrate`]: the tables, brought up to date
//! - [`check`]: whether they are as they should be
//! - [`statements`]: everything that is ever sent
//! - [`write`]: rows of the log, and what is derived from them
//! - [`read`]: recovery, pages and the rest
//! - [`shared`]: sessions' registry, fences and activity; the claims by which a cluster begins
//!
//! [`Cql`] is the way in that a process has, [`Log`] that of one session. Every request is a task on the process's runtime; what it
//! holds is bounded by what shards have under way, and what goes to the servers at once by [`driver`]. What fails is told after a
//! pause, as whoever hears of it asks again at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chappe_cluster::process::config::SecretError;
use chappe_schema::{
    cql::Dialect,
    id::{CommandId, ConversationId, EntityId, Millis, Seq, UserId},
    reaction::ReactionKey,
    stored::{StoredId, StoredOverlay, StoredReaction},
};
use futures_util::future::join_all;
use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::planted::{Bug, is};

use super::{
    Append, Confirmation, Done, Error, MemberRows, Page, PageRequest, Projection, Purge, Reacted, ReactedRequest,
    Recovered, Session, Store, Walked, Written,
    ids::Wanted,
    meter::{Operation, Operations, Rows},
};

mod check;
mod config;
mod driver;
mod limit;
mod migrate;
mod read;
mod shared;
mod statements;
mod tls;
mod write;

#[cfg(test)]
mod faults;
#[cfg(any(test, feature = "simulation"))]
pub mod real;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use migrate::{State, script};
pub use tls::{Tls, TlsError};
pub use write::Raw;

use driver::{Driver, FAILED_PAUSE, Failure};
use statements::Statements;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers.
    #[error("no CQL server answers at {points}: {why}")]
    Connect {
        /// Where it was looked for.
        points: String,
        /// What happened.
        why: String,
    },
    /// The password's file.
    #[error("the password of the CQL servers")]
    Password(#[source] SecretError),
    /// Encryption is asked for, and not possible.
    #[error("cql.tls")]
    Tls(#[source] TlsError),
    /// A server does not do as it is told.
    #[error("a CQL server refused '{cql}': {why}")]
    Statement {
        /// What it was told.
        cql: String,
        /// What it said.
        why: String,
    },
    /// The tables are not there, or are of an earlier version.
    #[error(
        "keyspace {keyspace} has tables of version {found}, this program needs {known}; run `chappe-node ctl schema apply`"
    )]
    Older {
        /// Which keyspace.
        keyspace: String,
        /// Its version; 0 if there is none.
        found: i32,
        /// This program's.
        known: i32,
    },
    /// A newer program was here.
    #[error(
        "keyspace {keyspace} has tables of version {found}, this program knows up to {known}; run the program that made them"
    )]
    Newer {
        /// Which keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// This program's.
        known: i32,
    },
}

/// A process's way to the store. A clone is the same.
#[derive(Clone)]
pub struct Cql {
    shelf: Arc<Shelf>,
    runtime: Handle,
}

/// What every request needs.
struct Shelf {
    driver: Driver,
    statements: Statements,
    operations: Operations,
    rows: Rows,
}

/// The log as one session sees it.
pub struct Log {
    cql: Cql,
    session: Session,
    /// The session's own count of minutes.
    minute: Arc<AtomicU64>,
    listed: Arc<Mutex<Listed>>,
    /// Rows of activity that were written.
    activity: AtomicI64,
}

/// Entities that are known to be listed as active in a minute.
#[derive(Default)]
struct Listed {
    minute: u64,
    entities: HashSet<EntityId>,
}

// === impl Cql ===

impl Cql {
    /// Connects, and sees to the tables. Requests run as tasks of the present runtime.
    ///
    /// # Errors
    /// With a sentence for the operator; nothing was served.
    pub async fn open(config: &Config) -> Result<Self, OpenError> {
        let driver = Driver::connect(config).await?;
        let state = if config.apply_schema {
            migrate::apply(&driver, config).await?
        } else {
            migrate::state(&driver, config).await?
        };
        state.check_ready(config)?;
        driver.look_again().await?;
        let statements = Statements::prepare(&driver, &config.keyspace).await?;
        tracing::info!(
            event = "store_open",
            keyspace = config.keyspace,
            dialect = ?driver.dialect,
            version = state.version,
            replication = state.replication.as_deref().unwrap_or_default(),
            "the store answers"
        );
        let shelf = Shelf { driver, statements, operations: Operations::new("cql"), rows: Rows::new() };
        Ok(Self { shelf: Arc::new(shelf), runtime: Handle::current() })
    }

    /// What a server has of the tables; with `apply` after what is missing was made.
    ///
    /// # Errors
    /// When no server answers, or the tables are newer than this program.
    pub async fn schema(config: &Config, apply: bool) -> Result<(State, Dialect), OpenError> {
        let driver = Driver::connect(config).await?;
        let state =
            if apply { migrate::apply(&driver, config).await? } else { migrate::state(&driver, config).await? };
        Ok((state, driver.dialect))
    }

    /// What an operator had better change about the tables, a sentence each; none where all is as this program makes it.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn check(config: &Config) -> Result<Vec<String>, OpenError> {
        check::problems(&Driver::connect(config).await?, config).await
    }

    /// What `bench` measures the log against.
    #[must_use]
    pub fn raw(&self, append: &Append) -> Raw {
        Raw::new(Arc::clone(&self.shelf), append)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Answers a request by what `work` finds; a failure after a pause.
    fn ask<T, W, F>(&self, operation: Operation, done: Done<Result<T, Error>>, work: W)
    where
        T: Send + 'static,
        W: FnOnce(Arc<Shelf>) -> F + Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let shelf = Arc::clone(&self.shelf);
        self.spawn(async move {
            let asked = Instant::now();
            let result = work(Arc::clone(&shelf)).await;
            shelf.operations.answered(operation, asked, result.as_ref().err());
            if matches!(result, Err(Error::Unavailable(_))) {
                pause_since(asked).await;
            }
            done(result);
        });
    }
}

/// What would wait longer than this for its turn at the servers is not begun: its client is told at once.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How long clients are told to stay away, at most: it may be over sooner than it seems.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Whoever hears of a failure asks again: not more often than a server can stand.
async fn pause_since(asked: Instant) {
    tokio::time::sleep(FAILED_PAUSE.saturating_sub(asked.elapsed())).await;
}

// === impl Log ===

impl Log {
    fn new(cql: Cql, session: Session, minute: Arc<AtomicU64>) -> Self {
        Self { cql, session, minute, listed: Arc::default(), activity: AtomicI64::new(0) }
    }

    /// Entities of a group that are not listed as active in this minute yet.
    fn unlisted(&self, group: &[Append]) -> (u64, Vec<EntityId>) {
        let minute = self.minute.load(Ordering::Relaxed);
        let listed = self.listed.lock();
        let is_new = |entity: &&EntityId| listed.minute != minute || !listed.entities.contains(*entity);
        let mut new: Vec<EntityId> = group.iter().map(|append| &append.entity).filter(is_new).cloned().collect();
        drop(listed);
        new.sort_unstable();
        new.dedup();
        (minute, new)
    }
}

impl Listed {
    fn add(&mut self, minute: u64, entities: Vec<EntityId>) {
        if minute > self.minute {
            *self = Self { minute, entities: HashSet::new() };
        }
        if minute == self.minute {
            self.entities.extend(entities);
        }
    }
}

impl Store for Log {
    fn session(&self) -> Session {
        self.session
    }

    fn is_fenced(&self) -> bool {
        true
    }

    fn overload(&self) -> Option<Millis> {
        let wait = self.cql.shelf.driver.wait();
        (wait > WAIT_MAX).then(|| wait.min(BUSY_MAX).as_millis() as Millis)
    }

    fn append(&self, mut group: Vec<Append>, done: Done<Vec<Written>>) {
        if is(Bug::EpochNotInKey) {
            group.iter_mut().for_each(|append| append.epoch = 0);
        }
        let (shelf, listed) = (Arc::clone(&self.cql.shelf), Arc::clone(&self.listed));
        let (minute, new) = self.unlisted(&group);
        let row = self.activity.fetch_add(write::activity_rows(new.len()), Ordering::Relaxed);
        let session = self.session.id as i64;
        self.cql.spawn(async move {
            let asked = Instant::now();
            let appends = join_all(group.iter().map(|append| write::append(&shelf, append)));
            // What is durable is listed too: a ticket waits for both.
            let listing = write::note_active(&shelf, session, minute, row, &new);
            let (mut outcomes, listing) = tokio::join!(appends, listing);
            match write::outcome([listing]) {
                Written::Durable => listed.lock().add(minute, new),
                unlisted => {
                    for outcome in outcomes.iter_mut().filter(|outcome| **outcome == Written::Durable) {
                        *outcome = unlisted.clone();
                    }
                }
            }
            shelf.operations.answered(Operation::Append, asked, None);
            if outcomes.iter().any(|outcome| *outcome != Written::Durable) {
                shelf.operations.refused(Operation::Append);
                pause_since(asked).await;
            }
            done(outcomes);
        });
    }

    fn confirm(&self, done: Done<Confirmation>) -> Option<Confirmation> {
        let (shelf, session) = (Arc::clone(&self.cql.shelf), self.session.id);
        self.cql.spawn(async move {
            let asked = Instant::now();
            let confirmation = shared::confirm(&shelf, session).await;
            shelf.operations.answered(Operation::Confirm, asked, None);
            if confirmation == Confirmation::Unknown {
                shelf.operations.refused(Operation::Confirm);
                pause_since(asked).await;
            }
            done(confirmation);
        });
        None
    }

    fn list_active(&self, entities: Vec<EntityId>, done: Done<Result<(), Error>>) {
        let minute = self.minute.load(Ordering::Relaxed);
        let row = self.activity.fetch_add(write::activity_rows(entities.len()), Ordering::Relaxed);
        let session = self.session.id as i64;
        self.cql.ask(Operation::Activity, done, async move |shelf| {
            write::note_active(&shelf, session, minute, row, &entities).await.map_err(Failure::into_error)
        });
    }

    fn recover(&self, entity: EntityId, ids_since: Millis, done: Done<Result<Recovered, Error>>) {
        self.cql.ask(Operation::Recover, done, async move |shelf| read::recover(&shelf, &entity, ids_since).await);
    }

    fn page(&self, request: PageRequest, done: Done<Result<Page, Error>>) {
        self.cql.ask(Operation::Page, done, async move |shelf| read::page(&shelf, &request).await);
    }

    fn overlays(&self, entity: EntityId, targets: Vec<Seq>, done: Done<Result<Vec<(Seq, StoredOverlay)>, Error>>) {
        self.cql.ask(Operation::Overlay, done, async move |shelf| read::overlays(&shelf, &entity, targets).await);
    }

    fn reactions(
        &self,
        entity: EntityId,
        target: Seq,
        user: UserId,
        keys: Vec<ReactionKey>,
        done: Done<Result<Vec<(ReactionKey, StoredReaction)>, Error>>,
    ) {
        self.cql.ask(Operation::Reactions, done, async move |shelf| {
            read::reactions(&shelf, &entity, target, &user, keys).await
        });
    }

    fn reacted(&self, request: ReactedRequest, done: Done<Result<Reacted, Error>>) {
        self.cql.ask(Operation::Reacted, done, async move |shelf| read::reacted(&shelf, &request).await);
    }

    fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: usize,
        done: Done<Result<MemberRows, Error>>,
    ) {
        self.cql.ask(Operation::Members, done, async move |shelf| {
            read::members(&shelf, &conversation.into(), after.as_ref(), limit).await
        });
    }

    fn find_id(
        &self,
        entity: EntityId,
        sender: UserId,
        id: CommandId,
        (above, not_before): (Seq, Millis),
        done: Done<Result<Option<StoredId>, Error>>,
    ) {
        self.cql.ask(Operation::FindId, done, async move |shelf| {
            read::find_id(&shelf, &entity, &Wanted { sender: &sender, id, above, not_before }).await
        });
    }

    fn purge(&self, purge: Purge, done: Done<Result<bool, Error>>) {
        self.cql.ask(Operation::Purge, done, async move |shelf| write::purge(&shelf, &purge).await.map(|()| true));
    }

    fn walk(&self, from: Option<Bytes>, limit: usize, all: bool, done: Done<Result<Walked, Error>>) {
        self.cql.ask(Operation::Walk, done, async move |shelf| read::walk(&shelf, from, limit, all).await);
    }

    fn project(&self, writes: Vec<Projection>, done: Done<Result<(), Error>>) {
        self.cql.ask(Operation::Project, done, async move |shelf| write::project(&shelf, &writes).await);
    }

    fn announced(&self, done: Done<Result<Vec<EntityId>, Error>>) {
        self.cql.ask(Operation::Announced, done, async move |shelf| read::announced(&shelf).await);
    }
}
