//! What an operator may set about a gateway.

use std::{
    error::Error as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use chappe_cluster::process::config::{Period, Problem};
use serde::{Deserialize, Serialize};

use crate::{auth, http::proxy::Network, limiter, tls};

/// The gateway's part of the configuration. Everything has a default that works on one's own machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect: HTTP, WebSocket and gRPC on one port.
    pub listen: SocketAddr,
    /// Origins whose pages may use this server from a browser, as browsers write them (`https://chat.example.com`), or
    /// `*`. When empty, pages of loopback origins and of the host that serves them may.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed, as addresses or networks (`10.0.0.0/8`). Limits per address are
    /// those of the addresses that they report.
    pub trusted_proxies: Vec<Network>,
    /// Most connections at a time; more are answered 503. 0 means as many as this process may open files, less what
    /// it needs itself.
    pub connections_max: usize,
    /// Over how long connections are closed when the server leaves, so that they do not all come back at once.
    pub drain_window: Period,
    /// Whether gRPC's reflection tells everybody what there is. It does so in any case where development tokens are issued.
    pub grpc_reflection: bool,
    /// TLS on the port for clients; none unless it is configured.
    pub tls: tls::Config,
    /// How clients' tokens are checked.
    pub auth: auth::Config,
    /// How much clients may ask for.
    pub limits: limiter::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            connections_max: 0,
            drain_window: Period::secs(10),
            grpc_reflection: false,
            tls: tls::Config::default(),
            auth: auth::Config::default(),
            limits: limiter::Config::default(),
        }
    }
}

/// Longest drain window: whoever stops the process has lost patience long before. More is a slip of the unit.
const DRAIN_WINDOW_MAX: Period = Period::hours(1);

/// Fewest keys with buckets of their own: with fewer, strangers share a budget on a quiet day.
const KEYS_MIN: usize = 1_000;

/// Most of them: 4 GB of buckets per scope.
const KEYS_MAX: usize = 100_000_000;

impl Config {
    /// Everything about these settings, and the files that they name, that would make a start fail or a server useless.
    /// Reads only. Keys of problems are those of the section `gateway`.
    #[must_use]
    pub fn check(&self, data_dir: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut at = |key: &str, message: String| problems.push(Problem::at(format!("gateway.{key}"), message));
        if !is_listenable(self.listen) {
            at("listen", format!("{} is not an address that a server can listen on", self.listen.ip()));
        }
        for (index, origin) in self.allowed_origins.iter().enumerate() {
            if let Err(why) = check_origin(origin) {
                at(&format!("allowed_origins.{index}"), format!("{origin:?} {why}"));
            }
        }
        if self.drain_window > DRAIN_WINDOW_MAX {
            at("drain_window", format!("{} is more than {DRAIN_WINDOW_MAX}", self.drain_window));
        }
        if !(KEYS_MIN..=KEYS_MAX).contains(&self.limits.keys_max) {
            at("limits.keys_max", format!("{} is not within {KEYS_MIN} to {KEYS_MAX}", self.limits.keys_max));
        }
        if let Some(error) = tls::check(&self.tls) {
            at(error.setting(), error.to_string());
        }
        for error in auth::check(&self.auth, self.listen, data_dir) {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            at(&format!("auth.{}", error.setting()), format!("{error}{source}"));
        }
        problems
    }
}

/// Whether a server could be there at all.
#[must_use]
pub fn is_listenable(address: SocketAddr) -> bool {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => !v4.is_broadcast() && !v4.is_multicast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    }
}

