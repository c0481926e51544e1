//! From whatever version the tables have to the one that this program works with.
//!
//! Any number of nodes may do this at once, and any of them may be interrupted: every statement can be repeated, tables have
//! the same id for whoever makes them, and a version is noted when all that belongs to it is there.

use std::time::Duration;

use chappe_schema::cql::{MIGRATIONS, Migration, Table, VERSIONS, create_keyspace, version};

use super::{Config, OpenError, driver::Driver};

/// What a server has of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The keyspace's replication, as the server words it; none if there is no keyspace.
    pub replication: Option<String>,
    /// The version that was noted; 0 for none.
    pub version: i32,
    /// The version that this program works with.
    pub wanted: i32,
}

/// The part of `schema_version` that is ours.
const PART: &str = "chappe";

/// How long a table may be listed before a server answers for it.
const LISTED: Duration = Duration::from_secs(5);

/// What is there.
pub(super) async fn state(driver: &Driver, config: &Config) -> Result<State, OpenError> {
    let keyspace = &config.keyspace;
    let found: Vec<(std::collections::BTreeMap<String, String>,)> = driver
        .query(&format!("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = '{keyspace}'"))
        .await?;
    let replication = found.into_iter().next().map(|(replication,)| {
        replication
            .into_iter()
            .filter(|(key, _)| key != "class")
            .map(|(place, count)| format!("{place} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    });
    let versions: Vec<(String,)> = driver
        .query(&format!(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}' AND table_name = '{}'",
            VERSIONS.name
        ))
        .await?;
    let version = if versions.is_empty() { 0 } else { noted(driver, keyspace).await? };
    Ok(State { replication, version, wanted: self::version() })
}

/// The version that was noted. While another node makes the table, a server lists it a moment before it answers for it.
async fn noted(driver: &Driver, keyspace: &str) -> Result<i32, OpenError> {
    let noted = format!("SELECT version FROM {keyspace}.{} WHERE part = '{PART}'", VERSIONS.name);
    let begin = tokio::time::Instant::now();
    loop {
        match driver.query::<(i32,)>(&noted).await {
            Ok(versions) => return Ok(versions.into_iter().map(|(one,)| one).max().unwrap_or(0)),
            Err(error) if begin.elapsed() > LISTED => return Err(error),
            Err(_) => tokio::time::sleep(LISTED / 50).await,
        }
    }
}

/// Makes what is missing.
///
/// # Errors
/// When the tables are newer than this program, or a server refuses.
pub(super) async fn apply(driver: &Driver, config: &Config) -> Result<State, OpenError> {
    let before = state(driver, config).await?;
    before.check(config)?;
    let keyspace = &config.keyspace;
    if before.replication.is_none() {
        driver.change(&create_keyspace(keyspace, &config.replication())).await?;
    }
    if before.version == 0 {
        driver.change(&VERSIONS.create(keyspace, driver.dialect)).await?;
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > before.version) {
        migrate(driver, keyspace, migration).await?;
    }
    state(driver, config).await
}

async fn migrate(driver: &Driver, keyspace: &str, migration: &Migration) -> Result<(), OpenError> {
    for table in migration.creates.iter().filter_map(|name| Table::named(name)) {
        driver.change(&table.create(keyspace, driver.dialect)).await?;
    }
    let Migration { version, name, .. } = migration;
    tracing::info!(event = "store_migrated", keyspace, version, name, "the tables are of this version now");
    let noted = format!(
        "INSERT INTO {keyspace}.{} (part, version, name) VALUES ('{PART}', {version}, '{name}')",
        VERSIONS.name
    );
    driver.change(&noted).await
}

impl State {
    /// Whether this program can work with the tables, possibly after [`apply`].
    ///
    /// # Errors
    /// When they are of a newer version.
    fn check(&self, config: &Config) -> Result<(), OpenError> {
        if self.version > self.wanted {
            return Err(OpenError::Newer {
                keyspace: config.keyspace.clone(),
                found: self.version,
                known: self.wanted,
            });
        }
        Ok(())
    }

    /// Whether this program works with the tables as they are.
    ///
    /// # Errors
    /// With what is to be done.
    pub(super) fn check_ready(&self, config: &Config) -> Result<(), OpenError> {
        self.check(config)?;
        if self.replication.is_none() || self.version < self.wanted {
            return Err(OpenError::Older {
                keyspace: config.keyspace.clone(),
                found: self.version,
                known: self.wanted,
            });
        }
        Ok(())
    }
}

/// What would be done, as CQL, one statement a line.
#[must_use]
pub fn script(config: &Config, dialect: chappe_schema::cql::Dialect) -> String {
    let keyspace = &config.keyspace;
    let mut lines = vec![create_keyspace(keyspace, &config.replication()), VERSIONS.create(keyspace, dialect)];
    for migration in MIGRATIONS {
        lines.extend(
            migration.creates.iter().filter_map(|name| Table::named(name)).map(|table| table.create(keyspace, dialect)),
        );
    }
    lines.iter().map(|line| format!("{line};\n")).collect()
}
