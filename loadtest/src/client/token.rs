//! Tokens for crowds: signed here with the server's development secret, instead of asked for one by one.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// Where the server keeps the secret, in its data directory.
pub const SECRET_FILE: &str = "dev-token.secret";
const VALID_S: u64 = 24 * 60 * 60;

/// Signs development tokens.
pub struct Signer {
    key: EncodingKey,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}

impl Signer {
    /// Reads the secret of a server's data directory.
    pub fn of_data_dir(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(SECRET_FILE);
        let secret = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { key: EncodingKey::from_secret(secret.trim_ascii_end()) })
    }

    /// A token of a day for `user`.
    pub fn sign(&self, user: &str) -> anyhow::Result<String> {
        let iat = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = Claims { sub: user, iat, exp: iat + VALID_S };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)?)
    }
}