/// Whether a browser could ever send this as `Origin`, or it is `*`: one that never matches is a mistake that nobody
/// notices until a page does not work.
fn check_origin(origin: &str) -> Result<(), &'static str> {
    const SHAPE: &str = "is not an origin: expected scheme://host or scheme://host:port, or *";
    if origin == "*" {
        return Ok(());
    }
    let (scheme, authority) = origin.split_once("://").ok_or(SHAPE)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let is_port =
        port.is_none_or(|port| port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if !is_scheme || !(is_v6 || is_name) || !is_port {
        return Err(SHAPE);
    }
    if matches!((scheme, port), ("https", Some("443")) | ("http", Some("80"))) {
        return Err("would never match: browsers leave the scheme's own port out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_partial_but_not_misspelt() {
        let read = |json: &str| serde_json::from_str::<Config>(json);
        assert_eq!(read("{}").unwrap(), Config::default());
        let config =
            read(r#"{"listen":"0.0.0.0:1","trusted_proxies":["10.0.0.0/8","::1"],"drain_window":"3s"}"#).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.trusted_proxies.len(), 2);
        assert!(read(r#"{"listne":"0.0.0.0:1"}"#).is_err());
        assert!(read(r#"{"trusted_proxies":["10.0.0.0/40"]}"#).is_err());
    }

    /// What `--check-config` refuses, with the path of the setting.
    #[test]
    fn nonsense_is_refused_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let paths = |json: &str| -> Vec<String> {
            let config: Config = serde_json::from_str(json).unwrap();
            config.check(&dir.path().join("data")).into_iter().map(|problem| problem.key).collect()
        };
        assert!(paths("{}").is_empty());
        for (json, path) in [
            (r#"{"listen":"0.0.0.0:1"}"#, "auth.key_file"),
            (r#"{"listen":"255.255.255.255:1","auth":{"key_file":"KEY"}}"#, "listen"),
            (r#"{"listen":"224.0.0.1:1","auth":{"key_file":"KEY"}}"#, "listen"),
            (r#"{"auth":{"key_file":""}}"#, "auth.key_file"),
            (r#"{"auth":{"key_file":"/nonexistent"}}"#, "auth.key_file"),
            (r#"{"auth":{"algorithm":"RS256"}}"#, "auth.algorithm"),
            (r#"{"auth":{"dev_tokens":false}}"#, "auth.key_file"),
            (r#"{"auth":{"leeway_s":31}}"#, "auth.leeway_s"),
            (r#"{"auth":{"audience":""}}"#, "auth.audience"),
            (r#"{"auth":{"expiry_grace":"29s"}}"#, "auth.expiry_grace"),
            (r#"{"auth":{"api_keys_file":"KEY"}}"#, "auth.api_keys_file"),
            (r#"{"auth":{"jwks_file":"KEY"}}"#, "auth.jwks_file"),
            (r#"{"auth":{"jwks_file":""}}"#, "auth.jwks_file"),
            (r#"{"auth":{"key_file":"KEY","jwks_file":"KEY"}}"#, "auth.jwks_file"),
            (r#"{"auth":{"algorithm":"EdDSA","jwks_url":""}}"#, "auth.jwks_url"),
            (r#"{"auth":{"algorithm":"EdDSA","jwks_url":"http://id.example.com/keys"}}"#, "auth.jwks_url"),
            (r#"{"auth":{"jwks_url":"https://id.example.com/keys"}}"#, "auth.jwks_url"),
            (
                r#"{"auth":{"algorithm":"EdDSA","jwks_url":"https://id.example.com/","jwks_refresh":"0s"}}"#,
                "auth.jwks_refresh",
            ),
            (
                r#"{"auth":{"algorithm":"EdDSA","jwks_url":"https://id.example.com/","jwks_ca_file":"KEY"}}"#,
                "auth.jwks_ca_file",
            ),
            (r#"{"auth":{"key_file":"KEY","jwks_refresh":"2d"}}"#, "auth.jwks_refresh"),
            (r#"{"allowed_origins":["https://ok.example","chat.example.com"]}"#, "allowed_origins.1"),
            (r#"{"allowed_origins":["https://chat.example.com/app"]}"#, "allowed_origins.0"),
            (r#"{"allowed_origins":["https://chat.example.com:443"]}"#, "allowed_origins.0"),
            (r#"{"allowed_origins":["https://"]}"#, "allowed_origins.0"),
            (r#"{"allowed_origins":["https://a b"]}"#, "allowed_origins.0"),
            (r#"{"allowed_origins":["https://*.example.com"]}"#, "allowed_origins.0"),
            (r#"{"allowed_origins":[""]}"#, "allowed_origins.0"),
            (r#"{"drain_window":"2h"}"#, "drain_window"),
            (r#"{"limits":{"keys_max":0}}"#, "limits.keys_max"),
        ] {
            let key = dir.path().join("key");
            std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
            let json = json.replace("KEY", &key.display().to_string());
            assert_eq!(paths(&json), [format!("gateway.{path}")], "{json}");
        }
        assert_eq!(paths(r#"{"auth":{"leeway_s":31,"issuer":"","key_file":"/no"}}"#).len(), 3, "all of them are named");
        // A URL is looked at, and nothing is fetched.
        assert!(
            paths(r#"{"auth":{"algorithm":"EdDSA","jwks_url":"https://id.example.com/keys"},"listen":"0.0.0.0:1"}"#)
                .is_empty()
        );
        for origin in [
            "*",
            "https://a.example",
            "http://localhost:3000",
            "http://[::1]:5173",
            "capacitor://localhost",
            "https://a.example/",
        ] {
            assert_eq!(check_origin(origin), Ok(()), "{origin}");
        }
        assert!(!dir.path().join("data").exists(), "a check leaves no traces");
    }

    #[test]
    fn a_development_secret_that_is_none_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(auth::dev::SECRET_FILE), "short").unwrap();
        let problems = Config::default().check(dir.path());
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn what_is_dumped_can_be_read_again() {
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..Config::default() };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }
}
