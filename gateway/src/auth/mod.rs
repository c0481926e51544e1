//! Who is at the other end: a signed token names the user, and nothing else does.
//!
//! - [`jwt`]: the check of one token against the configured key, algorithm and clock
//! - [`keys`]: how that key comes from its file, and which keys are refused
//! - [`key_set`]: an issuer's keys, by name; `source` and `fetch`: how they are kept fresh
//! - [`api_keys`]: server-side callers, who speak for users
//! - [`dev`]: tokens that a server on a loopback address issues itself, so that a newcomer needs no identity provider
//!
//! This module decides between them at start ([`resolve`]). Checking a token makes no outbound request, ever: whatever its
//! header says about keys (`jku`, `x5u`) is not followed, a `kid` chooses among the keys that are there, and a token that
//! carries its own key is refused. An issuer's set is fetched by a task of its own, on a schedule of its own.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use chappe_cluster::process::{config::Period, metrics::AUTH_REFUSALS_TOTAL};
use chappe_schema::limit::TOKEN_OUTLIVED_MS_MAX;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use fetch::Target;
use source::Source;

pub mod api_keys;
pub mod dev;
mod fetch;
pub mod jwt;
pub mod key_set;
pub mod keys;
pub(crate) mod source;

pub use api_keys::{ApiKeys, Caller};
pub use dev::{DevTokens, Issued};
pub use jwt::{Error, Identity, Verifier};
pub use key_set::KeySet;

/// Most that clocks may be configured to differ by, in seconds: a connection outlives its token by at most 30 s, so
/// a larger leeway would let one be opened with a token that could not keep it open. More: refused at start.
pub const LEEWAY_S_MAX: u64 = 30;

/// Longest grace of a connection whose token is over. The sweep that ends it comes within two seconds.
pub const EXPIRY_GRACE_MAX: Period = Period::ms(TOKEN_OUTLIVED_MS_MAX - 2_000);

/// Most often that a set is fetched. More often: refused at start.
pub const JWKS_REFRESH_MIN: Period = Period::secs(1);

/// Most seldom: keys that were taken out of a set count for so long.
pub const JWKS_REFRESH_MAX: Period = Period::days(1);

/// How clients' tokens are checked. The `auth` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The one algorithm that is accepted, whatever a token's header asks for: `HS256`, `EdDSA`, `RS256` or `ES256`.
    pub algorithm: Algorithm,
    /// The key: for `HS256` a file with at least 32 secret bytes (one newline at its end does not count), for the others
    /// the public key as PEM. Without it and the two below, only development tokens on a loopback address are left.
    pub key_file: Option<PathBuf>,
    /// The keys as a set (JWKS), in place of `key_file`: tokens name theirs by `kid`. Read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// Where the issuer publishes its set, in place of the files. `https`; `http` for loopback addresses only.
    pub jwks_url: Option<String>,
    /// How often the set behind `jwks_url` is fetched, give or take a tenth; from 1 s to a day.
    pub jwks_refresh: Period,
    /// CA certificates (PEM) that vouch for the server of `jwks_url`, in place of the system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// The API keys of server-side callers (TOML, one `[[key]]` each: `name`, `sha256` of the key, `scopes`). Without it
    /// there is nothing under `/v1/admin`.
    pub api_keys_file: Option<PathBuf>,
    /// What a token's `aud` must be, or contain. When unset, a token that names any audience is refused: it was
    /// issued for another service (RFC 7519 §4.1.3).
    pub audience: Option<String>,
    /// What a token's `iss` must be. When unset, every issuer that holds the key will do.
    pub issuer: Option<String>,
    /// How far the issuer's clock may differ from ours, in seconds, at most 30: how long after its `exp`, or before
    /// its `nbf`, a token is still accepted.
    pub leeway_s: u64,
    /// How long a connection goes on after its token's `exp`, at most 28 s: so long its client has for `auth.refresh`.
    pub expiry_grace: Period,
    /// Whether a server without `key_file` issues development tokens. Honoured on loopback addresses only.
    pub dev_tokens: bool,
}

