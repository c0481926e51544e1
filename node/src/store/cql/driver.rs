//! The way to the servers: one session of the driver, how long it waits, whom it asks, and how its errors are understood.
//!
//! - Nothing waits longer than [`REQUEST`]. A connection that does not answer is given up within two seconds: TCP alone keeps
//!   the connections of a stopped server open for minutes.
//! - Whoever is slow is not waited for: after a while the same statement goes to another server too. All of ours may be
//!   repeated. When there is much on its way already, that would only make it more, and is left out.
//! - A write is not repeated by the driver: whether its outcome is known is what the layers above want to hear. A read is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chappe_schema::cql::Dialect;
use scylla::{
    client::{
        execution_profile::{ExecutionProfile, ExecutionProfileHandle},
        session::Session,
        session_builder::SessionBuilder,
    },
    deserialize::row::DeserializeRow,
    errors::{DbError, ExecutionError, PrepareError, RequestAttemptError},
    policies::{
        load_balancing::DefaultPolicy,
        retry::{DefaultRetryPolicy, FallthroughRetryPolicy},
        speculative_execution::{Context, SpeculativeExecutionPolicy},
    },
    response::{PagingState, PagingStateResponse},
    serialize::{batch::BatchValues, row::SerializeRow},
    statement::{Consistency, batch::Batch, prepared::PreparedStatement, unprepared::Statement},
};

use tokio::time::Instant;

use super::{
    Config, OpenError,
    limit::{Limit, Turn},
};
use crate::store::Error;

/// Longest that a request may take. Then nobody knows what became of it.
const REQUEST: Duration = Duration::from_millis(1_500);

/// How long a change of the schema may take, with the agreement of all servers.
const SCHEMA: Duration = Duration::from_secs(30);

/// How often a connection is asked whether it lives, and how long it has to say so.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);

/// After how long a read goes to a second server.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// The same for a write, which is more work for all replicas.
const WRITE_AGAIN: Duration = Duration::from_millis(250);

/// Statements that write, under way at once, at most. More only wait in the servers instead of here: 256 single rows saturate one.
const WRITES_MAX: usize = 512;

/// Statements that read, under way at once, at most.
const READS_MAX: usize = 256;

/// The least pause before a failure is told: whoever is told asks again at once.
pub(super) const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// See the module's documentation.
pub(super) struct Driver {
    session: Session,
    pub(super) dialect: Dialect,
    reads: ExecutionProfileHandle,
    writes: ExecutionProfileHandle,
    load: Arc<Load>,
    may_write: Limit,
    may_read: Limit,
}

/// Requests that are under way.
#[derive(Debug, Default)]
struct Load(AtomicUsize);

/// Asks a second server, unless there is much under way.
#[derive(Debug)]
struct Again {
    after: Duration,
    load: Arc<Load>,
}

/// Why a statement has no outcome, or a bad one.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody knows; it may be repeated.
    Unknown(String),
    /// It will never be accepted.
    Refused(String),
}

/// How large pages of rows are asked for.
#[derive(Clone, Copy)]
pub(super) struct PageSize(pub(super) i32);

impl Driver {
    /// Connects.
    ///
    /// # Errors
    /// When no server answers.
    pub(super) async fn connect(config: &Config) -> Result<Self, OpenError> {
        let load = Arc::new(Load::default());
        let profile = |after, retries: Arc<dyn scylla::policies::retry::RetryPolicy>| {
            let mut targets = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
            if !config.data_centre.is_empty() {
                targets = targets.prefer_datacenter(config.data_centre.clone());
            }
            ExecutionProfile::builder()
                .consistency(Consistency::LocalQuorum)
                .request_timeout(Some(REQUEST))
                .load_balancing_policy(targets.build())
                .retry_policy(retries)
                .speculative_execution_policy(Some(Arc::new(Again { after, load: Arc::clone(&load) })))
                .build()
                .into_handle()
        };
        let reads = profile(READ_AGAIN, Arc::new(DefaultRetryPolicy::new()));
        let writes = profile(WRITE_AGAIN, Arc::new(FallthroughRetryPolicy));
        let mut builder = SessionBuilder::new()
            .known_nodes(&config.contact_points)
            .connection_timeout(CONNECT)
            .keepalive_interval(KEEPALIVE)
            .keepalive_timeout(KEEPALIVE)
            .schema_agreement_timeout(SCHEMA)
            .default_execution_profile_handle(reads.clone());
        if !config.user.is_empty() {
            let password = config.password_file.read().map_err(OpenError::Password)?;
            builder = builder.user(config.user.clone(), password.expose());
        }
        if config.tls.enabled {
            builder = builder.tls_context(Some(config.tls.client().map_err(OpenError::Tls)?));
        }
        let session = builder
            .build()
            .await
            .map_err(|error| OpenError::Connect { points: config.contact_points.join(", "), why: in_words(&error) })?;
        let mut driver = Self {
            session,
            dialect: Dialect::Cassandra,
            reads,
            writes,
            load,
            may_write: Limit::new("write", WRITES_MAX),
            may_read: Limit::new("read", READS_MAX),
        };
        // ScyllaDB keeps what it knows of itself where Cassandra has no such table.
        let found: Vec<(String,)> = driver
            .query("SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system' AND table_name = 'scylla_local'")
            .await?;
        if !found.is_empty() {
            driver.dialect = Dialect::Scylla;
        }
        Ok(driver)
    }

