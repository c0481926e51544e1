//! What an operator may set about the store that nodes share.

use std::path::PathBuf;

use chappe_cluster::process::config::{Problem, SecretFile};
use chappe_schema::cql::{Replication, is_keyspace};
use serde::{Deserialize, Serialize};

use super::tls::Tls;

/// The section `[cql]`: ScyllaDB or Apache Cassandra.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Some of its nodes, as `host:port`; the others are found through them.
    pub contact_points: Vec<String>,
    /// Where the tables are. One keyspace is one cluster, and one history.
    pub keyspace: String,
    /// Copies of every row. 3 lets one server fail without anybody noticing; 1 is for trying things out. It counts when the
    /// keyspace is made; later it is changed there, with a repair.
    pub replication_factor: u16,
    /// The data centre in which all nodes of ours are; empty where there is only one.
    pub data_centre: String,
    /// The user name, if the servers ask for one.
    pub user: String,
    /// The file with the password.
    pub password_file: SecretFile,
    /// Encrypted connections.
    pub tls: Tls,
    /// Whether a start makes the keyspace and brings its tables up to date. Otherwise it says what is missing, and
    /// `chappe-node ctl schema apply` does it.
    pub apply_schema: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "chappe".to_owned(),
            replication_factor: 3,
            data_centre: String::new(),
            user: String::new(),
            password_file: SecretFile::new(PathBuf::new()),
            tls: Tls::default(),
            apply_schema: true,
        }
    }
}

/// More copies than anybody keeps: a typing error.
const REPLICATION_MAX: u16 = 9;

impl Config {
    /// Everything about these settings that would make a start fail.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut at = |key: &str, message: String| problems.push(Problem::at(format!("cql.{key}"), message));
        if self.contact_points.is_empty() {
            at("contact_points", "is empty".to_owned());
        }
        for point in &self.contact_points {
            let port = point.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(port)) if port > 0) {
                at("contact_points", format!("'{point}' is not host:port"));
            }
        }
        if !is_keyspace(&self.keyspace) {
            let message = format!("'{}' is not a lower-case letter, then at most 47 of a-z 0-9 _", self.keyspace);
            at("keyspace", message);
        }
        if !(1..=REPLICATION_MAX).contains(&self.replication_factor) {
            at("replication_factor", format!("{} is not within 1 to {REPLICATION_MAX}", self.replication_factor));
        }
        let has_password = !self.password_file.path().as_os_str().is_empty();
        if self.user.is_empty() == has_password {
            at("user", "a user name and a password file go together".to_owned());
        } else if has_password && let Err(error) = self.password_file.read() {
            at("password_file", error.to_string());
        }
        problems.extend(self.tls.check());
        problems
    }

    /// Where replicas are to stand.
    #[must_use]
    pub fn replication(&self) -> Replication {
        Replication {
            factor: self.replication_factor,
            data_centre: Some(self.data_centre.clone()).filter(|name| !name.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_its_path() {
        let keys = |config: Config| config.check().into_iter().map(|problem| problem.key).collect::<Vec<_>>();
        let config = Config::default;
        assert!(keys(config()).is_empty());
        for points in
            [vec![], vec!["host".to_owned()], vec![":9042".to_owned()], vec!["a:9042".to_owned(), "b:x".to_owned()]]
        {
            assert_eq!(keys(Config { contact_points: points, ..config() }), ["cql.contact_points"]);
        }
        assert_eq!(keys(Config { keyspace: "Chappe".to_owned(), ..config() }), ["cql.keyspace"]);
        assert_eq!(keys(Config { replication_factor: 0, ..config() }), ["cql.replication_factor"]);
        assert_eq!(keys(Config { user: "ada".to_owned(), ..config() }), ["cql.user"]);
        let missing = SecretFile::new("/nowhere/password");
        assert_eq!(keys(Config { user: "ada".to_owned(), password_file: missing, ..config() }), ["cql.password_file"]);
    }
}