/// A way to sign tokens. Each is one algorithm, not a family: there is nothing to negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256: issuer and gateway share a secret.
    HS256,
    /// Ed25519: the gateway holds the public key only.
    EdDSA,
    /// RSA PKCS#1 v1.5 with SHA-256, 2048 to 8192 bits: the gateway holds the public key only.
    RS256,
    /// ECDSA over P-256 with SHA-256: the gateway holds the public key only.
    ES256,
}

/// What a gateway checks tokens with and, on a loopback address, issues them with.
#[derive(Debug)]
pub struct Auth {
    config: Config,
    /// Replaced as a whole when the keys are others; held for the copy of a pointer.
    verifier: RwLock<Arc<Verifier>>,
    /// Where a set comes from, if it is one.
    source: Option<Source>,
    /// Whether there are keys at all.
    known: watch::Sender<bool>,
    /// An operator wants the set fetched now.
    asked: Notify,
    dev_tokens: Option<DevTokens>,
    /// Replaced like the verifier; `None` where no file is configured.
    api_keys: Option<RwLock<Arc<ApiKeys>>>,
}

/// What came of reading everything anew that can be.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Settings whose files are in force as they are now.
    pub read: Vec<&'static str>,
    /// Files that were refused: what they held before stays in force.
    pub refused: Vec<SetupError>,
    /// Whether `jwks_url` is being fetched.
    pub fetching: bool,
}

