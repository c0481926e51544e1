//! What an operator may set about a gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use chappe_cluster::process::config::Period;
use serde::{Deserialize, Serialize};

use crate::{auth, http::proxy::Network, limiter};

/// The gateway's part of the configuration. Everything has a default that works on one's own machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect: HTTP and WebSocket on one port.
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
            auth: auth::Config::default(),
            limits: limiter::Config::default(),
        }
    }
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

    #[test]
    fn what_is_dumped_can_be_read_again() {
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..Config::default() };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }
}
