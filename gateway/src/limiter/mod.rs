//! How much one client may ask for: token buckets per address and per user, one budget over all transports.
//!
//! - this module: what is limited ([`Scope`]), by whom it is counted ([`Key`]), and what an answer looks like
//! - [`local`]: the buckets of one process
//!
//! A backend that several gateways share answers later than now: [`Limiter::check`] therefore returns a [`Verdict`],
//! which is either there at once or a future. Awaiting a verdict serves both and costs nothing where it is there.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Deserialize, Serialize};

pub mod local;

pub use local::Local;

/// Counter of decisions, with labels `scope`, `backend` and `decision`: `allowed`, `refused`, or `exempt` where no
/// limit applies.
pub const DECISIONS_TOTAL: &str = "chappe_rate_limit_decisions_total";

/// Gauge of the keys that hold a bucket, with labels `scope` and `backend`; moves with every sweep. At
/// [`Config::keys_max`] strangers share one bucket.
pub const KEYS: &str = "chappe_rate_limit_keys";

/// Spends budgets. Shared by every transport of a gateway: there is one per process.
pub trait Limiter: Send + Sync {
    /// Spends `cost` of what `key` may do in `scope`, all of it or nothing. A cost of 0 is free; one larger than the
    /// whole burst counts as the burst, or it could never be spent.
    fn check(&self, scope: Scope, key: Key<'_>, cost: u32) -> Verdict;

    /// Forgets keys whose budget is full again: they look like strangers. Call it every few seconds; it walks all
    /// keys, at most [`Config::keys_max`] per scope.
    fn sweep(&self) -> Swept;
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Connections and handshakes, per address.
    Handshakes,
    /// Sent messages, per user.
    Sends,
    /// All other commands, per user.
    Commands,
    /// Development tokens issued, per address.
    DevTokens,
    /// Whatever server-side callers ask, per API key.
    ApiKeys,
}

/// On whose account it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// A client's address. IPv6 addresses of one /64 are one client, and an IPv4 address mapped into IPv6 is that IPv4
    /// address; backends see to it ([`Key::grouped`]).
    Address(IpAddr),
    /// A user's id.
    User(&'a str),
    /// An API key's name.
    Caller(&'a str),
}

/// One answer, with all that `RateLimit-*` and `Retry-After` headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it was spent.
    pub allowed: bool,
    /// What a full budget holds. `u32::MAX` where no limit applies.
    pub limit: u32,
    /// What is left now. `u32::MAX` where no limit applies.
    pub remaining: u32,
    /// Milliseconds until the budget is full again, when nothing more is spent.
    pub reset_after_ms: u64,
    /// Milliseconds until the same cost would be allowed; 0 when it was.
    pub retry_after_ms: u64,
}

/// A decision, now or later.
pub enum Verdict {
    /// Decided.
    Ready(Decision),
    /// Being decided elsewhere. Dropping the future does not take back what was spent.
    Pending(Pin<Box<dyn Future<Output = Decision> + Send>>),
}

/// What a sweep did, over all scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Keys forgotten.
    pub dropped: usize,
    /// Keys kept.
    pub kept: usize,
}

/// The `limits` section of the configuration.
///
/// The defaults stop a runaway client and let a lively one be. They are counted per process with the local backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Connections and handshakes, per address. Generous, since a whole office may come from one address and comes
    /// back at once after an outage.
    pub handshakes: Rate,
    /// Sent messages, per user.
    pub sends: Rate,
    /// All other commands, per user.
    pub commands: Rate,
    /// Development tokens issued, per address.
    pub dev_tokens: Rate,
    /// Whatever server-side callers ask, per API key. It is not counted for the users on whose behalf they ask.
    pub api_keys: Rate,
    /// Whether loopback addresses are free of limits by address (never of those by user). They are local use and load
    /// tests; behind a proxy on the same machine either have it forward clients' addresses or switch this off.
    pub exempt_loopback: bool,
    /// Most keys that hold a bucket of their own, per scope. At the brim newcomers share one bucket of the same rate,
    /// until a sweep makes room: known clients notice nothing, and a flood of addresses gains nothing. A key costs
    /// about 40 bytes.
    pub keys_max: usize,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// What flows in per second. 0 means unlimited.
    pub per_second: u32,
    /// What a full bucket holds, so what may be spent at once. 0 means as much as flows in within a second.
    #[serde(default)]
    pub burst: u32,
}

// === impl Scope ===

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 5] = [Self::Handshakes, Self::Sends, Self::Commands, Self::DevTokens, Self::ApiKeys];

    /// The scope in configuration, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshakes => "handshakes",
            Self::Sends => "sends",
            Self::Commands => "commands",
            Self::DevTokens => "dev_tokens",
            Self::ApiKeys => "api_keys",
        }
    }
}

// === impl Key ===