/// Why the server does not start: a sentence for the person who configured it. Secrets are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No key, and an address that others can reach.
    #[error(
        "none of auth.key_file, auth.jwks_file and auth.jwks_url is set and {listen} is not a loopback address: \
         development tokens are only for loopback, so set one of them or listen on 127.0.0.1"
    )]
    NotLoopback {
        /// The address that clients would reach.
        listen: SocketAddr,
    },
    /// No key, and development tokens switched off.
    #[error(
        "none of auth.key_file, auth.jwks_file and auth.jwks_url is set and auth.dev_tokens is false: no client could \
         ever be let in"
    )]
    NoKey,
    /// No key for an algorithm that development tokens do not use.
    #[error(
        "auth.algorithm is {0} but none of auth.key_file, auth.jwks_file and auth.jwks_url is set: development tokens \
         are HS256"
    )]
    NoKeyForAlgorithm(Algorithm),
    /// A setting that is there but says nothing.
    #[error("auth.{0} is set but empty: remove it or give it a value")]
    Empty(&'static str),
    /// A leeway that would let connections outlive their tokens.
    #[error("auth.leeway_s is {0}, which is more than {LEEWAY_S_MAX} seconds")]
    Leeway(u64),
    /// A grace that would let connections outlive their tokens.
    #[error("auth.expiry_grace is {0}, which is more than {EXPIRY_GRACE_MAX}")]
    ExpiryGrace(Period),
    /// Keys from several places.
    #[error("auth.{0} is set, and auth.{1} too: keys come from one place")]
    Several(&'static str, &'static str),
    /// A setting of a set's URL without one.
    #[error("auth.jwks_ca_file is set, but auth.jwks_url is not an https URL")]
    NothingToVouchFor,
    /// Secrets at a URL.
    #[error("auth.algorithm is HS256 and auth.jwks_url is set: a secret is never published; use auth.jwks_file")]
    SecretsAtUrl,
    /// A URL that nothing may be fetched from.
    #[error("auth.jwks_url {0}")]
    Url(fetch::BadUrl),
    /// Fetched too often or too seldom.
    #[error("auth.jwks_refresh is {0}, which is not within {JWKS_REFRESH_MIN} to {JWKS_REFRESH_MAX}")]
    Refresh(Period),
    /// CA certificates that cannot be used.
    #[error("the CA certificates in {} are not usable: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A key set that cannot be used.
    #[error("the key set in {} is not usable: {why}", path.display())]
    KeySet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Holds no key.
        why: String,
    },
    /// A file of API keys that cannot be used.
    #[error("the API keys in {} are not usable: {why}", path.display())]
    ApiKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Holds no key.
        why: String,
    },
    /// The key file cannot be read.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file is no key.
    #[error("the key file {} is larger than {} bytes", path.display(), keys::FILE_BYTES_MAX)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A secret that could be guessed.
    #[error("the secret in {} has {bytes} bytes, HS256 needs at least {}", path.display(), keys::SECRET_BYTES_MIN)]
    SecretTooShort {
        /// The file.
        path: PathBuf,
        /// Its length without the newline.
        bytes: usize,
    },
    /// A public key in the place of a secret: everyone who has the public key could sign tokens.
    #[error("{} holds a PEM key, but auth.algorithm is HS256, which needs a secret", path.display())]
    SecretIsPem {
        /// The file.
        path: PathBuf,
    },
    /// A file that holds something else than one public key.
    #[error("{} should hold one PEM block `PUBLIC KEY`, and holds {found}", path.display())]
    NotPublicKey {
        /// The file.
        path: PathBuf,
        /// What was there instead.
        found: String,
    },
    /// A PEM file whose content is not a key of the configured algorithm.
    #[error("the public key in {} is not a key for {algorithm}", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The configured algorithm.
        algorithm: Algorithm,
    },
    /// An RSA key too short to be safe, or too long to be affordable.
    #[error("the RSA key in {} has {bits} bits, {} to {} are accepted", path.display(), keys::RSA_BITS_MIN, keys::RSA_BITS_MAX)]
    RsaSize {
        /// The file.
        path: PathBuf,
        /// Length of its modulus.
        bits: usize,
    },
    /// The secret of development tokens cannot be kept.
    #[error("cannot keep the development secret in {}", path.display())]
    DevSecret {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Decides how tokens are checked on `listen`, the address that clients reach, and prepares all that is needed.
///
/// With a `key_file` its key rules, everywhere. Without one, a loopback address gets development tokens, whose secret
/// lives in `data_dir`; any other address is refused. There is no default secret to fall back to.
///
/// # Errors
/// When the configuration contradicts itself, a key cannot be read or is refused, or there would be no key at all.
pub fn resolve(config: &Config, listen: SocketAddr, data_dir: &Path) -> Result<Auth, SetupError> {
    if let Some(problem) = contradictions(config).into_iter().next() {
        return Err(problem);
    }
    let api_keys = config.api_keys_file.as_deref().map(ApiKeys::read).transpose()?;
    if let Some(path) = &config.key_file {
        let key = keys::read(path, config.algorithm)?;
        return Ok(Auth::new(config, Verifier::new(config, key), None, api_keys));
    }
    if let Some(path) = &config.jwks_file {
        let file = source::File::new(path);
        let set = file.read(config.algorithm)?;
        let keys = set.len();
        let mut auth = Auth::new(config, Verifier::of_set(config, set), None, api_keys);
        auth.source = Some(Source::File(Arc::new(file)));
        auth.note_keys(keys);
        return Ok(auth);
    }
    if let Some(url) = &config.jwks_url {
        let target = Target::new(url, config.jwks_ca_file.as_deref()).map_err(SetupError::Url)?;
        let mut auth = Auth::new(config, Verifier::without_keys(config), None, api_keys);
        auth.source = Some(Source::Url(target));
        auth.known.send_replace(false);
        return Ok(auth);
    }
    may_issue(config, listen)?;
    let (dev_tokens, verifier) = DevTokens::open(config, data_dir)?;
    Ok(Auth::new(config, verifier, Some(dev_tokens), api_keys))
}

/// Everything that [`resolve`] would refuse. Reads, and leaves everything as it is: no secret is made.
#[must_use]
pub fn check(config: &Config, listen: SocketAddr, data_dir: &Path) -> Vec<SetupError> {
    let mut problems = contradictions(config);
    // What is empty, or no URL, has been said already.
    let key = match (&config.key_file, &config.jwks_file, &config.jwks_url) {
        (Some(path), ..) | (None, Some(path), _) if path.as_os_str().is_empty() => Ok(()),
        (Some(path), ..) => keys::read(path, config.algorithm).map(drop),
        (None, Some(path), _) => source::read(path, config.algorithm).map(drop),
        (None, None, Some(_)) => Ok(()),
        (None, None, None) => may_issue(config, listen).and_then(|()| DevTokens::check(data_dir)),
    };
    problems.extend(key.err());
    if let Some(path) = config.api_keys_file.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        problems.extend(ApiKeys::read(path).err());
    }
    problems
}

