//! A set of keys as issuers publish them (RFC 7517), so that they can be replaced one by one.
//!
//! Of a set only the keys for the configured algorithm count. What a key says of itself can make it useless here, never
//! useful for something else: `alg` and `use` are compared with the configuration, which they do not change. Keys that are
//! not for us are skipped, as the standard says; a set in which something is wrong altogether is refused whole, and
//! whoever asked for it keeps what was there before.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hashbrown::HashMap;
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Algorithm,
    jwt::Error,
    keys::{ED25519_BYTES, P256_BYTES, RSA_BITS_MAX, RSA_BITS_MIN, SECRET_BYTES_MIN, bit_length},
};

/// Largest set. Issuers' sets are a few KiB, with certificate chains some tens. Larger: refused.
pub const SET_BYTES_MAX: usize = 256 * 1024;

/// Most keys of one set, those included that are not for us. Issuers have two or three. More: refused.
pub const SET_KEYS_MAX: usize = 64;

/// Longest name of a key. Longer: the key is skipped.
const KID_BYTES_MAX: usize = 256;

/// The keys that check tokens, by their names.
pub struct KeySet {
    named: HashMap<Box<str>, DecodingKey>,
    /// The only key of a set that names none.
    anonymous: Option<DecodingKey>,
    /// Keys of the set that count for nothing here.
    skipped: usize,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// What we read of a key; everything else is its own affair.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    use_: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    d: Option<Value>,
}

impl KeySet {
    /// The keys for `algorithm` in a JWKS document.
    ///
    /// # Errors
    /// When it is none, has no key for `algorithm`, or cannot be meant. The sentence holds no part of a key.
    pub(super) fn parse(document: &[u8], algorithm: Algorithm) -> Result<Self, String> {
        if document.len() > SET_BYTES_MAX {
            return Err(format!("it is larger than {SET_BYTES_MAX} bytes"));
        }
        let Document { keys } =
            serde_json::from_slice(document).map_err(|_| "it is not a JSON object with an array `keys`".to_owned())?;
        if keys.len() > SET_KEYS_MAX {
            return Err(format!("it has {} keys; at most {SET_KEYS_MAX} are accepted", keys.len()));
        }
        let all = keys.len();
        let mut named = HashMap::new();
        let mut nameless = Vec::new();
        for key in keys {
            let Ok(jwk) = Jwk::deserialize(key) else { continue };
            if jwk.d.is_some() {
                // Whoever could read it can sign.
                return Err("it holds a private key".to_owned());
            }
            let Some(key) = jwk.key(algorithm) else { continue };
            match jwk.kid {
                Some(kid) if kid.len() > KID_BYTES_MAX => {}
                Some(kid) => {
                    if named.insert(kid.into_boxed_str(), key).is_some() {
                        return Err(format!("two keys for {algorithm} have the same `kid`"));
                    }
                }
                None => nameless.push(key),
            }
        }
        // Beside others nobody could tell when a nameless key is meant.
        let anonymous = if named.is_empty() && nameless.len() == 1 { nameless.pop() } else { None };
        let usable = named.len() + usize::from(anonymous.is_some());
        if usable == 0 {
            return Err(format!("none of its {all} keys is for {algorithm}"));
        }
        Ok(Self { named, anonymous, skipped: all - usable })
    }

    /// The key of a token that names it so, or names none.
    pub(super) fn find(&self, kid: Option<&str>) -> Result<&DecodingKey, Error> {
        match kid {
            Some(kid) => self.named.get(kid).ok_or(Error::UnknownKey),
            None => {
                let only = self.anonymous.iter().chain(self.named.values());
                let mut only = only.take(2);
                match (only.next(), only.next()) {
                    (Some(key), None) => Ok(key),
                    _ => Err(Error::KeyNotNamed),
                }
            }
        }
    }

    /// Keys that count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.named.len() + usize::from(self.anonymous.is_some())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys of the set that are not for us.
    #[must_use]
    pub const fn skipped(&self) -> usize {
        self.skipped
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.len()).field("skipped", &self.skipped).finish_non_exhaustive()
    }
}

impl Jwk {
    /// The key, if it is one for `algorithm` and as strong as one from a file must be.
    fn key(&self, algorithm: Algorithm) -> Option<DecodingKey> {
        let is_for_checking = self.use_.as_deref().is_none_or(|use_| use_ == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !is_for_checking || self.alg.as_deref().is_some_and(|alg| alg != algorithm.name()) {
            return None;
        }
        match (algorithm, self.kty.as_str(), self.crv.as_deref()) {
            (Algorithm::HS256, "oct", _) => {
                let secret = URL_SAFE_NO_PAD.decode(self.k.as_deref()?).ok()?;
                (secret.len() >= SECRET_BYTES_MIN).then(|| DecodingKey::from_secret(&secret))
            }
            (Algorithm::RS256, "RSA", _) => {
                let key = DecodingKey::from_rsa_components(self.n.as_deref()?, self.e.as_deref()?).ok()?;
                let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else { return None };
                let is_exponent =
                    bit_length(e) >= 2 && bit_length(e) <= 33 && e.last().is_some_and(|byte| byte & 1 == 1);
                ((RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bit_length(n)) && is_exponent).then_some(key)
            }
            (Algorithm::EdDSA, "OKP", Some("Ed25519")) => {
                sized(DecodingKey::from_ed_components(self.x.as_deref()?).ok()?, ED25519_BYTES)
            }
            (Algorithm::ES256, "EC", Some("P-256")) => {
                sized(DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()?, P256_BYTES)
            }
            _ => None,
        }
    }
}

/// The key, if it is so long.
pub(super) fn sized(key: DecodingKey, bytes: usize) -> Option<DecodingKey> {
    let fits = matches!(key.kind(), DecodingKeyKind::SecretOrDer(der) if der.len() == bytes);
    fits.then_some(key)
}

#[cfg(test)]
mod tests;
