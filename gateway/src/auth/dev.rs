//! Development tokens: a server that only its own machine can reach issues tokens to whoever asks.
//!
//! Their secret is random, made at the first start and kept in the data directory, so that tokens survive a restart.
//! It is text (64 hexadecimal digits), so the same file also serves as `auth.key_file` or in another tool.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use chappe_schema::id::{DeviceId, UserId};
use jsonwebtoken::{DecodingKey, EncodingKey, Header};
use rand::{TryRngCore, rngs::OsRng};
use serde::Serialize;
use uuid::Uuid;

use super::{Config, Error, SetupError, Verifier, keys};

/// The file in the data directory that holds the secret, with mode 0600.
pub const SECRET_FILE: &str = "dev-token.secret";

/// How long a token is valid when nobody says, in seconds: a day.
pub const TTL_S_DEFAULT: u64 = 24 * 60 * 60;

/// How long a token may be valid, in seconds: 30 days. Who asks for more gets this.
pub const TTL_S_MAX: u64 = 30 * 24 * 60 * 60;

/// Bytes of randomness in the secret.
const SECRET_BYTES: usize = 32;

/// Issues development tokens. Exists only where clients come over a loopback address.
pub struct DevTokens {
    key: EncodingKey,
    audience: Option<String>,
    issuer: Option<String>,
}

/// A fresh token. It is a secret of its user: no log holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: u64,
}

// === impl DevTokens ===

impl DevTokens {
    /// Opens, or at the first start creates, the secret in `data_dir`. The data directory belongs to one process at a
    /// time, so nobody else creates it meanwhile.
    ///
    /// # Errors
    /// When the secret can be neither read nor created.
    pub(super) fn open(config: &Config, data_dir: &Path) -> Result<(Self, Verifier), SetupError> {
        let path = data_dir.join(SECRET_FILE);
        ensure(&path, data_dir).map_err(|source| SetupError::DevSecret { path: path.clone(), source })?;
        let secret = keys::secret(&path)?;
        let tokens = Self {
            key: EncodingKey::from_secret(&secret),
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
        };
        Ok((tokens, Verifier::new(config, DecodingKey::from_secret(&secret))))
    }

    /// Whether [`DevTokens::open`] could read what is there. A secret that is not there yet is no mistake.
    ///
    /// # Errors
    /// When there is a secret that is none.
    pub(super) fn check(data_dir: &Path) -> Result<(), SetupError> {
        let path = data_dir.join(SECRET_FILE);
        match keys::secret(&path) {
            Err(SetupError::Read { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(())
            }
            Err(SetupError::Read { path, source }) => Err(SetupError::DevSecret { path, source }),
            read => read.map(drop),
        }
    }

    /// A token for `user`, and for `device` only if one is given, valid from `now_unix_ms` (Unix milliseconds) for
    /// `ttl_s` seconds: a day when unset, at least a second, at most 30 days.
    ///
    /// # Errors
    /// When signing fails, which it does not with a sound library.
    pub fn issue(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        ttl_s: Option<u64>,
        now_unix_ms: u64,
    ) -> Result<Issued, Error> {
        let expires_at_s = (now_unix_ms / 1000).saturating_add(ttl_s.unwrap_or(TTL_S_DEFAULT).clamp(1, TTL_S_MAX));
        let claims = Claims {
            sub: user.as_str(),
            device: device.map(DeviceId::as_str),
            // To the millisecond: who logs out and in again within one second is in.
            iat: now_unix_ms as f64 / 1000.0,
            exp: expires_at_s,
            jti: Uuid::new_v4().to_string(),
            aud: self.audience.as_deref(),
            iss: self.issuer.as_deref(),
        };
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.key).map_err(|_| Error::Signing)?;
        Ok(Issued { token, expires_at_ms: expires_at_s.saturating_mul(1000) })
    }
}

impl fmt::Debug for DevTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevTokens").finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    iat: f64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// Leaves a secret at `path` that only its owner can read.
fn ensure(path: &Path, data_dir: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.permissions().mode() & 0o077 == 0 => Ok(()),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "development secret is readable by others, closing it");
            // Some file systems keep no modes. Only this machine's users can reach the server anyhow, so it starts.
            if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o600)) {
                tracing::warn!(path = %path.display(), %error, "development secret stays readable by others");
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, data_dir),
        Err(error) => Err(error),
    }
}

/// The secret appears whole or not at all: an interrupted start leaves a partial file that the next one removes.
fn create(path: &Path, data_dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let partial = path.with_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(random_text()?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    File::open(data_dir)?.sync_all()
}

/// One line of hexadecimal digits: randomness itself may end with a newline byte, which readers would cut off.
fn random_text() -> io::Result<String> {
    use std::fmt::Write as _;

    let mut secret = [0; SECRET_BYTES];
    OsRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
    let mut text = String::with_capacity(2 * SECRET_BYTES + 1);
    for byte in secret {
        write!(text, "{byte:02x}").map_err(io::Error::other)?;
    }
    text.push('\n');
    Ok(text)
}