/// What is wrong with the settings by themselves.
fn contradictions(config: &Config) -> Vec<SetupError> {
    let mut problems = Vec::new();
    if config.leeway_s > LEEWAY_S_MAX {
        problems.push(SetupError::Leeway(config.leeway_s));
    }
    if config.expiry_grace > EXPIRY_GRACE_MAX {
        problems.push(SetupError::ExpiryGrace(config.expiry_grace));
    }
    for (name, value) in [("audience", &config.audience), ("issuer", &config.issuer)] {
        if value.as_deref() == Some("") {
            problems.push(SetupError::Empty(name));
        }
    }
    let files = [
        ("key_file", &config.key_file),
        ("jwks_file", &config.jwks_file),
        ("jwks_ca_file", &config.jwks_ca_file),
        ("api_keys_file", &config.api_keys_file),
    ];
    for (name, path) in files {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            problems.push(SetupError::Empty(name));
        }
    }
    problems.extend(contradictions_of_sets(config));
    problems
}

fn contradictions_of_sets(config: &Config) -> Vec<SetupError> {
    let mut problems = Vec::new();
    let set = [
        ("key_file", config.key_file.is_some()),
        ("jwks_file", config.jwks_file.is_some()),
        ("jwks_url", config.jwks_url.is_some()),
    ];
    let mut set = set.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name);
    if let (Some(one), Some(other)) = (set.next(), set.next()) {
        problems.push(SetupError::Several(other, one));
    }
    if !(JWKS_REFRESH_MIN..=JWKS_REFRESH_MAX).contains(&config.jwks_refresh) {
        problems.push(SetupError::Refresh(config.jwks_refresh));
    }
    let target = config.jwks_url.as_deref().map(|url| Target::new(url, None));
    if !matches!(&target, Some(Ok(target)) if target.is_https()) && config.jwks_ca_file.is_some() {
        problems.push(SetupError::NothingToVouchFor);
    }
    if let Some(Err(bad)) = target {
        problems.push(SetupError::Url(bad));
    } else if config.jwks_url.is_some() && config.algorithm == Algorithm::HS256 {
        problems.push(SetupError::SecretsAtUrl);
    }
    if let Some(path) = config.jwks_ca_file.as_ref().filter(|path| !path.as_os_str().is_empty())
        && let Err(why) = fetch::roots(Some(path))
    {
        problems.push(SetupError::Ca { path: path.clone(), why });
    }
    problems
}

/// Whether a server without a key may issue development tokens.
fn may_issue(config: &Config, listen: SocketAddr) -> Result<(), SetupError> {
    if config.algorithm != Algorithm::HS256 {
        return Err(SetupError::NoKeyForAlgorithm(config.algorithm));
    }
    if !config.dev_tokens {
        return Err(SetupError::NoKey);
    }
    if !listen.ip().to_canonical().is_loopback() {
        return Err(SetupError::NotLoopback { listen });
    }
    Ok(())
}

impl SetupError {
    /// The setting to look at, within the section `auth`.
    #[must_use]
    pub const fn setting(&self) -> &'static str {
        match self {
            Self::Leeway(_) => "leeway_s",
            Self::ExpiryGrace(_) => "expiry_grace",
            Self::Empty(name) => name,
            Self::NoKeyForAlgorithm(_) => "algorithm",
            Self::Several(name, _) => name,
            Self::NothingToVouchFor | Self::Ca { .. } => "jwks_ca_file",
            Self::SecretsAtUrl | Self::Url(_) => "jwks_url",
            Self::Refresh(_) => "jwks_refresh",
            Self::KeySet { .. } => "jwks_file",
            Self::DevSecret { .. } => "dev_tokens",
            Self::ApiKeys { .. } => "api_keys_file",
            _ => "key_file",
        }
    }
}