    /// Changes the schema, and waits until all servers agree on it. That is asked for here: by itself the driver waits only
    /// where this statement changed something, while another node's that did may be on its way to the other servers still.
    pub(super) async fn change(&self, cql: &str) -> Result<(), OpenError> {
        let mut statement = Statement::new(cql);
        statement.set_request_timeout(Some(SCHEMA));
        // Each change is made so that it can be repeated.
        statement.set_retry_policy(Some(Arc::new(DefaultRetryPolicy::new())));
        let (session, statement) = (&self.session, &statement);
        let changed = patiently(|| async move {
            session.query_unpaged(statement.clone(), ()).await.map_err(|error| Failure::of(&error))?;
            session.await_schema_agreement().await.map(drop).map_err(|error| Failure::Unknown(in_words(&error)))
        });
        changed.await.map_err(|failure| failure.of_statement(cql))
    }

    /// What the driver knows of keyspaces decides to whom it sends: it must know ours.
    pub(super) async fn look_again(&self) -> Result<(), OpenError> {
        self.session
            .refresh_metadata()
            .await
            .map_err(|error| OpenError::Statement { cql: "the schema".to_owned(), why: in_words(&error) })
    }

    /// How many servers there are, in a data centre or (if none is named) at all.
    pub(super) fn servers(&self, data_centre: &str) -> usize {
        let state = self.session.get_cluster_state();
        let is_there = |place: Option<&str>| data_centre.is_empty() || place == Some(data_centre);
        state.get_nodes_info().iter().filter(|node| is_there(node.datacenter.as_deref())).count()
    }

