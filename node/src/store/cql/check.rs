//! Whether the tables are as this program makes them, and kept as the configuration says: for operators, who may have made or
//! changed them by hand.

use std::collections::BTreeMap;

use chappe_schema::cql::{Column, Compaction, Dialect, Place, TABLES, Table};

use super::{Config, OpenError, driver::Driver, migrate};

/// A column, as `system_schema` lists it: its table, name, kind, position among those of the kind, and type.
type Listed = (String, String, String, i32, String);

/// What is wrong, a sentence each.
pub(super) async fn problems(driver: &Driver, config: &Config) -> Result<Vec<String>, OpenError> {
    let keyspace = &config.keyspace;
    let Some(mut problems) = replication(driver, config).await? else {
        return Ok(vec![format!("keyspace {keyspace} is not there: `ctl schema apply` makes it")]);
    };
    match migrate::state(driver, config).await {
        Ok(state) if state.version != state.wanted => {
            problems.push(format!("the tables have version {}, this program needs {}", state.version, state.wanted));
        }
        Ok(_) => {}
        // Copies that have no place cannot be read.
        Err(error) if !problems.is_empty() => problems.push(format!("the version of the tables is not known: {error}")),
        Err(error) => return Err(error),
    }
    let columns: Vec<Listed> = driver
        .query(&format!(
            "SELECT table_name, column_name, kind, position, type FROM system_schema.columns WHERE keyspace_name = '{keyspace}'"
        ))
        .await?;
    let tables: Vec<(String, i32, BTreeMap<String, String>)> = driver
        .query(&format!(
            "SELECT table_name, default_time_to_live, compaction FROM system_schema.tables WHERE keyspace_name = '{keyspace}'"
        ))
        .await?;
    for table in TABLES {
        match tables.iter().find(|(name, ..)| name == table.name) {
            None => problems.push(format!("table {} is missing", table.name)),
            Some((_, lives, compaction)) => {
                problems.extend(layout(table, &columns));
                problems.extend(options(table, *lives, compaction, driver.dialect));
            }
        }
    }
    Ok(problems)
}

/// What is wrong with the copies of the keyspace's rows; none if there is no such keyspace.
async fn replication(driver: &Driver, config: &Config) -> Result<Option<Vec<String>>, OpenError> {
    let keyspace = &config.keyspace;
    let found: Vec<(BTreeMap<String, String>,)> = driver
        .query(&format!("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = '{keyspace}'"))
        .await?;
    let Some((replication,)) = found.first() else { return Ok(None) };
    let mut problems = Vec::new();
    let class = replication.get("class").map_or("", String::as_str);
    if !class.ends_with("NetworkTopologyStrategy") {
        problems.push(format!("keyspace {keyspace} is replicated by {class}, not by NetworkTopologyStrategy"));
    }
    let copies: BTreeMap<&str, u16> = replication
        .iter()
        .filter(|(place, _)| *place != "class")
        .filter_map(|(place, copies)| Some((place.as_str(), copies.parse().ok()?)))
        .collect();
    // Where no data centre is named there is to be one.
    let ours = match config.data_centre.as_str() {
        "" if copies.len() > 1 => {
            problems.push(format!(
                "keyspace {keyspace} has copies in {} data centres; say which one is ours",
                copies.len()
            ));
            None
        }
        "" => copies.values().next().copied(),
        ours => Some(copies.get(ours).copied().unwrap_or_default()),
    };
    if let Some(copies) = ours {
        if copies != config.replication_factor {
            let wanted = config.replication_factor;
            problems.push(format!("there are {copies} copies of each row, the configuration says {wanted}"));
        }
        let servers = driver.servers(&config.data_centre);
        if usize::from(copies) > servers {
            problems.push(format!("{copies} copies of each row have no place on {servers} servers"));
        }
    }
    Ok(Some(problems))
}

fn layout(table: &Table, columns: &[Listed]) -> Vec<String> {
    let listed = |column: &Column| columns.iter().find(|(of, name, ..)| of == table.name && name == column.name);
    let mut problems = Vec::new();
    for column in table.list() {
        let Some((_, name, kind, position, holds)) = listed(&column) else {
            problems.push(format!("table {} has no column {}", table.name, column.name));
            continue;
        };
        if holds != column.holds {
            problems.push(format!("{}.{name} holds {holds}, not {}", table.name, column.holds));
        }
        let (wanted, at) = match column.place {
            Place::Partition(at) => ("partition_key", at as i32),
            Place::Clustering(at) => ("clustering", at as i32),
            Place::Cell => ("regular", -1),
        };
        if (kind.as_str(), *position) != (wanted, at) {
            problems.push(format!("{}.{name} is {kind} {position}, not {wanted} {at}", table.name));
        }
    }
    problems
}

fn options(table: &Table, lives: i32, compaction: &BTreeMap<String, String>, dialect: Dialect) -> Vec<String> {
    let mut problems = Vec::new();
    let wanted = if let Compaction::Expiring(seconds) = table.compaction { seconds as i32 } else { 0 };
    if lives != wanted {
        problems.push(format!("rows of table {} live {lives} s, not {wanted} (0: for ever)", table.name));
    }
    let class = compaction.get("class").map_or("", String::as_str);
    let class = class.rsplit('.').next().unwrap_or(class);
    let wanted = table.compaction.class(dialect);
    if class != wanted {
        problems.push(format!("table {} is merged by {class}, not {wanted}", table.name));
    }
    problems
}