impl Key<'_> {
    /// The key as it is counted: IPv4 addresses whole, IPv6 ones by their /64, which is the least that a provider
    /// hands to one customer.
    #[must_use]
    pub const fn grouped(self) -> Self {
        match self {
            Self::Address(address) => match address.to_canonical() {
                IpAddr::V6(v6) => {
                    let network = v6.to_bits() & !(u64::MAX as u128);
                    Self::Address(IpAddr::V6(Ipv6Addr::from_bits(network)))
                }
                v4 @ IpAddr::V4(_) => Self::Address(v4),
            },
            named @ (Self::User(_) | Self::Caller(_)) => named,
        }
    }

    /// Whether this is an address of the machine itself.
    #[must_use]
    pub const fn is_loopback(self) -> bool {
        match self {
            Self::Address(address) => address.to_canonical().is_loopback(),
            Self::User(_) | Self::Caller(_) => false,
        }
    }
}

// === impl Decision ===

impl Decision {
    /// The answer where no limit applies.
    pub const UNLIMITED: Self =
        Self { allowed: true, limit: u32::MAX, remaining: u32::MAX, reset_after_ms: 0, retry_after_ms: 0 };

    /// Whether a limit applies, so whether there is anything to put into headers.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.limit != u32::MAX
    }

    /// `Retry-After` in whole seconds: rounded up, since a client that came back early would be refused again.
    #[must_use]
    pub const fn retry_after_s(&self) -> u64 {
        self.retry_after_ms.div_ceil(1000)
    }

    /// `RateLimit-Reset` in whole seconds, rounded up.
    #[must_use]
    pub const fn reset_after_s(&self) -> u64 {
        self.reset_after_ms.div_ceil(1000)
    }
}

// === impl Verdict ===

impl Future for Verdict {
    type Output = Decision;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        match self.get_mut() {
            Self::Ready(decision) => Poll::Ready(*decision),
            Self::Pending(decision) => decision.as_mut().poll(context),
        }
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(decision) => f.debug_tuple("Ready").field(decision).finish(),
            Self::Pending(_) => f.debug_tuple("Pending").finish_non_exhaustive(),
        }
    }
}

// === impl Config ===

impl Config {
    /// The rate of one scope.
    #[must_use]
    pub const fn rate(&self, scope: Scope) -> Rate {
        match scope {
            Scope::Handshakes => self.handshakes,
            Scope::Sends => self.sends,
            Scope::Commands => self.commands,
            Scope::DevTokens => self.dev_tokens,
            Scope::ApiKeys => self.api_keys,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handshakes: Rate { per_second: 200, burst: 2_000 },
            sends: Rate { per_second: 50, burst: 200 },
            commands: Rate { per_second: 100, burst: 400 },
            dev_tokens: Rate { per_second: 10, burst: 100 },
            api_keys: Rate { per_second: 500, burst: 2_000 },
            exempt_loopback: true,
            keys_max: 1_000_000,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> Key<'static> {
        Key::Address(text.parse().unwrap())
    }

    #[test]
    fn addresses_are_grouped_as_providers_hand_them_out() {
        let same = |a, b| address(a).grouped() == address(b).grouped();
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn loopback_is_seen_through_every_notation() {
        for text in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(address(text).is_loopback(), "{text}");
        }
        for text in ["192.0.2.1", "::2", "::ffff:192.0.2.1", "0.0.0.0", "::"] {
            assert!(!address(text).is_loopback(), "{text}");
        }
        assert!(!Key::User("127.0.0.1").is_loopback());
    }

    #[test]
    fn headers_round_up() {
        let decision = Decision { reset_after_ms: 1, retry_after_ms: 1001, ..Decision::UNLIMITED };
        assert_eq!((decision.reset_after_s(), decision.retry_after_s()), (1, 2));
        assert_eq!(Decision::UNLIMITED.retry_after_s(), 0);
    }

    #[tokio::test]
    async fn a_verdict_now_and_a_verdict_later_are_awaited_alike() {
        let refused = Decision { allowed: false, ..Decision::UNLIMITED };
        assert_eq!(Verdict::Ready(refused).await, refused);
        let later = Verdict::Pending(Box::pin(async move {
            tokio::task::yield_now().await;
            refused
        }));
        assert_eq!(later.await, refused);
    }

    #[test]
    fn configuration_is_partial_but_not_misspelt() {
        let read = |json: &str| serde_json::from_str::<Config>(json);
        assert_eq!(read("{}").unwrap(), Config::default());
        let config = read(r#"{"sends":{"per_second":7}}"#).unwrap();
        assert_eq!(config.sends, Rate { per_second: 7, burst: 0 });
        assert_eq!(config.commands, Config::default().commands);
        assert!(read(r#"{"send":{"per_second":7}}"#).is_err());
        assert!(read(r#"{"sends":{"per_minute":7}}"#).is_err());
    }
}