    /// A few rows, by a statement that is used once.
    pub(super) async fn query<R>(&self, cql: &str) -> Result<Vec<R>, OpenError>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        let session = &self.session;
        let asked = patiently(|| async move {
            let result = session.query_unpaged(cql, ()).await.map_err(|error| Failure::of(&error))?;
            let result = result.into_rows_result().map_err(|error| Failure::Refused(in_words(&error)))?;
            let rows = result.rows::<R>().map_err(|error| Failure::Refused(in_words(&error)))?;
            rows.collect::<Result<_, _>>().map_err(|error| Failure::Refused(in_words(&error)))
        });
        asked.await.map_err(|failure| failure.of_statement(cql))
    }

    async fn prepare(&self, cql: &str) -> Result<PreparedStatement, OpenError> {
        let session = &self.session;
        let prepared = patiently(|| async move {
            session.prepare(cql).await.map_err(|error| match error {
                PrepareError::AllAttemptsFailed { first_attempt: RequestAttemptError::DbError(..) } => {
                    Failure::Refused(in_words(&error))
                }
                _ => Failure::Unknown(in_words(&error)),
            })
        });
        let mut prepared = prepared.await.map_err(|failure| failure.of_statement(cql))?;
        prepared.set_is_idempotent(true);
        Ok(prepared)
    }

    /// Prepares a statement that writes.
    pub(super) async fn writing(&self, cql: &str) -> Result<PreparedStatement, OpenError> {
        let mut prepared = self.prepare(cql).await?;
        prepared.set_execution_profile_handle(Some(self.writes.clone()));
        Ok(prepared)
    }

    /// Prepares a statement that reads.
    pub(super) async fn reading(&self, cql: &str, page: PageSize) -> Result<PreparedStatement, OpenError> {
        let mut prepared = self.prepare(cql).await?;
        prepared.set_execution_profile_handle(Some(self.reads.clone()));
        prepared.set_page_size(page.0);
        Ok(prepared)
    }

    /// A batch, as statements are written together: in one partition, so that it is one mutation.
    pub(super) fn together(&self, mut batch: Batch) -> Batch {
        batch.set_is_idempotent(true);
        batch.set_execution_profile_handle(Some(self.writes.clone()));
        batch
    }

    /// Writes one row.
    pub(super) async fn write(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<(), Failure> {
        let turn = self.turn(&self.may_write).await?;
        let _load = self.load.add();
        let written = self.session.execute_unpaged(statement, values).await.map(drop);
        turn.over(is_answered(&written));
        written.map_err(|error| Failure::of(&error))
    }

    /// Writes several rows of one partition at once.
    pub(super) async fn write_together(&self, batch: &Batch, values: impl BatchValues) -> Result<(), Failure> {
        let turn = self.turn(&self.may_write).await?;
        let _load = self.load.add();
        let written = self.session.batch(batch, values).await.map(drop);
        turn.over(is_answered(&written));
        written.map_err(|error| Failure::of(&error))
    }

    /// The driver's part of [`write_together`](Self::write_together).
    pub(super) async fn batch(&self, batch: &Batch, values: impl BatchValues) -> Result<(), Failure> {
        self.session.batch(batch, values).await.map(drop).map_err(|error| Failure::of(&error))
    }

    /// Reads rows, page by page, until there are no more or `take` has enough.
    pub(super) async fn read<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        mut take: impl FnMut(R) -> Result<bool, Error>,
    ) -> Result<(), Error>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        let turn = self.turn(&self.may_read).await.map_err(Failure::into_error)?;
        let read = self.read_now(statement, values, &mut take).await;
        turn.over(!matches!(read, Err(Error::Unavailable(_))));
        read
    }

    /// How long what is asked for now would wait for its turn.
    pub(super) fn wait(&self) -> Duration {
        self.may_write.wait().max(self.may_read.wait())
    }

    /// [`read`](Self::read), ahead of all that wait for their turn.
    pub(super) async fn read_now<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        take: &mut impl FnMut(R) -> Result<bool, Error>,
    ) -> Result<(), Error>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        let mut at = PagingState::start();
        loop {
            let page = {
                let _load = self.load.add();
                self.session.execute_single_page(statement, &values, at).await
            };
            let (result, next) = page.map_err(|error| Failure::of(&error).into_error())?;
            let result = result.into_rows_result().map_err(unreadable)?;
            for row in result.rows::<R>().map_err(unreadable)? {
                if !take(row.map_err(unreadable)?)? {
                    return Ok(());
                }
            }
            match next {
                PagingStateResponse::HasMorePages { state } => at = state,
                PagingStateResponse::NoMorePages => return Ok(()),
            }
        }
    }

    /// [`read`](Self::read), into a list.
    pub(super) async fn rows<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, Error>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        let mut rows = Vec::new();
        let take = |row| {
            rows.push(row);
            Ok(true)
        };
        self.read(statement, values, take).await?;
        Ok(rows)
    }

    /// How many statements that write may be under way.
    #[cfg(test)]
    pub(super) fn writes_limit(&self) -> usize {
        self.may_write.now()
    }

    /// Waits for a turn, no longer than a request may take.
    async fn turn<'a>(&self, limit: &'a Limit) -> Result<Turn<'a>, Failure> {
        let turn = limit.turn(REQUEST).await;
        turn.ok_or_else(|| Failure::Unknown("too much is under way to the store".to_owned()))
    }
}

/// Repeats what has no outcome, for as long as a change of the schema may take: servers that are busy with one, or with
/// starting, are silent for longer than a connection is kept for.
async fn patiently<T, F: Future<Output = Result<T, Failure>>>(attempt: impl Fn() -> F) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        match attempt().await {
            Err(Failure::Unknown(why)) if begin.elapsed() < SCHEMA => {
                tracing::debug!(why, "asked again");
                tokio::time::sleep(FAILED_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether a server has said something. What it refuses for good it has answered.
fn is_answered<T>(outcome: &Result<T, ExecutionError>) -> bool {
    outcome.as_ref().err().is_none_or(|error| matches!(Failure::of(error), Failure::Refused(_)))
}

fn unreadable(error: impl std::error::Error) -> Error {
    Error::Unavailable(format!("the store's answer is not what was asked for: {}", in_words(&error)))
}

/// An error and what it comes from, in one line.
pub(super) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Many a chain repeats itself.
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = error.source();
    }
    words.replace('\n', " ")
}

// === impl Load, Again ===

impl Load {
    fn add(&self) -> Counted<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed) > WRITES_MAX / 2
    }
}

struct Counted<'a>(&'a Load);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SpeculativeExecutionPolicy for Again {
    fn max_retry_count(&self, _: &Context) -> usize {
        usize::from(!self.load.is_high())
    }

    fn retry_interval(&self, _: &Context) -> Duration {
        self.after
    }
}

// === impl Failure ===

impl Failure {
    fn of(error: &ExecutionError) -> Self {
        let words = in_words(error);
        match error {
            ExecutionError::BadQuery(_)
            | ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::Invalid | DbError::SyntaxError | DbError::Unauthorized | DbError::ConfigError,
                _,
            )) => Self::Refused(words),
            _ => Self::Unknown(words),
        }
    }

    fn of_statement(self, cql: &str) -> OpenError {
        let (Self::Unknown(why) | Self::Refused(why)) = self;
        OpenError::Statement { cql: cql.to_owned(), why }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Unknown(why) | Self::Refused(why) => Error::Unavailable(why),
        }
    }
}