// === impl Auth ===

impl Auth {
    fn new(config: &Config, verifier: Verifier, dev_tokens: Option<DevTokens>, api_keys: Option<ApiKeys>) -> Self {
        Self {
            config: config.clone(),
            verifier: RwLock::new(Arc::new(verifier)),
            source: None,
            known: watch::Sender::new(true),
            asked: Notify::new(),
            dev_tokens,
            api_keys: api_keys.map(|keys| RwLock::new(Arc::new(keys))),
        }
    }

    /// What checks tokens now, over every transport.
    #[must_use]
    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.read())
    }

    /// Whom a token names, as every transport asks it; refusals are counted.
    ///
    /// # Errors
    /// When it is not to be believed, in the words for its client.
    pub(crate) fn check(&self, token: &str, now_unix_ms: u64) -> Result<Identity, chappe_schema::error::Error> {
        self.verifier().verify(token, now_unix_ms).map_err(|refused| {
            count_refusal(refused.reason());
            let error = chappe_schema::error::Error::new(refused.code()).with_detail(refused.to_string());
            if refused == Error::NoKeys { error.after_ms(1_000) } else { error }
        })
    }

    /// The server-side callers of now; `None` where none are configured.
    #[must_use]
    pub fn api_keys(&self) -> Option<Arc<ApiKeys>> {
        self.api_keys.as_ref().map(|keys| Arc::clone(&keys.read()))
    }

    /// Reads the files anew. Which files, and algorithm, audience, issuer and leeway, stay as they were at the start.
    pub fn reload(&self) -> Reloaded {
        let mut reloaded = Reloaded::default();
        if let Some(path) = &self.config.key_file {
            let key = keys::read(path, self.config.algorithm);
            let key = key.map(|key| *self.verifier.write() = Arc::new(Verifier::new(&self.config, key)));
            reloaded.note("key_file", key);
        }
        match &self.source {
            None => {}
            Some(Source::File(file)) => {
                let set = file.read(self.config.algorithm);
                reloaded.note("jwks_file", set.map(|set| self.renew(set)));
            }
            Some(Source::Url(_)) => {
                self.asked.notify_one();
                reloaded.fetching = true;
            }
        }
        if let (Some(path), Some(keys)) = (&self.config.api_keys_file, &self.api_keys) {
            reloaded.note("api_keys_file", ApiKeys::read(path).map(|read| *keys.write() = Arc::new(read)));
        }
        reloaded
    }

    /// What issues development tokens; `None` wherever a key is configured.
    #[must_use]
    pub const fn dev_tokens(&self) -> Option<&DevTokens> {
        self.dev_tokens.as_ref()
    }
}

/// Counts a token or key that was refused.
pub(crate) fn count_refusal(reason: &'static str) {
    metrics::counter!(AUTH_REFUSALS_TOTAL, "reason" => reason).increment(1);
}

impl Reloaded {
    fn note(&mut self, setting: &'static str, read: Result<(), SetupError>) {
        match read {
            Ok(()) => self.read.push(setting),
            Err(error) => self.refused.push(error),
        }
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::HS256,
            key_file: None,
            jwks_file: None,
            jwks_url: None,
            jwks_refresh: Period::minutes(5),
            jwks_ca_file: None,
            api_keys_file: None,
            audience: None,
            issuer: None,
            leeway_s: 5,
            expiry_grace: Period::secs(25),
            dev_tokens: true,
        }
    }
}

// === impl Algorithm ===

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Algorithm {
    /// As it stands in tokens and key sets.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::EdDSA => "EdDSA",
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
        }
    }
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::HS256 => Self::HS256,
            Algorithm::EdDSA => Self::EdDSA,
            Algorithm::RS256 => Self::RS256,
            Algorithm::ES256 => Self::ES256,
        }
    }
}

#[cfg(test)]
mod tests;
